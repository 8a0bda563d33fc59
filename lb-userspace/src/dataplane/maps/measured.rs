//! The maps of what clients send again: never pinned, and a program's own.

use std::{os::fd::BorrowedFd, sync::atomic::Ordering};

use lb_common::{
    maps as names,
    repeats::{DATA_CLIENTS, PLACES, Repeats, SYN_CLIENTS, Sample},
};

use super::{super::array::Array, Capacity};

/// What clients send again, as a program counts it.
#[derive(Debug)]
pub struct Measured {
    /// Of which services: 1 or 0, by id.
    services: Array<u64>,
    /// By backend's id.
    backends: Array<Repeats>,
    /// The flows that are watched.
    samples: Array<Sample>,
}

impl Measured {
    /// In memory of our own.
    pub(super) fn in_memory(capacity: &Capacity) -> nix::Result<Self> {
        Ok(Self {
            services: Array::in_memory(capacity.services)?,
            backends: Array::in_memory(capacity.backends)?,
            samples: Array::in_memory(2 * PLACES)?,
        })
    }

    /// The kernel's maps; `map` gives the file descriptor of each by its name in [`lb_common::maps`].
    ///
    /// # Errors
    /// When the kernel refuses one of the mappings.
    pub fn of_kernel<'a>(
        capacity: &Capacity,
        map: impl Fn(&'static str) -> BorrowedFd<'a>,
    ) -> nix::Result<Self> {
        Ok(Self {
            services: Array::of_map(map(names::MEASURED), capacity.services)?,
            backends: Array::of_map(map(names::REPEATS), capacity.backends)?,
            samples: Array::of_map(map(names::SAMPLES), 2 * PLACES)?,
        })
    }

    /// Has a service's segments be counted, or not.
    pub fn measure(&self, service: u16, measures: bool) {
        let word = self.services.word(u32::from(service), 0);
        let measures = u64::from(measures);
        if word.load(Ordering::Relaxed) != measures {
            word.store(measures, Ordering::Relaxed);
        }
    }

    /// Whether a service's segments are counted.
    pub fn measures(&self, service: u16) -> bool {
        self.services
            .word(u32::from(service), 0)
            .load(Ordering::Relaxed)
            != 0
    }

    /// What was counted for a backend since the program was loaded, whoever had its id.
    pub fn counted(&self, backend: u32) -> Repeats {
        self.backends.get(backend)
    }

    /// The same, and takes note of whose repeats they were: that is told once.
    pub fn take(&self, backend: u32) -> Repeats {
        let take = |word| self.backends.word(backend, word).swap(0, Ordering::Relaxed);
        Repeats {
            syn_clients: take(SYN_CLIENTS),
            data_clients: take(DATA_CLIENTS),
            ..self.counted(backend)
        }
    }

    /// Counts for a backend in the program's place: for tests.
    pub fn count(&self, backend: u32, repeats: &Repeats) {
        self.backends
            .set(backend, &self.counted(backend).and(repeats));
    }

    /// Forgets everything: as it was when the program was loaded.
    pub fn clear(&self) {
        self.services.clear();
        self.backends.clear();
        self.samples.clear();
    }
}
