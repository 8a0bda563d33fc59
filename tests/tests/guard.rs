//! A guarded service: whom it takes new flows from, and how many of one source. What has a flow keeps it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lab::address::{self, Family, mac_of};
use lab::frame::{Build, flags};
use lab::packet_socket::{FloodPlan, flood_with_syns, inject};
use lab::peer::client::{Clients, Close, Connection, Plan};
use lab::peer::crowd;
use lab::stage::Stage;
use lab::tether;
use lab::topology::{CLIENT_PORT, Place, Topology, UPLINK};
use lab::wait;

const SOON: Duration = Duration::from_secs(30);
const PACE: Duration = Duration::from_millis(250);
/// Less than a client's kernel waits before it sends a SYN again, so that each attempt is one SYN.
const ONE_SYN: Duration = Duration::from_millis(700);

/// A prefix that holds `host` of the clients' network, as configurations write it, of all but so many bits.
fn prefix(topology: Topology, host: u8, free_bits: u8) -> String {
    let version = topology.family.vip();
    let bits = match topology.vip() {
        IpAddr::V4(_) => 32 - free_bits,
        IpAddr::V6(_) => 128 - free_bits,
    };
    format!("{}/{bits}", address::Network::Clients.host(version, host))
}

/// Clients with one address.
fn at(stage: &Stage, index: usize) -> Result<Clients> {
    let source = stage.lab.sources()[index];
    Clients::start(stage.lab.client(), &[source], index as u64)
}

/// A plan of attempts that are given up before the SYN is sent again.
fn attempt(stage: &Stage) -> Plan {
    Plan {
        opening: ONE_SYN,
        ..stage.plan()
    }
}

/// Packets that came to a reason by now. (The status is as of some moments ago.)
fn packets(stage: &Stage, reason: &str) -> Result<u64> {
    let metrics = stage.tether.metrics()?;
    let start = format!("tether_reason_packets_total{{reason=\"{reason}\"");
    let line = metrics.lines().find(|line| line.starts_with(&start));
    let number = line.and_then(|line| line.rsplit(' ').next());
    let number = number.with_context(|| format!("nothing of {reason} in {metrics}"))?;
    number.parse().with_context(|| number.to_owned())
}

/// Attempts to connect, all of which are refused and counted for a reason.
fn assert_refused(stage: &Stage, clients: &Clients, reason: &str) -> Result<()> {
    let before = packets(stage, reason)?;
    for attempts in 1..=3 {
        assert!(clients.open_one(attempt(stage)).is_err(), "{reason}");
        let after = packets(stage, reason)?;
        assert!(
            after >= before + attempts,
            "{reason}: {before}, then {after}"
        );
    }
    Ok(())
}

/// Every connection echoes again and again, and none has broken.
fn assert_talking(connections: &[Connection]) -> Result<()> {
    crowd::wait_for_echoes(connections, 3, SOON, |_| {})?;
    assert_eq!(crowd::breaks(connections), [""; 0]);
    Ok(())
}

#[test]
fn lists_change_while_connections_live() -> Result<()> {
    lists_change(Place::Farm, Family::V4, 71)
}

#[test]
fn lists_change_while_connections_live_in_ipv6() -> Result<()> {
    lists_change(Place::Farm, Family::V6, 72)
}

#[test]
fn lists_change_while_connections_live_with_nat() -> Result<()> {
    lists_change(Place::Hidden, Family::V4, 73)
}

fn lists_change(place: Place, family: Family, seed: u64) -> Result<()> {
    let topology = Topology::new(place).in_family(family);
    // Hosts 8 to 15, of which 14 and 15 are denied.
    let allow = format!("allow = [\"{}\"]\n", prefix(topology, 8, 3));
    let denied = prefix(topology, 14, 1);
    let stage = Stage::set(topology, seed, |config| {
        config.lines = format!("{allow}deny = [\"{denied}\"]\n");
    })?;
    // Clients are hosts from 10 on: four are allowed, two are denied, and two are in no list.
    let clients: Vec<Clients> = (0..8)
        .map(|index| at(&stage, index))
        .collect::<Result<_>>()?;
    let talking = stage.plan().talking(PACE);
    let mut of_each = Vec::new();
    for clients in &clients[..4] {
        of_each.push(clients.open(10, talking, |_| {})?);
    }
    for (index, reason) in [
        (4, "denied"),
        (5, "denied"),
        (6, "not_allowed"),
        (7, "not_allowed"),
    ] {
        assert_refused(&stage, &clients[index], reason)?;
    }

    // The first two come onto the list while their connections live.
    let mut changed = stage.config.clone();
    let more = prefix(topology, 10, 1);
    changed.lines = format!("{allow}deny = [\"{denied}\", \"{more}\"]\n");
    let host = stage.lab.balancer();
    host.write("/run/next.toml", &changed.text())?;
    let said = stage
        .tether
        .succeed(&["plan", "--config", "/run/next.toml"])?;
    assert!(
        said.contains("guard: allow 1, deny 1 -> allow 1, deny 2; 1 prefix added, 0 removed"),
        "{said}"
    );
    stage.tether.reload(&changed.text())?;
    for index in [0, 1] {
        assert_refused(&stage, &clients[index], "denied")?;
    }
    of_each.push(clients[2].open(10, talking, |_| {})?);
    for connections in &of_each {
        assert_talking(connections)?;
        assert_eq!(crowd::echo_all(connections), [""; 0]);
    }
    let explained = stage.tether.succeed(&[
        "explain",
        &SocketAddr::new(stage.lab.sources()[0], 40_000).to_string(),
        &stage.target().to_string(),
    ])?;
    assert!(
        explained.contains(&format!("deny has {more}")),
        "{explained}"
    );

    // And off it again.
    stage.tether.reload(&stage.config.text())?;
    of_each.push(clients[0].open(10, talking, |_| {})?);
    assert_refused(&stage, &clients[4], "denied")?;
    for connections in &of_each {
        assert_talking(connections)?;
    }
    stage.close();
    Ok(())
}

#[test]
fn the_first_guard_comes_by_a_reload() -> Result<()> {
    let topology = Topology::new(Place::Farm);
    let stage = Stage::set(topology, 74, |_| {})?;
    let (denied, other) = (at(&stage, 0)?, at(&stage, 1)?);
    let talking = stage.plan().talking(PACE);
    let connections = denied.open(20, talking, |_| {})?;
    let mut guarded = stage.config.clone();
    guarded.lines = format!("deny = [\"{}\"]\n", stage.lab.sources()[0]);
    stage.tether.reload(&guarded.text())?;
    // The kernel takes its time over the programs. Until then the service is not closed to anybody.
    wait::until("the list is in force", SOON, || {
        let refused = denied.open_one(attempt(&stage)).is_err();
        let counted = packets(&stage, "denied").ok()?;
        (refused && counted > 0).then_some(())
    })?;
    stage
        .tether
        .wait_status("the guard is in force", SOON, |status| {
            status.services[0].error.is_none()
        })?;
    assert_refused(&stage, &denied, "denied")?;
    let others = other.open(20, talking, |_| {})?;
    assert_talking(&connections)?;
    assert_talking(&others)?;
    stage.close();
    Ok(())
}

/// Of the layouts of another version, newer and older: what was refused is, and what a source has counts.
#[test]
fn guards_outlive_an_upgrade_and_a_downgrade() -> Result<()> {
    const MOST: usize = 10;
    let topology = Topology::new(Place::Farm);
    let mut stage = Stage::set(topology, 83, |config| {
        let denied = topology.sources()[0];
        config.lines = format!("deny = [\"{denied}\"]\nsource_limit = {{ flows = {MOST} }}\n");
    })?;
    let (denied, full) = (at(&stage, 0)?, at(&stage, 1)?);
    let connections = full.open(MOST, stage.plan().talking(PACE), |_| {})?;
    for program in [tether::program_of_next_version()?, tether::program()?] {
        assert_refused(&stage, &denied, "denied")?;
        assert_refused(&stage, &full, "source_full")?;
        stage.tether.kill()?;
        stage.tether.become_program(program);
        stage.tether.restart()?;
        stage.wait_serving()?;
        assert!(stage.tether.log().contains("flow tables migrated"));
        assert_talking(&connections)?;
    }
    assert_refused(&stage, &denied, "denied")?;
    assert_refused(&stage, &full, "source_full")?;
    stage.close();
    Ok(())
}

/// A daemon that starts again finds guards in force, and none is lifted meanwhile.
#[test]
fn guards_hold_while_there_is_no_daemon() -> Result<()> {
    let topology = Topology::new(Place::Farm);
    let mut stage = Stage::set(topology, 84, |config| {
        config.lines = format!("deny = [\"{}\"]\n", topology.sources()[0]);
    })?;
    let (denied, other) = (at(&stage, 0)?, at(&stage, 1)?);
    let talking = stage.plan().talking(PACE);
    let connections = other.open(20, talking, |_| {})?;
    let before = packets(&stage, "denied")?;
    stage.tether.kill()?;
    for _ in 0..3 {
        assert!(denied.open_one(attempt(&stage)).is_err());
    }
    let more = other.open(20, talking, |_| {})?;
    stage.tether.restart()?;
    stage.wait_serving()?;
    assert!(packets(&stage, "denied")? >= before + 3);
    assert_refused(&stage, &denied, "denied")?;
    assert_talking(&connections)?;
    assert_talking(&more)?;
    stage.close();
    Ok(())
}

/// SYNs of new connections from one address, each from a port of its own.
struct Burst<'a> {
    stage: &'a Stage,
    source: IpAddr,
    port: u16,
}

impl Burst<'_> {
    fn send(&mut self, count: u16) -> Result<()> {
        let lab = &self.stage.lab;
        let macs = (mac_of(lab.sources()[0]), lab.router_mac(CLIENT_PORT)?);
        let frames = (0..count).map(|n| {
            let build = Build {
                mac_source: macs.0,
                mac_destination: macs.1,
                source: SocketAddr::new(self.source, self.port + n),
                destination: self.stage.target(),
                seq: 0x1000_0000 + u32::from(self.port + n),
                ack: 0,
                flags: flags::SYN,
            };
            build.frame(&[])
        });
        inject(lab.client(), UPLINK, frames.collect())?;
        self.port += count;
        Ok(())
    }
}

#[test]
fn a_source_opens_its_burst_and_then_its_rate() -> Result<()> {
    rates(Family::V4, 75)
}

#[test]
fn a_source_opens_its_burst_and_then_its_rate_in_ipv6() -> Result<()> {
    rates(Family::V6, 76)
}

fn rates(family: Family, seed: u64) -> Result<()> {
    const RATE: f64 = 10.0;
    const BURST: f64 = 20.0;
    let topology = Topology::new(Place::Farm).in_family(family);
    let stage = Stage::set(topology, seed, |config| {
        // Each address by itself, also in IPv6, where it would be a network.
        let prefix = match topology.vip() {
            IpAddr::V4(_) => "prefix = 32, ",
            IpAddr::V6(_) => "",
        };
        config.lines = format!("source_limit = {{ {prefix}new_per_second = 10, burst = 20 }}\n");
    })?;
    let opened_before = packets(&stage, "opened")?;
    let mut burst = Burst {
        stage: &stage,
        source: stage.lab.sources()[0],
        port: 20_000,
    };
    let begun = Instant::now();
    burst.send(200)?;
    for beat in 1..=80 {
        let due = beat * Duration::from_millis(50);
        wait::until("the next beat", SOON, || {
            (begun.elapsed() >= due).then_some(())
        })?;
        burst.send(20)?;
    }
    let last = begun.elapsed();
    let total = u64::from(burst.port - 20_000);
    let after = wait::until("all SYNs are counted", SOON, || {
        let opened = packets(&stage, "opened").ok()? - opened_before;
        let refused = packets(&stage, "source_rate").ok()?;
        (opened + refused >= total).then_some(opened)
    })?;
    let whole = begun.elapsed();
    let (least, most) = (
        BURST + RATE * last.as_secs_f64() - 3.0,
        BURST + RATE * whole.as_secs_f64() + 3.0,
    );
    assert!(
        (least..=most).contains(&(after as f64)),
        "{after} of {total} in {last:?}, not {least} to {most}"
    );
    stage.close();
    Ok(())
}

#[test]
fn a_source_that_is_limited_is_nothing_to_others() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 77, |config| {
        config.lines = "source_limit = { new_per_second = 10, burst = 20 }\n".to_owned();
    })?;
    let other = at(&stage, 1)?;
    let mut burst = Burst {
        stage: &stage,
        source: stage.lab.sources()[0],
        port: 20_000,
    };
    let mut connections = Vec::new();
    for _ in 0..15 {
        burst.send(200)?;
        connections.push(other.open_one(stage.plan())?);
    }
    assert!(packets(&stage, "source_rate")? > 2_000);
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn a_source_has_so_many_flows_at_a_time() -> Result<()> {
    limits_flows(Place::Farm, Family::V4, 78)
}

#[test]
fn a_source_has_so_many_flows_at_a_time_in_ipv6() -> Result<()> {
    limits_flows(Place::Farm, Family::V6, 79)
}

#[test]
fn a_source_has_so_many_flows_at_a_time_with_dnat() -> Result<()> {
    limits_flows(Place::Behind, Family::V4, 80)
}

fn limits_flows(place: Place, family: Family, seed: u64) -> Result<()> {
    const MOST: usize = 20;
    let topology = Topology::new(place).in_family(family);
    let stage = Stage::set(topology, seed, |config| {
        config.lines = format!("source_limit = {{ flows = {MOST} }}\n");
    })?;
    let full = at(&stage, 0)?;
    let mut connections = full.open(MOST, stage.plan(), |_| {})?;
    assert_refused(&stage, &full, "source_full")?;
    // It holds over passes that count anew. (In IPv6 all of the lab's clients are in one /64.)
    let sweeps = |stage: &Stage| -> Result<u64> {
        let metrics = stage.tether.metrics()?;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("tether_sweeps_total "));
        Ok(line.context("no sweeps")?.parse()?)
    };
    let later = sweeps(&stage)? + 3;
    wait::until("three passes", SOON, || {
        (sweeps(&stage).ok()? >= later).then_some(())
    })?;
    assert_refused(&stage, &full, "source_full")?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    if family == Family::V4 {
        let other = at(&stage, 1)?;
        let others = other.open(MOST, stage.plan(), |_| {})?;
        assert_eq!(crowd::echo_all(&others), [""; 0]);
        assert_eq!(crowd::echo_all(&connections), [""; 0]);
    }

    // Who closes some may open as many.
    for connection in connections.drain(..MOST / 2) {
        connection.close(Close::Orderly)?;
    }
    for _ in 0..MOST / 2 {
        let opened = wait::until("another is let in", SOON, || {
            full.open_one(attempt(&stage)).ok()
        })?;
        connections.push(opened);
    }
    let later = sweeps(&stage)? + 2;
    wait::until("two passes", SOON, || {
        (sweeps(&stage).ok()? >= later).then_some(())
    })?;
    assert_refused(&stage, &full, "source_full")?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn a_flood_from_a_limited_prefix_does_not_keep_others_out() -> Result<()> {
    floods(Family::V4, 81)
}

#[test]
fn a_flood_from_a_limited_prefix_does_not_keep_others_out_in_ipv6() -> Result<()> {
    floods(Family::V6, 82)
}

fn floods(family: Family, seed: u64) -> Result<()> {
    const CONNECTIONS: usize = 1_000;
    const RATE: f64 = 100.0;
    const BURST: f64 = 1_500.0;
    const NEWCOMERS: usize = 100;
    let (prefix, bits) = address::spoofed(family.vip());
    let stage = Stage::set(
        Topology::new(Place::Farm).in_family(family),
        seed,
        |config| {
            config.lines = format!(
                "source_limit = {{ prefix = {bits}, new_per_second = {RATE}, burst = {BURST} }}\n"
            );
        },
    )?;
    let connections = stage.clients.open(
        CONNECTIONS,
        stage.plan().talking(Duration::from_secs(1)),
        |_| {},
    )?;
    let before = packets(&stage, "opened")?;
    let begun = Instant::now();
    let flood = flood_with_syns(
        stage.lab.client(),
        UPLINK,
        FloodPlan {
            prefix: (prefix, bits),
            target: stage.target(),
            macs: (
                mac_of(stage.lab.sources()[0]),
                stage.lab.router_mac(CLIENT_PORT)?,
            ),
            rate: 5_000,
            seed,
        },
    )?;
    wait::until("the flood's prefix has used up its burst", SOON, || {
        let refused = packets(&stage, "source_rate").ok()?;
        (refused > 5_000).then_some(())
    })?;
    let newcomers = stage.clients.open(NEWCOMERS, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&newcomers), [""; 0]);
    assert_talking(&connections)?;
    let sent = flood.stop()?;
    let opened = packets(&stage, "opened")? - before;
    // What the prefix may open in this time, and a moment of the coarse clock more.
    let most = BURST + RATE * begun.elapsed().as_secs_f64() + 3.0 + NEWCOMERS as f64;
    assert!(
        opened as f64 <= most,
        "{opened} of {sent} were let in, not {most}"
    );
    assert_talking(&connections)?;
    assert_eq!(crowd::breaks(&newcomers), [""; 0]);
    stage.close();
    Ok(())
}
