//! Sending a segment on, by its backend's mode.

mod head;
mod ipip;
mod l2;
mod reset;

use core::mem::{offset_of, size_of};

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    backend::{Backend, BackendState, Mode, NextHop},
    csum,
    verdict::Reason,
};

use lb_ebpf::packet::Bytes;

use crate::{maps, parse::Segment};

/// Rewrites a frame without VLAN tags for its backend, whose next hop has none either: in fewer instructions than [`forward`]. Ends in the
/// XDP action that sends it; what it cannot do is left to [`forward`].
#[inline(always)]
pub(crate) fn forward_plain(
    ctx: &XdpContext,
    segment: &Segment,
    backend: *const Backend,
    state: BackendState,
) -> Option<u32> {
    let mode = state.mode()?;
    let hop = hop_in_force(backend, state);
    let action = egress(ctx, hop).ok()?;
    match mode {
        Mode::Ipip => ipip::encapsulate_plain(ctx, segment, hop).ok()?,
        Mode::L2 => l2::rewrite_plain(ctx, hop).ok()?,
    }
    Some(action)
}

/// Rewrites the frame for its backend. Ends in the XDP action that sends it.
#[inline(always)]
pub(crate) fn forward(
    ctx: &XdpContext,
    segment: &Segment,
    backend: *const Backend,
    state: BackendState,
) -> Result<u32, Reason> {
    let mode = state.mode().ok_or(Reason::UnknownMode)?;
    let hop = hop_in_force(backend, state);
    let action = egress(ctx, hop)?;
    match mode {
        Mode::Ipip => ipip::encapsulate(ctx, segment, hop, state)?,
        Mode::L2 => l2::rewrite(ctx, segment, hop, state)?,
    }
    Ok(action)
}

#[inline(always)]
fn hop_in_force<'a>(backend: *const Backend, state: BackendState) -> &'a NextHop {
    // SAFETY: an entry of the map; the hop that the state names does not change before a grace period has passed.
    unsafe {
        &*core::ptr::addr_of!((*backend).hops)
            .cast::<NextHop>()
            .add(state.hop())
    }
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

/// The action by which a frame leaves: back out of the interface that it came in by, or out of another. To be asked for before the frame
/// is touched, since it may not be possible.
#[inline(always)]
fn egress(ctx: &XdpContext, hop: &NextHop) -> Result<u32, Reason> {
    if ctx.ingress_ifindex() as u32 == hop.ifindex {
        Ok(xdp_action::XDP_TX)
    } else {
        maps::redirect(hop.ifindex).ok_or(Reason::NoEgress)
    }
}

/// Eight bytes of a next hop, as they go onto the wire.
#[inline(always)]
fn hop_word(hop: &NextHop, index: usize) -> u64 {
    const _: () = assert!(size_of::<NextHop>() == 40 && offset_of!(NextHop, destination) == 0);
    // SAFETY: one of five words of an entry of the map, which is aligned.
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
