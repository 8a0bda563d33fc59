//! Logs: to stderr, for people or as JSON.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// Names the variable that holds a filter, as `tracing_subscriber::EnvFilter` reads it.
pub const FILTER_VARIABLE: &str = "TETHER_LOG";
/// What is logged unless the variable says otherwise.
const FILTER: &str = "info";

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
    let filter =
        EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(FILTER));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    let started = match format {
        Format::Text => {
            use std::io::IsTerminal as _;
            builder
                .with_ansi(std::io::stderr().is_terminal())
                .try_init()
        }
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    // The only error is that logging has started.
    drop(started);
}
