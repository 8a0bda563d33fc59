//! How the backends of a service are checked.

use std::{net::IpAddr, ops::RangeInclusive, time::Duration};

use toml::{Spanned, de::DeValue};

use super::{
    super::{
        problem::Findings,
        read::{Reader, as_integer, kind},
    },
    service::port,
};
use crate::model::{Check, CheckKind};

/// How backends of a service are checked, but for what each decides itself.
pub(super) struct Health {
    pub(super) port: Option<u16>,
    http: Option<Http>,
    interval: Duration,
    timeout: Duration,
    fall: u32,
    rise: u32,
}

struct Http {
    path: String,
    host: Option<String>,
    status: Vec<RangeInclusive<u16>>,
}

impl Health {
    const INTERVAL: Duration = Duration::from_secs(2);
    const TIMEOUT: Duration = Duration::from_secs(1);
    const FALL: u32 = 3;
    const RISE: u32 = 2;

    /// The check of the backend at an address.
    pub(super) fn check(&self, address: IpAddr) -> Check {
        let kind = match &self.http {
            None => CheckKind::Tcp,
            Some(http) => CheckKind::Http {
                path: http.path.clone(),
                host: http.host.clone().unwrap_or_else(|| match address {
                    IpAddr::V4(address) => address.to_string(),
                    // RFC 3986, section 3.2.2.
                    IpAddr::V6(address) => format!("[{address}]"),
                }),
                status: http.status.clone(),
            },
        };
        Check {
            kind,
            interval: self.interval,
            timeout: self.timeout,
            fall: self.fall,
            rise: self.rise,
        }
    }
}

/// Reads a service's `health` table, if it has one.
pub(super) fn read(parent: &mut Reader<'_>, object: &str, findings: &mut Findings<'_>) -> Health {
    let mut health = Health {
        port: None,
        http: None,
        interval: Health::INTERVAL,
        timeout: Health::TIMEOUT,
        fall: Health::FALL,
        rise: Health::RISE,
    };
    let Some(mut reader) = parent.table("health", format!("health of {object}"), findings) else {
        return health;
    };
    let kind = reader.string("type", "\"tcp\"", findings);
    let is_http = match kind.as_ref().map(|kind| *kind.get_ref()) {
        None | Some("tcp") => false,
        Some("http") => true,
        Some(other) => {
            let span = kind.as_ref().map_or(reader.span.clone(), Spanned::span);
            findings.error(
                &span,
                &reader.object,
                format!("unknown type {other:?}"),
                "use \"tcp\" or \"http\"",
            );
            // So that the keys of either type are not reported as well.
            true
        }
    };
    health.port = port(&mut reader, "port", findings).map(Spanned::into_inner);
    let http = http(&mut reader, is_http, findings);
    health.http = is_http.then_some(http);
    let bounds = Duration::from_millis(10)..=Duration::from_secs(3_600);
    let interval = reader.duration("interval", bounds.clone(), findings);
    health.interval = interval.map_or(Health::INTERVAL, Spanned::into_inner);
    let timeout = reader.duration("timeout", bounds, findings);
    if let Some(timeout) = &timeout
        && *timeout.get_ref() > health.interval
    {
        findings.error(
            &timeout.span(),
            &reader.object,
            "timeout is longer than interval, so checks would overlap",
            "lower timeout or raise interval",
        );
    }
    health.timeout = timeout.map_or(Health::TIMEOUT.min(health.interval), Spanned::into_inner);
    let mut count = |key, default| {
        reader
            .integer(key, 1..=100, findings)
            .map_or(default, Spanned::into_inner)
    };
    health.fall = count("fall", Health::FALL);
    health.rise = count("rise", Health::RISE);
    reader.finish(findings);
    health
}

fn http(reader: &mut Reader<'_>, is_http: bool, findings: &mut Findings<'_>) -> Http {
    if !is_http {
        for key in ["path", "host", "status"] {
            if let Some(value) = reader.value(key) {
                findings.error(
                    &value.span(),
                    &reader.object,
                    format!("{key} belongs to checks of type \"http\""),
                    format!("set type = \"http\", or remove {key}"),
                );
            }
        }
    }
    let printable = |text: &str| !text.contains(|c: char| c.is_whitespace() || c.is_control());
    let path = reader.string("path", "\"/health\"", findings);
    if let Some(path) = &path
        && !(path.get_ref().starts_with('/') && printable(path.get_ref()))
    {
        findings.error(
            &path.span(),
            &reader.object,
            format!("path is {:?}", path.get_ref()),
            "begin it with / and encode blanks (%20)",
        );
    }
    let host = reader.string("host", "\"chat.example\"", findings);
    if let Some(host) = &host
        && (host.get_ref().is_empty() || !printable(host.get_ref()))
    {
        findings.error(
            &host.span(),
            &reader.object,
            format!("host is {:?}", host.get_ref()),
            "give a host name, or remove the key to use the backend's address",
        );
    }
    Http {
        path: path.map_or_else(|| "/".to_owned(), |path| (*path.get_ref()).to_owned()),
        host: host.map(|host| (*host.get_ref()).to_owned()),
        status: status(reader, findings),
    }
}

/// The status codes that are a yes: numbers, or ranges like "200-299".
fn status(reader: &mut Reader<'_>, findings: &mut Findings<'_>) -> Vec<RangeInclusive<u16>> {
    const REMEDY: &str = "list codes from 100 to 599, or ranges like \"200-299\"";
    let Some((span, elements)) = reader.array("status", "[200]", findings) else {
        return vec![200..=399];
    };
    if elements.is_empty() {
        findings.error(
            &span,
            &reader.object,
            "status is empty, so no answer would be a yes",
            REMEDY,
        );
    }
    let valid = |code: &u16| (100..=599).contains(code);
    let mut ranges = Vec::new();
    for element in elements {
        let range = match element.get_ref() {
            DeValue::String(text) => text
                .split_once('-')
                .and_then(|(from, to)| Some(from.parse().ok()?..=to.parse().ok()?)),
            other => as_integer(other)
                .and_then(|code| u16::try_from(code).ok())
                .map(|code| code..=code),
        };
        match range {
            Some(range) if valid(range.start()) && valid(range.end()) && !range.is_empty() => {
                ranges.push(range);
            }
            _ => findings.error(
                &element.span(),
                &reader.object,
                match element.get_ref() {
                    DeValue::String(text) => format!("status {:?} is no range", text.as_ref()),
                    DeValue::Integer(code) => format!("status {code} does not exist"),
                    other => format!("status contains {}", kind(other)),
                },
                REMEDY,
            ),
        }
    }
    ranges
}
