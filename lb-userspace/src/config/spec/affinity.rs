//! Whether a service places each flow for itself, or clients.

use std::time::Duration;

use toml::Spanned;

use super::{
    super::{
        AFFINITY_TIMEOUT, AFFINITY_TIMEOUTS, Affinity,
        problem::Findings,
        read::{Reader, nearest},
    },
    balance::{Site, alone},
    service::valid_name,
};

/// Reads a service's keys. None: it places each flow for itself.
pub(super) fn read(
    reader: &mut Reader<'_>,
    site: &Site<'_>,
    findings: &mut Findings<'_>,
) -> Option<Affinity> {
    let places_clients = places_clients(reader, findings);
    let timeout = reader.duration("affinity_timeout", AFFINITY_TIMEOUTS, findings);
    let group = reader
        .string("affinity_group", "\"chat\"", findings)
        .and_then(|group| valid_name(group, reader, findings));
    if places_clients {
        if let Some(timeout) = &timeout {
            let why = "goes by the clients that this load balancer has seen";
            alone(
                timeout,
                "affinity_timeout",
                why,
                site,
                &reader.object,
                findings,
            );
        }
        // Load balancers of a fleet choose alike for the same client, whichever of them has seen it.
        let default = if site.is_fleet {
            Duration::ZERO
        } else {
            AFFINITY_TIMEOUT
        };
        return Some(Affinity {
            timeout: timeout.map_or(default, Spanned::into_inner),
            group: group.map(|group| (*group.get_ref()).to_owned()),
        });
    }
    let spans = [
        ("affinity_timeout", timeout.map(|timeout| timeout.span())),
        ("affinity_group", group.map(|group| group.span())),
    ];
    for (key, span) in spans {
        if let Some(span) = span {
            findings.warning(
                &span,
                &reader.object,
                format!("{key} is about services that place clients, and this one places each connection for itself"),
                format!("set affinity = \"client-ip\", or remove {key}"),
            );
        }
    }
    None
}

fn places_clients(reader: &mut Reader<'_>, findings: &mut Findings<'_>) -> bool {
    const WORDS: [&str; 2] = ["connection", "client-ip"];
    let Some(text) = reader.string("affinity", "\"client-ip\"", findings) else {
        return false;
    };
    match *text.get_ref() {
        "connection" => false,
        "client-ip" => true,
        other => {
            findings.error(
                &text.span(),
                &reader.object,
                format!("unknown affinity {other:?}"),
                match nearest(other, &WORDS) {
                    Some(meant) => format!("did you mean {meant:?}?"),
                    None => "use \"connection\" or \"client-ip\"".to_owned(),
                },
            );
            // What else is said of it is not wrong because of that.
            true
        }
    }
}
