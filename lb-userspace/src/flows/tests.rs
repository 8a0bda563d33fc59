//! The sweep over maps in memory.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use lb_common::{
    backend::{BackendState, Forwarding, Serving},
    clock::Tick,
    flow::{
        self, v4, v6,
        word::{BackendRef, State, Word},
    },
    hash::Seed,
    maglev::{Slot, TableRef},
    maps::{ABI_VERSION, Instance},
    nat::{
        FIRST_PORT, Pair, Translation, TranslationWord, WORDS_OF_PAIR, slot_index, slot_of,
        translation::stamp,
    },
    net::{Address, IpVersion},
    service::Service,
    share::Share,
};
use proptest::prelude::*;

use super::{
    Census, Churn, Counts, Sweeper, TableCensus,
    judge::{CLOSED_TICKS, IDLE_TICKS, RECLAIM_PIN_TICKS, RECLAIM_YOUNG_TICKS},
    pick_of,
};
use crate::dataplane::{
    maps::{Capacity, Maps},
    table::{Place, TableKey},
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

in_both_versions! {
    a_pass_counts_everything_in_steps
    embryos_expire_and_ended_flows_go
    entries_of_a_backend_whose_deadline_was_long_ago_go
    entries_of_a_dead_backend_whose_flows_go_elsewhere_are_forgotten
    below_three_quarters_nothing_is_reclaimed
    flows_that_need_their_entries_are_never_reclaimed
    young_entries_go_first_and_only_as_many_as_are_too_many
    then_pins_go_the_longest_idle_first_and_exceptions_never
    a_table_full_of_exceptions_stays_full
    a_slot_that_is_being_handed_over_protects_its_flows
    of_two_entries_of_a_key_the_older_goes_after_a_second_look
    a_contested_pair_is_no_duplicate
    the_pick_is_the_slots_owner
    a_stopped_process_does_not_take_new_entries_for_old_ones
    an_entry_that_goes_gives_back_its_port
    a_port_that_is_anothers_by_now_is_not_given_back
    a_translation_of_another_flow_is_none
    flows_that_begin_and_end_are_counted_by_service
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
            translates: 0,
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

fn below_three_quarters_nothing_is_reclaimed<K: Client>() {
    let fixture = Fixture::<K>::new(25);
    fixture.fill(75, |_| aged(State::Pin, OWNER, 2 * RECLAIM_PIN_TICKS));
    let mut sweeper = fixture.sweeper();
    for _ in 0..5 {
        assert_eq!(used(&sweeper.pass()), 75);
    }
}

fn young_entries_go_first_and_only_as_many_as_are_too_many<K: Client>() {
    let fixture = Fixture::<K>::new(25);
    fixture.fill(90, |n| {
        if n < 40 {
            aged(State::Young, OWNER, RECLAIM_YOUNG_TICKS)
        } else {
            aged(State::Pin, OWNER, 2 * RECLAIM_PIN_TICKS)
        }
    });
    let mut sweeper = fixture.sweeper();
    for _ in 0..5 {
        sweeper.pass();
    }
    let census = sweeper.pass();
    // One in a hundred more than too many, so that the use is below the limit.
    assert_eq!((census.total().young, census.total().pin), (24, 50));
    assert_eq!(census.swept.reclaimed, 16);
}

fn then_pins_go_the_longest_idle_first_and_exceptions_never<K: Client>() {
    let fixture = Fixture::<K>::new(25);
    // By age: exceptions, the oldest of all, then older and younger pins, then such as are in use.
    fixture.fill(95, |n| match n {
        0..30 => aged(State::Pin, OTHER, 9 * RECLAIM_PIN_TICKS),
        30..40 => aged(State::Pin, OWNER, 5 * RECLAIM_PIN_TICKS),
        40..60 => aged(State::Pin, OWNER, 2 * RECLAIM_PIN_TICKS),
        _ => aged(State::Pin, OWNER, 10),
    });
    let mut sweeper = fixture.sweeper();
    for _ in 0..5 {
        sweeper.pass();
    }
    assert_eq!(used(&sweeper.pass()), 74);
    let left = |range: std::ops::Range<u32>| {
        range
            .filter(|n| !fixture.word(n / 4, *n % 4).is(State::Empty))
            .count()
    };
    assert_eq!(
        (left(0..30), left(30..40), left(40..60), left(60..95)),
        (30, 0, 9, 35)
    );
}

fn a_table_full_of_exceptions_stays_full<K: Client>() {
    let fixture = Fixture::<K>::new(25);
    fixture.fill(100, |n| {
        let state = if n % 2 == 0 { State::Pin } else { State::Young };
        aged(state, OTHER, 9 * RECLAIM_PIN_TICKS)
    });
    let mut sweeper = fixture.sweeper();
    for _ in 0..5 {
        sweeper.pass();
    }
    let census = sweeper.pass();
    assert_eq!((used(&census), census.swept.reclaimed), (100, 0));
}

fn flows_that_need_their_entries_are_never_reclaimed<K: Client>() {
    for state in [
        BackendState::new(0, Serving::New, Forwarding::Nat, 0, true),
        BackendState::new(0, Serving::New, Forwarding::Dnat, 0, true),
        // On this host.
        BackendState::new(0, Serving::New, Forwarding::L2, 0, true).tagged(3),
    ] {
        let fixture = Fixture::<K>::new(25);
        fixture.maps.set_state(OWNER, state);
        fixture.fill(100, |n| {
            let state = if n % 2 == 0 { State::Pin } else { State::Young };
            aged(state, OWNER, 9 * RECLAIM_PIN_TICKS)
        });
        let mut sweeper = fixture.sweeper();
        for _ in 0..5 {
            sweeper.pass();
        }
        let census = sweeper.pass();
        assert_eq!(
            (used(&census), census.swept.reclaimed),
            (100, 0),
            "{state:?}"
        );
    }
}

fn a_slot_that_is_being_handed_over_protects_its_flows<K: Client>() {
    let fixture = Fixture::<K>::new(25);
    for slot in 10..41 {
        // An unknown packet would go to the previous backend, so these entries are not recomputable for another ten minutes.
        fixture
            .maps
            .tables
            .set(slot, &Slot::new(OWNER, OTHER, Tick(NOW.0 - 1)));
    }
    fixture.fill(100, |_| aged(State::Young, OWNER, RECLAIM_YOUNG_TICKS));
    let mut sweeper = fixture.sweeper();
    sweeper.pass();
    assert_eq!(used(&sweeper.pass()), 100);
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

#[test]
fn each_table_is_relieved_by_its_own_use() {
    let four = Fixture::<v4::Key>::new(25);
    // The IPv6 table is full, but for its embryos, of what would be reclaimed under pressure; the IPv4 one is half empty of it.
    let old = |state| aged(state, OWNER, 9 * RECLAIM_PIN_TICKS);
    four.fill(50, |_| old(State::Pin));
    let six = Fixture::<v6::Key> {
        maps: Arc::clone(&four.maps),
        clock: Arc::clone(&four.clock),
        key: std::marker::PhantomData,
    };
    six.fill(8, |_| old(State::Young));
    let mut sweeper = four.sweeper();
    for _ in 0..5 {
        sweeper.pass();
    }
    let census = sweeper.pass();
    assert_eq!(census.tables.v4.counts.pin, 50);
    assert_eq!(
        (census.tables.v6.counts.young, census.swept.reclaimed),
        (6, 2)
    );
    assert_eq!(census.total(), census.by_service[&0]);
}

fn flows_that_begin_and_end_are_counted_by_service<K: Client>() {
    let fixture = Fixture::<K>::new(16);
    let word = |state, flags| Word::live(state, BackendRef::new(OWNER, 0), 0, NOW, flags);
    let put = |way: u32, service, word| fixture.put(way, way % 4, K::client(way, service), word);
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
    assert_eq!((churn[&1], churn[&2]), (of(1, 0, 1), of(1, 1, 0)));

    // Its backend closes all flows now, and then is dead, and its flows are to go elsewhere.
    let state = fixture.maps.state(OWNER);
    fixture.maps.set_state(OWNER, state.pacing(Share::ALL, NOW));
    put(2, 1, word(State::Closing, Word::BY_RESET));
    assert_eq!(sweeper.pass().churn[&1].deadline, 1);
    fixture.maps.set_state(OWNER, state.forgetting());
    let churn = sweeper.pass().churn;
    let ended = Churn {
        deadline: 1,
        rehashed: 1,
        ..of(1, 0, 1)
    };
    assert_eq!((churn[&1], churn[&2]), (ended, of(1, 1, 0)));
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
            assert_eq!(after, before);
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
    fixture.put(5, 1, key, aged(State::Closing, OWNER, 5_000));
    let census = fixture.sweeper().pass();
    assert_eq!((census.swept.ended, census.swept.ports), (1, 0));
    assert_ne!(
        fixture.slot(2, 2_000),
        0,
        "whoever has the place next gives it back"
    );
}
