//! The manifests for Kubernetes, held to the schemas of its API: unknown and misspelt fields are errors.

use std::fs;

use anyhow::{Context, Result};

use crate::{cargo, exec};

/// The tool that has the schemas, from the Python package index, and the versions of Kubernetes whose schemas are asked.
const VALIDATOR: &str = "kubernetes-validate==1.37.0";
const VERSIONS: [&str; 2] = ["1.28", "1.37"];

/// Builds what `kubectl apply -k` would send, and validates it.
///
/// # Errors
/// If it cannot be built, or is not valid.
pub(super) fn validate() -> Result<()> {
    let environment = cargo::target_directory()?.join("kubernetes-validate");
    let validate = environment.join("bin/kubernetes-validate");
    if !validate.exists() {
        exec::run_aside(
            exec::command("python3")
                .args(["-m", "venv"])
                .arg(&environment),
        )?;
        exec::run_aside(
            exec::command(environment.join("bin/pip")).args(["install", "--quiet", VALIDATOR]),
        )?;
    }
    let mut kustomize = exec::command("kubectl");
    kustomize
        .arg("kustomize")
        .arg(exec::workspace().join("deploy/kubernetes"));
    let built = environment.join("tether.yaml");
    fs::write(&built, exec::output(&mut kustomize)?)
        .with_context(|| format!("writing {}", built.display()))?;
    for version in VERSIONS {
        exec::run_aside(
            exec::command(&validate)
                .args(["--strict", "--kubernetes-version", version])
                .arg(&built),
        )?;
    }
    Ok(())
}
