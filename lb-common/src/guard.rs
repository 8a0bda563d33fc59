//! Guards: whom a service takes new flows from, and how many of one source. A flow that has an entry never meets its service's guard.
//!
//! * [`ranges`]: what a service's lists say about an address
//! * [`sources`]: what a source is held to, and how CPUs share what is known of it

pub mod ranges;
pub mod sources;

use core::mem::{align_of, offset_of, size_of};

use crate::{
    flow::table::Place,
    hash::{Seed, mix},
};

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
    /// The longest of all services' [`Self::burst_ns`], this one's among them: who has paid up to that long ago owes nothing to any of them.
    pub longest_burst_ns: u64,
    /// Zero.
    pub rest: [u64; 2],
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

impl Listed {
    /// Of a number; of one that is none of these, as in a corrupt map, the first.
    #[inline(always)]
    #[must_use]
    pub const fn of(number: u64) -> Self {
        match number {
            1 => Self::Denied,
            2 => Self::NotAllowed,
            _ => Self::Allowed,
        }
    }
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

/// What the guard tells the program that goes on with a segment that it has let pass, in [`crate::counters::CpuState::passed`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Passed(pub u64);

impl Passed {
    /// Nothing.
    pub const NOTHING: Self = Self(0);
    /// Of the segment: it need not see the guard again.
    const LET_PASS: u64 = 1 << 63;
    /// Of its flow: if it is adopted, it is one more of the source whose place follows.
    const COUNTS: u64 = 1 << 62;

    /// Of its flow: it is not to be adopted, since the source has all the flows that it may.
    const IS_OVER: u64 = 1 << 61;
    /// Of its flow: its client is to be told that it is over.
    const IS_CUT_OFF: u64 = 1 << 60;

    /// It may pass.
    #[inline(always)]
    #[must_use]
    pub const fn now() -> Self {
        Self(Self::LET_PASS)
    }

    /// It may pass, and if its flow is adopted, that is one more of the source at a place.
    #[inline(always)]
    #[must_use]
    pub const fn counting(source: Place) -> Self {
        Self(
            Self::LET_PASS
                | Self::COUNTS
                | ((source.index as u64) << 2)
                | (source.way & (SOURCES_IN_BUCKET - 1)) as u64,
        )
    }

    /// It may pass, but its flow is not to be adopted: it may be an established one, whose entry is lost, and of which nobody must be told that it is over
    /// as long as its backend can be told without one.
    #[inline(always)]
    #[must_use]
    pub const fn over_limit() -> Self {
        Self(Self::LET_PASS | Self::IS_OVER)
    }

    /// Whether its flow is not to be adopted.
    #[inline(always)]
    #[must_use]
    pub const fn is_over_limit(self) -> bool {
        self.0 & Self::IS_OVER != 0
    }

    /// It may pass, but only as far as to where its client is told that its flow is over: the lists keep it out, and it may be of a flow that was established
    /// before they did.
    #[inline(always)]
    #[must_use]
    pub const fn cut_off() -> Self {
        Self(Self::LET_PASS | Self::IS_CUT_OFF)
    }

    /// Whether its client is to be told that its flow is over.
    #[inline(always)]
    #[must_use]
    pub const fn is_cut_off(self) -> bool {
        self.0 & Self::IS_CUT_OFF != 0
    }

    /// Whether it may pass: 1, or 0.
    #[inline(always)]
    #[must_use]
    pub const fn is_let_pass(self) -> u64 {
        self.0 >> 63
    }

    /// The same once that has been seen.
    #[inline(always)]
    #[must_use]
    pub const fn seen(self) -> Self {
        Self(self.0 & !Self::LET_PASS)
    }

    /// Whose flow it is one more of, if it is adopted.
    #[inline(always)]
    #[must_use]
    pub const fn source(self) -> Option<Place> {
        if self.0 & Self::COUNTS == 0 {
            return None;
        }
        Some(Place {
            index: (self.0 >> 2) as u32,
            way: self.0 as u32 & (SOURCES_IN_BUCKET - 1),
        })
    }
}

const _: () = assert!(size_of::<Guard>() == 64 && offset_of!(Guard, flows) == 32);
const _: () = assert!(offset_of!(Guard, longest_burst_ns) == 40);
const _: () = assert!(size_of::<Range>() == 24 && offset_of!(Range, listed) == 16);
const _: () = assert!(size_of::<Source>() == 32 && offset_of!(Source, flows) == 24);
const _: () = assert!(size_of::<SourceBucket>() == 128 && align_of::<SourceBucket>() == 128);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_has_passed_is_told(index: u32, way in 0..SOURCES_IN_BUCKET) {
            let place = Place { index, way };
            let passed = Passed::counting(place);
            prop_assert_eq!((passed.is_let_pass(), passed.source()), (1, Some(place)));
            prop_assert!(!passed.is_over_limit() && !passed.is_cut_off());
            prop_assert_eq!((passed.seen().is_let_pass(), passed.seen().source()), (0, Some(place)));
        }

        /// A source is found by what it is of one service.
        #[test]
        fn fingerprints_tell_sources_and_services_apart(word: u64, other: u64, service: u16, seed: [u64; 3]) {
            let seed = Seed::new(seed);
            let own = fingerprint(word, service, &seed);
            prop_assert_ne!(own, 0);
            prop_assert_ne!(own, fingerprint(word, service.wrapping_add(1), &seed));
            prop_assert_eq!(own == fingerprint(other, service, &seed), word == other);
        }

        #[test]
        fn addresses_are_in_order(a: [u8; 16], b: [u8; 16]) {
            let word = |bytes| in_order(crate::net::Address(bytes).words());
            prop_assert_eq!(word(a).cmp(&word(b)), a.cmp(&b));
        }
    }

    #[test]
    fn of_an_ipv4_address_the_prefix_is_in_the_second_word() {
        let address = crate::net::Address::from(core::net::IpAddr::from([198, 51, 100, 7]));
        let word = source_word(in_order(address.words()), false);
        assert_eq!(word, 0xffff_c633_6407);
        assert_eq!(word & (u64::MAX << 8), 0xffff_c633_6400);
    }

    #[test]
    fn nothing_is_told_of_what_has_not_passed() {
        assert_eq!(Passed::NOTHING.is_let_pass(), 0);
        assert_eq!(Passed::NOTHING.source(), None);
        assert_eq!(Passed::now().source(), None);
        assert_eq!(Passed::now().seen(), Passed::NOTHING);
    }

    #[test]
    fn what_becomes_of_a_flow_is_told_of_what_passes() {
        for (passed, is_over_limit, is_cut_off) in [
            (Passed::now(), false, false),
            (Passed::over_limit(), true, false),
            (Passed::cut_off(), false, true),
        ] {
            assert_eq!((passed.is_let_pass(), passed.source()), (1, None));
            assert_eq!(passed.seen().is_let_pass(), 0);
            for passed in [passed, passed.seen()] {
                assert_eq!(passed.is_over_limit(), is_over_limit);
                assert_eq!(passed.is_cut_off(), is_cut_off);
            }
        }
    }
}
