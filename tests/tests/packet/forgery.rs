//! Forgeries against a living flow, which change nothing, and ports that are used again, which look like them.

use lab::packet::{
    BackendSpec, CLIENT, Client, World, dropped,
    entries::backend,
    flow::{MIB, assert_to, fin, live, pinned, rst, seq},
    world::tick,
};
use lb_common::{
    backend::Serving,
    flow::word::{LATE_TICKS, State, Word, YOUNG_TICKS},
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

lab::in_both_versions![
    a_spoofed_syn_against_a_pin_never_moves_it,
    a_spoofed_syn_against_a_pin_of_a_draining_backend_never_moves_it,
    a_whole_spoofed_handshake_against_a_pin_never_moves_it,
    a_whole_spoofed_handshake_against_a_pin_whose_place_was_forged_never_moves_it,
    a_spoofed_fin_or_rst_outside_the_window_leaves_a_hint_that_data_clears,
    a_spoofed_fin_or_rst_within_the_window_does_not_move_a_pin_either,
    a_forged_end_at_a_forged_place_does_not_move_a_pin_either,
    flags_that_no_stream_has_change_nothing_of_a_pin,
    a_spoofed_syn_ahead_of_a_stream_never_has_it,
    three_spoofed_segments_do_not_cut_a_half_closed_stream,
    a_port_used_again_belongs_to_its_challenger_from_its_first_acknowledgement_on,
    a_port_used_again_is_its_next_connections_past_where_the_former_one_was,
    a_third_use_of_a_port_takes_the_place_of_the_entry_that_is_closing,
    a_third_use_of_a_port_with_two_living_entries_goes_where_its_packets_will_and_writes_nothing,
];

fn a_spoofed_syn_against_a_pin_never_moves_it() {
    let (world, pin) = pinned();
    for (isn, reason) in [
        (1, Reason::Challenged),
        (2, Reason::Reopened),
        (3, Reason::Reopened),
    ] {
        // The forger learns nothing either: its SYN goes where the flow is.
        assert_to(&world, &CLIENT.syn().seq(isn), reason, 2);
        assert_to(
            &world,
            &CLIENT.ack().payload(b"data"),
            Reason::Established,
            2,
        );
        let (_, word) = world.entry_in(CLIENT.key(), State::Pin);
        assert_eq!(word, pin.with(Word::CONTESTED));
    }
    assert_eq!(world.entries(CLIENT.key()).len(), 2, "at most two a key");
}

fn a_spoofed_syn_against_a_pin_of_a_draining_backend_never_moves_it() {
    let (world, pin) = pinned();
    world.backend(&BackendSpec::l2(2).serving(Serving::ExistingOnly));
    // It may be a new connection: that must not go to a backend that takes none.
    assert_to(&world, &CLIENT.syn().seq(1), Reason::Challenged, 1);
    assert_to(&world, &CLIENT.ack(), Reason::Established, 2);
    assert_to(
        &world,
        &CLIENT.ack().payload(b"data"),
        Reason::Established,
        2,
    );
    let (_, word) = world.entry_in(CLIENT.key(), State::Pin);
    assert_eq!(word, pin.with(Word::CONTESTED));
}

fn a_whole_spoofed_handshake_against_a_pin_never_moves_it() {
    let (world, pin) = pinned();
    world.backend(&BackendSpec::l2(2).serving(Serving::ExistingOnly));
    let forged = seq() ^ 0x4000_0000;
    assert_to(&world, &CLIENT.syn().seq(forged), Reason::Challenged, 1);
    assert_to(
        &world,
        &CLIENT.ack().seq(forged + 1),
        Reason::Established,
        1,
    );
    // The forger is young now, and comes back after 31 s to be a pin.
    world.age(YOUNG_TICKS);
    assert_to(
        &world,
        &CLIENT.ack().seq(forged + 1),
        Reason::Established,
        1,
    );
    for _ in 0..3 {
        assert_to(
            &world,
            &CLIENT.ack().payload(b"data"),
            Reason::Established,
            2,
        );
        assert_to(
            &world,
            &CLIENT.ack().seq(forged + 9),
            Reason::Established,
            1,
        );
    }
    let both = world.entries(CLIENT.key());
    assert_eq!(both.len(), 2);
    let pins = both.iter().filter(|(_, word)| word.is(State::Pin)).count();
    assert_eq!(pins, 2, "{both:?}");
    assert!(both.iter().any(|(_, word)| word.backend() == pin.backend()));
}

/// Half of all sequence numbers are nearer to the forged handshake than to where the stream is forged to be.
fn a_whole_spoofed_handshake_against_a_pin_whose_place_was_forged_never_moves_it() {
    for away in [0x2000_0000, 0x6000_0000, 0xa000_0000, 0xe000_0000] {
        let (world, pin) = pinned();
        world.backend(&BackendSpec::l2(2).serving(Serving::ExistingOnly));
        let place = seq().wrapping_add(away);
        for _ in 0..2 {
            let forged = CLIENT.ack().seq(place);
            assert_to(&world, &forged, Reason::Established, 2);
        }
        let isn = place.wrapping_add(1 << 31);
        assert_to(&world, &CLIENT.syn().seq(isn), Reason::Challenged, 1);
        let answer = CLIENT.ack().seq(isn.wrapping_add(1));
        assert_to(&world, &answer, Reason::Established, 1);
        let data = CLIENT.ack().payload(b"data");
        for _ in 0..2 {
            assert_to(&world, &data, Reason::Established, 2);
        }
        let (_, word) = world.entry_in(CLIENT.key(), State::Pin);
        assert_eq!(word, pin.with(Word::CONTESTED));
    }
}

fn a_spoofed_fin_or_rst_outside_the_window_leaves_a_hint_that_data_clears() {
    for flags in [FIN, FIN | ACK, RST, RST | ACK] {
        let (world, pin) = pinned();
        for away in [2 * MIB, 100 * MIB, 0_u32.wrapping_sub(2 * MIB)] {
            let forged = CLIENT
                .ack()
                .seq(seq().wrapping_add(away))
                .with_tcp(|tcp| tcp.flags = flags);
            assert_to(&world, &forged, Reason::Established, 2);
            assert_eq!(world.entry(CLIENT.key()), pin.with(Word::HINT));
            assert_to(
                &world,
                &CLIENT.ack().payload(b"data"),
                Reason::Established,
                2,
            );
            assert_eq!(world.entry(CLIENT.key()), pin);
        }
    }
}

/// Who guesses the window too closes the entry, and the flow goes on all the same: closing forwards.
fn a_spoofed_fin_or_rst_within_the_window_does_not_move_a_pin_either() {
    for forged in [fin(), rst()] {
        let (world, pin) = pinned();
        assert_to(&world, &forged, Reason::Established, 2);
        assert!(world.entry(CLIENT.key()).is(State::Closing));
        // What comes at once may have been sent before a FIN.
        assert_to(&world, &CLIENT.ack(), Reason::Established, 2);
        world.age(LATE_TICKS);
        assert_to(
            &world,
            &CLIENT.ack().payload(b"data"),
            Reason::Established,
            2,
        );
        let revived = world.entry(CLIENT.key());
        assert_eq!(
            (revived.state(), revived.backend()),
            (State::Young, pin.backend())
        );
        world.age(YOUNG_TICKS);
        assert_to(
            &world,
            &CLIENT.ack().payload(b"data"),
            Reason::Established,
            2,
        );
        assert!(world.entry(CLIENT.key()).is(State::Pin));
    }
}

/// Who forges twice where the stream is, and then its end there, closes the entry without a guess. It forwards all the same, and lives again once its client
/// has spoken twice.
fn a_forged_end_at_a_forged_place_does_not_move_a_pin_either() {
    for end in [fin(), rst()] {
        let (world, pin) = pinned();
        let far = seq() ^ 0x4000_0000;
        for forged in [CLIENT.ack(), CLIENT.ack(), end] {
            assert_to(&world, &forged.seq(far), Reason::Established, 2);
        }
        assert!(world.entry(CLIENT.key()).is(State::Closing));
        world.age(LATE_TICKS);
        let data = CLIENT.ack().payload(b"data");
        for _ in 0..2 {
            assert_to(&world, &data, Reason::Established, 2);
        }
        let revived = world.entry(CLIENT.key());
        assert_eq!(
            (revived.state(), revived.backend()),
            (State::Young, pin.backend())
        );
    }
}

/// A handshake from the wrong side or with an end in it, and segments that acknowledge nothing.
fn flags_that_no_stream_has_change_nothing_of_a_pin() {
    const PSH: u8 = 0x08;
    const URG: u8 = 0x20;
    let (world, pin) = pinned();
    let odd = |flags| CLIENT.ack().with_tcp(|tcp| tcp.flags = flags);
    for flags in [SYN | ACK, SYN | FIN, SYN | RST, SYN | FIN | PSH | URG, 0xff] {
        world.send(&odd(flags)).expect(&dropped(Reason::BadFlags));
        assert_eq!(world.entry(CLIENT.key()), pin);
    }
    for flags in [0, PSH, URG, PSH | URG] {
        assert_to(&world, &odd(flags), Reason::Established, 2);
        assert_eq!(world.entry(CLIENT.key()), pin);
    }
}

fn a_spoofed_syn_ahead_of_a_stream_never_has_it() {
    let (world, _) = pinned();
    world.backend(&BackendSpec::l2(2).serving(Serving::ExistingOnly));
    let forged = CLIENT.syn().seq(seq().wrapping_add(2 * MIB));
    assert_to(&world, &forged, Reason::Challenged, 1);
    for step in 0..40 {
        let at = seq().wrapping_add(step * (MIB / 8));
        let data = CLIENT.ack().seq(at).payload(b"data");
        assert_to(&world, &data, Reason::Established, 2);
    }
}

fn three_spoofed_segments_do_not_cut_a_half_closed_stream() {
    let (world, _) = pinned();
    world.backend(&BackendSpec::l2(2).serving(Serving::ExistingOnly));
    assert_to(&world, &fin(), Reason::Established, 2);
    let forged = seq() ^ 0x4000_0000;
    assert_to(&world, &CLIENT.syn().seq(forged), Reason::Challenged, 1);
    let answer = CLIENT.ack().seq(forged + 1);
    assert_to(&world, &answer, Reason::Established, 1);
    world.send(&CLIENT.syn().seq(forged ^ 0x1000_0000));
    assert_to(&world, &CLIENT.ack(), Reason::Established, 2);
}

fn a_port_used_again_belongs_to_its_challenger_from_its_first_acknowledgement_on() {
    let (world, _) = pinned();
    world.backend(&BackendSpec::l2(2).serving(Serving::ExistingOnly));
    let isn = seq() ^ 0x4000_0000;
    let next = Client(CLIENT.0, CLIENT.1);
    assert_to(&world, &next.syn().seq(isn), Reason::Challenged, 1);
    assert_to(&world, &next.syn().seq(isn), Reason::Reopened, 1);
    assert_to(
        &world,
        &next.ack().seq(isn + 1).payload(b"hello"),
        Reason::Established,
        1,
    );
    let (place, young) = world.entry_in(CLIENT.key(), State::Young);
    assert!(
        young.has(Word::CONTESTED) && young.has(Word::SECOND),
        "{young:?}"
    );
    assert_eq!(world.first_seen(place), tick().0);
    // The new connection's packets are its own, whatever the order; the old entry keeps what is near it.
    assert_to(&world, &next.ack().seq(isn + 6), Reason::Established, 1);
    assert_to(&world, &CLIENT.ack(), Reason::Established, 2);
    // Its end is its own, too.
    let end = fin().seq(isn + 6);
    assert_to(&world, &end, Reason::Established, 1);
    world.entry_in(CLIENT.key(), State::Closing);
    world.entry_in(CLIENT.key(), State::Pin);
}

/// The former client vanished, so that its entry stays where its stream was.
fn a_port_used_again_is_its_next_connections_past_where_the_former_one_was() {
    let (world, _) = pinned();
    world.backend(&BackendSpec::l2(2).serving(Serving::ExistingOnly));
    world.age(YOUNG_TICKS);
    let isn = seq().wrapping_sub(3 * MIB);
    assert_to(&world, &CLIENT.syn().seq(isn), Reason::Challenged, 1);
    for step in 0..48 {
        let at = isn.wrapping_add(1 + step * (MIB / 8));
        let data = CLIENT.ack().seq(at).payload(b"data");
        assert_to(&world, &data, Reason::Established, 1);
    }
}

fn a_third_use_of_a_port_takes_the_place_of_the_entry_that_is_closing() {
    let world = World::new();
    let now = world.now();
    let near = Word::CONTESTED;
    let pin = live(State::Pin, now).with(near);
    let closing = live(State::Closing, now)
        .with(near | Word::SECOND)
        .with_epoch(99);
    let kept = world.insert(CLIENT.key(), pin);
    let freed = world.insert(CLIENT.key(), closing);
    assert_to(&world, &CLIENT.syn().seq(5), Reason::Challenged, 1);
    assert_eq!(world.at(freed).1, Word::challenger(backend(1), 5, now));
    assert_eq!(world.at(kept).1, pin);
}

fn a_third_use_of_a_port_with_two_living_entries_goes_where_its_packets_will_and_writes_nothing() {
    let world = World::new();
    let now = world.now();
    let one = live(State::Pin, now).with(Word::CONTESTED);
    let other = Word::live(
        State::Pin,
        backend(2),
        99,
        now,
        Word::CONTESTED | Word::SECOND,
    );
    world.insert(CLIENT.key(), one);
    world.insert(CLIENT.key(), other);
    for (isn, nearer) in [(seq(), 1), (99 * MIB, 2)] {
        let before = world.values();
        assert_to(&world, &CLIENT.syn().seq(isn), Reason::Unpinned, nearer);
        assert_eq!(world.values(), before);
        assert_to(
            &world,
            &CLIENT.ack().seq(isn + 1),
            Reason::Established,
            nearer,
        );
    }
    let before = world.values();
    let backends: Vec<_> = before.iter().map(|(_, _, word)| word.backend()).collect();
    assert_eq!(backends.len(), 2);
    assert!(backends.contains(&backend(1)) && backends.contains(&backend(2)));
    world.backend(&BackendSpec::l2(2).serving(Serving::ExistingOnly));
    world
        .send(&CLIENT.syn().seq(99 * MIB))
        .expect(&dropped(Reason::Contested));
    assert_eq!(world.values(), before);
}
