//! What comes back because of what was sent on: what backends answer, and what routers say. Both are addressed by what was sent on, which no seed knows
//! beforehand: SNAT ports are drawn by the kernel.

use std::net::{IpAddr, Ipv4Addr};

use lb_common::tcp::ACK;

use super::{
    contract::Judge,
    flows::FlowId,
    scene::{self, End, Scene, Service, Way},
};
use crate::packet::{
    Client, Packet,
    answer::address_of,
    icmp::{About, ERRORS, ROUTER, message, quotes},
    on_wire,
    world::BACKEND_PORT,
};

/// A segment of the backend that a client's segments have gone to last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The client, by its number.
    pub client: u16,
    /// The service, by its place in [`scene::SERVICES`].
    pub place: usize,
    /// TCP's flags.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Bytes of data.
    pub length: u16,
    /// Time to live.
    pub ttl: u8,
    /// Maximum segment size, in an option; 0 is none.
    pub mss: u16,
    /// VLAN tags.
    pub tags: u8,
    /// By how much it misses the port that it is for.
    pub astray: u16,
    /// Whether it comes in though its backend is on this host.
    pub from_outside: bool,
    /// What noise does to it.
    pub noise: Noise,
}

/// An error about what was sent on to a client's backend, or about what that has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The client, by its number.
    pub client: u16,
    /// The service, by its place in [`scene::SERVICES`].
    pub place: usize,
    /// Which error, by its place in [`ERRORS`].
    pub what: usize,
    /// How much is quoted, by the place in [`quotes`].
    pub quoted: usize,
    /// Whether it is about what was sent on to the backend.
    pub is_about_request: bool,
    /// Time to live.
    pub ttl: u8,
    /// By how much it misses the port that the segment was of.
    pub astray: u16,
    /// What noise does to it.
    pub noise: Noise,
}

/// A byte of a frame that changes on the way: its place, and by which bits. Nothing changes if there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noise {
    /// The place in the frame.
    pub at: u16,
    /// The bits that change.
    pub bits: u8,
}

impl Noise {
    fn spoil(self, frame: &mut [u8]) {
        if let Some(byte) = frame.get_mut(usize::from(self.at)) {
            *byte ^= self.bits;
        }
    }
}

impl Reply {
    /// The frame, and whether it is the host's stack that sends it out.
    #[must_use]
    pub fn frame(&self, scene: &Scene, judge: &Judge) -> (Vec<u8>, bool) {
        let last = Last::of(scene, judge, self.client, self.place);
        let mut packet = Packet::tcp(
            last.endpoint(),
            (last.source.0, last.source.1.wrapping_add(self.astray)),
            self.flags,
        )
        .seq(self.seq)
        .ack(self.ack)
        .payload(&vec![0x3c; usize::from(self.length)])
        .ttl(self.ttl);
        if self.mss != 0 {
            let [high, low] = self.mss.to_be_bytes();
            packet = packet.tcp_options(&[2, 4, high, low]);
        }
        for _ in 0..self.tags {
            packet = packet.tagged(0x8100, 0x6007);
        }
        let mut frame = packet.bytes();
        self.noise.spoil(&mut frame);
        let is_local = scene::way_to(last.backend) == Way::Local;
        (frame, is_local && !self.from_outside)
    }
}

impl Told {
    /// The frame.
    #[must_use]
    pub fn frame(&self, scene: &Scene, judge: &Judge) -> Vec<u8> {
        let last = Last::of(scene, judge, self.client, self.place);
        let about: About = ERRORS[self.what % ERRORS.len()];
        let sent = if self.is_about_request {
            let source = (last.source.0, last.source.1.wrapping_add(self.astray));
            Packet::tcp(source, last.endpoint(), ACK)
        } else {
            let client = (last.client.0, last.client.1.wrapping_add(self.astray));
            Packet::tcp((last.service.vip, last.service.port), client, ACK)
        };
        let quoted = quotes()[self.quoted % quotes().len()](&sent.payload(b"data"));
        let to = if self.is_about_request {
            last.source.0
        } else {
            last.service.vip
        };
        let mut frame = message(about, 0, &quoted, ROUTER, to).ttl(self.ttl).bytes();
        self.noise.spoil(&mut frame);
        frame
    }
}

/// Where a client's segments to a service have gone last; if nowhere, where they might.
struct Last {
    client: Client,
    service: &'static Service,
    backend: u32,
    /// What the backend takes for the client.
    source: (Ipv4Addr, u16),
}

impl Last {
    fn of(scene: &Scene, judge: &Judge, number: u16, place: usize) -> Self {
        let client = scene.setting().client(number);
        let services = scene.setting().services();
        let service = &services[place % services.len()];
        let id: FlowId = (on_wire(client.0), client.1, service.id);
        let (backend, source) = match judge.left(&id) {
            Some((backend, source)) => (backend, as_told(source)),
            None => (service.backends.0, (client.0, client.1)),
        };
        Self {
            client,
            service,
            backend,
            source,
        }
    }

    /// Where the backend is.
    fn endpoint(&self) -> (Ipv4Addr, u16) {
        let at = scene::endpoint_of(self.backend).unwrap_or(self.backend);
        (address_of(at), BACKEND_PORT)
    }
}

/// An address on the wire as packets are told it, see [`crate::packet::version::in_ipv6`].
fn as_told((address, port): End) -> (Ipv4Addr, u16) {
    let address = match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => {
            let [.., high, low] = address.segments();
            Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
        }
    };
    (address, port)
}
