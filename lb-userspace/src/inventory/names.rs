//! From what the maps hold to names, and back: by identity, since the status knows no ids.

use std::collections::HashMap;

use lb_common::flow::word::BackendRef;

use crate::{
    dataplane::maps::Maps,
    ids::service_identity,
    status::{BackendStatus, ServiceStatus, Status},
};

/// The ids that the maps have for what a status names.
#[derive(Debug)]
pub struct Ids {
    services: HashMap<u64, u32>,
    backends: HashMap<u64, u32>,
}

impl Ids {
    /// As the maps have them now.
    pub fn of(maps: &Maps) -> Self {
        // Entries that are not in use have identity 0.
        let services = (0..maps.capacity.services)
            .map(|id| (maps.services.get(id).identity, id))
            .filter(|(identity, _)| *identity != 0);
        Self {
            services: services.collect(),
            backends: maps.backend_ids().collect(),
        }
    }

    /// A service's id, if it has one.
    pub fn service(&self, service: &ServiceStatus) -> Option<u16> {
        let identity = service_identity(service.vip, service.port);
        u16::try_from(*self.services.get(&identity)?).ok()
    }

    /// A backend's id, if it has one.
    pub fn backend(&self, service: &ServiceStatus, backend: &BackendStatus) -> Option<u32> {
        self.backends.get(&backend.identity(service)).copied()
    }
}

/// Names by the ids that flows have.
#[derive(Debug)]
pub struct Names<'s> {
    services: HashMap<u16, &'s ServiceStatus>,
    backends: HashMap<u32, (u8, &'s ServiceStatus, &'s BackendStatus)>,
}

impl<'s> Names<'s> {
    /// Of what `status` knows.
    pub fn of(maps: &Maps, status: &'s Status) -> Self {
        let ids = Ids::of(maps);
        let mut names = Self {
            services: HashMap::new(),
            backends: HashMap::new(),
        };
        for service in &status.services {
            if let Some(id) = ids.service(service) {
                let held = names.services.entry(id).or_insert(service);
                // One that was renamed is listed under its old name too, as removed.
                if held.removed && !service.removed {
                    *held = service;
                }
            }
            for backend in &service.backends {
                if let Some(id) = ids.backend(service, backend) {
                    let generation = maps.state(id).generation();
                    names.backends.insert(id, (generation, service, backend));
                }
            }
        }
        names
    }

    /// The service of an id.
    pub fn service(&self, id: u16) -> Option<&'s ServiceStatus> {
        self.services.get(&id).copied()
    }

    /// The backend that an entry names, and the service it belongs to.
    pub fn backend(&self, backend: BackendRef) -> Option<(&'s ServiceStatus, &'s BackendStatus)> {
        let (generation, service, found) = self.backends.get(&backend.id())?;
        (*generation == backend.generation()).then_some((*service, *found))
    }
}
