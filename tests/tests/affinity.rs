//! A service that places clients: each has one backend for all its connections, whatever becomes of the table meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use lab::address::Family;
use lab::config::{Config, SERVICE, TRANSLATED_PORT};
use lab::peer::client::{Close, Connection, Plan};
use lab::peer::crowd;
use lab::stage::Stage;
use lab::topology::{Place, Topology};

const SOON: Duration = Duration::from_secs(30);
/// Connections that are opened at a time: several from each of the clients' addresses.
const CONNECTIONS: usize = 64;
const PLACES_CLIENTS: &str = "affinity = \"client-ip\"\n";

/// The backends that each client's connections are on.
fn backends(connections: &[Connection]) -> BTreeMap<IpAddr, BTreeSet<String>> {
    let mut of_clients: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for connection in connections {
        let history = connection.history();
        let life = history.current().expect("it is open");
        of_clients
            .entry(life.local.ip())
            .or_default()
            .insert(life.backend.clone());
    }
    of_clients
}

/// Clients, each with its one backend.
fn homes(connections: &[Connection]) -> BTreeMap<IpAddr, String> {
    backends(connections)
        .into_iter()
        .map(|(client, backends)| {
            let mut backends = backends.into_iter();
            match (backends.next(), backends.next()) {
                (Some(home), None) => (client, home),
                several => panic!("{client} is on several backends: {several:?}"),
            }
        })
        .collect()
}

fn open(stage: &Stage) -> Result<Vec<Connection>> {
    stage.clients.open(CONNECTIONS, stage.plan(), |_| {})
}

/// Until a pass over the flow tables has met all clients.
fn wait_known(stage: &Stage, clients: usize) -> Result<()> {
    wait_known_at(stage, SERVICE, clients)
}

/// The same for another service.
fn wait_known_at(stage: &Stage, service: &str, clients: usize) -> Result<()> {
    let known = |clients: Option<u64>| clients.and_then(|clients| usize::try_from(clients).ok());
    stage
        .tether
        .wait_status("all clients are known", SOON, |status| {
            let mut services = status.services.iter();
            let found = services.find(|found| found.name == service);
            found.is_some_and(|found| known(found.clients) == Some(clients))
        })
        .map(drop)
}

/// Nearly all of the table goes to one backend.
fn tilted(config: &Config, to: &str) -> Config {
    let mut config = config.clone();
    for backend in &mut config.backends {
        backend.weight = if backend.name == to { 1_000 } else { 1 };
    }
    config
}

fn clients_keep_their_backends(topology: Topology, seed: u64) -> Result<()> {
    let mut stage = Stage::set(topology, seed, |config| {
        PLACES_CLIENTS.clone_into(&mut config.lines);
    })?;
    let first = open(&stage)?;
    let at_home = homes(&first);
    let used: BTreeSet<_> = at_home.values().collect();
    assert!(used.len() > 1, "{at_home:?}");
    wait_known(&stage, at_home.len())?;

    // Another table, and another daemon.
    let tilted = tilted(&stage.config, "b1");
    stage.tether.reload(&tilted.text())?;
    assert_eq!(homes(&open(&stage)?), at_home);
    stage.tether.kill()?;
    assert_eq!(homes(&open(&stage)?), at_home);
    stage.tether.restart()?;
    stage.wait_serving()?;
    assert_eq!(crowd::echo_all(&first), [""; 0]);

    // Nor does a client need connections for that.
    for connection in &first {
        connection.close(Close::Orderly)?;
    }
    assert_eq!(homes(&open(&stage)?), at_home);

    // Who has to leave a backend goes to one, and stays there.
    let drained = at_home.values().next().expect("there are clients").clone();
    stage
        .tether
        .succeed(&["drain", &format!("{SERVICE}/{drained}")])?;
    stage.tether.wait_status("it drains", SOON, |status| {
        status.serving(&drained) == "existing-only"
    })?;
    let moved = homes(&open(&stage)?);
    for (client, home) in &at_home {
        assert_ne!(moved[client], drained);
        assert!(*home == drained || moved[client] == *home, "{client}");
    }
    stage.close();
    Ok(())
}

#[test]
fn clients_keep_their_backends_in_ipip() -> Result<()> {
    clients_keep_their_backends(Topology::new(Place::Farm), 701)
}

#[test]
fn clients_keep_their_backends_in_nat_in_ipv6() -> Result<()> {
    let topology = Topology::new(Place::Hidden).in_family(Family::V6);
    clients_keep_their_backends(topology, 702)
}

#[test]
fn a_reload_decides_whether_clients_are_placed_or_connections() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 703, |_| {})?;
    let several = |connections: &[Connection]| {
        let of_clients = backends(connections);
        of_clients
            .values()
            .filter(|backends| backends.len() > 1)
            .count()
    };
    let before = open(&stage)?;
    assert!(
        several(&before) > 0,
        "eight connections each, on one of three"
    );
    let mut config = stage.config.clone();
    PLACES_CLIENTS.clone_into(&mut config.lines);
    stage.tether.reload(&config.text())?;
    // Those that were there before decide where their clients go, or the table does; one backend each, either way.
    wait_known(&stage, backends(&before).len())?;
    homes(&open(&stage)?);
    stage.tether.reload(&stage.config.text())?;
    assert!(several(&open(&stage)?) > 0);
    assert_eq!(stage.tether.status()?.services[0].clients, None);
    assert_eq!(crowd::echo_all(&before), [""; 0]);
    stage.close();
    Ok(())
}

/// Another service of the same hosts, as of pods that serve HTTP and WebSockets.
const SECOND: &str = "sockets";
const SECOND_PORT: u16 = 444;

/// The lab's service, and another one at the same VIP whose configuration is otherwise that of `second`.
fn both(first: &Config, second: &Config) -> String {
    let text = second.text();
    let (_, service) = text.split_once("[[service]]\n").expect("it has one");
    let (name, port) = (
        format!("name = \"{SERVICE}\"\n"),
        format!("port = {TRANSLATED_PORT}\nmode"),
    );
    assert!(service.contains(&name) && service.contains(&port), "{text}");
    let service = service
        .replace(&name, &format!("name = \"{SECOND}\"\n"))
        .replace(&port, &format!("port = {SECOND_PORT}\nmode"));
    format!("{}\n[[service]]\n{service}", first.text())
}

#[test]
fn services_of_a_group_keep_a_client_at_one_host() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Hidden), 704, |config| {
        config.lines = format!("{PLACES_CLIENTS}affinity_group = \"pods\"\n");
    })?;
    // By its own table the second service would have nearly all clients on one host.
    let second = tilted(&stage.config, "b1");
    stage.tether.reload(&both(&stage.config, &second))?;
    stage
        .tether
        .wait_status("the second service takes connections", SOON, |status| {
            let mut services = status.services.iter();
            let found = services.find(|found| found.name == SECOND);
            found.is_some_and(|found| {
                let mut backends = found.backends.iter();
                let b1 = found.backends.iter().find(|backend| backend.name == "b1");
                backends.all(|backend| backend.serving == "new")
                    && b1.is_some_and(|b1| b1.balance.per_mille > 900)
            })
        })?;
    let first = open(&stage)?;
    let at_home = homes(&first);
    let used: BTreeSet<_> = at_home.values().collect();
    assert!(used.len() > 1, "{at_home:?}");

    // None of them has been there, and all are known there.
    wait_known_at(&stage, SECOND, at_home.len())?;
    let plan = Plan::new(SocketAddr::new(stage.config.vip, SECOND_PORT));
    let there = stage.clients.open(CONNECTIONS, plan, |_| {})?;
    assert_eq!(homes(&there), at_home);
    assert_eq!(crowd::echo_all(first.iter().chain(&there)), [""; 0]);
    stage.close();
    Ok(())
}
