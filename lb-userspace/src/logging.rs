//! Logs: to stderr, for people or as JSON. Nobody who logs waits for whoever reads it.

mod queue;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    env,
    fmt::Display,
    io::{self, IsTerminal, Write as _},
    panic::{self, PanicHookInfo},
    thread,
    time::Duration,
};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use self::queue::Queue;

/// Names the variable that holds a filter, as `tracing_subscriber::EnvFilter` reads it.
const FILTER_VARIABLE: &str = "TETHER_LOG";
/// What is logged unless the variable says otherwise.
const FILTER: &str = "info";
/// Libraries that tell of every instruction they relocate and every message they decode: only on demand, each by its name.
const QUIET: &str = "aya=info,aya_obj=info,netlink_proto=info";
/// How long whoever ends waits for the last lines to be written.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is yet to be written to stderr.
static LOG: Queue = Queue::new();

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
///
/// # Errors
/// When no thread can be started to write the log.
pub fn start(format: Format) -> io::Result<()> {
    if !LOG.claim() {
        return Ok(());
    }
    thread::Builder::new()
        .name("log".to_owned())
        .spawn(|| LOG.write_to(io::stderr()))
        .inspect_err(|_| LOG.disclaim())?;
    let wanted = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| FILTER.to_owned());
    // Of two directives for the same target the later one holds.
    let filter = EnvFilter::builder().parse_lossy(format!("{QUIET},{wanted}"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| &LOG)
        // It would tell of a line that could not be formatted by `eprintln!`, which waits for the reader, and panics where nothing can be written.
        .log_internal_errors(false)
        .with_target(false);
    let started = match format {
        Format::Text => builder.with_ansi(shows_colours(&io::stderr())).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    // The only error is that somebody else logs already.
    drop(started);
    // What is said of a panic is not to wait for the reader either: the part of the daemon that it ends would not be found to have ended.
    panic::set_hook(Box::new(|panic| last_words(&words_of(panic))));
    Ok(())
}

/// What is said of a panic.
fn words_of(panic: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        format!("thread '{name}' {panic}\n{backtrace}")
    } else {
        format!("thread '{name}' {panic}")
    }
}

/// Says something after which there may be nothing more, behind all that was logged, and waits until it is written, but not for ever.
pub(crate) fn last_words(words: &impl Display) {
    if LOG.put_last(&format!("{words}\n")) {
        settle();
    } else {
        // The exit status says it, too, where nobody reads this.
        let _ = writeln!(io::stderr(), "{words}");
    }
}

/// Waits until all that was logged is written, but not for ever.
pub(crate) fn settle() {
    LOG.settle(PATIENCE);
}

/// How many lines were lost since nobody read them, or they could not be written.
pub(crate) fn lines_lost() -> u64 {
    LOG.lost_ever()
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
    use std::{
        fs::File,
        io::{BufRead as _, BufReader, Read as _},
        process::{Child, Command, Stdio},
        sync::mpsc,
    };

    use super::*;

    /// Set for the process that a test below starts.
    const IS_CHILD: &str = "TETHER_TEST_LOGS_TO_NOBODY";
    /// More lines, each of a thousand bytes, than the queue and a pipe have room for.
    const LINES: usize = 4 * queue::ROOM / 1_000;
    /// How long anything may take: only a test that fails waits so long.
    const LONG: Duration = Duration::from_secs(60);

    /// A test of this module again, in a process of its own.
    fn again(test: &str) -> Command {
        let name = format!("logging::tests::{test}");
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args([name.as_str(), "--exact", "--nocapture"])
            .env(IS_CHILD, "1")
            .env(FILTER_VARIABLE, FILTER);
        command
    }

    fn is_child() -> bool {
        env::var_os(IS_CHILD).is_some()
    }

    #[test]
    fn a_log_that_cannot_be_written_ends_nothing() {
        if is_child() {
            start(Format::Text).unwrap();
            tracing::error!("nobody reads this");
            LOG.settle(LONG);
            assert_eq!(lines_lost(), 1);
            return;
        }
        let full = File::options().write(true).open("/dev/full").unwrap();
        let ran = again("a_log_that_cannot_be_written_ends_nothing")
            .stderr(full)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{said}");
        assert!(said.contains("1 passed"), "{said}");
    }

    /// Logs more than there is room for, and says so on standard output.
    fn log_much() {
        start(Format::Json).unwrap();
        let text = "x".repeat(1_000);
        for number in 0..LINES {
            tracing::info!(number, "{text}");
        }
        println!("all is logged");
    }

    /// Ends with its owner.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    /// Starts a process that logs to a pipe which nobody reads, and waits until it says that all is logged. Gives that pipe, and what comes once it has
    /// said all.
    fn unread(test: &str) -> (Running, io::PipeReader, mpsc::Receiver<()>) {
        let (log, end) = io::pipe().unwrap();
        // Its other end goes with the command, so that only the process holds it.
        let mut child = again(test)
            .stdout(Stdio::piped())
            .stderr(end)
            .spawn()
            .unwrap();
        let mut words = BufReader::new(child.stdout.take().unwrap()).lines();
        let running = Running(child);
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            if words.any(|line| line.unwrap().contains("all is logged")) {
                let _sent = tell.send(());
            }
            if words.any(|line| line.unwrap().contains("1 passed")) {
                let _sent = tell.send(());
            }
        });
        told.recv_timeout(LONG).expect("it waits for the reader");
        (running, log, told)
    }

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up_and_tells_what_is_lost_once_somebody_does() {
        if is_child() {
            log_much();
            // The reader begins now.
            LOG.settle(LONG);
            return;
        }
        let (_running, mut log, told) = unread(
            "a_log_that_nobody_reads_holds_nobody_up_and_tells_what_is_lost_once_somebody_does",
        );
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        told.recv_timeout(LONG).expect("it passes");
        let events: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let gaps = || events.iter().filter_map(|event| event["lines"].as_u64());
        assert!(gaps().sum::<u64>() > 0, "all found room");
        // What is there is in order, and what is missing is where it is said to be.
        let mut next = 0;
        for event in &events {
            if let Some(lines) = event["lines"].as_u64() {
                next += lines;
            } else {
                assert_eq!(event["number"].as_u64(), Some(next));
                next += 1;
            }
        }
        assert_eq!(next, LINES as u64);
    }

    #[test]
    fn a_log_that_nobody_ever_reads_keeps_nobody_from_ending() {
        if is_child() {
            log_much();
            last_words(&"the end");
            return;
        }
        let (_running, _log, told) =
            unread("a_log_that_nobody_ever_reads_keeps_nobody_from_ending");
        told.recv_timeout(LONG).expect("it ends");
    }

    #[test]
    fn a_line_of_json_is_an_object_whatever_it_tells() {
        const TOLD: &str = "it's \"so\",\nor {\\so}: \u{fc}";
        if is_child() {
            start(Format::Json).unwrap();
            tracing::warn!(object = TOLD, count = 7, "{TOLD}");
            tracing::info!("and on");
            LOG.settle(LONG);
            return;
        }
        let ran = again("a_line_of_json_is_an_object_whatever_it_tells")
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
