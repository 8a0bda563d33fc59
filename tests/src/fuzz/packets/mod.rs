//! Packets: cases of random packets and events, sent through the shipped programs, and judged against the contract.
//!
//! A case is a sequence of [`Step`]s that its seed makes, in a fresh [`World`] of a [`Setting`]. What comes of each packet is judged by [`contract`], which
//! knows nothing of the data path but what the design promises. A case that breaks a promise is made shorter until every step of it is needed, and is printed as
//! text that a test can keep, see [`Case::parse`].

pub mod asked;
pub mod contract;
pub mod flows;
pub mod reader;
pub mod returns;
pub mod sabotage;
pub mod scene;
pub mod step;
mod text;

use std::collections::BTreeMap;

use lb_common::{
    clock::{TICK_NS, Tick},
    net::IpVersion,
    verdict::{Reason, Verdict},
};

pub use self::step::Step;
use self::{
    contract::{Breach, Judge, Observed, Promise},
    sabotage::Sabotage,
    scene::{SERVICES, Scene, Setting, Way},
    step::Maker,
};
use crate::packet::{Run, World, check::Which, in_version, on_wire, world::tick};

/// How many steps a case has, but for those that are about its guard.
pub const STEPS: usize = 150;

/// A sequence of steps in a version of IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The version of IP of the services.
    pub version: IpVersion,
    /// What there is of services.
    pub setting: Setting,
    /// Whether it is played again with what clients send again being counted.
    pub is_measured: bool,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// What became of a case.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How many packets were sent.
    pub packets: usize,
    /// For which reasons they were counted, and how many for each.
    pub reasons: BTreeMap<Reason, u64>,
    /// Of how many what came of them was compared with what had come of them while nothing that clients send again was counted.
    pub compared: usize,
    /// For which reasons each packet was counted, when the case was played last.
    pub each: Vec<Vec<Reason>>,
    /// What was broken, by the step of this number.
    pub breach: Option<(usize, Breach)>,
}

impl Case {
    /// The case of a seed.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let version = if seed.is_multiple_of(2) {
            IpVersion::V4
        } else {
            IpVersion::V6
        };
        let setting = if (seed / 2).is_multiple_of(2) {
            Setting::Plain
        } else {
            Setting::Translating
        };
        let is_measured = (seed / 4).is_multiple_of(2);
        let mut steps = Vec::with_capacity(STEPS);
        in_version(version, || {
            let mut maker = Maker::new(seed, setting);
            let mut scene = Scene::healthy(setting);
            steps.push(maker.guard());
            for _ in 0..STEPS {
                steps.extend(maker.about_guard());
                let step = maker.step(&scene);
                if let Step::Change(id, node) = &step {
                    scene.note(*id, *node);
                }
                steps.push(step);
            }
        });
        Self {
            version,
            setting,
            is_measured,
            steps,
        }
    }

    /// Plays it; if it is measured, a second time with what clients send again being counted.
    #[must_use]
    pub fn play(&self, sabotage: Option<Sabotage>) -> Outcome {
        let mut outcome = Outcome {
            packets: 0,
            reasons: BTreeMap::new(),
            compared: 0,
            each: Vec::new(),
            breach: None,
        };
        in_version(self.version, || {
            let play = Play::new(self.setting, sabotage);
            let came = self.play_through(play, &mut outcome);
            if self.is_measured && outcome.breach.is_none() {
                let play = Play::measuring(self.setting, sabotage, came);
                self.play_through(play, &mut outcome);
            }
        });
        outcome
    }

    /// Plays it once, and gives what came of each packet.
    fn play_through(&self, mut play: Play, outcome: &mut Outcome) -> Vec<Came> {
        for (number, step) in self.steps.iter().enumerate() {
            let sent = play.step(step);
            outcome.packets += usize::from(sent.is_some());
            if let Some(Err(breach)) = sent {
                outcome.breach = Some((number, breach));
                break;
            }
        }
        for (reason, packets) in play.reasons {
            *outcome.reasons.entry(reason).or_default() += packets;
        }
        outcome.compared += play.compared;
        let reasons = |came: &Came| {
            came.observed
                .reasons
                .iter()
                .map(|(reason, _)| *reason)
                .collect()
        };
        outcome.each = play.came.iter().map(reasons).collect();
        play.came
    }

    /// The same, without the steps that are not needed for the breach of a promise that it ends in.
    #[must_use]
    pub fn shrunk(&self, sabotage: Option<Sabotage>) -> Self {
        let Some((last, breach)) = self.play(sabotage).breach else {
            return self.clone();
        };
        let mut least = Self {
            version: self.version,
            setting: self.setting,
            is_measured: self.is_measured,
            steps: self.steps[..=last].to_vec(),
        };
        let mut chunk = least.steps.len().div_ceil(2);
        while chunk > 0 {
            let mut from = 0;
            while from < least.steps.len() {
                let mut shorter = least.clone();
                let to = (from + chunk).min(shorter.steps.len());
                shorter.steps.drain(from..to);
                let found = shorter.play(sabotage).breach;
                if found.is_some_and(|(_, found)| found.promise == breach.promise) {
                    least = shorter;
                } else {
                    from += chunk;
                }
            }
            chunk /= 2;
        }
        least
    }
}

/// What came of a packet of a case.
struct Came {
    observed: Observed,
    /// Whether the tick was still the one that the case began in: what depends on it is as it is whenever the case is played.
    is_in_time: bool,
}

/// A case that is being played.
struct Play {
    world: World,
    scene: Scene,
    judge: Judge,
    sabotage: Option<Sabotage>,
    reasons: BTreeMap<Reason, u64>,
    /// The tick that it began in.
    began: Tick,
    /// What came of each packet.
    came: Vec<Came>,
    /// What had come of each when the case was played before, for as long as the same must come of them.
    before: Option<Vec<Came>>,
    compared: usize,
}

impl Play {
    fn new(setting: Setting, sabotage: Option<Sabotage>) -> Self {
        let world = match setting {
            Setting::Plain => World::guarding(),
            Setting::Translating => World::guarding_translating(),
        };
        Self::of(world, setting, sabotage)
    }

    /// The same with what clients send again being counted, for a case of which is known what comes of it else.
    fn measuring(setting: Setting, sabotage: Option<Sabotage>, before: Vec<Came>) -> Self {
        let services = setting.services().iter().map(|service| service.id);
        let world = match setting {
            Setting::Plain => World::guarding_measuring(services),
            Setting::Translating => World::guarding_translating_measuring(services),
        };
        let play = Self::of(world, setting, sabotage);
        Self {
            scene: play.scene.measured(),
            before: Some(before),
            ..play
        }
    }

    fn of(mut world: World, setting: Setting, sabotage: Option<Sabotage>) -> Self {
        let scene = Scene::new(&mut world, setting);
        let began = world.now();
        Self {
            world,
            scene,
            judge: Judge::default(),
            sabotage,
            reasons: BTreeMap::new(),
            began,
            came: Vec::new(),
            before: None,
            compared: 0,
        }
    }

    /// Plays a step. If a packet was sent, gives what the judge says of that.
    fn step(&mut self, step: &Step) -> Option<Result<(), Breach>> {
        match step {
            Step::Send(frame) => return Some(self.send(step, frame)),
            Step::Reply(reply) => {
                let (frame, is_local) = reply.frame(&self.scene, &self.judge);
                return Some(if is_local {
                    self.leave(step, &frame)
                } else {
                    self.send(step, &frame)
                });
            }
            Step::Error(error) => {
                let frame = error.frame(&self.scene, &self.judge);
                return Some(self.send(step, &frame));
            }
            Step::Wait(ticks) => {
                self.world.age(*ticks);
                self.age_sources(*ticks);
                self.judge.age(*ticks);
            }
            Step::Change(id, node) => {
                let before = self.scene.node(*id).map(|node| node.generation);
                self.scene.change(&self.world, *id, *node);
                self.judge.changed();
                if before != Some(node.generation) {
                    self.judge.renew(*id);
                }
            }
            Step::Rebuild(place, first, ago) => {
                let since = crate::packet::flow::ago(tick(), *ago);
                Scene::rebuild(&mut self.world, &SERVICES[*place], *first, since);
                self.judge.changed();
            }
            Step::Keep(number, backend) => {
                let client = self.scene.setting().client(*number);
                if let Some(service) = scene::service_of(*backend) {
                    let holder = self.scene.holder(*backend);
                    self.world.keep(client, service.id, holder);
                    self.judge.keep(on_wire(client.0), *backend);
                }
            }
            Step::Guard(place, asked) => {
                let service = SERVICES[*place].id;
                if !self.scene.guard(&self.world, service, asked.clone()) {
                    self.judge.forget_sources();
                }
            }
        }
        None
    }

    /// Lets time pass for all that sources owe.
    fn age_sources(&self, ticks: u32) {
        let time = TICK_NS * u64::from(ticks);
        self.world.change_sources(|source| {
            if source.paid_ns != 0 {
                // Zero is who has never paid.
                source.paid_ns = source.paid_ns.wrapping_sub(time).max(1);
            }
        });
    }

    /// Whether the same came of a packet as when the case was played before.
    fn compare(&mut self, step: &Step, observed: &Observed) -> Result<(), Breach> {
        let came = Came {
            observed: observed.clone(),
            is_in_time: tick() == self.began,
        };
        let before = self
            .before
            .as_ref()
            .and_then(|all| all.get(self.came.len()));
        let compared = before.map(|before| {
            let is_certain = came.is_in_time
                && before.is_in_time
                && !step.is_left_to_chance()
                && !is_limited(&before.observed)
                && !is_limited(observed);
            (differ(step, &before.observed, observed), is_certain)
        });
        self.came.push(came);
        match compared {
            Some((None, _)) => self.compared += 1,
            Some((Some(how), true)) => {
                return Err(Breach {
                    promise: Promise::Alike,
                    how,
                });
            }
            // From here on other things happen.
            Some((Some(_), false)) => self.before = None,
            None => {}
        }
        Ok(())
    }

    fn count(&mut self, came: &Observed) {
        for (reason, packets) in &came.reasons {
            *self.reasons.entry(*reason).or_default() += packets;
        }
    }

    /// A frame comes in.
    fn send(&mut self, step: &Step, frame: &[u8]) -> Result<(), Breach> {
        if let Some(sabotage) = self.sabotage {
            sabotage.tamper(&self.world, &self.scene);
        }
        let mut came = observed(&self.world.send_bytes(frame, 0));
        self.count(&came);
        if let Some(sabotage) = self.sabotage {
            sabotage.strike(&self.scene, frame, &mut came);
        }
        self.compare(step, &came)?;
        self.judge.judge(&self.scene, frame, &came)
    }

    /// The stack sends a frame out.
    fn leave(&mut self, step: &Step, frame: &[u8]) -> Result<(), Breach> {
        let mut came = observed(&self.world.leave_bytes(frame));
        self.count(&came);
        if let Some(sabotage) = self.sabotage {
            sabotage.strike_leaving(frame, &mut came);
        }
        self.compare(step, &came)?;
        self.judge.judge_leaving(&self.scene, frame, &came)
    }
}

/// Whether something was, or was not, saved up for a packet: that depends on how long ago others came.
fn is_limited(came: &Observed) -> bool {
    came.reasons.iter().any(|(reason, _)| {
        matches!(
            reason,
            Reason::ResetLimited | Reason::AnswerLimited | Reason::Unadopted
        )
    })
}

/// How what came of a packet differs from what came of it before. Of ports that the kernel has drawn nothing is compared.
fn differ(step: &Step, before: &Observed, came: &Observed) -> Option<String> {
    let what = |came: &Observed| {
        (
            came.action,
            came.reasons.clone(),
            came.services.clone(),
            came.backends.clone(),
        )
    };
    let (one, other) = (what(before), what(came));
    if one != other {
        return Some(format!("{other:?} for {one:?}"));
    }
    let has_drawn = came
        .backends
        .iter()
        .any(|id| scene::way_to(*id) == Way::Nat);
    // What is dropped is nobody's.
    let is_gone = came
        .reasons
        .iter()
        .any(|(reason, _)| reason.verdict() == Verdict::Drop);
    let is_the_same = before.output == came.output;
    let tells = matches!(step, Step::Send(_)) && !has_drawn && !is_gone;
    (tells && !is_the_same).then(|| format!("another frame, as {:?}", came.reasons))
}

/// What there is to see of a run.
fn observed(run: &Run) -> Observed {
    let mut seen = Observed {
        action: run.outcome.action,
        output: run.outcome.output.clone(),
        reasons: Vec::new(),
        services: Vec::new(),
        backends: Vec::new(),
    };
    for (which, (packets, _)) in &run.change.0 {
        match which {
            Which::Reason(reason) => seen.reasons.push((*reason, *packets)),
            Which::Service(id) => seen.services.push(*id),
            Which::Backend(id) => seen.backends.push(*id),
            Which::Unused(offset) => {
                // A counter that is nobody's: as good as a second reason.
                seen.services.push(u32::MAX - offset);
            }
        }
    }
    seen
}
