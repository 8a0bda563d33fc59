//! Ethernet frames as tests see them: taken apart from captures, put together for injection.
//!
//! Written from the RFCs and not from `lb-common`, so that a mistake there is not repeated here.

use std::net::Ipv4Addr;

/// TCP's flag bits, as in byte 13 of its header.
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const PROTOCOL_IPIP: u8 = 4;
const PROTOCOL_TCP: u8 = 6;
const ETHERNET: usize = 14;

/// A hardware address.
pub type Mac = [u8; 6];

/// An IPv4 header's fields that tests look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Time to live.
    pub ttl: u8,
    /// Total length in bytes, header included.
    pub length: u16,
    /// Whether the header's checksum is right.
    pub checksum_ok: bool,
}

/// A TCP header's fields that tests look at, and its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flag bits, see [`flags`].
    pub flags: u8,
    /// The bytes after the header, to the end that the IP header gives.
    pub payload: Vec<u8>,
}

impl Tcp {
    /// Whether all of `bits` are set.
    #[must_use]
    pub fn has(&self, bits: u8) -> bool {
        self.flags & bits == bits
    }
}

/// An IPv4 TCP segment in a frame, bare or behind one more IPv4 header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Destination MAC of the frame.
    pub mac_destination: Mac,
    /// Source MAC of the frame.
    pub mac_source: Mac,
    /// The encapsulating header, where there is one.
    pub outer: Option<Ip>,
    /// The header that TCP's endpoints see.
    pub ip: Ip,
    /// The segment.
    pub tcp: Tcp,
}

/// Takes a frame apart; `None` for everything that is not IPv4 TCP, bare or in one IPv4 header, or is cut short.
#[must_use]
pub fn parse(frame: &[u8]) -> Option<Segment> {
    let mac_destination = frame.get(0..6)?.try_into().ok()?;
    let mac_source = frame.get(6..12)?.try_into().ok()?;
    if u16_at(frame, 12)? != ETHERTYPE_IPV4 {
        return None;
    }
    let (first, protocol, payload) = parse_ip(frame.get(ETHERNET..)?)?;
    let (outer, ip, protocol, payload) = if protocol == PROTOCOL_IPIP {
        let (inner, protocol, payload) = parse_ip(payload)?;
        (Some(first), inner, protocol, payload)
    } else {
        (None, first, protocol, payload)
    };
    if protocol != PROTOCOL_TCP {
        return None;
    }
    let header = usize::from(*payload.get(12)? >> 4) * 4;
    let tcp = Tcp {
        source: u16_at(payload, 0)?,
        destination: u16_at(payload, 2)?,
        seq: u32_at(payload, 4)?,
        ack: u32_at(payload, 8)?,
        flags: *payload.get(13)?,
        payload: payload.get(header..)?.to_vec(),
    };
    Some(Segment {
        mac_destination,
        mac_source,
        outer,
        ip,
        tcp,
    })
}

fn parse_ip(bytes: &[u8]) -> Option<(Ip, u8, &[u8])> {
    let header = usize::from(bytes.first()? & 0x0f) * 4;
    if bytes[0] >> 4 != 4 || header < 20 {
        return None;
    }
    let length = u16_at(bytes, 2)?;
    let ip = Ip {
        source: Ipv4Addr::from(u32_at(bytes, 12)?),
        destination: Ipv4Addr::from(u32_at(bytes, 16)?),
        ttl: *bytes.get(8)?,
        length,
        checksum_ok: checksum(bytes.get(..header)?) == 0,
    };
    Some((ip, bytes[9], bytes.get(header..usize::from(length))?))
}

/// What is needed to put a TCP segment without options into a frame.
#[derive(Debug, Clone, Copy)]
pub struct Build {
    /// Destination MAC of the frame.
    pub mac_destination: Mac,
    /// Source MAC of the frame.
    pub mac_source: Mac,
    /// Source address and port.
    pub source: (Ipv4Addr, u16),
    /// Destination address and port.
    pub destination: (Ipv4Addr, u16),
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flag bits, see [`flags`].
    pub flags: u8,
}

impl Build {
    /// The frame, with TTL 64, a window of 65535 and both checksums right.
    ///
    /// # Panics
    /// When `payload` does not fit into an IPv4 packet.
    #[must_use]
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let tcp_length = u16::try_from(20 + payload.len()).expect("a segment fits into a packet");
        let length = tcp_length
            .checked_add(20)
            .expect("a segment fits into a packet");
        let mut frame = Vec::with_capacity(ETHERNET + usize::from(length));
        frame.extend(self.mac_destination);
        frame.extend(self.mac_source);
        frame.extend(ETHERTYPE_IPV4.to_be_bytes());

        frame.extend([0x45, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, PROTOCOL_TCP, 0, 0]);
        frame.extend(self.source.0.octets());
        frame.extend(self.destination.0.octets());
        let sum = checksum(&frame[ETHERNET..]);
        frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());

        let tcp = frame.len();
        frame.extend(self.source.1.to_be_bytes());
        frame.extend(self.destination.1.to_be_bytes());
        frame.extend(self.seq.to_be_bytes());
        frame.extend(self.ack.to_be_bytes());
        frame.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend(payload);
        let mut pseudo = Vec::with_capacity(12 + usize::from(tcp_length));
        pseudo.extend(self.source.0.octets());
        pseudo.extend(self.destination.0.octets());
        pseudo.extend([0, PROTOCOL_TCP]);
        pseudo.extend(tcp_length.to_be_bytes());
        pseudo.extend(&frame[tcp..]);
        let sum = checksum(&pseudo);
        frame[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
        frame
    }
}

/// The Internet checksum (RFC 1071); 0 over bytes that hold a right one.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: Build = Build {
        mac_destination: [2, 0, 0, 0, 0, 1],
        mac_source: [2, 0, 0, 0, 0, 2],
        source: (Ipv4Addr::new(10, 0, 1, 10), 40000),
        destination: (Ipv4Addr::new(10, 0, 0, 1), 80),
        seq: 0x0102_0304,
        ack: 0,
        flags: flags::SYN,
    };

    #[test]
    fn what_is_built_is_what_is_parsed() {
        let segment = parse(&BUILD.frame(b"odd")).expect("a frame");
        assert_eq!(segment.outer, None);
        assert_eq!((segment.ip.source, segment.tcp.source), BUILD.source);
        assert_eq!(
            (segment.ip.destination, segment.tcp.destination),
            BUILD.destination
        );
        assert_eq!(
            (segment.ip.ttl, segment.ip.length, segment.ip.checksum_ok),
            (64, 43, true)
        );
        assert_eq!((segment.tcp.seq, segment.tcp.ack), (0x0102_0304, 0));
        assert!(segment.tcp.has(flags::SYN) && !segment.tcp.has(flags::ACK));
        assert_eq!(segment.tcp.payload, b"odd");
    }

    #[test]
    fn an_encapsulated_segment_shows_both_headers() {
        let bare = BUILD.frame(b"");
        let mut frame = bare[..ETHERNET].to_vec();
        frame.extend([
            0x45,
            0,
            0,
            60,
            0,
            0,
            0,
            0,
            9,
            PROTOCOL_IPIP,
            0,
            0,
            10,
            0,
            2,
            2,
            10,
            0,
            3,
            11,
        ]);
        frame.extend(&bare[ETHERNET..]);
        let segment = parse(&frame).expect("a frame");
        let outer = segment.outer.expect("an outer header");
        assert_eq!((outer.ttl, outer.checksum_ok), (9, false));
        assert_eq!(outer.destination, Ipv4Addr::new(10, 0, 3, 11));
        assert_eq!(segment.ip.destination, BUILD.destination.0);
    }

    #[test]
    fn every_truncation_is_refused() {
        let frame = BUILD.frame(b"payload");
        for length in 0..frame.len() {
            assert_eq!(parse(&frame[..length]), None, "{length} bytes");
        }
    }
}
