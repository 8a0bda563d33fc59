//! The frames of a flood, without what changes from one to the next.

use std::net::{IpAddr, SocketAddr};

use lb_common::flood::{LEN, Patch, Template, WORDS};

use super::{Kind, Plan};
use crate::frame::{Build, flags};

const ETHERNET: usize = 14;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const NEXT_FRAGMENT: u8 = 44;
const PROTOCOL_ICMPV6: u8 = 58;
/// An MTU that an error speaks of.
const MTU: u16 = 1_400;
/// Bytes of a TCP header that an error quotes (RFC 792), and that a later fragment has here.
const QUOTED: usize = 8;

/// What is behind the IP header: its protocol, its bytes, and what of them changes.
struct Inside {
    protocol: u8,
    bytes: Vec<u8>,
    patch: Patch,
}

/// A flood's frames, in turn.
pub(super) fn templates(plan: &Plan) -> [Template; 2] {
    let [first, second] = match plan.kind {
        Kind::Syn => [tcp(plan, flags::SYN), tcp(plan, flags::SYN)],
        Kind::Ack => [tcp(plan, flags::ACK), tcp(plan, flags::ACK)],
        Kind::Handshake => [tcp(plan, flags::SYN), tcp(plan, flags::ACK)],
        Kind::Fragment => [fragment(plan), fragment(plan)],
        Kind::Icmp => [echo(plan), error(plan)],
    };
    [template(plan, first), template(plan, second)]
}

fn tcp(plan: &Plan, bits: u8) -> Inside {
    let frame = segment(plan, bits);
    Inside {
        protocol: PROTOCOL_TCP,
        bytes: frame[ETHERNET + ip_length(plan.target.ip())..].to_vec(),
        patch: Patch::Tcp,
    }
}

fn echo(plan: &Plan) -> Inside {
    let (protocol, request) = match plan.target.ip() {
        IpAddr::V4(_) => (PROTOCOL_ICMP, 8),
        IpAddr::V6(_) => (PROTOCOL_ICMPV6, 128),
    };
    Inside {
        protocol,
        bytes: vec![request, 0, 0, 0, 0, 0, 0, 0],
        patch: Patch::Echo,
    }
}

/// What a router says of a segment from the VIP that was too big for it.
fn error(plan: &Plan) -> Inside {
    let (protocol, kind, code) = match plan.target.ip() {
        IpAddr::V4(_) => (PROTOCOL_ICMP, 3, 4),
        IpAddr::V6(_) => (PROTOCOL_ICMPV6, 2, 0),
    };
    let answer = Build {
        mac_destination: [0; 6],
        mac_source: [0; 6],
        source: plan.target,
        destination: SocketAddr::new(plan.prefix.0, 0),
        seq: 1,
        ack: 1,
        flags: flags::ACK,
    }
    .frame(&[]);
    let mut bytes = vec![kind, code, 0, 0, 0, 0];
    bytes.extend(MTU.to_be_bytes());
    bytes.extend(&answer[ETHERNET..][..ip_length(plan.target.ip()) + QUOTED]);
    Inside {
        protocol,
        bytes,
        patch: Patch::Error,
    }
}

/// A fragment but the first.
fn fragment(plan: &Plan) -> Inside {
    let data = vec![0x5a; QUOTED];
    match plan.target.ip() {
        IpAddr::V4(_) => Inside {
            protocol: PROTOCOL_TCP,
            bytes: data,
            patch: Patch::None,
        },
        IpAddr::V6(_) => {
            // RFC 8200, section 4.5: an offset of 185 times 8 bytes, and the last of its packet.
            let mut bytes = vec![PROTOCOL_TCP, 0, 0x05, 0xc8, 0, 0, 0, 1];
            bytes.extend(data);
            Inside {
                protocol: NEXT_FRAGMENT,
                bytes,
                patch: Patch::None,
            }
        }
    }
}

/// A segment whose Ethernet and IP headers others' are made after.
fn segment(plan: &Plan, bits: u8) -> Vec<u8> {
    Build {
        mac_destination: plan.macs.1,
        mac_source: plan.macs.0,
        source: SocketAddr::new(plan.prefix.0, 0),
        destination: plan.target,
        seq: 0,
        ack: 1,
        flags: bits,
    }
    .frame(&[])
}

const fn ip_length(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 20,
        IpAddr::V6(_) => 40,
    }
}

fn template(plan: &Plan, mut inside: Inside) -> Template {
    let length = u16::try_from(inside.bytes.len()).expect("a short packet");
    let mut frame = segment(plan, 0);
    frame.truncate(ETHERNET + ip_length(plan.target.ip()));
    let (header, addresses, source) = match plan.target.ip() {
        IpAddr::V4(_) => {
            let total = length + 20;
            frame[16..18].copy_from_slice(&total.to_be_bytes());
            if plan.kind == Kind::Fragment {
                frame[20..22].copy_from_slice(&185_u16.to_be_bytes());
            }
            frame[23] = inside.protocol;
            frame[24..26].fill(0);
            (14..34, 26..34, 26..30)
        }
        IpAddr::V6(_) => {
            frame[18..20].copy_from_slice(&length.to_be_bytes());
            frame[20] = inside.protocol;
            (14..14, 22..54, 28..32)
        }
    };
    frame[source].fill(0);
    let (checksum, covers_addresses) = match inside.patch {
        Patch::Tcp => (Some(16), true),
        Patch::Echo | Patch::Error => (Some(2), plan.target.is_ipv6()),
        Patch::None => (None, false),
    };
    if let Some(at) = checksum {
        inside.bytes[at..at + 2].fill(0);
    }
    let mut covered = inside.bytes.clone();
    if covers_addresses {
        // The pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1), whose zeros add nothing.
        covered.extend(&frame[addresses]);
        covered.extend([0, inside.protocol]);
        covered.extend(length.to_be_bytes());
    }
    let ip_sum = sum(&frame[header]);
    frame.extend(&inside.bytes);
    Template {
        words: words(&frame),
        ip_sum,
        sum: sum(&covered),
        patch: inside.patch as u32,
        covers_source: u32::from(covers_addresses),
    }
}

/// The sum of 16-bit words (RFC 1071), which no frame is long enough to make overflow.
fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum()
}

/// A frame with zeros behind it.
fn words(frame: &[u8]) -> [u64; WORDS] {
    let mut padded = [0; LEN];
    padded[..frame.len()].copy_from_slice(frame);
    std::array::from_fn(|word| {
        let bytes = &padded[8 * word..8 * word + 8];
        u64::from_ne_bytes(bytes.try_into().expect("eight bytes"))
    })
}
