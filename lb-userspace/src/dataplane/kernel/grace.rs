//! Waiting until no run of a BPF program still uses what it saw before.
//!
//! XDP programs run as readers of RCU (with bottom halves disabled, which RCU counts as reading since Linux 4.20), so the
//! wait is one `synchronize_rcu`. Userspace can ask for one in two ways, and the obvious one is not always one:
//! `membarrier(MEMBARRIER_CMD_GLOBAL)` is refused with EINVAL under `nohz_full` and does nothing when one CPU is online
//! (kernel/sched/membarrier.c), where a preemptible program run on PREEMPT_RT would be missed.
//!
//! Updating an array of maps always waits: since commit 1ae80cf31938 ("bpf: wait for running BPF programs when updating map-in-map",
//! Linux 4.20) the kernel promises that no program run still uses the inner map of before when the call returns, on whatever
//! CPUs and in whatever preemption model. That promise is what is asked for here.

use std::{thread, time::Duration};

use super::{bpf::MapInMap, error::Error};

/// How long until an update that the kernel had no memory for is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// The means to wait for a grace period.
#[derive(Debug)]
pub struct GracePeriod {
    maps: MapInMap,
}

impl GracePeriod {
    /// Prepares for waiting.
    ///
    /// # Errors
    /// When the kernel refuses the two small maps that this takes.
    pub fn new() -> Result<Self, Error> {
        MapInMap::create()
            .map(|maps| Self { maps })
            .map_err(|source| Error::Bpf {
                doing: "creating the map by whose update grace periods are waited for",
                source,
            })
    }

    /// Blocks until every program run that began before the call has ended: some milliseconds.
    pub fn wait(&self) {
        // To return without having waited would let memory be reused under a running program, so a kernel without memory for the
        // call's few bytes is waited for.
        let mut said = false;
        while let Err(error) = self.maps.update() {
            if !said {
                tracing::error!(%error, "waiting for a grace period failed; changes are held back until it succeeds");
                said = true;
            }
            thread::sleep(RETRY);
        }
    }
}
