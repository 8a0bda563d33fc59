//! Promises broken on purpose, behind the judge's back: a judge that lets one pass is no judge.
//!
//! What the program made of a packet is changed before that is judged, or the maps are between packets.

use clap::ValueEnum;
use lb_common::{
    backend::Serving,
    clock::Tick,
    flow::{
        FlowKey as _,
        table::Place,
        word::{State, Word},
    },
    guard::Guard,
    nat::{slot_of, translation},
    verdict::{Reason, Verdict},
};

use super::{
    contract::{Observed, Promise},
    reader::{self, Carried},
    scene::{self, Outer, SERVICES, Scene, Setting, Way},
};
use crate::packet::{
    World,
    kernel::{FLOW_SEED, action, tc_action},
};

macro_rules! breaks {
    ($($(#[doc = $doc:literal])+ $sabotage:ident: $($promise:ident)|+;)+) => {
        /// What is done to what came of a packet, or to the maps.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
        pub enum Sabotage {
            $($(#[doc = $doc])+ $sabotage,)+
        }

        impl Sabotage {
            /// Each, and the promises that it breaks: one of them is found, the first if nothing else shows before.
            pub const ALL: &[(Self, &[Promise])] = &[
                $((Self::$sabotage, &[$(Promise::$promise),+]),)+
            ];
        }
    };
}

breaks! {
    /// It is counted for a second reason.
    CountTwice: CountedOnce;
    /// It is counted for none.
    CountNever: CountedOnce;
    /// An established flow's segment is counted as a new flow's.
    CountWrong: VerdictKept;
    /// It is not sent, though it was counted as if.
    KeepBack: VerdictKept;
    /// A defect's reason is counted.
    Defect: Sound | VerdictKept;
    /// What passes is changed.
    Scribble: Untouched;
    /// What is for a service is passed on to the host.
    PassOn: Served | ToItsClient | Heard;
    /// What is for nobody is dropped.
    Swallow: Untouched | CountedOnce;
    /// The header's checksum of what leaves is not updated.
    WrongSum: RightSums;
    /// The segment's checksum of what was translated is not updated.
    WrongSumOfSegment: RightSums;
    /// The checksum of the segment that an error quotes is not updated.
    WrongSumOfQuote: RightSums;
    /// The hop is not taken.
    KeepHop: RightWay;
    /// The data that leaves is not what came.
    Corrupt: RightWay | ToItsClient;
    /// It leaves for the backend's neighbour in the network.
    WrongAddress: RightWay;
    /// It is encapsulated as from an address that is none of ours.
    WrongSource: RightWay;
    /// An established flow's segment is encapsulated as from another address than its SYN was.
    OtherSource: OwnSource;
    /// An established flow goes to another backend of its service.
    Move: KeptBackend;
    /// A flow's entry comes to name another backend of its service.
    Redirect: KeptBackend;
    /// A new flow goes to a backend that drains.
    ToDraining: MayTake;
    /// An established flow's segment is dropped.
    Lose: Cause | KeptBackend;
    /// An answer goes to somebody else.
    AnswerOther: RightWay;
    /// Of a packet that was too big, its sender is told that more fits than does.
    TellTooMuch: RightWay;
    /// A translated flow's segment leaves with another port than the flow has.
    OtherPort: OwnTranslation;
    /// Two flows of an endpoint come to have each other's translation: the other's client may be one that there is no way to.
    Exchange: OwnTranslation | ToItsClient | Cause;
    /// What a backend sends goes to another client.
    OtherClient: ToItsClient;
    /// What a backend sends for a client is taken for the host's.
    LoseReply: ToItsClient;
    /// What a backend on this host sends for a client goes out as it is.
    LoseLocalReply: ToItsClient;
    /// What a router says of a translated packet is dropped.
    LoseError: Heard;
    /// A client's new flow goes to another backend than its others, or than what follows of it if it is the first.
    MovePlaced: Placed | KeptBackend;
    /// Lists refuse nobody: whom they would is let in, or refused for what its source owes or has.
    LetDeniedPass: Guarded | Cause;
    /// Sources never owe anything.
    ForgetDebt: Guarded;
    /// Sources never have any flows.
    ForgetFlows: Guarded;
    /// A new flow of somebody whom the lists let in is refused.
    TurnAway: Cause;
    /// An established flow's segment is refused by its service's guard.
    RefuseKnown: Spared | Cause;
    /// A new flow goes to another backend where what clients send again is counted.
    MoveMeasured: Alike;
}

impl Sabotage {
    /// What it is called on the command line.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Breaks the promise in the maps, if that is where it is broken, and there is what it takes.
    pub fn tamper(self, world: &World, scene: &Scene) {
        match self {
            Self::Redirect => redirect(world, scene),
            Self::Exchange if scene.setting() == Setting::Translating => exchange(world),
            Self::LetDeniedPass => let_all_pass(world, scene),
            Self::ForgetDebt => world.change_sources(|source| source.paid_ns = 0),
            Self::ForgetFlows => world.change_sources(|source| source.flows = 0),
            _ => {}
        }
    }

    /// Breaks the promise in what came of a frame, if it is about such a frame.
    pub fn strike(self, scene: &Scene, frame: &[u8], came: &mut Observed) {
        let [(reason, _)] = came.reasons[..] else {
            return;
        };
        let is_sent = matches!(came.action, action::TX | action::REDIRECT);
        let is_forwarded = is_sent
            && reason.verdict() == Verdict::Forward
            && !came.backends.is_empty()
            && came.services.len() == 1;
        let is_segment = is_forwarded && reason != Reason::ErrorRelayed;
        let passes = reason.verdict() == Verdict::Pass;
        match self {
            Self::CountTwice => came.reasons.push((Reason::Stray, 1)),
            Self::CountNever => came.reasons.clear(),
            Self::CountWrong if is_forwarded && reason == Reason::Established => {
                came.reasons = vec![(Reason::Opened, 1)];
            }
            Self::KeepBack if is_sent => came.action = action::DROP,
            Self::Defect => came.reasons = vec![(Reason::ServiceMissing, 1)],
            Self::Scribble if passes => came.output[13] ^= 1,
            Self::PassOn if is_forwarded => leave_alone(frame, came),
            Self::Swallow if passes => {
                came.action = action::DROP;
                came.reasons = vec![(Reason::BadFlags, 1)];
            }
            Self::WrongSum if is_segment => {
                let at = inner(came);
                // IPv6 has no such sum: the outer header of IPv4 is found elsewhere, if there is one.
                if came.output.get(at).is_some_and(|first| first >> 4 == 4)
                    && let Some(sum) = came.output.get_mut(at + 11)
                {
                    *sum ^= 1;
                }
            }
            Self::WrongSumOfSegment if is_translated(came) => {
                if let Some(tcp) = segment(&came.output)
                    && let Some(sum) = came.output.get_mut(tcp + 17)
                {
                    *sum ^= 1;
                }
            }
            Self::WrongSumOfQuote if is_translated(came) && reason == Reason::ErrorRelayed => {
                wrong_sum_of_quote(&mut came.output);
            }
            Self::KeepHop if is_segment => {
                let at = inner(came);
                let ttl = if came.output.get(at).is_some_and(|first| first >> 4 == 4) {
                    at + 8
                } else {
                    at + 7
                };
                if let Some(ttl) = came.output.get_mut(ttl) {
                    *ttl = ttl.wrapping_add(1);
                }
            }
            Self::Corrupt if is_segment => {
                let at = inner(came) + 30;
                if let Some(byte) = came.output.get_mut(at) {
                    *byte ^= 0x10;
                }
            }
            Self::WrongAddress if is_forwarded => came.output[5] ^= 1,
            Self::WrongSource if is_segment => change_source(came, 4, |_| true),
            Self::OtherSource if is_segment && reason == Reason::Established => {
                change_source(came, 2, |outer| outer.varied != 0);
            }
            Self::Move if is_forwarded && reason == Reason::Established => {
                send_to(scene, came, |node| node != Serving::None);
            }
            Self::ToDraining if is_forwarded && reason == Reason::Opened => {
                send_to(scene, came, |node| node == Serving::ExistingOnly);
            }
            Self::MovePlaced if is_forwarded && reason == Reason::Opened => {
                let service = came.backends.first().and_then(|id| scene::service_of(*id));
                if service.is_some_and(|service| service.has_affinity) {
                    send_to(scene, came, |node| node == Serving::New);
                }
            }
            Self::MoveMeasured
                if is_forwarded && reason == Reason::Opened && scene.is_measured() =>
            {
                send_to(scene, came, |node| node == Serving::New);
            }
            Self::TurnAway if reason == Reason::Opened && is_guarded(scene, came) => refuse(came),
            Self::RefuseKnown if reason == Reason::Established && is_guarded(scene, came) => {
                refuse(came);
            }
            Self::Lose if is_forwarded && reason == Reason::Established => {
                came.action = action::DROP;
                came.reasons = vec![(Reason::ResetToDead, 1)];
            }
            Self::AnswerOther if reason == Reason::BackendDead || reason == Reason::TtlExpired => {
                came.output[0] ^= 4;
            }
            Self::TellTooMuch if reason == Reason::TooBig => tell_too_much(&mut came.output),
            Self::OtherPort if is_forwarded && reason == Reason::Established => {
                let is_nat = |id: &u32| scene::way_to(*id) == Way::Nat;
                if came.backends.iter().any(is_nat) {
                    next_port(&mut came.output, 0);
                }
            }
            Self::OtherClient if reason == Reason::Reply => next_port(&mut came.output, 2),
            Self::LoseReply if reason == Reason::Reply => leave_alone(frame, came),
            Self::LoseError if is_translated(came) && reason == Reason::ErrorRelayed => {
                came.action = action::DROP;
                came.reasons = vec![(Reason::ErrorUnrelayed, 1)];
            }
            _ => {}
        }
    }

    /// Breaks the promise in what came of a frame that the stack sends out.
    pub fn strike_leaving(self, frame: &[u8], came: &mut Observed) {
        let is_reply = came.reasons == [(Reason::Reply, 1)];
        match self {
            Self::CountTwice => came
                .reasons
                .extend([(Reason::Stray, 1), (Reason::Reply, 1)]),
            Self::KeepBack if is_reply => came.action = tc_action::SHOT,
            Self::Scribble if came.reasons.is_empty() => came.output[13] ^= 1,
            Self::WrongSumOfSegment if is_reply => {
                if let Some(tcp) = segment(&came.output)
                    && let Some(sum) = came.output.get_mut(tcp + 17)
                {
                    *sum ^= 1;
                }
            }
            Self::LoseLocalReply if is_reply => {
                came.reasons.clear();
                came.services.clear();
                came.backends.clear();
                came.output = frame.to_vec();
            }
            _ => {}
        }
    }
}

/// Whether what came of a packet is of a backend of which what it gets is translated.
fn is_translated(came: &Observed) -> bool {
    let translates = |id: &u32| scene::way_to(*id).translates();
    came.backends.iter().any(translates)
        && matches!(came.action, action::TX | action::REDIRECT | action::PASS)
}

/// Whether what came of a packet is of a guarded service.
fn is_guarded(scene: &Scene, came: &Observed) -> bool {
    let is_asking = |id: &u32| scene.asked(*id as u16).is_some();
    came.services.iter().any(is_asking)
}

/// Makes it as if the lists of a packet's service had refused it.
fn refuse(came: &mut Observed) {
    came.action = action::DROP;
    came.reasons = vec![(Reason::Denied, 1)];
    came.backends.clear();
}

/// Has the lists of the guarded service say nothing.
fn let_all_pass(world: &World, scene: &Scene) {
    for service in scene.setting().services() {
        if scene.asked(service.id).is_some() {
            let id = u32::from(service.id);
            let guard = world.maps.guards.get(id);
            world.maps.guards.set(id, &Guard { ranges: 0, ..guard });
        }
    }
}

/// Makes it as if nothing had been done with a frame.
fn leave_alone(frame: &[u8], came: &mut Observed) {
    came.action = action::PASS;
    came.output = frame.to_vec();
    came.reasons = vec![(Reason::NotService, 1)];
    came.services.clear();
    came.backends.clear();
}

/// Where the packet begins that the client, or the backend, has sent.
fn inner(came: &Observed) -> usize {
    let backend = came.backends.first().copied().unwrap_or_default();
    match scene::outer_of(backend) {
        Some(outer) => 14 + outer.length,
        None => reader::read(&came.output).ip.map_or(14, |ip| ip.at),
    }
}

/// Where the TCP header of a frame's segment is whose checksum is right.
fn segment(frame: &[u8]) -> Option<usize> {
    let ip = reader::read(frame).ip?;
    match ip.carried {
        Carried::Tcp(tcp) if ip.has_right_sum(tcp.at, 6) => Some(ip.at + tcp.at),
        _ => None,
    }
}

/// Adds one to a port of a frame's segment, with its checksum: 0 is the source's, 2 the destination's.
fn next_port(frame: &mut [u8], which: usize) {
    let Some(tcp) = segment(frame) else {
        return;
    };
    let before = half(frame, tcp + which);
    let after = before.wrapping_add(1);
    let sum = updated(half(frame, tcp + 16), before, after);
    frame[tcp + which..tcp + which + 2].copy_from_slice(&after.to_be_bytes());
    frame[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
}

/// Adds one to the MTU that an error tells, and makes its checksum right for that.
fn tell_too_much(frame: &mut [u8]) {
    let Some(ip) = reader::read(frame).ip else {
        return;
    };
    let Carried::Icmp(icmp) = ip.carried else {
        return;
    };
    let at = ip.at + icmp;
    let before = half(frame, at + 6);
    let after = before.wrapping_add(1);
    let sum = updated(half(frame, at + 2), before, after);
    frame[at + 6..at + 8].copy_from_slice(&after.to_be_bytes());
    frame[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
}

/// Has what was encapsulated, if its outer header `suits`, be as from an address that differs in the word which begins so many bytes before its end.
/// Makes the header's checksum right for that.
fn change_source(came: &mut Observed, back: usize, suits: impl Fn(&Outer) -> bool) {
    let backend = came.backends.first().copied().unwrap_or_default();
    let Some(outer) = scene::outer_of(backend).filter(suits) else {
        return;
    };
    let end = 14 + if outer.is_ipv4() { 16 } else { 24 };
    let frame = &mut came.output;
    if frame.len() < 14 + outer.length {
        return;
    }
    let at = end - back;
    let before = half(frame, at);
    let after = before ^ 1;
    frame[at..at + 2].copy_from_slice(&after.to_be_bytes());
    if outer.is_ipv4() {
        let sum = updated(half(frame, 14 + 10), before, after);
        frame[14 + 10..14 + 12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Changes the checksum of the segment that an error quotes, if that is quoted, and makes the error's own right for it.
fn wrong_sum_of_quote(frame: &mut [u8]) {
    let Some(ip) = reader::read(frame).ip else {
        return;
    };
    let Carried::Icmp(icmp) = ip.carried else {
        return;
    };
    // A header without options, which noise may make of another length.
    let (first, header) = if ip.is_ipv4() { (0x45, 20) } else { (0x60, 40) };
    if ip.bytes.get(icmp + 8) != Some(&first) {
        return;
    }
    let (at, length) = (ip.at, ip.length);
    let sum = icmp + 8 + header + 16;
    if sum + 2 > length || frame.len() < at + length {
        return;
    }
    let (quoted, own) = (at + sum, at + icmp + 2);
    let before = half(frame, quoted);
    let after = before ^ 0x0100;
    let told = updated(half(frame, own), before, after);
    frame[quoted..quoted + 2].copy_from_slice(&after.to_be_bytes());
    frame[own..own + 2].copy_from_slice(&told.to_be_bytes());
}

/// Two bytes of a frame as a number.
fn half(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// A checksum of which a word has changed (RFC 1624, equation 3).
fn updated(sum: u16, before: u16, after: u16) -> u16 {
    let grown = u32::from(!sum) + u32::from(!before) + u32::from(after);
    let folded = (grown & 0xffff) + (grown >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// Makes it as if it had been sent to another backend of the service, in mode `l2`, of those that serve as `suits` says.
fn send_to(scene: &Scene, came: &mut Observed, suits: impl Fn(Serving) -> bool) {
    let Some(from) = came.backends.first().copied() else {
        return;
    };
    let Some(other) = another(scene, from, suits) else {
        return;
    };
    came.backends = vec![other];
    came.output[..12].copy_from_slice(&scene::macs_to(other));
    came.action = action::TX;
}

/// Another backend of the service of one, both of mode `l2`, of those that serve as `suits` says.
fn another(scene: &Scene, from: u32, suits: impl Fn(Serving) -> bool) -> Option<u32> {
    let service = scene::service_of(from)?;
    let is_plain = |id: u32| scene::way_to(id) == Way::L2;
    let mut others = service.ids().filter(|id| *id != from && is_plain(*id));
    others.find(|id| {
        is_plain(from)
            && scene.node(*id).is_some_and(|node| {
                suits(node.serving) && !node.elsewhere && node.closing.is_none()
            })
    })
}

/// Has the first entry of an open flow in mode `l2` name another backend.
fn redirect(world: &World, scene: &Scene) {
    for (place, key, word) in world.values() {
        let is_plain =
            key.service() == SERVICES[0].id && word.is_open() && !word.has(Word::CONTESTED);
        if !is_plain {
            continue;
        }
        let Some(other) = another(scene, word.backend().id(), |node| node == Serving::New) else {
            continue;
        };
        let then = Tick(word.tick());
        let holder = scene.holder(other);
        let moved = Word::live(State::Pin, holder, word.epoch(), then, 0);
        world.set_value(place, moved);
        return;
    }
}

/// Has two flows of mode `nat` at one endpoint exchange their translations, ports and all.
fn exchange(world: &World) {
    let held: Vec<_> = world
        .values()
        .into_iter()
        .filter(|(_, _, value)| value.is_entry())
        .filter(|(_, _, value)| scene::way_to(value.backend().id()) == Way::Nat)
        .filter_map(|(place, key, value)| {
            let word = world.translation(place)?;
            (word.pair() != 0).then_some((place, key, value, word))
        })
        .collect();
    for (index, one) in held.iter().enumerate() {
        let other = held[index + 1..]
            .iter()
            .find(|other| other.2.backend() == one.2.backend());
        let Some(other) = other else {
            continue;
        };
        for (to, from) in [(one, other), (other, one)] {
            let (place, key, value, _): &(Place, _, Word, _) = to;
            let stamp = translation::stamp(key.mixed(&FLOW_SEED), value.backend());
            world.put_translation(*place, from.3, stamp);
            world.set_slot(from.3.pair(), from.3.port(), slot_of(*place));
        }
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever promises more has to break it here too.
    #[test]
    fn each_promise_is_broken_by_something() {
        for promise in Promise::ALL {
            assert!(
                Sabotage::ALL
                    .iter()
                    .any(|(_, breaks)| breaks.first() == Some(promise)),
                "nothing breaks {promise:?}"
            );
        }
    }

    #[test]
    fn each_break_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<String> = Sabotage::ALL
            .iter()
            .map(|(sabotage, _)| sabotage.name())
            .collect();
        assert_eq!(names.len(), Sabotage::value_variants().len());
    }
}
