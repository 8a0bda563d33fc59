//! A RST to a client: its backend is dead or past a drain's deadline, or its segment is of a flow that cannot go on (RFC 9293, section 3.10.7.1). To a
//! segment with ACK, the number that this acknowledges is the sequence number, and there is no ACK; to one without, all that it had is acknowledged.

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_xdp_adjust_tail, programs::XdpContext};
use lb_common::{
    csum,
    headers::{ETH_LEN, IPV4_DF, IPV4_LEN, IPV6_LEN, PROTO_TCP, TCP_LEN, TTL},
    tcp,
    verdict::Reason,
};

use lb_ebpf::packet::{Bytes, Frame};

use crate::{
    family::{V4, V6},
    maps,
    parse::{self, Parse, Parsed, Segment},
};

/// Answering, in one version of IP.
pub(crate) trait Answer {
    /// Turns the frame into the answer and sends it back where it came from; `told` is the backend that the daemon is to tell of it, 0 is none.
    /// [`SENT`], or the code of a reason. (BPF functions return numbers.)
    ///
    /// A function of its own that parses the frame again: the segment would otherwise have to lie in the caller's stack frame, which is
    /// scarce.
    fn answer(ctx: *mut xdp_md, told: u32) -> u32;
    /// The same, of which nobody is told: what that takes is not even part of a program that only does this.
    fn refuse(ctx: *mut xdp_md) -> u32;
}

/// What [`Answer::answer`] returns when the answer is ready to be sent.
pub(super) const SENT: u32 = u32::MAX;

impl Answer for V4 {
    #[inline(always)]
    fn answer(ctx: *mut xdp_md, told: u32) -> u32 {
        answer4(ctx, told)
    }

    #[inline(always)]
    fn refuse(ctx: *mut xdp_md) -> u32 {
        refuse4(ctx)
    }
}

impl Answer for V6 {
    #[inline(always)]
    fn answer(ctx: *mut xdp_md, told: u32) -> u32 {
        answer6(ctx, told)
    }

    #[inline(always)]
    fn refuse(ctx: *mut xdp_md) -> u32 {
        refuse6(ctx)
    }
}

#[inline(never)]
fn answer4(ctx: *mut xdp_md, told: u32) -> u32 {
    answer::<V4>(ctx, told)
}

#[inline(never)]
fn answer6(ctx: *mut xdp_md, told: u32) -> u32 {
    answer::<V6>(ctx, told)
}

#[inline(never)]
fn refuse4(ctx: *mut xdp_md) -> u32 {
    answer::<V4>(ctx, 0)
}

#[inline(never)]
fn refuse6(ctx: *mut xdp_md) -> u32 {
    answer::<V6>(ctx, 0)
}

#[inline(always)]
fn answer<F: Envelope>(ctx: *mut xdp_md, told: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let Some(network) = parse::network_of::<F>(&ctx) else {
        return Reason::NoAnswer as u32;
    };
    match F::parse(&ctx, network) {
        Ok(Parsed::Segment(segment, _)) => match write::<F>(&ctx, &segment, told) {
            Ok(()) => SENT,
            Err(reason) => reason as u32,
        },
        _ => Reason::NoAnswer as u32,
    }
}

/// The IP header of an answer.
trait Envelope: Parse {
    /// Its length.
    const LEN: usize;

    /// Tells the daemon of the flow that is closed here. A function of its own, for its stack.
    fn notify(ip: Bytes, tcp: Bytes, backend: u32);

    /// Writes it over that of the segment which is answered, its ends swapped. Gives the running sum of the addresses' 16-bit words.
    fn write(ip: Bytes) -> u64;
}

impl Envelope for V4 {
    const LEN: usize = IPV4_LEN;

    #[inline(always)]
    fn notify(ip: Bytes, tcp: Bytes, backend: u32) {
        notify4(ip, tcp, backend);
    }

    #[inline(always)]
    fn write(ip: Bytes) -> u64 {
        let (source, destination) = (ip.u32(12), ip.u32(16));
        const LENGTH: u16 = (IPV4_LEN + TCP_LEN) as u16;
        ip.set_raw16(0, u16::from_ne_bytes([0x45, 0]));
        ip.set_u16(2, LENGTH);
        ip.set_raw16(4, 0);
        ip.set_u16(6, IPV4_DF);
        ip.set_raw16(8, u16::from_ne_bytes([TTL, PROTO_TCP]));
        let addresses = csum::halves(source) + csum::halves(destination);
        let header =
            0x4500 + LENGTH as u64 + IPV4_DF as u64 + (((TTL as u64) << 8) | PROTO_TCP as u64);
        ip.set_u16(10, csum::finish(header + addresses));
        ip.set_u32(12, destination);
        ip.set_u32(16, source);
        addresses
    }
}

impl Envelope for V6 {
    const LEN: usize = IPV6_LEN;

    #[inline(always)]
    fn notify(ip: Bytes, tcp: Bytes, backend: u32) {
        notify6(ip, tcp, backend);
    }

    #[inline(always)]
    fn write(ip: Bytes) -> u64 {
        ip.set_u32(0, 0x6000_0000);
        ip.set_u16(4, TCP_LEN as u16);
        ip.set_raw16(6, u16::from_ne_bytes([PROTO_TCP, TTL]));
        // A sum of words in network byte order has its bytes swapped, and is that of 32-bit words too (RFC 1071, section 2).
        csum::fold(swap(ip, 8, 24) + swap(ip, 16, 32)).swap_bytes() as u64
    }
}

/// Swaps two words of a packet. Gives the running sum of their four 32-bit words, in network byte order.
#[inline(always)]
fn swap(ip: Bytes, one: usize, other: usize) -> u64 {
    let (first, second) = (ip.raw64(one), ip.raw64(other));
    ip.set_raw64(one, second);
    ip.set_raw64(other, first);
    (first >> 32) + (first & 0xffff_ffff) + (second >> 32) + (second & 0xffff_ffff)
}

#[inline(always)]
fn write<F: Envelope>(ctx: &XdpContext, segment: &Segment, told: u32) -> Result<(), Reason> {
    if !maps::may_reset(maps::now_ns()) {
        return Err(Reason::ResetLimited);
    }
    let tcp = Frame::of(ctx)
        .at(segment.transport(), TCP_LEN)
        .ok_or(Reason::Malformed)?;
    if told != 0 {
        let ip = Frame::of(ctx)
            .at(segment.network(), F::LEN)
            .ok_or(Reason::Malformed)?;
        F::notify(ip, tcp, told);
    }
    let acknowledgement = tcp.u32(8);
    let header_len = (tcp.u8(12) >> 4) as u32 * 4;
    let has_ack = segment.tcp.has(tcp::ACK);

    let frame = Frame::of(ctx);
    let ethernet = frame.at(0, ETH_LEN).ok_or(Reason::Malformed)?;
    ethernet.set_macs(ethernet.macs_swapped());

    let ip = frame
        .at(segment.network(), F::LEN + TCP_LEN)
        .ok_or(Reason::Malformed)?;
    let addresses = F::write(ip);

    // A segment without ACK is answered with sequence number 0 and an acknowledgement of all it had, its SYN and FIN included.
    let (seq, ack, flags) = if has_ack {
        (acknowledgement, 0, tcp::RST)
    } else {
        let payload = segment
            .length
            .wrapping_sub(segment.headers_len())
            .wrapping_sub(header_len);
        let ends = segment.tcp.has(tcp::FIN) as u32 + segment.tcp.has(tcp::SYN) as u32;
        let taken = payload.wrapping_add(ends);
        (0, segment.tcp.seq.wrapping_add(taken), tcp::RST | tcp::ACK)
    };
    let offset_and_flags = 0x5000 | flags as u16;
    let tcp = ip.after(F::LEN);
    tcp.set_u16(0, segment.destination_port);
    tcp.set_u16(2, segment.source_port);
    tcp.set_u32(4, seq);
    tcp.set_u32(8, ack);
    tcp.set_u16(12, offset_and_flags);
    tcp.set_raw32(14, 0);
    tcp.set_raw16(18, 0);
    let pseudo = addresses + PROTO_TCP as u64 + TCP_LEN as u64;
    let ports = segment.destination_port as u64 + segment.source_port as u64;
    let sum = pseudo + ports + csum::halves(seq) + csum::halves(ack) + offset_and_flags as u64;
    tcp.set_u16(16, csum::finish(sum));

    cut(ctx, segment.network() + F::LEN + TCP_LEN)
}

#[inline(never)]
fn notify4(ip: Bytes, tcp: Bytes, backend: u32) {
    notify::<V4>(ip, tcp, backend);
}

#[inline(never)]
fn notify6(ip: Bytes, tcp: Bytes, backend: u32) {
    notify::<V6>(ip, tcp, backend);
}

#[inline(always)]
fn notify<F: Envelope>(ip: Bytes, tcp: Bytes, backend: u32) {
    let Some((entry, _)) = maps::backend(backend) else {
        return;
    };
    // SAFETY: an entry of the map, of which this does not change while the backend is in use.
    let service = unsafe { core::ptr::addr_of!((*entry).service).read_volatile() };
    maps::notify(|notice| {
        let ends = F::ends(ip);
        let (client, vip) = (F::as_words(ends.source), F::as_words(ends.destination));
        let set = |word: usize, value: u64| {
            // SAFETY: one of the words of a notice that is ours to write, and aligned. Volatile, so that none of it is made on the stack.
            unsafe { notice.cast::<u64>().add(word).write_volatile(value) }
        };
        set(0, client[0]);
        set(1, client[1]);
        set(2, vip[0]);
        set(3, vip[1]);
        set(4, backend as u64 | (tcp.u32(4) as u64) << 32);
        let ports = tcp.u16(0) as u64 | (tcp.u16(2) as u64) << 16;
        set(5, tcp.u32(8) as u64 | ports << 32);
        set(6, service as u64);
    });
}

/// Cuts the frame to `length` bytes, all buffers of it.
#[inline(always)]
pub(crate) fn cut(ctx: &XdpContext, length: usize) -> Result<(), Reason> {
    // SAFETY: a helper on the context.
    let whole = unsafe { aya_ebpf::helpers::generated::bpf_xdp_get_buff_len(ctx.ctx) } as usize;
    if whole > length {
        // SAFETY: a helper on the context.
        let cut = unsafe { bpf_xdp_adjust_tail(ctx.ctx, -((whole - length) as i32)) };
        if cut != 0 {
            return Err(Reason::NoAnswer);
        }
    }
    Ok(())
}
