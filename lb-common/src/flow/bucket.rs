//! What the flow tables of both families have in common: four entries to a bucket, two buckets where a key may be, and how large a table is.

use core::mem::size_of;

use crate::hash::scale;

/// Entries in a bucket.
pub const WAYS: u32 = 4;

/// How full a table is sized to be, as a fraction: 0.6. There insertion practically never fails.
pub const LOAD: (u64, u64) = (3, 5);

/// Buckets for a table that holds `flows` flows at the design load.
pub const fn buckets_for(flows: u32) -> u32 {
    let entries = (flows as u64 * LOAD.1).div_ceil(LOAD.0);
    let buckets = entries.div_ceil(WAYS as u64);
    // Two homes need two buckets.
    if buckets < 2 { 2 } else { buckets as u32 }
}

/// The two buckets of a key that is mixed to `mixed`, in a table of `buckets`: different ones if there are at least two.
#[inline(always)]
pub const fn homes(mixed: u64, buckets: u32) -> [u32; 2] {
    let first = scale((mixed >> 32) as u32, buckets) as u64;
    let second = scale(mixed as u32, buckets - 1) as u64;
    // One of the others: those from the first on move up by one. Without a branch, so that the verifier sees one pair of homes and not three.
    let is_from_first_on = first.wrapping_sub(second + 1) >> 63;
    [first as u32, (second + is_from_first_on) as u32]
}

/// Facts for people, one bucket's: the tick of each entry's promotion.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Facts {
    /// First seen, in ticks since boot; 0 is not known.
    pub first_seen: [u32; WAYS as usize],
}

const _: () = assert!(size_of::<Facts>() == 16);
