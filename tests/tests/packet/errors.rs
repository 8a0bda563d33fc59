//! ICMP and ICMPv6 errors about flows of modes `nat` and `dnat`: each side is told of the packet that it has sent, to the byte.

use lab::packet::{
    BackendSpec, CLIENT, Expect, Packet, VIP, VIP_PORT, World, dropped, forwarded,
    icmp::{About, ERRORS, ROUTER, message, quote, quotes},
    nat::{
        MODES, NARROW, NARROW_MTU, NOWHERE, Opened, SNAT, TAGGED, UNHEARD, in_each_mode, sent_on,
    },
    passed, version,
};
use lb_common::{
    backend::Serving,
    flow::word::{State, Word},
    net::IpVersion,
    tcp::ACK,
    verdict::Reason,
};

lab::in_both_versions![
    what_a_router_says_of_a_request_is_heard_by_the_client,
    what_a_router_says_of_a_reply_is_heard_by_the_backend,
    eight_quoted_bytes_of_tcp_are_enough_and_fewer_are_not,
    what_stands_behind_a_message_is_no_quote,
    no_truncation_is_more_than_its_headers_say,
    an_error_leaves_by_the_tags_and_the_way_of_its_reader,
    an_error_without_a_way_is_dropped,
    an_error_out_of_hops_is_not_answered_with_an_error,
    an_error_about_a_flow_without_a_port_is_dropped_and_one_of_dnat_goes_by_the_table,
    an_error_about_what_is_none_of_a_flow_is_the_hosts,
    an_error_about_a_flow_of_another_mode_goes_as_that_does,
];

/// A segment of the client's, as it came and as it went on.
fn request(backend: &BackendSpec, flow: &Opened) -> (Packet, Packet) {
    let came = flow.ack().payload(b"what was too much for a router");
    let went = backend.translated(&came, flow.source);
    (came, went)
}

/// A segment of the backend's, as it came and as it went on.
fn reply(flow: &Opened) -> (Packet, Packet) {
    let came = flow.replies(ACK).payload(b"as was this, of odd length.");
    let went = flow.returned(&came);
    (came, went)
}

/// The packet that its sender has sent, as it was on the way that it did not get by: with the hops that it had left there.
fn as_sent(came: &Packet, went: &Packet) -> Packet {
    came.clone().ttl(went.ttl)
}

fn relayed(sent: &Packet) -> Expect {
    forwarded(Reason::ErrorRelayed, 1, sent.bytes())
}

/// What an error of a router's about a request is, and what the client gets of it.
fn about_request(
    backend: &BackendSpec,
    flow: &Opened,
    about: About,
    quote: fn(&Packet) -> Vec<u8>,
) -> (Packet, Packet) {
    let (came, went) = request(backend, flow);
    let told = message(about, 0, &quote(&went), ROUTER, flow.source.0);
    let heard = message(about, 0, &quote(&as_sent(&came, &went)), VIP, flow.client.0);
    (told, heard)
}

/// What an error of a router's about a reply is, and what the backend gets of it.
fn about_reply(
    backend: &BackendSpec,
    flow: &Opened,
    about: About,
    quote: fn(&Packet) -> Vec<u8>,
) -> (Packet, Packet) {
    let (came, went) = reply(flow);
    let told = message(about, 0, &quote(&went), ROUTER, VIP);
    let teller = if flow.source.0 == SNAT[0] {
        flow.source.0
    } else {
        VIP
    };
    let heard = message(
        about,
        0,
        &quote(&as_sent(&came, &went)),
        teller,
        came.source,
    );
    (told, backend.addressed(&heard))
}

fn what_a_router_says_of_a_request_is_heard_by_the_client() {
    in_each_mode(|world, backend, flow| {
        let entry = world.placed(CLIENT.key());
        for about in ERRORS {
            for quote in quotes() {
                let (told, heard) = about_request(backend, &flow, about, quote);
                for told in [
                    told.clone(),
                    told.clone().tagged(0x8100, 0x2007),
                    told.padded(6),
                ] {
                    let mut heard = heard.clone();
                    heard.tags.clone_from(&told.tags);
                    heard.padding = told.padding;
                    let sent = sent_on(&heard, CLIENT);
                    world.send(&told).expect(&relayed(&sent).redirected());
                }
            }
        }
        // It is no sign of life of anybody's.
        assert_eq!(world.placed(CLIENT.key()), entry);
    });
}

fn what_a_router_says_of_a_reply_is_heard_by_the_backend() {
    in_each_mode(|world, backend, flow| {
        let entry = world.placed(CLIENT.key());
        for about in ERRORS {
            for quote in quotes() {
                let (told, heard) = about_reply(backend, &flow, about, quote);
                world.send(&told).expect(&relayed(&heard));
                world.send(&told.tagged(0x8100, 7)).expect(&relayed(&heard));
            }
        }
        assert_eq!(world.placed(CLIENT.key()), entry);
    });
}

fn eight_quoted_bytes_of_tcp_are_enough_and_fewer_are_not() {
    in_each_mode(|world, backend, flow| {
        let (_, request) = request(backend, &flow);
        let (_, reply) = reply(&flow);
        for (packet, to) in [(&request, flow.source.0), (&reply, VIP)] {
            for length in 0..packet.headers_len() + 8 {
                let quoted = &packet.packet()[..length];
                let run = world.send(&message(About::Unreachable, 0, quoted, ROUTER, to));
                // The ports are all that there has to be.
                if length < packet.headers_len() + 4 {
                    run.expect(&passed(Reason::NotService).counting(0));
                } else {
                    assert_eq!(run.reason(), Reason::ErrorRelayed);
                }
            }
        }
    });
}

/// A message that by its header ends before its frame does: what is missing of a quote is not to be had from there.
fn what_stands_behind_a_message_is_no_quote() {
    in_each_mode(|world, backend, flow| {
        let about = About::Expired;
        for (told, _) in [
            about_request(backend, &flow, about, Packet::packet),
            about_reply(backend, &flow, about, Packet::packet),
        ] {
            let (_, segment) = reply(&flow);
            let needed = told.headers_len() + 8 + segment.headers_len() + 4;
            for length in told.headers_len()..usize::from(told.length()) {
                let run = world.send(&told.clone().total_length(length as u16));
                if length < needed {
                    run.expect(&passed(Reason::NotService).counting(0));
                } else {
                    assert_eq!(run.reason(), Reason::ErrorRelayed);
                }
            }
        }
    });
}

/// A frame that is shorter than its packet says: the host's as long as it has not all that is needed, and then sent as far as it goes.
fn no_truncation_is_more_than_its_headers_say() {
    in_each_mode(|world, backend, flow| {
        let about = About::TooBig(1_400);
        for (to_backend, (told, heard)) in [
            (false, about_request(backend, &flow, about, Packet::packet)),
            (true, about_reply(backend, &flow, about, Packet::packet)),
        ] {
            let (_, segment) = reply(&flow);
            let header = segment.headers_len();
            world.send_cuts_of_error((&told, &heard), about, header, |heard| {
                if to_backend {
                    relayed(heard)
                } else {
                    relayed(&sent_on(heard, CLIENT)).redirected()
                }
            });
        }
    });
}

fn an_error_leaves_by_the_tags_and_the_way_of_its_reader() {
    for mode in MODES {
        let backend = mode(1).by_vlans(&[(0x8100, 0x321)]);
        let world = World::with_translating(&backend);
        world.link(0);
        let flow = world.open(TAGGED);
        let (told, heard) = about_request(&backend, &flow, About::TooBig(1_400), quote);
        for told in [told.clone(), told.tagged(0x8100, 0xe001)] {
            let mut heard = heard.clone();
            heard.tags.clone_from(&told.tags);
            world.send(&told).expect(&relayed(&sent_on(&heard, TAGGED)));
        }
        let (told, heard) = about_reply(&backend, &flow, About::TooBig(1_400), quote);
        world.send(&told).expect(&relayed(&heard));
    }
}

fn an_error_without_a_way_is_dropped() {
    for mode in MODES {
        let backend = mode(1);
        let world = World::with_translating(&backend);
        let unrelayed = dropped(Reason::ErrorUnrelayed).of_backend(1);
        // The client has none, or one that is too narrow for the message.
        world.send(&NOWHERE.syn());
        let flow = world.flow(NOWHERE);
        let (told, _) = about_request(&backend, &flow, About::Unreachable, quote);
        world.send(&told).expect(&unrelayed);
        let flow = world.open(NARROW);
        let (_, went) = request(&backend, &flow);
        let mut long = went.packet();
        long.resize(usize::from(NARROW_MTU), 0);
        let told = message(About::Unreachable, 0, &long, ROUTER, flow.source.0);
        world.send(&told).expect(&unrelayed);
        // Where nobody knows the neighbour, the kernel finds out, and sends.
        world.send(&UNHEARD.syn());
        let flow = world.flow(UNHEARD);
        let (told, heard) = about_request(&backend, &flow, About::Unreachable, quote);
        let sent = sent_on(&heard, UNHEARD);
        world.send(&told).expect(&relayed(&sent).left_to_the_host());

        let flow = world.open(CLIENT);
        let (told, _) = about_reply(&backend, &flow, About::Unreachable, quote);
        for backend in [
            mode(1).unresolved(),
            mode(1).serving(Serving::None),
            mode(1).nowhere(),
            mode(1).mtu(40),
        ] {
            world.translate(&backend, lab::packet::SERVICE);
            world.send(&told).expect(&unrelayed);
        }
    }
}

fn an_error_out_of_hops_is_not_answered_with_an_error() {
    in_each_mode(|world, backend, flow| {
        let (request, _) = about_request(backend, &flow, About::Expired, quote);
        let (reply, _) = about_reply(backend, &flow, About::Expired, quote);
        for told in [request, reply] {
            world
                .send(&told.ttl(1))
                .expect(&dropped(Reason::ErrorUnrelayed).of_backend(1));
        }
    });
}

fn an_error_about_a_flow_without_a_port_is_dropped_and_one_of_dnat_goes_by_the_table() {
    in_each_mode(|world, backend, flow| {
        let (request, _) = about_request(backend, &flow, About::Expired, quote);
        let (reply, heard) = about_reply(backend, &flow, About::Expired, quote);
        // The flow is no more, but its port's slot names its place still: what is said of that is the host's.
        world.set_value(flow.place, Word::EMPTY);
        world
            .send(&request)
            .expect(&passed(Reason::NotService).counting(0));
        world.send(&reply).expect(&if flow.source.0 == SNAT[0] {
            dropped(Reason::ErrorUnrelayed).of_backend(1)
        } else {
            relayed(&heard)
        });
        assert_eq!(world.entries(CLIENT.key()), []);
    });
}

fn an_error_about_what_is_none_of_a_flow_is_the_hosts() {
    in_each_mode(|world, backend, flow| {
        let untouched = passed(Reason::NotService).counting(0);
        let (_, went) = request(backend, &flow);
        let told =
            |quoted: &Packet| message(About::Unreachable, 0, &quote(quoted), ROUTER, quoted.source);
        let port = went.clone().with_tcp(|tcp| tcp.source_port ^= 0x4000);
        let to = went.clone().with_tcp(|tcp| tcp.destination_port ^= 1);
        let mut own = went.clone();
        own.source = ROUTER;
        for quoted in [port, to, own] {
            world.send(&told(&quoted)).expect(&untouched);
        }
        // To another than has sent the segment; about the message of another protocol.
        let elsewhere = message(About::Unreachable, 0, &quote(&went), ROUTER, ROUTER);
        world.send(&elsewhere).expect(&untouched);
        let other = went.clone().carrying(17, &[0; 8]);
        world.send(&told(&other)).expect(&untouched);
        // Echoes and others of its own address's are the host's.
        let echo = message(About::Request, 7, b"data", ROUTER, SNAT[0]);
        world.send(&echo).expect(&untouched);
        if version() == IpVersion::V4 {
            world.send(&told(&went.fragment(1))).expect(&untouched);
        }
    });
}

/// Of a service that has begun to translate.
fn an_error_about_a_flow_of_another_mode_goes_as_that_does() {
    let world = World::with_translating(&BackendSpec::nat(1));
    let to = BackendSpec::l2(2);
    world.backend(&to);
    let pin = Word::live(
        State::Pin,
        lab::packet::entries::backend(2),
        0,
        world.now(),
        0,
    );
    world.insert(CLIENT.key(), pin);
    let sent = Packet::tcp((VIP, VIP_PORT), (CLIENT.0, CLIENT.1), ACK);
    let told = message(About::TooBig(1_400), 0, &quote(&sent), ROUTER, VIP);
    let output = to.l2_output(&told);
    world
        .send(&told)
        .expect(&forwarded(Reason::ErrorRelayed, 2, output));
}
