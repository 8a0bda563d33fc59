//! Who has which number in the translation of addresses: endpoints (a backend's address and port) and pairs (a SNAT address and an endpoint),
//! whatever services they serve.
//!
//! Both are objects like backends: numbered while anything needs them, taken out when nothing does, and their numbers given to others only
//! when the maps no longer hold them. A pair is needed by the backends that take ports of it, and by every flow that has one: that none is left takes
//! the same proof as for a backend.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    backend::Mode,
    nat::{DNAT_SERVICES, Endpoint, PORTS_OF_PAIR, Pair, SNAT_ADDRESSES},
};

use super::record::BackendRecord;
use crate::{
    flows::Census,
    ids::{Numbered, Pool, Quiet},
    plan::{self, Deferred, Observed, Plan},
    resolve::Translated,
    status::SnatStatus,
};

/// All numbers that are given.
#[derive(Clone, Debug)]
pub(super) struct Translations {
    endpoints: BTreeMap<u16, EndpointRecord>,
    by_address: HashMap<SocketAddr, u16>,
    pairs: BTreeMap<u16, PairRecord>,
    by_addresses: HashMap<(IpAddr, SocketAddr), u16>,
    endpoint_ids: Ids,
    pair_ids: Ids,
    /// What could not be served for want of a number or a place, by service id.
    lacks: BTreeMap<u16, String>,
}

/// An endpoint that is needed.
#[derive(Clone, Debug)]
struct EndpointRecord {
    address: SocketAddr,
    /// Services that use it: those of mode `dnat`, and of any mode if it is on this host. Each stays where it is, so that a reader never misses one.
    services: [u16; DNAT_SERVICES],
    /// Its pairs. The same holds of them.
    pairs: [u16; SNAT_ADDRESSES],
}

/// A pair that is needed.
#[derive(Clone, Debug)]
struct PairRecord {
    snat: IpAddr,
    endpoint: SocketAddr,
    quiet: Quiet,
    /// Nearly all its ports are in use, as was told.
    is_crowded: bool,
}

impl PairRecord {
    /// Of a pair that is needed from now on.
    fn new(snat: IpAddr, endpoint: SocketAddr) -> Self {
        Self {
            snat,
            endpoint,
            quiet: Quiet::default(),
            is_crowded: false,
        }
    }
}

/// From this use of a pair's ports on it is warned, in percent.
const CROWDED_PERCENT: u32 = 80;

/// The numbers of one kind.
#[derive(Clone, Debug)]
struct Ids {
    pool: Pool,
    /// Needed by nobody, but still in the maps.
    leaving: BTreeSet<u16>,
}

impl Ids {
    fn adopt(capacity: u32, in_use: impl Fn(u16) -> bool) -> Self {
        Self {
            pool: Pool::restore((1..capacity).map(|id| in_use(id as u16).then_some((0, true)))),
            leaving: BTreeSet::new(),
        }
    }

    fn take(&mut self) -> Option<u16> {
        self.pool.take().map(|numbered| numbered.id as u16)
    }

    /// Takes back what has left the maps.
    fn settle(&mut self, in_maps: impl Fn(u16) -> bool) {
        let pool = &mut self.pool;
        self.leaving.retain(|&id| {
            let stays = in_maps(id);
            if !stays {
                pool.give_back(Numbered {
                    id: u32::from(id),
                    generation: 0,
                });
            }
            stays
        });
    }
}

impl Translations {
    /// Takes over what the maps hold.
    pub(super) fn adopt(observed: &Observed) -> Self {
        let mut translations = Self {
            endpoints: BTreeMap::new(),
            by_address: HashMap::new(),
            pairs: BTreeMap::new(),
            by_addresses: HashMap::new(),
            endpoint_ids: Ids::adopt(observed.capacity.endpoints, |id| {
                observed.translations.endpoints.contains_key(&id)
            }),
            pair_ids: Ids::adopt(observed.capacity.pairs, |id| {
                observed.translations.pairs.contains_key(&id)
            }),
            lacks: BTreeMap::new(),
        };
        for (&id, held) in &observed.translations.endpoints {
            let address = SocketAddr::new(held.address.into(), held.port);
            if translations.by_address.contains_key(&address) {
                translations.endpoint_ids.leaving.insert(id);
                continue;
            }
            translations.by_address.insert(address, id);
            let record = EndpointRecord {
                address,
                services: held.services,
                pairs: [0; SNAT_ADDRESSES],
            };
            translations.endpoints.insert(id, record);
        }
        for (&id, held) in &observed.translations.pairs {
            translations.adopt_pair(id, held, observed);
        }
        translations
    }

    /// Takes over a pair, if its endpoint is there and it is the only one of its addresses.
    fn adopt_pair(&mut self, id: u16, held: &Pair, observed: &Observed) {
        let snat = IpAddr::from(held.address);
        let place = observed
            .translations
            .endpoints
            .get(&held.endpoint)
            .and_then(|endpoint| endpoint.pairs.iter().position(|&pair| pair == id));
        let record = self.endpoints.get_mut(&held.endpoint);
        if let Some(endpoint) = record
            && !self.by_addresses.contains_key(&(snat, endpoint.address))
            && let Some(place) = place.or_else(|| free(&endpoint.pairs))
        {
            endpoint.pairs[place] = id;
            let endpoint = endpoint.address;
            self.by_addresses.insert((snat, endpoint), id);
            self.pairs.insert(id, PairRecord::new(snat, endpoint));
        } else {
            self.pair_ids.leaving.insert(id);
        }
    }

    /// Lets go of what is needed no more, and gives numbers to what `backends`, each with its service's id and whether it is on this host, need.
    pub(super) fn renew<'b>(
        &mut self,
        backends: impl Iterator<Item = (u16, &'b BackendRecord, bool)> + Clone,
        observed: &Observed,
        census: &Census,
    ) {
        self.endpoint_ids
            .settle(|id| observed.translations.endpoints.contains_key(&id));
        self.pair_ids
            .settle(|id| observed.translations.pairs.contains_key(&id));
        self.let_go(backends.clone(), observed, census);
        self.lacks.clear();
        for (service, backend, is_local) in backends {
            if let Err(lack) = self.serve(service, backend, is_local) {
                let lack = format!("backend {}: {lack}", backend.name);
                self.lacks.entry(service).or_insert(lack);
            }
        }
    }

    fn let_go<'b>(
        &mut self,
        backends: impl Iterator<Item = (u16, &'b BackendRecord, bool)>,
        observed: &Observed,
        census: &Census,
    ) {
        let mut needed: BTreeMap<SocketAddr, BTreeSet<u16>> = BTreeMap::new();
        let mut needed_pairs: BTreeSet<(IpAddr, SocketAddr)> = BTreeSet::new();
        for (service, backend, is_local) in backends {
            let services = needed.entry(backend.destination()).or_default();
            if backend.mode == Mode::Dnat || is_local {
                services.insert(service);
            }
            let snat = backend.snat.iter();
            needed_pairs.extend(snat.map(|&snat| (snat, backend.destination())));
        }
        let named: BTreeSet<u16> = observed
            .backends
            .values()
            .flat_map(|backend| backend.pairs)
            .collect();
        let mut gone = Vec::new();
        for (&id, pair) in &mut self.pairs {
            let named = named.contains(&id) || needed_pairs.contains(&(pair.snat, pair.endpoint));
            let flows = census.by_pair.get(&id).copied().unwrap_or(0);
            pair.quiet = pair.quiet.seen(named, flows, census.scans);
            if pair.quiet.is_proven() {
                gone.push(id);
            }
        }
        for id in gone {
            if let Some(pair) = self.pairs.remove(&id) {
                self.by_addresses.remove(&(pair.snat, pair.endpoint));
                self.pair_ids.leaving.insert(id);
                let endpoint = self.by_address.get(&pair.endpoint);
                if let Some(endpoint) = endpoint.and_then(|id| self.endpoints.get_mut(id)) {
                    clear(&mut endpoint.pairs, id);
                }
            }
        }
        let (by_address, leaving) = (&mut self.by_address, &mut self.endpoint_ids.leaving);
        self.endpoints.retain(|&id, endpoint| {
            let services = needed.get(&endpoint.address);
            for service in &mut endpoint.services {
                if !services.is_some_and(|services| services.contains(service)) {
                    *service = 0;
                }
            }
            let stays = services.is_some() || endpoint.pairs.iter().any(|&pair| pair != 0);
            if !stays {
                by_address.remove(&endpoint.address);
                leaving.insert(id);
            }
            stays
        });
    }

    /// Numbers what a backend needs.
    fn serve(
        &mut self,
        service: u16,
        backend: &BackendRecord,
        is_local: bool,
    ) -> Result<(), String> {
        let address = backend.destination();
        let id = match self.by_address.get(&address) {
            Some(&id) => id,
            None => self.endpoint_ids.take().ok_or(
                "no number is left for its address: every one is taken until removed backends' flows have ended; raise limits.backends, run \
                 `tether cleanup` and start anew if it cannot wait",
            )?,
        };
        self.by_address.insert(address, id);
        let endpoint = self.endpoints.entry(id).or_insert(EndpointRecord {
            address,
            services: [0; DNAT_SERVICES],
            pairs: [0; SNAT_ADDRESSES],
        });
        if (backend.mode == Mode::Dnat || is_local) && !endpoint.services.contains(&service) {
            let place = free(&endpoint.services).ok_or_else(|| {
                format!(
                    "{address} has flows of {DNAT_SERVICES} other services of mode dnat, or is on this host and serves as many, which is the most; it waits \
                     until the removed ones' have ended"
                )
            })?;
            endpoint.services[place] = service;
        }
        for &snat in &backend.snat {
            if self.by_addresses.contains_key(&(snat, address)) {
                continue;
            }
            let place = free(&endpoint.pairs).ok_or_else(|| {
                format!(
                    "{address} has flows from {SNAT_ADDRESSES} other SNAT addresses, which is the most; {snat} waits until those of removed ones have \
                     ended"
                )
            })?;
            let pair = self.pair_ids.take().ok_or_else(|| {
                format!(
                    "no number is left for SNAT address {snat}: every one is taken until flows from removed SNAT addresses have ended; raise \
                     limits.nat_pairs, run `tether cleanup` and start anew if it cannot wait"
                )
            })?;
            endpoint.pairs[place] = pair;
            self.by_addresses.insert((snat, address), pair);
            self.pairs.insert(pair, PairRecord::new(snat, address));
        }
        Ok(())
    }

    /// What a backend of a service is.
    pub(super) fn of(&self, service: u16, backend: &BackendRecord, is_local: bool) -> Translated {
        let address = backend.destination();
        let id = self.by_address.get(&address).copied();
        let serves = |id: &u16| {
            let endpoint = self.endpoints.get(id);
            !(backend.mode == Mode::Dnat || is_local)
                || endpoint.is_some_and(|endpoint| endpoint.services.contains(&service))
        };
        let mut translated = Translated {
            endpoint: id.filter(serves).unwrap_or(0),
            ..Translated::default()
        };
        let pairs = backend
            .snat
            .iter()
            .filter_map(|&snat| self.by_addresses.get(&(snat, address)));
        for (place, &pair) in translated.pairs.iter_mut().zip(pairs) {
            *place = pair;
        }
        translated
    }

    /// A backend's SNAT addresses, with the ports that are in use there.
    pub(super) fn snat(&self, backend: &BackendRecord, census: &Census) -> Vec<SnatStatus> {
        let endpoint = backend.destination();
        let ports = |snat| {
            let pair = self.by_addresses.get(&(snat, endpoint))?;
            census.ports.get(pair).copied()
        };
        backend
            .snat
            .iter()
            .map(|&address| SnatStatus {
                address,
                ports: ports(address).unwrap_or(0),
            })
            .collect()
    }

    /// Warns of pairs whose ports are nearly all in use, when that is news.
    pub(super) fn counted(&mut self, census: &Census) {
        for (id, pair) in &mut self.pairs {
            let ports = census.ports.get(id).copied().unwrap_or(0);
            let is_crowded = ports * 100 > PORTS_OF_PAIR * CROWDED_PERCENT;
            if is_crowded && !pair.is_crowded {
                tracing::warn!(
                    "SNAT address {} has {ports} of {PORTS_OF_PAIR} ports toward {} in use: when none is left, SYNs are dropped and counted as no_port; add an \
                     address to `snat`, or backends",
                    pair.snat,
                    pair.endpoint
                );
            }
            pair.is_crowded = is_crowded;
        }
    }

    /// What the maps are to hold.
    pub(super) fn wanted(&self) -> plan::Translations {
        plan::Translations {
            endpoints: self
                .endpoints
                .iter()
                .map(|(&id, record)| (id, record.entry()))
                .collect(),
            pairs: self
                .pairs
                .iter()
                .filter_map(|(&id, record)| {
                    let endpoint = *self.by_address.get(&record.endpoint)?;
                    let entry = Pair {
                        address: record.snat.into(),
                        endpoint,
                        ..Pair::default()
                    };
                    Some((id, entry))
                })
                .collect(),
        }
    }

    /// Notes in a plan which services cannot be served as configured for want of a number or a place.
    pub(super) fn defer(&self, plan: &mut Plan) {
        for (&service, lack) in &self.lacks {
            let lack = Deferred::Untranslated(lack.clone());
            plan.deferred.entry(service).or_insert(lack);
        }
    }

    /// Whether a proof waits for a grace period.
    pub(super) fn is_settling(&self) -> bool {
        self.pairs.values().any(|pair| pair.quiet.is_settling())
    }

    /// A grace period has passed since the last [`Translations::renew`] and the plan after it.
    pub(super) fn settled(&mut self, scans: u64) {
        for pair in self.pairs.values_mut() {
            pair.quiet = pair.quiet.settled(scans);
        }
    }
}

impl EndpointRecord {
    fn entry(&self) -> Endpoint {
        Endpoint {
            address: self.address.ip().into(),
            port: self.address.port(),
            services: self.services,
            pairs: self.pairs,
            ..Endpoint::default()
        }
    }
}

/// The first place that nothing has.
fn free(places: &[u16]) -> Option<usize> {
    places.iter().position(|&held| held == 0)
}

/// Empties each place that has this.
fn clear(places: &mut [u16], held: u16) {
    for place in places.iter_mut().filter(|place| **place == held) {
        *place = 0;
    }
}
