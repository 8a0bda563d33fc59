//! Commands that are a program of package `lab`: the demo, the torture, the bench, the fuzzers, and a lab for working in by hand.

use std::ffi::OsString;

use anyhow::Result;

use crate::{cargo::Built, exec, root, setup};

/// Sets up, builds, and becomes the `program` that does a command, with `args`.
///
/// # Errors
/// If this is not root, or setup or the build fails; else it does not return.
pub(crate) fn run(command: &str, program: &str, args: &[OsString]) -> Result<()> {
    root::require(command)?;
    setup::ensure()?;
    become_program(program, args)
}

/// Builds package `lab` for the release profile, and becomes its program `name`. All programs are built, since some run others.
///
/// # Errors
/// If the build fails or the program cannot be started; else this does not return.
pub(crate) fn become_program(name: &str, args: &[OsString]) -> Result<()> {
    let mut build = exec::cargo();
    build.args(["build", "--release", "--package", "lab", "--bins"]);
    let program = Built::by(&mut build)?.executable(name)?;
    Err(exec::become_command(exec::command(program).args(args)))
}
