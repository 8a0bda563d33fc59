//! What `tether status --json` says, as far as tests look at it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use lb_common::net::IpVersion;
use serde::Deserialize;

/// The whole answer.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// The daemon's process id.
    pub pid: u32,
    /// How far changes have come.
    pub generation: Generation,
    /// The configuration in force, and what is wrong with the one that was refused.
    pub config: ConfigStatus,
    /// Whether all backends are drained together.
    pub evacuated: bool,
    /// Where the XDP program is attached.
    pub attachments: Vec<Attachment>,
    /// Where it should be attached, and is not.
    pub detached: Vec<Detached>,
    /// Interfaces that packets which came in by another one cannot leave by.
    pub closed_egress: Vec<ClosedEgress>,
    /// The flow tables, both together.
    pub flows: Flows,
    /// The services.
    pub services: Vec<Service>,
    /// What packets came to, by reason.
    pub reasons: BTreeMap<String, Packets>,
}

/// See `Status::generation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Generation {
    /// Valid and to be put in force.
    pub accepted: u64,
    /// Everything known that it needs.
    pub resolved: u64,
    /// In force.
    pub applied: u64,
}

/// See `Status::config`.
#[derive(Debug, Clone, Deserialize)]
pub struct ConfigStatus {
    /// The file.
    pub path: String,
    /// Why its latest content was refused.
    pub error: Option<String>,
}

/// See `Status::attachments`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Attachment {
    /// The interface.
    pub interface: String,
    /// `native` or `generic`.
    pub mode: String,
}

/// See `Status::detached`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Detached {
    /// The interface's name.
    pub interface: String,
    /// Why.
    pub reason: String,
}

/// See `Status::closed_egress`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ClosedEgress {
    /// The interface.
    pub interface: String,
    /// Why.
    pub reason: String,
}

/// See `Status::flows`.
#[derive(Debug, Clone, Deserialize)]
pub struct Flows {
    /// Entries that fit.
    pub capacity: u64,
    /// SYNs seen.
    pub embryo: u64,
    /// Flows that have not yet lived for 30 s.
    pub young: u64,
    /// Flows that have.
    pub pin: u64,
    /// Flows that ended and linger.
    pub closing: u64,
    /// How full the fuller table is: `low`, `half` or `high`.
    pub fill: String,
    /// Each table.
    pub tables: Tables,
}

/// See `Flows::tables`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Tables {
    /// That of IPv4 flows.
    pub v4: Table,
    /// That of IPv6 flows.
    pub v6: Table,
}

impl Tables {
    /// That of a version.
    #[must_use]
    pub const fn of(&self, version: IpVersion) -> &Table {
        match version {
            IpVersion::V4 => &self.v4,
            IpVersion::V6 => &self.v6,
        }
    }
}

/// One flow table.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Table {
    /// Entries that fit.
    pub capacity: u64,
}

/// See `Status::reasons`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Packets {
    /// How many.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One service.
#[derive(Debug, Clone, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Whether too few backends are usable and all are used.
    pub fail_open: bool,
    /// Flows that began while that was so.
    pub fail_open_flows: u64,
    /// Why it is not served as configured.
    pub error: Option<String>,
    /// How new flows are spread.
    pub balance: Spread,
    /// Its backends, removed ones included while they have flows.
    pub backends: Vec<Backend>,
    /// Clients that keep a backend, if it places clients.
    #[serde(default)]
    pub clients: Option<u64>,
}

/// See `Service::balance`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Spread {
    /// Whether backups take new flows.
    pub backups: bool,
    /// Whether other zones than the balancer's take new flows.
    pub spills: bool,
}

/// One backend.
#[derive(Debug, Clone, Deserialize)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// `active`, `draining` or `disabled`.
    pub admin: String,
    /// Whether it left the configuration.
    pub removed: bool,
    /// `unknown`, `up`, `refusing` or `down`.
    pub health: String,
    /// Why its last check that failed did so, if any has.
    pub last_error: Option<String>,
    /// `new`, `existing-only` or `none`.
    pub serving: String,
    /// `resolved`, `local` or `unresolved`.
    pub neighbour: String,
    /// The end of its drain, if that has a deadline.
    pub drain: Option<Drain>,
    /// Its part in the balance.
    pub balance: Balance,
    /// Its flows.
    pub flows: BackendFlows,
    /// Mode `nat`: the addresses that it sees in the place of clients'.
    #[serde(default)]
    pub snat: Vec<Snat>,
}

/// See `Backend::snat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Snat {
    /// The address.
    pub address: IpAddr,
    /// Ports in use there.
    pub ports: u32,
}

/// See `Backend::drain`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Drain {
    /// Seconds until its deadline; 0 once that has passed.
    pub deadline_s: u64,
    /// The part of its flows that is closed.
    pub closed: f64,
}

/// See `Backend::balance`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Balance {
    /// Its part of a thousand new flows.
    pub per_mille: u16,
    /// Whether its slow start lasts.
    pub starting: bool,
    /// Whether it has as many connections as it may.
    pub full: bool,
    /// Whether it is ejected.
    pub ejected: Option<Ejected>,
    /// What its clients send again, if its service wants to know.
    pub repeats: Option<Repeats>,
}

/// See `Balance::ejected`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Ejected {
    /// How many times it was of late.
    pub times: u32,
    /// For how many more seconds it is.
    pub left_s: u64,
}

/// See `Balance::repeats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Repeats {
    /// Connections.
    pub syns: Share,
    /// Segments with data.
    pub data: Share,
}

/// How much of something was sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Share {
    /// How much there was.
    pub samples: u64,
    /// How much of it came again.
    pub again: u64,
    /// That in parts of a thousand.
    pub per_mille: u32,
}

/// See `Backend::flows`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct BackendFlows {
    /// Not yet 30 s old.
    pub young: u64,
    /// Older.
    pub pin: u64,
}

impl BackendFlows {
    /// Flows that live.
    #[must_use]
    pub const fn live(&self) -> u64 {
        self.young + self.pin
    }
}

impl Status {
    /// Packets that were counted for a reason.
    #[must_use]
    pub fn packets(&self, reason: &str) -> u64 {
        self.reasons.get(reason).map_or(0, |count| count.packets)
    }

    /// A backend of the lab's service.
    #[must_use]
    pub fn backend(&self, name: &str) -> Option<&Backend> {
        let service = self
            .services
            .iter()
            .find(|s| s.name == crate::config::SERVICE)?;
        service.backends.iter().find(|backend| backend.name == name)
    }

    /// A backend's health, or nothing for one that is not known.
    #[must_use]
    pub fn health(&self, name: &str) -> &str {
        self.backend(name).map_or("", |backend| &backend.health)
    }

    /// A backend's part of a thousand new flows, and whether its slow start lasts; nothing for one that is not known.
    #[must_use]
    pub fn share(&self, name: &str) -> (u16, bool) {
        let balance = self.backend(name).map(|backend| backend.balance);
        balance.map_or((0, false), |balance| (balance.per_mille, balance.starting))
    }

    /// A backend's serving, or nothing for one that is not known.
    #[must_use]
    pub fn serving(&self, name: &str) -> &str {
        self.backend(name).map_or("", |backend| &backend.serving)
    }
}
