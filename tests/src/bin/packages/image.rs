//! The image as it is shipped, and as the Dockerfile makes it: the same, and each run with no more than deploy/README.md says: all capabilities dropped but
//! those it names, a read-only root, the host's network.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lab::config::Config;
use lab::namespace::Namespace;
use lab::peer::backend::{Backend, PORT};
use lab::peer::client::{Clients, Plan};
use lab::running::Running;
use lab::tether;
use lab::topology::{Place, Topology, UPLINK};
use lab::wait;
use serde_json::Value;

use super::attached;
use super::engine::Engine;

/// What a process of a lab may have at most.
const LIMITS: [&str; 2] = ["--ulimit=nofile=20000:20000", "--ulimit=nproc=4096:4096"];

/// Where the lab has the configuration that a host has in `/etc/tether`.
const CONFIG: &str = "/run/etc";

/// The name of the image that the Dockerfile makes.
const BY_FILE: &str = "localhost/tether-by-file";

/// The directory of what is deployed.
fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The options of the `podman run` in deploy/README.md, but for those that say when it starts and ends.
fn documented() -> Result<Vec<String>> {
    let text = std::fs::read_to_string(deploy().join("README.md"))?;
    let block = text
        .split_once("\n## In a container\n")
        .and_then(|(_, section)| section.split("```").nth(1))
        .context("deploy/README.md shows how to run a container")?
        .replace("\\\n", " ");
    let line = block
        .lines()
        .find_map(|line| line.strip_prefix("podman run "))
        .with_context(|| format!("no `podman run` in {block}"))?;
    let mut words = line.split_whitespace();
    let mut options = vec![];
    while let Some(option) = words.next().filter(|word| word.starts_with("--")) {
        match option {
            "--detach" => {}
            "--read-only" => options.push(option.to_owned()),
            _ => {
                let value = words
                    .next()
                    .with_context(|| format!("{option} has no value in {line}"))?;
                if ["--name", "--restart"].contains(&option) {
                    continue;
                }
                let value = match value.strip_prefix("/etc/tether:") {
                    Some(inside) => format!("{CONFIG}:{inside}"),
                    None => value.to_owned(),
                };
                options.push(format!("{option}={value}"));
            }
        }
    }
    // Docker takes a name without a host for one of its own registry.
    ensure!(
        line.split_whitespace().last() == Some("localhost/tether"),
        "deploy/README.md runs another image: {line}"
    );
    for least in ["--read-only", "--cap-drop=ALL"] {
        ensure!(
            options.iter().any(|option| option == least),
            "deploy/README.md runs it without {least}: {options:?}"
        );
    }
    Ok(options)
}

/// The capabilities that these options leave, as `/proc` shows a set of them.
fn capabilities(options: &[String]) -> Result<String> {
    let added = options
        .iter()
        .find_map(|option| option.strip_prefix("--cap-add="))
        .context("deploy/README.md adds no capability")?;
    let mut set = 0u64;
    for name in added.split(',') {
        set |= match name {
            "NET_ADMIN" => 1 << 12,
            "NET_RAW" => 1 << 13,
            "PERFMON" => 1 << 38,
            "BPF" => 1 << 39,
            _ => bail!("deploy/README.md adds {name}, which nothing of this needs"),
        };
    }
    Ok(format!("{set:016x}"))
}

pub(crate) fn test(release: &Path, version: &str) -> Result<()> {
    let topology = Topology::new(Place::Farm);
    let lab = topology.build()?;
    let mut backends = vec![];
    for host in lab.backends() {
        tether::succeed(host, &["decap", "--interface", UPLINK])?;
        backends.push(Backend::start(host)?);
    }
    let host = lab.balancer();
    host.sh(&format!("mkdir -p {CONFIG} /run/tether"))?;
    host.write(
        &format!("{CONFIG}/tether.toml"),
        &Config::new(topology).text(),
    )?;
    let clients = Clients::start(lab.client(), lab.sources(), 6)?;
    let target = SocketAddr::new(topology.vip(), PORT);

    let engine = Engine::start(host)?;
    let archive = release.join(format!("tether-{version}.tar"));
    engine.podman(&["load", "--input", &archive.to_string_lossy()])?;
    let shipped = format!("localhost/tether:{version}");
    build(&engine, release)?;
    assert_alike(&engine, &shipped)?;
    for image in [shipped.as_str(), BY_FILE] {
        serve(host, &engine, image, &clients, target)?;
    }
    println!(
        "image: served with four capabilities and a read-only root; 60 connections lived through its replacement; that of the Dockerfile is the same"
    );
    Ok(())
}

/// Builds the image as the Dockerfile says, of the binary of the release.
fn build(engine: &Engine<'_>, release: &Path) -> Result<()> {
    let file = deploy().join("container/Dockerfile");
    engine
        .podman(&[
            "build",
            "--network=none",
            "--tag",
            BY_FILE,
            "--file",
            &file.to_string_lossy(),
            &release.to_string_lossy(),
        ])
        .map(drop)
}

/// Both images start the same, and have the same files.
fn assert_alike(engine: &Engine<'_>, shipped: &str) -> Result<()> {
    let facts = |image: &str| -> Result<(Vec<Value>, String)> {
        let text = engine.podman(&["image", "inspect", image])?;
        let all: Value = serde_json::from_str(&text)?;
        let starts = ["/Config/Entrypoint", "/Config/Cmd", "/Architecture", "/Os"]
            .iter()
            .map(|place| {
                let found = all[0].pointer(place).cloned();
                found.with_context(|| format!("{image} has no {place}: {text}"))
            })
            .collect::<Result<Vec<_>>>()?;
        let place = engine.podman(&["image", "mount", image])?;
        let files = engine.sh(&format!(
            "cd '{}'; find . -mindepth 1 -printf '%P %y\\n' | sort; find . -type f -exec sha256sum {{}} + | sort",
            place.trim()
        ));
        engine.podman(&["image", "unmount", image])?;
        Ok((starts, files?))
    };
    let (shipped, by_file) = (facts(shipped)?, facts(BY_FILE)?);
    ensure!(
        shipped == by_file,
        "what is shipped and what the Dockerfile makes differ: {shipped:#?} {by_file:#?}"
    );
    let files: Vec<&str> = shipped.1.lines().collect();
    ensure!(
        matches!(files[..], ["tether f", _]),
        "not one file alone: {files:?}"
    );
    Ok(())
}

/// An image serves with no more than the documents say, and a second container of it in the place of the first, under connections.
fn serve(
    host: &Namespace,
    engine: &Engine<'_>,
    image: &str,
    clients: &Clients,
    target: SocketAddr,
) -> Result<()> {
    let documented = documented()?;
    let options: Vec<&str> = documented.iter().map(String::as_str).collect();
    let group = engine.group();
    let run = [
        &["run", "--rm", "--name=tether", &group],
        &options[..],
        &LIMITS,
        &[image],
    ]
    .concat();
    let mut container = started(host, engine, &run)?;
    let status = engine.status("tether")?;
    let least = capabilities(&documented)?;
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        ensure!(
            status.contains(&format!("{set}:\t{least}")),
            "{set} is not {least}: {status}"
        );
    }

    let connections = clients.open(60, Plan::new(target), |_| {})?;
    // Another container in its place, as a rollout makes it.
    stop(engine, &mut container)?;
    ensure!(
        attached(host)?.is_some(),
        "the program went with the container"
    );
    for connection in &connections {
        connection.echo()?;
    }
    let mut container = started(host, engine, &run)?;
    for connection in &connections {
        connection.echo()?;
    }
    stop(engine, &mut container)
}

/// Starts a container, and waits until it serves.
fn started(host: &Namespace, engine: &Engine<'_>, run: &[&str]) -> Result<Running> {
    let container = Running::start(host, engine.command(run))?;
    let ready = wait::until_seen(
        "the container serves",
        Duration::from_secs(40),
        || tether::succeed(host, &["backends", "--json"]),
        |text| text.matches("\"serving\":\"new\"").count() == 3,
    );
    match ready {
        Ok(_) => Ok(container),
        Err(error) => Err(error.context(container.said().join("\n"))),
    }
}

/// Stops a container, and waits until it is gone with its name.
fn stop(engine: &Engine<'_>, container: &mut Running) -> Result<()> {
    engine.podman(&["stop", "--time", "10", "tether"])?;
    container.wait_to_end(Duration::from_secs(20)).map(drop)
}
