//! All maps of an instance as mapped memory: what the reconciler writes and the listings read.
//!
//! Storing to them cannot fail, so every operation of a plan is a handful of stores.

mod capacity;
mod measured;
mod ports;

use std::{
    collections::BTreeSet, mem::offset_of, net::IpAddr, os::fd::BorrowedFd, sync::atomic::Ordering,
};

use lb_common::{
    backend::{Backend, BackendState, NextHop},
    clock::Tick,
    counters::{Counter, CpuState, Unresolved},
    flow::{bucket::Facts, v4, v6},
    guard::{Guard, Range, SourceBucket},
    maglev::{Slot, TableRef},
    maps::{self as names, Hold, Instance},
    nat,
    net::IpVersion,
    service::Service,
    vip::{VipBucket, VipEntry},
};

pub use self::{capacity::Capacity, measured::Measured};
use super::array::Array;

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
        Ok(Self {
            capacity,
            instance: Array::of_map(map(names::INSTANCE), 1)?,
            flows4: Array::of_map(map(names::FLOWS4), capacity.flow4_buckets)?,
            facts4: Array::of_map(map(names::FACTS4), capacity.flow4_buckets)?,
            flows6: Array::of_map(map(names::FLOWS6), capacity.flow6_buckets)?,
            facts6: Array::of_map(map(names::FACTS6), capacity.flow6_buckets)?,
            nat4: Array::of_map(map(names::NAT4), capacity.nat4_buckets.max(1))?,
            nat6: Array::of_map(map(names::NAT6), capacity.nat6_buckets.max(1))?,
            slots: Array::of_map(
                map(names::SLOTS),
                capacity.pairs_with_slots() * nat::PORTS_OF_PAIR / 2,
            )?,
            hold: Array::of_map(map(names::HOLD), 1)?,
            endpoints: Array::of_map(map(names::ENDPOINTS), capacity.endpoints.max(1))?,
            endpoints4: Array::of_map(map(names::ENDPOINTS4), capacity.endpoint_buckets())?,
            endpoints6: Array::of_map(map(names::ENDPOINTS6), capacity.endpoint_buckets())?,
            pairs: Array::of_map(map(names::PAIRS), capacity.pairs.max(1))?,
            ports: Array::of_map(
                map(names::PORTS),
                capacity.pairs.max(1) * nat::WORDS_OF_PAIR,
            )?,
            links: Array::of_map(map(names::LINKS), nat::LINKS_LEN)?,
            affinities: Array::of_map(map(names::AFFINITIES), capacity.affinity_buckets)?,
            guards: Array::of_map(map(names::GUARDS), capacity.services)?,
            ranges: Array::of_map(map(names::RANGES), capacity.ranges)?,
            sources: Array::of_map(map(names::SOURCES), capacity.source_buckets)?,
            tables: Array::of_map(map(names::TABLES), capacity.table_slots)?,
            services: Array::of_map(map(names::SERVICES), capacity.services)?,
            backends: Array::of_map(map(names::BACKENDS), capacity.backends)?,
            vips4: Array::of_map(map(names::VIPS4), capacity.vip_buckets())?,
            vips6: Array::of_map(map(names::VIPS6), capacity.vip_buckets())?,
            counters: Array::of_map(map(names::COUNTERS), capacity.counter_entries())?,
            cpus: Array::of_map(map(names::CPUS), capacity.cpus)?,
            measured: None,
        })
    }

    /// Names a service's table: one store.
    pub fn set_table(&self, service: u16, table: TableRef) {
        self.services
            .word(u32::from(service), 0)
            .store(table.0, Ordering::SeqCst);
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
        let words = words(entry);
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
        let words = words(Backend {
            endpoint,
            pairs,
            ..self.backends.get(backend)
        });
        for at in [ENDPOINT, PAIRS, PAIRS + 1] {
            let word = self.backends.word(backend, at);
            word.store(words[at], Ordering::Release);
        }
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

    /// A counter, summed over all CPUs; `offset` is one of [`lb_common::counters::Layout`]'s.
    pub fn counter(&self, offset: u32) -> Counter {
        let per_cpu = self.capacity.counters().per_cpu;
        (0..self.capacity.cpus)
            .map(|cpu| self.counters.get(cpu * per_cpu + offset))
            .fold(Counter::default(), |sum, counter| Counter {
                packets: sum.packets.wrapping_add(counter.packets),
                bytes: sum.bytes.wrapping_add(counter.bytes),
            })
    }

    /// Has a counter begin at nothing: what the former holder of an id has counted is not its next one's. No packet is counted by it meanwhile, since an id is
    /// given again only when nothing names it.
    pub fn begin_counting(&self, offset: u32) {
        let per_cpu = self.capacity.counters().per_cpu;
        for cpu in 0..self.capacity.cpus {
            self.counters
                .set(cpu * per_cpu + offset, &Counter::default());
        }
    }
}

/// The words that a backend's entry is stored as.
fn words(entry: Backend) -> [u64; size_of::<Backend>() / 8] {
    // SAFETY: it is integers without padding, of this size.
    unsafe { std::mem::transmute(entry) }
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
/// As [`coarse_ns`].
pub fn now() -> Tick {
    Tick::from_ns(coarse_ns())
}

/// Nanoseconds of the coarse monotonic clock, which the data path reads.
///
/// # Panics
/// If the kernel has no such clock, which no Linux lacks.
pub fn coarse_ns() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
        .expect("CLOCK_MONOTONIC_COARSE exists since Linux 2.6.32");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}
