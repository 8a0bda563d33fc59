//! Large transfers: every byte there and back, on half-closed streams, and over a path that carries less than the links at its
//! ends.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::address::{Family, Network, mac_of};
use lab::frame::{Segment, flags};
use lab::packet_socket::Capture;
use lab::peer::backend::Backend;
use lab::peer::{exchange, raw};
use lab::stage::Stage;
use lab::topology::{BALANCER_PORT, CLIENT_PORT, Place, Topology};
use lab::wait;
use lb_common::net::IpVersion;

/// No read or write may take this long.
const PATIENCE: Duration = Duration::from_secs(20);
const LARGE: u64 = 100_000_000;
/// Enough for many full segments and several windows, and few enough to capture.
const MODERATE: u64 = 5_000_000;
const NARROW_MTU: u16 = 1400;

/// Exchanges with whichever backend it is.
fn exchange(stage: &Stage, length: u64) -> Result<()> {
    let stream = raw::connect(stage.lab.client(), stage.target(), PATIENCE)?;
    exchange::run(stream, length, length)
}

/// Whether the balancer has sent a segment of a client's on.
fn is_toward_a_backend(stage: &Stage, segment: &Segment) -> bool {
    let topology = stage.lab.topology();
    let balancer = topology.balancer_address();
    let mut backends = (0..topology.backends).map(|index| topology.backend_address(index));
    let is_addressed = if topology.place.is_translated() {
        backends.any(|backend| segment.ip.destination == backend)
    } else {
        segment.ip.destination == stage.config.vip
    };
    // What it sends them as well are its own checks of their health.
    is_addressed && segment.mac_source == mac_of(balancer) && segment.ip.source != balancer
}

/// What the client acknowledges after its FIN goes where everything before went.
fn carries_a_half_closed_stream(stage: &Stage) -> Result<()> {
    let capture = Capture::start(stage.lab.router(), BALANCER_PORT)?;
    exchange(stage, MODERATE)?;
    let mut left = capture.stop();
    left.retain(|s| is_toward_a_backend(stage, s));
    let fin = left.iter().position(|s| s.tcp.has(flags::FIN));
    let (before, after) = left.split_at(1 + fin.context("the client's FIN is on the wire")?);
    let acknowledged: BTreeSet<_> = after.iter().map(|s| s.tcp.ack).collect();
    assert!(acknowledged.len() > 10, "{acknowledged:?}");
    let homes: BTreeSet<_> = before
        .iter()
        .chain(after)
        .map(|s| {
            let outer = s.outer.map(|outer| outer.destination);
            (outer, s.ip.destination, s.mac_destination)
        })
        .collect();
    assert_eq!(homes.len(), 1, "{homes:?}");
    Ok(())
}

/// What the client sends after the backend's FIN goes where everything before went: one backend has all of it.
fn carries_what_follows_the_backends_end(stage: &Stage) -> Result<()> {
    let stream = raw::connect(stage.lab.client(), stage.target(), PATIENCE)?;
    exchange::run_backend_first(stream, MODERATE, MODERATE)?;
    wait::until("a backend has every byte", PATIENCE, || {
        let exchanged: u64 = stage.backends.iter().map(Backend::exchanged).sum();
        (exchanged == 1).then_some(())
    })
}

/// In the middle of every path the router carries [`NARROW_MTU`] and no more. Backends are set up for that as the README says:
/// their route to clients has its MTU, and tells clients of a segment that leaves room for the second header.
fn passes_a_narrow_middle(stage: &Stage) -> Result<()> {
    let Topology { place, family, .. } = stage.lab.topology();
    let router = stage.lab.router();
    for version in IpVersion::ALL {
        for (network, way) in [
            (Network::Clients, "dev client".to_owned()),
            (Network::Farm, "dev farm".to_owned()),
            (
                Network::Vips,
                format!("via {}", Network::Segment.host(version, 2)),
            ),
        ] {
            let prefix = network.prefix(version);
            router.ip(&format!(
                "route del {prefix} {way}\nroute add {prefix} {way} mtu lock {NARROW_MTU}"
            ))?;
        }
    }
    let second = match (place, family.backends()) {
        (Place::Segment | Place::Hidden | Place::Behind, _) => 0,
        (Place::Farm, IpVersion::V4) => 20,
        (Place::Farm, IpVersion::V6) => 40,
    };
    let version = family.vip();
    let first = match version {
        IpVersion::V4 => 20,
        IpVersion::V6 => 40,
    };
    let gateway = place.gateway(version);
    for backend in stage.lab.backends() {
        backend.ip(&format!(
            "route change default via {gateway} mtu {NARROW_MTU} advmss {}",
            NARROW_MTU - second - first - 20
        ))?;
    }

    let requests = Capture::start(router, BALANCER_PORT)?;
    let replies = Capture::start(router, CLIENT_PORT)?;
    exchange(stage, MODERATE)?;

    let longest = |capture: Capture, wanted: &dyn Fn(&Segment) -> bool| {
        let segments = capture.stop().into_iter().filter(wanted);
        segments.map(|s| s.outer.unwrap_or(s.ip).length).max()
    };
    // As long as the path allows, and no longer: nothing was wasted, and nothing was lost for its length.
    let sent = longest(requests, &|s| is_toward_a_backend(stage, s));
    assert_eq!(sent, Some(NARROW_MTU));
    let answered = longest(replies, &|s| s.ip.source == stage.config.vip);
    assert_eq!(answered, Some(NARROW_MTU));
    assert_eq!(stage.tether.status()?.packets("too_big"), 0);
    Ok(())
}

/// All of it, in one mode and family.
fn transfers(place: Place, family: Family, seed: u64) -> Result<()> {
    let stage = Stage::set(Topology::new(place).in_family(family), seed, |_| {})?;
    let status = raw::http_status(stage.lab.client(), stage.target(), "/", PATIENCE)?;
    assert_eq!(status, 200);
    exchange(&stage, LARGE).context("100 MB each way")?;
    carries_a_half_closed_stream(&stage)?;
    carries_what_follows_the_backends_end(&stage)?;
    passes_a_narrow_middle(&stage)?;
    stage
        .tether
        .wait_status("all five have ended", PATIENCE, |s| {
            (s.flows.closing, s.flows.young) == (5, 0)
        })?;
    stage.close();
    Ok(())
}

#[test]
fn by_ipip() -> Result<()> {
    transfers(Place::Farm, Family::V4, 81)
}

#[test]
fn by_ipip_in_ipv6() -> Result<()> {
    transfers(Place::Farm, Family::V6, 82)
}

#[test]
fn by_ipip_from_ipv4_clients_to_ipv6_backends() -> Result<()> {
    transfers(Place::Farm, Family::V4InV6, 83)
}

#[test]
fn by_l2() -> Result<()> {
    transfers(Place::Segment, Family::V4, 84)
}

#[test]
fn by_l2_in_ipv6() -> Result<()> {
    transfers(Place::Segment, Family::V6, 85)
}

#[test]
fn by_nat() -> Result<()> {
    transfers(Place::Hidden, Family::V4, 86)
}

#[test]
fn by_nat_in_ipv6() -> Result<()> {
    transfers(Place::Hidden, Family::V6, 87)
}

#[test]
fn by_dnat() -> Result<()> {
    transfers(Place::Behind, Family::V4, 88)
}

#[test]
fn by_dnat_in_ipv6() -> Result<()> {
    transfers(Place::Behind, Family::V6, 89)
}
