//! `cargo xtask demo`: sets up, builds, and becomes the demo program of package `lab`.

use std::ffi::OsString;

use anyhow::Result;

use crate::{cargo, root, setup};

/// Runs the demo with `args`.
///
/// # Errors
/// If this is not root, or setup or the build fails; else it does not return.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    root::require("demo")?;
    setup::ensure()?;
    cargo::become_lab_program("demo", args)
}
