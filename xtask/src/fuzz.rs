//! `cargo xtask fuzz`: sets up, builds, and becomes the fuzz program of package `lab`.

use std::ffi::OsString;

use anyhow::Result;

use crate::{cargo, root, setup};

/// Runs the fuzzers with `args`.
///
/// # Errors
/// If this is not root, or setup or the build fails; else it does not return.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    root::require("fuzz")?;
    setup::ensure()?;
    cargo::become_lab_program("fuzz", args)
}
