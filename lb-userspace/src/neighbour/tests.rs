//! Next hops against the kernel's own routes, links and neighbours.

use super::*;
use crate::testnet::{FOUR, Host, Network, PATIENCE, PODS, Pair, SIX, block_on};

/// The module at work on a host, for a set of addresses.
struct Running {
    addresses: watch::Sender<BTreeSet<IpAddr>>,
    reports: mpsc::Receiver<NextHopReport>,
    closed: watch::Receiver<Vec<ClosedEgress>>,
}

impl Running {
    async fn next(&mut self) -> NextHopReport {
        tokio::time::timeout(PATIENCE, self.reports.recv())
            .await
            .expect("no report")
            .expect("the module ended")
    }

    /// The next two reports are that the other side and what is behind it are resolved, in either order: ARP or NDP decides.
    async fn both_resolved(&mut self, network: Network) -> (NextHop, NextHop) {
        let Network { there, behind, .. } = network;
        let mut hops = BTreeMap::new();
        for _ in 0..2 {
            let report = self.next().await;
            assert_eq!(report.on_link, report.address == there);
            hops.insert(report.address, report.next_hop.expect("unresolved"));
        }
        (hops[&there], hops[&behind])
    }

    /// The next report is of this address and that it is resolved.
    async fn resolved(&mut self, address: IpAddr) -> NextHop {
        let report = self.next().await;
        assert_eq!(report.address, address);
        report.next_hop.expect("unresolved")
    }
}

fn start(addresses: &[IpAddr]) -> Running {
    start_with(addresses, Arc::new(|_| Ok(())))
}

fn start_with(addresses: &[IpAddr], admit: Admit) -> Running {
    let local = Local {
        rule: Rule {
            interfaces: vec!["near".into()],
            named: None,
        },
        open: Arc::new(|| Err("not in this test".into())),
    };
    start_where(addresses, admit, local)
}

fn start_where(addresses: &[IpAddr], admit: Admit, local: Local) -> Running {
    let (closed, told) = watch::channel(vec![]);
    let egress = Egress { admit, closed };
    let (addresses, watched) = watch::channel(addresses.iter().copied().collect());
    let (sender, reports) = mpsc::channel(16);
    let (stop, shutdown) = watch::channel(false);
    tokio::spawn(async move {
        run(
            watched,
            sender,
            egress,
            local,
            OuterSources::default(),
            shutdown,
        )
        .await
        .unwrap();
        drop(stop);
    });
    Running {
        addresses,
        reports,
        closed: told,
    }
}

fn mac(text: &str) -> [u8; 6] {
    let mut mac = [0; 6];
    for (byte, hex) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(hex, 16).unwrap();
    }
    mac
}

fn far_mac(pair: &Pair, address: &'static str) {
    // An address cannot be changed while the link is up on every kernel; a new one is announced by nobody here.
    pair.far.ip(&format!("link set far address {address}"));
}

fn own_mac(host: &Host) -> [u8; 6] {
    let text = host.ip("-o link show near");
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "link/ether");
    mac(words.nth(1).unwrap())
}

#[test]
fn on_link_and_routed_backends_are_resolved_by_who_carries_their_packets() {
    for network in [FOUR, SIX] {
        ways_are_resolved_in(network);
    }
}

fn ways_are_resolved_in(network: Network) {
    let Network {
        here,
        there,
        nobody,
        behind,
        ..
    } = network;
    let pair = Pair::new();
    let near_mac = own_mac(&pair.near);
    block_on(&pair.near, move || async move {
        let mut running = start(&[there, behind]);
        let (direct, routed) = running.both_resolved(network).await;
        assert_eq!(direct.destination, [2, 0, 0, 0, 0, 2]);
        assert_eq!((direct.source, direct.mtu), (near_mac, 1_500));
        assert_eq!(direct.source_address(IpVersion::of(here)), here);
        assert_eq!(routed, direct);

        // Another address joins; the ones that are known are not reported again.
        running.addresses.send_modify(|addresses| {
            addresses.insert(nobody);
            addresses.insert(here);
        });
        let mut unresolved = BTreeSet::new();
        for _ in 0..2 {
            let report = running.next().await;
            assert_eq!(report.next_hop, None, "{}", report.address);
            unresolved.insert(report.address);
        }
        let expected: BTreeSet<IpAddr> = [nobody, here].into();
        assert_eq!(unresolved, expected);
    });
}

/// RFC 5549: IPv4 packets that an IPv6 neighbour takes on.
#[test]
fn an_ipv4_route_may_have_an_ipv6_router() {
    let pair = Pair::new();
    let beyond: IpAddr = "10.80.0.1".parse().unwrap();
    let router = SIX.there;
    pair.near
        .ip(&format!("route add {beyond} via inet6 {router}"));
    block_on(&pair.near, move || async move {
        let mut running = start(&[beyond]);
        let hop = running.resolved(beyond).await;
        assert_eq!(hop.destination, mac(crate::testnet::THERE_MAC));
        assert_eq!(hop.source_address(IpVersion::V4), FOUR.here);
    });
}

#[test]
fn an_interface_is_let_out_by_before_a_hop_names_it_and_tried_again_while_it_is_closed() {
    let pair = Pair::new();
    block_on(&pair.near, move || async move {
        let asked = Arc::new(std::sync::Mutex::new(vec![]));
        let open = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let admit: Admit = {
            let (asked, open) = (Arc::clone(&asked), Arc::clone(&open));
            Arc::new(move |ifindex| {
                asked.lock().unwrap().push(ifindex);
                let is_open = open.load(std::sync::atomic::Ordering::SeqCst);
                is_open.then_some(()).ok_or_else(|| "shut".to_owned())
            })
        };
        let mut running = start_with(&[FOUR.there], admit);
        let hop = running.resolved(FOUR.there).await;
        assert_eq!(asked.lock().unwrap().first(), Some(&hop.ifindex));
        let closed = ClosedEgress {
            interface: "near".into(),
            reason: "shut".into(),
        };
        let is_closed = |told: &Vec<ClosedEgress>| *told == [closed.clone()];
        running.closed.wait_for(is_closed).await.unwrap();
        open.store(true, std::sync::atomic::Ordering::SeqCst);
        running.closed.wait_for(Vec::is_empty).await.unwrap();

        // What no way leads to is forgotten.
        open.store(false, std::sync::atomic::Ordering::SeqCst);
        running.addresses.send_modify(|addresses| {
            addresses.insert(FOUR.behind);
        });
        running.closed.wait_for(is_closed).await.unwrap();
        running.addresses.send_modify(BTreeSet::clear);
        running.closed.wait_for(Vec::is_empty).await.unwrap();
    });
}

#[test]
fn changes_of_mac_mtu_and_route_are_followed() {
    for network in [FOUR, SIX] {
        changes_are_followed_in(network);
    }
}

fn changes_are_followed_in(network: Network) {
    let Network { there, behind, .. } = network;
    let pair = std::sync::Arc::new(Pair::new());
    let (sender, receiver) = std::sync::mpsc::channel();
    let runner = pair.clone();
    let worker = std::thread::spawn(move || {
        block_on(&runner.near, move || async move {
            let mut running = start(&[there, behind]);
            let (_, first) = running.both_resolved(network).await;
            sender.send("resolved").unwrap();
            // The other side got another card.
            for _ in 0..2 {
                let report = running.next().await;
                assert_eq!(report.next_hop.unwrap().destination, [2, 0, 0, 0, 0, 9]);
            }
            sender.send("moved").unwrap();
            let narrowed = running.resolved(behind).await;
            assert_eq!((narrowed.mtu, first.mtu), (1_300, 1_500));
            sender.send("narrowed").unwrap();
            // The route is gone for good: the routed backend is unresolved, the one on the link is not concerned.
            let report = running.next().await;
            assert_eq!((report.address, report.next_hop), (behind, None));
            sender.send("lost").unwrap();
            running.resolved(behind).await;
        });
    });
    // `near` is busy with the module; its network is changed from another thread in the same namespace.
    let outside = pair.near.twin();
    let reached = |stage: &str| assert_eq!(receiver.recv_timeout(PATIENCE).unwrap(), stage);
    reached("resolved");
    far_mac(&pair, "02:00:00:00:00:09");
    outside.ip(&format!("neigh change {there} dev near nud probe"));
    reached("moved");
    outside.ip(&format!("route change {behind} via {there} mtu 1300"));
    reached("narrowed");
    outside.ip(&format!("route del {behind}"));
    reached("lost");
    outside.ip(&format!("route add {behind} via {there}"));
    worker.join().unwrap();
}

#[test]
fn a_host_that_goes_dark_keeps_its_next_hop() {
    for network in [FOUR, SIX] {
        darkness_changes_nothing_in(network);
    }
}

fn darkness_changes_nothing_in(network: Network) {
    let Network { there, .. } = network;
    let pair = std::sync::Arc::new(Pair::new());
    let (sender, receiver) = std::sync::mpsc::channel();
    let outside = pair.near.twin();
    let runner = pair.clone();
    let worker = std::thread::spawn(move || {
        block_on(&runner.near, move || async move {
            let mut running = start(&[there]);
            let known = running.resolved(there).await;
            sender.send(()).unwrap();
            let watcher = running.reports.recv();
            // Nothing is to be reported until the entry has long failed and the host is back with another MAC.
            let report = watcher.await.unwrap();
            let now = report.next_hop.unwrap();
            assert_eq!(
                (now.destination, known.destination),
                ([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 2])
            );
        });
    });
    receiver.recv_timeout(PATIENCE).unwrap();
    pair.darken();
    outside.ip(&format!("neigh change {there} dev near nud probe"));
    crate::testnet::wait_for("the entry fails", || {
        outside.ip("neigh show").contains("FAILED")
    });
    far_mac(&pair, "02:00:00:00:00:09");
    pair.brighten();
    worker.join().unwrap();
}

/// What is on this host has its stack for a next hop, once what it will send back is seen to; in both versions of IP.
#[test]
fn backends_on_this_host_are_told_from_others() {
    let pair = Pair::new();
    let _pod = pair.pod();
    let outside = pair.near.twin();
    for sysctl in ["ipv4", "ipv6"] {
        pair.near.run(move || {
            let file = format!("/proc/sys/net/{sysctl}/conf/near/forwarding");
            std::fs::write(file, "1").unwrap();
        });
    }
    block_on(&pair.near, move || async move {
        let opened = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let local = Local {
            rule: Rule {
                interfaces: vec!["near".into()],
                named: None,
            },
            open: {
                let opened = Arc::clone(&opened);
                Arc::new(move || {
                    opened.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    Ok(())
                })
            },
        };
        let [pod4, pod6] = PODS;
        let addresses = [pod4, pod6, FOUR.here, SIX.here, FOUR.there];
        let mut running = start_where(&addresses, Arc::new(|_| Ok(())), local);
        let mut hops = BTreeMap::new();
        while hops.len() < addresses.len() {
            let report = running.next().await;
            hops.insert(report.address, report.next_hop.expect("unresolved"));
        }
        for pod in PODS {
            assert_eq!(hops[&pod], NextHop::local(1_450), "{pod}");
        }
        for own in [FOUR.here, SIX.here] {
            assert_eq!(hops[&own], NextHop::local(u16::MAX), "{own}");
        }
        assert!(!hops[&FOUR.there].is_local());
        assert_eq!(opened.load(std::sync::atomic::Ordering::SeqCst), 4);

        // A pod that is gone is unresolved; one that came in its place, by a prefix, may be a segment of others: nobody answers there.
        outside.ip(&format!("route del {pod4}"));
        let report = running.next().await;
        assert_eq!((report.address, report.next_hop), (pod4, None));
        outside.ip(&format!("route add {pod4} dev pod"));
        assert_eq!(running.resolved(pod4).await, NextHop::local(1_450));
    });
}

/// A host that does not forward, or cannot translate what comes back, serves no backend of its own.
#[test]
fn a_backend_on_this_host_that_cannot_be_served_is_unresolved() {
    let pair = Pair::new();
    let _pod = pair.pod();
    let forward = |on: &'static str| {
        let near = pair.near.twin();
        move || {
            near.run(move || std::fs::write("/proc/sys/net/ipv4/conf/near/forwarding", on).unwrap())
        }
    };
    let (allow, forbid) = (forward("1"), forward("0"));
    forbid();
    block_on(&pair.near, move || async move {
        let is_open = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let local = Local {
            rule: Rule {
                interfaces: vec!["near".into()],
                named: Some(vec!["pod".into()]),
            },
            open: {
                let is_open = Arc::clone(&is_open);
                Arc::new(move || {
                    let is_open = is_open.load(std::sync::atomic::Ordering::SeqCst);
                    is_open.then_some(()).ok_or_else(|| "shut".into())
                })
            },
        };
        let [pod, _] = PODS;
        let mut running = start_where(&[pod], Arc::new(|_| Ok(())), local);
        assert_eq!(running.next().await.next_hop, None);
        is_open.store(true, std::sync::atomic::Ordering::SeqCst);
        // It is open, and still not forwarded.
        allow();
        assert_eq!(running.resolved(pod).await, NextHop::local(1_450));
    });
}

#[test]
fn a_host_speaks_from_no_address_of_its_loopback_nor_from_a_deprecated_one() {
    for network in [FOUR, SIX] {
        let Network {
            here,
            nobody,
            behind,
            ..
        } = network;
        let pair = Pair::new();
        let whole = if here.is_ipv4() { 32 } else { 128 };
        pair.near.ip(&format!("addr add {behind}/{whole} dev lo"));
        pair.near.ip(&format!(
            "addr add {nobody}/{whole} dev near preferred_lft 0 nodad"
        ));
        let addresses = block_on(&pair.near, move || async move {
            let netlink = Netlink::connect().unwrap();
            netlink.addresses(IpVersion::of(here)).await.unwrap()
        });
        let addresses: Vec<_> = addresses.iter().map(|(_, address)| *address).collect();
        assert_eq!(addresses, [here]);
    }
}
