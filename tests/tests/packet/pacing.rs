//! Flows that are closed at a pace: whose turn it is, what its client is answered, and what the daemon is told to tell the backend.

use std::{collections::BTreeSet, net::Ipv4Addr};

use lab::packet::{
    BackendSpec, CLIENT, Client, Packet, SERVICE, VIP, VIP_PORT, World, answered, dropped,
    forwarded, nat::in_each_mode, on_wire, reset_output,
};
use lb_common::{
    backend::Serving,
    flow::word::State,
    notice::Notice,
    share::Share,
    tcp::{ACK, FIN, RST},
    verdict::Reason,
};

lab::in_both_versions![
    without_a_share_nobody_is_closed,
    half_of_the_flows_are_closed_the_same_ones_again_and_more_as_it_grows,
    all_are_closed,
    a_closed_flow_is_answered_with_a_rst_and_its_entry_stays,
    who_ends_a_flow_is_not_answered,
    a_flow_of_a_deadline_that_is_over_goes_on,
    a_dead_backend_is_paced_and_the_rest_is_forwarded,
    a_dead_backend_is_not_told,
    a_rst_to_a_dead_backend_is_dropped,
    the_notice_tells_what_the_backend_waits_for,
    of_a_segment_with_tags_and_headers_between_it_tells_the_same,
    of_a_truncated_segment_its_headers_tell_the_same,
    of_a_truncated_segment_that_would_be_translated_too,
    nothing_is_told_of_a_reset_that_may_not_be_sent,
    notices_without_room_are_counted_and_the_client_is_answered_all_the_same,
    a_flow_whose_backend_cannot_be_reached_is_closed_too,
    a_translated_flow_is_closed_and_its_backend_told_by_what_it_knows_the_client_by,
    of_a_translated_flow_that_is_not_due_nobody_is_told,
    a_flow_to_a_backend_on_this_host_is_closed_and_its_backend_told,
    a_backend_of_any_mode_is_paced_and_told_if_it_lives,
];

/// So many parts are all.
const ALL: u32 = Share::ALL.parts();

/// Clients that differ in address and port.
fn clients(number: u32) -> impl Iterator<Item = Client> {
    (0..number).map(|n| {
        let [_, _, high, low] = n.to_be_bytes();
        Client(
            Ipv4Addr::new(198, 51, high, low),
            1_024 + (n * 61 % 60_000) as u16,
        )
    })
}

/// Opens the flows of clients, all to backend 1.
fn open(world: &World, number: u32) {
    for client in clients(number) {
        assert_eq!(world.send(&client.syn()).reason(), Reason::Opened);
        assert_eq!(world.send(&client.ack()).reason(), Reason::Established);
    }
}

/// The clients whose next segment is answered with a RST, and none is treated in a third way.
fn closed(world: &World, number: u32, reason: Reason) -> BTreeSet<u16> {
    (0..)
        .zip(clients(number))
        .filter_map(|(n, client)| match world.send(&client.ack()).reason() {
            Reason::Established => None,
            other => {
                assert_eq!(other, reason);
                Some(n)
            }
        })
        .collect()
}

/// Has so many parts of backend 1's flows be closed, while it serves those that it has.
fn close(world: &World, parts: u32) {
    world.backend(
        &BackendSpec::l2(1)
            .serving(Serving::ExistingOnly)
            .closing(parts),
    );
}

fn without_a_share_nobody_is_closed() {
    let world = World::full_size();
    open(&world, 100);
    close(&world, 0);
    assert_eq!(closed(&world, 100, Reason::DrainDeadline).len(), 0);
    assert_eq!(world.notices(), []);
}

fn half_of_the_flows_are_closed_the_same_ones_again_and_more_as_it_grows() {
    const FLOWS: u32 = 1_000;
    let world = World::full_size();
    open(&world, FLOWS);
    let mut before = BTreeSet::new();
    for parts in [ALL / 4, ALL / 2, ALL / 4 * 3, ALL] {
        close(&world, parts);
        let now = closed(&world, FLOWS, Reason::DrainDeadline);
        // Five standard deviations of a fair draw are 79 at most.
        let expected = FLOWS * (parts >> 8) / (ALL >> 8);
        assert!(
            (now.len() as u32).abs_diff(expected) <= 79,
            "{} at {parts}",
            now.len()
        );
        assert!(before.is_subset(&now), "at {parts}");
        assert_eq!(closed(&world, FLOWS, Reason::DrainDeadline), now);
        before = now;
    }
}

fn all_are_closed() {
    let world = World::full_size();
    open(&world, 300);
    close(&world, ALL);
    assert_eq!(closed(&world, 300, Reason::DrainDeadline).len(), 300);
    // The last part is a part too.
    close(&world, ALL - 1);
    assert!(closed(&world, 300, Reason::DrainDeadline).len() >= 299);
}

/// A world with an established flow of [`CLIENT`], whose turn it is.
fn due() -> World {
    let world = World::new();
    world.send(&CLIENT.syn());
    world.send(&CLIENT.ack());
    close(&world, ALL);
    world
}

fn a_closed_flow_is_answered_with_a_rst_and_its_entry_stays() {
    let world = due();
    for packet in [
        CLIENT.ack(),
        CLIENT.ack().payload(b"data"),
        CLIENT.ack().tcp_options(&[1; 12]).payload(&[7; 1_400]),
        CLIENT.ack().with_tcp(|tcp| tcp.flags = 0).payload(b"?"),
    ] {
        world
            .send(&packet)
            .expect(&answered(Reason::DrainDeadline, reset_output(&packet)).of_backend(1));
        assert!(world.entry(CLIENT.key()).is(State::Young));
    }
}

fn who_ends_a_flow_is_not_answered() {
    for flags in [RST, RST | ACK, RST | FIN, FIN | ACK, FIN] {
        let world = due();
        let packet = CLIENT.ack().with_tcp(|tcp| tcp.flags = flags);
        world.send(&packet).expect(&forwarded(
            Reason::Established,
            1,
            BackendSpec::l2(1).l2_output(&packet),
        ));
        assert!(world.entry(CLIENT.key()).is(State::Closing), "{flags:#x}");
        assert_eq!(world.notices(), []);
    }
}

fn a_flow_of_a_deadline_that_is_over_goes_on() {
    let world = due();
    world.send(&CLIENT.ack());
    world.backend(&BackendSpec::l2(1));
    let data = CLIENT.ack().payload(b"data");
    world.send(&data).expect(&forwarded(
        Reason::Established,
        1,
        BackendSpec::l2(1).l2_output(&data),
    ));
}

fn a_dead_backend_is_paced_and_the_rest_is_forwarded() {
    const FLOWS: u32 = 1_000;
    let world = World::full_size();
    open(&world, FLOWS);
    let dead = BackendSpec::l2(1).serving(Serving::None);
    world.backend(&dead.closing(0));
    assert_eq!(closed(&world, FLOWS, Reason::BackendDead).len(), 0);
    world.backend(&dead.closing(ALL / 2));
    let half = closed(&world, FLOWS, Reason::BackendDead);
    assert!(half.len().abs_diff(500) <= 79, "{}", half.len());
    world.backend(&dead);
    assert_eq!(closed(&world, FLOWS, Reason::BackendDead).len(), 1_000);
}

/// A world with an established flow of [`CLIENT`], whose backend is dead and whose turn it is.
fn dead() -> World {
    let world = due();
    world.backend(&BackendSpec::l2(1).serving(Serving::None).closing(ALL));
    world
}

fn a_dead_backend_is_not_told() {
    let world = dead();
    let fin = CLIENT.ack().with_tcp(|tcp| tcp.flags = FIN | ACK);
    for packet in [CLIENT.ack(), fin] {
        world
            .send(&packet)
            .expect(&answered(Reason::BackendDead, reset_output(&packet)).of_backend(1));
    }
    assert_eq!(world.notices(), []);
}

fn a_rst_to_a_dead_backend_is_dropped() {
    dead()
        .send(&CLIENT.ack().with_tcp(|tcp| tcp.flags = RST))
        .expect(&dropped(Reason::ResetToDead).of_backend(1));
}

/// What the daemon is to be told of a segment of [`CLIENT`].
fn notice_of(packet: &Packet) -> Notice {
    Notice {
        client: on_wire(CLIENT.0).into(),
        vip: on_wire(VIP).into(),
        backend: 1,
        seq: packet.as_tcp().seq,
        ack: packet.as_tcp().ack,
        client_port: CLIENT.1,
        port: VIP_PORT,
        service: SERVICE,
        reserved: [0; 3],
    }
}

fn the_notice_tells_what_the_backend_waits_for() {
    let world = due();
    let packet = CLIENT.ack().ack(0xfedc_ba98).payload(b"data");
    world.send(&packet);
    assert_eq!(world.notices(), [notice_of(&packet)]);
    assert_eq!(world.notices(), []);
    // One for each segment: the first may have been inexact.
    world.send(&packet);
    world.send(&CLIENT.ack());
    assert_eq!(
        world.notices(),
        [notice_of(&packet), notice_of(&CLIENT.ack())]
    );
}

fn of_a_segment_with_tags_and_headers_between_it_tells_the_same() {
    let world = due();
    let packet = CLIENT
        .ack()
        .ack(0x0102_0304)
        .tagged(0x88a8, 0x000a)
        .tagged(0x8100, 0x6064)
        .options(&[1; 8])
        .tcp_options(&[1; 12])
        .payload(b"odd");
    world
        .send(&packet)
        .expect(&answered(Reason::DrainDeadline, reset_output(&packet)).of_backend(1));
    assert_eq!(world.notices(), [notice_of(&packet)]);
}

fn of_a_truncated_segment_its_headers_tell_the_same() {
    for packet in [
        CLIENT.ack().payload(b"data"),
        CLIENT
            .ack()
            .tagged(0x8100, 0x6064)
            .options(&[1; 8])
            .tcp_options(&[1; 12])
            .payload(b"odd"),
    ] {
        assert_cut_tells_the_same(&due(), &packet);
    }
}

fn of_a_truncated_segment_that_would_be_translated_too() {
    in_each_mode(|world, backend, flow| {
        let backend = backend.serving(Serving::ExistingOnly).closing(ALL);
        world.translate(&backend, SERVICE);
        drop(world.notices());
        let plain = flow.ack().tcp_options(&[1; 12]).payload(b"odd");
        assert_cut_tells_the_same(world, &plain.tagged(0x8100, 0x6064));
    });
}

/// Asserts that a frame of a flow whose turn it is is the host's if it is cut within its headers, and is answered, and told of, like the whole one if behind.
#[track_caller]
fn assert_cut_tells_the_same(world: &World, packet: &Packet) {
    for cut in packet.cuts() {
        world.save_resets(10);
        if let Some(run) = world.send_cut(&cut) {
            let answer = answered(Reason::DrainDeadline, reset_output(packet));
            run.expect(&answer.of_backend(1));
            assert_eq!(world.notices(), [notice_of(packet)]);
        } else {
            assert_eq!(world.notices(), []);
        }
    }
}

fn nothing_is_told_of_a_reset_that_may_not_be_sent() {
    let world = due();
    world.send(&CLIENT.ack());
    drop(world.notices());
    world
        .send_without_resets(&CLIENT.ack())
        .expect(&dropped(Reason::ResetLimited).of_backend(1));
    // Only of those tries that were answered.
    let answered = world.count_of(Reason::DrainDeadline) - 1;
    assert_eq!(world.notices().len() as u64, answered);
}

fn notices_without_room_are_counted_and_the_client_is_answered_all_the_same() {
    const MORE_THAN_FIT: u32 = lb_common::maps::NOTICES_BYTES / size_of::<Notice>() as u32;
    let world = due();
    let frame = CLIENT.ack().bytes();
    for _ in 0..MORE_THAN_FIT {
        world.save_resets(10);
        world.hit(&frame);
    }
    assert_eq!(
        world.count_of(Reason::DrainDeadline),
        u64::from(MORE_THAN_FIT)
    );
    let lost: u64 = (0..world.maps.cpus.len())
        .map(|cpu| world.maps.cpus.get(cpu).notices_lost)
        .sum();
    assert!(lost > 0);
    assert_eq!(
        world.notices().len() as u64,
        u64::from(MORE_THAN_FIT) - lost
    );
}

fn a_flow_whose_backend_cannot_be_reached_is_closed_too() {
    let world = due();
    let unresolved = BackendSpec::l2(1)
        .serving(Serving::ExistingOnly)
        .unresolved();
    world.backend(&unresolved.closing(ALL));
    let packet = CLIENT.ack();
    world
        .send(&packet)
        .expect(&answered(Reason::DrainDeadline, reset_output(&packet)).of_backend(1));
}

/// A RST from a flow's client as the daemon has the program rewrite it, to tell the backend: see `lb_userspace::notice`.
fn from_the_daemon(notice: &Notice, seq: u32) -> Packet {
    CLIENT.ack().with_tcp(|tcp| {
        tcp.flags = RST | ACK;
        (tcp.seq, tcp.ack) = (seq, notice.ack);
    })
}

fn a_translated_flow_is_closed_and_its_backend_told_by_what_it_knows_the_client_by() {
    in_each_mode(|world, backend, flow| {
        world.translate(
            &backend.serving(Serving::ExistingOnly).closing(ALL),
            SERVICE,
        );
        world.save_resets(100);
        drop(world.notices());
        let packet = flow.ack().payload(b"data");
        world
            .send(&packet)
            .expect(&answered(Reason::DrainDeadline, reset_output(&packet)).of_backend(1));
        let told = world.notices();
        assert_eq!(told, [notice_of(&packet)]);
        assert!(world.entry(CLIENT.key()).is(State::Pin));

        // Both numbers that may be the one: the first closes the flow, and the second is translated all the same.
        for seq in [told[0].seq, told[0].seq.wrapping_add(1)] {
            let reset = from_the_daemon(&told[0], seq);
            let output = backend.translated(&reset, flow.source).bytes();
            world
                .send(&reset)
                .expect(&forwarded(Reason::Established, 1, output));
            assert!(world.entry(CLIENT.key()).is(State::Closing));
        }
        assert_eq!(world.notices(), []);
    });
}

fn of_a_translated_flow_that_is_not_due_nobody_is_told() {
    in_each_mode(|world, backend, flow| {
        drop(world.notices());
        let backend = backend.serving(Serving::ExistingOnly).closing(0);
        world.translate(&backend, SERVICE);
        let packet = flow.ack().payload(b"data");
        let output = backend.translated(&packet, flow.source).bytes();
        world
            .send(&packet)
            .expect(&forwarded(Reason::Established, 1, output));
        // Who ends it is not answered, even when it is.
        world.translate(&backend.closing(ALL), SERVICE);
        let fin = flow.sends(FIN | ACK);
        let output = backend.translated(&fin, flow.source).bytes();
        world
            .send(&fin)
            .expect(&forwarded(Reason::Established, 1, output));
        assert_eq!(world.notices(), []);
    });
}

/// Where services translate it is another program that finds it out.
fn a_flow_to_a_backend_on_this_host_is_closed_and_its_backend_told() {
    for (backend, translates) in [
        (BackendSpec::l2(1), false),
        (BackendSpec::ipip(1), false),
        (BackendSpec::nat(1), true),
        (BackendSpec::dnat(1), true),
    ] {
        let backend = backend.local();
        let world = if translates {
            World::with_translating(&backend)
        } else {
            let world = World::new();
            world.endpoint(&backend, SERVICE);
            world
        };
        world.send(&CLIENT.syn());
        world.send(&CLIENT.ack());
        world.put_state(&backend.serving(Serving::ExistingOnly).closing(ALL));
        world.save_resets(100);
        drop(world.notices());
        let packet = CLIENT.ack().payload(b"data");
        world
            .send(&packet)
            .expect(&answered(Reason::DrainDeadline, reset_output(&packet)).of_backend(1));
        let told = world.notices();
        assert_eq!(told, [notice_of(&packet)]);
        assert!(world.entry(CLIENT.key()).is(State::Young));
        // The end that the backend is told of closes the flow here too.
        let reset = from_the_daemon(&told[0], told[0].seq);
        let given = backend.given(&reset).bytes();
        world
            .send(&reset)
            .expect(&forwarded(Reason::Established, 1, given).left_to_the_host());
        assert!(world.entry(CLIENT.key()).is(State::Closing));
        assert_eq!(world.notices(), []);
    }
}

fn a_backend_of_any_mode_is_paced_and_told_if_it_lives() {
    for (backend, translates) in [
        (BackendSpec::l2(1), false),
        (BackendSpec::ipip(1), false),
        (BackendSpec::nat(1), true),
        (BackendSpec::dnat(1), true),
    ] {
        let (world, data, sent) = if translates {
            let world = World::with_translating(&backend);
            let flow = world.open(CLIENT);
            let data = flow.ack().payload(b"data");
            let sent = backend.translated(&data, flow.source).bytes();
            (world, data, sent)
        } else {
            let world = World::with(&backend);
            world.send(&CLIENT.syn());
            world.send(&CLIENT.ack());
            let data = CLIENT.ack().payload(b"data");
            let sent = if backend.is_l2() {
                backend.l2_output(&data)
            } else {
                backend.ipip_output(&data)
            };
            (world, data, sent)
        };
        world.save_resets(100);
        drop(world.notices());
        for (serving, reason) in [
            (Serving::ExistingOnly, Reason::DrainDeadline),
            (Serving::None, Reason::BackendDead),
        ] {
            let paced = backend.serving(serving);
            world.put_state(&paced.closing(0));
            world
                .send(&data)
                .expect(&forwarded(Reason::Established, 1, sent.clone()));
            world.put_state(&paced.closing(ALL));
            world
                .send(&data)
                .expect(&answered(reason, reset_output(&data)).of_backend(1));
        }
        // Of what was closed since it died there is nobody to tell.
        assert_eq!(world.notices(), [notice_of(&data)]);
    }
}
