//! What must come of a packet, built from scratch: as a backend receives it, or as a client is answered.

use std::net::{IpAddr, Ipv4Addr};

use lb_common::{
    backend::{BackendState, Forwarding, NextHop, Serving},
    clock::Tick,
    net::{IpVersion, VlanTag},
    share::Share,
    tcp,
};

use super::{
    frame::{Packet, checksum},
    kernel::{ELSEWHERE, INGRESS, NOWHERE},
    version::{in_ipv6, version},
    world::{BACKEND_PORT, Client},
};

/// A backend as a test says it.
#[derive(Clone, Copy, Debug)]
pub struct BackendSpec {
    pub(super) id: u32,
    forwarding: u64,
    pub(super) generation: u8,
    serving: Serving,
    resolved: bool,
    share: Option<Share>,
    pub(super) hop: NextHop,
    varied: u16,
}

impl BackendSpec {
    /// A backend in mode `l2` that takes new flows, on the interface that packets come in by.
    pub fn l2(id: u32) -> Self {
        Self::new(id, Forwarding::L2)
    }

    /// The same in mode `ipip`, its address being of the version in force.
    pub fn ipip(id: u32) -> Self {
        Self::new(
            id,
            match version() {
                IpVersion::V4 => Forwarding::InIpv4,
                IpVersion::V6 => Forwarding::InIpv6,
            },
        )
    }

    /// The same in mode `nat`, its address being of the version in force.
    pub fn nat(id: u32) -> Self {
        Self::new(id, Forwarding::Nat)
    }

    /// The same in mode `dnat`, its address being of the version in force.
    pub fn dnat(id: u32) -> Self {
        Self::new(id, Forwarding::Dnat)
    }

    /// The same in mode `ipip`, its address being one of IPv6.
    pub fn ipip_in_ipv6(id: u32) -> Self {
        Self::new(id, Forwarding::InIpv6)
    }

    fn new(id: u32, forwarding: Forwarding) -> Self {
        let hop = NextHop {
            destination: [0x02, 0, 0, 0, 0x0b, id as u8],
            source: [0x02, 0, 0, 0, 0x0a, id as u8],
            ifindex: INGRESS,
            mtu: 1_500,
            ..NextHop::default()
        };
        Self {
            id,
            forwarding: forwarding as u64,
            generation: 0,
            serving: Serving::New,
            resolved: true,
            share: None,
            varied: 0,
            hop: match forwarding {
                Forwarding::InIpv4 => hop
                    .from_source(OUTER_SOURCE.into())
                    .encapsulating(address_of(id).into()),
                Forwarding::InIpv6 => hop
                    .from_source(in_ipv6(OUTER_SOURCE).into())
                    .encapsulating(in_ipv6(address_of(id)).into()),
                Forwarding::L2 | Forwarding::Nat | Forwarding::Dnat => hop.bare(),
            },
        }
    }

    /// The same in mode `ipip`, these of the last bits of the outer header's source being another number for each flow.
    pub fn varying(mut self, bits: u16) -> Self {
        self.varied = bits;
        let base = Ipv4Addr::from_bits(OUTER_SOURCE.to_bits() & !u32::from(bits));
        let (base, version) = if self.forwarding == Forwarding::InIpv6 as u64 {
            (in_ipv6(base).into(), IpVersion::V6)
        } else {
            (base.into(), IpVersion::V4)
        };
        self.hop = self
            .hop
            .from_source(base)
            .varying(version, bits)
            .encapsulating(self.address());
        self
    }

    /// Its address.
    pub(super) fn address(&self) -> IpAddr {
        let translates = self.state(0).translates() || self.hop.is_local();
        let is_ipv6 = translates && version() == IpVersion::V6;
        if is_ipv6 || self.forwarding == Forwarding::InIpv6 as u64 {
            in_ipv6(address_of(self.id)).into()
        } else {
            address_of(self.id).into()
        }
    }

    /// The same with another serving.
    pub fn serving(mut self, serving: Serving) -> Self {
        self.serving = serving;
        self
    }

    /// The same with so many parts of its flows closed, of 65,536.
    pub fn closing(mut self, parts: u32) -> Self {
        self.share = Some(Share::of_parts(parts));
        self
    }

    /// The same as another generation of its id.
    pub fn generation(mut self, generation: u8) -> Self {
        self.generation = generation;
        self
    }

    /// The same without a known neighbour.
    pub fn unresolved(mut self) -> Self {
        self.resolved = false;
        self
    }

    /// The same behind an interface that packets do not come in by.
    pub fn elsewhere(mut self) -> Self {
        self.hop.ifindex = ELSEWHERE;
        self
    }

    /// The same on this host, with an address of the version in force.
    pub fn local(mut self) -> Self {
        self.hop = NextHop::local(1_500);
        self
    }

    /// The same behind an interface that packets cannot leave by.
    pub fn nowhere(mut self) -> Self {
        self.hop.ifindex = NOWHERE;
        self
    }

    /// The same by VLANs, the outermost first: EtherType of the tag, and the VLAN.
    ///
    /// # Panics
    /// If there are more than two.
    pub fn by_vlans(mut self, tags: &[(u16, u16)]) -> Self {
        self.hop.tags = [VlanTag::NONE; 2];
        for (place, (protocol, vlan)) in tags.iter().enumerate() {
            self.hop.tags[place] = VlanTag::new(*protocol, *vlan);
        }
        self
    }

    /// The same with another MTU on its way.
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.hop.mtu = mtu;
        self
    }

    /// The same forwarded to in a way by its number, which may be none that there is.
    pub fn forwarding_code(mut self, code: u8) -> Self {
        self.forwarding = u64::from(code);
        self
    }

    pub(super) fn state(&self, hop: u8) -> BackendState {
        const SHIFT: u32 = 9;
        let l2 = BackendState::new(
            self.generation,
            self.serving,
            Forwarding::L2,
            hop,
            self.resolved,
        )
        .tagged(self.hop.kind());
        let state = BackendState((l2.0 & !(7 << SHIFT)) | (self.forwarding << SHIFT));
        match self.share {
            Some(share) => state.pacing(share, Tick(1)),
            None => state,
        }
    }

    /// A frame as it arrives at this backend in mode `l2`.
    pub fn l2_output(&self, input: &Packet) -> Vec<u8> {
        self.addressed(input).bytes()
    }

    /// Whether its mode is `l2`.
    pub fn is_l2(&self) -> bool {
        self.forwarding == Forwarding::L2 as u64
    }

    /// A frame as it arrives at this backend in mode `ipip`.
    pub fn ipip_output(&self, input: &Packet) -> Vec<u8> {
        let label = flow_label(input, input.as_tcp().source_port);
        self.encapsulated(input, label)
    }

    /// The same of a message that concerns a client's port.
    pub fn ipip_output_for(&self, input: &Packet, client: Client) -> Vec<u8> {
        self.encapsulated(input, flow_label(input, client.1))
    }

    fn encapsulated(&self, input: &Packet, label: u32) -> Vec<u8> {
        let sent = self.addressed(input);
        let mut head = sent.bytes();
        let inner = head.split_off(sent.network());
        let length = sent.counted() as u16 - sent.network() as u16;
        let (ethertype, outer) = if self.forwarding == Forwarding::InIpv6 as u64 {
            (0x86dd_u16, self.outer_ipv6(&sent, length, label))
        } else {
            (0x0800, self.outer_ipv4(&sent, length, label))
        };
        let at = head.len() - 2;
        head[at..].copy_from_slice(&ethertype.to_be_bytes());
        [head, outer, inner].concat()
    }

    fn outer_ipv4(&self, inner: &Packet, length: u16, label: u32) -> Vec<u8> {
        let mut outer = vec![0x45, inner.tos, 0, 0, 0, 0, 0x40, 0, 64, 4, 0, 0];
        outer[2..4].copy_from_slice(&(length + 20).to_be_bytes());
        outer.extend(self.outer_source(label).octets());
        outer.extend(address_of(self.id).octets());
        let sum = checksum(&outer);
        outer[10..12].copy_from_slice(&sum.to_be_bytes());
        outer
    }

    fn outer_ipv6(&self, inner: &Packet, length: u16, label: u32) -> Vec<u8> {
        let next_header = match inner.version {
            IpVersion::V4 => 4,
            IpVersion::V6 => 41,
        };
        let first = 6 << 28 | u32::from(inner.tos) << 20 | label;
        let mut outer = first.to_be_bytes().to_vec();
        outer.extend(length.to_be_bytes());
        outer.extend([next_header, 64]);
        outer.extend(in_ipv6(self.outer_source(label)).octets());
        outer.extend(in_ipv6(address_of(self.id)).octets());
        outer
    }

    /// Where the outer header is from of a flow that has this label, in IPv6 [`in_ipv6`] of it.
    fn outer_source(&self, label: u32) -> Ipv4Addr {
        let varied = u32::from(self.varied);
        let number = u32::from(((label >> 4) as u16).swap_bytes());
        Ipv4Addr::from_bits((OUTER_SOURCE.to_bits() & !varied) | (number & varied))
    }

    /// A frame as it arrives at this backend in modes `nat` and `dnat`, if its packet has this source by then.
    pub fn translated(&self, input: &Packet, source: (Ipv4Addr, u16)) -> Packet {
        let mut sent = self.addressed(input).with_tcp(|tcp| {
            tcp.source_port = source.1;
            tcp.destination_port = BACKEND_PORT;
        });
        (sent.source, sent.destination) = (source.0, address_of(self.id));
        sent
    }

    /// A frame as it goes to this backend on this host.
    pub fn given(&self, input: &Packet) -> Packet {
        let mut given = input
            .clone()
            .with_tcp(|tcp| tcp.destination_port = BACKEND_PORT);
        given.destination = address_of(self.id);
        given
    }

    /// A frame as it is sent to this backend if nothing but its head is rewritten.
    pub fn addressed(&self, input: &Packet) -> Packet {
        let mut sent = input.clone().macs(self.hop.destination, self.hop.source);
        sent.ttl -= 1;
        // Its own tags instead of those it came with, of which only the priorities at the same places stay.
        sent.tags.clear();
        for (place, tag) in self.hop.tags.iter().enumerate() {
            let protocol = u16::from_be_bytes(tag.protocol);
            if protocol != 0 {
                let priority = input
                    .tags
                    .get(place)
                    .map_or(0, |(_, control)| control & 0xf000);
                sent.tags.push((protocol, priority | tag.vlan()));
            }
        }
        sent
    }
}

/// Source of outer headers: this host.
pub const OUTER_SOURCE: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 1);

/// IPv4 address of a backend; in IPv6 it has [`in_ipv6`] of this.
pub fn address_of(id: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, id as u8)
}

/// The flow label of an outer header: a hash of the client's endpoint, so that one flow always has one, and few flows have the same.
fn flow_label(inner: &Packet, client_port: u16) -> u32 {
    let port = u32::from(client_port) << 16;
    let client = match inner.version {
        IpVersion::V4 => u32::from_le_bytes(inner.source.octets()),
        IpVersion::V6 => in_ipv6(inner.source).octets()[4..]
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
            .fold(0, std::ops::BitXor::bitxor),
    };
    (client ^ port).wrapping_mul(0x9e37_79b1) >> 12
}

/// The RST that answers a segment: the client's own acknowledgement as its sequence number, and no ACK; or, to a segment without
/// ACK, zero and an acknowledgement of all that it had (RFC 9293, section 3.10.7.1).
pub fn reset_output(input: &Packet) -> Vec<u8> {
    let asked = input.as_tcp();
    let (seq, ack, flags) = if asked.flags & tcp::ACK != 0 {
        (asked.ack, 0, tcp::RST)
    } else {
        let ends = u32::from(asked.flags & tcp::FIN != 0) + u32::from(asked.flags & tcp::SYN != 0);
        let taken = asked.payload.len() as u32 + ends;
        (0, asked.seq.wrapping_add(taken), tcp::RST | tcp::ACK)
    };
    let mut answer = Packet::tcp(
        (input.destination, asked.destination_port),
        (input.source, asked.source_port),
        flags,
    )
    .macs(input.source_mac, input.destination_mac)
    .seq(seq)
    .ack(ack)
    .with_tcp(|tcp| tcp.window = 0);
    answer.id = 0;
    answer.label = 0;
    answer.tags.clone_from(&input.tags);
    answer.bytes()
}
