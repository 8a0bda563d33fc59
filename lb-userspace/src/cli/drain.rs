//! `tether drain` and `tether undrain`, and the wait until nothing is left.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use clap::Args;

use super::{Daemon, Failure, Named, ask, progress};
use crate::{
    admin::{
        BackendLeft,
        client::{Client, Error},
    },
    config,
    flows::left::Left,
    logging,
    model::{Asked, BackendName},
    words,
};

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Drain {
    #[command(flatten)]
    whom: Whom,
    /// How long flows may stay, from now on, for example `30m`.
    #[arg(long, value_name = "DURATION", value_parser = deadline)]
    deadline: Option<Duration>,
    /// Over which time they are closed then; as the service says if this is not given.
    #[arg(long, value_name = "DURATION", value_parser = close_over, requires = "deadline")]
    close_over: Option<Duration>,
    /// Wait until no flow is left, and show how many are; the drain goes on if this is interrupted.
    #[arg(long)]
    wait: bool,
    /// Do not wait for flows that have been silent for so long.
    #[arg(long, value_name = "DURATION", value_parser = idle_after, requires = "wait")]
    idle_after: Option<Duration>,
    #[command(flatten)]
    daemon: Daemon,
}

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Undrain {
    #[command(flatten)]
    whom: Whom,
    #[command(flatten)]
    daemon: Daemon,
}

#[derive(Args, Debug, PartialEq, Eq)]
#[group(required = true, multiple = false)]
struct Whom {
    /// The backend, as SERVICE/BACKEND.
    backend: Option<Named>,
    /// All backends, also those that are yet to be configured: to take this host out of service.
    #[arg(long)]
    all: bool,
}

fn deadline(text: &str) -> Result<Duration, String> {
    config::duration_within(text, config::DRAIN_DEADLINES)
}

fn close_over(text: &str) -> Result<Duration, String> {
    config::duration_within(text, config::CLOSE_OVERS)
}

fn idle_after(text: &str) -> Result<Duration, String> {
    config::duration_within(text, config::IDLE_AFTERS)
}

impl Whom {
    /// The one backend; none is all.
    fn name(&self) -> Option<&BackendName> {
        self.backend.as_ref().map(|backend| &backend.0)
    }
}

impl Drain {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let asked = self.deadline.map(|deadline| Asked {
            deadline,
            close_over: self.close_over,
            since: None,
        });
        match self.whom.name() {
            Some(name) => {
                ask(&self.daemon, async |client| client.drain(name, asked).await)?;
                put_line!("{name} takes no new flows; `tether status` shows those it has");
            }
            None => {
                ask(&self.daemon, async |client| client.drain_all(asked).await)?;
                put_line!(
                    "no backend takes new flows; `tether status` shows those they have, and `tether undrain --all` ends this"
                );
            }
        }
        if self.wait {
            ask(&self.daemon, async |client| self.wait(&client).await)?;
        }
        Ok(())
    }

    async fn wait(&self, client: &Client) -> Result<(), Error> {
        let name = self.whom.name();
        let mut watch = Watch::new(self.idle_after.is_some(), Instant::now());
        let mut screen = Screen::new();
        loop {
            let looked = client.left(name, self.idle_after).await;
            match watch.look(looked, Instant::now())? {
                Seen::Nothing => {}
                Seen::Left(left) => screen.show(&line(name, &left), (left.active, left.idle)),
                Seen::Done(left) => {
                    screen.show(&line(name, &left), (left.active, left.idle));
                    screen.end();
                    return Ok(());
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Undrain {
    pub(super) fn run(&self) -> Result<(), Failure> {
        match self.whom.name() {
            Some(name) => {
                let stays = ask(&self.daemon, async |client| client.undrain(name).await)?;
                match stays {
                    None => put_line!("{name} takes new flows again, as its health allows"),
                    Some(stays) => put_line!(
                        "what was ordered is taken back, and it takes no new flows all the same: {stays}"
                    ),
                }
            }
            None => {
                ask(&self.daemon, async |client| client.undrain_all().await)?;
                put_line!(
                    "backends take new flows again, as their health allows, but for those that are drained by their own names"
                );
            }
        }
        Ok(())
    }
}

/// Time between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Time in which a drain that was accepted begins.
const BEGINS_WITHIN: Duration = Duration::from_secs(10);
/// Time for which a daemon may be gone: it is restarted, perhaps.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// So many looks in a row must find nothing: one may miss an entry that is moved at that moment.
const LOOKS: u32 = 2;

/// What a look has shown.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// Nothing yet.
    Nothing,
    /// This is left.
    Left(Left),
    /// This is left, and none of it is waited for.
    Done(Left),
}

/// Waits for the end of a drain: decides, and does nothing.
struct Watch {
    /// Only for active flows.
    only_active: bool,
    begun: bool,
    /// Since when what comes is of no use.
    useless_since: Option<Instant>,
    asked: Instant,
    clear: u32,
}

impl Watch {
    fn new(only_active: bool, now: Instant) -> Self {
        Self {
            only_active,
            begun: false,
            useless_since: None,
            asked: now,
            clear: 0,
        }
    }

    /// Takes in an answer.
    fn look(
        &mut self,
        looked: Result<Vec<BackendLeft>, Error>,
        now: Instant,
    ) -> Result<Seen, Error> {
        let backends = match looked {
            Ok(backends) => backends,
            Err(error @ (Error::Absent { .. } | Error::Unusable { .. } | Error::Later(_))) => {
                self.clear = 0;
                let since = *self.useless_since.get_or_insert(now);
                return if now - since < BACK_WITHIN {
                    Ok(Seen::Nothing)
                } else {
                    Err(error)
                };
            }
            Err(error) => return Err(error),
        };
        self.useless_since = None;
        // A backend that is gone from the list was removed, and its last flow has ended.
        if let Some(back) = backends.iter().find(|backend| !backend.leaving) {
            let BackendLeft {
                service, backend, ..
            } = back;
            return if self.begun {
                Err(Error::Refused(format!(
                    "the drain of {service}/{backend} was ended meanwhile"
                )))
            } else if now - self.asked < BEGINS_WITHIN {
                Ok(Seen::Nothing)
            } else {
                Err(Error::Refused(format!(
                    "{service}/{backend} still takes new flows; see the daemon's log"
                )))
            };
        }
        self.begun = true;
        let left = backends
            .iter()
            .fold(Left::default(), |sum, backend| sum.and(backend.left));
        let waited_for = if self.only_active {
            left.active
        } else {
            left.flows()
        };
        self.clear = if waited_for == 0 { self.clear + 1 } else { 0 };
        Ok(if self.clear >= LOOKS {
            Seen::Done(left)
        } else {
            Seen::Left(left)
        })
    }
}

/// What is left, in a line.
fn line(name: Option<&BackendName>, left: &Left) -> String {
    let name = name.map_or_else(|| "all backends".to_owned(), ToString::to_string);
    if left.flows() == 0 {
        return format!("{name}: no flow left");
    }
    format!(
        "{name}: {} active and {} idle flows left; the oldest is {} old, the most silent says nothing since {}",
        left.active,
        left.idle,
        words::duration(left.oldest_s),
        words::duration(left.silent_s)
    )
}

/// Where lines are shown: one that changes in its place on a terminal, else one for each change of what is counted.
struct Screen {
    is_terminal: bool,
    last: Option<(u64, u64)>,
}

impl Screen {
    fn new() -> Self {
        Self {
            is_terminal: io::stdout().is_terminal() && !logging::is_dumb(),
            last: None,
        }
    }

    fn show(&mut self, line: &str, counted: (u64, u64)) {
        let is_news = self.last.replace(counted) != Some(counted);
        if self.is_terminal {
            progress::show_in_place(&mut io::stdout(), line);
        } else if is_news {
            // What is lost is a step of the wait, whose end the exit status tells.
            let _ = writeln!(io::stdout(), "{line}");
        }
    }

    fn end(&self) {
        if self.is_terminal {
            let _ = writeln!(io::stdout());
        }
    }
}

#[cfg(test)]
mod tests;
