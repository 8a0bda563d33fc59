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
