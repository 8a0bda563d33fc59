//! The sweep over maps in memory.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use lb_common::{
    backend::{BackendState, Mode, Serving},
    clock::Tick,
    flow::{
        v4::Key,
        word::{BackendRef, State, Word},
    },
    hash::Seed,
    maglev::{Slot, TableRef},
    maps::{ABI_VERSION, Instance},
    service::Service,
};
use proptest::prelude::*;

use super::{
    Census, Sweeper,
    judge::{IDLE_TICKS, RECLAIM_PIN_TICKS, RECLAIM_YOUNG_TICKS},
    pick_of,
};
use crate::dataplane::maps::{Capacity, Maps};

const NOW: Tick = Tick(2_000_000);
const SEED: Seed = Seed::new([11, 12, 13]);
/// The owner of every slot.
const OWNER: u32 = 1;
/// A backend that owns none.
const OTHER: u32 = 2;

/// A table with one service, all of whose slots are [`OWNER`]'s.
struct Fixture {
    maps: Arc<Maps>,
    clock: Arc<AtomicU32>,
}

impl Fixture {
    fn new(flow_buckets: u32) -> Self {
        let capacity = Capacity {
            flow_buckets,
            services: 4,
            backends: 8,
            table_slots: 64,
            cpus: 1,
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
            vip: 0x0a00_0001,
            port: 80,
            reserved: 0,
            reserved_end: [0; 2],
        };
        maps.services.set(0, &service);
        for slot in 10..41 {
            maps.tables.set(slot, &Slot::new(OWNER, 0, Tick(1)));
        }
        for id in [OWNER, OTHER] {
            maps.set_state(id, BackendState::new(0, Serving::New, Mode::L2, 0, true));
        }
        Self {
            maps: Arc::new(maps),
            clock: Arc::new(AtomicU32::new(NOW.0)),
        }
    }

    fn sweeper(&self) -> Sweeper {
        let clock = Arc::clone(&self.clock);
        Sweeper::with_clock(Arc::clone(&self.maps), move || {
            Tick(clock.load(Ordering::SeqCst))
        })
    }

    fn put(&self, bucket: u32, way: usize, key: Key, word: Word) {
        self.maps
            .flows4
            .word(bucket, 2 * way)
            .store(key.0, Ordering::SeqCst);
        self.maps
            .flows4
            .word(bucket, 2 * way + 1)
            .store(word.0, Ordering::SeqCst);
    }

    fn word(&self, bucket: u32, way: usize) -> Word {
        Word(
            self.maps
                .flows4
                .word(bucket, 2 * way + 1)
                .load(Ordering::SeqCst),
        )
    }

    /// Fills the first `entries` places with entries of the given age; each of another client.
    fn fill(&self, entries: u32, word: impl Fn(u32) -> Word) {
        for n in 0..entries {
            self.put(n / 4, n as usize % 4, client(n), word(n));
        }
    }

    fn homes(&self, key: Key) -> [u32; 2] {
        key.homes(&SEED, self.maps.flows4.len())
    }
}

fn client(n: u32) -> Key {
    Key::new(0x0b00_0000 + n, 40_000, 0)
}

fn aged(state: State, backend: u32, age: u32) -> Word {
    Word::live(state, BackendRef::new(backend, 0), 0, Tick(NOW.0 - age), 0)
}

fn used(census: &Census) -> u64 {
    census.total.young + census.total.pin + census.total.closing
}

#[test]
fn a_pass_counts_everything_in_steps() {
    let fixture = Fixture::new(64);
    fixture.fill(100, |n| match n % 4 {
        0 => Word::embryo(BackendRef::new(OWNER, 0), n, NOW),
        1 => aged(State::Young, OWNER, 1),
        2 => aged(State::Pin, OTHER, IDLE_TICKS),
        _ => aged(State::Closing, OWNER, 1),
    });
    let mut sweeper = fixture.sweeper();
    for _ in 0..7 {
        assert_eq!(sweeper.step(8), None);
    }
    let census = sweeper.step(8).unwrap();
    let total = census.total;
    assert_eq!(
        (total.embryo, total.young, total.pin, total.closing),
        (25, 25, 25, 25)
    );
    assert_eq!((total.active, total.idle), (25, 25));
    assert_eq!((census.scans, census.at, census.capacity), (1, NOW, 256));
    assert_eq!(census.by_backend[&(OTHER, 0)].pin, 25);
    assert_eq!(census.by_backend[&(OWNER, 0)].young, 25);
    assert_eq!(census.by_service[&0], total);
    let again = sweeper.pass();
    assert_eq!((again.scans, again.total), (2, total));
}

#[test]
fn embryos_expire_and_ended_flows_go() {
    let fixture = Fixture::new(4);
    let backend = BackendRef::new(OWNER, 0);
    fixture.put(0, 0, client(0), Word::embryo(backend, 0, Tick(NOW.0 - 40)));
    fixture.put(0, 1, client(1), Word::embryo(backend, 0, NOW));
    fixture.put(1, 0, client(2), aged(State::Closing, OWNER, 5_000));
    fixture.put(1, 1, client(3), aged(State::Closing, OTHER, 300));
    fixture.put(2, 0, client(4), Word(7));
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
    assert_eq!((census.total.embryo, census.total.closing), (1, 1));
}

#[test]
fn below_three_quarters_nothing_is_reclaimed() {
    let fixture = Fixture::new(25);
    fixture.fill(75, |_| aged(State::Pin, OWNER, 2 * RECLAIM_PIN_TICKS));
    let mut sweeper = fixture.sweeper();
    for _ in 0..5 {
        assert_eq!(used(&sweeper.pass()), 75);
    }
}

#[test]
fn young_entries_go_first_and_only_as_many_as_are_too_many() {
    let fixture = Fixture::new(25);
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
    assert_eq!((census.total.young, census.total.pin), (24, 50));
    assert_eq!(census.swept.reclaimed, 16);
}

#[test]
fn then_pins_go_the_longest_idle_first_and_exceptions_never() {
    let fixture = Fixture::new(25);
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
            .filter(|n| !fixture.word(n / 4, *n as usize % 4).is(State::Empty))
            .count()
    };
    assert_eq!(
        (left(0..30), left(30..40), left(40..60), left(60..95)),
        (30, 0, 9, 35)
    );
}

#[test]
fn a_table_full_of_exceptions_stays_full() {
    let fixture = Fixture::new(25);
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

#[test]
fn a_slot_that_is_being_handed_over_protects_its_flows() {
    let fixture = Fixture::new(25);
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

#[test]
fn of_two_entries_of_a_key_the_older_goes_after_a_second_look() {
    let fixture = Fixture::new(64);
    let key = client(7);
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

#[test]
fn a_contested_pair_is_no_duplicate() {
    let fixture = Fixture::new(64);
    let key = client(7);
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
        assert_eq!(sweeper.pass().total.active, 2);
    }
}

#[test]
fn the_pick_is_the_slots_owner() {
    let fixture = Fixture::new(2);
    assert_eq!(pick_of(&fixture.maps, client(1)), Some(OWNER));
    assert_eq!(
        pick_of(&fixture.maps, Key::new(1, 2, 3)),
        None,
        "a service without table"
    );
    assert_eq!(
        pick_of(&fixture.maps, Key::new(1, 2, 900)),
        None,
        "no such service"
    );
    // A table that claims to reach beyond the arena.
    fixture.maps.set_table(1, TableRef::new(60, 31, 1));
    let beyond = (0..200)
        .filter(|&n| pick_of(&fixture.maps, Key::new(n, 1, 1)).is_some())
        .count();
    assert_eq!(beyond, 0, "slots 60 to 63 are empty, the rest is not there");
}

#[test]
fn a_stopped_process_does_not_take_new_entries_for_old_ones() {
    let fixture = Fixture::new(2);
    // An embryo whose tick looks 50 ticks old by a clock that was read long before it was made.
    let made = NOW.later(14);
    fixture.put(
        0,
        0,
        client(1),
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
    let fixture = Fixture::new(10_000);
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

proptest! {
    /// Whatever is in the table, a pass touches no key, makes no entry, and changes no recently seen flow.
    #[test]
    fn a_pass_only_takes_away(entries in proptest::collection::vec((any::<u64>(), any::<u64>()), 64), passes in 1usize..4) {
        let fixture = Fixture::new(16);
        for (n, &(key, value)) in entries.iter().enumerate() {
            fixture.put(n as u32 / 4, n % 4, Key(key), Word(value));
        }
        let mut sweeper = fixture.sweeper();
        for _ in 0..passes {
            sweeper.pass();
        }
        for (n, &(key, value)) in entries.iter().enumerate() {
            let (bucket, way) = (n as u32 / 4, n % 4);
            prop_assert_eq!(fixture.maps.flows4.word(bucket, 2 * way).load(Ordering::SeqCst), key);
            let (before, after) = (Word(value), fixture.word(bucket, way));
            if after != before && after != Word::EMPTY {
                prop_assert_eq!((after.state(), after.backend()), (before.state(), before.backend()));
            }
            let flow = before.is(State::Young) || before.is(State::Pin);
            if flow && before.age(NOW) < IDLE_TICKS {
                prop_assert_eq!(after, before);
            }
        }
    }
}
