//! `tether`, as a program of this package: Cargo builds a package's own programs for its tests, and no others. Unlike the shipped one
//! it can be made to end at a failpoint.

use std::sync::atomic::{AtomicU64, Ordering};

use lab::tether::DIE_AT;

/// Failpoints that are yet to be passed, with the one that is the end.
static LEFT: AtomicU64 = AtomicU64::new(0);

fn main() -> std::process::ExitCode {
    if let Ok(number) = std::env::var(DIE_AT) {
        let number = number.parse().expect("the number of a failpoint, from 1");
        LEFT.store(number, Ordering::Relaxed);
        lb_userspace::failpoint::observe(die_in_turn);
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
