//! What is undone behind the daemon's back is put right again, and a signal that comes early is not lost.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::config::{Config, SERVICE};
use lab::peer::client::Plan;
use lab::peer::crowd;
use lab::stage::Stage;
use lab::tether::{CONFIG_PATH, PINS, Tether};
use lab::topology::{Lab, Place, Topology};
use lab::wait;
use lb_userspace::dataplane::kernel::bpf::Link;
use nix::sys::signal::Signal;

/// Several times what the daemon leaves between two looks.
const SOON: Duration = Duration::from_secs(20);
const PACE: Duration = Duration::from_millis(250);
const STATE_DIR: &str = "/run/tether";

#[test]
fn a_program_that_was_detached_is_attached_again() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 71, |_| {})?;
    // As long as the program may be away, and for TCP's next try after that.
    let plan = Plan {
        patience: 2 * SOON,
        ..stage.plan()
    };
    let connections = stage.clients.open(60, plan.talking(PACE), |_| {})?;
    let before = stage.tether.status()?.attachments;
    let is_attached = |lab: &Lab| Ok(lab.balancer().sh("ip link show dev eth0")?.contains("xdp"));
    assert!(is_attached(&stage.lab)?);

    stage
        .lab
        .balancer()
        .run(|| Link::from_pin(&Path::new(PINS).join("link-eth0"))?.detach())
        .context("detach the program")?;
    assert!(!is_attached(&stage.lab)?);
    wait::until_seen(
        "the program is attached again",
        SOON,
        || is_attached(&stage.lab),
        |is| *is,
    )?;
    wait::until("it is told", SOON, || {
        stage
            .tether
            .log()
            .contains("it is attached again")
            .then_some(())
    })?;
    assert_eq!(stage.tether.status()?.attachments, before);
    // TCP has sent again what was lost meanwhile.
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    assert_eq!(crowd::spread(&newcomers).len(), 3);
    stage.close();
    Ok(())
}

#[test]
fn a_pin_directory_that_was_removed_is_made_again_and_the_next_daemon_knows_the_flows() -> Result<()>
{
    let mut stage = Stage::set(Topology::new(Place::Farm), 73, |_| {})?;
    let plan = Plan {
        patience: 2 * SOON,
        ..stage.plan()
    };
    let connections = stage.clients.open(60, plan.talking(PACE), |_| {})?;
    let host = stage.lab.balancer();
    let before = host.list(PINS)?;
    host.sh(&format!("rm -r {PINS}"))?;
    wait::until_seen(
        "all of it is back",
        SOON,
        || host.list(PINS),
        |names| *names == before,
    )?;
    wait::until("it is told", SOON, || {
        stage
            .tether
            .log()
            .contains("they are pinned again")
            .then_some(())
    })?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    stage.tether.kill()?;
    stage.tether.restart()?;
    stage.tether.wait_ready()?;
    let log = stage.tether.log();
    assert!(log.contains("\"adopted\":true"), "{log}");
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    assert_eq!(stage.tether.status()?.packets("adopted"), 0);
    stage.close();
    Ok(())
}

#[test]
fn a_state_directory_that_was_removed_is_made_again() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Farm), 72, |_| {})?;
    stage.tether.succeed(&["drain", &format!("{SERVICE}/b3")])?;
    let host = stage.lab.balancer();
    host.sh(&format!("rm -r {STATE_DIR}"))?;
    stage
        .tether
        .status()
        .expect_err("nobody listens where nothing is");

    let status = stage
        .tether
        .wait_status("the daemon answers again", SOON, |_| true)?;
    assert_eq!(status.pid, stage.tether.pid()?);
    assert!(
        stage.tether.log().contains("the admin socket was removed"),
        "{}",
        stage.tether.log()
    );
    let second = stage.tether.output(&["run", "--config", CONFIG_PATH])?;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success());
    assert!(said.contains(&format!("(pid {})", status.pid)), "{said}");

    // The drain is remembered anew, too.
    wait::until_seen(
        "all of it is back",
        SOON,
        || host.list(STATE_DIR),
        |names| *names == ["admin.sock", "lock", "runtime.json"],
    )?;
    stage.tether.kill()?;
    stage.tether.restart()?;
    stage.tether.wait_ready()?;
    let status = stage.tether.status()?;
    let b3 = status.backend("b3").context("b3 is configured")?;
    assert_eq!(b3.admin, "draining");
    stage.close();
    Ok(())
}

/// A daemon that has begun, and takes a while: it waits for a word about backends that are dark and seldom checked.
fn starting(lab: &Lab) -> Result<Tether> {
    for index in 0..lab.topology().backends {
        lab.darken(index)?;
    }
    let mut config = Config::new(lab.topology());
    config.interval_ms = 30_000;
    config.timeout_ms = 30_000;
    let tether = Tether::start(lab.balancer(), &config.text())?;
    // Made after signals are caught, and before the program is loaded.
    wait::until_seen(
        "the lock is there",
        SOON,
        || lab.balancer().list(STATE_DIR),
        |names| names.iter().any(|name| name == "lock"),
    )?;
    Ok(tether)
}

fn is_loaded(lab: &Lab) -> Result<bool> {
    Ok(lab.balancer().list(PINS)?.iter().any(|name| name == "maps"))
}

#[test]
fn a_daemon_that_is_told_to_end_while_it_starts_ends_as_told() -> Result<()> {
    let lab = Topology::new(Place::Farm).build()?;
    let mut tether = starting(&lab)?;
    let status = tether.terminate()?;
    let log = tether.log();
    assert_eq!(status.code(), Some(0), "{status}: {log}");
    assert!(log.contains("SIGTERM") && !log.contains("ready"), "{log}");
    // What it leaves is whole: the next one starts from it.
    assert!(is_loaded(&lab)?, "{log}");
    tether.restart()?;
    tether.wait_ready()
}

#[test]
fn a_reload_that_is_asked_for_while_the_daemon_starts_is_done_then() -> Result<()> {
    let lab = Topology::new(Place::Farm).build()?;
    let mut tether = starting(&lab)?;
    tether.signal(Signal::SIGHUP)?;
    tether.wait_ready()?;
    tether.wait_status("the configuration was read again", SOON, |status| {
        status.generation.accepted == 2
    })?;
    Ok(())
}
