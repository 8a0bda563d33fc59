//! Short-lived clients that come without a pause: each opens a connection, has one echo and leaves. Some come again and again
//! from the same few ports.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::ledger::Visit;
use crate::namespace::Namespace;
use crate::peer::client::{Clients, Close, Plan};
use crate::peer::raw;
use crate::tether;
use crate::topology::Lab;

/// Between two visits of one visitor.
const PAUSE: Duration = Duration::from_millis(100);
const WAYS: [Close; 3] = [Close::Orderly, Close::Abort, Close::Vanish];
/// Ports that are used again: below those that the kernel chooses from.
const PORTS: std::ops::Range<u16> = 2_000..2_008;

/// Running visitors.
#[derive(Debug)]
pub(super) struct Visitors {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<Visit>>>>,
}

impl Visitors {
    /// Starts them: two that come from any port, and one from [`PORTS`].
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(super) fn start(lab: &Lab, plan: Plan, seed: u64) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = vec![];
        for number in 0..3 {
            let returns = number == 0;
            let sources = if returns {
                &lab.sources()[..1]
            } else {
                lab.sources()
            };
            let clients = Clients::start(lab.client(), sources, seed ^ number)?;
            let (stop, host) = (stop.clone(), lab.client().clone());
            let (balancer, source) = (lab.balancer().clone(), lab.sources()[0]);
            threads.push(
                std::thread::Builder::new()
                    .name("lab-visitor".into())
                    .spawn(move || {
                        if returns {
                            come_again(&clients, source, [&host, &balancer], plan, &stop)
                        } else {
                            Ok(come(&clients, plan, &stop))
                        }
                    })?,
            );
        }
        Ok(Self { stop, threads })
    }

    /// Ends them and gives all visits.
    ///
    /// # Errors
    /// When one has failed otherwise than by a visit.
    pub(super) fn stop(mut self) -> Result<Vec<Visit>> {
        self.stop.store(true, Ordering::Release);
        let mut visits = vec![];
        for thread in self.threads.drain(..) {
            let joined = thread.join();
            visits.extend(joined.map_err(|_| anyhow!("a visitor's thread panicked"))??);
        }
        Ok(visits)
    }
}

impl Drop for Visitors {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn come(clients: &Clients, plan: Plan, stop: &AtomicBool) -> Vec<Visit> {
    let mut visits = vec![];
    while !stop.load(Ordering::Acquire) {
        let turn = visits.len();
        let plan = if turn.is_multiple_of(2) {
            plan
        } else {
            plan.plain()
        };
        visits.push(visit(clients, plan, WAYS[turn % WAYS.len()]));
        std::thread::sleep(PAUSE);
    }
    visits
}

fn come_again(
    clients: &Clients,
    source: IpAddr,
    [host, balancer]: [&Namespace; 2],
    plan: Plan,
    stop: &AtomicBool,
) -> Result<Vec<Visit>> {
    let mut visits = vec![];
    // The first leaves each port without a word, so that an entry stays behind that nothing ends. Were that to happen twice, then where clients
    // alone are seen no third connection could be told from a forgery, and it would share the way of one of the two, draining or not.
    let first = PORTS.zip(std::iter::repeat(Close::Vanish));
    let later = PORTS.cycle().zip(
        [Close::Orderly, Close::Abort, Close::Orderly]
            .into_iter()
            .cycle(),
    );
    let turns = first.chain(later);
    let begun = Instant::now();
    for (port, how) in turns.take_while(|_| !stop.load(Ordering::Acquire)) {
        // Until the end of the last connection is acknowledged the kernel keeps the port, and where a host is dark that takes long.
        if raw::is_free(host, port)? {
            let mut visit = visit(clients, plan.from_port(port), how);
            if let Some(failure) = &mut visit.failure {
                let client = SocketAddr::new(source, port);
                let (after, told) = (begun.elapsed(), explained(balancer, client, plan.target));
                *failure += &format!(" from port {port} again after {after:.0?}; {told}");
            }
            visits.push(visit);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(visits)
}

/// What Tether says that becomes of a packet of a client's.
fn explained(balancer: &Namespace, client: SocketAddr, target: SocketAddr) -> String {
    let asked = ["explain", &client.to_string(), &target.to_string()];
    match tether::succeed(balancer, &asked) {
        Ok(told) => told.lines().map(str::trim).collect::<Vec<_>>().join(" / "),
        // Nobody may live whom it could be asked of.
        Err(error) => format!("{error:#}"),
    }
}

fn visit(clients: &Clients, plan: Plan, how: Close) -> Visit {
    let from = Instant::now();
    let connection = match clients.open_one(plan) {
        Ok(connection) => connection,
        Err(error) => {
            return Visit {
                from,
                until: Instant::now(),
                backend: None,
                failure: Some(format!("{error:#}")),
            };
        }
    };
    let echo = connection.echo();
    let until = Instant::now();
    let first = connection.history().lives.into_iter().next();
    // What has failed has ended.
    let _ = connection.close(how);
    Visit {
        from,
        until,
        backend: first.map(|life| life.backend),
        failure: echo.err().map(|error| format!("{error:#}")),
    }
}
