//! ICMP (RFC 792).

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    csum,
    headers::{ICMP_LEN, IPV4_LEN, IPV4_MF, IPV4_OFFSET, PROTO_ICMP, PROTO_IPIP, PROTO_TCP, TTL},
    net::IpVersion,
};

use lb_ebpf::packet::{Bytes, Frame};

use super::{
    Icmp, Message, Told,
    complaint::{self, FAILED, MOST_QUOTED},
    header_at,
};
use crate::{
    family::V4,
    parse::{self, Parse as _, blur},
};

/// Type: destination unreachable.
const UNREACHABLE: u8 = 3;
/// Type: time exceeded.
const TIME_EXCEEDED: u8 = 11;
/// Type: parameter problem.
const PARAMETER_PROBLEM: u8 = 12;

impl Icmp for V4 {
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    /// Fragmentation needed (RFC 1191).
    const TOO_BIG: [u8; 2] = [UNREACHABLE, 4];
    const EXPIRED: [u8; 2] = [TIME_EXCEEDED, 0];
    /// Host unreachable.
    const NO_WAY: [u8; 2] = [UNREACHABLE, 1];
    /// RFC 791.
    const LEAST_MTU: u32 = 68;

    #[inline(always)]
    fn message(ctx: &XdpContext, network: usize) -> Option<Message<V4>> {
        let ip = Frame::of(ctx).at(network, IPV4_LEN)?;
        let header_len = header_len(ctx, ip);
        let is_fragment = ip.raw16(6) & (IPV4_OFFSET | IPV4_MF).to_be() != 0;
        let length = ip.u16(2) as u32;
        let is_whole = length >= (header_len + ICMP_LEN) as u32;
        if !is_header(ip) || ip.u8(9) != PROTO_ICMP || is_fragment || !is_whole {
            return None;
        }
        let ends = Self::ends(ip);
        let kind = header_at(ctx, network + header_len)?.u8(0);
        Some(Message {
            kind,
            header_len,
            length,
            ends,
        })
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        kind == UNREACHABLE || kind == TIME_EXCEEDED || kind == PARAMETER_PROBLEM
    }

    #[inline(always)]
    fn quoted_tcp(ctx: &XdpContext, quote: usize) -> Option<usize> {
        let ip = Frame::of(ctx).at(quote, IPV4_LEN)?;
        let is_beginning = ip.raw16(6) & IPV4_OFFSET.to_be() == 0;
        if is_header(ip) && ip.u8(9) == PROTO_TCP && is_beginning {
            Some(header_len(ctx, ip))
        } else {
            None
        }
    }

    #[inline(always)]
    fn quoted_tunnel(ctx: &XdpContext, quote: usize) -> Option<usize> {
        let ip = Frame::of(ctx).at(quote, IPV4_LEN)?;
        Self::version_within(ctx, quote).map(|_| header_len(ctx, ip))
    }

    #[inline(always)]
    fn version_within(ctx: &XdpContext, quote: usize) -> Option<IpVersion> {
        let ip = Frame::of(ctx).at(quote, IPV4_LEN)?;
        let is_beginning = ip.raw16(6) & IPV4_OFFSET.to_be() == 0;
        if is_header(ip) && ip.u8(9) == PROTO_IPIP && is_beginning {
            Some(IpVersion::V4)
        } else {
            None
        }
    }

    /// RFC 2003, section 5. A port is no concern of what has none, a route that the sender chose (code 5) is not the client's, and neither is what is wrong
    /// with a header that was written here.
    #[inline(always)]
    fn told(header: Bytes) -> Option<Told> {
        match (header.u8(0), header.u8(1)) {
            (UNREACHABLE, 3 | 5) => None,
            (UNREACHABLE, 4) => Told::too_big(header.u16(6) as u32),
            (UNREACHABLE | TIME_EXCEEDED, _) => Some(Told::NO_WAY),
            _ => None,
        }
    }

    #[inline(always)]
    fn renew(ip: Bytes) {
        let before = ip.u16(8);
        let after = ((TTL as u16) << 8) | (before & 0xff);
        ip.set_u16(8, after);
        ip.set_u16(10, csum::update(ip.u16(10), before, after));
    }

    #[inline(always)]
    fn swap_ends(ip: Bytes) {
        let (source, destination) = (ip.raw32(12), ip.raw32(16));
        ip.set_raw32(12, destination);
        ip.set_raw32(16, source);
    }

    #[inline(always)]
    fn quoted_len(ctx: &XdpContext, network: usize) -> Option<u32> {
        let ip = Frame::of(ctx).at(network, IPV4_LEN)?;
        Some((header_len(ctx, ip) as u32 + 8) & (MOST_QUOTED - 1))
    }

    #[inline(always)]
    fn write_header(ip: Bytes, quoted: Bytes, message_len: u32) -> u64 {
        let length = IPV4_LEN as u32 + message_len;
        let (client, vip) = (quoted.raw32(12), quoted.raw32(16));
        ip.set_raw16(0, u16::from_ne_bytes([0x45, 0]));
        ip.set_u16(2, length as u16);
        ip.set_raw32(4, 0);
        ip.set_raw16(8, u16::from_ne_bytes([TTL, PROTO_ICMP]));
        ip.set_raw32(12, vip);
        ip.set_raw32(16, client);
        let header = 0x4500 + length as u64 + (((TTL as u64) << 8) | PROTO_ICMP as u64);
        let addresses = csum::halves(u32::from_be(client)) + csum::halves(u32::from_be(vip));
        ip.set_u16(10, csum::finish(header + addresses));
        0
    }

    #[inline(always)]
    fn complain(ctx: *mut xdp_md, mtu: u32) -> u32 {
        complain4(ctx, mtu)
    }
}

#[inline(never)]
fn complain4(ctx: *mut xdp_md, mtu: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    match parse::network_of::<V4>(&ctx) {
        Some(network) => complaint::answer::<V4>(&ctx, network, mtu),
        None => FAILED,
    }
}

/// Whether a header is one of IPv4, and at least as long as such a one has to be: in a shorter one what follows it would be a part of itself.
#[inline(always)]
fn is_header(ip: Bytes) -> bool {
    // The version, and the length in words of four bytes.
    matches!(ip.u8(0), 0x45..=0x4f)
}

/// Length of a header, options included: at most 60, and less than 20 if it lies.
#[inline(always)]
fn header_len(ctx: &XdpContext, ip: Bytes) -> usize {
    blur(ctx, (ip.u8(0) & 0xf) as u32 * 4, 0x3f) as usize
}
