//! One step of a plan: a handful of stores that cannot fail.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
};

use lb_common::{
    backend::{Backend, BackendState, NextHop, Serving},
    clock::Tick,
    guard::{Guard, Range, RangesRef},
    hash::Seed,
    maglev::{Slot, TableRef},
    nat::{Endpoint, Pair},
    net::Address,
    service::Service,
    vip::VipEntry,
};

use super::directory::Directory;
use crate::{dataplane::maps::Maps, resolve::Translated};

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Swaps a backend's state word.
    SetState {
        /// Its id.
        backend: u32,
        /// The state.
        state: BackendState,
    },
    /// Writes the next hop that a backend's state does not name.
    SetHop {
        /// Its id.
        backend: u32,
        /// Which of the two.
        hop: usize,
        /// The next hop.
        next: NextHop,
    },
    /// Writes a backend's whole entry.
    WriteBackend {
        /// Its id.
        id: u32,
        /// The entry.
        entry: Box<Backend>,
    },
    /// Writes a table: aside, or where `to` is `from`, in its place.
    WriteTable {
        /// Whose table.
        service: u16,
        /// The table of today.
        from: TableRef,
        /// Whether each slot succeeds the same one of today's, if there are as many: it does where the same clients have it.
        succeeds: bool,
        /// Where it goes.
        to: TableRef,
        /// The owner of each slot.
        owners: Arc<[u32]>,
        /// Now.
        now: Tick,
    },
    /// Names a service's table.
    NameTable {
        /// Whose.
        service: u16,
        /// The table.
        table: TableRef,
    },
    /// Writes a service's whole entry, its table's name last.
    WriteService {
        /// Its id.
        id: u16,
        /// The entry.
        entry: Box<Service>,
    },
    /// Writes one word of a directory.
    SetWord {
        /// Of which.
        directory: Directory,
        /// The bucket.
        bucket: u32,
        /// The place in it.
        way: usize,
        /// The word; 0 clears it.
        entry: VipEntry,
    },
    /// Waits until no run of the program that began before is still going.
    Grace,
    /// Forgets the previous owners of slots whose handover is over.
    ForgetHandovers {
        /// Whose table.
        service: u16,
        /// The table.
        table: TableRef,
        /// Now.
        now: Tick,
    },
    /// Takes a service's entry out of use.
    ClearService {
        /// Its id.
        id: u16,
    },
    /// Takes a backend's entry out of use; its generation stays.
    ClearBackend {
        /// Its id.
        id: u32,
    },
    /// Writes a pair of a SNAT address and an endpoint.
    WritePair {
        /// Its id.
        id: u16,
        /// The entry.
        entry: Pair,
    },
    /// Writes an endpoint's entry.
    WriteEndpoint {
        /// Its id.
        id: u16,
        /// The entry.
        entry: Endpoint,
    },
    /// Says what a backend is to the translation of addresses.
    SetTranslated {
        /// Its id.
        backend: u32,
        /// What it is.
        to: Translated,
    },
    /// Takes a pair out of use, whose ports nobody has.
    ClearPair {
        /// Its id.
        id: u16,
    },
    /// Takes an endpoint out of use.
    ClearEndpoint {
        /// Its id.
        id: u16,
    },
    /// Writes the ranges of a service's guard aside.
    WriteRanges {
        /// Whose.
        service: u16,
        /// Where they go.
        to: RangesRef,
        /// The ranges.
        ranges: Arc<[Range]>,
    },
    /// Writes a service's guard, the name of its ranges last; one that asks nothing clears it.
    WriteGuard {
        /// Whose.
        service: u16,
        /// The guard.
        guard: Box<Guard>,
    },
}

/// Ids for people; 0 is none.
struct Numbers<'a>(&'a [u16]);

impl fmt::Display for Numbers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().filter(|&&number| number != 0))
            .finish()
    }
}

impl Operation {
    /// Does it. `grace` blocks until no run of the program that began before is still going.
    pub fn apply(&self, maps: &Maps, grace: &dyn Fn()) {
        match self {
            Self::SetState { backend, state } => maps.set_state(*backend, *state),
            Self::SetHop { backend, hop, next } => maps.set_hop(*backend, *hop, next),
            Self::WriteBackend { id, entry } => {
                if maps.backends.get(*id).identity != entry.identity {
                    maps.begin_counting(maps.capacity.counters().backend(*id));
                }
                maps.backends.set(*id, entry);
            }
            Self::WriteTable {
                from,
                succeeds,
                to,
                owners,
                now,
                ..
            } => {
                let before = (*succeeds && from.size() == to.size()).then_some(*from);
                write_table(maps, before, *to, owners, *now);
            }
            Self::NameTable { service, table } => maps.set_table(*service, *table),
            Self::WriteService { id, entry } => {
                if maps.services.get(u32::from(*id)).identity != entry.identity {
                    maps.begin_counting(maps.capacity.counters().service(*id));
                }
                maps.services.set(u32::from(*id), entry);
            }
            Self::SetWord {
                directory,
                bucket,
                way,
                entry,
            } => match *directory {
                Directory::Vips(version) => maps.set_vip(version, *bucket, *way, *entry),
                Directory::Endpoints(version) => {
                    maps.set_endpoint_word(version, *bucket, *way, *entry);
                }
            },
            Self::WritePair { id, entry } => maps.pairs.set(u32::from(*id), entry),
            Self::WriteEndpoint { id, entry } => maps.endpoints.set(u32::from(*id), entry),
            Self::SetTranslated { backend, to } => {
                maps.set_translated(*backend, to.endpoint, to.pairs);
            }
            Self::ClearPair { id } => maps.clear_pair(*id),
            Self::ClearEndpoint { id } => {
                maps.endpoints.set(u32::from(*id), &Endpoint::default());
            }
            Self::WriteRanges { to, ranges, .. } => {
                for (index, range) in (to.first()..).zip(ranges.iter()) {
                    maps.ranges.set(index, range);
                }
            }
            Self::WriteGuard { service, guard } => maps.guards.set(u32::from(*service), guard),
            Self::Grace => grace(),
            Self::ForgetHandovers { table, now, .. } => forget_handovers(maps, *table, *now),
            Self::ClearService { id } => {
                maps.set_table(*id, TableRef::default());
                maps.services.set(u32::from(*id), &UNUSED_SERVICE);
            }
            Self::ClearBackend { id } => {
                let state = maps.state(*id);
                let kept = match state.forwarding() {
                    Some(forwarding) => {
                        BackendState::new(state.generation(), Serving::None, forwarding, 0, false)
                    }
                    None => BackendState(u64::from(state.generation())),
                };
                maps.set_state(*id, kept);
                let unused = Backend {
                    state: kept.0,
                    ..Backend::default()
                };
                maps.backends.set(*id, &unused);
            }
        }
    }
}

const UNUSED_SERVICE: Service = Service {
    table: 0,
    seed: Seed {
        whiten: 0,
        first: 0,
        second: 0,
    },
    identity: 0,
    vip: Address([0; 16]),
    port: 0,
    traits: 0,
    affinity: 0,
    affinity_ticks: 0,
};

/// `before` is the table whose slots these succeed, which has as many.
fn write_table(maps: &Maps, before: Option<TableRef>, to: TableRef, owners: &[u32], now: Tick) {
    for (n, &owner) in (0..).zip(owners) {
        let slot = match before {
            Some(before) => {
                let old = maps.tables.word(before.offset() + n, 0);
                // What is over is left behind here already, so that a second plan has nothing to do.
                Slot(old.load(Ordering::Acquire))
                    .succeeded_by(owner, now)
                    .without_expired(now)
            }
            None => Slot::new(owner, 0, now),
        };
        maps.tables
            .word(to.offset() + n, 0)
            .store(slot.0, Ordering::Release);
    }
}

fn forget_handovers(maps: &Maps, table: TableRef, now: Tick) {
    for index in table.offset()..table.offset() + table.size() {
        let word = maps.tables.word(index, 0);
        let held = word.load(Ordering::Acquire);
        let next = Slot(held).without_expired(now).0;
        if next != held {
            // Whoever else changes a slot is right: the next comparison sees it.
            let _ = word.compare_exchange(held, next, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetState { backend, state } => {
                let serving = state.serving();
                let (hop, resolved) = (state.hop(), state.is_resolved());
                let resolved = if resolved { "resolved" } else { "unresolved" };
                write!(
                    f,
                    "backend {backend}: serving {serving}, next hop {hop} {resolved}"
                )?;
                match state.share() {
                    Some(share) => write!(f, ", {} of 65536 parts closed", share.parts()),
                    None => Ok(()),
                }
            }
            Self::SetHop { backend, hop, next } => {
                let mac = lb_common::net::Mac(next.destination);
                let interface = next.ifindex;
                write!(
                    f,
                    "backend {backend}: write next hop {hop}: {mac} on interface {interface}"
                )
            }
            Self::WriteBackend { id, entry } => {
                let address = SocketAddr::new(entry.address.into(), entry.port);
                let generation = BackendState(entry.state).generation();
                let service = entry.service;
                write!(
                    f,
                    "backend {id}, generation {generation}: write {address} of service {service}"
                )
            }
            Self::WriteTable {
                service, from, to, ..
            } => {
                let (size, offset) = (to.size(), to.offset());
                let place = if from == to { "in place" } else { "aside" };
                write!(
                    f,
                    "service {service}: write table of {size} slots at {offset}, {place}"
                )
            }
            Self::NameTable { service, table } => {
                let (size, offset) = (table.size(), table.offset());
                write!(
                    f,
                    "service {service}: name table of {size} slots at {offset}"
                )
            }
            Self::WriteService { id, entry } => {
                let vip = SocketAddr::new(entry.vip.into(), entry.port);
                write!(f, "service {id}: write {vip}")
            }
            Self::SetWord {
                directory,
                bucket,
                way,
                entry,
            } => {
                match directory {
                    Directory::Vips(version) => {
                        write!(f, "directory of IPv{}: ", *version as u32)?;
                    }
                    Directory::Endpoints(version) => {
                        write!(f, "directory of IPv{} endpoints: ", *version as u32)?;
                    }
                }
                if entry.0 == 0 {
                    write!(f, "clear {bucket}.{way}")
                } else {
                    let (key, value) = (entry.own_key() >> 16, entry.value());
                    write!(f, "write {bucket}.{way}: {key:012x} is {value}")
                }
            }
            Self::WritePair { id, entry } => {
                let (snat, endpoint) = (IpAddr::from(entry.address), entry.endpoint);
                write!(f, "pair {id}: write {snat} toward endpoint {endpoint}")
            }
            Self::WriteEndpoint { id, entry } => {
                let address = SocketAddr::new(entry.address.into(), entry.port);
                let (pairs, services) = (Numbers(&entry.pairs), Numbers(&entry.services));
                write!(
                    f,
                    "endpoint {id}: write {address}, pairs {pairs}, services {services}"
                )
            }
            Self::SetTranslated { backend, to } => {
                let (endpoint, pairs) = (to.endpoint, Numbers(&to.pairs));
                write!(f, "backend {backend}: endpoint {endpoint}, pairs {pairs}")
            }
            Self::ClearPair { id } => write!(f, "pair {id}: clear"),
            Self::ClearEndpoint { id } => write!(f, "endpoint {id}: clear"),
            Self::WriteRanges {
                service,
                to,
                ranges,
            } => {
                let (len, first) = (ranges.len(), to.first());
                write!(f, "service {service}: write {len} ranges at {first}, aside")
            }
            Self::WriteGuard { service, guard } if **guard == Guard::default() => {
                write!(f, "service {service}: clear guard")
            }
            Self::WriteGuard { service, guard } => {
                let ranges = RangesRef(guard.ranges);
                let (len, first) = (ranges.len(), ranges.first());
                write!(f, "service {service}: write guard, {len} ranges at {first}")
            }
            Self::Grace => write!(f, "wait for a grace period"),
            Self::ForgetHandovers { service, .. } => {
                write!(
                    f,
                    "service {service}: forget previous owners whose handover is over"
                )
            }
            Self::ClearService { id } => write!(f, "service {id}: clear"),
            Self::ClearBackend { id } => write!(f, "backend {id}: clear"),
        }
    }
}
