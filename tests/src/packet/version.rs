//! The version of IP that a test is about.
//!
//! Most of what a test says is true in both. So clients, VIPs and packets are told in IPv4 addresses, and the version in force on the test's
//! thread decides what goes onto the wire: these addresses, or [`in_ipv6`] of them.

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use lb_common::net::IpVersion;

thread_local! {
    static VERSION: Cell<IpVersion> = const { Cell::new(IpVersion::V4) };
}

/// The version in force: IPv4, if nothing else was said.
pub fn version() -> IpVersion {
    VERSION.get()
}

/// Runs a test in a version.
pub fn in_version(version: IpVersion, test: impl FnOnce()) {
    let before = VERSION.replace(version);
    test();
    VERSION.set(before);
}

/// The IPv6 address that stands for an IPv4 one. All of its words depend on it.
pub fn in_ipv6(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = address.octets();
    let [high, low] = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
    Ipv6Addr::new(0x2001, 0xdb8, high, 0x7e7, 0, 1, high, low)
}

/// How an address is on the wire in the version in force.
pub fn on_wire(address: Ipv4Addr) -> IpAddr {
    match version() {
        IpVersion::V4 => address.into(),
        IpVersion::V6 => in_ipv6(address).into(),
    }
}

/// Makes two tests of each function, one for each version of IP.
#[macro_export]
macro_rules! in_both_versions {
    ($($test:ident),+ $(,)?) => {
        mod ipv4 {
            $(
                #[test]
                fn $test() {
                    $crate::packet::in_version(lb_common::net::IpVersion::V4, super::$test);
                }
            )+
        }

        mod ipv6 {
            $(
                #[test]
                fn $test() {
                    $crate::packet::in_version(lb_common::net::IpVersion::V6, super::$test);
                }
            )+
        }
    };
}
