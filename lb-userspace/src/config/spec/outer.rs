//! The sources of outer headers.

use lb_common::backend::Mode;
use toml::de::DeValue;

use super::{
    super::{
        problem::Findings,
        read::{Reader, kind},
        rules::unusable,
    },
    service::PlacedService,
};
use crate::{
    guard::Prefix,
    neighbour::outer::{MOST_BITS, OuterSources},
};

const KEY: &str = "outer_sources";
const EXAMPLE: &str = "[\"10.9.0.0/24\"]";

/// What the outer headers of mode `ipip` are from, in the place of this host's addresses.
pub(super) fn sources(root: &mut Reader<'_>, findings: &mut Findings<'_>) -> OuterSources {
    let mut sources = OuterSources::default();
    let Some((span, elements)) = root.array(KEY, EXAMPLE, findings) else {
        return sources;
    };
    if elements.is_empty() {
        findings.error(
            &span,
            &root.object,
            format!("{KEY} is empty"),
            "name a prefix that is routed to this host, or remove the key to send from this host's own address",
        );
    }
    for element in elements {
        let found = one(element.get_ref()).and_then(|prefix| {
            let (more, before) = sources.with(prefix);
            match before {
                None => Ok(more),
                Some(before) => Err((
                    format!(
                        "{prefix} is a second prefix of IPv{}",
                        before.version() as u32
                    ),
                    format!("keep one of {before} and {prefix}"),
                )),
            }
        });
        match found {
            Ok(more) => sources = more,
            Err((wrong, remedy)) => {
                findings.error(&element.span(), &root.object, wrong, remedy);
            }
        }
    }
    sources
}

/// One element of the list; or what is wrong with it, and the remedy.
fn one(element: &DeValue<'_>) -> Result<Prefix, (String, String)> {
    let DeValue::String(text) = element else {
        return Err((
            format!("{KEY} contains {}", kind(element)),
            format!("write prefixes only, like {KEY} = {EXAMPLE}"),
        ));
    };
    let prefix = text.parse::<Prefix>().map_err(|wrong| {
        (
            format!("{KEY} contains {text:?}, which {wrong}"),
            wrong.remedy(),
        )
    })?;
    if let Some((wrong, remedy)) = unusable(prefix.network()) {
        return Err((format!("{prefix} {wrong}"), remedy));
    }
    let least = prefix.version().address_bits() - MOST_BITS;
    if prefix.bits() < least {
        return Err((
            format!("{prefix} has more addresses than a flow is told apart by"),
            format!("give a part of it, of /{least} or longer"),
        ));
    }
    Ok(prefix)
}

/// That no outer header is from an address of the backend that it goes to: in mode `ipip` these have VIPs, too.
pub(super) fn check_all(
    sources: OuterSources,
    services: &[PlacedService],
    findings: &mut Findings<'_>,
) {
    const REMEDY: &str = "route another prefix to this host for outer_sources";
    let encapsulated = services
        .iter()
        .filter(|placed| placed.service.mode == Mode::Ipip);
    for placed in encapsulated {
        let vip = placed.service.vip;
        if let (Some(prefix), Some(span)) = (sources.holding(vip), &placed.endpoint_span) {
            findings.error(
                span,
                &placed.object,
                format!("its VIP {vip} is in {prefix} of {KEY}, and backends take no packet from an address that they have themselves"),
                REMEDY,
            );
        }
        let backends = placed.service.backends.iter().zip(&placed.backends);
        for (backend, (object, span)) in backends {
            let address = backend.address;
            if let (Some(prefix), Some(span)) = (sources.holding(address), span) {
                findings.error(
                    span,
                    object,
                    format!("its address {address} is in {prefix} of {KEY}, and it takes no packet from an address that it has itself"),
                    REMEDY,
                );
            }
        }
    }
}
