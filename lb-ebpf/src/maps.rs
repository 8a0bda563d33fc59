//! The maps, and the only access to them.
//!
//! All are plain arrays that the daemon maps into its memory too. Their sizes here are placeholders: the daemon sets them when it
//! creates the maps.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns},
    macros::map,
    maps::Array,
};
use lb_common::{
    backend::{Backend, BackendState},
    counters::{Counter, CpuState, Layout, spend},
    flow::v4,
    hash::Seed,
    maglev::{Slot, TableRef},
    maps::{BURST_NS, Constants, Instance},
    service::Service,
    vip::VipBucket,
};

#[map]
static INSTANCE: Array<Instance> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static FLOWS4: Array<v4::Bucket> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
static FACTS4: Array<v4::Facts> = Array::with_max_entries(2, BPF_F_MMAPABLE);
#[map]
static TABLES: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static SERVICES: Array<Service> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static BACKENDS: Array<Backend> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static VIPS4: Array<VipBucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static COUNTERS: Array<Counter> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static CPUS: Array<CpuState> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Set by the daemon before the program is loaded; the kernel folds them into the instructions.
#[unsafe(no_mangle)]
static CONSTANTS: Constants = Constants {
    flow_seed: Seed {
        whiten: 0,
        first: 1,
        second: 1,
    },
    flow_buckets: 2,
    vip_buckets: 1,
    services: 1,
    backends: 1,
    adoption_cost_ns: 0,
    reset_cost_ns: 0,
};

macro_rules! constant {
    ($($field:ident).+) => {
        // SAFETY: a static that never changes once loaded. Volatile, since the compiler sees only the placeholder.
        unsafe { core::ptr::addr_of!(CONSTANTS.$($field).+).read_volatile() }
    };
}

/// Secret of the flow table.
#[inline(always)]
pub(crate) fn flow_seed() -> Seed {
    Seed {
        whiten: constant!(flow_seed.whiten),
        first: constant!(flow_seed.first),
        second: constant!(flow_seed.second),
    }
}

#[inline(always)]
pub(crate) fn flow_buckets() -> u32 {
    constant!(flow_buckets)
}

#[inline(always)]
pub(crate) fn vip_buckets() -> u32 {
    constant!(vip_buckets)
}

#[inline(always)]
pub(crate) fn counters_layout() -> Layout {
    Layout {
        services: constant!(services),
        backends: constant!(backends),
    }
}

/// Nanoseconds of the coarse monotonic clock.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_smp_processor_id() }
}

#[inline(always)]
pub(crate) fn flows4(index: u32) -> Option<*mut v4::Bucket> {
    FLOWS4.get_ptr_mut(index)
}

#[inline(always)]
pub(crate) fn facts4(index: u32) -> Option<*mut v4::Facts> {
    FACTS4.get_ptr_mut(index)
}

#[inline(always)]
pub(crate) fn vips4(index: u32) -> Option<*const VipBucket> {
    VIPS4.get_ptr(index)
}

/// Takes one permission to adopt a flow from this CPU's bounded rate.
#[inline(always)]
pub(crate) fn may_adopt(now_ns: u64) -> bool {
    let Some(cpu) = CPUS.get_ptr_mut(cpu()) else {
        return false;
    };
    // SAFETY: an entry of the map.
    take(
        unsafe { core::ptr::addr_of_mut!((*cpu).adoption_paid_ns) },
        now_ns,
        constant!(adoption_cost_ns),
    )
}

/// Takes one permission to send a RST from this CPU's bounded rate.
#[inline(always)]
pub(crate) fn may_reset(now_ns: u64) -> bool {
    let Some(cpu) = CPUS.get_ptr_mut(cpu()) else {
        return false;
    };
    // SAFETY: an entry of the map.
    take(
        unsafe { core::ptr::addr_of_mut!((*cpu).reset_paid_ns) },
        now_ns,
        constant!(reset_cost_ns),
    )
}

#[inline(always)]
fn take(paid_ns: *mut u64, now_ns: u64, cost_ns: u64) -> bool {
    // SAFETY: a word of the map that only this CPU writes.
    let paid = unsafe { paid_ns.read_volatile() };
    let Some(next) = spend(paid, now_ns, cost_ns, BURST_NS) else {
        return false;
    };
    // SAFETY: as above.
    unsafe { paid_ns.write_volatile(next) };
    true
}

/// A service's entry; one that is not in use has no table.
#[inline(always)]
pub(crate) fn service(id: u16) -> Option<*const Service> {
    SERVICES.get_ptr(id as u32)
}

/// The slot of a table.
#[inline(always)]
pub(crate) fn slot(table: TableRef, index: u32) -> Option<Slot> {
    let word = TABLES.get_ptr(table.offset() + index)?;
    // SAFETY: an entry of the map. Volatile: the daemon writes it meanwhile.
    Some(Slot(unsafe { word.read_volatile() }))
}

/// A backend's entry, and its state as it is now.
#[inline(always)]
pub(crate) fn backend(id: u32) -> Option<(*const Backend, BackendState)> {
    let backend = BACKENDS.get_ptr(id)?;
    // SAFETY: an entry of the map. Volatile: the daemon writes it meanwhile.
    let state = BackendState(unsafe { core::ptr::addr_of!((*backend).state).read_volatile() });
    Some((backend, state))
}

/// Where this CPU's counters begin.
#[inline(always)]
pub(crate) fn own_counters() -> u32 {
    cpu() * counters_layout().per_cpu()
}

/// Adds one packet to a counter of this CPU, given as its offset from `base`, which is [`own_counters`].
#[inline(always)]
pub(crate) fn count(base: u32, offset: u32, bytes: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(base + offset) {
        // SAFETY: an entry of the map. Only this CPU writes it, and XDP programs do not interrupt each other on one CPU.
        unsafe {
            let packets = core::ptr::addr_of_mut!((*counter).packets);
            packets.write_volatile(packets.read_volatile().wrapping_add(1));
            let sum = core::ptr::addr_of_mut!((*counter).bytes);
            sum.write_volatile(sum.read_volatile().wrapping_add(bytes as u64));
        }
    }
}
