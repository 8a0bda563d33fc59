//! `cargo xtask torture`: sets up, builds, and becomes the torture program of package `lab`.

use std::ffi::OsString;

use anyhow::Result;

use crate::{cargo, root, setup};

/// Runs the torture with `args`.
///
/// # Errors
/// If this is not root, or setup or the build fails; else it does not return.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    root::require("torture")?;
    setup::ensure()?;
    cargo::become_lab_program("torture", args)
}
