//! Whom a service takes new flows from.

use std::net::Ipv4Addr;

use lab::packet::{CLIENT, Packet, VIP, answered, dropped, guard::Limits, reset_output};
use lb_common::{
    flow::word::State,
    guard::{
        Listed::{self, Allowed, Denied, NotAllowed},
        Source,
    },
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

use super::{OTHER, Way, ZERO, at, each, established, from_port, is_refused, reason_of, world};

lab::in_both_versions![
    who_is_denied_or_not_allowed_opens_nothing,
    who_is_allowed_opens_as_without_a_guard,
    a_range_ends_with_its_last_address,
    a_prefix_of_all_addresses_is_of_all,
    the_innermost_of_many_ranges_counts,
    what_is_in_mid_stream_without_an_entry_is_refused_too,
    what_is_no_segment_of_a_flow_is_none_of_its_business,
    a_flow_that_has_an_entry_goes_on_when_its_client_is_denied,
    a_port_used_again_by_who_is_denied_changes_nothing,
    a_challenger_goes_on_when_its_client_is_denied,
    each_packet_is_asked_about_by_itself,
];

/// All shapes that a segment comes in.
fn shapes(plain: &Packet) -> Vec<Packet> {
    vec![
        plain.clone(),
        plain.clone().tagged(0x8100, 0x2001),
        plain.clone().tagged(0x8100, 0x0fff).tagged(0x88a8, 0xffff),
        plain.clone().options(&[1; 8]),
        plain.clone().fragment(0x2000),
        plain.clone().tcp_options(&[1; 12]).payload(b"data"),
        plain.clone().padded(7),
        plain.clone().tos(0xb9).ttl(1),
    ]
}

fn refusal(listed: Listed) -> Reason {
    match listed {
        Denied => Reason::Denied,
        NotAllowed => Reason::NotAllowed,
        Allowed => panic!("it is let in"),
    }
}

fn who_is_denied_or_not_allowed_opens_nothing() {
    each(|_, world| {
        for listed in [Denied, NotAllowed] {
            world.list_all(listed);
            for syn in shapes(&CLIENT.syn()) {
                world.send(&syn).expect(&dropped(refusal(listed)));
                assert_eq!(world.values(), []);
            }
        }
        assert_eq!(world.notices(), []);
        assert!(
            world
                .sources()
                .iter()
                .all(|(.., source)| *source == Source::default())
        );
    });
}

fn who_is_allowed_opens_as_without_a_guard() {
    each(|way, world| {
        // What the lists say of others is nothing to him.
        let [a, b, c, d] = CLIENT.0.octets();
        world.list(&[
            (ZERO, Denied),
            (CLIENT.0, Allowed),
            (Ipv4Addr::new(a, b, c, d + 1), NotAllowed),
        ]);
        world.limit(&Limits {
            flows: 9,
            ..Limits::burst(9)
        });
        let ports = [1_000, 1_001, 1_002];
        for (port, tags) in ports.into_iter().zip(0..) {
            let client = from_port(port);
            let mut syn = client.syn();
            for _ in 0..tags {
                syn = syn.tagged(0x8100, 0x2001);
            }
            let run = world.send(&syn);
            // The entry is the one that would be there without a guard.
            let entry = world.entry(client.key());
            assert!(entry.is(State::Embryo) && entry.isn() == syn.as_tcp().seq);
            run.expect(&way.forwards(world, client, &syn, Reason::Opened));
        }
        assert_eq!(world.source(CLIENT).flows, 3 << 32, "{way:?}");
    });
}

fn a_range_ends_with_its_last_address() {
    let world = world();
    for listed in [Denied, NotAllowed] {
        for (first, last, before, after) in [
            (
                at(198, 51, 100, 0),
                at(198, 51, 100, 255),
                at(198, 51, 99, 255),
                at(198, 51, 101, 0),
            ),
            (
                at(10, 0, 0, 0),
                at(10, 255, 255, 255),
                at(9, 255, 255, 255),
                at(11, 0, 0, 0),
            ),
            (CLIENT, CLIENT, at(198, 51, 100, 6), at(198, 51, 100, 8)),
        ] {
            world.list(&[(ZERO, Allowed), (first.0, listed), (after.0, Allowed)]);
            for client in [first, last] {
                assert_eq!(reason_of(&world, client), refusal(listed), "{client:?}");
            }
            for client in [before, after] {
                assert_eq!(reason_of(&world, client), Reason::Opened, "{client:?}");
            }
            // And the other way round.
            world.list(&[(ZERO, listed), (first.0, Allowed), (after.0, listed)]);
            for client in [first, last] {
                assert_eq!(reason_of(&world, client), Reason::Opened, "{client:?}");
            }
            for client in [before, after] {
                assert_eq!(reason_of(&world, client), refusal(listed), "{client:?}");
            }
        }
    }
}

fn a_prefix_of_all_addresses_is_of_all() {
    let world = world();
    for listed in [Denied, NotAllowed, Allowed] {
        world.list_all(listed);
        for client in [CLIENT, OTHER, at(1, 0, 0, 0), at(223, 255, 255, 255)] {
            let expected = match listed {
                Allowed => Reason::Opened,
                refused => refusal(refused),
            };
            assert_eq!(reason_of(&world, client), expected, "{client:?}");
        }
    }
}

/// As many ranges as there is room for, nested as lists that deny within what they allow come to.
fn the_innermost_of_many_ranges_counts() {
    let world = world();
    let mut ranges = vec![(ZERO, NotAllowed)];
    for net in 0..15 {
        let host = |d| Ipv4Addr::new(198, 51, 2 * net, d);
        ranges.extend([
            (host(0), Allowed),
            (host(7), Denied),
            (host(8), Allowed),
            (host(128), NotAllowed),
        ]);
    }
    for len in [4, 7, 16, 33, ranges.len()] {
        let ranges = &ranges[..len];
        world.list(ranges);
        for net in (0..30).step_by(3) {
            for d in [0, 6, 7, 8, 127, 128, 255] {
                let client = at(198, 51, net, d);
                let range = ranges.iter().rev().find(|(first, _)| *first <= client.0);
                let expected = match range.expect("the first is of all").1 {
                    Allowed => Reason::Opened,
                    refused => refusal(refused),
                };
                assert_eq!(reason_of(&world, client), expected, "{client:?} of {len}");
            }
        }
    }
}

fn what_is_in_mid_stream_without_an_entry_is_refused_too() {
    each(|way, world| {
        for listed in [Denied, NotAllowed] {
            world.list_all(listed);
            for flags in [FIN | ACK, RST, RST | ACK, FIN, 0] {
                for packet in shapes(&CLIENT.sends(flags)) {
                    world.send(&packet).expect(&dropped(refusal(listed)));
                    assert_eq!(world.values(), [], "{way:?} {flags:#x}");
                }
            }
            // It may be of a flow that was established before: its client is told.
            for packet in shapes(&CLIENT.ack()) {
                let run = world.send(&packet);
                run.expect(&answered(Reason::CutOff, reset_output(&packet)));
                assert_eq!(world.values(), [], "{way:?}");
            }
            let run = world.send_without_resets(&CLIENT.ack());
            run.expect(&dropped(Reason::ResetLimited));
            world.save_resets(10);
        }
        // And is not, of whom it takes flows.
        world.list_all(Allowed);
        let ack = CLIENT.ack();
        let run = world.send(&ack);
        if way == Way::Nat {
            run.expect(&answered(Reason::UnknownFlow, reset_output(&ack)).of_backend(1));
        } else {
            assert!(world.entry(CLIENT.key()).is_live(), "{way:?}");
            run.expect(&way.forwards(world, CLIENT, &ack, Reason::Adopted));
        }
    });
}

fn what_is_no_segment_of_a_flow_is_none_of_its_business() {
    each(|_, world| {
        world.list_all(Denied);
        for flags in [SYN | ACK, SYN | RST, SYN | FIN] {
            world
                .send(&CLIENT.sends(flags))
                .expect(&dropped(Reason::BadFlags));
        }
        let other_port = Packet::tcp((CLIENT.0, CLIENT.1), (VIP, 444), SYN);
        assert_eq!(world.send(&other_port).reason(), Reason::NotService);
    });
}

fn a_flow_that_has_an_entry_goes_on_when_its_client_is_denied() {
    each(|way, world| {
        let syn = CLIENT.syn();
        assert_eq!(world.send(&syn).reason(), Reason::Opened);
        world.list_all(Denied);
        world.limit(&Limits::flows(1));
        // Of an embryo.
        let run = world.send(&syn);
        run.expect(&way.forwards(world, CLIENT, &syn, Reason::Reopened));
        let (ack, fin) = if way.translates() {
            let flow = world.flow(CLIENT);
            let answer = flow.syn_ack();
            world.send(&answer).expect(&flow.replied(&answer));
            (flow.ack(), flow.sends(FIN | ACK))
        } else {
            let fin = CLIENT.ack().with_tcp(|tcp| tcp.flags = FIN | ACK);
            (CLIENT.ack(), fin)
        };
        let data = ack.clone().payload(b"data");
        let tagged = data.clone().tagged(0x8100, 0x2001);
        for packet in [ack, data, tagged, fin] {
            let run = world.send(&packet);
            run.expect(&way.forwards(world, CLIENT, &packet, Reason::Established));
        }
        assert!(world.entry(CLIENT.key()).is_live(), "{way:?}");
        // But not the next one from the same address.
        is_refused(world, from_port(1_000), Reason::Denied);
        assert_eq!(world.source(CLIENT), Source::default());
    });
}

fn a_port_used_again_by_who_is_denied_changes_nothing() {
    each(|way, world| {
        let data = established(way, world);
        let before = world.values();
        world.list_all(Denied);
        for syn in shapes(&CLIENT.syn().seq(0xdead_beef)) {
            world.send(&syn).expect(&dropped(Reason::Denied));
            assert_eq!(world.values(), before, "{way:?}");
        }
        let run = world.send(&data);
        run.expect(&way.forwards(world, CLIENT, &data, Reason::Established));
        // Once it is let in again, it is what it would have been.
        world.list_all(Allowed);
        let again = CLIENT.syn().seq(0xdead_beef);
        assert_eq!(world.send(&again).reason(), Reason::Challenged, "{way:?}");
    });
}

fn a_challenger_goes_on_when_its_client_is_denied() {
    each(|way, world| {
        established(way, world);
        let again = CLIENT.syn().seq(0xdead_beef);
        assert_eq!(world.send(&again).reason(), Reason::Challenged);
        world.list_all(Denied);
        assert_eq!(world.send(&again).reason(), Reason::Reopened, "{way:?}");
        let third = CLIENT.syn().seq(0xfeed_beef);
        world.send(&third).expect(&dropped(Reason::Denied));
    });
}

/// What is found out of one packet is nothing to the next, whichever way they take.
fn each_packet_is_asked_about_by_itself() {
    each(|way, world| {
        world.list(&[(ZERO, Allowed), (OTHER.0, Denied)]);
        for (n, tags) in (0..).zip([0, 1, 0, 2, 1]) {
            for client in [from_port(1_000 + n), OTHER, OTHER] {
                let mut syn = client.syn();
                for _ in 0..tags {
                    syn = syn.tagged(0x8100, 7);
                }
                let expected = if client == OTHER {
                    Reason::Denied
                } else {
                    Reason::Opened
                };
                assert_eq!(world.send(&syn).reason(), expected, "{way:?}");
            }
            // Nor is it where a flow that is known passes by in between.
            let known = from_port(1_000 + n).syn().tagged(0x8100, 7);
            assert_eq!(world.send(&known).reason(), Reason::Reopened);
            is_refused(world, OTHER, Reason::Denied);
        }
    });
}
