//! All maps of an instance as mapped memory: what the reconciler writes and the listings read.
//!
//! Storing to them cannot fail, so every operation of a plan is a handful of stores.

use std::{
    collections::BTreeSet,
    mem::offset_of,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering, fence},
};

use lb_common::{
    backend::{Backend, BackendState, NextHop},
    clock::Tick,
    counters::{Counter, CpuState, Layout, Unresolved},
    flow::{
        bucket::{self, Facts},
        v4, v6,
    },
    guard::{Guard, Range, SourceBucket},
    maglev::{Slot, TableRef},
    maps::{Hold, Instance, default},
    nat,
    net::IpVersion,
    repeats::{DATA_CLIENTS, PLACES, Repeats, SYN_CLIENTS, Sample},
    service::Service,
    vip::{self, VipBucket, VipEntry},
};

use super::array::Array;

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
    /// Endpoints of backends of modes `nat` and `dnat`; id 0 is never used.
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

    /// The same with room for what modes `nat` and `dnat` need, and for one pair of a SNAT address and an endpoint less than `pairs`.
    #[must_use]
    pub fn translating(self, pairs: u32) -> Self {
        Self {
            nat4_buckets: self.flow4_buckets,
            nat6_buckets: self.flow6_buckets,
            endpoints: self.backends,
            pairs,
            ..self
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

/// The maps.
#[derive(Debug)]
pub struct Maps {
    /// Sizes.
    pub capacity: Capacity,
    /// The instance's own facts, one entry.
    pub instance: Array<Instance>,
    /// IPv4 flow table.
    pub flows4: Array<v4::Bucket>,
    /// Facts for people about IPv4 flows.
    pub facts4: Array<Facts>,
    /// Translations of IPv4 flows.
    pub nat4: Array<nat::Bucket>,
    /// IPv6 flow table.
    pub flows6: Array<v6::Bucket>,
    /// Facts for people about IPv6 flows.
    pub facts6: Array<Facts>,
    /// Translations of IPv6 flows.
    pub nat6: Array<nat::Bucket>,
    /// Flows by SNAT port, those of two ports in a word.
    pub slots: Array<u64>,
    /// Until when the flow tables are only read, one entry.
    pub hold: Array<Hold>,
    /// Which backends clients keep: see [`lb_common::maps::AFFINITIES`].
    pub affinities: Array<v6::Bucket>,
    /// What services ask of the clients of new flows, by service id.
    pub guards: Array<Guard>,
    /// Ranges of client addresses, of all guards.
    pub ranges: Array<Range>,
    /// What is known of sources.
    pub sources: Array<SourceBucket>,
    /// All Maglev tables.
    pub tables: Array<Slot>,
    /// Services by id.
    pub services: Array<Service>,
    /// Backends by id.
    pub backends: Array<Backend>,
    /// Directory of IPv4 VIPs.
    pub vips4: Array<VipBucket>,
    /// Directory of IPv6 VIPs.
    pub vips6: Array<VipBucket>,
    /// Endpoints by id.
    pub endpoints: Array<nat::Endpoint>,
    /// Directory of IPv4 endpoints.
    pub endpoints4: Array<VipBucket>,
    /// Directory of IPv6 endpoints.
    pub endpoints6: Array<VipBucket>,
    /// SNAT addresses toward endpoints, by id.
    pub pairs: Array<nat::Pair>,
    /// SNAT ports that are likely in use, [`nat::WORDS_OF_PAIR`] words for each pair.
    pub ports: Array<u64>,
    /// VLAN devices that clients are reached by.
    pub links: Array<nat::Link>,
    /// Counters.
    pub counters: Array<Counter>,
    /// What each CPU keeps for itself.
    pub cpus: Array<CpuState>,
    /// What clients send again, if that is counted.
    pub measured: Option<Measured>,
}

/// What clients send again, as a program counts it.
#[derive(Debug)]
pub struct Measured {
    /// Of which services: 1 or 0, by id.
    services: Array<u64>,
    /// By backend's id.
    backends: Array<Repeats>,
    /// The flows that are watched.
    samples: Array<Sample>,
}

impl Measured {
    /// In memory of our own.
    fn in_memory(capacity: &Capacity) -> nix::Result<Self> {
        Ok(Self {
            services: Array::in_memory(capacity.services)?,
            backends: Array::in_memory(capacity.backends)?,
            samples: Array::in_memory(2 * PLACES)?,
        })
    }

    /// The kernel's maps; `map` gives the file descriptor of each by its name in [`lb_common::maps`].
    ///
    /// # Errors
    /// When the kernel refuses one of the mappings.
    pub fn of_kernel<'a>(
        capacity: &Capacity,
        map: impl Fn(&'static str) -> BorrowedFd<'a>,
    ) -> nix::Result<Self> {
        use lb_common::maps as names;
        Ok(Self {
            services: Array::of_map(map(names::MEASURED), capacity.services)?,
            backends: Array::of_map(map(names::REPEATS), capacity.backends)?,
            samples: Array::of_map(map(names::SAMPLES), 2 * PLACES)?,
        })
    }

    /// Has a service's segments be counted, or not.
    pub fn measure(&self, service: u16, measures: bool) {
        let word = self.services.word(u32::from(service), 0);
        let measures = u64::from(measures);
        if word.load(Ordering::Relaxed) != measures {
            word.store(measures, Ordering::Relaxed);
        }
    }

    /// Whether a service's segments are counted.
    pub fn measures(&self, service: u16) -> bool {
        self.services
            .word(u32::from(service), 0)
            .load(Ordering::Relaxed)
            != 0
    }

    /// What was counted for a backend since the program was loaded, whoever had its id.
    pub fn counted(&self, backend: u32) -> Repeats {
        self.backends.get(backend)
    }

    /// The same, and takes note of whose repeats they were: that is told once.
    pub fn take(&self, backend: u32) -> Repeats {
        let take = |word| self.backends.word(backend, word).swap(0, Ordering::Relaxed);
        Repeats {
            syn_clients: take(SYN_CLIENTS),
            data_clients: take(DATA_CLIENTS),
            ..self.counted(backend)
        }
    }

    /// Counts for a backend in the program's place: for tests.
    pub fn count(&self, backend: u32, repeats: &Repeats) {
        self.backends
            .set(backend, &self.counted(backend).and(repeats));
    }

    /// Forgets everything: as it was when the program was loaded.
    pub fn clear(&self) {
        fn clear<T: super::array::Entry>(array: &Array<T>) {
            for index in 0..array.len() {
                for word in array.words(index) {
                    word.store(0, Ordering::Relaxed);
                }
            }
        }
        clear(&self.services);
        clear(&self.backends);
        clear(&self.samples);
    }
}

impl Maps {
    /// Maps in memory of our own: a data plane for tests, with the real one's layout to the byte.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn in_memory(capacity: Capacity) -> nix::Result<Self> {
        Ok(Self {
            capacity,
            instance: Array::in_memory(1)?,
            flows4: Array::in_memory(capacity.flow4_buckets)?,
            facts4: Array::in_memory(capacity.flow4_buckets)?,
            flows6: Array::in_memory(capacity.flow6_buckets)?,
            facts6: Array::in_memory(capacity.flow6_buckets)?,
            nat4: Array::in_memory(capacity.nat4_buckets.max(1))?,
            nat6: Array::in_memory(capacity.nat6_buckets.max(1))?,
            slots: Array::in_memory(capacity.pairs_with_slots() * nat::PORTS_OF_PAIR / 2)?,
            hold: Array::in_memory(1)?,
            endpoints: Array::in_memory(capacity.endpoints.max(1))?,
            endpoints4: Array::in_memory(capacity.endpoint_buckets())?,
            endpoints6: Array::in_memory(capacity.endpoint_buckets())?,
            pairs: Array::in_memory(capacity.pairs.max(1))?,
            ports: Array::in_memory(capacity.pairs.max(1) * nat::WORDS_OF_PAIR)?,
            links: Array::in_memory(nat::LINKS_LEN)?,
            affinities: Array::in_memory(capacity.affinity_buckets)?,
            guards: Array::in_memory(capacity.services)?,
            ranges: Array::in_memory(capacity.ranges)?,
            sources: Array::in_memory(capacity.source_buckets)?,
            tables: Array::in_memory(capacity.table_slots)?,
            services: Array::in_memory(capacity.services)?,
            backends: Array::in_memory(capacity.backends)?,
            vips4: Array::in_memory(capacity.vip_buckets())?,
            vips6: Array::in_memory(capacity.vip_buckets())?,
            counters: Array::in_memory(capacity.counter_entries())?,
            cpus: Array::in_memory(capacity.cpus)?,
            measured: if capacity.measures {
                Some(Measured::in_memory(&capacity)?)
            } else {
                None
            },
        })
    }

    /// Maps the kernel's maps, but for those of what is measured, which are the program's; `map` gives the file descriptor of each by its name in
    /// [`lb_common::maps`].
    ///
    /// # Errors
    /// When the kernel refuses one of the mappings.
    pub fn of_kernel<'a>(
        capacity: Capacity,
        map: impl Fn(&'static str) -> BorrowedFd<'a>,
    ) -> nix::Result<Self> {
        use lb_common::maps as names;
        let fd = |name| map(name);
        Ok(Self {
            capacity,
            instance: Array::of_map(fd(names::INSTANCE).as_fd(), 1)?,
            flows4: Array::of_map(fd(names::FLOWS4).as_fd(), capacity.flow4_buckets)?,
            facts4: Array::of_map(fd(names::FACTS4).as_fd(), capacity.flow4_buckets)?,
            flows6: Array::of_map(fd(names::FLOWS6).as_fd(), capacity.flow6_buckets)?,
            facts6: Array::of_map(fd(names::FACTS6).as_fd(), capacity.flow6_buckets)?,
            nat4: Array::of_map(fd(names::NAT4).as_fd(), capacity.nat4_buckets.max(1))?,
            nat6: Array::of_map(fd(names::NAT6).as_fd(), capacity.nat6_buckets.max(1))?,
            slots: Array::of_map(
                fd(names::SLOTS).as_fd(),
                capacity.pairs_with_slots() * nat::PORTS_OF_PAIR / 2,
            )?,
            hold: Array::of_map(fd(names::HOLD).as_fd(), 1)?,
            endpoints: Array::of_map(fd(names::ENDPOINTS).as_fd(), capacity.endpoints.max(1))?,
            endpoints4: Array::of_map(fd(names::ENDPOINTS4).as_fd(), capacity.endpoint_buckets())?,
            endpoints6: Array::of_map(fd(names::ENDPOINTS6).as_fd(), capacity.endpoint_buckets())?,
            pairs: Array::of_map(fd(names::PAIRS).as_fd(), capacity.pairs.max(1))?,
            ports: Array::of_map(
                fd(names::PORTS).as_fd(),
                capacity.pairs.max(1) * nat::WORDS_OF_PAIR,
            )?,
            links: Array::of_map(fd(names::LINKS).as_fd(), nat::LINKS_LEN)?,
            affinities: Array::of_map(fd(names::AFFINITIES).as_fd(), capacity.affinity_buckets)?,
            guards: Array::of_map(fd(names::GUARDS).as_fd(), capacity.services)?,
            ranges: Array::of_map(fd(names::RANGES).as_fd(), capacity.ranges)?,
            sources: Array::of_map(fd(names::SOURCES).as_fd(), capacity.source_buckets)?,
            tables: Array::of_map(fd(names::TABLES).as_fd(), capacity.table_slots)?,
            services: Array::of_map(fd(names::SERVICES).as_fd(), capacity.services)?,
            backends: Array::of_map(fd(names::BACKENDS).as_fd(), capacity.backends)?,
            vips4: Array::of_map(fd(names::VIPS4).as_fd(), capacity.vip_buckets())?,
            vips6: Array::of_map(fd(names::VIPS6).as_fd(), capacity.vip_buckets())?,
            counters: Array::of_map(fd(names::COUNTERS).as_fd(), capacity.counter_entries())?,
            cpus: Array::of_map(fd(names::CPUS).as_fd(), capacity.cpus)?,
            measured: None,
        })
    }

    /// The word that names a service's table.
    pub fn table_word(&self, service: u16) -> &AtomicU64 {
        self.services.word(u32::from(service), 0)
    }

    /// Names a service's table: one store.
    pub fn set_table(&self, service: u16, table: TableRef) {
        self.table_word(service).store(table.0, Ordering::SeqCst);
    }

    /// Ids of backends, by identity; entries that are not in use have identity 0.
    pub fn backend_ids(&self) -> impl Iterator<Item = (u64, u32)> {
        const IDENTITY: usize = std::mem::offset_of!(Backend, identity) / 8;
        let identity = |id| self.backends.word(id, IDENTITY).load(Ordering::Relaxed);
        (0..self.backends.len())
            .map(move |id| (identity(id), id))
            .filter(|(identity, _)| *identity != 0)
    }

    /// A backend's state word.
    pub fn state(&self, backend: u32) -> BackendState {
        BackendState(self.backends.word(backend, 0).load(Ordering::Acquire))
    }

    /// Swaps a backend's state: one store.
    pub fn set_state(&self, backend: u32, state: BackendState) {
        self.backends
            .word(backend, 0)
            .store(state.0, Ordering::SeqCst);
    }

    /// Writes one of a backend's two next hops: the one that its state does not name, and only after a grace period since it
    /// did.
    pub fn set_hop(&self, backend: u32, hop: usize, next: &NextHop) {
        let mut entry = self.backends.get(backend);
        entry.hops[hop] = *next;
        const FIRST_HOP_WORD: usize = std::mem::offset_of!(Backend, hops) / 8;
        const WORDS: usize = size_of::<NextHop>() / 8;
        let words: [u64; size_of::<Backend>() / 8] =
            // SAFETY: a backend's entry is integers without padding, of this size.
            unsafe { std::mem::transmute(entry) };
        let first = FIRST_HOP_WORD + hop * WORDS;
        for (at, word) in words.iter().enumerate().skip(first).take(WORDS) {
            self.backends
                .word(backend, at)
                .store(*word, Ordering::Release);
        }
    }

    /// Says what a backend is to the translation of addresses: the numbers of its endpoint and of its pairs.
    pub fn set_translated(&self, backend: u32, endpoint: u16, pairs: [u16; nat::SNAT_ADDRESSES]) {
        const ENDPOINT: usize = std::mem::offset_of!(Backend, port) / 8;
        const PAIRS: usize = std::mem::offset_of!(Backend, pairs) / 8;
        const _: () = assert!(std::mem::offset_of!(Backend, endpoint) / 8 == ENDPOINT);
        let entry = Backend {
            endpoint,
            pairs,
            ..self.backends.get(backend)
        };
        let words: [u64; size_of::<Backend>() / 8] =
            // SAFETY: a backend's entry is integers without padding, of this size.
            unsafe { std::mem::transmute(entry) };
        for at in [ENDPOINT, PAIRS, PAIRS + 1] {
            let word = self.backends.word(backend, at);
            word.store(words[at], Ordering::Release);
        }
    }

    /// Takes a pair out of use: nobody has a port of it, nor takes one.
    pub fn clear_pair(&self, pair: u16) {
        self.pairs.set(u32::from(pair), &nat::Pair::default());
        let words = u32::from(pair) * nat::WORDS_OF_PAIR..;
        for index in words.take(nat::WORDS_OF_PAIR as usize) {
            self.ports.word(index, 0).store(0, Ordering::Relaxed);
        }
        if u32::from(pair) < self.capacity.pairs_with_slots() {
            let words = nat::PORTS_OF_PAIR / 2;
            let first = u32::from(pair) * words;
            for index in first..first + words {
                self.slots.word(index, 0).store(0, Ordering::Relaxed);
            }
        }
        fence(Ordering::SeqCst);
    }

    /// Gives back the SNAT port of an entry that is gone, unless another flow has it by now; true if it did. `place` is what the slot of a port of
    /// that entry holds.
    pub fn give_back_port(&self, pair: u16, port: u16, place: u32) -> bool {
        if !self.empty_slot(pair, port, place) {
            return false;
        }
        let bit = u32::from(port - nat::FIRST_PORT);
        let word = u32::from(pair) * nat::WORDS_OF_PAIR + bit / 64;
        let bits = self.ports.word(word, 0);
        bits.fetch_and(!(1 << (bit % 64)), Ordering::SeqCst);
        true
    }

    /// Empties the slot of a port if it holds `place`; false if there is no such port, or it holds something else. Its bit stays.
    pub fn empty_slot(&self, pair: u16, port: u16, place: u32) -> bool {
        if port < nat::FIRST_PORT || u32::from(pair) >= self.capacity.pairs_with_slots() {
            return false;
        }
        let index = nat::slot_index(pair, port);
        let shift = index % 2 * 32;
        let slot = self.slots.word(index / 2, 0);
        let release = |word: u64| {
            let holds = (word >> shift) as u32 == place;
            holds.then_some(word & !(u64::from(u32::MAX) << shift))
        };
        // It fails at once if the slot is another's; else only the neighbouring port's slot can have changed.
        slot.fetch_update(Ordering::SeqCst, Ordering::SeqCst, release)
            .is_ok()
    }

    /// Has the bitmap of SNAT ports say what their slots say: those of flows that have ended before they could be moved are free. For tables that nobody
    /// writes at this moment.
    pub fn mark_ports(&self) {
        const SLOTS_OF_WORD: u32 = 64 / 2;
        let of_pair = |pair: u32| pair * nat::WORDS_OF_PAIR..(pair + 1) * nat::WORDS_OF_PAIR;
        let in_use = |pair: &u32| self.pairs.get(*pair) != nat::Pair::default();
        let pairs = 1..self.capacity.pairs_with_slots();
        for index in pairs.filter(in_use).flat_map(of_pair) {
            let first = (index * SLOTS_OF_WORD) as usize;
            let slots = &self.slots.all()[first..][..SLOTS_OF_WORD as usize];
            let mut bits = 0;
            for (at, two) in slots.iter().enumerate() {
                let two = two.load(Ordering::Relaxed);
                bits |= u64::from(two as u32 != 0) << (2 * at);
                bits |= u64::from(two >> 32 != 0) << (2 * at + 1);
            }
            self.ports.word(index, 0).store(bits, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Ports of a pair that are in use, or rest after use.
    pub fn ports_in_use(&self, pair: u16) -> u32 {
        let first = u32::from(pair) * nat::WORDS_OF_PAIR;
        (first..first + nat::WORDS_OF_PAIR)
            .map(|word| {
                self.ports
                    .word(word, 0)
                    .load(Ordering::Relaxed)
                    .count_ones()
            })
            .sum()
    }

    /// The directory of endpoints of a version of IP.
    pub fn endpoint_words(&self, version: IpVersion) -> &Array<VipBucket> {
        match version {
            IpVersion::V4 => &self.endpoints4,
            IpVersion::V6 => &self.endpoints6,
        }
    }

    /// Writes one entry of the directory of endpoints of a version of IP: one store.
    pub fn set_endpoint_word(&self, version: IpVersion, bucket: u32, way: usize, entry: VipEntry) {
        self.endpoint_words(version)
            .word(bucket, way)
            .store(entry.0, Ordering::SeqCst);
    }

    /// One entry of the directory of VIPs of a version of IP.
    pub fn vip(&self, version: IpVersion, bucket: u32, way: usize) -> VipEntry {
        VipEntry(self.vips(version).word(bucket, way).load(Ordering::Acquire))
    }

    /// The directory of VIPs of a version of IP.
    pub fn vips(&self, version: IpVersion) -> &Array<VipBucket> {
        match version {
            IpVersion::V4 => &self.vips4,
            IpVersion::V6 => &self.vips6,
        }
    }

    /// Writes one entry of the directory of VIPs: one store.
    pub fn set_vip(&self, version: IpVersion, bucket: u32, way: usize, entry: VipEntry) {
        self.vips(version)
            .word(bucket, way)
            .store(entry.0, Ordering::SeqCst);
    }

    /// The neighbours that the program has told each CPU's last of since this was asked before: interface and address.
    pub fn take_unresolved(&self) -> BTreeSet<(u32, IpAddr)> {
        const BY: usize =
            (offset_of!(CpuState, unresolved) + offset_of!(Unresolved, by)) / size_of::<u64>();
        (0..self.cpus.len())
            .filter(|&cpu| self.cpus.word(cpu, BY).load(Ordering::Relaxed) != 0)
            .filter_map(|cpu| {
                let unresolved = self.cpus.get(cpu).unresolved;
                self.cpus.word(cpu, BY).store(0, Ordering::Relaxed);
                unresolved.neighbour()
            })
            .collect()
    }

    /// Writes the VLAN devices that clients are reached by. Those that are the same already are left alone.
    pub fn write_links(&self, links: &[nat::Link; nat::LINKS_LEN as usize]) {
        for (at, link) in (0..).zip(links) {
            if self.links.get(at) != *link {
                self.links.set(at, link);
            }
        }
    }

    /// A counter, summed over all CPUs; `offset` is one of [`Layout`]'s.
    pub fn counter(&self, offset: u32) -> Counter {
        let per_cpu = self.capacity.counters().per_cpu;
        (0..self.capacity.cpus)
            .map(|cpu| self.counters.get(cpu * per_cpu + offset))
            .fold(Counter::default(), |sum, counter| Counter {
                packets: sum.packets.wrapping_add(counter.packets),
                bytes: sum.bytes.wrapping_add(counter.bytes),
            })
    }
}

/// Nanoseconds of the monotonic clock: never less than what the data path reads of its coarse sister.
///
/// # Panics
/// If the kernel has no such clock, which no Linux lacks.
pub fn now_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("CLOCK_MONOTONIC exists since Linux 2.6.12");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// The current tick: the coarse monotonic clock, as the data path reads it.
///
/// # Panics
/// If the kernel has no such clock, which no Linux lacks.
pub fn now() -> Tick {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
        .expect("CLOCK_MONOTONIC_COARSE exists since Linux 2.6.32");
    Tick::from_ns(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
