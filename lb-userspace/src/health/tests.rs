//! Checks against real sockets, hosts and neighbours.

mod refusing;
mod through;

use std::net::{Ipv4Addr, Ipv6Addr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket},
};

use super::*;
use crate::{
    ids::Numbered,
    model::{CheckKind, HttpCheck, RequestTarget},
    testnet::{FOUR, Host, Network, PATIENCE, Pair, SIX, block_on},
};

const PORT: u16 = 80;
const FIRST: Numbered = Numbered {
    id: 1,
    generation: 0,
};

fn tcp() -> Check {
    Check {
        interval: Duration::from_millis(500),
        timeout: Duration::from_millis(300),
        ..Check::DEFAULT
    }
}

fn http() -> Check {
    Check {
        kind: CheckKind::Http(Arc::new(HttpCheck {
            target: RequestTarget::default(),
            method: hyper::Method::GET,
            path: "/health?deep=1".parse().unwrap(),
            status: vec![200..=299],
            body_contains: None,
            json: None,
        })),
        ..tcp()
    }
}

fn target(address: IpAddr, check: Check) -> Target {
    Target {
        name: BackendName {
            service: "chat".into(),
            backend: address.to_string(),
        },
        object: FIRST,
        address: SocketAddr::new(address, PORT),
        check,
        through: None,
        answers_echoes: false,
        verdict: Health::Unknown,
    }
}

/// A server that sends `response` to whoever asks, and what it was asked.
async fn server(response: &'static [u8]) -> (SocketAddr, mpsc::Receiver<String>) {
    server_at(Ipv4Addr::LOCALHOST.into(), response).await
}

async fn server_at(
    address: IpAddr,
    response: &'static [u8],
) -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, asked) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut request = vec![0; 4_096];
                let length = stream.read(&mut request).await.unwrap_or(0);
                request.truncate(length);
                let _ = sender.try_send(String::from_utf8(request).unwrap());
                let _ = stream.write_all(response).await;
            });
        }
    });
    (address, asked)
}

fn replied(answer: &Answer) -> (Reply, &str) {
    (answer.reply, answer.error.as_deref().unwrap_or(""))
}

async fn probe(address: SocketAddr, check: &Check) -> Answer {
    Probe::new(address, check, &TlsClients::default())
        .ask()
        .await
}

#[test]
fn backends_are_asked_over_ipv6_too() {
    let pair = Pair::new();
    let _server = serve(&pair);
    block_on(&pair.near, || async {
        let answer = probe(SocketAddr::new(SIX.there, PORT), &tcp()).await;
        assert_eq!(answer.reply, Reply::Yes);
        let (address, mut asked) =
            server_at(Ipv6Addr::LOCALHOST.into(), b"HTTP/1.1 200 OK\r\n\r\n").await;
        assert_eq!(probe(address, &http()).await.reply, Reply::Yes);
        assert!(asked.recv().await.unwrap().starts_with("GET /health"));
        let closed = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 1);
        let answer = probe(closed, &tcp()).await;
        let error = format!("a TCP connection at {closed} was refused");
        assert_eq!(replied(&answer), (Reply::No, error.as_str()));
    });
}

#[test]
fn refusals_and_hangs_are_replies_and_a_full_backlog_is_not() {
    let pair = Pair::new();
    block_on(&pair.near, || async {
        let closed = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1);
        let answer = probe(closed, &tcp()).await;
        let error = format!("a TCP connection at {closed} was refused");
        assert_eq!(replied(&answer), (Reply::No, error.as_str()));

        // Nobody accepts: the kernel shakes hands, which is all that a TCP check asks, and no HTTP answer comes.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let answer = probe(address, &http()).await;
        let error = format!("GET /health?deep=1 at {address} got no response within 300 ms");
        assert_eq!(replied(&answer), (Reply::No, error.as_str()));
        // A check that is over takes no place in the backlog. These do.
        let mut held = vec![];
        let answer = loop {
            let answer = probe(address, &tcp()).await;
            if answer.reply != Reply::Yes {
                break answer;
            }
            assert!(held.len() < 16, "the backlog has no end");
            let connect = tokio::net::TcpStream::connect(address);
            held.push(tokio::time::timeout(Duration::from_millis(300), connect).await);
        };
        let error = format!("a TCP connection at {address} got no answer to its SYN within 300 ms");
        assert_eq!(replied(&answer), (Reply::Silent, error.as_str()));
    });
}

#[test]
fn checks_leave_no_sockets_behind() {
    let pair = Pair::new();
    let (sockets, port) = block_on(&pair.near, || async {
        let (address, _asked) = server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        for _ in 0..20 {
            assert_eq!(probe(address, &tcp()).await.reply, Reply::Yes);
            assert_eq!(probe(address, &http()).await.reply, Reply::Yes);
        }
        let sockets = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
        (sockets, address.port())
    });
    // Sockets of this side, whatever their state: the server's port is the remote one. What the server closed itself waits on its side.
    let remote = format!(":{port:04X}");
    let left = sockets
        .lines()
        .filter(|line| {
            line.split_whitespace()
                .nth(2)
                .is_some_and(|end| end.ends_with(&remote))
        })
        .count();
    assert_eq!(left, 0, "{sockets}");
}

#[test]
fn intervals_vary_by_so_many_percent() {
    let interval = Duration::from_secs(10);
    assert_eq!(jittered(interval, 0), interval);
    let times: Vec<_> = (0..1_000).map(|_| jittered(interval, 20)).collect();
    let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    assert!(*least >= Duration::from_secs(8) && *most <= Duration::from_secs(12));
    // Both ways, and far.
    assert!(
        *most - *least > Duration::from_secs(3),
        "{least:?} {most:?}"
    );
}

#[test]
fn checks_begin_in_step() {
    let began = Instant::now();
    let ms = |ms| began + Duration::from_millis(ms);
    let step = Duration::from_millis(20);
    for (next, then) in [(0, 0), (1, 20), (20, 20), (5_019, 5_020), (5_021, 5_040)] {
        assert_eq!(in_step(began, ms(next), step), ms(then), "{next} ms");
    }
    assert_eq!(in_step(began, ms(7), Duration::ZERO), ms(7));
}

#[test]
fn a_check_that_waits_for_its_step_ends_within_the_longest_gap() {
    let check = Check {
        jitter_percent: 0,
        ..tcp()
    };
    let began = Instant::now();
    // The one before began right after a step: almost a whole one is waited for.
    let before = began + Duration::from_nanos(1);
    let step = check.interval / Check::STEPS;
    let next = in_step(began, before + check.interval, step);
    let gap = (next + check.timeout).duration_since(before);
    assert!(gap <= check.longest_gap(), "{gap:?}");
}

/// The module at work, and what it says.
struct Checks {
    targets: watch::Sender<Vec<Target>>,
    reports: mpsc::Receiver<HealthReport>,
}

impl Checks {
    fn start(targets: Vec<Target>) -> Self {
        let (targets, watched) = watch::channel(targets);
        let (sender, reports) = mpsc::channel(64);
        let (stop, shutdown) = watch::channel(false);
        let (_, vips) = watch::channel(BTreeSet::new());
        tokio::spawn(async move {
            run(watched, vips, sender, 256, ProbeTimes::default(), shutdown)
                .await
                .unwrap();
            drop(stop);
        });
        Self { targets, reports }
    }

    /// The next report with a verdict: a check that is late on a busy machine gives none.
    async fn verdict(&mut self) -> HealthReport {
        loop {
            let report = self.next().await;
            if report.health != Health::Unknown {
                return report;
            }
        }
    }

    async fn next(&mut self) -> HealthReport {
        tokio::time::timeout(PATIENCE, self.reports.recv())
            .await
            .expect("no report")
            .expect("the module ended")
    }

    /// Waits for a verdict of one address, and gives the verdicts that its other reports told meanwhile.
    async fn until(&mut self, address: IpAddr, health: Health) -> Vec<Health> {
        let mut before = vec![];
        loop {
            let report = self.next().await;
            if report.address.ip() == address {
                if report.health == health {
                    return before;
                }
                before.push(report.health);
            }
        }
    }

    /// Waits until a backend is refusing, which it is without having been down, and stays.
    async fn refuses_and_is_not_down(&mut self, address: IpAddr) {
        let before = self.until(address, Health::Refusing).await;
        assert!(!before.contains(&Health::Down), "{before:?}");
        let silent_for = tokio::time::timeout(Duration::from_secs(4), self.reports.recv());
        assert!(
            silent_for.await.is_err(),
            "another verdict without evidence"
        );
    }
}

/// Serves on the far host for as long as the sender is kept.
fn serve(pair: &Pair) -> std::sync::mpsc::Sender<()> {
    let (stop, stopped) = std::sync::mpsc::channel();
    let host = pair.far.twin();
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        host.run(move || {
            // In both versions of IP. The kernel shakes hands; nobody needs to accept, and what is reset leaves the backlog.
            let listener = std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
            listener.set_nonblocking(true).unwrap();
            ready.send(()).unwrap();
            while stopped.recv_timeout(Duration::from_millis(5))
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                while listener.accept().is_ok() {}
            }
        });
    });
    is_ready.recv().unwrap();
    stop
}

/// Each of their checks takes its whole timeout, and there are as many of them as there are places.
#[test]
fn those_that_are_known_to_be_silent_keep_nobody_else_waiting() {
    let Network { there, behind, .. } = FOUR;
    let pair = Pair::new();
    let server = serve(&pair);
    pair.far.ip(&format!("addr del {behind} dev lo"));
    block_on(&pair.near, move || async move {
        let targets = |patience| {
            [
                ("live", there, tcp().timeout),
                ("dead", behind, patience),
                ("dead too", behind, patience),
            ]
            .map(|(name, address, timeout)| {
                let check = Check {
                    timeout,
                    at_once: 2,
                    ..tcp()
                };
                let mut target = target(address, check);
                target.name.backend = name.into();
                target
            })
            .to_vec()
        };
        let mut checks = Checks::start(targets(tcp().timeout));
        let found = HashMap::from([
            ("live".to_owned(), Health::Up),
            ("dead".to_owned(), Health::Refusing),
            ("dead too".to_owned(), Health::Refusing),
        ]);
        let mut known = HashMap::new();
        while known != found {
            let report = checks.next().await;
            known.insert(report.name.backend, report.health);
        }
        // From now on each of them would keep its place for longer than the test may take.
        checks.targets.send_replace(targets(PATIENCE * 3));
        drop(server);
        checks.until(there, Health::Refusing).await;
    });
}

#[test]
fn a_dark_host_on_the_link_is_down_within_three_seconds_and_comes_back() {
    for network in [FOUR, SIX] {
        a_dark_host_in(network);
    }
}

fn a_dark_host_in(network: Network) {
    let Network { there, .. } = network;
    let pair = Arc::new(Pair::new());
    let _server = serve(&pair);
    let network = pair.clone();
    block_on(&pair.near, move || async move {
        let mut checks = Checks::start(vec![target(there, tcp())]);
        assert_eq!(checks.until(there, Health::Up).await, []);
        network.darken();
        let dark = Instant::now();
        let before = checks.until(there, Health::Down).await;
        let found_after = dark.elapsed();
        assert!(found_after < Duration::from_secs(3), "{found_after:?}");
        assert!(
            before
                .iter()
                .all(|health| matches!(health, Health::Up | Health::Refusing))
        );
        network.brighten();
        checks.until(there, Health::Up).await;
    });
}

/// The kernel asks no neighbour of IPv6 without a link-local address, so its silence says nothing.
#[test]
fn a_neighbour_that_cannot_be_asked_is_not_down() {
    let Network { there, .. } = SIX;
    let pair = Arc::new(Pair::new());
    let _server = serve(&pair);
    let network = pair.clone();
    let near = pair.near.twin();
    block_on(&pair.near, move || async move {
        let mut checks = Checks::start(vec![target(there, tcp())]);
        checks.until(there, Health::Up).await;
        near.ip("addr flush dev near scope link");
        network.darken();
        checks.refuses_and_is_not_down(there).await;
    });
}

#[test]
fn a_routed_host_is_down_when_its_echoes_end_and_else_refusing() {
    for network in [FOUR, SIX] {
        a_routed_host_in(network);
    }
}

fn a_routed_host_in(network: Network) {
    let Network { behind, .. } = network;
    let pair = Arc::new(Pair::new());
    let _server = serve(&pair);
    let network = pair.clone();
    block_on(&pair.near, move || async move {
        let mut checks = Checks::start(vec![target(behind, tcp())]);
        checks.until(behind, Health::Up).await;
        network.far.ip(&format!("addr del {behind} dev lo"));
        checks.until(behind, Health::Down).await;
        network.far.ip(&format!("addr add {behind} dev lo"));
        checks.until(behind, Health::Up).await;
    });
    // A host that does not answer echoes while it is up gives no sign by not answering them.
    pair.far.run(|| {
        for key in ["ipv4/icmp_echo_ignore_all", "ipv6/icmp/echo_ignore_all"] {
            std::fs::write(format!("/proc/sys/net/{key}"), "1").unwrap();
        }
    });
    let network = pair.clone();
    block_on(&pair.near, move || async move {
        let mut checks = Checks::start(vec![target(behind, tcp())]);
        checks.until(behind, Health::Up).await;
        network.far.ip(&format!("addr del {behind} dev lo"));
        checks.refuses_and_is_not_down(behind).await;
    });
}

#[test]
fn a_routed_host_is_judged_by_what_was_known_of_its_echoes_before() {
    for network in [FOUR, SIX] {
        a_routed_host_that_was_known_in(network);
    }
}

fn a_routed_host_that_was_known_in(network: Network) {
    let Network { behind, .. } = network;
    let pair = Arc::new(Pair::new());
    let _server = serve(&pair);
    let known = move |answers_echoes| Target {
        answers_echoes,
        ..target(behind, tcp())
    };
    let network = pair.clone();
    block_on(&pair.near, move || async move {
        let mut checks = Checks::start(vec![known(false)]);
        let report = checks.verdict().await;
        assert_eq!((report.health, report.answers_echoes), (Health::Up, true));
        drop(checks);
        // It dies while nobody asks. Who begins to ask then has never seen it up.
        network.far.ip(&format!("addr del {behind} dev lo"));
        for (answers_echoes, verdict) in [(true, Health::Down), (false, Health::Refusing)] {
            let mut checks = Checks::start(vec![known(answers_echoes)]);
            let report = checks.verdict().await;
            let found = (report.health, report.answers_echoes);
            assert_eq!(found, (verdict, answers_echoes));
        }
        // At once, and not after a search for others that have it.
        network.far.ip(&format!("addr add {behind} dev lo nodad"));
    });
    // Echoes are dropped since nobody asked: that is seen while it is up, so that its silence is no death afterwards.
    pair.far.run(|| {
        for key in ["ipv4/icmp_echo_ignore_all", "ipv6/icmp/echo_ignore_all"] {
            std::fs::write(format!("/proc/sys/net/{key}"), "1").unwrap();
        }
    });
    let network = pair.clone();
    block_on(&pair.near, move || async move {
        let mut checks = Checks::start(vec![known(true)]);
        let report = checks.verdict().await;
        assert_eq!((report.health, report.answers_echoes), (Health::Up, false));
        network.far.ip(&format!("addr del {behind} dev lo"));
        checks.refuses_and_is_not_down(behind).await;
    });
}

#[test]
fn it_is_news_whether_a_host_answers_echoes() {
    let mut news = News::default();
    for answers_echoes in [true, false] {
        assert_eq!(news.of(Health::Up, None, answers_echoes), Some(None));
        assert_eq!(news.of(Health::Up, None, answers_echoes), None);
    }
}

#[test]
fn a_host_that_never_was_is_down_and_one_that_is_us_is_not() {
    for network in [FOUR, SIX] {
        nobody_and_us_in(network);
    }
}

fn nobody_and_us_in(network: Network) {
    let Network { here, nobody, .. } = network;
    let pair = Pair::new();
    block_on(&pair.near, move || async move {
        let mut checks = Checks::start(vec![target(nobody, tcp()), target(here, tcp())]);
        let (mut of_nobody, mut of_us) = (Health::Unknown, Health::Unknown);
        while (of_nobody, of_us) != (Health::Down, Health::Refusing) {
            let report = checks.next().await;
            if report.address.ip() == nobody {
                of_nobody = report.health;
            } else {
                of_us = report.health;
            }
        }
    });
}

#[test]
fn targets_that_stay_are_not_disturbed() {
    let pair = Arc::new(Pair::new());
    let _server = serve(&pair);
    block_on(&pair.near, || async {
        let mut checks = Checks::start(vec![target(FOUR.there, tcp())]);
        checks.until(FOUR.there, Health::Up).await;
        // Another one joins, and this one is checked in another way: it is up all along, and only the news is told.
        let asked_otherwise = Check {
            interval: Duration::from_millis(50),
            ..tcp()
        };
        checks
            .targets
            .send(vec![
                target(FOUR.behind, tcp()),
                target(FOUR.there, asked_otherwise),
            ])
            .unwrap();
        let report = checks.next().await;
        assert_eq!(
            (report.address.ip(), report.health),
            (FOUR.behind, Health::Up)
        );
        // Another address under the same name is another backend: it starts anew.
        let moved = Target {
            name: target(FOUR.behind, tcp()).name,
            ..target(FOUR.there, tcp())
        };
        checks.targets.send(vec![moved]).unwrap();
        let report = checks.next().await;
        assert_eq!(
            (report.address.ip(), report.health),
            (FOUR.there, Health::Up)
        );
    });
}

/// Else one that is refusing would be up by another name after one yes, whatever `rise` says.
#[test]
fn checks_go_on_from_the_verdict_that_was_found_by_another_name() {
    let pair = Arc::new(Pair::new());
    let _server = serve(&pair);
    block_on(&pair.near, || async {
        for (verdict, before) in [
            (Health::Unknown, vec![]),
            (Health::Refusing, vec![Health::Refusing]),
        ] {
            let known = Target {
                verdict,
                ..target(FOUR.there, tcp())
            };
            let mut checks = Checks::start(vec![known]);
            assert_eq!(checks.until(FOUR.there, Health::Up).await, before);
        }
    });
}

/// A reload that changes a service's mode or VIP makes new objects of its backends, and what is checked stays the same.
#[test]
fn another_object_in_a_targets_place_is_told_the_verdict() {
    let pair = Arc::new(Pair::new());
    let _server = serve(&pair);
    block_on(&pair.near, || async {
        // Nobody serves there: it is refused, for as long as this test runs.
        let closed = Target {
            address: SocketAddr::new(FOUR.there, PORT + 1),
            ..target(FOUR.behind, tcp())
        };
        let mut checks = Checks::start(vec![target(FOUR.there, tcp()), closed.clone()]);
        let (mut up, mut refusing) = (false, false);
        while !(up && refusing) {
            let report = checks.next().await;
            up |= report.health == Health::Up;
            refusing |= report.health == Health::Refusing;
        }
        let same_id = Numbered {
            generation: 1,
            ..FIRST
        };
        for object in [Numbered { id: 2, ..FIRST }, same_id] {
            let of = |target: Target| Target { object, ..target };
            let targets = vec![of(target(FOUR.there, tcp())), of(closed.clone())];
            checks.targets.send(targets).unwrap();
            let mut told = [checks.next().await, checks.next().await];
            told.sort_unstable_by_key(|report| report.address);
            assert_eq!(
                told.each_ref().map(|report| report.address.port()),
                [PORT, PORT + 1]
            );
            let healths = told.each_ref().map(|report| report.health);
            assert_eq!(healths, [Health::Up, Health::Refusing]);
            let [up, refusing] = told.map(|report| report.last_error.map(|last| last.ended));
            assert_eq!((up, refusing), (None, Some(None)));
        }
        // And once each.
        let more = tokio::time::timeout(tcp().interval * 4, checks.reports.recv());
        assert!(more.await.is_err(), "told twice");
    });
}

#[test]
fn a_thousand_backends_are_checked_as_often_as_asked_and_no_oftener() {
    let pair = Arc::new(Pair::new());
    let _server = serve(&pair);
    // All of them are the far host, behind its one address on the link: each is checked by TCP and by echo.
    pair.far.ip("route add local 10.79.0.0/16 dev lo");
    pair.near
        .ip(&format!("route add 10.79.0.0/16 via {}", FOUR.there));
    let check = Check {
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(2),
        ..tcp()
    };
    let targets: Vec<_> = (0..1_000u16)
        .map(|n| {
            target(
                Ipv4Addr::from_bits(0x0a4f_0000 + u32::from(n) + 1).into(),
                check.clone(),
            )
        })
        .collect();
    let network = pair.clone();
    let opened = block_on(&pair.near, move || async move {
        let count = targets.len();
        let mut checks = Checks::start(targets);
        for _ in 0..count {
            assert_eq!(checks.next().await.health, Health::Up);
        }
        // Two rounds in the steady state.
        let before = passive_opens(&network.far);
        let since = Instant::now();
        tokio::time::sleep(check.interval * 2).await;
        let rounds = since.elapsed().as_secs_f64() / check.interval.as_secs_f64();
        // No verdict has changed. (An echo may be lost on a busy machine, which is told.)
        while let Ok(report) = checks.reports.try_recv() {
            assert_eq!(report.health, Health::Up, "{}", report.name);
        }
        (passive_opens(&network.far) - before) as f64 / rounds
    });
    // A busy machine may be late, and jitter makes it a tenth more or less.
    assert!((500.0..1_150.0).contains(&opened), "{opened} a round");
}

/// How many TCP connections a host has accepted.
fn passive_opens(host: &Host) -> u64 {
    let counters = host
        .twin()
        .run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"));
    let counters = counters.unwrap();
    let mut tcp = counters
        .lines()
        .filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
    let at = names.split(' ').position(|name| name == "PassiveOpens");
    values.split(' ').nth(at.unwrap()).unwrap().parse().unwrap()
}
