//! Checks through the VIP: what keeps clients' packets from being served keeps the check from being answered, though the backend's host lives.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::address::Family;
use lab::config::Check;
use lab::frame::Segment;
use lab::namespace::Namespace;
use lab::packet_socket::Capture;
use lab::peer::crowd;
use lab::stage::Stage;
use lab::tether;
use lab::topology::{Place, Topology, UPLINK, backend_name};
use lab::wait;

const SOON: Duration = Duration::from_secs(15);
const PACE: Duration = Duration::from_millis(250);

/// Takes away, or gives back, what a backend needs to answer for the VIP.
type Change = fn(&Namespace, IpAddr) -> Result<()>;

fn remove_receiver(host: &Namespace, _: IpAddr) -> Result<()> {
    tether::succeed(host, &["decap", "--interface", UPLINK, "--detach"]).map(drop)
}

fn attach_receiver(host: &Namespace, _: IpAddr) -> Result<()> {
    tether::succeed(host, &["decap", "--interface", UPLINK]).map(drop)
}

/// The host forwards what is for the VIP then, to its router and so back to the balancer: the worst that it can do.
fn remove_vip(host: &Namespace, vip: IpAddr) -> Result<()> {
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        host.sysctl(&format!("net/{key}"), "1")?;
    }
    host.ip(&format!("address del {} dev lo", prefixed(vip)))
}

fn add_vip(host: &Namespace, vip: IpAddr) -> Result<()> {
    host.ip(&format!("address add {} dev lo", prefixed(vip)))
}

fn prefixed(vip: IpAddr) -> String {
    let length = if vip.is_ipv4() { 32 } else { 128 };
    format!("{vip}/{length}")
}

/// The ports from which the balancer has asked the VIP, by what was sent to a backend; each with whose segments they were, told by the outer header.
fn askers(stage: &Stage, capture: &Capture) -> BTreeSet<(u16, Option<IpAddr>)> {
    let of_check = |segment: &Segment| {
        segment.ip.destination == stage.config.vip
            && segment.tcp.destination == stage.config.port
            && !stage.lab.sources().contains(&segment.ip.source)
    };
    let segments = capture.segments().into_iter().filter(of_check);
    segments
        .map(|s| (s.tcp.source, s.outer.map(|outer| outer.destination)))
        .collect()
}

/// b1 no longer answers for the VIP, and later does again. Its host lives all the time, and others serve on.
fn breaks(family: Family, place: Place, has_vip: bool, take: Change, give: Change) -> Result<()> {
    let lab = Topology::new(place).in_family(family).build()?;
    let vip = lab.topology().vip();
    if has_vip {
        add_vip(lab.balancer(), vip)?;
    }
    let stage = Stage::on(lab, 61, |config| config.check = Check::ThroughVip)?;
    let captures = (0..3)
        .map(|index| Capture::start(stage.lab.router(), &backend_name(index)))
        .collect::<Result<Vec<_>>>()?;
    let connections = stage.clients.open(90, stage.plan().talking(PACE), |_| {})?;
    let others: Vec<_> = connections
        .iter()
        .filter(|c| c.backend().as_deref() != Some("b1"))
        .collect();
    assert!(others.len() > 20, "{} elsewhere", others.len());

    let b1 = &stage.lab.backends()[0];
    take(b1, vip)?;
    let status = stage
        .tether
        .wait_status("b1 is refusing", SOON, |s| s.health("b1") == "refusing")?;
    assert_eq!(
        (status.serving("b1"), status.health("b2")),
        ("existing-only", "up")
    );
    let error = status.backend("b1").and_then(|b1| b1.last_error.clone());
    let error = error.context("b1 has an error")?;
    let at = SocketAddr::new(vip, stage.config.port);
    let (by, doubt) = match place {
        Place::Farm => (
            "in a tunnel to",
            "does it take the tunnel's header off, and does it have the VIP?",
        ),
        _ => ("by the MAC of", "does it have the VIP?"),
    };
    let address = stage.config.backends[0].address;
    assert_eq!(
        error,
        format!(
            "a TCP connection at the VIP {at} {by} {address} got no answer to its SYN within 300 ms ({doubt})"
        )
    );
    // Well beyond `fall` checks: its host gives signs of life, so it must not become `down`.
    wait::holds("b1 is refusing, not down", Duration::from_secs(4), || {
        let status = stage.tether.status()?;
        Ok(status.health("b1") == "refusing" && status.health("b2") == "up")
    })?;
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    assert_eq!(crowd::on(&newcomers, "b1").len(), 0);
    assert_eq!(crowd::echo_all(others.iter().copied()), [""; 0]);

    give(b1, vip)?;
    stage
        .tether
        .wait_status("b1 serves again", SOON, |s| s.serving("b1") == "new")?;
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    assert!(!crowd::on(&newcomers, "b1").is_empty());
    assert_eq!(crowd::echo_all(others.iter().copied()), [""; 0]);
    assert_eq!(crowd::breaks(others.iter().copied()), [""; 0]);

    // Each backend was asked from one port, and that of no other: neither a check nor an answer of this host's own TCP went astray.
    let asked: Vec<_> = captures.iter().map(|one| askers(&stage, one)).collect();
    for (index, ports) in asked.iter().enumerate() {
        let spec = &stage.config.backends[index];
        let outer = (place == Place::Farm).then_some(spec.address);
        let to: Vec<_> = ports.iter().map(|(_, to)| *to).collect();
        assert_eq!(to, [outer], "{} was asked from {ports:?}", spec.name);
    }
    let ports: BTreeSet<u16> = asked.iter().flatten().map(|(port, _)| *port).collect();
    assert_eq!(ports.len(), asked.len(), "{asked:?}");
    stage.close();
    Ok(())
}

fn without_a_receiver(family: Family, has_vip: bool) -> Result<()> {
    breaks(
        family,
        Place::Farm,
        has_vip,
        remove_receiver,
        attach_receiver,
    )
}

fn without_the_vip(family: Family, has_vip: bool) -> Result<()> {
    breaks(family, Place::Segment, has_vip, remove_vip, add_vip)
}

#[test]
fn a_backend_without_a_receiver_is_refusing() -> Result<()> {
    without_a_receiver(Family::V4, false)
}

#[test]
fn a_backend_without_a_receiver_is_refusing_in_ipv6() -> Result<()> {
    without_a_receiver(Family::V6, false)
}

#[test]
fn an_ipv6_backend_without_a_receiver_is_refusing_for_ipv4_clients() -> Result<()> {
    without_a_receiver(Family::V4InV6, false)
}

#[test]
fn a_backend_without_a_receiver_is_refusing_though_the_balancer_has_the_vip() -> Result<()> {
    without_a_receiver(Family::V4, true)
}

#[test]
fn a_backend_without_the_vip_is_refusing() -> Result<()> {
    without_the_vip(Family::V4, false)
}

#[test]
fn a_backend_without_the_vip_is_refusing_in_ipv6() -> Result<()> {
    without_the_vip(Family::V6, false)
}

#[test]
fn a_backend_without_the_vip_is_refusing_though_the_balancer_has_it_in_ipv6() -> Result<()> {
    without_the_vip(Family::V6, true)
}
