//! What the reconciler knows and decides, without waiting for anything: the loop around it feeds it events and applies its plans.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use lb_common::clock::Tick;

use super::{
    Error, capacity,
    memory::{self, Memory},
    registry::{Outcome, Registry},
};
use crate::{
    by_version::ByVersion,
    config::Config,
    dataplane::maps::Maps,
    desired,
    flows::{Census, Fill},
    model::{Admin, BackendName, HealthReport, NextHopReport, Target},
    plan::{self, Deferred, Observed, Plan, Tables, Unsettled, Wanted},
    resolve::{self, Found, Hop},
    status::{Generation, Reloads},
};

/// What the reconciler knows.
pub struct State {
    pub(super) maps: Arc<Maps>,
    fleet_seed: [u64; 4],
    pub(super) config: Config,
    /// Why the latest reload was refused.
    pub(super) config_error: Option<String>,
    pub(super) reloads: Reloads,
    drained: BTreeSet<BackendName>,
    pub(super) registry: Registry,
    pub(super) hops: HashMap<IpAddr, Found>,
    pub(super) census: Arc<Census>,
    pub(super) fill: ByVersion<Fill>,
    observed: Observed,
    tables: Tables,
    /// VIPs that the host itself has; none before that is known.
    host_owned: Option<BTreeSet<IpAddr>>,
    pub(super) deferred: BTreeMap<u16, Deferred>,
    pub(super) generation: Generation,
    saved: Memory,
    /// Whether names came or went since they were saved.
    names_changed: bool,
}

impl State {
    /// Adopts what the maps hold and what the last run remembered, and wants `config`. No packet that was read before a grace period may
    /// still be under way.
    ///
    /// # Errors
    /// When the maps are too small for what is configured.
    pub fn adopt(
        maps: Arc<Maps>,
        fleet_seed: [u64; 4],
        config: Config,
        census: Arc<Census>,
        now: Tick,
    ) -> Result<Self, Error> {
        capacity::fits(&config, &maps.capacity).map_err(Error::Capacity)?;
        for warning in capacity::other_limits(&config, &maps.capacity) {
            tracing::warn!("{warning}");
        }
        let saved = Memory::load(&config.state_dir);
        let observed = Observed::read(&maps, Unsettled::default(), now);
        let mut state = Self {
            registry: Registry::adopt(&maps, &observed, &saved),
            maps,
            fleet_seed,
            config_error: None,
            reloads: Reloads::default(),
            drained: saved.drained.clone(),
            hops: HashMap::new(),
            fill: ByVersion::default(),
            census,
            observed,
            tables: Tables::default(),
            host_owned: None,
            deferred: BTreeMap::new(),
            generation: Generation {
                accepted: 1,
                ..Generation::default()
            },
            saved,
            names_changed: true,
            config,
        };
        state.forget_drains();
        state.want();
        Ok(state)
    }

    /// Makes a valid configuration the wanted one. Gives the generation that it became.
    ///
    /// # Errors
    /// When it changes what is fixed while the daemon or the maps live; all stays as it was.
    pub fn reload(&mut self, config: Config) -> Result<u64, String> {
        let result = capacity::fits(&config, &self.maps.capacity)
            .and_then(|()| needs_no_restart(&self.config, &config));
        if let Err(error) = result {
            self.config_error = Some(error.clone());
            return Err(error);
        }
        if config.limits != self.config.limits {
            for warning in capacity::other_limits(&config, &self.maps.capacity) {
                tracing::warn!("{warning}");
            }
        }
        self.config = config;
        self.config_error = None;
        self.reloads.accepted += 1;
        self.forget_drains();
        self.want();
        self.accepted();
        Ok(self.generation.accepted)
    }

    /// Notes that a reload was refused before it came here.
    pub fn rejected(&mut self, error: String) {
        self.config_error = Some(error);
        self.reloads.refused += 1;
    }

    /// Drains a backend until [`State::undrain`], over restarts.
    ///
    /// # Errors
    /// When there is no such backend, or the drain cannot be remembered.
    pub fn drain(&mut self, name: &BackendName) -> Result<(), String> {
        self.configured(name)?;
        let mut drained = self.drained.clone();
        if drained.insert(name.clone()) {
            self.set_drained(drained)?;
        }
        Ok(())
    }

    /// Ends a drain.
    ///
    /// # Errors
    /// When there is no such backend, the configuration itself wants it drained or disabled, or the end cannot be remembered.
    pub fn undrain(&mut self, name: &BackendName) -> Result<(), String> {
        let admin = self.configured(name)?;
        let mut drained = self.drained.clone();
        if drained.remove(name) {
            self.set_drained(drained)?;
        }
        match admin {
            Admin::Active => Ok(()),
            Admin::Draining | Admin::Disabled => Err(format!(
                "{name} is not active in {}; set admin = \"active\" there and reload",
                self.config.path.display()
            )),
        }
    }

    /// Takes in a verdict; `now_ms` is of any steady clock. False if it is no news.
    pub fn heard(&mut self, report: HealthReport, now_ms: u64) -> bool {
        self.registry.heard(report, now_ms)
    }

    /// Takes in what was found out about the way to an address. False if it is no news.
    pub fn next_hop(&mut self, report: NextHopReport) -> bool {
        let found = Found {
            hop: report.next_hop.map_or(Hop::Unresolved, Hop::Resolved),
            on_link: report.on_link,
        };
        let old = self.hops.insert(report.address, found);
        let resolved = matches!(found.hop, Hop::Resolved(_));
        if old.is_some_and(|old| matches!(old.hop, Hop::Resolved(_)) != resolved) {
            tracing::info!(address = %report.address, resolved, "next hop changed");
        }
        old != Some(found)
    }

    /// Takes in which VIPs the host itself has. False if it is no news.
    pub fn host_owns(&mut self, vips: BTreeSet<IpAddr>) -> bool {
        let news = self.host_owned.as_ref() != Some(&vips);
        self.host_owned = Some(vips);
        news
    }

    /// Takes in the latest census.
    pub fn counted(&mut self, census: Arc<Census>) {
        for (version, table) in census.tables.each() {
            let was = self.fill[version];
            let fill = was.next(table);
            if fill > was {
                tracing::warn!(
                    "{}",
                    capacity::filling(&self.config, version, fill, &self.maps.capacity)
                );
            } else if fill < was {
                tracing::info!(
                    ?fill,
                    "the IPv{} flow table is less full again",
                    version as u32
                );
            }
            self.fill[version] = fill;
        }
        self.census = census;
    }

    /// Reads all maps anew, so that the next plan mends what somebody else has changed.
    pub fn observe(&mut self, now: Tick) {
        let unsettled = std::mem::take(&mut self.observed.unsettled);
        let fresh = Observed::read(&self.maps, unsettled, now);
        if fresh.services != self.observed.services
            || fresh.backends != self.observed.backends
            || fresh.vips4 != self.observed.vips4
            || fresh.vips6 != self.observed.vips6
        {
            tracing::warn!("the maps are not as they were left: mending them");
        }
        self.observed = fresh;
        if self.saved != Memory::default() && !memory::path(&self.config.state_dir).exists() {
            // Somebody has removed it; the application that follows saves it again.
            self.saved = Memory::default();
            self.names_changed = true;
        }
    }

    /// What to do now. Its operations must be applied, in order, and [`State::applied`] be told.
    pub fn plan(&mut self, now: Tick) -> Plan {
        self.names_changed |= self.registry.retire(&self.observed, &self.census);
        self.registry.house();
        let unlisted = self.registry.unlisted();
        let facts = self.registry.facts(&self.hops);
        let services = resolve::resolve(&self.fleet_seed, &facts);
        let nowhere = BTreeSet::new();
        let wanted = Wanted {
            fleet_seed: &self.fleet_seed,
            services: &services,
            unlisted: &unlisted,
            host_owned: self.host_owned.as_ref().unwrap_or(&nowhere),
        };
        let plan = plan::plan(&wanted, &self.observed, &mut self.tables, now);
        let outcomes = services
            .iter()
            .map(|service| Outcome {
                service: service.id,
                fail_open: service.fail_open,
                resets_suspended: service.resets_suspended,
                serving: service
                    .backends
                    .iter()
                    .map(|backend| backend.serving)
                    .collect(),
            })
            .collect();
        self.registry.resolved(outcomes);
        self.generation.resolved = self.generation.accepted;
        plan
    }

    /// The operations of the latest plan are done.
    pub fn applied(&mut self, plan: &Plan, now: Tick) {
        for operation in &plan.operations {
            self.observed.follow(&self.maps, operation, now);
        }
        self.observed.unsettled.clone_from(&plan.unsettled);
        for (service, reason) in &plan.deferred {
            if self.deferred.get(service) != Some(reason) {
                tracing::error!(service, %reason, "a service cannot be served as configured");
            }
        }
        self.deferred.clone_from(&plan.deferred);
        if self.deferred.is_empty() && self.registry.homeless.is_empty() {
            self.generation.applied = self.generation.resolved;
        }
        if std::mem::take(&mut self.names_changed)
            && let Err(error) = self.save(self.drained.clone())
        {
            tracing::warn!(%error, "names of removed backends would not survive a restart");
        }
    }

    /// Whether a grace period is due before [`State::settled`].
    pub fn is_settling(&self) -> bool {
        self.registry.is_settling()
    }

    /// A grace period has passed since the latest plan was applied; `scans` of the flow table were complete when it ended.
    pub fn settled(&mut self, scans: u64) {
        self.observed.unsettled = Unsettled::default();
        self.registry.settled(scans);
    }

    /// Whose health is to be known.
    pub fn targets(&self) -> Vec<Target> {
        self.registry.targets()
    }

    /// Addresses to which the way is to be known.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.registry.addresses()
    }

    /// The VIPs of which it is to be known whether the host itself has them.
    pub fn vips(&self) -> BTreeSet<IpAddr> {
        let services = self.registry.services();
        services.map(|service| service.endpoint.vip).collect()
    }

    /// Whether all that is wanted has a first verdict and a first word about the way to it, and it is known which VIPs are the host's own.
    pub fn is_informed(&self) -> bool {
        self.registry.is_informed(&self.hops) && self.host_owned.is_some()
    }

    fn accepted(&mut self) {
        self.generation.accepted += 1;
    }

    fn want(&mut self) {
        self.registry
            .want(desired::services(&self.config, &self.drained));
        self.names_changed = true;
        let addresses = self.registry.addresses();
        // Who comes back is asked about anew.
        self.hops.retain(|address, _| addresses.contains(address));
    }

    /// What the configuration itself wants of a backend.
    fn configured(&self, name: &BackendName) -> Result<Admin, String> {
        self.config
            .services
            .iter()
            .filter(|service| service.name == name.service)
            .flat_map(|service| &service.backends)
            .find(|backend| backend.name == name.backend)
            .map(|backend| backend.admin)
            .ok_or_else(|| {
                format!(
                    "there is no backend {name} in {}; `tether status` lists them",
                    self.config.path.display()
                )
            })
    }

    fn set_drained(&mut self, drained: BTreeSet<BackendName>) -> Result<(), String> {
        self.save(drained.clone()).map_err(|error| {
            let file = memory::path(&self.config.state_dir);
            format!("it cannot be remembered in {}: {error}; make room or mend the directory, then try again", file.display())
        })?;
        self.drained = drained;
        self.want();
        self.accepted();
        Ok(())
    }

    /// A drain ends with its backend: one that is configured again later is as the configuration says.
    fn forget_drains(&mut self) {
        let mut drained = std::mem::take(&mut self.drained);
        drained.retain(|name| {
            let is_configured = self.configured(name).is_ok();
            if !is_configured {
                tracing::warn!(
                    backend = %name,
                    "it is no longer in {}, and the `tether drain` that was ordered for it ends with it: should it return, or have another \
                     name now, it takes new flows unless it is drained again",
                    self.config.path.display()
                );
            }
            is_configured
        });
        self.drained = drained;
    }

    fn save(&mut self, drained: BTreeSet<BackendName>) -> std::io::Result<()> {
        let names = self
            .registry
            .services()
            .map(|service| (service.endpoint, service.name.clone()));
        let backends = self
            .registry
            .services()
            .flat_map(|service| &service.backends)
            .map(|backend| (backend.identity, backend.name.clone()));
        let memory = Memory::new(drained, names, backends);
        if memory != self.saved {
            memory.save(&self.config.state_dir)?;
            self.saved = memory;
        }
        Ok(())
    }
}

/// Whether a running daemon can take on a configuration.
fn needs_no_restart(old: &Config, new: &Config) -> Result<(), String> {
    let changes = [
        ("interfaces", old.interfaces != new.interfaces),
        ("state_dir", old.state_dir != new.state_dir),
        ("bpffs", old.bpffs != new.bpffs),
        ("fleet_seed", old.fleet_seed != new.fleet_seed),
        ("admin_group", old.admin_group != new.admin_group),
        ("metrics", old.metrics != new.metrics),
        (
            "checks in [limits]",
            old.checks_at_once != new.checks_at_once,
        ),
    ];
    match changes.into_iter().find(|&(_, changed)| changed) {
        None => Ok(()),
        Some((key, _)) => Err(format!(
            "{}: configuration: {key} takes effect only when the daemon starts; set it back, or restart the daemon (flows go on)",
            new.path.display()
        )),
    }
}
