//! The directories of VIPs, one for each family: (address, port) to service, one word an entry.
//!
//! Buckets of four words, two buckets a key. A word is written by one store, so readers see an entry whole or not at all; the
//! daemon is the only writer, and moves an entry by writing the copy before it clears the original.

use core::mem::size_of;

/// Words in a bucket.
pub const WAYS: usize = 4;

/// One entry: a key (bits 16-63) and a service id (0-15); 0 is empty.
///
/// | family | key | the VIP itself |
/// |---|---|---|
/// | IPv4 | VIP (bits 32-63) and port (16-31), host byte order: exact | port 0, and flags ([`VipEntry::HOST_OWNED`]) for the id |
/// | IPv6 | a fingerprint of VIP and port: who finds it compares with the service's own entry | port 0, the id of one of its services; only if the host does not own it |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct VipEntry(pub u64);

impl VipEntry {
    /// In an IPv4 entry with port 0: the host itself has this address, so what is not TCP for a service is the host's.
    pub const HOST_OWNED: u16 = 1;

    /// A service at an IPv4 address and port.
    #[inline(always)]
    pub const fn new(address: u32, port: u16, value: u16) -> Self {
        Self(Self::key(address, port) | value as u64)
    }

    /// The part of the word that is compared, of an IPv4 VIP and port.
    #[inline(always)]
    pub const fn key(address: u32, port: u16) -> u64 {
        ((address as u64) << 32) | ((port as u64) << 16)
    }

    /// The same of an IPv6 VIP, given as [`crate::net::Address::words`], and port. Never 0.
    #[inline(always)]
    pub const fn key6(address: [u64; 2], port: u16) -> u64 {
        let high = (address[0] ^ (address[0] >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let low =
            (address[1] ^ (address[1] >> 32) ^ port as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let sum = high.wrapping_add(low);
        ((sum ^ (sum >> 32)) & !0xffff) | 1 << 16
    }

    /// An entry of a key.
    #[inline(always)]
    pub const fn of(key: u64, value: u16) -> Self {
        Self(key | value as u64)
    }

    /// The key, as of [`VipEntry::key`] or [`VipEntry::key6`].
    #[inline(always)]
    pub const fn own_key(self) -> u64 {
        self.0 & !0xffff
    }

    /// Whether it is the entry of a key.
    #[inline(always)]
    pub const fn is_for(self, key: u64) -> bool {
        self.own_key() == key
    }

    /// Service id; flags if the port is 0.
    #[inline(always)]
    pub const fn value(self) -> u16 {
        self.0 as u16
    }
}

/// Half a cache line of entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(32))]
pub struct VipBucket {
    /// [`VipEntry`] words.
    pub entries: [u64; WAYS],
}

const _: () = assert!(size_of::<VipBucket>() == 32);

/// The two buckets where a key (as of [`VipEntry::own_key`]) may be, in a directory of `buckets`, a power of two: different ones if there are at
/// least two.
///
/// One multiplication each (Fibonacci hashing): this hash need not resist anyone, since clients do not choose VIPs, and every
/// packet of the host pays for it.
#[inline(always)]
pub const fn homes(key: u64, buckets: u32) -> [u32; 2] {
    let word = key ^ (key >> 27);
    let last = buckets - 1;
    let first = (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 & last;
    let second = (word.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32 & last;
    if first != second {
        [first, second]
    } else {
        [first, (first ^ 1) & last]
    }
}

/// Buckets of a directory for `services` services, each with a VIP of its own: an entry for the service and one for its VIP, at a load of at most
/// half.
pub const fn buckets_for(services: u32) -> u32 {
    services.next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Neighbouring addresses and ports are what an operator has.
    #[test]
    fn neighbouring_vips_spread_over_the_directory() {
        spread(|address, port| VipEntry::key(0x0a00_0000 + address, port));
        spread(|address, port| {
            let prefix = u64::from_le_bytes([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0]);
            VipEntry::key6([prefix, u64::from(address).to_be()], port)
        });
    }

    #[test]
    fn no_two_of_many_ipv6_vips_have_one_fingerprint() {
        let mut keys: Vec<u64> = (0..1u64 << 20)
            .flat_map(|n| {
                [
                    VipEntry::key6([7, (n >> 6).to_be()], n as u16 & 63),
                    VipEntry::key6([(n << 6).to_be(), 1], 443),
                ]
            })
            .collect();
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }

    fn spread(key: impl Fn(u32, u16) -> u64) {
        let buckets = buckets_for(4_096);
        let mut load = vec![0u32; buckets as usize];
        for address in 0..64u32 {
            for port in 0..64u16 {
                for home in homes(key(address, 8_000 + port), buckets) {
                    load[home as usize] += 1;
                }
            }
        }
        // Two homes for each of 4096 keys: 2 a bucket on average. A good hash leaves none with over a dozen.
        let fullest = load.iter().copied().max().unwrap_or_default();
        assert!(fullest <= 12, "{fullest} homes in one bucket");
        let empty = load.iter().filter(|&&homes| homes == 0).count();
        assert!(
            (200..1_000).contains(&empty),
            "{empty} buckets of {buckets} are nobody's home"
        );
    }
}
