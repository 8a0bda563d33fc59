//! Backends on this host: what goes to them by its stack, and what clients get of what they send, to the byte.

use lab::packet::{
    BackendSpec, CLIENT, Client, Expect, Packet, SERVICE, VIP, VIP_PORT, World, answered, dropped,
    forwarded,
    icmp::{About, ERRORS, ROUTER, complaint, message, quote, quotes},
    reset_output, version,
};
use lb_common::{
    backend::Serving,
    flow::word::{LINGER_RST_TICKS, State, Word, YOUNG_TICKS},
    net::IpVersion,
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};
use std::{net::Ipv4Addr, time::Duration};

lab::in_both_versions![
    segments_of_all_shapes_are_left_to_the_stack,
    replies_of_all_shapes_are_translated,
    options_of_a_reply_are_stepped_over_and_headers_of_ipv6_are_not,
    truncated_frames_pass_or_go_as_far_as_they_go,
    truncated_replies_go_on_or_are_dropped,
    what_is_no_reply_goes_on_untouched,
    a_flow_opens_and_ends_by_its_client_alone,
    what_a_backend_refuses_leaves_no_entry_for_ever,
    a_client_that_has_vanished_twice_is_served_a_third_time,
    a_flow_lingers_for_as_long_as_its_backend_speaks,
    what_is_too_big_or_has_no_hops_left_is_answered_from_the_vip,
    what_could_not_be_translated_back_does_not_go,
    a_flow_that_collides_is_reset,
    what_has_ended_collides_with_nothing,
    services_share_a_backend,
    a_dead_backend_is_told_to_the_client,
    a_reply_whose_backend_is_another_is_no_reply,
    what_a_router_says_of_a_reply_is_heard_by_the_backend,
    an_error_about_a_reply_goes_as_far_as_it_goes,
    an_error_that_cannot_go_on_is_dropped,
];

const OTHER: Client = Client(Ipv4Addr::new(198, 51, 100, 8), 40_000);

/// Every mode, in an instance with room for translations, and the two that need none in one without.
fn worlds() -> Vec<(fn() -> World, BackendSpec)> {
    let (l2, ipip) = (BackendSpec::l2(1), BackendSpec::ipip(1));
    let (nat, dnat) = (BackendSpec::nat(1), BackendSpec::dnat(1));
    vec![
        (World::new, l2.local()),
        (World::new, ipip.local()),
        (World::translating, l2.local()),
        (World::translating, nat.local()),
        (World::translating, dnat.local()),
    ]
}

/// A world whose service has one backend, on this host.
fn set(make: fn() -> World, backend: &BackendSpec, translates: bool) -> World {
    let world = make();
    if translates {
        world.translate(backend, SERVICE);
    } else {
        world.endpoint(backend, SERVICE);
    }
    world
}

fn each(check: impl Fn(&mut World, &BackendSpec)) {
    for (make, backend) in worlds() {
        for translates in [false, true] {
            check(&mut set(make, &backend, translates), &backend);
        }
    }
}

fn first() -> (World, BackendSpec) {
    let backend = BackendSpec::ipip(1).local();
    (set(World::new, &backend, false), backend)
}

fn given(backend: &BackendSpec, packet: &Packet, reason: Reason) -> Expect {
    forwarded(reason, 1, backend.given(packet).bytes()).left_to_the_host()
}

/// A segment of backend 1 to a client.
fn reply(client: Client, flags: u8) -> Packet {
    let next = client.syn().as_tcp().seq.wrapping_add(1);
    // Where backend 1 is: as it gets what is sent to it.
    let backend = BackendSpec::l2(1).local().given(&client.syn());
    let port = backend.as_tcp().destination_port;
    Packet::tcp((backend.destination, port), (client.0, client.1), flags)
        .seq(0x5151_0000)
        .ack(next)
}

/// What a client gets of it.
fn returned(packet: &Packet, port: u16) -> Packet {
    let mut sent = packet.clone().with_tcp(|tcp| tcp.source_port = port);
    sent.source = VIP;
    sent
}

fn replied(packet: &Packet) -> Expect {
    forwarded(Reason::Reply, 1, returned(packet, VIP_PORT).bytes())
        .goes_on()
        .counting(packet.bytes().len() as u32)
}

/// The same of the second service.
fn replied_by_second(packet: &Packet) -> Expect {
    forwarded(Reason::Reply, 1, returned(packet, 444).bytes())
        .goes_on()
        .of_service(2)
        .counting(packet.bytes().len() as u32)
}

fn segments_of_all_shapes_are_left_to_the_stack() {
    each(|world, backend| {
        let syn = CLIENT.syn();
        world
            .send(&syn)
            .expect(&given(backend, &syn, Reason::Opened));
        let options = [CLIENT.ack().options(&[1; 8])];
        for data in CLIENT.ack().shapes().iter().chain(&options) {
            world
                .send(data)
                .expect(&given(backend, data, Reason::Established));
        }
    });
}

fn replies_of_all_shapes_are_translated() {
    each(|world, _| {
        world.send(&CLIENT.syn());
        for flags in [SYN | ACK, ACK, FIN | ACK, RST] {
            for answer in reply(CLIENT, flags).shapes() {
                world.leave(&answer).expect(&replied(&answer));
            }
        }
    });
}

/// A fragment is known by its ports, if it is one of IPv4 that has them.
fn options_of_a_reply_are_stepped_over_and_headers_of_ipv6_are_not() {
    each(|world, _| {
        world.send(&CLIENT.syn());
        let answer = reply(CLIENT, ACK).payload(b"odd");
        for more in [
            answer.clone().options(&[1; 4]),
            answer.clone().options(&[1; 40]),
            answer.clone().fragment(0x2000),
        ] {
            let run = world.leave(&more);
            match version() {
                IpVersion::V4 => run.expect(&replied(&more)),
                IpVersion::V6 => run.expect_untouched(),
            }
        }
        for later in [0x2001, 0x00b9] {
            let fragment = answer.clone().fragment(later);
            world.leave(&fragment).expect_untouched();
        }
    });
}

fn truncated_frames_pass_or_go_as_far_as_they_go() {
    each(|world, backend| {
        world.send(&CLIENT.syn());
        let data = || CLIENT.ack().payload(b"data");
        for packet in [
            data(),
            data().tagged(0x8100, 7),
            data().tagged(0x8100, 7).tagged(0x88a8, 9),
            data().options(&[1; 8]),
        ] {
            for cut in packet.cuts() {
                if let Some(run) = world.send_cut(&cut) {
                    let sent = given(backend, &packet, Reason::Established);
                    run.expect(&sent.cut_by(cut.missing));
                }
            }
        }
    });
}

/// Within its addresses or ports nobody can tell what it is; from then on it is a reply, whose checksum must be there to be written.
fn truncated_replies_go_on_or_are_dropped() {
    let (world, _) = first();
    world.send(&CLIENT.syn());
    for packet in [
        reply(CLIENT, ACK).payload(b"data"),
        reply(CLIENT, ACK).tagged(0x8100, 7).payload(b"data"),
        reply(CLIENT, ACK)
            .tagged(0x8100, 7)
            .tagged(0x88a8, 9)
            .payload(b"data"),
    ] {
        let (whole, sent) = (packet.bytes(), returned(&packet, VIP_PORT).bytes());
        let tcp = packet.network() + packet.headers_len();
        // Kernels refuse to run a program on less of an untagged packet than its IP header, which none of them would send.
        let least = if packet.tags.is_empty() { tcp } else { 15 };
        for length in least..whole.len() {
            let run = world.leave_bytes(&whole[..length]);
            if length < tcp + 4 {
                run.expect_untouched();
            } else if length < tcp + 18 {
                let lost = dropped(Reason::Untranslated).of_backend(1);
                run.expect(&lost.shot());
            } else {
                let sent = sent[..length].to_vec();
                let expected = forwarded(Reason::Reply, 1, sent).goes_on();
                run.expect(&expected.counting(length as u32));
            }
        }
    }
}

fn what_is_no_reply_goes_on_untouched() {
    each(|world, _| {
        let answer = reply(CLIENT, ACK);
        // Between backend and client, and not by the VIP.
        world.leave(&answer).expect_untouched();
        world.send(&CLIENT.syn());
        for other in [
            reply(OTHER, ACK),
            answer.clone().with_tcp(|tcp| tcp.destination_port += 1),
            answer.clone().with_tcp(|tcp| tcp.source_port += 1),
            answer.clone().carrying(17, &[0; 20]),
            answer
                .clone()
                .tagged(0x8100, 1)
                .tagged(0x8100, 2)
                .tagged(0x8100, 3),
            CLIENT.ack(),
        ] {
            world.leave(&other).expect_untouched();
        }
        let mut arp = answer.bytes();
        arp[12..14].copy_from_slice(&[8, 6]);
        world.leave_bytes(&arp).expect_untouched();
        world.leave(&answer).expect(&replied(&answer));
    });
}

/// Nothing that a backend sends changes an entry whose flow has not ended, but for a RST of a young one.
fn a_flow_opens_and_ends_by_its_client_alone() {
    each(|world, backend| {
        world.send(&CLIENT.syn());
        let embryo = world.entry(CLIENT.key());
        assert!(embryo.is(State::Embryo));
        world.leave(&reply(CLIENT, SYN | ACK));
        assert_eq!(world.entry(CLIENT.key()), embryo);
        world.send(&CLIENT.ack());
        assert!(world.entry(CLIENT.key()).is(State::Young));
        world.leave(&reply(CLIENT, FIN | ACK));
        assert!(world.entry(CLIENT.key()).is(State::Young));
        let fin = CLIENT.ack().with_tcp(|tcp| tcp.flags = FIN | ACK);
        world
            .send(&fin)
            .expect(&given(backend, &fin, Reason::Established));
        assert!(world.entry(CLIENT.key()).is(State::Closing));
        // What comes after it goes on both ways.
        let answer = reply(CLIENT, ACK).payload(b"the rest");
        world.leave(&answer).expect(&replied(&answer));
        let ack = CLIENT.ack();
        world
            .send(&ack)
            .expect(&given(backend, &ack, Reason::Established));
    });
}

/// Whoever spoofs a client never hears the backend's answer, and so cannot acknowledge it: the backend has no such connection, and says so.
fn what_a_backend_refuses_leaves_no_entry_for_ever() {
    each(|world, backend| {
        let refusal = reply(CLIENT, RST);
        let data = CLIENT.ack().payload(b"data");
        world.send(&CLIENT.syn());
        world.leave(&refusal).expect(&replied(&refusal));
        assert!(world.entry(CLIENT.key()).is(State::Embryo));
        world.send(&CLIENT.ack());
        world.leave(&refusal).expect(&replied(&refusal));
        let closed = world.entry(CLIENT.key());
        assert!(closed.is(State::Closing) && closed.has(Word::BY_RESET));
        // A client that is there and goes on was not meant.
        world
            .send(&data)
            .expect(&given(backend, &data, Reason::Established));
        assert!(world.entry(CLIENT.key()).is(State::Young));
        // A pin is none that was spoofed a moment ago, and a RST may be a firewall's.
        world.age(YOUNG_TICKS);
        world.send(&data);
        let pin = world.entry(CLIENT.key());
        assert!(pin.is(State::Pin));
        world.leave(&refusal).expect(&replied(&refusal));
        assert_eq!(world.entry(CLIENT.key()), pin);
    });
}

/// Two entries are all that a client's port has: of the third connection nothing is recorded, and what the backend sends is translated by one of these.
fn a_client_that_has_vanished_twice_is_served_a_third_time() {
    each(|world, backend| {
        let isn = CLIENT.syn().as_tcp().seq;
        let mib = |count: u32| isn.wrapping_add(count << 20);
        for begin in [isn, mib(100)] {
            world.send(&CLIENT.syn().seq(begin));
            world.send(&CLIENT.ack().seq(begin.wrapping_add(1)));
            world.age(YOUNG_TICKS);
            world.send(&CLIENT.ack().seq(begin.wrapping_add(1)));
        }
        let third = CLIENT.syn().seq(mib(200));
        world
            .send(&third)
            .expect(&given(backend, &third, Reason::Unpinned));
        let answer = reply(CLIENT, SYN | ACK);
        world.leave(&answer).expect(&replied(&answer));
        let data = CLIENT.ack().seq(mib(200).wrapping_add(1)).payload(b"data");
        world
            .send(&data)
            .expect(&given(backend, &data, Reason::Established));
    });
}

fn a_flow_lingers_for_as_long_as_its_backend_speaks() {
    each(|world, _| {
        world.send(&CLIENT.syn());
        world.send(&CLIENT.ack());
        world.send(&CLIENT.sends(RST));
        let answer = reply(CLIENT, ACK);
        for _ in 0..9 {
            world.age(LINGER_RST_TICKS - 1);
            world.leave(&answer).expect(&replied(&answer));
        }
        world.age(LINGER_RST_TICKS);
        world.leave(&answer).expect_untouched();
    });
}

fn what_is_too_big_or_has_no_hops_left_is_answered_from_the_vip() {
    let (world, backend) = first();
    let backend = backend.mtu(1_400);
    world.endpoint(&backend, SERVICE);
    world.send(&CLIENT.syn());
    let longest = CLIENT.ack().of_length(1_400);
    world
        .send(&longest)
        .expect(&given(&backend, &longest, Reason::Established));
    world.save_answers(10);
    let longer = CLIENT.ack().of_length(1_401);
    let answer = complaint(&longer, About::TooBig(1_400));
    let expected = answered(Reason::TooBig, answer).of_backend(1);
    world.send(&longer).expect(&expected);
    for ttl in [0, 1] {
        world.save_answers_for_leisure();
        let last = CLIENT.ack().ttl(ttl);
        let answer = complaint(&last, About::Expired);
        let expected = answered(Reason::TtlExpired, answer).of_backend(1);
        world.send(&last).expect(&expected);
    }
}

fn what_could_not_be_translated_back_does_not_go() {
    each(|world, backend| {
        let fin = CLIENT.ack().with_tcp(|tcp| tcp.flags = FIN | ACK);
        world.save_resets(10);
        world
            .send(&fin)
            .expect(&answered(Reason::UnknownFlow, reset_output(&fin)).of_backend(1));
        world
            .send(&CLIENT.sends(RST))
            .expect(&dropped(Reason::ResetToDead).of_backend(1));
        world
            .send(&CLIENT.sends(0))
            .expect(&dropped(Reason::Untranslated).of_backend(1));
        // One that is in mid-stream is adopted, and so are its replies.
        world.save_adoptions(10);
        let data = CLIENT.ack();
        world
            .send(&data)
            .expect(&given(backend, &data, Reason::Adopted));
        let answer = reply(CLIENT, ACK);
        world.leave(&answer).expect(&replied(&answer));
        // While nothing can be recorded, nothing new begins.
        world.hold(Duration::from_secs(60));
        world
            .send(&OTHER.syn())
            .expect(&dropped(Reason::Held).of_backend(1));
        world
            .send(&OTHER.sends(FIN | ACK))
            .expect(&dropped(Reason::Held).of_backend(1));
        world
            .send(&data)
            .expect(&given(backend, &data, Reason::Established));
    });
}

/// A second service of the same backend.
fn share(world: &mut World, backend: &BackendSpec) {
    world.service(2, VIP, 444, &[1]);
    let second = *backend;
    // It is one backend to the kernel, and two to the services.
    world.endpoint(&second, 2);
    world.endpoint(&second, SERVICE);
}

fn to_second(client: Client, flags: u8) -> Packet {
    client
        .sends(flags)
        .with_tcp(|tcp| tcp.destination_port = 444)
}

fn a_flow_that_collides_is_reset() {
    let (mut world, backend) = first();
    share(&mut world, &backend);
    world.send(&CLIENT.syn());
    world.save_resets(10);
    let syn = to_second(CLIENT, SYN);
    world.send(&syn).expect(
        &answered(Reason::Collision, reset_output(&syn))
            .of_service(2)
            .of_backend(1),
    );
    // It leaves nothing that the backend's segments could be taken for a part of.
    assert_eq!(world.values().len(), 1);
    let answer = reply(CLIENT, SYN | ACK);
    world.leave(&answer).expect(&replied(&answer));
    // Another client's does not collide.
    let syn = to_second(OTHER, SYN);
    world
        .send(&syn)
        .expect(&given(&backend, &syn, Reason::Opened).of_service(2));
}

fn what_has_ended_collides_with_nothing() {
    for (age, is_free) in [(LINGER_RST_TICKS, false), (LINGER_RST_TICKS + 1, true)] {
        let (mut world, backend) = first();
        share(&mut world, &backend);
        world.send(&CLIENT.syn());
        world.send(&CLIENT.ack());
        world.send(&CLIENT.ack().with_tcp(|tcp| tcp.flags = FIN | ACK));
        assert!(world.entry(CLIENT.key()).is(State::Closing));
        world.age(age);
        world.save_resets(10);
        let syn = to_second(CLIENT, SYN);
        let run = world.send(&syn);
        if !is_free {
            assert_eq!(run.reason(), Reason::Collision);
            continue;
        }
        run.expect(&given(&backend, &syn, Reason::Opened).of_service(2));
        assert_eq!(world.entries(CLIENT.key()), []);
        let answer = reply(CLIENT, SYN | ACK);
        world.leave(&answer).expect(&replied_by_second(&answer));
    }
}

fn services_share_a_backend() {
    let (mut world, backend) = first();
    share(&mut world, &backend);
    world.send(&CLIENT.syn());
    world.send(&to_second(OTHER, SYN));
    let answer = reply(CLIENT, SYN | ACK);
    world.leave(&answer).expect(&replied(&answer));
    let answer = reply(OTHER, SYN | ACK);
    world.leave(&answer).expect(&replied_by_second(&answer));
}

fn a_dead_backend_is_told_to_the_client() {
    each(|world, backend| {
        world.send(&CLIENT.syn());
        world.send(&CLIENT.ack());
        world.put_state(&backend.serving(Serving::None));
        world.save_resets(10);
        let data = CLIENT.ack().payload(b"data");
        world
            .send(&data)
            .expect(&answered(Reason::BackendDead, reset_output(&data)).of_backend(1));
        // What it still says is translated: it may live, unknown to the checks.
        let answer = reply(CLIENT, ACK);
        world.leave(&answer).expect(&replied(&answer));
    });
}

/// As after its id was given to another one.
fn a_reply_whose_backend_is_another_is_no_reply() {
    let (world, backend) = first();
    world.send(&CLIENT.syn());
    world.put_state(&backend.generation(1));
    world.leave(&reply(CLIENT, ACK)).expect_untouched();
    // A backend that is on another host since is answered where its packets come in.
    world.put_state(&BackendSpec::dnat(1));
    world.leave(&reply(CLIENT, ACK)).expect_untouched();
    assert!(!world.entry(CLIENT.key()).eq(&Word::EMPTY));
}

/// What a router says of a backend's segment, and what the backend gets of it.
fn about_reply(about: About, quote: fn(&Packet) -> Vec<u8>) -> (Packet, Packet) {
    let came = reply(CLIENT, ACK).payload(b"too much for a router");
    let went = returned(&came, VIP_PORT);
    (
        message(about, 0, &quote(&went), ROUTER, VIP),
        message(about, 0, &quote(&came), ROUTER, came.source),
    )
}

fn relayed(heard: &Packet) -> Expect {
    forwarded(Reason::ErrorRelayed, 1, heard.bytes()).left_to_the_host()
}

/// In mode `nat` too: what is local has no SNAT address.
fn what_a_router_says_of_a_reply_is_heard_by_the_backend() {
    each(|world, _| {
        world.send(&CLIENT.syn());
        world.send(&CLIENT.ack());
        let entry = world.entry(CLIENT.key());
        for about in ERRORS {
            for quote in quotes() {
                let (told, heard) = about_reply(about, quote);
                world.send(&told).expect(&relayed(&heard));
                let (told, heard) = (told.tagged(0x8100, 0x2007), heard.tagged(0x8100, 0x2007));
                world.send(&told).expect(&relayed(&heard));
                let (told, heard) = (told.ttl(2).padded(6), heard.ttl(2).padded(6));
                world.send(&told).expect(&relayed(&heard));
            }
        }
        // It is no sign of life of anybody's.
        assert_eq!(world.entry(CLIENT.key()), entry);
    });
}

fn an_error_about_a_reply_goes_as_far_as_it_goes() {
    let (world, _) = first();
    world.send(&CLIENT.syn());
    let about = About::TooBig(1_400);
    let (told, heard) = about_reply(about, Packet::packet);
    let header = told.headers_len();
    world.send_cuts_of_error((&told, &heard), about, header, relayed);
}

fn an_error_that_cannot_go_on_is_dropped() {
    each(|world, backend| {
        world.send(&CLIENT.syn());
        let (told, heard) = about_reply(About::Unreachable, quote);
        let unrelayed = dropped(Reason::ErrorUnrelayed).of_backend(1);
        // No error is answered with an error.
        for ttl in [0, 1] {
            world.send(&told.clone().ttl(ttl)).expect(&unrelayed);
        }
        world.put_state(&backend.serving(Serving::None));
        world.send(&told).expect(&unrelayed);
        world.put_state(backend);
        world.send(&told).expect(&relayed(&heard));
    });
}
