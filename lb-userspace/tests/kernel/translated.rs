//! Translations beside a flow table: made by a restart when they are first wanted, and moved with their flows ever after.

use std::sync::atomic::Ordering;

use lb_common::{
    clock::Tick,
    flow::{
        bucket::buckets_for,
        table::Place,
        v4, v6,
        word::{BackendRef, State, Word},
    },
    nat::{
        FIRST_PORT, Pair, Translation, TranslationWord, WORDS_OF_PAIR, slot_index, slot_of,
        translation::stamp,
    },
    net::IpVersion,
};
use lb_userspace::dataplane::{
    kernel::Kernel,
    maps::{Maps, now},
};

use crate::{
    resize::{places, put},
    sandbox::{Sandbox, run},
    wire::Client,
};

const FLOWS: u32 = 100;
const PAIR: u16 = 3;
/// Long enough for a flow that was reset to be forgotten.
const ENDED_TICKS: u32 = 10_000;

/// Opens the instance with tables of both versions for so many flows, and with translations beside that of `K`, if they are wanted.
fn open<K: Client>(sandbox: &Sandbox, flows: u32, translates: bool) -> Kernel {
    let mut options = sandbox.options(&["va"]);
    options.capacity.flow4_buckets = buckets_for(flows);
    options.capacity.flow6_buckets = buckets_for(flows);
    options.capacity = options
        .capacity
        .with_pairs(6)
        .translating_flows_of(K::VERSION, translates);
    let mut kernel = Kernel::open(&options).unwrap();
    if let Some(error) = kernel.not_resized() {
        panic!("{error}");
    }
    kernel.attach().unwrap();
    kernel
}

fn key<K: Client>(n: u32) -> K {
    K::client(0x0a02_0000 + n, 40_000)
}

/// Where the entry of a key is, and its word.
fn entry<K: Client>(maps: &Maps, key: K) -> (Place, Word) {
    let table = K::table(maps);
    let place = places(maps, key).find(|place| {
        let held = table.read(*place);
        held.is_some_and(|(held, _)| held == key)
    });
    let (index, way) = place.expect("the flow has an entry");
    let (_, word) = table.read((index, way)).expect("it was there");
    (Place { index, way }, word)
}

/// Every other flow has a port, as in mode `nat`; the rest have none, as in `dnat`.
fn word_of(n: u32) -> TranslationWord {
    if n.is_multiple_of(2) {
        TranslationWord::new(PAIR, 2_000 + n as u16).proven(n << 20)
    } else {
        TranslationWord::new(0, 0).answered(n)
    }
}

fn slot(maps: &Maps, port: u16) -> u32 {
    let index = slot_index(PAIR, port);
    (maps.slots.get(index / 2) >> (index % 2 * 32)) as u32
}

/// Gives a flow its translation, as the data path does.
fn translate<K: Client>(maps: &Maps, n: u32) {
    let (place, word) = entry(maps, key::<K>(n));
    let translations = match K::VERSION {
        IpVersion::V4 => &maps.nat4,
        IpVersion::V6 => &maps.nat6,
    };
    let translation = word_of(n);
    let mut bucket = translations.get(place.index);
    bucket.translations[place.way as usize] = Translation {
        word: translation.0,
        stamp: stamp(
            key::<K>(n).mixed(&maps.instance.get(0).flow_seed),
            word.backend(),
        ),
    };
    translations.set(place.index, &bucket);
    if translation.port() == 0 {
        return;
    }
    let index = slot_index(PAIR, translation.port());
    let slots = maps.slots.word(index / 2, 0);
    slots.fetch_or(
        u64::from(slot_of(place)) << (index % 2 * 32),
        Ordering::SeqCst,
    );
    let bit = u32::from(translation.port() - FIRST_PORT);
    let bits = maps
        .ports
        .word(u32::from(PAIR) * WORDS_OF_PAIR + bit / 64, 0);
    bits.fetch_or(1 << (bit % 64), Ordering::SeqCst);
}

fn assert_translated<K: Client>(maps: &Maps) {
    assert!(maps.capacity.translates_flows_of(K::VERSION));
    let seed = maps.instance.get(0).flow_seed;
    for n in 0..FLOWS {
        let (place, word) = entry(maps, key::<K>(n));
        let table = K::table(maps);
        let found = table.translation((place.index, place.way), key(n), word, &seed);
        assert_eq!(found, Some(word_of(n)), "flow {n}");
        if word_of(n).port() != 0 {
            assert_eq!(slot(maps, word_of(n).port()), slot_of(place), "flow {n}");
        }
    }
    assert_eq!(maps.ports_in_use(PAIR), FLOWS / 2);
}

fn move_with_their_flows<K: Client>() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let kernel = open::<K>(sandbox, 3_000, false);
        let maps = kernel.maps();
        assert!(!maps.capacity.translates());
        let pin = Word::live(State::Pin, BackendRef::new(1, 0), 0, now(), 0);
        for n in 0..FLOWS {
            assert!(put(&maps, key::<K>(n), pin, 7));
        }
        drop((kernel, maps));

        let kernel = open::<K>(sandbox, 3_000, true);
        let maps = kernel.maps();
        let pair = Pair {
            endpoint: 1,
            ..Pair::default()
        };
        maps.pairs.set(u32::from(PAIR), &pair);
        let translated = IpVersion::ALL.map(|version| maps.capacity.translates_flows_of(version));
        assert_eq!(
            translated,
            IpVersion::ALL.map(|version| version == K::VERSION)
        );
        for n in 0..FLOWS {
            assert_eq!(entry(&maps, key::<K>(n)).1, pin);
            translate::<K>(&maps, n);
        }
        assert_translated::<K>(&maps);
        // One that has ended is not moved, and its port is free from then on.
        let ended = Word::live(
            State::Closing,
            BackendRef::new(1, 0),
            0,
            Tick(now().0.wrapping_sub(ENDED_TICKS)),
            Word::BY_RESET,
        );
        assert!(put(&maps, key::<K>(FLOWS), ended, 7));
        translate::<K>(&maps, FLOWS);
        assert_eq!(maps.ports_in_use(PAIR), FLOWS / 2 + 1);
        drop((kernel, maps));

        // And when no service needs them any more: its flows may.
        for (flows, translates) in [(12_000, true), (3_000, false)] {
            let kernel = open::<K>(sandbox, flows, translates);
            assert_eq!(
                kernel.maps().capacity.flow_buckets(K::VERSION),
                buckets_for(flows)
            );
            assert_translated::<K>(&kernel.maps());
        }
    });
}

#[test]
fn translations_are_made_by_a_restart_and_move_with_their_flows() {
    move_with_their_flows::<v4::Key>();
}

#[test]
fn translations_of_ipv6_flows_are_made_by_a_restart_and_move_with_them() {
    move_with_their_flows::<v6::Key>();
}
