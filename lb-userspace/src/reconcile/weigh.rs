//! What the past says of each backend's part in the balance, kept up to date before each resolution.

use std::{collections::HashMap, time::Duration};

use lb_common::{backend::Serving, clock::Tick};

use super::{
    outliers::{ejected_of, repeats_of},
    record::{BackendRecord, ServiceRecord},
    registry::Registry,
};
use crate::{
    balance::{Balance, Spread, WHOLE, level::Taker, limit, share, slow_start::Start, zone::Zone},
    flows::Census,
    model::Health,
    pace::Moment,
    resolve,
    status::{BackendBalance, ServiceBalance},
};

/// What is new of slow starts: what is worse to forget is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Starts {
    /// Nothing.
    #[default]
    Same,
    /// One has come to its next step.
    WentOn,
    /// One has begun or ended.
    BegunOrEnded,
}

impl Registry {
    /// Takes in what the flow tables hold, at `now`. The same again changes nothing. Says what is new of slow starts.
    pub(super) fn weigh(&mut self, census: &Census, now: Tick) -> Starts {
        let mut news = Starts::Same;
        for service in self.services_mut() {
            let Some(wanted) = service.wanted else {
                continue;
            };
            for backend in &mut service.backends {
                watch_limit(backend, census, now);
                news = news.max(watch_start(backend, wanted.policy.slow_start, now));
            }
            level(service, wanted.policy.balance, census, now);
        }
        news
    }
}

/// Whether a backend has as many flows as it may.
fn watch_limit(backend: &mut BackendRecord, census: &Census, now: Tick) {
    let max = backend
        .wanted
        .and_then(|wanted| wanted.part.max_connections);
    let flows = connections(backend, census);
    // Before the first count, one that took no new flows before a restart may have been full.
    let held_back = backend.held.is_some_and(|held| held != Serving::New);
    let was = match backend.standing.full_since {
        None if flows.is_none() && held_back => Some(now),
        since => since,
    };
    let full_since = limit::full_since(was, max, flows, now);
    match (backend.standing.is_full(), full_since.is_some()) {
        (false, true) => tracing::info!(
            backend = %backend.name, max_connections = max, connections = flows,
            "it has as many connections as it may: it takes no new ones"
        ),
        (true, false) => tracing::info!(
            backend = %backend.name, max_connections = max, connections = flows,
            "it may have more connections again"
        ),
        _ => {}
    }
    backend.standing.full_since = full_since;
}

/// Whether a backend begins to take new flows, and how many it gets while it does. Says what of that is new.
fn watch_start(backend: &mut BackendRecord, slow_start: Duration, now: Tick) -> Starts {
    if let Some((began, factor)) = backend.held_start.take()
        && backend.standing.start.able
    {
        backend.standing.start = Start::resumed(began, factor, slow_start, now);
    }
    let (was, factor) = (backend.standing.start, backend.standing.start_factor);
    let able = if backend.held.is_some() && backend.health == Health::Unknown {
        // A restart is no beginning, and the maps do not tell one that was full, ejected or not needed from one that refuses. It is as it was until its checks
        // have spoken.
        was.able
    } else {
        let weight = backend.wanted.map_or(0, |wanted| wanted.weight);
        let serving = resolve::own_serving(backend.wanted, backend.health, backend.held);
        serving == Serving::New && weight > 0
    };
    let start = was.next(able, slow_start, now);
    match (was.began, start.began) {
        (None, Some(_)) => tracing::info!(backend = %backend.name, ?slow_start, "slow start"),
        (Some(_), None) => tracing::info!(backend = %backend.name, "slow start is over"),
        _ => {}
    }
    backend.standing.start = start;
    backend.standing.start_factor = start.factor(slow_start, now);
    if was.began != start.began {
        Starts::BegunOrEnded
    } else if factor != backend.standing.start_factor {
        Starts::WentOn
    } else {
        Starts::Same
    }
}

/// Moves the weights of a service's backends by what they have.
fn level(service: &mut ServiceRecord, balance: Balance, census: &Census, now: Tick) {
    let takes_new = |backend: &BackendRecord| {
        let own = resolve::own_serving(backend.wanted, backend.health, backend.held);
        own == Serving::New && backend.serving == Serving::New && backend.standing.start.able
    };
    for backend in &mut service.backends {
        // Who takes none for a while begins anew with its weight.
        if balance == Balance::Weights || !takes_new(backend) {
            backend.standing.level_factor = WHOLE;
        }
    }
    // In fail-open it is not known who really takes what it is given.
    if balance == Balance::Weights || service.fail_open {
        return;
    }
    // How much each zone gets is for the zones to say.
    let zones = [Zone::Unsaid, Zone::Local, Zone::Other];
    let members = zones.map(|zone| {
        let all = 0..service.backends.len();
        all.filter(|&n| {
            let backend = &service.backends[n];
            let part = backend.wanted.map(|wanted| wanted.part);
            takes_new(backend) && part.is_some_and(|part| part.zone == zone)
        })
        .collect::<Vec<_>>()
    });
    let mut groups = members.each_ref().map(|members| {
        let taker = |&n: &usize| {
            let backend = &service.backends[n];
            Taker {
                weight: f64::from(backend.weight) * f64::from(backend.standing.start_factor),
                connections: connections(backend, census).unwrap_or(0),
                factor: backend.standing.level_factor,
            }
        };
        members.iter().map(taker).collect::<Vec<_>>()
    });
    if !service.level.move_factors(&mut groups, census.scans, now) {
        return;
    }
    let mut told = Vec::new();
    for (n, taker) in members.into_iter().flatten().zip(groups.iter().flatten()) {
        let backend = &mut service.backends[n];
        if backend.standing.level_factor != taker.factor {
            backend.standing.level_factor = taker.factor;
            let percent = u32::from(taker.factor) * 100 / u32::from(WHOLE);
            told.push(format!("{} {percent}%", backend.name.backend));
        }
    }
    let weights = summary(&told);
    tracing::info!(service = service.name, %weights, "weights moved to even out connections");
}

/// Some of many words for a line of the log.
fn summary(words: &[String]) -> String {
    const MOST: usize = 8;
    let (shown, rest) = words.split_at(words.len().min(MOST));
    match rest.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A backend's flows as they were last counted; none before that.
fn connections(backend: &BackendRecord, census: &Census) -> Option<u64> {
    let key = (backend.numbered.id, backend.numbered.generation);
    let counts = census.by_backend.get(&key).copied().unwrap_or_default();
    (census.scans > 0).then(|| counts.live())
}

/// Parts of a thousand new flows, by the ids of backends.
pub(super) fn per_mille(service: &resolve::Service<'_>) -> HashMap<u32, u16> {
    let members = service.table.iter().flat_map(|table| &table.members);
    let (ids, weights): (Vec<u32>, Vec<u16>) =
        members.map(|share| (share.id, share.weight)).unzip();
    ids.into_iter().zip(share::per_mille(&weights)).collect()
}

/// What the status says of a backend's part in the balance, as of the moment of the latest plan.
pub(super) fn balance_of(
    service: &ServiceRecord,
    backend: &BackendRecord,
    planned: Option<Moment>,
) -> BackendBalance {
    let part = backend.wanted.map(|wanted| wanted.part).unwrap_or_default();
    BackendBalance {
        max_connections: part.max_connections,
        full: backend.standing.is_full(),
        backup: part.backup,
        zone: backend.zone.clone(),
        per_mille: backend.per_mille,
        starting: backend.standing.start.began.is_some(),
        ejected: ejected_of(backend, planned),
        repeats: repeats_of(service, backend),
    }
}

/// What the status says of how a service's new flows are spread.
pub(super) fn spread_of(service: &ServiceRecord) -> ServiceBalance {
    ServiceBalance {
        backups: service.spread.backups,
        spills: service.spread.spills,
        balance: service
            .wanted
            .map(|wanted| wanted.policy.balance)
            .unwrap_or_default(),
        moves: service.level.moves,
        ejections: service.ejections,
    }
}

/// Says what has changed in how a service's new flows are spread.
pub(super) fn tell_of_spread(service: &str, was: Spread, is: Spread) {
    if is.full && !was.full {
        tracing::warn!(
            service,
            "every usable backend has as many connections as its max_connections: new ones are dropped"
        );
    }
    match (was.backups, is.backups) {
        (false, true) => tracing::warn!(
            service,
            "fewer primary backends than backup_below can take new flows: backups do too"
        ),
        (true, false) => tracing::info!(service, "backups take no new flows any more"),
        _ => {}
    }
    match (was.spills, is.spills) {
        (false, true) => tracing::warn!(
            service,
            "less of the local zone than zone_enough can take new flows: other zones take some"
        ),
        (true, false) => tracing::info!(service, "no new flows spill over to other zones any more"),
        _ => {}
    }
}
