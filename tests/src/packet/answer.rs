//! What must come of a packet, built from scratch: as a backend receives it, or as a client is answered.

use std::net::Ipv4Addr;

use lb_common::{
    backend::{BackendState, Mode, NextHop, Serving},
    net::VlanTag,
    tcp,
};

use super::{
    frame::{Packet, checksum},
    kernel::{ELSEWHERE, INGRESS, NOWHERE},
};

/// A backend as a test says it.
#[derive(Clone, Copy, Debug)]
pub struct BackendSpec {
    pub(super) id: u32,
    mode: u64,
    pub(super) generation: u8,
    serving: Serving,
    resolved: bool,
    pub(super) hop: NextHop,
}

impl BackendSpec {
    /// A backend in mode `l2` that takes new flows, on the interface that packets come in by.
    pub fn l2(id: u32) -> Self {
        Self::new(id, Mode::L2)
    }

    /// The same in mode `ipip`.
    pub fn ipip(id: u32) -> Self {
        Self::new(id, Mode::Ipip)
    }

    fn new(id: u32, mode: Mode) -> Self {
        let hop = NextHop {
            destination: [0x02, 0, 0, 0, 0x0b, id as u8],
            source: [0x02, 0, 0, 0, 0x0a, id as u8],
            ifindex: INGRESS,
            outer_source: [10, 255, 0, 1],
            mtu: 1_500,
            ..NextHop::default()
        };
        Self {
            id,
            mode: mode as u64,
            generation: 0,
            serving: Serving::New,
            resolved: true,
            hop: match mode {
                Mode::Ipip => hop.encapsulating(Self::address_of(id)),
                Mode::L2 => hop.bare(),
            },
        }
    }

    /// Address of backend `id`, host byte order.
    pub fn address_of(id: u32) -> u32 {
        u32::from(Ipv4Addr::new(10, 0, 0, id as u8))
    }

    /// The same with another serving.
    pub fn serving(mut self, serving: Serving) -> Self {
        self.serving = serving;
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

    /// The same in a mode by its number, which may be none that there is.
    pub fn mode_code(mut self, code: u8) -> Self {
        self.mode = u64::from(code);
        self
    }

    pub(super) fn state(&self, hop: u8) -> BackendState {
        const MODE_SHIFT: u32 = 9;
        let with_mode_l2 =
            BackendState::new(self.generation, self.serving, Mode::L2, hop, self.resolved)
                .tagged(self.hop.tag_count());
        BackendState((with_mode_l2.0 & !(7 << MODE_SHIFT)) | (self.mode << MODE_SHIFT))
    }

    /// A frame as it arrives at this backend in mode `l2`.
    pub fn l2_output(&self, input: &Packet) -> Vec<u8> {
        self.addressed(input).bytes()
    }

    /// A frame as it arrives at this backend in mode `ipip`.
    pub fn ipip_output(&self, input: &Packet) -> Vec<u8> {
        let sent = self.addressed(input);
        let bytes = sent.bytes();
        let inner = &bytes[sent.network()..];
        let mut outer = vec![0x45, sent.tos, 0, 0, 0, 0, 0x40, 0, 64, 4, 0, 0];
        let length = sent.counted() as u16 - sent.network() as u16 + 20;
        outer[2..4].copy_from_slice(&length.to_be_bytes());
        outer.extend(self.hop.outer_source);
        outer.extend(Self::address_of(self.id).to_be_bytes());
        let sum = checksum(&outer);
        outer[10..12].copy_from_slice(&sum.to_be_bytes());
        [&bytes[..sent.network()], &outer, inner].concat()
    }

    fn addressed(&self, input: &Packet) -> Packet {
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
    answer.tags.clone_from(&input.tags);
    answer.bytes()
}
