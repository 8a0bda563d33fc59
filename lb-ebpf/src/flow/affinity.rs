//! Services that place clients and not flows: which backend a client's other flows have. The daemon knows, from the flow tables.

use lb_common::{
    flow::{
        bucket::Facts,
        table::Look,
        v6::{Bucket, Key},
        word::BackendRef,
    },
    nat,
    tcp::SYN,
};

use super::Table;
use crate::{
    family::Family,
    maps,
    nat::Carry,
    parse::{Parse, Segment},
};

/// Notes which backend a new flow is to have, for what steers the segment next: that of its client's other flows, if this service places clients.
#[inline(always)]
pub(crate) fn favour<F: Family>(service: u16, segment: &Segment, client: <F as Parse>::Address) {
    if !segment.tcp.has_any(SYN) {
        return;
    }
    let mut favoured = BackendRef::NONE.raw();
    if maps::affinity(service) != 0 {
        let [first, second] = F::as_words(client);
        favoured = backend_of_client(first, second, service as u32);
    }
    if let Some(noted) = maps::to_hand_on() {
        noted.favoured = favoured;
    }
}

/// A global function, which the verifier walks through once, and not once for each way that leads to it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn backend_of_client(first: u64, second: u64, service: u32) -> u32 {
    let key = Clients::key([first, second], 0, service as u16);
    match super::look::<Clients>(&super::subject::<Clients>(key), &Look::ANY) {
        Some(entry) => entry.word.backend().raw(),
        None => BackendRef::NONE.raw(),
    }
}

/// The table of clients, of both versions of IP: entries as those of IPv6 flows, with nothing beside them. The daemon alone writes it.
struct Clients;

impl Table for Clients {
    type Address = [u64; 2];
    type Key = Key;

    #[inline(always)]
    fn key(client: [u64; 2], port: u16, service: u16) -> Key {
        Key::new(client, port, service)
    }

    #[inline(always)]
    fn buckets() -> u32 {
        maps::affinity_buckets()
    }

    #[inline(always)]
    fn bucket(index: u32) -> Option<*mut Bucket> {
        maps::affinities(index)
    }

    #[inline(always)]
    fn facts(_: u32) -> Option<*mut Facts> {
        None
    }

    #[inline(always)]
    fn nat_buckets() -> u32 {
        0
    }

    #[inline(always)]
    fn translations(_: u32) -> Option<*mut nat::Bucket> {
        None
    }

    /// Nothing is inserted here.
    #[inline(always)]
    fn best_offer(_: u32, _: u32) -> u32 {
        0
    }
}

impl Carry for Clients {
    /// Nothing goes with its entries.
    #[inline(always)]
    fn carry(_: u32, _: u32) {}
}
