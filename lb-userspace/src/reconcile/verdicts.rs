//! What the checks say, while records of backends come and go.

use std::{collections::HashMap, net::SocketAddr};

use super::record::BackendRecord;
use crate::{
    desired,
    model::{BackendName, CheckKind, Health, LastError},
};

/// What the checks say of a backend.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub(super) health: Health,
    pub(super) last_error: Option<LastError>,
    pub(super) fell_at_ms: Option<u64>,
    pub(super) faltered_at_ms: Option<u64>,
}

impl Verdict {
    fn of(backend: &BackendRecord) -> Self {
        Self {
            health: backend.health,
            last_error: backend.last_error.clone(),
            fell_at_ms: backend.fell_at_ms,
            faltered_at_ms: backend.faltered_at_ms,
        }
    }
}

/// What the checks say of backends that leave.
#[derive(Default)]
pub(super) struct Verdicts {
    all: Vec<Verdict>,
    /// By name and address that is checked.
    by_name: HashMap<(BackendName, SocketAddr), usize>,
    /// By the address that is checked and what it is asked, but for what is asked through a VIP.
    by_question: HashMap<SocketAddr, Vec<(CheckKind, usize)>>,
}

impl Verdicts {
    pub(super) fn note(&mut self, backend: &BackendRecord) {
        let (at, address) = (self.all.len(), backend.check_address);
        self.all.push(Verdict::of(backend));
        self.by_name.insert((backend.name.clone(), address), at);
        if !backend.check.through_vip {
            let asked = self.by_question.entry(address).or_default();
            asked.push((backend.check.kind.clone(), at));
        }
    }

    /// What they say of a backend that comes in the place of one; of the same name, or else of what answers the same question, as at the renaming of a service.
    pub(super) fn of(&self, backend: &desired::Backend) -> Option<&Verdict> {
        let named = (backend.name.clone(), backend.check_address);
        let at = self.by_name.get(&named).copied().or_else(|| {
            if backend.check.through_vip {
                return None;
            }
            let asked = self.by_question.get(&backend.check_address)?;
            let mut asked = asked.iter();
            asked
                .find(|(kind, _)| *kind == backend.check.kind)
                .map(|&(_, at)| at)
        })?;
        self.all.get(at)
    }
}
