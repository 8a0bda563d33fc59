//! Backends whose addresses come from a real DNS server: found, kept while it fails, drained when they leave its answers.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use lab::address::Family;
use lab::config::Named;
use lab::peer::backend::PORT;
use lab::peer::crowd;
use lab::peer::dns::DnsServer;
use lab::stage::Stage;
use lab::status::Status;
use lab::topology::{Place, Topology};

const SOON: Duration = Duration::from_secs(20);
const PACE: Duration = Duration::from_millis(250);
const NAME: &str = "chat.example.";

/// What the server is told, given addresses.
type Say = fn(&DnsServer, &[IpAddr]) -> Result<()>;

#[test]
fn by_a() -> Result<()> {
    backends_come_and_go(Family::V4, "a", |server, all| server.say(NAME, all))
}

#[test]
fn by_aaaa() -> Result<()> {
    backends_come_and_go(Family::V6, "aaaa", |server, all| server.say(NAME, all))
}

#[test]
fn by_srv() -> Result<()> {
    backends_come_and_go(Family::V4, "srv", |server, all| {
        server.say_service(NAME, PORT, all)
    })
}

fn backends_come_and_go(family: Family, kind: &'static str, say: Say) -> Result<()> {
    let topology = Topology::new(Place::Farm).in_family(family);
    let address = |index: u8| topology.backend_address(index);
    let pod = |index: u8| format!("pods-{}", address(index));
    let lab = topology.build()?;
    let server = DnsServer::start(lab.balancer())?;
    say(&server, &[address(0), address(1)])?;
    let mut stage = Stage::on(lab, 41, |config| {
        config.backends.clear();
        config.named = Some(Named {
            server: server.address(),
            query: NAME,
            kind,
        });
    })?;
    let serve = |stage: &Stage, names: &[String]| {
        let new = |status: &Status, name: &String| {
            // One whose next hop is not known yet takes no packet.
            let is_resolved = status
                .backend(name)
                .is_some_and(|backend| backend.neighbour == "resolved");
            status.serving(name) == "new" && is_resolved
        };
        let all = |status: &Status| names.iter().all(|name| new(status, name));
        stage
            .tether
            .wait_status(&format!("{names:?} serve"), SOON, all)
            .map(drop)
    };
    let failing = |stage: &Stage| -> Result<()> {
        lab::wait::until_seen(
            "the failure is shown",
            SOON,
            || stage.tether.succeed(&["status"]),
            |text| text.contains("chat: pods: chat.example. does not resolve"),
        )
        .map(drop)
    };
    serve(&stage, &[pod(0), pod(1)])?;
    let connections = stage
        .clients
        .open(120, stage.plan().talking(PACE), |_| {})?;
    let held = crowd::on(&connections, "b1").len();
    assert!(held > 20, "{held} on b1");

    // Nobody answers: all stays, over a restart too.
    server.fail();
    failing(&stage)?;
    stage.tether.kill()?;
    stage.tether.restart()?;
    stage.tether.wait_ready()?;
    serve(&stage, &[pod(0), pod(1)])?;
    failing(&stage)?;
    let newcomers = stage.clients.open(60, stage.plan(), |_| {})?;
    assert!(crowd::on(&newcomers, "b1").len() > 10);

    // b1 leaves the answer, and b3 comes.
    say(&server, &[address(1), address(2)])?;
    serve(&stage, &[pod(1), pod(2)])?;
    stage.tether.wait_status("b1 drains", SOON, |status| {
        status
            .backend(&pod(0))
            .is_some_and(|b1| b1.removed && b1.serving == "existing-only")
    })?;
    let newcomers = stage.clients.open(90, stage.plan(), |_| {})?;
    assert_eq!(crowd::on(&newcomers, "b1").len(), 0);
    assert!(crowd::on(&newcomers, "b3").len() > 10);
    assert_eq!(crowd::on(&connections, "b1").len(), held);
    crowd::assert_talking(&connections)?;
    stage.close();
    Ok(())
}
