//! Clients' affinities of a version that found them elsewhere.

use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::{
    flow::{
        FlowKey as _,
        bucket::WAYS,
        v6::{self, Key},
    },
    hash::Seed,
};

use crate::dataplane::array::Array;

/// Words of an entry.
const WORDS: usize = size_of::<v6::Entry>() / 8;

/// Puts an entry, as this version lays it out, where this version looks for it. One that finds no place is left behind: its client is placed anew, unless it
/// has flows, from which the next pass learns of it again.
pub(super) fn place(entry: &[u64], to: &Array<u64>, seed: &Seed) {
    let of_bucket = WAYS as usize * WORDS;
    let buckets = (to.all().len() / of_bucket) as u32;
    let key = Key {
        address: [entry[0], entry[1]],
        rest: entry[2],
    };
    let mut places = key.homes(seed, buckets).into_iter().flat_map(|bucket| {
        let first = bucket as usize * of_bucket;
        to.all()[first..first + of_bucket].chunks_exact(WORDS)
    });
    let is_free = |place: &&[AtomicU64]| place[WORDS - 1].load(Ordering::Relaxed) == 0;
    for (to, word) in places.find(is_free).into_iter().flatten().zip(entry) {
        to.store(*word, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: Seed = Seed {
        whiten: 0x1234_5678_9abc_def0,
        first: 0x9e37_79b9_7f4a_7c15,
        second: 0xd6e8_feb8_6659_fd93,
    };
    const BUCKETS: u32 = 64;

    #[test]
    fn each_is_where_it_is_looked_for_and_what_finds_no_place_takes_none() {
        let of_bucket = WAYS as usize * WORDS;
        let to = Array::<u64>::in_memory(BUCKETS * of_bucket as u32).unwrap();
        // Every place could be taken, but not by these.
        let count = u64::from(BUCKETS * WAYS);
        let entries: Vec<[u64; WORDS]> = (0..count).map(|n| [n << 32, !n, 7, n + 1]).collect();
        for entry in &entries {
            place(entry, &to, &SEED);
        }
        let all: Vec<u64> = to
            .all()
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .collect();
        let mut kept = 0;
        for entry in &entries {
            let key = Key {
                address: [entry[0], entry[1]],
                rest: entry[2],
            };
            let found: Vec<_> = all
                .chunks(WORDS)
                .enumerate()
                .filter(|(_, words)| words == entry)
                .map(|(at, _)| at as u32 / WAYS)
                .collect();
            assert!(found.len() <= 1, "{found:?}");
            let homes = key.homes(&SEED, BUCKETS);
            assert!(found.iter().all(|bucket| homes.contains(bucket)));
            kept += found.len() as u64;
        }
        assert!(kept > count * 3 / 4 && kept < count, "{kept} of {count}");
        let taken = all.chunks(WORDS).filter(|words| words[WORDS - 1] != 0);
        assert_eq!(taken.count() as u64, kept);
    }
}
