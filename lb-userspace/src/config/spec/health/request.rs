//! What a check asks for, and what it expects.

use std::ops::RangeInclusive;

use hyper::{
    Method,
    header::{HeaderMap, HeaderName, HeaderValue},
    http::uri::{Authority, PathAndQuery},
};
use serde_json::Value;
use toml::{Spanned, de::DeValue};

use super::super::super::{
    problem::Findings,
    read::{Reader, as_integer, kind},
};
use crate::model::JsonEquals;

/// Headers that a check itself sets, or that would make the request another than is asked for.
const OWN_HEADERS: [&str; 15] = [
    "connection",
    "content-length",
    "content-type",
    "expect",
    "grpc-timeout",
    "host",
    "keep-alive",
    "proxy-connection",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-version",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
const MOST_HEADERS: usize = 32;
/// The longest text that is looked for, and the longest header, in bytes.
const TEXT_BYTES: usize = 1_024;

/// A host as it was written, and as a header.
pub(super) type Host<'t> = Spanned<(&'t str, HeaderValue)>;

pub(super) fn path(reader: &mut Reader<'_>, findings: &mut Findings<'_>) -> PathAndQuery {
    let root = PathAndQuery::from_static("/");
    let Some(text) = reader.string("path", "\"/health\"", findings) else {
        return root;
    };
    let path = *text.get_ref();
    match path.parse::<PathAndQuery>() {
        // A fragment would be left out without a word.
        Ok(parsed) if path.starts_with('/') && path.is_ascii() && parsed.as_str() == path => parsed,
        _ => {
            findings.error(
                &text.span(),
                &reader.object,
                format!("path is {path:?}"),
                "begin it with / and encode blanks (%20)",
            );
            root
        }
    }
}

pub(super) fn host<'t>(reader: &mut Reader<'t>, findings: &mut Findings<'_>) -> Option<Host<'t>> {
    let text = reader.string("host", "\"chat.example\"", findings)?;
    let host = *text.get_ref();
    let is_authority = host.parse::<Authority>().is_ok() && !host.contains('@');
    match HeaderValue::from_str(host) {
        Ok(value) if is_authority => Some(Spanned::new(text.span(), (host, value))),
        _ => {
            findings.error(
                &text.span(),
                &reader.object,
                format!("host is {host:?}"),
                "give a host name, or remove the key to use the backend's address",
            );
            None
        }
    }
}

pub(super) fn headers(reader: &mut Reader<'_>, findings: &mut Findings<'_>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let object = format!("headers of {}", reader.object);
    let Some(table) = reader.table("headers", object, findings) else {
        return headers;
    };
    for (key, value) in table.entries() {
        let name = key.get_ref().as_ref();
        let Ok(parsed) = name.parse::<HeaderName>() else {
            findings.error(
                &key.span(),
                &table.object,
                format!("{name:?} is no name of a header"),
                "use letters, digits and hyphens",
            );
            continue;
        };
        if OWN_HEADERS.contains(&parsed.as_str()) {
            findings.error(
                &key.span(),
                &table.object,
                format!("the check sets {name} itself"),
                if parsed == "host" {
                    "remove it, and set the key host of the check"
                } else {
                    "remove it"
                },
            );
            continue;
        }
        let DeValue::String(text) = value.get_ref() else {
            findings.error(
                &value.span(),
                &table.object,
                format!("{name} is {}, not a string", kind(value.get_ref())),
                format!("write it like {name} = \"text\""),
            );
            continue;
        };
        match HeaderValue::from_str(text) {
            Ok(mut value) if text.len() <= TEXT_BYTES => {
                // It may be a password.
                value.set_sensitive(true);
                headers.append(parsed, value);
            }
            _ => findings.error(
                &value.span(),
                &table.object,
                format!("the value of {name} cannot be sent"),
                format!("write at most {TEXT_BYTES} bytes of one line"),
            ),
        }
    }
    if headers.len() > MOST_HEADERS {
        findings.error(
            &table.span,
            &table.object,
            format!("there are {}", headers.len()),
            format!("keep at most {MOST_HEADERS}"),
        );
    }
    headers
}

pub(super) fn method(reader: &mut Reader<'_>, findings: &mut Findings<'_>) -> Method {
    let Some(text) = reader.string("method", "\"GET\"", findings) else {
        return Method::GET;
    };
    match *text.get_ref() {
        "GET" => Method::GET,
        "HEAD" => Method::HEAD,
        "OPTIONS" => Method::OPTIONS,
        "POST" => Method::POST,
        other => {
            findings.error(
                &text.span(),
                &reader.object,
                format!("unknown method {other:?}"),
                "use \"GET\", \"HEAD\", \"OPTIONS\" or \"POST\"",
            );
            Method::GET
        }
    }
}

/// The status codes that are a yes: numbers, or ranges like "200-299".
pub(super) fn status(
    reader: &mut Reader<'_>,
    findings: &mut Findings<'_>,
) -> Vec<RangeInclusive<u16>> {
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

pub(super) fn body_contains(
    reader: &mut Reader<'_>,
    findings: &mut Findings<'_>,
) -> Option<String> {
    let text = reader.string("body_contains", "\"ok\"", findings)?;
    let wrong = match text.get_ref().len() {
        0 => "is empty, which every body contains",
        length if length > TEXT_BYTES => "is longer than 1024 bytes",
        _ => return Some((*text.get_ref()).to_owned()),
    };
    findings.error(
        &text.span(),
        &reader.object,
        format!("body_contains {wrong}"),
        "give a few words that only a healthy answer has, or remove the key",
    );
    None
}

pub(super) fn json(reader: &mut Reader<'_>, findings: &mut Findings<'_>) -> Option<JsonEquals> {
    const EXAMPLE: &str = "\"/status\"";
    let object = format!("json of {}", reader.object);
    let mut table = reader.table("json", object, findings)?;
    let pointer = table.required_string("pointer", EXAMPLE, findings);
    if let Some(pointer) = &pointer
        && !is_pointer(pointer.get_ref())
    {
        findings.error(
            &pointer.span(),
            &table.object,
            format!(
                "pointer {:?} is no JSON pointer (RFC 6901)",
                pointer.get_ref()
            ),
            format!("write it like pointer = {EXAMPLE}, with ~1 for a / in a name and ~0 for a ~"),
        );
    }
    let equals = match table.value("equals") {
        None => {
            table.missing("equals", "\"ok\"", findings);
            None
        }
        Some(value) => {
            let scalar = scalar(value.get_ref());
            if scalar.is_none() {
                findings.error(
                    &value.span(),
                    &table.object,
                    format!(
                        "equals is {}, which nothing is compared with",
                        kind(value.get_ref())
                    ),
                    "give a string, a number, true or false",
                );
            }
            scalar
        }
    };
    table.finish(findings);
    Some(JsonEquals {
        pointer: (*pointer?.get_ref()).to_owned(),
        equals: equals?,
    })
}

/// RFC 6901, section 3.
fn is_pointer(text: &str) -> bool {
    let escapes_are_whole = text
        .match_indices('~')
        .all(|(at, _)| text[at + 1..].starts_with(['0', '1']));
    (text.is_empty() || text.starts_with('/')) && escapes_are_whole
}

fn scalar(value: &DeValue<'_>) -> Option<Value> {
    match value {
        DeValue::String(text) => Some(Value::from(text.as_ref())),
        DeValue::Boolean(flag) => Some(Value::from(*flag)),
        DeValue::Integer(_) => as_integer(value).map(Value::from),
        DeValue::Float(float) => {
            let number: f64 = float.as_str().parse().ok()?;
            // Neither an infinity nor "not a number" is in JSON.
            serde_json::Number::from_f64(number).map(Value::Number)
        }
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}
