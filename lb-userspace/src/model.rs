//! The words of the control plane: admin state, health and what passes between its parts.

mod check;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime},
};

use lb_common::backend::{Mode, NextHop};
use serde::{Deserialize, Serialize};

pub(crate) use self::check::without_port;
pub use self::check::{
    Authorities, Check, CheckKind, GrpcCheck, HttpCheck, Initial, JsonEquals, RequestTarget, Tls,
    Trust, WebSocketCheck,
};
use crate::{ids::Numbered, pace::Moment};

/// What the operator wants of a backend.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Admin {
    /// Takes flows as its health allows.
    #[default]
    Active,
    /// Takes no new flows and keeps those it has.
    Draining,
    /// Takes no flows; those it has keep going, but it does not count as usable, not even in fail-open.
    Disabled,
}

/// What the checks say of a backend.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// No verdict yet.
    #[default]
    Unknown,
    /// It says yes.
    Up,
    /// Something answers, but not with a yes: its flows stay.
    Refusing,
    /// The host is gone.
    Down,
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Refusing => "refusing",
            Self::Down => "down",
        })
    }
}

/// What becomes of the flows of a backend whose host is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnDown {
    /// Each is closed on its next packet, so that its client connects anew at once.
    #[default]
    Reset,
    /// They stay where they are, in case the host comes back with its connections.
    Keep,
    /// They go, each with its next packet, to the backend that today's table gives them.
    Rehash,
}

/// Why clients of dead backends are not told of their death.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Suspension {
    /// Over half of the service's hosts fell at once: this machine's own eyes are in doubt.
    MassFall,
    /// Over half of the hosts of all services fell at once.
    MassFallEverywhere,
    /// Too few backends are usable, and all active ones take flows: perhaps it is the check that is wrong.
    FailOpen,
}

impl std::fmt::Display for Suspension {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::MassFall => "over half of its backends' hosts fell within 10 s",
            Self::MassFallEverywhere => "over half of all services' hosts fell within 10 s",
            Self::FailOpen => "it is in fail-open",
        })
    }
}

/// A backend by name, unique on this instance.
#[derive(
    Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
pub struct BackendName {
    /// The service it serves.
    pub service: String,
    /// Its name in that service.
    pub backend: String,
}

impl std::fmt::Display for BackendName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

/// Drains that were ordered by command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drains {
    /// Of one backend each, with a deadline if one was asked for.
    pub backends: BTreeMap<BackendName, Option<Asked>>,
    /// Of all backends, those to come among them: this host is evacuated.
    pub all: Option<Evacuation>,
}

/// A drain of all backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evacuation {
    /// A deadline, if one was asked for.
    pub asked: Option<Asked>,
}

impl Drains {
    /// Whether a backend is drained.
    pub fn hold(&self, name: &BackendName) -> bool {
        self.all.is_some() || self.backends.contains_key(name)
    }

    /// The deadline that was asked for it: of two the earlier.
    pub fn asked(&self, name: &BackendName) -> Option<Asked> {
        let own = self.backends.get(name).copied().flatten();
        let of_all = self.all.and_then(|all| all.asked);
        own.into_iter().chain(of_all).min_by_key(|asked| {
            let since = asked.since.unwrap_or(Moment(i64::MAX));
            since.later(asked.deadline)
        })
    }

    /// Deadlines that were asked for and do not count yet do from now on. True if there was one.
    pub fn begin(&mut self, now: Moment) -> bool {
        let of_all = self.all.iter_mut().filter_map(|all| all.asked.as_mut());
        let mut began = false;
        for asked in self.backends.values_mut().flatten().chain(of_all) {
            // Not after now, whatever a clock said that was set wrong: who asked for an end would wait for years.
            let since = asked.since.map_or(now, |since| since.min(now));
            began |= asked.since.replace(since) != Some(since);
        }
        began
    }
}

/// How long the flows of one drain may stay, as its command said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// How long, from the command on.
    pub deadline: Duration,
    /// Over which time they are closed then; none: as the service says.
    pub close_over: Option<Duration>,
    /// When the command came; none is now.
    pub since: Option<Moment>,
}

/// One backend to be checked: what the health module watches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose health it is.
    pub name: BackendName,
    /// Which object has that name now: to another one the verdict is told again.
    pub object: Numbered,
    /// Where the check goes.
    pub address: SocketAddr,
    /// How it is checked.
    pub check: Check,
    /// The way through the VIP, if the check takes that; none is straight to the address.
    pub through: Option<ToVip>,
    /// Whether its host is known to answer echoes, for who begins to check it: see [`HealthReport::answers_echoes`].
    pub answers_echoes: bool,
    /// The verdict that was found by another name, for who begins to check it: it goes on from that, and needs as much to change it.
    pub verdict: Health,
}

/// Where a check through the VIP goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToVip {
    /// The VIP, and the service's port.
    pub vip: SocketAddr,
    /// How its packets reach this one backend.
    pub by: Passage,
}

/// How packets to a VIP reach one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// In a tunnel to its address.
    Tunnel,
    /// By its MAC as the next hop.
    Link,
}

impl Passage {
    /// That of a mode; none where the VIP is no destination that a backend ever sees.
    pub const fn of(mode: Mode) -> Option<Self> {
        match mode {
            Mode::Ipip => Some(Self::Tunnel),
            Mode::L2 => Some(Self::Link),
            Mode::Nat | Mode::Dnat => None,
        }
    }
}

/// What the health module found out about a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthReport {
    /// Whose health it is.
    pub name: BackendName,
    /// The address that was checked, so that a report about a replaced backend is not believed.
    pub address: SocketAddr,
    /// The verdict.
    pub health: Health,
    /// Why the last check that failed did so, if any has.
    pub last_error: Option<LastError>,
    /// Whether its host answered the latest echo beside a yes, as far as is known. Only then its silence means something, so a restart is not to
    /// forget it.
    pub answers_echoes: bool,
}

/// Why a check failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// What was asked and what came instead of a yes, in one sentence.
    pub text: String,
    /// When a check succeeded for the first time after it; none while it lasts.
    pub ended: Option<SystemTime>,
}

/// What the neighbour module found out about the way to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHopReport {
    /// The backend's address.
    pub address: IpAddr,
    /// How to reach it, [`NextHop::local`] if it is on this host; none if there is no route or no neighbour answers. `outer_source` is this host's address on that route; `checksum_base` is left
    /// to the resolver.
    pub next_hop: Option<NextHop>,
    /// Whether the backend itself is the next hop, with no router in between: what mode `l2` needs.
    pub on_link: bool,
}
