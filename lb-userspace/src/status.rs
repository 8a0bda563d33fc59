//! What `tether status --json` says: the state of an instance at one moment, for people and scripts.
//!
//! Built by the reconciler, served by the admin socket, read by the command line; hence both directions of serde.

pub(crate) mod schema;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use lb_common::backend::{Mode, Serving};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::flows::Counts as BackendFlows;
use crate::{
    balance::{Balance, outlier::Signal},
    by_version::ByVersion,
    dns,
    flows::{Census, Fill},
    guard::{Guard, Lists},
    ids,
    model::{Admin, Health, Suspension},
};

/// An instance at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime_s: u64,
    /// When this was so, in seconds since 1970.
    #[serde(default)]
    pub at: u64,
    /// How far the latest change has come.
    pub generation: Generation,
    /// The configuration in force.
    pub config: ConfigStatus,
    /// Whether all backends are drained together, by command.
    #[serde(default)]
    pub evacuated: bool,
    /// Where the program is attached.
    pub attachments: Vec<Attachment>,
    /// Interfaces that the program should be attached to, and is not.
    #[serde(default)]
    pub detached: Vec<Detached>,
    /// Interfaces on the way to backends that only packets which came in by them can leave by.
    pub closed_egress: Vec<ClosedEgress>,
    /// Names in the DNS that backends come from.
    #[serde(default)]
    pub dns: Vec<DnsStatus>,
    /// The flow tables.
    pub flows: Flows,
    /// Services, by name; removed ones that still have flows among them.
    pub services: Vec<ServiceStatus>,
    /// Packets and bytes of every reason, by its name.
    pub reasons: BTreeMap<String, Packets>,
}

/// Numbers that grow with every accepted change of intent, side by side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Generation {
    /// Accepted: valid and remembered.
    pub accepted: u64,
    /// Resolved: joined with health and next hops.
    pub resolved: u64,
    /// Applied: in force in the data path, whole.
    pub applied: u64,
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigStatus {
    /// The file.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Why the latest reload was refused, if it was.
    pub error: Option<String>,
    /// What was changed at runtime and the file says otherwise.
    #[serde(default)]
    pub differences: Vec<Difference>,
    /// How often it was read again since the daemon started.
    #[serde(default)]
    pub reloads: Reloads,
}

/// Reloads since the daemon started, by what came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reloads {
    /// In force, or superseded by one that is.
    pub accepted: u64,
    /// Refused.
    pub refused: u64,
}

/// A name in the DNS that backends of a service come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DnsStatus {
    /// Name of the service.
    pub service: String,
    /// Name of the source: its backends' names begin with it.
    pub source: String,
    /// The name that is asked for.
    pub query: String,
    /// Which records.
    #[serde(rename = "type")]
    pub kind: dns::Kind,
    /// The addresses in force: those of the last answer that was one.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    /// How often it was asked without an answer that could be taken.
    pub failures: u64,
    /// Why the addresses in force are not of the latest answer, if they are not.
    pub error: Option<String>,
    /// Addresses that cannot be backends, and why.
    pub ignored: Vec<String>,
}

/// One backend that is otherwise than the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// Name of its service.
    pub service: String,
    /// Its name.
    pub backend: String,
    /// In what.
    pub change: DifferenceKind,
    /// How it is, for people; none if it is not there.
    pub now: Option<String>,
    /// How the file has it, for people; none if it does not.
    pub file: Option<String>,
}

/// In what a backend is otherwise than the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DifferenceKind {
    /// The file does not have it.
    Added,
    /// The file has another one of its name.
    Replaced,
    /// The file gives it another weight.
    Weight,
    /// The file has it still.
    Removed,
    /// The file has it active.
    Drained,
}

/// The program on one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attachment {
    /// Name of the interface.
    pub interface: String,
    /// How it is attached.
    pub mode: AttachMode,
}

/// An interface that the program should be attached to, and is not: no traffic is served there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Detached {
    /// Name of the interface.
    pub interface: String,
    /// Why, and what to do.
    pub reason: String,
}

/// Where the program is attached, and where it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachments {
    /// Where it is.
    pub attached: Vec<Attachment>,
    /// Where it should be, and is not.
    pub detached: Vec<Detached>,
}

/// An interface on the way to backends that packets which came in by another interface cannot leave by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClosedEgress {
    /// Name of the interface.
    pub interface: String,
    /// Why, and what to do.
    pub reason: String,
}

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the stack, after the kernel has made a buffer of the frame.
    Generic,
}

/// What the flow tables hold, both together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Flows {
    /// Entries that they have room for.
    pub capacity: u64,
    /// Entries whose SYN was seen.
    pub embryo: u64,
    /// Entries not yet proven by time.
    pub young: u64,
    /// Proven entries.
    pub pin: u64,
    /// Entries whose end was seen.
    pub closing: u64,
    /// Entries in use, as a fraction of the capacity.
    #[serde(rename = "use")]
    pub used: f64,
    /// How full the fuller one is, in steps: without embryos, which give way to any flow.
    #[serde(default)]
    pub fill: Fill,
    /// Each table, by version of IP.
    #[serde(default)]
    pub tables: ByVersion<FlowTable>,
}

/// One flow table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FlowTable {
    /// Entries that it has room for.
    pub capacity: u64,
    /// Entries in use, as a fraction of the capacity.
    #[serde(rename = "use")]
    pub used: f64,
    /// How full it is, in steps: without embryos.
    pub fill: Fill,
}

impl Flows {
    /// As they were counted.
    pub fn new(census: &Census, fill: ByVersion<Fill>) -> Self {
        let tables = ByVersion::of(|version| {
            let table = &census.tables[version];
            FlowTable {
                capacity: table.capacity,
                used: ratio(table.counts.entries(), table.capacity),
                fill: fill[version],
            }
        });
        let total = census.total();
        let capacity = tables.v4.capacity + tables.v6.capacity;
        Self {
            capacity,
            embryo: total.embryo,
            young: total.young,
            pin: total.pin,
            closing: total.closing,
            used: ratio(total.entries(), capacity),
            fill: fill.v4.max(fill.v6),
            tables,
        }
    }

    /// Flows that live: neither SYNs alone, nor what has ended.
    pub fn live(&self) -> u64 {
        self.young + self.pin
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its VIP.
    #[schema(value_type = String)]
    pub vip: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its mode.
    #[schema(schema_with = schema::mode)]
    pub mode: Mode,
    /// Whether it is no longer configured and is only there for the flows it has.
    pub removed: bool,
    /// Whether too few backends are usable, so that all active ones take new flows.
    pub fail_open: bool,
    /// Flows that began while that was so, since the daemon started: as a pass over the flow tables finds them, so to some seconds.
    #[serde(default)]
    pub fail_open_flows: u64,
    /// Clients that keep a backend, if it places clients: as a pass over the flow tables finds them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<u64>,
    /// Whom it takes new flows from, and how many of one source, if that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardStatus>,
    /// Whether backends are usable, and all of them have as many connections as they may: new flows are dropped.
    #[serde(default)]
    pub full: bool,
    /// How its new flows are spread.
    #[serde(default)]
    pub balance: ServiceBalance,
    /// Why dead backends' clients are not told, if they are not.
    pub resets_suspended: Option<Suspension>,
    /// Why it is not served as configured, if it is not.
    pub error: Option<String>,
    /// Its backends; removed ones last.
    pub backends: Vec<BackendStatus>,
}

/// Whom a service takes new flows from, and how many of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuardStatus {
    /// The whole of it in a few words.
    pub summary: String,
    /// Prefixes that may open new flows, and no others, if there are any.
    pub allow: u64,
    /// Prefixes that may open none.
    pub deny: u64,
    /// What one source may have, if that is limited.
    pub source_limit: Option<SourceLimitStatus>,
    /// The prefixes, for explanations: there may be many, and they are not told.
    #[serde(skip)]
    pub lists: Arc<Lists>,
}

/// How many flows one source may open and have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SourceLimitStatus {
    /// Addresses with so many bits in common are one source.
    pub prefix: u8,
    /// New flows a second, in the long run; none is no limit.
    pub new_per_second: Option<u32>,
    /// New flows at once.
    pub burst: u32,
    /// Flows at a time; none is no limit.
    pub flows: Option<u32>,
}

impl From<&Guard> for GuardStatus {
    fn from(guard: &Guard) -> Self {
        Self {
            summary: guard.short(),
            allow: guard.lists.allow.len() as u64,
            deny: guard.lists.deny.len() as u64,
            source_limit: guard.limit.map(|limit| SourceLimitStatus {
                prefix: limit.prefix,
                new_per_second: limit.new_per_second,
                burst: limit.burst,
                flows: limit.flows,
            }),
            lists: Arc::clone(&guard.lists),
        }
    }
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackendStatus {
    /// Its name in the service.
    pub name: String,
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its weight.
    pub weight: u16,
    /// What the operator wants.
    pub admin: Admin,
    /// Whether it is no longer configured and is only there for the flows it has.
    pub removed: bool,
    /// What the checks say.
    pub health: Health,
    /// What it is given.
    #[schema(schema_with = schema::serving)]
    pub serving: Serving,
    /// Whether its next hop is known.
    pub neighbour: Neighbour,
    /// Why the last check that failed did so, if any has: what was asked and what came instead.
    pub last_error: Option<String>,
    /// When a check succeeded for the first time after it, in seconds since 1970; none while it lasts.
    pub last_error_ended: Option<u64>,
    /// The end of its drain, if it is drained or removed, and that has a deadline.
    pub drain: Option<DrainStatus>,
    /// Its part in the balance.
    #[serde(default)]
    pub balance: BackendBalance,
    /// Its flows.
    pub flows: BackendFlows,
    /// Mode `nat`: the addresses that it sees in the place of clients'.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snat: Vec<SnatStatus>,
    /// What its entry in the maps is found by, as this daemon knows it: not told.
    #[serde(skip)]
    pub identity: Option<u64>,
    /// Its mode, if that is known: not told. Its service may have another by now.
    #[serde(skip)]
    pub mode: Option<Mode>,
}

/// A SNAT address toward a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnatStatus {
    /// The address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Ports in use there, or resting after use, by all services of the backend's address and port; of 64,512.
    pub ports: u32,
}

impl BackendStatus {
    /// Its identity, as backend of this service: what its entry in the maps is found by. Where it is not known it is that of a backend which is configured so
    /// today: one that was removed may have another, of the mode that its service had, or of a name that nobody remembers.
    pub fn identity(&self, service: &ServiceStatus) -> u64 {
        self.identity.unwrap_or_else(|| {
            ids::backend_identity(
                (&service.name, service.vip, service.port),
                &self.name,
                self.address,
                self.port,
                service.mode,
            )
        })
    }

    /// Its mode, as backend of this service.
    pub fn mode(&self, service: &ServiceStatus) -> Mode {
        self.mode.unwrap_or(service.mode)
    }
}

/// The end of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DrainStatus {
    /// Seconds until its deadline, rounded up; 0 once that has passed.
    pub deadline_s: u64,
    /// The part of its flows that is closed, each on its next packet: 0 to 1.
    pub closed: f64,
}

/// How a service's new flows are spread.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ServiceBalance {
    /// Whether backups take new flows, since too few primaries can.
    pub backups: bool,
    /// Whether other zones take new flows, since not enough of the local one can.
    pub spills: bool,
    /// What shares follow.
    pub balance: Balance,
    /// How often its weights have moved to even out connections, since the daemon started.
    pub moves: u64,
    /// How often a backend was ejected for what its clients send again, since the daemon started.
    pub ejections: u64,
}

/// A backend's part in the balance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct BackendBalance {
    /// With so many connections it takes no new ones.
    pub max_connections: Option<u32>,
    /// Whether it has as many, or had and is not below by enough yet.
    pub full: bool,
    /// Whether it takes new flows only while too few primaries can.
    pub backup: bool,
    /// The zone that it is in.
    pub zone: Option<String>,
    /// Its part of a thousand new flows.
    pub per_mille: u16,
    /// Whether it has begun to take new flows a short while ago, and gets less than its share.
    pub starting: bool,
    /// Why it takes no new flows while others can, if its clients send much more again than its peers'.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejected: Option<EjectedStatus>,
    /// What its clients send again, if its service wants to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeats: Option<RepeatsStatus>,
}

/// Why a backend is ejected, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EjectedStatus {
    /// What its clients send again.
    pub signal: Signal,
    /// The same, in a sentence.
    pub reason: String,
    /// How many times it was ejected of late, this one included.
    pub times: u32,
    /// Seconds until it takes new flows again, rounded up.
    pub left_s: u64,
}

/// What a backend's clients have sent in the latest window of time, and sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RepeatsStatus {
    /// Connections: those whose handshake was finished, or whose SYN came again.
    pub syns: ShareStatus,
    /// Segments with data of the flows that were watched.
    pub data: ShareStatus,
}

/// How much of something was sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShareStatus {
    /// How much there was.
    pub samples: u64,
    /// How much of it came again.
    pub again: u64,
    /// That in parts of a thousand.
    pub per_mille: u32,
}

/// Whether a next hop is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Neighbour {
    /// Packets can be sent.
    Resolved,
    /// It is on this host, and packets are left to the host's own stack.
    Local,
    /// No route, or nobody answers: packets are dropped, and counted as such.
    Unresolved,
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Packets {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the Ethernet header on.
    pub bytes: u64,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The status of an instance that has nothing.
    pub(crate) fn empty() -> Status {
        Status {
            version: "0".to_owned(),
            pid: 1,
            uptime_s: 0,
            at: 0,
            evacuated: false,
            generation: Generation::default(),
            config: ConfigStatus {
                path: PathBuf::new(),
                error: None,
                differences: Vec::new(),
                reloads: Reloads::default(),
            },
            attachments: Vec::new(),
            detached: Vec::new(),
            closed_egress: Vec::new(),
            flows: Flows::default(),
            services: Vec::new(),
            dns: Vec::new(),
            reasons: BTreeMap::new(),
        }
    }

    /// A service of mode `nat` without backends.
    pub(crate) fn service(vip: IpAddr) -> ServiceStatus {
        ServiceStatus {
            name: "chat".to_owned(),
            vip,
            port: 80,
            mode: Mode::Nat,
            removed: false,
            fail_open: false,
            fail_open_flows: 0,
            clients: Some(5),
            guard: None,
            full: false,
            balance: ServiceBalance::default(),
            resets_suspended: None,
            error: None,
            backends: Vec::new(),
        }
    }
}
