//! A real Prometheus scrapes a running daemon, and the shipped alert rules fire for the faults of a lab, and clear when those are mended. Only times are
//! shorter than in the shipped file.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use lab::address::Family;
use lab::config::{Config, Named, SERVICE};
use lab::dashboard;
use lab::gray;
use lab::passing;
use lab::peer::client::Close;
use lab::peer::crowd;
use lab::peer::dns::DnsServer;
use lab::prometheus::{Prometheus, rules};
use lab::stage::Stage;
use lab::tether::PINS;
use lab::topology::{Place, Topology, UPLINK};
use lab::two_links::{self, SECOND};
use lab::wait;
use lb_common::clock::Tick;
use lb_common::flow::v4;
use lb_common::flow::word::{BackendRef, Word};
use lb_common::maps::{FLOWS4, PORTS};
use lb_common::net::IpVersion;
use lb_userspace::dataplane::array::Array;
use lb_userspace::dataplane::kernel::bpf::Link;
use lb_userspace::dataplane::maps::now;
use lb_userspace::flows::judge::RECLAIM_PIN_TICKS;
use nix::sys::signal::Signal;

/// Several scrapes and evaluations, of a second each, on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// A network that nobody of the segment has.
const NOBODY: &str = "10.0.2.99";

/// A file while which exists the daemon's reconciler hangs.
const HANG: &str = "/run/hang";

/// Starts the daemon anew with another configuration.
fn restart_with(stage: &mut Stage, config: &Config) -> Result<()> {
    // It would refuse some of it while it runs.
    stage.tether.terminate()?;
    let host = stage.lab.balancer();
    host.write(lab::tether::CONFIG_PATH, &config.text())?;
    stage.tether.restart()?;
    stage.wait_serving()
}

#[test]
fn alerts_fire_for_faults_and_clear() -> Result<()> {
    let mut stage = Stage::set(Topology::new(Place::Farm), 96, |config| config.flows = 600)?;
    let prometheus = Prometheus::start(stage.lab.balancer())?;
    prometheus.see_all_well()?;

    stage.lab.darken(0)?;
    prometheus.see("a dark backend", &["TetherBackendDown"])?;
    stage.lab.brighten(0)?;
    prometheus.see("it is back", &[])?;

    for backend in &stage.backends {
        backend.close_listeners()?;
    }
    prometheus.see("all refuse", &["TetherBackendDown", "TetherFailOpen"])?;
    for backend in &stage.backends {
        backend.open_listeners()?;
    }
    prometheus.see("all are back", &[])?;

    let names = ["b1", "b2", "b3"].map(|name| format!("{SERVICE}/{name}"));
    for name in &names {
        stage.tether.succeed(&["drain", name])?;
    }
    prometheus.see("all are drained", &["TetherNoBackend"])?;
    // The same, but meant for the host as a whole.
    stage.tether.succeed(&["drain", "--all"])?;
    prometheus.see("the host is evacuated", &["TetherEvacuated"])?;
    stage.tether.succeed(&["undrain", "--all"])?;
    for name in &names {
        stage.tether.succeed(&["undrain", name])?;
    }
    prometheus.see("it is not any more", &[])?;

    let nobody: IpAddr = NOBODY.parse()?;
    stage.tether.succeed(&[
        "add",
        &format!("{SERVICE}/b9"),
        "--address",
        &nobody.to_string(),
    ])?;
    prometheus.see_among(
        "a backend that nobody answers for",
        &["TetherBackendUnresolved"],
    )?;
    stage
        .tether
        .succeed(&["remove", &format!("{SERVICE}/b9")])?;
    prometheus.see("it is removed", &[])?;

    stage
        .lab
        .balancer()
        .write(lab::tether::CONFIG_PATH, "interfaces = 7\n")?;
    stage.tether.signal(Signal::SIGHUP)?;
    prometheus.see("a bad configuration", &["TetherConfigurationRefused"])?;
    stage
        .lab
        .balancer()
        .write(lab::tether::CONFIG_PATH, &stage.config.text())?;
    stage.tether.signal(Signal::SIGHUP)?;
    prometheus.see("a good one", &[])?;

    stage.tether.kill()?;
    prometheus.see_among("a dead daemon", &["TetherAbsent"])?;
    stage.tether.restart()?;
    stage.wait_serving()?;
    prometheus.see("it is back", &[])?;

    // The loopback has no native mode.
    let mut generic = stage.config.clone();
    generic.interfaces.push("lo");
    stage.lab.balancer().sh("ethtool -K lo gro off")?;
    restart_with(&mut stage, &generic)?;
    prometheus.see("an interface in generic mode", &["TetherGenericMode"])?;
    let plain = stage.config.clone();
    restart_with(&mut stage, &plain)?;
    prometheus.see("without it", &[])?;

    stage.tether.terminate()?;
    stage.tether.restart_to_hang(HANG)?;
    stage.wait_serving()?;
    let b1 = format!("{SERVICE}/b1");
    stage.lab.balancer().write(HANG, "")?;
    // It is answered once it is in force, which is not now.
    let _weighed = stage.tether.begin(&["weight", &b1, "50"])?;
    prometheus.see("a reconciler that hangs", &["TetherStale"])?;
    stage.lab.balancer().sh(&format!("rm {HANG}"))?;
    prometheus.see("it goes on", &[])?;
    stage.tether.succeed(&["revert", &b1])?;

    // So many flows that the table is more than half full, then nearly full, and one backend that has to keep its share.
    let mut connections = stage.clients.open(550, stage.plan(), |_| {})?;
    prometheus.see("a table half full", &["TetherTableFilling"])?;
    connections.extend(stage.clients.open(200, stage.plan(), |_| {})?);
    prometheus.see("a table nearly full", &["TetherTableNearlyFull"])?;
    let roomy = stage.config.with_flows(IpVersion::V4, 20_000);
    restart_with(&mut stage, &roomy)?;
    prometheus.see("a larger table", &[])?;

    stage.tether.succeed(&["drain", &format!("{SERVICE}/b1")])?;
    prometheus.see("a drain that does not end", &["TetherDrainStuck"])?;
    stage
        .tether
        .succeed(&["undrain", &format!("{SERVICE}/b1")])?;
    prometheus.see("it is called off", &[])?;

    for connection in connections.iter().take(250) {
        connection.close(Close::Abort)?;
    }
    prometheus.see("many flows end", &["TetherChurn", "TetherChurnHigh"])?;
    prometheus.see("and then no more", &[])?;
    stage.close();
    Ok(())
}

/// Stops the daemon as a debugger does, so that it sees nothing of what is done behind its back. Returns when all of its threads have stopped.
fn pause(stage: &Stage) -> Result<()> {
    stage.tether.signal(Signal::SIGSTOP)?;
    let tasks = format!("/proc/{}/task", stage.tether.pid()?);
    let is_stopped = |task: std::io::Result<std::fs::DirEntry>| -> std::io::Result<bool> {
        let text = std::fs::read_to_string(task?.path().join("stat"))?;
        // The name before the state may have anything in it, brackets too.
        Ok(text
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('T')))
    };
    wait::until("the daemon has stopped", SOON, || {
        let states: std::io::Result<Vec<bool>> =
            std::fs::read_dir(&tasks).and_then(|all| all.map(is_stopped).collect());
        states.is_ok_and(|all| !all.contains(&false)).then_some(())
    })
}

#[test]
fn an_alert_fires_while_another_program_has_the_interface() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 231, |_| {})?;
    let host = stage.lab.balancer();
    let prometheus = Prometheus::start(host)?;
    prometheus.see_all_well()?;

    // The daemon would attach its program again before another could be.
    pause(&stage)?;
    host.run(|| Link::from_pin(&Path::new(PINS).join("link-eth0"))?.detach())
        .context("detach the program")?;
    let another = passing::pass_all(host, UPLINK)?;
    stage.tether.signal(Signal::SIGCONT)?;
    prometheus.see(
        "another program is there",
        &["TetherDetached", "TetherNotAttached"],
    )?;
    drop(another);
    prometheus.see("it is gone", &[])?;
    stage.close();
    Ok(())
}

#[test]
fn an_alert_fires_while_an_interface_takes_no_frames() -> Result<()> {
    // The router's end has neither a program nor GRO.
    let lab = two_links::build(Place::Farm, Family::V4)?;
    let stage = Stage::on(lab, 232, |config| config.interfaces = vec![UPLINK, SECOND])?;
    let prometheus = Prometheus::start(stage.lab.balancer())?;
    prometheus.see(
        "what leaves by the second link is lost",
        &["TetherEgressClosed"],
    )?;
    let _open = two_links::open(&stage.lab)?;
    prometheus.see("it is not any more", &[])?;
    stage.close();
    Ok(())
}

#[test]
fn alerts_fire_while_removed_backends_leave_no_room_for_new_ones() -> Result<()> {
    let topology = Topology {
        backends: 5,
        ..Topology::new(Place::Farm)
    };
    // Room for four backends. (Number 0 is not used.)
    let stage = Stage::set(topology, 233, |config| {
        config.backend_limit = 5;
        config.backends.truncate(3);
    })?;
    let host = stage.lab.balancer();
    let prometheus = Prometheus::start(host)?;
    prometheus.see_all_well()?;
    let connections = stage.clients.open(60, stage.plan(), |_| {})?;
    assert_eq!(crowd::spread(&connections).len(), 3);

    // Two are replaced, and have flows, which they keep.
    let mut replaced = stage.config.clone();
    replaced.backends = Config::new(topology).backends.split_off(2);
    host.write(lab::tether::CONFIG_PATH, &replaced.text())?;
    stage.tether.signal(Signal::SIGHUP)?;
    prometheus.see_among(
        "a backend has no number",
        &["TetherNotApplied", "TetherUnserved"],
    )?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    host.write(lab::tether::CONFIG_PATH, &stage.config.text())?;
    stage.tether.signal(Signal::SIGHUP)?;
    prometheus.see("the old ones are wanted again", &[])?;
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

/// Makes all flows as old as if they had said nothing for a day, which no test can wait for. To be called on the host that has the table.
fn let_a_day_pass() -> Result<()> {
    let then = Tick(now().0.wrapping_sub(RECLAIM_PIN_TICKS + 1));
    change_all_flows(|seen| seen.with_tick(then))
}

/// Has all flows name backends that are no more, as nothing ever should. To be called on the host that has the table.
fn let_flows_name_nobody() -> Result<()> {
    change_all_flows(|seen| {
        let backend = seen.backend();
        seen.with_backend(BackendRef::new(backend.id(), backend.generation() ^ 1))
    })
}

fn change_all_flows(change: impl Fn(Word) -> Word) -> Result<()> {
    let map = MapData::from_pin(Path::new(PINS).join("maps").join(FLOWS4))?;
    // One value with all buckets.
    let buckets = map.info()?.value_size() / size_of::<v4::Bucket>() as u32;
    let buckets = Array::<v4::Bucket>::of_map(map.fd().as_fd(), buckets)?;
    for entry in buckets.all().chunks_exact(size_of::<v4::Entry>() / 8) {
        let value = &entry[std::mem::offset_of!(v4::Entry, value) / 8];
        let seen = Word(value.load(Ordering::Acquire));
        if seen.is_open() {
            // As the daemon does it: what the data path has written meanwhile is newer, and stays.
            let _ =
                value.compare_exchange(seen.0, change(seen).0, Ordering::SeqCst, Ordering::Relaxed);
        }
    }
    Ok(())
}

#[test]
fn alerts_fire_when_flows_find_no_room() -> Result<()> {
    // At the load that it is made for; there are 200 places.
    let mut stage = Stage::set(Topology::new(Place::Farm), 234, |config| config.flows = 120)?;
    let prometheus = Prometheus::start(stage.lab.balancer())?;
    prometheus.see_all_well()?;

    let mut connections = stage.clients.open(170, stage.plan(), |_| {})?;
    prometheus.see("a table nearly full", &["TetherTableNearlyFull"])?;
    stage.lab.balancer().run(let_a_day_pass)?;
    prometheus.see_among("of flows that are idle for long", &["TetherEvictions"])?;
    prometheus.see_no_more("no more go than must", "TetherEvictions")?;

    connections.extend(stage.clients.open(300, stage.plan(), |_| {})?);
    prometheus.see_among("a table that is full", &["TetherUnpinned"])?;
    let roomy = stage.config.with_flows(IpVersion::V4, 20_000);
    restart_with(&mut stage, &roomy)?;
    prometheus.see("a larger table", &[])?;
    // With an entry or without, each is where it was.
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn an_alert_fires_when_what_should_never_happen_does() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 237, |_| {})?;
    let prometheus = Prometheus::start(stage.lab.balancer())?;
    prometheus.see_all_well()?;

    let connections = stage.clients.open(60, stage.plan(), |_| {})?;
    // The first packet of each is dropped, and its entry taken away. The next is adopted. A pass over the table may take them away before.
    wait::until(
        "a packet of a flow that names nobody",
        Duration::from_secs(10),
        || {
            stage.lab.balancer().run(let_flows_name_nobody).ok()?;
            assert_eq!(crowd::echo_all(&connections), [""; 0]);
            let status = stage.tether.status().ok()?;
            (status.packets("stale_generation") > 0).then_some(())
        },
    )?;
    prometheus.see_among("entries that name nobody", &["TetherDefect"])?;
    prometheus.see_no_more("they are gone", "TetherDefect")?;
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn an_alert_fires_while_sources_nearly_find_no_room() -> Result<()> {
    const SOURCES: u8 = 80;
    let topology = Topology {
        client_addresses: SOURCES,
        ..Topology::new(Place::Farm)
    };
    // At the load that it is made for; there are 100 places.
    let stage = Stage::set(topology, 236, |config| {
        config.limits = "sources = 60\n".into();
        config.lines = "source_limit = { flows = 100 }\n".into();
    })?;
    let prometheus = Prometheus::start(stage.lab.balancer())?;
    prometheus.see_all_well()?;

    let connections = stage
        .clients
        .open(usize::from(SOURCES), stage.plan(), |_| {})?;
    prometheus.see(
        "sources for which room runs out",
        &["TetherSourcesNearlyFull"],
    )?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    for connection in &connections {
        connection.close(Close::Orderly)?;
    }
    prometheus.see_no_more("they are gone", "TetherSourcesNearlyFull")?;
    stage.close();
    Ok(())
}

#[test]
fn an_alert_fires_while_a_backend_is_ejected() -> Result<()> {
    const PACE: Duration = Duration::from_millis(100);
    let topology = Topology {
        client_addresses: gray::CLIENTS,
        ..Topology::new(Place::Farm)
    };
    let stage = Stage::set(topology, 237, |config| config.lines = gray::LINES.into())?;
    let prometheus = Prometheus::start(stage.lab.balancer())?;
    prometheus.see_all_well()?;
    let plan = stage.plan().talking(PACE);
    let connections = stage.clients.open(90, plan, |_| {})?;

    gray::sicken(&stage, "b2")?;
    stage
        .tether
        .wait_status("b2 is ejected", 2 * SOON, |status| {
            status.serving("b2") == "existing-only"
        })?;
    prometheus.see("a backend that loses packets", &["TetherBackendEjected"])?;
    gray::cure(&stage, "b2")?;
    gray::forgive(&stage)?;
    stage.tether.wait_status("b2 is back", 2 * SOON, |status| {
        status.serving("b2") == "new"
    })?;
    prometheus.see("it loses none any more", &[])?;
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn an_alert_fires_while_all_backends_are_full() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 238, |config| {
        for backend in &mut config.backends {
            backend.lines = "max_connections = 1\n".into();
        }
    })?;
    let prometheus = Prometheus::start(stage.lab.balancer())?;
    prometheus.see_all_well()?;

    // One after another, each counted before the next: so each finds a backend that has none.
    let mut connections = vec![];
    for _ in &stage.backends {
        connections.push(stage.clients.open_one(stage.plan())?);
        stage.tether.wait_status("it is counted", SOON, |status| {
            let backends = stage.backends.iter();
            let full = backends.filter(|backend| status.serving(backend.name()) == "existing-only");
            full.count() == connections.len()
        })?;
    }
    prometheus.see("all have as many as they may", &["TetherServiceFull"])?;
    // The commands agree with it, and with each other.
    for command in ["status", "services"] {
        let said = stage.tether.succeed(&[command])?;
        assert!(said.contains("  FULL"), "{command}: {said}");
    }
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    connections[0].close(Close::Abort)?;
    prometheus.see("one has room", &[])?;
    assert_eq!(crowd::echo_all(&connections[1..]), [""; 0]);
    stage.close();
    Ok(())
}

/// Ports that are marked as in use in each word of their bitmap: nine tenths.
const MOST_PORTS: u64 = u64::MAX >> 6;

/// The bitmap of SNAT ports. To be called on the host that has it.
fn ports() -> Result<Array<u64>> {
    let map = MapData::from_pin(Path::new(PINS).join("maps").join(PORTS))?;
    // One value with all words.
    let words = map.info()?.value_size() / size_of::<u64>() as u32;
    Ok(Array::<u64>::of_map(map.fd().as_fd(), words)?)
}

/// Marks most ports of all SNAT addresses, as more flows would than any lab holds. Returns which bits of each word it has set.
fn take_most_ports() -> Result<Vec<u64>> {
    let take = |word: &AtomicU64| MOST_PORTS & !word.fetch_or(MOST_PORTS, Ordering::SeqCst);
    Ok(ports()?.all().iter().map(take).collect())
}

#[test]
fn an_alert_fires_while_snat_ports_run_out() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Hidden), 239, |_| {})?;
    let host = stage.lab.balancer();
    let prometheus = Prometheus::start(host)?;
    prometheus.see_all_well()?;
    let connections = stage.clients.open(30, stage.plan(), |_| {})?;

    let taken = host.run(take_most_ports)?;
    prometheus.see("most ports are in use", &["TetherSnatPortsNearlyFull"])?;
    // There are some yet.
    let newcomers = stage.clients.open(30, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&newcomers), [""; 0]);
    host.run(move || -> Result<()> {
        for (word, bits) in ports()?.all().iter().zip(taken) {
            word.fetch_and(!bits, Ordering::SeqCst);
        }
        Ok(())
    })?;
    prometheus.see("they are free again", &[])?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn an_alert_fires_while_a_name_does_not_resolve() -> Result<()> {
    const NAME: &str = "chat.example.";
    let topology = Topology::new(Place::Farm);
    let all: Vec<IpAddr> = (0..topology.backends)
        .map(|index| topology.backend_address(index))
        .collect();
    let lab = topology.build()?;
    let server = DnsServer::start(lab.balancer())?;
    server.say(NAME, &all)?;
    let stage = Stage::on(lab, 240, |config| {
        config.backends.clear();
        config.named = Some(Named {
            server: server.address(),
            query: NAME,
            kind: "a",
        });
    })?;
    let prometheus = Prometheus::start(stage.lab.balancer())?;
    prometheus.see_all_well()?;

    server.fail();
    prometheus.see("a server that fails", &["TetherDnsFailing"])?;
    server.say(NAME, &all)?;
    prometheus.see("it answers again", &[])?;
    stage.close();
    Ok(())
}

#[test]
fn every_query_of_the_dashboard_is_answered() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 235, |config| {
        config.lines = "outlier = {}\n".into();
    })?;
    let prometheus = Prometheus::start(stage.lab.balancer())?;
    prometheus.see_all_well()?;
    let connections = stage.clients.open(30, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    let (mut shown, mut troubles) = (0, 0);
    for query in dashboard::queries()? {
        // What is chosen by a comparison is there while something is amiss, and nothing is. It must be understood all the same.
        let is_of_trouble = [" == ", " > "].iter().any(|sign| query.contains(sign))
            && !query.contains("or vector(0)");
        wait::until_seen(
            &format!("there is an answer to {query}"),
            SOON,
            || prometheus.ask(&query),
            |answer| is_of_trouble || !answer.is_empty(),
        )?;
        if is_of_trouble {
            troubles += 1;
        } else {
            shown += 1;
        }
    }
    assert!(
        shown > 3 * troubles,
        "{shown} are shown, {troubles} need not be"
    );
    stage.close();
    Ok(())
}

#[test]
fn every_alert_fires_in_a_lab() -> Result<()> {
    let rules = std::fs::read_to_string(rules())?;
    let shipped: BTreeSet<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    // What tests of this file wait for.
    let fired: BTreeSet<&str> = include_str!("prometheus.rs")
        .split('"')
        .filter(|quoted| {
            let rest = quoted.strip_prefix("Tether");
            rest.is_some_and(|rest| !rest.is_empty() && rest.chars().all(char::is_alphanumeric))
        })
        .collect();
    assert_eq!(fired, shipped);
    Ok(())
}
