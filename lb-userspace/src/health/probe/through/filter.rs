//! The kernel's filter before the packet socket that hears answers to checks: classic BPF, of a packet from its IP header on.
//!
//! It takes TCP segments from VIPs that are checked, at their services' ports, and tests the addresses first: other packets of this host cost three instructions for each VIP.
//! The ports of this host that the segments go to are not in it, for there are many and they change: who they are for is looked up in a map.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    headers::{IPV4_OFFSET, IPV6_LEN, PROTO_TCP},
    net::IpVersion,
    tcp::{ACK, SYN},
};
use socket2::SockFilter;

/// Instructions at most: what the kernel makes of so many fits into what it keeps for a socket before Linux 6.8, 20,480 bytes
/// (`net.core.optmem_max`).
const MOST_INSTRUCTIONS: usize = 400;
/// The largest packet: the kernel merges segments before they come here.
pub(super) const LARGEST: usize = 1 << 16;

/// Instructions: load a byte, a half word, a word; load four times the low half of a byte into X; load a byte, a half word behind X; jump; jump if equal, if
/// a bit is set; return.
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
const LOAD_WORD: u16 = 0x20;
const LOAD_HEADER_LEN: u16 = 0xb1;
const LOAD_BYTE_BEHIND: u16 = 0x50;
const LOAD_HALF_BEHIND: u16 = 0x48;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Where the kernel has the kind of a packet (`SKF_AD_OFF` and `SKF_AD_PKTTYPE`): not in the packet.
const PACKET_KIND: u32 = (-0x1000_i32 + 4) as u32;
/// Where the flags of a TCP header are.
const FLAGS_AT: u32 = 13;

pub(super) const DROP: SockFilter = SockFilter::new(RETURN, 0, 0, 0);
const TAKE: SockFilter = SockFilter::new(RETURN, 0, 0, LARGEST as u32);

/// The filter for segments from these VIPs and ports, of one version of IP; if there are too many, that of [`any_source`].
pub(super) fn from_sources<'a>(
    version: IpVersion,
    sources: impl IntoIterator<Item = &'a SocketAddr>,
) -> Vec<SockFilter> {
    let mut ports = BTreeMap::<IpAddr, BTreeSet<u16>>::new();
    for source in sources {
        ports.entry(source.ip()).or_default().insert(source.port());
    }
    let mut program = of_tcp(version);
    for (vip, ports) in &ports {
        program.extend(from_vip(version, *vip, ports));
    }
    program.push(DROP);
    if program.len() > MOST_INSTRUCTIONS {
        return any_source(version);
    }
    program
}

/// The filter for segments from anywhere.
pub(super) fn any_source(version: IpVersion) -> Vec<SockFilter> {
    let mut program = of_tcp(version);
    program.extend(no_syn(version));
    program.push(TAKE);
    program
}

/// Goes on with TCP for this host alone, as its own TCP does: not with what goes out, nor with what a link in promiscuous mode overhears.
fn of_tcp(version: IpVersion) -> Vec<SockFilter> {
    let mut program = vec![
        SockFilter::new(LOAD_BYTE, 0, 0, PACKET_KIND),
        SockFilter::new(IF_EQUAL, 1, 0, libc::PACKET_HOST.into()),
        DROP,
    ];
    let protocol_at = match version {
        IpVersion::V4 => 9,
        IpVersion::V6 => 6,
    };
    program.extend([
        SockFilter::new(LOAD_BYTE, 0, 0, protocol_at),
        SockFilter::new(IF_EQUAL, 1, 0, PROTO_TCP.into()),
        DROP,
    ]);
    if version == IpVersion::V4 {
        program.extend([
            SockFilter::new(LOAD_HALF, 0, 0, 6),
            SockFilter::new(IF_ANY_BIT, 0, 1, IPV4_OFFSET.into()),
            DROP,
            // Where the TCP header begins: in X.
            SockFilter::new(LOAD_HEADER_LEN, 0, 0, 0),
        ]);
    }
    program
}

/// Decides about a segment from this VIP, and goes on with others.
fn from_vip(version: IpVersion, vip: IpAddr, ports: &BTreeSet<u16>) -> Vec<SockFilter> {
    let mut program = no_syn(version);
    program.push(match version {
        IpVersion::V4 => SockFilter::new(LOAD_HALF_BEHIND, 0, 0, 0),
        IpVersion::V6 => SockFilter::new(LOAD_HALF, 0, 0, IPV6_LEN as u32),
    });
    for port in ports {
        program.extend([SockFilter::new(IF_EQUAL, 0, 1, (*port).into()), TAKE]);
    }
    program.push(DROP);
    // The last word comes to stand first: in it most addresses differ.
    for (at, word) in words(vip) {
        let rest = program.len() as u32;
        program.splice(
            0..0,
            [
                SockFilter::new(LOAD_WORD, 0, 0, at),
                SockFilter::new(IF_EQUAL, 1, 0, word),
                SockFilter::new(JUMP, 0, 0, rest),
            ],
        );
    }
    program
}

/// Drops a SYN that is no answer to one.
fn no_syn(version: IpVersion) -> Vec<SockFilter> {
    vec![
        match version {
            IpVersion::V4 => SockFilter::new(LOAD_BYTE_BEHIND, 0, 0, FLAGS_AT),
            IpVersion::V6 => SockFilter::new(LOAD_BYTE, 0, 0, IPV6_LEN as u32 + FLAGS_AT),
        },
        SockFilter::new(IF_ANY_BIT, 0, 2, SYN.into()),
        SockFilter::new(IF_ANY_BIT, 1, 0, ACK.into()),
        DROP,
    ]
}

/// The words of a source address, each with its place in the IP header.
fn words(source: IpAddr) -> Vec<(u32, u32)> {
    match source {
        IpAddr::V4(source) => vec![(12, source.to_bits())],
        IpAddr::V6(source) => {
            let bits = source.to_bits();
            (0..4)
                .map(|index| (8 + 4 * index, (bits >> (96 - 32 * index)) as u32))
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use lb_common::tcp::RST;
    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::packet::{self, Tcp};

    const ENDS: [[&str; 2]; 2] = [
        ["198.51.100.1:80", "10.0.0.1:4000"],
        ["[2001:db8::1]:80", "[2001:db8::2]:4000"],
    ];

    fn packet(from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
        let tcp = Tcp {
            flags,
            seq: 7,
            ack: 8,
            window: 9,
            ttl: 64,
            mss: Some(1_400),
            data: b"data",
        };
        packet::segment(from, to, &tcp)
    }

    /// What a filter makes of a packet, by a socket of the kernel's that has it.
    fn takes(program: &[SockFilter], packet: &[u8]) -> bool {
        let (near, far) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
        far.attach_filter(program).unwrap();
        far.set_nonblocking(true).unwrap();
        // Whoever sends is not told that it was dropped.
        near.send(packet).unwrap();
        far.recv(&mut [MaybeUninit::uninit(); 256]).is_ok()
    }

    /// Another address, which differs in one byte.
    fn beside(address: SocketAddr, byte: usize) -> SocketAddr {
        let ip = match address.ip() {
            IpAddr::V4(ip) => {
                let mut octets = ip.octets();
                octets[byte] ^= 1;
                octets.into()
            }
            IpAddr::V6(ip) => {
                let mut octets = ip.octets();
                octets[byte] ^= 1;
                octets.into()
            }
        };
        SocketAddr::new(ip, address.port())
    }

    #[test]
    fn segments_from_vips_and_their_ports_are_taken_and_no_others() {
        for ends in ENDS {
            let [from, to] = ends.map(|end| end.parse::<SocketAddr>().unwrap());
            let version = IpVersion::of(from.ip());
            let bytes = if from.is_ipv4() { 4 } else { 16 };
            let answer = packet(from, to, SYN | ACK);
            let port = |port| SocketAddr::new(from.ip(), port);
            let other = beside(from, bytes - 1);
            for (sources, taken) in [
                (vec![], false),
                (vec![from], true),
                (vec![port(79), port(81)], false),
                (vec![port(79), from, port(81)], true),
                (vec![other], false),
                (vec![other, from], true),
                // A port of one VIP is none of another's.
                (vec![other, port(81)], false),
            ] {
                let program = from_sources(version, &sources);
                assert_eq!(takes(&program, &answer), taken, "{sources:?}");
            }
            let program = from_sources(version, [&from]);
            for byte in 0..bytes {
                let stranger = packet(beside(from, byte), to, SYN | ACK);
                assert!(!takes(&program, &stranger), "byte {byte}");
            }
        }
    }

    #[test]
    fn neither_a_syn_alone_nor_what_is_not_tcp_is_taken_whatever_the_sources() {
        for ends in ENDS {
            let [from, to] = ends.map(|end| end.parse::<SocketAddr>().unwrap());
            let version = IpVersion::of(from.ip());
            for program in [from_sources(version, [&from]), any_source(version)] {
                for (flags, taken) in [
                    (SYN, false),
                    (SYN | ACK, true),
                    (ACK, true),
                    (RST, true),
                    (RST | ACK, true),
                ] {
                    assert_eq!(takes(&program, &packet(from, to, flags)), taken, "{flags}");
                }
                let mut other = packet(from, to, ACK);
                other[if from.is_ipv4() { 9 } else { 6 }] = 17;
                assert!(!takes(&program, &other));
            }
        }
    }

    #[test]
    fn the_program_is_bounded_however_many_vips_there_are() {
        for ends in ENDS {
            let [from, to] = ends.map(|end| end.parse::<SocketAddr>().unwrap());
            let version = IpVersion::of(from.ip());
            let answer = packet(from, to, ACK);
            for (number, taken) in [(10, false), (1_000, true)] {
                let others: Vec<_> = (0..number)
                    .map(|index| SocketAddr::new(beside(from, 0).ip(), 1_000 + index))
                    .collect();
                let program = from_sources(version, &others);
                assert!(program.len() <= MOST_INSTRUCTIONS);
                assert_eq!(takes(&program, &answer), taken, "{number} sources");
            }
        }
    }
}
