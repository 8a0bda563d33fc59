//! A configuration for the daemon under test, as a value that tests change.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use lb_common::net::IpVersion;

use crate::peer::backend::{HEALTH_PORT, PORT};
use crate::topology::{Place, Topology, UPLINK, backend_name};

/// The name of the service that the lab's configuration has.
pub const SERVICE: &str = "chat";

/// The service's port where ports are translated too.
pub const TRANSLATED_PORT: u16 = 443;

/// How a service's backends are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// A TCP connection to the service's port.
    Tcp,
    /// A plain request to [`HEALTH_PORT`].
    Http,
    /// A TCP connection to the VIP, by the way of clients' packets.
    ThroughVip,
}

/// One backend of the service.
#[derive(Debug, Clone)]
pub struct BackendSpec {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its weight.
    pub weight: u16,
    /// More lines of the backend's table, whole ones.
    pub lines: String,
}

/// A name in the DNS that backends come from, called `pods`.
#[derive(Debug, Clone)]
pub struct Named {
    /// Who is asked.
    pub server: SocketAddr,
    /// The name.
    pub query: &'static str,
    /// Which records.
    pub kind: &'static str,
}

/// One service on the lab's VIP, with checks quick enough for a test.
#[derive(Debug, Clone)]
pub struct Config {
    /// The balancer's interfaces that the program is attached to.
    pub interfaces: Vec<&'static str>,
    /// The service's address.
    pub vip: IpAddr,
    /// The service's port. Where addresses are translated it is not the backends'.
    pub port: u16,
    /// `ipip`, `l2`, `nat` or `dnat`.
    pub mode: &'static str,
    /// What backends see in the place of clients' addresses; in mode `nat` only.
    pub snat: Vec<IpAddr>,
    /// How backends are checked.
    pub check: Check,
    /// From check to check, in milliseconds.
    pub interval_ms: u32,
    /// How long an answer may take, in milliseconds.
    pub timeout_ms: u32,
    /// Bad checks in a row that make a backend fall.
    pub fall: u8,
    /// Good checks in a row that bring it back.
    pub rise: u8,
    /// The capacity for IPv4 flows; small, since every lab has tables of its own.
    pub flows: u32,
    /// The capacity for IPv6 flows.
    pub flows6: u32,
    /// One more than there can be backends, those among them that are removed and have flows.
    pub backend_limit: u32,
    /// More lines of the top level, whole ones.
    pub top: String,
    /// More lines of `[limits]`, whole ones.
    pub limits: String,
    /// More lines of the service's table, whole ones.
    pub lines: String,
    /// The backends.
    pub backends: Vec<BackendSpec>,
    /// Where more of them come from.
    pub named: Option<Named>,
}

impl Config {
    /// All backends of `topology`, in the mode that suits where they live.
    #[must_use]
    pub fn new(topology: Topology) -> Self {
        let backends = (0..topology.backends).map(|index| BackendSpec {
            name: backend_name(index),
            address: topology.backend_address(index),
            weight: 100,
            lines: String::new(),
        });
        Self {
            interfaces: vec![UPLINK],
            vip: topology.vip(),
            port: if topology.place.is_translated() {
                TRANSLATED_PORT
            } else {
                PORT
            },
            mode: topology.place.mode(),
            snat: match topology.place {
                Place::Hidden => vec![topology.snat_address()],
                Place::Segment | Place::Farm | Place::Behind => vec![],
            },
            check: Check::Tcp,
            interval_ms: 500,
            timeout_ms: 300,
            fall: 3,
            rise: 2,
            flows: 20_000,
            flows6: 20_000,
            backend_limit: 256,
            top: String::new(),
            limits: String::new(),
            lines: String::new(),
            backends: backends.collect(),
            named: None,
        }
    }

    /// The text of the file.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "interfaces = {:?}\n{}\n\
             [limits]\nflows = {}\nflows6 = {}\nservices = 16\nbackends = {}\ntable_slots = 524288\n{}\n\
             [[service]]\nname = \"{SERVICE}\"\nvip = \"{}\"\nport = {}\nmode = \"{}\"\n{}{}\n\
             [service.health]\ninterval = \"{}ms\"\ntimeout = \"{}ms\"\nfall = {}\nrise = {}\n",
            self.interfaces,
            self.top,
            self.flows,
            self.flows6,
            self.backend_limit,
            self.limits,
            self.vip,
            self.port,
            self.mode,
            self.lines,
            self.snat_line(),
            self.interval_ms,
            self.timeout_ms,
            self.fall,
            self.rise,
        );
        text += &match self.check {
            Check::Tcp => "type = \"tcp\"\n".to_owned(),
            Check::ThroughVip => "type = \"tcp\"\nthrough = \"vip\"\n".to_owned(),
            Check::Http => format!("type = \"http\"\nport = {HEALTH_PORT}\nstatus = [200]\n"),
        };
        for BackendSpec {
            name,
            address,
            weight,
            lines,
        } in &self.backends
        {
            let _ = write!(
                text,
                "\n[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\nweight = {weight}\n"
            );
            if self.port != PORT {
                let _ = writeln!(text, "port = {PORT}");
            }
            text += lines;
        }
        if let Some(Named {
            server,
            query,
            kind,
        }) = &self.named
        {
            text = format!("dns.servers = [\"{server}\"]\n{text}");
            let _ = write!(
                text,
                "\n[[service.dns]]\nname = \"pods\"\nquery = \"{query}\"\ntype = \"{kind}\"\nmin_ttl = \"1s\"\n"
            );
        }
        text
    }

    fn snat_line(&self) -> String {
        if self.snat.is_empty() {
            return String::new();
        }
        let addresses: Vec<String> = self.snat.iter().map(ToString::to_string).collect();
        format!("snat = {addresses:?}\n")
    }

    /// The same with another capacity for flows of one version.
    #[must_use]
    pub fn with_flows(&self, version: IpVersion, flows: u32) -> Self {
        let mut other = self.clone();
        match version {
            IpVersion::V4 => other.flows = flows,
            IpVersion::V6 => other.flows6 = flows,
        }
        other
    }

    /// The same without one backend.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let mut less = self.clone();
        less.backends.retain(|backend| backend.name != name);
        less
    }
}
