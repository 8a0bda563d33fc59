//! What a restart must not forget and the maps do not hold: drains and changes that were asked for at runtime, since when backends are drained,
//! answers of the DNS, names, which hosts answer echoes, how far backends' slow starts are, and what becomes of flows of services that are gone from the file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder},
    io,
    io::Write,
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::answers::Remembered;
use crate::{
    desired::{Changes, Endpoint},
    failpoint,
    model::{Asked, BackendName, Drains, Evacuation, OnDown},
    pace::{Moment, Terms},
};

/// The file's name in the state directory.
const FILE: &str = "runtime.json";
/// Its name while it is being written.
const ASIDE: &str = "runtime.json.new";
/// Its name once it could not be used.
const BROKEN: &str = "runtime.json.broken";
/// What may be left in a state directory: for who removes it.
pub const FILES: [&str; 3] = [FILE, ASIDE, BROKEN];
/// Version of the file's form.
const VERSION: u32 = 1;
/// How long it holds that a host answers echoes while no daemon asks it. In a longer time it may have been forbidden to, and then its silence is no death.
const ECHOES_HOLD: Duration = Duration::from_secs(900);
/// How often it is saved anew while a daemon asks: once none does, it holds for ten minutes at least.
const ECHOES_SAVED_EVERY: Duration = Duration::from_secs(240);

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    version: u32,
    /// Backends that are drained by command.
    drained: BTreeSet<BackendName>,
    /// What is otherwise than the file says. A version before this one leaves it out.
    #[serde(default)]
    pub(super) changes: Changes,
    /// The latest answers of the DNS, for a daemon that finds it silent.
    #[serde(default)]
    pub(super) answers: Vec<Remembered>,
    services: Vec<ServiceName>,
    /// By identity.
    backends: BTreeMap<u64, BackendName>,
    /// Deadlines that were asked for with drains by command.
    #[serde(default)]
    asked: Vec<AskedDrain>,
    /// All backends are drained by command.
    #[serde(default)]
    evacuated: Option<Evacuated>,
    /// Backends that are drained in whatever way, by identity.
    #[serde(default)]
    drains: BTreeMap<u64, Drain>,
    /// Hosts that answer echoes; none also in what a version before this one left.
    #[serde(default)]
    echoing: Option<Echoing>,
    /// Backends that get less than their shares since they began to take new flows, by identity; none also in what a version before this one left.
    #[serde(default)]
    starting: BTreeMap<u64, Starting>,
    /// This machine's clocks.
    #[serde(skip)]
    clocks: Clocks,
    /// The file is there and could not be read: it may be good, and is not replaced.
    #[serde(skip)]
    is_unread: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct AskedDrain {
    name: BackendName,
    #[serde(flatten)]
    asked: AskedTerms,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Evacuated {
    asked: Option<AskedTerms>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct AskedTerms {
    deadline_ms: u64,
    close_over_ms: Option<u64>,
    since: Option<Date>,
}

impl AskedTerms {
    fn new(asked: Asked, clocks: &Clocks) -> Self {
        Self {
            deadline_ms: millis(asked.deadline),
            close_over_ms: asked.close_over.map(millis),
            since: asked.since.map(|since| clocks.date(since)),
        }
    }

    fn asked(&self, clocks: &Clocks) -> Asked {
        Asked {
            deadline: Duration::from_millis(self.deadline_ms),
            close_over: self.close_over_ms.map(Duration::from_millis),
            since: self.since.as_ref().map(|since| clocks.moment(since)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Drain {
    begun: Date,
    deadline_ms: Option<u64>,
    close_over_ms: u64,
    since: Option<Date>,
}

/// Hosts that answered echoes while they were up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Echoing {
    /// When a daemon knew that last.
    known: Date,
    hosts: Vec<Host>,
}

/// How far a slow start is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Starting {
    began: Date,
    /// The part of its weight that the backend has.
    sixteenths: u8,
}

/// The host of a checked backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Host {
    name: BackendName,
    /// Where the check goes.
    address: SocketAddr,
}

/// A moment that is understood after the machine has started anew, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Date {
    /// Since which start of the machine `monotonic_ms` counts.
    boot: String,
    monotonic_ms: i64,
    /// The same moment by the wall clock, which people may set: for another boot.
    wall_ms: i64,
}

/// What turns moments into dates, and back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Clocks {
    /// The kernel's name for this start of the machine.
    boot: String,
    /// How far the wall clock is ahead of the monotonic one, in milliseconds.
    wall_ahead_ms: i64,
}

impl Clocks {
    fn read() -> Self {
        use nix::time::{ClockId, clock_gettime};
        let ms = |clock| {
            clock_gettime(clock)
                .map_or(0, |time| time.tv_sec() * 1_000 + time.tv_nsec() / 1_000_000)
        };
        Self {
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .map_or_else(|_| String::new(), |id| id.trim().to_owned()),
            wall_ahead_ms: ms(ClockId::CLOCK_REALTIME) - ms(ClockId::CLOCK_MONOTONIC),
        }
    }

    fn date(&self, moment: Moment) -> Date {
        Date {
            boot: self.boot.clone(),
            monotonic_ms: moment.0,
            wall_ms: moment.0.saturating_add(self.wall_ahead_ms),
        }
    }

    fn moment(&self, date: &Date) -> Moment {
        Moment(if date.boot == self.boot {
            date.monotonic_ms
        } else {
            date.wall_ms.saturating_sub(self.wall_ahead_ms)
        })
    }

    /// Whether a date is less than so long ago, and since the machine's last start.
    fn is_recent(&self, date: &Date, now: Moment, within: Duration) -> bool {
        date.boot == self.boot && now.since(self.moment(date)) < within
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ServiceName {
    vip: IpAddr,
    port: u16,
    name: String,
    /// What becomes of its dead backends' flows, and how fast; and how drains of its backends end. A version before this one leaves all of these out.
    #[serde(default)]
    on_down: OnDown,
    #[serde(default)]
    reset_over_ms: u64,
    #[serde(default)]
    deadline_ms: Option<u64>,
    #[serde(default)]
    close_over_ms: u64,
}

/// What the maps do not hold of a service, and nobody says of one that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownService {
    pub(super) name: String,
    pub(super) on_down: OnDown,
    pub(super) reset_over: Duration,
    pub(super) terms: Terms,
}

impl KnownService {
    /// One of which nothing is remembered.
    pub(super) fn unknown(endpoint: Endpoint) -> Self {
        Self {
            name: endpoint.to_string(),
            on_down: OnDown::default(),
            reset_over: Duration::ZERO,
            terms: Terms::NONE,
        }
    }
}

impl Memory {
    /// The same with these drains by command, changes, names and drains of all kinds. Which hosts answer echoes stays, and who starts:
    /// [`Memory::with_echoing`], [`Memory::with_starting`].
    pub(super) fn renewed(
        &self,
        ordered: &Drains,
        changes: Changes,
        answers: Vec<Remembered>,
        services: impl Iterator<Item = (Endpoint, KnownService)>,
        backends: impl Iterator<Item = (u64, BackendName)>,
        drains: impl Iterator<Item = (u64, Moment, Terms)>,
    ) -> Self {
        let clocks = &self.clocks;
        let asked = ordered.backends.iter().filter_map(|(name, asked)| {
            Some(AskedDrain {
                name: name.clone(),
                asked: AskedTerms::new((*asked)?, clocks),
            })
        });
        let evacuated = ordered.all.map(|all| Evacuated {
            asked: all.asked.map(|asked| AskedTerms::new(asked, clocks)),
        });
        let drains = drains.map(|(identity, begun, terms)| {
            let drain = Drain {
                begun: clocks.date(begun),
                deadline_ms: terms.deadline.map(millis),
                close_over_ms: millis(terms.close_over),
                since: terms.since.map(|since| clocks.date(since)),
            };
            (identity, drain)
        });
        Self {
            version: VERSION,
            asked: asked.collect(),
            evacuated,
            drains: drains.collect(),
            echoing: self.echoing.clone(),
            starting: self.starting.clone(),
            clocks: clocks.clone(),
            is_unread: self.is_unread,
            drained: ordered.backends.keys().cloned().collect(),
            changes,
            answers,
            services: services
                .map(|(Endpoint { vip, port }, known)| ServiceName {
                    vip,
                    port,
                    name: known.name,
                    on_down: known.on_down,
                    reset_over_ms: millis(known.reset_over),
                    deadline_ms: known.terms.deadline.map(millis),
                    close_over_ms: millis(known.terms.close_over),
                })
                .collect(),
            backends: backends.collect(),
        }
    }

    /// The same with the hosts that answer echoes now. As long as they are those that are remembered, when that was known is not renewed with every call.
    pub(super) fn with_echoing(
        self,
        hosts: impl Iterator<Item = (BackendName, SocketAddr)>,
        now: Moment,
    ) -> Self {
        let hosts: Vec<Host> = hosts
            .map(|(name, address)| Host { name, address })
            .collect();
        let held: &[Host] = self.echoing.as_ref().map_or(&[], |held| &held.hosts);
        if held == hosts && !self.is_ageing(now) {
            return self;
        }
        let known = self.clocks.date(now);
        Self {
            echoing: (!hosts.is_empty()).then_some(Echoing { known, hosts }),
            ..self
        }
    }

    /// The same with the backends that start slowly now: by identity, since when, and what part of its weight each has, in sixteenths.
    pub(super) fn with_starting(self, starting: impl Iterator<Item = (u64, Moment, u8)>) -> Self {
        let clocks = &self.clocks;
        let starting = starting
            .map(|(identity, began, sixteenths)| {
                let began = clocks.date(began);
                (identity, Starting { began, sixteenths })
            })
            .collect();
        Self { starting, ..self }
    }

    /// Since when a backend starts slowly, and what part of its weight it had, if it did and the machine has not started anew since. (After that it begins anew
    /// with all others, whatever the wall clock says.)
    pub(super) fn starting(&self, identity: u64) -> Option<(Moment, u8)> {
        let starting = self.starting.get(&identity)?;
        let began = &starting.began;
        (began.boot == self.clocks.boot).then(|| (self.clocks.moment(began), starting.sixteenths))
    }

    /// Whether it is time to save anew which hosts answer echoes, though they are the same.
    pub(super) fn is_ageing(&self, now: Moment) -> bool {
        let clocks = &self.clocks;
        self.echoing
            .as_ref()
            .is_some_and(|held| !clocks.is_recent(&held.known, now, ECHOES_SAVED_EVERY))
    }

    /// The hosts that answered echoes while they were up, by name and address that is checked, if that was known of late. Not what was known before the
    /// machine's last start: while its links come up, whoever is behind one of them is silent, and nothing tells that from a death.
    pub(super) fn echoing(&self, now: Moment) -> impl Iterator<Item = (BackendName, SocketAddr)> {
        let clocks = &self.clocks;
        self.echoing
            .iter()
            .filter(move |held| clocks.is_recent(&held.known, now, ECHOES_HOLD))
            .flat_map(|held| &held.hosts)
            .map(|host| (host.name.clone(), host.address))
    }

    /// Nothing but the clocks.
    pub(super) fn forgotten(&self) -> Self {
        Self {
            clocks: self.clocks.clone(),
            ..Self::default()
        }
    }

    /// Whether nothing is remembered.
    pub(super) fn is_empty(&self) -> bool {
        *self == self.forgotten()
    }

    /// Drains that were ordered by command, with the deadlines that were asked for.
    pub(super) fn ordered(&self) -> Drains {
        let asked = |name: &BackendName| {
            let asked = self.asked.iter().find(|asked| asked.name == *name)?;
            Some(asked.asked.asked(&self.clocks))
        };
        let backends = self.drained.iter();
        Drains {
            backends: backends.map(|name| (name.clone(), asked(name))).collect(),
            all: self.evacuated.as_ref().map(|all| Evacuation {
                asked: all.asked.as_ref().map(|asked| asked.asked(&self.clocks)),
            }),
        }
    }

    /// Since when a backend is drained, and how that was to end.
    pub(super) fn drain(&self, identity: u64) -> Option<(Moment, Terms)> {
        let drain = self.drains.get(&identity)?;
        let terms = Terms {
            deadline: drain.deadline_ms.map(Duration::from_millis),
            close_over: Duration::from_millis(drain.close_over_ms),
            since: drain.since.as_ref().map(|since| self.clocks.moment(since)),
        };
        Some((self.clocks.moment(&drain.begun), terms))
    }

    /// What a service was.
    pub(super) fn service(&self, endpoint: Endpoint) -> Option<KnownService> {
        self.services
            .iter()
            .find(|service| (service.vip, service.port) == (endpoint.vip, endpoint.port))
            .map(|service| KnownService {
                name: service.name.clone(),
                on_down: service.on_down,
                reset_over: Duration::from_millis(service.reset_over_ms),
                terms: Terms {
                    deadline: service.deadline_ms.map(Duration::from_millis),
                    close_over: Duration::from_millis(service.close_over_ms),
                    since: None,
                },
            })
    }

    /// The name that a backend had.
    pub(super) fn backend(&self, identity: u64) -> Option<BackendName> {
        self.backends.get(&identity).cloned()
    }

    /// What was saved in a state directory; nothing if nothing was. What cannot be used is set aside and told, but for the drains in it: it must not
    /// keep the configuration from being served. What cannot be read stays where it is.
    pub(super) fn load(directory: &Path) -> Self {
        let read = match fs::read(path(directory)) {
            Ok(text) => Self::understood(&text).unwrap_or_else(|error| {
                let drains = Self::drains_of(&text);
                set_aside(directory, &error, drains.is_some());
                drains.unwrap_or_default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::error!(
                    file = %path(directory).display(), %error,
                    "what the last run remembered cannot be read: {LOST_DRAINS}; {LOST_REST}. Nothing is remembered in its place: restart the daemon once it \
                     can be read, or remove it"
                );
                Self {
                    is_unread: true,
                    ..Self::default()
                }
            }
        };
        Self {
            clocks: Clocks::read(),
            ..read
        }
    }

    /// What [`Memory::load`] would find, if it is understood; nothing is said or set aside.
    pub(super) fn peek(directory: &Path) -> Self {
        let text = fs::read(path(directory)).ok();
        let understood = text.and_then(|text| Self::understood(&text).ok());
        understood.unwrap_or_default()
    }

    fn understood(text: &[u8]) -> io::Result<Self> {
        let memory: Self = serde_json::from_slice(text)?;
        if memory.version != VERSION {
            let wrong = format!(
                "it has form {}, and this version knows {VERSION}",
                memory.version
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, wrong));
        }
        Ok(memory)
    }

    /// The drains by command, without their deadlines, in a text of whatever form; none if they are not all found.
    fn drains_of(text: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Drained {
            drained: BTreeSet<BackendName>,
            evacuated: Option<serde::de::IgnoredAny>,
        }
        let Drained { drained, evacuated } = serde_json::from_slice(text).ok()?;
        Some(Self {
            drained,
            evacuated: evacuated.map(|_| Evacuated { asked: None }),
            ..Self::default()
        })
    }

    /// Saves it, whole or not at all: under another name first, then renamed.
    ///
    /// # Errors
    /// When it cannot be written, or the file there was not read; the file is then as it was. Or when its name cannot be synced: then it may be either.
    pub(super) fn save(&self, directory: &Path) -> io::Result<()> {
        if self.is_unread {
            return Err(io::Error::other(
                "the file there could not be read when the daemon started; restart the daemon once it can be, or remove it",
            ));
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        let aside = directory.join(ASIDE);
        let mut file = fs::File::create(&aside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        failpoint::pass(failpoint::Place::MemoryWritten);
        fs::rename(&aside, path(directory))?;
        failpoint::pass(failpoint::Place::MemoryRenamed);
        sync_names(directory)
    }
}

/// Has the names in a directory outlive a loss of power: that a file is synced says nothing of its name.
fn sync_names(directory: &Path) -> io::Result<()> {
    match fs::File::open(directory)?.sync_all() {
        // Not every file system knows of that for directories.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

/// The file in a state directory.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

const LOST_DRAINS: &str = "backends that were drained with `tether drain` take new flows unless they are drained again, and so do all after a `tether drain --all`";
const KEPT_DRAINS: &str =
    "what was drained with `tether drain` stays so, without a deadline of its own";
const LOST_REST: &str = "what was changed at runtime is as the configuration says, and what was removed from that is listed by its addresses; deadlines of drains count anew, backends that were starting slowly have their whole shares, and a routed backend that is dead is called refusing until it has been up";

/// Keeps an unusable file for people to look at, and says what is lost with it.
fn set_aside(directory: &Path, error: &io::Error, has_drains: bool) {
    let drains = if has_drains { KEPT_DRAINS } else { LOST_DRAINS };
    let (file, broken) = (path(directory), directory.join(BROKEN));
    match fs::rename(&file, &broken) {
        Ok(()) => tracing::error!(
            file = %file.display(), kept = %broken.display(), %error,
            "what the last run remembered cannot be used: {drains}; {LOST_REST}"
        ),
        Err(rename) => tracing::error!(
            file = %file.display(), %error, %rename,
            "what the last run remembered cannot be used, nor be set aside: {drains}; {LOST_REST}"
        ),
    }
}

#[cfg(test)]
mod tests;
