//! The loop that keeps the maps true: the only writer of services, tables, backends and the directory of VIPs.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    config::Config,
    dataplane::maps::Maps,
    flows::Census,
    model::{BackendName, HealthReport, NextHopReport, Target},
    status::{Attachment, Status},
};

/// What people ask for.
#[derive(Debug)]
pub enum Command {
    /// A new configuration, valid.
    Reload {
        /// The configuration.
        config: Box<Config>,
        /// Told the generation that it became, or why it cannot be applied to this instance.
        reply: oneshot::Sender<Result<u64, String>>,
    },
    /// A reload was refused: said in the status until the next good one.
    RejectedConfig {
        /// Why.
        error: String,
    },
    /// A backend is to take no new flows, until undrained; survives restarts.
    Drain {
        /// Which.
        name: BackendName,
        /// Told when it is remembered, or that there is no such backend.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// The end of a drain.
    Undrain {
        /// Which.
        name: BackendName,
        /// Told when it is remembered, or that there is no such backend.
        reply: oneshot::Sender<Result<(), String>>,
    },
}

/// What the reconciler listens to.
#[derive(Debug)]
pub struct Inputs {
    /// What people ask for.
    pub commands: mpsc::Receiver<Command>,
    /// Verdicts of the health checks.
    pub health: mpsc::Receiver<HealthReport>,
    /// Ways to addresses.
    pub next_hops: mpsc::Receiver<NextHopReport>,
    /// What the flow table holds.
    pub census: watch::Receiver<Arc<Census>>,
    /// Where the program is attached: only passed on to the status.
    pub attachments: watch::Receiver<Vec<Attachment>>,
    /// True, or closed: stop, and leave the data path as it is.
    pub shutdown: watch::Receiver<bool>,
}

/// What the reconciler says.
#[derive(Debug)]
pub struct Outputs {
    /// Whose health it wants to know. Names are not unique: the old object of a backend whose address changed is watched too, while it has flows.
    pub targets: watch::Sender<Vec<Target>>,
    /// The addresses whose next hops it wants to know.
    pub addresses: watch::Sender<BTreeSet<IpAddr>>,
    /// The state of things. Its `generation.applied` is not 0 from the first application on.
    pub status: watch::Sender<Arc<Status>>,
}

/// Waits until no run of the program that began before the call is still going.
pub type Grace = Arc<dyn Fn() + Send + Sync>;

/// Why the reconciler cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is not for maps of this size.
    #[error("{0}")]
    Capacity(String),
    /// What the last run remembered cannot be read.
    #[error("{path}: {source}; mend the file, or remove it: drains made at runtime are then forgotten", path = .path.display())]
    Memory {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Keeps `maps` true until told to stop. Nothing is taken away before the first verdicts and next hops, or five seconds.
///
/// # Errors
/// Only before anything is applied; afterwards nothing ends it but `inputs.shutdown`.
pub async fn run(
    maps: Arc<Maps>,
    fleet_seed: [u64; 4],
    first: Config,
    grace: Grace,
    mut inputs: Inputs,
    outputs: Outputs,
) -> Result<(), Error> {
    let _ = (maps, fleet_seed, first, grace, outputs);
    let _ = inputs.shutdown.wait_for(|stop| *stop).await;
    Ok(())
}
