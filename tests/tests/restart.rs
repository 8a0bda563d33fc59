//! Flows outlive the daemon, however it ends; only `tether cleanup` ends the forwarding, and leaves no trace.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use lab::address::Family;
use lab::config::{Config, SERVICE};
use lab::namespace::Namespace;
use lab::peer::backend::{Backend, PORT};
use lab::peer::client::{Break, Clients, Connection, Plan};
use lab::peer::crowd::{self, assert_talking};
use lab::stage::Stage;
use lab::tether::{CONFIG_PATH, PINS, Tether};
use lab::topology::{Place, Topology};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(15);
const PACE: Duration = Duration::from_millis(250);

/// After a reboot of the host nothing is pinned and nothing remembered: flows are adopted, each with its next packet, and go where the table sends them;
/// which is where they were if it is built of the same seed, the configuration's.
#[test]
fn flows_outlive_a_reboot_by_adoption_if_the_seed_is_configured() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Farm), 44, |_| {})?;
    let text = format!(
        "fleet_seed = \"of two load balancers\"\n{}",
        stage.config.text()
    );
    stage.tether.terminate()?;
    stage.tether.succeed(&["cleanup"])?;
    stage.lab.balancer().write(CONFIG_PATH, &text)?;
    stage.tether.restart()?;
    stage.wait_serving()?;
    // Nothing is forwarded until the daemon runs again, which on a busy machine takes its time.
    let mut plan = stage.plan().talking(PACE);
    plan.patience = Duration::from_secs(120);
    let connections = stage.clients.open(120, plan, |_| {})?;
    assert_talking(&connections)?;

    stage.tether.kill()?;
    stage.tether.succeed(&["cleanup"])?;
    stage.tether.restart()?;
    stage.wait_serving()?;
    // TCP sends again ever more rarely, the longer it took.
    crowd::wait_for_echoes(&connections, 3, Duration::from_secs(120), |_| {})?;
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    let status = stage.tether.wait_counted(&connections, SOON)?;
    assert_eq!(status.packets("adopted"), connections.len() as u64);
    let listed = stage.tether.flows(&[])?;
    let adopted = listed.iter().filter(|flow| flow["adopted"] == true);
    assert_eq!(adopted.count(), connections.len());
    stage.close();
    Ok(())
}

fn ends(signal: Signal, place: Place, family: Family) -> Result<()> {
    let topology = Topology::new(place).in_family(family);
    let mut stage = Stage::set(topology, 41, |_| {})?;
    let mut connections = stage
        .clients
        .open(100, stage.plan().talking(PACE), |_| {})?;
    let before = stage.tether.pid()?;

    match signal {
        Signal::SIGKILL => stage.tether.kill()?,
        _ => assert_eq!(
            stage.tether.terminate()?.code(),
            Some(0),
            "{}",
            stage.tether.log()
        ),
    }
    // Without a daemon, flows go on and new ones are served.
    assert_talking(&connections)?;
    connections.extend(stage.clients.open(50, stage.plan().talking(PACE), |_| {})?);
    assert_eq!(crowd::spread(&connections).len(), 3);
    assert_talking(&connections)?;

    stage.tether.restart()?;
    stage.wait_serving()?;
    assert_talking(&connections)?;
    assert_ne!(stage.tether.status()?.pid, before);
    // It knows every flow, those that began in its absence too, once it has been through its table.
    stage.tether.wait_counted(&connections, SOON)?;
    connections.extend(stage.clients.open(50, stage.plan().talking(PACE), |_| {})?);
    assert_talking(&connections)?;
    stage.close();
    Ok(())
}

#[test]
fn flows_outlive_a_killed_daemon() -> Result<()> {
    ends(Signal::SIGKILL, Place::Farm, Family::V4)
}

#[test]
fn ipv6_flows_outlive_a_killed_daemon() -> Result<()> {
    ends(Signal::SIGKILL, Place::Farm, Family::V6)
}

#[test]
fn translated_flows_outlive_a_killed_daemon() -> Result<()> {
    ends(Signal::SIGKILL, Place::Hidden, Family::V4)
}

#[test]
fn translated_ipv6_flows_outlive_a_killed_daemon() -> Result<()> {
    ends(Signal::SIGKILL, Place::Behind, Family::V6)
}

#[test]
fn flows_outlive_a_stopped_daemon() -> Result<()> {
    ends(Signal::SIGTERM, Place::Farm, Family::V4)
}

#[test]
fn a_change_made_while_the_daemon_was_dead_is_applied_without_a_break() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Segment), 42, |_| {})?;
    let connections = stage
        .clients
        .open(100, stage.plan().talking(PACE), |_| {})?;
    stage.tether.kill()?;
    stage
        .lab
        .balancer()
        .write(CONFIG_PATH, &stage.config.without("b2").text())?;
    stage.tether.restart()?;
    stage.tether.wait_ready()?;
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    assert_eq!(crowd::spread(&newcomers).get("b2"), None);
    assert_talking(&connections)?;
    assert!(crowd::spread(&connections)["b2"] > 10);
    stage.close();
    Ok(())
}

#[test]
fn a_drain_outlives_a_killed_daemon() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Farm), 45, |_| {})?;
    let connections = stage
        .clients
        .open(100, stage.plan().talking(PACE), |_| {})?;
    stage.tether.succeed(&["drain", &format!("{SERVICE}/b3")])?;
    stage.tether.kill()?;
    stage.tether.restart()?;
    stage.tether.wait_ready()?;
    let status = stage.tether.status()?;
    assert_eq!(
        status.backend("b3").map(|b| b.admin.as_str()),
        Some("draining")
    );
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    assert_eq!(crowd::on(&newcomers, "b3").len(), 0);
    assert_talking(&connections)?;
    assert!(crowd::on(&connections, "b3").len() > 10);
    stage.close();
    Ok(())
}

/// What the next daemon will know of this one.
fn remembered(host: &Namespace) -> Result<serde_json::Value> {
    Ok(serde_json::from_str(
        &host.sh("cat /run/tether/runtime.json")?,
    )?)
}

/// A routed host has no sign of life but its echoes, and the next daemon never sees this one answer any: that it did is remembered.
#[test]
fn a_routed_backend_that_dies_while_no_daemon_runs_is_down_and_its_clients_are_reset() -> Result<()>
{
    let mut stage = Stage::set(Topology::new(Place::Farm), 46, |_| {})?;
    let connections = stage
        .clients
        .open(150, stage.plan().reconnecting(), |_| {})?;
    let theirs = crowd::on(&connections, "b2");
    assert!(theirs.len() > 10, "{} on b2", theirs.len());
    // A killed daemon remembers what was on disk by then.
    lab::wait::until_seen(
        "it is remembered who answers echoes",
        SOON,
        || remembered(stage.lab.balancer()),
        |kept| kept["echoing"]["hosts"].as_array().map_or(0, Vec::len) == 3,
    )?;
    stage.tether.kill()?;
    stage.lab.darken(1)?;
    stage.tether.restart()?;
    stage.tether.wait_ready()?;
    stage
        .tether
        .wait_status("b2 is down, and serves none", SOON, |status| {
            status.health("b2") == "down" && status.serving("b2") == "none"
        })?;
    crowd::set_pace(theirs.iter().copied(), Some(PACE));
    lab::wait::until("its clients are elsewhere", SOON, || {
        let is_elsewhere = |c: &&Connection| c.backend().is_some_and(|b| b != "b2");
        theirs.iter().all(is_elsewhere).then_some(())
    })?;
    for connection in &theirs {
        let history = connection.history();
        let breaks: Vec<_> = history.breaks().map(|(_, why)| why).collect();
        assert_eq!(breaks, [&Break::Reset], "{history:?}");
    }
    let others = connections
        .iter()
        .filter(|connection| connection.history().lives.len() == 1);
    assert_eq!(others.count(), connections.len() - theirs.len());
    stage.close();
    Ok(())
}

#[test]
fn a_second_daemon_is_refused() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 43, |_| {})?;
    let connections = stage.clients.open(30, stage.plan().talking(PACE), |_| {})?;
    let second = stage.tether.output(&["run", "--config", CONFIG_PATH])?;
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned()
        + &String::from_utf8_lossy(&second.stdout);
    assert!(said.contains("/run/tether"), "names what is held: {said}");
    assert_talking(&connections)?;
    stage.close();
    Ok(())
}

/// What of a host Tether could have left behind: the link and its features, listening sockets, files, pins.
fn traces(host: &Namespace) -> Result<String> {
    let mut traces = String::new();
    for line in [
        "ip -details link show dev eth0",
        "ip address show dev eth0",
        "ip route",
        "ip -6 route",
        "ethtool --show-features eth0",
        "ss --no-header --listening --tcp --unix",
    ] {
        traces += &format!("{line}\n{}", host.sh(line)?);
    }
    for folder in ["/run", "/sys/fs/bpf"] {
        traces += &format!("{folder}: {:?}\n", host.list(folder)?);
    }
    Ok(traces)
}

#[test]
fn cleanup_removes_every_trace() -> Result<()> {
    let lab = Topology::new(Place::Segment).build()?;
    let host = lab.balancer();
    let config = Config::new(lab.topology());
    let pristine = traces(host)?;
    let _backends: Vec<_> = lab
        .backends()
        .iter()
        .map(|b| Backend::start(b))
        .collect::<Result<_>>()?;
    let clients = Clients::start(lab.client(), lab.sources(), 44)?;
    let plan = Plan::new(SocketAddr::new(config.vip, PORT));

    let mut tether = Tether::start(host, &config.text())?;
    tether.wait_ready()?;
    let connections = clients.open(30, plan.talking(PACE), |_| {})?;
    assert!(host.sh("ip link show dev eth0")?.contains("xdp"));
    assert!(!host.list(PINS)?.is_empty());

    let refused = tether.output(&["cleanup", "--config", CONFIG_PATH])?;
    assert!(!refused.status.success(), "a daemon runs");
    assert_talking(&connections)?;

    tether.terminate()?;
    assert_talking(&connections)?;
    tether.succeed(&["cleanup", "--config", CONFIG_PATH])?;
    host.sh(&format!("rm {CONFIG_PATH}"))?;
    assert_eq!(traces(host)?, pristine);
    // Nothing is steered any more.
    let hasty = Plan {
        opening: Duration::from_millis(500),
        ..plan
    };
    assert!(clients.open_one(hasty).is_err());

    // A second cleanup has nothing to do, which is no failure; and a daemon can start afresh.
    tether.succeed(&["cleanup", "--bpffs", PINS, "--state-dir", "/run/tether"])?;
    assert_eq!(traces(host)?, pristine);
    let mut fresh = Tether::start(host, &config.text())?;
    fresh.wait_ready()?;
    clients.open_one(plan)?.echo()?;
    Ok(())
}
