//! A DNS server that says what it is told to, or fails.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SRV};
use hickory_proto::rr::{Name, RData, Record};

use crate::namespace::Namespace;

/// Seconds for which its answers are good.
const TTL: u32 = 1;
/// How soon it notices that it is to end.
const TURN: Duration = Duration::from_millis(50);

/// What it says: none is that it fails.
type Zone = Arc<Mutex<Option<Vec<Record>>>>;

/// A server at the loopback of a host. It ends when it is dropped.
#[derive(Debug)]
pub struct DnsServer {
    address: SocketAddr,
    zone: Zone,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DnsServer {
    /// Starts one that fails.
    ///
    /// # Errors
    /// When there is no port for it.
    pub fn start(host: &Namespace) -> Result<Self> {
        let socket = host
            .run(|| UdpSocket::bind("127.0.0.1:0"))
            .context("open the DNS server's socket")?;
        let address = socket.local_addr()?;
        socket.set_read_timeout(Some(TURN))?;
        let zone = Zone::default();
        let end = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("lab-dns".into()).spawn({
            let (zone, end) = (zone.clone(), end.clone());
            move || serve(&socket, &zone, &end)
        })?;
        Ok(Self {
            address,
            zone,
            end,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `name` has these addresses.
    ///
    /// # Errors
    /// When it is no name.
    pub fn say(&self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        let name = Name::from_ascii(name)?;
        self.set(Some(records(&name, addresses)));
        Ok(())
    }

    /// From now on `service` has one target at each of these addresses, and `port`.
    ///
    /// # Errors
    /// When it is no name.
    pub fn say_service(&self, service: &str, port: u16, addresses: &[IpAddr]) -> Result<()> {
        let service = Name::from_ascii(service)?;
        let mut all = vec![];
        for (number, address) in addresses.iter().enumerate() {
            let target = Name::from_ascii(format!("pod{number}.example."))?;
            all.extend(records(&target, &[*address]));
            let data = RData::SRV(SRV::new(0, 0, port, target));
            all.push(Record::from_rdata(service.clone(), TTL, data));
        }
        self.set(Some(all));
        Ok(())
    }

    /// From now on it fails.
    pub fn fail(&self) {
        self.set(None);
    }

    fn set(&self, records: Option<Vec<Record>>) {
        *self.zone.lock().unwrap_or_else(PoisonError::into_inner) = records;
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn records(name: &Name, addresses: &[IpAddr]) -> Vec<Record> {
    let record = |address: &IpAddr| {
        let data = match *address {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        Record::from_rdata(name.clone(), TTL, data)
    };
    addresses.iter().map(record).collect()
}

fn serve(socket: &UdpSocket, zone: &Zone, end: &AtomicBool) {
    let mut buffer = [0; 1_500];
    while !end.load(Ordering::Relaxed) {
        let (length, peer) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => return,
        };
        let Ok(question) = Message::from_vec(&buffer[..length]) else {
            continue;
        };
        let zone = zone.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Ok(bytes) = answer(&question, zone.as_deref()).to_vec() {
            let _ = socket.send_to(&bytes, peer);
        }
    }
}

fn answer(question: &Message, zone: Option<&[Record]>) -> Message {
    let id = question.metadata.id;
    let Some(query) = question.queries.first() else {
        return Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    };
    let Some(zone) = zone else {
        let mut failure = Message::error_msg(id, OpCode::Query, ResponseCode::ServFail);
        failure.add_query(query.clone());
        return failure;
    };
    let mut answer = Message::response(id, OpCode::Query);
    let of_name = || zone.iter().filter(|record| record.name == *query.name());
    if of_name().next().is_none() {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    for record in of_name().filter(|record| record.record_type() == query.query_type()) {
        answer.add_answer(record.clone());
    }
    answer.add_query(query.clone());
    answer
}
