//! The labs' generator of floods: frames from made-up sources, as many as a processor can make.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, xdp_action},
    helpers::bpf_redirect,
    macros::{map, xdp},
    maps::Array,
    programs::XdpContext,
};
use lb_common::{
    csum,
    flood::{LEN, Orders, Patch, Template},
    hash::{mix, scale},
    headers::{ETH_LEN, ICMP_LEN, IPV4_LEN, IPV6_LEN},
    net::IpVersion,
};

use lb_ebpf::packet::{Bytes, Frame};

#[map]
static FLOOD: Array<Orders> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Where a source address changes: in IPv4 all of it, in IPv6 the end of the longest prefix that is routed to one site, and the beginning of the rest.
const SOURCE4: usize = ETH_LEN + 12;
const SOURCE6: usize = ETH_LEN + 8 + 6;

/// Makes a frame and sends it. For test runs with live frames, whose pages come back as their receivers left them: so all of it is written.
#[xdp(frags)]
fn flood(ctx: XdpContext) -> u32 {
    match make(&ctx) {
        // SAFETY: a helper.
        Some(interface) => unsafe { bpf_redirect(interface, 0) as u32 },
        None => xdp_action::XDP_ABORTED,
    }
}

/// Writes the next frame, and gives the index of the interface that it leaves by.
#[inline(always)]
fn make(ctx: &XdpContext) -> Option<u32> {
    let orders = FLOOD.get_ptr_mut(0)?;
    // SAFETY: an entry of the map; a test run has one CPU.
    let orders = unsafe { &mut *orders };
    let number = orders.number;
    orders.number = number.wrapping_add(1);
    let second = (number & 1) as u32;
    let mixed = mix(number >> (orders.pairs & 1), &orders.seed);
    let template = if second == 0 {
        &orders.templates[0]
    } else {
        &orders.templates[1]
    };
    let bytes = Frame::of(ctx).at(0, LEN)?;
    let mut at = 0;
    while at < LEN {
        bytes.set_raw64(at, template.words[at / 8]);
        at += 8;
    }
    let source = orders.base | (mixed as u32 & orders.hosts);
    let drawn = Drawn {
        source,
        port: 1_024 + scale((mixed >> 32) as u32, 60_000) as u16,
        number: ((mixed >> 16) as u32).wrapping_add(second & orders.pairs),
    };
    if orders.version == IpVersion::V6 as u32 {
        bytes.set_u32(SOURCE6, source);
        patch::<IPV6_LEN>(bytes.after(ETH_LEN + IPV6_LEN), template, &drawn);
    } else {
        bytes.set_u32(SOURCE4, source);
        let sum = template.ip_sum as u64 + csum::halves(source);
        bytes.set_u16(ETH_LEN + 10, csum::finish(sum));
        patch::<IPV4_LEN>(bytes.after(ETH_LEN + IPV4_LEN), template, &drawn);
    }
    Some(orders.interface)
}

/// What is drawn for one frame.
struct Drawn {
    source: u32,
    port: u16,
    number: u32,
}

/// Changes what is behind an IP header of `IP_LEN` bytes.
#[inline(always)]
fn patch<const IP_LEN: usize>(bytes: Bytes, template: &Template, drawn: &Drawn) {
    let sum = template.sum as u64 + csum::halves(drawn.source) * template.covers_source as u64;
    if template.patch == Patch::Tcp as u32 {
        bytes.set_u16(0, drawn.port);
        bytes.set_u32(4, drawn.number);
        let sum = sum + drawn.port as u64 + csum::halves(drawn.number);
        bytes.set_u16(16, csum::finish(sum));
    } else if template.patch == Patch::Echo as u32 {
        bytes.set_u32(4, drawn.number);
        bytes.set_u16(2, csum::finish(sum + csum::halves(drawn.number)));
    } else if template.patch == Patch::Error as u32 {
        bytes.set_u16(ICMP_LEN + IP_LEN + 2, drawn.port);
        bytes.set_u16(2, csum::finish(sum + drawn.port as u64));
    }
}
