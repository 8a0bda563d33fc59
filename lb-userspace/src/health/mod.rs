//! Health checks: who is asked when, and what is reported.
//!
//! [`track`] turns results into verdicts and is pure, [`probe`] asks, [`sign`] looks for signs of life with [`echo`]. This module runs one task a
//! backend and bounds how many ask at once.

mod echo;
mod probe;
mod sign;
pub mod track;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
};

use self::{
    probe::{Answer, probe},
    sign::{Senses, Signs},
    track::{Reply, Rules, Sign, Track},
};
use crate::model::{BackendName, Check, Health, HealthReport, Target};

/// Checks that are under way at once, at most.
const AT_ONCE: usize = 256;

/// Checks `targets` until `shutdown` turns true or the receiver of `reports` is gone.
///
/// A target is a name and an address: one that stays in the list keeps its verdict, also when how it is checked changes. A
/// report is sent whenever a target's verdict or the reason of its last failure changes.
///
/// # Errors
/// When no netlink socket is to be had.
pub async fn run(
    mut targets: watch::Receiver<Vec<Target>>,
    reports: mpsc::Sender<HealthReport>,
    mut shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    let shared = Arc::new(Shared {
        senses: Senses::open()?,
        places: Semaphore::new(AT_ONCE),
        reports,
    });
    let mut running = HashMap::new();
    loop {
        let wanted = targets.borrow_and_update().clone();
        adjust(&mut running, &shared, wanted);
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
    places: Semaphore,
    reports: mpsc::Sender<HealthReport>,
}

/// The checks of one target; dropping it ends them.
struct Running {
    target: watch::Sender<Target>,
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
    wanted: Vec<Target>,
) {
    let mut before = std::mem::take(running);
    for target in wanted {
        let key = (target.name.clone(), target.address);
        let one = match before.remove(&key) {
            Some(one) => {
                one.target.send_if_modified(|current| {
                    let changed = *current != target;
                    *current = target;
                    changed
                });
                one
            }
            None => start(shared.clone(), target),
        };
        running.insert(key, one);
    }
}

fn start(shared: Arc<Shared>, target: Target) -> Running {
    let (sender, receiver) = watch::channel(target);
    Running {
        target: sender,
        task: tokio::spawn(watch_one(shared, receiver)),
    }
}

fn rules(check: &Check) -> Rules {
    Rules {
        interval: check.interval,
        fall: check.fall,
        rise: check.rise,
    }
}

/// Asks one target again and again.
async fn watch_one(shared: Arc<Shared>, mut watched: watch::Receiver<Target>) {
    let mut target = watched.borrow_and_update().clone();
    let mut track = Track::new(rules(&target.check));
    let mut signs = Signs::new(target.address.ip());
    let mut reported = (Health::Unknown, None);
    loop {
        let began = {
            // Closed never: the semaphore lives as long as the tasks.
            let _place = shared.places.acquire().await;
            let began = Instant::now();
            let (answer, sign) = check(&shared.senses, &target, &track, &mut signs, began).await;
            let health = track.observe(answer.reply, sign);
            let news = (health, answer.error);
            if news != reported {
                // Verdicts are logged by who acts on them.
                tracing::debug!(
                    backend = %target.name,
                    address = %target.address,
                    ?health,
                    error = news.1.as_deref().unwrap_or_default(),
                    "the result of a check changed"
                );
                let report = HealthReport {
                    name: target.name.clone(),
                    address: target.address,
                    health,
                    last_error: news.1.clone(),
                };
                if shared.reports.send(report).await.is_err() {
                    return;
                }
                reported = news;
            }
            began
        };
        let next = began + jittered(track.interval());
        tokio::select! {
            () = tokio::time::sleep_until(next.into()) => (),
            changed = watched.changed() => {
                if changed.is_err() {
                    return;
                }
                target = watched.borrow_and_update().clone();
                track.set_rules(rules(&target.check));
            }
        }
    }
}

/// One check, with the signs of life that it calls for.
async fn check(
    senses: &Senses,
    target: &Target,
    track: &Track,
    signs: &mut Signs,
    began: Instant,
) -> (Answer, Sign) {
    let (answer, echoed) = tokio::join!(
        probe(target.address, &target.check),
        signs.echo_along(senses, track.is_silent(), target.check.timeout)
    );
    let sign = if answer.reply == Reply::Silent {
        signs.look(senses, began, echoed).await
    } else {
        signs.settle();
        echoed.map_or(Sign::Absent, Sign::Echo)
    };
    (answer, sign)
}

/// A tenth more or less, so that checks of many backends do not fall together.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * fastrand::f64())
}

#[cfg(test)]
mod tests;
