//! Who takes new flows, and how many of them: the policy of balance. Pure: time is a parameter.
//!
//! * [`limit`]: which backends have as many flows as they may
//!
//! What the past decides is kept in a [`Standing`] for each backend; what the present alone decides is part of
//! [`resolve`](crate::resolve).

pub mod limit;

use lb_common::clock::Tick;

use crate::flows::Counts;

/// A backend's part in the balance, as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// With so many flows it takes no new ones.
    pub max_connections: Option<u32>,
}

/// What is remembered of a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Since when it has too many flows to take new ones, if it has.
    pub full_since: Option<Tick>,
}

impl Standing {
    /// Whether it has too many flows to take new ones.
    pub fn is_full(&self) -> bool {
        self.full_since.is_some()
    }
}

/// Flows that a backend has for sure: neither SYNs, which anybody can send, nor what has ended.
pub fn connections(counts: &Counts) -> u64 {
    counts.young + counts.pin
}
