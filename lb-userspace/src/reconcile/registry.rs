//! Every service and backend that is known: wanted, or removed and still in the maps. Gives them their ids.

mod adopt;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    memory::Memory,
    record::{BackendRecord, ServiceRecord, new_record, renewed},
    translations::Translations,
    verdicts::Verdicts,
    weigh::tell_of_spread,
};
use crate::{
    balance::Spread,
    desired::{self, Endpoint},
    flows::{Census, Counts},
    ids::{Numbered, Pool, Quiet, service_identity},
    model::{BackendName, Check, Drains, Health, HealthReport, Suspension, Target},
    pace::{Moment, Terms},
    plan::Observed,
    resolve::{self, Affinity, Found, ServiceFacts, WantedService, WellSeen},
};

/// All that is known.
#[derive(Clone, Debug)]
pub(super) struct Registry {
    services: BTreeMap<u16, ServiceRecord>,
    by_endpoint: HashMap<Endpoint, u16>,
    service_ids: Pool,
    backend_ids: Pool,
    /// Services that could not be given an id, and why.
    pub(super) homeless: Vec<(desired::Service, String)>,
    /// Where the records of a checked backend are: service, and index of the backend.
    watched: HashMap<(BackendName, SocketAddr), Vec<(u16, usize)>>,
    /// The checked backends whose hosts answer echoes.
    echoing: BTreeSet<(BackendName, SocketAddr)>,
}

impl Registry {
    /// Makes `services` the wanted ones, and all others removed. Says what cannot be served.
    pub(super) fn want(&mut self, services: Vec<desired::Service>) {
        let homeless = std::mem::take(&mut self.homeless);
        self.replace(services);
        self.tell_of_homeless(&homeless);
    }

    /// The same without a word.
    pub(super) fn replace(&mut self, services: Vec<desired::Service>) {
        let verdicts = self.verdicts_of_leaving(&services);
        for record in self.services.values_mut() {
            record.wanted = None;
            record.error = None;
            for backend in &mut record.backends {
                backend.wanted = None;
            }
        }
        self.homeless.clear();
        for service in services {
            self.want_service(service, &verdicts);
        }
        self.index();
    }

    /// Takes in drains that were ordered by command, as far as they concern what is removed.
    pub(super) fn hasten(&mut self, ordered: &Drains) {
        for backend in self.backends_mut() {
            backend.hasten(ordered);
        }
    }

    /// Services that no packet finds for want of an id, and why.
    pub(super) fn unserved(&self) -> impl Iterator<Item = &(desired::Service, String)> {
        let served = |service: &desired::Service| self.by_endpoint.contains_key(&service.endpoint);
        self.homeless
            .iter()
            .filter(move |(service, _)| !served(service))
    }

    /// Tries again to give ids to what found none.
    pub(super) fn house(&mut self) {
        if self.homeless.is_empty() {
            return;
        }
        let homeless = std::mem::take(&mut self.homeless);
        for (service, _) in &homeless {
            // Those whose places they were to take have left long ago.
            self.want_service(service.clone(), &Verdicts::default());
            self.index();
        }
        self.tell_of_homeless(&homeless);
    }

    /// Says what is not served as configured for want of ids, and what is again, as far as that is news.
    fn tell_of_homeless(&self, before: &[(desired::Service, String)]) {
        let find = |all: &[(desired::Service, String)], endpoint| {
            all.iter()
                .find(|(service, _)| service.endpoint == endpoint)
                .map(|(_, error)| error.clone())
        };
        for (service, error) in &self.homeless {
            if find(before, service.endpoint).as_ref() != Some(error) {
                tracing::error!(service = service.name, %error, "a service cannot be served as configured");
            }
        }
        for (service, _) in before {
            let is_wanted = |id| {
                self.services
                    .get(id)
                    .is_some_and(|known| known.wanted.is_some())
            };
            if find(&self.homeless, service.endpoint).is_none()
                && self
                    .by_endpoint
                    .get(&service.endpoint)
                    .is_some_and(is_wanted)
            {
                tracing::info!(
                    service = service.name,
                    "it and all its backends have ids now"
                );
            }
        }
    }

    /// What the checks say of the backends that are wanted now and will not be: what takes the place of one of them is the same by another name. (Of what
    /// left before, only the address may be the same by now: a pod's is soon another pod's, while the old one's flows are still waited for.)
    fn verdicts_of_leaving(&self, wanted_next: &[desired::Service]) -> Verdicts {
        let staying: HashSet<u64> = wanted_next
            .iter()
            .flat_map(|service| &service.backends)
            .map(|backend| backend.identity)
            .collect();
        let mut verdicts = Verdicts::default();
        let leaving = self.backends().filter(|backend| {
            backend.wanted.is_some()
                && backend.health != Health::Unknown
                && !staying.contains(&backend.identity)
        });
        for backend in leaving {
            verdicts.note(backend);
        }
        verdicts
    }

    fn want_service(&mut self, service: desired::Service, verdicts: &Verdicts) {
        let id = match self.by_endpoint.get(&service.endpoint) {
            Some(&id) => id,
            None => match self.service_ids.take() {
                Some(numbered) => numbered.id as u16,
                None => {
                    let error = "no id is left for it: every one is taken until removed services' flows have ended; raise limits.services, run `tether cleanup` and start anew if it cannot wait";
                    self.homeless.push((service, error.to_owned()));
                    return;
                }
            },
        };
        let record = self
            .services
            .entry(id)
            .or_insert_with(|| ServiceRecord::new(id, service.endpoint, service.mode));
        self.by_endpoint.insert(service.endpoint, id);
        record.name.clone_from(&service.name);
        record.mode = service.mode;
        record.affinity.clone_from(&service.affinity);
        record.guard.clone_from(&service.guard);
        record.on_down = service.on_down;
        record.reset_over = service.reset_over;
        record.terms = service.terms;
        record.unlisted = false;
        record.quiet = Quiet::default();
        record.error = None;
        record.wanted = Some(WantedService {
            table_size: service.table_size,
            min_healthy: service.min_healthy,
            policy: service.policy,
        });
        let mut held: HashMap<u64, BackendRecord> = std::mem::take(&mut record.backends)
            .into_iter()
            .map(|backend| (backend.identity, backend))
            .collect();
        let mut without = Vec::new();
        for backend in &service.backends {
            match held.remove(&backend.identity) {
                Some(known) => record.backends.push(BackendRecord {
                    quiet: Quiet::default(),
                    ..renewed(known, &service, backend)
                }),
                None => match self.backend_ids.take() {
                    Some(numbered) => {
                        let new = new_record(numbered, &service, backend);
                        record.backends.push(new.judged(verdicts.of(backend)));
                    }
                    None => without.push(backend.name.backend.as_str()),
                },
            }
        }
        let mut removed: Vec<BackendRecord> = held.into_values().collect();
        removed.sort_unstable_by_key(|backend| backend.numbered.id);
        for backend in &mut removed {
            // What was asked for one drain holds for that drain.
            if backend.terms.since.is_none() {
                backend.terms = service.terms;
            }
        }
        record.backends.append(&mut removed);
        if !without.is_empty() {
            let error = format!(
                "no id is left for {}: every one is taken until removed backends' flows have ended; raise limits.backends, run `tether cleanup` and start anew if it cannot wait",
                listed(&without)
            );
            record.error = Some(error.clone());
            self.homeless.push((service, error));
        }
    }

    fn index(&mut self) {
        self.by_endpoint.clear();
        self.watched.clear();
        for (&id, service) in &self.services {
            self.by_endpoint.insert(service.endpoint, id);
            for (n, backend) in service.backends.iter().enumerate() {
                let key = (backend.name.clone(), backend.check_address);
                self.watched.entry(key).or_default().push((id, n));
            }
        }
        // Who is checked again later, or elsewhere, is asked anew.
        let watched = &self.watched;
        self.echoing.retain(|key| watched.contains_key(key));
    }

    /// Takes in a verdict; one about nobody that is known is ignored. False if it is no news.
    pub(super) fn heard(&mut self, report: HealthReport, now_ms: u64) -> bool {
        let key = (report.name.clone(), report.address);
        let mut news = false;
        for &(service, n) in self.watched.get(&key).into_iter().flatten() {
            let backend = self
                .services
                .get_mut(&service)
                .and_then(|service| service.backends.get_mut(n));
            if let Some(backend) = backend {
                news |= backend.heard(&report, now_ms);
            }
        }
        news
    }

    /// Takes in whether a host answers echoes. True if that is news.
    pub(super) fn learnt(&mut self, report: &HealthReport) -> bool {
        let key = (report.name.clone(), report.address);
        if report.answers_echoes {
            self.watched.contains_key(&key) && self.echoing.insert(key)
        } else {
            self.echoing.remove(&key)
        }
    }

    /// The checked backends whose hosts answer echoes.
    pub(super) fn echoing(&self) -> impl Iterator<Item = (BackendName, SocketAddr)> {
        self.echoing.iter().cloned()
    }

    /// Lets go of what is removed and named by nothing. True if anything went.
    pub(super) fn retire(&mut self, observed: &Observed, census: &Census) -> bool {
        let mut went = false;
        let mut gone = Vec::new();
        for (&id, service) in &mut self.services {
            let held = observed.services.get(&id);
            if service.wanted.is_none() {
                let entries = census.by_service.get(&id).map_or(0, Counts::entries);
                service.quiet = service.quiet.seen(false, entries, census.scans);
                if entries > 0 {
                    service.unlisted = false;
                } else if service.quiet.is_proven() && service.unlisted {
                    gone.push(id);
                    continue;
                } else if service.quiet.is_proven() {
                    // From here on no packet finds it, and then the proof counts.
                    service.unlisted = true;
                    service.quiet = Quiet::default();
                }
            }
            let ids = &mut self.backend_ids;
            service.backends.retain_mut(|backend| {
                if backend.wanted.is_some() {
                    return true;
                }
                let Numbered { id, generation } = backend.numbered;
                let entries = census.by_backend.get(&(id, generation)).map_or(0, Counts::entries);
                let named = held.is_some_and(|held| held.names(id));
                backend.quiet = backend.quiet.seen(named, entries, census.scans);
                if !backend.quiet.is_proven() {
                    return true;
                }
                tracing::info!(backend = %backend.name, id, "removed backend has no flows left: gone");
                ids.give_back(backend.numbered);
                went = true;
                false
            });
        }
        for id in gone {
            if let Some(service) = self.services.remove(&id) {
                tracing::info!(
                    service = service.name,
                    id,
                    "removed service has no flows left: gone"
                );
                // Backends' flows are flows of their service: these have none either.
                for backend in &service.backends {
                    self.backend_ids.give_back(backend.numbered);
                }
                self.service_ids.give_back(Numbered {
                    id: u32::from(id),
                    generation: 0,
                });
                went = true;
            }
        }
        if went {
            self.index();
        }
        went
    }

    /// The backends that start slowly: by identity, since when, and what part of its weight each has, in sixteenths.
    pub(super) fn starting(&self) -> impl Iterator<Item = (u64, Moment, u8)> {
        let wanted = self.backends().filter(|backend| backend.wanted.is_some());
        wanted.filter_map(|backend| {
            let began = Moment::from(backend.standing.start.began?);
            Some((backend.identity, began, backend.standing.start_factor))
        })
    }

    /// Takes over since when backends are drained, how far their slow starts are, and whose hosts answer echoes, as the last run remembered.
    pub(super) fn recall(&mut self, memory: &Memory, now: Moment) {
        let watched = &self.watched;
        let echoing = memory.echoing(now);
        self.echoing = echoing.filter(|key| watched.contains_key(key)).collect();
        for service in self.services.values_mut() {
            for backend in &mut service.backends {
                backend.drained = memory.drain(backend.identity).map(|(begun, _)| begun);
                let starting = memory.starting(backend.identity);
                backend.held_start = starting.map(|(began, factor)| (began.tick(), factor));
            }
        }
    }

    /// Notes since when backends are drained, or dead. True if drains began or ended.
    pub(super) fn note(&mut self, now: Moment) -> bool {
        let mut news = false;
        for service in self.services.values_mut() {
            for backend in &mut service.backends {
                news |= backend.note(service.reset_over, now);
            }
        }
        news
    }

    /// Drains: whose, by identity, since when, and how they end.
    pub(super) fn drains(&self) -> impl Iterator<Item = (u64, Moment, Terms)> {
        self.backends()
            .filter_map(|backend| Some((backend.identity, backend.drained?, backend.terms)))
    }

    /// Whether a proof waits for a grace period.
    pub(super) fn is_settling(&self) -> bool {
        self.services.values().any(|service| {
            (service.wanted.is_none() && service.quiet.is_settling())
                || service
                    .backends
                    .iter()
                    .any(|backend| backend.wanted.is_none() && backend.quiet.is_settling())
        })
    }

    /// A grace period has passed since the last [`Registry::retire`] and the plan after it.
    pub(super) fn settled(&mut self, scans: u64) {
        for service in self.services.values_mut() {
            service.quiet = service.quiet.settled(scans);
            for backend in &mut service.backends {
                backend.quiet = backend.quiet.settled(scans);
            }
        }
    }

    /// What resolving needs.
    pub(super) fn facts(
        &self,
        hops: &HashMap<IpAddr, Found>,
        translations: &Translations,
    ) -> Vec<ServiceFacts<'_>> {
        self.services
            .values()
            .map(|service| ServiceFacts {
                id: service.id,
                name: &service.name,
                endpoint: service.endpoint,
                wanted: service.wanted,
                affinity: service
                    .wanted
                    .and(service.affinity.as_ref())
                    .map(|affinity| Affinity {
                        group: affinity.group.as_deref(),
                        timeout: affinity.timeout,
                    }),
                guard: service.guard.as_ref(),
                on_down: service.on_down,
                reset_over: service.reset_over,
                told_before: service.told,
                resets_were_suspended: service.resets_suspended.is_some(),
                well_seen: service.well_seen,
                backends: service
                    .backends
                    .iter()
                    .map(|backend| {
                        let of = (service.id, service.endpoint.vip);
                        backend.facts(of, hops, translations)
                    })
                    .collect(),
            })
            .collect()
    }

    /// Remembers what was resolved, for listings; says what changed.
    pub(super) fn resolved(&mut self, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            let Some(service) = self.services.get_mut(&outcome.service) else {
                continue;
            };
            if service.fail_open != outcome.fail_open {
                let (name, fail_open) = (&service.name, outcome.fail_open);
                if fail_open {
                    tracing::warn!(
                        service = name,
                        "too few backends are usable: all active ones take new flows"
                    );
                } else {
                    tracing::info!(service = name, "enough backends are usable again");
                }
            }
            if service.resets_suspended != outcome.resets_suspended {
                let name = &service.name;
                match outcome.resets_suspended {
                    Some(why) => tracing::info!(
                        service = name,
                        "clients of dead backends are not told: {why}"
                    ),
                    None => {
                        tracing::info!(service = name, "clients of dead backends are told again")
                    }
                }
            }
            tell_of_spread(&service.name, service.spread, outcome.spread);
            service.spread = outcome.spread;
            service.fail_open = outcome.fail_open;
            service.resets_suspended = outcome.resets_suspended;
            service.well_seen = outcome.well_seen;
            service.told = Some((service.on_down, service.reset_over));
            for backend in &mut service.backends {
                backend.per_mille = outcome
                    .per_mille
                    .get(&backend.numbered.id)
                    .copied()
                    .unwrap_or(0);
            }
            for (backend, given) in service.backends.iter_mut().zip(outcome.backends) {
                let serving = given.serving;
                backend.died = given.died;
                backend.spared = given.spared;
                backend.is_closed(given.pace.map(|pace| pace.share));
                backend.on_down = given.on_down;
                if backend.serving != serving {
                    tracing::info!(backend = %backend.name, %serving, was = %backend.serving, "serving changed");
                    backend.serving = serving;
                }
            }
        }
    }

    /// Removed services that packets no longer find.
    pub(super) fn unlisted(&self) -> BTreeSet<u16> {
        let unlisted = self.services.values().filter(|service| service.unlisted);
        unlisted.map(|service| service.id).collect()
    }

    /// Whose health is to be known. Where an old and a new object have name and address in common, once, as the new one has it.
    pub(super) fn targets(&self, hops: &HashMap<IpAddr, Found>) -> Vec<Target> {
        let mut targets = BTreeMap::new();
        // It is a host that answers, whatever its backends are called: after the renaming of a service, one that is dead is to stay so.
        let echoing = self.echoing.iter();
        let echoing: BTreeSet<IpAddr> = echoing.map(|(_, address)| address.ip()).collect();
        let wanted_last = |wanted: bool| {
            self.services.values().flat_map(move |service| {
                let backends = service.backends.iter();
                backends
                    .filter(move |backend| backend.wanted.is_some() == wanted)
                    .map(move |backend| (service, backend))
            })
        };
        for (service, backend) in wanted_last(false).chain(wanted_last(true)) {
            let target = Target {
                name: backend.name.clone(),
                object: backend.numbered,
                address: backend.check_address,
                check: Check {
                    // One that was found in the maps has started long ago, or whose verdict is known by another object or name.
                    startup_grace: if backend.has_started {
                        Duration::ZERO
                    } else {
                        backend.check.startup_grace
                    },
                    ..backend.check.clone()
                },
                through: backend.through(service.endpoint, hops),
                answers_echoes: echoing.contains(&backend.check_address.ip()),
                verdict: backend.presumed(),
            };
            targets.insert((backend.name.clone(), backend.check_address), target);
        }
        targets.into_values().collect()
    }

    /// Addresses to which the way is to be known.
    pub(super) fn addresses(&self) -> BTreeSet<IpAddr> {
        self.backends().map(|backend| backend.address).collect()
    }

    /// Whether every wanted backend has a verdict and is known to be reachable or not.
    pub(super) fn is_informed(&self, hops: &HashMap<IpAddr, Found>) -> bool {
        self.backends()
            .filter(|backend| backend.wanted.is_some())
            .all(|backend| backend.health != Health::Unknown && hops.contains_key(&backend.address))
    }

    /// All services, by id, to be changed in what nothing is looked up by.
    pub(super) fn services_mut(&mut self) -> impl Iterator<Item = &mut ServiceRecord> {
        self.services.values_mut()
    }

    /// Takes in what a pass has counted, after another: flows that have begun in fail-open.
    pub(super) fn counted(&mut self, before: &Census, census: &Census) {
        for service in self.services.values_mut() {
            if service.fail_open {
                let identity = service_identity(service.endpoint.vip, service.endpoint.port);
                let established = |census: &Census| {
                    let churn = census.churn.get(&identity);
                    churn.map_or(0, |churn| churn.established)
                };
                let begun = established(census).saturating_sub(established(before));
                service.fail_open_flows += begun;
            }
        }
    }

    /// All services, by id.
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceRecord> {
        self.services.values()
    }

    /// All backends.
    pub(super) fn backends_mut(&mut self) -> impl Iterator<Item = &mut BackendRecord> {
        self.services
            .values_mut()
            .flat_map(|service| &mut service.backends)
    }

    /// The backends on the way to which addresses are translated, each with its service's id, and whether it is on this host.
    pub(super) fn translated<'r>(
        &'r self,
        hops: &'r HashMap<IpAddr, Found>,
    ) -> impl Iterator<Item = (u16, &'r BackendRecord, bool)> + Clone {
        self.services.values().flat_map(move |service| {
            service.backends.iter().filter_map(move |backend| {
                let is_local = backend.is_local(service.endpoint.vip, hops);
                (is_local || backend.is_translated()).then_some((service.id, backend, is_local))
            })
        })
    }

    fn backends(&self) -> impl Iterator<Item = &BackendRecord> {
        self.services.values().flat_map(|service| &service.backends)
    }
}

/// What a service was resolved to.
pub(super) struct Outcome {
    pub(super) service: u16,
    pub(super) fail_open: bool,
    pub(super) spread: Spread,
    pub(super) resets_suspended: Option<Suspension>,
    pub(super) well_seen: WellSeen,
    pub(super) backends: Vec<resolve::Backend>,
    /// Parts of a thousand new flows, by id; absent is none.
    pub(super) per_mille: HashMap<u32, u16>,
}

/// Names of backends for a message: not a page of them.
fn listed(names: &[&str]) -> String {
    const MOST: usize = 8;
    let (shown, rest) = names.split_at(names.len().min(MOST));
    let what = if names.len() == 1 {
        "backend"
    } else {
        "backends"
    };
    let more = if rest.is_empty() {
        String::new()
    } else {
        format!(" and {} more", rest.len())
    };
    format!("{what} {}{more}", shown.join(", "))
}
