//! Arithmetic without branches, of which the processor would guess some wrong, and the kernel's verifier follow each both ways through all that comes.
//!
//! Numbers that the compiler must not know for what they are, since for a comparison BPF has branches alone, go through [`Hide::opaque`].

use crate::hide::Hide;

/// 1 if a number is not zero, else 0.
#[inline(always)]
pub(crate) fn is_some<H: Hide>(number: u64) -> u64 {
    (number | H::opaque(number.wrapping_neg())) >> 63
}

/// 1 if a number is below another, else 0.
#[inline(always)]
pub(crate) fn below<H: Hide>(number: u64, other: u64) -> u64 {
    // The borrow of their difference.
    let difference = H::opaque(number.wrapping_sub(other));
    ((!number & other) | ((!number | other) & difference)) >> 63
}

/// Whether one bit is set, and no other.
#[inline(always)]
pub(crate) const fn is_single(bits: u32) -> bool {
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
    use crate::hide::Plain;
    use proptest::prelude::*;

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
    fn nothing_but_zero_is_none() {
        assert_eq!(is_some::<Plain>(0), 0);
        for number in [1, 2, 1 << 31, 1 << 32, 1 << 63, u64::MAX] {
            assert_eq!(is_some::<Plain>(number), 1, "{number:#x}");
        }
    }

    proptest! {
        #[test]
        fn what_has_no_branch_tells_the_same(a: u64, b: u64, near in 0u64..3) {
            for (a, b) in [(a, b), (a, a), (a, a.wrapping_add(near)), (a.wrapping_add(near), a)] {
                prop_assert_eq!(below::<Plain>(a, b), u64::from(a < b), "{} {}", a, b);
            }
            prop_assert_eq!(is_some::<Plain>(a), u64::from(a != 0));
            prop_assert_eq!(is_some::<Plain>(near), u64::from(near != 0));
        }
    }
}
