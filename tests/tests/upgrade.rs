//! Daemons of another version of the maps' layouts, newer and older: each takes over from the other under load, and no connection notices.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use lab::address::Family;
use lab::namespace::Namespace;
use lab::peer::client::{Clients, Connection, Plan};
use lab::peer::crowd::{self, assert_talking};
use lab::stage::Stage;
use lab::tether::{self, CONFIG_PATH, Tether};
use lab::topology::{Place, Topology};
use lb_common::maps::ABI_VERSION;

const SOON: Duration = Duration::from_secs(30);
const PACE: Duration = Duration::from_millis(250);
/// Between two clients that come while a program is taken over from.
const PAUSE: Duration = Duration::from_millis(25);

/// `tether upgrade-check` of the next version.
fn check_with_next(host: &Namespace, more: &[&str]) -> Result<Output> {
    let mut command = Command::new(tether::program_of_next_version()?);
    command.args(["upgrade-check"]).args(more);
    host.output(command)
}

fn said(output: &Output) -> String {
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    words(&output.stdout) + &words(&output.stderr)
}

/// Every flow that is listed: its client, with its backend and the second in which it was first seen.
fn listed(stage: &Stage) -> Result<BTreeMap<String, (String, u64)>> {
    let flows = stage.tether.flows(&[])?;
    flows
        .iter()
        .map(|flow| {
            let text = |key: &str| Some(flow[key].as_str()?.to_owned());
            let facts = text("backend").zip(flow["first_seen"].as_u64());
            Ok((
                text("client").context("a client")?,
                facts.with_context(|| format!("no backend or first sight: {flow}"))?,
            ))
        })
        .collect()
}

/// The same flows are at the same backends, first seen when they were: to a tick, in which that is kept.
fn assert_same(before: &BTreeMap<String, (String, u64)>, after: &BTreeMap<String, (String, u64)>) {
    for (client, (backend, first_seen)) in before {
        let Some((now_at, now_seen)) = after.get(client) else {
            panic!("the flow of {client} is gone");
        };
        assert_eq!(backend, now_at, "{client}");
        assert!(
            first_seen.abs_diff(*now_seen) <= 5,
            "{client}: {first_seen} {now_seen}"
        );
    }
}

#[test]
fn connections_outlive_upgrade_and_downgrade_ipip() -> Result<()> {
    outlive(Place::Farm, Family::V4)
}

#[test]
fn connections_outlive_upgrade_and_downgrade_l2_ipv6() -> Result<()> {
    outlive(Place::Segment, Family::V6)
}

#[test]
fn connections_outlive_upgrade_and_downgrade_nat() -> Result<()> {
    outlive(Place::Hidden, Family::V4)
}

#[test]
fn connections_outlive_upgrade_and_downgrade_nat_ipv6() -> Result<()> {
    outlive(Place::Hidden, Family::V6)
}

fn outlive(place: Place, family: Family) -> Result<()> {
    let mut stage = Stage::set(Topology::new(place).in_family(family), 53, |_| {})?;
    let mut connections = stage
        .clients
        .open(300, stage.plan().talking(PACE), |_| {})?;
    // Half of them say nothing until the end.
    let mut silent = stage.clients.open(150, stage.plan(), |_| {})?;
    assert_talking(&connections)?;
    stage.tether.succeed(&["drain", "chat/b1"])?;
    let on_b1 = crowd::on(&connections, "b1").len();
    ensure!(on_b1 > 0, "b1 has connections");
    let mut came_in_all = 0;

    let versions = [
        (tether::program_of_next_version()?, ABI_VERSION + 1),
        (tether::program()?, ABI_VERSION),
        (tether::program_of_next_version()?, ABI_VERSION + 1),
    ];
    for (round, (program, version)) in versions.into_iter().enumerate() {
        stage
            .tether
            .wait_status("b1 drains, all flows are counted", SOON, |status| {
                let flows: u64 = ["b1", "b2", "b3"]
                    .iter()
                    .filter_map(|name| status.backend(name))
                    .map(|backend| backend.flows.live())
                    .sum();
                status.serving("b1") == "existing-only"
                    && flows == (connections.len() + silent.len()) as u64
            })?;
        let (flows, before) = (listed(&stage)?, stage.tether.status()?);
        let came = take_over_while_clients_come(&mut stage, program, version)?;
        let came_now = came.len() as u64;
        came_in_all += came_now;
        assert_talking(&connections)?;
        assert_same(&flows, &listed(&stage)?);

        let status = stage
            .tether
            .wait_status("b1 drains still", SOON, |status| {
                status.serving("b1") == "existing-only"
                    && ["b2", "b3"]
                        .iter()
                        .all(|name| status.serving(name) == "new")
            })?;
        assert_eq!(status.packets("unknown_flow"), 0, "in round {round}");
        // Whoever comes while the tables are held is adopted, and nobody else.
        let adopted = status.packets("adopted");
        assert!(adopted <= came_in_all, "{adopted} in round {round}");
        // What was counted before goes on being counted.
        for reason in ["established", "opened"] {
            let (before, after) = (before.packets(reason), status.packets(reason));
            assert!(after >= before && before > 0, "{reason}: {before} {after}");
        }
        assert!(status.packets("opened") <= before.packets("opened") + came_now + 20);
        silent.extend(came);
        let newcomers = stage.clients.open(60, stage.plan().talking(PACE), |_| {})?;
        assert!(crowd::on(&newcomers, "b1").is_empty());
        connections.extend(newcomers);
        assert_talking(&connections)?;
    }
    assert_eq!(crowd::on(&connections, "b1").len(), on_b1);
    if place == Place::Hidden {
        let all = (connections.len() + silent.len()) as u32;
        stage
            .tether
            .wait_status("each flow has its SNAT port", SOON, |status| {
                let backends = status.services.iter().flat_map(|service| &service.backends);
                let ports = backends.flat_map(|backend| &backend.snat);
                ports.map(|snat| snat.ports).sum::<u32>() == all
            })?;
    }
    assert_eq!(crowd::echo_all(&silent), [""; 0]);
    assert_eq!(crowd::breaks(&silent), [""; 0]);
    stage.close();
    Ok(())
}

/// Whatever moment a migration is killed at, packets are forwarded, and the next start completes or undoes it.
#[test]
fn a_migration_that_is_killed_loses_no_flow() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Farm), 54, |_| {})?;
    let mut connections = stage
        .clients
        .open(200, stage.plan().talking(PACE), |_| {})?;
    assert_talking(&connections)?;
    let balancer = stage.lab.balancer().clone();
    let (own, next) = (tether::program()?, tether::program_of_next_version()?);
    for (step, is_in_force) in [
        ("Staged", false),
        ("Copied", false),
        ("Held", false),
        ("Exact", false),
        ("RepliesSwitched", false),
        ("SwitchedOne", true),
        ("Switched", true),
        ("Exchanged", true),
    ] {
        for continued in [&own, &next] {
            stage.tether.kill()?;
            let mut dying = Command::new(&next);
            dying.arg(CONFIG_PATH).env("TETHER_DIES_AT", step);
            let died = balancer.output(dying)?;
            ensure!(died.status.code().is_none(), "{step}: {}", said(&died));
            assert_talking(&connections)?;

            let is_half_done = is_in_force && step != "Exchanged";
            if is_half_done && continued == &own {
                // It knows neither the program nor the maps that are in force.
                let check = balancer.output(tether::command(&["upgrade-check"])?)?;
                assert_eq!(check.status.code(), Some(3), "{}", said(&check));
                assert!(
                    said(&check).contains("start that tether once"),
                    "{}",
                    said(&check)
                );
                let refused =
                    balancer.output(tether::command(&["run", "--config", CONFIG_PATH])?)?;
                assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
                assert!(
                    said(&refused).contains("start that tether once"),
                    "{}",
                    said(&refused)
                );
                assert_talking(&connections)?;
                stage.tether.become_program(next.clone());
                stage.tether.restart()?;
                stage.wait_serving()?;
                stage.tether.kill()?;
            }
            stage.tether.become_program(continued.clone());
            stage.tether.restart()?;
            stage.wait_serving()?;
            assert_talking(&connections)?;
            if continued == &next {
                stage.tether.kill()?;
                stage.tether.become_program(own.clone());
                stage.tether.restart()?;
                stage.wait_serving()?;
            }
            connections.extend(stage.clients.open(10, stage.plan().talking(PACE), |_| {})?);
            assert_talking(&connections)?;
            let status = stage.tether.status()?;
            assert_eq!(status.packets("unknown_flow"), 0, "after {step}");
        }
    }
    stage.close();
    Ok(())
}

/// Puts another program in the daemon's place, which has maps of `version`.
fn take_over(tether: &mut Tether, program: PathBuf, version: u32) -> Result<()> {
    tether.kill()?;
    tether.become_program(program);
    tether.restart()?;
    tether.wait_ready()?;
    let log = tether.log();
    ensure!(
        log.contains("flow tables migrated") && log.contains(&format!("\"to\":{version}")),
        "{log}"
    );
    Ok(())
}

/// The same while clients come, one after the other: each is served, and none by b1, which is drained. Gives them.
fn take_over_while_clients_come(
    stage: &mut Stage,
    program: PathBuf,
    version: u32,
) -> Result<Vec<Connection>> {
    let (plan, is_over) = (stage.plan(), AtomicBool::new(false));
    let (tether, clients) = (&mut stage.tether, &stage.clients);
    let came = std::thread::scope(|scope| {
        let coming = scope.spawn(|| come(clients, plan, &is_over));
        let taken = take_over(tether, program, version);
        is_over.store(true, Ordering::Release);
        let came = coming.join();
        let came = came.map_err(|_| anyhow!("the thread of those who come panicked"))??;
        taken.map(|()| came)
    })?;
    // What came while the tables were held is recorded with the next packet.
    assert_eq!(crowd::echo_all(&came), [""; 0]);
    assert!(!came.is_empty() && crowd::on(&came, "b1").is_empty());
    Ok(came)
}

/// Opens connections until it is over, each of which has an echo and stays.
fn come(clients: &Clients, plan: Plan, is_over: &AtomicBool) -> Result<Vec<Connection>> {
    let mut connections = vec![];
    while !is_over.load(Ordering::Acquire) {
        let connection = clients.open_one(plan)?;
        connection.echo()?;
        connections.push(connection);
        std::thread::sleep(PAUSE);
    }
    Ok(connections)
}

/// The flows of b1 are closed by a deadline, and clients of b2, which is dead, are told over a time: whoever takes over goes on with both where they are. b2 is
/// routed, and has not been up since: that its host answered echoes is remembered, or nobody would call it dead.
#[test]
fn what_is_closed_at_a_pace_goes_on_so_through_upgrade_and_downgrade() -> Result<()> {
    const DEADLINE: Duration = Duration::from_secs(1);
    const CLOSE_OVER: Duration = Duration::from_secs(30);
    let mut stage = Stage::set(Topology::new(Place::Farm), 57, |config| {
        config.lines =
            "drain_deadline = \"1s\"\nclose_over = \"30s\"\nreset_over = \"60s\"\n".into();
    })?;
    let mut plan = stage.plan();
    plan.patience = Duration::from_secs(90);
    plan.reconnect = true;
    let silent = stage.clients.open(150, plan, |_| {})?;
    let connections = stage.clients.open(240, plan.talking(PACE), |_| {})?;
    let (drained, others) = (crowd::on(&connections, "b1"), crowd::on(&connections, "b3"));
    let dead = crowd::on(&silent, "b2");
    ensure!(
        drained.len() > 40 && others.len() > 40 && dead.len() > 20,
        "{:?}",
        crowd::spread(&connections)
    );
    stage.lab.darken(1)?;
    stage.tether.wait_status("b2 serves none", SOON, |status| {
        status.serving("b2") == "none"
    })?;
    let begun = std::time::Instant::now();
    stage.tether.succeed(&["drain", "chat/b1"])?;
    let closed = |status: &lab::status::Status| {
        let drain = status.backend("b1").and_then(|b1| b1.drain.as_ref());
        drain.map_or(0.0, |drain| drain.closed)
    };
    let status = stage
        .tether
        .wait_status("b1's flows are closed", SOON, |status| closed(status) > 0.0)?;
    let mut was = closed(&status);
    for (round, (program, version)) in [
        (tether::program_of_next_version()?, ABI_VERSION + 1),
        (tether::program()?, ABI_VERSION),
    ]
    .into_iter()
    .enumerate()
    {
        take_over(&mut stage.tether, program, version)?;
        // Neither back nor ahead of what time has come to.
        let now = closed(&stage.tether.status()?);
        let since = begun.elapsed().saturating_sub(DEADLINE);
        let most = since.as_secs_f64() / CLOSE_OVER.as_secs_f64() + 0.02;
        ensure!(
            now >= was && now <= most,
            "{was} of b1 was closed, and {now} is by now; at most {most}"
        );
        was = now;
        // Of the dead one's clients who speak now some are told, and not all.
        let half = dead.len() / 2;
        let speaking = &dead[round * half..][..half];
        crowd::set_pace(speaking.iter().copied(), Some(PACE));
        let are_told = || {
            let told = speaking.iter().filter(|c| c.history().breaks().count() > 0);
            told.count()
        };
        let told = lab::wait::until("some are told", SOON, || {
            Some(are_told()).filter(|&told| told > 0)
        })?;
        ensure!(told < half, "all {half} are told at once");
    }
    lab::wait::until("b1's clients are elsewhere", 2 * CLOSE_OVER, || {
        let is_elsewhere =
            |c: &&lab::peer::client::Connection| c.backend().is_some_and(|b| b != "b1");
        drained.iter().all(is_elsewhere).then_some(())
    })?;
    let mut ends = vec![];
    for connection in &drained {
        let history = connection.history();
        let breaks: Vec<_> = history.breaks().collect();
        let [(life, lab::peer::client::Break::Reset)] = breaks[..] else {
            anyhow::bail!("not one reset: {breaks:?}");
        };
        let end = life.end.as_ref().context("it broke")?;
        ends.push(end.at.saturating_duration_since(begun));
    }
    ends.sort_unstable();
    let (first, last) = (ends[0], ends[ends.len() - 1]);
    ensure!(first >= DEADLINE, "the first after {first:?}");
    ensure!(
        last - first >= CLOSE_OVER / 2,
        "from {first:?} to {last:?}: not at a pace"
    );
    assert_eq!(crowd::breaks(others.iter().copied()), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn it_is_told_beforehand_whether_a_program_can_take_over() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Farm), 55, |_| {})?;
    let connections = stage.clients.open(40, stage.plan().talking(PACE), |_| {})?;
    assert_talking(&connections)?;
    let balancer = stage.lab.balancer().clone();
    // While the daemon runs, and without a word to it.
    let same = stage.tether.output(&["upgrade-check", "--json"])?;
    assert_eq!(same.status.code(), Some(0), "{}", said(&same));
    let same: serde_json::Value = serde_json::from_slice(&same.stdout)?;
    assert_eq!(
        (&same["verdict"], &same["flows"]),
        (&"same".into(), &40.into())
    );
    let other = check_with_next(&balancer, &["--json"])?;
    assert_eq!(other.status.code(), Some(0), "{}", said(&other));
    let other: serde_json::Value = serde_json::from_slice(&other.stdout)?;
    for (key, value) in [
        ("verdict", "migratable".into()),
        ("pinned_version", ABI_VERSION.into()),
        ("own_version", (ABI_VERSION + 1).into()),
        ("services", 1.into()),
        ("backends", 3.into()),
        ("flows", serde_json::Value::from(40)),
        ("dropped", serde_json::json!([])),
    ] {
        assert_eq!(other[key], value, "{key}: {other}");
    }
    let other = check_with_next(&balancer, &["--config", CONFIG_PATH])?;
    assert!(
        said(&other).contains("would take over what is in them"),
        "{}",
        said(&other)
    );
    let nothing = check_with_next(&balancer, &["--bpffs", "/sys/fs/bpf/elsewhere"])?;
    assert_eq!(nothing.status.code(), Some(0), "{}", said(&nothing));
    assert!(
        said(&nothing).contains("nothing is pinned"),
        "{}",
        said(&nothing)
    );
    let nowhere = check_with_next(&balancer, &["--bpffs", "/run/elsewhere"])?;
    assert_eq!(nowhere.status.code(), Some(1), "{}", said(&nowhere));
    assert!(
        said(&nowhere).contains("mount -t bpf"),
        "{}",
        said(&nowhere)
    );

    // A file that these maps do not hold is refused by the start, and by the look before it, of either version.
    let whole = stage.config.text();
    let large = whole.replace("mode = ", "table_size = 524287\nmode = ");
    let large = large.replace("table_slots = 524288", "table_slots = 2000000");
    ensure!(
        large.contains("table_size") && large.contains("2000000"),
        "{large}"
    );
    balancer.write(CONFIG_PATH, &large)?;
    let own = balancer.output(tether::command(&[
        "upgrade-check",
        "--config",
        CONFIG_PATH,
    ])?)?;
    let other = check_with_next(&balancer, &["--config", CONFIG_PATH])?;
    for refused in [own, other] {
        assert_eq!(refused.status.code(), Some(3), "{}", said(&refused));
        assert!(
            said(&refused).contains("too few for what is configured"),
            "{}",
            said(&refused)
        );
    }
    balancer.write(CONFIG_PATH, &whole)?;
    // Nor can it say so without the rights to ask the kernel whether it takes the program.
    let mut powerless = Command::new("setpriv");
    powerless
        .arg("--bounding-set=-perfmon,-sys_admin")
        .arg(tether::program_of_next_version()?)
        .arg("upgrade-check");
    let powerless = balancer.output(powerless)?;
    assert_eq!(powerless.status.code(), Some(1), "{}", said(&powerless));
    assert!(
        said(&powerless).contains("CAP_PERFMON missing"),
        "{}",
        said(&powerless)
    );

    // Without the description, nobody can say what is where. (Version 6 is known without, but that is not what is pinned.)
    stage.tether.kill()?;
    balancer.sh("rm /sys/fs/bpf/tether/maps/LAYOUTS")?;
    let refused = check_with_next(&balancer, &["--json"])?;
    assert_eq!(refused.status.code(), Some(3), "{}", said(&refused));
    let json: serde_json::Value = serde_json::from_slice(&refused.stdout)?;
    assert_eq!(json["verdict"], "refused");
    let why = said(&refused);
    for part in [
        "does not know their layouts",
        "run the tether that made them",
        "tether cleanup",
    ] {
        assert!(why.contains(part), "no {part:?}: {why}");
    }
    let mut run = Command::new(tether::program_of_next_version()?);
    run.args(["run", "--config", CONFIG_PATH]);
    let run = balancer.output(run)?;
    assert_eq!(run.status.code(), Some(1), "{}", said(&run));
    assert!(
        said(&run).contains("does not know their layouts"),
        "{}",
        said(&run)
    );
    assert_talking(&connections)?;
    stage.close();
    Ok(())
}
