//! Peers: a backend in a pod, and the crowd that connects from outside.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use lab::namespace::Namespace;
use lab::peer::backend::Backend;
use lab::peer::client::{Clients, Plan};
use serde::{Deserialize, Serialize};

/// What became of the crowd.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Open connections by the backend that answers them.
    pub(crate) open: BTreeMap<String, usize>,
    /// Connections that broke, each with the reason.
    pub(crate) broken: Vec<String>,
    /// Echoes that were right, of all connections from the beginning on.
    pub(crate) echoes: u64,
}

/// Serves until it is killed.
pub(crate) fn serve(name: &str) -> Result<()> {
    let host = Namespace::current(name)?;
    let _backend = Backend::start(&host)?;
    loop {
        std::thread::park();
    }
}

/// Holds connections until standard input ends.
pub(crate) fn hold(source: IpAddr, target: SocketAddr, count: usize) -> Result<()> {
    let host = Namespace::current("crowd")?;
    let clients = Clients::start(&host, &[source], 1)?;
    let plan = Plan {
        // Nodes share this machine's processors with all that a cluster runs.
        patience: Duration::from_secs(60),
        opening: Duration::from_secs(60),
        ..Plan::new(target).talking(Duration::from_millis(500))
    };
    let connections = clients.open(count, plan, |_| {})?;
    println!("open");
    for line in std::io::stdin().lock().lines() {
        line?;
        let mut report = Report {
            open: BTreeMap::new(),
            broken: vec![],
            echoes: 0,
        };
        for connection in &connections {
            // Whatever it said by itself, now it is asked.
            let asked = connection.echo();
            let history = connection.history();
            report.echoes += history.echoes();
            match (asked, connection.backend()) {
                (Ok(_), Some(backend)) => *report.open.entry(backend).or_default() += 1,
                (Err(error), _) => report.broken.push(format!("{error:#}")),
                (Ok(_), None) => report.broken.push("closed".into()),
            }
        }
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}
