//! One storm: its state, the choice of the next event, and the judgement at its end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::ledger::{Ledger, Visit};
use super::report::{New, Outcome};
use super::{Forecast, Kind, PATIENCE, wait_connected};
use crate::config::{Config, SERVICE};
use crate::flood;
use crate::peer::client::Connection;
use crate::peer::crowd;
use crate::random::Random;
use crate::stage::Stage;
use crate::topology::backend_name;

/// SYNs a second of a flood.
pub(super) const SYNS_PER_SECOND: u32 = 4_000;
/// How many silent ones speak at once.
pub(super) const WAVE: usize = 100;
/// The longest calm between two events.
const CALM: Duration = Duration::from_secs(1);

/// How a backend was taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removal {
    File,
    Command,
}

/// A flood that is under way.
pub(super) struct Flood {
    pub(super) flood: flood::Flood,
    pub(super) since: Instant,
}

pub(super) struct Storm<'a> {
    pub(super) stage: Stage,
    pub(super) crowd: Vec<Connection>,
    pub(super) random: Random,
    pub(super) ledger: Ledger,
    /// The file as it is, or is to be.
    pub(super) config: Config,
    /// The one backend that drains.
    pub(super) draining: Option<String>,
    /// The one backend that is not there, and how it was taken out.
    pub(super) missing: Option<(String, Removal)>,
    pub(super) flood: Option<Flood>,
    counts: BTreeMap<Kind, u64>,
    pub(super) forecast: &'a Forecast,
}

impl<'a> Storm<'a> {
    /// `newcomer` is not in the stage's file yet.
    pub(super) fn new(
        stage: Stage,
        crowd: Vec<Connection>,
        forecast: &'a Forecast,
        random: Random,
        newcomer: String,
    ) -> Self {
        Self {
            config: stage.config.clone(),
            stage,
            crowd,
            random,
            ledger: Ledger::default(),
            draining: None,
            missing: Some((newcomer, Removal::File)),
            flood: None,
            counts: BTreeMap::new(),
            forecast,
        }
    }

    fn count(&self, kind: Kind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// Whether chance has left something out so far.
    pub(super) fn is_weak(&self) -> bool {
        let mut kinds = self.forecast.kinds.iter();
        kinds.any(|kind| self.count(*kind) < self.forecast.least)
    }

    /// What happens next: one of the rarest so far every other time, so that none is left out for long.
    pub(super) fn choose(&mut self) -> Kind {
        let mut possible = self.forecast.kinds.clone();
        possible.retain(|kind| match kind {
            Kind::Add => self.missing.is_some(),
            Kind::Remove => self.missing.is_none(),
            Kind::SynFlood => self.flood.is_none(),
            _ => true,
        });
        if self.random.below(2) == 0 {
            let rarest = possible.iter().map(|kind| self.count(*kind)).min();
            possible.retain(|kind| Some(self.count(*kind)) == rarest);
        }
        let choice = self.random.below(possible.len() as u64);
        possible[usize::try_from(choice).unwrap_or(0)]
    }

    /// Lets an event happen, to its end; says what it was.
    ///
    /// # Errors
    /// When Tether or the lab does not do what was asked of it.
    pub(super) fn strike(&mut self, kind: Kind) -> Result<String> {
        let flooded = self.flood.take();
        let what = match kind {
            Kind::Add => self.add(),
            Kind::Remove => self.remove(),
            Kind::Drain => self.drain(),
            Kind::Reweight => self.reweight(),
            Kind::Reload => self.reload(),
            Kind::BrokenReload => self.broken_reload(),
            Kind::HealthFlap => self.health_flap(),
            Kind::Refusing => self.refusing(),
            Kind::DaemonKill => self.daemon_kill(),
            Kind::DaemonUpgrade => self.daemon_upgrade(),
            Kind::NeighbourFlush => self.neighbour_flush(),
            Kind::LinkFlap => self.link_flap(),
            Kind::BackendKill => self.backend_kill(),
            Kind::SynFlood => self.syn_flood(),
        }?;
        *self.counts.entry(kind).or_default() += 1;
        flooded.map(dry_up).transpose()?;
        Ok(what)
    }

    pub(super) fn breathe(&mut self) {
        let calm = self.random.span(Duration::ZERO, CALM);
        std::thread::sleep(calm);
    }

    /// Ends what is under way, waits until all backends are up, and lets everybody speak.
    ///
    /// # Errors
    /// When Tether does not come to rest.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.flood.take().map(dry_up).transpose()?;
        if self.draining.is_some() {
            self.drain()?;
        }
        self.wait_up()?;
        // The silent ones speak for the first time since they connected. Who is reset by that connects again, and has a last word. One
        // wave after the other: how long that takes is to tell of Tether, and not of how many clients one host can be.
        for _ in 0..2 {
            for wave in self.crowd.chunks(WAVE) {
                crowd::echo_all(wave);
                wait_connected(wave);
            }
        }
        Ok(())
    }

    /// Adds it all up.
    ///
    /// # Errors
    /// When talkers did not talk, so that there was nothing to see.
    pub(super) fn judge(self, visits: &[Visit], stormed: Duration) -> Result<Outcome> {
        let histories: Vec<_> = self.crowd.iter().map(Connection::history).collect();
        let visits = self.ledger.judge_visits(visits);
        let fates = self.ledger.judge_fates(&histories);
        let least = (stormed.as_secs_f64() / (4.0 * self.forecast.pace.as_secs_f64())) as u64;
        let talkers = self.crowd.iter().zip(&histories).filter(|(c, _)| c.talks());
        let fell_silent = talkers.filter(|(_, h)| h.echoes() < least).count();
        ensure!(
            fell_silent == 0,
            "{fell_silent} talkers had less than {least} echoes in {stormed:.1?}"
        );
        let unexpected_breaks = fates.complaints.len() as u64;
        let complaints = [fates.complaints, visits.complaints].concat();
        let outcome = Outcome {
            mode: self.config.mode.to_owned(),
            connections: self.crowd.len() as u64,
            events: self
                .counts
                .iter()
                .map(|(kind, count)| (kind.name().to_owned(), *count))
                .collect(),
            unexpected_breaks,
            held: fates.held,
            reconnected: fates.reconnected,
            reconnect_ms: fates.reconnect_ms,
            new: New {
                tried: visits.tried,
                failed_before_verdict: visits.failed_before_verdict,
                failed_after_verdict: visits.failed_after_verdict,
                to_draining: visits.to_draining,
            },
            complaints,
        };
        if outcome.complaints.is_empty() {
            self.stage.close();
        }
        Ok(outcome)
    }

    /// The names of the backends that are there.
    pub(super) fn present(&self) -> Vec<String> {
        let count = self.stage.lab.topology().backends;
        let missing = self.missing.as_ref().map(|(name, _)| name);
        (0..count)
            .map(backend_name)
            .filter(|name| Some(name) != missing)
            .collect()
    }

    /// One of those that are there.
    pub(super) fn any_backend(&mut self) -> String {
        let mut present = self.present();
        let choice = self.random.below(present.len() as u64);
        present.swap_remove(usize::try_from(choice).unwrap_or(0))
    }

    /// Waits until all that are there are up, and serve what they should.
    pub(super) fn wait_up(&self) -> Result<()> {
        let present = self.present();
        let serving = |name: &str| {
            if self.draining.as_deref() == Some(name) {
                "existing-only"
            } else {
                "new"
            }
        };
        self.stage
            .tether
            .wait_status("all backends serve", PATIENCE, |status| {
                present.iter().all(|name| {
                    status.health(name) == "up" && status.serving(name) == serving(name)
                })
            })
            .map(drop)
    }

    /// `SERVICE/BACKEND`.
    pub(super) fn object(name: &str) -> String {
        format!("{SERVICE}/{name}")
    }
}

/// Ends a flood.
fn dry_up(Flood { flood, since }: Flood) -> Result<()> {
    let lasted = since.elapsed();
    let syns = flood.stop()?;
    let due = lasted.as_secs_f64() * f64::from(SYNS_PER_SECOND);
    ensure!(
        syns as f64 >= due / 4.0,
        "hardly a flood: {syns} SYNs in {lasted:.1?}"
    );
    Ok(())
}
