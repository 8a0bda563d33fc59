//! Writing a new entry, and where its packet goes if that fails.

use super::{Choice, Outcome, Plan, Visit, World};
use crate::{
    backend::Serving,
    flow::{
        table::{self, Claim, Entry, Inserted},
        word::Word,
    },
    verdict::Reason,
};

impl<W: World> Visit<'_, W> {
    /// Writes a new entry, and says where its packet goes: to the chosen backend if the entry stands, else where the packets after
    /// it will go.
    #[inline(always)]
    pub(super) fn record(&self, plan: &Plan) -> Outcome {
        let is_held = self.world.is_held();
        if is_held && (plan.beside.exists() || plan.in_place_of.exists()) {
            return Outcome::without_backend(Reason::Held);
        }
        // Marked first: an unmarked entry would hide its challenger, and the new connection's next packets would go astray.
        if plan.beside.exists() && !self.mark_contested(&plan.beside) {
            return Outcome::without_backend(Reason::Contested);
        }
        if plan.in_place_of.exists() {
            let entry = &plan.in_place_of;
            let written = table::replace(self.world, entry.place, entry.word, plan.word);
            if written {
                self.world.note_entry(entry.place);
            }
            return plan.choice.forward(if written {
                plan.reason
            } else {
                Reason::Unpinned
            });
        }
        let is_syn = plan.word.is_nascent();
        let claim = if is_syn {
            Claim::Any
        } else {
            Claim::VacantOnly
        };
        // A flow that cannot be recorded now is one without a place: it is adopted with a later packet.
        let inserted = if is_held {
            Inserted::Full
        } else {
            table::insert(self.world, &self.subject, plan.word, claim)
        };
        match inserted {
            Inserted::At(place) => {
                if !is_syn {
                    self.world.note_promotion(place);
                }
                self.world.note_entry(place);
                plan.choice.forward(plan.reason)
            }
            Inserted::Yielded(theirs) => match self.backend_of(theirs.backend()) {
                Some(theirs) if is_syn && matches!(theirs.state.serving(), Serving::New) => {
                    theirs.forward(Reason::Reopened)
                }
                Some(theirs) if !is_syn && !matches!(theirs.state.serving(), Serving::None) => {
                    theirs.forward(Reason::Established)
                }
                _ => plan.choice.forward(if is_syn {
                    Reason::Unpinned
                } else {
                    Reason::Unadopted
                }),
            },
            Inserted::Full if !is_syn => plan.choice.forward(Reason::Unadopted),
            Inserted::Full if !plan.beside.exists() => {
                match self.without_place(plan.choice, is_held) {
                    Some(choice) => choice.forward(Reason::Unpinned),
                    None => Outcome::without_backend(Reason::Held),
                }
            }
            Inserted::Full if plan.choice.reference() == plan.beside.word.backend() => {
                plan.choice.forward(Reason::Unpinned)
            }
            // Without an entry its next packets would go to the live entry's backend, which is another: let the client try
            // again.
            Inserted::Full => Outcome::without_backend(Reason::Contested),
        }
    }

    /// Where a new flow goes that found no place: its next packets will be unknown ones, which go to the slot's previous backend while it is handed
    /// over, else to the current one. That one takes the SYN too, if it takes new flows. If it does not, that is the end of a flow for which the table
    /// is full; but one that only cannot be recorded now is kept waiting for its client's next SYN: none. And so is one of a client that keeps another
    /// backend.
    #[inline(always)]
    fn without_place(&self, choice: Choice, is_held: bool) -> Option<Choice> {
        let Some(slot) = self.world.slot(&self.subject.key, 0) else {
            return Some(choice);
        };
        let next = match self.serving(slot.handing_over(self.subject.now)) {
            Some(previous) => Some(previous),
            None => self.serving(slot.current()),
        };
        let is_kept = choice.id == self.world.favoured().id();
        match next {
            Some(next) if is_held && is_kept && next.id != choice.id => None,
            Some(next)
                if matches!(next.state.serving(), Serving::New) && next.state.is_resolved() =>
            {
                Some(next)
            }
            Some(next) if is_held && next.id != choice.id => None,
            _ => Some(choice),
        }
    }

    #[inline(always)]
    fn mark_contested(&self, live: &Entry) -> bool {
        // The challenger will be the newer of the two.
        let mark = |word: Word| word.with(Word::CONTESTED).without(Word::SECOND);
        if mark(live.word) == live.word
            || table::replace(self.world, live.place, live.word, mark(live.word))
        {
            return true;
        }
        match table::reread(self.world, live.place, &self.subject.key) {
            Some(word) if word.is_live() => {
                table::replace(self.world, live.place, word, mark(word))
            }
            _ => false,
        }
    }
}
