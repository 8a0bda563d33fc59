//! Sources on several CPUs: who takes a place, pays and is counted while others do, and while the daemon settles the count.

use lb_common::{
    flow::table::Place,
    guard::sources::{Part, Sources, Wanted, count, pay, place},
    hide::Plain,
};
use loom::sync::Arc;

use crate::machine::{Cell, Depth, Order, explore, on_cpu};

const NOW: u64 = 1_000_000_000_000;
const COST: u64 = 1_000;
/// Ways of a bucket.
const WAYS: u32 = lb_common::guard::SOURCES_IN_BUCKET;
/// A source that has a flow: nobody takes its place.
const BUSY: [u64; 4] = [0xb0, 0, 0, 1];
/// Nobody.
const NOBODY: [u64; 4] = [0; 4];

/// Two buckets, of which each place is a checker's cells, or as it was and nobody's to change.
struct Model {
    /// The places that can be had: bucket, way, words.
    open: Vec<(u32, u32, [Cell; 4])>,
}

impl Model {
    fn new(order: Order, open: &[(u32, u32, [u64; 4])]) -> Arc<Self> {
        let cells = |words: &[u64; 4]| words.map(|word| Cell::new(order, word));
        let open = open.iter();
        Arc::new(Self {
            open: open
                .map(|(bucket, way, words)| (*bucket, *way, cells(words)))
                .collect(),
        })
    }

    fn cell(&self, bucket: u32, way: u32, part: Part) -> Option<&Cell> {
        let found = self.open.iter().find(|(b, w, _)| (*b, *w) == (bucket, way));
        found.map(|(.., cells)| &cells[part as usize])
    }

    /// The words of a place, once every CPU is done.
    fn words(&self, bucket: u32, way: u32) -> [u64; 4] {
        [Part::Fingerprint, Part::Word, Part::Paid, Part::Flows]
            .map(|part| self.load(bucket, way, part))
    }
}

impl Sources for Model {
    type Bucket = u32;
    type Hide = Plain;

    fn bucket(&self, index: u32) -> Option<u32> {
        Some(index)
    }

    fn load(&self, bucket: u32, way: u32, part: Part) -> u64 {
        assert!(bucket < 2 && way < WAYS);
        match self.cell(bucket, way, part) {
            Some(cell) => cell.load(),
            None => BUSY[part as usize],
        }
    }

    fn replace(&self, bucket: u32, way: u32, part: Part, seen: u64, new: u64) -> bool {
        let cell = self.cell(bucket, way, part);
        cell.expect("a busy place is nobody's to change")
            .compare_exchange(seen, new)
    }

    fn set_word(&self, bucket: u32, way: u32, word: u64) {
        let cell = self.cell(bucket, way, Part::Word);
        cell.expect("a busy place is nobody's to change")
            .store(word);
    }
}

fn wanted(fingerprint: u64) -> Wanted {
    Wanted {
        fingerprint,
        word: fingerprint,
        homes: [0, 1],
        now_ns: NOW,
        longest_burst_ns: COST,
    }
}

const AT: Place = Place { index: 1, way: 2 };

/// Both take the one free place, which stays the source's.
#[test]
fn two_segments_of_a_new_source_come_at_once() {
    explore("a new source on two CPUs", Depth::Exhaustive, |order| {
        let model = Model::new(order, &[(1, 2, NOBODY)]);
        let find = |model: &Arc<Model>| {
            let model = model.clone();
            move || place(&*model, &wanted(0xa1))
        };
        let other = on_cpu(find(&model));
        assert_eq!(find(&model)(), Some(AT));
        assert_eq!(other.join().unwrap(), Some(AT));
        assert_eq!(model.words(1, 2), [0xa1, 0xa1, 0, 0]);
    });
}

/// Of two free places that of nobody is taken, and by both.
#[test]
fn a_new_source_takes_one_place_of_two() {
    explore("a new source, two places", Depth::Preemptions(4), |order| {
        let idle = [0xb1, 0xb1, NOW - COST, 0];
        let model = Model::new(order, &[(0, 3, idle), (1, 2, NOBODY)]);
        let find = |model: &Arc<Model>| {
            let model = model.clone();
            move || place(&*model, &wanted(0xa1))
        };
        let other = on_cpu(find(&model));
        assert_eq!(find(&model)(), Some(AT));
        assert_eq!(other.join().unwrap(), Some(AT));
        assert_eq!(model.words(1, 2), [0xa1, 0xa1, 0, 0]);
        assert_eq!(model.words(0, 3), idle);
    });
}

/// Two sources compete for one place: one of them has it in the end, and no other place is touched.
#[test]
fn two_new_sources_come_at_once() {
    explore(
        "two new sources, one place",
        Depth::Preemptions(4),
        |order| {
            let model = Model::new(order, &[(1, 2, NOBODY)]);
            let find = |model: &Arc<Model>, fingerprint| {
                let model = model.clone();
                move || place(&*model, &wanted(fingerprint))
            };
            let other = on_cpu(find(&model, 0xa1));
            let mine = find(&model, 0xa3)();
            let theirs = other.join().unwrap();
            for found in [mine, theirs] {
                assert!(found.is_none() || found == Some(AT));
            }
            assert!(mine.is_some() || theirs.is_some());
            let [holder, .., paid_ns, flows] = model.words(1, 2);
            assert!(holder == 0xa1 && theirs.is_some() || holder == 0xa3 && mine.is_some());
            assert_eq!((paid_ns, flows), (0, 0));
        },
    );
}

/// What a source that comes back at the moment at which its place is taken does, is at worst the next one's.
#[test]
fn a_place_changes_hands_while_its_holder_returns() {
    explore("a holder returns", Depth::Preemptions(4), |order| {
        let idle = [0xb1, 0xb1, NOW - COST, 0];
        let model = Model::new(order, &[(1, 2, idle)]);
        let holder = model.clone();
        let holder = on_cpu(move || {
            let found = place(&*holder, &wanted(0xb1));
            found.is_some_and(|at| pay(&*holder, at, NOW, COST, COST) && count(&*holder, at, 1))
        });
        let mine = place(&*model, &wanted(0xa1));
        let counted = holder.join().unwrap();
        let [fingerprint, _, paid_ns, flows] = model.words(1, 2);
        assert!(fingerprint == 0xb1 || fingerprint == 0xa1 && mine.is_some());
        assert!(paid_ns <= NOW && flows <= 1 << 32);
        if mine.is_none() {
            assert!(counted);
            assert_eq!((fingerprint, paid_ns, flows), (0xb1, NOW, 1 << 32));
        }
    });
}

/// What has been saved up for one flow lets one pass.
#[test]
fn one_flow_is_paid_for_once() {
    explore("one payment on two CPUs", Depth::Exhaustive, |order| {
        let model = Model::new(order, &[(1, 2, [0xa1, 0xa1, 0, 1])]);
        let other = model.clone();
        let other = on_cpu(move || pay(&*other, AT, NOW, COST, COST));
        let mine = pay(&*model, AT, NOW, COST, COST);
        assert!(mine ^ other.join().unwrap());
        assert_eq!(model.words(1, 2), [0xa1, 0xa1, NOW, 1]);
    });
}

/// The last flow that a source may have is one CPU's.
#[test]
fn the_last_flow_is_counted_once() {
    explore("one flow on two CPUs", Depth::Exhaustive, |order| {
        let model = Model::new(order, &[(1, 2, [0xa1, 0xa1, 0, 2])]);
        let other = model.clone();
        let other = on_cpu(move || count(&*other, AT, 3));
        let mine = count(&*model, AT, 3);
        assert!(mine ^ other.join().unwrap());
        assert_eq!(model.words(1, 2), [0xa1, 0xa1, 0, 2 | 1 << 32]);
    });
}

/// The daemon says what it has counted, and takes off what was opened before: of what is opened meanwhile nothing is lost.
#[test]
fn the_daemon_settles_while_a_flow_is_opened() {
    explore("the daemon settles", Depth::Exhaustive, |order| {
        let model = Model::new(order, &[(1, 2, [0xa1, 0xa1, 0, 1 | 2 << 32])]);
        let cpu = model.clone();
        let cpu = on_cpu(move || count(&*cpu, AT, 9));
        let settled = (0..2).any(|_| {
            let seen = model.load(1, 2, Part::Flows);
            model.replace(1, 2, Part::Flows, seen, 3 | ((seen >> 32) - 2) << 32)
        });
        assert!(settled, "one CPU is in the way once");
        assert!(cpu.join().unwrap());
        assert_eq!(model.words(1, 2), [0xa1, 0xa1, 0, 3 | 1 << 32]);
    });
}
