//! `cargo xtask release`: what is shipped, in `target/release-VERSION`.
//!
//! | file | what |
//! |---|---|
//! | `tether` | one static binary for x86-64, the BPF programs inside |
//! | `tether_VERSION_amd64.deb` | the same for Debian and its like, with unit, manual pages, completions and documents |
//! | `tether-VERSION.tar` | an image of the binary alone, as a docker archive |
//! | `tether.cdx.json` | what is in it, in CycloneDX 1.5 |
//! | `LICENCES.md` | under which licences |
//! | `CHANGELOG.md` | what has changed |
//!
//! The same sources make the same files: times are those of the commit.

mod bom;
mod deb;
mod image;
mod manifests;
mod runtime;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::bom::Bom;
use crate::{cargo, exec, kernels, lab, root, setup};

/// The target of the binary that is shipped: it needs nothing of the machine but its kernel.
const TARGET: &str = "x86_64-unknown-linux-musl";

/// What to do.
#[derive(Args)]
pub(crate) struct Options {
    /// Afterwards, test them: install, upgrade, remove and purge the package in a file system of its own, run its unit under systemd, run the image
    /// with the least privilege in a lab, and validate the manifests for Kubernetes (needs root, podman and kubectl)
    #[arg(long)]
    test: bool,
    /// Afterwards, run the package's unit and scripts under Debian's systemd in an emulated machine, which is part of --test and needs no root
    #[arg(long)]
    unit: bool,
    /// Use the binary that is there, and do not build it again
    #[arg(long)]
    no_build: bool,
}

/// What is being released.
struct Release {
    version: String,
    /// The time of the commit, in seconds since 1970.
    epoch: u64,
    /// Where it goes.
    directory: PathBuf,
}

impl Release {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}

/// Builds everything, and with `--test` tests it.
///
/// # Errors
/// If anything is missing, fails to build, or has a licence that it may not have.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.test {
        root::require("release --test")?;
    }
    setup::ensure()?;
    setup::ensure_tools(setup::RELEASE)?;
    if options.test {
        setup::ensure_tools(setup::PACKAGES)?;
    }
    let target = cargo::target_directory()?;
    let built = target.join(TARGET).join("release/tether");
    if !options.no_build {
        build()?;
    } else if !built.exists() {
        bail!("{} is not there; leave out --no-build", built.display());
    }
    let bom = Bom::read(TARGET)?;
    let version = bom.version().to_owned();
    let release = Release {
        directory: target.join(format!("release-{version}")),
        epoch: commit_time()?,
        version,
    };
    fs::create_dir_all(&release.directory)?;
    let binary = release.path("tether");
    exec::run_aside(exec::command("strip").arg("-o").arg(&binary).arg(&built))?;
    release.write("tether.cdx.json", bom.cyclonedx()?)?;
    release.write("LICENCES.md", bom.licences()?)?;
    fs::copy(
        exec::workspace().join("CHANGELOG.md"),
        release.path("CHANGELOG.md"),
    )?;
    let package = deb::build(&release, &binary)?;
    let image = image::build(&release, &binary)?;
    eprintln!("release: {}", release.directory.display());
    for path in [&binary, &package, &image] {
        eprintln!(
            "  {} ({} kB)",
            path.display(),
            fs::metadata(path)?.len() / 1000
        );
    }
    if options.test || options.unit {
        kernels::systemd::test(&package)?;
    }
    if options.test {
        manifests::validate()?;
        return lab::become_program("packages", &[release.directory.into_os_string()]);
    }
    Ok(())
}

fn build() -> Result<()> {
    exec::run_aside(exec::command("rustup").args(["target", "add", TARGET]))?;
    exec::run_aside(
        exec::cargo()
            .args(["build", "--release", "--locked", "--target", TARGET])
            .args(["--package", "lb-userspace", "--bin", "tether"]),
    )
}

/// The time of the commit that is checked out.
fn commit_time() -> Result<u64> {
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        return epoch.parse().context("SOURCE_DATE_EPOCH");
    }
    let mut git = exec::command("git");
    git.current_dir(exec::workspace())
        .args(["log", "-1", "--format=%ct"]);
    let text = exec::output(&mut git)
        .context("set SOURCE_DATE_EPOCH, in seconds since 1970, outside of a git checkout")?;
    text.trim().parse().context("the time of the commit")
}

/// A directory of an archive's files, gone when dropped.
struct Staging(PathBuf);

impl Staging {
    fn new(release: &Release, name: &str) -> Result<Self> {
        let path = release.path(name);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
