//! What a segment in mid-stream, or an end, changes of the entry that it belongs to, and what becomes of it without one.

use super::{Decision, Outcome, Plan, Visit, World};
use crate::{
    backend::Serving,
    clock::Tick,
    flow::{
        life::{self, Owner},
        table::{self, Entry, Place},
        word::{State, Word, epoch_of},
    },
    tcp::{RST, Segment},
    verdict::Reason,
};

/// [`life::advance`], which is large. By value: the verifier of 7.2 loses sight of a stack that is two calls away.
#[inline(never)]
fn advance(word: Word, segment: Segment, now: Tick) -> Word {
    life::advance(word, &segment, now)
}

/// The id of today's pick; 0 if there is none.
#[inline(never)]
fn pick<W: World>(world: &W, key: W::Key) -> u32 {
    match world.slot(&key, 0) {
        Some(slot) => slot.current(),
        None => 0,
    }
}

impl<W: World> Visit<'_, W> {
    /// A segment in mid-stream, or an end, of a flow that has an entry; also of one whose backend is dead, closes its flows, is unresolved or gone.
    #[inline(never)]
    pub(super) fn known(&self, entry: &Entry) -> Outcome {
        match self.backend_of(entry.word.backend()) {
            Some(choice) => {
                let closes = choice
                    .state
                    .closes(self.subject.homes[0], self.world.buckets());
                let is_dead = closes && matches!(choice.state.serving(), Serving::None);
                let outcome = if is_dead {
                    // The client must learn of it, but nobody answers a RST with a RST.
                    let reason = if self.segment.has(RST) {
                        Reason::ResetToDead
                    } else {
                        Reason::BackendDead
                    };
                    Outcome::new(reason, choice.id)
                } else if closes && !self.segment.ends() {
                    // Who ends a flow needs no end, and the backend is to hear of it.
                    Outcome::new(Reason::DrainDeadline, choice.id)
                } else {
                    choice.forward(Reason::Established)
                };
                let is_lost_reset = !choice.state.is_resolved() && self.segment.has(RST);
                // What goes on to be translated changes the entry there.
                let is_theirs =
                    W::TRANSLATES && choice.state.translates() && !(is_dead || is_lost_reset);
                if !is_theirs && !self.live_on(entry, is_dead) {
                    return Outcome::without_backend(Reason::Held);
                }
                self.world.note_entry(entry.place);
                outcome
            }
            None => {
                // Ids are reused only when no entry names them: this one should not exist.
                table::replace(self.world, entry.place, entry.word, Word::EMPTY);
                Outcome::without_backend(Reason::StaleGeneration)
            }
        }
    }

    /// Writes what a segment changes of its entry, if it changes anything. False if that had to be written and cannot be now. A lost refresh is ignored, and so
    /// is a lost end of a flow whose backend is dead; a lost change of state is tried once more.
    #[inline(always)]
    fn live_on(&self, entry: &Entry, is_dead: bool) -> bool {
        let mut next = advance(entry.word, self.segment, self.subject.now);
        if is_dead {
            next = life::refused(next, &self.segment, self.subject.now);
        }
        if next == entry.word {
            return true;
        }
        if self.world.is_held() {
            // A later segment tells the same as this one, but for the one that answers the SYN, or that ends the flow.
            let ends = next.is(State::Closing) && !entry.word.is(State::Closing);
            return !entry.word.is_nascent() && !ends;
        }
        if is_dead || next.state() == entry.word.state() {
            table::replace(self.world, entry.place, entry.word, next);
        } else {
            self.change_state(entry);
        }
        true
    }

    #[inline(always)]
    fn change_state(&self, entry: &Entry) {
        // Whether an entry that closes is an exception depends on it.
        let pick = if self.segment.ends() {
            pick(self.world, self.subject.key)
        } else {
            0
        };
        let mut seen = entry.word;
        let mut attempt = 0;
        while attempt < 2 {
            let mut next = advance(seen, self.segment, self.subject.now);
            if next == seen {
                return;
            }
            let closes = next.is(State::Closing) && !seen.is(State::Closing);
            if closes && pick != seen.backend().id() {
                next = next.with(Word::EXCEPTION);
            }
            if table::replace(self.world, entry.place, seen, next) {
                if seen.is_nascent() {
                    self.world.note_promotion(entry.place);
                }
                return;
            }
            match table::reread(self.world, entry.place, &self.subject.key) {
                Some(word) => seen = word,
                None => return,
            }
            attempt += 1;
        }
    }

    /// `challenger` is the place of the one that is, if one is: bucket (bits 32-63) and way. A function of its own, for its stack.
    #[inline(never)]
    pub(super) fn owner(&self, one: Word, other: Word, challenger: u64) -> Owner {
        let nascent = if one.is_nascent() { one } else { other };
        let is_next = self.segment.seq == nascent.isn().wrapping_add(1);
        let place = Place {
            index: (challenger >> 32) as u32,
            way: challenger as u32,
        };
        let proves = nascent.is_nascent() && self.world.answers(place).unwrap_or(is_next);
        life::owner(one, other, &self.segment, self.subject.now, proves)
    }

    /// Chooses the backend of a segment of a flow without an entry that is no SYN: state was lost, or another load balancer had
    /// it. It is the slot's previous backend while the slot is handed over, else the current one.
    #[inline(always)]
    pub(super) fn adopt(&self) -> Decision {
        let passed = self.world.passed();
        if passed.is_cut_off() {
            return Decision::over(Outcome::without_backend(Reason::CutOff));
        }
        let Some(slot) = self.world.slot(&self.subject.key, 0) else {
            return Decision::over(self.refuse());
        };
        let choice = match self.serving(slot.handing_over(self.subject.now)) {
            Some(previous) => previous,
            None => match self.serving(slot.current()) {
                Some(current) => current,
                None => return Decision::over(self.refuse()),
            },
        };
        // What nobody knows the SNAT port of is nothing to the backend.
        let is_unknown = W::TRANSLATES && choice.state.is_nat();
        // It may be of an established flow whose entry is lost: its client is either served or told.
        if !self.segment.continues() || is_unknown || passed.is_over_limit() {
            return Decision::over(choice.forward(Reason::Stray));
        }
        if !choice.state.is_resolved() || !self.world.may_adopt() {
            return Decision::over(choice.forward(Reason::Unadopted));
        }
        let epoch = epoch_of(self.segment.seq);
        let word = Word::live(
            State::Young,
            choice.reference(),
            epoch,
            self.subject.now,
            Word::FOREIGN,
        );
        Decision::plan(Plan {
            choice,
            word,
            in_place_of: Entry::NONE,
            beside: Entry::NONE,
            reason: Reason::Adopted,
        })
    }

    /// What becomes of a mid-stream segment that no backend can take: a RST, but never to a RST.
    #[inline(always)]
    fn refuse(&self) -> Outcome {
        let answerable =
            !self.segment.has(RST) && (self.segment.continues() || self.segment.ends());
        Outcome::without_backend(if answerable {
            Reason::NoBackendForFlow
        } else {
            Reason::NoBackend
        })
    }
}
