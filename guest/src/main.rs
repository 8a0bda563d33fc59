//! The first process of a guest: mounts what tests expect, has a second process do the work, and powers off.
//!
//! The work is done by a process of its own because the first one is the parent of every orphan, and has to wait for them all.

use std::env;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab_guest::{Finished, INIT, PLAN, Plan, Program, RECORDS, Record, Tally};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, killpg};
use nix::sys::termios::tcdrain;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

/// The argument that makes this program the worker.
const WORK: &str = "work";
/// Where programs write, one after the other.
const OUTPUT: &str = "/run/output";
/// How much of a failed program's output is reported, in bytes from its end.
const OUTPUT_TAIL: u64 = 256 << 10;
/// How often a program is looked at: short against what it takes.
const EVERY: Duration = Duration::from_millis(20);

/// What tests expect to be mounted, in this order.
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("bpf", "/sys/fs/bpf"),
    ("tracefs", "/sys/kernel/tracing"),
];

fn main() -> ExitCode {
    if getpid().as_raw() == 1 {
        if let Err(error) = oversee() {
            eprintln!("{INIT}: {error:#}");
        }
        // Returns only if the kernel refuses, and then it panics because its first process ends.
        let _ = reboot(RebootMode::RB_POWER_OFF);
        return ExitCode::FAILURE;
    }
    let result = if env::args().nth(1).as_deref() == Some(WORK) {
        work()
    } else {
        Err(anyhow::anyhow!(
            "this is the first process of a virtual machine; `cargo xtask kernels` starts it"
        ))
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{INIT}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Mounts, starts the worker, and waits for it and for every orphan.
fn oversee() -> Result<()> {
    const NONE: Option<&str> = None;
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).with_context(|| format!("make {place}"))?;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), NONE)
            .with_context(|| format!("mount {kind} on {place}"))?;
    }
    let worker = Command::new(INIT)
        .arg(WORK)
        .env("PATH", "/usr/sbin:/usr/bin")
        .stdin(Stdio::null())
        .spawn()
        .context("start the worker")?;
    let worker = Pid::from_raw(i32::try_from(worker.id())?);
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) if pid == worker => {
                return Ok(());
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for children"),
        }
    }
}

/// Carries out the plan.
fn work() -> Result<()> {
    let text = fs::read_to_string(PLAN).with_context(|| format!("read {PLAN}"))?;
    let plan: Plan = serde_json::from_str(&text).context(PLAN)?;
    let mut report = Report(
        File::options()
            .write(true)
            .open(RECORDS)
            .with_context(|| format!("open {RECORDS}"))?,
    );
    for module in &plan.modules {
        run("modprobe", &[module])?;
    }
    run("ip", &["link", "set", "lo", "up"])?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's name")?;
    report.write(&Record::Booted {
        release: release.trim().to_owned(),
    })?;
    for program in &plan.programs {
        report.write(&Record::Started {
            program: program.name.clone(),
        })?;
        report.write(&Record::Finished(test(program, &plan)?))?;
    }
    report.write(&Record::Done)
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let line = format!("{program} {}", arguments.join(" "));
    let status = Command::new(program)
        .args(arguments)
        .status()
        .with_context(|| format!("start {line}"))?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

/// The serial port.
struct Report(File);

impl Report {
    fn write(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_string(record)?;
        line.push('\n');
        self.0.write_all(line.as_bytes()).context(RECORDS)?;
        // What is still in the port's buffer when the machine goes off is lost.
        tcdrain(&self.0).context(RECORDS)
    }
}

/// Runs a program to its end, or to the end of its time.
fn test(program: &Program, plan: &Plan) -> Result<Finished> {
    let output = File::options()
        .create(true)
        .append(true)
        .read(true)
        .open(OUTPUT)
        .context(OUTPUT)?;
    output.set_len(0).context(OUTPUT)?;
    let started = Instant::now();
    let mut child = Command::new(&program.path)
        .args(&program.arguments)
        .envs(&plan.environment)
        .current_dir("/lab")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {}", program.path))?;
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let limit = Duration::from_secs(program.limit_s);
    let mut in_time = true;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if in_time && started.elapsed() >= limit {
            in_time = false;
            end(group)?;
        }
        thread::sleep(EVERY);
    };
    let seconds = started.elapsed().as_secs_f64();
    // What the program left running would disturb the next one.
    end(group)?;
    let output = tail(output)?;
    let tally = Tally::find(&output);
    let succeeded = status.success() && tally.is_some_and(|tally| tally.is_success());
    Ok(Finished {
        program: program.name.clone(),
        seconds,
        tally,
        status: if in_time {
            status.to_string()
        } else {
            format!("not done after {limit:?}, and killed")
        },
        succeeded,
        output: if succeeded { String::new() } else { output },
    })
}

/// Kills what is left of a process group.
fn end(group: Pid) -> Result<()> {
    match killpg(group, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => bail!("kill what a test left behind: {error}"),
    }
}

fn tail(mut file: File) -> Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(OUTPUT_TAIL)))?;
    let mut bytes = vec![];
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
