//! The lab's addresses: one plan, in both versions of IP.
//!
//! Host H of network N is 10.0.N.H, and fd00:10:0:N::H (unique local addresses: RFC 4193) with the same numbers, which are
//! written in hexadecimal there: b1 of the farm is 10.0.3.11 and fd00:10:0:3::b.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::ValueEnum;
use lb_common::net::IpVersion;

use crate::frame::Mac;

/// In which versions of IP a service is reached, and reaches its backends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// All of it in IPv4.
    #[default]
    #[value(alias = "ipv4")]
    V4,
    /// All of it in IPv6.
    #[value(alias = "ipv6")]
    V6,
    /// Clients and VIP in IPv4, backends with addresses in IPv6.
    #[value(name = "v4-in-v6")]
    V4InV6,
}

impl Family {
    /// The version that clients speak, and that the VIP is of.
    #[must_use]
    pub const fn vip(self) -> IpVersion {
        match self {
            Self::V4 | Self::V4InV6 => IpVersion::V4,
            Self::V6 => IpVersion::V6,
        }
    }

    /// The version of the addresses that backends are configured with.
    #[must_use]
    pub const fn backends(self) -> IpVersion {
        match self {
            Self::V4 => IpVersion::V4,
            Self::V6 | Self::V4InV6 => IpVersion::V6,
        }
    }
}

/// A network of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Addresses of services, which are on no link.
    Vips = 0,
    /// The clients' link.
    Clients = 1,
    /// The balancer's link.
    Segment = 2,
    /// The link behind the router that routed backends are on.
    Farm = 3,
    /// Pods of the balancer's own host.
    Pods = 4,
}

impl Network {
    /// The address of a host.
    #[must_use]
    pub const fn host(self, version: IpVersion, host: u8) -> IpAddr {
        match version {
            IpVersion::V4 => IpAddr::V4(Ipv4Addr::new(10, 0, self as u8, host)),
            IpVersion::V6 => IpAddr::V6(Ipv6Addr::new(
                0xfd00,
                0x10,
                0,
                self as u16,
                0,
                0,
                0,
                host as u16,
            )),
        }
    }

    /// Its prefix, as iproute2 writes it.
    #[must_use]
    pub fn prefix(self, version: IpVersion) -> String {
        on_link(self.host(version, 0))
    }

    /// The router's address on it.
    #[must_use]
    pub const fn gateway(self, version: IpVersion) -> IpAddr {
        self.host(version, 1)
    }
}

/// An address with the length of its network's prefix, as iproute2 writes it.
#[must_use]
pub fn on_link(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}/24"),
        IpAddr::V6(address) => format!("{address}/64"),
    }
}

/// The address that clients connect to.
#[must_use]
pub const fn vip(version: IpVersion) -> IpAddr {
    Network::Vips.host(version, 1)
}

/// The balancer's own address.
#[must_use]
pub const fn balancer(version: IpVersion) -> IpAddr {
    Network::Segment.host(version, 2)
}

/// The address of the balancer's that backends see in the place of clients'.
#[must_use]
pub const fn snat(version: IpVersion) -> IpAddr {
    Network::Segment.host(version, 100)
}

/// An address of the clients' host, counted from 0.
#[must_use]
pub const fn client(version: IpVersion, index: u8) -> IpAddr {
    Network::Clients.host(version, 10 + index)
}

/// The prefix that floods are sent from, its address and length in bits: that of benchmarks (RFC 2544, RFC 5180). The router
/// drops what is sent there.
#[must_use]
pub const fn spoofed(version: IpVersion) -> (IpAddr, u8) {
    match version {
        IpVersion::V4 => (IpAddr::V4(Ipv4Addr::new(198, 18, 0, 0)), 15),
        IpVersion::V6 => (IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0)), 48),
    }
}

/// The MAC that the lab gives to the host of an address, the same for both of its addresses: readable in a capture.
#[must_use]
pub fn mac_of(address: IpAddr) -> Mac {
    let [network, host] = match address {
        IpAddr::V4(address) => [address.octets()[2], address.octets()[3]],
        IpAddr::V6(address) => [address.octets()[7], address.octets()[15]],
    };
    [2, 0, 10, 0, network, host]
}

/// A MAC as iproute2 writes it.
#[must_use]
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_the_same_numbers_in_both_versions() {
        let text = |address: IpAddr| address.to_string();
        assert_eq!(
            IpVersion::ALL.map(vip).map(text),
            ["10.0.0.1", "fd00:10::1"]
        );
        assert_eq!(
            IpVersion::ALL.map(balancer).map(on_link),
            ["10.0.2.2/24", "fd00:10:0:2::2/64"]
        );
        let client = IpVersion::ALL.map(|version| client(version, 1));
        assert_eq!(client.map(text), ["10.0.1.11", "fd00:10:0:1::b"]);
        assert_eq!(client.map(mac_of), [[2, 0, 10, 0, 1, 11]; 2]);
    }
}
