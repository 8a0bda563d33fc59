//! IPv4 flows.

use lb_common::{
    flow::{
        bucket::Facts,
        v4::{Bucket, Entry, Key},
    },
    nat,
};

use super::{Held, Table, best_offer};
use crate::{family::V4, maps};

impl Table for V4 {
    type Address = u32;
    type Key = Key;

    #[inline(always)]
    fn key(client: u32, port: u16, service: u16) -> Key {
        Key::new(client, port, service)
    }

    #[inline(always)]
    fn buckets() -> u32 {
        maps::flow4_buckets()
    }

    #[inline(always)]
    fn bucket(index: u32) -> Option<*mut Bucket> {
        maps::flows4(index)
    }

    #[inline(always)]
    fn facts(index: u32) -> Option<*mut Facts> {
        maps::facts4(index)
    }

    #[inline(always)]
    fn nat_buckets() -> u32 {
        maps::nat4_buckets()
    }

    #[inline(always)]
    fn translations(index: u32) -> Option<*mut nat::Bucket> {
        maps::nat4(index)
    }

    #[inline(always)]
    fn best_offer(index: u32, now: u32) -> u32 {
        best_offer4(index, now)
    }
}

/// See [`best_offer`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn best_offer4(index: u32, now: u32) -> u32 {
    best_offer::<V4>(index, now)
}

impl Held for Key {
    type Entry = Entry;
    type Bucket = Bucket;

    #[inline(always)]
    fn of_words(words: [u64; 3]) -> Self {
        Self(words[0])
    }

    #[inline(always)]
    fn load(entry: *mut Entry) -> Self {
        // SAFETY: an entry of the map. Volatile: others write it meanwhile.
        Self(unsafe { core::ptr::addr_of!((*entry).key).read_volatile() })
    }

    #[inline(always)]
    fn is_in(&self, entry: *mut Entry) -> bool {
        Self::load(entry).0 == self.0
    }

    #[inline(always)]
    fn differs(&self, entry: *mut Entry) -> u64 {
        Self::load(entry).0 ^ self.0
    }

    #[inline(always)]
    fn store(&self, entry: *mut Entry) {
        // SAFETY: as above; the place is busy by our hand.
        unsafe { core::ptr::addr_of_mut!((*entry).key).write_volatile(self.0) }
    }

    #[inline(always)]
    fn value(entry: *mut Entry) -> *mut u64 {
        // SAFETY: as above.
        unsafe { core::ptr::addr_of_mut!((*entry).value) }
    }
}
