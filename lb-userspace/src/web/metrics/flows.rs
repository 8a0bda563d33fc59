//! The flow tables.

use std::fmt;

use lb_common::net::IpVersion;
use prometheus_client::encoding::DescriptorEncoder;

use super::{
    Metrics,
    write::{Family, Labels, Value},
};
use crate::{guard::sources, status::BackendFlows};

pub(super) fn encode(metrics: &Metrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let census = &metrics.census;
    let mut by_state = Family::gauge(
        encoder,
        "flows",
        "Entries of the flow tables, by state and version of IP",
    )?;
    for (version, table) in census.tables.each() {
        for (state, number) in states(&table.counts) {
            by_state.add_with(&of_version(version), ("state", state), number)?;
        }
    }
    Family::counter(
        encoder,
        "sweeps",
        "Passes of the daemon over the flow tables, of which all figures on flows are",
    )?
    .of(census.scans)?;
    let swept = &census.swept;
    let mut changed = Family::counter(
        encoder,
        "swept_entries",
        "Entries of the flow tables that the daemon's sweep changed, by why; reclaimed ones were evicted for want of room",
    )?;
    for (why, number) in [
        ("expired", swept.expired),
        ("ended", swept.ended),
        ("reclaimed", swept.reclaimed),
        ("duplicate", swept.duplicates),
        ("invalid", swept.invalid),
        ("marked", swept.marked),
        ("clamped", swept.clamped),
        ("closed", swept.closed),
        ("rehashed", swept.rehashed),
    ] {
        changed.add(&Labels::one("why", why), number)?;
    }
    Family::counter(
        encoder,
        "swept_ports",
        "SNAT ports given back by the daemon's sweep, of entries that it removed or that gave way to flows without a port",
    )?
    .of(swept.ports)?;
    Family::counter(
        encoder,
        "swept_clients",
        "Clients that kept a backend and had to give way to others, for want of room",
    )?
    .of(swept.clients)?;
    guards(metrics, encoder)?;
    notices(metrics, encoder)?;
    tables(metrics, encoder)
}

/// Room for guards, and what of it is taken.
fn guards(metrics: &Metrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let maps = &metrics.maps;
    for (name, help, number) in [
        (
            "guard_ranges",
            "Ranges of client addresses that the allow and deny lists of all services come to",
            sources::ranges_in_use(maps),
        ),
        (
            "guard_ranges_most",
            "Ranges of client addresses that there is room for: `prefixes` in [limits]",
            maps.ranges.len().into(),
        ),
        (
            "guard_sources",
            "Sources of clients that are told apart, of services with a source_limit",
            metrics.census.sources,
        ),
        (
            "guard_sources_most",
            "Places for sources of clients: `sources` in [limits] are six tenths of them",
            sources::places(&maps.sources),
        ),
    ] {
        Family::gauge(encoder, name, help)?.of(number)?;
    }
    Ok(())
}

fn notices(metrics: &Metrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let cpus = &metrics.maps.cpus;
    let lost = (0..cpus.len()).map(|cpu| cpus.get(cpu).notices_lost).sum();
    let mut notices = Family::counter(
        encoder,
        "closed_flow_notices",
        "Flows closed at a drain's deadline, by whether their backends were told: told, failed, or lost for want of room",
    )?;
    for (outcome, number) in [
        ("told", metrics.told.told()),
        ("failed", metrics.told.failed()),
        ("lost", lost),
    ] {
        notices.add(&Labels::one("outcome", outcome), number)?;
    }
    Ok(())
}

fn tables(metrics: &Metrics, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let tables = &metrics.status.flows.tables;
    let mut capacity = Family::gauge(
        encoder,
        "flow_capacity",
        "Entries that the flow table of a version of IP has room for",
    )?;
    for (version, table) in tables.each() {
        capacity.add(&of_version(version), table.capacity)?;
    }
    let mut used = Family::gauge(
        encoder,
        "flow_use_ratio",
        "Entries in use, as a fraction of the table's capacity",
    )?;
    for (version, table) in tables.each() {
        used.add(&of_version(version), Value::Ratio(table.used))?;
    }
    let mut fill = Family::gauge(
        encoder,
        "flow_fill_level",
        "How full a flow table is, without embryos: 1 from 50%, 2 from 70% on; then raise `flows` (IPv4) or `flows6` in [limits] and restart the daemon",
    )?;
    for (version, table) in tables.each() {
        fill.add(&of_version(version), table.fill.level())?;
    }
    Ok(())
}

fn of_version(version: IpVersion) -> Labels {
    Labels::one("version", &(version as u32).to_string())
}

/// Counts by state.
pub(super) fn states(flows: &BackendFlows) -> [(&'static str, u64); 4] {
    [
        ("embryo", flows.embryo),
        ("young", flows.young),
        ("pin", flows.pin),
        ("closing", flows.closing),
    ]
}
