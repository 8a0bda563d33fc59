//! The events of a storm, one function each. Each returns when what it did is known to Tether, so that the ledger is true.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::storm::{Flood, Removal, SYNS_PER_SECOND, Storm, WAVE};
use super::{INTERVALS_MS, PATIENCE};
use crate::address::{self, mac_of};
use crate::packet_socket::{FloodPlan, flood_with_syns};
use crate::peer::backend::Answer;
use crate::peer::client::Connection;
use crate::peer::crowd;
use crate::tether::{CONFIG_PATH, command};
use crate::topology::{BALANCER_PORT, CLIENT_PORT, UPLINK};
use crate::wait;

/// A daemon that is killed this soon after an order may not have obeyed.
const HASTE: Duration = Duration::from_millis(30);
const ABSENCE: Duration = Duration::from_secs(1);
/// Less than any check needs to fall: three must fail, and are at least 500 ms apart.
const FLAP: Duration = Duration::from_millis(400);
/// What is no configuration.
const BROKEN: &str = "interfaces = [\"eth0\"\n[[service]\n";

impl Storm<'_> {
    pub(super) fn add(&mut self) -> Result<String> {
        let (name, how) = self.missing.take().context("no backend is missing")?;
        self.ledger.opens(&name);
        match how {
            Removal::Command => {
                self.stage
                    .tether
                    .succeed(&["revert", &Self::object(&name)])?;
            }
            Removal::File => {
                let whole = crate::config::Config::new(self.stage.lab.topology());
                let spec = whole.backends.into_iter().find(|b| b.name == name);
                self.config
                    .backends
                    .push(spec.context("a backend of the lab")?);
                self.stage.tether.reload(&self.config.text())?;
            }
        }
        self.wait_up()?;
        Ok(format!("{name}, by {how:?}"))
    }

    pub(super) fn remove(&mut self) -> Result<String> {
        let mut names = self.present();
        names.retain(|name| Some(name) != self.draining.as_ref());
        let choice = self.random.below(names.len() as u64);
        let name = names.swap_remove(usize::try_from(choice)?);
        let how = if self.random.below(2) == 0 {
            self.stage
                .tether
                .succeed(&["remove", &Self::object(&name)])?;
            Removal::Command
        } else {
            self.config = self.config.without(&name);
            self.stage.tether.reload(&self.config.text())?;
            Removal::File
        };
        self.stage
            .tether
            .wait_status("it is removed", PATIENCE, |status| {
                status
                    .backend(&name)
                    .is_none_or(|backend| backend.removed && backend.serving != "new")
            })?;
        self.ledger.closes(&name);
        let told = format!("{name}, by {how:?}");
        self.missing = Some((name, how));
        Ok(told)
    }

    /// At most one backend drains at a time.
    pub(super) fn drain(&mut self) -> Result<String> {
        let [word, name] = self.next_drain();
        self.stage.tether.succeed(&[&word, &Self::object(&name)])?;
        if word == "undrain" {
            self.draining = None;
        } else {
            self.stage
                .tether
                .wait_status("it drains", PATIENCE, |status| {
                    status.serving(&name) != "new"
                })?;
            self.ledger.closes(&name);
            self.draining = Some(name.clone());
        }
        self.wait_up()?;
        Ok(format!("{word} {name}"))
    }

    /// What to tell Tether next of drains, `drain` or `undrain`, and of whom.
    fn next_drain(&mut self) -> [String; 2] {
        match &self.draining {
            Some(name) => {
                self.ledger.opens(name);
                ["undrain".into(), name.clone()]
            }
            None => ["drain".into(), self.any_backend()],
        }
    }

    pub(super) fn reweight(&mut self) -> Result<String> {
        let weight = u16::try_from(20 + self.random.below(180))?;
        let name = self.any_backend();
        let in_file = self.config.backends.iter_mut().find(|b| b.name == name);
        match in_file {
            Some(backend) if self.random.below(2) == 0 => {
                backend.weight = weight;
                self.stage.tether.reload(&self.config.text())?;
                Ok(format!("{name} has {weight} in the file"))
            }
            _ => {
                let words = ["weight", &Self::object(&name), &weight.to_string()];
                self.stage.tether.succeed(&words)?;
                Ok(format!("{name} has {weight} by command"))
            }
        }
    }

    pub(super) fn reload(&mut self) -> Result<String> {
        self.change_interval();
        self.stage.tether.reload(&self.config.text())?;
        Ok(format!(
            "checks every {} ms from now on",
            self.config.interval_ms
        ))
    }

    fn change_interval(&mut self) {
        let [one, other] = INTERVALS_MS;
        self.config.interval_ms = if self.config.interval_ms == one {
            other
        } else {
            one
        };
    }

    pub(super) fn broken_reload(&mut self) -> Result<String> {
        let balancer = self.stage.lab.balancer();
        balancer.write(CONFIG_PATH, BROKEN)?;
        self.stage.tether.signal(Signal::SIGHUP)?;
        self.stage
            .tether
            .wait_status("the file is refused", PATIENCE, |status| {
                status.config.error.is_some()
            })?;
        self.wait_up()?;
        self.stage.tether.reload(&self.config.text())?;
        self.stage
            .tether
            .wait_status("the file is good", PATIENCE, |status| {
                status.config.error.is_none()
            })?;
        Ok("refused, and mended".into())
    }

    pub(super) fn health_flap(&mut self) -> Result<String> {
        let name = self.any_backend();
        let lasts = self
            .random
            .span(Duration::from_millis(100), Duration::from_millis(2_500));
        let (_, backend) = self.stage.backend(&name)?;
        backend.answer(Answer::Status(503));
        std::thread::sleep(lasts);
        backend.answer(Answer::Status(200));
        self.wait_up()?;
        Ok(format!("{name} answered 503 for {lasts:.1?}"))
    }

    /// It closes its listeners, or only says no: then whoever came to it would be let in, and seen.
    pub(super) fn refusing(&mut self) -> Result<String> {
        let name = self.any_backend();
        let is_deaf = self.random.below(2) == 0;
        if is_deaf {
            self.ledger.breaks();
            self.stage.backend(&name)?.1.close_listeners()?;
        } else {
            self.stage.backend(&name)?.1.answer(Answer::Status(503));
        }
        self.stage
            .tether
            .wait_status("it is refusing", PATIENCE, |status| {
                status.health(&name) == "refusing" && status.serving(&name) == "existing-only"
            })?;
        if is_deaf {
            self.ledger.verdict();
        }
        self.ledger.closes(&name);
        // For some visitors to come to it, if they could.
        self.breathe();
        self.reopens(&name);
        let how = if is_deaf {
            self.stage.backend(&name)?.1.open_listeners()?;
            "its listeners closed"
        } else {
            self.stage.backend(&name)?.1.answer(Answer::Status(200));
            "503"
        };
        self.wait_up()?;
        Ok(format!("{name}, {how}"))
    }

    /// A backend may take new flows again, unless it drains: to be told before anything is done to that end.
    fn reopens(&mut self, name: &str) {
        if self.draining.as_deref() != Some(name) {
            self.ledger.opens(name);
        }
    }

    pub(super) fn daemon_kill(&mut self) -> Result<String> {
        let told = match self.random.below(3) {
            0 => {
                let absent = self.random.span(Duration::ZERO, ABSENCE);
                self.stage.tether.kill()?;
                std::thread::sleep(absent);
                format!("for {absent:.1?}")
            }
            1 => {
                // Whether the command is obeyed is a matter of luck; that nobody's connection breaks is not.
                let [word, name] = self.next_drain();
                let order = command(&[&word, &Self::object(&name)])?;
                let mut child = self.stage.lab.balancer().spawn(order)?;
                std::thread::sleep(self.random.span(Duration::ZERO, HASTE));
                self.stage.tether.kill()?;
                child.wait()?;
                format!("while it was told to {word} {name}")
            }
            _ => {
                self.change_interval();
                let balancer = self.stage.lab.balancer();
                balancer.write(CONFIG_PATH, &self.config.text())?;
                self.stage.tether.signal(Signal::SIGHUP)?;
                std::thread::sleep(self.random.span(Duration::ZERO, HASTE));
                self.stage.tether.kill()?;
                "while it reloaded".into()
            }
        };
        self.come_back()?;
        Ok(told)
    }

    /// Starts the daemon, which may or may not have heard the last thing that it was told.
    fn come_back(&mut self) -> Result<()> {
        self.stage.tether.restart()?;
        self.stage.tether.wait_ready()?;
        let status = self.stage.tether.status()?;
        let mut backends = status.services.into_iter().flat_map(|s| s.backends);
        let was = self.draining.take();
        // One that is removed drains too, and is no concern of `drain`.
        let drains = backends.find(|b| b.admin == "draining" && !b.removed);
        self.draining = drains.map(|backend| backend.name);
        match &self.draining {
            Some(name) => self.ledger.closes(name),
            None => was.iter().for_each(|name| self.ledger.opens(name)),
        }
        self.wait_up()
    }

    pub(super) fn daemon_upgrade(&mut self) -> Result<String> {
        let before = self.program()?;
        let status = self.stage.tether.terminate()?;
        ensure!(status.success(), "the daemon ended with {status}");
        ensure!(self.program()? == before, "who stops leaves the program");
        self.come_back()?;
        let after = self.program()?;
        ensure!(after != before, "the program is still that of the old one");
        Ok(format!("program {before} gave way to {after}"))
    }

    /// The id of the XDP program on the balancer's interface.
    fn program(&self) -> Result<u64> {
        let line = format!("ip -details -json link show dev {UPLINK}");
        let links: serde_json::Value = serde_json::from_str(&self.stage.lab.balancer().sh(&line)?)?;
        let id = links[0]["xdp"]["prog"]["id"].as_u64();
        id.with_context(|| format!("no XDP program: {links}"))
    }

    pub(super) fn neighbour_flush(&mut self) -> Result<String> {
        let balancer = self.stage.lab.balancer();
        for version in ["-4", "-6"] {
            balancer.sh(&format!("ip {version} neighbour flush dev {UPLINK}"))?;
        }
        self.wait_resolved()?;
        self.wait_up()?;
        Ok("of the balancer".into())
    }

    fn wait_resolved(&self) -> Result<()> {
        let present = self.present();
        self.stage
            .tether
            .wait_status("all have next hops", PATIENCE, |status| {
                let resolved = |name: &String| {
                    let backend = status.backend(name);
                    backend.is_some_and(|backend| backend.neighbour == "resolved")
                };
                present.iter().all(resolved)
            })
            .map(drop)
    }

    pub(super) fn link_flap(&mut self) -> Result<String> {
        let link = match self.random.below(3) {
            0 => BALANCER_PORT.to_owned(),
            _ => self.any_backend(),
        };
        let lasts = self.random.span(Duration::from_millis(50), FLAP);
        let router = self.stage.lab.router();
        router.ip(&format!("link set {link} down"))?;
        std::thread::sleep(lasts);
        router.ip(&format!("link set {link} up"))?;
        self.wait_resolved()?;
        self.wait_up()?;
        Ok(format!("{link} for {lasts:.1?}"))
    }

    /// A backend's host loses its power while its clients are quiet, as most are most of the time. Once it is found to be down its
    /// talkers speak, and half of its silent ones; they are told, by nobody but Tether, since nobody else is there. Then there is a new host in
    /// its place. The other silent ones notice nothing before the end.
    pub(super) fn backend_kill(&mut self) -> Result<String> {
        let name = self.any_backend();
        let (index, _) = self.stage.backend(&name)?;
        let theirs: Vec<(usize, usize)> = self
            .crowd
            .iter()
            .enumerate()
            .filter_map(|(client, connection)| {
                let history = connection.history();
                let there = history.current()?.backend == name;
                there.then(|| (client, history.lives.len() - 1))
            })
            .collect();
        let (talkers, silent): (Vec<&Connection>, Vec<&Connection>) = theirs
            .iter()
            .map(|(client, _)| &self.crowd[*client])
            .partition(|connection| connection.talks());
        let early = &silent[..silent.len().div_ceil(2)];
        crowd::set_pace(talkers.iter().copied(), None);

        self.ledger.breaks();
        self.stage.lab.darken(index)?;
        let since = Instant::now();
        self.stage
            .tether
            .wait_status("the dark backend is down", PATIENCE, |status| {
                status.health(&name) == "down" && status.serving(&name) == "none"
            })?;
        let (verdict, took) = (Instant::now(), since.elapsed());
        self.ledger.verdict();
        self.ledger.closes(&name);
        for (client, life) in &theirs {
            self.ledger.dooms(*client, *life, verdict);
        }
        crowd::set_pace(talkers.iter().copied(), Some(self.forecast.pace));
        let wait_elsewhere = |clients: &[&Connection]| {
            // A client that finds no way back is the judgement's to tell.
            let _ = wait::until("its clients are elsewhere", PATIENCE, || {
                let elsewhere = |c: &&Connection| {
                    let history = c.history();
                    history.failure.is_some()
                        || history.current().is_some_and(|life| life.backend != name)
                };
                clients.iter().all(elsewhere).then_some(())
            });
        };
        wait_elsewhere(&talkers);
        for wave in early.chunks(WAVE) {
            crowd::echo_all(wave.iter().copied());
            wait_elsewhere(wave);
        }
        let told = format!(
            "{name} with {} connections, {} of them silent, of which {} spoke, found out after {took:.1?}",
            theirs.len(),
            silent.len(),
            early.len()
        );
        self.reopens(&name);
        self.stage.renew(index)?;
        self.wait_up()?;
        Ok(told)
    }

    pub(super) fn syn_flood(&mut self) -> Result<String> {
        let (lab, family) = (&self.stage.lab, self.forecast.family);
        let flood = flood_with_syns(
            lab.client(),
            UPLINK,
            FloodPlan {
                prefix: address::spoofed(family.vip()),
                target: self.stage.target(),
                macs: (mac_of(lab.sources()[0]), lab.router_mac(CLIENT_PORT)?),
                rate: SYNS_PER_SECOND,
                seed: self.random.bits(),
            },
        )?;
        let since = Instant::now();
        wait::until("a thousand SYNs are sent", PATIENCE, || {
            (flood.sent() >= 1_000).then_some(())
        })?;
        self.flood = Some(Flood { flood, since });
        Ok(format!(
            "{SYNS_PER_SECOND} a second until after the next event"
        ))
    }
}
