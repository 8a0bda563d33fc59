//! What is known of one service and of one backend.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{
    backend::{Mode, Serving},
    clock::Tick,
    net::IpVersion,
    share::Share,
};

use super::{translations::Translations, verdicts::Verdict};
use crate::{
    balance::{Spread, Standing, level::Level, outlier},
    config::Affinity,
    desired::{self, Endpoint},
    guard::Guard,
    ids::{Numbered, Quiet},
    model::{
        Admin, BackendName, Check, Drains, Health, HealthReport, LastError, OnDown, Passage,
        Suspension, ToVip,
    },
    pace::{Closing, Moment, Ramp, Terms},
    resolve::{BackendFacts, Found, Hop, WantedBackend, WantedService, WellSeen},
};

/// A service that is known.
#[derive(Clone, Debug)]
pub(super) struct ServiceRecord {
    pub(super) id: u16,
    pub(super) name: String,
    pub(super) endpoint: Endpoint,
    pub(super) mode: Mode,
    /// None if it is removed.
    pub(super) wanted: Option<WantedService>,
    /// As last wanted.
    pub(super) affinity: Option<Affinity>,
    /// As last wanted.
    pub(super) guard: Option<Guard>,
    /// As last wanted.
    pub(super) on_down: OnDown,
    /// As last wanted.
    pub(super) reset_over: Duration,
    /// How drains of its backends end, as last wanted.
    pub(super) terms: Terms,
    /// How clients of its dead backends are told: both of these, as last resolved.
    pub(super) told: Option<(OnDown, Duration)>,
    /// Wanted ones in the order of the configuration, then removed ones.
    pub(super) backends: Vec<BackendRecord>,
    /// Removed and without flows: packets no longer find it.
    pub(super) unlisted: bool,
    pub(super) quiet: Quiet,
    /// Why some of its backends have no id.
    pub(super) error: Option<String>,
    /// As last resolved.
    pub(super) fail_open: bool,
    /// Flows that began while that was so.
    pub(super) fail_open_flows: u64,
    /// As last resolved.
    pub(super) spread: Spread,
    /// How its weights have moved.
    pub(super) level: Level,
    /// When its backends were last judged by what their clients send again, if they are.
    pub(super) judged: Option<Moment>,
    /// How often one was ejected for that.
    pub(super) ejections: u64,
    /// As last resolved.
    pub(super) resets_suspended: Option<Suspension>,
    /// As last resolved.
    pub(super) well_seen: WellSeen,
}

impl ServiceRecord {
    /// One of which no more is known, and that nobody wants.
    pub(super) fn new(id: u16, endpoint: Endpoint, mode: Mode) -> Self {
        Self {
            id,
            name: String::new(),
            endpoint,
            mode,
            wanted: None,
            affinity: None,
            guard: None,
            on_down: OnDown::default(),
            reset_over: Duration::ZERO,
            terms: Terms::NONE,
            told: None,
            backends: Vec::new(),
            unlisted: false,
            quiet: Quiet::default(),
            error: None,
            fail_open: false,
            fail_open_flows: 0,
            spread: Spread::default(),
            level: Level::default(),
            judged: None,
            ejections: 0,
            resets_suspended: None,
            well_seen: WellSeen::default(),
        }
    }
}

/// A backend that is known.
#[derive(Clone, Debug)]
pub(super) struct BackendRecord {
    pub(super) numbered: Numbered,
    pub(super) identity: u64,
    pub(super) name: BackendName,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) mode: Mode,
    /// Mode `nat`: the addresses that it sees in the place of clients'. Those of its service when it was wanted last.
    pub(super) snat: Vec<IpAddr>,
    pub(super) weight: u16,
    pub(super) zone: Option<String>,
    /// None if it is removed.
    pub(super) wanted: Option<WantedBackend>,
    pub(super) check: Check,
    pub(super) check_address: SocketAddr,
    /// It was there before its first check: it has no time to start.
    pub(super) has_started: bool,
    /// Its health is what was found by another name or of another object: its own checks have said nothing yet.
    pub(super) is_presumed: bool,
    pub(super) health: Health,
    pub(super) last_error: Option<LastError>,
    pub(super) fell_at_ms: Option<u64>,
    /// Since when its checks have failed, if the latest one did.
    pub(super) faltered_at_ms: Option<u64>,
    pub(super) held: Option<Serving>,
    /// It was on this host when it was found in the maps.
    pub(super) held_local: bool,
    /// The share of its flows that was closed when it was found in the maps, if it was dead then; none once that is made use of.
    pub(super) held_share: Option<Share>,
    /// Since when it was starting slowly, and what part of its weight it had, in sixteenths, as the last run remembered; none once that is made use of.
    pub(super) held_start: Option<(Tick, u8)>,
    /// Since when it is drained or removed, if it is.
    pub(super) drained: Option<Moment>,
    /// How that is to end.
    pub(super) terms: Terms,
    /// How it is to end, if it is removed, by a drain of all, or of what has its name now.
    pub(super) hastened: Option<Terms>,
    /// How it ends, if its terms say that it does.
    pub(super) closing: Option<Closing>,
    /// Since when it serves nothing, if it does.
    pub(super) died: Option<Moment>,
    /// Until when its clients are not told that it is down though all others' are, as last resolved.
    pub(super) spared: Option<Moment>,
    /// The share of its flows that is closed, as last resolved.
    pub(super) closed: Option<Share>,
    /// What becomes of its flows if it is dead, as last resolved.
    pub(super) on_down: OnDown,
    pub(super) standing: Standing,
    /// What its clients send again.
    pub(super) sent: outlier::Memory,
    pub(super) quiet: Quiet,
    /// As last resolved.
    pub(super) serving: Serving,
    /// Its part of a thousand new flows, as last resolved.
    pub(super) per_mille: u16,
}

impl BackendRecord {
    /// The same with a verdict that is known already: what is checked is what was checked before, though it is another object now. (Until its checks
    /// say so again all of a service whose name, mode or VIP is changed would be unknown, and whoever is known next would be the only one to take new flows.)
    pub(super) fn judged(self, verdict: Option<&Verdict>) -> Self {
        let Some(verdict) = verdict.cloned() else {
            return self;
        };
        Self {
            health: verdict.health,
            last_error: verdict.last_error,
            fell_at_ms: verdict.fell_at_ms,
            faltered_at_ms: verdict.faltered_at_ms,
            has_started: true,
            is_presumed: true,
            ..self
        }
    }

    /// The verdict that its checks are to go on from.
    pub(super) fn presumed(&self) -> Health {
        if self.is_presumed {
            self.health
        } else {
            Health::Unknown
        }
    }

    /// Takes in a verdict. False if it is no news.
    pub(super) fn heard(&mut self, report: &HealthReport, now_ms: u64) -> bool {
        self.is_presumed = false;
        let error_is_news = self.last_error != report.last_error;
        self.last_error.clone_from(&report.last_error);
        let fails = report
            .last_error
            .as_ref()
            .is_some_and(|last| last.ended.is_none());
        self.faltered_at_ms = fails.then(|| self.faltered_at_ms.unwrap_or(now_ms));
        if report.health == Health::Unknown || report.health == self.health {
            return error_is_news;
        }
        let lived = match self.health {
            Health::Up | Health::Refusing => true,
            // Found in the maps: dead already, or thought alive by the daemon before.
            Health::Unknown => self.held.is_some_and(|held| held != Serving::None),
            Health::Down => false,
        };
        self.fell_at_ms = (report.health == Health::Down && lived).then_some(now_ms);
        tracing::info!(
            backend = %self.name, address = %self.check_address, health = %report.health,
            was = %self.health, error = report.last_error.as_ref().map(|last| last.text.as_str()), "health changed"
        );
        self.health = report.health;
        true
    }

    /// Whether it is to lose its flows in time: drained, or removed. (What is disabled is not, since it is to be what it is again; but if a deadline was asked
    /// for by command, which is then remembered with its beginning.)
    fn is_drained(&self) -> bool {
        self.wanted.is_none_or(|wanted| match wanted.admin {
            Admin::Active => false,
            Admin::Draining => true,
            Admin::Disabled => self.terms.since.is_some(),
        })
    }

    /// When its flows are closed if it is drained since `begun`: of two ends the earlier.
    pub(super) fn end(&self, begun: Moment) -> Option<Ramp> {
        [Some(self.terms), self.hastened]
            .into_iter()
            .flatten()
            .filter_map(|terms| terms.ramp(begun))
            .min_by_key(|ramp| ramp.from)
    }

    /// Takes in drains that were ordered by command. They say nothing of it once it is removed, but for their deadlines: who evacuates a host would wait for
    /// it without end.
    pub(super) fn hasten(&mut self, ordered: &Drains) {
        self.hastened = match self.wanted {
            Some(_) => None,
            None => ordered
                .asked(&self.name)
                // One that does not count yet will with the next plan.
                .filter(|asked| asked.since.is_some())
                .map(|asked| Terms {
                    deadline: Some(asked.deadline),
                    close_over: asked.close_over.unwrap_or(self.terms.close_over),
                    since: asked.since,
                }),
        };
    }

    /// Notes since when it is drained, and since when it is dead, as far as that is not known. True if the first is news, or since when its deadline counts.
    pub(super) fn note(&mut self, reset_over: Duration, now: Moment) -> bool {
        if let Some(share) = self.held_share.take() {
            // It goes on from where it was.
            let parts =
                u128::from(share.parts()) * reset_over.as_millis() / u128::from(Share::ALL.parts());
            let passed = u64::try_from(parts).unwrap_or(u64::MAX);
            self.died = Some(now.earlier(Duration::from_millis(passed)));
        }
        let before = (self.drained, self.terms.since);
        // Not after now, whatever a clock said that was set wrong.
        self.drained = self
            .is_drained()
            .then(|| self.drained.map_or(now, |begun| begun.min(now)));
        self.terms.since = self.terms.since.map(|since| since.min(now));
        let due = self.drained.and_then(|begun| self.end(begun));
        self.closing = due.map(|due| Closing::next(self.closing, due, self.closed, now));
        (self.drained, self.terms.since) != before
    }

    /// Takes in the share of its flows that is closed now, and says when that begins and ends.
    pub(super) fn is_closed(&mut self, share: Option<Share>) {
        let name = &self.name;
        match (self.closed, share) {
            (before, Some(Share::ALL)) if before != share => tracing::info!(
                backend = %name,
                "the drain's deadline has passed: all its flows are closed, each on its next packet"
            ),
            (None, Some(_)) => {
                tracing::info!(backend = %name, "its flows are closed at a pace, each on its next packet");
            }
            (Some(_), None) => {
                tracing::info!(backend = %name, "its flows are no longer closed at a pace");
            }
            _ => {}
        }
        self.closed = share;
    }

    /// Where its packets go.
    pub(super) fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// Whether its mode translates addresses on the way to it.
    pub(super) fn is_translated(&self) -> bool {
        self.mode.translates()
    }

    /// The way to it from a VIP.
    pub(super) fn hop(&self, vip: IpAddr, hops: &HashMap<IpAddr, Found>) -> Hop {
        if self.is_stranded(vip, hops) {
            return Hop::Unresolved;
        }
        hops.get(&self.address)
            .map_or(Hop::Unheard, |found| found.for_mode(self.mode))
    }

    /// Whether it is on this host, as far as is known, where it can be served.
    pub(super) fn is_local(&self, vip: IpAddr, hops: &HashMap<IpAddr, Found>) -> bool {
        match self.hop(vip, hops) {
            Hop::Resolved(hop) => hop.is_local(),
            Hop::Unresolved => false,
            Hop::Unheard => self.held_local,
        }
    }

    /// The way that checks through the VIP take. A backend on this host is served at its own address, and asked there.
    pub(super) fn through(
        &self,
        endpoint: Endpoint,
        hops: &HashMap<IpAddr, Found>,
    ) -> Option<ToVip> {
        if !self.check.through_vip || self.is_local(endpoint.vip, hops) {
            return None;
        }
        Some(ToVip {
            vip: SocketAddr::new(endpoint.vip, endpoint.port),
            by: Passage::of(self.mode)?,
        })
    }

    /// Whether it is on this host, and cannot be served: no packet is translated from one version of IP to the other. (Encapsulated it would be answered
    /// from a VIP that is this host's.)
    pub(super) fn is_stranded(&self, vip: IpAddr, hops: &HashMap<IpAddr, Found>) -> bool {
        let hop = hops.get(&self.address).map(|found| found.hop);
        IpVersion::of(vip) != IpVersion::of(self.address)
            && matches!(hop, Some(Hop::Resolved(hop)) if hop.is_local())
    }

    pub(super) fn facts(
        &self,
        (service, vip): (u16, IpAddr),
        hops: &HashMap<IpAddr, Found>,
        translations: &Translations,
    ) -> BackendFacts<'_> {
        let is_local = self.is_local(vip, hops);
        BackendFacts {
            numbered: self.numbered,
            identity: self.identity,
            name: &self.name.backend,
            address: self.address,
            port: self.port,
            mode: self.mode,
            wanted: self.wanted,
            health: self.health,
            fell_at_ms: self.fell_at_ms,
            faltered_at_ms: self.faltered_at_ms,
            died: self.died,
            spared: self.spared,
            next_check: self.check.longest_gap(),
            closing: self.closing.map(|closing| closing.ramp()),
            held: self.held,
            hop: self.hop(vip, hops),
            standing: self.standing,
            translated: (is_local || self.is_translated())
                .then(|| translations.of(service, self, is_local)),
        }
    }
}

/// A record of a wanted backend that is new.
pub(super) fn new_record(
    numbered: Numbered,
    service: &desired::Service,
    backend: &desired::Backend,
) -> BackendRecord {
    let record = BackendRecord {
        numbered,
        identity: backend.identity,
        name: backend.name.clone(),
        address: backend.address,
        port: backend.port,
        mode: service.mode,
        snat: Vec::new(),
        weight: backend.weight,
        zone: None,
        wanted: None,
        check: backend.check.clone(),
        check_address: backend.check_address,
        has_started: false,
        is_presumed: false,
        health: Health::Unknown,
        last_error: None,
        fell_at_ms: None,
        faltered_at_ms: None,
        held: None,
        held_local: false,
        held_share: None,
        held_start: None,
        drained: None,
        terms: backend.terms,
        hastened: None,
        closing: None,
        died: None,
        spared: None,
        closed: None,
        on_down: OnDown::Reset,
        standing: Standing::default(),
        sent: outlier::Memory::default(),
        quiet: Quiet::default(),
        serving: Serving::ExistingOnly,
        per_mille: 0,
    };
    renewed(record, service, backend)
}

/// A record with what may change of a wanted backend. Its health stays until its check, which may be another now, says otherwise.
pub(super) fn renewed(
    record: BackendRecord,
    service: &desired::Service,
    backend: &desired::Backend,
) -> BackendRecord {
    BackendRecord {
        snat: service.snat.clone(),
        name: backend.name.clone(),
        weight: backend.weight,
        zone: backend.zone.clone(),
        wanted: Some(WantedBackend {
            admin: backend.admin,
            weight: backend.weight,
            initial: backend.check.initial,
            part: backend.part,
        }),
        check: backend.check.clone(),
        check_address: backend.check_address,
        terms: backend.terms,
        ..record
    }
}
