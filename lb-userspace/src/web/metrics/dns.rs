//! Names in the DNS that backends come from.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use super::{
    Metrics,
    write::{Family, Labels},
};

pub(super) fn encode(metrics: &Metrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let sources: Vec<_> = metrics
        .status
        .dns
        .iter()
        .map(|source| {
            let labels = Labels::new(&[("service", &source.service)], ("source", &source.source));
            (labels, source)
        })
        .collect();
    let mut addresses = Family::gauge(
        encoder,
        "dns_addresses",
        "Addresses in force of a name that backends come from",
    )?;
    for (labels, source) in &sources {
        addresses.add(labels, source.addresses.len() as u64)?;
    }
    let mut failing = Family::gauge(
        encoder,
        "dns_failing",
        "Whether a name does not resolve, or its answer cannot be taken, so that older addresses stay in force",
    )?;
    for (labels, source) in &sources {
        failing.add(labels, source.error.is_some())?;
    }
    let mut failures = Family::counter(
        encoder,
        "dns_failures",
        "Questions for a name that brought no answer which could be taken",
    )?;
    for (labels, source) in &sources {
        failures.add(labels, source.failures)?;
    }
    Ok(())
}
