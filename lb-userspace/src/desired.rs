//! What is wanted: the configuration joined with what was asked for at runtime.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use lb_common::backend::Mode;

use crate::{
    config::Config,
    ids,
    model::{Admin, BackendName, Check},
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
    /// Its mode: that of its backends.
    pub mode: Mode,
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
    /// How it is checked.
    pub check: Check,
    /// Where the check goes.
    pub check_address: SocketAddr,
}

/// Joins a configuration with the drains that were asked for at runtime: the stricter wish counts.
pub fn services(config: &Config, drained: &BTreeSet<BackendName>) -> Vec<Service> {
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
            mode: service.mode,
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
                            Admin::Active if drained.contains(&name) => Admin::Draining,
                            admin => admin,
                        },
                        name,
                        address: backend.address,
                        port: backend.port,
                        weight: backend.weight,
                        check: backend.check.clone(),
                        check_address: backend.check_address,
                    }
                })
                .collect(),
        })
        .collect()
}
