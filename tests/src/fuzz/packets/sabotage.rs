//! Promises broken on purpose, between the program and who judges it: a judge that lets one pass is no judge.

use lb_common::{backend::Serving, verdict::Reason};

use super::{
    contract::{Observed, Promise},
    scene::{self, Scene},
};
use crate::packet::kernel::action;

/// What is done to what came of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// It is counted for a second reason.
    CountTwice,
    /// It is counted for none.
    CountNever,
    /// It is not sent, though it was counted as if.
    KeepBack,
    /// A defect's reason is counted.
    Defect,
    /// What passes is changed.
    Scribble,
    /// What is for a service is passed on to the host.
    PassOn,
    /// What is for nobody is dropped.
    Swallow,
    /// The header's checksum of what leaves is not updated.
    WrongSum,
    /// The hop is not taken.
    KeepHop,
    /// The data that leaves is not what came.
    Corrupt,
    /// It leaves for the backend's neighbour in the network.
    WrongAddress,
    /// An established flow goes to another backend of its service.
    Move,
    /// A new flow goes to a backend that drains.
    ToDraining,
    /// An established flow's segment is dropped.
    Lose,
    /// An answer goes to somebody else.
    AnswerOther,
}

impl Sabotage {
    /// Each, and the promises that it breaks: one of them is found.
    pub const ALL: [(Self, &'static [Promise]); 15] = [
        (Self::CountTwice, &[Promise::CountedOnce]),
        (Self::CountNever, &[Promise::CountedOnce]),
        (Self::KeepBack, &[Promise::VerdictKept]),
        (Self::Defect, &[Promise::Sound, Promise::VerdictKept]),
        (Self::Scribble, &[Promise::Untouched]),
        (Self::PassOn, &[Promise::Served]),
        (Self::Swallow, &[Promise::Untouched]),
        (Self::WrongSum, &[Promise::RightSums]),
        (Self::KeepHop, &[Promise::RightWay]),
        (Self::Corrupt, &[Promise::RightWay]),
        (Self::WrongAddress, &[Promise::RightWay]),
        (Self::Move, &[Promise::KeptBackend]),
        (Self::ToDraining, &[Promise::MayTake]),
        (Self::Lose, &[Promise::KeptBackend, Promise::Cause]),
        (Self::AnswerOther, &[Promise::RightWay]),
    ];

    /// Breaks the promise in what came of a frame, if it is about such a frame.
    pub fn strike(self, scene: &Scene, frame: &[u8], came: &mut Observed) {
        let [(reason, _)] = came.reasons[..] else {
            return;
        };
        let is_sent = matches!(came.action, action::TX | action::REDIRECT);
        let is_forwarded = is_sent && !came.backends.is_empty() && came.services.len() == 1;
        match self {
            Self::CountTwice => came.reasons.push((Reason::Stray, 1)),
            Self::CountNever => came.reasons.clear(),
            Self::KeepBack if is_sent => came.action = action::DROP,
            Self::Defect => came.reasons = vec![(Reason::ServiceMissing, 1)],
            Self::Scribble if came.action == action::PASS => came.output[13] ^= 1,
            Self::PassOn if is_forwarded => {
                came.action = action::PASS;
                came.output = frame.to_vec();
                came.reasons = vec![(Reason::NotService, 1)];
            }
            Self::Swallow if came.action == action::PASS => {
                came.action = action::DROP;
                came.reasons = vec![(Reason::BadFlags, 1)];
            }
            Self::WrongSum if is_forwarded => {
                let at = inner(came);
                // IPv6 has no such sum: the outer header of IPv4 is found elsewhere, if there is one.
                if came.output.get(at).is_some_and(|first| first >> 4 == 4)
                    && let Some(sum) = came.output.get_mut(at + 11)
                {
                    *sum ^= 1;
                }
            }
            Self::KeepHop if is_forwarded => {
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
            Self::Corrupt if is_forwarded => {
                let at = inner(came) + 30;
                if let Some(byte) = came.output.get_mut(at) {
                    *byte ^= 0x10;
                }
            }
            Self::WrongAddress if is_forwarded => came.output[5] ^= 1,
            Self::Move if is_forwarded && reason == Reason::Established => {
                send_to(scene, came, |node| node != Serving::None);
            }
            Self::ToDraining if is_forwarded && reason == Reason::Opened => {
                send_to(scene, came, |node| node == Serving::ExistingOnly);
            }
            Self::Lose if is_forwarded && reason == Reason::Established => {
                came.action = action::DROP;
                came.reasons = vec![(Reason::ResetToDead, 1)];
            }
            Self::AnswerOther if reason == Reason::BackendDead || reason == Reason::TtlExpired => {
                came.output[0] ^= 4;
            }
            _ => {}
        }
    }
}

/// Where the packet begins that the client has sent.
fn inner(came: &Observed) -> usize {
    let backend = came.backends.first().copied().unwrap_or_default();
    14 + scene::outer_of(backend).map_or(0, |(_, _, length)| length)
}

/// Makes it as if it had been sent to another backend of the service, in mode `l2`, of those that serve as `suits` says.
fn send_to(scene: &Scene, came: &mut Observed, suits: impl Fn(Serving) -> bool) {
    let Some(from) = came.backends.first().copied() else {
        return;
    };
    if scene::outer_of(from).is_some() {
        return;
    }
    let Some(service) = scene::service_of(from) else {
        return;
    };
    let others = service.backends.0..=service.backends.1;
    let other = others.filter(|id| *id != from).find(|id| {
        scene
            .node(*id)
            .is_some_and(|node| suits(node.serving) && !node.elsewhere && node.closing.is_none())
    });
    if let Some(other) = other {
        came.backends = vec![other];
        came.output[..12].copy_from_slice(&scene::macs_to(other));
        came.action = action::TX;
    }
}
