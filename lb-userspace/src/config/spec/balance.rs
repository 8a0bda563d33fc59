//! How a service's new flows are spread: the keys of [`crate::balance`].

use toml::Spanned;

use super::super::{problem::Findings, read::Reader};
use crate::balance::Part;

/// What the top level says that matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    /// Whether there is a `fleet_seed`, so that several load balancers are to have the same tables.
    pub(super) is_fleet: bool,
}

/// The most connections that `max_connections` can be: as many as the larger flow table can have.
const MOST_CONNECTIONS: u32 = crate::config::MAX_FLOWS;

/// Reads a backend's keys.
pub(super) fn part(reader: &mut Reader<'_>, site: &Site, findings: &mut Findings<'_>) -> Part {
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
    Part {
        max_connections: max_connections.map(Spanned::into_inner),
    }
}

/// Refuses in a fleet what makes its load balancers' tables differ.
fn alone<T>(
    value: &Spanned<T>,
    key: &str,
    why: &str,
    site: &Site,
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
