//! `tether doctor`.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use super::{
    BPFFS, Daemon, Failure, ask, load, print_json,
    progress::Progress,
    table::{Cell, Colours, Columns, Style},
    upgrade::check_start,
};
use crate::{
    chain::chain,
    config::Config,
    dataplane::kernel::Verdict,
    doctor::{
        Finding, Report, State,
        facts::Start,
        gather::{Asked, gather},
        judge::examine,
    },
    status::Status,
    words::counted,
};

/// Where a configuration is looked for if nobody says.
const USUAL: &str = "/etc/tether/tether.toml";

pub(super) const EXIT_STATUS: &str = "Exit status: 0 nothing fails (warnings, and what could not be found out, are shown); 1 something fails; 2 the command line or the configuration is wrong.";

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Doctor {
    /// The configuration file. Without it, the running daemon's, else /etc/tether/tether.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    daemon: Daemon,
    /// As one line of JSON.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) fn run(&self) -> Result<ExitCode, Failure> {
        // Without a daemon the host and the file are looked at all the same.
        let status = ask(&self.daemon, async |client| client.status().await).ok();
        let config = self.configuration(status.as_ref())?;
        let bpffs = config
            .as_ref()
            .map_or(Path::new(BPFFS), |config| &config.bpffs);
        let asked = Asked {
            config: config.as_ref(),
            status: status.as_ref(),
            bpffs,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(anyhow::Error::from)?;
        let progress = Progress::on_stderr();
        progress.say("looking at this host, and asking backends");
        let mut facts = runtime
            .block_on(gather(&asked))
            .map_err(anyhow::Error::from)?;
        if let (Some(config), None) = (&config, &status) {
            facts.start = Some(start(config, &progress));
        }
        progress.clear();
        let report = examine(&facts);
        if self.json {
            print_json(&report)?;
        } else {
            put!("{}", shown(&report, Colours::of_stdout()));
            if config.is_none() && status.is_none() {
                eprintln!("no configuration was looked at: name one with --config");
            }
        }
        Ok(match report.worst() {
            State::Failure => ExitCode::FAILURE,
            State::Ok | State::Unknown | State::Warning => ExitCode::SUCCESS,
        })
    }

    fn configuration(&self, status: Option<&Status>) -> Result<Option<Config>, Failure> {
        let usual = Path::new(USUAL);
        let path = match (&self.config, status) {
            (Some(path), _) => path,
            (None, Some(status)) => &status.config.path,
            (None, None) if usual.exists() => usual,
            (None, None) => return Ok(None),
        };
        match load(path, |warning| eprintln!("warning: {warning}")) {
            // The daemon goes on by the one before: what that has is there to be looked at, and that it refused this one is a finding.
            Err(Failure::Config(problems)) if self.config.is_none() && status.is_some() => {
                eprintln!("{problems}");
                Ok(None)
            }
            loaded => loaded.map(Some),
        }
    }
}

/// What a start with a configuration would come to.
fn start(config: &Config, progress: &Progress) -> Start {
    match check_start(config, progress) {
        Ok(check) if check.verdict == Verdict::Refused => {
            Start::Refused(check.why.unwrap_or_default())
        }
        Ok(_) => Start::Begins,
        Err(error) => Start::Unseen(chain(error.as_ref())),
    }
}

/// A report, for a terminal.
fn shown(report: &Report, colours: Colours) -> String {
    let row = |finding: &Finding| {
        let (word, style) = match finding.state {
            State::Ok => ("ok", Style::Good),
            State::Unknown => ("unknown", Style::Faint),
            State::Warning => ("warning", Style::Doubtful),
            State::Failure => ("FAILURE", Style::Bad),
        };
        [
            Cell::styled(word, style),
            Cell::new(finding.check),
            Cell::new(&finding.subject),
            Cell::new(&finding.found),
        ]
    };
    let mut rows = vec![["STATE", "CHECK", "ON", "FOUND"].map(Cell::heading)];
    rows.extend(report.findings.iter().map(row));
    let columns = Columns::of(&rows, colours);
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", columns.line(row));
        let finding = at.checked_sub(1).map(|at| &report.findings[at]);
        if let Some(remedy) = finding.and_then(|finding| finding.remedy.as_ref()) {
            let remedy = Cell::new(format!("         -> {remedy}"));
            let _ = writeln!(
                text,
                "{}",
                Columns::of(&[[remedy.clone()]], colours).line(&[remedy])
            );
        }
    }
    let count = |state| {
        report
            .findings
            .iter()
            .filter(|finding| finding.state == state)
            .count()
    };
    let _ = writeln!(
        text,
        "{}, {}, {} could not be found out",
        counted(count(State::Failure), "failure"),
        counted(count(State::Warning), "warning"),
        count(State::Unknown),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_shows_each_remedy_below_its_finding() {
        let finding = |state, remedy: Option<&str>| Finding {
            check: "jit",
            subject: "eth0".into(),
            state,
            found: "something".into(),
            remedy: remedy.map(str::to_owned),
        };
        let report = Report {
            findings: vec![
                finding(State::Ok, None),
                finding(State::Failure, Some("mend\u{1b}it")),
            ],
        };
        let expected = "STATE    CHECK  ON    FOUND\n\
                        ok       jit    eth0  something\n\
                        FAILURE  jit    eth0  something\n         -> mend it\n\
                        1 failure, 0 warnings, 0 could not be found out\n";
        assert_eq!(shown(&report, Colours(false)), expected);
        assert_eq!(report.worst(), State::Failure);
    }
}
