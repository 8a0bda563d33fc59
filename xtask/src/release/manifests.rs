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

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped(name: &str) -> String {
        let path = exec::workspace().join("deploy/kubernetes").join(name);
        fs::read_to_string(path).expect("a shipped file")
    }

    /// As SECURITY.md says. Kubelet would ask at the node's own address if it were not told otherwise.
    #[test]
    fn health_and_metrics_are_on_loopback() {
        let config: toml::Table = toml::from_str(&shipped("tether.toml")).expect("TOML");
        assert_eq!(config.get("metrics"), None);
        let manifest = shipped("daemonset.yaml");
        let probes: Vec<&str> = manifest
            .lines()
            .filter(|line| line.contains("httpGet:"))
            .collect();
        assert_eq!(probes.len(), 3, "{probes:#?}");
        for probe in probes {
            assert!(probe.contains("host: 127.0.0.1,"), "{probe}");
        }
        assert!(!manifest.contains("prometheus.io"));
    }

    /// A start that moves flows is not ended halfway by either.
    #[test]
    fn a_pod_may_take_as_long_to_start_as_the_unit() {
        let unit = exec::workspace().join("deploy/systemd/tether.service");
        let unit = fs::read_to_string(unit).expect("the unit");
        let minutes: u64 = unit
            .lines()
            .find_map(|line| line.strip_prefix("TimeoutStartSec=")?.strip_suffix("min"))
            .and_then(|minutes| minutes.parse().ok())
            .expect("the unit says how many minutes a start may take");
        let manifest = shipped("daemonset.yaml");
        let probe = manifest
            .split_once("startupProbe:")
            .and_then(|(_, rest)| rest.split_once("livenessProbe:"))
            .expect("a probe of the start")
            .0;
        let number = |key: &str| -> u64 {
            let found = probe
                .lines()
                .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
            found.and_then(|text| text.parse().ok()).expect("a number")
        };
        assert_eq!(
            number("periodSeconds") * number("failureThreshold"),
            60 * minutes
        );
    }
}
