//! What there is to know. `None` is what could not be found out.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::backend::Mode;

use crate::{by_version::ByVersion, dataplane::kernel::device::Queues, neighbour::way::EntryState};

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The host.
    pub host: Host,
    /// The running daemon.
    pub daemon: Daemon,
    /// Where none runs and there is a configuration: what a start would come to.
    pub start: Option<Start>,
    /// Interfaces that the program is, or is to be, attached to, and those that lead to backends, by name.
    pub interfaces: BTreeMap<String, Interface>,
    /// Services.
    pub services: Vec<Service>,
}

/// The host as a whole.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The kernel's release, as `uname -r` tells it.
    pub release: String,
    /// Effective capabilities of the daemon, or of this process if there is none, as bits.
    pub capabilities: Option<u64>,
    /// Whether an ICMP socket for echoes is to be had without `CAP_NET_RAW`.
    pub may_ping: bool,
    /// The directory that maps are pinned below, and whether it is on a bpffs.
    pub bpffs: (String, Option<bool>),
    /// Whether BPF programs are compiled.
    pub jit: Option<bool>,
    /// Tracked connections, and the most that there may be; none without conntrack.
    pub conntrack: Option<(u64, u64)>,
    /// First and last of the ports that the kernel gives to its own connections.
    pub local_ports: Option<(u16, u16)>,
    /// Ports among those that it leaves out, as inclusive ranges.
    pub reserved_ports: Vec<(u16, u16)>,
}

/// The daemon, as it answers.
#[derive(Clone, Debug, Default)]
pub enum Daemon {
    /// It was not asked for, or nobody answers at the socket: why.
    #[default]
    Silent,
    /// It answers.
    Runs {
        /// Its process id.
        pid: u32,
        /// What it says is wrong: a refused configuration, services that it cannot serve, changes that are not in force.
        complaints: Vec<String>,
    },
}

/// What a start of this program would come to, as far as the kernel and what is pinned decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Neither is in its way.
    Begins,
    /// It would be refused: why, and what to do.
    Refused(String),
    /// It could not be found out: why, and what to do.
    Unseen(String),
}

impl Daemon {
    /// Whether it answers.
    pub const fn runs(&self) -> bool {
        matches!(self, Self::Runs { .. })
    }
}

/// The XDP program of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Program {
    /// None.
    #[default]
    None,
    /// Tether's.
    Ours {
        /// Whether it is attached by the driver.
        native: bool,
    },
    /// Somebody else's.
    Foreign {
        /// Its id.
        id: u32,
        /// Its name, if it has one.
        name: String,
    },
}

/// One interface.
#[derive(Clone, Debug, Default)]
pub struct Interface {
    /// Whether the configuration lists it.
    pub configured: bool,
    /// Whether it exists in this network namespace.
    pub exists: bool,
    /// Whether it is up and has a carrier.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it lets in frames for other hosts, whoever has asked for that.
    pub promiscuous: Option<bool>,
    /// The driver's name.
    pub driver: Option<String>,
    /// The XDP program on it.
    pub program: Program,
    /// What its driver can do with XDP, as bits of `netdev_xdp_act`; none where the kernel is too old to tell.
    pub features: Option<u64>,
    /// Whether GRO is on.
    pub gro: Option<bool>,
    /// Whether LRO is on.
    pub lro: Option<bool>,
    /// Whether headers and data of a TCP segment are put into buffers of their own, where the driver tells.
    pub splits_headers: Option<bool>,
    /// Queue pairs, where the driver tells.
    pub queues: Option<Queues>,
    /// CPUs that the machine may have.
    pub cpus: u32,
    /// Whether it is a bond, which gets frames by its ports.
    pub is_bond: bool,
    /// The bond that it is a port of.
    pub bond: Option<String>,
    /// The interface that it is a VLAN of.
    pub vlan_on: Option<String>,
    /// Programs and filters of traffic control on it that are not Tether's.
    pub tc: Option<Vec<String>>,
    /// Whether Tether's own is on it, which translates what backends on this host send back.
    pub translates_local: bool,
    /// The stricter of `rp_filter` of all interfaces and of this one.
    pub rp_filter: Option<u8>,
    /// By which interfaces the kernel does not forward what comes in by it: by this one, or if it is a bond by ports of its.
    pub unforwarded: ByVersion<Option<Vec<String>>>,
}

/// One service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its VIP.
    pub vip: IpAddr,
    /// Its mode.
    pub mode: Mode,
    /// Whether the VIP is an address of this host.
    pub own_vip: Option<bool>,
    /// MACs, other than this host's, that answer ARP for the VIP on the interfaces that lead to backends; none where nobody could be asked.
    pub answers: Option<Vec<[u8; 6]>>,
    /// SNAT addresses.
    pub snat: Vec<Snat>,
    /// Its backends.
    pub backends: Vec<Backend>,
}

/// A SNAT address.
#[derive(Clone, Debug)]
pub struct Snat {
    /// The address.
    pub address: IpAddr,
    /// Whether it is this host's.
    pub own: Option<bool>,
    /// Backends that the host itself connects to from it.
    pub used_toward: Vec<IpAddr>,
}

/// One backend.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Whether it is on this host.
    pub here: bool,
    /// Why there is no route to it.
    pub no_route: Option<String>,
    /// The interface that leads to it; empty if it is this host itself.
    pub interface: String,
    /// The router on the way, if there is one.
    pub gateway: Option<IpAddr>,
    /// What the neighbour's entry says, if there is one.
    pub neighbour: Option<EntryState>,
    /// The neighbour's MAC.
    pub mac: Option<[u8; 6]>,
    /// MTU of the route to it, in bytes.
    pub mtu: u32,
    /// Whether it answers a small ICMP echo, and one that fills a client's packet with what the mode adds; none where no socket is to be had.
    pub echoes: Option<Echoes>,
    /// What it says to a request for a connection that comes as a client's would.
    pub probe: Probe,
}

/// What came of ICMP echoes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Echoes {
    /// The small one was answered.
    pub small: bool,
    /// The large one was answered.
    pub large: bool,
}

/// What came of a request for a connection, sent as the mode does it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// It could not be sent.
    #[default]
    NotSent,
    /// Nobody answered.
    Silence,
    /// The backend accepts.
    Accepted {
        /// The answer came from the neighbour that the request went to, and not by a third.
        direct: bool,
    },
    /// The address is there, and nobody listens at the port.
    Refused,
    /// The host does not know the protocol of the outer header.
    NoTunnel,
}
