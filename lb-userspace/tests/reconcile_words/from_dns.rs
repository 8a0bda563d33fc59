//! What was ordered of backends from the DNS, and answers that lack them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_userspace::{
    desired::{Edit, Refusal, may_be_answered},
    dns::{Found, Kind, Question, Report},
    model::{Admin, Health, HealthReport, NextHopReport},
    pace::Moment,
    reconcile::State,
};
use tracing::Level;

use super::{Machine, NOW, admin, assert_said, name, said, status};

const SOURCE: &str = "[[service.dns]]\nname = \"pods\"\nquery = \"pods.example.\"\n";
const FIRST: &str = "pods-10.0.1.1";
const SECOND: &str = "pods-10.0.1.2";

/// The DNS names these hosts.
fn answer(state: &mut State, hosts: &[u8]) {
    let found = hosts.iter().map(|&host| Found {
        address: [10, 0, 1, host].into(),
        port: None,
        weight: None,
    });
    let report = Report {
        question: question(),
        result: Ok(found.collect()),
    };
    assert!(state.answered(report));
}

fn question() -> Question {
    Question {
        name: "pods.example.".into(),
        kind: Kind::Address,
    }
}

fn after(seconds: u64) -> Moment {
    Moment::from(NOW).later(Duration::from_secs(seconds))
}

fn weight(state: &State, backend: &str) -> Option<u16> {
    let services = status(state).services;
    let mut backends = services.iter().flat_map(|service| &service.backends);
    let found = backends.find(|found| found.name == backend && !found.removed);
    found.map(|found| found.weight)
}

#[test]
fn what_was_ordered_outlives_an_answer_that_lacks_the_backend_and_a_restart() {
    let machine = Machine::new("dns-orders");
    let config = || machine.config_with(&[], SOURCE);
    let mut state = machine.adopt(config()).unwrap();
    answer(&mut state, &[1, 2]);
    machine.settle_at(&mut state, after(0));
    state.drain(&name(SECOND), None).unwrap();
    state.edit(&name(FIRST), &Edit::Weight(7)).unwrap();
    machine.settle_at(&mut state, after(1));
    assert_eq!(status(&state).config.differences.len(), 2);

    answer(&mut state, &[1]);
    machine.settle_at(&mut state, after(2));
    assert_eq!(status(&state).config.differences.len(), 1);
    // There is nobody to be drained now.
    let absent = state.drain(&name(SECOND), None).unwrap_err();
    assert!(matches!(absent, Refusal::Absent(_)), "{absent}");
    let mut state = machine.adopt(config()).unwrap();
    answer(&mut state, &[2]);
    machine.settle_at(&mut state, after(3));
    assert_eq!(admin(&status(&state), SECOND), Some(Admin::Draining));
    assert_eq!(status(&state).config.differences.len(), 1);
    answer(&mut state, &[1, 2]);
    assert_eq!(weight(&state, FIRST), Some(7));

    // It can be ended though nobody is there.
    answer(&mut state, &[1]);
    state.undrain(&name(SECOND)).unwrap();
    let again = state.undrain(&name(SECOND)).unwrap_err();
    assert!(matches!(again, Refusal::Absent(_)), "{again}");
    answer(&mut state, &[1, 2]);
    assert_eq!(admin(&status(&state), SECOND), Some(Admin::Active));

    // One that was removed at runtime stays so, and its drain has ended by that.
    state.drain(&name(FIRST), None).unwrap();
    state.edit(&name(FIRST), &Edit::Remove).unwrap();
    answer(&mut state, &[2]);
    answer(&mut state, &[1, 2]);
    assert_eq!(weight(&state, FIRST), None);
    state.edit(&name(FIRST), &Edit::Revert).unwrap();
    assert_eq!(admin(&status(&state), FIRST), Some(Admin::Active));
}

#[test]
fn what_was_ordered_ends_with_the_source_or_an_hour_after_the_last_answer_that_had_the_backend() {
    let machine = Machine::new("dns-orders-end");
    let mut state = machine.adopt(machine.config_with(&[], SOURCE)).unwrap();
    answer(&mut state, &[1, 2]);
    state.drain(&name(SECOND), None).unwrap();
    machine.settle_at(&mut state, after(0));
    for (left, back) in [(1, 3_600), (4_000, 7_599)] {
        answer(&mut state, &[1]);
        machine.settle_at(&mut state, after(left));
        machine.settle_at(&mut state, after(back));
        answer(&mut state, &[1, 2]);
        machine.settle_at(&mut state, after(back));
        assert_eq!(admin(&status(&state), SECOND), Some(Admin::Draining));
    }
    answer(&mut state, &[1]);
    machine.settle_at(&mut state, after(8_000));
    said();
    machine.settle_at(&mut state, after(11_600));
    assert_said(Level::WARN, &["chat/pods-10.0.1.2", "60 min"]);
    answer(&mut state, &[1, 2]);
    machine.settle_at(&mut state, after(11_600));
    assert_eq!(admin(&status(&state), SECOND), Some(Admin::Active));
    // It is forgotten for good.
    let mut state = machine.adopt(machine.config_with(&[], SOURCE)).unwrap();
    assert_eq!(admin(&status(&state), SECOND), Some(Admin::Active));

    state.drain(&name(SECOND), None).unwrap();
    answer(&mut state, &[1]);
    said();
    state.reload(machine.config(&[])).unwrap();
    assert_said(Level::WARN, &["chat/pods-10.0.1.2", "ends with it"]);
}

/// What left the DNS while no daemon ran is not put back by the next one.
#[test]
fn what_the_last_run_remembers_of_the_dns_is_no_first_word() {
    let machine = Machine::new("dns-first-word");
    let config = || machine.config_with(&[], SOURCE);
    let mut state = machine.adopt(config()).unwrap();
    answer(&mut state, &[1, 2]);
    machine.settle_at(&mut state, after(0));
    let hear_of_all_else = |state: &mut State| {
        state.host_owns(BTreeSet::new());
        for host in [1, 2] {
            let address = IpAddr::from([10, 0, 1, host]);
            state.next_hop(NextHopReport {
                address,
                next_hop: None,
                on_link: true,
            });
            let report = HealthReport {
                name: name(&format!("pods-{address}")),
                address: SocketAddr::new(address, 80),
                health: Health::Up,
                last_error: None,
                answers_echoes: false,
            };
            state.heard(report, 0);
        }
    };
    let mut state = machine.adopt(config()).unwrap();
    hear_of_all_else(&mut state);
    assert!(!state.is_informed());
    answer(&mut state, &[1, 2]);
    assert!(state.is_informed());

    // That it does not answer is a word.
    let mut state = machine.adopt(config()).unwrap();
    hear_of_all_else(&mut state);
    assert!(!state.is_informed());
    let report = Report {
        question: question(),
        result: Err("no answer".into()),
    };
    assert!(state.answered(report));
    assert!(state.is_informed());
    assert_eq!(admin(&status(&state), FIRST), Some(Admin::Active));
}

/// Who asks may not see that it was away.
#[test]
fn a_source_that_is_removed_and_put_back_is_asked_anew() {
    let machine = Machine::new("dns-put-back");
    let config = || machine.config_with(&[], SOURCE);
    let mut state = machine.adopt(config()).unwrap();
    let first = state.questions();
    answer(&mut state, &[1, 2]);
    state.reload(config()).unwrap();
    assert_eq!(state.questions(), first);
    assert_eq!(weight(&state, FIRST), Some(100));

    state.reload(machine.config(&[])).unwrap();
    state.reload(config()).unwrap();
    let again = state.questions();
    assert!(again.contains_key(&question()));
    assert_ne!(again, first);
    // What it found before went with it.
    assert_eq!(weight(&state, FIRST), None);
    answer(&mut state, &[1, 2]);
    assert_eq!(state.questions(), again);
    assert_eq!(weight(&state, FIRST), Some(100));
}

#[test]
fn a_backend_from_the_dns_is_known_by_its_name() {
    let machine = Machine::new("dns-names");
    let config = machine.config_with(&["b1"], SOURCE);
    let is_one = |name| may_be_answered(&config.services[0], name);
    for name in [
        FIRST,
        "pods-10.0.1.1-8080",
        "pods-2001:db8::1",
        "pods-2001:db8::1-8080",
    ] {
        assert!(is_one(name), "{name}");
    }
    for name in [
        "b1",
        "pods",
        "pods-",
        "pods-b1",
        "pod-10.0.1.1",
        "pods-10.0.1.1-",
        "pods-10.0.1.1-99999",
    ] {
        assert!(!is_one(name), "{name}");
    }
}
