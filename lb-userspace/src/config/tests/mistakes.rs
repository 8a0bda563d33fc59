//! What is refused, and what is warned of.

use super::*;

#[test]
fn each_mistake_has_its_place_object_and_remedy() {
    for (from, to, expected) in [
        (
            "mode = \"ipip\"",
            "mode = \"ipip\"\ncolour = 1",
            r#"t.toml:7:1: service "chat": unknown key "colour"; remove it; known here are name, vip, port, mode, snat, table_size, min_healthy, drain_deadline, close_over, reset_over, on_down, affinity, affinity_timeout, affinity_group, slow_start, balance, backup_below, zone_enough, outlier, allow, allow_file, deny, deny_file, source_limit, health, backend, dns"#,
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
            "[\"eth0\"]\nouter_sources = []",
            "t.toml:2:17: configuration: outer_sources is empty; name a prefix that is routed to this host, or remove the key to send from this host's own address",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nouter_sources = [4]",
            "t.toml:2:18: configuration: outer_sources contains a whole number; write prefixes only, like outer_sources = [\"10.9.0.0/24\"]",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nouter_sources = [\"10.9.0.0/15\"]",
            "t.toml:2:18: configuration: outer_sources contains \"10.9.0.0/15\", which has bits set beyond its length; write 10.8.0.0/15 if all of it is meant, or the one address without a length",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nouter_sources = [\"10.8.0.0/15\"]",
            "t.toml:2:18: configuration: 10.8.0.0/15 has more addresses than a flow is told apart by; give a part of it, of /16 or longer",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nouter_sources = [\"fe80::/112\"]",
            "t.toml:2:18: configuration: fe80::/112 is a link-local address, which is another host's on every link; give a global or unique local address",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nouter_sources = [\"10.9.0.0/24\", \"10.9.1.0/24\"]",
            "t.toml:2:33: configuration: 10.9.1.0/24 is a second prefix of IPv4; keep one of 10.9.0.0/24 and 10.9.1.0/24",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nouter_sources = [\"10.0.0.0/24\"]",
            "t.toml:5:7: service \"chat\": its VIP 10.0.0.1 is in 10.0.0.0/24 of outer_sources, and backends take no packet from an address that they have themselves; route another prefix to this host for outer_sources",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\"]\nouter_sources = [\"10.0.1.0/24\"]",
            "t.toml:10:11: backend \"chat/b1\": its address 10.0.1.11 is in 10.0.1.0/24 of outer_sources, and it takes no packet from an address that it has itself; route another prefix to this host for outer_sources",
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
