//! How many connections a listener serves at once, and who goes when there are more.
//!
//! Whoever has not asked anything yet waits, and gives way: of those the one that came first. So peers that open connections and say
//! nothing keep nobody out, however many they are, while one that asks at once is answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

/// Connections that are served at once by one listener, at most.
pub(crate) const CONNECTIONS: usize = 64;

/// The places of one listener.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// How many there are.
    most: usize,
    places: Mutex<Places>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Places {
    /// Of the next connection.
    number: u64,
    /// Those that have asked nothing yet, by number, and how each is told to go.
    silent: BTreeMap<u64, Arc<Notify>>,
    /// Those that are being answered.
    asked: BTreeSet<u64>,
}

/// A place, for as long as it is held.
#[derive(Debug)]
pub(crate) struct Place {
    gate: Gate,
    number: u64,
    go: Arc<Notify>,
    endless: AtomicBool,
}

impl Default for Gate {
    fn default() -> Self {
        Self::of(CONNECTIONS)
    }
}

impl Gate {
    /// So many places.
    pub(crate) fn of(most: usize) -> Self {
        Self(Arc::new(Shared {
            most,
            places: Mutex::default(),
            freed: Notify::new(),
        }))
    }

    /// Takes a place; waits only while every other is being answered.
    pub(crate) async fn enter(&self) -> Place {
        loop {
            let freed = self.0.freed.notified();
            if let Some(place) = self.try_enter() {
                return place;
            }
            freed.await;
        }
    }

    /// Takes a place, if one is free or gives way.
    pub(crate) fn try_enter(&self) -> Option<Place> {
        let mut places = self.places();
        if places.asked.len() + places.silent.len() >= self.0.most {
            let (_, first) = places.silent.pop_first()?;
            first.notify_one();
        }
        let number = places.number;
        places.number += 1;
        let go = Arc::new(Notify::new());
        places.silent.insert(number, go.clone());
        Some(Place {
            gate: self.clone(),
            number,
            go,
            endless: AtomicBool::new(false),
        })
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Nothing panics while it is held.
        self.0.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Its peer has asked something: it gives way to nobody any more. One that has to go already goes all the same.
    pub(super) fn asked(&self) {
        let mut places = self.gate.places();
        if places.silent.remove(&self.number).is_some() {
            places.asked.insert(self.number);
        }
    }

    /// Its answer may take any time.
    pub(super) fn is_endless(&self) {
        self.endless.store(true, Ordering::Relaxed);
    }

    /// Waits until the connection is to end: its place is needed, or `patience` is over and its answer should have an end.
    pub(super) async fn given_up(&self, patience: Duration) {
        tokio::select! {
            () = self.go.notified() => {}
            () = async {
                tokio::time::sleep(patience).await;
                if self.endless.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
            } => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.gate.places();
        // One that was told to go is in neither.
        places.silent.remove(&self.number);
        places.asked.remove(&self.number);
        drop(places);
        self.gate.0.freed.notify_one();
    }
}
