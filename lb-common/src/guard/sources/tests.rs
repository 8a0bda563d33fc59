use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::*;
use crate::{flow::bucket::homes, guard::fingerprint, hash::Seed, hide::Plain};
use proptest::{collection::vec, prelude::*};

const NOW: u64 = 1_000_000_000_000;
const COST: u64 = 100_000_000;
const BURST: u64 = 5 * COST;
const SEED: Seed = Seed::new([1, 0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f]);
const SERVICE: u16 = 7;

/// Buckets in memory.
struct Model(Vec<[[AtomicU64; 4]; SOURCES_IN_BUCKET as usize]>);

impl Model {
    fn new(buckets: u32) -> Self {
        Self((0..buckets).map(|_| Default::default()).collect())
    }

    fn cell(&self, bucket: u32, way: u32, part: Part) -> &AtomicU64 {
        &self.0[bucket as usize][way as usize][part as usize]
    }

    fn source(&self, place: Place) -> Source {
        let load = |part| self.cell(place.index, place.way, part).load(SeqCst);
        Source {
            fingerprint: load(Part::Fingerprint),
            word: load(Part::Word),
            paid_ns: load(Part::Paid),
            flows: load(Part::Flows),
        }
    }

    fn put(&self, place: Place, source: Source) {
        let store = |part, value| self.cell(place.index, place.way, part).store(value, SeqCst);
        store(Part::Fingerprint, source.fingerprint);
        store(Part::Word, source.word);
        store(Part::Paid, source.paid_ns);
        store(Part::Flows, source.flows);
    }

    fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let buckets = self.0.len() as u32;
        (0..buckets).flat_map(|index| (0..SOURCES_IN_BUCKET).map(move |way| Place { index, way }))
    }

    /// All places that a source has.
    fn held_by(&self, fingerprint: u64) -> Vec<Place> {
        let places = self.places();
        places
            .filter(|place| self.source(*place).fingerprint == fingerprint)
            .collect()
    }
}

impl Sources for Model {
    type Bucket = u32;
    type Hide = Plain;

    fn bucket(&self, index: u32) -> Option<u32> {
        ((index as usize) < self.0.len()).then_some(index)
    }

    fn load(&self, bucket: u32, way: u32, part: Part) -> u64 {
        self.cell(bucket, way, part).load(SeqCst)
    }

    fn replace(&self, bucket: u32, way: u32, part: Part, seen: u64, new: u64) -> bool {
        let cell = self.cell(bucket, way, part);
        cell.compare_exchange(seen, new, SeqCst, SeqCst).is_ok()
    }

    fn set_word(&self, bucket: u32, way: u32, word: u64) {
        self.cell(bucket, way, Part::Word).store(word, SeqCst);
    }
}

fn wanted(word: u64, buckets: u32, now_ns: u64) -> Wanted {
    let fingerprint = fingerprint(word, SERVICE, &SEED);
    Wanted {
        fingerprint,
        word,
        homes: homes(fingerprint, buckets),
        now_ns,
        longest_burst_ns: BURST,
    }
}

/// A source that has a flow, or owes for one.
fn busy(n: u64) -> Source {
    Source {
        fingerprint: 2 * n + 2,
        word: n,
        paid_ns: if n.is_multiple_of(2) { NOW } else { 0 },
        flows: n % 2,
    }
}

#[test]
fn a_source_gets_a_place_and_finds_it_again() {
    let model = Model::new(8);
    let own = wanted(77, 8, NOW);
    let place_of = |wanted: &Wanted| place(&model, wanted).unwrap();
    let at = place_of(&own);
    assert!(own.homes.contains(&at.index));
    let fresh = Source {
        fingerprint: own.fingerprint,
        word: 77,
        ..Source::default()
    };
    assert_eq!(model.source(at), fresh);
    assert_eq!(place_of(&own), at);
    let other = place_of(&wanted(78, 8, NOW));
    assert_ne!(other, at);
    assert_eq!(place_of(&wanted(77, 8, NOW + BURST)), at);
}

#[test]
fn an_idle_source_gives_way_and_leaves_nothing() {
    let own = wanted(77, 2, NOW);
    let [home, _] = own.homes;
    for idle in [
        Source {
            paid_ns: NOW - BURST,
            ..busy(1_000)
        },
        Source {
            paid_ns: 0,
            ..busy(1_000)
        },
        // Of another clock, and so of a corrupt map.
        Source {
            paid_ns: NOW + AHEAD_NS,
            ..busy(1_000)
        },
        Source {
            paid_ns: u64::MAX,
            ..busy(1_000)
        },
        // Nobody's, whatever else is there.
        Source {
            fingerprint: 0,
            flows: 3,
            ..busy(1_000)
        },
    ] {
        let model = Model::new(2);
        for (n, place) in (0..).zip(model.places()) {
            model.put(place, busy(n));
        }
        let at = Place {
            index: home,
            way: 2,
        };
        model.put(at, idle);
        assert_eq!(place(&model, &own), Some(at), "{idle:?}");
        let fresh = Source {
            fingerprint: own.fingerprint,
            word: 77,
            ..Source::default()
        };
        assert_eq!(model.source(at), fresh, "{idle:?}");
    }
}

#[test]
fn a_source_that_owes_or_has_a_flow_keeps_its_place() {
    let own = wanted(77, 2, NOW);
    for kept in [
        Source {
            paid_ns: NOW - BURST + 1,
            ..busy(1_000)
        },
        Source {
            paid_ns: NOW,
            ..busy(1_000)
        },
        Source {
            paid_ns: NOW + AHEAD_NS - 1,
            ..busy(1_000)
        },
        Source {
            paid_ns: 0,
            flows: 1,
            ..busy(1_000)
        },
        Source {
            paid_ns: 0,
            flows: 1 << 32,
            ..busy(1_000)
        },
    ] {
        let model = Model::new(2);
        for (n, place) in (0..).zip(model.places()) {
            model.put(place, busy(n));
        }
        let at = Place {
            index: own.homes[1],
            way: 1,
        };
        model.put(at, kept);
        let before: Vec<_> = model.places().map(|place| model.source(place)).collect();
        assert_eq!(place(&model, &own), None, "{kept:?}");
        let after: Vec<_> = model.places().map(|place| model.source(place)).collect();
        assert_eq!(before, after);
    }
}

#[test]
fn a_place_that_is_nobodys_is_taken_before_another_idle_sources() {
    let own = wanted(77, 2, NOW);
    for nobodys in 0..2 * SOURCES_IN_BUCKET {
        let model = Model::new(2);
        let mut places = [0, 1].into_iter().flat_map(|home| {
            (0..SOURCES_IN_BUCKET).map(move |way| Place {
                index: own.homes[home],
                way,
            })
        });
        let idle = Source {
            paid_ns: NOW - BURST,
            flows: 0,
            ..busy(1_000)
        };
        for place in places.clone() {
            model.put(place, idle);
        }
        let at = places.nth(nobodys as usize).unwrap();
        model.put(at, Source::default());
        assert_eq!(place(&model, &own), Some(at));
        let kept = model.places().filter(|place| model.source(*place) == idle);
        assert_eq!(kept.count(), 2 * SOURCES_IN_BUCKET as usize - 1);
    }
}

#[test]
fn a_source_that_is_there_is_found_before_a_free_place() {
    let model = Model::new(2);
    let own = wanted(77, 2, NOW);
    let at = Place {
        index: own.homes[1],
        way: 3,
    };
    let held = Source {
        fingerprint: own.fingerprint,
        word: 77,
        paid_ns: NOW,
        flows: 5,
    };
    model.put(at, held);
    assert_eq!(place(&model, &own), Some(at));
    assert_eq!(model.source(at), held);
}

#[test]
fn without_buckets_there_is_no_place_and_no_limit() {
    let model = Model::new(0);
    assert_eq!(place(&model, &wanted(77, 2, NOW)), None);
    let nowhere = Place { index: 5, way: 0 };
    assert!(pay(&model, nowhere, NOW, COST, BURST));
    assert!(count(&model, nowhere, 1));
    assert!(!has_enough(&model, nowhere, 0));
}

#[test]
fn a_burst_is_let_pass_and_then_the_rate() {
    let model = Model::new(2);
    let at = place(&model, &wanted(77, 2, NOW)).unwrap();
    let passed = |now: u64| {
        (0..20)
            .filter(|_| pay(&model, at, now, COST, BURST))
            .count()
    };
    assert_eq!(passed(NOW), 5);
    assert_eq!(passed(NOW + COST - 1), 0);
    assert_eq!(passed(NOW + COST), 1);
    assert_eq!(passed(NOW + 3 * COST), 2);
    assert_eq!(passed(NOW + 100 * COST), 5);
}

/// Another CPU may have read the clock a moment later: that forgives nothing. What is much later is of a corrupt map, and starts over.
#[test]
fn a_clock_that_is_ahead_forgives_no_debts() {
    assert_eq!(paid_after(NOW, NOW, COST, BURST), None);
    assert_eq!(paid_after(NOW + 1, NOW, COST, BURST), None);
    assert_eq!(paid_after(NOW + AHEAD_NS - 1, NOW, COST, BURST), None);
    assert_eq!(
        paid_after(NOW + AHEAD_NS, NOW, COST, BURST),
        Some(NOW - BURST + COST)
    );
    assert_eq!(
        paid_after(u64::MAX, NOW, COST, BURST),
        Some(NOW - BURST + COST)
    );
}

/// What is saved up reaches back to before the clock began.
#[test]
fn a_host_that_has_just_started_gives_bursts_too() {
    for start in [1, COST / 2, COST + 7, BURST - COST / 2, BURST, BURST + COST] {
        let model = Model::new(2);
        let at = place(&model, &wanted(77, 2, start)).unwrap();
        let passed = |now: u64| {
            (0..20)
                .filter(|_| pay(&model, at, now, COST, BURST))
                .count()
        };
        assert_eq!(passed(start), 5, "{start}");
        assert_eq!(place(&model, &wanted(77, 2, start)), Some(at));
        assert_eq!(passed(start + COST - 1), 0, "{start}");
        assert_eq!(passed(start + 2 * COST), 2, "{start}");
    }
}

#[test]
fn as_many_flows_as_are_allowed_are_counted() {
    let model = Model::new(2);
    let at = place(&model, &wanted(77, 2, NOW)).unwrap();
    assert!((0..3).all(|_| count(&model, at, 3)));
    assert!(!count(&model, at, 3) && has_enough(&model, at, 3));
    assert_eq!(model.source(at).flows, 3 << 32);
    // The daemon has counted two of them, and one has ended.
    let counted = Source {
        flows: 2,
        ..model.source(at)
    };
    model.put(at, counted);
    assert!(!has_enough(&model, at, 3));
    assert!(count(&model, at, 3) && !count(&model, at, 3));
    assert_eq!(model.source(at).flows, 2 | 1 << 32);
}

#[test]
fn flows_are_as_many_as_both_numbers_together() {
    assert!(is_full(0, 0) && is_full(1, 1) && is_full(1 << 32, 1));
    assert!(!is_full(2 | 1 << 32, 4) && is_full(2 | 2 << 32, 4));
    assert!(is_full(u64::MAX, u32::MAX));
    assert!(!is_full(u64::from(u32::MAX) - 1, u32::MAX));
}

/// What one source did, in nanoseconds between its flows.
#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Open(u8),
}

proptest! {
    /// Who is told to be free has saved up all that it can, and the other way round.
    #[test]
    fn free_is_who_owes_nothing(
        paid_ns in prop_oneof![Just(0), NOW - 2 * BURST..NOW + 9, NOW..NOW + 2 * AHEAD_NS, any::<u64>()],
        now_ns in prop_oneof![Just(NOW), 0..2 * BURST],
    ) {
        let own = Wanted { now_ns, ..wanted(1, 2, NOW) };
        let owes_nothing = saved_up(paid_ns, now_ns, BURST) == BURST;
        prop_assert_eq!(is_free::<Plain>([2, paid_ns, 0], &own) == 1, owes_nothing);
    }

    /// Each source has what it would have if it were alone, for as long as there are places.
    #[test]
    fn sources_do_not_disturb_each_other(
        steps in vec(
            prop_oneof![
                (0..3 * COST).prop_map(Step::Wait),
                (0u8..6).prop_map(Step::Open),
                (0u8..6).prop_map(Step::Open),
            ],
            1..200,
        ),
    ) {
        const LIMIT: u32 = 9;
        let model = Model::new(16);
        let mut now_ns = NOW;
        // Tokens, in nanoseconds, as of when; and flows.
        let mut expected = [(BURST, NOW, 0u32); 6];
        for step in steps {
            let number = match step {
                Step::Wait(ns) => {
                    now_ns += ns;
                    continue;
                }
                Step::Open(number) => number,
            };
            let (saved, since, flows) = &mut expected[usize::from(number)];
            *saved = BURST.min(*saved + (now_ns - *since));
            *since = now_ns;
            let pays = *saved >= COST;
            if pays {
                *saved -= COST;
            }
            let opens = pays && *flows < LIMIT;
            *flows += u32::from(opens);

            let at = place(&model, &wanted(u64::from(number) << 20, 16, now_ns));
            let at = at.expect("six sources have places");
            let paid = pay(&model, at, now_ns, COST, BURST);
            prop_assert_eq!(paid, pays);
            prop_assert_eq!(paid && count(&model, at, LIMIT), opens);
        }
    }

    /// Sources of two services, of which one can save up much more than the other: what one owes is not forgiven for newcomers of the other.
    #[test]
    fn debts_of_a_long_burst_outlive_newcomers_of_a_short_one(
        spent in 1u64..=50,
        after_ns in 0..50 * COST,
        newcomers in 1u64..30,
    ) {
        const LONG: u64 = 10 * BURST;
        let model = Model::new(2);
        let at = |word, now_ns| Wanted { longest_burst_ns: LONG, ..wanted(word, 2, now_ns) };
        let own = place(&model, &at(0, NOW)).unwrap();
        for _ in 0..spent {
            prop_assert!(pay(&model, own, NOW, COST, LONG));
        }
        let owed_ns = (spent * COST).saturating_sub(after_ns);
        let now_ns = NOW + after_ns;
        for word in 1..=newcomers {
            if let Some(theirs) = place(&model, &at(word, now_ns)) {
                prop_assert!(pay(&model, theirs, now_ns, COST, BURST));
            }
        }
        if owed_ns == 0 {
            // As good as nobody: its place may have gone.
            return Ok(());
        }
        prop_assert_eq!(place(&model, &at(0, now_ns)), Some(own));
        let saved = saved_up(model.source(own).paid_ns, now_ns, LONG);
        prop_assert_eq!(saved, LONG - owed_ns);
    }

    /// Whatever is in the map, a source has at most one place, and nobody who owes or has a flow loses his.
    #[test]
    fn places_change_hands_one_at_a_time(
        before in vec((0u64..4, prop_oneof![Just(0), NOW - 2 * BURST..NOW + 9, any::<u64>()], 0u64..2), 8),
        word in 0u64..4,
    ) {
        let model = Model::new(2);
        let own = wanted(word, 2, NOW);
        let kept: Vec<_> = model.places().zip(before).map(|(place, (n, paid_ns, flows))| {
            let fingerprint = if n == 0 { 0 } else { 2 * n };
            let source = Source { fingerprint, word: n, paid_ns, flows };
            model.put(place, source);
            (place, source, is_free::<Plain>([fingerprint, paid_ns, flows], &own) == 0)
        }).collect();
        let found = place(&model, &own);
        prop_assert_eq!(found.is_some(), kept.iter().any(|(.., is_kept)| !is_kept));
        prop_assert_eq!(model.held_by(own.fingerprint), Vec::from_iter(found));
        for (place, source, is_kept) in kept {
            prop_assert!(!is_kept || model.source(place) == source);
            prop_assert!(found == Some(place) || model.source(place) == source);
        }
    }
}

/// Buckets in which other CPUs pay for the same source at each moment that one tries to.
struct Crowded(Model);

impl Sources for Crowded {
    type Bucket = u32;
    type Hide = Plain;

    fn bucket(&self, index: u32) -> Option<u32> {
        self.0.bucket(index)
    }

    fn load(&self, bucket: u32, way: u32, part: Part) -> u64 {
        self.0.load(bucket, way, part)
    }

    fn replace(&self, bucket: u32, way: u32, part: Part, seen: u64, new: u64) -> bool {
        if part == Part::Paid {
            assert!(pay(&self.0, Place { index: bucket, way }, NOW, COST, BURST));
        }
        self.0.replace(bucket, way, part, seen, new)
    }

    fn set_word(&self, bucket: u32, way: u32, word: u64) {
        self.0.set_word(bucket, way, word);
    }
}

#[test]
fn who_is_outrun_each_time_and_could_have_paid_is_let_in() {
    let crowded = Crowded(Model::new(2));
    let own = wanted(77, 2, NOW);
    let at = place(&crowded.0, &own).unwrap();
    assert_eq!(BURST / COST, u64::from(TRIES) + 1);
    assert!(pay(&crowded, at, NOW, COST, BURST));
    // All that others have paid for meanwhile is: one is left, and then none.
    assert!(pay(&crowded.0, at, NOW, COST, BURST));
    assert!(!pay(&crowded, at, NOW, COST, BURST));
}

/// Threads that open flows of few sources get no more than these may have, and what there is.
#[test]
fn threads_together_get_what_a_source_may_have() {
    const THREADS: u64 = 4;
    let model = Model::new(4);
    let passed: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let own = wanted(5, 4, NOW);
                    let opens = |_: &u32| {
                        let at = place(&model, &own).unwrap();
                        pay(&model, at, NOW, COST / 1_000, BURST)
                    };
                    (0..20_000).filter(opens).count() as u64
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    // See [`pay`] of those that are outrun.
    let most = 5_000 + 5_000 * (THREADS - 1) / u64::from(TRIES);
    assert!((5_000..=most).contains(&passed), "{passed}");
    let held = model.held_by(wanted(5, 4, NOW).fingerprint);
    assert_eq!(held.len(), 1);
    assert_eq!(model.source(held[0]).paid_ns, NOW);
}
