//! Names in the DNS: what each key means, and mistakes.

use super::*;
use crate::{
    config::DnsSource,
    dns::{Bounds, Kind, Question},
};

fn of_lines(lines: &str) -> Result<Loaded, Problems> {
    let text = format!("dns.servers = [\"10.0.0.53\", \"[::1]:5353\"]\n{SMALL}{lines}\n");
    parse(Path::new("t.toml"), &text)
}

fn sources(lines: &str) -> Vec<DnsSource> {
    of_lines(lines).unwrap().config.services[0].dns.clone()
}

#[test]
fn every_key_of_a_source_has_its_effect() {
    let all = "[[service.dns]]\nname = \"pods\"\nquery = \"Chat.Example.\"\ntype = \"srv\"\nport = 80\nweight = 7\nmin_ttl = \"2s\"\nmax_ttl = \"1h\"\n\
               [[service.dns]]\nname = \"rest\"\nquery = \"chat\"\n";
    let loaded = of_lines(all).unwrap();
    assert_eq!(loaded.warnings, []);
    let servers = ["10.0.0.53:53", "[::1]:5353"].map(|one| one.parse().unwrap());
    assert_eq!(loaded.config.dns_servers, Some(servers.to_vec()));
    let pods = DnsSource {
        name: "pods".into(),
        question: Question {
            // Case is nothing in the DNS.
            name: "chat.example.".into(),
            kind: Kind::Srv,
        },
        bounds: Bounds {
            min: Duration::from_secs(2),
            max: Duration::from_secs(3_600),
        },
        port: Some(80),
        weight: 7,
    };
    let rest = DnsSource {
        name: "rest".into(),
        question: Question {
            name: "chat".into(),
            kind: Kind::Address,
        },
        bounds: Bounds {
            min: Duration::from_secs(5),
            max: Duration::from_secs(300),
        },
        port: None,
        weight: 100,
    };
    assert_eq!(sources(all), [pods, rest]);
    for (word, kind) in [
        ("a", Kind::A),
        ("aaaa", Kind::Aaaa),
        ("address", Kind::Address),
    ] {
        let line = format!("[[service.dns]]\nname = \"pods\"\nquery = \"chat\"\ntype = \"{word}\"");
        assert_eq!(sources(&line)[0].question.kind, kind);
    }
    let late = "[[service.dns]]\nname = \"pods\"\nquery = \"chat\"\nmin_ttl = \"10m\"";
    assert_eq!(sources(late)[0].bounds.max, Duration::from_secs(600));
}

#[test]
fn each_mistake_in_a_source_is_told() {
    for (lines, expected) in [
        ("query = \"chat\"", "name is missing; add name = \"pods\""),
        (
            "name = \"pods\"",
            "query is missing; add query = \"chat.example.\"",
        ),
        (
            "name = \"seventeen-letters\"\nquery = \"chat\"",
            "\"seventeen-letters\" is too long for a name of a source; use 1 to 16 letters",
        ),
        (
            "name = \"a b\"\nquery = \"chat\"",
            "\"a b\" is no name; use 1 to 16 letters",
        ),
        (
            "name = \"pods\"\nquery = \"a..b\"",
            "query is \"a..b\", which is no name in the DNS; write it like query = \"chat.example.\"; give an address as a [[service.backend]]",
        ),
        (
            "name = \"pods\"\nquery = \"10.0.0.1\"",
            "query is \"10.0.0.1\", which is no name",
        ),
        (
            "name = \"pods\"\nquery = \"chat\"\ntype = \"svr\"",
            "unknown type \"svr\"; did you mean \"srv\"?",
        ),
        (
            "name = \"pods\"\nquery = \"chat\"\nport = 81",
            "port 81 differs from the service's 80",
        ),
        (
            "name = \"pods\"\nquery = \"chat\"\nweight = 1001",
            "weight is 1001",
        ),
        (
            "name = \"pods\"\nquery = \"chat\"\nmin_ttl = \"500ms\"",
            "min_ttl is 500ms; give a duration from 1s to 24h",
        ),
        (
            "name = \"pods\"\nquery = \"chat\"\nmin_ttl = \"10s\"\nmax_ttl = \"9s\"",
            "max_ttl is less than min_ttl; raise max_ttl or lower min_ttl",
        ),
        (
            "name = \"pods\"\nquery = \"a\"\n[[service.dns]]\nname = \"pods\"\nquery = \"b\"",
            "this name is taken by a source of the service above",
        ),
    ] {
        let problems = of_lines(&format!("[[service.dns]]\n{lines}")).unwrap_err();
        let text = problems.to_string();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(expected), "{text}\nnot: {expected}");
        let source = "dns source ";
        assert!(
            text.starts_with("t.toml:") && text.contains(source),
            "{text}"
        );
    }
    for (servers, expected) in [
        ("[]", "servers is empty"),
        (
            "[\"ns.example\"]",
            "servers contains \"ns.example\", which is no address",
        ),
        ("[53]", "servers contains a whole number"),
    ] {
        let text = format!("dns.servers = {servers}\n{SMALL}");
        let text = parse(Path::new("t.toml"), &text).unwrap_err().to_string();
        assert!(
            text.starts_with("t.toml:1:") && text.contains(expected),
            "{text}"
        );
    }
}
