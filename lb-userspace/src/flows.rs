//! The flow table, seen from the daemon: counted, expired, kept from wrapping, relieved under pressure.
//!
//! The daemon never inserts and never writes a key; what it changes, it changes by one compare-and-exchange of a value word with
//! what it saw there.
//!
//! * [`judge`][]: what becomes of one entry; pure
//! * [`today`][]: what today's tables say about a flow
//! * [`fill`][]: how full the table is, in steps that are told
//! * [`sweeper`][]: passes over the table, in steps

mod census;
pub mod fill;
pub mod judge;
mod reclaim;
pub mod sweeper;
#[cfg(test)]
mod tests;
pub mod today;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::clock::Tick;
use tokio::sync::watch;

pub use self::{fill::Fill, sweeper::Sweeper, today::pick_of};
use crate::dataplane::maps::Maps;

/// Entries of the flow table, counted by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// A SYN was seen.
    pub embryo: u64,
    /// Answered or adopted, not yet proven by time.
    pub young: u64,
    /// Proven.
    pub pin: u64,
    /// A FIN or RST was seen.
    pub closing: u64,
    /// Of the young and pins: seen within ten minutes.
    pub active: u64,
    /// Of the young and pins: not seen for ten minutes.
    pub idle: u64,
}

/// What the sweep has changed since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Embryos and challengers removed that nobody followed.
    pub expired: u64,
    /// Closing entries removed whose linger was over.
    pub ended: u64,
    /// Young entries and pins removed for want of room, each recomputable.
    pub reclaimed: u64,
    /// Second entries of one key removed.
    pub duplicates: u64,
    /// Entries removed in a state that nobody writes: should never happen.
    pub invalid: u64,
    /// Closing entries found to be exceptions.
    pub marked: u64,
    /// Entries whose age was kept from wrapping.
    pub clamped: u64,
}

/// The whole flow table, counted in one pass.
///
/// The table goes on changing while it is counted: an entry that is relocated meanwhile may be counted twice or not at all. That one
/// pass has met no entry of a backend proves nothing; two passes, with a grace period between, do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// Full passes so far.
    pub scans: u64,
    /// When the pass ended.
    pub at: Tick,
    /// Entries that the table has room for.
    pub capacity: u64,
    /// All entries.
    pub total: Counts,
    /// By backend id and generation; absent is none.
    pub by_backend: HashMap<(u32, u8), Counts>,
    /// By service id; absent is none.
    pub by_service: HashMap<u16, Counts>,
    /// What the sweep has changed.
    pub swept: Swept,
}

impl Default for Census {
    /// Before the first pass.
    fn default() -> Self {
        Self {
            scans: 0,
            at: Tick(0),
            capacity: 0,
            total: Counts::default(),
            by_backend: HashMap::new(),
            by_service: HashMap::new(),
            swept: Swept::default(),
        }
    }
}

/// Buckets in a step: 256 KiB of memory, some tenths of a millisecond.
const STEP_BUCKETS: u32 = 4096;
/// How long a pass takes, with its pauses: how old a census may be.
const PASS: Duration = Duration::from_secs(2);
/// How long a pass takes at most, however large the table: far less than the age (128 s) from which an embryo's tick, which wraps after
/// 275 s, must be noticed.
const LONGEST_PASS: Duration = Duration::from_secs(30);
/// A pass is stretched so that the sweep takes at most one part in so many of a core.
const SHARE: u32 = 40;

/// Sweeps the flow table until told to stop: `shutdown` true, or closed. Each pass ends with a new census; the first pass makes no pauses.
pub async fn sweep(
    maps: Arc<Maps>,
    census: watch::Sender<Arc<Census>>,
    mut shutdown: watch::Receiver<bool>,
) {
    let steps = maps.flows4.len().div_ceil(STEP_BUCKETS).max(1);
    let mut sweeper = Sweeper::new(maps);
    let mut period = Duration::ZERO;
    loop {
        let begin = tokio::time::Instant::now();
        let mut busy = Duration::ZERO;
        for step in 1..=steps {
            let begin_step = Instant::now();
            let counted = sweeper.step(STEP_BUCKETS);
            busy += begin_step.elapsed();
            if let Some(counted) = counted {
                census.send_replace(Arc::new(counted));
                // Also after the first pass, which made no pauses: a pass later is some time later.
                period = (busy * SHARE).clamp(PASS, LONGEST_PASS);
            }
            let pause = tokio::time::sleep_until(begin + period * step / steps);
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|stop| *stop) => return,
                () = async { tokio::task::yield_now().await; pause.await } => {}
            }
        }
    }
}
