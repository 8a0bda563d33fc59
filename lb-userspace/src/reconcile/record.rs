//! What is known of one service and of one backend.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use lb_common::backend::{Mode, Serving};

use super::translations::Translations;
use crate::{
    desired::{self, Endpoint},
    ids::{Numbered, Quiet},
    model::{BackendName, Check, Health, HealthReport, LastError, Suspension},
    resolve::{BackendFacts, Found, Hop, WantedBackend, WantedService},
};

/// A service that is known.
#[derive(Clone, Debug)]
pub(super) struct ServiceRecord {
    pub(super) id: u16,
    pub(super) name: String,
    pub(super) endpoint: Endpoint,
    pub(super) mode: Mode,
    /// None if it is removed.
    pub(super) wanted: Option<WantedService>,
    /// Wanted ones in the order of the configuration, then removed ones.
    pub(super) backends: Vec<BackendRecord>,
    /// Removed and without flows: packets no longer find it.
    pub(super) unlisted: bool,
    pub(super) quiet: Quiet,
    /// Why some of its backends have no id.
    pub(super) error: Option<String>,
    /// As last resolved.
    pub(super) fail_open: bool,
    /// As last resolved.
    pub(super) resets_suspended: Option<Suspension>,
}

/// A backend that is known.
#[derive(Clone, Debug)]
pub(super) struct BackendRecord {
    pub(super) numbered: Numbered,
    pub(super) identity: u64,
    pub(super) name: BackendName,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) mode: Mode,
    /// Mode `nat`: the addresses that it sees in the place of clients'. Those of its service when it was wanted last.
    pub(super) snat: Vec<IpAddr>,
    pub(super) weight: u16,
    /// None if it is removed.
    pub(super) wanted: Option<WantedBackend>,
    pub(super) check: Check,
    pub(super) check_address: SocketAddr,
    pub(super) health: Health,
    pub(super) last_error: Option<LastError>,
    pub(super) fell_at_ms: Option<u64>,
    pub(super) held: Option<Serving>,
    pub(super) quiet: Quiet,
    /// As last resolved.
    pub(super) serving: Serving,
}

impl BackendRecord {
    /// Takes in a verdict. False if it is no news.
    pub(super) fn heard(&mut self, report: &HealthReport, now_ms: u64) -> bool {
        let error_is_news = self.last_error != report.last_error;
        self.last_error.clone_from(&report.last_error);
        if report.health == Health::Unknown || report.health == self.health {
            return error_is_news;
        }
        let lived = match self.health {
            Health::Up | Health::Refusing => true,
            // Found in the maps: dead already, or thought alive by the daemon before.
            Health::Unknown => self.held.is_some_and(|held| held != Serving::None),
            Health::Down => false,
        };
        self.fell_at_ms = (report.health == Health::Down && lived).then_some(now_ms);
        tracing::info!(
            backend = %self.name, address = %self.check_address, health = %report.health,
            was = %self.health, error = report.last_error.as_ref().map(|last| last.text.as_str()), "health changed"
        );
        self.health = report.health;
        true
    }

    /// Where its packets go.
    pub(super) fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Whether addresses are translated on the way to it.
    pub(super) fn is_translated(&self) -> bool {
        matches!(self.mode, Mode::Nat | Mode::Dnat)
    }

    pub(super) fn facts(
        &self,
        service: u16,
        hops: &HashMap<IpAddr, Found>,
        translations: &Translations,
    ) -> BackendFacts<'_> {
        BackendFacts {
            numbered: self.numbered,
            identity: self.identity,
            name: &self.name.backend,
            address: self.address,
            port: self.port,
            mode: self.mode,
            wanted: self.wanted,
            health: self.health,
            fell_at_ms: self.fell_at_ms,
            held: self.held,
            hop: hops
                .get(&self.address)
                .map_or(Hop::Unheard, |found| found.for_mode(self.mode)),
            translated: self.is_translated().then(|| translations.of(service, self)),
        }
    }
}

/// A record of a wanted backend that is new.
pub(super) fn new_record(
    numbered: Numbered,
    service: &desired::Service,
    backend: &desired::Backend,
) -> BackendRecord {
    let record = BackendRecord {
        numbered,
        identity: backend.identity,
        name: backend.name.clone(),
        address: backend.address,
        port: backend.port,
        mode: service.mode,
        snat: Vec::new(),
        weight: backend.weight,
        wanted: None,
        check: backend.check.clone(),
        check_address: backend.check_address,
        health: Health::Unknown,
        last_error: None,
        fell_at_ms: None,
        held: None,
        quiet: Quiet::default(),
        serving: Serving::ExistingOnly,
    };
    renewed(record, service, backend)
}

/// A record with what may change of a wanted backend. Its health stays until its check, which may be another now, says otherwise.
pub(super) fn renewed(
    record: BackendRecord,
    service: &desired::Service,
    backend: &desired::Backend,
) -> BackendRecord {
    BackendRecord {
        snat: service.snat.clone(),
        name: backend.name.clone(),
        weight: backend.weight,
        wanted: Some(WantedBackend {
            admin: backend.admin,
            weight: backend.weight,
            initial: backend.check.initial,
        }),
        check: backend.check.clone(),
        check_address: backend.check_address,
        ..record
    }
}
