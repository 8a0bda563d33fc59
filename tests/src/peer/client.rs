//! Clients: many connections from one host, each of which checks its own bytes and writes its own history.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as sync_mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Host;
use super::conversation::{self, Order};
use crate::namespace::Namespace;
use crate::wait;

/// How many connections are being opened at a time: enough to be quick, few enough for no queue to overflow.
const OPENING_AT_ONCE: usize = 64;

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// WebSocket messages.
    WebSocket,
    /// Bytes without any framing, once the backend has said its name.
    Plain,
}

/// How a set of connections behaves.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Where to connect.
    pub target: SocketAddr,
    /// What it carries.
    pub protocol: Protocol,
    /// The local port; the kernel's choice when absent.
    pub local_port: Option<u16>,
    /// A message this often, each at a random moment of its interval; silent when absent.
    pub pace: Option<Duration>,
    /// Whether to connect again when the connection breaks.
    pub reconnect: bool,
    /// Whether the client's kernel sends a keepalive probe after each second of silence.
    pub probing: bool,
    /// How long an echo may take before the connection counts as broken.
    pub patience: Duration,
    /// How long opening may take.
    pub opening: Duration,
}

impl Plan {
    /// A silent WebSocket to `target` that stays broken when it breaks, with ten seconds' patience; longer in opening, where [`wait::scaled`] says so.
    #[must_use]
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            protocol: Protocol::WebSocket,
            local_port: None,
            pace: None,
            reconnect: false,
            probing: false,
            patience: Duration::from_secs(10),
            opening: wait::scaled(Duration::from_secs(10)),
        }
    }

    /// The same, with a message every `pace`.
    #[must_use]
    pub fn talking(self, pace: Duration) -> Self {
        Self {
            pace: Some(pace),
            ..self
        }
    }

    /// The same, with plain bytes.
    #[must_use]
    pub fn plain(self) -> Self {
        Self {
            protocol: Protocol::Plain,
            ..self
        }
    }

    /// The same, connecting again after a break.
    #[must_use]
    pub fn reconnecting(self) -> Self {
        Self {
            reconnect: true,
            ..self
        }
    }

    /// The same, with keepalive probes while it is silent.
    #[must_use]
    pub fn probing(self) -> Self {
        Self {
            probing: true,
            ..self
        }
    }

    /// The same, from a port of the caller's choice.
    #[must_use]
    pub fn from_port(self, port: u16) -> Self {
        Self {
            local_port: Some(port),
            ..self
        }
    }
}

/// Why a connection ended without its client's wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Break {
    /// A RST arrived.
    Reset,
    /// The other side closed.
    Closed,
    /// No echo within the plan's patience.
    NoEcho,
    /// An echo with other bytes than were sent, or a message that nobody asked for.
    WrongBytes,
    /// Anything else, in the words of whoever noticed.
    Other(String),
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => f.write_str("reset"),
            Self::Closed => f.write_str("closed by the other side"),
            Self::NoEcho => f.write_str("no echo"),
            Self::WrongBytes => f.write_str("wrong bytes"),
            Self::Other(words) => f.write_str(words),
        }
    }
}

impl From<std::io::Error> for Break {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionReset => Self::Reset,
            ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// How a connection's life ended.
#[derive(Debug, Clone)]
pub struct End {
    /// When the client noticed.
    pub at: Instant,
    /// Why; absent when the client itself closed it.
    pub why: Option<Break>,
    /// When the message was sent that never got its echo, if one was under way.
    pub unanswered: Option<Instant>,
}

/// One TCP connection's life.
#[derive(Debug, Clone)]
pub struct Life {
    /// The backend that answered.
    pub backend: String,
    /// The client's address and port.
    pub local: SocketAddr,
    /// When it was open and the backend had said its name.
    pub opened: Instant,
    /// Echoes that were right.
    pub echoes: u64,
    /// Absent while it lives.
    pub end: Option<End>,
}

/// What is known of a client.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Its connections, oldest first.
    pub lives: Vec<Life>,
    /// Why opening failed, if it did.
    pub failure: Option<String>,
}

impl History {
    /// The connection that is open now.
    #[must_use]
    pub fn current(&self) -> Option<&Life> {
        self.lives.last().filter(|life| life.end.is_none())
    }

    /// Echoes that were right, on all its connections.
    #[must_use]
    pub fn echoes(&self) -> u64 {
        self.lives.iter().map(|life| life.echoes).sum()
    }

    /// Endings that the client did not ask for, oldest first.
    pub fn breaks(&self) -> impl Iterator<Item = (&Life, &Break)> {
        self.lives
            .iter()
            .filter_map(|life| Some((life, life.end.as_ref()?.why.as_ref()?)))
    }
}

/// How a client closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// WebSocket's and TCP's closing handshakes.
    Orderly,
    /// A RST.
    Abort,
    /// No packet at all: the client vanishes, as one does whose battery died.
    Vanish,
}

/// One client, with one connection at a time.
#[derive(Debug)]
pub struct Connection {
    history: Arc<Mutex<History>>,
    orders: mpsc::UnboundedSender<Order>,
    talks: bool,
}

impl Connection {
    /// What is known now.
    #[must_use]
    pub fn history(&self) -> History {
        self.history
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether it was opened to say something of its own accord.
    #[must_use]
    pub fn talks(&self) -> bool {
        self.talks
    }

    /// The backend of the open connection.
    #[must_use]
    pub fn backend(&self) -> Option<String> {
        self.history().current().map(|life| life.backend.clone())
    }

    /// Sends a message now and waits for its echo; returns the time it took.
    ///
    /// # Errors
    /// When the connection is or gets broken.
    pub fn echo(&self) -> Result<Duration> {
        let answer = self.ask(Order::Echo);
        self.receive(answer)?
            .map_err(|why| anyhow::anyhow!("{why}"))
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// When it was already broken.
    pub fn close(&self, how: Close) -> Result<()> {
        let answer = self.ask(|answer| Order::Close(how, answer));
        self.receive(answer)
    }

    pub(super) fn ask<T>(
        &self,
        order: impl FnOnce(oneshot::Sender<T>) -> Order,
    ) -> oneshot::Receiver<T> {
        let (answer, receiver) = oneshot::channel();
        // A client that is gone drops the sender, which the receiver sees.
        let _ = self.orders.send(order(answer));
        receiver
    }

    pub(super) fn receive<T>(&self, answer: oneshot::Receiver<T>) -> Result<T> {
        answer
            .blocking_recv()
            .map_err(|_| match self.history().breaks().last() {
                Some((life, why)) => anyhow::anyhow!("{} on {}: {why}", life.local, life.backend),
                None => anyhow::anyhow!("the client is closed"),
            })
    }
}

/// The clients' host, where connections are opened from.
#[derive(Debug)]
pub struct Clients {
    host: Host,
    sources: Vec<IpAddr>,
    count: AtomicU64,
    seed: u64,
}

impl Clients {
    /// Clients on `namespace`, which connect from `sources` in turn. `seed` chooses payloads and moments.
    ///
    /// # Errors
    /// When the host's thread cannot be started.
    pub fn start(namespace: &Namespace, sources: &[IpAddr], seed: u64) -> Result<Self> {
        let host = Host::start(namespace, "clients")?;
        Ok(Self {
            host,
            sources: sources.to_vec(),
            count: AtomicU64::new(0),
            seed,
        })
    }

    /// Opens `count` connections, waits until all are open, and tells `progress` after each how many are.
    ///
    /// # Errors
    /// When one cannot be opened; the message says how many failed and why the first did.
    pub fn open(
        &self,
        count: usize,
        plan: Plan,
        mut progress: impl FnMut(usize),
    ) -> Result<Vec<Connection>> {
        let turns = Arc::new(Semaphore::new(OPENING_AT_ONCE));
        let (opened, outcomes) = sync_mpsc::channel();
        let connections: Vec<Connection> = (0..count)
            .map(|_| {
                let id = self.count.fetch_add(1, Ordering::Relaxed);
                let turn = usize::try_from(id).unwrap_or(0) % self.sources.len();
                let source = SocketAddr::new(self.sources[turn], plan.local_port.unwrap_or(0));
                let history = Arc::new(Mutex::new(History::default()));
                let (orders, inbox) = mpsc::unbounded_channel();
                let client = conversation::Client {
                    plan,
                    source,
                    random: crate::random::Random::new(self.seed ^ id.wrapping_mul(0x9e37_79b9)),
                    history: history.clone(),
                };
                self.host
                    .handle
                    .spawn(client.live(inbox, turns.clone(), opened.clone()));
                Connection {
                    history,
                    orders,
                    talks: plan.pace.is_some(),
                }
            })
            .collect();
        drop(opened);
        let mut open = 0;
        let mut failures = vec![];
        for outcome in outcomes {
            match outcome {
                Ok(()) => {
                    open += 1;
                    progress(open);
                }
                Err(why) => failures.push(why),
            }
        }
        match failures.first() {
            Some(why) => bail!(
                "{} of {count} connections did not open: {why}",
                failures.len()
            ),
            None => Ok(connections),
        }
    }

    /// Opens one connection.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_one(&self, plan: Plan) -> Result<Connection> {
        self.open(1, plan, |_| {})?.pop().context("one connection")
    }
}
