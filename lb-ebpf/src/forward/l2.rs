//! Mode `l2`: the frame is addressed to the backend, and its packet stays as it is.

use aya_ebpf::{bindings::xdp_action::XDP_TX, programs::XdpContext};
use lb_common::{
    backend::{BackendState, NextHop},
    headers::ETH_LEN,
    verdict::Reason,
};

use super::{address, head, header::Header};
use lb_ebpf::packet::Frame;

use crate::parse::Segment;

/// A frame without VLAN tags, to a next hop without, by this action.
#[inline(always)]
pub(super) fn rewrite_plain<H: Header>(
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
    action: u32,
) -> Result<(), Reason> {
    if is_too_long(segment, hop, action, false) {
        return Err(Reason::TooBig);
    }
    let frame = Frame::of(ctx)
        .at(0, ETH_LEN + H::LEN)
        .ok_or(Reason::Malformed)?;
    H::take_a_hop(frame.after(ETH_LEN))?;
    address(frame, hop);
    Ok(())
}

/// Any frame, by this action.
#[inline(always)]
pub(super) fn rewrite<H: Header>(
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
    state: BackendState,
    action: u32,
) -> Result<(), Reason> {
    let grows = ETH_LEN + head::tags_len(state) > segment.network();
    if is_too_long(segment, hop, action, grows) {
        return Err(Reason::TooBig);
    }
    let ip = Frame::of(ctx)
        .at(segment.network(), H::LEN)
        .ok_or(Reason::Malformed)?;
    H::take_a_hop(ip)?;
    head::write(H::ETHERTYPE, ctx, segment, hop, state, 0)?;
    Ok(())
}

/// Whether a packet is too long for the way to its backend. It is no longer than the interface that it came in by allows; but by another one, or with tags that were
/// not there (the frame `grows`), it may be dropped without a word.
#[inline(always)]
fn is_too_long(segment: &Segment, hop: &NextHop, action: u32, grows: bool) -> bool {
    (grows || action != XDP_TX) && segment.length > hop.mtu as u32
}
