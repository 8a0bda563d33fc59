//! The sweep over maps in memory.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use lb_common::{
    backend::{BackendState, Forwarding, Serving},
    clock::Tick,
    flow::{
        bucket, v4, v6,
        word::{BackendRef, State, Word},
    },
    guard::{Guard, SourceBucket},
    hash::Seed,
    maglev::{Slot, TableRef},
    maps::{ABI_VERSION, Instance},
    net::{Address, IpVersion},
    service::Service,
    share::Share,
};
use proptest::prelude::*;

use super::{
    Census, Churn, Counts, Sweeper, TableCensus,
    judge::{CLOSED_TICKS, IDLE_TICKS},
    pick_of,
};
use crate::{
    dataplane::{
        maps::{Capacity, Maps},
        table::TableKey,
    },
    guard::sources::{SourceFlows, of_client},
};

const NOW: Tick = Tick(2_000_000);
const SEED: Seed = Seed::new([11, 12, 13]);
/// The owner of every slot.
const OWNER: u32 = 1;
/// A backend that owns none.
const OTHER: u32 = 2;

/// A key of flows that tests know.
trait Client: TableKey {
    /// That of a client by its number.
    fn client(n: u32, service: u16) -> Self;
}

impl Client for v4::Key {
    fn client(n: u32, service: u16) -> Self {
        Self::new(0x0b00_0000 + n, 40_000, service)
    }
}

impl Client for v6::Key {
    fn client(n: u32, service: u16) -> Self {
        Self::new([0xb80d_0120, u64::from(n) << 32], 40_000, service)
    }
}

/// Runs tests once for each version of IP.
macro_rules! in_both_versions {
    ($($test:ident)*) => {
        mod in_ipv4 {
            $(#[test] fn $test() { super::$test::<super::v4::Key>(); })*
        }
        mod in_ipv6 {
            $(#[test] fn $test() { super::$test::<super::v6::Key>(); })*
        }
    };
}

mod left;
mod reclaim;
mod translation;

in_both_versions! {
    a_pass_counts_everything_in_steps
    embryos_expire_and_ended_flows_go
    entries_of_a_backend_whose_deadline_was_long_ago_go
    entries_of_a_dead_backend_whose_flows_go_elsewhere_are_forgotten
    of_two_entries_of_a_key_the_older_goes_after_a_second_look
    a_contested_pair_is_no_duplicate
    a_port_that_is_used_again_is_one_flow_of_its_source
    an_entry_whose_challenger_is_gone_is_contested_no_more
    an_entry_is_contested_again_by_a_challenger_that_came_as_the_mark_went
    the_pick_is_the_slots_owner
    a_stopped_process_does_not_take_new_entries_for_old_ones
    flows_that_begin_and_end_are_counted_by_service
    flows_that_begin_and_end_are_counted_by_backend
}

/// A table with one service, all of whose slots are [`OWNER`]'s.
struct Fixture<K> {
    maps: Arc<Maps>,
    clock: Arc<AtomicU32>,
    key: std::marker::PhantomData<K>,
}

impl<K: Client> Fixture<K> {
    /// The table of the other version of IP is as small as can be.
    fn new(flow_buckets: u32) -> Self {
        let [flow4_buckets, flow6_buckets] = match K::VERSION {
            IpVersion::V4 => [flow_buckets, 2],
            IpVersion::V6 => [2, flow_buckets],
        };
        let capacity = Capacity {
            flow4_buckets,
            flow6_buckets,
            services: 4,
            backends: 8,
            table_slots: 64,
            affinity_buckets: 2,
            cpus: 1,
            nat4_buckets: flow4_buckets,
            nat6_buckets: flow6_buckets,
            endpoints: 4,
            pairs: 4,
            ranges: 16,
            source_buckets: 4,
            guards: false,
            measures: false,
        };
        let maps = Maps::in_memory(capacity).unwrap();
        maps.instance.set(
            0,
            &Instance {
                abi_version: ABI_VERSION,
                reserved: 0,
                flow_seed: SEED,
                fleet_seed: [0; 4],
            },
        );
        let service = Service {
            table: TableRef::new(10, 31, 1).0,
            seed: Seed::new([5, 6, 7]),
            identity: 1,
            vip: Address::default(),
            port: 80,
            traits: 0,
            affinity: 0,
            affinity_ticks: 0,
        };
        maps.services.set(0, &service);
        for slot in 10..41 {
            maps.tables.set(slot, &Slot::new(OWNER, 0, Tick(1)));
        }
        for id in [OWNER, OTHER] {
            let state = BackendState::new(0, Serving::New, Forwarding::L2, 0, true);
            maps.set_state(id, state);
        }
        Self {
            maps: Arc::new(maps),
            clock: Arc::new(AtomicU32::new(NOW.0)),
            key: std::marker::PhantomData,
        }
    }

    fn sweeper(&self) -> Sweeper {
        let clock = Arc::clone(&self.clock);
        Sweeper::with_clock(Arc::clone(&self.maps), move || {
            Tick(clock.load(Ordering::SeqCst))
        })
    }

    /// Gives a service's id to whoever has an identity.
    fn give_service(&self, id: u32, identity: u64) {
        let service = Service {
            identity,
            ..self.maps.services.get(id)
        };
        self.maps.services.set(id, &service);
    }

    fn put(&self, bucket: u32, way: u32, key: K, word: Word) {
        let bucket = K::table(&self.maps).bucket(bucket);
        for (to, from) in bucket.key_words(way).iter().zip(key.to_words()) {
            to.store(from, Ordering::SeqCst);
        }
        bucket.value(way).store(word.0, Ordering::SeqCst);
    }

    fn word(&self, bucket: u32, way: u32) -> Word {
        let bucket = K::table(&self.maps).bucket(bucket);
        Word(bucket.value(way).load(Ordering::SeqCst))
    }

    /// Fills the first `entries` places with entries of the given age; each of another client.
    fn fill(&self, entries: u32, word: impl Fn(u32) -> Word) {
        for n in 0..entries {
            self.put(n / 4, n % 4, K::client(n, 0), word(n));
        }
    }

    fn homes(&self, key: K) -> [u32; 2] {
        K::table(&self.maps).homes(key, &SEED)
    }
}

fn aged(state: State, backend: u32, age: u32) -> Word {
    Word::live(state, BackendRef::new(backend, 0), 0, Tick(NOW.0 - age), 0)
}

fn used(census: &Census) -> u64 {
    census.total().settled()
}

fn a_pass_counts_everything_in_steps<K: Client>() {
    let fixture = Fixture::<K>::new(64);
    fixture.fill(100, |n| match n % 4 {
        0 => Word::embryo(BackendRef::new(OWNER, 0), n, NOW),
        1 => aged(State::Young, OWNER, 1),
        2 => aged(State::Pin, OTHER, IDLE_TICKS),
        _ => aged(State::Closing, OWNER, 1),
    });
    let mut sweeper = fixture.sweeper();
    // Of the table and of the other one.
    for _ in 0..8 {
        assert_eq!(sweeper.step(8), None);
    }
    let census = sweeper.step(8).unwrap();
    let total = census.total();
    assert_eq!(
        (total.embryo, total.young, total.pin, total.closing),
        (25, 25, 25, 25)
    );
    assert_eq!((total.active, total.idle), (25, 25));
    assert_eq!((census.scans, census.at), (1, NOW));
    let expected = TableCensus {
        capacity: 256,
        counts: total,
    };
    assert_eq!(census.tables[K::VERSION], expected);
    let others: Vec<_> = census
        .tables
        .each()
        .into_iter()
        .filter(|(version, _)| *version != K::VERSION)
        .map(|(_, table)| (table.capacity, table.counts))
        .collect();
    assert_eq!(others, [(8, Counts::default())]);
    assert_eq!(census.by_backend[&(OTHER, 0)].pin, 25);
    assert_eq!(census.by_backend[&(OWNER, 0)].young, 25);
    assert_eq!(census.by_service[&0], total);
    let again = sweeper.pass();
    assert_eq!((again.scans, again.total()), (2, total));
}

fn embryos_expire_and_ended_flows_go<K: Client>() {
    let fixture = Fixture::<K>::new(4);
    let backend = BackendRef::new(OWNER, 0);
    fixture.put(
        0,
        0,
        K::client(0, 0),
        Word::embryo(backend, 0, Tick(NOW.0 - 40)),
    );
    fixture.put(0, 1, K::client(1, 0), Word::embryo(backend, 0, NOW));
    fixture.put(1, 0, K::client(2, 0), aged(State::Closing, OWNER, 5_000));
    fixture.put(1, 1, K::client(3, 0), aged(State::Closing, OTHER, 300));
    fixture.put(2, 0, K::client(4, 0), Word(7));
    let census = fixture.sweeper().pass();
    assert_eq!(
        (fixture.word(0, 0), fixture.word(1, 0)),
        (Word::EMPTY, Word::EMPTY)
    );
    assert_eq!(fixture.word(2, 0), Word::EMPTY);
    assert!(fixture.word(0, 1).is(State::Embryo));
    assert!(
        fixture.word(1, 1).has(Word::EXCEPTION),
        "its slot is another's, so it lingers for two hours"
    );
    let swept = census.swept;
    assert_eq!(
        (swept.expired, swept.ended, swept.marked, swept.invalid),
        (1, 1, 1, 1)
    );
    assert_eq!((census.total().embryo, census.total().closing), (1, 1));
}

fn entries_of_a_backend_whose_deadline_was_long_ago_go<K: Client>() {
    let fixture = Fixture::<K>::new(4);
    let old = 2 * CLOSED_TICKS;
    let mut key = 0;
    for (bucket, backend) in [OWNER, OTHER].into_iter().enumerate() {
        for (way, age) in [0, CLOSED_TICKS - 1, old].into_iter().enumerate() {
            key += 1;
            let word = aged(State::Pin, backend, age);
            fixture.put(bucket as u32, way as u32, K::client(key, 0), word);
        }
    }
    // An entry of another holder of the id, which should not be there, is nobody's business here.
    let strange = Word::live(
        State::Pin,
        BackendRef::new(OTHER, 1),
        0,
        Tick(NOW.0 - old),
        0,
    );
    fixture.put(2, 0, K::client(99, 0), strange);
    let mut sweeper = fixture.sweeper();
    let state = fixture.maps.state(OTHER);
    let close = |share, ago| {
        let since = Tick(NOW.0 - ago);
        fixture.maps.set_state(OTHER, state.pacing(share, since));
    };
    for (share, ago) in [
        (Share::of_parts(65_535), old),
        (Share::ALL, CLOSED_TICKS - 1),
    ] {
        close(share, ago);
        let census = sweeper.pass();
        assert_eq!((used(&census), census.swept.closed), (7, 0), "{share:?}");
    }
    close(Share::ALL, CLOSED_TICKS);
    let census = sweeper.pass();
    assert_eq!((used(&census), census.swept.closed), (6, 1));
    assert_eq!(fixture.word(1, 2), Word::EMPTY);
}

fn entries_of_a_dead_backend_whose_flows_go_elsewhere_are_forgotten<K: Client>() {
    let fixture = Fixture::<K>::new(4);
    let states = [State::Young, State::Pin, State::Closing];
    for (bucket, backend) in [OWNER, OTHER].into_iter().enumerate() {
        for (way, state) in (0..).zip(states) {
            let key = K::client(1 + bucket as u32 * 10 + way, 0);
            fixture.put(bucket as u32, way, key, aged(state, backend, 1));
        }
    }
    let mut sweeper = fixture.sweeper();
    assert_eq!(used(&sweeper.pass()), 6);
    let state = fixture.maps.state(OTHER);
    for kept in [state, state.pacing(Share::NONE, Tick(0))] {
        fixture.maps.set_state(OTHER, kept);
        let census = sweeper.pass();
        assert_eq!((used(&census), census.swept.rehashed), (6, 0));
    }
    fixture.maps.set_state(OTHER, state.forgetting());
    let census = sweeper.pass();
    // What is closing ends by itself.
    assert_eq!((used(&census), census.swept.rehashed), (4, 2));
    assert_eq!(fixture.word(1, 0), Word::EMPTY);
    assert_eq!(fixture.word(1, 1), Word::EMPTY);
}

fn of_two_entries_of_a_key_the_older_goes_after_a_second_look<K: Client>() {
    let fixture = Fixture::<K>::new(64);
    let key = K::client(7, 0);
    let [first, second] = fixture.homes(key);
    for older_first in [true, false] {
        let ages = if older_first { [60, 50] } else { [50, 60] };
        fixture.put(first, 1, key, aged(State::Pin, OWNER, ages[0]));
        fixture.put(second, 2, key, aged(State::Pin, OWNER, ages[1]));
        let mut sweeper = fixture.sweeper();
        // Every bucket's turn to be looked at has come after sixteen passes; what is found goes with the next.
        let mut passes = 0;
        while sweeper.pass().swept.duplicates == 0 {
            passes += 1;
            assert!(passes <= 17, "the pair is never settled");
        }
        assert!(
            passes > 0,
            "removed at first sight, perhaps in mid-relocation"
        );
        let left = [fixture.word(first, 1), fixture.word(second, 2)];
        assert_eq!(
            left.map(|word| word.is(State::Empty)),
            [older_first, !older_first]
        );
    }
}

fn a_contested_pair_is_no_duplicate<K: Client>() {
    let fixture = Fixture::<K>::new(64);
    let key = K::client(7, 0);
    let [first, second] = fixture.homes(key);
    fixture.put(
        first,
        0,
        key,
        aged(State::Pin, OWNER, 9).with(Word::CONTESTED),
    );
    fixture.put(
        second,
        0,
        key,
        aged(State::Young, OWNER, 2).with(Word::CONTESTED | Word::SECOND),
    );
    let mut sweeper = fixture.sweeper();
    for _ in 0..20 {
        assert_eq!(sweeper.pass().total().active, 2);
    }
}

/// Whoever uses a port again has let go of what it had there, though that has an entry still.
fn a_port_that_is_used_again_is_one_flow_of_its_source<K: Client>() {
    let fixture = Fixture::<K>::new(64);
    let maps = &fixture.maps;
    let guard = Guard {
        mask: u64::MAX,
        flows: 10,
        ..Guard::default()
    };
    maps.guards.set(0, &guard);
    let service = Service {
        traits: Service::GUARDED,
        ..maps.services.get(0)
    };
    maps.services.set(0, &service);
    let key = K::client(7, 0);
    let is_ipv6 = K::VERSION == IpVersion::V6;
    let own = of_client(key.client_address(), is_ipv6, 0, guard.mask, &SEED);
    let [home, _] = bucket::homes(own, maps.sources.len());
    let mut known = SourceBucket::default();
    known.sources[0].fingerprint = own;
    maps.sources.set(home, &known);
    let [first, second] = fixture.homes(key);
    let counted = |older: Word, newer: Word| {
        fixture.put(first, 0, key, older);
        fixture.put(second, 0, key, newer);
        fixture.sweeper().pass();
        SourceFlows::of(maps.sources.get(home).sources[0].flows).counted
    };
    let older = |state, age| aged(state, OWNER, age).with(Word::CONTESTED);
    let newer = aged(State::Young, OWNER, 2).with(Word::CONTESTED | Word::SECOND);
    assert_eq!(counted(older(State::Pin, 9), newer), 1);
    // Beside what counts for nobody it counts itself.
    assert_eq!(counted(older(State::Pin, IDLE_TICKS), newer), 1);
    assert_eq!(counted(older(State::Closing, 1), newer), 1);
    // And what is challenged, by whomever, is a flow as ever.
    let challenger = Word::challenger(BackendRef::new(OTHER, 0), 1, NOW);
    assert_eq!(counted(older(State::Pin, 9), challenger), 1);
}

/// Of a pair either may be left.
fn an_entry_whose_challenger_is_gone_is_contested_no_more<K: Client>() {
    for flags in [0, Word::SECOND | Word::HINT] {
        let fixture = Fixture::<K>::new(64);
        let key = K::client(7, 0);
        let [first, second] = fixture.homes(key);
        let marked = aged(State::Pin, OWNER, 9).with(Word::CONTESTED | flags);
        fixture.put(second, 1, key, marked);
        let challenger = Word::challenger(BackendRef::new(OTHER, 0), 1, NOW);
        fixture.put(first, 2, key, challenger);
        // Another flow's entry beside it is none of its key.
        fixture.put(first, 3, K::client(8, 0), challenger);
        let mut sweeper = fixture.sweeper();
        for _ in 0..3 {
            sweeper.pass();
            assert_eq!(fixture.word(second, 1), marked, "it is challenged");
        }
        let value = K::table(&fixture.maps).bucket(first).value(2);
        value.store(Word::EMPTY.0, Ordering::SeqCst);
        sweeper.pass();
        assert_eq!(
            fixture.word(second, 1),
            marked,
            "one look may have missed an entry in mid-relocation"
        );
        // As long as it is alone when it is looked at again.
        value.store(challenger.0, Ordering::SeqCst);
        sweeper.pass();
        assert_eq!(fixture.word(second, 1), marked);
        value.store(Word::EMPTY.0, Ordering::SeqCst);
        sweeper.pass();
        sweeper.pass();
        assert_eq!(
            fixture.word(second, 1),
            aged(State::Pin, OWNER, 9).with(flags)
        );
    }
}

/// The challenger's SYN found the mark, and its entry was not there yet when the sweep looked.
fn an_entry_is_contested_again_by_a_challenger_that_came_as_the_mark_went<K: Client>() {
    let young = |backend| aged(State::Young, backend, 1).with(Word::CONTESTED | Word::SECOND);
    for newcomer in [
        Word::challenger(BackendRef::new(OTHER, 0), 1, NOW),
        young(OTHER),
    ] {
        let fixture = Fixture::<K>::new(64);
        let key = K::client(7, 0);
        let [first, second] = fixture.homes(key);
        let pin = aged(State::Pin, OWNER, 9);
        fixture.put(first, 1, key, pin.with(Word::CONTESTED));
        let mut sweeper = fixture.sweeper();
        sweeper.pass();
        sweeper.pass();
        assert_eq!(fixture.word(first, 1), pin);
        fixture.put(second, 0, key, newcomer);
        sweeper.pass();
        assert_eq!(fixture.word(first, 1), pin.with(Word::CONTESTED));
        assert_eq!(fixture.word(second, 0), newcomer);
    }
}

fn the_pick_is_the_slots_owner<K: Client>() {
    let fixture = Fixture::<K>::new(2);
    assert_eq!(pick_of(&fixture.maps, K::client(1, 0)), Some(OWNER));
    assert_eq!(
        pick_of(&fixture.maps, K::client(1, 3)),
        None,
        "a service without table"
    );
    assert_eq!(
        pick_of(&fixture.maps, K::client(1, 900)),
        None,
        "no such service"
    );
    // A table that claims to reach beyond the arena.
    fixture.maps.set_table(1, TableRef::new(60, 31, 1));
    let beyond = (0..200)
        .filter(|&n| pick_of(&fixture.maps, K::client(n, 1)).is_some())
        .count();
    assert_eq!(beyond, 0, "slots 60 to 63 are empty, the rest is not there");
}

fn a_stopped_process_does_not_take_new_entries_for_old_ones<K: Client>() {
    let fixture = Fixture::<K>::new(2);
    // An embryo whose tick looks 50 ticks old by a clock that was read long before it was made.
    let made = NOW.later(14);
    fixture.put(
        0,
        0,
        K::client(1, 0),
        Word::embryo(BackendRef::new(OWNER, 0), 1, made),
    );
    // The clock: what the step reads first, then what it is when it acts.
    let reads = AtomicU32::new(0);
    let mut sweeper = Sweeper::with_clock(Arc::clone(&fixture.maps), move || {
        match reads.fetch_add(1, Ordering::SeqCst) {
            0 => NOW,
            _ => made,
        }
    });
    assert_eq!(sweeper.pass().swept.expired, 0);
    assert!(fixture.word(0, 0).is(State::Embryo));
}

#[tokio::test(start_paused = true)]
async fn the_sweep_goes_on_until_it_is_told_to_stop() {
    let fixture = Fixture::<v4::Key>::new(10_000);
    let (census, mut counted) = tokio::sync::watch::channel(Arc::new(Census::default()));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let sweep = tokio::spawn(super::sweep(Arc::clone(&fixture.maps), census, stopped));
    counted.wait_for(|census| census.scans >= 1).await.unwrap();
    let first = tokio::time::Instant::now();
    counted.wait_for(|census| census.scans >= 4).await.unwrap();
    let passes = first.elapsed();
    assert!(
        (super::PASS * 2..=super::LONGEST_PASS * 3).contains(&passes),
        "three passes in {passes:?}"
    );
    stop.send(true).unwrap();
    sweep.await.unwrap();
}

fn flows_that_begin_and_end_are_counted_by_service<K: Client>() {
    let fixture = Fixture::<K>::new(16);
    let word = |state, flags| Word::live(state, BackendRef::new(OWNER, 0), 0, NOW, flags);
    let put = |way: u32, service, word| fixture.put(way, way % 4, K::client(way, service), word);
    fixture.give_service(1, 11);
    fixture.give_service(2, 12);
    // There before the daemon was.
    put(0, 1, word(State::Pin, 0));
    put(1, 1, word(State::Pin, 0));
    let mut sweeper = fixture.sweeper();
    assert!(sweeper.pass().churn.is_empty());
    put(1, 1, word(State::Closing, Word::BY_RESET));
    put(2, 1, word(State::Young, 0));
    put(3, 2, word(State::Young, 0));
    // Of no service that there is.
    put(4, 900, word(State::Young, 0));
    sweeper.pass();
    put(3, 2, word(State::Closing, 0));
    sweeper.pass();
    let churn = sweeper.pass().churn;
    let of = |established, fin, rst| Churn {
        established,
        fin,
        rst,
        ..Churn::default()
    };
    assert_eq!(churn.len(), 2, "{churn:?}");
    assert_eq!((churn[&11], churn[&12]), (of(1, 0, 1), of(1, 1, 0)));

    // Its backend closes all flows now, and then is dead, and its flows are to go elsewhere.
    let state = fixture.maps.state(OWNER);
    fixture.maps.set_state(OWNER, state.pacing(Share::ALL, NOW));
    put(2, 1, word(State::Closing, Word::BY_RESET));
    assert_eq!(sweeper.pass().churn[&11].deadline, 1);
    fixture.maps.set_state(OWNER, state.forgetting());
    let churn = sweeper.pass().churn;
    let ended = Churn {
        deadline: 1,
        rehashed: 1,
        ..of(1, 0, 1)
    };
    assert_eq!((churn[&11], churn[&12]), (ended, of(1, 1, 0)));

    // Another service has the id, and then a flow.
    fixture.maps.set_state(OWNER, state);
    fixture.give_service(1, 13);
    let expected = [(12, of(1, 1, 0))];
    assert_eq!(sweeper.pass().churn, HashMap::from(expected));
    put(5, 1, word(State::Young, 0));
    let expected = [(12, of(1, 1, 0)), (13, of(1, 0, 0))];
    assert_eq!(sweeper.pass().churn, HashMap::from(expected));
    // And nobody.
    fixture.give_service(1, 0);
    let expected = [(12, of(1, 1, 0))];
    assert_eq!(sweeper.pass().churn, HashMap::from(expected));
}

fn flows_that_begin_and_end_are_counted_by_backend<K: Client>() {
    let fixture = Fixture::<K>::new(16);
    let put = |n: u32, service, (backend, generation), state, flags| {
        let word = Word::live(state, BackendRef::new(backend, generation), 0, NOW, flags);
        fixture.put(n, n % 4, K::client(n, service), word);
    };
    fixture.give_service(1, 11);
    fixture.give_service(2, 12);
    let mut sweeper = fixture.sweeper();
    assert!(sweeper.pass().backend_churn.is_empty());
    put(0, 1, (OWNER, 0), State::Young, 0);
    put(1, 2, (OWNER, 0), State::Young, 0);
    put(2, 1, (OTHER, 0), State::Young, 0);
    // Of no service that there is.
    put(3, 900, (OTHER, 0), State::Young, 0);
    sweeper.pass();
    put(0, 1, (OWNER, 0), State::Closing, Word::BY_RESET);
    put(2, 1, (OTHER, 0), State::Closing, 0);
    sweeper.pass();
    let census = sweeper.pass();
    let of = |established, fin, rst| Churn {
        established,
        fin,
        rst,
        ..Churn::default()
    };
    let expected = [((OWNER, 0), of(2, 0, 1)), ((OTHER, 0), of(1, 1, 0))];
    assert_eq!(census.backend_churn, HashMap::from(expected));
    assert_eq!(
        (census.churn[&11], census.churn[&12]),
        (of(2, 1, 1), of(1, 0, 0))
    );
    // Another backend has the id.
    put(2, 1, (OTHER, 1), State::Closing, 0);
    put(4, 1, (OTHER, 1), State::Young, 0);
    let expected = [((OWNER, 0), of(2, 0, 1)), ((OTHER, 1), of(1, 0, 0))];
    assert_eq!(sweeper.pass().backend_churn, HashMap::from(expected));
}

/// Whatever is in a table, a pass touches no key, makes no entry, and changes no recently seen flow.
fn only_takes_away<K: Client>(entries: &[([u64; 3], u64)], passes: usize) {
    let fixture = Fixture::<K>::new(16);
    let places = || (0..).map(|n| (n / 4, n % 4)).zip(entries);
    for ((bucket, way), &(key, value)) in places() {
        fixture.put(bucket, way, K::of_words(key), Word(value));
    }
    let mut sweeper = fixture.sweeper();
    for _ in 0..passes {
        sweeper.pass();
    }
    for ((bucket, way), &(key, value)) in places() {
        let held = K::table(&fixture.maps).bucket(bucket).key(way);
        assert_eq!(held, K::of_words(key));
        let (before, after) = (Word(value), fixture.word(bucket, way));
        if after != before && after != Word::EMPTY {
            assert_eq!(
                (after.state(), after.backend()),
                (before.state(), before.backend())
            );
        }
        let flow = before.is(State::Young) || before.is(State::Pin);
        if flow && before.age(NOW) < IDLE_TICKS {
            // Of a key that nobody contests any more the mark goes.
            assert!(after == before || after == before.without(Word::CONTESTED));
        }
    }
}

proptest! {
    #[test]
    fn a_pass_only_takes_away(entries in proptest::collection::vec((any::<[u64; 3]>(), any::<u64>()), 64), passes in 1usize..4) {
        only_takes_away::<v4::Key>(&entries, passes);
        only_takes_away::<v6::Key>(&entries, passes);
    }
}
