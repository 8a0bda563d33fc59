//! AF_PACKET sockets: looking at the frames of a leg, and putting frames of any origin on it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::flood::Flood;
use crate::frame::{self, Build, Discovery, Mac, Segment, Tag, flags};
use crate::namespace::Namespace;
use crate::random::Random;
use crate::wait;

/// The kernel's buffer for a capture, in bytes: a demo's worth of frames while the reader waits for a processor.
const RECEIVE_BUFFER: libc::c_int = 16 << 20;

/// A raw socket bound to one interface of the calling thread's network namespace.
#[derive(Debug)]
struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// `protocol` in host byte order; 0 receives nothing, which suits a sender.
    fn open(interface: &str, protocol: u16) -> io::Result<Self> {
        // SAFETY: `socket` takes no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                i32::from(protocol.to_be()),
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let index = nix::net::if_::if_nametoindex(interface)?;
        // SAFETY: all-zero bytes are a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
        // SAFETY: the pointer and the length describe `address`, which outlives the call.
        let bound = unsafe {
            libc::bind(
                socket.0.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }

    fn set<T>(&self, level: libc::c_int, option: libc::c_int, value: T) -> io::Result<()> {
        // SAFETY: the pointer and the length describe `value`, which outlives the call.
        let set = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if set < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Lets no further frame in; those that are waiting stay.
    fn deafen(&self) -> io::Result<()> {
        let mut nothing = libc::sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: 0,
        };
        let filter = libc::sock_fprog {
            len: 1,
            filter: &raw mut nothing,
        };
        // The kernel copies the instructions during the call.
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, filter)
    }

    /// The next frame, as it was on the wire: the kernel takes a tag off before anybody sees the frame, and tells of it beside.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Vec<u8>> {
        let mut beside = [0_u64; 8];
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        // SAFETY: all-zero bytes are a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = beside.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&beside);
        // SAFETY: the header describes `buffer` and `beside`, which outlive the call.
        let got = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        let length = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        let mut frame = buffer[..length].to_vec();
        if let Some(tag) = taken_off(&message) {
            tag.put_on(&mut frame);
        }
        Ok(frame)
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and the length describe `frame`, which outlives the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// The tag that a received message tells of.
fn taken_off(message: &libc::msghdr) -> Option<Tag> {
    const IN_FORCE: u32 = libc::TP_STATUS_VLAN_VALID | libc::TP_STATUS_VLAN_TPID_VALID;
    // SAFETY: the kernel has filled in the message, and what it points to lives.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: null, or the first of the messages that the kernel has written.
    let told = unsafe { header.as_ref() }?;
    if (told.cmsg_level, told.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // SAFETY: this is what such a message holds (packet(7)); it is read at any alignment.
    let data = unsafe {
        libc::CMSG_DATA(header)
            .cast::<libc::tpacket_auxdata>()
            .read_unaligned()
    };
    (data.tp_status & IN_FORCE == IN_FORCE).then_some(Tag {
        protocol: data.tp_vlan_tpid,
        control: data.tp_vlan_tci,
    })
}

/// A running capture: every frame that passes an interface, in either direction, from [`Capture::start`] on.
#[derive(Debug)]
pub struct Capture {
    socket: Arc<PacketSocket>,
    frames: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts to capture on `interface` of `namespace`. Frames that pass after the return are seen.
    ///
    /// An XDP program sees a frame before a capture on the same interface does: look at the other end of the link.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        let name = interface.to_owned();
        let socket = namespace
            .run(move || {
                let socket = PacketSocket::open(&name, libc::ETH_P_ALL as u16)?;
                socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER)?;
                let on: libc::c_int = 1;
                socket.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, on)?;
                // So that the reader looks at `stop` when nothing passes.
                let patience = libc::timeval {
                    tv_sec: 0,
                    tv_usec: 20_000,
                };
                socket.set(libc::SOL_SOCKET, libc::SO_RCVTIMEO, patience)?;
                io::Result::Ok(socket)
            })
            .with_context(|| format!("capture on {interface} of {}", namespace.name()))?;
        let socket = Arc::new(socket);
        let frames = Arc::new(Mutex::new(vec![]));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new()
            .name("lab-capture".into())
            .spawn({
                let (socket, frames, stop) = (socket.clone(), frames.clone(), stop.clone());
                move || {
                    let mut buffer = vec![0; 1 << 16];
                    loop {
                        match socket.receive(&mut buffer) {
                            Ok(frame) => frames
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .push(frame),
                            // Nothing is waiting: only now may a stop be obeyed, so that what had passed by then is kept.
                            Err(_) if stop.load(Ordering::Acquire) => return,
                            Err(_) => {}
                        }
                    }
                }
            })?;
        Ok(Self {
            socket,
            frames,
            stop,
            thread: Some(thread),
        })
    }

    /// The TCP segments seen so far, bare or encapsulated, in order.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment> {
        self.read(frame::parse)
    }

    /// The frames that resolve IPv6 neighbours seen so far, as they are, in order.
    #[must_use]
    pub fn discoveries(&self) -> Vec<(Discovery, Vec<u8>)> {
        self.read(|bytes| Some((frame::parse_discovery(bytes)?, bytes.to_vec())))
    }

    fn read<T>(&self, parse: impl Fn(&[u8]) -> Option<T>) -> Vec<T> {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.iter().filter_map(|bytes| parse(bytes)).collect()
    }

    /// Waits until a segment that satisfies `wanted` has been seen, and returns the first.
    ///
    /// # Errors
    /// When `deadline` passes first.
    pub fn wait_for(
        &self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&Segment) -> bool,
    ) -> Result<Segment> {
        wait::until(what, deadline, || self.segments().into_iter().find(&wanted))
    }

    /// Ends the capture and returns what it saw.
    #[must_use]
    pub fn stop(mut self) -> Vec<Segment> {
        self.end();
        self.segments()
    }

    fn end(&mut self) {
        // On a busy leg the reader would never find the queue empty otherwise.
        self.socket
            .deafen()
            .expect("a filter of one instruction is accepted");
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

/// Puts frames, as they are, onto `interface` of `namespace`.
///
/// # Errors
/// When there is no such interface or the kernel refuses a frame.
pub fn inject(namespace: &Namespace, interface: &str, frames: Vec<Vec<u8>>) -> Result<()> {
    let name = interface.to_owned();
    namespace
        .run(move || {
            let socket = PacketSocket::open(&name, 0)?;
            frames.iter().try_for_each(|frame| socket.send(frame))
        })
        .with_context(|| format!("inject on {interface} of {}", namespace.name()))
}

/// Where a flood comes from and goes to.
#[derive(Debug, Clone, Copy)]
pub struct FloodPlan {
    /// The sources' prefix: its address and length in bits. Keep it apart from real clients.
    pub prefix: (IpAddr, u8),
    /// Where the SYNs go.
    pub target: SocketAddr,
    /// Source and destination MAC on the leg that is flooded.
    pub macs: (Mac, Mac),
    /// SYNs a second.
    pub rate: u32,
    /// Seeds the choice of sources, ports and sequence numbers.
    pub seed: u64,
}

/// Starts a flood of SYNs from made-up sources, at a steady pace, from `interface` of `namespace`.
///
/// # Errors
/// When there is no such interface.
pub fn flood_with_syns(namespace: &Namespace, interface: &str, plan: FloodPlan) -> Result<Flood> {
    let name = interface.to_owned();
    let socket = namespace
        .run(move || PacketSocket::open(&name, 0))
        .with_context(|| format!("flood on {interface} of {}", namespace.name()))?;
    Flood::pour(namespace, move |sent, stop| {
        Ok(flood(&socket, plan, sent, stop)?)
    })
}

fn flood(
    socket: &PacketSocket,
    plan: FloodPlan,
    sent: &AtomicU64,
    stop: &AtomicBool,
) -> io::Result<()> {
    const BEAT: Duration = Duration::from_millis(5);
    let mut random = Random::new(plan.seed);
    let started = Instant::now();
    while !stop.load(Ordering::Acquire) {
        let due = (started.elapsed().as_secs_f64() * f64::from(plan.rate)) as u64;
        while sent.load(Ordering::Relaxed) < due {
            let dice = random.bits();
            let build = Build {
                mac_source: plan.macs.0,
                mac_destination: plan.macs.1,
                source: SocketAddr::new(
                    host_of(plan.prefix, dice as u32),
                    1024 + ((dice >> 32) % 60_000) as u16,
                ),
                destination: plan.target,
                seq: random.bits() as u32,
                ack: 0,
                flags: flags::SYN,
            };
            match socket.send(&build.frame(&[])) {
                // A full queue drops, as a real link would.
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
            sent.fetch_add(1, Ordering::Relaxed);
            if stop.load(Ordering::Acquire) {
                return Ok(());
            }
        }
        std::thread::sleep(BEAT);
    }
    Ok(())
}

/// A host of a prefix.
fn host_of((prefix, length): (IpAddr, u8), number: u32) -> IpAddr {
    let ones = u128::MAX.checked_shr(length.into()).unwrap_or(0);
    match prefix {
        IpAddr::V4(prefix) => {
            let hosts = (ones >> 96) as u32;
            IpAddr::V4(((prefix.to_bits() & !hosts) | (number & hosts)).into())
        }
        IpAddr::V6(prefix) => {
            IpAddr::V6(((prefix.to_bits() & !ones) | (u128::from(number) & ones)).into())
        }
    }
}
