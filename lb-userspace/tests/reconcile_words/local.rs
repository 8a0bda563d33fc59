//! Backends on this host: what the maps hold of them, and in which order it gets there.

use std::net::{IpAddr, SocketAddr};

use lb_common::backend::NextHop;
use lb_userspace::{
    model::{NextHopReport, Passage, ToVip},
    status::Neighbour,
};

use super::{Machine, NOW, said, status};
use lb_userspace::reconcile::State;

const ADDRESS: &str = "10.0.1.1";

fn tell(state: &mut State, next_hop: Option<NextHop>) -> bool {
    state.next_hop(NextHopReport {
        address: ADDRESS.parse().unwrap(),
        next_hop,
        on_link: true,
    })
}

fn elsewhere() -> NextHop {
    NextHop {
        destination: [2, 0, 0, 0, 0, 1],
        ifindex: 3,
        mtu: 1_500,
        ..NextHop::default()
    }
    .from_source([10, 0, 1, 2].into())
}

/// The services at the endpoint of the only backend, and whether that is local.
fn held(machine: &Machine) -> (Vec<u16>, bool) {
    let entries = (1..machine.maps.endpoints.len()).map(|id| machine.maps.endpoints.get(id));
    let address: IpAddr = ADDRESS.parse().unwrap();
    let services = entries
        .filter(|entry| entry.port == 80 && IpAddr::from(entry.address) == address)
        .flat_map(|entry| entry.services)
        .filter(|id| *id != 0)
        .collect();
    (services, machine.maps.state(1).is_local())
}

/// Applies what is planned, and looks after each step that no packet goes to where no answer would be translated.
fn settle_step_by_step(machine: &Machine, state: &mut State) {
    let plan = state.plan(NOW);
    for operation in &plan.operations {
        operation.apply(&machine.maps, &|| ());
        let (services, is_local) = held(machine);
        let backend = machine.maps.backends.get(1);
        assert!(
            !is_local || (!services.is_empty() && backend.endpoint != 0),
            "after {operation}"
        );
    }
    state.applied(&plan, NOW);
}

fn neighbour(state: &State) -> Neighbour {
    status(state).services[0].backends[0].neighbour
}

#[test]
fn a_backend_on_this_host_is_known_by_its_endpoint_before_it_is_served() {
    let machine = Machine::new("local");
    let config = machine.config(&["b1"]);
    let mut state = machine.adopt(config.clone()).unwrap();
    settle_step_by_step(&machine, &mut state);
    assert_eq!(held(&machine), (vec![], false));

    assert!(tell(&mut state, Some(NextHop::local(1_450))));
    settle_step_by_step(&machine, &mut state);
    assert_eq!(held(&machine), (vec![1], true));
    assert_eq!(neighbour(&state), Neighbour::Local);
    assert!(!tell(&mut state, Some(NextHop::local(1_450))));

    // A restart keeps it, before anything is heard of the way to it.
    let mut state = machine.adopt(config).unwrap();
    settle_step_by_step(&machine, &mut state);
    assert_eq!(held(&machine), (vec![1], true));
    assert_eq!(neighbour(&state), Neighbour::Local);

    // It moves to another host, and back.
    tell(&mut state, Some(elsewhere()));
    machine.settle(&mut state);
    assert_eq!(neighbour(&state), Neighbour::Resolved);
    machine.settle(&mut state);
    assert_eq!(held(&machine), (vec![], false));
    tell(&mut state, Some(NextHop::local(1_450)));
    settle_step_by_step(&machine, &mut state);
    assert_eq!(held(&machine), (vec![1], true));

    tell(&mut state, None);
    machine.settle(&mut state);
    assert_eq!(neighbour(&state), Neighbour::Unresolved);
    said();
}

#[test]
fn a_backend_on_this_host_is_asked_at_its_own_address_and_not_through_the_vip() {
    let machine = Machine::new("through");
    let config = machine.config_with(&["b1"], "[service.health]\nthrough = \"vip\"\n");
    let mut state = machine.adopt(config).unwrap();
    machine.settle(&mut state);
    let through = |state: &State| {
        let targets = state.targets();
        let address: SocketAddr = (ADDRESS.parse::<IpAddr>().unwrap(), 80).into();
        assert_eq!((targets.len(), targets[0].address), (1, address));
        targets[0].through
    };
    let vip = Some(ToVip {
        vip: SocketAddr::from(([10, 0, 0, 1], 80)),
        by: Passage::Tunnel,
    });
    assert_eq!(through(&state), vip);
    tell(&mut state, Some(NextHop::local(1_450)));
    assert_eq!(through(&state), None);
    tell(&mut state, Some(elsewhere()));
    assert_eq!(through(&state), vip);
}
