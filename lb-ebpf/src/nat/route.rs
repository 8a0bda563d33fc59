//! The way to a client: what the kernel would do, asked at each packet, so that a route that changes and a gateway that fails over count at once.

use core::ffi::c_int;

use aya_ebpf::{
    bindings::xdp_md, helpers::generated::bpf_fib_lookup as look_up, programs::XdpContext,
};
use lb_common::{
    backend::{BackendState, NextHop},
    headers::PROTO_TCP,
    nat::{LINK_PLACES, link_place},
    net::VlanTag,
};

use crate::{family::Family, maps, rewrite};

// What came of it: numbers, since that is what a BPF function returns.
/// There is a way: the hop to the client is written.
pub(super) const FOUND: u32 = 0;
/// There is a way, whose next hop's MAC address the kernel does not know: the packet is for it to send. If something drops it there, as conntrack
/// does with what it calls invalid, the kernel never asks for that address: so the daemon is told to see to it.
pub(super) const NO_NEIGHBOUR: u32 = 1;
/// The packet is too long for it.
pub(super) const TOO_BIG: u32 = 2;
/// There is none.
pub(super) const NONE: u32 = 3;

/// `struct bpf_fib_lookup` (include/uapi/linux/bpf.h).
#[repr(C)]
struct Lookup {
    family: u8,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    /// In: length of the packet. Out: the MTU.
    length: u16,
    /// In: where the packet came in. Out: where it leaves.
    ifindex: u32,
    type_of_service: u32,
    source: [u64; 2],
    /// Out: the next hop's address, of the version that `family` is then.
    destination: [u64; 2],
    vlan: [u16; 2],
    source_mac: [u16; 3],
    destination_mac: [u16; 3],
}

const _: () = assert!(size_of::<Lookup>() == 64);

/// BPF_FIB_LKUP_RET_NO_NEIGH.
const RETURN_NO_NEIGHBOUR: i64 = 7;
/// BPF_FIB_LKUP_RET_FRAG_NEEDED.
const RETURN_TOO_BIG: i64 = 8;

/// Looks for the way to the client that has been handed on, for a packet of its service of `length` bytes. Notes the MTU.
#[inline(always)]
pub(super) fn find<F: Family>(ctx: *mut xdp_md, length: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let Some(noted) = maps::to_hand_on() else {
        return NONE;
    };
    noted.mtu = 0;
    let Some((vip, port)) = rewrite::vip::<F>(noted.service) else {
        return NONE;
    };
    let mut lookup = Lookup {
        family: F::FAMILY,
        protocol: PROTO_TCP,
        source_port: port.to_be(),
        destination_port: (noted.client_port as u16).to_be(),
        length: length as u16,
        ifindex: ctx.ingress_ifindex() as u32,
        type_of_service: 0,
        source: F::in_route(vip),
        destination: F::in_route(F::of_words(noted.client)),
        vlan: [0; 2],
        source_mac: [0; 3],
        destination_mac: [0; 3],
    };
    // SAFETY: a helper on the context, with a structure as it asks for, of the size given.
    let found = unsafe {
        look_up(
            ctx.ctx.cast(),
            core::ptr::from_mut(&mut lookup).cast(),
            size_of::<Lookup>() as c_int,
            0,
        )
    };
    match found {
        0 => {}
        RETURN_NO_NEIGHBOUR => {
            let by = lookup.ifindex as u64 | (lookup.family as u64) << 32;
            maps::tell_unresolved(lookup.destination, by);
            return NO_NEIGHBOUR;
        }
        RETURN_TOO_BIG => {
            noted.mtu = lookup.length as u32;
            return TOO_BIG;
        }
        _ => return NONE,
    }
    noted.mtu = lookup.length as u32;
    let Some(hop) = maps::hop_to_client() else {
        return NONE;
    };
    write(hop, &lookup);
    noted.state = through_vlans(hop);
    FOUND
}

#[inline(always)]
fn write(hop: &mut NextHop, lookup: &Lookup) {
    hop.ifindex = lookup.ifindex;
    hop.mtu = lookup.length;
    hop.tags = [VlanTag::NONE; 2];
    // SAFETY: both addresses are the first twelve bytes of an aligned entry.
    unsafe {
        let macs = core::ptr::from_mut(hop).cast::<u16>();
        macs.write_volatile(lookup.destination_mac[0]);
        macs.add(1).write_volatile(lookup.destination_mac[1]);
        macs.add(2).write_volatile(lookup.destination_mac[2]);
        macs.add(3).write_volatile(lookup.source_mac[0]);
        macs.add(4).write_volatile(lookup.source_mac[1]);
        macs.add(5).write_volatile(lookup.source_mac[2]);
    }
}

/// If the interface is a device of VLANs, has the frame leave by the one below it with the tags that it would put on. Gives a state with
/// their number.
#[inline(always)]
fn through_vlans(hop: &mut NextHop) -> u64 {
    let device = hop.ifindex;
    let mut before = 0;
    while before < LINK_PLACES {
        let Some(link) = maps::link(link_place(device, before)) else {
            break;
        };
        // SAFETY: an entry of the map. Volatile: the daemon may write it meanwhile.
        let (ifindex, physical, tags) = unsafe {
            (
                core::ptr::addr_of!((*link).ifindex).read_volatile(),
                core::ptr::addr_of!((*link).physical).read_volatile(),
                core::ptr::addr_of!((*link).tags)
                    .cast::<u64>()
                    .read_volatile(),
            )
        };
        if ifindex == 0 {
            break;
        }
        if ifindex == device {
            hop.ifindex = physical;
            // SAFETY: the last eight bytes of an aligned entry.
            unsafe {
                core::ptr::addr_of_mut!(hop.tags)
                    .cast::<u64>()
                    .write_volatile(tags)
            };
            let count = (tags as u16 != 0) as u8 + ((tags >> 32) as u16 != 0) as u8;
            return BackendState(0).tagged(count).0;
        }
        before += 1;
    }
    0
}
