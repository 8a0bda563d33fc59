//! What IPv6 alone has: extension headers, fragments with a header of their own, addresses that are looked up by a fingerprint; and its bytes,
//! written down once.

use lab::packet::{
    BackendSpec, CLIENT, Client, Expect, Packet, VIP, VIP_PORT, World, answered, dropped,
    forwarded,
    frame::{Extension, checksum},
    icmp::{About, complaint},
    in_version,
    nat::{MODES, in_each_mode},
    passed,
    version::in_ipv6,
};
use lb_common::{
    backend::Serving,
    net::{Address, IpVersion},
    tcp::{ACK, SYN},
    verdict::Reason,
};

/// Hop-by-hop options.
const HOP_BY_HOP: u8 = 0;
/// Destination options.
const DESTINATION: u8 = 60;

fn in_v6(test: impl FnOnce()) {
    in_version(IpVersion::V6, test);
}

#[track_caller]
fn assert_opens(world: &World, client: u16, packet: impl Fn(Packet) -> Packet) {
    let packet = packet(Client(CLIENT.0, client).syn());
    let expected = forwarded(Reason::Opened, 1, BackendSpec::l2(1).l2_output(&packet));
    world.send(&packet).expect(&expected);
}

#[track_caller]
fn assert_passes(world: &World, reason: Reason, packet: impl Fn(Packet) -> Packet) {
    world
        .send(&packet(CLIENT.syn()))
        .expect(&passed(reason).counting(0));
}

#[test]
fn extension_headers_of_every_kind_and_length_are_stepped_over() {
    in_v6(|| {
        let world = World::new();
        for (client, len) in (1..).zip((8..=400).step_by(8)) {
            assert_opens(&world, client, |syn| {
                syn.extended(Extension::options(DESTINATION, len))
            });
        }
        assert_opens(&world, 1_001, |syn| {
            syn.extended(Extension::options(HOP_BY_HOP, 8))
        });
        assert_opens(&world, 1_002, |syn| syn.extended(Extension::routing(0)));
        // What asks for no fragmentation, but has the header (RFC 6946).
        assert_opens(&world, 1_003, |syn| syn.extended(Extension::fragment(0)));
        // Each kind once, in the order of RFC 8200, section 4.1, destination options twice.
        assert_opens(&world, 1_004, |syn| {
            syn.extended(Extension::options(HOP_BY_HOP, 16))
                .extended(Extension::options(DESTINATION, 8))
                .extended(Extension::routing(0))
                .extended(Extension::fragment(1))
                .extended(Extension::options(DESTINATION, 24))
                .tagged(0x8100, 7)
        });
    });
}

/// What a backend receives of a packet.
type Output = fn(&BackendSpec, &Packet) -> Vec<u8>;

/// Frames that are cut anywhere in what stands before TCP, or in TCP's header, are the host's; behind it they go as far as they go.
#[test]
fn a_truncated_chain_of_extension_headers_passes_or_leaves_as_far_as_it_goes() {
    let chains: [fn(Packet) -> Packet; 7] = [
        |packet| packet.extended(Extension::options(HOP_BY_HOP, 16)),
        |packet| packet.extended(Extension::options(DESTINATION, 64)),
        |packet| packet.extended(Extension::routing(0)),
        |packet| packet.extended(Extension::fragment(0)),
        |packet| packet.extended(Extension::fragment(1)),
        five,
        |packet| five(packet).tagged(0x8100, 7),
    ];
    in_v6(|| {
        let modes: [(BackendSpec, Output); 2] = [
            (BackendSpec::l2(1), BackendSpec::l2_output),
            (BackendSpec::ipip(1), BackendSpec::ipip_output),
        ];
        for (backend, output) in modes {
            let world = World::with(&backend);
            for chain in chains {
                let packet = chain(CLIENT.syn().tcp_options(&[1; 4]).payload(b"early"));
                assert_cut(&world, &packet, |reason| {
                    forwarded(reason, 1, output(&backend, &packet))
                });
            }
        }
        in_each_mode(|world, backend, flow| {
            for chain in chains {
                let packet = chain(flow.ack().payload(b"data"));
                assert_cut(world, &packet, |reason| {
                    flow.to_backend(backend, &packet, reason)
                });
                let answer = chain(flow.replies(ACK).payload(b"data"));
                assert_cut(world, &answer, |_| flow.replied(&answer));
            }
        });
    });
}

/// Each kind of extension header once, destination options twice.
fn five(packet: Packet) -> Packet {
    packet
        .extended(Extension::options(HOP_BY_HOP, 16))
        .extended(Extension::options(DESTINATION, 8))
        .extended(Extension::routing(0))
        .extended(Extension::fragment(0))
        .extended(Extension::options(DESTINATION, 24))
}

/// Asserts what comes of each truncation of a packet: `whole` is what comes of it uncut.
#[track_caller]
fn assert_cut(world: &World, packet: &Packet, whole: impl Fn(Reason) -> Expect) {
    for cut in packet.cuts() {
        if let Some(run) = world.send_cut(&cut) {
            run.expect(&whole(run.reason()).cut_by(cut.missing));
        }
    }
}

#[test]
fn more_or_longer_extension_headers_than_are_looked_through_are_malformed() {
    in_v6(|| {
        let world = World::new();
        assert_passes(&world, Reason::Malformed, |syn| {
            (0..6).fold(syn, |syn, _| {
                syn.extended(Extension::options(DESTINATION, 8))
            })
        });
        assert_passes(&world, Reason::Malformed, |syn| {
            syn.extended(Extension::options(DESTINATION, 480))
        });
        assert_passes(&world, Reason::Malformed, |syn| {
            syn.extended(Extension::options(HOP_BY_HOP, 2_048))
        });
    });
}

#[test]
fn what_has_not_come_to_its_last_destination_is_the_hosts() {
    in_v6(|| {
        let world = World::new();
        assert_passes(&world, Reason::NotService, |syn| {
            syn.extended(Extension::routing(1))
        });
    });
}

#[test]
fn protocols_other_than_tcp_are_the_hosts() {
    in_v6(|| {
        let world = World::new();
        world.vip(VIP, false);
        // A neighbour solicitation, an advertisement and a router's to the VIP: ICMPv6, bare and behind options.
        for kind in [135, 136, 134] {
            let message = [&[kind, 0, 0, 0][..], &[0; 20]].concat();
            assert_passes(&world, Reason::NotService, |syn| syn.carrying(58, &message));
            assert_passes(&world, Reason::NotService, |syn| {
                syn.carrying(58, &message)
                    .extended(Extension::options(HOP_BY_HOP, 8))
            });
        }
        // ESP, an authentication header, no next header.
        for protocol in [50, 51, 59] {
            assert_passes(&world, Reason::NotService, |syn| {
                syn.carrying(protocol, &[0; 40])
            });
        }
    });
}

#[test]
fn a_later_fragment_is_dropped_whatever_of_tcp_it_has() {
    in_v6(|| {
        let world = World::new();
        world.vip(VIP, false);
        for offset in [8, 0x2001, 0xfff8, 0xfff9] {
            let fragment = CLIENT.syn().extended(Extension::fragment(offset));
            world
                .send(&fragment)
                .expect(&dropped(Reason::Fragment).of_no_service());
            let behind = CLIENT
                .syn()
                .extended(Extension::options(HOP_BY_HOP, 8))
                .extended(Extension::fragment(offset));
            world
                .send(&behind)
                .expect(&dropped(Reason::Fragment).of_no_service());
        }
        // Of another protocol it is the host's.
        let udp = CLIENT
            .syn()
            .carrying(17, &[0; 24])
            .extended(Extension::fragment(8));
        world
            .send(&udp)
            .expect(&passed(Reason::NotService).counting(0));
    });
}

#[test]
fn a_fingerprint_alone_makes_no_service() {
    in_v6(|| {
        let world = World::new();
        world.vip(VIP, false);
        let syn = CLIENT.syn();
        let expected = forwarded(Reason::Opened, 1, BackendSpec::l2(1).l2_output(&syn));
        world.send(&syn).expect(&expected);
        // As if another VIP had the same fingerprint: what the directory finds is compared with what the service is.
        let service = world.maps.services.get(1);
        for other in [
            lb_common::service::Service {
                vip: Address::from(std::net::IpAddr::from(in_ipv6(CLIENT.0))),
                ..service
            },
            lb_common::service::Service {
                port: VIP_PORT + 1,
                ..service
            },
        ] {
            world.maps.services.set(1, &other);
            world.send(&syn).expect(&passed(Reason::NotService));
        }
        // A VIP's own entry is compared too, by its address alone.
        let fragment = CLIENT.syn().fragment(0x00b9);
        world
            .send(&fragment)
            .expect(&dropped(Reason::Fragment).of_no_service());
        let elsewhere = lb_common::service::Service {
            vip: Address::default(),
            ..service
        };
        world.maps.services.set(1, &elsewhere);
        world.send(&fragment).expect(&passed(Reason::NotService));
    });
}

#[test]
fn a_jumbogram_is_malformed() {
    in_v6(|| {
        let world = World::new();
        assert_passes(&world, Reason::Malformed, |syn| {
            syn.total_length(40)
                .extended(Extension::options(HOP_BY_HOP, 8))
        });
    });
}

/// A client finds the connection that an error is about by what it quotes, whatever stands before TCP's header; but for more of that than anybody sends.
#[test]
fn who_is_told_of_a_packet_with_extension_headers_is_told_its_ports() {
    let chains: [fn(Packet) -> Packet; 9] = [
        |packet| packet.extended(Extension::options(HOP_BY_HOP, 8)),
        |packet| packet.extended(Extension::options(DESTINATION, 24)),
        |packet| packet.extended(Extension::routing(0)),
        |packet| packet.extended(Extension::fragment(0)),
        five,
        |packet| packet.extended(Extension::options(DESTINATION, 72)),
        |packet| packet.extended(Extension::options(DESTINATION, 80)),
        |packet| packet.extended(Extension::options(DESTINATION, 400)),
        |packet| five(packet).tagged(0x8100, 0x2001).tagged(0x88a8, 7),
    ];
    in_v6(|| {
        let answered_to = |world: &World, packet: &Packet, reason: Reason, about: About| {
            let told = complaint(packet, about);
            world.save_answers_for_leisure();
            world
                .send(packet)
                .expect(&answered(reason, told).of_backend(1));
        };
        for backend in [BackendSpec::l2(1), BackendSpec::ipip(1)] {
            let world = World::with(&backend);
            for chain in chains {
                for packet in [CLIENT.syn(), CLIENT.ack().payload(b"odd")] {
                    let last = chain(packet).ttl(1);
                    answered_to(&world, &last, Reason::TtlExpired, About::Expired);
                }
            }
        }
        let world = World::with(&BackendSpec::ipip(1));
        for chain in chains {
            let long = chain(CLIENT.syn()).of_length(1_461);
            answered_to(&world, &long, Reason::TooBig, About::TooBig(1_460));
        }
        drop(world);
        for mode in MODES {
            let world = World::with_translating(&mode(1).mtu(1_400));
            let flow = world.open(CLIENT);
            for chain in chains {
                for packet in [flow.ack(), flow.replies(ACK)] {
                    let last = chain(packet).ttl(1);
                    answered_to(&world, &last, Reason::TtlExpired, About::Expired);
                }
                let long = chain(flow.ack()).of_length(1_401);
                answered_to(&world, &long, Reason::TooBig, About::TooBig(1_400));
            }
        }
    });
}

#[test]
fn the_ports_are_quoted_where_a_client_looks_for_them() {
    in_v6(|| {
        let world = World::new();
        let packet = five(CLIENT.syn()).ttl(1);
        let answer = world.send(&packet).outcome.output;
        // Behind Ethernet's header, the answer's own, ICMPv6's, and what the quoted packet has before TCP's.
        let at = 14 + 40 + 8 + packet.headers_len();
        assert_eq!(answer.len(), at + 8);
        let ports = [CLIENT.1.to_be_bytes(), VIP_PORT.to_be_bytes()].concat();
        assert_eq!(answer[at..at + 4], ports);
    });
}

/// The bytes that the other tests build, here written down once.
#[test]
fn an_outer_header_byte_by_byte() {
    in_v6(|| {
        let backend = BackendSpec::ipip(1);
        let world = World::with(&backend);
        let packet = CLIENT.syn().tos(0xb9).payload(b"12345678");
        let output = world.send(&packet).outcome.output;
        assert_eq!(output[..12], [2, 0, 0, 0, 0x0b, 1, 2, 0, 0, 0, 0x0a, 1]);
        assert_eq!(output[12..14], [0x86, 0xdd]);
        let outer = &output[14..54];
        assert_eq!(
            outer[0], 0x6b,
            "version, and the traffic class's first half"
        );
        assert_eq!(outer[1] >> 4, 0x9, "the other half, the inner ECN in it");
        let label =
            (u32::from(outer[1]) & 0xf) << 16 | u32::from(outer[2]) << 8 | u32::from(outer[3]);
        assert_ne!(label, 0);
        assert_eq!(outer[4..6], 68_u16.to_be_bytes(), "40 + 20 + 8");
        assert_eq!(outer[6..8], [41, 64]);
        assert_eq!(outer[8..24], in_ipv6([10, 255, 0, 1].into()).octets());
        assert_eq!(outer[24..40], in_ipv6([10, 0, 0, 1].into()).octets());
        let sent = packet.bytes();
        assert_eq!(output[54 + 7], sent[14 + 7] - 1, "the hop limit, one less");
        assert_eq!(output[54..54 + 7], sent[14..14 + 7]);
        assert_eq!(output[54 + 8..], sent[14 + 8..]);
    });
}

/// One flow has one label, so that routers and receivers keep its packets in order; different flows have different ones.
#[test]
fn the_outer_flow_label_is_the_flows() {
    in_v6(|| {
        let world = World::with(&BackendSpec::ipip(1));
        let label = |packet: &Packet| {
            let output = world.send(packet).outcome.output;
            (output[15] & 0xf, output[16], output[17])
        };
        let mut labels = std::collections::HashSet::new();
        for port in 1..=256 {
            let client = Client(CLIENT.0, port);
            let of_syn = label(&client.syn());
            assert_eq!(of_syn, label(&client.ack().payload(b"data")));
            labels.insert(of_syn);
        }
        assert!(labels.len() > 250, "{} labels of 256 flows", labels.len());
    });
}

#[test]
fn an_ipv4_packet_reaches_a_backend_in_ipv6() {
    let backend = BackendSpec::ipip_in_ipv6(1);
    let world = World::with(&backend);
    for packet in [
        CLIENT.syn(),
        CLIENT.ack(),
        CLIENT.ack().tos(0xb9).payload(b"12345678"),
        CLIENT.ack().options(&[1; 40]),
        CLIENT.ack().tagged(0x8100, 7),
        CLIENT.ack().of_length(1_460),
    ] {
        let run = world.send(&packet);
        let reason = run.reason();
        run.expect(&forwarded(reason, 1, backend.ipip_output(&packet)));
    }
    let output = world.send(&CLIENT.ack()).outcome.output;
    assert_eq!(output[12..15], [0x86, 0xdd, 0x60]);
    assert_eq!(output[18..22], [0, 40, 4, 64], "40 bytes of IPv4");
    assert_eq!(output[54], 0x45);
    assert_eq!(checksum(&output[54..74]), 0);
    let packet = CLIENT.ack().of_length(1_461);
    let told = complaint(&packet, About::TooBig(1_460));
    world
        .send(&packet)
        .expect(&answered(Reason::TooBig, told).of_backend(1));
}

#[test]
fn no_ipv6_packet_is_put_into_ipv4() {
    in_v6(|| {
        // The daemon refuses such a service.
        let world = World::with(&BackendSpec::l2(1).forwarding_code(2));
        world
            .send(&CLIENT.sends(ACK))
            .expect(&dropped(Reason::UnknownMode).of_backend(1));
    });
}

/// The bytes that the other tests build, here written down once.
#[test]
fn a_rst_byte_by_byte() {
    in_v6(|| {
        let world = World::new();
        world.send(&CLIENT.syn());
        world.send(&CLIENT.ack());
        world.backend(&BackendSpec::l2(1).serving(Serving::None));
        let packet = CLIENT.ack().ack(0x0102_0304).payload(b"data").tos(0xb8);
        let (vip, client) = (in_ipv6(VIP).octets(), in_ipv6(CLIENT.0).octets());
        let mut tcp = vec![
            0x01, 0xbb, 0x9c, 0x40, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 0x04, 0, 0, 0, 0, 0, 0,
        ];
        let pseudo = [&vip[..], &client, &[0, 0, 0, 20, 0, 0, 0, 6], &tcp].concat();
        tcp[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        let expected = [
            &[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd][..],
            &[0x60, 0, 0, 0, 0, 20, 6, 64],
            &vip,
            &client,
            &tcp,
        ]
        .concat();
        world
            .send(&packet)
            .expect(&answered(Reason::BackendDead, expected).of_backend(1));
    });
}

#[test]
fn flows_of_both_versions_live_side_by_side() {
    let mut world = World::new();
    in_v6(|| world.service(2, VIP, VIP_PORT, &[2]));
    world.send(&CLIENT.syn());
    world.send(&CLIENT.ack());
    assert_eq!(world.values().len(), 1);
    in_v6(|| {
        let syn = Packet::tcp((CLIENT.0, CLIENT.1), (VIP, VIP_PORT), SYN);
        let output = BackendSpec::l2(2).l2_output(&syn);
        world
            .send(&syn)
            .expect(&forwarded(Reason::Opened, 2, output).of_service(2));
        assert_eq!(world.values().len(), 1);
    });
    let ack = CLIENT.ack();
    let output = BackendSpec::l2(1).l2_output(&ack);
    world
        .send(&ack)
        .expect(&forwarded(Reason::Established, 1, output));
}
