//! `cargo xtask k8s`: what is shipped for Kubernetes, on a real cluster.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{cargo, exec, lab::become_program, root, setup};

/// What to do.
#[derive(Args)]
pub(crate) struct Options {
    /// The directory of programs that make a cluster of two nodes on this machine: `up --nodes 2`, which prints `export NAME=VALUE` for the others;
    /// `enter lab|n1|n2 COMMAND`, `load-image FILE`, `down`. Without it the variable K8S_LAB names it, else it is ../shared/k8s-lab beside the checkout
    #[arg(long, value_name = "DIR")]
    lab: Option<PathBuf>,
    /// Leave out the pods on the node that clients come to
    #[arg(long)]
    only_remote: bool,
}

/// The variable that names the lab's directory.
const VARIABLE: &str = "K8S_LAB";

/// Where the lab is looked for if nobody names it, from the workspace's root.
const BESIDE: &str = "../shared/k8s-lab";

/// The lab's directory: the one that is `given`, else the one that the `variable` names, else the one `beside` the checkout.
///
/// # Errors
/// If the one that is named is not there, or none is named and none is there.
fn lab(given: Option<&Path>, variable: Option<PathBuf>, beside: &Path) -> Result<PathBuf> {
    // As a shell that sets a variable to nothing means it.
    let variable = variable.filter(|path| !path.as_os_str().is_empty());
    let (path, from) = match (given, variable) {
        (Some(path), _) => (path.to_owned(), "--lab"),
        (None, Some(path)) => (path, VARIABLE),
        (None, None) if beside.exists() => (beside.to_owned(), "beside the checkout"),
        (None, None) => bail!(
            "a cluster is needed, and {} is not there: name the directory of its programs by --lab DIR or by the variable {VARIABLE} (deploy/README.md, \
             On Kubernetes, says what they are)",
            beside.display()
        ),
    };
    path.canonicalize()
        .with_context(|| format!("{from}: {}", path.display()))
}

/// Runs it on the image that `cargo xtask release` has built.
///
/// # Errors
/// If this is not root, there is no image or no lab, or the build fails; else it does not return.
pub(crate) fn run(options: &Options) -> Result<()> {
    root::require("k8s")?;
    let lab = lab(
        options.lab.as_deref(),
        env::var_os(VARIABLE).map(PathBuf::from),
        &exec::workspace().join(BESIDE),
    )?;
    setup::ensure()?;
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
    become_program("k8s", &arguments)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Directories of a test, gone when dropped.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("xtask-k8s-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a directory for the test");
            Self(path.canonicalize().expect("it was just made"))
        }

        fn lab(&self, name: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir_all(&path).expect("a lab");
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_lab_is_the_one_named_first() {
        let scratch = Scratch::new("order");
        let [given, named, beside] = ["given", "named", "beside"].map(|name| scratch.lab(name));
        let found = |given: Option<&Path>, variable: Option<&Path>| {
            lab(given, variable.map(Path::to_owned), &beside).expect("a lab")
        };
        assert_eq!(found(Some(&given), Some(&named)), given);
        assert_eq!(found(None, Some(&named)), named);
        assert_eq!(found(None, Some(Path::new(""))), beside);
        assert_eq!(found(None, None), beside);
    }

    #[test]
    fn without_a_lab_it_is_said_how_to_name_one() {
        let scratch = Scratch::new("none");
        let nowhere = scratch.0.join("nowhere");
        let error = lab(None, None, &nowhere).expect_err("there is none");
        let said = error.to_string();
        for word in ["--lab DIR", VARIABLE, "deploy/README.md"] {
            assert!(said.contains(word), "{said}");
        }
    }

    #[test]
    fn a_lab_that_is_named_and_not_there_is_told_with_who_named_it() {
        let scratch = Scratch::new("wrong");
        let beside = scratch.lab("beside");
        let nowhere = scratch.0.join("nowhere");
        let error = lab(Some(&nowhere), None, &beside).expect_err("it is not there");
        assert!(error.to_string().starts_with("--lab: "), "{error}");
        let error = lab(None, Some(nowhere), &beside).expect_err("it is not there");
        assert!(error.to_string().starts_with("K8S_LAB: "), "{error}");
    }
}
