//! The torture lab: long-lived connections through a storm of events in one lab, none of which may break but those on a host that
//! was killed. Half of them are silent until the end.

mod floods;
mod kills;
mod kind;
mod ledger;
mod pod;
mod report;
mod storm;
mod strike;
mod visitors;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

pub use self::floods::{Deluge, Flooded, Flooding, flood};
pub use self::kills::{Siege, Sieged, besiege};
pub use self::kind::Kind;
pub use self::pod::{Replayed, Schedule, replay};
pub use self::report::{Killed, LEAST, New, Outcome, Report};
use self::storm::Storm;
use self::visitors::Visitors;
use crate::address::Family;
use crate::config::Check;
use crate::peer::client::{Connection, Plan};
use crate::peer::crowd;
use crate::random::Random;
use crate::stage::Stage;
use crate::topology::{Place, Topology};
use crate::wait;

/// Backends; one of them is yet to be added when it begins.
const BACKENDS: u8 = 5;
/// Between two checks of a backend, in milliseconds: reloads change from one to the other.
const INTERVALS_MS: [u32; 2] = [1_000, 900];
/// For what takes moments when all is well.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an echo may take: links flap, and a lost segment is sent again after a second or more.
const ECHO_PATIENCE: Duration = Duration::from_secs(20);

/// What there is to get through.
#[derive(Debug, Clone)]
pub struct Forecast {
    /// Where the backends are, and so the mode.
    pub place: Place,
    /// The versions of IP.
    pub family: Family,
    /// Long-lived connections.
    pub connections: usize,
    /// How often one that is not silent says something.
    pub pace: Duration,
    /// How long it storms, at least.
    pub storm: Duration,
    /// What may happen.
    pub kinds: Vec<Kind>,
    /// How often each of these happens, at least.
    pub least: u64,
    /// Whether a quarter of the connections is to be older than 30 s when it begins, which makes pins of those that talk.
    pub pins: bool,
}

/// Runs a storm in a lab of its own. What happens is told to `say`.
///
/// # Errors
/// When the lab or Tether fails otherwise than by what an outcome tells.
pub fn run(forecast: &Forecast, mut say: impl FnMut(&str)) -> Result<Outcome> {
    let mut random = Random::from_environment();
    let topology = Topology {
        backends: BACKENDS,
        ..Topology::new(forecast.place).in_family(forecast.family)
    };
    let newcomer = crate::topology::backend_name(BACKENDS - 1);
    let stage = Stage::set(topology, random.bits(), |config| {
        config.check = Check::Http;
        // Where many labs share few processors, an answer may take its time.
        [config.interval_ms, _] = INTERVALS_MS;
        config.timeout_ms = 900;
        let flows = u32::try_from(forecast.connections).unwrap_or(u32::MAX);
        config.flows = flows.saturating_mul(4).saturating_add(40_000);
        config.flows6 = config.flows;
        *config = config.without(&newcomer);
    })?;
    let crowd = assemble(&stage, forecast)?;
    say(&format!(
        "{} connections are open: {:?}",
        crowd.len(),
        crowd::spread(&crowd)
    ));
    let visitors = Visitors::start(&stage.lab, patient(stage.plan()), random.bits())?;
    let begun = Instant::now();
    let mut storm = Storm::new(stage, crowd, forecast, random, newcomer);
    while begun.elapsed() < forecast.storm || storm.is_weak() {
        let kind = storm.choose();
        let at = begun.elapsed().as_secs_f64();
        let what = storm.strike(kind)?;
        let took = begun.elapsed().as_secs_f64() - at;
        say(&format!(
            "{at:6.1} s  {}: {what} ({took:.1} s)",
            kind.name()
        ));
        storm.breathe();
    }
    storm.settle()?;
    say("the storm is over; all speak");
    let visits = visitors.stop()?;
    storm.judge(&visits, begun.elapsed())
}

/// Opens the long-lived connections, WebSockets and plain ones, silent ones and talkers, in turn.
fn assemble(stage: &Stage, forecast: &Forecast) -> Result<Vec<Connection>> {
    let silent = patient(stage.plan()).reconnecting();
    let talking = silent.talking(forecast.pace);
    let plans = [silent, talking, silent.plain(), talking.plain()];
    let open = |count: usize| -> Result<Vec<Connection>> {
        let mut all = vec![];
        for (number, plan) in plans.into_iter().enumerate() {
            let share = (count + number) / plans.len();
            all.extend(stage.clients.open(share, plan, |_| {})?);
        }
        Ok(all)
    };
    if !forecast.pins {
        return open(forecast.connections);
    }
    let old = forecast.connections / 4;
    let mut crowd = open(old)?;
    let talkers = old / 2;
    stage.tether.wait_status(
        "the talkers of the first quarter are pins",
        PATIENCE,
        |status| status.flows.pin >= talkers as u64,
    )?;
    crowd.extend(open(forecast.connections - old)?);
    ensure!(crowd.len() == forecast.connections, "a crowd too small");
    Ok(crowd)
}

fn patient(plan: Plan) -> Plan {
    Plan {
        patience: ECHO_PATIENCE,
        opening: ECHO_PATIENCE,
        ..plan
    }
}

/// Waits until every client is connected, or has said why it cannot be.
fn wait_connected(crowd: &[Connection]) {
    // One that is neither is told of by the judgement.
    let _ = wait::until("every client is connected", PATIENCE, || {
        let settled = crowd.iter().all(|connection| {
            let history = connection.history();
            history.current().is_some() || history.failure.is_some()
        });
        settled.then_some(())
    });
}
