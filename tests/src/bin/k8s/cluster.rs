//! The cluster, by its scripts: `up`, `down`, `enter`, `load-image`. It is taken down when it is dropped, and when its last user is killed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lab::wait;
use serde_json::Value;

/// The scripts that are expected in the directory.
const SCRIPTS: [&str; 4] = ["up", "down", "enter", "load-image"];

pub(crate) struct Cluster {
    scripts: PathBuf,
    /// What `up` says to export.
    environment: HashMap<String, String>,
}

impl Cluster {
    /// Brings two nodes up.
    ///
    /// # Errors
    /// When the scripts are not there or fail.
    pub(crate) fn up(scripts: &Path) -> Result<Self> {
        for name in SCRIPTS {
            ensure!(
                scripts.join(name).is_file(),
                "{} has no `{name}`: it has to have the programs {}, of which `up --nodes 2` prints `export NAME=VALUE` for the others, K8S_LAB_STATE and KUBECONFIG among them",
                scripts.display(),
                SCRIPTS.join(", ")
            );
        }
        let mut up = Command::new(scripts.join("up"));
        up.args(["--nodes", "2"]).stderr(Stdio::inherit());
        let text = said(up)?;
        let exports = text
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        let environment = exports
            .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
            .collect();
        Ok(Self {
            scripts: scripts.to_owned(),
            environment,
        })
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(self.scripts.join(name));
        command.envs(&self.environment);
        command
    }

    /// A command where the API server is (`lab`), or on a node (`n1`, `n2`).
    pub(crate) fn on(&self, place: &str, arguments: &[&str]) -> Command {
        let mut command = self.script("enter");
        command.arg(place).args(arguments);
        command
    }

    /// Runs one, and gives what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub(crate) fn run(&self, place: &str, arguments: &[&str]) -> Result<String> {
        said(self.on(place, arguments))
    }

    /// `kubectl`.
    ///
    /// # Errors
    /// When it fails.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.run("lab", &[&["kubectl"], arguments].concat())
    }

    /// The objects that `kubectl get` finds.
    ///
    /// # Errors
    /// When it fails, or prints no JSON.
    pub(crate) fn get(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let text = self.kubectl(&[&["get", "--output", "json"], arguments].concat())?;
        let list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Gives every node an image.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub(crate) fn load_image(&self, archive: &Path) -> Result<()> {
        let mut load = self.script("load-image");
        load.arg(archive);
        said(load).map(drop)
    }

    /// Waits until all pods with a label are ready, and as many as are wanted; gives them.
    ///
    /// # Errors
    /// When they do not get there; the message has what the cluster says of them.
    pub(crate) fn ready(&self, namespace: &str, label: &str, count: usize) -> Result<Vec<Value>> {
        let pods = || self.get(&["pods", "--namespace", namespace, "--selector", label]);
        let is_ready = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array();
            let ready = conditions.is_some_and(|all| {
                all.iter()
                    .any(|one| one["type"] == "Ready" && one["status"] == "True")
            });
            ready && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let ready = wait::until_seen(
            &format!("{count} pods with {label} are ready"),
            Duration::from_secs(120),
            pods,
            |pods| pods.len() == count && pods.iter().all(is_ready),
        );
        ready.with_context(|| {
            let chosen = ["--namespace", namespace, "--selector", label];
            let mut said = String::new();
            for what in [
                &["describe", "pods"][..],
                &["logs", "--tail=20"],
                &["logs", "--tail=20", "--previous"],
            ] {
                let one = self.kubectl(&[what, &chosen].concat());
                said += &one.unwrap_or_else(|error| format!("{error:#}"));
                said.push('\n');
            }
            said
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        match self.script("down").status() {
            Ok(status) if status.success() => {}
            other => eprintln!("the cluster could not be taken down: {other:?}"),
        }
    }
}

fn said(mut command: Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    let text = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}: {text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(text)
}
