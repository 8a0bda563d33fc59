//! What is done with, and asked of, many clients together.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use super::client::Connection;
use super::conversation::Order;
use crate::wait;

/// Changes the pace of connections, and waits until each that lives is between two messages and has obeyed.
pub fn set_pace<'a>(connections: impl IntoIterator<Item = &'a Connection>, pace: Option<Duration>) {
    let obeyed: Vec<_> = connections
        .into_iter()
        .map(|connection| connection.ask(|answer| Order::Pace(pace, answer)))
        .collect();
    for answer in obeyed {
        // One that broke has no pace.
        let _ = answer.blocking_recv();
    }
}

/// Lets all connections echo once, together; returns a line for each that could not.
pub fn echo_all<'a>(connections: impl IntoIterator<Item = &'a Connection>) -> Vec<String> {
    let connections: Vec<_> = connections.into_iter().collect();
    let answers: Vec<_> = connections
        .iter()
        .map(|connection| connection.ask(Order::Echo))
        .collect();
    let outcomes = connections.iter().zip(answers).map(|(connection, answer)| {
        connection
            .receive(answer)
            .map_err(|error| error.to_string())
            .and_then(|echo| {
                let first = connection
                    .history()
                    .lives
                    .first()
                    .map(|life| life.local.to_string());
                echo.map_err(|why| format!("{}: {why}", first.unwrap_or_default()))
            })
    });
    outcomes.filter_map(Result::err).collect()
}

/// How many open connections each backend has.
pub fn spread<'a>(
    connections: impl IntoIterator<Item = &'a Connection>,
) -> BTreeMap<String, usize> {
    let mut spread = BTreeMap::new();
    for backend in connections.into_iter().filter_map(Connection::backend) {
        *spread.entry(backend).or_default() += 1;
    }
    spread
}

/// One line for each break, for people.
pub fn breaks<'a>(connections: impl IntoIterator<Item = &'a Connection>) -> Vec<String> {
    let mut lines = vec![];
    for connection in connections {
        for (life, why) in connection.history().breaks() {
            lines.push(format!(
                "{} on {} after {:?} and {} echoes: {why}",
                life.local,
                life.backend,
                life.end
                    .as_ref()
                    .map_or(Duration::ZERO, |end| end.at - life.opened),
                life.echoes,
            ));
        }
    }
    lines
}

/// Those whose open connection is on `backend`.
#[must_use]
pub fn on<'a>(connections: &'a [Connection], backend: &str) -> Vec<&'a Connection> {
    let there = |connection: &&Connection| connection.backend().as_deref() == Some(backend);
    connections.iter().filter(there).collect()
}

/// Waits until each connection that talks and lives has had `count` more echoes; tells `progress` how many are there.
///
/// # Errors
/// When `deadline` passes first. One that breaks meanwhile is not waited for: see [`breaks`].
pub fn wait_for_echoes(
    connections: &[Connection],
    count: u64,
    deadline: Duration,
    mut progress: impl FnMut(usize),
) -> Result<()> {
    let goals: Vec<_> = connections
        .iter()
        .map(|c| (c, c.history().echoes() + count))
        .collect();
    wait::until("every connection echoes on", deadline, || {
        let there = goals.iter().filter(|(connection, goal)| {
            let history = connection.history();
            history.current().is_none() || history.echoes() >= *goal
        });
        let there = there.count();
        progress(there);
        (there == goals.len()).then_some(())
    })
}

/// Asserts that each connection that talks echoes again and again, and that none has ever broken.
///
/// # Errors
/// When one does not echo on in half a minute.
///
/// # Panics
/// When one has broken.
#[track_caller]
pub fn assert_talking(connections: &[Connection]) -> Result<()> {
    wait_for_echoes(connections, 3, Duration::from_secs(30), |_| {})?;
    assert_eq!(breaks(connections), [""; 0]);
    Ok(())
}
