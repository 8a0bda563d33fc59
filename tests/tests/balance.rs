//! New flows go where the policy of balance says, with real connections.

use std::time::Duration;

use anyhow::Result;
use lab::config::SERVICE;
use lab::peer::crowd;
use lab::stage::Stage;
use lab::topology::{Place, Topology};

const SOON: Duration = Duration::from_secs(30);
const PACE: Duration = Duration::from_millis(500);

#[test]
fn a_backend_that_comes_up_gets_its_share_in_steps() -> Result<()> {
    // Nobody starts slowly where all start together; so the others are there before.
    let stage = Stage::set(Topology::new(Place::Farm), 31, |_| {})?;
    let mut config = stage.config.clone();
    config.lines = "slow_start = \"4m\"\n".to_owned();
    stage.tether.reload(&config.text())?;
    let b1 = format!("{SERVICE}/b1");
    stage.tether.succeed(&["drain", &b1])?;
    stage.tether.wait_status("b1 drains", SOON, |status| {
        status.serving("b1") == "existing-only"
    })?;
    stage.tether.succeed(&["undrain", &b1])?;
    // Half a minute is a step: in the second it has a tenth at most.
    let status = stage
        .tether
        .wait_status("b1 starts", SOON, |status| status.serving("b1") == "new")?;
    let (share, starting) = status.share("b1");
    assert!(starting && (1..=100).contains(&share), "{share}");
    let newcomers = stage.clients.open(240, stage.plan(), |_| {})?;
    let few = crowd::on(&newcomers, "b1").len();
    assert!(few < 40, "{few} of 240 on b1");

    // A shorter one would be over by now.
    config.lines = "slow_start = \"1s\"\n".to_owned();
    stage.tether.reload(&config.text())?;
    stage
        .tether
        .wait_status("b1 has its share", SOON, |status| {
            status.share("b1") == (333, false)
        })?;
    let newcomers = stage.clients.open(240, stage.plan(), |_| {})?;
    let many = crowd::on(&newcomers, "b1").len();
    assert!(many > 50, "{many} of 240 on b1");
    stage.close();
    Ok(())
}

#[test]
fn connections_even_out_while_new_ones_come() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 32, |config| {
        config.lines = "balance = \"least-connections\"\n".to_owned();
    })?;
    // As after a deployment: b1 was away, and has nothing.
    let b1 = format!("{SERVICE}/b1");
    stage.tether.succeed(&["drain", &b1])?;
    stage.tether.wait_status("b1 drains", SOON, |status| {
        status.serving("b1") == "existing-only"
    })?;
    let old = stage
        .clients
        .open(600, stage.plan().talking(PACE), |_| {})?;
    stage
        .tether
        .wait_status("they are counted", SOON, |status| {
            status
                .backend("b2")
                .is_some_and(|b| b.flows.young + b.flows.pin > 250)
        })?;
    stage.tether.succeed(&["undrain", &b1])?;
    stage
        .tether
        .wait_status("b1 gets more than a third", 3 * SOON, |status| {
            status.share("b1").0 >= 480
        })?;
    let new = stage.clients.open(600, stage.plan(), |_| {})?;
    // By weights alone it would be 200, 500 and 500: a quarter more than the mean.
    let of = |name| crowd::on(&old, name).len() + crowd::on(&new, name).len();
    let counts = ["b1", "b2", "b3"].map(of);
    assert_eq!(counts.iter().sum::<usize>(), 1_200);
    assert!(counts.iter().all(|&count| count <= 480), "{counts:?}");
    // No table has cut or moved what was there.
    crowd::wait_for_echoes(&old, 3, SOON, |_| {})?;
    assert_eq!(crowd::breaks(&old), [""; 0]);
    assert_eq!(crowd::on(&old, "b1").len(), 0);
    stage.close();
    Ok(())
}
