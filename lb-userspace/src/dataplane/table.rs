//! A flow table as the daemon sees it, whichever version of IP it is of: entries by bucket and way, each a key and the value word that owns it.

use std::{
    fmt::Debug,
    hash::Hash,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicU64, Ordering},
};

use lb_common::{
    flow::{
        FlowKey,
        bucket::{Facts, WAYS},
        v4, v6,
        word::Word,
    },
    hash::Seed,
    nat::{self, Translation, TranslationWord, translation::stamp},
    net::{Address, IpVersion},
};

use super::{
    array::{Array, Entry},
    maps::Maps,
};

/// The key of a flow in a table that is mapped.
pub trait TableKey: FlowKey + Eq + Hash + Debug + Send + 'static {
    /// The version of IP.
    const VERSION: IpVersion;
    /// Words of a key in an entry; the value follows them.
    const WORDS: usize;
    /// A bucket.
    type Bucket: Entry;

    /// The key of these words; a shorter one is of the first.
    fn of_words(words: [u64; 3]) -> Self;
    /// Its words; those that it has not are 0.
    fn to_words(self) -> [u64; 3];
    /// The client's address.
    fn client_address(self) -> Address;
    /// The table whose keys are such.
    fn table(maps: &Maps) -> Table<'_, Self>;
    /// The map of translations beside that table, of one bucket if no service translates.
    fn translations(maps: &Maps) -> &Array<nat::Bucket>;
}

impl TableKey for v4::Key {
    const VERSION: IpVersion = IpVersion::V4;
    const WORDS: usize = 1;
    type Bucket = v4::Bucket;

    fn of_words([word, ..]: [u64; 3]) -> Self {
        Self(word)
    }

    fn to_words(self) -> [u64; 3] {
        [self.0, 0, 0]
    }

    fn client_address(self) -> Address {
        IpAddr::from(Ipv4Addr::from_bits(self.address())).into()
    }

    fn table(maps: &Maps) -> Table<'_, Self> {
        Table {
            buckets: &maps.flows4,
            facts: &maps.facts4,
            translations: (maps.capacity.nat4_buckets != 0).then_some(&maps.nat4),
        }
    }

    fn translations(maps: &Maps) -> &Array<nat::Bucket> {
        &maps.nat4
    }
}

impl TableKey for v6::Key {
    const VERSION: IpVersion = IpVersion::V6;
    const WORDS: usize = 3;
    type Bucket = v6::Bucket;

    fn of_words([first, second, rest]: [u64; 3]) -> Self {
        Self {
            address: [first, second],
            rest,
        }
    }

    fn to_words(self) -> [u64; 3] {
        [self.address[0], self.address[1], self.rest]
    }

    fn client_address(self) -> Address {
        self.address()
    }

    fn table(maps: &Maps) -> Table<'_, Self> {
        Table {
            buckets: &maps.flows6,
            facts: &maps.facts6,
            translations: (maps.capacity.nat6_buckets != 0).then_some(&maps.nat6),
        }
    }

    fn translations(maps: &Maps) -> &Array<nat::Bucket> {
        &maps.nat6
    }
}

const _: () = assert!(size_of::<v4::Entry>() == 8 * (<v4::Key as TableKey>::WORDS + 1));
const _: () = assert!(size_of::<v6::Entry>() == 8 * (<v6::Key as TableKey>::WORDS + 1));

/// A place in a table: bucket and way.
pub type Place = (u32, u32);

/// A flow table.
#[derive(Debug)]
pub struct Table<'m, K: TableKey> {
    buckets: &'m Array<K::Bucket>,
    facts: &'m Array<Facts>,
    translations: Option<&'m Array<nat::Bucket>>,
}

impl<K: TableKey> Clone for Table<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K: TableKey> Copy for Table<'_, K> {}

impl<'m, K: TableKey> Table<'m, K> {
    /// Buckets.
    pub fn buckets(self) -> u32 {
        self.buckets.len()
    }

    /// Entries that it has room for.
    pub fn capacity(self) -> u64 {
        u64::from(self.buckets()) * u64::from(WAYS)
    }

    /// A key's two buckets.
    pub fn homes(self, key: K, seed: &Seed) -> [u32; 2] {
        key.homes(seed, self.buckets())
    }

    /// A bucket.
    ///
    /// # Panics
    /// If there is none of this index.
    pub fn bucket(self, index: u32) -> Bucket<'m, K> {
        Bucket::over(self.buckets.words(index))
    }

    /// The entry at a place, as [`Bucket::read`] reads it.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn read(self, (bucket, way): Place) -> Option<(K, Word)> {
        self.bucket(bucket).read(way)
    }

    /// The entries of a key.
    pub fn entries_of(self, key: K, seed: &Seed) -> impl Iterator<Item = (Place, Word)> {
        let places = self
            .homes(key, seed)
            .into_iter()
            .flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)));
        places.filter_map(move |place| {
            let (found, word) = self.read(place)?;
            (found == key).then_some((place, word))
        })
    }

    /// Changes the value at a place from what was seen: one compare-and-exchange.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn replace(self, (bucket, way): Place, seen: Word, new: Word) -> bool {
        let value = self.bucket(bucket).value(way);
        value
            .compare_exchange(seen.0, new.0, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    /// Whether there are translations beside its entries.
    pub fn translates(self) -> bool {
        self.translations.is_some()
    }

    /// The translation beside an entry, if there is one that is valid for it: the entry as it was read.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn translation(
        self,
        place: Place,
        key: K,
        word: Word,
        seed: &Seed,
    ) -> Option<TranslationWord> {
        let (words, seen) = self.stamped(place)?;
        if seen != stamp(key.mixed(seed), word.backend()) {
            return None;
        }
        let translation = words[0].load(Ordering::Acquire);
        // One that is written anew meanwhile is another flow's.
        (words[1].load(Ordering::Acquire) == seen).then_some(TranslationWord(translation))
    }

    /// Takes the translation away that a former flow has left at the place of an entry, as that was read, whose own it is not. None if there is none such, or
    /// if it or the entry changes at this moment.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn take_left_translation(
        self,
        place: Place,
        key: K,
        word: Word,
        seed: &Seed,
    ) -> Option<TranslationWord> {
        let (words, seen) = self.stamped(place)?;
        if seen == stamp(key.mixed(seed), word.backend()) {
            return None;
        }
        let translation = words[0].load(Ordering::Acquire);
        // It may be that of an entry which has come since.
        if self.read(place) != Some((key, word)) {
            return None;
        }
        words[1]
            .compare_exchange(seen, 0, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
            .then_some(TranslationWord(translation))
    }

    /// The words of the translation at a place, and its stamp; none if there is no translation there, or one that is being written.
    fn stamped(self, place: Place) -> Option<(&'m [AtomicU64], u64)> {
        let words = self.translation_words(place)?;
        let stamp = words[1].load(Ordering::Acquire);
        (stamp > Translation::BUSY).then_some((words, stamp))
    }

    /// The words of the translation at a place, the second of which is its stamp; none if there are no translations.
    fn translation_words(self, (bucket, way): Place) -> Option<&'m [AtomicU64]> {
        const WORDS: usize = size_of::<Translation>() / 8;
        Some(&self.translations?.words(bucket)[way as usize * WORDS..][..WORDS])
    }

    /// Changes the word of the translation at a place from what was seen: one compare-and-exchange. False too if there are none.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn replace_translation(
        self,
        place: Place,
        seen: TranslationWord,
        new: TranslationWord,
    ) -> bool {
        let Some([word, ..]) = self.translation_words(place) else {
            return false;
        };
        word.compare_exchange(seen.0, new.0, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok()
    }

    /// Writes the fact for people that goes with an entry: first seen, in ticks since boot.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn set_first_seen(self, (bucket, way): Place, tick: u32) {
        const OF_WORD: usize = size_of::<u64>() / size_of::<u32>();
        let way = way as usize;
        let word = &self.facts.words(bucket)[way / OF_WORD];
        let shift = 32 * (way % OF_WORD);
        let with_it =
            |seen: u64| Some((seen & !(u64::from(u32::MAX) << shift)) | (u64::from(tick) << shift));
        // It never fails, since there is always something to write.
        let _ = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, with_it);
    }

    /// The facts for people about its entries, by bucket.
    pub fn facts(self) -> &'m Array<Facts> {
        self.facts
    }
}

/// The words of one bucket.
#[derive(Clone, Copy, Debug)]
pub struct Bucket<'m, K> {
    words: &'m [AtomicU64],
    key: std::marker::PhantomData<K>,
}

impl<'m, K: TableKey> Bucket<'m, K> {
    /// The bucket that these words are.
    pub(crate) fn over(words: &'m [AtomicU64]) -> Self {
        Self {
            words,
            key: std::marker::PhantomData,
        }
    }

    fn entry(self, way: u32) -> &'m [AtomicU64] {
        let words = K::WORDS + 1;
        &self.words[way as usize * words..][..words]
    }

    /// The value word of an entry.
    ///
    /// # Panics
    /// If there is no such way.
    #[inline]
    pub fn value(self, way: u32) -> &'m AtomicU64 {
        &self.entry(way)[K::WORDS]
    }

    /// The words of an entry's key, which the daemon never writes in a flow table.
    ///
    /// # Panics
    /// If there is no such way.
    #[inline]
    pub fn key_words(self, way: u32) -> &'m [AtomicU64] {
        &self.entry(way)[..K::WORDS]
    }

    /// The key of an entry, whosever it is by now.
    ///
    /// # Panics
    /// If there is no such way.
    #[inline]
    pub fn key(self, way: u32) -> K {
        let mut words = [0; 3];
        for (to, from) in words.iter_mut().zip(self.key_words(way)) {
            *to = from.load(Ordering::Acquire);
        }
        K::of_words(words)
    }

    /// An entry: value, key, value again, so that both belong together. One that changes at that moment is taken for none.
    ///
    /// # Panics
    /// If there is no such way.
    #[inline]
    pub fn read(self, way: u32) -> Option<(K, Word)> {
        let value = self.value(way);
        let before = value.load(Ordering::Acquire);
        let key = self.key(way);
        let after = value.load(Ordering::Acquire);
        (before == after && Word(after).is_entry()).then_some((key, Word(after)))
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        clock::Tick,
        flow::word::{BackendRef, State},
    };

    use super::*;
    use crate::dataplane::maps::Capacity;

    /// Written as the data path lays it out, read as the daemon sees it.
    #[test]
    fn a_table_is_read_as_its_layout_says() {
        let maps = Maps::in_memory(Capacity::for_flows(10, 10, 2, 2, 64, 1)).unwrap();
        let word = Word::live(State::Pin, BackendRef::new(7, 1), 0, Tick(9), 0);
        let four = v4::Key::new(0x0a00_0001, 40_000, 3);
        let mut bucket = maps.flows4.get(1);
        bucket.entries[2] = v4::Entry {
            key: four.0,
            value: word.0,
        };
        maps.flows4.set(1, &bucket);
        let six = v6::Key::new(Address([7; 16]).words(), 40_000, 3);
        let mut bucket = maps.flows6.get(3);
        bucket.entries[1] = v6::Entry {
            key: six,
            value: word.0,
        };
        maps.flows6.set(3, &bucket);

        let table = v4::Key::table(&maps);
        table.set_first_seen((1, 2), 7);
        table.set_first_seen((1, 3), 9);
        table.set_first_seen((1, 2), 8);
        assert_eq!(table.facts().get(1).first_seen, [0, 0, 8, 9]);
        assert_eq!(all(v4::Key::table(&maps)), [((1, 2), four, word)]);
        assert_eq!(all(v6::Key::table(&maps)), [((3, 1), six, word)]);
        assert_eq!(v4::Key::of_words(four.to_words()), four);
        assert_eq!(v6::Key::of_words(six.to_words()), six);
    }

    fn all<K: TableKey>(table: Table<'_, K>) -> Vec<(Place, K, Word)> {
        (0..table.buckets())
            .flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)))
            .filter_map(|place| table.read(place).map(|(key, word)| (place, key, word)))
            .collect()
    }
}
