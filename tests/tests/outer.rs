//! Outer headers of mode `ipip` from addresses of a prefix that is routed to the balancer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use lab::address::{Family, Network};
use lab::packet_socket::Capture;
use lab::peer::{crowd, exchange, raw};
use lab::stage::Stage;
use lab::topology::{BALANCER_PORT, Place, Topology};
use lab::wait;
use lb_common::net::IpVersion;
use lb_userspace::guard::Prefix;

const CONNECTIONS: usize = 64;
/// As many of 256 addresses are nearly sure to be among those of so many flows; 57 are to be expected.
const LEAST_SOURCES: usize = 32;
const SOON: Duration = Duration::from_secs(10);
const NARROW_MTU: u16 = 1400;
const LENGTH: u64 = 1_000_000;

/// 256 addresses.
fn sources(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "10.0.9.0/24",
        IpVersion::V6 => "fd00:10:0:9::/120",
    }
}

/// Clients' connections come from addresses of the prefix, each from one. What a router says to such an address is heard, and told to the client.
fn flows_come_from_addresses_of_the_prefix(family: Family, seed: u64) -> Result<()> {
    let topology = Topology::new(Place::Farm).in_family(family);
    let lab = topology.build()?;
    let version = family.backends();
    let prefix = sources(version);
    let farm = Network::Farm.prefix(version);
    let balancer = Network::Segment.host(version, 2);
    lab.router().ip(&format!(
        "route add {prefix} via {balancer}\nroute del {farm} dev farm\nroute add {farm} dev farm mtu lock {NARROW_MTU}"
    ))?;
    let stage = Stage::on(lab, seed, |config| {
        config.top = format!("outer_sources = [\"{prefix}\"]\n");
    })?;

    let capture = Capture::start(stage.lab.router(), BALANCER_PORT)?;
    let connections = stage.clients.open(CONNECTIONS, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    let flows = wait::until("packets of every connection have left", SOON, || {
        let mut flows: BTreeMap<(IpAddr, u16), BTreeSet<IpAddr>> = BTreeMap::new();
        for segment in capture.segments() {
            if let Some(outer) = segment.outer {
                let client = (segment.ip.source, segment.tcp.source);
                flows.entry(client).or_default().insert(outer.source);
            }
        }
        (flows.len() >= CONNECTIONS).then_some(flows)
    })?;
    assert!(
        flows.values().all(|sources| sources.len() == 1),
        "a flow always comes from the same address: {flows:?}"
    );
    let seen: BTreeSet<IpAddr> = flows.into_values().flatten().collect();
    let within: Prefix = prefix.parse()?;
    assert!(
        seen.iter().all(|source| within.contains(*source)),
        "{seen:?}"
    );
    assert!(seen.len() >= LEAST_SOURCES, "{seen:?}");

    let stream = raw::connect(stage.lab.client(), stage.target(), SOON)?;
    exchange::run(stream, LENGTH, LENGTH)?;
    stage
        .tether
        .wait_status("the client was told of the narrow way", SOON, |status| {
            status.packets("error_relayed") > 0
        })?;
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn in_ipv4() -> Result<()> {
    flows_come_from_addresses_of_the_prefix(Family::V4, 131)
}

#[test]
fn in_ipv6() -> Result<()> {
    flows_come_from_addresses_of_the_prefix(Family::V6, 132)
}

#[test]
fn of_ipv4_clients_to_ipv6_backends() -> Result<()> {
    flows_come_from_addresses_of_the_prefix(Family::V4InV6, 133)
}
