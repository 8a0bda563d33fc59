//! Debian's packages without Debian: a configuration, lists and a status of our own, so that this machine's apt and what it has
//! installed are neither asked nor changed. Packages are downloaded and unpacked, never installed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::cache::Cache;
use crate::exec;

/// The keys that Debian signs its suites with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A suite and the path of its archive on Debian's servers.
pub(crate) type Suite = (&'static str, &'static str);

/// The directory `name` with `packages` and all that they need, unpacked: the newest that there are, which is told by the first.
///
/// # Errors
/// As [`Cache::provide`].
pub(crate) fn provide<const N: usize>(
    cache: &Cache,
    name: &str,
    suites: &[Suite],
    packages: [&str; N],
) -> Result<PathBuf> {
    cache.provide(
        name,
        |directory| {
            let apt = Apt::with_lists(directory, suites)?;
            let (version, _) = apt.resolve(packages[0], packages[0])?;
            Ok((version, apt))
        },
        |apt, content| apt.unpack(&packages.map(str::to_owned), true, content),
    )
}

/// Some of Debian's suites.
pub(crate) struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// Fetches the lists of `suites` into `directory`.
    ///
    /// # Errors
    /// If this machine has no apt or not Debian's keys, or the lists cannot be had.
    pub(crate) fn with_lists(directory: &Path, suites: &[Suite]) -> Result<Self> {
        for (program, package) in [("apt-get", "apt"), ("dpkg-deb", "dpkg")] {
            if exec::find(program).is_none() {
                bail!(
                    "{program} is missing: kernels come as Debian packages (apt install {package})"
                );
            }
        }
        if !Path::new(KEYRING).exists() {
            bail!("{KEYRING} is missing: apt install debian-archive-keyring");
        }
        let apt = Self {
            directory: directory.to_owned(),
        };
        for folder in ["lists/partial", "archives/partial"] {
            let folder = directory.join(folder);
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        let sources: Vec<_> = suites.iter().map(source).collect();
        apt.write("sources.list", &sources.concat())?;
        // Nothing is installed here.
        apt.write("status", "")?;
        exec::run_aside(apt.command("apt-get").arg("update"))?;
        Ok(apt)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    /// An apt program that sees this configuration only; what the machine says of proxies still holds.
    fn command(&self, program: &str) -> Command {
        let own = |name: &str| self.directory.join(name).display().to_string();
        let settings = [
            ("Dir::Etc::SourceList", own("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::Etc::Preferences", "/dev/null".into()),
            ("Dir::Etc::PreferencesParts", "/dev/null".into()),
            ("Dir::State", own("")),
            ("Dir::State::Lists", own("lists")),
            ("Dir::State::Status", own("status")),
            ("Dir::Cache", own("")),
            ("Dir::Cache::Archives", own("archives")),
            ("Dir::Log", own("")),
            ("APT::Architecture", "amd64".into()),
            ("APT::Architectures", "amd64".into()),
            // The user that apt downloads as may not write here.
            ("APT::Sandbox::User", "root".into()),
            ("Acquire::Languages", "none".into()),
            (
                "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
                "false".into(),
            ),
        ];
        let mut command = exec::command(program);
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .arg("--quiet");
        for (name, value) in settings {
            command.args(["-o", &format!("{name}={value}")]);
        }
        command
    }

    /// The version that apt would install of `package`, and the packages of names that start with `prefix` which that needs,
    /// directly or not.
    ///
    /// # Errors
    /// If there is no such package.
    pub(crate) fn resolve(&self, package: &str, prefix: &str) -> Result<(String, Vec<String>)> {
        let mut version = None;
        let mut seen = BTreeSet::new();
        let mut open = vec![package.to_owned()];
        while let Some(name) = open.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            let mut show = self.command("apt-cache");
            let text = exec::output(show.args(["show", "--no-all-versions", &name]))?;
            let record = Record(&text);
            version = version.or(record.field("Version").map(str::to_owned));
            open.extend(record.needs(prefix));
        }
        let version = version.with_context(|| format!("apt told no version of {package}"))?;
        Ok((version, seen.into_iter().collect()))
    }

    /// Downloads `packages`, and all that they need if `closure` is set, and unpacks them below `root`.
    ///
    /// # Errors
    /// If one cannot be had or unpacked.
    pub(crate) fn unpack(&self, packages: &[String], closure: bool, root: &Path) -> Result<()> {
        let archives = self.directory.join("archives");
        let mut get = self.command("apt-get");
        if closure {
            get.args([
                "install",
                "--yes",
                "--download-only",
                "--no-install-recommends",
            ]);
        } else {
            get.arg("download").current_dir(&archives);
        }
        exec::run_aside(get.args(packages))?;
        fs::create_dir_all(root).with_context(|| root.display().to_string())?;
        for entry in fs::read_dir(&archives)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                exec::run_aside(
                    exec::command("dpkg-deb")
                        .arg("--extract")
                        .arg(&path)
                        .arg(root),
                )?;
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

fn source((archive, suite): &Suite) -> String {
    format!("deb [signed-by={KEYRING}] http://deb.debian.org/{archive} {suite} main\n")
}

/// What apt-cache shows of a package.
struct Record<'a>(&'a str);

impl<'a> Record<'a> {
    fn field(&self, name: &str) -> Option<&'a str> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The packages that it depends on without alternative, of names that start with `prefix`.
    fn needs(&self, prefix: &str) -> Vec<String> {
        let depends = self.field("Depends").unwrap_or_default();
        depends
            .split(", ")
            .filter(|part| part.starts_with(prefix) && !part.contains('|'))
            .filter_map(|part| part.split(' ').next())
            .map(str::to_owned)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str = "Package: linux-image-7.2.13+deb14-amd64
Version: 7.2.13-1
Pre-Depends: linux-base (>= 4.17~)
Depends: dracut | linux-initramfs-tool, kmod, linux-binary-7.2.13+deb14-amd64 (= 7.2.13-1), linux-modules-7.2.13+deb14-amd64 (= 7.2.13-1)
Description: Linux 7.2
";

    #[test]
    fn a_packages_parts_are_found_and_its_installers_are_not() {
        let record = Record(IMAGE);
        assert_eq!(record.field("Version"), Some("7.2.13-1"));
        let parts = [
            "linux-binary-7.2.13+deb14-amd64",
            "linux-modules-7.2.13+deb14-amd64",
        ];
        assert_eq!(record.needs("linux-"), parts);
    }

    #[test]
    fn a_package_that_needs_nothing_needs_nothing() {
        assert!(Record("Package: a\n").needs("linux-").is_empty());
    }
}
