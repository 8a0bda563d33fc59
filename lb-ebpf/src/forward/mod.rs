//! Sending a segment on, by its backend's mode.

mod ipip;
mod l2;
mod reset;

use core::mem::{offset_of, size_of};

use aya_ebpf::{bindings::xdp_action, helpers::generated::bpf_redirect, programs::XdpContext};
use lb_common::{
    backend::{Backend, BackendState, Mode, NextHop},
    csum,
    verdict::Reason,
};

use lb_ebpf::packet::Bytes;

use crate::parse::Segment;

/// Rewrites the frame for its backend. Ends in the XDP action that sends it.
#[inline(always)]
pub(crate) fn forward(
    ctx: &XdpContext,
    segment: &Segment,
    backend: *const Backend,
    state: BackendState,
) -> Result<u32, Reason> {
    // SAFETY: an entry of the map; the hop that the state names does not change before a grace period has passed.
    let hop = unsafe {
        &*core::ptr::addr_of!((*backend).hops)
            .cast::<NextHop>()
            .add(state.hop())
    };
    if state.mode_code() == Mode::Ipip as u8 {
        ipip::encapsulate(ctx, segment, hop)?;
    } else if state.mode_code() == Mode::L2 as u8 {
        l2::rewrite(ctx, segment, hop)?;
    } else {
        return Err(Reason::UnknownMode);
    }
    Ok(send(ctx, hop.ifindex))
}

/// Answers the frame with a RST. Ends in the XDP action that sends it.
#[inline(always)]
pub(crate) fn reset(ctx: &XdpContext) -> Result<u32, Reason> {
    match reset::answer(ctx.ctx) {
        reset::SENT => Ok(xdp_action::XDP_TX),
        code if code == Reason::ResetLimited as u32 => Err(Reason::ResetLimited),
        _ => Err(Reason::NoReset),
    }
}

/// Out of the interface it came in by, or of another.
#[inline(always)]
fn send(ctx: &XdpContext, ifindex: u32) -> u32 {
    if ctx.ingress_ifindex() as u32 == ifindex {
        xdp_action::XDP_TX
    } else {
        // SAFETY: a helper that takes numbers.
        unsafe { bpf_redirect(ifindex, 0) as u32 }
    }
}

/// Eight bytes of a next hop, as they go onto the wire.
#[inline(always)]
fn hop_word(hop: &NextHop, index: usize) -> u64 {
    const _: () = assert!(size_of::<NextHop>() == 32 && offset_of!(NextHop, destination) == 0);
    // SAFETY: one of four words of an entry of the map, which is aligned.
    unsafe {
        core::ptr::from_ref(hop)
            .cast::<u64>()
            .add(index)
            .read_volatile()
    }
}

/// Writes a next hop's addresses into an Ethernet header: destination and source lie in the entry as in the header.
#[inline(always)]
fn address(ethernet: Bytes, hop: &NextHop) {
    ethernet.set_raw64(0, hop_word(hop, 0));
    ethernet.set_raw32(8, hop_word(hop, 1) as u32);
}

/// Takes one hop off an IPv4 packet's time to live.
#[inline(always)]
fn take_a_hop(ip: Bytes) -> Result<(), Reason> {
    let time_to_live = ip.u8(8);
    if time_to_live <= 1 {
        return Err(Reason::TtlExpired);
    }
    ip.set_u8(8, time_to_live - 1);
    ip.set_raw16(10, csum::after_a_hop(ip.raw16(10)));
    Ok(())
}
