//! What the sweep does to one entry. Pure: word in, action out.
//!
//! The sweep runs beside the data path and may be stopped between any two instructions, so an action is one
//! compare-and-exchange of the word that was judged: whatever happened to the entry meanwhile makes it fail.

use lb_common::{
    clock::{Tick, ticks_proving},
    flow::word::{EMBRYO_TICK_BITS, EMBRYO_TICKS, State, TICK_BITS, Word, YOUNG_TICKS},
};

/// From this age on an entry is idle, in ticks: 10 min.
pub const IDLE_TICKS: u32 = ticks_proving(600);
/// From this age on a pin that can be recomputed may be reclaimed, in ticks: 24 h.
pub const RECLAIM_PIN_TICKS: u32 = ticks_proving(24 * 3600);
/// From this age on a young entry that can be recomputed may be reclaimed, in ticks. Its tick is the moment of its promotion; a
/// packet later than [`YOUNG_TICKS`] after that would have made it a pin, so it has been idle for 10 min at least.
pub const RECLAIM_YOUNG_TICKS: u32 = YOUNG_TICKS + IDLE_TICKS;
/// The age that the clamp leaves an entry with, in ticks: 26 days, half of what its bits can tell.
const CLAMPED_TICKS: u32 = 1 << (TICK_BITS - 1);
/// The age from which an entry is clamped. Some hours above [`CLAMPED_TICKS`], so that an idle flow is written a few times a day and not
/// with each tick.
const CLAMP_FROM_TICKS: u32 = CLAMPED_TICKS + (1 << 12);

/// From this age on an entry of a backend whose flows are all closed goes, in ticks: 2 h. As long after the last of them was closed, since whoever
/// was idle then is to be told with its next packet.
pub const CLOSED_TICKS: u32 = ticks_proving(2 * 3600);

/// What today's tables say about a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Today {
    /// The pick: the backend that its service's table names; 0 is none.
    pub pick: u32,
    /// The backend that an unknown mid-stream packet of the flow would go to at this moment; 0 is none. It is the slot's previous
    /// backend while that is being handed over.
    pub recomputed: u32,
}

impl Today {
    /// Whether the flow would stay where it is if its entry were gone, now and when the handover is over.
    pub fn keeps(self, word: Word) -> bool {
        let id = word.backend().id();
        id != 0 && self.pick == id && self.recomputed == id
    }
}

/// What may be reclaimed, for want of room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// Pins that can be recomputed and are at least this old, in ticks: never less than [`RECLAIM_PIN_TICKS`]. None: no pins.
    pub pins_from: Option<u32>,
}

/// Why an entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// A SYN that nobody followed.
    Expired,
    /// Closed, and past its linger.
    Ended,
    /// A state that nobody writes.
    Invalid,
    /// For want of room; its flow can be recomputed.
    Reclaimed,
    /// All flows of its backend were closed at a deadline, and it has sent nothing since for long.
    Closed,
    /// Its backend is dead, and its flow is to go where today's table sends it.
    Rehashed,
}

/// What is to be done with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Keep,
    /// The entry is emptied.
    Delete(Gone),
    /// Closing: it turned out to be an exception, which lingers longer.
    MarkException(Word),
    /// Its age is kept from wrapping.
    Clamp(Word),
}

impl Action {
    /// The word that the entry is to have; none if it stays as it is.
    pub fn word(self) -> Option<Word> {
        match self {
            Self::Keep => None,
            Self::Delete(_) => Some(Word::EMPTY),
            Self::MarkException(word) | Self::Clamp(word) => Some(word),
        }
    }
}

/// Age of a live entry, in ticks. One that was refreshed since `now` was read is of age 0, and not as old as can be.
pub fn age(word: Word, now: Tick) -> u32 {
    just_now(word.age(now), TICK_BITS)
}

/// Modular ages near the wrap are those of entries a little younger than the clock that was read.
pub(crate) fn just_now(age: u32, bits: u32) -> u32 {
    const AHEAD: u32 = 2;
    if age >= (1 << bits) - AHEAD { 0 } else { age }
}

/// Whether a young entry or a pin has been seen within 10 min.
///
/// A young entry may have been seen until [`YOUNG_TICKS`] after its promotion without a trace; it counts as active until 10 min after its
/// promotion.
pub fn is_active(word: Word, now: Tick) -> bool {
    age(word, now) < IDLE_TICKS
}

/// Judges an entry. `now` is read after the word. `today` is asked only where it matters, since it costs a look into the tables; so is
/// `closed`, since when all flows of its backend are closed.
pub fn judge(
    word: Word,
    now: Tick,
    pressure: Option<Pressure>,
    today: impl FnOnce() -> Today,
    closed: impl FnOnce() -> Option<Tick>,
) -> Action {
    if word.is_open() && is_closed(word, now, closed) {
        return Action::Delete(Gone::Closed);
    }
    match word.state() {
        State::Empty | State::Busy => Action::Keep,
        State::Invalid => Action::Delete(Gone::Invalid),
        State::Embryo | State::Challenger => {
            if just_now(word.nascent_age(now), EMBRYO_TICK_BITS) >= EMBRYO_TICKS {
                Action::Delete(Gone::Expired)
            } else {
                Action::Keep
            }
        }
        State::Closing => judge_closing(word, now, today),
        State::Young => {
            if pressure.is_some() && age(word, now) >= RECLAIM_YOUNG_TICKS && today().keeps(word) {
                Action::Delete(Gone::Reclaimed)
            } else {
                clamp(word, now)
            }
        }
        State::Pin => {
            let from = pressure
                .and_then(|pressure| pressure.pins_from)
                .map(|from| from.max(RECLAIM_PIN_TICKS));
            if from.is_some_and(|from| age(word, now) >= from) && today().keeps(word) {
                Action::Delete(Gone::Reclaimed)
            } else {
                clamp(word, now)
            }
        }
    }
}

/// Whether nobody will miss it: closed for long, and silent for as long.
fn is_closed(word: Word, now: Tick, closed: impl FnOnce() -> Option<Tick>) -> bool {
    age(word, now) >= CLOSED_TICKS
        && closed().is_some_and(|since| {
            let ticks = now.0.wrapping_sub(since.0);
            // A moment that is still to come, since it was read after `now` was, is none so long ago.
            (CLOSED_TICKS..u32::MAX / 2).contains(&ticks)
        })
}

fn judge_closing(word: Word, now: Tick, today: impl FnOnce() -> Today) -> Action {
    let marked = if !word.has(Word::EXCEPTION) && today().pick != word.backend().id() {
        word.with(Word::EXCEPTION)
    } else {
        word
    };
    if age(word, now) >= marked.linger() {
        Action::Delete(Gone::Ended)
    } else if marked != word {
        Action::MarkException(marked)
    } else {
        Action::Keep
    }
}

fn clamp(word: Word, now: Tick) -> Action {
    if age(word, now) >= CLAMP_FROM_TICKS {
        Action::Clamp(word.with_tick(Tick(now.0.wrapping_sub(CLAMPED_TICKS))))
    } else {
        Action::Keep
    }
}

/// Whether of two entries of one key, neither contested, the first is the one that goes: the one seen longer ago, and of equals the
/// second, since lookups meet the first before it.
pub fn first_goes(first: Word, second: Word, now: Tick) -> bool {
    age(first, now) > age(second, now)
}

/// Whether an entry may be one of a needless pair: live, and not one of the two that a contested key has.
pub fn may_be_duplicate(word: Word) -> bool {
    word.is_live() && !word.has(Word::CONTESTED | Word::SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::flow::word::{
        BackendRef, LINGER_EXCEPTION_TICKS, LINGER_FIN_TICKS, LINGER_RST_TICKS,
    };
    use proptest::prelude::*;

    const NOW: Tick = Tick(3_000_000);
    const BACKEND: BackendRef = BackendRef::new(7, 1);
    const STAYS: Today = Today {
        pick: 7,
        recomputed: 7,
    };
    const MOVES: Today = Today {
        pick: 8,
        recomputed: 8,
    };
    const HARD: Option<Pressure> = Some(Pressure { pins_from: Some(0) });

    fn aged(state: State, age: u32, flags: u64) -> Word {
        Word::live(state, BACKEND, 5, Tick(NOW.0 - age), flags)
    }

    fn judged(word: Word, pressure: Option<Pressure>, today: Today) -> Action {
        judge(word, NOW, pressure, || today, || None)
    }

    #[test]
    fn nascent_entries_die_at_their_age_and_not_before() {
        for make in [Word::embryo, Word::challenger] {
            let at = |age| judged(make(BACKEND, 1, Tick(NOW.0 - age)), None, STAYS);
            assert_eq!(at(EMBRYO_TICKS - 1), Action::Keep);
            assert_eq!(at(EMBRYO_TICKS), Action::Delete(Gone::Expired));
            assert_eq!(at(61), Action::Delete(Gone::Expired));
        }
    }

    #[test]
    fn what_was_written_since_the_clock_was_read_is_new_and_not_ancient() {
        for ahead in [1, 2] {
            let later = NOW.later(ahead);
            for word in [
                Word::embryo(BACKEND, 1, later),
                Word::live(State::Young, BACKEND, 1, later, 0),
                Word::live(State::Pin, BACKEND, 1, later, 0),
                Word::live(State::Closing, BACKEND, 1, later, 0),
            ] {
                assert_eq!(judged(word, HARD, STAYS), Action::Keep, "{word:?}");
            }
        }
    }

    #[test]
    fn closing_entries_go_when_their_linger_is_over() {
        for (flags, linger) in [
            (0, LINGER_FIN_TICKS),
            (Word::EXCEPTION, LINGER_EXCEPTION_TICKS),
            (Word::BY_RESET, LINGER_RST_TICKS),
        ] {
            assert_eq!(
                judged(aged(State::Closing, linger - 1, flags), None, STAYS),
                Action::Keep
            );
            assert_eq!(
                judged(aged(State::Closing, linger, flags), None, STAYS),
                Action::Delete(Gone::Ended)
            );
        }
    }

    #[test]
    fn a_closing_entry_whose_pick_moved_becomes_an_exception_and_lingers_longer() {
        let word = aged(State::Closing, LINGER_FIN_TICKS, 0);
        let marked = word.with(Word::EXCEPTION);
        assert_eq!(judged(word, None, MOVES), Action::MarkException(marked));
        assert_eq!(judged(marked, None, MOVES), Action::Keep);
        assert_eq!(
            judged(aged(State::Closing, LINGER_EXCEPTION_TICKS, 0), None, MOVES),
            Action::Delete(Gone::Ended)
        );
    }

    #[test]
    fn without_pressure_no_live_flow_ever_goes() {
        for state in [State::Young, State::Pin] {
            for age in [0, RECLAIM_YOUNG_TICKS, RECLAIM_PIN_TICKS, CLAMP_FROM_TICKS] {
                let action = judged(aged(state, age, 0), None, STAYS);
                assert!(!matches!(action, Action::Delete(_)), "{state:?} {age}");
            }
        }
    }

    #[test]
    fn pressure_takes_idle_entries_that_can_be_recomputed() {
        let gone = Action::Delete(Gone::Reclaimed);
        let young = |age, today| judged(aged(State::Young, age, 0), HARD, today);
        assert_eq!(young(RECLAIM_YOUNG_TICKS, STAYS), gone);
        assert_eq!(young(RECLAIM_YOUNG_TICKS - 1, STAYS), Action::Keep);
        assert_eq!(young(RECLAIM_YOUNG_TICKS, MOVES), Action::Keep);
        let pin = |age, today| judged(aged(State::Pin, age, 0), HARD, today);
        assert_eq!(pin(RECLAIM_PIN_TICKS, STAYS), gone);
        assert_eq!(pin(RECLAIM_PIN_TICKS - 1, STAYS), Action::Keep);
        assert_eq!(pin(RECLAIM_PIN_TICKS, MOVES), Action::Keep);
    }

    #[test]
    fn a_handover_that_would_move_the_flow_keeps_its_entry() {
        let handed_over = Today {
            pick: 7,
            recomputed: 9,
        };
        assert_eq!(
            judged(
                aged(State::Young, RECLAIM_YOUNG_TICKS, 0),
                HARD,
                handed_over
            ),
            Action::Keep
        );
    }

    #[test]
    fn pins_go_from_the_age_that_pressure_names() {
        let pressure = |pins_from| Some(Pressure { pins_from });
        let pin = aged(State::Pin, RECLAIM_PIN_TICKS + 100, 0);
        assert_eq!(judged(pin, pressure(None), STAYS), Action::Keep);
        assert_eq!(
            judged(pin, pressure(Some(RECLAIM_PIN_TICKS + 101)), STAYS),
            Action::Keep
        );
        assert_eq!(
            judged(pin, pressure(Some(RECLAIM_PIN_TICKS + 100)), STAYS),
            Action::Delete(Gone::Reclaimed)
        );
    }

    #[test]
    fn what_a_deadline_has_closed_goes_two_hours_after_its_last_packet_and_after_the_deadline() {
        let gone = Action::Delete(Gone::Closed);
        for state in [State::Young, State::Pin] {
            let of = |age, closed: Option<u32>| {
                let since = closed.map(|ago| Tick(NOW.0.wrapping_sub(ago)));
                judge(aged(state, age, 0), NOW, None, || MOVES, || since)
            };
            assert_eq!(of(CLOSED_TICKS, Some(CLOSED_TICKS)), gone);
            assert_eq!(of(CLOSED_TICKS + 99, Some(CLOSED_TICKS)), gone);
            // Seen since; idle for days, but closed a moment ago, or not at all.
            assert_eq!(of(CLOSED_TICKS - 1, Some(CLOSED_TICKS + 99)), Action::Keep);
            assert_eq!(of(CLOSED_TICKS + 99, Some(CLOSED_TICKS - 1)), Action::Keep);
            assert_eq!(of(CLOSED_TICKS + 99, None), Action::Keep);
            // The backend was closed after the clock was read.
            assert_eq!(of(CLOSED_TICKS, Some(1u32.wrapping_neg())), Action::Keep);
        }
        let closing = aged(State::Closing, LINGER_FIN_TICKS, Word::EXCEPTION);
        let since = Some(Tick(NOW.0 - 2 * CLOSED_TICKS));
        assert_eq!(judge(closing, NOW, None, || MOVES, || since), Action::Keep);
    }

    #[test]
    fn a_pin_idle_for_years_never_looks_new() {
        let mut word = aged(State::Pin, 0, 0);
        let mut writes = 0;
        // Two years, one pass an hour.
        for hour in 0..2 * 365 * 24u32 {
            let now = NOW.later(hour * 838);
            match judge(word, now, None, || MOVES, || None) {
                Action::Keep => {}
                Action::Clamp(clamped) => {
                    word = clamped;
                    writes += 1;
                }
                other => panic!("{other:?}"),
            }
            assert!(
                age(word, now) >= (hour * 838).min(CLAMPED_TICKS),
                "hour {hour}: {word:?}"
            );
        }
        assert!(writes > 0 && writes < 2 * 365 * 6, "{writes} writes");
    }

    #[test]
    fn states_that_nobody_writes_are_removed() {
        assert_eq!(
            judged(Word(0xffff_ffff_ffff_fff7), None, STAYS),
            Action::Delete(Gone::Invalid)
        );
        assert_eq!(judged(Word::EMPTY, HARD, STAYS), Action::Keep);
        assert_eq!(judged(Word::BUSY, HARD, STAYS), Action::Keep);
    }

    #[test]
    fn of_a_pair_the_longer_unseen_goes() {
        let (older, newer) = (aged(State::Pin, 50, 0), aged(State::Pin, 40, 0));
        assert!(first_goes(older, newer, NOW));
        assert!(!first_goes(newer, older, NOW));
        assert!(!first_goes(newer, newer, NOW));
    }

    proptest! {
        #[test]
        fn an_exception_is_never_taken(bits: u64, now: u32, pins_from: u32, pick in 0u32..1 << 18, recomputed in 0u32..1 << 18) {
            let word = Word(bits);
            prop_assume!(word.is(State::Young) || word.is(State::Pin));
            let today = Today { pick, recomputed };
            let pressure = Some(Pressure { pins_from: Some(pins_from) });
            let action = judge(word, Tick(now), pressure, || today, || None);
            if pick != word.backend().id() || recomputed != word.backend().id() {
                prop_assert!(!matches!(action, Action::Delete(_)), "{:?}", action);
            }
        }

        #[test]
        fn a_judgement_changes_nothing_but_what_it_is_about(bits: u64, now: u32) {
            let word = Word(bits);
            match judge(word, Tick(now), None, Today::default, || None) {
                Action::Keep | Action::Delete(_) => {}
                Action::MarkException(new) => {
                    prop_assert!(word.is(State::Closing));
                    prop_assert_eq!(new.0 ^ word.0, Word::EXCEPTION);
                }
                Action::Clamp(new) => {
                    prop_assert_eq!(new.with_tick(Tick(word.tick())), word);
                    prop_assert!(age(new, Tick(now)) <= age(word, Tick(now)));
                    prop_assert_eq!(judge(new, Tick(now), None, Today::default, || None), Action::Keep);
                }
            }
        }

        #[test]
        fn a_recently_seen_flow_is_never_removed(seen in 0u32..IDLE_TICKS, now: u32, young: bool, bits: u64) {
            let state = if young { State::Young } else { State::Pin };
            let word = Word(bits).with_state(state).with_tick(Tick(now.wrapping_sub(seen)));
            let id = word.backend().id();
            let action = judge(word, Tick(now), HARD, || Today { pick: id, recomputed: id }, || Some(Tick(now.wrapping_sub(CLOSED_TICKS))));
            prop_assert_eq!(action, Action::Keep);
        }
    }
}
