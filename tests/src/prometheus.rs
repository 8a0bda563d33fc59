//! A real Prometheus with the shipped rules.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::namespace::Namespace;
use crate::running::Running;
use crate::wait;

/// Several scrapes and evaluations, of a second each, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// The file of the shipped rules.
#[must_use]
pub fn rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus/tether.rules.yml")
}

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
pub struct Prometheus {
    host: Arc<Namespace>,
    process: Running,
}

impl Prometheus {
    /// Starts it on `host`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(host: &Arc<Namespace>) -> Result<Self> {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let rules = std::fs::read_to_string(rules())?;
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

    /// What promtool prints of a query's answer: a line for each sample.
    ///
    /// # Errors
    /// When the query is not understood.
    pub fn ask(&self, query: &str) -> Result<String> {
        let mut command = Command::new("promtool");
        command.args(["query", "instant", "http://127.0.0.1:9090", query]);
        let output = self.host.output(command)?;
        let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        ensure!(
            output.status.success(),
            "{query}: {} {}",
            words(&output.stdout),
            words(&output.stderr)
        );
        Ok(words(&output.stdout))
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
    ///
    /// # Errors
    /// When that takes too long.
    pub fn see(&self, what: &str, alerts: &[&str]) -> Result<()> {
        let wanted: BTreeSet<String> = alerts.iter().map(|&name| name.to_owned()).collect();
        wait::until_seen(
            &format!("{what}: {alerts:?} fire"),
            SOON,
            || self.firing(),
            |firing| *firing == wanted,
        )?;
        Ok(())
    }

    /// Waits until it scrapes a daemon that is well.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn see_all_well(&self) -> Result<()> {
        wait::until_seen(
            "it scrapes",
            SOON,
            || self.get("/api/v1/query?query=tether_backend_health"),
            |answer| {
                answer["data"]["result"]
                    .as_array()
                    .is_some_and(|all| all.len() >= 3)
            },
        )?;
        self.see("all is well", &[])
    }

    /// Waits until all of these fire, perhaps among others.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn see_among(&self, what: &str, alerts: &[&str]) -> Result<()> {
        wait::until_seen(
            &format!("{what}: {alerts:?} fire"),
            SOON,
            || self.firing(),
            |firing| alerts.iter().all(|&alert| firing.contains(alert)),
        )?;
        Ok(())
    }

    /// Waits until an alert does not fire any more, whatever others do.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn see_no_more(&self, what: &str, alert: &str) -> Result<()> {
        wait::until_seen(
            &format!("{what}: {alert} does not fire"),
            SOON,
            || self.firing(),
            |firing| !firing.contains(alert),
        )?;
        Ok(())
    }
}
