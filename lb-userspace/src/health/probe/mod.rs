//! One check: the question, and what came of it.
//!
//! * [`http`], [`websocket`], [`grpc`]: what is asked over a connection; [`tls`]: what may be around it
//! * [`through`]: a connection to the VIP in the place of one to the backend's address
//! * [`meter`]: a bound on what a backend may send
//!
//! A backend may be broken or hostile: the whole check has one time limit, all that it reads has one bound, and whatever comes only makes this check
//! fail. Connections are closed with a reset, so that no check leaves a socket in TIME-WAIT: 1,000 backends asked every 5 s would keep
//! 12,000 of them.

mod grpc;
mod http;
mod meter;
mod through;
mod tls;
mod websocket;

use std::{fmt, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use self::{
    meter::{Meter, Metered},
    through::Through,
    tls::Client as TlsClient,
};
pub(super) use self::{through::Passages, tls::Clients as TlsClients};
use super::track::Reply;
use crate::model::{Check, CheckKind, ToVip};

/// The name by which checks introduce themselves.
const USER_AGENT: &str = concat!("tether/", env!("CARGO_PKG_VERSION"));
/// The most of a response's header that is read, in bytes; a longer one is no valid answer.
const HEADER_BYTES: usize = 16 << 10;
/// The most header fields that a response may have.
const HEADER_FIELDS: usize = 128;
/// Bytes on their way, in either direction, between a connection through the VIP and who asks over it.
const PIPE_BYTES: usize = 64 << 10;

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// What it was.
    pub(super) reply: Reply,
    /// Why it was no yes: what was asked and what came instead, in words that are the same every time that the reason is.
    pub(super) error: Option<String>,
}

/// A check of one backend, ready to be made again and again.
#[derive(Debug)]
pub(super) struct Probe {
    address: SocketAddr,
    check: Check,
    /// The way through the VIP, if it is asked there.
    through: Option<Through>,
    /// The host that is asked for.
    host: String,
    /// What TLS needs, if there is TLS, or why it is not to be had on this host.
    tls: Option<Result<TlsClient, String>>,
}

impl Probe {
    /// A check of what is at `address`.
    pub(super) fn new(address: SocketAddr, check: &Check, clients: &TlsClients) -> Self {
        Self::of(address, None, check, clients)
    }

    /// A check of the backend at `address` through a VIP.
    pub(super) fn through(
        to: ToVip,
        address: SocketAddr,
        check: &Check,
        clients: &TlsClients,
        passages: Arc<Passages>,
    ) -> Self {
        let through = Through::new(passages, to, address.ip());
        Self::of(address, Some(through), check, clients)
    }

    fn of(
        address: SocketAddr,
        through: Option<Through>,
        check: &Check,
        clients: &TlsClients,
    ) -> Self {
        // What a client would ask for.
        let asked = through.as_ref().map_or(address, Through::vip).ip();
        let host = match &check.kind {
            CheckKind::Tcp => String::new(),
            CheckKind::Http(http) => http.target.host_at(asked),
            CheckKind::WebSocket(websocket) => websocket.target.host_at(asked),
            CheckKind::Grpc(grpc) => grpc.target.host_at(asked),
        };
        Self {
            tls: clients.client(&check.kind, asked),
            address,
            through,
            host,
            check: check.clone(),
        }
    }

    /// Asks. Takes at most the check's timeout.
    pub(super) async fn ask(&self) -> Answer {
        match self.go().await {
            Ok(()) => Answer {
                reply: Reply::Yes,
                error: None,
            },
            Err(Failure { reply, came }) => Answer {
                reply,
                error: Some(match reply {
                    Reply::Unasked => format!("{self} could not be asked for: {came}"),
                    Reply::Yes | Reply::No | Reply::Silent => format!("{self} {came}"),
                }),
            },
        }
    }

    async fn go(&self) -> Result<(), Failure> {
        let limit = Limit {
            deadline: Instant::now() + self.check.timeout,
            timeout: self.check.timeout,
        };
        let tls = match &self.tls {
            Some(Err(error)) => return Err(Failure::unasked(error.clone())),
            Some(Ok(client)) => Some(client),
            None => None,
        };
        if let Some(through) = &self.through {
            return self.ask_through(through, tls, limit).await;
        }
        let stream = match timeout_at(limit.deadline, connect(self.address)).await {
            Ok(connected) => connected.map_err(|error| classify(&error))?,
            Err(_) => return Err(unanswered(limit)),
        };
        self.ask_on(stream, tls, limit).await
    }

    async fn ask_through(
        &self,
        through: &Through,
        tls: Option<&TlsClient>,
        limit: Limit,
    ) -> Result<(), Failure> {
        let mut place = through.port().await;
        let mut line = through.line(&mut place, limit).await?;
        match timeout_at(limit.deadline, line.open()).await {
            Ok(opened) => opened.map_err(|error| classify(&error))?,
            Err(_) => {
                let Failure { reply, came } = unanswered(limit);
                let came = format!("{came} ({})", through.doubt());
                return Err(Failure { reply, came });
            }
        }
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let mut asked = std::pin::pin!(self.ask_on(near, tls, limit));
        let carried = tokio::select! {
            biased;
            done = &mut asked => return done,
            carried = line.carry(far) => carried,
        };
        // The connection has ended: what came before is still to be read.
        let done = asked.await;
        match carried {
            // What is missing then is not for the backend to answer for.
            Err(error) if done.is_err() => Err(Failure::unasked(format!(
                "this host could not send: {error}"
            ))),
            Ok(()) | Err(_) => done,
        }
    }

    /// Asks over a connection that stands.
    async fn ask_on<S>(
        &self,
        stream: S,
        tls: Option<&TlsClient>,
        limit: Limit,
    ) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if matches!(self.check.kind, CheckKind::Tcp) {
            return Ok(());
        }
        let meter = Meter::default();
        let stream = Metered::new(stream, meter.clone());
        let asked = match tls {
            None => self.ask_over(stream, limit).await,
            Some(client) => match client.wrap(stream, limit).await {
                Ok(stream) => self.ask_over(stream, limit).await,
                Err(failure) => Err(failure),
            },
        };
        // What the protocols make of a stream that ends early does not matter then.
        asked.map_err(|failure| match meter.is_exhausted() {
            true => Failure::no(format!(
                "got more than {} KiB without an end",
                meter::MOST_BYTES >> 10
            )),
            false => failure,
        })
    }

    async fn ask_over<S>(&self, stream: S, limit: Limit) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match &self.check.kind {
            CheckKind::Tcp => Ok(()),
            CheckKind::Http(check) => http::ask(stream, check, &self.host, limit).await,
            CheckKind::WebSocket(check) => websocket::ask(stream, check, &self.host, limit).await,
            CheckKind::Grpc(check) => grpc::ask(stream, check, &self.host, limit).await,
        }
    }
}

/// What is asked, as the subject of a sentence.
impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.check.kind {
            CheckKind::Tcp => f.write_str("a TCP connection")?,
            CheckKind::Http(check) => write!(f, "{} {}", check.method, check.path)?,
            CheckKind::WebSocket(check) => write!(f, "a WebSocket on {}", check.path)?,
            CheckKind::Grpc(check) if check.service.is_empty() => {
                f.write_str("a gRPC health check")?;
            }
            CheckKind::Grpc(check) => write!(f, "a gRPC health check of {:?}", check.service)?,
        }
        let over = if self.tls.is_some() { " over TLS" } else { "" };
        match &self.through {
            None => write!(f, "{over} at {}", self.address),
            Some(through) => write!(
                f,
                "{over} at the VIP {} {} {}",
                through.vip(),
                through.by(),
                self.address.ip()
            ),
        }
    }
}

/// Why a check is no yes.
#[derive(Debug)]
struct Failure {
    reply: Reply,
    /// What came of what was asked, as the predicate of a sentence; or why it could not be asked.
    came: String,
}

impl Failure {
    fn no(came: impl Into<String>) -> Self {
        Self {
            reply: Reply::No,
            came: came.into(),
        }
    }

    /// It says nothing about the backend.
    fn unasked(why: impl Into<String>) -> Self {
        Self {
            reply: Reply::Unasked,
            came: why.into(),
        }
    }
}

/// When a check is over.
#[derive(Clone, Copy, Debug)]
struct Limit {
    deadline: Instant,
    timeout: Duration,
}

impl Limit {
    /// Waits for a part of a check that has connected. `late` says what has happened if it is not done in time.
    async fn keep<T>(
        self,
        late: &str,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        match timeout_at(self.deadline, work).await {
            Ok(done) => done,
            Err(_) => Err(Failure::no(format!("{late} within {self}"))),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.timeout.as_millis())
    }
}

fn unanswered(limit: Limit) -> Failure {
    Failure {
        reply: Reply::Silent,
        came: format!("got no answer to its SYN within {limit}"),
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_zero_linger()?;
    // What is asked is small, and every part of it is waited for.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection that did not come to be: did the backend say so, did nobody, or was it this host that could not ask?
fn classify(error: &io::Error) -> Failure {
    let silent = |came: &str| Failure {
        reply: Reply::Silent,
        came: came.to_owned(),
    };
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Failure::no("was refused"),
        Some(libc::ECONNRESET | libc::EPIPE) => Failure::no("was reset"),
        Some(libc::ETIMEDOUT) => silent("got no answer to its SYN"),
        Some(libc::EHOSTUNREACH | libc::EHOSTDOWN) => silent("found the host unreachable"),
        Some(libc::ENETUNREACH | libc::ENETDOWN) => silent("found the network unreachable"),
        _ => Failure::unasked(error.to_string()),
    }
}

/// Text that a backend sent, for a message: quoted, on one line, and not a page of it.
fn quoted(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests;
