//! `cargo xtask kernels`: the tests that depend on the kernel, in an emulated machine for each of Debian's kernels.
//!
//! Packages are fetched with a configuration of our own and unpacked below the target directory: nothing is installed, and this
//! machine's apt is not touched. Guests are emulated in software, have their file system in memory, and end with this process.

mod apt;
mod cache;
mod cpio;
mod emulator;
mod guest;
mod image;
mod kernel;
pub(crate) mod systemd;

use std::{convert::Infallible, fs, path::PathBuf, process::ExitCode, str::FromStr};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lab_guest::{Plan, Program, Record};

use self::{
    cache::Cache,
    emulator::Emulator,
    guest::Outcome,
    image::Contents,
    kernel::{Bootable, Kernel},
};
use crate::{
    cargo::{Built, TestProgram},
    exec, setup,
};

/// Modules that tests use without the kernel asking for them.
const MODULES: [&str; 8] = [
    "veth",
    "bridge",
    "8021q",
    "bonding",
    "dummy",
    "ipip",
    "virtio_net",
    "virtio_pci",
];
/// The daemon that tests of package `lab` run.
const DAEMON: &str = "tether-under-test";
/// How long a test program may take, in seconds: many times what it does, since other work may be going on.
const LIMIT_S: u64 = 2 * 60 * 60;
/// How many times longer than usual labs wait for a fact before they give up.
const PATIENCE: &str = "20";
/// How much of a console a crash is explained with.
const LAST_WORDS: usize = 60;

/// What can be asked for.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this kernel
    #[arg(long)]
    kernel: Option<Kernel>,
    /// Only a few tests: that every kernel takes the programs and forwards with them
    #[arg(long)]
    smoke: bool,
    /// Also the packet tests that flood the program with millions of packets, which takes long where all is emulated
    #[arg(long, conflicts_with = "smoke")]
    floods: bool,
    /// Only this test program, whether it is among the usual ones or not, as `guest` or `packet`, or of it only the tests whose names have some
    /// part, as `guest:bond`; may be given several times
    #[arg(long, value_name = "PROGRAM[:PART]", conflicts_with_all = ["smoke", "floods"])]
    only: Vec<Only>,
    /// Keep each guest's file system and console, and print the command that boots it
    #[arg(long)]
    keep: bool,
}

/// A test program, or some of its tests.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Only {
    program: String,
    part: Option<String>,
}

impl FromStr for Only {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (program, part) = match text.split_once(':') {
            Some((program, part)) => (program, Some(part.to_owned())),
            None => (text, None),
        };
        Ok(Self {
            program: program.to_owned(),
            part,
        })
    }
}

/// The filters that a test program is asked for with; none if it is not asked for. An empty list is all of its tests.
fn asked_for<'a>(only: &'a [Only], test: &str) -> Option<Vec<&'a str>> {
    let asked = only.iter().filter(|only| only.program == test);
    let parts: Vec<_> = asked.map(|only| only.part.as_deref()).collect();
    if parts.is_empty() {
        return None;
    }
    // Who asks for all of them and for some asks for all.
    Some(parts.into_iter().collect::<Option<_>>().unwrap_or_default())
}

/// How much is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    Smoke,
    Usual,
    Floods,
}

impl Options {
    fn extent(&self) -> Extent {
        match self {
            Self { smoke: true, .. } => Extent::Smoke,
            Self { floods: true, .. } => Extent::Floods,
            _ => Extent::Usual,
        }
    }
}

/// Runs the tests and prints a table.
///
/// # Errors
/// If something is missing or a guest cannot be started. Failed tests are told by the exit code.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure()?;
    let packages = Packages::provide(options)?;
    let tests = Tests::build(options)?;
    let all_are_well = run_in_all(&packages, &tests, options.keep)?;
    Ok(if all_are_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether the oldest kernel takes the programs: the part of this that belongs to every run of the tests.
pub(crate) struct Smoke(Option<(Packages, Tests)>);

impl Smoke {
    /// Has all at hand. Said and left out where Debian's packages are not to be had, since the tests are no test of a network.
    ///
    /// # Errors
    /// If the tests cannot be built.
    pub(crate) fn prepare() -> Result<Self> {
        let options = Options {
            kernel: Some(Kernel::V6_1),
            smoke: true,
            floods: false,
            only: vec![],
            keep: false,
        };
        match Packages::provide(&options) {
            Ok(packages) => Ok(Self(Some((packages, Tests::build(&options)?)))),
            Err(error) => {
                eprintln!(
                    "WITHOUT the smoke test on the oldest kernel, whose packages cannot be had here: {error:#}"
                );
                Ok(Self(None))
            }
        }
    }

    /// Runs it.
    ///
    /// # Errors
    /// If a guest cannot be started, or a test fails in it.
    pub(crate) fn run(&self) -> Result<()> {
        match &self.0 {
            Some((packages, tests)) if !run_in_all(packages, tests, false)? => {
                bail!(
                    "tests fail on the oldest kernel; `cargo xtask kernels --smoke` runs them alone"
                )
            }
            _ => Ok(()),
        }
    }
}

/// What guests are made of.
struct Packages {
    cache: Cache,
    emulator: Emulator,
    kernels: Vec<(Kernel, Bootable)>,
}

impl Packages {
    fn provide(options: &Options) -> Result<Self> {
        let cache = Cache::open()?;
        let emulator = Emulator::provide(&cache)?;
        let wanted = match options.kernel {
            Some(kernel) => vec![kernel],
            None => Kernel::value_variants().to_vec(),
        };
        let mut kernels = vec![];
        for kernel in wanted {
            kernels.push((kernel, kernel.provide(&cache, &emulator)?));
        }
        Ok(Self {
            cache,
            emulator,
            kernels,
        })
    }
}

/// Whether all tests pass on all kernels.
fn run_in_all(packages: &Packages, tests: &Tests, keep: bool) -> Result<bool> {
    let mut outcomes = vec![];
    for (kernel, image) in &packages.kernels {
        let outcome = run_in(*kernel, image, tests, packages, keep)?;
        outcomes.push((kernel.name(), outcome));
    }
    print!("{}", table(&outcomes));
    Ok(outcomes.iter().all(|(_, outcome)| outcome.is_success()))
}

/// Boots a guest, says what becomes of it, and removes its files unless they are to be kept.
fn run_in(
    kernel: Kernel,
    image: &Bootable,
    tests: &Tests,
    packages: &Packages,
    keep: bool,
) -> Result<Outcome> {
    let Packages {
        cache, emulator, ..
    } = packages;
    let name = kernel.name();
    let archive = cache.path(&format!("{name}.cpio"));
    let console = cache.path(&format!("{name}.console"));
    let scratch = cache.path("stripped");
    tests
        .contents()
        .write(&archive, image, emulator, &scratch)
        .with_context(|| format!("writing {}", archive.display()))?;
    fs::remove_file(&scratch)?;
    let mut command = guest::command(emulator, image, &archive, &console)?;
    eprintln!("kernels: {name} boots");
    let outcome = guest::run(&mut command, &tests.plan, |record| {
        tell(name, record);
        // It is in the guest's memory by now, and large: nothing of it is left behind however this ends.
        if !keep && matches!(record, Record::Booted { .. }) {
            let _ = fs::remove_file(&archive);
        }
    })?;
    if let Some(crash) = &outcome.crash {
        let words = guest::last_words(&console, LAST_WORDS)?;
        eprintln!("--- {name}: {crash}; its console's last words:\n{words}");
    }
    if keep {
        eprintln!("kernels: this boots it again: {}", exec::show(&command));
    } else {
        fs::remove_file(&console).with_context(|| console.display().to_string())?;
        // Of a guest that did not get up.
        let _ = fs::remove_file(&archive);
    }
    Ok(outcome)
}

/// Programs and what to do with them.
struct Tests {
    init: PathBuf,
    helpers: Vec<(&'static str, PathBuf)>,
    tests: Vec<TestProgram>,
    plan: Plan,
}

impl Tests {
    /// Builds all tests, and chooses.
    fn build(options: &Options) -> Result<Self> {
        // The same packages as everywhere, so that dependencies are compiled once.
        let mut build = exec::cargo();
        build.args(["test", "--no-run", "--workspace", "--exclude", "lb-ebpf"]);
        for name in to_build(&options.only) {
            build.args(["--test", name]);
        }
        let built = Built::by(&mut build)?;
        let mut tests = vec![];
        let mut programs = vec![];
        for package in ["lab", "lab-guest", "lb-userspace"] {
            for test in built.integration_tests(package) {
                let filters = if options.only.is_empty() {
                    choose(package, &test.name, options.extent()).map(<[_]>::to_vec)
                } else {
                    asked_for(&options.only, &test.name)
                };
                if let Some(filters) = filters {
                    programs.push(program(&test, &filters));
                    tests.push(test);
                }
            }
        }
        let absent = |only: &&Only| !tests.iter().any(|test| test.name == only.program);
        if let Some(Only { program, .. }) = options.only.iter().find(absent) {
            bail!("there is no test program called {program} in lab, lab-guest or lb-userspace");
        }
        if programs.is_empty() {
            bail!("cargo reported no test program that runs in a guest");
        }
        Ok(Self {
            init: built.executable("lab-guest")?,
            helpers: vec![(DAEMON, built.executable(DAEMON)?)],
            tests,
            plan: Plan {
                modules: MODULES.map(str::to_owned).into(),
                environment: [("LAB_PATIENCE", PATIENCE), ("RUST_BACKTRACE", "1")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
                programs,
            },
        })
    }

    fn contents(&self) -> Contents<'_> {
        Contents {
            init: &self.init,
            helpers: &self.helpers,
            tests: &self.tests,
            plan: &self.plan,
        }
    }
}

/// The test programs to be built, by name, if only these are asked for; or else all that there are.
fn to_build(only: &[Only]) -> Vec<&str> {
    if only.is_empty() {
        return vec!["*"];
    }
    // With a test program cargo builds its package's other programs: those of one that is there for sure bring the guest's first process, and
    // those of another the daemon.
    let with_programs = ["guest", "packet"].into_iter();
    with_programs
        .chain(only.iter().map(|only| only.program.as_str()))
        .collect()
}

/// Whether a test program depends on the kernel and so is run, and with which filters; none are needed for all of its tests.
fn choose(package: &str, test: &str, extent: Extent) -> Option<&'static [&'static str]> {
    const ALL: &[&str] = &[];
    let (least, filters) = match (package, test) {
        // It has a guest of its own: see `systemd`.
        ("lab-guest", "systemd") => return None,
        // Programs that watch take a verifier as long again.
        ("lab", "packet") if extent == Extent::Smoke => (
            Extent::Smoke,
            &["forward::", "a_flow_comes_through_all_programs"][..],
        ),
        ("lab", "packet") => (Extent::Smoke, ALL),
        ("lab-guest", _) if extent == Extent::Smoke => {
            (Extent::Smoke, &["vlan::ipip_leaves_by_the_vlan_that"][..])
        }
        ("lab-guest", _) => (
            Extent::Usual,
            &[
                "bond::",
                "virtio_net::ipip",
                "vlan::a_pod_answers_by_the_vlan",
                "vlan::dnat_goes_both_ways_by_a_vlan_within_another_in_ipv6",
                "vlan::ipip_leaves_by_the_vlan_that",
                "vlan::l2_leaves_by_two_vlans_with_what_came_by_one_in_ipv6",
                "vlan::nat_goes_both_ways_by_a_vlan_within_another",
            ][..],
        ),
        ("lab", "packet_flood") => (Extent::Floods, ALL),
        // It compares all of the maps after each packet, which is the processor's work and no kernel's.
        ("lab", "packet_explain") => (
            Extent::Usual,
            &["a_rehearsal_agrees_with_the_packet_in_ipip"][..],
        ),
        // Each start of a daemon takes minutes where all is emulated: of labs, as of VLANs above, one of each way to forward, in one version of IP
        // or the other.
        ("lab", "websocket") => (
            Extent::Usual,
            &[
                "ipip_encapsulates_to_the_next_hop",
                "l2_rewrites_macs_alone_in_ipv6",
            ][..],
        ),
        // Modes whose replies come back: in XDP, and by a classifier where the backend is on the host.
        ("lab", "translation") => (
            Extent::Usual,
            &[
                "nat_hides_clients_in_ipv6",
                "dnat_keeps_clients_addresses_in_ipv6",
            ][..],
        ),
        ("lab", "local") => (
            Extent::Usual,
            &["pods_behind_veths_beside_remote_backends_of_nat"][..],
        ),
        ("lb-userspace", "kernel") => (Extent::Usual, ALL),
        ("lab", _) if test.starts_with("packet_") => (Extent::Usual, ALL),
        _ => return None,
    };
    (extent >= least).then_some(filters)
}

fn program(test: &TestProgram, filters: &[&str]) -> Program {
    let filters = filters.iter().map(|filter| (*filter).to_owned());
    Program {
        name: test.name.clone(),
        path: image::place_of(test),
        // Labs measure time, so tests run one after the other.
        arguments: filters.chain(["--test-threads=1".to_owned()]).collect(),
        limit_s: LIMIT_S,
    }
}

/// Progress, and what a program said that failed.
fn tell(kernel: &str, record: &Record) {
    match record {
        Record::Booted { release } => eprintln!("kernels: {kernel}: {release} is up"),
        Record::Finished(finished) => {
            let said = match finished.tally {
                Some(tally) => format!("{} passed, {} failed", tally.passed, tally.failed),
                None => finished.status.clone(),
            };
            let (program, seconds) = (&finished.program, finished.seconds);
            eprintln!("kernels: {kernel}: {program}: {said} ({seconds:.1} s)");
            if !finished.succeeded {
                let (status, output) = (&finished.status, &finished.output);
                eprintln!("--- {kernel}: {program} ({status})\n{output}");
            }
        }
        Record::Started { .. } | Record::Done => {}
    }
}

/// One line for each kernel.
fn table(outcomes: &[(&str, Outcome)]) -> String {
    let mut text = format!(
        "{:<32}{:>7}{:>8}{:>8}{:>9}\n",
        "kernel", "tests", "passed", "failed", "seconds"
    );
    for (name, outcome) in outcomes {
        let tallies = outcome.finished.iter().filter_map(|program| program.tally);
        let (mut passed, mut failed) = (0, 0);
        for tally in tallies {
            passed += tally.passed;
            failed += tally.failed + tally.ignored;
        }
        let unfinished = outcome
            .finished
            .iter()
            .any(|program| !program.succeeded && program.tally.is_none());
        let remark = match outcome {
            Outcome { crash: Some(_), .. } => "  crashed",
            _ if unfinished => "  a program died",
            _ => "",
        };
        let release = outcome.release.as_deref().unwrap_or(name);
        let seconds = outcome.took.as_secs_f64();
        text += &format!(
            "{release:<32}{:>7}{passed:>8}{failed:>8}{seconds:>9.1}{remark}\n",
            passed + failed
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lab_guest::{Finished, Tally};

    use super::*;

    #[test]
    fn what_depends_on_the_kernel_runs_and_floods_when_asked_for() {
        for (package, test) in [("lab", "packet"), ("lb-userspace", "kernel")] {
            assert_eq!(
                choose(package, test, Extent::Usual),
                Some(&[][..]),
                "{test}"
            );
        }
        for extent in [Extent::Smoke, Extent::Usual, Extent::Floods] {
            assert!(choose("lab", "packet", extent).is_some());
            assert!(choose("lab-guest", "guest", extent).is_some());
            assert_eq!(choose("lab-guest", "systemd", extent), None);
            assert_eq!(choose("lab", "torture", extent), None);
            assert_eq!(choose("lb-userspace", "reconcile_loop", extent), None);
            let floods = choose("lab", "packet_flood", extent).is_some();
            assert_eq!(floods, extent == Extent::Floods);
        }
        assert_eq!(choose("lab", "packet_watch", Extent::Smoke), None);
    }

    #[test]
    fn no_more_is_built_than_is_asked_for() {
        assert_eq!(to_build(&[]), ["*"]);
        let Ok(only) = "packet_watch".parse();
        assert_eq!(to_build(&[only]), ["guest", "packet", "packet_watch"]);
    }

    #[test]
    fn a_program_is_asked_for_as_a_whole_or_by_parts() {
        let of = |texts: &[&str]| -> Vec<Only> {
            let parsed = texts.iter().map(|text| text.parse());
            parsed.map(|Ok(only)| only).collect()
        };
        let only = of(&["guest:bond", "packet", "guest:vlan::l2"]);
        assert_eq!(asked_for(&only, "guest"), Some(vec!["bond", "vlan::l2"]));
        assert_eq!(asked_for(&only, "packet"), Some(vec![]));
        assert_eq!(asked_for(&only, "packet_watch"), None);
        let all = of(&["guest:bond", "guest"]);
        assert_eq!(asked_for(&all, "guest"), Some(vec![]));
    }

    /// The functions of a module, by the names that its tests have.
    fn functions(module: &str, source: &str) -> Vec<String> {
        let names = source.lines().filter_map(|line| {
            let (name, _) = line.strip_prefix("fn ")?.split_once('(')?;
            Some(format!("{module}{name}"))
        });
        names.collect()
    }

    #[test]
    fn of_labs_and_devices_those_run_that_are_named() {
        // By test program and module.
        const SOURCES: [(&str, &str, &str); 7] = [
            (
                "websocket",
                "",
                include_str!("../../tests/tests/websocket.rs"),
            ),
            (
                "translation",
                "",
                include_str!("../../tests/tests/translation.rs"),
            ),
            ("local", "", include_str!("../../tests/tests/local.rs")),
            (
                "packet_explain",
                "",
                include_str!("../../tests/tests/packet_explain.rs"),
            ),
            (
                "guest",
                "bond::",
                include_str!("../../guest/tests/guest/bond.rs"),
            ),
            (
                "guest",
                "virtio_net::",
                include_str!("../../guest/tests/guest/virtio_net.rs"),
            ),
            (
                "guest",
                "vlan::",
                include_str!("../../guest/tests/guest/vlan.rs"),
            ),
        ];
        for (package, test) in [
            ("lab", "websocket"),
            ("lab", "translation"),
            ("lab", "local"),
            ("lab", "packet_explain"),
            ("lab-guest", "guest"),
        ] {
            let sources = SOURCES.iter().filter(|(program, ..)| *program == test);
            let names: Vec<String> = sources
                .flat_map(|(_, module, source)| functions(module, source))
                .collect();
            let filters = choose(package, test, Extent::Usual).unwrap_or_default();
            assert!(!filters.is_empty());
            for filter in filters {
                let found = names.iter().filter(|name| name.contains(filter)).count();
                // Of a test that has another name by now nobody would be told, and one that is not meant takes minutes.
                let is_meant = if filter.ends_with("::") {
                    found > 0
                } else {
                    found == 1
                };
                assert!(is_meant, "{filter} is part of {found} names");
            }
        }
    }

    #[test]
    fn the_table_counts_what_ran_and_says_what_did_not() {
        let finished = |tally: Option<Tally>| Finished {
            program: "one".into(),
            seconds: 1.0,
            tally,
            status: "exit status: 101".into(),
            succeeded: false,
            output: String::new(),
        };
        let tally = Tally {
            passed: 3,
            failed: 1,
            ignored: 1,
        };
        let outcome = Outcome {
            release: Some("6.12.95".into()),
            finished: vec![finished(Some(tally)), finished(None)],
            crash: None,
            took: Duration::from_millis(12_340),
        };
        let crashed = Outcome {
            crash: Some("it went off".into()),
            ..Outcome::default()
        };
        let table = table(&[("6.12", outcome), ("6.1", crashed)]);
        let lines: Vec<Vec<_>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1],
            ["6.12.95", "5", "3", "2", "12.3", "a", "program", "died"]
        );
        assert_eq!(lines[2], ["6.1", "0", "0", "0", "0.0", "crashed"]);
    }
}
