//! Load balancers that share a VIP and a seed: whichever of them a router sends a flow by, it stays at its backend.

use std::time::Duration;

use anyhow::Result;
use lab::address::Family;
use lab::fleet::{Second, power};
use lab::peer::client::Connection;
use lab::peer::crowd::{self, assert_talking};
use lab::stage::{self, Stage};
use lab::tether::Tether;
use lab::topology::{Place, Topology};

const CONNECTIONS: usize = 120;
const PACE: Duration = Duration::from_millis(250);
const SOON: Duration = Duration::from_secs(15);
/// TCP sends again ever more rarely, the longer nothing comes through.
const AFTER_AN_OUTAGE: Duration = Duration::from_secs(60);

/// What the daemon knows of connections that come by it.
fn flows(tether: &Tether) -> Result<usize> {
    Ok(tether.flows(&[])?.len())
}

fn outlive_a_balancer(family: Family, seed: u64) -> Result<()> {
    let lab = Topology::new(Place::Farm).in_family(family).build()?;
    let second = Second::join(&lab)?;
    let mut stage = Stage::on(lab, seed, |config| {
        config.top = "fleet_seed = \"of two load balancers\"\n".to_owned();
    })?;
    let mut other = Tether::start(&second.host, &stage.config.text())?;
    stage::wait_serving(&mut other, &stage.config)?;

    second.spread()?;
    let mut plan = stage.plan().talking(PACE);
    plan.patience = AFTER_AN_OUTAGE;
    let connections = stage.clients.open(CONNECTIONS, plan, |_| {})?;
    assert_talking(&connections)?;
    let backends = || -> Vec<_> { connections.iter().map(Connection::backend).collect() };
    let at_first = backends();
    let shares = [flows(&stage.tether)?, flows(&other)?];
    assert!(
        shares[0] + shares[1] == CONNECTIONS && shares.iter().all(|share| *share > 0),
        "{shares:?}"
    );
    assert_eq!(other.status()?.packets("adopted"), 0);

    // The first goes dark, and with its power goes all that it knew.
    power(&stage.lab, false)?;
    stage.tether.kill()?;
    stage.tether.succeed(&["cleanup"])?;
    second.take_over()?;
    crowd::wait_for_echoes(&connections, 3, AFTER_AN_OUTAGE, |_| {})?;
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    let status = other.wait_counted(&connections, SOON)?;
    assert_eq!(status.packets("adopted"), shares[0] as u64);

    // It comes back and is sent what it had, of which it knows nothing.
    power(&stage.lab, true)?;
    stage.tether.restart()?;
    stage.wait_serving()?;
    second.spread()?;
    assert_talking(&connections)?;
    stage
        .tether
        .wait_status("it has what it had", SOON, |status| {
            status.packets("adopted") == shares[0] as u64
        })?;
    assert_eq!(backends(), at_first);
    stage.close();
    Ok(())
}

#[test]
fn connections_outlive_a_balancer_and_its_return() -> Result<()> {
    outlive_a_balancer(Family::V4, 71)
}

#[test]
fn connections_outlive_a_balancer_and_its_return_in_ipv6() -> Result<()> {
    outlive_a_balancer(Family::V6, 72)
}
