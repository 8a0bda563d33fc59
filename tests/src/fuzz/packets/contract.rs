//! The contract, as far as one packet after the other can break it: written from the design and the RFCs, and not from the data path.

use std::{collections::BTreeSet, fmt};

use lb_common::{
    backend::Serving,
    tcp::{ACK, FIN, RST, SYN},
    verdict::{Class, Reason, Verdict},
};

use super::{
    flows::{Due, FlowId, Flows},
    reader::{self, Carried, Ip, Seen, Tcp},
    scene::{self, MTU, Scene, Service},
};
use crate::packet::kernel::action;

/// What was seen of one packet.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The XDP action.
    pub action: u32,
    /// The frame afterwards.
    pub output: Vec<u8>,
    /// For which reasons it was counted, and how often.
    pub reasons: Vec<(Reason, u64)>,
    /// The services that it was counted for.
    pub services: Vec<u32>,
    /// The backends that it was counted for.
    pub backends: Vec<u32>,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// Which promise.
    pub promise: Promise,
    /// How.
    pub how: String,
}

/// What is promised of each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// It is counted for exactly one reason, and for the service and backend that it concerns.
    CountedOnce,
    /// What is done with it is what its reason says.
    VerdictKept,
    /// No reason that should never happen happens.
    Sound,
    /// What is for no VIP, and no part of a steered flow, is left to the host as it was.
    Untouched,
    /// What is for a service is not left to the host.
    Served,
    /// What leaves has right checksums, if what came had.
    RightSums,
    /// What leaves goes to a backend of the service, in the service's mode and one hop older, or to the client from the VIP.
    RightWay,
    /// A flow keeps its backend.
    KeptBackend,
    /// A new flow goes to a backend that may take it.
    MayTake,
    /// Nothing is refused without the cause that its reason names.
    Cause,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.how)
    }
}

fn breach<T>(promise: Promise, how: impl Into<String>) -> Result<T, Breach> {
    let how = how.into();
    Err(Breach { promise, how })
}

fn ensure(holds: bool, promise: Promise, how: impl FnOnce() -> String) -> Result<(), Breach> {
    if holds {
        Ok(())
    } else {
        breach(promise, how())
    }
}

/// Judges what comes of packets, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    flows: Flows,
    /// Backends whose ids have got other holders: entries may still name the former ones.
    renewed: BTreeSet<u32>,
}

impl Judge {
    /// Time passes.
    pub fn age(&mut self) {
        self.flows.age();
    }

    /// A backend's id has another holder.
    pub fn renew(&mut self, backend: u32) {
        self.flows.forget(backend);
        self.renewed.insert(backend);
    }

    /// Judges what came of a frame.
    ///
    /// # Errors
    /// The first promise that was broken.
    pub fn judge(&mut self, scene: &Scene, frame: &[u8], came: &Observed) -> Result<(), Breach> {
        let [(reason, 1)] = came.reasons[..] else {
            return breach(Promise::CountedOnce, format!("{:?}", came.reasons));
        };
        keeps_verdict(reason, came)?;
        if came.action == action::PASS {
            ensure(came.output == frame, Promise::Untouched, || {
                format!("passed for {}, and changed", reason.name())
            })?;
        }
        let may_be_stale = reason == Reason::StaleGeneration && !self.renewed.is_empty();
        ensure(
            reason.class() != Class::ShouldNeverHappen || may_be_stale,
            Promise::Sound,
            || reason.name().into(),
        )?;
        let seen = reader::read(frame);
        let Some(ip) = &seen.ip else {
            return passes(reason, "no packet of IP");
        };
        match ip.carried {
            Carried::Tcp(tcp) => match scene::service_at(ip.destination, tcp.destination) {
                Some(service) => self.segment(scene, &seen, ip, &tcp, service, reason, came),
                None => passes(reason, "for no service"),
            },
            Carried::LaterFragment if scene::is_only_vip(ip.destination) => {
                ensure(reason == Reason::Fragment, Promise::Served, || {
                    format!("a fragment for a VIP ends as {}", reason.name())
                })
            }
            Carried::Icmp(at) => self.message(scene, &seen, ip, at, reason, came),
            _ => passes(reason, "no segment"),
        }
    }

    /// A TCP segment for a service.
    #[expect(
        clippy::too_many_arguments,
        reason = "what came, what it was, and what it led to"
    )]
    fn segment(
        &mut self,
        scene: &Scene,
        seen: &Seen<'_>,
        ip: &Ip<'_>,
        tcp: &Tcp,
        service: &'static Service,
        reason: Reason,
        came: &Observed,
    ) -> Result<(), Breach> {
        ensure(reason.verdict() != Verdict::Pass, Promise::Served, || {
            format!(
                "for service {}, and passed for {}",
                service.id,
                reason.name()
            )
        })?;
        ensure(
            came.services == [u32::from(service.id)],
            Promise::CountedOnce,
            || {
                format!(
                    "for service {}, counted for {:?}",
                    service.id, came.services
                )
            },
        )?;
        let id = (ip.source, tcp.source, service.id);
        has_cause(scene, ip, tcp, service, reason, came)?;
        if let (false, [backend]) = (reason.verdict() == Verdict::Forward, &came.backends[..]) {
            self.flows.concerned(id, tcp, *backend);
        }
        match reason.verdict() {
            Verdict::Forward => {
                let backend = counted_backend(came)?;
                leaves_for(scene, seen, ip, backend, came)?;
                self.forwarded(scene, id, tcp, reason, backend)
            }
            Verdict::Reset => {
                self.lost_nothing(scene, &id, tcp, reason)?;
                is_reset(seen, ip, tcp, came)
            }
            Verdict::Answer => is_complaint(seen, ip, reason, came),
            _ => self.lost_nothing(scene, &id, tcp, reason),
        }
    }

    /// A segment that was sent on, to a backend.
    fn forwarded(
        &mut self,
        scene: &Scene,
        id: FlowId,
        tcp: &Tcp,
        reason: Reason,
        backend: u32,
    ) -> Result<(), Breach> {
        let flow = self.flows.get(&id);
        let node = scene.node(backend).copied();
        let Some(node) = node else {
            return breach(Promise::RightWay, format!("backend {backend} is none"));
        };
        if tcp.flags & SYN != 0 {
            let is_again = flow.had_syn(tcp.seq, backend) && node.serving != Serving::None;
            ensure(
                node.serving == Serving::New || is_again,
                Promise::MayTake,
                || {
                    format!(
                        "a new flow went to backend {backend}, which serves {}",
                        node.serving
                    )
                },
            )?;
            match reason {
                Reason::Opened => {
                    ensure(!flow.is_alive(), Promise::KeptBackend, || {
                        format!("a live flow was forgotten: {flow:?}")
                    })?;
                    self.flows.opened(id, tcp.seq, backend, false);
                }
                Reason::Reopened => {
                    let challenges = flow.is_alive();
                    self.flows.opened(id, tcp.seq, backend, challenges);
                }
                Reason::Challenged => self.flows.opened(id, tcp.seq, backend, true),
                Reason::Unpinned => {}
                _ => {
                    return breach(
                        Promise::VerdictKept,
                        format!("a SYN ended as {}", reason.name()),
                    );
                }
            }
            return Ok(());
        }
        let dead = node.serving == Serving::None && node.closing.is_none();
        ensure(!dead, Promise::Cause, || {
            format!("sent to backend {backend}, which is dead")
        })?;
        match flow.due(tcp) {
            Due::To(due) => ensure(backend == due, Promise::KeptBackend, || {
                format!("of backend {due}, went to {backend}: {flow:?}")
            })?,
            Due::ToOneOf(these) => ensure(these.contains(&backend), Promise::KeptBackend, || {
                format!("of one of {these:?}, went to {backend}: {flow:?}")
            })?,
            Due::Anywhere => {}
        }
        match reason {
            Reason::Established => {
                ensure(flow.has_seen(backend), Promise::KeptBackend, || {
                    format!("established on backend {backend}, of which nobody knows: {flow:?}")
                })?;
                self.flows.passed(id, tcp, backend, false);
            }
            Reason::Adopted => {
                ensure(!flow.is_alive(), Promise::KeptBackend, || {
                    format!("a live flow was adopted: {flow:?}")
                })?;
                self.flows.passed(id, tcp, backend, true);
            }
            Reason::Unadopted | Reason::Stray => {
                ensure(!flow.is_alive(), Promise::KeptBackend, || {
                    format!("a live flow was forgotten: {flow:?}")
                })?;
            }
            _ => {
                return breach(
                    Promise::VerdictKept,
                    format!("in mid-stream: {}", reason.name()),
                );
            }
        }
        Ok(())
    }

    /// A segment that was not sent on: it must not be of a flow that lives on a backend which can serve it, but for the reasons that say
    /// otherwise.
    fn lost_nothing(
        &mut self,
        scene: &Scene,
        id: &FlowId,
        tcp: &Tcp,
        reason: Reason,
    ) -> Result<(), Breach> {
        if tcp.flags & SYN != 0 {
            return Ok(());
        }
        let flow = self.flows.get(id);
        let Due::To(backend) = flow.due(tcp) else {
            return Ok(());
        };
        let Some(node) = scene.node(backend).filter(|_| flow.is_alive()) else {
            return Ok(());
        };
        let is_served = node.serving != Serving::None && node.resolved && node.closing.is_none();
        // The last is only seen where this breaks the rule that an id has no new holder while an entry names it.
        let is_about_the_packet = matches!(
            reason,
            Reason::AnswerLimited | Reason::NoEgress | Reason::BadFlags | Reason::StaleGeneration
        );
        ensure(
            !is_served || is_about_the_packet,
            Promise::KeptBackend,
            || {
                format!(
                    "of backend {backend}, which serves it, and ended as {}",
                    reason.name()
                )
            },
        )
    }

    /// A message of ICMP.
    fn message(
        &mut self,
        scene: &Scene,
        seen: &Seen<'_>,
        ip: &Ip<'_>,
        at: usize,
        reason: Reason,
        came: &Observed,
    ) -> Result<(), Breach> {
        let kind = ip.bytes.get(at).copied();
        let request = if ip.is_ipv4() { 8 } else { 128 };
        match reason {
            Reason::NotService | Reason::Malformed => Ok(()),
            Reason::EchoAnswered | Reason::AnswerLimited
                if kind == Some(request) && scene::is_only_vip(ip.destination) =>
            {
                if reason == Reason::EchoAnswered {
                    let answer = answer_of(seen, came)?;
                    let answer = answer.ip.as_ref().map(|ip| (ip.source, ip.destination));
                    return ensure(
                        answer == Some((ip.destination, ip.source)),
                        Promise::RightWay,
                        || format!("an echo's answer goes {answer:?}"),
                    );
                }
                Ok(())
            }
            Reason::ErrorRelayed | Reason::ErrorUnrelayed | Reason::AnswerLimited => {
                let Some(about) = concerned(ip, at) else {
                    return breach(Promise::Untouched, "a message about no service was taken");
                };
                if reason != Reason::ErrorRelayed {
                    return Ok(());
                }
                let backend = counted_backend(came)?;
                let service = scene::service_of(backend);
                ensure(
                    service.is_some_and(|service| service.id == about.service.id),
                    Promise::RightWay,
                    || {
                        format!(
                            "about service {}, sent to backend {backend}",
                            about.service.id
                        )
                    },
                )?;
                if about.from_backend {
                    leaves_for(scene, seen, ip, backend, came)
                } else {
                    let answer = answer_of(seen, came)?;
                    let ends = answer.ip.as_ref().map(|ip| (ip.source, ip.destination));
                    ensure(
                        ends == Some((about.vip, about.client)),
                        Promise::RightWay,
                        || format!("about {} and {}, sent {ends:?}", about.vip, about.client),
                    )
                }
            }
            _ => breach(
                Promise::Untouched,
                format!("ICMP ended as {}", reason.name()),
            ),
        }
    }
}

fn keeps_verdict(reason: Reason, came: &Observed) -> Result<(), Breach> {
    let fits = match reason.verdict() {
        Verdict::Pass => came.action == action::PASS,
        Verdict::Forward => matches!(came.action, action::TX | action::REDIRECT),
        Verdict::Reset | Verdict::Answer => came.action == action::TX,
        Verdict::Drop => came.action == action::DROP,
    };
    ensure(fits, Promise::VerdictKept, || {
        format!("{} with action {}", reason.name(), came.action)
    })
}

fn passes(reason: Reason, what: &str) -> Result<(), Breach> {
    ensure(
        reason.verdict() == Verdict::Pass,
        Promise::Untouched,
        || format!("{what}, and ended as {}", reason.name()),
    )
}

fn counted_backend(came: &Observed) -> Result<u32, Breach> {
    match came.backends[..] {
        [backend] => Ok(backend),
        _ => breach(
            Promise::CountedOnce,
            format!("counted for backends {:?}", came.backends),
        ),
    }
}

/// Whether a reason that refuses a segment, or makes something special of it, is true.
fn has_cause(
    scene: &Scene,
    ip: &Ip<'_>,
    tcp: &Tcp,
    service: &Service,
    reason: Reason,
    came: &Observed,
) -> Result<(), Breach> {
    let node = came.backends.first().and_then(|id| scene.node(*id));
    let own = (service.backends.0..=service.backends.1).filter_map(|id| scene.node(id));
    let mut own = own.copied();
    let is_syn = tcp.flags & SYN != 0;
    let holds = match reason {
        Reason::TtlExpired => ip.ttl <= 1,
        Reason::TooBig => {
            let room = came
                .backends
                .first()
                .and_then(|id| scene::outer_of(*id))
                .map_or(0, |(_, _, length)| length);
            // What gets VLAN tags that it came without may not fit either; here nothing does.
            ip.length + room > MTU
        }
        Reason::BadFlags => is_syn && tcp.flags & (ACK | FIN | RST) != 0,
        Reason::BackendDead => node.is_some_and(|node| node.serving == Serving::None),
        Reason::ResetToDead => {
            tcp.flags & RST != 0 && node.is_some_and(|node| node.serving == Serving::None)
        }
        Reason::DrainDeadline => {
            node.is_some_and(|node| node.closing.is_some() && node.serving != Serving::None)
        }
        Reason::Unresolved => own.any(|node| !node.resolved),
        Reason::NoEgress | Reason::Fragment | Reason::Held => false,
        // A table may name no backend that serves, though there is one.
        Reason::NoBackend if is_syn => own.any(|node| node.serving != Serving::New),
        Reason::NoBackend | Reason::NoBackendForFlow => {
            own.any(|node| node.serving == Serving::None)
        }
        Reason::ResetLimited => {
            own.any(|node| node.serving == Serving::None || node.closing.is_some())
        }
        Reason::Contested => is_syn,
        _ => true,
    };
    ensure(holds, Promise::Cause, || {
        format!("{} without its cause", reason.name())
    })
}

/// Whether a packet leaves for a backend as it should: one hop older, and else the same, by the right way.
fn leaves_for(
    scene: &Scene,
    seen: &Seen<'_>,
    ip: &Ip<'_>,
    backend: u32,
    came: &Observed,
) -> Result<(), Breach> {
    let elsewhere = scene.node(backend).is_some_and(|node| node.elsewhere);
    ensure(
        (came.action == action::REDIRECT) == elsewhere,
        Promise::RightWay,
        || format!("action {} to backend {backend}", came.action),
    )?;
    ensure(
        came.output.get(..12) == Some(&scene::macs_to(backend)),
        Promise::RightWay,
        || format!("the MAC addresses are not those to backend {backend}"),
    )?;
    let left = reader::read(&came.output);
    ensure(left.tags.is_empty(), Promise::RightWay, || {
        format!("with tags {:?}", left.tags)
    })?;
    let Some(outer) = left.ip else {
        return breach(Promise::RightWay, "what left is no packet of IP");
    };
    let inner_at = match scene::outer_of(backend) {
        None => 14,
        Some((source, destination, length)) => {
            ensure(
                (outer.source, outer.destination) == (source, destination),
                Promise::RightWay,
                || format!("tunnelled from {} to {}", outer.source, outer.destination),
            )?;
            ensure(outer.has_right_header_sum(), Promise::RightSums, || {
                "the outer header's".into()
            })?;
            ensure(
                outer.carried == Carried::Tunnel(length) && outer.length == ip.length + length,
                Promise::RightWay,
                || format!("{:?} of {} bytes is no tunnel", outer.carried, outer.length),
            )?;
            14 + length
        }
    };
    let came_with = seen.frame.get(ip.at..).unwrap_or_default();
    let leaves_with = came.output.get(inner_at..).unwrap_or_default();
    is_one_hop_older(ip, came_with, leaves_with)
}

/// Whether a packet is another, one hop older.
fn is_one_hop_older(ip: &Ip<'_>, before: &[u8], after: &[u8]) -> Result<(), Breach> {
    let (ttl, sum) = if ip.is_ipv4() { (8, 10..12) } else { (7, 0..0) };
    // What is behind the packet in its frame is nobody's.
    let length = ip.length.min(before.len());
    let (Some(before), Some(after)) = (before.get(..length), after.get(..length)) else {
        return breach(Promise::RightWay, "the packet was cut");
    };
    let differs: Vec<usize> = (0..length)
        .filter(|at| *at != ttl && !sum.contains(at) && before[*at] != after[*at])
        .collect();
    ensure(differs.is_empty(), Promise::RightWay, || {
        format!("bytes {differs:?} of the packet were changed")
    })?;
    ensure(
        before.get(ttl).map(|ttl| ttl.wrapping_sub(1)) == after.get(ttl).copied(),
        Promise::RightWay,
        || format!("hops {:?} became {:?}", before.get(ttl), after.get(ttl)),
    )?;
    let ethertype = if ip.is_ipv4() { 0x0800 } else { 0x86dd };
    let is_right = |bytes| {
        reader::read_ip(bytes, 0, ethertype).is_some_and(|packet| packet.has_right_header_sum())
    };
    ensure(
        !is_right(before) || is_right(after),
        Promise::RightSums,
        || "the header's".into(),
    )
}

/// What was made of a frame to answer it: sent back where it came from, with right checksums.
fn answer_of<'a>(seen: &Seen<'_>, came: &'a Observed) -> Result<Seen<'a>, Breach> {
    let back = [&seen.frame[6..12], &seen.frame[..6]].concat();
    ensure(
        came.output.get(..12) == Some(&back[..]),
        Promise::RightWay,
        || "the answer does not go back to who sent".into(),
    )?;
    let answer = reader::read(&came.output);
    ensure(answer.tags == seen.tags, Promise::RightWay, || {
        format!("tags {:?} became {:?}", seen.tags, answer.tags)
    })?;
    let Some(ip) = &answer.ip else {
        return breach(Promise::RightWay, "the answer is no packet of IP");
    };
    let (at, protocol) = match ip.carried {
        Carried::Tcp(tcp) => (tcp.at, 6),
        Carried::Icmp(at) => (at, if ip.is_ipv4() { 1 } else { 58 }),
        other => return breach(Promise::RightWay, format!("the answer is {other:?}")),
    };
    // An echo's sums are changed and not made, so they are as right as the request's.
    let is_echo =
        matches!(ip.carried, Carried::Icmp(at) if matches!(ip.bytes.get(at), Some(0 | 129)));
    let came_right = |of: &dyn Fn(&Ip<'_>) -> bool| seen.ip.as_ref().is_some_and(of);
    ensure(
        ip.has_right_header_sum() || (is_echo && !came_right(&|ip| ip.has_right_header_sum())),
        Promise::RightSums,
        || "the answer's header's".into(),
    )?;
    ensure(
        ip.has_right_sum(at, protocol)
            || (is_echo && !came_right(&|ip| ip.has_right_sum(at, protocol))),
        Promise::RightSums,
        || "the answer's".into(),
    )?;
    Ok(answer)
}

fn is_reset(seen: &Seen<'_>, ip: &Ip<'_>, tcp: &Tcp, came: &Observed) -> Result<(), Breach> {
    ensure(tcp.flags & RST == 0, Promise::Cause, || {
        "a RST was answered with a RST".into()
    })?;
    let answer = answer_of(seen, came)?;
    let Some((reply, Carried::Tcp(sent))) = answer.ip.as_ref().map(|ip| (ip, ip.carried)) else {
        return breach(Promise::RightWay, "the answer is no segment");
    };
    let ends = (
        reply.source,
        sent.source,
        reply.destination,
        sent.destination,
    );
    ensure(
        ends == (ip.destination, tcp.destination, ip.source, tcp.source),
        Promise::RightWay,
        || format!("the RST goes {ends:?}"),
    )?;
    // RFC 9293, section 3.10.7.1.
    let ends = u32::from(tcp.flags & FIN != 0) + u32::from(tcp.flags & SYN != 0);
    let expected = if tcp.flags & ACK != 0 {
        (RST, tcp.ack, 0)
    } else {
        let taken = tcp.seq.wrapping_add(tcp.payload as u32).wrapping_add(ends);
        (RST | ACK, 0, taken)
    };
    ensure(
        (sent.flags, sent.seq, sent.ack) == expected,
        Promise::RightWay,
        || {
            format!(
                "the RST has {:?}, not {expected:?}",
                (sent.flags, sent.seq, sent.ack)
            )
        },
    )
}

/// An error about a packet, to who sent it: it quotes the packet's header and the eight bytes behind it.
fn is_complaint(
    seen: &Seen<'_>,
    ip: &Ip<'_>,
    reason: Reason,
    came: &Observed,
) -> Result<(), Breach> {
    let answer = answer_of(seen, came)?;
    let Some((told, Carried::Icmp(at))) = answer.ip.as_ref().map(|ip| (ip, ip.carried)) else {
        return breach(Promise::RightWay, "the answer is no ICMP");
    };
    ensure(
        (told.source, told.destination) == (ip.destination, ip.source),
        Promise::RightWay,
        || format!("told {} from {}", told.destination, told.source),
    )?;
    let kinds: [u8; 2] = match (reason, ip.is_ipv4()) {
        (Reason::TtlExpired, true) => [11, 0],
        (Reason::TtlExpired, false) => [3, 0],
        (_, true) => [3, 4],
        (_, false) => [2, 0],
    };
    let quote = told.bytes.get(at + 8..told.length).unwrap_or_default();
    let is_quoted = quote.len() >= 28 && ip.bytes.starts_with(quote);
    ensure(
        told.bytes.get(at..at + 2) == Some(&kinds) && is_quoted,
        Promise::RightWay,
        || {
            format!(
                "{:?}, quoting {} bytes",
                told.bytes.get(at..at + 2),
                quote.len()
            )
        },
    )
}

/// What an ICMP error is about, if that is a service's flow.
struct Concern {
    service: &'static Service,
    vip: std::net::IpAddr,
    client: std::net::IpAddr,
    /// Whether it is about what a backend has sent, or about what was encapsulated here.
    from_backend: bool,
}

fn concerned(ip: &Ip<'_>, at: usize) -> Option<Concern> {
    let quote = ip.bytes.get(at + 8..)?;
    let ethertype = if ip.is_ipv4() { 0x0800 } else { 0x86dd };
    let quoted = reader::read_ip(quote, 0, ethertype)?;
    if let Some(inner) = tunnelled(quote, ip.is_ipv4()) {
        let (packet, ends) = inner;
        let service = scene::service_at(packet.destination, ends.1)?;
        return Some(Concern {
            service,
            vip: packet.destination,
            client: packet.source,
            from_backend: false,
        });
    }
    let (port, _) = ports(quote, ip.is_ipv4())?;
    let service = scene::service_at(quoted.source, port)?;
    (quoted.source == ip.destination).then_some(Concern {
        service,
        vip: quoted.source,
        client: quoted.destination,
        from_backend: true,
    })
}

/// The packet in an IP packet that may be cut short, and its ports.
fn tunnelled(quote: &[u8], is_ipv4: bool) -> Option<(Ip<'_>, (u16, u16))> {
    let (protocol, own) = if is_ipv4 {
        (*quote.get(9)?, usize::from(quote.first()? & 0xf) * 4)
    } else {
        (*quote.get(6)?, 40)
    };
    let is_inner_ipv4 = match protocol {
        4 => true,
        41 => false,
        _ => return None,
    };
    let ethertype = if is_inner_ipv4 { 0x0800 } else { 0x86dd };
    let packet = reader::read_ip(quote, own, ethertype)?;
    let ports = ports(quote.get(own..)?, is_inner_ipv4)?;
    Some((packet, ports))
}

/// The ports of a packet of TCP of which not more than the first eight bytes may be there.
fn ports(packet: &[u8], is_ipv4: bool) -> Option<(u16, u16)> {
    let (protocol, own) = if is_ipv4 {
        (*packet.get(9)?, usize::from(packet.first()? & 0xf) * 4)
    } else {
        (*packet.get(6)?, 40)
    };
    let ports = packet.get(own..own + 4)?;
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    (protocol == 6).then(|| (port(0), port(2)))
}
