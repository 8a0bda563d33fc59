//! The package's unit under a real systemd: a guest whose file system is Debian's systemd with what that needs, the package, and the test of both. Its first
//! process is systemd, and what reports from there is a service.
//!
//! Programs of this machine that run there bring their own libraries, in a directory of their own: those of Debian's programs are of Debian's version.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use lab_guest::{GROUP, PLAN, Plan, Program, SCRIPTS};

use super::{
    LAST_WORDS, PATIENCE, apt,
    cache::Cache,
    cpio::Archive,
    emulator::{Emulator, SUITES},
    guest, image,
    kernel::{Bootable, Kernel},
    tell,
};
use crate::{
    cargo::{Built, TestProgram},
    exec,
};

/// What the guest and its files are called.
const NAME: &str = "systemd";
/// The kernel of the release that systemd is of.
const KERNEL: Kernel = Kernel::V6_1;
/// What comes from Debian, with all that it needs.
const PACKAGES: [&str; 4] = ["systemd", "dash", "ethtool", "iproute2"];
/// Programs that BusyBox stands in for: what the package's scripts run, and what the kernel does.
const STAND_INS: [&str; 7] = [
    "bin/cat",
    "bin/cp",
    "bin/mkdir",
    "bin/mv",
    "bin/rm",
    "bin/sleep",
    "sbin/modprobe",
];
/// Directories of a root that are below `/usr` there, and links in their place.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
/// What no program of the guest needs, and much of what the packages hold.
const LEFT_OUT: [&str; 6] = [
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/share/doc",
    "usr/share/i18n",
    "usr/share/locale",
    "usr/share/man",
];
/// Modules of the test's network.
const MODULES: [&str; 2] = ["veth", "bridge"];
/// How long the test may take, in seconds: many times what it does.
const LIMIT_S: u64 = 60 * 60;

/// Where the archive has the guest's root.
const ROOT: &str = "guest";
/// Where the root has libraries of this machine's programs, and the programs.
const LIBRARIES: &str = "/lab/lib";
const REPORTER: &str = "/lab/reporter";
const TEST: &str = "/lab/test";

/// The first process, until systemd is. Sandboxes of units are made by moving their root, and the kernel's first file system cannot be moved: so the root is
/// copied out of that.
const INIT: &str = "#!/bin/busybox sh
set -e
busybox=/bin/busybox
$busybox mkdir -p /new
$busybox mount -t tmpfs -o mode=755 tmpfs /new
$busybox cp -a /guest/. /new/
$busybox mkdir -p /new/usr/lib/modules
$busybox cp -a /usr/lib/modules/. /new/usr/lib/modules/
exec $busybox switch_root /new /usr/lib/systemd/systemd
";

/// Configuration of the guest.
const FILES: [(&str, &str); 6] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    ("etc/hostname", "guest\n"),
    // Without one it would be the first boot, which asks questions.
    ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
    // It is slow there.
    (
        "etc/systemd/system.conf.d/lab.conf",
        "[Manager]\nDefaultTimeoutStartSec=10min\n",
    ),
    (
        "etc/systemd/journald.conf.d/lab.conf",
        "[Journal]\nStorage=volatile\nForwardToConsole=yes\nMaxLevelConsole=info\nRateLimitIntervalSec=0\n",
    ),
    // What a server's targets want beside that (logins, timers) has no part in it.
    (
        "etc/systemd/system/lab.target",
        "[Unit]\nRequires=basic.target\nAfter=basic.target\nWants=lab.service\nAllowIsolate=yes\n",
    ),
];
const DEFAULT_TARGET: &str = "etc/systemd/system/default.target";
/// Wants a kernel module that guests do not have.
const MASKED: &str = "etc/systemd/system/proc-sys-fs-binfmt_misc.automount";

/// Has the package's unit and scripts run there.
///
/// # Errors
/// If Debian's packages cannot be had, the guest cannot be started, or the test fails in it.
pub(crate) fn test(package: &Path) -> Result<()> {
    let cache = Cache::open()?;
    let emulator = Emulator::provide(&cache)?;
    let kernel = KERNEL.provide(&cache, &emulator)?;
    let debian = apt::provide(&cache, NAME, &SUITES, PACKAGES)?;
    let programs = Programs::build()?;

    let scratch = Scratch::new(cache.path(&format!("{NAME}.package")))?;
    let files = scratch.unpack(package, "--extract", "files")?;
    let scripts = scratch.unpack(package, "--control", "scripts")?;
    let machine = Machine {
        debian: &debian,
        files: &files,
        scripts: &scripts,
        programs: &programs,
        stripped: &scratch.0.join("stripped"),
    };
    let archive = cache.path(&format!("{NAME}.cpio"));
    let console = cache.path(&format!("{NAME}.console"));
    let plan = machine
        .write(&archive, &kernel, &emulator)
        .with_context(|| format!("writing {}", archive.display()))?;
    let mut command = guest::command(&emulator, &kernel, &archive, &console)?;
    eprintln!("release: a machine boots that systemd runs");
    let outcome = guest::run(&mut command, &plan, |record| tell(NAME, record))?;
    fs::remove_file(&archive)?;
    if let Some(crash) = &outcome.crash {
        let words = guest::last_words(&console, LAST_WORDS)?;
        eprintln!("--- {NAME}: {crash}; its console's last words:\n{words}");
    }
    fs::remove_file(&console)?;
    if !outcome.is_success() {
        bail!("the unit does not run as it should; `cargo xtask release --unit` runs it alone");
    }
    let seconds = outcome.took.as_secs_f64();
    eprintln!("release: the unit runs under systemd as it should ({seconds:.1} s)");
    Ok(())
}

/// A directory that is gone when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Self> {
        // Of a run that was killed.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    /// What dpkg-deb takes out of a package.
    fn unpack(&self, package: &Path, what: &str, name: &str) -> Result<PathBuf> {
        let to = self.0.join(name);
        exec::run_aside(exec::command("dpkg-deb").arg(what).arg(package).arg(&to))?;
        Ok(to)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Programs of this machine that run there.
struct Programs {
    reporter: PathBuf,
    test: TestProgram,
}

impl Programs {
    fn build() -> Result<Self> {
        let mut build = exec::cargo();
        // The same packages as everywhere, so that dependencies are compiled once.
        build.args(["test", "--no-run", "--workspace", "--exclude", "lb-ebpf"]);
        build.args(["--test", NAME]);
        let built = Built::by(&mut build)?;
        let mut tests = built.integration_tests("lab-guest").into_iter();
        Ok(Self {
            reporter: built.executable("lab-guest")?,
            test: tests
                .find(|test| test.name == NAME)
                .context("cargo reported no test of systemd")?,
        })
    }
}

/// What the guest is made of.
struct Machine<'a> {
    /// Debian's packages.
    debian: &'a Path,
    /// The package's files.
    files: &'a Path,
    /// The package's scripts.
    scripts: &'a Path,
    programs: &'a Programs,
    /// A place for a copy of a program.
    stripped: &'a Path,
}

impl Machine<'_> {
    /// Writes the archive that the kernel unpacks, and says what the guest does then.
    fn write(&self, path: &Path, kernel: &Bootable, emulator: &Emulator) -> Result<Plan> {
        let mut archive = Archive::behind(&kernel.modules, path)?;
        archive.content("init", 0o755, INIT.as_bytes())?;
        archive.file("bin/busybox", &emulator.busybox())?;

        for name in MERGED {
            archive.directory(&format!("{ROOT}/usr/{name}"))?;
            archive.link(&format!("{ROOT}/{name}"), &format!("usr/{name}"))?;
        }
        for name in ["root", "tmp", "var/tmp"] {
            archive.directory(&format!("{ROOT}/{name}"))?;
        }
        root(&mut archive, self.debian)?;
        root(&mut archive, self.files)?;
        archive.file(&format!("{ROOT}/usr/bin/busybox"), &emulator.busybox())?;
        for place in STAND_INS {
            archive.link(&format!("{ROOT}/usr/{place}"), "/usr/bin/busybox")?;
        }
        archive.link(&format!("{ROOT}/usr/bin/sh"), "dash")?;
        for entry in fs::read_dir(self.scripts)? {
            let entry = entry?;
            let name = entry.file_name();
            let place = format!("{ROOT}{SCRIPTS}/{}", name.to_string_lossy());
            archive.file(&place, &entry.path())?;
        }
        for (place, text) in FILES {
            archive.content(&format!("{ROOT}/{place}"), 0o644, text.as_bytes())?;
        }
        let (name, number) = GROUP;
        let groups = format!(
            "root:x:0:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nutmp:x:43:\nsystemd-journal:x:101:\n{name}:x:{number}:\nnogroup:x:65534:\n"
        );
        archive.content(&format!("{ROOT}/etc/group"), 0o644, groups.as_bytes())?;
        archive.link(&format!("{ROOT}/{DEFAULT_TARGET}"), "lab.target")?;
        archive.link(&format!("{ROOT}/{MASKED}"), "/dev/null")?;

        let loader = self.own(&mut archive)?;
        let service = service(&loader);
        let place = format!("{ROOT}/etc/systemd/system/lab.service");
        archive.content(&place, 0o644, service.as_bytes())?;
        let plan = plan(&loader);
        archive.content(
            &format!("{ROOT}{PLAN}"),
            0o644,
            serde_json::to_string(&plan)?.as_bytes(),
        )?;
        archive.finish()?;
        Ok(plan)
    }

    /// Adds this machine's programs with their libraries. Gives the loader of these.
    fn own(&self, archive: &mut Archive<impl Write>) -> Result<String> {
        let mut libraries = BTreeSet::new();
        for (place, program) in [
            (REPORTER, &self.programs.reporter),
            (TEST, &self.programs.test.path),
        ] {
            image::strip(program, self.stripped)?;
            archive.file(&format!("{ROOT}{place}"), self.stripped)?;
            libraries.append(&mut image::libraries_of(program)?);
        }
        let mut loader = None;
        for library in &libraries {
            let (_, name) = library.rsplit_once('/').context("a library has a path")?;
            let place = format!("{LIBRARIES}/{name}");
            archive.file(&format!("{ROOT}{place}"), Path::new(library))?;
            if name.starts_with("ld-linux") {
                loader = Some(place);
            }
        }
        loader.context("this machine's programs name no loader")
    }
}

/// The service that carries out the plan. Whatever becomes of it, the machine goes off after it.
fn service(loader: &str) -> String {
    format!(
        "[Unit]\nSuccessAction=poweroff-force\nFailureAction=poweroff-force\n\n\
         [Service]\nType=oneshot\nTimeoutStartSec=infinity\n\
         ExecStart={loader} --library-path {LIBRARIES} {REPORTER} work\n"
    )
}

/// The plan: the one test.
fn plan(loader: &str) -> Plan {
    let own = ["--library-path", LIBRARIES, TEST, "--test-threads=1"];
    Plan {
        modules: MODULES.map(str::to_owned).into(),
        environment: [("LAB_PATIENCE", PATIENCE), ("RUST_BACKTRACE", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        programs: vec![Program {
            name: NAME.to_owned(),
            path: loader.to_owned(),
            arguments: own.map(str::to_owned).into(),
            limit_s: LIMIT_S,
        }],
    }
}

/// Where the guest's root has what another has at `name`, a directory of that root.
fn place_of(name: &str) -> String {
    if MERGED.contains(&name) {
        format!("usr/{name}")
    } else {
        name.to_owned()
    }
}

/// Adds all directories of a root, each in its place.
fn root(archive: &mut Archive<impl Write>, source: &Path) -> Result<()> {
    for entry in entries(source)? {
        // Files there are the cache's own.
        if entry.file_type()?.is_dir() {
            let name = entry.file_name();
            tree(archive, &place_of(&name.to_string_lossy()), &entry.path())?;
        }
    }
    Ok(())
}

/// Adds what is below a directory, links as links, but for what is left out.
fn tree(archive: &mut Archive<impl Write>, place: &str, source: &Path) -> Result<()> {
    if LEFT_OUT.contains(&place) {
        return Ok(());
    }
    archive.directory(&format!("{ROOT}/{place}"))?;
    for entry in entries(source)? {
        let (name, kind, path) = (entry.file_name(), entry.file_type()?, entry.path());
        let place = format!("{place}/{}", name.to_string_lossy());
        if kind.is_dir() {
            tree(archive, &place, &path)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path)?;
            archive.link(&format!("{ROOT}/{place}"), &target.to_string_lossy())?;
        } else if kind.is_file() {
            archive.file(&format!("{ROOT}/{place}"), &path)?;
        } else {
            bail!("{}: neither file nor directory nor link", path.display());
        }
    }
    Ok(())
}

/// What is in a directory, by name.
fn entries(directory: &Path) -> Result<Vec<fs::DirEntry>> {
    let mut entries: Vec<_> = fs::read_dir(directory)
        .and_then(Iterator::collect)
        .with_context(|| directory.display().to_string())?;
    entries.sort_by_key(fs::DirEntry::file_name);
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_debian_has_beside_usr_lies_below_it() {
        let places = ["lib", "lib64", "etc", "usr"].map(place_of);
        assert_eq!(places, ["usr/lib", "usr/lib64", "etc", "usr"]);
    }

    #[test]
    fn programs_of_this_machine_run_with_their_own_libraries() {
        let plan = plan("/lab/lib/ld-linux-x86-64.so.2");
        let program = &plan.programs[0];
        assert_eq!(program.path, "/lab/lib/ld-linux-x86-64.so.2");
        assert_eq!(
            program.arguments,
            [
                "--library-path",
                "/lab/lib",
                "/lab/test",
                "--test-threads=1"
            ]
        );
        let service = service("/lab/lib/ld.so");
        assert!(
            service.contains(
                "\nExecStart=/lab/lib/ld.so --library-path /lab/lib /lab/reporter work\n"
            ),
            "{service}"
        );
    }
}
