//! The Debian package, by dpkg-deb: a binary, a unit, manual pages, completions, documents.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Release, Staging};
use crate::exec;

/// Scripts of the package, in `deploy/debian`.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];
/// Completions, and where each shell looks for them.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/tether"),
    ("zsh", "usr/share/zsh/vendor-completions/_tether"),
    ("fish", "usr/share/fish/vendor_completions.d/tether.fish"),
];
/// Documents that are shipped, beside all of `docs`.
const DOCUMENTS: [&str; 8] = [
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "examples/tether.toml",
    "deploy/prometheus/tether.rules.yml",
    "deploy/prometheus/tether.test.yml",
    "deploy/grafana/tether.json",
    "deploy/README.md",
];

/// Builds it.
///
/// # Errors
/// If a file is missing or dpkg-deb fails.
pub(super) fn build(release: &Release, binary: &Path) -> Result<PathBuf> {
    let staging = Staging::new(release, "deb")?;
    let root = staging.path();
    let put = |from: &Path, to: &str, mode: u32| put(from, &root.join(to), mode);
    put(binary, "usr/bin/tether", 0o755)?;
    let source = exec::workspace();
    put(
        &source.join("deploy/systemd/tether.service"),
        "usr/lib/systemd/system/tether.service",
        0o644,
    )?;
    for (shell, place) in COMPLETIONS {
        let text = exec::output(exec::command(binary).args(["completions", shell]))?;
        write(&root.join(place), text.as_bytes(), 0o644)?;
    }
    let man = root.join("usr/share/man/man1");
    fs::create_dir_all(&man)?;
    exec::run_aside(exec::command(binary).args(["man", "--dir"]).arg(&man))?;
    for page in fs::read_dir(&man)? {
        // Without a name and a time in it, so that it is the same each time.
        exec::run_aside(
            exec::command("gzip")
                .args(["--best", "--no-name"])
                .arg(page?.path()),
        )?;
    }
    let doc = "usr/share/doc/tether";
    for name in DOCUMENTS {
        put(&source.join(name), &format!("{doc}/{name}"), 0o644)?;
    }
    for entry in fs::read_dir(source.join("docs"))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_file() {
            put(&path, &format!("{doc}/docs/{name}"), 0o644)?;
        }
    }
    put(
        &release.path("tether.cdx.json"),
        &format!("{doc}/tether.cdx.json"),
        0o644,
    )?;
    put(
        &release.path("LICENCES.md"),
        &format!("{doc}/copyright"),
        0o644,
    )?;
    let changelog = root.join(doc).join("changelog");
    write(&changelog, debian_changelog(release)?.as_bytes(), 0o644)?;
    exec::run_aside(
        exec::command("gzip")
            .args(["--best", "--no-name"])
            .arg(&changelog),
    )?;
    fs::create_dir_all(root.join("etc/tether"))?;
    for script in SCRIPTS {
        put(
            &source.join("deploy/debian").join(script),
            &format!("DEBIAN/{script}"),
            0o755,
        )?;
    }
    let size = installed_size(root)?;
    write(
        &root.join("DEBIAN/control"),
        control(&release.version, size).as_bytes(),
        0o644,
    )?;
    open_directories(root)?;
    let package = release.path(&format!("tether_{}_amd64.deb", release.version));
    exec::run_aside(
        exec::command("dpkg-deb")
            .env("SOURCE_DATE_EPOCH", release.epoch.to_string())
            .args(["--build", "--root-owner-group", "-Zxz"])
            .arg(root)
            .arg(&package),
    )?;
    Ok(package)
}

fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    write(to, &bytes, mode)
}

fn write(to: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(to, bytes).with_context(|| format!("writing {}", to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Gives all directories the usual rights, whatever this process's mask.
fn open_directories(directory: &Path) -> Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            open_directories(&path)?;
        }
    }
    Ok(())
}

/// What the files take, in kibibytes.
fn installed_size(directory: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        size += if path.is_dir() {
            1 + installed_size(&path)?
        } else {
            fs::metadata(&path)?.len().div_ceil(1024)
        };
    }
    Ok(size)
}

fn control(version: &str, size: u64) -> String {
    format!(
        "Package: tether
Version: {version}
Architecture: amd64
Maintainer: Tether's developers <tether@localhost>
Installed-Size: {size}
Section: net
Priority: optional
Recommends: ethtool
Description: layer-4 TCP load balancer for connections that must not drop
 An XDP program on the network card steers every TCP connection to a backend; a
 daemon decides which backends may take new ones, and may be killed, restarted,
 upgraded and reconfigured while all connections go on.
 .
 Removing this package stops the daemon and not the forwarding, which goes on
 until `tether cleanup`, a purge or a reboot.
"
    )
}

/// The changelog in Debian's form, of the entries of CHANGELOG.md for this version.
fn debian_changelog(release: &Release) -> Result<String> {
    let text = fs::read_to_string(exec::workspace().join("CHANGELOG.md"))?;
    let heading = format!("## {}", release.version);
    let entries = text
        .split_once(&heading)
        .with_context(|| format!("CHANGELOG.md has no heading {heading:?}"))?
        .1;
    let entries = entries.split("\n## ").next().unwrap_or_default();
    let items: Vec<String> = entries
        .lines()
        .filter_map(|line| line.strip_prefix("- "))
        .map(|item| format!("  * {item}\n"))
        .collect();
    let mut date = exec::command("date");
    date.args(["--utc", "--rfc-email", "--date"])
        .arg(format!("@{}", release.epoch));
    let date = exec::output(&mut date)?;
    Ok(format!(
        "tether ({}) stable; urgency=medium\n\n{}\n -- Tether's developers <tether@localhost>  {}",
        release.version,
        items.concat(),
        date
    ))
}
