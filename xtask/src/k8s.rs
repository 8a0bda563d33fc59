//! `cargo xtask k8s`: what is shipped for Kubernetes, on a real cluster.

use std::{ffi::OsString, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{cargo, exec, root, setup};

/// What to do.
#[derive(Args)]
pub(crate) struct Options {
    /// The directory of programs that make a cluster of two nodes on this machine: `up --nodes 2`, which prints `export NAME=VALUE` for the others;
    /// `enter lab|n1|n2 COMMAND`, `load-image FILE`, `down`
    #[arg(long, value_name = "DIR")]
    lab: PathBuf,
    /// Leave out the pods on the node that clients come to
    #[arg(long)]
    only_remote: bool,
}

/// Runs it on the image that `cargo xtask release` has built.
///
/// # Errors
/// If this is not root, there is no image, or the build fails; else it does not return.
pub(crate) fn run(options: &Options) -> Result<()> {
    root::require("k8s")?;
    setup::ensure()?;
    let lab = options
        .lab
        .canonicalize()
        .with_context(|| format!("--lab {}", options.lab.display()))?;
    let version = env!("CARGO_PKG_VERSION");
    let image = cargo::target_directory()?
        .join(format!("release-{version}"))
        .join(format!("tether-{version}.tar"));
    if !image.exists() {
        bail!(
            "{} is not there: run `cargo xtask release` first",
            image.display()
        );
    }
    let mut arguments: Vec<OsString> = vec!["run".into()];
    for (name, value) in [
        ("--lab", lab.into_os_string()),
        ("--image", image.into_os_string()),
        (
            "--manifests",
            exec::workspace().join("deploy/kubernetes").into_os_string(),
        ),
        ("--version", version.into()),
    ] {
        arguments.extend([name.into(), value]);
    }
    arguments.extend(options.only_remote.then(|| "--only-remote".into()));
    cargo::become_lab_program("k8s", &arguments)
}
