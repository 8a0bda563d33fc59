//! What one packet of a service does to the flow table, and which backend it gets. The same code runs in the kernel, in tests
//! and in the model checker.

use super::{
    life::{self, Owner},
    table::{self, Claim, Entry, Inserted, Memory},
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

    /// The slot of this packet's flow in its service's table, at one of the [`PICK_ATTEMPTS`]. None if the service has no table.
    fn slot(&self, attempt: u32) -> Option<Slot>;
    /// A backend's entry and its state, by id. None if there is no such id.
    fn backend(&self, id: u32) -> Option<(Self::Backend, BackendState)>;
    /// Takes one permission to adopt an unknown flow from a bounded rate.
    fn may_adopt(&self) -> bool;
    /// Notes, for people, that the entry at `place` was promoted or adopted now.
    fn note_promotion(&self, place: table::Place<Self::Bucket>);
}

/// The outcome for one packet: why, and the backend if it is to be forwarded.
#[derive(Clone, Copy, Debug)]
pub struct Steered<B> {
    /// The reason, which carries the verdict.
    pub reason: Reason,
    /// Where to, with the backend's state: for verdicts that forward.
    pub backend: Option<(B, BackendState, u32)>,
}

impl<B> Steered<B> {
    #[inline(always)]
    const fn without_backend(reason: Reason) -> Self {
        Self {
            reason,
            backend: None,
        }
    }
}

/// A backend that was chosen, with what is known of it.
#[derive(Clone, Copy)]
struct Choice<B> {
    handle: B,
    state: BackendState,
    id: u32,
}

impl<B: Copy> Choice<B> {
    #[inline(always)]
    const fn reference(&self) -> BackendRef {
        BackendRef::new(self.id, self.state.generation())
    }

    #[inline(always)]
    fn forward(self, reason: Reason) -> Steered<B> {
        if self.state.is_resolved() {
            Steered {
                reason,
                backend: Some((self.handle, self.state, self.id)),
            }
        } else {
            Steered {
                reason: Reason::Unresolved,
                backend: Some((self.handle, self.state, self.id)),
            }
        }
    }
}

/// Steers one TCP segment of flow `key`.
#[inline(always)]
pub fn steer<W: World>(
    world: &W,
    key: &W::Key,
    segment: &Segment,
    now: Tick,
) -> Steered<W::Backend> {
    let homes = world.homes(key);
    let found = table::find(world, homes, key);
    if segment.has_any(SYN) {
        if !segment.opens() {
            // SYN with ACK, FIN or RST is no client's first segment, and nothing that a client in mid-stream sends.
            return Steered::without_backend(Reason::BadFlags);
        }
        return match found {
            None => open(world, homes, key, segment, now),
            Some(entry) => open_again(world, homes, key, segment, now, entry),
        };
    }
    match found {
        None => unknown(world, homes, key, segment, now),
        Some(entry) => known(world, homes, key, segment, now, entry),
    }
}

/// The backend of an entry, if it is still the one that the entry was made for.
#[inline(always)]
fn backend_of<W: World>(world: &W, reference: BackendRef) -> Option<Choice<W::Backend>> {
    let id = reference.id();
    let (handle, state) = world.backend(id)?;
    // A reused id never inherits flows.
    if state.generation() == reference.generation() {
        Some(Choice { handle, state, id })
    } else {
        None
    }
}

/// A backend that takes a new flow: the pick, or while a table lags behind the backends' states, that of another slot.
#[inline(always)]
fn pick_new<W: World>(world: &W) -> Result<Choice<W::Backend>, Reason> {
    let mut reason = Reason::NoBackend;
    let mut attempt = 0;
    while attempt < PICK_ATTEMPTS {
        let Some(slot) = world.slot(attempt) else {
            return Err(Reason::NoBackend);
        };
        let id = slot.current();
        if id != 0
            && let Some((handle, state)) = world.backend(id)
            && state.serving() == Serving::New
        {
            if state.is_resolved() {
                return Ok(Choice { handle, state, id });
            }
            reason = Reason::Unresolved;
        }
        attempt += 1;
    }
    Err(reason)
}

/// A SYN of a flow without an entry.
#[inline(always)]
fn open<W: World>(
    world: &W,
    homes: [u32; 2],
    key: &W::Key,
    segment: &Segment,
    now: Tick,
) -> Steered<W::Backend> {
    let choice = match pick_new(world) {
        Ok(choice) => choice,
        Err(reason) => return Steered::without_backend(reason),
    };
    let embryo = Word::embryo(choice.reference(), segment.seq, now);
    match table::insert(world, homes, key, embryo, Claim::Any, now) {
        Inserted::At(_) => choice.forward(Reason::Opened),
        Inserted::Full => without_place(world, choice, now).forward(Reason::Unpinned),
        // Another CPU had the same SYN, or its twin: go where its entry goes.
        Inserted::Yielded(theirs) => match backend_of(world, theirs.backend()) {
            Some(theirs) if theirs.state.serving() == Serving::New => {
                theirs.forward(Reason::Reopened)
            }
            _ => choice.forward(Reason::Unpinned),
        },
    }
}

/// Where a new flow goes that found no place: its next packets will be unknown ones, and while its slot is handed over those go to
/// the slot's previous backend. That one takes the SYN too, if it takes new flows.
#[inline(always)]
fn without_place<W: World>(world: &W, choice: Choice<W::Backend>, now: Tick) -> Choice<W::Backend> {
    let Some(slot) = world.slot(0) else {
        return choice;
    };
    let id = slot.handing_over(now);
    match world.backend(id) {
        Some((handle, state))
            if id != 0 && state.serving() == Serving::New && state.is_resolved() =>
        {
            Choice { handle, state, id }
        }
        _ => choice,
    }
}

/// A SYN of a flow that has an entry: the same SYN again, a new connection on a port used before, or a forgery.
#[inline(always)]
fn open_again<W: World>(
    world: &W,
    homes: [u32; 2],
    key: &W::Key,
    segment: &Segment,
    now: Tick,
    entry: Entry<W::Bucket>,
) -> Steered<W::Backend> {
    if entry.word.is(State::Embryo) {
        return renew(
            world,
            segment,
            now,
            entry,
            entry.word.backend(),
            State::Embryo,
        );
    }
    // Even an entry past its linger may have a live twin, which an embryo found before it would hide.
    let other = if entry.word.is(State::Challenger) || entry.word.has(Word::CONTESTED) {
        table::find_other(world, homes, key, entry)
    } else {
        None
    };
    match other {
        Some(other) if other.word.is_nascent() => {
            challenge_again(world, segment, now, entry, other)
        }
        Some(other) if entry.word.is_nascent() => {
            challenge_again(world, segment, now, other, entry)
        }
        Some(other) => {
            // Two live entries. One that is closing may go; of two, the one that has been quiet longer.
            let entry_goes = entry.word.is(State::Closing)
                && !(other.word.is(State::Closing) && other.word.age(now) > entry.word.age(now));
            if entry_goes {
                supersede_second(world, segment, now, other, entry)
            } else if other.word.is(State::Closing) {
                supersede_second(world, segment, now, entry, other)
            } else {
                share(world, segment, entry, other)
            }
        }
        // A challenger whose live entry is gone is an embryo by another name.
        None if entry.word.is_nascent() => renew(
            world,
            segment,
            now,
            entry,
            entry.word.backend(),
            State::Challenger,
        ),
        None if entry.word.is_vacant(now) => supersede(world, segment, now, entry, State::Embryo),
        None => challenge(world, homes, key, segment, now, entry),
    }
}

/// A SYN again on a nascent entry. The same SYN keeps its backend, unless that now serves none; another one keeps it only if
/// it takes new flows. `preferred` is that backend.
#[inline(always)]
fn renew<W: World>(
    world: &W,
    segment: &Segment,
    now: Tick,
    entry: Entry<W::Bucket>,
    preferred: BackendRef,
    state: State,
) -> Steered<W::Backend> {
    let same_syn = entry.word.isn() == segment.seq;
    let kept = match backend_of(world, preferred) {
        Some(kept) => match kept.state.serving() {
            Serving::New => Some(kept),
            Serving::ExistingOnly if same_syn => Some(kept),
            _ => None,
        },
        None => None,
    };
    let choice = match kept {
        Some(kept) if same_syn && kept.reference() == entry.word.backend() => {
            return kept.forward(Reason::Reopened);
        }
        Some(kept) => kept,
        None => match pick_new(world) {
            Ok(choice) => choice,
            Err(reason) => return Steered::without_backend(reason),
        },
    };
    write_nascent(world, segment, now, entry, choice, state, Reason::Reopened)
}

/// Writes a nascent entry in the place of `entry`, whose key is the same.
#[inline(always)]
fn write_nascent<W: World>(
    world: &W,
    segment: &Segment,
    now: Tick,
    entry: Entry<W::Bucket>,
    choice: Choice<W::Backend>,
    state: State,
    reason: Reason,
) -> Steered<W::Backend> {
    let word = match state {
        State::Challenger => Word::challenger(choice.reference(), segment.seq, now),
        _ => Word::embryo(choice.reference(), segment.seq, now),
    };
    if table::replace(world, entry.place, entry.word, word) {
        choice.forward(reason)
    } else {
        choice.forward(Reason::Unpinned)
    }
}

/// A SYN on an entry past its linger: a new flow in the same place.
#[inline(always)]
fn supersede<W: World>(
    world: &W,
    segment: &Segment,
    now: Tick,
    entry: Entry<W::Bucket>,
    state: State,
) -> Steered<W::Backend> {
    match pick_new(world) {
        Ok(choice) => write_nascent(world, segment, now, entry, choice, state, Reason::Opened),
        Err(reason) => Steered::without_backend(reason),
    }
}

/// A SYN on two live entries, of which `goes` is closing: it makes place for a challenger of `stays`.
#[inline(always)]
fn supersede_second<W: World>(
    world: &W,
    segment: &Segment,
    now: Tick,
    stays: Entry<W::Bucket>,
    goes: Entry<W::Bucket>,
) -> Steered<W::Backend> {
    let choice = match pick_for_challenger(world, stays.word) {
        Ok(choice) => choice,
        Err(reason) => return Steered::without_backend(reason),
    };
    // The one that stays is the older from now on.
    let marked = stays.word.with(Word::CONTESTED).without(Word::SECOND);
    if marked != stays.word && !table::replace(world, stays.place, stays.word, marked) {
        return Steered::without_backend(Reason::Contested);
    }
    let challenged = Reason::Challenged;
    write_nascent(
        world,
        segment,
        now,
        goes,
        choice,
        State::Challenger,
        challenged,
    )
}

/// A SYN on two live entries of which none is closing, as when a port is used a third time and nobody said goodbye: it goes
/// where the packets after it will go, which is to the entry nearer in sequence numbers, if that one takes new flows. Nothing
/// is written, so a forgery changes nothing.
#[inline(always)]
fn share<W: World>(
    world: &W,
    segment: &Segment,
    one: Entry<W::Bucket>,
    other: Entry<W::Bucket>,
) -> Steered<W::Backend> {
    let nearer = match life::owner(one.word, other.word, segment) {
        Owner::First => one.word,
        Owner::Second => other.word,
    };
    match backend_of(world, nearer.backend()) {
        Some(shared) if shared.state.serving() == Serving::New => shared.forward(Reason::Unpinned),
        _ => Steered::without_backend(Reason::Contested),
    }
}

/// A challenger goes to the live entry's backend if that takes new flows, so that a forged SYN changes nothing.
#[inline(always)]
fn pick_for_challenger<W: World>(world: &W, live: Word) -> Result<Choice<W::Backend>, Reason> {
    match backend_of(world, live.backend()) {
        Some(kept) if kept.state.serving() == Serving::New && kept.state.is_resolved() => Ok(kept),
        _ => pick_new(world),
    }
}

/// A SYN on a live entry that has a challenger already.
#[inline(always)]
fn challenge_again<W: World>(
    world: &W,
    segment: &Segment,
    now: Tick,
    live: Entry<W::Bucket>,
    challenger: Entry<W::Bucket>,
) -> Steered<W::Backend> {
    let preferred = if challenger.word.isn() == segment.seq {
        challenger.word
    } else {
        live.word
    };
    renew(
        world,
        segment,
        now,
        challenger,
        preferred.backend(),
        State::Challenger,
    )
}

/// A SYN on a live entry: marks it contested, then inserts a challenger. Its backend stays what it is, or whoever guesses
/// four numbers could steal a flow.
#[inline(always)]
fn challenge<W: World>(
    world: &W,
    homes: [u32; 2],
    key: &W::Key,
    segment: &Segment,
    now: Tick,
    live: Entry<W::Bucket>,
) -> Steered<W::Backend> {
    let choice = match pick_for_challenger(world, live.word) {
        Ok(choice) => choice,
        Err(reason) => return Steered::without_backend(reason),
    };
    // Marked first: an unmarked entry would hide its challenger, and the new connection's next packets would go astray.
    if !mark_contested(world, key, live) {
        return Steered::without_backend(Reason::Contested);
    }
    let challenger = Word::challenger(choice.reference(), segment.seq, now);
    match table::insert(world, homes, key, challenger, Claim::Any, now) {
        Inserted::At(_) => choice.forward(Reason::Challenged),
        Inserted::Full | Inserted::Yielded(_) if choice.reference() == live.word.backend() => {
            choice.forward(Reason::Unpinned)
        }
        // Without an entry its next packets would go to the live entry's backend, which is another: let the client try again.
        Inserted::Full | Inserted::Yielded(_) => Steered::without_backend(Reason::Contested),
    }
}

#[inline(always)]
fn mark_contested<W: World>(world: &W, key: &W::Key, live: Entry<W::Bucket>) -> bool {
    let mark = |word: Word| word.with(Word::CONTESTED).without(Word::SECOND);
    if mark(live.word) == live.word || table::replace(world, live.place, live.word, mark(live.word))
    {
        return true;
    }
    match table::reread(world, live.place, key) {
        Some(word) if word.is_live() => table::replace(world, live.place, word, mark(word)),
        _ => false,
    }
}

/// A segment in mid-stream, or an end, of a flow that has an entry.
#[inline(always)]
fn known<W: World>(
    world: &W,
    homes: [u32; 2],
    key: &W::Key,
    segment: &Segment,
    now: Tick,
    found: Entry<W::Bucket>,
) -> Steered<W::Backend> {
    let mut entry = found;
    if (found.word.is(State::Challenger)
        || (found.word.is_live() && found.word.has(Word::CONTESTED)))
        && let Some(other) = table::find_other(world, homes, key, found)
        && life::owner(found.word, other.word, segment) == Owner::Second
    {
        entry = other;
    }
    let Some(choice) = backend_of(world, entry.word.backend()) else {
        // Ids are reused only when no entry names them: this one should not exist.
        table::replace(world, entry.place, entry.word, Word::EMPTY);
        return Steered::without_backend(Reason::StaleGeneration);
    };
    live_through(world, key, segment, now, entry);
    match choice.state.serving() {
        Serving::New | Serving::ExistingOnly => choice.forward(Reason::Established),
        // The client must learn of it, but nobody answers a RST with a RST.
        Serving::None if segment.has(RST) => Steered {
            reason: Reason::ResetToDead,
            backend: Some((choice.handle, choice.state, choice.id)),
        },
        Serving::None => Steered {
            reason: Reason::BackendDead,
            backend: Some((choice.handle, choice.state, choice.id)),
        },
    }
}

/// Writes what a segment changes of its entry. A lost refresh is ignored; a lost change of state is tried once more.
#[inline(always)]
fn live_through<W: World>(
    world: &W,
    key: &W::Key,
    segment: &Segment,
    now: Tick,
    entry: Entry<W::Bucket>,
) {
    let next = step(world, entry.word, segment, now);
    if next == entry.word {
        return;
    }
    let promotes = entry.word.is_nascent();
    if table::replace(world, entry.place, entry.word, next) {
        if promotes {
            world.note_promotion(entry.place);
        }
        return;
    }
    if next.state() == entry.word.state() {
        return;
    }
    if let Some(word) = table::reread(world, entry.place, key) {
        let next = step(world, word, segment, now);
        if next != word {
            table::replace(world, entry.place, word, next);
        }
    }
}

/// [`life::advance`], and whether an entry that closes is an exception.
#[inline(always)]
fn step<W: World>(world: &W, word: Word, segment: &Segment, now: Tick) -> Word {
    let next = life::advance(word, segment, now);
    if next.is(State::Closing) && !word.is(State::Closing) {
        let pick = match world.slot(0) {
            Some(slot) => slot.current(),
            None => 0,
        };
        if pick != word.backend().id() {
            return next.with(Word::EXCEPTION);
        }
    }
    next
}

/// A segment of a flow without an entry that is no SYN: state was lost, or another load balancer had it.
#[inline(always)]
fn unknown<W: World>(
    world: &W,
    homes: [u32; 2],
    key: &W::Key,
    segment: &Segment,
    now: Tick,
) -> Steered<W::Backend> {
    let Some(slot) = world.slot(0) else {
        return Steered::without_backend(refusal(segment));
    };
    let serves = |id: u32| match world.backend(id) {
        Some((handle, state)) if id != 0 && state.serving() != Serving::None => {
            Some(Choice { handle, state, id })
        }
        _ => None,
    };
    let choice = match serves(slot.handing_over(now)) {
        Some(previous) => previous,
        None => match serves(slot.current()) {
            Some(current) => current,
            None => return Steered::without_backend(refusal(segment)),
        },
    };
    if !segment.continues() {
        return choice.forward(Reason::Stray);
    }
    if !choice.state.is_resolved() || !world.may_adopt() {
        return choice.forward(Reason::Unadopted);
    }
    let young = Word::live(
        State::Young,
        choice.reference(),
        epoch_of(segment.seq),
        now,
        Word::FOREIGN,
    );
    match table::insert(world, homes, key, young, Claim::VacantOnly, now) {
        Inserted::At(place) => {
            world.note_promotion(place);
            choice.forward(Reason::Adopted)
        }
        Inserted::Full => choice.forward(Reason::Unadopted),
        // It is known after all: by another CPU, or for long, and was moving when it was looked for.
        Inserted::Yielded(theirs) => match backend_of(world, theirs.backend()) {
            Some(theirs) if theirs.state.serving() != Serving::None => {
                theirs.forward(Reason::Established)
            }
            _ => choice.forward(Reason::Unadopted),
        },
    }
}

/// What becomes of a mid-stream segment that no backend can take: a RST, but never to a RST.
#[inline(always)]
const fn refusal(segment: &Segment) -> Reason {
    if segment.continues() || (segment.ends() && !segment.has(RST)) {
        Reason::NoBackendForFlow
    } else {
        Reason::NoBackend
    }
}
