//! What a file would change: the reconciler's own resolving and planning, on copies, with nothing applied.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use lb_common::backend::Serving;

use super::{
    record::{BackendRecord, ServiceRecord},
    registry::Registry,
    state::State,
    translations::Translations,
};
use crate::{
    config::Config,
    desired::{self, Overlaid},
    flows::Census,
    guard::Guard,
    model::{BackendName, Health},
    pace::Moment,
    plan::{self, Observed, Operation, Tables, Wanted, owners},
    preview::{
        BackendChange, BackendPreview, GuardPreview, Preview, ServiceChange, ServicePreview, Sides,
    },
    resolve::{self, Found},
};

/// All that a preview is made of: a copy, so that making it holds up nothing.
pub(super) struct Question {
    file: Config,
    generation: u64,
    fleet_seed: [u64; 4],
    before: Registry,
    translations: Translations,
    wanted: Vec<desired::Service>,
    hops: HashMap<IpAddr, Found>,
    census: Arc<Census>,
    observed: Observed,
    tables: Tables,
    host_owned: BTreeSet<IpAddr>,
    /// Why services are not served as configured today.
    deferred: BTreeMap<u16, String>,
    ended: Vec<BackendName>,
    now: Moment,
}

impl State {
    /// What is needed to answer what a file would change.
    ///
    /// # Errors
    /// When it would be refused: why.
    pub(super) fn ask_about(&self, file: Config, now: Moment) -> Result<Question, String> {
        let answers = self.answers.carried(&self.file, &file);
        let (expanded, overlaid) = self.taken_on(&file, &answers)?;
        let Overlaid {
            config,
            changes: _,
            dropped,
        } = overlaid;
        let mut ended: BTreeSet<BackendName> = dropped.into_iter().map(|(name, _)| name).collect();
        let mut kept = self.ordered.clone();
        kept.backends.retain(|name, _| {
            let stays = desired::find(&config, name).is_some()
                || desired::may_return(&expanded.config, name);
            if !stays {
                ended.insert(name.clone());
            }
            stays
        });
        Ok(Question {
            generation: self.generation.accepted,
            fleet_seed: self.fleet_seed,
            before: self.registry.clone(),
            translations: self.translations.clone(),
            wanted: desired::services(&config, &kept),
            hops: self.hops.clone(),
            census: Arc::clone(&self.census),
            observed: self.observed.clone(),
            tables: self.tables.clone(),
            host_owned: self.host_owned.clone().unwrap_or_default(),
            deferred: self
                .deferred
                .iter()
                .map(|(&id, why)| (id, why.to_string()))
                .collect(),
            ended: ended.into_iter().collect(),
            now,
            file,
        })
    }
}

impl Question {
    /// Makes the preview. Takes as long as building the tables that change, twice.
    pub(super) fn answer(mut self) -> Preview {
        let after = self.before.foreseen(std::mem::take(&mut self.wanted));
        let mut translations = self.translations.clone();
        translations.renew(after.translated(&self.hops), &self.observed, &self.census);
        let facts_before = self.before.facts(&self.hops, &self.translations);
        let facts_after = after.facts(&self.hops, &translations);
        let resolved_before = resolve::resolve(&self.fleet_seed, &facts_before, self.now);
        let resolved_after = resolve::resolve(&self.fleet_seed, &facts_after, self.now);
        let wanted = Wanted {
            fleet_seed: &self.fleet_seed,
            services: &resolved_after,
            unlisted: &after.unlisted(),
            translations: &translations.wanted(),
            host_owned: &self.host_owned,
        };
        let mut plan = plan::plan(&wanted, &self.observed, &mut self.tables, self.now.tick());
        translations.defer(&mut plan);
        let mut written: BTreeMap<u16, &Arc<[u32]>> = BTreeMap::new();
        for operation in &plan.operations {
            if let Operation::WriteTable {
                service, owners, ..
            } = operation
            {
                written.insert(*service, owners);
            }
        }
        let resolved_before: HashMap<u16, &resolve::Service<'_>> =
            resolved_before.iter().map(|one| (one.id, one)).collect();
        let records_before: HashMap<u16, &ServiceRecord> =
            self.before.services().map(|one| (one.id, one)).collect();
        let mut unchanged = 0;
        let mut services = Vec::new();
        for (record, resolved) in after.services().zip(&resolved_after) {
            let today = records_before
                .get(&record.id)
                .copied()
                .zip(resolved_before.get(&record.id).copied());
            let sides = Service {
                question: &self,
                today,
                record,
                resolved,
                owners: written.get(&record.id).copied(),
            };
            let error = plan.deferred.get(&record.id).map(ToString::to_string);
            match sides.preview(error.or_else(|| record.error.clone())) {
                Some(preview) => services.push(preview),
                None if record.wanted.is_some() => unchanged += 1,
                None => {}
            }
        }
        services.extend(after.unserved().map(|(service, error)| ServicePreview {
            name: service.name.clone(),
            vip: service.endpoint.vip,
            port: service.endpoint.port,
            mode: service.mode,
            change: ServiceChange::Added,
            table_size: Sides {
                before: None,
                after: Some(service.table_size),
            },
            min_healthy: Sides {
                before: None,
                after: Some(service.min_healthy),
            },
            moved: 0.0,
            guard: guard_preview(None, service.guard.as_ref()),
            fail_open: false,
            error: Some(error.clone()),
            backends: vec![],
        }));
        services.sort_by(|a, b| (&a.name, a.vip, a.port).cmp(&(&b.name, b.vip, b.port)));
        let drained_flows = services
            .iter()
            .flat_map(|service| &service.backends)
            .filter(|backend| {
                backend.serving.before == Some(Serving::New)
                    && backend.serving.after != Some(Serving::New)
            })
            .map(|backend| backend.flows.active + backend.flows.idle)
            .sum();
        Preview {
            path: self.file.path.clone(),
            generation: self.generation,
            services,
            unchanged,
            ended: self.ended,
            drained_flows,
        }
    }
}

/// One service, today and after the change.
struct Service<'a> {
    question: &'a Question,
    today: Option<(&'a ServiceRecord, &'a resolve::Service<'a>)>,
    record: &'a ServiceRecord,
    resolved: &'a resolve::Service<'a>,
    /// The owners of the slots of its new table, if that has to be written.
    owners: Option<&'a Arc<[u32]>>,
}

impl Service<'_> {
    /// None if nothing of it changes.
    fn preview(&self, error: Option<String>) -> Option<ServicePreview> {
        let (record, resolved) = (self.record, self.resolved);
        let today_wanted = self.today.and_then(|(today, _)| today.wanted);
        let change = match (today_wanted, record.wanted) {
            (None, None) => return None,
            (None, Some(_)) => ServiceChange::Added,
            (Some(_), None) => ServiceChange::Removed,
            (Some(_), Some(_)) => ServiceChange::Changed,
        };
        let table_size = Sides {
            before: today_wanted.map(|wanted| wanted.table_size),
            after: record.wanted.map(|wanted| wanted.table_size),
        };
        let min_healthy = Sides {
            before: today_wanted.map(|wanted| wanted.min_healthy),
            after: record.wanted.map(|wanted| wanted.min_healthy),
        };
        let renamed = self
            .today
            .is_some_and(|(today, _)| today.name != record.name);
        let error_today = self.today.and_then(|(today, _)| {
            let deferred = self.question.deferred.get(&record.id);
            deferred.or(today.error.as_ref())
        });
        let error_is_new = error.is_some() && error_today != error.as_ref();
        let guarded = |record: &ServiceRecord| record.wanted.and(record.guard.clone());
        let guard = guard_preview(
            self.today.and_then(|(today, _)| guarded(today)).as_ref(),
            guarded(record).as_ref(),
        );
        let before = self.owners_before();
        let after = self.owners_after();
        let backends = self.backends(before.as_deref(), after);
        let same = change == ServiceChange::Changed
            && !(renamed || error_is_new || table_size.differ() || min_healthy.differ())
            && !self.places_anew()
            && guard.is_none()
            && backends
                .iter()
                .all(|one| one.change == BackendChange::Kept && !one.serving.differ());
        if same {
            return None;
        }
        Some(ServicePreview {
            name: record.name.clone(),
            vip: record.endpoint.vip,
            port: record.endpoint.port,
            mode: record.mode,
            change,
            table_size,
            min_healthy,
            moved: match (&before, after) {
                _ if self.places_anew() => 1.0,
                (Some(before), Some(after)) => moved(before, after),
                (None, Some(_)) => 1.0,
                // No table is written: as it is, or, of a removed service, as it stays.
                (_, None) => 0.0,
            },
            guard,
            fail_open: resolved.fail_open,
            error,
            backends,
        })
    }

    /// The owners of today's table, if another is to be written for a reason that is the change's.
    fn owners_before(&self) -> Option<Vec<u32>> {
        let (_, today) = self.today?;
        let table = today.table.as_ref()?;
        Some(owners(&self.question.fleet_seed, today.placed_as, table))
            .filter(|_| self.changes_table() || self.resolved.table.is_none())
    }

    fn owners_after(&self) -> Option<&[u32]> {
        self.owners
            .filter(|_| self.changes_table())
            .map(|owners| &**owners)
    }

    fn changes_table(&self) -> bool {
        let today = self.today.map(|(_, today)| (today.placed_as, &today.table));
        today != Some((self.resolved.placed_as, &self.resolved.table))
    }

    /// Whether each client has another slot: the service begins or ceases to place clients, or does so together with others.
    fn places_anew(&self) -> bool {
        let places_clients = |service: &resolve::Service<'_>| {
            service.placing.is_some_and(|placing| placing.group != 0)
        };
        self.today.is_some_and(|(_, today)| {
            today.seed != self.resolved.seed
                || places_clients(today) != places_clients(self.resolved)
        })
    }

    fn backends(&self, before: Option<&[u32]>, after: Option<&[u32]>) -> Vec<BackendPreview> {
        let before = before.map(shares);
        let after = after.map(shares);
        let today: HashMap<_, _> = self
            .today
            .into_iter()
            .flat_map(|(record, resolved)| record.backends.iter().zip(&resolved.backends))
            .map(|(record, resolved)| (record.numbered, (record, resolved)))
            .collect();
        self.record
            .backends
            .iter()
            .zip(&self.resolved.backends)
            .filter_map(|(record, resolved)| {
                let was = today.get(&record.numbered).copied();
                let wanted_before = was.and_then(|(was, _)| was.wanted);
                let change = match (was, wanted_before, record.wanted) {
                    (_, None, None) => return None,
                    (None, _, Some(_)) => BackendChange::Added,
                    (Some(_), None, Some(_)) => BackendChange::Returns,
                    (_, Some(_), None) => BackendChange::Removed,
                    (Some((was, _)), Some(_), Some(_)) if is_changed(was, record) => {
                        BackendChange::Changed
                    }
                    (Some(_), Some(_), Some(_)) => BackendChange::Kept,
                };
                let id = record.numbered.id;
                let share = |shares: &Option<HashMap<u32, f64>>| {
                    shares
                        .as_ref()
                        .map(|all| all.get(&id).copied().unwrap_or(0.0))
                };
                let key = (id, record.numbered.generation);
                let counts = self.question.census.by_backend.get(&key).copied();
                Some(BackendPreview {
                    name: record.name.backend.clone(),
                    address: record.address,
                    port: record.port,
                    change,
                    weight: Sides {
                        before: wanted_before.map(|wanted| wanted.weight),
                        after: record.wanted.map(|wanted| wanted.weight),
                    },
                    admin: Sides {
                        before: wanted_before.map(|wanted| wanted.admin),
                        after: record.wanted.map(|wanted| wanted.admin),
                    },
                    serving: Sides {
                        before: was.map(|(_, was)| was.serving),
                        after: Some(resolved.serving),
                    },
                    share: Sides {
                        before: share(&before),
                        after: share(&after),
                    },
                    flows: counts.unwrap_or_default(),
                })
            })
            .collect()
    }
}

/// What changes of a guard, if anything does.
fn guard_preview(before: Option<&Guard>, after: Option<&Guard>) -> Option<GuardPreview> {
    if before == after {
        return None;
    }
    let lists = |guard: Option<&Guard>| guard.map(|guard| Arc::clone(&guard.lists));
    let (old, new) = (
        lists(before).unwrap_or_default(),
        lists(after).unwrap_or_default(),
    );
    Some(GuardPreview {
        before: before.map(Guard::short),
        after: after.map(Guard::short),
        added: new.beyond(&old) as u64,
        removed: old.beyond(&new) as u64,
    })
}

fn is_changed(was: &BackendRecord, is: &BackendRecord) -> bool {
    was.name != is.name
        || was.wanted.map(|wanted| (wanted.admin, wanted.weight))
            != is.wanted.map(|wanted| (wanted.admin, wanted.weight))
        || was.snat != is.snat
        || was.check != is.check
        || was.check_address != is.check_address
}

/// What of a table each backend has, 0 to 1.
fn shares(owners: &[u32]) -> HashMap<u32, f64> {
    let mut slots: HashMap<u32, u32> = HashMap::new();
    for &owner in owners {
        *slots.entry(owner).or_default() += 1;
    }
    let whole = owners.len().max(1) as f64;
    let share = |(owner, slots)| (owner, f64::from(slots) / whole);
    slots.into_iter().map(share).collect()
}

/// What part of new flows finds another owner, 0 to 1. A flow's slot is its hash scaled to the table's size, so slot `i` of `n` is the part from
/// `i / n` to `(i + 1) / n` of all flows, in a table of any size.
fn moved(before: &[u32], after: &[u32]) -> f64 {
    let (n, m) = (before.len() as u64, after.len() as u64);
    if n == 0 || m == 0 {
        return if n == m { 0.0 } else { 1.0 };
    }
    let (mut i, mut j, mut at, mut differing) = (0, 0, 0, 0);
    // In units of 1 / (n * m).
    while at < n * m {
        let end = ((i + 1) * m).min((j + 1) * n);
        if before[i as usize] != after[j as usize] {
            differing += end - at;
        }
        at = end;
        i += u64::from(at == (i + 1) * m);
        j += u64::from(at == (j + 1) * n);
    }
    differing as f64 / (n * m) as f64
}

impl Registry {
    /// What is known once `services` are wanted, if new backends that were not checked before are found to be healthy.
    fn foreseen(&self, services: Vec<desired::Service>) -> Self {
        let known: BTreeSet<_> = self
            .services()
            .flat_map(|one| &one.backends)
            .map(|one| one.numbered)
            .collect();
        let mut after = self.clone();
        after.replace(services);
        for backend in after.backends_mut() {
            if !known.contains(&backend.numbered) && backend.health == Health::Unknown {
                backend.health = Health::Up;
            }
        }
        after
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_that_moves_is_exact_whatever_the_sizes() {
        for (before, after, expected) in [
            (&[1, 2, 3, 4][..], &[1, 2, 3, 4][..], 0.0),
            (&[1, 2, 3, 4], &[1, 2, 3, 5], 0.25),
            (&[1, 2], &[1, 1, 2, 2], 0.0),
            (&[1, 2], &[1, 2, 2], 1.0 / 6.0),
            (&[1, 2, 3], &[2, 3], 0.5),
            (&[], &[1], 1.0),
            (&[], &[], 0.0),
        ] {
            let part = moved(before, after);
            assert!(
                (part - expected).abs() < 1e-12,
                "{before:?} {after:?}: {part}"
            );
        }
    }
}
