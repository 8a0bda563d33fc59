//! Random lives of an instance against maps in memory: see [`model`].
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

mod model;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use lb_userspace::dataplane::maps::Maps;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    fn lives(events in model::life()) {
        let maps = Arc::new(Maps::in_memory(model::capacity(1)).unwrap());
        let died_amid = model::play(&events, move || Arc::clone(&maps));
        DIED_AMID.fetch_add(died_amid, Ordering::Relaxed);
    }
}

/// Daemons that died when a part of a plan was applied.
static DIED_AMID: AtomicUsize = AtomicUsize::new(0);

#[test]
fn every_operation_leaves_the_data_path_whole() {
    lives();
    let died_amid = DIED_AMID.load(Ordering::Relaxed);
    assert!(died_amid > 0, "no daemon died in the middle of a plan");
}
