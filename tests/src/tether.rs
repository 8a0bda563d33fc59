//! The daemon under test: a child process on the balancer's host, and the command line beside it.

use std::fmt::Display;
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lb_userspace::dataplane::kernel::bpf::Link;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::namespace::Namespace;
use crate::peer::client::Connection;
use crate::peer::crowd;
use crate::running::Running;
use crate::status::Status;
use crate::wait;

/// Where the configuration is, in the balancer's own `/run`.
pub const CONFIG_PATH: &str = "/run/tether.toml";
/// The daemon's default pin directory, in the balancer's own bpffs.
pub const PINS: &str = "/sys/fs/bpf/tether";

/// The environment variable that tells the failpoint at which the daemon under test ends itself: its number, counted from 1 as they are
/// passed, or its name.
pub const DIE_AT: &str = "TETHER_DIE_AT";
/// The environment variable that names a file from whose existence on failpoints count.
pub const DIES_ONCE: &str = "TETHER_DIES_ONCE";
/// The environment variable that names a file during whose existence the daemon under test applies nothing: its reconciler hangs before an operation.
pub const HANGS_WHILE: &str = "TETHER_HANGS_WHILE";
/// What one that ends itself says then, before the place.
pub const DEATH: &str = "ends at a failpoint: ";

/// Loading, verifying and the first health results, on a busy machine, which verifies for many seconds; and a migration or a resize before.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The `tether` that tests run: a program of this package beside the running one, so that Cargo builds it with them.
///
/// # Errors
/// When it has not been built; the message says how to.
pub fn program() -> Result<PathBuf> {
    beside("tether-under-test", "")
}

/// The same program with another version of the layouts, built with feature `next-abi`.
///
/// # Errors
/// When it has not been built; the message says how to.
pub fn program_of_next_version() -> Result<PathBuf> {
    beside("tether-of-next-version", " --features next-abi")
}

fn beside(name: &str, features: &str) -> Result<PathBuf> {
    let mut folder = std::env::current_exe().context("find the running program")?;
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let program = folder.join(name);
    ensure!(
        program.exists(),
        "{} is missing; build it: cargo build --package lab --bin {name}{features}",
        program.display()
    );
    Ok(program)
}

/// A `tether` command line for any host of a lab.
///
/// # Errors
/// See [`program`].
pub fn command(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(program()?);
    command.args(arguments);
    Ok(command)
}

/// What a command has said on its standard error.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a `tether` command line on `host` and returns its standard output.
///
/// # Errors
/// When it fails; the message holds what it said.
pub fn succeed(host: &Namespace, arguments: &[&str]) -> Result<String> {
    let output = host.output(command(arguments)?)?;
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        bail!(
            "`tether {}` on {} failed ({}): {}{}",
            arguments.join(" "),
            host.name(),
            output.status,
            words(&output.stdout),
            words(&output.stderr),
        );
    }
    Ok(words(&output.stdout))
}

/// The id of the link that holds the program on an interface of `host`: another one if that was ever detached.
///
/// # Errors
/// When the program is not attached there.
pub fn link_id(host: &Namespace, interface: &str) -> Result<u32> {
    let pin = Path::new(PINS).join(format!("link-{interface}"));
    let info = host
        .run(move || Link::from_pin(&pin)?.info())
        .with_context(|| format!("open the link of {interface}"))?;
    ensure!(info.ifindex != 0, "the link of {interface} is on nothing");
    Ok(info.id)
}

/// The daemon. Dropping it kills it.
#[derive(Debug)]
pub struct Tether {
    host: Arc<Namespace>,
    child: Option<Child>,
    program: PathBuf,
    log: Arc<Mutex<Vec<String>>>,
}

impl Tether {
    /// Writes `config` on `host` and starts the daemon with it. It may not be ready yet: see [`Tether::wait_ready`].
    ///
    /// # Errors
    /// When the program is missing.
    pub fn start(host: &Arc<Namespace>, config: &str) -> Result<Self> {
        host.write(CONFIG_PATH, config)?;
        let mut tether = Self {
            host: host.clone(),
            child: None,
            program: program()?,
            log: Arc::new(Mutex::new(vec![])),
        };
        tether.restart()?;
        Ok(tether)
    }

    /// Has another program be the daemon from its next start on.
    pub fn become_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// Starts the daemon again after its end.
    ///
    /// # Errors
    /// When it still runs or cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        self.launch(Command::new(&self.program))
    }

    /// The same with no more rights than README.md names, in the bounding set too, so that none comes back.
    ///
    /// # Errors
    /// As [`Tether::restart`].
    pub fn restart_with_least_rights(&mut self) -> Result<()> {
        let mut command = Command::new("setpriv");
        command.args([
            "--bounding-set=-all,+bpf,+net_admin,+perfmon,+net_raw",
            "--inh-caps=-all",
        ]);
        command.arg(&self.program);
        self.launch(command)
    }

    /// The same without one right, named as `setpriv` does: `net_raw`.
    ///
    /// # Errors
    /// As [`Tether::restart`].
    pub fn restart_without(&mut self, right: &str) -> Result<()> {
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--bounding-set=-{right}"))
            .arg("--inh-caps=-all")
            .arg(&self.program);
        self.launch(command)
    }

    /// The same with a daemon that ends itself at a failpoint: the one of that number, counted from 1 as they are passed, or the first of
    /// that name.
    ///
    /// # Errors
    /// As [`Tether::restart`].
    pub fn restart_to_die(&mut self, failpoint: impl Display) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.env(DIE_AT, failpoint.to_string());
        self.launch(command)
    }

    /// The same with a daemon that counts failpoints from when there is a file in its view of the file system: so that it ends at something
    /// that it was told meanwhile.
    ///
    /// # Errors
    /// As [`Tether::restart`].
    pub fn restart_to_die_once(&mut self, failpoint: impl Display, file: &str) -> Result<()> {
        let mut command = Command::new(&self.program);
        command
            .env(DIE_AT, failpoint.to_string())
            .env(DIES_ONCE, file);
        self.launch(command)
    }

    /// The same with a daemon whose reconciler hangs before it applies anything, while there is a file in the daemon's view of the file system.
    ///
    /// # Errors
    /// As [`Tether::restart`].
    pub fn restart_to_hang(&mut self, file: &str) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.env(HANGS_WHILE, file);
        self.launch(command)
    }

    fn launch(&mut self, mut command: Command) -> Result<()> {
        ensure!(self.child.is_none(), "the daemon still runs");
        self.lock_log().clear();
        command
            .args(["run", "--config", CONFIG_PATH, "--log-format", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.host.spawn(command)?;
        self.collect(
            child
                .stdout
                .take()
                .context("the daemon's standard output")?,
        )?;
        self.collect(child.stderr.take().context("the daemon's standard error")?)?;
        self.child = Some(child);
        Ok(())
    }

    fn collect(&self, stream: impl Read + Send + 'static) -> Result<()> {
        let log = self.log.clone();
        std::thread::Builder::new()
            .name("lab-log".into())
            .spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    log.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(line);
                }
            })?;
        Ok(())
    }

    fn lock_log(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the daemon has logged since its last start.
    #[must_use]
    pub fn log(&self) -> String {
        self.lock_log().join("\n")
    }

    /// Waits until the daemon says that its first application is complete.
    ///
    /// # Errors
    /// When it ends, or does not get there; the message holds its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = wait::until("the daemon is ready", READY_WITHIN, || {
            let ended = match self.child.as_mut().map(Child::try_wait) {
                Some(Ok(None)) => None,
                other => Some(format!("{other:?}")),
            };
            if self.is_ready() {
                Some(Ok(()))
            } else {
                ended.map(Err)
            }
        });
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(ended)) => bail!(
                "the daemon ended ({ended}) before it was ready:\n{}",
                self.log()
            ),
            Err(late) => Err(late.context(self.log())),
        }
    }

    /// Waits until the daemon has ended by itself, or `enough` says that it need not. Gives the failpoint that it ended at, if it did.
    ///
    /// # Errors
    /// When it ends otherwise than at a failpoint, or `deadline` passes.
    pub fn wait_death(
        &mut self,
        deadline: Duration,
        mut enough: impl FnMut(&Self) -> bool,
    ) -> Result<Option<String>> {
        let ended = wait::until("the daemon ends, or need not", deadline, || {
            let ended = match self.child.as_mut().map(Child::try_wait) {
                Some(Ok(None)) => None,
                _ => Some(true),
            };
            ended.or_else(|| enough(self).then_some(false))
        });
        if !ended.with_context(|| self.log())? {
            return Ok(None);
        }
        self.child = None;
        let place = wait::until("its last words", Duration::from_secs(5), || {
            let log = self.lock_log();
            log.iter()
                .find_map(|line| line.strip_prefix(DEATH).map(str::to_owned))
        });
        place.with_context(|| self.log()).map(Some)
    }

    /// Whether the daemon has said that its first application is complete.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock_log().iter().any(|line| is_ready(line))
    }

    /// The daemon's process id.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the daemon does not run")?.id())
    }

    /// Memory of the daemon's own, in KiB: what the kernel calls anonymous, so that of maps is not in it.
    ///
    /// # Errors
    /// When it does not run.
    pub fn own_memory_kib(&self) -> Result<u64> {
        let file = format!("/proc/{}/status", self.pid()?);
        let text = fs::read_to_string(file).context("the daemon's memory")?;
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(number.context("the daemon's memory")?.trim().parse()?)
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.pid()?)?), signal).context("signal the daemon")
    }

    /// Kills the daemon as `kill -9` does, and waits for its end.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL).map(drop)
    }

    /// Asks the daemon to stop, as a service manager does, and waits for its end.
    ///
    /// # Errors
    /// When it does not run.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGTERM)
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        let child = self.child.as_mut().context("the daemon does not run")?;
        let status = wait::until("the daemon ends", Duration::from_secs(10), || {
            child.try_wait().transpose()
        })??;
        self.child = None;
        Ok(status)
    }

    /// Puts another configuration into the file and has the daemon read it; returns when it is in force.
    ///
    /// # Errors
    /// When it is refused or does not come into force.
    pub fn reload(&self, config: &str) -> Result<Status> {
        let before = self.status()?.generation;
        self.host.write(CONFIG_PATH, config)?;
        self.signal(Signal::SIGHUP)?;
        wait::until_seen(
            "the new configuration is in force",
            Duration::from_secs(10),
            || self.status(),
            |now| {
                now.generation.accepted > before.accepted
                    && now.generation.applied == now.generation.accepted
            },
        )
    }

    /// Runs another `tether` command on the daemon's host and returns its standard output.
    ///
    /// # Errors
    /// When it fails.
    pub fn succeed(&self, arguments: &[&str]) -> Result<String> {
        succeed(&self.host, arguments)
    }

    /// Runs another `tether` command on the daemon's host and returns whatever came of it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        self.host.output(command(arguments)?)
    }

    /// Starts another `tether` command on the daemon's host.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn begin(&self, arguments: &[&str]) -> Result<Running> {
        Running::start(&self.host, command(arguments)?)
    }

    /// `tether status --json`.
    ///
    /// # Errors
    /// When the daemon does not answer, or not in the agreed form.
    pub fn status(&self) -> Result<Status> {
        let text = self.succeed(&["status", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("not a status: {text}"))
    }

    /// The metrics, as a scrape gets them.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn metrics(&self) -> Result<String> {
        self.host.run(|| -> Result<String> {
            let mut stream = TcpStream::connect("127.0.0.1:9477")?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text.split_once("\r\n\r\n").context("a body")?.1.to_owned())
        })
    }

    /// How many flows of the lab's service have ended by a cause, as the metrics have it.
    ///
    /// # Errors
    /// When the daemon does not answer, or knows no such cause.
    pub fn flow_ends(&self, cause: &str) -> Result<u64> {
        let metrics = self.metrics()?;
        let label = format!("cause=\"{cause}\"}} ");
        let number = metrics
            .lines()
            .filter(|line| line.starts_with("tether_service_flow_ends_total{"))
            .find_map(|line| line.split_once(&label))
            .with_context(|| format!("no flow ends by {cause}: {metrics}"))?
            .1;
        number.parse().with_context(|| number.to_owned())
    }

    /// Waits until the status satisfies `wanted`, and returns it.
    ///
    /// # Errors
    /// When `deadline` passes first; the message holds the last status.
    pub fn wait_status(
        &self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        wait::until_seen(what, deadline, || self.status(), wanted)
    }

    /// Waits until the status counts each open connection as a live flow of its backend, and returns it.
    ///
    /// # Errors
    /// As [`Tether::wait_status`].
    pub fn wait_counted(&self, connections: &[Connection], deadline: Duration) -> Result<Status> {
        let spread = crowd::spread(connections);
        self.wait_status("every flow is counted at its backend", deadline, |status| {
            spread.iter().all(|(name, share)| {
                let flows = status.backend(name).map(|backend| backend.flows);
                flows.is_some_and(|flows| flows.live() == *share as u64)
            })
        })
    }

    /// Those live flows that more arguments of `tether flows` ask for, as it tells them with `--json`.
    ///
    /// # Errors
    /// When the daemon does not answer, or not in the agreed form.
    pub fn flows(&self, more: &[&str]) -> Result<Vec<Value>> {
        let arguments = [&["flows", "--json", "--state", "young,pin"], more].concat();
        json_lines(&self.succeed(&arguments)?)
    }

    /// Waits until so many live flows are listed, and returns them.
    ///
    /// # Errors
    /// When `deadline` passes first; the message holds what was listed last.
    pub fn wait_flows(&self, count: usize, deadline: Duration) -> Result<Vec<Value>> {
        wait::until_seen(
            "all flows are listed",
            deadline,
            || self.flows(&[]),
            |flows| flows.len() == count,
        )
    }
}

impl Drop for Tether {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What is told as one JSON value a line.
///
/// # Errors
/// When a line is none; the message is the line.
pub fn json_lines(text: &str) -> Result<Vec<Value>> {
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

fn is_ready(line: &str) -> bool {
    let event: Option<Value> = serde_json::from_str(line).ok();
    event.is_some_and(|event| event["message"] == "ready")
}
