//! The lives of the reconciler's model on pinned maps, which each new daemon adopts.

use lb_userspace::dataplane::kernel::possible_cpus;
use proptest::prelude::*;

use crate::{
    model,
    sandbox::{Opened, run},
};

proptest! {
    // Few, since each has a kernel's worth of maps of its own; many more are played in memory.
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_leaves_pinned_maps_whole(events in model::life()) {
        run(move |sandbox| {
            let sandbox = sandbox.clone();
            let capacity = model::capacity(possible_cpus().unwrap());
            let mut opened: Option<Opened> = None;
            model::play(&events, move || {
                // A daemon finds the pins as the one before it left them, and their lock free.
                let is_first = opened.take().is_none();
                let found = opened.insert(sandbox.prepare_with(capacity));
                assert_eq!(found.adopted, !is_first);
                assert_eq!(found.maps.maps().capacity, capacity);
                found.maps.maps()
            });
        });
    }
}
