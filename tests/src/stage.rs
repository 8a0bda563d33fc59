//! Everything at once: a lab, Tether on its balancer, WebSocket backends, and clients ready to connect.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::config::Config;
use crate::namespace::Namespace;
use crate::peer::backend::Backend;
use crate::peer::client::{Clients, Plan};
use crate::status::Status;
use crate::tether::{self, Tether};
use crate::topology::{Lab, Topology, UPLINK};

/// A stage. One that is dropped without [`Stage::close`] is taken for a failure and describes itself on standard error first.
#[derive(Debug)]
pub struct Stage {
    /// The daemon.
    pub tether: Tether,
    /// The configuration that it was started with.
    pub config: Config,
    /// The backends, in the lab's order.
    pub backends: Vec<Backend>,
    /// The clients' host.
    pub clients: Clients,
    /// The network.
    pub lab: Lab,
    closed: bool,
}

impl Stage {
    /// Builds `topology` with backends and Tether, whose configuration `change` may alter, and waits until every configured
    /// backend takes new flows.
    ///
    /// # Errors
    /// When any of it fails.
    pub fn set(topology: Topology, seed: u64, change: impl FnOnce(&mut Config)) -> Result<Self> {
        Self::on(topology.build()?, seed, change)
    }

    /// The same on a network that is there already, and that the caller may have altered.
    ///
    /// # Errors
    /// When any of it fails.
    pub fn on(lab: Lab, seed: u64, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let mut config = Config::new(lab.topology());
        change(&mut config);
        let mut backends = vec![];
        for host in lab.backends() {
            backends.push(serve(host, &config)?);
        }
        let clients = Clients::start(lab.client(), lab.sources(), seed)?;
        let tether = Tether::start(lab.balancer(), &config.text())?;
        let mut stage = Self {
            tether,
            config,
            backends,
            clients,
            lab,
            closed: false,
        };
        stage.wait_serving()?;
        Ok(stage)
    }

    /// Waits until the daemon is ready and every configured backend takes new flows.
    ///
    /// # Errors
    /// When they do not get there.
    pub fn wait_serving(&mut self) -> Result<()> {
        wait_serving(&mut self.tether, &self.config)
    }

    /// Puts a new host in the place of a backend's, and serves there: see [`Lab::renew`].
    ///
    /// # Errors
    /// When either fails.
    pub fn renew(&mut self, index: u8) -> Result<()> {
        self.lab.renew(index)?;
        let index = usize::from(index);
        self.backends[index] = serve(&self.lab.backends()[index], &self.config)?;
        Ok(())
    }

    /// A plan for connections to the VIP.
    #[must_use]
    pub fn plan(&self) -> Plan {
        Plan::new(self.target())
    }

    /// Where clients connect to.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        SocketAddr::new(self.config.vip, self.config.port)
    }

    /// The backend of a name.
    ///
    /// # Errors
    /// When there is none.
    pub fn backend(&self, name: &str) -> Result<(u8, &Backend)> {
        let index = self
            .backends
            .iter()
            .position(|backend| backend.name() == name);
        let index = index.with_context(|| format!("no backend is called {name}"))?;
        Ok((u8::try_from(index)?, &self.backends[index]))
    }

    /// What a person would look at after a failure.
    #[must_use]
    pub fn describe(&self) -> String {
        let status = self.tether.succeed(&["status", "--json"]);
        let status = status.unwrap_or_else(|error| format!("{error:#}"));
        let log = self.tether.log();
        format!(
            "{}--- tether status\n{status}\n--- tether log\n{log}\n",
            self.lab.describe()
        )
    }

    /// Ends a stage that did what it should.
    pub fn close(mut self) {
        self.closed = true;
    }
}

/// Waits until a daemon is ready and every backend of its configuration takes new flows.
///
/// # Errors
/// When they do not get there.
pub fn wait_serving(tether: &mut Tether, config: &Config) -> Result<()> {
    tether.wait_ready()?;
    let all_backends = |status: &Status| {
        let mut names = config.backends.iter().map(|backend| &backend.name);
        names.all(|name| status.serving(name) == "new" && status.health(name) == "up")
    };
    tether
        .wait_status(
            "all backends take new flows",
            Duration::from_secs(15),
            all_backends,
        )
        .map(drop)
}

fn serve(host: &Namespace, config: &Config) -> Result<Backend> {
    if config.mode == "ipip" {
        tether::succeed(host, &["decap", "--interface", UPLINK])?;
    }
    Backend::start(host)
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.closed {
            eprintln!("{}", self.describe());
        }
    }
}
