//! Modes `nat` and `dnat`: a SYN for a port that has a flow already, forged, late or of the next connection, and whose segments are whose then.

use lab::packet::{
    BackendSpec, CLIENT, World,
    flow::MIB,
    forwarded,
    nat::{MODES, Opened, SNAT, in_each_mode},
};
use lb_common::{
    flow::word::{LINGER_RST_TICKS, State, Word},
    tcp::{ACK, FIN, RST},
    verdict::Reason,
};

lab::in_both_versions![
    a_forged_syn_ahead_of_a_stream_never_has_it,
    the_syn_that_comes_late_once_more_takes_nothing,
    a_backend_that_takes_the_data_of_a_syn_and_speaks_has_opened_the_flow,
    the_answer_to_a_syn_that_another_has_replaced_proves_nothing,
    the_next_connection_of_a_port_has_its_stream_at_once,
    the_next_connection_of_a_port_has_its_stream_past_where_the_former_one_was,
    of_two_connections_of_one_port_the_backend_ends_its_own,
    a_syn_again_keeps_its_port,
    a_former_flow_of_the_same_client_proves_nothing,
    a_challenger_has_a_port_of_its_own,
    a_challenger_of_dnat_is_proven_by_its_own_handshake,
    what_a_backend_still_has_at_a_challengers_port_is_reset,
];

/// The client sends at a place of its stream, and its backend gets that from where it gets all of the flow.
fn goes_on(world: &World, backend: &BackendSpec, flow: &Opened, seq: u32) {
    let data = flow.ack().seq(seq).payload(b"data");
    let run = world.send(&data);
    assert_eq!(run.reason(), Reason::Established, "at {seq:#x}");
    let expected = backend.translated(&data, flow.source).bytes();
    assert_eq!(run.outcome.output, expected, "at {seq:#x}");
}

fn a_forged_syn_ahead_of_a_stream_never_has_it() {
    in_each_mode(|world, backend, flow| {
        let begin = flow.ack().as_tcp().seq;
        let forged = CLIENT.syn().seq(begin.wrapping_add(2 * MIB));
        assert_eq!(world.send(&forged).reason(), Reason::Challenged);
        for step in 0..40 {
            goes_on(world, backend, &flow, begin.wrapping_add(step * (MIB / 8)));
        }
        let (_, pin) = world.entry_in(CLIENT.key(), State::Pin);
        assert!(pin.has(Word::CONTESTED));
    });
}

fn the_syn_that_comes_late_once_more_takes_nothing() {
    in_each_mode(|world, backend, flow| {
        world.send(&CLIENT.syn());
        let begin = flow.ack().as_tcp().seq;
        for sent in [0, 4, 1_000, 100_000] {
            goes_on(world, backend, &flow, begin.wrapping_add(sent));
        }
    });
}

/// The next connection of a port whose former one both sides have ended; and where its stream begins.
fn open_again(world: &World) -> (Opened, u32) {
    let former = world.open(CLIENT);
    let begin = former.ack().as_tcp().seq;
    world.send(&former.sends(FIN | ACK));
    world.send(&former.replies(FIN | ACK).ack(begin.wrapping_add(1)));
    assert!(world.entry(CLIENT.key()).is(State::Closing));

    // As the client's kernel does it, if the port is used again within milliseconds.
    let begin = begin.wrapping_add(MIB / 8);
    let syn = CLIENT.syn().seq(begin.wrapping_sub(1));
    assert_eq!(world.send(&syn).reason(), Reason::Challenged);
    let next = world.flow_in(CLIENT, State::Challenger);
    let run = world.send(&next.syn_ack().ack(begin));
    assert_eq!(run.reason(), Reason::Reply);
    (next, begin)
}

fn the_next_connection_of_a_port_has_its_stream_at_once() {
    for mode in MODES {
        let backend = mode(1);
        let world = World::with_translating(&backend);
        let (next, begin) = open_again(&world);
        for sent in [0, 4, 100_000] {
            goes_on(&world, &backend, &next, begin.wrapping_add(sent));
        }
    }
}

/// The former client vanished, so that its entry stays where its stream was; in mode `nat` with a port that the backend knows another connection by.
fn the_next_connection_of_a_port_has_its_stream_past_where_the_former_one_was() {
    in_each_mode(|world, backend, former| {
        let begin = former.ack().as_tcp().seq.wrapping_sub(3 * MIB);
        let syn = CLIENT.syn().seq(begin.wrapping_sub(1));
        assert_eq!(world.send(&syn).reason(), Reason::Challenged);
        let next = world.flow_in(CLIENT, State::Challenger);
        let run = world.send(&next.syn_ack().ack(begin));
        assert_eq!(run.reason(), Reason::Reply);
        for step in 0..48 {
            let at = begin.wrapping_add(step * (MIB / 8));
            goes_on(world, backend, &next, at);
        }
    });
}

/// In mode `dnat` the backend's segments do not tell which of the two they are of.
fn of_two_connections_of_one_port_the_backend_ends_its_own() {
    for mode in MODES {
        let world = World::with_translating(&mode(1));
        let (next, begin) = open_again(&world);
        world.send(&next.sends(ACK).seq(begin));
        let (place, _) = world.entry_in(CLIENT.key(), State::Pin);
        world.send(&next.replies(FIN | ACK).ack(begin));
        assert!(world.at(place).1.is(State::Pin));
        world.send(&next.sends(FIN | ACK).seq(begin));
        assert!(world.at(place).1.is(State::Closing));
    }
}

/// TCP Fast Open (RFC 7413).
fn a_backend_that_takes_the_data_of_a_syn_and_speaks_has_opened_the_flow() {
    for mode in MODES {
        let backend = mode(1);
        let world = World::with_translating(&backend);
        let syn = CLIENT.syn().payload(b"a question");
        assert_eq!(world.send(&syn).reason(), Reason::Opened);
        let flow = world.flow(CLIENT);
        let next = flow.ack().as_tcp().seq.wrapping_add(10);
        let answer = flow.syn_ack().ack(next);
        assert_eq!(world.send(&answer).reason(), Reason::Reply);
        assert!(world.entry(CLIENT.key()).is(State::Embryo));
        // It may send data before it hears of the client again, which acknowledges all of that at once.
        let early = flow.replies(ACK).ack(next).payload(b"an answer");
        assert_eq!(world.send(&early).reason(), Reason::Reply);
        assert!(world.entry(CLIENT.key()).is(State::Pin));
        goes_on(&world, &backend, &flow, next);
    }
}

/// As a spoofer can have it, who hears nothing of what the backend answers: two SYNs, the first one a little ahead.
fn the_answer_to_a_syn_that_another_has_replaced_proves_nothing() {
    for mode in MODES {
        let backend = mode(1);
        let world = World::with_translating(&backend);
        let isn = CLIENT.syn().as_tcp().seq;
        let ahead = CLIENT.syn().seq(isn.wrapping_add(1_000));
        assert_eq!(world.send(&ahead).reason(), Reason::Opened);
        assert_eq!(world.send(&CLIENT.syn()).reason(), Reason::Reopened);
        let flow = world.flow(CLIENT);
        let answer = flow.syn_ack().ack(isn.wrapping_add(1_001));
        for _ in 0..3 {
            assert_eq!(world.send(&answer).reason(), Reason::Reply);
            assert!(world.entry(CLIENT.key()).is(State::Embryo));
        }
        // Who is there is heard of by what it acknowledges.
        assert_eq!(world.send(&flow.ack()).reason(), Reason::Established);
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

fn a_former_flow_of_the_same_client_proves_nothing() {
    in_each_mode(|world, _, former| {
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
    });
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
    run.expect(&challenger.to_backend(&nat, &syn, Reason::Challenged));
    assert_eq!(world.ports_in_use(1), (2, 2));
    // The flow goes on as it was, both ways.
    let data = flow.ack().payload(b"data");
    let expected = flow.to_backend(&nat, &data, Reason::Established);
    world.send(&data).expect(&expected);
    let answer = flow.replies(ACK);
    world.send(&answer).expect(&flow.replied(&answer));
    // And the new connection becomes one by its own handshake.
    let answer = challenger.syn_ack().ack(0x7777_0001);
    world.send(&answer).expect(&challenger.replied(&answer));
    let ack = flow.ack().seq(0x7777_0001);
    let expected = challenger.to_backend(&nat, &ack, Reason::Established);
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
    world.send(&answer).expect(&flow.replied(&answer));
    let ack = flow.ack().seq(0x7777_0001);
    let expected = flow.to_backend(&dnat, &ack, Reason::Established);
    world.send(&ack).expect(&expected);
    assert!(world.at(place).1.is(State::Pin));
}

/// Of a connection whose client vanished, or whose RST was lost.
fn what_a_backend_still_has_at_a_challengers_port_is_reset() {
    in_each_mode(|world, backend, former| {
        let begin = former.ack().as_tcp().seq;
        let syn = CLIENT.syn().seq(begin.wrapping_add(64 * MIB));
        assert_eq!(world.send(&syn).reason(), Reason::Challenged);
        let next = world.flow_in(CLIENT, State::Challenger);

        // It does not take the SYN, but says where the connection was, and the client knows none of that kind (RFC 9293, 3.10.7.3).
        let was_at = begin.wrapping_add(900 * MIB);
        let answer = next.replies(ACK).ack(was_at);
        world.send(&answer).expect(&next.replied(&answer));
        let reset = next.sends(RST).seq(was_at);
        let expected = next.to_backend(backend, &reset, Reason::Established);
        world.send(&reset).expect(&expected);
        assert!(world.at(former.place).1.is(State::Pin));

        // The next SYN is taken, and the connection is there.
        let expected = next.to_backend(backend, &syn, Reason::Reopened);
        world.send(&syn).expect(&expected);
        let begin = syn.as_tcp().seq.wrapping_add(1);
        world.send(&next.syn_ack().ack(begin));
        goes_on(world, backend, &next, begin);
        assert!(world.at(next.place).1.is(State::Pin));
    });
}
