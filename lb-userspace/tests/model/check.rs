//! What the data path relies on, and what is promised.

use std::{collections::BTreeSet, net::IpAddr, sync::atomic::Ordering, time::Duration};

use lb_common::{
    backend::{Mode, Serving},
    guard::RangesRef,
    maglev::TableRef,
    net::IpVersion,
    service::Service,
    vip::{VipEntry, WAYS, homes},
};
use lb_userspace::{
    balance::zone::Zone,
    dataplane::maps::Maps,
    guard::Guard,
    model::{Admin, Health},
    plan::{Operation, Plan, key_of},
};

use super::{FlowTranslation, LIMITS, VIPS, World, outliers::StandBack};

impl World {
    /// What packets under way may read is not written, and what they read from now on is noted.
    pub(super) fn check_nobody_reads(&mut self, operation: &Operation) {
        let overlaps = |a: &TableRef, b: &TableRef| {
            a.size() > 0
                && b.size() > 0
                && a.offset() < b.offset() + b.size()
                && b.offset() < a.offset() + a.size()
        };
        let held = |service: u16| TableRef(self.maps.services.get(u32::from(service)).table);
        match operation {
            Operation::WriteTable { from, to, .. } if from != to => {
                for service in 1..LIMITS.services as u16 {
                    assert!(
                        !overlaps(to, &held(service)),
                        "{operation}: in use by service {service}"
                    );
                }
                for table in &self.readable.tables {
                    assert!(!overlaps(to, table), "{operation}: may still be read");
                }
            }
            Operation::WriteRanges { to, .. } => {
                let overlaps = |other: &RangesRef| {
                    let ends = |ranges: &RangesRef| ranges.first() + ranges.len();
                    !other.is_empty() && to.first() < ends(other) && other.first() < ends(to)
                };
                for id in 0..self.maps.guards.len() {
                    let held = RangesRef(self.maps.guards.get(id).ranges);
                    assert!(!overlaps(&held), "{operation}: in use by service {id}");
                }
                for ranges in &self.readable.ranges {
                    assert!(!overlaps(ranges), "{operation}: may still be read");
                }
            }
            Operation::WriteGuard { service, .. } => {
                let held = self.maps.guards.get(u32::from(*service)).ranges;
                self.readable.ranges.push(RangesRef(held));
            }
            Operation::NameTable { service: id, .. }
            | Operation::WriteService { id, .. }
            | Operation::ClearService { id } => {
                let table = held(*id);
                self.readable.tables.push(table);
            }
            Operation::SetHop { backend, hop, .. } => {
                assert_ne!(
                    self.maps.state(*backend).hop(),
                    *hop,
                    "{operation}: in force"
                );
                assert!(
                    !self.readable.hops.contains(&(*backend, *hop)),
                    "{operation}: may still be read"
                );
            }
            Operation::SetState { backend, state } => {
                let old = self.maps.state(*backend).hop();
                if old != state.hop() {
                    self.readable.hops.insert((*backend, old));
                }
            }
            _ => {}
        }
    }

    pub(super) fn check_invariants(&self, operation: &Operation) {
        let mut tables: Vec<TableRef> = Vec::new();
        for id in 1..LIMITS.services as u16 {
            let service = self.maps.services.get(u32::from(id));
            if service.identity == 0 {
                assert_eq!(
                    service.table, 0,
                    "{operation}: an unused service has a table"
                );
                continue;
            }
            let table = TableRef(service.table);
            for index in table.offset()..table.offset() + table.size() {
                let slot = self.maps.tables.get(index);
                for backend in [slot.current(), slot.previous()] {
                    let entry = self.maps.backends.get(backend);
                    assert!(
                        backend == 0 || (entry.identity != 0 && entry.service == id),
                        "{operation}: service {id} names backend {backend}, which is not there"
                    );
                }
            }
            for other in &tables {
                let apart = table.offset() >= other.offset() + other.size()
                    || other.offset() >= table.offset() + table.size();
                assert!(
                    apart || table.size() == 0 || other.size() == 0,
                    "{operation}: tables overlap"
                );
            }
            tables.push(table);
        }
        for (version, entry) in directories(&self.maps) {
            // A VIP's own entry in IPv4 names no service.
            if version == IpVersion::V4 && entry.own_key() >> 16 & 0xffff == 0 {
                continue;
            }
            let service = self.maps.services.get(u32::from(entry.value()));
            let vip = service.vip.into();
            let names_it = entry.is_for(key_of(vip, service.port))
                || version == IpVersion::V6 && entry.is_for(key_of(vip, 0));
            assert!(
                names_it && service.identity != 0,
                "{operation}: the directory names a service that is not there"
            );
        }
        self.check_translations(operation);
        self.check_guards(operation);
        for flow in &self.flows {
            let (id, generation) = flow.backend;
            let entry = self.maps.backends.get(id);
            assert_eq!(
                (entry.identity, self.maps.state(id).generation()),
                (flow.identity, generation),
                "{operation}: the backend of a flow is gone: {flow:?}"
            );
        }
    }

    /// A service that says that it has a guard has one that was asked for, whole.
    fn check_guards(&self, operation: &Operation) {
        for id in 1..LIMITS.services as u16 {
            let service = self.maps.services.get(u32::from(id));
            let is_guarded = service.identity != 0 && service.traits & Service::GUARDED != 0;
            if !is_guarded || self.unguarded.contains(&id) {
                continue;
            }
            let entry = self.maps.guards.get(u32::from(id));
            let is_wanted = self.guards.iter().any(|guard| self.is_in_force(id, guard));
            assert!(is_wanted, "{operation}: service {id} has {entry:?}");
        }
    }

    /// Whether a guard is what the maps hold for a service.
    fn is_in_force(&self, id: u16, guard: &Guard) -> bool {
        let entry = self.maps.guards.get(u32::from(id));
        let ranges = RangesRef(entry.ranges);
        let indices = ranges.first()..ranges.first() + ranges.len();
        let own = guard.entry(ranges);
        // How much sources of other services can save up is told of all, and not only of those that are in force.
        let wanted = lb_common::guard::Guard {
            longest_burst_ns: entry.longest_burst_ns.max(own.burst_ns),
            ..own
        };
        entry == wanted
            && IpVersion::of(self.maps.services.get(u32::from(id)).vip.into()) == guard.version
            && indices
                .map(|index| self.maps.ranges.get(index))
                .eq(guard.ranges.iter().copied())
    }

    /// What a backend names is there, and what a reply is translated by stays as it was for as long as there is a flow.
    fn check_translations(&self, operation: &Operation) {
        let maps = &self.maps;
        for id in 1..LIMITS.backends {
            let backend = maps.backends.get(id);
            if backend.identity == 0 || backend.endpoint == 0 {
                assert_eq!(backend.pairs, [0; 8], "{operation}: pairs of no endpoint");
                continue;
            }
            let endpoint = maps.endpoints.get(backend.endpoint.into());
            assert_eq!(
                (endpoint.address, endpoint.port),
                (backend.address, backend.port),
                "{operation}: the endpoint of backend {id}"
            );
            for pair in backend.pairs.into_iter().filter(|&pair| pair != 0) {
                assert_eq!(
                    maps.pairs.get(pair.into()).endpoint,
                    backend.endpoint,
                    "{operation}: pair {pair} of backend {id}"
                );
                assert!(
                    endpoint.pairs.contains(&pair),
                    "{operation}: replies to pair {pair} are not found"
                );
            }
        }
        for version in IpVersion::ALL {
            for (bucket, way) in places(maps.capacity.endpoint_buckets()) {
                let words = maps.endpoint_words(version);
                let word = VipEntry(words.word(bucket, way).load(Ordering::Relaxed));
                let endpoint = maps.endpoints.get(word.value().into());
                assert!(
                    word.0 == 0 || word.is_for(key_of(endpoint.address.into(), endpoint.port)),
                    "{operation}: the directory names an endpoint that is not there"
                );
            }
        }
        for flow in &self.flows {
            let Some(translated) = flow.translated else {
                continue;
            };
            let (id, began) = translated.endpoint;
            let endpoint = maps.endpoints.get(id.into());
            assert_eq!(
                (endpoint.address, endpoint.port),
                (began.address, began.port),
                "{operation}: the endpoint of a flow is gone: {flow:?}"
            );
            if let Some((id, began)) = translated.pair {
                assert_eq!(maps.pairs.get(id.into()), began, "{operation}: {flow:?}");
                assert!(endpoint.pairs.contains(&id), "{operation}: {flow:?}");
            }
        }
    }

    /// What holds of the translation of addresses once a plan is applied whole.
    fn check_translated(&self) {
        let maps = &self.maps;
        for flow in &self.flows {
            if let Some(FlowTranslation { endpoint, pair }) = flow.translated {
                let (id, endpoint) = endpoint;
                let address = (endpoint.address.into(), endpoint.port);
                assert_eq!(look_up_endpoint(maps, address), Some(id), "{flow:?}");
                let services = maps.endpoints.get(id.into()).services;
                // Where its service has come from mode `dnat`, flows of then may be there still.
                let by_destination = (1..LIMITS.backends).any(|backend| {
                    let entry = maps.backends.get(backend);
                    entry.identity != 0
                        && entry.endpoint == id
                        && entry.service == flow.service
                        && entry.pairs == [0; 8]
                });
                assert_eq!(
                    services.contains(&flow.service),
                    pair.is_none() || by_destination,
                    "{flow:?}: {services:?}"
                );
            }
        }
        for id in 1..LIMITS.backends {
            let backend = maps.backends.get(id);
            let state = maps.state(id);
            if backend.identity == 0 || !state.translates() || !state.is_resolved() {
                continue;
            }
            let address = (backend.address.into(), backend.port);
            assert_eq!(look_up_endpoint(maps, address), Some(backend.endpoint));
            let service = maps.services.get(backend.service.into());
            let wanted = self.config.services.iter().find(|wanted| {
                wanted.mode == Mode::Nat
                    && (wanted.vip, wanted.port) == (service.vip.into(), service.port)
                    && wanted.backends.iter().any(|backend| {
                        (backend.address, backend.port) == address
                            && state.serving() == Serving::New
                    })
            });
            if let Some(wanted) = wanted {
                let snat: Vec<IpAddr> = backend
                    .pairs
                    .into_iter()
                    .filter(|&pair| pair != 0)
                    .map(|pair| maps.pairs.get(pair.into()).address.into())
                    .collect();
                assert!(!snat.is_empty() && snat.len() <= wanted.snat.len());
                assert!(snat.iter().all(|address| wanted.snat.contains(address)));
            }
        }
    }

    /// What holds once a plan is applied whole.
    pub(super) fn check_converged(&mut self, plan: &Plan) {
        let again = self.state.plan(self.now);
        let shown: Vec<String> = again.operations.iter().map(ToString::to_string).collect();
        assert!(shown.is_empty(), "a second plan: {shown:#?}");
        assert_eq!(again.unsettled, plan.unsettled);
        self.check_translated();
        for flow in &self.flows {
            assert_eq!(
                look_up(&self.maps, flow.vip),
                Some(flow.service),
                "a flow's service is gone: {flow:?}"
            );
        }
        let status = self.state.status(Vec::new(), Vec::new(), Duration::ZERO);
        for vip in VIPS {
            let is_listed = (80..82).any(|port| look_up(&self.maps, (vip, port)).is_some());
            let expected = match (vip, self.own.contains(&vip)) {
                _ if !is_listed => None,
                (IpAddr::V4(_), own) => Some(if own { VipEntry::HOST_OWNED } else { 0 }),
                (IpAddr::V6(_), true) => None,
                // The one with the lower id, which the invariants compare with the VIP.
                (IpAddr::V6(_), false) => (80..82)
                    .filter_map(|port| look_up(&self.maps, (vip, port)))
                    .min(),
            };
            assert_eq!(look_up(&self.maps, (vip, 0)), expected, "{vip}");
        }
        for service in &status.services {
            if service.removed || service.error.is_some() {
                continue;
            }
            let mut services = self.config.services.iter();
            let wanted = services.find(|wanted| wanted.name == service.name);
            let wanted = wanted.expect("it is configured");
            let guarded = look_up(&self.maps, (service.vip, service.port));
            let guarded = guarded.expect("a wanted service is listed");
            let traits = self.maps.services.get(u32::from(guarded)).traits;
            assert_eq!(
                traits & Service::GUARDED != 0,
                wanted.guard.is_some(),
                "the guard of {}",
                service.name
            );
            if let Some(guard) = &wanted.guard {
                assert!(self.is_in_force(guarded, guard), "{}", service.name);
            }
            let measured = self.maps.measured.as_ref();
            assert_eq!(
                measured.is_some_and(|measured| measured.measures(guarded)),
                wanted.policy.outlier.is_some(),
                "what clients of {} send again is counted",
                service.name
            );
            let stand_back = StandBack::of(service, wanted.min_healthy);
            let wanted = &wanted.backends;
            let there = service.backends.iter().filter(|backend| !backend.removed);
            let there: BTreeSet<&str> = there.map(|b| b.name.as_str()).collect();
            let named: BTreeSet<&str> = wanted.iter().map(|b| b.name.as_str()).collect();
            assert_eq!(there, named, "the backends of {}", service.name);
            let is_local = |name: &str| {
                let mut named = wanted.iter().filter(|backend| backend.name == name);
                named.any(|backend| backend.part.zone == Zone::Local)
            };
            let id = look_up(&self.maps, (service.vip, service.port))
                .expect("a wanted service is listed");
            let table = TableRef(self.maps.services.get(u32::from(id)).table);
            let owners: BTreeSet<u32> = (table.offset()..table.offset() + table.size())
                .map(|index| self.maps.tables.get(index).current())
                .filter(|&owner| owner != 0)
                .collect();
            let new: BTreeSet<u32> = (1..LIMITS.backends)
                .filter(|&id| self.maps.backends.get(id).identity != 0)
                .filter(|&backend| self.maps.backends.get(backend).service == id)
                .filter(|&id| self.maps.state(id).serving() == Serving::New)
                .collect();
            assert!(
                owners.is_subset(&new),
                "the table's owners are among those that take new flows: {owners:?}, {new:?}"
            );
            // The tables of these lives are so small that a sixteenth of a weight, or one of several hundred that spill, may be no slot.
            let small = service.backends.iter().filter(|b| {
                let slots = u32::from(b.balance.per_mille) * table.size() / 1_000;
                b.balance.starting || (b.serving == Serving::New && slots == 0)
            });
            assert!(
                new.len() - owners.len() <= small.count(),
                "who takes new flows owns slots: {owners:?}, {new:?}"
            );
            let takes = |backup| {
                let mut takers = service
                    .backends
                    .iter()
                    .filter(|b| b.serving == Serving::New);
                takers.any(|taker| taker.balance.backup == backup)
            };
            assert!(
                service.fail_open || !(takes(true) && takes(false)),
                "{service:?}"
            );
            assert_eq!(service.balance.backups, takes(true) && !service.fail_open);
            let new = service
                .backends
                .iter()
                .filter(|b| b.serving == Serving::New);
            let local_takes_all = !service.balance.spills
                && !service.fail_open
                && new.clone().any(|taker| is_local(&taker.name));
            let sum: u16 = new.map(|taker| taker.balance.per_mille).sum();
            assert!(owners.is_empty() || sum.abs_diff(1_000) <= 5, "{service:?}");
            for backend in &service.backends {
                let connections = backend.flows.live();
                let limit = backend.balance.max_connections.map(u64::from);
                let full = backend.balance.full;
                assert!(
                    limit.is_none_or(|limit| connections < limit || full),
                    "{backend:?}"
                );
                assert!(limit.is_some() || !full, "{backend:?}");
                let may = !backend.removed
                    && backend.admin == Admin::Active
                    && backend.weight > 0
                    && !full
                    && (!backend.balance.backup || service.balance.backups || service.fail_open)
                    && (is_local(&backend.name) || !local_takes_all);
                let takes = backend.serving == Serving::New;
                let held = backend.health == Health::Unknown;
                assert!(may || !takes, "{backend:?}");
                if backend.balance.ejected.is_some() {
                    assert!(
                        stand_back != StandBack::ForSure || !takes,
                        "the ejected stand back: {backend:?}"
                    );
                    // Else it takes new flows like all others.
                    if stand_back != StandBack::Never {
                        continue;
                    }
                }
                if may && (backend.health == Health::Up || service.fail_open) {
                    assert!(takes, "{backend:?}");
                }
                if may && !service.fail_open && !held {
                    assert_eq!(takes, backend.health == Health::Up, "{backend:?}");
                }
            }
        }
    }
}

/// What the data path finds for a VIP and port: a service, and for port 0 what the VIP's own entry says.
pub(super) fn look_up(maps: &Maps, (vip, port): (IpAddr, u16)) -> Option<u16> {
    let (key, version) = (key_of(vip, port), IpVersion::of(vip));
    homes(key, maps.capacity.vip_buckets())
        .into_iter()
        .flat_map(|bucket| (0..WAYS).map(move |way| maps.vip(version, bucket, way)))
        .find(|entry| entry.is_for(key))
        .map(VipEntry::value)
}

/// The endpoint that the data path finds for an address and port.
fn look_up_endpoint(maps: &Maps, (address, port): (IpAddr, u16)) -> Option<u16> {
    let (key, version) = (key_of(address, port), IpVersion::of(address));
    homes(key, maps.capacity.endpoint_buckets())
        .into_iter()
        .flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)))
        .map(|(bucket, way)| maps.endpoint_words(version).word(bucket, way))
        .map(|word| VipEntry(word.load(Ordering::Relaxed)))
        .find(|entry| entry.is_for(key))
        .map(VipEntry::value)
}

pub(super) fn places(buckets: u32) -> impl Iterator<Item = (u32, usize)> {
    (0..buckets).flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)))
}

/// All entries of both directories.
pub(super) fn directories(maps: &Maps) -> Vec<(IpVersion, VipEntry)> {
    IpVersion::ALL
        .into_iter()
        .flat_map(|version| {
            let buckets = 0..maps.capacity.vip_buckets();
            buckets
                .flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)))
                .map(move |(bucket, way)| (version, maps.vip(version, bucket, way)))
        })
        .filter(|(_, entry)| entry.0 != 0)
        .collect()
}
