//! What one packet of a service does to the flow table, and which backend it gets. The same code runs in the kernel, in tests
//! and in the model checker.
//!
//! The way of an established flow and all other ways are two functions, so that the first is short, and each has the small stack of
//! a BPF program for itself.

use super::{
    life::{self, Owner},
    open::open,
    table::{self, Claim, Entry, Inserted, Look, Memory, Place, Subject},
    word::{BackendRef, State, Word, epoch_of},
};
use crate::{
    backend::{BackendState, Serving},
    clock::Tick,
    maglev::{PICK_ATTEMPTS, Slot},
    tcp::{RST, SYN, Segment},
    verdict::Reason,
};

/// What steering asks of the world around one packet.
pub trait World: Memory {
    /// A backend's entry that has been found.
    type Backend: Copy;

    /// The slot of a flow in its service's table, at one of the [`PICK_ATTEMPTS`]. None if the service has no table.
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

/// What a SYN is to become.
struct Intent {
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
    /// Writes what a segment changes of its entry, if it changes anything. False if that had to be written and cannot be now.
    #[inline(always)]
    fn live_on(&self, entry: Entry) -> bool {
        let next = life::advance(entry.word, &self.segment, self.subject.now);
        if next == entry.word {
            return true;
        }
        if self.world.is_held() {
            // A later segment tells the same as this one, but for the one that answers the SYN, or that ends the flow.
            let ends = next.is(State::Closing) && !entry.word.is(State::Closing);
            return !entry.word.is_nascent() && !ends;
        }
        self.write(entry, next);
        true
    }

    /// Writes what a segment changes of its entry. A lost refresh is ignored; a lost change of state is tried once more.
    #[inline(always)]
    fn write(&self, entry: Entry, next: Word) {
        if next.state() == entry.word.state() {
            table::replace(self.world, entry.place, entry.word, next);
        } else {
            self.change_state(&entry);
        }
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

    /// What a SYN means for a key that has no entry, or one that is past its linger.
    #[inline(always)]
    fn new_flow(&self) -> Intent {
        Intent {
            state: State::Embryo,
            preferred: self.world.favoured(),
            same_syn: false,
            in_place_of: Entry::NONE,
            beside: Entry::NONE,
            reason: Reason::Opened,
        }
    }

    #[inline(never)]
    fn look(&self, look: &Look) -> Entry {
        match table::look(self.world, &self.subject, look) {
            Some(entry) => entry,
            None => Entry::NONE,
        }
    }

    /// A segment in mid-stream, or an end, of a flow that has an entry; also of one whose backend is dead, closes its flows, is unresolved or gone.
    #[inline(never)]
    fn known(&self, entry: &Entry) -> Outcome {
        match self.backend_of(entry.word.backend()) {
            Some(choice) => {
                let is_theirs = W::TRANSLATES && choice.state.translates();
                if !is_theirs && !self.live_on(*entry) {
                    return Outcome::without_backend(Reason::Held);
                }
                self.world.note_entry(entry.place);
                if !choice
                    .state
                    .closes(self.subject.homes[0], self.world.buckets())
                {
                    return choice.forward(Reason::Established);
                }
                match choice.state.serving() {
                    // Who ends a flow needs no end, and the backend is to hear of it.
                    Serving::New | Serving::ExistingOnly if self.segment.ends() => {
                        choice.forward(Reason::Established)
                    }
                    Serving::New | Serving::ExistingOnly => {
                        Outcome::new(Reason::DrainDeadline, choice.id)
                    }
                    // The client must learn of it, but nobody answers a RST with a RST.
                    Serving::None if self.segment.has(RST) => {
                        Outcome::new(Reason::ResetToDead, choice.id)
                    }
                    Serving::None => Outcome::new(Reason::BackendDead, choice.id),
                }
            }
            None => {
                // Ids are reused only when no entry names them: this one should not exist.
                table::replace(self.world, entry.place, entry.word, Word::EMPTY);
                Outcome::without_backend(Reason::StaleGeneration)
            }
        }
    }

    /// `challenger` is the place of the one that is, if one is: bucket (bits 32-63) and way. A function of its own, for its stack.
    #[inline(never)]
    fn owner(&self, one: Word, other: Word, challenger: u64) -> Owner {
        let nascent = if one.is_nascent() { one } else { other };
        let is_next = self.segment.seq == nascent.isn().wrapping_add(1);
        let place = Place {
            index: (challenger >> 32) as u32,
            way: challenger as u32,
        };
        let proves = nascent.is_nascent() && self.world.answers(place).unwrap_or(is_next);
        life::owner(one, other, &self.segment, self.subject.now, proves)
    }

    /// What a SYN means for a key that has an entry, or two: the same SYN again, a new connection on a port used before, or a
    /// forgery.
    #[inline(always)]
    fn intent(&self, found: &Entry, other: &Entry) -> Result<Intent, Outcome> {
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
    fn open(&self, intent: &Intent) -> Decision {
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

    /// Chooses the backend of a segment of a flow without an entry that is no SYN: state was lost, or another load balancer had
    /// it. It is the slot's previous backend while the slot is handed over, else the current one.
    #[inline(always)]
    fn adopt(&self) -> Decision {
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
        if !self.segment.continues() || is_unknown {
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

    /// Writes a new entry, and says where its packet goes: to the chosen backend if the entry stands, else where the packets after
    /// it will go.
    #[inline(always)]
    fn record(&self, plan: &Plan) -> Outcome {
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
