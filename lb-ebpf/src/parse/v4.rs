//! IPv4 (RFC 791).

use aya_ebpf::programs::XdpContext;
use lb_common::{
    headers::{ETH_LEN, IPV4_LEN, IPV4_OFFSET, PROTO_ICMP, PROTO_TCP, TCP_LEN},
    net::IpVersion,
    verdict::Reason,
};

use super::{Ends, Parse, Parsed, Segment};
use lb_ebpf::packet::{Bytes, Frame};

use crate::family::V4;

impl Parse for V4 {
    type Address = u32;

    const VERSION: IpVersion = IpVersion::V4;
    const PLAIN_LEN: usize = ETH_LEN + IPV4_LEN + TCP_LEN;

    /// In host byte order.
    #[inline(always)]
    fn ends(ip: Bytes) -> Ends<V4> {
        Ends {
            source: ip.u32(12),
            destination: ip.u32(16),
        }
    }

    #[inline(always)]
    fn as_words(address: u32) -> [u64; 2] {
        [0, ((address.to_be() as u64) << 32) | 0xffff_0000]
    }

    #[inline(always)]
    fn of_words(words: [u64; 2]) -> u32 {
        u32::from_be((words[1] >> 32) as u32)
    }

    #[inline(always)]
    fn plain(frame: Bytes) -> Option<(Segment, Ends<V4>)> {
        let ip = frame.after(ETH_LEN);
        let is_plain =
            ip.u8(0) == 0x45 && ip.u8(9) == PROTO_TCP && ip.raw16(6) & IPV4_OFFSET.to_be() == 0;
        if !is_plain {
            return None;
        }
        let length = ip.u16(2) as u32;
        let tcp = ip.after(IPV4_LEN);
        let segment = Segment::new(ETH_LEN as u8, IPV4_LEN as u16, length, tcp)?;
        Some((segment, Self::ends(ip)))
    }

    #[inline(always)]
    fn parse(ctx: &XdpContext, network: usize) -> Result<Parsed<V4>, Reason> {
        let frame = Frame::of(ctx);
        let ip = frame.at(network, IPV4_LEN).ok_or(Reason::Malformed)?;
        match ip.u8(9) {
            PROTO_TCP => {}
            PROTO_ICMP => return Ok(Parsed::Control),
            _ => return Err(Reason::NotService),
        }
        let version_and_length = ip.u8(0);
        let transport = (version_and_length & 0xf) as usize * 4;
        let length = ip.u16(2) as u32;
        if version_and_length >> 4 != 4 || transport < IPV4_LEN || (length as usize) < transport {
            return Err(Reason::Malformed);
        }
        let ends = Self::ends(ip);
        if ip.raw16(6) & IPV4_OFFSET.to_be() != 0 {
            return Ok(Parsed::Fragment {
                destination: ends.destination,
                bytes: network as u32 + length,
            });
        }
        let tcp = frame
            .at(network + transport, TCP_LEN)
            .ok_or(Reason::Malformed)?;
        match Segment::new(network as u8, transport as u16, length, tcp) {
            Some(segment) => Ok(Parsed::Segment(segment, ends)),
            None => Err(Reason::Malformed),
        }
    }
}
