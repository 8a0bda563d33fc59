//! What a guarded service asks of its clients: whom it takes flows from, and how many of one source.

use std::net::{IpAddr, Ipv4Addr};

use lb_common::net::IpVersion;
use lb_userspace::guard::{Lists, Prefix, compile};

use crate::packet::{
    World,
    guard::{COST, Limits},
    on_wire, version,
};

/// Bits of the longest prefix that makes a source of IPv4; of IPv6 it has as many more as this.
pub const LONGEST: u8 = 32;

/// What a service asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// So many new flows of a source at once, of which each is paid for by [`COST`]; 0 is no limit.
    pub burst: u32,
    /// So many flows of a source; 0 is no limit. In a case nobody counts how many are left of those that have been opened.
    pub flows: u32,
    /// Bits of an address of IPv4 that make a source, up to [`LONGEST`]; of IPv6 it is so many, and 32 more.
    pub prefix: u8,
    /// Whom it denies.
    pub deny: Vec<Net>,
    /// Whom alone it allows, if that is anybody.
    pub allow: Vec<Net>,
}

/// A prefix of clients' addresses, as in IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    /// An address in it.
    pub address: Ipv4Addr,
    /// How many bits of it all others have too, up to 32.
    pub bits: u8,
}

/// What lists say of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It may have flows.
    Allowed,
    /// It is denied.
    Denied,
    /// Others are allowed.
    NotAllowed,
}

impl Net {
    /// On the wire: in IPv6, the last bits of an address are those of the IPv4 one.
    fn on_wire(self) -> (IpAddr, u8) {
        let more = match version() {
            IpVersion::V4 => 0,
            IpVersion::V6 => 96,
        };
        (on_wire(self.address), self.bits + more)
    }

    fn contains(self, address: IpAddr) -> bool {
        let (own, bits) = self.on_wire();
        // How many bits they have in common, from the first on.
        let common = match (own, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros()
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).leading_zeros()
            }
            _ => return false,
        };
        common >= u32::from(bits)
    }
}

impl Asked {
    /// What the lists say of an address: `deny` goes before `allow`.
    #[must_use]
    pub fn said_of(&self, address: IpAddr) -> Said {
        if self.deny.iter().any(|net| net.contains(address)) {
            Said::Denied
        } else if self.allow.is_empty() || self.allow.iter().any(|net| net.contains(address)) {
            Said::Allowed
        } else {
            Said::NotAllowed
        }
    }

    /// What makes an address one source with others: the bits that they have in common.
    #[must_use]
    pub fn source_of(&self, address: IpAddr) -> u64 {
        let rest = u32::from(LONGEST - self.prefix);
        match address {
            IpAddr::V4(address) => u64::from(address.to_bits()) >> rest,
            IpAddr::V6(address) => ((address.to_bits() >> 64) as u64) >> rest,
        }
    }

    /// Whether it holds sources to the same as another.
    #[must_use]
    pub fn limits_as(&self, other: &Self) -> bool {
        let limits = |asked: &Self| (asked.burst, asked.flows, asked.prefix);
        limits(self) == limits(other)
    }

    /// Writes it to the maps, as the daemon does.
    pub fn write(&self, world: &World, service: u16) {
        let prefixes = |nets: &[Net]| -> Vec<Prefix> {
            let nets = nets.iter().map(|net| net.on_wire());
            nets.map(|(address, bits)| Prefix::of(address, bits))
                .collect()
        };
        let lists = Lists::new(prefixes(&self.allow), prefixes(&self.deny));
        let cost = if self.burst == 0 {
            Limits::NONE.cost
        } else {
            COST
        };
        let limits = Limits {
            cost,
            burst: COST * self.burst,
            prefix: [u32::from(self.prefix), 32 + u32::from(self.prefix)],
            flows: self.flows,
        };
        world.guard(service, &compile(&lists, version()), &limits);
    }

    /// As text, without spaces but between its parts.
    #[must_use]
    pub fn text(&self) -> String {
        let (deny, allow) = (listing(&self.deny), listing(&self.allow));
        let limits = (self.burst, self.flows, self.prefix);
        format!("{} {} {} {deny} {allow}", limits.0, limits.1, limits.2)
    }

    /// Of the words that [`Self::text`] writes.
    #[must_use]
    pub fn parse(words: &[&str]) -> Option<Self> {
        let [burst, flows, prefix, deny, allow] = words else {
            return None;
        };
        Some(Self {
            burst: burst.parse().ok()?,
            flows: flows.parse().ok()?,
            prefix: bits(prefix)?,
            deny: nets(deny)?,
            allow: nets(allow)?,
        })
    }
}

/// What stands for no prefix.
const NONE: &str = "-";

fn listing(nets: &[Net]) -> String {
    if nets.is_empty() {
        return NONE.to_owned();
    }
    let nets: Vec<String> = nets
        .iter()
        .map(|net| format!("{}/{}", net.address, net.bits))
        .collect();
    nets.join(",")
}

fn nets(text: &str) -> Option<Vec<Net>> {
    if text == NONE {
        return Some(Vec::new());
    }
    let nets = text.split(',').map(|net| {
        let (address, length) = net.split_once('/')?;
        Some(Net {
            address: address.parse().ok()?,
            bits: bits(length)?,
        })
    });
    nets.collect()
}

fn bits(text: &str) -> Option<u8> {
    text.parse().ok().filter(|bits| *bits <= LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{in_version, version::in_ipv6};

    fn net(address: [u8; 4], bits: u8) -> Net {
        Net {
            address: address.into(),
            bits,
        }
    }

    fn asked() -> Asked {
        Asked {
            burst: 2,
            flows: 0,
            prefix: 30,
            deny: vec![net([198, 51, 100, 6], 31)],
            allow: vec![net([198, 51, 100, 0], 28), net([198, 19, 0, 7], 32)],
        }
    }

    #[test]
    fn what_lists_say_is_told() {
        for version in IpVersion::ALL {
            in_version(version, || {
                let said = |address: [u8; 4]| asked().said_of(on_wire(address.into()));
                assert_eq!(said([198, 51, 100, 5]), Said::Allowed);
                assert_eq!(said([198, 51, 100, 6]), Said::Denied);
                assert_eq!(said([198, 51, 100, 7]), Said::Denied);
                assert_eq!(said([198, 51, 100, 16]), Said::NotAllowed);
                assert_eq!(said([198, 19, 0, 7]), Said::Allowed);
            });
        }
    }

    #[test]
    fn sources_have_their_first_bits_in_common() {
        let source = |address: [u8; 4]| asked().source_of(Ipv4Addr::from(address).into());
        assert_eq!(source([198, 51, 100, 0]), source([198, 51, 100, 3]));
        assert_ne!(source([198, 51, 100, 3]), source([198, 51, 100, 4]));
        let source = |address: [u8; 4]| asked().source_of(in_ipv6(address.into()).into());
        assert_eq!(source([198, 51, 100, 0]), source([198, 51, 200, 9]));
        assert_ne!(source([198, 51, 100, 0]), source([198, 19, 100, 0]));
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let text = asked().text();
        let words: Vec<&str> = text.split(' ').collect();
        assert_eq!(Asked::parse(&words), Some(asked()));
        assert_eq!(Asked::parse(&["1", "1", "33", NONE, NONE]), None);
    }
}
