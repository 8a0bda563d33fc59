//! A part of the hash space: whose flows are closed when they are closed at a pace.
//!
//! A flow's first home is its hash, scaled to the table. So the flows whose first home lies in the first part of the table are that part of all
//! flows, the same ones with every packet, and a part that grows only ever adds to them. (In a table of another size the same, but for those at
//! the edge.)

/// A part of the hash space, in parts of 65,536.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Share(u32);

impl Share {
    /// No flow.
    pub const NONE: Self = Self(0);
    /// Every flow.
    pub const ALL: Self = Self(1 << 16);

    /// So many parts of 65,536, at most all.
    #[inline(always)]
    #[must_use]
    pub const fn of_parts(parts: u32) -> Self {
        if parts < Self::ALL.0 {
            Self(parts)
        } else {
            Self::ALL
        }
    }

    /// How many parts of 65,536.
    #[inline(always)]
    #[must_use]
    pub const fn parts(self) -> u32 {
        self.0
    }

    /// Whether a flow with this first home is in it, in a table of so many buckets.
    #[inline(always)]
    #[must_use]
    pub const fn holds(self, home: u32, buckets: u32) -> bool {
        // At most 2^16 times 2^32.
        (home as u64) < (self.0 as u64 * buckets as u64) >> 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn all_is_all_and_none_is_none(buckets in 1u32.., home: u32) {
            let home = home % buckets;
            prop_assert!(Share::ALL.holds(home, buckets));
            prop_assert!(!Share::NONE.holds(home, buckets));
        }

        #[test]
        fn a_larger_share_holds_what_a_smaller_one_does(buckets in 1u32.., home: u32, one in 0u32..=1 << 16, other in 0u32..=1 << 16) {
            let (smaller, larger) = (Share::of_parts(one.min(other)), Share::of_parts(one.max(other)));
            let home = home % buckets;
            prop_assert!(!smaller.holds(home, buckets) || larger.holds(home, buckets));
        }

        #[test]
        fn a_share_is_that_part_of_the_table(buckets in 1u32.., parts in 0u32..=1 << 16) {
            let edge = ((u64::from(parts) * u64::from(buckets)) >> 16) as u32;
            let share = Share::of_parts(parts);
            prop_assert!(edge == 0 || share.holds(edge - 1, buckets));
            prop_assert!(edge == buckets || !share.holds(edge, buckets));
        }
    }

    #[test]
    fn there_is_no_more_than_all() {
        assert_eq!(Share::of_parts(u32::MAX), Share::ALL);
        assert_eq!(Share::of_parts(65_535).parts(), 65_535);
    }
}
