//! Mode `ipip`: IPv4 in IPv4 (RFC 2003); VLAN tags stay.

use aya_ebpf::{helpers::generated::bpf_xdp_adjust_head, programs::XdpContext};
use lb_common::{
    backend::NextHop,
    csum,
    headers::{ETH_LEN, ETHERTYPE_IPV4, IPV4_DF, IPV4_LEN, PROTO_IPIP, TTL, VLAN_LEN},
    verdict::Reason,
};

use super::{address, decrement_ttl};
use lb_ebpf::packet::Frame;

use crate::parse::Segment;

#[inline(always)]
pub(crate) fn encapsulate(
    ctx: &XdpContext,
    segment: &Segment,
    hop: &NextHop,
    backend: u32,
) -> Result<(), Reason> {
    let length = segment.length as u32 + IPV4_LEN as u32;
    if length > hop.mtu {
        return Err(Reason::TooBig);
    }
    let ip = Frame::of(ctx)
        .at(segment.network(), IPV4_LEN)
        .ok_or(Reason::Malformed)?;
    decrement_ttl(ip)?;
    let type_of_service = ip.u8(1);
    // SAFETY: a helper on the context.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(IPV4_LEN as i32)) } != 0 {
        return Err(Reason::NoHeadroom);
    }
    let frame = Frame::of(ctx);
    // Tags are where the old Ethernet header was; they move to the front.
    let tags = segment.network() - ETH_LEN;
    if tags != 0 {
        move_tags(frame, tags)?;
    }
    let ethernet = frame.at(0, ETH_LEN).ok_or(Reason::NoHeadroom)?;
    address(ethernet, hop);
    if tags == 0 {
        ethernet.set_u16(12, ETHERTYPE_IPV4);
    }
    let outer = frame
        .at(segment.network(), IPV4_LEN)
        .ok_or(Reason::NoHeadroom)?;
    // The outer header carries the inner type of service, congestion marks included (RFC 6040, section 4.1).
    outer.set_raw16(0, u16::from_ne_bytes([0x45, type_of_service]));
    outer.set_u16(2, length as u16);
    outer.set_raw16(4, 0);
    outer.set_u16(6, IPV4_DF);
    outer.set_raw16(8, u16::from_ne_bytes([TTL, PROTO_IPIP]));
    outer.set_u16(
        10,
        csum::finish_short(hop.checksum_base + type_of_service as u32 + length),
    );
    outer.set_u32(12, hop.outer_source);
    outer.set_u32(16, backend);
    Ok(())
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
