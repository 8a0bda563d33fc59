//! Messages of ICMP and ICMPv6, built from scratch.

use std::net::Ipv4Addr;

use lb_common::net::IpVersion;

use super::{
    frame::{Packet, Transport, checksum},
    version::{in_ipv6, version},
};

/// What a message is about, in either version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// An echo request.
    Request,
    /// The reply to one.
    Reply,
    /// A packet was too big: the MTU.
    TooBig(u32),
    /// A packet's hops ended.
    Expired,
    /// A port was unreachable.
    Unreachable,
    /// A host was unreachable.
    NoWay,
    /// The receiver does not know what a packet carries.
    NoSuchProtocol,
    /// A field of a packet's header makes no sense.
    BadHeader,
    /// A router or neighbour wants to be found: no error, and no echo.
    Other,
}

impl About {
    /// Type and code.
    fn kind(self) -> [u8; 2] {
        match (self, version()) {
            (Self::Request, IpVersion::V4) => [8, 0],
            (Self::Request, IpVersion::V6) => [128, 0],
            (Self::Reply, IpVersion::V4) => [0, 0],
            (Self::Reply, IpVersion::V6) => [129, 0],
            (Self::TooBig(_), IpVersion::V4) => [3, 4],
            (Self::TooBig(_), IpVersion::V6) => [2, 0],
            (Self::Expired, IpVersion::V4) => [11, 0],
            (Self::Expired, IpVersion::V6) => [3, 0],
            (Self::Unreachable, IpVersion::V4) => [3, 3],
            (Self::Unreachable, IpVersion::V6) => [1, 4],
            (Self::NoWay, IpVersion::V4) => [3, 1],
            (Self::NoWay, IpVersion::V6) => [1, 3],
            (Self::NoSuchProtocol, IpVersion::V4) => [3, 2],
            (Self::NoSuchProtocol, IpVersion::V6) => [4, 1],
            (Self::BadHeader, IpVersion::V4) => [12, 0],
            (Self::BadHeader, IpVersion::V6) => [4, 0],
            (Self::Other, IpVersion::V4) => [10, 0],
            (Self::Other, IpVersion::V6) => [135, 0],
        }
    }
}

/// A message from one address to another: `word` is the second half of its header, which an MTU is part of, and an echo's identifier and number.
pub fn message(about: About, word: u32, body: &[u8], from: Ipv4Addr, to: Ipv4Addr) -> Packet {
    let word = match about {
        About::TooBig(mtu) => mtu,
        _ => word,
    };
    let mut bytes = about.kind().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(word.to_be_bytes());
    bytes.extend(body);
    let (protocol, sum) = match version() {
        IpVersion::V4 => (1, checksum(&bytes)),
        IpVersion::V6 => {
            let mut summed = in_ipv6(from).octets().to_vec();
            summed.extend(in_ipv6(to).octets());
            summed.extend((bytes.len() as u32).to_be_bytes());
            summed.extend([0, 0, 0, 58]);
            summed.extend(&bytes);
            (58, checksum(&summed))
        }
    };
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = Packet::tcp((from, 0), (to, 0), 0).carrying(protocol, &bytes);
    packet.fragment = 0;
    packet
}

/// The beginning of a packet, as an error about it quotes it: its IP header and eight bytes more.
pub fn quote(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.packet();
    bytes.truncate(packet.headers_len() + 8);
    bytes
}

/// Who tells, somewhere on the way of a packet.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);
/// What routers say of packets.
pub const ERRORS: [About; 3] = [About::TooBig(1_400), About::Expired, About::Unreachable];

/// Ways for an error to quote a packet: as little of it as there may be, all of it, and what is between.
pub fn quotes() -> [fn(&Packet) -> Vec<u8>; 4] {
    [
        quote,
        |packet| packet.packet()[..packet.headers_len() + 16].to_vec(),
        |packet| packet.packet()[..packet.headers_len() + 18].to_vec(),
        Packet::packet,
    ]
}

/// A message as it goes on where its frame ends before the checksum of the segment that it quotes whole: that checksum is not written, and the message's
/// own goes by what it was when the message was told. `headers` is the length of the quoted IP header.
///
/// # Panics
/// If either is no message.
pub(super) fn without_checksum(
    heard: &Packet,
    told: &Packet,
    about: About,
    headers: usize,
) -> Packet {
    const HEADER: usize = 8;
    let body = |packet: &Packet| match &packet.transport {
        Transport::Other { bytes, .. } => bytes[HEADER..].to_vec(),
        Transport::Tcp(_) => panic!("a segment is no message"),
    };
    let (mut quoted, before) = (body(heard), body(told));
    let sum = headers + 16..headers + 18;
    quoted[sum.clone()].copy_from_slice(&before[sum]);
    let anew = message(about, 0, &quoted, heard.source, heard.destination);
    Packet {
        transport: anew.transport,
        ..heard.clone()
    }
}

/// Bytes of a packet that an answer quotes at most: with what may stand before TCP's header in IPv4, and in IPv6 with far more than does.
pub const MOST_QUOTED: usize = 120;

/// The frame that answers a packet with an error about it, from the VIP.
pub fn complaint(input: &Packet, about: About) -> Vec<u8> {
    let mut quoted = quote(input);
    quoted.truncate(MOST_QUOTED);
    let mut answer = message(about, 0, &quoted, input.destination, input.source)
        .macs(input.source_mac, input.destination_mac);
    answer.tags.clone_from(&input.tags);
    answer.id = 0;
    answer.label = 0;
    answer.bytes()
}
