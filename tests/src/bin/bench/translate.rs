//! What modes `nat` and `dnat` need beside the flow table: endpoints, pairs, translations, ports; and the routes that replies take.

use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context as _, Result};
use lab::{namespace::Namespace, packet::World};
use lb_common::{
    backend::Mode,
    bench::{self, BACKENDS, address6},
    flow::{table::Place, word::BackendRef},
    maps::default,
    nat::{
        Endpoint, FIRST_PORT, Pair, TranslationWord, WORDS_OF_PAIR, slot_index, slot_of,
        translation,
    },
    net::IpVersion::{self, V4, V6},
    vip::VipEntry,
};
use lb_userspace::dataplane::{kernel::bpf::set_device, maps::Maps};

use crate::harness::{Harness, PORT, SERVICE, Way, address};

/// What backends take for their clients in mode `nat`.
pub(crate) const SNAT: u32 = 0x0a00_0009;

/// The interface by which all clients are reached, as [`surroundings`] numbers it.
const CLIENTS: u32 = 16;

/// A host with a route to all clients, by a gateway that is known. Test runs look ways up in the namespace that they are started in.
pub(crate) fn surroundings() -> Result<Namespace> {
    let host = Namespace::new("bench")?;
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ] {
        host.sysctl(key, value)?;
    }
    for line in [
        &format!("link add clients index {CLIENTS} type veth peer name behind"),
        "link set clients up",
        "link set behind up",
        "address add 192.168.7.1/24 dev clients",
        "address add fd00:7::1/64 dev clients nodad",
        "neighbour add 192.168.7.2 lladdr 02:00:00:00:0c:02 dev clients nud permanent",
        "neighbour add fd00:7::2 lladdr 02:00:00:00:0c:02 dev clients nud permanent",
        "route add default via 192.168.7.2",
        "route add default via fd00:7::2",
    ] {
        host.ip(line)?;
    }
    Ok(host)
}

/// Writes the endpoint of backend `id`, and in mode `nat` its pair with [`SNAT`]: both have the backend's id.
pub(crate) fn endpoint(maps: &Maps, way: Way, id: u32) {
    let mut endpoint = Endpoint {
        address: address(way.backends, bench::backend(id)).into(),
        port: PORT,
        ..Endpoint::default()
    };
    if way.mode == Mode::Nat {
        endpoint.pairs[0] = id as u16;
        let pair = Pair {
            address: address(way.version, SNAT).into(),
            endpoint: id as u16,
            ..Pair::default()
        };
        maps.pairs.set(id, &pair);
    } else {
        endpoint.services[0] = SERVICE;
    }
    maps.endpoints.set(id, &endpoint);
    let (directory, key) = match way.backends {
        V4 => (&maps.endpoints4, VipEntry::key(bench::backend(id), PORT)),
        V6 => (
            &maps.endpoints6,
            VipEntry::key6(address6(bench::backend(id)), PORT),
        ),
    };
    World::put_into(directory, VipEntry::of(key, id as u16));
}

impl Harness {
    /// Loads the shipped program as [`Harness::load`] does, with room for the translations of `flows` flows and a SNAT address toward each
    /// backend.
    pub(crate) fn translating(version: IpVersion, flows: u32) -> Result<Self> {
        let harness = Self::with_capacity(version, flows.max(default::FLOWS), |capacity| {
            capacity
                .with_pairs(BACKENDS)
                .translating_flows_of(V4, true)
                .translating_flows_of(V6, true)
        })?;
        set_device(harness.tether.egress_fd(), CLIENTS, CLIENTS)
            .context("admitting the interface that clients are reached by")?;
        Ok(harness)
    }

    /// Has the flows 0 to `flows`, which are pinned, be at the backends that [`bench::endpoint`] names, with the translations that they have
    /// there in a mode.
    pub(crate) fn translate(&self, mode: Mode, flows: u32) {
        for number in 0..flows {
            let (id, port) = bench::endpoint(number);
            let backend = BackendRef::new(id, 0);
            let found = self.change(number, |word| word.with_backend(backend));
            let Some((place, mixed)) = found else {
                continue;
            };
            let new = match mode {
                Mode::Nat => {
                    self.give(id as u16, port, slot_of(place));
                    TranslationWord::new(id as u16, port)
                }
                _ => TranslationWord::new(0, 0),
            };
            self.put_translation(place, new.proven(0), translation::stamp(mixed, backend));
        }
    }

    fn give(&self, pair: u16, port: u16, slot: u32) {
        let index = slot_index(pair, port);
        let word = self.maps.slots.word(index / 2, 0);
        word.fetch_or(u64::from(slot) << (index % 2 * 32), Relaxed);
        let bit = u32::from(port - FIRST_PORT);
        let bits = self
            .maps
            .ports
            .word(u32::from(pair) * WORDS_OF_PAIR + bit / 64, 0);
        bits.fetch_or(1 << (bit % 64), Relaxed);
    }

    fn put_translation(&self, place: Place, word: TranslationWord, stamp: u64) {
        let translations = match self.version {
            V4 => &self.maps.nat4,
            V6 => &self.maps.nat6,
        };
        let bucket = translations.words(place.index);
        let at = 2 * place.way as usize;
        bucket[at].store(word.0, Relaxed);
        bucket[at + 1].store(stamp, Relaxed);
    }

    /// Has so many of 100 ports toward each backend be in use, all over the bitmap, and no flow have any of them.
    pub(crate) fn occupy(&self, percent: u32) {
        let mut random = 0x2545_f491;
        for index in 0..self.maps.ports.len() {
            let mut bits = 0;
            for bit in 0..64 {
                random = bench::next(random);
                bits |= u64::from(random % 100 < percent) << bit;
            }
            self.maps.ports.word(index, 0).store(bits, Relaxed);
        }
        self.maps.slots.clear();
    }
}
