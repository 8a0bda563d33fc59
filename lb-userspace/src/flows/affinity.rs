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
mod tests {
    use lb_common::backend::Forwarding;

    use super::*;
    use crate::dataplane::maps::Capacity;

    const NOW: Tick = Tick(100_000);
    const SEED: Seed = Seed {
        whiten: 3,
        first: 5,
        second: 7,
    };
    const CLIENT: Address = Address([9; 16]);
    /// How long a client of these services keeps its backend, in ticks.
    const TICKS: u16 = 100;

    /// Services 1 and 2 place clients together, service 3 by itself, and service 4 none. Each has a backend at two addresses: the ids are ten times the
    /// service's and one or two.
    struct Fixture {
        maps: Maps,
        affinities: Affinities,
    }

    fn address(host: u32) -> Address {
        Address([host as u8; 16])
    }

    impl Fixture {
        fn new() -> Self {
            let capacity = Capacity::for_flows(10, 10, 8, 64, 64, 1).with_affinities(20);
            let maps = Maps::in_memory(capacity).unwrap();
            for (service, affinity) in [(1, 2), (2, 2), (3, 4), (4, 0)] {
                let entry = Service {
                    identity: 1,
                    affinity,
                    affinity_ticks: TICKS,
                    ..maps.services.get(service)
                };
                maps.services.set(service, &entry);
                for host in 1..=2 {
                    let entry = Backend {
                        identity: 1,
                        service: service as u16,
                        address: address(host),
                        ..Backend::default()
                    };
                    maps.backends.set(10 * service + host, &entry);
                }
            }
            let fixture = Self {
                maps,
                affinities: Affinities::default(),
            };
            for service in 1..=4 {
                for host in 1..=2 {
                    fixture.serves(10 * service + host, Serving::New);
                }
            }
            fixture
        }

        fn serves(&self, backend: u32, serving: Serving) {
            let state = BackendState::new(0, serving, Forwarding::L2, 0, true);
            self.maps.set_state(backend, state);
        }

        /// A pass that meets these flows of the client's: by service and backend.
        fn pass(&mut self, flows: &[(u16, u32)], now: Tick) -> HashMap<u16, u64> {
            let pins = flows
                .iter()
                .map(|(service, backend)| (*service, pin(*backend, now)));
            self.pass_over(&pins.collect::<Vec<_>>(), now)
        }

        fn pass_over(&mut self, flows: &[(u16, Word)], now: Tick) -> HashMap<u16, u64> {
            self.affinities.begin(&self.maps);
            for (service, word) in flows {
                self.affinities
                    .note(&self.maps, &SEED, CLIENT, *service, *word, now);
            }
            self.affinities.forget(&self.maps, now)
        }

        /// The backend that the client keeps at a service, by id; 0 is none.
        fn kept(&self, service: u16) -> u32 {
            let key = v6::Key::new(CLIENT.words(), 0, service);
            let buckets = key.homes(&SEED, self.maps.affinities.len());
            let all = buckets.into_iter().flat_map(|index| {
                let bucket = bucket(&self.maps, index);
                (0..WAYS).filter_map(move |way| bucket.read(way))
            });
            let mut own = all.filter(|(found, _)| *found == key);
            let kept = own.next().map_or(0, |(_, word)| word.backend().id());
            assert!(own.next().is_none(), "a client has one entry");
            kept
        }
    }

    fn pin(backend: u32, seen: Tick) -> Word {
        Word::live(State::Pin, BackendRef::new(backend, 0), 5, seen, 0)
    }

    #[test]
    fn a_client_keeps_the_backend_of_its_flows_at_all_services_of_the_group() {
        let mut fixture = Fixture::new();
        let clients = fixture.pass(&[(1, 12), (3, 31), (4, 42)], NOW);
        let kept = [1, 2, 3, 4].map(|service| fixture.kept(service));
        assert_eq!(kept, [12, 22, 31, 0]);
        assert_eq!(clients, [(1, 1), (2, 1), (3, 1)].into());
    }

    #[test]
    fn only_what_has_proven_itself_counts() {
        let mut fixture = Fixture::new();
        let backend = BackendRef::new(12, 0);
        let nascent = [
            Word::embryo(backend, 1, NOW),
            Word::challenger(backend, 1, NOW),
        ];
        fixture.pass_over(&nascent.map(|word| (1, word)), NOW);
        assert_eq!(fixture.kept(1), 0);
        fixture.pass_over(&[(1, pin(12, NOW).with_state(State::Young))], NOW);
        assert_eq!(fixture.kept(1), 12);
        // But it is known of its beginning only.
        let young = pin(12, NOW).with_state(State::Young);
        let later = NOW.later(u32::from(TICKS));
        fixture.pass_over(&[(1, young)], later);
        assert_eq!(fixture.kept(1), 0);
    }

    #[test]
    fn it_is_kept_until_the_client_had_no_flow_for_so_long() {
        let mut fixture = Fixture::new();
        // Alive, though no packet came for a day.
        fixture.pass_over(&[(1, pin(12, Tick(NOW.0 - 20_000)))], NOW);
        fixture.pass(&[], NOW.later(u32::from(TICKS) - 1));
        assert_eq!(fixture.kept(1), 12);
        fixture.pass(&[], NOW.later(u32::from(TICKS)));
        assert_eq!(fixture.kept(1), 0);
    }

    #[test]
    fn a_flow_that_is_over_counts_from_its_end() {
        let mut fixture = Fixture::new();
        let closing = pin(12, NOW).with_state(State::Closing);
        for later in [0, 50, u32::from(TICKS) - 1] {
            fixture.pass_over(&[(1, closing)], NOW.later(later));
            assert_eq!(fixture.kept(1), 12, "{later}");
        }
        fixture.pass_over(&[(1, closing)], NOW.later(u32::from(TICKS)));
        assert_eq!(fixture.kept(1), 0);
    }

    #[test]
    fn one_that_takes_no_new_flows_gives_way_to_where_the_client_went() {
        let mut fixture = Fixture::new();
        fixture.pass(&[(1, 12)], NOW);
        // Both take new ones: what was there first stays.
        fixture.pass(&[(1, 11)], NOW);
        assert_eq!(fixture.kept(1), 12);
        fixture.serves(12, Serving::ExistingOnly);
        fixture.pass(&[(1, 12)], NOW);
        assert_eq!(fixture.kept(1), 12, "it may come back");
        let over = pin(11, NOW).with_state(State::Closing);
        fixture.pass_over(&[(1, pin(12, NOW)), (1, over)], NOW);
        assert_eq!(fixture.kept(1), 12, "the client opened nothing elsewhere");
        fixture.pass(&[(1, 12), (1, 11)], NOW);
        assert_eq!(fixture.kept(1), 11);
        fixture.serves(12, Serving::New);
        fixture.pass(&[(1, 12), (1, 11)], NOW);
        assert_eq!(fixture.kept(1), 11);
    }

    #[test]
    fn one_that_is_gone_is_forgotten() {
        let mut fixture = Fixture::new();
        fixture.pass(&[(1, 12), (3, 31)], NOW);
        let state = BackendState::new(1, Serving::New, Forwarding::L2, 0, true);
        fixture.maps.set_state(12, state);
        fixture.maps.backends.set(31, &Backend::default());
        fixture.pass(&[], NOW);
        assert_eq!((fixture.kept(1), fixture.kept(3)), (0, 0));
        assert_eq!(fixture.kept(2), 22);
    }

    #[test]
    fn a_service_that_places_flows_again_forgets_its_clients() {
        let mut fixture = Fixture::new();
        fixture.pass(&[(3, 31)], NOW);
        let entry = Service {
            affinity: 0,
            ..fixture.maps.services.get(3)
        };
        fixture.maps.services.set(3, &entry);
        assert_eq!(fixture.pass(&[(3, 31)], NOW), HashMap::new());
        assert_eq!(fixture.kept(3), 0);
    }

    /// As of several processes on one host.
    #[test]
    fn backends_at_one_address_are_told_apart() {
        for own in [12, 13] {
            let mut fixture = Fixture::new();
            let other = Backend {
                port: 81,
                ..fixture.maps.backends.get(12)
            };
            fixture.maps.backends.set(13, &other);
            fixture.serves(13, Serving::New);
            fixture.pass(&[(1, own)], NOW);
            assert_eq!((fixture.kept(1), fixture.kept(2)), (own, 22));
        }
    }

    fn crowd(fixture: &mut Fixture, word: Word, now: Tick) {
        fixture.affinities.begin(&fixture.maps);
        for n in 0..200_u8 {
            let client = Address([n, 200, 7, n, 5, 4, 3, 2, 1, 0, n, 1, 2, 3, 4, n]);
            let Fixture { maps, affinities } = fixture;
            affinities.note(maps, &SEED, client, 3, word, now);
        }
    }

    #[test]
    fn those_of_a_backend_that_is_gone_are_in_nobodys_way() {
        let mut fixture = Fixture::new();
        crowd(&mut fixture, pin(31, NOW), NOW);
        fixture.pass(&[(3, 32)], NOW);
        assert_eq!(fixture.kept(3), 0, "there is no room");
        let state = BackendState::new(1, Serving::New, Forwarding::L2, 0, true);
        fixture.maps.set_state(31, state);
        // With the end of the pass they are forgotten, and with the next one there is room.
        assert_eq!(fixture.pass(&[(3, 32)], NOW), HashMap::new());
        assert_eq!(fixture.pass(&[(3, 32)], NOW), [(3, 1)].into());
        assert_eq!(fixture.kept(3), 32);
        assert_eq!(fixture.affinities.evicted(), 0);
    }

    #[test]
    fn where_there_is_no_room_a_client_that_was_not_met_lately_gives_way() {
        let mut fixture = Fixture::new();
        fixture.pass(&[(3, 31)], NOW);
        let soon = NOW.later(GIVES_WAY_TICKS - 1);
        crowd(&mut fixture, pin(31, soon), soon);
        assert_eq!((fixture.kept(3), fixture.affinities.evicted()), (31, 0));
        let later = NOW.later(2 * GIVES_WAY_TICKS);
        // What anybody can make up has nobody give way.
        let young = pin(31, later).with_state(State::Young);
        crowd(&mut fixture, young, later);
        assert_eq!((fixture.kept(3), fixture.affinities.evicted()), (31, 0));
        crowd(&mut fixture, pin(31, later), later);
        assert_eq!(fixture.kept(3), 0, "it was the oldest everywhere");
        assert!(fixture.affinities.evicted() > 0);
        let places = u64::from(fixture.maps.affinities.len()) * u64::from(WAYS);
        let left = fixture.affinities.forget(&fixture.maps, later)[&3];
        assert!(left > places / 2 && left <= places, "{left} of {places}");
    }
}
