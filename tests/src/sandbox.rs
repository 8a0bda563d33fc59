//! A root directory of its own on a host of the lab: this machine's files, where whatever is written goes to memory and is gone with the host.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::namespace::Namespace;

/// Where it is, in the host's own view.
pub const ROOT: &str = "/run/root";

/// Runs a line of shell on the host, outside of it, and gives what it printed.
///
/// # Errors
/// When it fails.
pub fn outside(host: &Namespace, line: &str) -> Result<String> {
    let mut command = Command::new("sh");
    command.args(["-ec", line]);
    run(host, line, command)
}

/// Runs a line of shell in it, and gives what it printed.
///
/// # Errors
/// When it fails.
pub fn sh(host: &Namespace, line: &str) -> Result<String> {
    run(host, line, command(&["sh", "-ec", line]))
}

/// A command line in it.
#[must_use]
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("chroot");
    command.arg(ROOT).args(arguments).env(
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    command
}

fn run(host: &Namespace, line: &str, command: Command) -> Result<String> {
    let output = host.output(command)?;
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.success(),
        "`{line}` on {} failed ({}): {}{}",
        host.name(),
        output.status,
        words(&output.stdout),
        words(&output.stderr)
    );
    Ok(words(&output.stdout))
}

/// Makes it. `/sys` and `/sys/fs/bpf` are the host's; `/run` and `/tmp` are its own.
///
/// # Errors
/// When the kernel has no overlay file system, or refuses.
pub fn make(host: &Namespace) -> Result<()> {
    outside(
        host,
        &format!(
            "mkdir -p /run/over {ROOT}
             mount -t tmpfs tmpfs /run/over
             mkdir /run/over/upper /run/over/work
             mount -t overlay overlay -o lowerdir=/,upperdir=/run/over/upper,workdir=/run/over/work {ROOT}
             mount -t proc proc {ROOT}/proc
             mount --rbind /sys {ROOT}/sys
             mount --rbind /dev {ROOT}/dev
             mount -t tmpfs tmpfs {ROOT}/run
             mount -t tmpfs tmpfs {ROOT}/tmp
             rm -rf {ROOT}/etc/tether"
        ),
    )
    .map(drop)
}

/// Copies a file of this machine's into it, as a program.
///
/// # Errors
/// When it cannot be read or written.
pub fn put(host: &Namespace, from: &Path, to: &str) -> Result<()> {
    outside(
        host,
        &format!("install -D -m 755 {} {ROOT}{to}", from.display()),
    )
    .map(drop)
}
