//! Who has which number: identities, the keyed hashes behind them, and the pool of ids.

mod hash;
mod quiet;

use std::collections::VecDeque;

use lb_common::flow::word::BackendRef;

pub use hash::{
    KeyedHash, backend_identity, fleet_seed_of, group_seed, service_identity, service_seed,
};
pub use quiet::Quiet;

/// An id with its generation: how often it has been given before, modulo 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Numbered {
    /// The id; never 0.
    pub id: u32,
    /// 0 to 31.
    pub generation: u8,
}

impl Numbered {
    /// As the flow table names it.
    pub fn reference(self) -> BackendRef {
        BackendRef::new(self.id, self.generation)
    }

    /// The same id for its next holder.
    fn next(self) -> Self {
        Self {
            id: self.id,
            generation: (self.generation + 1) % BackendRef::GENERATIONS,
        }
    }
}

/// The ids of one map that nobody has.
///
/// Ids that were never given go first, in order; then the one that was given back longest ago, as its next generation. That an id may be
/// given back is for others to prove, see [`Quiet`].
#[derive(Clone, Debug)]
pub struct Pool {
    fresh: std::ops::Range<u32>,
    returned: VecDeque<Numbered>,
}

impl Pool {
    /// Of a map of `capacity` entries of which none was ever used. Id 0 is never given.
    pub fn new(capacity: u32) -> Self {
        Self {
            fresh: 1..capacity,
            returned: VecDeque::new(),
        }
    }

    /// Of a map as it was found. `entries` gives, in order of ids from 1, the generation of each and whether it is in use; none for
    /// one that was never used.
    pub fn restore(entries: impl IntoIterator<Item = Option<(u8, bool)>>) -> Self {
        let mut capacity = 1;
        let mut unused_since = 1;
        let mut returned = VecDeque::new();
        for (id, entry) in (1..).zip(entries) {
            capacity = id + 1;
            let Some((generation, in_use)) = entry else {
                continue;
            };
            // Skipped earlier, so they are not fresh in the sense of being the highest, but nobody ever had them.
            returned.extend((unused_since..id).map(|id| Numbered { id, generation: 0 }));
            unused_since = id + 1;
            if !in_use {
                returned.push_back(Numbered { id, generation }.next());
            }
        }
        Self {
            fresh: unused_since..capacity,
            returned,
        }
    }

    /// An id that nobody has; none if all are taken.
    pub fn take(&mut self) -> Option<Numbered> {
        match self.fresh.next() {
            Some(id) => Some(Numbered { id, generation: 0 }),
            None => self.returned.pop_front(),
        }
    }

    /// Gives an id back. Nothing may name it any more, see [`Quiet`].
    pub fn give_back(&mut self, numbered: Numbered) {
        self.returned.push_back(numbered.next());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(id: u32, generation: u8) -> Option<Numbered> {
        Some(Numbered { id, generation })
    }

    #[test]
    fn fresh_ids_go_first_then_the_longest_returned() {
        let mut pool = Pool::new(4);
        let all = [pool.take(), pool.take(), pool.take()];
        assert_eq!(all, [numbered(1, 0), numbered(2, 0), numbered(3, 0)]);
        assert_eq!(pool.take(), None);
        pool.give_back(Numbered {
            id: 3,
            generation: 0,
        });
        pool.give_back(Numbered {
            id: 1,
            generation: 31,
        });
        assert_eq!(pool.take(), numbered(3, 1));
        assert_eq!(pool.take(), numbered(1, 0));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn a_pool_is_restored_from_what_the_map_holds() {
        let entries = [
            Some((4, true)),
            None,
            Some((7, false)),
            Some((0, true)),
            None,
            None,
        ];
        let mut pool = Pool::restore(entries);
        let all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        let ids: Vec<_> = all.iter().map(|n| (n.id, n.generation)).collect();
        assert_eq!(ids, [(5, 0), (6, 0), (2, 0), (3, 8)]);
    }
}
