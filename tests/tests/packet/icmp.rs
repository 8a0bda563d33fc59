//! ICMP and ICMPv6: who is told that a packet cannot go on, errors that go to the backend whose packet they are about, and echoes of a VIP.

use std::net::Ipv4Addr;

use lab::packet::{
    BackendSpec, CLIENT, Packet, VIP, VIP_PORT, World,
    answer::{OUTER_SOURCE, address_of},
    answered, dropped,
    entries::backend,
    forwarded,
    frame::Extension,
    icmp::{About, complaint, message, quote},
    in_version, passed, version,
    version::in_ipv6,
};
use lb_common::{
    backend::Serving,
    flow::word::{State, Word},
    net::IpVersion,
    tcp::ACK,
    verdict::Reason,
};

lab::in_both_versions![
    a_packet_too_big_for_the_way_to_its_backend_is_answered_with_what_fits,
    no_less_than_the_least_mtu_is_told,
    a_packet_out_of_hops_is_answered,
    complaints_beyond_their_rate_are_dropped_and_counted,
    echoes_and_hops_that_end_leave_answers_for_packets_that_are_too_big,
    a_frame_of_several_buffers_is_answered_by_a_short_one,
    an_echo_request_to_a_vip_that_the_host_does_not_own_is_answered,
    echoes_of_the_hosts_own_vip_and_of_other_addresses_are_the_hosts,
    an_error_goes_to_the_backend_of_the_flow_that_it_is_about,
    an_error_about_an_unknown_flow_goes_where_the_table_says,
    eight_quoted_bytes_of_tcp_are_enough_and_fewer_are_not,
    what_stands_behind_a_message_is_no_quote,
    an_error_about_something_else_is_the_hosts,
    an_error_that_no_backend_can_be_given_is_dropped,
    an_error_is_not_answered_with_an_error,
    a_truncated_message_passes_or_goes_as_far_as_it_goes,
    a_router_on_the_way_to_a_backend_is_heard_by_the_client,
    a_packet_that_gets_no_further_in_its_tunnel_is_told_to_its_client,
    packets_that_get_no_further_leave_answers_for_those_that_are_too_big,
    what_is_not_about_a_flow_and_its_backend_is_the_hosts,
    what_was_not_encapsulated_here_is_the_hosts,
];

const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);

const ERRORS: [About; 3] = [About::TooBig(1_400), About::Expired, About::Unreachable];

/// A segment as a backend has sent it to the client, from the VIP.
fn sent() -> Packet {
    Packet::tcp((VIP, VIP_PORT), (CLIENT.0, CLIENT.1), ACK)
        .payload(b"what was too much for a router")
}

/// An error about it.
fn error(about: About) -> Packet {
    message(about, 0, &quote(&sent()), ROUTER, VIP)
}

/// Length of the outer header of a backend in mode `ipip`.
fn outer_len() -> u32 {
    match version() {
        IpVersion::V4 => 20,
        IpVersion::V6 => 40,
    }
}

fn a_packet_too_big_for_the_way_to_its_backend_is_answered_with_what_fits() {
    for tags in [
        &[][..],
        &[(0x8100, 0x6064)],
        &[(0x88a8, 1), (0x8100, 0xe002)],
    ] {
        let world = World::with(&BackendSpec::ipip(1));
        let room = 1_500 - outer_len();
        for packet in [CLIENT.syn(), CLIENT.ack()] {
            world.send(&packet.clone().within(tags));
            let packet = packet.of_length(room as usize + 1).tos(0xb9).within(tags);
            let told = complaint(&packet, About::TooBig(room));
            world
                .send(&packet)
                .expect(&answered(Reason::TooBig, told).of_backend(1));
        }
        // With options they are quoted too.
        if version() == IpVersion::V4 {
            let packet = CLIENT.ack().options(&[1; 40]).of_length(1_499).within(tags);
            let told = complaint(&packet, About::TooBig(room));
            world
                .send(&packet)
                .expect(&answered(Reason::TooBig, told).of_backend(1));
        }
    }
}

fn no_less_than_the_least_mtu_is_told() {
    let least = match version() {
        IpVersion::V4 => 68,
        IpVersion::V6 => 1_280,
    };
    for mtu in [0, 60, least as u16] {
        let world = World::with(&BackendSpec::ipip(1).mtu(mtu));
        let packet = CLIENT.syn().of_length(1_400);
        let told = complaint(&packet, About::TooBig(least));
        world
            .send(&packet)
            .expect(&answered(Reason::TooBig, told).of_backend(1));
    }
}

fn a_packet_out_of_hops_is_answered() {
    for backend in [BackendSpec::l2(1), BackendSpec::ipip(1)] {
        let world = World::with(&backend);
        for ttl in [0, 1] {
            for packet in [
                CLIENT.syn().ttl(ttl),
                CLIENT.ack().payload(b"odd").ttl(ttl),
                CLIENT.ack().padded(6).ttl(ttl),
                CLIENT.ack().tagged(0x8100, 7).ttl(ttl),
            ] {
                let told = complaint(&packet, About::Expired);
                world
                    .send(&packet)
                    .expect(&answered(Reason::TtlExpired, told).of_backend(1));
            }
        }
    }
}

fn complaints_beyond_their_rate_are_dropped_and_counted() {
    let world = World::new();
    world
        .send_without_answers(&CLIENT.syn().ttl(1))
        .expect(&dropped(Reason::AnswerLimited).of_backend(1));
}

fn echoes_and_hops_that_end_leave_answers_for_packets_that_are_too_big() {
    let world = World::with(&BackendSpec::ipip(1));
    world.vip(VIP, false);
    let echo = message(About::Request, 7, b"data", CLIENT.0, VIP);
    let last = CLIENT.syn().ttl(1);
    for packet in [&echo, &last] {
        // More may be there when a step of the coarse clock falls between.
        let is_limited = (0..1_000).any(|_| {
            world.save_answers(World::KEPT_ANSWERS);
            world.send(packet).reason() == Reason::AnswerLimited
        });
        assert!(is_limited, "they take all that there is");
    }
    let flood = [echo.bytes(), last.bytes()];
    for _ in 0..1_000 {
        for frame in &flood {
            world.hit(frame);
        }
    }
    let room = 1_500 - outer_len();
    let long = CLIENT.syn().of_length(room as usize + 1);
    let told = complaint(&long, About::TooBig(room));
    let expected = answered(Reason::TooBig, told).of_backend(1);
    for _ in 0..World::KEPT_ANSWERS {
        world.send(&long).expect(&expected);
    }
}

fn a_frame_of_several_buffers_is_answered_by_a_short_one() {
    let world = World::with(&BackendSpec::ipip(1));
    let packet = CLIENT.syn().payload(&vec![0x3c; 8_500]);
    let told = complaint(&packet, About::TooBig(1_500 - outer_len()));
    world
        .send(&packet)
        .expect(&answered(Reason::TooBig, told).of_backend(1));
}

fn an_echo_request_to_a_vip_that_the_host_does_not_own_is_answered() {
    let world = World::new();
    world.vip(VIP, false);
    for body in [&b""[..], b"odd", &[0xa5; 56], &[0xff; 1_400]] {
        for ttl in [1, 64, 255] {
            let tagged = |packet: Packet| packet.tagged(0x8100, 0x6064);
            let request =
                tagged(message(About::Request, 0x1234_0001, body, CLIENT.0, VIP)).ttl(ttl);
            let mut reply = tagged(message(About::Reply, 0x1234_0001, body, VIP, CLIENT.0))
                .macs(request.source_mac, request.destination_mac);
            reply.ttl = 64;
            let expected = answered(Reason::EchoAnswered, reply.bytes()).of_no_service();
            world.save_answers_for_leisure();
            world.send(&request).expect(&expected);
        }
    }
    if version() == IpVersion::V4 {
        let request = message(About::Request, 7, b"data", CLIENT.0, VIP).options(&[1; 40]);
        let reply = message(About::Reply, 7, b"data", VIP, CLIENT.0)
            .options(&[1; 40])
            .macs(request.source_mac, request.destination_mac);
        world.save_answers_for_leisure();
        world
            .send(&request)
            .expect(&answered(Reason::EchoAnswered, reply.bytes()).of_no_service());
    }
    let request = message(About::Request, 7, b"data", CLIENT.0, VIP);
    world
        .send_without_answers(&request)
        .expect(&dropped(Reason::AnswerLimited).of_no_service());
}

fn echoes_of_the_hosts_own_vip_and_of_other_addresses_are_the_hosts() {
    let world = World::new();
    let untouched = passed(Reason::NotService).counting(0);
    world
        .send(&message(About::Request, 7, b"data", CLIENT.0, ROUTER))
        .expect(&untouched);
    world
        .send(&message(About::Reply, 7, b"data", CLIENT.0, VIP))
        .expect(&untouched);
    world
        .send(&message(About::Other, 7, b"data", CLIENT.0, VIP))
        .expect(&untouched);
    world.vip(VIP, true);
    world
        .send(&message(About::Request, 7, b"data", CLIENT.0, VIP))
        .expect(&untouched);
    drop(world);
    // A part of a request cannot be answered.
    let world = World::new();
    world.vip(VIP, false);
    let part = message(About::Request, 7, &[1; 64], CLIENT.0, VIP);
    world
        .send(&match version() {
            IpVersion::V4 => part.fragment(0x2000),
            IpVersion::V6 => part.extended(Extension::fragment(1)),
        })
        .expect(&untouched);
}

fn an_error_goes_to_the_backend_of_the_flow_that_it_is_about() {
    for to in [BackendSpec::l2(2), BackendSpec::ipip(2)] {
        let world = World::new();
        world.backend(&to);
        let output = |packet: &Packet| {
            if to.is_l2() {
                to.l2_output(packet)
            } else {
                to.ipip_output_for(packet, CLIENT)
            }
        };
        let pin = Word::live(State::Pin, backend(2), 0, world.now(), 0);
        world.insert(CLIENT.key(), pin);
        for about in ERRORS {
            for packet in [error(about), error(about).tagged(0x8100, 7)] {
                world
                    .send(&packet)
                    .expect(&forwarded(Reason::ErrorRelayed, 2, output(&packet)));
            }
        }
        // It is no sign of life of the client's.
        assert_eq!(world.entry(CLIENT.key()), pin);
    }
}

fn an_error_about_an_unknown_flow_goes_where_the_table_says() {
    let world = World::new();
    let packet = error(About::TooBig(1_400));
    let output = BackendSpec::l2(1).l2_output(&packet);
    world
        .send(&packet)
        .expect(&forwarded(Reason::ErrorRelayed, 1, output));
    assert_eq!(world.values().len(), 0);
}

fn eight_quoted_bytes_of_tcp_are_enough_and_fewer_are_not() {
    let world = World::new();
    for quoted in [quote(&sent()), sent().packet()] {
        let packet = message(About::Unreachable, 0, &quoted, ROUTER, VIP);
        let output = BackendSpec::l2(1).l2_output(&packet);
        world
            .send(&packet)
            .expect(&forwarded(Reason::ErrorRelayed, 1, output));
    }
    let headers = sent().headers_len();
    for len in 0..headers + 4 {
        let packet = message(About::Unreachable, 0, &sent().packet()[..len], ROUTER, VIP);
        world
            .send(&packet)
            .expect(&passed(Reason::NotService).counting(0));
    }
}

/// A message that by its header ends before its frame does: what is missing of a quote is not to be had from there.
fn what_stands_behind_a_message_is_no_quote() {
    let world = World::new();
    let told = message(About::Expired, 0, &sent().packet(), ROUTER, VIP);
    let needed = told.headers_len() + 8 + sent().headers_len() + 4;
    for length in told.headers_len()..usize::from(told.length()) {
        let packet = told.clone().total_length(length as u16);
        world.send(&packet).expect(&if length < needed {
            passed(Reason::NotService).counting(0)
        } else {
            let output = BackendSpec::l2(1).l2_output(&packet);
            forwarded(Reason::ErrorRelayed, 1, output)
        });
    }
}

#[test]
fn a_header_that_says_it_is_shorter_than_any_is_none() {
    let mut world = World::new();
    let untouched = passed(Reason::NotService).counting(0);
    // Its ports would be the first bytes of the header itself.
    world.service(2, VIP, 0x4000, &[1]);
    let mut quoted = sent().packet();
    for words in 0..5 {
        quoted[0] = 0x40 | words;
        world
            .send(&message(About::Expired, 0, &quoted, ROUTER, VIP))
            .expect(&untouched);
    }
    // It would be an echo request by the first byte of its destination.
    let asked = Ipv4Addr::new(8, 0, 2, 1);
    world.vip(asked, false);
    let mut request = message(About::Request, 7, b"data", CLIENT.0, asked).bytes();
    request[14] = 0x44;
    world.send_bytes(&request, 0).expect(&untouched);
}

fn an_error_about_something_else_is_the_hosts() {
    let world = World::new();
    let untouched = passed(Reason::NotService).counting(0);
    let about = |quoted: &Packet| message(About::Unreachable, 0, &quote(quoted), ROUTER, VIP);
    for quoted in [
        // From another port, from another address, to the VIP instead of from it.
        Packet::tcp((VIP, VIP_PORT + 1), (CLIENT.0, CLIENT.1), ACK),
        Packet::tcp((ROUTER, VIP_PORT), (CLIENT.0, CLIENT.1), ACK),
        CLIENT.ack(),
        // No TCP; a later fragment.
        sent().carrying(17, &[0; 8]),
        sent().fragment(1),
    ] {
        world.send(&about(&quoted)).expect(&untouched);
    }
    // To another address than the one that is said to have sent the packet.
    let elsewhere = message(About::Unreachable, 0, &quote(&sent()), ROUTER, ROUTER);
    world.send(&elsewhere).expect(&untouched);
}

fn an_error_that_no_backend_can_be_given_is_dropped() {
    let world = World::new();
    let packet = error(About::TooBig(1_400));
    let unrelayed = dropped(Reason::ErrorUnrelayed).of_backend(1);
    for backend in [
        BackendSpec::l2(1).unresolved(),
        BackendSpec::l2(1).serving(Serving::None),
        BackendSpec::l2(1).nowhere(),
        BackendSpec::ipip(1).mtu(40),
    ] {
        world.backend(&backend);
        world.send(&packet).expect(&unrelayed);
    }
    drop(world);
    let mut world = World::new();
    world.service(1, VIP, VIP_PORT, &[]);
    world
        .maps
        .set_table(1, lb_common::maglev::TableRef::default());
    world.send(&packet).expect(&dropped(Reason::ErrorUnrelayed));
}

fn an_error_is_not_answered_with_an_error() {
    let world = World::new();
    world
        .send(&error(About::TooBig(1_400)).ttl(1))
        .expect(&dropped(Reason::ErrorUnrelayed).of_backend(1));
}

/// Until the ports are there of the segment that it quotes, it is the host's.
fn a_truncated_message_passes_or_goes_as_far_as_it_goes() {
    for backend in [BackendSpec::l2(1), BackendSpec::ipip(1)] {
        let world = World::with(&backend);
        world.vip(VIP, false);
        let output = |packet: &Packet| {
            if backend.is_l2() {
                backend.l2_output(packet)
            } else {
                backend.ipip_output_for(packet, CLIENT)
            }
        };
        for packet in [
            error(About::TooBig(1_400)),
            error(About::Expired).tagged(0x8100, 1),
            message(About::Unreachable, 0, &sent().packet(), ROUTER, VIP),
            message(About::Request, 1, b"", CLIENT.0, VIP),
        ] {
            let whole = packet.bytes();
            let needed = match whole.len() - packet.network() - packet.headers_len() {
                8 => 8,
                _ => 8 + sent().headers_len() + 4,
            };
            let needed = packet.network() + packet.headers_len() + needed;
            for length in 14..whole.len() {
                if length < needed {
                    let run = world.send_bytes(&whole[..length], 0);
                    let reason = run.reason();
                    run.expect(&passed(reason).counting(0));
                    continue;
                }
                let run = world.send_bytes(&whole[..length], packet.counted());
                let relayed = forwarded(Reason::ErrorRelayed, 1, output(&packet));
                run.expect(&relayed.cut_by(whole.len() - length));
            }
        }
    }
}

/// This host, from which outer headers are.
const HERE: Ipv4Addr = OUTER_SOURCE;

/// What a router says of an encapsulated packet, of which it quotes so much.
fn from_within(frame: &[u8], about: About, quoted: usize) -> Packet {
    let packet = &frame[14..];
    message(about, 0, &packet[..quoted.min(packet.len())], ROUTER, HERE)
}

fn a_router_on_the_way_to_a_backend_is_heard_by_the_client() {
    let world = World::with(&BackendSpec::ipip(1));
    world.send(&CLIENT.syn());
    let packet = CLIENT.ack().of_length(1_400);
    let outer = world.send(&packet).outcome.output;
    let within = packet.ttl(63);
    let least = outer_len() as usize + within.headers_len() + 8;
    for quoted in [least, 548, 1_232] {
        for tags in 0..3 {
            let tagged = |packet: Packet| {
                (0..tags).fold(packet, |packet, tag| packet.tagged(0x8100, 0x2001 + tag))
            };
            let told = tagged(from_within(&outer, About::TooBig(1_400), quoted));
            let heard = complaint(&tagged(within.clone()), About::TooBig(1_400 - outer_len()));
            let expected = answered(Reason::ErrorRelayed, heard).of_backend(1);
            world.save_answers(1);
            world.send(&told).expect(&expected);
        }
    }
    // Less than the ports is of no use.
    for quoted in (0..least - 4).rev() {
        let told = from_within(&outer, About::TooBig(1_400), quoted);
        world
            .send(&told)
            .expect(&passed(Reason::NotService).counting(0));
    }
    let told = from_within(&outer, About::TooBig(1_400), least);
    // Nor is what stands behind the message in its frame.
    for missing in 1..=8 {
        let shorter = told.clone().total_length(told.length() - missing);
        world
            .send(&shorter)
            .expect(&passed(Reason::NotService).counting(0));
    }
    world
        .send_without_answers(&told)
        .expect(&dropped(Reason::AnswerLimited).of_backend(1));
}

/// What leaves a client's packet no way to go on, in whatever words, the client hears in the same ones (RFC 2003, section 5.1; RFC 2473, section 8).
fn a_packet_that_gets_no_further_in_its_tunnel_is_told_to_its_client() {
    let world = World::with(&BackendSpec::ipip(1));
    world.send(&CLIENT.syn());
    let outer = world.send(&CLIENT.ack()).outcome.output;
    let within = CLIENT.ack().ttl(63);
    let least = outer_len() as usize + within.headers_len() + 8;
    let heard = complaint(&within, About::NoWay);
    let expected = answered(Reason::ErrorRelayed, heard).of_backend(1);
    for about in [About::NoWay, About::Expired, About::NoSuchProtocol] {
        for quoted in [least, 200] {
            world.save_answers_for_leisure();
            world
                .send(&from_within(&outer, about, quoted))
                .expect(&expected);
        }
    }
    world
        .send_without_answers(&from_within(&outer, About::NoWay, least))
        .expect(&dropped(Reason::AnswerLimited).of_backend(1));
}

/// Routers say of each packet to a host that is gone that there is no way to it; a packet that is too big is told of once.
fn packets_that_get_no_further_leave_answers_for_those_that_are_too_big() {
    let world = World::with(&BackendSpec::ipip(1));
    world.send(&CLIENT.syn());
    let outer = world.send(&CLIENT.ack()).outcome.output;
    let no_way = from_within(&outer, About::NoWay, 200);
    // More may be there when a step of the coarse clock falls between.
    let is_limited = (0..1_000).any(|_| {
        world.save_answers(World::KEPT_ANSWERS);
        world.send(&no_way).reason() == Reason::AnswerLimited
    });
    assert!(is_limited, "they take all that there is");
    let frame = no_way.bytes();
    for _ in 0..1_000 {
        world.hit(&frame);
    }
    let told = complaint(&CLIENT.ack().ttl(63), About::TooBig(1_400 - outer_len()));
    let expected = answered(Reason::ErrorRelayed, told).of_backend(1);
    for _ in 0..World::KEPT_ANSWERS {
        world
            .send(&from_within(&outer, About::TooBig(1_400), 200))
            .expect(&expected);
    }
}

fn what_is_not_about_a_flow_and_its_backend_is_the_hosts() {
    let world = World::with(&BackendSpec::ipip(1));
    world.send(&CLIENT.syn());
    let outer = world.send(&CLIENT.ack().of_length(1_400)).outcome.output;
    let untouched = passed(Reason::NotService).counting(0);
    // What is nothing to the client, and no MTU.
    for about in [About::Unreachable, About::BadHeader, About::TooBig(0)] {
        world
            .send(&from_within(&outer, about, 200))
            .expect(&untouched);
    }
    // Of another backend, of no service, of no packet within.
    let to = 14 + outer_len() as usize - 1;
    let port = 14 + outer_len() as usize + CLIENT.ack().headers_len() + 3;
    let next = match version() {
        IpVersion::V4 => 14 + 9,
        IpVersion::V6 => 14 + 6,
    };
    for at in [to, port, next] {
        let mut other = outer.clone();
        other[at] ^= 1;
        for about in [About::TooBig(1_400), About::NoWay] {
            world
                .send(&from_within(&other, about, 200))
                .expect(&untouched);
        }
    }
    // The flow has another backend by now.
    world.backend(&BackendSpec::ipip(2));
    let pin = Word::live(State::Pin, backend(2), 0, world.now(), 0);
    let (place, _) = world.entries(CLIENT.key())[0];
    world.set_value(place, pin);
    for about in [About::TooBig(1_400), About::NoWay] {
        world
            .send(&from_within(&outer, about, 200))
            .expect(&untouched);
    }
}

/// A frame that was encapsulated, as if it had been by another address.
fn as_from(frame: &[u8], source: Ipv4Addr) -> Vec<u8> {
    let (at, source) = match version() {
        IpVersion::V4 => (14 + 12, source.octets().to_vec()),
        IpVersion::V6 => (14 + 8, in_ipv6(source).octets().to_vec()),
    };
    let mut frame = frame.to_vec();
    frame[at..at + source.len()].copy_from_slice(&source);
    frame
}

/// Another balancer's packets are that one's, and so is what is said of them; where sources vary within a prefix, each of them is this host's.
fn what_was_not_encapsulated_here_is_the_hosts() {
    let untouched = passed(Reason::NotService).counting(0);
    let packet = CLIENT.ack().of_length(1_400);
    for bits in [0, 1, 0xff, 0xffff] {
        let world = World::with(&BackendSpec::ipip(1).varying(bits));
        world.send(&CLIENT.syn());
        let outer = world.send(&packet).outcome.output;
        let told = |source: Ipv4Addr, about: About, to: Ipv4Addr| {
            message(about, 0, &as_from(&outer, source)[14..214], ROUTER, to)
        };
        let base = HERE.to_bits() & !u32::from(bits);
        for (about, heard) in [
            (About::TooBig(1_400), About::TooBig(1_400 - outer_len())),
            (About::NoWay, About::NoWay),
        ] {
            let heard = complaint(&packet.clone().ttl(63), heard);
            let expected = answered(Reason::ErrorRelayed, heard).of_backend(1);
            for number in [0, 1, 0x80, 0x1234, 0xffff_u16] {
                let source = Ipv4Addr::from_bits(base | u32::from(number & bits));
                world.save_answers_for_leisure();
                world.send(&told(source, about, source)).expect(&expected);
                for beyond in [u32::from(bits) + 1, 1 << 16, 1 << 31] {
                    let other = Ipv4Addr::from_bits(source.to_bits() ^ beyond);
                    world.send(&told(other, about, other)).expect(&untouched);
                    world.send(&told(source, about, other)).expect(&untouched);
                }
            }
        }
    }
    // And nothing is, for a backend in another mode.
    let world = World::new();
    world.send(&CLIENT.syn());
    let nobody = Ipv4Addr::UNSPECIFIED;
    let protocol = match version() {
        IpVersion::V4 => 4,
        IpVersion::V6 => 41,
    };
    for to in [nobody, address_of(1)] {
        let outer = Packet::tcp((nobody, 0), (to, 0), 0).carrying(protocol, &packet.packet());
        for about in [About::TooBig(1_400), About::NoWay] {
            let told = message(about, 0, &outer.packet()[..200], ROUTER, nobody);
            world.send(&told).expect(&untouched);
        }
    }
}

#[test]
fn an_ipv6_router_is_heard_by_an_ipv4_client() {
    let world = World::with(&BackendSpec::ipip_in_ipv6(1));
    world.send(&CLIENT.syn());
    let packet = CLIENT.ack().of_length(1_400);
    let outer = world.send(&packet).outcome.output;
    for tags in 0..3 {
        let tagged =
            |packet: Packet| (0..tags).fold(packet, |packet, tag| packet.tagged(0x8100, 7 + tag));
        let mut told = None;
        in_version(IpVersion::V6, || {
            told = Some(tagged(from_within(&outer, About::TooBig(1_400), 200)));
        });
        let heard = complaint(&tagged(packet.clone().ttl(63)), About::TooBig(1_360));
        world
            .send(&told.expect("a message"))
            .expect(&answered(Reason::ErrorRelayed, heard).of_backend(1));
    }
}
