//! The listener over a real socket, with counters and a status made for the purpose.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use lb_common::{
    backend::{Backend, Mode, Serving},
    counters::{Counter, CpuState},
    guard::{Guard, RangesRef},
    repeats::Repeats,
    service::Service,
    verdict::Reason,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use super::*;
use crate::{
    balance::outlier::Signal,
    by_version::ByVersion,
    dataplane::maps::Capacity,
    flows::{Churn, Counts, Fill, Swept},
    health::track::Reply,
    ids::{backend_identity, service_identity},
    model::{Admin, Health},
    status::{
        AttachMode, Attachment, BackendBalance, BackendStatus, ClosedEgress, ConfigStatus,
        Detached, Difference, DifferenceKind, DnsStatus, DrainStatus, EjectedStatus, FlowTable,
        Flows, Generation, Neighbour, Reloads, RepeatsStatus, ServiceBalance, ServiceStatus,
        SnatStatus,
    },
};

mod bounds;
mod status_page;

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const ADDRESS: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 0x11));

fn a_status() -> Status {
    Status {
        version: "0.1.0".into(),
        pid: 7,
        uptime_s: 9,
        at: 1_800_000_000,
        generation: Generation {
            accepted: 3,
            resolved: 3,
            applied: 3,
        },
        config: ConfigStatus {
            path: "tether.toml".into(),
            error: None,
            differences: vec![Difference {
                service: "chat".into(),
                backend: "b1".into(),
                change: DifferenceKind::Drained,
                now: Some("draining".into()),
                file: Some("active".into()),
            }],
            reloads: Reloads {
                accepted: 4,
                refused: 2,
            },
        },
        evacuated: false,
        closed_egress: vec![ClosedEgress {
            interface: "br0".into(),
            reason: "its driver cannot".into(),
        }],
        attachments: vec![Attachment {
            interface: "eth0".into(),
            mode: AttachMode::Native,
        }],
        detached: vec![Detached {
            interface: "eth1".into(),
            reason: "it is gone".into(),
        }],
        dns: vec![DnsStatus {
            service: "chat".into(),
            source: "pods".into(),
            query: "pods.example.".into(),
            kind: crate::dns::Kind::A,
            addresses: vec![VIP, ADDRESS],
            failures: 4,
            error: Some("request timed out".into()),
            ignored: vec![],
        }],
        flows: Flows {
            tables: ByVersion {
                v4: FlowTable {
                    capacity: 100,
                    used: 0.25,
                    fill: Fill::Half,
                },
                v6: FlowTable {
                    capacity: 60,
                    used: 0.75,
                    fill: Fill::High,
                },
            },
            ..Default::default()
        },
        services: vec![ServiceStatus {
            name: "chat".into(),
            vip: VIP,
            port: 80,
            mode: Mode::Ipip,
            removed: false,
            fail_open: true,
            fail_open_flows: 12,
            clients: Some(5),
            guard: None,
            full: true,
            balance: ServiceBalance {
                backups: true,
                spills: true,
                moves: 3,
                ejections: 6,
                ..Default::default()
            },
            resets_suspended: None,
            error: None,
            backends: vec![BackendStatus {
                name: "b1".into(),
                address: ADDRESS,
                port: 80,
                weight: 100,
                admin: Admin::Active,
                removed: false,
                health: Health::Up,
                serving: Serving::New,
                neighbour: Neighbour::Resolved,
                last_error: None,
                last_error_ended: None,
                drain: Some(DrainStatus {
                    deadline_s: 90,
                    closed: 0.25,
                }),
                balance: BackendBalance {
                    max_connections: Some(500),
                    full: true,
                    per_mille: 250,
                    ejected: Some(EjectedStatus {
                        signal: Signal::Data,
                        reason: "clients repeat themselves".to_owned(),
                        times: 1,
                        left_s: 25,
                    }),
                    repeats: Some(RepeatsStatus::default()),
                    ..Default::default()
                },
                flows: Default::default(),
                snat: vec![SnatStatus {
                    address: [10, 0, 2, 100].into(),
                    ports: 51_000,
                }],
                identity: None,
                mode: None,
            }],
        }],
        reasons: Default::default(),
    }
}

fn counted_maps() -> Arc<Maps> {
    let capacity = Capacity::for_flows(100, 50, 8, 8, 1_024, 2).measuring(true);
    let maps = Maps::in_memory(capacity).unwrap();
    let measured = maps.measured.as_ref().unwrap();
    measured.count(
        5,
        &Repeats {
            handshakes: 51,
            syns: 2,
            data: 530,
            data_again: 54,
            ..Repeats::default()
        },
    );
    let layout = capacity.counters();
    // The service has id 2, the backend id 5; the counters of two CPUs add up.
    let mut service: Service = maps.services.get(2);
    service.identity = service_identity(VIP, 80);
    maps.services.set(2, &service);
    let guard = Guard {
        ranges: RangesRef::new(7, 3).0,
        ..Guard::default()
    };
    maps.guards.set(2, &guard);
    let backend = Backend {
        identity: backend_identity(("chat", VIP, 80), "b1", ADDRESS, 80, Mode::Ipip),
        ..Default::default()
    };
    maps.backends.set(5, &backend);
    for (cpu, notices_lost) in [(0, 3), (1, 4)] {
        let state = CpuState {
            notices_lost,
            ..Default::default()
        };
        maps.cpus.set(cpu, &state);
    }
    let count = |cpu: u32, offset: u32, packets: u64| {
        let counter = Counter {
            packets,
            bytes: packets * 60,
        };
        maps.counters.set(cpu * layout.per_cpu + offset, &counter);
    };
    count(0, layout.reason(Reason::Established), 10);
    count(1, layout.reason(Reason::Established), 7);
    count(1, layout.service(2), 30);
    count(0, layout.backend(5), 40);
    Arc::new(maps)
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    ask(address, "GET", path).await
}

async fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

async fn start(status: Status) -> (SocketAddr, watch::Sender<Arc<Status>>, watch::Sender<bool>) {
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (status, watched) = watch::channel(Arc::new(status));
    let (stop, shutdown) = watch::channel(false);
    let swept = Swept {
        expired: 1,
        ended: 2,
        duplicates: 3,
        invalid: 4,
        reclaimed: 5,
        closed: 6,
        marked: 7,
        clamped: 8,
        rehashed: 9,
        ports: 10,
        clients: 11,
    };
    let mut counted = Census {
        swept,
        sources: 9,
        ..Census::default()
    };
    let churn = Churn {
        established: 70,
        fin: 8,
        rst: 9,
        deadline: 10,
        rehashed: 11,
    };
    counted.churn.insert(service_identity(VIP, 80), churn);
    let of_backend = Churn {
        established: 60,
        ..churn
    };
    counted.backend_churn.insert((5, 0), of_backend);
    // Of one that had the id before.
    counted.backend_churn.insert((5, 1), churn);
    let probes = ProbeTimes::default();
    let times = probes.of("chat");
    times.note(Reply::Yes, Duration::from_millis(3));
    times.note(Reply::Silent, Duration::from_secs(1));
    let pins = |pin| Counts {
        pin,
        ..Counts::default()
    };
    counted.tables.v4.counts = pins(25);
    counted.tables.v6.counts = pins(45);
    // What was last said can be read when the sender is gone.
    let (_, census) = watch::channel(Arc::new(counted));
    let web = Web::new(
        counted_maps(),
        watched,
        census,
        probes,
        History::default(),
        Default::default(),
    )
    .with_runs(|| {
        Some(Runs {
            count: 4_000,
            time_ns: 1_500_000_000,
        })
    });
    tokio::spawn(serve(listener, web, shutdown));
    (address, status, stop)
}

#[tokio::test]
async fn every_kind_of_metric_has_its_names_and_numbers() {
    let (address, _status, _stop) = start(a_status()).await;
    let (code, text) = get(address, "/metrics").await;
    assert_eq!(code, 200);
    let service = r#"service="chat",vip="10.0.0.1:80""#;
    let backend = format!(r#"{service},backend="b1",address="[2001:db8:0:1::11]:80""#);
    for line in [
        r#"tether_reason_packets_total{reason="established",verdict="forward"} 17"#.to_owned(),
        r#"tether_reason_bytes_total{reason="established",verdict="forward"} 1020"#.to_owned(),
        r#"tether_reason_packets_total{reason="no_backend",verdict="drop"} 0"#.to_owned(),
        format!("tether_service_packets_total{{{service}}} 30"),
        format!("tether_service_bytes_total{{{service}}} 1800"),
        format!("tether_service_fail_open{{{service}}} 1"),
        format!("tether_service_fail_open_flows_total{{{service}}} 12"),
        format!("tether_service_clients{{{service}}} 5"),
        format!("tether_service_full{{{service}}} 1"),
        format!("tether_service_weight_moves_total{{{service}}} 3"),
        format!("tether_service_zone_spills{{{service}}} 1"),
        format!("tether_backend_share_ratio{{{backend}}} 0.25"),
        format!("tether_service_backups_in_use{{{service}}} 1"),
        format!("tether_backend_full{{{backend}}} 1"),
        format!("tether_backend_max_connections{{{backend}}} 500"),
        format!("tether_backend_handshakes_total{{{backend}}} 51"),
        format!("tether_backend_syns_again_total{{{backend}}} 2"),
        format!("tether_backend_data_segments_total{{{backend}}} 530"),
        format!("tether_backend_data_segments_again_total{{{backend}}} 54"),
        format!("tether_backend_ejected{{{backend}}} 1"),
        format!("tether_service_ejections_total{{{service}}} 6"),
        format!("tether_backend_packets_total{{{backend}}} 40"),
        format!("tether_backend_bytes_total{{{backend}}} 2400"),
        format!(r#"tether_backend_health{{{backend},health="up"}} 1"#),
        format!(r#"tether_backend_health{{{backend},health="down"}} 0"#),
        format!(r#"tether_backend_serving{{{backend},serving="existing-only"}} 0"#),
        format!("tether_backend_resolved{{{backend}}} 1"),
        format!(r#"tether_snat_ports{{{backend},snat_address="10.0.2.100"}} 51000"#),
        "tether_snat_ports_most 64512".to_owned(),
        "tether_swept_ports_total 10".to_owned(),
        "tether_swept_clients_total 11".to_owned(),
        "tether_guard_ranges 3".to_owned(),
        "tether_guard_ranges_most 65536".to_owned(),
        "tether_guard_sources 9".to_owned(),
        "tether_guard_sources_most 166668".to_owned(),
        r#"tether_flows{version="4",state="pin"} 25"#.to_owned(),
        r#"tether_flows{version="6",state="pin"} 45"#.to_owned(),
        r#"tether_flow_capacity{version="4"} 100"#.to_owned(),
        r#"tether_flow_capacity{version="6"} 60"#.to_owned(),
        r#"tether_flow_use_ratio{version="4"} 0.25"#.to_owned(),
        r#"tether_flow_use_ratio{version="6"} 0.75"#.to_owned(),
        r#"tether_flow_fill_level{version="4"} 1"#.to_owned(),
        r#"tether_flow_fill_level{version="6"} 2"#.to_owned(),
        r#"tether_swept_entries_total{why="expired"} 1"#.to_owned(),
        r#"tether_swept_entries_total{why="ended"} 2"#.to_owned(),
        r#"tether_swept_entries_total{why="duplicate"} 3"#.to_owned(),
        r#"tether_swept_entries_total{why="invalid"} 4"#.to_owned(),
        r#"tether_swept_entries_total{why="reclaimed"} 5"#.to_owned(),
        r#"tether_swept_entries_total{why="closed"} 6"#.to_owned(),
        r#"tether_swept_entries_total{why="marked"} 7"#.to_owned(),
        r#"tether_swept_entries_total{why="clamped"} 8"#.to_owned(),
        r#"tether_swept_entries_total{why="rehashed"} 9"#.to_owned(),
        r#"tether_closed_flow_notices_total{outcome="told"} 0"#.to_owned(),
        r#"tether_closed_flow_notices_total{outcome="lost"} 7"#.to_owned(),
        r#"tether_generation{stage="applied"} 3"#.to_owned(),
        r#"tether_reloads_total{outcome="accepted"} 4"#.to_owned(),
        r#"tether_reloads_total{outcome="refused"} 2"#.to_owned(),
        "tether_log_lines_lost_total 0".to_owned(),
        "tether_config_refused 0".to_owned(),
        "tether_status_timestamp_seconds 1800000000".to_owned(),
        format!("tether_service_flows_established_total{{{service}}} 70"),
        format!(r#"tether_service_flow_ends_total{{{service},cause="fin"}} 8"#),
        format!(r#"tether_service_flow_ends_total{{{service},cause="rst"}} 9"#),
        format!(r#"tether_service_flow_ends_total{{{service},cause="deadline"}} 10"#),
        format!(r#"tether_service_flow_ends_total{{{service},cause="rehashed"}} 11"#),
        format!("tether_backend_flows_established_total{{{backend}}} 60"),
        format!(r#"tether_backend_flow_ends_total{{{backend},cause="fin"}} 8"#),
        format!(r#"tether_backend_flow_ends_total{{{backend},cause="rst"}} 9"#),
        format!(r#"tether_backend_flow_ends_total{{{backend},cause="deadline"}} 10"#),
        format!(r#"tether_backend_flow_ends_total{{{backend},cause="rehashed"}} 11"#),
        format!("tether_service_unserved{{{service}}} 0"),
        format!("tether_service_removed{{{service}}} 0"),
        format!("tether_backend_draining{{{backend}}} 0"),
        r#"tether_probes_total{service="chat",reply="yes"} 1"#.to_owned(),
        r#"tether_probes_total{service="chat",reply="silent"} 1"#.to_owned(),
        r#"tether_probe_seconds_bucket{le="0.0025",service="chat"} 0"#.to_owned(),
        r#"tether_probe_seconds_bucket{le="0.005",service="chat"} 1"#.to_owned(),
        r#"tether_probe_seconds_bucket{le="+Inf",service="chat"} 1"#.to_owned(),
        r#"tether_probe_seconds_count{service="chat"} 1"#.to_owned(),
        r#"tether_attached{interface="eth0",mode="native"} 1"#.to_owned(),
        r#"tether_detached{interface="eth1"} 1"#.to_owned(),
        r#"tether_egress_closed{interface="br0"} 1"#.to_owned(),
        "tether_program_runs_total 4000".to_owned(),
        "tether_program_run_seconds_total 1.5".to_owned(),
        "tether_config_differences 1".to_owned(),
        r#"tether_dns_addresses{service="chat",source="pods"} 2"#.to_owned(),
        r#"tether_dns_failing{service="chat",source="pods"} 1"#.to_owned(),
        r#"tether_dns_failures_total{service="chat",source="pods"} 4"#.to_owned(),
        "tether_evacuated 0".to_owned(),
        "# EOF".to_owned(),
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "no line {line} in\n{text}"
        );
    }
}

/// A change of mode makes another object of a backend, with the same labels as the old one, which keeps its flows.
#[tokio::test]
async fn a_backend_that_there_is_twice_has_each_sample_once_and_the_flows_of_both() {
    let mut status = a_status();
    let backends = &mut status.services[0].backends;
    backends[0].flows.pin = 2;
    let mut old = backends[0].clone();
    (old.removed, old.identity) = (true, Some(77));
    old.flows.pin = 3;
    // It is translated no more, and those that are have their ports.
    backends[0].snat.clear();
    backends.push(old);
    let (address, _status, _stop) = start(status).await;
    let (_, text) = get(address, "/metrics").await;
    let samples = || {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| line.rsplit_once(' '))
    };
    let names: BTreeSet<&str> = samples().map(|(name, _)| name).collect();
    assert_eq!(samples().count(), names.len(), "{text}");
    let backend =
        r#"service="chat",vip="10.0.0.1:80",backend="b1",address="[2001:db8:0:1::11]:80""#;
    let pins = format!(r#"tether_backend_flows{{{backend},state="pin"}} 5"#);
    assert!(text.lines().any(|line| line == pins), "{text}");
    let ports = format!(r#"tether_snat_ports{{{backend},snat_address="10.0.2.100"}} 51000"#);
    assert!(text.lines().any(|line| line == ports), "{text}");
    let draining = format!("tether_backend_draining{{{backend}}} 0");
    assert!(text.lines().any(|line| line == draining), "{text}");
}

#[tokio::test]
async fn the_metrics_page_names_all_that_is_exported_and_nothing_else() {
    let (address, _status, _stop) = start(a_status()).await;
    let (_, text) = get(address, "/metrics").await;
    let exported: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| match line.split_once(' ').unwrap() {
            (name, "counter") => format!("{name}_total"),
            (name, _) => name.to_owned(),
        })
        .collect();
    let page = include_str!("../../../docs/metrics.md");
    let named: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `tether_"))
        .flat_map(|row| row.split(" | ").next().unwrap().split('`'))
        .filter(|part| !part.contains([',', ' ']) && !part.is_empty())
        .map(|name| format!("tether_{}", name.trim_start_matches("tether_")))
        .collect();
    assert_eq!(named, exported);
}

/// Dashboards and alerts count on these: a rate of what was a counter is nothing once it is a gauge.
#[tokio::test]
async fn types_of_metrics_are_those_of_the_compatibility_lists() {
    let (address, _status, _stop) = start(a_status()).await;
    let (_, text) = get(address, "/metrics").await;
    let types = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(|line| line.replacen(' ', ": ", 1))
        .collect();
    crate::compatibility::hold("metric-types", &types);
}

/// More of them than there are places, all from one address, as kubelet's and Prometheus' are not.
#[tokio::test]
async fn who_reads_nothing_keeps_nobody_from_elsewhere_out() {
    let (address, _status, _stop) = start(bounds::a_status_of(100, 20)).await;
    let mut held = Vec::new();
    for _ in 0..http::gate::CONNECTIONS + 8 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        socket
            .bind((Ipv4Addr::new(127, 0, 0, 2), 0).into())
            .unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        // One that finds no place is closed, and may be before it has asked.
        drop(stream.write_all(request).await);
        held.push(stream);
    }
    // The last of the places is being answered, with more than its socket takes.
    let last = &mut held[http::gate::CONNECTIONS - 1];
    last.read_exact(&mut [0]).await.unwrap();
    let answered = tokio::time::timeout(Duration::from_secs(4), get(address, "/healthz"));
    let (code, _) = answered
        .await
        .expect("it is answered before any of those is given up");
    assert_eq!(code, 200);
}

/// The status of an answer that may have no end.
async fn get_head(address: SocketAddr, path: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    str::from_utf8(&head[9..]).unwrap().parse().unwrap()
}

#[tokio::test]
async fn readiness_says_what_is_missing() {
    let mut not_applied = a_status();
    not_applied.generation.applied = 0;
    let (address, status, _stop) = start(not_applied).await;
    assert_eq!(get(address, "/healthz").await, (200, "ok\n".into()));
    let (code, text) = get(address, "/readyz").await;
    assert!(code == 503 && text.contains("not applied"), "{text}");
    let mut not_attached = a_status();
    not_attached.attachments.clear();
    status.send(Arc::new(not_attached)).unwrap();
    let (code, text) = get(address, "/readyz").await;
    assert!(code == 503 && text.contains("not attached"), "{text}");
    let mut evacuated = a_status();
    evacuated.evacuated = true;
    status.send(Arc::new(evacuated)).unwrap();
    let (code, text) = get(address, "/readyz").await;
    assert!(code == 503 && text.contains("drain --all"), "{text}");
    status.send(Arc::new(a_status())).unwrap();
    assert_eq!(get(address, "/readyz").await, (200, "ready\n".into()));
    assert_eq!(get(address, "/else").await.0, 404);
}

/// A page of somebody else's, whose name leads to loopback, asks with that name: the browser would let it read the answer.
#[tokio::test]
async fn nobody_elses_name_is_answered_to_on_loopback() {
    let (address, _status, _stop) = start(a_status()).await;
    let status_of = async |target: &str, host: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        str::from_utf8(&head[9..]).unwrap().parse::<u16>().unwrap()
    };
    for path in ["/", "/events", "/metrics", "/healthz", "/readyz", "/else"] {
        let port = address.port();
        let refused = status_of(path, &format!("Host: rebound.example:{port}\r\n")).await;
        assert_eq!(refused, 421, "{path}");
    }
    let by_proxy = status_of(
        "http://rebound.example/metrics",
        "Host: rebound.example\r\n",
    );
    assert_eq!(by_proxy.await, 421);
    let own = format!("Host: {address}\r\n");
    for host in [
        "Host: localhost:9477\r\n",
        "Host: [::1]\r\n",
        "",
        own.as_str(),
    ] {
        assert_eq!(status_of("/healthz", host).await, 200, "{host}");
    }
    // Nor is anybody's page that asks across allowed to read.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request =
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nOrigin: http://rebound.example\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, _) = text.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 200 ") && !head.contains("access-control"),
        "{head}"
    );
}

#[tokio::test]
async fn it_is_read_only() {
    let (address, _status, _stop) = start(a_status()).await;
    let shown = async || {
        let (_, past) = status_page::news(address, "", 1).await;
        let (_, metrics) = get(address, "/metrics").await;
        (past, metrics, get(address, "/readyz").await)
    };
    let before = shown().await;
    for path in ["/", "/events", "/metrics", "/healthz", "/readyz"] {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let (code, text) = ask(address, method, path).await;
            assert_eq!(code, 405, "{method} {path}: {text}");
            assert!(text.contains("another method"), "{method} {path}: {text}");
        }
    }
    assert_eq!(shown().await, before);
}
