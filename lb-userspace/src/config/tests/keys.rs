//! What each key means, and what holds without it.

use std::{sync::Arc, time::Duration};

use lb_common::backend::Mode;

use super::*;
use crate::{
    model::{CheckKind, HttpCheck, Initial, RequestTarget},
    neighbour::outer::OuterSources,
};

const WHOLE: &str = r#"
interfaces = ["eth0", "eth1"]
local_interfaces = ["cni0", "cali*"]
outer_sources = ["10.9.0.0/24", "2001:db8:9::/112"]
state_dir = "/run/other"
bpffs = "/sys/fs/bpf/other"
fleet_seed = "a secret of many letters"
admin_group = "operators"

[metrics]
listen = "off"

[limits]
flows = 5_000
flows6 = 3_000
services = 16
backends = 64
table_slots = 20_000
nat_pairs = 70
clients = 80
prefixes = 90
sources = 95
checks = 99

[[service]]
name = "chat"
vip = "10.0.0.1"
port = 80
mode = "ipip"
table_size = 1000
min_healthy = 2

[service.health]
type = "http"
port = 8080
path = "/health?deep=1"
host = "chat.example"
status = [200, "300-399"]
interval = "500ms"
timeout = "100ms"
doubt_interval = "250ms"
jitter = 20
fall = 5
rise = 1
startup_grace = "1m"
initial = "up"
at_once = 7

[[service.backend]]
name = "b1"
address = "10.0.1.11"
port = 80
weight = 200
admin = "draining"

[[service.backend]]
name = "b2"
address = "10.0.1.12"

[[service]]
name = "game"
vip = "10.0.0.1"
port = 81
mode = "l2"
table_size = 997
"#;

#[test]
fn every_key_has_its_effect() {
    let config = parse(Path::new("t.toml"), WHOLE).unwrap().config;
    assert_eq!(config.interfaces, ["eth0", "eth1"]);
    let local: Option<Vec<String>> = Some(vec!["cni0".into(), "cali*".into()]);
    assert_eq!(config.local_interfaces, local);
    let (outer, _) = OuterSources::default().with("10.9.0.0/24".parse().unwrap());
    let (outer, _) = outer.with("2001:db8:9::/112".parse().unwrap());
    assert_eq!(config.outer_sources, outer);
    assert_eq!(config.state_dir, Path::new("/run/other"));
    assert_eq!(config.bpffs, Path::new("/sys/fs/bpf/other"));
    assert_ne!(config.fleet_seed, None);
    assert_eq!(config.admin_group.as_deref(), Some("operators"));
    assert_eq!(config.metrics, None);
    let limits = Limits {
        flows: 5_000,
        flows6: 3_000,
        services: 16,
        backends: 64,
        table_slots: 20_000,
        nat_pairs: 70,
        clients: 80,
        prefixes: 90,
        sources: 95,
    };
    assert_eq!((config.limits, config.checks_at_once), (limits, 99));
    let chat = &config.services[0];
    assert_eq!(
        (chat.name.as_str(), chat.vip.to_string().as_str(), chat.port),
        ("chat", "10.0.0.1", 80)
    );
    assert_eq!(
        (chat.mode, chat.table_size, chat.min_healthy),
        (Mode::Ipip, 1_009, 2)
    );
    let b1 = &chat.backends[0];
    assert_eq!(
        (b1.name.as_str(), b1.address.to_string().as_str(), b1.port),
        ("b1", "10.0.1.11", 80)
    );
    assert_eq!((b1.weight, b1.admin), (200, Admin::Draining));
    assert_eq!(b1.check_address, "10.0.1.11:8080".parse().unwrap());
    let check = Check {
        kind: CheckKind::Http(Arc::new(HttpCheck {
            target: RequestTarget {
                host: Some("chat.example".parse().unwrap()),
                ..RequestTarget::default()
            },
            method: hyper::Method::GET,
            path: "/health?deep=1".parse().unwrap(),
            status: vec![200..=200, 300..=399],
            body_contains: None,
            json: None,
        })),
        through_vip: false,
        interval: Duration::from_millis(500),
        doubt_interval: Duration::from_millis(250),
        jitter_percent: 20,
        timeout: Duration::from_millis(100),
        fall: 5,
        rise: 1,
        startup_grace: Duration::from_secs(60),
        initial: Initial::Up,
        at_once: 7,
    };
    assert_eq!(b1.check, check);
    let b2 = &chat.backends[1];
    assert_eq!((b2.port, b2.weight, b2.admin), (80, 100, Admin::Active));
    assert_eq!(
        (config.services[1].mode, config.services[1].backends.len()),
        (Mode::L2, 0)
    );
}

#[test]
fn what_is_not_said_has_a_default() {
    let config = parse(Path::new("t.toml"), SMALL).unwrap().config;
    assert_eq!(config.state_dir, Path::new("/run/tether"));
    assert_eq!(config.bpffs, Path::new("/sys/fs/bpf/tether"));
    assert_eq!(config.fleet_seed, None);
    assert_eq!(config.metrics, Some("127.0.0.1:9477".parse().unwrap()));
    let limits = Limits {
        flows: 1_000_000,
        flows6: 250_000,
        services: 4_096,
        backends: 32_768,
        table_slots: 4_194_304,
        nat_pairs: 64,
        clients: 100_000,
        prefixes: 65_536,
        sources: 100_000,
    };
    assert_eq!((config.limits, config.checks_at_once), (limits, 256));
    let service = &config.services[0];
    assert_eq!((service.table_size, service.min_healthy), (65_537, 1));
    let check = Check {
        kind: CheckKind::Tcp,
        through_vip: false,
        interval: Duration::from_secs(2),
        doubt_interval: Duration::from_millis(500),
        jitter_percent: 10,
        timeout: Duration::from_secs(1),
        fall: 3,
        rise: 2,
        startup_grace: Duration::ZERO,
        initial: Initial::Unknown,
        at_once: 128,
    };
    assert_eq!(service.backends[0].check, check);
    assert_eq!(
        service.backends[0].check_address,
        "10.0.1.11:80".parse().unwrap()
    );
}

#[test]
fn a_service_says_how_drains_end_and_how_fast_the_dead_are_told_of() {
    let of = |line: &str| {
        let text = SMALL.replace("mode", &format!("{line}\nmode"));
        let config = parse(Path::new("t.toml"), &text).unwrap().config;
        let service = &config.services[0];
        let ms = |time: Duration| time.as_millis();
        (
            service.drain_deadline.map(ms),
            ms(service.close_over),
            ms(service.reset_over),
        )
    };
    assert_eq!(of(""), (None, 60_000, 0));
    let all = "drain_deadline = \"30m\"\nclose_over = \"5s\"\nreset_over = \"250ms\"";
    assert_eq!(of(all), (Some(1_800_000), 5_000, 250));
    assert_eq!(of("drain_deadline = \"0s\""), (Some(0), 60_000, 0));
}

#[test]
fn a_service_says_what_becomes_of_flows_of_the_dead() {
    let of = |line: &str| {
        let text = SMALL.replace("mode", &format!("{line}\nmode"));
        let loaded = parse(Path::new("t.toml"), &text).unwrap();
        let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
        (loaded.config.services[0].on_down, warnings)
    };
    assert_eq!(of(""), (OnDown::Reset, vec![]));
    for (word, on_down) in [
        ("reset", OnDown::Reset),
        ("keep", OnDown::Keep),
        ("rehash", OnDown::Rehash),
    ] {
        assert_eq!(of(&format!("on_down = {word:?}")), (on_down, vec![]));
    }
    let (_, warnings) = of("on_down = \"keep\"\nreset_over = \"5s\"");
    assert!(
        warnings[0].contains("on_down has nobody told"),
        "{warnings:?}"
    );
}

/// What the modes can carry: `l2` any packet to any host on the link, `ipip` both versions in IPv6, and IPv4 alone in IPv4.
#[test]
fn vips_and_backends_of_both_versions_go_together_as_the_mode_can() {
    for (mode, vip, address, is_valid) in [
        ("ipip", "10.0.0.1", "10.0.1.11", true),
        ("ipip", "10.0.0.1", "2001:db8::11", true),
        ("ipip", "2001:db8::1", "2001:db8::11", true),
        ("ipip", "2001:db8::1", "10.0.1.11", false),
        ("l2", "2001:db8::1", "10.0.1.11", true),
        ("l2", "2001:db8::1", "2001:db8::11", true),
        ("l2", "10.0.0.1", "2001:db8::11", true),
        ("dnat", "10.0.0.1", "10.0.1.11", true),
        ("dnat", "2001:db8::1", "2001:db8::11", true),
        ("dnat", "10.0.0.1", "2001:db8::11", false),
        ("dnat", "2001:db8::1", "10.0.1.11", false),
    ] {
        let text = SMALL
            .replace("ipip", mode)
            .replace("10.0.0.1", vip)
            .replace("10.0.1.11", address);
        let parsed = parse(Path::new("t.toml"), &text);
        assert_eq!(parsed.is_ok(), is_valid, "{mode}: {address} for {vip}");
        if let Ok(Loaded { config, .. }) = parsed {
            let service = &config.services[0];
            assert_eq!(service.vip.to_string(), vip);
            assert_eq!(service.backends[0].address.to_string(), address);
        }
    }
}

/// The largest tables are such as the verifier lets a program address.
#[test]
fn the_largest_flow_tables_are_of_half_a_gibibyte() {
    use lb_common::flow::{bucket::buckets_for, v4, v6};
    let bytes = |flows, bucket: usize| u64::from(buckets_for(flows)) * bucket as u64;
    let most = 512 << 20;
    assert!(bytes(MAX_FLOWS, size_of::<v4::Bucket>()) <= most);
    assert!(bytes(MAX_FLOWS6, size_of::<v6::Bucket>()) <= most);
}

/// Whatever the file says of a service that places each connection for itself is said in vain.
#[test]
fn a_service_places_clients_if_it_says_so() {
    let of = |lines: &str| {
        let text = SMALL.replacen("mode", &format!("{lines}\nmode"), 1);
        let loaded = parse(Path::new("t.toml"), &text).unwrap_or_else(|wrong| panic!("{wrong}"));
        let affinity = loaded.config.services[0].affinity.clone();
        (affinity, loaded.warnings.len())
    };
    let by = |timeout, group: Option<&str>| {
        Some(Affinity {
            timeout,
            group: group.map(str::to_owned),
        })
    };
    assert_eq!(of(""), (None, 0));
    assert_eq!(of("affinity = \"connection\""), (None, 0));
    let hours = Duration::from_hours;
    assert_eq!(of("affinity = \"client-ip\""), (by(hours(3), None), 0));
    assert_eq!(
        of("affinity = \"client-ip\"\naffinity_timeout = \"72h\"\naffinity_group = \"shop\""),
        (by(hours(72), Some("shop")), 0)
    );
    let in_vain = "affinity_timeout = \"1h\"\naffinity_group = \"shop\"";
    assert_eq!(of(in_vain), (None, 2));

    // What a load balancer of a fleet has seen is nothing to the others.
    let in_fleet = |lines: &str| {
        let text = SMALL.replacen("mode", &format!("{lines}\nmode"), 1);
        let text = format!("fleet_seed = \"a secret of many letters\"\n{text}");
        parse(Path::new("t.toml"), &text).map(|loaded| loaded.config.services[0].affinity.clone())
    };
    let placed = in_fleet("affinity = \"client-ip\"").expect("it is valid");
    assert_eq!(placed, by(Duration::ZERO, None));
    let timed = in_fleet("affinity = \"client-ip\"\naffinity_timeout = \"1h\"");
    let wrong = timed.expect_err("there is nothing to keep").to_string();
    assert!(
        wrong.contains("affinity_timeout goes by the clients"),
        "{wrong}"
    );
}
