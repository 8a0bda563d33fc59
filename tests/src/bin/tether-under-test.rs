//! `tether`, as a program of this package: Cargo builds a package's own programs for its tests, and no others. Unlike the shipped one
//! it can be made to end at a failpoint, or to hang there.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lab::tether::{DIE_AT, DIES_ONCE, HANGS_WHILE};
use lb_userspace::failpoint::{self, Place};

/// Failpoints that are yet to be passed, with the one that is the end.
static LEFT: AtomicU64 = AtomicU64::new(0);
/// The failpoint that is the end, if that is told by its name.
static END: OnceLock<Place> = OnceLock::new();
/// The file before whose existence no failpoint counts, if there is to be one.
static ARMS: OnceLock<PathBuf> = OnceLock::new();
/// The file while which exists no operation is applied.
static HANGS: OnceLock<PathBuf> = OnceLock::new();

fn main() -> std::process::ExitCode {
    if let Some(file) = std::env::var_os(DIES_ONCE) {
        let _ = ARMS.set(file.into());
    }
    if let Ok(end) = std::env::var(DIE_AT) {
        observe(&end);
    } else if let Some(file) = std::env::var_os(HANGS_WHILE) {
        let _ = HANGS.set(file.into());
        failpoint::observe(hang);
    }
    lb_userspace::cli::main()
}

/// Sees to it that the process ends at a failpoint: a number, from 1, or a name.
fn observe(end: &str) {
    if let Ok(number) = end.parse() {
        LEFT.store(number, Ordering::Relaxed);
        return failpoint::observe(die_in_turn);
    }
    let place = Place::ALL.iter().find(|place| place.name() == end);
    let place = *place.expect("the number of a failpoint, or its name");
    let _ = END.set(place);
    failpoint::observe(die_at_the_end);
}

/// Whether failpoints count.
fn is_armed() -> bool {
    ARMS.get().is_none_or(|file| file.exists())
}

fn die_in_turn(place: Place) {
    if is_armed() && LEFT.fetch_sub(1, Ordering::Relaxed) == 1 {
        die(place);
    }
}

fn die_at_the_end(place: Place) {
    if is_armed() && END.get() == Some(&place) {
        die(place);
    }
}

/// Ends the process, as `kill -9` does.
fn die(place: Place) -> ! {
    eprintln!("{}{}", lab::tether::DEATH, place.name());
    let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
    // The signal is on its way: nothing more is done here.
    loop {
        std::thread::park();
    }
}

/// Keeps the reconciler from going on while the file is there.
fn hang(place: Place) {
    let asked = || HANGS.get().is_some_and(|file| file.exists());
    while place == Place::OperationDue && asked() {
        std::thread::sleep(Duration::from_millis(20));
    }
}
