//! All maps of an instance as mapped memory: what the reconciler writes and the listings read.
//!
//! Storing to them cannot fail, so every operation of a plan is a handful of stores.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use lb_common::{
    backend::{Backend, BackendState, NextHop},
    clock::Tick,
    counters::{Counter, CpuState, Layout},
    flow::{
        bucket::{self, Facts},
        v4, v6,
    },
    maglev::{Slot, TableRef},
    maps::{Hold, Instance},
    net::IpVersion,
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
    /// Possible CPUs.
    pub cpus: u32,
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
            cpus,
        }
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
    /// IPv6 flow table.
    pub flows6: Array<v6::Bucket>,
    /// Facts for people about IPv6 flows.
    pub facts6: Array<Facts>,
    /// Until when the flow tables are only read, one entry.
    pub hold: Array<Hold>,
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
    /// Counters.
    pub counters: Array<Counter>,
    /// What each CPU keeps for itself.
    pub cpus: Array<CpuState>,
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
            hold: Array::in_memory(1)?,
            tables: Array::in_memory(capacity.table_slots)?,
            services: Array::in_memory(capacity.services)?,
            backends: Array::in_memory(capacity.backends)?,
            vips4: Array::in_memory(capacity.vip_buckets())?,
            vips6: Array::in_memory(capacity.vip_buckets())?,
            counters: Array::in_memory(capacity.counter_entries())?,
            cpus: Array::in_memory(capacity.cpus)?,
        })
    }

    /// Maps the kernel's maps; `map` gives the file descriptor of each by its name in [`lb_common::maps`].
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
            hold: Array::of_map(fd(names::HOLD).as_fd(), 1)?,
            tables: Array::of_map(fd(names::TABLES).as_fd(), capacity.table_slots)?,
            services: Array::of_map(fd(names::SERVICES).as_fd(), capacity.services)?,
            backends: Array::of_map(fd(names::BACKENDS).as_fd(), capacity.backends)?,
            vips4: Array::of_map(fd(names::VIPS4).as_fd(), capacity.vip_buckets())?,
            vips6: Array::of_map(fd(names::VIPS6).as_fd(), capacity.vip_buckets())?,
            counters: Array::of_map(fd(names::COUNTERS).as_fd(), capacity.counter_entries())?,
            cpus: Array::of_map(fd(names::CPUS).as_fd(), capacity.cpus)?,
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
        (0..self.backends.len())
            // The identity is the second word of an entry.
            .map(|id| (self.backends.word(id, 1).load(Ordering::Relaxed), id))
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
