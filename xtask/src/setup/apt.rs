//! Debian's package manager.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::Result;

use super::plan::Step;
use crate::exec;

/// Where Debian's security suite is written when LLVM is to be had nowhere else.
const SECURITY_LIST: &str = "/etc/apt/sources.list.d/debian-security.list";

/// Whether this machine has apt.
pub(crate) fn is_there() -> bool {
    exec::find("apt-get").is_some()
}

/// Refreshes the lists of packages.
pub(crate) fn update() -> Command {
    apt_get(&["update"])
}

/// Installs packages.
pub(crate) fn install(packages: &[String]) -> Command {
    let mut command = apt_get(&["install", "--yes", "--quiet", "--no-install-recommends"]);
    command.args(packages);
    command
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = exec::command("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(arguments);
    command
}

/// The major versions of LLVM that apt can install with headers.
///
/// # Errors
/// If apt's cache cannot be asked.
pub(crate) fn llvm_versions() -> Result<Vec<u32>> {
    let mut search = exec::command("apt-cache");
    let text = exec::output(search.args(["search", "--names-only", "^llvm-[0-9]+-dev$"]))?;
    Ok(text.lines().filter_map(llvm_version).collect())
}

/// 22 of `llvm-22-dev - Modular compiler and toolchain technologies, libraries and headers`.
fn llvm_version(line: &str) -> Option<u32> {
    line.split_whitespace()
        .next()?
        .strip_prefix("llvm-")?
        .strip_suffix("-dev")?
        .parse()
        .ok()
}

/// Of `packages`, those that are not installed.
pub(crate) fn not_installed(packages: &[String]) -> Vec<String> {
    let is_installed = |package: &String| {
        exec::command("dpkg-query")
            .args(["--show", "--showformat=${db:Status-Status}", package])
            .stderr(Stdio::null())
            .output()
            .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
    };
    packages
        .iter()
        .filter(|package| !is_installed(package))
        .cloned()
        .collect()
}

/// The step that adds Debian's security suite to apt's sources; none if this is not a Debian release, or has that suite already.
/// Newer versions of LLVM come to a stable Debian by this suite, and debootstrap leaves it out.
pub(crate) fn add_security_suite() -> Option<Step> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let parts = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten();
    let lists = parts
        .map(|entry| entry.path())
        .chain([PathBuf::from("/etc/apt/sources.list")]);
    let sources: Vec<String> = lists
        .filter_map(|list| fs::read_to_string(list).ok())
        .collect();
    let line = security_suite_of(&release, &sources.join("\n"))?;
    Some(Step::write_as_root(SECURITY_LIST, line))
}

fn security_suite_of(os_release: &str, sources: &str) -> Option<String> {
    let field = |name: &str| {
        let value = os_release
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.trim_matches('"'))
    };
    if field("ID")? != "debian" {
        return None;
    }
    let suite = format!("{}-security", field("VERSION_CODENAME")?);
    let in_use = |line: &str| !line.trim_start().starts_with('#') && line.contains(&suite);
    if sources.lines().any(in_use) {
        return None;
    }
    Some(format!(
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security {suite} main"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKWORM: &str =
        "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n";
    const MAIN: &str = "deb http://deb.debian.org/debian bookworm main\n";

    #[test]
    fn the_security_suite_is_named_for_the_release_that_lacks_it() {
        let commented =
            format!("{MAIN}# deb http://deb.debian.org/debian-security bookworm-security main\n");
        for sources in [MAIN, &commented] {
            let line = security_suite_of(BOOKWORM, sources).expect("the suite is not there");
            let expected = " http://deb.debian.org/debian-security bookworm-security main";
            assert!(line.ends_with(expected), "{line}");
        }
    }

    #[test]
    fn the_security_suite_is_not_added_twice_nor_to_another_distribution() {
        let one_line =
            format!("{MAIN}deb http://mirror.example/debian-security bookworm-security main\n");
        let deb822 =
            "Types: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\n";
        assert_eq!(security_suite_of(BOOKWORM, &one_line), None);
        assert_eq!(security_suite_of(BOOKWORM, deb822), None);
        assert_eq!(
            security_suite_of("ID=ubuntu\nVERSION_CODENAME=noble\n", MAIN),
            None
        );
    }

    #[test]
    fn package_names_tell_the_version_of_llvm() {
        assert_eq!(llvm_version("llvm-22-dev - Modular compiler"), Some(22));
        assert_eq!(llvm_version("llvm-dev - Modular compiler"), None);
        assert_eq!(llvm_version(""), None);
    }
}
