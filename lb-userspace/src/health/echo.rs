//! ICMP and ICMPv6 echoes: one socket for all of a version of IP.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use lb_common::{csum, net::IpVersion};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::unix::AsyncFd, sync::oneshot};

/// What differs between ICMP (RFC 792) and ICMPv6 (RFC 4443).
#[derive(Debug)]
struct Icmp {
    domain: Domain,
    protocol: Protocol,
    /// Type of an echo request.
    request: u8,
    /// Type of the reply to it.
    reply: u8,
    /// The kernel fills in the checksum, which covers addresses that it chooses.
    kernel_sums: bool,
    /// A raw socket receives the IP header too.
    raw_has_header: bool,
    /// Level of the socket option that filters messages by type, and words of its value.
    level: libc::c_int,
    filter_words: usize,
}

const ICMP: Icmp = Icmp {
    domain: Domain::IPV4,
    protocol: Protocol::ICMPV4,
    request: 8,
    reply: 0,
    kernel_sums: false,
    raw_has_header: true,
    level: libc::SOL_RAW,
    filter_words: 1,
};
const ICMPV6: Icmp = Icmp {
    domain: Domain::IPV6,
    protocol: Protocol::ICMPV6,
    request: 128,
    reply: 129,
    kernel_sums: true,
    raw_has_header: false,
    level: libc::IPPROTO_ICMPV6,
    filter_words: 8,
};

/// Type, code, checksum, identifier, sequence number, and a number that only who saw the request can repeat.
const LENGTH: usize = 16;

type Pending = Arc<Mutex<HashMap<u16, Waiting>>>;

struct Waiting {
    from: IpAddr,
    nonce: u64,
    answered: oneshot::Sender<()>,
}

/// Sends echoes and tells which were answered.
#[derive(Debug)]
pub(super) struct Echo {
    icmp: &'static Icmp,
    socket: Arc<AsyncFd<Socket>>,
    pending: Pending,
    identifier: u16,
    sequence: AtomicU16,
    reader: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting")
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

impl Echo {
    /// Opens the socket: one for echoes alone where `net.ipv4.ping_group_range` lets this process, else a raw one.
    ///
    /// # Errors
    /// When this process may have neither (no `CAP_NET_RAW`).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn open(version: IpVersion) -> io::Result<Self> {
        let icmp = match version {
            IpVersion::V4 => &ICMP,
            IpVersion::V6 => &ICMPV6,
        };
        let open = |kind| Socket::new(icmp.domain, kind, Some(icmp.protocol));
        let (socket, raw) = match open(Type::DGRAM) {
            Ok(socket) => (socket, false),
            Err(_) => {
                let socket = open(Type::RAW)?;
                only_replies(&socket, icmp)?;
                (socket, true)
            }
        };
        socket.set_nonblocking(true)?;
        // SAFETY: the socket owns its file descriptor, always names the same one, and is moved in: it stays open as long as this.
        let socket = Arc::new(unsafe { AsyncFd::register(socket) }?);
        let pending = Pending::default();
        let reader = tokio::spawn(read(icmp, socket.clone(), pending.clone(), raw));
        Ok(Self {
            icmp,
            socket,
            pending,
            identifier: fastrand::u16(..),
            sequence: AtomicU16::new(fastrand::u16(..)),
            reader,
        })
    }

    /// Sends an echo and waits for its reply, `patience` at most. An echo that could not be sent is not answered.
    pub(super) async fn ask(&self, address: IpAddr, patience: Duration) -> bool {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let nonce = fastrand::u64(..);
        let (answered, answer) = oneshot::channel();
        lock(&self.pending).insert(
            sequence,
            Waiting {
                from: address,
                nonce,
                answered,
            },
        );
        let request = request(self.icmp, self.identifier, sequence, nonce);
        let target = SocketAddr::new(address, 0).into();
        let sent = self
            .socket
            .async_io(tokio::io::Interest::WRITABLE, |socket| {
                socket.send_to(&request, &target)
            })
            .await;
        let heard =
            sent.is_ok() && matches!(tokio::time::timeout(patience, answer).await, Ok(Ok(())));
        lock(&self.pending).remove(&sequence);
        heard
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The map holds no invariant that a panic elsewhere could have broken.
fn lock(pending: &Pending) -> std::sync::MutexGuard<'_, HashMap<u16, Waiting>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A raw socket would get every such message that this host receives; the kernel drops all but echo replies.
fn only_replies(socket: &Socket, icmp: &Icmp) -> io::Result<()> {
    /// ICMP_FILTER, and ICMPV6_FILTER too.
    const FILTER: libc::c_int = 1;
    // A bit for each type that is dropped.
    let mut filter = [u32::MAX; 8];
    filter[usize::from(icmp.reply / 32)] &= !(1 << (icmp.reply % 32));
    // SAFETY: the option's value outlives the call, and is at least of the size given.
    let result = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(socket),
            icmp.level,
            FILTER,
            filter.as_ptr().cast(),
            (icmp.filter_words * size_of::<u32>()) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn request(icmp: &Icmp, identifier: u16, sequence: u16, nonce: u64) -> [u8; LENGTH] {
    let mut message = [0; LENGTH];
    message[0] = icmp.request;
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    message[8..].copy_from_slice(&nonce.to_be_bytes());
    if !icmp.kernel_sums {
        let checksum = csum::finish(csum::sum_bytes(&message));
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    message
}

/// Sequence number and nonce of an echo reply.
fn parse(icmp: &Icmp, packet: &[u8], raw: bool) -> Option<(u16, u64)> {
    let header = if raw && icmp.raw_has_header {
        usize::from(packet.first()? & 15) * 4
    } else {
        0
    };
    let message = packet.get(header..header + LENGTH)?;
    if message[0] != icmp.reply {
        return None;
    }
    Some((
        u16::from_be_bytes([message[6], message[7]]),
        u64::from_be_bytes(message[8..].try_into().ok()?),
    ))
}

async fn read(icmp: &Icmp, socket: Arc<AsyncFd<Socket>>, pending: Pending, raw: bool) {
    loop {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 256];
        let received = socket
            .async_io(tokio::io::Interest::READABLE, |socket| {
                socket.recv_from(&mut buffer)
            })
            .await;
        let (length, from) = match received {
            Ok(received) => received,
            // An ICMP error that answers an echo: the echo stays unanswered.
            Err(_) => continue,
        };
        let packet: Vec<u8> = buffer[..length]
            .iter()
            // SAFETY: the kernel wrote the first `length` bytes.
            .map(|byte| unsafe { byte.assume_init() })
            .collect();
        let Some(from) = from.as_socket() else {
            continue;
        };
        if let Some((sequence, nonce)) = parse(icmp, &packet, raw) {
            let mut pending = lock(&pending);
            let ours = pending
                .get(&sequence)
                .is_some_and(|waiting| waiting.from == from.ip() && waiting.nonce == nonce);
            if ours && let Some(waiting) = pending.remove(&sequence) {
                // Whoever asked may have given up.
                let _ = waiting.answered.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testnet::{FOUR, Network, Pair, SIX, block_on};

    #[test]
    fn a_request_sums_to_all_ones() {
        let message = request(&ICMP, 0x1234, 0xfffe, 0xdead_beef_0102_0304);
        assert_eq!(csum::fold(csum::sum_bytes(&message)), 0xffff);
    }

    #[test]
    fn truncated_packets_are_no_replies() {
        let mut packet = vec![0x45; 20];
        packet.extend(request(&ICMP, 1, 7, 9));
        packet[20] = ICMP.reply;
        assert_eq!(parse(&ICMP, &packet, true), Some((7, 9)));
        let mut bare = request(&ICMPV6, 1, 7, 9);
        assert_eq!(parse(&ICMPV6, &bare, true), None, "a request is no reply");
        bare[0] = ICMPV6.reply;
        for raw in [false, true] {
            assert_eq!(parse(&ICMPV6, &bare, raw), Some((7, 9)));
        }
        for length in 0..packet.len() {
            assert_eq!(parse(&ICMP, &packet[..length], true), None);
        }
        for length in 0..bare.len() {
            assert_eq!(parse(&ICMPV6, &bare[..length], false), None);
        }
    }

    #[test]
    fn hosts_that_are_there_answer_through_either_kind_of_socket() {
        let pair = Pair::new();
        for (range, network) in [("1 0", FOUR), ("0 0", FOUR), ("1 0", SIX), ("0 0", SIX)] {
            let Network {
                here,
                there,
                nobody,
                ..
            } = network;
            block_on(&pair.near, move || async move {
                std::fs::write("/proc/sys/net/ipv4/ping_group_range", range).unwrap();
                let echo = Echo::open(IpVersion::of(here)).unwrap();
                let patience = Duration::from_secs(5);
                assert!(echo.ask(there, patience).await);
                assert!(echo.ask(here, patience).await);
                assert!(!echo.ask(nobody, Duration::from_millis(200)).await);
                assert!(lock(&echo.pending).is_empty());
            });
        }
    }
}
