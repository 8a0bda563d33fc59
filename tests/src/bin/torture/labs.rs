//! Several labs at once, each in a process of this same program that dies with it.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;
use lab::address::Family;
use serde::de::DeserializeOwned;

/// Runs this program with `--alone`, a mode, a family and `arguments` of a lab's number, for each of `labs`, all at once. Gives what
/// each prints on its last line. Each gets a seed of its own; `LAB_SEED` seeds these.
///
/// # Errors
/// When one cannot be started; or, once all have ended, if one has failed or printed something else.
pub(crate) fn run<T: DeserializeOwned>(
    labs: &[(&str, Family)],
    arguments: impl Fn(usize) -> Vec<String>,
) -> Result<Vec<T>> {
    let mut random = lab::random::Random::from_environment();
    let program = std::env::current_exe().context("find this program")?;
    let mut children = vec![];
    for (number, (mode, family)) in labs.iter().enumerate() {
        let family = family
            .to_possible_value()
            .context("every family has a name")?;
        let mut command = Command::new(&program);
        command
            .args(["--alone", "--mode", mode, "--family", family.get_name()])
            .args(arguments(number))
            .env("LAB_SEED", (random.bits() >> 32).to_string())
            .stdout(Stdio::piped());
        if std::env::var_os("LAB_PATIENCE").is_none() {
            // They share the machine.
            command.env("LAB_PATIENCE", labs.len().to_string());
        }
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                Ok(())
            });
        }
        let name = format!("{mode} {}", family.get_name());
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        children.push(Running { name, child });
    }
    let outcomes: Vec<Result<T>> = children.iter_mut().map(Running::outcome).collect();
    for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        eprintln!("{error:#}");
    }
    outcomes.into_iter().collect()
}

/// A process that is killed when this is dropped.
struct Running {
    name: String,
    child: Child,
}

impl Running {
    fn outcome<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut text = String::new();
        let output = self.child.stdout.as_mut().context("its standard output")?;
        output.read_to_string(&mut text)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the lab {} failed ({status})", self.name);
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("not what came of a lab: {last:?}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
