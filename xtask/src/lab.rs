//! `cargo xtask lab`: labs for working in by hand.

use std::ffi::OsString;

use anyhow::Result;

use crate::{cargo, root, setup};

/// Opens a shell inside a running lab.
///
/// # Errors
/// If this is not root, or setup or the build fails; else it does not return.
pub(crate) fn shell(args: &[OsString]) -> Result<()> {
    root::require("lab shell")?;
    setup::ensure()?;
    cargo::become_lab_program("lab-shell", args)
}
