//! Metrics, computed when they are asked for: counters from the maps, everything else from the status.

use std::{collections::HashMap, fmt, net::SocketAddr, sync::Arc};

use lb_common::{
    counters::Counter,
    net::IpVersion,
    verdict::{Reason, Verdict},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};
use serde::Serialize;

use crate::{
    dataplane::maps::Maps,
    flows::Census,
    ids::service_identity,
    model::Health,
    notice::Told,
    status::{BackendFlows, BackendStatus, Neighbour, ServiceStatus, Status},
};

/// The metrics of one moment.
#[derive(Debug)]
pub(super) struct Metrics {
    maps: Arc<Maps>,
    status: Arc<Status>,
    census: Arc<Census>,
    told: Arc<Told>,
}

impl Metrics {
    pub(super) fn new(
        maps: Arc<Maps>,
        status: Arc<Status>,
        census: Arc<Census>,
        told: Arc<Told>,
    ) -> Self {
        Self {
            maps,
            status,
            census,
            told,
        }
    }

    /// In the OpenMetrics text format.
    pub(super) fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("tether");
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(out)
    }
}

/// Labels of one sample.
type Labels = Vec<(&'static str, String)>;

/// One metric: its samples, collected before they are written, since a metric's samples stand together.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    samples: Vec<(Labels, Value)>,
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

#[derive(Clone, Copy)]
enum Value {
    Integer(u64),
    Ratio(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Integer(value.into())
    }
}

impl Family {
    fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, Kind::Counter)
    }

    fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(name, help, Kind::Gauge)
    }

    fn new(name: &'static str, help: &'static str, kind: Kind) -> Self {
        Self {
            name,
            help,
            kind,
            samples: vec![],
        }
    }

    fn add(&mut self, labels: Labels, value: impl Into<Value>) {
        self.samples.push((labels, value.into()));
    }

    /// With one sample and no labels.
    fn of(mut self, value: impl Into<Value>) -> Self {
        self.add(vec![], value);
        self
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        };
        let mut family = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        for (labels, value) in &self.samples {
            if labels.is_empty() {
                self.encode_value(&mut family, *value)?;
            } else {
                self.encode_value(&mut family.encode_family(labels)?, *value)?;
            }
        }
        Ok(())
    }

    fn encode_value(&self, metric: &mut MetricEncoder<'_>, value: Value) -> fmt::Result {
        match (self.kind, value) {
            (Kind::Counter, Value::Integer(value)) => {
                metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
            }
            (Kind::Counter, Value::Ratio(value)) => {
                metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
            }
            (Kind::Gauge, Value::Integer(value)) => metric.encode_gauge(&value),
            (Kind::Gauge, Value::Ratio(value)) => metric.encode_gauge(&value),
        }
    }
}

/// Packets and bytes of the same things.
struct Traffic {
    packets: Family,
    bytes: Family,
}

impl Traffic {
    fn add(&mut self, labels: Labels, counter: Counter) {
        self.packets.add(labels.clone(), counter.packets);
        self.bytes.add(labels, counter.bytes);
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        self.packets.encode(encoder)?;
        self.bytes.encode(encoder)
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.instance(encoder)?;
        self.reasons(encoder)?;
        self.notices(encoder)?;
        self.flow_table(encoder)?;
        self.services(encoder)?;
        self.backends(encoder)
    }
}

impl Metrics {
    fn instance(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let status = &self.status;
        let mut build = Family::gauge("build", "The daemon's version; always 1");
        build.add(vec![("version", status.version.clone())], 1);
        let uptime = Family::gauge("uptime_seconds", "Time since the daemon started");
        let mut generation = Family::gauge("generation", "How far the latest change has come");
        for (stage, number) in [
            ("accepted", status.generation.accepted),
            ("resolved", status.generation.resolved),
            ("applied", status.generation.applied),
        ] {
            generation.add(vec![("stage", stage.into())], number);
        }
        let refused = Family::gauge(
            "config_refused",
            "Whether the latest reload was refused, so that an older configuration is in force",
        );
        let evacuated = Family::gauge(
            "evacuated",
            "Whether all backends are drained together, by `tether drain --all`",
        );
        let mut attached = Family::gauge("attached", "The XDP program's interfaces; always 1");
        for attachment in &status.attachments {
            let labels = vec![
                ("interface", attachment.interface.clone()),
                ("mode", word(&attachment.mode)),
            ];
            attached.add(labels, 1);
        }
        let mut closed = Family::gauge(
            "egress_closed",
            "Interfaces on the way to backends that take no frames from XDP programs on others; always 1",
        );
        for egress in &status.closed_egress {
            closed.add(vec![("interface", egress.interface.clone())], 1);
        }
        let differences = Family::gauge(
            "config_differences",
            "Backends that were changed or drained at runtime and are otherwise in the file",
        );
        let mut addresses = Family::gauge(
            "dns_addresses",
            "Addresses in force of a name that backends come from",
        );
        let mut failing = Family::gauge(
            "dns_failing",
            "Whether a name does not resolve, or its answer cannot be taken, so that older addresses stay in force",
        );
        let mut failures = Family::counter(
            "dns_failures",
            "Questions for a name that brought no answer which could be taken",
        );
        for source in &status.dns {
            let labels = || {
                vec![
                    ("service", source.service.clone()),
                    ("source", source.source.clone()),
                ]
            };
            addresses.add(labels(), source.addresses.len() as u64);
            failing.add(labels(), source.error.is_some());
            failures.add(labels(), source.failures);
        }
        for family in [
            build,
            addresses,
            failing,
            failures,
            uptime.of(status.uptime_s),
            generation,
            refused.of(status.config.error.is_some()),
            differences.of(status.config.differences.len() as u64),
            evacuated.of(status.evacuated),
            attached,
            closed,
        ] {
            family.encode(encoder)?;
        }
        Ok(())
    }

    fn reasons(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut traffic = Traffic {
            packets: Family::counter(
                "reason_packets",
                "Packets by what was done with them, and why",
            ),
            bytes: Family::counter("reason_bytes", "Bytes by what was done with them, and why"),
        };
        let layout = self.maps.capacity.counters();
        for reason in Reason::ALL {
            let verdict = match reason.verdict() {
                Verdict::Pass => "pass",
                Verdict::Forward => "forward",
                Verdict::Reset => "reset",
                Verdict::Answer => "answer",
                Verdict::Drop => "drop",
            };
            let labels = vec![
                ("reason", reason.name().into()),
                ("verdict", verdict.into()),
            ];
            traffic.add(labels, self.maps.counter(layout.reason(*reason)));
        }
        traffic.encode(encoder)
    }

    fn notices(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut notices = Family::counter(
            "closed_flow_notices",
            "Flows closed at a drain's deadline, by whether their backends were told: told, failed, or lost for want of room",
        );
        let cpus = &self.maps.cpus;
        let lost = (0..cpus.len()).map(|cpu| cpus.get(cpu).notices_lost).sum();
        for (outcome, number) in [
            ("told", self.told.told()),
            ("failed", self.told.failed()),
            ("lost", lost),
        ] {
            notices.add(vec![("outcome", outcome.into())], number);
        }
        notices.encode(encoder)
    }

    fn flow_table(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut by_state = Family::gauge(
            "flows",
            "Entries of the flow tables, by state and version of IP",
        );
        for (version, table) in self.census.tables.each() {
            for (state, number) in states(&table.counts.into()) {
                by_state.add(with(of_version(version), "state", state.into()), number);
            }
        }
        by_state.encode(encoder)?;
        let swept = &self.census.swept;
        let mut changed = Family::counter(
            "swept_entries",
            "Entries of the flow tables that the daemon's sweep changed, by why",
        );
        for (why, number) in [
            ("expired", swept.expired),
            ("ended", swept.ended),
            ("reclaimed", swept.reclaimed),
            ("closed", swept.closed),
            ("duplicate", swept.duplicates),
            ("invalid", swept.invalid),
            ("marked", swept.marked),
            ("clamped", swept.clamped),
        ] {
            changed.add(vec![("why", why.into())], number);
        }
        changed.encode(encoder)?;
        let mut capacity = Family::gauge(
            "flow_capacity",
            "Entries that the flow table of a version of IP has room for",
        );
        let mut used = Family::gauge(
            "flow_use_ratio",
            "Entries in use, as a fraction of the table's capacity",
        );
        let mut fill = Family::gauge(
            "flow_fill_level",
            "How full a flow table is, without embryos: 1 from 50%, 2 from 70% on; then raise `flows` (IPv4) or `flows6` in [limits] and restart the \
             daemon",
        );
        for (version, table) in self.status.flows.tables.each() {
            capacity.add(of_version(version), table.capacity);
            used.add(of_version(version), Value::Ratio(table.used));
            fill.add(of_version(version), table.fill.level());
        }
        for family in [capacity, used, fill] {
            family.encode(encoder)?;
        }
        Ok(())
    }

    fn services(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let layout = self.maps.capacity.counters();
        let ids = ids(self.maps.capacity.services, |id| {
            self.maps.services.get(id).identity
        });
        let mut traffic = Traffic {
            packets: Family::counter("service_packets", "Packets to a service"),
            bytes: Family::counter("service_bytes", "Bytes to a service"),
        };
        let mut fail_open = Family::gauge(
            "service_fail_open",
            "Whether too few backends are usable, so that all active ones take new flows",
        );
        let mut suspended = Family::gauge(
            "service_resets_suspended",
            "Whether clients of dead backends are not told; `tether status` says why",
        );
        for service in &self.status.services {
            let identity = service_identity(service.vip, service.port);
            if let Some(id) = ids.get(&identity).and_then(|id| u16::try_from(*id).ok()) {
                traffic.add(
                    service_labels(service),
                    self.maps.counter(layout.service(id)),
                );
            }
            fail_open.add(service_labels(service), service.fail_open);
            suspended.add(service_labels(service), service.resets_suspended.is_some());
        }
        traffic.encode(encoder)?;
        fail_open.encode(encoder)?;
        suspended.encode(encoder)
    }

    fn backends(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let layout = self.maps.capacity.counters();
        let ids: HashMap<u64, u32> = self.maps.backend_ids().collect();
        let mut traffic = Traffic {
            packets: Family::counter("backend_packets", "Packets sent to a backend"),
            bytes: Family::counter("backend_bytes", "Bytes sent to a backend, as they came in"),
        };
        let mut flows = Family::gauge("backend_flows", "Flows of a backend, by state");
        let mut health = Family::gauge("backend_health", "1 for what the checks say of a backend");
        let mut serving = Family::gauge("backend_serving", "1 for what a backend is given");
        let mut resolved =
            Family::gauge("backend_resolved", "Whether a backend's next hop is known");
        let mut weight = Family::gauge("backend_weight", "A backend's configured weight");
        let mut deadline = Family::gauge(
            "backend_drain_deadline_seconds",
            "Time until a drained backend's flows begin to be closed, if its drain has a deadline",
        );
        let mut closed = Family::gauge(
            "backend_drain_closed_ratio",
            "The part of a drained backend's flows that is closed, each on its next packet, if its drain has a deadline",
        );
        for service in &self.status.services {
            for backend in &service.backends {
                let labels = || backend_labels(service, backend);
                if let Some(id) = ids.get(&backend.identity(service)) {
                    traffic.add(labels(), self.maps.counter(layout.backend(*id)));
                }
                for (state, number) in states(&backend.flows) {
                    flows.add(with(labels(), "state", state.into()), number);
                }
                for verdict in [Health::Unknown, Health::Up, Health::Refusing, Health::Down] {
                    health.add(
                        with(labels(), "health", word(&verdict)),
                        verdict == backend.health,
                    );
                }
                use lb_common::backend::Serving;
                for given in [Serving::New, Serving::ExistingOnly, Serving::None] {
                    serving.add(
                        with(labels(), "serving", word(&given)),
                        given == backend.serving,
                    );
                }
                resolved.add(labels(), backend.neighbour == Neighbour::Resolved);
                weight.add(labels(), u64::from(backend.weight));
                if let Some(drain) = &backend.drain {
                    deadline.add(labels(), drain.deadline_s);
                    closed.add(labels(), Value::Ratio(drain.closed));
                }
            }
        }
        traffic.encode(encoder)?;
        for family in [flows, health, serving, resolved, weight, deadline, closed] {
            family.encode(encoder)?;
        }
        Ok(())
    }
}

/// Ids by identity; entries that are not in use have identity 0.
fn ids(entries: u32, identity: impl Fn(u32) -> u64) -> HashMap<u64, u32> {
    (0..entries)
        .map(|id| (identity(id), id))
        .filter(|(identity, _)| *identity != 0)
        .collect()
}

/// Removed services may share their name with another, but not their address.
fn service_labels(service: &ServiceStatus) -> Labels {
    vec![
        ("service", service.name.clone()),
        (
            "vip",
            SocketAddr::new(service.vip, service.port).to_string(),
        ),
    ]
}

/// Removed backends may share their name with another, but not their address.
fn backend_labels(service: &ServiceStatus, backend: &BackendStatus) -> Labels {
    let mut labels = service_labels(service);
    labels.push(("backend", backend.name.clone()));
    let address = SocketAddr::new(backend.address, backend.port);
    labels.push(("address", address.to_string()));
    labels
}

fn of_version(version: IpVersion) -> Labels {
    vec![("version", (version as u32).to_string())]
}

fn with(mut labels: Labels, name: &'static str, value: String) -> Labels {
    labels.push((name, value));
    labels
}

fn states(flows: &BackendFlows) -> [(&'static str, u64); 4] {
    [
        ("embryo", flows.embryo),
        ("young", flows.young),
        ("pin", flows.pin),
        ("closing", flows.closing),
    ]
}

/// A word of the vocabulary as the status spells it.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}
