//! Hears what comes for ports of checks at the link: one packet socket for all of a version of IP.
//!
//! A filter in the kernel passes segments to these ports alone, so that other packets of this host cost a comparison for each port, and no more. (What
//! the XDP program forwards never comes this far.) Checksums are not looked at: the kernel has not finished all of them there.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use lb_common::{
    headers::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LEN, IPV4_OFFSET, IPV6_LEN, PROTO_TCP, TCP_LEN,
    },
    net::IpVersion,
};
use socket2::{Domain, SockFilter, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};

use super::{inbox::Inbox, lock, port::drop_all, tcp::Segment};
use crate::packet::link_address;

/// Ports that are compared one by one; a filter for more would be longer than the kernel keeps (`net.core.optmem_max`).
const MOST_PORTS: usize = 1_000;
/// The largest packet: the kernel merges segments before they come here.
const LARGEST: usize = 1 << 16;

/// Instructions of classic BPF: load a byte, load a half word, load four times the low half of a byte into X, load a half word behind X, jump if equal, if greater
/// or equal, if greater, if a bit is set, return.
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF: u16 = 0x28;
const LOAD_HEADER_LEN: u16 = 0xb1;
const LOAD_HALF_BEHIND: u16 = 0x48;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const IF_GREATER: u16 = 0x25;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
const DROP: SockFilter = SockFilter::new(RETURN, 0, 0, 0);
const TAKE: SockFilter = SockFilter::new(RETURN, 0, 0, LARGEST as u32);

/// By port and address.
type Listeners = BTreeMap<(u16, IpAddr), Arc<Inbox>>;

/// Hears packets of one version of IP.
#[derive(Debug)]
pub(super) struct Ear {
    version: IpVersion,
    socket: Arc<AsyncFd<Socket>>,
    listeners: Arc<Mutex<Listeners>>,
    reader: JoinHandle<()>,
}

impl Ear {
    /// Opens it, deaf.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn open(version: IpVersion) -> io::Result<Self> {
        let ethertype = match version {
            IpVersion::V4 => ETHERTYPE_IPV4,
            IpVersion::V6 => ETHERTYPE_IPV6,
        };
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        socket.set_nonblocking(true)?;
        // Before it is bound to a protocol, so that it never hears what it is not to.
        drop_all(&socket)?;
        socket.bind(&link_address(0, ethertype, [0; 6]))?;
        // SAFETY: the socket owns its file descriptor, always names the same one, and is moved in: it stays open as long as this.
        let socket = Arc::new(unsafe { AsyncFd::register(socket) }?);
        let listeners = Arc::<Mutex<Listeners>>::default();
        let reader = tokio::spawn(read(socket.clone(), listeners.clone()));
        Ok(Self {
            version,
            socket,
            listeners,
            reader,
        })
    }

    /// Hears what comes from a VIP for a port, until it is forgotten.
    ///
    /// # Errors
    /// When the kernel refuses the filter, or somebody has the port.
    pub(super) fn listen(&self, own: SocketAddr, vip: SocketAddr) -> io::Result<Arc<Inbox>> {
        let inbox = Arc::new(Inbox::new(vip));
        let mut listeners = lock(&self.listeners);
        match listeners.entry(key(own)) {
            Entry::Occupied(_) => return Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
            Entry::Vacant(place) => place.insert(inbox.clone()),
        };
        let filtered = self.filter(&listeners);
        if filtered.is_err() {
            listeners.remove(&key(own));
        }
        filtered.map(|()| inbox)
    }

    /// Hears no more of it.
    pub(super) fn forget(&self, own: SocketAddr) {
        let mut listeners = lock(&self.listeners);
        listeners.remove(&key(own));
        if let Err(error) = self.filter(&listeners) {
            tracing::debug!(%error, "packets for a check that is over are still heard");
        }
    }

    fn filter(&self, listeners: &Listeners) -> io::Result<()> {
        let mut ports: Vec<u16> = listeners.keys().map(|(port, _)| *port).collect();
        ports.dedup();
        self.socket
            .get_ref()
            .attach_filter(&filter(self.version, &ports))
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn key(own: SocketAddr) -> (u16, IpAddr) {
    (own.port(), own.ip())
}

/// The filter that takes TCP segments to some ports, sorted; of a packet from its IP header on.
fn filter(version: IpVersion, ports: &[u16]) -> Vec<SockFilter> {
    let mut program = match version {
        IpVersion::V4 => vec![
            SockFilter::new(LOAD_BYTE, 0, 0, 9),
            SockFilter::new(IF_EQUAL, 1, 0, PROTO_TCP.into()),
            DROP,
            SockFilter::new(LOAD_HALF, 0, 0, 6),
            SockFilter::new(IF_ANY_BIT, 0, 1, IPV4_OFFSET.into()),
            DROP,
            SockFilter::new(LOAD_HEADER_LEN, 0, 0, 0),
            SockFilter::new(LOAD_HALF_BEHIND, 0, 0, 2),
        ],
        IpVersion::V6 => vec![
            SockFilter::new(LOAD_BYTE, 0, 0, 6),
            SockFilter::new(IF_EQUAL, 1, 0, PROTO_TCP.into()),
            DROP,
            SockFilter::new(LOAD_HALF, 0, 0, IPV6_LEN as u32 + 2),
        ],
    };
    match ports {
        [first, .., last] if ports.len() > MOST_PORTS => program.extend([
            SockFilter::new(IF_AT_LEAST, 1, 0, (*first).into()),
            DROP,
            SockFilter::new(IF_GREATER, 1, 0, (*last).into()),
            TAKE,
        ]),
        _ => program.extend(
            ports
                .iter()
                .flat_map(|port| [SockFilter::new(IF_EQUAL, 0, 1, (*port).into()), TAKE]),
        ),
    }
    program.push(DROP);
    program
}

/// Gives what comes to whom it is for.
async fn read(socket: Arc<AsyncFd<Socket>>, listeners: Arc<Mutex<Listeners>>) {
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); LARGEST];
    loop {
        let received = socket
            .async_io(Interest::READABLE, |socket| socket.recv(&mut buffer))
            .await;
        let length = match received {
            Ok(length) => length.min(buffer.len()),
            // An interface that went down: others are still heard.
            Err(_) => continue,
        };
        // SAFETY: the kernel has written so many bytes.
        let packet = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
        let Some((from, to, segment)) = parse(packet) else {
            continue;
        };
        if let Some(inbox) = lock(&listeners).get(&key(to)) {
            inbox.put(from, segment);
        }
    }
}

/// A TCP segment, with whom it is from and to.
fn parse(packet: &[u8]) -> Option<(SocketAddr, SocketAddr, Segment)> {
    let (ends, tcp) = match packet.first()? >> 4 {
        4 => parse_v4(packet)?,
        6 => parse_v6(packet)?,
        _ => return None,
    };
    let half = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    let options = tcp.get(TCP_LEN..header)?;
    let segment = Segment {
        seq: word(4)?,
        ack: word(8)?,
        flags: tcp[13],
        window: half(14)?,
        mss: mss(options),
        data: tcp.get(header..)?.to_vec(),
    };
    let [from, to] = ends;
    Some((
        SocketAddr::new(from, half(0)?),
        SocketAddr::new(to, half(2)?),
        segment,
    ))
}

/// Both addresses of an IPv4 packet of TCP, and what is in it.
fn parse_v4(packet: &[u8]) -> Option<([IpAddr; 2], &[u8])> {
    let half = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets).into())
    };
    let header = usize::from(packet.first()? & 0xf) * 4;
    let length = usize::from(half(2)?);
    if header < IPV4_LEN || half(6)? & IPV4_OFFSET != 0 || *packet.get(9)? != PROTO_TCP {
        return None;
    }
    Some(([address(12)?, address(16)?], packet.get(header..length)?))
}

/// The same of an IPv6 packet. What has extension headers is none.
fn parse_v6(packet: &[u8]) -> Option<([IpAddr; 2], &[u8])> {
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets).into())
    };
    let length: [u8; 2] = packet.get(4..6)?.try_into().ok()?;
    let end = IPV6_LEN + usize::from(u16::from_be_bytes(length));
    if *packet.get(6)? != PROTO_TCP {
        return None;
    }
    Some(([address(8)?, address(24)?], packet.get(IPV6_LEN..end)?))
}

/// The largest segment that the options of a TCP header tell (RFC 9293, section 3.2).
fn mss(mut options: &[u8]) -> Option<u16> {
    loop {
        match options {
            [2, 4, high, low, ..] => return Some(u16::from_be_bytes([*high, *low])),
            [1, rest @ ..] => options = rest,
            [0, ..] | [] => return None,
            [_, length, ..] if *length >= 2 => options = options.get(usize::from(*length)..)?,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{self, Tcp};

    fn packet(from: &str, to: &str) -> Vec<u8> {
        let tcp = Tcp {
            flags: 0x12,
            seq: 7,
            ack: 8,
            window: 9,
            ttl: 64,
            mss: Some(1_400),
            data: b"data",
        };
        packet::segment(from.parse().unwrap(), to.parse().unwrap(), &tcp)
    }

    const ENDS: [[&str; 2]; 2] = [
        ["198.51.100.1:80", "10.0.0.1:4000"],
        ["[2001:db8::1]:80", "[2001:db8::2]:4000"],
    ];

    #[test]
    fn a_segment_is_read_as_it_was_written_and_padding_is_not_data() {
        for [from, to] in ENDS {
            let mut bytes = packet(from, to);
            let whole = bytes.len();
            bytes.extend([0; 6]);
            let (was_from, was_to, segment) = parse(&bytes).unwrap();
            assert_eq!(
                (was_from.to_string(), was_to.to_string()),
                (from.into(), to.into())
            );
            let expected = Segment {
                seq: 7,
                ack: 8,
                flags: 0x12,
                window: 9,
                mss: Some(1_400),
                data: b"data".to_vec(),
            };
            assert_eq!(segment, expected);
            for length in 0..whole {
                assert!(parse(&bytes[..length]).is_none(), "{length}");
            }
        }
    }

    #[test]
    fn options_are_skipped_and_broken_ones_end_the_search() {
        assert_eq!(mss(&[1, 1, 3, 3, 7, 2, 4, 5, 180]), Some(1_460));
        for broken in [
            &[][..],
            &[0, 2, 4, 5, 180],
            &[3, 0, 2, 4],
            &[8, 10, 1],
            &[2, 4, 5],
        ] {
            assert_eq!(mss(broken), None, "{broken:?}");
        }
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

    #[test]
    fn a_filter_takes_segments_to_its_ports_alone() {
        for [from, to] in ENDS {
            let bytes = packet(from, to);
            let version = IpVersion::of(to.parse::<SocketAddr>().unwrap().ip());
            let many: Vec<u16> = (3_000..6_000).step_by(2).collect();
            for (ports, taken) in [
                (&[][..], false),
                (&[80, 3_999, 4_001][..], false),
                (&[80, 4_000][..], true),
                (&many[..], true),
                (&many[600..], false),
            ] {
                let program = filter(version, ports);
                assert_eq!(
                    takes(&program, &bytes),
                    taken,
                    "{to} of {} ports",
                    ports.len()
                );
            }
            let mut other = bytes.clone();
            other[if version == IpVersion::V4 { 9 } else { 6 }] = 17;
            assert!(!takes(&filter(version, &[4_000]), &other));
        }
    }
}
