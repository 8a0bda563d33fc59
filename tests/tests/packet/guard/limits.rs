//! How fast a source opens flows, and how many it has at a time.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use lab::packet::{
    BackendSpec, CLIENT, Client, SERVICE, World, answered, dropped,
    entries::backend,
    forwarded,
    guard::{COST, Limits},
    kernel::FLOW_SEED,
    on_wire, reset_output, version,
};
use lb_common::{
    flow::{
        bucket::homes,
        word::{State, Word},
    },
    guard::{
        Listed::{Denied, NotAllowed},
        fingerprint, in_order, source_word,
        sources::Part,
    },
    net::{Address, IpVersion},
    tcp::{ACK, FIN, RST},
    verdict::Reason,
};

use super::{OTHER, WAYS, Way, at, each, established, from_port, is_refused, opens, world};

lab::in_both_versions![
    a_source_opens_a_burst_and_then_at_its_rate,
    a_syn_again_costs_nothing,
    sources_do_not_disturb_each_other,
    a_prefix_is_one_source,
    a_source_has_so_many_flows_at_a_time,
    a_port_used_again_needs_no_room,
    what_is_over_makes_no_room,
    what_is_over_hides_nothing_that_is_open,
    what_is_adopted_is_a_flow_of_its_source,
    what_may_be_an_established_flow_of_a_full_source_is_served_or_told,
    what_is_not_adopted_is_counted_for_nobody,
    what_ends_is_held_to_no_limit,
    rate_and_flows_are_both_asked,
    where_there_is_no_place_for_a_source_it_is_let_in,
    an_idle_source_makes_place_for_another,
    who_owes_another_service_for_longer_keeps_its_place,
    a_limit_of_zero_is_none,
    what_is_not_adopted_while_the_table_is_held_is_counted_for_nobody,
];

fn a_source_opens_a_burst_and_then_at_its_rate() {
    each(|way, world| {
        world.limit(&Limits::burst(3));
        for port in 1_000..1_003 {
            let client = from_port(port);
            let syn = client.syn();
            let run = world.send(&syn);
            run.expect(&way.forwards(world, client, &syn, Reason::Opened));
        }
        for port in 1_003..1_006 {
            is_refused(world, from_port(port), Reason::SourceRate);
        }
        // One more in each span of time, and no more than the burst.
        for (passed, expected) in [(1, 1), (2, 2), (0, 0), (100, 3)] {
            world.let_pass(CLIENT, COST * passed);
            for n in 0..5 {
                let client = from_port(2_000 + n);
                if n < expected {
                    opens(world, client);
                } else {
                    is_refused(world, client, Reason::SourceRate);
                }
            }
            for n in 0..expected {
                let (place, _) = world.placed(from_port(2_000 + n).key());
                world.set_value(place, Word::EMPTY);
            }
        }
        // What is in mid-stream, or ends, is no new flow.
        assert_ne!(
            world.send(&from_port(3_000).ack()).reason(),
            Reason::SourceRate
        );
        let rst = from_port(3_001).sends(RST);
        assert_ne!(world.send(&rst).reason(), Reason::SourceRate);
        assert_eq!(world.source(CLIENT).flows, 0);
    });
}

fn a_syn_again_costs_nothing() {
    each(|_, world| {
        world.limit(&Limits {
            flows: 1,
            ..Limits::burst(1)
        });
        opens(world, CLIENT);
        let before = world.source(CLIENT);
        for _ in 0..3 {
            assert_eq!(world.send(&CLIENT.syn()).reason(), Reason::Reopened);
        }
        assert_eq!(world.source(CLIENT), before);
        is_refused(world, from_port(1_000), Reason::SourceRate);
    });
}

fn sources_do_not_disturb_each_other() {
    let world = world();
    world.limit(&Limits {
        flows: 2,
        ..Limits::burst(3)
    });
    for n in 0..2 {
        opens(&world, from_port(1_000 + n));
        opens(&world, Client(OTHER.0, 1_000 + n));
    }
    for client in [CLIENT, OTHER] {
        // This one is paid for, and one too many all the same.
        is_refused(&world, client, Reason::SourceFull);
        is_refused(&world, client, Reason::SourceRate);
        assert_eq!(world.source(client).flows, 2 << 32);
    }
    world.let_pass(OTHER, COST);
    world.change_source(OTHER, |source| source.flows = 1);
    is_refused(&world, CLIENT, Reason::SourceRate);
    opens(&world, OTHER);
    is_refused(&world, CLIENT, Reason::SourceRate);
    is_refused(&world, from_port(9), Reason::SourceRate);
}

fn a_prefix_is_one_source() {
    let world = world();
    world.limit(&Limits {
        prefix: [24, 48],
        ..Limits::flows(2)
    });
    // In IPv6 the first two numbers are in the first 48 bits, and the others in the last 32.
    opens(&world, at(198, 51, 100, 1));
    opens(&world, at(198, 51, 100, 254));
    is_refused(&world, at(198, 51, 100, 7), Reason::SourceFull);
    let beyond = match version() {
        IpVersion::V4 => at(198, 51, 101, 7),
        IpVersion::V6 => at(198, 52, 100, 7),
    };
    opens(&world, beyond);
    assert_eq!(world.source(beyond).flows, 1 << 32);
    // What is said of it for people is what they have in common.
    let word = world.source(CLIENT).word;
    match version() {
        IpVersion::V4 => assert_eq!(word, 0xffff_c633_6400),
        IpVersion::V6 => assert_eq!(word, 0x2001_0db8_c633_0000),
    }
}

fn a_source_has_so_many_flows_at_a_time() {
    each(|way, world| {
        world.limit(&Limits::flows(2));
        for port in [1_000, 1_001] {
            let client = from_port(port);
            let syn = client.syn();
            let run = world.send(&syn);
            run.expect(&way.forwards(world, client, &syn, Reason::Opened));
        }
        is_refused(world, CLIENT, Reason::SourceFull);
        assert_eq!(world.source(CLIENT).flows, 2 << 32);
        assert_eq!(world.source(CLIENT).paid_ns, 0);
        // The daemon has counted both; then one of them; then none.
        world.change_source(CLIENT, |source| source.flows = 2);
        is_refused(world, CLIENT, Reason::SourceFull);
        world.change_source(CLIENT, |source| source.flows = 1);
        opens(world, from_port(1_002));
        is_refused(world, CLIENT, Reason::SourceFull);
        assert_eq!(world.source(CLIENT).flows, 1 | 1 << 32);
        world.change_source(CLIENT, |source| source.flows = 0);
        opens(world, from_port(1_003));
        opens(world, from_port(1_004));
        is_refused(world, CLIENT, Reason::SourceFull);
    });
}

/// One flow takes another's place: the source has no more than before.
fn a_port_used_again_needs_no_room() {
    each(|way, world| {
        world.limit(&Limits::flows(1));
        established(way, world);
        let before = world.source(CLIENT);
        assert_eq!(before.flows, 1 << 32, "{way:?}");
        is_refused(world, from_port(1_000), Reason::SourceFull);
        let again = CLIENT.syn().seq(0xdead_beef);
        assert_eq!(world.send(&again).reason(), Reason::Challenged, "{way:?}");
        assert_eq!(world.send(&again).reason(), Reason::Reopened, "{way:?}");
        assert_eq!(world.source(CLIENT), before);
        is_refused(world, from_port(1_000), Reason::SourceFull);
    });
    // Nor does another SYN than that which nobody has answered yet; but each costs what a new flow costs.
    let world = world();
    world.limit(&Limits {
        flows: 1,
        ..Limits::burst(3)
    });
    opens(&world, CLIENT);
    for isn in [0xdead_beef, 0xfeed_beef] {
        let other = CLIENT.syn().seq(isn);
        assert_eq!(world.send(&other).reason(), Reason::Reopened);
        assert_eq!(world.source(CLIENT).flows, 1 << 32);
    }
    world
        .send(&CLIENT.syn().seq(0xbeef_beef))
        .expect(&dropped(Reason::SourceRate));
}

/// What is closing is no flow of its source's any more: who opens another on its port has one more.
fn what_is_over_makes_no_room() {
    let world = world();
    world.limit(&Limits::flows(1));
    let closing = Word::live(State::Closing, backend(1), 0, world.now(), 0);
    let place = world.places_of(CLIENT.key()).next().expect("it has places");
    world.put(place, CLIENT.key(), closing);
    opens(&world, from_port(1_000));
    let again = CLIENT.syn().seq(0xdead_beef);
    world.send(&again).expect(&dropped(Reason::SourceFull));
    world.change_source(CLIENT, |source| source.flows = 0);
    assert_eq!(world.send(&again).reason(), Reason::Challenged);
    assert_eq!(world.source(CLIENT).flows, 1 << 32);
}

/// Of two entries of a port it is the open one whose place another takes, whichever is found first.
fn what_is_over_hides_nothing_that_is_open() {
    // The newer one is marked, as whose SYN came beside the other.
    let over = (State::Closing, 0);
    let open = (State::Pin, Word::SECOND);
    for pair in [[over, open], [open, over]] {
        let world = world();
        world.limit(&Limits::flows(1));
        let places: Vec<_> = world.places_of(CLIENT.key()).collect();
        for (place, (state, flags)) in places.into_iter().zip(pair) {
            let word = Word::live(state, backend(1), 0, world.now(), flags);
            world.put(place, CLIENT.key(), word);
        }
        opens(&world, from_port(1_000));
        let before = world.source(CLIENT);
        assert_eq!(before.flows, 1 << 32);
        let again = CLIENT.syn().seq(0xdead_beef);
        assert_eq!(world.send(&again).reason(), Reason::Challenged);
        assert_eq!(world.source(CLIENT), before);
    }
}

fn what_is_adopted_is_a_flow_of_its_source() {
    for way in [Way::L2, Way::Ipip, Way::Dnat, Way::Local] {
        let world = way.world();
        world.limit(&Limits::flows(2));
        for (port, tags) in [(1_000, 0), (1_001, 1)] {
            let client = from_port(port);
            let mut ack = client.ack();
            for _ in 0..tags {
                ack = ack.tagged(0x8100, 7);
            }
            let run = world.send(&ack);
            run.expect(&way.forwards(&world, client, &ack, Reason::Adopted));
            // The next one is established.
            let data = client.ack().payload(b"data");
            let run = world.send(&data);
            run.expect(&way.forwards(&world, client, &data, Reason::Established));
        }
        assert_eq!(world.source(CLIENT).flows, 2 << 32, "{way:?}");
        is_refused(&world, CLIENT, Reason::SourceFull);
        world.change_source(CLIENT, |source| source.flows = 1);
        assert_eq!(world.send(&CLIENT.ack()).reason(), Reason::Adopted);
        assert_eq!(world.source(CLIENT).flows, 1 | 1 << 32);
    }
}

/// A flow's entry may be lost, and its source have others instead meanwhile: then it goes on by the table, or, where it cannot, its client learns of it.
fn what_may_be_an_established_flow_of_a_full_source_is_served_or_told() {
    for way in WAYS {
        let world = way.world();
        world.save_resets(10);
        world.limit(&Limits::flows(1));
        opens(&world, from_port(1_000));
        let before = world.source(CLIENT);
        let plain = CLIENT.ack().payload(b"data");
        for data in [plain.clone(), plain.tagged(0x8100, 7)] {
            let run = world.send(&data);
            if matches!(way, Way::L2 | Way::Ipip) {
                run.expect(&way.forwards(&world, CLIENT, &data, Reason::Stray));
            } else {
                let output = reset_output(&data);
                run.expect(&answered(Reason::UnknownFlow, output).of_backend(1));
            }
        }
        assert_eq!(world.entries(CLIENT.key()), [], "{way:?}");
        assert_eq!(world.source(CLIENT), before);
        // That is of this segment alone.
        world.change_source(CLIENT, |source| source.flows = 0);
        if way != Way::Nat {
            assert_eq!(world.send(&CLIENT.ack()).reason(), Reason::Adopted);
        }
    }
}

/// A flow that finds no place is unknown with each of its segments.
fn what_is_not_adopted_is_counted_for_nobody() {
    let world = world();
    world.limit(&Limits::flows(1));
    let pin = Word::live(State::Pin, backend(1), 0, world.now(), 0);
    let others: Vec<Client> = world.neighbours(CLIENT).take(8).collect();
    for (place, other) in world.places_of(CLIENT.key()).zip(others) {
        world.put(place, other.key(), pin);
    }
    let data = CLIENT.ack().payload(b"data");
    for _ in 0..5 {
        let output = BackendSpec::l2(1).l2_output(&data);
        world
            .send(&data)
            .expect(&forwarded(Reason::Unadopted, 1, output));
        assert_eq!(world.source(CLIENT).flows, 0);
    }
    // What another service adopts next is not this source's.
    assert_eq!(world.send(&OTHER.ack()).reason(), Reason::Adopted);
    assert_eq!(world.source(CLIENT).flows, 0);
    assert_eq!(world.source(OTHER).flows, 1 << 32);
}

fn what_ends_is_held_to_no_limit() {
    each(|way, world| {
        world.limit(&Limits {
            flows: 1,
            ..Limits::burst(1)
        });
        opens(world, from_port(1_000));
        let before = world.source(CLIENT);
        for flags in [RST, FIN | ACK] {
            let reason = world.send(&CLIENT.sends(flags)).reason();
            let is_limited = matches!(reason, Reason::SourceFull | Reason::SourceRate);
            assert!(!is_limited, "{way:?} {flags:#x}: {reason:?}");
        }
        assert_eq!(world.source(CLIENT), before);
    });
}

fn rate_and_flows_are_both_asked() {
    let world = world();
    world.limit(&Limits {
        flows: 1,
        ..Limits::burst(3)
    });
    opens(&world, from_port(1_000));
    // Each of these has paid, in vain.
    is_refused(&world, CLIENT, Reason::SourceFull);
    is_refused(&world, CLIENT, Reason::SourceFull);
    is_refused(&world, CLIENT, Reason::SourceRate);
    // Lists come first.
    world.list_all(NotAllowed);
    is_refused(&world, CLIENT, Reason::NotAllowed);
}

fn where_there_is_no_place_for_a_source_it_is_let_in() {
    let world = world();
    world.limit(&Limits {
        flows: 1,
        ..Limits::burst(1)
    });
    world.crowd_sources();
    let before = world.sources();
    for n in 0..5 {
        opens(&world, from_port(1_000 + n));
        assert_eq!(
            world.send(&from_port(2_000 + n).ack()).reason(),
            Reason::Adopted
        );
    }
    assert_eq!(world.sources(), before);
    // The lists hold all the same.
    world.list_all(Denied);
    is_refused(&world, CLIENT, Reason::Denied);
}

fn an_idle_source_makes_place_for_another() {
    let world = world();
    world.limit(&Limits {
        flows: 1,
        ..Limits::burst(1)
    });
    world.crowd_sources();
    // One of its second home has no flow any more.
    let (home, idle) = (second_home(&world), 2);
    let word = idle as usize * 4 + Part::Flows as usize;
    world.maps.sources.word(home, word).store(0, SeqCst);
    opens(&world, CLIENT);
    let (bucket, way, source) = world.source_at(CLIENT).expect("it has the place");
    assert_eq!((bucket, way), (home, idle));
    assert_eq!(source.flows, 1 << 32);
    assert_ne!(source.paid_ns, 0);
    is_refused(&world, from_port(1_000), Reason::SourceRate);
}

fn who_owes_another_service_for_longer_keeps_its_place() {
    let world = world();
    world.limit(&Limits::burst(1));
    opens(&world, from_port(1_000));
    let now_ns = world.source(CLIENT).paid_ns;
    world.crowd_sources();
    // One of its second home has no flow any more, and has paid twice as long ago as sources of this service can owe.
    let (home, other) = (second_home(&world), 2);
    let word = |part: Part| other * 4 + part as usize;
    let paid_ns = now_ns.wrapping_sub(2 * COST.as_nanos() as u64);
    let store = |part, value| {
        let cell = world.maps.sources.word(home, word(part));
        cell.store(value, SeqCst);
    };
    store(Part::Flows, 0);
    store(Part::Paid, paid_ns);
    let before = world.sources();
    world.change_guard(|guard| guard.longest_burst_ns *= 3);
    for port in 1_001..1_004 {
        opens(&world, from_port(port));
    }
    assert_eq!(world.sources(), before);
    world.change_guard(|guard| guard.longest_burst_ns = guard.burst_ns);
    opens(&world, from_port(1_004));
    let (bucket, way, _) = world.source_at(CLIENT).expect("it has the place");
    assert_eq!((bucket, way as usize), (home, other));
    is_refused(&world, from_port(1_005), Reason::SourceRate);
}

/// The bucket that is looked at last for the client's source, if each address is one.
fn second_home(world: &World) -> u32 {
    let address = in_order(Address::from(on_wire(CLIENT.0)).words());
    let word = source_word(address, version() == IpVersion::V6);
    let own = fingerprint(word, SERVICE, &FLOW_SEED);
    homes(own, world.maps.sources.len())[1]
}

fn a_limit_of_zero_is_none() {
    let world = world();
    world.limit(&Limits::NONE);
    for n in 0..10 {
        opens(&world, from_port(1_000 + n));
        assert_eq!(
            world.send(&from_port(2_000 + n).ack()).reason(),
            Reason::Adopted
        );
    }
    assert_eq!(world.source_at(CLIENT), None);
}

fn what_is_not_adopted_while_the_table_is_held_is_counted_for_nobody() {
    let world = world();
    world.limit(&Limits::flows(1));
    world.hold(Duration::from_secs(60));
    for _ in 0..3 {
        assert_eq!(world.send(&CLIENT.ack()).reason(), Reason::Unadopted);
    }
    assert_eq!(world.source(CLIENT).flows, 0);
}
