//! What is known of a backend that is there for the first time: what was found out about the one whose place it takes, and nothing else.

use std::time::Duration;

use lb_common::backend::Serving;
use lb_userspace::{
    config::Config,
    model::{BackendName, Health, HealthReport, Target},
    reconcile::State,
};

use super::{Machine, service};

/// One service with one backend, which have these names.
fn config(machine: &Machine, service: &str, backend: &str) -> Config {
    let health = "[service.health]\nstartup_grace = \"10s\"\n";
    let mut config = machine.config_with(&["b1"], health);
    config.services[0].name = service.to_owned();
    config.services[0].backends[0].name = backend.to_owned();
    config
}

/// The checks say something of a backend.
fn hear(state: &mut State, service: &str, backend: &str, health: Health) {
    let name = BackendName {
        service: service.to_owned(),
        backend: backend.to_owned(),
    };
    let report = HealthReport {
        name,
        address: ([10, 0, 1, 1], 80).into(),
        health,
        last_error: None,
        answers_echoes: false,
    };
    state.heard(report, 0);
}

/// The only backend that is wanted: health and serving.
fn found(state: &State) -> (Health, Serving) {
    let backends = service(state).backends;
    let mut wanted = backends.iter().filter(|backend| !backend.removed);
    let backend = wanted.next().unwrap();
    (backend.health, backend.serving)
}

/// What the checks are to know of a backend.
fn target(state: &State, service: &str, backend: &str) -> Target {
    let targets = state.targets();
    let mut targets = targets.into_iter();
    let is_it =
        |target: &Target| (&*target.name.service, &*target.name.backend) == (service, backend);
    targets.find(is_it).unwrap()
}

/// A pod's address is soon another pod's: that one has to start, and takes no flows before it says yes.
#[test]
fn a_new_backend_at_an_address_where_a_removed_one_drains_begins_as_a_new_one() {
    let machine = Machine::new("address-again");
    let mut state = machine.adopt(config(&machine, "chat", "b1")).unwrap();
    hear(&mut state, "chat", "b1", Health::Up);
    machine.settle(&mut state);
    let mut nobody = config(&machine, "chat", "b1");
    nobody.services[0].backends.clear();
    state.reload(nobody).unwrap();
    machine.settle(&mut state);
    state.reload(config(&machine, "chat", "b7")).unwrap();
    machine.settle(&mut state);
    assert_eq!(found(&state), (Health::Unknown, Serving::ExistingOnly));
    let grace = target(&state, "chat", "b7").check.startup_grace;
    assert_eq!(grace, Duration::from_secs(10));
    hear(&mut state, "chat", "b7", Health::Up);
    machine.settle(&mut state);
    assert_eq!(found(&state), (Health::Up, Serving::New));

    // What leaves in the moment in which it comes is the same by another name.
    let machine = Machine::new("another-name");
    let mut state = machine.adopt(config(&machine, "chat", "b1")).unwrap();
    hear(&mut state, "chat", "b1", Health::Up);
    machine.settle(&mut state);
    state.reload(config(&machine, "chat", "b7")).unwrap();
    machine.settle(&mut state);
    assert_eq!(found(&state), (Health::Up, Serving::New));
    let grace = target(&state, "chat", "b7").check.startup_grace;
    assert_eq!(grace, Duration::ZERO);
}

/// Whoever stays goes on as it is, and lends its verdict to nobody.
#[test]
fn a_backend_beside_another_of_its_address_is_asked_itself() {
    let machine = Machine::new("beside");
    let mut state = machine.adopt(config(&machine, "chat", "b1")).unwrap();
    hear(&mut state, "chat", "b1", Health::Refusing);
    machine.settle(&mut state);
    // Another host, whose check goes to the same place.
    let mut both = config(&machine, "chat", "b1");
    let mut other = both.services[0].backends[0].clone();
    other.name = "b2".to_owned();
    other.address = [10, 0, 1, 2].into();
    both.services[0].backends.push(other);
    state.reload(both).unwrap();
    machine.settle(&mut state);
    let backends = service(&state).backends;
    let health = backends.iter().map(|backend| backend.health);
    assert_eq!(
        health.collect::<Vec<_>>(),
        [Health::Refusing, Health::Unknown]
    );
}

/// Else it would be up after one yes, whatever `rise` says.
#[test]
fn the_checks_of_a_renamed_backend_go_on_from_what_was_found_until_they_have_spoken() {
    let machine = Machine::new("goes-on");
    let mut state = machine.adopt(config(&machine, "chat", "b1")).unwrap();
    let verdict = |state: &State, service| target(state, service, "b1").verdict;
    hear(&mut state, "chat", "b1", Health::Refusing);
    machine.settle(&mut state);
    assert_eq!(verdict(&state, "chat"), Health::Unknown);
    state.reload(config(&machine, "talk", "b1")).unwrap();
    machine.settle(&mut state);
    assert_eq!(found(&state), (Health::Refusing, Serving::ExistingOnly));
    assert_eq!(verdict(&state, "talk"), Health::Refusing);
    // Who begins later, as elsewhere, asks anew.
    hear(&mut state, "talk", "b1", Health::Refusing);
    assert_eq!(verdict(&state, "talk"), Health::Unknown);
    assert_eq!(found(&state), (Health::Refusing, Serving::ExistingOnly));
}
