//! What a backend receives, to the byte.

use std::collections::BTreeSet;

use lab::packet::{
    BackendSpec, CLIENT, Client, Packet, World, answered, dropped, forwarded,
    frame::checksum,
    icmp::{About, complaint},
    version,
};
use lb_common::{
    backend::{Forwarding, Serving},
    bench::CROWD_LEN,
    net::IpVersion,
    tcp::ACK,
    verdict::Reason,
};

lab::in_both_versions![
    l2_rewrites_the_frames_head_and_the_ttl_and_nothing_else,
    ipip_puts_an_outer_header_before_the_packet,
    ipip_varies_its_outer_source_by_the_flow_and_within_the_prefix,
    a_ttl_of_0_or_1_ends_here,
    a_backend_behind_another_interface_is_reached_by_redirection,
    the_state_says_which_of_two_next_hops_is_in_force,
    an_encapsulated_packet_may_be_as_long_as_the_mtu_and_no_longer,
    a_packet_that_goes_back_as_it_is_is_never_too_big,
    a_packet_that_leaves_by_another_interface_may_be_as_long_as_that_allows,
    a_frame_of_several_buffers_is_forwarded_whole,
    a_new_flow_goes_to_no_backend_without_a_neighbour,
    a_flow_whose_backend_has_no_neighbour_is_unresolved_and_keeps_its_backend,
    a_backend_of_no_known_mode_gets_nothing,
    a_frame_without_room_for_another_header_is_dropped,
];

/// Segments of all shapes that are forwarded.
fn shapes() -> Vec<Packet> {
    let plain = CLIENT.syn();
    let mut every_tos: Vec<Packet> = (0..=255).map(|tos| plain.clone().tos(tos)).collect();
    every_tos.extend([
        plain.clone().fragment(0),
        plain.clone().fragment(0x2000),
        plain.clone().payload(b"data of odd length."),
        plain.clone().tcp_options(&[1; 40]),
        plain.clone().options(&[1; 4]),
        plain.clone().options(&[1; 40]).tcp_options(&[1; 12]),
        plain.clone().padded(6),
        plain.clone().tagged(0x8100, 0x2001),
        plain.clone().tagged(0x88a8, 0x2001).padded(2),
        plain.clone().tagged(0x8100, 0x0fff).tagged(0x88a8, 0xffff),
        plain
            .clone()
            .tagged(0x8100, 0x0fff)
            .tagged(0x8100, 0x0001)
            .options(&[1; 8])
            .tos(0xb9)
            .payload(&[0x5a; 1_300]),
        plain.clone().payload(&[0; 1_400]),
        plain.clone().ttl(2),
        plain.clone().ttl(255),
    ]);
    every_tos
}

fn l2_rewrites_the_frames_head_and_the_ttl_and_nothing_else() {
    let world = World::new();
    let backend = BackendSpec::l2(1);
    for packet in shapes() {
        let run = world.send(&packet);
        let reason = run.reason();
        run.expect(&forwarded(reason, 1, backend.l2_output(&packet)));
    }
}

fn ipip_puts_an_outer_header_before_the_packet() {
    let backend = BackendSpec::ipip(1);
    let world = World::with(&backend);
    for packet in shapes() {
        let run = world.send(&packet);
        let reason = run.reason();
        run.expect(&forwarded(reason, 1, backend.ipip_output(&packet)));
    }
}

fn ipip_varies_its_outer_source_by_the_flow_and_within_the_prefix() {
    for bits in [1, 0xff, 0x1ff, 0xffff] {
        for backend in backends_in_ipip() {
            let backend = backend.varying(bits);
            let world = World::with(&backend);
            let mut outputs = BTreeSet::new();
            for packet in shapes() {
                let run = world.send(&packet);
                let reason = run.reason();
                run.expect(&forwarded(reason, 1, backend.ipip_output(&packet)));
            }
            for port in 1..=64 {
                let syn = Client(CLIENT.0, port).syn();
                let run = world.send(&syn);
                let output = backend.ipip_output(&syn);
                let source = if output[12..14] == [0x08, 0x00] {
                    26..30
                } else {
                    22..38
                };
                outputs.insert(output[source].to_vec());
                run.expect(&forwarded(Reason::Opened, 1, output));
            }
            let least = usize::from(bits).min(31) + 1;
            assert!(outputs.len() >= least, "{bits:#x}: {}", outputs.len());
        }
    }
}

/// One for each version of IP that its outer header may have.
fn backends_in_ipip() -> Vec<BackendSpec> {
    match version() {
        IpVersion::V4 => vec![BackendSpec::ipip(1), BackendSpec::ipip_in_ipv6(1)],
        IpVersion::V6 => vec![BackendSpec::ipip(1)],
    }
}

/// The bytes that the other tests build, here written down once.
#[test]
fn an_ipip_header_byte_by_byte() {
    let backend = BackendSpec::ipip(1);
    let world = World::with(&backend);
    let packet = CLIENT.syn().tos(0xb9).payload(b"12345678");
    let output = world.send(&packet).outcome.output;
    let outer = &output[14..34];
    assert_eq!(outer[0], 0x45);
    assert_eq!(
        outer[1], 0xb9,
        "type of service and ECN of the inner header"
    );
    assert_eq!(outer[2..4], 68_u16.to_be_bytes(), "20 + 20 + 20 + 8");
    assert_eq!(outer[4..6], [0, 0]);
    assert_eq!(outer[6..8], [0x40, 0], "don't fragment");
    assert_eq!(outer[8..10], [64, 4]);
    assert_eq!(checksum(outer), 0);
    assert_eq!(outer[12..16], [10, 255, 0, 1]);
    assert_eq!(outer[16..20], [10, 0, 0, 1]);
    assert_eq!(output[..12], [2, 0, 0, 0, 0x0b, 1, 2, 0, 0, 0, 0x0a, 1]);
    assert_eq!(output[34 + 8], 63, "the inner TTL, one less");
    assert_eq!(checksum(&output[34..54]), 0);
    assert_eq!(output.len(), packet.bytes().len() + 20);
}

#[test]
fn every_ttl_above_1_is_lowered_with_a_right_checksum() {
    for backend in [BackendSpec::l2(1), BackendSpec::ipip(1)] {
        let world = World::with(&backend);
        let at = if world.maps.state(1).forwarding() == Some(Forwarding::InIpv4) {
            34
        } else {
            14
        };
        for ttl in 2..=255 {
            for id in [0, 0x7f43, 0xffff] {
                let mut packet = CLIENT.syn().ttl(ttl);
                packet.id = id;
                let output = world.send(&packet).outcome.output;
                assert_eq!(output[at + 8], ttl - 1);
                assert_eq!(checksum(&output[at..at + 20]), 0, "TTL {ttl}, id {id:#x}");
            }
        }
    }
}

fn a_ttl_of_0_or_1_ends_here() {
    for backend in [BackendSpec::l2(1), BackendSpec::ipip(1)] {
        let world = World::with(&backend);
        for ttl in [0, 1] {
            let packet = CLIENT.syn().ttl(ttl);
            let told = complaint(&packet, About::Expired);
            world
                .send(&packet)
                .expect(&answered(Reason::TtlExpired, told).of_backend(1));
        }
    }
}

fn a_backend_behind_another_interface_is_reached_by_redirection() {
    for (backend, is_ipip) in [(BackendSpec::l2(1), false), (BackendSpec::ipip(1), true)] {
        let backend = backend.elsewhere();
        let world = World::with(&backend);
        let reasons = [Reason::Opened, Reason::Established, Reason::Established];
        for (packet, reason) in [CLIENT.syn(), CLIENT.ack(), CLIENT.ack()]
            .iter()
            .zip(reasons)
        {
            let output = if is_ipip {
                backend.ipip_output(packet)
            } else {
                backend.l2_output(packet)
            };
            world
                .send(packet)
                .expect(&forwarded(reason, 1, output).redirected());
        }
    }
}

fn the_state_says_which_of_two_next_hops_is_in_force() {
    let world = World::new();
    let (first, second) = (
        BackendSpec::l2(1),
        BackendSpec::ipip(1).mtu(9_000).elsewhere(),
    );
    let syn = CLIENT.syn();
    world
        .send(&syn)
        .expect(&forwarded(Reason::Opened, 1, first.l2_output(&syn)));
    world.second_hop(&second);
    world
        .send(&syn)
        .expect(&forwarded(Reason::Reopened, 1, second.ipip_output(&syn)).redirected());
}

fn an_encapsulated_packet_may_be_as_long_as_the_mtu_and_no_longer() {
    let backend = BackendSpec::ipip(1);
    let world = World::with(&backend);
    let outer = match version() {
        IpVersion::V4 => 20,
        IpVersion::V6 => 40,
    };
    for packet in [CLIENT.syn(), CLIENT.syn().tagged(0x8100, 1)] {
        let packet = packet.of_length(1_500 - outer);
        let run = world.send(&packet);
        let reason = run.reason();
        run.expect(&forwarded(reason, 1, backend.ipip_output(&packet)));
        let packet = packet.of_length(1_501 - outer);
        let told = complaint(&packet, About::TooBig(1_500 - outer as u32));
        world
            .send(&packet)
            .expect(&answered(Reason::TooBig, told).of_backend(1));
    }
}

fn a_packet_that_goes_back_as_it_is_is_never_too_big() {
    let world = World::with(&BackendSpec::l2(1).mtu(60));
    let packet = CLIENT.syn().payload(&[0; 1_000]);
    world.send(&packet).expect(&forwarded(
        Reason::Opened,
        1,
        BackendSpec::l2(1).l2_output(&packet),
    ));
}

/// The kernel would drop a longer one without a word.
fn a_packet_that_leaves_by_another_interface_may_be_as_long_as_that_allows() {
    let backend = BackendSpec::l2(1).mtu(1_400).elsewhere();
    let world = World::with(&backend);
    for packet in [CLIENT.syn(), CLIENT.syn().tagged(0x8100, 1)] {
        let packet = packet.of_length(1_400);
        let run = world.send(&packet);
        let reason = run.reason();
        run.expect(&forwarded(reason, 1, backend.l2_output(&packet)).redirected());
        let packet = packet.of_length(1_401);
        let told = complaint(&packet, About::TooBig(1_400));
        world
            .send(&packet)
            .expect(&answered(Reason::TooBig, told).of_backend(1));
    }
}

fn a_frame_of_several_buffers_is_forwarded_whole() {
    let packet = CLIENT.syn().payload(&vec![0x3c; 8_500]);
    let l2 = BackendSpec::l2(1);
    World::with(&l2)
        .send(&packet)
        .expect(&forwarded(Reason::Opened, 1, l2.l2_output(&packet)));
    let ipip = BackendSpec::ipip(1).mtu(9_000);
    World::with(&ipip).send(&packet).expect(&forwarded(
        Reason::Opened,
        1,
        ipip.ipip_output(&packet),
    ));
}

fn a_new_flow_goes_to_no_backend_without_a_neighbour() {
    let world = World::with(&BackendSpec::l2(1).unresolved());
    world
        .send(&CLIENT.syn())
        .expect(&dropped(Reason::Unresolved));
    assert_eq!(world.values().len(), 0);
}

fn a_flow_whose_backend_has_no_neighbour_is_unresolved_and_keeps_its_backend() {
    let world = World::new();
    world.send(&CLIENT.syn());
    world.send(&CLIENT.ack());
    world.backend(&BackendSpec::l2(1).unresolved());
    let data = CLIENT.ack().payload(b"data");
    let unresolved = dropped(Reason::Unresolved).of_backend(1);
    world.send(&data).expect(&unresolved);
    // The SYN of a flow that is not answered yet, too.
    let other = Client(CLIENT.0, 2);
    world.backend(&BackendSpec::l2(1));
    world.send(&other.syn());
    world.backend(&BackendSpec::l2(1).unresolved());
    world.send(&other.syn()).expect(&unresolved);

    world.backend(&BackendSpec::l2(1).serving(Serving::ExistingOnly));
    world.send(&data).expect(&forwarded(
        Reason::Established,
        1,
        BackendSpec::l2(1).l2_output(&data),
    ));
}

fn a_backend_of_no_known_mode_gets_nothing() {
    for code in [0, 4, 7] {
        let world = World::with(&BackendSpec::l2(1).forwarding_code(code));
        world
            .send(&CLIENT.sends(ACK))
            .expect(&dropped(Reason::UnknownMode).of_backend(1));
    }
}

fn a_frame_without_room_for_another_header_is_dropped() {
    let packet = CLIENT.syn().of_length(CROWD_LEN - 14);
    World::with(&BackendSpec::ipip(1))
        .send_without_headroom(&packet)
        .expect(&dropped(Reason::NoHeadroom).of_backend(1));
    // And it was the room that was missing, nothing else.
    let l2 = BackendSpec::l2(1);
    World::with(&l2)
        .send_without_headroom(&packet)
        .expect(&forwarded(Reason::Opened, 1, l2.l2_output(&packet)));
}
