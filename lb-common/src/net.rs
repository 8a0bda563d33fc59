//! Addresses and VLAN tags as they are on the wire.

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
