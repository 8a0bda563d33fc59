//! How large the maps are.

use lb_common::{counters::Layout, flow::bucket, maps::default, net::IpVersion, vip};

/// Sizes of the maps, fixed while they live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Buckets of the IPv4 flow table.
    pub flow4_buckets: u32,
    /// Buckets of the IPv6 flow table.
    pub flow6_buckets: u32,
    /// Services.
    pub services: u32,
    /// Backends; id 0 is never used, so one less can be held.
    pub backends: u32,
    /// Slots in the arena.
    pub table_slots: u32,
    /// Buckets of clients that keep their backends.
    pub affinity_buckets: u32,
    /// Possible CPUs.
    pub cpus: u32,
    /// Buckets of translations of IPv4 flows: as many as the flow table has, or 0 if no service translates.
    pub nat4_buckets: u32,
    /// Buckets of translations of IPv6 flows: as many as the flow table has, or 0 if no service translates.
    pub nat6_buckets: u32,
    /// Endpoints, of backends of modes `nat` and `dnat` and of those on this host; id 0 is never used, so one less can be held.
    pub endpoints: u32,
    /// Pairs of a SNAT address and an endpoint; id 0 is never used, so one less can be held.
    pub pairs: u32,
    /// Ranges of client addresses, of all services' guards.
    pub ranges: u32,
    /// Buckets of sources that are told apart.
    pub source_buckets: u32,
    /// Whether the programs guard services. No map's size follows from it: it can change while the maps live.
    pub guards: bool,
    /// Whether the program counts what clients send again. The maps of that are never pinned, so this alone is of the program and not of the maps.
    pub measures: bool,
}

impl Capacity {
    /// For `flows4` IPv4 and `flows6` IPv6 flows at the design load.
    pub fn for_flows(
        flows4: u32,
        flows6: u32,
        services: u32,
        backends: u32,
        table_slots: u32,
        cpus: u32,
    ) -> Self {
        Self {
            flow4_buckets: bucket::buckets_for(flows4),
            flow6_buckets: bucket::buckets_for(flows6),
            services,
            backends,
            table_slots,
            affinity_buckets: bucket::buckets_for(0),
            cpus,
            nat4_buckets: 0,
            nat6_buckets: 0,
            endpoints: 0,
            pairs: 0,
            ranges: default::RANGES,
            source_buckets: bucket::buckets_for(default::SOURCES),
            guards: false,
            measures: false,
        }
    }

    /// The same with room for so many ranges of client addresses and so many sources.
    #[must_use]
    pub fn with_guards(self, ranges: u32, sources: u32) -> Self {
        Self {
            ranges,
            source_buckets: bucket::buckets_for(sources),
            ..self
        }
    }

    /// The same for programs that guard services, or that do not.
    #[must_use]
    pub fn guarding(self, guards: bool) -> Self {
        Self { guards, ..self }
    }

    /// The same for a program that counts what clients send again, or for one that does not.
    #[must_use]
    pub fn measuring(self, measures: bool) -> Self {
        Self { measures, ..self }
    }

    /// The same with room for so many clients that keep their backends.
    #[must_use]
    pub fn with_affinities(self, clients: u32) -> Self {
        Self {
            affinity_buckets: bucket::buckets_for(clients),
            ..self
        }
    }

    /// The same with room for so many pairs of a SNAT address and an endpoint, and for all backends' endpoints.
    #[must_use]
    pub fn with_pairs(self, pairs: u32) -> Self {
        Self {
            endpoints: self.backends.min(1 << 16),
            pairs: pairs + 1,
            ..self
        }
    }

    /// The same with translations beside the flow table of a version of IP, or without.
    #[must_use]
    pub fn translating_flows_of(self, version: IpVersion, translates: bool) -> Self {
        let buckets = if translates {
            self.flow_buckets(version)
        } else {
            0
        };
        match version {
            IpVersion::V4 => Self {
                nat4_buckets: buckets,
                ..self
            },
            IpVersion::V6 => Self {
                nat6_buckets: buckets,
                ..self
            },
        }
    }

    /// Whether there are translations beside the flow table of a version of IP.
    pub fn translates_flows_of(&self, version: IpVersion) -> bool {
        let buckets = match version {
            IpVersion::V4 => self.nat4_buckets,
            IpVersion::V6 => self.nat6_buckets,
        };
        buckets != 0
    }

    /// Pairs whose ports have slots: all of them, or id 0 alone where no flow is translated.
    pub fn pairs_with_slots(&self) -> u32 {
        if self.translates() {
            self.pairs.max(1)
        } else {
            1
        }
    }

    /// Whether there is room for what modes `nat` and `dnat` need.
    pub fn translates(&self) -> bool {
        self.nat4_buckets != 0 || self.nat6_buckets != 0
    }

    /// Buckets of the flow table of a version of IP.
    pub fn flow_buckets(&self, version: IpVersion) -> u32 {
        match version {
            IpVersion::V4 => self.flow4_buckets,
            IpVersion::V6 => self.flow6_buckets,
        }
    }

    /// Buckets in each directory of VIPs.
    pub fn vip_buckets(&self) -> u32 {
        vip::buckets_for(self.services)
    }

    /// Buckets in each directory of endpoints.
    pub fn endpoint_buckets(&self) -> u32 {
        vip::buckets_for(self.endpoints)
    }

    /// Shape of the counters array.
    pub fn counters(&self) -> Layout {
        Layout::new(self.services, self.backends)
    }

    /// Entries in the counters array.
    pub fn counter_entries(&self) -> u32 {
        self.counters().per_cpu * self.cpus
    }
}
