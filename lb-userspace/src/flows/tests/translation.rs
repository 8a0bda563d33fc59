//! Translations beside entries, and the ports that go with them.

use lb_common::{
    flow,
    nat::{
        FIRST_PORT, Pair, Translation, TranslationWord, WORDS_OF_PAIR, slot_index, slot_of,
        translation::stamp,
    },
};

use super::*;
use crate::dataplane::table::Place;

in_both_versions! {
    an_entry_that_goes_gives_back_its_port
    a_port_that_is_anothers_by_now_is_not_given_back
    a_translation_of_another_flow_is_none
    a_port_that_a_former_flow_has_left_is_given_back
}

impl<K: Client> Fixture<K> {
    /// Gives the entry at a place a translation, as the data path does.
    fn put_translation(&self, (bucket, way): Place, key: K, word: TranslationWord) {
        let array = match K::VERSION {
            IpVersion::V4 => &self.maps.nat4,
            IpVersion::V6 => &self.maps.nat6,
        };
        let mut translations = array.get(bucket);
        translations.translations[way as usize] = Translation {
            word: word.0,
            stamp: stamp(key.mixed(&SEED), self.word(bucket, way).backend()),
        };
        array.set(bucket, &translations);
    }

    fn translate_without_port(&self, place: Place, key: K) {
        self.put_translation(place, key, TranslationWord::new(0, 0));
    }

    /// The same with a port of a pair.
    fn translate(&self, (bucket, way): Place, key: K, (pair, port): (u16, u16)) {
        self.put_translation((bucket, way), key, TranslationWord::new(pair, port));
        let slot = slot_index(pair, port);
        let place = slot_of(flow::table::Place { index: bucket, way });
        let word = self.maps.slots.word(slot / 2, 0);
        word.fetch_or(u64::from(place) << (32 * (slot % 2)), Ordering::SeqCst);
        let bit = u32::from(port - FIRST_PORT);
        let word = u32::from(pair) * WORDS_OF_PAIR + bit / 64;
        let bits = self.maps.ports.word(word, 0);
        bits.fetch_or(1 << (bit % 64), Ordering::SeqCst);
    }

    fn slot(&self, pair: u16, port: u16) -> u32 {
        let slot = slot_index(pair, port);
        (self.maps.slots.get(slot / 2) >> (32 * (slot % 2))) as u32
    }
}

/// Of two neighbouring ports, whose slots share a word, the one and not the other; and a pair's flows and ports are counted.
fn an_entry_that_goes_gives_back_its_port<K: Client>() {
    let fixture = Fixture::<K>::new(8);
    let pair = Pair {
        endpoint: 1,
        ..Pair::default()
    };
    fixture.maps.pairs.set(2, &pair);
    let (ended, lives, unported) = (K::client(1, 0), K::client(2, 0), K::client(3, 0));
    fixture.put(5, 1, ended, aged(State::Closing, OWNER, 5_000));
    fixture.put(5, 2, lives, aged(State::Pin, OWNER, 5_000));
    fixture.put(6, 0, unported, aged(State::Pin, OWNER, 5_000));
    fixture.translate((5, 1), ended, (2, 2_000));
    fixture.translate((5, 2), lives, (2, 2_001));
    // Mode `dnat` has none.
    fixture.translate_without_port((6, 0), unported);
    assert_eq!(fixture.maps.ports_in_use(2), 2);

    let mut sweeper = fixture.sweeper();
    let census = sweeper.pass();
    assert_eq!((census.swept.ended, census.swept.ports), (1, 1));
    assert_eq!(
        (fixture.slot(2, 2_000), fixture.maps.ports_in_use(2)),
        (0, 1)
    );
    assert_ne!(fixture.slot(2, 2_001), 0);
    assert_eq!(census.by_pair, [(2, 1)].into());
    assert_eq!(census.ports, [(2, 1)].into());
    let census = sweeper.pass();
    assert_eq!((census.swept.ports, census.by_pair), (1, [(2, 1)].into()));
}

fn a_port_that_is_anothers_by_now_is_not_given_back<K: Client>() {
    let fixture = Fixture::<K>::new(8);
    let key = K::client(1, 0);
    fixture.put(5, 1, key, aged(State::Closing, OWNER, 5_000));
    fixture.translate((5, 1), key, (2, 2_000));
    let other = u64::from(slot_of(flow::table::Place { index: 3, way: 3 }));
    let slot = slot_index(2, 2_000);
    fixture
        .maps
        .slots
        .set(slot / 2, &(other << (32 * (slot % 2))));
    let census = fixture.sweeper().pass();
    assert_eq!((census.swept.ended, census.swept.ports), (1, 0));
    assert_eq!(u64::from(fixture.slot(2, 2_000)), other);
    assert_eq!(fixture.maps.ports_in_use(2), 1);
}

/// What a former occupant of the place has left, and one that is being written.
fn a_translation_of_another_flow_is_none<K: Client>() {
    let fixture = Fixture::<K>::new(8);
    let (former, key) = (K::client(1, 0), K::client(2, 0));
    fixture.put(5, 1, former, aged(State::Pin, OWNER, 1));
    fixture.translate((5, 1), former, (2, 2_000));
    let read = |key, backend| {
        let table = K::table(&fixture.maps);
        table.translation((5, 1), key, aged(State::Pin, backend, 1), &SEED)
    };
    let word = TranslationWord::new(2, 2_000);
    assert_eq!(read(former, OWNER), Some(word));
    assert_eq!((read(key, OWNER), read(former, OTHER)), (None, None));
}

/// A flow that is not translated has the place of one that had a port, and the data path has left its translation as it is.
fn a_port_that_a_former_flow_has_left_is_given_back<K: Client>() {
    for (state, age) in [(State::Pin, 1), (State::Closing, 5_000)] {
        let fixture = Fixture::<K>::new(8);
        let pair = Pair {
            endpoint: 1,
            ..Pair::default()
        };
        fixture.maps.pairs.set(2, &pair);
        let (former, key) = (K::client(1, 0), K::client(2, 0));
        fixture.put(5, 1, former, aged(State::Closing, OWNER, 1));
        fixture.translate((5, 1), former, (2, 2_000));
        fixture.put(5, 1, key, aged(State::Pin, OTHER, 1));
        let forward = |forwarding| {
            let backend = BackendState::new(0, Serving::New, forwarding, 0, true);
            fixture.maps.set_state(OTHER, backend);
        };
        let mut sweeper = fixture.sweeper();

        // One that is translated gives it back itself, with its next packet.
        forward(Forwarding::Nat);
        let census = sweeper.pass();
        assert_eq!((census.swept.ports, census.ports), (0, [(2, 1)].into()));
        assert_ne!(fixture.slot(2, 2_000), 0);

        // Whether it stays or goes.
        forward(Forwarding::L2);
        fixture.put(5, 1, key, aged(state, OTHER, age));
        let census = sweeper.pass();
        assert_eq!((census.swept.ports, census.ports), (1, [(2, 0)].into()));
        assert_eq!(fixture.slot(2, 2_000), 0);
        let is_there = fixture.word(5, 1) != Word::EMPTY;
        assert_eq!(is_there, state == State::Pin);

        // Once: the port may be another's by then.
        fixture.translate((3, 3), former, (2, 2_000));
        assert_eq!(sweeper.pass().swept.ports, 1);
        assert_ne!(fixture.slot(2, 2_000), 0);
    }
}
