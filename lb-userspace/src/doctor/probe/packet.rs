//! Packets from their IP header on: made and read. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::{
    csum,
    headers::{
        ICMP_LEN, IPV4_LEN, IPV4_OFFSET, IPV6_LEN, PROTO_ICMP, PROTO_ICMPV6, PROTO_IPIP,
        PROTO_IPV6, PROTO_TCP, TTL,
    },
    tcp::{ACK, RST, SYN},
};

use crate::packet::{self, Tcp, header, pseudo_sum};

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST6: u8 = 128;
const ECHO_REPLY6: u8 = 129;
/// Destination unreachable (RFC 792): protocol unreachable, and port unreachable, which is what Linux says of a tunnel when it knows others.
const UNKNOWN_PROTOCOL: [[u8; 2]; 2] = [[3, 2], [3, 3]];
/// The same in ICMPv6 (RFC 4443): parameter problem, unrecognised next header; destination unreachable, port unreachable.
const UNKNOWN_HEADER: [[u8; 2]; 2] = [[4, 1], [1, 4]];
/// What tunnels have in their outer header.
const TUNNELLED: [u8; 2] = [PROTO_IPIP, PROTO_IPV6];

/// What a packet that came in says, if it may be an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// An echo's reply.
    Echo {
        from: IpAddr,
        identifier: u16,
        sequence: u16,
    },
    /// A TCP segment with ACK and either SYN or RST.
    Segment {
        from: SocketAddr,
        to: SocketAddr,
        acknowledged: u32,
        reset: bool,
    },
    /// The host that a packet went to does not know the protocol in it.
    Unknown { to: IpAddr },
    /// A host says that it has an address.
    Has { address: Ipv4Addr, mac: [u8; 6] },
}

/// A TCP segment without data, ready to be sent.
pub(super) fn segment(source: SocketAddr, target: SocketAddr, flags: u8, sequence: u32) -> Vec<u8> {
    let tcp = Tcp {
        flags,
        seq: sequence,
        ack: 0,
        window: u16::MAX,
        ttl: TTL,
        mss: None,
        data: &[],
    };
    packet::segment(source, target, &tcp)
}

/// A packet in a packet.
pub(super) fn wrapped(source: IpAddr, destination: IpAddr, inner: &[u8]) -> Vec<u8> {
    let protocol = if inner[0] >> 4 == 4 {
        PROTO_IPIP
    } else {
        PROTO_IPV6
    };
    let mut packet = header(source, destination, protocol, inner.len());
    packet.extend(inner);
    packet
}

/// An echo request of `bytes`, IP header included, that is not to be fragmented.
pub(super) fn echo(
    source: IpAddr,
    destination: IpAddr,
    identifier: u16,
    sequence: u16,
    bytes: usize,
) -> Vec<u8> {
    let (outer, protocol, kind) = if destination.is_ipv4() {
        (IPV4_LEN, PROTO_ICMP, ECHO_REQUEST)
    } else {
        (IPV6_LEN, PROTO_ICMPV6, ECHO_REQUEST6)
    };
    let length = bytes.saturating_sub(outer).max(ICMP_LEN);
    let mut icmp = vec![kind, 0, 0, 0];
    icmp.extend(identifier.to_be_bytes());
    icmp.extend(sequence.to_be_bytes());
    icmp.resize(length, 0);
    let mut sum = csum::sum_bytes(&icmp);
    if destination.is_ipv6() {
        sum += pseudo_sum(source, destination, protocol, length);
    }
    icmp[2..4].copy_from_slice(&csum::finish(sum).to_be_bytes());
    let mut packet = header(source, destination, protocol, length);
    packet.extend(icmp);
    packet
}

/// An ARP probe (RFC 5227): who has the address? It says nothing of an address of the asker's, so no cache changes.
pub(super) fn arp_probe(own: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend(own);
    packet.extend([0; 4]);
    packet.extend([0; 6]);
    packet.extend(address.octets());
    packet
}

/// Reads an ARP reply.
pub(super) fn read_arp(packet: &[u8]) -> Option<Heard> {
    let (head, rest) = packet.split_at_checked(8)?;
    if head != [0, 1, 8, 0, 6, 4, 0, 2] {
        return None;
    }
    let mac = rest.get(..6)?.try_into().ok()?;
    let address: [u8; 4] = rest.get(6..10)?.try_into().ok()?;
    Some(Heard::Has {
        address: address.into(),
        mac,
    })
}

/// Reads an IPv4 packet.
pub(super) fn read_v4(packet: &[u8]) -> Option<Heard> {
    let length = usize::from(packet.first()? & 0xf) * 4;
    let offset = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?) & IPV4_OFFSET;
    if packet[0] >> 4 != 4 || length < IPV4_LEN || offset != 0 {
        return None;
    }
    let four = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets).into())
    };
    let (from, to) = (four(12)?, four(16)?);
    let payload = packet.get(length..)?;
    match packet[9] {
        PROTO_TCP => read_tcp(from, to, payload),
        PROTO_ICMP if payload.first()? == &ECHO_REPLY => read_echo(from, payload),
        PROTO_ICMP if is_about_tunnel(payload, &UNKNOWN_PROTOCOL, 9)? => {
            let octets: [u8; 4] = payload.get(ICMP_LEN + 16..ICMP_LEN + 20)?.try_into().ok()?;
            Some(Heard::Unknown {
                to: Ipv4Addr::from(octets).into(),
            })
        }
        _ => None,
    }
}

/// Reads an IPv6 packet without extension headers.
pub(super) fn read_v6(packet: &[u8]) -> Option<Heard> {
    if packet.first()? >> 4 != 6 {
        return None;
    }
    let six = |bytes: &[u8], at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets).into())
    };
    let (from, to) = (six(packet, 8)?, six(packet, 24)?);
    let payload = packet.get(IPV6_LEN..)?;
    match packet[6] {
        PROTO_TCP => read_tcp(from, to, payload),
        PROTO_ICMPV6 if payload.first()? == &ECHO_REPLY6 => read_echo(from, payload),
        PROTO_ICMPV6 if is_about_tunnel(payload, &UNKNOWN_HEADER, 6)? => Some(Heard::Unknown {
            to: six(payload, ICMP_LEN + 24)?,
        }),
        _ => None,
    }
}

/// Whether an error of one of these types and codes quotes a packet in a packet; `at` is where the quoted header tells what is in it.
fn is_about_tunnel(icmp: &[u8], errors: &[[u8; 2]], at: usize) -> Option<bool> {
    let error: [u8; 2] = icmp.get(..2)?.try_into().ok()?;
    Some(errors.contains(&error) && TUNNELLED.contains(icmp.get(ICMP_LEN + at)?))
}

fn read_echo(from: IpAddr, icmp: &[u8]) -> Option<Heard> {
    let word = |at: usize| Some(u16::from_be_bytes(icmp.get(at..at + 2)?.try_into().ok()?));
    Some(Heard::Echo {
        from,
        identifier: word(4)?,
        sequence: word(6)?,
    })
}

fn read_tcp(from: IpAddr, to: IpAddr, tcp: &[u8]) -> Option<Heard> {
    let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
    let flags = *tcp.get(13)?;
    if flags & ACK == 0 || flags & (SYN | RST) == 0 {
        return None;
    }
    Some(Heard::Segment {
        from: SocketAddr::new(from, port(0)?),
        to: SocketAddr::new(to, port(2)?),
        acknowledged: u32::from_be_bytes(tcp.get(8..12)?.try_into().ok()?),
        reset: flags & RST != 0,
    })
}

#[cfg(test)]
mod tests {
    use lb_common::headers::TCP_LEN;

    use super::*;

    const FOUR: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)),
    ];
    const SIX: [IpAddr; 2] = [
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
    ];

    fn read(packet: &[u8]) -> Option<Heard> {
        if packet[0] >> 4 == 4 {
            read_v4(packet)
        } else {
            read_v6(packet)
        }
    }

    #[test]
    fn segments_have_checksums_that_fit_and_answers_are_read() {
        for [a, b] in [FOUR, SIX] {
            let (source, target) = (SocketAddr::new(a, 700), SocketAddr::new(b, 80));
            let mut packet = segment(source, target, SYN | ACK, 7);
            let at = packet.len() - TCP_LEN;
            let sum = pseudo_sum(a, b, PROTO_TCP, TCP_LEN) + csum::sum_bytes(&packet[at..]);
            assert_eq!(csum::finish(sum), 0);
            packet[at + 8..at + 12].copy_from_slice(&99u32.to_be_bytes());
            let heard = Heard::Segment {
                from: source,
                to: target,
                acknowledged: 99,
                reset: false,
            };
            assert_eq!(read(&packet), Some(heard));
            // A client's own SYN is no answer.
            assert_eq!(read(&segment(source, target, SYN, 7)), None);
        }
    }

    #[test]
    fn echoes_are_of_the_size_that_was_asked_for() {
        for ([a, b], reply) in [(FOUR, ECHO_REPLY), (SIX, ECHO_REPLY6)] {
            let mut packet = echo(a, b, 3, 9, 1520);
            assert_eq!(packet.len(), 1520);
            assert_eq!(read(&packet), None, "a request is no answer");
            let at = if a.is_ipv4() { IPV4_LEN } else { IPV6_LEN };
            packet[at] = reply;
            assert_eq!(
                read(&packet),
                Some(Heard::Echo {
                    from: a,
                    identifier: 3,
                    sequence: 9
                })
            );
        }
    }

    #[test]
    fn hosts_that_do_not_know_the_tunnel_are_told_by_what_they_quote() {
        let told = |[a, b]: [IpAddr; 2], code: [u8; 2], sent: &[u8]| {
            let protocol = if a.is_ipv4() {
                PROTO_ICMP
            } else {
                PROTO_ICMPV6
            };
            let mut error = header(b, a, protocol, ICMP_LEN + sent.len());
            error.extend(code);
            error.extend([0; 6]);
            error.extend(sent);
            read(&error)
        };
        for (ends, codes) in [(FOUR, UNKNOWN_PROTOCOL), (SIX, UNKNOWN_HEADER)] {
            let [here, there] = ends;
            let at = |address, port| SocketAddr::new(address, port);
            let inner = segment(at(here, 700), at(there, 80), SYN, 1);
            let sent = wrapped(here, there, &inner);
            for code in codes {
                let unknown = Some(Heard::Unknown { to: there });
                assert_eq!(told(ends, code, &sent), unknown);
                assert_eq!(told(ends, code, &inner), None, "that was no tunnel's");
            }
        }
    }

    #[test]
    fn no_truncation_is_read_as_an_answer_or_panics() {
        let mut reply = arp_probe([2; 6], Ipv4Addr::new(10, 0, 0, 9));
        reply[7] = 2;
        reply[14..18].copy_from_slice(&[10, 0, 0, 9]);
        let has = Heard::Has {
            address: Ipv4Addr::new(10, 0, 0, 9),
            mac: [2; 6],
        };
        assert_eq!(read_arp(&reply), Some(has));
        for cut in 0..18 {
            assert_eq!(read_arp(&reply[..cut]), None);
        }
        for [a, b] in [FOUR, SIX] {
            let packet = segment(SocketAddr::new(a, 1), SocketAddr::new(b, 2), SYN | ACK, 7);
            for cut in 1..packet.len() - 6 {
                assert_eq!(read(&packet[..cut]), None, "cut at {cut}");
            }
        }
        assert_eq!(read_v4(&[]), None);
    }
}
