//! `tether`, as a program of this package: Cargo builds a package's own programs for its tests, and no others. Unlike the shipped one
//! it can be made to end at a failpoint, or to hang there.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lab::tether::{DIE_AT, HANGS_WHILE};

/// Failpoints that are yet to be passed, with the one that is the end.
static LEFT: AtomicU64 = AtomicU64::new(0);
/// The file while which exists no operation is applied.
static HANGS: OnceLock<PathBuf> = OnceLock::new();

fn main() -> std::process::ExitCode {
    if let Ok(number) = std::env::var(DIE_AT) {
        let number = number.parse().expect("the number of a failpoint, from 1");
        LEFT.store(number, Ordering::Relaxed);
        lb_userspace::failpoint::observe(die_in_turn);
    } else if let Some(file) = std::env::var_os(HANGS_WHILE) {
        let _ = HANGS.set(file.into());
        lb_userspace::failpoint::observe(hang);
    }
    lb_userspace::cli::main()
}

/// Ends the process at its last failpoint, as `kill -9` does.
fn die_in_turn(place: &'static str) {
    if LEFT.fetch_sub(1, Ordering::Relaxed) == 1 {
        eprintln!("{}{place}", lab::tether::DEATH);
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
        // The signal is on its way: nothing more is done here.
        loop {
            std::thread::park();
        }
    }
}

/// Keeps the reconciler from going on while the file is there.
fn hang(place: &'static str) {
    let asked = || HANGS.get().is_some_and(|file| file.exists());
    while place == "before an operation" && asked() {
        std::thread::sleep(Duration::from_millis(20));
    }
}
