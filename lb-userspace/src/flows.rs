//! The flow tables, seen from the daemon: counted, expired, kept from wrapping, relieved under pressure.
//!
//! The daemon never inserts and never writes a key; what it changes, it changes by one compare-and-exchange of a value word with
//! what it saw there.
//!
//! * `affinity`: which backends clients keep
//! * [`judge`][]: what becomes of one entry; pure
//! * [`today`][]: what today's tables say about a flow
//! * [`churn`][]: flows that begin and end
//! * [`fill`][]: how full a table is, in steps that are told
//! * [`sweeper`][]: passes over the tables, in steps
//! * `sources`: how many flows sources have
//! * [`left`][]: what is left of some backends' flows, for whoever waits for the end of a drain

pub(crate) mod affinity;
mod census;
mod churn;
pub mod fill;
pub mod judge;
pub mod left;
mod reclaim;
mod sources;
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
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use self::judge::Gone;
pub use self::{churn::Churn, fill::Fill, sweeper::Sweeper, today::pick_of};
use crate::{by_version::ByVersion, dataplane::maps::Maps};

/// Entries of flow tables, counted by state: as they are kept, and as the API says them of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = BackendFlows)]
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

impl Counts {
    /// All of them.
    pub fn entries(&self) -> u64 {
        self.embryo + self.settled()
    }

    /// All but the embryos, which give way to any flow.
    pub fn settled(&self) -> u64 {
        self.young + self.pin + self.closing
    }

    /// Flows that live: neither SYNs, which anybody can send, nor what has ended.
    pub fn live(&self) -> u64 {
        self.young + self.pin
    }
}

impl std::ops::Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            embryo: self.embryo + other.embryo,
            young: self.young + other.young,
            pin: self.pin + other.pin,
            closing: self.closing + other.closing,
            active: self.active + other.active,
            idle: self.idle + other.idle,
        }
    }
}

/// One flow table, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableCensus {
    /// Entries that it has room for.
    pub capacity: u64,
    /// Its entries.
    pub counts: Counts,
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
    /// Young entries and pins removed long after all flows of their backend were closed at a deadline.
    pub closed: u64,
    /// Young entries and pins removed since their backend is dead and its service has such flows go elsewhere.
    pub rehashed: u64,
    /// Second entries of one key removed.
    pub duplicates: u64,
    /// Entries removed in a state that nobody writes: should never happen.
    pub invalid: u64,
    /// Closing entries found to be exceptions.
    pub marked: u64,
    /// Entries whose age was kept from wrapping.
    pub clamped: u64,
    /// SNAT ports given back, of entries that were removed or gave way to flows without a port.
    pub ports: u64,
    /// Clients that kept a backend and had to give way to others.
    pub clients: u64,
}

impl Swept {
    /// One more entry was removed.
    fn count(&mut self, gone: Gone) {
        *match gone {
            Gone::Expired => &mut self.expired,
            Gone::Ended => &mut self.ended,
            Gone::Invalid => &mut self.invalid,
            Gone::Reclaimed => &mut self.reclaimed,
            Gone::Closed => &mut self.closed,
            Gone::Rehashed => &mut self.rehashed,
        } += 1;
    }
}

/// Both flow tables, counted in one pass.
///
/// They go on changing while they are counted: an entry that is relocated meanwhile may be counted twice or not at all. That one
/// pass has met no entry of a backend proves nothing; two passes, with a grace period between, do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// Full passes so far.
    pub scans: u64,
    /// When the pass ended.
    pub at: Tick,
    /// Each table.
    pub tables: ByVersion<TableCensus>,
    /// By backend id and generation; absent is none.
    pub by_backend: HashMap<(u32, u8), Counts>,
    /// By service id; absent is none.
    pub by_service: HashMap<u16, Counts>,
    /// Flows that have a SNAT port, by their pair's id; absent is none.
    pub by_pair: HashMap<u16, u64>,
    /// SNAT ports in use or resting after use, by pair's id.
    pub ports: HashMap<u16, u32>,
    /// Clients that keep a backend, by the id of a service that places clients; absent is none.
    pub clients: HashMap<u16, u64>,
    /// Sources that are told apart, of services that limit them.
    pub sources: u64,
    /// What the sweep has changed.
    pub swept: Swept,
    /// Flows that began and ended since the daemon started, by service's identity; absent is none.
    pub churn: HashMap<u64, Churn>,
    /// The same by backend's id and generation.
    pub backend_churn: HashMap<(u32, u8), Churn>,
}

impl Default for Census {
    /// Before the first pass.
    fn default() -> Self {
        Self {
            scans: 0,
            at: Tick(0),
            tables: ByVersion::default(),
            by_backend: HashMap::new(),
            by_service: HashMap::new(),
            by_pair: HashMap::new(),
            ports: HashMap::new(),
            clients: HashMap::new(),
            sources: 0,
            swept: Swept::default(),
            churn: HashMap::new(),
            backend_churn: HashMap::new(),
        }
    }
}

impl Census {
    /// All entries, of both versions of IP.
    pub fn total(&self) -> Counts {
        self.tables.v4.counts + self.tables.v6.counts
    }
}

/// Buckets in a step: 256 KiB of memory, in IPv6 twice that; some tenths of a millisecond.
const STEP_BUCKETS: u32 = 4096;
/// How long a pass takes, with its pauses: how old a census may be.
const PASS: Duration = Duration::from_secs(2);
/// How long a pass takes at most, however large the tables: far less than the age (128 s) from which an embryo's tick, which wraps after
/// 275 s, must be noticed.
const LONGEST_PASS: Duration = Duration::from_secs(30);
/// A pass is stretched so that the sweep takes at most one part in so many of a core.
const SHARE: u32 = 40;

/// Sweeps the flow tables until told to stop: `shutdown` true, or closed. Each pass ends with a new census; the first pass makes no pauses.
pub async fn sweep(
    maps: Arc<Maps>,
    census: watch::Sender<Arc<Census>>,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut sweeper = Sweeper::new(maps);
    let steps = sweeper.steps(STEP_BUCKETS);
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
