//! Modes `nat` and `dnat`: what a test writes and reads of them, and the network that replies are routed by.

use std::{net::Ipv4Addr, sync::atomic::Ordering::SeqCst};

use anyhow::Result;
use lb_common::{
    clock::Tick,
    flow::{
        FlowKey as _,
        table::Place,
        word::{State, Word},
    },
    nat::{
        Bucket, Endpoint, LINK_PLACES, Link, Pair, TranslationWord, WORDS_OF_PAIR, link_place,
        slot_index, slot_of, translation,
    },
    net::{Address, IpVersion, VlanTag},
    service::Service,
    tcp::{ACK, SYN},
    verdict::Reason,
    vip::VipEntry,
};
use lb_userspace::dataplane::array::Array;

use super::{
    BackendSpec, CLIENT, Expect, Packet, SERVICE, VIP, VIP_PORT, World,
    answer::address_of,
    entries::Key,
    forwarded,
    kernel::{ELSEWHERE, FLOW_SEED, INGRESS},
    version::{in_ipv6, on_wire, version},
    world::{BACKEND_PORT, Client},
};
use crate::namespace::Namespace;

/// Entries in the map of pairs, of which the first is never used.
pub const PAIRS: u32 = 8;
/// SNAT addresses of the service.
pub const SNAT: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 0, 2)];
/// A device of VLANs by which [`TAGGED`] clients are reached.
const VLAN_DEVICE: u32 = 17;
/// MAC address of the interface that clients are reached by.
pub const OWN_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x0c, 1];
/// MAC address of the router that clients are behind.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0x0c, 2];
/// A client that no neighbour is known for.
pub const UNHEARD: Client = Client(Ipv4Addr::new(203, 0, 113, 7), 40_000);
/// A client behind a way of an MTU of [`NARROW_MTU`].
pub const NARROW: Client = Client(Ipv4Addr::new(198, 18, 0, 7), 40_000);
/// That MTU.
pub const NARROW_MTU: u16 = 1_300;
/// A client that there is no way to.
pub const NOWHERE: Client = Client(Ipv4Addr::new(192, 88, 99, 7), 40_000);
/// A client behind a device of VLANs.
pub const TAGGED: Client = Client(Ipv4Addr::new(198, 19, 0, 7), 40_000);
/// The tags of its frames, which leave by the interface that packets come in by.
pub const TAGS: [(u16, u16); 2] = [(0x88a8, 0x123), (0x8100, 0x456)];

/// A host with routes to clients: [`ELSEWHERE`] is an interface there.
pub(super) fn surroundings() -> Result<Namespace> {
    let host = Namespace::new("packets")?;
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ] {
        host.sysctl(key, value)?;
    }
    // There are no devices of VLANs on every kernel that tests run on: what matters of one is its number.
    for (name, index, peer) in [
        ("clients", ELSEWHERE, "behind"),
        ("vlan", VLAN_DEVICE, "below"),
    ] {
        host.ip(&format!(
            "link add {name} index {index} type veth peer name {peer}"
        ))?;
        host.ip(&format!("link set {name} address {}", mac(OWN_MAC)))?;
        for device in [name, peer] {
            host.ip(&format!("link set {device} up"))?;
        }
    }
    host.ip("address add 192.168.7.1/24 dev clients")?;
    host.ip("address add 192.168.8.1/24 dev vlan")?;
    host.ip("address add 2001:db8:7::1/64 dev clients nodad")?;
    host.ip("address add 2001:db8:8::1/64 dev vlan nodad")?;
    for (device, router) in [
        ("clients", "192.168.7.2"),
        ("clients", "2001:db8:7::2"),
        ("vlan", "192.168.8.2"),
        ("vlan", "2001:db8:8::2"),
    ] {
        host.ip(&format!(
            "neighbour add {router} lladdr {} dev {device} nud permanent",
            mac(ROUTER_MAC)
        ))?;
    }
    for (client, device, net, rest) in [
        (CLIENT, "clients", 7, ""),
        (NARROW, "clients", 7, &*format!("mtu lock {NARROW_MTU}")),
        (TAGGED, "vlan", 8, ""),
    ] {
        host.ip(&format!(
            "route add {}/32 via 192.168.{net}.2 dev {device} {rest}",
            client.0
        ))?;
        host.ip(&format!(
            "route add {}/128 via 2001:db8:{net}::2 dev {device} {rest}",
            in_ipv6(client.0)
        ))?;
    }
    host.ip(&format!("route add {}/32 dev clients", UNHEARD.0))?;
    host.ip(&format!("route add {}/128 dev clients", in_ipv6(UNHEARD.0)))?;
    Ok(host)
}

fn mac(bytes: [u8; 6]) -> String {
    lb_common::net::Mac(bytes).to_string()
}

/// A flow whose handshake has been seen.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Its client.
    pub client: Client,
    /// What the backend takes for its client.
    pub source: (Ipv4Addr, u16),
    /// Where its entry is.
    pub place: Place,
}

/// Another client, whose flow no other's places are of any concern to.
pub const OTHER: Client = Client(CLIENT.0, 40_001);
/// Backends of the modes that translate, by id.
pub const MODES: [fn(u32) -> BackendSpec; 2] = [BackendSpec::nat, BackendSpec::dnat];
/// The sequence number of backends' SYNs.
pub const THEIRS: u32 = 0x5151_0000;

/// Checks each mode that translates, by a flow of [`CLIENT`] to backend 1 whose handshake has been seen.
///
/// # Panics
/// If any packet of a handshake does not get through.
pub fn in_each_mode(check: impl Fn(&World, &BackendSpec, Opened)) {
    for mode in MODES {
        let backend = mode(1);
        let world = World::with_translating(&backend);
        let flow = world.open(CLIENT);
        check(&world, &backend, flow);
    }
}

impl World {
    /// A world whose service has one backend, in a mode that translates.
    pub fn with_translating(backend: &BackendSpec) -> Self {
        let world = Self::translating();
        world.translate(backend, SERVICE);
        world
    }

    /// Writes a backend of a mode that translates, with the endpoint of its address and, in mode `nat`, the pair of that with the first SNAT address;
    /// and says that the service translates. Endpoint and pair have the backend's id.
    pub fn translate(&self, spec: &BackendSpec, service: u16) {
        self.endpoint(spec, service);
        let mut record = self.maps.services.get(u32::from(service));
        record.traits |= Service::TRANSLATES;
        self.maps.services.set(u32::from(service), &record);
    }

    /// The same for a service of any mode.
    pub fn endpoint(&self, spec: &BackendSpec, service: u16) {
        self.backend(spec);
        let mut entry = self.maps.backends.get(spec.id);
        entry.endpoint = spec.id as u16;
        entry.service = service;
        let mut endpoint = Endpoint {
            address: entry.address,
            port: entry.port,
            ..self.maps.endpoints.get(spec.id)
        };
        if spec.state(0).is_nat() {
            let pair = spec.id as u16;
            entry.pairs[0] = pair;
            endpoint.pairs[0] = pair;
            self.pair(pair, SNAT[0], spec.id as u16);
        } else if !endpoint.services.contains(&service)
            && let Some(free) = endpoint.services.iter_mut().find(|id| **id == 0)
        {
            *free = service;
        }
        self.maps.endpoints.set(spec.id, &endpoint);
        self.maps.backends.set(spec.id, &entry);
        self.locate_endpoint(spec.id);
    }

    /// Has the directory name an endpoint at the address of the backend of the same id.
    pub fn locate_endpoint(&self, id: u32) {
        let (directory, key) = match on_wire(address_of(id)) {
            std::net::IpAddr::V4(address) => (
                &self.maps.endpoints4,
                VipEntry::key(address.to_bits(), BACKEND_PORT),
            ),
            address => (
                &self.maps.endpoints6,
                VipEntry::key6(Address::from(address).words(), BACKEND_PORT),
            ),
        };
        Self::put_into(directory, VipEntry::of(key, id as u16));
    }

    /// Gives a backend a second SNAT address, by this pair.
    pub fn second_pair(&self, backend: u32, pair: u16) {
        self.pair(pair, SNAT[1], backend as u16);
        let mut entry = self.maps.backends.get(backend);
        entry.pairs[1] = pair;
        self.maps.backends.set(backend, &entry);
        let mut endpoint = self.maps.endpoints.get(backend);
        endpoint.pairs[1] = pair;
        self.maps.endpoints.set(backend, &endpoint);
    }

    /// Writes a pair: a SNAT address toward an endpoint.
    pub fn pair(&self, id: u16, address: Ipv4Addr, endpoint: u16) {
        let pair = Pair {
            address: on_wire(address).into(),
            endpoint,
            ..Pair::default()
        };
        self.maps.pairs.set(u32::from(id), &pair);
    }

    /// Has the device of VLANs stand for the interface that packets come in by, with [`TAGS`]; after so many others in the list.
    pub fn link(&self, before: u32) {
        assert!(before < LINK_PLACES);
        for other in 0..before {
            let link = Link {
                ifindex: 1_000 + other,
                physical: 1_001,
                tags: [VlanTag::new(0x8100, 5), VlanTag::NONE],
            };
            self.maps.links.set(link_place(VLAN_DEVICE, other), &link);
        }
        let link = Link {
            ifindex: VLAN_DEVICE,
            physical: INGRESS,
            tags: TAGS.map(|(protocol, vlan)| VlanTag::new(protocol, vlan)),
        };
        self.maps.links.set(link_place(VLAN_DEVICE, before), &link);
    }

    fn translations(&self) -> &Array<Bucket> {
        match version() {
            IpVersion::V4 => &self.maps.nat4,
            IpVersion::V6 => &self.maps.nat6,
        }
    }

    /// The word of the translation at a place, if it is valid for the entry there.
    pub fn translation(&self, place: Place) -> Option<TranslationWord> {
        let (key, value) = self.at(place);
        let held = self.translations().get(place.index).translations[place.way as usize];
        let stamp = translation::stamp(key.mixed(&FLOW_SEED), value.backend());
        (held.stamp == stamp).then_some(TranslationWord(held.word))
    }

    /// Writes the translation at a place, with this stamp.
    pub fn put_translation(&self, place: Place, word: TranslationWord, stamp: u64) {
        let mut bucket = self.translations().get(place.index);
        bucket.translations[place.way as usize] = translation::Translation {
            word: word.0,
            stamp,
        };
        self.translations().set(place.index, &bucket);
    }

    /// The slot of a pair's port.
    pub fn slot(&self, pair: u16, port: u16) -> u32 {
        let index = slot_index(pair, port);
        let word = self.maps.slots.word(index / 2, 0).load(SeqCst);
        (word >> (index % 2 * 32)) as u32
    }

    /// Writes it.
    pub fn set_slot(&self, pair: u16, port: u16, slot: u32) {
        let index = slot_index(pair, port);
        let word = self.maps.slots.word(index / 2, 0);
        let shift = index % 2 * 32;
        let others = word.load(SeqCst) & !(0xffff_ffff << shift);
        word.store(others | u64::from(slot) << shift, SeqCst);
    }

    /// Whether a pair's port is marked as in use.
    pub fn is_marked(&self, pair: u16, port: u16) -> bool {
        let index = u32::from(port - 1_024);
        let word = u32::from(pair) * WORDS_OF_PAIR + index / 64;
        self.maps.ports.word(word, 0).load(SeqCst) >> (index % 64) & 1 != 0
    }

    /// How many ports of a pair are in use: by its slots, and by its bitmap.
    pub fn ports_in_use(&self, pair: u16) -> (u32, u32) {
        let used = (1_024..=u16::MAX).filter(|port| self.slot(pair, *port) != 0);
        let marked = (1_024..=u16::MAX).filter(|port| self.is_marked(pair, *port));
        (used.count() as u32, marked.count() as u32)
    }

    /// Has all ports of the first pair in use, each by a flow whose entry is such.
    ///
    /// # Panics
    /// If the table is too small.
    pub fn exhaust(&self, value: impl Fn(Tick) -> Word) {
        let mut clients = (0..1 << 20).map(|n| Client(Ipv4Addr::from_bits(0x0ac8_0000 + n), 5_000));
        for port in 1_024..=u16::MAX {
            let (key, place) = clients
                .by_ref()
                .map(|client| client.key())
                .find_map(|key| {
                    let empty = |place: &Place| self.at(*place).1 == Word::EMPTY;
                    Some((key, self.places_of(key).find(empty)?))
                })
                .expect("room for as many flows as there are ports");
            let word = value(Tick(0));
            self.put(place, key, word);
            let stamp = translation::stamp(key.mixed(&FLOW_SEED), word.backend());
            self.put_translation(place, TranslationWord::new(1, port).proven(0), stamp);
            self.set_slot(1, port, slot_of(place));
        }
        for index in 0..WORDS_OF_PAIR {
            let word = WORDS_OF_PAIR + index;
            self.maps.ports.word(word, 0).store(u64::MAX, SeqCst);
        }
        self.set_all(value);
    }

    /// Has all entries be such, as of now.
    pub fn set_all(&self, value: impl Fn(Tick) -> Word) {
        let value = value(self.now());
        for place in self.places() {
            if self.at(place).1.is_entry() {
                self.set_value(place, value);
            }
        }
    }

    /// The only entry of a key, and its place.
    ///
    /// # Panics
    /// If it has none or several.
    #[track_caller]
    pub fn placed(&self, key: Key) -> (Place, Word) {
        match self.entries(key)[..] {
            [one] => one,
            ref entries => panic!("{} entries: {entries:?}", entries.len()),
        }
    }

    /// The flow of a client's to backend 1, which has one entry.
    ///
    /// # Panics
    /// If it has not, or that no translation.
    #[track_caller]
    pub fn flow(&self, client: Client) -> Opened {
        self.flow_at(client, self.placed(client.key()))
    }

    /// The same by a client's entry in a state, which may be one of two.
    ///
    /// # Panics
    /// If there is none, or that has no translation.
    #[track_caller]
    pub fn flow_in(&self, client: Client, state: State) -> Opened {
        self.flow_at(client, self.entry_in(client.key(), state))
    }

    #[track_caller]
    fn flow_at(&self, client: Client, (place, word): (Place, Word)) -> Opened {
        let backend = self.maps.state(word.backend().id());
        let word = self.translation(place).expect("it has a translation");
        let source = if backend.is_nat() {
            (SNAT[usize::from(word.pair()) - 1], word.port())
        } else {
            (client.0, client.1)
        };
        Opened {
            client,
            source,
            place,
        }
    }

    /// A flow of a client's to backend 1, its handshake seen from both sides.
    ///
    /// # Panics
    /// If any of its packets does not get through.
    #[track_caller]
    pub fn open(&self, client: Client) -> Opened {
        let run = self.send(&client.syn());
        assert_eq!(run.reason(), Reason::Opened, "the SYN");
        let flow = self.flow(client);
        let run = self.send(&flow.syn_ack());
        assert_eq!(run.reason(), Reason::Reply, "its answer");
        let run = self.send(&flow.ack());
        assert_eq!(run.reason(), Reason::Established, "the acknowledgement");
        flow
    }
}

impl Opened {
    /// A segment of backend 1 to what it takes for its client.
    pub fn replies(&self, flags: u8) -> Packet {
        let next = self.client.syn().as_tcp().seq.wrapping_add(1);
        Packet::tcp((address_of(1), BACKEND_PORT), self.source, flags)
            .seq(THEIRS.wrapping_add(1))
            .ack(next)
    }

    /// The answer to the SYN.
    pub fn syn_ack(&self) -> Packet {
        self.replies(SYN | ACK).seq(THEIRS)
    }

    /// The client's acknowledgement of that.
    pub fn ack(&self) -> Packet {
        self.client.ack().ack(THEIRS.wrapping_add(1))
    }

    /// A segment of the client's in mid-stream.
    pub fn sends(&self, flags: u8) -> Packet {
        self.ack().with_tcp(|tcp| tcp.flags = flags)
    }

    /// What becomes of a segment of the client's that backend 1 gets.
    pub fn to_backend(&self, backend: &BackendSpec, input: &Packet, reason: Reason) -> Expect {
        forwarded(reason, 1, backend.translated(input, self.source).bytes())
    }

    /// What becomes of a segment of the backend's that the client gets: sent by the interface that its route names.
    pub fn replied(&self, input: &Packet) -> Expect {
        forwarded(Reason::Reply, 1, self.returned(input).bytes()).redirected()
    }

    /// What the client gets of a segment of the backend's.
    pub fn returned(&self, input: &Packet) -> Packet {
        returned(input, self.client)
    }
}

/// What a client gets of a segment of a backend's.
pub fn returned(input: &Packet, client: Client) -> Packet {
    let mut sent = input.clone().with_tcp(|tcp| {
        tcp.source_port = VIP_PORT;
        tcp.destination_port = client.1;
    });
    (sent.source, sent.destination) = (VIP, client.0);
    sent_on(&sent, client)
}

/// A packet as it leaves for a client that it is addressed to.
pub fn sent_on(input: &Packet, client: Client) -> Packet {
    let mut sent = input.clone();
    sent.ttl -= 1;
    if client == UNHEARD {
        // The kernel's to send: its head is as it came.
        return sent;
    }
    let tags = if client == TAGGED { &TAGS[..] } else { &[] };
    sent.tags = tags
        .iter()
        .enumerate()
        .map(|(place, (protocol, vlan))| {
            let priority = input.tags.get(place).map_or(0, |(_, tag)| tag & 0xf000);
            (*protocol, priority | vlan)
        })
        .collect();
    sent.macs(ROUTER_MAC, OWN_MAC)
}
