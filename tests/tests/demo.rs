//! The demo, as README says it: what it is to show, it shows.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

const CONNECTIONS: usize = 60;

/// The last line of `--json`.
#[derive(Debug, Deserialize)]
struct Report {
    connections: usize,
    unexpected_breaks: usize,
    per_backend: BTreeMap<String, usize>,
    drained: Drained,
    killed: Killed,
    daemon_restart: DaemonRestart,
}

#[derive(Debug, Deserialize)]
struct Drained {
    held: usize,
    kept: usize,
}

#[derive(Debug, Deserialize)]
struct Killed {
    held: usize,
    reconnected: usize,
}

#[derive(Debug, Deserialize)]
struct DaemonRestart {
    broken: usize,
}

fn shows(mode: &str, family: &str) -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--mode", mode, "--family", family, "--json"])
        .args(["--connections", &CONNECTIONS.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}{errors}", output.status);
    let last = said.lines().last().context("a last line")?;
    let report: Report = serde_json::from_str(last).with_context(|| said.clone().into_owned())?;

    assert_eq!(report.connections, CONNECTIONS, "{said}");
    assert_eq!(report.unexpected_breaks, 0, "{said}");
    assert_eq!(report.per_backend.len(), 3, "{said}");
    assert_eq!(
        report.per_backend.values().sum::<usize>(),
        CONNECTIONS,
        "{said}"
    );
    let Drained { held, kept } = report.drained;
    assert!(held > 0 && kept == held, "{said}");
    let Killed { held, reconnected } = report.killed;
    assert!(held > 0 && reconnected == held, "{said}");
    assert_eq!(report.daemon_restart.broken, 0, "{said}");
    Ok(())
}

#[test]
fn the_demo_shows_its_main_job_in_ipip() -> Result<()> {
    shows("ipip", "v4")
}

#[test]
fn the_demo_shows_its_main_job_in_l2() -> Result<()> {
    shows("l2", "v4")
}

#[test]
fn the_demo_shows_its_main_job_in_nat() -> Result<()> {
    shows("nat", "v4")
}

#[test]
fn the_demo_shows_its_main_job_in_dnat() -> Result<()> {
    shows("dnat", "v4")
}

#[test]
fn the_demo_shows_its_main_job_in_ipv6_by_ipip() -> Result<()> {
    shows("ipip", "v6")
}

#[test]
fn the_demo_shows_its_main_job_in_ipv6_by_nat() -> Result<()> {
    shows("nat", "v6")
}
