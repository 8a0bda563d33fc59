//! `slow_start`: a backend that begins to take new flows gets its share of them in steps.

use std::time::Duration;

use lb_common::clock::{TICK_NS, Tick};

use super::WHOLE;

/// Steps of a slow start, at most.
pub const STEPS: u32 = 8;
/// No step is shorter than this, in ticks: 8.6 s. So often a service's table may be written anew for it.
pub const SHORTEST_STEP_TICKS: u32 = 2;

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

    /// Its part of its weight, in sixteenths, 1 to 16.
    pub fn factor(self, slow_start: Duration, now: Tick) -> u8 {
        self.began
            .map_or(WHOLE, |began| factor(slow_start, began, now))
    }
}

/// The part of its weight that a backend has which began at `began`. Steps begin at the same moments for all backends of a service, so that a
/// table is written once for all of them.
fn factor(slow_start: Duration, began: Tick, now: Tick) -> u8 {
    let ticks = slow_start.as_nanos().div_ceil(u128::from(TICK_NS));
    let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
    let step = ticks.div_ceil(STEPS).max(SHORTEST_STEP_TICKS);
    let steps = ticks.div_ceil(step);
    let done = (now.0 / step).saturating_sub(began.0 / step);
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
        // A restart of the daemon is no beginning, nor is a new configuration.
        assert_eq!(Start::known(true).next(true, MINUTE, Tick(100)).began, None);
        assert_eq!(begun.next(true, Duration::ZERO, Tick(101)).began, None);
        assert_eq!(
            fresh.next(true, Duration::ZERO, Tick(100)),
            Start::known(true)
        );
    }

    proptest! {
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
