//! The end of a chat server's pod, replayed: its readiness fails, later it stops to listen, later it closes what is left, and then it
//! is gone. It ends every connection itself; Tether ends none, and sends it no new one after the verdict.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::ledger::{Ledger, Visits};
use super::visitors::Visitors;
use super::{PATIENCE, patient, wait_connected};
use crate::address::Family;
use crate::config::Check;
use crate::peer::backend::Answer;
use crate::peer::client::{Break, Connection};
use crate::peer::crowd;
use crate::random::Random;
use crate::stage::Stage;
use crate::topology::{Place, Topology};
use crate::wait;

/// The pod that ends.
const POD: &str = "b1";
const PACE: Duration = Duration::from_secs(1);

/// When a pod does what, counted from the start of its end.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Its readiness answers 503.
    pub unready: Duration,
    /// It stops to listen.
    pub deaf: Duration,
    /// It closes what is left.
    pub closing: Duration,
    /// It is gone.
    pub gone: Duration,
}

impl Schedule {
    /// That of a pod with 40 s of patience.
    pub const FULL: Self = Self {
        unready: Duration::from_secs(2),
        deaf: Duration::from_secs(12),
        closing: Duration::from_secs(40),
        gone: Duration::from_secs(42),
    };
    /// The same in a hurry: each step as soon as that before has had its effect.
    pub const SHORT: Self = Self {
        unready: Duration::ZERO,
        deaf: Duration::ZERO,
        closing: Duration::from_secs(6),
        gone: Duration::ZERO,
    };
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// The service's mode.
    pub mode: String,
    /// Connections on the pod when its readiness failed.
    pub held: u64,
    /// Those of them that the pod itself closed, when it was time.
    pub closed_by_pod: u64,
    /// Those of them whose clients were connected elsewhere at the end.
    pub reconnected: u64,
    /// Connections that ended otherwise, on the pod or elsewhere.
    pub cut: u64,
    /// Attempts to open a connection meanwhile.
    pub tried: u64,
    /// Those of them that failed once the verdict was in force.
    pub failed_after_verdict: u64,
    /// Connections that arrived at the pod once the verdict was in force.
    pub arrived_after_verdict: u64,
    /// Sentences about what should not have been.
    pub complaints: Vec<String>,
}

impl Replayed {
    /// Whether all is as it should be.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.held > 0
            && self.closed_by_pod == self.held
            && self.reconnected == self.held
            && self.cut == 0
            && self.tried > 0
            && self.failed_after_verdict == 0
            && self.arrived_after_verdict == 0
            && self.complaints.is_empty()
    }
}

/// Replays it with `connections` in a lab of its own. What happens is told to `say`.
///
/// # Errors
/// When the lab or Tether fails otherwise than by what is told of it.
pub fn replay(
    place: Place,
    family: Family,
    connections: usize,
    schedule: Schedule,
    mut say: impl FnMut(&str),
) -> Result<Replayed> {
    let mut random = Random::from_environment();
    let topology = Topology::new(place).in_family(family);
    let stage = Stage::set(topology, random.bits(), |config| {
        config.check = Check::Http;
    })?;
    let plan = patient(stage.plan()).reconnecting();
    let quarter = connections.div_ceil(4);
    let mut crowd = vec![];
    for plan in [
        plan,
        plan.plain(),
        plan.talking(PACE),
        plan.plain().talking(PACE),
    ] {
        crowd.extend(stage.clients.open(quarter, plan, |_| {})?);
    }
    let on_pod = crowd::on(&crowd, POD);
    ensure!(!on_pod.is_empty(), "nobody is on {POD}");
    let visitors = Visitors::start(&stage.lab, patient(stage.plan()), random.bits())?;
    let mut ledger = Ledger::default();
    let begun = Instant::now();
    let wait_for = |moment: Duration| std::thread::sleep(moment.saturating_sub(begun.elapsed()));
    let mut tell = |what: &str| say(&format!("{:5.1} s  {what}", begun.elapsed().as_secs_f64()));

    wait_for(schedule.unready);
    let (index, pod) = stage.backend(POD)?;
    pod.answer(Answer::Status(503));
    tell("its readiness fails");
    stage
        .tether
        .wait_status("its end is noticed", PATIENCE, |status| {
            status.health(POD) == "refusing" && status.serving(POD) == "existing-only"
        })?;
    ledger.closes(POD);
    // Of those that set out before, some may be on their way.
    let arrived = settled(|| pod.conversations())?;
    tell("Tether sends it no new connection");

    wait_for(schedule.deaf);
    pod.close_listeners()?;
    tell("it stops to listen");
    wait_for(schedule.closing);
    let still_there = crowd::on(&crowd, POD).len();
    ensure!(
        crowd::breaks(&crowd).is_empty() && still_there == on_pod.len(),
        "{still_there} of {} are left, before it has closed any",
        on_pod.len()
    );
    let arrived_after_verdict = pod.conversations() - arrived;
    // Taken first: some clients notice before the pod has closed all.
    let closing = Instant::now();
    pod.close_connections();
    wait::until("nobody is left on it", PATIENCE, || {
        (pod.open() == 0).then_some(())
    })?;
    tell("it has closed what was left");
    wait_for(schedule.gone);
    stage.lab.darken(index)?;
    tell("it is gone");
    wait_connected(&crowd);
    let echoes = crowd::echo_all(&crowd);
    let visits = ledger.judge_visits(&visitors.stop()?);
    let mode = stage.config.mode.to_owned();
    let mut replayed = judge(&crowd, &on_pod, closing, visits, echoes);
    replayed.mode = mode;
    replayed.arrived_after_verdict += arrived_after_verdict;
    if replayed.is_good() {
        stage.close();
    }
    Ok(replayed)
}

/// A count that has stopped growing, for as long as visitors would have made it grow many times.
fn settled(count: impl Fn() -> u64) -> Result<u64> {
    let (mut last, mut since) = (count(), Instant::now());
    wait::until("nobody is on the way any more", PATIENCE, || {
        let now = count();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() > Duration::from_secs(1)).then_some(last)
    })
}

fn judge(
    crowd: &[Connection],
    on_pod: &[&Connection],
    closing: Instant,
    visits: Visits,
    echoes: Vec<String>,
) -> Replayed {
    let mut replayed = Replayed {
        held: on_pod.len() as u64,
        tried: visits.tried,
        failed_after_verdict: visits.failed_after_verdict,
        arrived_after_verdict: visits.to_draining,
        complaints: [visits.complaints, echoes].concat(),
        ..Replayed::default()
    };
    for connection in crowd {
        let history = connection.history();
        let mut closed = 0;
        for (life, why) in history.breaks() {
            let in_time = life.end.as_ref().is_some_and(|end| end.at >= closing);
            if life.backend == POD && *why == Break::Closed && in_time {
                closed += 1;
            } else {
                replayed.cut += 1;
                let who = format!("{} on {}", life.local, life.backend);
                replayed.complaints.push(format!("{who}: {why}"));
            }
        }
        replayed.closed_by_pod += closed;
        replayed.complaints.extend(history.failure.clone());
        let elsewhere = history.current().is_some_and(|life| life.backend != POD);
        if closed > 0 && elsewhere {
            replayed.reconnected += 1;
        }
    }
    replayed
}
