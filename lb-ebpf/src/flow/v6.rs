//! IPv6 flows.

use lb_common::{
    flow::{
        bucket::Facts,
        v6::{Bucket, Entry, Key},
    },
    nat,
};

use super::Table;
use crate::{family::V6, maps};

impl Table for V6 {
    type Address = [u64; 2];
    type Key = Key;
    type Entry = Entry;
    type Bucket = Bucket;

    #[inline(always)]
    fn key(client: [u64; 2], port: u16, service: u16) -> Key {
        Key::new(client, port, service)
    }

    #[inline(always)]
    fn key_of_words(words: [u64; 3]) -> Key {
        Key {
            address: [words[0], words[1]],
            rest: words[2],
        }
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
    fn load_key(entry: *mut Entry) -> Key {
        Key {
            address: [load(entry, 0), load(entry, 1)],
            rest: load(entry, 2),
        }
    }

    /// Of the words that differ between clients the port's first: most places hold other keys.
    #[inline(always)]
    fn holds(entry: *mut Entry, key: &Key) -> bool {
        load(entry, 2) == key.rest
            && load(entry, 1) == key.address[1]
            && load(entry, 0) == key.address[0]
    }

    /// The first half of the address is left out: few keys that have all the rest in common differ in that.
    #[inline(always)]
    fn differs(entry: *mut Entry, key: &Key) -> u64 {
        (load(entry, 2) ^ key.rest) | (load(entry, 1) ^ key.address[1])
    }

    #[inline(always)]
    fn store_key(entry: *mut Entry, key: &Key) {
        store(entry, 0, key.address[0]);
        store(entry, 1, key.address[1]);
        store(entry, 2, key.rest);
    }

    #[inline(always)]
    fn value(entry: *mut Entry) -> *mut u64 {
        // SAFETY: an entry of the map.
        unsafe { core::ptr::addr_of_mut!((*entry).value) }
    }
}

/// A word of the key.
#[inline(always)]
fn load(entry: *mut Entry, word: usize) -> u64 {
    // SAFETY: an entry of the map. Volatile: others write it meanwhile.
    unsafe { entry.cast::<u64>().add(word).read_volatile() }
}

#[inline(always)]
fn store(entry: *mut Entry, word: usize, value: u64) {
    // SAFETY: as above; the place is busy by our hand.
    unsafe { entry.cast::<u64>().add(word).write_volatile(value) }
}
