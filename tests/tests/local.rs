//! Backends on the balancer's own host, where conntrack is at work and what it calls invalid is dropped, as Kubernetes has it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lab::address::{self, Family, Network, mac_of, mac_text};
use lab::config::{BackendSpec, Config, SERVICE};
use lab::packet_socket::Capture;
use lab::peer::backend::{Backend, PORT};
use lab::peer::client::{Clients, Close};
use lab::peer::{crowd, exchange, raw};
use lab::pods::{self, Behind, Pod, conntrack};
use lab::stage::Stage;
use lab::topology::{CLIENT_PORT, Place, Topology, UPLINK};
use lab::wait;
use lb_common::net::IpVersion;
use serde_json::Value;

const CONNECTIONS: usize = 60;
const SOON: Duration = Duration::from_secs(15);
/// None that the kernel would give another client's connection.
const FIRST_PORT: u16 = 10_000;
/// Several windows, and longer than any buffer on the way.
const MODERATE: u64 = 5_000_000;

/// A stage with pods on the balancer beside its other backends.
struct Host {
    stage: Stage,
    pods: Vec<Pod>,
    servers: Vec<Backend>,
}

fn set(
    topology: Topology,
    behind: Behind,
    seed: u64,
    change: impl FnOnce(&mut Config),
) -> Result<Host> {
    let lab = topology.build()?;
    let pods = pods::add(&lab, 2, behind)?;
    let servers = pods
        .iter()
        .map(|pod| Backend::start(&pod.host))
        .collect::<Result<Vec<_>>>()?;
    let stage = Stage::on(lab, seed, |config| {
        let version = topology.family.vip();
        config
            .backends
            .extend(pods.iter().map(|pod| pod.spec(version)));
        change(config);
    })?;
    if topology.place.is_translated() {
        // Remote backends' first answers, for which the balancer must first ask for its router's MAC, are invalid to conntrack: that is another test's.
        let gateway = Network::Segment.gateway(topology.family.vip());
        let refused = raw::connect(stage.lab.balancer(), (gateway, PORT).into(), SOON);
        assert!(refused.is_err());
    }
    Ok(Host {
        stage,
        pods,
        servers,
    })
}

impl Host {
    /// What tells the two kinds of backends apart.
    fn assert_told_apart(&self) -> Result<()> {
        let status = self.stage.tether.status()?;
        for backend in &self.stage.config.backends {
            let is_pod = self.pods.iter().any(|pod| pod.host.name() == backend.name);
            let told = status.backend(&backend.name).context("it is listed")?;
            let expected = if is_pod { "local" } else { "resolved" };
            assert_eq!(told.neighbour, expected, "{}", backend.name);
        }
        Ok(())
    }

    /// Clients know the VIP, and nothing else.
    fn assert_only_vip(&self, seen: Capture) {
        let target = self.stage.target();
        let segments = seen.stop();
        assert!(segments.len() > 3 * CONNECTIONS, "{}", segments.len());
        for segment in segments {
            let source = SocketAddr::new(segment.ip.source, segment.tcp.source);
            let destination = SocketAddr::new(segment.ip.destination, segment.tcp.destination);
            assert!(source == target || destination == target, "{segment:?}");
            assert!(segment.ip.checksum_ok, "{segment:?}");
            assert!(segment.tcp_checksum_ok, "{segment:?}");
        }
    }

    fn assert_conntrack_content(&self) -> Result<()> {
        assert_eq!(conntrack(&self.stage.lab, "invalid")?, 0);
        assert!(conntrack(&self.stage.lab, "established")? > 0);
        Ok(())
    }
}

fn serves(topology: Topology, behind: Behind, seed: u64) -> Result<()> {
    let mut host = set(topology, behind, seed, |_| {})?;
    host.assert_told_apart()?;
    let seen = Capture::start(host.stage.lab.router(), CLIENT_PORT)?;
    let plan = host.stage.plan();
    let connections = host.stage.clients.open(CONNECTIONS, plan, |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    let spread = crowd::spread(&connections);
    assert_eq!(spread.len(), host.stage.config.backends.len(), "{spread:?}");

    // A daemon that dies and comes back in the middle.
    host.stage.tether.kill()?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    host.stage.clients.open_one(plan)?.echo()?;
    host.stage.tether.restart()?;
    host.stage.wait_serving()?;
    host.assert_told_apart()?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    host.assert_only_vip(seen);

    // Half-closed streams, by either side, with segments as long as they get.
    for round in 0..4 {
        let stream = raw::connect(host.stage.lab.client(), host.stage.target(), SOON)?;
        exchange::run(stream, MODERATE, round)?;
        let stream = raw::connect(host.stage.lab.client(), host.stage.target(), SOON)?;
        exchange::run_backend_first(stream, MODERATE, round)?;
    }
    wait::until("backends have every byte of those they began", SOON, || {
        let backends = host.stage.backends.iter().chain(&host.servers);
        let exchanged: u64 = backends.map(Backend::exchanged).sum();
        (exchanged == 4).then_some(())
    })?;
    host.assert_conntrack_content()?;

    // The same port again, after each way of closing. (What a pod had under way to a client that has reset or vanished is invalid, and rightly so.)
    let clients = Clients::start(
        host.stage.lab.client(),
        &host.stage.lab.sources()[..1],
        seed,
    )?;
    for port in FIRST_PORT..FIRST_PORT + 4 {
        for how in [Close::Orderly, Close::Abort, Close::Vanish] {
            let connection = clients
                .open_one(plan.from_port(port))
                .with_context(|| format!("before {how:?}"))?;
            connection.echo()?;
            connection.close(how)?;
            raw::wait_free(host.stage.lab.client(), port, SOON)?;
        }
    }

    let status = host.stage.tether.status()?;
    assert!(status.packets("reply") > 0);
    for reason in ["untranslated", "unrecorded", "collision", "too_big"] {
        assert_eq!(status.packets(reason), 0, "{reason}");
    }
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    assert!(host.servers.iter().all(|server| server.open() > 0));
    host.stage.close();
    Ok(())
}

#[test]
fn pods_behind_veths_beside_remote_backends_of_ipip() -> Result<()> {
    serves(Topology::new(Place::Farm), Behind::Veth, 401)
}

#[test]
fn pods_behind_veths_beside_remote_backends_of_ipip_in_ipv6() -> Result<()> {
    let topology = Topology::new(Place::Farm).in_family(Family::V6);
    serves(topology, Behind::Veth, 402)
}

#[test]
fn pods_behind_a_bridge_beside_remote_backends_of_dnat() -> Result<()> {
    serves(Topology::new(Place::Behind), Behind::Bridge, 403)
}

#[test]
fn pods_behind_a_bridge_beside_remote_backends_of_dnat_in_ipv6() -> Result<()> {
    let topology = Topology::new(Place::Behind).in_family(Family::V6);
    serves(topology, Behind::Bridge, 404)
}

#[test]
fn pods_behind_veths_beside_remote_backends_of_nat() -> Result<()> {
    serves(Topology::new(Place::Hidden), Behind::Veth, 405)
}

#[test]
fn pods_behind_a_bridge_beside_remote_backends_of_nat_in_ipv6() -> Result<()> {
    let topology = Topology::new(Place::Hidden).in_family(Family::V6);
    serves(topology, Behind::Bridge, 410)
}

#[test]
fn pods_behind_a_bridge_beside_remote_backends_of_l2() -> Result<()> {
    serves(Topology::new(Place::Segment), Behind::Bridge, 406)
}

#[test]
fn pods_behind_veths_beside_remote_backends_of_l2_in_ipv6() -> Result<()> {
    let topology = Topology::new(Place::Segment).in_family(Family::V6);
    serves(topology, Behind::Veth, 411)
}

/// It is given to the host's stack, and addressed to the pod by then.
fn a_pods_flow_is_explained(family: Family, seed: u64) -> Result<()> {
    let topology = Topology::new(Place::Farm).in_family(family);
    let host = set(topology, Behind::Veth, seed, |_| {})?;
    let connections = host
        .stage
        .clients
        .open(CONNECTIONS, host.stage.plan(), |_| {})?;
    let tether = &host.stage.tether;
    let vip = host.stage.target().to_string();
    let flows = tether.wait_flows(CONNECTIONS, SOON)?;
    for pod in &host.pods {
        let flow = flows
            .iter()
            .find(|flow| flow["backend"] == pod.host.name())
            .with_context(|| format!("no flow on {}", pod.host.name()))?;
        let client = flow["client"].as_str().context("a client")?;
        let said: Value =
            serde_json::from_str(&tether.succeed(&["explain", client, &vip, "--json"])?)?;
        assert_eq!(said["verdict"]["reason"], "established", "{said:#}");
        assert_eq!(said["backend"]["name"], pod.host.name(), "{said:#}");
        let address = SocketAddr::new(pod.address(family.vip()), host.stage.config.port);
        assert_eq!(said["sent"]["source"], client, "{said:#}");
        assert_eq!(said["sent"]["destination"], address.to_string(), "{said:#}");
        let text = tether.succeed(&["explain", client, &vip])?;
        let expected = format!("given to this host's stack: {client} to {address}, ");
        assert!(text.contains(&expected), "{text}");
    }
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    host.stage.close();
    Ok(())
}

#[test]
fn a_pods_flow_is_explained_in_ipv4() -> Result<()> {
    a_pods_flow_is_explained(Family::V4, 416)
}

#[test]
fn a_pods_flow_is_explained_in_ipv6() -> Result<()> {
    a_pods_flow_is_explained(Family::V6, 417)
}

/// What the host and its pods send to a VIP is answered past the program: by the host's own stack, or with the backend's own address. `tether doctor` says
/// so.
fn the_vip_is_not_for_the_host_and_its_pods(family: Family, seed: u64) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let topology = Topology {
        backends: 0,
        ..Topology::new(Place::Farm).in_family(family)
    };
    let host = set(topology, Behind::Veth, seed, |_| {})?;
    let (lab, target) = (&host.stage.lab, host.stage.target());
    let insiders = [lab.balancer(), &host.pods[0].host];
    host.stage.clients.open_one(host.stage.plan())?.echo()?;

    // The router sends the packets back to this host.
    for insider in insiders {
        let connected = raw::connect(insider, target, PATIENCE);
        assert!(connected.is_err(), "from {}", insider.name());
    }
    // It is an address of this host.
    lab.balancer()
        .ip(&format!("address add {} dev lo", target.ip()))?;
    for insider in insiders {
        let refused = raw::connect(insider, target, PATIENCE)
            .err()
            .with_context(|| format!("connected from {}", insider.name()))?;
        assert_eq!(
            refused.kind(),
            ErrorKind::ConnectionRefused,
            "from {}",
            insider.name()
        );
    }
    // What they are to use instead.
    let address = SocketAddr::new(host.pods[1].address(family.vip()), PORT);
    for insider in insiders {
        raw::connect(insider, address, SOON).with_context(|| format!("from {}", insider.name()))?;
    }
    host.stage.clients.open_one(host.stage.plan())?.echo()?;

    let examined = host.stage.tether.output(&["doctor", "--json"])?;
    let report: Value = serde_json::from_slice(&examined.stdout)?;
    let findings = report["findings"].as_array().context("findings")?;
    let told: Vec<_> = findings
        .iter()
        .filter(|finding| finding["check"] == "local-clients")
        .collect();
    let [finding] = told[..] else {
        bail!("{report:#}");
    };
    assert_eq!(finding["subject"], SERVICE, "{finding:#}");
    assert_eq!(finding["state"], "ok", "{finding:#}");
    let found = finding["found"].as_str().unwrap_or_default();
    assert!(
        found.contains(&target.ip().to_string()) && found.contains(UPLINK),
        "{finding:#}"
    );
    host.stage.close();
    Ok(())
}

#[test]
fn the_vip_leads_from_the_host_and_its_pods_to_no_pod() -> Result<()> {
    the_vip_is_not_for_the_host_and_its_pods(Family::V4, 418)
}

#[test]
fn the_vip_leads_from_the_host_and_its_pods_to_no_pod_in_ipv6() -> Result<()> {
    the_vip_is_not_for_the_host_and_its_pods(Family::V6, 419)
}

/// As a pod with the host's network has it: an address of the host itself.
fn a_process_of_the_host_serves(family: Family, seed: u64) -> Result<()> {
    let topology = Topology {
        backends: 0,
        ..Topology::new(Place::Farm).in_family(family)
    };
    let lab = topology.build()?;
    pods::add(&lab, 0, Behind::Veth)?;
    let server = Backend::start(lab.balancer())?;
    let stage = Stage::on(lab, seed, |config| {
        config.backends.push(BackendSpec {
            name: "balancer".into(),
            address: topology.balancer_address(),
            weight: 100,
            lines: String::new(),
        });
    })?;
    let status = stage.tether.status()?;
    let told = status.backend("balancer").context("it is listed")?;
    assert_eq!(told.neighbour, "local");
    let connections = stage.clients.open(CONNECTIONS, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    for round in 0..2 {
        let stream = raw::connect(stage.lab.client(), stage.target(), SOON)?;
        exchange::run(stream, MODERATE, round)?;
    }
    assert_eq!(server.open(), CONNECTIONS as u64);
    assert_eq!(conntrack(&stage.lab, "invalid")?, 0);
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

#[test]
fn a_process_of_the_host() -> Result<()> {
    a_process_of_the_host_serves(Family::V4, 407)
}

#[test]
fn a_process_of_the_host_in_ipv6() -> Result<()> {
    a_process_of_the_host_serves(Family::V6, 408)
}

/// The daemon tells the pod of what a deadline has closed, by the stack, and conntrack has nothing against it.
#[test]
fn a_deadline_is_told_to_both_sides() -> Result<()> {
    let host = set(Topology::new(Place::Farm), Behind::Veth, 409, |_| {})?;
    let plan = host.stage.plan().talking(Duration::from_millis(200));
    let connections = host.stage.clients.open(CONNECTIONS, plan, |_| {})?;
    let theirs = crowd::on(&connections, "p1");
    assert!(!theirs.is_empty());
    host.stage.tether.succeed(&[
        "drain",
        &format!("{SERVICE}/p1"),
        "--deadline",
        "0s",
        "--close-over",
        "0s",
    ])?;
    let pod = &host.servers[0];
    wait::until("the pod has no connection left", SOON, || {
        (pod.open() == 0).then_some(())
    })?;
    wait::until("its clients are reset", SOON, || {
        let broken = theirs.iter().filter(|c| c.history().breaks().count() > 0);
        (broken.count() == theirs.len()).then_some(())
    })?;
    assert_eq!(pod.reset(), theirs.len() as u64);
    assert_eq!(conntrack(&host.stage.lab, "invalid")?, 0);
    host.stage.close();
    Ok(())
}

/// A router's way to clients that is narrower than all others, without anybody having been told: its error comes to the host, which has to know whose
/// packet it is about, and conntrack too.
fn a_narrow_way_to_clients_is_learned(place: Place, family: Family, seed: u64) -> Result<()> {
    const MTU: u16 = 1400;
    let topology = Topology {
        backends: 0,
        ..Topology::new(place).in_family(family)
    };
    let lab = topology.build()?;
    let pods = pods::add(&lab, 1, Behind::Veth)?;
    let version = family.vip();
    let clients = Network::Clients.prefix(version);
    lab.router().ip(&format!(
        "route del {clients} dev client\nroute add {clients} dev client mtu lock {MTU}"
    ))?;
    let _server = Backend::start(&pods[0].host)?;
    let stage = Stage::on(lab, seed, |config| {
        config.backends.push(pods[0].spec(version));
    })?;
    let stream = raw::connect(stage.lab.client(), stage.target(), SOON)?;
    let route = format!("ip route get {}", stream.local_addr()?.ip());
    let learned = format!("mtu {MTU}");
    assert!(!pods[0].host.sh(&route)?.contains(&learned));
    exchange::run(stream, MODERATE, MODERATE)?;
    assert!(pods[0].host.sh(&route)?.contains(&learned), "the pod");
    let status = stage.tether.wait_status("it was told", SOON, |status| {
        status.packets("error_relayed") > 0
    })?;
    assert_eq!(status.packets("error_unrelayed"), 0);
    assert_eq!(conntrack(&stage.lab, "invalid")?, 0);
    stage.close();
    Ok(())
}

/// From nothing on, and over a restart, which looks at what is attached.
#[test]
fn with_no_more_rights_than_documented() -> Result<()> {
    let mut host = set(Topology::new(Place::Farm), Behind::Veth, 412, |_| {})?;
    host.stage.tether.terminate()?;
    host.stage.tether.succeed(&["cleanup"])?;
    host.stage.tether.restart_with_least_rights()?;
    host.stage.wait_serving()?;
    host.assert_told_apart()?;
    let plan = host.stage.plan();
    let connections = host.stage.clients.open(CONNECTIONS, plan, |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    host.stage.tether.kill()?;
    host.stage.tether.restart_with_least_rights()?;
    host.stage.wait_serving()?;
    host.assert_told_apart()?;
    host.stage.clients.open_one(plan)?.echo()?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    host.stage.close();
    Ok(())
}

/// A router that the balancer's host has not asked for yet: what it would take is invalid to conntrack, which has not seen the request, so the host
/// alone would never ask.
fn the_clients_router_is_found(family: Family, seed: u64) -> Result<()> {
    let topology = Topology::new(Place::Behind).in_family(family);
    let lab = topology.build()?;
    pods::add(&lab, 0, Behind::Veth)?;
    let stage = Stage::on(lab, seed, |_| {})?;
    let gateway = Network::Segment.gateway(family.vip());
    let balancer = stage.lab.balancer();
    // A router that asks for the balancer's address makes its own known by that.
    stage.lab.router().ip(&format!(
        "neighbour replace {} lladdr {} dev segment nud permanent",
        address::balancer(family.vip()),
        mac_text(mac_of(address::balancer(IpVersion::V4))),
    ))?;
    balancer.ip(&format!("neighbour flush to {gateway}"))?;
    let connections = stage.clients.open(CONNECTIONS, stage.plan(), |_| {})?;
    assert_eq!(crowd::echo_all(&connections), [""; 0]);
    let known = balancer.sh(&format!("ip neighbour show to {gateway}"))?;
    assert!(known.contains("lladdr"), "{known}");
    stage.close();
    Ok(())
}

#[test]
fn a_pod_learns_of_a_narrow_way_to_clients() -> Result<()> {
    a_narrow_way_to_clients_is_learned(Place::Farm, Family::V4, 412)
}

#[test]
fn a_pod_learns_of_a_narrow_way_to_clients_in_ipv6() -> Result<()> {
    a_narrow_way_to_clients_is_learned(Place::Segment, Family::V6, 413)
}

#[test]
fn a_pod_learns_of_a_narrow_way_to_clients_of_nat() -> Result<()> {
    a_narrow_way_to_clients_is_learned(Place::Hidden, Family::V4, 414)
}

#[test]
fn a_pod_learns_of_a_narrow_way_to_clients_of_nat_in_ipv6() -> Result<()> {
    a_narrow_way_to_clients_is_learned(Place::Hidden, Family::V6, 415)
}

#[test]
fn the_clients_router_is_found_past_conntrack() -> Result<()> {
    the_clients_router_is_found(Family::V4, 410)
}

#[test]
fn the_clients_router_is_found_past_conntrack_in_ipv6() -> Result<()> {
    the_clients_router_is_found(Family::V6, 411)
}
