//! `tether events`.

use std::io::Write as _;

use clap::{Args, ValueEnum};

use super::{
    Daemon, Failure,
    capture::{LOADS, Of, joined},
    progress::Progress,
    table::{Colours, Style},
};
use crate::{
    admin::AskedEvents,
    history::{Event, changes::Level},
    watch::{
        flow::{FlowEvent, Happened},
        wish::Wish,
    },
    words::{utc, word},
};

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Events {
    /// Go on with what comes, until interrupted.
    #[arg(long, short, conflicts_with = "flows")]
    follow: bool,
    /// Only what is at least so grave.
    #[arg(long, value_name = "LEVEL", conflicts_with = "flows")]
    level: Option<Grave>,
    /// How many of those that were, at most.
    #[arg(long, value_name = "N", conflicts_with = "flows")]
    limit: Option<usize>,
    /// Events of flows, as they come, until interrupted.
    #[arg(long)]
    flows: bool,
    #[command(flatten)]
    of: Of,
    /// With --flows: only those that come to these reasons, separated by commas, like opened,no_backend.
    #[arg(long, value_name = "REASON", value_delimiter = ',', requires = "flows")]
    reason: Vec<String>,
    /// With --flows: one of so many flows.
    #[arg(long, value_name = "N", requires = "flows")]
    sample: Option<u32>,
    #[command(flatten)]
    daemon: Daemon,
    /// For programs: one JSON object a line, for each change.
    #[arg(long)]
    json: bool,
}

/// A level, as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Grave {
    Good,
    Info,
    Warning,
    Bad,
}

impl From<Grave> for Level {
    fn from(grave: Grave) -> Self {
        match grave {
            Grave::Good => Self::Good,
            Grave::Info => Self::Info,
            Grave::Warning => Self::Warning,
            Grave::Bad => Self::Bad,
        }
    }
}

impl Events {
    pub(super) fn run(&self) -> Result<(), Failure> {
        if self.flows {
            return self.flows();
        }
        if self.of != Of::default() {
            return Err(Failure::CommandLine(
                "--service, --backend and --client choose among events of flows: add --flows",
            ));
        }
        let asked = AskedEvents {
            follow: self.follow,
            level: self.level.map(Level::from),
            limit: self.limit,
        };
        let colours = Colours::of_stdout();
        let mut failed = None;
        super::ask(&self.daemon, async |client| {
            client
                .events(asked, |event| {
                    match self.print(&event, || line(&event, colours)) {
                        Ok(()) => true,
                        Err(error) => {
                            failed = Some(error);
                            false
                        }
                    }
                })
                .await
        })?;
        failed.map_or(Ok(()), |error| Err(Failure::Other(error)))
    }

    fn flows(&self) -> Result<(), Failure> {
        let wish = Wish {
            service: self.of.service.clone(),
            backend: self.of.backend.clone(),
            client: self.of.client.clone(),
            reason: joined(&self.reason),
            sample: self.sample,
        };
        let colours = Colours::of_stdout();
        let progress = Progress::on_stderr();
        progress.say(LOADS);
        let mut failed = None;
        super::ask(&self.daemon, async |client| {
            let begun = || progress.say("watching for events of flows");
            client
                .flow_events(&wish, begun, |event| {
                    progress.clear();
                    failed = self.print(&event, || flow_line(&event, colours)).err();
                    failed.is_none()
                })
                .await
        })?;
        failed.map_or(Ok(()), |error| Err(Failure::Other(error)))
    }

    fn print<E: serde::Serialize>(
        &self,
        event: &E,
        line: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        let line = if self.json {
            serde_json::to_string(event)?
        } else {
            line()
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")?;
        // Who follows by a pipe is to see it now.
        out.flush()?;
        Ok(())
    }
}

/// For people.
fn line(event: &Event, colours: Colours) -> String {
    let style = match event.change.level {
        Level::Good => Style::Good,
        Level::Info => Style::Plain,
        Level::Warning => Style::Doubtful,
        Level::Bad => Style::Bad,
    };
    // What a backend said of itself may be among it.
    let plain = |text: &str| text.replace(char::is_control, " ");
    format!(
        "{}  {}: {}",
        utc(event.at),
        plain(&event.change.subject),
        colours.paint(style, &plain(&event.change.text))
    )
}

/// For people.
fn flow_line(event: &FlowEvent, colours: Colours) -> String {
    let style = match event.event {
        Happened::Opened | Happened::Promoted | Happened::Pinned | Happened::Revived => Style::Good,
        Happened::Closed => Style::Plain,
        Happened::Refused => Style::Bad,
    };
    let whom = match (&event.service, &event.backend) {
        (Some(service), Some(backend)) => format!("{service}/{backend}"),
        (Some(service), None) => service.clone(),
        (None, _) => "-".to_owned(),
    };
    let cause = event
        .cause
        .map_or_else(String::new, |cause| format!(" by {}", word(&cause)));
    format!(
        "{}  {}  {whom}  {}{cause} ({})",
        utc(event.at_ms / 1_000),
        event.client,
        colours.paint(style, &word(&event.event)),
        event.reason
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::changes::Change;

    #[test]
    fn an_event_of_a_flow_reads_like_this() {
        let event = FlowEvent {
            at_ms: 1_800_000_000_999,
            event: Happened::Closed,
            client: "192.0.2.7:40000".parse().unwrap(),
            service: Some("chat".into()),
            backend: Some("b1".into()),
            reason: "established".into(),
            cause: Some(crate::watch::flow::Cause::ClientFin),
        };
        assert_eq!(
            flow_line(&event, Colours(false)),
            "2027-01-15 08:00:00 UTC  192.0.2.7:40000  chat/b1  closed by client-fin (established)"
        );
    }

    #[test]
    fn a_change_reads_like_this() {
        let event = Event {
            number: 7,
            at: 1_800_000_000,
            change: Change {
                level: Level::Bad,
                subject: "chat/b1".into(),
                text: "down (no answer\u{1b}[2J), is given nothing".into(),
            },
        };
        assert_eq!(
            line(&event, Colours(false)),
            "2027-01-15 08:00:00 UTC  chat/b1: down (no answer [2J), is given nothing"
        );
        assert!(line(&event, Colours(true)).contains("\u{1b}[1;31mdown"));
    }
}
