//! Modes `nat` and `dnat` over a path that narrows in the middle, without anybody having been told: the router says so of the first packet that is too
//! long, about addresses that its sender knows nothing of, and the balancer tells the sender of the packet that it has sent.

use std::time::Duration;

use anyhow::Result;
use lab::address::{Family, Network};
use lab::namespace::Namespace;
use lab::peer::{exchange, raw};
use lab::stage::Stage;
use lab::topology::{Place, Topology};
use lb_common::net::IpVersion;

/// No read or write may take this long.
const PATIENCE: Duration = Duration::from_secs(20);
/// Many full segments each way.
const LENGTH: u64 = 5_000_000;
const NARROW_MTU: u16 = 1400;

/// Narrows the router's ways to clients and to backends. In mode `dnat` these are on the balancer's segment: there the balancer reaches them by the
/// router, which is one that reaches clients by the balancer, as all that is behind it does.
fn narrow(topology: Topology, router: &Namespace, balancer: &Namespace) -> Result<()> {
    let version = topology.family.vip();
    let clients = Network::Clients.prefix(version);
    router.ip(&format!(
        "route del {clients} dev client\nroute add {clients} dev client mtu lock {NARROW_MTU}"
    ))?;
    let (device, length) = match (topology.place, version) {
        (Place::Behind, IpVersion::V4) => ("segment", 32),
        (Place::Behind, IpVersion::V6) => ("segment", 128),
        _ => ("farm", 0),
    };
    if length == 0 {
        let farm = Network::Farm.prefix(version);
        return router.ip(&format!(
            "route del {farm} dev {device}\nroute add {farm} dev {device} mtu lock {NARROW_MTU}"
        ));
    }
    let gateway = Network::Segment.gateway(version);
    for backend in (0..topology.backends).map(|index| topology.backend_address(index)) {
        router.ip(&format!(
            "route add {backend}/{length} dev {device} mtu lock {NARROW_MTU}"
        ))?;
        balancer.ip(&format!("route add {backend}/{length} via {gateway}"))?;
    }
    for device in ["all", "segment"] {
        router.sysctl(&format!("net/ipv4/conf/{device}/send_redirects"), "0")?;
    }
    let family = match version {
        IpVersion::V4 => "-4",
        IpVersion::V6 => "-6",
    };
    let way = topology.balancer_address();
    router.sh(&format!("ip {family} route add default via {way} table 7"))?;
    router.sh(&format!(
        "ip {family} rule add iif lo to {clients} lookup 7"
    ))?;
    Ok(())
}

/// Whether a host has learned that its way to an address is narrow.
fn has_learned(host: &Namespace, address: std::net::IpAddr) -> Result<bool> {
    let told = host.sh(&format!("ip route get {address}"))?;
    Ok(told.contains(&format!("mtu {NARROW_MTU}")))
}

fn both_sides_learn(place: Place, family: Family, seed: u64) -> Result<()> {
    let topology = Topology::new(place).in_family(family);
    let lab = topology.build()?;
    narrow(topology, lab.router(), lab.balancer())?;
    let stage = Stage::on(lab, seed, |_| {})?;
    let client = stage.lab.client();
    let stream = raw::connect(client, stage.target(), PATIENCE)?;
    let source = stream.local_addr()?.ip();
    assert!(!has_learned(client, stage.config.vip)?);
    exchange::run(stream, LENGTH, LENGTH)?;

    assert!(has_learned(client, stage.config.vip)?, "the client");
    let peer = match place {
        Place::Hidden => topology.snat_address(),
        _ => source,
    };
    let mut learned = 0;
    for backend in stage.lab.backends() {
        learned += u32::from(has_learned(backend, peer)?);
    }
    assert_eq!(learned, 1, "the backend that the connection was to");
    let status = stage.tether.wait_status("both were told", PATIENCE, |s| {
        s.packets("error_relayed") >= 2
    })?;
    assert_eq!(status.packets("error_unrelayed"), 0);
    assert_eq!(status.packets("too_big"), 0);
    stage.close();
    Ok(())
}

#[test]
fn in_nat() -> Result<()> {
    both_sides_learn(Place::Hidden, Family::V4, 91)
}

#[test]
fn in_nat_in_ipv6() -> Result<()> {
    both_sides_learn(Place::Hidden, Family::V6, 92)
}

#[test]
fn in_dnat() -> Result<()> {
    both_sides_learn(Place::Behind, Family::V4, 93)
}

#[test]
fn in_dnat_in_ipv6() -> Result<()> {
    both_sides_learn(Place::Behind, Family::V6, 94)
}
