//! `tether services`, `backends` and `flows` over real connections, and where the daemon listens for those who ask.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lab::address::Family;
use lab::config::SERVICE;
use lab::namespace::Namespace;
use lab::peer::client::Connection;
use lab::peer::crowd;
use lab::stage::Stage;
use lab::tether::{CONFIG_PATH, json_lines};
use lab::topology::{Place, Topology};
use tokio::net::TcpSocket;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn listings_show_what_is_there() -> Result<()> {
    lists(Family::V4, 81)
}

#[test]
fn listings_show_what_is_there_in_ipv6() -> Result<()> {
    lists(Family::V6, 82)
}

fn lists(family: Family, number: u8) -> Result<()> {
    let topology = Topology::new(Place::Farm).in_family(family);
    let stage = Stage::set(topology, number.into(), |_| {})?;
    let connections = stage.clients.open(90, stage.plan(), |_| {})?;
    let tether = &stage.tether;
    let live = |more: &[&str]| tether.flows(more);
    let flows = tether.wait_flows(90, SOON)?;
    for flow in &flows {
        assert_eq!(flow["service"], SERVICE);
        assert_eq!(flow["state"], "young");
        assert!(flow["age_s"].as_u64().is_some_and(|age| age < 60), "{flow}");
    }
    // Each client's port is on the backend that it says it talks to.
    for name in ["b1", "b2", "b3"] {
        let theirs = crowd::on(&connections, name).len();
        assert!(theirs > 10, "{theirs} on {name}");
        let backend = format!("{SERVICE}/{name}");
        assert_eq!(live(&["--backend", &backend])?.len(), theirs, "{name}");
    }
    let nobody = match family {
        Family::V4 | Family::V4InV6 => "203.0.113.0/24",
        Family::V6 => "2001:db8:ffff::/48",
    };
    assert_eq!(live(&["--client", nobody])?.len(), 0);
    let source = |connection: &Connection| {
        let history = connection.history();
        history.current().map(|life| life.local.ip())
    };
    let one = source(&connections[0]).context("it is open")?;
    let own = connections.iter().filter(|c| source(c) == Some(one));
    let own = own.count();
    assert!(own < 90, "all are of one client");
    assert_eq!(live(&["--client", &one.to_string()])?.len(), own);
    assert_eq!(live(&["--older-than", "1h"])?.len(), 0);

    // Pages of a sorted list, put together, are the list.
    let sorted = live(&["--sort", "client"])?;
    let mut clients: Vec<_> = flows.iter().map(|f| f["client"].to_string()).collect();
    let of = |flows: &[serde_json::Value]| -> Vec<String> {
        flows.iter().map(|f| f["client"].to_string()).collect()
    };
    let mut sorted_clients = of(&sorted);
    clients.sort_unstable();
    sorted_clients.sort_unstable();
    assert_eq!(sorted_clients, clients);
    let client = |flow: &serde_json::Value| -> Result<SocketAddr> {
        Ok(flow["client"].as_str().context("a client")?.parse()?)
    };
    let in_order: Vec<SocketAddr> = sorted.iter().map(client).collect::<Result<_>>()?;
    assert!(in_order.is_sorted(), "{in_order:?}");
    let first = tether.output(&[
        "flows", "--sort", "client", "--limit", "40", "--json", "--state", "young",
    ])?;
    let said = String::from_utf8(first.stderr)?;
    let cursor = said
        .split_once("--after ")
        .and_then(|(_, rest)| rest.split(' ').next())
        .with_context(|| format!("no way on in {said:?}"))?;
    let rest = live(&["--sort", "client", "--after", cursor])?;
    let mut pages = of(&json_lines(&String::from_utf8(first.stdout)?)?);
    pages.extend(of(&rest));
    assert_eq!(pages, of(&sorted));

    // For people: a table without colours, since nobody sees it.
    let table = tether.succeed(&["flows", "--limit", "5"])?;
    assert_eq!(table.lines().count(), 6, "{table}");
    assert!(
        table.starts_with("CLIENT ") && !table.contains('\u{1b}'),
        "{table}"
    );

    let services = tether.succeed(&["services", "--json"])?;
    let services: serde_json::Value = serde_json::from_str(&services)?;
    assert_eq!(services[0]["backends"]["new"], 3);
    assert!(services[0]["traffic"]["packets"].as_u64() > Some(90 * 3));
    tether.succeed(&["drain", &format!("{SERVICE}/b1")])?;
    tether.wait_status("b1 drains", SOON, |s| s.serving("b1") == "existing-only")?;
    let drained = tether.succeed(&["backends", SERVICE, "--serving", "existing-only"])?;
    assert_eq!(drained.lines().count(), 2, "{drained}");
    assert!(
        drained.contains("chat/b1") && drained.contains("draining"),
        "{drained}"
    );
    let wrong = tether.output(&["backends", "nothing"])?;
    assert_eq!(wrong.status.code(), Some(1));
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(
        said.contains("nothing") && said.contains("tether services"),
        "{said}"
    );
    let wrong = tether.output(&["flows", "--client", "10.0.0.0/99"])?;
    assert_eq!(wrong.status.code(), Some(1));
    assert_eq!(
        tether.output(&["flows", "--sort", "colour"])?.status.code(),
        Some(2)
    );
    assert_eq!(crowd::breaks(&connections), [""; 0]);
    stage.close();
    Ok(())
}

/// A peer that goes before it has read its answer costs the daemon nothing: not its life either, which SIGPIPE would take.
#[test]
fn peers_that_go_before_their_answer_do_no_harm() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 83, |_| {})?;
    let pid = stage.tether.pid()?;
    stage.lab.balancer().run(|| -> Result<()> {
        for round in 0..300 {
            let path = ["/v1/status", "/v1/flows", "/v1/openapi.json"][round % 3];
            let mut peer = UnixStream::connect("/run/tether/admin.sock")?;
            write!(peer, "GET {path} HTTP/1.1\r\nHost: tether\r\n\r\n")?;
            // Some go at once, others when the first bytes have come.
            if round % 2 == 0 {
                let _ = peer.read(&mut [0; 16])?;
            }
            drop(peer);
            let path = ["/metrics", "/", "/events"][round % 3];
            let mut peer = TcpStream::connect("127.0.0.1:9477")?;
            write!(peer, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
            if round % 2 == 0 {
                let _ = peer.read(&mut [0; 16])?;
            }
        }
        Ok(())
    })?;
    assert_eq!(stage.tether.status()?.pid, pid);
    stage.close();
    Ok(())
}

/// What somebody at another address than everybody else's is answered. Connections are accepted in their order: all that came before are, by then.
fn answer_to_another(host: &Namespace) -> Result<String> {
    host.run(|| -> Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut peer = runtime.block_on(async {
            let socket = TcpSocket::new_v4()?;
            socket.bind((Ipv4Addr::new(127, 0, 0, 2), 0).into())?;
            let target = (Ipv4Addr::LOCALHOST, 9477).into();
            socket.connect(target).await?.into_std()
        })?;
        peer.set_nonblocking(false)?;
        peer.set_read_timeout(Some(SOON))?;
        write!(peer, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut text = String::new();
        peer.read_to_string(&mut text)?;
        Ok(text)
    })
}

/// Far more peers of the metrics listener than it has places, who stay: they say nothing, or a little, or more than anybody takes, or read nothing.
#[test]
fn peers_that_stay_take_neither_memory_nor_anything_from_a_flow() -> Result<()> {
    let stage = Stage::set(Topology::new(Place::Farm), 86, |_| {})?;
    let balancer = stage.lab.balancer();
    let connections = stage.clients.open(20, stage.plan(), |_| {})?;
    let pid = stage.tether.pid()?;
    let before = stage.tether.own_memory_kib()?;
    let held = balancer.run(|| -> Result<Vec<TcpStream>> {
        let mut held = vec![];
        for number in 0..500 {
            let said: &[u8] = match number % 5 {
                0 => b"",
                1 => b"GET /metrics HTTP/1.1\r\nHost: loc",
                2 => b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
                3 => b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n",
                _ => b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{",
            };
            let mut peer = TcpStream::connect("127.0.0.1:9477")?;
            // One that finds no place is closed, and may be before it has asked.
            let _ = peer.write_all(said);
            held.push(peer);
        }
        Ok(held)
    })?;
    let answer = answer_to_another(balancer)?;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(stage.tether.status()?.pid, pid);
    for connection in &connections {
        connection.echo()?;
    }
    let after = stage.tether.own_memory_kib()?;
    assert!(
        after < before + (64 << 10),
        "{before} KiB have become {after}"
    );
    drop(held);
    assert_eq!(crowd::breaks(&connections), [""; 0]);

    // Each line of its log is an object, and there is none for each of these peers, or for each packet.
    let log = json_lines(&stage.tether.log())?;
    assert!(log.iter().all(|line| line["level"].is_string()), "{log:?}");
    assert!(log.len() < 200, "{} lines: {log:#?}", log.len());
    stage.close();
    Ok(())
}

/// Where a process of `host` listens, or takes datagrams, as `ss` finds it: kinds of sockets, with their addresses.
fn listens(host: &Namespace, pid: u32) -> Result<Vec<(String, String)>> {
    let its = format!("pid={pid},");
    let mut found = vec![];
    for command in ["ss -Hltnup", "ss -Hlxp"] {
        let text = host.sh(command)?;
        for line in text.lines().filter(|line| line.contains(&its)) {
            // Kind, state, two queues, the address.
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(kind), Some(address)) = (words.first(), words.get(4)) else {
                bail!("{command} says {line:?}");
            };
            found.push(((*kind).to_owned(), (*address).to_owned()));
        }
    }
    found.sort();
    Ok(found)
}

/// Nothing can be reached but by the admin socket and on loopback, as SECURITY.md says; and without metrics by the admin socket alone.
#[test]
fn nothing_listens_beyond_loopback_unless_asked() -> Result<()> {
    let socket = ("u_str".to_owned(), "/run/tether/admin.sock".to_owned());
    let metrics = ("tcp".to_owned(), "127.0.0.1:9477".to_owned());
    let mut stage = Stage::set(Topology::new(Place::Farm), 84, |_| {})?;
    let balancer = stage.lab.balancer().clone();
    assert_eq!(
        listens(&balancer, stage.tether.pid()?)?,
        [metrics, socket.clone()]
    );

    stage.tether.terminate()?;
    let text = stage.config.text() + "\n[metrics]\nlisten = \"off\"\n";
    balancer.write(CONFIG_PATH, &text)?;
    stage.tether.restart()?;
    stage.wait_serving()?;
    assert_eq!(listens(&balancer, stage.tether.pid()?)?, [socket]);
    stage.close();
    Ok(())
}
