//! Steps: each can be shown as the shell command that it is, and done.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::{
    apt,
    linker::{self, Llvm},
    missing::{Missing, Mount},
};
use crate::exec;

/// Packages beside LLVM's own that linking against it takes.
const LLVM_COMPANIONS: [&str; 2] = ["libzstd-dev", "zlib1g-dev"];

/// One change to the machine.
pub(crate) struct Step {
    /// Whether only root can do it.
    pub(crate) as_root: bool,
    action: Action,
}

enum Action {
    Run(Command),
    Write { path: PathBuf, text: String },
}

impl Step {
    pub(crate) fn run(command: Command) -> Self {
        Self {
            as_root: false,
            action: Action::Run(command),
        }
    }

    pub(crate) fn run_as_root(command: Command) -> Self {
        Self {
            as_root: true,
            action: Action::Run(command),
        }
    }

    pub(crate) fn write_as_root(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let action = Action::Write {
            path: path.into(),
            text: text.into(),
        };
        Self {
            as_root: true,
            action,
        }
    }

    /// The step as a shell would take it.
    pub(crate) fn show(&self) -> String {
        match &self.action {
            Action::Run(command) => exec::show(command),
            Action::Write { path, text } => format!("echo '{text}' > {}", path.display()),
        }
    }

    /// The step as an ordinary user would have to type it.
    pub(crate) fn remedy(&self) -> String {
        match &self.action {
            Action::Write { path, text } => format!("echo '{text}' | sudo tee {}", path.display()),
            Action::Run(_) if self.as_root => format!("sudo {}", self.show()),
            Action::Run(_) => self.show(),
        }
    }

    /// Does it.
    ///
    /// # Errors
    /// If it fails; the message shows the step.
    pub(crate) fn perform(&mut self) -> Result<()> {
        match &mut self.action {
            Action::Run(command) => exec::run_aside(command),
            Action::Write { path, text } => fs::write(&*path, format!("{text}\n"))
                .with_context(|| format!("could not write {}", path.display())),
        }
    }
}

/// The packages for what is missing, with the LLVM of version `llvm` if one is to be installed.
pub(crate) fn packages(missing: &Missing, llvm: Option<u32>) -> Vec<String> {
    let mut packages = missing.packages();
    packages.extend(llvm.map(|major| format!("llvm-{major}-dev")));
    if missing.linker.is_some() {
        packages.extend(LLVM_COMPANIONS.map(str::to_owned));
    }
    packages
}

/// Everything that remains to be done once `packages` are known and apt's lists are fresh, in order.
pub(crate) fn steps(missing: &Missing, packages: &[String], llvm: Option<&Llvm>) -> Vec<Step> {
    let mut steps = Vec::new();
    if !packages.is_empty() {
        steps.push(Step::run_as_root(apt::install(packages)));
    }
    if !missing.components.is_empty() {
        let mut rustup = exec::command("rustup");
        rustup.args(["component", "add"]).args(&missing.components);
        steps.push(Step::run(rustup));
    }
    if let Some(llvm) = llvm.filter(|_| missing.linker.is_some()) {
        let mut install = exec::cargo();
        // A target directory that the caller shares between builds is not the place for somebody else's program.
        install
            .env_remove("CARGO_TARGET_DIR")
            .env("LLVM_PREFIX", &llvm.prefix);
        install.args(linker::install_arguments(llvm.major));
        steps.push(Step::run(install));
    }
    for Mount { kind, target } in &missing.mounts {
        let mut mount = exec::command("mount");
        mount.args(["-t", kind, kind, target]);
        steps.push(Step::run_as_root(mount));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking(components: &[&'static str], linker: bool, mounts: &[Mount]) -> Missing {
        Missing {
            components: components.to_vec(),
            linker: linker.then(|| "bpf-linker".to_owned()),
            mounts: mounts.to_vec(),
            ..Missing::nothing()
        }
    }

    fn shown(steps: &[Step]) -> Vec<String> {
        steps.iter().map(Step::show).collect()
    }

    #[test]
    fn nothing_missing_takes_no_step() {
        let missing = Missing::nothing();
        assert!(missing.is_empty());
        assert!(packages(&missing, None).is_empty());
        assert!(steps(&missing, &[], None).is_empty());
    }

    #[test]
    fn llvm_comes_before_the_linker_that_is_built_against_it() {
        let missing = lacking(&["rust-src"], true, &[]);
        let packages = packages(&missing, Some(22));
        assert_eq!(packages, ["llvm-22-dev", "libzstd-dev", "zlib1g-dev"]);
        let steps = shown(&steps(&missing, &packages, Some(&Llvm::of_debian(22))));
        assert_eq!(steps.len(), 3, "{steps:?}");
        assert!(
            steps[0].ends_with(" llvm-22-dev libzstd-dev zlib1g-dev"),
            "{}",
            steps[0]
        );
        assert_eq!(steps[1], "rustup component add rust-src");
        assert!(
            steps[2].starts_with("LLVM_PREFIX=/usr/lib/llvm-22 "),
            "{}",
            steps[2]
        );
        assert!(steps[2].ends_with("--features=llvm-22"), "{}", steps[2]);
    }

    #[test]
    fn a_linker_that_fits_is_left_alone() {
        let steps = steps(
            &lacking(&["clippy"], false, &[]),
            &[],
            Some(&Llvm::of_debian(22)),
        );
        assert_eq!(shown(&steps), ["rustup component add clippy"]);
    }

    #[test]
    fn remedies_ask_for_root_where_it_is_needed_and_only_there() {
        let bpffs = Mount {
            kind: "bpf",
            target: "/sys/fs/bpf",
        };
        let steps = steps(&lacking(&["rust-src"], false, &[bpffs]), &[], None);
        let remedies: Vec<_> = steps.iter().map(Step::remedy).collect();
        assert_eq!(
            remedies,
            [
                "rustup component add rust-src",
                "sudo mount -t bpf bpf /sys/fs/bpf"
            ]
        );
    }

    #[test]
    fn a_file_is_shown_as_the_command_that_writes_it() {
        let step = Step::write_as_root("/etc/list", "deb x");
        assert_eq!(step.show(), "echo 'deb x' > /etc/list");
        assert_eq!(step.remedy(), "echo 'deb x' | sudo tee /etc/list");
    }
}
