//! The time of day, as people and scripts are told it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970; 0 if this host believes that it is earlier.
pub(crate) fn since_1970() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
