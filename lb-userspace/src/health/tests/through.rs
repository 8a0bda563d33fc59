//! Checks through the VIP, by the MAC of the host that has it. (Those in a tunnel: in the labs, whose backends have a receiver.)

use std::io::{Read as _, Write as _};

use super::*;
use crate::{
    model::{Passage, ToVip},
    testnet::wait_for,
};

/// The port of [`serve_pages`].
const PAGES_PORT: u16 = 81;
/// Many segments.
const PAGE_BYTES: usize = 40_000;

const VIPS: [(Network, IpAddr); 2] = [
    (FOUR, IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7))),
    (
        SIX,
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 5, 0, 0, 0, 7)),
    ),
];

fn by_link(vip: IpAddr, port: u16) -> ToVip {
    ToVip {
        vip: SocketAddr::new(vip, port),
        by: Passage::Link,
    }
}

/// Serves so many long pages on the far host, one a connection.
fn serve_pages(pair: &Pair, number: usize) {
    let host = pair.far.twin();
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        host.run(move || {
            let listener =
                std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, PAGES_PORT)).unwrap();
            ready.send(()).unwrap();
            for _ in 0..number {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 4_096];
                assert!(stream.read(&mut request).unwrap() > 0);
                let page = format!("{:->PAGE_BYTES$}", "the end");
                let response = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{page}");
                // Whoever has read all of it may reset the connection.
                let _ = stream.write_all(response.as_bytes());
            }
        });
    });
    is_ready.recv().unwrap();
}

#[test]
fn a_live_host_that_lacks_the_vip_is_refusing_until_it_has_it() {
    for (network, vip) in VIPS {
        let pair = Arc::new(Pair::new());
        let _server = serve(&pair);
        let hosts = pair.clone();
        block_on(&pair.near, move || async move {
            let there = network.there;
            let to = by_link(vip, PORT);
            let mut checks = Checks::start(vec![Target {
                through: Some(to),
                ..target(there, tcp())
            }]);
            let report = loop {
                let report = checks.next().await;
                assert_ne!(report.health, Health::Down);
                if report.health == Health::Refusing {
                    break report;
                }
            };
            let error = format!(
                "a TCP connection at the VIP {} by the MAC of {there} got no answer to its SYN within 300 ms (does it have the VIP?)",
                to.vip
            );
            assert_eq!(report.last_error.map(|last| last.text), Some(error));
            hosts.far.ip(&format!("addr add {vip} dev lo"));
            assert!(
                !checks
                    .until(there, Health::Up)
                    .await
                    .contains(&Health::Down)
            );
        });
    }
}

#[test]
fn every_kind_of_check_goes_through_the_vip_though_this_host_has_it_too() {
    for (network, vip) in VIPS {
        let pair = Pair::new();
        let _server = serve(&pair);
        serve_pages(&pair, 4);
        pair.far.ip(&format!("addr add {vip} dev lo"));
        wait_for("the far host's MAC", || {
            let there = network.there;
            let near = pair.near.ip(&format!("neigh show {there}"));
            if near.contains("lladdr") {
                return true;
            }
            pair.near.run(move || {
                // The answer does not matter: the question has the kernel ask for the MAC.
                let _ = std::net::TcpStream::connect((there, 1));
            });
            false
        });
        let near = pair.near.twin();
        block_on(&pair.near, move || async move {
            let passages = Arc::new(Passages::default());
            let through = |port, check: &Check| {
                let address = SocketAddr::new(network.there, port);
                let clients = TlsClients::default();
                Probe::through(
                    by_link(vip, port),
                    address,
                    check,
                    &clients,
                    passages.clone(),
                )
            };
            let page = Check {
                kind: CheckKind::Http(Arc::new(HttpCheck {
                    target: RequestTarget::default(),
                    method: hyper::Method::GET,
                    path: "/page".parse().unwrap(),
                    status: vec![200..=200],
                    body_contains: Some("the end".into()),
                    json: None,
                })),
                timeout: Duration::from_secs(5),
                interval: Duration::from_secs(5),
                ..tcp()
            };
            let (connects, reads) = (through(PORT, &tcp()), through(PAGES_PORT, &page));
            for has_vip in [false, true] {
                if has_vip {
                    near.ip(&format!("addr add {vip} dev lo"));
                }
                for _ in 0..2 {
                    // By the same port of this host each time.
                    assert_eq!(replied(&connects.ask().await), (Reply::Yes, ""));
                    assert_eq!(replied(&reads.ask().await), (Reply::Yes, ""));
                }
            }
            // Nobody listens there.
            let answer = through(1, &tcp()).ask().await;
            let error = format!(
                "a TCP connection at the VIP {} by the MAC of {} was refused",
                SocketAddr::new(vip, 1),
                network.there
            );
            assert_eq!(replied(&answer), (Reply::No, error.as_str()));
        });
    }
}

#[test]
fn a_dead_host_on_the_link_is_silent_however_short_the_timeout() {
    for (network, vip) in VIPS {
        let pair = Pair::new();
        block_on(&pair.near, move || async move {
            let passages = Arc::<Passages>::default();
            // The second is shorter than the time that is given to a neighbour.
            for timeout in [Duration::from_millis(300), Duration::from_millis(25)] {
                let check = Check { timeout, ..tcp() };
                let probe = Probe::through(
                    by_link(vip, PORT),
                    SocketAddr::new(network.nobody, PORT),
                    &check,
                    &TlsClients::default(),
                    passages.clone(),
                );
                let error = format!(
                    "a TCP connection at the VIP {} by the MAC of {} found nobody on the link who has the backend's address",
                    SocketAddr::new(vip, PORT),
                    network.nobody
                );
                assert_eq!(replied(&probe.ask().await), (Reply::Silent, error.as_str()));
            }
        });
    }
}

#[test]
fn no_check_is_asked_from_a_vip() {
    for (network, vip) in VIPS {
        let pair = Pair::new();
        block_on(&pair.near, move || async move {
            let (_, vips) = watch::channel(BTreeSet::from([network.here]));
            let probe = Probe::through(
                by_link(vip, PORT),
                SocketAddr::new(network.there, PORT),
                &tcp(),
                &TlsClients::default(),
                Arc::new(Passages::beside(vips)),
            );
            let error = format!(
                "a TCP connection at the VIP {} by the MAC of {} could not be asked for: this host has no address of IPv{} to ask from that is no VIP",
                SocketAddr::new(vip, PORT),
                network.there,
                if vip.is_ipv4() { 4 } else { 6 }
            );
            assert_eq!(
                replied(&probe.ask().await),
                (Reply::Unasked, error.as_str())
            );
        });
    }
}
