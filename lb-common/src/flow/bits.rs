//! Telling the places of a bucket apart without branches: a bit for each place. What is in them is as good as random, so a branch that depends on it
//! would be guessed wrong as often as not.

use super::table::Memory;

/// The bit of a place, if a number is not 0.
#[inline(always)]
pub(super) fn unless_zero<M: Memory>(memory: &M, number: u64, way: u32) -> u32 {
    sign(number, memory.opaque(number.wrapping_neg())) << way
}

/// 1 if a number is not 0, else 0. `negated` is less than 0 by that number, and the compiler must not know it: it knows what this is for, and BPF has no
/// other means for that than a branch.
#[inline(always)]
const fn sign(number: u64, negated: u64) -> u32 {
    ((number | negated) >> 63) as u32
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
        different |= unless_zero(memory, memory.differs(bucket, way, key), way);
        way += 1;
    }
    others::<M>(different)
}

/// Whether one bit is set, and no other.
#[inline(always)]
pub(super) const fn is_single(bits: u32) -> bool {
    bits != 0 && bits & bits.wrapping_sub(1) == 0
}

/// The number of the lowest bit that is set, of eight, one of which is. BPF has no instruction for it; this is a multiplication that brings
/// another three bits to the top for each (de Bruijn).
#[inline(always)]
pub(crate) const fn lowest(bits: u32) -> u32 {
    const SEQUENCE: u32 = 0b0001_1101;
    /// By these three bits, four bits each.
    const NUMBERS: u32 = 0x3457_2610;
    let lowest = bits & bits.wrapping_neg();
    let three = ((lowest * SEQUENCE) >> 5) & 7;
    (NUMBERS >> (4 * three)) & 7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bit_is_that_of_the_machine() {
        for bits in 1_u32..256 {
            assert_eq!(lowest(bits), bits.trailing_zeros(), "{bits:#b}");
        }
    }

    #[test]
    fn one_bit_is_single() {
        for bits in 0_u32..256 {
            assert_eq!(is_single(bits), bits.count_ones() == 1, "{bits:#b}");
        }
    }

    #[test]
    fn nothing_but_zero_has_no_sign() {
        let of = |number: u64| sign(number, number.wrapping_neg());
        assert_eq!(of(0), 0);
        for number in [1, 2, 1 << 31, 1 << 32, 1 << 63, u64::MAX] {
            assert_eq!(of(number), 1, "{number:#x}");
        }
    }
}
