//! A configuration's limits beside the sizes of maps that were made for another one. Those stay: the maps hold flows.

use lb_common::flow::v4;

use crate::{config::Config, dataplane::maps::Capacity};

/// Whether the maps hold what is configured.
///
/// # Errors
/// When they do not: what there is too little of, and what to do.
pub(super) fn fits(config: &Config, capacity: &Capacity) -> Result<(), String> {
    let needs = config.needs();
    let sizes = [
        ("services", needs.services, capacity.services),
        ("backends", needs.backends, capacity.backends),
        ("table_slots", needs.table_slots, capacity.table_slots),
    ];
    let short = sizes
        .into_iter()
        .find(|&(_, needed, held)| needed > u64::from(held));
    match short {
        None => Ok(()),
        Some((key, needed, held)) => Err(format!(
            "{}: limits: the maps were made with {key} = {held}, {} too few for what is configured, and they hold flows; configure less, \
             or set {key} = {needed} or more in [limits], stop the daemon, run `tether cleanup` (which forgets all flows) and start it again",
            config.path.display(),
            needed - u64::from(held),
        )),
    }
}

/// What to warn of if the limits are not the sizes of the maps.
pub(super) fn other_limits(config: &Config, capacity: &Capacity) -> Option<String> {
    let limits = &config.limits;
    // Limits that come to the same number of buckets are the same.
    let flows_held = if v4::buckets_for(limits.flows) == capacity.flow_buckets {
        limits.flows
    } else {
        let places = u64::from(capacity.flow_buckets) * u64::from(v4::WAYS);
        u32::try_from(places * v4::LOAD.0 / v4::LOAD.1).unwrap_or(u32::MAX)
    };
    let others: Vec<String> = [
        ("flows", limits.flows, flows_held),
        ("services", limits.services, capacity.services),
        ("backends", limits.backends, capacity.backends),
        ("table_slots", limits.table_slots, capacity.table_slots),
    ]
    .into_iter()
    .filter(|(_, configured, held)| configured != held)
    .map(|(key, configured, held)| format!("{key} = {held} (not {configured})"))
    .collect();
    (!others.is_empty()).then(|| {
        format!(
            "{}: limits: the maps were made with {}, which stays in force; to change that, stop the daemon, run `tether cleanup` (which forgets \
             all flows) and start it again",
            config.path.display(),
            others.join(", ")
        )
    })
}
