//! Flows that are closed at a pace: from when, how fast, and how many are by now. Pure.

use std::time::Duration;

use lb_common::{clock::Tick, share::Share};

/// A moment of the monotonic clock, in milliseconds since boot; negative is before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i64);

impl Moment {
    /// So much later.
    #[must_use]
    pub fn later(self, time: Duration) -> Self {
        Self(self.0.saturating_add(millis(time)))
    }

    /// So much earlier.
    #[must_use]
    pub fn earlier(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(millis(time)))
    }

    /// The time since another moment; none at all if that is yet to come.
    pub fn since(self, other: Self) -> Duration {
        let ms = self.0.saturating_sub(other.0);
        Duration::from_millis(u64::try_from(ms).unwrap_or(0))
    }

    /// Its tick; that of the boot if it is before that.
    pub fn tick(self) -> Tick {
        let ms = u64::try_from(self.0).unwrap_or(0);
        Tick::from_ns(ms.saturating_mul(1_000_000))
    }
}

impl From<Tick> for Moment {
    /// The first moment of a tick.
    fn from(tick: Tick) -> Self {
        let ns = u64::from(tick.0) << 32;
        Self(ns.div_ceil(1_000_000) as i64)
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// How a drain ends, if not with its last flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long flows may stay; none: as long as they live.
    pub deadline: Option<Duration>,
    /// Over which time they are closed then.
    pub close_over: Duration,
    /// From when on the deadline counts; none: from the beginning of the drain.
    pub since: Option<Moment>,
}

impl Terms {
    /// No deadline.
    pub const NONE: Self = Self {
        deadline: None,
        close_over: Duration::ZERO,
        since: None,
    };

    /// When the flows of a drain that has begun then are closed; none is never.
    pub fn ramp(&self, begun: Moment) -> Option<Ramp> {
        Some(Ramp {
            from: self.since.unwrap_or(begun).later(self.deadline?),
            over: self.close_over,
        })
    }
}

/// A share that grows from none to all, linearly, in steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ramp {
    /// From this moment on.
    pub from: Moment,
    /// In this time; zero is at once.
    pub over: Duration,
}

/// The shortest step.
const SHORTEST_STEP: Duration = Duration::from_millis(100);
/// The longest step.
const LONGEST_STEP: Duration = Duration::from_secs(1);
/// Steps that a ramp has if they are neither shorter nor longer than that.
const STEPS: u32 = 100;

impl Ramp {
    /// The share at a moment; none before it begins to grow.
    pub fn share(&self, now: Moment) -> Option<Share> {
        if now < self.from {
            return None;
        }
        let elapsed = now.since(self.from);
        if elapsed >= self.over {
            return Some(Share::ALL);
        }
        let step = self.step().as_millis();
        let done = elapsed.as_millis() / step * step;
        let parts = done * u128::from(Share::ALL.parts()) / self.over.as_millis();
        // Less than all, since less than the whole time has passed.
        Some(Share::of_parts(parts as u32))
    }

    /// When the share changes next; none once it is all.
    pub fn next(&self, now: Moment) -> Option<Moment> {
        if now < self.from {
            return Some(self.from);
        }
        let elapsed = now.since(self.from);
        if elapsed >= self.over {
            return None;
        }
        let steps = elapsed.as_millis() / self.step().as_millis() + 1;
        let next = self.step() * u32::try_from(steps).unwrap_or(u32::MAX);
        Some(self.from.later(next).min(self.complete()))
    }

    /// One that goes on from a share, as if it had grown to that just now.
    #[must_use]
    pub fn going_on(self, share: Option<Share>, now: Moment) -> Self {
        // The longest time after which it is this share.
        let passed = share.map_or(Duration::ZERO, |share| {
            let next = u128::from(share.parts()) + 1;
            let ms = (next * self.over.as_millis()).div_ceil(u128::from(Share::ALL.parts()));
            Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX).saturating_sub(1))
        });
        Self {
            from: now.earlier(passed.min(self.over)),
            ..self
        }
    }

    /// When the share is all.
    pub fn complete(&self) -> Moment {
        self.from.later(self.over)
    }

    /// In whole milliseconds, as moments are: of a step with a fraction of one the share would change before [`Ramp::next`] says so.
    fn step(&self) -> Duration {
        let step = (self.over / STEPS).clamp(SHORTEST_STEP, LONGEST_STEP);
        Duration::from_millis(step.as_millis() as u64)
    }
}

/// How a drain ends: as it was meant to, and as it comes about.
///
/// The two differ if the deadline passes while nobody looks, as when no daemon runs, or if it is past already when it is asked for. Nobody is closed at
/// once for that: the share grows from what it is, at its pace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    due: Ramp,
    ramp: Ramp,
}

impl Closing {
    /// One that was found complete, since then.
    pub fn found(all_since: Tick) -> Self {
        let ramp = Ramp {
            from: all_since.into(),
            over: Duration::ZERO,
        };
        Self { due: ramp, ramp }
    }

    /// What becomes of one, if there was one, with the end that is meant now; `closed` is the share so far.
    #[must_use]
    pub fn next(before: Option<Self>, due: Ramp, closed: Option<Share>, now: Moment) -> Self {
        let ramp = match before {
            _ if now < due.from => due,
            Some(before) if before.due == due => before.ramp,
            // That it is over, and since when, is a fact.
            Some(before) if closed == Some(Share::ALL) => Ramp {
                from: before.ramp.complete().earlier(due.over),
                ..due
            },
            _ => due.going_on(closed, now),
        };
        Self { due, ramp }
    }

    /// How it comes about.
    pub fn ramp(&self) -> Ramp {
        self.ramp
    }
}

/// The share of a backend's flows that is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The share.
    pub share: Share,
    /// Since when it is all; any moment before that.
    pub since: Tick,
}

/// How many of a backend's flows are closed, and when that changes.
///
/// `closing` is the end of its drain, if it has one. `died` is since when it serves nothing, if it does; its clients are told of that over
/// `reset_over`. Without a pace all flows of a backend that serves nothing are closed, and none of one that serves.
pub fn pace(
    closing: Option<Ramp>,
    died: Option<Moment>,
    reset_over: Duration,
    now: Moment,
) -> (Option<Pace>, Option<Moment>) {
    let drained = closing.and_then(|ramp| ramp.share(now));
    let telling = died.map(|from| Ramp {
        from,
        over: reset_over,
    });
    let told = telling.and_then(|ramp| ramp.share(now));
    let next = [closing, telling]
        .into_iter()
        .flatten()
        .filter_map(|ramp| ramp.next(now))
        .min();
    let pace = match (drained, told) {
        // For the drain, too, whatever becomes of the backend.
        (Some(Share::ALL), _) => Some(Pace {
            share: Share::ALL,
            since: closing.map_or(Tick(0), |ramp| ramp.complete().tick()),
        }),
        (_, Some(Share::ALL)) => None,
        (drained, told) => drained.max(told).map(|share| Pace {
            share,
            since: Tick(0),
        }),
    };
    (pace, next)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Moment = Moment(1_000_000);

    fn ramp(over_ms: u64) -> Ramp {
        Ramp {
            from: START,
            over: Duration::from_millis(over_ms),
        }
    }

    #[test]
    fn a_share_grows_linearly_from_none_to_all() {
        let ramp = ramp(60_000);
        let parts = |ms: i64| ramp.share(Moment(START.0 + ms)).map(Share::parts);
        assert_eq!(parts(-1), None);
        assert_eq!(parts(0), Some(0));
        assert_eq!(parts(599), Some(0));
        assert_eq!(parts(600), Some(655));
        assert_eq!(parts(30_000), Some(32_768));
        assert_eq!(parts(59_999), Some(64_880));
        assert_eq!(parts(60_000), Some(65_536));
        assert_eq!(parts(i64::MAX - START.0), Some(65_536));
    }

    #[test]
    fn at_once_is_at_once() {
        assert_eq!(ramp(0).share(START), Some(Share::ALL));
        assert_eq!(ramp(0).next(START), None);
        assert_eq!(
            ramp(0).next(START.earlier(Duration::from_secs(5))),
            Some(START)
        );
    }

    #[test]
    fn steps_are_of_a_tenth_of_a_second_to_one() {
        for (over_ms, steps) in [
            (50, 1),
            (2_000, 20),
            (10_000, 100),
            (60_000, 100),
            (600_000, 600),
        ] {
            let ramp = ramp(over_ms);
            let changes = std::iter::successors(Some(START), |&now| ramp.next(now));
            assert_eq!(changes.count() - 1, steps, "{over_ms} ms");
        }
    }

    /// A hundredth of it is 495.01 ms.
    #[test]
    fn a_step_is_of_whole_milliseconds() {
        let ramp = ramp(49_501);
        let before_last = START.later(Duration::from_millis(49_005));
        let last = ramp.next(before_last).unwrap();
        assert_eq!(last, START.later(Duration::from_millis(49_500)));
        let just_before = last.earlier(Duration::from_millis(1));
        assert_eq!(ramp.share(just_before), ramp.share(before_last));
    }

    proptest! {
        #[test]
        fn between_two_changes_nothing_changes(over_ms in 0u64..10_000_000, at in -1_000i64..11_000_000) {
            let (ramp, now) = (ramp(over_ms), Moment(START.0 + at));
            match ramp.next(now) {
                Some(next) => {
                    prop_assert!(next > now);
                    prop_assert_eq!(ramp.share(Moment(next.0 - 1)), ramp.share(now));
                    prop_assert!(ramp.share(next) > ramp.share(now));
                }
                None => prop_assert_eq!(ramp.share(now), Some(Share::ALL)),
            }
        }

        #[test]
        fn a_ramp_goes_on_from_where_it_was(over_ms in 0u64..90_000_000, other_ms in 0u64..90_000_000, part in 0u32..=1_000, later in 0i64..100_000_000) {
            let now = START.later(Duration::from_millis(over_ms * u64::from(part) / 1_000));
            let (ramp, later) = (ramp(over_ms), Moment(now.0 + later));
            let share = ramp.share(now);
            prop_assert_eq!(ramp.going_on(share, later).share(later), share);
            // At another pace, too: nobody who was closed is not, and hardly anybody else is.
            let other = self::ramp(other_ms).going_on(share, later).share(later).unwrap();
            let share = share.unwrap();
            if other_ms > 0 && share < Share::ALL {
                let a_step = (u64::from(Share::ALL.parts()) * 1_000).div_ceil(other_ms) as u32;
                prop_assert!(other.parts().abs_diff(share.parts()) <= a_step + 1);
            }
        }

        #[test]
        fn a_tick_begins_when_it_begins(tick: u32) {
            let moment = Moment::from(Tick(tick));
            prop_assert_eq!(moment.tick(), Tick(tick));
            prop_assert!(tick == 0 || Moment(moment.0 - 1).tick() == Tick(tick - 1));
        }
    }

    #[test]
    fn a_deadline_counts_from_the_drain_or_from_when_it_was_asked_for() {
        let mut terms = Terms {
            deadline: Some(Duration::from_secs(60)),
            close_over: Duration::from_secs(5),
            since: None,
        };
        let from = |terms: &Terms| terms.ramp(START).map(|ramp| ramp.from.0 - START.0);
        assert_eq!(from(&terms), Some(60_000));
        terms.since = Some(START.later(Duration::from_secs(10)));
        assert_eq!(from(&terms), Some(70_000));
        terms.deadline = None;
        assert_eq!(from(&terms), None);
    }

    #[test]
    fn a_deadline_that_nobody_saw_pass_closes_nobody_at_once() {
        let at = |seconds: i64| Moment(START.0 + seconds * 1_000);
        let parts = |closing: Closing, seconds| {
            let share = closing.ramp().share(at(seconds));
            share.map(Share::parts)
        };
        let due = ramp(20_000);
        let seen_in_time = Closing::next(None, due, None, at(-5));
        assert_eq!(seen_in_time.ramp(), due);
        let closing = Closing::next(Some(seen_in_time), due, None, at(1));
        assert_eq!(closing, seen_in_time, "a late look does not move it");

        let missed = Closing::next(None, due, None, at(900));
        assert_eq!(
            (parts(missed, 900), parts(missed, 910)),
            (Some(0), Some(32_768))
        );
        // The next look, and a daemon that starts in the middle of it.
        let half = Some(Share::of_parts(32_768));
        assert_eq!(Closing::next(Some(missed), due, half, at(910)), missed);
        let restarted = Closing::next(None, due, half, at(930));
        assert_eq!(
            (parts(restarted, 930), parts(restarted, 940)),
            (Some(32_768), Some(65_536))
        );
        // Other terms in the middle of it.
        let faster = Closing::next(Some(missed), ramp(2_000), half, at(910));
        assert_eq!(
            (parts(faster, 910), parts(faster, 911)),
            (Some(32_768), Some(65_536))
        );
        let put_off = Ramp {
            from: at(1_000),
            ..due
        };
        let put_off = Closing::next(Some(missed), put_off, half, at(910));
        assert_eq!(
            (parts(put_off, 910), parts(put_off, 1_010)),
            (None, Some(32_768))
        );
        // What is over is over since then, whatever is meant now and whoever looks.
        let all = Some(Share::ALL);
        let slower = Closing::next(Some(missed), ramp(90_000), all, at(2_000));
        assert_eq!(slower.ramp().complete(), at(920));
        let found = Closing::found(at(920).tick());
        let found = Closing::next(Some(found), due, all, at(2_000));
        assert_eq!(found.ramp().complete().tick(), at(920).tick());
        assert_eq!(parts(found, 2_000), Some(65_536));
    }

    #[test]
    fn whoever_is_due_by_drain_or_by_death_is_closed() {
        let over = Duration::from_secs(10);
        let closing = Some(ramp(20_000));
        let at = |seconds| START.later(Duration::from_secs(seconds));
        let parts = |closing, died, now| {
            pace(closing, died, over, now)
                .0
                .map(|pace| pace.share.parts())
        };
        // Neither; then one; then the other, faster.
        assert_eq!(parts(None, None, START), None);
        assert_eq!(parts(closing, None, at(5)), Some(16_384));
        assert_eq!(parts(closing, Some(at(5)), at(5)), Some(16_384));
        assert_eq!(parts(closing, Some(at(5)), at(12)), Some(45_875));
        assert_eq!(parts(None, Some(at(5)), at(10)), Some(32_768));
        // All of a dead backend's need no pace, so that it is as if there had never been one.
        assert_eq!(pace(None, Some(at(0)), over, at(10)), (None, None));
        assert_eq!(pace(None, Some(at(0)), Duration::ZERO, at(0)), (None, None));
        // But that a drain is over is kept, with its moment.
        let ended = Some(Pace {
            share: Share::ALL,
            since: at(20).tick(),
        });
        assert_eq!(pace(closing, None, over, at(25)), (ended, None));
        assert_eq!(
            pace(closing, Some(at(25)), over, at(25)),
            (ended, Some(Moment(at(25).0 + 100)))
        );
        // Whatever changes first is what is waited for.
        assert_eq!(
            pace(closing, Some(at(0)), over, START).1,
            Some(Moment(START.0 + 100))
        );
    }
}
