//! What is wanted: the configuration joined with what was asked for at runtime.

mod changes;
mod named;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::backend::Mode;

pub use self::{
    changes::{Change, Changes, Edit, Overlaid, Refusal},
    named::{Expanded, expand, may_be_answered, may_return},
};
use crate::{
    balance::{Part, Policy},
    config::{self, Affinity, Config},
    guard::Guard,
    ids,
    model::{Admin, Asked, BackendName, Check, Drains, OnDown},
    pace::Terms,
};

/// Where a service is reached: what it is, for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Its VIP.
    pub vip: IpAddr,
    /// Its port.
    pub port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        SocketAddr::new(self.vip, self.port).fmt(f)
    }
}

/// A service that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub endpoint: Endpoint,
    /// Slots of its table.
    pub table_size: u32,
    /// With fewer usable backends than this it fails open.
    pub min_healthy: u32,
    /// How it places clients; none: it places each flow for itself.
    pub affinity: Option<Affinity>,
    /// How new flows are spread.
    pub policy: Policy,
    /// Whom it takes new flows from, and how many of one source; none: of all, and as many as come.
    pub guard: Option<Guard>,
    /// Its mode: that of its backends.
    pub mode: Mode,
    /// How drains of its backends end.
    pub terms: Terms,
    /// What becomes of the flows of its dead backends.
    pub on_down: OnDown,
    /// Over which time clients of its dead backends are told.
    pub reset_over: Duration,
    /// Mode `nat`: the addresses that its backends see in the place of clients'.
    pub snat: Vec<IpAddr>,
    /// Its backends.
    pub backends: Vec<Backend>,
}

/// A backend that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its identity, as [`ids::backend_identity`] gives it.
    pub identity: u64,
    /// Its name.
    pub name: BackendName,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its share of new flows.
    pub weight: u16,
    /// What the operator wants of it, all told.
    pub admin: Admin,
    /// How its drain ends, should it be drained.
    pub terms: Terms,
    /// Its part in the balance.
    pub part: Part,
    /// The zone that it is in.
    pub zone: Option<String>,
    /// How it is checked.
    pub check: Check,
    /// Where the check goes.
    pub check_address: SocketAddr,
}

/// A backend of a configuration, by name.
pub fn find<'c>(config: &'c Config, name: &BackendName) -> Option<&'c config::Backend> {
    config
        .services
        .iter()
        .filter(|service| service.name == name.service)
        .flat_map(|service| &service.backends)
        .find(|backend| backend.name == name.backend)
}

/// Joins a configuration with the drains that were asked for at runtime: the stricter wish counts.
pub fn services(config: &Config, drains: &Drains) -> Vec<Service> {
    config
        .services
        .iter()
        .map(|service| Service {
            name: service.name.clone(),
            endpoint: Endpoint {
                vip: service.vip,
                port: service.port,
            },
            table_size: service.table_size,
            min_healthy: service.min_healthy,
            affinity: service.affinity.clone(),
            policy: service.policy,
            guard: service.guard.clone(),
            mode: service.mode,
            terms: terms(service, None),
            on_down: service.on_down,
            reset_over: service.reset_over,
            snat: service.snat.clone(),
            backends: service
                .backends
                .iter()
                .map(|backend| {
                    let name = BackendName {
                        service: service.name.clone(),
                        backend: backend.name.clone(),
                    };
                    Backend {
                        identity: ids::backend_identity(
                            (&service.name, service.vip, service.port),
                            &backend.name,
                            backend.address,
                            backend.port,
                            service.mode,
                        ),
                        admin: match backend.admin {
                            Admin::Active if drains.hold(&name) => Admin::Draining,
                            admin => admin,
                        },
                        terms: terms(service, drains.asked(&name)),
                        name,
                        address: backend.address,
                        port: backend.port,
                        weight: backend.weight,
                        part: backend.part,
                        zone: backend.zone.clone(),
                        check: backend.check.clone(),
                        check_address: backend.check_address,
                    }
                })
                .collect(),
        })
        .collect()
}

/// How a drain ends: as it was asked for, else as the service says.
fn terms(service: &config::Service, asked: Option<Asked>) -> Terms {
    match asked {
        Some(asked) => Terms {
            deadline: Some(asked.deadline),
            close_over: asked.close_over.unwrap_or(service.close_over),
            since: asked.since,
        },
        None => Terms {
            deadline: service.drain_deadline,
            close_over: service.close_over,
            since: None,
        },
    }
}
