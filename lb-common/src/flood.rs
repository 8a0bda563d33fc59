//! What the labs' generator of floods and its program share.

use core::mem::size_of;

use crate::hash::Seed;

/// Name of the program that makes a frame and sends it by an interface.
pub const PROGRAM: &str = "flood";
/// Map with its orders: array of one [`Orders`].
pub const ORDERS: &str = "FLOOD";

/// Length of a frame, bytes: of the longest one, an error by ICMPv6 about 8 bytes of TCP, in whole words.
pub const LEN: usize = 112;
/// Words of a frame.
pub const WORDS: usize = LEN / size_of::<u64>();

/// What changes from one frame to the next behind the IP header, with its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Patch {
    /// Nothing.
    None = 0,
    /// TCP's source port and sequence number.
    Tcp = 1,
    /// Identifier and sequence number of an echo request.
    Echo = 2,
    /// In an error: the destination port of the segment that it quotes.
    Error = 3,
}

/// A frame without what changes, for which it has zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Template {
    /// Its bytes, as they are on the wire.
    pub words: [u64; WORDS],
    /// Running sum of an IPv4 header's words, host byte order.
    pub ip_sum: u32,
    /// Running sum of the words that the checksum behind the IP header covers, host byte order.
    pub sum: u32,
    /// A [`Patch`].
    pub patch: u32,
    /// 1 if [`Self::sum`] covers the source address, else 0.
    pub covers_source: u32,
}

/// The orders, and how far they are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Orders {
    /// The frames, in turn.
    pub templates: [Template; 2],
    /// Number of the next frame.
    pub number: u64,
    /// What sources, ports and sequence numbers are drawn by.
    pub seed: Seed,
    /// The part of a source address that changes: all four bytes of IPv4, bytes 6 to 9 of IPv6. Host byte order.
    pub base: u32,
    /// The bits of it that are drawn.
    pub hosts: u32,
    /// 1 if two frames in a row are of one flow, of which the second goes on where the first was; else 0.
    pub pairs: u32,
    /// An [`crate::net::IpVersion`].
    pub version: u32,
    /// Index of the interface.
    pub interface: u32,
    /// Zero.
    pub reserved: u32,
}

/// Words of [`Orders`].
pub const ORDERS_WORDS: usize = size_of::<Orders>() / size_of::<u64>();

const _: () = assert!(size_of::<Template>() == LEN + 16 && size_of::<Orders>() == 2 * 128 + 56);
