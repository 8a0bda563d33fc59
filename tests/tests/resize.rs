//! A larger flow table, and another seed, by a restart: no connection notices.

use std::net::Ipv4Addr;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::address::Family;
use lab::config::BackendSpec;
use lab::namespace::Namespace;
use lab::peer::crowd::{self, assert_talking};
use lab::stage::Stage;
use lab::tether::{self, CONFIG_PATH};
use lab::topology::{Place, Topology};
use lb_common::flow::bucket::{WAYS, buckets_for};
use lb_common::maps::STEER_INDEX;
use lb_common::net::IpVersion;
use lb_userspace::failpoint::Place as Failpoint;
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(30);
const PACE: Duration = Duration::from_millis(250);

fn places(flows: u32) -> u64 {
    u64::from(buckets_for(flows)) * u64::from(WAYS)
}

#[test]
fn connections_outlive_a_larger_and_a_smaller_flow_table() -> Result<()> {
    outlive_a_larger_and_a_smaller_flow_table(Place::Farm, Family::V4)
}

#[test]
fn ipv6_connections_outlive_a_larger_and_a_smaller_flow_table() -> Result<()> {
    outlive_a_larger_and_a_smaller_flow_table(Place::Farm, Family::V6)
}

#[test]
fn translated_connections_outlive_a_larger_and_a_smaller_flow_table() -> Result<()> {
    outlive_a_larger_and_a_smaller_flow_table(Place::Hidden, Family::V4)
}

#[test]
fn translated_connections_outlive_a_larger_and_a_smaller_flow_table_in_ipv6() -> Result<()> {
    outlive_a_larger_and_a_smaller_flow_table(Place::Hidden, Family::V6)
}

fn outlive_a_larger_and_a_smaller_flow_table(place: Place, family: Family) -> Result<()> {
    let topology = Topology::new(place).in_family(family);
    let mut stage = Stage::set(topology, 46, |_| {})?;
    let version = family.vip();
    let small = stage.config.flows;
    let mut connections = stage
        .clients
        .open(500, stage.plan().talking(PACE), |_| {})?;
    assert_talking(&connections)?;
    for flows in [4 * small, small] {
        let config = stage.config.with_flows(version, flows);
        stage.lab.balancer().write(CONFIG_PATH, &config.text())?;
        stage.tether.terminate()?;
        stage.tether.restart()?;
        stage.wait_serving()?;
        assert!(
            stage.tether.log().contains("flow tables resized"),
            "{}",
            stage.tether.log()
        );
        stage
            .tether
            .wait_status("the table is counted", SOON, |status| {
                status.flows.tables.of(version).capacity == places(flows)
            })?;
        stage.tether.wait_counted(&connections, SOON)?;
        assert_talking(&connections)?;
        connections.extend(stage.clients.open(50, stage.plan().talking(PACE), |_| {})?);
        assert_talking(&connections)?;
    }
    // None was adopted, as a flow is that the table has forgotten.
    let status = stage.tether.status()?;
    for reason in ["adopted", "unknown_flow"] {
        assert_eq!(status.packets(reason), 0, "{reason}");
    }
    stage.close();
    Ok(())
}

/// The unit gives the daemon no right to ask the kernel what programs there are and which maps they use.
#[test]
fn a_daemon_that_is_killed_while_it_resizes_is_followed_by_one_with_least_rights() -> Result<()> {
    /// Those of a resize come first. After the maps are staged, programs are put in their places: those that there are without a service that translates or
    /// guards.
    const STAGED: u32 = 1;
    const COPIED: u32 = STAGED + STEER_INDEX + 1;
    /// Until the new maps are the instance's.
    const EXCHANGED: u32 = COPIED + 6;
    let mut stage = Stage::set(Topology::new(Place::Farm), 58, |_| {})?;
    let small = stage.config.flows;
    let connections = stage
        .clients
        .open(100, stage.plan().talking(PACE), |_| {})?;
    for (round, failpoint) in (1..).zip([STAGED].into_iter().chain(COPIED..=EXCHANGED)) {
        let flows = small * (1 + round % 2);
        let config = stage.config.with_flows(IpVersion::V4, flows);
        stage.lab.balancer().write(CONFIG_PATH, &config.text())?;
        stage.tether.terminate()?;
        stage.tether.restart_to_die(failpoint)?;
        let died = stage.tether.wait_death(SOON, |_| false)?;
        let of_resize = [Failpoint::ResizeStepDone, Failpoint::RepliesSwitched];
        assert!(
            of_resize
                .iter()
                .any(|place| died.as_deref() == Some(place.name())),
            "failpoint {failpoint}: {died:?}"
        );
        stage.tether.restart_with_least_rights()?;
        stage.wait_serving()?;
        assert_talking(&connections)?;
        assert_eq!(crowd::breaks(&connections), [""; 0], "{failpoint}");
    }
    let status = stage.tether.status()?;
    assert_eq!(status.packets("adopted"), 0);
    stage.close();
    Ok(())
}

/// The flow tables of an instance without such a service have no translations: a reload is refused, and a restart makes them, while all flows go on as
/// they were.
#[test]
fn a_service_becomes_one_of_mode_nat_and_its_connections_go_on() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Farm), 49, |_| {})?;
    let mut connections = stage
        .clients
        .open(100, stage.plan().talking(PACE), |_| {})?;
    let snat = stage.lab.topology().snat_address();
    let balancer = stage.lab.balancer().clone();
    balancer.sysctl("net/ipv4/ip_forward", "1")?;
    balancer.ip(&format!("address add {snat}/32 dev eth0"))?;
    stage.config.mode = "nat";
    stage.config.snat = vec![snat];
    balancer.write(CONFIG_PATH, &stage.config.text())?;
    stage.tether.signal(Signal::SIGHUP)?;
    stage.tether.wait_status("it is refused", SOON, |status| {
        let error = status.config.error.as_deref().unwrap_or_default();
        error.contains("modes nat and dnat need; restart the daemon")
    })?;
    assert_talking(&connections)?;

    stage.tether.terminate()?;
    stage.tether.restart()?;
    stage.wait_serving()?;
    assert_talking(&connections)?;
    connections.extend(
        stage
            .clients
            .open(100, stage.plan().talking(PACE), |_| {})?,
    );
    assert_talking(&connections)?;
    let status = stage
        .tether
        .wait_status("the new ones are translated", SOON, |status| {
            let translated = status.services.iter().flat_map(|service| &service.backends);
            let ports = translated
                .flat_map(|backend| &backend.snat)
                .map(|snat| snat.ports);
            ports.sum::<u32>() == 100
        })?;
    assert_eq!(status.packets("adopted"), 0);
    stage.close();
    Ok(())
}

#[test]
fn a_table_that_would_be_too_small_stays_and_the_daemon_serves() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Farm), 47, |_| {})?;
    let flows = stage.config.flows;
    let connections = stage
        .clients
        .open(100, stage.plan().talking(PACE), |_| {})?;
    stage.tether.wait_counted(&connections, SOON)?;
    let config = stage.config.with_flows(IpVersion::V4, 50);
    stage.lab.balancer().write(CONFIG_PATH, &config.text())?;
    stage.tether.kill()?;
    stage.tether.restart()?;
    stage.wait_serving()?;
    let log = stage.tether.log();
    for part in [
        "the flow tables stay as large as they are",
        "has no room for them",
        "`flows` in [limits]",
    ] {
        assert!(log.contains(part), "no {part:?} in {log}");
    }
    assert_talking(&connections)?;
    stage
        .tether
        .wait_status("the table is counted", SOON, |status| {
            status.flows.tables.v4.capacity == places(flows)
        })?;
    stage.close();
    Ok(())
}

/// What keeps a daemon from starting is found out before the tables are moved and links run another program.
#[test]
fn a_daemon_that_cannot_start_changes_nothing() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Farm), 49, |_| {})?;
    let connections = stage
        .clients
        .open(100, stage.plan().talking(PACE), |_| {})?;
    stage.tether.terminate()?;
    let balancer = stage.lab.balancer();
    let program = || balancer.sh("ip link show dev eth0");
    let before = program()?;
    let larger = stage
        .config
        .with_flows(IpVersion::V4, 4 * stage.config.flows);
    let mut many = larger.clone();
    many.backends.extend((0..260u16).map(|n| BackendSpec {
        name: format!("more{n}"),
        address: Ipv4Addr::from_bits(0x0a09_0000 + u32::from(n) + 1).into(),
        weight: 100,
        lines: String::new(),
    }));
    let many = many.text().replace("backends = 256", "backends = 512");
    let refused = |text: &str, part: &str| -> Result<()> {
        balancer.write(CONFIG_PATH, text)?;
        let output = balancer.output(tether::command(&["run", "--config", CONFIG_PATH])?)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(part), "no {part:?}: {said}");
        assert_eq!(program()?, before);
        Ok(())
    };
    refused(&many, "the maps were made with backends = 256")?;
    let taken = balancer.run(|| std::net::TcpListener::bind("127.0.0.1:9477"))?;
    refused(&larger.text(), "127.0.0.1:9477")?;
    drop(taken);
    balancer.write(CONFIG_PATH, &stage.config.text())?;
    stage.tether.restart()?;
    stage.wait_serving()?;
    assert_talking(&connections)?;
    stage.close();
    Ok(())
}

/// Has `tether seed import` read a file of a host's.
fn import(host: &Namespace, file: &str) -> Result<Output> {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"exec "$0" seed import --config "$1" < "$2""#])
        .arg(tether::program()?)
        .args([CONFIG_PATH, file]);
    host.output(command)
}

#[test]
fn connections_outlive_a_rotated_seed() -> Result<()> {
    const FILE: &str = "/run/seed";
    let mut stage = Stage::set(Topology::new(Place::Farm), 48, |_| {})?;
    let mut connections = stage
        .clients
        .open(100, stage.plan().talking(PACE), |_| {})?;
    let show = ["seed", "show", "--config", CONFIG_PATH];
    let rotate = ["seed", "rotate", "--config", CONFIG_PATH];
    let before = stage.tether.succeed(&show)?;
    let balancer = stage.lab.balancer().clone();
    let said = stage
        .tether
        .succeed(&["seed", "export", FILE, "--config", CONFIG_PATH])?;
    let exported = balancer.sh(&format!("cat {FILE}"))?;
    assert!(!said.contains(exported.trim()), "{said}");
    let refused = stage.tether.output(&rotate)?;
    assert!(!refused.status.success(), "a daemon runs");
    let refused = import(&balancer, FILE)?;
    assert!(!refused.status.success(), "a daemon runs");
    assert_eq!(stage.tether.succeed(&show)?, before);

    stage.tether.terminate()?;
    // One that was exported is taken over as it would be by another load balancer.
    stage.tether.succeed(&rotate)?;
    assert_ne!(stage.tether.succeed(&show)?, before);
    let taken = import(&balancer, FILE)?;
    let said = String::from_utf8_lossy(&[taken.stdout, taken.stderr].concat()).into_owned();
    assert!(taken.status.success(), "{said}");
    assert!(!said.contains(exported.trim()), "{said}");
    assert_eq!(stage.tether.succeed(&show)?, before);

    let said = stage.tether.succeed(&rotate)?;
    let after = stage.tether.succeed(&show)?;
    assert_ne!(after, before);
    let print = after.split_whitespace().next().context("a fingerprint")?;
    assert!(said.contains(print), "{said}");
    let secret = stage
        .tether
        .succeed(&["seed", "show", "--secret", "--config", CONFIG_PATH])?;
    assert_eq!(secret.trim().len(), 64);
    assert!(!said.contains(secret.trim()) && !after.contains(secret.trim()));

    stage.tether.restart()?;
    stage.wait_serving()?;
    assert_talking(&connections)?;
    connections.extend(stage.clients.open(60, stage.plan().talking(PACE), |_| {})?);
    assert_talking(&connections)?;
    assert!(!stage.tether.log().contains(secret.trim()));
    stage.close();
    Ok(())
}
