//! One client's life: connect, learn the backend's name, talk and check, notice the end, connect again if the plan says so.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as sync_mpsc};
use std::time::{Duration, Instant};

use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep_until, timeout};

use super::client::{Break, Close, End, History, Life, Plan};
use super::wire::Wire;
use crate::random::Random;

/// The longest payload in bytes: more than one segment, so that boundaries move.
const LONGEST: u64 = 4000;

/// What a client can be told. Orders are obeyed between two messages, one after the other.
pub(super) enum Order {
    Echo(oneshot::Sender<Result<Duration, Break>>),
    Pace(Option<Duration>, oneshot::Sender<()>),
    Close(Close, oneshot::Sender<()>),
}

pub(super) struct Client {
    pub(super) plan: Plan,
    pub(super) source: SocketAddr,
    pub(super) random: Random,
    pub(super) history: Arc<Mutex<History>>,
}

/// An end and, where a message was under way, when that was sent.
struct Broken(Break, Option<Instant>);

/// Has the kernel send a keepalive probe after each second of silence.
fn probe(stream: &TcpStream) -> std::io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(stream, sockopt::TcpKeepIdle, &1)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &1)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    Ok(())
}

impl Client {
    pub(super) async fn live(
        mut self,
        mut orders: mpsc::UnboundedReceiver<Order>,
        turns: Arc<Semaphore>,
        opened: sync_mpsc::Sender<Result<(), String>>,
    ) {
        let turn = turns.acquire_owned().await;
        let mut wire = match self.connect().await {
            Ok(wire) => wire,
            Err(why) => {
                self.fail(&why);
                let _ = opened.send(Err(why.to_string()));
                return;
            }
        };
        let _ = opened.send(Ok(()));
        drop((turn, opened));
        loop {
            let Some(why) = self.converse(&mut wire, &mut orders).await else {
                return;
            };
            self.end(Some(why.0), why.1);
            if !self.plan.reconnect {
                return;
            }
            wire = match self.connect().await {
                Ok(wire) => wire,
                Err(why) => return self.fail(&why),
            };
        }
    }

    fn record(&self, change: impl FnOnce(&mut History)) {
        change(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn fail(&self, why: &Break) {
        let words = format!("{} to {}: {why}", self.source, self.plan.target);
        self.record(|history| history.failure = Some(words));
    }

    fn end(&self, why: Option<Break>, unanswered: Option<Instant>) {
        let end = End {
            at: Instant::now(),
            why,
            unanswered,
        };
        self.record(|history| {
            if let Some(life) = history.lives.last_mut() {
                // The first to notice is the one who saw it.
                life.end.get_or_insert(end);
            }
        });
    }

    async fn connect(&self) -> Result<Wire, Break> {
        let connected = AtomicBool::new(false);
        let attempt = timeout(self.plan.opening, self.try_connect(&connected)).await;
        attempt.unwrap_or_else(|_| {
            let what = match connected.into_inner() {
                true => "no word after the handshake",
                false => "no handshake",
            };
            let opening = self.plan.opening;
            Err(Break::Other(format!("{what} within {opening:?}")))
        })
    }

    async fn try_connect(&self, connected: &AtomicBool) -> Result<Wire, Break> {
        let socket = match self.plan.target {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(self.plan.local_port.is_some())?;
        socket.bind(self.source)?;
        let stream = socket.connect(self.plan.target).await?;
        connected.store(true, Ordering::Relaxed);
        stream.set_nodelay(true)?;
        if self.plan.probing {
            probe(&stream)?;
        }
        let local = stream.local_addr()?;
        let (wire, backend) = Wire::open(self.plan.protocol, stream).await?;
        let life = Life {
            backend,
            local,
            opened: Instant::now(),
            echoes: 0,
            end: None,
        };
        self.record(|history| history.lives.push(life));
        Ok(wire)
    }

    /// Talks until the connection breaks (returns how) or is closed by order or by the death of who gives orders.
    async fn converse(
        &mut self,
        wire: &mut Wire,
        orders: &mut mpsc::UnboundedReceiver<Order>,
    ) -> Option<Broken> {
        let mut next = self.next_message();
        loop {
            let talk = async {
                match next {
                    Some(moment) => sleep_until(moment.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                order = orders.recv() => match order {
                    None => return None,
                    Some(Order::Echo(answer)) => {
                        let outcome = self.echo(wire).await;
                        let broken = outcome.as_ref().err().map(|b| Broken(b.0.clone(), b.1));
                        // Written down before the one who asked hears of it.
                        if let Some(Broken(why, sent)) = &broken {
                            self.end(Some(why.clone()), *sent);
                        }
                        let _ = answer.send(outcome.map_err(|broken| broken.0));
                        if broken.is_some() {
                            return broken;
                        }
                    }
                    Some(Order::Pace(pace, obeyed)) => {
                        self.plan.pace = pace;
                        next = self.next_message();
                        let _ = obeyed.send(());
                    }
                    Some(Order::Close(how, closed)) => {
                        wire.close(how, self.plan.patience).await;
                        self.end(None, None);
                        let _ = closed.send(());
                        return None;
                    }
                },
                () = talk => {
                    if let Err(broken) = self.echo(wire).await {
                        return Some(broken);
                    }
                    next = self.next_message();
                }
                // Nothing is expected between two messages: whatever comes is an end, or wrong.
                why = wire.unasked() => return Some(Broken(why, None)),
            }
        }
    }

    /// A random moment in the coming interval and a half: on average one message an interval, and no two clients in step.
    fn next_message(&mut self) -> Option<Instant> {
        let pace = self.plan.pace?;
        Some(Instant::now() + self.random.span(pace / 2, pace * 3 / 2))
    }

    async fn echo(&mut self, wire: &mut Wire) -> Result<Duration, Broken> {
        let length = usize::try_from(1 + self.random.below(LONGEST)).unwrap_or(1);
        let mut payload = vec![0; length];
        self.random.fill(&mut payload);
        let sent = Instant::now();
        match timeout(self.plan.patience, wire.exchange(&payload)).await {
            Ok(Ok(())) => {
                self.record(|history| {
                    if let Some(life) = history.lives.last_mut() {
                        life.echoes += 1;
                    }
                });
                Ok(sent.elapsed())
            }
            Ok(Err(why)) => Err(Broken(why, Some(sent))),
            Err(_) => Err(Broken(Break::NoEcho, Some(sent))),
        }
    }
}
