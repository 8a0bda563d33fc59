//! Modes `nat` and `dnat`: what the data path remembers of a flow beyond its entry, and by what it knows the packets that backends send back.
//!
//! A flow of these modes has an entry in the flow table like any other. Beside it, at the same place of a parallel array, stands its
//! [`Translation`]; and for `nat`, the slot of its SNAT port names that place. The entry is the one truth: a translation counts only if its stamp
//! is that of the entry's key and backend, and a slot only if the translation at the place that it names has the slot's pair and port.
//!
//! | map | what |
//! |---|---|
//! | `NAT4`, `NAT6` | translations, a [`Bucket`] beside each bucket of the flow table |
//! | `ENDPOINTS4`, `ENDPOINTS6` | directories: (backend's address, port) to endpoint id, as those of VIPs |
//! | `ENDPOINTS` | by id, an [`Endpoint`] |
//! | `PAIRS` | by id, a [`Pair`]: a SNAT address toward an endpoint, which has ports of its own |
//! | `PORTS` | by pair, a bitmap of ports that are likely in use |
//! | `SLOTS` | by pair and port, the place of the flow that has it |
//! | `LINKS` | VLAN devices by which clients are reached |
//!
//! * [`translation`]: the words of a translation
//! * [`life`]: what a packet of either side does to entry and translation; pure
//! * [`ports`]: how a flow comes to a SNAT port, and gives it back

pub mod life;
pub mod ports;
pub mod translation;

use core::mem::{align_of, offset_of, size_of};

use crate::{
    flow::{bucket::WAYS, table::Place},
    net::{Address, VlanTag},
};

pub use translation::{Translation, TranslationWord};

/// SNAT addresses of a service, at most.
pub const SNAT_ADDRESSES: usize = 8;
/// Services of mode `dnat`, or with a backend on this host, that share an endpoint, at most.
pub const DNAT_SERVICES: usize = 4;
/// The lowest SNAT port.
pub const FIRST_PORT: u16 = 1_024;
/// SNAT ports of a pair: all from [`FIRST_PORT`] on.
pub const PORTS_OF_PAIR: u32 = 65_536 - FIRST_PORT as u32;
/// Words of 64 bits in the bitmap of a pair.
pub const WORDS_OF_PAIR: u32 = PORTS_OF_PAIR / 64;
/// Bits of a pair's id.
pub const PAIR_BITS: u32 = 14;
/// Entries in `PAIRS`, at most: the slots of more would be more than a program can address in one map.
pub const MOST_PAIRS: u32 = (1 << 29) / (PORTS_OF_PAIR * size_of::<u32>() as u32);

const _: () = assert!(PORTS_OF_PAIR == 64_512 && WORDS_OF_PAIR == 1_008);
const _: () = assert!(MOST_PAIRS <= 1 << PAIR_BITS);

/// The translations beside one bucket of the flow table: a cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Bucket {
    /// That of each way.
    pub translations: [Translation; WAYS as usize],
}

/// An address and port at which backends of modes `nat` and `dnat`, or on this host, are, whatever their service: a cache line. Written before the directory names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Endpoint {
    /// Address.
    pub address: Address,
    /// The pairs with this endpoint, in any order; 0 is none.
    pub pairs: [u16; SNAT_ADDRESSES],
    /// Ids of the services of mode `dnat` that have a backend here, or of any mode if it is on this host; 0 is none.
    pub services: [u16; DNAT_SERVICES],
    /// Port, host byte order; 0 is an entry that is not in use.
    pub port: u16,
    /// Zero.
    pub reserved: [u16; 11],
}

/// A SNAT address toward an endpoint, whatever the service: a cache line. Written before anything names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Pair {
    /// SNAT address.
    pub address: Address,
    /// Id of the endpoint; 0 is an entry that is not in use.
    pub endpoint: u16,
    /// Zero.
    pub reserved: [u16; 23],
}

/// A device of VLANs that packets to clients are routed by, and what to send them by instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Link {
    /// Index of the device; 0 is no device.
    pub ifindex: u32,
    /// Index of the physical interface (or bond) below it.
    pub physical: u32,
    /// Tags that frames have there, the outermost first.
    pub tags: [VlanTag; 2],
}

/// Entries in `LINKS`, a power of two.
pub const LINKS_LEN: u32 = 256;
/// Places where a device may stand in `LINKS`, one after the other; the first that is empty ends the search.
pub const LINK_PLACES: u32 = 8;

/// The place of a device in `LINKS` that is looked at after `before` others, fewer than [`LINK_PLACES`].
#[inline(always)]
pub const fn link_place(ifindex: u32, before: u32) -> u32 {
    ifindex.wrapping_add(before) & (LINKS_LEN - 1)
}

/// What a slot holds: the place of a flow's entry, and so of its translation, plus one; 0 is none.
#[inline(always)]
pub const fn slot_of(place: Place) -> u32 {
    place.index * WAYS + place.way + 1
}

/// The place that a slot names which is not 0.
#[inline(always)]
pub const fn place_of(slot: u32) -> Place {
    let place = slot.wrapping_sub(1);
    Place {
        index: place / WAYS,
        way: place % WAYS,
    }
}

/// Where the slot of a port is in `SLOTS`: in a word of 64 bits those of two ports that follow each other, the lower one's in its lower half.
#[inline(always)]
pub const fn slot_index(pair: u16, port: u16) -> u32 {
    pair as u32 * PORTS_OF_PAIR + port.wrapping_sub(FIRST_PORT) as u32
}

const _: () = assert!(size_of::<Bucket>() == 64 && align_of::<Bucket>() == 64);
const _: () = assert!(size_of::<Endpoint>() == 64 && offset_of!(Endpoint, pairs) == 16);
const _: () = assert!(offset_of!(Endpoint, services) == 32 && offset_of!(Endpoint, port) == 40);
const _: () = assert!(size_of::<Pair>() == 64 && offset_of!(Pair, endpoint) == 16);
const _: () = assert!(size_of::<Link>() == 16 && offset_of!(Link, tags) == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_keeps_its_place() {
        for (index, way) in [(0, 0), (0, 3), (7, 2), ((1 << 23) - 1, 3)] {
            let place = Place { index, way };
            assert_ne!(slot_of(place), 0);
            assert_eq!(place_of(slot_of(place)), place);
        }
    }

    #[test]
    fn slots_of_pairs_follow_each_other() {
        assert_eq!(slot_index(0, FIRST_PORT), 0);
        assert_eq!(slot_index(0, u16::MAX), PORTS_OF_PAIR - 1);
        assert_eq!(slot_index(1, FIRST_PORT), PORTS_OF_PAIR);
        // No two ports of a 64-bit word are of different pairs.
        assert_eq!(PORTS_OF_PAIR % 2, 0);
    }
}
