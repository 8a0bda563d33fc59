//! How far drains have come.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use serde::Serialize;

use crate::{
    model::Admin,
    status::{BackendStatus, ServiceStatus, Status},
};

/// A backend that is drained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drain {
    /// Its service.
    pub service: String,
    /// Its name.
    pub backend: String,
    /// Its address and port.
    pub address: SocketAddr,
    /// Whether it left the configuration, and will be forgotten at the end.
    pub removed: bool,
    /// Since when, in seconds since 1970: as far as this daemon knows.
    pub since: u64,
    /// The most flows that it has had since.
    pub most: u64,
    /// Flows that are left: young and pinned ones.
    pub left: u64,
    /// Of these, those seen within ten minutes.
    pub active: u64,
}

type Key = (String, IpAddr, u16, String, SocketAddr);

/// What draining backends had when they began.
#[derive(Debug, Default)]
pub struct Drains(HashMap<Key, Began>);

#[derive(Clone, Copy, Debug)]
struct Began {
    since: u64,
    most: u64,
}

impl Drains {
    /// Takes in a status.
    pub fn heard(&mut self, status: &Status, now: u64) {
        let mut before = std::mem::take(&mut self.0);
        for (service, backend) in draining(status) {
            let key = key(service, backend);
            let began = before.remove(&key).unwrap_or(Began {
                since: now,
                most: 0,
            });
            let most = began.most.max(backend.flows.live());
            self.0.insert(key, Began { most, ..began });
        }
    }

    /// Those of a status that was heard of.
    pub fn of(&self, status: &Status) -> Vec<Drain> {
        let drain = |(service, backend): (&ServiceStatus, &BackendStatus)| {
            let began = self.0.get(&key(service, backend))?;
            Some(Drain {
                service: service.name.clone(),
                backend: backend.name.clone(),
                address: SocketAddr::new(backend.address, backend.port),
                removed: backend.removed,
                since: began.since,
                most: began.most.max(backend.flows.live()),
                left: backend.flows.live(),
                active: backend.flows.active,
            })
        };
        draining(status).filter_map(drain).collect()
    }
}

fn draining(status: &Status) -> impl Iterator<Item = (&ServiceStatus, &BackendStatus)> {
    status
        .services
        .iter()
        .flat_map(|service| {
            service
                .backends
                .iter()
                .map(move |backend| (service, backend))
        })
        .filter(|(_, backend)| backend.removed || backend.admin == Admin::Draining)
}

fn key(service: &ServiceStatus, backend: &BackendStatus) -> Key {
    (
        service.name.clone(),
        service.vip,
        service.port,
        backend.name.clone(),
        SocketAddr::new(backend.address, backend.port),
    )
}
