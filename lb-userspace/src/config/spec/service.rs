//! Services and their backends.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    time::Duration,
};

use lb_common::{backend::Mode, net::IpVersion};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    super::{
        Backend, CLOSE_OVER, CLOSE_OVERS, DRAIN_DEADLINES, DnsSource, RESET_OVERS, Service,
        problem::Findings,
        read::{Reader, nearest},
        rules::{self, SLOTS_PER_BACKEND},
    },
    LARGEST_TABLE, affinity,
    balance::{self, Site},
    dns, guard,
    health::{self, Health},
    nat::{self, Snat},
};
use crate::{
    balance::Part,
    maglev,
    model::{Admin, OnDown},
};

/// Slots of a table if the service does not say.
const TABLE_SIZE: u32 = 65_537;
/// Fewer slots than this for each backend deserve a warning.
const ADVISED_SLOTS_PER_BACKEND: u64 = 100;
/// In place of an address that is wrong.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// A service with the places of what is compared across services.
pub(super) struct PlacedService {
    pub(super) service: Service,
    pub(super) object: String,
    /// None if the name is wrong in itself.
    pub(super) name_span: Option<Range<usize>>,
    /// None if VIP or port are wrong in themselves.
    pub(super) endpoint_span: Option<Range<usize>>,
    pub(super) snat: Vec<Snat>,
    /// The places of its backends' addresses, in the order of the backends; none where one is wrong in itself.
    pub(super) backends: Vec<(String, Option<Range<usize>>)>,
}

/// Reads the `number`-th service.
pub(super) fn read(
    number: usize,
    table: &DeTable<'_>,
    span: Range<usize>,
    site: &Site<'_>,
    findings: &mut Findings<'_>,
) -> PlacedService {
    let object = match table.get("name").map(Spanned::get_ref) {
        Some(DeValue::String(name)) if !name.is_empty() => format!("service {:?}", name.as_ref()),
        _ => format!("service number {number}"),
    };
    let mut reader = Reader::new(table, span, object.clone());
    let name = name(&mut reader, "\"chat\"", findings);
    let vip = address(&mut reader, "vip", findings);
    let port = port(&mut reader, "port", findings);
    if table.get("port").is_none() {
        reader.missing("port", "80", findings);
    }
    let mode = mode(&mut reader, findings);
    let snat = nat::snat(
        &mut reader,
        mode,
        vip.as_ref().map(|vip| *vip.get_ref()),
        findings,
    );
    let table_size = reader.integer("table_size", 1..=LARGEST_TABLE, findings);
    let min_healthy = reader.integer("min_healthy", 0..=1 << 18, findings);
    let drain_deadline = reader.duration("drain_deadline", DRAIN_DEADLINES, findings);
    let close_over = reader.duration("close_over", CLOSE_OVERS, findings);
    let reset_over = reader.duration("reset_over", RESET_OVERS, findings);
    let on_down = on_down(&mut reader, mode, findings);
    if let (Some(over), OnDown::Keep | OnDown::Rehash) = (&reset_over, on_down) {
        findings.warning(
            &over.span(),
            &object,
            "reset_over says how fast clients of a dead backend are told, and on_down has nobody told",
            "take one of them out",
        );
    }
    if let (Some(over), None) = (&close_over, &drain_deadline) {
        findings.warning(
            &over.span(),
            &object,
            "close_over says how fast flows are closed at a drain's deadline, and there is none but with `tether drain --deadline`",
            "set drain_deadline too, or leave it to the command",
        );
    }
    let affinity = affinity::read(&mut reader, site, findings);
    let policy = balance::read(&mut reader, site, findings);
    let version = vip.as_ref().map(|vip| IpVersion::of(*vip.get_ref()));
    let guarded = guard::read(&mut reader, version, findings);
    let health = health::read(&mut reader, mode, &object, findings);
    let parent = Parent {
        name: name.as_ref().map(|name| *name.get_ref()),
        vip: vip.as_ref().map(|vip| *vip.get_ref()),
        port: port.as_ref().map(|port| *port.get_ref()),
        mode,
        health: &health,
        site,
    };
    let backends: Vec<PlacedBackend> = reader
        .tables("backend", findings)
        .into_iter()
        .enumerate()
        .map(|(n, (span, table))| backend(n + 1, table, span, &parent, findings))
        .collect();
    unique_backends(&backends, findings);
    let sources: Vec<_> = reader
        .tables("dns", findings)
        .into_iter()
        .enumerate()
        .map(|(n, (span, table))| dns::source(n + 1, table, span, &object, findings))
        .collect();
    dns::unique(&sources, findings);
    check_source_ports(&sources, &parent, findings);
    let size_span = table_size
        .as_ref()
        .map_or(reader.span.clone(), Spanned::span);
    let size = maglev::next_prime(table_size.map_or(TABLE_SIZE, Spanned::into_inner));
    check_table_size(size, backends.len(), &size_span, &object, findings);
    if sources.is_empty() {
        check_min_healthy(&min_healthy, backends.len(), &object, findings);
    }
    let min_healthy = min_healthy.map_or(1, Spanned::into_inner);
    let parts: Vec<Part> = backends.iter().map(|placed| placed.backend.part).collect();
    let policy = policy.finish(min_healthy, &parts, !sources.is_empty(), &object, findings);
    if backends.is_empty() && sources.is_empty() {
        findings.warning(
            &reader.span,
            &object,
            "it has no backend, so every connection to it is refused or dropped",
            "add a [[service.backend]]",
        );
    }
    reader.finish(findings);
    let endpoint_span = match (&vip, &port) {
        (Some(vip), Some(_)) => Some(vip.span()),
        _ => None,
    };
    PlacedService {
        object,
        name_span: name.as_ref().map(Spanned::span),
        endpoint_span,
        backends: backends
            .iter()
            .map(|placed| (placed.object.clone(), placed.endpoint_span.clone()))
            .collect(),
        service: Service {
            name: name.map_or_else(String::new, |name| (*name.get_ref()).to_owned()),
            vip: vip.map_or(NOWHERE, Spanned::into_inner),
            port: port.map_or(0, Spanned::into_inner),
            mode: mode.unwrap_or(Mode::L2),
            snat: snat.iter().map(|snat| snat.address).collect(),
            table_size: size,
            min_healthy,
            affinity,
            policy,
            guard: guarded.guard,
            list_files: guarded.files,
            drain_deadline: drain_deadline.map(Spanned::into_inner),
            close_over: close_over.map_or(CLOSE_OVER, Spanned::into_inner),
            on_down,
            reset_over: reset_over.map_or(Duration::ZERO, Spanned::into_inner),
            backends: backends.into_iter().map(|placed| placed.backend).collect(),
            dns: sources.into_iter().map(|(source, ..)| source).collect(),
            check: health.check,
            check_port: health.port,
        },
        snat,
    }
}

fn on_down(reader: &mut Reader<'_>, mode: Option<Mode>, findings: &mut Findings<'_>) -> OnDown {
    const WORDS: [&str; 3] = ["reset", "keep", "rehash"];
    let Some(text) = reader.string("on_down", "\"reset\"", findings) else {
        return OnDown::Reset;
    };
    match *text.get_ref() {
        "reset" => OnDown::Reset,
        "keep" => OnDown::Keep,
        "rehash" => {
            if mode == Some(Mode::Nat) {
                findings.warning(
                    &text.span(),
                    &reader.object,
                    "on_down = \"rehash\" has another backend go on with a flow, and in mode nat nobody else knows its port, so that its client is reset",
                    "use on_down = \"reset\"",
                );
            }
            OnDown::Rehash
        }
        other => {
            findings.error(
                &text.span(),
                &reader.object,
                format!("unknown on_down {other:?}"),
                match nearest(other, &WORDS) {
                    Some(meant) => format!("did you mean {meant:?}?"),
                    None => "use \"reset\", \"keep\" or \"rehash\"".to_owned(),
                },
            );
            OnDown::Reset
        }
    }
}

/// Ports of sources are held to the same rule as ports of backends.
fn check_source_ports(
    sources: &[(DnsSource, Option<Range<usize>>, String)],
    parent: &Parent<'_>,
    findings: &mut Findings<'_>,
) {
    for (source, span, object) in sources {
        if let (Some(port), Some(expected), Some(mode)) = (source.port, parent.port, parent.mode)
            && let Some((wrong, remedy)) = rules::not_translated(port, expected, mode)
        {
            let place = span.clone().unwrap_or_default();
            findings.error(&place, object, wrong, remedy);
        }
    }
}

fn check_table_size(
    size: u32,
    backends: usize,
    span: &Range<usize>,
    object: &str,
    findings: &mut Findings<'_>,
) {
    let backends = backends as u64;
    let (needed, advised) = (
        backends * SLOTS_PER_BACKEND,
        backends * ADVISED_SLOTS_PER_BACKEND,
    );
    if u64::from(size) < needed {
        findings.error(
            span,
            object,
            format!(
                "table_size {size} is {} too few for {backends} backends, which need {SLOTS_PER_BACKEND} slots each",
                needed - u64::from(size)
            ),
            format!("set table_size = {advised}"),
        );
    } else if u64::from(size) < advised {
        findings.warning(
            span,
            object,
            format!("table_size {size} gives {backends} backends fewer than {ADVISED_SLOTS_PER_BACKEND} slots each, so their shares are coarse"),
            format!("set table_size = {advised}"),
        );
    }
}

fn check_min_healthy(
    min_healthy: &Option<Spanned<u32>>,
    backends: usize,
    object: &str,
    findings: &mut Findings<'_>,
) {
    if let Some(min) = min_healthy
        && u64::from(*min.get_ref()) > backends as u64
        && backends > 0
    {
        findings.warning(
            &min.span(),
            object,
            format!(
                "min_healthy is {}, but there are only {backends} backends, so it is always in fail-open",
                min.get_ref()
            ),
            "lower it",
        );
    }
}

/// A name of a service or backend.
fn name<'t>(
    reader: &mut Reader<'t>,
    example: &str,
    findings: &mut Findings<'_>,
) -> Option<Spanned<&'t str>> {
    let name = reader.required_string("name", example, findings)?;
    valid_name(name, reader, findings)
}

/// A name, if it is one.
pub(super) fn valid_name<'t>(
    name: Spanned<&'t str>,
    reader: &Reader<'_>,
    findings: &mut Findings<'_>,
) -> Option<Spanned<&'t str>> {
    if let Some((wrong, remedy)) = rules::name(name.get_ref()) {
        findings.error(&name.span(), &reader.object, wrong, remedy);
        return None;
    }
    Some(name)
}

/// An address that packets can be sent to.
fn address(
    reader: &mut Reader<'_>,
    key: &'static str,
    findings: &mut Findings<'_>,
) -> Option<Spanned<IpAddr>> {
    let text = reader.required_string(key, "\"10.0.0.1\"", findings)?;
    let span = text.span();
    let text = *text.get_ref();
    let Ok(address) = text.parse::<IpAddr>() else {
        findings.error(
            &span,
            &reader.object,
            format!("{key} is {text:?}, which is no IP address"),
            format!("write it like {key} = \"10.0.0.1\" or {key} = \"2001:db8::1\""),
        );
        return None;
    };
    if let Some((wrong, remedy)) = rules::unusable(address) {
        findings.error(
            &span,
            &reader.object,
            format!("{key} {text} {wrong}"),
            remedy,
        );
        return None;
    }
    Some(Spanned::new(span, address))
}

pub(super) fn port(
    reader: &mut Reader<'_>,
    key: &'static str,
    findings: &mut Findings<'_>,
) -> Option<Spanned<u16>> {
    let port = reader.integer(key, 1..=u32::from(u16::MAX), findings)?;
    u16::try_from(*port.get_ref())
        .ok()
        .map(|number| Spanned::new(port.span(), number))
}

fn mode(reader: &mut Reader<'_>, findings: &mut Findings<'_>) -> Option<Mode> {
    const WORDS: [&str; 4] = ["l2", "ipip", "nat", "dnat"];
    let text = reader.required_string("mode", "\"l2\"", findings)?;
    let mode = match *text.get_ref() {
        "l2" => Mode::L2,
        "ipip" => Mode::Ipip,
        "nat" => Mode::Nat,
        "dnat" => Mode::Dnat,
        mode => {
            let remedy = match nearest(mode, &WORDS) {
                Some(meant) => format!("did you mean {meant:?}?"),
                None => "use \"l2\" (same layer-2 segment), \"ipip\", \"nat\" or \"dnat\" (backends answer through this host)".to_owned(),
            };
            findings.error(
                &text.span(),
                &reader.object,
                format!("unknown mode {mode:?}"),
                remedy,
            );
            return None;
        }
    };
    Some(mode)
}

/// What a backend takes over from its service; none where that is wrong.
struct Parent<'a> {
    name: Option<&'a str>,
    vip: Option<IpAddr>,
    port: Option<u16>,
    mode: Option<Mode>,
    health: &'a Health,
    site: &'a Site<'a>,
}

struct PlacedBackend {
    backend: Backend,
    object: String,
    name_span: Option<Range<usize>>,
    endpoint_span: Option<Range<usize>>,
}

fn backend(
    number: usize,
    table: &DeTable<'_>,
    span: Range<usize>,
    parent: &Parent<'_>,
    findings: &mut Findings<'_>,
) -> PlacedBackend {
    let service = parent.name.unwrap_or("?");
    let object = match table.get("name").map(Spanned::get_ref) {
        Some(DeValue::String(name)) if !name.is_empty() => format!("backend \"{service}/{name}\""),
        _ => format!("backend number {number} of service \"{service}\""),
    };
    let mut reader = Reader::new(table, span, object.clone());
    let name = name(&mut reader, "\"b1\"", findings);
    let address = address(&mut reader, "address", findings);
    if let (Some(address), Some(vip)) = (&address, parent.vip)
        && let Some((wrong, remedy)) = rules::is_vip(*address.get_ref(), vip)
    {
        findings.error(&address.span(), &object, wrong, remedy);
    }
    if let (Some(address), Some(vip), Some(mode)) = (&address, parent.vip, parent.mode)
        && let Some((wrong, remedy)) = rules::not_carried(*address.get_ref(), vip, mode)
    {
        findings.error(&address.span(), &object, wrong, remedy);
    }
    let port = port(&mut reader, "port", findings);
    if let (Some(port), Some(expected), Some(mode)) = (&port, parent.port, parent.mode)
        && let Some((wrong, remedy)) = rules::not_translated(*port.get_ref(), expected, mode)
    {
        findings.error(&port.span(), &object, wrong, remedy);
    }
    let weight = reader.integer("weight", 0..=u32::from(rules::MAX_WEIGHT), findings);
    let admin = admin(&mut reader, findings);
    let (part, zone) = balance::part(&mut reader, parent.site, findings);
    reader.finish(findings);
    let endpoint_span = address.as_ref().map(Spanned::span);
    let address = address.map_or(NOWHERE, Spanned::into_inner);
    let port = port.map_or(parent.port.unwrap_or(0), Spanned::into_inner);
    let check_port = parent.health.port.unwrap_or(port);
    PlacedBackend {
        object,
        name_span: name.as_ref().map(Spanned::span),
        endpoint_span,
        backend: Backend {
            name: name.map_or_else(String::new, |name| (*name.get_ref()).to_owned()),
            address,
            port,
            weight: weight.map_or(rules::WEIGHT, |weight| weight.into_inner() as u16),
            admin,
            part,
            zone,
            check: parent.health.check.clone(),
            check_address: SocketAddr::from((address, check_port)),
        },
    }
}

fn admin(reader: &mut Reader<'_>, findings: &mut Findings<'_>) -> Admin {
    let Some(text) = reader.string("admin", "\"active\"", findings) else {
        return Admin::Active;
    };
    match *text.get_ref() {
        "active" => Admin::Active,
        "draining" => Admin::Draining,
        "disabled" => Admin::Disabled,
        other => {
            findings.error(
                &text.span(),
                &reader.object,
                format!("unknown admin state {other:?}"),
                "use \"active\", \"draining\" or \"disabled\"",
            );
            Admin::Active
        }
    }
}

fn unique_backends(backends: &[PlacedBackend], findings: &mut Findings<'_>) {
    let mut names = HashMap::new();
    let mut endpoints = HashMap::new();
    for placed in backends {
        let backend = &placed.backend;
        if let Some(span) = &placed.name_span
            && names.insert(backend.name.as_str(), ()).is_some()
        {
            findings.error(
                span,
                &placed.object,
                "this name is taken by a backend of the service above",
                "give each backend of a service a name of its own",
            );
        }
        if let Some(span) = &placed.endpoint_span
            && let Some(other) = endpoints.insert((backend.address, backend.port), &placed.object)
        {
            findings.error(
                span,
                &placed.object,
                format!(
                    "{} is {other}'s already",
                    SocketAddr::new(backend.address, backend.port)
                ),
                "name each backend once; for a larger share raise its weight",
            );
        }
    }
}
