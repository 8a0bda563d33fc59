//! Logs: to stderr, for people or as JSON.

use std::{
    env,
    io::{self, IsTerminal},
};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// Names the variable that holds a filter, as `tracing_subscriber::EnvFilter` reads it.
const FILTER_VARIABLE: &str = "TETHER_LOG";
/// What is logged unless the variable says otherwise.
const FILTER: &str = "info";
/// Libraries that tell of every instruction they relocate and every message they decode: only on demand, each by its name.
const QUIET: &str = "aya=info,aya_obj=info,netlink_proto=info";

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// Starts logging. A second call changes nothing.
pub fn start(format: Format) {
    let wanted = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| FILTER.to_owned());
    // Of two directives for the same target the later one holds.
    let filter = EnvFilter::builder().parse_lossy(format!("{QUIET},{wanted}"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // It would tell of a line that could not be written by `eprintln!`, which panics where that cannot be written either: a full disk, or the end of who
        // reads the log, would take the daemon along.
        .log_internal_errors(false)
        .with_target(false);
    let started = match format {
        Format::Text => builder.with_ansi(shows_colours(&io::stderr())).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    // The only error is that logging has started.
    drop(started);
}

/// Whether a stream is a terminal that shows colours, and nobody asked for none (<https://no-color.org>).
pub(crate) fn shows_colours(stream: &impl IsTerminal) -> bool {
    let is_set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !is_set("NO_COLOR") && !is_dumb()
}

/// Whether the terminal can only write, and take nothing away.
pub(crate) fn is_dumb() -> bool {
    env::var_os("TERM").is_some_and(|term| term == "dumb")
}

#[cfg(test)]
mod tests {
    use std::{fs::File, process::Command};

    use super::*;

    /// Set for the processes that the tests below start.
    const IS_CHILD: &str = "TETHER_TEST_LOGS_ALONE";

    fn is_child() -> bool {
        env::var_os(IS_CHILD).is_some()
    }

    /// One of these tests, in a process of its own, whose log is its own.
    fn alone(test: &str) -> Command {
        let name = format!("logging::tests::{test}");
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args([name.as_str(), "--exact", "--nocapture"])
            .env(IS_CHILD, "1")
            .env(FILTER_VARIABLE, FILTER);
        command
    }

    #[test]
    fn a_log_that_cannot_be_written_ends_nothing() {
        if is_child() {
            start(Format::Text);
            tracing::error!("nobody reads this");
            return;
        }
        let full = File::options().write(true).open("/dev/full").unwrap();
        let ran = alone("a_log_that_cannot_be_written_ends_nothing")
            .stderr(full)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{said}");
        assert!(said.contains("1 passed"), "{said}");
    }

    #[test]
    fn a_line_of_json_is_an_object_whatever_it_tells() {
        const TOLD: &str = "it's \"so\",\nor {\\so}: \u{fc}";
        if is_child() {
            start(Format::Json);
            tracing::warn!(object = TOLD, count = 7, "{TOLD}");
            tracing::info!("and on");
            return;
        }
        let ran = alone("a_line_of_json_is_an_object_whatever_it_tells")
            .output()
            .unwrap();
        let said = String::from_utf8(ran.stderr).unwrap();
        let lines: Vec<serde_json::Value> = said
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let [warning, more] = &lines[..] else {
            panic!("{said}");
        };
        assert!(warning["timestamp"].is_string(), "{said}");
        assert_eq!(warning["level"], "WARN");
        assert_eq!(warning["message"], TOLD);
        assert_eq!(warning["object"], TOLD);
        assert_eq!(warning["count"], 7);
        assert_eq!(more["message"], "and on");
    }
}
