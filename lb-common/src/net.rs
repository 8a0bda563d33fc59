//! Addresses as they are on the wire.

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

/// A 16-bit number in network byte order, as it stands in a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Be16(u16);

impl Be16 {
    /// From the host's byte order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// From two bytes as loaded from a packet, unswapped.
    #[inline(always)]
    pub const fn from_wire(raw: u16) -> Self {
        Self(raw)
    }

    /// In the host's byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The bytes as they are stored to a packet.
    #[inline(always)]
    pub const fn to_wire(self) -> u16 {
        self.0
    }
}

/// A 32-bit number in network byte order, as it stands in a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Be32(u32);

impl Be32 {
    /// From the host's byte order.
    #[inline(always)]
    pub const fn new(host: u32) -> Self {
        Self(host.to_be())
    }

    /// From four bytes as loaded from a packet, unswapped.
    #[inline(always)]
    pub const fn from_wire(raw: u32) -> Self {
        Self(raw)
    }

    /// In the host's byte order.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }

    /// The bytes as they are stored to a packet.
    #[inline(always)]
    pub const fn to_wire(self) -> u32 {
        self.0
    }
}
