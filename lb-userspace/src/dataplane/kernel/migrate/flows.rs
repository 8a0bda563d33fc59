//! The flow tables of another version, entry by entry as this one lays them out.

use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::{
    flow::{
        bucket::WAYS,
        word::{State, Word},
    },
    hash::Seed,
    nat::{Translation, translation::stamp},
    net::IpVersion,
};

use super::{FOUND_ELSEWHERE, load};
use crate::dataplane::{
    layouts::{
        Layouts,
        convert::{Conversion, Overflow},
    },
    maps::Maps,
    table::{Place, TableKey},
};

/// How the entries of one flow table are moved.
pub(super) struct Flows<K> {
    record: &'static str,
    entry: Conversion,
    nascent: Conversion,
    live: Conversion,
    facts: Conversion,
    translation: Conversion,
    /// Where in an entry the value is.
    value_at: usize,
    /// Where in an entry the words of the key are, as its hash takes them.
    key_at: Vec<usize>,
    /// Where in a translation its word is, and its stamp.
    translation_at: [usize; 2],
    translation_words: usize,
    /// How the other version mixes a key.
    mixed: fn(&K, &Seed) -> u64,
}

impl<K: TableKey> Flows<K> {
    /// None if the other version's entries are of another kind than this one's.
    pub(super) fn between(from: &Layouts, own: &Layouts) -> Option<Self> {
        let record = match K::VERSION {
            IpVersion::V4 => "flow4_entry",
            IpVersion::V6 => "flow6_entry",
        };
        let conversion = |record| Conversion::between(from, own, record);
        let word_of = |record, field| Some(from.place(record, field)? / 64);
        let (address, port) = (
            word_of(record, "key.address")?,
            word_of(record, "key.port")?,
        );
        Some(Self {
            record,
            entry: conversion(record)?,
            nascent: conversion("flow_word_nascent")?,
            live: conversion("flow_word_live")?,
            facts: conversion("facts")?,
            translation: conversion("translation_word")?,
            value_at: word_of(record, "value.state")?,
            key_at: match K::VERSION {
                IpVersion::V4 => vec![port],
                IpVersion::V6 => vec![address, address + 1, port],
            },
            translation_at: [
                word_of("translation", "word.port")?,
                word_of("translation", "stamp")?,
            ],
            translation_words: from.bytes_of("translation") / 8,
            mixed: if from.version < FOUND_ELSEWHERE {
                K::mixed_before_9
            } else {
                K::mixed
            },
        })
    }

    /// Fields of theirs that this version does not have.
    pub(super) fn dropped(&self) -> impl Iterator<Item = String> {
        let of = |record: &'static str, conversion: &Conversion| {
            let fields = conversion.dropped.clone().into_iter();
            fields.map(move |field| format!("{record}.{field}"))
        };
        of(self.record, &self.entry)
            .chain(of("flow_word_nascent", &self.nascent))
            .chain(of("flow_word_live", &self.live))
            .chain(of("translation_word", &self.translation))
    }

    /// Brings an image up to date, which has each entry at the place that it has there.
    pub(super) fn read(
        &self,
        flows: &[AtomicU64],
        facts: &[AtomicU64],
        translations: &[AtomicU64],
        image: &Maps,
        seed: &Seed,
    ) -> Result<(), Overflow> {
        let table = K::table(image);
        let (words, _) = self.entry.words();
        let (fact_words, new_fact_words) = self.facts.words();
        let (mut raw, mut new) = (vec![0; words], vec![0; K::WORDS + 1]);
        let (mut raw_facts, mut new_facts) = (vec![0; fact_words], vec![0; new_fact_words]);
        for bucket in 0..table.buckets() {
            let from = &facts[bucket as usize * fact_words..][..fact_words];
            load(from, &mut raw_facts);
            self.facts.apply(&raw_facts, &mut new_facts)?;
            for (to, fact) in table.facts().words(bucket).iter().zip(&new_facts) {
                if to.load(Ordering::Relaxed) != *fact {
                    to.store(*fact, Ordering::Relaxed);
                }
            }
            for way in 0..WAYS {
                let at = (bucket * WAYS + way) as usize;
                let from = &flows[at * words..][..words];
                // As every reader does: value, key, value again. One that changes at this moment is taken for none.
                let value = from[self.value_at].load(Ordering::Acquire);
                load(from, &mut raw);
                let is_whole = from[self.value_at].load(Ordering::Acquire) == value;
                raw[self.value_at] = value;
                self.entry.apply(&raw, &mut new)?;
                let mut word = Word(new[K::WORDS]);
                if !is_whole || !word.is_entry() {
                    word = Word::EMPTY;
                } else if word.is_nascent() {
                    word.0 |= self.nascent.word(value)?;
                } else {
                    word.0 |= self.live.word(value)?;
                }
                let to = table.bucket(bucket);
                if word.is(State::Empty) && to.value(way).load(Ordering::Relaxed) == word.0 {
                    continue;
                }
                for (to, word) in to.key_words(way).iter().zip(&new) {
                    to.store(*word, Ordering::Relaxed);
                }
                to.value(way).store(word.0, Ordering::Relaxed);
                if table.translates() {
                    let from =
                        &translations[at * self.translation_words..][..self.translation_words];
                    self.read_translation(from, &raw, image, (bucket, way), seed)?;
                }
            }
        }
        Ok(())
    }

    /// Brings the translation beside an entry up to date: one that is valid there is valid here.
    fn read_translation(
        &self,
        from: &[AtomicU64],
        entry: &[u64],
        image: &Maps,
        place: Place,
        seed: &Seed,
    ) -> Result<(), Overflow> {
        let (bucket, way) = place;
        let mut hashed = [0; 3];
        for (to, at) in hashed.iter_mut().zip(&self.key_at) {
            *to = entry[*at];
        }
        let [word_at, stamp_at] = self.translation_at;
        let seen = from[stamp_at].load(Ordering::Acquire);
        let translation = from[word_at].load(Ordering::Acquire);
        let is_settled = from[stamp_at].load(Ordering::Acquire) == seen;
        let valid = K::table(image).read(place).filter(|(_, word)| {
            let expected = stamp((self.mixed)(&K::of_words(hashed), seed), word.backend());
            is_settled && seen > Translation::BUSY && seen == expected
        });
        let moved = match valid {
            Some((key, word)) => Translation {
                word: self.translation.word(translation)?,
                stamp: stamp(key.mixed(seed), word.backend()),
            },
            None => Translation::default(),
        };
        let beside = K::translations(image);
        let mut all = beside.get(bucket);
        all.translations[way as usize] = moved;
        beside.set(bucket, &all);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        clock::Tick,
        flow::{FlowKey as _, v6::Key, word::BackendRef},
        nat::TranslationWord,
    };

    use super::*;
    use crate::dataplane::maps::Capacity;

    const SEED: Seed = Seed {
        whiten: 0x1234_5678_9abc_def0,
        first: 0x9e37_79b9_7f4a_7c15,
        second: 0xd6e8_feb8_6659_fd93,
    };

    fn zeroed(words: usize) -> Vec<AtomicU64> {
        (0..words).map(|_| AtomicU64::new(0)).collect()
    }

    /// A translation is known by its flow's hash, which was another one.
    #[test]
    fn what_is_translated_in_an_older_version_is_here_and_nothing_else() {
        let own = Layouts::own();
        let mut old = own.clone();
        old.version = FOUND_ELSEWHERE - 1;
        let capacity = Capacity::for_flows(10, 10, 8, 64, 64, 1);
        let image = Maps::in_memory(capacity.translating_flows_of(IpVersion::V6, true)).unwrap();
        let moving = Flows::<Key>::between(&old, &own).unwrap();

        let backend = BackendRef::new(1, 0);
        let value = Word::live(State::Pin, backend, 5, Tick(9), 0);
        let key = Key::new([1 << 60, 2], 40_000, 1);
        let stamps =
            [key.mixed_before_9(&SEED), key.mixed(&SEED)].map(|mixed| stamp(mixed, backend));
        assert_ne!(stamps[0], stamps[1]);
        let ways = image.flows6.len() as usize * WAYS as usize;
        let flows = zeroed(ways * (Key::WORDS + 1));
        let facts = zeroed(image.flows6.len() as usize * old.bytes_of("facts") / 8);
        let translations = zeroed(ways * moving.translation_words);
        let store = |to: &AtomicU64, word| to.store(word, Ordering::Relaxed);
        for (way, stamp) in stamps.into_iter().enumerate() {
            let entry = &flows[way * (Key::WORDS + 1)..];
            for (to, word) in entry
                .iter()
                .zip(key.to_words().into_iter().chain([value.0]))
            {
                store(to, word);
            }
            let [word_at, stamp_at] = moving.translation_at;
            let translation = &translations[way * moving.translation_words..];
            store(&translation[word_at], TranslationWord::new(0, 0).0);
            store(&translation[stamp_at], stamp);
        }
        moving
            .read(&flows, &facts, &translations, &image, &SEED)
            .unwrap();
        let moved = image.nat6.get(0).translations;
        assert_eq!(moved[0].stamp, stamps[1]);
        assert_eq!(moved[1], Translation::default());
    }
}
