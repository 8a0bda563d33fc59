//! Modes `nat` and `dnat` on the wire: what the balancer makes of clients' packets and of backends' replies, and what it leaves alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::address::{Family, Network, mac_of};
use lab::frame::{Segment, flags};
use lab::packet_socket::Capture;
use lab::peer::backend::PORT;
use lab::peer::{crowd, raw};
use lab::stage::Stage;
use lab::status::Status;
use lab::topology::{BALANCER_PORT, CLIENT_PORT, Place, Topology};
use lab::wait;
use lb_common::net::IpVersion;

const CONNECTIONS: usize = 200;
const SOON: Duration = Duration::from_secs(10);

/// What tells a segment of these connections from every other, whatever becomes of its addresses and ports.
fn key(segment: &Segment) -> (u32, u32, u8, Vec<u8>) {
    let tcp = &segment.tcp;
    (tcp.seq, tcp.ack, tcp.flags, tcp.payload.clone())
}

fn ends(segment: &Segment) -> [SocketAddr; 2] {
    [
        SocketAddr::new(segment.ip.source, segment.tcp.source),
        SocketAddr::new(segment.ip.destination, segment.tcp.destination),
    ]
}

/// A segment as it came to the balancer and as it left.
struct Passed {
    came: Segment,
    left: Segment,
}

/// Every segment that came to the balancer for one that `came` knows, with the one that left for it, once all have.
fn passed(
    capture: &Capture,
    stage: &Stage,
    came: impl Fn(&Segment) -> bool,
    left: impl Fn(&Segment) -> bool,
) -> Result<Vec<Passed>> {
    let balancer = mac_of(stage.lab.topology().balancer_address());
    wait::until("what came has left", SOON, || {
        let (mut coming, mut leaving) = (BTreeMap::new(), BTreeMap::new());
        for segment in capture.segments() {
            if segment.mac_source == balancer {
                if left(&segment) {
                    leaving.insert(key(&segment), segment);
                }
            } else if came(&segment) {
                coming.insert(key(&segment), segment);
            }
        }
        if coming.len() < 3 * CONNECTIONS || !coming.keys().eq(leaving.keys()) {
            return None;
        }
        let pairs = coming.into_values().zip(leaving.into_values());
        Some(pairs.map(|(came, left)| Passed { came, left }).collect())
    })
}

/// Only addresses, ports, TTL and checksums differ (captures show the checksums that receivers would verify).
fn assert_else_untouched(Passed { came, left }: &Passed) {
    assert_eq!(left.ip.ttl, came.ip.ttl - 1);
    assert!(left.ip.checksum_ok && left.tcp_checksum_ok, "{left:?}");
    assert!(came.tcp_checksum_ok, "{came:?}");
    assert_eq!(left.ip.length, came.ip.length);
    assert_eq!(left.ip.flow_label, came.ip.flow_label);
    assert_eq!((left.outer, came.outer), (None, None));
}

fn translates(place: Place, family: Family, seed: u64) -> Result<()> {
    let stage = Stage::set(Topology::new(place).in_family(family), seed, |_| {})?;
    let topology = stage.lab.topology();
    let (target, hides) = (stage.target(), place == Place::Hidden);
    let backends: BTreeSet<SocketAddr> = (0..topology.backends)
        .map(|index| SocketAddr::new(topology.backend_address(index), PORT))
        .collect();
    assert_ne!(target.port(), PORT, "the port is translated too");

    // A reply for which the balancer must first ask for its router's MAC is forwarded by its kernel, which counts as one more hop.
    let gateway = (Network::Segment.gateway(family.vip()), PORT).into();
    let refused = raw::connect(stage.lab.balancer(), gateway, SOON);
    assert!(refused.is_err());

    let capture = Capture::start(stage.lab.router(), BALANCER_PORT)?;
    let seen_by_clients = Capture::start(stage.lab.router(), CLIENT_PORT)?;
    let seen_by_backends = stage
        .backends
        .iter()
        .map(|backend| Capture::start(stage.lab.router(), backend.name()))
        .collect::<Result<Vec<_>>>()?;
    let connections = stage.clients.open(CONNECTIONS, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    let spread = crowd::spread(&connections);
    assert_eq!(spread.len(), stage.backends.len(), "{spread:?}");

    let from_client = |s: &Segment| stage.lab.sources().contains(&s.ip.source);
    let is_client = |end: SocketAddr| stage.lab.sources().contains(&end.ip());
    // The balancer's own checks have another address.
    let own = topology.balancer_address();
    let to_backend = |s: &Segment| backends.contains(&ends(s)[1]) && s.ip.source != own;
    let from_backend = |s: &Segment| backends.contains(&ends(s)[0]) && s.ip.destination != own;
    let requests = passed(
        &capture,
        &stage,
        |s| from_client(s) && ends(s)[1] == target,
        to_backend,
    )?;
    // One port each, and a backend for life.
    let mut flows: BTreeMap<SocketAddr, [SocketAddr; 2]> = BTreeMap::new();
    for request in &requests {
        assert_else_untouched(request);
        let [client, _] = ends(&request.came);
        let [source, backend] = ends(&request.left);
        if hides {
            assert_eq!(source.ip(), topology.snat_address());
            assert!(source.port() >= 1_024);
        } else {
            assert_eq!(source, client);
        }
        let known = flows.entry(client).or_insert([source, backend]);
        assert_eq!(*known, [source, backend], "{client}");
    }
    assert_eq!(flows.len(), CONNECTIONS);
    let distinct: BTreeSet<_> = flows.values().collect();
    assert_eq!(
        distinct.len(),
        CONNECTIONS,
        "no two flows look alike to a backend"
    );

    let to_source = |s: &Segment| {
        let [from, to] = ends(s);
        flows.values().any(|flow| *flow == [to, from])
    };
    let replies = passed(
        &capture,
        &stage,
        |s| from_backend(s) && to_source(s),
        |s| ends(s)[0] == target,
    )?;
    for reply in &replies {
        assert_else_untouched(reply);
        let [_, client] = ends(&reply.left);
        let [backend, source] = ends(&reply.came);
        assert_eq!(flows[&client], [source, backend]);
    }
    // A client talks to the VIP and to nobody else.
    for segment in seen_by_clients.stop() {
        let [source, destination] = ends(&segment);
        let is_theirs = is_client(source) && destination == target;
        assert!(
            is_theirs || (source == target && is_client(destination)),
            "{segment:?}"
        );
    }
    // And a backend with its flows, as they look to it, beside the balancer's own checks.
    for (capture, backend) in seen_by_backends.into_iter().zip(&backends) {
        let mut seen = BTreeSet::new();
        for segment in capture.stop() {
            let [source, destination] = ends(&segment);
            assert!(source != target && destination != target, "{segment:?}");
            let flow = if destination == *backend {
                [source, destination]
            } else if source == *backend {
                [destination, source]
            } else {
                // A bridge shows everybody what is for one that it does not know yet.
                continue;
            };
            if flow[0].ip() != own {
                seen.insert(flow);
            }
        }
        let own_flows = flows.values().filter(|flow| flow[1] == *backend);
        assert_eq!(seen, own_flows.copied().collect(), "{backend}");
    }

    let status = stage
        .tether
        .wait_status("every flow is a pin", SOON, |status| {
            status.flows.pin == CONNECTIONS as u64
        })?;
    assert_eq!(status.flows.young, 0, "the handshake proves them at once");
    assert!(status.packets("reply") >= 2 * CONNECTIONS as u64);
    for reason in [
        "untranslated",
        "no_route_back",
        "no_port",
        "unrecorded",
        "collision",
    ] {
        assert_eq!(status.packets(reason), 0, "{reason}");
    }
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn nat_hides_clients() -> Result<()> {
    translates(Place::Hidden, Family::V4, 91)
}

#[test]
fn nat_hides_clients_in_ipv6() -> Result<()> {
    translates(Place::Hidden, Family::V6, 92)
}

#[test]
fn dnat_keeps_clients_addresses() -> Result<()> {
    translates(Place::Behind, Family::V4, 93)
}

#[test]
fn dnat_keeps_clients_addresses_in_ipv6() -> Result<()> {
    translates(Place::Behind, Family::V6, 94)
}

/// The SNAT address is the host's as well: what belongs to no flow is answered by its stack, and what it connects to from there answers it.
fn leaves_the_hosts_own_alone(family: Family, seed: u64) -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Hidden).in_family(family), seed, |_| {})?;
    let connections = stage.clients.open(30, stage.plan(), |_| {})?;
    let snat = stage.lab.topology().snat_address();
    let capture = Capture::start(stage.lab.router(), BALANCER_PORT)?;
    for host in [stage.lab.client(), &stage.lab.backends()[0]] {
        let refused = raw::connect(host, (snat, PORT).into(), SOON);
        let refused = refused.err().map(|error| error.kind());
        assert_eq!(
            refused,
            Some(ErrorKind::ConnectionRefused),
            "{}",
            host.name()
        );
    }
    capture.wait_for("the host's own RST", SOON, |s| {
        s.ip.source == snat && s.tcp.has(flags::RST)
    })?;
    let backend = SocketAddr::new(stage.lab.topology().backend_address(0), PORT);
    let said = stage
        .lab
        .balancer()
        .sh(&format!("curl --silent --show-error --max-time 10 --output /dev/null --write-out %{{http_code}} --interface {snat} http://{backend}/"))
        .context("the balancer connects from its SNAT address")?;
    assert_eq!(said.trim(), "200");
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn the_hosts_own_connections_with_a_snat_address_go_on() -> Result<()> {
    leaves_the_hosts_own_alone(Family::V4, 95)
}

#[test]
fn the_hosts_own_connections_with_a_snat_address_go_on_in_ipv6() -> Result<()> {
    leaves_the_hosts_own_alone(Family::V6, 96)
}

/// Replies take the kernel's routes, which it has only where it forwards.
#[test]
fn an_interface_that_does_not_forward_is_named_until_it_does() -> Result<()> {
    let lab = Topology::new(Place::Hidden).build()?;
    let balancer = lab.balancer().clone();
    let switch = |on| balancer.sysctl("net/ipv4/conf/eth0/forwarding", on);
    switch("0")?;
    let stage = Stage::on(lab, 97, |_| {})?;
    let error = |status: &Status| {
        status
            .services
            .first()
            .and_then(|service| service.error.clone())
    };
    let status = stage
        .tether
        .wait_status("it is named", SOON, |status| error(status).is_some())?;
    let said = error(&status).context("an error")?;
    assert!(
        said.contains("`sysctl -w net.ipv4.conf.eth0.forwarding=1`"),
        "{said}"
    );
    assert!(stage.clients.open_one(stage.plan()).is_err());
    let status = stage.tether.wait_status("it is counted", SOON, |status| {
        status.packets("no_route_back") > 0
    })?;
    assert_eq!(status.packets("reply"), 0);

    switch("1")?;
    stage
        .tether
        .wait_status("it is well", SOON, |status| error(status).is_none())?;
    let connections = stage.clients.open(30, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    stage.close();
    Ok(())
}

/// What either side tells the other of its segments fits the ways that these take behind the balancer, so that nobody has to learn that from an error.
fn tells_each_side_what_fits(place: Place, family: Family, seed: u64) -> Result<()> {
    const TO_BACKENDS: u16 = 1400;
    const TO_CLIENTS: u16 = 1300;
    let topology = Topology::new(place).in_family(family);
    let lab = topology.build()?;
    let version = family.vip();
    let gateway = Network::Segment.gateway(version);
    let (length, headers) = match version {
        IpVersion::V4 => (32, 40),
        IpVersion::V6 => (128, 60),
    };
    let way = match place {
        Place::Behind => "dev eth0".to_owned(),
        _ => format!("via {gateway}"),
    };
    let backends: Vec<_> = (0..topology.backends)
        .map(|index| topology.backend_address(index))
        .collect();
    for backend in &backends {
        lab.balancer().ip(&format!(
            "route add {backend}/{length} {way} mtu lock {TO_BACKENDS}"
        ))?;
    }
    lab.balancer().ip(&format!(
        "route add {} via {gateway} mtu lock {TO_CLIENTS}",
        Network::Clients.prefix(version)
    ))?;
    let stage = Stage::on(lab, seed, |_| {})?;
    // Of a way whose next hop's MAC the kernel does not know it does not tell the MTU either.
    let refused = raw::connect(stage.lab.balancer(), (gateway, PORT).into(), SOON);
    assert!(refused.is_err());

    let at_balancer = Capture::start(stage.lab.router(), BALANCER_PORT)?;
    let at_clients = Capture::start(stage.lab.router(), CLIENT_PORT)?;
    let connections = stage.clients.open(20, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    let (at_balancer, at_clients) = (at_balancer.stop(), at_clients.stop());

    let own = topology.balancer_address();
    let vip = stage.config.vip;
    let is_syn = |s: &Segment| s.tcp.has(flags::SYN) && !s.tcp.has(flags::ACK);
    let is_answer = |s: &Segment| s.tcp.has(flags::SYN | flags::ACK);
    let told = |segments: &[Segment], wanted: &dyn Fn(&Segment) -> bool| {
        let wanted = segments.iter().filter(|s| wanted(s));
        let told = wanted.map(|s| (s.tcp.mss, s.tcp_checksum_ok));
        told.collect::<BTreeSet<_>>()
    };
    let only = |mss: u16| BTreeSet::from([(Some(mss), true)]);
    // As the hosts' links are: 1500 bytes at clients, 1600 at backends.
    let asked = told(&at_balancer, &|s| is_syn(s) && s.ip.destination == vip);
    assert_eq!(asked, only(1500 - headers));
    let passed_on = told(&at_balancer, &|s| {
        is_syn(s) && backends.contains(&s.ip.destination) && s.ip.source != own
    });
    assert_eq!(passed_on, only(TO_CLIENTS - headers));
    let answered = told(&at_balancer, &|s| {
        is_answer(s) && backends.contains(&s.ip.source) && s.ip.destination != own
    });
    assert_eq!(answered, only(1600 - headers));
    let received = told(&at_clients, &|s| is_answer(s) && s.ip.source == vip);
    assert_eq!(received, only(TO_BACKENDS - headers));
    stage.close();
    Ok(())
}

#[test]
fn nat_tells_each_side_what_fits() -> Result<()> {
    tells_each_side_what_fits(Place::Hidden, Family::V4, 98)
}

#[test]
fn nat_tells_each_side_what_fits_in_ipv6() -> Result<()> {
    tells_each_side_what_fits(Place::Hidden, Family::V6, 99)
}

#[test]
fn dnat_tells_each_side_what_fits() -> Result<()> {
    tells_each_side_what_fits(Place::Behind, Family::V4, 100)
}

#[test]
fn dnat_tells_each_side_what_fits_in_ipv6() -> Result<()> {
    tells_each_side_what_fits(Place::Behind, Family::V6, 101)
}
