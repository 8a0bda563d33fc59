//! What the maps hold, as far as planning needs it. Slots stay where they are; of a table only a digest is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::atomic::Ordering,
};

use lb_common::{
    backend::Backend,
    clock::Tick,
    flow::word::BackendRef,
    guard::{Guard, RangesRef},
    maglev::{Slot, TableRef},
    nat::{Endpoint, Pair},
    net::IpVersion,
    service::Service,
    vip::VipBucket,
};

use super::{Operation, directory::Directory};
use crate::{
    dataplane::{
        array::{Array, Entry},
        maps::{Capacity, Maps},
    },
    guard,
};

/// What the maps hold.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Sizes.
    pub capacity: Capacity,
    /// Services in use, by id.
    pub services: BTreeMap<u16, ObservedService>,
    /// Backends in use, by id.
    pub backends: BTreeMap<u32, Backend>,
    /// The directory of IPv4 VIPs.
    pub vips4: Vec<VipBucket>,
    /// The directory of IPv6 VIPs.
    pub vips6: Vec<VipBucket>,
    /// What there is for the translation of addresses.
    pub translations: Translations,
    /// The directory of IPv4 endpoints.
    pub endpoints4: Vec<VipBucket>,
    /// The directory of IPv6 endpoints.
    pub endpoints6: Vec<VipBucket>,
    /// Guards that ask anything, by service id.
    pub guards: BTreeMap<u16, ObservedGuard>,
    /// What no longer is in use but may still be read.
    pub unsettled: Unsettled,
}

/// Endpoints and pairs, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translations {
    /// Endpoints.
    pub endpoints: BTreeMap<u16, Endpoint>,
    /// Pairs of a SNAT address and an endpoint.
    pub pairs: BTreeMap<u16, Pair>,
}

impl Translations {
    /// The SNAT addresses of a backend's pairs.
    pub fn snat_addresses(&self, backend: &Backend) -> Vec<IpAddr> {
        let pairs = backend.pairs.iter().filter_map(|id| self.pairs.get(id));
        pairs.map(|pair| pair.address.into()).collect()
    }
}

/// A service in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedService {
    /// Its entry.
    pub entry: Service,
    /// Its table; empty if the entry names one beyond the arena's end.
    pub table: TableRef,
    /// A digest of its slots' current owners.
    pub digest: u64,
    /// Backends that its slots name, current or previous; in order, without duplicates, without 0.
    pub named: Vec<u32>,
    /// When the oldest handover began that some slot still remembers.
    pub oldest_handover: Option<Tick>,
}

impl ObservedService {
    /// Whether a slot names a backend, as current or previous.
    pub fn names(&self, backend: u32) -> bool {
        self.named.binary_search(&backend).is_ok()
    }
}

/// A service's guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObservedGuard {
    /// Its entry.
    pub entry: Guard,
    /// Its ranges; none if the entry names some beyond their array's end.
    pub ranges: RangesRef,
    /// The [`guard::digest`] of its ranges.
    pub digest: u64,
}

fn read_all<T: Entry>(array: &Array<T>) -> Vec<T> {
    (0..array.len()).map(|index| array.get(index)).collect()
}

/// What no longer is in use but may still be read, until a grace period has passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsettled {
    /// Tables that were replaced.
    pub regions: Vec<TableRef>,
    /// Ranges that were replaced.
    pub ranges: Vec<RangesRef>,
    /// Backends whose state named another next hop before.
    pub hops: BTreeSet<u32>,
}

impl Observed {
    /// Reads everything. `unsettled` is what was so before, nothing after a grace period.
    pub fn read(maps: &Maps, unsettled: Unsettled, now: Tick) -> Self {
        let mut observed = Self {
            capacity: maps.capacity,
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            vips4: read_all(&maps.vips4),
            vips6: read_all(&maps.vips6),
            translations: Translations::default(),
            endpoints4: read_all(&maps.endpoints4),
            endpoints6: read_all(&maps.endpoints6),
            guards: BTreeMap::new(),
            unsettled,
        };
        for id in 0..u16::try_from(maps.services.len()).unwrap_or(u16::MAX) {
            observed.read_service(maps, id, now);
            observed.read_guard(maps, id);
        }
        for id in 0..maps.backends.len() {
            observed.read_backend(maps, id);
        }
        for id in 0..maps.endpoints.len() {
            observed.read_endpoint(maps, id as u16);
        }
        for id in 0..maps.pairs.len() {
            observed.read_pair(maps, id as u16);
        }
        observed
    }

    /// A directory.
    pub fn directory(&self, directory: Directory) -> &[VipBucket] {
        match directory {
            Directory::Vips(IpVersion::V4) => &self.vips4,
            Directory::Vips(IpVersion::V6) => &self.vips6,
            Directory::Endpoints(IpVersion::V4) => &self.endpoints4,
            Directory::Endpoints(IpVersion::V6) => &self.endpoints6,
        }
    }

    /// Reads anew what an operation has touched.
    pub fn follow(&mut self, maps: &Maps, operation: &Operation, now: Tick) {
        match *operation {
            Operation::SetState { backend: id, .. }
            | Operation::SetHop { backend: id, .. }
            | Operation::SetTranslated { backend: id, .. }
            | Operation::WriteBackend { id, .. }
            | Operation::ClearBackend { id } => self.read_backend(maps, id),
            Operation::WriteEndpoint { id, .. } | Operation::ClearEndpoint { id } => {
                self.read_endpoint(maps, id);
            }
            Operation::WritePair { id, .. } | Operation::ClearPair { id } => {
                self.read_pair(maps, id);
            }
            Operation::WriteTable {
                service, from, to, ..
            } => {
                // Until it is named, a table written aside concerns nobody.
                if from == to {
                    self.read_service(maps, service, now);
                }
            }
            Operation::NameTable { service: id, .. }
            | Operation::WriteService { id, .. }
            | Operation::ClearService { id }
            | Operation::ForgetHandovers { service: id, .. } => self.read_service(maps, id, now),
            Operation::SetWord {
                directory, bucket, ..
            } => {
                let (held, there) = match directory {
                    Directory::Vips(IpVersion::V4) => (&mut self.vips4, &maps.vips4),
                    Directory::Vips(IpVersion::V6) => (&mut self.vips6, &maps.vips6),
                    Directory::Endpoints(IpVersion::V4) => (&mut self.endpoints4, &maps.endpoints4),
                    Directory::Endpoints(IpVersion::V6) => (&mut self.endpoints6, &maps.endpoints6),
                };
                held[bucket as usize] = there.get(bucket);
            }
            Operation::WriteGuard { service, .. } => self.read_guard(maps, service),
            // Until they are named, ranges written aside concern nobody.
            Operation::WriteRanges { .. } | Operation::Grace => {}
        }
    }

    fn read_guard(&mut self, maps: &Maps, service: u16) {
        let entry = maps.guards.get(u32::from(service));
        if entry == Guard::default() {
            self.guards.remove(&service);
            return;
        }
        let mut ranges = RangesRef(entry.ranges);
        if u64::from(ranges.first()) + u64::from(ranges.len()) > u64::from(maps.ranges.len()) {
            ranges = RangesRef::default();
        }
        let indices = ranges.first()..ranges.first() + ranges.len();
        let digest = guard::digest(indices.map(|index| maps.ranges.get(index)));
        let observed = ObservedGuard {
            entry,
            ranges,
            digest,
        };
        self.guards.insert(service, observed);
    }

    fn read_backend(&mut self, maps: &Maps, id: u32) {
        let entry = maps.backends.get(id);
        if entry.identity == 0 {
            self.backends.remove(&id);
        } else {
            self.backends.insert(id, entry);
        }
    }

    fn read_endpoint(&mut self, maps: &Maps, id: u16) {
        let entry = maps.endpoints.get(u32::from(id));
        if entry.port == 0 {
            self.translations.endpoints.remove(&id);
        } else {
            self.translations.endpoints.insert(id, entry);
        }
    }

    fn read_pair(&mut self, maps: &Maps, id: u16) {
        let entry = maps.pairs.get(u32::from(id));
        if entry.endpoint == 0 {
            self.translations.pairs.remove(&id);
        } else {
            self.translations.pairs.insert(id, entry);
        }
    }

    fn read_service(&mut self, maps: &Maps, id: u16, now: Tick) {
        let entry = maps.services.get(u32::from(id));
        if entry.identity == 0 {
            self.services.remove(&id);
            return;
        }
        let mut table = TableRef(entry.table);
        if u64::from(table.offset()) + u64::from(table.size()) > u64::from(maps.tables.len()) {
            table = TableRef::new(0, 0, table.generation());
        }
        let slots = Slots::of(maps, table, now);
        self.services.insert(
            id,
            ObservedService {
                entry,
                table,
                digest: slots.digest,
                named: slots.named,
                oldest_handover: slots.oldest_handover,
            },
        );
    }
}

/// Words of 64 bits for as many bits as there are backend ids.
const NAMED_WORDS: usize = 1 << (BackendRef::ID_BITS - 6);

/// What a pass over a table's slots finds.
struct Slots {
    digest: u64,
    named: Vec<u32>,
    oldest_handover: Option<Tick>,
}

impl Slots {
    fn of(maps: &Maps, table: TableRef, now: Tick) -> Self {
        // A bit for each id that fits a slot.
        let mut named = vec![0u64; NAMED_WORDS];
        let mut note = |id: u32| named[(id / 64) as usize] |= 1 << (id % 64);
        let mut oldest: Option<u32> = None;
        let slots = (table.offset()..table.offset() + table.size())
            .map(|index| Slot(maps.tables.word(index, 0).load(Ordering::Acquire)));
        let digest = digest(slots.map(|slot| {
            note(slot.current());
            if slot.previous() != 0 {
                note(slot.previous());
                oldest = oldest.max(Some(slot.age(now)));
            }
            slot.current()
        }));
        // Id 0 is nobody.
        named[0] &= !1;
        let named = (0..).step_by(64).zip(named).flat_map(|(first, mut word)| {
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| word.trailing_zeros())?;
                word &= word - 1;
                Some(first + bit)
            })
        });
        let named = named.collect();
        Self {
            digest,
            named,
            oldest_handover: oldest.map(|age| Tick(now.0.wrapping_sub(age))),
        }
    }
}

/// A digest of a table's owners in their order.
pub(super) fn digest(owners: impl Iterator<Item = u32>) -> u64 {
    crate::digest::of_words(owners.map(u64::from))
}
