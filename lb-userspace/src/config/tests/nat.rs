//! Modes `nat` and `dnat`.

use super::*;

/// A service of mode `nat` and all before it.
const NAT: &str = r#"interfaces = ["eth0"]
[[service]]
name = "chat"
vip = "10.0.0.1"
port = 80
mode = "nat"
snat = ["10.0.2.100", "10.0.2.101"]
[[service.backend]]
name = "b1"
address = "10.0.1.11"
port = 8080
"#;

/// The same as one of number `n` would be, without the head; the backends stay.
fn another(n: usize) -> String {
    NAT.split_once('\n')
        .unwrap()
        .1
        .replace("chat", &format!("chat{n}"))
        .replace("port = 80\n", &format!("port = {}\n", 80 + n))
}

#[test]
fn snat_addresses_and_ports_of_backends_are_taken_as_they_are_given() {
    let config = parse(Path::new("t.toml"), NAT).unwrap().config;
    let service = &config.services[0];
    assert_eq!((service.mode, service.port), (Mode::Nat, 80));
    let snat: Vec<String> = service.snat.iter().map(ToString::to_string).collect();
    assert_eq!(snat, ["10.0.2.100", "10.0.2.101"]);
    assert_eq!(service.backends[0].port, 8_080);
    assert_eq!(
        service.backends[0].check_address,
        "10.0.1.11:8080".parse().unwrap()
    );
    assert!(config.translates(IpVersion::V4) && !config.translates(IpVersion::V6));
    let text = NAT
        .replace("\"nat\"", "\"dnat\"")
        .replace("snat = [\"10.0.2.100\", \"10.0.2.101\"]\n", "");
    let config = parse(Path::new("t.toml"), &text).unwrap().config;
    assert_eq!(
        (config.services[0].mode, config.needs().nat_pairs),
        (Mode::Dnat, 0)
    );
    assert!(config.translates(IpVersion::V4));
}

#[test]
fn each_mistake_in_snat_has_its_place_object_and_remedy() {
    for (from, to, expected) in [
        (
            "snat = [\"10.0.2.100\", \"10.0.2.101\"]\n",
            "",
            r#"t.toml:2:1: service "chat": snat is missing; add snat = ["10.0.2.100"]"#,
        ),
        (
            "[\"10.0.2.100\", \"10.0.2.101\"]",
            "\"10.0.2.100\"",
            r#"t.toml:7:8: service "chat": snat is a string, not an array; write it like snat = ["10.0.2.100"]"#,
        ),
        (
            "[\"10.0.2.100\", \"10.0.2.101\"]",
            "[]",
            r#"t.toml:7:8: service "chat": snat has 0 addresses; give 1 to 8 addresses, like snat = ["10.0.2.100"]"#,
        ),
        (
            "[\"10.0.2.100\", ",
            "[\"10.0.2.1\", \"10.0.2.2\", \"10.0.2.3\", \"10.0.2.4\", \"10.0.2.5\", \"10.0.2.6\", \"10.0.2.7\", \"10.0.2.8\", ",
            r#"t.toml:7:8: service "chat": snat has 9 addresses; give 1 to 8 addresses, like snat = ["10.0.2.100"]"#,
        ),
        (
            "\"10.0.2.101\"",
            "7",
            r#"t.toml:7:23: service "chat": snat contains a whole number; write addresses only, like snat = ["10.0.2.100"]"#,
        ),
        (
            "10.0.2.101",
            "10.0.2",
            r#"t.toml:7:23: service "chat": snat contains "10.0.2", which is no IP address; write it like snat = ["10.0.2.100"]"#,
        ),
        (
            "10.0.2.101",
            "127.0.0.2",
            r#"t.toml:7:23: service "chat": SNAT address 127.0.0.2 is a loopback address, which never leaves a host; give a unicast address"#,
        ),
        (
            "10.0.2.101",
            "2001:db8::7",
            r#"t.toml:7:23: service "chat": SNAT address 2001:db8::7 is IPv6, and the VIP is IPv4; give an IPv4 address"#,
        ),
        (
            "10.0.2.101",
            "10.0.2.100",
            r#"t.toml:7:23: service "chat": SNAT address 10.0.2.100 is named twice; remove one of them"#,
        ),
        (
            "10.0.2.101",
            "10.0.0.1",
            r#"t.toml:7:23: service "chat": SNAT address 10.0.0.1 is the VIP of service "chat"; give an address of this host that nothing else has"#,
        ),
        (
            "10.0.2.101",
            "10.0.1.11",
            r#"t.toml:7:23: service "chat": SNAT address 10.0.1.11 is the address of backend "chat/b1"; give an address of this host that nothing else has"#,
        ),
        (
            "mode = \"nat\"",
            "mode = \"dnat\"",
            r#"t.toml:7:8: service "chat": mode dnat hides no client's address, so it has no use for snat; remove it, or set mode = "nat""#,
        ),
        (
            "10.0.1.11",
            "2001:db8::11",
            r#"t.toml:10:11: backend "chat/b1": address 2001:db8::11 is IPv6, and mode nat translates no IPv4 packet to it; give the backend's IPv4 address"#,
        ),
    ] {
        assert_eq!(NAT.matches(from).count(), 1, "{from:?}");
        assert_eq!(errors(&NAT.replace(from, to)), [expected]);
    }
}

#[test]
fn a_snat_address_is_the_vip_of_no_other_service_either() {
    let second = another(1).replace("\"10.0.0.1\"", "\"10.0.2.101\"");
    assert_eq!(
        errors(&format!("{NAT}{second}")),
        [
            r#"t.toml:7:23: service "chat": SNAT address 10.0.2.101 is the VIP of service "chat1"; give an address of this host that nothing else has"#,
            r#"t.toml:17:23: service "chat1": SNAT address 10.0.2.101 is the VIP of service "chat1"; give an address of this host that nothing else has"#,
        ]
    );
}

/// A pair is a SNAT address and a backend's address and port, whatever the service.
#[test]
fn pairs_are_counted_once_and_have_to_fit() {
    let text = format!("{NAT}{}", another(1));
    let config = parse(Path::new("t.toml"), &text).unwrap().config;
    assert_eq!(config.needs().nat_pairs, 2);
    let text = text.replacen('\n', "\nlimits.nat_pairs = 1\n", 1);
    assert_eq!(
        errors(&text),
        [
            "t.toml:2:20: limits: nat_pairs is 1, 1 too few for 2 pairs of a SNAT address and a backend's address and port; set nat_pairs = 2 or more \
             in [limits], then run `tether cleanup` so that the maps are made anew"
        ]
    );
}

/// Nobody else knows the port of a flow of mode `nat`; one of `dnat` has none.
#[test]
fn flows_of_nat_that_another_backend_is_to_go_on_with_are_warned_of() {
    let of = |word: &str| NAT.replace("snat =", &format!("on_down = {word:?}\nsnat ="));
    assert_eq!(
        warnings(&of("rehash")),
        [
            r#"t.toml:7:11: service "chat": on_down = "rehash" has another backend go on with a flow, and in mode nat nobody else knows its port, so that its client is reset; use on_down = "reset""#
        ]
    );
    for word in ["reset", "keep"] {
        assert_eq!(warnings(&of(word)), [""; 0]);
    }
    let dnat = of("rehash")
        .replace("\"nat\"", "\"dnat\"")
        .replace("snat = [\"10.0.2.100\", \"10.0.2.101\"]\n", "");
    assert_eq!(warnings(&dnat), [""; 0]);
}

#[test]
fn four_services_of_mode_dnat_share_a_backend_and_no_more() {
    let dnat = |services| {
        let text: String = (1..services).map(another).collect();
        format!("{NAT}{text}")
            .replace("\"nat\"", "\"dnat\"")
            .replace("snat = [\"10.0.2.100\", \"10.0.2.101\"]\n", "")
    };
    assert!(parse(Path::new("t.toml"), &dnat(4)).is_ok());
    assert_eq!(
        errors(&dnat(5)),
        [
            r#"t.toml:45:11: backend "chat4/b1": 10.0.1.11:8080 is a backend of 4 services of mode dnat already, which is the most; have another address or port of the backend serve it, or use mode "nat""#
        ]
    );
}

#[test]
fn a_backend_is_reached_from_eight_snat_addresses_and_no_more() {
    let nat = |services: usize| {
        (1..services).fold(NAT.to_owned(), |text, n| {
            let snat = format!("[\"10.0.3.{n}\", \"10.0.4.{n}\"]");
            text + &another(n).replace("[\"10.0.2.100\", \"10.0.2.101\"]", &snat)
        })
    };
    assert!(parse(Path::new("t.toml"), &nat(4)).is_ok());
    assert_eq!(
        errors(&nat(5)),
        [
            r#"t.toml:50:11: backend "chat4/b1": 10.0.1.11:8080 is reached from 10 SNAT addresses, those of the services above among them, and 8 are the most; give the services that share a backend SNAT addresses in common"#
        ]
    );
}

/// The slots of the most pairs are such as the verifier lets a program address.
#[test]
fn the_most_pairs_fit_a_map() {
    const { assert!(MAX_NAT_PAIRS < lb_common::nat::MOST_PAIRS) };
}
