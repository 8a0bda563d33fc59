//! `tether` of another version of the layouts, which nobody uses: for tests of upgrade and downgrade. Built by `cargo xtask test`, beside the
//! programs of this version.
//!
//! With the name of a step of a migration in `TETHER_DIES_AT`, it only opens the maps, and dies there as by `kill -9`.

use std::path::Path;

use lb_userspace::dataplane::kernel::{Kernel, Options, resize::Step};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;

fn main() -> std::process::ExitCode {
    match std::env::var("TETHER_DIES_AT") {
        Ok(step) => dies_at(&step),
        Err(_) => lb_userspace::cli::main(),
    }
}

/// Opens the maps that are in the default place, as large as the configuration at the place of the first argument says.
fn dies_at(step: &str) -> std::process::ExitCode {
    let path = std::env::args().nth(1).unwrap_or_default();
    let config = match lb_userspace::config::load(Path::new(&path)) {
        Ok(loaded) => loaded.config,
        Err(problems) => {
            eprintln!("{problems}");
            return std::process::ExitCode::FAILURE;
        }
    };
    let options = Options {
        interfaces: config.interfaces.clone(),
        bpffs: config.bpffs.clone(),
        capacity: lb_userspace::dataplane::maps::Capacity::for_flows(
            config.limits.flows,
            config.limits.flows6,
            config.limits.services,
            config.limits.backends,
            config.limits.table_slots,
            1,
        ),
        fleet_seed: None,
    };
    let opened = Kernel::open_observed(&options, &mut |reached: Step| {
        if format!("{reached:?}") == step {
            let _ = kill(getpid(), Signal::SIGKILL);
        }
    });
    eprintln!("it did not come to {step}: {:?}", opened.err());
    std::process::ExitCode::FAILURE
}
