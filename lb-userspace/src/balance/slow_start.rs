//! `slow_start`: a backend that begins to take new flows gets its share of them in steps.

use std::time::Duration;

use lb_common::clock::{TICK_NS, Tick};

use super::WHOLE;

/// Steps of a slow start, at most.
pub const STEPS: u32 = 8;
/// No step is shorter than this, in ticks: 8.6 s. So often a service's table may be written anew for it.
const SHORTEST_STEP_TICKS: u32 = 2;

/// What is remembered of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// Whether it could take new flows when last looked at.
    pub able: bool,
    /// When it began to, while its slow start lasts.
    pub began: Option<Tick>,
}

impl Start {
    /// Of a backend that is known from before, and could take new flows or not.
    pub const fn known(able: bool) -> Self {
        Self { able, began: None }
    }

    /// What it is at `now`, with what the backend can do by its own health and admin state. The same again changes nothing.
    pub fn next(self, able: bool, slow_start: Duration, now: Tick) -> Self {
        let began = match (self.able, able) {
            (false, true) if !slow_start.is_zero() => Some(now),
            (true, true) => self.began,
            _ => None,
        };
        Self {
            able,
            began: began.filter(|&began| factor(slow_start, began, now) < WHOLE),
        }
    }

    /// One that the last daemon saw begin at `began`, and last had at `factor`, goes on in this one. What was due while nobody saw to it is made up for by one
    /// step: all others are still to come, each in its time.
    pub fn resumed(began: Tick, factor: u8, slow_start: Duration, now: Tick) -> Self {
        let (step, steps) = steps_of(slow_start);
        let began = began.min(now);
        let due = now.0 / step - began.0 / step;
        let reached = (0..steps).take_while(|&done| share(done, steps) <= factor);
        let next = reached.count() as u32;
        Self {
            able: true,
            began: Some(if due > next {
                Tick((now.0 / step - next) * step)
            } else {
                began
            }),
        }
    }

    /// Its part of its weight, in sixteenths, 1 to 16.
    pub fn factor(self, slow_start: Duration, now: Tick) -> u8 {
        self.began
            .map_or(WHOLE, |began| factor(slow_start, began, now))
    }
}

/// The part of its weight that a backend has which began at `began`. Steps begin at the same moments for all backends of a service, so that a
/// table is written once for all of them.
fn factor(slow_start: Duration, began: Tick, now: Tick) -> u8 {
    let (step, steps) = steps_of(slow_start);
    share((now.0 / step).saturating_sub(began.0 / step), steps)
}

/// How long each step is, in ticks, and how many there are.
fn steps_of(slow_start: Duration) -> (u32, u32) {
    let ticks = slow_start.as_nanos().div_ceil(u128::from(TICK_NS));
    let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
    let step = ticks.div_ceil(STEPS).max(SHORTEST_STEP_TICKS);
    (step, ticks.div_ceil(step))
}

/// The part of its weight that a backend has once so many of its steps are done.
fn share(done: u32, steps: u32) -> u8 {
    if done >= steps {
        return WHOLE;
    }
    (u32::from(WHOLE) * (done + 1) / (steps + 1)).max(1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_share_grows_in_equal_steps() {
        // 14 ticks: seven steps of two.
        let factors: Vec<u8> = (100..116)
            .map(|now| factor(MINUTE, Tick(100), Tick(now)))
            .collect();
        assert_eq!(
            factors,
            [2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14, 16, 16]
        );
        // A long one has eight steps.
        let hour: Vec<u8> = (0..9)
            .map(|eighth| factor(MINUTE * 60, Tick(0), Tick(eighth * 105)))
            .collect();
        assert_eq!(hour, [1, 3, 5, 7, 8, 10, 12, 14, 16]);
        // The shortest has one.
        assert_eq!(factor(Duration::from_millis(1), Tick(0), Tick(1)), 8);
        assert_eq!(factor(Duration::from_millis(1), Tick(0), Tick(2)), 16);
    }

    #[test]
    fn it_begins_when_a_backend_begins_to_take_flows_and_only_then() {
        let fresh = Start::default();
        let begun = fresh.next(true, MINUTE, Tick(100));
        assert_eq!(begun.began, Some(Tick(100)));
        assert_eq!(begun.next(true, MINUTE, Tick(104)), begun);
        // It is over, and does not come back.
        let done = begun.next(true, MINUTE, Tick(114));
        assert_eq!(done, Start::known(true));
        assert_eq!(done.factor(MINUTE, Tick(115)), WHOLE);
        assert_eq!(done.next(true, MINUTE, Tick(116)), done);
        // It falls and returns.
        let fallen = begun.next(false, MINUTE, Tick(104));
        assert_eq!(fallen, Start::known(false));
        assert_eq!(fallen.next(true, MINUTE, Tick(108)).began, Some(Tick(108)));
        // That it was there when the daemon began is no beginning, nor is a new configuration.
        assert_eq!(Start::known(true).next(true, MINUTE, Tick(100)).began, None);
        assert_eq!(begun.next(true, Duration::ZERO, Tick(101)).began, None);
        assert_eq!(
            fresh.next(true, Duration::ZERO, Tick(100)),
            Start::known(true)
        );
    }

    #[test]
    fn it_goes_on_in_the_next_daemon_by_one_step_at_most() {
        // Seven steps of two ticks each: it began at 100, and had done two when it was seen last.
        let resumed = |factor, slow_start, now| {
            let start = Start::resumed(Tick(100), factor, slow_start, Tick(now));
            start.next(true, slow_start, Tick(now))
        };
        let factor_of = |now| resumed(6, MINUTE, now).factor(MINUTE, Tick(now));
        // As if nothing had been: and not so when it was away for long.
        assert_eq!([104, 105, 106, 107].map(factor_of), [6, 6, 8, 8]);
        assert_eq!([108, 113, 114, 9_999].map(factor_of), [8; 4]);
        let late = resumed(6, MINUTE, 114);
        let later = [114, 116, 118, 120].map(|now| late.factor(MINUTE, Tick(now)));
        assert_eq!(later, [8, 10, 12, 14]);
        assert_eq!(late.next(true, MINUTE, Tick(122)), Start::known(true));
        // It was at its last step.
        assert_eq!(resumed(14, MINUTE, 114), Start::known(true));
        // Its service has no slow start any more, or a longer one: as after a reload.
        assert_eq!(resumed(6, Duration::ZERO, 105), Start::known(true));
        let hour = resumed(6, MINUTE * 60, 104);
        assert_eq!(hour.factor(MINUTE * 60, Tick(104)), 1);
        // A clock that was ahead.
        let ahead = Start::resumed(Tick(200), 6, MINUTE, Tick(100));
        assert_eq!(ahead.factor(MINUTE, Tick(100)), 2);
    }

    proptest! {
        #[test]
        fn nobody_gets_more_at_once_for_a_restart(
            ms in 1u64..86_400_000,
            began in 0u32..1_000_000,
            lasted in 0u32..1_000,
            away in 0u32..30_000,
        ) {
            let slow_start = Duration::from_millis(ms);
            let (step, steps) = steps_of(slow_start);
            let lasted = step * steps * lasted / 1_000;
            let begun = Start { able: true, began: Some(Tick(began)) };
            let (seen, now) = (Tick(began + lasted), Tick(began + lasted + away));
            let last = begun.factor(slow_start, seen);
            prop_assume!(last < WHOLE);
            let resumed = Start::resumed(Tick(began), last, slow_start, now);
            let factor = resumed.factor(slow_start, now);
            prop_assert!((last..=begun.factor(slow_start, now)).contains(&factor));
            prop_assert!(factor <= begun.factor(slow_start, seen.later(step)));
            // And it has all of it in time.
            let end = now.later(step * steps);
            prop_assert_eq!(resumed.factor(slow_start, end), WHOLE);
        }

        #[test]
        fn it_only_grows_and_ends_in_time(ms in 1u64..86_400_000, began in 0u32..1_000_000) {
            let slow_start = Duration::from_millis(ms);
            let began = Tick(began);
            let ticks = slow_start.as_nanos().div_ceil(u128::from(TICK_NS)) as u32;
            let mut last = 0;
            let mut changes = Vec::new();
            for age in 0..ticks.min(500) + 40 {
                let now = began.later(age);
                let factor = factor(slow_start, began, now);
                prop_assert!(factor >= last && (1..=WHOLE).contains(&factor));
                if factor != last && age > 0 {
                    changes.push(now.0);
                }
                last = factor;
            }
            prop_assert!(changes.len() <= STEPS as usize);
            // Never sooner than a shortest step, and at moments that do not depend on when it began.
            prop_assert!(changes.windows(2).all(|pair| pair[1] - pair[0] >= SHORTEST_STEP_TICKS));
            let step = ticks.div_ceil(STEPS).max(SHORTEST_STEP_TICKS);
            prop_assert!(changes.iter().all(|at| at % step == 0));
            prop_assert_eq!(factor(slow_start, began, began.later(ticks + step)), WHOLE);
        }
    }
}
