//! The lab itself, without Tether.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::address::{self, Family, Network, mac_of};
use lab::frame::{Build, flags};
use lab::packet_socket::{Capture, FloodPlan, flood_with_syns, inject};
use lab::peer::backend::{Answer, Backend, HEALTH_PORT, PORT};
use lab::peer::client::{Break, Clients, Close, Plan};
use lab::peer::crowd;
use lab::peer::raw;
use lab::topology::{BALANCER_PORT, Lab, Place, Topology, UPLINK};
use lab::wait;
use lb_common::net::IpVersion;

const SOON: Duration = Duration::from_secs(5);

fn straight_to(lab: &Lab, index: u8) -> Plan {
    Plan::new(SocketAddr::new(lab.topology().backend_address(index), PORT))
}

#[test]
fn clients_talk_straight_to_a_backend_through_the_router() {
    talk_straight(Family::V4).unwrap();
    talk_straight(Family::V6).unwrap();
}

fn talk_straight(family: Family) -> Result<()> {
    let topology = Topology::new(Place::Farm).in_family(family);
    let lab = topology.build()?;
    let backend = Backend::start(&lab.backends()[0])?;
    let clients = Clients::start(lab.client(), lab.sources(), 1)?;
    let capture = Capture::start(lab.router(), "b1")?;

    let plan = straight_to(&lab, 0).talking(Duration::from_millis(20));
    let connections = clients.open(100, plan, |_| {})?;

    wait::until("every client got five echoes", SOON, || {
        connections
            .iter()
            .all(|c| c.history().lives[0].echoes >= 5)
            .then_some(())
    })?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    assert_eq!(
        crowd::spread(&connections),
        BTreeMap::from([("b1".to_owned(), 100)])
    );
    assert_eq!(backend.open(), 100);

    let segments = capture.stop();
    let syns: Vec<_> = segments
        .iter()
        .filter(|s| s.tcp.has(flags::SYN) && !s.tcp.has(flags::ACK))
        .collect();
    assert!(syns.len() >= 100, "{} SYNs seen", syns.len());
    for syn in syns {
        assert!(lab.sources().contains(&syn.ip.source), "{syn:?}");
        assert_eq!(
            (syn.outer, syn.ip.ttl, syn.ip.checksum_ok),
            (None, 63, true)
        );
        assert_eq!(
            syn.mac_destination,
            mac_of(lab.topology().backend_address(0))
        );
    }
    Ok(())
}

#[test]
fn a_link_that_dies_is_silent_and_can_come_back() {
    let lab = Topology::new(Place::Segment).build().unwrap();
    let _backend = Backend::start(&lab.backends()[1]).unwrap();
    let clients = Clients::start(lab.client(), lab.sources(), 2).unwrap();
    let mut plan = straight_to(&lab, 1);
    plan.patience = Duration::from_millis(500);
    let waits = clients.open_one(plan).unwrap();
    let breaks = clients.open_one(plan).unwrap();

    lab.darken(1).unwrap();
    let error = breaks.echo().unwrap_err().to_string();
    assert!(error.contains("no echo"), "{error}");
    let history = breaks.history();
    let end = history.lives[0].end.as_ref().unwrap();
    assert_eq!(end.why, Some(Break::NoEcho));
    assert!(end.unanswered.is_some());

    lab.brighten(1).unwrap();
    waits.echo().unwrap();
}

#[test]
fn a_client_that_is_reset_tells_why_and_connects_again() {
    resets_a_client(Family::V4).unwrap();
    resets_a_client(Family::V6).unwrap();
}

fn resets_a_client(family: Family) -> Result<()> {
    let topology = Topology::new(Place::Farm).in_family(family);
    let lab = topology.build()?;
    let _backend = Backend::start(&lab.backends()[0])?;
    let clients = Clients::start(lab.client(), &lab.sources()[..1], 3)?;
    let connection = clients.open_one(straight_to(&lab, 0).reconnecting())?;
    let first = connection.history().lives[0].clone();

    // Forge the backend's RST with the number that the client expects: one past the last byte that the backend sent.
    let capture = Capture::start(lab.router(), "client")?;
    connection.echo()?;
    let sent = capture.stop();
    let last = sent
        .iter()
        .rfind(|s| s.ip.destination == first.local.ip())
        .context("the echo is on the wire")?;
    let forged = Build {
        mac_destination: last.mac_destination,
        mac_source: last.mac_source,
        source: (last.ip.source, last.tcp.source).into(),
        destination: (last.ip.destination, last.tcp.destination).into(),
        seq: last
            .tcp
            .seq
            .wrapping_add(u32::try_from(last.tcp.payload.len())?),
        ack: 0,
        flags: flags::RST,
    };
    inject(lab.router(), "client", vec![forged.frame(&[])])?;

    let history = wait::until("the client has a second life", SOON, || {
        let history = connection.history();
        (history.lives.len() == 2).then_some(history)
    })?;
    let (life, why) = history.breaks().next().context("the first life broke")?;
    assert_eq!((life.local, why), (first.local, &Break::Reset));
    connection.echo()?;
    Ok(())
}

#[test]
fn clients_close_in_three_ways() {
    let lab = Topology::new(Place::Farm).build().unwrap();
    let backend = Backend::start(&lab.backends()[0]).unwrap();
    let clients = Clients::start(lab.client(), lab.sources(), 4).unwrap();
    for (how, ends) in [
        (Close::Orderly, true),
        (Close::Abort, true),
        (Close::Vanish, false),
    ] {
        let connection = clients.open_one(straight_to(&lab, 0)).unwrap();
        let local = connection.history().lives[0].local;
        let open = backend.open();
        let capture = Capture::start(lab.router(), "b1").unwrap();
        connection.close(how).unwrap();
        assert!(connection.echo().is_err());
        // Another connection's packets mark the moment up to which the closed one has been silent.
        clients
            .open_one(straight_to(&lab, 0))
            .unwrap()
            .close(Close::Orderly)
            .unwrap();
        let mut segments = capture.stop();
        segments.retain(|s| s.ip.source == local.ip() && s.tcp.source == local.port());
        let flagged = |bits| segments.iter().any(|s| s.tcp.has(bits));
        assert_eq!(flagged(flags::FIN), how == Close::Orderly, "{how:?}");
        assert_eq!(flagged(flags::RST), how == Close::Abort, "{how:?}");
        assert_eq!(segments.is_empty(), how == Close::Vanish, "{how:?}");
        if ends {
            wait::until("the backend sees the end", SOON, || {
                (backend.open() == open - 1).then_some(())
            })
            .unwrap();
        }
    }
}

#[test]
fn a_backend_answers_checks_as_it_is_told() {
    let lab = Topology::new(Place::Farm).build().unwrap();
    let backend = Backend::start(&lab.backends()[0]).unwrap();
    let clients = Clients::start(lab.client(), lab.sources(), 5).unwrap();
    let connection = clients.open_one(straight_to(&lab, 0)).unwrap();
    let address = lab.topology().backend_address(0);
    let ask =
        |port, patience| raw::http_status(lab.balancer(), (address, port).into(), "/", patience);
    for port in [PORT, HEALTH_PORT] {
        assert_eq!(ask(port, SOON).unwrap(), 200);
    }
    backend.answer(Answer::Status(503));
    assert_eq!(ask(PORT, SOON).unwrap(), 503);
    backend.answer(Answer::Hang);
    assert!(ask(PORT, Duration::from_millis(300)).is_err());
    backend.close_listeners().unwrap();
    let refused = raw::connect(lab.balancer(), (address, PORT).into(), SOON).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    connection.echo().unwrap();
    backend.answer(Answer::Status(200));
    backend.open_listeners().unwrap();
    assert_eq!(ask(HEALTH_PORT, SOON).unwrap(), 200);
}

#[test]
fn a_flood_comes_from_its_prefix_and_reaches_the_balancer() {
    floods(Family::V4).unwrap();
    floods(Family::V6).unwrap();
}

fn floods(family: Family) -> Result<()> {
    let lab = Topology::new(Place::Farm).in_family(family).build()?;
    let capture = Capture::start(lab.router(), BALANCER_PORT)?;
    let prefix = address::spoofed(family.vip());
    let plan = FloodPlan {
        prefix,
        target: (lab.topology().vip(), PORT).into(),
        macs: (mac_of(lab.sources()[0]), lab.router_mac("client")?),
        rate: 5_000,
        seed: 6,
    };
    let flood = flood_with_syns(lab.client(), UPLINK, plan)?;
    wait::until("a thousand SYNs", SOON, || {
        (flood.sent() >= 1_000).then_some(())
    })?;
    let sent = flood.stop()?;

    let segments = capture.stop();
    assert!(
        segments.len() * 10 >= usize::try_from(sent)? * 9,
        "{} of {sent}",
        segments.len()
    );
    let mut sources = std::collections::BTreeSet::new();
    for segment in &segments {
        assert!(segment.tcp.has(flags::SYN) && segment.ip.checksum_ok);
        match (segment.ip.source, prefix) {
            (IpAddr::V4(source), (IpAddr::V4(_), 15)) => {
                assert!(matches!(source.octets(), [198, 18..=19, ..]), "{source}");
            }
            (IpAddr::V6(source), (IpAddr::V6(_), 48)) => {
                assert_eq!(source.segments()[..3], [0x2001, 2, 0]);
            }
            other => panic!("not as planned: {other:?}"),
        }
        let balancer = lab.topology().balancer_address();
        assert_eq!(segment.mac_destination, mac_of(balancer));
        sources.insert(segment.ip.source);
    }
    assert!(sources.len() > 900, "{} sources", sources.len());
    Ok(())
}

/// A backend has the VIP and says so to nobody, neither by ARP nor by NDP.
#[test]
fn no_backend_claims_the_vip() {
    let lab = Topology::new(Place::Segment).build().unwrap();
    let router = lab.router();
    for family in ["ipv4", "ipv6"] {
        // It gives up after one question.
        let questions = format!("net/{family}/neigh/segment/mcast_solicit");
        router.sysctl(&questions, "1").unwrap();
    }
    let resolves = |address: IpAddr| {
        // The packet is only to make the router ask.
        let _ = raw::connect(router, (address, PORT).into(), Duration::from_millis(200));
        let line = format!("ip neighbour show to {address} dev segment");
        wait::until_seen(
            "the router has its answer, or gives up",
            SOON,
            || router.sh(&line),
            |said| said.contains("lladdr") || said.contains("FAILED"),
        )
        .unwrap()
        .contains("lladdr")
    };
    for version in IpVersion::ALL {
        let backend = Network::Segment.host(version, 11);
        assert!(resolves(backend), "{backend}");
        let vip = address::vip(version);
        router.ip(&format!("route add {vip} dev segment")).unwrap();
        assert!(!resolves(vip), "{vip}");
        let said = lab.backends()[0].sh("ip address show dev lo").unwrap();
        assert!(said.contains(&vip.to_string()), "{said}");
    }
}
