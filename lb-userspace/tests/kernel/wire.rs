//! Packets on a real wire: two services, one at an IPv4 and one at an IPv6 VIP, whose flows are told by their backends' counters.

use std::{
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::Arc,
    thread::yield_now,
    time::{Duration, Instant},
};

use lb_common::{
    backend::{Backend, BackendState, Forwarding, NextHop, Serving},
    clock::Tick,
    flow::{v4, v6},
    hash::Seed,
    maglev::{Slot, TableRef, slot_index},
    net::{Address, IpVersion},
    service::Service,
    verdict::Reason,
    vip::{VipEntry, homes},
};
use lb_userspace::dataplane::{kernel::device, maps::Maps, table::TableKey};

/// Backends that the services' table names: 1 to this.
pub(crate) const PICKED: u32 = 4;
/// Backends that it does not, which only entries name: from there to this.
pub(crate) const BACKENDS: u32 = 8;
/// Sequence number of every first segment.
pub(crate) const ISN: u32 = 0x1234_5678;

const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
const PORT: u16 = 443;
const SEED: Seed = Seed::new([11, 0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93]);

/// A key of flows to the service of its version of IP.
pub(crate) trait Client: TableKey {
    /// The service's id.
    const SERVICE: u16;

    /// The flow of a client, by a number, and a port.
    fn client(number: u32, port: u16) -> Self;

    /// A segment without data that the client sends; checksums are not looked at on the way.
    fn frame(self, seq: u32, flags: u8) -> Vec<u8>;
}

impl Client for v4::Key {
    const SERVICE: u16 = 1;

    fn client(number: u32, port: u16) -> Self {
        Self::new(number, port, Self::SERVICE)
    }

    fn frame(self, seq: u32, flags: u8) -> Vec<u8> {
        let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
        ip.extend(self.address().to_be_bytes());
        ip.extend(octets(VIP4));
        frame(0x0800, &ip, self.port(), seq, flags)
    }
}

impl Client for v6::Key {
    const SERVICE: u16 = 2;

    fn client(number: u32, port: u16) -> Self {
        let [a, b, c, d] = number.to_be_bytes();
        let address = Address([0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, a, b, c, d]);
        Self::new(address.words(), port, Self::SERVICE)
    }

    fn frame(self, seq: u32, flags: u8) -> Vec<u8> {
        let mut ip = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
        ip.extend(self.address().0);
        ip.extend(octets(VIP6));
        frame(0x86dd, &ip, self.port(), seq, flags)
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Has the maps say that there are services whose backends are reached by `interface`.
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
                state: BackendState::new(0, Serving::New, Forwarding::L2, 0, true).0,
                identity: u64::from(id) | 1 << 63,
                address: IpAddr::from([10, 0, 0, id as u8]).into(),
                port: 8_080,
                service: <v4::Key as Client>::SERVICE,
                hops: [hop.bare(); 2],
                ..Backend::default()
            },
        );
    }
    for slot in 0..PICKED {
        maps.tables.set(slot, &Slot::new(1 + slot, 0, Tick(0)));
    }
    for (id, vip) in [
        (<v4::Key as Client>::SERVICE, VIP4),
        (<v6::Key as Client>::SERVICE, VIP6),
    ] {
        let service = Service {
            table: TableRef::new(0, PICKED, 1).0,
            seed: SEED,
            identity: 1,
            vip: vip.into(),
            port: PORT,
            traits: 0,
            affinity: 0,
            affinity_ticks: 0,
        };
        maps.services.set(u32::from(id), &service);
        let key = match vip {
            IpAddr::V4(vip) => VipEntry::key(vip.to_bits(), PORT),
            IpAddr::V6(_) => VipEntry::key6(service.vip.words(), PORT),
        };
        let [home, _] = homes(key, maps.capacity.vip_buckets());
        maps.set_vip(IpVersion::of(vip), home, 0, VipEntry::of(key, id));
    }
}

/// The backend that the table gives for a flow.
pub(crate) fn pick(key: impl Client) -> u32 {
    1 + slot_index(key.client_word(&SEED), &SEED, 0, PICKED)
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
    pub(crate) fn send(&mut self, segments: &[(impl Client, u32, u8)]) {
        self.send_frames(
            segments
                .iter()
                .map(|&(key, seq, flags)| key.frame(seq, flags)),
        );
    }

    /// The same in frames with a VLAN tag.
    pub(crate) fn send_tagged(&mut self, segments: &[(impl Client, u32, u8)]) {
        const AFTER_ADDRESSES: usize = 12;
        const TAG: [u8; 4] = [0x81, 0, 0, 7];
        self.send_frames(segments.iter().map(|&(key, seq, flags)| {
            let mut frame = key.frame(seq, flags);
            frame.splice(AFTER_ADDRESSES..AFTER_ADDRESSES, TAG);
            frame
        }));
    }

    fn send_frames(&mut self, frames: impl Iterator<Item = Vec<u8>>) {
        for frame in frames {
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
            self.sent += 1;
        }
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
        .filter(|reason| !matches!(reason, Reason::NotIp | Reason::NotService))
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

fn frame(ethertype: u16, ip: &[u8], port: u16, seq: u32, flags: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(ip);
    frame.extend(port.to_be_bytes());
    frame.extend(PORT.to_be_bytes());
    frame.extend(seq.to_be_bytes());
    frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    frame.resize(frame.len().max(60), 0);
    frame
}
