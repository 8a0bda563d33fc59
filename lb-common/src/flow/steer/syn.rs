//! What a SYN is to become.

use super::{Choice, Decision, Outcome, Plan, Visit, World};
use crate::{
    backend::Serving,
    flow::{
        life::Owner,
        table::Entry,
        word::{BackendRef, State, Word},
    },
    maglev::PICK_ATTEMPTS,
    verdict::Reason,
};

/// What a SYN is to become.
pub(super) struct Intent {
    /// Embryo or challenger.
    state: State,
    /// The backend to keep, if it may be kept; id 0 is none.
    preferred: BackendRef,
    /// Whether it is the very SYN that made the entry.
    same_syn: bool,
    /// The entry of the same key that it replaces, if there is one.
    in_place_of: Entry,
    /// The live entry that it challenges, if there is one.
    beside: Entry,
    /// Why the packet will have been forwarded.
    reason: Reason,
}

impl Intent {
    /// A challenger of a live entry, to whose backend it goes if that takes new flows, so that a forged SYN changes nothing. The live
    /// entry keeps its backend, or whoever guesses four numbers could steal a flow.
    #[inline(always)]
    const fn challenge(live: &Entry, in_place_of: &Entry) -> Self {
        Self {
            state: State::Challenger,
            preferred: live.word.backend(),
            same_syn: false,
            in_place_of: *in_place_of,
            beside: *live,
            reason: Reason::Challenged,
        }
    }
}

impl<W: World> Visit<'_, W> {
    /// What a SYN means for a key that has no entry, or one that is past its linger.
    #[inline(always)]
    pub(super) fn new_flow(&self) -> Intent {
        Intent {
            state: State::Embryo,
            preferred: self.world.favoured(),
            same_syn: false,
            in_place_of: Entry::NONE,
            beside: Entry::NONE,
            reason: Reason::Opened,
        }
    }

    /// What a SYN means for a key that has an entry, or two: the same SYN again, a new connection on a port used before, or a
    /// forgery.
    #[inline(always)]
    pub(super) fn intent(&self, found: &Entry, other: &Entry) -> Result<Intent, Outcome> {
        if !other.exists() {
            return Ok(if found.word.is_nascent() {
                // A challenger stays one even if its live entry seems gone: that may only have been missed while it moved.
                self.again(found, found.word)
            } else if found.word.is_vacant(self.subject.now) {
                // Past its linger, and alone: a new flow in the same place.
                Intent {
                    in_place_of: *found,
                    ..self.new_flow()
                }
            } else {
                Intent::challenge(found, &Entry::NONE)
            });
        }
        if other.word.is_nascent() {
            return Ok(self.again(other, found.word));
        }
        if found.word.is_nascent() {
            return Ok(self.again(found, other.word));
        }
        // Two live entries. One that is over makes place for a challenger of the other; of two that are, the one that was quiet longer.
        match (
            self.gives_way(found.word, other.word),
            self.gives_way(other.word, found.word),
        ) {
            (true, true) if other.word.age(self.subject.now) > found.word.age(self.subject.now) => {
                Ok(Intent::challenge(found, other))
            }
            (true, _) => Ok(Intent::challenge(other, found)),
            (false, true) => Ok(Intent::challenge(found, other)),
            // A flow of a dead backend is over: there is nothing to protect.
            (false, false) if self.is_dead(found.word) => Ok(Intent::challenge(other, found)),
            (false, false) if self.is_dead(other.word) => Ok(Intent::challenge(found, other)),
            // Where addresses are translated the newer one has proven that its client is there, and so that it has let go of the older: that
            // client has vanished, and its entry would never end. And without an entry there is no translation.
            (false, false) if self.is_translated(found.word) => {
                Ok(if found.word.has(Word::SECOND) {
                    Intent::challenge(found, other)
                } else {
                    Intent::challenge(other, found)
                })
            }
            (false, false) => Err(self.share(found, other)),
        }
    }

    /// Whether an entry is closing, and a SYN can have its place beside `other`. A client that has sent its FIN may listen still: then it would have to
    /// go on at another backend.
    #[inline(always)]
    fn gives_way(&self, word: Word, other: Word) -> bool {
        word.is(State::Closing)
            && (word.has(Word::BY_RESET)
                || other.is(State::Closing)
                || word.backend() == other.backend()
                || word.is_vacant(self.subject.now))
    }

    /// Whether addresses are translated on the way to an entry's backend.
    #[inline(always)]
    fn is_translated(&self, word: Word) -> bool {
        W::TRANSLATES
            && self
                .backend_of(word.backend())
                .is_some_and(|choice| choice.state.translates())
    }

    /// Whether an entry's backend is gone or serves nothing.
    #[inline(always)]
    fn is_dead(&self, word: Word) -> bool {
        match self.backend_of(word.backend()) {
            Some(choice) => matches!(choice.state.serving(), Serving::None),
            None => true,
        }
    }

    /// A SYN again on a nascent entry. Another SYN than the entry's prefers the backend of `live`, the entry that it
    /// challenges if it is a challenger, so that forgeries change nothing.
    #[inline(always)]
    fn again(&self, nascent: &Entry, live: Word) -> Intent {
        let same_syn = nascent.word.isn() == self.segment.seq;
        Intent {
            state: nascent.word.state(),
            preferred: if same_syn {
                nascent.word.backend()
            } else {
                live.backend()
            },
            same_syn,
            in_place_of: *nascent,
            beside: Entry::NONE,
            reason: Reason::Reopened,
        }
    }

    /// A SYN on two live entries of which none is closing, as when a port is used a third time and nobody said goodbye: it goes
    /// where the packets after it will go, which is to the entry nearer in sequence numbers, if that one takes new flows.
    /// Nothing is written, so a forgery changes nothing.
    #[inline(always)]
    fn share(&self, one: &Entry, other: &Entry) -> Outcome {
        let nearer = match self.owner(one.word, other.word, 0) {
            Owner::First => one.word,
            Owner::Second => other.word,
        };
        match self.backend_of(nearer.backend()) {
            Some(shared) if matches!(shared.state.serving(), Serving::New) => {
                shared.forward(Reason::Unpinned)
            }
            _ => Outcome::without_backend(Reason::Contested),
        }
    }

    /// Chooses the backend of a SYN.
    #[inline(always)]
    pub(super) fn open(&self, intent: &Intent) -> Decision {
        if intent.preferred.id() != self.world.barred()
            && intent.preferred.id() != 0
            && let Some(kept) = self.backend_of(intent.preferred)
        {
            match kept.state.serving() {
                // The same SYN keeps its backend, unless that now serves none, and writes nothing.
                Serving::New | Serving::ExistingOnly if intent.same_syn => {
                    self.world.note_entry(intent.in_place_of.place);
                    return Decision::over(kept.forward(intent.reason));
                }
                // Another one keeps it only if it takes new flows.
                Serving::New if kept.state.is_resolved() => return self.plan(intent, kept),
                _ => {}
            }
        }
        match self.pick_new() {
            Ok(choice) => self.plan(intent, choice),
            Err(reason) => Decision::over(Outcome::without_backend(reason)),
        }
    }

    #[inline(always)]
    fn plan(&self, intent: &Intent, choice: Choice) -> Decision {
        let word = if intent.state as u8 == State::Challenger as u8 {
            Word::challenger(choice.reference(), self.segment.seq, self.subject.now)
        } else {
            Word::embryo(choice.reference(), self.segment.seq, self.subject.now)
        };
        Decision::plan(Plan {
            choice,
            word,
            in_place_of: intent.in_place_of,
            beside: intent.beside,
            reason: intent.reason,
        })
    }

    /// A backend that takes a new flow: the pick, or while a table lags behind the backends' states, that of another slot.
    #[inline(never)]
    fn pick_new(&self) -> Result<Choice, Reason> {
        let mut reason = Reason::NoBackend;
        let mut attempt = 0;
        while attempt < PICK_ATTEMPTS {
            let Some(slot) = self.world.slot(&self.subject.key, attempt) else {
                return Err(Reason::NoBackend);
            };
            let id = slot.current();
            if id != 0
                && id != self.world.barred()
                && let Some((_, state)) = self.world.backend(id)
                && state.serving() == Serving::New
            {
                if state.is_resolved() {
                    return Ok(Choice { id, state });
                }
                reason = Reason::Unresolved;
            }
            attempt += 1;
        }
        Err(reason)
    }
}
