//! Ethernet, up to two VLAN tags, IPv4 with options or IPv6 with extension headers, TCP. Lengths come from the IP header, never from the
//! frame's end, which may be padded.

mod v4;
mod v6;

use aya_ebpf::programs::XdpContext;
use lb_common::{
    headers::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, TCP_LEN, VLAN_LEN},
    net::IpVersion,
    tcp,
    verdict::Reason,
};

use lb_ebpf::packet::{Bytes, Frame, is_vlan};

pub(crate) use self::v6::transport as transport6;
use crate::hide;

/// Parsing, in one version of IP.
pub(crate) trait Parse: Sized {
    /// An address.
    type Address: Copy + PartialEq;

    /// The version of IP.
    const VERSION: IpVersion;
    /// Length of the headers of what [`Parse::plain`] takes.
    const PLAIN_LEN: usize;

    /// The ends of an IP header.
    fn ends(ip: Bytes) -> Ends<Self>;
    /// An address as [`lb_common::net::Address::words`] has it.
    fn as_words(address: Self::Address) -> [u64; 2];
    /// The address that [`Parse::as_words`] gives these for.
    fn of_words(words: [u64; 2]) -> Self::Address;

    /// The segment of a frame without VLAN tags whose IP header has nothing between itself and TCP's, which is what most are. None for any
    /// other frame. All offsets are constants, so what follows is a third shorter than after [`Parse::parse`].
    ///
    /// `frame` has [`Parse::PLAIN_LEN`] bytes, and the right EtherType.
    fn plain(frame: Bytes) -> Option<(Segment, Ends<Self>)>;

    /// Parses the packet at an offset of the frame, or says why it is the host's.
    fn parse(ctx: &XdpContext, network: usize) -> Result<Parsed<Self>, Reason>;
}

/// Where a packet comes from and where it goes.
#[derive(Clone, Copy)]
pub(crate) struct Ends<F: Parse> {
    /// Source address.
    pub(crate) source: F::Address,
    /// Destination address.
    pub(crate) destination: F::Address,
}

/// What a packet turned out to be, if it may concern a service.
pub(crate) enum Parsed<F: Parse> {
    /// A TCP segment with its whole header.
    Segment(Segment, Ends<F>),
    /// A message of ICMP.
    Control,
    /// A fragment but the first of a TCP segment: it has no ports.
    Fragment {
        /// Destination address.
        destination: F::Address,
        /// Length of the frame, without padding.
        bytes: u32,
    },
}

/// A TCP segment. Kept small: it lives on the program's stack. Numbers are in host byte order.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    /// Length of the IP packet, header included.
    pub(crate) length: u32,
    /// Offset of the IP header: 14, 18 or 22.
    network: u8,
    /// Offset of the TCP header from the IP header: at most [`MOST_HEADERS`].
    transport: u16,
    /// Source port.
    pub(crate) source_port: u16,
    /// Destination port.
    pub(crate) destination_port: u16,
    /// What decides the life of its flow.
    pub(crate) tcp: tcp::Segment,
}

/// Bytes of IP headers, extension headers among them, that are looked through for TCP's.
const MOST_HEADERS: u32 = 0x1ff;

impl Segment {
    /// From its TCP header and what the IP header says; none if they contradict each other.
    #[inline(always)]
    fn new(network: u8, transport: u16, length: u32, tcp: Bytes) -> Option<Self> {
        let data = transport as u32 + (tcp.u8(12) >> 4) as u32 * 4;
        if data < transport as u32 + TCP_LEN as u32 || length < data {
            return None;
        }
        Some(Self {
            length,
            network,
            transport,
            source_port: tcp.u16(0),
            destination_port: tcp.u16(2),
            tcp: tcp::Segment {
                seq: tcp.u32(4),
                flags: tcp.u8(13),
                payload: length > data,
            },
        })
    }

    /// Not a segment, but what is to be forwarded like one: an ICMP message that concerns a client's port.
    #[inline(always)]
    pub(crate) fn of_message(network: usize, length: u32, client_port: u16) -> Self {
        Self {
            length,
            network: network as u8,
            transport: 0,
            source_port: client_port,
            destination_port: 0,
            tcp: tcp::Segment {
                seq: 0,
                flags: 0,
                payload: false,
            },
        }
    }

    /// Length of the frame, without padding.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> u32 {
        self.network as u32 + self.length
    }

    /// Offset of the IP header.
    #[inline(always)]
    pub(crate) fn network(&self) -> usize {
        self.network as usize
    }

    /// Length of the IP header, and of what stands between it and TCP's.
    #[inline(always)]
    pub(crate) fn headers_len(&self) -> u32 {
        self.transport as u32
    }

    /// Offset of the TCP header.
    #[inline(always)]
    pub(crate) fn transport(&self) -> usize {
        // Its bound is lost where it lies on the stack meanwhile.
        let transport = hide::number(self.transport as u64) & MOST_HEADERS as u64;
        self.network as usize + transport as usize
    }
}

/// Which version of IP a frame carries, and the offset of its header; or why it is the host's.
#[inline(always)]
pub(crate) fn network(ctx: &XdpContext) -> Result<Network, Reason> {
    let frame = Frame::of(ctx);
    let ethernet = frame.at(0, ETH_LEN).ok_or(Reason::Malformed)?;
    let mut offset = ETH_LEN;
    let mut ethertype = ethernet.raw16(12);
    if is_vlan(ethertype) {
        ethertype = frame
            .at(offset, VLAN_LEN)
            .ok_or(Reason::Malformed)?
            .raw16(2);
        offset += VLAN_LEN;
        if is_vlan(ethertype) {
            ethertype = frame
                .at(offset, VLAN_LEN)
                .ok_or(Reason::Malformed)?
                .raw16(2);
            offset += VLAN_LEN;
        }
    }
    let offset = blur(ctx, offset as u32, 0x1f) as usize;
    if ethertype == ETHERTYPE_IPV4.to_be() {
        Ok(Network::V4(offset))
    } else if ethertype == ETHERTYPE_IPV6.to_be() {
        Ok(Network::V6(offset))
    } else {
        Err(Reason::NotIp)
    }
}

/// The offset of the IP header of a frame that carries this version of IP.
#[inline(always)]
pub(crate) fn network_of<P: Parse>(ctx: &XdpContext) -> Option<usize> {
    match network(ctx) {
        Ok(Network::V4(offset)) if P::VERSION as u32 == IpVersion::V4 as u32 => Some(offset),
        Ok(Network::V6(offset)) if P::VERSION as u32 == IpVersion::V6 as u32 => Some(offset),
        _ => None,
    }
}

/// A version of IP, and the offset of its header.
#[derive(Clone, Copy)]
pub(crate) enum Network {
    /// IPv4.
    V4(usize),
    /// IPv6.
    V6(usize),
}

/// An offset of at most `mask`, unchanged, but such that the verifier (all kernels to 7.2) no longer knows which: it would follow each that
/// is possible on its own through the whole program, and give up. No device has 2^22 queues.
#[inline(always)]
pub(crate) fn blur(ctx: &XdpContext, offset: u32, mask: u32) -> u32 {
    // SAFETY: the context is valid as long as the program runs.
    let zero = unsafe { core::ptr::addr_of!((*ctx.ctx).rx_queue_index).read_volatile() } >> 22;
    (offset ^ zero) & mask
}
