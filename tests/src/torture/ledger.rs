//! What was done to whom and when, and the judgement of what came of it: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::peer::client::{Break, History};

/// A time that may last still.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: Instant,
    until: Option<Instant>,
}

impl Span {
    /// Whether it holds at some moment from `from` to `until`.
    fn overlaps(&self, from: Instant, until: Instant) -> bool {
        self.from <= until && self.until.is_none_or(|end| from <= end)
    }

    /// Whether it holds all the time from `from` to `until`.
    fn covers(&self, from: Instant, until: Instant) -> bool {
        self.from <= from && self.until.is_none_or(|end| until <= end)
    }
}

/// An attempt to open a connection.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    /// When it began.
    pub(super) from: Instant,
    /// When it was open, or had failed.
    pub(super) until: Instant,
    /// Where it led to, if it was opened.
    pub(super) backend: Option<String>,
    /// Why it failed, or the first echo on it.
    pub(super) failure: Option<String>,
}

/// What became of attempts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Visits {
    /// Attempts.
    pub(super) tried: u64,
    /// Failures while a backend was broken and the verdict on it not yet in force.
    pub(super) failed_before_verdict: u64,
    /// All other failures.
    pub(super) failed_after_verdict: u64,
    /// Connections to a backend that was known to take no new ones.
    pub(super) to_draining: u64,
    /// Sentences about the last two.
    pub(super) complaints: Vec<String>,
}

/// What became of long-lived connections.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Fates {
    /// Connections that were on a backend when its host was killed.
    pub(super) held: u64,
    /// Those of them whose clients were connected again at the end.
    pub(super) reconnected: u64,
    /// For each of these, the milliseconds from its first message after the verdict to its new connection.
    pub(super) reconnect_ms: Vec<f64>,
    /// A sentence for each client that lost what it should have kept.
    pub(super) complaints: Vec<String>,
}

/// The record of a storm.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// When a backend was broken and Tether did not know yet.
    pending: Vec<Span>,
    /// When a backend was known to take no new flows.
    closed: BTreeMap<String, Vec<Span>>,
    /// Connections that ended with their backend's host, by client and life, with the moment of the verdict.
    doomed: BTreeMap<(usize, usize), Instant>,
}

impl Ledger {
    /// A backend is broken from now on.
    pub(super) fn breaks(&mut self) {
        self.pending.push(Span {
            from: Instant::now(),
            until: None,
        });
    }

    /// The verdict on it is in force.
    pub(super) fn verdict(&mut self) {
        if let Some(span) = self.pending.last_mut() {
            span.until.get_or_insert_with(Instant::now);
        }
    }

    /// A backend takes no new flows from now on.
    pub(super) fn closes(&mut self, backend: &str) {
        let spans = self.closed.entry(backend.to_owned()).or_default();
        if spans.last().is_none_or(|span| span.until.is_some()) {
            spans.push(Span {
                from: Instant::now(),
                until: None,
            });
        }
    }

    /// It may take new flows again: to be told before anything is done to that end.
    pub(super) fn opens(&mut self, backend: &str) {
        let last = self.closed.get_mut(backend).and_then(|s| s.last_mut());
        if let Some(span) = last {
            span.until.get_or_insert_with(Instant::now);
        }
    }

    /// This life of this client ended with its backend's host, which was found to be down at `verdict`.
    pub(super) fn dooms(&mut self, client: usize, life: usize, verdict: Instant) {
        self.doomed.entry((client, life)).or_insert(verdict);
    }

    fn is_closed(&self, backend: &str, from: Instant, until: Instant) -> bool {
        let spans = self.closed.get(backend);
        spans.is_some_and(|spans| spans.iter().any(|span| span.covers(from, until)))
    }

    /// Judges attempts.
    #[must_use]
    pub(super) fn judge_visits(&self, visits: &[Visit]) -> Visits {
        let mut judged = Visits {
            tried: visits.len() as u64,
            ..Visits::default()
        };
        for visit in visits {
            if let Some(failure) = &visit.failure {
                let mut pending = self.pending.iter();
                if pending.any(|span| span.overlaps(visit.from, visit.until)) {
                    judged.failed_before_verdict += 1;
                } else {
                    judged.failed_after_verdict += 1;
                    judged.complaints.push(failure.clone());
                }
            }
            if let Some(backend) = &visit.backend
                && self.is_closed(backend, visit.from, visit.until)
            {
                judged.to_draining += 1;
                judged
                    .complaints
                    .push(format!("a new connection went to {backend}"));
            }
        }
        judged
    }

    /// Judges long-lived connections, each by its history.
    #[must_use]
    pub(super) fn judge_fates(&self, histories: &[History]) -> Fates {
        let mut fates = Fates {
            held: self.doomed.len() as u64,
            ..Fates::default()
        };
        let mut bad = BTreeSet::new();
        for (client, history) in histories.iter().enumerate() {
            let mut complain = |what: String| {
                if bad.insert(client) {
                    fates.complaints.push(what);
                }
            };
            for (number, life) in history.lives.iter().enumerate() {
                let Some(end) = &life.end else { continue };
                let Some(why) = &end.why else { continue };
                let who = format!("{} on {}", life.local, life.backend);
                match self.doomed.get(&(client, number)) {
                    Some(verdict) if *why == Break::Reset && end.at >= *verdict => {
                        let Some(next) = history.lives.get(number + 1) else {
                            continue;
                        };
                        fates.reconnected += 1;
                        match end.unanswered {
                            Some(sent) => {
                                let took = next.opened - sent;
                                fates.reconnect_ms.push(took.as_secs_f64() * 1e3);
                            }
                            None => complain(format!("{who} was reset without having spoken")),
                        }
                    }
                    Some(_) => complain(format!("{who}, whose host was killed: {why}")),
                    None => {
                        let age = end.at - life.opened;
                        complain(format!(
                            "{who} after {age:.1?} and {} echoes: {why}",
                            life.echoes
                        ));
                    }
                }
            }
            if let Some(failure) = &history.failure {
                complain(failure.clone());
            } else if history.current().is_none() {
                complain(format!("client {client} is not connected"));
            }
        }
        fates
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::peer::client::{End, Life};

    fn visit(from: Instant, until: Instant, backend: Result<&str, &str>) -> Visit {
        Visit {
            from,
            until,
            backend: backend.ok().map(Into::into),
            failure: backend.err().map(Into::into),
        }
    }

    #[test]
    fn a_failure_is_excused_only_while_a_verdict_is_awaited() {
        let mut ledger = Ledger::default();
        let start = Instant::now();
        ledger.breaks();
        let broken = Instant::now();
        ledger.verdict();
        let after = Instant::now() + Duration::from_secs(1);
        let judged = ledger.judge_visits(&[
            visit(start, start, Err("too early")),
            visit(start, after, Err("over all of it")),
            visit(broken, broken, Err("within")),
            visit(after, after, Err("too late")),
        ]);
        assert_eq!(judged.tried, 4);
        assert_eq!(
            (judged.failed_before_verdict, judged.failed_after_verdict),
            (2, 2)
        );
        assert_eq!(judged.complaints, ["too early", "too late"]);
    }

    #[test]
    fn only_what_began_and_ended_in_a_drain_went_to_a_draining_backend() {
        let mut ledger = Ledger::default();
        let before = Instant::now();
        ledger.closes("b1");
        let within = Instant::now();
        ledger.opens("b1");
        let after = Instant::now() + Duration::from_secs(1);
        let judged = ledger.judge_visits(&[
            visit(before, within, Ok("b1")),
            visit(within, within, Ok("b2")),
            visit(within, within, Ok("b1")),
            visit(within, after, Ok("b1")),
        ]);
        assert_eq!((judged.tried, judged.to_draining), (4, 1));
    }

    fn life(opened: Instant, end: Option<(Instant, Break, Option<Instant>)>) -> Life {
        Life {
            backend: "b1".into(),
            local: ([10, 0, 1, 10], 4_000).into(),
            opened,
            echoes: 1,
            end: end.map(|(at, why, unanswered)| End {
                at,
                why: Some(why),
                unanswered,
            }),
        }
    }

    #[test]
    fn a_doomed_connection_is_to_be_reset_after_the_verdict_and_its_client_to_return() {
        let start = Instant::now();
        let verdict = start + Duration::from_secs(1);
        let sent = start + Duration::from_secs(2);
        let back = sent + Duration::from_millis(5);
        let history = |end: (Instant, Break, Option<Instant>), returned: bool| History {
            lives: [life(start, Some(end))]
                .into_iter()
                .chain(returned.then(|| life(back, None)))
                .collect(),
            failure: None,
        };
        let reset = (sent, Break::Reset, Some(sent));
        let mut ledger = Ledger::default();
        for client in 0..4 {
            ledger.dooms(client, 0, verdict);
        }
        let fates = ledger.judge_fates(&[
            history(reset.clone(), true),
            history((start, Break::Reset, Some(start)), true),
            history((sent, Break::NoEcho, Some(sent)), true),
            history(reset.clone(), false),
            // This one's host was never killed.
            history(reset, true),
        ]);
        assert_eq!((fates.held, fates.reconnected), (4, 1));
        assert_eq!(fates.reconnect_ms, [5.0]);
        assert_eq!(fates.complaints.len(), 4, "{:?}", fates.complaints);
    }
}
