//! ICMPv6 (RFC 4443).

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    headers::{ICMP_LEN, IPV6_LEN, PROTO_ICMPV6, PROTO_IPIP, PROTO_IPV6, PROTO_TCP, TTL},
    net::IpVersion,
};

use lb_ebpf::packet::{Bytes, Frame};

use super::{
    Icmp, Message, Told,
    complaint::{self, FAILED, MOST_QUOTED},
    header_at,
};
use crate::{
    family::V6,
    parse::{self, Ends, Parse as _, blur},
};

impl Icmp for V6 {
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const TOO_BIG: [u8; 2] = [2, 0];
    const EXPIRED: [u8; 2] = [3, 0];
    /// Address unreachable.
    const NO_WAY: [u8; 2] = [1, 3];
    /// RFC 8200, section 5.
    const LEAST_MTU: u32 = 1_280;

    #[inline(always)]
    fn message(ctx: &XdpContext, network: usize) -> Option<Message<V6>> {
        let ip = Frame::of(ctx).at(network, IPV6_LEN)?;
        let length = IPV6_LEN as u32 + ip.u16(4) as u32;
        let is_whole = length >= (IPV6_LEN + ICMP_LEN) as u32;
        if ip.u8(0) >> 4 != 6 || ip.u8(6) != PROTO_ICMPV6 || !is_whole {
            return None;
        }
        let ends = Self::ends(ip);
        let kind = header_at(ctx, network + IPV6_LEN)?.u8(0);
        Some(Message {
            kind,
            header_len: IPV6_LEN,
            length,
            ends,
        })
    }

    /// Unreachable, too big, time exceeded, parameter problem.
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    /// Backends send no extension headers before TCP's, or none that matter to so few.
    #[inline(always)]
    fn quoted_tcp(ctx: &XdpContext, quote: usize) -> Option<usize> {
        let ip = Frame::of(ctx).at(quote, IPV6_LEN)?;
        if ip.u8(0) >> 4 == 6 && ip.u8(6) == PROTO_TCP {
            Some(IPV6_LEN)
        } else {
            None
        }
    }

    #[inline(always)]
    fn quoted_tunnel(_: &XdpContext, _: usize) -> Option<usize> {
        Some(IPV6_LEN)
    }

    #[inline(always)]
    fn version_within(ctx: &XdpContext, quote: usize) -> Option<IpVersion> {
        let ip = Frame::of(ctx).at(quote, IPV6_LEN)?;
        match (ip.u8(0) >> 4, ip.u8(6)) {
            (6, PROTO_IPIP) => Some(IpVersion::V4),
            (6, PROTO_IPV6) => Some(IpVersion::V6),
            _ => None,
        }
    }

    /// RFC 2473, section 8. A port (type 1, code 4) is no concern of what has none; a next header that the receiver does not know (type 4, code 1) is the
    /// encapsulated packet.
    #[inline(always)]
    fn told(header: Bytes) -> Option<Told> {
        match (header.u8(0), header.u8(1)) {
            (1, 4) => None,
            (2, _) => Told::too_big(header.u32(4)),
            (1 | 3, _) | (4, 1) => Some(Told::NO_WAY),
            _ => None,
        }
    }

    #[inline(always)]
    fn renew(ip: Bytes) {
        ip.set_u8(7, TTL);
    }

    #[inline(always)]
    fn swap_ends(ip: Bytes) {
        let Ends {
            source,
            destination,
        } = Self::ends(ip);
        ip.set_raw64(8, destination[0]);
        ip.set_raw64(16, destination[1]);
        ip.set_raw64(24, source[0]);
        ip.set_raw64(32, source[1]);
    }

    /// Extension headers are quoted too, or the client could not tell which of its connections the error is about. Of more than anybody sends, only so much
    /// is quoted as is summed.
    #[inline(always)]
    fn quoted_len(ctx: &XdpContext, network: usize) -> Option<u32> {
        const MOST_BEFORE_TCP: u32 = MOST_QUOTED - 16;
        let ip = Frame::of(ctx).at(network, IPV6_LEN)?;
        let before = parse::transport6(ctx, network, ip.u8(6)).min(MOST_BEFORE_TCP);
        // Its bound is all that the verifier is to know, or it would walk through what comes for each kind of header.
        Some(blur(ctx, before, MOST_QUOTED - 1) + 8)
    }

    #[inline(always)]
    fn write_header(ip: Bytes, quoted: Bytes, message_len: u32) -> u64 {
        ip.set_u32(0, 0x6000_0000);
        ip.set_u16(4, message_len as u16);
        ip.set_raw16(6, u16::from_ne_bytes([PROTO_ICMPV6, TTL]));
        let mut sum = (message_len.to_be() as u64) + ((PROTO_ICMPV6 as u32).to_be() as u64);
        let mut at = 8;
        while at < 24 {
            let (client, vip) = (quoted.raw64(at), quoted.raw64(at + 16));
            ip.set_raw64(at, vip);
            ip.set_raw64(at + 16, client);
            sum += (client >> 32) + (client & 0xffff_ffff) + (vip >> 32) + (vip & 0xffff_ffff);
            at += 8;
        }
        sum
    }

    #[inline(always)]
    fn complain(ctx: *mut xdp_md, mtu: u32) -> u32 {
        complain6(ctx, mtu)
    }
}

#[inline(never)]
fn complain6(ctx: *mut xdp_md, mtu: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    match parse::network_of::<V6>(&ctx) {
        Some(network) => complaint::answer::<V6>(&ctx, network, mtu),
        None => FAILED,
    }
}
