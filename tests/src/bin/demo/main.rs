//! Tether's main job, shown on a terminal: long-lived WebSocket connections that outlive a drain, another backend's death and
//! the daemon's own, in a lab that is gone afterwards. Exits non-zero if one broke that was not meant to.

mod report;
mod show;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use lab::address::Family;
use lab::topology::{Place, Topology};

/// Shows what Tether does with 1,000 WebSocket connections.
#[derive(Parser)]
struct Arguments {
    /// How the service forwards.
    #[arg(long, value_parser = ["ipip", "l2", "nat", "dnat"], default_value = "ipip")]
    mode: String,
    /// The versions of IP of clients and backends.
    #[arg(long, value_enum, default_value_t)]
    family: Family,
    /// How many connections.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(30..=8000))]
    connections: u16,
    /// Print the result once more as one line of JSON, last on standard output.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let place = Place::of_mode(&arguments.mode);
    let topology = Topology::new(place).in_family(arguments.family);
    let report = show::run(topology, usize::from(arguments.connections))?;
    print!("{}", report.table());
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(if report.unexpected_breaks == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
