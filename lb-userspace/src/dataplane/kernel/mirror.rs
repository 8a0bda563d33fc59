//! An image of a flow table, brought up to date in passes, each of which tells the keys whose entries have changed.
//!
//! What has been copied from a table to another is what the image says, and never what the table says by now. So the other table is the
//! image's copy after every pass, however the table changes meanwhile; and the table's own, after a pass during which nothing changed.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
};

use lb_common::{
    clock::Tick,
    flow::{
        v4::{Bucket, Entry, Facts, Key, WAYS},
        word::{EMBRYO_TICKS, Word},
    },
    hash::Seed,
};

use super::copier::Traveller;
use crate::dataplane::maps::Maps;

/// The image.
pub(super) struct Mirror {
    table: Arc<Maps>,
    seed: Seed,
    buckets: Vec<Bucket>,
    facts: Vec<Facts>,
}

const NOTHING: Entry = Entry {
    key: 0,
    value: Word::EMPTY.0,
};

impl Mirror {
    /// An image of nothing, to be one of this table.
    pub(super) fn new(table: Arc<Maps>, seed: Seed) -> Self {
        let len = table.flows4.len() as usize;
        Self {
            table,
            seed,
            buckets: vec![
                Bucket {
                    entries: [NOTHING; WAYS as usize]
                };
                len
            ],
            facts: vec![
                Facts {
                    first_seen: [0; WAYS as usize]
                };
                len
            ],
        }
    }

    /// Brings the image up to date. Gives the keys whose entries are not what they were.
    pub(super) fn refresh(&mut self) -> HashSet<Key> {
        let mut changed = HashSet::new();
        for index in 0..self.table.flows4.len() {
            let at = index as usize;
            let facts = self.table.facts4.get(index);
            for way in 0..WAYS as usize {
                let seen = self.read(index, way);
                let held = &mut self.buckets[at].entries[way];
                let first_seen = &mut self.facts[at].first_seen[way];
                let is_same = seen.value == held.value
                    && (seen.key == held.key && facts.first_seen[way] == *first_seen
                        || !Word(seen.value).is_entry());
                if is_same {
                    continue;
                }
                for entry in [*held, seen] {
                    if Word(entry.value).is_entry() {
                        changed.insert(Key(entry.key));
                    }
                }
                *held = seen;
                *first_seen = facts.first_seen[way];
            }
        }
        changed
    }

    /// Reads an entry of the table: value, key, value again, so that both belong together. One that changes at that moment is taken for none;
    /// the pass after it finds that it is one.
    fn read(&self, index: u32, way: usize) -> Entry {
        let words = self.table.flows4.words(index);
        let (key, value) = (&words[2 * way], &words[2 * way + 1]);
        let before = value.load(Ordering::Acquire);
        let entry = Entry {
            key: key.load(Ordering::Acquire),
            value: before,
        };
        if Word(before).is_entry() && value.load(Ordering::Acquire) == before {
            entry
        } else {
            NOTHING
        }
    }

    /// All entries that a flow may still need.
    pub(super) fn entries(&self, now: Tick) -> impl Iterator<Item = Traveller> + '_ {
        (0..self.buckets.len()).flat_map(move |at| self.in_bucket(at, now))
    }

    /// The entries of a key that its flow may still need.
    pub(super) fn of(&self, key: Key, now: Tick) -> impl Iterator<Item = Traveller> + '_ {
        key.homes(&self.seed, self.table.flows4.len())
            .into_iter()
            .flat_map(move |home| self.in_bucket(home as usize, now))
            .filter(move |traveller| traveller.key == key)
    }

    fn in_bucket(&self, at: usize, now: Tick) -> impl Iterator<Item = Traveller> + '_ {
        self.buckets[at]
            .entries
            .iter()
            .zip(self.facts[at].first_seen)
            .map(|(entry, first_seen)| Traveller {
                key: Key(entry.key),
                word: Word(entry.value),
                first_seen,
            })
            .filter(move |traveller| is_needed(traveller.word, now))
    }
}

/// Whether a flow may need an entry: not one that any new flow may take the place of for being past its time.
fn is_needed(word: Word, now: Tick) -> bool {
    if word.is_nascent() {
        word.nascent_age(now) < EMBRYO_TICKS
    } else {
        word.is_live() && !word.is_vacant(now)
    }
}

/// Removes all entries of a key from a table that nobody else writes. A deletion, which is all that the daemon does to entries.
pub(super) fn remove(table: &Maps, seed: &Seed, key: Key) {
    for home in key.homes(seed, table.flows4.len()) {
        let words = table.flows4.words(home);
        for way in 0..WAYS as usize {
            let (held, value) = (&words[2 * way], &words[2 * way + 1]);
            let seen = value.load(Ordering::Acquire);
            if Word(seen).is_entry() && held.load(Ordering::Acquire) == key.0 {
                // Nobody else writes, so it does not fail.
                let _ = value.compare_exchange(
                    seen,
                    Word::EMPTY.0,
                    Ordering::SeqCst,
                    Ordering::Relaxed,
                );
            }
        }
    }
}
