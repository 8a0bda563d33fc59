//! Slow starts, over restarts of the daemon.

use std::sync::Arc;

use lb_common::{backend::Serving, clock::Tick};
use lb_userspace::{config::Config, flows::Census, model::Health, reconcile::State};

use super::{Machine, found, name, service};

/// Eight steps of 18 ticks: one begins wherever that divides.
fn config(machine: &Machine) -> Config {
    machine.config_with(&["b1", "b2"], "slow_start = \"10m\"\n")
}

/// The daemon that begins at some tick.
fn adopt(machine: &Machine, now: u32) -> State {
    adopt_with(machine, config(machine), now)
}

/// The same with a configuration.
fn adopt_with(machine: &Machine, config: Config, now: u32) -> State {
    let (maps, census) = (Arc::clone(&machine.maps), Arc::new(Census::default()));
    State::adopt(maps, [1, 2, 3, 4], config, census, Tick(now)).unwrap()
}

/// The checks say that a backend is up.
fn is_up(state: &mut State, number: u8) {
    hear(state, number, Health::Up);
}

/// The checks say something new of a backend.
fn hear(state: &mut State, number: u8, health: Health) {
    assert!(state.heard(found(number, health), 0));
}

/// Whether b2 starts slowly at some tick, and how many sixteenths of what b1 gets it gets.
fn b2(machine: &Machine, state: &mut State, now: u32) -> (bool, u32) {
    machine.settle_at(state, Tick(now).into());
    let backends = service(state).backends;
    let of = |name: &str| {
        let mut backends = backends.iter();
        let backend = backends.find(|backend| backend.name == name).unwrap();
        backend.balance.clone()
    };
    let (b1, b2) = (of("b1"), of("b2"));
    assert!(!b1.starting);
    let (part, whole) = (u32::from(b2.per_mille), u32::from(b1.per_mille));
    (b2.starting, (part * 16 + whole / 2) / whole)
}

#[test]
fn a_slow_start_goes_on_in_the_next_daemon() {
    let machine = Machine::new("starts");
    let mut state = adopt(&machine, 1_000);
    is_up(&mut state, 1);
    machine.settle_at(&mut state, Tick(1_000).into());
    machine.settle_at(&mut state, Tick(1_500).into());
    is_up(&mut state, 2);
    assert_eq!(b2(&machine, &mut state, 1_500), (true, 1));
    assert_eq!(b2(&machine, &mut state, 1_521), (true, 3));

    let mut state = adopt(&machine, 1_522);
    assert_eq!(b2(&machine, &mut state, 1_522), (true, 3));
    is_up(&mut state, 1);
    is_up(&mut state, 2);
    assert_eq!(b2(&machine, &mut state, 1_529), (true, 3));
    assert_eq!(b2(&machine, &mut state, 1_530), (true, 5));
    state.observe(Tick(1_531));
    assert_eq!(b2(&machine, &mut state, 1_531), (true, 5));

    // None ran when it would have ended. It goes on with the step that came first, whenever the daemon gets to it, and ends then.
    let mut state = adopt(&machine, 1_990);
    assert_eq!(b2(&machine, &mut state, 2_000), (true, 7));
    assert_eq!(b2(&machine, &mut state, 2_015), (true, 7));
    assert_eq!(b2(&machine, &mut state, 2_016), (true, 8));
    // A daemon that dies before its first plan forgets nothing.
    let mut state = adopt(&machine, 2_020);
    state.drain(&name("b1"), None).unwrap();
    state.undrain(&name("b1")).unwrap();
    let mut state = adopt(&machine, 2_021);
    assert_eq!(b2(&machine, &mut state, 2_021), (true, 8));
    assert_eq!(b2(&machine, &mut state, 2_087), (true, 14));
    assert_eq!(b2(&machine, &mut state, 2_088), (false, 16));
    let mut state = adopt(&machine, 2_089);
    assert_eq!(b2(&machine, &mut state, 2_089), (false, 16));
}

#[test]
fn a_step_is_saved_with_the_next_comparison_or_at_the_end() {
    let machine = Machine::new("steps");
    let saved = || std::fs::read(machine.memory()).unwrap();
    let mut state = adopt(&machine, 1_000);
    is_up(&mut state, 1);
    machine.settle_at(&mut state, Tick(1_000).into());
    machine.settle_at(&mut state, Tick(1_500).into());
    let before = saved();
    is_up(&mut state, 2);
    assert_eq!(b2(&machine, &mut state, 1_500), (true, 1));
    let begun = saved();
    assert_ne!(begun, before, "at once");
    assert_eq!(b2(&machine, &mut state, 1_521), (true, 3));
    assert_eq!(saved(), begun);
    state.observe(Tick(1_522));
    assert_eq!(b2(&machine, &mut state, 1_522), (true, 3));
    let compared = saved();
    assert_ne!(compared, begun);
    assert_eq!(b2(&machine, &mut state, 1_530), (true, 5));
    assert_eq!(saved(), compared);
    state.ends();
    assert_ne!(saved(), compared);
}

/// It has been there all the time. What was drained, refuses, or was dead, begins when it takes new flows again.
#[test]
fn a_restart_begins_no_slow_start_of_one_that_was_not_needed() {
    let machine = Machine::new("not-needed");
    let adopt = |now| {
        let mut config = config(&machine);
        config.services[0].backends[1].part.backup = true;
        config.services[0].policy.backup_below = 1;
        adopt_with(&machine, config, now)
    };
    let settle = |state: &mut State, now| machine.settle_at(state, Tick(now).into());
    let serving = || [1, 2].map(|id| machine.maps.state(id).serving());
    let starting = |state: &State| {
        let backends = service(state).backends;
        ["b1", "b2"].map(|name| {
            let mut backends = backends.iter();
            let backend = backends.find(|backend| backend.name == name).unwrap();
            backend.balance.starting
        })
    };
    let mut state = adopt(1_000);
    is_up(&mut state, 1);
    is_up(&mut state, 2);
    settle(&mut state, 1_000);
    settle(&mut state, 1_500);
    assert_eq!(starting(&state), [false; 2], "it is over");
    assert_eq!(serving(), [Serving::New, Serving::ExistingOnly]);

    let mut state = adopt(1_600);
    settle(&mut state, 1_600);
    is_up(&mut state, 1);
    is_up(&mut state, 2);
    settle(&mut state, 1_601);
    assert_eq!(starting(&state), [false; 2]);
    state.drain(&name("b1"), None).unwrap();
    settle(&mut state, 1_602);
    assert_eq!(serving(), [Serving::ExistingOnly, Serving::New]);
    assert_eq!(starting(&state), [false; 2]);

    let mut state = adopt(1_700);
    settle(&mut state, 1_700);
    is_up(&mut state, 1);
    hear(&mut state, 2, Health::Refusing);
    settle(&mut state, 1_701);
    assert_eq!(starting(&state), [false; 2]);
    is_up(&mut state, 2);
    settle(&mut state, 1_702);
    assert_eq!(starting(&state), [false, true]);
    state.undrain(&name("b1")).unwrap();
    settle(&mut state, 1_703);
    assert_eq!(starting(&state), [true; 2]);
}
