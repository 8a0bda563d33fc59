//! Keys and buckets of IPv6 flows: 32 bytes an entry, four entries to a bucket, a bucket to two adjacent cache lines.

use core::mem::{align_of, offset_of, size_of};

use super::{
    FlowKey,
    bucket::WAYS,
    v4::{PORT_SHIFT, SERVICE_SHIFT, placed_mask},
};
use crate::{hash::Seed, net::Address};

/// The key of an IPv6 flow. Exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Key {
    /// Client address: the two halves, as [`Address::words`] gives them.
    pub address: [u64; 2],
    /// Client port (bits 16-31), service id (0-15), in host byte order.
    pub rest: u64,
}

impl Key {
    /// The flow of a client at a service.
    #[inline(always)]
    pub const fn new(address: [u64; 2], port: u16, service: u16) -> Self {
        Self {
            address,
            rest: ((port as u64) << PORT_SHIFT) | ((service as u64) << SERVICE_SHIFT),
        }
    }

    /// The client's address.
    #[inline(always)]
    pub const fn address(&self) -> Address {
        Address::of_words(self.address)
    }

    /// The client's port.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        (self.rest >> PORT_SHIFT) as u16
    }
}

/// Mixes 128 bits of address and a number below 2^32 into one word, under a secret seed, for the choice of a slot.
///
/// Each of the three is multiplied by a secret of its own. Still, who picks addresses makes them choose alike, without knowing the seed: see [`mix_apart`]. That
/// gains nothing here, where many flows have one slot in any case; and all load balancers of a fleet have to choose alike, whatever their versions.
#[inline(always)]
const fn mix_all(address: [u64; 2], number: u64, seed: &Seed) -> u64 {
    let high = fold(address[0]).wrapping_mul(seed.first);
    let low = fold(address[1]).wrapping_mul(seed.second);
    mix_sum(high.wrapping_add(low), number, seed)
}

/// The same for where a flow is kept, of which whoever spoofs addresses could else fill both places.
///
/// What differs in the upper bits of a factor alone differs in the upper bits of the product alone, by as much whatever the seed, so that of two products one
/// makes up for the other. Each is folded by another width before they are added: what makes up for it above does not below.
#[inline(always)]
const fn mix_apart(address: [u64; 2], number: u64, seed: &Seed) -> u64 {
    let high = fold(fold(address[0]).wrapping_mul(seed.first));
    let low = fold(address[1]).wrapping_mul(seed.second);
    mix_sum(high.wrapping_add(low ^ (low >> 29)), number, seed)
}

/// Folds a word, since what differs in its upper bits alone would differ in a product's upper bits alone.
#[inline(always)]
const fn fold(word: u64) -> u64 {
    word ^ (word >> 32)
}

/// The products do not wait for each other.
#[inline(always)]
const fn mix_sum(sum: u64, number: u64, seed: &Seed) -> u64 {
    let sum = sum.wrapping_add(number.wrapping_mul(seed.whiten | 1));
    let mixed = (sum ^ (sum >> 29)).wrapping_mul(seed.second);
    fold(mixed)
}

impl FlowKey for Key {
    #[inline(always)]
    fn service(&self) -> u16 {
        (self.rest >> SERVICE_SHIFT) as u16
    }

    #[inline(always)]
    fn mixed(&self, seed: &Seed) -> u64 {
        mix_apart(self.address, self.rest, seed)
    }

    #[inline(always)]
    fn mixed_before_9(&self, seed: &Seed) -> u64 {
        mix_all(self.address, self.rest, seed)
    }

    /// Under the service's seed already: an IPv6 client does not fit a word as it is.
    #[inline(always)]
    fn client_word(&self, seed: &Seed) -> u64 {
        mix_all(self.address, self.port() as u64, seed)
    }

    #[inline(always)]
    fn placed_by(self, affinity: u16) -> Self {
        Self {
            rest: self.rest & placed_mask(affinity),
            ..self
        }
    }
}

/// One entry. The value word owns it: see [`super::table`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// A [`super::word::Word`].
    pub value: u64,
}

/// Two cache lines of entries.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
pub struct Bucket {
    /// The entries.
    pub entries: [Entry; WAYS as usize],
}

const _: () = assert!(size_of::<Key>() == 24 && offset_of!(Key, rest) == 16);
const _: () = assert!(size_of::<Entry>() == 32 && offset_of!(Entry, value) == 24);
const _: () = assert!(size_of::<Bucket>() == 128 && align_of::<Bucket>() == 128);

#[cfg(test)]
mod tests {
    use super::{super::bucket::buckets_for, *};
    use crate::hash::tests::assert_even;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_keeps_what_it_is_given(address: [u8; 16], port: u16, service: u16) {
            let address = Address(address);
            let key = Key::new(address.words(), port, service);
            prop_assert_eq!((key.address(), key.port(), key.service()), (address, port, service));
        }

        #[test]
        fn a_service_that_places_clients_takes_no_notice_of_ports(address: [u64; 2], port: u16, service: u16, affinity in 1u16..) {
            let key = Key::new(address, port, service);
            prop_assert_eq!(key.placed_by(affinity), Key::new(address, 0, service));
            prop_assert_eq!(key.placed_by(0), key);
        }

        #[test]
        fn homes_are_two_different_buckets(address: [u64; 2], rest: u32, seed: [u64; 3], buckets in 2u32..) {
            let key = Key { address, rest: u64::from(rest) };
            let [first, second] = key.homes(&Seed::new(seed), buckets);
            prop_assert!(first != second && first < buckets && second < buckets);
        }

        /// Whose products differ in their upper bits alone, in all ways.
        #[test]
        fn addresses_that_are_picked_share_no_place(address: [u64; 2], rest: u32, seed: [u64; 3]) {
            let seed = Seed::new(seed);
            let picked = |n: u64| (n << 60) | (n << 28);
            let mut mixed: Vec<_> = (0..256)
                .map(|n| Key {
                    address: [address[0] ^ picked(n & 15), address[1] ^ picked(n >> 4)],
                    rest: u64::from(rest),
                })
                .map(|key| key.mixed(&seed))
                .collect();
            mixed.sort_unstable();
            mixed.dedup();
            prop_assert_eq!(mixed.len(), 256);
        }
    }

    #[test]
    fn a_flow_takes_at_most_54_bytes_of_table() {
        for flows in [1_000, 100_000, 1_000_000, 4_000_000] {
            let bytes = u64::from(buckets_for(flows)) * size_of::<Bucket>() as u64;
            assert!(
                bytes <= u64::from(flows) * 54,
                "{bytes} bytes for {flows} flows"
            );
        }
    }

    /// What clients look like: neighbours in one prefix, ports in sequence; and what an attacker would try: differences that cancel each other.
    #[test]
    fn clients_spread_evenly() {
        let seed = Seed::new([
            0x1234_5678_9abc_def0,
            0x9e37_79b9_7f4a_7c15,
            0xd6e8_feb8_6659_fd93,
        ]);
        let prefix = u64::from_le_bytes([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 1]);
        let of = |n: u64| -> [Key; 4] {
            [
                Key::new([prefix, n.to_be()], 40_000, 7),
                Key::new([prefix, 1u64.to_be()], n as u16, 7),
                Key::new([prefix + (n << 32), 1u64.to_be()], 40_000, 7),
                Key {
                    address: [prefix ^ n, 1u64.to_be()],
                    rest: n,
                },
            ]
        };
        for kind in 0..4 {
            for half in 0..2 {
                let mut counts = [0; 256];
                for n in 0..65_536 {
                    counts[of(n)[kind].homes(&seed, 256)[half] as usize] += 1;
                }
                assert_even(&counts, &format!("kind {kind}, home {half}"));
            }
        }
    }
}
