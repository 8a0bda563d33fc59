//! The worked example of docs/socket.io.md with the real server and client of Socket.IO: connections with a heartbeat of 25 s live through a drain, a
//! killed daemon, and as many heartbeats as it takes to see that.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lab::config::{Config, SERVICE};
use lab::running::Running;
use lab::tether::{self, Tether};
use lab::topology::{Place, Topology, UPLINK};
use lab::wait;
use serde::Deserialize;

const CLIENTS: usize = 60;
/// Heartbeats that every client has to see: between the first and the last, more than 50 s pass.
const HEARTBEATS: u64 = 3;

#[derive(Parser)]
struct Arguments {
    /// Where npm has put `socket.io` and `socket.io-client`, beside the example's programs.
    directory: PathBuf,
}

/// What became of one client.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct One {
    name: Option<String>,
    connects: u64,
    disconnects: Vec<String>,
    errors: Vec<String>,
    pings: u64,
    echoed: bool,
    transport: Option<String>,
}

struct Clients {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Clients {
    fn report(&mut self) -> Result<Vec<One>> {
        writeln!(self.orders)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("not a report: {line}"))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn node(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("node");
    command.current_dir(directory).args(arguments);
    command
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let topology = Topology::new(Place::Farm);
    let lab = topology.build()?;
    let mut servers = vec![];
    for host in lab.backends() {
        let server = Running::start(
            host,
            node(&arguments.directory, &["server.js", host.name(), "80"]),
        )?;
        server.wait_to_say("listening", Duration::from_secs(20))?;
        tether::succeed(host, &["decap", "--interface", UPLINK])?;
        servers.push(server);
    }
    let config = Config::new(topology);
    let mut tether = Tether::start(lab.balancer(), &config.text())?;
    tether.wait_ready()?;
    tether.wait_status("all servers are up", Duration::from_secs(20), |status| {
        ["b1", "b2", "b3"]
            .iter()
            .all(|name| status.health(name) == "up")
    })?;

    let url = format!("http://{}", config.vip);
    let count = CLIENTS.to_string();
    let words = ["client.js", &url, &count, "websocket"];
    let mut command = node(&arguments.directory, &words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = lab.client().spawn(command)?;
    let orders = process.stdin.take().context("standard input")?;
    let answers = BufReader::new(process.stdout.take().context("standard output")?);
    let mut clients = Clients {
        process,
        orders,
        answers,
    };

    let all = wait::until_seen(
        "all clients are connected",
        Duration::from_secs(30),
        || clients.report(),
        |all| all.iter().all(|one| one.echoed && one.name.is_some()),
    )?;
    let on = |all: &[One], name: &str| {
        all.iter()
            .filter(|one| one.name.as_deref() == Some(name))
            .count()
    };
    for name in ["b1", "b2", "b3"] {
        println!("{name}: {} clients", on(&all, name));
        ensure!(on(&all, name) > 0, "{name} has none");
    }
    let names: Vec<_> = all.iter().map(|one| one.name.clone()).collect();

    tether.succeed(&["drain", &format!("{SERVICE}/b1")])?;
    tether.kill()?;
    tether.restart()?;
    tether.wait_ready()?;
    println!(
        "b1 drains, and the daemon was killed and is back; waiting for {HEARTBEATS} heartbeats"
    );
    let last = wait::until_seen(
        "heartbeats come",
        Duration::from_secs(25 * (HEARTBEATS + 1)),
        || clients.report(),
        |all| {
            all.iter().all(|one| one.pings >= HEARTBEATS)
                || all.iter().any(|one| !one.disconnects.is_empty())
        },
    )?;
    for (one, name) in last.iter().zip(names) {
        ensure!(
            one.echoed && one.connects == 1 && one.disconnects.is_empty() && one.errors.is_empty(),
            "cut: {one:?}"
        );
        ensure!(one.name == name, "{name:?} became {:?}", one.name);
        ensure!(
            one.transport.as_deref() == Some("websocket"),
            "not upgraded: {one:?}"
        );
    }
    println!("{CLIENTS} Socket.IO connections saw {HEARTBEATS} heartbeats and more; none was cut");
    Ok(())
}
