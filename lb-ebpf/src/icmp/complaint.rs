//! Telling a client that its packet cannot go on: too big for the way to the backend (RFC 1191, RFC 8201), or out of hops.

use aya_ebpf::{
    bindings::xdp_action, helpers::generated::bpf_xdp_adjust_head, programs::XdpContext,
};
use lb_common::{
    backend::Forwarding,
    csum,
    headers::{ETH_LEN, ICMP_LEN, IPV4_LEN, IPV6_LEN},
    maps::KEPT_NS,
    verdict::Reason,
};

use lb_ebpf::packet::{Bytes, Frame};

use super::Icmp;
use crate::{
    forward::{Header, cut, hop_in_force},
    hide, maps,
};

/// Answers the frame with the error that a reason stands for: [`Reason::TooBig`], for a way of this MTU, or [`Reason::TtlExpired`]. Ends in the
/// reason and the action of what came of that.
#[inline(always)]
pub(crate) fn complain<F: Icmp>(ctx: &XdpContext, mtu: u32, reason: Reason) -> (Reason, u32) {
    let mtu = if matches!(reason, Reason::TooBig) {
        mtu.max(F::LEAST_MTU)
    } else {
        0
    };
    match F::complain(ctx.ctx, mtu) {
        SENT => (reason, xdp_action::XDP_TX),
        LIMITED => (Reason::AnswerLimited, xdp_action::XDP_DROP),
        _ => (Reason::NoAnswer, xdp_action::XDP_DROP),
    }
}

// What came of an answer: numbers, since that is what a BPF function returns.
/// It is ready to be sent.
pub(super) const SENT: u32 = 0;
/// Too many were sent lately.
pub(super) const LIMITED: u32 = 1;
/// The frame could not be made into it.
pub(super) const FAILED: u32 = 2;

/// Turns the frame into the error about the packet at `network`.
#[inline(always)]
pub(super) fn answer<F: Icmp + Header>(ctx: &XdpContext, network: usize, mtu: u32) -> u32 {
    let (kind, kept_ns) = if mtu == 0 {
        (F::EXPIRED, KEPT_NS)
    } else {
        (F::TOO_BIG, 0)
    };
    if !maps::may_answer(maps::now_ns(), kept_ns) {
        return LIMITED;
    }
    match write::<F>(ctx, network, kind, mtu) {
        Some(()) => SENT,
        None => FAILED,
    }
}

/// The longest packet that gets to a backend; 0 is none.
#[inline(always)]
pub(crate) fn room_on_the_way_to(backend: u32) -> u32 {
    let Some((backend, state)) = maps::backend(backend) else {
        return 0;
    };
    let outer = match state.forwarding() {
        _ if state.is_local() => 0,
        Some(Forwarding::InIpv4) => IPV4_LEN as u32,
        Some(Forwarding::InIpv6) => IPV6_LEN as u32,
        _ => 0,
    };
    (hop_in_force(backend, state).mtu as u32).saturating_sub(outer)
}

#[inline(always)]
fn write<F: Icmp + Header>(
    ctx: &XdpContext,
    network: usize,
    kind: [u8; 2],
    mtu: u32,
) -> Option<()> {
    let quoted_len = F::quoted_len(ctx, network)?;
    let room = F::LEN + ICMP_LEN;
    // SAFETY: a helper on the context.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(room as i32)) } != 0 {
        return None;
    }
    turn_around(ctx, room)?;
    finish::<F>(ctx, network, kind, mtu, quoted_len)
}

/// Writes the headers of an error at `network`, behind which the packet stands that it quotes, and cuts that.
#[inline(always)]
pub(super) fn finish<F: Icmp + Header>(
    ctx: &XdpContext,
    network: usize,
    kind: [u8; 2],
    mtu: u32,
    quoted_len: u32,
) -> Option<()> {
    let room = F::LEN + ICMP_LEN;
    let sum_of_quote = sum(ctx, network + room, quoted_len)?;
    let head = Frame::of(ctx).at(network, 2 * F::LEN + ICMP_LEN)?;
    let message = head.after(F::LEN);
    let start = F::write_header(head, head.after(room), ICMP_LEN as u32 + quoted_len);
    let first = u16::from_ne_bytes(kind);
    message.set_raw16(0, first);
    message.set_raw16(2, 0);
    message.set_u32(4, mtu);
    let sum = start + sum_of_quote + first as u64 + mtu.to_be() as u64;
    message.set_raw16(2, csum::finish(sum));
    cut(ctx, network + room + quoted_len as usize).ok()
}

/// Writes the head of a frame that has got `room` bytes before it: as it was, VLAN tags included, its MAC addresses swapped.
#[inline(always)]
fn turn_around(ctx: &XdpContext, room: usize) -> Option<()> {
    let old = Frame::of(ctx).at(room, ETH_LEN + 8)?;
    let macs = old.macs_swapped();
    // Two tags and the EtherType; or fewer, and what the IP header will be written over.
    let (rest, last) = (old.raw64(12), old.raw16(20));
    let new = Frame::of(ctx).at(0, ETH_LEN + 8)?;
    new.set_macs(macs);
    new.set_raw64(12, rest);
    new.set_raw16(20, last);
    Some(())
}

/// More than is ever quoted, in bytes; a power of two.
pub(super) const MOST_QUOTED: u32 = 128;

/// The running sum of `len` bytes of the frame, a multiple of four and less than [`MOST_QUOTED`], in network byte order.
#[inline(always)]
fn sum(ctx: &XdpContext, offset: usize, len: u32) -> Option<u64> {
    let mut sum = 0;
    let mut at = 0;
    // Hidden, or the compiler would leave this bound out, and keep only that by a variable, which the verifier of 6.1 does not follow.
    while hide::number(at) < u64::from(MOST_QUOTED) {
        if at >= u64::from(len) {
            break;
        }
        sum += word(Frame::of(ctx).at(offset + at as usize, 4)?);
        at += 4;
    }
    Some(sum)
}

#[inline(always)]
fn word(bytes: Bytes) -> u64 {
    bytes.raw32(0) as u64
}
