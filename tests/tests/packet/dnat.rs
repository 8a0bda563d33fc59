//! Mode `dnat`: services that share a backend's address and port.

use lab::packet::{
    BackendSpec, CLIENT, Client, Packet, SERVICE, VIP, World, answered, forwarded,
    nat::{OTHER, Opened, returned},
    reset_output,
};
use lb_common::{flow::word::Word, service::Service, tcp::ACK, verdict::Reason};

lab::in_both_versions![
    a_dnat_flow_that_would_collide_gets_another_backend,
    a_dnat_flow_that_collides_everywhere_is_reset,
    services_share_an_endpoint,
];

/// Another service of the same backends, at the same VIP.
fn second_service(world: &mut World, owners: &[u32], backends: &[BackendSpec]) {
    world.service(2, VIP, 444, owners);
    for backend in backends {
        world.translate(backend, 2);
    }
}

fn a_dnat_flow_that_would_collide_gets_another_backend() {
    let mut world = World::translating();
    let [one, two] = [BackendSpec::dnat(1), BackendSpec::dnat(2)];
    world.translate(&one, SERVICE);
    // Another backend of another service at the endpoint of backend 1.
    let mut other = world.maps.backends.get(1);
    other.service = 2;
    world.maps.backends.set(3, &other);
    let mut endpoint = world.maps.endpoints.get(1);
    endpoint.services = [SERVICE, 2, 0, 0];
    world.maps.endpoints.set(1, &endpoint);
    world.translate(&two, 2);
    world.service(2, VIP, 444, &[3, 2]);
    let mut record = world.maps.services.get(2);
    record.traits |= Service::TRANSLATES;
    world.maps.services.set(2, &record);

    let client = (0..1_000)
        .map(|n| Client(CLIENT.0, 41_000 + n))
        .find(|client| {
            // Its first pick would be the shared endpoint.
            let run = world.send(&to_second(client));
            run.backend() == Some(3)
        })
        .expect("one in two");
    let expected = |backend: &BackendSpec, reason| {
        let sent = backend.translated(&to_second(&client), (client.0, client.1));
        forwarded(reason, 2, sent.bytes()).of_service(2)
    };
    // The other service's own flow, and then the first one.
    for place in world.places() {
        world.set_value(place, Word::EMPTY);
    }
    world.send(&client.syn());
    world
        .send(&to_second(&client))
        .expect(&expected(&two, Reason::Opened));
    world
        .send(&to_second(&client))
        .expect(&expected(&two, Reason::Reopened));
}

fn to_second(client: &Client) -> Packet {
    client.syn().with_tcp(|tcp| tcp.destination_port = 444)
}

fn a_dnat_flow_that_collides_everywhere_is_reset() {
    let mut world = World::translating();
    let dnat = BackendSpec::dnat(1);
    world.translate(&dnat, SERVICE);
    second_service(&mut world, &[1], &[dnat]);
    world.send(&CLIENT.syn());
    let syn = to_second(&CLIENT);
    world
        .send(&syn)
        .expect(&answered(Reason::Collision, reset_output(&syn)).of_service(2));
    assert_eq!(world.values().len(), 1);
    // Without the other flow there is nothing to collide with.
    for place in world.places() {
        world.set_value(place, Word::EMPTY);
    }
    let sent = dnat.translated(&syn, (CLIENT.0, CLIENT.1)).bytes();
    world
        .send(&syn)
        .expect(&forwarded(Reason::Opened, 1, sent).of_service(2));
}

fn services_share_an_endpoint() {
    let mut world = World::translating();
    let dnat = BackendSpec::dnat(1);
    world.translate(&dnat, SERVICE);
    second_service(&mut world, &[1], &[dnat]);
    let flow = world.open(CLIENT);
    let syn = OTHER.syn().with_tcp(|tcp| tcp.destination_port = 444);
    assert_eq!(world.send(&syn).reason(), Reason::Opened);
    // Each reply is of the service that its flow is of.
    let answer = flow.replies(ACK);
    world.send(&answer).expect(&flow.replied(&answer));
    let second = Opened {
        client: OTHER,
        source: (OTHER.0, OTHER.1),
        ..flow
    };
    let answer = second.syn_ack();
    let sent = returned(&answer, OTHER).with_tcp(|tcp| tcp.source_port = 444);
    world.send(&answer).expect(
        &forwarded(Reason::Reply, 1, sent.bytes())
            .of_service(2)
            .redirected(),
    );
}
