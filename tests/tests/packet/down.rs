//! Flows of a dead backend whose service keeps them, or has them go elsewhere.

use std::sync::Arc;

use lab::packet::{BackendSpec, CLIENT, Client, Run, SERVICE, Which, World};
use lb_common::{backend::Serving, clock::Tick, maglev::Slot, share::Share, verdict::Reason};
use lb_userspace::{dataplane::maps, flows::Sweeper};

lab::in_both_versions![
    kept_flows_are_forwarded_and_new_ones_go_elsewhere,
    forgotten_flows_go_where_the_table_sends_them_and_stay_there,
    a_kept_flow_outlives_the_return_of_its_backend,
];

/// A world whose table gives all slots to backend 2, with a flow of [`CLIENT`] at backend 1, which is dead.
fn dead(kept: impl FnOnce(&World)) -> World {
    let mut world = World::new();
    world.send(&CLIENT.syn());
    assert_eq!(
        came(&world.send(&CLIENT.ack())),
        (Reason::Established, Some(1))
    );
    let now = world.now();
    // Backend 1 had them until a moment ago, and would be given unknown flows if it served any.
    world.table(SERVICE, &[Slot::new(2, 1, now)]);
    world.backend(&BackendSpec::l2(1).serving(Serving::None));
    kept(&world);
    world
}

/// What a packet was counted for, and at which backend.
fn came(run: &Run) -> (Reason, Option<u32>) {
    let backend = run.change.0.keys().find_map(|which| match which {
        Which::Backend(id) => Some(*id),
        _ => None,
    });
    (run.reason(), backend)
}

fn keep(world: &World) {
    let state = world.maps.state(1);
    world.maps.set_state(1, state.pacing(Share::NONE, Tick(0)));
}

fn forget(world: &World) {
    world.maps.set_state(1, world.maps.state(1).forgetting());
}

fn sweeper(world: &World) -> Sweeper {
    Sweeper::with_clock(Arc::clone(&world.maps), maps::now)
}

fn kept_flows_are_forwarded_and_new_ones_go_elsewhere() {
    let world = dead(keep);
    sweeper(&world).pass();
    assert_eq!(
        came(&world.send(&CLIENT.ack())),
        (Reason::Established, Some(1))
    );
    let other = Client(CLIENT.0, CLIENT.1 + 1);
    assert_eq!(came(&world.send(&other.syn())), (Reason::Opened, Some(2)));
    // One that nobody has recorded is sent to who can take it.
    let unknown = Client(CLIENT.0, CLIENT.1 + 2);
    assert_eq!(
        came(&world.send(&unknown.ack())),
        (Reason::Adopted, Some(2))
    );
}

fn forgotten_flows_go_where_the_table_sends_them_and_stay_there() {
    let world = dead(forget);
    // Until the sweep has been there it goes on as it was, and nobody is reset.
    assert_eq!(
        came(&world.send(&CLIENT.ack())),
        (Reason::Established, Some(1))
    );
    let census = sweeper(&world).pass();
    assert_eq!(census.swept.rehashed, 1);
    assert_eq!(came(&world.send(&CLIENT.ack())), (Reason::Adopted, Some(2)));
    assert_eq!(
        came(&world.send(&CLIENT.ack())),
        (Reason::Established, Some(2))
    );
    // Back to life, the first has no part in it any more.
    world.backend(&BackendSpec::l2(1));
    sweeper(&world).pass();
    assert_eq!(
        came(&world.send(&CLIENT.ack())),
        (Reason::Established, Some(2))
    );
}

fn a_kept_flow_outlives_the_return_of_its_backend() {
    let world = dead(keep);
    assert_eq!(
        came(&world.send(&CLIENT.ack())),
        (Reason::Established, Some(1))
    );
    world.backend(&BackendSpec::l2(1));
    assert_eq!(
        came(&world.send(&CLIENT.ack())),
        (Reason::Established, Some(1))
    );
    assert_eq!(
        sweeper(&world).pass().tables.v4.counts.young
            + sweeper(&world).pass().tables.v6.counts.young,
        1
    );
}
