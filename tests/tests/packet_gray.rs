//! What clients send again: which segments are counted, and for whom; and that all of them are steered as ever.

use lab::packet::{
    BackendSpec, CLIENT, Client, Packet, SERVICE, World,
    entries::backend,
    flow::{MIB, assert_to, fin, seq},
    nat::THEIRS,
    passed,
};
use lb_common::{
    flow::word::{State, Word, epoch_of},
    repeats::{MOST_A_TICK, Repeats},
    verdict::{Reason, Verdict},
};

lab::in_both_versions![
    data_that_comes_again_is_counted_in_every_mode,
    a_syn_that_comes_again_is_counted_once_in_every_mode,
    a_probe_is_no_data,
    sequence_numbers_wrap,
    segments_of_all_shapes_are_counted,
    what_a_backends_clients_send_is_counted_for_it_alone,
    a_backend_that_is_another_now_is_not_blamed,
    one_flow_counts_for_little,
    of_two_connections_of_one_port_neither_counts,
    another_connection_of_a_port_repeats_nothing,
    nothing_is_counted_where_nobody_asks,
    what_is_counted_is_steered_as_ever,
];

/// A segment of the client's with so many bytes of data, so far into its stream.
fn data(at: u32, bytes: usize) -> Packet {
    CLIENT
        .ack()
        .ack(THEIRS.wrapping_add(1))
        .seq(seq().wrapping_add(at))
        .payload(&vec![7; bytes])
}

#[track_caller]
fn send_data(world: &World, at: u32, bytes: usize) {
    let run = world.send(&data(at, bytes));
    assert_eq!(run.reason(), Reason::Established, "{bytes} bytes at {at}");
}

/// The handshake of [`CLIENT`], whose SYN has come.
fn finish(world: &World) {
    if world.translates() {
        let flow = world.flow(CLIENT);
        assert_eq!(world.send(&flow.syn_ack()).reason(), Reason::Reply);
        assert_eq!(world.send(&flow.ack()).reason(), Reason::Established);
    } else {
        assert_eq!(world.send(&CLIENT.ack()).reason(), Reason::Established);
    }
}

fn open(world: &World) {
    assert_eq!(world.send(&CLIENT.syn()).reason(), Reason::Opened);
    finish(world);
}

/// A world with a flow of [`CLIENT`], in a tick of which enough is left.
fn opened() -> World {
    let world = World::measuring();
    open(&world);
    world.now();
    world
}

/// Every mode, and a backend on this host.
fn each(check: impl Fn(&World)) {
    let set: [fn(&World); 5] = [
        |world| world.backend(&BackendSpec::l2(1)),
        |world| world.backend(&BackendSpec::ipip(1)),
        |world| world.translate(&BackendSpec::nat(1), SERVICE),
        |world| world.translate(&BackendSpec::dnat(1), SERVICE),
        |world| world.endpoint(&BackendSpec::l2(1).local(), SERVICE),
    ];
    for set in set {
        let world = World::measuring();
        set(&world);
        check(&world);
    }
}

#[track_caller]
fn assert_counted(world: &World, handshakes: u64, syns: u64, data: u64, data_again: u64) {
    let expected = Repeats {
        handshakes,
        syns,
        data,
        data_again,
    };
    assert_eq!(world.repeats(1), expected);
}

fn data_that_comes_again_is_counted_in_every_mode() {
    each(|world| {
        open(world);
        assert_counted(world, 1, 0, 0, 0);
        world.now();
        send_data(world, 0, 100);
        send_data(world, 100, 100);
        assert_counted(world, 1, 0, 2, 0);
        send_data(world, 100, 100);
        assert_counted(world, 1, 0, 3, 1);
        // Both in one segment.
        send_data(world, 0, 200);
        assert_counted(world, 1, 0, 4, 2);
        // What has not been there before is new, whatever comes with it.
        send_data(world, 150, 100);
        assert_counted(world, 1, 0, 5, 2);
    });
}

fn a_syn_that_comes_again_is_counted_once_in_every_mode() {
    each(|world| {
        assert_eq!(world.send(&CLIENT.syn()).reason(), Reason::Opened);
        assert_counted(world, 0, 0, 0, 0);
        for _ in 0..3 {
            assert_eq!(world.send(&CLIENT.syn()).reason(), Reason::Reopened);
            assert_counted(world, 0, 1, 0, 0);
        }
        // Another's first one is none that comes again.
        let other = Client(CLIENT.0, CLIENT.1 + 1);
        assert_eq!(world.send(&other.syn()).reason(), Reason::Opened);
        assert_counted(world, 0, 1, 0, 0);
        finish(world);
        assert_counted(world, 1, 1, 0, 0);
    });
}

fn a_probe_is_no_data() {
    let world = opened();
    send_data(&world, 0, 100);
    assert_counted(&world, 1, 0, 1, 0);
    for bytes in [0, 1, 1, 0] {
        send_data(&world, 99, bytes);
        assert_counted(&world, 1, 0, 1, 0);
    }
    // Nor is what only acknowledges.
    send_data(&world, 100, 0);
    assert_counted(&world, 1, 0, 1, 0);
    send_data(&world, 100, 1);
    assert_counted(&world, 1, 0, 2, 0);
}

fn sequence_numbers_wrap() {
    let world = World::measuring();
    let start = u32::MAX - 60;
    let run = world.send(&CLIENT.syn().seq(start));
    assert_eq!(run.reason(), Reason::Opened);
    let ack = CLIENT.ack().seq(start.wrapping_add(1));
    assert_eq!(world.send(&ack).reason(), Reason::Established);
    world.now();
    for (at, again) in [(1, 0), (101, 0), (1, 1), (101, 2), (201, 2)] {
        let before = world.repeats(1).data;
        let data = ack.clone().seq(start.wrapping_add(at)).payload(&[7; 100]);
        assert_eq!(world.send(&data).reason(), Reason::Established);
        assert_counted(&world, 1, 0, before + 1, again);
    }
}

fn segments_of_all_shapes_are_counted() {
    let plain = data(100, 100);
    for shape in [
        plain.clone(),
        plain.clone().options(&[1; 4]),
        plain.clone().tcp_options(&[1; 40]),
        plain.clone().padded(6),
        plain.clone().tagged(0x8100, 0x2001),
        plain.clone().tagged(0x8100, 0x0fff).tagged(0x88a8, 0xffff),
    ] {
        let world = opened();
        send_data(&world, 0, 100);
        assert_eq!(world.send(&shape).reason(), Reason::Established);
        assert_counted(&world, 1, 0, 2, 0);
        assert_eq!(world.send(&shape).reason(), Reason::Established);
        assert_counted(&world, 1, 0, 3, 1);
        // Its length is that of its data alone.
        send_data(&world, 200, 100);
        assert_counted(&world, 1, 0, 4, 1);
    }
}

fn what_a_backends_clients_send_is_counted_for_it_alone() {
    // All slots name backend 1.
    let world = World::measuring();
    let pin = Word::live(State::Pin, backend(2), epoch_of(seq()), world.now(), 0);
    world.insert(CLIENT.key(), pin);
    send_data(&world, 0, 100);
    send_data(&world, 0, 100);
    assert_counted(&world, 0, 0, 0, 0);
    let expected = Repeats {
        data: 2,
        data_again: 1,
        ..Repeats::default()
    };
    assert_eq!(world.repeats(2), expected);
}

fn a_backend_that_is_another_now_is_not_blamed() {
    let world = opened();
    send_data(&world, 0, 100);
    assert_counted(&world, 1, 0, 1, 0);
    world.put_state(&BackendSpec::l2(1).generation(1));
    world.send(&data(0, 100));
    assert_counted(&world, 1, 0, 1, 0);
}

fn one_flow_counts_for_little() {
    let world = opened();
    for step in 0..3 * MOST_A_TICK {
        send_data(&world, 100 * step, 100);
    }
    assert_counted(&world, 1, 0, u64::from(MOST_A_TICK), 0);
}

fn of_two_connections_of_one_port_neither_counts() {
    let world = opened();
    send_data(&world, 0, 100);
    let other = CLIENT.syn().seq(seq().wrapping_add(2 * MIB));
    assert_eq!(world.send(&other).reason(), Reason::Challenged);
    for _ in 0..2 {
        send_data(&world, 100, 100);
        assert_counted(&world, 1, 0, 1, 0);
    }
}

fn another_connection_of_a_port_repeats_nothing() {
    let world = opened();
    send_data(&world, 0, 100);
    send_data(&world, 100, 100);
    assert_eq!(world.send(&fin()).reason(), Reason::Established);
    // Past its linger.
    world.age(1_000);
    // Its stream begins a little before where the former one ended.
    let syn = CLIENT.syn().seq(seq().wrapping_add(49));
    assert_eq!(world.send(&syn).reason(), Reason::Opened);
    world.now();
    let ack = CLIENT.ack().seq(seq().wrapping_add(50));
    assert_eq!(world.send(&ack).reason(), Reason::Established);
    assert_counted(&world, 2, 0, 2, 0);
    send_data(&world, 50, 10);
    assert_counted(&world, 2, 0, 3, 0);
    send_data(&world, 50, 10);
    assert_counted(&world, 2, 0, 4, 1);
}

fn nothing_is_counted_where_nobody_asks() {
    let world = World::measuring();
    world.measure(SERVICE, false);
    world.send(&CLIENT.syn());
    world.send(&CLIENT.syn());
    world.send(&CLIENT.ack());
    for _ in 0..3 {
        send_data(&world, 0, 100);
    }
    assert_counted(&world, 0, 0, 0, 0);
    // From now on.
    world.measure(SERVICE, true);
    send_data(&world, 0, 100);
    send_data(&world, 0, 100);
    assert_counted(&world, 0, 0, 2, 1);
    drop(world);
    // Where no service asks there is nothing that could.
    assert!(World::new().maps.measured.is_none());
}

fn what_is_counted_is_steered_as_ever() {
    let world = World::measuring();
    assert_to(&world, &CLIENT.syn(), Reason::Opened, 1);
    assert_to(&world, &CLIENT.syn(), Reason::Reopened, 1);
    assert_to(&world, &CLIENT.ack(), Reason::Established, 1);
    for _ in 0..2 {
        assert_to(&world, &data(0, 100), Reason::Established, 1);
    }
    assert_to(&world, &fin(), Reason::Established, 1);
    // What is for no service, and what is cut off in the midst of its headers.
    let other = data(0, 100).with_tcp(|tcp| tcp.destination_port = 1);
    world.send(&other).expect(&passed(Reason::NotService));
    let frame = data(0, 100).bytes();
    let headers = frame.len() - 100;
    for length in 14..headers {
        let run = world.send_bytes(&frame[..length], 0);
        assert_eq!(run.reason().verdict(), Verdict::Pass, "{length} bytes");
        assert_eq!(run.outcome.output, run.input, "{length} bytes");
    }
    assert_counted(&world, 1, 1, 2, 1);
}
