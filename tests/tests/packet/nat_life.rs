//! Modes `nat` and `dnat`: the life of a flow of which both sides are seen.

use lab::packet::{
    BackendSpec, CLIENT, Packet, SERVICE, World, answered, dropped,
    entries::backend,
    forwarded,
    kernel::FLOW_SEED,
    nat::{MODES, OTHER, THEIRS, in_each_mode},
    passed, reset_output,
};
use lb_common::{
    backend::Serving,
    flow::{
        FlowKey as _,
        word::{BackendRef, State, Word, YOUNG_TICKS},
    },
    nat::{Translation, TranslationWord, translation::stamp},
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

lab::in_both_versions![
    only_the_real_handshake_makes_a_pin,
    one_fin_leaves_a_flow_half_open,
    fins_of_both_sides_close_a_flow_in_either_order,
    a_fin_whose_side_goes_on_beyond_it_is_none,
    a_reset_of_either_side_closes_a_flow,
    a_reset_out_of_its_window_closes_nothing,
    replies_keep_a_pin_seen,
    a_reply_of_a_flow_that_is_changing_is_dropped_and_never_the_hosts,
    what_comes_for_an_orphaned_port_is_the_hosts,
    mid_stream_without_an_entry_nat_resets_and_dnat_adopts,
    a_dead_backend_is_told_to_the_client,
    what_a_dead_backend_does_not_get_ends_the_flow,
    a_reset_on_its_way_to_an_unresolved_backend_closes_a_flow,
    flows_of_another_mode_go_on_when_a_service_begins_to_translate,
    while_the_tables_are_held_nothing_new_is_made,
];

fn only_the_real_handshake_makes_a_pin() {
    for mode in MODES {
        let backend = mode(1);
        let world = World::with_translating(&backend);
        world.send(&CLIENT.syn());
        let (place, embryo) = world.placed(CLIENT.key());
        let word = world.translation(place).expect("it is valid");
        let flow = world.flow(CLIENT);
        let not_proven = |packet: &Packet| {
            let reason = Reason::Established;
            let expected = flow.to_backend(&backend, packet, reason);
            world.send(packet).expect(&expected);
            assert_eq!(world.placed(CLIENT.key()), (place, embryo));
        };
        // Before there is an answer, nothing acknowledges it.
        not_proven(&flow.ack());
        // An answer to what the client has not sent is none.
        let other = flow.syn_ack().ack(77);
        world.send(&other).expect(&flow.replied(&other));
        assert_eq!(world.translation(place), Some(word));
        world.send(&flow.syn_ack());
        not_proven(&flow.ack().ack(THEIRS));
        not_proven(&flow.ack().ack(THEIRS + 2));
        not_proven(&flow.ack().seq(CLIENT.syn().as_tcp().seq.wrapping_sub(1)));
        not_proven(&flow.sends(FIN | ACK));
        not_proven(&flow.sends(RST));
        world.send(&flow.ack());
        assert!(world.entry(CLIENT.key()).is(State::Pin));
    }
}

fn one_fin_leaves_a_flow_half_open() {
    for mode in MODES {
        let backend = mode(1);
        for by_client in [true, false] {
            let world = World::with_translating(&backend);
            let flow = world.open(CLIENT);
            let (fin, expected) = if by_client {
                let fin = flow.sends(FIN | ACK);
                let expected = flow.to_backend(&backend, &fin, Reason::Established);
                (fin, expected)
            } else {
                let fin = flow.replies(FIN | ACK);
                let expected = flow.replied(&fin);
                (fin, expected)
            };
            world.send(&fin).expect(&expected);
            assert!(world.entry(CLIENT.key()).is(State::Pin));
            // A day later either side goes on.
            world.age(20_000);
            let answer = flow.replies(ACK).payload(b"still here");
            world.send(&answer).expect(&flow.replied(&answer));
            let data = flow.ack().payload(b"so am I");
            let expected = flow.to_backend(&backend, &data, Reason::Established);
            world.send(&data).expect(&expected);
            assert!(world.entry(CLIENT.key()).is(State::Pin));
        }
    }
}

fn fins_of_both_sides_close_a_flow_in_either_order() {
    for mode in MODES {
        for client_first in [true, false] {
            let backend = mode(1);
            let world = World::with_translating(&backend);
            let flow = world.open(CLIENT);
            let client = flow.sends(FIN | ACK);
            let theirs = flow.replies(FIN | ACK);
            let (first, second) = if client_first {
                (&client, &theirs)
            } else {
                (&theirs, &client)
            };
            world.send(first);
            assert!(world.entry(CLIENT.key()).is(State::Pin));
            let run = world.send(second);
            run.expect(&if client_first {
                flow.replied(&theirs)
            } else {
                flow.to_backend(&backend, &client, Reason::Established)
            });
            let closed = world.entry(CLIENT.key());
            assert!(closed.is(State::Closing) && closed.has(Word::BY_RESET));
            // What is acknowledged afterwards leaves it closed.
            let last = flow.ack().seq(client.as_tcp().seq.wrapping_add(1));
            let expected = flow.to_backend(&backend, &last, Reason::Established);
            world.send(&last).expect(&expected);
            let last = flow.replies(ACK);
            world.send(&last).expect(&flow.replied(&last));
            assert!(world.entry(CLIENT.key()).is(State::Closing));
        }
    }
}

/// As one that was forged, or is of another connection: then the other side's end leaves the flow half open.
fn a_fin_whose_side_goes_on_beyond_it_is_none() {
    /// Beyond the FIN, and in its window.
    const BEYOND: u32 = 1 << 17;
    let later = |packet: &Packet| {
        let seq = packet.as_tcp().seq.wrapping_add(BEYOND);
        packet.clone().seq(seq).payload(b"more")
    };
    for mode in MODES {
        let backend = mode(1);
        for by_client in [true, false] {
            let world = World::with_translating(&backend);
            let flow = world.open(CLIENT);
            let client = flow.sends(FIN | ACK);
            let theirs = flow.replies(FIN | ACK);
            world.send(&client);
            world.send(&theirs);
            assert!(world.entry(CLIENT.key()).is(State::Closing));
            // What was lost before it, and comes again.
            let again = if by_client {
                flow.ack()
            } else {
                flow.replies(ACK)
            };
            world.send(&again.clone().payload(b"lost"));
            assert!(world.entry(CLIENT.key()).is(State::Closing));
            let more = later(&again);
            world.send(&more).expect(&if by_client {
                flow.to_backend(&backend, &more, Reason::Established)
            } else {
                flow.replied(&more)
            });
            assert!(world.entry(CLIENT.key()).is(State::Young));
            // It has ended when that side has, and not before.
            world.send(if by_client { &theirs } else { &client });
            assert!(world.entry(CLIENT.key()).is(State::Young));
            let end = later(if by_client { &client } else { &theirs });
            world.send(&end);
            assert!(world.entry(CLIENT.key()).is(State::Closing));
        }
    }
}

fn a_reset_of_either_side_closes_a_flow() {
    for mode in MODES {
        let backend = mode(1);
        for by_client in [true, false] {
            let world = World::with_translating(&backend);
            let flow = world.open(CLIENT);
            if by_client {
                let reset = flow.sends(RST);
                let expected = flow.to_backend(&backend, &reset, Reason::Established);
                world.send(&reset).expect(&expected);
            } else {
                let reset = flow.replies(RST);
                world.send(&reset).expect(&flow.replied(&reset));
            }
            let closed = world.entry(CLIENT.key());
            assert!(closed.is(State::Closing) && closed.has(Word::BY_RESET));
            // It was forged: both go on.
            let data = flow.ack().payload(b"not at all");
            let expected = flow.to_backend(&backend, &data, Reason::Established);
            world.send(&data).expect(&expected);
            assert!(world.entry(CLIENT.key()).is(State::Young));
        }
    }
}

fn a_reset_out_of_its_window_closes_nothing() {
    const FAR: u32 = 3 << 20;
    let world = World::with_translating(&BackendSpec::nat(1));
    let flow = world.open(CLIENT);
    let pin = world.entry(CLIENT.key());
    for flags in [RST, FIN | ACK] {
        let theirs = flow.replies(flags).seq(THEIRS + FAR);
        world.send(&theirs).expect(&flow.replied(&theirs));
        assert_eq!(world.entry(CLIENT.key()), pin);
        let client = flow.sends(flags).seq(CLIENT.syn().as_tcp().seq + FAR);
        world.send(&client);
        assert_eq!(world.entry(CLIENT.key()), pin.with(Word::HINT));
        world.send(&flow.ack().payload(b"data"));
        assert_eq!(world.entry(CLIENT.key()), pin);
    }
}

fn replies_keep_a_pin_seen() {
    in_each_mode(|world, _, flow| {
        let pin = world.entry(CLIENT.key());
        world.age(1_000);
        assert_ne!(world.entry(CLIENT.key()), pin);
        let answer = flow.replies(ACK).payload(b"push");
        let now = world.now();
        world.send(&answer).expect(&flow.replied(&answer));
        assert_eq!(world.entry(CLIENT.key()), pin.with_tick(now));
    });
}

fn a_reply_of_a_flow_that_is_changing_is_dropped_and_never_the_hosts() {
    let world = World::with_translating(&BackendSpec::nat(1));
    let flow = world.open(CLIENT);
    let answer = flow.replies(ACK);
    let changing = dropped(Reason::Untranslated).of_no_service();
    let (key, value) = world.at(flow.place);
    world.set_value(flow.place, Word::BUSY);
    world.send(&answer).expect(&changing);
    world.put(flow.place, key, value);
    let word = world.translation(flow.place).expect("it is valid");
    world.put_translation(flow.place, word, Translation::BUSY);
    world.send(&answer).expect(&changing);
    // And so with what the client sends.
    world
        .send(&flow.ack())
        .expect(&dropped(Reason::Untranslated).of_backend(1));
}

/// The slot of a port whose flow is no more, or has another port, is an orphan: what comes for that port is no flow's.
fn what_comes_for_an_orphaned_port_is_the_hosts() {
    let world = World::with_translating(&BackendSpec::nat(1));
    world.translate(&BackendSpec::dnat(2), SERVICE);
    let flow = world.open(CLIENT);
    let (key, value) = world.at(flow.place);
    let word = world.translation(flow.place).expect("it is valid");
    let slot = world.slot(1, flow.source.1);
    let are_the_hosts = |what: &str| {
        println!("{what}");
        for flags in [SYN, SYN | ACK, ACK, RST, FIN | ACK] {
            let own = flow.replies(flags).payload(b"own");
            world.send(&own).expect(&passed(Reason::NotService));
        }
        assert_eq!(world.slot(1, flow.source.1), slot);
    };
    world.set_value(flow.place, Word::EMPTY);
    are_the_hosts("its entry is gone");
    world.set_value(flow.place, value.with_backend(backend(2)));
    are_the_hosts("its entry is of another endpoint");
    let mut second = world.maps.backends.get(2);
    second.endpoint = 1;
    world.maps.backends.set(2, &second);
    are_the_hosts("its entry is of mode dnat at the same endpoint");
    world.set_value(flow.place, value.with_backend(BackendRef::new(1, 1)));
    are_the_hosts("its entry is of a backend that is no more");
    world.put(flow.place, OTHER.key(), value);
    are_the_hosts("its entry is another flow's");
    world.put(flow.place, key, value);
    for stamp in [0, 77] {
        world.put_translation(flow.place, word, stamp);
        are_the_hosts("its translation is another flow's");
        // Of what the client sends nobody knows the port.
        world
            .send(&flow.ack())
            .expect(&dropped(Reason::Untranslated).of_backend(1));
    }
    let stamp = stamp(key.mixed(&FLOW_SEED), value.backend());
    world.put_translation(
        flow.place,
        TranslationWord::new(1, flow.source.1 ^ 1).proven(0),
        stamp,
    );
    are_the_hosts("its translation has another port");
    world.put_translation(flow.place, word, stamp);
    let reply = flow.replies(ACK);
    world.send(&reply).expect(&flow.replied(&reply));
}

fn mid_stream_without_an_entry_nat_resets_and_dnat_adopts() {
    let world = World::with_translating(&BackendSpec::nat(1));
    for packet in [
        CLIENT.ack(),
        CLIENT.ack().with_tcp(|tcp| tcp.flags = FIN | ACK),
    ] {
        world
            .send(&packet)
            .expect(&answered(Reason::UnknownFlow, reset_output(&packet)).of_backend(1));
    }
    let reset = CLIENT.sends(RST);
    world
        .send(&reset)
        .expect(&dropped(Reason::ResetToDead).of_backend(1));
    world
        .send(&CLIENT.sends(0))
        .expect(&dropped(Reason::Untranslated).of_backend(1));
    assert_eq!(world.entries(CLIENT.key()), []);
    drop(world);

    let dnat = BackendSpec::dnat(1);
    let world = World::with_translating(&dnat);
    let packet = CLIENT.ack().ack(THEIRS + 1);
    let run = world.send(&packet);
    let flow = world.flow(CLIENT);
    run.expect(&flow.to_backend(&dnat, &packet, Reason::Adopted));
    let word = world.entry(CLIENT.key());
    assert!(word.is(State::Young) && word.has(Word::FOREIGN));
    let answer = flow.replies(ACK).payload(b"data");
    world.send(&answer).expect(&flow.replied(&answer));
    // Proven by time, whoever sends.
    world.age(YOUNG_TICKS);
    world.send(&answer).expect(&flow.replied(&answer));
    assert!(world.entry(CLIENT.key()).is(State::Pin));
    // None of it can be adopted by its end, or when too many are.
    let fin = OTHER.ack().with_tcp(|tcp| tcp.flags = FIN | ACK);
    world
        .send(&fin)
        .expect(&answered(Reason::UnknownFlow, reset_output(&fin)).of_backend(1));
}

fn a_dead_backend_is_told_to_the_client() {
    in_each_mode(|world, backend, flow| {
        world.translate(&backend.serving(Serving::None), SERVICE);
        world.save_resets(100);
        let data = flow.ack().payload(b"data");
        world
            .send(&data)
            .expect(&answered(Reason::BackendDead, reset_output(&data)).of_backend(1));
        world.translate(&backend.serving(Serving::ExistingOnly), SERVICE);
        let expected = flow.to_backend(backend, &data, Reason::Established);
        world.send(&data).expect(&expected);
    });
}

/// Nobody but the client could end it, and it holds a port. Who sends what is not where the stream is knows nothing of that.
fn what_a_dead_backend_does_not_get_ends_the_flow() {
    for mode in MODES {
        let backend = mode(1);
        for flags in [ACK, FIN | ACK, RST] {
            for (ahead, state) in [(0, State::Closing), (1 << 30, State::Pin)] {
                let world = World::with_translating(&backend);
                let flow = world.open(CLIENT);
                world.translate(&backend.serving(Serving::None), SERVICE);
                world.save_resets(100);
                let last = flow.sends(flags);
                let last = last.clone().seq(last.as_tcp().seq.wrapping_add(ahead));
                let expected = if flags == RST {
                    dropped(Reason::ResetToDead)
                } else {
                    answered(Reason::BackendDead, reset_output(&last))
                };
                world.send(&last).expect(&expected.of_backend(1));
                let entry = world.entry(CLIENT.key());
                assert!(entry.is(state));
                assert!(entry.is(State::Pin) || entry.has(Word::BY_RESET));
            }
        }
    }
}

/// It is dropped, and does not come again.
fn a_reset_on_its_way_to_an_unresolved_backend_closes_a_flow() {
    in_each_mode(|world, backend, flow| {
        world.translate(&backend.unresolved(), SERVICE);
        for (packet, state) in [
            (flow.sends(FIN | ACK), State::Pin),
            (flow.sends(RST), State::Closing),
        ] {
            let expected = dropped(Reason::Unresolved).of_backend(1);
            world.send(&packet).expect(&expected);
            assert!(world.entry(CLIENT.key()).is(state));
        }
    });
}

fn flows_of_another_mode_go_on_when_a_service_begins_to_translate() {
    for (old, output) in [
        (
            BackendSpec::l2(2),
            BackendSpec::l2_output as fn(&_, &_) -> _,
        ),
        (BackendSpec::ipip(2), BackendSpec::ipip_output),
    ] {
        let world = World::with_translating(&BackendSpec::nat(1));
        world.backend(&old);
        let word = Word::live(State::Pin, backend(2), 0x123, world.now(), 0);
        world.insert(CLIENT.key(), word);
        for packet in [
            CLIENT.ack(),
            CLIENT.ack().tagged(0x8100, 3),
            CLIENT.ack().with_tcp(|tcp| tcp.flags = FIN | ACK),
        ] {
            let sent = output(&old, &packet);
            world
                .send(&packet)
                .expect(&forwarded(Reason::Established, 2, sent));
        }
        // Its end is its own: the client is all that is seen of it.
        assert!(world.entry(CLIENT.key()).is(State::Closing));
    }
}

fn while_the_tables_are_held_nothing_new_is_made() {
    in_each_mode(|world, backend, flow| {
        let (pin, word) = (world.entry(CLIENT.key()), world.translation(flow.place));
        world.age(3);
        let aged = world.entry(CLIENT.key());
        world.hold(std::time::Duration::from_secs(60));
        let held = dropped(Reason::Held).of_backend(1);
        // Of a flow that is not known nothing is, but that its packets come again: no client is reset.
        world.send(&OTHER.syn()).expect(&held);
        world.send(&OTHER.ack()).expect(&held);
        world.send(&OTHER.sends(FIN | ACK)).expect(&held);
        for packet in [
            flow.sends(RST),
            flow.sends(FIN | ACK),
            flow.replies(RST),
            flow.replies(FIN | ACK),
        ] {
            world.send(&packet).expect(&held);
        }
        let data = flow.ack().payload(b"data");
        let expected = flow.to_backend(backend, &data, Reason::Established);
        world.send(&data).expect(&expected);
        let answer = flow.replies(ACK);
        world.send(&answer).expect(&flow.replied(&answer));
        assert_eq!(world.entry(CLIENT.key()), aged);
        assert_ne!(aged, pin);
        assert_eq!(world.translation(flow.place), word);
    });
}
