//! Waiting for the end of a drain, and taking a whole host out of service.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::address::Family;
use lab::config::SERVICE;
use lab::peer::client::Close;
use lab::peer::crowd::{self, assert_talking};
use lab::stage::Stage;
use lab::topology::{Place, Topology};

const SOON: Duration = Duration::from_secs(15);
const PACE: Duration = Duration::from_millis(250);

#[test]
fn it_counts_down_and_returns_when_no_flow_is_left() -> Result<()> {
    counts_down(Family::V4)
}

#[test]
fn it_counts_down_and_returns_when_no_flow_is_left_in_ipv6() -> Result<()> {
    counts_down(Family::V6)
}

/// Seconds that an age says, as "1 min 5 s" does.
fn seconds(age: &str) -> Result<u64> {
    let (minutes, rest) = age.split_once(" min ").unwrap_or(("0", age));
    let rest = rest.strip_suffix(" s").with_context(|| age.to_owned())?;
    Ok(60 * minutes.parse::<u64>()? + rest.parse::<u64>()?)
}

/// How old a line says that the oldest flow is, and since when the most silent one says nothing, in seconds.
fn ages(line: &str) -> Result<[u64; 2]> {
    let (_, ages) = line.split_once("; the oldest is ").context("an age")?;
    let (oldest, silent) = ages
        .split_once(" old, the most silent says nothing since ")
        .context("a silence")?;
    Ok([seconds(oldest)?, seconds(silent)?])
}

fn counts_down(family: Family) -> Result<()> {
    let topology = Topology::new(Place::Farm).in_family(family);
    let mut stage = Stage::set(topology, 31, |_| {})?;
    let begun = Instant::now();
    let connections = stage.clients.open(60, stage.plan(), |_| {})?;
    let opened = Instant::now();
    let theirs = crowd::on(&connections, "b1");
    let held = theirs.len();
    assert!(held > 4, "{held} on b1");

    let backend = format!("{SERVICE}/b1");
    let mut waiting = stage.tether.begin(&["drain", &backend, "--wait"])?;
    let left = |number: usize| format!("{backend}: {number} active and 0 idle flows left");
    waiting.wait_to_say(&left(held), SOON)?;
    theirs[0].close(Close::Abort)?;
    waiting.wait_to_say(&left(held - 1), SOON)?;

    // A restart of the daemon is no end, and neither is a list that it has not read yet.
    stage.tether.kill()?;
    theirs[1].close(Close::Abort)?;
    stage.tether.restart()?;
    waiting.wait_to_say(&left(held - 2), SOON)?;
    // As old as they are, to a tick of the table's clock, which is more than four seconds.
    let [oldest, silent] = ages(waiting.said().last().context("a line")?)?;
    let (least, most) = (opened.elapsed().as_secs(), begun.elapsed().as_secs());
    assert!(
        oldest + 7 >= least && oldest <= most + 5 && silent <= oldest,
        "{oldest} s old and silent for {silent} s after {least} to {most} s"
    );

    for connection in &theirs[2..] {
        connection.close(Close::Abort)?;
    }
    let (status, said) = waiting.wait_to_end(SOON)?;
    assert!(status.success(), "{said:?}");
    assert_eq!(said.last(), Some(&format!("{backend}: no flow left")));
    stage.close();
    Ok(())
}

#[test]
fn one_that_has_said_goodbye_is_waited_for_while_it_may_be_listening() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Segment), 32, |_| {})?;
    let connections = stage.clients.open(30, stage.plan(), |_| {})?;
    for connection in crowd::on(&connections, "b2") {
        connection.close(Close::Orderly)?;
    }
    let backend = format!("{SERVICE}/b2");
    let mut waiting = stage.tether.begin(&["drain", &backend, "--wait"])?;
    waiting.wait_to_say("active and 0 idle flows left", SOON)?;
    // A minute after the last FIN at least, and a tick of the table's clock or two.
    let (status, said) = waiting.wait_to_end(Duration::from_secs(90))?;
    assert!(status.success(), "{said:?}");
    stage.close();
    Ok(())
}

#[test]
fn who_does_not_wait_for_the_idle_leaves_them_alone() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Segment), 33, |_| {})?;
    let talking = stage.clients.open(30, stage.plan().talking(PACE), |_| {})?;
    let silent = stage.clients.open(30, stage.plan(), |_| {})?;
    let [talkers, listeners] = [&talking, &silent].map(|all| crowd::on(all, "b1").len());
    assert!(talkers > 1 && listeners > 1, "{talkers}, {listeners}");
    let backend = format!("{SERVICE}/b1");
    let arguments = ["drain", &backend, "--wait", "--idle-after", "10s"];
    let mut waiting = stage.tether.begin(&arguments)?;
    // Whoever is silent is known to be so when he might have become a pin, and was not seen for 10 s since.
    let line = format!("{talkers} active and {listeners} idle flows left");
    waiting.wait_to_say(&line, Duration::from_secs(80))?;
    assert!(waiting.goes_on()?);
    for connection in crowd::on(&talking, "b1") {
        connection.close(Close::Abort)?;
    }
    let (status, said) = waiting.wait_to_end(SOON)?;
    assert!(status.success(), "{said:?}");
    let line = format!("{backend}: 0 active and {listeners} idle flows left");
    assert!(
        said.last().is_some_and(|last| last.starts_with(&line)),
        "{said:?}"
    );
    // They have not ended, and can still talk.
    assert_eq!(crowd::echo_all(&silent), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn a_drain_that_is_ended_meanwhile_is_a_failure() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Segment), 34, |_| {})?;
    let connections = stage.clients.open(30, stage.plan().talking(PACE), |_| {})?;
    let backend = format!("{SERVICE}/b1");
    let mut waiting = stage.tether.begin(&["drain", &backend, "--wait"])?;
    waiting.wait_to_say("flows left", SOON)?;
    stage.tether.succeed(&["undrain", &backend])?;
    let (status, said) = waiting.wait_to_end(SOON)?;
    assert_eq!(status.code(), Some(1), "{said:?}");
    let expected = format!("tether: the drain of {backend} was ended meanwhile");
    assert!(said.contains(&expected), "{said:?}");
    assert_talking(&connections)?;
    stage.close();
    Ok(())
}

#[test]
fn a_host_is_evacuated_for_maintenance_and_comes_back() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 35, |config| {
        config.lines = "close_over = \"0s\"\n".to_owned();
    })?;
    let connections = stage.clients.open(60, stage.plan().talking(PACE), |_| {})?;
    stage.tether.succeed(&["drain", &format!("{SERVICE}/b3")])?;
    stage.tether.succeed(&["drain", "--all"])?;
    let names = ["b1", "b2", "b3"];
    stage
        .tether
        .wait_status("nobody takes new flows", SOON, |status| {
            status.evacuated
                && names
                    .iter()
                    .all(|name| status.serving(name) == "existing-only")
        })?;
    assert_talking(&connections)?;
    // Nobody answers a new one; it is dropped, so that its client tries again.
    let before = stage.tether.status()?.packets("no_backend");
    let newcomer = std::thread::scope(|scope| {
        let opening = scope.spawn(|| stage.clients.open_one(stage.plan().talking(PACE)));
        let refused = stage
            .tether
            .wait_status("its SYN is dropped", SOON, |status| {
                status.packets("no_backend") > before
            });
        // Those that were drained by their own names stay so.
        let undrained = stage.tether.succeed(&["undrain", "--all"]);
        let opened = opening.join().expect("clients do not panic");
        (refused.map(drop)).and(undrained.map(drop)).and(opened)
    })?;
    assert!(newcomer.backend().is_some_and(|backend| backend != "b3"));
    let status = stage
        .tether
        .wait_status("two serve again", SOON, |status| {
            !status.evacuated
                && names.map(|name| status.serving(name)) == ["new", "new", "existing-only"]
        })?;
    assert_eq!(
        status.backend("b3").map(|b3| b3.admin.as_str()),
        Some("draining")
    );
    assert_talking(&connections)?;

    // With a deadline, and until nothing is left.
    let arguments = ["drain", "--all", "--deadline", "0s", "--wait"];
    let mut waiting = stage.tether.begin(&arguments)?;
    let (status, said) = waiting.wait_to_end(SOON * 2)?;
    assert!(status.success(), "{said:?}");
    assert_eq!(
        said.last().map(String::as_str),
        Some("all backends: no flow left")
    );
    stage.close();
    Ok(())
}
