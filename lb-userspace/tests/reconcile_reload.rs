//! What a reload writes, and what it leaves alone.
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{path::Path, sync::Arc};

use lb_common::{clock::Tick, net::IpVersion};
use lb_userspace::{
    config::{self, Config},
    dataplane::maps::{Capacity, Maps},
    flows::Census,
    guard::{Guard, Lists},
    plan::{Operation, Plan},
    reconcile::State,
};

const NOW: Tick = Tick(1_000);

/// Three services of two backends, of which the second has this weight, and as many more as are named.
fn config(directory: &Path, weight: u16, more: &[&str]) -> Config {
    let mut text = format!(
        "interfaces = [\"eth0\"]\nstate_dir = {directory:?}\n[limits]\nflows = 1000\nflows6 = 600\nservices = 16\nbackends = 64\ntable_slots = 16384\n"
    );
    let names = ["one", "two", "three"].iter().chain(more);
    for (n, name) in names.enumerate() {
        let weight = if *name == "two" { weight } else { 100 };
        text += &format!(
            "[[service]]\nname = \"{name}\"\nvip = \"10.0.0.{}\"\nport = 80\nmode = \"ipip\"\ntable_size = 1009\nhealth.initial = \"up\"\n",
            n + 1
        );
        for (backend, weight) in [(1, 100), (2, weight)] {
            text += &format!(
                "[[service.backend]]\nname = \"b{backend}\"\naddress = \"10.0.{}.{backend}\"\nweight = {weight}\n",
                n + 1
            );
        }
    }
    config::parse(Path::new("reload.toml"), &text)
        .unwrap()
        .config
}

/// Which service an operation is for; none if for no one in particular.
fn service_of(operation: &Operation) -> Option<u16> {
    // Ids are given in order, two backends to a service.
    let of_backend = |id: u32| u16::try_from(id.div_ceil(2)).ok();
    match *operation {
        Operation::SetState { backend: id, .. }
        | Operation::SetTranslated { backend: id, .. }
        | Operation::SetHop { backend: id, .. }
        | Operation::WriteBackend { id, .. }
        | Operation::ClearBackend { id } => of_backend(id),
        Operation::WriteTable { service: id, .. }
        | Operation::NameTable { service: id, .. }
        | Operation::WriteRanges { service: id, .. }
        | Operation::WriteGuard { service: id, .. }
        | Operation::WriteService { id, .. }
        | Operation::ForgetHandovers { service: id, .. }
        | Operation::ClearService { id } => Some(id),
        Operation::SetWord { .. }
        | Operation::WritePair { .. }
        | Operation::WriteEndpoint { .. }
        | Operation::ClearPair { .. }
        | Operation::ClearEndpoint { .. }
        | Operation::Grace => None,
    }
}

#[test]
fn services_that_are_the_same_in_a_new_file_are_not_written() {
    let directory = std::env::temp_dir().join(format!("tether-reload-{}", std::process::id()));
    let capacity = Capacity::for_flows(1_000, 600, 16, 64, 16_384, 1);
    let maps = Arc::new(Maps::in_memory(capacity).unwrap());
    let census = Arc::new(Census::default());
    let first = config(&directory, 100, &[]);
    let mut state = State::adopt(Arc::clone(&maps), [1, 2, 3, 4], first, census, NOW).unwrap();
    let apply = |state: &mut State| -> Plan {
        let plan = state.plan(NOW);
        for operation in &plan.operations {
            operation.apply(&maps, &|| ());
        }
        state.applied(&plan, NOW);
        plan
    };
    assert!(apply(&mut state).operations.len() > 9);
    assert_eq!(apply(&mut state).operations, []);

    state.reload(config(&directory, 100, &[])).unwrap();
    assert_eq!(apply(&mut state).operations, [], "the same file");
    state.reload(config(&directory, 50, &["four"])).unwrap();
    let plan = apply(&mut state);
    let mut written: Vec<u16> = plan.operations.iter().filter_map(service_of).collect();
    written.sort_unstable();
    written.dedup();
    assert_eq!(written, [2, 4], "{:?}", plan.operations);
    // Lists that change are written, and nothing else of their service.
    let guarded = |deny: &[&str]| {
        let mut config = config(&directory, 50, &["four"]);
        for service in &mut config.services {
            let own = if service.name == "one" { deny } else { &[] };
            let prefixes = ["192.0.2.0/24"].iter().chain(own);
            let deny = prefixes.map(|text| text.parse().unwrap()).collect();
            let lists = Lists::new(Vec::new(), deny);
            service.guard = Some(Guard::new(IpVersion::V4, lists, None));
        }
        config
    };
    state.reload(guarded(&[])).unwrap();
    apply(&mut state);
    state.reload(guarded(&["198.51.100.7"])).unwrap();
    let operations = apply(&mut state).operations;
    assert!(
        matches!(
            operations[..],
            [
                Operation::WriteRanges { service: 1, .. },
                Operation::WriteGuard { service: 1, .. }
            ]
        ),
        "{operations:?}"
    );
    state.reload(config(&directory, 50, &["four"])).unwrap();
    apply(&mut state);
    // Removed services are in no haste: their flows come first, and the others are left alone all the same.
    state.reload(config(&directory, 50, &[])).unwrap();
    let plan = apply(&mut state);
    assert!(
        plan.operations
            .iter()
            .filter_map(service_of)
            .all(|id| id == 4),
        "{:?}",
        plan.operations
    );
    std::fs::remove_dir_all(directory).unwrap();
}
