//! What `tether plan --json` says: what a file would change if it were loaded now. For people and scripts.

use std::{net::IpAddr, path::PathBuf};

use lb_common::backend::{Mode, Serving};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    model::{Admin, BackendName},
    status::{BackendFlows, schema},
};

/// What a file would change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Preview {
    /// The file.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// The accepted generation that it is compared with.
    pub generation: u64,
    /// Services that change, by name.
    pub services: Vec<ServicePreview>,
    /// Services that stay as they are, to the last word of the maps.
    pub unchanged: u64,
    /// What was changed or drained at runtime and would end.
    pub ended: Vec<BackendName>,
    /// Flows of backends that take new flows today and would no longer. They stay with them until they end.
    pub drained_flows: u64,
}

/// A service that changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServicePreview {
    /// Its name; after the change, if that is one of it.
    pub name: String,
    /// Its VIP.
    #[schema(value_type = String)]
    pub vip: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its mode; after the change.
    #[schema(schema_with = schema::mode)]
    pub mode: Mode,
    /// What becomes of it.
    pub change: ServiceChange,
    /// Slots of its table.
    pub table_size: Sides<u32>,
    /// With fewer usable backends than this it fails open.
    pub min_healthy: Sides<u32>,
    /// The share of its table whose owner changes, 0 to 1: so many new flows go to another backend than they would have gone to. Added
    /// backends count as healthy.
    pub moved: f64,
    /// What changes of whom it takes new flows from, and of how many from one source, if anything does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardPreview>,
    /// Whether it would be in fail-open.
    pub fail_open: bool,
    /// Why it could not be served as configured.
    pub error: Option<String>,
    /// Its backends, those that stay as they are among them.
    pub backends: Vec<BackendPreview>,
}

/// What changes of a service's guard. Flows that it has stay, whoever they are of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuardPreview {
    /// The guard of today in a few words; none if it has none.
    pub before: Option<String>,
    /// The guard after the change.
    pub after: Option<String>,
    /// Prefixes that come into one of its lists.
    pub added: u64,
    /// Prefixes that go from one of its lists.
    pub removed: u64,
}

/// What becomes of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ServiceChange {
    /// It is new.
    Added,
    /// It goes when its flows have ended.
    Removed,
    /// It stays, and something of it changes.
    Changed,
}

/// A backend of a service that changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackendPreview {
    /// Its name in the service.
    pub name: String,
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// What becomes of it.
    pub change: BackendChange,
    /// Its weight.
    pub weight: Sides<u16>,
    /// What the operator wants of it.
    pub admin: Sides<Admin>,
    /// What it is given. An added one counts as healthy.
    #[schema(schema_with = schema::sides_of_serving)]
    pub serving: Sides<Serving>,
    /// Its share of the table, 0 to 1.
    pub share: Sides<f64>,
    /// Its flows at this moment. They stay with it, whatever changes.
    pub flows: BackendFlows,
}

/// What becomes of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BackendChange {
    /// It is new.
    Added,
    /// It was removed and has flows still; it is configured again.
    Returns,
    /// It is no longer configured, and goes when its flows have ended.
    Removed,
    /// Its weight, its admin state, its SNAT addresses or its checks change.
    Changed,
    /// Nothing of it changes but perhaps its share.
    Kept,
}

/// Something today and after the change; none where there is no such thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sides<T> {
    /// Today.
    pub before: Option<T>,
    /// After the change.
    pub after: Option<T>,
}

impl<T: PartialEq> Sides<T> {
    /// Whether they differ.
    pub fn differ(&self) -> bool {
        self.before != self.after
    }
}

impl Preview {
    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.ended.is_empty()
    }
}
