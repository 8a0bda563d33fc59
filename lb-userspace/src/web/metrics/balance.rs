//! How new flows are spread.

use std::fmt;

use lb_common::repeats::Repeats;
use prometheus_client::encoding::DescriptorEncoder;

use super::{
    objects::Listed,
    write::{Family, Labels, Value},
};
use crate::status::{BackendStatus, ServiceStatus};

pub(super) fn services(
    services: &[Listed<'_>],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let mut gauge = |name, help, of: fn(&ServiceStatus) -> bool| {
        let mut family = Family::gauge(encoder, name, help)?;
        services
            .iter()
            .try_for_each(|(labels, service, _)| family.add(labels, of(service)))
    };
    gauge(
        "service_full",
        "Whether all usable backends have as many connections as max_connections allows, so that new ones are dropped",
        |service| service.full,
    )?;
    gauge(
        "service_backups_in_use",
        "Whether backups take new flows, since fewer primary backends than backup_below can",
        |service| service.balance.backups,
    )?;
    gauge(
        "service_zone_spills",
        "Whether other zones take new flows, since less of the local one than zone_enough can",
        |service| service.balance.spills,
    )?;
    let mut moves = Family::counter(
        encoder,
        "service_weight_moves",
        "How often a service's weights have moved to even out connections",
    )?;
    services
        .iter()
        .try_for_each(|(labels, service, _)| moves.add(labels, service.balance.moves))?;
    let mut ejections = Family::counter(
        encoder,
        "service_ejections",
        "How often a backend of a service was ejected for what its clients send again, since the daemon started",
    )?;
    services
        .iter()
        .try_for_each(|(labels, service, _)| ejections.add(labels, service.balance.ejections))
}

/// What clients send again, of backends whose services want to know, each by its place among the backends.
pub(super) fn repeats(
    backends: &[(Labels, &BackendStatus)],
    counted: &[(usize, Repeats)],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let mut counter = |name, help, of: fn(&Repeats) -> u64| {
        let mut family = Family::counter(encoder, name, help)?;
        counted
            .iter()
            .try_for_each(|(at, repeats)| family.add(&backends[*at].0, of(repeats)))
    };
    counter(
        "backend_handshakes",
        "Handshakes with a backend that clients have finished, if its service has outlier",
        |repeats| repeats.handshakes,
    )?;
    counter(
        "backend_syns_again",
        "Connections to a backend whose SYN was sent again, if its service has outlier",
        |repeats| repeats.syns,
    )?;
    counter(
        "backend_data_segments",
        "Segments with data of a sample of a backend's flows, if its service has outlier",
        |repeats| repeats.data,
    )?;
    counter(
        "backend_data_segments_again",
        "Those of backend_data_segments that had been sent before",
        |repeats| repeats.data_again,
    )?;
    let mut ejected = Family::gauge(
        encoder,
        "backend_ejected",
        "Whether a backend takes no new flows, while others can, for what its clients send again; if its service has outlier",
    )?;
    for (at, _) in counted {
        let (labels, backend) = &backends[*at];
        ejected.add(labels, backend.balance.ejected.is_some())?;
    }
    Ok(())
}

pub(super) fn backends(
    backends: &[(Labels, &BackendStatus)],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let mut share = Family::gauge(
        encoder,
        "backend_share_ratio",
        "A backend's share of its service's new flows",
    )?;
    for (labels, backend) in backends {
        let of_thousand = f64::from(backend.balance.per_mille);
        share.add(labels, Value::Ratio(of_thousand / 1_000.0))?;
    }
    let limited = || {
        backends.iter().filter_map(|(labels, backend)| {
            let connections = backend.balance.max_connections?;
            Some((labels, connections, backend.balance.full))
        })
    };
    let mut full = Family::gauge(
        encoder,
        "backend_full",
        "Whether a backend takes no new flows for its max_connections",
    )?;
    for (labels, _, is_full) in limited() {
        full.add(labels, is_full)?;
    }
    let mut max = Family::gauge(
        encoder,
        "backend_max_connections",
        "A backend's max_connections, if it has one",
    )?;
    for (labels, connections, _) in limited() {
        max.add(labels, u64::from(connections))?;
    }
    Ok(())
}
