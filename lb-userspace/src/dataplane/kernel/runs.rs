//! How often the program has run and for how long, which the kernel counts while it is asked to by the sysctl `kernel.bpf_stats_enabled`: that costs
//! some 25 ns a run.

use std::{fs, os::fd::BorrowedFd};

use super::bpf;

/// The sysctl that has the kernel count.
pub const SYSCTL: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Runs of a program while they were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// How many.
    pub count: u64,
    /// How long they took, all told, in nanoseconds.
    pub time_ns: u64,
}

/// The runs of a program since it was loaded; none while the kernel counts none.
pub fn counted(program: BorrowedFd<'_>) -> Option<Runs> {
    let enabled = fs::read_to_string(SYSCTL).is_ok_and(|text| text.trim() == "1");
    if !enabled {
        return None;
    }
    bpf::runs(program)
        .inspect_err(
            |error| tracing::warn!(%error, "the kernel does not tell of the program's runs"),
        )
        .ok()
}
