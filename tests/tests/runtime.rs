//! Backends that are changed at runtime, beside the file: planned, done, kept over a kill, and shown. No connection notices.

use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::address::Family;
use lab::config::SERVICE;
use lab::peer::crowd;
use lab::stage::Stage;
use lab::topology::{Place, Topology};
use lab::wait;

const SOON: Duration = Duration::from_secs(15);
const PACE: Duration = Duration::from_millis(250);
const NEW: &str = "/run/new.toml";

#[test]
fn in_ipv4() -> Result<()> {
    changes_at_runtime(Family::V4)
}

#[test]
fn in_ipv6() -> Result<()> {
    changes_at_runtime(Family::V6)
}

fn changes_at_runtime(family: Family) -> Result<()> {
    let topology = Topology::new(Place::Farm).in_family(family);
    let b3 = topology.backend_address(2).to_string();
    let mut stage = Stage::set(topology, 31, |config| *config = config.without("b3"))?;
    let connections = stage
        .clients
        .open(120, stage.plan().talking(PACE), |_| {})?;
    let held = crowd::on(&connections, "b1").len();
    assert!(held > 20, "{held} on b1");
    stage
        .tether
        .wait_status("b1's flows are counted", SOON, |status| {
            status
                .backend("b1")
                .is_some_and(|b1| b1.flows.live() == held as u64)
        })?;

    // What a file without b1 would do is told, and not done.
    let without = stage.config.without("b1").text();
    stage.lab.balancer().write(NEW, &without)?;
    let before = stage.tether.status()?.generation.accepted;
    let plan = stage.tether.succeed(&["plan", "--config", NEW, "--json"])?;
    let plan: serde_json::Value = serde_json::from_str(&plan)?;
    assert_eq!(plan["drained_flows"], held, "{plan}");
    let b1 = plan["services"][0]["backends"]
        .as_array()
        .and_then(|all| all.iter().find(|one| one["name"] == "b1"))
        .context("b1 is planned")?;
    assert_eq!(b1["change"], "removed", "{plan}");
    let text = stage.tether.succeed(&["plan", "--config", NEW])?;
    assert!(
        text.contains(&format!("{held} flows would be on")),
        "{text}"
    );
    assert_eq!(stage.tether.status()?.generation.accepted, before);
    assert_eq!(stage.tether.status()?.serving("b1"), "new");
    stage.lab.balancer().write(NEW, "interfaces = 3")?;
    let bad = stage.tether.output(&["plan", "--config", NEW])?;
    assert_eq!(bad.status.code(), Some(2));

    let named = |name: &str| format!("{SERVICE}/{name}");
    stage
        .tether
        .succeed(&["add", &named("b3"), "--address", &b3])?;
    stage.tether.succeed(&["weight", &named("b2"), "0"])?;
    let settled = |stage: &Stage| {
        stage
            .tether
            .wait_status("b3 is in, and b2 out", SOON, |status| {
                status.serving("b3") == "new" && status.serving("b2") == "existing-only"
            })
    };
    settled(&stage)?;
    let newcomers = |stage: &Stage| -> Result<()> {
        // The status tells what was resolved, a moment before the kernel has the table.
        wait::until("the table has b3", SOON, || {
            let one = stage.clients.open(1, stage.plan(), |_| {});
            one.is_ok_and(|one| !crowd::on(&one, "b3").is_empty())
                .then_some(())
        })?;
        let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
        assert!(crowd::on(&newcomers, "b3").len() > 10);
        assert_eq!(crowd::on(&newcomers, "b2").len(), 0);
        Ok(())
    };
    newcomers(&stage)?;

    stage.tether.kill()?;
    stage.tether.restart()?;
    stage.tether.wait_ready()?;
    settled(&stage)?;
    newcomers(&stage)?;
    let shown = stage.tether.succeed(&["status"])?;
    assert!(shown.contains("chat/b2  weight  weight 0"), "{shown}");
    assert!(shown.contains("chat/b3  added"), "{shown}");

    for name in ["b2", "b3"] {
        stage.tether.succeed(&["revert", &named(name)])?;
    }
    stage
        .tether
        .wait_status("b2 is back, and b3 gone", SOON, |status| {
            status.serving("b2") == "new" && status.serving("b3") != "new"
        })?;
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    assert_eq!(crowd::on(&newcomers, "b3").len(), 0);
    let shown = stage.tether.succeed(&["status"])?;
    assert!(!shown.contains("changed at runtime"), "{shown}");
    crowd::assert_talking(&connections)?;
    stage.close();
    Ok(())
}
