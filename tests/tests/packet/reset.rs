//! Clients of a dead backend learn of it: the RST, to the byte, and to whom none is sent.

use lab::packet::{
    BackendSpec, CLIENT, Expect, Packet, SERVICE, VIP, World, answered, dropped, forwarded,
    reset_output,
};
use lb_common::{
    backend::Serving,
    flow::word::{State, Word},
    maps::default::RESETS_PER_SECOND,
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

lab::in_both_versions![
    a_pure_ack_is_answered,
    data_is_answered,
    a_fin_is_answered,
    a_segment_without_any_flag_is_answered_with_an_acknowledgement_of_its_data,
    a_segment_with_options_is_answered_without,
    tags_stay_on_the_answer,
    a_first_fragment_and_any_ttl_are_answered,
    padding_is_cut_off_the_answer,
    a_frame_of_several_buffers_is_answered_by_a_short_one,
    a_truncated_frame_passes_or_is_answered_by_its_headers,
    a_truncated_frame_of_a_flow_that_cannot_be_is_answered_by_its_headers,
    a_rst_is_never_answered,
    every_packet_of_a_dead_flow_is_answered_while_the_entry_lingers,
    a_flow_of_a_backend_that_returns_goes_on,
    a_fin_to_a_dead_backend_closes_the_entry,
    without_any_backend_an_unknown_segment_is_answered,
    without_any_backend_a_rst_and_a_segment_that_says_nothing_are_dropped,
    without_any_backend_a_syn_is_dropped_so_that_the_client_tries_again,
    a_service_without_a_table_takes_nothing,
    resets_beyond_their_rate_are_dropped_and_counted,
    a_reset_that_may_not_be_sent_is_a_drop_that_counts_for_the_dead_backend,
];

/// A world with an established flow of [`CLIENT`] whose backend has died.
fn dead() -> World {
    let world = World::new();
    world.send(&CLIENT.syn());
    world.send(&CLIENT.ack());
    world.backend(&BackendSpec::l2(1).serving(Serving::None));
    world
}

#[track_caller]
fn assert_answered(packet: &Packet) {
    dead()
        .send(packet)
        .expect(&answered(Reason::BackendDead, reset_output(packet)).of_backend(1));
}

fn a_pure_ack_is_answered() {
    assert_answered(&CLIENT.ack());
}

/// The bytes that the other tests build, here written down once.
#[test]
fn a_rst_byte_by_byte() {
    let packet = CLIENT.ack().ack(0x0102_0304).payload(b"data").tos(0xb8);
    let output = dead().send(&packet).outcome.output;
    #[rustfmt::skip]
    let expected = [
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0,
        0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0x4e, 0x94, 192, 0, 2, 1, 198, 51, 100, 7,
        0x01, 0xbb, 0x9c, 0x40, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 0x04, 0, 0, 0x21, 0xa3, 0, 0,
    ];
    assert_eq!(output, expected);
}

fn data_is_answered() {
    for length in [1, 2, 3, 100, 1_460] {
        assert_answered(&CLIENT.ack().payload(&vec![0xff; length]));
    }
}

fn a_fin_is_answered() {
    assert_answered(&CLIENT.ack().with_tcp(|tcp| tcp.flags = FIN | ACK));
    // Without ACK: zero, and an acknowledgement of the FIN.
    assert_answered(&CLIENT.ack().with_tcp(|tcp| tcp.flags = FIN));
    assert_answered(&CLIENT.ack().payload(b"bye").with_tcp(|tcp| tcp.flags = FIN));
}

fn a_segment_without_any_flag_is_answered_with_an_acknowledgement_of_its_data() {
    assert_answered(&CLIENT.ack().payload(b"12345").with_tcp(|tcp| tcp.flags = 0));
}

fn a_segment_with_options_is_answered_without() {
    assert_answered(&CLIENT.ack().tcp_options(&[1; 12]).payload(b"data"));
    assert_answered(&CLIENT.ack().options(&[1; 40]));
    assert_answered(
        &CLIENT
            .ack()
            .options(&[1; 4])
            .tcp_options(&[1; 40])
            .payload(&[0; 999]),
    );
    assert_answered(
        &CLIENT
            .ack()
            .with_tcp(|tcp| tcp.flags = FIN)
            .options(&[1; 8])
            .tcp_options(&[1; 12])
            .payload(b"odd"),
    );
}

fn tags_stay_on_the_answer() {
    assert_answered(&CLIENT.ack().tagged(0x8100, 0x6064));
    assert_answered(
        &CLIENT
            .ack()
            .tagged(0x8100, 0x0064)
            .tagged(0x88a8, 0x000a)
            .payload(b"data"),
    );
}

fn a_first_fragment_and_any_ttl_are_answered() {
    assert_answered(&CLIENT.ack().fragment(0x2000).ttl(1));
}

fn padding_is_cut_off_the_answer() {
    assert_answered(&CLIENT.ack().padded(6));
}

fn a_frame_of_several_buffers_is_answered_by_a_short_one() {
    assert_answered(&CLIENT.ack().payload(&vec![1; 8_500]));
}

/// An answer is no longer than the headers that it is made of.
fn a_truncated_frame_passes_or_is_answered_by_its_headers() {
    let ack = || CLIENT.ack().payload(b"data");
    for packet in [
        ack(),
        ack().tcp_options(&[1; 12]),
        ack().options(&[1; 8]).tcp_options(&[1; 40]),
        ack().tagged(0x8100, 0x0064).tagged(0x88a8, 0x000a),
        ack().padded(6),
        // What it acknowledges goes by the length that the IP header gives.
        ack().tcp_options(&[1; 4]).with_tcp(|tcp| tcp.flags = 0),
    ] {
        let answer = answered(Reason::BackendDead, reset_output(&packet));
        assert_cut_is_answered(&dead(), &packet, &answer.of_backend(1));
    }
}

/// Asserts that a frame that is cut within its headers is the host's, and one that is cut behind them is answered like the whole one.
#[track_caller]
fn assert_cut_is_answered(world: &World, packet: &Packet, answer: &Expect) {
    for cut in packet.cuts() {
        world.save_resets(10);
        if let Some(run) = world.send_cut(&cut) {
            run.expect(answer);
        }
    }
}

/// Of one that nothing is known of, where none is adopted, and of one that the backend would take for another service's.
fn a_truncated_frame_of_a_flow_that_cannot_be_is_answered_by_its_headers() {
    let tagged = |packet: Packet| packet.tagged(0x8100, 0x0064).tagged(0x88a8, 0x000a);
    let unknown =
        |packet: &Packet| answered(Reason::UnknownFlow, reset_output(packet)).of_backend(1);
    let world = World::with_translating(&BackendSpec::nat(1));
    let data = tagged(CLIENT.ack().tcp_options(&[1; 12]).payload(b"data"));
    assert_cut_is_answered(&world, &data, &unknown(&data));
    drop(world);

    let local = BackendSpec::l2(1).local();
    let mut world = World::new();
    world.endpoint(&local, SERVICE);
    let fin = data.with_tcp(|tcp| tcp.flags = FIN | ACK);
    assert_cut_is_answered(&world, &fin, &unknown(&fin));

    let second = CLIENT.syn().with_tcp(|tcp| tcp.destination_port = 444);
    let syn = tagged(second.payload(b"early"));
    let collides = answered(Reason::Collision, reset_output(&syn)).of_service(2);
    world.service(2, VIP, 444, &[1]);
    world.endpoint(&local, 2);
    world.endpoint(&local, SERVICE);
    world.send(&CLIENT.syn());
    assert_cut_is_answered(&world, &syn, &collides.clone().of_backend(1));
    drop(world);

    let dnat = BackendSpec::dnat(1);
    let mut world = World::with_translating(&dnat);
    world.service(2, VIP, 444, &[1]);
    world.translate(&dnat, 2);
    world.send(&CLIENT.syn());
    assert_cut_is_answered(&world, &syn, &collides);
}

fn a_rst_is_never_answered() {
    for flags in [RST, RST | ACK, RST | FIN, RST | FIN | ACK] {
        let packet = CLIENT.ack().with_tcp(|tcp| tcp.flags = flags);
        dead()
            .send(&packet)
            .expect(&dropped(Reason::ResetToDead).of_backend(1));
    }
}

/// Data in flight can make the first RST inexact; the client's challenge ACK draws the exact one.
fn every_packet_of_a_dead_flow_is_answered_while_the_entry_lingers() {
    let world = dead();
    for _ in 0..3 {
        let packet = CLIENT.ack().payload(b"data");
        world
            .send(&packet)
            .expect(&answered(Reason::BackendDead, reset_output(&packet)).of_backend(1));
        let entry = world.entry(CLIENT.key());
        assert!(entry.is(State::Closing) && entry.has(Word::BY_RESET));
    }
}

fn a_flow_of_a_backend_that_returns_goes_on() {
    let world = dead();
    world.send(&CLIENT.ack());
    world.backend(&BackendSpec::l2(1).serving(Serving::ExistingOnly));
    let data = CLIENT.ack().payload(b"data");
    world.send(&data).expect(&forwarded(
        Reason::Established,
        1,
        BackendSpec::l2(1).l2_output(&data),
    ));
}

fn a_fin_to_a_dead_backend_closes_the_entry() {
    let world = dead();
    world.send(&CLIENT.ack().with_tcp(|tcp| tcp.flags = FIN | ACK));
    assert!(world.entry(CLIENT.key()).is(State::Closing));
}

fn without_any_backend_an_unknown_segment_is_answered() {
    let mut world = World::new();
    world.table(1, &[lb_common::maglev::Slot::default(); 3]);
    for packet in [CLIENT.ack(), CLIENT.sends(FIN), CLIENT.sends(FIN | ACK)] {
        world
            .send(&packet)
            .expect(&answered(Reason::NoBackendForFlow, reset_output(&packet)));
    }
    assert_eq!(world.values().len(), 0);
}

fn without_any_backend_a_rst_and_a_segment_that_says_nothing_are_dropped() {
    let world = World::with(&BackendSpec::l2(1).serving(Serving::None));
    for packet in [CLIENT.sends(RST), CLIENT.sends(RST | ACK), CLIENT.sends(0)] {
        world.send(&packet).expect(&dropped(Reason::NoBackend));
    }
}

fn without_any_backend_a_syn_is_dropped_so_that_the_client_tries_again() {
    for serving in [Serving::None, Serving::ExistingOnly] {
        let world = World::with(&BackendSpec::l2(1).serving(serving));
        world
            .send(&CLIENT.sends(SYN))
            .expect(&dropped(Reason::NoBackend));
        assert_eq!(world.values().len(), 0);
    }
}

fn a_service_without_a_table_takes_nothing() {
    let mut world = World::new();
    world.service(2, lab::packet::VIP, 80, &[]);
    let to = (lab::packet::VIP, 80);
    let packet = |flags| Packet::tcp((CLIENT.0, CLIENT.1), to, flags);
    world
        .send(&packet(SYN))
        .expect(&dropped(Reason::NoBackend).of_service(2));
    let ack = packet(ACK);
    let answer = answered(Reason::NoBackendForFlow, reset_output(&ack));
    world.send(&ack).expect(&answer.of_service(2));
}

fn resets_beyond_their_rate_are_dropped_and_counted() {
    const SAVED: u64 = 5;
    const HITS: u64 = 100;
    // The coarse clock moves in steps of milliseconds, each of which brings hundreds of permissions: bounds from both sides.
    const STEP_NS: u64 = 10_000_000;
    let world = dead();
    let frame = CLIENT.ack().bytes();
    let started = std::time::Instant::now();
    world.save_resets(SAVED);
    for _ in 0..HITS {
        world.hit(&frame);
    }
    let elapsed_ns = started.elapsed().as_nanos() as u64 + STEP_NS;
    let sent = world.count_of(Reason::BackendDead);
    let limited = world.count_of(Reason::ResetLimited);
    assert_eq!(sent + limited, HITS);
    let most = SAVED + elapsed_ns * RESETS_PER_SECOND / 1_000_000_000;
    assert!((SAVED..=most).contains(&sent), "{sent} in {elapsed_ns} ns");
}

fn a_reset_that_may_not_be_sent_is_a_drop_that_counts_for_the_dead_backend() {
    dead()
        .send_without_resets(&CLIENT.ack())
        .expect(&dropped(Reason::ResetLimited).of_backend(1));
}
