//! Which stretches of an array are free: of that of all tables, and of that of all ranges.

use std::collections::BTreeMap;

/// Free stretches, by their first slot.
pub(super) struct Arena {
    gaps: BTreeMap<u32, u32>,
}

impl Arena {
    /// What of `slots` slots is left by what is there: each the first slot, and how many.
    pub(super) fn without(slots: u32, taken: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut taken: Vec<(u32, u32)> = taken
            .filter(|&(_, len)| len > 0)
            .map(|(first, len)| (first, first.saturating_add(len)))
            .collect();
        taken.sort_unstable();
        let mut gaps = BTreeMap::new();
        let mut from = 0;
        for (start, end) in taken.into_iter().chain([(slots, slots)]) {
            if start > from {
                gaps.insert(from, start.min(slots) - from);
            }
            from = from.max(end);
            if from >= slots {
                break;
            }
        }
        Self { gaps }
    }

    /// Takes `size` slots from the smallest stretch that has them: gives the first.
    pub(super) fn take(&mut self, size: u32) -> Option<u32> {
        let (&offset, &length) = self
            .gaps
            .iter()
            .filter(|&(_, &length)| length >= size)
            .min_by_key(|&(_, &length)| length)?;
        self.gaps.remove(&offset);
        if length > size {
            self.gaps.insert(offset + size, length - size);
        }
        Some(offset)
    }

    /// Slots of the largest stretch.
    pub(super) fn largest(&self) -> u32 {
        self.gaps.values().copied().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_smallest_stretch_that_fits_is_taken() {
        let tables = [(10, 10), (25, 5)];
        let mut arena = Arena::without(40, tables.into_iter());
        assert_eq!(arena.largest(), 10);
        assert_eq!(arena.take(5), Some(20));
        assert_eq!(arena.take(6), Some(0));
        assert_eq!(arena.take(4), Some(6));
        assert_eq!(arena.take(11), None);
        assert_eq!(arena.take(10), Some(30));
        assert_eq!(arena.take(1), None);
    }

    #[test]
    fn what_lies_beyond_the_end_or_over_one_another_takes_nothing_twice() {
        let tables = [(0, 10), (5, 10), (35, 10), (u32::MAX, 10)];
        let mut arena = Arena::without(40, tables.into_iter());
        assert_eq!(arena.take(20), Some(15));
        assert_eq!(arena.largest(), 0);
    }

    proptest! {
        #[test]
        fn what_is_taken_never_overlaps(sizes in prop::collection::vec(1u32..50, 0..30)) {
            let mut arena = Arena::without(500, std::iter::empty());
            let mut taken: Vec<(u32, u32)> = Vec::new();
            for size in sizes {
                if let Some(offset) = arena.take(size) {
                    prop_assert!(offset + size <= 500);
                    for &(other, len) in &taken {
                        prop_assert!(offset >= other + len || other >= offset + size);
                    }
                    taken.push((offset, size));
                }
                prop_assert_eq!(arena.largest(), Arena::without(500, taken.iter().copied()).largest());
            }
        }
    }
}
