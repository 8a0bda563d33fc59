//! What came of a run: one outcome for each lab, and the report that they add up to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::kind::Kind;

/// How often each kind of event must have happened.
pub const LEAST: u64 = 3;
/// The longest time in milliseconds that 99 of 100 clients of a killed backend may take.
const LONGEST_P99_MS: f64 = 1_000.0;

/// What came of the storm in one lab.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The service's mode.
    pub mode: String,
    /// Long-lived connections.
    pub connections: u64,
    /// Events, by their kinds' names.
    pub events: BTreeMap<String, u64>,
    /// Clients that lost what they should have kept.
    pub unexpected_breaks: u64,
    /// Connections that were on a backend when its host was killed.
    pub held: u64,
    /// Those of them whose clients were connected again at the end.
    pub reconnected: u64,
    /// How long each of these took, in milliseconds.
    pub reconnect_ms: Vec<f64>,
    /// Attempts to open a connection, and what became of them.
    pub new: New,
    /// Sentences about all that should not have been.
    pub complaints: Vec<String>,
}

/// See [`Report::new`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct New {
    /// Attempts.
    pub tried: u64,
    /// Failures while a backend was broken and the verdict on it not yet in force.
    pub failed_before_verdict: u64,
    /// All other failures.
    pub failed_after_verdict: u64,
    /// Connections to a backend that was known to take no new ones.
    pub to_draining: u64,
}

/// See [`Report::killed`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Killed {
    /// Connections that were on a backend when its host was killed.
    pub held: u64,
    /// Those of them whose clients were connected again at the end.
    pub reconnected: u64,
    /// The time that 99 of 100 of these took at most, in milliseconds, from the first message after the verdict; absent if none.
    pub p99_ms: Option<f64>,
}

/// The result of a run. The field names are its JSON's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Long-lived connections.
    pub connections: u64,
    /// The same by mode.
    pub modes: BTreeMap<String, u64>,
    /// How often each kind of event happened.
    pub events: BTreeMap<String, u64>,
    /// Clients that lost what they should have kept.
    pub unexpected_breaks: u64,
    /// The connections of killed hosts.
    pub killed: Killed,
    /// Attempts to open a connection.
    pub new: New,
}

impl Report {
    /// Adds up outcomes.
    #[must_use]
    pub fn of(outcomes: &[Outcome]) -> Self {
        let mut modes = BTreeMap::<_, u64>::new();
        let mut events: BTreeMap<String, u64> = Kind::ALL
            .iter()
            .map(|kind| (kind.name().to_owned(), 0))
            .collect();
        let mut new = New::default();
        let mut took = vec![];
        for outcome in outcomes {
            *modes.entry(outcome.mode.clone()).or_default() += outcome.connections;
            for (kind, count) in &outcome.events {
                *events.entry(kind.clone()).or_default() += count;
            }
            new.tried += outcome.new.tried;
            new.failed_before_verdict += outcome.new.failed_before_verdict;
            new.failed_after_verdict += outcome.new.failed_after_verdict;
            new.to_draining += outcome.new.to_draining;
            took.extend(&outcome.reconnect_ms);
        }
        let sum = |part: fn(&Outcome) -> u64| outcomes.iter().map(part).sum();
        Self {
            connections: sum(|outcome| outcome.connections),
            modes,
            events,
            unexpected_breaks: sum(|outcome| outcome.unexpected_breaks),
            killed: Killed {
                held: sum(|outcome| outcome.held),
                reconnected: sum(|outcome| outcome.reconnected),
                p99_ms: percentile(took, 99),
            },
            new,
        }
    }

    /// A sentence for each promise that was not kept, with each of `kinds` having been called for `least` times.
    #[must_use]
    pub fn faults(&self, kinds: &[Kind], least: u64) -> Vec<String> {
        let mut faults = vec![];
        let Killed {
            held,
            reconnected,
            p99_ms,
        } = self.killed;
        let mut must = |kept: bool, fault: String| {
            if !kept {
                faults.push(fault);
            }
        };
        must(
            self.unexpected_breaks == 0,
            format!("{} unexpected breaks", self.unexpected_breaks),
        );
        must(
            reconnected == held,
            format!("{reconnected} of {held} clients of killed hosts are connected again"),
        );
        // A host that nobody is connected to shows nothing by its death.
        let killed = kinds.contains(&Kind::BackendKill);
        must(
            held > 0 || !killed,
            "no connection was on a killed host".into(),
        );
        must(
            p99_ms.map_or(!killed, |ms| ms < LONGEST_P99_MS),
            p99_ms.map_or_else(
                || "nobody knows how long they took".into(),
                |ms| format!("one of 100 of them took {ms} ms or more"),
            ),
        );
        must(
            self.new.failed_after_verdict == 0,
            format!("{} new connections failed", self.new.failed_after_verdict),
        );
        must(
            self.new.to_draining == 0,
            format!(
                "{} went to backends that take no new ones",
                self.new.to_draining
            ),
        );
        must(self.new.tried > 0, "nobody tried to connect".into());
        for kind in kinds {
            let count = self.events.get(kind.name()).copied().unwrap_or(0);
            must(
                count >= least,
                format!("{count} events of kind {}", kind.name()),
            );
        }
        faults
    }
}

/// The value that `percent` of 100 do not exceed, by nearest rank, to the microsecond: what is finer is noise.
fn percentile(mut values: Vec<f64>, percent: usize) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100);
    let value = values.get(rank.checked_sub(1)?)?;
    Some((value * 1e3).round() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(mode: &str) -> Outcome {
        Outcome {
            mode: mode.into(),
            connections: 10,
            events: Kind::ALL
                .iter()
                .map(|kind| (kind.name().into(), 2))
                .collect(),
            held: 2,
            reconnected: 2,
            reconnect_ms: vec![1.0, 2.5],
            new: New {
                tried: 5,
                failed_before_verdict: 1,
                ..New::default()
            },
            ..Outcome::default()
        }
    }

    #[test]
    fn the_json_has_the_agreed_names() {
        let report = Report::of(&[outcome("l2"), outcome("l2"), outcome("nat")]);
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            concat!(
                r#"{"connections":30,"modes":{"l2":20,"nat":10},"events":{"add":6,"backend_kill":6,"broken_reload":6,"#,
                r#""daemon_kill":6,"daemon_upgrade":6,"drain":6,"health_flap":6,"link_flap":6,"neighbour_flush":6,"#,
                r#""refusing":6,"reload":6,"remove":6,"reweight":6,"syn_flood":6},"unexpected_breaks":0,"#,
                r#""killed":{"held":6,"reconnected":6,"p99_ms":2.5},"#,
                r#""new":{"tried":15,"failed_before_verdict":3,"failed_after_verdict":0,"to_draining":0}}"#
            )
        );
        assert_eq!(report.faults(&Kind::ALL, 6), [""; 0]);
    }

    #[test]
    fn each_broken_promise_is_a_fault() {
        let faults = |change: fn(&mut Outcome)| {
            let mut outcome = outcome("l2");
            change(&mut outcome);
            Report::of(&[outcome]).faults(&Kind::ALL, 2).len()
        };
        assert_eq!(faults(|_| {}), 0);
        assert_eq!(faults(|o| o.unexpected_breaks = 1), 1);
        assert_eq!(faults(|o| o.reconnected = 1), 1);
        assert_eq!(faults(|o| o.reconnect_ms[0] = 1_000.0), 1);
        assert_eq!(faults(|o| o.reconnect_ms.clear()), 1);
        let nobody_held = |o: &mut Outcome| {
            (o.held, o.reconnected) = (0, 0);
            o.reconnect_ms.clear();
        };
        assert_eq!(faults(nobody_held), 2);
        assert_eq!(faults(|o| o.new.failed_after_verdict = 1), 1);
        assert_eq!(faults(|o| o.new.to_draining = 1), 1);
        assert_eq!(faults(|o| o.new.tried = 0), 1);
        assert_eq!(
            faults(|o| {
                o.events.remove("add");
            }),
            1
        );
        // Where no host was to be killed, none has to have held anybody.
        let mut calm = outcome("l2");
        nobody_held(&mut calm);
        assert_eq!(Report::of(&[calm]).faults(&[Kind::Add], 2), [""; 0]);
    }

    #[test]
    fn one_of_a_hundred_may_be_slow() {
        let values = |count: usize| (1..=count).map(|value| value as f64).collect();
        assert_eq!(percentile(values(100), 99), Some(99.0));
        assert_eq!(percentile(values(200), 99), Some(198.0));
        assert_eq!(percentile(values(3), 99), Some(3.0));
        assert_eq!(percentile(vec![], 99), None);
    }
}
