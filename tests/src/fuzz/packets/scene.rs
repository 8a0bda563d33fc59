//! What stands around the packets of a case: three services in the modes that need no translation, and their backends, whose states change.

use std::net::{IpAddr, Ipv4Addr};

use lb_common::{backend::Serving, clock::Tick, maglev::Slot, net::IpVersion};

use crate::packet::{
    BackendSpec, VIP, VIP_PORT, World,
    answer::{OUTER_SOURCE, address_of},
    on_wire, version,
    version::in_ipv6,
};

/// A VIP that the host owns too.
pub const OWN_VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// Slots of each table.
pub const SLOTS: usize = 13;
/// The longest packet that gets to a backend's next hop.
pub const MTU: usize = 1_500;

/// How a service's packets get to its backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By other MAC addresses.
    L2,
    /// In a header of the same version of IP.
    Ipip,
    /// In a header of IPv6.
    InIpv6,
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
    /// How its packets get to backends.
    pub way: Way,
    /// Ids of its first and last backend.
    pub backends: (u32, u32),
}

/// Every service.
pub const SERVICES: [Service; 3] = [
    Service {
        id: 1,
        vip: VIP,
        port: VIP_PORT,
        way: Way::L2,
        backends: (1, 3),
    },
    Service {
        id: 2,
        vip: VIP,
        port: 80,
        way: Way::Ipip,
        backends: (4, 6),
    },
    Service {
        id: 3,
        vip: OWN_VIP,
        port: VIP_PORT,
        way: Way::InIpv6,
        backends: (7, 8),
    },
];

/// How many backends there are; their ids begin with 1.
pub const BACKENDS: u32 = 8;

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
    /// Whether its packets leave by another interface.
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
    nodes: [Node; BACKENDS as usize],
}

impl Scene {
    /// All backends healthy, and nowhere but here.
    #[must_use]
    pub const fn healthy() -> Self {
        Self {
            nodes: [Node::HEALTHY; BACKENDS as usize],
        }
    }

    /// All backends healthy. Writes it to the maps of a fresh world.
    #[must_use]
    pub fn new(world: &mut World) -> Self {
        let scene = Self::healthy();
        for id in 1..=BACKENDS {
            world.backend(&scene.spec(id));
        }
        for service in &SERVICES {
            let ids = service.backends.0..=service.backends.1;
            let owners: Vec<u32> = ids.cycle().take(SLOTS).collect();
            world.service(service.id, service.vip, service.port, &owners);
        }
        world.vip(VIP, false);
        world.vip(OWN_VIP, true);
        scene
    }

    /// A backend.
    #[must_use]
    pub fn node(&self, id: u32) -> Option<&Node> {
        self.nodes.get((id as usize).checked_sub(1)?)
    }

    /// Changes a backend.
    pub fn note(&mut self, id: u32, node: Node) {
        self.nodes[id as usize - 1] = node;
    }

    /// Changes a backend, and writes it to the maps.
    pub fn change(&mut self, world: &World, id: u32, node: Node) {
        self.note(id, node);
        world.backend(&self.spec(id));
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

    fn spec(&self, id: u32) -> BackendSpec {
        let node = self.nodes[id as usize - 1];
        let spec = match service_of(id).map(|service| service.way) {
            Some(Way::Ipip) => BackendSpec::ipip(id),
            Some(Way::InIpv6) => BackendSpec::ipip_in_ipv6(id),
            _ => BackendSpec::l2(id),
        };
        let mut spec = spec.serving(node.serving).generation(node.generation);
        if !node.resolved {
            spec = spec.unresolved();
        }
        if let Some(parts) = node.closing {
            spec = spec.closing(parts);
        }
        if node.elsewhere {
            spec = spec.elsewhere();
        }
        spec
    }
}

/// The service of a backend.
#[must_use]
pub fn service_of(backend: u32) -> Option<&'static Service> {
    SERVICES
        .iter()
        .find(|service| (service.backends.0..=service.backends.1).contains(&backend))
}

/// The service at an address and port.
#[must_use]
pub fn service_at(address: IpAddr, port: u16) -> Option<&'static Service> {
    SERVICES
        .iter()
        .find(|service| on_wire(service.vip) == address && service.port == port)
}

/// Whether an address is a VIP that the host does not own.
#[must_use]
pub fn is_only_vip(address: IpAddr) -> bool {
    address == on_wire(VIP)
}

/// The header that a backend's packets are put into: its source and destination, and its length; none in mode `l2`.
#[must_use]
pub fn outer_of(backend: u32) -> Option<(IpAddr, IpAddr, usize)> {
    let in_ipv4 = (OUTER_SOURCE.into(), address_of(backend).into(), 20);
    let in_ipv6 = (
        in_ipv6(OUTER_SOURCE).into(),
        in_ipv6(address_of(backend)).into(),
        40,
    );
    match (service_of(backend)?.way, version()) {
        (Way::L2, _) => None,
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
