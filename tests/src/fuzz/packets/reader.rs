//! What a frame is, read from the RFCs for the fuzzer: by code that shares nothing with the data path's, and that takes nothing for granted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// EtherTypes of VLAN tags.
const TAGS: [u16; 2] = [0x8100, 0x88a8];
/// How many tags are looked behind.
const MOST_TAGS: usize = 2;
/// How many IPv6 extension headers are looked behind, and how many bytes of headers there may be before the segment.
const MOST_EXTENSIONS: usize = 5;
const MOST_HEADERS: usize = 511;

/// A frame, taken apart as far as it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<'a> {
    /// The whole of it.
    pub frame: &'a [u8],
    /// VLAN tags, the outermost first: protocol and control information.
    pub tags: Vec<(u16, u16)>,
    /// The IP packet, if there is one that does not contradict itself.
    pub ip: Option<Ip<'a>>,
}

/// An IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip<'a> {
    /// Offset of its header in the frame.
    pub at: usize,
    /// From its header to the end of the frame.
    pub bytes: &'a [u8],
    /// Length by its header, its own included.
    pub length: usize,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// What it carries.
    pub carried: Carried,
}

/// What an IP packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// A TCP segment whose header is whole and fits.
    Tcp(Tcp),
    /// A message of ICMP in IPv4, or of ICMPv6 in IPv6: the offset of its header in the packet. May be cut short.
    Icmp(usize),
    /// A part of a TCP segment, or of what may be one, that is not its first.
    LaterFragment,
    /// Another packet of IP.
    Tunnel(usize),
    /// Another protocol, or a packet that has not come to its last destination.
    Other,
    /// Headers that are cut short or contradict each other.
    Broken,
}

/// A TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Offset of the header in the IP packet.
    pub at: usize,
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags.
    pub flags: u8,
    /// Bytes of data, by the lengths that the headers give.
    pub payload: usize,
}

/// Reads a frame.
#[must_use]
pub fn read(frame: &[u8]) -> Seen<'_> {
    let mut at = 12;
    let mut tags = Vec::new();
    while tags.len() < MOST_TAGS
        && let (Some(protocol), Some(control)) = (u16_at(frame, at), u16_at(frame, at + 2))
        && TAGS.contains(&protocol)
    {
        tags.push((protocol, control));
        at += 4;
    }
    let ip = u16_at(frame, at).and_then(|ethertype| read_ip(frame, at + 2, ethertype));
    Seen { frame, tags, ip }
}

/// Reads the IP packet at an offset of a frame whose EtherType says which version it is.
#[must_use]
pub fn read_ip(frame: &[u8], at: usize, ethertype: u16) -> Option<Ip<'_>> {
    let bytes = frame.get(at..)?;
    match ethertype {
        0x0800 => read_ipv4(at, bytes),
        0x86dd => read_ipv6(at, bytes),
        _ => None,
    }
}

fn read_ipv4(at: usize, bytes: &[u8]) -> Option<Ip<'_>> {
    let header = bytes.get(..20)?;
    let length = usize::from(u16_at(header, 2)?);
    let own = usize::from(header[0] & 0xf) * 4;
    let offset = u16_at(header, 6)? & 0x1fff;
    let is_sound = header[0] >> 4 == 4 && own >= 20 && length >= own;
    let carried = match header[9] {
        1 => Carried::Icmp(own),
        4 | 41 if is_sound => Carried::Tunnel(own),
        6 if !is_sound => Carried::Broken,
        6 if offset != 0 => Carried::LaterFragment,
        6 => read_tcp(bytes, own, length),
        _ => Carried::Other,
    };
    let address = |at: usize| {
        Some(Ipv4Addr::from(
            <[u8; 4]>::try_from(&header[at..at + 4]).ok()?,
        ))
    };
    Some(Ip {
        at,
        bytes,
        length,
        ttl: header[8],
        source: address(12)?.into(),
        destination: address(16)?.into(),
        carried,
    })
}

fn read_ipv6(at: usize, bytes: &[u8]) -> Option<Ip<'_>> {
    let header = bytes.get(..40)?;
    let length = 40 + usize::from(u16_at(header, 4)?);
    let carried = if header[0] >> 4 == 6 {
        behind_extensions(bytes, length)
    } else {
        Carried::Broken
    };
    let address = |at: usize| {
        Some(Ipv6Addr::from(
            <[u8; 16]>::try_from(&header[at..at + 16]).ok()?,
        ))
    };
    Some(Ip {
        at,
        bytes,
        length,
        ttl: header[7],
        source: address(8)?.into(),
        destination: address(24)?.into(),
        carried,
    })
}

/// RFC 8200, section 4: options, routing and fragment headers may stand before TCP's.
fn behind_extensions(bytes: &[u8], length: usize) -> Carried {
    let mut next = bytes[6];
    let mut at = 40;
    if next == 58 {
        return Carried::Icmp(at);
    }
    for _ in 0..=MOST_EXTENSIONS {
        match next {
            6 => return read_tcp(bytes, at, length),
            4 | 41 if at == 40 => return Carried::Tunnel(at),
            0 | 43 | 44 | 60 => {}
            _ => return Carried::Other,
        }
        let Some(extension) = bytes.get(at..at + 8) else {
            return Carried::Broken;
        };
        let mut own = 8 * (usize::from(extension[1]) + 1);
        if next == 44 {
            own = 8;
            let offset = u16::from_be_bytes([extension[2], extension[3]]) & !7;
            if offset != 0 {
                return match extension[0] {
                    6 | 60 => Carried::LaterFragment,
                    _ => Carried::Other,
                };
            }
        } else if next == 43 && extension[3] != 0 {
            return Carried::Other;
        }
        next = extension[0];
        at += own;
        if at > MOST_HEADERS {
            return Carried::Broken;
        }
    }
    Carried::Broken
}

fn read_tcp(packet: &[u8], at: usize, length: usize) -> Carried {
    let Some(header) = packet.get(at..at + 20) else {
        return Carried::Broken;
    };
    let own = usize::from(header[12] >> 4) * 4;
    if own < 20 || at + own > length {
        return Carried::Broken;
    }
    let word = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    Carried::Tcp(Tcp {
        at,
        source: half(0),
        destination: half(2),
        seq: word(4),
        ack: word(8),
        flags: header[13],
        payload: length - at - own,
    })
}

impl<'a> Ip<'a> {
    /// The packet, without what stands behind it in the frame; none if the frame ends before it does.
    #[must_use]
    pub fn whole(&self) -> Option<&'a [u8]> {
        self.bytes.get(..self.length)
    }

    /// Whether it is a part of a packet: what it is a part of is not all here.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.is_ipv4() && u16_at(self.bytes, 6).is_some_and(|word| word & 0x3fff != 0)
    }

    /// Whether the packet is of IPv4.
    #[must_use]
    pub const fn is_ipv4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Whether the header's own checksum is right. IPv6 has none to be wrong.
    #[must_use]
    pub fn has_right_header_sum(&self) -> bool {
        if !self.is_ipv4() {
            return true;
        }
        let own = usize::from(self.bytes[0] & 0xf) * 4;
        self.bytes
            .get(..own)
            .is_some_and(|header| sum(header) == 0xffff)
    }

    /// Whether the checksum of what stands at an offset of the packet is right, with the pseudo-header of a protocol (RFC 9293, section 3.1; RFC
    /// 8200, section 8.1). False if the packet is cut short.
    #[must_use]
    pub fn has_right_sum(&self, at: usize, protocol: u8) -> bool {
        let Some(carried) = self.whole().and_then(|packet| packet.get(at..)) else {
            return false;
        };
        let mut summed = Vec::new();
        if protocol != 1 {
            for address in [self.source, self.destination] {
                match address {
                    IpAddr::V4(address) => summed.extend(address.octets()),
                    IpAddr::V6(address) => summed.extend(address.octets()),
                }
            }
            summed.extend((carried.len() as u32).to_be_bytes());
            summed.extend([0, 0, 0, protocol]);
        }
        summed.extend(carried);
        sum(&summed) == 0xffff
    }
}

/// The one's complement sum of 16-bit words (RFC 1071): all ones over bytes that hold a right checksum.
pub(super) fn sum(bytes: &[u8]) -> u16 {
    let total: u64 = bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let mut total = total;
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use lb_common::{net::IpVersion, tcp};

    use super::*;
    use crate::packet::{CLIENT, Packet, VIP, VIP_PORT, in_version, on_wire};

    fn read_back(packet: &Packet) {
        let frame = packet.bytes();
        let seen = read(&frame);
        assert_eq!(seen.tags, packet.tags);
        let ip = seen.ip.expect("an IP packet");
        assert_eq!(
            (ip.source, ip.destination),
            (on_wire(CLIENT.0), on_wire(VIP))
        );
        assert!(ip.has_right_header_sum());
        let Carried::Tcp(tcp) = ip.carried else {
            panic!("{:?} is no segment", ip.carried)
        };
        assert_eq!((tcp.source, tcp.destination), (CLIENT.1, VIP_PORT));
        assert_eq!(tcp.payload, 3);
        assert!(ip.has_right_sum(tcp.at, 6));
    }

    #[test]
    fn what_is_built_is_what_is_read() {
        for version in IpVersion::ALL {
            in_version(version, || {
                let plain = CLIENT.sends(tcp::ACK).payload(b"odd");
                read_back(&plain);
                read_back(&plain.clone().options(&[1; 12]).padded(7));
                read_back(
                    &plain
                        .tagged(0x8100, 5)
                        .tagged(0x88a8, 6)
                        .tcp_options(&[1; 8]),
                );
            });
        }
    }

    #[test]
    fn a_wrong_sum_shows() {
        let mut frame = CLIENT.sends(tcp::ACK).payload(b"odd").bytes();
        let last = frame.len() - 1;
        frame[last] ^= 1;
        let ip = read(&frame).ip.expect("an IP packet");
        assert!(ip.has_right_header_sum() && !ip.has_right_sum(20, 6));
        frame[22] ^= 1;
        assert!(
            !read(&frame)
                .ip
                .expect("an IP packet")
                .has_right_header_sum()
        );
    }
}
