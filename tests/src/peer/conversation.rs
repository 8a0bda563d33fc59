//! One client's life: connect, learn the backend's name, talk and check, notice the end, connect again if the plan says so.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, mpsc as sync_mpsc};
use std::time::{Duration, Instant};

use futures::{SinkExt as _, StreamExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message};

use super::client::{Break, Close, End, History, Life, Plan};
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

type Socket = WebSocketStream<TcpStream>;

/// An end and, where a message was under way, when that was sent.
struct Broken(Break, Option<Instant>);

impl From<tungstenite::Error> for Break {
    fn from(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::Io(error) => error.into(),
            tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
                Self::Closed
            }
            tungstenite::Error::Protocol(
                tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            ) => Self::Closed,
            other => Self::Other(other.to_string()),
        }
    }
}

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
        let mut socket = match self.connect().await {
            Ok(socket) => socket,
            Err(why) => {
                self.fail(&why);
                let _ = opened.send(Err(why.to_string()));
                return;
            }
        };
        let _ = opened.send(Ok(()));
        drop((turn, opened));
        loop {
            let Some(why) = self.converse(&mut socket, &mut orders).await else {
                return;
            };
            self.end(Some(why.0), why.1);
            if !self.plan.reconnect {
                return;
            }
            socket = match self.connect().await {
                Ok(socket) => socket,
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

    async fn connect(&self) -> Result<Socket, Break> {
        let attempt = timeout(self.plan.patience, self.try_connect()).await;
        attempt.unwrap_or_else(|_| Err(Break::Other("opening took too long".into())))
    }

    async fn try_connect(&self) -> Result<Socket, Break> {
        let socket = match self.plan.target {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(self.plan.local_port.is_some())?;
        socket.bind(self.source)?;
        let stream = socket.connect(self.plan.target).await?;
        stream.set_nodelay(true)?;
        if self.plan.probing {
            probe(&stream)?;
        }
        let local = stream.local_addr()?;
        let url = format!("ws://{}/", self.plan.target);
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await?;
        let backend = match socket.next().await {
            Some(Ok(Message::Text(name))) => name.to_string(),
            Some(Ok(_)) => return Err(Break::WrongBytes),
            Some(Err(error)) => return Err(error.into()),
            None => return Err(Break::Closed),
        };
        let life = Life {
            backend,
            local,
            opened: Instant::now(),
            echoes: 0,
            end: None,
        };
        self.record(|history| history.lives.push(life));
        Ok(socket)
    }

    /// Talks until the connection breaks (returns how) or is closed by order or by the death of who gives orders.
    async fn converse(
        &mut self,
        socket: &mut Socket,
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
                        let outcome = self.echo(socket).await;
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
                        close(socket, how, self.plan.patience).await;
                        self.end(None, None);
                        let _ = closed.send(());
                        return None;
                    }
                },
                () = talk => {
                    if let Err(broken) = self.echo(socket).await {
                        return Some(broken);
                    }
                    next = self.next_message();
                }
                // Nothing is expected between two messages: whatever comes is an end, or wrong.
                unasked = socket.next() => return Some(Broken(read(unasked).err().unwrap_or(Break::WrongBytes), None)),
            }
        }
    }

    /// A random moment in the coming interval and a half: on average one message an interval, and no two clients in step.
    fn next_message(&mut self) -> Option<Instant> {
        let pace = self.plan.pace?;
        Some(Instant::now() + self.random.span(pace / 2, pace * 3 / 2))
    }

    async fn echo(&mut self, socket: &mut Socket) -> Result<Duration, Broken> {
        let length = usize::try_from(1 + self.random.below(LONGEST)).unwrap_or(1);
        let mut payload = vec![0; length];
        self.random.fill(&mut payload);
        let sent = Instant::now();
        let exchange = async {
            socket.send(Message::binary(payload.clone())).await?;
            match read(socket.next().await)? {
                Message::Binary(echoed) if echoed == payload => Ok(()),
                _ => Err(Break::WrongBytes),
            }
        };
        match timeout(self.plan.patience, exchange).await {
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

fn read(message: Option<tungstenite::Result<Message>>) -> Result<Message, Break> {
    match message {
        Some(Ok(Message::Close(_))) | None => Err(Break::Closed),
        Some(Ok(message)) => Ok(message),
        Some(Err(error)) => Err(error.into()),
    }
}

async fn close(socket: &mut Socket, how: Close, patience: Duration) {
    match how {
        Close::Orderly => {
            let _ = timeout(patience, async {
                let _ = socket.close(None).await;
                while let Some(Ok(_)) = socket.next().await {}
            })
            .await;
        }
        // The socket closes when its value is dropped, right after this.
        Close::Abort => {
            let _ = socket.get_ref().set_zero_linger();
        }
        // A socket in repair mode closes without a word (tcp(7) does not tell; CRIU lives on it).
        Close::Vanish => {
            let _ = nix::sys::socket::setsockopt(
                socket.get_ref(),
                nix::sys::socket::sockopt::TcpRepair,
                &1,
            );
        }
    }
}
