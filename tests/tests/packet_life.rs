//! The life of a flow through the program: embryo, young, pin, closing; and what forgeries do to it, which is nothing.

use lab::packet::{
    BackendSpec, CLIENT, Client, Packet, World, dropped, entries::backend, forwarded, world::tick,
};
use lb_common::{
    backend::Serving,
    clock::Tick,
    flow::{
        life::PROMOTION_WINDOW,
        word::{
            BackendRef, EMBRYO_TICKS, LINGER_EXCEPTION_TICKS, LINGER_FIN_TICKS, LINGER_RST_TICKS,
            State, Word, YOUNG_TICKS, epoch_of,
        },
    },
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

const MIB: u32 = 1 << 20;

#[track_caller]
fn assert_to(world: &World, packet: &Packet, reason: Reason, id: u32) {
    let output = BackendSpec::l2(id).l2_output(packet);
    world.send(packet).expect(&forwarded(reason, id, output));
}

/// A live entry of [`CLIENT`] on backend 1 whose stream is where [`Client::ack`] continues it.
fn live(state: State, then: Tick) -> Word {
    Word::live(state, backend(1), epoch_of(seq()), then, 0)
}

fn seq() -> u32 {
    CLIENT.ack().as_tcp().seq
}

fn fin() -> Packet {
    CLIENT.ack().with_tcp(|tcp| tcp.flags = FIN | ACK)
}

fn rst() -> Packet {
    CLIENT.ack().with_tcp(|tcp| tcp.flags = RST)
}

fn ago(now: Tick, ticks: u32) -> Tick {
    Tick(now.0.wrapping_sub(ticks))
}

/// A world with a pin of [`CLIENT`] on backend 2, while all slots name backend 1: whoever moves the flow shows.
fn pinned() -> (World, Word) {
    let world = World::new();
    let pin = Word::live(State::Pin, backend(2), epoch_of(seq()), world.now(), 0);
    world.insert(CLIENT.key(), pin);
    (world, pin)
}

#[test]
fn a_syn_makes_an_embryo_that_holds_its_sequence_number() {
    let world = World::new();
    let now = world.now();
    assert_to(&world, &CLIENT.syn(), Reason::Opened, 1);
    let embryo = Word::embryo(backend(1), CLIENT.syn().as_tcp().seq, now);
    assert_eq!(world.entry(CLIENT.key()), embryo);
}

#[test]
fn the_same_syn_again_writes_nothing() {
    let world = World::new();
    world.send(&CLIENT.syn());
    world.age(7);
    let before = world.entry(CLIENT.key());
    assert_to(&world, &CLIENT.syn(), Reason::Reopened, 1);
    assert_eq!(world.entry(CLIENT.key()), before);
}

#[test]
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

#[test]
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

#[test]
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

#[test]
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

#[test]
fn promotion_follows_a_sequence_number_that_wraps() {
    let world = World::new();
    world.send(&CLIENT.syn().seq(u32::MAX));
    assert_to(&world, &CLIENT.ack().seq(0), Reason::Established, 1);
    let (_, young) = world.entry_in(CLIENT.key(), State::Young);
    assert_eq!(young.epoch(), 0);
}

#[test]
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

#[test]
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

#[test]
fn a_pin_is_refreshed_by_every_packet_however_long_it_was_idle() {
    for idle in [0, 1, 1_000, 20_000, 1 << 19] {
        let world = World::new();
        let now = world.now();
        world.insert(CLIENT.key(), live(State::Pin, ago(now, idle)));
        assert_to(&world, &CLIENT.ack(), Reason::Established, 1);
        assert_eq!(world.entry(CLIENT.key()), live(State::Pin, now));
    }
}

#[test]
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

#[test]
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

#[test]
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

#[test]
fn a_fin_in_the_window_closes_and_still_forwards() {
    for state in [State::Young, State::Pin] {
        let world = World::new();
        let now = world.now();
        world.insert(CLIENT.key(), live(state, ago(now, 2)));
        assert_to(&world, &fin(), Reason::Established, 1);
        assert_eq!(world.entry(CLIENT.key()), live(State::Closing, now));
        // The acknowledgements of a half-closed stream keep it.
        world.age(5);
        assert_to(&world, &CLIENT.ack(), Reason::Established, 1);
        assert_eq!(world.entry(CLIENT.key()), live(State::Closing, now));
    }
}

#[test]
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

#[test]
fn an_exception_that_closes_by_fin_is_marked_as_one() {
    let (world, pin) = pinned();
    assert_to(&world, &fin(), Reason::Established, 2);
    let closing = pin.with_state(State::Closing).with(Word::EXCEPTION);
    assert_eq!(world.entry(CLIENT.key()), closing);
    assert_eq!(closing.linger(), LINGER_EXCEPTION_TICKS);
}

#[test]
fn data_after_a_fin_revives_the_flow_which_must_prove_itself_again() {
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

#[test]
fn any_segment_after_a_rst_revives_the_flow_which_must_prove_itself_again() {
    let world = World::new();
    let now = world.now();
    let closing = live(State::Closing, ago(now, 9)).with(Word::BY_RESET);
    world.insert(CLIENT.key(), closing);
    assert_to(&world, &CLIENT.ack(), Reason::Established, 1);
    assert_eq!(world.entry(CLIENT.key()), live(State::Young, now));
}

#[test]
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

#[test]
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

#[test]
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

#[test]
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

#[test]
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
#[test]
fn a_spoofed_fin_or_rst_within_the_window_does_not_move_a_pin_either() {
    for forged in [fin(), rst()] {
        let (world, pin) = pinned();
        assert_to(&world, &forged, Reason::Established, 2);
        assert!(world.entry(CLIENT.key()).is(State::Closing));
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

#[test]
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

#[test]
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

#[test]
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
    let before = world.values();
    for (isn, nearer) in [(seq(), 1), (99 * MIB, 2)] {
        assert_to(&world, &CLIENT.syn().seq(isn), Reason::Unpinned, nearer);
        assert_to(
            &world,
            &CLIENT.ack().seq(isn + 1),
            Reason::Established,
            nearer,
        );
    }
    assert_eq!(world.values().len(), 2);
    for ((_, _, before), (_, _, after)) in before.iter().zip(world.values()) {
        assert_eq!(before.backend(), after.backend());
    }
    world.backend(&BackendSpec::l2(2).serving(Serving::ExistingOnly));
    world
        .send(&CLIENT.syn().seq(99 * MIB))
        .expect(&dropped(Reason::Contested));
}

#[test]
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

#[test]
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

#[test]
fn an_embryo_past_128_seconds_still_gives_the_same_syn_its_backend_until_it_is_swept() {
    let world = World::new();
    let now = world.now();
    let isn = CLIENT.syn().as_tcp().seq;
    let dead = Word::embryo(backend(2), isn, ago(now, EMBRYO_TICKS));
    world.insert(CLIENT.key(), dead);
    assert_to(&world, &CLIENT.sends(SYN), Reason::Reopened, 2);
    assert_eq!(world.entry(CLIENT.key()), dead);
}
