//! The image: a docker archive of one layer with one file, as `FROM scratch` of `deploy/container/Dockerfile` makes it, without a builder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::{Release, Staging};
use crate::exec;

/// Builds it.
///
/// # Errors
/// If tar or sha256sum fails.
pub(super) fn build(release: &Release, binary: &Path) -> Result<PathBuf> {
    let staging = Staging::new(release, "image")?;
    let layer = staging.path().join("layer.tar");
    let directory = binary.parent().context("the binary is in a directory")?;
    archive(release, &layer, directory, &["tether"], "0755")?;
    let config = serde_json::to_string(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": ["/tether"],
            "Cmd": ["run", "--config", "/etc/tether/tether.toml"],
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer)?)]},
    }))?;
    let plain = staging.path().join("config.json");
    std::fs::write(&plain, config)?;
    let config_name = format!("{}.json", sha256(&plain)?);
    std::fs::rename(&plain, staging.path().join(&config_name))?;
    let tags = [
        format!("localhost/tether:{}", release.version),
        "localhost/tether:latest".to_owned(),
    ];
    let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": ["layer.tar"]}]);
    std::fs::write(staging.path().join("manifest.json"), manifest.to_string())?;
    let image = release.path(&format!("tether-{}.tar", release.version));
    archive(
        release,
        &image,
        staging.path(),
        &[&config_name, "layer.tar", "manifest.json"],
        "0644",
    )?;
    Ok(image)
}

/// A tar archive that is the same each time.
fn archive(
    release: &Release,
    to: &Path,
    directory: &Path,
    names: &[&str],
    mode: &str,
) -> Result<()> {
    exec::run_aside(
        exec::command("tar")
            .args([
                "--create",
                "--format=ustar",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
            ])
            .arg(format!("--mode={mode}"))
            .arg(format!("--mtime=@{}", release.epoch))
            .arg("--file")
            .arg(to)
            .arg("--directory")
            .arg(directory)
            .args(names),
    )
}

fn sha256(path: &Path) -> Result<String> {
    let text = exec::output(exec::command("sha256sum").arg(path))?;
    let sum = text.split_whitespace().next();
    Ok(sum.context("sha256sum printed nothing")?.to_owned())
}
