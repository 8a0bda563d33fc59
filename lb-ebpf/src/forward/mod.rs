//! Sending a segment on, by its backend's mode.

mod ipip;
mod l2;
mod reset;

use core::mem::offset_of;

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
        // SAFETY: as above; the address never changes.
        let address = unsafe { (*backend).address };
        ipip::encapsulate(ctx, segment, hop, address)?;
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

/// Writes a next hop's addresses into an Ethernet header: destination and source lie in the entry as in the header, so three words do.
#[inline(always)]
fn address(ethernet: Bytes, hop: &NextHop) {
    const _: () =
        assert!(offset_of!(NextHop, destination) == 0 && offset_of!(NextHop, source) == 6);
    let words = core::ptr::from_ref(hop).cast::<u32>();
    let mut word = 0;
    while word < 3 {
        // SAFETY: the first 12 bytes of an entry of the map, which is aligned.
        ethernet.set_raw32(4 * word, unsafe { words.add(word).read_volatile() });
        word += 1;
    }
}

/// Takes one hop off an IPv4 packet's time to live.
#[inline(always)]
fn decrement_ttl(ip: Bytes) -> Result<(), Reason> {
    let ttl = ip.u8(8);
    if ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    let old = ip.u16(8);
    let new = old - 0x100;
    ip.set_u8(8, ttl - 1);
    ip.set_u16(10, csum::update(ip.u16(10), old, new));
    Ok(())
}
