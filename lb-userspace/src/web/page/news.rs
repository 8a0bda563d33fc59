//! What the page is told.

use std::net::SocketAddr;

use lb_common::backend::{Mode, Serving};
use serde::Serialize;

use super::Web;
use crate::{
    flows::Fill,
    history::{Event, drains::Drain, rates::Total},
    inventory,
    model::{Admin, Health},
    status::{Attachment, ClosedEgress, Detached, Neighbour, ServiceStatus},
    wall_clock::since_1970,
};

/// Changes that the page shows.
const EVENTS: usize = 40;

/// Everything but backends one by one.
#[derive(Debug, Serialize)]
pub(super) struct Now<'s> {
    /// In seconds since 1970.
    at: u64,
    /// Whether the rates are a new sample; else they are the last of the past.
    fresh: bool,
    version: &'s str,
    uptime_s: u64,
    generation: u64,
    config: Config<'s>,
    /// Whether all backends are drained together, by command.
    evacuated: bool,
    attachments: &'s [Attachment],
    detached: &'s [Detached],
    closed_egress: &'s [ClosedEgress],
    tables: Vec<Table>,
    rates: Total,
    services: Vec<Service<'s>>,
    drains: Vec<Drain>,
    events: Vec<Event>,
}

#[derive(Debug, Serialize)]
struct Config<'s> {
    error: Option<&'s str>,
}

#[derive(Debug, Serialize)]
struct Table {
    version: u32,
    capacity: u64,
    used: f64,
    fill: Fill,
}

#[derive(Debug, Serialize)]
struct Service<'s> {
    name: &'s str,
    endpoint: SocketAddr,
    mode: Mode,
    state: State,
    backends: Backends,
    live: u64,
    packets: f64,
}

/// The worst that there is to say of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// Not served as configured.
    Error,
    /// Too few backends are usable.
    FailOpen,
    /// Every usable backend has as many connections as it may.
    Full,
    /// Nothing takes new flows.
    NoBackend,
    /// Some backends are not well.
    Degraded,
    /// There only for the flows it has.
    Removed,
    Ok,
}

impl State {
    fn of(service: &ServiceStatus) -> Self {
        let mut wanted = service
            .backends
            .iter()
            .filter(|backend| !backend.removed && backend.admin == Admin::Active);
        if service.error.is_some() {
            Self::Error
        } else if service.removed {
            Self::Removed
        } else if service.fail_open {
            Self::FailOpen
        } else if service.full {
            Self::Full
        } else if !service
            .backends
            .iter()
            .any(|backend| backend.serving == Serving::New)
        {
            Self::NoBackend
        } else if wanted.any(|backend| {
            backend.health != Health::Up || backend.neighbour == Neighbour::Unresolved
        }) {
            Self::Degraded
        } else {
            Self::Ok
        }
    }
}

/// How many, by what they are given.
#[derive(Debug, Default, Serialize)]
struct Backends {
    new: u64,
    existing: u64,
    none: u64,
}

/// Everything, as it is now.
pub(super) fn now(web: &Web, fresh: bool) -> serde_json::Value {
    let status = web.status.borrow().clone();
    let rates = web.history.rates();
    let packets = rates.services.into_iter().chain(std::iter::repeat(0.0));
    let now = Now {
        at: since_1970(),
        fresh,
        version: &status.version,
        uptime_s: status.uptime_s,
        generation: status.generation.applied,
        config: Config {
            error: status.config.error.as_deref(),
        },
        evacuated: status.evacuated,
        attachments: &status.attachments,
        detached: &status.detached,
        closed_egress: &status.closed_egress,
        tables: status
            .flows
            .tables
            .each()
            .map(|(version, table)| Table {
                version: version as u32,
                capacity: table.capacity,
                used: table.used,
                fill: table.fill,
            })
            .into(),
        rates: Total {
            live: status.flows.live(),
            ..rates.total
        },
        services: status
            .services
            .iter()
            .zip(packets)
            .map(|(service, packets)| row(service, packets))
            .collect(),
        drains: web.history.drains(&status),
        events: web.history.events(EVENTS),
    };
    serde_json::to_value(&now).unwrap_or_default()
}

fn row(service: &ServiceStatus, packets: f64) -> Service<'_> {
    let mut backends = Backends::default();
    let mut live = 0;
    for backend in &service.backends {
        match backend.serving {
            Serving::New => backends.new += 1,
            Serving::ExistingOnly => backends.existing += 1,
            Serving::None => backends.none += 1,
        }
        live += backend.flows.live();
    }
    Service {
        name: &service.name,
        endpoint: SocketAddr::new(service.vip, service.port),
        mode: service.mode,
        state: State::of(service),
        backends,
        live,
        packets,
    }
}

/// Rates of the last minutes.
#[derive(Debug, Serialize)]
pub(super) struct Past {
    total: Vec<Total>,
    services: Vec<ServicePast>,
}

#[derive(Debug, Serialize)]
struct ServicePast {
    /// As the page makes it of a service.
    key: String,
    packets: Vec<f64>,
}

pub(super) fn past(web: &Web) -> Past {
    let status = web.status.borrow().clone();
    let past = web.history.past();
    Past {
        total: past.total,
        services: status
            .services
            .iter()
            .zip(past.services)
            .map(|(service, packets)| ServicePast {
                key: format!(
                    "{} {}",
                    service.name,
                    SocketAddr::new(service.vip, service.port)
                ),
                packets,
            })
            .collect(),
    }
}

/// Backends of some services.
#[derive(Debug, Serialize)]
pub(super) struct Opened {
    /// Of a steady clock.
    at_ms: u64,
    backends: Vec<Backend>,
}

#[derive(Debug, Serialize)]
struct Backend {
    service: String,
    endpoint: SocketAddr,
    name: String,
    address: SocketAddr,
    admin: Admin,
    removed: bool,
    health: Health,
    serving: Serving,
    resolved: bool,
    weight: u16,
    active: u64,
    idle: u64,
    packets: u64,
    /// Of the last check, while it lasts; else why it is ejected.
    error: Option<String>,
}

pub(super) fn backends(web: &Web, open: &[String]) -> Opened {
    let status = web.status.borrow().clone();
    let rows = inventory::backends(&web.maps, &status, |service| open.contains(&service.name));
    let backend = |row: inventory::BackendRow| Backend {
        service: row.service,
        endpoint: row.endpoint,
        address: SocketAddr::new(row.backend.address, row.backend.port),
        admin: row.backend.admin,
        removed: row.backend.removed,
        health: row.backend.health,
        serving: row.backend.serving,
        resolved: row.backend.neighbour != Neighbour::Unresolved,
        weight: row.backend.weight,
        active: row.backend.flows.active,
        idle: row.backend.flows.idle,
        packets: row.traffic.packets,
        error: row
            .backend
            .last_error
            .filter(|_| row.backend.last_error_ended.is_none())
            .or_else(|| {
                let ejected = row.backend.balance.ejected?;
                Some(format!("ejected: {}", ejected.reason))
            }),
        name: row.backend.name,
    };
    Opened {
        at_ms: crate::dataplane::maps::now_ns() / 1_000_000,
        backends: rows.into_iter().map(backend).collect(),
    }
}
