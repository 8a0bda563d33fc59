//! Guards: whom a service takes new flows from, and how many of one source. A flow that has an entry never meets its service's guard.

use core::mem::{align_of, offset_of, size_of};

use crate::hash::{Seed, mix};

/// What a service asks of the clients whose segments could make a flow. One cache line; all zero asks nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Guard {
    /// A [`RangesRef`]: swapped by one store.
    pub ranges: u64,
    /// Nanoseconds that a source pays for a new flow; 0 is no limit.
    pub cost_ns: u64,
    /// Nanoseconds that a source can save up, at least [`Self::cost_ns`].
    pub burst_ns: u64,
    /// What of [`source_word`] makes a source: the prefix that counts as one.
    pub mask: u64,
    /// Flows that a source may have at a time; 0 is no limit.
    pub flows: u32,
    /// Zero.
    pub reserved: u32,
    /// Zero.
    pub rest: [u64; 3],
}

/// Where a service's ranges are in the array of ranges: first (bits 0-31) and how many (32-63). Zero is none: then all are let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct RangesRef(pub u64);

impl RangesRef {
    /// The ranges from `first` on, `len` of them.
    #[inline(always)]
    #[must_use]
    pub const fn new(first: u32, len: u32) -> Self {
        Self(first as u64 | ((len as u64) << 32))
    }

    /// Index of the first.
    #[inline(always)]
    #[must_use]
    pub const fn first(self) -> u32 {
        self.0 as u32
    }

    /// How many there are.
    #[inline(always)]
    #[must_use]
    pub const fn len(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether there is none.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// A range of client addresses: from [`Self::first`] to just below the next one's, or to the last address. A service's are in ascending order, and
/// the first one begins at zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Range {
    /// The first address, as [`in_order`] gives it.
    pub first: [u64; 2],
    /// A [`Listed`], as a number.
    pub listed: u64,
}

/// What a service's lists say about an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Listed {
    /// It may have flows.
    #[default]
    Allowed = 0,
    /// `deny` names a prefix that it is in.
    Denied = 1,
    /// `allow` names prefixes, and it is in none of them.
    NotAllowed = 2,
}

/// An address, whose halves are as [`crate::net::Address::words`] gives them, as two numbers that are in the order of addresses.
#[inline(always)]
#[must_use]
pub const fn in_order(words: [u64; 2]) -> [u64; 2] {
    [u64::from_be(words[0]), u64::from_be(words[1])]
}

/// Of an address, as [`in_order`] gives it, the half that tells sources apart: the first one of IPv6, the second one of IPv4.
#[inline(always)]
#[must_use]
pub const fn source_word(in_order: [u64; 2], is_ipv6: bool) -> u64 {
    if is_ipv6 { in_order[0] } else { in_order[1] }
}

/// What is known of one source at one service. Two words are changed by programs, each by itself; the first names it, and is what they compete for.
///
/// A source that owes nothing and has no flow is as good as one that is not there: its place is anyone's. So who loses a race for a place, or reads one in
/// the middle of a change of hands, finds a source without debts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Source {
    /// Its [`fingerprint`]; 0 is none.
    pub fingerprint: u64,
    /// Its masked [`source_word`], for people: written after the fingerprint, by whoever took the place.
    pub word: u64,
    /// Nanoseconds of the coarse monotonic clock up to which its new flows are paid for: see [`crate::counters::spend`].
    pub paid_ns: u64,
    /// Its flows at a time: as the daemon has counted them (bits 0-31), and those opened since (32-63).
    pub flows: u64,
}

/// Sources in a bucket.
pub const SOURCES_IN_BUCKET: u32 = 4;

/// Two cache lines of sources. A source has two homes: see [`crate::flow::bucket::homes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(128))]
pub struct SourceBucket {
    /// The sources.
    pub sources: [Source; SOURCES_IN_BUCKET as usize],
}

/// What a source of a service is found by, under a secret seed: never 0. Two sources that share one are one to each other, of which there are so good as
/// none.
#[inline(always)]
#[must_use]
pub const fn fingerprint(masked: u64, service: u16, seed: &Seed) -> u64 {
    let word = mix(masked, seed) ^ mix(service as u64, seed).rotate_left(29);
    mix(word, seed) | 1
}

const _: () = assert!(size_of::<Guard>() == 64 && offset_of!(Guard, flows) == 32);
const _: () = assert!(size_of::<Range>() == 24 && offset_of!(Range, listed) == 16);
const _: () = assert!(size_of::<Source>() == 32 && offset_of!(Source, flows) == 24);
const _: () = assert!(size_of::<SourceBucket>() == 128 && align_of::<SourceBucket>() == 128);
