//! Backends by the thousand, as far as health checks can tell: all addresses of a network, answered for by one thread.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lab::namespace::Namespace;

/// Where checks go.
pub(super) const PORT: u16 = 8_088;

/// The network of all addresses.
const NETWORK: &str = "10.128.0.0/9";
/// How long a check may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(2);

/// The address of one of them.
pub(super) fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 128, 0, 1)) + number)
}

#[derive(Debug, Default)]
struct Orders {
    /// The address whose backend answers no; 0 is none.
    refusing: AtomicU32,
    ended: AtomicBool,
}

/// The crowd. Dropping it ends its thread.
#[derive(Debug)]
pub(super) struct Crowd {
    host: Arc<Namespace>,
    orders: Arc<Orders>,
    noes: mpsc::Receiver<Instant>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// Gives `host` all the addresses, and answers there.
    pub(super) fn start(host: &Arc<Namespace>) -> Result<Self> {
        host.ip(&format!("route add local {NETWORK} dev lo"))?;
        let listener = host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)));
        let listener = listener.context("listening for health checks")?;
        let orders = Arc::new(Orders::default());
        let (said_no, noes) = mpsc::channel();
        let followed = Arc::clone(&orders);
        let thread = thread::Builder::new()
            .name("crowd".to_owned())
            .spawn(move || serve(&listener, &followed, &said_no))?;
        Ok(Self {
            host: Arc::clone(host),
            orders,
            noes,
            thread: Some(thread),
        })
    }

    /// Has the backend at an address answer no from now on. Gives the moment when it begins to send the first such answer.
    pub(super) fn refuse(&self, address: Ipv4Addr, patience: Duration) -> Result<Instant> {
        // Answers of a backend that refused before.
        while self.noes.try_recv().is_ok() {}
        self.orders.refusing.store(address.to_bits(), SeqCst);
        let first = self.noes.recv_timeout(patience);
        first.with_context(|| format!("{address} is not checked"))
    }

    /// Has all backends answer yes again.
    pub(super) fn relent(&self) {
        self.orders.refusing.store(0, SeqCst);
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.orders.ended.store(true, SeqCst);
        // Whatever comes of it: it ends the wait for the next check.
        let _ = self
            .host
            .run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, orders: &Orders, said_no: &mpsc::Sender<Instant>) {
    for stream in listener.incoming() {
        if orders.ended.load(SeqCst) {
            return;
        }
        // A check that only wants a connection ends it before it has said anything.
        let _ = stream.and_then(|stream| answer(stream, orders, said_no));
    }
}

fn answer(
    mut stream: TcpStream,
    orders: &Orders,
    said_no: &mpsc::Sender<Instant>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut head, mut buffer) = (Vec::new(), [0; 512]);
    while !head.ends_with(b"\r\n\r\n") {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..length]);
    }
    let refusing = Ipv4Addr::from_bits(orders.refusing.load(SeqCst));
    let is_no = stream.local_addr()?.ip() == IpAddr::V4(refusing);
    let (status, body) = if is_no {
        ("503 Service Unavailable", r#"{"status":"stopping"}"#)
    } else {
        ("200 OK", r#"{"status":"ok"}"#)
    };
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let replying = Instant::now();
    stream.write_all(text.as_bytes())?;
    if is_no {
        // Nobody may wait for it any more.
        let _ = said_no.send(replying);
    }
    Ok(())
}
