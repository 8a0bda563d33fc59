//! Backends whose clients send too much again, and what is promised of their ejection.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::{backend::Serving, clock::Tick, repeats::Repeats};
use lb_userspace::{
    balance::outlier::{Outlier, Signal},
    model::{Admin, Health},
    status::{BackendStatus, ServiceStatus},
};

use super::{
    LIMITS, Rare, SERVICES, World,
    check::look_up,
    setup::endpoint,
    strategy::{SENDERS, Sent},
};

/// What is known of ejections by a daemon.
#[derive(Default)]
pub(super) struct Ejections {
    /// When it planned last.
    planned: Option<Tick>,
    /// Who had clients that repeated themselves, by identity.
    ill: BTreeSet<u64>,
    /// Who is ejected, by identity.
    ejected: BTreeSet<u64>,
    /// How often one of a service was ejected, of those that fail open.
    failing_open: BTreeMap<String, u64>,
}

/// Whether those of a service that are ejected take no new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StandBack {
    ForSure,
    /// It is not told whether one of unknown health counts as usable.
    Perhaps,
    /// There are too few others.
    Never,
}

impl StandBack {
    /// Of a service that has enough with so many others.
    pub(super) fn of(service: &ServiceStatus, min_healthy: u32) -> Self {
        let are_enough = |healths: &[Health]| {
            let others: Vec<_> = candidates(service)
                .filter(|backend| healths.contains(&backend.health))
                .filter(|backend| backend.balance.ejected.is_none())
                .collect();
            others.len() >= min_healthy.max(1) as usize
                && others.iter().any(|backend| !backend.balance.full)
        };
        if service.fail_open {
            Self::Never
        } else if are_enough(&[Health::Up]) {
            Self::ForSure
        } else if are_enough(&[Health::Up, Health::Unknown]) {
            Self::Perhaps
        } else {
            Self::Never
        }
    }
}

/// Those who may take new flows, as far as the operator is concerned.
fn candidates(service: &ServiceStatus) -> impl Iterator<Item = &BackendStatus> {
    service
        .backends
        .iter()
        .filter(|backend| !backend.removed && backend.admin == Admin::Active && backend.weight > 0)
}

impl Sent {
    fn repeats(self) -> Repeats {
        const MANY: u64 = 0x01_0101_0101;
        const FEW: u64 = 0x0101_0101;
        const WELL: Repeats = Repeats {
            handshakes: 200,
            syns: 2,
            data: 1_000,
            data_again: 10,
            syn_clients: MANY,
            data_clients: MANY,
        };
        match self {
            Self::Nothing => Repeats::default(),
            Self::Well => WELL,
            Self::Ill(Signal::Data) => Repeats {
                data_again: 300,
                ..WELL
            },
            Self::Ill(Signal::Syns) => Repeats { syns: 100, ..WELL },
            Self::OfFew => Repeats {
                data_again: 300,
                data_clients: FEW,
                ..WELL
            },
        }
    }
}

impl World {
    /// All checks of a service find its backends well.
    pub(super) fn all_well(&mut self, service: usize) {
        let backends = self
            .service(service)
            .map_or(0, |wanted| wanted.backends.len());
        for backend in 0..backends {
            if let Some(key) = self.named(service, backend) {
                self.judge(key, Health::Up);
            }
        }
    }

    /// What the program counts of what clients send, and the time that this takes.
    pub(super) fn send(&mut self, sent: &[Sent]) {
        let measured = self.maps.measured.as_ref().unwrap();
        for service in 0..SERVICES {
            let Some(listed) = look_up(&self.maps, endpoint(service)) else {
                continue;
            };
            if !measured.measures(listed) {
                continue;
            }
            for id in 1..LIMITS.backends {
                let entry = self.maps.backends.get(id);
                if entry.identity == 0 || entry.service != listed {
                    continue;
                }
                let sent = sent[service * SENDERS + id as usize % SENDERS];
                measured.count(id, &sent.repeats());
                if matches!(sent, Sent::Ill(_)) {
                    self.ejections.ill.insert(entry.identity);
                }
            }
        }
        self.now = self.now.later(1);
    }

    /// What holds of ejections whenever there was a plan.
    pub(super) fn check_ejections(&mut self) {
        let planned = self.ejections.planned.replace(self.now);
        // All are judged anew with the first plan after time has passed.
        let are_judged = planned != Some(self.now);
        let status = self.state.status(Vec::new(), Vec::new(), Duration::ZERO);
        let mut ejected = BTreeSet::new();
        let mut others = BTreeSet::new();
        let mut failing_open = BTreeMap::new();
        for service in &status.services {
            for backend in &service.backends {
                let identity = backend.identity(service);
                if backend.balance.ejected.is_none() {
                    others.insert(identity);
                    continue;
                }
                ejected.insert(identity);
                assert!(
                    self.ejections.ill.contains(&identity),
                    "nothing is wrong with {backend:?}"
                );
                assert!(
                    backend.health != Health::Up || backend.serving != Serving::None,
                    "an ejection cuts nobody: {backend:?}"
                );
            }
            if service.removed || service.error.is_some() {
                continue;
            }
            let ejections = service.balance.ejections;
            if let Some(&before) = self.ejections.failing_open.get(&service.name) {
                assert!(ejections <= before, "in fail-open: {service:?}");
            }
            if service.fail_open {
                failing_open.insert(service.name.clone(), ejections);
            }
            let mut wanted = self.config.services.iter();
            let wanted = wanted.find(|wanted| wanted.name == service.name);
            let wanted = wanted.expect("it is configured");
            match wanted.policy.outlier {
                None => {
                    let mut all = service.backends.iter();
                    assert!(
                        all.all(|backend| backend.balance.ejected.is_none()),
                        "nobody asks for it: {service:?}"
                    );
                }
                Some(policy) if are_judged => {
                    check_share(service, &policy, wanted.min_healthy);
                }
                Some(_) => {}
            }
        }
        if planned.is_none() {
            assert_eq!(ejected, BTreeSet::new(), "a daemon begins with nobody");
        }
        let before = std::mem::replace(&mut self.ejections.ejected, ejected);
        self.ejections.failing_open = failing_open;
        let fresh = self.ejections.ejected.difference(&before).count();
        let returned = before.intersection(&others).count();
        self.came_about(Rare::Ejected, fresh);
        self.came_about(Rare::Returned, returned);
    }
}

/// No more are ejected than may be, and as many are left as are needed.
fn check_share(service: &ServiceStatus, policy: &Outlier, min_healthy: u32) {
    // One of unknown health may be one that could take new flows when the daemon began.
    let usable: Vec<_> = candidates(service)
        .filter(|backend| matches!(backend.health, Health::Up | Health::Unknown))
        .collect();
    let ejected = usable
        .iter()
        .filter(|backend| backend.balance.ejected.is_some())
        .count();
    let share = match policy.at_most {
        0 => 0,
        percent => (usable.len() * percent as usize / 100).max(1),
    };
    assert!(ejected <= share, "{ejected} of {share}: {service:?}");
    let left = usable.len() - ejected;
    assert!(
        ejected == 0 || left >= min_healthy.max(1) as usize,
        "{left} are left: {service:?}"
    );
}
