//! The guest's file system, all of it in memory: this machine's programs with their libraries, the tests, and the plan.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use lab_guest::{INIT, PLAN, Plan};

use super::{cpio::Archive, emulator::Emulator, kernel::Bootable};
use crate::{cargo::TestProgram, exec};

/// Programs of this machine that labs run.
const TOOLS: [&str; 6] = ["ethtool", "ip", "nft", "ss", "tc", "tcpdump"];
/// Programs that describe a failure, and that not every machine has.
const HELPFUL: [&str; 1] = ["bpftool"];
/// Programs that BusyBox stands in for. The kernel asks for `/sbin/modprobe`.
const STAND_INS: [&str; 4] = ["cat", "modprobe", "sh", "sleep"];
/// Where tests are, as in a target directory: those that they run are one directory above.
const TESTS: &str = "lab/deps";

/// What goes into every guest.
pub(crate) struct Contents<'a> {
    /// The first process.
    pub(crate) init: &'a Path,
    /// Programs that tests run, by the names that these know them by.
    pub(crate) helpers: &'a [(&'a str, PathBuf)],
    /// Test programs.
    pub(crate) tests: &'a [TestProgram],
    /// What to do with them.
    pub(crate) plan: &'a Plan,
}

/// Where a guest finds a test program.
pub(crate) fn place_of(test: &TestProgram) -> String {
    format!("/{TESTS}/{}", test.name)
}

impl Contents<'_> {
    /// Writes the archive that `kernel` unpacks.
    ///
    /// # Errors
    /// If a program is missing, or the archive cannot be written.
    pub(crate) fn write(
        &self,
        path: &Path,
        kernel: &Bootable,
        emulator: &Emulator,
        stripped: &Path,
    ) -> Result<()> {
        let mut archive = Archive::behind(&kernel.modules, path)?;

        for name in ["bin", "lib", "lib64", "sbin"] {
            archive.directory(&format!("usr/{name}"))?;
            archive.link(name, &format!("usr/{name}"))?;
        }
        archive.file("usr/bin/busybox", &emulator.busybox())?;
        for name in STAND_INS {
            archive.link(&format!("usr/sbin/{name}"), "../bin/busybox")?;
        }
        let mut libraries = BTreeSet::new();
        for tool in TOOLS {
            let path = exec::find(tool)
                .with_context(|| format!("{tool} is missing: cargo xtask setup"))?;
            archive.file(&format!("usr/bin/{tool}"), &path)?;
            libraries.append(&mut libraries_of(&path)?);
        }
        for (tool, path) in HELPFUL
            .iter()
            .filter_map(|tool| Some((tool, exec::find(tool)?)))
        {
            archive.file(&format!("usr/bin/{tool}"), &path)?;
            libraries.append(&mut libraries_of(&path)?);
        }

        let mut programs = vec![(INIT.trim_start_matches('/').to_owned(), self.init)];
        for (name, path) in self.helpers {
            programs.push((format!("lab/{name}"), path));
        }
        for test in self.tests {
            programs.push((
                place_of(test).trim_start_matches('/').to_owned(),
                &test.path,
            ));
        }
        for (place, program) in programs {
            strip(program, stripped)?;
            archive.file(&place, stripped)?;
            libraries.append(&mut libraries_of(program)?);
        }
        for library in &libraries {
            archive.file(&below_usr(library), Path::new(library))?;
        }
        archive.content(
            PLAN.trim_start_matches('/'),
            0o644,
            serde_json::to_string(self.plan)?.as_bytes(),
        )?;
        archive.finish()
    }
}

/// Copies a program without its debug information, which is most of it: nobody debugs in a guest. Names stay, for backtraces.
///
/// # Errors
/// If it cannot be read or written.
pub(super) fn strip(program: &Path, stripped: &Path) -> Result<()> {
    let mut strip = exec::command("strip");
    strip.arg("--strip-debug").arg("-o").arg(stripped);
    exec::run(strip.arg(program))
}

/// The libraries that a program loads, its loader included; none if it is linked statically.
///
/// # Errors
/// If there is no ldd to ask.
pub(super) fn libraries_of(program: &Path) -> Result<BTreeSet<String>> {
    let mut ldd = exec::command("ldd");
    // A program without libraries makes ldd fail.
    let output = ldd
        .arg(program)
        .output()
        .with_context(|| format!("could not be started: {}", exec::show(&ldd)))?;
    Ok(libraries_in(&String::from_utf8_lossy(&output.stdout)))
}

/// The paths in what ldd says.
fn libraries_in(said: &str) -> BTreeSet<String> {
    let words = said
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(str::to_owned).collect()
}

/// A library's place where `/lib` is `/usr/lib`.
fn below_usr(path: &str) -> String {
    let path = path.trim_start_matches('/');
    if path.starts_with("usr/") {
        path.to_owned()
    } else {
        format!("usr/{path}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_and_the_kernels_own_is_not() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)
\tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f01)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f02)
";
        let expected = [
            "/lib/x86_64-linux-gnu/libgcc_s.so.1",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(libraries_in(said), expected.map(str::to_owned).into());
        assert!(libraries_in("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn libraries_lie_below_usr() {
        assert_eq!(below_usr("/lib64/ld.so"), "usr/lib64/ld.so");
        assert_eq!(below_usr("/usr/lib/libz.so"), "usr/lib/libz.so");
    }
}
