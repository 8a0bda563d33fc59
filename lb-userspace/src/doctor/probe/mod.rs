//! Packets by which the far end is asked what cannot be seen from here. They are sent as a service's mode sends a client's, past this host's own
//! TCP, routes and filters, and answers are read before those see them: so also what they would drop is heard.
//!
//! * a request for a connection to the VIP, by the backend's MAC (`l2`) or in a tunnel (`ipip`): whoever accepts it has the VIP, decapsulates, and
//!   listens. It is ended by a RST at once
//! * the same to the backend's own address, from a SNAT address (`nat`) or from the VIP (`dnat`): where do replies go?
//! * ICMP echoes, one of the size of the largest packet and not to be fragmented: what does the way carry?
//! * who answers ARP for a VIP

mod packet;

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use lb_common::{
    headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    tcp::{RST, SYN},
};
use socket2::{Domain, Protocol, Socket, Type};

use self::packet::Heard;
use super::facts::{Echoes, Probe};
use crate::packet::{ethertype, link_address};

const ETHERTYPE_ARP: u16 = 0x0806;
const ETH_P_ALL: u16 = 0x0003;
/// When questions that nobody has answered are asked again.
const AGAIN: Duration = Duration::from_millis(300);
/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_millis(900);
/// How long answers to ARP are waited for: several may come.
const ARP_PATIENCE: Duration = Duration::from_millis(250);
/// Questions that are under way at once.
const AT_ONCE: usize = 256;
/// Room for what comes in meanwhile, in bytes.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Ports below those that `nat` gives to flows: an answer is never taken for a flow's.
const PORTS: std::ops::Range<u16> = 512..1024;

/// A way out: an interface and the MAC of the next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Out {
    pub(super) ifindex: u32,
    pub(super) mac: [u8; 6],
}

/// A tunnel's outer addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tunnel {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
}

/// One far end, and what it is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) out: Out,
    /// This host's address toward it, for echoes.
    pub(super) here: IpAddr,
    /// Its own address.
    pub(super) there: IpAddr,
    /// Bytes of the large echo, IP header included.
    pub(super) largest: u32,
    /// Where the request for a connection comes from and goes to.
    pub(super) source: IpAddr,
    pub(super) target: SocketAddr,
    pub(super) tunnel: Option<Tunnel>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) echoes: Echoes,
    pub(super) probe: Probe,
}

impl Answer {
    fn is_whole(&self) -> bool {
        self.echoes.small
            && self.echoes.large
            && !matches!(self.probe, Probe::Silence | Probe::NotSent)
    }
}

/// A socket that sends and hears packets with their link-layer addresses.
pub(super) struct Ear(Socket);

impl Ear {
    /// Opens it, on all interfaces.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`.
    pub(super) fn open() -> io::Result<Self> {
        let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
        // More than the system's limit takes CAP_NET_ADMIN; with less, a busy host may miss an answer, and asks again.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        Ok(Self(socket))
    }

    fn send(&self, out: Out, ethertype: u16, packet: &[u8]) -> io::Result<()> {
        let to = link_address(out.ifindex, ethertype, out.mac);
        self.0.send_to(packet, &to).map(drop)
    }

    /// The next packet that somebody else sent, with the sender's MAC; none at `until`.
    fn hear(
        &self,
        until: Instant,
        buffer: &mut [MaybeUninit<u8>],
    ) -> io::Result<Option<(Heard, [u8; 6])>> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.0.set_read_timeout(Some(left))?;
            let (length, from) = match self.0.recv_from(buffer) {
                Ok(got) => got,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    return Ok(None);
                }
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENETDOWN)) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            // SAFETY: an AF_PACKET socket's addresses are of this type, and the storage of an address is large enough for every type.
            let from = unsafe { &*from.as_ptr().cast::<libc::sockaddr_ll>() };
            if from.sll_pkttype == libc::PACKET_OUTGOING {
                continue;
            }
            // SAFETY: the kernel has written so many bytes.
            let packet = unsafe {
                std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length.min(buffer.len()))
            };
            let heard = match u16::from_be(from.sll_protocol) {
                ETHERTYPE_IPV4 => packet::read_v4(packet),
                ETHERTYPE_IPV6 => packet::read_v6(packet),
                ETHERTYPE_ARP => packet::read_arp(packet),
                _ => None,
            };
            if let Some(heard) = heard {
                let mut mac = [0; 6];
                mac.copy_from_slice(&from.sll_addr[..6]);
                return Ok(Some((heard, mac)));
            }
        }
    }

    /// The MACs that answer ARP for an address on an interface, this host's own not among them.
    ///
    /// # Errors
    /// When packets can be neither sent nor heard.
    pub(super) fn who_has(
        &self,
        ifindex: u32,
        own: [u8; 6],
        address: Ipv4Addr,
    ) -> io::Result<Vec<[u8; 6]>> {
        let everybody = Out {
            ifindex,
            mac: [0xff; 6],
        };
        self.send(everybody, ETHERTYPE_ARP, &packet::arp_probe(own, address))?;
        let until = Instant::now() + ARP_PATIENCE;
        let mut buffer = vec![MaybeUninit::uninit(); 1 << 16];
        let mut answers = Vec::new();
        while let Some((heard, _)) = self.hear(until, &mut buffer)? {
            if let Heard::Has { address: had, mac } = heard
                && had == address
                && mac != own
                && !answers.contains(&mac)
            {
                answers.push(mac);
            }
        }
        Ok(answers)
    }

    /// Asks all, and gives their answers in the same order.
    ///
    /// # Errors
    /// When packets can be neither sent nor heard.
    pub(super) fn ask(&self, questions: &[Question]) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(questions.len());
        for some in questions.chunks(AT_ONCE) {
            answers.extend(self.ask_some(some)?);
        }
        Ok(answers)
    }

    fn ask_some(&self, questions: &[Question]) -> io::Result<Vec<Answer>> {
        let identifier = fastrand::u16(..);
        let syns: Vec<Syn> = questions.iter().map(|_| Syn::new()).collect();
        let mut answers = vec![Answer::default(); questions.len()];
        let by_endpoint: HashMap<_, _> = questions
            .iter()
            .zip(&syns)
            .enumerate()
            .map(|(at, (question, syn))| ((question.target, question.source, syn.port), at))
            .collect();
        let started = Instant::now();
        let mut buffer = vec![MaybeUninit::uninit(); 1 << 16];
        let mut asked = 0;
        while started.elapsed() < PATIENCE && !answers.iter().all(Answer::is_whole) {
            for (at, question) in questions.iter().enumerate() {
                self.ask_one(question, &syns[at], identifier, at as u16, &mut answers[at]);
            }
            asked += 1;
            let until = started + (AGAIN * asked).min(PATIENCE);
            while !answers.iter().all(Answer::is_whole) {
                let Some((heard, mac)) = self.hear(until, &mut buffer)? else {
                    break;
                };
                match heard {
                    Heard::Echo {
                        from,
                        identifier: own,
                        sequence,
                    } if own == identifier => {
                        let at = usize::from(sequence >> 1);
                        if questions
                            .get(at)
                            .is_some_and(|question| question.there == from)
                        {
                            let echoes = &mut answers[at].echoes;
                            *if sequence & 1 == 0 {
                                &mut echoes.small
                            } else {
                                &mut echoes.large
                            } = true;
                        }
                    }
                    Heard::Segment {
                        from,
                        to,
                        acknowledged,
                        reset,
                        ..
                    } => {
                        let Some(&at) = by_endpoint.get(&(from, to.ip(), to.port())) else {
                            continue;
                        };
                        if acknowledged != syns[at].sequence.wrapping_add(1) {
                            continue;
                        }
                        let question = &questions[at];
                        if !reset {
                            self.end(question, &syns[at]);
                        }
                        if matches!(answers[at].probe, Probe::Silence) {
                            answers[at].probe = if reset {
                                Probe::Refused
                            } else {
                                Probe::Accepted {
                                    direct: mac == question.out.mac,
                                }
                            };
                        }
                    }
                    Heard::Unknown { to } => {
                        for (question, answer) in questions.iter().zip(&mut answers) {
                            if question
                                .tunnel
                                .is_some_and(|tunnel| tunnel.destination == to)
                                && answer.probe == Probe::Silence
                            {
                                answer.probe = Probe::NoTunnel;
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(answers)
    }

    fn ask_one(
        &self,
        question: &Question,
        syn: &Syn,
        identifier: u16,
        number: u16,
        answer: &mut Answer,
    ) {
        if matches!(answer.probe, Probe::NotSent | Probe::Silence)
            && self.segment(question, syn, SYN, syn.sequence).is_ok()
        {
            answer.probe = Probe::Silence;
        }
        let (here, there) = (question.here, question.there);
        for (answered, parity, bytes) in [
            (answer.echoes.small, 0, 64),
            (answer.echoes.large, 1, question.largest),
        ] {
            if !answered {
                let echo = packet::echo(
                    here,
                    there,
                    identifier,
                    number << 1 | parity,
                    bytes as usize,
                );
                // One that is too large for this host's own link is not answered: that is what is told.
                let _ = self.send(question.out, ethertype(there), &echo);
            }
        }
    }

    /// Ends the connection that a backend believes in.
    fn end(&self, question: &Question, syn: &Syn) {
        // It would end by itself when its SYN-ACK goes unanswered.
        let _ = self.segment(question, syn, RST, syn.sequence.wrapping_add(1));
    }

    fn segment(&self, question: &Question, syn: &Syn, flags: u8, sequence: u32) -> io::Result<()> {
        let source = SocketAddr::new(question.source, syn.port);
        let mut packet = packet::segment(source, question.target, flags, sequence);
        let mut outermost = question.target.ip();
        if let Some(tunnel) = question.tunnel {
            packet = packet::wrapped(tunnel.source, tunnel.destination, &packet);
            outermost = tunnel.destination;
        }
        self.send(question.out, ethertype(outermost), &packet)
    }
}

/// A request for a connection.
struct Syn {
    port: u16,
    sequence: u32,
}

impl Syn {
    fn new() -> Self {
        Self {
            port: fastrand::u16(PORTS),
            sequence: fastrand::u32(..),
        }
    }
}
