//! A configuration for the daemon under test, as a value that tests change.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use crate::peer::backend::{HEALTH_PORT, PORT};
use crate::topology::{Place, Topology, UPLINK, VIP, backend_name};

/// The name of the service that the lab's configuration has.
pub const SERVICE: &str = "chat";

/// How a service's backends are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// A TCP connection to the service's port.
    Tcp,
    /// A plain request to [`HEALTH_PORT`].
    Http,
}

/// One backend of the service.
#[derive(Debug, Clone)]
pub struct BackendSpec {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its weight.
    pub weight: u16,
}

/// One service on the lab's VIP, with checks quick enough for a test.
#[derive(Debug, Clone)]
pub struct Config {
    /// The balancer's interfaces that the program is attached to.
    pub interfaces: Vec<&'static str>,
    /// `ipip` or `l2`.
    pub mode: &'static str,
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
    /// The capacity for flows; small, since every lab has a table of its own.
    pub flows: u32,
    /// The backends.
    pub backends: Vec<BackendSpec>,
}

impl Config {
    /// All backends of `topology`, in the mode that suits where they live.
    #[must_use]
    pub fn new(topology: Topology) -> Self {
        let backends = (0..topology.backends).map(|index| BackendSpec {
            name: backend_name(index),
            address: topology.backend_address(index),
            weight: 100,
        });
        Self {
            interfaces: vec![UPLINK],
            mode: match topology.place {
                Place::Segment => "l2",
                Place::Farm => "ipip",
            },
            check: Check::Tcp,
            interval_ms: 500,
            timeout_ms: 300,
            fall: 3,
            rise: 2,
            flows: 20_000,
            backends: backends.collect(),
        }
    }

    /// The text of the file.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!(
            "interfaces = {:?}\n\n\
             [limits]\nflows = {}\nservices = 16\nbackends = 256\ntable_slots = 524288\n\n\
             [[service]]\nname = \"{SERVICE}\"\nvip = \"{VIP}\"\nport = {PORT}\nmode = \"{}\"\n\n\
             [service.health]\ninterval = \"{}ms\"\ntimeout = \"{}ms\"\nfall = {}\nrise = {}\n",
            self.interfaces,
            self.flows,
            self.mode,
            self.interval_ms,
            self.timeout_ms,
            self.fall,
            self.rise,
        );
        text += &match self.check {
            Check::Tcp => "type = \"tcp\"\n".to_owned(),
            Check::Http => format!("type = \"http\"\nport = {HEALTH_PORT}\nstatus = [200]\n"),
        };
        for BackendSpec {
            name,
            address,
            weight,
        } in &self.backends
        {
            let _ = write!(
                text,
                "\n[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"\nweight = {weight}\n"
            );
        }
        text
    }

    /// The same without one backend.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let mut less = self.clone();
        less.backends.retain(|backend| backend.name != name);
        less
    }
}
