//! When drains end, and what outlives a restart of that.

use std::time::{Duration, SystemTime};

use lb_common::backend::{Mode, Serving};
use lb_userspace::{
    config::Config,
    flows::{Census, Churn},
    ids::service_identity,
    model::{Admin, Asked, Health, HealthReport, LastError},
    pace::Moment,
    reconcile::State,
};

use super::{Machine, NOW, admin, assert_said, found, name, said, status};

/// Seconds until a backend's deadline, and the part of its flows that is closed.
pub(super) fn drain(state: &State, name: &str) -> Option<(u64, f64)> {
    let services = status(state).services;
    let mut backends = services.iter().flat_map(|service| &service.backends);
    let backend = backends.find(|backend| backend.name == name).unwrap();
    backend.drain.map(|drain| (drain.deadline_s, drain.closed))
}

/// The share of a backend's flows that is closed, as the maps have it.
pub(super) fn share(machine: &Machine, id: u32) -> Option<u32> {
    machine
        .maps
        .state(id)
        .share()
        .map(lb_common::share::Share::parts)
}

/// So many seconds after [`NOW`].
pub(super) fn after(seconds: u64) -> Moment {
    Moment::from(NOW).later(Duration::from_secs(seconds))
}

#[test]
fn a_deadline_closes_a_drained_backends_flows_and_neither_restart_nor_reload_moves_it() {
    let machine = Machine::new("deadline");
    let with = |deadline: &str| machine.config_with(&["b1", "b2"], deadline);
    let terms = "drain_deadline = \"60s\"\nclose_over = \"10s\"\n";
    let mut state = machine.adopt(with(terms)).unwrap();
    machine.settle_at(&mut state, after(0));
    assert_eq!((drain(&state, "b2"), state.due()), (None, None));

    state.drain(&name("b2"), None).unwrap();
    machine.settle_at(&mut state, after(100));
    assert_eq!(drain(&state, "b2"), Some((60, 0.0)));
    assert_eq!((share(&machine, 2), state.due()), (None, Some(after(160))));
    machine.settle_at(&mut state, after(159));
    assert_eq!(
        (drain(&state, "b2"), share(&machine, 2)),
        (Some((1, 0.0)), None)
    );

    let mut state = machine.adopt(with(terms)).unwrap();
    machine.settle_at(&mut state, after(160));
    assert_eq!(share(&machine, 2), Some(0));
    machine.settle_at(&mut state, after(165));
    assert_eq!(
        (drain(&state, "b2"), share(&machine, 2)),
        (Some((0, 0.5)), Some(32_768))
    );
    state.reload(with(terms)).unwrap();
    // In the middle of it, too: it goes on from where it was.
    let mut state = machine.adopt(with(terms)).unwrap();
    machine.settle_at(&mut state, after(167));
    assert_eq!(
        (drain(&state, "b2"), share(&machine, 2)),
        (Some((0, 0.5)), Some(32_768))
    );
    machine.settle_at(&mut state, after(172));
    assert_eq!(
        (drain(&state, "b2"), share(&machine, 2)),
        (Some((0, 1.0)), Some(65_536))
    );
    assert_eq!(state.due(), None);
    // Since when is a fact that does not change with every look, nor with who looks.
    let since = machine.maps.state(2).all_closed_since();
    assert_eq!(since, Some(after(172).tick()));
    machine.settle_at(&mut state, after(8_000));
    assert_eq!(machine.maps.state(2).all_closed_since(), since);
    let mut state = machine.adopt(with(terms)).unwrap();
    machine.settle_at(&mut state, after(9_000));
    assert_eq!(machine.maps.state(2).all_closed_since(), since);
    assert_eq!((share(&machine, 2), state.due()), (Some(65_536), None));
    // The others are not concerned.
    assert_eq!((drain(&state, "b1"), share(&machine, 1)), (None, None));

    // Nobody wants it drained any more: that is forgotten, and another drain begins anew.
    state.undrain(&name("b2")).unwrap();
    machine.settle_at(&mut state, after(9_010));
    assert_eq!((drain(&state, "b2"), share(&machine, 2)), (None, None));
    state.drain(&name("b2"), None).unwrap();
    machine.settle_at(&mut state, after(9_020));
    assert_eq!(drain(&state, "b2"), Some((60, 0.0)));
}

#[test]
fn a_removed_backend_has_a_deadline_too_and_keeps_it_when_its_service_is_removed() {
    let machine = Machine::new("removed-deadline");
    let terms = "drain_deadline = \"60s\"\nclose_over = \"0s\"\n";
    let mut state = machine
        .adopt(machine.config_with(&["b1", "b2"], terms))
        .unwrap();
    machine.settle_at(&mut state, after(0));
    let only = machine.config_with(&["b1"], terms);
    state.reload(only.clone()).unwrap();
    machine.settle_at(&mut state, after(10));
    assert_eq!(drain(&state, "b2"), Some((60, 0.0)));
    // Its service says otherwise now; and then again as before.
    state.reload(machine.config_with(&["b1"], "")).unwrap();
    machine.settle_at(&mut state, after(20));
    assert_eq!(drain(&state, "b2"), None);
    state.reload(only).unwrap();
    machine.settle_at(&mut state, after(30));
    assert_eq!(drain(&state, "b2"), Some((40, 0.0)));

    let nothing = Config {
        services: vec![],
        ..machine.config(&[])
    };
    state.reload(nothing.clone()).unwrap();
    machine.settle_at(&mut state, after(40));
    let mut state = machine.adopt(nothing).unwrap();
    machine.settle_at(&mut state, after(50));
    assert_eq!(
        (drain(&state, "b2"), drain(&state, "b1")),
        (Some((20, 0.0)), Some((50, 0.0)))
    );
    machine.settle_at(&mut state, after(70));
    assert_eq!(
        (share(&machine, 2), share(&machine, 1)),
        (Some(65_536), None)
    );

    // Whoever is wanted again is not drained, and forgets that it was.
    state
        .reload(machine.config_with(&["b1", "b2"], terms))
        .unwrap();
    machine.settle_at(&mut state, after(80));
    assert_eq!((drain(&state, "b1"), drain(&state, "b2")), (None, None));
    assert_eq!((share(&machine, 2), share(&machine, 1)), (None, None));
}

/// A new file comes with a new daemon as often as not.
#[test]
fn a_service_that_is_removed_while_no_daemon_runs_keeps_its_deadline_too() {
    let machine = Machine::new("removed-meanwhile");
    let terms = "drain_deadline = \"60s\"\nclose_over = \"10s\"\n";
    let mut state = machine.adopt(machine.config_with(&["b1"], terms)).unwrap();
    machine.settle_at(&mut state, after(0));
    let nothing = || Config {
        services: vec![],
        ..machine.config(&[])
    };
    let mut state = machine.adopt(nothing()).unwrap();
    machine.settle_at(&mut state, after(10));
    assert_eq!(drain(&state, "b1"), Some((60, 0.0)));
    let mut state = machine.adopt(nothing()).unwrap();
    machine.settle_at(&mut state, after(70));
    machine.settle_at(&mut state, after(75));
    assert_eq!(drain(&state, "b1"), Some((0, 0.5)));
}

#[test]
fn a_deadline_that_is_asked_for_counts_from_then_on_and_outlives_a_restart() {
    let machine = Machine::new("asked");
    let config = || machine.config(&["b1", "b2"]);
    let mut state = machine.adopt(config()).unwrap();
    state.drain(&name("b2"), None).unwrap();
    machine.settle_at(&mut state, after(0));
    assert_eq!(drain(&state, "b2"), None);
    let asked = Asked {
        deadline: Duration::from_secs(30),
        close_over: Some(Duration::from_secs(20)),
        since: None,
    };
    state.drain(&name("b2"), Some(asked)).unwrap();
    machine.settle_at(&mut state, after(100));
    assert_eq!(drain(&state, "b2"), Some((30, 0.0)));
    let mut state = machine.adopt(config()).unwrap();
    // It passed meanwhile, which closes nobody at once.
    machine.settle_at(&mut state, after(140));
    assert_eq!(drain(&state, "b2"), Some((0, 0.0)));
    machine.settle_at(&mut state, after(150));
    assert_eq!(drain(&state, "b2"), Some((0, 0.5)));
    // It outlives the backend's removal, too, though the command's drain ends with that.
    state.reload(machine.config(&["b1"])).unwrap();
    said();
    machine.settle_at(&mut state, after(155));
    assert_eq!(drain(&state, "b2"), Some((0, 0.75)));
    // Without a deadline again.
    state.reload(config()).unwrap();
    state.drain(&name("b2"), None).unwrap();
    machine.settle_at(&mut state, after(160));
    assert_eq!((drain(&state, "b2"), share(&machine, 2)), (None, None));
}

#[test]
fn a_deadline_that_passed_before_anybody_saw_it_closes_at_a_pace_like_any_other() {
    let machine = Machine::new("missed");
    let terms = "drain_deadline = \"1h\"\nclose_over = \"10m\"\n";
    let with = |lines: &str| machine.config_with(&["b1", "b2"], lines);
    let mut state = machine.adopt(with("")).unwrap();
    machine.settle_at(&mut state, after(0));
    state.drain(&name("b2"), None).unwrap();
    machine.settle_at(&mut state, after(10));
    // Since yesterday; and only now somebody wants an end.
    machine.settle_at(&mut state, after(100_000));
    state.reload(with(terms)).unwrap();
    machine.settle_at(&mut state, after(100_000));
    assert_eq!(
        (drain(&state, "b2"), share(&machine, 2)),
        (Some((0, 0.0)), Some(0))
    );
    machine.settle_at(&mut state, after(100_150));
    assert_eq!(share(&machine, 2), Some(16_384));
    // Nobody runs for longer than the rest takes.
    let mut state = machine.adopt(with(terms)).unwrap();
    machine.settle_at(&mut state, after(110_000));
    assert_eq!(share(&machine, 2), Some(16_384));
    // Nor do other terms make a jump.
    state
        .reload(with("drain_deadline = \"1h\"\nclose_over = \"1m\"\n"))
        .unwrap();
    machine.settle_at(&mut state, after(110_000));
    let little_more = 16_384..16_384 + 65_536 / 60;
    assert!(little_more.contains(&share(&machine, 2).unwrap()));
    machine.settle_at(&mut state, after(110_044));
    assert!(share(&machine, 2).unwrap() < 65_536);
    machine.settle_at(&mut state, after(110_045));
    assert_eq!(share(&machine, 2), Some(65_536));

    // A wrong clock may have said that it begins long after today.
    state.undrain(&name("b2")).unwrap();
    machine.settle_at(&mut state, after(200_000));
    state.drain(&name("b2"), None).unwrap();
    machine.settle_at(&mut state, after(200_001));
    let rebooted = Machine::new("missed-rebooted");
    std::fs::copy(machine.memory(), rebooted.memory()).unwrap();
    let config = rebooted.config_with(&["b1", "b2"], terms);
    let mut state = rebooted.adopt(config).unwrap();
    rebooted.settle_at(&mut state, after(1_000));
    assert_eq!(drain(&state, "b2"), Some((3_600, 0.0)));
}

#[test]
fn a_deadline_that_was_asked_for_by_a_wrong_clock_is_not_years_away() {
    let machine = Machine::new("asked-wrong");
    let config = |machine: &Machine| machine.config(&["b1", "b2"]);
    let mut state = machine.adopt(config(&machine)).unwrap();
    let asked = |seconds| {
        Some(Asked {
            deadline: Duration::from_secs(seconds),
            close_over: Some(Duration::ZERO),
            since: None,
        })
    };
    machine.settle_at(&mut state, after(100_000_000));
    state.drain(&name("b1"), asked(60)).unwrap();
    state.drain_all(asked(90)).unwrap();
    machine.settle_at(&mut state, after(100_000_000));
    let rebooted = Machine::new("asked-wrong-rebooted");
    std::fs::copy(machine.memory(), rebooted.memory()).unwrap();
    let mut state = rebooted.adopt(config(&rebooted)).unwrap();
    let ends = |state: &State| ["b1", "b2"].map(|name| drain(state, name).map(|(left, _)| left));
    rebooted.settle_at(&mut state, after(1_000));
    assert_eq!(ends(&state), [Some(60), Some(90)]);
    rebooted.settle_at(&mut state, after(1_020));
    assert_eq!(ends(&state), [Some(40), Some(70)]);
    // That is remembered in the place of what the clock said.
    let mut state = rebooted.adopt(config(&rebooted)).unwrap();
    rebooted.settle_at(&mut state, after(1_030));
    assert_eq!(ends(&state), [Some(30), Some(60)]);
}

#[test]
fn a_restart_goes_on_telling_a_dead_backends_clients_where_it_was() {
    let machine = Machine::new("dead-pace");
    let config = || machine.config_with(&["b1", "b2"], "reset_over = \"20s\"\n");
    let mut state = machine.adopt(config()).unwrap();
    let tell = |state: &mut State, health| {
        state.heard(found(2, health), 0);
    };
    tell(&mut state, Health::Down);
    machine.settle_at(&mut state, after(0));
    machine.settle_at(&mut state, after(10));
    assert_eq!(share(&machine, 2), Some(32_768));
    let mut state = machine.adopt(config()).unwrap();
    machine.settle_at(&mut state, after(11));
    assert_eq!(
        (share(&machine, 2), state.due().is_some()),
        (Some(32_768), true)
    );
    machine.settle_at(&mut state, after(16));
    assert_eq!(share(&machine, 2), Some(49_152));
    machine.settle_at(&mut state, after(21));
    // All of them, for which no pace is needed.
    assert_eq!((share(&machine, 2), state.due()), (None, None));
    let mut state = machine.adopt(config()).unwrap();
    machine.settle_at(&mut state, after(22));
    assert_eq!((share(&machine, 2), state.due()), (None, None));
    assert_eq!(machine.maps.state(2).serving(), Serving::None);
    tell(&mut state, Health::Up);
    machine.settle_at(&mut state, after(23));
    tell(&mut state, Health::Down);
    machine.settle_at(&mut state, after(24));
    assert_eq!(share(&machine, 2), Some(0));

    // Drained as well: what its death has closed is closed, long before the deadline.
    let asked = Asked {
        deadline: Duration::from_secs(3_600),
        close_over: None,
        since: None,
    };
    state.drain(&name("b2"), Some(asked)).unwrap();
    machine.settle_at(&mut state, after(34));
    assert_eq!(drain(&state, "b2"), Some((3_600, 0.5)));
    machine.settle_at(&mut state, after(44));
    assert_eq!(share(&machine, 2), None);
    assert_eq!(drain(&state, "b2"), Some((3_590, 1.0)));
}

/// Its host may come back with its connections: for that they were to be kept.
#[test]
fn what_becomes_of_a_dead_backends_flows_outlives_its_service_and_a_restart() {
    let machine = Machine::new("removed-keep");
    let config = machine.config_with(&["b1"], "on_down = \"keep\"\n");
    let mut state = machine.adopt(config).unwrap();
    assert!(state.heard(found(1, Health::Down), 0));
    machine.settle_at(&mut state, after(0));
    let nothing = Config {
        services: vec![],
        ..machine.config(&[])
    };
    state.reload(nothing.clone()).unwrap();
    machine.settle_at(&mut state, after(10));
    let kept = (Serving::None, Some(0));
    let given = || (machine.maps.state(1).serving(), share(&machine, 1));
    assert_eq!(given(), kept);
    let mut state = machine.adopt(nothing).unwrap();
    machine.settle_at(&mut state, after(20));
    assert_eq!(given(), kept);
}

#[test]
fn clients_of_one_that_dies_while_checks_of_others_fail_are_told_after_another_check() {
    for others_fail in [true, false] {
        let machine = Machine::new(&format!("first-of-many-{others_fail}"));
        let mut state = machine.adopt(machine.config(&["b1", "b2"])).unwrap();
        let tell = |state: &mut State, number: u8, health, last_error, now_ms| {
            let report = HealthReport {
                last_error,
                ..found(number, health)
            };
            assert!(state.heard(report, now_ms));
        };
        let failure = |ended| {
            Some(LastError {
                text: "no answer within 1 s".into(),
                ended,
            })
        };
        for number in [1, 2] {
            tell(&mut state, number, Health::Up, None, 0);
        }
        machine.settle_at(&mut state, after(0));
        tell(&mut state, 1, Health::Up, failure(None), 1_000);
        if !others_fail {
            let ended = Some(SystemTime::UNIX_EPOCH);
            tell(&mut state, 1, Health::Up, failure(ended), 1_500);
        }
        tell(&mut state, 2, Health::Down, failure(None), 2_000);
        machine.settle_at(&mut state, after(2));
        let serving = || machine.maps.state(2).serving();
        if others_fail {
            assert_eq!(serving(), Serving::ExistingOnly);
            // A check each 2 s, give or take a tenth, at one of 250 moments, of 1 s at most.
            assert_eq!(
                state.due(),
                Some(after(2).later(Duration::from_millis(3_220)))
            );
            machine.settle_at(&mut state, after(5));
            assert_eq!(serving(), Serving::ExistingOnly);
            machine.settle_at(&mut state, after(6));
        }
        assert_eq!(serving(), Serving::None);
    }
}

#[test]
fn what_cannot_be_saved_is_saved_once_it_can_be_and_said_once() {
    let machine = Machine::new("unsaved");
    let terms = "drain_deadline = \"60s\"\n";
    let without = || machine.config_with(&["b1"], terms);
    let mut state = machine
        .adopt(machine.config_with(&["b1", "b2"], terms))
        .unwrap();
    machine.settle_at(&mut state, after(0));
    // Something else is in the place of the directory: not even root can write there.
    std::fs::remove_dir_all(&machine.directory).unwrap();
    std::fs::write(&machine.directory, "").unwrap();
    state.reload(without()).unwrap();
    said();
    machine.settle_at(&mut state, after(10));
    assert_said(
        tracing::Level::WARN,
        &["would not survive a restart", "tried again"],
    );
    machine.settle_at(&mut state, after(20));
    assert_eq!(said(), []);

    std::fs::remove_file(&machine.directory).unwrap();
    machine.settle_at(&mut state, after(30));
    let mut state = machine.adopt(without()).unwrap();
    machine.settle_at(&mut state, after(40));
    assert_eq!(drain(&state, "b2"), Some((30, 0.0)));
    assert_eq!(said(), []);
}

/// What the configuration and the commands make of both backends.
pub(super) fn admins(state: &State) -> [Option<Admin>; 2] {
    let status = status(state);
    ["b1", "b2"].map(|name| admin(&status, name))
}

#[test]
fn flows_that_begin_in_fail_open_are_counted() {
    let machine = Machine::new("fail-open");
    let mut config = machine.config(&["b1"]);
    config.services[0].min_healthy = 1;
    let identity = service_identity(config.services[0].vip, config.services[0].port);
    let mut state = machine.adopt(config).unwrap();
    machine.settle(&mut state);
    let told = |state: &State| {
        let service = status(state).services.remove(0);
        (service.fail_open, service.fail_open_flows)
    };
    assert_eq!(told(&state), (true, 0));
    let count = |state: &mut State, established| {
        let churn = Churn {
            established,
            ..Churn::default()
        };
        let census = Census {
            churn: [(identity, churn)].into(),
            ..Census::default()
        };
        state.counted(census.into());
    };
    count(&mut state, 5);
    count(&mut state, 8);
    assert_eq!(told(&state), (true, 8));
    assert!(state.heard(found(1, Health::Up), 0));
    machine.settle(&mut state);
    count(&mut state, 20);
    assert_eq!(told(&state), (false, 8));
}

#[test]
fn of_a_deadline_for_one_and_one_for_all_the_earlier_counts() {
    let machine = Machine::new("evacuated-deadline");
    let config = || machine.config_with(&["b1", "b2"], "drain_deadline = \"1h\"\n");
    let mut state = machine.adopt(config()).unwrap();
    let asked = |seconds| {
        Some(Asked {
            deadline: Duration::from_secs(seconds),
            close_over: Some(Duration::ZERO),
            since: None,
        })
    };
    machine.settle_at(&mut state, after(0));
    state.drain(&name("b1"), asked(100)).unwrap();
    machine.settle_at(&mut state, after(10));
    let ends = |state: &State| ["b1", "b2"].map(|name| drain(state, name).map(|(left, _)| left));
    assert_eq!(ends(&state), [Some(100), None]);
    state.drain_all(asked(60)).unwrap();
    machine.settle_at(&mut state, after(20));
    assert_eq!(ends(&state), [Some(60), Some(60)]);
    // Neither a restart nor saying it again without one changes the other's.
    let mut state = machine.adopt(config()).unwrap();
    machine.settle_at(&mut state, after(30));
    assert_eq!(ends(&state), [Some(50), Some(50)]);
    state.drain_all(asked(600)).unwrap();
    machine.settle_at(&mut state, after(40));
    assert_eq!(ends(&state), [Some(70), Some(600)]);
    // Without one the service's counts, from when the drain began.
    state.drain_all(None).unwrap();
    machine.settle_at(&mut state, after(50));
    assert_eq!(ends(&state), [Some(60), Some(3_570)]);
    state.undrain_all().unwrap();
    machine.settle_at(&mut state, after(60));
    assert_eq!(ends(&state), [Some(50), None]);
}

/// Else a host with a flow on one that was removed long ago is never empty.
#[test]
fn a_deadline_for_all_is_one_for_removed_backends_too() {
    let machine = Machine::new("evacuated-removed");
    let only = || machine.config(&["b1"]);
    let mut state = machine.adopt(machine.config(&["b1", "b2"])).unwrap();
    machine.settle_at(&mut state, after(0));
    state.reload(only()).unwrap();
    machine.settle_at(&mut state, after(10));
    assert_eq!(drain(&state, "b2"), None);
    let asked = |seconds| {
        Some(Asked {
            deadline: Duration::from_secs(seconds),
            close_over: Some(Duration::from_secs(10)),
            since: None,
        })
    };
    state.drain_all(asked(60)).unwrap();
    machine.settle_at(&mut state, after(1_000));
    assert_eq!(
        (drain(&state, "b1"), drain(&state, "b2")),
        (Some((60, 0.0)), Some((60, 0.0)))
    );
    let mut state = machine.adopt(only()).unwrap();
    machine.settle_at(&mut state, after(1_050));
    assert_eq!(drain(&state, "b2"), Some((10, 0.0)));
    machine.settle_at(&mut state, after(1_065));
    assert_eq!(
        (drain(&state, "b2"), share(&machine, 2)),
        (Some((0, 0.5)), Some(32_768))
    );
    // The host is not evacuated any more: who was not closed stays.
    state.undrain_all().unwrap();
    machine.settle_at(&mut state, after(1_066));
    assert_eq!((drain(&state, "b2"), share(&machine, 2)), (None, None));

    // Nor does a deadline for one leave out what it was before a change of mode.
    let machine = Machine::new("drained-twice");
    let mut state = machine.adopt(machine.config(&["b1"])).unwrap();
    machine.settle_at(&mut state, after(0));
    let mut other = machine.config(&["b1"]);
    other.services[0].mode = Mode::L2;
    state.reload(other).unwrap();
    machine.settle_at(&mut state, after(10));
    state.drain(&name("b1"), asked(0)).unwrap();
    machine.settle_at(&mut state, after(20));
    machine.settle_at(&mut state, after(25));
    assert_eq!([1, 2].map(|id| share(&machine, id)), [Some(32_768); 2]);
}

/// The command has said that it is in force.
#[test]
fn a_deadline_that_is_asked_for_holds_for_a_disabled_backend() {
    let machine = Machine::new("disabled-deadline");
    let mut config = machine.config_with(&["b1", "b2"], "drain_deadline = \"5s\"\n");
    config.services[0].backends[0].admin = Admin::Disabled;
    let mut state = machine.adopt(config).unwrap();
    machine.settle_at(&mut state, after(0));
    machine.settle_at(&mut state, after(10));
    assert_eq!((drain(&state, "b1"), share(&machine, 1)), (None, None));
    let asked = Some(Asked {
        deadline: Duration::from_secs(60),
        close_over: Some(Duration::from_secs(10)),
        since: None,
    });
    state.drain(&name("b1"), asked).unwrap();
    machine.settle_at(&mut state, after(20));
    assert_eq!(drain(&state, "b1"), Some((60, 0.0)));
    machine.settle_at(&mut state, after(80));
    machine.settle_at(&mut state, after(85));
    assert_eq!(share(&machine, 1), Some(32_768));
    assert_eq!(admins(&state)[0], Some(Admin::Disabled));
    // Without a deadline again; and one for all.
    state.drain(&name("b1"), None).unwrap();
    machine.settle_at(&mut state, after(86));
    assert_eq!((drain(&state, "b1"), share(&machine, 1)), (None, None));
    state.drain_all(asked).unwrap();
    machine.settle_at(&mut state, after(90));
    assert_eq!(drain(&state, "b1"), Some((60, 0.0)));
}
