//! From a parsed document to a valid [`Config`]: what each key means and what must hold of all of them together.

mod affinity;
mod balance;
mod dns;
mod guard;
mod health;
mod interfaces;
mod nat;
mod outer;
mod service;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
};

use lb_common::{maglev::TableRef, maps::default};
use toml::{Spanned, de::DeTable};

use self::service::PlacedService;
use super::{Config, Limits, Loaded, Place, Problems, problem::Findings, read::Reader};
use crate::ids;

/// Where runtime state is kept if the configuration does not say.
const STATE_DIR: &str = "/run/tether";
/// Where maps are pinned if the configuration does not say.
const BPFFS: &str = "/sys/fs/bpf/tether";
/// Where metrics are served if the configuration does not say.
const METRICS: &str = "127.0.0.1:9477";
/// Checks under way at once if the configuration does not say.
const CHECKS: u32 = 256;
/// Each takes a file descriptor.
pub(super) const MOST_CHECKS: u32 = 16_384;
/// A fleet seed of fewer characters than this is easy to guess.
const SEED_CHARACTERS: usize = 16;

pub(super) fn parse(path: &Path, text: &str) -> Result<Loaded, Problems> {
    let mut findings = Findings::new(path, text);
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        for error in &errors {
            findings.error(
                &error.span().unwrap_or(0..0),
                "configuration",
                format!("this is not TOML: {}", error.message().replace('\n', ", ")),
                "correct the syntax (https://toml.io)",
            );
        }
        // What was made of the rest is a guess, and complaints about that would be too.
        return Err(findings.into_problems());
    }
    let config = read(path, text, &document, &mut findings);
    let warnings = findings.conclude()?;
    Ok(Loaded { config, warnings })
}

/// Reads everything, with defaults in the place of what is wrong: the result counts only if nothing was found.
fn read(
    path: &Path,
    text: &str,
    document: &Spanned<DeTable<'_>>,
    findings: &mut Findings<'_>,
) -> Config {
    let start = 0..0;
    let mut root = Reader::new(document.get_ref(), start, "configuration".to_owned());
    let interfaces = interfaces::attached(&mut root, findings);
    let local_interfaces = interfaces::local(&mut root, findings);
    let outer_sources = outer::sources(&mut root, findings);
    let state_dir = directory(&mut root, "state_dir", STATE_DIR, findings);
    let bpffs = directory(&mut root, "bpffs", BPFFS, findings);
    let fleet_seed = fleet_seed(&mut root, findings);
    let reload_on_change = root
        .boolean("reload_on_change", "false", findings)
        .is_none_or(Spanned::into_inner);
    let dns_servers = dns::servers(&mut root, findings);
    let admin_group = admin_group(&mut root, findings);
    let metrics = metrics(&mut root, findings);
    let mut limit_places = BTreeMap::new();
    let (limits, checks_at_once, limits_span) = limits(&mut root, &mut limit_places, findings);
    let site = balance::site(&mut root, fleet_seed.is_some(), findings);
    let services: Vec<PlacedService> = root
        .tables("service", findings)
        .into_iter()
        .enumerate()
        .map(|(n, (span, table))| service::read(n + 1, table, span, &site, findings))
        .collect();
    if services.is_empty() && !document.get_ref().contains_key("service") {
        findings.warning(
            &root.span,
            "configuration",
            "there is no service, so every packet passes to the host",
            "add a [[service]]",
        );
    }
    root.finish(findings);
    unique_services(&services, findings);
    nat::check_all(&services, findings);
    outer::check_all(outer_sources, &services, findings);
    let config = Config {
        path: path.to_owned(),
        digest: super::digest(text),
        reload_on_change,
        interfaces,
        local_interfaces,
        outer_sources,
        state_dir,
        bpffs,
        fleet_seed,
        dns_servers,
        admin_group,
        metrics,
        limits,
        limit_places,
        checks_at_once,
        services: services.into_iter().map(|placed| placed.service).collect(),
    };
    within_limits(&config, &limits_span, findings);
    config
}

fn directory(
    root: &mut Reader<'_>,
    key: &'static str,
    default: &str,
    findings: &mut Findings<'_>,
) -> PathBuf {
    let Some(text) = root.string(key, &format!("{default:?}"), findings) else {
        return PathBuf::from(default);
    };
    let path = PathBuf::from(text.get_ref());
    if !path.is_absolute() {
        findings.error(
            &text.span(),
            &root.object,
            format!("{key} is {:?}, which is no absolute path", text.get_ref()),
            "begin it with /",
        );
    }
    path
}

fn fleet_seed(root: &mut Reader<'_>, findings: &mut Findings<'_>) -> Option<[u64; 4]> {
    let text = root.string("fleet_seed", "\"any secret text\"", findings)?;
    let characters = text.get_ref().chars().count();
    if characters == 0 {
        findings.error(
            &text.span(),
            &root.object,
            "fleet_seed is empty",
            "give a secret text, the same on every load balancer of the fleet, or remove the key to have one made up",
        );
    } else if characters < SEED_CHARACTERS {
        findings.warning(
            &text.span(),
            &root.object,
            "fleet_seed is short, and who guesses it can aim flows at one backend",
            format!("give at least {SEED_CHARACTERS} characters, for example from `openssl rand -hex 16`"),
        );
    }
    Some(ids::fleet_seed_of(text.get_ref()))
}

fn admin_group(root: &mut Reader<'_>, findings: &mut Findings<'_>) -> Option<String> {
    let text = root.string("admin_group", "\"tether\"", findings)?;
    let name = text.get_ref();
    let valid = !name.is_empty()
        && !name.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control());
    if !valid {
        findings.error(
            &text.span(),
            &root.object,
            format!("admin_group is {name:?}, which is no name of a group"),
            "give the name of a group of this host, or remove the key: then only root and the daemon's own user may use the admin socket",
        );
    }
    Some(name.to_string())
}

fn metrics(root: &mut Reader<'_>, findings: &mut Findings<'_>) -> Option<SocketAddr> {
    let default = || METRICS.parse().ok();
    let Some(mut table) = root.table("metrics", "metrics".to_owned(), findings) else {
        return default();
    };
    let listen = table.string("listen", "\"127.0.0.1:9477\"", findings);
    let address = match listen {
        None => default(),
        Some(text) if *text.get_ref() == "off" => None,
        Some(text) => {
            let address = text.get_ref().parse::<SocketAddr>().ok();
            if address.is_none() {
                findings.error(
                    &text.span(),
                    &table.object,
                    format!(
                        "listen is {:?}, which is no address and port",
                        text.get_ref()
                    ),
                    format!("write it like {METRICS:?} or \"[::1]:9477\", or \"off\""),
                );
            }
            address
        }
    };
    table.finish(findings);
    address
}

/// The limits, that of checks, and where a service that exceeds them should send the reader. Notes where each of them is.
fn limits(
    root: &mut Reader<'_>,
    places: &mut BTreeMap<&'static str, Place>,
    findings: &mut Findings<'_>,
) -> (Limits, usize, LimitSpans) {
    let mut limits = Limits {
        flows: default::FLOWS,
        services: default::SERVICES,
        flows6: default::FLOWS6,
        backends: default::BACKENDS,
        table_slots: default::TABLE_SLOTS,
        nat_pairs: default::NAT_PAIRS,
        clients: default::AFFINITIES,
        prefixes: default::RANGES,
        sources: default::SOURCES,
    };
    let mut spans = LimitSpans::default();
    let Some(mut table) = root.table("limits", "limits".to_owned(), findings) else {
        return (limits, CHECKS as usize, spans);
    };
    let mut take = |key, bounds, value: &mut u32, span: &mut Option<Range<usize>>| {
        if let Some(number) = table.integer(key, bounds, findings) {
            places.insert(key, findings.place(&number.span()));
            *span = Some(number.span());
            *value = number.into_inner();
        }
    };
    // A flow takes 27 bytes of table, in IPv6 54, and the verifier lets a program address 512 MiB of a map.
    take("flows", 1..=super::MAX_FLOWS, &mut limits.flows, &mut None);
    take(
        "flows6",
        1..=super::MAX_FLOWS6,
        &mut limits.flows6,
        &mut None,
    );
    // Ids have 16 bits, backends' 18; id 0 is not used.
    take(
        "services",
        2..=1 << 16,
        &mut limits.services,
        &mut spans.services,
    );
    take(
        "backends",
        2..=1 << 18,
        &mut limits.backends,
        &mut spans.backends,
    );
    take(
        "table_slots",
        128..=1 << 26,
        &mut limits.table_slots,
        &mut spans.table_slots,
    );
    // A pair's 64,512 ports take 266 kB, and the verifier lets a program address 512 MiB of a map. Number 0 is not used.
    take(
        "nat_pairs",
        1..=super::MAX_NAT_PAIRS,
        &mut limits.nat_pairs,
        &mut spans.nat_pairs,
    );
    // A client takes 54 bytes, as an IPv6 flow does.
    take(
        "clients",
        1..=super::MAX_FLOWS6,
        &mut limits.clients,
        &mut None,
    );
    // A range takes 24 bytes, and a search through them 24 steps at most.
    take(
        "prefixes",
        1..=super::MAX_PREFIXES,
        &mut limits.prefixes,
        &mut spans.prefixes,
    );
    // A source takes 54 bytes, as a client does.
    take(
        "sources",
        1..=super::MAX_FLOWS6,
        &mut limits.sources,
        &mut None,
    );
    let checks = table.integer("checks", 1..=MOST_CHECKS, findings);
    table.finish(findings);
    let checks = checks.map_or(CHECKS, Spanned::into_inner);
    (limits, checks as usize, spans)
}

/// Where each limit is written, if it is.
#[derive(Default)]
struct LimitSpans {
    services: Option<Range<usize>>,
    backends: Option<Range<usize>>,
    table_slots: Option<Range<usize>>,
    nat_pairs: Option<Range<usize>>,
    prefixes: Option<Range<usize>>,
}

fn unique_services(services: &[PlacedService], findings: &mut Findings<'_>) {
    let mut names = HashMap::new();
    let mut endpoints = HashMap::new();
    for placed in services {
        let service = &placed.service;
        if let Some(span) = &placed.name_span
            && names.insert(service.name.as_str(), ()).is_some()
        {
            findings.error(
                span,
                &placed.object,
                "this name is taken by a service above",
                "give each service a name of its own",
            );
        }
        let Some(span) = &placed.endpoint_span else {
            continue;
        };
        let endpoint = (service.vip, service.port);
        if let Some(other) = endpoints.insert(endpoint, &placed.object) {
            findings.error(
                span,
                &placed.object,
                format!(
                    "{} is {other}'s already",
                    SocketAddr::new(service.vip, service.port)
                ),
                "give each service a VIP and port of its own",
            );
        }
    }
}

fn within_limits(config: &Config, spans: &LimitSpans, findings: &mut Findings<'_>) {
    let mut exceeded = |span: &Option<Range<usize>>,
                        key: &str,
                        needed: u64,
                        limit: u32,
                        what: &str| {
        if needed > u64::from(limit) {
            findings.error(
                span.as_ref().unwrap_or(&(0..0)),
                "limits",
                format!("{key} is {limit}, {} too few for {what}", needed - u64::from(limit)),
                format!("set {key} = {needed} or more in [limits], then run `tether cleanup` so that the maps are made anew"),
            );
        }
    };
    let (limits, needs) = (&config.limits, config.needs());
    exceeded(
        &spans.services,
        "services",
        needs.services,
        limits.services,
        &format!("{} services, for number 0 is not used", needs.services - 1),
    );
    exceeded(
        &spans.backends,
        "backends",
        needs.backends,
        limits.backends,
        &format!("{} backends, for number 0 is not used", needs.backends - 1),
    );
    let sizes = config
        .services
        .iter()
        .map(|service| u64::from(service.table_size));
    exceeded(
        &spans.table_slots,
        "table_slots",
        needs.table_slots,
        limits.table_slots,
        &format!(
            "tables of {} slots in all and room to write the largest anew beside them",
            sizes.sum::<u64>()
        ),
    );
    exceeded(
        &spans.nat_pairs,
        "nat_pairs",
        needs.nat_pairs,
        limits.nat_pairs,
        &format!(
            "{} pairs of a SNAT address and a backend's address and port",
            needs.nat_pairs
        ),
    );
    exceeded(
        &spans.prefixes,
        "prefixes",
        needs.prefixes,
        limits.prefixes,
        "the ranges of all services' allow and deny lists and room to write the largest anew beside them",
    );
}

/// The largest prime that fits a [`TableRef`]'s size.
const LARGEST_TABLE: u32 = 16_777_213;
const _: () = assert!(LARGEST_TABLE <= TableRef::MAX_SIZE);
