//! `cargo xtask bench`: sets up, builds, and becomes the bench program of package `lab`.

use std::ffi::OsString;

use anyhow::Result;

use crate::{cargo, root, setup};

/// Runs the bench with `args`.
///
/// # Errors
/// If this is not root, or setup or the build fails; else it does not return.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    root::require("bench")?;
    setup::ensure()?;
    cargo::become_lab_program("bench", args)
}
