//! What happens in a case, step by step, and the making of it: packets that mean something, packets that mean something else than they seem to, and noise.

use std::net::Ipv4Addr;

use lb_common::{
    backend::Serving,
    net::IpVersion,
    tcp::{ACK, FIN, RST, SYN},
};

use super::{
    asked::{Asked, LONGEST, Net},
    returns::{Noise, Reply, Told},
    scene::{self, Node, OWN_VIP, SERVICES, Scene, Service, Setting, Way},
};
use crate::{
    packet::{
        Client, Packet, VIP,
        answer::{OUTER_SOURCE, address_of},
        frame::Extension,
        icmp::{About, message, quote},
        in_version, version,
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
    /// A service's table changes, that many ticks ago: the place of the service in [`super::scene::SERVICES`], and the backend of the first slot.
    Rebuild(usize, u32, u32),
    /// A backend sends something back.
    Reply(Reply),
    /// A router tells of what was sent on.
    Error(Told),
    /// A client, by its number, keeps a backend of a service that places clients.
    Keep(u16, u32),
    /// A service, by its place, asks something else of its clients, or nothing any more.
    Guard(usize, Option<Asked>),
}

impl Step {
    /// Whether chance decides what it meets: who has a port that the kernel has drawn, or misses one, may meet another flow's.
    #[must_use]
    pub fn is_left_to_chance(&self) -> bool {
        let (place, misses) = match self {
            Self::Reply(reply) => (reply.place, reply.astray != 0 || reply.noise.bits != 0),
            Self::Error(told) => (told.place, told.astray != 0 || told.noise.bits != 0),
            _ => return false,
        };
        misses || SERVICES[place].way == Way::Nat
    }
}

/// A client's connection to a service as the maker of steps sees it.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    isn: u32,
    next: u32,
    /// The sequence number of the backend's SYN, and where its stream is.
    theirs: u32,
    their_next: u32,
}

/// What is to come of a connection that was begun, if nothing comes between.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// The backend's answer.
    Answer(u16, usize),
    /// The client's acknowledgement of it.
    Acknowledgement(u16, usize),
    /// A SYN of a client that has just come to keep a backend.
    Open(u16, usize),
}

/// Makes steps, the same ones of the same random numbers.
pub struct Maker {
    random: Random,
    setting: Setting,
    /// The service that is guarded, by its place, and what it asks at first.
    guarded: (usize, Asked),
    /// For what has to do with that.
    guarding: Random,
    streams: Vec<Stream>,
    due: Vec<Due>,
    last: Vec<u8>,
}

impl Maker {
    /// Of a seed.
    #[must_use]
    pub fn new(seed: u64, setting: Setting) -> Self {
        let flows = usize::from(setting.clients()) * setting.services().len();
        let mut guarding = Random::new(!seed);
        let place = guarding.below(setting.services().len() as u64) as usize;
        // Of many prefixes one is every client's.
        let prefix = LONGEST - [0, 2, 2, 4][guarding.below(4) as usize];
        let limits = [guarding.below(4) as u32, guarding.below(5) as u32];
        Self {
            random: Random::new(seed),
            setting,
            guarded: (
                place,
                Asked {
                    burst: limits[0],
                    flows: limits[1],
                    prefix,
                    deny: Vec::new(),
                    allow: Vec::new(),
                },
            ),
            guarding,
            streams: vec![Stream::default(); flows],
            due: Vec::new(),
            last: Vec::new(),
        }
    }

    /// The next step, in a scene.
    pub fn step(&mut self, scene: &Scene) -> Step {
        if !self.due.is_empty() && self.random.below(4) != 0 {
            return match self.due.remove(0) {
                Due::Answer(client, place) => self.answer(client, place),
                Due::Acknowledgement(client, place) => self.acknowledgement(client, place),
                Due::Open(client, place) => self.open(client, place),
            };
        }
        match (self.random.below(100), self.setting) {
            (0..=1, _) => Step::Wait(self.pick(&[1, 6, 8, 31, 150, 2_500, 1 << 21])),
            (2..=5, _) => self.change(scene),
            (6, _) => {
                let service = self.place();
                let first = self.random.below(3) as u32;
                Step::Rebuild(service, first, self.pick(&[0, 10, 200]))
            }
            (7, Setting::Translating) => self.keep(),
            (8..=29, Setting::Translating) => self.reply(),
            (30..=37, Setting::Translating) => self.told(),
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

    /// The first step: a service asks something of its clients.
    pub fn guard(&mut self) -> Step {
        let (place, mut asked) = self.guarded.clone();
        // In every other case nobody is denied at first.
        if self.guarding.below(2) == 0 {
            asked.deny = self.nets(2);
            asked.allow = self.nets(4);
        }
        Step::Guard(place, Some(asked))
    }

    /// What happens about the guarded service beside all else: mostly nothing.
    pub fn about_guard(&mut self) -> Vec<Step> {
        let (place, asked) = self.guarded.clone();
        let client = self.guarding.below(u64::from(self.setting.clients())) as u16;
        match self.guarding.below(40) {
            // A new connection.
            0..=1 => vec![self.syn(client, place)],
            // And again, before anything else has happened.
            2 => {
                let syn = self.syn(client, place);
                vec![syn.clone(), syn]
            }
            // Its client is denied meanwhile.
            3 => {
                let syn = self.syn(client, place);
                let deny = vec![Net {
                    address: self.setting.client(client).0,
                    bits: LONGEST,
                }];
                let denied = Step::Guard(place, Some(Asked { deny, ..asked }));
                let stream = *self.stream(client, place);
                let service = self.setting.services()[place];
                let from = self.setting.client(client);
                let ack = Packet::tcp((from.0, from.1), (service.vip, service.port), ACK)
                    .seq(stream.next)
                    .ack(stream.their_next);
                vec![syn.clone(), denied, syn, Step::Send(ack.bytes())]
            }
            // Others are denied or allowed.
            4 => {
                let (deny, allow) = (self.nets(2), self.nets(4));
                vec![Step::Guard(
                    place,
                    Some(Asked {
                        deny,
                        allow,
                        ..asked
                    }),
                )]
            }
            // All are let in again.
            5 => vec![Step::Guard(place, Some(asked))],
            6 if self.guarding.below(4) == 0 => vec![Step::Guard(place, None)],
            _ => Vec::new(),
        }
    }

    /// Fewer than so many prefixes with clients in them, or none at all.
    fn nets(&mut self, most: u64) -> Vec<Net> {
        let count = self.guarding.below(most);
        (0..count)
            .map(|_| {
                let client = self.guarding.below(u64::from(self.setting.clients())) as u16;
                Net {
                    address: self.setting.client(client).0,
                    bits: LONGEST - self.guarding.below(4) as u8,
                }
            })
            .collect()
    }

    /// A service, by its place.
    fn place(&mut self) -> usize {
        self.random.below(self.setting.services().len() as u64) as usize
    }

    /// A flow that something comes back here by, by the numbers of its client and its service: mostly one that was begun.
    fn flow_of_returns(&mut self) -> (u16, usize) {
        let services = self.setting.services();
        let flows: Vec<(u16, usize)> = (0..self.setting.clients())
            .flat_map(|client| (0..services.len()).map(move |place| (client, place)))
            .filter(|(client, place)| {
                let is_begun = self.streams[self.index(*client, *place)].next != 0;
                is_begun && services[*place].needs_entries()
            })
            .collect();
        if flows.is_empty() || self.chance(8) {
            return (self.number(), self.place());
        }
        self.pick(&flows)
    }

    /// Where a stream is among the others.
    fn index(&self, client: u16, place: usize) -> usize {
        usize::from(client) * self.setting.services().len() + place
    }

    fn stream(&mut self, client: u16, place: usize) -> &mut Stream {
        let index = self.index(client, place);
        &mut self.streams[index]
    }

    fn keep(&mut self) -> Step {
        let services = self.setting.services();
        let Some(place) = services.iter().position(|service| service.has_affinity) else {
            return self.told();
        };
        let backends: Vec<u32> = services[place].ids().collect();
        let client = self.number();
        self.due.push(Due::Open(client, place));
        Step::Keep(client, self.pick(&backends))
    }

    /// A client's SYN.
    fn open(&mut self, client: u16, place: usize) -> Step {
        let isn = self.random.bits() as u32;
        self.opening(client, place, isn)
    }

    /// A client's SYN to the guarded service.
    fn syn(&mut self, client: u16, place: usize) -> Step {
        let isn = self.guarding.bits() as u32;
        self.opening(client, place, isn)
    }

    fn opening(&mut self, client: u16, place: usize, isn: u32) -> Step {
        let stream = self.stream(client, place);
        (stream.isn, stream.next) = (isn, isn.wrapping_add(1));
        let service = self.setting.services()[place];
        let from = self.setting.client(client);
        let packet = Packet::tcp((from.0, from.1), (service.vip, service.port), SYN).seq(isn);
        Step::Send(packet.bytes())
    }

    /// What a backend answers to a SYN.
    fn answer(&mut self, client: u16, place: usize) -> Step {
        let theirs = self.random.bits() as u32;
        let mss = self.pick(&[0, 536, 1_460, 9_000]);
        let stream = self.stream(client, place);
        (stream.theirs, stream.their_next) = (theirs, theirs.wrapping_add(1));
        let ack = stream.isn.wrapping_add(1);
        Step::Reply(Reply {
            mss,
            ..Self::plain(client, place, SYN | ACK, theirs, ack)
        })
    }

    /// What the client answers to that.
    fn acknowledgement(&mut self, client: u16, place: usize) -> Step {
        let stream = *self.stream(client, place);
        let service = self.setting.services()[place];
        let from = self.setting.client(client);
        let packet = Packet::tcp((from.0, from.1), (service.vip, service.port), ACK)
            .seq(stream.isn.wrapping_add(1))
            .ack(stream.their_next);
        Step::Send(packet.bytes())
    }

    fn plain(client: u16, place: usize, flags: u8, seq: u32, ack: u32) -> Reply {
        Reply {
            client,
            place,
            flags,
            seq,
            ack,
            length: 0,
            ttl: 64,
            mss: 0,
            tags: 0,
            astray: 0,
            from_outside: false,
            noise: Noise::default(),
        }
    }

    /// What a backend sends, in good order or not.
    fn reply(&mut self) -> Step {
        let (client, place) = self.flow_of_returns();
        let fresh = self.random.bits() as u32;
        let mut stream = *self.stream(client, place);
        let ack = stream.next;
        let (flags, seq, ack) = match self.random.below(16) {
            0..=1 => return self.answer(client, place),
            // The same answer again.
            2 => (SYN | ACK, stream.theirs, stream.isn.wrapping_add(1)),
            // To a SYN with data, which it has taken (RFC 7413).
            3 => (SYN | ACK, fresh, stream.isn.wrapping_add(1 + fresh % 500)),
            // Far along, as after much that was lost.
            4 => {
                let far = self.pick(&[1 << 19, 1 << 20, 1 << 22]);
                stream.their_next = stream.their_next.wrapping_add(far);
                (ACK, stream.their_next, ack)
            }
            // A guess.
            5 => (ACK, fresh, ack),
            6 => (FIN | ACK, stream.their_next, ack),
            7 => (self.pick(&[RST, RST | ACK]), stream.their_next, ack),
            8 => (self.pick(&[RST, FIN | ACK]), fresh, ack),
            9 => (self.random.bits() as u8, stream.their_next, fresh),
            _ => (ACK, stream.their_next, ack),
        };
        let length: u16 = self.pick(&[0, 1, 100, 1_260, 1_261, 1_440, 1_460, 1_500]);
        if flags == ACK && seq == stream.their_next {
            stream.their_next = stream.their_next.wrapping_add(u32::from(length));
        }
        *self.stream(client, place) = stream;
        let mut reply = Self::plain(client, place, flags, seq, ack);
        reply.length = length;
        if self.chance(12) {
            reply.ttl = self.pick(&[0, 1, 2, 255]);
        }
        if self.chance(8) {
            reply.mss = self.pick(&[100, 1_460, 65_535]);
        }
        if self.chance(8) {
            reply.tags = self.pick(&[1, 2]);
        }
        if self.chance(16) {
            reply.astray = self.pick(&[1, 0x8000]);
        }
        reply.from_outside = self.chance(16);
        reply.noise = self.noise();
        Step::Reply(reply)
    }

    /// An error about what was sent on, or about what has come back.
    fn told(&mut self) -> Step {
        let (client, place) = self.flow_of_returns();
        let mut told = Told {
            client,
            place,
            what: self.random.below(3) as usize,
            quoted: self.random.below(4) as usize,
            is_about_request: self.chance(2),
            ttl: 64,
            astray: 0,
            noise: self.noise(),
        };
        if self.chance(12) {
            told.ttl = self.pick(&[0, 1, 2, 255]);
        }
        if self.chance(16) {
            told.astray = self.pick(&[1, 0x8000]);
        }
        Step::Error(told)
    }

    /// A byte in eight frames changes on the way.
    fn noise(&mut self) -> Noise {
        if !self.chance(8) {
            return Noise::default();
        }
        Noise {
            at: self.random.below(100) as u16,
            bits: 1 << self.random.below(8),
        }
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.random.below(of.len() as u64) as usize]
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.random.below(one_in) == 0
    }

    fn change(&mut self, scene: &Scene) -> Step {
        let id = 1 + self.random.below(u64::from(self.setting.backends())) as u32;
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
        let returns = matches!(self.setting, Setting::Translating) && self.chance(2);
        let (number, place) = if returns {
            self.flow_of_returns()
        } else {
            (self.number(), self.place())
        };
        if self.chance(12) {
            let service = self.setting.services()[place];
            return self.about(self.setting.client(number), &service);
        }
        let packet = self.segment(number, place);
        self.adorn(packet)
    }

    /// A client, by its number.
    fn number(&mut self) -> u16 {
        self.random.below(u64::from(self.setting.clients())) as u16
    }

    /// A segment of a client's connection, in good order or not.
    fn segment(&mut self, number: u16, place: usize) -> Packet {
        let service = self.setting.services()[place];
        let client = self.setting.client(number);
        let fresh = self.random.bits() as u32;
        let mut stream = *self.stream(number, place);
        let mut length = 0;
        let (flags, seq) = match self.random.below(24) {
            0..=2 => {
                stream = Stream {
                    isn: fresh,
                    next: fresh.wrapping_add(1),
                    ..stream
                };
                if service.needs_entries() && !self.chance(4) {
                    let due = [
                        Due::Answer(number, place),
                        Due::Acknowledgement(number, place),
                    ];
                    self.due.extend(due);
                }
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
        *self.stream(number, place) = stream;
        let port = if self.chance(40) { 81 } else { service.port };
        let packet = Packet::tcp((client.0, client.1), (service.vip, port), flags)
            .seq(seq)
            .payload(&vec![0x5a; length]);
        if flags & ACK != 0 && service.needs_entries() {
            return packet.ack(stream.their_next);
        }
        packet
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
            let [high, low] = self.pick::<u16>(&[100, 1_240, 1_460, 9_000]).to_be_bytes();
            packet = packet.tcp_options(&[2, 4, high, low]);
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
            About::NoWay,
            About::NoSuchProtocol,
            About::BadHeader,
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
        about_tunnelled(kind, router, backend, client, service)
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

/// An error about what was encapsulated here for a backend, told to where that was from: where this varies, another address for each client.
fn about_tunnelled(
    kind: About,
    router: Ipv4Addr,
    backend: u32,
    client: Client,
    service: &Service,
) -> Packet {
    let inner = Packet::tcp((client.0, client.1), (service.vip, service.port), ACK).packet();
    let protocol = match version() {
        IpVersion::V4 => 4,
        IpVersion::V6 => 41,
    };
    let outer_version = if service.way == Way::InIpv6 {
        IpVersion::V6
    } else {
        version()
    };
    let source = scene::outer_source(backend, client.1);
    let mut told = None;
    in_version(outer_version, || {
        let outer = Packet::tcp((source, 0), (address_of(backend), 0), 0)
            .carrying(protocol, &inner[..inner.len().min(60)]);
        told = Some(message(kind, 0, &outer.packet(), router, source));
    });
    told.expect("it was built")
}
