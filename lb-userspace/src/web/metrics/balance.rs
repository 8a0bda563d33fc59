//! How new flows are spread.

use std::fmt;

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
        .try_for_each(|(labels, service, _)| moves.add(labels, service.balance.moves))
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
