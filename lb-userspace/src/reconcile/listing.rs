//! The status, as people and scripts see it.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use lb_common::{backend::Serving, net::IpVersion, share::Share, verdict::Reason};

use super::{
    record::{BackendRecord, ServiceRecord},
    state::State,
    weigh::{balance_of, spread_of},
};
use crate::{
    model::{Admin, OnDown},
    resolve::Hop,
    status::{
        Attachment, BackendStatus, ClosedEgress, ConfigStatus, DrainStatus, Flows, Neighbour,
        Packets, ServiceBalance, ServiceStatus, Status,
    },
};

impl State {
    /// The state of things.
    pub fn status(
        &self,
        attachments: Vec<Attachment>,
        closed_egress: Vec<ClosedEgress>,
        uptime: Duration,
    ) -> Status {
        let layout = self.maps.capacity.counters();
        let mut services: Vec<ServiceStatus> = self
            .registry
            .services()
            .flat_map(|service| self.service(service))
            .chain(self.homeless())
            .collect();
        services.sort_by(|a, b| (&a.name, a.vip, a.port).cmp(&(&b.name, b.vip, b.port)));
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: uptime.as_secs(),
            at: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            generation: self.generation,
            config: ConfigStatus {
                path: self.config.path.clone(),
                error: self.config_error.clone(),
                differences: self.differences(),
                reloads: self.reloads,
            },
            evacuated: self.ordered.all.is_some(),
            attachments,
            detached: Vec::new(),
            closed_egress,
            dns: self.sources(),
            flows: Flows::new(&self.census, self.fill),
            services,
            reasons: Reason::ALL
                .iter()
                .map(|&reason| {
                    let counter = self.maps.counter(layout.reason(reason));
                    let packets = Packets {
                        packets: counter.packets,
                        bytes: counter.bytes,
                    };
                    (reason.name().to_owned(), packets)
                })
                .collect(),
        }
    }

    /// A service; and if it was renamed while old backends have flows, these apart under the old name.
    fn service(&self, service: &ServiceRecord) -> Vec<ServiceStatus> {
        let mut by_name: BTreeMap<&str, Vec<&BackendRecord>> = BTreeMap::new();
        by_name.insert(&service.name, Vec::new());
        for backend in &service.backends {
            by_name
                .entry(&backend.name.service)
                .or_default()
                .push(backend);
        }
        by_name
            .into_iter()
            .map(|(name, backends)| {
                let current = name == service.name;
                let mode = if current {
                    None
                } else {
                    backends.first().map(|backend| backend.mode)
                };
                let deferred = self.deferred.get(&service.id).map(ToString::to_string);
                ServiceStatus {
                    name: name.to_owned(),
                    vip: service.endpoint.vip,
                    port: service.endpoint.port,
                    mode: mode.unwrap_or(service.mode),
                    removed: service.wanted.is_none() || !current,
                    fail_open: current && service.fail_open,
                    fail_open_flows: service.fail_open_flows,
                    clients: (current && service.wanted.and(service.affinity.as_ref()).is_some())
                        .then(|| self.census.clients.get(&service.id).copied().unwrap_or(0)),
                    guard: service
                        .wanted
                        .and(service.guard.as_ref())
                        .filter(|_| current)
                        .map(Into::into),
                    full: current && service.spread.full,
                    balance: spread_of(service),
                    resets_suspended: service.resets_suspended,
                    error: deferred
                        .or_else(|| service.error.clone())
                        .or_else(|| self.hindrance(service))
                        .or_else(|| self.stranded(service))
                        .or_else(|| self.unguarded(service))
                        .filter(|_| current),
                    backends: backends
                        .into_iter()
                        .map(|backend| self.backend(service, backend))
                        .collect(),
                }
            })
            .collect()
    }

    /// Why no reply to a service's clients finds its way, if its backends reply through this host.
    fn hindrance(&self, service: &ServiceRecord) -> Option<String> {
        let hindrance = self.hindrances[IpVersion::of(service.endpoint.vip)].as_ref()?;
        let mut backends = service.backends.iter();
        backends
            .any(BackendRecord::is_translated)
            .then(|| hindrance.clone())
    }

    /// Why a backend on this host is not served, if one is not.
    fn stranded(&self, service: &ServiceRecord) -> Option<String> {
        let vip = service.endpoint.vip;
        let mut backends = service.backends.iter();
        let stranded = backends.find(|backend| backend.is_stranded(vip, &self.hops))?;
        let [of, to] = [vip, stranded.address].map(|address| IpVersion::of(address) as u32);
        Some(format!(
            "backend {} is on this host, where packets are translated, and no IPv{of} packet is translated to an IPv{to} address: give its IPv{of} address",
            stranded.name
        ))
    }

    /// Why a service's guard is not in force, if it has one and that is not.
    fn unguarded(&self, service: &ServiceRecord) -> Option<String> {
        service.wanted.and(service.guard.as_ref())?;
        self.unguarded.clone()
    }

    fn backend(&self, service: &ServiceRecord, backend: &BackendRecord) -> BackendStatus {
        let vip = service.endpoint.vip;
        let key = (backend.numbered.id, backend.numbered.generation);
        let counts = self
            .census
            .by_backend
            .get(&key)
            .copied()
            .unwrap_or_default();
        let resolved = match backend.hop(vip, &self.hops) {
            Hop::Resolved(_) => true,
            Hop::Unresolved => false,
            Hop::Unheard => self.maps.state(backend.numbered.id).is_resolved(),
        };
        BackendStatus {
            name: backend.name.backend.clone(),
            address: backend.address,
            port: backend.port,
            weight: backend.weight,
            admin: backend
                .wanted
                .map_or(Admin::Draining, |wanted| wanted.admin),
            removed: backend.wanted.is_none(),
            health: backend.health,
            serving: backend.serving,
            neighbour: match (resolved, backend.is_local(vip, &self.hops)) {
                (true, true) => Neighbour::Local,
                (true, false) => Neighbour::Resolved,
                (false, _) => Neighbour::Unresolved,
            },
            last_error: backend.last_error.as_ref().map(|last| last.text.clone()),
            last_error_ended: backend.last_error.as_ref().and_then(|last| {
                let since_1970 = last.ended?.duration_since(SystemTime::UNIX_EPOCH);
                Some(since_1970.map_or(0, |time| time.as_secs()))
            }),
            drain: self.drain_of(backend),
            balance: balance_of(service, backend, self.planned),
            flows: counts,
            snat: self.translations.snat(backend, &self.census),
            identity: Some(backend.identity),
            mode: Some(backend.mode),
        }
    }

    /// When a backend's flows are closed, and how many are.
    fn drain_of(&self, backend: &BackendRecord) -> Option<DrainStatus> {
        let ramp = backend.end(backend.drained?)?;
        let left = ramp.from.since(self.planned?);
        let closed = match (backend.closed, backend.serving) {
            (Some(share), _) => share,
            (None, Serving::None) if backend.on_down == OnDown::Reset => Share::ALL,
            (None, _) => Share::NONE,
        };
        Some(DrainStatus {
            deadline_s: left.as_secs() + u64::from(left.subsec_millis() > 0),
            closed: f64::from(closed.parts()) / f64::from(Share::ALL.parts()),
        })
    }

    /// Services without an id: not served at all.
    fn homeless(&self) -> impl Iterator<Item = ServiceStatus> {
        self.registry
            .unserved()
            .map(|(service, error)| ServiceStatus {
                name: service.name.clone(),
                vip: service.endpoint.vip,
                port: service.endpoint.port,
                mode: service.mode,
                removed: false,
                fail_open: false,
                fail_open_flows: 0,
                clients: None,
                guard: service.guard.as_ref().map(Into::into),
                full: false,
                balance: ServiceBalance::default(),
                resets_suspended: None,
                error: Some(error.clone()),
                backends: Vec::new(),
            })
    }
}
