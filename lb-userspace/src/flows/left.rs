//! What is left of some backends' flows, and since when it is silent: looked for when somebody asks.
//!
//! A census tells flows by whether they were seen within ten minutes. Who waits for the end of a drain says himself whom he waits for.

use std::{collections::HashMap, sync::atomic::Ordering, time::Duration};

use lb_common::{
    clock::{Tick, seconds, ticks_proving},
    flow::{
        bucket::WAYS,
        v4, v6,
        word::{BackendRef, EMBRYO_TICK_BITS, EMBRYO_TICKS, State, Word, YOUNG_TICKS},
    },
};
use serde::{Deserialize, Serialize};

use super::judge;
use crate::dataplane::{
    maps::Maps,
    table::{Table, TableKey},
};

/// For so long after its client's FIN a flow may still be a half-closed stream that says nothing, in ticks: 1 min.
const CLOSED_TICKS: u32 = ticks_proving(60);

/// Flows that are left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Left {
    /// Seen within the time that was asked for.
    pub active: u64,
    /// Not seen for as long.
    pub idle: u64,
    /// Seconds since the flow that has been silent the longest was last seen.
    pub silent_s: u64,
    /// Seconds since the oldest flow was first seen, as far as that is known.
    pub oldest_s: u64,
}

impl Left {
    /// All of them.
    pub fn flows(&self) -> u64 {
        self.active + self.idle
    }

    /// These and others.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            active: self.active + other.active,
            idle: self.idle + other.idle,
            silent_s: self.silent_s.max(other.silent_s),
            oldest_s: self.oldest_s.max(other.oldest_s),
        }
    }

    fn count(&mut self, silent: u32, first_seen: Option<Tick>, idle_from: u32, now: Tick) {
        if silent < idle_from {
            self.active += 1;
        } else {
            self.idle += 1;
        }
        let age = first_seen.map_or(0, |first| just_now(now.0.wrapping_sub(first.0)));
        self.silent_s = self.silent_s.max(seconds(silent));
        // Nobody is older than his silence, even if his beginning was not seen.
        self.oldest_s = self.oldest_s.max(seconds(age)).max(seconds(silent));
    }
}

/// For how many ticks a flow has said nothing; none if there is no flow any more.
///
/// A handshake that is not over is a flow to be, until its SYN is forgotten. After a RST there is none, and none after a FIN
/// and a silence: a client that has said goodbye may still be listening.
fn silence(word: Word, now: Tick) -> Option<u32> {
    match word.state() {
        State::Embryo | State::Challenger => {
            let age = judge::just_now(word.nascent_age(now), EMBRYO_TICK_BITS);
            (age < EMBRYO_TICKS).then_some(age)
        }
        // Its tick is that of its promotion, and a packet in these ticks leaves no trace.
        State::Young => Some(judge::age(word, now).saturating_sub(YOUNG_TICKS)),
        State::Pin => Some(judge::age(word, now)),
        State::Closing => {
            let age = judge::age(word, now);
            (!word.has(Word::BY_RESET) && age < CLOSED_TICKS).then_some(age)
        }
        State::Empty | State::Busy | State::Invalid => None,
    }
}

/// A tick that was read after the clock was is of this moment.
fn just_now(age: u32) -> u32 {
    if age > u32::MAX / 2 { 0 } else { age }
}

/// Counts what is left of these backends' flows, of both versions of IP. `now` is read before. A flow is idle when it is certain that it has been
/// silent for `idle_after`.
///
/// The tables go on changing meanwhile, and an entry that is relocated at that moment may be missed: that nothing is left is certain when it is
/// found twice.
pub fn left(
    maps: &Maps,
    backends: impl IntoIterator<Item = BackendRef>,
    idle_after: Duration,
    now: Tick,
) -> HashMap<BackendRef, Left> {
    let mut wanted = Wanted {
        by_id: vec![None; maps.backends.len() as usize],
        idle_from: ticks_proving(idle_after.as_secs()),
        now,
    };
    for backend in backends {
        if let Some(place) = wanted.by_id.get_mut(backend.id() as usize) {
            *place = Some((backend, Left::default()));
        }
    }
    wanted.look_through(v4::Key::table(maps));
    wanted.look_through(v6::Key::table(maps));
    wanted.by_id.into_iter().flatten().collect()
}

/// Whose flows are looked for.
struct Wanted {
    by_id: Vec<Option<(BackendRef, Left)>>,
    idle_from: u32,
    now: Tick,
}

impl Wanted {
    fn look_through<K: TableKey>(&mut self, table: Table<'_, K>) {
        for index in 0..table.buckets() {
            let bucket = table.bucket(index);
            for way in 0..WAYS {
                let word = Word(bucket.value(way).load(Ordering::Relaxed));
                if !word.is_entry() {
                    continue;
                }
                let held = word.backend();
                let Some(Some((backend, left))) = self.by_id.get_mut(held.id() as usize) else {
                    continue;
                };
                if *backend != held {
                    continue;
                }
                let Some(silent) = silence(word, self.now) else {
                    continue;
                };
                let first_seen = word
                    .is_live()
                    .then(|| table.facts().get(index).first_seen[way as usize])
                    .filter(|&tick| tick != 0)
                    .map(Tick);
                left.count(silent, first_seen, self.idle_from, self.now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Tick = Tick(3_000_000);

    fn live(state: State, age: u32, flags: u64) -> Word {
        let seen = Tick(NOW.0.wrapping_sub(age));
        Word::live(state, BackendRef::new(1, 0), 0, seen, flags)
    }

    fn embryo(age: u32) -> Word {
        Word::embryo(BackendRef::new(1, 0), 9, Tick(NOW.0.wrapping_sub(age)))
    }

    #[test]
    fn a_flow_is_left_for_as_long_as_it_may_be_one() {
        let seconds = ticks_proving;
        for (word, silent) in [
            (Word::EMPTY, None),
            (Word(State::Invalid as u64), None),
            (embryo(0), Some(0)),
            (embryo(EMBRYO_TICKS - 1), Some(EMBRYO_TICKS - 1)),
            (embryo(EMBRYO_TICKS), None),
            (live(State::Pin, 0, 0), Some(0)),
            (live(State::Pin, seconds(86_400), 0), Some(seconds(86_400))),
            // What came in the half minute after its promotion has left no trace.
            (live(State::Young, YOUNG_TICKS, 0), Some(0)),
            (live(State::Young, YOUNG_TICKS + 5, 0), Some(5)),
            // It has sent its FIN, and may still be listening.
            (live(State::Closing, 3, 0), Some(3)),
            (live(State::Closing, seconds(60), 0), None),
            (live(State::Closing, 0, Word::BY_RESET), None),
            // Seen after the clock was read.
            (live(State::Pin, 1u32.wrapping_neg(), 0), Some(0)),
            (embryo(1u32.wrapping_neg()), Some(0)),
        ] {
            assert_eq!(silence(word, NOW), silent, "{word:?}");
        }
    }

    #[test]
    fn of_many_flows_the_oldest_and_the_most_silent_are_told() {
        let idle_from = ticks_proving(600);
        let mut left = Left::default();
        let since = |ticks: u32| Some(Tick(NOW.0 - ticks));
        left.count(0, since(700), idle_from, NOW);
        left.count(idle_from - 1, None, idle_from, NOW);
        left.count(idle_from, since(600), idle_from, NOW);
        // Promoted after the clock was read.
        left.count(0, Some(NOW.later(1)), idle_from, NOW);
        let expected = Left {
            active: 3,
            idle: 1,
            silent_s: seconds(idle_from),
            oldest_s: seconds(700),
        };
        assert_eq!((left, left.flows()), (expected, 4));
        let other = Left {
            active: 1,
            idle: 2,
            silent_s: 1,
            oldest_s: 1 << 30,
        };
        let both = Left {
            active: 4,
            idle: 3,
            silent_s: expected.silent_s,
            oldest_s: 1 << 30,
        };
        assert_eq!(left.and(other), both);
        // A flow whose beginning is not known is as old as its silence.
        assert_eq!(seconds(1_000), 4_294);
        let mut adopted = Left::default();
        adopted.count(1_000, None, idle_from, NOW);
        assert_eq!(adopted.oldest_s, 4_294);
    }
}
