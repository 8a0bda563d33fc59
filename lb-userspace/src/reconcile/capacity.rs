//! A configuration's limits beside the sizes of maps that were made for another one. Those stay while the daemon runs; at its start the flow
//! table alone is resized.

use lb_common::flow::v4;

use crate::{
    config::{Config, MAX_FLOWS},
    dataplane::{kernel::resize, maps::Capacity},
    flows::Fill,
};

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
pub(super) fn other_limits(config: &Config, capacity: &Capacity) -> Vec<String> {
    let (limits, path) = (&config.limits, config.path.display());
    let others: Vec<String> = [
        ("services", limits.services, capacity.services),
        ("backends", limits.backends, capacity.backends),
        ("table_slots", limits.table_slots, capacity.table_slots),
    ]
    .into_iter()
    .filter(|(_, configured, held)| configured != held)
    .map(|(key, configured, held)| format!("{key} = {held} (not {configured})"))
    .collect();
    let mut warnings = Vec::new();
    if !others.is_empty() {
        warnings.push(format!(
            "{path}: limits: the maps were made with {}, which stays in force; to change that, stop the daemon, run `tether cleanup` (which \
             forgets all flows) and start it again",
            others.join(", ")
        ));
    }
    // Limits that come to the same number of buckets are the same.
    if v4::buckets_for(limits.flows) != capacity.flow_buckets {
        warnings.push(format!(
            "{path}: limits: the flow table is made for flows = {} (not {}); restart the daemon to have it resized, which loses no flow",
            resize::flows_in(capacity.flow_buckets),
            limits.flows
        ));
    }
    warnings
}

/// What to say when the flow table has become so full.
pub(super) fn filling(config: &Config, fill: Fill, capacity: &Capacity) -> String {
    let flows = resize::flows_in(capacity.flow_buckets);
    let (percent, danger) = match fill {
        Fill::Low | Fill::Half => (50, "new flows find their places up to 60%"),
        Fill::High => (
            70,
            "new flows begin to find no place, and above 75% flows that were idle for long are reclaimed",
        ),
    };
    format!(
        "over {percent}% of the flow table is in use: {danger}; it is made for {flows} flows, so set flows = {} in [limits] of {} and restart the \
         daemon: flows go on, and are moved to a larger table (about 34 bytes for each flow; {} MiB more, and that of both tables while they \
         are moved)",
        (2 * flows).min(MAX_FLOWS.into()),
        config.path.display(),
        (flows * 34).div_ceil(1 << 20)
    )
}
