//! What cargo reports about a build: where it put executables and build scripts' output.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::exec;

/// The parts of cargo's JSON messages that are used here.
#[derive(Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
enum Message {
    BuildScriptExecuted {
        package_id: String,
        out_dir: PathBuf,
    },
    CompilerArtifact {
        package_id: String,
        manifest_path: PathBuf,
        target: Target,
        profile: Profile,
        executable: Option<PathBuf>,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    /// Whether it was built with the test harness.
    test: bool,
}

/// What makes a `cargo build` of a program in the whole workspace compile dependencies as `cargo test` does, so that both share them: features that only tests
/// want of a dependency it has only when a test is built too. This one is empty in an ordinary build.
pub(crate) const AS_FOR_TESTS: [&str; 2] = ["--test", "loom"];

/// A program that runs the tests of one file or directory of a package's `tests`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TestProgram {
    /// Name of the target, which is that of the file.
    pub(crate) name: String,
    /// Where it was built.
    pub(crate) path: PathBuf,
    /// Its package's directory, in which `cargo test` runs it.
    pub(crate) directory: PathBuf,
}

/// What a build left behind.
pub(crate) struct Built {
    messages: Vec<Message>,
}

impl Built {
    /// Runs a `cargo build` or `cargo test --no-run` command and keeps its messages. Diagnostics go to stderr, as without this.
    ///
    /// # Errors
    /// If the build fails, or cargo prints what cannot be understood.
    pub(crate) fn by(command: &mut Command) -> Result<Self> {
        let text = exec::output(command.arg("--message-format=json-render-diagnostics"))?;
        Self::parse(&text).with_context(|| format!("messages of: {}", exec::show(command)))
    }

    fn parse(text: &str) -> Result<Self> {
        let messages = text
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("message: {line}")))
            .collect::<Result<_>>()?;
        Ok(Self { messages })
    }

    /// The executable of the binary target `name`.
    pub(crate) fn executable(&self, name: &str) -> Result<PathBuf> {
        let found = self.messages.iter().find_map(|message| match message {
            Message::CompilerArtifact {
                target,
                profile: Profile { test: false },
                executable: Some(path),
                ..
            } if target.name == name => Some(path.clone()),
            _ => None,
        });
        found.with_context(|| format!("cargo reported no executable named {name}"))
    }

    /// The programs of the integration tests of workspace member `package`, by name.
    pub(crate) fn integration_tests(&self, package: &str) -> Vec<TestProgram> {
        self.integration_tests_of(|package_id| is_member(package_id, package))
    }

    /// The programs of all integration tests that were built, by name.
    pub(crate) fn all_integration_tests(&self) -> Vec<TestProgram> {
        self.integration_tests_of(|_| true)
    }

    fn integration_tests_of(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<TestProgram> {
        let programs = self.messages.iter().filter_map(|message| match message {
            Message::CompilerArtifact {
                package_id,
                manifest_path,
                target,
                profile: Profile { test: true },
                executable: Some(path),
            } if is_wanted(package_id) && target.kind == ["test"] => Some(TestProgram {
                name: target.name.clone(),
                path: path.clone(),
                directory: manifest_path.parent()?.to_owned(),
            }),
            _ => None,
        });
        let mut programs: Vec<_> = programs.collect();
        programs.sort_by(|a, b| a.name.cmp(&b.name));
        programs
    }

    /// The `OUT_DIR` of the build script of workspace member `package`.
    pub(crate) fn out_dir(&self, package: &str) -> Result<PathBuf> {
        let found = self.messages.iter().find_map(|message| match message {
            Message::BuildScriptExecuted {
                package_id,
                out_dir,
            } if is_member(package_id, package) => Some(out_dir.clone()),
            _ => None,
        });
        found.with_context(|| format!("cargo reported no build script of {package}"))
    }
}

/// Whether a package ID (`path+file:///src/tether/lb-userspace#0.1.0`, or `…#name@0.1.0` where the directory is named otherwise) is that of
/// workspace member `package`.
fn is_member(package_id: &str, package: &str) -> bool {
    let Some((path, fragment)) = package_id
        .strip_prefix("path+")
        .and_then(|rest| rest.split_once('#'))
    else {
        return false;
    };
    match fragment.split_once('@') {
        Some((name, _version)) => name == package,
        None => path.rsplit('/').next() == Some(package),
    }
}

/// What cargo says of the workspace.
#[derive(Deserialize)]
struct Metadata {
    target_directory: PathBuf,
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Program>,
}

/// A program of the workspace, or another target of it.
#[derive(Deserialize)]
pub(crate) struct Program {
    kind: Vec<String>,
    /// Its name.
    pub(crate) name: String,
    /// Its first source file.
    #[cfg(test)]
    pub(crate) src_path: PathBuf,
    /// Whether it has tests of its own, as its manifest has it.
    #[serde(rename = "test")]
    pub(crate) is_tested: bool,
}

fn metadata() -> Result<Metadata> {
    let text = exec::output(exec::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    serde_json::from_str(&text).context("cargo metadata's output")
}

/// The workspace's target directory.
///
/// # Errors
/// If cargo does not tell.
pub(crate) fn target_directory() -> Result<PathBuf> {
    Ok(metadata()?.target_directory)
}

/// The workspace's programs for the host, and not for the kernel.
///
/// # Errors
/// If cargo does not tell.
pub(crate) fn programs() -> Result<Vec<Program>> {
    let packages = metadata()?.packages.into_iter();
    let targets = packages
        .filter(|package| package.name != "lb-ebpf")
        .flat_map(|package| package.targets);
    Ok(targets.filter(|target| target.kind == ["bin"]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = r#"{"reason":"build-script-executed","package_id":"registry+https://example.org/index#libc@0.2.1","linked_libs":[],"out_dir":"/t/libc/out"}
{"reason":"compiler-artifact","package_id":"path+file:///src/tests#lab@0.1.0","manifest_path":"/src/tests/Cargo.toml","target":{"kind":["lib"],"name":"lab"},"profile":{"test":false},"executable":null,"fresh":true}
{"reason":"build-script-executed","package_id":"path+file:///src/lb-userspace#0.1.0","linked_libs":[],"out_dir":"/t/lb/out"}
{"reason":"compiler-artifact","package_id":"path+file:///src/tests#lab@0.1.0","manifest_path":"/src/tests/Cargo.toml","target":{"kind":["bin"],"name":"verifier"},"profile":{"test":true},"executable":"/t/debug/deps/verifier-1","fresh":true}
{"reason":"compiler-artifact","package_id":"path+file:///src/tests#lab@0.1.0","manifest_path":"/src/tests/Cargo.toml","target":{"kind":["bin"],"name":"verifier"},"profile":{"test":false},"executable":"/t/debug/verifier","fresh":true}
{"reason":"compiler-artifact","package_id":"path+file:///src/tests#lab@0.1.0","manifest_path":"/src/tests/Cargo.toml","target":{"kind":["test"],"name":"torture"},"profile":{"test":true},"executable":"/t/debug/deps/torture-1","fresh":true}
{"reason":"compiler-artifact","package_id":"path+file:///src/tests#lab@0.1.0","manifest_path":"/src/tests/Cargo.toml","target":{"kind":["test"],"name":"drain"},"profile":{"test":true},"executable":"/t/debug/deps/drain-1","fresh":true}
{"reason":"compiler-artifact","package_id":"path+file:///src/lb-common#0.1.0","manifest_path":"/src/lb-common/Cargo.toml","target":{"kind":["test"],"name":"flow"},"profile":{"test":true},"executable":"/t/debug/deps/flow-1","fresh":true}
{"reason":"build-finished","success":true}"#;

    #[test]
    fn finds_the_build_scripts_output_of_the_member_asked_for() -> Result<()> {
        let built = Built::parse(MESSAGES)?;
        assert_eq!(built.out_dir("lb-userspace")?, PathBuf::from("/t/lb/out"));
        assert!(
            built.out_dir("libc").is_err(),
            "a registry's package is no member"
        );
        Ok(())
    }

    #[test]
    fn finds_executables_and_not_libraries() -> Result<()> {
        let built = Built::parse(MESSAGES)?;
        assert_eq!(
            built.executable("verifier")?,
            PathBuf::from("/t/debug/verifier")
        );
        assert!(built.executable("lab").is_err());
        Ok(())
    }

    #[test]
    fn finds_the_integration_tests_of_the_member_asked_for() -> Result<()> {
        let built = Built::parse(MESSAGES)?;
        let names = |programs: &[TestProgram]| -> Vec<String> {
            programs.iter().map(|p| p.name.clone()).collect()
        };
        let programs = built.integration_tests("lab");
        assert_eq!(names(&programs), ["drain", "torture"]);
        assert_eq!(programs[0].path, PathBuf::from("/t/debug/deps/drain-1"));
        assert_eq!(programs[0].directory, PathBuf::from("/src/tests"));
        let programs = built.all_integration_tests();
        assert_eq!(names(&programs), ["drain", "flow", "torture"]);
        assert_eq!(programs[1].directory, PathBuf::from("/src/lb-common"));
        Ok(())
    }

    #[test]
    fn members_are_told_by_name_or_by_directory() {
        assert!(is_member(
            "path+file:///src/lb-userspace#0.1.0",
            "lb-userspace"
        ));
        assert!(is_member("path+file:///src/tests#lab@0.1.0", "lab"));
        assert!(!is_member("path+file:///src/tests#lab@0.1.0", "tests"));
        assert!(!is_member(
            "registry+https://example.org/index#lab@0.1.0",
            "lab"
        ));
    }
}
