//! The daemon killed over and over: at each failpoint in turn, while it starts and while it does what it was told, and at random moments, with another
//! file each time. No flow may break, and nobody who comes meanwhile may find the service gone or come to a backend that takes no new flows.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_userspace::failpoint;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::ledger::{Ledger, Visit};
use super::visitors::Visitors;
use super::{PATIENCE, patient};
use crate::address::{self, Family};
use crate::config::{BackendSpec, Config, SERVICE};
use crate::peer::backend::Backend;
use crate::peer::client::Connection;
use crate::peer::crowd;
use crate::random::Random;
use crate::stage::Stage;
use crate::status::Status;
use crate::tether::{CONFIG_PATH, command};
use crate::topology::{Place, Topology, UPLINK};

/// How many deaths in between the daemon is let come up, and everything is looked at. In every other such row the flow table changes its
/// size, in those between the table of backends its owners. Not both in one: a daemon that dies while it moves flows leaves the table held
/// until the next one has moved them, so what begins meanwhile is not recorded, and follows the table of backends if that changes at once.
const LOOK_EVERY: u64 = 10;
/// One of so many deaths is at a failpoint in its turn, the others are at random moments.
const FAILPOINT_OF: u64 = 3;
/// One of so many random moments comes on top, of a daemon that makes its maps.
const BIRTHS_OF: u64 = 10;
/// More failpoints than it passes until it is ready.
const BIRTH_FAILPOINTS: u64 = 80;
/// The longest that a daemon lives that is killed at a random moment, beyond what it took to be ready the last time.
const AFTERLIFE: Duration = Duration::from_millis(500);
const CONNECTIONS: usize = 120;
const PACE: Duration = Duration::from_secs(1);
/// Two sizes of the flow table: a start with the other one moves all flows.
const FLOWS: [u32; 2] = [20_000, 30_000];
/// An interface of the balancer that leads nowhere: the program comes to it, and is taken from it.
const SPARE: &str = "spare";
/// A file of the balancer's: while it is there, failpoints of a daemon that is to die of an order count.
const ARMED: &str = "/run/tether-dies";
/// So many failpoints each order leads to, at least: one of them is died at where there is no time for all.
const LEAST_OF_ORDER: u64 = 3;

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Siege {
    /// Where the backends are, and so the mode.
    pub place: Place,
    /// The versions of IP.
    pub family: Family,
    /// How often the daemon is killed at a random moment. Half as often it dies at a failpoint, each in its turn.
    pub kills: u64,
    /// Whether it dies at each of [`failpoint::Place::ALL`] beside that, whatever chance brings, and at all that it passes while it obeys each order.
    pub each_place: bool,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sieged {
    /// The service's mode.
    pub mode: String,
    /// Deaths at failpoints, by place.
    pub failpoints: BTreeMap<String, u64>,
    /// Deaths at failpoints that a running daemon passed because of an order, by order and place.
    pub orders: BTreeMap<String, u64>,
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
    /// Connections to a backend that was known to take no new ones.
    pub to_draining: u64,
    /// Sentences about what broke, failed and came to the wrong backend.
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
        local: None,
        ledger: Ledger::default(),
        sieged: Sieged::default(),
    };
    besieged.add_spare()?;
    for _ in 0..siege.kills.div_ceil(BIRTHS_OF) {
        let number = 1 + besieged.random.below(BIRTH_FAILPOINTS);
        besieged.die_at_birth(number)?;
    }
    let places = if siege.each_place {
        failpoint::Place::ALL
    } else {
        &[]
    };
    let (at_birth, later): (Vec<failpoint::Place>, Vec<failpoint::Place>) = places
        .iter()
        .copied()
        .partition(|place| is_at_birth(*place));
    for place in at_birth {
        besieged.die_at_birth(place.name())?;
    }
    let stage = &besieged.stage;
    let talking = patient(stage.plan()).reconnecting().talking(PACE);
    let mut crowd = stage.clients.open(CONNECTIONS / 2, talking, |_| {})?;
    let silent = patient(stage.plan()).plain();
    crowd.extend(stage.clients.open(CONNECTIONS / 2, silent, |_| {})?);
    let seed = besieged.random.bits();
    let visitors = Visitors::start(&stage.lab, patient(stage.plan()), seed)?;
    for place in later {
        besieged.die_at_place(place, &crowd)?;
        say(&format!("death {}", place.name()));
    }
    for order in Order::ALL {
        let mut number = match siege.each_place {
            true => 1,
            false => 1 + besieged.random.below(LEAST_OF_ORDER),
        };
        while besieged.die_obeying(order, number, &crowd)? && siege.each_place {
            number += 1;
        }
        say(&format!("deaths that obey: {}", order.name()));
    }
    let mut deaths = 0;
    while besieged.sieged.random < siege.kills {
        deaths += 1;
        besieged.change(deaths / LOOK_EVERY % 2 == 1)?;
        if deaths % FAILPOINT_OF == 0 {
            besieged.die_at_failpoint()?;
        } else {
            besieged.die_at_random()?;
        }
        let kills = besieged.sieged.random;
        if deaths % LOOK_EVERY == 0 || kills == siege.kills {
            besieged.look(&crowd)?;
            say(&format!("{kills} kills"));
        }
    }
    let visits = visitors.stop()?;
    besieged.judge(&crowd, &visits)
}

/// What a running daemon is told, or finds out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// A file that has a backend less or more.
    Reload,
    /// `tether drain`.
    Drain,
    /// A backend refuses.
    Verdict,
}

impl Order {
    const ALL: [Self; 3] = [Self::Reload, Self::Drain, Self::Verdict];

    const fn name(self) -> &'static str {
        match self {
            Self::Reload => "a reload",
            Self::Drain => "a drain",
            Self::Verdict => "a verdict",
        }
    }
}

struct Besieged {
    stage: Stage,
    config: Config,
    random: Random,
    /// The failpoint to die at next, counted from the daemon's start.
    next: u64,
    /// How long the latest start that came so far took.
    ready_after: Duration,
    /// A backend on the balancer's own host, once there has been one.
    local: Option<Backend>,
    /// When which backend was known to take no new flows.
    ledger: Ledger,
    sieged: Sieged,
}

impl Besieged {
    /// Gives the balancer the spare interface.
    fn add_spare(&self) -> Result<()> {
        self.stage.lab.balancer().ip(&format!(
            "link add {SPARE} type veth peer name {SPARE}-end\nlink set {SPARE} up\nlink set {SPARE}-end up"
        ))
    }

    /// Another file for the next daemon: it finds a flow table of the wrong size; or backends missing, back or of another weight; or an
    /// interface more or less.
    fn change(&mut self, size: bool) -> Result<()> {
        match self.random.below(4) {
            _ if size => self.resize(),
            0 => self.change_backends()?,
            1 => self.change_interfaces(),
            _ => self.reweigh()?,
        }
        self.write()
    }

    fn write(&self) -> Result<()> {
        let balancer = self.stage.lab.balancer();
        balancer.write(CONFIG_PATH, &self.config.text())
    }

    fn resize(&mut self) {
        let [one, other] = FLOWS;
        let flows = if self.config.flows == one { other } else { one };
        (self.config.flows, self.config.flows6) = (flows, flows);
    }

    /// Takes out one, or brings it back.
    fn change_backends(&mut self) -> Result<()> {
        let whole = Config::new(self.stage.lab.topology()).backends;
        if self.config.backends.len() < whole.len() {
            for name in self.missing() {
                self.ledger.opens(&name);
            }
            self.config.backends = whole;
        } else {
            let gone = self.random.below(whole.len() as u64);
            self.config.backends.remove(usize::try_from(gone)?);
        }
        Ok(())
    }

    /// The names of the lab's backends that the file does not have.
    fn missing(&self) -> Vec<String> {
        let there = &self.config.backends;
        let whole = Config::new(self.stage.lab.topology()).backends;
        let names = whole.into_iter().map(|backend| backend.name);
        names
            .filter(|name| there.iter().all(|backend| backend.name != *name))
            .collect()
    }

    fn change_interfaces(&mut self) {
        if self.config.interfaces.contains(&SPARE) {
            self.config.interfaces.retain(|name| *name != SPARE);
        } else {
            self.config.interfaces.push(SPARE);
        }
    }

    /// Adds one on the balancer's own host, whose replies need a program of their own.
    fn add_local(&mut self) -> Result<()> {
        let balancer = self.stage.lab.balancer();
        if self.local.is_none() {
            self.local = Some(Backend::start(balancer)?);
        }
        self.config.backends.push(BackendSpec {
            name: balancer.name().to_owned(),
            address: address::balancer(self.stage.lab.topology().family.vip()),
            weight: 100,
            lines: String::new(),
        });
        Ok(())
    }

    /// Gives the first another weight than it has, from 50 to 149.
    fn reweigh(&mut self) -> Result<()> {
        let weight = &mut self.config.backends[0].weight;
        let further = u16::try_from(1 + self.random.below(99))?;
        *weight = 50 + (*weight - 50 + further) % 100;
        Ok(())
    }

    /// Starts a daemon that ends itself at the next failpoint, or begins anew with the first after one that passes fewer.
    fn die_at_failpoint(&mut self) -> Result<()> {
        let next = self.next;
        self.next = if self.die_at(next)? { next + 1 } else { 1 };
        Ok(())
    }

    /// Has a daemon end itself at a place that one passes which finds maps, with a file that leads it there; then lets one come up.
    fn die_at_place(&mut self, place: failpoint::Place, crowd: &[Connection]) -> Result<()> {
        use failpoint::Place;
        match place {
            Place::MapPinned | Place::MapsComplete | Place::MapsPublished => {}
            Place::ResizeStepDone => self.resize(),
            Place::LinkAttached | Place::LinkPinned => {
                self.come_up_on(vec![UPLINK], crowd)?;
                self.change_interfaces();
            }
            Place::LinkDetached => {
                self.come_up_on(vec![UPLINK, SPARE], crowd)?;
                self.change_interfaces();
            }
            Place::ReplyLinkAttached => self.add_local()?,
            Place::RepliesSwitched => {
                self.add_local()?;
                self.write()?;
                self.look(crowd)?;
                self.resize();
            }
            Place::ProgramMissing
            | Place::ProgramOld
            | Place::ProgramReplaced
            | Place::OperationDue
            | Place::OperationsDone
            | Place::MemoryWritten
            | Place::MemoryRenamed => self.reweigh()?,
        }
        self.write()?;
        self.die_at(place.name())?;
        if place == Place::RepliesSwitched {
            // The next one moves no flows, which would have replies translated by other maps anyway.
            self.resize();
            self.write()?;
        }
        self.look(crowd)?;
        if matches!(place, Place::ReplyLinkAttached | Place::RepliesSwitched) {
            self.config.backends.pop();
            self.write()?;
            self.look(crowd)?;
        }
        Ok(())
    }

    /// Lets the daemon come up with these interfaces.
    fn come_up_on(&mut self, interfaces: Vec<&'static str>, crowd: &[Connection]) -> Result<()> {
        self.config.interfaces = interfaces;
        self.write()?;
        self.look(crowd)
    }

    /// Has a daemon that runs end itself at a failpoint that it passes because of an order; then lets one come up, and sees to it that this one does
    /// what the last one was to do. False if it passes fewer: then it has obeyed, and is killed.
    fn die_obeying(&mut self, order: Order, number: u64, crowd: &[Connection]) -> Result<bool> {
        self.end()?;
        self.stage.tether.restart_to_die_once(number, ARMED)?;
        self.stage.tether.wait_ready()?;
        self.wait_in_force()?;
        let choice = self.random.below(self.config.backends.len() as u64);
        let name = self.config.backends[usize::try_from(choice)?].name.clone();
        self.stage.lab.balancer().write(ARMED, "")?;
        let mut child = None;
        match order {
            Order::Reload => {
                self.change_backends()?;
                self.write()?;
                self.stage.tether.signal(Signal::SIGHUP)?;
            }
            Order::Drain => {
                let order = command(&["drain", &format!("{SERVICE}/{name}")])?;
                child = Some(self.stage.lab.balancer().spawn(order)?);
            }
            Order::Verdict => {
                self.ledger.breaks();
                self.stage.backend(&name)?.1.close_listeners()?;
            }
        }
        let missing = self.missing();
        let there: Vec<String> = self
            .config
            .backends
            .iter()
            .map(|b| b.name.clone())
            .collect();
        let has_obeyed = |status: &Status| match order {
            Order::Reload => {
                there.iter().all(|name| status.serving(name) == "new")
                    && missing.iter().all(|name| status.serving(name) != "new")
            }
            Order::Drain | Order::Verdict => status.serving(&name) != "new",
        };
        let mut since = None;
        let died = self.stage.tether.wait_death(PATIENCE, |tether| {
            // What it still does once it has obeyed, it does soon.
            tether.status().is_ok_and(|status| has_obeyed(&status))
                && since.get_or_insert_with(Instant::now).elapsed() > AFTERLIFE
        })?;
        match &died {
            Some(place) => {
                let what = format!("{place}, for {}", order.name());
                *self.sieged.orders.entry(what).or_default() += 1;
            }
            None => self.stage.tether.kill()?,
        }
        self.stage.lab.balancer().sh(&format!("rm {ARMED}"))?;
        let answered = match child {
            Some(mut child) => child.wait()?.success(),
            None => false,
        };
        match order {
            // The file is the next one's too.
            Order::Reload => {}
            Order::Drain => self.outlive_drain(&name, answered)?,
            Order::Verdict => self.outlive_verdict(&name)?,
        }
        self.look(crowd)?;
        Ok(died.is_some())
    }

    /// Starts a daemon after one that died of an order to drain, which it may have remembered, and must if it has answered.
    fn outlive_drain(&mut self, name: &str, answered: bool) -> Result<()> {
        self.stage.tether.restart()?;
        self.stage.tether.wait_ready()?;
        let status =
            self.stage
                .tether
                .wait_status("it has applied what it knows", PATIENCE, |status| {
                    status.generation.applied == status.generation.accepted
                })?;
        let is_drained = status
            .backend(name)
            .is_some_and(|backend| backend.admin == "draining");
        ensure!(
            is_drained || !answered,
            "{name} is in service again, though `tether drain` had said yes"
        );
        if is_drained {
            self.let_visitors_come(name);
            let object = format!("{SERVICE}/{name}");
            self.stage.tether.succeed(&["undrain", &object])?;
        }
        Ok(())
    }

    /// Starts a daemon after one that died of finding a backend's listeners closed: it finds the same.
    fn outlive_verdict(&mut self, name: &str) -> Result<()> {
        self.stage.tether.restart()?;
        self.stage.tether.wait_ready()?;
        self.stage
            .tether
            .wait_status("it is refusing", PATIENCE, |status| {
                status.health(name) == "refusing" && status.serving(name) == "existing-only"
            })?;
        self.ledger.verdict();
        self.let_visitors_come(name);
        self.stage.backend(name)?.1.open_listeners()
    }

    /// Lets some visitors come to a backend that takes no new flows for the moment, if they could.
    fn let_visitors_come(&mut self, name: &str) {
        self.ledger.closes(name);
        std::thread::sleep(AFTERLIFE);
        self.ledger.opens(name);
    }

    /// Starts a daemon that ends itself at a failpoint: see [`crate::tether::Tether::restart_to_die`]. One that does not come by is
    /// killed when it has done what it was started for, and then this is false.
    fn die_at(&mut self, failpoint: impl Display) -> Result<bool> {
        self.end()?;
        self.stage.tether.restart_to_die(failpoint)?;
        let mut ready = None;
        let died = self.stage.tether.wait_death(PATIENCE, |tether| {
            // What it still does once it is ready, it does soon.
            tether.is_ready() && ready.get_or_insert_with(Instant::now).elapsed() > AFTERLIFE
        })?;
        let has_died = died.is_some();
        match died {
            Some(place) => *self.sieged.failpoints.entry(place).or_default() += 1,
            None => self.stage.tether.kill()?,
        }
        Ok(has_died)
    }

    /// Ends a daemon that had to make everything anew at a failpoint on its way; the next one must come up. There are no flows yet.
    fn die_at_birth(&mut self, failpoint: impl Display) -> Result<()> {
        self.end()?;
        self.stage
            .tether
            .succeed(&["cleanup", "--config", CONFIG_PATH])?;
        self.die_at(failpoint)?;
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
        self.wait_in_force()?;
        crowd::echo_all(crowd);
        Ok(())
    }

    /// Waits until a daemon that is ready has done all that the file says. Who is not in it takes no new flows from then on.
    fn wait_in_force(&mut self) -> Result<()> {
        let missing = self.missing();
        let (wanted, interfaces) = (&self.config.backends, &self.config.interfaces);
        self.stage
            .tether
            .wait_status("the file is in force", PATIENCE, |status| {
                let flows = status
                    .flows
                    .tables
                    .of(self.stage.lab.topology().family.vip());
                let attached = status.attachments.iter();
                flows.capacity >= u64::from(self.config.flows)
                    && attached
                        .map(|one| one.interface.as_str())
                        .eq(interfaces.iter().copied())
                    && wanted
                        .iter()
                        .all(|backend| status.serving(&backend.name) == "new")
                    && missing.iter().all(|name| status.serving(name) != "new")
            })?;
        for name in missing {
            self.ledger.closes(&name);
        }
        Ok(())
    }

    fn judge(mut self, crowd: &[Connection], visits: &[Visit]) -> Result<Sieged> {
        let histories: Vec<_> = crowd.iter().map(Connection::history).collect();
        let (visits, fates) = (
            self.ledger.judge_visits(visits),
            self.ledger.judge_fates(&histories),
        );
        ensure!(visits.tried > 0, "nobody came");
        self.sieged.mode = self.config.mode.to_owned();
        self.sieged.connections = crowd.len() as u64;
        self.sieged.broken = fates.complaints.len() as u64;
        self.sieged.tried = visits.tried;
        self.sieged.failed = visits.failed_after_verdict;
        self.sieged.to_draining = visits.to_draining;
        self.sieged.complaints = [fates.complaints, visits.complaints].concat();
        if self.sieged.complaints.is_empty() {
            self.stage.close();
        }
        Ok(self.sieged)
    }
}

/// Whether only a daemon that finds no maps comes by.
const fn is_at_birth(place: failpoint::Place) -> bool {
    use failpoint::Place::{MapPinned, MapsComplete, MapsPublished};
    matches!(place, MapPinned | MapsComplete | MapsPublished)
}
