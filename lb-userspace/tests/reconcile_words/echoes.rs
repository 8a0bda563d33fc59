//! Whose hosts answer echoes while they are up is known to the next daemon.

use std::{sync::Arc, time::Duration};

use lb_userspace::{
    flows::Census,
    model::{Health, HealthReport},
    pace::Moment,
    reconcile::State,
};

use super::{Machine, NOW, found};

/// So many seconds after the beginning.
fn after(seconds: u64) -> Moment {
    Moment::from(NOW).later(Duration::from_secs(seconds))
}

/// The checks say that a backend is up, and whether its host answers echoes. False if there is nothing to plan for in that.
fn tell(state: &mut State, number: u8, answers_echoes: bool) -> bool {
    let report = HealthReport {
        answers_echoes,
        ..found(number, Health::Up)
    };
    state.heard(report, 0)
}

/// The addresses whose checks would begin with the knowledge that their hosts answer echoes.
fn known(state: &State) -> Vec<String> {
    let targets = state.targets();
    let known = targets.iter().filter(|target| target.answers_echoes);
    known.map(|target| target.address.to_string()).collect()
}

#[test]
fn the_next_daemon_knows_whose_hosts_answer_echoes_until_one_does_not() {
    let machine = Machine::new("echoes");
    let config = || machine.config(&["b1", "b2"]);
    let mut state = machine.adopt(config()).unwrap();
    assert_eq!(known(&state), [""; 0]);
    assert!(tell(&mut state, 1, true) && tell(&mut state, 2, false));
    machine.settle(&mut state);
    // It dies: no word of it comes to the next daemon before that is killed too.
    let mut state = machine.adopt(config()).unwrap();
    assert_eq!(known(&state), ["10.0.1.1:80"]);
    machine.settle(&mut state);
    let mut state = machine.adopt(config()).unwrap();
    assert_eq!(known(&state), ["10.0.1.1:80"]);
    // It is up, and a firewall drops its echoes.
    assert!(tell(&mut state, 1, false));
    machine.settle(&mut state);
    assert_eq!(known(&state), [""; 0]);
    let state = machine.adopt(config()).unwrap();
    assert_eq!(known(&state), [""; 0]);
}

#[test]
fn echoes_alone_are_nothing_to_plan_for_and_are_remembered_at_the_end() {
    let machine = Machine::new("echoes-alone");
    let config = || machine.config(&["b1", "b2"]);
    let mut state = machine.adopt(config()).unwrap();
    assert!(tell(&mut state, 1, true) && tell(&mut state, 2, false));
    machine.settle(&mut state);
    assert!(!tell(&mut state, 1, false) && !tell(&mut state, 2, true));
    state.ends();
    let mut state = machine.adopt(config()).unwrap();
    assert_eq!(known(&state), ["10.0.1.2:80"]);
    // Or with the next plan, whatever that is made for.
    assert!(tell(&mut state, 1, false) && tell(&mut state, 2, true));
    machine.settle(&mut state);
    assert!(!tell(&mut state, 1, true) && !tell(&mut state, 2, false));
    machine.settle(&mut state);
    let state = machine.adopt(config()).unwrap();
    assert_eq!(known(&state), ["10.0.1.1:80"]);
}

#[test]
fn another_address_is_another_host() {
    let machine = Machine::new("echoes-elsewhere");
    let mut state = machine.adopt(machine.config(&["b1"])).unwrap();
    tell(&mut state, 1, true);
    machine.settle(&mut state);
    let mut moved = machine.config(&["b1"]);
    let backend = &mut moved.services[0].backends[0];
    backend.address = [10, 0, 1, 7].into();
    backend.check_address = ([10, 0, 1, 7], 80).into();
    // The old object is drained at the old one, and is known as before.
    let next = machine.adopt(moved.clone()).unwrap();
    state.reload(moved).unwrap();
    for state in [&state, &next] {
        assert_eq!(state.targets().len(), 2);
        assert_eq!(known(state), ["10.0.1.1:80"]);
    }
    // Nobody who is not checked is remembered.
    assert!(!tell(&mut state, 9, true));
    assert_eq!(known(&state), ["10.0.1.1:80"]);
}

/// Else one that is dead would be called refusing by its new name, and its clients be told no more.
#[test]
fn by_another_name_it_is_the_same_host() {
    let machine = Machine::new("echoes-renamed");
    let mut state = machine.adopt(machine.config(&["b1"])).unwrap();
    tell(&mut state, 1, true);
    machine.settle(&mut state);
    let mut renamed = machine.config(&["b1"]);
    renamed.services[0].name = "talk".to_owned();
    let next = machine.adopt(renamed.clone()).unwrap();
    state.reload(renamed).unwrap();
    // As it was called, and as it is.
    for state in [&state, &next] {
        assert_eq!(known(state), ["10.0.1.1:80"; 2]);
    }
}

#[test]
fn what_no_daemon_has_asked_for_long_is_not_known() {
    let machine = Machine::new("echoes-long-ago");
    let adopt_at = |now: Moment| {
        let maps = Arc::clone(&machine.maps);
        let census = Arc::new(Census::default());
        let config = machine.config(&["b1"]);
        State::adopt(maps, [1, 2, 3, 4], config, census, now.tick()).unwrap()
    };
    let mut state = adopt_at(after(0));
    tell(&mut state, 1, true);
    machine.settle_at(&mut state, after(0));
    assert_eq!(known(&adopt_at(after(600))), ["10.0.1.1:80"]);
    assert_eq!(known(&adopt_at(after(1_000))), [""; 0]);
    // This one goes on asking, and nothing else happens.
    machine.settle_at(&mut state, after(5_000));
    assert_eq!(known(&adopt_at(after(5_600))), ["10.0.1.1:80"]);
    assert_eq!(known(&adopt_at(after(6_000))), [""; 0]);
}
