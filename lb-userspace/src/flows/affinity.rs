//! Which backends clients keep, of services that place clients and not flows: learned from the flow tables in each pass, and written where the data path
//! looks for it.
//!
//! All that is known is in the maps, so that it outlives the daemon: a service's entry says which services place clients together, and for how long a
//! client without flows keeps its backend; a backend of one service stands for that of another at the same address.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use lb_common::{
    backend::{Backend, BackendState, Serving},
    clock::Tick,
    flow::{
        FlowKey as _,
        bucket::WAYS,
        v6,
        word::{BackendRef, State, Word},
    },
    hash::Seed,
    net::Address,
    service::Service,
};

use super::judge;
use crate::dataplane::{maps::Maps, table::Bucket};

/// What the maps say of services that place clients, as of the beginning of a pass.
#[derive(Debug, Default)]
pub(super) struct Affinities {
    /// By service id: its group, and how long a client without flows keeps its backend, in ticks. The group is 0 if it places flows.
    services: Vec<(u16, u32)>,
    /// By group: its services.
    groups: HashMap<u16, Vec<u16>>,
    /// By service of a group and address: the backend there.
    backends: HashMap<(u16, Address), BackendRef>,
    /// By backend's id: its address.
    addresses: HashMap<u32, Address>,
    /// Clients that had to give way to others since the daemon started.
    evicted: u64,
    /// Whether nothing is left to forget: no service placed clients in the last pass, and those of before are forgotten.
    is_clear: bool,
}

impl Affinities {
    /// Reads what the maps say.
    pub(super) fn begin(&mut self, maps: &Maps) {
        *self = Self {
            evicted: self.evicted,
            is_clear: self.is_clear,
            ..Self::default()
        };
        for id in 0..maps.services.len() {
            let (group, ticks) = placing(maps, id);
            self.services.push((group, ticks));
            if group != 0 {
                self.groups.entry(group).or_default().push(id as u16);
            }
        }
        if self.groups.is_empty() {
            return;
        }
        for (_, id) in maps.backend_ids() {
            let backend: Backend = maps.backends.get(id);
            if self.of(backend.service).0 != 0 {
                let state = BackendState(backend.state);
                let reference = BackendRef::new(id, state.generation());
                let at = (backend.service, backend.address);
                // Of several at one address any that takes new flows is as good.
                if state.serving() == Serving::New || !self.backends.contains_key(&at) {
                    self.backends.insert(at, reference);
                }
                self.addresses.insert(id, backend.address);
            }
        }
    }

    /// Takes in that a client has a flow, whose entry is such.
    pub(super) fn note(
        &mut self,
        maps: &Maps,
        seed: &Seed,
        client: Address,
        service: u16,
        word: Word,
        now: Tick,
    ) {
        let (group, ticks) = self.of(service);
        if !word.is_live() || group == 0 {
            return;
        }
        let Some(&address) = self.addresses.get(&word.backend().id()) else {
            return;
        };
        // What has proven itself is there now; of what has not, or is over, that is known of the moment when it was seen last. Anybody can make up such.
        let is_proven = word.is(State::Pin);
        let seen = if is_proven {
            now
        } else {
            Tick(now.0.wrapping_sub(judge::age(word, now)))
        };
        if judge::age(word.with_tick(seen), now) >= ticks {
            return;
        }
        for &member in &self.groups[&group] {
            let backend = if member == service {
                Some(word.backend())
            } else {
                self.backends.get(&(member, address)).copied()
            };
            if let Some(backend) = backend {
                let sight = Sight {
                    key: key_of(client, member),
                    backend,
                    seen,
                    is_proven,
                    is_open: !word.is(State::Closing),
                };
                self.evicted += u64::from(sight.remember(maps, seed, now));
            }
        }
    }

    /// Forgets the clients that have had no flow for too long, and those whose backend is gone. Gives how many are left, by service id.
    pub(super) fn forget(&mut self, maps: &Maps, now: Tick) -> HashMap<u16, u64> {
        let mut clients = HashMap::new();
        if self.groups.is_empty() && self.is_clear {
            return clients;
        }
        self.is_clear = self.groups.is_empty();
        for bucket in (0..maps.affinities.len()).map(|index| bucket(maps, index)) {
            for way in 0..WAYS {
                let Some((key, word)) = bucket.read(way) else {
                    continue;
                };
                let (group, ticks) = self.of(key.service());
                if group == 0 || judge::age(word, now) >= ticks || !is_known(maps, word.backend()) {
                    bucket.value(way).store(Word::EMPTY.0, Ordering::Release);
                } else {
                    *clients.entry(key.service()).or_default() += 1;
                }
            }
        }
        clients
    }

    /// A service's group and patience.
    fn of(&self, service: u16) -> (u16, u32) {
        let known = self.services.get(usize::from(service));
        known.copied().unwrap_or_default()
    }

    /// Clients that had to give way to others since the daemon started.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }
}

/// Of a service: the number of those that place clients together with it, and for how long a client without flows keeps its backend, in ticks.
fn placing(maps: &Maps, service: u32) -> (u16, u32) {
    const AT: usize = std::mem::offset_of!(Service, affinity);
    const _: () = assert!(std::mem::offset_of!(Service, affinity_ticks) == AT + 2);
    let word = maps.services.word(service, AT / 8).load(Ordering::Relaxed) >> (AT % 8 * 8);
    (word as u16, u32::from((word >> 16) as u16))
}

/// From this age on, in ticks, a client gives way to another: it was not met in the last pass, which takes half a minute at most.
const GIVES_WAY_TICKS: u32 = 8;

/// What a flow says of its client.
struct Sight {
    /// The client, and the service that it may come to next.
    key: v6::Key,
    /// The backend there.
    backend: BackendRef,
    /// When the flow was there.
    seen: Tick,
    /// Whether it has proven itself.
    is_proven: bool,
    /// Whether it is not over.
    is_open: bool,
}

impl Sight {
    /// Has the client keep the backend, unless it keeps another one already that takes new flows. True if a client had to give way.
    fn remember(&self, maps: &Maps, seed: &Seed, now: Tick) -> bool {
        let value = Word::live(State::Pin, self.backend, 0, self.seen, 0);
        if let Some((place, word)) = find(maps, seed, self.key) {
            let is_same = word.backend() == self.backend;
            let is_later = judge::age(value, now) < judge::age(word, now);
            let has_moved = self.is_open && !takes_new(maps, word) && takes_new(maps, value);
            if (is_same && is_later) || (!is_same && has_moved) {
                place.store(value.0, Ordering::Release);
            }
            return false;
        }
        if !takes_new(maps, value) {
            return false;
        }
        let homes = homes(maps, seed, self.key);
        let word_at = |(bucket, way): Place<'_>| Word(load(bucket.value(way)));
        let is_free = |place: &Place<'_>| word_at(*place) == Word::EMPTY;
        let free_in = |index| {
            let bucket = bucket(maps, index);
            (0..WAYS).filter(|&way| is_free(&(bucket, way))).count()
        };
        let emptier = homes[usize::from(free_in(homes[1]) > free_in(homes[0]))];
        let own = bucket(maps, emptier);
        let free = (0..WAYS).map(|way| (own, way)).find(is_free);
        // What anybody can make up takes nothing from others.
        let quiet = || {
            let oldest = places(maps, homes).max_by_key(|place| judge::age(word_at(*place), now));
            oldest.filter(|place| {
                self.is_proven && judge::age(word_at(*place), now) >= GIVES_WAY_TICKS
            })
        };
        let Some((place, way)) = free.or_else(quiet) else {
            return false;
        };
        let gives_way = !is_free(&(place, way));
        // Nobody takes the key that is there for one with the value that comes, nor the other way round.
        place.value(way).store(Word::EMPTY.0, Ordering::Release);
        let words = [self.key.address[0], self.key.address[1], self.key.rest];
        for (to, word) in place.key_words(way).iter().zip(words) {
            to.store(word, Ordering::Release);
        }
        place.value(way).store(value.0, Ordering::Release);
        gives_way
    }
}

/// The backend that a client keeps at a service.
pub(crate) fn kept(maps: &Maps, seed: &Seed, client: Address, service: u16) -> Option<BackendRef> {
    find(maps, seed, key_of(client, service)).map(|(_, word)| word.backend())
}

/// The key of a client at a service.
fn key_of(client: Address, service: u16) -> v6::Key {
    v6::Key::new(client.words(), 0, service)
}

/// A client's entry: where its value is, and what that was.
fn find<'m>(maps: &'m Maps, seed: &Seed, key: v6::Key) -> Option<(&'m AtomicU64, Word)> {
    places(maps, homes(maps, seed, key)).find_map(|(bucket, way)| {
        let (found, word) = bucket.read(way)?;
        (found == key).then(|| (bucket.value(way), word))
    })
}

/// A place in the table of clients.
type Place<'m> = (Bucket<'m, v6::Key>, u32);

/// The places of two buckets.
fn places(maps: &Maps, homes: [u32; 2]) -> impl Iterator<Item = Place<'_>> {
    homes.into_iter().flat_map(move |index| {
        let bucket = bucket(maps, index);
        (0..WAYS).map(move |way| (bucket, way))
    })
}

/// The two buckets that a key may be in.
fn homes(maps: &Maps, seed: &Seed, key: v6::Key) -> [u32; 2] {
    key.homes(seed, maps.affinities.len())
}

fn bucket(maps: &Maps, index: u32) -> Bucket<'_, v6::Key> {
    Bucket::over(maps.affinities.words(index))
}

fn load(word: &AtomicU64) -> u64 {
    word.load(Ordering::Acquire)
}

/// Whether a backend is still the one that is meant.
fn is_known(maps: &Maps, backend: BackendRef) -> bool {
    backend.id() < maps.backends.len()
        && maps.state(backend.id()).generation() == backend.generation()
        && maps.backends.get(backend.id()).identity != 0
}

/// Whether the backend that an entry names takes new flows.
fn takes_new(maps: &Maps, word: Word) -> bool {
    let backend = word.backend();
    let state = || maps.state(backend.id());
    is_known(maps, backend) && state().serving() == Serving::New && state().is_resolved()
}

#[cfg(test)]
mod tests;
