//! Every mode over a path that narrows in the middle, without anybody having been told: the router says so of the first packet that is too long. In
//! modes `nat` and `dnat` that is about addresses that its sender knows nothing of, in `ipip` about a packet that the balancer has made of a client's, and
//! of a backend's packet it is told to the VIP. The balancer tells the sender of the packet that it has sent.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
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

/// Narrows the router's way to clients, and to backends that packets go to encapsulated.
fn narrow_without_translation(topology: Topology, router: &Namespace) -> Result<()> {
    let Topology { place, family, .. } = topology;
    let clients = (Network::Clients.prefix(family.vip()), "client");
    let farm = (Network::Farm.prefix(family.backends()), "farm");
    let is_encapsulated = place == Place::Farm;
    for (prefix, device) in [clients].into_iter().chain(is_encapsulated.then_some(farm)) {
        router.ip(&format!(
            "route del {prefix} dev {device}\nroute add {prefix} dev {device} mtu lock {NARROW_MTU}"
        ))?;
    }
    Ok(())
}

/// What a host has learned of its way to an address: its MTU.
fn learned(host: &Namespace, address: IpAddr) -> Result<Option<u16>> {
    let told = host.sh(&format!("ip route get {address}"))?;
    let mut words = told.split_whitespace().skip_while(|word| *word != "mtu");
    let mtu = words.nth(1).map(str::parse::<u16>).transpose();
    mtu.with_context(|| format!("no MTU in {told}"))
}

/// Packets too long for the router go both ways. The client learns what it may send, if its way is narrow at all, and the backend of the connection
/// learns too; no other does.
fn who_sends_learns(stage: Stage, client_mtu: Option<u16>) -> Result<()> {
    let topology = stage.lab.topology();
    let client = stage.lab.client();
    let stream = raw::connect(client, stage.target(), PATIENCE)?;
    let source = stream.local_addr()?.ip();
    assert_eq!(learned(client, stage.config.vip)?, None);
    exchange::run(stream, LENGTH, LENGTH)?;

    assert_eq!(learned(client, stage.config.vip)?, client_mtu, "the client");
    let peer = match topology.place {
        Place::Hidden => topology.snat_address(),
        _ => source,
    };
    let mut told = vec![];
    for backend in stage.lab.backends() {
        told.extend(learned(backend, peer)?);
    }
    assert_eq!(told, [NARROW_MTU], "the backend that the connection was to");
    let narrow_ways = 1 + u64::from(client_mtu.is_some());
    let status = stage.tether.wait_status("all were told", PATIENCE, |s| {
        s.packets("error_relayed") >= narrow_ways
    })?;
    assert_eq!(status.packets("error_unrelayed"), 0);
    assert_eq!(status.packets("too_big"), 0);
    stage.close();
    Ok(())
}

fn both_sides_learn(place: Place, family: Family, seed: u64) -> Result<()> {
    let topology = Topology::new(place).in_family(family);
    let lab = topology.build()?;
    narrow(topology, lab.router(), lab.balancer())?;
    who_sends_learns(Stage::on(lab, seed, |_| {})?, Some(NARROW_MTU))
}

/// What backends send goes to clients directly, and what the router says of it comes to the VIP. Clients' packets meet a narrow way where they are
/// encapsulated, and clients learn of one that leaves room for the second header; on the balancer's segment there is no way that could be narrow.
fn without_translation(place: Place, family: Family, seed: u64) -> Result<()> {
    let topology = Topology::new(place).in_family(family);
    let lab = topology.build()?;
    narrow_without_translation(topology, lab.router())?;
    let second_header = match family.backends() {
        IpVersion::V4 => 20,
        IpVersion::V6 => 40,
    };
    let is_encapsulated = place == Place::Farm;
    let client_mtu = is_encapsulated.then_some(NARROW_MTU - second_header);
    who_sends_learns(Stage::on(lab, seed, |_| {})?, client_mtu)
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

#[test]
fn in_ipip() -> Result<()> {
    without_translation(Place::Farm, Family::V4, 95)
}

#[test]
fn in_ipip_in_ipv6() -> Result<()> {
    without_translation(Place::Farm, Family::V6, 96)
}

#[test]
fn in_ipip_from_ipv4_clients_to_ipv6_backends() -> Result<()> {
    without_translation(Place::Farm, Family::V4InV6, 97)
}

#[test]
fn in_l2() -> Result<()> {
    without_translation(Place::Segment, Family::V4, 98)
}

#[test]
fn in_l2_in_ipv6() -> Result<()> {
    without_translation(Place::Segment, Family::V6, 99)
}
