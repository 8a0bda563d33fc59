//! How packets leave: for a backend, by its service's mode, and for a client.

use std::net::IpAddr;

use lb_common::tcp::SYN;

use super::{Breach, Observed, Promise, breach, checksums, ensure};
use crate::{
    fuzz::packets::{
        reader::{self, Carried, Ip, Seen, Tcp},
        scene::{self, Back, End, Scene, Way},
    },
    packet::{
        kernel::action,
        nat::{OWN_MAC, ROUTER_MAC, TAGS},
    },
};

/// Whether a packet leaves for a backend by the right interface and with the right addresses of Ethernet, and nothing between these and its IP header.
pub(super) fn leaves_by(scene: &Scene, backend: u32, came: &Observed) -> Result<(), Breach> {
    let elsewhere = scene.node(backend).is_some_and(|node| node.elsewhere);
    let due = if elsewhere {
        action::REDIRECT
    } else {
        action::TX
    };
    ensure(came.action == due, Promise::RightWay, || {
        format!("action {} to backend {backend}", came.action)
    })?;
    ensure(
        came.output.get(..12) == Some(&scene::macs_to(backend)),
        Promise::RightWay,
        || format!("the MAC addresses are not those to backend {backend}"),
    )?;
    let tags = reader::read(&came.output).tags;
    ensure(tags.is_empty(), Promise::RightWay, || {
        format!("with tags {tags:?}")
    })
}

/// Whether a packet is left to the host, with the head that it came with.
pub(super) fn stays_here(seen: &Seen<'_>, ip: &Ip<'_>, came: &Observed) -> Result<(), Breach> {
    ensure(came.action == action::PASS, Promise::RightWay, || {
        format!("action {} for the host's stack", came.action)
    })?;
    ensure(
        came.output.get(..ip.at) == seen.frame.get(..ip.at),
        Promise::RightWay,
        || "its head is another".into(),
    )
}

/// Whether a packet leaves for a client as its route says. Gives the offset of its IP header.
pub(super) fn leaves_to_client(
    seen: &Seen<'_>,
    ip: &Ip<'_>,
    came: &Observed,
    client: IpAddr,
) -> Result<usize, Breach> {
    let tags: &[(u16, u16)] = match scene::way_back(client).0 {
        Back::Unheard => {
            stays_here(seen, ip, came)?;
            return Ok(ip.at);
        }
        Back::Nowhere => {
            return breach(
                Promise::RightWay,
                format!("sent to {client}, where no way leads"),
            );
        }
        Back::Routed => &[],
        Back::Tagged => &TAGS,
    };
    let due = if tags.is_empty() {
        action::REDIRECT
    } else {
        action::TX
    };
    ensure(came.action == due, Promise::RightWay, || {
        format!("action {} to client {client}", came.action)
    })?;
    ensure(
        came.output.get(..12) == Some(&[ROUTER_MAC, OWN_MAC].concat()[..]),
        Promise::RightWay,
        || format!("the MAC addresses are not those to client {client}"),
    )?;
    // The priority is kept of the tag at the same place.
    let expected: Vec<(u16, u16)> = tags
        .iter()
        .enumerate()
        .map(|(place, (protocol, vlan))| {
            let priority = seen.tags.get(place).map_or(0, |(_, tag)| tag & 0xf000);
            (*protocol, priority | vlan)
        })
        .collect();
    let left = reader::read(&came.output);
    ensure(left.tags == expected, Promise::RightWay, || {
        format!("with tags {:?} to client {client}", left.tags)
    })?;
    match left.ip {
        Some(left) => Ok(left.at),
        None => breach(Promise::RightWay, "what left is no packet of IP"),
    }
}

/// Both ends of a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// Where it comes from.
    pub(super) source: End,
    /// Where it goes.
    pub(super) destination: End,
}

/// Whether a segment leaves for a backend by whose mode its ends are translated. Gives what the backend takes for the client.
pub(super) fn translated_for(
    scene: &Scene,
    seen: &Seen<'_>,
    ip: &Ip<'_>,
    tcp: &Tcp,
    backend: u32,
    came: &Observed,
) -> Result<End, Breach> {
    let way = scene::way_to(backend);
    let Some(endpoint) = scene::endpoint_of(backend) else {
        return breach(
            Promise::RightWay,
            format!("translated for backend {backend}"),
        );
    };
    let client = (ip.source, tcp.source);
    let (at, most) = if way == Way::Local {
        stays_here(seen, ip, came)?;
        (ip.at, None)
    } else {
        leaves_by(scene, backend, came)?;
        let most = match scene::way_back(ip.source) {
            (Back::Routed | Back::Tagged, mtu) => Some(mtu),
            (Back::Unheard | Back::Nowhere, _) => None,
        };
        (14, most)
    };
    let mut ends = Ends {
        source: client,
        destination: scene::end_of(endpoint),
    };
    if way == Way::Nat {
        ends.source = ends_of(&came.output)?.source;
        ensure(scene::is_snat(ends.source), Promise::RightWay, || {
            format!("as from {:?}, which is no SNAT address", ends.source)
        })?;
    }
    let after = came.output.get(at..).unwrap_or_default();
    is_translated(ip, tcp, after, &ends, way != Way::Local, most)?;
    Ok(ends.source)
}

/// Both ends of a frame's segment.
pub(super) fn ends_of(frame: &[u8]) -> Result<Ends, Breach> {
    match reader::read(frame).ip {
        Some(Ip {
            source,
            destination,
            carried: Carried::Tcp(tcp),
            ..
        }) => Ok(Ends {
            source: (source, tcp.source),
            destination: (destination, tcp.destination),
        }),
        _ => breach(Promise::RightWay, "what left is no segment"),
    }
}

/// Whether a segment is another with these ends, and one hop older if it `takes_a_hop`; and, if it is a SYN, whether it tells of no longer segments than
/// fit a way on which packets of `most` bytes do.
pub(super) fn is_translated(
    ip: &Ip<'_>,
    tcp: &Tcp,
    after: &[u8],
    ends: &Ends,
    takes_a_hop: bool,
    most: Option<usize>,
) -> Result<(), Breach> {
    // What is behind the packet in its frame is nobody's.
    let length = ip.length.min(ip.bytes.len());
    let (Some(before), Some(after)) = (ip.bytes.get(..length), after.get(..length)) else {
        return breach(Promise::RightWay, "the packet was cut");
    };
    let mut expected = before.to_vec();
    put_ends(&mut expected, 0, ends);
    put(&mut expected, tcp.at, &ends.source.1.to_be_bytes());
    put(&mut expected, tcp.at + 2, &ends.destination.1.to_be_bytes());
    if takes_a_hop {
        take_a_hop(&mut expected);
    }
    if let Some(most) = most.filter(|_| tcp.flags & SYN != 0) {
        let headers = if ip.is_ipv4() { 40 } else { 60 };
        clamp(&mut expected, after, tcp, (most - headers) as u16);
    }
    let is_sum = |at: &usize| {
        (ip.is_ipv4() && (10..12).contains(at)) || (tcp.at + 16..tcp.at + 18).contains(at)
    };
    is_expected(&expected, after, is_sum)?;
    checksums::stay_right(ip, after, tcp.at, 6)
}

/// Whether two packets differ in nothing but their checksums.
pub(super) fn is_expected(
    expected: &[u8],
    after: &[u8],
    is_sum: impl Fn(&usize) -> bool,
) -> Result<(), Breach> {
    let differs: Vec<String> = (0..expected.len())
        .filter(|at| !is_sum(at) && expected.get(*at) != after.get(*at))
        .map(|at| format!("{at}: {:?} for {:?}", after.get(at), expected.get(at)))
        .collect();
    ensure(differs.is_empty(), Promise::RightWay, || {
        format!("bytes of the packet are others: {differs:?}")
    })
}

/// Takes a hop off a packet.
pub(super) fn take_a_hop(packet: &mut [u8]) {
    let ttl = match packet.first() {
        Some(first) if first >> 4 == 4 => 8,
        _ => 7,
    };
    if let Some(ttl) = packet.get_mut(ttl) {
        *ttl = ttl.wrapping_sub(1);
    }
}

/// Writes both addresses into an IP header at an offset.
pub(super) fn put_ends(packet: &mut [u8], at: usize, ends: &Ends) {
    let (source, destination) = match ends.source.0 {
        IpAddr::V4(_) => (12, 16),
        IpAddr::V6(_) => (8, 24),
    };
    put(packet, at + source, &checksums::octets(ends.source.0));
    put(
        packet,
        at + destination,
        &checksums::octets(ends.destination.0),
    );
}

/// Writes bytes at an offset, if they are there.
pub(super) fn put(packet: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = packet.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Has the maximum segment size that a SYN tells (RFC 9293, section 3.2) be at most so much. It must be made so if it is the first option; what else may
/// be one is made so where that has been done.
fn clamp(expected: &mut [u8], after: &[u8], tcp: &Tcp, most: u16) {
    let first = tcp.at + 20;
    let own = expected
        .get(tcp.at + 12)
        .map_or(0, |byte| usize::from(byte >> 4) * 4);
    for at in first..(tcp.at + own).saturating_sub(3).max(first) {
        let Some(&[2, 4, high, low]) = expected.get(at..at + 4) else {
            continue;
        };
        let is_made = after.get(at + 2..at + 4) == Some(&most.to_be_bytes());
        if u16::from_be_bytes([high, low]) > most && (at == first || is_made) {
            put(expected, at + 2, &most.to_be_bytes());
        }
    }
}

/// Whether a packet leaves for a backend in whose mode it is not translated: one hop older, and else the same, by the right way. Gives where it is
/// encapsulated as from, if it is.
pub(super) fn leaves_for(
    scene: &Scene,
    seen: &Seen<'_>,
    ip: &Ip<'_>,
    backend: u32,
    came: &Observed,
) -> Result<Option<IpAddr>, Breach> {
    leaves_by(scene, backend, came)?;
    let left = reader::read(&came.output);
    let Some(outer) = left.ip else {
        return breach(Promise::RightWay, "what left is no packet of IP");
    };
    let (inner_at, source) = match scene::outer_of(backend) {
        None => (14, None),
        Some(due) => {
            let length = due.length;
            ensure(
                due.may_be_from(outer.source) && outer.destination == due.destination,
                Promise::RightWay,
                || format!("tunnelled from {} to {}", outer.source, outer.destination),
            )?;
            ensure(outer.has_right_header_sum(), Promise::RightSums, || {
                "the outer header's".into()
            })?;
            ensure(
                outer.carried == Carried::Tunnel(length) && outer.length == ip.length + length,
                Promise::RightWay,
                || format!("{:?} of {} bytes is no tunnel", outer.carried, outer.length),
            )?;
            (14 + length, Some(outer.source))
        }
    };
    let came_with = seen.frame.get(ip.at..).unwrap_or_default();
    let leaves_with = came.output.get(inner_at..).unwrap_or_default();
    is_one_hop_older(ip, came_with, leaves_with)?;
    Ok(source)
}

/// Whether a packet is another, one hop older.
fn is_one_hop_older(ip: &Ip<'_>, before: &[u8], after: &[u8]) -> Result<(), Breach> {
    let (ttl, sum) = if ip.is_ipv4() { (8, 10..12) } else { (7, 0..0) };
    // What is behind the packet in its frame is nobody's.
    let length = ip.length.min(before.len());
    let (Some(before), Some(after)) = (before.get(..length), after.get(..length)) else {
        return breach(Promise::RightWay, "the packet was cut");
    };
    let differs: Vec<usize> = (0..length)
        .filter(|at| *at != ttl && !sum.contains(at) && before[*at] != after[*at])
        .collect();
    ensure(differs.is_empty(), Promise::RightWay, || {
        format!("bytes {differs:?} of the packet were changed")
    })?;
    ensure(
        before.get(ttl).map(|ttl| ttl.wrapping_sub(1)) == after.get(ttl).copied(),
        Promise::RightWay,
        || format!("hops {:?} became {:?}", before.get(ttl), after.get(ttl)),
    )?;
    let ethertype = if ip.is_ipv4() { 0x0800 } else { 0x86dd };
    let is_right = |bytes| {
        reader::read_ip(bytes, 0, ethertype).is_some_and(|packet| packet.has_right_header_sum())
    };
    ensure(
        !is_right(before) || is_right(after),
        Promise::RightSums,
        || "the header's".into(),
    )
}
