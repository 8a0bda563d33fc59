//! IPv4 flows.

use lb_common::{
    flow::{
        bucket::Facts,
        v4::{Bucket, Entry, Key},
    },
    nat,
};

use super::Table;
use crate::{family::V4, maps};

impl Table for V4 {
    type Address = u32;
    type Key = Key;
    type Entry = Entry;
    type Bucket = Bucket;

    #[inline(always)]
    fn key(client: u32, port: u16, service: u16) -> Key {
        Key::new(client, port, service)
    }

    #[inline(always)]
    fn key_of_words(words: [u64; 3]) -> Key {
        Key(words[0])
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
    fn load_key(entry: *mut Entry) -> Key {
        // SAFETY: an entry of the map. Volatile: others write it meanwhile.
        Key(unsafe { core::ptr::addr_of!((*entry).key).read_volatile() })
    }

    #[inline(always)]
    fn holds(entry: *mut Entry, key: &Key) -> bool {
        Self::load_key(entry).0 == key.0
    }

    #[inline(always)]
    fn differs(entry: *mut Entry, key: &Key) -> u64 {
        Self::load_key(entry).0 ^ key.0
    }

    #[inline(always)]
    fn store_key(entry: *mut Entry, key: &Key) {
        // SAFETY: as above; the place is busy by our hand.
        unsafe { core::ptr::addr_of_mut!((*entry).key).write_volatile(key.0) }
    }

    #[inline(always)]
    fn value(entry: *mut Entry) -> *mut u64 {
        // SAFETY: as above.
        unsafe { core::ptr::addr_of_mut!((*entry).value) }
    }
}
