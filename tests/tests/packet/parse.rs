//! What is a service's packet, and what is the host's.

use std::net::Ipv4Addr;

use lab::packet::{
    BackendSpec, CLIENT, Client, Packet, Transport, VIP, VIP_PORT, World, dropped,
    entries::backend, forwarded, passed, version,
};
use lb_common::{
    backend::Serving,
    flow::word::{State, Word, epoch_of},
    net::IpVersion,
    tcp::{ACK, FIN, RST, SYN},
    verdict::{Reason, Verdict},
    vip::VipEntry,
};

lab::in_both_versions![
    a_syn_for_the_vip_opens_a_flow,
    udp_for_the_vips_port_is_the_hosts,
    another_port_of_the_vip_is_the_hosts,
    port_0_of_the_vip_is_no_service_though_the_directory_has_an_entry_of_it,
    another_address_is_the_hosts,
    a_packet_from_the_vip_is_the_hosts,
    each_service_has_its_own_port_table_and_flows,
    a_full_directory_finds_every_service,
    a_vlan_tag_is_stepped_over,
    two_vlan_tags_are_stepped_over,
    three_vlan_tags_are_the_hosts,
    an_ip_version_other_than_the_frames_is_malformed,
    a_tcp_data_offset_below_20_is_malformed,
    a_tcp_data_offset_beyond_the_packet_is_malformed,
    padding_is_no_part_of_the_packet,
    a_total_length_shorter_than_the_headers_is_malformed,
    a_total_length_beyond_the_frame_is_counted_and_forwarded_as_it_is,
    a_first_fragment_has_ports_and_is_steered,
    all_that_may_stand_before_a_segment_is_stepped_over_at_once,
    a_later_tcp_fragment_for_a_vip_that_the_host_does_not_own_is_dropped,
    a_later_tcp_fragment_for_a_vip_that_the_host_owns_is_the_hosts,
    a_later_tcp_fragment_for_another_address_is_the_hosts,
    a_later_udp_fragment_for_a_vip_is_the_hosts,
    a_syn_with_ack_fin_or_rst_is_dropped_and_leaves_no_entry,
    the_flags_that_say_nothing_of_a_flows_life_change_nothing,
    a_client_whose_port_is_0_is_served_like_any,
    what_answers_a_segment_from_the_vip_to_itself_is_answered_no_more,
    every_truncation_of_every_fixture_passes_unchanged_or_goes_by_whole_headers,
    a_service_that_the_directory_names_and_that_is_beyond_the_map_is_missing,
];

const BACKEND: fn() -> BackendSpec = || BackendSpec::l2(1);

fn a_syn_for_the_vip_opens_a_flow() {
    let world = World::new();
    let syn = CLIENT.syn();
    let expected = BACKEND().l2_output(&syn);
    world
        .send(&syn)
        .expect(&forwarded(Reason::Opened, 1, expected));
}

#[test]
fn an_arp_request_for_the_vip_is_the_hosts() {
    let world = World::new();
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 2, 0x08, 0x06]);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame.extend(CLIENT.0.octets());
    frame.extend([0; 6]);
    frame.extend(VIP.octets());
    frame.extend([0; 18]);
    world.send_bytes(&frame, 0).expect(&passed(Reason::NotIp));
}

fn udp_for_the_vips_port_is_the_hosts() {
    let world = World::new();
    let mut udp = CLIENT.1.to_be_bytes().to_vec();
    udp.extend(VIP_PORT.to_be_bytes());
    udp.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    let packet = CLIENT.syn().carrying(17, &udp);
    world
        .send(&packet)
        .expect(&passed(Reason::NotService).counting(0));
}

#[test]
fn an_icmp_echo_request_for_the_vip_is_the_hosts() {
    let world = World::new();
    let packet = CLIENT.syn().carrying(1, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    world
        .send(&packet)
        .expect(&passed(Reason::NotService).counting(0));
}

fn another_port_of_the_vip_is_the_hosts() {
    let world = World::new();
    let packet = Packet::tcp((CLIENT.0, CLIENT.1), (VIP, VIP_PORT + 1), SYN);
    world.send(&packet).expect(&passed(Reason::NotService));
}

fn port_0_of_the_vip_is_no_service_though_the_directory_has_an_entry_of_it() {
    let world = World::new();
    world.vip(VIP, false);
    let packet = Packet::tcp((CLIENT.0, CLIENT.1), (VIP, 0), SYN);
    world.send(&packet).expect(&passed(Reason::NotService));
}

fn another_address_is_the_hosts() {
    let world = World::new();
    let packet = Packet::tcp(
        (CLIENT.0, CLIENT.1),
        (Ipv4Addr::new(192, 0, 2, 2), VIP_PORT),
        ACK,
    );
    world.send(&packet).expect(&passed(Reason::NotService));
}

fn a_packet_from_the_vip_is_the_hosts() {
    let world = World::new();
    let packet = Packet::tcp((VIP, VIP_PORT), (CLIENT.0, CLIENT.1), SYN | ACK);
    world.send(&packet).expect(&passed(Reason::NotService));
}

fn each_service_has_its_own_port_table_and_flows() {
    let mut world = World::new();
    world.service(2, VIP, 80, &[2]);
    let syn = Packet::tcp((CLIENT.0, CLIENT.1), (VIP, 80), SYN);
    let expected = forwarded(Reason::Opened, 2, BackendSpec::l2(2).l2_output(&syn)).of_service(2);
    world.send(&syn).expect(&expected);
    let syn = CLIENT.syn();
    world
        .send(&syn)
        .expect(&forwarded(Reason::Opened, 1, BACKEND().l2_output(&syn)));
}

fn a_full_directory_finds_every_service() {
    let mut world = World::new();
    for id in 2..8 {
        world.service(id, VIP, 8_000 + id, &[1]);
        world.vip(Ipv4Addr::new(192, 0, 2, 10 + id as u8), false);
    }
    for id in 2..8 {
        let syn = Packet::tcp((CLIENT.0, CLIENT.1), (VIP, 8_000 + id), SYN);
        let expected = forwarded(Reason::Opened, 1, BACKEND().l2_output(&syn)).of_service(id);
        world.send(&syn).expect(&expected);
    }
}

fn a_vlan_tag_is_stepped_over() {
    let world = World::new();
    let syn = CLIENT.syn().tagged(0x8100, 0x6064);
    world
        .send(&syn)
        .expect(&forwarded(Reason::Opened, 1, BACKEND().l2_output(&syn)));
}

fn two_vlan_tags_are_stepped_over() {
    let world = World::new();
    for outer in [0x88a8, 0x8100] {
        let client = Client(CLIENT.0, outer);
        let syn = client.syn().tagged(0x8100, 0x0064).tagged(outer, 0xe00a);
        world
            .send(&syn)
            .expect(&forwarded(Reason::Opened, 1, BACKEND().l2_output(&syn)));
    }
}

fn three_vlan_tags_are_the_hosts() {
    let world = World::new();
    let syn = CLIENT
        .syn()
        .tagged(0x8100, 1)
        .tagged(0x8100, 2)
        .tagged(0x8100, 3);
    world.send(&syn).expect(&passed(Reason::NotIp).counting(0));
}

#[test]
fn ipv4_options_of_every_length_are_stepped_over() {
    let world = World::new();
    for words in 1..=10_u16 {
        let options = vec![1; usize::from(words) * 4];
        let syn = Client(CLIENT.0, words).syn().options(&options);
        world
            .send(&syn)
            .expect(&forwarded(Reason::Opened, 1, BACKEND().l2_output(&syn)));
    }
}

#[test]
fn an_ipv4_header_length_below_20_is_malformed() {
    let world = World::new();
    let mut frame = CLIENT.syn().bytes();
    for words in 0..5 {
        frame[14] = 0x40 | words;
        world
            .send_bytes(&frame, 0)
            .expect(&passed(Reason::Malformed));
    }
}

fn an_ip_version_other_than_the_frames_is_malformed() {
    let world = World::new();
    let mut frame = CLIENT.syn().bytes();
    let own = frame[14] >> 4;
    for version in (0..16).filter(|version| *version != own) {
        frame[14] = version << 4 | 5;
        world
            .send_bytes(&frame, 0)
            .expect(&passed(Reason::Malformed));
    }
}

/// Where the length of the TCP header is in a frame.
fn data_offset(packet: &Packet) -> usize {
    packet.network() + packet.headers_len() + 12
}

fn a_tcp_data_offset_below_20_is_malformed() {
    let world = World::new();
    let packet = CLIENT.syn().payload(&[7; 40]);
    let mut frame = packet.bytes();
    for words in 0..5 {
        frame[data_offset(&packet)] = words << 4;
        world
            .send_bytes(&frame, 0)
            .expect(&passed(Reason::Malformed));
    }
}

fn a_tcp_data_offset_beyond_the_packet_is_malformed() {
    let world = World::new();
    let packet = CLIENT.syn().with_tcp(|tcp| tcp.payload = vec![0; 12]);
    let mut frame = packet.bytes();
    let at = data_offset(&packet);
    frame[at] = 8 << 4;
    let counted = packet.counted();
    world
        .send_bytes(&frame, counted)
        .expect(&forwarded(Reason::Opened, 1, {
            let mut sent = BACKEND().l2_output(&packet);
            sent[at] = 8 << 4;
            sent
        }));
    frame[at] = 9 << 4;
    world
        .send_bytes(&frame, 0)
        .expect(&passed(Reason::Malformed));
}

fn padding_is_no_part_of_the_packet() {
    let world = World::new();
    // 40 bytes of packet in the least frame that Ethernet has.
    let syn = CLIENT.syn().padded(6);
    world
        .send(&syn)
        .expect(&forwarded(Reason::Opened, 1, BACKEND().l2_output(&syn)));
    // A closing entry tells data from none: padding that was taken for data would revive it.
    let (ack, fin) = (
        CLIENT.ack().padded(6),
        CLIENT.ack().with_tcp(|tcp| tcp.flags = FIN | ACK),
    );
    for (packet, state) in [(&ack, "Young"), (&fin, "Closing"), (&ack, "Closing")] {
        world.send(packet).expect(&forwarded(
            Reason::Established,
            1,
            BACKEND().l2_output(packet),
        ));
        let word = format!("{:?}", world.entry(CLIENT.key()));
        assert!(word.starts_with(state), "{word} is not {state}");
    }
}

fn a_total_length_shorter_than_the_headers_is_malformed() {
    let world = World::new();
    let syn = CLIENT.syn();
    // In IPv6 the header says how long the rest is.
    let least = match syn.version {
        IpVersion::V4 => 0,
        IpVersion::V6 => 40,
    };
    for length in least..syn.length() {
        world
            .send_bytes(&syn.clone().total_length(length).bytes(), 0)
            .expect(&passed(Reason::Malformed));
    }
}

/// The backend finds out: only the headers are looked at here, whose lengths are all right.
fn a_total_length_beyond_the_frame_is_counted_and_forwarded_as_it_is() {
    for length in [61, 1_460] {
        let backend = BackendSpec::ipip(1);
        let world = World::with(&backend);
        let packet = CLIENT.syn().total_length(length);
        world
            .send(&packet)
            .expect(&forwarded(Reason::Opened, 1, backend.ipip_output(&packet)));
    }
}

fn a_first_fragment_has_ports_and_is_steered() {
    let world = World::new();
    let syn = CLIENT.syn().fragment(0x2000);
    world
        .send(&syn)
        .expect(&forwarded(Reason::Opened, 1, BACKEND().l2_output(&syn)));
}

/// Tags that give a priority and no VLAN, options, and what says that more fragments come.
fn all_that_may_stand_before_a_segment_is_stepped_over_at_once() {
    let modes: [(BackendSpec, Output); 2] = [
        (BackendSpec::l2(1), BackendSpec::l2_output),
        (BackendSpec::ipip(1), BackendSpec::ipip_output),
    ];
    for (backend, output) in modes {
        let world = World::with(&backend);
        let syn = CLIENT
            .syn()
            .options(&[1; 40])
            .fragment(0x2000)
            .tagged(0x8100, 0xe000)
            .tagged(0x88a8, 0x6000);
        let sent = output(&backend, &syn);
        world.send(&syn).expect(&forwarded(Reason::Opened, 1, sent));
    }
}

fn a_later_tcp_fragment_for_a_vip_that_the_host_does_not_own_is_dropped() {
    let world = World::new();
    world.vip(VIP, false);
    for offset in [1, 0x2001, 0x1fff, 0x3fff] {
        let fragment = CLIENT.syn().fragment(offset);
        world
            .send(&fragment)
            .expect(&dropped(Reason::Fragment).of_no_service());
    }
}

fn a_later_tcp_fragment_for_a_vip_that_the_host_owns_is_the_hosts() {
    let world = World::new();
    world.vip(VIP, true);
    world
        .send(&CLIENT.syn().fragment(0x00b9))
        .expect(&passed(Reason::NotService));
}

fn a_later_tcp_fragment_for_another_address_is_the_hosts() {
    let world = World::new();
    let fragment =
        Packet::tcp((CLIENT.0, 1), (Ipv4Addr::new(192, 0, 2, 2), 2), SYN).fragment(0x00b9);
    world.send(&fragment).expect(&passed(Reason::NotService));
}

fn a_later_udp_fragment_for_a_vip_is_the_hosts() {
    let world = World::new();
    world.vip(VIP, false);
    let fragment = CLIENT.syn().carrying(17, &[0; 24]).fragment(0x00b9);
    world
        .send(&fragment)
        .expect(&passed(Reason::NotService).counting(0));
}

fn a_syn_with_ack_fin_or_rst_is_dropped_and_leaves_no_entry() {
    let world = World::new();
    for more in [
        ACK,
        FIN,
        RST,
        ACK | FIN,
        ACK | RST,
        FIN | RST,
        ACK | FIN | RST,
    ] {
        world
            .send(&CLIENT.sends(SYN | more))
            .expect(&dropped(Reason::BadFlags));
    }
    assert_eq!(world.values().len(), 0);
}

fn the_flags_that_say_nothing_of_a_flows_life_change_nothing() {
    // PSH, URG, ECE, CWR: each, and all of them.
    for more in [0x08, 0x20, 0x40, 0x80, 0xe8] {
        let world = World::new();
        let now = world.now();
        let seq = CLIENT.ack().as_tcp().seq;
        let live = |state| Word::live(state, backend(1), epoch_of(seq), now, 0);
        let young = live(State::Young);
        for (plain, reason, entry) in [
            (
                CLIENT.syn(),
                Reason::Opened,
                Word::embryo(backend(1), CLIENT.syn().as_tcp().seq, now),
            ),
            (CLIENT.ack(), Reason::Established, young),
            (CLIENT.ack().payload(b"data"), Reason::Established, young),
            (
                CLIENT.ack().with_tcp(|tcp| tcp.flags = FIN | ACK),
                Reason::Established,
                live(State::Closing),
            ),
        ] {
            let packet = plain.with_tcp(|tcp| tcp.flags |= more);
            let output = BACKEND().l2_output(&packet);
            world.send(&packet).expect(&forwarded(reason, 1, output));
            assert_eq!(world.entry(CLIENT.key()), entry, "{more:#x}");
        }
    }
}

/// Only a service's port is never 0.
fn a_client_whose_port_is_0_is_served_like_any() {
    let world = World::new();
    let client = Client(CLIENT.0, 0);
    for (packet, reason) in [
        (client.syn(), Reason::Opened),
        (client.ack(), Reason::Established),
        (client.ack().payload(b"data"), Reason::Established),
    ] {
        let output = BACKEND().l2_output(&packet);
        world.send(&packet).expect(&forwarded(reason, 1, output));
    }
}

/// Who gives the VIP for its own address sets nothing going in circles: what it is answered comes back here, and is answered by nothing.
fn what_answers_a_segment_from_the_vip_to_itself_is_answered_no_more() {
    let world = World::new();
    let own = |flags| Packet::tcp((VIP, VIP_PORT), (VIP, VIP_PORT), flags);
    let output = BACKEND().l2_output(&own(SYN));
    world
        .send(&own(SYN))
        .expect(&forwarded(Reason::Opened, 1, output));
    // By the backend.
    world
        .send(&own(SYN | ACK))
        .expect(&dropped(Reason::BadFlags));
    // By this host: that its hops ended, which is told to the backend; and that the backend is dead.
    let last = world.send(&own(SYN).ttl(1));
    assert_eq!(last.reason(), Reason::TtlExpired);
    let told = world.send_bytes(&last.outcome.output, 0);
    assert_eq!(told.reason(), Reason::ErrorRelayed);
    world.backend(&BACKEND().serving(Serving::None));
    let refused = world.send(&own(ACK));
    assert_eq!(refused.reason(), Reason::BackendDead);
    let reset = &refused.outcome.output;
    world
        .send_bytes(reset, reset.len() as u32)
        .expect(&dropped(Reason::ResetToDead).of_backend(1));
}

/// Every kind of frame that another test sends whole.
fn fixtures() -> Vec<Packet> {
    let syn = CLIENT.syn().tcp_options(&[1; 20]).payload(b"early");
    vec![
        CLIENT.syn(),
        syn.clone(),
        syn.clone().options(&[1; 40]),
        syn.clone().tagged(0x8100, 1),
        syn.clone().tagged(0x8100, 1).tagged(0x88a8, 2),
        syn.clone()
            .tagged(0x8100, 1)
            .tagged(0x88a8, 2)
            .options(&[1; 12]),
        syn.clone().fragment(0x2000),
        syn.clone().fragment(0x00b9),
        CLIENT.ack().payload(b"data"),
        CLIENT.sends(RST),
        syn.padded(9),
        CLIENT.syn().carrying(17, &[0; 30]),
        Packet::tcp((CLIENT.0, 1), (Ipv4Addr::new(192, 0, 2, 2), 2), SYN).payload(b"no VIP"),
    ]
}

/// What a backend receives of a packet.
type Output = fn(&BackendSpec, &Packet) -> Vec<u8>;

/// A truncated frame is the host's until all its headers are there. Beyond them it goes by its headers: the program does not ask
/// how long a frame of several buffers is.
fn every_truncation_of_every_fixture_passes_unchanged_or_goes_by_whole_headers() {
    let modes: [(BackendSpec, Output); 3] = [
        (BackendSpec::l2(1), BackendSpec::l2_output),
        (BackendSpec::ipip(1), BackendSpec::ipip_output),
        (BackendSpec::ipip_in_ipv6(1), BackendSpec::ipip_output),
    ];
    // In IPv6 the last two are the same.
    let different = match version() {
        IpVersion::V4 => 3,
        IpVersion::V6 => 2,
    };
    for (backend, output) in modes.into_iter().take(different) {
        let world = World::with(&backend);
        world.vip(VIP, false);
        for packet in fixtures() {
            let whole = packet.bytes();
            let later = packet.fragment & 0x1fff != 0;
            let headers = packet.network() + packet.headers_len() + if later { 0 } else { 20 };
            for length in 14..whole.len() {
                let cut = &whole[..length];
                let run = world.send_bytes(cut, packet.counted());
                let reason = run.reason();
                match reason.verdict() {
                    Verdict::Pass => run.expect(&passed(reason).counting(
                        // Counted in bytes are whole headers only.
                        match &packet.transport {
                            Transport::Tcp(_) if length >= headers => packet.counted(),
                            _ => 0,
                        },
                    )),
                    Verdict::Forward => {
                        let sent = output(&backend, &packet);
                        // What is missing of the frame is missing at the end of what leaves.
                        let cut = sent.len() - (whole.len() - length);
                        run.expect(&forwarded(reason, 1, sent[..cut].to_vec()));
                    }
                    Verdict::Drop => {
                        run.expect(&dropped(Reason::Fragment).of_no_service());
                    }
                    Verdict::Reset | Verdict::Answer => {
                        panic!("{length} bytes of {packet:?} drew an answer")
                    }
                }
                assert!(
                    reason.verdict() == Verdict::Pass || length >= headers,
                    "{reason:?} for {length} bytes of {packet:?}"
                );
            }
        }
        let values = world.values();
        let is_client = |(_, key, _): &(_, _, _)| *key == CLIENT.key();
        assert!(values.iter().all(is_client), "{values:?}");
    }
}

fn a_service_that_the_directory_names_and_that_is_beyond_the_map_is_missing() {
    let world = World::new();
    // The first of these would be counted as a backend, and the last as another CPU's reason.
    let room = world.maps.capacity.services as u16;
    for (port, id) in [(80, room), (81, room + 1), (82, 4_000)] {
        world.direct(VipEntry::of(World::vip_key(VIP, port), id));
        let packet = Packet::tcp((CLIENT.0, CLIENT.1), (VIP, port), SYN);
        world
            .send(&packet)
            .expect(&dropped(Reason::ServiceMissing).of_no_service());
    }
}
