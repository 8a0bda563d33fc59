//! Health checks: what each key means, and mistakes.

use std::sync::Arc;

use hyper::{Method, header::HeaderMap};
use rustls::pki_types::{ServerName, pem::PemObject as _};

use super::*;
use crate::model::{
    Authorities, CheckKind, GrpcCheck, HttpCheck, JsonEquals, RequestTarget, Tls, Trust,
    WebSocketCheck,
};

fn checked(lines: &str) -> Check {
    let text = format!("{SMALL}[service.health]\n{lines}\n");
    let config = parse(Path::new("t.toml"), &text).unwrap().config;
    config.services[0].backends[0].check.clone()
}

fn name(name: &str) -> Option<ServerName<'static>> {
    Some(name.to_owned().try_into().unwrap())
}

/// A file that goes with its owner.
struct File(std::path::PathBuf);

impl File {
    fn of(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tether-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> std::path::Display<'_> {
        self.0.display()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn certificate() -> String {
    let one = rcgen::generate_simple_self_signed(["chat.example".to_owned()]).unwrap();
    one.cert.pem()
}

#[test]
fn the_example_is_valid_and_deserves_no_second_look() {
    let example = include_str!("../../../../examples/tether.toml");
    assert_eq!(warnings(example), [""; 0]);
}

#[test]
fn http_has_all_its_keys() {
    let check = checked(
        r#"type = "http"
method = "POST"
path = "/live"
host = "chat.example:8080"
headers = { X-Probe = "tether", Authorization = "Bearer of news" }
status = [200]
body_contains = "ok"
json = { pointer = "/a/0", equals = 1.5 }"#,
    );
    let CheckKind::Http(http) = &check.kind else {
        panic!("{check:?}");
    };
    let headers = HeaderMap::from_iter([
        ("x-probe".parse().unwrap(), "tether".parse().unwrap()),
        (
            "authorization".parse().unwrap(),
            "Bearer of news".parse().unwrap(),
        ),
    ]);
    let expected = HttpCheck {
        target: RequestTarget {
            host: Some("chat.example:8080".parse().unwrap()),
            headers,
            tls: None,
        },
        method: Method::POST,
        path: "/live".parse().unwrap(),
        status: vec![200..=200],
        body_contains: Some("ok".to_owned()),
        json: Some(JsonEquals {
            pointer: "/a/0".to_owned(),
            equals: 1.5.into(),
        }),
    };
    assert_eq!(**http, expected);
    // What may be a password is in no log.
    assert!(!format!("{check:?}").contains("Bearer"), "{check:?}");
}

#[test]
fn json_values_are_of_any_simple_type() {
    for (written, value) in [
        ("\"ok\"", serde_json::json!("ok")),
        ("0x10", serde_json::json!(16)),
        ("-1", serde_json::json!(-1)),
        ("2.5", serde_json::json!(2.5)),
        ("true", serde_json::json!(true)),
    ] {
        let check = checked(&format!(
            "type = \"http\"\njson = {{ pointer = \"\", equals = {written} }}"
        ));
        let CheckKind::Http(http) = check.kind else {
            panic!("{check:?}");
        };
        assert_eq!(http.json.as_ref().unwrap().equals, value);
    }
}

#[test]
fn tls_is_always_around_https_and_by_choice_around_others() {
    let of = |lines: &str| checked(lines).kind.tls().cloned();
    let system = |name| {
        let trust = Trust::System;
        Some(Tls { trust, name })
    };
    assert_eq!(of("type = \"https\""), system(None));
    // Without a name of its own, it is the host's, without the port.
    assert_eq!(
        of("type = \"https\"\nhost = \"chat.example:8443\""),
        system(name("chat.example"))
    );
    assert_eq!(
        of("type = \"https\"\nhost = \"chat.example\"\ntls = { name = \"pod.example\" }"),
        system(name("pod.example"))
    );
    for kind in ["websocket", "grpc"] {
        assert_eq!(of(&format!("type = \"{kind}\"")), None);
        assert_eq!(of(&format!("type = \"{kind}\"\ntls = {{}}")), system(None));
        let unverified = Some(Tls {
            trust: Trust::Anyone,
            name: None,
        });
        let lines = format!("type = \"{kind}\"\ntls = {{ verify = false }}");
        assert_eq!(of(&lines), unverified);
    }
}

#[test]
fn authorities_are_read_with_the_configuration() {
    let pem = certificate();
    let file = File::of("ca.pem", &format!("about it\n{pem}"));
    let check = checked(&format!(
        "type = \"https\"\n[service.health.tls]\nca = \"{}\"",
        file.path()
    ));
    let certificate = rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let authorities = Authorities::new(file.0.clone(), vec![certificate]);
    assert_eq!(
        check.kind.tls().unwrap().trust,
        Trust::Authorities(authorities.into())
    );
}

#[test]
fn websockets_and_grpc_have_theirs() {
    let kind = checked("type = \"websocket\"\npath = \"/chat\"\nping = true").kind;
    let expected = WebSocketCheck {
        target: RequestTarget::default(),
        path: "/chat".parse().unwrap(),
        ping: true,
    };
    assert_eq!(kind, CheckKind::WebSocket(expected.into()));
    let kind = checked("type = \"grpc\"\nservice = \"chat.v1.Chat\"").kind;
    let expected = GrpcCheck {
        target: RequestTarget::default(),
        service: "chat.v1.Chat".to_owned(),
    };
    assert_eq!(kind, CheckKind::Grpc(expected.into()));
}

#[test]
fn all_backends_of_a_service_share_what_is_asked() {
    let text = format!("{}[service.health]\ntype = \"http\"\n", SMALL).replace(
        "[[service.backend]]",
        "[[service.backend]]\nname = \"b2\"\naddress = \"10.0.1.12\"\n[[service.backend]]",
    );
    let config = parse(Path::new("t.toml"), &text).unwrap().config;
    let kinds: Vec<_> = config.services[0]
        .backends
        .iter()
        .map(|backend| match &backend.check.kind {
            CheckKind::Http(http) => http.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(Arc::ptr_eq(&kinds[0], &kinds[1]));
}

#[test]
fn the_pause_in_doubt_is_warned_of_where_it_has_no_effect() {
    let text = format!("{SMALL}[service.health]\ninterval = \"1s\"\ndoubt_interval = \"2s\"\n");
    assert_eq!(
        warnings(&text),
        [
            r#"t.toml:12:18: health of service "chat": doubt_interval is longer than interval, so it has no effect; lower it, or remove it"#
        ]
    );
}

#[test]
fn checks_go_through_the_vip_where_backends_have_it() {
    assert!(!checked("").through_vip);
    assert!(!checked("through = \"address\"").through_vip);
    for kind in ["tcp", "http", "https", "websocket", "grpc"] {
        let check = checked(&format!("through = \"vip\"\ntype = \"{kind}\""));
        assert!(check.through_vip, "{kind}");
    }
    let text = format!("{SMALL}[service.health]\nthrough = \"vip\"\nport = 80\n");
    assert_eq!(
        errors(&text),
        [
            r#"t.toml:12:8: health of service "chat": port is for checks of the backend's address, and through = "vip" has the VIP checked at the service's port; remove one of them"#
        ]
    );
    let text = format!("{SMALL}[service.health]\nthrough = \"vip\"\n");
    let text = text.replace("mode = \"ipip\"", "mode = \"dnat\"");
    assert_eq!(
        errors(&text),
        [
            r#"t.toml:11:11: health of service "chat": through = "vip" asks for the VIP at the backend, which never sees it in mode dnat; remove through: a check of the backend's address is what it is for; or set mode = "ipip" or "l2""#
        ]
    );
}

#[test]
fn mistakes_in_tables_of_a_check_are_told_all_at_once() {
    let text = format!(
        r#"{SMALL}[service.health]
type = "https"
headers = {{ Host = "a", "b c" = "d", X = 1, Y = "a\nb", Upgrade = "h2c" }}
json = {{ pointer = "status", equals = [], extra = 1 }}
[service.health.tls]
ca = "/nowhere/ca.pem"
name = "a b"
verify = false
x = 1
"#
    );
    let of = "service \"chat\"";
    assert_eq!(
        errors(&text),
        [
            format!(
                "t.toml:12:13: headers of health of {of}: the check sets Host itself; remove it, and set the key host of the check"
            ),
            format!(
                "t.toml:12:25: headers of health of {of}: \"b c\" is no name of a header; use letters, digits and hyphens"
            ),
            format!(
                "t.toml:12:42: headers of health of {of}: X is a whole number, not a string; write it like X = \"text\""
            ),
            format!(
                "t.toml:12:49: headers of health of {of}: the value of Y cannot be sent; write at most 1024 bytes of one line"
            ),
            format!(
                "t.toml:12:57: headers of health of {of}: the check sets Upgrade itself; remove it"
            ),
            format!(
                "t.toml:13:20: json of health of {of}: pointer \"status\" is no JSON pointer (RFC 6901); write it like pointer = \"/status\", with ~1 for a / in a name and ~0 for a ~"
            ),
            format!(
                "t.toml:13:39: json of health of {of}: equals is an array, which nothing is compared with; give a string, a number, true or false"
            ),
            format!(
                "t.toml:13:43: json of health of {of}: unknown key \"extra\"; remove it; known here are pointer, equals"
            ),
            format!(
                "t.toml:15:6: tls of health of {of}: ca says what to verify, and verify = false that nothing is; remove one of them"
            ),
            format!(
                "t.toml:16:8: tls of health of {of}: name is \"a b\"; give the name that the certificate is for, like name = \"chat.example\""
            ),
            format!(
                "t.toml:18:1: tls of health of {of}: unknown key \"x\"; remove it; known here are ca, name, verify"
            ),
        ]
    );
    let text = format!("{SMALL}[service.health]\ntype = \"http\"\njson = {{}}\n");
    assert_eq!(
        errors(&text),
        [
            format!(
                "t.toml:12:8: json of health of {of}: pointer is missing; add pointer = \"/status\""
            ),
            format!("t.toml:12:8: json of health of {of}: equals is missing; add equals = \"ok\""),
        ]
    );
}

#[test]
fn a_file_of_authorities_must_be_one() {
    let broken = certificate().replace("MII", "AAA");
    let (empty, broken) = (
        File::of("empty.pem", "no certificate"),
        File::of("broken.pem", &broken),
    );
    let cut = File::of("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    for (path, wrong) in [
        ("ca.pem".to_owned(), "is no absolute path"),
        (
            "/nowhere/ca.pem".to_owned(),
            "cannot be read: No such file or directory (os error 2)",
        ),
        ("/tmp".to_owned(), "cannot be read: it is no regular file"),
        (empty.path().to_string(), "contains no certificate"),
        (
            broken.path().to_string(),
            "contains a certificate that cannot be used, number 1: ",
        ),
        (cut.path().to_string(), "is no PEM: "),
    ] {
        let text =
            format!("{SMALL}[service.health]\ntype = \"https\"\ntls = {{ ca = \"{path}\" }}\n");
        let errors = errors(&text);
        assert_eq!(errors.len(), 1, "{errors:#?}");
        let before = format!("t.toml:12:14: tls of health of service \"chat\": ca {path} {wrong}");
        let remedy = "; name a readable file of certificates in PEM, with BEGIN CERTIFICATE";
        assert!(errors[0].starts_with(&before), "{}", errors[0]);
        assert!(errors[0].ends_with(remedy), "{}", errors[0]);
    }
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
