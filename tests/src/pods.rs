//! Backends on the balancer's own host, as Kubernetes has them: each in a namespace of its own, behind a veth pair, with the balancer for a router.
//!
//! Their links keep their offloads, so that what they send has unfinished checksums, and is longer than the uplink takes, until it leaves the host.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use lb_common::net::IpVersion;

use crate::address::Network;
use crate::config::BackendSpec;
use crate::namespace::Namespace;
use crate::topology::{Lab, UPLINK};

/// How pods hang on their host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// Each by a veth pair, with a route for its address alone.
    Veth,
    /// All by one bridge, whose prefix they share.
    Bridge,
}

/// The bridge.
const BRIDGE: &str = "cni0";

/// What a host with Kubernetes drops: packets that conntrack calls invalid. What it calls established is counted.
const RULES: &str = "
table inet kubernetes {
    counter invalid {}
    counter established {}
    counter new {}
    chain forward {
        type filter hook forward priority filter;
        ct state invalid counter name invalid drop
        ct state established counter name established
        ct state new counter name new
    }
    chain output {
        type filter hook output priority filter;
        ct state invalid counter name invalid drop
    }
    chain input {
        type filter hook input priority filter;
        ct state invalid counter name invalid drop
    }
}
";

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub host: Arc<Namespace>,
    index: u8,
}

impl Pod {
    /// Its address.
    #[must_use]
    pub const fn address(&self, version: IpVersion) -> IpAddr {
        Network::Pods.host(version, 11 + self.index)
    }

    /// As a backend of the configuration.
    #[must_use]
    pub fn spec(&self, version: IpVersion) -> BackendSpec {
        BackendSpec {
            name: self.host.name().to_owned(),
            address: self.address(version),
            weight: 100,
            lines: String::new(),
        }
    }
}

/// Adds pods to the balancer's host, called `p1`, `p2`, ..., lets it forward, and has it drop what conntrack calls invalid.
///
/// # Errors
/// When the network cannot be made, or nftables is missing.
pub fn add(lab: &Lab, count: u8, behind: Behind) -> Result<Vec<Pod>> {
    let host = lab.balancer();
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        host.sysctl(&format!("net/{key}"), "1")?;
    }
    host.write("/run/kubernetes.nft", RULES)?;
    host.sh("nft -f /run/kubernetes.nft")?;
    let gateways = IpVersion::ALL.map(|version| Network::Pods.gateway(version));
    if behind == Behind::Bridge {
        host.ip(&format!(
            "link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set {BRIDGE} up"
        ))?;
        host.join(BRIDGE, &gateways)?;
    }
    (0..count)
        .map(|index| {
            let pod = Pod {
                host: Arc::new(Namespace::new(&format!("p{}", index + 1))?),
                index,
            };
            let link = format!("veth{}", index + 1);
            host.ip(&format!(
                "link add {link} type veth peer name {UPLINK} netns {}\nlink set {link} up",
                pod.host.net_path().display()
            ))?;
            pod.host.ip(&format!("link set {UPLINK} up"))?;
            match behind {
                Behind::Bridge => {
                    host.ip(&format!("link set {link} master {BRIDGE}"))?;
                    let addresses = IpVersion::ALL.map(|version| pod.address(version));
                    pod.host.join(UPLINK, &addresses)?;
                }
                Behind::Veth => {
                    for (version, gateway) in IpVersion::ALL.into_iter().zip(gateways) {
                        let address = pod.address(version);
                        let (length, at_once) = match version {
                            IpVersion::V4 => (32, ""),
                            IpVersion::V6 => (128, "nodad"),
                        };
                        host.ip(&format!(
                            "address add {gateway}/{length} dev {link} {at_once}\nroute add {address}/{length} dev {link}"
                        ))?;
                        pod.host.ip(&format!(
                            "address add {address}/{length} dev {UPLINK} {at_once}\nroute add {gateway}/{length} dev {UPLINK}"
                        ))?;
                    }
                }
            }
            for gateway in gateways {
                pod.host.ip(&format!("route add default via {gateway}"))?;
            }
            Ok(pod)
        })
        .collect()
}

/// Packets that the balancer's conntrack has called so: `invalid`, `established` or `new`.
///
/// # Errors
/// When nftables does not tell.
pub fn conntrack(lab: &Lab, state: &str) -> Result<u64> {
    let said = lab
        .balancer()
        .sh(&format!("nft list counter inet kubernetes {state}"))?;
    let mut words = said
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    Ok(words.nth(1).unwrap_or_default().parse()?)
}
