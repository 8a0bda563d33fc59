//! Backends from names in the DNS.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::Duration,
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    super::{
        DnsSource,
        problem::Findings,
        read::{Reader, kind, nearest},
        rules,
    },
    service::port,
};
use crate::dns::{Bounds, Kind, Question, Servers};

/// The longest name of a source, in bytes: with an IPv6 address and a port behind it, it is still a backend's.
const NAME_BYTES: usize = 16;
/// The longest name in the DNS, in characters, without its final dot.
const QUERY_CHARACTERS: usize = 253;
const SERVERS_EXAMPLE: &str = "[\"10.0.0.53\"]";
/// Where servers listen.
const PORT: u16 = 53;
const BOUNDS: Bounds = Bounds {
    min: Duration::from_secs(5),
    max: Duration::from_secs(300),
};

/// Reads the table `dns`, if it is there.
pub(super) fn servers(root: &mut Reader<'_>, findings: &mut Findings<'_>) -> Servers {
    let mut reader = root.table("dns", "dns".to_owned(), findings)?;
    let elements = reader.array("servers", SERVERS_EXAMPLE, findings);
    let servers = elements.map(|(span, elements)| {
        if elements.is_empty() {
            findings.error(
                &span,
                &reader.object,
                "servers is empty, so nobody could be asked",
                "name at least one, or remove the key to ask those of /etc/resolv.conf",
            );
        }
        elements
            .into_iter()
            .filter_map(|element| server(element, &reader, findings))
            .collect()
    });
    reader.finish(findings);
    servers
}

fn server(
    element: &Spanned<DeValue<'_>>,
    reader: &Reader<'_>,
    findings: &mut Findings<'_>,
) -> Option<SocketAddr> {
    let wrong = match element.get_ref() {
        DeValue::String(text) => {
            let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
            match address.or_else(|_| text.parse::<SocketAddr>()) {
                Ok(address) => return Some(address),
                Err(_) => format!("servers contains {text:?}, which is no address"),
            }
        }
        other => format!("servers contains {}", kind(other)),
    };
    findings.error(
        &element.span(),
        &reader.object,
        wrong,
        "write addresses, like servers = [\"10.0.0.53\", \"[2001:db8::53]:5353\"]",
    );
    None
}

/// Reads the `number`-th source of a service.
pub(super) fn source(
    number: usize,
    table: &DeTable<'_>,
    span: Range<usize>,
    service: &str,
    findings: &mut Findings<'_>,
) -> (DnsSource, Option<Range<usize>>, String) {
    let object = match table.get("name").map(Spanned::get_ref) {
        Some(DeValue::String(name)) if !name.is_empty() => {
            format!("dns source \"{}\" of {service}", name.as_ref())
        }
        _ => format!("dns source number {number} of {service}"),
    };
    let mut reader = Reader::new(table, span, object.clone());
    let name = name(&mut reader, findings);
    let query = query(&mut reader, findings);
    let kind = record(&mut reader, findings);
    let port = port(&mut reader, "port", findings).map(Spanned::into_inner);
    let weight = reader.integer("weight", 0..=u32::from(rules::MAX_WEIGHT), findings);
    let bounds = Duration::from_secs(1)..=Duration::from_secs(86_400);
    let min = reader.duration("min_ttl", bounds.clone(), findings);
    let max = reader.duration("max_ttl", bounds, findings);
    let at_least = min.as_ref().map_or(BOUNDS.min, |min| *min.get_ref());
    if let Some(max) = &max
        && *max.get_ref() < at_least
    {
        findings.error(
            &max.span(),
            &reader.object,
            "max_ttl is less than min_ttl",
            "raise max_ttl or lower min_ttl",
        );
    }
    reader.finish(findings);
    let source = DnsSource {
        name: name.as_ref().map_or("", |name| *name.get_ref()).to_owned(),
        question: Question { name: query, kind },
        bounds: Bounds {
            min: at_least,
            max: max.map_or(BOUNDS.max.max(at_least), Spanned::into_inner),
        },
        port,
        weight: weight.map_or(rules::WEIGHT, |weight| weight.into_inner() as u16),
    };
    (source, name.map(|name| name.span()), object)
}

fn name<'t>(reader: &mut Reader<'t>, findings: &mut Findings<'_>) -> Option<Spanned<&'t str>> {
    let name = reader.required_string("name", "\"pods\"", findings)?;
    let text = *name.get_ref();
    let wrong = rules::name(text).map(|(wrong, _)| wrong).or_else(|| {
        (text.len() > NAME_BYTES).then(|| format!("{text:?} is too long for a name of a source"))
    });
    if let Some(wrong) = wrong {
        findings.error(
            &name.span(),
            &reader.object,
            wrong,
            format!("use 1 to {NAME_BYTES} letters, digits, dots, colons, hyphens or underscores: addresses follow it in names of backends"),
        );
        return None;
    }
    Some(name)
}

fn query(reader: &mut Reader<'_>, findings: &mut Findings<'_>) -> String {
    const EXAMPLE: &str = "\"chat.example.\"";
    let Some(text) = reader.required_string("query", EXAMPLE, findings) else {
        return String::new();
    };
    let query = *text.get_ref();
    let whole = query.strip_suffix('.').unwrap_or(query);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    let is_address = query.parse::<IpAddr>().is_ok();
    if whole.len() > QUERY_CHARACTERS || !whole.split('.').all(label) || is_address {
        findings.error(
            &text.span(),
            &reader.object,
            format!("query is {query:?}, which is no name in the DNS"),
            format!("write it like query = {EXAMPLE}; give an address as a [[service.backend]]"),
        );
    }
    query.to_ascii_lowercase()
}

fn record(reader: &mut Reader<'_>, findings: &mut Findings<'_>) -> Kind {
    const WORDS: [&str; 4] = ["address", "a", "aaaa", "srv"];
    let Some(text) = reader.string("type", "\"address\"", findings) else {
        return Kind::Address;
    };
    match *text.get_ref() {
        "address" => Kind::Address,
        "a" => Kind::A,
        "aaaa" => Kind::Aaaa,
        "srv" => Kind::Srv,
        other => {
            findings.error(
                &text.span(),
                &reader.object,
                format!("unknown type {other:?}"),
                match nearest(other, &WORDS) {
                    Some(meant) => format!("did you mean {meant:?}?"),
                    None => "use \"address\" (A and AAAA), \"a\", \"aaaa\" or \"srv\"".to_owned(),
                },
            );
            Kind::Address
        }
    }
}

/// Notes names that two sources of a service have.
pub(super) fn unique(
    sources: &[(DnsSource, Option<Range<usize>>, String)],
    findings: &mut Findings<'_>,
) {
    let mut names = HashSet::new();
    for (source, span, object) in sources {
        if let Some(span) = span
            && !names.insert(source.name.as_str())
        {
            findings.error(
                span,
                object,
                "this name is taken by a source of the service above",
                "give each source of a service a name of its own",
            );
        }
    }
}
