//! What becomes of a backend: drained, removed, replaced, full.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use lb_common::backend::{Mode, Serving};
use lb_userspace::{config::Config, desired::Refusal, health, model::Health, status::Status};

use super::{B1, B2, Daemon, Machine, PATIENCE, backend, counted, name, running, serves};

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_drained_removed_and_gone_when_its_last_flow_ends() {
    let machine = Machine::new("life");
    let daemon = running(&machine).await;
    let status = daemon.status.borrow().clone();
    assert!(serves(&status, "b1", Serving::New) && serves(&status, "b2", Serving::New));
    assert_eq!(status.generation.applied, 1);
    assert_eq!(daemon.targets.borrow().len(), 2);
    assert_eq!(daemon.addresses.borrow().len(), 2);

    daemon.drain("b2").await.unwrap();
    daemon
        .until("b2 drains", |status| {
            serves(status, "b2", Serving::ExistingOnly)
        })
        .await;
    daemon.undrain("b2").await.unwrap();
    daemon
        .until("b2 is back", |status| serves(status, "b2", Serving::New))
        .await;
    let error = daemon.drain("b3").await.unwrap_err();
    assert!(matches!(error, Refusal::Absent(_)), "{error}");
    assert!(
        error.to_string().contains("there is no backend chat/b3"),
        "{error}"
    );

    let id = (2, 0);
    assert_eq!(IpAddr::from(machine.maps.backends.get(2).address), B2.1);
    assert_eq!(daemon.reload(machine.config(&[B1])).await, Ok(4));
    daemon.census.send_replace(Arc::new(counted(1, &[(id, 5)])));
    let status = daemon
        .until("b2 is removed", |status| {
            backend(status, "b2").is_some_and(|b2| b2.removed && b2.flows.pin == 5)
        })
        .await;
    assert!(serves(&status, "b2", Serving::ExistingOnly));
    assert_eq!(status.flows.pin, 5);
    for scans in 2..8 {
        daemon
            .census
            .send_replace(Arc::new(counted(scans, &[(id, 1)])));
    }
    daemon
        .until("one flow is left", |status| {
            backend(status, "b2").is_some_and(|b2| b2.flows.pin == 1)
        })
        .await;
    // Its clients learn of its death for as long as it has any.
    assert_eq!(daemon.targets.borrow().len(), 2);
    let scans = daemon
        .scan_while("b2 never goes", 8, |status| backend(status, "b2").is_some())
        .await;
    assert!(
        scans >= 8 + 4,
        "gone after {} scans, but it takes two full ones, each after one under way",
        scans - 8
    );
    assert!(daemon.graces.load(Ordering::SeqCst) >= 3);
    assert_eq!(machine.maps.backends.get(2).identity, 0);
    assert_eq!(daemon.targets.borrow().len(), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checks_of_a_replaced_backend_go_on_beside_those_of_the_new_one() {
    let machine = Machine::new("replaced");
    let daemon = running(&machine).await;
    let moved = ("b2", Ipv4Addr::new(10, 0, 1, 99));
    daemon.reload(machine.config(&[B1, moved])).await.unwrap();
    daemon
        .until("accepted", |status| status.generation.applied == 2)
        .await;
    let checked: BTreeSet<SocketAddr> = daemon
        .targets
        .borrow()
        .iter()
        .filter(|target| target.name == name("b2"))
        .map(|target| target.address)
        .collect();
    let both = ["10.0.1.12:80", "10.0.1.99:80"].map(|address| address.parse().unwrap());
    assert_eq!(checked, BTreeSet::from(both));
    daemon.verdict("b2", "10.0.1.99:80", Health::Up).await;
    let status = daemon
        .until("the new one serves", |status| {
            status.services[0]
                .backends
                .iter()
                .any(|b| b.address == moved.1 && b.serving == Serving::New)
        })
        .await;
    let old = status.services[0]
        .backends
        .iter()
        .find(|b| b.address == B2.1)
        .unwrap();
    assert_eq!((old.removed, old.serving), (true, Serving::ExistingOnly));
    daemon.stop().await;
}

/// Whether the one service that is wanted has two backends that are up and take new flows.
fn both_serve(status: &Status) -> bool {
    let mut services = status.services.iter().filter(|service| !service.removed);
    let Some(service) = services.next() else {
        return false;
    };
    let wanted = service.backends.iter().filter(|backend| !backend.removed);
    let serving = wanted.filter(|b| b.health == Health::Up && b.serving == Serving::New);
    !service.fail_open && serving.count() == 2
}

/// The checks themselves, whose verdicts do not change meanwhile and are therefore not told again by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn the_checks_speak_for_the_new_objects_of_a_service_whose_mode_or_vip_changes() {
    let machine = Machine::new("other-objects");
    let listeners =
        [(); 2].map(|()| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let checked = listeners
        .each_ref()
        .map(|listener| listener.local_addr().unwrap());
    let config = |mode: Mode, vip: [u8; 4]| {
        let mut config = machine.config(&[B1, B2]);
        let service = &mut config.services[0];
        (service.mode, service.vip) = (mode, vip.into());
        for (backend, address) in service.backends.iter_mut().zip(checked) {
            backend.check_address = address;
            backend.check.interval = Duration::from_millis(100);
            backend.check.timeout = Duration::from_millis(100);
        }
        config
    };
    let (vip, other_vip) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let daemon = Daemon::start(&machine.maps, config(Mode::Ipip, vip));
    let checks = tokio::spawn(health::run(
        daemon.targets.clone(),
        daemon.vips.clone(),
        daemon.health.clone(),
        16,
        health::ProbeTimes::default(),
        daemon.shutdown.subscribe(),
    ));
    for address in ["10.0.1.11", "10.0.1.12"] {
        daemon.reachable(address).await;
    }
    daemon
        .until("both serve", |status| {
            status.generation.applied > 0 && both_serve(status)
        })
        .await;
    for (what, mode, vip) in [
        ("another mode", Mode::L2, vip),
        ("another VIP", Mode::L2, other_vip),
    ] {
        let accepted = daemon.reload(config(mode, vip)).await.unwrap();
        // In the same moment: no packet ever met a service whose backends nobody knows.
        let status = daemon
            .until(what, |status| status.generation.applied == accepted)
            .await;
        assert!(both_serve(&status), "{what}: {status:#?}");
    }
    // Who is wanted again once nothing is left of it has nobody to take a verdict over from.
    let nothing = Config {
        services: vec![],
        ..machine.config(&[])
    };
    daemon.reload(nothing).await.unwrap();
    daemon
        .scan_while("they never go", 1, |status| !status.services.is_empty())
        .await;
    daemon.reload(config(Mode::Ipip, vip)).await.unwrap();
    for address in ["10.0.1.11", "10.0.1.12"] {
        daemon.reachable(address).await;
    }
    daemon
        .until("both serve again", |status| both_serve(status))
        .await;
    // And they go on speaking.
    let [first, _second] = listeners;
    drop(first);
    daemon
        .until("b1 is refusing", |status| {
            backend(status, "b1").is_some_and(|b1| b1.health == Health::Refusing)
                && serves(status, "b2", Serving::New)
        })
        .await;
    daemon.stop().await;
    tokio::time::timeout(PATIENCE, checks)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_at_its_limit_takes_no_new_flows() {
    let machine = Machine::new("limit");
    let daemon = running(&machine).await;
    let mut config = machine.config(&[B1, B2]);
    config.services[0].backends[0].part.max_connections = Some(5);
    daemon.reload(config).await.unwrap();
    let full = |status: &Arc<Status>| backend(status, "b1").is_some_and(|b| b.balance.full);
    daemon
        .census
        .send_replace(Arc::new(counted(1, &[((1, 0), 4)])));
    daemon
        .until("it is counted", |status| {
            backend(status, "b1").is_some_and(|b| b.flows.pin == 4)
        })
        .await;
    assert!(serves(&daemon.status.borrow(), "b1", Serving::New));
    daemon
        .census
        .send_replace(Arc::new(counted(2, &[((1, 0), 5)])));
    let status = daemon.until("it is full", full).await;
    assert!(serves(&status, "b1", Serving::ExistingOnly));
    assert!(serves(&status, "b2", Serving::New));
    let state = machine.maps.state(1);
    assert_eq!(state.serving(), Serving::ExistingOnly);
    // Without its limit it is as before.
    daemon.reload(machine.config(&[B1, B2])).await.unwrap();
    daemon
        .until("it serves again", |status| {
            serves(status, "b1", Serving::New)
        })
        .await;
    daemon.stop().await;
}

/// Nobody is found to be well or ill by another name.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_renamed_is_what_he_was() {
    let machine = Machine::new("renamed");
    let daemon = running(&machine).await;
    daemon.verdict("b2", "10.0.1.12:80", Health::Refusing).await;
    daemon
        .until("b2 refuses", |status| {
            serves(status, "b2", Serving::ExistingOnly)
        })
        .await;
    let given = async |config: Config| {
        let name = config.services[0].name.clone();
        daemon.reload(config).await.unwrap();
        // As it is applied for the first time: nobody has been checked since.
        let status = daemon.status.borrow().clone();
        let mut services = status.services.iter();
        let service = services.find(|service| service.name == name).unwrap();
        let found = ["b1", "b2"].map(|name| {
            let mut backends = service.backends.iter();
            let backend = backends.find(|backend| backend.name == name).unwrap();
            (backend.health, backend.serving)
        });
        (service.fail_open, found)
    };
    let mut config = machine.config(&[B1, B2]);
    config.services[0].name = "talk".to_owned();
    let (up, refusing) = (
        (Health::Up, Serving::New),
        (Health::Refusing, Serving::ExistingOnly),
    );
    for backend in &mut config.services[0].backends {
        backend.check.startup_grace = Duration::from_secs(60);
    }
    assert_eq!(given(config.clone()).await, (false, [up, refusing]));
    // If it fails from now on that counts: it is none that still starts.
    let targets = daemon.targets.borrow().clone();
    let graces = targets.iter().map(|target| target.check.startup_grace);
    assert_eq!(graces.collect::<Vec<_>>(), [Duration::ZERO; 4]);

    // Who is asked something else by another name is not known.
    config.services[0].name = "mail".to_owned();
    for backend in &mut config.services[0].backends {
        backend.check.through_vip = true;
    }
    let unknown = (Health::Unknown, Serving::New);
    assert_eq!(given(config).await, (true, [unknown, unknown]));
    daemon.stop().await;
}
