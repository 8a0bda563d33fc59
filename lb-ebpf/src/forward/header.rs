//! The IP header of what is forwarded.

use lb_common::{
    backend::NextHop,
    csum,
    headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LEN, IPV6_LEN, PROTO_IPIP, PROTO_IPV6},
    verdict::Reason,
};

use lb_ebpf::packet::Bytes;

use super::hop_word;
use crate::family::{V4, V6};

/// What forwarding reads and writes of an IP header, in one version of IP.
pub(crate) trait Header {
    /// EtherType.
    const ETHERTYPE: u16;
    /// Length of the header, without options or extension headers.
    const LEN: usize;
    /// Protocol number, or next header, of what encapsulates it.
    const PROTOCOL: u8;

    /// Takes one hop off the packet's time to live, or hop limit.
    fn take_a_hop(ip: Bytes) -> Result<(), Reason>;

    /// The packet's time to live, or hop limit.
    fn hops(ip: Bytes) -> u8;

    /// Type of service, or traffic class: the same six bits of DSCP and two of ECN.
    fn traffic_class(ip: Bytes) -> u8;

    /// A number that differs between clients.
    fn client(ip: Bytes) -> u32;

    /// Which of the last 16 bits of an outer header's source vary from flow to flow, in network byte order: where a next hop of this version has that.
    fn varies(hop: &NextHop) -> u16;

    /// Whether this is from where, and to where, a next hop's outer headers are: never, if it has none of this version.
    fn is_outer_of(ip: Bytes, hop: &NextHop) -> bool;
}

impl Header for V4 {
    const ETHERTYPE: u16 = ETHERTYPE_IPV4;
    const LEN: usize = IPV4_LEN;
    const PROTOCOL: u8 = PROTO_IPIP;

    #[inline(always)]
    fn take_a_hop(ip: Bytes) -> Result<(), Reason> {
        let time_to_live = ip.u8(8);
        if time_to_live <= 1 {
            return Err(Reason::TtlExpired);
        }
        ip.set_u8(8, time_to_live - 1);
        ip.set_raw16(10, csum::after_a_hop(ip.raw16(10)));
        Ok(())
    }

    #[inline(always)]
    fn hops(ip: Bytes) -> u8 {
        ip.u8(8)
    }

    #[inline(always)]
    fn traffic_class(ip: Bytes) -> u8 {
        ip.u8(1)
    }

    #[inline(always)]
    fn client(ip: Bytes) -> u32 {
        ip.raw32(12)
    }

    #[inline(always)]
    fn varies(hop: &NextHop) -> u16 {
        hop_word(hop, 4) as u16
    }

    #[inline(always)]
    fn is_outer_of(ip: Bytes, hop: &NextHop) -> bool {
        let varied = (Self::varies(hop) as u64) << 16;
        hop.outer_start[0] == 0x45 && ip.raw64(12) & !varied == hop_word(hop, 3)
    }
}

impl Header for V6 {
    const ETHERTYPE: u16 = ETHERTYPE_IPV6;
    const LEN: usize = IPV6_LEN;
    const PROTOCOL: u8 = PROTO_IPV6;

    #[inline(always)]
    fn take_a_hop(ip: Bytes) -> Result<(), Reason> {
        let hop_limit = ip.u8(7);
        if hop_limit <= 1 {
            return Err(Reason::TtlExpired);
        }
        ip.set_u8(7, hop_limit - 1);
        Ok(())
    }

    #[inline(always)]
    fn hops(ip: Bytes) -> u8 {
        ip.u8(7)
    }

    #[inline(always)]
    fn traffic_class(ip: Bytes) -> u8 {
        (ip.u16(0) >> 4) as u8
    }

    #[inline(always)]
    fn client(ip: Bytes) -> u32 {
        ip.raw32(12) ^ ip.raw32(16) ^ ip.raw32(20)
    }

    #[inline(always)]
    fn varies(hop: &NextHop) -> u16 {
        hop.checksum_base
    }

    #[inline(always)]
    fn is_outer_of(ip: Bytes, hop: &NextHop) -> bool {
        let varied = (Self::varies(hop) as u64) << 48;
        let source =
            (ip.raw64(8) ^ hop_word(hop, 3)) | ((ip.raw64(16) & !varied) ^ hop_word(hop, 4));
        let destination = (ip.raw64(24) ^ hop_word(hop, 5)) | (ip.raw64(32) ^ hop_word(hop, 6));
        hop.outer_start[0] == 0x60 && source | destination == 0
    }
}
