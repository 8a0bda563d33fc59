mod balance;
mod dns;
mod health;
mod nat;

use std::{path::Path, sync::Arc, time::Duration};

use lb_common::backend::Mode;

use super::*;
use crate::model::{CheckKind, HttpCheck, Initial, RequestTarget};

const WHOLE: &str = r#"
interfaces = ["eth0", "eth1"]
local_interfaces = ["cni0", "cali*"]
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

/// A service and all before it, to which tests add.
const SMALL: &str = r#"interfaces = ["eth0"]
[[service]]
name = "chat"
vip = "10.0.0.1"
port = 80
mode = "ipip"
[[service.backend]]
name = "b1"
address = "10.0.1.11"
"#;

fn errors(text: &str) -> Vec<String> {
    match parse(Path::new("t.toml"), text) {
        Ok(loaded) => panic!("accepted: {:?}", loaded.config),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

fn warnings(text: &str) -> Vec<String> {
    let loaded = parse(Path::new("t.toml"), text).unwrap();
    loaded.warnings.iter().map(ToString::to_string).collect()
}

/// The one error of [`SMALL`] with `from` replaced by `to`.
fn error_of(from: &str, to: &str) -> String {
    assert_eq!(SMALL.matches(from).count(), 1, "{from:?}");
    let errors = errors(&SMALL.replace(from, to));
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors[0].clone()
}

#[test]
fn every_key_has_its_effect() {
    let config = parse(Path::new("t.toml"), WHOLE).unwrap().config;
    assert_eq!(config.interfaces, ["eth0", "eth1"]);
    let local: Option<Vec<String>> = Some(vec!["cni0".into(), "cali*".into()]);
    assert_eq!(config.local_interfaces, local);
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

#[test]
fn a_fast_check_has_a_timeout_no_longer_than_its_interval() {
    let text = format!("{SMALL}[service.health]\ninterval = \"200ms\"\n");
    let config = parse(Path::new("t.toml"), &text).unwrap().config;
    assert_eq!(
        config.services[0].backends[0].check.timeout,
        Duration::from_millis(200)
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

#[test]
fn two_services_at_one_ipv6_endpoint_are_told_apart_by_nothing() {
    let text = SMALL
        .replace("10.0.0.1", "2001:db8::1")
        .replace("10.0.1.11", "2001:db8::11");
    let second = text[text.find("[[service]]").unwrap()..]
        .replace("chat", "game")
        // The same address, written otherwise.
        .replace("2001:db8::1\"", "2001:0db8:0::1\"");
    assert_eq!(
        errors(&format!("{text}{second}")),
        [
            r#"t.toml:12:7: service "game": [2001:db8::1]:80 is service "chat"'s already; give each service a VIP and port of its own"#
        ]
    );
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

#[test]
fn each_mistake_has_its_place_object_and_remedy() {
    for (from, to, expected) in [
        (
            "mode = \"ipip\"",
            "mode = \"ipip\"\ncolour = 1",
            r#"t.toml:7:1: service "chat": unknown key "colour"; remove it; known here are name, vip, port, mode, snat, table_size, min_healthy, drain_deadline, close_over, reset_over, on_down, affinity, affinity_timeout, affinity_group, slow_start, balance, backup_below, zone_enough, outlier, health, backend, dns"#,
        ),
        (
            "port = 80",
            "prot = 80\nport = 80",
            r#"t.toml:5:1: service "chat": unknown key "prot"; did you mean port?"#,
        ),
        (
            "port = 80",
            "port = 0",
            r#"t.toml:5:8: service "chat": port is 0; give a number from 1 to 65535"#,
        ),
        (
            "port = 80",
            "port = 65536",
            r#"t.toml:5:8: service "chat": port is 65536; give a number from 1 to 65535"#,
        ),
        (
            "port = 80",
            "port = -1",
            r#"t.toml:5:8: service "chat": port is -1; give a number from 1 to 65535"#,
        ),
        (
            "port = 80",
            "port = \"80\"",
            r#"t.toml:5:8: service "chat": port is a string, not a whole number; give a number from 1 to 65535"#,
        ),
        (
            "port = 80\n",
            "",
            r#"t.toml:2:1: service "chat": port is missing; add port = 80"#,
        ),
        (
            "mode = \"ipip\"",
            "mode = \"dnet\"",
            r#"t.toml:6:8: service "chat": unknown mode "dnet"; did you mean "dnat"?"#,
        ),
        (
            "mode = \"ipip\"",
            "mode = \"ipipp\"",
            r#"t.toml:6:8: service "chat": unknown mode "ipipp"; did you mean "ipip"?"#,
        ),
        (
            "mode = \"ipip\"",
            "mode = \"tunnel\"",
            r#"t.toml:6:8: service "chat": unknown mode "tunnel"; use "l2" (same layer-2 segment), "ipip", "nat" or "dnat" (backends answer through this host)"#,
        ),
        (
            "10.0.1.11",
            "10.0.0.1",
            r#"t.toml:9:11: backend "chat/b1": its address is the VIP itself, so packets would come back here; give the address of the backend's own host"#,
        ),
        (
            "10.0.1.11",
            "127.0.0.1",
            r#"t.toml:9:11: backend "chat/b1": address 127.0.0.1 is a loopback address, which never leaves a host; give a unicast address"#,
        ),
        (
            "10.0.0.1",
            "2001:db8::1",
            r#"t.toml:9:11: backend "chat/b1": address 10.0.1.11 is IPv4, and mode ipip carries no IPv6 packet in an IPv4 one; give the backend's IPv6 address"#,
        ),
        (
            "10.0.0.1",
            "fe80::1",
            r#"t.toml:4:7: service "chat": vip fe80::1 is a link-local address, which is another host's on every link; give a global or unique local address"#,
        ),
        (
            "10.0.0.1",
            "::ffff:10.0.0.1",
            r#"t.toml:4:7: service "chat": vip ::ffff:10.0.0.1 is an IPv4 address in IPv6's notation; write 10.0.0.1"#,
        ),
        (
            "10.0.0.1",
            "ff02::1",
            r#"t.toml:4:7: service "chat": vip ff02::1 is a multicast address; give a unicast address"#,
        ),
        (
            "10.0.1.11",
            "::1",
            r#"t.toml:9:11: backend "chat/b1": address ::1 is a loopback address, which never leaves a host; give a unicast address"#,
        ),
        (
            "10.0.1.11",
            "::",
            r#"t.toml:9:11: backend "chat/b1": address :: is of no host; give a unicast address"#,
        ),
        (
            "10.0.0.1",
            "[2001:db8::1]",
            r#"t.toml:4:7: service "chat": vip is "[2001:db8::1]", which is no IP address; write it like vip = "10.0.0.1" or vip = "2001:db8::1""#,
        ),
        (
            "10.0.0.1",
            "224.0.0.1",
            r#"t.toml:4:7: service "chat": vip 224.0.0.1 is a multicast address; give a unicast address"#,
        ),
        (
            "10.0.0.1",
            "chat.example",
            r#"t.toml:4:7: service "chat": vip is "chat.example", which is no IP address; write it like vip = "10.0.0.1" or vip = "2001:db8::1""#,
        ),
        (
            "name = \"b1\"",
            "name = \"b1\"\nport = 81",
            r#"t.toml:9:8: backend "chat/b1": port 81 differs from the service's 80, and mode ipip cannot translate ports; remove it, set port = 80, or use mode "nat" or "dnat""#,
        ),
        (
            "name = \"b1\"",
            "name = \"b1\"\nweight = 1001",
            r#"t.toml:9:10: backend "chat/b1": weight is 1001; give a number from 0 to 1000"#,
        ),
        (
            "name = \"b1\"",
            "name = \"b1\"\nadmin = \"off\"",
            r#"t.toml:9:9: backend "chat/b1": unknown admin state "off"; use "active", "draining" or "disabled""#,
        ),
        (
            "name = \"b1\"",
            "name = \"b/1\"",
            r#"t.toml:8:8: backend "chat/b/1": "b/1" is no name; use 1 to 63 letters, digits, dots, colons, hyphens or underscores"#,
        ),
        (
            "name = \"chat\"\n",
            "",
            "t.toml:2:1: service number 1: name is missing; add name = \"chat\"",
        ),
        (
            "interfaces = [\"eth0\"]\n",
            "",
            "t.toml:1:1: configuration: interfaces is missing; add interfaces = [\"eth0\"]",
        ),
        (
            "[\"eth0\"]",
            "[]",
            "t.toml:1:14: configuration: interfaces is empty, so there is nothing to attach to; name at least one interface",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\", \"eth0\"]",
            "t.toml:1:23: configuration: interface \"eth0\" is named twice; remove one of them",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\", 1]",
            "t.toml:1:23: configuration: interfaces contains a whole number; write names only, like interfaces = [\"eth0\"]",
        ),
        (
            "[\"eth0\"]",
            "[\"../eth0\"]",
            "t.toml:1:15: configuration: \"../eth0\" is no name of an interface; give a name as `ip link` shows it, at most 15 characters",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nlocal_interfaces = [\"cni*0\"]",
            "t.toml:2:21: configuration: \"cni*0\" is no name of an interface; give a name as `ip link` shows it, at most 15 characters",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nlocal_interfaces = [\"cni*\", \"cni*\"]",
            "t.toml:2:29: configuration: interface \"cni*\" is named twice; remove one of them",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nlocal_interfaces = \"cni0\"",
            "t.toml:2:20: configuration: local_interfaces is a string, not an array; write it like local_interfaces = [\"cni0\"]",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nstate_dir = \"run\"",
            "t.toml:2:13: configuration: state_dir is \"run\", which is no absolute path; begin it with /",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nfleet_seed = \"\"",
            "t.toml:2:14: configuration: fleet_seed is empty; give a secret text, the same on every load balancer of the fleet, or remove the key to have one made up",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nadmin_group = \"my group\"",
            "t.toml:2:15: configuration: admin_group is \"my group\", which is no name of a group; give the name of a group of this host, or remove the key: then only root and the daemon's own user may use the admin socket",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nmetrics.listen = \"9477\"",
            "t.toml:2:18: metrics: listen is \"9477\", which is no address and port; write it like \"127.0.0.1:9477\" or \"[::1]:9477\", or \"off\"",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nlimits.flows = 0",
            "t.toml:2:16: limits: flows is 0; give a number from 1 to 20000000",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nlimits.flows = 20000001",
            "t.toml:2:16: limits: flows is 20000001; give a number from 1 to 20000000",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nlimits.flows6 = 0",
            "t.toml:2:17: limits: flows6 is 0; give a number from 1 to 10000000",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nlimits.flows6 = 10000001",
            "t.toml:2:17: limits: flows6 is 10000001; give a number from 1 to 10000000",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nlimits.services = 99999999999999999999",
            "t.toml:2:19: limits: services is 9223372036854775807; give a number from 2 to 65536",
        ),
        (
            "mode",
            "drain_deadline = \"721h\"\nmode",
            "t.toml:6:18: service \"chat\": drain_deadline is 721h; give a duration from 0s to 720h",
        ),
        (
            "mode",
            "drain_deadline = \"never\"\nmode",
            "t.toml:6:18: service \"chat\": drain_deadline is \"never\", which is no duration; write a whole number and a unit: \"500ms\", \"2s\", \"1m\", \"1h\"",
        ),
        (
            "mode",
            "close_over = \"25h\"\nmode",
            "t.toml:6:14: service \"chat\": close_over is 25h; give a duration from 0s to 24h",
        ),
        (
            "mode",
            "reset_over = \"61m\"\nmode",
            "t.toml:6:14: service \"chat\": reset_over is 61m; give a duration from 0s to 1h",
        ),
        (
            "mode",
            "on_down = \"rehas\"\nmode",
            "t.toml:6:11: service \"chat\": unknown on_down \"rehas\"; did you mean \"rehash\"?",
        ),
        (
            "mode",
            "affinity = \"client\"\nmode",
            "t.toml:6:12: service \"chat\": unknown affinity \"client\"; use \"connection\" or \"client-ip\"",
        ),
        (
            "mode",
            "affinity = \"client-ip\"\naffinity_timeout = \"73h\"\nmode",
            "t.toml:7:20: service \"chat\": affinity_timeout is 73h; give a duration from 10s to 72h",
        ),
        (
            "mode",
            "on_down = \"panic\"\nmode",
            "t.toml:6:11: service \"chat\": unknown on_down \"panic\"; use \"reset\", \"keep\" or \"rehash\"",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nlimits = 1",
            "t.toml:2:10: configuration: limits is a whole number, not a table; write it like limits = { … }",
        ),
    ] {
        assert_eq!(error_of(from, to), expected);
    }
}

#[test]
fn each_mistake_in_a_check_has_its_place_object_and_remedy() {
    for (line, expected) in [
        (
            "type = \"ssh\"",
            r#"unknown type "ssh"; use "tcp", "http", "https", "websocket" or "grpc""#,
        ),
        (
            "type = \"htps\"",
            r#"unknown type "htps"; did you mean "https"?"#,
        ),
        (
            "path = \"/\"",
            r#"path belongs to checks of type "http" or "https" or "websocket"; set type = "http", or remove path"#,
        ),
        (
            "host = \"a\"",
            r#"host belongs to checks of type "http" or "https" or "websocket" or "grpc"; set type = "http", or remove host"#,
        ),
        (
            "status = [200]",
            r#"status belongs to checks of type "http" or "https"; set type = "http", or remove status"#,
        ),
        (
            "type = \"websocket\"\nmethod = \"GET\"",
            r#"method belongs to checks of type "http" or "https"; set type = "http", or remove method"#,
        ),
        (
            "type = \"grpc\"\npath = \"/\"",
            r#"path belongs to checks of type "http" or "https" or "websocket"; set type = "http", or remove path"#,
        ),
        (
            "type = \"http\"\nping = true",
            r#"ping belongs to checks of type "websocket"; set type = "websocket", or remove ping"#,
        ),
        (
            "type = \"http\"\nservice = \"chat\"",
            r#"service belongs to checks of type "grpc"; set type = "grpc", or remove service"#,
        ),
        (
            "type = \"http\"\ntls = {}",
            r#"tls belongs to checks of type "https" or "websocket" or "grpc"; set type = "https", or remove tls"#,
        ),
        (
            "type = \"websocket\"\nping = 1",
            "ping is a whole number, not true or false; write it like ping = true",
        ),
        (
            "type = \"http\"\nmethod = \"get\"",
            r#"unknown method "get"; use "GET", "HEAD", "OPTIONS" or "POST""#,
        ),
        (
            "type = \"http\"\npath = \"/a#b\"",
            r#"path is "/a#b"; begin it with / and encode blanks (%20)"#,
        ),
        (
            "type = \"https\"\nhost = \"me@chat\"",
            r#"host is "me@chat"; give a host name, or remove the key to use the backend's address"#,
        ),
        (
            "type = \"https\"\nhost = \"-.-\"",
            r#"no certificate is for the host "-.-"; give the name that it is for in tls.name"#,
        ),
        (
            "type = \"http\"\nbody_contains = \"\"",
            "body_contains is empty, which every body contains; give a few words that only a healthy answer has, or remove the key",
        ),
        (
            "type = \"http\"\nmethod = \"HEAD\"\nbody_contains = \"ok\"",
            r#"body_contains asks for a body, and a response to HEAD has none; set method = "GET", or remove body_contains"#,
        ),
        (
            "type = \"http\"\nheaders = 1",
            "headers is a whole number, not a table; write it like headers = { … }",
        ),
        (
            "type = \"grpc\"\nservice = \"a\\nb\"",
            "service is no name of a gRPC service; give its name, of at most 255 bytes, or remove the key to ask for the server as a whole",
        ),
        ("jitter = 51", "jitter is 51; give a number from 0 to 50"),
        (
            "doubt_interval = \"1ms\"",
            "doubt_interval is 1ms; give a duration from 10ms to 1h",
        ),
        (
            "startup_grace = \"2h\"",
            "startup_grace is 2h; give a duration from 0s to 1h",
        ),
        ("at_once = 0", "at_once is 0; give a number from 1 to 16384"),
        (
            "through = \"loopback\"",
            r#"through is "loopback"; use "address" (checks go to the backend's address) or "vip" (to the VIP, as clients' packets do)"#,
        ),
        (
            "initial = \"down\"",
            r#"initial is "down"; use "unknown" (no new flows before the first verdict) or "up""#,
        ),
        (
            "interval = \"2\"",
            r#"interval is "2", which is no duration; write a whole number and a unit: "500ms", "2s", "1m", "1h""#,
        ),
        (
            "interval = \"2h\"",
            "interval is 2h; give a duration from 10ms to 1h",
        ),
        (
            "interval = 2",
            "interval is a whole number, not a string; write it like interval = \"2s\"",
        ),
        (
            "timeout = \"3s\"",
            "timeout is longer than interval, so checks would overlap; lower timeout or raise interval",
        ),
        ("fall = 0", "fall is 0; give a number from 1 to 100"),
        ("port = 0", "port is 0; give a number from 1 to 65535"),
        (
            "type = \"http\"\npath = \"health\"",
            "path is \"health\"; begin it with / and encode blanks (%20)",
        ),
        (
            "type = \"http\"\nhost = \"a b\"",
            "host is \"a b\"; give a host name, or remove the key to use the backend's address",
        ),
        (
            "type = \"http\"\nstatus = [99]",
            "status 99 does not exist; list codes from 100 to 599, or ranges like \"200-299\"",
        ),
        (
            "type = \"http\"\nstatus = [\"300-200\"]",
            "status \"300-200\" is no range; list codes from 100 to 599, or ranges like \"200-299\"",
        ),
        (
            "type = \"http\"\nstatus = []",
            "status is empty, so no answer would be a yes; list codes from 100 to 599, or ranges like \"200-299\"",
        ),
    ] {
        let errors = errors(&format!("{SMALL}[service.health]\n{line}\n"));
        assert_eq!(errors.len(), 1, "{errors:#?}");
        let number = 10 + line.lines().count();
        let column = 1 + line.lines().last().unwrap().find("= ").unwrap() + 2;
        // An element of a list is where the mistake is, if there is one.
        let place = errors[0]
            .strip_prefix(&format!("t.toml:{number}:"))
            .unwrap();
        let (at, rest) = place.split_once(": ").unwrap();
        let at: usize = at.parse().unwrap();
        assert!(
            at == column || (at == column + 1 && line.contains('[')),
            "{}",
            errors[0]
        );
        assert_eq!(rest, format!("health of service \"chat\": {expected}"));
    }
}

#[test]
fn all_mistakes_are_reported_in_their_order() {
    let text = r#"interfaces = []
colour = 1
[[service]]
name = "a"
vip = "10.0.0.1"
port = 0
mode = "nat"
[[service.backend]]
name = "b1"
address = "::1"
wieght = 1
[[service.backend]]
name = "b1"
address = "10.0.1.1"
[[service]]
name = "a"
vip = "10.0.0.1"
port = 80
mode = "l2"
[[service]]
name = "c"
vip = "10.0.0.1"
port = 80
mode = "l2"
[[service.backend]]
name = "b1"
address = "10.0.1.1"
[[service.backend]]
name = "b2"
address = "10.0.1.1"
"#;
    let places: Vec<String> = errors(text)
        .iter()
        .map(|error| error.split(": ").take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        places,
        [
            "t.toml:1:14 configuration",
            "t.toml:2:1 configuration",
            "t.toml:3:1 service \"a\"",
            "t.toml:6:8 service \"a\"",
            "t.toml:10:11 backend \"a/b1\"",
            "t.toml:11:1 backend \"a/b1\"",
            "t.toml:13:8 backend \"a/b1\"",
            "t.toml:16:8 service \"a\"",
            "t.toml:22:7 service \"c\"",
            "t.toml:30:11 backend \"c/b2\"",
        ]
    );
}

#[test]
fn a_duplicate_vip_and_port_names_its_holder() {
    let text = format!(
        "{SMALL}{}",
        SMALL
            .split_once('\n')
            .unwrap()
            .1
            .replace("\"chat\"", "\"other\"")
    );
    assert_eq!(
        errors(&text),
        [
            r#"t.toml:12:7: service "other": 10.0.0.1:80 is service "chat"'s already; give each service a VIP and port of its own"#
        ]
    );
}

#[test]
fn a_table_too_small_is_refused_and_one_that_is_coarse_is_warned_of() {
    let backends: String = (0..10)
        .map(|n| format!("[[service.backend]]\nname = \"n{n}\"\naddress = \"10.0.2.{n}\"\n"))
        .collect();
    let with = |size| {
        format!(
            "{}{backends}",
            SMALL.replace("mode", &format!("table_size = {size}\nmode"))
        )
    };
    assert_eq!(
        errors(&with(690)),
        [
            r#"t.toml:6:14: service "chat": table_size 691 is 13 too few for 11 backends, which need 64 slots each; set table_size = 1100"#
        ]
    );
    assert_eq!(
        warnings(&with(705)),
        [
            r#"t.toml:6:14: service "chat": table_size 709 gives 11 backends fewer than 100 slots each, so their shares are coarse; set table_size = 1100"#
        ]
    );
    assert_eq!(warnings(&with(1100)), [] as [&str; 0]);
}

#[test]
fn limits_that_are_too_low_say_by_how_much() {
    let with = |line: &str| {
        let text = SMALL.replacen('\n', &format!("\nlimits.{line}\n"), 1);
        let text = text.replace("port = 80", "port = 80\ntable_size = 100");
        let second = text
            .split_once("[[service]]")
            .unwrap()
            .1
            .replace("chat", "more")
            .replace("10.0.0.1", "10.0.0.2");
        errors(&format!("{text}[[service]]{second}"))
    };
    const REMEDY: &str =
        "or more in [limits], then run `tether cleanup` so that the maps are made anew";
    assert_eq!(
        with("services = 2"),
        [format!(
            "t.toml:2:19: limits: services is 2, 1 too few for 2 services, for number 0 is not used; set services = 3 {REMEDY}"
        )]
    );
    assert_eq!(
        with("backends = 2"),
        [format!(
            "t.toml:2:19: limits: backends is 2, 1 too few for 2 backends, for number 0 is not used; set backends = 3 {REMEDY}"
        )]
    );
    assert_eq!(
        with("table_slots = 300"),
        [format!(
            "t.toml:2:22: limits: table_slots is 300, 3 too few for tables of 202 slots in all and room to write the largest anew beside them; set table_slots = 303 {REMEDY}"
        )]
    );
}

#[test]
fn what_is_odd_but_legal_is_warned_of() {
    let head = "interfaces = [\"eth0\"]\n";
    assert_eq!(
        warnings(head),
        [
            "t.toml:1:1: configuration: there is no service, so every packet passes to the host; add a [[service]]"
        ]
    );
    assert_eq!(
        warnings(&SMALL[..SMALL.find("[[service.backend]]").unwrap()]),
        [
            "t.toml:2:1: service \"chat\": it has no backend, so every connection to it is refused or dropped; add a [[service.backend]]"
        ]
    );
    assert_eq!(
        warnings(&SMALL.replace("mode", "close_over = \"5s\"\nmode")),
        [
            "t.toml:6:14: service \"chat\": close_over says how fast flows are closed at a drain's deadline, and there is none but with `tether drain --deadline`; set drain_deadline too, or leave it to the command"
        ]
    );
    assert_eq!(
        warnings(&SMALL.replace("mode", "min_healthy = 2\nmode")),
        [
            "t.toml:6:15: service \"chat\": min_healthy is 2, but there are only 1 backends, so it is always in fail-open; lower it"
        ]
    );
    assert_eq!(
        warnings(&SMALL.replacen('\n', "\nfleet_seed = \"short\"\n", 1)),
        [
            "t.toml:2:14: configuration: fleet_seed is short, and who guesses it can aim flows at one backend; give at least 16 characters, for example from `openssl rand -hex 16`"
        ]
    );
}

#[test]
fn broken_syntax_has_a_place_too() {
    let errors = errors("interfaces = [\"eth0\"]\nstate_dir = \n");
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].starts_with("t.toml:2:"), "{}", errors[0]);
    assert!(
        errors[0].contains(": configuration: this is not TOML: "),
        "{}",
        errors[0]
    );
}

#[test]
fn a_key_given_twice_is_not_toml() {
    let errors = errors(&SMALL.replace("port = 80", "port = 80\nport = 81"));
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(
        errors[0].starts_with("t.toml:6:1: configuration: this is not TOML: "),
        "{}",
        errors[0]
    );
}

#[test]
fn an_unreadable_file_is_named() {
    let error = load(Path::new("/nonexistent/tether.toml"))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "/nonexistent/tether.toml: configuration: cannot be read: No such file or directory (os error 2); name a readable file of UTF-8 text with --config"
    );
}

/// What is said about a file that is made in a directory of its own; fails if nothing is for a while.
fn told_of(test: &str, make: impl FnOnce(&Path)) -> String {
    let directory =
        std::env::temp_dir().join(format!("tether-config-{}-{test}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("tether.toml");
    make(&path);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn({
        let path = path.clone();
        move || sender.send(load(&path).map(drop))
    });
    let told = receiver.recv_timeout(std::time::Duration::from_secs(20));
    std::fs::remove_dir_all(&directory).unwrap();
    let told = told
        .expect("reading ends")
        .expect_err("it is no configuration");
    let told = told.to_string();
    let begin = format!("{}: configuration: cannot be read: ", path.display());
    let end = "; name a readable file of UTF-8 text with --config";
    told.strip_prefix(&begin)
        .and_then(|told| told.strip_suffix(end))
        .unwrap_or_else(|| panic!("{told}"))
        .to_owned()
}

#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    use nix::{sys::stat::Mode, unistd::mkfifo};

    const EXPECTED: &str = "it is no regular file";
    let pipe = |path: &Path| mkfifo(path, Mode::S_IRWXU).unwrap();
    assert_eq!(told_of("pipe", pipe), EXPECTED);
    let directory = |path: &Path| std::fs::create_dir(path).unwrap();
    assert_eq!(told_of("directory", directory), EXPECTED);
    let device = |path: &Path| std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    assert_eq!(told_of("device", device), EXPECTED);
}

#[test]
fn a_file_that_is_too_large_is_refused_whatever_is_in_it() {
    const EXPECTED: &str = "it is larger than 16 MiB, which no configuration is";
    let large = |length, byte| {
        move |path: &Path| {
            let mut text = vec![byte; length];
            text[0] = b'#';
            std::fs::write(path, text).unwrap();
        }
    };
    let most = MAX_FILE as usize;
    assert_eq!(told_of("large", large(most + 1, b' ')), EXPECTED);
    // Its last byte that is read is half a character.
    assert_eq!(told_of("binary", large(most + 1, 0xc3)), EXPECTED);
    let directory = std::env::temp_dir().join(format!("tether-config-{}", std::process::id()));
    large(most, b' ')(&directory);
    assert_eq!(read_file(&directory).unwrap().len(), most);
    std::fs::remove_file(&directory).unwrap();
}

#[test]
fn a_file_that_is_no_text_is_refused_with_the_line() {
    let bytes = |path: &Path| std::fs::write(path, b"# \n# \xff\n").unwrap();
    assert_eq!(
        told_of("bytes", bytes),
        "it is no UTF-8 text, from line 2 on"
    );
}

#[test]
fn columns_count_characters_not_bytes() {
    let text = SMALL.replace(
        "name = \"b1\"",
        "name = \"b1\"\nextra = { \"ümläut\" = 1, weight = 1 }",
    );
    assert_eq!(errors(&text).len(), 1);
    let text = SMALL.replace(
        "[[service.backend]]\nname",
        "[[service.backend]]\n\"ü\" = 1\nname",
    );
    let error = &errors(&text)[0];
    assert!(error.starts_with("t.toml:8:1: "), "{error}");
    let text = SMALL.replace("[\"eth0\"]", "[\"ü\", 1]");
    let error = &errors(&text)[0];
    assert!(error.starts_with("t.toml:1:20: "), "{error}");
}
