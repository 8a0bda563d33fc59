//! Asking a DNS server over real sockets.

use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{
        Name, RData, Record,
        rdata::{A, AAAA, SRV},
    },
};
use tokio::net::UdpSocket;

use super::*;

/// What a server says: records by name, or that it fails.
#[derive(Default)]
struct Zone {
    records: Vec<Record>,
    fails: bool,
    asked: usize,
}

/// A DNS server on a port of its own.
struct Server {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

impl Server {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone::default()));
        let serving = zone.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 1_500];
            loop {
                let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let answer = answer(&question, &mut serving.lock().unwrap());
                let bytes = answer.to_vec().unwrap();
                socket.send_to(&bytes, peer).await.unwrap();
            }
        });
        Self { address, zone }
    }

    fn say(&self, records: &[(&str, u32, RData)]) {
        let record = |(name, ttl, data): &(&str, u32, RData)| {
            Record::from_rdata(Name::from_ascii(name).unwrap(), *ttl, data.clone())
        };
        self.zone.lock().unwrap().records = records.iter().map(record).collect();
    }

    async fn ask(&self, name: &str, kind: Kind) -> Result<(Vec<Found>, Duration), String> {
        let question = Question {
            name: name.to_owned(),
            kind,
        };
        Resolver::new(Some(vec![self.address])).ask(&question).await
    }
}

fn answer(question: &Message, zone: &mut Zone) -> Message {
    zone.asked += 1;
    let id = question.metadata.id;
    let query = question.queries[0].clone();
    if zone.fails {
        let mut failure = Message::error_msg(id, OpCode::Query, ResponseCode::ServFail);
        failure.add_query(query);
        return failure;
    }
    let mut answer = Message::response(id, OpCode::Query);
    let of_name = || zone.records.iter().filter(|one| one.name == *query.name());
    if of_name().next().is_none() {
        answer.metadata.response_code = ResponseCode::NXDomain;
    }
    for record in of_name().filter(|one| one.record_type() == query.query_type()) {
        answer.add_answer(record.clone());
    }
    answer.add_query(query);
    answer
}

fn a(last: u8) -> RData {
    RData::A(A::new(10, 0, 1, last))
}

fn aaaa(last: u16) -> RData {
    RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last))
}

fn srv(priority: u16, weight: u16, target: &str) -> RData {
    let target = Name::from_ascii(target).unwrap();
    RData::SRV(SRV::new(priority, weight, 8080, target))
}

fn addresses(found: &[Found]) -> Vec<String> {
    found.iter().map(|one| one.address.to_string()).collect()
}

#[tokio::test]
async fn addresses_come_in_order_with_the_shortest_ttl() {
    let server = Server::start().await;
    server.say(&[
        ("pods.example.", 60, a(12)),
        ("pods.example.", 30, a(11)),
        ("pods.example.", 90, aaaa(1)),
        ("four.example.", 90, a(13)),
    ]);
    let (found, ttl) = server.ask("pods.example.", Kind::Address).await.unwrap();
    assert_eq!(addresses(&found), ["10.0.1.11", "10.0.1.12", "2001:db8::1"]);
    assert_eq!(ttl, Duration::from_secs(30));
    let (found, ttl) = server.ask("pods.example.", Kind::Aaaa).await.unwrap();
    assert_eq!(addresses(&found), ["2001:db8::1"]);
    assert_eq!(ttl, Duration::from_secs(90));
    let (found, _) = server.ask("pods.example.", Kind::A).await.unwrap();
    assert_eq!(found.len(), 2);
    // One of both versions is enough, none is not.
    let (found, _) = server.ask("four.example.", Kind::Address).await.unwrap();
    assert_eq!(addresses(&found), ["10.0.1.13"]);
    for (name, kind) in [
        ("four.example.", Kind::Aaaa),
        ("none.example.", Kind::Address),
    ] {
        let error = server.ask(name, kind).await.unwrap_err();
        assert_eq!(error, format!("{name} has no address"));
    }
}

#[tokio::test]
async fn services_are_those_of_the_best_priority_with_their_weights() {
    let server = Server::start().await;
    let hosts = [
        ("one.example.", 20, a(11)),
        ("two.example.", 10, a(12)),
        ("two.example.", 20, aaaa(2)),
        ("old.example.", 20, a(13)),
    ];
    let with = |services: &[(&'static str, u32, RData)]| {
        server.say(&[services, &hosts].concat());
    };
    with(&[
        ("chat.example.", 60, srv(1, 20_000, "one.example.")),
        ("chat.example.", 60, srv(1, 10_000, "two.example.")),
        ("chat.example.", 60, srv(1, 10_000, "gone.example.")),
        ("chat.example.", 60, srv(2, 1, "old.example.")),
    ]);
    let (found, ttl) = server.ask("chat.example.", Kind::Srv).await.unwrap();
    let seen: Vec<_> = found
        .iter()
        .map(|one| (one.address.to_string(), one.port, one.weight))
        .collect();
    let expected = [
        ("10.0.1.11", 1_000),
        ("10.0.1.12", 500),
        ("2001:db8::2", 500),
    ]
    .map(|(address, weight)| (address.to_owned(), Some(8080), Some(weight)));
    assert_eq!(seen, expected);
    assert_eq!(ttl, Duration::from_secs(10));
    // Without weights the file's counts; small ones are taken as they are, and no service at all is no answer.
    with(&[("chat.example.", 60, srv(1, 0, "one.example."))]);
    let (found, _) = server.ask("chat.example.", Kind::Srv).await.unwrap();
    assert_eq!(found[0].weight, None);
    with(&[
        ("chat.example.", 60, srv(1, 7, "one.example.")),
        ("chat.example.", 60, srv(1, 0, "two.example.")),
    ]);
    let (found, _) = server.ask("chat.example.", Kind::Srv).await.unwrap();
    assert_eq!((found[0].weight, found[1].weight), (Some(7), Some(1)));
    with(&[("chat.example.", 60, srv(0, 0, "."))]);
    let error = server.ask("chat.example.", Kind::Srv).await.unwrap_err();
    assert_eq!(error, "chat.example. has no address");
}

#[tokio::test]
async fn a_failure_is_no_half_of_an_answer() {
    let server = Server::start().await;
    server.say(&[("pods.example.", 60, a(11))]);
    server.zone.lock().unwrap().fails = true;
    let error = server
        .ask("pods.example.", Kind::Address)
        .await
        .unwrap_err();
    assert!(error.starts_with("pods.example.: "), "{error}");
}

#[tokio::test]
async fn names_are_asked_again_by_their_ttl_and_what_is_no_longer_wanted_is_not() {
    let server = Server::start().await;
    server.say(&[("pods.example.", 1, a(11))]);
    let question = Question {
        name: "pods.example.".into(),
        kind: Kind::A,
    };
    let bounds = Bounds {
        min: Duration::from_millis(50),
        max: Duration::from_millis(100),
    };
    let wanted = Wanted { bounds, since: 0 };
    let (ask, questions) = watch::channel(BTreeMap::from([(question.clone(), wanted)]));
    let (reports, mut reported) = mpsc::channel(1);
    let (stop, shutdown) = watch::channel(false);
    let running = tokio::spawn(run(
        questions,
        reports,
        Some(vec![server.address]),
        shutdown,
    ));
    let mut until = async |wanted: &[&str], fails: bool| {
        let found = async {
            loop {
                let report = reported.recv().await.unwrap();
                assert_eq!(report.question, question);
                match report.result {
                    Ok(found) if addresses(&found) == wanted => return,
                    Err(_) if fails => return,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), found)
            .await
            .unwrap();
    };
    until(&["10.0.1.11"], false).await;
    server.say(&[("pods.example.", 1, a(12))]);
    until(&["10.0.1.12"], false).await;
    server.zone.lock().unwrap().fails = true;
    until(&[], true).await;
    server.zone.lock().unwrap().fails = false;
    until(&["10.0.1.12"], false).await;
    ask.send_replace(BTreeMap::new());
    // A report may be under way; then no task is left that could send another.
    while reported.recv().now_or_never().flatten().is_some() {}
    stop.send_replace(true);
    running.await.unwrap();
    while reported.recv().await.is_some() {}
}

#[tokio::test]
async fn what_is_let_go_of_and_wanted_again_within_one_look_is_asked_at_once() {
    let server = Server::start().await;
    server.say(&[("pods.example.", 3_600, a(11))]);
    let (ask, questions) = watch::channel(BTreeMap::new());
    let (reports, mut reported) = mpsc::channel(1);
    let (_stop, shutdown) = watch::channel(false);
    let servers = Some(vec![server.address]);
    tokio::spawn(run(questions, reports, servers, shutdown));
    let bounds = Bounds {
        min: Duration::from_secs(3_600),
        max: Duration::from_secs(3_600),
    };
    for since in [0, 1] {
        let question = Question {
            name: "pods.example.".into(),
            kind: Kind::A,
        };
        // Nobody else runs between the two.
        ask.send_replace(BTreeMap::new());
        ask.send_replace(BTreeMap::from([(question, Wanted { bounds, since })]));
        let report = tokio::time::timeout(Duration::from_secs(20), reported.recv()).await;
        let found = report.expect("it is not asked").unwrap().result.unwrap();
        assert_eq!(addresses(&found), ["10.0.1.11"]);
    }
}
