//! `max_connections`: a backend that has as many flows takes no new ones until it is below by a margin.

use lb_common::clock::{Tick, ticks_proving};

/// A backend that was full stays so for at least this long, in ticks: 10 s. A rebuild of a table every few seconds would be no gain.
const HOLD_TICKS: u32 = ticks_proving(10);

/// The most flows with which a full backend takes new ones again: 5% below its limit, and at least one flow.
fn resumes_at(limit: u32) -> u64 {
    u64::from(limit - (limit / 20).max(1).min(limit))
}

/// Since when a backend is full, if it is, with what it was before. `flows` is none while nobody has counted them: then all stays as it is.
pub fn full_since(
    was: Option<Tick>,
    limit: Option<u32>,
    flows: Option<u64>,
    now: Tick,
) -> Option<Tick> {
    let limit = limit?;
    let Some(flows) = flows else {
        return was;
    };
    match was {
        Some(since) if flows > resumes_at(limit) || now.since(since) < HOLD_TICKS => was,
        Some(_) => None,
        None => (flows >= u64::from(limit)).then_some(now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(was: Option<u32>, limit: u32, flows: u64, now: u32) -> Option<u32> {
        full_since(was.map(Tick), Some(limit), Some(flows), Tick(now)).map(|tick| tick.0)
    }

    #[test]
    fn it_is_full_at_its_limit_and_free_below_by_a_margin() {
        assert_eq!(at(None, 100, 99, 7), None);
        assert_eq!(at(None, 100, 100, 7), Some(7));
        let later = 7 + HOLD_TICKS;
        assert_eq!(at(Some(7), 100, 96, later), Some(7));
        assert_eq!(at(Some(7), 100, 95, later), None);
        assert_eq!(at(Some(7), 100, 0, later - 1), Some(7), "not at once");
        // The smallest limits have a margin of one flow.
        assert_eq!(at(Some(7), 1, 1, later), Some(7));
        assert_eq!(at(Some(7), 1, 0, later), None);
        assert_eq!([1, 2, 19, 40, 1_000].map(resumes_at), [0, 1, 18, 38, 950]);
    }

    #[test]
    fn without_a_limit_or_a_count_nothing_changes() {
        assert_eq!(full_since(Some(Tick(1)), None, Some(9), Tick(9)), None);
        assert_eq!(
            full_since(Some(Tick(1)), Some(5), None, Tick(99)),
            Some(Tick(1))
        );
        assert_eq!(full_since(None, Some(5), None, Tick(99)), None);
    }

    proptest! {
        /// However flows come and go, a backend goes back and forth at most once in ten seconds; it is never free with its limit reached,
        /// nor full for long with few.
        #[test]
        fn it_never_flaps(limit in 1u32..200, counts in prop::collection::vec(0u64..220, 1..200)) {
            let mut full: Option<Tick> = None;
            let mut filled: Option<u32> = None;
            for (now, flows) in (1_000u32..).zip(counts) {
                let next = full_since(full, Some(limit), Some(flows), Tick(now));
                prop_assert_eq!(full_since(next, Some(limit), Some(flows), Tick(now)), next, "the same again changes nothing");
                prop_assert!(next.is_some() || flows < u64::from(limit));
                if let (None, Some(since)) = (full, next) {
                    prop_assert!(filled.is_none_or(|last| since.0 - last >= HOLD_TICKS), "filled twice");
                    filled = Some(since.0);
                }
                if let Some(since) = next {
                    prop_assert!(now - since.0 < HOLD_TICKS || flows > resumes_at(limit));
                }
                full = next;
            }
        }
    }
}
