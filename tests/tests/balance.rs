//! New flows go where the policy of balance says, with real connections.

use std::time::Duration;

use anyhow::Result;
use lab::config::SERVICE;
use lab::peer::client::{Close, Connection};
use lab::peer::crowd;
use lab::stage::Stage;
use lab::status::Status;
use lab::topology::{Place, Topology};

const SOON: Duration = Duration::from_secs(30);
const PACE: Duration = Duration::from_millis(500);

#[test]
fn a_backend_that_comes_up_gets_its_share_in_steps() -> Result<()> {
    // Nobody starts slowly where all start together; so the others are there before.
    let stage = Stage::set(Topology::new(Place::Farm), 31, |_| {})?;
    let mut config = stage.config.clone();
    config.lines = "slow_start = \"24h\"\n".to_owned();
    stage.tether.reload(&config.text())?;
    let b1 = format!("{SERVICE}/b1");
    stage.tether.succeed(&["drain", &b1])?;
    stage.tether.wait_status("b1 drains", SOON, |status| {
        status.serving("b1") == "existing-only"
    })?;
    stage.tether.succeed(&["undrain", &b1])?;
    // Three hours are a step: in the second it has a tenth at most, should the first be over already.
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
            status.backend("b2").is_some_and(|b| b.flows.live() > 250)
        })?;
    stage.tether.succeed(&["undrain", &b1])?;
    stage
        .tether
        // With the third move of its weight, which is the last. After the second, chance alone would now and then give another too many.
        .wait_status("b1 gets more than half", 4 * SOON, |status| {
            status.share("b1").0 >= 520
        })?;
    let new = stage.clients.open(600, stage.plan(), |_| {})?;
    // By weights alone it would be 200, 500 and 500, a quarter more than the mean. It comes to about 320, 440 and 440.
    let of = |name| crowd::on(&old, name).len() + crowd::on(&new, name).len();
    let counts = ["b1", "b2", "b3"].map(of);
    assert_eq!(counts.iter().sum::<usize>(), 1_200);
    assert!(counts.iter().all(|&count| count <= 480), "{counts:?}");
    // No table has cut or moved what was there.
    crowd::assert_talking(&old)?;
    assert_eq!(crowd::on(&old, "b1").len(), 0);
    stage.close();
    Ok(())
}

#[test]
fn a_full_backend_takes_no_new_connections_until_it_has_fewer() -> Result<()> {
    const LIMIT: usize = 20;
    // What one pass over the flow table lets through: about 8 on each backend.
    const WAVE: usize = 24;
    let stage = Stage::set(Topology::new(Place::Farm), 33, |config| {
        config.backends[0].lines = format!("max_connections = {LIMIT}\n");
    })?;
    let on_b1 = |all: &[Connection]| crowd::on(all, "b1").len();
    let mut connections: Vec<Connection> = vec![];
    while on_b1(&connections) < LIMIT {
        assert!(connections.len() < 10 * WAVE, "b1 gets too few");
        connections.extend(stage.clients.open(WAVE, stage.plan(), |_| {})?);
        let theirs = on_b1(&connections) as u64;
        stage
            .tether
            .wait_status("the wave is counted", SOON, |status| {
                status
                    .backend("b1")
                    .is_some_and(|b1| b1.flows.live() == theirs)
            })?;
    }
    let status = stage.tether.wait_status("b1 is full", SOON, |status| {
        status.serving("b1") == "existing-only"
    })?;
    assert_eq!(status.health("b1"), "up");
    assert!(status.backend("b1").is_some_and(|b1| b1.balance.full));
    let most = on_b1(&connections);
    assert!((LIMIT..LIMIT + WAVE).contains(&most), "{most} on b1");
    connections.extend(stage.clients.open(5 * WAVE, stage.plan(), |_| {})?);
    assert_eq!(on_b1(&connections), most);
    assert_eq!(crowd::echo_all(&connections), [""; 0]);

    let held = crowd::on(&connections, "b1");
    let (stays, goes) = held.split_at(LIMIT / 2);
    for connection in goes {
        connection.close(Close::Abort)?;
    }
    stage
        .tether
        .wait_status("b1 takes new ones", SOON, |status| {
            status.serving("b1") == "new"
        })?;
    let newcomers = stage.clients.open(WAVE, stage.plan(), |_| {})?;
    assert!(on_b1(&newcomers) > 0);
    assert_eq!(crowd::echo_all(stays.iter().copied()), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn a_backup_takes_new_connections_while_the_primaries_are_dark_and_keeps_them() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 34, |_| {})?;
    let mut config = stage.config.clone();
    config.backends[2].lines = "backup = true\n".to_owned();
    stage.tether.reload(&config.text())?;
    let is_idle = |status: &Status| {
        let serving = ["b1", "b2", "b3"].map(|name| status.serving(name));
        serving == ["new", "new", "existing-only"] && !status.services[0].balance.backups
    };
    stage.tether.wait_status("b3 is idle", SOON, is_idle)?;
    let silent = stage.clients.open(60, stage.plan(), |_| {})?;
    assert_eq!(crowd::on(&silent, "b3").len(), 0);

    for primary in 0..2 {
        stage.lab.darken(primary)?;
    }
    let status = stage.tether.wait_status("b3 stands in", SOON, |status| {
        let dark = |name| status.health(name) == "down";
        dark("b1") && dark("b2") && status.serving("b3") == "new"
    })?;
    let service = &status.services[0];
    assert!(service.balance.backups && !service.fail_open);
    let with_backup = stage.clients.open(60, stage.plan().talking(PACE), |_| {})?;
    assert_eq!(crowd::on(&with_backup, "b3").len(), 60);

    for primary in 0..2 {
        stage.lab.brighten(primary)?;
    }
    stage
        .tether
        .wait_status("b3 is idle again", SOON, is_idle)?;
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    assert_eq!(crowd::on(&newcomers, "b3").len(), 0);
    crowd::assert_talking(&with_backup)?;
    assert_eq!(crowd::on(&with_backup, "b3").len(), 60);
    // Who was silent in the dark has not noticed.
    assert_eq!(crowd::echo_all(&silent), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn the_balancers_zone_comes_first_and_what_it_cannot_take_spills_over() -> Result<()> {
    const LOCAL: [&str; 4] = ["b1", "b2", "b3", "b4"];
    const NUMBER: usize = 120;
    let topology = Topology {
        backends: 6,
        ..Topology::new(Place::Farm)
    };
    let stage = Stage::set(topology, 35, |_| {})?;
    let mut config = stage.config.clone();
    config.top = "zone = \"here\"\n".to_owned();
    for (number, backend) in config.backends.iter_mut().enumerate() {
        let zone = if number < LOCAL.len() {
            "here"
        } else {
            "there"
        };
        backend.lines = format!("zone = {zone:?}\n");
    }
    stage.tether.reload(&config.text())?;
    let mut all = vec![];
    // As many local ones drain; then so many of a thousand new connections are for the local zone: all while 70% of it can take
    // them, and then as much of that as can.
    for (drains, part) in [(0, 1_000), (1, 1_000), (2, 714), (3, 357), (4, 0)] {
        if let Some(last) = LOCAL[..drains].last() {
            stage
                .tether
                .succeed(&["drain", &format!("{SERVICE}/{last}")])?;
        }
        stage
            .tether
            .wait_status(&format!("{drains} drain"), SOON, |status| {
                let local: u16 = LOCAL.iter().map(|name| status.share(name).0).sum();
                let drained = LOCAL[..drains].iter().all(|name| status.share(name).0 == 0);
                drained
                    && local.abs_diff(part) <= 3
                    && status.services[0].balance.spills == (part < 1_000)
            })?;
        let newcomers = stage.clients.open(NUMBER, stage.plan(), |_| {})?;
        let here: usize = LOCAL
            .iter()
            .map(|name| crowd::on(&newcomers, name).len())
            .sum();
        match part {
            1_000 => assert_eq!(here, NUMBER),
            0 => assert_eq!(here, 0),
            // Five times the deviation of so many tosses.
            _ => assert!(
                here.abs_diff(usize::from(part) * NUMBER / 1_000) <= 26,
                "{here} of {NUMBER}, {part} of 1,000"
            ),
        }
        all.extend(newcomers);
    }
    let before = crowd::spread(&all);
    for name in LOCAL {
        stage
            .tether
            .succeed(&["undrain", &format!("{SERVICE}/{name}")])?;
    }
    stage
        .tether
        .wait_status("nothing spills over", SOON, |status| {
            !status.services[0].balance.spills
                && status.share("b5").0 == 0
                && status.share("b6").0 == 0
        })?;
    assert_eq!(crowd::echo_all(&all), [""; 0]);
    assert_eq!(crowd::spread(&all), before, "who is there stays there");
    stage.close();
    Ok(())
}
