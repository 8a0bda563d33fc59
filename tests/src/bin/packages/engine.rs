//! Podman on a host of the lab. Containers have a parent of their own that lives on when the command that made them has ended, so all of it runs in a
//! namespace of processes that ends with the lab, however that ends.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::namespace::Namespace;
use lab::sandbox;
use lab::wait;

/// With a store of its own in the host's `/run`.
const PODMAN: [&str; 9] = [
    "--root",
    "/run/store",
    "--runroot",
    "/run/podman",
    "--storage-driver",
    "vfs",
    "--runtime",
    "runc",
    "--cgroup-manager=cgroupfs",
];

/// Mounts the machine's control groups, of version 1 or 2, which a host's own `/sys` hides, and which every container is put into.
const CONTROL_GROUPS: &str = "
    if grep -qv '^0:' /proc/self/cgroup; then
        mount -t tmpfs tmpfs /sys/fs/cgroup
        grep -v '^0:' /proc/self/cgroup | while IFS=: read -r _ controllers _; do
            place=/sys/fs/cgroup/${controllers#name=}
            mkdir \"$place\"
            case $controllers in name=*) controllers=none,$controllers;; esac
            mount -t cgroup -o \"$controllers\" cgroup \"$place\"
        done
    else
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
    fi";

/// Podman, and all that it starts. Ends them when it is dropped.
pub(crate) struct Engine<'a> {
    host: &'a Namespace,
    /// Its child is the first process of the namespace.
    holder: Child,
    first: u32,
    /// The control group of its containers.
    group: String,
}

impl<'a> Engine<'a> {
    /// Makes the namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn start(host: &'a Namespace) -> Result<Self> {
        sandbox::outside(host, CONTROL_GROUPS)?;
        let mut command = Command::new("unshare");
        command
            .args([
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sleep",
                "infinity",
            ])
            .stdin(Stdio::null());
        let holder = host.spawn(command)?;
        let children = format!("/proc/{0}/task/{0}/children", holder.id());
        let mut engine = Self {
            host,
            holder,
            first: 0,
            group: format!("/tether-image-{}", std::process::id()),
        };
        engine.first = wait::until(
            "the namespace has a process",
            Duration::from_secs(10),
            || {
                let text = std::fs::read_to_string(&children).ok()?;
                let pid = text.trim().parse().ok()?;
                // It mounts its own `/proc` before it becomes that.
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
                (name.trim() == "sleep").then_some(pid)
            },
        )?;
        Ok(engine)
    }

    /// A command line there.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--pid", "--mount", "--target"])
            .arg(self.first.to_string())
            .arg(program);
        command
    }

    /// A podman command.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.inside("podman");
        command.args(PODMAN).args(arguments);
        command
    }

    /// The arguments of `run` that keep containers in a control group which goes with the engine.
    pub(crate) fn group(&self) -> String {
        format!("--cgroup-parent={}", self.group)
    }

    /// Runs a podman command to its end, and gives what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub(crate) fn podman(&self, arguments: &[&str]) -> Result<String> {
        self.said(self.command(arguments))
    }

    /// Runs a line of shell there, and gives what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub(crate) fn sh(&self, line: &str) -> Result<String> {
        let mut command = self.inside("sh");
        command.args(["-ec", line]);
        self.said(command)
    }

    /// What `/proc` says of a container's first process.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn status(&self, container: &str) -> Result<String> {
        let pid = self.podman(&["inspect", "--format", "{{.State.Pid}}", container])?;
        let mut command = self.inside("cat");
        command.arg(format!("/proc/{}/status", pid.trim()));
        self.said(command)
    }

    fn said(&self, command: Command) -> Result<String> {
        let what = format!("{command:?}");
        let output = self.host.output(command)?;
        ensure!(
            output.status.success(),
            "{what}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).context(what)
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let line = format!(
            "find /sys/fs/cgroup -depth -type d -path '*{}*' -exec rmdir {{}} +",
            self.group
        );
        if let Err(error) = sandbox::outside(self.host, &line) {
            eprintln!("control groups are left: {error:#}");
        }
    }
}
