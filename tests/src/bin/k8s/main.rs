//! The shipped DaemonSet on a real cluster of two nodes: brought to Ready with XDP attached, and WebSocket connections from outside held through a
//! node's VIP while its pods are restarted and deleted. Also the peers of that, which run in pods and in the cluster's network.

mod cluster;
mod crowd;
mod helper;
mod ports;
mod run;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Does all of it.
    Run(Plan),
    /// In a pod: WebSockets that say their name and echo.
    Serve {
        #[arg(long)]
        name: String,
    },
    /// Outside: holds connections, and answers each line of standard input with what became of them.
    Hold {
        #[arg(long)]
        source: IpAddr,
        #[arg(long)]
        target: SocketAddr,
        #[arg(long)]
        count: usize,
    },
    /// In the cluster's network: has interfaces take what XDP transmits to them, until standard input ends.
    Pass { interfaces: Vec<String> },
}

/// What the run takes.
#[derive(clap::Args)]
pub(crate) struct Plan {
    /// The directory of the cluster's scripts.
    #[arg(long)]
    lab: PathBuf,
    /// The image, as a docker archive.
    #[arg(long)]
    image: PathBuf,
    /// The manifests that are shipped.
    #[arg(long)]
    manifests: PathBuf,
    /// The version of the image.
    #[arg(long)]
    version: String,
    /// Leave out the pods on the node that clients come to, which are backends on the balancer's own host.
    #[arg(long)]
    only_remote: bool,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Run(plan) => run::run(&plan),
        Command::Serve { name } => crowd::serve(&name),
        Command::Hold {
            source,
            target,
            count,
        } => crowd::hold(source, target, count),
        Command::Pass { interfaces } => ports::pass(&interfaces),
    }
}
