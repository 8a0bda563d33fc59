//! Watching: tells the daemon of single packets. Every call here is behind [`maps::watches`], a constant that the verifier knows: in the program that
//! runs while nobody listens, nothing of this is left.
//!
//! A packet's first bytes are kept from before anything is done to it; what is found out on its way is added, and where it is counted, in whichever program
//! that is, it is told of.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{
        bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_ringbuf_output, bpf_xdp_get_buff_len,
        bpf_xdp_load_bytes,
    },
    programs::XdpContext,
};
use lb_common::{
    flow::word::Word,
    hash::mix,
    headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    net::Address,
    verdict::Reason,
    watch::{ANY, Filter, Head, LISTENERS, MOST_KEPT},
};

use lb_ebpf::packet::is_vlan;

use crate::{hide, maps};

/// Keeps a packet as it came in.
#[inline(always)]
pub(crate) fn begin(ctx: &XdpContext) {
    if maps::watches() {
        keep(ctx);
    }
}

/// Notes that a value of the packet's flow has taken the place of another.
#[inline(always)]
pub(crate) fn changed(seen: Word, new: Word) {
    if maps::watches() {
        note(seen, new);
    }
}

/// Tells of the packet whoever wants to hear of it.
#[inline(always)]
pub(crate) fn end(reason: u32, service: u32, backend: u32) {
    if maps::watches() {
        tell(reason, service, backend);
    }
}

#[inline(never)]
fn keep(ctx: &XdpContext) {
    let Some(record) = maps::record() else {
        return;
    };
    let md = ctx.as_ptr().cast();
    // SAFETY: a helper on the context.
    let length = unsafe { bpf_xdp_get_buff_len(md) } as u32;
    let wanted = if length < MOST_KEPT {
        length
    } else {
        MOST_KEPT
    };
    // One more than what the verifier sees to be below what there is room for: that of 6.1 would not see from a comparison that it is not nothing, which is
    // no length to load. Of nothing, which no frame is, this would be more than there is, and none is loaded.
    let kept = (hide::bits::<MOST_KEPT>((wanted as u64).wrapping_sub(1)) + 1) as u32;
    // SAFETY: this CPU's record, which has room for so many bytes.
    unsafe {
        let data = core::ptr::addr_of_mut!((*record).data);
        if bpf_xdp_load_bytes(md, 0, data.cast(), kept) != 0 {
            return;
        }
        let head = core::ptr::addr_of_mut!((*record).head);
        (*head).at_ns = bpf_ktime_get_ns();
        (*head).length = length;
        (*head).kept = kept;
        (*head).ifindex = (*ctx.ctx).ingress_ifindex;
        (*head).change = 0;
        (*head).is_on_its_way = 1;
        let data = data.cast::<u8>();
        let mut at = 12;
        if is_vlan(half(data, at)) {
            at = 16;
            if is_vlan(half(data, at)) {
                at = 20;
            }
        }
        ends(data, at, head);
    }
}

/// # Safety
/// It is a record's data.
#[inline(always)]
unsafe fn half(data: *const u8, at: usize) -> u16 {
    // SAFETY: within the data; the target loads unaligned words.
    unsafe { data.add(at).cast::<u16>().read_volatile() }
}

/// Notes the addresses of the packet whose EtherType is at `at`. Of a short one, what another has left is taken for its addresses: it is told of as malformed.
///
/// # Safety
/// They are a record's.
#[inline(always)]
unsafe fn ends(data: *const u8, at: usize, head: *mut Head) {
    // SAFETY: within the data.
    unsafe {
        let word = |offset: usize| data.add(at + offset).cast::<u32>().read_volatile();
        let source = core::ptr::addr_of_mut!((*head).source).cast::<u32>();
        let destination = core::ptr::addr_of_mut!((*head).destination).cast::<u32>();
        let put = |to: *mut u32, words: [u32; 4]| {
            to.write_volatile(words[0]);
            to.add(1).write_volatile(words[1]);
            to.add(2).write_volatile(words[2]);
            to.add(3).write_volatile(words[3]);
        };
        let ethertype = half(data, at);
        if ethertype == ETHERTYPE_IPV4.to_be() {
            // IPv4-mapped, as addresses are everywhere.
            put(source, [0, 0, 0xffff_u32.to_be(), word(14)]);
            put(destination, [0, 0, 0xffff_u32.to_be(), word(18)]);
        } else if ethertype == ETHERTYPE_IPV6.to_be() {
            put(source, [word(10), word(14), word(18), word(22)]);
            put(destination, [word(26), word(30), word(34), word(38)]);
        } else {
            put(source, [0; 4]);
            put(destination, [0; 4]);
        }
    }
}

/// No function of its own: the verifier of 6.1 counts the frame of one that is never called, and this is called where the stack is deepest.
#[inline(always)]
fn note(seen: Word, new: Word) {
    let (before, after) = (seen.0 as u32 & 7, new.0 as u32 & 7);
    if before == after || !seen.is_entry() || !new.is_entry() {
        return;
    }
    if let Some(record) = maps::record() {
        // SAFETY: this CPU's record.
        unsafe { (*record).head.change = before | (after << 8) };
    }
}

#[inline(never)]
fn tell(reason: u32, service: u32, backend: u32) {
    let Some(record) = maps::record() else {
        return;
    };
    // SAFETY: this CPU's record.
    let head = unsafe { &mut *core::ptr::addr_of_mut!((*record).head) };
    if head.is_on_its_way == 0 {
        return;
    }
    head.is_on_its_way = 0;
    head.reason = reason;
    head.service = service;
    head.backend = backend;
    head.client_port = 0;
    if reason == Reason::Reply as u32 {
        // The client, whom the packet as it came in does not name in mode `nat`.
        let noted = maps::handed_on();
        head.destination = Address::of_words(noted.client);
        head.client_port = noted.client_port;
    }
    let now_ns = maps::now_ns();
    let mut wanted = 0;
    let mut listeners = 0;
    let mut index = 0;
    while index < LISTENERS {
        if let Some(filter) = maps::filter(index) {
            // SAFETY: an entry of the map. Volatile: the daemon writes it meanwhile.
            let until_ns = unsafe { core::ptr::addr_of!((*filter).until_ns).read_volatile() };
            if now_ns < until_ns {
                // SAFETY: as above.
                let filter = unsafe { &*filter };
                if matches(head, filter) {
                    listeners |= 1 << index;
                    if wanted < filter.kept {
                        wanted = filter.kept;
                    }
                }
            }
        }
        index += 1;
    }
    if listeners == 0 {
        return;
    }
    head.listeners = listeners;
    if head.kept > wanted {
        head.kept = wanted;
    }
    let kept = hide::number(head.kept as u64) & MOST_KEPT as u64;
    // SAFETY: this CPU's record, which has so many bytes.
    let told = unsafe {
        bpf_ringbuf_output(
            maps::told(),
            record.cast(),
            size_of::<Head>() as u64 + kept,
            0,
        )
    };
    if told != 0 {
        head.lost += 1;
    }
}

#[inline(always)]
fn matches(head: &Head, filter: &Filter) -> bool {
    let is_wanted = (filter.reasons >> (head.reason & 63)) & 1 != 0
        || (filter.changes != 0 && head.change != 0);
    if !is_wanted
        || (filter.service != ANY && filter.service != head.service)
        || (filter.backend != ANY && filter.backend != head.backend)
    {
        return false;
    }
    let (source, destination) = (head.source.words(), head.destination.words());
    let is_in = |address: [u64; 2]| {
        address[0] & filter.mask[0] == filter.prefix[0]
            && address[1] & filter.mask[1] == filter.prefix[1]
    };
    if !is_in(source) && !is_in(destination) {
        return false;
    }
    let chance = if filter.by_flow != 0 {
        // By the client's address, which is the same in both directions: of a reply, which has its port noted, it is the destination. Without a branch, which
        // the kernel's verifier would follow both ways.
        let port = hide::number(u64::from(head.client_port));
        let is_back = (port.wrapping_neg() >> 63).wrapping_neg();
        let first = source[0] ^ ((source[0] ^ destination[0]) & is_back);
        let second = source[1] ^ ((source[1] ^ destination[1]) & is_back);
        mix(first ^ second, &maps::flow_seed()) as u32
    } else {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    };
    chance <= filter.sample
}
