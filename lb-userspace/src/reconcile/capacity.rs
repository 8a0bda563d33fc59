//! A configuration's limits beside the sizes of maps that were made for another one. Those stay while the daemon runs; at its start the flow
//! tables alone are resized.

use lb_common::{
    flow::bucket::{self, Facts},
    flow::{v4, v6},
    net::IpVersion,
};

use crate::{
    config::{Config, Limits},
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
        (
            "nat_pairs",
            needs.nat_pairs,
            capacity.pairs.saturating_sub(1),
        ),
        ("prefixes", needs.prefixes, capacity.ranges),
    ];
    untranslated(config, capacity)?;
    unmeasured(config, capacity)?;
    let short = sizes
        .into_iter()
        .find(|&(_, needed, held)| needed > u64::from(held));
    match short {
        None => Ok(()),
        Some((key, needed, held)) => Err(format!(
            "{}: limits: the maps were made with {key} = {held}, {} too few for what is configured, and they hold flows; configure less, \
             or set {key} = {needed} or more in [limits], stop the daemon, run `tether cleanup` (which forgets all flows) and start it again",
            place_of(config, key),
            needed - u64::from(held),
        )),
    }
}

/// Whether the flow tables have room for translations where a service needs them.
fn untranslated(config: &Config, capacity: &Capacity) -> Result<(), String> {
    let lacks = |version| config.translates(version) && !capacity.translates_flows_of(version);
    match [IpVersion::V4, IpVersion::V6]
        .into_iter()
        .find(|&version| lacks(version))
    {
        None => Ok(()),
        Some(version) => Err(format!(
            "{}: the IPv{} flow table was made without the translations that modes nat and dnat need; restart the daemon, which makes it anew \
             without losing a flow (if it was just started, its log says why it could not)",
            config.path.display(),
            version as u32
        )),
    }
}

/// Whether the program counts what clients send again where a service wants to know.
fn unmeasured(config: &Config, capacity: &Capacity) -> Result<(), String> {
    let mut services = config.services.iter();
    match services.find(|service| service.policy.outlier.is_some()) {
        Some(service) if !capacity.measures => Err(format!(
            "{}: service {:?}: outlier, where no service had it, takes effect only when the daemon starts; restart the daemon (flows go on)",
            config.path.display(),
            service.name
        )),
        _ => Ok(()),
    }
}

/// What to warn of if the limits are not the sizes of the maps: a line for each.
pub(super) fn other_limits(config: &Config, capacity: &Capacity) -> Vec<String> {
    let limits = &config.limits;
    let in_entries = [
        ("services", limits.services, capacity.services),
        ("backends", limits.backends, capacity.backends),
        ("table_slots", limits.table_slots, capacity.table_slots),
        (
            "nat_pairs",
            limits.nat_pairs,
            capacity.pairs.saturating_sub(1),
        ),
        ("prefixes", limits.prefixes, capacity.ranges),
    ]
    .into_iter()
    .filter(|(_, configured, held)| configured != held)
    .map(|(key, configured, held)| (key, configured, u64::from(held)));
    // Limits that come to the same number of buckets are the same.
    let differs = |configured, held| bucket::buckets_for(configured) != held;
    let in_buckets = [
        ("clients", limits.clients, capacity.affinity_buckets),
        ("sources", limits.sources, capacity.source_buckets),
    ]
    .into_iter()
    .filter(|&(_, configured, held)| differs(configured, held))
    .map(|(key, configured, held)| (key, configured, resize::flows_in(held)));
    let kept = in_entries.chain(in_buckets).map(|(key, configured, held)| {
        format!(
            "{}: limits: the maps were made with {key} = {held} (not {configured}), which stays in force; to change that, stop the daemon, run \
             `tether cleanup` (which forgets all flows) and start it again",
            place_of(config, key)
        )
    });
    let resized = [IpVersion::V4, IpVersion::V6]
        .into_iter()
        .map(|version| {
            let (configured, held) = (limits.flows_of(version), capacity.flow_buckets(version));
            (Limits::flows_key(version), configured, held)
        })
        .filter(|&(_, configured, held)| differs(configured, held))
        .map(|(key, configured, held)| {
            format!(
                "{}: limits: the flow table is made for {key} = {} (not {configured}); restart the daemon to have it resized, which loses no flow",
                place_of(config, key),
                resize::flows_in(held)
            )
        });
    kept.chain(resized).collect()
}

/// The file, and where in it a limit is, if it is there.
fn place_of(config: &Config, limit: &str) -> String {
    let path = config.path.display();
    match config.limit_places.get(limit) {
        Some(place) => format!("{path}:{}:{}", place.line, place.column),
        None => path.to_string(),
    }
}

/// What to say when the flow table of a version of IP has become so full.
pub(super) fn filling(
    config: &Config,
    version: IpVersion,
    fill: Fill,
    capacity: &Capacity,
) -> String {
    let flows = resize::flows_in(capacity.flow_buckets(version));
    let bytes = bytes_a_flow(version);
    let (percent, danger) = match fill {
        Fill::Low | Fill::Half => (50, "new flows find their places up to 60%"),
        Fill::High => (
            70,
            "new flows begin to find no place, and above 75% flows that were idle for long are reclaimed",
        ),
    };
    format!(
        "over {percent}% of the IPv{} flow table is in use: {danger}; it is made for {flows} flows, so set {} = {} in [limits] of {} and restart the \
         daemon: flows go on, and are moved to a larger table (about {bytes} bytes for each flow; {} MiB more, and that of both tables while they \
         are moved)",
        version as u32,
        Limits::flows_key(version),
        (2 * flows).min(Limits::most_flows(version).into()),
        config.path.display(),
        (flows * bytes).div_ceil(1 << 20)
    )
}

/// Bytes of memory for each flow that a table is made for, facts for people among them.
fn bytes_a_flow(version: IpVersion) -> u64 {
    let bucket = match version {
        IpVersion::V4 => size_of::<v4::Bucket>(),
        IpVersion::V6 => size_of::<v6::Bucket>(),
    };
    let (load, whole) = bucket::LOAD;
    ((bucket + size_of::<Facts>()) as u64 * whole).div_ceil(u64::from(bucket::WAYS) * load)
}
