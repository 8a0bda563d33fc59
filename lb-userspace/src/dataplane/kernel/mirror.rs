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
        bucket::WAYS,
        table::Place,
        word::{EMBRYO_TICKS, Word},
    },
    hash::Seed,
    nat::{TranslationWord, slot_of},
};

use super::copier::Traveller;
use crate::dataplane::{maps::Maps, table::TableKey};

/// The image of one table.
pub(super) struct Mirror<K> {
    maps: Arc<Maps>,
    seed: Seed,
    /// Whether entries are in their homes.
    knows_homes: bool,
    /// Bucket by bucket; what is no entry is none.
    entries: Vec<(K, Word)>,
    first_seen: Vec<u32>,
    /// The translations beside; empty where no flow has any, since an image of many millions of nothing takes room.
    translations: Vec<Option<TranslationWord>>,
}

impl<K: TableKey> Mirror<K> {
    /// An image of nothing, to be one of these maps' table, in which entries are in their homes or anywhere.
    pub(super) fn new(maps: Arc<Maps>, seed: Seed, knows_homes: bool) -> Self {
        let table = K::table(&maps);
        let len = table.capacity() as usize;
        let translated = if table.translates() { len } else { 0 };
        Self {
            maps,
            seed,
            knows_homes,
            entries: vec![nothing(); len],
            first_seen: vec![0; len],
            translations: vec![None; translated],
        }
    }

    /// Brings the image up to date. Gives the keys whose entries are not what they were.
    pub(super) fn refresh(&mut self) -> HashSet<K> {
        let mut changed = HashSet::new();
        let maps = Arc::clone(&self.maps);
        let table = K::table(&maps);
        for index in 0..table.buckets() {
            let bucket = table.bucket(index);
            let facts = table.facts().get(index).first_seen;
            for (way, fact) in (0..WAYS).zip(facts) {
                let at = (index * WAYS + way) as usize;
                let (held, first_seen) = (&mut self.entries[at], &mut self.first_seen[at]);
                let mut nowhere = None;
                let translation = self.translations.get_mut(at).unwrap_or(&mut nowhere);
                // One that changes at this moment is taken for none; the pass after this finds that it is one.
                let seen = bucket.read(way).unwrap_or_else(nothing);
                let translated = table.translation((index, way), seen.0, seen.1, &self.seed);
                let is_same = seen == *held
                    && (fact == *first_seen || !seen.1.is_entry())
                    && translated == *translation;
                if is_same {
                    continue;
                }
                for (key, word) in [*held, seen] {
                    if word.is_entry() {
                        changed.insert(key);
                    }
                }
                (*held, *first_seen, *translation) = (seen, fact, translated);
            }
        }
        changed
    }

    /// All entries that a flow may still need.
    pub(super) fn entries(&self, now: Tick) -> impl Iterator<Item = Traveller<K>> + '_ {
        let buckets = K::table(&self.maps).buckets();
        (0..buckets).flat_map(move |bucket| self.in_bucket(bucket, now))
    }

    /// The entries of some keys that their flows may still need.
    pub(super) fn of<'a>(
        &'a self,
        keys: &'a HashSet<K>,
        now: Tick,
    ) -> Box<dyn Iterator<Item = Traveller<K>> + 'a> {
        if !self.knows_homes {
            let entries = self.entries(now);
            return Box::new(entries.filter(|traveller| keys.contains(&traveller.key)));
        }
        let table = K::table(&self.maps);
        Box::new(keys.iter().flat_map(move |key| {
            let homes = table.homes(*key, &self.seed).into_iter();
            homes
                .flat_map(move |home| self.in_bucket(home, now))
                .filter(move |traveller| traveller.key == *key)
        }))
    }

    fn in_bucket(&self, bucket: u32, now: Tick) -> impl Iterator<Item = Traveller<K>> + '_ {
        let first = (bucket * WAYS) as usize;
        let places = first..first + WAYS as usize;
        self.entries[places.clone()]
            .iter()
            .zip(&self.first_seen[places.clone()])
            .zip(places)
            .map(|((&(key, word), &first_seen), at)| Traveller {
                key,
                word,
                first_seen,
                translation: self.translations.get(at).copied().flatten(),
            })
            .filter(move |traveller| is_needed(traveller.word, now))
    }
}

fn nothing<K: TableKey>() -> (K, Word) {
    (K::of_words([0; 3]), Word::EMPTY)
}

/// Whether a flow may need an entry: not one that any new flow may take the place of for being past its time.
fn is_needed(word: Word, now: Tick) -> bool {
    if word.is_nascent() {
        word.nascent_age(now) < EMBRYO_TICKS
    } else {
        word.is_live() && !word.is_vacant(now)
    }
}

/// Removes all entries of a key from a table that nobody else writes, and the slots of their ports, so that the key's next entry there can have the
/// same ones. A deletion, which is all that the daemon does to entries.
pub(super) fn remove<K: TableKey>(maps: &Maps, seed: &Seed, key: K) {
    let table = K::table(maps);
    for home in table.homes(key, seed) {
        let bucket = table.bucket(home);
        for way in 0..WAYS {
            if let Some((held, word)) = bucket.read(way)
                && held == key
            {
                if let Some(translation) = table.translation((home, way), key, word, seed) {
                    let place = slot_of(Place { index: home, way });
                    maps.empty_slot(translation.pair(), translation.port(), place);
                }
                // Nobody else writes, so it does not fail.
                let _ = bucket.value(way).compare_exchange(
                    word.0,
                    Word::EMPTY.0,
                    Ordering::SeqCst,
                    Ordering::Relaxed,
                );
            }
        }
    }
}
