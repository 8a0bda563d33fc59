//! One guest: an emulated machine that lives as long as its value, and what it reports.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lab_guest::{CARDS, Finished, Plan, Record};
use nix::sys::{prctl::set_pdeathsig, signal::Signal};

use super::{emulator::Emulator, kernel::Bootable};
use crate::exec;

/// From power-on to the first record, on a machine that is busy with other things: a guest has what these leave of a core, which may be nothing for minutes.
const BOOT: Duration = Duration::from_secs(15 * 60);
/// For what a guest does beside the programs' own time.
const SLACK: Duration = Duration::from_secs(60);
/// Enough for the file system, twice while it is unpacked, and for the tests' largest tables.
const MEMORY: &str = "2G";
/// What the kernel is told. Its console is the first serial port; it speaks of warnings and worse only; and when it panics, it
/// ends. Nothing here is meant to be safe from anybody.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr random.trust_cpu=1";

/// What became of a guest.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The kernel's release, once it was up.
    pub(crate) release: Option<String>,
    /// The programs that ended, in order.
    pub(crate) finished: Vec<Finished>,
    /// Why it ended before its work was done.
    pub(crate) crash: Option<String>,
    /// How long all of it took.
    pub(crate) took: Duration,
}

impl Outcome {
    /// Whether everything ran and succeeded.
    pub(crate) fn is_success(&self) -> bool {
        self.crash.is_none() && self.finished.iter().all(|program| program.succeeded)
    }
}

/// The command that boots a guest. Its console goes to a file, as does what the emulator has to say; its records go to standard
/// output.
///
/// # Errors
/// If the file cannot be made.
pub(crate) fn command(
    emulator: &Emulator,
    kernel: &Bootable,
    archive: &Path,
    console: &Path,
) -> Result<Command> {
    let mut command = emulator.command();
    command.stderr(File::create(console).with_context(|| console.display().to_string())?);
    // In software, whatever this machine offers: its KVM may be one that distribution kernels do not boot with. One processor, so
    // that a busy machine is no busier than that.
    command.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max"]);
    command.args(["-smp", "1", "-m", MEMORY]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    command.args(["-display", "none"]);
    command.arg("-chardev").arg(format!(
        "file,id=console,append=on,path={}",
        // A comma would end the path.
        console.display().to_string().replace(',', ",,")
    ));
    command.args(["-serial", "chardev:console", "-serial", "stdio"]);
    for (index, address) in CARDS.iter().enumerate() {
        command
            .arg("-netdev")
            .arg(format!("hubport,id=port{index},hubid=0"));
        // Without the ROM that would boot from it.
        command.arg("-device").arg(format!(
            "virtio-net-pci,netdev=port{index},mac={address},romfile="
        ));
    }
    command.arg("-kernel").arg(&kernel.image);
    command.arg("-initrd").arg(archive);
    command.args(["-append", COMMAND_LINE]);
    Ok(command)
}

/// Boots a guest and listens to it until it is off. `say` is told each record.
///
/// # Errors
/// If it cannot be started.
pub(crate) fn run(
    command: &mut Command,
    plan: &Plan,
    mut say: impl FnMut(&Record),
) -> Result<Outcome> {
    let started = Instant::now();
    let mut guest = Guest::start(command)?;
    let (sender, records) = mpsc::channel();
    let stream = guest.0.stdout.take().context("the guest's records")?;
    // Ends with the stream, which ends with the guest.
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });

    let mut outcome = Outcome::default();
    let mut patience = BOOT;
    outcome.crash = loop {
        let line = match records.recv_timeout(patience) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                break Some(format!("it said nothing for {patience:?}"));
            }
            Err(RecvTimeoutError::Disconnected) => {
                break Some("it went off before its work was done".to_owned());
            }
        };
        let record: Record = match serde_json::from_str(&line) {
            Ok(record) => record,
            Err(error) => break Some(format!("it reported what is no record ({error}): {line}")),
        };
        say(&record);
        patience = SLACK;
        match record {
            Record::Booted { release } => outcome.release = Some(release),
            Record::Started { program } => {
                let limits = plan.programs.iter().filter(|p| p.name == program);
                patience += Duration::from_secs(limits.map(|p| p.limit_s).sum());
            }
            Record::Finished(finished) => outcome.finished.push(finished),
            Record::Done => break None,
        }
    };
    drop(guest);
    if outcome.crash.is_none() && outcome.finished.len() != plan.programs.len() {
        outcome.crash = Some("it left programs out".to_owned());
    }
    outcome.took = started.elapsed();
    Ok(outcome)
}

/// The emulator's process. Dropping it kills it; so does this process's end, whatever that is.
struct Guest(Child);

impl Guest {
    fn start(command: &mut Command) -> Result<Self> {
        let shown = exec::show(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
        }
        let child = command
            .spawn()
            .with_context(|| format!("could not be started: {shown}"))?;
        Ok(Self(child))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may be off already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The last lines of a console.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn last_words(console: &Path, lines: usize) -> Result<String> {
    let bytes = fs::read(console).with_context(|| console.display().to_string())?;
    let text = String::from_utf8_lossy(&bytes).replace('\r', "");
    let all: Vec<_> = text.lines().collect();
    Ok(all[all.len().saturating_sub(lines)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use lab_guest::{Program, Tally};

    use super::*;

    fn plan() -> Plan {
        let program = Program {
            name: "one".into(),
            path: "/lab/deps/one".into(),
            arguments: vec![],
            limit_s: 5,
        };
        Plan {
            programs: vec![program],
            ..Plan::default()
        }
    }

    fn finished(succeeded: bool) -> Record {
        Record::Finished(Finished {
            program: "one".into(),
            seconds: 1.0,
            tally: Some(Tally::default()),
            status: "exit status: 0".into(),
            succeeded,
            output: String::new(),
        })
    }

    /// What is made of a guest that says this and ends.
    fn hear(records: &[Record]) -> Outcome {
        let lines: Vec<_> = records
            .iter()
            .map(|record| serde_json::to_string(record).unwrap())
            .collect();
        let mut printf = Command::new("printf");
        printf.arg("%s\r\n").args(lines);
        run(&mut printf, &plan(), |_| {}).unwrap()
    }

    fn booted() -> Record {
        Record::Booted {
            release: "6.1.0".into(),
        }
    }

    #[test]
    fn a_guest_that_does_its_work_is_a_success_if_its_programs_are() {
        let outcome = hear(&[booted(), finished(true), Record::Done]);
        assert!(outcome.is_success(), "{outcome:?}");
        assert_eq!(outcome.release.as_deref(), Some("6.1.0"));
        assert!(!hear(&[booted(), finished(false), Record::Done]).is_success());
    }

    #[test]
    fn a_guest_that_falls_silent_has_crashed() {
        for records in [&[][..], &[booted()], &[booted(), finished(true)]] {
            let outcome = hear(records);
            assert!(
                outcome.crash.is_some() && !outcome.is_success(),
                "{outcome:?}"
            );
        }
    }

    #[test]
    fn a_guest_that_leaves_a_program_out_has_failed() {
        assert!(!hear(&[booted(), Record::Done]).is_success());
    }
}
