//! Packets: cases of random packets and events, sent through the shipped programs, and judged against the contract.
//!
//! A case is a sequence of [`Step`]s that its seed makes, in a fresh [`World`]. What comes of each packet is judged by [`contract`], which knows nothing
//! of the data path but what the design promises. A case that breaks a promise is made shorter until every step of it is needed, and is printed as
//! text that a test can keep, see [`Case::parse`].

pub mod contract;
pub mod flows;
pub mod reader;
pub mod sabotage;
pub mod scene;
pub mod step;
mod text;

use lb_common::net::IpVersion;

pub use self::step::Step;
use self::{
    contract::{Breach, Judge, Observed},
    sabotage::Sabotage,
    scene::{SERVICES, Scene},
    step::Maker,
};
use crate::packet::{Run, World, check::Which, in_version};

/// How many steps a case has.
pub const STEPS: usize = 150;

/// A sequence of steps in a version of IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The version of IP of the services.
    pub version: IpVersion,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// What became of a case.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How many packets were sent.
    pub packets: usize,
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
        let mut steps = Vec::with_capacity(STEPS);
        in_version(version, || {
            let mut maker = Maker::new(seed);
            let mut scene = Scene::healthy();
            for _ in 0..STEPS {
                let step = maker.step(&scene);
                if let Step::Change(id, node) = &step {
                    scene.note(*id, *node);
                }
                steps.push(step);
            }
        });
        Self { version, steps }
    }

    /// Plays it.
    #[must_use]
    pub fn play(&self, sabotage: Option<Sabotage>) -> Outcome {
        let mut outcome = Outcome {
            packets: 0,
            breach: None,
        };
        in_version(self.version, || {
            let mut world = World::new();
            let mut scene = Scene::new(&mut world);
            let mut judge = Judge::default();
            for (number, step) in self.steps.iter().enumerate() {
                match step {
                    Step::Send(frame) => {
                        outcome.packets += 1;
                        let mut came = observed(&world.send_bytes(frame, 0));
                        if let Some(sabotage) = sabotage {
                            sabotage.strike(&scene, frame, &mut came);
                        }
                        if let Err(breach) = judge.judge(&scene, frame, &came) {
                            outcome.breach = Some((number, breach));
                            return;
                        }
                    }
                    Step::Wait(ticks) => {
                        world.age(*ticks);
                        judge.age();
                    }
                    Step::Change(id, node) => {
                        let before = scene.node(*id).map(|node| node.generation);
                        scene.change(&world, *id, *node);
                        if before != Some(node.generation) {
                            judge.renew(*id);
                        }
                    }
                    Step::Rebuild(place, first, ago) => {
                        let now = crate::packet::world::tick();
                        let since = crate::packet::flow::ago(now, *ago);
                        Scene::rebuild(&mut world, &SERVICES[*place], *first, since);
                    }
                }
            }
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
