//! What stands for the health checks: they keep a verdict for as long as its name and address are checked, tell it when it changes, and again when another
//! object has the name.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use lb_userspace::{
    ids::Numbered,
    model::{BackendName, Health, HealthReport},
};

use super::World;

/// Whose health it is, and where that is checked.
type Key = (BackendName, SocketAddr);

/// Verdicts, each with the object that it was told of.
pub(super) type Verdicts = BTreeMap<Key, (Numbered, Health)>;

impl World {
    /// A check has another result; nobody is checked who is not to be.
    pub(super) fn judge(&mut self, key: Key, health: Health) {
        let targets = self.state.targets();
        let mut targets = targets.iter();
        let target = targets.find(|target| (&target.name, target.address) == (&key.0, key.1));
        if let Some(target) = target {
            let before = self.verdicts.insert(key.clone(), (target.object, health));
            if before.is_none_or(|(_, before)| before != health) {
                self.tell(key, health);
            }
        }
    }

    fn tell(&mut self, (name, address): Key, health: Health) {
        let report = HealthReport {
            name,
            address,
            health,
            last_error: None,
            answers_echoes: false,
        };
        self.state.heard(report, self.now_ms);
    }

    /// The checks see the latest targets, and say what they know to those that are new to them. Then everybody is what the checks say.
    pub(super) fn speak_for_new_objects(&mut self) {
        let targets = self.state.targets();
        let checked: BTreeSet<Key> = targets
            .iter()
            .map(|target| (target.name.clone(), target.address))
            .collect();
        self.verdicts.retain(|key, _| checked.contains(key));
        let mut told = false;
        for target in targets {
            let key = (target.name, target.address);
            let Some((object, health)) = self.verdicts.get_mut(&key) else {
                continue;
            };
            if *object != target.object {
                *object = target.object;
                let health = *health;
                self.tell(key, health);
                told = true;
            }
        }
        if told {
            self.converge();
        }
        self.check_verdicts();
    }

    fn check_verdicts(&self) {
        let status = self.state.status(Vec::new(), Vec::new(), Duration::ZERO);
        for service in &status.services {
            // Who has no id is not checked.
            if service.removed || service.error.is_some() {
                continue;
            }
            for backend in service.backends.iter().filter(|backend| !backend.removed) {
                let name = BackendName {
                    service: service.name.clone(),
                    backend: backend.name.clone(),
                };
                // The checks of a life go to where a backend serves.
                let key = (name, SocketAddr::new(backend.address, backend.port));
                // Of one that was not checked by this name yet it may be known what was said of another there.
                if let Some(&(_, known)) = self.verdicts.get(&key) {
                    assert_eq!(backend.health, known, "{key:?}");
                }
            }
        }
    }
}
