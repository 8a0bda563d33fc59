//! From what is resolved and what the maps hold to the operations that make the second the first. Pure.
//!
//! Make before break: backends' states and entries first, then tables, then services, then the directory of VIPs that names
//! them; removal in reverse. After every single operation no service names a backend that is not there. A second plan right after is
//! empty.

mod arena;
mod directory;
mod entry;
mod guard;
mod observed;
mod operation;
mod tables;
mod translation;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::{
    clock::Tick,
    guard::RangesRef,
    maglev::{HANDOVER_TICKS, TableRef},
    net::IpVersion,
    service::Service,
    vip::VipEntry,
};

use self::{
    arena::Arena,
    entry::{change_of, is_entry_of, new_entry},
};
pub use self::{
    directory::{Directory, key_of},
    observed::{Observed, ObservedGuard, ObservedService, Translations, Unsettled},
    operation::Operation,
    tables::{Tables, owners},
};
use crate::{
    ids,
    resolve::{self, Placing, Translated},
};

/// What the maps are to hold.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Keys the tables.
    pub fleet_seed: &'a [u64; 4],
    /// All services and backends: what is in the maps and not here is taken out.
    pub services: &'a [resolve::Service<'a>],
    /// Services that packets no longer find, though their entries are still there.
    pub unlisted: &'a BTreeSet<u16>,
    /// Endpoints and pairs: the same holds of these.
    pub translations: &'a Translations,
    /// VIPs that the host has as addresses of its own.
    pub host_owned: &'a BTreeSet<IpAddr>,
}

/// What to do, in this order.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The operations.
    pub operations: Vec<Operation>,
    /// What cannot be done now, by service id, and why. Tried again with every plan.
    pub deferred: BTreeMap<u16, Deferred>,
    /// What no longer is in use but may still be read, once all operations are done.
    pub unsettled: Unsettled,
}

/// Why a service cannot be given what it needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Deferred {
    /// The arena has no free stretch for its table.
    #[error(
        "there is no room for its table of {slots} slots, the largest free stretch has {largest}; it waits for removed services' flows to end: raise limits.table_slots, run `tether cleanup` and start anew if it cannot wait"
    )]
    Arena {
        /// Slots needed.
        slots: u32,
        /// Slots of the largest free stretch.
        largest: u32,
    },
    /// There is no free stretch for the ranges of its lists.
    #[error(
        "there is no room for the {ranges} ranges of its allow and deny lists, the largest free stretch has {largest}; what they were before stays in force: raise limits.prefixes, run `tether cleanup` and start anew, or shorten them"
    )]
    Ranges {
        /// Ranges needed.
        ranges: u32,
        /// Ranges of the largest free stretch.
        largest: u32,
    },
    /// The directory of VIPs has no place.
    #[error(
        "the directory of VIPs has no place for it; raise limits.services, run `tether cleanup` and start anew"
    )]
    Directory,
    /// The directory of IPv6 VIPs has the same key for it and for this one.
    #[error(
        "the directory of IPv6 VIPs cannot tell its VIP and port from those of another service, {0}; give one of the two another port or address"
    )]
    VipAlike(SocketAddr),
    /// The directory of endpoints has no place.
    #[error(
        "the directory of endpoints has no place for the address of one of its backends; raise limits.backends, run `tether cleanup` and start anew"
    )]
    EndpointDirectory,
    /// The directory of IPv6 endpoints has the same key for one of its backends, the first, and for another.
    #[error(
        "the directory of IPv6 endpoints cannot tell its backend {0} from {1}; give one of the two another port or address"
    )]
    EndpointAlike(SocketAddr, SocketAddr),
    /// An endpoint or a pair has no number, or too many services or SNAT addresses have flows there.
    #[error("{0}")]
    Untranslated(String),
}

/// Plans how to get from `observed` to `wanted`.
pub fn plan(wanted: &Wanted<'_>, observed: &Observed, tables: &mut Tables, now: Tick) -> Plan {
    let mut planner = Planner {
        observed,
        now,
        plan: Plan {
            unsettled: observed.unsettled.clone(),
            ..Plan::default()
        },
        named: observed
            .services
            .iter()
            .map(|(&id, service)| (id, service.table))
            .collect(),
        cleared: BTreeSet::new(),
        arena: None,
        guarded: observed
            .guards
            .iter()
            .map(|(&id, guard)| (id, guard.ranges))
            .collect(),
        ranges: None,
        moved: BTreeSet::new(),
        longest_burst_ns: Planner::longest_burst_of(wanted.services),
    };
    planner.clear_unlisted(wanted);
    let unnamed = planner.translations(wanted);
    planner.backends(wanted);
    for service in wanted.services {
        planner.service(wanted, service, tables);
    }
    planner.directory_and_removal(wanted);
    planner.remove_guards(wanted);
    planner.remove_translations(wanted, unnamed);
    planner.handovers();
    planner.plan
}

struct Planner<'a> {
    observed: &'a Observed,
    now: Tick,
    plan: Plan,
    /// The tables as they will be named once the operations so far are done.
    named: BTreeMap<u16, TableRef>,
    /// Services whose entry of today is cleared; their ids may have other holders since.
    cleared: BTreeSet<u16>,
    /// Free stretches of the arena; made when first asked for.
    arena: Option<Arena>,
    /// The ranges as guards will name them once the operations so far are done, by service; a service without a guard has none.
    guarded: BTreeMap<u16, RangesRef>,
    /// Free stretches of the ranges; made when first asked for.
    ranges: Option<Arena>,
    /// Services whose ranges are had elsewhere, to make room; and whose guards are written so.
    moved: BTreeSet<u16>,
    /// The longest burst of all guards, in nanoseconds: see [`lb_common::guard::Guard::longest_burst_ns`].
    longest_burst_ns: u64,
}

impl Planner<'_> {
    fn push(&mut self, operation: Operation) {
        self.plan.operations.push(operation);
    }

    /// Adds operations, among which may be grace periods.
    fn push_all(&mut self, operations: Vec<Operation>) {
        for operation in operations {
            match operation {
                Operation::Grace => self.grace(),
                operation => self.push(operation),
            }
        }
    }

    fn grace(&mut self) {
        self.push(Operation::Grace);
        self.plan.unsettled = Unsettled::default();
        (self.arena, self.ranges) = (None, None);
    }

    /// States of backends that are there, then their next hops, then new backends.
    fn backends(&mut self, wanted: &Wanted<'_>) {
        let mut moving = Vec::new();
        let mut new = Vec::new();
        let pairs = wanted
            .services
            .iter()
            .flat_map(|service| service.backends.iter().map(|backend| (service.id, backend)));
        for (service, backend) in pairs {
            let id = backend.numbered.id;
            let held = self
                .observed
                .backends
                .get(&id)
                .filter(|held| is_entry_of(held, service, backend));
            let Some(held) = held else {
                new.push(Operation::WriteBackend {
                    id,
                    entry: Box::new(new_entry(service, backend)),
                });
                continue;
            };
            let held_translated = Translated {
                endpoint: held.endpoint,
                pairs: held.pairs,
            };
            if held_translated != backend.translated {
                self.push(Operation::SetTranslated {
                    backend: id,
                    to: backend.translated,
                });
            }
            let change = change_of(held, backend);
            match change.write {
                Some(next) => moving.push((id, next, change.state)),
                None if change.state.0 != held.state => self.push(Operation::SetState {
                    backend: id,
                    state: change.state,
                }),
                None => {}
            }
        }
        let still_read = |(id, ..): &(u32, _, _)| self.plan.unsettled.hops.contains(id);
        if moving.iter().any(still_read) {
            self.grace();
        }
        for (backend, next, state) in moving {
            self.push(Operation::SetHop {
                backend,
                hop: state.hop(),
                next,
            });
            self.push(Operation::SetState { backend, state });
            self.plan.unsettled.hops.insert(backend);
        }
        self.plan.operations.append(&mut new);
    }

    /// A service's table, then its entry.
    fn service(
        &mut self,
        wanted: &Wanted<'_>,
        service: &resolve::Service<'_>,
        tables: &mut Tables,
    ) {
        let identity = ids::service_identity(service.endpoint.vip, service.endpoint.port);
        let mut held = self.observed.services.get(&service.id);
        if held.is_some_and(|held| held.entry.identity != identity) {
            // The id's last holder, which nothing names any more. Its table must not become the history of this one's.
            self.clear_service(service.id);
            held = None;
        }
        let table = held.map_or(TableRef::default(), |held| held.table);
        let mut named = table;
        let mut backends = service.backends.iter();
        let mut traits = if backends.any(|backend| backend.mode.translates()) {
            Service::TRANSLATES
        } else {
            0
        };
        if self.guard(wanted, service) {
            traits |= Service::GUARDED;
        } else if held.is_none() && service.guard.is_some() {
            // Nobody is to find it open meanwhile.
            return;
        }
        let mut before = held.map(|held| held.entry);
        if let Some(entry) = &mut before
            && entry.traits | traits != entry.traits
        {
            // Before a slot names the first of the backends that translate, also where the table is written in its place.
            entry.traits |= traits;
            self.push(Operation::WriteService {
                id: service.id,
                entry: Box::new(*entry),
            });
        }
        if let Some(spec) = &service.table {
            match self.table(wanted, service, (spec, held), tables) {
                Some(placed) => named = placed,
                None => return,
            }
        }
        let (seed, placing) = match (service.placing, held) {
            (None, Some(held)) => (
                held.entry.seed,
                Placing {
                    group: held.entry.affinity,
                    ticks: held.entry.affinity_ticks,
                },
            ),
            (placing, _) => (service.seed, placing.unwrap_or_default()),
        };
        let entry = Service {
            table: named.0,
            seed,
            identity,
            vip: service.endpoint.vip.into(),
            port: service.endpoint.port,
            traits,
            affinity: placing.group,
            affinity_ticks: placing.ticks,
        };
        let unchanged = before.map(|before| Service {
            table: named.0,
            ..before
        });
        if unchanged != Some(entry) {
            self.push(Operation::WriteService {
                id: service.id,
                entry: Box::new(entry),
            });
        } else if held.is_some_and(|held| held.entry.table != named.0) {
            self.push(Operation::NameTable {
                service: service.id,
                table: named,
            });
        }
        if named != table && table.size() > 0 {
            self.plan.unsettled.regions.push(table);
        }
        self.named.insert(service.id, named);
    }

    /// A service's table, which is given; none if it has to wait for one to be found at all.
    fn table(
        &mut self,
        wanted: &Wanted<'_>,
        service: &resolve::Service<'_>,
        (spec, held): (&resolve::Table<'_>, Option<&ObservedService>),
        tables: &mut Tables,
    ) -> Option<TableRef> {
        let table = held.map_or(TableRef::default(), |held| held.table);
        // Where other clients have its slots from now on, it is written anew, even with the same owners: whom a slot had before is nothing to them.
        let alike = held.filter(|held| places_alike(held, service));
        let succeeds = alike.is_some();
        let spec = resolve::Table {
            // Without members any size does: that of today keeps today's owners as the previous ones.
            size: if spec.members.is_empty() {
                table.size()
            } else {
                spec.size
            },
            members: spec.members.clone(),
        };
        if spec.size == 0 {
            return Some(table);
        }
        if spec.size == table.size() {
            let owners = tables.owners_if_changed(wanted.fleet_seed, service, &spec, alike);
            return Some(match owners {
                Some(owners) => self.rewrite(service.id, table, succeeds, owners),
                None => table,
            });
        }
        // Room comes first: while it is waited for, each plan would build what waits, and that of today anew for it.
        if let Some(offset) = self.room(spec.size) {
            let (owners, _) = tables.build(wanted.fleet_seed, service, &spec);
            let to = aside(table, offset, spec.size);
            return Some(self.write(service.id, (table, succeeds), to, owners));
        }
        let deferred = Deferred::Arena {
            slots: spec.size,
            largest: self.arena().largest(),
        };
        self.plan.deferred.insert(service.id, deferred);
        held?;
        // It may be days until there is room. Meanwhile that of today takes in what changes, if it has a slot for each.
        let today = resolve::Table {
            size: table.size(),
            ..spec
        };
        if today.size as usize >= today.members.len().max(2)
            && let Some(owners) =
                tables.owners_if_changed(wanted.fleet_seed, service, &today, alike)
        {
            self.write(service.id, (table, succeeds), table, owners);
        }
        Some(table)
    }

    /// Takes room for a table, if there is any once nobody reads what is no longer named.
    fn room(&mut self, size: u32) -> Option<u32> {
        let offset = self.arena().take(size);
        if offset.is_some() || self.plan.unsettled.regions.is_empty() {
            return offset;
        }
        self.grace();
        self.arena().take(size)
    }

    /// Writes a table of the size of today's aside, or where the arena is full slot by slot in its place, which is as safe: every slot is one word.
    fn rewrite(
        &mut self,
        service: u16,
        old: TableRef,
        succeeds: bool,
        owners: Arc<[u32]>,
    ) -> TableRef {
        let to = match self.room(old.size()) {
            Some(offset) => aside(old, offset, old.size()),
            None => old,
        };
        self.write(service, (old, succeeds), to, owners)
    }

    fn write(
        &mut self,
        service: u16,
        (from, succeeds): (TableRef, bool),
        to: TableRef,
        owners: Arc<[u32]>,
    ) -> TableRef {
        self.push(Operation::WriteTable {
            service,
            from,
            succeeds,
            to,
            owners,
            now: self.now,
        });
        to
    }

    fn arena(&mut self) -> &mut Arena {
        self.arena.get_or_insert_with(|| {
            let unsettled = self.plan.unsettled.regions.iter();
            let tables = self.named.values().chain(unsettled);
            Arena::without(
                self.observed.capacity.table_slots,
                tables.map(|table| (table.offset(), table.size())),
            )
        })
    }

    /// New words of the directory; then what is no longer wanted: words, services, backends.
    fn directory_and_removal(&mut self, wanted: &Wanted<'_>) {
        let listed: Vec<_> = wanted
            .services
            .iter()
            .filter(|service| {
                !wanted.unlisted.contains(&service.id) && self.named.contains_key(&service.id)
            })
            .map(|service| (service.endpoint, service.id))
            .collect();
        let mut removals = Vec::new();
        for version in IpVersion::ALL {
            let held = self.observed.directory(Directory::Vips(version));
            let changes = directory::arrange(version, held, &listed, wanted.host_owned);
            self.push_all(changes.additions);
            for service in changes.unplaced {
                self.plan.deferred.insert(service, Deferred::Directory);
            }
            for (service, other) in changes.alike {
                if let Some((of_other, _)) = listed.iter().find(|(_, id)| *id == other) {
                    let deferred = Deferred::VipAlike(SocketAddr::new(of_other.vip, of_other.port));
                    self.plan.deferred.insert(service, deferred);
                }
            }
            removals.extend(changes.removals);
        }
        let unnamed = !removals.is_empty();
        self.plan.operations.extend(removals);

        let services: HashSet<u16> = wanted.services.iter().map(|service| service.id).collect();
        let gone: Vec<u16> = self
            .observed
            .services
            .keys()
            .copied()
            .filter(|id| !services.contains(id) && !self.cleared.contains(id))
            .collect();
        if unnamed && !gone.is_empty() {
            self.grace();
        }
        for id in gone {
            self.clear_service(id);
        }
        self.clear_backends(wanted);
    }

    /// Services that are not wanted and that no packet finds: first of all, since the ids of their backends may be others' already.
    fn clear_unlisted(&mut self, wanted: &Wanted<'_>) {
        let wanted: HashSet<u16> = wanted.services.iter().map(|service| service.id).collect();
        let observed = self.observed;
        let gone: Vec<u16> = observed
            .services
            .keys()
            .copied()
            .filter(|id| !wanted.contains(id))
            .collect();
        if gone.is_empty() {
            return;
        }
        // A VIP's own word in IPv4, with port 0, has flags in the place of an id.
        let names_service = |word: &VipEntry| word.own_key() >> 16 & 0xffff != 0;
        let words = |version| {
            let buckets = observed.directory(Directory::Vips(version)).iter();
            buckets.flat_map(|bucket| bucket.entries.map(VipEntry))
        };
        let listed: HashSet<u16> = words(IpVersion::V4)
            .filter(names_service)
            .chain(words(IpVersion::V6))
            .map(VipEntry::value)
            .collect();
        for id in gone.into_iter().filter(|id| !listed.contains(id)) {
            self.clear_service(id);
        }
    }

    fn clear_service(&mut self, id: u16) {
        self.push(Operation::ClearService { id });
        self.cleared.insert(id);
        self.clear_guard(id);
        if let Some(table) = self.named.remove(&id)
            && table.size() > 0
        {
            self.plan.unsettled.regions.push(table);
        }
    }

    /// Backends that are not wanted and that no table names, nor did when this plan began.
    fn clear_backends(&mut self, wanted: &Wanted<'_>) {
        let kept: HashSet<u32> = wanted
            .services
            .iter()
            .flat_map(|service| &service.backends)
            .map(|backend| backend.numbered.id)
            .collect();
        let gone: Vec<u32> = self
            .observed
            .backends
            .keys()
            .copied()
            .filter(|id| !kept.contains(id))
            .collect();
        if gone.is_empty() {
            return;
        }
        let named: HashSet<u32> = self
            .named
            .keys()
            .filter(|service| !self.cleared.contains(service))
            .filter_map(|service| self.observed.services.get(service))
            .flat_map(|service| service.named.iter().copied())
            .collect();
        for id in gone.into_iter().filter(|id| !named.contains(id)) {
            self.push(Operation::ClearBackend { id });
        }
    }

    /// Previous owners whose handover is over.
    fn handovers(&mut self) {
        for (&id, service) in &self.observed.services {
            let table = service.table;
            let over = service
                .oldest_handover
                .is_some_and(|changed| self.now.since(changed) >= HANDOVER_TICKS);
            // A table that is about to be replaced leaves behind by itself what is over.
            if over && self.named.get(&id) == Some(&table) {
                self.push(Operation::ForgetHandovers {
                    service: id,
                    table,
                    now: self.now,
                });
            }
        }
    }
}

/// Whether a service's clients have the slots that they had, in a table of the same size.
fn places_alike(held: &ObservedService, service: &resolve::Service<'_>) -> bool {
    let places_clients = |group: u16| group != 0;
    let before = held.entry.affinity;
    let group = service.placing.map_or(before, |placing| placing.group);
    held.entry.seed == service.seed && places_clients(before) == places_clients(group)
}

/// A table of so many slots at an offset, in the place of an old one.
const fn aside(old: TableRef, offset: u32, size: u32) -> TableRef {
    TableRef::new(offset, size, old.generation().wrapping_add(1))
}

#[cfg(test)]
mod tests;
