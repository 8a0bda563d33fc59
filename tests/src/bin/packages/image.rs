//! The image, run with no more than the documents say: all capabilities dropped but four, a read-only root, a default network that is the host's.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::config::Config;
use lab::peer::backend::{Backend, PORT};
use lab::peer::client::{Clients, Plan};
use lab::running::Running;
use lab::tether;
use lab::topology::{Place, Topology, UPLINK};
use lab::wait;

use super::attached;
use super::engine::Engine;

/// What the documents name.
const LEAST: [&str; 8] = [
    "--network=host",
    "--read-only",
    "--cap-drop=ALL",
    "--cap-add=BPF,NET_ADMIN,PERFMON,NET_RAW",
    "--security-opt=seccomp=unconfined",
    "--volume=/sys/fs/bpf:/sys/fs/bpf",
    "--volume=/run/tether:/run/tether",
    "--volume=/run/etc:/etc/tether:ro",
];

pub(crate) fn test(image: &Path, version: &str) -> Result<()> {
    let topology = Topology::new(Place::Farm);
    let lab = topology.build()?;
    let mut backends = vec![];
    for host in lab.backends() {
        tether::succeed(host, &["decap", "--interface", UPLINK])?;
        backends.push(Backend::start(host)?);
    }
    let host = lab.balancer();
    host.sh("mkdir -p /run/etc /run/tether")?;
    host.write("/run/etc/tether.toml", &Config::new(topology).text())?;
    let engine = Engine::start(host)?;
    engine.podman(&["load", "--input", &image.to_string_lossy()])?;
    let name = format!("localhost/tether:{version}");
    // What a process of a lab may have at most.
    let limits = ["--ulimit=nofile=20000:20000", "--ulimit=nproc=4096:4096"];
    let group = engine.group();
    let run = [
        &["run", "--rm", "--name=tether", &group],
        &LEAST[..],
        &limits,
        &[&name],
    ]
    .concat();
    let mut container = Running::start(host, engine.command(&run))?;
    let ready = wait::until_seen(
        "the container serves",
        Duration::from_secs(40),
        || tether::succeed(host, &["backends", "--json"]),
        |text| text.matches("\"serving\":\"new\"").count() == 3,
    );
    if let Err(error) = ready {
        return Err(error.context(container.said().join("\n")));
    }
    let status = engine.status("tether")?;
    // CAP_NET_ADMIN 12, CAP_NET_RAW 13, CAP_PERFMON 38, CAP_BPF 39.
    let least = format!("{:016x}", (1u64 << 12) | (1 << 13) | (1 << 38) | (1 << 39));
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        ensure!(
            status.contains(&format!("{set}:\t{least}")),
            "{set} is not {least}: {status}"
        );
    }

    let clients = Clients::start(lab.client(), lab.sources(), 6)?;
    let plan = Plan::new(std::net::SocketAddr::new(topology.vip(), PORT));
    let connections = clients.open(60, plan, |_| {})?;
    // Another container in its place, as a rollout makes it.
    engine.podman(&["stop", "--time", "10", "tether"])?;
    container.wait_to_end(Duration::from_secs(20))?;
    ensure!(
        attached(host)?.is_some(),
        "the program went with the container"
    );
    for connection in &connections {
        connection.echo()?;
    }
    let _container = Running::start(host, engine.command(&run))?;
    wait::until_seen(
        "the next container serves",
        Duration::from_secs(40),
        || tether::succeed(host, &["backends", "--json"]),
        |text| text.matches("\"serving\":\"new\"").count() == 3,
    )?;
    for connection in &connections {
        connection.echo()?;
    }
    engine.podman(&["stop", "--time", "10", "tether"])?;
    println!(
        "image: served with four capabilities and a read-only root; 60 connections lived through its replacement"
    );
    Ok(())
}
