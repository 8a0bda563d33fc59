//! Tether's development commands, run as `cargo xtask COMMAND`.
//!
//! Each command is a module, but for those that are a program of package `lab`: they are in [`lab`]. What they say about their own work goes to
//! stderr: stdout belongs to the programs they run, so that `cargo xtask demo --json` can be piped.

mod build_ebpf;
mod cargo;
mod ci;
#[cfg(test)]
mod documents;
mod examples;
mod exec;
mod k8s;
mod kernels;
mod lab;
mod release;
mod root;
mod setup;
mod test;
mod verifier;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    about = "Tether's development commands"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need and this machine lacks
    Setup {
        /// Change nothing: report what is missing and exit with status 1 if anything is
        #[arg(long)]
        check: bool,
    },
    /// Build the BPF objects and print the size of their programs
    BuildEbpf,
    /// Load every BPF program and hold what the verifier says of it against the budget
    Verifier,
    /// Run the tests: verifier budget, model check, unit, property, packet and lab tests (needs root)
    Test {
        /// Also the tests that take long, whose promises others show in another mode, family or number
        #[arg(long)]
        long: bool,
    },
    /// Show WebSocket connections surviving drains, a dead backend and a killed daemon (needs root)
    #[command(disable_help_flag = true)]
    Demo {
        /// Passed on to the demo; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Let thousands of connections live through everything that may happen to a load balancer (needs root)
    #[command(disable_help_flag = true)]
    Torture {
        /// Passed on to the torture; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Measure what a packet costs, and what the daemon does (needs root)
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on to the bench; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Send random packets, configurations and requests, and hold what comes of them against the contract (needs root)
    #[command(disable_help_flag = true)]
    Fuzz {
        /// Passed on to the fuzzers; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Work in a lab by hand (needs root)
    Lab {
        #[command(subcommand)]
        command: LabCommand,
    },
    /// Run the tests that depend on the kernel in emulated machines with Debian's 6.1, 6.12 and newest kernels
    Kernels(kernels::Options),
    /// Build what is shipped: static binary, Debian package, image, bill of materials
    Release(release::Options),
    /// Run the shipped DaemonSet on a real cluster of two nodes, and hold connections over its restarts (needs root)
    K8s(k8s::Options),
    /// Run the worked example against the real Socket.IO (needs root, and npm's registry)
    #[command(disable_help_flag = true)]
    Examples {
        /// Passed on to the example; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Check format and lints, as CI does before the tests
    Ci,
}

#[derive(Subcommand)]
enum LabCommand {
    /// Open a shell inside a running lab
    Shell {
        /// Passed on to the lab; `--help` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Setup { check } => return setup::run(check),
        Command::BuildEbpf => build_ebpf::run()?,
        Command::Verifier => verifier::run()?,
        Command::Test { long } => test::run(long)?,
        Command::Demo { args } => lab::run("demo", "demo", &args)?,
        Command::Torture { args } => lab::run("torture", "torture", &args)?,
        Command::Bench { args } => lab::run("bench", "bench", &args)?,
        Command::Fuzz { args } => lab::run("fuzz", "fuzz", &args)?,
        Command::Lab {
            command: LabCommand::Shell { args },
        } => lab::run("lab shell", "lab-shell", &args)?,
        Command::Kernels(options) => return kernels::run(&options),
        Command::Release(options) => release::run(&options)?,
        Command::K8s(options) => k8s::run(&options)?,
        Command::Examples { args } => examples::run(&args)?,
        Command::Ci => ci::run()?,
    }
    Ok(ExitCode::SUCCESS)
}
