//! The worked example of docs/socket.io.md with the real server and client of Socket.IO: connections with a heartbeat of 25 s live through a drain, a
//! killed daemon, and as many heartbeats as it takes to see that; and so do sessions of long-polling, whose connections go to one server each.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use lab::config::{Config, SERVICE};
use lab::running::Running;
use lab::tether::{self, Tether};
use lab::topology::{Lab, Place, Topology, UPLINK};
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
    fn begin(lab: &Lab, directory: &Path, words: &[String]) -> Result<Self> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = node(directory, &words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = lab.client().spawn(command)?;
        let orders = process.stdin.take().context("standard input")?;
        let answers = BufReader::new(process.stdout.take().context("standard output")?);
        Ok(Self {
            process,
            orders,
            answers,
        })
    }

    /// Waits until all are connected. Gives the name of each one's server.
    fn connect(&mut self) -> Result<Vec<String>> {
        let all = wait::until_seen(
            "all clients are connected",
            Duration::from_secs(30),
            || self.report(),
            |all| all.iter().all(|one| one.echoed && one.name.is_some()),
        )?;
        Ok(all.into_iter().filter_map(|one| one.name).collect())
    }

    /// Waits until each has seen enough heartbeats, and sees that none was cut or has another server or transport.
    fn live_on(&mut self, names: &[String], transport: &str) -> Result<()> {
        let last = wait::until_seen(
            "heartbeats come",
            Duration::from_secs(25 * (HEARTBEATS + 1)),
            || self.report(),
            |all| {
                all.iter().all(|one| one.pings >= HEARTBEATS)
                    || all.iter().any(|one| !one.disconnects.is_empty())
            },
        )?;
        for (one, name) in last.iter().zip(names) {
            let is_whole = one.echoed && one.connects == 1;
            ensure!(
                is_whole && one.disconnects.is_empty() && one.errors.is_empty(),
                "cut: {one:?}"
            );
            ensure!(one.name.as_ref() == Some(name), "{name} became {one:?}");
            ensure!(
                one.transport.as_deref() == Some(transport),
                "not by {transport}: {one:?}"
            );
        }
        Ok(())
    }

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

    let addresses: Vec<String> = lab.sources().iter().map(ToString::to_string).collect();
    let begin = |transports: &[&str]| {
        let url = format!("http://{}", config.vip);
        let mut words = vec!["client.js".to_owned(), url];
        words.extend([CLIENTS.to_string(), addresses.join(",")]);
        words.extend(transports.iter().map(|word| (*word).to_owned()));
        Clients::begin(&lab, &arguments.directory, &words)
    };

    // WebSockets, as they come: each is placed for itself.
    let mut clients = begin(&["websocket"])?;
    let names = clients.connect()?;
    for name in ["b1", "b2", "b3"] {
        let count = names.iter().filter(|held| *held == name).count();
        println!("{name}: {count} clients");
        ensure!(count > 0, "{name} has none");
    }
    tether.succeed(&["drain", &format!("{SERVICE}/b1")])?;
    tether.kill()?;
    tether.restart()?;
    tether.wait_ready()?;
    println!(
        "b1 drains, and the daemon was killed and is back; waiting for {HEARTBEATS} heartbeats"
    );
    clients.live_on(&names, "websocket")?;
    println!("{CLIENTS} WebSockets saw {HEARTBEATS} heartbeats and more; none was cut");
    drop(clients);
    tether.succeed(&["undrain", &format!("{SERVICE}/b1")])?;

    // Sessions of several connections: all of a client's address go to one server.
    let mut config = config.clone();
    config.lines = "affinity = \"client-ip\"\n".to_owned();
    tether.reload(&config.text())?;
    let mut upgraded = begin(&["polling", "websocket"])?;
    let mut polling = begin(&["polling"])?;
    let of_upgraded = upgraded.connect()?;
    let of_polling = polling.connect()?;
    ensure!(
        of_upgraded == of_polling,
        "the same addresses are at other servers: {of_upgraded:?}, {of_polling:?}"
    );
    tether.wait_status("all clients are known", Duration::from_secs(20), |status| {
        status.services[0].clients == Some(addresses.len() as u64)
    })?;
    for (backend, weight) in config.backends.iter_mut().zip([1_000, 1, 1]) {
        backend.weight = weight;
    }
    tether.reload(&config.text())?;
    tether.kill()?;
    tether.restart()?;
    tether.wait_ready()?;
    println!(
        "nearly all of the table is b1's now, and the daemon was killed and is back; waiting for {HEARTBEATS} heartbeats"
    );
    upgraded.live_on(&of_upgraded, "websocket")?;
    polling.live_on(&of_polling, "polling")?;
    println!(
        "{CLIENTS} sessions that began with long-polling and {CLIENTS} of long-polling alone saw {HEARTBEATS} heartbeats and more; none was cut"
    );
    Ok(())
}
