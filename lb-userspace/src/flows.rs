//! What the flow table holds, as the sweep last counted it.

use std::collections::HashMap;

use lb_common::clock::Tick;

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

/// The whole flow table, counted in one pass.
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
        }
    }
}
