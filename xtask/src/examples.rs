//! `cargo xtask examples`: the worked examples, run.

use std::ffi::OsString;

use anyhow::Result;

use crate::{cargo, exec, lab, root, setup};

/// Fetches Socket.IO and runs its example in a lab, with `args`.
///
/// # Errors
/// If this is not root, setup or the build fails, or npm does; else it does not return.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    root::require("examples")?;
    setup::ensure()?;
    setup::ensure_tools(setup::EXAMPLES)?;
    let source = exec::workspace().join("examples/socket.io");
    let directory = cargo::target_directory()?.join("socket.io");
    std::fs::create_dir_all(&directory)?;
    for name in [
        "package.json",
        "package-lock.json",
        "server.js",
        "client.js",
    ] {
        std::fs::copy(source.join(name), directory.join(name))?;
    }
    // What the lock names, and no script of anybody's.
    exec::run_aside(
        exec::command("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .current_dir(&directory),
    )?;
    let directory = [directory.into_os_string()];
    lab::become_program("socketio", &[&directory, args].concat())
}
