//! What only the bench, the packet tests and the labs load: floors to compare with, the harness that makes packets in the kernel, programs that
//! prepare a frame's surroundings, and a generator of floods.
//!
//! A repeated test run hands each round the packet that the round before left behind. The harness therefore writes every byte of the headers
//! anew, and takes off what an encapsulation put on, before it calls the program under test.
#![no_std]
#![no_main]

mod flood;
mod prepare;
mod runtime;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, xdp_action},
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    macros::{map, xdp},
    maps::{Array, ProgramArray},
    programs::XdpContext,
};
use lb_common::{
    bench::{FRAME_LEN, FRAME6_LEN, Kind, Orders, address6, backend, client, endpoint, next},
    csum,
    hash::scale,
    headers::{
        ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_DF, IPV4_LEN, IPV6_LEN, PROTO_IPIP,
        PROTO_TCP, TCP_LEN, TTL,
    },
    net::IpVersion,
    tcp,
};

use lb_ebpf::packet::{Bytes, Frame};

#[map]
static ORDERS: Array<Orders> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static UNDER_TEST: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Makes a packet, then calls the program under test.
#[xdp(frags)]
fn harness(ctx: XdpContext) -> u32 {
    if make(&ctx).is_some() {
        // SAFETY: a helper on the context. It returns only if it fails.
        unsafe { UNDER_TEST.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn make(ctx: &XdpContext) -> Option<()> {
    let orders = ORDERS.get_ptr_mut(0)?;
    // SAFETY: an entry of the map; a test run has one CPU.
    let orders = unsafe { &mut *orders };
    let state = orders.state;
    let is_numbered = orders.kind == Kind::Opening as u32 || orders.kind == Kind::Unknown as u32;
    let number = if is_numbered {
        orders.state = state.wrapping_add(1);
        state
    } else {
        orders.state = next(state);
        scale(state, orders.flows)
    };
    let segment = if orders.kind == Kind::Replies as u32 {
        let (id, destination_port) = endpoint(number);
        Segment {
            source: backend(id),
            source_port: orders.port as u16,
            destination_port,
            flags: tcp::ACK,
        }
    } else {
        let (source, source_port) = client(number);
        Segment {
            source,
            source_port,
            destination_port: orders.port as u16,
            flags: if orders.kind == Kind::Opening as u32 {
                tcp::SYN
            } else {
                tcp::ACK
            },
        }
    };
    if orders.version == IpVersion::V6 as u32 {
        let bytes = fresh(ctx, FRAME6_LEN)?;
        write_ipv6(bytes, orders, &segment);
    } else {
        let bytes = fresh(ctx, FRAME_LEN)?;
        write_ipv4(bytes, orders, &segment);
    }
    Some(())
}

struct Segment {
    source: u32,
    source_port: u16,
    destination_port: u16,
    flags: u8,
}

/// The frame without what the round before has put before it, and with what it has cut off, as it does of what it answers.
#[inline(always)]
fn fresh(ctx: &XdpContext, len: usize) -> Option<Bytes> {
    let grown = if Frame::of(ctx).at(0, len + IPV6_LEN).is_some() {
        IPV6_LEN
    } else if Frame::of(ctx).at(0, len + IPV4_LEN).is_some() {
        IPV4_LEN
    } else {
        0
    };
    // SAFETY: a helper on the context.
    if grown != 0 && unsafe { bpf_xdp_adjust_head(ctx.ctx, grown as i32) } != 0 {
        return None;
    }
    if Frame::of(ctx).at(0, len).is_none() {
        // SAFETY: helpers on the context.
        unsafe {
            let missing = len as i64 - bpf_xdp_get_buff_len(ctx.ctx) as i64;
            if bpf_xdp_adjust_tail(ctx.ctx, missing as i32) != 0 {
                return None;
            }
        }
    }
    Frame::of(ctx).at(0, len)
}

#[inline(always)]
fn write_ethernet(bytes: Bytes, ethertype: u16) {
    bytes.set_u32(0, 0x0200_0000);
    bytes.set_u32(4, 0x0001_0200);
    bytes.set_u32(8, 0x0000_0002);
    bytes.set_u16(12, ethertype);
}

#[inline(always)]
fn write_ipv4(bytes: Bytes, orders: &Orders, segment: &Segment) {
    let length = (FRAME_LEN - ETH_LEN) as u16;
    let source = segment.source;
    write_ethernet(bytes, ETHERTYPE_IPV4);
    bytes.set_u32(14, 0x4500_0000 | length as u32);
    bytes.set_u32(18, IPV4_DF as u32);
    let constant =
        0x4500 + length as u64 + IPV4_DF as u64 + (((TTL as u64) << 8) | PROTO_TCP as u64);
    let checksum = csum::finish(constant + csum::halves(source) + csum::halves(orders.destination));
    bytes.set_u32(
        22,
        ((TTL as u32) << 24) | ((PROTO_TCP as u32) << 16) | checksum as u32,
    );
    bytes.set_u32(26, source);
    bytes.set_u32(30, orders.destination);
    write_tcp(bytes.after(ETH_LEN + IPV4_LEN), orders, segment);
}

#[inline(always)]
fn write_ipv6(bytes: Bytes, orders: &Orders, segment: &Segment) {
    write_ethernet(bytes, ETHERTYPE_IPV6);
    bytes.set_u32(14, 0x6000_0000);
    bytes.set_u32(
        18,
        ((TCP_LEN as u32) << 16) | ((PROTO_TCP as u32) << 8) | TTL as u32,
    );
    let (source, destination) = (address6(segment.source), address6(orders.destination));
    bytes.set_raw64(22, source[0]);
    bytes.set_raw64(30, source[1]);
    bytes.set_raw64(38, destination[0]);
    bytes.set_raw64(46, destination[1]);
    write_tcp(bytes.after(ETH_LEN + IPV6_LEN), orders, segment);
}

#[inline(always)]
fn write_tcp(bytes: Bytes, orders: &Orders, segment: &Segment) {
    let ports = ((segment.source_port as u32) << 16) | segment.destination_port as u32;
    bytes.set_u32(0, ports);
    bytes.set_u32(4, orders.seq);
    bytes.set_u32(8, 1);
    bytes.set_u32(12, 0x5000_ffff | ((segment.flags as u32) << 16));
    bytes.set_u32(16, 0);
}

/// Returns at once.
#[xdp(frags)]
fn floor_return(_: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Parses IP and TCP, swaps the MAC addresses and transmits.
#[xdp(frags)]
fn floor_swap(ctx: XdpContext) -> u32 {
    let Some(bytes) = Frame::of(&ctx).at(0, ETH_LEN + IPV4_LEN + TCP_LEN) else {
        return xdp_action::XDP_PASS;
    };
    let protocol = match bytes.u16(12) {
        ETHERTYPE_IPV4 => bytes.u8(ETH_LEN + 9),
        ETHERTYPE_IPV6 => bytes.u8(ETH_LEN + 6),
        _ => return xdp_action::XDP_PASS,
    };
    if protocol != PROTO_TCP {
        return xdp_action::XDP_PASS;
    }
    bytes.set_macs(bytes.macs_swapped());
    xdp_action::XDP_TX
}

/// Adds a constant IPIP header and transmits. Looks nothing up.
#[xdp(frags)]
fn floor_encap(ctx: XdpContext) -> u32 {
    // SAFETY: a helper on the context.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(IPV4_LEN as i32)) } != 0 {
        return xdp_action::XDP_DROP;
    }
    let Some(bytes) = Frame::of(&ctx).at(0, ETH_LEN + IPV4_LEN) else {
        return xdp_action::XDP_DROP;
    };
    let length = (FRAME_LEN - ETH_LEN + IPV4_LEN) as u32;
    bytes.set_u32(0, 0x0200_0000);
    bytes.set_u32(4, 0x0003_0200);
    bytes.set_u32(8, 0x0000_0001);
    bytes.set_u16(12, ETHERTYPE_IPV4);
    bytes.set_u32(14, 0x4500_0000 | length);
    bytes.set_u32(18, IPV4_DF as u32);
    let (source, destination) = (0x0a00_0001, 0x0a00_0002);
    let constant =
        0x4500 + length as u64 + IPV4_DF as u64 + (((TTL as u64) << 8) | PROTO_IPIP as u64);
    let checksum = csum::finish(constant + csum::halves(source) + csum::halves(destination));
    bytes.set_u32(
        22,
        ((TTL as u32) << 24) | ((PROTO_IPIP as u32) << 16) | checksum as u32,
    );
    bytes.set_u32(26, source);
    bytes.set_u32(30, destination);
    xdp_action::XDP_TX
}
