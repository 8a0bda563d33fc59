//! What ends drains by command, and what is left of them then.

use std::time::Duration;

use lb_common::backend::Serving;
use lb_userspace::{
    config::BackendSpec,
    desired::{Edit, Refusal},
    model::{Admin, Asked},
};

use super::{
    Machine,
    drains::{admins, after, drain, share},
    name, status,
};

#[test]
fn an_evacuated_host_drains_all_also_those_to_come_and_over_a_restart() {
    let machine = Machine::new("evacuated");
    let all = [Some(Admin::Draining); 2];
    let none = [Some(Admin::Active); 2];
    let mut state = machine.adopt(machine.config(&["b1"])).unwrap();
    machine.settle(&mut state);
    state.drain_all(None).unwrap();
    machine.settle(&mut state);
    assert!(status(&state).evacuated);
    let accepted = status(&state).generation.accepted;
    state.drain_all(None).unwrap();
    assert_eq!(status(&state).generation.accepted, accepted, "no news");
    state.reload(machine.config(&["b1", "b2"])).unwrap();
    machine.settle(&mut state);
    assert_eq!(admins(&state), all);
    assert_eq!(machine.maps.state(2).serving(), Serving::ExistingOnly);

    let mut state = machine.adopt(machine.config(&["b1", "b2"])).unwrap();
    assert!(status(&state).evacuated);
    assert_eq!(admins(&state), all);
    // One by its name stays drained with the others, and after them.
    let error = state.undrain(&name("b1")).unwrap_err();
    assert!(matches!(error, Refusal::Invalid(_)), "{error}");
    assert!(
        error.to_string().contains("`tether undrain --all`"),
        "{error}"
    );
    state.drain(&name("b2"), None).unwrap();
    state.undrain_all().unwrap();
    machine.settle(&mut state);
    assert!(!status(&state).evacuated);
    assert_eq!(admins(&state), [Some(Admin::Active), Some(Admin::Draining)]);
    state.undrain(&name("b2")).unwrap();
    assert_eq!(admins(&state), none);
    let state = machine.adopt(machine.config(&["b1", "b2"])).unwrap();
    assert_eq!(admins(&state), none);
}

#[test]
fn an_end_of_a_drain_that_is_refused_changes_nothing() {
    let machine = Machine::new("undrain");
    let config = |admin| {
        let mut config = machine.config(&["b1", "b2"]);
        config.services[0].backends[1].admin = admin;
        config
    };
    let mut state = machine.adopt(config(Admin::Active)).unwrap();
    state.drain(&name("b1"), None).unwrap();
    state.drain(&name("b2"), None).unwrap();
    state.drain_all(None).unwrap();
    let accepted = status(&state).generation.accepted;
    state.undrain(&name("b1")).unwrap_err();
    assert_eq!(status(&state).generation.accepted, accepted);
    state.undrain_all().unwrap();
    assert_eq!(admins(&state), [Some(Admin::Draining); 2]);

    for backend in ["b1", "b2"] {
        assert_eq!(state.undrain(&name(backend)), Ok(None));
    }
    assert_eq!(admins(&state), [Some(Admin::Active); 2]);
    // There is nothing to take back from one that the file wants out.
    state.reload(config(Admin::Disabled)).unwrap();
    let accepted = status(&state).generation.accepted;
    let error = state.undrain(&name("b2")).unwrap_err();
    for part in ["not active", "words.toml", "\"disabled\""] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(status(&state).generation.accepted, accepted);
}

/// Else its deadline goes on, and closes flows that somebody has said are to stay.
#[test]
fn what_was_ordered_is_taken_back_also_of_one_that_the_file_wants_out() {
    let asked = Some(Asked {
        deadline: Duration::from_secs(60),
        close_over: Some(Duration::from_secs(10)),
        since: None,
    });
    for (word, admin) in [("disabled", Admin::Disabled), ("draining", Admin::Draining)] {
        let machine = Machine::new(&format!("taken-back-{word}"));
        let config = |admin| {
            let mut config = machine.config(&["b1", "b2"]);
            config.services[0].backends[0].admin = admin;
            config
        };
        let mut state = machine.adopt(config(admin)).unwrap();
        machine.settle_at(&mut state, after(0));
        state.drain(&name("b1"), asked).unwrap();
        machine.settle_at(&mut state, after(10));
        assert_eq!(drain(&state, "b1"), Some((60, 0.0)));
        let stays = state.undrain(&name("b1")).unwrap().unwrap();
        for part in ["chat/b1", "words.toml", word, "admin = \"active\""] {
            assert!(stays.contains(part), "{stays}");
        }
        machine.settle_at(&mut state, after(100));
        assert_eq!((drain(&state, "b1"), share(&machine, 1)), (None, None));
        assert_eq!(admins(&state)[0], Some(admin));
        state.undrain(&name("b1")).unwrap_err();
        // The next daemon knows of no order either, whatever the file says by then.
        let state = machine.adopt(config(Admin::Active)).unwrap();
        assert_eq!(admins(&state)[0], Some(Admin::Active));
    }

    // What was put at runtime is no word of the file.
    let machine = Machine::new("taken-back-put");
    let mut state = machine.adopt(machine.config(&["b1"])).unwrap();
    let put = BackendSpec {
        address: [10, 0, 1, 2].into(),
        port: None,
        weight: 100,
        admin: Admin::Disabled,
    };
    state.edit(&name("b2"), &Edit::Put(put)).unwrap();
    state.drain(&name("b2"), asked).unwrap();
    let stays = state.undrain(&name("b2")).unwrap().unwrap();
    assert!(stays.contains("`tether revert chat/b2`"), "{stays}");
}
