//! Mode `ipip`: IPv4 in IPv4 (RFC 2003); VLAN tags stay.

use aya_ebpf::{helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use lb_common::{
    backend::NextHop,
    csum,
    headers::{ETH_LEN, IPV4_DF, IPV4_LEN, PROTO_IPIP, TTL, VLAN_LEN},
    verdict::Reason,
};

use super::{address, hop_word, take_a_hop};
use lb_ebpf::packet::{Bytes, Frame};

use crate::parse::Segment;

#[inline(always)]
pub(crate) fn encapsulate(
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
) -> Result<(), Reason> {
    let length = segment.length as u32 + IPV4_LEN as u32;
    if length > hop.mtu as u32 {
        return Err(Reason::TooBig);
    }
    let inner = Frame::of(ctx)
        .at(segment.network(), IPV4_LEN)
        .ok_or(Reason::Malformed)?;
    take_a_hop(inner)?;
    // The outer header carries the inner type of service, congestion marks included (RFC 6040, section 4.1).
    let type_of_service = inner.u8(1);
    // SAFETY: a helper on the context.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(IPV4_LEN as i32)) } != 0 {
        return Err(Reason::NoHeadroom);
    }
    let outer = start(Frame::of(ctx), segment, hop, type_of_service)?;
    const CONSTANTS: u64 =
        u64::from_le_bytes([0, 0, 0, 0, (IPV4_DF >> 8) as u8, 0, TTL, PROTO_IPIP]);
    outer.set_raw64(2, CONSTANTS | (length as u16).to_be() as u64);
    let sum = hop.checksum_base as u32 + type_of_service as u32 + length;
    outer.set_u16(10, csum::finish_short(sum));
    outer.set_raw64(12, hop_word(hop, 2));
    Ok(())
}

/// Writes what comes before the outer header's length; gives the outer header.
#[inline(always)]
fn start(
    frame: Frame,
    segment: &Segment,
    hop: &NextHop,
    type_of_service: u8,
) -> Result<Bytes, Reason> {
    let tags = segment.network() - ETH_LEN;
    if tags == 0 {
        let head = frame.at(0, ETH_LEN + IPV4_LEN).ok_or(Reason::NoHeadroom)?;
        head.set_raw64(0, hop_word(hop, 0));
        head.set_raw64(8, hop_word(hop, 1) | ((type_of_service as u64) << 56));
        return Ok(head.after(ETH_LEN));
    }
    // Tags are where the old Ethernet header was; they move to the front.
    move_tags(frame, tags)?;
    address(frame.at(0, ETH_LEN).ok_or(Reason::NoHeadroom)?, hop);
    let outer = frame
        .at(segment.network(), IPV4_LEN)
        .ok_or(Reason::NoHeadroom)?;
    outer.set_raw16(0, u16::from_le_bytes([0x45, type_of_service]));
    Ok(outer)
}

/// Moves one or two VLAN tags, and the EtherType behind them, to where the frame begins now.
#[inline(always)]
fn move_tags(frame: Frame, tags: usize) -> Result<(), Reason> {
    let old = frame
        .at(IPV4_LEN + 12, VLAN_LEN + 2)
        .ok_or(Reason::NoHeadroom)?;
    let new = frame.at(12, VLAN_LEN + 2).ok_or(Reason::NoHeadroom)?;
    new.set_raw16(0, old.raw16(0));
    new.set_raw32(2, old.raw32(2));
    if tags > VLAN_LEN {
        let old = frame
            .at(IPV4_LEN + 18, VLAN_LEN)
            .ok_or(Reason::NoHeadroom)?;
        let new = frame.at(18, VLAN_LEN).ok_or(Reason::NoHeadroom)?;
        new.set_raw32(0, old.raw32(0));
    }
    Ok(())
}
