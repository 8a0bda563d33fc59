//! The demo's acts, in order.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use lab::config::SERVICE;
use lab::peer::client::{self, Break, Connection};
use lab::peer::crowd;
use lab::stage::Stage;
use lab::topology::Topology;
use lab::wait;

use crate::report::{DaemonRestart, Drained, Killed, Report};

/// How often each connection says something.
const PACE: Duration = Duration::from_secs(1);
/// For what takes moments when all is well.
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections opened to see where new ones go.
const NEWCOMERS: usize = 30;

const DRAINED: &str = "b1";
const DARK: &str = "b2";

/// Runs the whole demo in a lab of `topology`.
///
/// # Errors
/// When the lab, Tether or an act fails for another reason than a broken connection.
pub(crate) fn run(topology: Topology, count: usize) -> Result<Report> {
    let started = Instant::now();
    say(
        started,
        "building the lab: clients, router, load balancer, three backends",
    );
    let mut stage = Stage::set(topology, 1, |_| {})?;
    say(
        started,
        &format!(
            "tether runs at {} and all backends are up (mode {})",
            stage.config.vip, stage.config.mode
        ),
    );

    let connections = open(&stage, count)?;
    let per_backend = crowd::spread(&connections);
    say(
        started,
        &format!(
            "{count} WebSocket connections are open: {}",
            in_words(&per_backend)
        ),
    );

    let drained: Vec<&Connection> = crowd::on(&connections, DRAINED);
    stage
        .tether
        .succeed(&["drain", &format!("{SERVICE}/{DRAINED}")])?;
    stage
        .tether
        .wait_status("the drain is in force", PATIENCE, |status| {
            status.serving(DRAINED) == "existing-only"
        })?;
    say(
        started,
        &format!(
            "{DRAINED} drains; its {} connections keep echoing",
            drained.len()
        ),
    );
    let newcomers = stage.clients.open(NEWCOMERS, stage.plan(), |_| {})?;
    say(
        started,
        &format!(
            "{NEWCOMERS} newcomers: {}",
            in_words(&crowd::spread(&newcomers))
        ),
    );
    let strays = crowd::on(&newcomers, DRAINED).len();
    anyhow::ensure!(
        strays == 0,
        "{strays} new connections went to the draining {DRAINED}"
    );
    drop(newcomers);
    let_them_talk("draining", &connections)?;

    let killed = go_dark(&stage, &connections, started)?;
    let killed_on_purpose = |life: &client::Life, why: &Break| {
        life.backend == DARK
            && *why == Break::Reset
            && life.end.as_ref().is_some_and(|end| end.at > killed.since)
    };

    let killed_at = Instant::now();
    let pid = stage.tether.pid()?;
    stage.tether.kill()?;
    say(
        started,
        &format!("the daemon (process {pid}) was killed with SIGKILL; messages flow on"),
    );
    let_them_talk("no daemon", &connections)?;
    stage.tether.restart()?;
    stage.tether.wait_ready()?;
    say(
        started,
        &format!("the daemon is back (process {})", stage.tether.pid()?),
    );
    let_them_talk("daemon is back", &connections)?;

    // The last word has every connection, not only those that had something to say in time.
    let silent = crowd::echo_all(&connections);
    let mut complaints = vec![];
    let mut broken_since_kill = 0;
    for connection in &connections {
        let history = connection.history();
        for (life, why) in history
            .breaks()
            .filter(|(life, why)| !killed_on_purpose(life, why))
        {
            complaints.push(format!("{} on {}: {why}", life.local, life.backend));
        }
        complaints.extend(history.failure.clone());
        broken_since_kill += history
            .breaks()
            .filter(|(life, _)| life.end.as_ref().is_some_and(|end| end.at >= killed_at))
            .count();
    }
    // A connection that cannot echo has a break or a failure, and has been counted; if neither, that is a finding too.
    if complaints.is_empty() {
        complaints = silent;
    }
    let kept = drained
        .iter()
        .filter(|c| c.history().lives.len() == 1 && c.backend().as_deref() == Some(DRAINED))
        .count();
    let report = Report {
        connections: count,
        unexpected_breaks: complaints.len(),
        per_backend,
        drained: Drained {
            held: drained.len(),
            kept,
        },
        killed: killed.fate,
        daemon_restart: DaemonRestart {
            broken: broken_since_kill,
        },
        complaints,
    };
    if report.unexpected_breaks == 0 {
        stage.close();
    }
    Ok(report)
}

fn open(stage: &Stage, count: usize) -> Result<Vec<Connection>> {
    let bar = bar("opening", count)?;
    let plan = stage.plan().talking(PACE).reconnecting();
    let connections = stage.clients.open(count, plan, |open| {
        bar.set_position(u64::try_from(open).unwrap_or(0))
    });
    bar.finish_and_clear();
    connections
}

struct Darkness {
    since: Instant,
    fate: Killed,
}

/// Kills a backend's link while its clients are quiet, as most are most of the time; then lets each say something.
fn go_dark(stage: &Stage, connections: &[Connection], started: Instant) -> Result<Darkness> {
    let clients = crowd::on(connections, DARK);
    crowd::set_pace(clients.iter().copied(), None);
    let (index, _) = stage.backend(DARK)?;
    let since = Instant::now();
    stage.lab.darken(index)?;
    say(
        started,
        &format!(
            "{DARK}'s link dies without a word; {} clients do not know",
            clients.len()
        ),
    );
    stage
        .tether
        .wait_status("the dark backend is down", PATIENCE, |status| {
            status.health(DARK) == "down" && status.serving(DARK) == "none"
        })?;
    say(
        started,
        &format!("{DARK} is found to be down after {:.1?}", since.elapsed()),
    );

    crowd::set_pace(clients.iter().copied(), Some(PACE));
    let bar = bar("reconnecting", clients.len())?;
    let elsewhere = || {
        let away = |c: &&&Connection| c.backend().is_some_and(|backend| backend != DARK);
        clients.iter().filter(away).count()
    };
    // A client that finds no way back makes the count fall short, and that is the report's to say.
    let _ = wait::until("every client is elsewhere", PATIENCE, || {
        let count = elsewhere();
        bar.set_position(u64::try_from(count).unwrap_or(0));
        (count == clients.len()).then_some(())
    });
    bar.finish_and_clear();

    let mut took: Vec<f64> = clients
        .iter()
        .filter_map(|connection| {
            let history = connection.history();
            let [first, second, ..] = history.lives.as_slice() else {
                return None;
            };
            let sent = first.end.as_ref()?.unanswered?;
            Some((second.opened - sent).as_secs_f64() * 1e3)
        })
        .collect();
    took.sort_by(f64::total_cmp);
    let fate = Killed {
        held: clients.len(),
        reconnected: elsewhere(),
        // To the microsecond: what is finer is noise.
        median_ms: took.get(took.len() / 2).map(|ms| (ms * 1e3).round() / 1e3),
    };
    say(
        started,
        &format!("{} clients are connected elsewhere", fate.reconnected),
    );
    Ok(Darkness { since, fate })
}

/// Lets everyone say a few things more. One that breaks meanwhile is the report's to tell, and so is one that falls silent.
fn let_them_talk(why: &str, connections: &[Connection]) -> Result<()> {
    let bar = bar(why, connections.len())?;
    let _ = crowd::wait_for_echoes(connections, 2, PATIENCE, |count| {
        bar.set_position(u64::try_from(count).unwrap_or(0));
    });
    bar.finish_and_clear();
    Ok(())
}

fn in_words(spread: &BTreeMap<String, usize>) -> String {
    let words: Vec<_> = spread
        .iter()
        .map(|(backend, count)| format!("{backend} {count}"))
        .collect();
    words.join(", ")
}

fn say(started: Instant, what: &str) {
    println!("{:5.1} s  {what}", started.elapsed().as_secs_f64());
}

fn bar(what: &str, length: usize) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("         {msg:<14} [{bar:40}] {pos}/{len}")
        .context("the progress bar's template")?
        .progress_chars("=> ");
    let bar = ProgressBar::new(u64::try_from(length)?).with_style(style);
    bar.set_message(what.to_owned());
    Ok(bar)
}
