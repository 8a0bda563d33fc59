//! The receiver of mode `ipip` for backends without a tunnel device: takes the outer header off and passes the rest to the host. IPv4 in IPv4
//! (RFC 2003), IPv4 and IPv6 in IPv6 (RFC 2473).
#![no_std]
#![no_main]

mod runtime;

use aya_ebpf::{
    bindings::xdp_action, helpers::generated::bpf_xdp_adjust_head, macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    csum,
    headers::{
        ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LEN, IPV4_MF, IPV4_OFFSET, IPV6_LEN,
        PROTO_IPIP, PROTO_IPV6, VLAN_LEN,
    },
    net::IpVersion,
};

use lb_ebpf::packet::{Bytes, Frame, is_vlan};

/// The lower two bits of the type of service (RFC 3168): congestion experienced, and also their mask.
const CE: u8 = 0b11;
/// One of the two marks of a transport that understands congestion marks.
const ECT_0: u8 = 0b10;
/// The other.
const ECT_1: u8 = 0b01;

/// Decapsulates; everything else passes untouched.
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
    let Some((network, ethertype)) = network(ctx) else {
        return Outcome::NotOurs;
    };
    let found = if ethertype == ETHERTYPE_IPV4.to_be() {
        in_ipv4(ctx, network)
    } else if ethertype == ETHERTYPE_IPV6.to_be() {
        in_ipv6(ctx, network)
    } else {
        None
    };
    let Some(tunnelled) = found else {
        return Outcome::NotOurs;
    };
    if !carry_congestion(&tunnelled) {
        return Outcome::Dropped;
    }
    // The Ethernet header, tags included, moves up against the inner packet.
    let frame = Frame::of(ctx);
    let Some(ethernet) = frame.at(0, ETH_LEN) else {
        return Outcome::NotOurs;
    };
    let header = [ethernet.raw32(0), ethernet.raw32(4), ethernet.raw32(8)];
    let first_type = ethernet.raw16(12);
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
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, tunnelled.outer_len as i32) } != 0 {
        return Outcome::Dropped;
    }
    let frame = Frame::of(ctx);
    let Some(ethernet) = frame.at(0, ETH_LEN) else {
        return Outcome::Dropped;
    };
    ethernet.set_raw32(0, header[0]);
    ethernet.set_raw32(4, header[1]);
    ethernet.set_raw32(8, header[2]);
    ethernet.set_raw16(12, first_type);
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
    // The inner packet's version may be another than the outer one's.
    let Some(ethertype) = Frame::of(ctx).at(network - 2, 2) else {
        return Outcome::Dropped;
    };
    ethertype.set_u16(0, tunnelled.ethertype());
    Outcome::Decapsulated
}

/// A packet in a packet.
struct Tunnelled {
    /// Length of the outer header.
    outer_len: usize,
    /// Its type of service, or traffic class.
    traffic_class: u8,
    /// The inner header, the first 20 bytes of it.
    inner: Bytes,
    /// Its version.
    version: IpVersion,
}

impl Tunnelled {
    #[inline(always)]
    fn ethertype(&self) -> u16 {
        match self.version {
            IpVersion::V4 => ETHERTYPE_IPV4,
            IpVersion::V6 => ETHERTYPE_IPV6,
        }
    }
}

/// Offset of the IP header, and the EtherType before it as it is in the frame.
#[inline(always)]
fn network(ctx: &XdpContext) -> Option<(usize, u16)> {
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
    Some((network, ethertype))
}

/// What is in an IPv4 packet without options, if that is whole and holds an IPv4 packet.
#[inline(always)]
fn in_ipv4(ctx: &XdpContext, network: usize) -> Option<Tunnelled> {
    let outer = Frame::of(ctx).at(network, IPV4_LEN + IPV4_LEN)?;
    let is_fragment = outer.raw16(6) & (IPV4_MF | IPV4_OFFSET).to_be() != 0;
    if outer.u8(0) != 0x45 || outer.u8(9) != PROTO_IPIP || is_fragment {
        return None;
    }
    let inner = outer.after(IPV4_LEN);
    if inner.u8(0) >> 4 != 4 || inner.u16(2) as usize + IPV4_LEN > outer.u16(2) as usize {
        return None;
    }
    Some(Tunnelled {
        outer_len: IPV4_LEN,
        traffic_class: outer.u8(1),
        inner,
        version: IpVersion::V4,
    })
}

/// What is in an IPv6 packet without extension headers, if that is an IPv4 or an IPv6 packet.
#[inline(always)]
fn in_ipv6(ctx: &XdpContext, network: usize) -> Option<Tunnelled> {
    // Of an inner IPv6 header so much as an IPv4 one is long.
    let outer = Frame::of(ctx).at(network, IPV6_LEN + IPV4_LEN)?;
    if outer.u8(0) >> 4 != 6 {
        return None;
    }
    let inner = outer.after(IPV6_LEN);
    let (version, length) = match (outer.u8(6), inner.u8(0) >> 4) {
        (PROTO_IPIP, 4) => (IpVersion::V4, inner.u16(2) as usize),
        (PROTO_IPV6, 6) => (IpVersion::V6, inner.u16(4) as usize + IPV6_LEN),
        _ => return None,
    };
    if length > outer.u16(4) as usize {
        return None;
    }
    Some(Tunnelled {
        outer_len: IPV6_LEN,
        traffic_class: (outer.u16(0) >> 4) as u8,
        inner,
        version,
    })
}

/// Carries a congestion mark of the outer header into the inner one (RFC 6040, section 4.2). False if the packet is to be dropped,
/// since its transport would not understand.
#[inline(always)]
fn carry_congestion(tunnelled: &Tunnelled) -> bool {
    let inner = tunnelled.inner;
    let before = inner.u16(0);
    // Where the mark is in the header's first two bytes.
    let shift = match tunnelled.version {
        IpVersion::V4 => 0,
        IpVersion::V6 => 4,
    };
    let (old, mark) = ((before >> shift) as u8 & CE, tunnelled.traffic_class & CE);
    if mark == CE && old == 0 {
        return false;
    }
    let is_heavier = (mark == CE && old != CE) || (mark == ECT_1 && old == ECT_0);
    if !is_heavier {
        return true;
    }
    let after = (before & !((CE as u16) << shift)) | ((mark as u16) << shift);
    inner.set_u16(0, after);
    if matches!(tunnelled.version, IpVersion::V4) {
        inner.set_u16(10, csum::update(inner.u16(10), before, after));
    }
    true
}
