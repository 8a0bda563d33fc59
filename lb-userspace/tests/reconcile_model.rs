//! Random lives of an instance against maps in memory: see [`model`].
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

mod model;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use lb_userspace::dataplane::maps::Maps;
use proptest::prelude::*;

use model::Rare;

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    fn lives(events in model::life()) {
        let maps = Arc::new(Maps::in_memory(model::capacity(1)).unwrap());
        let rare = model::play(&events, move || Arc::clone(&maps));
        let mut all = RARE.lock().unwrap();
        for (what, times) in rare {
            *all.entry(what).or_default() += times;
        }
    }
}

/// How often what is rare came about, in all lives.
static RARE: Mutex<BTreeMap<Rare, usize>> = Mutex::new(BTreeMap::new());
/// What is rarest comes about in nine of ten rounds of lives and more: that none of so many has it is no chance.
const ROUNDS: usize = 20;

#[test]
fn every_operation_leaves_the_data_path_whole() {
    let mut missing = vec![Rare::DiesAmid, Rare::Ejected, Rare::Returned];
    for _ in 0..ROUNDS {
        lives();
        let rare = RARE.lock().unwrap();
        missing.retain(|what| !rare.contains_key(what));
        if missing.is_empty() {
            return;
        }
    }
    panic!("no life has it: {missing:?}");
}
