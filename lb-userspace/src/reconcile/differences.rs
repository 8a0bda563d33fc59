//! What is otherwise than the file says, for the status.

use std::net::SocketAddr;

use super::state::State;
use crate::{
    config::Backend,
    desired::{Change, find},
    model::{Admin, BackendName},
    status::{Difference, DifferenceKind},
};

impl State {
    /// Every backend that is otherwise than the file says, by name.
    pub(super) fn differences(&self) -> Vec<Difference> {
        // One that waits for an answer that has its backend again changes nothing now.
        let is_laid = |(name, change): &(&BackendName, &Change)| {
            matches!(change, Change::Put(_)) || find(&self.base, name).is_some()
        };
        let changed = self
            .changes
            .iter()
            .filter(is_laid)
            .map(|(name, change)| self.difference(name, change));
        let drained = self.ordered.backends.keys().filter_map(|name| {
            let backend = find(&self.config, name)?;
            (backend.admin == Admin::Active).then(|| Difference {
                service: name.service.clone(),
                backend: name.backend.clone(),
                change: DifferenceKind::Drained,
                now: Some("draining".to_owned()),
                file: Some("active".to_owned()),
            })
        });
        let mut all: Vec<Difference> = changed.chain(drained).collect();
        all.sort_by(|a, b| (&a.service, &a.backend).cmp(&(&b.service, &b.backend)));
        all
    }

    fn difference(&self, name: &BackendName, change: &Change) -> Difference {
        let now = find(&self.config, name);
        let file = find(&self.base, name);
        let (change, now, file) = match change {
            Change::Put(_) => (
                if file.is_some() {
                    DifferenceKind::Replaced
                } else {
                    DifferenceKind::Added
                },
                now.map(whole),
                file.map(whole),
            ),
            Change::Weight(_) => (DifferenceKind::Weight, now.map(weight), file.map(weight)),
            Change::Removed => (DifferenceKind::Removed, None, file.map(whole)),
        };
        Difference {
            service: name.service.clone(),
            backend: name.backend.clone(),
            change,
            now,
            file,
        }
    }
}

fn weight(backend: &Backend) -> String {
    format!("weight {}", backend.weight)
}

fn whole(backend: &Backend) -> String {
    let admin = match backend.admin {
        Admin::Active => "",
        Admin::Draining => ", draining",
        Admin::Disabled => ", disabled",
    };
    format!(
        "{}, weight {}{admin}",
        SocketAddr::new(backend.address, backend.port),
        backend.weight
    )
}
