//! QEMU, unpacked with all of its libraries: it fits into no release's package set but its own, and need not.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use super::{
    apt::{self, Suite},
    cache::Cache,
};
use crate::exec;

/// Where its packages come from: one release, so that they fit each other, whatever this machine runs.
pub(super) const SUITES: [Suite; 2] = [
    ("debian", "bookworm"),
    ("debian-security", "bookworm-security"),
];
/// The emulator, and a shell's worth of programs in one file without libraries.
const PACKAGES: [&str; 2] = ["qemu-system-x86", "busybox-static"];
/// Where Debian has libraries.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// The emulator's own little root.
pub(crate) struct Emulator {
    root: PathBuf,
}

impl Emulator {
    /// Fetches it, unless it is there.
    ///
    /// # Errors
    /// If it cannot be had.
    pub(crate) fn provide(cache: &Cache) -> Result<Self> {
        let root = apt::provide(cache, "emulator", &SUITES, PACKAGES)?;
        Ok(Self { root })
    }

    /// BusyBox, which needs no libraries.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }

    /// QEMU for x86-64, with the libraries that came with it and no others.
    pub(crate) fn command(&self) -> Command {
        let path = |name: &str| self.root.join(name).display().to_string();
        // It keeps a core busy for as long as it runs, and takes what others leave of it.
        let mut command = exec::command("nice");
        command
            .args(["-n", "19"])
            .arg(path("lib64/ld-linux-x86-64.so.2"))
            .env("QEMU_MODULE_DIR", path("usr/lib/x86_64-linux-gnu/qemu"))
            .args(["--library-path", &LIBRARIES.map(path).join(":")])
            .arg(path("usr/bin/qemu-system-x86_64"))
            .args(["-L", &path("usr/share/qemu")])
            .args(["-L", &path("usr/share/seabios")]);
        command
    }
}
