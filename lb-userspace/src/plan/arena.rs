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

/// A stretch that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Its first slot.
    pub first: u32,
    /// How many slots it has.
    pub len: u32,
    /// Whether it can be had elsewhere.
    pub can_move: bool,
}

impl Stretch {
    /// Whether some of its slots are among the `size` from `from` on.
    fn is_in(self, from: u32, size: u32) -> bool {
        self.len > 0 && self.first < from + size && from < self.first.saturating_add(self.len)
    }
}

/// What has to go where for `size` slots in a row to come free: the least that will do, each by its index and its new first slot. It goes to slots that are free
/// today, since what is there today is still looked at. None if that is not possible in one step.
pub(super) fn make_room(slots: u32, taken: &[Stretch], size: u32) -> Option<Vec<(usize, u32)>> {
    let last = slots.checked_sub(size)?;
    let ends = taken
        .iter()
        .map(|stretch| stretch.first.saturating_add(stretch.len));
    let starts = [0].into_iter().chain(ends).chain([last]);
    starts
        .filter(|&from| from <= last)
        .filter_map(|from| clear(slots, taken, from, size))
        .min_by_key(|moves| {
            let lens = moves.iter().map(|&(index, _)| u64::from(taken[index].len));
            lens.sum::<u64>()
        })
}

/// What has to go where for the `size` slots from `from` on to come free.
fn clear(slots: u32, taken: &[Stretch], from: u32, size: u32) -> Option<Vec<(usize, u32)>> {
    let own = [(from, size)];
    let all = taken.iter().map(|stretch| (stretch.first, stretch.len));
    let mut arena = Arena::without(slots, all.chain(own));
    let mut there: Vec<(usize, Stretch)> = taken
        .iter()
        .copied()
        .enumerate()
        .filter(|(_, stretch)| stretch.is_in(from, size))
        .collect();
    // What is large finds fewer places.
    there.sort_by_key(|(_, stretch)| std::cmp::Reverse(stretch.len));
    there
        .into_iter()
        .map(|(index, stretch)| {
            let to = stretch
                .can_move
                .then(|| arena.take(stretch.len))
                .flatten()?;
            Some((index, to))
        })
        .collect()
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

    /// Stretches as they lie: free slots before each, how many it has, and whether it can be moved.
    fn lying(of: &[(u32, u32, bool)]) -> Vec<Stretch> {
        let mut next = 0;
        let lie = |&(gap, len, can_move): &(u32, u32, bool)| {
            let first = next + gap;
            next = first + len;
            Stretch {
                first,
                len,
                can_move,
            }
        };
        of.iter().map(lie).collect()
    }

    #[test]
    fn the_least_that_makes_room_is_moved() {
        // Two free, two and two and one taken, two free.
        let taken = lying(&[(2, 2, false), (0, 2, true), (0, 1, true)]);
        assert_eq!(make_room(9, &taken, 3), Some(vec![(2, 0)]));
        let fixed = lying(&[(2, 2, false), (0, 2, true), (0, 1, false)]);
        assert_eq!(make_room(9, &fixed, 3), None);
        assert_eq!(make_room(9, &taken, 10), None);
        // Where there is room nothing is.
        assert_eq!(make_room(9, &taken, 2), Some(Vec::new()));
    }

    proptest! {
        /// What is moved goes to slots that were free, and then there is room.
        #[test]
        fn what_is_moved_makes_room(
            of in prop::collection::vec((0u32..6, 0u32..6, any::<bool>()), 0..8),
            rest in 0u32..6,
            size in 1u32..12,
        ) {
            let mut taken = lying(&of);
            let slots = taken.last().map_or(0, |last| last.first + last.len) + rest;
            let arena = |taken: &[Stretch]| {
                Arena::without(slots, taken.iter().map(|stretch| (stretch.first, stretch.len)))
            };
            let largest = arena(&taken).largest();
            let Some(moves) = make_room(slots, &taken, size) else {
                prop_assert!(largest < size);
                return Ok(());
            };
            let before = taken.clone();
            for &(index, to) in &moves {
                prop_assert!(before[index].can_move);
                prop_assert!(to + before[index].len <= slots);
                for other in &before {
                    prop_assert!(!other.is_in(to, before[index].len));
                }
                taken[index].first = to;
            }
            for (index, stretch) in taken.iter().enumerate() {
                for other in &taken[..index] {
                    prop_assert!(stretch.len == 0 || !other.is_in(stretch.first, stretch.len));
                }
            }
            prop_assert!(arena(&taken).largest() >= size);
        }

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
