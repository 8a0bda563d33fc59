//! Echo requests to a VIP that the host does not own: nobody else would answer.

use aya_ebpf::programs::XdpContext;
use lb_common::{csum, headers::ETH_LEN, verdict::Reason};

use lb_ebpf::packet::Frame;

use super::{Icmp, Message, header_at};
use crate::{forward::Header, parse::Parse};

/// Turns the request into its reply: the ends swapped, all that was sent sent back.
#[inline(always)]
pub(super) fn answer<F: Icmp + Parse + Header>(
    ctx: &XdpContext,
    network: usize,
    message: &Message<F>,
) -> Result<(), Reason> {
    let icmp = header_at(ctx, network + message.header_len).ok_or(Reason::NotService)?;
    let before = icmp.u16(0);
    let after = ((F::ECHO_REPLY as u16) << 8) | (before & 0xff);
    icmp.set_u16(0, after);
    // A swap of two addresses changes no sum.
    icmp.set_u16(2, csum::update(icmp.u16(2), before, after));
    let ip = Frame::of(ctx)
        .at(network, F::LEN)
        .ok_or(Reason::NotService)?;
    F::swap_ends(ip);
    F::renew(ip);
    let ethernet = Frame::of(ctx).at(0, ETH_LEN).ok_or(Reason::NotService)?;
    ethernet.set_macs(ethernet.macs_swapped());
    Ok(())
}
