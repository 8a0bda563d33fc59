//! TCP as the data path sees it (RFC 9293).

/// FIN flag.
pub const FIN: u8 = 0x01;
/// SYN flag.
pub const SYN: u8 = 0x02;
/// RST flag.
pub const RST: u8 = 0x04;
/// ACK flag.
pub const ACK: u8 = 0x10;

/// The part of one TCP segment that decides the life of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number, host byte order.
    pub seq: u32,
    /// The flags byte.
    pub flags: u8,
    /// Whether it carries at least one byte of data.
    pub payload: bool,
}

impl Segment {
    /// Whether all of `flags` are set.
    #[inline(always)]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// Whether any of `flags` is set.
    #[inline(always)]
    pub const fn has_any(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// The first segment of a connection: SYN without ACK, FIN or RST.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.flags & (SYN | ACK | FIN | RST) == SYN
    }

    /// A segment in the middle of a connection: ACK without SYN, FIN or RST.
    #[inline(always)]
    pub const fn continues(&self) -> bool {
        self.flags & (SYN | ACK | FIN | RST) == ACK
    }

    /// FIN or RST: the sender has no more to say.
    #[inline(always)]
    pub const fn ends(&self) -> bool {
        self.flags & (FIN | RST) != 0
    }
}
