//! Falls of many, over what happens after them.

use std::{sync::Arc, time::Duration};

use lb_common::backend::Serving;
use lb_userspace::{
    config::Config,
    dataplane::maps::{Capacity, Maps},
    flows::Census,
    model::{Health, Suspension},
    pace::Moment,
    reconcile::State,
};

use super::{Machine, NOW, found, service};

/// So many seconds after the beginning.
fn after(seconds: u64) -> Moment {
    Moment::from(NOW).later(Duration::from_secs(seconds))
}

/// The checks say something of a backend, so many seconds after the beginning.
fn hear(state: &mut State, number: u8, health: Health, seconds: u64) {
    state.heard(found(number, health), after(seconds).0 as u64);
}

/// One service with the first so many backends.
fn config(machine: &Machine, count: u8) -> Config {
    let mut config = machine.config(&["b1"]);
    config.limits.backends = 6;
    let first = config.services[0].backends.remove(0);
    config.services[0].backends = (1..=count)
        .map(|number| {
            let mut backend = first.clone();
            backend.name = format!("b{number}");
            backend.address = [10, 0, 1, number].into();
            backend.check_address = ([10, 0, 1, number], 80).into();
            backend
        })
        .collect();
    config
}

/// Whoever was well beside them is drained out of the file, long after it was seen that the others are dead.
#[test]
fn what_was_taken_for_dead_stays_so_also_for_the_next_daemon() {
    let mut machine = Machine::new("falls");
    let capacity = Capacity::for_flows(1_000, 600, 2, 6, 10_000, 1)
        .with_pairs(3)
        .with_affinities(100);
    machine.maps = Arc::new(Maps::in_memory(capacity).unwrap());
    let why = |state: &State| service(state).resets_suspended;
    let serving = || [1, 2, 3, 4].map(|id| machine.maps.state(id).serving());
    let mut state = machine.adopt(config(&machine, 5)).unwrap();
    for number in 1..=5 {
        hear(&mut state, number, Health::Up, 0);
    }
    machine.settle_at(&mut state, after(0));
    for number in 1..=4 {
        hear(&mut state, number, Health::Down, 10);
    }
    machine.settle_at(&mut state, after(10));
    assert_eq!(why(&state), Some(Suspension::MassFall));
    assert_eq!(serving(), [Serving::ExistingOnly; 4]);
    // A minute later it is believed, and after another check of each its clients are told.
    machine.settle_at(&mut state, after(70));
    machine.settle_at(&mut state, after(80));
    assert_eq!((why(&state), serving()), (None, [Serving::None; 4]));
    hear(&mut state, 5, Health::Refusing, 100);
    machine.settle_at(&mut state, after(100));
    assert_eq!((why(&state), serving()), (None, [Serving::None; 4]));
    state.reload(config(&machine, 4)).unwrap();
    machine.settle_at(&mut state, after(200));
    assert_eq!((why(&state), serving()), (None, [Serving::None; 4]));

    let (maps, census) = (Arc::clone(&machine.maps), Arc::new(Census::default()));
    let (seed, now) = ([1, 2, 3, 4], after(300).tick());
    let mut state = State::adopt(maps, seed, config(&machine, 4), census, now).unwrap();
    for number in 1..=4 {
        hear(&mut state, number, Health::Down, 300);
    }
    machine.settle_at(&mut state, after(301));
    assert_eq!((why(&state), serving()), (None, [Serving::None; 4]));
}
