//! Sending a segment on, by its backend's mode.

mod head;
mod header;
mod ipip;
mod l2;
mod reset;

use core::mem::{offset_of, size_of};

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    backend::{Backend, BackendState, Forwarding, NextHop},
    verdict::Reason,
};

use lb_ebpf::packet::Bytes;

pub(crate) use self::{
    head::write as write_head,
    header::Header,
    reset::{Answer, cut},
};
use crate::{maps, parse::Segment};

/// Rewrites a frame without VLAN tags for its backend, whose next hop has none either: in fewer instructions than [`forward`]. Ends in the
/// XDP action that sends it; what it cannot do is left to [`forward`].
#[inline(always)]
pub(crate) fn forward_plain<H: Header>(
    ctx: &XdpContext,
    segment: &Segment,
    backend: *const Backend,
    state: BackendState,
) -> Option<u32> {
    let forwarding = state.forwarding()?;
    let hop = hop_in_force(backend, state);
    let action = egress(ctx, hop).ok()?;
    match forwarding {
        Forwarding::InIpv4 => ipip::in_ipv4_plain::<H>(ctx, segment, hop).ok()?,
        Forwarding::InIpv6 => ipip::in_ipv6_plain::<H>(ctx, segment, hop).ok()?,
        Forwarding::L2 => l2::rewrite_plain::<H>(ctx, segment, hop, action).ok()?,
        Forwarding::Nat | Forwarding::Dnat => return None,
    }
    Some(action)
}

/// Rewrites the frame for its backend. Ends in the XDP action that sends it.
#[inline(always)]
pub(crate) fn forward<H: Header>(
    ctx: &XdpContext,
    segment: &Segment,
    backend: *const Backend,
    state: BackendState,
) -> Result<u32, Reason> {
    let forwarding = state.forwarding().ok_or(Reason::UnknownMode)?;
    if state.is_local() {
        // A message about a flow, and not of it.
        return Err(Reason::UnknownMode);
    }
    let hop = hop_in_force(backend, state);
    let action = egress(ctx, hop)?;
    match forwarding {
        Forwarding::InIpv4 => ipip::in_ipv4::<H>(ctx, segment, hop, state)?,
        Forwarding::InIpv6 => ipip::in_ipv6::<H>(ctx, segment, hop, state)?,
        Forwarding::L2 => l2::rewrite::<H>(ctx, segment, hop, state, action)?,
        // A message about a flow, and not of it; or a service's entry that does not say what its backends do.
        Forwarding::Nat | Forwarding::Dnat => return Err(Reason::UnknownMode),
    }
    Ok(action)
}

/// The next hop that a backend's state names.
#[inline(always)]
pub(crate) fn hop_in_force<'a>(backend: *const Backend, state: BackendState) -> &'a NextHop {
    // SAFETY: an entry of the map; the hop that the state names does not change before a grace period has passed.
    unsafe {
        &*core::ptr::addr_of!((*backend).hops)
            .cast::<NextHop>()
            .add(state.hop())
    }
}

/// Answers the frame with a RST, and has the daemon tell this backend, if it is one (0 is none). Ends in the XDP action that sends it.
#[inline(always)]
pub(crate) fn reset<A: Answer>(ctx: &XdpContext, told: u32) -> Result<u32, Reason> {
    sent(A::answer(ctx.ctx, told))
}

/// Answers the frame with a RST that concerns its client alone. Ends in the XDP action that sends it.
#[inline(always)]
pub(crate) fn refuse<A: Answer>(ctx: &XdpContext) -> Result<u32, Reason> {
    sent(A::refuse(ctx.ctx))
}

/// What comes of an answer: see [`Answer::answer`].
#[inline(always)]
fn sent(code: u32) -> Result<u32, Reason> {
    match code {
        reset::SENT => Ok(xdp_action::XDP_TX),
        code if code == Reason::ResetLimited as u32 => Err(Reason::ResetLimited),
        _ => Err(Reason::NoAnswer),
    }
}

/// The backend that the daemon is to tell of a RST that its client got, for this reason: only one that lives. 0 is none.
#[inline(always)]
pub(crate) fn told(reason: Reason, backend: u32) -> u32 {
    // Without a branch: the verifier would follow both sides.
    backend * (reason as u32 == Reason::DrainDeadline as u32) as u32
}

/// The action by which a frame leaves: back out of the interface that it came in by, or out of another. To be asked for before the frame
/// is touched, since it may not be possible.
#[inline(always)]
pub(crate) fn egress(ctx: &XdpContext, hop: &NextHop) -> Result<u32, Reason> {
    if ctx.ingress_ifindex() as u32 == hop.ifindex {
        Ok(xdp_action::XDP_TX)
    } else {
        maps::redirect(hop.ifindex).ok_or(Reason::NoEgress)
    }
}

/// Eight of a next hop's 64 bytes, as they go onto the wire.
#[inline(always)]
fn hop_word(hop: &NextHop, index: usize) -> u64 {
    const _: () = assert!(size_of::<NextHop>() == 64 && offset_of!(NextHop, destination) == 0);
    // SAFETY: one of the words of an entry of the map, which is aligned.
    unsafe {
        core::ptr::from_ref(hop)
            .cast::<u64>()
            .add(index)
            .read_volatile()
    }
}

/// Writes a next hop's addresses into an Ethernet header: destination and source lie in the entry as in the header.
#[inline(always)]
pub(crate) fn address(ethernet: Bytes, hop: &NextHop) {
    ethernet.set_raw64(0, hop_word(hop, 0));
    ethernet.set_raw32(8, hop_word(hop, 1) as u32);
}
