//! A client's port that is used again is a new connection, whatever became of the old one.

use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::address::Family;
use lab::config::SERVICE;
use lab::peer::client::{Clients, Close};
use lab::peer::raw;
use lab::stage::Stage;
use lab::topology::{Place, Topology};

const SOON: Duration = Duration::from_secs(10);
const WAYS: [Close; 3] = [Close::Orderly, Close::Abort, Close::Vanish];
/// Whoever vanishes leaves an entry behind that nothing ends.
const AGAIN: [Close; 6] = [
    Close::Orderly,
    Close::Abort,
    Close::Vanish,
    Close::Vanish,
    Close::Vanish,
    Close::Orderly,
];
/// None that the kernel would give another client's connection.
const FIRST_PORT: u16 = 10_000;

/// The same port again and again, after each way of closing, at backends of a service that stays as it is.
fn connects_again(place: Place, family: Family) -> Result<()> {
    let topology = Topology::new(place).in_family(family);
    let stage = Stage::set(topology, 61, |_| {})?;
    let clients = Clients::start(stage.lab.client(), &stage.lab.sources()[..1], 61)?;
    let plan = stage.plan().from_port(FIRST_PORT);
    for how in AGAIN {
        let connection = clients
            .open_one(plan)
            .with_context(|| format!("before {how:?}"))?;
        connection
            .echo()
            .with_context(|| format!("before {how:?}"))?;
        connection.close(how)?;
        raw::wait_free(stage.lab.client(), FIRST_PORT, SOON)?;
    }
    stage.close();
    Ok(())
}

#[test]
fn the_same_port_connects_again() -> Result<()> {
    connects_again(Place::Farm, Family::V4)
}

#[test]
fn the_same_port_connects_again_in_ipv6() -> Result<()> {
    connects_again(Place::Farm, Family::V6)
}

#[test]
fn the_same_ipv4_port_connects_again_to_ipv6_backends() -> Result<()> {
    connects_again(Place::Farm, Family::V4InV6)
}

#[test]
fn the_same_port_connects_again_by_l2() -> Result<()> {
    connects_again(Place::Segment, Family::V4)
}

#[test]
fn the_same_port_connects_again_by_l2_in_ipv6() -> Result<()> {
    connects_again(Place::Segment, Family::V6)
}

#[test]
fn the_same_port_connects_again_by_nat() -> Result<()> {
    connects_again(Place::Hidden, Family::V4)
}

#[test]
fn the_same_port_connects_again_by_nat_in_ipv6() -> Result<()> {
    connects_again(Place::Hidden, Family::V6)
}

#[test]
fn the_same_port_connects_again_by_dnat() -> Result<()> {
    connects_again(Place::Behind, Family::V4)
}

#[test]
fn the_same_port_connects_again_by_dnat_in_ipv6() -> Result<()> {
    connects_again(Place::Behind, Family::V6)
}

/// Between two uses of a port its backend has begun to drain: the second connection is a new flow, and goes elsewhere.
fn moves_on(place: Place, family: Family) -> Result<()> {
    let stage = Stage::set(Topology::new(place).in_family(family), 62, |_| {})?;
    let clients = Clients::start(stage.lab.client(), &stage.lab.sources()[..1], 62)?;
    for (how, port) in WAYS.into_iter().zip(FIRST_PORT..) {
        let plan = stage.plan().from_port(port);
        let first = clients.open_one(plan)?;
        first.echo()?;
        let home = first.backend().context("the first connection is open")?;
        // Another connection to the same backend, which stays.
        let stays = clients.open(60, stage.plan(), |_| {})?;
        let stays = stays
            .into_iter()
            .find(|c| c.backend().as_deref() == Some(&home));
        let stays = stays.context("one of 60 is at the same backend")?;

        first.close(how)?;
        stage
            .tether
            .succeed(&["drain", &format!("{SERVICE}/{home}")])?;
        stage
            .tether
            .wait_status("it drains", SOON, |s| s.serving(&home) == "existing-only")?;
        let second = clients
            .open_one(plan)
            .with_context(|| format!("after {how:?}"))?;
        second.echo().with_context(|| format!("after {how:?}"))?;
        assert_ne!(
            second.backend().as_deref(),
            Some(home.as_str()),
            "after {how:?}"
        );
        stays.echo()?;

        stage
            .tether
            .succeed(&["undrain", &format!("{SERVICE}/{home}")])?;
        stage
            .tether
            .wait_status("it serves again", SOON, |s| s.serving(&home) == "new")?;
        second
            .echo()
            .with_context(|| format!("after {how:?} and undrain"))?;
    }
    stage.close();
    Ok(())
}

#[test]
fn a_reused_port_leaves_a_draining_backend_ipip() -> Result<()> {
    moves_on(Place::Farm, Family::V4)
}

#[test]
fn a_reused_port_leaves_a_draining_backend_ipip_in_ipv6() -> Result<()> {
    moves_on(Place::Farm, Family::V6)
}

#[test]
fn a_reused_port_leaves_a_draining_backend_l2() -> Result<()> {
    moves_on(Place::Segment, Family::V4)
}

#[test]
fn a_reused_port_leaves_a_draining_backend_l2_in_ipv6() -> Result<()> {
    moves_on(Place::Segment, Family::V6)
}

#[test]
fn a_reused_port_leaves_a_draining_backend_nat() -> Result<()> {
    moves_on(Place::Hidden, Family::V4)
}

#[test]
fn a_reused_port_leaves_a_draining_backend_nat_in_ipv6() -> Result<()> {
    moves_on(Place::Hidden, Family::V6)
}

#[test]
fn a_reused_port_leaves_a_draining_backend_dnat() -> Result<()> {
    moves_on(Place::Behind, Family::V4)
}

#[test]
fn a_reused_port_leaves_a_draining_backend_dnat_in_ipv6() -> Result<()> {
    moves_on(Place::Behind, Family::V6)
}
