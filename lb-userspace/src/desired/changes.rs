//! What was changed at runtime, over the admin API: laid over the configuration, kept over restarts, told beside the file. Pure.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::may_be_answered;
use crate::{
    config::{Backend, BackendSpec, Config, Service, weight_broken},
    model::BackendName,
};

/// What is otherwise of one backend than the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is there, and like this.
    Put(BackendSpec),
    /// It has this share of new flows.
    Weight(u16),
    /// It is not there.
    Removed,
}

/// What people ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// A new backend, or another one under this name.
    Put(BackendSpec),
    /// Another share of new flows.
    Weight(u16),
    /// The end of a backend: it is drained as one that leaves the file.
    Remove,
    /// As the file has it.
    Revert,
}

/// Why an edit is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such service or backend.
    #[error("{0}")]
    Absent(String),
    /// It is wrong in itself, or beside the others.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be remembered, so it is not done.
    #[error("{0}")]
    Failed(String),
}

/// All that is otherwise than the file says; one change for each backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Entry>", into = "Vec<Entry>")]
pub struct Changes(BTreeMap<BackendName, Change>);

/// A change as it is saved: keys of JSON objects are text, and names are two.
#[derive(Serialize, Deserialize)]
struct Entry {
    name: BackendName,
    change: Change,
}

impl From<Vec<Entry>> for Changes {
    fn from(entries: Vec<Entry>) -> Self {
        let pairs = entries.into_iter().map(|entry| (entry.name, entry.change));
        Self(pairs.collect())
    }
}

impl From<Changes> for Vec<Entry> {
    fn from(changes: Changes) -> Self {
        let pairs = changes.0.into_iter();
        pairs.map(|(name, change)| Entry { name, change }).collect()
    }
}

/// A configuration with the changes laid over it.
#[derive(Clone, Debug)]
pub struct Overlaid {
    /// What is wanted.
    pub config: Config,
    /// The changes that are still any.
    pub changes: Changes,
    /// What no longer can be, and why.
    pub dropped: Vec<(BackendName, String)>,
}

impl Changes {
    /// Every change, by the backend's name.
    pub fn iter(&self) -> impl Iterator<Item = (&BackendName, &Change)> {
        self.0.iter()
    }

    /// Ends what is otherwise of a backend.
    pub fn forget(&mut self, name: &BackendName) {
        self.0.remove(name);
    }

    /// The changes after an edit; `base` is what they are laid over.
    ///
    /// # Errors
    /// When there is nothing to edit, or the result is not valid.
    pub fn edited(&self, base: &Config, name: &BackendName, edit: &Edit) -> Result<Self, Refusal> {
        let service = service(base, &name.service).ok_or_else(|| {
            Refusal::Absent(format!(
                "there is no service {:?} in {}; `tether status` lists them",
                name.service,
                base.path.display()
            ))
        })?;
        let in_file = backend(service, &name.backend);
        let changed = self.0.get(name);
        let is_there = match changed {
            Some(Change::Put(_)) => true,
            Some(Change::Removed) => false,
            Some(Change::Weight(_)) | None => in_file.is_some(),
        };
        let absent = || {
            Refusal::Absent(format!(
                "there is no backend {name}; `tether status` lists them"
            ))
        };
        let mut all = self.clone();
        match edit {
            Edit::Put(spec) => {
                all.0.insert(name.clone(), Change::Put(spec.clone()));
            }
            Edit::Weight(_) | Edit::Remove if !is_there => return Err(absent()),
            Edit::Weight(weight) => {
                if let Some((wrong, remedy)) = weight_broken(*weight) {
                    let text = format!("backend \"{name}\": {wrong}; {remedy}");
                    return Err(Refusal::Invalid(text));
                }
                let change = match changed {
                    Some(Change::Put(spec)) => Change::Put(BackendSpec {
                        weight: *weight,
                        ..spec.clone()
                    }),
                    _ => Change::Weight(*weight),
                };
                all.0.insert(name.clone(), change);
            }
            Edit::Remove if in_file.is_some() => {
                all.0.insert(name.clone(), Change::Removed);
            }
            Edit::Remove => {
                all.0.remove(name);
            }
            Edit::Revert if in_file.is_none() && changed.is_none() => return Err(absent()),
            Edit::Revert => {
                all.0.remove(name);
            }
        }
        let Overlaid {
            changes, dropped, ..
        } = all.over(base);
        // Whatever else is dropped was so before, or this edit takes its place.
        match dropped.into_iter().next() {
            None => Ok(changes),
            Some((_, why)) => Err(Refusal::Invalid(why)),
        }
    }

    /// Lays the changes over a configuration, which wins where both cannot be. Changes of a backend from the DNS outlive an answer without it.
    pub fn over(&self, base: &Config) -> Overlaid {
        let mut config = base.clone();
        let mut changes = Self::default();
        let mut dropped = Vec::new();
        let mut drop = |name: &BackendName, why: String| dropped.push((name.clone(), why));
        let mut puts: BTreeMap<&str, Vec<(&BackendName, &BackendSpec)>> = BTreeMap::new();
        for (name, change) in &self.0 {
            let mut services = config.services.iter_mut();
            let Some(service) = services.find(|service| service.name == name.service) else {
                drop(
                    name,
                    format!("there is no service {:?} any more", name.service),
                );
                continue;
            };
            let may_return = may_be_answered(service, &name.backend);
            let mut backends = service.backends.iter_mut();
            let held = backends.find(|backend| backend.name == name.backend);
            match (change, held) {
                (Change::Put(spec), _) => {
                    puts.entry(&name.service).or_default().push((name, spec));
                    continue;
                }
                (Change::Weight(_) | Change::Removed, None) if may_return => {}
                (Change::Weight(_) | Change::Removed, None) => {
                    drop(name, format!("{name} is not there any more"));
                    continue;
                }
                // As the file says by now.
                (Change::Weight(weight), Some(held)) if held.weight == *weight => continue,
                (Change::Weight(weight), Some(held)) => held.weight = *weight,
                (Change::Removed, Some(_)) => {
                    let others = |one: &Backend| one.name != name.backend;
                    service.backends.retain(others);
                }
            }
            changes.0.insert(name.clone(), change.clone());
        }
        for (service, puts) in puts {
            let mut services = config.services.iter_mut();
            let Some(service) = services.find(|one| one.name == service) else {
                continue;
            };
            let kept = put_all(service, &puts, &mut drop);
            changes.0.extend(kept);
        }
        Overlaid {
            config,
            changes,
            dropped,
        }
    }
}

/// Puts backends into a service, each in the place of one of its name. Gives the changes that these are.
///
/// One may need the endpoint that another gives up, so they are tried until no more of them can be.
fn put_all(
    service: &mut Service,
    puts: &[(&BackendName, &BackendSpec)],
    drop: &mut impl FnMut(&BackendName, String),
) -> Vec<(BackendName, Change)> {
    let mut kept = Vec::new();
    let mut left = puts.to_vec();
    loop {
        let mut refused = Vec::new();
        let before = left.len();
        for (name, spec) in left {
            match put(service, name, spec) {
                Ok(true) => kept.push((name.clone(), Change::Put(spec.clone()))),
                // As the file says by now.
                Ok(false) => {}
                Err(why) => refused.push((name, spec, why)),
            }
        }
        if refused.len() == before {
            for (name, _, why) in refused {
                drop(name, why);
            }
            return kept;
        }
        left = refused
            .into_iter()
            .map(|(name, spec, _)| (name, spec))
            .collect();
    }
}

/// Puts one backend. False if it was there just so.
fn put(service: &mut Service, name: &BackendName, spec: &BackendSpec) -> Result<bool, String> {
    let backend = service.backend(&name.backend, spec)?;
    let mut others = service.backends.iter();
    let taken = others.find(|one| one.name != backend.name && endpoint(one) == endpoint(&backend));
    if let Some(other) = taken {
        return Err(format!(
            "backend \"{name}\": {} is backend \"{}/{}\"'s already; name each backend once, and for a larger share raise its weight",
            endpoint(&backend),
            service.name,
            other.name
        ));
    }
    match service
        .backends
        .iter_mut()
        .find(|one| one.name == backend.name)
    {
        Some(held) if *held == backend => return Ok(false),
        Some(held) => *held = backend,
        None => {
            service.has_slots_for(service.backends.len() + 1)?;
            service.backends.push(backend);
        }
    }
    Ok(true)
}

fn service<'c>(config: &'c Config, name: &str) -> Option<&'c Service> {
    config.services.iter().find(|service| service.name == name)
}

fn backend<'s>(service: &'s Service, name: &str) -> Option<&'s Backend> {
    let mut backends = service.backends.iter();
    backends.find(|backend| backend.name == name)
}

fn endpoint(backend: &Backend) -> SocketAddr {
    SocketAddr::new(backend.address, backend.port)
}

#[cfg(test)]
mod tests;
