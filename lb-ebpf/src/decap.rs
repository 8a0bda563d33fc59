//! The receiver of mode `ipip` for backends without a tunnel device: takes the outer header off and passes the rest to the host.
#![no_std]
#![no_main]

mod runtime;

use aya_ebpf::{
    bindings::xdp_action, helpers::generated::bpf_xdp_adjust_head, macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    csum,
    headers::{ETH_LEN, ETHERTYPE_IPV4, IPV4_LEN, IPV4_MF, IPV4_OFFSET, PROTO_IPIP, VLAN_LEN},
};

use lb_ebpf::packet::{Bytes, Frame, is_vlan};

/// The lower two bits of the type of service (RFC 3168): congestion experienced, and also their mask.
const CE: u8 = 0b11;
/// One of the two marks of a transport that understands congestion marks.
const ECT_0: u8 = 0b10;
/// The other.
const ECT_1: u8 = 0b01;

/// Decapsulates IPv4 in IPv4; everything else passes untouched.
#[xdp(frags)]
fn decap(ctx: XdpContext) -> u32 {
    match decapsulate(&ctx) {
        Outcome::NotOurs | Outcome::Decapsulated => xdp_action::XDP_PASS,
        Outcome::Dropped => xdp_action::XDP_DROP,
    }
}

enum Outcome {
    NotOurs,
    Decapsulated,
    Dropped,
}

#[inline(always)]
fn decapsulate(ctx: &XdpContext) -> Outcome {
    let Some((network, outer, inner)) = headers(ctx) else {
        return Outcome::NotOurs;
    };
    if !carry_congestion(outer.u8(1), inner) {
        return Outcome::Dropped;
    }
    // The Ethernet header, tags included, moves up against the inner packet.
    let frame = Frame::of(ctx);
    let Some(ethernet) = frame.at(0, ETH_LEN) else {
        return Outcome::NotOurs;
    };
    let header = [ethernet.raw32(0), ethernet.raw32(4), ethernet.raw32(8)];
    let ethertype = ethernet.raw16(12);
    let mut tags = [0; 2];
    if network > ETH_LEN {
        let Some(tag) = frame.at(ETH_LEN, VLAN_LEN) else {
            return Outcome::NotOurs;
        };
        tags[0] = tag.raw32(0);
    }
    if network > ETH_LEN + VLAN_LEN {
        let Some(tag) = Frame::of(ctx).at(ETH_LEN + VLAN_LEN, VLAN_LEN) else {
            return Outcome::NotOurs;
        };
        tags[1] = tag.raw32(0);
    }
    // SAFETY: a helper on the context.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, IPV4_LEN as i32) } != 0 {
        return Outcome::Dropped;
    }
    let frame = Frame::of(ctx);
    let Some(ethernet) = frame.at(0, ETH_LEN) else {
        return Outcome::Dropped;
    };
    ethernet.set_raw32(0, header[0]);
    ethernet.set_raw32(4, header[1]);
    ethernet.set_raw32(8, header[2]);
    ethernet.set_raw16(12, ethertype);
    if network > ETH_LEN {
        let Some(tag) = frame.at(ETH_LEN, VLAN_LEN) else {
            return Outcome::Dropped;
        };
        tag.set_raw32(0, tags[0]);
    }
    if network > ETH_LEN + VLAN_LEN {
        let Some(tag) = Frame::of(ctx).at(ETH_LEN + VLAN_LEN, VLAN_LEN) else {
            return Outcome::Dropped;
        };
        tag.set_raw32(0, tags[1]);
    }
    Outcome::Decapsulated
}

/// Offset of the outer header, the outer and the inner header, if this is a whole IPv4 packet in an IPv4 packet without options.
#[inline(always)]
fn headers(ctx: &XdpContext) -> Option<(usize, Bytes, Bytes)> {
    let frame = Frame::of(ctx);
    let mut network = ETH_LEN;
    let mut ethertype = frame.at(0, ETH_LEN)?.raw16(12);
    if is_vlan(ethertype) {
        ethertype = frame.at(network, VLAN_LEN)?.raw16(2);
        network += VLAN_LEN;
        if is_vlan(ethertype) {
            ethertype = frame.at(network, VLAN_LEN)?.raw16(2);
            network += VLAN_LEN;
        }
    }
    if ethertype != ETHERTYPE_IPV4.to_be() {
        return None;
    }
    let outer = frame.at(network, 2 * IPV4_LEN)?;
    let inner = frame.at(network + IPV4_LEN, IPV4_LEN)?;
    let is_fragment = outer.raw16(6) & (IPV4_MF | IPV4_OFFSET).to_be() != 0;
    let is_whole = outer.u8(0) == 0x45 && outer.u8(9) == PROTO_IPIP && !is_fragment;
    if is_whole
        && inner.u8(0) >> 4 == 4
        && inner.u16(2) as usize + IPV4_LEN <= outer.u16(2) as usize
    {
        Some((network, outer, inner))
    } else {
        None
    }
}

/// Carries a congestion mark of the outer header into the inner one (RFC 6040, section 4.2). False if the packet is to be dropped,
/// since its transport would not understand.
#[inline(always)]
fn carry_congestion(outer: u8, inner: Bytes) -> bool {
    let (old, mark) = (inner.u8(1), outer & CE);
    if mark == CE && old & CE == 0 {
        return false;
    }
    let is_heavier = (mark == CE && old & CE != CE) || (mark == ECT_1 && old & CE == ECT_0);
    if !is_heavier {
        return true;
    }
    let new = (old & !CE) | mark;
    let before = inner.u16(0);
    inner.set_u8(1, new);
    inner.set_u16(
        10,
        csum::update(inner.u16(10), before, (before & 0xff00) | new as u16),
    );
    true
}
