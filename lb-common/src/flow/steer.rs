//! What one packet of a service does to the flow table, and which backend it gets. The same code runs in the kernel, in tests
//! and in the model checker.
//!
//! The way of an established flow and all other ways are two functions, so that the first is short, and each has the small stack of
//! a BPF program for itself.
//!
//! * `syn`: what a SYN is to become
//! * `stream`: what any other segment changes of its flow's entry, and what becomes of it without one
//! * `record`: writing a new entry

mod record;
mod stream;
mod syn;

use super::{
    life::{self, Owner},
    open::open,
    table::{self, Entry, Look, Memory, Place, Subject},
    word::{BackendRef, State, Word},
};
use crate::{
    backend::{BackendState, Serving},
    clock::Tick,
    guard::Passed,
    maglev::Slot,
    tcp::{SYN, Segment},
    verdict::Reason,
};

/// What steering asks of the world around one packet.
pub trait World: Memory {
    /// A backend's entry that has been found.
    type Backend: Copy;

    /// The slot of a flow in its service's table, at one of the [`crate::maglev::PICK_ATTEMPTS`]. None if the service has no table.
    fn slot(&self, key: &Self::Key, attempt: u32) -> Option<Slot>;
    /// A backend's entry and its state, by id. None if there is no such id.
    fn backend(&self, id: u32) -> Option<(Self::Backend, BackendState)>;
    /// How many buckets there are: what the homes of flows are scaled to.
    fn buckets(&self) -> u32;
    /// Takes one permission to adopt an unknown flow from a bounded rate.
    fn may_adopt(&self) -> bool;
    /// Whether entries are only read for the moment: see [`crate::maps::Hold`].
    fn is_held(&self) -> bool;
    /// Notes, for people, that the entry at `place` was promoted or adopted now.
    fn note_promotion(&self, place: Place);

    /// Whether flows of backends that translate come here (see [`BackendState::translates`]). Theirs are only found or made here: what a segment
    /// changes of an entry is decided where its translation is known too, see [`crate::nat::life`].
    const TRANSLATES: bool = false;
    /// Notes that the packet is forwarded by the entry at `place`.
    #[inline(always)]
    fn note_entry(&self, _place: Place) {}
    /// Whether the packet acknowledges what the backend of the challenger at `place` has answered. None if that is not seen.
    #[inline(always)]
    fn answers(&self, _place: Place) -> Option<bool> {
        None
    }
    /// What the service's guard has found out, of a segment of a flow without an entry.
    #[inline(always)]
    fn passed(&self) -> Passed {
        Passed::NOTHING
    }
    /// Id of a backend that the flow cannot be given, though it may be the pick; 0 is none.
    #[inline(always)]
    fn barred(&self) -> u32 {
        0
    }
    /// The backend that a new flow is to have, if it takes new flows, though another may be the pick: that of its client's other flows.
    #[inline(always)]
    fn favoured(&self) -> BackendRef {
        BackendRef::NONE
    }
}

/// The outcome for one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steered {
    /// Why, which carries the verdict.
    pub reason: Reason,
    /// Id of the backend that it concerns, always for verdicts that forward; 0 is none. (No option: the compiler would spill what is in none,
    /// which the verifier refuses to see read.)
    pub backend: u32,
}

/// One packet on its way through the flow stage.
struct Visit<'a, W: World> {
    world: &'a W,
    subject: Subject<W::Key>,
    segment: Segment,
}

/// Steers one TCP segment of flow `key`: [`established`], [`open`], and if neither is its way, [`otherwise`].
#[inline(always)]
pub fn steer<W: World>(world: &W, key: &W::Key, segment: &Segment, now: Tick) -> Steered {
    if let Some(known) = established(world, key, segment, now) {
        return Steered {
            reason: Reason::Established,
            backend: known.id,
        };
    }
    match open(world, key, segment, now) {
        0 => otherwise(world, key, segment, now),
        id => Steered {
            reason: Reason::Opened,
            backend: id,
        },
    }
}

/// The backend of a flow that has an entry, and is established.
#[derive(Clone, Copy, Debug)]
pub struct Known<B> {
    /// The backend's entry.
    pub backend: B,
    /// Its state.
    pub state: BackendState,
    /// Its id.
    pub id: u32,
    /// Where the flow's entry is.
    pub place: Place,
}

/// The backend for a segment of an established flow that can be forwarded without VLAN tags, which is what most are. None if it is anything
/// else, or may be; then at most a refresh has been written.
#[inline(always)]
pub fn established<W: World>(
    world: &W,
    key: &W::Key,
    segment: &Segment,
    now: Tick,
) -> Option<Known<W::Backend>> {
    if !segment.continues() {
        return None;
    }
    let entry = table::glance(world, key)?;
    let next = life::refresh(entry.word, segment, now)?;
    if next != entry.word && !world.is_held() {
        // A lost refresh is no loss: who was faster has refreshed the entry, or ended or moved it.
        entry.replace(world, next);
    }
    let reference = entry.word.backend();
    let (backend, state) = world.backend(reference.id())?;
    if state.can_forward_plainly_for(reference.generation()) {
        Some(Known {
            backend,
            state,
            id: reference.id(),
            place: entry.place,
        })
    } else {
        None
    }
}

/// Steers a segment for which [`established`] has found no way.
#[inline(always)]
pub fn otherwise<W: World>(world: &W, key: &W::Key, segment: &Segment, now: Tick) -> Steered {
    let subject = Subject {
        key: *key,
        homes: world.homes(key),
        now,
    };
    let outcome = Visit {
        world,
        subject,
        segment: *segment,
    }
    .off_the_beaten_track();
    Steered {
        reason: outcome.reason(),
        backend: outcome.id(),
    }
}

/// The backend of a flow, by id, for what concerns the flow and does not come from its client, as an ICMP error; 0 is none. That of the
/// flow's entry (of two, the first that is found: nothing tells them apart here), which is noted, else where an unknown segment would go.
#[inline(always)]
pub fn concerned<W: World>(world: &W, key: &W::Key, now: Tick) -> u32 {
    let subject = Subject {
        key: *key,
        homes: world.homes(key),
        now,
    };
    if let Some(entry) = table::look(world, &subject, &Look::ANY) {
        world.note_entry(entry.place);
        let reference = entry.word.backend();
        return match world.backend(reference.id()) {
            Some((_, state)) if state.generation() == reference.generation() => reference.id(),
            _ => 0,
        };
    }
    let Some(slot) = world.slot(key, 0) else {
        return 0;
    };
    let previous = slot.handing_over(now);
    match world.backend(previous) {
        Some((_, state)) if previous != 0 && !matches!(state.serving(), Serving::None) => previous,
        _ => slot.current(),
    }
}

/// A reason (bits 0-7) and a backend id (8-31; 0 is none) in one word, the most that a BPF function can return by value.
#[derive(Clone, Copy)]
struct Outcome(u32);

impl Outcome {
    #[inline(always)]
    const fn new(reason: Reason, id: u32) -> Self {
        Self(reason as u32 | (id << 8))
    }

    #[inline(always)]
    const fn without_backend(reason: Reason) -> Self {
        Self::new(reason, 0)
    }

    #[inline(always)]
    const fn reason(self) -> Reason {
        // SAFETY: the low byte was a reason in `new`, and nothing changes it.
        unsafe { core::mem::transmute::<u8, Reason>(self.0 as u8) }
    }

    #[inline(always)]
    const fn id(self) -> u32 {
        self.0 >> 8
    }
}

/// A backend that was chosen.
#[derive(Clone, Copy)]
struct Choice {
    id: u32,
    state: BackendState,
}

impl Choice {
    #[inline(always)]
    const fn reference(&self) -> BackendRef {
        BackendRef::new(self.id, self.state.generation())
    }

    #[inline(always)]
    const fn forward(&self, reason: Reason) -> Outcome {
        Outcome::new(
            if self.state.is_resolved() {
                reason
            } else {
                Reason::Unresolved
            },
            self.id,
        )
    }
}

/// A new entry, and the backend that it names.
struct Plan {
    choice: Choice,
    word: Word,
    /// The entry of the same key that it replaces; if there is none, it is inserted.
    in_place_of: Entry,
    /// The live entry that it challenges, if there is one: it is marked first.
    beside: Entry,
    /// Why the packet will have been forwarded, if all goes well.
    reason: Reason,
}

/// What is to become of a packet: a new entry, or else an outcome that needs none.
///
/// Both are always there, if only as nothing. Of an enum the compiler would spill what the other variant has, and the verifier refuses to see
/// read what was never written.
struct Decision {
    plan: Plan,
    outcome: Outcome,
}

impl Decision {
    #[inline(always)]
    const fn plan(plan: Plan) -> Self {
        Self {
            plan,
            outcome: Outcome::without_backend(Reason::Opened),
        }
    }

    #[inline(always)]
    const fn over(outcome: Outcome) -> Self {
        Self {
            plan: Plan {
                choice: Choice {
                    id: 0,
                    state: BackendState(0),
                },
                word: Word::EMPTY,
                in_place_of: Entry::NONE,
                beside: Entry::NONE,
                reason: Reason::Opened,
            },
            outcome,
        }
    }

    /// Whether there is a new entry.
    #[inline(always)]
    const fn is_plan(&self) -> bool {
        self.plan.word.0 != Word::EMPTY.0
    }
}

/// Whether the key of an entry may have another one.
#[inline(always)]
fn is_half_of_a_pair(word: Word) -> bool {
    word.is(State::Challenger) || (word.is_live() && word.has(Word::CONTESTED))
}

impl<W: World> Visit<'_, W> {
    /// Everything for which [`established`] has found no way.
    #[inline(always)]
    fn off_the_beaten_track(&self) -> Outcome {
        let decision = self.consider();
        if decision.is_plan() {
            self.record(&decision.plan)
        } else {
            decision.outcome
        }
    }

    /// Decides what is to become of a packet.
    #[inline(always)]
    fn consider(&self) -> Decision {
        let is_syn = self.segment.has_any(SYN);
        if is_syn && !self.segment.opens() {
            // SYN with ACK, FIN or RST is no client's first segment, and nothing that a client in mid-stream sends.
            return Decision::over(Outcome::without_backend(Reason::BadFlags));
        }
        // The second look: an entry may have moved between the homes during the first.
        let mut look = Look::ANY;
        let mut found = self.look(&look);
        if !found.exists() && !is_syn {
            // And a third, for the first may have found an entry that it could not serve, and sent it here.
            found = self.look(&look);
        }
        if !found.exists() {
            return if is_syn {
                self.open(&self.new_flow())
            } else {
                self.adopt()
            };
        }
        let mut other = Entry::NONE;
        let mut looks = 0;
        while looks < 2 && is_half_of_a_pair(found.word) && !other.exists() {
            look = Look::twin_of(&found);
            other = self.look(&look);
            looks += 1;
        }
        if is_syn {
            match self.intent(&found, &other) {
                Ok(intent) => self.open(&intent),
                Err(outcome) => Decision::over(outcome),
            }
        } else {
            let challenger = if found.word.is_nascent() {
                found.place
            } else {
                other.place
            };
            let at = ((challenger.index as u64) << 32) | challenger.way as u64;
            let is_other =
                other.exists() && self.owner(found.word, other.word, at) == Owner::Second;
            Decision::over(self.known(if is_other { &other } else { &found }))
        }
    }

    #[inline(never)]
    fn look(&self, look: &Look) -> Entry {
        match table::look(self.world, &self.subject, look) {
            Some(entry) => entry,
            None => Entry::NONE,
        }
    }

    /// The backend of an entry, if it is still the one that the entry was made for.
    #[inline(always)]
    fn backend_of(&self, reference: BackendRef) -> Option<Choice> {
        let id = reference.id();
        let (_, state) = self.world.backend(id)?;
        // A reused id never inherits flows.
        if state.generation() == reference.generation() {
            Some(Choice { id, state })
        } else {
            None
        }
    }

    /// A backend by id, if it serves anything.
    #[inline(always)]
    fn serving(&self, id: u32) -> Option<Choice> {
        if id == 0 {
            return None;
        }
        match self.world.backend(id) {
            Some((_, state)) if !matches!(state.serving(), Serving::None) => {
                Some(Choice { id, state })
            }
            _ => None,
        }
    }
}
