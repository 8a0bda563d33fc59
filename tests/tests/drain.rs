//! A drained backend keeps what it has and gets nothing new, whichever way it was drained.

use std::time::{Duration, Instant};

use anyhow::Result;
use lab::address::Family;
use lab::config::SERVICE;
use lab::peer::client::{self, Connection};
use lab::peer::crowd::{self, assert_talking};
use lab::stage::Stage;
use lab::topology::{Place, Topology};
use lab::wait;

const SOON: Duration = Duration::from_secs(15);
const PACE: Duration = Duration::from_millis(250);

#[test]
fn by_command() -> Result<()> {
    drains_by_command(Place::Farm, Family::V4)
}

#[test]
fn by_command_in_ipv6() -> Result<()> {
    drains_by_command(Place::Farm, Family::V6)
}

#[test]
fn by_command_with_nat() -> Result<()> {
    drains_by_command(Place::Hidden, Family::V4)
}

fn drains_by_command(place: Place, family: Family) -> Result<()> {
    let topology = Topology::new(place).in_family(family);
    let stage = Stage::set(topology, 21, |_| {})?;
    let connections = stage
        .clients
        .open(150, stage.plan().talking(PACE), |_| {})?;
    let held = crowd::on(&connections, "b1").len();
    assert!(held > 20, "{held} on b1");

    stage.tether.succeed(&["drain", &format!("{SERVICE}/b1")])?;
    let status = stage.tether.wait_status("b1 drains", SOON, |status| {
        status.serving("b1") == "existing-only"
    })?;
    let backend = status.backend("b1").expect("b1 is there");
    assert_eq!(
        (backend.admin.as_str(), backend.health.as_str()),
        ("draining", "up")
    );
    let newcomers = stage.clients.open(100, stage.plan(), |_| {})?;
    assert_eq!(crowd::on(&newcomers, "b1").len(), 0);
    assert_talking(&connections)?;
    assert_eq!(crowd::on(&connections, "b1").len(), held);

    stage
        .tether
        .succeed(&["undrain", &format!("{SERVICE}/b1")])?;
    stage
        .tether
        .wait_status("b1 serves again", SOON, |status| {
            status.serving("b1") == "new"
        })?;
    let newcomers = stage.clients.open(100, stage.plan(), |_| {})?;
    assert!(crowd::on(&newcomers, "b1").len() > 10);
    assert_talking(&connections)?;
    stage.close();
    Ok(())
}

#[test]
fn by_command_for_a_backend_that_does_not_exist() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 22, |_| {})?;
    for object in ["chat/b9", "nothing/b1", "b1"] {
        let output = stage.tether.output(&["drain", object])?;
        assert!(!output.status.success(), "{object}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains(object.rsplit('/').next().unwrap_or(object)),
            "{said}"
        );
    }
    for name in ["b1", "b2", "b3"] {
        assert_eq!(stage.tether.status()?.serving(name), "new");
    }
    stage.close();
    Ok(())
}

#[test]
fn by_removal_from_the_file() -> Result<()> {
    drains_by_removal(Place::Segment, Family::V4)
}

#[test]
fn by_removal_from_the_file_in_ipv6() -> Result<()> {
    drains_by_removal(Place::Segment, Family::V6)
}

#[test]
fn by_removal_from_the_file_with_nat_in_ipv6() -> Result<()> {
    drains_by_removal(Place::Hidden, Family::V6)
}

#[test]
fn by_removal_from_the_file_with_dnat() -> Result<()> {
    drains_by_removal(Place::Behind, Family::V4)
}

fn drains_by_removal(place: Place, family: Family) -> Result<()> {
    let topology = Topology::new(place).in_family(family);
    let stage = Stage::set(topology, 23, |_| {})?;
    let connections = stage
        .clients
        .open(150, stage.plan().talking(PACE), |_| {})?;
    let held = crowd::on(&connections, "b1").len();
    assert!(held > 20, "{held} on b1");

    stage.tether.reload(&stage.config.without("b1").text())?;
    let newcomers = stage.clients.open(100, stage.plan(), |_| {})?;
    assert_eq!(crowd::on(&newcomers, "b1").len(), 0);
    assert_talking(&connections)?;
    assert_eq!(crowd::on(&connections, "b1").len(), held);
    // It is shown while it has flows, and these are counted once the daemon has been through its table.
    stage
        .tether
        .wait_status("b1 is shown with its flows", SOON, |status| {
            status.backend("b1").is_some_and(|b| {
                b.removed && b.serving == "existing-only" && b.flows.live() == held as u64
            })
        })?;

    // It comes back under its name: its flows stay, and it takes new ones.
    stage.tether.reload(&stage.config.text())?;
    stage.tether.wait_status("b1 is back", SOON, |status| {
        status
            .services
            .iter()
            .flat_map(|s| &s.backends)
            .any(|b| b.name == "b1" && !b.removed && b.serving == "new")
    })?;
    let newcomers = stage.clients.open(100, stage.plan(), |_| {})?;
    assert!(crowd::on(&newcomers, "b1").len() > 10);
    assert_talking(&connections)?;
    assert_eq!(crowd::on(&connections, "b1").len(), held);
    stage.close();
    Ok(())
}

/// When each of these was reset, after `begun`; all else that could have ended one is a failure.
fn resets(connections: &[&Connection], begun: Instant) -> Vec<Duration> {
    let mut ends = vec![];
    for connection in connections {
        let history = connection.history();
        let breaks: Vec<_> = history.breaks().collect();
        let [(life, client::Break::Reset)] = breaks[..] else {
            panic!("{breaks:?}");
        };
        let end = life.end.as_ref().expect("it broke");
        ends.push(end.at.duration_since(begun));
    }
    ends.sort_unstable();
    ends
}

#[test]
fn a_deadline_closes_what_is_left_at_a_pace() -> Result<()> {
    closes_at_a_deadline(Place::Farm, Family::V4)
}

#[test]
fn a_deadline_closes_what_is_left_at_a_pace_in_ipv6() -> Result<()> {
    closes_at_a_deadline(Place::Segment, Family::V6)
}

#[test]
fn a_deadline_closes_what_is_left_at_a_pace_with_nat() -> Result<()> {
    closes_at_a_deadline(Place::Hidden, Family::V4)
}

#[test]
fn a_deadline_closes_what_is_left_at_a_pace_with_dnat_in_ipv6() -> Result<()> {
    closes_at_a_deadline(Place::Behind, Family::V6)
}

fn closes_at_a_deadline(place: Place, family: Family) -> Result<()> {
    // Long enough for a busy machine to see that it is yet to come.
    const DEADLINE: Duration = Duration::from_secs(8);
    const CLOSE_OVER: Duration = Duration::from_secs(4);
    let stage = Stage::set(Topology::new(place).in_family(family), 25, |config| {
        config.lines = "drain_deadline = \"8s\"\nclose_over = \"4s\"\n".to_owned();
    })?;
    let plan = stage.plan().talking(PACE).reconnecting();
    let connections = stage.clients.open(240, plan, |_| {})?;
    let theirs = crowd::on(&connections, "b1");
    let held = theirs.len();
    assert!(held > 40, "{held} on b1");

    let begun = Instant::now();
    stage.tether.succeed(&["drain", &format!("{SERVICE}/b1")])?;
    // It has begun by now, and not before the command did.
    let told = begun.elapsed();
    stage
        .tether
        .wait_status("the deadline is shown", SOON, |status| {
            status
                .backend("b1")
                .and_then(|b1| b1.drain)
                .is_some_and(|drain| drain.deadline_s > 0 && drain.closed == 0.0)
        })?;
    wait::until("its clients are elsewhere", 2 * SOON, || {
        theirs
            .iter()
            .all(|c| c.backend().is_some_and(|b| b != "b1"))
            .then_some(())
    })?;
    let ends = resets(&theirs, begun);
    let (first, last) = (ends[0], ends[held - 1]);
    assert!(first >= DEADLINE, "the first after {first:?}");
    let latest = DEADLINE + CLOSE_OVER + Duration::from_secs(2);
    assert!(last < latest + told, "the last after {last:?}");
    // At a quarter of the time some are left and some are not, and at three quarters.
    for quarter in [1, 3] {
        let then = DEADLINE + CLOSE_OVER * quarter / 4;
        let gone = |by: Duration| ends.iter().filter(|end| **end < by).count() as u32;
        // A share that grows by steps tells each of its next packet.
        let (least, most) = (gone(then), gone(then + told + PACE * 2));
        let (expected, some) = (held as u32 * quarter / 4, held as u32 / 5);
        assert!(
            least < expected + some && most + some > expected,
            "{least} to {most} of {held} after {then:?}"
        );
    }
    // Those of others never noticed.
    let broken = connections
        .iter()
        .filter(|c| c.history().breaks().count() > 0);
    assert_eq!(broken.count(), held);

    // The backend was told of each: its own side is reset, and not left to wait.
    let (_, b1) = stage.backend("b1")?;
    wait::until("b1 has no connection left", SOON, || {
        (b1.open() == 0).then_some(())
    })?;
    assert_eq!(b1.reset(), held as u64);
    stage.tether.wait_status("all are closed", SOON, |status| {
        status
            .backend("b1")
            .and_then(|b1| b1.drain)
            .is_some_and(|drain| drain.deadline_s == 0 && drain.closed == 1.0)
    })?;

    // Their clients have not ended them, and are not said to have.
    wait::until_seen(
        "all have ended by the deadline",
        SOON,
        || stage.tether.flow_ends("deadline"),
        |&ends| ends == held as u64,
    )?;
    assert_eq!(stage.tether.flow_ends("rst")?, 0);

    // The end of the drain ends the closing.
    stage
        .tether
        .succeed(&["undrain", &format!("{SERVICE}/b1")])?;
    stage
        .tether
        .wait_status("b1 serves again", SOON, |status| {
            status.serving("b1") == "new"
        })?;
    let newcomers = stage
        .clients
        .open(100, stage.plan().talking(PACE), |_| {})?;
    assert!(crowd::on(&newcomers, "b1").len() > 10);
    assert_talking(&newcomers)?;
    stage.close();
    Ok(())
}

#[test]
fn a_deadline_asked_for_outlives_the_daemon_and_the_idle_are_told_on_their_next_packet()
-> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Segment), 26, |_| {})?;
    let connections = stage
        .clients
        .open(120, stage.plan().reconnecting(), |_| {})?;
    let theirs = crowd::on(&connections, "b1");
    let begun = Instant::now();
    stage.tether.succeed(&[
        "drain",
        &format!("{SERVICE}/b1"),
        "--deadline",
        "5s",
        "--close-over",
        "0s",
    ])?;
    stage.tether.kill()?;
    stage.tether.restart()?;
    stage.tether.wait_ready()?;
    stage.tether.wait_status("all are closed", SOON, |status| {
        status
            .backend("b1")
            .and_then(|b1| b1.drain)
            .is_some_and(|drain| drain.closed == 1.0)
    })?;
    assert!(begun.elapsed() >= Duration::from_secs(5));
    // Who says nothing hears nothing.
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    crowd::set_pace(&connections, Some(PACE));
    wait::until("its clients are elsewhere", SOON, || {
        theirs
            .iter()
            .all(|c| c.backend().is_some_and(|b| b != "b1"))
            .then_some(())
    })?;
    assert_eq!(resets(&theirs, begun).len(), theirs.len());
    let (_, b1) = stage.backend("b1")?;
    wait::until("b1 has no connection left", SOON, || {
        (b1.open() == 0).then_some(())
    })?;
    stage.close();
    Ok(())
}

/// A probe's sequence number is one too low, and the backend is to be reset all the same.
#[test]
fn an_idle_client_that_sends_keepalive_probes_is_told_and_so_is_its_backend() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 27, |_| {})?;
    let connections = stage.clients.open(60, stage.plan().probing(), |_| {})?;
    let theirs = crowd::on(&connections, "b1");
    let begun = Instant::now();
    let drain = ["drain", &format!("{SERVICE}/b1"), "--deadline", "0s"];
    stage
        .tether
        .succeed(&[&drain[..], &["--close-over", "1s"]].concat())?;
    wait::until("its clients are reset", SOON, || {
        let broken = |c: &&&Connection| c.history().breaks().count() > 0;
        (theirs.iter().filter(broken).count() == theirs.len()).then_some(())
    })?;
    assert_eq!(resets(&theirs, begun).len(), theirs.len());
    let (_, b1) = stage.backend("b1")?;
    wait::until("b1 has no connection left", SOON, || {
        (b1.open() == 0).then_some(())
    })?;
    assert_eq!(b1.reset(), theirs.len() as u64);
    stage.close();
    Ok(())
}

#[test]
fn a_removed_backend_whose_host_dies_still_resets_its_clients() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 24, |_| {})?;
    let connections = stage
        .clients
        .open(60, stage.plan().reconnecting(), |_| {})?;
    let theirs = crowd::on(&connections, "b1");
    stage.tether.reload(&stage.config.without("b1").text())?;
    stage.lab.darken(0)?;
    stage
        .tether
        .wait_status("b1 is down", SOON, |status| status.serving("b1") == "none")?;
    crowd::set_pace(theirs.iter().copied(), Some(PACE));
    wait::until("its clients are elsewhere", SOON, || {
        theirs
            .iter()
            .all(|c| c.backend().is_some_and(|b| b != "b1"))
            .then_some(())
    })?;
    for connection in theirs {
        let history = connection.history();
        assert_eq!(
            history
                .breaks()
                .map(|(_, why)| why.clone())
                .collect::<Vec<_>>(),
            [client::Break::Reset]
        );
    }
    stage.close();
    Ok(())
}
