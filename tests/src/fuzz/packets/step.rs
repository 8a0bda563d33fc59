//! What happens in a case, step by step, and the making of it: packets that mean something, packets that mean something else than they seem to, and noise.

use std::net::Ipv4Addr;

use lb_common::{
    backend::Serving,
    tcp::{ACK, FIN, RST, SYN},
};

use super::scene::{BACKENDS, Node, OWN_VIP, SERVICES, Scene, Service};
use crate::{
    packet::{
        Client, Packet, VIP,
        answer::{OUTER_SOURCE, address_of},
        frame::Extension,
        icmp::{About, message, quote},
        version,
    },
    random::Random,
};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A frame comes in.
    Send(Vec<u8>),
    /// So many ticks pass.
    Wait(u32),
    /// A backend changes.
    Change(u32, Node),
    /// A service's table changes, that many ticks ago: the place of the service in [`SERVICES`], and the backend of the first slot.
    Rebuild(usize, u32, u32),
}

/// How many clients there are: with all services, fewer flows than the table has places.
const CLIENTS: u64 = 12;

/// A client's connection to a service as the maker of steps sees it.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    isn: u32,
    next: u32,
}

/// Makes steps, the same ones of the same random numbers.
pub struct Maker {
    random: Random,
    streams: Vec<Stream>,
    last: Vec<u8>,
}

impl Maker {
    /// Of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            streams: vec![Stream::default(); CLIENTS as usize * SERVICES.len()],
            last: Vec::new(),
        }
    }

    /// The next step, in a scene.
    pub fn step(&mut self, scene: &Scene) -> Step {
        match self.random.below(100) {
            0..=1 => Step::Wait(self.pick(&[1, 6, 8, 31, 150, 2_500, 1 << 21])),
            2..=5 => self.change(scene),
            6 => {
                let service = self.random.below(SERVICES.len() as u64) as usize;
                let first = self.random.below(3) as u32;
                Step::Rebuild(service, first, self.pick(&[0, 10, 200]))
            }
            _ => {
                let mut frame = self.packet().bytes();
                if self.random.below(4) == 0 {
                    self.spoil(&mut frame);
                }
                self.last.clone_from(&frame);
                Step::Send(frame)
            }
        }
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.below(of.len() as u64) as usize]
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.random.below(one_in) == 0
    }

    fn change(&mut self, scene: &Scene) -> Step {
        let id = 1 + self.random.below(u64::from(BACKENDS)) as u32;
        let before = *scene.node(id).expect("one of the backends");
        let mut node = before;
        match self.random.below(10) {
            0..=4 => {
                node.serving = self.pick(&[Serving::New, Serving::ExistingOnly, Serving::None]);
            }
            5 => node.resolved = !before.resolved,
            6 => node.generation = (before.generation + 1) % 32,
            7 => node.closing = self.pick(&[None, Some(0), Some(1 << 14), Some(1 << 16)]),
            8 => node.elsewhere = !before.elsewhere,
            _ => {
                // All is well again.
                (node.serving, node.resolved, node.closing) = (Serving::New, true, None);
            }
        }
        Step::Change(id, node)
    }

    fn packet(&mut self) -> Packet {
        let client = self.client();
        let place = self.random.below(SERVICES.len() as u64) as usize;
        let service = SERVICES[place];
        if self.chance(12) {
            return self.about(client, &service);
        }
        let packet = self.segment(client, place);
        self.adorn(packet)
    }

    fn client(&mut self) -> Client {
        let number = self.random.below(CLIENTS) as u16;
        Client(Ipv4Addr::new(198, 51, 100, number as u8), 40_000 + number)
    }

    /// A segment of a client's connection, in good order or not.
    fn segment(&mut self, client: Client, place: usize) -> Packet {
        let service = SERVICES[place];
        let index = usize::from(client.1 - 40_000) * SERVICES.len() + place;
        let fresh = self.random.bits() as u32;
        let mut stream = self.streams[index];
        let mut length = 0;
        let (flags, seq) = match self.random.below(24) {
            0..=2 => {
                stream = Stream {
                    isn: fresh,
                    next: fresh.wrapping_add(1),
                };
                (SYN, fresh)
            }
            // The same SYN again.
            3 => (SYN, stream.isn),
            4..=15 => {
                length = self.pick(&[0, 1, 100, 1_300]);
                (ACK, stream.next)
            }
            // Far along, as after much that went another way.
            16 => {
                stream.next = stream
                    .next
                    .wrapping_add(self.pick(&[1 << 19, 1 << 20, 1 << 22]));
                (ACK, stream.next)
            }
            // Sent again.
            17 => (ACK, stream.next.wrapping_sub(1_000)),
            // A guess.
            18 => (ACK, fresh),
            19 => (FIN | ACK, stream.next),
            20 => (self.pick(&[RST, RST | ACK]), stream.next),
            21 => (self.pick(&[RST, FIN | ACK]), fresh),
            22 => (
                self.pick(&[SYN | ACK, SYN | FIN, SYN | RST, 0, 0xff]),
                stream.next,
            ),
            _ => (self.random.bits() as u8, stream.next),
        };
        if flags & SYN == 0 && seq == stream.next {
            stream.next = stream.next.wrapping_add(length as u32);
        }
        self.streams[index] = stream;
        let port = if self.chance(40) { 81 } else { service.port };
        Packet::tcp((client.0, client.1), (service.vip, port), flags)
            .seq(seq)
            .payload(&vec![0x5a; length])
    }

    /// The same packet with what headers may have, and some that they must not have.
    fn adorn(&mut self, mut packet: Packet) -> Packet {
        if self.chance(12) {
            packet = packet.ttl(self.pick(&[0, 1, 2, 255]));
        }
        if self.chance(12) {
            packet = packet.tos(self.random.bits() as u8);
        }
        if self.chance(16) {
            let length = self.pick(&[4, 12, 40]);
            packet = packet.options(&vec![1; length]);
        }
        if self.chance(16) {
            let length = self.pick(&[4, 12, 40]);
            packet = packet.tcp_options(&vec![1; length]);
        }
        if self.chance(16) {
            let extension = match self.random.below(4) {
                0 => Extension::routing(self.random.below(2) as u8),
                1 => Extension::fragment(self.pick(&[0, 1, 8, 9])),
                _ => Extension::options(self.pick(&[0, 60]), self.pick(&[8, 16, 248])),
            };
            packet = packet.extended(extension);
        }
        if self.chance(24) {
            packet = packet.fragment(self.pick(&[0x2000, 1, 0x2001, 0x4000, 0x8000]));
        }
        if self.chance(12) {
            packet = packet.tagged(self.pick(&[0x8100, 0x88a8]), self.random.bits() as u16);
            if self.chance(2) {
                packet = packet.tagged(0x88a8, 7);
            }
        }
        if self.chance(12) {
            packet = packet.padded(self.pick(&[1, 6, 40]));
        }
        if self.chance(24) {
            packet =
                packet.of_length(self.pick(&[1_440, 1_460, 1_461, 1_480, 1_481, 1_500, 1_600]));
        }
        if self.chance(24) {
            let length = self.pick(&[0, 19, 20, 39, 40, 41, 59, 60, 61, 1_480, 1_500, 0xffff]);
            packet = packet.total_length(length);
        }
        packet
    }

    /// A message of ICMP: an echo, or an error about a packet that a service's backend has sent, or that was sent to one.
    fn about(&mut self, client: Client, service: &Service) -> Packet {
        let router = Ipv4Addr::new(203, 0, 113, 1);
        let mtu = self.pick(&[0, 68, 576, 1_280, 1_400, 1_500, 65_535]);
        let kind = self.pick(&[
            About::Request,
            About::Reply,
            About::TooBig(mtu),
            About::TooBig(mtu),
            About::Expired,
            About::Unreachable,
            About::Other,
        ]);
        let to = self.pick(&[VIP, OWN_VIP, OUTER_SOURCE, client.0]);
        if matches!(kind, About::Request | About::Reply | About::Other) {
            let length = self.pick(&[0, 1, 56, 1_000]);
            return message(kind, 0x1234_0001, &vec![7; length], router, to);
        }
        let sent = Packet::tcp((service.vip, service.port), (client.0, client.1), ACK);
        if self.chance(2) {
            let to = self.pick(&[service.vip, to]);
            return message(kind, 0, &quote(&sent), router, to);
        }
        // About what was encapsulated here.
        let (first, last) = service.backends;
        let backend = first + self.random.below(u64::from(last - first + 1)) as u32;
        let inner = Packet::tcp((client.0, client.1), (service.vip, service.port), ACK).packet();
        let protocol = if version() == lb_common::net::IpVersion::V4 {
            4
        } else {
            41
        };
        let outer = Packet::tcp((OUTER_SOURCE, 0), (address_of(backend), 0), 0)
            .carrying(protocol, &inner[..inner.len().min(60)]);
        message(kind, 0, &outer.packet(), router, OUTER_SOURCE)
    }

    /// Noise: what no sender that is sound would send.
    fn spoil(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..=self.random.below(3) {
            if frame.is_empty() {
                return;
            }
            let at = self.random.below(frame.len() as u64) as usize;
            match self.random.below(8) {
                0..=1 => frame[at] ^= 1 << self.random.below(8),
                2 => frame[at] = self.random.bits() as u8,
                3 => frame[at] = self.pick(&[0, 1, 0x7f, 0x80, 0xff]),
                4 => frame.truncate(at.max(14)),
                5 => {
                    let more = self.random.below(64) as usize;
                    frame.resize(frame.len() + more, 0xa5);
                }
                // The end of another packet.
                6 if self.last.len() > at => {
                    frame.truncate(at.max(14));
                    frame.extend(&self.last[at.max(14).min(self.last.len())..]);
                }
                // Where headers are, it hurts more.
                _ => {
                    let at = 12 + self.random.below(60) as usize;
                    if let Some(byte) = frame.get_mut(at) {
                        *byte = self.random.bits() as u8;
                    }
                }
            }
        }
        // The kernel runs no shorter frames.
        if frame.len() < 14 {
            frame.resize(14, 0);
        }
    }
}
