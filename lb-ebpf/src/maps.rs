//! The maps, and the only access to them.
//!
//! All but four are plain arrays that the daemon maps into its memory too. The daemon creates all of them, since it knows their sizes.

use core::sync::atomic::AtomicU64;

use aya_ebpf::{
    bindings::xdp_action,
    helpers::generated::{bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_coarse_ns},
    macros::map,
    maps::{DevMapHash, ProgramArray, RingBuf},
    programs::XdpContext,
};
use lb_common::{
    backend::{Backend, BackendState, NextHop},
    clock::Tick,
    counters::{Counter, CpuState, HandedOn, Layout, spend_down_to},
    flow::{
        bucket::Facts,
        copy::{BATCH, Order},
        table::Place,
        v4, v6,
    },
    guard::{Guard, Passed, Range, SourceBucket},
    hash::Seed,
    maglev::{Slot, TableRef},
    maps::{BURST_NS, Constants, EGRESS_INTERFACES, Hold, NOTICES_BYTES, PROGRAMS_LEN},
    nat::{self, Endpoint, Link, Pair},
    notice::Notice,
    repeats::{PLACES, Repeats, Sample},
    service::Service,
    vip::VipBucket,
    watch::{self, Filter, Record},
};

use crate::hide;

/// A map with a single value, which is a whole array of `T`. How many there are is for the daemon to say, when it creates the map and puts it
/// in this section's place; the program is told in [`CONSTANTS`].
///
/// So an entry is reached by arithmetic whose bounds the verifier knows, without a helper: that is a third of the instructions of a lookup by key,
/// and the key need not pass through the stack.
#[repr(C)]
struct Whole<T> {
    /// aya takes a section without a size for no map.
    placeholder: u64,
    entries: [T; 0],
}

// SAFETY: what others write meanwhile is accessed by volatile or atomic instructions.
unsafe impl<T> Sync for Whole<T> {}

impl<T> Whole<T> {
    const PLACEHOLDER: Self = Self {
        placeholder: 0,
        entries: [],
    };

    /// The entry at `index` of `count`.
    #[inline(always)]
    fn at(&self, index: u32, count: u32) -> Option<*mut T> {
        // Where the pointer came from is hidden, and so how little there is.
        let first = hide::pointer(core::ptr::from_ref(self).cast_mut().cast::<T>());
        let index = hide::below(index, count)?;
        // SAFETY: in bounds, which the verifier proves.
        Some(unsafe { first.add(index as usize) })
    }
}

macro_rules! maps {
    ($($name:ident: $entry:ty),+ $(,)?) => {
        $(
            #[unsafe(link_section = concat!(".bss.", stringify!($name)))]
            #[unsafe(no_mangle)]
            static $name: Whole<$entry> = Whole::PLACEHOLDER;
        )+
    };
}

maps! {
    FLOWS4: v4::Bucket,
    FACTS4: Facts,
    NAT4: nat::Bucket,
    FLOWS6: v6::Bucket,
    FACTS6: Facts,
    NAT6: nat::Bucket,
    SLOTS: u32,
    HOLD: Hold,
    AFFINITIES: v6::Bucket,
    TABLES: u64,
    SERVICES: Service,
    BACKENDS: Backend,
    VIPS4: VipBucket,
    VIPS6: VipBucket,
    ENDPOINTS: Endpoint,
    ENDPOINTS4: VipBucket,
    ENDPOINTS6: VipBucket,
    PAIRS: Pair,
    PORTS: u64,
    LINKS: Link,
    GUARDS: Guard,
    RANGES: Range,
    SOURCES: SourceBucket,
    COUNTERS: Counter,
    CPUS: CpuState,
    COPIES: Order,
    LISTENERS: Filter,
    RECORDS: Record,
    REPEATS: Repeats,
    SAMPLES: Sample,
    MEASURED: u64,
}

/// Where packets may leave. A frame that goes through a device map is sent together with others, one that goes to an interface by its number
/// alone.
#[map]
static EGRESS: DevMapHash = DevMapHash::with_max_entries(EGRESS_INTERFACES, 0);

/// What the daemon is told of flows that a deadline has closed.
#[map]
static NOTICES: RingBuf = RingBuf::with_byte_size(NOTICES_BYTES, 0);

/// What listeners are told. A program that watches has a larger one in its place.
#[map]
static TOLD: RingBuf = RingBuf::with_byte_size(4_096, 0);

/// What comes after [`hand_on`].
#[map]
static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(PROGRAMS_LEN, 0);

/// Set by the daemon before the program is loaded; the verifier knows their values.
#[unsafe(no_mangle)]
static CONSTANTS: Constants = Constants {
    flow_seed: Seed {
        whiten: 0,
        first: 1,
        second: 1,
    },
    flow4_buckets: 2,
    flow6_buckets: 2,
    vip_buckets: 1,
    counters: Layout::new(1, 1),
    backends: 1,
    table_slots: 1,
    cpus: 1,
    counter_entries: 1,
    nat4_buckets: 0,
    nat6_buckets: 0,
    endpoints: 1,
    endpoint_buckets: 1,
    pairs: 1,
    adoption_cost_ns: 0,
    reset_cost_ns: 0,
    answer_cost_ns: 0,
    watches: 0,
    affinity_buckets: 1,
    guards: 0,
    ranges: 1,
    source_buckets: 2,
    reserved: 0,
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
pub(crate) fn flow4_buckets() -> u32 {
    constant!(flow4_buckets)
}

#[inline(always)]
pub(crate) fn flow6_buckets() -> u32 {
    constant!(flow6_buckets)
}

#[inline(always)]
pub(crate) fn vip_buckets() -> u32 {
    constant!(vip_buckets)
}

/// Capacity of the services map.
#[inline(always)]
pub(crate) fn services() -> u32 {
    constant!(counters.services)
}

#[inline(always)]
pub(crate) fn counters_layout() -> Layout {
    Layout {
        services: constant!(counters.services),
        per_cpu: constant!(counters.per_cpu),
    }
}

/// Whether listeners are told of packets.
#[inline(always)]
pub(crate) fn watches() -> bool {
    constant!(watches) != 0
}

/// The packet that this CPU has on its way.
#[inline(always)]
pub(crate) fn record() -> Option<*mut Record> {
    RECORDS.at(cpu(), constant!(cpus))
}

/// What a listener wants to hear of.
#[inline(always)]
pub(crate) fn filter(index: u32) -> Option<*const Filter> {
    LISTENERS
        .at(index, watch::LISTENERS)
        .map(<*mut _>::cast_const)
}

/// The ring buffer of what listeners are told.
#[inline(always)]
pub(crate) fn told() -> *mut core::ffi::c_void {
    core::ptr::from_ref(&TOLD).cast_mut().cast()
}

/// Nanoseconds of the coarse monotonic clock.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Whether what clients send again is counted of a service.
#[inline(always)]
pub(crate) fn is_measured(service: u16) -> bool {
    match MEASURED.at(service as u32, services()) {
        // SAFETY: an entry of the map. Volatile: the daemon writes it meanwhile.
        Some(measured) => unsafe { measured.read_volatile() != 0 },
        None => false,
    }
}

/// A place for a flow that is watched for what its client sends again: those for SYNs come behind those for data.
#[inline(always)]
pub(crate) fn sample(index: u32) -> Option<*mut Sample> {
    SAMPLES.at(index, 2 * PLACES)
}

/// What a backend's clients have sent again.
#[inline(always)]
pub(crate) fn repeats(backend: u32) -> Option<*mut Repeats> {
    REPEATS.at(backend, constant!(backends))
}

/// What the verifier takes for a number from 0 to 3: the top bits of the count of jiffies.
#[inline(always)]
pub(crate) fn always_zero() -> u32 {
    // SAFETY: a helper without arguments.
    (unsafe { bpf_jiffies64() } >> 62) as u32
}

/// The present.
///
/// A tick is much longer than a jiffy, and the kernel compiles the count of jiffies into the program as one load, where the clock
/// would be two calls: so the clock is asked once a jiffy. The word has the jiffy of that (bits 32-63) and the tick.
#[inline(always)]
pub(crate) fn now() -> Tick {
    static TICK: AtomicU64 = AtomicU64::new(0);
    // SAFETY: a helper without arguments.
    let jiffy = unsafe { bpf_jiffies64() } << 32;
    // SAFETY: an aligned word. Volatile: the BPF target has no atomic loads and stores, and its plain ones are.
    let known = unsafe { TICK.as_ptr().read_volatile() };
    if (known ^ jiffy) >> 32 == 0 {
        return Tick(known as u32);
    }
    let tick = Tick::from_ns(now_ns());
    // SAFETY: as above.
    unsafe { TICK.as_ptr().write_volatile(jiffy | u64::from(tick.0)) };
    tick
}

#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_smp_processor_id() }
}

#[inline(always)]
pub(crate) fn flows4(index: u32) -> Option<*mut v4::Bucket> {
    FLOWS4.at(index, flow4_buckets())
}

#[inline(always)]
pub(crate) fn facts4(index: u32) -> Option<*mut Facts> {
    FACTS4.at(index, flow4_buckets())
}

#[inline(always)]
pub(crate) fn flows6(index: u32) -> Option<*mut v6::Bucket> {
    FLOWS6.at(index, flow6_buckets())
}

#[inline(always)]
pub(crate) fn facts6(index: u32) -> Option<*mut Facts> {
    FACTS6.at(index, flow6_buckets())
}

/// Whether the flow tables are only read for the moment.
#[inline(always)]
pub(crate) fn is_held() -> bool {
    let Some(hold) = HOLD.at(0, 1) else {
        return false;
    };
    // SAFETY: an entry of the map. Volatile: the daemon writes it meanwhile.
    let until_ns = unsafe { core::ptr::addr_of!((*hold).until_ns).read_volatile() };
    until_ns != 0 && now_ns() < until_ns
}

#[inline(always)]
pub(crate) fn nat4_buckets() -> u32 {
    constant!(nat4_buckets)
}

#[inline(always)]
pub(crate) fn nat6_buckets() -> u32 {
    constant!(nat6_buckets)
}

#[inline(always)]
pub(crate) fn nat4(index: u32) -> Option<*mut nat::Bucket> {
    NAT4.at(index, nat4_buckets())
}

#[inline(always)]
pub(crate) fn nat6(index: u32) -> Option<*mut nat::Bucket> {
    NAT6.at(index, nat6_buckets())
}

#[inline(always)]
pub(crate) fn endpoint_buckets() -> u32 {
    constant!(endpoint_buckets)
}

#[inline(always)]
pub(crate) fn endpoints4(index: u32) -> Option<*const VipBucket> {
    ENDPOINTS4
        .at(index, endpoint_buckets())
        .map(<*mut _>::cast_const)
}

#[inline(always)]
pub(crate) fn endpoints6(index: u32) -> Option<*const VipBucket> {
    ENDPOINTS6
        .at(index, endpoint_buckets())
        .map(<*mut _>::cast_const)
}

/// An endpoint's record.
#[inline(always)]
pub(crate) fn endpoint(id: u32) -> Option<*const Endpoint> {
    ENDPOINTS
        .at(id, constant!(endpoints))
        .map(<*mut _>::cast_const)
}

/// A pair's record.
#[inline(always)]
pub(crate) fn pair(id: u16) -> Option<*const Pair> {
    PAIRS
        .at(id as u32, constant!(pairs))
        .map(<*mut _>::cast_const)
}

/// A word of the bitmap of a pair's ports.
#[inline(always)]
pub(crate) fn ports(pair: u16, word: u32) -> Option<*mut u64> {
    let count = constant!(pairs) * nat::WORDS_OF_PAIR;
    PORTS.at(pair as u32 * nat::WORDS_OF_PAIR + word, count)
}

/// One of an entry's ids.
///
/// # Safety
/// It is one of those that an entry of a map has.
#[inline(always)]
pub(crate) unsafe fn id_at(ids: *const u16, index: usize) -> u16 {
    // SAFETY: the caller's promise. Volatile: the daemon may write it meanwhile.
    unsafe { ids.add(index).read_volatile() }
}

/// The slot of a pair's port.
#[inline(always)]
pub(crate) fn port_slot(pair: u16, port: u16) -> Option<*mut u32> {
    let count = constant!(pairs) * nat::PORTS_OF_PAIR;
    SLOTS.at(nat::slot_index(pair, port), count)
}

/// A place for a device of VLANs.
#[inline(always)]
pub(crate) fn link(index: u32) -> Option<*const Link> {
    LINKS.at(index, nat::LINKS_LEN).map(<*mut _>::cast_const)
}

/// An order of the daemon's.
#[inline(always)]
pub(crate) fn order(index: u32) -> Option<*mut Order> {
    COPIES.at(index, BATCH)
}

#[inline(always)]
pub(crate) fn vips4(index: u32) -> Option<*const VipBucket> {
    VIPS4.at(index, vip_buckets()).map(<*mut _>::cast_const)
}

#[inline(always)]
pub(crate) fn vips6(index: u32) -> Option<*const VipBucket> {
    VIPS6.at(index, vip_buckets()).map(<*mut _>::cast_const)
}

macro_rules! permission {
    ($($(#[doc = $doc:literal])+ $name:ident: $paid_ns:ident, $cost_ns:ident;)+) => {
        $(
            $(#[doc = $doc])+
            #[inline(always)]
            pub(crate) fn $name(now_ns: u64) -> bool {
                let Some(cpu) = own_state() else {
                    return false;
                };
                // SAFETY: an entry of the map.
                let paid_ns = unsafe { core::ptr::addr_of_mut!((*cpu).$paid_ns) };
                take(paid_ns, now_ns, constant!($cost_ns), 0)
            }
        )+
    };
}

permission! {
    /// Takes one permission to adopt a flow from this CPU's bounded rate.
    may_adopt: adoption_paid_ns, adoption_cost_ns;
    /// Takes one permission to send a RST from this CPU's bounded rate.
    may_reset: reset_paid_ns, reset_cost_ns;
}

/// Takes one permission to answer by ICMP from this CPU's bounded rate, unless less than `kept_ns` would be left of what was saved up: that is for answers
/// that can wait less.
#[inline(always)]
pub(crate) fn may_answer(now_ns: u64, kept_ns: u64) -> bool {
    let Some(cpu) = own_state() else {
        return false;
    };
    // SAFETY: an entry of the map.
    let paid_ns = unsafe { core::ptr::addr_of_mut!((*cpu).answer_paid_ns) };
    take(paid_ns, now_ns, constant!(answer_cost_ns), kept_ns)
}

/// Tells the daemon of a closed flow; if there is no room, that is counted. `write` fills the notice in its place, every word of it: there is no
/// stack to make it on.
#[inline(always)]
pub(crate) fn notify(write: impl FnOnce(*mut Notice)) {
    if let Some(mut entry) = NOTICES.reserve::<Notice>(0) {
        write(entry.as_mut_ptr());
        entry.submit(0);
    } else if let Some(cpu) = own_state() {
        // SAFETY: a word of the map that only this CPU writes.
        unsafe {
            let lost = core::ptr::addr_of_mut!((*cpu).notices_lost);
            lost.write_volatile(lost.read_volatile().wrapping_add(1));
        }
    }
}

/// Tells the daemon of a neighbour that the kernel does not know: see [`lb_common::counters::Unresolved`].
#[inline(always)]
pub(crate) fn tell_unresolved(address: [u64; 2], by: u64) {
    if let Some(cpu) = own_state() {
        // SAFETY: words of the map that only this CPU writes, but for the daemon, which makes the last of them zero.
        unsafe {
            let unresolved = core::ptr::addr_of_mut!((*cpu).unresolved).cast::<u64>();
            unresolved.write_volatile(address[0]);
            unresolved.add(1).write_volatile(address[1]);
            unresolved.add(2).write_volatile(by);
        }
    }
}

/// What this CPU keeps for itself.
#[inline(always)]
pub(crate) fn own_state() -> Option<*mut CpuState> {
    CPUS.at(cpu(), constant!(cpus))
}

/// What has been handed on of this packet.
#[inline(always)]
pub(crate) fn handed_on() -> HandedOn {
    match own_state() {
        // SAFETY: an entry of the map, which only this CPU uses while it has this packet.
        Some(state) => unsafe { core::ptr::addr_of!((*state).handed_on).read() },
        None => HandedOn::default(),
    }
}

/// Where to note what is handed on.
#[inline(always)]
pub(crate) fn to_hand_on<'a>() -> Option<&'a mut HandedOn> {
    // SAFETY: as above.
    own_state().map(|state| unsafe { &mut *core::ptr::addr_of_mut!((*state).handed_on) })
}

/// Notes where the entry of the packet's flow is.
#[inline(always)]
pub(crate) fn hand_on_entry(place: Place) {
    if let Some(noted) = to_hand_on() {
        (noted.index, noted.way) = (place.index, place.way);
    }
}

/// The hop by which packets to clients leave, to be written and used while this CPU has the packet.
#[inline(always)]
pub(crate) fn hop_to_client<'a>() -> Option<&'a mut NextHop> {
    // SAFETY: as above.
    own_state().map(|state| unsafe { &mut *core::ptr::addr_of_mut!((*state).hop) })
}

#[inline(always)]
fn take(paid_ns: *mut u64, now_ns: u64, cost_ns: u64, kept_ns: u64) -> bool {
    // SAFETY: a word of the map that only this CPU writes.
    let paid = unsafe { paid_ns.read_volatile() };
    let Some(next) = spend_down_to(paid, now_ns, cost_ns, BURST_NS, kept_ns) else {
        return false;
    };
    // SAFETY: as above.
    unsafe { paid_ns.write_volatile(next) };
    true
}

/// A service's entry; one that is not in use has no table.
#[inline(always)]
pub(crate) fn service(id: u16) -> Option<*const Service> {
    SERVICES.at(id as u32, services()).map(<*mut _>::cast_const)
}

/// Whether a service has backends whose flows are translated.
#[inline(always)]
pub(crate) fn translates(id: u16) -> bool {
    has_trait(id, Service::TRANSLATES)
}

/// Whether a service has a guard.
#[inline(always)]
pub(crate) fn is_guarded(id: u16) -> bool {
    has_trait(id, Service::GUARDED)
}

#[inline(always)]
fn has_trait(id: u16, of: u16) -> bool {
    match service(id) {
        // SAFETY: an entry of the map. Volatile: the daemon may write it meanwhile.
        Some(service) => unsafe {
            core::ptr::addr_of!((*service).traits).read_volatile() & of != 0
        },
        None => false,
    }
}

/// Whether any service has a guard. The verifier knows, and leaves out what is for those if none has.
#[inline(always)]
pub(crate) fn guards() -> bool {
    constant!(guards) != 0
}

/// What a service asks of the clients of new flows.
#[inline(always)]
pub(crate) fn guard(service: u16) -> Option<*const Guard> {
    GUARDS
        .at(service as u32, services())
        .map(<*mut _>::cast_const)
}

/// A range of client addresses.
#[inline(always)]
pub(crate) fn range(index: u32) -> Option<*const Range> {
    RANGES
        .at(index, constant!(ranges))
        .map(<*mut _>::cast_const)
}

#[inline(always)]
pub(crate) fn source_buckets() -> u32 {
    constant!(source_buckets)
}

/// A bucket of what is known of sources.
#[inline(always)]
pub(crate) fn sources(index: u32) -> Option<*mut SourceBucket> {
    SOURCES.at(index, source_buckets())
}

/// What the guard has found out of this packet, or of one before.
#[inline(always)]
pub(crate) fn passed() -> Passed {
    match own_state() {
        // SAFETY: a word of the map that only this CPU uses.
        Some(state) => Passed(unsafe { core::ptr::addr_of!((*state).passed).read_volatile() }),
        None => Passed::NOTHING,
    }
}

/// Notes what the guard has found out of this packet.
#[inline(always)]
pub(crate) fn set_passed(passed: Passed) {
    if let Some(state) = own_state() {
        // SAFETY: as above.
        unsafe { core::ptr::addr_of_mut!((*state).passed).write_volatile(passed.0) };
    }
}

/// Of a service that places clients, the number of those that do so together; 0 is one that places flows.
#[inline(always)]
pub(crate) fn affinity(id: u16) -> u16 {
    match service(id) {
        // SAFETY: an entry of the map. Volatile: the daemon may write it meanwhile.
        Some(service) => unsafe { core::ptr::addr_of!((*service).affinity).read_volatile() },
        None => 0,
    }
}

#[inline(always)]
pub(crate) fn affinity_buckets() -> u32 {
    constant!(affinity_buckets)
}

/// A bucket of what is known of clients that keep their backends.
#[inline(always)]
pub(crate) fn affinities(index: u32) -> Option<*mut v6::Bucket> {
    AFFINITIES.at(index, affinity_buckets())
}

/// The slot of a table.
#[inline(always)]
pub(crate) fn slot(table: TableRef, index: u32) -> Option<Slot> {
    let word = TABLES.at(table.offset() + index, constant!(table_slots))?;
    // SAFETY: an entry of the map. Volatile: the daemon writes it meanwhile.
    Some(Slot(unsafe { word.read_volatile() }))
}

/// A backend's entry, and its state as it is now.
#[inline(always)]
pub(crate) fn backend(id: u32) -> Option<(*const Backend, BackendState)> {
    let backend = BACKENDS.at(id, constant!(backends))?.cast_const();
    // SAFETY: an entry of the map. Volatile: the daemon writes it meanwhile.
    let state = BackendState(unsafe { core::ptr::addr_of!((*backend).state).read_volatile() });
    Some((backend, state))
}

/// The id of a backend's endpoint.
#[inline(always)]
pub(crate) fn endpoint_of(backend: *const Backend) -> u32 {
    // SAFETY: an entry of the map. The endpoint does not change while anything names the backend.
    (unsafe { core::ptr::addr_of!((*backend).endpoint).read_volatile() }) as u32
}

/// Has the frame sent out of another interface, if the program returns what this returns; none if that interface takes no frames.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) -> Option<u32> {
    EGRESS.redirect(ifindex, xdp_action::XDP_DROP as u64).ok()
}

/// Has another program go on with the packet, given by its index. Returns only if there is none. To be called by a program's main function: what
/// is called may have but half of the stack.
#[inline(always)]
pub(crate) fn hand_on(ctx: &XdpContext, index: u32) {
    // SAFETY: a helper on the context.
    unsafe { PROGRAMS.tail_call(ctx, index) };
}

/// Where this CPU's counters begin.
#[inline(always)]
pub(crate) fn own_counters() -> u32 {
    cpu() * constant!(counters.per_cpu)
}

/// Adds one packet to a counter of this CPU, given as its offset from `base`, which is [`own_counters`].
#[inline(always)]
pub(crate) fn count(base: u32, offset: u32, bytes: u32) {
    if let Some(counter) = COUNTERS.at(base + offset, constant!(counter_entries)) {
        // SAFETY: an entry of the map. Only this CPU writes it, and XDP programs do not interrupt each other on one CPU.
        unsafe {
            let packets = core::ptr::addr_of_mut!((*counter).packets);
            packets.write_volatile(packets.read_volatile().wrapping_add(1));
            let sum = core::ptr::addr_of_mut!((*counter).bytes);
            sum.write_volatile(sum.read_volatile().wrapping_add(bytes as u64));
        }
    }
}
