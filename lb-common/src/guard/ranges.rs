//! What a service's lists say about an address: a binary search through its [`Range`]s.

use super::{Listed, Range, RangesRef};
use crate::{bits::below, hide::Hide};

/// Steps of a search: so often a service's ranges are halved, of which 2^24 are many more than fit a map.
pub const STEPS: u32 = 24;

/// The ranges of all services, wherever they are.
pub trait Ranges {
    /// What has to be hidden where they are.
    type Hide: Hide;

    /// The range at an index; none if there is no such index.
    fn range(&self, index: u32) -> Option<Range>;
}

/// What the ranges `of` a service say about an address, which is as [`super::in_order`] gives it.
///
/// Who finds no sense in them, as in a corrupt map, lets all in: a guard must not cut a service off.
#[inline(always)]
pub fn listed<R: Ranges>(ranges: &R, of: RangesRef, address: [u64; 2]) -> Listed {
    let mut at = of.first();
    let mut len = of.len();
    if at.checked_add(len).is_none() {
        return Listed::Allowed;
    }
    let mut step = 0;
    while step < STEPS && len > 1 {
        let half = len / 2;
        let Some(middle) = ranges.range(at.wrapping_add(half)) else {
            return Listed::Allowed;
        };
        // Forward if the address is not before it.
        at = at.wrapping_add(half * begins_by::<R::Hide>(&middle, address) as u32);
        len -= half;
        step += 1;
    }
    if len != 1 {
        return Listed::Allowed;
    }
    match ranges.range(at) {
        Some(range) if begins_by::<R::Hide>(&range, address) != 0 => Listed::of(range.listed),
        _ => Listed::Allowed,
    }
}

/// 1 if a range begins with an address or before it, else 0; without a branch: of two outcomes of each step the kernel's verifier would make 2^24.
#[inline(always)]
fn begins_by<H: Hide>(range: &Range, address: [u64; 2]) -> u64 {
    let [high, low] = range.first;
    let is_after = below::<H>(address[0], high)
        | ((1 ^ below::<H>(high, address[0])) & below::<H>(address[1], low));
    1 ^ is_after
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::hide::Plain;
    use proptest::{collection::vec, prelude::*};

    /// Ranges, and how often one was looked at.
    struct Model {
        ranges: Vec<Range>,
        looks: Cell<u32>,
    }

    impl Ranges for Model {
        type Hide = Plain;

        fn range(&self, index: u32) -> Option<Range> {
            self.looks.set(self.looks.get() + 1);
            self.ranges.get(index as usize).copied()
        }
    }

    fn model(ranges: &[(u128, u64)]) -> Model {
        let ranges = ranges.iter().map(|(first, listed)| Range {
            first: words(*first),
            listed: *listed,
        });
        Model {
            ranges: ranges.collect(),
            looks: Cell::new(0),
        }
    }

    fn words(address: u128) -> [u64; 2] {
        [(address >> 64) as u64, address as u64]
    }

    /// The last range that begins by an address, found by looking at all of them.
    fn naive(ranges: &[(u128, u64)], address: u128) -> Listed {
        let range = ranges.iter().rev().find(|(first, _)| *first <= address);
        Listed::of(range.expect("the first begins at zero").1)
    }

    /// Ascending, the first at zero; near each other and far.
    fn ascending() -> impl Strategy<Value = Vec<(u128, u64)>> {
        let first = prop_oneof![any::<u128>(), 1u128..64, (u128::MAX - 64)..];
        vec((first, 0u64..3), 0..40).prop_map(|mut ranges| {
            ranges.push((0, 1));
            ranges.sort_unstable();
            ranges.dedup_by_key(|(first, _)| *first);
            ranges
        })
    }

    proptest! {
        #[test]
        fn the_range_of_an_address_is_found(
            ranges in ascending(),
            addresses in vec(any::<u128>(), 1..20),
            before in 0u32..5,
        ) {
            // Others' ranges are around them.
            let mut all = vec![(u128::MAX, 2); before as usize];
            all.extend(&ranges);
            all.extend([(0, 2), (7, 1)]);
            let model = model(&all);
            let of = RangesRef::new(before, ranges.len() as u32);
            let edges = ranges.iter().flat_map(|(first, _)| [*first, first.wrapping_sub(1)]);
            for address in edges.chain(addresses) {
                model.looks.set(0);
                prop_assert_eq!(listed(&model, of, words(address)), naive(&ranges, address));
                prop_assert!(model.looks.get() <= 2 + ranges.len().ilog2() + 1);
            }
        }

        /// Whatever is in the maps, a search ends, and looks at nothing but the ranges it is told of.
        #[test]
        fn corrupt_ranges_do_no_harm(
            ranges in vec((any::<u128>(), any::<u64>()), 0..20),
            of: u64,
            near in (0u32..24, 0u32..24),
            address: u128,
        ) {
            let model = model(&ranges);
            for of in [RangesRef(of), RangesRef::new(near.0, near.1)] {
                model.looks.set(0);
                listed(&model, of, words(address));
                prop_assert!(model.looks.get() <= STEPS + 1);
            }
        }
    }

    #[test]
    fn without_ranges_all_are_let_in() {
        let model = model(&[(0, 1)]);
        assert_eq!(
            listed(&model, RangesRef::default(), [0; 2]),
            Listed::Allowed
        );
        assert_eq!(
            listed(&model, RangesRef::new(0, 0), [7; 2]),
            Listed::Allowed
        );
        assert_eq!(model.looks.get(), 0);
    }

    #[test]
    fn one_range_is_of_all_addresses() {
        for (number, expected) in [
            (0, Listed::Allowed),
            (1, Listed::Denied),
            (2, Listed::NotAllowed),
        ] {
            let model = model(&[(0, number)]);
            for address in [0, 1, u128::MAX] {
                assert_eq!(
                    listed(&model, RangesRef::new(0, 1), words(address)),
                    expected
                );
            }
        }
    }

    /// What the ranges do not say is allowed: they end before the reference does, begin after the address, or are too many to be true.
    #[test]
    fn what_makes_no_sense_is_allowed() {
        let denied = model(&[(5, 1), (9, 1)]);
        assert_eq!(
            listed(&denied, RangesRef::new(0, 2), words(4)),
            Listed::Allowed
        );
        assert_eq!(
            listed(&denied, RangesRef::new(0, 2), words(5)),
            Listed::Denied
        );
        assert_eq!(
            listed(&denied, RangesRef::new(0, 9), words(9)),
            Listed::Allowed
        );
        assert_eq!(
            listed(&denied, RangesRef::new(2, 1), words(9)),
            Listed::Allowed
        );
        assert_eq!(
            listed(&denied, RangesRef::new(u32::MAX, 3), words(9)),
            Listed::Allowed
        );
        assert_eq!(
            listed(&model(&[(0, 3)]), RangesRef::new(0, 1), words(9)),
            Listed::Allowed
        );
        struct Endless;
        impl Ranges for Endless {
            type Hide = Plain;

            fn range(&self, _: u32) -> Option<Range> {
                Some(Range {
                    first: [0; 2],
                    listed: 1,
                })
            }
        }
        assert_eq!(
            listed(&Endless, RangesRef::new(0, 1 << 24), [9; 2]),
            Listed::Denied
        );
        assert_eq!(
            listed(&Endless, RangesRef::new(0, (1 << 24) + 1), [9; 2]),
            Listed::Allowed
        );
    }
}
