//! What cuts nobody: a host that lives is `refusing` at worst, whatever has become of the process on it.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener as StdListener,
};

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork, getppid},
};

use super::*;
use crate::testnet::Host;

#[test]
fn a_live_host_without_an_answer_is_refusing_and_never_down() {
    for network in [FOUR, SIX] {
        a_live_host_in(network);
    }
}

fn a_live_host_in(network: Network) {
    let Network { here, there, .. } = network;
    let pair = Arc::new(Pair::new());
    let server = serve(&pair);
    let network = pair.clone();
    block_on(&pair.near, move || async move {
        let mut checks = Checks::start(vec![target(there, tcp())]);
        checks.until(there, Health::Up).await;
        // A closed port is refused by the host's kernel.
        drop(server);
        assert!(
            !checks
                .until(there, Health::Refusing)
                .await
                .contains(&Health::Down)
        );
        let _server = serve(&network);
        checks.until(there, Health::Up).await;
        // A firewall that drops without a word: ARP and NDP still answer.
        network.far.ip(&format!("route add blackhole {here}"));
        assert!(
            !checks
                .until(there, Health::Refusing)
                .await
                .contains(&Health::Down)
        );
        let silent_for = tokio::time::timeout(Duration::from_secs(4), checks.reports.recv());
        assert!(
            silent_for.await.is_err(),
            "another verdict about a live host"
        );
    });
}

/// A process that listens, on a host: one that can be stopped as a whole.
struct Process(Pid);

impl Process {
    /// Answers every request on all addresses with a 200. The backlog is as short as can be.
    fn start(host: &Host) -> Self {
        host.run(|| {
            let listener = listener(PORT);
            let parent = nix::unistd::getpid();
            // SAFETY: until it ends, the child only makes system calls on what was made before: it neither allocates nor takes locks, which other threads
            // of the parent may have held at the fork.
            match unsafe { fork() }.unwrap() {
                ForkResult::Parent { child } => Self(child),
                ForkResult::Child => {
                    // It must not outlive a test that panics; the thread that forked it is the host's and ends with it.
                    let dies_with_parent = prctl::set_pdeathsig(Signal::SIGKILL).is_ok();
                    if dies_with_parent && getppid() == parent {
                        answer_all(&listener);
                    }
                    // SAFETY: it has no arguments that could be wrong, and runs nothing of the parent's.
                    unsafe { libc::_exit(0) }
                }
            }
        })
    }

    fn signal(&self, signal: Signal) {
        kill(self.0, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

fn answer_all(listener: &StdListener) {
    let mut request = [0; 1_024];
    while let Ok((mut stream, _)) = listener.accept() {
        let _ = stream.read(&mut request);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    }
}

/// Listens on all addresses, with room for two connections that nobody has accepted.
fn listener(port: u16) -> StdListener {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    socket.bind(&all.into()).unwrap();
    socket.listen(1).unwrap();
    socket.into()
}

/// Waits for `refusing`, and then longer than a death would take: it never comes.
async fn refuses(checks: &mut Checks, address: IpAddr) -> String {
    let mut last;
    loop {
        let report = checks.next().await;
        assert_ne!(report.health, Health::Down, "{report:?}");
        last = report.last_error;
        if report.address.ip() == address && report.health == Health::Refusing {
            break;
        }
    }
    let later = tokio::time::Instant::now() + Duration::from_secs(4);
    while let Ok(report) = tokio::time::timeout_at(later, checks.next()).await {
        assert_eq!(report.health, Health::Refusing, "{report:?}");
        last = report.last_error;
    }
    last.unwrap().text
}

/// As the kernel sees it, such a process listens still: it is by its silence that HTTP tells.
#[test]
fn a_stopped_process_is_refusing_on_the_link_and_behind_a_router() {
    for address in [FOUR.there, SIX.there, FOUR.behind] {
        let pair = Arc::new(Pair::new());
        let process = Process::start(&pair.far);
        block_on(&pair.near, move || async move {
            let mut checks = Checks::start(vec![target(address, http())]);
            checks.until(address, Health::Up).await;
            process.signal(Signal::SIGSTOP);
            refuses(&mut checks, address).await;
            process.signal(Signal::SIGCONT);
            checks.until(address, Health::Up).await;
        });
    }
}

/// Such a host drops SYNs without a word, as a dead one does; but it lives.
#[test]
fn a_full_accept_queue_is_refusing_on_the_link_and_behind_a_router() {
    for address in [FOUR.there, SIX.there, FOUR.behind] {
        let pair = Arc::new(Pair::new());
        let process = Process::start(&pair.far);
        block_on(&pair.near, move || async move {
            let mut checks = Checks::start(vec![target(address, tcp())]);
            checks.until(address, Health::Up).await;
            process.signal(Signal::SIGSTOP);
            let mut held = vec![];
            loop {
                let connect = tokio::net::TcpStream::connect((address, PORT));
                match tokio::time::timeout(Duration::from_millis(300), connect).await {
                    Ok(connected) => held.push(connected.unwrap()),
                    Err(_) => break,
                }
                assert!(held.len() < 16, "the queue has no end");
            }
            let error = refuses(&mut checks, address).await;
            assert_eq!(
                error,
                format!(
                    "a TCP connection at {} got no answer to its SYN within 300 ms",
                    SocketAddr::new(address, PORT)
                )
            );
            drop(held);
            process.signal(Signal::SIGCONT);
            checks.until(address, Health::Up).await;
        });
    }
}

#[test]
fn the_last_error_is_kept_with_its_end() {
    let pair = Arc::new(Pair::new());
    let there = FOUR.there;
    let network = pair.clone();
    block_on(&pair.near, move || async move {
        let mut checks = Checks::start(vec![target(there, tcp())]);
        checks.until(there, Health::Refusing).await;
        let begun = SystemTime::now();
        let _server = serve(&network);
        let text = format!("a TCP connection at {there}:{PORT} was refused");
        // The first good check ends the error; the second makes the verdict, and says nothing new of the error.
        for health in [Health::Refusing, Health::Up] {
            let report = checks.next().await;
            assert_eq!(report.health, health);
            let error = report.last_error.unwrap();
            assert_eq!(error.text, text);
            assert!(error.ended.unwrap() >= begun);
        }
    });
}

#[test]
fn a_start_has_its_grace_and_ends_with_it() {
    let pair = Arc::new(Pair::new());
    let there = FOUR.there;
    block_on(&pair.near, move || async move {
        let grace = Duration::from_secs(3);
        let patient = Check {
            startup_grace: grace,
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(100),
            ..tcp()
        };
        let begun = Instant::now();
        let mut checks = Checks::start(vec![target(there, patient)]);
        let report = checks.next().await;
        assert_eq!(report.health, Health::Unknown);
        assert!(report.last_error.is_some());
        checks.until(there, Health::Refusing).await;
        assert!(begun.elapsed() >= grace, "{:?}", begun.elapsed());
    });
}

#[test]
fn no_more_checks_are_under_way_than_a_service_allows() {
    let pair = Arc::new(Pair::new());
    block_on(&pair.near, move || async move {
        // Nobody has any of these addresses, so that each check takes its whole time.
        let check = Check {
            at_once: 4,
            timeout: Duration::from_millis(400),
            ..tcp()
        };
        let targets: Vec<_> = (1..=12u8)
            .map(|n| target(IpAddr::from([10, 77, 0, 100 + n]), check.clone()))
            .collect();
        let begun = Instant::now();
        let mut checks = Checks::start(targets);
        let mut seen = std::collections::HashSet::new();
        let mut times = vec![];
        while seen.len() < 12 {
            if seen.insert(checks.next().await.address) {
                times.push(begun.elapsed());
            }
        }
        // Three rounds of four, each as long as a check: neither all at once nor one by one.
        assert!(times[4] >= Duration::from_millis(800), "{times:?}");
        assert!(times[8] >= Duration::from_millis(1_200), "{times:?}");
        assert!(times[11] < Duration::from_millis(12 * 400), "{times:?}");
    });
}
