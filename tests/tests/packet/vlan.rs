//! VLANs: whatever tags a packet comes with, it leaves with those of the way to its backend.

use lab::packet::{
    BackendSpec, CLIENT, Packet, World, answered, dropped, forwarded,
    icmp::{About, complaint},
    reset_output, version,
};
use lb_common::{
    backend::Serving, bench::CROWD_LEN, headers::VLAN_LEN, net::IpVersion, verdict::Reason,
};

lab::in_both_versions![
    a_packet_leaves_with_the_tags_of_its_backends_way_whatever_it_came_with,
    a_flow_is_established_whatever_tags_its_packets_lose_or_get,
    a_truncated_frame_passes_or_leaves_as_far_as_it_goes,
    a_frame_of_several_buffers_gets_and_loses_tags_too,
    a_packet_that_gets_tags_may_be_as_long_as_the_mtu_and_no_longer,
    a_frame_without_room_for_more_tags_is_dropped,
    tags_and_next_hop_change_together,
    a_backend_by_a_vlan_of_another_interface_is_reached_by_redirection,
    an_interface_that_takes_no_frames_is_a_reason_of_its_own,
    a_reset_keeps_the_tags_that_its_cause_came_with,
];

/// Tags as [`Packet::within`] has them, the outermost first.
type Tags = &'static [(u16, u16)];

/// Ways that packets come, priorities among them.
const CAME: [Tags; 5] = [
    &[],
    &[(0x8100, 0x0064)],
    &[(0x8100, 0xe000)],
    &[(0x88a8, 0x3064), (0x8100, 0x50c8)],
    &[(0x8100, 0xffff), (0x8100, 0x0001)],
];

/// Ways that they leave: as they came, and others.
const LEAVE: [Tags; 6] = [
    &[],
    &[(0x8100, 0x0064)],
    &[(0x88a8, 0x0fff)],
    &[(0x88a8, 0x0064), (0x8100, 0x00c8)],
    &[(0x8100, 0x0001), (0x8100, 0x0fff)],
    &[(0x88a8, 0x0800), (0x88a8, 0x0001)],
];

/// What a backend receives of a packet.
type Output = fn(&BackendSpec, &Packet) -> Vec<u8>;

/// Both modes, with what a backend of each receives.
fn modes() -> [(BackendSpec, Output); 2] {
    [
        (BackendSpec::l2(1), BackendSpec::l2_output),
        (BackendSpec::ipip(1), BackendSpec::ipip_output),
    ]
}

fn a_packet_leaves_with_the_tags_of_its_backends_way_whatever_it_came_with() {
    for (backend, output) in modes() {
        for leave in LEAVE {
            let backend = backend.by_vlans(leave);
            let world = World::with(&backend);
            for came in CAME {
                let syn = CLIENT.syn().within(came);
                let ack = CLIENT.ack().within(came);
                for packet in [
                    syn.clone(),
                    ack.clone(),
                    ack.clone().payload(b"data of odd length."),
                    ack.clone().options(&[1; 40]).tos(0xb9),
                    ack.clone().padded(7).tcp_options(&[1; 12]),
                    ack.clone().payload(&[0x5a; 1_400]).ttl(2),
                    syn.clone().tcp_options(&[1; 40]).ttl(255),
                ] {
                    let run = world.send(&packet);
                    let reason = run.reason();
                    run.expect(&forwarded(reason, 1, output(&backend, &packet)));
                }
                for expired in [syn.ttl(1), ack.ttl(0)] {
                    let told = complaint(&expired, About::Expired);
                    world
                        .send(&expired)
                        .expect(&answered(Reason::TtlExpired, told).of_backend(1));
                }
            }
        }
    }
}

/// The short way and the long one are told apart by nothing but the bytes: both count an established flow as such.
fn a_flow_is_established_whatever_tags_its_packets_lose_or_get() {
    for (backend, output) in modes() {
        for leave in LEAVE {
            let backend = backend.by_vlans(leave);
            let world = World::with(&backend);
            world.send(&CLIENT.syn());
            for came in CAME {
                let data = CLIENT.ack().payload(b"data").within(came);
                world.send(&data).expect(&forwarded(
                    Reason::Established,
                    1,
                    output(&backend, &data),
                ));
            }
        }
    }
}

/// The bytes that the other tests build, here written down once: a frame of one VLAN leaves by two others.
#[test]
fn a_second_tag_byte_by_byte() {
    let backend = BackendSpec::l2(1).by_vlans(&[(0x88a8, 0x123), (0x8100, 0x456)]);
    let world = World::with(&backend);
    let packet = CLIENT.syn().tagged(0x8100, 0xb064);
    let output = world.send(&packet).outcome.output;
    assert_eq!(output[..12], [2, 0, 0, 0, 0x0b, 1, 2, 0, 0, 0, 0x0a, 1]);
    // The first tag has the priority of the one that was there, the second none.
    assert_eq!(output[12..16], [0x88, 0xa8, 0xb1, 0x23]);
    assert_eq!(output[16..20], [0x81, 0x00, 0x04, 0x56]);
    assert_eq!(output[20..24], [0x08, 0x00, 0x45, 0x00]);
    assert_eq!(output.len(), packet.bytes().len() + VLAN_LEN);
    drop(world);

    let untagged = BackendSpec::ipip(1);
    let world = World::with(&untagged);
    let output = world.send(&packet).outcome.output;
    assert_eq!(output[12..16], [0x08, 0x00, 0x45, 0x00]);
    assert_eq!(output[23], 4, "IPv4 in IPv4");
    assert_eq!(output[34..36], [0x45, 0x00]);
    assert_eq!(output.len(), packet.bytes().len() + 20 - VLAN_LEN);
}

/// What is cut off a frame's end behind its headers is missing at the end of what leaves, and nothing else is.
fn a_truncated_frame_passes_or_leaves_as_far_as_it_goes() {
    for (backend, output) in modes() {
        for leave in LEAVE {
            let backend = backend.by_vlans(leave);
            let world = World::with(&backend);
            for came in CAME {
                let packet = CLIENT.syn().options(&[1; 8]).payload(b"early").within(came);
                let sent = output(&backend, &packet);
                for cut in packet.cuts() {
                    if let Some(run) = world.send_cut(&cut) {
                        let sent = forwarded(run.reason(), 1, sent.clone());
                        run.expect(&sent.cut_by(cut.missing));
                    }
                }
            }
        }
    }
}

fn a_frame_of_several_buffers_gets_and_loses_tags_too() {
    for (backend, output) in modes() {
        for leave in LEAVE {
            let backend = backend.by_vlans(leave).mtu(9_000);
            let world = World::with(&backend);
            for came in CAME {
                let packet = CLIENT.syn().payload(&vec![0x3c; 8_500]).within(came);
                let run = world.send(&packet);
                let reason = run.reason();
                run.expect(&forwarded(reason, 1, output(&backend, &packet)));
            }
        }
    }
}

fn a_packet_that_gets_tags_may_be_as_long_as_the_mtu_and_no_longer() {
    let (fits, too_big) = (CLIENT.syn().of_length(500), CLIENT.syn().of_length(501));
    for leave in LEAVE {
        let backend = BackendSpec::l2(1).by_vlans(leave).mtu(500);
        let world = World::with(&backend);
        for came in CAME {
            let packet = fits.clone().within(came);
            let run = world.send(&packet);
            let reason = run.reason();
            run.expect(&forwarded(reason, 1, backend.l2_output(&packet)));

            let packet = too_big.clone().within(came);
            let run = world.send(&packet);
            if leave.len() > came.len() {
                // In IPv6 no less than 1280 is ever told.
                let mtu = match version() {
                    IpVersion::V4 => 500,
                    IpVersion::V6 => 1_280,
                };
                let told = complaint(&packet, About::TooBig(mtu));
                run.expect(&answered(Reason::TooBig, told).of_backend(1));
            } else {
                run.expect(&forwarded(Reason::Reopened, 1, backend.l2_output(&packet)));
            }
        }
    }
}

fn a_frame_without_room_for_more_tags_is_dropped() {
    for leave in LEAVE {
        let backend = BackendSpec::l2(1).by_vlans(leave);
        let world = World::with(&backend);
        for came in CAME {
            let head = 14 + came.len() * VLAN_LEN;
            let packet = CLIENT.syn().of_length(CROWD_LEN - head).within(came);
            let run = world.send_without_headroom(&packet);
            if leave.len() > came.len() {
                run.expect(&dropped(Reason::NoHeadroom).of_backend(1));
            } else {
                let reason = run.reason();
                run.expect(&forwarded(reason, 1, backend.l2_output(&packet)));
            }
        }
    }
}

fn tags_and_next_hop_change_together() {
    let first = BackendSpec::l2(1);
    let second = BackendSpec::ipip(1)
        .by_vlans(&[(0x88a8, 7), (0x8100, 8)])
        .elsewhere();
    let world = World::with(&first);
    world.send(&CLIENT.syn());
    let data = CLIENT.ack().payload(b"data");
    world
        .send(&data)
        .expect(&forwarded(Reason::Established, 1, first.l2_output(&data)));
    world.second_hop(&second);
    world
        .send(&data)
        .expect(&forwarded(Reason::Established, 1, second.ipip_output(&data)).redirected());
    world.backend(&first);
    world
        .send(&data)
        .expect(&forwarded(Reason::Established, 1, first.l2_output(&data)));
}

fn a_backend_by_a_vlan_of_another_interface_is_reached_by_redirection() {
    for (backend, output) in modes() {
        for leave in LEAVE {
            let backend = backend.by_vlans(leave).elsewhere();
            let world = World::with(&backend);
            for came in CAME {
                for packet in [CLIENT.syn(), CLIENT.ack(), CLIENT.ack()] {
                    let packet = packet.within(came);
                    let run = world.send(&packet);
                    let reason = run.reason();
                    let left = forwarded(reason, 1, output(&backend, &packet));
                    run.expect(&left.redirected());
                }
            }
        }
    }
}

fn an_interface_that_takes_no_frames_is_a_reason_of_its_own() {
    for (backend, _) in modes() {
        for leave in [LEAVE[0], LEAVE[1]] {
            let world = World::with(&backend.by_vlans(leave));
            world.send(&CLIENT.syn());
            world.send(&CLIENT.ack());
            world.backend(&backend.by_vlans(leave).nowhere());
            for came in CAME {
                for packet in [CLIENT.syn(), CLIENT.ack(), CLIENT.ack().ttl(1)] {
                    world
                        .send(&packet.within(came))
                        .expect(&dropped(Reason::NoEgress).of_backend(1));
                }
            }
        }
    }
}

/// A RST goes to the client, by the way that its packet came.
fn a_reset_keeps_the_tags_that_its_cause_came_with() {
    for leave in LEAVE {
        let backend = BackendSpec::l2(1).by_vlans(leave);
        let world = World::with(&backend);
        world.send(&CLIENT.syn());
        world.send(&CLIENT.ack());
        world.backend(&backend.serving(Serving::None));
        for came in CAME {
            world.save_resets(1_000);
            let data = CLIENT.ack().payload(b"data").within(came);
            world
                .send(&data)
                .expect(&answered(Reason::BackendDead, reset_output(&data)).of_backend(1));
        }
    }
}
