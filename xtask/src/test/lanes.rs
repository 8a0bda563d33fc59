//! The labs, a few at a time: each test program in a process of its own, whose output is printed as a whole when it has ended.

use std::{
    cmp::Reverse,
    env,
    fmt::Write as _,
    fs::{self, File},
    io, iter,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::{prctl::set_pdeathsig, signal::Signal};

use crate::{
    cargo::{self, Built, TestProgram},
    exec,
};

/// How many test programs run at a time. A lab mostly waits, for the next health check or for the end of a drain; but whenever a daemon starts in it, a program
/// is read and verified, which keeps every core busy for a while. CI has two cores: with two lanes one waits while the other starts a daemon, and with more
/// they would wait for each other, and their deadlines would not.
const LANES: usize = 2;

/// Test programs that other labs would disturb, or that would disturb other labs, and why. They come after these, one after the other, and beside them comes what
/// sends nothing to anybody.
const APART: [(&str, &str); 2] = [
    (
        "torture",
        "its storms flood, and it counts who is served meanwhile",
    ),
    (
        "floods",
        "it floods as fast as it can, and each core has one queue for the packets of all namespaces",
    ),
];

/// What the name of a test program that sends nothing to anybody begins with: the kernel runs its programs on packets that it hands over.
const PACKETS: &str = "packet";

/// Test programs that anything beside them would disturb, and why. They come last.
const ALONE: [(&str, &str); 1] = [(
    "cleanup",
    "it looks for its namespaces in every process of the machine, by numbers that are soon those of another lab's",
)];

/// The test programs that take longest, longest first: one that is begun last would keep one lane busy while nothing is left for another. The others take half
/// a minute or less. What a run tells at its end is what to put them in order by.
const LONGEST: [&str; 28] = [
    "kernel",
    "health",
    "upgrade",
    "prometheus",
    "drain",
    "guard",
    "watch",
    "doctor",
    "bench",
    "resize",
    "restart",
    "local",
    "transfer",
    "port_reuse",
    "websocket",
    "vlan",
    "two_interfaces",
    "explain",
    "through",
    "upkeep",
    "narrow",
    "balance",
    "translation",
    "drain_wait",
    "packet_flood",
    "packet",
    "packet_watch",
    "packet_explain",
];

/// How many of the slowest are told at the end.
const TOLD: usize = 15;

/// The environment variable by which labs know how many times longer than usual they are to wait.
const PATIENCE: &str = "LAB_PATIENCE";

/// Runs all integration tests that were built, each test program with these arguments. All of them run, whatever becomes of the first.
///
/// # Errors
/// If there is none, or one cannot be started, or any fails: the message names the tests.
pub(crate) fn run(built: &Built, arguments: &[&str]) -> Result<()> {
    let programs = built.all_integration_tests();
    ensure!(!programs.is_empty(), "cargo reported no test program");
    let outputs = cargo::target_directory()?.join("labs");
    fs::create_dir_all(&outputs).with_context(|| outputs.display().to_string())?;
    eprintln!(
        "labs: {} test programs; until one has ended, what it says is in {}",
        programs.len(),
        outputs.display()
    );
    let runner = Runner { outputs, arguments };

    let plan = Plan::of(programs);
    let beside = |program: &TestProgram| {
        match why(&APART, &program.name) {
            Some(why) => eprintln!("labs: {} begins, beside no other lab: {why}", program.name),
            None => eprintln!("labs: {} begins", program.name),
        }
        runner.run(program, LANES)
    };
    let mut ended = in_lanes(&[], &plan.labs, beside)?;
    ended.append(&mut in_lanes(&plan.apart, &plan.packets, beside)?);
    for program in &plan.alone {
        let why = why(&ALONE, &program.name).unwrap_or_default();
        eprintln!("labs: {} begins, by itself: {why}", program.name);
        ended.push(runner.run(program, 1)?);
    }
    eprint!("{}", slowest(&ended));
    let failures = failures(&ended);
    if !failures.is_empty() {
        bail!("tests fail:\n{failures}");
    }
    Ok(())
}

fn why(reasons: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    let mut reasons = reasons.iter();
    reasons.find(|(of, _)| *of == name).map(|(_, why)| *why)
}

/// What runs beside what, each in the order in which it is begun.
#[derive(Default)]
struct Plan {
    /// In all lanes.
    labs: Vec<TestProgram>,
    /// After these, in one lane.
    apart: Vec<TestProgram>,
    /// In the other lanes meanwhile, and then in all of them.
    packets: Vec<TestProgram>,
    /// After all others, one after the other.
    alone: Vec<TestProgram>,
}

impl Plan {
    fn of(mut programs: Vec<TestProgram>) -> Self {
        programs.sort_by_key(|program| {
            let mut order = LONGEST.into_iter().chain(APART.map(|(name, _)| name));
            let rank = order.position(|name| name == program.name);
            rank.unwrap_or(usize::MAX)
        });
        let mut plan = Self::default();
        for program in programs {
            let name = &program.name;
            let place = if why(&ALONE, name).is_some() {
                &mut plan.alone
            } else if why(&APART, name).is_some() {
                &mut plan.apart
            } else if name.starts_with(PACKETS) {
                &mut plan.packets
            } else {
                &mut plan.labs
            };
            place.push(program);
        }
        plan
    }
}

/// Does `work` for each of `in_turn`, one after the other in one lane, and for each of `items`, begun in their order and as many at a time as there are lanes left.
/// Gives what came of them, in no order.
///
/// # Errors
/// If `work` fails: no more of its lane is begun, and the others go on.
fn in_lanes<T: Sync, R: Send>(
    in_turn: &[T],
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let queue = Mutex::new(items.iter());
    let lane = |own: &[T]| {
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let all = own.iter().chain(iter::from_fn(next));
        all.map(&work).collect::<Result<Vec<R>>>()
    };
    thread::scope(|scope| {
        let own = iter::once(in_turn).chain(iter::repeat(&[][..]));
        let lanes: Vec<_> = own
            .take(LANES)
            .map(|own| scope.spawn(move || lane(own)))
            .collect();
        let mut done = vec![];
        for lane in lanes {
            done.append(&mut lane.join().map_err(|_| anyhow!("a lane panicked"))??);
        }
        Ok(done)
    })
}

/// How test programs are run.
struct Runner<'a> {
    /// The directory of what those say that have not ended.
    outputs: PathBuf,
    arguments: &'a [&'a str],
}

/// What became of one.
struct Ended {
    name: String,
    took: Duration,
    /// The tests that failed, or how it ended; none if it succeeded.
    failure: Option<String>,
}

impl Runner<'_> {
    /// Runs one to its end, while so many run at a time, and prints what it said.
    fn run(&self, program: &TestProgram, at_a_time: usize) -> Result<Ended> {
        let file = program.path.file_name().context("a program has a name")?;
        // And no pipe: who is left behind by a test would keep that open. While the program runs the file can be read.
        let path = self.outputs.join(file);
        let output = File::create(&path).with_context(|| path.display().to_string())?;
        // As `cargo test` does it: in the process group of this too, so that what a terminal sends reaches whatever the program has started.
        let mut command = exec::command(&program.path);
        command
            .args(self.arguments)
            .current_dir(&program.directory)
            .env("CARGO_MANIFEST_DIR", &program.directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("a test program's output")?)
            .stderr(output);
        if at_a_time > 1 && env::var_os(PATIENCE).is_none() {
            command.env(PATIENCE, at_a_time.to_string());
        }
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            // It ends with this, whatever ends that.
            command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
        }
        let begun = Instant::now();
        let status = command
            .status()
            .with_context(|| format!("could not be started: {}", exec::show(&command)))?;
        let took = begun.elapsed();
        let said = take(&path).with_context(|| path.display().to_string())?;
        let ended = Ended {
            name: program.name.clone(),
            took,
            failure: (!status.success()).then(|| match failed_tests(&said) {
                failed if failed.is_empty() => status.to_string(),
                failed => failed.join(", "),
            }),
        };
        tell(&ended, &said);
        Ok(ended)
    }
}

/// The text of a file, which is removed.
fn take(path: &Path) -> io::Result<String> {
    let bytes = fs::read(path)?;
    fs::remove_file(path)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Prints what one said, with nothing of another's in between.
fn tell(ended: &Ended, said: &str) {
    let _whole = io::stdout().lock();
    let how = ended.failure.as_ref().map_or("succeeded", |_| "FAILED");
    let seconds = ended.took.as_secs_f64();
    eprintln!("labs: {} {how} after {seconds:.1} s and said:", ended.name);
    println!("{}", said.trim_end());
}

/// The tests that failed, as the harness lists them at the end of what it prints.
fn failed_tests(said: &str) -> Vec<&str> {
    let Some((_, list)) = said.rsplit_once("\nfailures:\n") else {
        return vec![];
    };
    list.lines()
        .map_while(|line| line.strip_prefix("    "))
        .collect()
}

/// A line for each of the slowest, slowest first.
fn slowest(ended: &[Ended]) -> String {
    let mut by_time: Vec<_> = ended.iter().collect();
    by_time.sort_by_key(|ended| Reverse(ended.took));
    let mut text = format!("{:<24}{:>8}\n", "the slowest", "seconds");
    for Ended { name, took, .. } in by_time.into_iter().take(TOLD) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<24}{:>8.1}", took.as_secs_f64());
    }
    text
}

/// A line for each that failed, with its tests.
fn failures(ended: &[Ended]) -> String {
    let lines = ended.iter().filter_map(|ended| {
        let failure = ended.failure.as_ref()?;
        Some(format!("{}: {failure}", ended.name))
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
    };

    use super::*;

    fn program(name: &str) -> TestProgram {
        TestProgram {
            name: name.to_owned(),
            path: format!("/t/debug/deps/{name}-1").into(),
            directory: "/src/tests".into(),
        }
    }

    fn ended(name: &str, seconds: u64, failure: Option<&str>) -> Ended {
        Ended {
            name: name.to_owned(),
            took: Duration::from_secs(seconds),
            failure: failure.map(str::to_owned),
        }
    }

    /// One that is written otherwise would run among the others, or last, and nobody would notice.
    #[test]
    fn each_name_is_that_of_one_test_program() {
        let mut seen = BTreeSet::new();
        let others = APART.iter().chain(&ALONE);
        for name in LONGEST.iter().chain(others.map(|(name, _)| name)) {
            let found = ["tests/tests", "lb-userspace/tests"]
                .iter()
                .any(|directory| {
                    let path = exec::workspace().join(directory).join(name);
                    path.with_extension("rs").is_file() || path.join("main.rs").is_file()
                });
            assert!(found, "there is no {name}");
            assert!(seen.insert(name), "{name} stands there twice");
        }
    }

    #[test]
    fn the_longest_come_first_and_each_is_beside_none_that_it_would_disturb() {
        let programs = [
            "alerts",
            "cleanup",
            "drain",
            "floods",
            "kernel",
            "lab",
            "packet_taken",
            "packet_flood",
            "torture",
        ];
        let plan = Plan::of(programs.map(program).into());
        let names = |programs: &[TestProgram]| -> Vec<String> {
            programs
                .iter()
                .map(|program| program.name.clone())
                .collect()
        };
        assert_eq!(names(&plan.labs), ["kernel", "drain", "alerts", "lab"]);
        assert_eq!(names(&plan.apart), ["torture", "floods"]);
        assert_eq!(names(&plan.packets), ["packet_flood", "packet_taken"]);
        assert_eq!(names(&plan.alone), ["cleanup"]);
    }

    #[test]
    fn all_is_done_and_a_few_at_a_time() -> Result<()> {
        let items: Vec<usize> = (0..5 * LANES).collect();
        // Nobody goes on before each lane has one.
        let all_lanes = Barrier::new(LANES);
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let mut done = in_lanes(&[], &items, |item| {
            most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
            all_lanes.wait();
            running.fetch_sub(1, SeqCst);
            Ok(*item)
        })?;
        done.sort_unstable();
        assert_eq!(done, items);
        assert_eq!(most.into_inner(), LANES);
        Ok(())
    }

    #[test]
    fn of_those_in_turn_one_runs_at_a_time_and_others_beside_it() -> Result<()> {
        let in_turn = [10, 20, 30];
        let items: Vec<usize> = (0..2 * LANES).collect();
        let running = AtomicUsize::new(0);
        // None of them goes on before another lane has begun one of the others.
        let both = Barrier::new(2);
        let mut done = in_lanes(&in_turn, &items, |item| {
            let is_in_turn = in_turn.contains(item);
            if is_in_turn {
                assert_eq!(running.fetch_add(1, SeqCst), 0, "two in turn at a time");
            }
            if *item == in_turn[0] || *item == 0 {
                both.wait();
            }
            if is_in_turn {
                running.fetch_sub(1, SeqCst);
            }
            Ok(*item)
        })?;
        done.sort_unstable();
        assert_eq!(done, [items, in_turn.into()].concat());
        Ok(())
    }

    #[test]
    fn what_cannot_be_done_is_told() {
        let error = in_lanes(&[], &[1, 2, 3], |item| {
            ensure!(*item != 2, "there is no {item}");
            Ok(())
        });
        let error = error.expect_err("the second fails");
        assert_eq!(error.to_string(), "there is no 2");
    }

    #[test]
    fn a_test_program_is_run_where_its_package_is_and_what_it_says_is_kept_together() -> Result<()>
    {
        const LINE: &str = "test . -ef \"$CARGO_MANIFEST_DIR\"; echo a; echo b >&2; printf '\nfailures:\n    c\n'; exit $1";
        let outputs = env::temp_dir().join(format!("tether-lanes-{}", std::process::id()));
        fs::create_dir_all(&outputs)?;
        // Not this package's, in which this test runs.
        let shell = TestProgram {
            name: "shell".to_owned(),
            path: "/bin/sh".into(),
            directory: exec::workspace().join("tests"),
        };
        let runner = |status| Runner {
            outputs: outputs.clone(),
            arguments: match status {
                0 => &["-ec", LINE, "shell", "0"],
                _ => &["-ec", LINE, "shell", "1"],
            },
        };
        let well = runner(0).run(&shell, 1)?;
        assert_eq!((well.name.as_str(), well.failure), ("shell", None));
        assert_eq!(runner(1).run(&shell, 1)?.failure.as_deref(), Some("c"));
        assert_eq!(fs::read_dir(&outputs)?.count(), 0, "files are left behind");
        fs::remove_dir(&outputs)?;
        Ok(())
    }

    #[test]
    fn the_harness_list_of_failures_is_read() {
        let said = "running 3 tests\ntest a::b ... FAILED\ntest c ... FAILED\n\nfailures:\n\n---- a::b stdout ----\nno\n\n\nfailures:\n    a::b\n    c\n\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 6.95s\n\n";
        assert_eq!(failed_tests(said), ["a::b", "c"]);
        assert_eq!(failed_tests("running 3 tests\ntest a::b ... "), [""; 0]);
    }

    #[test]
    fn who_failed_and_who_was_slow_is_told() {
        let all = [
            ended("drain", 3, None),
            ended("upgrade", 7, Some("signal: 9 (SIGKILL)")),
            ended("lab", 5, Some("a, b")),
        ];
        assert_eq!(failures(&all), "upgrade: signal: 9 (SIGKILL)\nlab: a, b");
        let names = slowest(&all);
        let names = names
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next());
        assert_eq!(names.collect::<Vec<_>>(), ["upgrade", "lab", "drain"]);
        assert_eq!(failures(&all[..1]), "");
    }
}
