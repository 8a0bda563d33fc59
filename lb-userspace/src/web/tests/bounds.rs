//! How many samples there are: bounded by the configuration, whoever connects.

use super::*;
use crate::{flows::Sweeper, inventory::tests as shown};

/// A status of so many services with so many backends each, every one of which has all that a backend may have.
pub(super) fn a_status_of(services: u16, backends: u16) -> Status {
    let mut status = a_status();
    let service = status.services.remove(0);
    let backend = service.backends[0].clone();
    let backends: Vec<_> = (0..backends)
        .map(|number| BackendStatus {
            name: format!("b{number}"),
            port: 80 + number,
            ..backend.clone()
        })
        .collect();
    status.services = (0..services)
        .map(|number| ServiceStatus {
            name: format!("chat{number}"),
            port: 80 + number,
            backends: backends.clone(),
            ..service.clone()
        })
        .collect();
    status
}

/// The samples of such services, the first of which has so many flows, each of another client.
fn samples(services: u16, backends: u16, flows: u32) -> usize {
    let mut status = a_status_of(services, backends);
    let maps = Arc::new(shown::maps_of(&status));
    shown::fill(&maps, flows);
    let census = Sweeper::with_clock(maps.clone(), || shown::NOW).pass();
    assert_eq!(census.total().pin, u64::from(flows));
    // Backends have ids from 5 on, in their order.
    for (id, backend) in (5..).zip(&mut status.services[0].backends) {
        if let Some(counts) = census.by_backend.get(&(id, 1)) {
            backend.flows = *counts;
        }
    }
    let probes = ProbeTimes::default();
    for service in &status.services {
        let times = probes.of(&service.name);
        times.note(Reply::Yes, Duration::from_millis(3));
    }
    let metrics = Metrics {
        maps,
        status: Arc::new(status),
        census: Arc::new(census),
        probes,
        told: Arc::default(),
        runs: crate::web::RunSource(Arc::new(|| None)),
    };
    let text = metrics.text().unwrap();
    text.lines().filter(|line| !line.starts_with('#')).count()
}

#[test]
fn samples_grow_with_services_and_with_backends_in_a_straight_line() {
    let one = samples(1, 1, 0);
    let of_a_backend = samples(1, 2, 0) - one;
    let of_a_service = samples(2, 1, 0) - one - of_a_backend;
    assert!(
        of_a_backend > 10 && of_a_service > 10,
        "{of_a_backend} for a backend, {of_a_service} for a service"
    );
    for (services, backends) in [(3, 3), (5, 2), (2, 5)] {
        let more_services = usize::from(services) - 1;
        let more_backends = usize::from(services * backends) - 1;
        assert_eq!(
            samples(services, backends, 0),
            one + more_services * of_a_service + more_backends * of_a_backend,
            "{services} services of {backends} backends"
        );
    }
}

#[test]
fn flows_and_clients_bring_no_samples() {
    let without = samples(2, 2, 0);
    for flows in [1, 50, 2_000] {
        assert_eq!(samples(2, 2, flows), without, "with {flows} flows");
    }
}
