//! Modes `nat` and `dnat`: what backends and clients get of each other, to the byte, and what is remembered of it.

use lab::packet::{
    BackendSpec, CLIENT, Client, Expect, Packet, SERVICE, VIP, World, answered, dropped,
    entries::backend,
    flow::ago,
    forwarded,
    icmp::{About, complaint},
    kernel::ELSEWHERE,
    nat::{NARROW, NARROW_MTU, NOWHERE, Opened, SNAT, TAGGED, TAGS, THEIRS, UNHEARD, returned},
    on_wire, passed, reset_output, version,
};
use lb_common::{
    backend::Serving,
    clock::Tick,
    flow::word::{LINGER_RST_TICKS, State, Word, YOUNG_TICKS, epoch_of},
    nat::{TranslationWord, slot_of},
    net::IpVersion,
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

lab::in_both_versions![
    a_nat_flow_goes_both_ways,
    a_dnat_flow_goes_both_ways,
    segments_of_all_shapes_are_translated,
    truncated_frames_pass_or_leave_as_far_as_they_go,
    only_the_real_handshake_makes_a_pin,
    a_syn_again_keeps_its_port,
    one_fin_leaves_a_flow_half_open,
    fins_of_both_sides_close_a_flow_in_either_order,
    a_fin_whose_side_goes_on_beyond_it_is_none,
    a_reset_of_either_side_closes_a_flow,
    a_reset_out_of_its_window_closes_nothing,
    replies_keep_a_pin_seen,
    without_a_free_port_a_syn_is_dropped,
    another_snat_address_helps_out,
    an_embryo_loses_its_port_to_another_once_it_had_its_time,
    a_flow_that_has_ended_loses_its_port_only_after_it_has_lingered,
    who_takes_a_place_gives_back_the_port_that_went_with_it,
    a_former_flow_of_the_same_client_proves_nothing,
    a_port_that_was_given_back_is_not_used_again_by_who_had_it,
    a_challenger_has_a_port_of_its_own,
    a_challenger_of_dnat_is_proven_by_its_own_handshake,
    what_the_host_does_with_its_own_address_is_its_own,
    a_reply_of_a_flow_that_is_changing_is_dropped_and_never_the_hosts,
    mid_stream_without_an_entry_nat_resets_and_dnat_adopts,
    a_dnat_flow_that_would_collide_gets_another_backend,
    a_dnat_flow_that_collides_everywhere_is_reset,
    services_share_an_endpoint,
    tags_are_put_on_and_taken_off_both_ways,
    a_syn_tells_what_fits_the_way,
    what_is_too_big_is_answered_to_who_sent_it,
    what_has_no_hops_left_is_answered_to_who_sent_it,
    a_reply_without_a_known_neighbour_is_the_kernels_to_send,
    a_reply_without_a_way_is_dropped,
    a_dead_backend_is_told_to_the_client,
    flows_of_another_mode_go_on_when_a_service_begins_to_translate,
    a_flow_that_moves_takes_its_port_along,
    while_the_tables_are_held_nothing_new_is_made,
];

const NAT: fn(u32) -> BackendSpec = BackendSpec::nat;
const DNAT: fn(u32) -> BackendSpec = BackendSpec::dnat;
const MODES: [fn(u32) -> BackendSpec; 2] = [NAT, DNAT];

/// Of a reply: sent to the client by the interface that its route names.
fn replied(flow: &Opened, input: &Packet) -> Expect {
    forwarded(Reason::Reply, 1, flow.returned(input).bytes()).redirected()
}

/// What backend 1 gets.
fn to_backend(backend: &BackendSpec, flow: &Opened, input: &Packet, reason: Reason) -> Expect {
    forwarded(reason, 1, backend.translated(input, flow.source).bytes())
}

fn both_ways(backend: &BackendSpec, check: fn(&World, &Opened)) {
    let world = World::with_translating(backend);
    let syn = CLIENT.syn().tcp_options(&[1; 8]);
    let run = world.send(&syn);
    let flow = world.flow(CLIENT);
    let (place, embryo) = world.placed(CLIENT.key());
    run.expect(&to_backend(backend, &flow, &syn, Reason::Opened));
    assert!(embryo.is(State::Embryo));
    check(&world, &flow);

    let syn_ack = flow.syn_ack().tcp_options(&[1; 4]);
    world.send(&syn_ack).expect(&replied(&flow, &syn_ack));
    assert_eq!(world.placed(CLIENT.key()), (place, embryo));
    let word = world.translation(place).expect("it is valid");
    assert!(word.has(TranslationWord::ANSWERED) && word.isn() == THEIRS);

    let now = world.now();
    let ack = flow.ack();
    world
        .send(&ack)
        .expect(&to_backend(backend, &flow, &ack, Reason::Established));
    let epoch = epoch_of(ack.as_tcp().seq);
    let pin = Word::live(State::Pin, embryo.backend(), epoch, now, 0);
    assert_eq!(world.placed(CLIENT.key()), (place, pin));
    assert_eq!(world.first_seen(place), now.0);
    assert_eq!(world.translation(place), Some(word.proven(THEIRS)));

    // The short way, and back again.
    let data = flow.ack().payload(b"a question");
    world
        .send(&data)
        .expect(&to_backend(backend, &flow, &data, Reason::Established));
    let answer = flow.replies(ACK).payload(b"an answer");
    world.send(&answer).expect(&replied(&flow, &answer));
    check(&world, &flow);
}

fn a_nat_flow_goes_both_ways() {
    both_ways(&BackendSpec::nat(1), |world, flow| {
        let port = flow.source.1;
        assert!(port >= 1_024);
        assert_eq!(flow.source.0, SNAT[0]);
        assert_eq!(world.slot(1, port), slot_of(flow.place));
        assert!(world.is_marked(1, port));
        assert_eq!(world.ports_in_use(1), (1, 1));
    });
}

fn a_dnat_flow_goes_both_ways() {
    both_ways(&BackendSpec::dnat(1), |world, flow| {
        assert_eq!(flow.source, (CLIENT.0, CLIENT.1));
        let word = world.translation(flow.place).expect("it is valid");
        assert_eq!(word.anew(), TranslationWord::new(0, 0));
    });
}

/// A segment as it is, and with what makes checksums, offsets and frames differ.
fn shapes(plain: &Packet) -> Vec<Packet> {
    vec![
        plain.clone(),
        plain.clone().payload(b"data of odd length."),
        plain.clone().payload(&[0xff; 1_400]),
        plain.clone().payload(&[0; 64]),
        plain.clone().tcp_options(&[1; 40]),
        plain.clone().options(&[1; 4]),
        plain.clone().options(&[1; 40]).tcp_options(&[1; 12]),
        plain.clone().padded(6),
        plain.clone().tagged(0x8100, 0x2001),
        plain.clone().tagged(0x8100, 0x0fff).tagged(0x88a8, 0xffff),
        plain.clone().tos(0xb9),
        plain.clone().ttl(2),
        plain.clone().ttl(255),
        plain.clone().with_tcp(|tcp| tcp.window = 0),
        plain.clone().payload(&vec![0x3c; 1_460]),
    ]
}

fn segments_of_all_shapes_are_translated() {
    for mode in MODES {
        let backend = mode(1);
        let world = World::with_translating(&backend);
        let flow = world.open(CLIENT);
        for data in shapes(&flow.ack()) {
            if data.length() > 1_500 {
                continue;
            }
            let expected = to_backend(&backend, &flow, &data, Reason::Established);
            world.send(&data).expect(&expected);
        }
        for answer in shapes(&flow.replies(ACK)) {
            if answer.length() > 1_500 {
                continue;
            }
            world.send(&answer).expect(&replied(&flow, &answer));
        }
    }
}

/// What is cut off behind the headers is missing at the end of what leaves; a frame that is cut within them is the host's.
fn truncated_frames_pass_or_leave_as_far_as_they_go() {
    for mode in MODES {
        let backend = mode(1);
        let world = World::with_translating(&backend);
        let flow = world.open(CLIENT);
        let syn = CLIENT.syn().options(&[1; 8]).payload(b"early");
        let plain = flow.ack().payload(b"data");
        let tagged = flow.ack().tagged(0x8100, 7).payload(b"data");
        let answer = flow.replies(ACK).tagged(0x8100, 7).payload(b"data");
        for (packet, sent, is_reply) in [
            (&plain, backend.translated(&plain, flow.source), false),
            (&tagged, backend.translated(&tagged, flow.source), false),
            (&answer, flow.returned(&answer), true),
        ] {
            let (whole, sent) = (packet.bytes(), sent.bytes());
            let headers = packet.network() + packet.headers_len() + 20;
            for length in 14..whole.len() {
                let run = world.send_bytes(&whole[..length], packet.counted());
                if length < headers {
                    run.expect(&passed(run.reason()).counting(0));
                    assert_eq!(run.reason(), Reason::Malformed);
                    continue;
                }
                let cut = sent.len() - (whole.len() - length);
                let sent = sent[..cut].to_vec();
                run.expect(&if is_reply {
                    forwarded(Reason::Reply, 1, sent).redirected()
                } else {
                    forwarded(Reason::Established, 1, sent)
                });
            }
        }
        drop(world);

        let world = World::with_translating(&backend);
        let whole = syn.bytes();
        let headers = syn.network() + syn.headers_len() + 20;
        for length in 14..headers {
            let run = world.send_bytes(&whole[..length], 0);
            run.expect(&passed(Reason::Malformed));
        }
        assert_eq!(world.entries(CLIENT.key()), []);
    }
}

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
            let expected = to_backend(&backend, &flow, packet, reason);
            world.send(packet).expect(&expected);
            assert_eq!(world.placed(CLIENT.key()), (place, embryo));
        };
        // Before there is an answer, nothing acknowledges it.
        not_proven(&flow.ack());
        // An answer to what the client has not sent is none.
        let other = flow.syn_ack().ack(77);
        world.send(&other).expect(&replied(&flow, &other));
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

fn a_syn_again_keeps_its_port() {
    let backend = BackendSpec::nat(1);
    let world = World::with_translating(&backend);
    let syn = CLIENT.syn();
    let first = world.send(&syn);
    let again = world.send(&syn);
    again.expect(&forwarded(Reason::Reopened, 1, first.outcome.output));
    // And so does another SYN of the client's, as after it has given up the first.
    let flow = world.flow(CLIENT);
    let other = syn.seq(99);
    let expected = backend.translated(&other, flow.source).bytes();
    world
        .send(&other)
        .expect(&forwarded(Reason::Reopened, 1, expected));
    assert_eq!(world.ports_in_use(1), (1, 1));
}

fn one_fin_leaves_a_flow_half_open() {
    for mode in MODES {
        let backend = mode(1);
        for by_client in [true, false] {
            let world = World::with_translating(&backend);
            let flow = world.open(CLIENT);
            let fin = if by_client {
                flow.sends(FIN | ACK)
            } else {
                flow.replies(FIN | ACK)
            };
            let run = world.send(&fin);
            assert_ne!(run.outcome.action, 1);
            assert!(world.entry(CLIENT.key()).is(State::Pin));
            // A day later either side goes on.
            world.age(20_000);
            let answer = flow.replies(ACK).payload(b"still here");
            world.send(&answer).expect(&replied(&flow, &answer));
            let data = flow.ack().payload(b"so am I");
            let expected = to_backend(&backend, &flow, &data, Reason::Established);
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
                replied(&flow, &theirs)
            } else {
                to_backend(&backend, &flow, &client, Reason::Established)
            });
            let closed = world.entry(CLIENT.key());
            assert!(closed.is(State::Closing) && closed.has(Word::BY_RESET));
            // What is acknowledged afterwards leaves it closed.
            let last = flow.ack().seq(client.as_tcp().seq.wrapping_add(1));
            let expected = to_backend(&backend, &flow, &last, Reason::Established);
            world.send(&last).expect(&expected);
            let last = flow.replies(ACK);
            world.send(&last).expect(&replied(&flow, &last));
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
                to_backend(&backend, &flow, &more, Reason::Established)
            } else {
                replied(&flow, &more)
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
                let expected = to_backend(&backend, &flow, &reset, Reason::Established);
                world.send(&reset).expect(&expected);
            } else {
                let reset = flow.replies(RST);
                world.send(&reset).expect(&replied(&flow, &reset));
            }
            let closed = world.entry(CLIENT.key());
            assert!(closed.is(State::Closing) && closed.has(Word::BY_RESET));
            // It was forged: both go on.
            let data = flow.ack().payload(b"not at all");
            let expected = to_backend(&backend, &flow, &data, Reason::Established);
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
        world.send(&theirs).expect(&replied(&flow, &theirs));
        assert_eq!(world.entry(CLIENT.key()), pin);
        let client = flow.sends(flags).seq(CLIENT.syn().as_tcp().seq + FAR);
        world.send(&client);
        assert_eq!(world.entry(CLIENT.key()), pin.with(Word::HINT));
        world.send(&flow.ack().payload(b"data"));
        assert_eq!(world.entry(CLIENT.key()), pin);
    }
}

fn replies_keep_a_pin_seen() {
    for mode in MODES {
        let world = World::with_translating(&mode(1));
        let flow = world.open(CLIENT);
        let pin = world.entry(CLIENT.key());
        world.age(1_000);
        assert_ne!(world.entry(CLIENT.key()), pin);
        let answer = flow.replies(ACK).payload(b"push");
        let now = world.now();
        world.send(&answer).expect(&replied(&flow, &answer));
        assert_eq!(world.entry(CLIENT.key()), pin.with_tick(now));
    }
}

/// Another client, whose flow no other's places are of any concern to.
const OTHER: Client = Client(CLIENT.0, 40_001);

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
        run.expect(&to_backend(&nat, &flow, &client.syn(), Reason::Opened));
        // What comes back to that address is found too.
        let answer = flow.syn_ack();
        let returned = returned(&answer, client);
        let run = world.send(&answer);
        if client == CLIENT {
            run.expect(&replied(&flow, &answer));
        }
        assert_eq!(run.outcome.output.len(), returned.bytes().len());
    }
}

fn an_embryo_loses_its_port_to_another_once_it_had_its_time() {
    let world = exhausted(|now| Word::embryo(backend(1), 7, now));
    world
        .send(&CLIENT.syn())
        .expect(&dropped(Reason::NoPort).of_backend(1));
    world.set_all(|now| Word::embryo(backend(1), 7, ago(now, 1)));
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
    run.expect(&to_backend(
        &BackendSpec::nat(1),
        &flow,
        &CLIENT.syn(),
        Reason::Opened,
    ));
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

fn a_former_flow_of_the_same_client_proves_nothing() {
    for mode in MODES {
        let world = World::with_translating(&mode(1));
        let former = world.open(CLIENT);
        world.send(&former.sends(RST));
        world.age(LINGER_RST_TICKS);
        assert_eq!(world.send(&CLIENT.syn()).reason(), Reason::Opened);
        let flow = world.flow(CLIENT);
        assert_eq!(flow.place, former.place);
        // The same acknowledgement as before, and no answer yet.
        world.send(&flow.ack());
        assert!(world.entry(CLIENT.key()).is(State::Embryo));
        world.send(&flow.syn_ack());
        world.send(&flow.ack());
        assert!(world.entry(CLIENT.key()).is(State::Pin));
    }
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

fn a_challenger_has_a_port_of_its_own() {
    let nat = BackendSpec::nat(1);
    let world = World::with_translating(&nat);
    let flow = world.open(CLIENT);
    let syn = CLIENT.syn().seq(0x7777_0000);
    let run = world.send(&syn);
    let (place, _) = world.entry_in(CLIENT.key(), State::Challenger);
    let word = world.translation(place).expect("it is valid");
    assert_ne!(word.port(), flow.source.1);
    let challenger = Opened {
        source: (SNAT[0], word.port()),
        place,
        ..flow
    };
    run.expect(&to_backend(&nat, &challenger, &syn, Reason::Challenged));
    assert_eq!(world.ports_in_use(1), (2, 2));
    // The flow goes on as it was, both ways.
    let data = flow.ack().payload(b"data");
    let expected = to_backend(&nat, &flow, &data, Reason::Established);
    world.send(&data).expect(&expected);
    let answer = flow.replies(ACK);
    world.send(&answer).expect(&replied(&flow, &answer));
    // And the new connection becomes one by its own handshake.
    let answer = challenger.syn_ack().ack(0x7777_0001);
    world.send(&answer).expect(&replied(&challenger, &answer));
    let ack = flow.ack().seq(0x7777_0001);
    let expected = to_backend(&nat, &challenger, &ack, Reason::Established);
    world.send(&ack).expect(&expected);
    assert!(world.at(place).1.is(State::Pin));
}

fn a_challenger_of_dnat_is_proven_by_its_own_handshake() {
    let dnat = BackendSpec::dnat(1);
    let world = World::with_translating(&dnat);
    let flow = world.open(CLIENT);
    world.send(&CLIENT.syn().seq(0x7777_0000));
    let (place, _) = world.entry_in(CLIENT.key(), State::Challenger);
    let challenger = Opened { place, ..flow };
    // The backend takes both for one connection's: what it answers has the same ends.
    let answer = challenger.syn_ack().ack(0x7777_0001);
    world.send(&answer).expect(&replied(&flow, &answer));
    let ack = flow.ack().seq(0x7777_0001);
    let expected = to_backend(&dnat, &flow, &ack, Reason::Established);
    world.send(&ack).expect(&expected);
    assert!(world.at(place).1.is(State::Pin));
}

fn what_the_host_does_with_its_own_address_is_its_own() {
    let world = World::with_translating(&BackendSpec::nat(1));
    let flow = world.open(CLIENT);
    let untouched = passed(Reason::NotService);
    let free = if flow.source.1 == 2_000 { 2_001 } else { 2_000 };
    for source in [
        (SNAT[0], free),
        (SNAT[0], 22),
        (SNAT[1], flow.source.1),
        (CLIENT.0, CLIENT.1),
    ] {
        for flags in [SYN | ACK, ACK, RST, FIN | ACK] {
            let packet = Opened { source, ..flow }.replies(flags);
            world.send(&packet).expect(&untouched);
            world.send(&packet.tagged(0x8100, 3)).expect(&untouched);
        }
    }
    // From another port of the backend's host, and from another host.
    let other = flow.replies(ACK).with_tcp(|tcp| tcp.source_port += 1);
    world.send(&other).expect(&untouched);
    let mut other = flow.replies(ACK);
    other.source = CLIENT.0;
    world.send(&other).expect(&untouched);
}

fn a_reply_of_a_flow_that_is_changing_is_dropped_and_never_the_hosts() {
    let world = World::with_translating(&BackendSpec::nat(1));
    let flow = world.open(CLIENT);
    let answer = flow.replies(ACK);
    let changing = dropped(Reason::Untranslated).of_no_service();
    let (key, value) = world.at(flow.place);
    let word = world.translation(flow.place).expect("it is valid");
    for (what, change) in [
        ("its entry is being written", Word::BUSY),
        ("its entry has moved on", Word::EMPTY),
        (
            "it is another flow's by now",
            value.with_backend(backend(2)),
        ),
    ] {
        world.set_value(flow.place, change);
        println!("{what}");
        world.send(&answer).expect(&changing);
    }
    world.put(flow.place, key, value);
    for stamp in [0, 1, 77] {
        world.put_translation(flow.place, word, stamp);
        world.send(&answer).expect(&changing);
        // And so with what the client sends.
        world
            .send(&flow.ack())
            .expect(&dropped(Reason::Untranslated).of_backend(1));
    }
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
    run.expect(&to_backend(&dnat, &flow, &packet, Reason::Adopted));
    let word = world.entry(CLIENT.key());
    assert!(word.is(State::Young) && word.has(Word::FOREIGN));
    let answer = flow.replies(ACK).payload(b"data");
    world.send(&answer).expect(&replied(&flow, &answer));
    // Proven by time, whoever sends.
    world.age(YOUNG_TICKS);
    world.send(&answer).expect(&replied(&flow, &answer));
    assert!(world.entry(CLIENT.key()).is(State::Pin));
    // None of it can be adopted by its end, or when too many are.
    let fin = OTHER.ack().with_tcp(|tcp| tcp.flags = FIN | ACK);
    world
        .send(&fin)
        .expect(&answered(Reason::UnknownFlow, reset_output(&fin)).of_backend(1));
}

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
    record.translates = 1;
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
    world.send(&answer).expect(&replied(&flow, &answer));
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

fn tags_are_put_on_and_taken_off_both_ways() {
    const CAME: [&[(u16, u16)]; 3] = [
        &[],
        &[(0x8100, 0x6064)],
        &[(0x88a8, 0xa064), (0x8100, 0x2065)],
    ];
    let tagged = |packet: Packet, tags: &[(u16, u16)]| {
        tags.iter().rev().fold(packet, |packet, (protocol, tag)| {
            packet.tagged(*protocol, *tag)
        })
    };
    for mode in MODES {
        for leave in [&[][..], &TAGS[..1], &TAGS[..]] {
            for before in [0, 7] {
                let backend = mode(1).by_vlans(leave);
                let world = World::with_translating(&backend);
                world.link(before);
                for came in CAME {
                    for place in world.places() {
                        world.set_value(place, Word::EMPTY);
                    }
                    let syn = tagged(TAGGED.syn(), came);
                    let run = world.send(&syn);
                    let flow = world.flow(TAGGED);
                    run.expect(&to_backend(&backend, &flow, &syn, Reason::Opened));
                    let answer = tagged(flow.syn_ack(), came);
                    let sent = flow.returned(&answer).bytes();
                    world
                        .send(&answer)
                        .expect(&forwarded(Reason::Reply, 1, sent));
                    for packet in [flow.ack(), flow.ack().payload(b"data")] {
                        let packet = tagged(packet, came);
                        let expected = to_backend(&backend, &flow, &packet, Reason::Established);
                        world.send(&packet).expect(&expected);
                    }
                }
            }
        }
    }
}

/// A maximum segment size, behind options of all kinds: at even offsets and at odd ones.
fn with_mss(packet: Packet, before: &[u8], mss: u16) -> Packet {
    let [high, low] = mss.to_be_bytes();
    let mut options = before.to_vec();
    options.extend([2, 4, high, low]);
    options.resize(options.len().next_multiple_of(4), 0);
    packet.tcp_options(&options)
}

fn a_syn_tells_what_fits_the_way() {
    let headers = match version() {
        IpVersion::V4 => 40,
        IpVersion::V6 => 60,
    };
    for mode in MODES {
        for before in [
            &[][..],
            &[1],
            &[1, 1, 1],
            &[4, 2, 3, 3, 7],
            &[8, 10, 2, 2, 2, 2, 2, 2, 2, 2],
        ] {
            let backend = mode(1).mtu(1_400);
            let world = World::with_translating(&backend);
            for (client, fits) in [(CLIENT, 1_500), (NARROW, NARROW_MTU)] {
                let most = fits - headers;
                for (told, tells) in [(most, most), (most + 1, most), (9_000, most), (500, 500)] {
                    for place in world.places() {
                        world.set_value(place, Word::EMPTY);
                    }
                    let run = world.send(&with_mss(client.syn(), before, told));
                    let flow = world.flow(client);
                    let sent = with_mss(client.syn(), before, tells);
                    run.expect(&to_backend(&backend, &flow, &sent, Reason::Opened));
                    // The answer tells what fits the way to the backend.
                    let most = 1_400 - headers;
                    let answer = with_mss(flow.syn_ack(), before, told);
                    let sent = with_mss(flow.syn_ack(), before, told.min(most));
                    world.send(&answer).expect(&replied(&flow, &sent));
                }
            }
        }
    }
    // Where there is none, or none that can be, nothing is changed; nor in what is no SYN.
    let backend = BackendSpec::nat(1);
    let world = World::with_translating(&backend);
    for options in [
        &[][..],
        &[0, 2, 4, 255],
        &[3, 0, 2, 4, 255, 255, 0, 0],
        &[2, 3, 255, 255],
        &[1, 1, 2, 4],
    ] {
        for place in world.places() {
            world.set_value(place, Word::EMPTY);
        }
        let syn = CLIENT.syn().tcp_options(options);
        let run = world.send(&syn);
        let flow = world.flow(CLIENT);
        run.expect(&to_backend(&backend, &flow, &syn, Reason::Opened));
    }
    let flow = world.flow(CLIENT);
    world.send(&flow.syn_ack());
    let ack = with_mss(flow.ack(), &[], 9_000);
    let expected = to_backend(&backend, &flow, &ack, Reason::Established);
    world.send(&ack).expect(&expected);
}

fn what_is_too_big_is_answered_to_who_sent_it() {
    for mode in MODES {
        let world = World::with_translating(&mode(1).mtu(1_400));
        let flow = world.open(NARROW);
        let fits = flow.ack().of_length(1_400);
        assert_eq!(world.send(&fits).reason(), Reason::Established);
        for data in [
            flow.ack().of_length(1_401),
            flow.ack().of_length(1_401).tagged(0x8100, 3),
        ] {
            let told = complaint(&data, About::TooBig(1_400));
            world
                .send(&data)
                .expect(&answered(Reason::TooBig, told).of_backend(1));
        }
        let fits = flow.replies(ACK).of_length(usize::from(NARROW_MTU));
        world.send(&fits).expect(&replied(&flow, &fits));
        let answer = flow.replies(ACK).of_length(usize::from(NARROW_MTU) + 1);
        let told = complaint(&answer, About::TooBig(u32::from(NARROW_MTU)));
        world
            .send(&answer)
            .expect(&answered(Reason::TooBig, told).of_backend(1));
    }
}

fn what_has_no_hops_left_is_answered_to_who_sent_it() {
    for mode in MODES {
        let world = World::with_translating(&mode(1));
        let flow = world.open(CLIENT);
        for packet in [
            flow.ack().ttl(1),
            flow.ack().ttl(0),
            flow.replies(ACK).ttl(1),
            flow.replies(ACK).ttl(0).tagged(0x8100, 3),
        ] {
            let told = complaint(&packet, About::Expired);
            world
                .send(&packet)
                .expect(&answered(Reason::TtlExpired, told).of_backend(1));
        }
    }
}

fn a_reply_without_a_known_neighbour_is_the_kernels_to_send() {
    for mode in MODES {
        let world = World::with_translating(&mode(1));
        let wanted = [(ELSEWHERE, on_wire(UNHEARD.0))];
        assert_eq!(world.send(&UNHEARD.syn()).reason(), Reason::Opened);
        // By then there is time to find it.
        assert_eq!(world.maps.take_unresolved(), wanted.into());
        let flow = world.flow(UNHEARD);
        for answer in [flow.syn_ack(), flow.syn_ack().tagged(0x8100, 3)] {
            let sent = flow.returned(&answer).bytes();
            let run = world.send(&answer);
            run.expect(&forwarded(Reason::Reply, 1, sent).left_to_the_host());
            assert_eq!(world.maps.take_unresolved(), wanted.into());
            assert_eq!(world.maps.take_unresolved(), [].into());
        }
    }
}

fn a_reply_without_a_way_is_dropped() {
    for mode in MODES {
        let world = World::with_translating(&mode(1));
        world.send(&NOWHERE.syn());
        let flow = world.flow(NOWHERE);
        world
            .send(&flow.syn_ack())
            .expect(&dropped(Reason::NoRouteBack).of_backend(1));
    }
}

fn a_dead_backend_is_told_to_the_client() {
    for mode in MODES {
        let backend = mode(1);
        let world = World::with_translating(&backend);
        let flow = world.open(CLIENT);
        world.translate(&backend.serving(Serving::None), SERVICE);
        world.save_resets(100);
        let data = flow.ack().payload(b"data");
        world
            .send(&data)
            .expect(&answered(Reason::BackendDead, reset_output(&data)).of_backend(1));
        world.translate(&backend.serving(Serving::ExistingOnly), SERVICE);
        let expected = to_backend(&backend, &flow, &data, Reason::Established);
        world.send(&data).expect(&expected);
    }
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
    let expected = to_backend(&nat, &flow, &data, Reason::Established);
    world.send(&data).expect(&expected);
    let answer = flow.replies(ACK);
    world.send(&answer).expect(&replied(&flow, &answer));
}

fn while_the_tables_are_held_nothing_new_is_made() {
    for mode in MODES {
        let backend = mode(1);
        let world = World::with_translating(&backend);
        let flow = world.open(CLIENT);
        let (pin, word) = (world.entry(CLIENT.key()), world.translation(flow.place));
        world.age(3);
        let aged = world.entry(CLIENT.key());
        world.hold(std::time::Duration::from_secs(60));
        let held = dropped(Reason::Held).of_backend(1);
        world.send(&OTHER.syn()).expect(&held);
        for packet in [
            flow.sends(RST),
            flow.sends(FIN | ACK),
            flow.replies(RST),
            flow.replies(FIN | ACK),
        ] {
            world.send(&packet).expect(&held);
        }
        let data = flow.ack().payload(b"data");
        let expected = to_backend(&backend, &flow, &data, Reason::Established);
        world.send(&data).expect(&expected);
        let answer = flow.replies(ACK);
        world.send(&answer).expect(&replied(&flow, &answer));
        assert_eq!(world.entry(CLIENT.key()), aged);
        assert_ne!(aged, pin);
        assert_eq!(world.translation(flow.place), word);
    }
}
