//! What the daemon remembers of itself for people: recent changes, how far drains have come, rates of the last minutes. Bounded, in memory,
//! and gone with the daemon.
//!
//! * [`changes`][]: what is different between two statuses, in words; pure
//! * [`drains`][]: what draining backends had when they began
//! * [`rates`][]: counters, sampled

pub mod changes;
pub mod drains;
pub mod rates;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use self::{
    changes::{Change, changes},
    drains::{Drain, Drains},
    rates::{Rates, Sampler},
};
use crate::{dataplane::maps::Maps, status::Status, wall_clock::since_1970};

/// Changes that are remembered, at most.
const CHANGES: usize = 200;
/// Time between two samples.
pub const EVERY: Duration = Duration::from_secs(2);

/// A change, and when it was noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows by one with each.
    pub number: u64,
    /// In seconds since 1970.
    pub at: u64,
    /// What changed.
    #[serde(flatten)]
    pub change: Change,
}

/// What is remembered. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct History(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    remembered: Mutex<Remembered>,
    /// The number of the latest sample.
    sampled: watch::Sender<u64>,
    /// The number of the next change.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Remembered {
    /// What the next status is compared with; none before the first one that counts.
    before: Option<Arc<Status>>,
    /// Of the next change.
    number: u64,
    events: VecDeque<Event>,
    drains: Drains,
    sampler: Sampler,
}

impl Default for History {
    fn default() -> Self {
        Self(Arc::new(Shared {
            remembered: Mutex::default(),
            sampled: watch::Sender::new(0),
            changed: watch::Sender::new(0),
        }))
    }
}

impl History {
    /// Takes in a status; `now` is in seconds since 1970.
    pub fn heard(&self, status: &Arc<Status>, now: u64) {
        // Before the first application there is nothing to compare with, only things that are not known yet.
        if status.generation.resolved == 0 {
            return;
        }
        let mut remembered = self.remembered();
        let changes = match &remembered.before {
            None => vec![changes::started(status)],
            Some(before) => changes(before, status),
        };
        for change in changes {
            let event = Event {
                number: remembered.number,
                at: now,
                change,
            };
            remembered.number += 1;
            if remembered.events.len() == CHANGES {
                remembered.events.pop_front();
            }
            remembered.events.push_back(event);
        }
        remembered.drains.heard(status, now);
        remembered.before = Some(status.clone());
        let next = remembered.number;
        drop(remembered);
        self.0
            .changed
            .send_if_modified(|number| std::mem::replace(number, next) != next);
    }

    /// Samples the counters; `now_ms` is of any steady clock.
    pub fn sample(&self, maps: &Maps, status: &Status, now_ms: u64) {
        self.remembered().sampler.sample(maps, status, now_ms);
        self.0.sampled.send_modify(|number| *number += 1);
    }

    /// Changes, the latest last: `most` of them at most.
    pub fn events(&self, most: usize) -> Vec<Event> {
        let remembered = self.remembered();
        let skip = remembered.events.len().saturating_sub(most);
        remembered.events.iter().skip(skip).cloned().collect()
    }

    /// Drains that are under way, as of a status.
    pub fn drains(&self, status: &Status) -> Vec<Drain> {
        self.remembered().drains.of(status)
    }

    /// Rates, as last sampled.
    pub fn rates(&self) -> Rates {
        self.remembered().sampler.latest()
    }

    /// Rates of the last minutes, the latest last.
    pub fn past(&self) -> rates::Past {
        self.remembered().sampler.past()
    }

    /// The number of the next change, whenever it grows.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Changes with each sample.
    pub fn samples(&self) -> watch::Receiver<u64> {
        self.0.sampled.subscribe()
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        // Nothing panics while it is held.
        self.0
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Remembers until told to stop: `shutdown` true, or closed.
pub async fn record(
    history: History,
    maps: Arc<Maps>,
    mut status: watch::Receiver<Arc<Status>>,
    mut shutdown: watch::Receiver<bool>,
) {
    let begun = tokio::time::Instant::now();
    let first = status.borrow_and_update().clone();
    history.heard(&first, since_1970());
    let mut samples = tokio::time::interval(EVERY);
    samples.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = crate::shutdown::requested(&mut shutdown) => return,
            changed = status.changed() => {
                if changed.is_err() {
                    return;
                }
                let latest = status.borrow_and_update().clone();
                history.heard(&latest, since_1970());
            }
            _ = samples.tick() => {
                let latest = status.borrow().clone();
                let since = begun.elapsed().as_millis();
                history.sample(&maps, &latest, u64::try_from(since).unwrap_or(u64::MAX));
            }
        }
    }
}

#[cfg(test)]
mod tests;
