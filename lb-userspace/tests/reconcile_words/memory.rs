//! A memory that cannot be used as it is.

use lb_userspace::model::Admin;
use tracing::Level;

use super::{Machine, NOW, admin, assert_said, name, said, status};

#[test]
fn a_torn_memory_is_set_aside_with_a_word_about_what_is_lost() {
    let machine = Machine::new("torn");
    let mut state = machine.adopt(machine.config(&["b1", "b2"])).unwrap();
    state.drain(&name("b2"), None).unwrap();
    let whole = std::fs::read(machine.memory()).unwrap();
    let torn = &whole[..whole.len() - 1];
    std::fs::write(machine.memory(), torn).unwrap();

    let mut state = machine.adopt(machine.config(&["b1", "b2"])).unwrap();
    assert_said(
        Level::ERROR,
        &["runtime.json.broken", "EOF while parsing", "`tether drain`"],
    );
    assert_eq!(admin(&status(&state), "b2"), Some(Admin::Active));
    let kept = machine.directory.join("runtime.json.broken");
    assert_eq!(std::fs::read(kept).unwrap(), torn);
    machine.settle(&mut state);
    assert_ne!(std::fs::read(machine.memory()).unwrap(), torn);
}

#[test]
fn a_memory_that_a_newer_version_left_keeps_its_drains() {
    let machine = Machine::new("newer");
    let config = || machine.config(&["b1", "b2"]);
    let newer = r#"{"version":2,"drained":[{"service":"chat","backend":"b2"}],"services":[],"backends":{}}"#;
    std::fs::write(machine.memory(), newer).unwrap();
    let mut state = machine.adopt(config()).unwrap();
    assert_said(
        Level::ERROR,
        &["it has form 2", "runtime.json.broken", "stays so"],
    );
    assert_eq!(admin(&status(&state), "b2"), Some(Admin::Draining));
    machine.settle(&mut state);
    let state = machine.adopt(config()).unwrap();
    assert_eq!(said(), []);
    assert_eq!(admin(&status(&state), "b2"), Some(Admin::Draining));
}

#[test]
fn a_memory_that_cannot_be_read_is_neither_set_aside_nor_replaced() {
    let machine = Machine::new("unread");
    let config = || machine.config(&["b1", "b2"]);
    let mut state = machine.adopt(config()).unwrap();
    state.drain(&name("b2"), None).unwrap();
    // Something that not even root can read, in the place of a disk that fails.
    let good = machine.directory.join("good");
    std::fs::rename(machine.memory(), &good).unwrap();
    std::fs::create_dir(machine.memory()).unwrap();
    let mut state = machine.adopt(config()).unwrap();
    assert_said(
        Level::ERROR,
        &["cannot be read", "`tether drain`", "restart the daemon"],
    );
    machine.settle(&mut state);
    assert_said(Level::WARN, &["would not survive a restart", "remove it"]);
    let error = state.drain(&name("b1"), None).unwrap_err();
    assert!(error.to_string().contains("could not be read"), "{error}");

    // It can be read again.
    std::fs::remove_dir(machine.memory()).unwrap();
    std::fs::rename(good, machine.memory()).unwrap();
    machine.settle(&mut state);
    let mut state = machine.adopt(config()).unwrap();
    assert_eq!(said(), []);
    assert_eq!(admin(&status(&state), "b2"), Some(Admin::Draining));

    // Or somebody has removed it, and then what is known now is remembered.
    std::fs::remove_file(machine.memory()).unwrap();
    std::fs::create_dir(machine.memory()).unwrap();
    state = machine.adopt(config()).unwrap();
    std::fs::remove_dir(machine.memory()).unwrap();
    state.observe(NOW);
    machine.settle(&mut state);
    state.drain(&name("b1"), None).unwrap();
    let state = machine.adopt(config()).unwrap();
    assert_eq!(admin(&status(&state), "b1"), Some(Admin::Draining));
}

#[test]
fn a_memory_that_somebody_removed_is_saved_again() {
    let machine = Machine::new("removed");
    let mut state = machine.adopt(machine.config(&["b1", "b2"])).unwrap();
    state.drain(&name("b2"), None).unwrap();
    machine.settle(&mut state);
    std::fs::remove_dir_all(&machine.directory).unwrap();
    machine.settle(&mut state);
    assert!(!machine.memory().exists(), "only a full comparison looks");

    state.observe(NOW);
    machine.settle(&mut state);
    let state = machine.adopt(machine.config(&["b1", "b2"])).unwrap();
    assert_eq!(admin(&status(&state), "b2"), Some(Admin::Draining));
}
