//! What stands around the packets of a case: services in every mode, and their backends, whose states change.

use std::net::{IpAddr, Ipv4Addr};

use lb_common::{
    backend::Serving,
    clock::Tick,
    flow::word::BackendRef,
    guard::Source,
    maglev::Slot,
    nat::{DNAT_SERVICES, Endpoint, FIRST_PORT},
    net::IpVersion,
    service::Service as Record,
};

use super::asked::Asked;
use crate::packet::{
    BackendSpec, CLIENT, Client, VIP, VIP_PORT, World,
    answer::{OUTER_SOURCE, address_of},
    nat::{NARROW, NARROW_MTU, NOWHERE, SNAT, TAGGED, UNHEARD},
    on_wire, version,
    version::in_ipv6,
    world::BACKEND_PORT,
};

/// A VIP that the host owns too.
pub const OWN_VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// Slots of each table.
pub const SLOTS: usize = 13;
/// The longest packet that gets to a backend's next hop.
pub const MTU: usize = 1_500;

/// An address on the wire, and a port.
pub type End = (IpAddr, u16);

/// What there is of services in a case, and of memory for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// An instance without room for translations, and services that need none.
    Plain,
    /// One with room for them, and every service.
    Translating,
}

impl Setting {
    /// The services.
    #[must_use]
    pub fn services(self) -> &'static [Service] {
        let all: &'static [Service] = &SERVICES;
        match self {
            Self::Plain => &all[..3],
            Self::Translating => all,
        }
    }

    /// How many backends there are; their ids begin with 1.
    #[must_use]
    pub fn backends(self) -> u32 {
        self.services()
            .last()
            .map_or(0, |service| service.backends.1)
    }

    /// How many clients there are: with all services, fewer flows than the table has places.
    #[must_use]
    pub const fn clients(self) -> u16 {
        match self {
            Self::Plain => 12,
            Self::Translating => 8,
        }
    }

    /// A client, by its number.
    #[must_use]
    pub fn client(self, number: u16) -> Client {
        let address = match (self, number) {
            (Self::Plain, _) => Ipv4Addr::new(198, 51, 100, number as u8),
            (Self::Translating, 0..=2) => CLIENT.0,
            (Self::Translating, 3 | 4) => NARROW.0,
            (Self::Translating, 5) => TAGGED.0,
            (Self::Translating, 6) => UNHEARD.0,
            (Self::Translating, _) => NOWHERE.0,
        };
        Client(address, 40_000 + number)
    }
}

/// How a packet gets to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By other MAC addresses.
    L2,
    /// In a header of the same version of IP.
    Ipip,
    /// In a header of IPv6.
    InIpv6,
    /// With both ends translated.
    Nat,
    /// With its destination translated.
    Dnat,
    /// By this host's stack, with its destination translated.
    Local,
}

impl Way {
    /// Whether what backends send comes back through this host, so that both sides of a flow are seen.
    #[must_use]
    pub const fn sees_both(self) -> bool {
        matches!(self, Self::Nat | Self::Dnat)
    }

    /// Whether the packet's destination is translated.
    #[must_use]
    pub const fn translates(self) -> bool {
        matches!(self, Self::Nat | Self::Dnat | Self::Local)
    }
}

/// A service.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its id.
    pub id: u16,
    /// Its VIP, as in IPv4.
    pub vip: Ipv4Addr,
    /// Its port.
    pub port: u16,
    /// How its packets get to backends that are not on this host.
    pub way: Way,
    /// Ids of its first and last backend.
    pub backends: (u32, u32),
    /// Whether it places clients, and not flows.
    pub has_affinity: bool,
}

impl Service {
    /// Its VIP on the wire, and its port.
    #[must_use]
    pub fn end(&self) -> End {
        (on_wire(self.vip), self.port)
    }

    /// Ids of its backends.
    pub fn ids(&self) -> impl Iterator<Item = u32> + use<> {
        self.backends.0..=self.backends.1
    }

    /// Whether any flow of it needs an entry, or no reply could be translated.
    #[must_use]
    pub fn needs_entries(&self) -> bool {
        self.ids().any(|id| way_to(id).translates())
    }
}

/// Every service. The first three need no translation.
pub const SERVICES: [Service; 7] = [
    Service {
        id: 1,
        vip: VIP,
        port: VIP_PORT,
        way: Way::L2,
        backends: (1, 3),
        has_affinity: false,
    },
    Service {
        id: 2,
        vip: VIP,
        port: 80,
        way: Way::Ipip,
        backends: (4, 6),
        has_affinity: false,
    },
    Service {
        id: 3,
        vip: OWN_VIP,
        port: VIP_PORT,
        way: Way::InIpv6,
        backends: (7, 8),
        has_affinity: false,
    },
    Service {
        id: 4,
        vip: VIP,
        port: 444,
        way: Way::Nat,
        backends: (9, 11),
        has_affinity: false,
    },
    Service {
        id: 5,
        vip: VIP,
        port: 445,
        way: Way::Dnat,
        backends: (12, 13),
        has_affinity: false,
    },
    Service {
        id: 6,
        vip: OWN_VIP,
        port: 446,
        way: Way::Dnat,
        backends: (14, 15),
        has_affinity: false,
    },
    Service {
        id: 7,
        vip: VIP,
        port: 447,
        way: Way::L2,
        backends: (16, 18),
        has_affinity: true,
    },
];

/// How many backends there are in all.
const BACKENDS: u32 = 18;

/// How packets get to a backend.
#[must_use]
pub fn way_to(backend: u32) -> Way {
    match backend {
        11 | 17 => Way::Local,
        _ => service_of(backend).map_or(Way::L2, |service| service.way),
    }
}

/// The endpoint that a backend is at, by its id, if what it gets is translated: of two services one backend each is at the same.
#[must_use]
pub fn endpoint_of(backend: u32) -> Option<u32> {
    way_to(backend).translates().then_some(match backend {
        14 => 12,
        17 => 11,
        own => own,
    })
}

/// Address on the wire and port of an endpoint.
#[must_use]
pub fn end_of(endpoint: u32) -> End {
    (on_wire(address_of(endpoint)), BACKEND_PORT)
}

/// Whether an end may be what a backend of mode `nat` takes for its client.
#[must_use]
pub fn is_snat(end: End) -> bool {
    SNAT.iter().any(|address| on_wire(*address) == end.0) && end.1 >= FIRST_PORT
}

/// How a packet gets to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    /// By the interface that its route names.
    Routed,
    /// By a device of VLANs.
    Tagged,
    /// By the kernel, which has to find out about the neighbour first.
    Unheard,
    /// Not at all.
    Nowhere,
}

/// How packets get to a client, and the longest that do.
#[must_use]
pub fn way_back(client: IpAddr) -> (Back, usize) {
    let is = |one: Client| on_wire(one.0) == client;
    if is(CLIENT) {
        (Back::Routed, MTU)
    } else if is(NARROW) {
        (Back::Routed, usize::from(NARROW_MTU))
    } else if is(TAGGED) {
        (Back::Tagged, MTU)
    } else if is(UNHEARD) {
        (Back::Unheard, MTU)
    } else {
        (Back::Nowhere, 0)
    }
}

/// What is told of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it may be given.
    pub serving: Serving,
    /// Whether its next hop is known.
    pub resolved: bool,
    /// The generation of its id.
    pub generation: u8,
    /// How many of its flows are closed, of 65,536; none if they are not closed at a pace.
    pub closing: Option<u32>,
    /// Whether its packets leave by another interface. Means nothing of a backend on this host.
    pub elsewhere: bool,
}

impl Node {
    const HEALTHY: Self = Self {
        serving: Serving::New,
        resolved: true,
        generation: 0,
        closing: None,
        elsewhere: false,
    };
}

/// The services and backends of a case as they are at one moment.
#[derive(Clone, Debug)]
pub struct Scene {
    setting: Setting,
    nodes: Vec<Node>,
    /// The service that is guarded, and what it asks.
    guarded: Option<(u16, Asked)>,
    is_measured: bool,
}

impl Scene {
    /// All backends healthy, and nowhere but here.
    #[must_use]
    pub fn healthy(setting: Setting) -> Self {
        Self {
            setting,
            nodes: vec![Node::HEALTHY; setting.backends() as usize],
            guarded: None,
            is_measured: false,
        }
    }

    /// All backends healthy. Writes it to the maps of a fresh world.
    #[must_use]
    pub fn new(world: &mut World, setting: Setting) -> Self {
        let scene = Self::healthy(setting);
        for id in 1..=setting.backends() {
            scene.write(world, id);
        }
        for service in setting.services() {
            let owners: Vec<u32> = service.ids().collect();
            let owners: Vec<u32> = owners.into_iter().cycle().take(SLOTS).collect();
            world.service(service.id, service.vip, service.port, &owners);
            if service.way.translates() {
                let mut record = world.maps.services.get(u32::from(service.id));
                record.traits |= Record::TRANSLATES;
                world.maps.services.set(u32::from(service.id), &record);
            }
            if service.has_affinity {
                world.place_clients(service.id);
            }
        }
        world.vip(VIP, false);
        world.vip(OWN_VIP, true);
        if setting == Setting::Translating {
            write_endpoints(world);
            world.link(0);
        }
        scene
    }

    /// The same, with what clients send again being counted.
    #[must_use]
    pub fn measured(self) -> Self {
        Self {
            is_measured: true,
            ..self
        }
    }

    /// Whether what clients send again is counted.
    #[must_use]
    pub const fn is_measured(&self) -> bool {
        self.is_measured
    }

    /// What a service asks of its clients; nothing if it is not guarded.
    #[must_use]
    pub fn asked(&self, service: u16) -> Option<&Asked> {
        let (guarded, asked) = self.guarded.as_ref()?;
        (*guarded == service).then_some(asked)
    }

    /// Has a service ask something else of its clients, or nothing, and no other anything, and writes it to the maps. Whether what is known of sources stays
    /// true: if not, it is forgotten.
    pub fn guard(&mut self, world: &World, service: u16, asked: Option<Asked>) -> bool {
        let before = self.guarded.take();
        if let Some((other, _)) = &before
            && (*other != service || asked.is_none())
        {
            world.unguard(*other);
        }
        let stays = match (&before, &asked) {
            (Some((other, before)), Some(asked)) => *other == service && before.limits_as(asked),
            _ => false,
        };
        if !stays {
            world.change_sources(|source| *source = Source::default());
        }
        if let Some(asked) = asked {
            asked.write(world, service);
            self.guarded = Some((service, asked));
        }
        stays
    }

    /// What there is of services.
    #[must_use]
    pub const fn setting(&self) -> Setting {
        self.setting
    }

    /// A backend.
    #[must_use]
    pub fn node(&self, id: u32) -> Option<&Node> {
        self.nodes.get((id as usize).checked_sub(1)?)
    }

    /// The present holder of a backend's id.
    #[must_use]
    pub fn holder(&self, id: u32) -> BackendRef {
        BackendRef::new(id, self.node(id).map_or(0, |node| node.generation))
    }

    /// The service at an address and port.
    #[must_use]
    pub fn service_at(&self, address: IpAddr, port: u16) -> Option<&'static Service> {
        self.setting
            .services()
            .iter()
            .find(|service| service.end() == (address, port))
    }

    /// The endpoint at an address and port.
    #[must_use]
    pub fn endpoint_at(&self, address: IpAddr, port: u16) -> Option<u32> {
        (1..=self.setting.backends())
            .filter_map(endpoint_of)
            .find(|endpoint| end_of(*endpoint) == (address, port))
    }

    /// Changes a backend.
    pub fn note(&mut self, id: u32, node: Node) {
        self.nodes[id as usize - 1] = node;
    }

    /// Changes a backend, and writes it to the maps.
    pub fn change(&mut self, world: &World, id: u32, node: Node) {
        self.note(id, node);
        self.write(world, id);
    }

    /// Gives a service another table: its backends in another order, from `first` on, with each slot's previous one, which it had until
    /// `since`.
    pub fn rebuild(world: &mut World, service: &Service, first: u32, since: Tick) {
        let (least, most) = service.backends;
        let count = most - least + 1;
        let slots: Vec<Slot> = (0..SLOTS as u32)
            .map(|slot| {
                let current = least + (first + slot) % count;
                let previous = least + slot % count;
                Slot::new(current, previous, since)
            })
            .collect();
        world.table(service.id, &slots);
    }

    /// Writes a backend to the maps.
    fn write(&self, world: &World, id: u32) {
        world.backend(&self.spec(id));
        let (Some(service), Some(endpoint)) = (service_of(id), endpoint_of(id)) else {
            return;
        };
        let mut entry = world.maps.backends.get(id);
        entry.service = service.id;
        entry.endpoint = endpoint as u16;
        entry.address = end_of(endpoint).0.into();
        if way_to(id) == Way::Nat {
            entry.pairs[..2].copy_from_slice(&pairs_of(endpoint));
        }
        world.maps.backends.set(id, &entry);
    }

    fn spec(&self, id: u32) -> BackendSpec {
        let node = self.nodes[id as usize - 1];
        let own = service_of(id).map_or(Way::L2, |service| service.way);
        let spec = match own {
            Way::L2 | Way::Local => BackendSpec::l2(id),
            Way::Ipip => BackendSpec::ipip(id),
            Way::InIpv6 => BackendSpec::ipip_in_ipv6(id),
            Way::Nat => BackendSpec::nat(id),
            Way::Dnat => BackendSpec::dnat(id),
        };
        let mut spec = spec.serving(node.serving).generation(node.generation);
        let varied = varied_of(id);
        if varied != 0 {
            spec = spec.varying(varied);
        }
        if !node.resolved {
            spec = spec.unresolved();
        }
        if let Some(parts) = node.closing {
            spec = spec.closing(parts);
        }
        if way_to(id) == Way::Local {
            spec = spec.local();
        } else if node.elsewhere {
            spec = spec.elsewhere();
        }
        spec
    }
}

/// The pairs of both SNAT addresses with an endpoint of mode `nat`.
fn pairs_of(endpoint: u32) -> [u16; 2] {
    let first = 1 + (endpoint as u16 - SERVICES[3].backends.0 as u16) * 2;
    [first, first + 1]
}

/// Writes every endpoint, its pairs, and what names it.
fn write_endpoints(world: &World) {
    for id in (1..=BACKENDS).filter(|id| endpoint_of(*id) == Some(*id)) {
        let (address, port) = end_of(id);
        let mut endpoint = Endpoint {
            address: address.into(),
            port,
            ..Endpoint::default()
        };
        if way_to(id) == Way::Nat {
            let pairs = pairs_of(id);
            for (pair, address) in pairs.into_iter().zip(SNAT) {
                world.pair(pair, address, id as u16);
            }
            endpoint.pairs[..2].copy_from_slice(&pairs);
        } else {
            let at_it = (1..=BACKENDS).filter(|backend| endpoint_of(*backend) == Some(id));
            let services = at_it.filter_map(|backend| service_of(backend).map(|one| one.id));
            for (place, service) in services.take(DNAT_SERVICES).enumerate() {
                endpoint.services[place] = service;
            }
        }
        world.maps.endpoints.set(id, &endpoint);
        world.locate_endpoint(id);
    }
}

/// The service of a backend.
#[must_use]
pub fn service_of(backend: u32) -> Option<&'static Service> {
    SERVICES
        .iter()
        .find(|service| (service.backends.0..=service.backends.1).contains(&backend))
}

/// Whether an address is a VIP that the host does not own.
#[must_use]
pub fn is_only_vip(address: IpAddr) -> bool {
    address == on_wire(VIP)
}

/// The header that a backend's packets are put into in mode `ipip`.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// Where it is from; those bits that vary are zero.
    source: IpAddr,
    /// Those of the last bits of its source that vary.
    pub varied: u16,
    /// Where it goes.
    pub destination: IpAddr,
    /// Its length.
    pub length: usize,
}

impl Outer {
    /// Whether it is of IPv4.
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Whether it may be from an address: whatever does not vary is as it should be.
    #[must_use]
    pub fn may_be_from(&self, source: IpAddr) -> bool {
        match (self.source, source) {
            (IpAddr::V4(base), IpAddr::V4(source)) => {
                source.to_bits() & !u32::from(self.varied) == base.to_bits()
            }
            (IpAddr::V6(base), IpAddr::V6(source)) => {
                source.to_bits() & !u128::from(self.varied) == base.to_bits()
            }
            _ => false,
        }
    }
}

/// Those of the last bits of the source of a backend's outer header that differ between flows: of some backends none.
#[must_use]
const fn varied_of(backend: u32) -> u16 {
    match backend {
        5 => 0x00ff,
        6 => 0xffff,
        8 => 0x01ff,
        _ => 0,
    }
}

/// One of the sources that a backend's outer header may have, in IPv6 [`in_ipv6`] of it: what varies of it is taken from a number.
#[must_use]
pub fn outer_source(backend: u32, number: u16) -> Ipv4Addr {
    let varied = u32::from(varied_of(backend));
    Ipv4Addr::from_bits((OUTER_SOURCE.to_bits() & !varied) | (u32::from(number) & varied))
}

/// The header that a backend's packets are put into; none but in mode `ipip`.
#[must_use]
pub fn outer_of(backend: u32) -> Option<Outer> {
    let source = outer_source(backend, 0);
    let in_ipv4 = Outer {
        source: source.into(),
        varied: varied_of(backend),
        destination: address_of(backend).into(),
        length: 20,
    };
    let in_ipv6 = Outer {
        source: in_ipv6(source).into(),
        destination: in_ipv6(address_of(backend)).into(),
        length: 40,
        ..in_ipv4
    };
    match (way_to(backend), version()) {
        (Way::L2 | Way::Nat | Way::Dnat | Way::Local, _) => None,
        (Way::Ipip, IpVersion::V4) => Some(in_ipv4),
        (Way::Ipip, IpVersion::V6) | (Way::InIpv6, _) => Some(in_ipv6),
    }
}

/// The MAC addresses of a frame to a backend: destination and source.
#[must_use]
pub fn macs_to(backend: u32) -> [u8; 12] {
    let id = backend as u8;
    [2, 0, 0, 0, 0x0b, id, 2, 0, 0, 0, 0x0a, id]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::in_version;

    #[test]
    fn an_outer_source_is_one_of_its_prefix() {
        for version in IpVersion::ALL {
            in_version(version, || {
                for backend in 4..=8 {
                    let outer = outer_of(backend).expect("mode ipip");
                    let is_from = |source: Ipv4Addr| {
                        outer.may_be_from(if outer.is_ipv4() {
                            source.into()
                        } else {
                            in_ipv6(source).into()
                        })
                    };
                    for number in [0, 1, 0xff, 0x100, 0xffff] {
                        assert!(is_from(outer_source(backend, number)));
                    }
                    let next = u32::from(varied_of(backend)) + 1;
                    let beyond = outer_source(backend, 0).to_bits() ^ next;
                    assert!(!is_from(Ipv4Addr::from_bits(beyond)), "{backend}");
                }
            });
        }
    }

    /// Ids count on from service to service, and every way is met.
    #[test]
    fn services_have_their_backends_in_a_row() {
        let mut next = 1;
        for service in &SERVICES {
            assert_eq!(service.backends.0, next);
            next = service.backends.1 + 1;
        }
        assert_eq!(next, BACKENDS + 1);
        assert_eq!(Setting::Translating.backends(), BACKENDS);
        assert_eq!(Setting::Plain.backends(), 8);
        for way in [
            Way::L2,
            Way::Ipip,
            Way::InIpv6,
            Way::Nat,
            Way::Dnat,
            Way::Local,
        ] {
            assert!((1..=BACKENDS).any(|id| way_to(id) == way), "{way:?}");
        }
    }
}
