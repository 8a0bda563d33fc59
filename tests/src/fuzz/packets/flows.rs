//! What the contract remembers of flows: less than the data path knows, and enough to catch it when it forgets one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::tcp::{ACK, FIN, RST, SYN};

use super::{
    reader::Tcp,
    scene::{self, End, Service},
};

/// A flow: a client's address and port, and the service's id.
pub type FlowId = (IpAddr, u16, u16);

/// Within this distance two sequence numbers belong to one stream without doubt, as the design has it: one epoch.
const NEAR: u32 = 1 << 20;
/// Beyond this distance they belong to two.
const FAR: u32 = 1 << 23;
/// How far beyond its SYN a client's first acknowledgement may be.
const PROMOTION_WINDOW: u32 = 1 << 17;
/// Most data that a backend may take with a SYN (RFC 7413).
const MOST_DATA_OF_SYN: u32 = 0xffff;

/// How much of a flow is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// Whether its service translates. Then what a backend has answered decides whose a segment of a contested name is, and a proven flow may end the
    /// one that had its name before: too much to follow from outside, so nothing is asked of these but that they stay with what was theirs.
    pub is_translated: bool,
    /// Whether what its backend sends is seen too: then it is proven by that, and by nothing else.
    pub sees_both: bool,
}

impl Kind {
    /// Of a service's flow to a backend.
    #[must_use]
    pub fn of(service: &Service, backend: u32) -> Self {
        Self {
            is_translated: service.way.translates(),
            sees_both: scene::way_to(backend).sees_both(),
        }
    }
}

/// What is remembered of one flow.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    /// Whether its service translates, see [`Kind::is_translated`].
    is_translated: bool,
    /// What a backend takes for its client, for each translation that it has left with: the backend and that.
    held: BTreeSet<(u32, End)>,
    /// Whether it may have a translation that it has not left with: its SYN was recorded, and refused for something else.
    is_hidden: bool,
    /// Where it has left for last, and as whom.
    left: Option<(u32, End)>,
    /// The SYN that waits for its backend's answer, or for the client's acknowledgement of that.
    nascent: Option<Nascent>,
    /// The backend that it is pinned to, once its client has answered.
    pinned: Option<Pinned>,
    /// SYNs that got an entry, beside a pinned flow or not: sequence number and backend.
    syns: Vec<(u32, u32)>,
    /// Every backend that an entry of it may name.
    seen: BTreeSet<u32>,
    /// Whether a SYN has come beside a live entry: from then on there may be two flows of one name.
    contested: bool,
    /// Whether an end of it has passed since it began, and its entry may be there still: what comes for it then need not be the beginning of another.
    lingers: bool,
    /// Whether an entry of it may name a former holder of a backend's id: no segment is sent by that, but a SYN finds it there.
    is_stale: bool,
}

/// A SYN whose handshake is seen from both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Nascent {
    seq: u32,
    backend: u32,
    source: End,
    /// The sequence number of the backend's SYN.
    answered: Option<u32>,
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
            Some(_) if self.is_translated => Due::Anywhere,
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
        let is_told_apart = !(self.is_translated && self.contested);
        is_told_apart && self.pinned.is_some_and(|pinned| !pinned.ended)
    }

    /// The backend that it lives on, if that is beyond doubt.
    #[must_use]
    pub fn home(&self) -> Option<u32> {
        self.pinned
            .filter(|_| self.is_alive() && !self.contested)
            .map(|pinned| pinned.backend)
    }

    /// The backend that it is pinned to, contested or not.
    #[must_use]
    pub fn pinned_to(&self) -> Option<u32> {
        self.pinned.map(|pinned| pinned.backend)
    }

    /// Whether a SYN has come beside a live entry.
    #[must_use]
    pub const fn is_contested(&self) -> bool {
        self.contested
    }

    /// Whether it has left for a backend with this translation, or may have one that nobody has seen.
    #[must_use]
    pub fn may_be(&self, backend: u32, source: End) -> bool {
        self.is_hidden || self.held.contains(&(backend, source))
    }

    /// The translation that it has for as long as it lives: if it is beyond doubt which.
    #[must_use]
    pub fn translation(&self) -> Option<(u32, End)> {
        let home = self.home()?;
        let mut held = self.held.iter().filter(|(backend, _)| *backend == home);
        match (held.next(), held.next()) {
            (Some(one), None) if !self.is_hidden => Some(*one),
            _ => None,
        }
    }

    /// Where it has left for last, and as whom.
    #[must_use]
    pub const fn left(&self) -> Option<(u32, End)> {
        self.left
    }

    /// A SYN of it was recorded and went to a backend. `challenges` if that was beside a live flow.
    fn opened(&mut self, seq: u32, backend: u32, challenges: bool, kind: Kind) {
        self.is_translated = kind.is_translated;
        if challenges {
            self.contested = true;
        } else {
            self.pinned = None;
            self.syns.clear();
            self.contested = false;
            self.lingers = false;
        }
        self.syns.push((seq, backend));
        self.seen.insert(backend);
    }

    /// A SYN has found no entry of the flow, and made one: what it had before is not its any more.
    fn begun_anew(&mut self) {
        self.held.clear();
        self.is_hidden = false;
        self.is_stale = false;
        self.nascent = None;
    }

    /// A segment has left for a backend, which takes its client for `source`.
    fn left_for(&mut self, tcp: &Tcp, backend: u32, source: End, kind: Kind) {
        self.left = Some((backend, source));
        if tcp.flags & SYN != 0 {
            let is_again = self.nascent.is_some_and(|nascent| {
                (nascent.seq, nascent.backend, nascent.source) == (tcp.seq, backend, source)
            });
            if !is_again {
                self.nascent = kind.sees_both.then_some(Nascent {
                    seq: tcp.seq,
                    backend,
                    source,
                    answered: None,
                });
            }
        }
        if kind.sees_both {
            self.held.insert((backend, source));
        }
    }

    /// Its entry may have been closed.
    fn may_have_ended(&mut self) {
        self.lingers = true;
        if let Some(pinned) = &mut self.pinned {
            pinned.ended = true;
        }
    }

    /// A segment of its backend's came back, for what that takes for the client. `surely` if it is known to have been this flow's.
    fn replied(&mut self, tcp: &Tcp, backend: u32, source: End, surely: bool) {
        if tcp.flags & (FIN | RST) != 0 {
            self.may_have_ended();
        }
        let Some(nascent) = &mut self.nascent else {
            return;
        };
        let is_its = (nascent.backend, nascent.source) == (backend, source);
        if is_its && tcp.flags & (SYN | ACK | FIN | RST) == ACK && tcp.payload > 0 {
            // Data after an answer prove it, and nobody knows from outside what was taken for the answer.
            self.nascent = None;
            return;
        }
        if !is_its || tcp.flags & (SYN | ACK | RST) != SYN | ACK {
            return;
        }
        match tcp.ack.wrapping_sub(nascent.seq.wrapping_add(1)) {
            0 if surely => nascent.answered = Some(tcp.seq),
            // It may have been told: from here on nobody knows from outside.
            0..=MOST_DATA_OF_SYN => self.nascent = None,
            _ => {}
        }
    }

    /// Whether a segment proves that the flow's client has heard what the backend has answered.
    fn is_proven_by(&self, tcp: &Tcp, backend: u32) -> bool {
        self.nascent.is_some_and(|nascent| {
            nascent.backend == backend
                && nascent.answered == Some(tcp.ack.wrapping_sub(1))
                && tcp.seq.wrapping_sub(nascent.seq) <= PROMOTION_WINDOW
        })
    }

    /// A segment concerned a backend, and was not sent to it: the flow's entry may be as if it had been.
    fn concerned(&mut self, tcp: &Tcp, backend: u32, kind: Kind) {
        if tcp.flags & SYN != 0 {
            let challenges = self.is_stale || !self.seen.is_empty();
            self.opened(tcp.seq, backend, challenges, kind);
            self.is_hidden |= kind.sees_both;
            self.nascent = None;
        } else if self.pinned.is_some() {
            self.passed(tcp, backend, false, kind);
        } else {
            self.seen.insert(backend);
            // It may be proven, and may have ended.
            self.nascent = None;
            self.lingers |= tcp.flags & (FIN | RST) != 0;
        }
    }

    /// A segment went to a backend by its entry, or was adopted.
    fn passed(&mut self, tcp: &Tcp, backend: u32, adopted: bool, kind: Kind) {
        self.is_translated = kind.is_translated;
        self.seen.insert(backend);
        if adopted && kind.is_translated {
            // There was no entry of it.
            self.begun_anew();
            self.pinned = None;
            self.syns.clear();
            self.contested = false;
        }
        let continues = tcp.flags & ACK != 0 && tcp.flags & (SYN | FIN | RST) == 0;
        let ends = tcp.flags & (FIN | RST) != 0;
        self.lingers = ends || (self.lingers && !adopted);
        let follows_a_syn = self
            .syns
            .iter()
            .any(|(isn, _)| tcp.seq.wrapping_sub(*isn) <= PROMOTION_WINDOW);
        let is_promoted = if kind.sees_both {
            continues && self.is_proven_by(tcp, backend)
        } else {
            continues
                && self.syns.iter().any(|(isn, to)| {
                    *to == backend && tcp.seq.wrapping_sub(*isn) <= PROMOTION_WINDOW
                })
        };
        let is_told_apart = !(kind.is_translated && self.contested);
        let Some(pinned) = &mut self.pinned else {
            if adopted || (is_promoted && is_told_apart) {
                if let Some(nascent) = self.nascent.filter(|_| kind.sees_both && !adopted) {
                    // Of all that it may have had, this it has.
                    self.held = BTreeSet::from([(backend, nascent.source)]);
                    self.is_hidden = false;
                }
                self.pinned = Some(Pinned {
                    backend,
                    seq: tcp.seq,
                    ended: self.lingers,
                    // Of two that came before it, this may be either.
                    muddied: self.contested,
                });
                self.nascent = None;
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

/// All flows of a case, and of each endpoint's translations the flow that had it last.
#[derive(Clone, Debug, Default)]
pub struct Flows(BTreeMap<FlowId, Flow>, BTreeMap<(u32, End), FlowId>);

impl Flows {
    /// A flow; an empty one, if nothing is known of it.
    #[must_use]
    pub fn get(&self, id: &FlowId) -> Flow {
        self.0.get(id).cloned().unwrap_or_default()
    }

    /// A SYN was recorded and went to a backend, see [`Flow::opened`].
    pub fn opened(&mut self, id: FlowId, seq: u32, backend: u32, challenges: bool, kind: Kind) {
        self.0
            .entry(id)
            .or_default()
            .opened(seq, backend, challenges, kind);
    }

    /// A SYN has come for a name whose backend is dead or closes its flows: it may have taken that entry's place.
    pub fn displaced(&mut self, id: FlowId) {
        self.0.entry(id).or_default().pinned = None;
    }

    /// A SYN has found no entry of its flow.
    pub fn begun_anew(&mut self, id: FlowId) {
        self.0.entry(id).or_default().begun_anew();
    }

    /// A segment has left for a backend, which takes its client for `source`.
    pub fn left_for(&mut self, id: FlowId, tcp: &Tcp, backend: u32, source: End, kind: Kind) {
        self.0
            .entry(id)
            .or_default()
            .left_for(tcp, backend, source, kind);
        if kind.sees_both
            && let Some(endpoint) = scene::endpoint_of(backend)
        {
            self.1.insert((endpoint, source), id);
        }
    }

    /// A segment of a backend's was for what that takes for a flow's client: of the flow, `surely`, or perhaps.
    pub fn replied(&mut self, id: FlowId, tcp: &Tcp, backend: u32, source: End, surely: bool) {
        if let Some(flow) = self.0.get_mut(&id) {
            flow.replied(tcp, backend, source, surely);
        }
    }

    /// A backend on this host has reset a flow, or its client has sent what its backend, which is dead, does not get.
    pub fn refused(&mut self, id: FlowId) {
        if let Some(flow) = self.0.get_mut(&id) {
            flow.may_have_ended();
        }
    }

    /// The flow that has left for an endpoint with a translation last.
    #[must_use]
    pub fn holder(&self, endpoint: u32, source: End) -> Option<FlowId> {
        self.1.get(&(endpoint, source)).copied()
    }

    /// Whether any flow may have a translation that nobody has seen.
    #[must_use]
    pub fn is_any_hidden(&self) -> bool {
        self.0.values().any(|flow| flow.is_hidden)
    }

    /// A segment went to a backend by its entry, or was adopted.
    pub fn passed(&mut self, id: FlowId, tcp: &Tcp, backend: u32, adopted: bool, kind: Kind) {
        self.0
            .entry(id)
            .or_default()
            .passed(tcp, backend, adopted, kind);
    }

    /// A segment concerned a backend, and was not sent to it, see [`Flow::concerned`].
    pub fn concerned(&mut self, id: FlowId, tcp: &Tcp, backend: u32, kind: Kind) {
        self.0.entry(id).or_default().concerned(tcp, backend, kind);
    }

    /// Time passes: flows that have ended may be forgotten.
    pub fn age(&mut self) {
        for flow in self.0.values_mut() {
            if flow.pinned.is_some_and(|pinned| pinned.ended) {
                flow.pinned = None;
                flow.lingers = true;
            }
        }
    }

    /// A backend's id has another holder: nobody has flows with it, though entries that name the former one may be there still.
    pub fn forget(&mut self, backend: u32) {
        for flow in self.0.values_mut() {
            if flow.pinned.is_some_and(|pinned| pinned.backend == backend) {
                flow.pinned = None;
            }
            flow.syns.retain(|(_, to)| *to != backend);
            flow.is_stale |= flow.seen.remove(&backend);
            flow.held.retain(|(to, _)| *to != backend);
            flow.nascent = flow.nascent.filter(|nascent| nascent.backend != backend);
        }
    }
}

fn distance(one: u32, other: u32) -> u32 {
    one.wrapping_sub(other).min(other.wrapping_sub(one))
}
