//! The life of a flow through the program: embryo, young, pin, closing.

use lab::packet::{
    BackendSpec, CLIENT, VIP, VIP_PORT, World, dropped,
    entries::backend,
    flow::{MIB, ago, assert_to, fin, live, pinned, rst, seq},
};
use lb_common::{
    backend::Serving,
    flow::{
        life::PROMOTION_WINDOW,
        word::{
            BackendRef, EMBRYO_TICKS, LINGER_EXCEPTION_TICKS, LINGER_FIN_TICKS, LINGER_RST_TICKS,
            REFRESH_TICKS, State, Word, YOUNG_TICKS, epoch_of,
        },
    },
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

lab::in_both_versions![
    a_syn_makes_an_embryo_that_holds_its_sequence_number,
    the_same_syn_again_writes_nothing,
    the_same_syn_keeps_its_backend_when_the_table_has_changed,
    another_syn_of_an_embryo_takes_its_place_and_its_backend_if_that_takes_new_flows,
    an_ack_within_the_window_after_the_syn_promotes_and_notes_when,
    an_ack_outside_the_window_does_not_promote_and_goes_to_the_embryos_backend,
    promotion_follows_a_sequence_number_that_wraps,
    what_follows_the_data_of_a_syn_promotes,
    a_fin_a_rst_or_a_segment_without_ack_does_not_promote,
    a_young_flow_becomes_a_pin_with_the_first_packet_after_30_seconds_and_not_before,
    a_pin_is_refreshed_by_every_packet_however_long_it_was_idle,
    a_flow_keeps_its_backend_when_the_table_changes,
    the_epoch_moves_ahead_with_the_stream_and_not_back,
    a_jump_of_the_epoch_is_believed_by_a_second_packet_only,
    a_fin_in_the_window_closes_and_still_forwards,
    a_rst_in_the_window_closes_and_still_forwards,
    an_exception_that_closes_by_fin_is_marked_as_one,
    a_half_closed_stream_keeps_its_backend_for_hours,
    data_long_after_a_fin_revives_the_flow_which_must_prove_itself_again,
    data_soon_after_a_fin_was_sent_before_it_and_revives_nothing,
    any_segment_after_a_rst_revives_the_flow_which_must_prove_itself_again,
    a_closing_entry_past_its_linger_makes_place_for_the_next_flow_of_its_port,
    a_reused_backend_id_never_inherits_flows,
    a_syn_on_an_embryo_of_a_reused_backend_id_is_a_new_flow,
    an_embryo_past_128_seconds_still_gives_the_same_syn_its_backend_until_it_is_swept,
];

fn a_syn_makes_an_embryo_that_holds_its_sequence_number() {
    let world = World::new();
    let now = world.now();
    assert_to(&world, &CLIENT.syn(), Reason::Opened, 1);
    let embryo = Word::embryo(backend(1), CLIENT.syn().as_tcp().seq, now);
    assert_eq!(world.entry(CLIENT.key()), embryo);
}

fn the_same_syn_again_writes_nothing() {
    let world = World::new();
    world.send(&CLIENT.syn());
    world.age(7);
    let before = world.entry(CLIENT.key());
    assert_to(&world, &CLIENT.syn(), Reason::Reopened, 1);
    assert_eq!(world.entry(CLIENT.key()), before);
}

fn the_same_syn_keeps_its_backend_when_the_table_has_changed() {
    let world = World::new();
    let now = world.now();
    let embryo = Word::embryo(backend(2), CLIENT.syn().as_tcp().seq, now);
    world.insert(CLIENT.key(), embryo);
    for serving in [Serving::New, Serving::ExistingOnly] {
        world.backend(&BackendSpec::l2(2).serving(serving));
        assert_to(&world, &CLIENT.syn(), Reason::Reopened, 2);
        assert_eq!(world.entry(CLIENT.key()), embryo);
    }
    world.backend(&BackendSpec::l2(2).serving(Serving::None));
    assert_to(&world, &CLIENT.syn(), Reason::Reopened, 1);
    assert_eq!(world.entry(CLIENT.key()).backend(), backend(1));
}

fn another_syn_of_an_embryo_takes_its_place_and_its_backend_if_that_takes_new_flows() {
    for (serving, taker) in [
        (Serving::New, 2),
        (Serving::ExistingOnly, 1),
        (Serving::None, 1),
    ] {
        let world = World::new();
        world.backend(&BackendSpec::l2(2).serving(serving));
        let now = world.now();
        world.insert(CLIENT.key(), Word::embryo(backend(2), 1, ago(now, 3)));
        assert_to(&world, &CLIENT.syn(), Reason::Reopened, taker);
        let embryo = Word::embryo(backend(taker), CLIENT.syn().as_tcp().seq, now);
        assert_eq!(world.entry(CLIENT.key()), embryo);
    }
}

fn an_ack_within_the_window_after_the_syn_promotes_and_notes_when() {
    let isn = CLIENT.syn().as_tcp().seq;
    for ahead in [0, 1, 1_460, PROMOTION_WINDOW] {
        let world = World::new();
        let now = world.now();
        world.send(&CLIENT.syn());
        let ack = CLIENT.ack().seq(isn.wrapping_add(ahead));
        assert_to(&world, &ack, Reason::Established, 1);
        let (place, word) = world.entry_in(CLIENT.key(), State::Young);
        let epoch = epoch_of(isn.wrapping_add(ahead));
        assert_eq!(word, Word::live(State::Young, backend(1), epoch, now, 0));
        assert_eq!(world.first_seen(place), now.0);
    }
}

fn an_ack_outside_the_window_does_not_promote_and_goes_to_the_embryos_backend() {
    let isn = CLIENT.syn().as_tcp().seq;
    for seq in [
        isn.wrapping_sub(1),
        isn + PROMOTION_WINDOW + 1,
        isn ^ 0x8000_0000,
    ] {
        let world = World::new();
        world.send(&CLIENT.syn());
        let before = world.entry(CLIENT.key());
        assert_to(&world, &CLIENT.ack().seq(seq), Reason::Established, 1);
        assert_eq!(world.entry(CLIENT.key()), before);
    }
}

fn promotion_follows_a_sequence_number_that_wraps() {
    let world = World::new();
    world.send(&CLIENT.syn().seq(u32::MAX));
    assert_to(&world, &CLIENT.ack().seq(0), Reason::Established, 1);
    let (_, young) = world.entry_in(CLIENT.key(), State::Young);
    assert_eq!(young.epoch(), 0);
}

/// TCP Fast Open (RFC 7413): the stream goes on behind what came with its SYN.
fn what_follows_the_data_of_a_syn_promotes() {
    let world = World::new();
    let syn = CLIENT.syn().payload(&[0x3c; 1_200]);
    assert_to(&world, &syn, Reason::Opened, 1);
    assert_to(&world, &syn, Reason::Reopened, 1);
    let next = CLIENT.ack().seq(seq().wrapping_add(1_200));
    assert_to(&world, &next, Reason::Established, 1);
    assert!(world.entry(CLIENT.key()).is(State::Young));
}

fn a_fin_a_rst_or_a_segment_without_ack_does_not_promote() {
    for flags in [FIN | ACK, RST, RST | ACK, FIN, 0] {
        let world = World::new();
        world.send(&CLIENT.syn());
        let before = world.entry(CLIENT.key());
        let packet = CLIENT.ack().with_tcp(|tcp| tcp.flags = flags);
        assert_to(&world, &packet, Reason::Established, 1);
        assert_eq!(world.entry(CLIENT.key()), before);
    }
}

fn a_young_flow_becomes_a_pin_with_the_first_packet_after_30_seconds_and_not_before() {
    let world = World::new();
    let now = world.now();
    let before = live(State::Young, ago(now, YOUNG_TICKS - 1));
    let place = world.insert(CLIENT.key(), before);
    assert_to(&world, &CLIENT.ack(), Reason::Established, 1);
    assert_eq!(
        world.entry(CLIENT.key()),
        before,
        "its tick is its promotion's"
    );
    world.set_value(place, live(State::Young, ago(now, YOUNG_TICKS)));
    assert_to(&world, &CLIENT.ack(), Reason::Established, 1);
    assert_eq!(world.entry(CLIENT.key()), live(State::Pin, now));
}

fn a_pin_is_refreshed_by_every_packet_however_long_it_was_idle() {
    for idle in [0, 1, 1_000, 20_000, 1 << 19] {
        let world = World::new();
        let now = world.now();
        world.insert(CLIENT.key(), live(State::Pin, ago(now, idle)));
        assert_to(&world, &CLIENT.ack(), Reason::Established, 1);
        assert_eq!(world.entry(CLIENT.key()), live(State::Pin, now));
    }
}

fn a_flow_keeps_its_backend_when_the_table_changes() {
    let (world, pin) = pinned();
    assert_to(
        &world,
        &CLIENT.ack().payload(b"data"),
        Reason::Established,
        2,
    );
    assert_eq!(world.entry(CLIENT.key()), pin);
    world.backend(&BackendSpec::l2(2).serving(Serving::ExistingOnly));
    assert_to(
        &world,
        &CLIENT.ack().payload(b"data"),
        Reason::Established,
        2,
    );
    assert_eq!(world.entry(CLIENT.key()), pin);
}

fn the_epoch_moves_ahead_with_the_stream_and_not_back() {
    let world = World::new();
    let now = world.now();
    let place = world.insert(CLIENT.key(), live(State::Pin, now));
    let epoch = epoch_of(seq());
    for (ahead, expected) in [
        (MIB, epoch + 1),
        (0, epoch + 1),
        (2 * MIB, epoch + 2),
        (MIB, epoch + 2),
    ] {
        assert_to(
            &world,
            &CLIENT.ack().seq(seq() + ahead),
            Reason::Established,
            1,
        );
        assert_eq!(
            world.at(place).1,
            live(State::Pin, now).with_epoch(expected)
        );
    }
}

fn a_jump_of_the_epoch_is_believed_by_a_second_packet_only() {
    let world = World::new();
    let now = world.now();
    world.insert(CLIENT.key(), live(State::Pin, now));
    let far = seq() + 100 * MIB;
    let jumped = live(State::Pin, now).with_epoch(epoch_of(far));
    assert_to(&world, &CLIENT.ack().seq(far), Reason::Established, 1);
    assert_eq!(world.entry(CLIENT.key()), jumped.with(Word::UNCONFIRMED));
    // Until then nothing closes it.
    assert_to(&world, &fin().seq(far), Reason::Established, 1);
    let hinted = jumped.with(Word::UNCONFIRMED | Word::HINT);
    assert_eq!(world.entry(CLIENT.key()), hinted);
    assert_to(&world, &CLIENT.ack().seq(far), Reason::Established, 1);
    assert_eq!(world.entry(CLIENT.key()), jumped);
}

fn a_fin_in_the_window_closes_and_still_forwards() {
    for state in [State::Young, State::Pin] {
        let world = World::new();
        let now = world.now();
        world.insert(CLIENT.key(), live(state, ago(now, 2)));
        assert_to(&world, &fin(), Reason::Established, 1);
        assert_eq!(world.entry(CLIENT.key()), live(State::Closing, now));
        // The acknowledgements of a half-closed stream keep it; that is written down once a minute.
        world.age(REFRESH_TICKS - 1);
        let aged = live(State::Closing, ago(now, REFRESH_TICKS - 1));
        assert_to(&world, &CLIENT.ack(), Reason::Established, 1);
        assert_eq!(world.entry(CLIENT.key()), aged);
        world.age(1);
        assert_to(&world, &CLIENT.ack(), Reason::Established, 1);
        assert_eq!(world.entry(CLIENT.key()), live(State::Closing, now));
    }
}

fn a_rst_in_the_window_closes_and_still_forwards() {
    let world = World::new();
    let now = world.now();
    world.insert(CLIENT.key(), live(State::Pin, now));
    assert_to(&world, &rst(), Reason::Established, 1);
    let closing = live(State::Closing, now).with(Word::BY_RESET);
    assert_eq!(world.entry(CLIENT.key()), closing);
    // And again: nothing changes.
    assert_to(&world, &rst(), Reason::Established, 1);
    assert_eq!(world.entry(CLIENT.key()), closing);
}

fn an_exception_that_closes_by_fin_is_marked_as_one() {
    let (world, pin) = pinned();
    assert_to(&world, &fin(), Reason::Established, 2);
    let closing = pin.with_state(State::Closing).with(Word::EXCEPTION);
    assert_eq!(world.entry(CLIENT.key()), closing);
    assert_eq!(closing.linger(), LINGER_EXCEPTION_TICKS);
}

/// Its client has said all, and only acknowledges what it gets, just often enough not to be forgotten.
fn a_half_closed_stream_keeps_its_backend_for_hours() {
    let mut world = World::new();
    world.insert(CLIENT.key(), live(State::Pin, world.now()));
    assert_to(&world, &fin(), Reason::Established, 1);
    world.service(1, VIP, VIP_PORT, &[2]);
    let acknowledgement = CLIENT.ack().seq(seq().wrapping_add(1));
    for _ in 0..12 {
        world.age(LINGER_FIN_TICKS - 2);
        let waiting = world.entry(CLIENT.key());
        assert!(waiting.is(State::Closing) && !waiting.is_vacant(world.now()));
        assert_to(&world, &acknowledgement, Reason::Established, 1);
    }
}

fn data_long_after_a_fin_revives_the_flow_which_must_prove_itself_again() {
    let world = World::new();
    let now = world.now();
    world.insert(CLIENT.key(), live(State::Closing, ago(now, 9)));
    assert_to(
        &world,
        &CLIENT.ack().payload(b"more"),
        Reason::Established,
        1,
    );
    assert_eq!(world.entry(CLIENT.key()), live(State::Young, now));
}

fn data_soon_after_a_fin_was_sent_before_it_and_revives_nothing() {
    let world = World::new();
    let closing = live(State::Closing, ago(world.now(), 1));
    world.insert(CLIENT.key(), closing);
    assert_to(
        &world,
        &CLIENT.ack().payload(b"lost"),
        Reason::Established,
        1,
    );
    assert_eq!(world.entry(CLIENT.key()), closing);
}

fn any_segment_after_a_rst_revives_the_flow_which_must_prove_itself_again() {
    let world = World::new();
    let now = world.now();
    let closing = live(State::Closing, ago(now, 9)).with(Word::BY_RESET);
    world.insert(CLIENT.key(), closing);
    assert_to(&world, &CLIENT.ack(), Reason::Established, 1);
    assert_eq!(world.entry(CLIENT.key()), live(State::Young, now));
}

fn a_closing_entry_past_its_linger_makes_place_for_the_next_flow_of_its_port() {
    for (flags, linger) in [
        (0, LINGER_FIN_TICKS),
        (Word::EXCEPTION, LINGER_EXCEPTION_TICKS),
        (Word::BY_RESET, LINGER_RST_TICKS),
    ] {
        let world = World::new();
        let now = world.now();
        let closing = |age| live(State::Closing, ago(now, age)).with(flags);
        let place = world.insert(CLIENT.key(), closing(linger));
        assert_to(&world, &CLIENT.syn(), Reason::Opened, 1);
        assert!(world.at(place).1.is(State::Embryo));
        assert_eq!(world.values().len(), 1);
        drop(world);

        let world = World::new();
        world.insert(CLIENT.key(), closing(linger - 1));
        assert_to(&world, &CLIENT.syn(), Reason::Challenged, 1);
        assert_eq!(world.values().len(), 2);
    }
}

fn a_reused_backend_id_never_inherits_flows() {
    let world = World::new();
    world.backend(&BackendSpec::l2(1).generation(3));
    let now = world.now();
    let of = |generation| {
        Word::live(
            State::Pin,
            BackendRef::new(1, generation),
            epoch_of(seq()),
            now,
            0,
        )
    };
    let place = world.insert(CLIENT.key(), of(2));
    world
        .send(&CLIENT.ack())
        .expect(&dropped(Reason::StaleGeneration));
    assert_eq!(
        world.at(place).1,
        Word::EMPTY,
        "it is gone, and the flow is unknown"
    );
    assert_to(&world, &CLIENT.ack(), Reason::Adopted, 1);
    assert_eq!(world.entry(CLIENT.key()).backend(), BackendRef::new(1, 3));
}

fn a_syn_on_an_embryo_of_a_reused_backend_id_is_a_new_flow() {
    let world = World::new();
    world.backend(&BackendSpec::l2(1).generation(3));
    let isn = CLIENT.syn().as_tcp().seq;
    let now = world.now();
    world.insert(CLIENT.key(), Word::embryo(BackendRef::new(1, 2), isn, now));
    assert_to(&world, &CLIENT.syn(), Reason::Reopened, 1);
    let embryo = Word::embryo(BackendRef::new(1, 3), isn, now);
    assert_eq!(world.entry(CLIENT.key()), embryo);
}

fn an_embryo_past_128_seconds_still_gives_the_same_syn_its_backend_until_it_is_swept() {
    let world = World::new();
    let now = world.now();
    let isn = CLIENT.syn().as_tcp().seq;
    let dead = Word::embryo(backend(2), isn, ago(now, EMBRYO_TICKS));
    world.insert(CLIENT.key(), dead);
    assert_to(&world, &CLIENT.sends(SYN), Reason::Reopened, 2);
    assert_eq!(world.entry(CLIENT.key()), dead);
}
