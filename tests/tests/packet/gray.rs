//! What clients send again: which segments are counted, and for whom; and that all of them are steered as ever.

use lab::packet::{
    BackendSpec, CLIENT, Client, Packet, SERVICE, World,
    entries::backend,
    flow::{MIB, assert_to, fin, seq},
    nat::THEIRS,
    passed, version,
};
use lb_common::{
    flow::word::{State, Word, epoch_of},
    net::IpVersion,
    repeats::{ENOUGH, MOST_A_TICK, PARTS, PLACES_OF_A_CLIENT, Repeats},
    verdict::{Reason, Verdict},
};

lab::in_both_versions![
    data_that_comes_again_is_counted_in_every_mode,
    a_syn_that_comes_again_is_counted_once_in_every_mode,
    a_translated_handshake_counts_when_its_answer_is_acknowledged,
    a_probe_is_no_data,
    sequence_numbers_wrap,
    segments_of_all_shapes_are_counted,
    what_a_backends_clients_send_is_counted_for_it_alone,
    a_backend_that_is_another_now_is_not_blamed,
    one_flow_counts_for_little,
    one_client_counts_for_little_however_many_flows_it_has,
    no_more_are_noted_than_tell_the_parts_apart,
    clients_are_told_apart,
    what_is_far_from_the_stream_is_no_data_of_it,
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
    let counted = world.repeats(1);
    let expected = Repeats {
        handshakes,
        syns,
        data,
        data_again,
        ..counted
    };
    assert_eq!(counted, expected);
    // All of one client.
    assert_eq!(noted(counted.syn_clients), one_part(syns));
    assert_eq!(noted(counted.data_clients), one_part(data_again));
}

/// How many repeats are noted of each part of all clients that any are noted of.
fn noted(word: u64) -> Vec<u64> {
    let parts = word.to_le_bytes().map(u64::from);
    parts.into_iter().filter(|part| *part > 0).collect()
}

fn one_part(again: u64) -> Vec<u64> {
    Vec::from_iter((again > 0).then_some(again))
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

fn a_translated_handshake_counts_when_its_answer_is_acknowledged() {
    for backend in [BackendSpec::nat(1), BackendSpec::dnat(1)] {
        let world = World::measuring();
        world.translate(&backend, SERVICE);
        assert_eq!(world.send(&CLIENT.syn()).reason(), Reason::Opened);
        let flow = world.flow(CLIENT);
        let again = |packet: &Packet| {
            for _ in 0..3 {
                world.send(packet);
            }
        };
        again(&flow.ack());
        again(&flow.ack().payload(b"data"));
        assert_counted(&world, 0, 0, 0, 0);
        assert_eq!(world.send(&flow.syn_ack()).reason(), Reason::Reply);
        again(&flow.ack().ack(THEIRS.wrapping_add(2)));
        assert_counted(&world, 0, 0, 0, 0);
        assert_eq!(world.send(&flow.ack()).reason(), Reason::Established);
        assert_counted(&world, 1, 0, 0, 0);
        again(&flow.ack());
        assert_counted(&world, 1, 0, 0, 0);
    }
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
    let counted = world.repeats(2);
    let expected = Repeats {
        data: 2,
        data_again: 1,
        data_clients: counted.data_clients,
        ..Repeats::default()
    };
    assert_eq!(counted, expected);
    assert_eq!(noted(counted.data_clients), [1]);
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

/// Opens a flow, and sends its SYN and its data twice each.
fn repeat(world: &World, client: Client) {
    for _ in 0..2 {
        world.send(&client.syn());
    }
    for _ in 0..2 {
        world.send(&client.ack().payload(&[7; 100]));
    }
}

fn one_client_counts_for_little_however_many_flows_it_has() {
    const FLOWS: u16 = 40;
    let world = World::measuring();
    let clients = |world: &World| {
        let counted = world.repeats(1);
        [counted.syn_clients, counted.data_clients].map(|word| noted(word).len())
    };
    let before = world.now();
    for port in 0..FLOWS {
        repeat(&world, Client(CLIENT.0, 1_024 + port));
    }
    let counted = world.repeats(1);
    // Each of its places may have been free again when two ticks were over.
    let times = 1 + u64::from(world.now().0 - before.0);
    let most = times * u64::from(PLACES_OF_A_CLIENT);
    for again in [counted.syns, counted.data_again] {
        assert!(again > 0 && again <= most, "{again} in {times} ticks");
    }
    assert_eq!(noted(counted.data_clients), [counted.data_again]);
    assert_eq!(clients(&world), [1, 1]);
    // What the daemon has taken note of is told once, and again if it comes again.
    let taken = world
        .maps
        .measured
        .as_ref()
        .map(|measured| measured.take(1));
    assert_eq!(taken, Some(counted));
    assert_eq!(clients(&world), [0, 0]);
    assert_eq!(world.repeats(1).data_again, counted.data_again);
    for port in 0..FLOWS {
        let data = Client(CLIENT.0, 1_024 + port).ack().payload(&[7; 100]);
        for _ in 0..2 {
            world.send(&data);
        }
    }
    assert_eq!(clients(&world)[1], 1);
}

fn no_more_are_noted_than_tell_the_parts_apart() {
    let world = opened();
    send_data(&world, 0, 100);
    let nearly = Repeats {
        data_clients: !ENOUGH,
        ..Repeats::default()
    };
    let measured = world.maps.measured.as_ref().expect("it measures");
    measured.count(1, &nearly);
    send_data(&world, 0, 100);
    let counted = world.repeats(1);
    assert_eq!(counted.data_again, 1);
    let with = counted.data_clients.to_le_bytes();
    assert_eq!(with.iter().filter(|part| **part == 0x80).count(), 1);
    assert_eq!(with.iter().filter(|part| **part == 0x7f).count(), PARTS - 1);
    // What comes now is counted all the same.
    send_data(&world, 0, 100);
    let later = world.repeats(1);
    assert_eq!(later.data_again, 2);
    assert_eq!(later.data_clients, counted.data_clients);
}

fn clients_are_told_apart() {
    const CLIENTS: u8 = 32;
    let parts = |client: fn([u8; 4], u8) -> [u8; 4]| {
        let world = World::measuring();
        for n in 0..CLIENTS {
            let address = client(CLIENT.0.octets(), n);
            repeat(&world, Client(address.into(), CLIENT.1));
        }
        noted(world.repeats(1).data_clients).len()
    };
    // At random they are of nearly all eight parts; but what is in one network of IPv6 is one.
    let of_one_network = parts(|[a, b, c, _], n| [a, b, c, n]);
    match version() {
        IpVersion::V4 => assert!(of_one_network >= PARTS - 2, "{of_one_network}"),
        IpVersion::V6 => assert_eq!(of_one_network, 1),
    }
    let of_many = parts(|[a, _, c, d], n| [a, n, c, d]);
    assert!(of_many >= PARTS - 2, "{of_many}");
}

fn what_is_far_from_the_stream_is_no_data_of_it() {
    // Whoever they are from, and however many: they make no repeats of what the client sends.
    for far in [4 * MIB, 60 * MIB, 0_u32.wrapping_sub(4 * MIB)] {
        for times in 1..=5 {
            let world = opened();
            send_data(&world, 0, 100);
            for n in 0..times {
                world.send(&data(far.wrapping_add(100 * n), 100));
            }
            // The first ones show that the stream is where it was.
            for n in 1..=5 {
                send_data(&world, 100 * n, 100);
            }
            let before = world.repeats(1);
            assert_eq!(before.data_again, 0, "{times} at {far:#x}");
            assert!(before.data < u64::from(MOST_A_TICK));
            send_data(&world, 600, 100);
            send_data(&world, 500, 100);
            let counted = world.repeats(1).since(&before);
            assert_eq!(
                (counted.data, counted.data_again),
                (2, 1),
                "{times} at {far:#x}"
            );
        }
    }
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
