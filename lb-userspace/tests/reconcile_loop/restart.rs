//! What outlives the daemon, and what the next one waits for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use lb_common::{
    backend::{Backend, Serving},
    maglev::Slot,
    service::Service,
};
use lb_userspace::{dataplane::maps::Maps, desired::Refusal, model::Health, status::Status};

use super::{B1, B2, Daemon, Machine, PATIENCE, backend, counted, running, serves, slots_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_ids_drains_and_names() {
    let machine = Machine::new("restart");
    let daemon = running(&machine).await;
    daemon.drain("b2").await.unwrap();
    daemon
        .until("b2 drains", |status| {
            serves(status, "b2", Serving::ExistingOnly)
        })
        .await;
    daemon
        .until("all is applied", |status| status.generation.applied == 2)
        .await;
    daemon.stop().await;
    let before = [1, 2].map(|id| machine.maps.backends.get(id));
    let table = machine.maps.services.get(1);

    // The new daemon's configuration no longer has b1: its name is known all the same.
    let daemon = Daemon::start(&machine.maps, machine.config(&[B2]));
    let status = daemon.until("adopted", |status| status.pid != 0).await;
    let b1 = backend(&status, "b1").expect("the name of the removed backend is known");
    assert!(b1.removed && b1.address == B1.1);
    assert_eq!(
        [1, 2].map(|id| machine.maps.backends.get(id)),
        before,
        "nothing changes before the first word"
    );
    assert_eq!(machine.maps.services.get(1), table);
    daemon.reachable("10.0.1.12").await;
    daemon.verdict("b2", "10.0.1.12:80", Health::Up).await;
    let status = daemon
        .until("applied", |status| status.generation.applied > 0)
        .await;
    let b2 = backend(&status, "b2").unwrap();
    assert_eq!(
        (b2.serving, b2.removed),
        (Serving::ExistingOnly, false),
        "still drained"
    );
    assert_eq!(
        [1, 2].map(|id| machine.maps.backends.get(id).identity),
        before.map(|entry| entry.identity)
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_first_word_it_goes_on_after_a_bounded_wait() {
    let machine = Machine::new("silence");
    let daemon = Daemon::start(&machine.maps, machine.config(&[B1, B2]));
    let status = daemon
        .until("applied", |status| status.generation.applied > 0)
        .await;
    assert!(status.services[0].fail_open, "nobody is known to be up");
    assert!(serves(&status, "b1", Serving::New));
    daemon.stop().await;
}

/// The bound of the wait for first words.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// What packets to the service are steered by: itself, its backends, and the tables.
type Steering = (Service, [Backend; 2], Vec<Slot>);

fn steering(maps: &Maps) -> Steering {
    (
        maps.services.get(1),
        [1, 2].map(|id| maps.backends.get(id)),
        (0..10_000).map(|at| maps.tables.get(at)).collect(),
    )
}

/// Starts a daemon whose file no longer has b1, on what one has left that served with both. Gives what that has left, and the time
/// before it began.
async fn follow_without_b1(machine: &Machine) -> (Daemon, Steering, Instant) {
    running(machine).await.stop().await;
    assert!(slots_of(&machine.maps, 1) > 0);
    let (left, begun) = (steering(&machine.maps), Instant::now());
    let daemon = Daemon::start(&machine.maps, machine.config(&[B2]));
    (daemon, left, begun)
}

/// Asserts that b1 is out of the table, and not cut off.
fn assert_b1_drains(machine: &Machine, status: &Status) {
    let b1 = backend(status, "b1").unwrap();
    assert_eq!((b1.removed, b1.serving), (true, Serving::ExistingOnly));
    assert_eq!(slots_of(&machine.maps, 1), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_takes_nothing_away_before_the_first_word() {
    let machine = Machine::new("first-word");
    let (daemon, left, begun) = follow_without_b1(&machine).await;
    daemon.until("adopted", |status| status.pid != 0).await;
    // Something else is heard: a loop that does not wait has applied its plan before it shows that.
    let hear_of_flows = async |scans: u64| {
        let flows = counted(scans, &[((2, 0), scans)]);
        daemon.census.send_replace(Arc::new(flows));
        daemon
            .until("the flows are heard of", |status| {
                backend(status, "b2").is_some_and(|b2| b2.flows.pin == scans)
            })
            .await;
        // On a machine that takes so long, the wait may be over by right.
        assert!(
            steering(&machine.maps) == left || begun.elapsed() >= FIRST_WORD,
            "changed after {:?}",
            begun.elapsed()
        );
    };
    for scans in 1..=3 {
        hear_of_flows(scans).await;
    }
    // Half of the word on b2.
    daemon.reachable("10.0.1.12").await;
    hear_of_flows(4).await;
    daemon.verdict("b2", "10.0.1.12:80", Health::Up).await;
    let status = daemon
        .until("applied", |status| status.generation.applied > 0)
        .await;
    assert_b1_drains(&machine, &status);
    daemon.stop().await;
}

/// A drain's answer is its promise that no new flow comes, and a restart waits before it applies anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_while_the_first_word_is_awaited_is_answered_once_it_is_in_force() {
    let machine = Machine::new("first-word-drain");
    running(&machine).await.stop().await;
    assert!(slots_of(&machine.maps, 1) > 0);
    let begun = Instant::now();
    let daemon = Daemon::start(&machine.maps, machine.config(&[B1, B2]));
    let absent = daemon.drain("b3").await.unwrap_err();
    assert!(matches!(absent, Refusal::Absent(_)), "{absent}");
    // A refusal waits for nothing, but on a machine that takes so long the wait may be over by right.
    let resolved = daemon.status.borrow().generation.resolved;
    assert!(
        resolved == 0 || begun.elapsed() >= FIRST_WORD,
        "answered after {:?}",
        begun.elapsed()
    );
    daemon.drain("b1").await.unwrap();
    assert_eq!(
        (slots_of(&machine.maps, 1), machine.maps.state(1).serving()),
        (0, Serving::ExistingOnly)
    );
    let status = daemon.status.borrow().clone();
    assert!(serves(&status, "b1", Serving::ExistingOnly), "{status:?}");
    assert!(serves(&status, "b2", Serving::New), "{status:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_takes_nothing_away_before_the_bound_without_a_word() {
    let machine = Machine::new("first-word-bound");
    let (daemon, left, begun) = follow_without_b1(&machine).await;
    while steering(&machine.maps) == left {
        assert!(begun.elapsed() < PATIENCE, "b1 never leaves");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(begun.elapsed() >= FIRST_WORD, "{:?}", begun.elapsed());
    let status = daemon
        .until("applied", |status| status.generation.applied > 0)
        .await;
    assert_b1_drains(&machine, &status);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_fills_no_full_backend() {
    let machine = Machine::new("limit-restart");
    let limited = || {
        let mut config = machine.config(&[B1, B2]);
        config.services[0].backends[0].part.max_connections = Some(5);
        config
    };
    let daemon = running(&machine).await;
    daemon.reload(limited()).await.unwrap();
    daemon
        .census
        .send_replace(Arc::new(counted(1, &[((1, 0), 5)])));
    daemon
        .until("it is full", |status| {
            serves(status, "b1", Serving::ExistingOnly)
        })
        .await;
    daemon.stop().await;
    // Nothing is counted yet by the daemon that follows.
    let daemon = Daemon::start(&machine.maps, limited());
    for (backend, address) in [("b1", "10.0.1.11"), ("b2", "10.0.1.12")] {
        daemon.reachable(address).await;
        daemon
            .verdict(backend, &format!("{address}:80"), Health::Up)
            .await;
    }
    let status = daemon
        .until("applied", |status| status.generation.applied > 0)
        .await;
    assert!(serves(&status, "b1", Serving::ExistingOnly));
    assert!(serves(&status, "b2", Serving::New));
    daemon.stop().await;
}
