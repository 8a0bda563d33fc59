//! Running other programs: one way to start them, and errors that show the whole command line.

use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Error, Result, bail};

/// Where `cargo install` and rustup put programs, if that can be told.
fn cargo_bin_dir() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))?;
    Some(home.join("bin"))
}

/// The search path that every child gets: cargo's own programs (bpf-linker) need not be on the caller's, and neither need
/// the system's, which an ordinary user's path leaves out.
fn search_path() -> Vec<PathBuf> {
    let mut path: Vec<PathBuf> = env::var_os("PATH")
        .map(|path| env::split_paths(&path).collect())
        .unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    for directory in cargo_bin_dir().into_iter().chain(system) {
        if !path.contains(&directory) {
            path.push(directory);
        }
    }
    path
}

/// Finds `program` on the [search path](search_path).
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    search_path()
        .into_iter()
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// The workspace's root.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// A command with the search path set and without what `cargo run` told this process about itself: the package variables would
/// reach the build scripts of a cargo started from here, and make them run again.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    if let Ok(path) = env::join_paths(search_path()) {
        command.env("PATH", path);
    }
    for (name, _) in env::vars_os() {
        let own = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        if own {
            command.env_remove(name);
        }
    }
    command
}

/// The cargo that runs this, at the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = command(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(workspace());
    command
}

/// Runs a command to its end.
///
/// # Errors
/// If it cannot be started or does not succeed; the message is the whole command line.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("could not be started: {}", show(command)))?;
    if !status.success() {
        bail!("{status}: {}", show(command));
    }
    Ok(())
}

/// Runs a command to its end with its output on stderr and nothing to read.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_aside(command: &mut Command) -> Result<()> {
    let stderr = io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .context("stderr cannot be duplicated")?;
    run(command.stdin(Stdio::null()).stdout(stderr))
}

/// Runs a command and returns what it printed; its stderr passes through.
///
/// # Errors
/// As [`run`], or if it did not print UTF-8.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("could not be started: {}", show(command)))?;
    if !output.status.success() {
        bail!("{}: {}", output.status, show(command));
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of: {}", show(command)))
}

/// Becomes the command, so that signals and the exit status are its own. Returns only if that fails.
pub(crate) fn become_command(command: &mut Command) -> Error {
    let error = command.exec();
    Error::new(error).context(format!("could not be started: {}", show(command)))
}

/// The command as a shell would take it.
pub(crate) fn show(command: &Command) -> String {
    let environment = command.get_envs().filter_map(|(name, value)| {
        let value = value.filter(|_| name != "PATH")?;
        Some(format!("{}={}", name.display(), quote(value)))
    });
    let words = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(quote);
    environment.chain(words).collect::<Vec<_>>().join(" ")
}

fn quote(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_shell_takes_it() {
        let mut command = Command::new("cargo");
        command
            .env("PATH", "/bin")
            .env("RUSTFLAGS", "--cfg loom")
            .env_remove("HOME");
        command.args(["test", "it's", "", "--features=a,b"]);
        assert_eq!(
            show(&command),
            r"RUSTFLAGS='--cfg loom' cargo test 'it'\''s' '' --features=a,b"
        );
    }

    #[test]
    fn a_failure_names_the_command_and_its_status() {
        let error =
            run(Command::new("sh").args(["-c", "exit 3"])).expect_err("exit 3 is a failure");
        assert_eq!(error.to_string(), "exit status: 3: sh -c 'exit 3'");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run(&mut Command::new("/nowhere/program")).expect_err("it does not exist");
        assert_eq!(error.to_string(), "could not be started: /nowhere/program");
    }
}
