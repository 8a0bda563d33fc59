//! Ethernet, up to two VLAN tags, IPv4 with options, TCP. Lengths come from the IP header, never from the frame's end, which
//! may be padded.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    headers::{ETH_LEN, ETHERTYPE_IPV4, IPV4_LEN, IPV4_OFFSET, PROTO_TCP, TCP_LEN, VLAN_LEN},
    tcp,
    verdict::Reason,
};

use lb_ebpf::packet::{Frame, is_vlan};

/// What a frame turned out to be, if it may concern a service.
pub(crate) enum Parsed {
    /// A TCP segment with its whole header.
    Segment(Segment),
    /// A fragment but the first of a TCP segment: it has no ports.
    Fragment {
        /// Destination address.
        destination: u32,
        /// Length of the frame, without padding.
        bytes: u32,
    },
}

/// A TCP segment. Kept small: it lives on the program's stack. Numbers are in host byte order.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    /// Offset of the IPv4 header: 14, 18 or 22.
    pub(crate) network: u8,
    /// Offset of the TCP header from the IPv4 header: 20 to 60.
    pub(crate) transport: u8,
    /// Length of the IPv4 packet, header included.
    pub(crate) length: u16,
    /// Source address.
    pub(crate) source: u32,
    /// Destination address.
    pub(crate) destination: u32,
    /// Source port.
    pub(crate) source_port: u16,
    /// Destination port.
    pub(crate) destination_port: u16,
    /// What decides the life of its flow.
    pub(crate) tcp: tcp::Segment,
}

/// The segment of a frame without VLAN tags whose IPv4 header has no options, which is what most are. None for any other frame.
/// All offsets are constants, so what follows is a third shorter than after [`parse`].
#[inline(always)]
pub(crate) fn plain(ctx: &XdpContext) -> Option<Segment> {
    const TCP: usize = ETH_LEN + IPV4_LEN;
    let frame = Frame::of(ctx).at(0, TCP + TCP_LEN)?;
    let is_plain = frame.raw16(12) == ETHERTYPE_IPV4.to_be()
        && frame.u8(ETH_LEN) == 0x45
        && frame.u8(ETH_LEN + 9) == PROTO_TCP
        && frame.raw16(ETH_LEN + 6) & IPV4_OFFSET.to_be() == 0;
    if !is_plain {
        return None;
    }
    let length = frame.u16(ETH_LEN + 2);
    let data = IPV4_LEN + (frame.u8(TCP + 12) >> 4) as usize * 4;
    if data < IPV4_LEN + TCP_LEN || (length as usize) < data {
        return None;
    }
    Some(Segment {
        network: ETH_LEN as u8,
        transport: IPV4_LEN as u8,
        length,
        source: frame.u32(ETH_LEN + 12),
        destination: frame.u32(ETH_LEN + 16),
        source_port: frame.u16(TCP),
        destination_port: frame.u16(TCP + 2),
        tcp: tcp::Segment {
            seq: frame.u32(TCP + 4),
            flags: frame.u8(TCP + 13),
            payload: length as usize > data,
        },
    })
}

/// Parses a frame, or says why it is the host's.
#[inline(always)]
pub(crate) fn parse(ctx: &XdpContext) -> Result<Parsed, Reason> {
    let frame = Frame::of(ctx);
    let ethernet = frame.at(0, ETH_LEN).ok_or(Reason::Malformed)?;
    let mut network = ETH_LEN;
    let mut ethertype = ethernet.raw16(12);
    if is_vlan(ethertype) {
        ethertype = frame
            .at(network, VLAN_LEN)
            .ok_or(Reason::Malformed)?
            .raw16(2);
        network += VLAN_LEN;
        if is_vlan(ethertype) {
            ethertype = frame
                .at(network, VLAN_LEN)
                .ok_or(Reason::Malformed)?
                .raw16(2);
            network += VLAN_LEN;
        }
    }
    if ethertype != ETHERTYPE_IPV4.to_be() {
        return Err(Reason::NotIpv4);
    }
    let ip = frame.at(network, IPV4_LEN).ok_or(Reason::Malformed)?;
    if ip.u8(9) != PROTO_TCP {
        return Err(Reason::NotService);
    }
    let version_and_length = ip.u8(0);
    let transport = (version_and_length & 0xf) as usize * 4;
    let length = ip.u16(2);
    if version_and_length >> 4 != 4 || transport < IPV4_LEN || (length as usize) < transport {
        return Err(Reason::Malformed);
    }
    let destination = ip.u32(16);
    if ip.raw16(6) & IPV4_OFFSET.to_be() != 0 {
        return Ok(Parsed::Fragment {
            destination,
            bytes: network as u32 + length as u32,
        });
    }
    let tcp = frame
        .at(network + transport, TCP_LEN)
        .ok_or(Reason::Malformed)?;
    let data = transport + (tcp.u8(12) >> 4) as usize * 4;
    if data < transport + TCP_LEN || (length as usize) < data {
        return Err(Reason::Malformed);
    }
    Ok(Parsed::Segment(Segment {
        network: blur(ctx, network),
        transport: transport as u8,
        length,
        source: ip.u32(12),
        destination,
        source_port: tcp.u16(0),
        destination_port: tcp.u16(2),
        tcp: tcp::Segment {
            seq: tcp.u32(4),
            flags: tcp.u8(13),
            payload: length as usize > data,
        },
    }))
}

impl Segment {
    /// Length of the frame, without padding.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> u32 {
        self.network as u32 + self.length as u32
    }

    /// Offset of the IPv4 header.
    #[inline(always)]
    pub(crate) fn network(&self) -> usize {
        self.network as usize
    }

    /// Offset of the TCP header.
    #[inline(always)]
    pub(crate) fn transport(&self) -> usize {
        self.network as usize + self.transport as usize
    }
}

/// An offset below 32, unchanged, but such that the verifier (all kernels to 7.2) no longer knows which of 14, 18 and 22 it is:
/// it would follow each on its own through the whole program, and give up. No device has 2^27 queues.
#[inline(always)]
fn blur(ctx: &XdpContext, offset: usize) -> u8 {
    // SAFETY: the context is valid as long as the program runs.
    let zero = unsafe { core::ptr::addr_of!((*ctx.ctx).rx_queue_index).read_volatile() } >> 27;
    (offset as u32 ^ zero) as u8
}
