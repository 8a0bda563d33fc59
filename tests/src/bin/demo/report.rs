//! What happened to the connections, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

/// The demo's result. The field names are its JSON's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Report {
    /// Connections opened at the start.
    pub(crate) connections: usize,
    /// Connections that ended or failed without being meant to.
    pub(crate) unexpected_breaks: usize,
    /// Where the table put them at the start.
    pub(crate) per_backend: BTreeMap<String, usize>,
    /// The backend that drained.
    pub(crate) drained: Drained,
    /// The backend whose host went dark.
    pub(crate) killed: Killed,
    /// The daemon's death and return.
    pub(crate) daemon_restart: DaemonRestart,
    /// Sentences about breaks that were not meant; for people only.
    #[serde(skip)]
    pub(crate) complaints: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Drained {
    /// Connections on it when it was drained.
    pub(crate) held: usize,
    /// Those of them that were alive and echoed at the end.
    pub(crate) kept: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Killed {
    /// Connections on it when its link died.
    pub(crate) held: usize,
    /// Those of them whose clients were connected elsewhere afterwards.
    pub(crate) reconnected: usize,
    /// From a client's first message after the verdict `down` to its new connection's being open; absent if none reconnected.
    pub(crate) median_ms: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct DaemonRestart {
    /// Connections that broke from the SIGKILL on.
    pub(crate) broken: usize,
}

impl Report {
    /// The table for a terminal, with the verdict below it.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let spread: Vec<_> = self
            .per_backend
            .iter()
            .map(|(b, n)| format!("{b} {n}"))
            .collect();
        let median = self
            .killed
            .median_ms
            .map_or("-".into(), |ms| format!("{ms:.1} ms"));
        let rows = [
            ("opened", self.connections.to_string(), spread.join(", ")),
            (
                "on the drained backend",
                self.drained.held.to_string(),
                format!("{} kept, echoing at the end", self.drained.kept),
            ),
            (
                "on the dark backend",
                self.killed.held.to_string(),
                format!(
                    "{} reconnected elsewhere, median {median}",
                    self.killed.reconnected
                ),
            ),
            (
                "while the daemon was dead",
                (self.connections).to_string(),
                format!("{} broken", self.daemon_restart.broken),
            ),
        ];
        let line = format!("+{:-<27}+{:->13}+{:-<52}+\n", "", "", "");
        let _ = write!(text, "\n{line}");
        let _ = writeln!(
            text,
            "| {:<25} | {:>11} | {:<50} |",
            "", "connections", "what happened"
        );
        text += &line;
        for (what, count, fate) in rows {
            let _ = writeln!(text, "| {what:<25} | {count:>11} | {fate:<50} |");
        }
        text += &line;
        for complaint in &self.complaints {
            let _ = writeln!(text, "  {complaint}");
        }
        let _ = writeln!(
            text,
            "Connections that broke and were not meant to: {}",
            self.unexpected_breaks
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_agreed_names() {
        let report = Report {
            connections: 3,
            unexpected_breaks: 0,
            per_backend: BTreeMap::from([("b1".into(), 2), ("b2".into(), 1)]),
            drained: Drained { held: 2, kept: 2 },
            killed: Killed {
                held: 1,
                reconnected: 1,
                median_ms: Some(1.5),
            },
            daemon_restart: DaemonRestart { broken: 0 },
            complaints: vec!["not in the JSON".into()],
        };
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"connections":3,"unexpected_breaks":0,"per_backend":{"b1":2,"b2":1},"drained":{"held":2,"kept":2},"killed":{"held":1,"reconnected":1,"median_ms":1.5},"daemon_restart":{"broken":0}}"#
        );
    }

    #[test]
    fn every_row_of_the_table_is_as_wide_as_its_frame() {
        let report = Report {
            connections: 1000,
            unexpected_breaks: 1,
            per_backend: (1..=3).map(|i| (format!("b{i}"), 333)).collect(),
            drained: Drained {
                held: 333,
                kept: 333,
            },
            killed: Killed {
                held: 333,
                reconnected: 333,
                median_ms: Some(99.94),
            },
            daemon_restart: DaemonRestart { broken: 0 },
            complaints: vec![],
        };
        let table = report.table();
        let framed: Vec<_> = table
            .lines()
            .filter(|l| l.starts_with(['+', '|']))
            .collect();
        assert_eq!(framed.len(), 8);
        assert!(
            framed.iter().all(|line| line.len() == framed[0].len()),
            "{table}"
        );
        assert!(table.ends_with("not meant to: 1\n"));
    }
}
