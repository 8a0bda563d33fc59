//! Mode `ipip`: IPv4 in IPv4 (RFC 2003).

use aya_ebpf::{helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use lb_common::{
    backend::{BackendState, NextHop},
    csum,
    headers::{ETH_LEN, IPV4_DF, IPV4_LEN, PROTO_IPIP, TTL},
    verdict::Reason,
};

use super::{head, hop_word, take_a_hop};
use lb_ebpf::packet::{Bytes, Frame};

use crate::parse::Segment;

/// A frame without VLAN tags, to a next hop without.
#[inline(always)]
pub(super) fn encapsulate_plain(
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
) -> Result<(), Reason> {
    let (length, type_of_service) = take_in(ctx, segment, hop)?;
    // SAFETY: a helper on the context.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(IPV4_LEN as i32)) } != 0 {
        return Err(Reason::NoHeadroom);
    }
    let head = Frame::of(ctx)
        .at(0, ETH_LEN + IPV4_LEN)
        .ok_or(Reason::NoHeadroom)?;
    head.set_raw64(0, hop_word(hop, 0));
    head.set_raw64(8, hop_word(hop, 1) | ((type_of_service as u64) << 56));
    finish(head.after(ETH_LEN), hop, length, type_of_service);
    Ok(())
}

/// Any frame.
#[inline(always)]
pub(super) fn encapsulate(
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
    state: BackendState,
) -> Result<(), Reason> {
    let (length, type_of_service) = take_in(ctx, segment, hop)?;
    let at = head::write(ctx, segment, hop, state, IPV4_LEN)?;
    let outer = Frame::of(ctx).at(at, IPV4_LEN).ok_or(Reason::NoHeadroom)?;
    outer.set_raw16(0, u16::from_le_bytes([0x45, type_of_service]));
    finish(outer, hop, length, type_of_service);
    Ok(())
}

/// Takes a hop off the packet that becomes the inner one. Gives the outer one's length and type of service.
#[inline(always)]
fn take_in(ctx: &XdpContext, segment: &Segment, hop: &NextHop) -> Result<(u32, u8), Reason> {
    let length = segment.length as u32 + IPV4_LEN as u32;
    if length > hop.mtu as u32 {
        return Err(Reason::TooBig);
    }
    let inner = Frame::of(ctx)
        .at(segment.network(), IPV4_LEN)
        .ok_or(Reason::Malformed)?;
    take_a_hop(inner)?;
    // The outer header carries the inner type of service, congestion marks included (RFC 6040, section 4.1).
    Ok((length, inner.u8(1)))
}

/// Writes the outer header from its length on.
#[inline(always)]
fn finish(outer: Bytes, hop: &NextHop, length: u32, type_of_service: u8) {
    const CONSTANTS: u64 =
        u64::from_le_bytes([0, 0, 0, 0, (IPV4_DF >> 8) as u8, 0, TTL, PROTO_IPIP]);
    outer.set_raw64(2, CONSTANTS | (length as u16).to_be() as u64);
    let sum = hop.checksum_base as u32 + type_of_service as u32 + length;
    outer.set_u16(10, csum::finish_short(sum));
    outer.set_raw64(12, hop_word(hop, 2));
}
