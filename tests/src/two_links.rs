//! A second link of the balancer, on the backends' side: what comes in by one leaves by the other.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use anyhow::Result;
use lb_common::net::IpVersion;

use crate::address::{Family, Network};
use crate::passing;
use crate::topology::{Lab, Place, Topology};

/// The balancer's second interface.
pub const SECOND: &str = "eth1";
/// The router's end of it.
pub const SECOND_PORT: &str = "lb2";

/// The balancer's address there, which is on the backends' link.
#[must_use]
pub const fn second_address(version: IpVersion) -> IpAddr {
    Network::Farm.host(version, 2)
}

/// A lab whose balancer has a second link, to the farm.
///
/// # Errors
/// As [`Topology::build`].
pub fn build(place: Place, family: Family) -> Result<Lab> {
    let lab = Topology::new(place).in_family(family).build()?;
    let (balancer, router) = (lab.balancer(), lab.router());
    router.ip(&format!(
        "link add {SECOND_PORT} mtu 1600 type veth peer name {SECOND} mtu 1600 netns {}",
        balancer.net_path().display()
    ))?;
    for (host, interface) in [(router, SECOND_PORT), (balancer, SECOND)] {
        host.sh(&format!("ethtool -K {interface} tx off tso off gso off"))?;
    }
    router.ip(&format!("link set {SECOND_PORT} master farm up"))?;
    balancer.ip(&format!("link set {SECOND} up"))?;
    balancer.join(SECOND, &IpVersion::ALL.map(second_address))?;
    Ok(lab)
}

/// Lets the router's end take what the program sends, for as long as this is held: see [`passing`].
///
/// # Errors
/// As [`passing::pass_all`].
pub fn open(lab: &Lab) -> Result<OwnedFd> {
    passing::pass_all(lab.router(), SECOND_PORT)
}
