//! Random lives of an instance against maps in memory: see [`model`].
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

mod model;

use std::sync::Arc;

use lb_userspace::dataplane::maps::Maps;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_leaves_the_data_path_whole(events in model::life()) {
        let maps = Arc::new(Maps::in_memory(model::capacity(1)).unwrap());
        model::play(&events, move || Arc::clone(&maps));
    }
}
