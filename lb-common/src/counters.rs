//! Where packets and bytes are counted: one array, a region for each CPU, in each region the reasons, then the services, then the
//! backends.

use core::{
    mem::{offset_of, size_of},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{backend::NextHop, net::Address, verdict::Reason};

/// Packets and bytes. Written by one CPU, read by the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the Ethernet header on, as they came in.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Counter>() == 16);

/// Counters kept for reasons: room for more than there are.
pub const REASONS: u32 = if cfg!(feature = "next-abi") { 96 } else { 64 };
const _: () = assert!(Reason::ALL.len() <= REASONS as usize);

/// What the counters of one CPU are a multiple of, so that CPUs share no cache line.
pub const MULTIPLE: u32 = 4;

/// The shape of the counters array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Layout {
    /// Capacity of the services map.
    pub services: u32,
    /// Counters of one CPU: a multiple of [`MULTIPLE`].
    pub per_cpu: u32,
}

impl Layout {
    /// For maps of these capacities.
    pub const fn new(services: u32, backends: u32) -> Self {
        Self {
            services,
            per_cpu: (REASONS + services + backends).next_multiple_of(MULTIPLE),
        }
    }

    /// Offset of a reason's counter in a CPU's region.
    #[inline(always)]
    pub const fn reason(&self, reason: Reason) -> u32 {
        reason as u32
    }

    /// Offset of a service's counter in a CPU's region.
    #[inline(always)]
    pub const fn service(&self, id: u16) -> u32 {
        REASONS + id as u32
    }

    /// Offset of a backend's counter in a CPU's region.
    #[inline(always)]
    pub const fn backend(&self, id: u32) -> u32 {
        REASONS + self.services + id
    }
}

/// What a CPU keeps for itself beside its counters: token buckets, a counter that no packet is counted by, and what a packet's programs tell
/// each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct CpuState {
    /// Nanoseconds of the coarse monotonic clock up to which adoptions are paid for.
    pub adoption_paid_ns: u64,
    /// Nanoseconds of the coarse monotonic clock up to which resets are paid for.
    pub reset_paid_ns: u64,
    /// Notices (see [`crate::notice`]) for which there was no room.
    pub notices_lost: u64,
    /// Nanoseconds of the coarse monotonic clock up to which answers by ICMP are paid for.
    pub answer_paid_ns: u64,
    /// The next hop to a client that was looked for in vain last, until the daemon has taken note of it.
    pub unresolved: Unresolved,
    /// What the guard has found out of the packet that is on its way, if it has let it pass: a [`crate::guard::Passed`].
    pub passed: u64,
    /// What is known of the packet that is on its way.
    pub handed_on: HandedOn,
    /// By where it leaves, if that is to a client.
    pub hop: NextHop,
}

/// A neighbour whose MAC address the kernel did not know when a packet was to go there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Unresolved {
    /// Its address, as the kernel's lookup of routes gives it: that of IPv4 is in the first four bytes.
    pub address: [u64; 2],
    /// Index of the interface (bits 0-31) and address family (32-63), written after the address; 0 is none.
    pub by: u64,
}

impl Unresolved {
    /// Address families, as the kernel numbers them (linux/socket.h).
    const INET: u32 = 2;
    const INET6: u32 = 10;

    /// The interface's index and the address; none if there is none.
    #[must_use]
    pub fn neighbour(self) -> Option<(u32, IpAddr)> {
        let [a, b, c, d, ..] = self.address[0].to_ne_bytes();
        let address = match (self.by >> 32) as u32 {
            Self::INET => Ipv4Addr::new(a, b, c, d).into(),
            Self::INET6 => Ipv6Addr::from(Address::of_words(self.address).0).into(),
            _ => return None,
        };
        Some((self.by as u32, address))
    }
}

/// What is known of a packet of mode `nat` or `dnat`, or to a backend on this host, when the next function or program goes on with it; and of any SYN,
/// [`Self::favoured`]. On the same CPU, with nothing in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct HandedOn {
    /// The client's address, as [`crate::net::Address::words`] gives it.
    pub client: [u64; 2],
    /// A [`crate::backend::BackendState`]: how many VLAN tags the frame leaves with to a client.
    pub state: u64,
    /// Reason (bits 0-7) and id of the backend (8-31).
    pub outcome: u32,
    /// Id of a backend that the flow cannot be given; 0 is none.
    pub barred: u32,
    /// Bucket of the flow's entry.
    pub index: u32,
    /// Way of the flow's entry.
    pub way: u32,
    /// Id of the service.
    pub service: u32,
    /// Id of the endpoint that the packet came from.
    pub endpoint: u32,
    /// SNAT port (bits 0-15) and pair (16-29).
    pub translation: u32,
    /// The client's port.
    pub client_port: u32,
    /// MTU on the way, bytes; 0 is not known. Of a segment that is yet to be steered, the number that it acknowledges.
    pub mtu: u32,
    /// The backend that the client's other flows have, for whom a new one is best: a [`crate::flow::word::BackendRef`], as a number.
    pub favoured: u32,
}

impl HandedOn {
    /// Id of the backend that [`Self::outcome`] names; 0 is none.
    #[inline(always)]
    pub const fn backend(&self) -> u32 {
        self.outcome >> 8
    }
}

const _: () = assert!(size_of::<CpuState>() == 192 && size_of::<HandedOn>() == 64);
const _: () = assert!(size_of::<Unresolved>() == 24 && offset_of!(CpuState, unresolved) == 32);
const _: () = assert!(offset_of!(CpuState, handed_on) == 64 && offset_of!(CpuState, hop) == 128);

/// A token bucket as one number: the time up to which what was spent is paid for. Returns the new number, or none if the bucket is
/// empty.
///
/// One token costs `cost_ns`; at most `burst_ns / cost_ns` can be saved up.
#[inline(always)]
pub const fn spend(paid_ns: u64, now_ns: u64, cost_ns: u64, burst_ns: u64) -> Option<u64> {
    let earliest = now_ns.saturating_sub(burst_ns);
    // A number from the future is that of another clock (a corrupt map): start over.
    let from = if paid_ns < earliest || paid_ns > now_ns {
        earliest
    } else {
        paid_ns
    };
    if from + cost_ns > now_ns {
        None
    } else {
        Some(from + cost_ns)
    }
}

/// The same for what may wait: none, too, if less than `kept_ns` would be left of what was saved up. So it never takes what others need, however much of it there is.
#[inline(always)]
pub const fn spend_down_to(
    paid_ns: u64,
    now_ns: u64,
    cost_ns: u64,
    burst_ns: u64,
    kept_ns: u64,
) -> Option<u64> {
    match spend(paid_ns, now_ns, cost_ns, burst_ns) {
        Some(next) if now_ns - next >= kept_ns => Some(next),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let (cost, burst) = (100, 1_000);
        let mut paid = 0;
        let mut take = |now: u64| match spend(paid, now, cost, burst) {
            Some(next) => {
                paid = next;
                true
            }
            None => false,
        };
        let start = 1_000_000;
        assert_eq!((0..20).filter(|_| take(start)).count(), 10);
        assert!(!take(start + 99));
        assert!(take(start + 100));
        assert!(!take(start + 100));
        assert_eq!((0..20).filter(|_| take(start + 500)).count(), 4);
    }

    #[test]
    fn what_may_wait_leaves_the_rest_of_a_bucket_to_others() {
        let (cost, burst, kept) = (100, 1_000, 500);
        let mut paid = 0;
        let start = 1_000_000;
        let mut take = |now: u64, kept| match spend_down_to(paid, now, cost, burst, kept) {
            Some(next) => {
                paid = next;
                true
            }
            None => false,
        };
        assert_eq!((0..20).filter(|_| take(start, kept)).count(), 5);
        assert_eq!((0..20).filter(|_| take(start, 0)).count(), 5);
        // It waits for as long as others leave nothing.
        for step in 1..=10 {
            let now = start + step * cost;
            assert!(!take(now, kept) && take(now, 0) && !take(now, 0));
        }
        // It has what they leave.
        let now = start + 10 * cost + kept;
        assert!(!take(now, kept));
        assert!(take(now + cost, kept) && !take(now + cost, kept));
        // A clock that is another one begins anew.
        assert!(spend_down_to(now, start, cost, burst, kept).is_some());
    }

    #[test]
    fn regions_do_not_share_cache_lines() {
        let layout = Layout::new(3, 6);
        assert_eq!(layout.per_cpu as usize * size_of::<Counter>() % 64, 0);
        assert!(layout.backend(5) < layout.per_cpu);
        assert_eq!(layout.service(0), REASONS);
        assert_eq!(layout.backend(0), REASONS + 3);
    }
}
