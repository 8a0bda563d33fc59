//! Tells backends of the flows that a deadline has closed.
//!
//! The program has answered the client with a RST, and says so in a ring buffer. The backend gets the matching one: from the client, with the
//! sequence number of the segment that it did not get, which is the one that it waits for (RFC 9293, section 3.10.7.4; RFC 5961, section 3.2).
//! What makes of that a frame for the backend is the program itself, in a test run, so that encapsulation, VLAN tags and addresses are
//! written in one place. It also learns of the end so: the flow's entry closes. To a backend on this host the packet goes by the host's own stack.

use std::{
    io, mem,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::maps::{MapData, RingBuf};
use lb_common::{
    backend::{BackendState, NextHop},
    headers::{ETH_LEN, TTL},
    net::IpVersion,
    notice::Notice,
    tcp::{ACK, RST},
};
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

use crate::{
    by_version::ByVersion,
    dataplane::{kernel::bpf, maps::Maps},
    packet::{self, Tcp},
};

/// What became of the notices so far.
#[derive(Debug, Default)]
pub struct Told {
    told: AtomicU64,
    failed: AtomicU64,
}

impl Told {
    /// Flows of which the backend was told.
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }

    /// Flows of which it could not be told.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

/// What it takes to tell a backend.
#[derive(Debug)]
pub struct Teller {
    maps: Arc<Maps>,
    program: OwnedFd,
    told: Arc<Told>,
    /// None if this process may have none.
    socket: Option<PacketSocket>,
    /// To backends on this host, by version of IP.
    local: ByVersion<Option<IpSocket>>,
}

impl Teller {
    /// With the loaded program. What is told is counted in `told`.
    pub fn new(maps: Arc<Maps>, program: OwnedFd, told: Arc<Told>) -> Self {
        let socket = PacketSocket::open().map_err(|error| {
            tracing::warn!(
                %error,
                "backends cannot be told of flows that a drain's deadline closes, and keep them until their own timeout: this takes a packet socket; \
                 give the daemon CAP_NET_RAW"
            );
        });
        Self {
            maps,
            program,
            told,
            socket: socket.ok(),
            // Whoever may have the one may have these.
            local: ByVersion::of(|version| IpSocket::open(version).ok()),
        }
    }

    /// Tells a flow's backend, if it can be told now.
    fn tell(&self, notice: &Notice) {
        let counter = match self.try_to_tell(notice) {
            Ok(()) => &self.told.told,
            Err(error) => {
                tracing::debug!(%error, ?notice, "a backend could not be told of a closed flow");
                &self.told.failed
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn try_to_tell(&self, notice: &Notice) -> io::Result<()> {
        let socket = self
            .socket
            .as_ref()
            .ok_or_else(|| io::Error::other("there is no packet socket"))?;
        for seq in sequence_numbers(notice) {
            let (frame, hop, backend) = self.rewritten(&reset(notice, seq)?, notice.backend)?;
            if hop.is_local() {
                let socket = self.local[IpVersion::of(backend)].as_ref();
                let socket = socket.ok_or_else(|| io::Error::other("there is no IP socket"))?;
                socket.send(frame.get(ETH_LEN..).unwrap_or_default(), backend)?;
            } else {
                socket.send(&frame, hop.ifindex)?;
            }
        }
        Ok(())
    }

    /// A frame as the program sends it to a backend, and by which hop it does, and the backend's address.
    fn rewritten(&self, frame: &[u8], backend: u32) -> io::Result<(Vec<u8>, NextHop, IpAddr)> {
        if backend >= self.maps.backends.len() {
            return Err(io::Error::other("there is no such backend"));
        }
        let way = || {
            let entry = self.maps.backends.get(backend);
            let state = BackendState(entry.state);
            (state.generation(), entry.hops[state.hop()], entry.address)
        };
        let before = way();
        let (_, hop, address) = before;
        // It comes in by the interface that it is to leave by; what goes to the stack, by the one that there always is.
        let (ifindex, sent) = if hop.is_local() {
            (LOOPBACK, bpf::XDP_PASS)
        } else {
            (hop.ifindex, bpf::XDP_TX)
        };
        let mut output = vec![0; frame.len() + ROOM];
        let run = bpf::run_on(self.program.as_fd(), frame, &mut output, ifindex)?;
        output.truncate(run.length);
        // What it leaves to the host as it is, is for no service any more.
        if run.action != sent || output == frame {
            return Err(io::Error::other(
                "the program does not send it to a backend",
            ));
        }
        if way() != before {
            return Err(io::Error::other("the way to the backend has changed"));
        }
        Ok((output, hop, address.into()))
    }
}

/// Index of the loopback interface, in every network namespace.
const LOOPBACK: u32 = 1;

/// Bytes by which the program may make a frame longer: two VLAN tags and an IPv6 header, and more.
const ROOM: usize = 128;

/// The sequence numbers of RSTs of which one is exact, whatever the segment was that was answered.
///
/// It is that segment's own; but a keepalive probe's is one less than what the backend waits for (RFC 9293, section 3.8.4), and who is idle sends
/// nothing else. The wrong one of the two is ignored: it is before the window, or comes when the connection is gone.
fn sequence_numbers(notice: &Notice) -> [u32; 2] {
    [notice.seq, notice.seq.wrapping_add(1)]
}

/// A RST from a flow's client, as it would come in.
///
/// # Errors
/// When client and VIP are of different versions of IP.
fn reset(notice: &Notice, seq: u32) -> io::Result<Vec<u8>> {
    let client = SocketAddr::new(notice.client.into(), notice.client_port);
    let vip = SocketAddr::new(notice.vip.into(), notice.port);
    if client.is_ipv4() != vip.is_ipv4() {
        return Err(io::Error::other(
            "client and VIP are of different versions of IP",
        ));
    }
    let tcp = Tcp {
        flags: RST | ACK,
        seq,
        ack: notice.ack,
        window: 0,
        ttl: TTL,
        mss: None,
        data: &[],
    };
    let mut frame = vec![0; ETH_LEN];
    frame[12..].copy_from_slice(&packet::ethertype(vip.ip()).to_be_bytes());
    frame.extend(packet::segment(client, vip, &tcp));
    Ok(frame)
}

/// Notices that are taken in together, so that many of them do not keep a thread from other work.
const BATCH: usize = 64;

/// Tells backends until told to stop: `shutdown` true, or closed.
///
/// # Errors
/// When the ring buffer cannot be waited for.
pub async fn run(
    teller: Teller,
    notices: RingBuf<MapData>,
    mut shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    // SAFETY: the descriptor is the map's, which the ring buffer owns and never replaces.
    let mut notices = unsafe { AsyncFd::register_with_interest(notices, Interest::READABLE) }
        .map_err(io::Error::from)?;
    loop {
        let mut readable = tokio::select! {
            () = crate::shutdown::requested(&mut shutdown) => return Ok(()),
            readable = notices.readable_mut() => readable?,
        };
        let mut taken = 0;
        while taken < BATCH {
            let Some(item) = readable.get_inner_mut().next() else {
                readable.clear_ready();
                break;
            };
            let notice = Notice::from_bytes(&item);
            drop(item);
            if let Some(notice) = notice {
                teller.tell(&notice);
            }
            taken += 1;
        }
        tokio::task::yield_now().await;
    }
}

/// A socket that sends whole frames.
#[derive(Debug)]
struct PacketSocket(OwnedFd);

impl PacketSocket {
    fn open() -> io::Result<Self> {
        // Protocol 0 receives nothing.
        // SAFETY: no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is new, so nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a frame by an interface.
    fn send(&self, frame: &[u8], ifindex: u32) -> io::Result<()> {
        // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
        let mut to: libc::sockaddr_ll = unsafe { mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
        // The frame says itself what it carries.
        to.sll_protocol = frame
            .get(12..14)
            .map_or(0, |bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
        // SAFETY: frame and address outlive the call, and the lengths are theirs.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// A socket that sends whole packets by the routes of this host.
#[derive(Debug)]
struct IpSocket(OwnedFd);

impl IpSocket {
    fn open(version: IpVersion) -> io::Result<Self> {
        let family = match version {
            IpVersion::V4 => libc::AF_INET,
            IpVersion::V6 => libc::AF_INET6,
        };
        // Of this protocol it takes packets with their headers, and receives nothing.
        // SAFETY: no pointers.
        let fd = unsafe {
            libc::socket(
                family,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                libc::IPPROTO_RAW,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is new, so nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn send(&self, packet: &[u8], to: IpAddr) -> io::Result<()> {
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        let sent = sendto(self.0.as_raw_fd(), packet, &to, MsgFlags::empty())?;
        if sent == packet.len() {
            Ok(())
        } else {
            Err(io::Error::other("a part of it only was sent"))
        }
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        csum,
        headers::{IPV4_LEN, IPV6_LEN, TCP_LEN},
    };

    use super::*;

    fn notice(client: &str, vip: &str) -> Notice {
        Notice {
            client: client.parse::<IpAddr>().unwrap().into(),
            vip: vip.parse::<IpAddr>().unwrap().into(),
            seq: 0xffff_ffff,
            ack: 0x0506_0708,
            client_port: 0x9c40,
            port: 443,
            ..Notice::default()
        }
    }

    /// Whether the checksum of a frame's segment is right: with it, all words come to zero.
    fn sums(frame: &[u8], addresses: usize) -> bool {
        let tcp = &frame[frame.len() - TCP_LEN..];
        let pseudo = &frame[addresses..frame.len() - TCP_LEN];
        let sum = csum::sum_bytes(pseudo) + csum::sum_bytes(tcp) + 6 + 20;
        csum::finish(sum) == 0
    }

    #[test]
    fn a_reset_byte_by_byte() {
        let frame = reset(&notice("198.51.100.7", "192.0.2.1"), 0x0102_0304).unwrap();
        #[rustfmt::skip]
        let expected = [
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0,
            0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0x4e, 0x94, 198, 51, 100, 7, 192, 0, 2, 1,
            0x9c, 0x40, 0x01, 0xbb, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x14, 0, 0,
        ];
        assert_eq!(frame[..expected.len()], expected);
        assert_eq!(frame.len(), ETH_LEN + IPV4_LEN + TCP_LEN);
        assert!(sums(&frame, ETH_LEN + 12));
    }

    #[test]
    fn a_reset_in_ipv6() {
        let frame = reset(&notice("2001:db8::7", "2001:db8:1::1"), 9).unwrap();
        assert_eq!(frame[12..22], [0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
        assert_eq!(frame.len(), ETH_LEN + IPV6_LEN + TCP_LEN);
        assert!(sums(&frame, ETH_LEN + 8));
    }

    #[test]
    fn two_versions_make_no_frame() {
        assert!(reset(&notice("198.51.100.7", "2001:db8::1"), 1).is_err());
    }

    #[test]
    fn of_two_sequence_numbers_one_is_right_for_a_keepalive_probe() {
        assert_eq!(sequence_numbers(&notice("::1", "::1")), [u32::MAX, 0]);
    }
}
