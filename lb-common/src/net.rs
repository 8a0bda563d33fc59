//! Addresses and VLAN tags as they are on the wire.

use core::net::{IpAddr, Ipv6Addr};

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum IpVersion {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

impl IpVersion {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Bits of an address.
    #[must_use]
    pub const fn address_bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

/// An IPv6 address, or an IPv4 one in its place (IPv4-mapped: RFC 4291, section 2.5.5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C, align(8))]
pub struct Address(pub [u8; 16]);

impl Address {
    /// Its two halves, each as a word is loaded from a packet.
    #[inline(always)]
    #[must_use]
    pub const fn words(self) -> [u64; 2] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        [
            u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
        ]
    }

    /// From the halves as [`Address::words`] gives them.
    #[inline(always)]
    #[must_use]
    pub const fn of_words(words: [u64; 2]) -> Self {
        let [a, b, c, d, e, f, g, h] = words[0].to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = words[1].to_ne_bytes();
        Self([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        })
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        Ipv6Addr::from(address.0).to_canonical()
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

#[cfg(any(test, feature = "user"))]
impl core::fmt::Display for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A VLAN tag. All zero stands for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct VlanTag {
    /// EtherType: 802.1Q or 802.1ad, network byte order.
    pub protocol: [u8; 2],
    /// Priority (bits 12-15, drop eligibility among them) and VLAN (0-11), network byte order.
    pub control: [u8; 2],
}

impl VlanTag {
    /// No tag.
    pub const NONE: Self = Self {
        protocol: [0; 2],
        control: [0; 2],
    };

    /// The tag of a VLAN, of priority 0; `protocol` is its EtherType.
    #[must_use]
    pub const fn new(protocol: u16, vlan: u16) -> Self {
        Self {
            protocol: protocol.to_be_bytes(),
            control: (vlan & 0xfff).to_be_bytes(),
        }
    }

    /// The VLAN, 0 to 4095.
    #[must_use]
    pub const fn vlan(self) -> u16 {
        u16::from_be_bytes(self.control) & 0xfff
    }
}

#[cfg(any(test, feature = "user"))]
impl core::fmt::Display for VlanTag {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let standard = match u16::from_be_bytes(self.protocol) {
            crate::headers::ETHERTYPE_QINQ => "802.1ad",
            _ => "802.1Q",
        };
        write!(f, "{standard} {}", self.vlan())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_its_family_and_its_bytes() {
        for text in ["10.0.0.1", "2001:db8::1", "::", "0.0.0.0", "::1"] {
            let address: IpAddr = text.parse().unwrap();
            let bytes = Address::from(address);
            assert_eq!(IpAddr::from(bytes), address);
            assert_eq!(Address::of_words(bytes.words()), bytes);
        }
    }
}
