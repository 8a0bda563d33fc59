//! What the contract remembers of flows: less than the data path knows, and enough to catch it when it forgets one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::tcp::{ACK, FIN, RST, SYN};

use super::reader::Tcp;

/// A flow: a client's address and port, and the service's id.
pub type FlowId = (IpAddr, u16, u16);

/// Within this distance two sequence numbers belong to one stream without doubt, as the design has it: one epoch.
const NEAR: u32 = 1 << 20;
/// Beyond this distance they belong to two.
const FAR: u32 = 1 << 23;
/// How far beyond its SYN a client's first acknowledgement may be.
const PROMOTION_WINDOW: u32 = 1 << 17;

/// What is remembered of one flow.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    /// The backend that it is pinned to, once its client has answered.
    pinned: Option<Pinned>,
    /// SYNs that got an entry, beside a pinned flow or not: sequence number and backend.
    syns: Vec<(u32, u32)>,
    /// Every backend that an entry of it may name.
    seen: BTreeSet<u32>,
    /// Whether a SYN has come beside a live entry: from then on there may be two flows of one name.
    contested: bool,
}

/// A flow that has proven itself.
#[derive(Clone, Copy, Debug)]
struct Pinned {
    backend: u32,
    /// Where its stream is.
    seq: u32,
    /// Whether a FIN or RST of it has passed: with time its entry may go.
    ended: bool,
    /// Whether its name was contested and something far away came that follows no SYN: nobody can tell any more whose that is.
    muddied: bool,
}

/// Where a segment must go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// To this backend and no other.
    To(u32),
    /// To one of these, by an entry.
    ToOneOf(BTreeSet<u32>),
    /// It is of no flow that is known: wherever the table says.
    Anywhere,
}

impl Flow {
    /// Where a segment must go, that is no SYN.
    #[must_use]
    pub fn due(&self, tcp: &Tcp) -> Due {
        match self.pinned {
            Some(pinned) if !self.contested => Due::To(pinned.backend),
            Some(pinned) if self.is_clearly_of(&pinned, tcp) => Due::To(pinned.backend),
            Some(_) => Due::ToOneOf(self.seen.clone()),
            None => Due::Anywhere,
        }
    }

    fn is_clearly_of(&self, pinned: &Pinned, tcp: &Tcp) -> bool {
        let is_own = distance(tcp.seq, pinned.seq) < NEAR;
        let others = self
            .syns
            .iter()
            .all(|(isn, _)| distance(tcp.seq, *isn) > FAR);
        is_own && others && !pinned.muddied
    }

    /// Whether an entry of it may name this backend.
    #[must_use]
    pub fn has_seen(&self, backend: u32) -> bool {
        self.seen.contains(&backend)
    }

    /// Whether this very SYN has gone to this backend before.
    #[must_use]
    pub fn had_syn(&self, seq: u32, backend: u32) -> bool {
        self.syns.contains(&(seq, backend))
    }

    /// Whether it is pinned and nothing has ended it: whoever says that there is no such flow has forgotten it.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.pinned.is_some_and(|pinned| !pinned.ended)
    }

    /// A SYN of it was recorded and went to a backend. `challenges` if that was beside a live flow.
    fn opened(&mut self, seq: u32, backend: u32, challenges: bool) {
        if challenges {
            self.contested = true;
        } else {
            self.pinned = None;
            self.syns.clear();
            self.contested = false;
        }
        self.syns.push((seq, backend));
        self.seen.insert(backend);
    }

    /// A segment concerned a backend, and was not sent to it: the flow's entry may be as if it had been.
    fn concerned(&mut self, tcp: &Tcp, backend: u32) {
        if tcp.flags & SYN != 0 {
            self.opened(tcp.seq, backend, !self.seen.is_empty());
        } else if self.pinned.is_some() {
            self.passed(tcp, backend, false);
        } else {
            self.seen.insert(backend);
        }
    }

    /// A segment went to a backend by its entry, or was adopted.
    fn passed(&mut self, tcp: &Tcp, backend: u32, adopted: bool) {
        self.seen.insert(backend);
        let continues = tcp.flags & ACK != 0 && tcp.flags & (SYN | FIN | RST) == 0;
        let ends = tcp.flags & (FIN | RST) != 0;
        let follows_a_syn = self
            .syns
            .iter()
            .any(|(isn, _)| tcp.seq.wrapping_sub(*isn) <= PROMOTION_WINDOW);
        let is_promoted = continues
            && self
                .syns
                .iter()
                .any(|(isn, to)| *to == backend && tcp.seq.wrapping_sub(*isn) <= PROMOTION_WINDOW);
        let Some(pinned) = &mut self.pinned else {
            if adopted || is_promoted {
                self.pinned = Some(Pinned {
                    backend,
                    seq: tcp.seq,
                    ended: false,
                    // Of two that came before it, this may be either.
                    muddied: self.contested,
                });
            }
            return;
        };
        let is_near = distance(tcp.seq, pinned.seq) < NEAR;
        if self.contested && !is_near && !(continues && follows_a_syn) {
            pinned.muddied = true;
        }
        if ends {
            pinned.ended = true;
        } else if !self.contested || is_near {
            pinned.seq = tcp.seq;
        }
    }
}

/// All flows of a case.
#[derive(Clone, Debug, Default)]
pub struct Flows(BTreeMap<FlowId, Flow>);

impl Flows {
    /// A flow; an empty one, if nothing is known of it.
    #[must_use]
    pub fn get(&self, id: &FlowId) -> Flow {
        self.0.get(id).cloned().unwrap_or_default()
    }

    /// A SYN was recorded and went to a backend, see [`Flow::opened`].
    pub fn opened(&mut self, id: FlowId, seq: u32, backend: u32, challenges: bool) {
        self.0
            .entry(id)
            .or_default()
            .opened(seq, backend, challenges);
    }

    /// A segment went to a backend by its entry, or was adopted.
    pub fn passed(&mut self, id: FlowId, tcp: &Tcp, backend: u32, adopted: bool) {
        self.0.entry(id).or_default().passed(tcp, backend, adopted);
    }

    /// A segment concerned a backend, and was not sent to it, see [`Flow::concerned`].
    pub fn concerned(&mut self, id: FlowId, tcp: &Tcp, backend: u32) {
        self.0.entry(id).or_default().concerned(tcp, backend);
    }

    /// Time passes: flows that have ended may be forgotten.
    pub fn age(&mut self) {
        for flow in self.0.values_mut() {
            if flow.pinned.is_some_and(|pinned| pinned.ended) {
                flow.pinned = None;
            }
        }
    }

    /// A backend's id has another holder: nobody has flows with it.
    pub fn forget(&mut self, backend: u32) {
        for flow in self.0.values_mut() {
            if flow.pinned.is_some_and(|pinned| pinned.backend == backend) {
                flow.pinned = None;
            }
            flow.syns.retain(|(_, to)| *to != backend);
            flow.seen.remove(&backend);
        }
    }
}

fn distance(one: u32, other: u32) -> u32 {
    one.wrapping_sub(other).min(other.wrapping_sub(one))
}
