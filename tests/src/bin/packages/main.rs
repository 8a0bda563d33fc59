//! What is shipped, tested as it is: the Debian package in a file system of its own, the image, and the one that the
//! Dockerfile makes, in a lab with the least privilege.

mod deb;
mod engine;
mod image;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::namespace::Namespace;

fn main() -> Result<()> {
    let directory: PathBuf = std::env::args_os()
        .nth(1)
        .context("the directory of a release")?
        .into();
    let version = env!("CARGO_PKG_VERSION");
    deb::test(&directory.join(format!("tether_{version}_amd64.deb")))?;
    image::test(&directory, version)?;
    is_static(&directory.join("tether"))?;
    println!("the package, the image and the binary are as they should be");
    Ok(())
}

fn is_static(binary: &Path) -> Result<()> {
    let output = Command::new("ldd").arg(binary).output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(
        said.contains("statically linked") || said.contains("not a dynamic executable"),
        "{said}"
    );
    Ok(())
}

/// The XDP program on a host's uplink, by its id.
pub(crate) fn attached(host: &Namespace) -> Result<Option<u64>> {
    let text = host.sh("ip -json link show eth0")?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    Ok(links[0]["xdp"]["prog"]["id"].as_u64())
}
