//! Mode `nat`: SNAT ports, who gets them and who gives them back.

use lab::packet::{
    BackendSpec, CLIENT, Client, SERVICE, VIP, World, dropped,
    entries::backend,
    flow::ago,
    forwarded,
    nat::{OTHER, Opened, SNAT, returned},
};
use lb_common::{
    clock::Tick,
    flow::word::{LINGER_RST_TICKS, State, Word},
    nat::{PORTS_OF_PAIR, ports::EMBRYO_TICKS, slot_of},
    service::Service,
    tcp::ACK,
    verdict::Reason,
};

lab::in_both_versions![
    without_a_free_port_a_syn_is_dropped,
    another_snat_address_helps_out,
    another_endpoint_has_all_ports_of_the_same_address,
    services_of_an_endpoint_share_its_ports,
    an_embryo_loses_its_port_to_another_once_it_had_its_time,
    a_flow_that_has_ended_loses_its_port_only_after_it_has_lingered,
    who_takes_a_place_gives_back_the_port_that_went_with_it,
    a_port_that_was_given_back_is_not_used_again_by_who_had_it,
    a_flow_that_moves_takes_its_port_along,
];

/// A world in which all ports are in use, by flows whose entries are such.
fn exhausted(value: fn(Tick) -> Word) -> World {
    let world = World::translating_many();
    world.translate(&BackendSpec::nat(1), SERVICE);
    world.exhaust(value);
    world
}

fn pin(now: Tick) -> Word {
    Word::live(State::Pin, backend(1), 0, now, 0)
}

fn without_a_free_port_a_syn_is_dropped() {
    let world = exhausted(pin);
    let syn = CLIENT.syn();
    let expected = dropped(Reason::NoPort).of_backend(1);
    world.send(&syn).expect(&expected);
    assert_eq!(world.entries(CLIENT.key()), [], "the embryo is gone again");
    // It is opened as soon as a port is free.
    world.set_all(|_| Word::EMPTY);
    assert_eq!(world.send(&syn).reason(), Reason::Opened);
    let flow = world.flow(CLIENT);
    assert_eq!(world.slot(1, flow.source.1), slot_of(flow.place));
    assert!(world.is_marked(1, flow.source.1));
}

fn another_snat_address_helps_out() {
    let world = exhausted(pin);
    world.second_pair(1, 2);
    let nat = BackendSpec::nat(1);
    for client in [CLIENT, OTHER, Client(CLIENT.0, 40_002)] {
        let run = world.send(&client.syn());
        let flow = world.flow(client);
        assert_eq!(flow.source.0, SNAT[1]);
        run.expect(&flow.to_backend(&nat, &client.syn(), Reason::Opened));
        // What comes back to that address is found too.
        let answer = flow.syn_ack();
        world.send(&answer).expect(&flow.replied(&answer));
    }
}

/// Ports are those of a SNAT address toward an endpoint, and not of the address alone.
fn another_endpoint_has_all_ports_of_the_same_address() {
    let mut world = exhausted(pin);
    let other = BackendSpec::nat(2);
    world.translate(&other, SERVICE);
    world.share_between(&[2]);
    let run = world.send(&CLIENT.syn());
    let (place, _) = world.placed(CLIENT.key());
    let word = world.translation(place).expect("it has a translation");
    let sent = other.translated(&CLIENT.syn(), (SNAT[0], word.port()));
    run.expect(&forwarded(Reason::Opened, 2, sent.bytes()));
    assert_eq!(word.pair(), 2);
    assert_eq!(world.slot(2, word.port()), slot_of(place));
    assert_eq!(world.ports_in_use(2), (1, 1));
    // Toward the first one there is still none.
    world.share_between(&[1]);
    world
        .send(&OTHER.syn())
        .expect(&dropped(Reason::NoPort).of_backend(1));
    assert_eq!(world.ports_in_use(1), (PORTS_OF_PAIR, PORTS_OF_PAIR));
}

/// They are no service's own: where all are in use by one, another that has a backend at the same address and port gets none, and never one that is.
fn services_of_an_endpoint_share_its_ports() {
    let mut world = exhausted(pin);
    let mut second = world.maps.backends.get(1);
    second.service = 2;
    world.maps.backends.set(3, &second);
    world.service(2, VIP, 444, &[3]);
    let mut record = world.maps.services.get(2);
    record.traits |= Service::TRANSLATES;
    world.maps.services.set(2, &record);
    let syn = CLIENT.syn().with_tcp(|tcp| tcp.destination_port = 444);
    world
        .send(&syn)
        .expect(&dropped(Reason::NoPort).of_backend(3).of_service(2));

    world.set_all(|_| Word::EMPTY);
    assert_eq!(world.send(&CLIENT.syn()).reason(), Reason::Opened);
    let first = world.flow(CLIENT);
    let run = world.send(&syn);
    let values = world.values();
    let place = values
        .iter()
        .find(|(_, _, word)| word.backend() == backend(3))
        .map(|(place, ..)| *place)
        .expect("its entry");
    let word = world.translation(place).expect("it has a translation");
    let flow = Opened {
        client: CLIENT,
        source: (SNAT[0], word.port()),
        place,
    };
    let sent = BackendSpec::nat(1).translated(&syn, flow.source);
    run.expect(&forwarded(Reason::Opened, 3, sent.bytes()).of_service(2));
    assert_eq!(word.pair(), 1);
    assert_ne!(word.port(), first.source.1);
    for flow in [first, flow] {
        assert_eq!(world.slot(1, flow.source.1), slot_of(flow.place));
    }
    // By its port a reply is of the one or of the other.
    let answer = first.syn_ack();
    world.send(&answer).expect(&first.replied(&answer));
    let answer = flow.syn_ack();
    let sent = returned(&answer, CLIENT).with_tcp(|tcp| tcp.source_port = 444);
    world.send(&answer).expect(
        &forwarded(Reason::Reply, 3, sent.bytes())
            .of_service(2)
            .redirected(),
    );
}

fn an_embryo_loses_its_port_to_another_once_it_had_its_time() {
    let world = exhausted(|now| Word::embryo(backend(1), 7, now));
    world
        .send(&CLIENT.syn())
        .expect(&dropped(Reason::NoPort).of_backend(1));
    // The tick of its SYN may have ended right after that.
    world.set_all(|now| Word::embryo(backend(1), 7, ago(now, EMBRYO_TICKS - 1)));
    world
        .send(&CLIENT.syn())
        .expect(&dropped(Reason::NoPort).of_backend(1));
    world.set_all(|now| Word::embryo(backend(1), 7, ago(now, EMBRYO_TICKS)));
    takes_over(&world);
}

fn a_flow_that_has_ended_loses_its_port_only_after_it_has_lingered() {
    let ended = |then| Word::live(State::Closing, backend(1), 0, then, Word::BY_RESET);
    let world = exhausted(pin);
    world.set_all(|now| ended(ago(now, LINGER_RST_TICKS - 1)));
    world
        .send(&CLIENT.syn())
        .expect(&dropped(Reason::NoPort).of_backend(1));
    world.set_all(|now| ended(ago(now, LINGER_RST_TICKS)));
    takes_over(&world);
}

/// A new flow gets the port of one that exists no more by then.
fn takes_over(world: &World) {
    let before = world.values().len();
    let run = world.send(&CLIENT.syn());
    let flow = world.flow(CLIENT);
    run.expect(&flow.to_backend(&BackendSpec::nat(1), &CLIENT.syn(), Reason::Opened));
    assert_eq!(world.slot(1, flow.source.1), slot_of(flow.place));
    assert!(world.is_marked(1, flow.source.1));
    // One more is there, and one or, if its place was taken too, one and the same less.
    assert!(world.values().len() <= before);
}

fn who_takes_a_place_gives_back_the_port_that_went_with_it() {
    let world = World::with_translating(&BackendSpec::nat(1));
    world.send(&CLIENT.syn());
    let former = world.flow(CLIENT);
    // All else is taken, so that its neighbour can only take its place.
    let neighbours: Vec<Client> = world.neighbours(CLIENT).take(8).collect();
    for place in world.places_of(CLIENT.key()) {
        if place != former.place {
            world.put(place, neighbours[7].key(), pin(world.now()));
        }
    }
    assert_eq!(world.send(&neighbours[0].syn()).reason(), Reason::Opened);
    let flow = world.flow(neighbours[0]);
    assert_eq!(flow.place, former.place);
    assert_eq!(world.slot(1, flow.source.1), slot_of(flow.place));
    assert_eq!(world.ports_in_use(1), (1, 1));
}

fn a_port_that_was_given_back_is_not_used_again_by_who_had_it() {
    let world = World::with_translating(&BackendSpec::nat(1));
    world.send(&CLIENT.syn());
    let flow = world.flow(CLIENT);
    // As the daemon does when it empties an entry; another flow has the port meanwhile.
    world.set_slot(1, flow.source.1, u32::MAX);
    world.send(&CLIENT.syn());
    let again = world.flow(CLIENT);
    assert_ne!(again.source.1, flow.source.1);
    assert_eq!(world.slot(1, flow.source.1), u32::MAX);
}

fn a_flow_that_moves_takes_its_port_along() {
    let nat = BackendSpec::nat(1);
    let world = World::with_translating(&nat);
    let flow = world.open(CLIENT);
    // Everything but one place of its other home is taken by flows that cannot move.
    let homes = world.homes(CLIENT.key());
    let other = homes[0] ^ homes[1] ^ flow.place.index;
    let neighbours: Vec<Client> = world.neighbours(CLIENT).take(9).collect();
    for place in world.places_of(CLIENT.key()) {
        if place.index == flow.place.index && place != flow.place {
            world.put(place, neighbours[8].key(), Word::BUSY);
        }
    }
    let newcomer = (0..60_000u16)
        .map(|n| Client(OTHER.0, 2_000 + n))
        .find(|client| {
            let theirs = world.homes(client.key());
            let elsewhere = theirs[0] ^ theirs[1] ^ flow.place.index;
            theirs.contains(&flow.place.index) && elsewhere != other
        })
        .expect("some client of this home");
    let theirs = world.homes(newcomer.key());
    let elsewhere = theirs[0] ^ theirs[1] ^ flow.place.index;
    for way in 0..4 {
        let place = lb_common::flow::table::Place {
            index: elsewhere,
            way,
        };
        world.put(place, neighbours[8].key(), Word::BUSY);
    }
    assert_eq!(world.send(&newcomer.syn()).reason(), Reason::Opened);
    let moved = world.flow(CLIENT);
    assert_eq!(moved.place.index, other, "it has moved");
    assert_eq!(moved.source, flow.source);
    assert_eq!(world.slot(1, flow.source.1), slot_of(moved.place));
    assert_eq!(world.flow(newcomer).place, flow.place);
    assert_eq!(world.ports_in_use(1), (2, 2));
    let data = flow.ack().payload(b"data");
    let expected = flow.to_backend(&nat, &data, Reason::Established);
    world.send(&data).expect(&expected);
    let answer = flow.replies(ACK);
    world.send(&answer).expect(&flow.replied(&answer));
}
