//! Endpoints and pairs: there before a backend names them, gone after the last has.

use std::{collections::BTreeSet, net::SocketAddr};

use lb_common::net::IpVersion;

use super::{Deferred, Directory, Operation, Planner, Wanted, directory};

impl Planner<'_> {
    /// Pairs, then endpoints, then the words of the directories that name these. Gives the words that are to go once nothing else needs them.
    pub(super) fn translations(&mut self, wanted: &Wanted<'_>) -> Vec<Operation> {
        let observed = &self.observed.translations;
        for (&id, &entry) in &wanted.translations.pairs {
            if observed.pairs.get(&id) != Some(&entry) {
                self.push(Operation::WritePair { id, entry });
            }
        }
        for (&id, &entry) in &wanted.translations.endpoints {
            if observed.endpoints.get(&id) != Some(&entry) {
                self.push(Operation::WriteEndpoint { id, entry });
            }
        }
        let endpoints = &wanted.translations.endpoints;
        let at = |id: u16| SocketAddr::new(endpoints[&id].address.into(), endpoints[&id].port);
        let mut removals = Vec::new();
        for version in IpVersion::ALL {
            let listed = endpoints
                .keys()
                .map(|&id| (at(id), id))
                .filter(|(address, _)| IpVersion::of(address.ip()) == version);
            let held = self.observed.directory(Directory::Endpoints(version));
            let changes = directory::arrange_endpoints(version, held, listed);
            self.push_all(changes.additions);
            for endpoint in changes.unplaced {
                self.defer_users(wanted, endpoint, &Deferred::EndpointDirectory);
            }
            for (endpoint, other) in changes.alike {
                let why = Deferred::EndpointAlike(at(endpoint), at(other));
                self.defer_users(wanted, endpoint, &why);
            }
            removals.extend(changes.removals);
        }
        removals
    }

    /// The services of an endpoint that has no place in its directory cannot be served.
    fn defer_users(&mut self, wanted: &Wanted<'_>, endpoint: u16, why: &Deferred) {
        for service in wanted.services {
            let uses = |backend: &crate::resolve::Backend| backend.translated.endpoint == endpoint;
            if service.backends.iter().any(uses) {
                self.plan.deferred.insert(service.id, why.clone());
            }
        }
    }

    /// Words of endpoints that no backend has; then those endpoints, and pairs without flows.
    pub(super) fn remove_translations(&mut self, wanted: &Wanted<'_>, unnamed: Vec<Operation>) {
        let observed = &self.observed.translations;
        self.plan.operations.extend(unnamed);
        let (mut endpoints, mut pairs) = (BTreeSet::new(), BTreeSet::new());
        let backends = wanted.services.iter().flat_map(|service| &service.backends);
        let kept: BTreeSet<u32> = backends.map(|backend| backend.numbered.id).collect();
        let cleared: BTreeSet<u32> = self
            .plan
            .operations
            .iter()
            .filter_map(|operation| match operation {
                Operation::ClearBackend { id } => Some(*id),
                _ => None,
            })
            .collect();
        // Kept back because a slot still names it.
        for (id, backend) in &self.observed.backends {
            if !kept.contains(id) && !cleared.contains(id) {
                endpoints.insert(backend.endpoint);
                pairs.extend(backend.pairs);
            }
        }
        let gone_pairs: Vec<u16> = observed
            .pairs
            .keys()
            .copied()
            .filter(|id| !wanted.translations.pairs.contains_key(id) && !pairs.contains(id))
            .collect();
        let gone_endpoints: Vec<u16> = observed
            .endpoints
            .keys()
            .copied()
            .filter(|id| !wanted.translations.endpoints.contains_key(id) && !endpoints.contains(id))
            .collect();
        if gone_pairs.is_empty() && gone_endpoints.is_empty() {
            return;
        }
        // Who has read a word, a backend or an endpoint may still follow it.
        self.grace();
        for id in gone_pairs {
            self.push(Operation::ClearPair { id });
        }
        for id in gone_endpoints {
            self.push(Operation::ClearEndpoint { id });
        }
    }
}
