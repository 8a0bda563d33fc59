//! What a daemon finds in the maps when it starts.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    backend::{BackendState, Forwarding, Mode, Serving},
    share::Share,
};

use super::{
    super::{
        memory::{KnownService, Memory},
        record::{BackendRecord, ServiceRecord},
    },
    Registry,
};
use crate::{
    balance::{Standing, outlier, slow_start::Start},
    dataplane::maps::Maps,
    desired::Endpoint,
    ids::{Numbered, Pool, Quiet},
    model::{BackendName, Check, Health, OnDown},
    pace::Closing,
    plan::Observed,
};

impl Registry {
    /// Takes over what the maps hold, as removed until [`Registry::want`] says otherwise. Names are those that the last run
    /// remembered, or made of addresses.
    pub(in super::super) fn adopt(maps: &Maps, observed: &Observed, memory: &Memory) -> Self {
        let services = observed
            .services
            .iter()
            .map(|(&id, held)| {
                let endpoint = Endpoint {
                    vip: held.entry.vip.into(),
                    port: held.entry.port,
                };
                let known = memory
                    .service(endpoint)
                    .unwrap_or_else(|| KnownService::unknown(endpoint));
                let record = ServiceRecord {
                    name: known.name,
                    on_down: known.on_down,
                    reset_over: known.reset_over,
                    terms: known.terms,
                    ..ServiceRecord::new(id, endpoint, Mode::L2)
                };
                (id, record)
            })
            .collect();
        let mut registry = Self {
            services,
            by_endpoint: HashMap::new(),
            service_ids: Pool::restore((1..maps.services.len()).map(|id| {
                let in_use = observed.services.contains_key(&(id as u16));
                in_use.then_some((0, true))
            })),
            backend_ids: Pool::restore((1..maps.backends.len()).map(|id| {
                let state = maps.state(id);
                let in_use = observed.backends.contains_key(&id);
                (in_use || state.0 != 0).then_some((state.generation(), in_use))
            })),
            homeless: Vec::new(),
            watched: HashMap::new(),
            echoing: BTreeSet::new(),
        };
        for (&id, held) in &observed.backends {
            let state = BackendState(held.state);
            let numbered = Numbered {
                id,
                generation: state.generation(),
            };
            let (Some(service), Some(mode)) = (
                registry.services.get_mut(&held.service),
                state.forwarding().map(Forwarding::mode),
            ) else {
                // Its service went first, as removal has it, and it had no flows then. The first plan takes it out.
                registry.backend_ids.give_back(numbered);
                continue;
            };
            let address = IpAddr::from(held.address);
            let endpoint = SocketAddr::from((address, held.port));
            let name = memory
                .backend(held.identity)
                .unwrap_or_else(|| BackendName {
                    service: service.name.clone(),
                    backend: endpoint.to_string(),
                });
            service.mode = mode;
            service.backends.push(BackendRecord {
                numbered,
                identity: held.identity,
                name,
                address,
                port: held.port,
                mode,
                snat: observed.translations.snat_addresses(held),
                weight: 0,
                zone: None,
                wanted: None,
                // Nobody remembers its own.
                check: Check::DEFAULT,
                check_address: endpoint,
                has_started: true,
                is_presumed: false,
                health: Health::Unknown,
                last_error: None,
                fell_at_ms: None,
                faltered_at_ms: None,
                held: Some(state.serving()),
                held_local: state.is_local(),
                held_share: (state.serving() == Serving::None)
                    .then(|| state.share().unwrap_or(Share::ALL)),
                held_start: None,
                drained: None,
                terms: memory
                    .drain(held.identity)
                    .map_or(service.terms, |(_, terms)| terms),
                hastened: None,
                closing: state.all_closed_since().map(Closing::found),
                died: None,
                spared: None,
                closed: state.share(),
                on_down: OnDown::Reset,
                standing: Standing {
                    start: Start::known(match state.serving() {
                        Serving::New => true,
                        // It was drained; else it was full, ejected or not needed, or its checks said no, and say so again.
                        Serving::ExistingOnly => memory.drain(held.identity).is_none(),
                        Serving::None => false,
                    }),
                    ..Standing::default()
                },
                sent: outlier::Memory::default(),
                quiet: Quiet::default(),
                serving: state.serving(),
                per_mille: 0,
            });
        }
        registry.index();
        registry
    }
}
