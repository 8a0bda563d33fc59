//! The daemon killed over and over: at each failpoint in turn, and at random moments, with another file each time. No flow may
//! break, and nobody who comes meanwhile may find the service gone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::ledger::{Ledger, Visit};
use super::visitors::Visitors;
use super::{PATIENCE, patient};
use crate::address::Family;
use crate::config::Config;
use crate::peer::client::Connection;
use crate::peer::crowd;
use crate::random::Random;
use crate::stage::Stage;
use crate::tether::CONFIG_PATH;
use crate::topology::{Place, Topology};

/// How many kills in between the daemon is let come up, and everything is looked at. In every other such row the flow table changes its
/// size, in those between the table of backends its owners. Not both in one: a daemon that dies while it moves flows leaves the table held
/// until the next one has moved them, so what begins meanwhile is not recorded, and follows the table of backends if that changes at once.
const LOOK_EVERY: u64 = 10;
/// One of so many kills comes on top, of a daemon that makes its maps.
const BIRTHS_OF: u64 = 10;
/// More failpoints than it passes until it is ready.
const BIRTH_FAILPOINTS: u64 = 80;
/// The longest that a daemon lives that is killed at a random moment, beyond what it took to be ready the last time.
const AFTERLIFE: Duration = Duration::from_millis(500);
const CONNECTIONS: usize = 120;
const PACE: Duration = Duration::from_secs(1);
/// Two sizes of the flow table: a start with the other one moves all flows.
const FLOWS: [u32; 2] = [20_000, 30_000];

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Siege {
    /// Where the backends are, and so the mode.
    pub place: Place,
    /// The versions of IP.
    pub family: Family,
    /// How often the daemon is killed, every other time at a failpoint.
    pub kills: u64,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sieged {
    /// The service's mode.
    pub mode: String,
    /// Deaths at failpoints, by place.
    pub failpoints: BTreeMap<String, u64>,
    /// Deaths at random moments.
    pub random: u64,
    /// Connections that lived all the time, or were to.
    pub connections: u64,
    /// Those of them that broke.
    pub broken: u64,
    /// Attempts to open a connection meanwhile.
    pub tried: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Sentences about what broke and failed.
    pub complaints: Vec<String>,
}

/// Lays siege in a lab of its own. What happens is told to `say`.
///
/// # Errors
/// When the lab fails, or Tether otherwise than by what is told of it.
pub fn besiege(siege: &Siege, mut say: impl FnMut(&str)) -> Result<Sieged> {
    let mut random = Random::from_environment();
    let topology = Topology::new(siege.place).in_family(siege.family);
    let stage = Stage::set(topology, random.bits(), |config| {
        // A backend is never taken for one that refuses, whatever else the machine does.
        config.interval_ms = 1_000;
        config.timeout_ms = 900;
        config.fall = 10;
    })?;
    let mut besieged = Besieged {
        config: stage.config.clone(),
        stage,
        random,
        next: 1,
        ready_after: Duration::from_secs(2),
        sieged: Sieged::default(),
    };
    for _ in 0..siege.kills.div_ceil(BIRTHS_OF) {
        besieged.die_at_birth()?;
    }
    let stage = &besieged.stage;
    let talking = patient(stage.plan()).reconnecting().talking(PACE);
    let mut crowd = stage.clients.open(CONNECTIONS / 2, talking, |_| {})?;
    let silent = patient(stage.plan()).plain();
    crowd.extend(stage.clients.open(CONNECTIONS / 2, silent, |_| {})?);
    let seed = besieged.random.bits();
    let visitors = Visitors::start(&stage.lab, patient(stage.plan()), seed)?;
    for kill in 1..=siege.kills {
        besieged.change(kill / LOOK_EVERY % 2 == 1)?;
        if kill % 2 == 0 {
            besieged.die_at_random()?;
        } else {
            besieged.die_at_failpoint()?;
        }
        if kill % LOOK_EVERY == 0 || kill == siege.kills {
            besieged.look(&crowd)?;
            say(&format!("{kill} kills"));
        }
    }
    let visits = visitors.stop()?;
    besieged.judge(&crowd, &visits)
}

struct Besieged {
    stage: Stage,
    config: Config,
    random: Random,
    /// The failpoint to die at next, counted from the daemon's start.
    next: u64,
    /// How long the latest start that came so far took.
    ready_after: Duration,
    sieged: Sieged,
}

impl Besieged {
    /// Another file for the next daemon: it finds a flow table of the wrong size, or backends missing, back or of another weight.
    fn change(&mut self, size: bool) -> Result<()> {
        let whole = Config::new(self.stage.lab.topology()).backends;
        match self.random.below(3) {
            _ if size => {
                let [one, other] = FLOWS;
                let flows = if self.config.flows == one { other } else { one };
                (self.config.flows, self.config.flows6) = (flows, flows);
            }
            0 if self.config.backends.len() == whole.len() => {
                let gone = self.random.below(whole.len() as u64);
                self.config.backends.remove(usize::try_from(gone)?);
            }
            0 => self.config.backends = whole,
            _ => {
                let weight = 50 + self.random.below(100);
                self.config.backends[0].weight = u16::try_from(weight)?;
            }
        }
        let balancer = self.stage.lab.balancer();
        balancer.write(CONFIG_PATH, &self.config.text())
    }

    /// Starts a daemon that ends itself at the next failpoint. One that passes fewer on its way is killed when it has done what it
    /// was started for, and it begins anew with the first.
    fn die_at_failpoint(&mut self) -> Result<()> {
        self.end()?;
        self.stage.tether.restart_to_die(self.next)?;
        let mut ready = None;
        let died = self.stage.tether.wait_death(PATIENCE, |tether| {
            // What it still does once it is ready, it does soon.
            tether.is_ready() && ready.get_or_insert_with(Instant::now).elapsed() > AFTERLIFE
        })?;
        match died {
            Some(place) => {
                *self.sieged.failpoints.entry(place).or_default() += 1;
                self.next += 1;
            }
            None => {
                self.stage.tether.kill()?;
                self.sieged.random += 1;
                self.next = 1;
            }
        }
        Ok(())
    }

    /// Ends a daemon that had to make everything anew at a failpoint on its way; the next one must come up. There are no flows yet.
    fn die_at_birth(&mut self) -> Result<()> {
        self.end()?;
        self.stage
            .tether
            .succeed(&["cleanup", "--config", CONFIG_PATH])?;
        let failpoint = 1 + self.random.below(BIRTH_FAILPOINTS);
        self.stage.tether.restart_to_die(failpoint)?;
        let died = self
            .stage
            .tether
            .wait_death(PATIENCE, crate::tether::Tether::is_ready)?;
        match died {
            Some(place) => *self.sieged.failpoints.entry(place).or_default() += 1,
            None => self.sieged.random += 1,
        }
        self.end()?;
        self.stage.tether.restart()?;
        self.stage.wait_serving()?;
        let visitor = self.stage.clients.open_one(patient(self.stage.plan()))?;
        visitor.echo().map(drop)
    }

    fn die_at_random(&mut self) -> Result<()> {
        self.end()?;
        self.stage.tether.restart()?;
        let most = self.ready_after + AFTERLIFE;
        std::thread::sleep(self.random.span(Duration::ZERO, most));
        self.stage.tether.kill()?;
        self.sieged.random += 1;
        Ok(())
    }

    /// Ends a daemon that has been let live.
    fn end(&mut self) -> Result<()> {
        if self.stage.tether.pid().is_ok() {
            self.stage.tether.kill()?;
        }
        Ok(())
    }

    /// Lets the daemon come up with the file as it is, and everybody speak.
    fn look(&mut self, crowd: &[Connection]) -> Result<()> {
        self.end()?;
        let begun = Instant::now();
        self.stage.tether.restart()?;
        self.stage.tether.wait_ready()?;
        self.ready_after = begun.elapsed();
        let wanted = self.config.backends.clone();
        self.stage
            .tether
            .wait_status("the file is in force", PATIENCE, |status| {
                let flows = status
                    .flows
                    .tables
                    .of(self.stage.lab.topology().family.vip());
                flows.capacity >= u64::from(self.config.flows)
                    && wanted
                        .iter()
                        .all(|backend| status.serving(&backend.name) == "new")
            })?;
        crowd::echo_all(crowd);
        Ok(())
    }

    fn judge(mut self, crowd: &[Connection], visits: &[Visit]) -> Result<Sieged> {
        let histories: Vec<_> = crowd.iter().map(Connection::history).collect();
        let nothing = Ledger::default();
        let (visits, fates) = (
            nothing.judge_visits(visits),
            nothing.judge_fates(&histories),
        );
        ensure!(visits.tried > 0, "nobody came");
        self.sieged.mode = self.config.mode.to_owned();
        self.sieged.connections = crowd.len() as u64;
        self.sieged.broken = fates.complaints.len() as u64;
        self.sieged.tried = visits.tried;
        self.sieged.failed = visits.failed_after_verdict;
        self.sieged.complaints = [fates.complaints, visits.complaints].concat();
        if self.sieged.complaints.is_empty() {
            self.stage.close();
        }
        Ok(self.sieged)
    }
}
