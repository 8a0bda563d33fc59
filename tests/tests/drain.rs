//! A drained backend keeps what it has and gets nothing new, whichever way it was drained.

use std::time::Duration;

use anyhow::Result;
use lab::address::Family;
use lab::config::SERVICE;
use lab::peer::client::{self, Connection};
use lab::peer::crowd;
use lab::stage::Stage;
use lab::topology::{Place, Topology};
use lab::wait;

const SOON: Duration = Duration::from_secs(15);
const PACE: Duration = Duration::from_millis(250);

/// Every connection echoes again and again, and none has broken.
fn assert_talking(connections: &[Connection]) -> Result<()> {
    crowd::wait_for_echoes(connections, 3, SOON, |_| {})?;
    assert_eq!(crowd::breaks(connections), [""; 0]);
    Ok(())
}

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
                b.removed
                    && b.serving == "existing-only"
                    && b.flows.young + b.flows.pin == held as u64
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
