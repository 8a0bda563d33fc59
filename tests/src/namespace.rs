//! One host of a lab: a network namespace and a mount namespace that live exactly as long as a thread.
//!
//! Nothing is given a name. The thread unshares both namespaces and then serves closures; no entry is made in `/run/netns`, no
//! file is written outside a tmpfs of its own, and pins go to a bpffs of its own. So whatever ends the process (a return, a
//! panic, Ctrl-C, SIGKILL), the kernel takes the namespaces, the links in them, the mounts and the pins away, and there is
//! nothing for a clean-up to forget. Children die with the thread that started them (`PR_SET_PDEATHSIG`), because a child
//! that outlived the lab would keep its namespaces alive.

use std::fs::File;
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::address;
use crate::mounts;

type Job = Box<dyn FnOnce() + Send>;

/// A host of the lab. Dropping it ends its thread, and with that its children, links, mounts and pins.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    tid: i32,
    net: File,
    mnt: File,
    // A `Sender` behind a lock, so that the value can be shared between threads; `None` once dropping has begun.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    /// Makes a namespace with its loopback up, IPv6 that asks nobody for addresses, and private `/sys`, `/sys/fs/bpf` and `/run`.
    ///
    /// `name` is for people: it appears in messages and as the thread's name.
    ///
    /// # Errors
    /// When the kernel refuses to unshare or mount, which it does to anyone but root.
    pub fn new(name: &str) -> Result<Self> {
        let namespace = Self::start(name, become_host)?;
        for key in ["all", "default", "lo"] {
            // What is known of a fresh namespace depends on `net.core.devconf_inherit_init_net`.
            namespace.sysctl(&format!("net/ipv6/conf/{key}/disable_ipv6"), "0")?;
        }
        for key in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0")?;
            // Link-local addresses are usable at once too, and no interface asks for routers.
            for (what, value) in [("accept_dad", "0"), ("accept_ra", "0")] {
                namespace.sysctl(&format!("net/ipv6/conf/{key}/{what}"), value)?;
            }
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The namespaces that the calling process is in: a host that somebody else has made, such as a pod's. Nothing of it is changed.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn current(name: &str) -> Result<Self> {
        Self::start(name, handles)
    }

    fn start(
        name: &str,
        enter: impl FnOnce() -> Result<(i32, File, File)> + Send + 'static,
    ) -> Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, made) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("lab-{name}"))
            .spawn(move || {
                let _ = ready.send(enter());
                // Runs until the last sender is gone; then the thread, and all that hangs on it, ends.
                for job in inbox {
                    job();
                }
            })
            .context("start a namespace's thread")?;
        let (tid, net, mnt) = made
            .recv()
            .context("the namespace's thread died")?
            .with_context(|| format!("make namespace {name}: a lab needs root"))?;
        Ok(Self {
            name: name.to_owned(),
            tid,
            net,
            mnt,
            jobs: Mutex::new(Some(jobs)),
            thread: Some(thread),
        })
    }

    /// The name given to [`Namespace::new`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the network namespace can be opened while it lives; what `ip link ... netns PATH` takes.
    #[must_use]
    pub fn net_path(&self) -> PathBuf {
        format!("/proc/{}/task/{}/ns/net", std::process::id(), self.tid).into()
    }

    /// The arguments with which `nsenter` enters this host while it lives.
    #[must_use]
    pub fn nsenter_arguments(&self) -> String {
        let task = format!("/proc/{}/task/{}/ns", std::process::id(), self.tid);
        format!("--net={task}/net --mount={task}/mnt")
    }

    /// What identifies the host's network and mount namespaces in the links below `/proc/PID/ns`.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn identity(&self) -> Result<[String; 2]> {
        let read = |file: &File, kind: &str| {
            use std::os::unix::fs::MetadataExt as _;
            anyhow::Ok(format!("{kind}:[{}]", file.metadata()?.ino()))
        };
        Ok([read(&self.net, "net")?, read(&self.mnt, "mnt")?])
    }

    /// Runs `job` on the namespace's own thread and waits for it. A panic in the job is the caller's panic.
    ///
    /// # Panics
    /// When `job` panics.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            let _ = answer.send(catch_unwind(AssertUnwindSafe(job)));
        });
        self.jobs
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .as_ref()
            .and_then(|jobs| jobs.send(job).ok())
            .expect("a namespace's thread lives as long as its value");
        match result.recv() {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => unreachable!("a job always answers"),
        }
    }

    /// Starts a thread inside the namespace: sockets it makes, and threads it starts, belong to this host.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let net = self.net.try_clone()?;
        let mnt = self.mnt.try_clone()?;
        Ok(thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // A thread that shares its working directory with others cannot enter a mount namespace.
                unshare(CloneFlags::CLONE_FS)
                    .and_then(|()| setns(&mnt, CloneFlags::CLONE_NEWNS))
                    .and_then(|()| setns(&net, CloneFlags::CLONE_NEWNET))
                    .expect("enter a namespace that this process made");
                drop((net, mnt));
                body()
            })?)
    }

    /// Starts `command` in the namespace. The child is killed when the namespace's value is dropped or its process dies.
    ///
    /// # Errors
    /// When the program cannot be started; the message names it.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        let what = format!("start {command:?} in {}", self.name);
        self.run(move || {
            // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
            unsafe {
                command.pre_exec(|| {
                    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                    Ok(())
                });
            }
            command.spawn()
        })
        .context(what)
    }

    /// Runs `command` in the namespace to its end and returns what it printed, whatever its status.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn output(&self, mut command: Command) -> Result<Output> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(self.spawn(command)?.wait_with_output()?)
    }

    /// Runs a shell-free command line (split at blanks) and returns its standard output.
    ///
    /// # Errors
    /// When it cannot be started or fails; the message holds the command and what it said.
    pub fn sh(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().context("an empty command line")?);
        command.args(words);
        let output = self.output(command)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "`{line}` in {} failed ({}): {}",
                self.name,
                output.status,
                said.trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs iproute2 commands, one per line and without the leading `ip`, in one process that stops at the first failure.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn ip(&self, batch: &str) -> Result<()> {
        use std::io::Write as _;
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = self
            .spawn(command)
            .context("iproute2 is needed: cargo xtask setup")?;
        child
            .stdin
            .take()
            .context("ip's standard input")?
            .write_all(batch.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "ip -batch in {} failed: {}\n{batch}",
                self.name,
                said.trim()
            );
        }
        Ok(())
    }

    /// Gives `interface` addresses on its link, for use at once: nobody else in a lab could have them, so IPv6 does not look for
    /// duplicates first.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn join(&self, interface: &str, addresses: &[IpAddr]) -> Result<()> {
        let lines = addresses.iter().map(|address| {
            let at_once = if address.is_ipv6() { "nodad" } else { "" };
            let address = address::on_link(*address);
            format!("address add {address} dev {interface} {at_once}\n")
        });
        self.ip(&lines.collect::<String>())
    }

    /// Writes a sysctl, named by its path below `/proc/sys`.
    ///
    /// # Errors
    /// When the kernel has no such knob or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        let value = value.to_owned();
        self.run(move || std::fs::write(&path, &value).with_context(|| format!("write {path}")))
    }

    /// Writes a file in the namespace's view of the file system: below `/run` it is private and vanishes with the lab.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let (path, text) = (path.to_owned(), text.to_owned());
        self.run(move || std::fs::write(&path, text).with_context(|| format!("write {path}")))
    }

    /// The names in a directory of the namespace's view, sorted; an absent directory is an empty one.
    ///
    /// # Errors
    /// When the directory exists and cannot be read.
    pub fn list(&self, path: &str) -> Result<Vec<String>> {
        let path = path.to_owned();
        self.run(move || {
            let entries = match std::fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
                Err(error) => return Err(error).with_context(|| format!("list {path}")),
            };
            let mut names = entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The thread ends when the channel does, after the job it is running.
        self.jobs
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Moves the calling thread into fresh namespaces; returns its thread id and handles of both.
fn become_host() -> Result<(i32, File, File)> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("unshare")?;
    // Without this, what is mounted below would appear on the machine itself.
    mounts::make_private().context("make mounts private")?;
    // sysfs shows the network namespace it was mounted from, so the machine's would show the machine's interfaces.
    for (kind, place) in [("sysfs", "/sys"), ("bpf", "/sys/fs/bpf"), ("tmpfs", "/run")] {
        mount(Some(kind), place, Some(kind), MsFlags::empty(), NONE)
            .with_context(|| format!("mount {kind} on {place}"))?;
    }
    handles()
}

/// The calling thread's id, and handles of its namespaces.
fn handles() -> Result<(i32, File, File)> {
    let net = File::open("/proc/thread-self/ns/net")?;
    let mnt = File::open("/proc/thread-self/ns/mnt")?;
    Ok((nix::unistd::gettid().as_raw(), net, mnt))
}
