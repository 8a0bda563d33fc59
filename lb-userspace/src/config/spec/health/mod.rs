//! How the backends of a service are checked.

mod request;
mod tls;

use std::{sync::Arc, time::Duration};

use lb_common::backend::Mode;
use toml::Spanned;

use super::{
    super::{
        problem::Findings,
        read::{Reader, nearest},
        rules,
    },
    MOST_CHECKS,
    service::port,
};
use crate::model::{
    Check, CheckKind, GrpcCheck, HttpCheck, Initial, Passage, RequestTarget, WebSocketCheck,
};

/// How backends of a service are checked.
pub(super) struct Health {
    /// Where, if not at the backend's port.
    pub(super) port: Option<u16>,
    pub(super) check: Check,
}

/// The types of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Tcp,
    Http,
    Https,
    WebSocket,
    Grpc,
}

impl Type {
    const ALL: [Self; 5] = [
        Self::Tcp,
        Self::Http,
        Self::Https,
        Self::WebSocket,
        Self::Grpc,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Https => "https",
            Self::WebSocket => "websocket",
            Self::Grpc => "grpc",
        }
    }
}

const OF_HTTP: &[Type] = &[Type::Http, Type::Https];
/// The keys that not all types have, and who has them.
const OWNERS: [(&str, &[Type]); 10] = [
    ("path", &[Type::Http, Type::Https, Type::WebSocket]),
    (
        "host",
        &[Type::Http, Type::Https, Type::WebSocket, Type::Grpc],
    ),
    (
        "headers",
        &[Type::Http, Type::Https, Type::WebSocket, Type::Grpc],
    ),
    ("tls", &[Type::Https, Type::WebSocket, Type::Grpc]),
    ("method", OF_HTTP),
    ("status", OF_HTTP),
    ("body_contains", OF_HTTP),
    ("json", OF_HTTP),
    ("ping", &[Type::WebSocket]),
    ("service", &[Type::Grpc]),
];
/// The longest name of a gRPC service, in bytes.
const GRPC_SERVICE_BYTES: usize = 255;
/// More is no variation any more.
const MOST_JITTER_PERCENT: u32 = 50;

/// Reads a service's `health` table, if it has one.
pub(super) fn read(
    parent: &mut Reader<'_>,
    mode: Option<Mode>,
    object: &str,
    findings: &mut Findings<'_>,
) -> Health {
    let Some(mut reader) = parent.table("health", format!("health of {object}"), findings) else {
        return Health {
            port: None,
            check: Check::DEFAULT,
        };
    };
    let kind = kind(&mut reader, findings);
    let port = port(&mut reader, "port", findings);
    let through_vip = through_vip(&mut reader, mode, &port, findings);
    let health = Health {
        port: port.map(Spanned::into_inner),
        check: Check {
            through_vip,
            ..pace(&mut reader, kind, findings)
        },
    };
    reader.finish(findings);
    health
}

/// Whether checks take the way of clients' packets.
fn through_vip(
    reader: &mut Reader<'_>,
    mode: Option<Mode>,
    port: &Option<Spanned<u16>>,
    findings: &mut Findings<'_>,
) -> bool {
    let Some(text) = reader.string("through", "\"vip\"", findings) else {
        return false;
    };
    match *text.get_ref() {
        "address" => return false,
        "vip" => {}
        other => {
            findings.error(
                &text.span(),
                &reader.object,
                format!("through is {other:?}"),
                "use \"address\" (checks go to the backend's address) or \"vip\" (to the VIP, as clients' packets do)",
            );
            return false;
        }
    }
    if let Some(mode) = mode
        && Passage::of(mode).is_none()
    {
        findings.error(
            &text.span(),
            &reader.object,
            format!(
                "through = \"vip\" asks for the VIP at the backend, which never sees it in mode {}",
                rules::word(mode)
            ),
            "remove through: a check of the backend's address is what it is for; or set mode = \"ipip\" or \"l2\"",
        );
    }
    if let Some(port) = port {
        findings.error(
            &port.span(),
            &reader.object,
            "port is for checks of the backend's address, and through = \"vip\" has the VIP checked at the service's port",
            "remove one of them",
        );
    }
    true
}

/// What is asked.
fn kind(reader: &mut Reader<'_>, findings: &mut Findings<'_>) -> CheckKind {
    let text = reader.string("type", "\"tcp\"", findings);
    let known = |word: &str| Type::ALL.into_iter().find(|one| one.word() == word);
    let chosen = match &text {
        None => Some(Type::Tcp),
        Some(text) => known(text.get_ref()),
    };
    let Some(chosen) = chosen else {
        unknown_type(reader, &text, findings);
        // Whether the keys of the types are right depends on which is meant.
        for (key, _) in OWNERS {
            reader.value(key);
        }
        return CheckKind::Tcp;
    };
    for (key, owners) in OWNERS {
        if !owners.contains(&chosen)
            && let Some(value) = reader.value(key)
        {
            let owners: Vec<_> = owners
                .iter()
                .map(|one| format!("{:?}", one.word()))
                .collect();
            findings.error(
                &value.span(),
                &reader.object,
                format!("{key} belongs to checks of type {}", owners.join(" or ")),
                format!("set type = {}, or remove {key}", owners[0]),
            );
        }
    }
    match chosen {
        Type::Tcp => CheckKind::Tcp,
        Type::Http | Type::Https => {
            let target = target(reader, chosen, findings);
            CheckKind::Http(Arc::new(http(reader, target, findings)))
        }
        Type::WebSocket => CheckKind::WebSocket(Arc::new(WebSocketCheck {
            target: target(reader, chosen, findings),
            path: request::path(reader, findings),
            ping: reader
                .boolean("ping", "true", findings)
                .is_some_and(Spanned::into_inner),
        })),
        Type::Grpc => CheckKind::Grpc(Arc::new(GrpcCheck {
            target: target(reader, chosen, findings),
            service: grpc_service(reader, findings),
        })),
    }
}

fn unknown_type(reader: &Reader<'_>, text: &Option<Spanned<&str>>, findings: &mut Findings<'_>) {
    let Some(text) = text else { return };
    let words = Type::ALL.map(Type::word);
    findings.error(
        &text.span(),
        &reader.object,
        format!("unknown type {:?}", text.get_ref()),
        match nearest(text.get_ref(), &words) {
            Some(meant) => format!("did you mean {meant:?}?"),
            None => "use \"tcp\", \"http\", \"https\", \"websocket\" or \"grpc\"".to_owned(),
        },
    );
}

fn target(reader: &mut Reader<'_>, kind: Type, findings: &mut Findings<'_>) -> RequestTarget {
    let host = request::host(reader, findings);
    let headers = request::headers(reader, findings);
    let tls = match kind {
        Type::Tcp | Type::Http => None,
        Type::Https => Some(tls::read(reader, &host, findings).unwrap_or_else(|| tls::of(&host))),
        Type::WebSocket | Type::Grpc => tls::read(reader, &host, findings),
    };
    if tls.as_ref().is_some_and(|tls| tls.name.is_none())
        && let Some(host) = &host
    {
        tls::no_name(reader, host, findings);
    }
    RequestTarget {
        host: host.map(|host| host.into_inner().1),
        headers,
        tls,
    }
}

fn http(reader: &mut Reader<'_>, target: RequestTarget, findings: &mut Findings<'_>) -> HttpCheck {
    let path = request::path(reader, findings);
    let method = request::method(reader, findings);
    let status = request::status(reader, findings);
    let body_contains = request::body_contains(reader, findings);
    let json = request::json(reader, findings);
    if method == hyper::Method::HEAD {
        for key in ["body_contains", "json"] {
            if let Some(value) = reader.value(key) {
                findings.error(
                    &value.span(),
                    &reader.object,
                    format!("{key} asks for a body, and a response to HEAD has none"),
                    format!("set method = \"GET\", or remove {key}"),
                );
            }
        }
    }
    HttpCheck {
        target,
        method,
        path,
        status,
        body_contains,
        json,
    }
}

fn grpc_service(reader: &mut Reader<'_>, findings: &mut Findings<'_>) -> String {
    let Some(text) = reader.string("service", "\"chat.v1.Chat\"", findings) else {
        return String::new();
    };
    let service = *text.get_ref();
    if service.len() > GRPC_SERVICE_BYTES || service.chars().any(char::is_control) {
        findings.error(
            &text.span(),
            &reader.object,
            "service is no name of a gRPC service",
            format!("give its name, of at most {GRPC_SERVICE_BYTES} bytes, or remove the key to ask for the server as a whole"),
        );
    }
    service.to_owned()
}

/// When is asked, and what is made of the answers.
fn pace(reader: &mut Reader<'_>, kind: CheckKind, findings: &mut Findings<'_>) -> Check {
    let default = Check::DEFAULT;
    let hour = Duration::from_secs(3_600);
    let bounds = || Duration::from_millis(10)..=hour;
    let interval = reader.duration("interval", bounds(), findings);
    let interval = interval.map_or(default.interval, Spanned::into_inner);
    let timeout = reader.duration("timeout", bounds(), findings);
    if let Some(timeout) = &timeout
        && *timeout.get_ref() > interval
    {
        findings.error(
            &timeout.span(),
            &reader.object,
            "timeout is longer than interval, so checks would overlap",
            "lower timeout or raise interval",
        );
    }
    let doubt_interval = reader.duration("doubt_interval", bounds(), findings);
    if let Some(doubt_interval) = &doubt_interval
        && *doubt_interval.get_ref() > interval
    {
        findings.warning(
            &doubt_interval.span(),
            &reader.object,
            "doubt_interval is longer than interval, so it has no effect",
            "lower it, or remove it",
        );
    }
    let startup_grace = reader.duration("startup_grace", Duration::ZERO..=hour, findings);
    let mut number = |key, bounds, default| {
        reader
            .integer(key, bounds, findings)
            .map_or(default, Spanned::into_inner)
    };
    let jitter = number(
        "jitter",
        0..=MOST_JITTER_PERCENT,
        default.jitter_percent.into(),
    );
    Check {
        kind,
        through_vip: false,
        interval,
        doubt_interval: doubt_interval.map_or(default.doubt_interval, Spanned::into_inner),
        jitter_percent: jitter as u8,
        timeout: timeout.map_or(default.timeout.min(interval), Spanned::into_inner),
        fall: number("fall", 1..=100, default.fall),
        rise: number("rise", 1..=100, default.rise),
        startup_grace: startup_grace.map_or(default.startup_grace, Spanned::into_inner),
        at_once: number("at_once", 1..=MOST_CHECKS, default.at_once as u32) as usize,
        initial: initial(reader, findings),
    }
}

fn initial(reader: &mut Reader<'_>, findings: &mut Findings<'_>) -> Initial {
    let Some(text) = reader.string("initial", "\"unknown\"", findings) else {
        return Initial::Unknown;
    };
    match *text.get_ref() {
        "unknown" => Initial::Unknown,
        "up" => Initial::Up,
        other => {
            findings.error(
                &text.span(),
                &reader.object,
                format!("initial is {other:?}"),
                "use \"unknown\" (no new flows before the first verdict) or \"up\"",
            );
            Initial::Unknown
        }
    }
}
