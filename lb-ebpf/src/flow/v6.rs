//! IPv6 flows.

use lb_common::{
    flow::{
        bucket::Facts,
        v6::{Bucket, Entry, Key},
    },
    nat,
};

use super::{Held, Table, best_offer};
use crate::{family::V6, maps};

impl Table for V6 {
    type Address = [u64; 2];
    type Key = Key;

    #[inline(always)]
    fn key(client: [u64; 2], port: u16, service: u16) -> Key {
        Key::new(client, port, service)
    }

    #[inline(always)]
    fn buckets() -> u32 {
        maps::flow6_buckets()
    }

    #[inline(always)]
    fn bucket(index: u32) -> Option<*mut Bucket> {
        maps::flows6(index)
    }

    #[inline(always)]
    fn facts(index: u32) -> Option<*mut Facts> {
        maps::facts6(index)
    }

    #[inline(always)]
    fn nat_buckets() -> u32 {
        maps::nat6_buckets()
    }

    #[inline(always)]
    fn translations(index: u32) -> Option<*mut nat::Bucket> {
        maps::nat6(index)
    }

    #[inline(always)]
    fn best_offer(index: u32, now: u32) -> u32 {
        best_offer6(index, now)
    }
}

/// See [`best_offer`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn best_offer6(index: u32, now: u32) -> u32 {
    best_offer::<V6>(index, now)
}

impl Held for Key {
    type Entry = Entry;
    type Bucket = Bucket;

    #[inline(always)]
    fn of_words(words: [u64; 3]) -> Self {
        Self {
            address: [words[0], words[1]],
            rest: words[2],
        }
    }

    #[inline(always)]
    fn load(entry: *mut Entry) -> Self {
        Self {
            address: [word(entry, 0), word(entry, 1)],
            rest: word(entry, 2),
        }
    }

    /// Of the words that differ between clients the port's first: most places hold other keys.
    #[inline(always)]
    fn is_in(&self, entry: *mut Entry) -> bool {
        word(entry, 2) == self.rest
            && word(entry, 1) == self.address[1]
            && word(entry, 0) == self.address[0]
    }

    /// The first half of the address is left out: few keys that have all the rest in common differ in that.
    #[inline(always)]
    fn differs(&self, entry: *mut Entry) -> u64 {
        (word(entry, 2) ^ self.rest) | (word(entry, 1) ^ self.address[1])
    }

    #[inline(always)]
    fn store(&self, entry: *mut Entry) {
        set_word(entry, 0, self.address[0]);
        set_word(entry, 1, self.address[1]);
        set_word(entry, 2, self.rest);
    }

    #[inline(always)]
    fn value(entry: *mut Entry) -> *mut u64 {
        // SAFETY: an entry of the map.
        unsafe { core::ptr::addr_of_mut!((*entry).value) }
    }
}

/// A word of the key.
#[inline(always)]
fn word(entry: *mut Entry, word: usize) -> u64 {
    // SAFETY: an entry of the map. Volatile: others write it meanwhile.
    unsafe { entry.cast::<u64>().add(word).read_volatile() }
}

#[inline(always)]
fn set_word(entry: *mut Entry, word: usize, value: u64) {
    // SAFETY: as above; the place is busy by our hand.
    unsafe { entry.cast::<u64>().add(word).write_volatile(value) }
}
