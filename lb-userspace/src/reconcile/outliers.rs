//! Which backends' clients send too much again: reads what the program has counted, in steps, and keeps each backend's standing up to date before a
//! resolution.

use lb_common::backend::Serving;

use super::{
    record::{BackendRecord, ServiceRecord},
    registry::Registry,
};
use crate::{
    balance::outlier::{self, Ejection, Outlier, Signal},
    dataplane::maps::Measured,
    pace::Moment,
    resolve,
    status::{EjectedStatus, RepeatsStatus, ShareStatus},
};

impl Registry {
    /// Takes in what was counted by `now`, if a step of a service's window is over, or somebody's ejection, and says when the next one is. The same again
    /// changes nothing. Without a program that counts, nobody is an outlier.
    pub(super) fn judge(&mut self, measured: Option<&Measured>, now: Moment) -> Option<Moment> {
        let mut next = None;
        for service in self.services_mut() {
            let policy = service.wanted.and_then(|wanted| wanted.policy.outlier);
            if let Some(measured) = measured {
                measured.measure(service.id, policy.is_some());
            }
            let (Some(policy), Some(measured)) = (policy, measured) else {
                forget(service);
                continue;
            };
            for backend in &mut service.backends {
                begin(backend, measured);
            }
            if due(service, &policy).is_none_or(|due| due <= now) {
                step(service, &policy, measured, now);
                service.judged = Some(now);
            }
            next = next.into_iter().chain(due(service, &policy)).min();
        }
        next
    }
}

/// When a service is to be judged next; at once if it never was. An ejection may be shorter than a step, and ends in time.
fn due(service: &ServiceRecord, policy: &Outlier) -> Option<Moment> {
    let step = service.judged?.later(policy.step());
    let backends = service.backends.iter();
    let ends = backends.filter_map(|backend| Some(backend.sent.ejected?.until));
    ends.chain([step]).min()
}

/// A service of which nothing is counted any more.
fn forget(service: &mut ServiceRecord) {
    service.judged = None;
    for backend in &mut service.backends {
        let was = backend.standing.ejected.take();
        backend.sent = outlier::Memory::default();
        tell(backend, was);
    }
}

/// Has a backend be judged anew that begins to be able to take new flows. Seen with every change of its health, and not only when a step is over: it may
/// come and go within one.
fn begin(backend: &mut BackendRecord, measured: &Measured) {
    let able = is_able(backend);
    if backend.sent.begins(able) {
        let counted = measured.take(backend.numbered.id);
        backend.sent.window.begin(counted);
    }
}

fn step(service: &mut ServiceRecord, policy: &Outlier, measured: &Measured, now: Moment) {
    let min_healthy = service.wanted.map_or(0, |wanted| wanted.min_healthy);
    for backend in &mut service.backends {
        let counted = measured.take(backend.numbered.id);
        backend.sent.window.step(counted);
    }
    let mut able = Vec::new();
    for backend in &mut service.backends {
        if is_able(backend) {
            able.push(&mut backend.sent);
        } else {
            outlier::expire(&mut backend.sent, now);
        }
    }
    // In fail-open it is not known who really takes what it is given.
    let may_eject = !service.fail_open;
    outlier::judge(policy, min_healthy as usize, may_eject, &mut able, now);
    for backend in &mut service.backends {
        let was = backend.standing.ejected;
        backend.standing.ejected = backend.sent.ejected;
        service.ejections += u64::from(news(was, backend.standing.ejected).is_some());
        tell(backend, was);
    }
}

/// Whether a backend could take new flows, by its own admin state and health.
fn is_able(backend: &BackendRecord) -> bool {
    let weight = backend.wanted.map_or(0, |wanted| wanted.weight);
    let own = resolve::own_serving(backend.wanted, backend.health, backend.held);
    own == Serving::New && weight > 0
}

/// An ejection that is another than the one before.
fn news(was: Option<Ejection>, is: Option<Ejection>) -> Option<Ejection> {
    is.filter(|is| was.is_none_or(|was| !was.is(is)))
}

/// Says what has changed.
fn tell(backend: &BackendRecord, was: Option<Ejection>) {
    let is = backend.standing.ejected;
    if let Some(ejection) = news(was, is) {
        let why = why(&ejection);
        tracing::warn!(backend = %backend.name, times = ejection.times, "ejected: {why}; it takes no new flows for a while");
    } else if was.is_some() && is.is_none() {
        tracing::info!(backend = %backend.name, "no longer ejected");
    }
}

/// Why a backend is ejected, for people.
fn why(ejection: &Ejection) -> String {
    let what = match ejection.signal {
        Signal::Syns => "SYNs",
        Signal::Data => "data segments",
    };
    let percent = |per_mille: u32| f64::from(per_mille) / 10.0;
    format!(
        "clients send {:.1}% of their {what} again, and {:.1}% to its peers",
        percent(ejection.share),
        percent(ejection.peers)
    )
}

/// What the status says of why a backend is ejected, if it is.
pub(super) fn ejected_of(backend: &BackendRecord, now: Option<Moment>) -> Option<EjectedStatus> {
    let ejection = backend.standing.ejected?;
    let left = now.map_or(std::time::Duration::ZERO, |now| ejection.until.since(now));
    Some(EjectedStatus {
        signal: ejection.signal,
        reason: why(&ejection),
        times: ejection.times,
        left_s: left.as_secs() + u64::from(left.subsec_millis() > 0),
    })
}

/// What the status says of what a backend's clients send again, if that is counted.
pub(super) fn repeats_of(
    service: &ServiceRecord,
    backend: &BackendRecord,
) -> Option<RepeatsStatus> {
    service.judged?;
    let share = |signal| {
        let share = backend.sent.window.share(signal);
        ShareStatus {
            samples: share.samples,
            again: share.again,
            per_mille: share.per_mille(),
        }
    };
    Some(RepeatsStatus {
        syns: share(Signal::Syns),
        data: share(Signal::Data),
    })
}
