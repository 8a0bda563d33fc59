//! What the reconciler knows and decides, without waiting for anything but, and that not for long, what must be remembered first: the loop around it feeds it
//! events and applies its plans.

mod drains;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use lb_common::clock::Tick;

use super::{
    Error,
    answers::Answers,
    capacity,
    keeper::{self, Keeper},
    memory::{self, KnownService, Memory},
    registry::{Outcome, Registry},
    translations::Translations,
    weigh::{Starts, per_mille},
};
use crate::{
    by_version::ByVersion,
    config::Config,
    dataplane::maps::{Capacity, Maps},
    desired::{self, Changes, Edit, Expanded, Overlaid, Refusal},
    flows::{Census, Fill},
    model::{Admin, BackendName, Drains, HealthReport, NextHopReport, Target},
    neighbour::replies::Hindrances,
    pace::Moment,
    plan::{self, Deferred, Observed, Plan, Tables, Unsettled, Wanted},
    resolve::{self, Found, Hop},
    status::{Generation, Reloads},
};

/// What the reconciler knows.
pub struct State {
    pub(super) maps: Arc<Maps>,
    pub(super) fleet_seed: [u64; 4],
    /// What the file says.
    pub(super) file: Config,
    /// The latest of what the DNS says of its names.
    pub(super) answers: Answers,
    /// Addresses of these that cannot be backends: service, source, why.
    pub(super) ignored: Vec<(String, String, String)>,
    /// The file with addresses in the place of names.
    pub(super) base: Config,
    /// What is otherwise.
    pub(super) changes: Changes,
    /// What is wanted: that with the changes.
    pub(super) config: Config,
    /// Why the latest reload was refused.
    pub(super) config_error: Option<String>,
    pub(super) reloads: Reloads,
    /// Drains that were ordered by command.
    pub(super) ordered: Drains,
    /// Backends from the DNS of which something was ordered and which the latest answer does not have, and since when.
    awaited: BTreeMap<BackendName, Moment>,
    pub(super) registry: Registry,
    pub(super) translations: Translations,
    pub(super) hops: HashMap<IpAddr, Found>,
    pub(super) census: Arc<Census>,
    pub(super) fill: ByVersion<Fill>,
    pub(super) observed: Observed,
    pub(super) tables: Tables,
    /// VIPs that the host itself has; none before that is known.
    pub(super) host_owned: Option<BTreeSet<IpAddr>>,
    pub(super) deferred: BTreeMap<u16, Deferred>,
    pub(super) hindrances: Hindrances,
    /// Why no guard is in force, if none is.
    pub(super) unguarded: Option<String>,
    pub(super) generation: Generation,
    /// What the file holds, as far as is known.
    saved: Memory,
    /// Whether it may hold something else: a save that was refused may have come as far as its name all the same, or still may.
    pub(super) is_doubtful: bool,
    keeper: Keeper,
    /// Whether names, drains, slow starts or hosts that answer echoes came or went since they were saved.
    names_changed: bool,
    /// Whether a slow start has come to another step since the latest comparison.
    starts_went_on: bool,
    /// Whether they could not be saved when that was tried last.
    is_unsaved: bool,
    /// The moment of the latest plan.
    pub(super) planned: Option<Moment>,
    due: Option<Moment>,
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
        for warning in capacity::other_limits(&config, &maps.capacity) {
            tracing::warn!("{warning}");
        }
        let saved = Memory::load(&config.state_dir);
        let file = config;
        let answers = Answers::restore(&saved.answers);
        let expanded = desired::expand(&file, |source| answers.of(source));
        let Overlaid {
            config,
            changes,
            dropped,
        } = saved.changes.over(&expanded.config);
        capacity::fits(&config, &maps.capacity).map_err(Error::Capacity)?;
        tell_of_dropped(&file, &dropped);
        let observed = Observed::read(&maps, Unsettled::default(), now);
        let mut state = Self {
            registry: Registry::adopt(&maps, &observed, &saved),
            translations: Translations::adopt(&observed),
            maps,
            fleet_seed,
            file,
            answers,
            ignored: expanded.wrong,
            base: expanded.config,
            changes,
            config_error: None,
            reloads: Reloads::default(),
            ordered: saved.ordered(),
            awaited: BTreeMap::new(),
            hops: HashMap::new(),
            fill: ByVersion::default(),
            census,
            observed,
            tables: Tables::default(),
            host_owned: None,
            deferred: BTreeMap::new(),
            hindrances: Hindrances::default(),
            unguarded: None,
            generation: Generation {
                accepted: 1,
                ..Generation::default()
            },
            saved,
            is_doubtful: false,
            keeper: Keeper::new(keeper::PATIENCE),
            names_changed: true,
            starts_went_on: false,
            is_unsaved: false,
            planned: None,
            due: None,
            config,
        };
        state.forget_drains();
        state.want();
        state.registry.recall(&state.saved, now.into());
        Ok(state)
    }

    /// Makes a valid configuration the wanted one. Gives the generation that it became.
    ///
    /// # Errors
    /// When it changes what is fixed while the daemon or the maps live; all stays as it was.
    pub fn reload(&mut self, file: Config) -> Result<u64, String> {
        let mut answers = self.answers.carried(&self.file, &file);
        let taken = self.taken_on(&file, &answers);
        let (expanded, overlaid) =
            taken.inspect_err(|error| self.config_error = Some(error.clone()))?;
        if file.limits != self.file.limits {
            for warning in capacity::other_limits(&file, &self.maps.capacity) {
                tracing::warn!("{warning}");
            }
        }
        answers.go_over(&self.file, &file, self.generation.accepted + 1);
        self.file = file;
        self.config_error = None;
        self.answers = answers;
        self.reloads.accepted += 1;
        self.take_on(expanded, overlaid);
        Ok(self.generation.accepted)
    }

    /// What a file comes to, with what the DNS says and what was changed at runtime.
    ///
    /// # Errors
    /// When it changes what is fixed while the daemon or the maps live.
    pub(super) fn taken_on(
        &self,
        file: &Config,
        answers: &Answers,
    ) -> Result<(Expanded, Overlaid), String> {
        let expanded = desired::expand(file, |source| answers.of(source));
        let overlaid = self.changes.over(&expanded.config);
        capacity::fits(&overlaid.config, &self.maps.capacity)?;
        needs_no_restart(&self.file, file)?;
        Ok((expanded, overlaid))
    }

    /// Takes other answers of the DNS.
    ///
    /// # Errors
    /// When the maps do not hold the backends; all stays as it was.
    pub(super) fn take_answers(&mut self, answers: Answers) -> Result<(), String> {
        let (expanded, overlaid) = self.taken_on(&self.file, &answers)?;
        self.answers = answers;
        self.take_on(expanded, overlaid);
        Ok(())
    }

    fn take_on(&mut self, expanded: Expanded, overlaid: Overlaid) {
        tell_of_dropped(&self.file, &overlaid.dropped);
        for (service, source, why) in &expanded.wrong {
            let known = |(of, from, what): &(String, String, String)| {
                (of, from, what) == (service, source, why)
            };
            if !self.ignored.iter().any(known) {
                tracing::warn!(service, source, why, "an address from the DNS is not used");
            }
        }
        self.ignored = expanded.wrong;
        self.base = expanded.config;
        self.changes = overlaid.changes;
        self.config = overlaid.config;
        self.forget_drains();
        self.want();
        self.accepted();
    }

    /// Changes a backend at runtime, over restarts.
    ///
    /// # Errors
    /// When there is nothing to change, the result is not valid, or it cannot be remembered; all stays as it was.
    pub fn edit(&mut self, name: &BackendName, edit: &Edit) -> Result<(), Refusal> {
        let changes = self.changes.edited(&self.base, name, edit)?;
        if changes == self.changes && !self.is_doubtful {
            return Ok(());
        }
        let config = changes.over(&self.base).config;
        capacity::fits(&config, &self.maps.capacity).map_err(Refusal::Invalid)?;
        self.save(&self.ordered.clone(), changes.clone())
            .map_err(|error| Refusal::Failed(self.not_remembered(&error)))?;
        self.changes = changes;
        self.config = config;
        self.forget_drains();
        self.want();
        self.accepted();
        Ok(())
    }

    /// Notes that a reload was refused before it came here.
    pub fn rejected(&mut self, error: String) {
        self.config_error = Some(error);
        self.reloads.refused += 1;
    }

    /// Takes in a verdict; `now_ms` is since boot, as [`Moment`] has it. False if it is no news.
    pub fn heard(&mut self, report: HealthReport, now_ms: u64) -> bool {
        // Nothing follows from it now: it is saved with what is applied next, a full comparison at the latest.
        self.names_changed |= self.registry.learnt(&report);
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
        self.translations.counted(&census);
        self.registry.counted(&self.census, &census);
        self.census = census;
    }

    /// Takes in why replies reach no clients, if they do not. False if it is no news.
    pub fn hindered(&mut self, hindrances: Hindrances) -> bool {
        let news = self.hindrances != hindrances;
        self.hindrances = hindrances;
        news
    }

    /// Takes in why no guard is in force, if none is. False if it is no news.
    pub fn is_unguarded(&mut self, why: Option<String>) -> bool {
        let news = self.unguarded != why;
        self.unguarded = why;
        news
    }

    /// Reads all maps anew, so that the next plan mends what somebody else has changed.
    pub fn observe(&mut self, now: Tick) {
        let unsettled = std::mem::take(&mut self.observed.unsettled);
        let fresh = Observed::read(&self.maps, unsettled, now);
        if fresh.services != self.observed.services
            || fresh.backends != self.observed.backends
            || fresh.vips4 != self.observed.vips4
            || fresh.vips6 != self.observed.vips6
            || fresh.translations != self.observed.translations
            || fresh.guards != self.observed.guards
        {
            tracing::warn!("the maps are not as they were left: mending them");
        }
        self.observed = fresh;
        self.names_changed |= std::mem::take(&mut self.starts_went_on);
        // A disk that hangs is not asked anything more.
        let is_answering = !self.keeper.is_underway();
        if is_answering && !self.saved.is_empty() && !memory::path(&self.config.state_dir).exists()
        {
            // Somebody has removed it; the application that follows saves it again.
            self.saved = self.saved.forgotten();
            self.names_changed = true;
        }
    }

    /// What to do now. Its operations must be applied, in order, and [`State::applied`] be told.
    pub fn plan(&mut self, now: impl Into<Moment>) -> Plan {
        let now = now.into();
        self.begin_asked(now);
        self.give_up_awaiting(now);
        self.names_changed |= self.registry.note(now);
        self.names_changed |= self.registry.retire(&self.observed, &self.census);
        self.names_changed |= self.saved.is_ageing(now);
        self.registry.house();
        match self.registry.weigh(&self.census, now.tick()) {
            Starts::Same => {}
            // Of all that is saved the least is lost with this, a step: no verdict is to wait for the disk with every one of them.
            Starts::WentOn => self.starts_went_on = true,
            Starts::BegunOrEnded => self.names_changed = true,
        }
        let judged_next = self.registry.judge(self.maps.measured.as_ref(), now);
        self.translations.renew(
            self.registry.translated(&self.hops),
            &self.observed,
            &self.census,
        );
        let translations = self.translations.wanted();
        let unlisted = self.registry.unlisted();
        let facts = self.registry.facts(&self.hops, &self.translations);
        let services = resolve::resolve(&self.fleet_seed, &facts, now);
        let nowhere = BTreeSet::new();
        let wanted = Wanted {
            fleet_seed: &self.fleet_seed,
            services: &services,
            unlisted: &unlisted,
            translations: &translations,
            host_owned: self.host_owned.as_ref().unwrap_or(&nowhere),
        };
        let mut plan = plan::plan(&wanted, &self.observed, &mut self.tables, now.tick());
        self.translations.defer(&mut plan);
        let backends = services.iter().flat_map(|service| &service.backends);
        let due = backends.filter_map(|backend| backend.due);
        self.due = due.chain(judged_next).min();
        self.planned = Some(now);
        let outcomes = services
            .iter()
            .map(|service| Outcome {
                service: service.id,
                fail_open: service.fail_open,
                spread: service.spread,
                resets_suspended: service.resets_suspended,
                well_seen: service.well_seen,
                backends: service.backends.clone(),
                per_mille: per_mille(service),
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
        self.save_news();
    }

    /// The daemon ends: what has come since the latest plan was applied is saved.
    pub fn ends(&mut self) {
        self.names_changed |= std::mem::take(&mut self.starts_went_on);
        self.save_news();
    }

    /// Saves what came or went, if anything did. What cannot be saved now is tried again after the next plan, which is due with the next full comparison at the latest.
    fn save_news(&mut self) {
        if !self.names_changed {
            return;
        }
        match self.save(&self.ordered.clone(), self.changes.clone()) {
            Ok(()) => {
                if self.is_unsaved {
                    tracing::info!("what was not saved is saved now");
                }
                self.names_changed = false;
                self.is_unsaved = false;
            }
            Err(error) => {
                if !self.is_unsaved {
                    tracing::warn!(
                        %error,
                        "names of removed backends, answers of the DNS, since when backends are drained, how far slow starts are, and which hosts answer echoes, would \
                         not survive a restart; saving them is tried again"
                    );
                }
                self.is_unsaved = true;
            }
        }
    }

    /// When another plan is due though nothing happens: more flows are to be closed then, or backends to be judged by what their clients send again.
    pub fn due(&self) -> Option<Moment> {
        self.due
    }

    /// Whether a grace period is due before [`State::settled`].
    pub fn is_settling(&self) -> bool {
        self.registry.is_settling() || self.translations.is_settling()
    }

    /// A grace period has passed since the latest plan was applied; `scans` of the flow table were complete when it ended.
    pub fn settled(&mut self, scans: u64) {
        self.observed.unsettled = Unsettled::default();
        self.registry.settled(scans);
        self.translations.settled(scans);
    }

    /// Whose health is to be known.
    pub fn targets(&self) -> Vec<Target> {
        self.registry.targets(&self.hops)
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
        self.registry.is_informed(&self.hops)
            && self.host_owned.is_some()
            && self.answers.are_known(&self.file)
    }

    fn accepted(&mut self) {
        self.generation.accepted += 1;
    }

    fn want(&mut self) {
        self.registry
            .want(desired::services(&self.config, &self.ordered));
        self.registry.hasten(&self.ordered);
        self.names_changed = true;
        let addresses = self.registry.addresses();
        // Who comes back is asked about anew.
        self.hops.retain(|address, _| addresses.contains(address));
    }

    /// What the configuration itself wants of a backend.
    fn configured(&self, name: &BackendName) -> Result<Admin, Refusal> {
        desired::find(&self.config, name)
            .map(|backend| backend.admin)
            .ok_or_else(|| {
                Refusal::Absent(format!(
                    "there is no backend {name} in {}; `tether status` lists them",
                    self.config.path.display()
                ))
            })
    }

    fn not_remembered(&self, error: &std::io::Error) -> String {
        let file = memory::path(&self.config.state_dir);
        format!(
            "it cannot be remembered in {}: {error}; make room or mend the directory, then try again",
            file.display()
        )
    }

    /// Has what is known saved, with these drains by command and these changes, if it is not.
    ///
    /// # Errors
    /// When it cannot be, or the disk does not answer in time. What is refused then may come to be in the file all the same, until the next save after that
    /// takes it out.
    fn save(&mut self, ordered: &Drains, changes: Changes) -> std::io::Result<()> {
        if let Some(late) = self.keeper.late()? {
            self.saved = late;
        }
        let services = self.registry.services().map(|service| {
            let known = KnownService {
                name: service.name.clone(),
                on_down: service.on_down,
                reset_over: service.reset_over,
                terms: service.terms,
            };
            (service.endpoint, known)
        });
        let backends = self
            .registry
            .services()
            .flat_map(|service| &service.backends)
            .map(|backend| (backend.identity, backend.name.clone()));
        let answers = self.answers.remember();
        let drains = self.registry.drains();
        let memory = self
            .saved
            .renewed(ordered, changes, answers, services, backends, drains);
        let memory = match self.planned {
            Some(now) => memory
                .with_echoing(self.registry.echoing(), now)
                .with_starting(self.registry.starting()),
            // What the last run knew stays as old as it is until this one goes on from it.
            None => memory,
        };
        if memory != self.saved || self.is_doubtful {
            self.is_doubtful = true;
            let directory = self.config.state_dir.clone();
            let kept = self
                .keeper
                .keep(memory, move |memory| memory.save(&directory));
            // The next plan has it saved what is in force, whatever this becomes.
            self.names_changed |= kept.is_err();
            self.saved = kept?;
            self.is_doubtful = false;
        }
        Ok(())
    }
}

/// Whether maps of a capacity would hold what a daemon begins with: the file, with what the last one remembered. Changes nothing.
///
/// # Errors
/// When they would not: what there is too little of, and what to do.
pub fn would_fit(file: &Config, capacity: &Capacity) -> Result<(), String> {
    let saved = Memory::peek(&file.state_dir);
    let answers = Answers::restore(&saved.answers);
    let expanded = desired::expand(file, |source| answers.of(source));
    let overlaid = saved.changes.over(&expanded.config);
    capacity::fits(&overlaid.config, capacity)
}

/// Says which changes made at runtime have ended with what the file says now.
fn tell_of_dropped(file: &Config, dropped: &[(BackendName, String)]) {
    for (name, why) in dropped {
        tracing::warn!(
            backend = %name,
            "what was changed of it at runtime ends with what {} says: {why}",
            file.path.display()
        );
    }
}

/// Whether a running daemon can take on a configuration.
fn needs_no_restart(old: &Config, new: &Config) -> Result<(), String> {
    let changes = [
        ("interfaces", old.interfaces != new.interfaces),
        (
            "local_interfaces",
            old.local_interfaces != new.local_interfaces,
        ),
        ("outer_sources", old.outer_sources != new.outer_sources),
        ("state_dir", old.state_dir != new.state_dir),
        ("bpffs", old.bpffs != new.bpffs),
        ("fleet_seed", old.fleet_seed != new.fleet_seed),
        ("admin_group", old.admin_group != new.admin_group),
        ("metrics", old.metrics != new.metrics),
        ("dns", old.dns_servers != new.dns_servers),
        (
            "reload_on_change",
            old.reload_on_change != new.reload_on_change,
        ),
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
