//! Services and backends with what they were sent.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    backend::{Mode, Serving},
    counters::Counter,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Ids;
use crate::{
    dataplane::maps::Maps,
    model::Suspension,
    status::{BackendFlows, BackendStatus, GuardStatus, ServiceStatus, Status, schema},
};

/// Packets and bytes since the maps were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, from the Ethernet header on, as they came in.
    pub bytes: u64,
}

impl From<Counter> for Traffic {
    fn from(counter: Counter) -> Self {
        Self {
            packets: counter.packets,
            bytes: counter.bytes,
        }
    }
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceRow {
    /// Its name.
    pub name: String,
    /// Its VIP.
    #[schema(value_type = String)]
    pub vip: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its mode.
    #[schema(schema_with = schema::mode)]
    pub mode: Mode,
    /// Whether it is no longer configured and is only there for the flows it has.
    pub removed: bool,
    /// Whether too few backends are usable, so that all active ones take new flows.
    pub fail_open: bool,
    /// Whether backends are usable, and all of them have as many connections as they may: new flows are dropped.
    #[serde(default)]
    pub full: bool,
    /// Why dead backends' clients are not told, if they are not.
    pub resets_suspended: Option<Suspension>,
    /// Whom it takes new flows from, and how many of one source, if that is limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardStatus>,
    /// Why it is not served as configured, if it is not.
    pub error: Option<String>,
    /// How many backends it has, by what they are given.
    pub backends: BackendsByServing,
    /// Its flows: those of its backends.
    pub flows: BackendFlows,
    /// What came for it.
    pub traffic: Traffic,
}

/// Backends, counted by what they are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackendsByServing {
    /// New flows too.
    pub new: u64,
    /// Only the flows they have.
    pub existing_only: u64,
    /// Nothing.
    pub none: u64,
}

/// A backend, and whose it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackendRow {
    /// Name of the service.
    pub service: String,
    /// VIP and port of the service.
    #[schema(value_type = String)]
    pub endpoint: SocketAddr,
    /// The backend, as the status has it.
    #[serde(flatten)]
    pub backend: BackendStatus,
    /// What it was sent.
    pub traffic: Traffic,
}

/// All services, in the status' order.
pub fn services(maps: &Maps, status: &Status) -> Vec<ServiceRow> {
    let ids = Ids::of(maps);
    let layout = maps.capacity.counters();
    let row = |service: &ServiceStatus| {
        let id = ids.service(service);
        let mut by_serving = BackendsByServing::default();
        let mut flows = BackendFlows::default();
        for backend in &service.backends {
            match backend.serving {
                Serving::New => by_serving.new += 1,
                Serving::ExistingOnly => by_serving.existing_only += 1,
                Serving::None => by_serving.none += 1,
            }
            flows = flows + backend.flows;
        }
        ServiceRow {
            name: service.name.clone(),
            vip: service.vip,
            port: service.port,
            mode: service.mode,
            removed: service.removed,
            fail_open: service.fail_open,
            full: service.full,
            resets_suspended: service.resets_suspended,
            guard: service.guard.clone(),
            error: service.error.clone(),
            backends: by_serving,
            flows,
            traffic: id
                .map(|id| maps.counter(layout.service(id)).into())
                .unwrap_or_default(),
        }
    };
    status.services.iter().map(row).collect()
}

/// The backends of those services that are wanted, in the status' order.
pub fn backends(
    maps: &Maps,
    status: &Status,
    wanted: impl Fn(&ServiceStatus) -> bool,
) -> Vec<BackendRow> {
    let ids = Ids::of(maps);
    let layout = maps.capacity.counters();
    let row = |service: &ServiceStatus, backend: &BackendStatus| BackendRow {
        service: service.name.clone(),
        endpoint: SocketAddr::new(service.vip, service.port),
        backend: backend.clone(),
        traffic: ids
            .backend(service, backend)
            .map(|id| maps.counter(layout.backend(id)).into())
            .unwrap_or_default(),
    };
    status
        .services
        .iter()
        .filter(|service| wanted(service))
        .flat_map(|service| service.backends.iter().map(|backend| row(service, backend)))
        .collect()
}
