//! Keys and buckets of IPv4 flows: 16 bytes an entry, four entries to a bucket, a bucket to a cache line.

use core::mem::{align_of, offset_of, size_of};

use super::{FlowKey, bucket::WAYS};
use crate::{
    hash::{Seed, mix},
    maglev::client_word,
};

/// Where a key has the client's port.
pub(crate) const PORT_SHIFT: u32 = if cfg!(feature = "next-abi") { 0 } else { 16 };
/// Where a key has the service's id.
pub(crate) const SERVICE_SHIFT: u32 = 16 - PORT_SHIFT;

/// The key of an IPv4 flow: client address (bits 32-63), client port (16-31), service id (0-15), all in host byte order. Exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Key(pub u64);

/// What of a key's word decides where a service places the flow: all of it, or all but the port if it places clients. Without a branch, of which the
/// kernel's verifier would follow both ways through all that comes.
#[inline(always)]
pub(crate) const fn placed_mask(affinity: u16) -> u64 {
    let places_clients = (affinity as u64).wrapping_neg() >> 63;
    !((0xffff << PORT_SHIFT) * places_clients)
}

impl Key {
    /// The flow of a client at a service.
    #[inline(always)]
    pub const fn new(address: u32, port: u16, service: u16) -> Self {
        Self(
            ((address as u64) << 32)
                | ((port as u64) << PORT_SHIFT)
                | ((service as u64) << SERVICE_SHIFT),
        )
    }

    /// The client's address.
    #[inline(always)]
    pub const fn address(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The client's port.
    #[inline(always)]
    pub const fn port(self) -> u16 {
        (self.0 >> PORT_SHIFT) as u16
    }
}

impl FlowKey for Key {
    #[inline(always)]
    fn service(&self) -> u16 {
        (self.0 >> SERVICE_SHIFT) as u16
    }

    #[inline(always)]
    fn mixed(&self, seed: &Seed) -> u64 {
        mix(self.0, seed)
    }

    #[inline(always)]
    fn client_word(&self, _: &Seed) -> u64 {
        client_word(self.address(), self.port())
    }

    #[inline(always)]
    fn placed_by(self, affinity: u16) -> Self {
        Self(self.0 & placed_mask(affinity))
    }
}

/// One entry. The value word owns it: see [`super::table`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Entry {
    /// A [`Key`].
    pub key: u64,
    /// A [`super::word::Word`].
    pub value: u64,
}

/// One cache line of entries.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Bucket {
    /// The entries.
    pub entries: [Entry; WAYS as usize],
}

const _: () = assert!(size_of::<Entry>() == 16 && offset_of!(Entry, value) == 8);
const _: () = assert!(size_of::<Bucket>() == 64 && align_of::<Bucket>() == 64);

#[cfg(test)]
mod tests {
    use super::{super::bucket::buckets_for, *};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_keeps_what_it_is_given(address: u32, port: u16, service: u16) {
            let key = Key::new(address, port, service);
            prop_assert_eq!((key.address(), key.port(), key.service()), (address, port, service));
        }

        #[test]
        fn a_service_that_places_clients_takes_no_notice_of_ports(address: u32, port: u16, service: u16, affinity in 1u16..) {
            let key = Key::new(address, port, service);
            prop_assert_eq!(key.placed_by(affinity), Key::new(address, 0, service));
            prop_assert_eq!(key.placed_by(0), key);
        }

        #[test]
        fn homes_are_two_different_buckets(key: u64, seed: [u64; 3], buckets in 2u32..) {
            let [first, second] = Key(key).homes(&Seed::new(seed), buckets);
            prop_assert!(first != second && first < buckets && second < buckets);
        }
    }

    #[test]
    fn a_flow_takes_at_most_27_bytes_of_table() {
        for flows in [1_000, 100_000, 1_000_000, 4_000_000] {
            let bytes = u64::from(buckets_for(flows)) * size_of::<Bucket>() as u64;
            assert!(
                bytes <= u64::from(flows) * 27,
                "{bytes} bytes for {flows} flows"
            );
        }
    }
}
