//! Builds the lab and drops you into a shell (or runs a command) on one of its hosts; the lab goes when that ends.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use lab::address::Family;
use lab::stage::Stage;
use lab::topology::{Lab, Place, Topology};
use lab::{tether, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where each host has `tether`, in its own `/run`.
const PROGRAMS: &str = "/run/bin";

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

/// Puts `tether` on every host.
fn offer_programs(lab: &Lab) -> Result<()> {
    let program = tether::program()?;
    for host in lab.hosts() {
        let program = program.clone();
        host.run(move || {
            std::fs::create_dir(PROGRAMS)?;
            std::os::unix::fs::symlink(program, Path::new(PROGRAMS).join("tether"))
        })
        .with_context(|| format!("put tether on {}", host.name()))?;
    }
    Ok(())
}

/// Ends whatever the visitor has left running on the lab's hosts: it would keep them alive.
fn end_guests(lab: &Lab) -> Result<()> {
    let hosts: Vec<[String; 2]> = lab
        .hosts()
        .map(|host| host.identity())
        .collect::<Result<_>>()?;
    // One that is ended may have started another meanwhile.
    wait::until("nothing runs on the hosts", Duration::from_secs(10), || {
        let guests = guests(&hosts).ok()?;
        for guest in &guests {
            // It may have ended by itself.
            let _ = kill(*guest, Signal::SIGKILL);
        }
        guests.is_empty().then_some(())
    })
}

/// The processes on these hosts.
fn guests(hosts: &[[String; 2]]) -> Result<Vec<Pid>> {
    let mut found = vec![];
    for process in std::fs::read_dir("/proc")? {
        let process = process?;
        let pid = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        // One that is ending is in no namespace any more.
        let net = std::fs::read_link(process.path().join("ns/net"));
        if let (Some(pid), Ok(net)) = (pid, net)
            && hosts.iter().any(|[host, _]| net == Path::new(host))
        {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

fn visit(lab: &Lab, arguments: &Arguments) -> Result<ExitCode> {
    offer_programs(lab)?;
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
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{PROGRAMS}:{path}"));
    let status = host.spawn(command)?.wait()?;
    end_guests(lab)?;
    // As a shell tells it: a signal's number above 128.
    let code = status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
