//! What is left of flows, asked for by name.

use lb_common::{
    backend::{Backend, BackendState, Forwarding, Mode, Serving},
    flow::{
        v4,
        word::{BackendRef, State as Word, Word as Value},
    },
};

use super::*;
use crate::{
    dataplane::maps,
    flows::left::Left,
    model::{Admin as Intent, Health},
    status::{BackendStatus, Generation, Neighbour, ServiceStatus},
};

fn backend(name: &str, last: u8, admin: Intent, removed: bool) -> BackendStatus {
    BackendStatus {
        balance: Default::default(),
        name: name.into(),
        address: [10, 0, 1, last].into(),
        port: 80,
        weight: 100,
        admin,
        removed,
        health: Health::Up,
        serving: Serving::ExistingOnly,
        neighbour: Neighbour::Resolved,
        last_error: None,
        last_error_ended: None,
        drain: None,
        flows: Default::default(),
        snat: Vec::new(),
        identity: None,
        mode: None,
    }
}

/// A service whose backends have the ids 1 and up, and a flow each.
fn populate(daemon: &Daemon) {
    let service = ServiceStatus {
        full: false,
        balance: Default::default(),
        name: "chat & co".into(),
        vip: [10, 0, 0, 1].into(),
        port: 80,
        mode: Mode::Ipip,
        removed: false,
        fail_open: false,
        fail_open_flows: 0,
        clients: None,
        guard: None,
        resets_suspended: None,
        error: None,
        backends: vec![
            backend("b1", 11, Intent::Draining, false),
            backend("b2", 12, Intent::Active, false),
            backend("b3", 13, Intent::Disabled, false),
            // It had another address.
            backend("b2", 14, Intent::Draining, true),
            // Its service had another mode.
            BackendStatus {
                identity: Some(77),
                ..backend("b3", 13, Intent::Draining, true)
            },
        ],
    };
    for (id, backend) in (1..).zip(&service.backends) {
        let generation = 3;
        let state = BackendState::new(generation, Serving::ExistingOnly, Forwarding::L2, 0, true);
        let entry = Backend {
            state: state.0,
            identity: backend.identity(&service),
            ..Default::default()
        };
        daemon.maps.backends.set(id, &entry);
        let reference = BackendRef::new(id, generation);
        let mut bucket = daemon.maps.flows4.get(id);
        bucket.entries[0] = v4::Entry {
            key: v4::Key::new(id, 40_000, 1).0,
            value: Value::live(Word::Pin, reference, 0, maps::now(), 0).0,
        };
        daemon.maps.flows4.set(id, &bucket);
    }
    let status = Status {
        generation: Generation {
            accepted: 1,
            resolved: 1,
            applied: 1,
        },
        services: vec![service],
        ..some_status()
    };
    daemon.status.send_replace(Arc::new(status));
}

fn name(backend: &str) -> BackendName {
    BackendName {
        service: "chat & co".into(),
        backend: backend.into(),
    }
}

#[tokio::test]
async fn flows_are_found_by_their_backends_names() {
    let daemon = Daemon::start("left").await;
    populate(&daemon);
    let of = async |name: Option<BackendName>| {
        let left = daemon.client.left(name.as_ref(), None).await.unwrap();
        let told = left.into_iter().map(|left| {
            assert_eq!((left.service.as_str(), left.port), ("chat & co", 80));
            (
                left.backend,
                left.address.to_string(),
                left.leaving,
                left.left.flows(),
            )
        });
        told.collect::<Vec<_>>()
    };
    let told = |backend: &str, address: &str, leaving| {
        (backend.to_owned(), address.to_owned(), leaving, 1)
    };
    assert_eq!(of(Some(name("b1"))).await, [told("b1", "10.0.1.11", true)]);
    let both = [
        told("b2", "10.0.1.12", false),
        told("b2", "10.0.1.14", true),
    ];
    assert_eq!(of(Some(name("b2"))).await, both);
    assert_eq!(of(Some(name("b9"))).await, []);
    // One of today, and one of before a change of mode: each has its own flow.
    let old_and_new = [told("b3", "10.0.1.13", true), told("b3", "10.0.1.13", true)];
    assert_eq!(of(Some(name("b3"))).await, old_and_new);
    assert_eq!(of(None).await.len(), 5);
}

#[tokio::test]
async fn a_flow_is_idle_as_who_asks_says() {
    let daemon = Daemon::start("left-idle").await;
    populate(&daemon);
    let reference = BackendRef::new(1, 3);
    let mut bucket = daemon.maps.flows4.get(0);
    let minutes_ago = lb_common::clock::Tick(maps::now().0.wrapping_sub(30));
    bucket.entries[1] = v4::Entry {
        key: v4::Key::new(99, 40_000, 1).0,
        value: Value::live(Word::Pin, reference, 0, minutes_ago, 0).0,
    };
    daemon.maps.flows4.set(0, &bucket);
    let left = async |idle_after| {
        let left = daemon.client.left(Some(&name("b1")), idle_after).await;
        let Left { active, idle, .. } = left.unwrap()[0].left;
        (active, idle)
    };
    assert_eq!(left(None).await, (2, 0));
    assert_eq!(left(Some(Duration::from_mins(10))).await, (2, 0));
    assert_eq!(left(Some(Duration::from_mins(1))).await, (1, 1));
    let error = daemon.client.left(None, Some(Duration::ZERO)).await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "0ms is not from 10s to 240h"
    );
}

/// Else whoever waits would take the empty list of a daemon that has read nothing yet for the end.
#[tokio::test]
async fn a_daemon_that_knows_nothing_yet_says_so() {
    let daemon = Daemon::start("left-starting").await;
    let error = daemon.client.left(None, None).await.unwrap_err();
    assert!(matches!(error, client::Error::Later(_)), "{error:?}");
}
