//! Errors from the way between here and a backend of mode `ipip`: a router tells this host that a packet which was encapsulated here is too big, or gets
//! no further. It is the client's packet, so the client has to know (RFC 2003, section 5; RFC 2473, section 8).
//!
//! Only what is about a packet that was encapsulated here, for the backend of the flow that it is of, is believed; the rest is the host's. Nobody can end
//! a client's attempt to connect by forging that who could not by an error to the client itself: the client hears the quoted sequence number too, and its
//! own stack believes only what quotes one that it has sent and that nobody has acknowledged (RFC 5927, section 4.1): while it connects, that of its SYN.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::generated::bpf_xdp_adjust_head,
    programs::XdpContext,
};
use lb_common::{
    headers::{ETH_LEN, ICMP_LEN, VLAN_LEN},
    maps::KEPT_NS,
    verdict::Reason,
};

use lb_ebpf::packet::Frame;

use super::{Told, complaint, header_at};
use crate::{
    count::Tally,
    family::{Family, V4, V6},
    flow,
    forward::{Header, hop_in_force},
    hide, maps,
    parse::{self, Ends},
};

/// What has to be quoted of TCP, bytes: as much as the client is told.
const QUOTED_TCP_LEN: usize = 8;

/// An error about an IPv4 packet that holds another.
#[inline(never)]
pub(super) fn tunnel4(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    match parse::network_of::<V4>(&ctx) {
        Some(network) => tell::<V4, V4>(&ctx, network),
        None => xdp_action::XDP_PASS,
    }
}

/// An error about an IPv6 packet that holds another.
#[inline(never)]
pub(super) fn tunnel6(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    match parse::network_of::<V6>(&ctx) {
        Some(network) => tell::<V6, V6>(&ctx, network),
        None => xdp_action::XDP_PASS,
    }
}

/// An error about an IPv6 packet that holds one of IPv4.
#[inline(never)]
pub(super) fn tunnel4in6(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    match parse::network_of::<V6>(&ctx) {
        Some(network) => tell::<V6, V4>(&ctx, network),
        None => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn tell<O: Family, I: Family>(ctx: &XdpContext, network: usize) -> u32 {
    let mut tally = Tally::new();
    let (reason, action) = match try_tell::<O, I>(ctx, network, &mut tally) {
        Ok(()) => (Reason::ErrorRelayed, xdp_action::XDP_TX),
        Err(Reason::NotService) => (Reason::NotService, xdp_action::XDP_PASS),
        Err(reason) => (reason, xdp_action::XDP_DROP),
    };
    tally.count(reason);
    action
}

/// Makes the error about the outer packet one about the inner packet, from the VIP to the client.
#[inline(always)]
fn try_tell<O: Family, I: Family>(
    ctx: &XdpContext,
    network: usize,
    tally: &mut Tally,
) -> Result<(), Reason> {
    let message = O::message(ctx, network).ok_or(Reason::NotService)?;
    let at = network + message.header_len;
    let Told(mtu) =
        O::told(header_at(ctx, at).ok_or(Reason::NotService)?).ok_or(Reason::NotService)?;
    let quote = at + ICMP_LEN;
    let outer_len = O::quoted_tunnel(ctx, quote).ok_or(Reason::NotService)?;
    let inner = quote + outer_len;
    let outer = Frame::of(ctx).at(quote, O::LEN).ok_or(Reason::NotService)?;
    // Who has sent a packet is told of it.
    if O::ends(outer).source != message.ends.destination {
        return Err(Reason::NotService);
    }
    let ip = Frame::of(ctx).at(inner, I::LEN).ok_or(Reason::NotService)?;
    let Ends {
        source: client,
        destination: vip,
    } = I::ends(ip);
    let tcp = I::quoted_tcp(ctx, inner).ok_or(Reason::NotService)?;
    // What stands behind the message in its frame is no part of what it quotes.
    if message.header_len + ICMP_LEN + outer_len + tcp + QUOTED_TCP_LEN > message.length as usize {
        return Err(Reason::NotService);
    }
    let ports = Frame::of(ctx)
        .at(inner + tcp, QUOTED_TCP_LEN)
        .ok_or(Reason::NotService)?;
    let (client_port, port) = (ports.u16(0), ports.u16(2));
    let service = I::service(vip, port)?;
    let id = flow::concerned::<I>(service, client, client_port);
    let (backend, state) = maps::backend(id).ok_or(Reason::NotService)?;
    // At most the headers of Ethernet, with two tags, of IPv4 with options, and of ICMP.
    let quote = hide::bits::<0x7f>(quote as u64) as usize;
    let outer = Frame::of(ctx).at(quote, O::LEN).ok_or(Reason::NotService)?;
    if !O::is_outer_of(outer, hop_in_force(backend, state)) {
        return Err(Reason::NotService);
    }
    tally.bytes = network as u32 + message.length;
    tally.service(service);
    tally.backend(id);
    // Without a branch: the verifier would follow both sides through all that comes.
    let is_dead_end = hide::number(mtu as u64).wrapping_sub(1) >> 63;
    if !maps::may_answer(maps::now_ns(), KEPT_NS * is_dead_end) {
        return Err(Reason::AnswerLimited);
    }
    shrink::<O, I>(ctx, network, inner).ok_or(Reason::NoAnswer)?;
    // Read again, since it would have to lie on the stack meanwhile.
    let tcp = I::quoted_tcp(ctx, network + I::LEN + ICMP_LEN).ok_or(Reason::NoAnswer)?;
    let (kind, room) = if mtu == 0 {
        (I::NO_WAY, 0)
    } else {
        let room = mtu.saturating_sub(O::LEN as u32).max(I::LEAST_MTU);
        (I::TOO_BIG, room)
    };
    let quoted_len = (tcp + QUOTED_TCP_LEN) as u32;
    complaint::finish::<I>(ctx, network, kind, room, quoted_len).ok_or(Reason::NoAnswer)
}

/// Takes away what is before the inner packet, but for the room of the headers that are to come, and writes the frame's head there, its MAC
/// addresses swapped: the way back to the router that has told is a way to the client.
#[inline(always)]
fn shrink<O: Header, I: Header>(ctx: &XdpContext, network: usize, inner: usize) -> Option<()> {
    let old = Frame::of(ctx).at(0, ETH_LEN + 2 * VLAN_LEN)?;
    let macs = old.macs_swapped();
    let (mut rest, mut last) = (old.raw64(12), old.raw16(20));
    if O::ETHERTYPE != I::ETHERTYPE {
        let ethertype = I::ETHERTYPE.to_be();
        // Behind no tag, behind one, behind two.
        if network == ETH_LEN {
            rest = (rest & !0xffff) | ethertype as u64;
        } else if network == ETH_LEN + VLAN_LEN {
            rest = (rest & !(0xffff << 32)) | ((ethertype as u64) << 32);
        } else {
            last = ethertype;
        }
    }
    let excess = inner as i32 - (network + I::LEN + ICMP_LEN) as i32;
    // SAFETY: a helper on the context.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, excess) } != 0 {
        return None;
    }
    let new = Frame::of(ctx).at(0, ETH_LEN + 2 * VLAN_LEN)?;
    new.set_macs(macs);
    new.set_raw64(12, rest);
    new.set_raw16(20, last);
    Some(())
}
