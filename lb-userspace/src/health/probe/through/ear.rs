//! Hears what comes for ports of checks at the link: one packet socket for all of a version of IP.
//!
//! A filter in the kernel ([`super::filter`]) lets segments from VIPs that are checked through, and what they are for is looked up here. (What the XDP program forwards
//! never comes this far.) Checksums are not looked at: the kernel has not finished all of them there.

use std::{
    collections::BTreeMap,
    io,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use lb_common::{
    headers::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_LEN, IPV4_OFFSET, IPV6_LEN, PROTO_TCP, TCP_LEN,
    },
    net::IpVersion,
};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};

use super::{
    filter::{LARGEST, any_source, from_sources},
    inbox::Inbox,
    lock,
    port::drop_all,
    tcp::Segment,
};
use crate::packet::link_address;

/// Bytes that the kernel keeps of what has come, with what it needs to keep them: so that a burst of one backend leaves room for the answers of others.
const RECEIVE_BUFFER: usize = 4 << 20;
/// `struct tpacket_stats`: packets, and those that were dropped.
const STATISTICS_WORDS: usize = 2;
/// How often it is looked, at most, whether that was too little.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Who hears what.
#[derive(Debug, Default)]
struct Listeners {
    /// By port and address of this host.
    inboxes: BTreeMap<(u16, IpAddr), Arc<Inbox>>,
    /// The VIPs and ports that they hear, and how many hear each.
    sources: BTreeMap<SocketAddr, usize>,
}

impl Listeners {
    /// Whether it is the first that hears its VIP.
    fn add(&mut self, own: SocketAddr, inbox: Arc<Inbox>) -> bool {
        let hearers = self.sources.entry(inbox.vip()).or_default();
        *hearers += 1;
        let is_first = *hearers == 1;
        self.inboxes.insert(key(own), inbox);
        is_first
    }

    /// Whether it was the last that heard its VIP.
    fn remove(&mut self, own: SocketAddr) -> bool {
        let Some(inbox) = self.inboxes.remove(&key(own)) else {
            return false;
        };
        let Some(hearers) = self.sources.get_mut(&inbox.vip()) else {
            return false;
        };
        *hearers -= 1;
        let was_last = *hearers == 0;
        if was_last {
            self.sources.remove(&inbox.vip());
        }
        was_last
    }
}

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
        // More than the system's limit takes CAP_NET_ADMIN; without it there is as much as that limit allows.
        if setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).is_err() {
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
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
        let mut listeners = lock(&self.listeners);
        if listeners.inboxes.contains_key(&key(own)) {
            return Err(io::Error::from_raw_os_error(libc::EADDRINUSE));
        }
        let inbox = Arc::new(Inbox::new(vip));
        if listeners.add(own, inbox.clone())
            && let Err(error) = self.filter(&listeners)
        {
            listeners.remove(own);
            return Err(error);
        }
        Ok(inbox)
    }

    /// Hears no more of it.
    pub(super) fn forget(&self, own: SocketAddr) {
        let mut listeners = lock(&self.listeners);
        if listeners.remove(own)
            && let Err(error) = self.filter(&listeners)
        {
            tracing::debug!(%error, "packets from a VIP that is no longer checked are still heard");
        }
    }

    /// Has the kernel let through what is heard, and little else.
    fn filter(&self, listeners: &Listeners) -> io::Result<()> {
        let socket = self.socket.get_ref();
        let program = from_sources(self.version, listeners.sources.keys());
        match socket.attach_filter(&program) {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                // The old one and the new one were too much together: a small one between them makes room, and stays if there is none for the new one alone.
                socket.attach_filter(&any_source(self.version))?;
                if let Err(error) = socket.attach_filter(&program) {
                    tracing::debug!(%error, "the kernel keeps no filter by VIPs: the daemon looks at every TCP packet that this host gets");
                }
                Ok(())
            }
            attached => attached,
        }
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

/// Gives what comes to whom it is for.
async fn read(socket: Arc<AsyncFd<Socket>>, listeners: Arc<Mutex<Listeners>>) {
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); LARGEST];
    let mut looked = Instant::now();
    loop {
        let received = socket
            .async_io(Interest::READABLE, |socket| socket.recv(&mut buffer))
            .await;
        let length = match received {
            Ok(length) => length.min(buffer.len()),
            // An interface that went down: others are still heard.
            Err(_) => continue,
        };
        if looked.elapsed() >= LOOK_INTERVAL {
            looked = Instant::now();
            warn_of_drops(socket.get_ref());
        }
        // SAFETY: the kernel has written so many bytes.
        let packet = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), length) };
        let Some((from, to, segment)) = parse(packet) else {
            continue;
        };
        if let Some(inbox) = lock(&listeners).inboxes.get(&key(to)) {
            inbox.put(from, segment);
        }
    }
}

/// Packets that are lost are sent again; but a check may be over before.
fn warn_of_drops(socket: &Socket) {
    match drops(socket) {
        Ok(0) => {}
        Ok(packets) => tracing::warn!(
            packets,
            "more came for checks through VIPs than the daemon could take in: they may fail though their backends are well. See who sends so much \
             from the VIPs' addresses to this host"
        ),
        Err(error) => {
            tracing::debug!(%error, "it is not known what was lost for checks through VIPs");
        }
    }
}

/// Packets that the kernel had no room for, since the last call.
fn drops(socket: &Socket) -> io::Result<u32> {
    let mut counts = [0_u32; STATISTICS_WORDS];
    let mut length = size_of_val(&counts) as libc::socklen_t;
    // SAFETY: the option's value is plain integers, which outlive the call and are as many bytes as it is told.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            counts.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(counts[1])
    } else {
        Err(io::Error::last_os_error())
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

    #[test]
    fn a_vip_is_heard_as_long_as_anybody_hears_it() {
        let at = |end: &str| end.parse::<SocketAddr>().unwrap();
        let inbox = |vip| Arc::new(Inbox::new(at(vip)));
        let mut listeners = Listeners::default();
        assert!(listeners.add(at("10.0.0.1:4000"), inbox("198.51.100.1:80")));
        assert!(!listeners.add(at("10.0.0.1:4001"), inbox("198.51.100.1:80")));
        assert!(listeners.add(at("10.0.0.1:4002"), inbox("198.51.100.1:81")));
        assert!(!listeners.remove(at("10.0.0.1:4000")));
        assert!(!listeners.remove(at("10.0.0.1:4000")), "once");
        assert!(listeners.remove(at("10.0.0.1:4001")));
        let sources: Vec<_> = listeners.sources.keys().copied().collect();
        assert_eq!(sources, [at("198.51.100.1:81")]);
    }
}
