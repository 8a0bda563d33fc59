//! Telling the places of a bucket apart without branches: a bit for each place. What is in them is as good as random, so a branch that depends on it
//! would be guessed wrong as often as not.

use super::table::Memory;
use crate::bits::is_some;

/// The bit of a place, if a number is not 0.
#[inline(always)]
pub(super) fn unless_zero<M: Memory>(number: u64, way: u32) -> u32 {
    (is_some::<M::Hide>(number) as u32) << way
}

/// The places of a bucket that are not among these.
#[inline(always)]
pub(super) const fn others<M: Memory>(bits: u32) -> u32 {
    bits ^ ((1 << M::WAYS) - 1)
}

/// The places of a bucket that hold a key, and rarely others.
#[inline(always)]
pub(super) fn holders<M: Memory>(memory: &M, bucket: M::Bucket, key: &M::Key) -> u32 {
    let mut different = 0;
    let mut way = 0;
    while way < M::WAYS {
        different |= unless_zero::<M>(memory.differs(bucket, way, key), way);
        way += 1;
    }
    others::<M>(different)
}
