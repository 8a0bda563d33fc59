//! Services and backends.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    net::SocketAddr,
};

use lb_common::{backend::Serving, counters::Counter, nat::PORTS_OF_PAIR, repeats::Repeats};
use prometheus_client::encoding::DescriptorEncoder;

use super::{
    Metrics, balance,
    flows::states,
    write::{Family, Labels, Value},
};
use crate::{
    flows::Churn,
    ids::service_identity,
    inventory::Ids,
    model::{Admin, Health},
    status::{BackendFlows, BackendStatus, Neighbour, ServiceStatus, SnatStatus},
    words::word,
};

/// A service with its labels, and its id if it has one.
pub(super) type Listed<'a> = (Labels, &'a ServiceStatus, Option<u16>);

pub(super) fn services(
    metrics: &Metrics,
    ids: &Ids,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let layout = metrics.maps.capacity.counters();
    let services: Vec<Listed<'_>> = metrics
        .status
        .services
        .iter()
        .map(|service| {
            // Removed services may share their name with another, but not their address.
            let endpoint = SocketAddr::new(service.vip, service.port).to_string();
            let labels = Labels::new(&[("service", &service.name)], ("vip", &endpoint));
            (labels, service, ids.service(service))
        })
        .collect();
    let counter = |id: &Option<u16>| id.map(|id| metrics.maps.counter(layout.service(id)));
    let traffic = services
        .iter()
        .filter_map(|(labels, _, id)| Some((labels, counter(id)?)))
        .collect::<Vec<_>>();
    packets_and_bytes(
        encoder,
        [
            ("service_packets", "Packets to a service"),
            ("service_bytes", "Bytes to a service"),
        ],
        &traffic,
    )?;
    let churn_of = |service: &ServiceStatus| {
        let identity = service_identity(service.vip, service.port);
        let churn = metrics.census.churn.get(&identity).copied();
        churn.unwrap_or_default()
    };
    churn(
        encoder,
        ["service_flows_established", "service_flow_ends"],
        services
            .iter()
            .map(|(labels, service, _)| (labels, churn_of(service))),
    )?;
    let mut fail_open = Family::gauge(
        encoder,
        "service_fail_open",
        "Whether too few backends are usable, so that all active ones take new flows",
    )?;
    for (labels, service, _) in &services {
        fail_open.add(labels, service.fail_open)?;
    }
    let mut begun = Family::counter(
        encoder,
        "service_fail_open_flows",
        "Flows that began while too few backends were usable, since the daemon started",
    )?;
    for (labels, service, _) in &services {
        begun.add(labels, service.fail_open_flows)?;
    }
    let mut clients = Family::gauge(
        encoder,
        "service_clients",
        "Clients that keep a backend, of a service that places clients",
    )?;
    for (labels, service, _) in &services {
        if let Some(known) = service.clients {
            clients.add(labels, known)?;
        }
    }
    let mut suspended = Family::gauge(
        encoder,
        "service_resets_suspended",
        "Whether clients of dead backends are not told; `tether status` says why",
    )?;
    for (labels, service, _) in &services {
        suspended.add(labels, service.resets_suspended.is_some())?;
    }
    let mut error = Family::gauge(
        encoder,
        "service_unserved",
        "Whether a service is not served as configured; `tether status` says why",
    )?;
    for (labels, service, _) in &services {
        error.add(labels, service.error.is_some())?;
    }
    let mut removed = Family::gauge(
        encoder,
        "service_removed",
        "Whether a service is no longer configured, and there for the flows it has",
    )?;
    for (labels, service, _) in &services {
        removed.add(labels, service.removed)?;
    }
    balance::services(&services, encoder)
}

/// Flows that began and that ended, under names of their own for services and for backends.
fn churn<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    [established, ends]: [&str; 2],
    all: impl Iterator<Item = (&'a Labels, Churn)> + Clone,
) -> fmt::Result {
    let mut begun = Family::counter(
        encoder,
        established,
        "Flows that the sweep met for the first time, their client having answered or they having been adopted",
    )?;
    for (labels, churn) in all.clone() {
        begun.add(labels, churn.established)?;
    }
    let mut ended = Family::counter(
        encoder,
        ends,
        "Flows of which the sweep found that they have ended, by how: fin and rst of their client, deadline of a drain, rehashed from a dead backend",
    )?;
    for (labels, churn) in all {
        let Churn {
            established: _,
            fin,
            rst,
            deadline,
            rehashed,
        } = churn;
        for (cause, number) in [
            ("fin", fin),
            ("rst", rst),
            ("deadline", deadline),
            ("rehashed", rehashed),
        ] {
            ended.add_with(labels, ("cause", cause), number)?;
        }
    }
    Ok(())
}

/// All backends, each once, and what is known of each, at the same place.
#[derive(Default)]
struct Gathered<'a> {
    backends: Vec<(Labels, &'a BackendStatus)>,
    flows: Vec<BackendFlows>,
    ports: Vec<Vec<SnatStatus>>,
    churn: Vec<Churn>,
    /// Of those that are in the maps, each with its place.
    counters: Vec<(usize, Counter)>,
    /// Of those whose services want to know, each with its place.
    repeats: Vec<(usize, Repeats)>,
}

impl<'a> Gathered<'a> {
    fn of(metrics: &'a Metrics, ids: &Ids) -> Self {
        let mut all = Self::default();
        for service in &metrics.status.services {
            let endpoint = SocketAddr::new(service.vip, service.port).to_string();
            let mut listed = HashMap::new();
            for backend in &service.backends {
                // It is listed already, as what it is since the service has another mode: no sample is told twice, and flows and ports of both are its.
                match listed.entry((&backend.name, backend.address, backend.port)) {
                    Entry::Occupied(entry) => {
                        let at: usize = *entry.get();
                        all.flows[at] = all.flows[at] + backend.flows;
                        let ports = &mut all.ports[at];
                        for snat in &backend.snat {
                            // Toward one address and port they are the same ports, whoever's they are.
                            if ports.iter().all(|known| known.address != snat.address) {
                                ports.push(*snat);
                            }
                        }
                        continue;
                    }
                    Entry::Vacant(entry) => entry.insert(all.backends.len()),
                };
                let labels = labels(&service.name, &endpoint, backend);
                all.add(metrics, ids.backend(service, backend), labels, backend);
            }
        }
        all
    }

    /// Adds one that is not listed yet, by its id if it has one.
    fn add(
        &mut self,
        metrics: &Metrics,
        id: Option<u32>,
        labels: Labels,
        backend: &'a BackendStatus,
    ) {
        let at = self.backends.len();
        let known = id.and_then(|id| {
            // Whoever had the id before is somebody else.
            let generation = metrics.maps.state(id).generation();
            metrics.census.backend_churn.get(&(id, generation)).copied()
        });
        if let Some(id) = id {
            let layout = metrics.maps.capacity.counters();
            let counter = metrics.maps.counter(layout.backend(id));
            self.counters.push((at, counter));
            if let (Some(measured), Some(_)) = (&metrics.maps.measured, backend.balance.repeats) {
                self.repeats.push((at, measured.counted(id)));
            }
        }
        self.flows.push(backend.flows);
        self.ports.push(backend.snat.clone());
        self.churn.push(known.unwrap_or_default());
        self.backends.push((labels, backend));
    }
}

pub(super) fn backends(
    metrics: &Metrics,
    ids: &Ids,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let Gathered {
        backends,
        flows: flows_of,
        ports: ports_of,
        churn: begun_and_ended,
        counters,
        repeats,
    } = Gathered::of(metrics, ids);
    let traffic = counters
        .into_iter()
        .map(|(at, counter)| (&backends[at].0, counter))
        .collect::<Vec<_>>();
    packets_and_bytes(
        encoder,
        [
            ("backend_packets", "Packets sent to a backend"),
            ("backend_bytes", "Bytes sent to a backend, as they came in"),
        ],
        &traffic,
    )?;
    let mut flows = Family::gauge(encoder, "backend_flows", "Flows of a backend, by state")?;
    for ((labels, _), of) in backends.iter().zip(&flows_of) {
        for (state, number) in states(of) {
            flows.add_with(labels, ("state", state), number)?;
        }
    }
    churn(
        encoder,
        ["backend_flows_established", "backend_flow_ends"],
        backends
            .iter()
            .map(|(labels, _)| labels)
            .zip(begun_and_ended.iter().copied()),
    )?;
    vocabulary(
        encoder,
        ("backend_health", "1 for what the checks say of a backend"),
        "health",
        &backends,
        &[Health::Unknown, Health::Up, Health::Refusing, Health::Down],
        |backend| backend.health,
    )?;
    vocabulary(
        encoder,
        ("backend_serving", "1 for what a backend is given"),
        "serving",
        &backends,
        &[Serving::New, Serving::ExistingOnly, Serving::None],
        |backend| backend.serving,
    )?;
    let mut draining = Family::gauge(
        encoder,
        "backend_draining",
        "Whether a backend is drained, or was removed, and keeps the flows it has",
    )?;
    for (labels, backend) in &backends {
        draining.add(labels, backend.removed || backend.admin == Admin::Draining)?;
    }
    let mut resolved = Family::gauge(
        encoder,
        "backend_resolved",
        "Whether a backend's next hop is known",
    )?;
    for (labels, backend) in &backends {
        resolved.add(labels, backend.neighbour != Neighbour::Unresolved)?;
    }
    let mut local = Family::gauge(
        encoder,
        "backend_local",
        "Whether a backend is on the load balancer's own host, and served by its stack",
    )?;
    for (labels, backend) in &backends {
        local.add(labels, backend.neighbour == Neighbour::Local)?;
    }
    let mut weight = Family::gauge(encoder, "backend_weight", "A backend's configured weight")?;
    for (labels, backend) in &backends {
        weight.add(labels, u64::from(backend.weight))?;
    }
    drains(&backends, encoder)?;
    ports(&backends, &ports_of, encoder)?;
    balance::backends(&backends, encoder)?;
    balance::repeats(&backends, &repeats, encoder)
}

fn ports(
    backends: &[(Labels, &BackendStatus)],
    ports_of: &[Vec<SnatStatus>],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let mut ports = Family::gauge(
        encoder,
        "snat_ports",
        "Ports of a SNAT address that are in use toward a backend's address and port, or rest after use",
    )?;
    for ((labels, _), of) in backends.iter().zip(ports_of) {
        for snat in of {
            let address = snat.address.to_string();
            ports.add_with(labels, ("snat_address", &address), u64::from(snat.ports))?;
        }
    }
    Family::gauge(
        encoder,
        "snat_ports_most",
        "Ports that a SNAT address has toward a backend's address and port",
    )?
    .of(u64::from(PORTS_OF_PAIR))
}

fn drains(
    backends: &[(Labels, &BackendStatus)],
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let ending = || {
        backends
            .iter()
            .filter_map(|(labels, backend)| Some((labels, backend.drain?)))
    };
    let mut deadline = Family::gauge(
        encoder,
        "backend_drain_deadline_seconds",
        "Time until a drained backend's flows begin to be closed, if its drain has a deadline",
    )?;
    for (labels, drain) in ending() {
        deadline.add(labels, drain.deadline_s)?;
    }
    let mut closed = Family::gauge(
        encoder,
        "backend_drain_closed_ratio",
        "The part of a drained backend's flows that is closed, each on its next packet, if its drain has a deadline",
    )?;
    for (labels, drain) in ending() {
        closed.add(labels, Value::Ratio(drain.closed))?;
    }
    Ok(())
}

/// Removed backends may share their name with another, but not their address as well, unless the service had another mode: see [`backends`].
fn labels(service: &str, endpoint: &str, backend: &BackendStatus) -> Labels {
    let address = SocketAddr::new(backend.address, backend.port).to_string();
    Labels::new(
        &[
            ("service", service),
            ("vip", endpoint),
            ("backend", &backend.name),
        ],
        ("address", &address),
    )
}

/// A sample for each word that could be said of a backend, 1 for the one that is.
fn vocabulary<T: serde::Serialize + PartialEq>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    label: &'static str,
    backends: &[(Labels, &BackendStatus)],
    all: &[T],
    said: impl Fn(&BackendStatus) -> T,
) -> fmt::Result {
    let words: Vec<String> = all.iter().map(word).collect();
    let mut family = Family::gauge(encoder, name, help)?;
    for (labels, backend) in backends {
        let said = said(backend);
        for (one, word) in all.iter().zip(&words) {
            family.add_with(labels, (label, word), *one == said)?;
        }
    }
    Ok(())
}

fn packets_and_bytes(
    encoder: &mut DescriptorEncoder<'_>,
    [packets, bytes]: [(&str, &str); 2],
    traffic: &[(&Labels, Counter)],
) -> fmt::Result {
    let mut family = Family::counter(encoder, packets.0, packets.1)?;
    for (labels, counter) in traffic {
        family.add(labels, Value::Integer(counter.packets))?;
    }
    let mut family = Family::counter(encoder, bytes.0, bytes.1)?;
    for (labels, counter) in traffic {
        family.add(labels, Value::Integer(counter.bytes))?;
    }
    Ok(())
}
