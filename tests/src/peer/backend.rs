//! A backend: one process's worth of echo, by WebSocket and in plain bytes, and of health answers, on a host of the lab.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::{SinkExt as _, StreamExt as _};
use nix::sys::socket::Backlog;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::sync::watch::error::RecvError;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{self, Message};

use super::{Host, exchange, wire};
use crate::namespace::Namespace;
use crate::wait;

/// The port of the service, for WebSockets and plain requests alike.
pub const PORT: u16 = 80;
/// A second port with the same behaviour, for checks that have a port of their own.
pub const HEALTH_PORT: u16 = 8080;

const BACKLOG: u32 = 4096;
const LONGEST_HEAD: usize = 8192;

/// What a backend answers to plain HTTP requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This status.
    Status(u16),
    /// Nothing: the request is read and the connection kept.
    Hang,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Orders {
    listen: bool,
    /// Whether connections are accepted.
    accept: bool,
    answer: Answer,
    /// Whether connections are kept.
    keep: bool,
}

#[derive(Debug, Default)]
struct Counters {
    listeners: AtomicU64,
    /// Listeners that nobody accepts from.
    deaf: AtomicU64,
    accepted: AtomicU64,
    conversations: AtomicU64,
    open: AtomicU64,
    reset: AtomicU64,
    exchanged: AtomicU64,
}

/// A running backend. Dropping it closes its sockets.
#[derive(Debug)]
pub struct Backend {
    name: String,
    orders: watch::Sender<Orders>,
    counters: Arc<Counters>,
    _host: Host,
}

impl Backend {
    /// Starts a backend on `namespace`, listening on every address of it, at [`PORT`] and [`HEALTH_PORT`]. Its name is the
    /// namespace's, and the first message on every WebSocket.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let name = namespace.name().to_owned();
        let host = Host::start(namespace, &format!("backend-{name}"))?;
        let (orders, followed) = watch::channel(Orders {
            listen: true,
            accept: true,
            answer: Answer::Status(200),
            keep: true,
        });
        let counters = Arc::new(Counters::default());
        for port in [PORT, HEALTH_PORT] {
            host.handle.spawn(serve(
                port,
                name.clone(),
                followed.clone(),
                counters.clone(),
            ));
        }
        let backend = Self {
            name,
            orders,
            counters,
            _host: host,
        };
        backend.await_listeners(2)?;
        Ok(backend)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// WebSockets and plain connections open now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.counters.open.load(Ordering::Relaxed)
    }

    /// WebSockets and plain connections ever opened.
    #[must_use]
    pub fn conversations(&self) -> u64 {
        self.counters.conversations.load(Ordering::Relaxed)
    }

    /// WebSockets and plain connections that ended with a RST.
    #[must_use]
    pub fn reset(&self) -> u64 {
        self.counters.reset.load(Ordering::Relaxed)
    }

    /// Exchanges that this has begun and of which every byte came back right.
    #[must_use]
    pub fn exchanged(&self) -> u64 {
        self.counters.exchanged.load(Ordering::Relaxed)
    }

    /// TCP connections ever accepted, health checks included.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.counters.accepted.load(Ordering::Relaxed)
    }

    /// Changes what plain requests get. Open connections are not affected.
    pub fn answer(&self, answer: Answer) {
        self.orders.send_modify(|orders| orders.answer = answer);
    }

    /// Closes the listeners and keeps every connection, as a server does that shuts down gently. Returns when both are closed.
    ///
    /// # Errors
    /// When they do not close.
    pub fn close_listeners(&self) -> Result<()> {
        self.orders.send_modify(|orders| orders.listen = false);
        self.await_listeners(0)
    }

    /// Listens again. Returns when both ports do.
    ///
    /// # Errors
    /// When a port has been taken in between.
    pub fn open_listeners(&self) -> Result<()> {
        self.orders.send_modify(|orders| orders.listen = true);
        self.await_listeners(2)
    }

    /// Accepts no connections any more, as a process that hangs, and leaves room for as few as can be that wait for it: two are
    /// answered by the kernel, who comes later is not. Open ones go on. Returns when both ports are so.
    ///
    /// # Errors
    /// When they are not soon.
    pub fn stop_accepting(&self) -> Result<()> {
        self.orders.send_modify(|orders| orders.accept = false);
        self.await_deaf(2)
    }

    /// Accepts connections again, those that wait first. Returns when both ports do.
    ///
    /// # Errors
    /// When they do not soon.
    pub fn accept_again(&self) -> Result<()> {
        self.orders.send_modify(|orders| orders.accept = true);
        self.await_deaf(0)
    }

    /// Closes every connection, each in its protocol's orderly way, as a server does at the end of its patience. Later ones are
    /// closed at once. Does not wait.
    pub fn close_connections(&self) {
        self.orders.send_modify(|orders| orders.keep = false);
    }

    fn await_listeners(&self, count: u64) -> Result<()> {
        self.await_count("open", &self.counters.listeners, count)
    }

    fn await_deaf(&self, count: u64) -> Result<()> {
        self.await_count("deaf", &self.counters.deaf, count)
    }

    fn await_count(&self, what: &str, counter: &AtomicU64, count: u64) -> Result<()> {
        wait::until(
            &format!("{} has {count} {what} listeners", self.name),
            Duration::from_secs(5),
            || (counter.load(Ordering::Acquire) == count).then_some(()),
        )
    }
}

impl Counters {
    fn note_end(&self, outcome: Result<()>) {
        if outcome.is_err_and(|error| is_reset(&error)) {
            self.reset.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Counts something up for as long as it lives.
struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::AcqRel);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn serve(
    port: u16,
    name: String,
    mut orders: watch::Receiver<Orders>,
    counters: Arc<Counters>,
) {
    while orders.wait_for(|orders| orders.listen).await.is_ok() {
        let listener = match listen(port) {
            Ok(listener) => listener,
            Err(error) => {
                eprintln!("{name} cannot listen on port {port}: {error}");
                return;
            }
        };
        let listening = Counted::new(&counters.listeners);
        loop {
            let Orders { listen, accept, .. } = *orders.borrow_and_update();
            if !listen {
                break;
            }
            let next_order = if accept {
                accept_all(&listener, &name, &mut orders, &counters).await
            } else {
                accept_none(&listener, &mut orders, &counters).await
            };
            if next_order.is_err() {
                return;
            }
        }
        drop(listener);
        drop(listening);
    }
}

/// Serves who comes until there is another order, or nobody to give one.
async fn accept_all(
    listener: &TcpListener,
    name: &str,
    orders: &mut watch::Receiver<Orders>,
    counters: &Arc<Counters>,
) -> Result<(), RecvError> {
    let followed = orders.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                counters.accepted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(answer(stream, name.to_owned(), followed.clone(), counters.clone()));
            }
            next_order = orders.changed() => return next_order,
        }
    }
}

/// Serves nobody, and lets the queue overflow, until there is another order, or nobody to give one.
async fn accept_none(
    listener: &TcpListener,
    orders: &mut watch::Receiver<Orders>,
    counters: &Counters,
) -> Result<(), RecvError> {
    let shortest = Backlog::new(1).expect("a backlog of 1 is one");
    // What listens already gets another length of its queue by this, and nothing else.
    let queue = |backlog| {
        nix::sys::socket::listen(listener, backlog).expect("what listens may listen still");
    };
    queue(shortest);
    let deaf = Counted::new(&counters.deaf);
    let next_order = orders.changed().await;
    queue(Backlog::MAXALLOWABLE);
    drop(deaf);
    next_order
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    // One for both versions.
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
    socket.listen(BACKLOG)
}

/// Serves one connection. How it ends is the client's to judge, so errors end it and are not reported here.
async fn answer(
    mut stream: TcpStream,
    name: String,
    orders: watch::Receiver<Orders>,
    counters: Arc<Counters>,
) {
    let Ok(head) = read_head(&mut stream).await else {
        return;
    };
    let _ = stream.set_nodelay(true);
    if let Some(key) = header(&head, "sec-websocket-key") {
        let outcome = echo(stream, key, &name, orders, &counters).await;
        counters.note_end(outcome);
        return;
    }
    if header(&head, "upgrade") == Some(wire::PLAIN) {
        let outcome = echo_plain(stream, &name, orders, &counters).await;
        counters.note_end(outcome);
        return;
    }
    if header(&head, "upgrade") == Some(exchange::PROTOCOL) {
        let _ = exchange::serve(stream).await;
        return;
    }
    if header(&head, "upgrade") == Some(exchange::BACKEND_FIRST) {
        let length = header(&head, exchange::LENGTH).and_then(|length| length.parse().ok());
        if let Some(length) = length
            && exchange::serve_first(stream, length).await.is_ok()
        {
            counters.exchanged.fetch_add(1, Ordering::Relaxed);
        }
        return;
    }
    let answer = orders.borrow().answer;
    match answer {
        Answer::Status(status) => {
            let text = format!(
                "HTTP/1.1 {status} Lab\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{name}",
                name.len()
            );
            let _ = stream.write_all(text.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        Answer::Hang => {
            let mut rest = [0; 512];
            while stream.read(&mut rest).await.is_ok_and(|length| length > 0) {}
        }
    }
}

/// Whether the other side sent a RST.
fn is_reset(error: &anyhow::Error) -> bool {
    let plain = error.downcast_ref::<std::io::Error>();
    let error = match error.downcast_ref::<tungstenite::Error>() {
        Some(tungstenite::Error::Io(error)) => Some(error),
        _ => plain,
    };
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

async fn read_head(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        anyhow::ensure!(head.len() < LONGEST_HEAD, "a head without end");
        anyhow::ensure!(
            stream.read_buf(&mut head).await? > 0,
            "closed within the head"
        );
    }
    String::from_utf8(head).context("a head that is not text")
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim()
            .eq_ignore_ascii_case(name)
            .then_some(value.trim())
    })
}

async fn echo(
    mut stream: TcpStream,
    key: &str,
    name: &str,
    mut orders: watch::Receiver<Orders>,
    counters: &Counters,
) -> Result<()> {
    let accept = derive_accept_key(key.as_bytes());
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(response.as_bytes()).await?;
    counters.conversations.fetch_add(1, Ordering::Relaxed);
    let _open = Counted::new(&counters.open);
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    socket.send(Message::text(name)).await?;
    let close = async { orders.wait_for(|orders| !orders.keep).await.map(drop) };
    tokio::pin!(close);
    loop {
        tokio::select! {
            message = socket.next() => match message {
                None => return Ok(()),
                Some(message) => if let echoed @ (Message::Text(_) | Message::Binary(_)) = message? {
                    socket.send(echoed).await?;
                },
            },
            order = &mut close => {
                order?;
                break;
            }
        }
    }
    socket.close(None).await?;
    while let Some(message) = socket.next().await {
        message?;
    }
    Ok(())
}

async fn echo_plain(
    mut stream: TcpStream,
    name: &str,
    mut orders: watch::Receiver<Orders>,
    counters: &Counters,
) -> Result<()> {
    let answer = format!("{}{name}\n", wire::PLAIN_ANSWER);
    stream.write_all(answer.as_bytes()).await?;
    counters.conversations.fetch_add(1, Ordering::Relaxed);
    let _open = Counted::new(&counters.open);
    let close = async { orders.wait_for(|orders| !orders.keep).await.map(drop) };
    tokio::pin!(close);
    let mut buffer = [0; 4096];
    loop {
        tokio::select! {
            length = stream.read(&mut buffer) => match length? {
                0 => return Ok(()),
                length => stream.write_all(&buffer[..length]).await?,
            },
            order = &mut close => {
                order?;
                break;
            }
        }
    }
    stream.shutdown().await?;
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}
