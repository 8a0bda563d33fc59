//! What can happen in a storm.

/// One kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A backend is added: a new one, or one that was removed.
    Add,
    /// A backend is removed, by the file or by command.
    Remove,
    /// A backend begins or ends to drain.
    Drain,
    /// A backend's weight changes, in the file or by command.
    Reweight,
    /// The daemon reads a changed file.
    Reload,
    /// The daemon reads a file that is none, and then a good one.
    BrokenReload,
    /// A backend fails its checks for a moment.
    HealthFlap,
    /// A backend closes its listeners, or fails its checks, until that is found, and for a while after.
    Refusing,
    /// The daemon dies by SIGKILL and returns after a while.
    DaemonKill,
    /// The daemon stops and another takes over with a new XDP program.
    DaemonUpgrade,
    /// The kernel forgets the balancer's neighbours.
    NeighbourFlush,
    /// A link dies for less time than anybody needs to find out.
    LinkFlap,
    /// A backend's host loses its power, and comes back once its clients are elsewhere.
    BackendKill,
    /// SYNs from made-up sources flood the balancer until after the next event.
    SynFlood,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 14] = [
        Self::Add,
        Self::Remove,
        Self::Drain,
        Self::Reweight,
        Self::Reload,
        Self::BrokenReload,
        Self::HealthFlap,
        Self::Refusing,
        Self::DaemonKill,
        Self::DaemonUpgrade,
        Self::NeighbourFlush,
        Self::LinkFlap,
        Self::BackendKill,
        Self::SynFlood,
    ];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Drain => "drain",
            Self::Reweight => "reweight",
            Self::Reload => "reload",
            Self::BrokenReload => "broken_reload",
            Self::HealthFlap => "health_flap",
            Self::Refusing => "refusing",
            Self::DaemonKill => "daemon_kill",
            Self::DaemonUpgrade => "daemon_upgrade",
            Self::NeighbourFlush => "neighbour_flush",
            Self::LinkFlap => "link_flap",
            Self::BackendKill => "backend_kill",
            Self::SynFlood => "syn_flood",
        }
    }
}
