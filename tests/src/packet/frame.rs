//! Frames as values: built from what a test cares about, with every checksum right.
//!
//! The checksums here are computed from scratch over the finished bytes, by code that shares nothing with the data path's, so an
//! expected output built here verifies what the program computed.

use std::net::Ipv4Addr;

use lb_common::{net::IpVersion, tcp};

use super::version::{in_ipv6, version};

/// EtherType of IPv4.
const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
const IPV6: u16 = 0x86dd;

/// An IP packet in an Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Version of IP: the one in force when it was made.
    pub version: IpVersion,
    /// Destination MAC address.
    pub destination_mac: [u8; 6],
    /// Source MAC address.
    pub source_mac: [u8; 6],
    /// VLAN tags, the outermost first: EtherType of the tag, and its control information.
    pub tags: Vec<(u16, u16)>,
    /// Type of service, or traffic class: DSCP and ECN.
    pub tos: u8,
    /// IPv4: identification.
    pub id: u16,
    /// IPv4: flags and fragment offset.
    pub fragment: u16,
    /// IPv6: flow label, 20 bits.
    pub label: u32,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers, the first of them first.
    pub extensions: Vec<Extension>,
    /// What the IP header carries.
    pub transport: Transport,
    /// What the header says is the packet's length, its own included, if that is a lie.
    pub total_length: Option<u16>,
    /// Bytes behind the IP packet that do not belong to it.
    pub padding: usize,
}

/// An IPv6 extension header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its number: what the header before it announces.
    pub kind: u8,
    /// Its bytes, but for the first, which announces what follows.
    pub bytes: Vec<u8>,
}

impl Extension {
    /// A header with nothing but padding (RFC 8200, section 4.2): hop-by-hop options (0) or destination options (60), of a multiple of
    /// eight bytes.
    pub fn options(kind: u8, len: usize) -> Self {
        let mut bytes = vec![(len / 8 - 1) as u8, 1, (len - 4).min(255) as u8];
        bytes.resize(len - 1, 0);
        Self { kind, bytes }
    }

    /// A routing header without addresses, with so many segments left.
    pub fn routing(segments_left: u8) -> Self {
        Self {
            kind: 43,
            bytes: vec![0, 4, segments_left, 0, 0, 0, 0],
        }
    }

    /// A fragment header: offset and flag as they are in the header.
    pub fn fragment(offset_and_flag: u16) -> Self {
        let [high, low] = offset_and_flag.to_be_bytes();
        Self {
            kind: 44,
            bytes: vec![0, high, low, 0xbe, 0xef, 0xca, 0xfe],
        }
    }
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp(Tcp),
    /// Another protocol, or a part of one.
    Other {
        /// Its number.
        protocol: u8,
        /// Its bytes.
        bytes: Vec<u8>,
    },
}

/// A TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Flags.
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Data.
    pub payload: Vec<u8>,
}

/// The beginning of a TCP segment's frame.
#[derive(Clone, Debug)]
pub struct Cut {
    /// What there is of it.
    pub frame: Vec<u8>,
    /// How many bytes are missing at its end.
    pub missing: usize,
    /// Its length as counters count it, by what its header says.
    pub counted: u32,
    /// Whether its headers are there, but for options of TCP.
    pub has_headers: bool,
}

impl Packet {
    /// A TCP segment without data between two endpoints, its MAC addresses those of the last router and of this host.
    pub fn tcp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8) -> Self {
        let segment = Tcp {
            source_port: from.1,
            destination_port: to.1,
            seq: 0x1234_5678,
            ack: if flags & tcp::ACK == 0 {
                0
            } else {
                0x8765_4321
            },
            flags,
            window: 0xfaf0,
            options: Vec::new(),
            payload: Vec::new(),
        };
        Self {
            destination_mac: [0x02, 0, 0, 0, 0, 0x01],
            source_mac: [0x02, 0, 0, 0, 0, 0x02],
            version: version(),
            tags: Vec::new(),
            tos: 0,
            id: 0xbeef,
            fragment: 0x4000,
            label: 0xa_bcde,
            ttl: 64,
            source: from.0,
            destination: to.0,
            options: Vec::new(),
            extensions: Vec::new(),
            transport: Transport::Tcp(segment),
            total_length: None,
            padding: 0,
        }
    }

    /// The same, with one VLAN tag more around it; `tpid` is the tag's EtherType.
    pub fn tagged(mut self, tpid: u16, tci: u16) -> Self {
        self.tags.insert(0, (tpid, tci));
        self
    }

    /// The same with all of these around it, the outermost first.
    pub fn within(self, tags: &[(u16, u16)]) -> Self {
        tags.iter()
            .rev()
            .fold(self, |packet, (tpid, tci)| packet.tagged(*tpid, *tci))
    }

    /// The same with another type of service.
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// The same with other flags and fragment offset, as IPv4 has them; in IPv6 with a fragment header that says the same, if it is one.
    pub fn fragment(mut self, flags_and_offset: u16) -> Self {
        self.fragment = flags_and_offset;
        let (has_more, offset) = (flags_and_offset & 0x2000 != 0, flags_and_offset & 0x1fff);
        if self.version == IpVersion::V6 && (has_more || offset != 0) {
            return self.extended(Extension::fragment(offset << 3 | u16::from(has_more)));
        }
        self
    }

    /// The same with another time to live.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// The same with IPv4 options; in IPv6 with destination options instead that are at least as long.
    pub fn options(mut self, options: &[u8]) -> Self {
        if self.version == IpVersion::V6 {
            return self.extended(Extension::options(60, options.len().next_multiple_of(8)));
        }
        self.options = options.to_vec();
        self
    }

    /// The same with one more IPv6 extension header, behind those it has.
    pub fn extended(mut self, extension: Extension) -> Self {
        self.extensions.push(extension);
        self
    }

    /// The same with a header that lies about the packet's length.
    pub fn total_length(mut self, length: u16) -> Self {
        self.total_length = Some(length);
        self
    }

    /// The same with bytes behind it that are not its own.
    pub fn padded(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// The same carrying another protocol.
    pub fn carrying(mut self, protocol: u8, bytes: &[u8]) -> Self {
        self.transport = Transport::Other {
            protocol,
            bytes: bytes.to_vec(),
        };
        self
    }

    /// The same with other addresses in the Ethernet header.
    pub fn macs(mut self, destination: [u8; 6], source: [u8; 6]) -> Self {
        (self.destination_mac, self.source_mac) = (destination, source);
        self
    }

    /// The same with another TCP sequence number.
    pub fn seq(self, seq: u32) -> Self {
        self.with_tcp(|tcp| tcp.seq = seq)
    }

    /// The same with another TCP acknowledgement number.
    pub fn ack(self, ack: u32) -> Self {
        self.with_tcp(|tcp| tcp.ack = ack)
    }

    /// The same with data.
    pub fn payload(self, payload: &[u8]) -> Self {
        self.with_tcp(|tcp| tcp.payload = payload.to_vec())
    }

    /// The same with just so much data that the IP packet is this long.
    ///
    /// # Panics
    /// If it is longer already.
    pub fn of_length(self, length: usize) -> Self {
        let headers = usize::from(self.clone().payload(&[]).length());
        let payload = length.checked_sub(headers).expect("room for the headers");
        self.payload(&vec![0; payload])
    }

    /// The same with TCP options.
    pub fn tcp_options(self, options: &[u8]) -> Self {
        self.with_tcp(|tcp| tcp.options = options.to_vec())
    }

    /// The same with its TCP segment changed.
    ///
    /// # Panics
    /// If it carries no TCP.
    pub fn with_tcp(mut self, change: impl FnOnce(&mut Tcp)) -> Self {
        match &mut self.transport {
            Transport::Tcp(tcp) => change(tcp),
            Transport::Other { protocol, .. } => panic!("protocol {protocol} is not TCP"),
        }
        self
    }

    /// A segment as it is, and with what makes checksums, offsets and frames differ; without options of IP.
    pub fn shapes(&self) -> Vec<Self> {
        let plain = || self.clone();
        vec![
            plain(),
            plain().payload(b"data of odd length."),
            plain().payload(&[0xff; 1_400]),
            plain().payload(&[0; 64]),
            plain().tcp_options(&[1; 40]),
            plain().padded(6),
            plain().tagged(0x8100, 0x2001),
            plain().tagged(0x8100, 0x0fff).tagged(0x88a8, 0xffff),
            plain().tos(0xb9),
            plain().ttl(2),
            plain().ttl(255),
            plain().with_tcp(|tcp| tcp.window = 0),
        ]
    }

    /// Its TCP segment.
    ///
    /// # Panics
    /// If it carries no TCP.
    pub fn as_tcp(&self) -> &Tcp {
        match &self.transport {
            Transport::Tcp(tcp) => tcp,
            Transport::Other { protocol, .. } => panic!("protocol {protocol} is not TCP"),
        }
    }

    /// Its frame cut to each length from that of an Ethernet header on, and whole at last.
    pub fn cuts(&self) -> impl Iterator<Item = Cut> {
        let (whole, counted) = (self.bytes(), self.counted());
        let headers = self.network() + self.headers_len() + 20;
        (14..=whole.len()).map(move |length| Cut {
            frame: whole[..length].to_vec(),
            missing: whole.len() - length,
            counted,
            has_headers: length >= headers,
        })
    }

    /// Offset of the IP header in the frame.
    pub fn network(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Length of the frame without padding: as counters count it, from the length that the IP header gives.
    pub fn counted(&self) -> u32 {
        (self.network() + usize::from(self.length())) as u32
    }

    /// Length of the IP packet, as its header says.
    pub fn length(&self) -> u16 {
        let transport = match &self.transport {
            Transport::Tcp(tcp) => 20 + tcp.options.len() + tcp.payload.len(),
            Transport::Other { bytes, .. } => bytes.len(),
        };
        self.total_length
            .unwrap_or((self.headers_len() + transport) as u16)
    }

    /// Length of the IP header, with options or extension headers.
    pub fn headers_len(&self) -> usize {
        match self.version {
            IpVersion::V4 => 20 + self.options.len(),
            IpVersion::V6 => {
                let extensions = self.extensions.iter();
                40 + extensions.map(|one| 1 + one.bytes.len()).sum::<usize>()
            }
        }
    }

    fn protocol(&self) -> u8 {
        match &self.transport {
            Transport::Tcp(_) => 6,
            Transport::Other { protocol, .. } => *protocol,
        }
    }

    /// The IP packet: the frame from the IP header on, without padding.
    pub fn packet(&self) -> Vec<u8> {
        let mut bytes = match self.version {
            IpVersion::V4 => self.ipv4_header(),
            IpVersion::V6 => self.ipv6_headers(),
        };
        match &self.transport {
            Transport::Tcp(tcp) => bytes.extend(self.segment(tcp)),
            Transport::Other { bytes: other, .. } => bytes.extend(other),
        }
        bytes
    }

    fn ipv6_headers(&self) -> Vec<u8> {
        let first = 6 << 28 | u32::from(self.tos) << 20 | self.label;
        let mut bytes = first.to_be_bytes().to_vec();
        bytes.extend(self.length().wrapping_sub(40).to_be_bytes());
        let mut kinds = self.extensions.iter().map(|one| one.kind);
        bytes.extend([kinds.next().unwrap_or(self.protocol()), self.ttl]);
        bytes.extend(self.addresses());
        for extension in &self.extensions {
            bytes.push(kinds.next().unwrap_or(self.protocol()));
            bytes.extend(&extension.bytes);
        }
        bytes
    }

    /// Both addresses as they are on the wire.
    fn addresses(&self) -> Vec<u8> {
        [self.source, self.destination]
            .into_iter()
            .flat_map(|address| match self.version {
                IpVersion::V4 => address.octets().to_vec(),
                IpVersion::V6 => in_ipv6(address).octets().to_vec(),
            })
            .collect()
    }

    fn ipv4_header(&self) -> Vec<u8> {
        let mut bytes = vec![
            0x45 + (self.options.len() / 4) as u8,
            self.tos,
            0,
            0,
            0,
            0,
            0,
            0,
            self.ttl,
            self.protocol(),
            0,
            0,
        ];
        bytes[2..4].copy_from_slice(&self.length().to_be_bytes());
        bytes[4..6].copy_from_slice(&self.id.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.fragment.to_be_bytes());
        bytes.extend(self.addresses());
        bytes.extend(&self.options);
        let header = checksum(&bytes);
        bytes[10..12].copy_from_slice(&header.to_be_bytes());
        bytes
    }

    fn segment(&self, tcp: &Tcp) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(tcp.source_port.to_be_bytes());
        bytes.extend(tcp.destination_port.to_be_bytes());
        bytes.extend(tcp.seq.to_be_bytes());
        bytes.extend(tcp.ack.to_be_bytes());
        bytes.extend([((20 + tcp.options.len()) / 4 * 16) as u8, tcp.flags]);
        bytes.extend(tcp.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&tcp.options);
        bytes.extend(&tcp.payload);
        let mut summed = self.addresses();
        summed.extend([0, 6]);
        summed.extend((bytes.len() as u16).to_be_bytes());
        summed.extend(&bytes);
        bytes[16..18].copy_from_slice(&checksum(&summed).to_be_bytes());
        bytes
    }

    /// The whole frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.destination_mac);
        bytes.extend(self.source_mac);
        for (tpid, tci) in &self.tags {
            bytes.extend(tpid.to_be_bytes());
            bytes.extend(tci.to_be_bytes());
        }
        let ethertype = match self.version {
            IpVersion::V4 => IPV4,
            IpVersion::V6 => IPV6,
        };
        bytes.extend(ethertype.to_be_bytes());
        bytes.extend(self.packet());
        // Not zero, or a program that took padding for data would not show.
        bytes.extend(std::iter::repeat_n(0xa5, self.padding));
        bytes
    }
}

/// The Internet checksum of bytes, word by word with the carry added at once (RFC 1071, section 1).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u16 = 0;
    for pair in bytes.chunks(2) {
        let word = u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
        let (added, carry) = sum.overflowing_add(word);
        sum = added + u16::from(carry);
    }
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_packet_has_sums_of_zero() {
        let from = (Ipv4Addr::new(198, 51, 100, 7), 40_000);
        let to = (Ipv4Addr::new(192, 0, 2, 1), 443);
        let packet = Packet::tcp(from, to, tcp::ACK)
            .options(&[1; 8])
            .tcp_options(&[1; 4])
            .payload(b"odd");
        let bytes = packet.packet();
        assert_eq!(checksum(&bytes[..28]), 0);
        let mut pseudo = bytes[12..20].to_vec();
        pseudo.extend([0, 6, 0, 27]);
        pseudo.extend(&bytes[28..]);
        assert_eq!(checksum(&pseudo), 0);
        assert_eq!(packet.counted() as usize, packet.bytes().len());
    }

    #[test]
    fn the_checksum_of_a_known_header() {
        // RFC 1071, section 3: the words sum to ddf2.
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
    }
}
