//! A backend that loses some of what clients send, and whose health checks find nothing: seen by what its clients send again.

use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::gray::{CLIENTS, LINES, cure, forgive, sicken};
use lab::peer::client::Connection;
use lab::peer::crowd;
use lab::stage::Stage;
use lab::status::{Repeats, Status};
use lab::topology::{Place, Topology};

const SOON: Duration = Duration::from_secs(30);
const PACE: Duration = Duration::from_millis(100);
const CONNECTIONS: usize = 90;

/// A stage whose service has this, and connections that talk.
fn set(seed: u64, lines: &str) -> Result<(Stage, Vec<Connection>)> {
    let topology = Topology {
        client_addresses: CLIENTS,
        ..Topology::new(Place::Farm)
    };
    let stage = Stage::set(topology, seed, |config| {
        config.lines = lines.to_owned();
    })?;
    let plan = stage.plan().talking(PACE);
    let connections = stage.clients.open(CONNECTIONS, plan, |_| {})?;
    Ok((stage, connections))
}

fn repeats(status: &Status, name: &str) -> Option<Repeats> {
    status.backend(name)?.balance.repeats
}

/// For how many more seconds a backend is ejected.
fn ejected_for(status: &Status, name: &str) -> Option<u64> {
    let ejected = status.backend(name)?.balance.ejected?;
    Some(ejected.left_s)
}

#[test]
fn a_backend_that_loses_packets_is_ejected_and_cuts_nobody() -> Result<()> {
    let (stage, connections) = set(61, LINES)?;
    let theirs = crowd::on(&connections, "b2").len();
    assert!(theirs > 10, "{theirs} of {CONNECTIONS} on b2");
    stage
        .tether
        .wait_status("all are measured", SOON, |status| {
            ["b1", "b2", "b3"]
                .iter()
                .all(|name| repeats(status, name).is_some_and(|repeats| repeats.data.samples >= 60))
        })?;

    sicken(&stage, "b2")?;
    let status = stage
        .tether
        .wait_status("b2 is ejected", 3 * SOON, |status| {
            status.serving("b2") == "existing-only"
                // For longer than all that follows takes.
                && ejected_for(status, "b2").is_some_and(|left_s| left_s > 1_800)
        })?;
    // The checks see nothing of it.
    assert_eq!(status.health("b2"), "up");
    assert_eq!(status.share("b2").0, 0);
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    let spread = crowd::spread(&newcomers);
    assert_eq!(spread.get("b2"), None, "{spread:?}");
    assert_eq!(spread.values().sum::<usize>(), 60);
    let listed = stage.tether.succeed(&["backends"])?;
    assert!(listed.contains("ejected for another"), "{listed}");

    // What it has stays, and goes on as well as it can.
    crowd::wait_for_echoes(&connections, 5, 2 * SOON, |_| {})?;
    assert_eq!(crowd::on(&connections, "b2").len(), theirs);
    assert_eq!(crowd::breaks(&connections), [""; 0]);

    cure(&stage, "b2")?;
    forgive(&stage)?;
    stage.tether.wait_status("b2 is back", 4 * SOON, |status| {
        status.serving("b2") == "new" && ejected_for(status, "b2").is_none()
    })?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn who_only_wants_to_know_has_nobody_ejected() -> Result<()> {
    let (stage, connections) = set(
        62,
        "outlier = { window = \"6s\", least = 60, floor = 4, at_most = 0 }\n",
    )?;
    sicken(&stage, "b2")?;
    let status = stage
        .tether
        .wait_status("b2's share shows", 3 * SOON, |status| {
            let shares = ["b1", "b2", "b3"].map(|name| repeats(status, name));
            let [Some(b1), Some(b2), Some(b3)] = shares else {
                return false;
            };
            let is_enough = [b1, b2, b3].iter().all(|one| one.data.samples >= 100);
            // A step later it would have been ejected.
            is_enough
                && b2.data.per_mille >= 50
                && b2.data.per_mille >= 3 * b1.data.per_mille
                && b2.data.per_mille >= 3 * b3.data.per_mille
        })?;
    let b2 = repeats(&status, "b2").context("b2 is measured")?;
    assert!(b2.data.again > 0 && b2.data.again < b2.data.samples);
    for name in ["b1", "b2", "b3"] {
        assert_eq!(status.serving(name), "new");
        assert_eq!(ejected_for(&status, name), None);
    }
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    assert!(!crowd::on(&newcomers, "b2").is_empty());

    // Without the table nothing is counted any more.
    let mut config = stage.config.clone();
    config.lines.clear();
    stage.tether.reload(&config.text())?;
    stage
        .tether
        .wait_status("nobody is measured", SOON, |status| {
            ["b1", "b2", "b3"]
                .iter()
                .all(|name| repeats(status, name).is_none())
        })?;
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}
