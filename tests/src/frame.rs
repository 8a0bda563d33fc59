//! Ethernet frames as tests see them: taken apart from captures, put together for injection.
//!
//! Written from the RFCs and not from `lb-common`, so that a mistake there is not repeated here.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

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
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// What stands before a VLAN tag (IEEE 802.1Q), and before an outer one.
const ETHERTYPES_VLAN: [u16; 2] = [0x8100, 0x88a8];
/// Where a frame's EtherType stands, or its first tag.
const AFTER_MACS: usize = 12;
const PROTOCOL_IPV4: u8 = 4;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_IPV6: u8 = 41;
const PROTOCOL_ICMPV6: u8 = 58;
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
/// ICMPv6's types of the two messages that resolve neighbours (RFC 4861, sections 4.3 and 4.4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// A hardware address.
pub type Mac = [u8; 6];

/// A VLAN tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// The EtherType that stands for it: 0x8100, or 0x88a8.
    pub protocol: u16,
    /// Priority and VLAN.
    pub control: u16,
}

impl Tag {
    /// Puts it on a frame, outside of the tags that are on it already.
    pub fn put_on(self, frame: &mut Vec<u8>) {
        let [protocol, control] = [self.protocol, self.control].map(u16::to_be_bytes);
        frame.splice(AFTER_MACS..AFTER_MACS, protocol.into_iter().chain(control));
    }
}

/// An IP header's fields that tests look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// What comes after the header: IPv4's protocol, IPv6's next header.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Total length in bytes, header included.
    pub length: u16,
    /// Whether the header's checksum is right; an IPv6 header has none to be wrong.
    pub checksum_ok: bool,
    /// IPv6's flow label; 0 in IPv4, and from a sender that gives none.
    pub flow_label: u32,
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
    /// The maximum segment size that its options tell.
    pub mss: Option<u16>,
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

/// A TCP segment in a frame, bare or behind one more IP header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Destination MAC of the frame.
    pub mac_destination: Mac,
    /// Source MAC of the frame.
    pub mac_source: Mac,
    /// Its VLAN tags, the outermost first.
    pub tags: Vec<Tag>,
    /// The encapsulating header, where there is one.
    pub outer: Option<Ip>,
    /// The header that TCP's endpoints see.
    pub ip: Ip,
    /// The segment.
    pub tcp: Tcp,
    /// Whether the segment's checksum is right. Not of [`Tcp`], since translation changes it and not what that holds.
    pub tcp_checksum_ok: bool,
}

/// Takes a frame apart; `None` for everything that is not TCP in IPv4 or IPv6 without extension headers, bare or in one more such
/// header, and behind two VLAN tags at most, or is cut short.
#[must_use]
pub fn parse(frame: &[u8]) -> Option<Segment> {
    let mac_destination = frame.get(0..6)?.try_into().ok()?;
    let mac_source = frame.get(6..12)?.try_into().ok()?;
    let (tags, ethertype, payload) = step_over_tags(frame)?;
    let (first, payload) = parse_ip(ethertype, payload)?;
    let inner = match first.protocol {
        PROTOCOL_IPV4 => Some(ETHERTYPE_IPV4),
        PROTOCOL_IPV6 => Some(ETHERTYPE_IPV6),
        _ => None,
    };
    let (outer, ip, payload) = match inner {
        Some(ethertype) => {
            let (inner, payload) = parse_ip(ethertype, payload)?;
            (Some(first), inner, payload)
        }
        None => (None, first, payload),
    };
    if ip.protocol != PROTOCOL_TCP {
        return None;
    }
    let header = usize::from(*payload.get(12)? >> 4) * 4;
    let tcp = Tcp {
        source: u16_at(payload, 0)?,
        destination: u16_at(payload, 2)?,
        seq: u32_at(payload, 4)?,
        ack: u32_at(payload, 8)?,
        flags: *payload.get(13)?,
        mss: mss(payload.get(20..header)?),
        payload: payload.get(header..)?.to_vec(),
    };
    Some(Segment {
        mac_destination,
        mac_source,
        tags,
        outer,
        ip,
        tcp,
        tcp_checksum_ok: tcp_checksum([ip.source, ip.destination], payload) == 0,
    })
}

/// A frame's tags, of which there are two at most, its EtherType, and what comes after that.
fn step_over_tags(frame: &[u8]) -> Option<(Vec<Tag>, u16, &[u8])> {
    let mut tags = vec![];
    let mut at = AFTER_MACS;
    loop {
        let protocol = u16_at(frame, at)?;
        if tags.len() == 2 || !ETHERTYPES_VLAN.contains(&protocol) {
            return Some((tags, protocol, frame.get(at + 2..)?));
        }
        let control = u16_at(frame, at + 2)?;
        tags.push(Tag { protocol, control });
        at += 4;
    }
}

/// The maximum segment size among a segment's options (RFC 9293, section 3.2).
fn mss(mut options: &[u8]) -> Option<u16> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const MSS: u8 = 2;
    loop {
        let length = match *options.first()? {
            END => return None,
            NO_OPERATION => 1,
            MSS => return u16_at(options, 2),
            _ => usize::from(*options.get(1)?).max(2),
        };
        options = options.get(length..)?;
    }
}

/// One of NDP's messages that resolve neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Discovery {
    /// Who has this address?
    Solicitation(Ipv6Addr),
    /// The sender has it.
    Advertisement(Ipv6Addr),
}

/// What a frame says about neighbours; `None` for everything else.
#[must_use]
pub fn parse_discovery(frame: &[u8]) -> Option<Discovery> {
    let (ip, message) = parse_ip(u16_at(frame, 12)?, frame.get(ETHERNET..)?)?;
    if ip.protocol != PROTOCOL_ICMPV6 {
        return None;
    }
    let target = <[u8; 16]>::try_from(message.get(8..24)?).ok()?.into();
    match message[0] {
        SOLICITATION => Some(Discovery::Solicitation(target)),
        ADVERTISEMENT => Some(Discovery::Advertisement(target)),
        _ => None,
    }
}

/// The header, and what comes after it.
fn parse_ip(ethertype: u16, bytes: &[u8]) -> Option<(Ip, &[u8])> {
    match (ethertype, bytes.first()? >> 4) {
        (ETHERTYPE_IPV4, 4) => parse_ipv4(bytes),
        (ETHERTYPE_IPV6, 6) => parse_ipv6(bytes),
        _ => None,
    }
}

fn parse_ipv4(bytes: &[u8]) -> Option<(Ip, &[u8])> {
    let header = usize::from(bytes.first()? & 0x0f) * 4;
    if header < IPV4 {
        return None;
    }
    let length = u16_at(bytes, 2)?;
    let address = |at: usize| Some(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?.into());
    let ip = Ip {
        source: address(12)?,
        destination: address(16)?,
        protocol: *bytes.get(9)?,
        ttl: *bytes.get(8)?,
        length,
        checksum_ok: checksum(bytes.get(..header)?) == 0,
        flow_label: 0,
    };
    Some((ip, bytes.get(header..usize::from(length))?))
}

fn parse_ipv6(bytes: &[u8]) -> Option<(Ip, &[u8])> {
    let length = u16_at(bytes, 4)?.checked_add(IPV6 as u16)?;
    let address = |at: usize| Some(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?.into());
    let ip = Ip {
        source: address(8)?,
        destination: address(24)?,
        protocol: *bytes.get(6)?,
        ttl: *bytes.get(7)?,
        length,
        checksum_ok: true,
        flow_label: u32_at(bytes, 0)? & 0xf_ffff,
    };
    Some((ip, bytes.get(IPV6..usize::from(length))?))
}

/// What is needed to put a TCP segment without options into a frame.
#[derive(Debug, Clone, Copy)]
pub struct Build {
    /// Destination MAC of the frame.
    pub mac_destination: Mac,
    /// Source MAC of the frame.
    pub mac_source: Mac,
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port, of the same version.
    pub destination: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flag bits, see [`flags`].
    pub flags: u8,
}

impl Build {
    /// The frame, with a TTL or hop limit of 64, a window of 65535 and right checksums.
    ///
    /// # Panics
    /// When `payload` does not fit into a packet, or the addresses are of two versions.
    #[must_use]
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let tcp_length = u16::try_from(20 + payload.len()).expect("a segment fits into a packet");
        let mut frame = Vec::with_capacity(ETHERNET + IPV6 + usize::from(tcp_length));
        frame.extend(self.mac_destination);
        frame.extend(self.mac_source);
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let length = tcp_length.checked_add(IPV4 as u16);
                frame.extend(ETHERTYPE_IPV4.to_be_bytes());
                frame.extend([0x45, 0]);
                frame.extend(length.expect("a segment fits into a packet").to_be_bytes());
                frame.extend([0, 0, 0x40, 0, 64, PROTOCOL_TCP, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
                let sum = checksum(&frame[ETHERNET..]);
                frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend(ETHERTYPE_IPV6.to_be_bytes());
                frame.extend([0x60, 0, 0, 0]);
                frame.extend(tcp_length.to_be_bytes());
                frame.extend([PROTOCOL_TCP, 64]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            (source, destination) => panic!("{source} cannot write to {destination}"),
        }

        let tcp = frame.len();
        frame.extend(self.source.port().to_be_bytes());
        frame.extend(self.destination.port().to_be_bytes());
        frame.extend(self.seq.to_be_bytes());
        frame.extend(self.ack.to_be_bytes());
        frame.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend(payload);
        let sum = tcp_checksum([self.source.ip(), self.destination.ip()], &frame[tcp..]);
        frame[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// The same with VLAN tags, the outermost first.
    ///
    /// # Panics
    /// As [`Build::frame`].
    #[must_use]
    pub fn tagged(&self, tags: &[Tag], payload: &[u8]) -> Vec<u8> {
        let mut frame = self.frame(payload);
        for tag in tags.iter().rev() {
            tag.put_on(&mut frame);
        }
        frame
    }
}

/// The checksum over a TCP segment and its pseudo-header, as in RFC 9293, section 3.1, and in RFC 8200, section 8.1, whose zeros add nothing; 0 if the
/// segment holds a right one.
fn tcp_checksum(addresses: [IpAddr; 2], segment: &[u8]) -> u16 {
    let mut summed = Vec::with_capacity(2 * 16 + 6 + segment.len());
    for address in addresses {
        match address {
            IpAddr::V4(address) => summed.extend(address.octets()),
            IpAddr::V6(address) => summed.extend(address.octets()),
        }
    }
    summed.extend([0, PROTOCOL_TCP]);
    summed.extend((segment.len() as u32).to_be_bytes());
    summed.extend(segment);
    checksum(&summed)
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
    use lb_common::net::IpVersion;

    use super::*;
    use crate::address::{balancer, client, vip};

    fn build(version: IpVersion) -> Build {
        Build {
            mac_destination: [2, 0, 0, 0, 0, 1],
            mac_source: [2, 0, 0, 0, 0, 2],
            source: (client(version, 0), 40000).into(),
            destination: (vip(version), 80).into(),
            seq: 0x0102_0304,
            ack: 0,
            flags: flags::SYN,
        }
    }

    #[test]
    fn what_is_built_is_what_is_parsed() {
        for (version, length) in IpVersion::ALL.into_iter().zip([43, 63]) {
            let build = build(version);
            let segment = parse(&build.frame(b"odd")).expect("a frame");
            assert_eq!(segment.outer, None);
            let source = (segment.ip.source, segment.tcp.source);
            assert_eq!(SocketAddr::from(source), build.source);
            let destination = (segment.ip.destination, segment.tcp.destination);
            assert_eq!(SocketAddr::from(destination), build.destination);
            assert_eq!(
                (segment.ip.ttl, segment.ip.length, segment.ip.checksum_ok),
                (64, length, true)
            );
            assert_eq!((segment.tcp.seq, segment.tcp.ack), (0x0102_0304, 0));
            assert!(segment.tcp.has(flags::SYN) && !segment.tcp.has(flags::ACK));
            assert_eq!(segment.tcp.payload, b"odd");
            assert!(segment.tcp_checksum_ok && segment.tags.is_empty());
        }
    }

    #[test]
    fn the_tcp_checksum_of_ipv6_covers_the_addresses() {
        let frame = build(IpVersion::V6).frame(b"odd");
        let mut summed = frame[ETHERNET + 8..ETHERNET + IPV6].to_vec();
        summed.extend([0, 0, 0, 23, 0, 0, 0, PROTOCOL_TCP]);
        summed.extend(&frame[ETHERNET + IPV6..]);
        assert_eq!(checksum(&summed), 0);
    }

    /// Also where the wrong byte is one of an address, which IP's own checksum may cover or nothing.
    #[test]
    fn a_wrong_tcp_checksum_shows_and_leaves_the_segment_equal() {
        for (version, ip) in IpVersion::ALL.into_iter().zip([IPV4, IPV6]) {
            let frame = build(version).frame(b"payload");
            let right = parse(&frame).expect("a frame");
            let checksum = ETHERNET + ip + 16;
            for byte in [ETHERNET + ip - 1, checksum, checksum + 1, frame.len() - 1] {
                let mut frame = frame.clone();
                frame[byte] ^= 1;
                let wrong = parse(&frame).expect("a frame");
                assert!(!wrong.tcp_checksum_ok, "byte {byte}");
                let is_of_checksum = (checksum..checksum + 2).contains(&byte);
                assert!(!is_of_checksum || wrong.tcp == right.tcp);
            }
        }
    }

    #[test]
    fn the_maximum_segment_size_is_found_among_other_options() {
        let cases: [(&[u8], Option<u16>); 7] = [
            (&[2, 4, 5, 0xb4], Some(1_460)),
            (&[1, 3, 3, 7, 1, 2, 4, 5, 0x78, 0, 0, 0], Some(1_400)),
            (&[4, 2, 8, 10, 2, 4, 5, 0xb4, 0, 0, 0, 0], None),
            (&[1, 0, 2, 4, 5, 0xb4, 0, 0], None),
            (&[3, 0, 1, 2, 4, 5, 0xb4, 0], Some(1_460)),
            (&[1, 1, 2, 4], None),
            (&[], None),
        ];
        for (options, found) in cases {
            assert_eq!(mss(options), found, "{options:?}");
        }
    }

    #[test]
    fn an_encapsulated_segment_shows_both_headers() {
        let bare = build(IpVersion::V4).frame(b"");
        let mut frame = bare[..ETHERNET].to_vec();
        frame.extend([0x45, 0, 0, 60, 0, 0, 0, 0, 9, PROTOCOL_IPV4, 0, 0]);
        frame.extend([10, 0, 2, 2, 10, 0, 3, 11]);
        frame.extend(&bare[ETHERNET..]);
        let segment = parse(&frame).expect("a frame");
        let outer = segment.outer.expect("an outer header");
        assert_eq!((outer.ttl, outer.checksum_ok), (9, false));
        assert_eq!(outer.source, balancer(IpVersion::V4));
        assert_eq!(segment.ip.destination, vip(IpVersion::V4));
    }

    #[test]
    fn either_version_shows_within_ipv6() {
        for (version, protocol) in IpVersion::ALL
            .into_iter()
            .zip([PROTOCOL_IPV4, PROTOCOL_IPV6])
        {
            let bare = build(version).frame(b"");
            let inner = &bare[ETHERNET..];
            let mut frame = bare[..12].to_vec();
            frame.extend(ETHERTYPE_IPV6.to_be_bytes());
            frame.extend([0x60, 0x0a, 0xbc, 0xde, 0, inner.len() as u8, protocol, 9]);
            for address in [balancer(IpVersion::V6), client(IpVersion::V6, 7)] {
                let IpAddr::V6(address) = address else {
                    panic!("asked for IPv6")
                };
                frame.extend(address.octets());
            }
            frame.extend(inner);
            let segment = parse(&frame).expect("a frame");
            let outer = segment.outer.expect("an outer header");
            assert_eq!((outer.protocol, outer.ttl), (protocol, 9));
            assert_eq!(outer.flow_label, 0xa_bcde);
            assert_eq!(outer.length, segment.ip.length + 40);
            assert_eq!(outer.source, balancer(IpVersion::V6));
            assert_eq!(outer.destination, client(IpVersion::V6, 7));
            assert_eq!(segment.ip.destination, vip(version));
        }
    }

    /// An outer tag and an inner one.
    const TAGS: [Tag; 2] = [
        Tag {
            protocol: 0x88a8,
            control: 0x2064,
        },
        Tag {
            protocol: 0x8100,
            control: 200,
        },
    ];

    #[test]
    fn two_tags_show_and_are_stepped_over_and_no_more() {
        for version in IpVersion::ALL {
            let build = build(version);
            let bare = parse(&build.frame(b"odd")).expect("a frame");
            for count in 0..=2 {
                let tags = &TAGS[2 - count..];
                let frame = build.tagged(tags, b"odd");
                assert_eq!(frame.len(), build.frame(b"odd").len() + 4 * count);
                let segment = parse(&frame).expect("a frame");
                assert_eq!(segment.tags, tags);
                assert_eq!((segment.ip, &segment.tcp), (bare.ip, &bare.tcp));
            }
            let three = build.tagged(&[TAGS[0], TAGS[0], TAGS[1]], b"odd");
            assert_eq!(parse(&three), None);
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        for version in IpVersion::ALL {
            for tags in [&TAGS[..0], &TAGS[..]] {
                let frame = build(version).tagged(tags, b"payload");
                for length in 0..frame.len() {
                    assert_eq!(parse(&frame[..length]), None, "{length} bytes");
                }
            }
        }
    }
}
