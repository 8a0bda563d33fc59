//! Mode `l2`: the frame is addressed to the backend, and its packet stays as it is.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    backend::{BackendState, NextHop},
    headers::ETH_LEN,
    verdict::Reason,
};

use super::{address, head, header::Header};
use lb_ebpf::packet::Frame;

use crate::parse::Segment;

/// A frame without VLAN tags, to a next hop without.
#[inline(always)]
pub(super) fn rewrite_plain<H: Header>(ctx: &XdpContext, hop: &NextHop) -> Result<(), Reason> {
    let frame = Frame::of(ctx)
        .at(0, ETH_LEN + H::LEN)
        .ok_or(Reason::Malformed)?;
    H::take_a_hop(frame.after(ETH_LEN))?;
    address(frame, hop);
    Ok(())
}

/// Any frame.
#[inline(always)]
pub(super) fn rewrite<H: Header>(
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
    state: BackendState,
) -> Result<(), Reason> {
    // A packet is no longer than the interface that it came in by allows. With tags that were not there it may be too long for the
    // egress interface, which would drop it without a word.
    if ETH_LEN + head::tags_len(state) > segment.network() && segment.length > hop.mtu as u32 {
        return Err(Reason::TooBig);
    }
    let ip = Frame::of(ctx)
        .at(segment.network(), H::LEN)
        .ok_or(Reason::Malformed)?;
    H::take_a_hop(ip)?;
    head::write(H::ETHERTYPE, ctx, segment, hop, state, 0)?;
    Ok(())
}
