//! A RST to a client whose backend is dead (RFC 9293, section 3.10.7.1): sequence number from the segment's acknowledgement, no ACK.

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_xdp_adjust_tail, programs::XdpContext};
use lb_common::{
    csum,
    headers::{ETH_LEN, IPV4_DF, IPV4_LEN, PROTO_TCP, TCP_LEN, TTL},
    tcp,
    verdict::Reason,
};

use lb_ebpf::packet::Frame;

use crate::{
    maps,
    parse::{self, Parsed, Segment},
};

/// Length of the answer from its IPv4 header on.
const LENGTH: usize = IPV4_LEN + TCP_LEN;

/// Turns the frame into the answer and sends it back where it came from.
///
/// A function of its own that parses the frame again: the segment would otherwise have to lie in the caller's stack frame, which is
/// scarce.
#[inline(never)]
pub(crate) fn answer(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    match parse::parse(&ctx) {
        Ok(Parsed::Segment(segment)) => match write(&ctx, &segment) {
            Ok(()) => SENT,
            Err(reason) => reason as u32,
        },
        _ => Reason::NoReset as u32,
    }
}

/// What [`answer`] returns when the answer is ready to be sent; else it is the code of a reason. (BPF functions return numbers.)
pub(crate) const SENT: u32 = u32::MAX;

#[inline(always)]
fn write(ctx: &XdpContext, segment: &Segment) -> Result<(), Reason> {
    if !maps::may_reset(maps::now_ns()) {
        return Err(Reason::ResetLimited);
    }
    let tcp = Frame::of(ctx)
        .at(segment.transport(), TCP_LEN)
        .ok_or(Reason::Malformed)?;
    let acknowledgement = tcp.u32(8);
    let header_len = (tcp.u8(12) >> 4) as u32 * 4;
    let has_ack = segment.tcp.has(tcp::ACK);

    let frame = Frame::of(ctx);
    let ethernet = frame.at(0, ETH_LEN).ok_or(Reason::Malformed)?;
    let (a, b, c) = (ethernet.raw32(0), ethernet.raw32(4), ethernet.raw32(8));
    // Destination is a and the lower half of b, source the upper half of b and c.
    ethernet.set_raw32(0, (b >> 16) | (c << 16));
    ethernet.set_raw32(4, (c >> 16) | (a << 16));
    ethernet.set_raw32(8, (a >> 16) | (b << 16));

    let ip = frame
        .at(segment.network(), LENGTH)
        .ok_or(Reason::Malformed)?;
    ip.set_raw16(0, u16::from_ne_bytes([0x45, 0]));
    ip.set_u16(2, LENGTH as u16);
    ip.set_raw16(4, 0);
    ip.set_u16(6, IPV4_DF);
    ip.set_raw16(8, u16::from_ne_bytes([TTL, PROTO_TCP]));
    let addresses = csum::halves(segment.source) + csum::halves(segment.destination);
    let header = 0x4500 + LENGTH as u64 + IPV4_DF as u64 + (((TTL as u64) << 8) | PROTO_TCP as u64);
    ip.set_u16(10, csum::finish(header + addresses));
    ip.set_u32(12, segment.destination);
    ip.set_u32(16, segment.source);

    // A segment without ACK is answered with sequence number 0 and an acknowledgement of all it had, its FIN included.
    let (seq, ack, flags) = if has_ack {
        (acknowledgement, 0, tcp::RST)
    } else {
        let payload = (segment.length as u32)
            .wrapping_sub(segment.transport as u32)
            .wrapping_sub(header_len);
        let taken = payload.wrapping_add(segment.tcp.has(tcp::FIN) as u32);
        (0, segment.tcp.seq.wrapping_add(taken), tcp::RST | tcp::ACK)
    };
    let offset_and_flags = 0x5000 | flags as u16;
    ip.set_u16(IPV4_LEN, segment.destination_port);
    ip.set_u16(IPV4_LEN + 2, segment.source_port);
    ip.set_u32(IPV4_LEN + 4, seq);
    ip.set_u32(IPV4_LEN + 8, ack);
    ip.set_u16(IPV4_LEN + 12, offset_and_flags);
    ip.set_raw32(IPV4_LEN + 14, 0);
    ip.set_raw16(IPV4_LEN + 18, 0);
    let pseudo = addresses + PROTO_TCP as u64 + TCP_LEN as u64;
    let ports = segment.destination_port as u64 + segment.source_port as u64;
    let sum = pseudo + ports + csum::halves(seq) + csum::halves(ack) + offset_and_flags as u64;
    ip.set_u16(IPV4_LEN + 16, csum::finish(sum));

    cut(ctx, segment.network() + LENGTH)
}

/// Cuts the frame to `length` bytes, all buffers of it.
#[inline(always)]
fn cut(ctx: &XdpContext, length: usize) -> Result<(), Reason> {
    // SAFETY: a helper on the context.
    let whole = unsafe { aya_ebpf::helpers::generated::bpf_xdp_get_buff_len(ctx.ctx) } as usize;
    if whole > length {
        // SAFETY: a helper on the context.
        let cut = unsafe { bpf_xdp_adjust_tail(ctx.ctx, -((whole - length) as i32)) };
        if cut != 0 {
            return Err(Reason::NoReset);
        }
    }
    Ok(())
}
