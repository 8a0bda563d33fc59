//! What each service and backend is given, from what is wanted and what is found out. Pure.

mod sight;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use lb_common::{
    backend::{Mode, NextHop, Serving},
    clock::TICK_NS,
    hash::Seed,
    nat::SNAT_ADDRESSES,
};

pub use self::sight::WellSeen;
use self::sight::{Sight, may_be_the_first};
use crate::{
    balance::{
        Part, Policy, Spread, Standing, WHOLE, share,
        zone::{self, Capacity, Split, Zone},
    },
    desired::Endpoint,
    guard::Guard,
    ids::{self, Numbered},
    model::{Admin, Health, Initial, OnDown, Suspension},
    pace::{self, Moment, Pace, Ramp},
};

/// What is known of a service.
#[derive(Clone, Debug)]
pub struct ServiceFacts<'a> {
    /// Its id.
    pub id: u16,
    /// Its name.
    pub name: &'a str,
    /// Where it is reached.
    pub endpoint: Endpoint,
    /// What is wanted of it; none if it is removed and only there for the flows it has.
    pub wanted: Option<WantedService>,
    /// How it places clients, if it places them and not each flow for itself.
    pub affinity: Option<Affinity<'a>>,
    /// Whom it takes new flows from, and how many of one source, if that is limited.
    pub guard: Option<&'a Guard>,
    /// What becomes of the flows of its dead backends.
    pub on_down: OnDown,
    /// Over which time clients of its dead backends are told.
    pub reset_over: Duration,
    /// How both were up to now; none if that is not known.
    pub told_before: Option<(OnDown, Duration)>,
    /// Whether clients of its dead backends were not told up to now.
    pub resets_were_suspended: bool,
    /// When a host was last seen to be well.
    pub well_seen: WellSeen,
    /// Its backends, removed ones among them.
    pub backends: Vec<BackendFacts<'a>>,
}

/// How a service places clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity<'a> {
    /// Services of one group place clients together; none: it does so alone.
    pub group: Option<&'a str>,
    /// How long a client without flows keeps its backend; zero: its address alone decides.
    pub timeout: Duration,
}

/// How a service places, as the maps say it: see [`lb_common::service::Service::affinity`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placing {
    /// Number of the services that place clients together; 0: it places flows.
    pub group: u16,
    /// How long a client without flows keeps its backend, in ticks.
    pub ticks: u16,
}

/// What is wanted of a service.
#[derive(Clone, Copy, Debug)]
pub struct WantedService {
    /// Slots of its table.
    pub table_size: u32,
    /// With fewer usable backends than this it fails open.
    pub min_healthy: u32,
    /// How new flows are spread.
    pub policy: Policy,
}

/// What is known of a backend.
#[derive(Clone, Debug)]
pub struct BackendFacts<'a> {
    /// Its id.
    pub numbered: Numbered,
    /// Its identity.
    pub identity: u64,
    /// Its name in the service.
    pub name: &'a str,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its mode.
    pub mode: Mode,
    /// What is wanted of it; none if it is removed.
    pub wanted: Option<WantedBackend>,
    /// What the checks say.
    pub health: Health,
    /// When it fell, if it is down and was not so before, in milliseconds since boot, as [`Moment`] has them.
    pub fell_at_ms: Option<u64>,
    /// Since when its checks have failed, if the latest one did; by the same clock.
    pub faltered_at_ms: Option<u64>,
    /// Since when it serves nothing, if it does, as far as the pace of telling its clients is concerned.
    pub died: Option<Moment>,
    /// Until when its clients are not told that it is down, if it was when nobody's were told, or may be the first of many to fall.
    pub spared: Option<Moment>,
    /// Within this time a check of it begins and ends.
    pub next_check: Duration,
    /// When its flows are closed, if its drain has a deadline.
    pub closing: Option<Ramp>,
    /// What it served when it was found in the maps, to hold until the first verdict.
    pub held: Option<Serving>,
    /// The way to its address.
    pub hop: Hop,
    /// What the past says of its part in the balance.
    pub standing: Standing,
    /// Modes `nat` and `dnat`, and on this host: what it is to the translation of addresses.
    pub translated: Option<Translated>,
}

/// What a backend is to the translation of addresses: the numbers of its endpoint and of the pairs that it is one half of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translated {
    /// Number of its address and port; 0 where there was none left.
    pub endpoint: u16,
    /// Mode `nat`: numbers of the pairs with its service's SNAT addresses, in order, then 0.
    pub pairs: [u16; SNAT_ADDRESSES],
}

/// What is wanted of a backend.
#[derive(Clone, Copy, Debug)]
pub struct WantedBackend {
    /// Admin state.
    pub admin: Admin,
    /// Share of new flows.
    pub weight: u16,
    /// What it counts as until the first verdict.
    pub initial: Initial,
    /// Its part in the balance.
    pub part: Part,
}

/// What is known of the way to an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hop {
    /// Nothing yet: what the maps hold stays.
    #[default]
    Unheard,
    /// There is no way.
    Unresolved,
    /// The way.
    Resolved(NextHop),
}

/// What was found out about the way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The way.
    pub hop: Hop,
    /// Whether no router is in between.
    pub on_link: bool,
}

impl Found {
    /// The way for a mode. A frame that `l2` hands to a router is addressed to the VIP, so the router would send it back here.
    pub fn for_mode(self, mode: Mode) -> Hop {
        match (mode, self.hop) {
            (_, Hop::Resolved(hop)) if hop.is_local() => self.hop,
            (Mode::L2, Hop::Resolved(_)) if !self.on_link => Hop::Unresolved,
            (_, hop) => hop,
        }
    }
}

/// A service with what it is given.
#[derive(Clone, Debug)]
pub struct Service<'a> {
    /// Its id.
    pub id: u16,
    /// Its name.
    pub name: &'a str,
    /// Where it is reached.
    pub endpoint: Endpoint,
    /// Keys its choice of slots.
    pub seed: Seed,
    /// How it places; none if it is removed, and does as it did.
    pub placing: Option<Placing>,
    /// Under which name its table is made: services that place clients together have tables alike if their backends are.
    pub placed_as: &'a str,
    /// Whom it takes new flows from, and how many of one source, if that is limited; nobody's are if it is removed, since it gets none.
    pub guard: Option<&'a Guard>,
    /// Its table; none if it is removed, and keeps the table that it has.
    pub table: Option<Table<'a>>,
    /// Whether too few backends are usable, so that all active ones take new flows.
    pub fail_open: bool,
    /// How new flows are spread.
    pub spread: Spread,
    /// Why clients of dead backends are not told, if they are not.
    pub resets_suspended: Option<Suspension>,
    /// When a host was last seen to be well.
    pub well_seen: WellSeen,
    /// Its backends, in the order of the facts.
    pub backends: Vec<Backend>,
}

/// What a table is made of. The owners of its slots depend on this, the service's name and the fleet's seed only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table<'a> {
    /// Slots.
    pub size: u32,
    /// Who shares them; nobody is legal.
    pub members: Vec<Share<'a>>,
}

/// One backend's share of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its weight, at least 1.
    pub weight: u16,
    /// Its id.
    pub id: u32,
}

/// A backend with what it is given.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// Its id.
    pub numbered: Numbered,
    /// Its identity.
    pub identity: u64,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its mode.
    pub mode: Mode,
    /// What it is given.
    pub serving: Serving,
    /// Since when it serves nothing, if it does.
    pub died: Option<Moment>,
    /// Until when its clients are not told that it is down, if it was when nobody's were told, or may be the first of many to fall.
    pub spared: Option<Moment>,
    /// Which of its flows are closed.
    pub pace: Option<Pace>,
    /// What becomes of the others, if it serves nothing.
    pub on_down: OnDown,
    /// When that changes by itself.
    pub due: Option<Moment>,
    /// The way to it, complete.
    pub hop: Hop,
    /// What it is to the translation of addresses: nothing in modes `l2` and `ipip`.
    pub translated: Translated,
}

/// Resolves all services of an instance, as of this moment.
///
/// With the same configuration, health and seed, all load balancers of a fleet come to the same tables.
pub fn resolve<'a>(
    fleet_seed: &[u64; 4],
    services: &[ServiceFacts<'a>],
    now: Moment,
) -> Vec<Service<'a>> {
    let everywhere = services.iter().flat_map(|service| &service.backends);
    let seen = services
        .iter()
        .filter_map(|service| service.well_seen.everywhere)
        .max();
    // When most of what this machine sees has died at once, then perhaps its own sight has.
    let all = Sight::of(everywhere, seen, now);
    // A group is called by the lowest number of its services, of which none is 0.
    let mut groups = BTreeMap::new();
    for service in services {
        if let Some(Affinity {
            group: Some(group), ..
        }) = service.affinity
        {
            let number = groups.entry(group).or_insert(service.id);
            *number = service.id.min(*number);
        }
    }
    let placing = |service: &ServiceFacts<'a>| match service.affinity {
        Some(affinity) => Placing {
            group: affinity.group.map_or(service.id, |group| groups[group]),
            ticks: in_ticks(affinity.timeout),
        },
        None => Placing::default(),
    };
    services
        .iter()
        .map(|service| resolve_service(fleet_seed, service, placing(service), all, now))
        .collect()
}

/// A time as whole ticks that it fits in.
fn in_ticks(time: Duration) -> u16 {
    let ticks = time.as_nanos().div_ceil(u128::from(TICK_NS));
    u16::try_from(ticks).unwrap_or(u16::MAX)
}

fn resolve_service<'a>(
    fleet_seed: &[u64; 4],
    facts: &ServiceFacts<'a>,
    placing: Placing,
    all: Sight,
    now: Moment,
) -> Service<'a> {
    let may_take_new = |backend: &&BackendFacts<'_>| {
        facts.wanted.is_some()
            && backend
                .wanted
                .is_some_and(|wanted| wanted.admin == Admin::Active && wanted.weight > 0)
    };
    let candidates = || facts.backends.iter().filter(may_take_new);
    let usable = candidates()
        .filter(|backend| serving(backend) == Serving::New)
        .count();
    let enough = facts
        .wanted
        .is_none_or(|wanted| usable >= wanted.min_healthy as usize);
    let fail_open = !enough && candidates().next().is_some();
    // Who is ejected stands back for the others, if there are enough of those: it is worse than they are, and better than nobody.
    let others = || {
        candidates().filter(|backend| {
            serving(backend) == Serving::New && backend.standing.ejected.is_none()
        })
    };
    let needed = facts.wanted.map_or(1, |wanted| wanted.min_healthy.max(1));
    let are_enough =
        others().count() >= needed as usize && others().any(|backend| !backend.standing.is_full());
    let stands_back = |backend: &BackendFacts<'_>| are_enough && backend.standing.ejected.is_some();
    let can_take_new = |backend: &&BackendFacts<'_>| {
        may_take_new(backend)
            && serving(backend) == Serving::New
            && !backend.standing.is_full()
            && !stands_back(backend)
    };
    let is_backup = |backend: &BackendFacts<'_>| {
        let part = backend.wanted.map(|wanted| wanted.part);
        part.is_some_and(|part| part.backup)
    };
    let (backups, primaries) = facts
        .backends
        .iter()
        .filter(can_take_new)
        .partition::<Vec<_>, _>(|backend| is_backup(backend));
    let policy = facts.wanted.map(|wanted| wanted.policy).unwrap_or_default();
    let needs_backups = primaries.len() < policy.backup_below as usize;
    let capacity = capacity(
        facts,
        &primaries,
        if needs_backups { &backups } else { &[] },
    );
    // Which checks are wrong is not known in fail-open, so neither is what each zone can take.
    let split = if fail_open {
        Split::Even
    } else {
        zone::split(capacity, policy.zone_enough)
    };
    // What is most in doubt comes first: a mass fall is also what most fail-opens come from.
    let own = Sight::of(facts.backends.iter(), facts.well_seen.own, now);
    let resets_suspended = if own.doubt.is_some() {
        Some(Suspension::MassFall)
    } else if all.doubt.is_some() {
        Some(Suspension::MassFallEverywhere)
    } else if fail_open {
        Some(Suspension::FailOpen)
    } else {
        // Also where nobody is usable because the operator has drained all: no check has said so, and whoever is dead is.
        None
    };
    // What was dark together may be light together, and is not found so in one moment: each has another check before its clients are told. Nor does
    // what goes dark together fall in one moment: the first have a check's time, so that it is not their clients who pay for those who fall last.
    let spared = |backend: &BackendFacts<'_>| match backend.health {
        Health::Down if resets_suspended.is_some() || facts.resets_were_suspended => {
            Some(now.later(backend.next_check))
        }
        Health::Down => match backend.spared {
            Some(until) => (until > now).then_some(until),
            None if backend.died.is_none() && may_be_the_first(backend, &facts.backends) => {
                Some(now.later(backend.next_check))
            }
            None => None,
        },
        Health::Unknown | Health::Up | Health::Refusing => None,
    };
    let given = |backend: &BackendFacts<'_>| match serving(backend) {
        // One that is full has too much to do, whatever is wrong with the checks.
        _ if fail_open && may_take_new(&backend) && !backend.standing.is_full() => Serving::New,
        // Full, ejected, of weight 0, or the service itself is removed.
        Serving::New if !can_take_new(&backend) => Serving::ExistingOnly,
        Serving::New if is_backup(backend) && !needs_backups => Serving::ExistingOnly,
        Serving::New if split == Split::Local && !is_local(backend) => Serving::ExistingOnly,
        Serving::None if resets_suspended.is_some() || spared(backend).is_some() => {
            Serving::ExistingOnly
        }
        serving => serving,
    };
    let backends: Vec<Backend> = facts
        .backends
        .iter()
        .map(|backend| {
            let serving = given(backend);
            let died = (serving == Serving::None).then(|| died(facts, backend, now));
            let is_reset = facts.on_down == OnDown::Reset;
            let told = died.filter(|_| is_reset);
            let (pace, due) = pace::pace(backend.closing, told, facts.reset_over, now);
            let spared = spared(backend);
            // While resets are suspended it is not time that ends that, but for a fall of many.
            let spared_until = match resets_suspended {
                None => spared,
                Some(_) => spared.and_then(|_| own.doubt.or(all.doubt)?.ends),
            };
            Backend {
                numbered: backend.numbered,
                identity: backend.identity,
                address: backend.address,
                port: backend.port,
                mode: backend.mode,
                serving,
                died,
                spared,
                pace,
                on_down: facts.on_down,
                due: due.into_iter().chain(spared_until).min(),
                hop: complete(backend),
                translated: backend.translated.unwrap_or_default(),
            }
        })
        .collect();
    let taking = || {
        let pairs = facts.backends.iter().zip(&backends);
        pairs.filter(|(_, given)| given.serving == Serving::New)
    };
    let weights = weights(taking().map(|(backend, _)| backend), split, fail_open);
    let members: Vec<Share<'_>> = taking()
        .zip(&weights)
        .map(|((backend, _), &weight)| Share {
            name: backend.name,
            weight,
            id: backend.numbered.id,
        })
        .collect();
    let Endpoint { vip, port } = facts.endpoint;
    let group = facts.affinity.and_then(|affinity| affinity.group);
    Service {
        id: facts.id,
        name: facts.name,
        endpoint: facts.endpoint,
        seed: match group {
            Some(group) => ids::group_seed(fleet_seed, group),
            None => ids::service_seed(fleet_seed, vip, port),
        },
        placing: facts.wanted.map(|_| placing),
        placed_as: group.unwrap_or(facts.name),
        guard: facts.wanted.and(facts.guard),
        spread: Spread {
            full: usable > 0 && members.is_empty(),
            backups: !fail_open && needs_backups && !backups.is_empty(),
            spills: !fail_open
                && split != Split::Local
                && capacity.local > 0
                && capacity.others_able > 0,
        },
        table: facts.wanted.map(|wanted| Table {
            size: wanted.table_size,
            members,
        }),
        fail_open,
        resets_suspended,
        well_seen: WellSeen {
            own: own.well_seen,
            everywhere: all.well_seen,
        },
        backends,
    }
}

/// Since when a backend that serves nothing does so, for the pace at which its clients are told. If that is another now it goes on from where it was: who
/// were not told, or only over a long time, are not told all at once.
fn died(facts: &ServiceFacts<'_>, backend: &BackendFacts<'_>, now: Moment) -> Moment {
    let Some(from) = backend.died else { return now };
    match facts.told_before {
        Some((on_down, over)) if (on_down, over) != (facts.on_down, facts.reset_over) => {
            let told = (on_down == OnDown::Reset)
                .then(|| Ramp { from, over }.share(now))
                .flatten();
            let over = facts.reset_over;
            Ramp { from: now, over }.going_on(told, now).from
        }
        _ => from,
    }
}

/// The weights of those that take new flows. In fail-open they are as configured: nothing else is certain then.
fn weights<'f>(
    backends: impl Iterator<Item = &'f BackendFacts<'f>> + Clone,
    split: Split,
    fail_open: bool,
) -> Vec<u16> {
    let weight = |backend: &BackendFacts<'_>| backend.wanted.map_or(0, |wanted| wanted.weight);
    let factor = |backend: &BackendFacts<'_>| match fail_open {
        true => WHOLE,
        false => backend.standing.factor(),
    };
    let (local, others) = match split {
        Split::Spill { local, others } => (local, others),
        Split::Even | Split::Local => (1, 1),
    };
    if local == others && backends.clone().all(|backend| factor(backend) == WHOLE) {
        return backends.map(weight).collect();
    }
    let exact: Vec<u64> = backends
        .map(|backend| {
            let zone = if is_local(backend) { local } else { others };
            u64::from(weight(backend)) * u64::from(factor(backend)) * zone
        })
        .collect();
    share::weights(&exact)
}

/// The weights of a service's zones.
fn capacity(
    facts: &ServiceFacts<'_>,
    primaries: &[&BackendFacts<'_>],
    backups: &[&BackendFacts<'_>],
) -> Capacity {
    let sum = |backends: &mut dyn Iterator<Item = &BackendFacts<'_>>| {
        let wanted = backends.filter_map(|backend| backend.wanted);
        wanted.map(|wanted| u64::from(wanted.weight)).sum()
    };
    let able = |local| {
        let all = primaries.iter().chain(backups).copied();
        sum(&mut all.filter(move |backend| is_local(backend) == local))
    };
    Capacity {
        // What is drained or disabled there is missing too.
        local: sum(&mut facts.backends.iter().filter(|backend| {
            let part = backend.wanted.map(|wanted| wanted.part);
            is_local(backend) && part.is_some_and(|part| !part.backup)
        })),
        local_able: able(true),
        others_able: able(false),
    }
}

/// Whether a backend is in the balancer's own zone.
fn is_local(backend: &BackendFacts<'_>) -> bool {
    let part = backend.wanted.map(|wanted| wanted.part);
    part.is_some_and(|part| part.zone == Zone::Local)
}

fn serving(backend: &BackendFacts<'_>) -> Serving {
    own_serving(backend.wanted, backend.health, backend.held)
}

/// What a backend is given by its own admin state and health, whatever becomes of the others.
pub fn own_serving(
    wanted: Option<WantedBackend>,
    health: Health,
    held: Option<Serving>,
) -> Serving {
    let active = wanted.is_some_and(|wanted| wanted.admin == Admin::Active);
    let initial = wanted.map_or(Initial::Unknown, |wanted| wanted.initial);
    match health {
        Health::Down => Serving::None,
        Health::Unknown => match held {
            // Held while nothing is known; but what the operator took back is not given again.
            Some(Serving::New) if !active => Serving::ExistingOnly,
            Some(held) => held,
            None if active && initial == Initial::Up => Serving::New,
            None => Serving::ExistingOnly,
        },
        Health::Up if active => Serving::New,
        Health::Up | Health::Refusing => Serving::ExistingOnly,
    }
}

/// The way to a backend with what its mode needs on top.
fn complete(backend: &BackendFacts<'_>) -> Hop {
    // No packet may leave whose reply would not find back.
    let is_untranslatable = backend.translated.is_some_and(|translated| {
        translated.endpoint == 0 || (backend.mode == Mode::Nat && translated.pairs[0] == 0)
    });
    match backend.hop {
        Hop::Unheard | Hop::Resolved(_) if is_untranslatable => Hop::Unresolved,
        Hop::Resolved(hop) if hop.is_local() => backend.hop,
        Hop::Resolved(hop) => Hop::Resolved(match backend.mode {
            Mode::Ipip => hop.encapsulating(backend.address),
            Mode::L2 | Mode::Nat | Mode::Dnat => hop.bare(),
        }),
        other => other,
    }
}

#[cfg(test)]
mod tests;
