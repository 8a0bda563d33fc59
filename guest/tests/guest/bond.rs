//! A bond: the program is attached to the master, and goes on when the active link fails.

use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use lab::address::{self, mac_of, mac_text};
use lab::passing;
use lab::stage::Stage;
use lab::tether;
use lab::topology::{Lab, Place, Topology, UPLINK};
use lab::wait;
use lb_common::net::IpVersion;

use crate::ground::{SOON, assert_echo, assert_native, converse, lacking, plugged, unplug};

/// The router's ends of the bond's links.
const PORTS: [&str; 2] = ["lb1", "lb2"];
/// The balancer's ends.
const LINKS: [&str; 2] = ["link1", "link2"];

/// Gives the balancer a bond of two links in place of its one. The links work as long as what this returns is there.
fn bond(lab: &Lab) -> Result<[OwnedFd; 2]> {
    unplug(lab)?;
    let (balancer, router) = (lab.balancer(), lab.router());
    balancer
        .ip(&format!(
            "link add {UPLINK} mtu 1600 address {} type bond mode active-backup miimon 50 num_grat_arp 3",
            mac_text(mac_of(address::balancer(IpVersion::V4)))
        ))
        .with_context(|| lacking("bonds"))?;
    let mut passing = vec![];
    for (port, link) in PORTS.into_iter().zip(LINKS) {
        router.ip(&format!(
            "link add {port} mtu 1600 type veth peer name {link} mtu 1600 netns {}",
            balancer.net_path().display(),
        ))?;
        for (host, interface) in [(router, port), (balancer, link)] {
            host.sh(&format!("ethtool -K {interface} tx off tso off gso off"))?;
        }
        balancer.ip(&format!("link set {link} master {UPLINK}"))?;
        router.ip(&format!("link set {port} master segment up"))?;
        passing.push(passing::pass_all(router, port)?);
    }
    plugged(lab)?;
    passing.try_into().ok().context("as many programs as ports")
}

/// The active link of the bond, as the kernel names it.
fn active(lab: &Lab) -> Result<String> {
    let path = format!("/sys/class/net/{UPLINK}/bonding/active_slave");
    let text = lab
        .balancer()
        .run(move || std::fs::read_to_string(path))
        .context("the bond's active link")?;
    Ok(text.trim().to_owned())
}

fn survives_the_loss_of_its_active_link(place: Place, seed: u64) -> Result<()> {
    let lab = Topology::new(place).build()?;
    let _passing = bond(&lab)?;
    let stage = Stage::on(lab, seed, |_| {})?;
    assert_native(&stage)?;
    let connections = converse(&stage)?;

    let before = active(&stage.lab)?;
    let index = LINKS.iter().position(|link| *link == before);
    let index = index.with_context(|| format!("{before} is no link of the bond"))?;
    stage
        .lab
        .router()
        .ip(&format!("link set {} down", PORTS[index]))?;
    wait::until("the bond goes over to its other link", SOON, || {
        active(&stage.lab)
            .is_ok_and(|now| now == LINKS[1 - index])
            .then_some(())
    })?;
    assert_echo(&connections);
    let _newcomers = converse(&stage)?;
    assert_native(&stage)?;
    stage.close();
    Ok(())
}

#[test]
fn a_port_of_a_bond_is_refused_and_the_bond_is_named() -> Result<()> {
    let lab = Topology::new(Place::Farm).build()?;
    let _passing = bond(&lab)?;
    let attaching = ["decap", "--interface", LINKS[0]];
    let error = tether::succeed(lab.balancer(), &attaching)
        .map(drop)
        .unwrap_err()
        .to_string();
    for part in ["interface link1", "port of the bond eth0", "put eth0 into"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    Ok(())
}

#[test]
fn ipip_survives_the_loss_of_the_active_link() -> Result<()> {
    survives_the_loss_of_its_active_link(Place::Farm, 61)
}

#[test]
fn l2_survives_the_loss_of_the_active_link() -> Result<()> {
    survives_the_loss_of_its_active_link(Place::Segment, 62)
}

/// What comes in by a bond has come in by one of its ports, as its program sees it; and the kernel is asked for the way to the client as of that.
#[test]
fn nat_asks_for_ports_that_forward_and_serves_by_them() -> Result<()> {
    let lab = Topology::new(Place::Hidden).build()?;
    let _passing = bond(&lab)?;
    let snat = address::snat(IpVersion::V4);
    let balancer = lab.balancer().clone();
    balancer.ip(&format!("address add {snat}/32 dev {UPLINK}"))?;
    let forward = |whether| {
        LINKS.iter().try_for_each(|link| {
            balancer.sysctl(&format!("net/ipv4/conf/{link}/forwarding"), whether)
        })
    };
    forward("0")?;
    let stage = Stage::on(lab, 63, |_| {})?;
    assert_native(&stage)?;
    wait::until("the daemon names them", SOON, || {
        let log = stage.tether.log();
        let what = "does not forward what comes in by link1, link2: run";
        log.contains(what).then_some(())
    })?;
    forward("1")?;
    let _connections = converse(&stage)?;
    stage.close();
    Ok(())
}
