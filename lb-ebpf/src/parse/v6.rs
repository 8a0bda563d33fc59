//! IPv6 (RFC 8200), with the extension headers that may stand before TCP.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    headers::{
        ETH_LEN, IPV6_LEN, IPV6_OFFSET, NEXT_DESTINATION, NEXT_FRAGMENT, NEXT_HOP_BY_HOP,
        NEXT_ROUTING, PROTO_ICMPV6, PROTO_TCP, TCP_LEN,
    },
    net::IpVersion,
    verdict::Reason,
};

use super::{Ends, MOST_HEADERS, Parse, Parsed, Segment, blur};
use lb_ebpf::packet::{Bytes, Frame};

use crate::{family::V6, hide};

/// Extension headers that are looked through for TCP's: as many as there are kinds, and one more, since destination options may come twice.
const MOST_EXTENSIONS: u32 = 5;
/// Length of the shortest extension header.
const EXTENSION_LEN: usize = 8;

impl Parse for V6 {
    /// As [`lb_common::net::Address::words`] gives it.
    type Address = [u64; 2];

    const VERSION: IpVersion = IpVersion::V6;
    const PLAIN_LEN: usize = ETH_LEN + IPV6_LEN + TCP_LEN;

    #[inline(always)]
    fn ends(ip: Bytes) -> Ends<V6> {
        Ends {
            source: [ip.raw64(8), ip.raw64(16)],
            destination: [ip.raw64(24), ip.raw64(32)],
        }
    }

    #[inline(always)]
    fn as_words(address: [u64; 2]) -> [u64; 2] {
        address
    }

    #[inline(always)]
    fn of_words(words: [u64; 2]) -> [u64; 2] {
        words
    }

    #[inline(always)]
    fn plain(frame: Bytes) -> Option<(Segment, Ends<V6>)> {
        let ip = frame.after(ETH_LEN);
        if ip.u8(0) >> 4 != 6 || ip.u8(6) != PROTO_TCP {
            return None;
        }
        let tcp = ip.after(IPV6_LEN);
        let segment = Segment::new(ETH_LEN as u8, IPV6_LEN as u16, length(ip), tcp)?;
        Some((segment, Self::ends(ip)))
    }

    #[inline(always)]
    fn parse(ctx: &XdpContext, network: usize) -> Result<Parsed<V6>, Reason> {
        let frame = Frame::of(ctx);
        let ip = frame.at(network, IPV6_LEN).ok_or(Reason::Malformed)?;
        if ip.u8(0) >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        let transport = match ip.u8(6) {
            PROTO_ICMPV6 => return Ok(Parsed::Control),
            next => transport(ctx, network, next),
        };
        match transport {
            FRAGMENT => {
                return Ok(Parsed::Fragment {
                    destination: Self::ends(ip).destination,
                    bytes: network as u32 + length(ip),
                });
            }
            OTHER => return Err(Reason::NotService),
            MALFORMED => return Err(Reason::Malformed),
            _ => {}
        }
        let transport = blur(ctx, transport, MOST_HEADERS) as usize;
        let tcp = Frame::of(ctx)
            .at(network + transport, TCP_LEN)
            .ok_or(Reason::Malformed)?;
        match Segment::new(network as u8, transport as u16, length(ip), tcp) {
            Some(segment) => Ok(Parsed::Segment(segment, Self::ends(ip))),
            None => Err(Reason::Malformed),
        }
    }
}

/// The offset of TCP's header from an IPv6 header at an offset of the frame, which `next` comes after; or a larger number that says what else there is.
#[inline(always)]
pub(crate) fn transport(ctx: &XdpContext, network: usize, next: u8) -> u32 {
    match next {
        PROTO_TCP => IPV6_LEN as u32,
        next => look_through_extensions(ctx.ctx, network as u32, next),
    }
}

// What stands behind the header, if not TCP's: numbers, since that is what a BPF function returns. No offsets.
/// A part of a segment, but the first.
const FRAGMENT: u32 = 1 << 16;
/// Another protocol; or the packet has not come to its last destination yet (RFC 8200, section 4.4).
const OTHER: u32 = 2 << 16;
/// Headers cut off, or too many, or too long.
const MALFORMED: u32 = 3 << 16;

/// The offset of TCP's header from IPv6's, at most [`MOST_HEADERS`], if there are extension headers before it; or what else there is.
#[inline(never)]
fn look_through_extensions(ctx: *mut xdp_md, network: u32, first: u8) -> u32 {
    let ctx = XdpContext::new(ctx);
    let mut next = first;
    let mut offset = IPV6_LEN as u32;
    let mut extensions = 0;
    while extensions < MOST_EXTENSIONS {
        if next == PROTO_TCP {
            return offset;
        }
        let is_options = next == NEXT_HOP_BY_HOP || next == NEXT_DESTINATION;
        if !is_options && next != NEXT_ROUTING && next != NEXT_FRAGMENT {
            return OTHER;
        }
        // Hidden, or the compiler would add in 32 bits and leave out the bound: the verifier of 6.1 follows neither.
        let offset_within = hide::number(u64::from(offset)) & u64::from(MOST_HEADERS);
        let at = (hide::number(u64::from(network)) + offset_within) as usize;
        let Some(extension) = Frame::of(&ctx).at(at, EXTENSION_LEN) else {
            return MALFORMED;
        };
        let mut len = (extension.u8(1) as u32 + 1) * EXTENSION_LEN as u32;
        if next == NEXT_FRAGMENT {
            if extension.raw16(2) & IPV6_OFFSET.to_be() != 0 {
                // Destination options may stand before TCP in a fragmented packet.
                return if extension.u8(0) == PROTO_TCP || extension.u8(0) == NEXT_DESTINATION {
                    FRAGMENT
                } else {
                    OTHER
                };
            }
            // Its second byte is reserved.
            len = EXTENSION_LEN as u32;
        } else if next == NEXT_ROUTING && extension.u8(3) != 0 {
            return OTHER;
        }
        next = extension.u8(0);
        offset += len;
        if offset > MOST_HEADERS {
            return MALFORMED;
        }
        offset = blur(&ctx, offset, MOST_HEADERS);
        extensions += 1;
    }
    if next == PROTO_TCP { offset } else { MALFORMED }
}

/// Length of the packet.
#[inline(always)]
fn length(ip: Bytes) -> u32 {
    IPV6_LEN as u32 + ip.u16(4) as u32
}
