//! How a service's new flows are spread: the keys of [`crate::balance`].

use std::time::Duration;

use toml::Spanned;

use super::{
    super::{
        problem::Findings,
        read::{Reader, nearest},
    },
    service::valid_name,
};
use crate::balance::{Balance, Part, Policy, ZONE_ENOUGH, outlier::Outlier, zone::Zone};

/// What the top level says that matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site<'t> {
    /// Whether there is a `fleet_seed`, so that several load balancers are to have the same tables.
    pub(super) is_fleet: bool,
    /// The zone that the load balancer is in.
    pub(super) zone: Option<&'t str>,
}

/// Reads the top level's keys.
pub(super) fn site<'t>(
    root: &mut Reader<'t>,
    is_fleet: bool,
    findings: &mut Findings<'_>,
) -> Site<'t> {
    let zone = zone(root, findings);
    if let Some(zone) = &zone
        && is_fleet
    {
        findings.warning(
            &zone.span(),
            &root.object,
            "load balancers of a fleet (fleet_seed) that are in different zones choose differently for the same flow",
            "give all of them the same zone, or none",
        );
    }
    Site {
        is_fleet,
        zone: zone.map(Spanned::into_inner),
    }
}

fn zone<'t>(reader: &mut Reader<'t>, findings: &mut Findings<'_>) -> Option<Spanned<&'t str>> {
    let zone = reader.string("zone", "\"eu-1a\"", findings)?;
    valid_name(zone, reader, findings)
}

/// The most connections that `max_connections` can be: as many as the larger flow table can have.
const MOST_CONNECTIONS: u32 = crate::config::MAX_FLOWS;

/// The longest slow start: who needs more should set weights.
const LONGEST_START: Duration = Duration::from_hours(24);

/// What shares follow.
fn balance(reader: &mut Reader<'_>, site: &Site<'_>, findings: &mut Findings<'_>) -> Balance {
    const WORDS: [&str; 2] = ["weights", "least-connections"];
    let Some(text) = reader.string("balance", "\"least-connections\"", findings) else {
        return Balance::Weights;
    };
    match *text.get_ref() {
        "weights" => Balance::Weights,
        "least-connections" => {
            let (key, why) = (
                "balance = \"least-connections\"",
                "goes by the flows that this load balancer has",
            );
            alone(&text, key, why, site, &reader.object, findings);
            Balance::LeastConnections
        }
        other => {
            findings.error(
                &text.span(),
                &reader.object,
                format!("unknown balance {other:?}"),
                match nearest(other, &WORDS) {
                    Some(meant) => format!("did you mean {meant:?}?"),
                    None => "use \"weights\" or \"least-connections\"".to_owned(),
                },
            );
            Balance::Weights
        }
    }
}

/// A service's keys, before its backends are known.
pub(super) struct Written {
    backup_below: Option<Spanned<u32>>,
    zone_enough: Option<Spanned<u32>>,
    slow_start: Option<Spanned<Duration>>,
    balance: Balance,
    outlier: Option<Outlier>,
}

/// Reads a service's keys.
pub(super) fn read(
    reader: &mut Reader<'_>,
    site: &Site<'_>,
    findings: &mut Findings<'_>,
) -> Written {
    let slow_start = reader.duration("slow_start", Duration::ZERO..=LONGEST_START, findings);
    if let Some(slow_start) = &slow_start
        && !slow_start.get_ref().is_zero()
    {
        let why = "goes by when this load balancer saw a backend come up";
        alone(
            slow_start,
            "slow_start",
            why,
            site,
            &reader.object,
            findings,
        );
    }
    let balance = balance(reader, site, findings);
    Written {
        balance,
        backup_below: reader.integer("backup_below", 1..=1 << 18, findings),
        zone_enough: reader.integer("zone_enough", 1..=100, findings),
        slow_start,
        outlier: outlier(reader, site, findings),
    }
}

/// The shortest window: with a step of half a second.
const SHORTEST_WINDOW: Duration = Duration::from_secs(3);
/// The longest window, and the longest first ejection.
const LONGEST_WINDOW: Duration = Duration::from_hours(1);

/// Reads the table `outlier`, if it is there.
fn outlier(
    parent: &mut Reader<'_>,
    site: &Site<'_>,
    findings: &mut Findings<'_>,
) -> Option<Outlier> {
    let object = format!("outlier of {}", parent.object);
    let mut reader = parent.table("outlier", object, findings)?;
    let ratio = reader.integer("ratio", 2..=100, findings);
    let floor = reader.integer("floor", 1..=100, findings);
    let least = reader.integer("least", 10..=1_000_000, findings);
    let at_most = reader.integer("at_most", 0..=100, findings);
    let eject_for = reader.duration(
        "eject_for",
        Duration::from_secs(1)..=LONGEST_WINDOW,
        findings,
    );
    let window = reader.duration("window", SHORTEST_WINDOW..=LONGEST_WINDOW, findings);
    if let Some(at_most) = &at_most
        && *at_most.get_ref() != 0
    {
        let why = "goes by what this load balancer's clients send again";
        alone(at_most, "at_most", why, site, &reader.object, findings);
    }
    if let (Some(eject_for), Some(0)) = (
        &eject_for,
        at_most.as_ref().map(|at_most| *at_most.get_ref()),
    ) {
        findings.warning(
            &eject_for.span(),
            &reader.object,
            "eject_for has no effect, for at_most is 0: no backend is ejected",
            "remove it, or raise at_most",
        );
    }
    reader.finish(findings);
    let default = Outlier::DEFAULT;
    // Load balancers of a fleet see different clients, and are to have the same tables.
    let ejected = if site.is_fleet { 0 } else { default.at_most };
    Some(Outlier {
        ratio: ratio.map_or(default.ratio, Spanned::into_inner),
        floor: floor.map_or(default.floor, Spanned::into_inner),
        least: least.map_or(default.least, Spanned::into_inner),
        at_most: at_most.map_or(ejected, Spanned::into_inner),
        eject_for: eject_for.map_or(default.eject_for, Spanned::into_inner),
        window: window.map_or(default.window, Spanned::into_inner),
    })
}

impl Written {
    /// The policy that they make with the service's backends.
    pub(super) fn finish(
        self,
        min_healthy: u32,
        parts: &[Part],
        may_have_others: bool,
        object: &str,
        findings: &mut Findings<'_>,
    ) -> Policy {
        if let Some(below) = &self.backup_below
            && !may_have_others
        {
            check_backup_below(below, min_healthy, parts, object, findings);
        }
        let in_zone = |wanted| parts.iter().filter(move |part| part.zone == wanted).count();
        let (local, others) = (in_zone(Zone::Local), in_zone(Zone::Other));
        if let Some(enough) = &self.zone_enough
            && !may_have_others
            && (local == 0 || others == 0)
        {
            findings.warning(
                &enough.span(),
                object,
                "zone_enough has no effect: it takes a zone at the top level, backends in that zone, and others that are not",
                "remove it, or say where everything is",
            );
        }
        Policy {
            balance: self.balance,
            zone_enough: self.zone_enough.map_or(ZONE_ENOUGH, Spanned::into_inner),
            slow_start: self.slow_start.map_or(Duration::ZERO, Spanned::into_inner),
            backup_below: self
                .backup_below
                .map_or(min_healthy.max(1), Spanned::into_inner),
            outlier: self.outlier,
        }
    }
}

fn check_backup_below(
    below: &Spanned<u32>,
    min_healthy: u32,
    parts: &[Part],
    object: &str,
    findings: &mut Findings<'_>,
) {
    let (span, below) = (below.span(), *below.get_ref());
    let backups = parts.iter().filter(|part| part.backup).count();
    let primaries = parts.len() - backups;
    if backups == 0 {
        findings.warning(
            &span,
            object,
            "backup_below has no effect, for none of its backends is a backup",
            "remove it, or set backup = true for a backend",
        );
    } else if below as usize > primaries {
        findings.warning(
            &span,
            object,
            format!("backup_below is {below}, but there are only {primaries} primary backends, so backups always take new flows"),
            "lower it",
        );
    } else if below < min_healthy {
        findings.warning(
            &span,
            object,
            format!("backup_below is {below} and min_healthy {min_healthy}: with as many as {below} primary backends usable, idle backups count for min_healthy, and nobody stands in"),
            format!("set backup_below = {min_healthy}"),
        );
    }
}

/// Reads a backend's keys.
pub(super) fn part(
    reader: &mut Reader<'_>,
    site: &Site<'_>,
    findings: &mut Findings<'_>,
) -> (Part, Option<String>) {
    let max_connections = reader.integer("max_connections", 1..=MOST_CONNECTIONS, findings);
    if let Some(max) = &max_connections {
        alone(
            max,
            "max_connections",
            "counts the flows that this load balancer has",
            site,
            &reader.object,
            findings,
        );
    }
    let backup = reader.boolean("backup", "true", findings);
    let zone = zone(reader, findings);
    if let (Some(zone), None) = (&zone, site.zone) {
        findings.warning(
            &zone.span(),
            &reader.object,
            "its zone has no effect, for the load balancer has none",
            "say which zone this load balancer is in: zone, at the top level",
        );
    }
    let part = Part {
        max_connections: max_connections.map(Spanned::into_inner),
        backup: backup.is_some_and(Spanned::into_inner),
        zone: match (site.zone, &zone) {
            (None, _) => Zone::Unsaid,
            (Some(here), Some(zone)) if here == *zone.get_ref() => Zone::Local,
            (Some(_), _) => Zone::Other,
        },
    };
    (part, zone.map(|zone| (*zone.get_ref()).to_owned()))
}

/// Refuses in a fleet what makes its load balancers' tables differ.
pub(super) fn alone<T>(
    value: &Spanned<T>,
    key: &str,
    why: &str,
    site: &Site<'_>,
    object: &str,
    findings: &mut Findings<'_>,
) {
    if site.is_fleet {
        findings.error(
            &value.span(),
            object,
            format!("{key} {why}, so the load balancers of a fleet (fleet_seed) would choose differently for the same flow"),
            format!("remove {key}; or remove fleet_seed, if this load balancer is alone"),
        );
    }
}
