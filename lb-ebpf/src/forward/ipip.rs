//! Mode `ipip`: IPv4 in IPv4 (RFC 2003), IPv4 or IPv6 in IPv6 (RFC 2473).

use aya_ebpf::{helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use lb_common::{
    backend::{BackendState, NextHop},
    csum,
    headers::{
        ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_DF, IPV4_LEN, IPV6_LEN, PROTO_IPIP, TTL,
    },
    verdict::Reason,
};

use super::{head, header::Header, hop_word};
use lb_ebpf::packet::{Bytes, Frame};

use crate::{
    family::{V4, V6},
    parse::Segment,
};

/// In IPv4, a frame without VLAN tags, to a next hop without.
#[inline(always)]
pub(super) fn in_ipv4_plain<H: Header>(
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
) -> Result<(), Reason> {
    let (length, start) = take_in_ipv4::<H>(ctx, segment, hop)?;
    let head = grow::<IPV4_LEN>(ctx, hop, (traffic_class(start) as u64) << 56)?;
    finish_ipv4(head.after(ETH_LEN), hop, length, start);
    Ok(())
}

/// In IPv4, any frame.
#[inline(always)]
pub(super) fn in_ipv4<H: Header>(
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
    state: BackendState,
) -> Result<(), Reason> {
    let (length, start) = take_in_ipv4::<H>(ctx, segment, hop)?;
    let at = head::write(ETHERTYPE_IPV4, ctx, segment, hop, state, IPV4_LEN)?;
    let outer = Frame::of(ctx).at(at, IPV4_LEN).ok_or(Reason::NoHeadroom)?;
    outer.set_raw16(0, u16::from_le_bytes([0x45, traffic_class(start)]));
    finish_ipv4(outer, hop, length, start);
    Ok(())
}

/// In IPv6, a frame without VLAN tags, to a next hop without.
#[inline(always)]
pub(super) fn in_ipv6_plain<H: Header>(
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
) -> Result<(), Reason> {
    let (length, start) = take_in_ipv6::<H>(ctx, segment, hop)?;
    let rest = ((start >> 16) as u16).to_be();
    let head = grow::<IPV6_LEN>(ctx, hop, (rest as u64) << 48)?;
    finish_ipv6::<H>(head.after(ETH_LEN), hop, length, start);
    Ok(())
}

/// In IPv6, any frame.
#[inline(always)]
pub(super) fn in_ipv6<H: Header>(
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
    state: BackendState,
) -> Result<(), Reason> {
    let (length, start) = take_in_ipv6::<H>(ctx, segment, hop)?;
    let at = head::write(ETHERTYPE_IPV6, ctx, segment, hop, state, IPV6_LEN)?;
    let outer = Frame::of(ctx).at(at, IPV6_LEN).ok_or(Reason::NoHeadroom)?;
    outer.set_u16(0, 0x6000 | (start >> 16) as u16);
    finish_ipv6::<H>(outer, hop, length, start);
    Ok(())
}

/// Makes room for an outer header, and writes the frame's Ethernet header and the outer one's first two bytes; `rest` is what of these the
/// next hop does not know.
#[inline(always)]
fn grow<const LEN: usize>(ctx: &XdpContext, hop: &NextHop, rest: u64) -> Result<Bytes, Reason> {
    // SAFETY: a helper on the context.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(LEN as i32)) } != 0 {
        return Err(Reason::NoHeadroom);
    }
    let head = Frame::of(ctx)
        .at(0, ETH_LEN + LEN)
        .ok_or(Reason::NoHeadroom)?;
    head.set_raw64(0, hop_word(hop, 0));
    head.set_raw64(8, hop_word(hop, 1) | rest);
    Ok(head)
}

/// Takes a hop off the packet that becomes the inner one. Gives the outer one's length, and its [`start`].
#[inline(always)]
fn take_in_ipv4<H: Header>(
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
) -> Result<(u32, u32), Reason> {
    // No service with an IPv6 address has a backend with an IPv4 one: the daemon refuses that.
    if H::PROTOCOL != PROTO_IPIP {
        return Err(Reason::UnknownMode);
    }
    let inner = take_in::<H>(ctx, segment, hop, IPV4_LEN)?;
    Ok((
        segment.length + IPV4_LEN as u32,
        start::<H>(inner, segment.source_port),
    ))
}

/// Takes a hop off the packet that becomes the inner one. Gives the outer one's payload length, and its [`start`].
#[inline(always)]
fn take_in_ipv6<H: Header>(
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
) -> Result<(u32, u32), Reason> {
    let inner = take_in::<H>(ctx, segment, hop, IPV6_LEN)?;
    Ok((segment.length, start::<H>(inner, segment.source_port)))
}

/// What an outer header takes over from the flow, in one number: in bits 20 to 27 the inner header's traffic class, or type of service, congestion
/// marks included (RFC 6040, section 4.1); in bits 0 to 19 what tells flows apart, so that routers on the way and the receiver's queues share them
/// out. That is the flow label (RFC 6438), and what varies of the source.
#[inline(always)]
fn start<H: Header>(inner: Bytes, source_port: u16) -> u32 {
    let client = H::client(inner) ^ ((source_port as u32) << 16);
    let label = client.wrapping_mul(0x9e37_79b1) >> 12;
    ((H::traffic_class(inner) as u32) << 20) | label
}

/// What may vary of the outer source, for a [`start`]; network byte order. The label's first bits depend on the whole of the client's endpoint, and become
/// the address's last ones, which any prefix has.
#[inline(always)]
fn varied(start: u32) -> u16 {
    (start >> 4) as u16
}

/// The traffic class, or type of service, of a [`start`].
#[inline(always)]
fn traffic_class(start: u32) -> u8 {
    (start >> 20) as u8
}

/// Takes a hop off the packet that becomes the inner one, if it fits with `room` bytes before it. Gives its header.
#[inline(always)]
fn take_in<H: Header>(
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
    room: usize,
) -> Result<Bytes, Reason> {
    if segment.length + room as u32 > hop.mtu as u32 {
        return Err(Reason::TooBig);
    }
    let inner = Frame::of(ctx)
        .at(segment.network(), H::LEN)
        .ok_or(Reason::Malformed)?;
    H::take_a_hop(inner)?;
    Ok(inner)
}

/// Writes the outer header from its length on.
#[inline(always)]
fn finish_ipv4(outer: Bytes, hop: &NextHop, length: u32, start: u32) {
    const CONSTANTS: u64 =
        u64::from_le_bytes([0, 0, 0, 0, (IPV4_DF >> 8) as u8, 0, TTL, PROTO_IPIP]);
    outer.set_raw64(2, CONSTANTS | (length as u16).to_be() as u64);
    let varied = varied(start) & V4::varies(hop);
    let constant = hop.checksum_base as u32 + traffic_class(start) as u32 + length;
    let sum = constant + u16::from_be(varied) as u32;
    outer.set_u16(10, csum::finish_short(sum));
    outer.set_raw64(12, hop_word(hop, 3) | ((varied as u64) << 16));
}

/// Writes the outer header from the rest of its flow label on.
#[inline(always)]
fn finish_ipv6<H: Header>(outer: Bytes, hop: &NextHop, length: u32, start: u32) {
    const fn constants(next_header: u8) -> u64 {
        u64::from_le_bytes([0, 0, 0, 0, next_header, TTL, 0, 0])
    }
    let label = (start as u16).to_be() as u64;
    let length = ((length as u16).to_be() as u64) << 16;
    // Its last two bytes are the address's, which come next.
    outer.set_raw64(2, constants(H::PROTOCOL) | length | label);
    outer.set_raw64(8, hop_word(hop, 3));
    let varied = varied(start) & V6::varies(hop);
    outer.set_raw64(16, hop_word(hop, 4) | ((varied as u64) << 48));
    outer.set_raw64(24, hop_word(hop, 5));
    outer.set_raw64(32, hop_word(hop, 6));
}
