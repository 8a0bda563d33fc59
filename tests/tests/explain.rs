//! `tether explain` over real connections.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::address::Family;
use lab::config::SERVICE;
use lab::peer::crowd;
use lab::stage::Stage;
use lab::topology::{Place, Topology, UPLINK};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_flow_is_explained_in_l2() -> Result<()> {
    explained("l2", Family::V4, 91)
}

#[test]
fn a_flow_is_explained_in_ipip() -> Result<()> {
    explained("ipip", Family::V4, 92)
}

#[test]
fn a_flow_is_explained_in_ipip_in_ipv6() -> Result<()> {
    explained("ipip", Family::V6, 93)
}

#[test]
fn a_flow_is_explained_in_nat() -> Result<()> {
    explained("nat", Family::V4, 94)
}

#[test]
fn a_flow_is_explained_in_dnat_in_ipv6() -> Result<()> {
    explained("dnat", Family::V6, 95)
}

fn explained(mode: &str, family: Family, seed: u64) -> Result<()> {
    let topology = Topology::new(Place::of_mode(mode)).in_family(family);
    let stage = Stage::set(topology, seed, |_| {})?;
    let connections = stage.clients.open(20, stage.plan(), |_| {})?;
    let vip = stage.target().to_string();
    let tether = &stage.tether;
    let explain = |client: &str, more: &[&str]| -> Result<Value> {
        let arguments = [&["explain", client, &vip, "--json"], more].concat();
        Ok(serde_json::from_str(&tether.succeed(&arguments)?)?)
    };
    // What each connection's backend says of itself is what is explained of its port.
    let flows = tether.wait_flows(20, SOON)?;
    for name in ["b1", "b2", "b3"] {
        let flow = flows
            .iter()
            .find(|flow| flow["backend"] == name)
            .with_context(|| format!("no flow on {name}"))?;
        let client = flow["client"].as_str().context("a client")?;
        let said = explain(client, &[])?;
        ensure!(said["verdict"]["reason"] == "established", "{said:#}");
        ensure!(said["backend"]["name"] == name, "{said:#}");
        ensure!(said["sent"]["interface"] == UPLINK, "{said:#}");
        ensure!(
            said["entries"][0]["backend"] == format!("{SERVICE}/{name}"),
            "{said:#}"
        );
        let has_outer = !said["sent"]["outer"].is_null();
        ensure!(has_outer == (mode == "ipip"), "{said:#}");
        ensure!(
            said["entries"][0]["snat"].is_null() == (mode != "nat"),
            "{said:#}"
        );
        let end = explain(client, &["--flags", "fin,ack"])?;
        // Where replies come through the balancer, one FIN leaves a flow half open.
        let state = if topology.place.is_translated() {
            "pin"
        } else {
            "closing"
        };
        ensure!(end["entries_after"][0]["state"] == state, "{end:#}");
    }
    // A client that never was: its SYN would open a flow, and does not.
    let stranger = flows[0]["client"].as_str().context("a client")?;
    let (address, _) = stranger.rsplit_once(':').context("a port")?;
    let stranger = format!("{address}:1");
    let said = explain(&stranger, &[])?;
    ensure!(said["verdict"]["reason"] == "opened", "{said:#}");
    ensure!(said["entries_after"][0]["state"] == "embryo", "{said:#}");
    let mid = explain(&stranger, &["--mid-stream"])?;
    let adopted = if mode == "nat" {
        "unknown_flow"
    } else {
        "adopted"
    };
    ensure!(mid["verdict"]["reason"] == adopted, "{mid:#}");
    ensure!(explain(&stranger, &[])?["entries"] == Value::Array(vec![]));
    let text = tether.succeed(&["explain", &stranger, &vip])?;
    ensure!(
        text.contains("forward (opened)") && text.contains("nothing was changed"),
        "{text}"
    );

    // Where nobody takes new flows, that is what is said, before anybody tries.
    tether.succeed(&["drain", "--all"])?;
    tether.wait_status("all drain", SOON, |status| {
        ["b1", "b2", "b3"]
            .iter()
            .all(|name| status.serving(name) == "existing-only")
    })?;
    // Of all that was asked about nothing was counted: these are the flows that are.
    let counted = tether.wait_status("the flows are counted", SOON, |status| {
        status
            .reasons
            .get("opened")
            .is_some_and(|packets| packets.packets >= 20)
    })?;
    for (reason, packets) in [("opened", 20), ("adopted", 0), ("unknown_flow", 0)] {
        let count = counted.reasons.get(reason).map_or(0, |count| count.packets);
        ensure!(count == packets, "{count} {reason}");
    }
    let said = explain(&stranger, &["--syn"])?;
    ensure!(said["verdict"]["reason"] == "no_backend", "{said:#}");
    let events = tether.succeed(&["events"])?;
    ensure!(
        events.contains("host: evacuated") && events.contains("keeps the flows it has"),
        "{events}"
    );

    for (arguments, status, word) in [
        (vec!["explain", "192.0.2.7", &vip], 2, "192.0.2.7:40000"),
        (
            vec!["explain", &stranger, &vip, "--interface", "nowhere0"],
            1,
            "nowhere0",
        ),
        (
            vec!["explain", &stranger, "[::1]:80", "--syn"],
            if family == Family::V6 { 0 } else { 1 },
            "versions",
        ),
    ] {
        let output = tether.output(&arguments)?;
        ensure!(
            output.status.code() == Some(status),
            "{arguments:?}: {output:?}"
        );
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(status == 0 || said.contains(word), "{arguments:?}: {said}");
    }
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}
