//! `cargo xtask kernels`: the tests that depend on the kernel, in an emulated machine for each of Debian's kernels.
//!
//! Packages are fetched with a configuration of our own and unpacked below the target directory: nothing is installed, and this
//! machine's apt is not touched. Guests are emulated in software, have their file system in memory, and end with this process.

mod apt;
mod cache;
mod choice;
mod cpio;
mod emulator;
mod guest;
mod image;
mod kernel;
pub(crate) mod systemd;

use std::{fs, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lab_guest::Record;

use self::{
    cache::Cache,
    choice::{Only, Tests},
    emulator::Emulator,
    guest::Outcome,
    kernel::{Bootable, Kernel},
};
use crate::{exec, setup};

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
