//! Builds the lab and drops you into a shell (or runs a command) on one of its hosts; the lab goes when that ends.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::Parser;
use lab::address::Family;
use lab::stage::Stage;
use lab::topology::{Lab, Place, Topology};

/// A shell inside Tether's lab.
#[derive(Parser)]
struct Arguments {
    /// How the service forwards, and so where its backends live.
    #[arg(long, value_parser = ["ipip", "l2", "nat", "dnat"], default_value = "ipip")]
    mode: String,
    /// The versions of IP of clients and backends.
    #[arg(long, value_enum, default_value_t)]
    family: Family,
    /// The host to be on: client, router, balancer, b1, b2, ...
    #[arg(long = "in", default_value = "client")]
    host: String,
    /// How many backends.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=200))]
    backends: u8,
    /// Only the network: no Tether, no backends listening.
    #[arg(long)]
    bare: bool,
    /// What to run instead of $SHELL.
    #[arg(last = true)]
    command: Vec<String>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let place = Place::of_mode(&arguments.mode);
    let topology = Topology {
        backends: arguments.backends,
        family: arguments.family,
        ..Topology::new(place)
    };
    if arguments.bare {
        return visit(&topology.build()?, &arguments);
    }
    let stage = Stage::set(topology, 1, |_| {})?;
    println!(
        "tether forwards {} with this configuration:\n\n{}",
        stage.target(),
        stage.config.text()
    );
    let outcome = visit(&stage.lab, &arguments);
    stage.close();
    outcome
}

fn visit(lab: &Lab, arguments: &Arguments) -> Result<ExitCode> {
    let host = lab
        .hosts()
        .find(|host| host.name() == arguments.host)
        .with_context(|| format!("the lab has no host called {}", arguments.host))?;
    let mut command = match arguments.command.split_first() {
        Some((program, rest)) => {
            let mut command = Command::new(program);
            command.args(rest);
            command
        }
        None => {
            println!(
                "You are on {}. For another host: nsenter $LAB_BALANCER ip neigh",
                host.name()
            );
            println!("exit takes the lab down.");
            Command::new(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()))
        }
    };
    for other in lab.hosts() {
        command.env(
            format!("LAB_{}", other.name().to_uppercase()),
            other.nsenter_arguments(),
        );
    }
    command.env("PS1", format!("lab {}# ", host.name()));
    let status = host.spawn(command)?.wait()?;
    // As a shell tells it: a signal's number above 128.
    let code = status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
