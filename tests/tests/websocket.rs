//! WebSocket clients reach their backends through the XDP program, and the frames on the wire are what the mode says.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::address::{Family, Network, mac_of};
use lab::frame::{Discovery, Segment, flags};
use lab::namespace::Namespace;
use lab::packet_socket::Capture;
use lab::peer::backend::PORT;
use lab::peer::{crowd, raw};
use lab::stage::Stage;
use lab::status::Attachment;
use lab::topology::{BALANCER_PORT, CLIENT_PORT, Place, Topology, UPLINK, backend_name};
use lab::wait;
use lb_common::net::IpVersion;

const CONNECTIONS: usize = 300;
const SOON: Duration = Duration::from_secs(10);

/// What the balancer did with one packet: as it came, and as it left.
struct Steered {
    came: Segment,
    left: Segment,
}

/// What tells a packet of a client from every other.
fn key(segment: &Segment) -> impl Ord + use<> {
    let tcp = &segment.tcp;
    (
        (segment.ip.source, tcp.source),
        (tcp.seq, tcp.ack),
        (tcp.flags, tcp.payload.len()),
    )
}

/// Opens connections, lets each echo, and returns what passed the balancer's link meanwhile, packet by packet. On the way it
/// checks everything that both modes have in common.
fn steer(stage: &Stage) -> Result<Vec<Steered>> {
    let vip = stage.config.vip;
    let balancer = mac_of(stage.lab.topology().balancer_address());
    let capture = Capture::start(stage.lab.router(), BALANCER_PORT)?;
    let arrivals = stage
        .backends
        .iter()
        .map(|backend| Capture::start(stage.lab.router(), backend.name()))
        .collect::<Result<Vec<_>>>()?;
    let answers = Capture::start(stage.lab.router(), CLIENT_PORT)?;
    let connections = stage.clients.open(CONNECTIONS, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);

    let spread = crowd::spread(&connections);
    for backend in &stage.backends {
        let share = spread.get(backend.name()).copied().unwrap_or(0);
        assert!(share >= CONNECTIONS / 5, "an uneven spread: {spread:?}");
        assert_eq!(usize::try_from(backend.open())?, share);
    }
    let status = stage.tether.wait_counted(&connections, SOON)?;
    let native = Attachment {
        interface: UPLINK.into(),
        mode: "native".into(),
    };
    assert_eq!(status.attachments, [native]);

    // The backends answer clients directly.
    let vip_speaks = |s: &Segment| s.ip.source == vip;
    assert!(answers.stop().iter().any(vip_speaks));
    // Every packet that came has left, once the last of them has.
    let (came, left) = wait::until("every packet to the VIP leaves again", SOON, || {
        let mut came = BTreeMap::new();
        let mut left = BTreeMap::new();
        for segment in capture.segments() {
            assert!(
                !vip_speaks(&segment),
                "a reply passed the balancer: {segment:?}"
            );
            if segment.ip.destination != vip {
                continue;
            }
            let from_balancer = segment.mac_source == balancer;
            if from_balancer { &mut left } else { &mut came }.insert(key(&segment), segment);
        }
        (came.keys().eq(left.keys()) && !came.is_empty()).then_some((came, left))
    })?;

    let mut homes = BTreeMap::new();
    for connection in &connections {
        let life = connection.history().lives.remove(0);
        homes.insert(life.local, life.backend);
    }
    let steered: Vec<_> = came
        .into_values()
        .zip(left.into_values())
        .map(|(came, left)| Steered { came, left })
        .collect();
    assert!(
        steered.len() >= 4 * CONNECTIONS,
        "SYN, ACK, request, message: {}",
        steered.len()
    );
    for Steered { came, left } in &steered {
        assert_eq!(came.mac_destination, balancer);
        assert_eq!((came.outer, came.ip.ttl), (None, 63));
        assert_eq!(left.ip.ttl, 62, "the TTL is one less");
        assert!(left.ip.checksum_ok && left.tcp_checksum_ok, "{left:?}");
        assert_eq!(left.ip.length, came.ip.length);
        assert_eq!(
            (left.ip.source, left.ip.destination),
            (came.ip.source, came.ip.destination)
        );
        assert_eq!(left.tcp, came.tcp, "TCP is not touched");
    }
    // Each packet of a flow went where the flow's client heard a name from.
    for Steered { left, .. } in &steered {
        let client = SocketAddr::new(left.ip.source, left.tcp.source);
        let home = homes.get(&client).context("an unknown flow")?;
        let (index, _) = stage.backend(home)?;
        let address = stage.lab.topology().backend_address(index);
        match left.outer {
            Some(outer) => assert_eq!(outer.destination, address),
            None => assert_eq!(left.mac_destination, mac_of(address)),
        }
    }
    // And it got there as it left.
    let topology = stage.lab.topology();
    let mut arrived = wait::until("every packet arrives", SOON, || {
        let mut arrived = BTreeMap::new();
        for (arrival, index) in arrivals.iter().zip(0..) {
            let address = topology.backend_address(index);
            let segments = arrival.segments().into_iter();
            arrived.extend(segments.map(|s| (key(&s), (address, s))));
        }
        let all = steered.iter().all(|s| arrived.contains_key(&key(&s.left)));
        all.then_some(arrived)
    })?;
    for Steered { left, .. } in &steered {
        let (address, there) = arrived.remove(&key(left)).context("it arrived")?;
        assert_eq!(there.mac_destination, mac_of(address));
        assert_eq!((there.ip, &there.tcp), (left.ip, &left.tcp));
        let route = |segment: &Segment| segment.outer.map(|o| (o.source, o.destination, o.length));
        assert_eq!(route(&there), route(left));
        assert_eq!(
            there.outer.is_some(),
            stage.config.mode == "ipip",
            "{there:?}"
        );
    }
    Ok(steered)
}

/// Everything that an outer header says, for backends wherever they are.
fn encapsulates(family: Family, place: Place, seed: u64) -> Result<()> {
    let stage = Stage::set(Topology::new(place).in_family(family), seed, |config| {
        config.mode = "ipip";
    })?;
    let source = stage.lab.topology().balancer_address();
    let gateway = stage.lab.router_mac("segment")?;
    let mut labels = BTreeMap::new();
    for Steered { left, .. } in steer(&stage)? {
        let outer = left.outer.context("not encapsulated")?;
        assert_eq!((outer.source, outer.checksum_ok), (source, true));
        // RFC 2003 and RFC 2473: what is inside says so, and has its own hop limit.
        let (protocol, header) = match family {
            Family::V4 => (4, 20),
            Family::V6 => (41, 40),
            Family::V4InV6 => (4, 40),
        };
        assert_eq!((outer.protocol, outer.ttl), (protocol, 64));
        assert_eq!(outer.length, left.ip.length + header);
        let next_hop = match place {
            Place::Farm | Place::Hidden => gateway,
            Place::Segment | Place::Behind => mac_of(outer.destination),
        };
        assert_eq!(left.mac_destination, next_hop);
        let flow = (left.ip.source, left.tcp.source);
        let label = *labels.entry(flow).or_insert(outer.flow_label);
        assert_eq!(outer.flow_label, label, "one flow has one label");
    }
    let distinct: BTreeSet<_> = labels.values().copied().collect();
    match family.backends() {
        IpVersion::V4 => assert_eq!(distinct, BTreeSet::from([0])),
        // RFC 6438: what shares flows out by the label can tell them apart.
        IpVersion::V6 => {
            assert!(!distinct.contains(&0));
            assert!(distinct.len() > CONNECTIONS * 9 / 10, "{distinct:x?}");
        }
    }
    stage.close();
    Ok(())
}

#[test]
fn ipip_encapsulates_to_the_next_hop() -> Result<()> {
    encapsulates(Family::V4, Place::Farm, 11)
}

#[test]
fn ipip_encapsulates_ipv6_in_ipv6() -> Result<()> {
    encapsulates(Family::V6, Place::Farm, 15)
}

#[test]
fn ipip_encapsulates_ipv4_in_ipv6() -> Result<()> {
    encapsulates(Family::V4InV6, Place::Farm, 16)
}

#[test]
fn ipip_reaches_backends_on_the_link_too() -> Result<()> {
    encapsulates(Family::V4, Place::Segment, 12)
}

#[test]
fn ipip_reaches_backends_on_the_link_by_ipv6_too() -> Result<()> {
    encapsulates(Family::V6, Place::Segment, 17)
}

fn rewrites_macs_alone(family: Family, seed: u64) -> Result<()> {
    let stage = Stage::set(
        Topology::new(Place::Segment).in_family(family),
        seed,
        |_| {},
    )?;
    let balancer = mac_of(stage.lab.topology().balancer_address());
    for Steered { came, left } in steer(&stage)? {
        assert_eq!(left.outer, None);
        assert_eq!(left.mac_source, balancer);
        assert_eq!(left.ip.flow_label, came.ip.flow_label);
    }
    stage.close();
    Ok(())
}

#[test]
fn l2_rewrites_macs_alone() -> Result<()> {
    rewrites_macs_alone(Family::V4, 13)
}

#[test]
fn l2_rewrites_macs_alone_in_ipv6() -> Result<()> {
    rewrites_macs_alone(Family::V6, 18)
}

#[test]
fn what_is_not_for_the_vip_reaches_the_host() -> Result<()> {
    for (family, seed) in [(Family::V4, 14), (Family::V6, 19)] {
        is_answered_by_the_host(family, seed)?;
    }
    Ok(())
}

/// Why `target` could not be connected to.
fn refusal(host: &Namespace, target: IpAddr) -> Option<ErrorKind> {
    let refused = raw::connect(host, (target, PORT).into(), SOON);
    refused.err().map(|error| error.kind())
}

fn is_answered_by_the_host(family: Family, seed: u64) -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm).in_family(family), seed, |_| {})?;
    let balancer = stage.lab.topology().balancer_address();
    // Nobody listens on the balancer: its own stack answers with a RST, and to one that is not a service's too.
    let refused = Some(ErrorKind::ConnectionRefused);
    assert_eq!(refusal(stage.lab.client(), balancer), refused);
    // And what the balancer asks of others is answered: its health checks see every backend up.
    let status = stage.tether.status()?;
    for index in 0..3 {
        assert_eq!(status.health(&backend_name(index)), "up");
    }
    // No flow was made for it.
    assert_eq!(
        status.flows.embryo + status.flows.young + status.flows.pin,
        0
    );
    let capture = Capture::start(stage.lab.router(), BALANCER_PORT)?;
    assert_eq!(refusal(stage.lab.client(), balancer), refused);
    capture.wait_for("the balancer's own RST", SOON, |s| {
        s.ip.source == balancer && s.tcp.has(flags::RST) && s.ip.ttl == 64
    })?;
    stage.close();
    Ok(())
}

/// Both ask who the other is, and the frames that do so are on the balancer's side of the link what they are on the router's.
#[test]
fn neighbour_discovery_passes_untouched() -> Result<()> {
    let topology = Topology::new(Place::Farm).in_family(Family::V6);
    let stage = Stage::set(topology, 20, |_| {})?;
    let (router, balancer) = (stage.lab.router(), stage.lab.balancer());
    let outside = Capture::start(router, BALANCER_PORT)?;
    let inside = Capture::start(balancer, UPLINK)?;
    let addresses = [
        topology.balancer_address(),
        Network::Segment.gateway(IpVersion::V6),
    ];
    for (host, interface, peer) in [
        (router, "segment", addresses[0]),
        (balancer, UPLINK, addresses[1]),
    ] {
        host.ip(&format!("neighbour flush to {peer} dev {interface}"))?;
        assert_eq!(refusal(host, peer), Some(ErrorKind::ConnectionRefused));
    }
    let asked = addresses.map(|address| match address {
        IpAddr::V6(address) => [
            Discovery::Solicitation(address),
            Discovery::Advertisement(address),
        ],
        IpAddr::V4(_) => unreachable!("a lab in IPv6"),
    });
    wait::until("each asks and answers", SOON, || {
        // The capture outside, which began first, has all that the one inside has.
        let (inside, outside) = (inside.discoveries(), outside.discoveries());
        let all = asked.as_flattened().iter();
        let mut all = all.map(|wanted| inside.iter().any(|(seen, _)| seen == wanted));
        let untouched = inside.iter().all(|frame| outside.contains(frame));
        (all.all(|seen| seen) && untouched).then_some(())
    })?;
    stage.close();
    Ok(())
}
