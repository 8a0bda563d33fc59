//! Packets on a real wire: a service whose flows are told by their backends' counters.

use std::{
    mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::Arc,
    thread::yield_now,
    time::{Duration, Instant},
};

use lb_common::{
    backend::{Backend, BackendState, Mode, NextHop, Serving},
    clock::Tick,
    flow::v4::Key,
    hash::Seed,
    maglev::{Slot, TableRef, client_word, slot_index},
    service::Service,
    verdict::Reason,
    vip::{VipEntry, homes},
};
use lb_userspace::dataplane::{kernel::device, maps::Maps};

/// The service's id.
pub(crate) const SERVICE: u16 = 1;
/// Backends that the table names: 1 to this.
pub(crate) const PICKED: u32 = 4;
/// Backends that it does not, which only entries name: from there to this.
pub(crate) const BACKENDS: u32 = 8;
/// Sequence number of every first segment.
pub(crate) const ISN: u32 = 0x1234_5678;

const VIP: u32 = 0xc000_0201;
const PORT: u16 = 443;
const SEED: Seed = Seed::new([11, 0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93]);

/// Has the maps say that there is a service whose backends are reached by `interface`.
pub(crate) fn serve(maps: &Maps, interface: &str) {
    let ifindex = device::index(interface).unwrap();
    for id in 1..=BACKENDS {
        let hop = NextHop {
            destination: [0x02, 0, 0, 0, 0x0b, id as u8],
            source: [0x02, 0, 0, 0, 0x0a, id as u8],
            ifindex,
            mtu: 1_500,
            ..NextHop::default()
        };
        maps.backends.set(
            id,
            &Backend {
                state: BackendState::new(0, Serving::New, Mode::L2, 0, true).0,
                identity: u64::from(id) | 1 << 63,
                address: 0x0a00_0000 + id,
                port: 8_080,
                service: SERVICE,
                hops: [hop.bare(); 2],
                ..Backend::default()
            },
        );
    }
    for slot in 0..PICKED {
        maps.tables.set(slot, &Slot::new(1 + slot, 0, Tick(0)));
    }
    let service = Service {
        table: TableRef::new(0, PICKED, 1).0,
        seed: SEED,
        identity: 1,
        vip: VIP,
        port: PORT,
        reserved: 0,
        reserved_end: [0; 2],
    };
    maps.services.set(u32::from(SERVICE), &service);
    let [home, _] = homes(VipEntry::key(VIP, PORT), maps.capacity.vip_buckets());
    maps.set_vip(home, 0, VipEntry::new(VIP, PORT, SERVICE));
}

/// The backend that the table gives for a flow.
pub(crate) fn pick(key: Key) -> u32 {
    let word = client_word(key.address(), key.port());
    1 + slot_index(word, &SEED, 0, PICKED)
}

/// One end of a pair of interfaces, of which the other runs the program.
pub(crate) struct Wire {
    socket: OwnedFd,
    maps: Arc<Maps>,
    sent: u64,
}

impl Wire {
    /// Of `interface`, in this thread's namespace. Its packets are all there are for the service.
    pub(crate) fn new(interface: &str, maps: Arc<Maps>) -> Self {
        // SAFETY: a new descriptor that nobody else owns.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: all zeroes is an address of this kind.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = device::index(interface).unwrap() as i32;
        // SAFETY: the address is of the size given.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        let sent = counted(&maps);
        Self { socket, maps, sent }
    }

    /// Sends segments of flows: key, sequence number, flags. Returns when the program has counted them all.
    pub(crate) fn send(&mut self, segments: &[(Key, u32, u8)]) {
        for &(key, seq, flags) in segments {
            let frame = frame(key, seq, flags);
            // SAFETY: the frame is of the length given.
            let sent = unsafe {
                libc::send(
                    self.socket.as_raw_fd(),
                    frame.as_ptr().cast(),
                    frame.len(),
                    0,
                )
            };
            assert_eq!(
                sent,
                frame.len() as isize,
                "{}",
                std::io::Error::last_os_error()
            );
        }
        self.sent += segments.len() as u64;
        let deadline = Instant::now() + Duration::from_secs(10);
        while counted(&self.maps) < self.sent {
            assert!(Instant::now() < deadline, "packets were lost on the wire");
            yield_now();
        }
        assert_eq!(counted(&self.maps), self.sent, "somebody else sends too");
    }
}

/// Packets for the service so far.
fn counted(maps: &Maps) -> u64 {
    let layout = maps.capacity.counters();
    Reason::ALL
        .iter()
        .filter(|reason| !matches!(reason, Reason::NotIpv4 | Reason::NotService))
        .map(|reason| maps.counter(layout.reason(*reason)).packets)
        .sum()
}

/// Packets of a reason so far.
pub(crate) fn count_of(maps: &Maps, reason: Reason) -> u64 {
    maps.counter(maps.capacity.counters().reason(reason))
        .packets
}

/// Packets that went to a backend so far.
pub(crate) fn count_to(maps: &Maps, backend: u32) -> u64 {
    maps.counter(maps.capacity.counters().backend(backend))
        .packets
}

/// A segment without data of a flow's client; checksums are not looked at on the way.
fn frame(key: Key, seq: u32, flags: u8) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&0x0800u16.to_be_bytes());
    frame[14..34].copy_from_slice(&[
        0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ]);
    frame[26..30].copy_from_slice(&key.address().to_be_bytes());
    frame[30..34].copy_from_slice(&VIP.to_be_bytes());
    frame[34..36].copy_from_slice(&key.port().to_be_bytes());
    frame[36..38].copy_from_slice(&PORT.to_be_bytes());
    frame[38..42].copy_from_slice(&seq.to_be_bytes());
    frame[46] = 0x50;
    frame[47] = flags;
    frame
}
