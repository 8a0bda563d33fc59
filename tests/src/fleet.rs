//! A second load balancer beside the first: the router spreads the flows of VIPs over both, or sends all by the second.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Result;
use lb_common::net::IpVersion;

use crate::address::{self, Network};
use crate::namespace::Namespace;
use crate::topology::{BALANCER_PORT, Lab, load_balancer};

/// The router's interface on the second balancer's side.
const SECOND_PORT: &str = "lb-second";

/// The second balancer's address.
const fn second_address(version: IpVersion) -> IpAddr {
    Network::Segment.host(version, 3)
}

/// The second load balancer's host. It goes with the value.
#[derive(Debug)]
pub struct Second {
    /// The host.
    pub host: Arc<Namespace>,
    router: Arc<Namespace>,
    _passing: OwnedFd,
}

impl Second {
    /// Adds it to a lab whose backends answer clients directly. No packet goes by it yet.
    ///
    /// # Errors
    /// As [`crate::topology::Topology::build`].
    pub fn join(lab: &Lab) -> Result<Self> {
        let router = lab.router();
        let addresses = IpVersion::ALL.map(second_address);
        let (host, passing) = load_balancer(router, "second", SECOND_PORT, addresses)?;
        for version in ["ipv4", "ipv6"] {
            // By ports too, or all connections of a client would go by one.
            router.sysctl(&format!("net/{version}/fib_multipath_hash_policy"), "1")?;
        }
        // Or a connection that nobody answers for a while would go by the other one from then on: the router takes the hash that the client's socket gave
        // its packets, and that is another then (kernel 5.18).
        lab.client().sysctl("net/core/txrehash", "0")?;
        Ok(Self {
            host: Arc::new(host),
            router: router.clone(),
            _passing: passing,
        })
    }

    /// Has the router send each flow by one of the two, as its addresses and ports have it (ECMP).
    ///
    /// # Errors
    /// When iproute2 refuses.
    pub fn spread(&self) -> Result<()> {
        self.lead(|version| {
            let [first, second] = [address::balancer(version), second_address(version)];
            format!("nexthop via {first} nexthop via {second}")
        })
    }

    /// Has the router send all by this one, as when the first is gone.
    ///
    /// # Errors
    /// As [`Second::spread`].
    pub fn take_over(&self) -> Result<()> {
        self.lead(|version| format!("via {}", second_address(version)))
    }

    fn lead(&self, by: impl Fn(IpVersion) -> String) -> Result<()> {
        for version in IpVersion::ALL {
            let vips = Network::Vips.prefix(version);
            let by = by(version);
            self.router.ip(&format!("route replace {vips} {by}"))?;
        }
        Ok(())
    }
}

/// Lets the first balancer's link die at the switch, or brings it back.
///
/// # Errors
/// When iproute2 refuses.
pub fn power(lab: &Lab, on: bool) -> Result<()> {
    let state = if on { "up" } else { "down" };
    lab.router()
        .ip(&format!("link set {BALANCER_PORT} {state}"))
}
