//! Backends whose clients send too much again: who is ejected, what is said of it, and what is asked of the program.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use lb_common::{backend::Serving, repeats::Repeats};
use lb_userspace::{
    dataplane::maps::Maps,
    model::{Health, HealthReport},
    pace::Moment,
    reconcile::State,
    status::BackendStatus,
};
use tracing::Level;

use super::{Machine, NOW, assert_said, name, said, status};

const LINES: &str = "[service.outlier]\nwindow = \"6s\"\nleast = 100\neject_for = \"10s\"\n";

/// One percent again.
const WELL: Repeats = Repeats {
    handshakes: 200,
    syns: 2,
    data: 1_000,
    data_again: 10,
    syn_clients: 0x01_0101_0101,
    data_clients: 0x01_0101_0101,
};
/// Thirty percent of the data.
const ILL: Repeats = Repeats {
    data_again: 300,
    ..WELL
};

/// A machine whose program counts, and a state whose backends are up.
fn begin(test: &str) -> (Machine, State) {
    let mut machine = Machine::new(test);
    let capacity = machine.maps.capacity.measuring(true);
    machine.maps = Arc::new(Maps::in_memory(capacity).unwrap());
    let config = machine.config_with(&["b1", "b2"], LINES);
    let mut state = machine.adopt(config).unwrap();
    for backend in ["b1", "b2"] {
        hear(&mut state, backend, Health::Up);
    }
    machine.settle(&mut state);
    drop(said());
    (machine, state)
}

/// Its checks say something new of a backend.
fn hear(state: &mut State, backend: &str, health: Health) {
    let report = HealthReport {
        name: name(backend),
        address: address(backend),
        health,
        last_error: None,
        answers_echoes: false,
    };
    assert!(state.heard(report, 0));
}

fn address(backend: &str) -> SocketAddr {
    format!("10.0.1.{}:80", &backend[1..]).parse().unwrap()
}

fn after(ms: u64) -> Moment {
    Moment::from(NOW).later(Duration::from_millis(ms))
}

fn count(machine: &Machine, backend: &str, repeats: &Repeats) {
    let wanted = address(backend).ip();
    let id = (1..machine.maps.backends.len())
        .find(|&id| std::net::IpAddr::from(machine.maps.backends.get(id).address) == wanted)
        .unwrap();
    machine.maps.measured.as_ref().unwrap().count(id, repeats);
}

fn backend(state: &State, backend: &str) -> BackendStatus {
    let mut all = status(state).services.remove(0).backends.into_iter();
    all.find(|found| found.name == backend).unwrap()
}

#[test]
fn a_backend_whose_clients_repeat_themselves_is_ejected_for_a_while() {
    let (machine, mut state) = begin("outlier");
    assert!(machine.maps.measured.as_ref().unwrap().measures(1));
    assert_eq!(state.due(), Some(after(1_000)));
    count(&machine, "b1", &WELL);
    count(&machine, "b2", &ILL);
    // A step is not over yet.
    machine.settle_at(&mut state, after(500));
    assert_eq!(backend(&state, "b2").serving, Serving::New);
    assert_eq!(state.due(), Some(after(1_000)));

    machine.settle_at(&mut state, after(1_000));
    assert_said(
        Level::WARN,
        &[
            "chat/b2",
            "ejected: clients send 30.0% of their data segments again, and 1.0% to its peers",
        ],
    );
    let ill = backend(&state, "b2");
    assert_eq!(
        (ill.health, ill.serving),
        (Health::Up, Serving::ExistingOnly)
    );
    let ejected = ill.balance.ejected.unwrap();
    assert_eq!((ejected.times, ejected.left_s), (1, 10));
    let repeats = backend(&state, "b1").balance.repeats.unwrap();
    assert_eq!(
        (
            repeats.data.samples,
            repeats.data.again,
            repeats.data.per_mille
        ),
        (1_000, 10, 10)
    );
    assert_eq!((repeats.syns.samples, repeats.syns.per_mille), (202, 9));
    assert_eq!(status(&state).services[0].balance.ejections, 1);
    let well = backend(&state, "b1");
    assert_eq!(
        (well.serving, well.balance.per_mille),
        (Serving::New, 1_000)
    );

    // The same moment again changes nothing.
    machine.settle_at(&mut state, after(1_000));
    assert_eq!(said(), []);
    machine.settle_at(&mut state, after(10_999));
    assert_eq!(backend(&state, "b2").balance.ejected.unwrap().left_s, 1);
    machine.settle_at(&mut state, after(12_000));
    let back = backend(&state, "b2");
    assert_eq!((back.serving, back.balance.ejected), (Serving::New, None));
}

#[test]
fn few_clients_speak_for_no_backend() {
    let (machine, mut state) = begin("few-clients");
    let few = Repeats {
        data_clients: 0x0101_0101,
        ..ILL
    };
    // The same ones again are no more, in another step.
    for step in 1..=2 {
        count(&machine, "b1", &WELL);
        count(&machine, "b2", &few);
        machine.settle_at(&mut state, after(1_000 * step));
        let ill = backend(&state, "b2");
        assert_eq!((ill.serving, ill.balance.ejected), (Serving::New, None));
        assert_eq!(ill.balance.repeats.unwrap().data.per_mille, 300);
    }
    let another = Repeats {
        data_clients: 0x01_0000_0000,
        ..ILL
    };
    count(&machine, "b1", &WELL);
    count(&machine, "b2", &another);
    machine.settle_at(&mut state, after(3_000));
    assert!(backend(&state, "b2").balance.ejected.is_some());
}

#[test]
fn one_client_speaks_for_no_backend_though_others_repeat_something_too() {
    let (machine, mut state) = begin("one-client");
    let loud = Repeats {
        data_clients: 0x01_0101_0178,
        ..ILL
    };
    for step in 1..=7 {
        count(&machine, "b1", &WELL);
        count(&machine, "b2", &loud);
        machine.settle_at(&mut state, after(1_000 * step));
        let b2 = backend(&state, "b2");
        assert_eq!((b2.serving, b2.balance.ejected), (Serving::New, None));
        assert_eq!(b2.balance.repeats.unwrap().data.per_mille, 300);
    }
    // Once all say so it is.
    count(&machine, "b1", &WELL);
    count(&machine, "b2", &ILL);
    machine.settle_at(&mut state, after(8_000));
    assert!(backend(&state, "b2").balance.ejected.is_some());
}

#[test]
fn who_comes_back_is_judged_by_what_comes_then() {
    let (machine, mut state) = begin("comes-back");
    count(&machine, "b1", &WELL);
    count(&machine, "b2", &WELL);
    machine.settle_at(&mut state, after(1_000));
    // It goes and comes within a step, or over several, and its clients repeat themselves meanwhile.
    let mut now = 1_000;
    for steps in [0, 3] {
        hear(&mut state, "b2", Health::Refusing);
        machine.settle_at(&mut state, after(now + 100));
        for step in 1..=steps {
            count(&machine, "b1", &WELL);
            count(&machine, "b2", &ILL);
            machine.settle_at(&mut state, after(now + 1_000 * step));
        }
        now += 1_000 * steps;
        count(&machine, "b2", &ILL);
        hear(&mut state, "b2", Health::Up);
        machine.settle_at(&mut state, after(now + 200));
        count(&machine, "b1", &WELL);
        count(&machine, "b2", &WELL);
        now += 1_000;
        machine.settle_at(&mut state, after(now));
        let back = backend(&state, "b2");
        assert_eq!((back.serving, back.balance.ejected), (Serving::New, None));
        let data = back.balance.repeats.unwrap().data;
        assert_eq!((data.samples, data.again), (1_000, 10));
    }
    // Who is still ill then is seen to be.
    count(&machine, "b1", &WELL);
    count(&machine, "b2", &ILL);
    machine.settle_at(&mut state, after(now + 1_000));
    assert!(backend(&state, "b2").balance.ejected.is_some());
}

#[test]
fn an_ejection_ends_in_time_though_the_window_is_long() {
    let (machine, mut state) = begin("long-window");
    let long = LINES.replace("\"6s\"", "\"1h\"");
    state
        .reload(machine.config_with(&["b1", "b2"], &long))
        .unwrap();
    machine.settle_at(&mut state, after(1_000));
    let eject = |state: &mut State, now| {
        count(&machine, "b1", &WELL);
        count(&machine, "b2", &ILL);
        machine.settle_at(state, after(now));
        let left_s = backend(state, "b2").balance.ejected.map(|it| it.left_s);
        assert_eq!(
            state.due(),
            left_s.map(|left_s| after(now + left_s * 1_000))
        );
        left_s
    };
    assert_eq!(eject(&mut state, 601_000), Some(10));
    // Whose clients go on as before stays, and for longer.
    assert_eq!(eject(&mut state, 611_000), Some(20));
    count(&machine, "b1", &WELL);
    count(&machine, "b2", &WELL);
    machine.settle_at(&mut state, after(630_999));
    assert!(backend(&state, "b2").balance.ejected.is_some());
    machine.settle_at(&mut state, after(631_000));
    let back = backend(&state, "b2");
    assert_eq!((back.serving, back.balance.ejected), (Serving::New, None));
    assert_eq!(state.due(), Some(after(1_231_000)));
}

#[test]
fn a_shorter_time_is_in_force_at_once_and_is_no_other_ejection() {
    let (machine, mut state) = begin("shorter");
    let long = LINES.replace("\"10s\"", "\"1h\"");
    state
        .reload(machine.config_with(&["b1", "b2"], &long))
        .unwrap();
    count(&machine, "b1", &WELL);
    count(&machine, "b2", &ILL);
    machine.settle_at(&mut state, after(1_000));
    let left_s = |state: &State| backend(state, "b2").balance.ejected.map(|it| it.left_s);
    assert_eq!(left_s(&state), Some(3_600));
    state
        .reload(machine.config_with(&["b1", "b2"], LINES))
        .unwrap();
    machine.settle_at(&mut state, after(2_000));
    assert_eq!(left_s(&state), Some(10));
    assert_eq!(status(&state).services[0].balance.ejections, 1);
    machine.settle_at(&mut state, after(12_000));
    assert_eq!(left_s(&state), None);
}

#[test]
fn who_is_ejected_stands_in_for_the_last_one_that_falls() {
    let (machine, mut state) = begin("stands-in");
    count(&machine, "b1", &WELL);
    count(&machine, "b2", &ILL);
    machine.settle_at(&mut state, after(1_000));
    assert_eq!(backend(&state, "b2").serving, Serving::ExistingOnly);
    hear(&mut state, "b1", Health::Refusing);
    // At once, and not with the next step.
    machine.settle_at(&mut state, after(1_001));
    let ill = backend(&state, "b2");
    assert_eq!(ill.serving, Serving::New);
    assert!(ill.balance.ejected.is_some());
    assert!(!status(&state).services[0].fail_open);
}

#[test]
fn without_outlier_nothing_is_counted_and_nobody_is_ejected() {
    let (machine, mut state) = begin("no-outlier");
    count(&machine, "b1", &WELL);
    count(&machine, "b2", &ILL);
    machine.settle_at(&mut state, after(1_000));
    assert!(backend(&state, "b2").balance.ejected.is_some());
    // Who only wants to know ejects nobody.
    let counted = format!("{LINES}at_most = 0\n").replace("eject_for = \"10s\"\n", "");
    state
        .reload(machine.config_with(&["b1", "b2"], &counted))
        .unwrap();
    machine.settle_at(&mut state, after(2_000));
    let ill = backend(&state, "b2");
    assert_eq!((ill.serving, ill.balance.ejected), (Serving::New, None));
    assert!(ill.balance.repeats.is_some());

    state.reload(machine.config(&["b1", "b2"])).unwrap();
    machine.settle_at(&mut state, after(3_000));
    assert!(!machine.maps.measured.as_ref().unwrap().measures(1));
    assert_eq!(backend(&state, "b2").balance.repeats, None);
    assert_eq!(state.due(), None);
}

#[test]
fn the_first_service_that_has_it_takes_a_restart() {
    let machine = Machine::new("first-outlier");
    let mut state = machine.adopt(machine.config(&["b1"])).unwrap();
    let error = state
        .reload(machine.config_with(&["b1"], LINES))
        .unwrap_err();
    for part in [
        "words.toml: service \"chat\": outlier",
        "only when the daemon starts",
        "flows go on",
    ] {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}
