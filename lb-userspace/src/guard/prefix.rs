//! Prefixes of addresses, as operators write them: `192.0.2.0/24`, `2001:db8::/32`, or one address.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use lb_common::net::IpVersion;

/// A prefix: an address whose bits after the first few are all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    network: IpAddr,
    bits: u8,
}

/// Why a text is no prefix, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPrefix {
    /// It is neither an address nor one with a length.
    #[error("is no address and no prefix")]
    Malformed,
    /// It has more bits than its address.
    #[error("has more than the {most} bits of its address")]
    TooLong {
        /// Bits of an address.
        most: u8,
    },
    /// It is an address within the prefix that was perhaps meant, or one that was mistyped.
    #[error("has bits set beyond its length")]
    HostBits {
        /// What was perhaps meant.
        network: Prefix,
    },
    /// An IPv4 address in IPv6's notation, which no packet has.
    #[error("is an IPv4 address in IPv6's notation")]
    Mapped,
}

impl NoPrefix {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Malformed => "write it like 192.0.2.0/24, 2001:db8::/32 or 192.0.2.1".to_owned(),
            Self::TooLong { most } => format!("give a length from 0 to {most}"),
            Self::HostBits { network } => {
                format!(
                    "write {network} if all of it is meant, or the one address without a length"
                )
            }
            Self::Mapped => "write it as IPv4".to_owned(),
        }
    }
}

impl Prefix {
    /// The prefix of so many bits that an address is in; all of them if there are not so many.
    pub fn of(address: IpAddr, bits: u8) -> Self {
        let kept = |of: u8| u32::from(of.saturating_sub(bits));
        match address {
            IpAddr::V4(address) => Self {
                network: Ipv4Addr::from_bits(
                    address.to_bits() & u32::MAX.checked_shl(kept(32)).unwrap_or(0),
                )
                .into(),
                bits: bits.min(32),
            },
            IpAddr::V6(address) => Self {
                network: Ipv6Addr::from_bits(
                    address.to_bits() & u128::MAX.checked_shl(kept(128)).unwrap_or(0),
                )
                .into(),
                bits: bits.min(128),
            },
        }
    }

    /// How many bits all its addresses have in common.
    pub const fn bits(self) -> u8 {
        self.bits
    }

    /// Its first address.
    pub const fn network(self) -> IpAddr {
        self.network
    }

    /// The version of IP of its addresses.
    pub const fn version(self) -> IpVersion {
        IpVersion::of(self.network)
    }

    /// Its first and its last address, as numbers in the order of addresses: see [`number`].
    pub fn bounds(self) -> (u128, u128) {
        let first = number(self.network);
        let bits = match self.network {
            // An IPv4 address is the last 32 bits of 128.
            IpAddr::V4(_) => 96 + u32::from(self.bits),
            IpAddr::V6(_) => u32::from(self.bits),
        };
        (first, first | u128::MAX.checked_shr(bits).unwrap_or(0))
    }

    /// Whether an address is in it.
    pub fn contains(self, address: IpAddr) -> bool {
        IpVersion::of(address) == self.version() && Self::of(address, self.bits) == self
    }
}

/// An address as a number, in the order of addresses: an IPv4 one as its mapped one, as the data path has it.
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.bits)
    }
}

impl FromStr for Prefix {
    type Err = NoPrefix;

    fn from_str(text: &str) -> Result<Self, NoPrefix> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NoPrefix::Malformed)?;
        if matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some()) {
            return Err(NoPrefix::Mapped);
        }
        let most = IpVersion::of(address).address_bits();
        let bits = match bits {
            None => most,
            // A sign, or more digits than any length has, is no length.
            Some(bits) if bits.is_empty() || !bits.bytes().all(|digit| digit.is_ascii_digit()) => {
                return Err(NoPrefix::Malformed);
            }
            Some(bits) => bits
                .parse::<u8>()
                .ok()
                .filter(|&bits| bits <= most)
                .ok_or(NoPrefix::TooLong { most })?,
        };
        let network = Self::of(address, bits);
        if network.network != address {
            return Err(NoPrefix::HostBits { network });
        }
        Ok(network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        for (text, shown) in [
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
            ("2001:db8::1", "2001:db8::1/128"),
        ] {
            assert_eq!(prefix(text).to_string(), shown);
            assert_eq!(prefix(shown), prefix(text));
        }
    }

    #[test]
    fn what_is_none_says_why() {
        let malformed = NoPrefix::Malformed;
        for (text, why) in [
            ("", malformed.clone()),
            ("localhost", malformed.clone()),
            ("192.0.2", malformed.clone()),
            ("192.0.2.0/", malformed.clone()),
            ("192.0.2.0/+4", malformed.clone()),
            ("192.0.2.0/24/8", malformed),
            ("192.0.2.0/33", NoPrefix::TooLong { most: 32 }),
            ("192.0.2.0/999", NoPrefix::TooLong { most: 32 }),
            ("2001:db8::/129", NoPrefix::TooLong { most: 128 }),
            ("::ffff:192.0.2.1", NoPrefix::Mapped),
            (
                "192.0.2.77/24",
                NoPrefix::HostBits {
                    network: prefix("192.0.2.0/24"),
                },
            ),
            (
                "2001:db8::1/32",
                NoPrefix::HostBits {
                    network: prefix("2001:db8::/32"),
                },
            ),
        ] {
            assert_eq!(text.parse::<Prefix>(), Err(why), "{text}");
        }
    }

    #[test]
    fn bounds_are_the_first_and_the_last_address() {
        for (text, first, last) in [
            ("192.0.2.0/24", "192.0.2.0", "192.0.2.255"),
            ("0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
            ("192.0.2.1", "192.0.2.1", "192.0.2.1"),
            ("2001:db8::/127", "2001:db8::", "2001:db8::1"),
            ("::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            let address = |text: &str| number(text.parse().unwrap());
            assert_eq!(prefix(text).bounds(), (address(first), address(last)));
            assert!(prefix(text).contains(first.parse().unwrap()));
            assert!(prefix(text).contains(last.parse().unwrap()));
        }
        assert!(!prefix("192.0.2.0/24").contains("192.0.3.0".parse().unwrap()));
        assert!(!prefix("::/0").contains("192.0.3.0".parse().unwrap()));
    }
}
