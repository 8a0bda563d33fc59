//! Services whose addresses are translated, in modes `nat` and `dnat`: SNAT addresses, and what must hold of all of them together.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use lb_common::{
    backend::Mode,
    nat::{DNAT_SERVICES, SNAT_ADDRESSES},
    net::IpVersion,
};
use toml::de::DeValue;

use super::{
    super::{
        problem::Findings,
        read::{Reader, kind},
        rules::{unusable, word},
    },
    service::PlacedService,
};

const EXAMPLE: &str = "[\"10.0.2.100\"]";

/// A SNAT address and its place.
pub(super) struct Snat {
    pub(super) address: IpAddr,
    span: Range<usize>,
}

/// Reads a service's SNAT addresses.
pub(super) fn snat(
    reader: &mut Reader<'_>,
    mode: Option<Mode>,
    vip: Option<IpAddr>,
    findings: &mut Findings<'_>,
) -> Vec<Snat> {
    let Some((span, elements)) = reader.array("snat", EXAMPLE, findings) else {
        if mode == Some(Mode::Nat) && reader.value("snat").is_none() {
            reader.missing("snat", EXAMPLE, findings);
        }
        return Vec::new();
    };
    if let Some(mode @ (Mode::L2 | Mode::Ipip | Mode::Dnat)) = mode {
        findings.error(
            &span,
            &reader.object,
            format!(
                "mode {} hides no client's address, so it has no use for snat",
                word(mode)
            ),
            "remove it, or set mode = \"nat\"",
        );
        return Vec::new();
    }
    if elements.is_empty() || elements.len() > SNAT_ADDRESSES {
        findings.error(
            &span,
            &reader.object,
            format!("snat has {} addresses", elements.len()),
            format!("give 1 to {SNAT_ADDRESSES} addresses, like snat = {EXAMPLE}"),
        );
    }
    let mut addresses: Vec<Snat> = Vec::new();
    for element in elements {
        let span = element.span();
        match one(element.get_ref(), vip) {
            Err((wrong, remedy)) => findings.error(&span, &reader.object, wrong, remedy),
            Ok(address) if addresses.iter().any(|other| other.address == address) => {
                findings.error(
                    &span,
                    &reader.object,
                    format!("SNAT address {address} is named twice"),
                    "remove one of them",
                );
            }
            Ok(address) => addresses.push(Snat { address, span }),
        }
    }
    addresses.truncate(SNAT_ADDRESSES);
    addresses
}

/// One element of the list; or what is wrong with it, and the remedy.
fn one(element: &DeValue<'_>, vip: Option<IpAddr>) -> Result<IpAddr, (String, String)> {
    let DeValue::String(text) = element else {
        return Err((
            format!("snat contains {}", kind(element)),
            format!("write addresses only, like snat = {EXAMPLE}"),
        ));
    };
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err((
            format!("snat contains {text:?}, which is no IP address"),
            format!("write it like snat = {EXAMPLE}"),
        ));
    };
    if let Some((wrong, remedy)) = unusable(address) {
        return Err((format!("SNAT address {address} {wrong}"), remedy));
    }
    match vip {
        Some(vip) if IpVersion::of(vip) != IpVersion::of(address) => Err((
            format!(
                "SNAT address {address} is IPv{}, and the VIP is IPv{}",
                IpVersion::of(address) as u32,
                IpVersion::of(vip) as u32
            ),
            format!("give an IPv{} address", IpVersion::of(vip) as u32),
        )),
        _ => Ok(address),
    }
}

/// What must hold of the services together.
pub(super) fn check_all(services: &[PlacedService], findings: &mut Findings<'_>) {
    addresses_of_their_own(services, findings);
    let mut dnat: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    let mut pairs: BTreeMap<SocketAddr, BTreeSet<IpAddr>> = BTreeMap::new();
    for placed in services {
        let backends = placed.service.backends.iter().zip(&placed.backends);
        for (backend, (object, span)) in backends {
            let Some(span) = span else { continue };
            let endpoint = SocketAddr::new(backend.address, backend.port);
            if placed.service.mode == Mode::Dnat {
                let services = dnat.entry(endpoint).or_default();
                *services += 1;
                if *services > DNAT_SERVICES {
                    findings.error(
                        span,
                        object,
                        format!("{endpoint} is a backend of {DNAT_SERVICES} services of mode dnat already, which is the most"),
                        "have another address or port of the backend serve it, or use mode \"nat\"",
                    );
                }
            }
            let known = pairs.entry(endpoint).or_default();
            let before = known.len();
            known.extend(placed.snat.iter().map(|snat| snat.address));
            if known.len() > SNAT_ADDRESSES && before <= SNAT_ADDRESSES {
                findings.error(
                    span,
                    object,
                    format!(
                        "{endpoint} is reached from {} SNAT addresses, those of the services above among them, and {SNAT_ADDRESSES} are the most",
                        known.len()
                    ),
                    "give the services that share a backend SNAT addresses in common",
                );
            }
        }
    }
}

/// A SNAT address is no VIP and no backend's: what comes back to it must be a reply to what left from it, and come back here.
fn addresses_of_their_own(services: &[PlacedService], findings: &mut Findings<'_>) {
    let mut holders: BTreeMap<IpAddr, String> = BTreeMap::new();
    for placed in services {
        for (backend, (object, span)) in placed.service.backends.iter().zip(&placed.backends) {
            if span.is_some() {
                holders.insert(backend.address, format!("the address of {object}"));
            }
        }
        if placed.endpoint_span.is_some() {
            holders.insert(placed.service.vip, format!("the VIP of {}", placed.object));
        }
    }
    for placed in services {
        for snat in &placed.snat {
            if let Some(holder) = holders.get(&snat.address) {
                findings.error(
                    &snat.span,
                    &placed.object,
                    format!("SNAT address {} is {holder}", snat.address),
                    "give an address of this host that nothing else has",
                );
            }
        }
    }
}
