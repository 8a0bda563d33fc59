//! The flow table as a test writes and reads it.

use std::sync::atomic::Ordering;

use lb_common::{
    clock::Tick,
    flow::{
        table::Place,
        v4::{Key, WAYS},
        word::{BackendRef, State, Word},
    },
};

use super::{
    kernel::FLOW_SEED,
    world::{Client, SERVICE, World},
};

/// The widest age that an embryo's tick can tell, in ticks.
const OLDEST_EMBRYO: u32 = 63;

impl Client {
    /// The key of its flow at [`SERVICE`].
    pub fn key(&self) -> Key {
        Key::new(self.0.into(), self.1, SERVICE)
    }
}

impl World {
    /// The two buckets of a key.
    pub fn homes(&self, key: Key) -> [u32; 2] {
        key.homes(&FLOW_SEED, self.maps.capacity.flow_buckets)
    }

    /// Every place of the table.
    pub fn places(&self) -> impl Iterator<Item = Place> + use<> {
        (0..self.maps.capacity.flow_buckets)
            .flat_map(|index| (0..WAYS).map(move |way| Place { index, way }))
    }

    /// Key and value at a place.
    pub fn at(&self, place: Place) -> (Key, Word) {
        let word = 2 * place.way as usize;
        let load = |word| {
            self.maps
                .flows4
                .word(place.index, word)
                .load(Ordering::Acquire)
        };
        (Key(load(word)), Word(load(word + 1)))
    }

    /// Writes key and value at a place.
    pub fn put(&self, place: Place, key: Key, value: Word) {
        let word = 2 * place.way as usize;
        let flows = &self.maps.flows4;
        flows.word(place.index, word).store(key.0, Ordering::SeqCst);
        self.set_value(place, value);
    }

    /// Writes the value at a place.
    pub fn set_value(&self, place: Place, value: Word) {
        let word = 2 * place.way as usize + 1;
        self.maps
            .flows4
            .word(place.index, word)
            .store(value.0, Ordering::SeqCst);
    }

    /// Writes an entry to the first empty place of its key's homes.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn insert(&self, key: Key, value: Word) -> Place {
        let place = self
            .places_of(key)
            .find(|place| self.at(*place).1 == Word::EMPTY)
            .expect("an empty place in the key's homes");
        self.put(place, key, value);
        place
    }

    /// The eight places where a key may be, in the order in which they are looked at.
    pub fn places_of(&self, key: Key) -> impl Iterator<Item = Place> + use<> {
        let homes = self.homes(key);
        homes
            .into_iter()
            .flat_map(|index| (0..WAYS).map(move |way| Place { index, way }))
    }

    /// All entries of a key, wherever in the table they are.
    pub fn entries(&self, key: Key) -> Vec<(Place, Word)> {
        self.places()
            .filter_map(|place| {
                let (its_key, word) = self.at(place);
                (its_key == key && word.is_entry()).then_some((place, word))
            })
            .collect()
    }

    /// The one entry of a key.
    ///
    /// # Panics
    /// If it has none or several, or one outside its homes.
    #[track_caller]
    pub fn entry(&self, key: Key) -> Word {
        let entries = self.entries(key);
        let [(place, word)] = entries[..] else {
            panic!("{} entries: {entries:?}", entries.len());
        };
        let homes = self.homes(key);
        assert!(
            homes.contains(&place.index),
            "{place:?} is none of {homes:?}"
        );
        word
    }

    /// The only entry of a key in this state.
    ///
    /// # Panics
    /// If there is none or several.
    #[track_caller]
    pub fn entry_in(&self, key: Key, state: State) -> (Place, Word) {
        let entries = self.entries(key);
        let mut in_state = entries.iter().filter(|(_, word)| word.is(state));
        match (in_state.next(), in_state.next()) {
            (Some(entry), None) => *entry,
            _ => panic!("not exactly one {state:?} in {entries:?}"),
        }
    }

    /// All values of the table that are not empty.
    pub fn values(&self) -> Vec<(Place, Key, Word)> {
        self.places()
            .map(|place| {
                let (key, word) = self.at(place);
                (place, key, word)
            })
            .filter(|(_, _, word)| *word != Word::EMPTY)
            .collect()
    }

    /// Lets time pass for every entry: each is made that many ticks older. Embryos grow no older than their tick can tell.
    pub fn age(&self, ticks: u32) {
        let now = super::world::tick();
        for index in 0..self.maps.capacity.flow_buckets {
            for way in 0..WAYS {
                let place = Place { index, way };
                let value = self.at(place).1;
                if value.is_entry() {
                    self.set_value(place, older(value, ticks, now));
                }
            }
        }
    }

    /// Facts for people about a place: the tick of its promotion.
    pub fn first_seen(&self, place: Place) -> u32 {
        self.maps.facts4.get(place.index).first_seen[place.way as usize]
    }

    /// Clients whose flows have the same two homes as `like`'s, either way round, `like` not among them.
    pub fn neighbours(&self, like: Client) -> impl Iterator<Item = Client> + '_ {
        let mut homes = self.homes(like.key());
        homes.sort_unstable();
        (1_024..=u16::MAX)
            .map(move |port| Client(like.0, port))
            .filter(move |client| {
                let mut theirs = self.homes(client.key());
                theirs.sort_unstable();
                theirs == homes && *client != like
            })
    }
}

fn older(value: Word, ticks: u32, now: Tick) -> Word {
    if value.is_live() {
        return value.with_tick(Tick(value.tick().wrapping_sub(ticks)));
    }
    let age = (value.nascent_age(now) + ticks).min(OLDEST_EMBRYO);
    let then = Tick(now.0.wrapping_sub(age));
    if value.is(State::Challenger) {
        Word::challenger(value.backend(), value.isn(), then)
    } else {
        Word::embryo(value.backend(), value.isn(), then)
    }
}

/// The first holder of a backend's id.
pub fn backend(id: u32) -> BackendRef {
    BackendRef::new(id, 0)
}
