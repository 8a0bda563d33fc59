//! Modes `nat` and `dnat`: what backends and clients get of each other, to the byte.

use lab::packet::{
    BackendSpec, CLIENT, Client, Packet, World, answered, dropped, forwarded,
    icmp::{About, complaint},
    kernel::ELSEWHERE,
    nat::{
        MODES, NARROW, NARROW_MTU, NOWHERE, Opened, SNAT, TAGGED, TAGS, THEIRS, UNHEARD,
        in_each_mode,
    },
    on_wire, passed, version,
};
use lb_common::{
    flow::word::{State, Word, epoch_of},
    nat::{TranslationWord, slot_of},
    net::IpVersion,
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

lab::in_both_versions![
    a_nat_flow_goes_both_ways,
    a_dnat_flow_goes_both_ways,
    segments_of_all_shapes_are_translated,
    truncated_frames_pass_or_leave_as_far_as_they_go,
    what_the_host_does_with_its_own_address_is_its_own,
    tags_are_put_on_and_taken_off_both_ways,
    a_syn_tells_what_fits_the_way,
    a_syn_that_is_cut_within_its_options_tells_what_fits_if_it_still_tells_anything,
    what_is_too_big_is_answered_to_who_sent_it,
    what_has_no_hops_left_is_answered_to_who_sent_it,
    a_reply_without_a_known_neighbour_is_the_kernels_to_send,
    a_reply_without_a_way_is_dropped,
];

fn both_ways(backend: &BackendSpec, check: fn(&World, &Opened)) {
    let world = World::with_translating(backend);
    let syn = CLIENT.syn().tcp_options(&[1; 8]);
    let run = world.send(&syn);
    let flow = world.flow(CLIENT);
    let (place, embryo) = world.placed(CLIENT.key());
    run.expect(&flow.to_backend(backend, &syn, Reason::Opened));
    assert!(embryo.is(State::Embryo));
    check(&world, &flow);

    let syn_ack = flow.syn_ack().tcp_options(&[1; 4]);
    world.send(&syn_ack).expect(&flow.replied(&syn_ack));
    assert_eq!(world.placed(CLIENT.key()), (place, embryo));
    let word = world.translation(place).expect("it is valid");
    assert!(word.has(TranslationWord::ANSWERED) && word.isn() == THEIRS);

    let now = world.now();
    let ack = flow.ack();
    world
        .send(&ack)
        .expect(&flow.to_backend(backend, &ack, Reason::Established));
    let epoch = epoch_of(ack.as_tcp().seq);
    let pin = Word::live(State::Pin, embryo.backend(), epoch, now, 0);
    assert_eq!(world.placed(CLIENT.key()), (place, pin));
    assert_eq!(world.first_seen(place), now.0);
    assert_eq!(world.translation(place), Some(word.proven(THEIRS)));

    // The short way, and back again.
    let data = flow.ack().payload(b"a question");
    world
        .send(&data)
        .expect(&flow.to_backend(backend, &data, Reason::Established));
    let answer = flow.replies(ACK).payload(b"an answer");
    world.send(&answer).expect(&flow.replied(&answer));
    check(&world, &flow);
}

fn a_nat_flow_goes_both_ways() {
    both_ways(&BackendSpec::nat(1), |world, flow| {
        let port = flow.source.1;
        assert!(port >= 1_024);
        assert_eq!(flow.source.0, SNAT[0]);
        assert_eq!(world.slot(1, port), slot_of(flow.place));
        assert!(world.is_marked(1, port));
        assert_eq!(world.ports_in_use(1), (1, 1));
    });
}

fn a_dnat_flow_goes_both_ways() {
    both_ways(&BackendSpec::dnat(1), |world, flow| {
        assert_eq!(flow.source, (CLIENT.0, CLIENT.1));
        let word = world.translation(flow.place).expect("it is valid");
        assert_eq!(word.anew(), TranslationWord::new(0, 0));
    });
}

/// A segment in all shapes that are no longer than a link takes.
fn shapes(plain: &Packet) -> Vec<Packet> {
    let mut shapes = plain.shapes();
    shapes.extend([
        plain.clone().options(&[1; 4]),
        plain.clone().options(&[1; 40]).tcp_options(&[1; 12]),
        plain.clone().payload(&[0x3c; 1_460]),
    ]);
    shapes.retain(|packet| packet.length() <= 1_500);
    shapes
}

fn segments_of_all_shapes_are_translated() {
    in_each_mode(|world, backend, flow| {
        for data in shapes(&flow.ack()) {
            let expected = flow.to_backend(backend, &data, Reason::Established);
            world.send(&data).expect(&expected);
        }
        for answer in shapes(&flow.replies(ACK)) {
            world.send(&answer).expect(&flow.replied(&answer));
        }
    });
}

/// Tags that frames come with.
const CAME: [&[(u16, u16)]; 3] = [
    &[],
    &[(0x8100, 0x6064)],
    &[(0x88a8, 0xa064), (0x8100, 0x2065)],
];

/// What is cut off behind the headers is missing at the end of what leaves; a frame that is cut within them is the host's. Whatever tags it came with,
/// and leaves with.
fn truncated_frames_pass_or_leave_as_far_as_they_go() {
    for mode in MODES {
        for (leave, client) in [(&[][..], CLIENT), (&TAGS[..], TAGGED)] {
            let backend = mode(1).by_vlans(leave);
            let world = World::with_translating(&backend);
            world.link(0);
            let flow = world.open(client);
            let reply = |sent| {
                let expected = forwarded(Reason::Reply, 1, sent);
                // A client behind a device of VLANs is reached by the interface that packets come in by.
                if client == TAGGED {
                    expected
                } else {
                    expected.redirected()
                }
            };
            for came in CAME {
                let request = flow.ack().payload(b"data").within(came);
                let answer = flow.replies(ACK).payload(b"data").within(came);
                for (packet, sent, is_reply) in [
                    (&request, backend.translated(&request, flow.source), false),
                    (&answer, flow.returned(&answer), true),
                ] {
                    let expected = if is_reply {
                        reply(sent.bytes())
                    } else {
                        forwarded(Reason::Established, 1, sent.bytes())
                    };
                    for cut in packet.cuts() {
                        if let Some(run) = world.send_cut(&cut) {
                            run.expect(&expected.clone().cut_by(cut.missing));
                        }
                    }
                }
            }
            drop(world);
            truncated_syns_pass_or_open_a_flow(&backend, client);
        }
    }
}

fn truncated_syns_pass_or_open_a_flow(backend: &BackendSpec, client: Client) {
    let world = World::with_translating(backend);
    for came in CAME {
        let plain = client.syn().options(&[1; 8]).tcp_options(&[1; 4]);
        let syn = plain.payload(b"early").within(came);
        for cut in syn.cuts() {
            for place in world.places() {
                world.set_value(place, Word::EMPTY);
            }
            let Some(run) = world.send_cut(&cut) else {
                assert_eq!(world.entries(client.key()), []);
                continue;
            };
            let sent = backend.translated(&syn, world.flow(client).source);
            let sent = forwarded(Reason::Opened, 1, sent.bytes());
            run.expect(&sent.cut_by(cut.missing));
        }
    }
}

fn what_the_host_does_with_its_own_address_is_its_own() {
    let world = World::with_translating(&BackendSpec::nat(1));
    let flow = world.open(CLIENT);
    let untouched = passed(Reason::NotService);
    let free = if flow.source.1 == 2_000 { 2_001 } else { 2_000 };
    for source in [
        (SNAT[0], free),
        (SNAT[0], 22),
        (SNAT[1], flow.source.1),
        (CLIENT.0, CLIENT.1),
    ] {
        for flags in [SYN | ACK, ACK, RST, FIN | ACK] {
            let packet = Opened { source, ..flow }.replies(flags);
            world.send(&packet).expect(&untouched);
            world.send(&packet.tagged(0x8100, 3)).expect(&untouched);
        }
    }
    // From another port of the backend's host, and from another host.
    let other = flow.replies(ACK).with_tcp(|tcp| tcp.source_port += 1);
    world.send(&other).expect(&untouched);
    let mut other = flow.replies(ACK);
    other.source = CLIENT.0;
    world.send(&other).expect(&untouched);
}

fn tags_are_put_on_and_taken_off_both_ways() {
    for mode in MODES {
        for leave in [&[][..], &TAGS[..1], &TAGS[..]] {
            for before in [0, 7] {
                let backend = mode(1).by_vlans(leave);
                let world = World::with_translating(&backend);
                world.link(before);
                for came in CAME {
                    for place in world.places() {
                        world.set_value(place, Word::EMPTY);
                    }
                    let syn = TAGGED.syn().within(came);
                    let run = world.send(&syn);
                    let flow = world.flow(TAGGED);
                    run.expect(&flow.to_backend(&backend, &syn, Reason::Opened));
                    let answer = flow.syn_ack().within(came);
                    let sent = flow.returned(&answer).bytes();
                    world
                        .send(&answer)
                        .expect(&forwarded(Reason::Reply, 1, sent));
                    for packet in [flow.ack(), flow.ack().payload(b"data")] {
                        let packet = packet.within(came);
                        let expected = flow.to_backend(&backend, &packet, Reason::Established);
                        world.send(&packet).expect(&expected);
                    }
                }
            }
        }
    }
}

/// A maximum segment size, behind options of all kinds: at even offsets and at odd ones.
fn with_mss(packet: Packet, before: &[u8], mss: u16) -> Packet {
    let [high, low] = mss.to_be_bytes();
    let mut options = before.to_vec();
    options.extend([2, 4, high, low]);
    options.resize(options.len().next_multiple_of(4), 0);
    packet.tcp_options(&options)
}

fn a_syn_tells_what_fits_the_way() {
    let headers = match version() {
        IpVersion::V4 => 40,
        IpVersion::V6 => 60,
    };
    for mode in MODES {
        for before in [
            &[][..],
            &[1],
            &[1, 1, 1],
            &[4, 2, 3, 3, 7],
            &[8, 10, 2, 2, 2, 2, 2, 2, 2, 2],
        ] {
            let backend = mode(1).mtu(1_400);
            let world = World::with_translating(&backend);
            for (client, fits) in [(CLIENT, 1_500), (NARROW, NARROW_MTU)] {
                let most = fits - headers;
                for (told, tells) in [(most, most), (most + 1, most), (9_000, most), (500, 500)] {
                    for place in world.places() {
                        world.set_value(place, Word::EMPTY);
                    }
                    let run = world.send(&with_mss(client.syn(), before, told));
                    let flow = world.flow(client);
                    let sent = with_mss(client.syn(), before, tells);
                    run.expect(&flow.to_backend(&backend, &sent, Reason::Opened));
                    // The answer tells what fits the way to the backend.
                    let most = 1_400 - headers;
                    let answer = with_mss(flow.syn_ack(), before, told);
                    let sent = with_mss(flow.syn_ack(), before, told.min(most));
                    world.send(&answer).expect(&flow.replied(&sent));
                }
            }
        }
    }
    // Where there is none, or none that can be, nothing is changed; nor in what is no SYN.
    let backend = BackendSpec::nat(1);
    let world = World::with_translating(&backend);
    for options in [
        &[][..],
        &[0, 2, 4, 255],
        &[3, 0, 2, 4, 255, 255, 0, 0],
        &[2, 3, 255, 255],
        &[1, 1, 2, 4],
    ] {
        for place in world.places() {
            world.set_value(place, Word::EMPTY);
        }
        let syn = CLIENT.syn().tcp_options(options);
        let run = world.send(&syn);
        let flow = world.flow(CLIENT);
        run.expect(&flow.to_backend(&backend, &syn, Reason::Opened));
    }
    let flow = world.flow(CLIENT);
    world.send(&flow.syn_ack());
    let ack = with_mss(flow.ack(), &[], 9_000);
    let expected = flow.to_backend(&backend, &ack, Reason::Established);
    world.send(&ack).expect(&expected);
}

/// A segment size that is cut off, even by a byte, is left as it is, and so is the checksum.
fn a_syn_that_is_cut_within_its_options_tells_what_fits_if_it_still_tells_anything() {
    const TOLD: u16 = 9_000;
    let headers = match version() {
        IpVersion::V4 => 40,
        IpVersion::V6 => 60,
    };
    for mode in MODES {
        for before in [&[][..], &[1], &[4, 2, 3, 3, 7], &[1, 3, 3, 7]] {
            let backend = mode(1).mtu(1_400);
            let world = World::with_translating(&backend);
            // What leaves of a frame: of `sent` if its option is there whole, of `untold` if not.
            let cut = |packet: &Packet, sent: &Packet, untold: &Packet, length: usize| {
                let option = packet.network() + packet.headers_len() + 20 + before.len();
                let left = if length < option + 4 { untold } else { sent };
                left.bytes()[..length].to_vec()
            };
            let syn = |told| with_mss(CLIENT.syn(), before, told);
            let (came, clamped) = (syn(TOLD), syn(1_500 - headers));
            let whole = came.bytes();
            let least = came.network() + came.headers_len() + 20;
            for length in least..=whole.len() {
                for place in world.places() {
                    world.set_value(place, Word::EMPTY);
                }
                let run = world.send_bytes(&whole[..length], came.counted());
                let source = world.flow(CLIENT).source;
                let sent = backend.translated(&clamped, source);
                let untold = backend.translated(&came, source);
                let left = cut(&came, &sent, &untold, length);
                run.expect(&forwarded(Reason::Opened, 1, left));
            }

            let flow = world.flow(CLIENT);
            let answer = |told| with_mss(flow.syn_ack(), before, told);
            let (came, clamped) = (answer(TOLD), answer(1_400 - headers));
            let (sent, untold) = (flow.returned(&clamped), flow.returned(&came));
            let whole = came.bytes();
            for length in least..=whole.len() {
                let left = cut(&came, &sent, &untold, length);
                world
                    .send_bytes(&whole[..length], came.counted())
                    .expect(&forwarded(Reason::Reply, 1, left).redirected());
            }
        }
    }
}

fn what_is_too_big_is_answered_to_who_sent_it() {
    for mode in MODES {
        let world = World::with_translating(&mode(1).mtu(1_400));
        let flow = world.open(NARROW);
        let fits = flow.ack().of_length(1_400);
        assert_eq!(world.send(&fits).reason(), Reason::Established);
        for data in [
            flow.ack().of_length(1_401),
            flow.ack().of_length(1_401).tagged(0x8100, 3),
        ] {
            let told = complaint(&data, About::TooBig(1_400));
            world
                .send(&data)
                .expect(&answered(Reason::TooBig, told).of_backend(1));
        }
        let fits = flow.replies(ACK).of_length(usize::from(NARROW_MTU));
        world.send(&fits).expect(&flow.replied(&fits));
        let answer = flow.replies(ACK).of_length(usize::from(NARROW_MTU) + 1);
        let told = complaint(&answer, About::TooBig(u32::from(NARROW_MTU)));
        world
            .send(&answer)
            .expect(&answered(Reason::TooBig, told).of_backend(1));
    }
}

fn what_has_no_hops_left_is_answered_to_who_sent_it() {
    in_each_mode(|world, _, flow| {
        for packet in [
            flow.ack().ttl(1),
            flow.ack().ttl(0),
            flow.replies(ACK).ttl(1),
            flow.replies(ACK).ttl(0).tagged(0x8100, 3),
        ] {
            let told = complaint(&packet, About::Expired);
            world
                .send(&packet)
                .expect(&answered(Reason::TtlExpired, told).of_backend(1));
        }
    });
}

fn a_reply_without_a_known_neighbour_is_the_kernels_to_send() {
    for mode in MODES {
        let world = World::with_translating(&mode(1));
        let wanted = [(ELSEWHERE, on_wire(UNHEARD.0))];
        assert_eq!(world.send(&UNHEARD.syn()).reason(), Reason::Opened);
        // By then there is time to find it.
        assert_eq!(world.maps.take_unresolved(), wanted.into());
        let flow = world.flow(UNHEARD);
        for answer in [flow.syn_ack(), flow.syn_ack().tagged(0x8100, 3)] {
            let sent = flow.returned(&answer).bytes();
            let run = world.send(&answer);
            run.expect(&forwarded(Reason::Reply, 1, sent).left_to_the_host());
            assert_eq!(world.maps.take_unresolved(), wanted.into());
            assert_eq!(world.maps.take_unresolved(), [].into());
        }
    }
}

fn a_reply_without_a_way_is_dropped() {
    for mode in MODES {
        let world = World::with_translating(&mode(1));
        world.send(&NOWHERE.syn());
        let flow = world.flow(NOWHERE);
        world
            .send(&flow.syn_ack())
            .expect(&dropped(Reason::NoRouteBack).of_backend(1));
    }
}
