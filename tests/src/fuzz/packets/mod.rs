//! Packets: cases of random packets and events, sent through the shipped programs, and judged against the contract.
//!
//! A case is a sequence of [`Step`]s that its seed makes, in a fresh [`World`] of a [`Setting`]. What comes of each packet is judged by [`contract`], which
//! knows nothing of the data path but what the design promises. A case that breaks a promise is made shorter until every step of it is needed, and is printed as
//! text that a test can keep, see [`Case::parse`].

pub mod contract;
pub mod flows;
pub mod reader;
pub mod returns;
pub mod sabotage;
pub mod scene;
pub mod step;
mod text;

use std::collections::BTreeMap;

use lb_common::{net::IpVersion, verdict::Reason};

pub use self::step::Step;
use self::{
    contract::{Breach, Judge, Observed},
    sabotage::Sabotage,
    scene::{SERVICES, Scene, Setting},
    step::Maker,
};
use crate::packet::{Run, World, check::Which, in_version, on_wire};

/// How many steps a case has.
pub const STEPS: usize = 150;

/// A sequence of steps in a version of IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The version of IP of the services.
    pub version: IpVersion,
    /// What there is of services.
    pub setting: Setting,
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
        let mut steps = Vec::with_capacity(STEPS);
        in_version(version, || {
            let mut maker = Maker::new(seed, setting);
            let mut scene = Scene::healthy(setting);
            for _ in 0..STEPS {
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
            steps,
        }
    }

    /// Plays it.
    #[must_use]
    pub fn play(&self, sabotage: Option<Sabotage>) -> Outcome {
        let mut outcome = Outcome {
            packets: 0,
            reasons: BTreeMap::new(),
            breach: None,
        };
        in_version(self.version, || {
            let mut play = Play::new(self.setting, sabotage);
            for (number, step) in self.steps.iter().enumerate() {
                let sent = play.step(step);
                outcome.packets += usize::from(sent.is_some());
                if let Some(Err(breach)) = sent {
                    outcome.breach = Some((number, breach));
                    break;
                }
            }
            outcome.reasons = play.reasons;
        });
        outcome
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

/// A case that is being played.
struct Play {
    world: World,
    scene: Scene,
    judge: Judge,
    sabotage: Option<Sabotage>,
    reasons: BTreeMap<Reason, u64>,
}

impl Play {
    fn new(setting: Setting, sabotage: Option<Sabotage>) -> Self {
        let mut world = match setting {
            Setting::Plain => World::new(),
            Setting::Translating => World::translating(),
        };
        let scene = Scene::new(&mut world, setting);
        Self {
            world,
            scene,
            judge: Judge::default(),
            sabotage,
            reasons: BTreeMap::new(),
        }
    }

    /// Plays a step. If a packet was sent, gives what the judge says of that.
    fn step(&mut self, step: &Step) -> Option<Result<(), Breach>> {
        match step {
            Step::Send(frame) => return Some(self.send(frame)),
            Step::Reply(reply) => {
                let (frame, is_local) = reply.frame(&self.scene, &self.judge);
                return Some(if is_local {
                    self.leave(&frame)
                } else {
                    self.send(&frame)
                });
            }
            Step::Error(error) => {
                let frame = error.frame(&self.scene, &self.judge);
                return Some(self.send(&frame));
            }
            Step::Wait(ticks) => {
                self.world.age(*ticks);
                self.judge.age();
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
                let now = crate::packet::world::tick();
                let since = crate::packet::flow::ago(now, *ago);
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
        }
        None
    }

    fn count(&mut self, came: &Observed) {
        for (reason, packets) in &came.reasons {
            *self.reasons.entry(*reason).or_default() += packets;
        }
    }

    /// A frame comes in.
    fn send(&mut self, frame: &[u8]) -> Result<(), Breach> {
        if let Some(sabotage) = self.sabotage {
            sabotage.tamper(&self.world, &self.scene);
        }
        let mut came = observed(&self.world.send_bytes(frame, 0));
        self.count(&came);
        if let Some(sabotage) = self.sabotage {
            sabotage.strike(&self.scene, frame, &mut came);
        }
        self.judge.judge(&self.scene, frame, &came)
    }

    /// The stack sends a frame out.
    fn leave(&mut self, frame: &[u8]) -> Result<(), Breach> {
        let mut came = observed(&self.world.leave_bytes(frame));
        self.count(&came);
        if let Some(sabotage) = self.sabotage {
            sabotage.strike_leaving(frame, &mut came);
        }
        self.judge.judge_leaving(&self.scene, frame, &came)
    }
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
