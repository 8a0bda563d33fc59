//! Who takes new flows, and how many of them: the policy of balance. Pure: time is a parameter.
//!
//! * [`limit`]: which backends have as many flows as they may
//! * [`zone`]: how much stays in the balancer's own zone
//! * [`slow_start`]: what a backend gets that begins to take new flows
//! * [`level`]: weights that move until connections are even
//! * [`outlier`]: which backends' clients send too much again
//! * [`share`]: from factors to the weights of a table
//!
//! What the past decides is kept in a [`Standing`] for each backend; what the present alone decides is part of
//! [`resolve`](crate::resolve).

pub mod level;
pub mod limit;
pub mod outlier;
pub mod share;
pub mod slow_start;
pub mod zone;

use std::time::Duration;

use lb_common::clock::Tick;
use serde::{Deserialize, Serialize};

use self::{
    outlier::{Ejection, Outlier},
    slow_start::Start,
    zone::Zone,
};

/// What a backend's share of new flows follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// Its weight alone.
    #[default]
    Weights,
    /// Its weight, and how many connections it has.
    LeastConnections,
}

/// How a service spreads new flows, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What shares follow.
    pub balance: Balance,
    /// Backups take new flows while fewer primaries than this can.
    pub backup_below: u32,
    /// The local zone takes all new flows while so many percent of its weight can take them.
    pub zone_enough: u32,
    /// How long a backend that begins to take new flows gets less than its share; zero is not at all.
    pub slow_start: Duration,
    /// Whether what clients send again is counted, and what follows from it.
    pub outlier: Option<Outlier>,
}

/// `zone_enough` of a service that does not say: of four backends one may fail.
pub const ZONE_ENOUGH: u32 = 70;

impl Default for Policy {
    /// That of a service that says nothing.
    fn default() -> Self {
        Self {
            balance: Balance::default(),
            backup_below: 1,
            zone_enough: ZONE_ENOUGH,
            slow_start: Duration::ZERO,
            outlier: None,
        }
    }
}

/// A backend's part in the balance, as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// With so many flows it takes no new ones.
    pub max_connections: Option<u32>,
    /// Whether it takes new flows only while too few of the others, the primaries, can.
    pub backup: bool,
    /// Where it is.
    pub zone: Zone,
}

/// A factor of 1. Factors are sixteenths, so that weights stay whole numbers and tables stay as they are while little changes.
pub const WHOLE: u8 = 16;

/// What is remembered of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Since when it has too many flows to take new ones, if it has.
    pub full_since: Option<Tick>,
    /// Whether it has begun to take new flows a short while ago.
    pub start: Start,
    /// Its share in relation to its weight, by its slow start, in sixteenths.
    pub start_factor: u8,
    /// The same by its connections.
    pub level_factor: u8,
    /// Whether it takes no new flows for what its clients send again.
    pub ejected: Option<Ejection>,
}

impl Default for Standing {
    /// That of a backend that nothing is known of.
    fn default() -> Self {
        Self {
            full_since: None,
            start: Start::default(),
            start_factor: WHOLE,
            level_factor: WHOLE,
            ejected: None,
        }
    }
}

impl Standing {
    /// Whether it has too many flows to take new ones.
    pub fn is_full(&self) -> bool {
        self.full_since.is_some()
    }

    /// Its share in relation to its weight, all told, in sixteenths; at least 1.
    pub fn factor(&self) -> u8 {
        let factor = u16::from(self.start_factor) * u16::from(self.level_factor);
        // Up to one and a half of a whole.
        ((factor / u16::from(WHOLE)) as u8).max(1)
    }
}

/// What a service's new flows come to, as it is resolved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Whether backends are usable, and all of them have as many flows as they may.
    pub full: bool,
    /// Whether backups take new flows, since too few primaries can.
    pub backups: bool,
    /// Whether the local zone takes only some of the new flows, or none, since not enough of it can take them.
    pub spills: bool,
}
