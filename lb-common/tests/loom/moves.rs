//! Entries that are moved, read, refreshed, closed, deleted and claimed at the same time.

use lb_common::flow::{
    life,
    table::{self, Claim, Inserted, Memory},
    word::{BackendRef, LINGER_RST_TICKS, State, Word},
};
use loom::sync::Arc;

use crate::machine::{
    Buckets, Depth, ISN, NOW, Order, data, embryo, explore, fin, find, on_cpu, pin, put,
};

/// The flow that is moved, or whatever else happens to it.
const LIVE: u64 = 1;
/// A flow that shares the second bucket and cannot be moved away.
const NEIGHBOUR: u64 = 2;
/// New flows, which want the first two buckets.
const NEW: u64 = 3;
const ANOTHER: u64 = 4;
/// Buckets 0 and 1 are full; of their occupants the first can move to bucket 2.
const HOMES: &[[u32; 2]] = &[[0, 1], [0, 2], [1, 0], [0, 1], [0, 1]];
/// The same, but the first occupant moves to a bucket that readers look at first.
const BACKWARDS: &[[u32; 2]] = &[[0, 1], [2, 0], [1, 0], [0, 1], [0, 1]];

/// Two buckets only.
const TIGHT: &[[u32; 2]] = &[[0, 1], [0, 1], [1, 0], [0, 1], [0, 1]];

/// Three buckets of one place, two of them full.
fn crowded(order: Order, homes: &'static [[u32; 2]]) -> Arc<Buckets<1>> {
    Buckets::new(
        order,
        3,
        homes,
        &[(0, 0, LIVE, pin(1, 0)), (1, 0, NEIGHBOUR, pin(2, 0))],
    )
}

/// Inserts a new flow, which moves another if it must.
fn insert(buckets: &Buckets<1>, key: u64) -> Inserted {
    put(
        buckets,
        buckets.homes(&key),
        &key,
        embryo(3),
        Claim::Any,
        NOW,
    )
}

/// One packet of a live flow, as steering treats it. Returns whether the entry was found.
fn packet(buckets: &Buckets<1>, key: u64, segment: &lb_common::tcp::Segment) -> bool {
    let is_own = |word: Word| assert_eq!(u64::from(word.backend().id()), key, "another's backend");
    if let Some(entry) = table::glance(buckets, &key)
        && let Some(next) = life::refresh(entry.word, segment, NOW)
    {
        is_own(entry.word);
        if next != entry.word {
            entry.replace(buckets, next);
        }
        return true;
    }
    let Some(entry) = find(buckets, buckets.homes(&key), &key) else {
        return false;
    };
    is_own(entry.word);
    let next = life::advance(entry.word, segment, NOW);
    if next != entry.word
        && !table::replace(buckets, entry.place, entry.word, next)
        && let Some(word) = table::reread(buckets, entry.place, &key)
    {
        let next = life::advance(word, segment, NOW);
        table::replace(buckets, entry.place, word, next);
    }
    true
}

fn assert_still_there(buckets: &Buckets<1>, key: u64) -> Word {
    let left = buckets.entries_of(key);
    assert_eq!(left.len(), 1, "{key}: {:?}", buckets.entries());
    assert!(left[0].is_live());
    assert_eq!(u64::from(left[0].backend().id()), key);
    left[0]
}

#[test]
fn a_flow_is_moved_while_it_is_read() {
    for (name, homes) in [
        ("move and reader", HOMES),
        ("move back and reader", BACKWARDS),
    ] {
        explore(name, Depth::Exhaustive, move |order| {
            let buckets = crowded(order, homes);
            let mover = buckets.clone();
            let mover = on_cpu(move || insert(&mover, NEW));
            let found = find(&*buckets, buckets.homes(&LIVE), &LIVE);
            assert!(matches!(mover.join().unwrap(), Inserted::At(_)));
            assert_eq!(found.map(|entry| entry.word), Some(pin(1, 0)));
            assert_still_there(&buckets, LIVE);
            assert_still_there(&buckets, NEIGHBOUR);
            assert_eq!(buckets.entries_of(NEW), [embryo(3)]);
        });
    }
}

#[test]
fn a_flow_is_refreshed_and_moved_while_it_is_read() {
    for (name, homes) in [
        ("refresh, then move, and reader", HOMES),
        ("refresh, then move back, and reader", BACKWARDS),
    ] {
        explore(name, Depth::Exhaustive, move |order| {
            let buckets = crowded(order, homes);
            let mover = buckets.clone();
            let mover = on_cpu(move || {
                packet(&mover, LIVE, &data(ISN));
                insert(&mover, NEW);
            });
            assert!(packet(&buckets, LIVE, &data(ISN)), "missed");
            mover.join().unwrap();
            assert_still_there(&buckets, LIVE);
        });
    }
}

#[test]
fn a_flow_is_moved_while_another_cpu_refreshes_it_and_a_third_reads() {
    for (name, homes) in [
        ("move, refresh and reader", HOMES),
        ("move back, refresh and reader", BACKWARDS),
    ] {
        explore(name, Depth::Preemptions(3), move |order| {
            let buckets = crowded(order, homes);
            let (mover, refresher) = (buckets.clone(), buckets.clone());
            let mover = on_cpu(move || insert(&mover, NEW));
            let refresher = on_cpu(move || packet(&refresher, LIVE, &data(ISN)));
            let found = find(&*buckets, buckets.homes(&LIVE), &LIVE);
            assert!(found.is_some(), "missed");
            mover.join().unwrap();
            assert!(refresher.join().unwrap(), "missed by the refresher");
            assert_still_there(&buckets, LIVE);
        });
    }
}

#[test]
fn a_flow_is_moved_while_it_closes() {
    explore("move and FIN", Depth::Exhaustive, |order| {
        let buckets = crowded(order, HOMES);
        let mover = buckets.clone();
        let mover = on_cpu(move || insert(&mover, NEW));
        assert!(packet(&buckets, LIVE, &fin(ISN)), "missed");
        mover.join().unwrap();
        assert_still_there(&buckets, LIVE);
    });
}

#[test]
fn a_flow_is_moved_by_two_cpus() {
    explore("two moves", Depth::Exhaustive, |order| {
        let buckets = crowded(order, HOMES);
        let mover = buckets.clone();
        let mover = on_cpu(move || insert(&mover, NEW));
        insert(&buckets, ANOTHER);
        mover.join().unwrap();
        assert_still_there(&buckets, LIVE);
        assert_still_there(&buckets, NEIGHBOUR);
    });
}

#[test]
fn a_flow_is_moved_by_two_cpus_while_a_third_refreshes_it() {
    explore("two moves and a refresh", Depth::Preemptions(3), |order| {
        let buckets = crowded(order, HOMES);
        let (mover, refresher) = (buckets.clone(), buckets.clone());
        let mover = on_cpu(move || insert(&mover, NEW));
        let refresher = on_cpu(move || packet(&refresher, LIVE, &data(ISN)));
        insert(&buckets, ANOTHER);
        mover.join().unwrap();
        refresher.join().unwrap();
        assert_still_there(&buckets, LIVE);
        assert_still_there(&buckets, NEIGHBOUR);
    });
}

/// A packet of a new flow, which writes what goes with that flow's entry once it has one, as a SYN does that needs a translation.
fn open(buckets: &Buckets<1>, key: u64) {
    if let Some(entry) = find(buckets, buckets.homes(&key), &key) {
        buckets.set_fact(entry.place, key);
    }
}

#[test]
fn a_flow_is_moved_while_the_newcomers_first_packet_comes_twice() {
    for (name, homes) in [
        ("move and the newcomer's packet", HOMES),
        ("move back and the newcomer's packet", BACKWARDS),
    ] {
        explore(name, Depth::Exhaustive, move |order| {
            let buckets = crowded(order, homes);
            let mover = buckets.clone();
            let mover = on_cpu(move || {
                assert!(matches!(insert(&mover, NEW), Inserted::At(_)));
                open(&mover, NEW);
            });
            open(&buckets, NEW);
            mover.join().unwrap();
            for key in [LIVE, NEIGHBOUR, NEW] {
                let entry = find(&*buckets, buckets.homes(&key), &key).expect("it is there");
                assert_eq!(buckets.fact(entry.place), key, "what goes with it");
            }
        });
    }
}

#[test]
fn a_copy_is_moved_on_before_its_source_is_given_up() {
    // The new flow of bucket 0 moves LIVE to bucket 2; that of bucket 2 moves it back, or moves what it finds; a packet may
    // keep the first from giving up its source.
    const CHAIN: &[[u32; 2]] = &[[0, 1], [0, 2], [1, 0], [0, 1], [2, 3], [3, 2]];
    const END: u64 = 5;
    explore(
        "a copy moved on, and a refresh",
        Depth::Preemptions(3),
        |order| {
            let end = Word::live(State::Pin, BackendRef::new(4, 0), 0, NOW, 0);
            let buckets = Buckets::<1>::new(
                order,
                4,
                CHAIN,
                &[
                    (0, 0, LIVE, pin(1, 0)),
                    (1, 0, NEIGHBOUR, pin(2, 0)),
                    (3, 0, END, end),
                ],
            );
            let (mover, refresher) = (buckets.clone(), buckets.clone());
            let mover = on_cpu(move || insert(&mover, NEW));
            let refresher = on_cpu(move || packet(&refresher, LIVE, &data(ISN)));
            insert(&buckets, ANOTHER);
            mover.join().unwrap();
            refresher.join().unwrap();
            assert_still_there(&buckets, LIVE);
            assert_still_there(&buckets, NEIGHBOUR);
            assert_eq!(buckets.entries_of(END), [end]);
        },
    );
}

/// The daemon deletes an entry that it has judged by what it saw.
fn delete(buckets: &Buckets<1>, bucket: u32) -> bool {
    let seen = buckets.value(bucket, 0);
    seen.is_live() && buckets.replace(bucket, 0, seen, Word::EMPTY)
}

#[test]
fn the_daemon_deletes_while_a_packet_refreshes_and_another_flow_comes() {
    explore("delete, refresh and SYN", Depth::Preemptions(3), |order| {
        let buckets = Buckets::<1>::new(
            order,
            2,
            TIGHT,
            &[(0, 0, 3, pin(3, 0)), (1, 0, NEIGHBOUR, pin(2, 0))],
        );
        let (daemon, refresher) = (buckets.clone(), buckets.clone());
        let daemon = on_cpu(move || delete(&daemon, 0));
        let refresher = on_cpu(move || packet(&refresher, 3, &data(ISN)));
        let inserted = put(&*buckets, [0, 1], &ANOTHER, embryo(4), Claim::Any, NOW);
        let deleted = daemon.join().unwrap();
        refresher.join().unwrap();
        assert_eq!(buckets.entries_of(3).len(), usize::from(!deleted));
        let placed = matches!(inserted, Inserted::At(_));
        assert_eq!(buckets.entries_of(ANOTHER).len(), usize::from(placed));
        assert!(deleted || !placed);
        assert_still_there(&buckets, NEIGHBOUR);
    });
}

#[test]
fn a_closing_flow_revives_while_its_place_is_claimed() {
    explore("claim and revival", Depth::Exhaustive, |order| {
        let closing = Word::live(
            State::Closing,
            BackendRef::new(1, 0),
            0,
            lb_common::clock::Tick(NOW.0 - LINGER_RST_TICKS),
            Word::BY_RESET,
        );
        let buckets = Buckets::<1>::new(
            order,
            2,
            TIGHT,
            &[(0, 0, LIVE, closing), (1, 0, NEIGHBOUR, pin(2, 0))],
        );
        let reviver = buckets.clone();
        let reviver = on_cpu(move || {
            let entry = find(&*reviver, [0, 1], &LIVE)?;
            let next = life::advance(entry.word, &data(ISN), NOW);
            Some(table::replace(&*reviver, entry.place, entry.word, next))
        });
        let inserted = put(&*buckets, [0, 1], &NEW, embryo(3), Claim::Any, NOW);
        let revived = reviver.join().unwrap() == Some(true);
        assert_ne!(revived, matches!(inserted, Inserted::At(_)));
        assert_eq!(buckets.entries_of(LIVE).len(), usize::from(revived));
        assert_still_there(&buckets, NEIGHBOUR);
    });
}
