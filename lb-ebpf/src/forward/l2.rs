//! Mode `l2`: the destination MAC is rewritten; VLAN tags stay.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    backend::NextHop,
    headers::{ETH_LEN, IPV4_LEN},
    verdict::Reason,
};

use super::{address, take_a_hop};
use lb_ebpf::packet::Frame;

use crate::parse::Segment;

#[inline(always)]
pub(crate) fn rewrite(ctx: &XdpContext, segment: &Segment, hop: &NextHop) -> Result<(), Reason> {
    let frame = Frame::of(ctx);
    let ethernet = frame.at(0, ETH_LEN).ok_or(Reason::Malformed)?;
    let ip = frame
        .at(segment.network(), IPV4_LEN)
        .ok_or(Reason::Malformed)?;
    take_a_hop(ip)?;
    address(ethernet, hop);
    Ok(())
}
