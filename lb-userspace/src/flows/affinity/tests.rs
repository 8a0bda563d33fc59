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
