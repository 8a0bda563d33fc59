//! A real Prometheus scrapes a running daemon, and the shipped alert rules fire for the faults of a lab, and clear when those are mended. Only times are
//! shorter than in the shipped file.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::config::{Config, SERVICE};
use lab::namespace::Namespace;
use lab::peer::client::Close;
use lab::running::Running;
use lab::stage::Stage;
use lab::topology::{Place, Topology};
use lab::wait;
use nix::sys::signal::Signal;
use serde_json::Value;

/// Several scrapes and evaluations, of a second each, on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// A network that nobody of the segment has.
const NOBODY: &str = "10.0.2.99";

/// A file while which exists the daemon's reconciler hangs.
const HANG: &str = "/run/hang";

/// The shipped rules with other times: what has to last for minutes lasts a second, and what is looked back on is shorter. So is the silence that makes a
/// daemon stale, which speaks every 2 s.
fn quick(rules: &str) -> Result<String> {
    let mut text = String::new();
    let mut shortened = 0;
    for line in rules.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if line.trim_start().starts_with("for: ") {
            text += indent;
            text += "for: 1s\n";
            shortened += 1;
        } else {
            text += &line
                .replace("[5m]", "[15s]")
                .replace("[10m]", "[15s]")
                .replace("tether_status_timestamp_seconds > 60", STALE);
            text.push('\n');
        }
    }
    ensure!(shortened > 15, "only {shortened} rules last");
    ensure!(text.contains(STALE), "no rule says when a daemon is stale");
    Ok(text)
}

/// When a daemon is stale.
const STALE: &str = "tether_status_timestamp_seconds > 10";

/// A running Prometheus on the balancer, which scrapes as deploy/README.md says.
struct Prometheus {
    host: Arc<Namespace>,
    process: Running,
}

impl Prometheus {
    fn start(host: &Arc<Namespace>) -> Result<Self> {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let rules = std::fs::read_to_string(deploy.join("prometheus/tether.rules.yml"))?;
        host.write("/run/rules.yml", &quick(&rules)?)?;
        // The configuration as people are told to write it.
        let readme = std::fs::read_to_string(deploy.join("README.md"))?;
        let mut blocks = readme.split("```yaml\n").skip(1);
        let shown = blocks.find(|block| block.starts_with("scrape_configs:"));
        let shown = shown.and_then(|block| block.split("```").next());
        let shown = shown.context("deploy/README.md shows how to scrape")?;
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\nrule_files: [/run/rules.yml]\n{shown}"
        );
        host.write("/run/prometheus.yml", &config)?;
        let mut command = Command::new("prometheus");
        command.args([
            "--config.file=/run/prometheus.yml",
            "--storage.tsdb.path=/run/prometheus",
            "--web.listen-address=127.0.0.1:9090",
        ]);
        let process = Running::start(host, command)?;
        let prometheus = Self {
            host: host.clone(),
            process,
        };
        wait::until_seen("Prometheus answers", SOON, || prometheus.firing(), |_| true)
            .with_context(|| prometheus.process.said().join("\n"))?;
        Ok(prometheus)
    }

    fn get(&self, path: &'static str) -> Result<Value> {
        let text = self.host.run(move || -> Result<String> {
            let mut stream = TcpStream::connect("127.0.0.1:9090")?;
            write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })?;
        let body = text.split_once("\r\n\r\n").context("an answer")?.1;
        serde_json::from_str(body).with_context(|| body.to_owned())
    }

    /// The alerts that fire.
    fn firing(&self) -> Result<BTreeSet<String>> {
        let answer = self.get("/api/v1/alerts")?;
        let alerts = answer["data"]["alerts"].as_array().context("alerts")?;
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        Ok(firing
            .filter_map(|alert| alert["labels"]["alertname"].as_str().map(str::to_owned))
            .collect())
    }

    /// Waits until exactly these fire.
    fn see(&self, what: &str, alerts: &[&str]) -> Result<()> {
        let wanted: BTreeSet<String> = alerts.iter().map(|&name| name.to_owned()).collect();
        wait::until_seen(
            &format!("{what}: {alerts:?} fire"),
            SOON,
            || self.firing(),
            |firing| *firing == wanted,
        )?;
        Ok(())
    }

    /// Waits until all of these fire, perhaps among others.
    fn see_among(&self, what: &str, alerts: &[&str]) -> Result<()> {
        wait::until_seen(
            &format!("{what}: {alerts:?} fire"),
            SOON,
            || self.firing(),
            |firing| alerts.iter().all(|&alert| firing.contains(alert)),
        )?;
        Ok(())
    }
}

/// Starts the daemon anew with another configuration.
fn restart_with(stage: &mut Stage, config: &Config) -> Result<()> {
    // It would refuse some of it while it runs.
    stage.tether.terminate()?;
    let host = stage.lab.balancer();
    host.write(lab::tether::CONFIG_PATH, &config.text())?;
    stage.tether.restart()?;
    stage.wait_serving()
}

#[test]
fn alerts_fire_for_faults_and_clear() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Farm), 96, |config| config.flows = 600)?;
    let prometheus = Prometheus::start(stage.lab.balancer())?;
    wait::until_seen(
        "it scrapes",
        SOON,
        || prometheus.get("/api/v1/query?query=tether_backend_health"),
        |answer| {
            answer["data"]["result"]
                .as_array()
                .is_some_and(|all| all.len() >= 3)
        },
    )?;
    prometheus.see("all is well", &[])?;

    stage.lab.darken(0)?;
    prometheus.see("a dark backend", &["TetherBackendDown"])?;
    stage.lab.brighten(0)?;
    prometheus.see("it is back", &[])?;

    for backend in &stage.backends {
        backend.close_listeners()?;
    }
    prometheus.see("all refuse", &["TetherBackendDown", "TetherFailOpen"])?;
    for backend in &stage.backends {
        backend.open_listeners()?;
    }
    prometheus.see("all are back", &[])?;

    stage.tether.succeed(&["drain", "--all"])?;
    prometheus.see("the host is evacuated", &["TetherNoBackend"])?;
    stage.tether.succeed(&["undrain", "--all"])?;
    prometheus.see("it is not any more", &[])?;

    let nobody: IpAddr = NOBODY.parse()?;
    stage.tether.succeed(&[
        "add",
        &format!("{SERVICE}/b9"),
        "--address",
        &nobody.to_string(),
    ])?;
    prometheus.see_among(
        "a backend that nobody answers for",
        &["TetherBackendUnresolved"],
    )?;
    stage
        .tether
        .succeed(&["remove", &format!("{SERVICE}/b9")])?;
    prometheus.see("it is removed", &[])?;

    stage
        .lab
        .balancer()
        .write(lab::tether::CONFIG_PATH, "interfaces = 7\n")?;
    stage.tether.signal(Signal::SIGHUP)?;
    prometheus.see("a bad configuration", &["TetherConfigurationRefused"])?;
    stage
        .lab
        .balancer()
        .write(lab::tether::CONFIG_PATH, &stage.config.text())?;
    stage.tether.signal(Signal::SIGHUP)?;
    prometheus.see("a good one", &[])?;

    stage.tether.kill()?;
    prometheus.see_among("a dead daemon", &["TetherAbsent"])?;
    stage.tether.restart()?;
    stage.wait_serving()?;
    prometheus.see("it is back", &[])?;

    // The loopback has no native mode.
    let mut generic = stage.config.clone();
    generic.interfaces.push("lo");
    stage.lab.balancer().sh("ethtool -K lo gro off")?;
    restart_with(&mut stage, &generic)?;
    prometheus.see("an interface in generic mode", &["TetherGenericMode"])?;
    let plain = stage.config.clone();
    restart_with(&mut stage, &plain)?;
    prometheus.see("without it", &[])?;

    stage.tether.terminate()?;
    stage.tether.restart_to_hang(HANG)?;
    stage.wait_serving()?;
    let b1 = format!("{SERVICE}/b1");
    stage.lab.balancer().write(HANG, "")?;
    // It is answered once it is in force, which is not now.
    let _weighed = stage.tether.begin(&["weight", &b1, "50"])?;
    prometheus.see("a reconciler that hangs", &["TetherStale"])?;
    stage.lab.balancer().sh(&format!("rm {HANG}"))?;
    prometheus.see("it goes on", &[])?;
    stage.tether.succeed(&["revert", &b1])?;

    // So many flows that the table is more than half full, then nearly full, and one backend that has to keep its share.
    let mut connections = stage.clients.open(550, stage.plan(), |_| {})?;
    prometheus.see("a table half full", &["TetherTableFilling"])?;
    connections.extend(stage.clients.open(200, stage.plan(), |_| {})?);
    prometheus.see("a table nearly full", &["TetherTableNearlyFull"])?;
    let roomy = stage
        .config
        .with_flows(lb_common::net::IpVersion::V4, 20_000);
    restart_with(&mut stage, &roomy)?;
    prometheus.see("a larger table", &[])?;

    stage.tether.succeed(&["drain", &format!("{SERVICE}/b1")])?;
    prometheus.see("a drain that does not end", &["TetherDrainStuck"])?;
    stage
        .tether
        .succeed(&["undrain", &format!("{SERVICE}/b1")])?;
    prometheus.see("it is called off", &[])?;

    for connection in connections.iter().take(250) {
        connection.close(Close::Abort)?;
    }
    prometheus.see("many flows end", &["TetherChurn", "TetherChurnHigh"])?;
    prometheus.see("and then no more", &[])?;
    stage.close();
    Ok(())
}
