//! How often an insertion finds no place, by how full the table is.

use lb_common::{
    clock::Tick,
    flow::{
        bucket::WAYS,
        table::{self, Claim, Inserted, Memory, Subject},
        v4::Key,
        word::{BackendRef, State, Word},
    },
};

use crate::{random::Random, rig::Rig};

const NOW: Tick = Tick(1_000);

/// Fills a table with pins up to `load`; insertions tried and failed.
fn fill(buckets: u32, load: f64, seed: u64) -> (u32, u32) {
    let rig = Rig::new(buckets);
    let mut random = Random::new(seed);
    let pin = Word::live(State::Pin, BackendRef::new(1, 0), 0, NOW, 0);
    let tried = (f64::from(buckets * WAYS) * load) as u32;
    let mut failed = 0;
    for _ in 0..tried {
        let key = Key(random.long());
        match table::insert(
            &rig,
            &Subject {
                key,
                homes: rig.homes(&key),
                now: NOW,
            },
            pin,
            Claim::Any,
        ) {
            Inserted::At(_) => {}
            Inserted::Full => failed += 1,
            Inserted::Yielded(_) => panic!("{key:?} was there before"),
        }
    }
    assert_eq!(rig.all().count() as u32, tried - failed);
    (tried, failed)
}

#[test]
fn insertion_does_not_fail_at_the_load_the_table_is_sized_for() {
    for (load, most_failing) in [(0.6, 0.0), (0.75, 0.005), (0.9, 0.05)] {
        let (tried, failed) = fill(1 << 18, load, 7);
        println!("load {load}: {failed} of {tried} insertions failed");
        assert!(tried >= 500_000);
        assert!(
            f64::from(failed) <= f64::from(tried) * most_failing,
            "{failed} of {tried} at {load}"
        );
    }
}
