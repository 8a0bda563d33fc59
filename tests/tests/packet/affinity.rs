//! Services that place clients and not flows.

use std::collections::HashSet;

use lab::packet::{
    BackendSpec, CLIENT, Client, Packet, SERVICE, VIP, World, entries::backend, flow::ago,
    forwarded, nat::MODES,
};
use lb_common::{
    backend::Serving,
    flow::word::{BackendRef, State},
    verdict::Reason,
};
use lb_userspace::plan::Operation;

lab::in_both_versions![
    all_flows_of_a_client_begin_at_one_backend,
    clients_are_spread_all_the_same,
    a_client_keeps_its_backend_whatever_the_table_says,
    what_a_client_kept_counts_for_nothing_if_it_takes_no_new_flows,
    what_a_client_kept_counts_for_nothing_once_it_is_gone,
    what_a_client_kept_is_not_taken_for_who_has_its_id_now,
    a_client_keeps_its_backend_until_the_daemon_forgets_it,
    what_a_client_kept_is_nothing_to_another_service_or_client,
    a_flow_that_has_an_entry_stays_where_it_is,
    a_client_keeps_its_backend_where_addresses_are_translated,
    an_unknown_segment_goes_where_its_client_is_placed,
];

/// A connection of the client's from another port.
fn from_port(port: u16) -> Client {
    Client(CLIENT.0, port)
}

/// A world with eight backends, whose slots are spread, and a service that places clients.
fn world() -> World {
    let mut world = World::new();
    for id in 1..=8 {
        world.backend(&BackendSpec::l2(id));
    }
    let owners: Vec<u32> = (0..64).map(|slot| 1 + slot % 8).collect();
    world.share_between(&owners);
    world.place_clients(SERVICE);
    world
}

fn opened_at(world: &World, client: Client) -> u32 {
    let run = world.send(&client.syn());
    assert_eq!(run.reason(), Reason::Opened);
    run.backend().expect("it was forwarded")
}

fn all_flows_of_a_client_begin_at_one_backend() {
    let world = world();
    let own = opened_at(&world, CLIENT);
    for port in 1_000..1_040 {
        assert_eq!(opened_at(&world, from_port(port)), own, "port {port}");
    }
}

fn clients_are_spread_all_the_same() {
    let world = world();
    let met: HashSet<u32> = (0..100)
        .map(|n| opened_at(&world, Client((0xc633_6400 + n).into(), 40_000)))
        .collect();
    assert_eq!(met.len(), 8);
}

fn a_client_keeps_its_backend_whatever_the_table_says() {
    let world = world();
    let own = opened_at(&world, CLIENT);
    let kept = 1 + own % 8;
    world.keep(CLIENT, SERVICE, backend(kept));
    for port in 1_000..1_010 {
        let syn = from_port(port).syn();
        let sent = BackendSpec::l2(kept).l2_output(&syn);
        world
            .send(&syn)
            .expect(&forwarded(Reason::Opened, kept, sent));
    }
}

fn what_a_client_kept_counts_for_nothing_if_it_takes_no_new_flows() {
    let world = world();
    let own = opened_at(&world, CLIENT);
    let kept = 1 + own % 8;
    world.keep(CLIENT, SERVICE, backend(kept));
    for (port, spec) in [
        (1_000, BackendSpec::l2(kept).serving(Serving::ExistingOnly)),
        (1_001, BackendSpec::l2(kept).serving(Serving::None)),
        (1_002, BackendSpec::l2(kept).unresolved()),
    ] {
        world.put_state(&spec);
        assert_eq!(opened_at(&world, from_port(port)), own, "port {port}");
    }
    world.put_state(&BackendSpec::l2(kept));
    assert_eq!(opened_at(&world, from_port(1_003)), kept);
    // A later holder of the id is another backend.
    world.put_state(&BackendSpec::l2(kept).generation(1));
    assert_eq!(opened_at(&world, from_port(1_004)), own);
}

/// An empty world.
type Make = fn() -> World;
/// A backend by its id.
type Spec = fn(u32) -> BackendSpec;
/// Has a backend be there.
type Put = fn(&World, &BackendSpec);

/// Every mode, and backends on this host.
fn modes() -> Vec<(Make, Spec, Put)> {
    let plain: Put = |world, spec| world.backend(spec);
    let translated: Put = |world, spec| world.translate(spec, SERVICE);
    let local: Put = |world, spec| world.endpoint(spec, SERVICE);
    vec![
        (World::new, BackendSpec::l2, plain),
        (World::new, BackendSpec::ipip, plain),
        (World::translating, BackendSpec::nat, translated),
        (World::translating, BackendSpec::dnat, translated),
        (World::new, on_this_host, local),
    ]
}

fn on_this_host(id: u32) -> BackendSpec {
    BackendSpec::l2(id).local()
}

/// A world of two backends, of which all slots name the first, and whose client keeps the second.
fn kept_aside(make: Make, spec: Spec, put: Put) -> World {
    let world = make();
    for id in [1, 2] {
        put(&world, &spec(id));
    }
    world.place_clients(SERVICE);
    world.keep(CLIENT, SERVICE, backend(2));
    assert_eq!(opened_at(&world, CLIENT), 2);
    world
}

fn what_a_client_kept_counts_for_nothing_once_it_is_gone() {
    for (make, spec, put) in modes() {
        let world = kept_aside(make, spec, put);
        for (port, stale) in [
            (1_000, spec(2).serving(Serving::ExistingOnly)),
            (1_001, spec(2).serving(Serving::None)),
            (1_002, spec(2).unresolved()),
        ] {
            world.put_state(&stale);
            assert_eq!(opened_at(&world, from_port(port)), 1, "{stale:?}");
        }
        // Removed, as the daemon does it, and not yet forgotten.
        Operation::ClearBackend { id: 2 }.apply(&world.maps, &|| {});
        assert_eq!(opened_at(&world, from_port(1_003)), 1, "{:?}", spec(2));
        // Nor was there ever a backend of this id.
        world.keep(CLIENT, SERVICE, backend(u32::MAX >> 14));
        assert_eq!(opened_at(&world, from_port(1_004)), 1, "{:?}", spec(2));
    }
}

fn what_a_client_kept_is_not_taken_for_who_has_its_id_now() {
    for (make, spec, put) in modes() {
        let mut world = kept_aside(make, spec, put);
        Operation::ClearBackend { id: 2 }.apply(&world.maps, &|| {});
        put(&world, &spec(2).generation(1));
        assert_eq!(opened_at(&world, from_port(1_000)), 1, "{:?}", spec(2));
        // Where the table names that one it is that one's flow, and no stale one's.
        world.share_between(&[2]);
        let next = from_port(1_001);
        assert_eq!(opened_at(&world, next), 2, "{:?}", spec(2));
        assert_eq!(world.entry(next.key()).backend(), BackendRef::new(2, 1));
        // And what was stale is in nobody's way.
        world.share_between(&[1]);
        world.keep(CLIENT, SERVICE, BackendRef::new(2, 1));
        let next = from_port(1_002);
        assert_eq!(opened_at(&world, next), 2, "{:?}", spec(2));
        assert_eq!(world.entry(next.key()).backend(), BackendRef::new(2, 1));
    }
}

/// Without a daemon nobody knows which clients have connections still, and theirs go on; so what was known last holds.
fn a_client_keeps_its_backend_until_the_daemon_forgets_it() {
    let world = world();
    let own = opened_at(&world, CLIENT);
    let kept = 1 + own % 8;
    let patience = world.maps.services.get(u32::from(SERVICE)).affinity_ticks;
    let long_ago = ago(world.now(), 2 * u32::from(patience));
    world.keep_since(long_ago, CLIENT, SERVICE, backend(kept));
    assert_eq!(opened_at(&world, from_port(1_000)), kept);
    world.forget_clients();
    assert_eq!(opened_at(&world, from_port(1_001)), own);
}

fn what_a_client_kept_is_nothing_to_another_service_or_client() {
    let mut world = world();
    let own = opened_at(&world, CLIENT);
    let kept = 1 + own % 8;
    world.keep(CLIENT, 2, backend(kept));
    world.keep(Client([203, 0, 113, 9].into(), 1), SERVICE, backend(kept));
    assert_eq!(opened_at(&world, from_port(1_000)), own);
    // Nor is it where connections are placed.
    world.service(2, VIP, 444, &[own]);
    let syn = from_port(1_001)
        .syn()
        .with_tcp(|tcp| tcp.destination_port = 444);
    assert_eq!(world.send(&syn).backend(), Some(own));
    world.place_clients(2);
    let syn = from_port(1_002)
        .syn()
        .with_tcp(|tcp| tcp.destination_port = 444);
    assert_eq!(world.send(&syn).backend(), Some(kept));
}

fn a_flow_that_has_an_entry_stays_where_it_is() {
    let world = world();
    let own = opened_at(&world, CLIENT);
    world.send(&CLIENT.ack());
    world.keep(CLIENT, SERVICE, backend(1 + own % 8));
    let data: Packet = CLIENT.ack().payload(b"data");
    let run = world.send(&data);
    assert_eq!(
        (run.reason(), run.backend()),
        (Reason::Established, Some(own))
    );
    let run = world.send(&CLIENT.syn().seq(7));
    assert_eq!(
        (run.reason(), run.backend()),
        (Reason::Challenged, Some(own))
    );
}

fn a_client_keeps_its_backend_where_addresses_are_translated() {
    for mode in MODES {
        let mut world = World::with_translating(&mode(1));
        world.translate(&mode(2), SERVICE);
        world.share_between(&[1]);
        world.place_clients(SERVICE);
        assert_eq!(opened_at(&world, CLIENT), 1);
        world.keep(CLIENT, SERVICE, backend(2));
        let next = from_port(1_000);
        assert_eq!(opened_at(&world, next), 2);
        let entry = world.entry(next.key());
        assert!(entry.is(State::Embryo));
        assert_eq!(entry.backend(), BackendRef::new(2, 0));
    }
}

/// As after a loss of all state, or from another load balancer of the fleet: that has placed it by the client's address too.
fn an_unknown_segment_goes_where_its_client_is_placed() {
    let world = world();
    let own = opened_at(&world, CLIENT);
    for port in 1_000..1_010 {
        let run = world.send(&from_port(port).ack());
        assert_eq!((run.reason(), run.backend()), (Reason::Adopted, Some(own)));
    }
}
