//! The directory of VIPs: (address, port) to service, one word an entry.
//!
//! Buckets of four words, two buckets a key. A word is written by one store, so readers see an entry whole or not at all; the
//! daemon is the only writer, and moves an entry by writing the copy before it clears the original.

use core::mem::size_of;

/// Words in a bucket.
pub const WAYS: usize = 4;

/// One entry: VIP (bits 32-63), port (16-31), service id (0-15), all in host byte order; 0 is empty.
///
/// An entry with port 0 stands for the VIP itself; its low bits are flags ([`VipEntry::HOST_OWNED`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct VipEntry(pub u64);

impl VipEntry {
    /// In an entry with port 0: the host itself has this address, so what is not TCP for a service is the host's.
    pub const HOST_OWNED: u16 = 1;

    /// A service at an address and port.
    #[inline(always)]
    pub const fn new(address: u32, port: u16, value: u16) -> Self {
        Self(Self::key(address, port) | value as u64)
    }

    /// The part of the word that is compared.
    #[inline(always)]
    pub const fn key(address: u32, port: u16) -> u64 {
        ((address as u64) << 32) | ((port as u64) << 16)
    }

    /// Whether it is the entry of an address and port, given as [`VipEntry::key`].
    #[inline(always)]
    pub const fn is_for(self, key: u64) -> bool {
        self.0 & !0xffff == key
    }

    /// Service id; flags if the port is 0.
    #[inline(always)]
    pub const fn value(self) -> u16 {
        self.0 as u16
    }

    /// VIP.
    pub const fn address(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Port; 0 for the VIP itself.
    pub const fn port(self) -> u16 {
        (self.0 >> 16) as u16
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

/// The two buckets where a key (as of [`VipEntry::key`]) may be, in a directory of `buckets`, a power of two: different ones if there are at
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
        let buckets = buckets_for(4_096);
        let mut load = vec![0u32; buckets as usize];
        for address in 0..64u32 {
            for port in 0..64u16 {
                for home in homes(VipEntry::key(0x0a00_0000 + address, 8_000 + port), buckets) {
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
