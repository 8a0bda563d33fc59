//! The lab's network as a value: clients, a router, the load balancer and backends, each a host of its own.
//!
//! ```text
//!   client ── router ──(segment 10.0.2.0/24)── balancer
//!               │                   └ b1 b2 b3   Place::Segment, for `l2`
//!               └──(farm 10.0.3.0/24)─ b1 b2 b3  Place::Farm, for `ipip`
//! ```
//!
//! For `nat` backends are on the farm too ([`Place::Hidden`]), for `dnat` on the segment ([`Place::Behind`]), and in both they know nothing of the VIP: what
//! they send back comes to the balancer, by its SNAT address or as their router, and it forwards.
//!
//! Segment and farm are bridges inside the router's namespace. The router sends the VIP's packets to the balancer; backends
//! have the VIP on their loopback and answer clients directly, through the router. Every host has addresses of both versions of
//! IP (see [`crate::address`]); which of them a service uses is its [`Family`].

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use lb_common::net::IpVersion;

use crate::address::{self, Family, Network, mac_of, mac_text};
use crate::frame::Mac;
use crate::namespace::Namespace;
use crate::passing;

/// The name that every host but the router knows its only link by.
pub const UPLINK: &str = "eth0";
/// The router's interface on the clients' side.
pub const CLIENT_PORT: &str = "client";
/// The router's interface on the balancer's side.
pub const BALANCER_PORT: &str = "lb";

/// Where encapsulated packets pass, they are longer than the clients' by a header.
const WIDE_MTU: u16 = 1600;
const MTU: u16 = 1500;

/// Where the backends live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the balancer's own layer-2 segment, as mode `l2` needs.
    Segment,
    /// Behind the router, where mode `ipip` reaches.
    Farm,
    /// In the same place, without the VIP, as mode `nat` needs.
    Hidden,
    /// On the segment, without the VIP, and with the balancer for a router, as mode `dnat` needs.
    Behind,
}

impl Place {
    /// The network there.
    #[must_use]
    pub const fn network(self) -> Network {
        match self {
            Self::Segment | Self::Behind => Network::Segment,
            Self::Farm | Self::Hidden => Network::Farm,
        }
    }

    /// Where a mode has its backends: `l2`, `ipip`, `nat` or `dnat`.
    ///
    /// # Panics
    /// If there is no such mode.
    #[must_use]
    pub fn of_mode(mode: &str) -> Self {
        [Self::Segment, Self::Farm, Self::Hidden, Self::Behind]
            .into_iter()
            .find(|place| place.mode() == mode)
            .unwrap_or_else(|| panic!("there is no mode {mode}"))
    }

    /// The mode that suits it.
    #[must_use]
    pub const fn mode(self) -> &'static str {
        match self {
            Self::Segment => "l2",
            Self::Farm => "ipip",
            Self::Hidden => "nat",
            Self::Behind => "dnat",
        }
    }

    /// Whether backends answer through the balancer.
    #[must_use]
    pub const fn is_translated(self) -> bool {
        matches!(self, Self::Hidden | Self::Behind)
    }

    /// The router of the backends there.
    #[must_use]
    pub const fn gateway(self, version: IpVersion) -> IpAddr {
        match self {
            Self::Behind => address::balancer(version),
            _ => self.network().gateway(version),
        }
    }
}

/// What to build.
#[derive(Debug, Clone, Copy)]
pub struct Topology {
    /// How many source addresses the clients' host has, at most 200.
    pub client_addresses: u8,
    /// How many backends there are, at most 200.
    pub backends: u8,
    /// Where they live.
    pub place: Place,
    /// The versions of IP that the service uses.
    pub family: Family,
}

impl Topology {
    /// Three backends at `place`, clients with eight addresses, all in IPv4.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self {
            client_addresses: 8,
            backends: 3,
            place,
            family: Family::V4,
        }
    }

    /// The same for a service in `family`.
    #[must_use]
    pub fn in_family(self, family: Family) -> Self {
        Self { family, ..self }
    }

    /// The address that clients connect to.
    #[must_use]
    pub fn vip(&self) -> IpAddr {
        address::vip(self.family.vip())
    }

    /// The balancer's address towards backends.
    #[must_use]
    pub fn balancer_address(&self) -> IpAddr {
        address::balancer(self.family.backends())
    }

    /// The address that backends see in the place of clients' where it is translated.
    #[must_use]
    pub fn snat_address(&self) -> IpAddr {
        address::snat(self.family.vip())
    }

    /// The clients' source addresses.
    #[must_use]
    pub fn sources(&self) -> Vec<IpAddr> {
        self.sources_in(self.family.vip())
    }

    fn sources_in(&self, version: IpVersion) -> Vec<IpAddr> {
        (0..self.client_addresses)
            .map(|index| address::client(version, index))
            .collect()
    }

    /// Builds it.
    ///
    /// # Errors
    /// Without root, iproute2 or ethtool, or when the kernel lacks veth or bridges. What was built by then is gone.
    pub fn build(&self) -> Result<Lab> {
        let router = Namespace::new("router")?;
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            router.sysctl(&format!("net/{key}"), "1")?;
        }
        router.ip(
            "link add segment mtu 1600 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
             link add farm mtu 1600 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
             link set segment up
             link set farm up",
        )?;
        for (network, bridge) in [(Network::Segment, "segment"), (Network::Farm, "farm")] {
            // One that is not told its MAC takes a port's, and another when that port goes.
            let mac = mac_text(mac_of(network.gateway(IpVersion::V4)));
            router.ip(&format!("link set {bridge} address {mac}"))?;
            router.join(bridge, &IpVersion::ALL.map(|v| network.gateway(v)))?;
        }
        for version in IpVersion::ALL {
            // A backend that went dark is to be found out by Tether, not announced by the router.
            let (prefix, length) = address::spoofed(version);
            router.ip(&format!("route add blackhole {prefix}/{length}"))?;
        }

        let client = Namespace::new("client")?;
        let mac = mac_of(address::client(IpVersion::V4, 0));
        connect(&client, &router, CLIENT_PORT, mac, MTU)?;
        router.ip(&format!("link set {CLIENT_PORT} up"))?;
        let gateways = IpVersion::ALL.map(|v| Network::Clients.gateway(v));
        router.join(CLIENT_PORT, &gateways)?;
        for version in IpVersion::ALL {
            client.join(UPLINK, &self.sources_in(version))?;
        }
        route_by(&client, gateways)?;
        // 1,000 connections from few addresses, all to one address and port.
        client.sysctl("net/ipv4/ip_local_port_range", "10240 65000")?;

        let (balancer, passing) = load_balancer(
            &router,
            "balancer",
            BALANCER_PORT,
            IpVersion::ALL.map(address::balancer),
        )?;
        for version in IpVersion::ALL {
            let vips = Network::Vips.prefix(version);
            let balancer = address::balancer(version);
            router.ip(&format!("route add {vips} via {balancer}"))?;
        }
        if self.place.is_translated() {
            for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                balancer.sysctl(&format!("net/{key}"), "1")?;
            }
        }
        if self.place == Place::Hidden {
            for address in IpVersion::ALL.map(address::snat) {
                // Nothing that the host itself sends has it for a source.
                let only = match address {
                    IpAddr::V4(_) => "/32 dev eth0",
                    IpAddr::V6(_) => "/128 dev eth0 nodad preferred_lft 0",
                };
                balancer.ip(&format!("address add {address}{only}"))?;
            }
        }

        let mut backends = vec![];
        for index in 0..self.backends {
            backends.push(Arc::new(self.backend(&router, index)?));
        }
        Ok(Lab {
            client: Arc::new(client),
            router: Arc::new(router),
            balancer: Arc::new(balancer),
            backends,
            sources: self.sources(),
            topology: *self,
            _passing: passing,
        })
    }

    fn backend(&self, router: &Namespace, index: u8) -> Result<Namespace> {
        let name = backend_name(index);
        let addresses = IpVersion::ALL.map(|version| self.backend_address_in(version, index));
        let bridge = match self.place.network() {
            Network::Segment => "segment",
            _ => "farm",
        };
        let host = Namespace::new(&name)?;
        connect(&host, router, &name, mac_of(addresses[0]), WIDE_MTU)?;
        router.ip(&format!("link set {name} master {bridge} up"))?;
        if self.place.is_translated() {
            host.join(UPLINK, &addresses)?;
            route_by(&host, IpVersion::ALL.map(|v| self.place.gateway(v)))?;
            return Ok(host);
        }
        // The VIP is the balancer's on the wire: a backend must neither answer ARP for it nor ask with it. NDP does neither for
        // an address of another interface.
        for (key, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
            host.sysctl(&format!("net/ipv4/conf/all/{key}"), value)?;
        }
        for vip in IpVersion::ALL.map(address::vip) {
            host.ip(&format!("address add {vip} dev lo"))?;
        }
        host.join(UPLINK, &addresses)?;
        route_by(&host, IpVersion::ALL.map(|v| self.place.gateway(v)))?;
        Ok(host)
    }

    /// The address of a backend, counted from 0.
    #[must_use]
    pub fn backend_address(&self, index: u8) -> IpAddr {
        self.backend_address_in(self.family.backends(), index)
    }

    fn backend_address_in(&self, version: IpVersion, index: u8) -> IpAddr {
        self.place.network().host(version, 11 + index)
    }
}

/// The name of a backend, counted from 0: `b1`, `b2`, ...
#[must_use]
pub fn backend_name(index: u8) -> String {
    format!("b{}", index + 1)
}

/// A built network. Dropping it takes all of it away.
#[derive(Debug)]
pub struct Lab {
    client: Arc<Namespace>,
    router: Arc<Namespace>,
    balancer: Arc<Namespace>,
    backends: Vec<Arc<Namespace>>,
    sources: Vec<IpAddr>,
    topology: Topology,
    _passing: OwnedFd,
}

impl Lab {
    /// The host that clients run on.
    #[must_use]
    pub fn client(&self) -> &Arc<Namespace> {
        &self.client
    }

    /// The host between all others.
    #[must_use]
    pub fn router(&self) -> &Arc<Namespace> {
        &self.router
    }

    /// The host that Tether runs on.
    #[must_use]
    pub fn balancer(&self) -> &Arc<Namespace> {
        &self.balancer
    }

    /// The backends' hosts.
    #[must_use]
    pub fn backends(&self) -> &[Arc<Namespace>] {
        &self.backends
    }

    /// Every host.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        [&self.client, &self.router, &self.balancer]
            .into_iter()
            .chain(&self.backends)
    }

    /// The clients' source addresses, in the version of the VIP.
    #[must_use]
    pub fn sources(&self) -> &[IpAddr] {
        &self.sources
    }

    /// What this was built from.
    #[must_use]
    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// The MAC of the router's side of a link, or of one of its bridges: `client`, `lb`, `segment`, `farm`, `b1`, ...
    ///
    /// # Errors
    /// When the router has no such interface.
    pub fn router_mac(&self, interface: &str) -> Result<Mac> {
        let path = format!("/sys/class/net/{interface}/address");
        let text = self
            .router
            .run(move || std::fs::read_to_string(path))
            .with_context(|| format!("read the MAC of the router's {interface}"))?;
        let mut mac = [0; 6];
        for (byte, hex) in mac.iter_mut().zip(text.trim().split(':')) {
            *byte = u8::from_str_radix(hex, 16)?;
        }
        Ok(mac)
    }

    /// Puts a new host in the place of a backend's, as after a power failure: the same addresses, and nothing known of any
    /// connection. No packet of the old one's leaves any more. Who runs on the old host is to end.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn renew(&mut self, index: u8) -> Result<()> {
        self.router
            .ip(&format!("link delete {}", backend_name(index)))?;
        self.backends[usize::from(index)] = Arc::new(self.topology.backend(&self.router, index)?);
        Ok(())
    }

    /// Lets a backend's host go dark: its link dies at the switch, and nobody says a word.
    ///
    /// # Errors
    /// When there is no such backend.
    pub fn darken(&self, index: u8) -> Result<()> {
        self.router
            .ip(&format!("link set {} down", backend_name(index)))
    }

    /// Brings a dark backend's link back.
    ///
    /// # Errors
    /// When there is no such backend.
    pub fn brighten(&self, index: u8) -> Result<()> {
        self.router
            .ip(&format!("link set {} up", backend_name(index)))
    }

    /// What a person would look at first after a failure: links with counters, addresses, neighbours, routes, and what BPF
    /// the machine holds. Whatever cannot be had is replaced by the reason.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for host in self.hosts() {
            for line in [
                "ip -statistics link",
                "ip neigh",
                "ip route",
                "ip -6 route",
                "ss --tcp --summary",
            ] {
                let said = host.sh(line).unwrap_or_else(|error| format!("{error:#}"));
                text += &format!("--- {}: {line}\n{said}\n", host.name());
            }
        }
        for line in [
            "bpftool net show",
            "bpftool link show",
            "bpftool prog show",
            "bpftool map show",
        ] {
            let said = self
                .balancer
                .sh(line)
                .unwrap_or_else(|error| format!("{error:#}"));
            text += &format!("--- balancer: {line}\n{said}\n");
        }
        text
    }
}

/// A load balancer's host on the router's segment, behind the router's interface `port`; which takes what the program there sends for as long as the link that
/// comes with it is held: see [`passing`].
pub(crate) fn load_balancer(
    router: &Namespace,
    name: &str,
    port: &str,
    addresses: [IpAddr; 2],
) -> Result<(Namespace, OwnedFd)> {
    let host = Namespace::new(name)?;
    connect(&host, router, port, mac_of(addresses[0]), WIDE_MTU)?;
    // Merging by GRO, which XDP turns on in some kernels, is held off: captures are to show what was sent.
    router.ip(&format!(
        "link set {port} gro_max_size 1\nlink set {port} master segment up"
    ))?;
    let passing = passing::pass_all(router, port)?;
    host.join(UPLINK, &addresses)?;
    route_by(
        &host,
        IpVersion::ALL.map(|version| Network::Segment.gateway(version)),
    )?;
    Ok((host, passing))
}

/// Links `host`'s [`UPLINK`] with the router's `port`, and makes both behave as hardware does: segments and checksums are
/// finished by the sender, so that an XDP program sees what would be on a wire.
fn connect(host: &Namespace, router: &Namespace, port: &str, mac: Mac, mtu: u16) -> Result<()> {
    router.ip(&format!(
        "link add {port} mtu {mtu} type veth peer name {UPLINK} mtu {mtu} address {} netns {}",
        mac_text(mac),
        host.net_path().display(),
    ))?;
    for (namespace, interface) in [(host, UPLINK), (router, port)] {
        namespace.sh(&format!("ethtool -K {interface} tx off tso off gso off"))?;
    }
    host.ip(&format!("link set {UPLINK} up"))
}

/// Sends what is for elsewhere to `gateways`.
fn route_by(host: &Namespace, gateways: [IpAddr; 2]) -> Result<()> {
    host.ip(&gateways
        .map(|gateway| format!("route add default via {gateway}\n"))
        .concat())
}
