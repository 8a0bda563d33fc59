//! Health checks: who is asked when, and what is reported.
//!
//! [`track`] turns results into verdicts and is pure, [`probe`] asks, [`sign`] looks for signs of life with [`echo`], [`places`] bounds how many ask
//! at once. This module runs one task a backend.

mod echo;
mod places;
mod probe;
mod sign;
mod times;
pub mod track;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

pub use self::times::{ProbeTimes, ServiceTimes};
use self::{
    places::{Places, ServicePlaces, Turn},
    probe::{Answer, Passages, Probe, TlsClients},
    sign::{Senses, Signs},
    track::{Reply, Rules, Sign, Track},
};
use crate::model::{BackendName, Check, Health, HealthReport, LastError, Target};

/// Checks `targets` until `shutdown` turns true or the receiver of `reports` is gone.
///
/// No check through a VIP is asked from one of `vips`, those of all services. How they went is noted in `times`. `at_once` is how many checks of all services are under way at once, at most. A target is a name and an address: one that stays in the list keeps its
/// verdict, also when how it is checked changes. What is known of its host's echoes, and of its health by another name, counts when it joins the list. A report is sent whenever a target's
/// verdict, the reason of its last failure or whether its host answers echoes changes, or that failure has ended, and again for each other object that
/// takes a target's place.
///
/// # Errors
/// When no netlink socket is to be had.
pub async fn run(
    mut targets: watch::Receiver<Vec<Target>>,
    vips: watch::Receiver<BTreeSet<IpAddr>>,
    reports: mpsc::Sender<HealthReport>,
    at_once: usize,
    times: ProbeTimes,
    mut shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    let shared = Arc::new(Shared {
        senses: Senses::open()?,
        tls: TlsClients::default(),
        passages: Arc::new(Passages::beside(vips)),
        reports,
        times,
        began: Instant::now(),
    });
    let mut places = Places::new(at_once);
    let mut running = HashMap::new();
    loop {
        let wanted = targets.borrow_and_update().clone();
        adjust(&mut running, &shared, &mut places, wanted);
        tokio::select! {
            () = crate::shutdown::requested(&mut shutdown) => return Ok(()),
            () = shared.reports.closed() => return Ok(()),
            changed = targets.changed() => if changed.is_err() {
                return Ok(());
            }
        }
    }
}

/// What all checks share.
struct Shared {
    senses: Senses,
    tls: TlsClients,
    passages: Arc<Passages>,
    reports: mpsc::Sender<HealthReport>,
    times: ProbeTimes,
    began: Instant,
}

impl Shared {
    fn probe(&self, target: &Target) -> Probe {
        let Target { address, check, .. } = target;
        match target.through {
            None => Probe::new(*address, check, &self.tls),
            Some(to) => Probe::through(to, *address, check, &self.tls, self.passages.clone()),
        }
    }
}

/// What one task does.
#[derive(Clone, Debug, PartialEq)]
struct Order {
    target: Target,
    places: ServicePlaces,
}

/// The checks of one target; dropping it ends them.
struct Running {
    order: watch::Sender<Order>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Ends what is no longer wanted, starts what is new, and tells the others what changed.
fn adjust(
    running: &mut HashMap<(BackendName, SocketAddr), Running>,
    shared: &Arc<Shared>,
    places: &mut Places,
    wanted: Vec<Target>,
) {
    places.adjust(&wanted);
    shared.times.keep(&wanted);
    let mut before = std::mem::take(running);
    for target in wanted {
        let key = (target.name.clone(), target.address);
        let mut order = Order {
            places: places.of(&target.name.service),
            target,
        };
        let one = match before.remove(&key) {
            Some(one) => {
                one.order.send_if_modified(|current| {
                    // What it has found out itself is no other order.
                    order.target.answers_echoes = current.target.answers_echoes;
                    order.target.verdict = current.target.verdict;
                    let changed = *current != order;
                    *current = order;
                    changed
                });
                one
            }
            None => start(shared.clone(), order),
        };
        running.insert(key, one);
    }
}

fn start(shared: Arc<Shared>, order: Order) -> Running {
    let (sender, receiver) = watch::channel(order);
    Running {
        order: sender,
        task: tokio::spawn(watch_one(shared, receiver)),
    }
}

fn rules(check: &Check) -> Rules {
    Rules {
        interval: check.interval,
        doubt_interval: check.doubt_interval,
        fall: check.fall,
        rise: check.rise,
    }
}

/// Asks one target again and again.
async fn watch_one(shared: Arc<Shared>, mut orders: watch::Receiver<Order>) {
    let Order {
        mut target,
        mut places,
    } = orders.borrow_and_update().clone();
    let mut probe = shared.probe(&target);
    let mut track = Track::new(rules(&target.check))
        .recalling(target.answers_echoes)
        .going_on_from(target.verdict);
    let mut signs = Signs::new(target.address.ip());
    let mut news = News::default();
    let mut first_asked = None;
    let mut turn = Turn::Usual;
    let times = shared.times.of(&target.name.service);
    loop {
        let began = {
            let _place = places.take(turn).await;
            let began = Instant::now();
            let age = began.duration_since(*first_asked.get_or_insert(began));
            track.set_grace(age < target.check.startup_grace);
            let answer = check(
                &shared.senses,
                &target,
                &probe,
                &mut track,
                &mut signs,
                (began, &times),
            );
            let (error, health) = answer.await;
            turn = Turn::after(&track, began.elapsed(), target.check.timeout);
            let answers_echoes = track.answers_echoes();
            if let Some(last_error) = news.of(health, error, answers_echoes) {
                // Verdicts are logged by who acts on them.
                tracing::debug!(
                    backend = %target.name,
                    address = %target.address,
                    ?health,
                    ?last_error,
                    answers_echoes,
                    "the result of a check changed"
                );
                let report = HealthReport {
                    name: target.name.clone(),
                    address: target.address,
                    health,
                    last_error,
                    answers_echoes,
                };
                if shared.reports.send(report).await.is_err() {
                    return;
                }
            }
            began
        };
        let next = began + jittered(track.interval(), target.check.jitter_percent);
        let next = in_step(shared.began, next, track.interval() / Check::STEPS);
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => (),
            changed = orders.changed() => {
                if changed.is_err() {
                    return;
                }
                let before = target.object;
                Order { target, places } = orders.borrow_and_update().clone();
                if target.object != before {
                    news.retell();
                }
                probe = shared.probe(&target);
                track.set_rules(rules(&target.check));
            }
        }
    }
}

/// What was said of a target.
#[derive(Debug, Default, PartialEq, Eq)]
struct News {
    health: Health,
    last_error: Option<LastError>,
    answers_echoes: bool,
    /// Whether there is somebody to whom it was not said.
    untold: bool,
}

impl News {
    /// What is known is news to somebody.
    fn retell(&mut self) {
        self.untold = true;
    }

    /// What is to be said of the last error after another check; none if nothing has changed.
    fn of(
        &mut self,
        health: Health,
        error: Option<String>,
        answers_echoes: bool,
    ) -> Option<Option<LastError>> {
        let lasting = |last: &&LastError| last.ended.is_none();
        let last_error = match (error, &self.last_error) {
            (Some(text), last)
                if last
                    .as_ref()
                    .filter(lasting)
                    .is_some_and(|l| l.text == text) =>
            {
                last.clone()
            }
            (Some(text), _) => Some(LastError { text, ended: None }),
            (None, Some(last)) if last.ended.is_none() => Some(LastError {
                text: last.text.clone(),
                ended: Some(SystemTime::now()),
            }),
            (None, last) => last.clone(),
        };
        let said = Self {
            health,
            last_error,
            answers_echoes,
            untold: false,
        };
        if said == *self {
            return None;
        }
        *self = said;
        Some(self.last_error.clone())
    }
}

/// One check, with the signs of life that it calls for: why it was no yes, and the verdict after it.
async fn check(
    senses: &Senses,
    target: &Target,
    probe: &Probe,
    track: &mut Track,
    signs: &mut Signs,
    (began, times): (Instant, &ServiceTimes),
) -> (Option<String>, Health) {
    let asked = async {
        let answer = probe.ask().await;
        times.note(answer.reply, began.elapsed());
        answer
    };
    let (Answer { reply, error }, echoed) = tokio::join!(
        asked,
        signs.echo_along(senses, track.is_silent(), target.check.timeout)
    );
    let sign = if reply == Reply::Silent {
        signs.look(senses, began, echoed).await
    } else {
        signs.settle();
        echoed.map_or(Sign::Absent, Sign::Echo)
    };
    (error, track.observe(reply, sign))
}

/// So many percent more or less at most.
fn jittered(interval: Duration, percent: u8) -> Duration {
    let most = f64::from(percent) / 100.0;
    interval.mul_f64((1.0 - most) + 2.0 * most * fastrand::f64())
}

/// The first moment from `next` on that is a whole number of `step`s after `began`.
fn in_step(began: Instant, next: Instant, step: Duration) -> Instant {
    let over = next.duration_since(began).as_nanos() % step.as_nanos().max(1);
    match u64::try_from(over) {
        Ok(over @ 1..) => next + step - Duration::from_nanos(over),
        Ok(0) | Err(_) => next,
    }
}

#[cfg(test)]
mod tests;
