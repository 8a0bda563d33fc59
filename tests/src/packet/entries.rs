//! The flow table as a test writes and reads it.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use lb_common::{
    clock::Tick,
    flow::{
        FlowKey,
        bucket::{Facts, WAYS},
        table::Place,
        v4, v6,
        word::{BackendRef, State, Word},
    },
    hash::Seed,
    net::{Address, IpVersion},
};

use lb_userspace::dataplane::array::Array;

use super::{
    kernel::FLOW_SEED,
    version::{on_wire, version},
    world::{Client, SERVICE, World},
};

/// The widest age that an embryo's tick can tell, in ticks.
const OLDEST_EMBRYO: u32 = 63;

/// The key of a flow, of either version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// Of an IPv4 flow.
    V4(v4::Key),
    /// Of an IPv6 flow.
    V6(v6::Key),
}

impl FlowKey for Key {
    fn service(&self) -> u16 {
        match self {
            Self::V4(key) => key.service(),
            Self::V6(key) => key.service(),
        }
    }

    fn mixed(&self, seed: &Seed) -> u64 {
        match self {
            Self::V4(key) => key.mixed(seed),
            Self::V6(key) => key.mixed(seed),
        }
    }

    fn client_word(&self, seed: &Seed) -> u64 {
        match self {
            Self::V4(key) => key.client_word(seed),
            Self::V6(key) => key.client_word(seed),
        }
    }

    fn placed_by(self, affinity: u16) -> Self {
        match self {
            Self::V4(key) => Self::V4(key.placed_by(affinity)),
            Self::V6(key) => Self::V6(key.placed_by(affinity)),
        }
    }
}

impl Client {
    /// The key of its flow at [`SERVICE`].
    pub fn key(&self) -> Key {
        match on_wire(self.0) {
            IpAddr::V4(address) => Key::V4(v4::Key::new(address.into(), self.1, SERVICE)),
            address => {
                let address = Address::from(address).words();
                Key::V6(v6::Key::new(address, self.1, SERVICE))
            }
        }
    }
}

impl World {
    /// Buckets of the flow table of the version in force.
    pub fn buckets(&self) -> u32 {
        match version() {
            IpVersion::V4 => self.maps.capacity.flow4_buckets,
            IpVersion::V6 => self.maps.capacity.flow6_buckets,
        }
    }

    /// The two buckets of a key.
    pub fn homes(&self, key: Key) -> [u32; 2] {
        key.homes(&FLOW_SEED, self.buckets())
    }

    /// Every place of the table.
    pub fn places(&self) -> impl Iterator<Item = Place> + use<> {
        (0..self.buckets()).flat_map(|index| (0..WAYS).map(move |way| Place { index, way }))
    }

    /// The words of an entry, the value last.
    fn words(&self, place: Place) -> &[AtomicU64] {
        let (words, len) = match version() {
            IpVersion::V4 => (self.maps.flows4.words(place.index), 2),
            IpVersion::V6 => (self.maps.flows6.words(place.index), 4),
        };
        &words[len * place.way as usize..][..len]
    }

    /// Key and value at a place.
    pub fn at(&self, place: Place) -> (Key, Word) {
        let load = |word: &AtomicU64| word.load(Ordering::Acquire);
        match self.words(place) {
            [key, value] => (Key::V4(v4::Key(load(key))), Word(load(value))),
            [first, second, rest, value] => {
                let key = v6::Key {
                    address: [load(first), load(second)],
                    rest: load(rest),
                };
                (Key::V6(key), Word(load(value)))
            }
            words => panic!("an entry of {} words", words.len()),
        }
    }

    /// Writes key and value at a place.
    pub fn put(&self, place: Place, key: Key, value: Word) {
        let key = match key {
            Key::V4(key) => vec![key.0],
            Key::V6(key) => vec![key.address[0], key.address[1], key.rest],
        };
        for (word, value) in self.words(place).iter().zip(key) {
            word.store(value, Ordering::SeqCst);
        }
        self.set_value(place, value);
    }

    /// Writes the value at a place.
    pub fn set_value(&self, place: Place, value: Word) {
        if let Some(word) = self.words(place).last() {
            word.store(value.0, Ordering::SeqCst);
        }
    }

    /// The facts that go with a bucket.
    pub fn facts(&self) -> &Array<Facts> {
        match version() {
            IpVersion::V4 => &self.maps.facts4,
            IpVersion::V6 => &self.maps.facts6,
        }
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
        for place in self.places() {
            let value = self.at(place).1;
            if value.is_entry() {
                self.set_value(place, older(value, ticks, now));
            }
        }
    }

    /// Facts for people about a place: the tick of its promotion.
    pub fn first_seen(&self, place: Place) -> u32 {
        self.facts().get(place.index).first_seen[place.way as usize]
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
