//! `tether top`: services and backends, live in the terminal. It asks the admin API, once a second, and nothing else.
//!
//! * [`board`][]: what is on the screen; pure
//! * [`draw`][]: the screen

mod board;
mod draw;

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use self::{
    board::{Board, Sample, Wish},
    draw::{Ink, draw},
};
use super::{Daemon, Failure, table::Colours};
use crate::admin::client::{self, Client};

/// Rows that a page key scrolls.
const PAGE: usize = 10;

#[derive(Args, Debug, PartialEq, Eq)]
pub(super) struct Top {
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    every: u64,
    #[command(flatten)]
    daemon: Daemon,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Quit,
    Wish(Wish),
}

/// What came from the terminal.
enum Input {
    Event(Event),
    /// There is nothing more to come.
    Ended,
}

impl Top {
    pub(super) fn run(&self) -> Result<(), Failure> {
        if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            return Err(Failure::Other(anyhow::anyhow!(
                "top needs a terminal for its screen and its keys; `tether services` and `tether backends` print tables anywhere, and with --json for programs"
            )));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(anyhow::Error::from)?;
        let client = Client::new(&self.daemon.socket);
        // One that is not there is told of on the terminal as it was, and not on a screen.
        let first = runtime.block_on(sample(&client, Instant::now()))?;
        // Also puts the terminal back should this panic.
        let terminal = ratatui::try_init().context("the terminal cannot be used as a screen")?;
        let ended = runtime.block_on(self.live(terminal, &client, first));
        ratatui::restore();
        // A thread waits for keys.
        runtime.shutdown_background();
        Ok(ended?)
    }

    async fn live(
        &self,
        mut terminal: DefaultTerminal,
        client: &Client,
        first: Sample,
    ) -> anyhow::Result<()> {
        let ink = Ink(Colours::of_stdout().0);
        let began = Instant::now();
        let mut board = Board::default();
        board.take(first);
        let mut keys = keys();
        let (mut terminate, mut hangup) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        );
        let (answers, mut answered) = mpsc::channel(1);
        let asker = tokio::spawn(ask(
            client.clone(),
            Duration::from_secs(self.every),
            began,
            answers,
        ));
        loop {
            terminal.draw(|frame| draw(frame, &board, ink))?;
            tokio::select! {
                _ = terminate.recv() => break,
                _ = hangup.recv() => break,
                Some(answer) = answered.recv() => match answer {
                    Ok(sample) => board.take(sample),
                    Err(error) => board.trouble = Some(error.to_string()),
                },
                input = keys.recv() => match input {
                    None | Some(Input::Ended) => break,
                    // Others are no business of this screen, but one of another size is drawn again.
                    Some(Input::Event(event)) => match meaning(&event) {
                        Some(Key::Quit) => break,
                        Some(Key::Wish(wish)) => board.wish(wish),
                        None => {}
                    },
                },
            }
        }
        asker.abort();
        Ok(())
    }
}

/// Asks the daemon again and again.
async fn ask(
    client: Client,
    every: Duration,
    began: Instant,
    answers: mpsc::Sender<Result<Sample, client::Error>>,
) {
    let mut looks = tokio::time::interval(every);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    looks.tick().await;
    loop {
        looks.tick().await;
        if answers.send(sample(&client, began).await).await.is_err() {
            return;
        }
    }
}

async fn sample(client: &Client, began: Instant) -> Result<Sample, client::Error> {
    let status = client.status().await?;
    let services = client.services().await?;
    let backends = client.backends(None).await?;
    Ok(Sample {
        at_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        status,
        services,
        backends,
    })
}

/// What comes from the terminal. Waiting for that takes a thread.
fn keys() -> mpsc::Receiver<Input> {
    let (sender, keys) = mpsc::channel(16);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(Input::Event(event)).is_err() {
                return;
            }
        }
        drop(sender.blocking_send(Input::Ended));
    });
    keys
}

fn meaning(event: &Event) -> Option<Key> {
    let Event::Key(KeyEvent {
        code,
        modifiers,
        kind: KeyEventKind::Press | KeyEventKind::Repeat,
        ..
    }) = event
    else {
        return None;
    };
    let wish = match code {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return Some(Key::Quit),
        KeyCode::Char('q') | KeyCode::Esc => return Some(Key::Quit),
        KeyCode::Char('s') => Wish::Sort,
        KeyCode::Char('r') => Wish::Reverse,
        KeyCode::Char('v') => Wish::View,
        KeyCode::Char(' ') => Wish::Pause,
        KeyCode::Up | KeyCode::Char('k') => Wish::Up(1),
        KeyCode::Down | KeyCode::Char('j') => Wish::Down(1),
        KeyCode::PageUp => Wish::Up(PAGE),
        KeyCode::PageDown => Wish::Down(PAGE),
        KeyCode::Home => Wish::First,
        _ => return None,
    };
    Some(Key::Wish(wish))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_the_last_line_says() {
        let press = |code, modifiers| meaning(&Event::Key(KeyEvent::new(code, modifiers)));
        let plain = |code| press(code, KeyModifiers::NONE);
        assert_eq!(plain(KeyCode::Char('q')), Some(Key::Quit));
        assert_eq!(
            press(KeyCode::Char('c'), KeyModifiers::CONTROL),
            Some(Key::Quit)
        );
        assert_eq!(plain(KeyCode::Char('c')), None);
        assert_eq!(plain(KeyCode::Char('s')), Some(Key::Wish(Wish::Sort)));
        assert_eq!(plain(KeyCode::Char('v')), Some(Key::Wish(Wish::View)));
        assert_eq!(plain(KeyCode::Char(' ')), Some(Key::Wish(Wish::Pause)));
        assert_eq!(plain(KeyCode::PageDown), Some(Key::Wish(Wish::Down(PAGE))));
        assert_eq!(meaning(&Event::Resize(80, 24)), None);
    }
}
