//! The packet that is asked about, built; and what the program made of it, read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::{
    headers::{
        ETH_LEN, ETHERTYPE_QINQ, ETHERTYPE_VLAN, IPV6_LEN, PROTO_IPIP, PROTO_IPV6, PROTO_TCP,
        TCP_LEN, TTL, VLAN_LEN,
    },
    net::Mac,
    tcp,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::packet::{Tcp, ethertype, segment};

/// Flags of TCP by name, as they are written.
const FLAGS: [(&str, u8); 6] = [
    ("syn", tcp::SYN),
    ("ack", tcp::ACK),
    ("fin", tcp::FIN),
    ("rst", tcp::RST),
    ("psh", 0x08),
    ("urg", 0x20),
];

/// The names of flags.
pub(super) fn names_of(flags: u8) -> Vec<String> {
    FLAGS
        .iter()
        .filter(|(_, bit)| flags & bit != 0)
        .map(|(name, _)| (*name).to_owned())
        .collect()
}

/// The flags of names with commas between them; `none` is none.
///
/// # Errors
/// With the names that there are.
pub fn flags_of(text: &str) -> Result<u8, String> {
    if text == "none" {
        return Ok(0);
    }
    text.split(',')
        .map(|name| {
            FLAGS
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, bit)| *bit)
                .ok_or_else(|| {
                    format!("{name:?} is no flag; write some of syn, ack, fin, rst, psh and urg with commas between them, or none")
                })
        })
        .try_fold(0, |flags, bit| Ok(flags | bit?))
}

/// A segment of TCP from a client to a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Built {
    pub(super) client: SocketAddr,
    pub(super) vip: SocketAddr,
    pub(super) flags: u8,
    pub(super) seq: u32,
    /// Bytes of data, which are zeros.
    pub(super) payload: u16,
}

impl Built {
    /// The frame. Its MAC addresses are made up: the program looks at none.
    ///
    /// Both addresses are of one version of IP, and the payload leaves room for headers.
    pub(super) fn frame(&self) -> Vec<u8> {
        let tcp = Tcp {
            flags: self.flags,
            seq: self.seq,
            ack: 0,
            window: u16::MAX,
            ttl: TTL,
            mss: None,
            data: &vec![0; usize::from(self.payload)],
        };
        let mut frame = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1];
        frame.extend(ethertype(self.vip.ip()).to_be_bytes());
        frame.extend(segment(self.client, self.vip, &tcp));
        frame
    }
}

/// A frame as it leaves, or as a backend on this host gets it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sent {
    /// The interface that it leaves by; the one that it has come in by, if a backend on this host gets it.
    pub interface: String,
    /// Its length in bytes, from the Ethernet header on.
    pub bytes: usize,
    /// MAC address of the sender.
    pub source_mac: String,
    /// MAC address of the next hop.
    pub destination_mac: String,
    /// Its VLANs, the outermost first.
    pub vlans: Vec<u16>,
    /// Mode `ipip`: the addresses of the outer header.
    pub outer: Option<Outer>,
    /// Where it is from, as its receiver sees it; none if it is no segment of TCP.
    #[schema(value_type = Option<String>)]
    pub source: Option<SocketAddr>,
    /// Where it is for.
    #[schema(value_type = Option<String>)]
    pub destination: Option<SocketAddr>,
    /// Its flags.
    pub flags: Vec<String>,
}

/// The addresses of an outer header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outer {
    /// This host's.
    #[schema(value_type = String)]
    pub source: IpAddr,
    /// The backend's.
    #[schema(value_type = String)]
    pub destination: IpAddr,
}

/// Reads a frame that the program has made.
pub(super) fn read(frame: &[u8], interface: String) -> Option<Sent> {
    let mac = |at: usize| Some(Mac(frame.get(at..at + 6)?.try_into().ok()?).to_string());
    let mut at = ETH_LEN - 2;
    let mut vlans = Vec::new();
    let mut ethertype = be16(frame, at)?;
    while ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ {
        vlans.push(be16(frame, at + 2)? & 0xfff);
        at += VLAN_LEN;
        ethertype = be16(frame, at)?;
    }
    let mut header = ip(frame.get(at + 2..)?)?;
    let mut outer = None;
    if header.protocol == PROTO_IPIP || header.protocol == PROTO_IPV6 {
        outer = Some(Outer {
            source: header.source,
            destination: header.destination,
        });
        header = ip(header.rest)?;
    }
    let is_tcp = header.protocol == PROTO_TCP && header.rest.len() >= TCP_LEN;
    let end = |address, at| Some(SocketAddr::new(address, be16(header.rest, at)?));
    Some(Sent {
        interface,
        bytes: frame.len(),
        source_mac: mac(6)?,
        destination_mac: mac(0)?,
        vlans,
        outer,
        source: is_tcp.then(|| end(header.source, 0)).flatten(),
        destination: is_tcp.then(|| end(header.destination, 2)).flatten(),
        flags: if is_tcp {
            names_of(header.rest[13])
        } else {
            Vec::new()
        },
    })
}

struct Header<'f> {
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    rest: &'f [u8],
}

fn ip(packet: &[u8]) -> Option<Header<'_>> {
    fn octets<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
        packet.get(at..at + N)?.try_into().ok()
    }
    match packet.first()? >> 4 {
        4 => Some(Header {
            protocol: *packet.get(9)?,
            source: Ipv4Addr::from(octets::<4>(packet, 12)?).into(),
            destination: Ipv4Addr::from(octets::<4>(packet, 16)?).into(),
            rest: packet.get(usize::from(packet[0] & 0xf) * 4..)?,
        }),
        6 => Some(Header {
            protocol: *packet.get(6)?,
            source: Ipv6Addr::from(octets::<16>(packet, 8)?).into(),
            destination: Ipv6Addr::from(octets::<16>(packet, 24)?).into(),
            rest: packet.get(IPV6_LEN..)?,
        }),
        _ => None,
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use lb_common::csum;

    use super::*;

    fn built(client: &str, vip: &str) -> Built {
        Built {
            client: client.parse().unwrap(),
            vip: vip.parse().unwrap(),
            flags: tcp::SYN,
            seq: 0x0102_0304,
            payload: 3,
        }
    }

    #[test]
    fn what_is_built_is_read_as_it_was_asked_for() {
        for (client, vip, addresses, bytes) in [
            ("198.51.100.7:40000", "192.0.2.1:443", ETH_LEN + 12, 57),
            (
                "[2001:db8::7]:40000",
                "[2001:db8:1::1]:443",
                ETH_LEN + 8,
                77,
            ),
        ] {
            let built = built(client, vip);
            let frame = built.frame();
            let sent = read(&frame, "eth0".into()).unwrap();
            assert_eq!(
                (sent.source, sent.destination),
                (Some(built.client), Some(built.vip))
            );
            assert_eq!((sent.bytes, sent.flags), (bytes, vec!["syn".to_owned()]));
            assert_eq!((sent.outer, sent.vlans), (None, vec![]));
            // With the right checksum, all words come to zero.
            let tcp = frame.len() - TCP_LEN - 3;
            let pseudo = csum::sum_bytes(&frame[addresses..tcp]) + 6 + 23;
            assert_eq!(csum::finish(pseudo + csum::sum_bytes(&frame[tcp..])), 0);
        }
        let frame = built("198.51.100.7:40000", "192.0.2.1:443").frame();
        assert_eq!(csum::finish(csum::sum_bytes(&frame[14..34])), 0);
    }

    #[test]
    fn tags_and_an_outer_header_are_read() {
        let inner = built("198.51.100.7:40000", "192.0.2.1:443").frame();
        let mut frame = inner[..12].to_vec();
        frame.extend([0x81, 0, 0xe0, 7, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 43, 4, 64]);
        frame.extend([0x20; 16]);
        frame.extend([0x30; 16]);
        frame.extend(&inner[14..]);
        let sent = read(&frame, "eth0".into()).unwrap();
        assert_eq!(sent.vlans, [7]);
        let outer = sent.outer.unwrap();
        assert_eq!(outer.source, IpAddr::from([0x20; 16]));
        assert_eq!(outer.destination, IpAddr::from([0x30; 16]));
        assert_eq!(sent.destination, Some("192.0.2.1:443".parse().unwrap()));
        // Whatever is cut off, nothing is made up and nothing breaks.
        for length in 0..frame.len() - 3 {
            assert!(read(&frame[..length], String::new()).is_none_or(|sent| sent.source.is_none()));
        }
    }

    #[test]
    fn flags_are_written_by_name() {
        assert_eq!(flags_of("syn,ack"), Ok(tcp::SYN | tcp::ACK));
        assert_eq!(flags_of("none"), Ok(0));
        assert_eq!(names_of(tcp::SYN | tcp::ACK), ["syn", "ack"]);
        let error = flags_of("syn,akc").unwrap_err();
        assert!(
            error.contains("\"akc\"") && error.contains("rst"),
            "{error}"
        );
    }
}
