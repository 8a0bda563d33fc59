//! The configuration: text to validated, typed data, with every error at its place.
//!
//! * [`load`] and [`parse`] give a [`Config`] or all that is wrong with it
//! * [`problem`]: what is wrong, where, and what to do
//! * [`Service::backend`]: a backend from elsewhere, held to the same rules
//!
//! A [`Config`] that exists is valid as a whole; nothing after this module asks again.

pub mod problem;
mod read;
mod rules;
mod schema;
mod seen;
mod spec;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::Read as _,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use lb_common::{backend::Mode, net::IpVersion};

pub use self::{
    problem::{Place, Problem, Problems},
    read::duration_within,
    rules::{BackendSpec, MAX_WEIGHT, WEIGHT, usual_weight},
    schema::schema,
};
pub(crate) use self::{rules::weight_broken, seen::Seen};
use crate::{
    balance::{Part, Policy},
    dns::{Bounds, Question, Servers},
    guard::Guard,
    model::{Admin, Check, OnDown},
    neighbour::outer::OuterSources,
};

/// A configuration, valid as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// The [`digest`] of its text.
    pub digest: u64,
    /// Whether the file is loaded whenever it has changed.
    pub reload_on_change: bool,
    /// Where the XDP program is attached; at least one, no two alike.
    pub interfaces: Vec<String>,
    /// The interfaces behind which backends are on this host, names or beginnings of names with `*` after; none: what the kernel tells of links decides.
    pub local_interfaces: Option<Vec<String>>,
    /// What the outer headers of mode `ipip` are from, in the place of this host's addresses.
    pub outer_sources: OuterSources,
    /// Holds the lock, the admin socket and what survives a restart.
    pub state_dir: PathBuf,
    /// The pin directory.
    pub bpffs: PathBuf,
    /// The secret of the fleet, if the configuration gives one.
    pub fleet_seed: Option<[u64; 4]>,
    /// Whom names are asked of; none is those of `/etc/resolv.conf`.
    pub dns_servers: Servers,
    /// The group whose members may read by the admin socket, if there is one.
    pub admin_group: Option<String>,
    /// Where metrics are served; none is nowhere.
    pub metrics: Option<SocketAddr>,
    /// Capacities of the maps.
    pub limits: Limits,
    /// Where the file says them, by key. One that is not here has its default.
    pub limit_places: BTreeMap<&'static str, Place>,
    /// Health checks that are under way at once, of all services, at most.
    pub checks_at_once: usize,
    /// The services; names, and pairs of VIP and port, are unique.
    pub services: Vec<Service>,
}

/// The most that `flows` in `[limits]` may be.
pub const MAX_FLOWS: u32 = 20_000_000;
/// The most that `flows6` in `[limits]` may be.
pub const MAX_FLOWS6: u32 = 10_000_000;
/// What `drain_deadline` may be: up to 30 days.
pub const DRAIN_DEADLINES: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(720);
/// What `close_over` may be.
pub const CLOSE_OVERS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24);
/// `close_over` if nothing is said.
pub const CLOSE_OVER: Duration = Duration::from_secs(60);
/// From when on a flow may be called idle, by whoever waits for the end of a drain.
pub const IDLE_AFTERS: RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_hours(240);
/// What `reset_over` may be: a dead backend's clients wait for as long.
pub const RESET_OVERS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);

/// How long a client without flows keeps its backend, if the service does not say: as with the affinity of a service of Kubernetes.
pub const AFFINITY_TIMEOUT: Duration = Duration::from_hours(3);
/// What `affinity_timeout` may be: what is kept of it has 16 bits, of 4.3 s.
pub const AFFINITY_TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_hours(72);

/// The most that `prefixes` in `[limits]` may be.
pub const MAX_PREFIXES: u32 = 1 << 22;
/// The most that `new_per_second` and `burst` in `[service.source_limit]` may be.
pub const MAX_RATE: u32 = 1_000_000;

/// The most that `nat_pairs` in `[limits]` may be.
pub const MAX_NAT_PAIRS: u32 = 2_000;

/// Capacities of the maps. But for that of flows they are fixed while the maps live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// IPv4 flows at the design load.
    pub flows: u32,
    /// IPv6 flows at the design load.
    pub flows6: u32,
    /// Entries of the services map; id 0 is not used.
    pub services: u32,
    /// Entries of the backends map; id 0 is not used.
    pub backends: u32,
    /// Slots of the arena.
    pub table_slots: u32,
    /// Pairs of a SNAT address and a backend's address and port, each with 64,512 ports.
    pub nat_pairs: u32,
    /// Clients that keep their backends.
    pub clients: u32,
    /// Ranges that the lists of all services come to.
    pub prefixes: u32,
    /// Sources that are told apart.
    pub sources: u32,
}

impl Limits {
    /// The key of the limit of flows of a version of IP.
    pub const fn flows_key(version: IpVersion) -> &'static str {
        match version {
            IpVersion::V4 => "flows",
            IpVersion::V6 => "flows6",
        }
    }

    /// Flows of a version of IP at the design load.
    pub const fn flows_of(&self, version: IpVersion) -> u32 {
        match version {
            IpVersion::V4 => self.flows,
            IpVersion::V6 => self.flows6,
        }
    }

    /// The most that [`Limits::flows_of`] may be.
    pub const fn most_flows(version: IpVersion) -> u32 {
        match version {
            IpVersion::V4 => MAX_FLOWS,
            IpVersion::V6 => MAX_FLOWS6,
        }
    }
}

/// Entries of the maps that the services of a configuration take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Of the services map, id 0 included.
    pub services: u64,
    /// Of the backends map, id 0 included.
    pub backends: u64,
    /// Of the arena: all tables, and the largest once more, since it is written anew beside them.
    pub table_slots: u64,
    /// Pairs of a SNAT address and a backend's address and port, whatever the service.
    pub nat_pairs: u64,
    /// Ranges of client addresses: those of all lists, and the most of one service once more, since they are written anew beside them.
    pub prefixes: u64,
}

impl Config {
    /// What its services need.
    pub fn needs(&self) -> Needs {
        let services = &self.services;
        let backends: usize = services.iter().map(|service| service.backends.len()).sum();
        let sizes = || services.iter().map(|service| u64::from(service.table_size));
        let guards = || services.iter().filter_map(|service| service.guard.as_ref());
        let ranges = || guards().map(|guard| guard.ranges.len() as u64);
        Needs {
            services: services.len() as u64 + 1,
            backends: backends as u64 + 1,
            table_slots: sizes().sum::<u64>() + sizes().max().unwrap_or(0),
            nat_pairs: self.nat_pairs().len() as u64,
            prefixes: ranges().sum::<u64>() + ranges().max().unwrap_or(0),
        }
    }

    /// Whether a service has a guard.
    pub fn guards(&self) -> bool {
        self.services.iter().any(|service| service.guard.is_some())
    }

    /// Whether a service at a VIP of this version has its addresses translated: modes `nat` and `dnat`.
    pub fn translates(&self, version: IpVersion) -> bool {
        self.services
            .iter()
            .any(|service| IpVersion::of(service.vip) == version && service.mode.translates())
    }

    /// Whether a service wants to know what its clients send again.
    pub fn measures(&self) -> bool {
        let mut services = self.services.iter();
        services.any(|service| service.policy.outlier.is_some())
    }

    /// All pairs of a SNAT address and a backend's address and port.
    fn nat_pairs(&self) -> BTreeSet<(IpAddr, SocketAddr)> {
        let of = |service: &Service, snat: IpAddr| -> Vec<_> {
            let backends = service.backends.iter();
            backends
                .map(|backend| (snat, SocketAddr::new(backend.address, backend.port)))
                .collect()
        };
        self.services
            .iter()
            .flat_map(|service| service.snat.iter().flat_map(move |&snat| of(service, snat)))
            .collect()
    }
}

/// A service as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its VIP.
    pub vip: IpAddr,
    /// Its port, not 0.
    pub port: u16,
    /// Its mode.
    pub mode: Mode,
    /// Mode `nat`: the addresses that backends see in the place of clients', 1 to 8 of the VIP's version; none in the others.
    pub snat: Vec<IpAddr>,
    /// Slots of its table: a prime, at least 64 for each backend.
    pub table_size: u32,
    /// With fewer usable backends than this it fails open.
    pub min_healthy: u32,
    /// How long flows may stay on a backend that is drained or removed; none: as long as they live.
    pub drain_deadline: Option<Duration>,
    /// Over which time they are closed then.
    pub close_over: Duration,
    /// What becomes of the flows of a dead backend.
    pub on_down: OnDown,
    /// Over which time clients of a dead backend are told.
    pub reset_over: Duration,
    /// How it places clients; none: it places each flow for itself.
    pub affinity: Option<Affinity>,
    /// How new flows are spread.
    pub policy: Policy,
    /// Whom it takes new flows from, and how many of one source; none: of all, and as many as come.
    pub guard: Option<Guard>,
    /// The files that this was read from.
    pub list_files: Vec<PathBuf>,
    /// Its backends; names, and pairs of address and port, are unique in the service.
    pub backends: Vec<Backend>,
    /// Names in the DNS that further backends come from; unique by their own names.
    pub dns: Vec<DnsSource>,
    /// How backends are checked.
    pub check: Check,
    /// Where, if not at each backend's port.
    pub check_port: Option<u16>,
}

/// How a service places clients: all flows of one at one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// Services of one group place clients together, by the addresses of their backends; none: it does so alone.
    pub group: Option<String>,
    /// How long a client without flows keeps its backend; zero: its address alone decides, also while it has some.
    pub timeout: Duration,
}

/// A name in the DNS as a source of backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSource {
    /// What its backends' names begin with.
    pub name: String,
    /// What is asked.
    pub question: Question,
    /// How often.
    pub bounds: Bounds,
    /// Port of its backends if the records give none; none is the service's.
    pub port: Option<u16>,
    /// Weight of each of its backends if the records give none.
    pub weight: u16,
}

/// A backend as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name in the service.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port, not 0.
    pub port: u16,
    /// Its share of new flows in relation to the others', 0 to 1000.
    pub weight: u16,
    /// What the operator wants of it.
    pub admin: Admin,
    /// Its part in the balance.
    pub part: Part,
    /// The zone that it is in.
    pub zone: Option<String>,
    /// How it is checked.
    pub check: Check,
    /// Where the check goes.
    pub check_address: SocketAddr,
}

/// A valid configuration, with what deserves a second look.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What is legal but probably not meant.
    pub warnings: Vec<Problem>,
}

/// Reads and validates a file.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file; or that it cannot be read.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    parse(path, &read(path)?)
}

/// Reads a file's text.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<String, Problems> {
    read_file(path).map_err(|error| Problems::unreadable(path, &error))
}

/// The largest file that is read, in bytes: a thousand services of twenty backends take two million.
pub(crate) const MAX_FILE: u64 = 16 << 20;

/// Reads a regular file, whole. A pipe or a device would keep a reload waiting for ever.
fn read_file(path: &Path) -> std::io::Result<String> {
    use std::io::Error;
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if !kind.is_file() {
        return Err(Error::other("it is no regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(Error::other(
            "it is larger than 16 MiB, which no configuration is",
        ));
    }
    String::from_utf8(text).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count();
        Error::other(format!("it is no UTF-8 text, from line {line} on"))
    })
}

/// Tells one text from another, within a process.
pub fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Validates a configuration's text; `path` is for messages.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub fn parse(path: &Path, text: &str) -> Result<Loaded, Problems> {
    spec::parse(path, text)
}

/// Keys whose values are files that are read with the configuration.
const FILE_KEYS: [&str; 3] = ["allow_file", "deny_file", "ca"];

/// Files that a configuration's text names, valid or not; none if it is no TOML. One of them may be what is wrong with it.
pub fn files_named_in(text: &str) -> BTreeSet<PathBuf> {
    fn collect(value: &toml::Value, files: &mut BTreeSet<PathBuf>) {
        match value {
            toml::Value::Table(table) => collect_of(table, files),
            toml::Value::Array(values) => values.iter().for_each(|value| collect(value, files)),
            _ => {}
        }
    }
    fn collect_of(table: &toml::Table, files: &mut BTreeSet<PathBuf>) {
        for (key, value) in table {
            let path = value.as_str().map(PathBuf::from);
            match path.filter(|path| FILE_KEYS.contains(&key.as_str()) && path.is_absolute()) {
                Some(path) => {
                    files.insert(path);
                }
                None => collect(value, files),
            }
        }
    }
    let mut files = BTreeSet::new();
    if let Ok(table) = toml::from_str::<toml::Table>(text) {
        collect_of(&table, &mut files);
    }
    files
}

#[cfg(test)]
mod tests;
