//! How checks went, for metrics: counted by service, since a figure for each backend would be too many.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::track::Reply;
use crate::model::Target;

/// Upper bounds of the histogram's buckets, in microseconds. Above the last is everything else.
const BOUNDS_US: [u64; 12] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    5_000_000,
];

/// What is known of all services' checks. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct ProbeTimes(Arc<Mutex<BTreeMap<String, Arc<ServiceTimes>>>>);

/// What is known of the checks of one service's backends, since they were first asked for.
#[derive(Debug, Default)]
pub struct ServiceTimes {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
    replies: [AtomicU64; 4],
}

impl ProbeTimes {
    /// That of a service, from now on if not before.
    pub fn of(&self, service: &str) -> Arc<ServiceTimes> {
        let mut all = self.all();
        match all.get(service) {
            Some(times) => times.clone(),
            None => all.entry(service.to_owned()).or_default().clone(),
        }
    }

    /// Every service's, by name.
    pub fn services(&self) -> Vec<(String, Arc<ServiceTimes>)> {
        let all = self.all();
        all.iter()
            .map(|(name, times)| (name.clone(), times.clone()))
            .collect()
    }

    /// Forgets services that none of `targets` is of.
    pub(super) fn keep(&self, targets: &[Target]) {
        let names: BTreeSet<&str> = targets
            .iter()
            .map(|target| target.name.service.as_str())
            .collect();
        self.all().retain(|name, _| names.contains(name.as_str()));
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Arc<ServiceTimes>>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServiceTimes {
    /// Takes in a check and how long it took.
    pub fn note(&self, reply: Reply, took: Duration) {
        self.replies[reply as usize].fetch_add(1, Ordering::Relaxed);
        if !matches!(reply, Reply::Yes | Reply::No) {
            return;
        }
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Checks, by the reply they got.
    pub fn replies(&self) -> [(&'static str, u64); 4] {
        [
            (Reply::Yes, "yes"),
            (Reply::No, "no"),
            (Reply::Silent, "silent"),
            (Reply::Unasked, "unasked"),
        ]
        .map(|(reply, name)| (name, self.replies[reply as usize].load(Ordering::Relaxed)))
    }

    /// Time that answered checks took, together, in seconds.
    pub fn sum_s(&self) -> f64 {
        self.sum_us.load(Ordering::Relaxed) as f64 / 1e6
    }

    /// Upper bounds in seconds, the last one infinite, and how many answered checks took at most so long and more than the bound before.
    pub fn buckets(&self) -> [(f64, u64); BOUNDS_US.len() + 1] {
        std::array::from_fn(|at| {
            let bound = BOUNDS_US
                .get(at)
                .map_or(f64::INFINITY, |us| *us as f64 / 1e6);
            (bound, self.buckets[at].load(Ordering::Relaxed))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answered_checks_fall_into_the_bucket_of_their_time() {
        let times = ServiceTimes::default();
        for (reply, us) in [
            (Reply::Yes, 0),
            (Reply::Yes, 500),
            (Reply::No, 501),
            (Reply::Yes, 5_000_001),
            (Reply::Silent, 700),
            (Reply::Unasked, 700),
        ] {
            times.note(reply, Duration::from_micros(us));
        }
        let counts: Vec<u64> = times.buckets().iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(times.buckets()[0].0, 0.000_5);
        assert!(times.buckets()[12].0.is_infinite());
        assert!((times.sum_s() - 5.001_002).abs() < 1e-9);
        let replies = [("yes", 3), ("no", 1), ("silent", 1), ("unasked", 1)];
        assert_eq!(times.replies(), replies);
    }
}
