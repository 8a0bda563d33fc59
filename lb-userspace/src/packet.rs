//! Packets that are made here and sent past this host's own TCP, from their IP header on, and where they go on a link. Nothing is sent here.

use std::{
    mem::size_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use lb_common::{
    csum,
    headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_DF, IPV4_LEN, PROTO_TCP, TCP_LEN, TTL},
};
use socket2::{SockAddr, SockAddrStorage};

/// Kind and length of TCP's option for the largest segment (RFC 9293, section 3.2).
const MSS_OPTION: [u8; 2] = [2, 4];

/// What a TCP segment has beside its ports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tcp<'a> {
    /// The flags byte.
    pub(crate) flags: u8,
    /// Sequence number.
    pub(crate) seq: u32,
    /// Acknowledgement number; 0 in a segment without ACK.
    pub(crate) ack: u32,
    /// Bytes that may be sent back.
    pub(crate) window: u16,
    /// The packet's TTL or hop limit.
    pub(crate) ttl: u8,
    /// The largest segment that may be sent back, in bytes of data, if that is told.
    pub(crate) mss: Option<u16>,
    /// The data.
    pub(crate) data: &'a [u8],
}

/// A TCP segment with its IP header, ready to be sent. Both ends are of one version of IP.
pub(crate) fn segment(source: SocketAddr, target: SocketAddr, tcp: &Tcp<'_>) -> Vec<u8> {
    let options = tcp.mss.map_or(0, |_| MSS_OPTION.len() + size_of::<u16>());
    let length = TCP_LEN + options + tcp.data.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(target.port().to_be_bytes());
    bytes.extend(tcp.seq.to_be_bytes());
    bytes.extend(tcp.ack.to_be_bytes());
    bytes.extend([((TCP_LEN + options) as u8 / 4) << 4, tcp.flags]);
    bytes.extend(tcp.window.to_be_bytes());
    bytes.extend([0; 4]);
    if let Some(mss) = tcp.mss {
        bytes.extend(MSS_OPTION);
        bytes.extend(mss.to_be_bytes());
    }
    bytes.extend(tcp.data);
    let sum = pseudo_sum(source.ip(), target.ip(), PROTO_TCP, length) + csum::sum_bytes(&bytes);
    bytes[16..18].copy_from_slice(&csum::finish(sum).to_be_bytes());
    let mut packet = header_for(source.ip(), target.ip(), PROTO_TCP, tcp.ttl, length);
    packet.extend(bytes);
    packet
}

/// An IP header.
pub(crate) fn header(source: IpAddr, destination: IpAddr, protocol: u8, payload: usize) -> Vec<u8> {
    header_for(source, destination, protocol, TTL, payload)
}

/// An IP header with this TTL or hop limit.
fn header_for(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ttl: u8,
    payload: usize,
) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut bytes = vec![0x45, 0];
            bytes.extend(((IPV4_LEN + payload) as u16).to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(IPV4_DF.to_be_bytes());
            bytes.extend([ttl, protocol, 0, 0]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            let sum = csum::finish(csum::sum_bytes(&bytes));
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            bytes
        }
        (source, destination) => {
            let mut bytes = vec![0x60, 0, 0, 0];
            bytes.extend((payload as u16).to_be_bytes());
            bytes.extend([protocol, ttl]);
            bytes.extend(six(source).octets());
            bytes.extend(six(destination).octets());
            bytes
        }
    }
}

fn six(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// The running sum of the header that checksums of TCP and ICMPv6 cover beside their own bytes.
pub(crate) fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let sum = |address| match address {
        IpAddr::V4(address) => csum::sum_bytes(&Ipv4Addr::octets(&address)),
        IpAddr::V6(address) => csum::sum_bytes(&Ipv6Addr::octets(&address)),
    };
    sum(source) + sum(destination) + u64::from(protocol) + length as u64
}

/// The EtherType of packets to an address.
pub(crate) const fn ethertype(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => ETHERTYPE_IPV4,
        IpAddr::V6(_) => ETHERTYPE_IPV6,
    }
}

/// Where a packet socket sends to, or listens: an interface (0 is all), a kind of packet, a MAC.
pub(crate) fn link_address(ifindex: u32, ethertype: u16, mac: [u8; 6]) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage of an address is large enough and aligned for every type, and zeroes are a valid one of this.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = ifindex as i32;
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&mac);
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage holds an address of this length.
    unsafe { SockAddr::new(storage, length) }
}
