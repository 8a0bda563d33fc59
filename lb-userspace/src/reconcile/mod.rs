//! The loop that keeps the maps true: the only writer of services, tables, backends and the directory of VIPs.

mod answers;
mod capacity;
mod differences;
mod evacuation;
mod keeper;
mod listing;
mod memory;
mod outliers;
mod preview;
mod record;
mod registry;
mod state;
mod translations;
mod verdicts;
mod weigh;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};

pub use self::{
    memory::FILES as MEMORY_FILES,
    state::{State, would_fit},
};

use crate::{
    config::Config,
    dataplane::maps::{Maps, now, now_ns},
    desired::{Edit, Refusal},
    dns, failpoint,
    flows::Census,
    model::{Asked, BackendName, HealthReport, NextHopReport, Target},
    neighbour::replies::Hindrances,
    pace::Moment,
    preview::Preview,
    status::{Attachments, ClosedEgress, Status},
};

/// What people ask for.
#[derive(Debug)]
pub enum Command {
    /// A new configuration, valid.
    Reload {
        /// The configuration.
        config: Box<Config>,
        /// Told the generation that it became once that is applied, or why it cannot be applied to this instance.
        reply: oneshot::Sender<Result<u64, String>>,
    },
    /// A reload was refused: said in the status until the next good one.
    RejectedConfig {
        /// Why.
        error: String,
    },
    /// A backend is to take no new flows, until undrained; survives restarts.
    Drain {
        /// Which.
        name: BackendName,
        /// A deadline of this drain's own.
        asked: Option<Asked>,
        /// Told when it is remembered and applied, or why it is refused.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// A backend is to be otherwise than the file says; survives restarts.
    Edit {
        /// Which.
        name: BackendName,
        /// How.
        edit: Edit,
        /// Told when it is remembered and applied, or why it is refused.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// What a configuration would change, if it were the next: nothing is done.
    Preview {
        /// The configuration, valid.
        config: Box<Config>,
        /// Told that, or why it would be refused.
        reply: oneshot::Sender<Result<Preview, String>>,
    },
    /// The end of a drain.
    Undrain {
        /// Which.
        name: BackendName,
        /// Told when it is remembered and applied, with why the backend takes no new flows all the same, if the configuration itself says so; or why it
        /// is refused.
        reply: oneshot::Sender<Result<Option<String>, Refusal>>,
    },
    /// No backend is to take new flows, nor any that is yet to come, until undrained together; survives restarts.
    DrainAll {
        /// A deadline of this drain's own.
        asked: Option<Asked>,
        /// Told when it is remembered and applied, or that it cannot be.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
    /// The end of the drain of all backends.
    UndrainAll {
        /// Told when it is remembered and applied, or that it cannot be.
        reply: oneshot::Sender<Result<(), Refusal>>,
    },
}

/// What the reconciler listens to.
#[derive(Debug)]
pub struct Inputs {
    /// What people ask for.
    pub commands: mpsc::Receiver<Command>,
    /// Verdicts of the health checks.
    pub health: mpsc::Receiver<HealthReport>,
    /// Ways to addresses.
    pub next_hops: mpsc::Receiver<NextHopReport>,
    /// What the DNS says.
    pub answers: mpsc::Receiver<dns::Report>,
    /// The VIPs that the host itself has; none before that is known.
    pub own_vips: watch::Receiver<Option<BTreeSet<IpAddr>>>,
    /// Why packets that backends send back reach no clients.
    pub hindrances: watch::Receiver<Hindrances>,
    /// Why no guard is in force, if none is.
    pub unguarded: watch::Receiver<Option<String>>,
    /// What the flow tables hold.
    pub census: watch::Receiver<Arc<Census>>,
    /// Where the program is attached, and where it is not: only passed on to the status.
    pub attachments: watch::Receiver<Attachments>,
    /// Where packets cannot leave: only passed on to the status.
    pub closed_egress: watch::Receiver<Vec<ClosedEgress>>,
    /// True, or closed: stop, and leave the data path as it is.
    pub shutdown: watch::Receiver<bool>,
}

/// What the reconciler says.
#[derive(Debug)]
pub struct Outputs {
    /// Whose health it wants to know. Names are not unique: the old object of a backend whose address changed is watched too, while it has flows.
    pub targets: watch::Sender<Vec<Target>>,
    /// The addresses whose next hops it wants to know.
    pub addresses: watch::Sender<BTreeSet<IpAddr>>,
    /// What it wants to know of the DNS.
    pub questions: watch::Sender<BTreeMap<dns::Question, dns::Wanted>>,
    /// The VIPs of which it wants to know whether the host itself has them.
    pub vips: watch::Sender<BTreeSet<IpAddr>>,
    /// The state of things. Its `generation.resolved` is not 0 from the first application on; `generation.applied` follows once
    /// every service has what it needs.
    pub status: watch::Sender<Arc<Status>>,
}

/// Waits until no run of the program that began before the call is still going.
pub type Grace = Arc<dyn Fn() + Send + Sync>;

/// Why the reconciler cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The maps are too small for what is configured.
    #[error("{0}")]
    Capacity(String),
}

/// How long the first application waits, at most, for first verdicts and next hops.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// How often all maps are read and compared, whatever else happens.
const COMPARISON: Duration = Duration::from_secs(10);

/// Keeps `maps` true until told to stop. Nothing is taken away before the first verdicts and next hops, or five seconds.
///
/// # Errors
/// Only before anything is applied; afterwards nothing ends it but `inputs.shutdown`.
pub async fn run(
    maps: Arc<Maps>,
    fleet_seed: [u64; 4],
    first: Config,
    grace: Grace,
    mut inputs: Inputs,
    outputs: Outputs,
) -> Result<(), Error> {
    let begun = Instant::now();
    // A daemon that was killed may have replaced a table a moment ago: what it freed is free after this.
    blocking({
        let grace = Arc::clone(&grace);
        move || grace()
    })
    .await;
    let census = Arc::clone(&inputs.census.borrow_and_update());
    let mut worker = Worker {
        state: State::adopt(maps, fleet_seed, first, census, now())?,
        grace,
        begun,
        outputs,
        unanswered: Vec::new(),
    };
    if let Some(own) = inputs.own_vips.borrow_and_update().clone() {
        worker.state.host_owns(own);
    }
    worker.publish(&inputs);
    let first_word = begun + FIRST_WORD;
    while !worker.state.is_informed() && Instant::now() < first_word {
        match inputs.next(first_word).await {
            Next::Event(event) => {
                worker.take_in(event);
            }
            Next::Deadline => break,
            Next::Stop => return Ok(()),
        }
        // All that is there: the status of thousands of backends takes longer to make than their first words to come.
        for event in inputs.waiting() {
            worker.take_in(event);
        }
        worker.publish(&inputs);
    }
    let mut comparison = Instant::now() + COMPARISON;
    loop {
        if Instant::now() >= comparison {
            worker.state.observe(now());
            comparison = Instant::now() + COMPARISON;
        }
        worker.converge(&mut inputs).await;
        worker.publish(&inputs);
        worker.answer();
        let mut news = false;
        let until = worker.due().map_or(comparison, |due| due.min(comparison));
        // At least once, though the next plan may be due already: where one takes longer than the time from step to step of what is closed at a pace,
        // nobody would be heard until all of that is closed.
        loop {
            match inputs.next(until).await {
                Next::Event(event) => news |= worker.take_in(event),
                Next::Deadline => {}
                Next::Stop => {
                    worker.state.ends();
                    return Ok(());
                }
            }
            // Whatever else has come meanwhile is part of the same change.
            for event in inputs.waiting() {
                news |= worker.take_in(event);
            }
            if news || Instant::now() >= until {
                break;
            }
        }
    }
}

/// Something that happened.
enum Event {
    Command(Command),
    Health(HealthReport),
    NextHop(NextHopReport),
    Answer(dns::Report),
    OwnVips(Option<BTreeSet<IpAddr>>),
    Hindrances(Hindrances),
    Unguarded(Option<String>),
    Census(Arc<Census>),
    Interfaces,
}

/// What ends a wait.
enum Next {
    Event(Event),
    Deadline,
    Stop,
}

/// The most events that are taken in together, so that a flood of them does not keep a change from being applied.
const BATCH: usize = 4_096;

impl Inputs {
    async fn next(&mut self, deadline: Instant) -> Next {
        // A branch whose sender is gone is not chosen: then only the others and the deadline go on.
        tokio::select! {
            biased;
            _ = self.shutdown.wait_for(|stop| *stop) => Next::Stop,
            Some(command) = self.commands.recv() => Next::Event(Event::Command(command)),
            Some(report) = self.health.recv() => Next::Event(Event::Health(report)),
            Some(report) = self.next_hops.recv() => Next::Event(Event::NextHop(report)),
            Some(report) = self.answers.recv() => Next::Event(Event::Answer(report)),
            Ok(()) = self.own_vips.changed() => {
                Next::Event(Event::OwnVips(self.own_vips.borrow_and_update().clone()))
            }
            Ok(()) = self.hindrances.changed() => {
                Next::Event(Event::Hindrances(self.hindrances.borrow_and_update().clone()))
            }
            Ok(()) = self.unguarded.changed() => {
                Next::Event(Event::Unguarded(self.unguarded.borrow_and_update().clone()))
            }
            Ok(()) = self.census.changed() => {
                Next::Event(Event::Census(Arc::clone(&self.census.borrow_and_update())))
            }
            Ok(()) = self.attachments.changed() => Next::Event(Event::Interfaces),
            Ok(()) = self.closed_egress.changed() => Next::Event(Event::Interfaces),
            () = tokio::time::sleep_until(deadline.into()) => Next::Deadline,
        }
    }

    /// What is there already.
    fn waiting(&mut self) -> Vec<Event> {
        let commands = std::iter::from_fn(|| self.commands.try_recv().ok()).map(Event::Command);
        let health = std::iter::from_fn(|| self.health.try_recv().ok()).map(Event::Health);
        let next_hops = std::iter::from_fn(|| self.next_hops.try_recv().ok()).map(Event::NextHop);
        let answers = std::iter::from_fn(|| self.answers.try_recv().ok()).map(Event::Answer);
        commands
            .take(BATCH)
            .chain(health.take(BATCH))
            .chain(next_hops.take(BATCH))
            .chain(answers.take(BATCH))
            .collect()
    }
}

/// The state with what surrounds it.
struct Worker {
    state: State,
    grace: Grace,
    begun: Instant,
    outputs: Outputs,
    /// Tells people that what they asked for is in force, once it is.
    unanswered: Vec<Box<dyn FnOnce() + Send>>,
}

impl Worker {
    /// Takes in what happened; false if it is what was known already.
    fn take_in(&mut self, event: Event) -> bool {
        let (state, unanswered) = (&mut self.state, &mut self.unanswered);
        match event {
            Event::Command(Command::Reload { config, reply }) => {
                let result = state.reload(*config);
                match &result {
                    Ok(generation) => tracing::info!(generation, "configuration accepted"),
                    Err(error) => tracing::error!(%error, "configuration refused"),
                }
                unanswered.extend(once_applied(reply, result));
            }
            Event::Command(Command::RejectedConfig { error }) => state.rejected(error),
            Event::Command(Command::Drain { name, asked, reply }) => {
                let result = state.drain(&name, asked);
                let deadline = asked.map(|asked| asked.deadline);
                tracing::info!(backend = %name, ?deadline, ?result, "drain");
                unanswered.extend(once_applied(reply, result));
            }
            Event::Command(Command::Edit { name, edit, reply }) => {
                let result = state.edit(&name, &edit);
                tracing::info!(backend = %name, ?edit, ?result, "changed at runtime");
                unanswered.extend(once_applied(reply, result));
            }
            Event::Command(Command::Preview { config, reply }) => {
                match state.ask_about(*config, moment()) {
                    Err(refused) => drop(reply.send(Err(refused))),
                    // It may take seconds, and changes are not to wait for it.
                    Ok(question) => drop(tokio::task::spawn_blocking(move || {
                        reply.send(Ok(question.answer()))
                    })),
                }
                return false;
            }
            Event::Command(Command::Undrain { name, reply }) => {
                let result = state.undrain(&name);
                tracing::info!(backend = %name, ?result, "undrain");
                unanswered.extend(once_applied(reply, result));
            }
            Event::Command(Command::DrainAll { asked, reply }) => {
                let result = state.drain_all(asked);
                let deadline = asked.map(|asked| asked.deadline);
                tracing::info!(?deadline, ?result, "drain of all backends");
                unanswered.extend(once_applied(reply, result));
            }
            Event::Command(Command::UndrainAll { reply }) => {
                let result = state.undrain_all();
                tracing::info!(?result, "end of the drain of all backends");
                unanswered.extend(once_applied(reply, result));
            }
            Event::Health(report) => {
                return state.heard(report, u64::try_from(moment().0).unwrap_or(0));
            }
            Event::NextHop(report) => return state.next_hop(report),
            Event::Answer(report) => return state.answered(report),
            Event::OwnVips(own) => return own.is_some_and(|own| state.host_owns(own)),
            Event::Hindrances(hindrances) => return state.hindered(hindrances),
            Event::Unguarded(why) => return state.is_unguarded(why),
            Event::Census(census) => state.counted(census),
            Event::Interfaces => {}
        }
        true
    }

    /// Plans and applies; then, if a proof that ids are free waits for it, lets a grace period pass.
    async fn converge(&mut self, inputs: &mut Inputs) {
        let plan = self.state.plan(moment());
        let plan = if plan.operations.is_empty() {
            plan
        } else {
            let (maps, grace) = (Arc::clone(&self.state.maps), Arc::clone(&self.grace));
            blocking(move || {
                for operation in &plan.operations {
                    failpoint::pass(failpoint::Place::OperationDue);
                    tracing::debug!(%operation, "applying");
                    operation.apply(&maps, &*grace);
                }
                failpoint::pass(failpoint::Place::OperationsDone);
                plan
            })
            .await
        };
        self.state.applied(&plan, now());
        if self.state.is_settling() {
            let grace = Arc::clone(&self.grace);
            blocking(move || grace()).await;
            // The latest there is: a scan that ended before the grace period did must not count as one that began after.
            let census = Arc::clone(&inputs.census.borrow_and_update());
            self.state.settled(census.scans);
            self.state.counted(census);
        }
    }

    /// Tells people that what they asked for is in force.
    fn answer(&mut self) {
        for tell in self.unanswered.drain(..) {
            tell();
        }
    }

    /// When the next plan is due though nothing happens.
    fn due(&self) -> Option<Instant> {
        let wait = self.state.due()?.since(moment());
        Some(Instant::now() + wait)
    }

    fn publish(&self, inputs: &Inputs) {
        let (state, outputs) = (&self.state, &self.outputs);
        set(&outputs.targets, state.targets());
        set(&outputs.addresses, state.addresses());
        set(&outputs.questions, state.questions());
        set(&outputs.vips, state.vips());
        let Attachments { attached, detached } = inputs.attachments.borrow().clone();
        let closed_egress = inputs.closed_egress.borrow().clone();
        let status = Status {
            detached,
            ..state.status(attached, closed_egress, self.begun.elapsed())
        };
        outputs.status.send_replace(Arc::new(status));
    }
}

/// Answers a refusal at once; gives what answers a yes, for when that is true of the maps. Whoever asked may have gone meanwhile: what was asked is
/// done all the same.
fn once_applied<T: Send + 'static, E: Send + 'static>(
    reply: oneshot::Sender<Result<T, E>>,
    result: Result<T, E>,
) -> Option<Box<dyn FnOnce() + Send>> {
    if result.is_err() {
        let _ = reply.send(result);
        return None;
    }
    Some(Box::new(move || drop(reply.send(result))))
}

/// Now.
fn moment() -> Moment {
    Moment((now_ns() / 1_000_000) as i64)
}

/// Says something if it is news.
fn set<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|held| {
        let news = *held != value;
        if news {
            *held = value;
        }
        news
    });
}

/// Runs what blocks where that hinders nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        // It is not cancelled by anyone, so it has panicked.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
