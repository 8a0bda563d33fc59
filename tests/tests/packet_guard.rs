//! Guards of services: whom a service takes new flows from, how many of one source, and that no flow that has an entry meets its guard.

use std::{net::Ipv4Addr, sync::atomic::Ordering::SeqCst, time::Duration};

use lab::packet::{
    BackendSpec, CLIENT, Client, Expect, Packet, SERVICE, VIP, World, answered, dropped,
    entries::backend,
    forwarded,
    guard::{COST, Limits},
    kernel::FLOW_SEED,
    on_wire, reset_output, version,
};
use lb_common::{
    flow::{
        bucket::homes,
        word::{State, Word},
    },
    guard::{
        Guard,
        Listed::{self, Allowed, Denied, NotAllowed},
        Range, RangesRef, Source, fingerprint, in_order, source_word,
        sources::Part,
    },
    net::{Address, IpVersion},
    service::Service,
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

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
    a_source_opens_a_burst_and_then_at_its_rate,
    a_syn_again_costs_nothing,
    sources_do_not_disturb_each_other,
    a_prefix_is_one_source,
    services_do_not_disturb_each_other,
    a_source_has_so_many_flows_at_a_time,
    a_port_used_again_needs_no_room,
    what_is_over_makes_no_room,
    what_is_over_hides_nothing_that_is_open,
    what_is_adopted_is_a_flow_of_its_source,
    what_may_be_an_established_flow_of_a_full_source_is_served_or_told,
    what_is_not_adopted_is_counted_for_nobody,
    what_ends_is_held_to_no_limit,
    rate_and_flows_are_both_asked,
    where_there_is_no_place_for_a_source_it_is_let_in,
    an_idle_source_makes_place_for_another,
    who_owes_another_service_for_longer_keeps_its_place,
    a_limit_of_zero_is_none,
    corrupt_maps_do_no_harm,
    what_is_not_adopted_while_the_table_is_held_is_counted_for_nobody,
    a_service_that_places_clients_is_guarded,
    a_guard_that_no_service_has_is_not_asked,
    without_guards_nothing_of_them_is_there,
];

/// How the service's backend is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    L2,
    Ipip,
    Nat,
    Dnat,
    Local,
}

const WAYS: [Way; 5] = [Way::L2, Way::Ipip, Way::Nat, Way::Dnat, Way::Local];

impl Way {
    fn backend(self) -> BackendSpec {
        match self {
            Self::L2 => BackendSpec::l2(1),
            Self::Ipip => BackendSpec::ipip(1),
            Self::Nat => BackendSpec::nat(1),
            Self::Dnat => BackendSpec::dnat(1),
            Self::Local => BackendSpec::ipip(1).local(),
        }
    }

    fn translates(self) -> bool {
        matches!(self, Self::Nat | Self::Dnat)
    }

    /// A world whose service has one backend, reached so.
    fn world(self) -> World {
        let backend = self.backend();
        if self.translates() {
            let world = World::guarding_translating();
            world.translate(&backend, SERVICE);
            return world;
        }
        let world = World::guarding();
        if self == Self::Local {
            world.endpoint(&backend, SERVICE);
        } else {
            world.backend(&backend);
        }
        world
    }

    /// What becomes of a client's segment that the backend gets. In modes that translate the flow has an entry by then.
    fn forwards(self, world: &World, client: Client, packet: &Packet, reason: Reason) -> Expect {
        let backend = self.backend();
        match self {
            Self::L2 => forwarded(reason, 1, backend.l2_output(packet)),
            Self::Ipip => forwarded(reason, 1, backend.ipip_output(packet)),
            Self::Nat | Self::Dnat => world.flow(client).to_backend(&backend, packet, reason),
            Self::Local => forwarded(reason, 1, backend.given(packet).bytes()).left_to_the_host(),
        }
    }
}

fn each(check: impl Fn(Way, &World)) {
    for way in WAYS {
        check(way, &way.world());
    }
}

/// A world of mode `l2`.
fn world() -> World {
    Way::L2.world()
}

/// A connection of the client's from another port.
fn from_port(port: u16) -> Client {
    Client(CLIENT.0, port)
}

/// A client that is another source, in both versions of IP.
const OTHER: Client = Client(Ipv4Addr::new(203, 0, 113, 9), 40_000);

fn at(a: u8, b: u8, c: u8, d: u8) -> Client {
    Client(Ipv4Addr::new(a, b, c, d), 40_000)
}

const ZERO: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

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

/// The reason for which a client's SYN is counted. Its entry is gone afterwards, that there be room.
fn reason_of(world: &World, client: Client) -> Reason {
    let reason = world.send(&client.syn()).reason();
    let has_opened = reason == Reason::Opened;
    assert_eq!(world.entries(client.key()).len(), usize::from(has_opened));
    for (place, _) in world.entries(client.key()) {
        world.set_value(place, Word::EMPTY);
    }
    reason
}

fn opens(world: &World, client: Client) {
    assert_eq!(world.send(&client.syn()).reason(), Reason::Opened);
}

fn is_refused(world: &World, client: Client, reason: Reason) {
    world.send(&client.syn()).expect(&dropped(reason));
    assert_eq!(world.entries(client.key()), []);
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

/// A flow in the midst of its life, and its next segment.
fn established(way: Way, world: &World) -> Packet {
    if way.translates() {
        return world.open(CLIENT).ack().payload(b"data");
    }
    opens(world, CLIENT);
    let ack = CLIENT.ack();
    assert_eq!(world.send(&ack).reason(), Reason::Established);
    ack.payload(b"data")
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

fn a_source_opens_a_burst_and_then_at_its_rate() {
    each(|way, world| {
        world.limit(&Limits::burst(3));
        for port in 1_000..1_003 {
            let client = from_port(port);
            let syn = client.syn();
            let run = world.send(&syn);
            run.expect(&way.forwards(world, client, &syn, Reason::Opened));
        }
        for port in 1_003..1_006 {
            is_refused(world, from_port(port), Reason::SourceRate);
        }
        // One more in each span of time, and no more than the burst.
        for (passed, expected) in [(1, 1), (2, 2), (0, 0), (100, 3)] {
            world.let_pass(CLIENT, COST * passed);
            for n in 0..5 {
                let client = from_port(2_000 + n);
                if n < expected {
                    opens(world, client);
                } else {
                    is_refused(world, client, Reason::SourceRate);
                }
            }
            for n in 0..expected {
                let (place, _) = world.placed(from_port(2_000 + n).key());
                world.set_value(place, Word::EMPTY);
            }
        }
        // What is in mid-stream, or ends, is no new flow.
        assert_ne!(
            world.send(&from_port(3_000).ack()).reason(),
            Reason::SourceRate
        );
        let rst = from_port(3_001).sends(RST);
        assert_ne!(world.send(&rst).reason(), Reason::SourceRate);
        assert_eq!(world.source(CLIENT).flows, 0);
    });
}

fn a_syn_again_costs_nothing() {
    each(|_, world| {
        world.limit(&Limits {
            flows: 1,
            ..Limits::burst(1)
        });
        opens(world, CLIENT);
        let before = world.source(CLIENT);
        for _ in 0..3 {
            assert_eq!(world.send(&CLIENT.syn()).reason(), Reason::Reopened);
        }
        assert_eq!(world.source(CLIENT), before);
        is_refused(world, from_port(1_000), Reason::SourceRate);
    });
}

fn sources_do_not_disturb_each_other() {
    let world = world();
    world.limit(&Limits {
        flows: 2,
        ..Limits::burst(3)
    });
    for n in 0..2 {
        opens(&world, from_port(1_000 + n));
        opens(&world, Client(OTHER.0, 1_000 + n));
    }
    for client in [CLIENT, OTHER] {
        // This one is paid for, and one too many all the same.
        is_refused(&world, client, Reason::SourceFull);
        is_refused(&world, client, Reason::SourceRate);
        assert_eq!(world.source(client).flows, 2 << 32);
    }
    world.let_pass(OTHER, COST);
    world.change_source(OTHER, |source| source.flows = 1);
    is_refused(&world, CLIENT, Reason::SourceRate);
    opens(&world, OTHER);
    is_refused(&world, CLIENT, Reason::SourceRate);
    is_refused(&world, from_port(9), Reason::SourceRate);
}

fn a_prefix_is_one_source() {
    let world = world();
    world.limit(&Limits {
        prefix: [24, 48],
        ..Limits::flows(2)
    });
    // In IPv6 the first two numbers are in the first 48 bits, and the others in the last 32.
    opens(&world, at(198, 51, 100, 1));
    opens(&world, at(198, 51, 100, 254));
    is_refused(&world, at(198, 51, 100, 7), Reason::SourceFull);
    let beyond = match version() {
        IpVersion::V4 => at(198, 51, 101, 7),
        IpVersion::V6 => at(198, 52, 100, 7),
    };
    opens(&world, beyond);
    assert_eq!(world.source(beyond).flows, 1 << 32);
    // What is said of it for people is what they have in common.
    let word = world.source(CLIENT).word;
    match version() {
        IpVersion::V4 => assert_eq!(word, 0xffff_c633_6400),
        IpVersion::V6 => assert_eq!(word, 0x2001_0db8_c633_0000),
    }
}

fn services_do_not_disturb_each_other() {
    let mut world = world();
    world.list_all(Denied);
    world.limit(&Limits::flows(1));
    world.service(2, VIP, 444, &[2]);
    let to_second = |client: Client| client.syn().with_tcp(|tcp| tcp.destination_port = 444);
    // It has no guard.
    let syn = to_second(CLIENT);
    let output = BackendSpec::l2(2).l2_output(&syn);
    world
        .send(&syn)
        .expect(&forwarded(Reason::Opened, 2, output).of_service(2));
    is_refused(&world, CLIENT, Reason::Denied);

    // Another one, whose sources are others though they have the same addresses.
    world.list_all(Allowed);
    let guard = Guard {
        ranges: 0,
        flows: 2,
        ..world.maps.guards.get(u32::from(SERVICE))
    };
    world.maps.guards.set(2, &guard);
    let mut record = world.maps.services.get(2);
    record.traits |= Service::GUARDED;
    world.maps.services.set(2, &record);
    for n in 0..2 {
        assert_eq!(
            world.send(&to_second(from_port(1_000 + n))).reason(),
            Reason::Opened
        );
    }
    world
        .send(&to_second(from_port(1_002)))
        .expect(&dropped(Reason::SourceFull).of_service(2));
    opens(&world, CLIENT);
    is_refused(&world, from_port(1_003), Reason::SourceFull);
}

fn a_source_has_so_many_flows_at_a_time() {
    each(|way, world| {
        world.limit(&Limits::flows(2));
        for port in [1_000, 1_001] {
            let client = from_port(port);
            let syn = client.syn();
            let run = world.send(&syn);
            run.expect(&way.forwards(world, client, &syn, Reason::Opened));
        }
        is_refused(world, CLIENT, Reason::SourceFull);
        assert_eq!(world.source(CLIENT).flows, 2 << 32);
        assert_eq!(world.source(CLIENT).paid_ns, 0);
        // The daemon has counted both; then one of them; then none.
        world.change_source(CLIENT, |source| source.flows = 2);
        is_refused(world, CLIENT, Reason::SourceFull);
        world.change_source(CLIENT, |source| source.flows = 1);
        opens(world, from_port(1_002));
        is_refused(world, CLIENT, Reason::SourceFull);
        assert_eq!(world.source(CLIENT).flows, 1 | 1 << 32);
        world.change_source(CLIENT, |source| source.flows = 0);
        opens(world, from_port(1_003));
        opens(world, from_port(1_004));
        is_refused(world, CLIENT, Reason::SourceFull);
    });
}

/// One flow takes another's place: the source has no more than before.
fn a_port_used_again_needs_no_room() {
    each(|way, world| {
        world.limit(&Limits::flows(1));
        established(way, world);
        let before = world.source(CLIENT);
        assert_eq!(before.flows, 1 << 32, "{way:?}");
        is_refused(world, from_port(1_000), Reason::SourceFull);
        let again = CLIENT.syn().seq(0xdead_beef);
        assert_eq!(world.send(&again).reason(), Reason::Challenged, "{way:?}");
        assert_eq!(world.send(&again).reason(), Reason::Reopened, "{way:?}");
        assert_eq!(world.source(CLIENT), before);
        is_refused(world, from_port(1_000), Reason::SourceFull);
    });
    // Nor does another SYN than that which nobody has answered yet; but each costs what a new flow costs.
    let world = world();
    world.limit(&Limits {
        flows: 1,
        ..Limits::burst(3)
    });
    opens(&world, CLIENT);
    for isn in [0xdead_beef, 0xfeed_beef] {
        let other = CLIENT.syn().seq(isn);
        assert_eq!(world.send(&other).reason(), Reason::Reopened);
        assert_eq!(world.source(CLIENT).flows, 1 << 32);
    }
    world
        .send(&CLIENT.syn().seq(0xbeef_beef))
        .expect(&dropped(Reason::SourceRate));
}

/// What is closing is no flow of its source's any more: who opens another on its port has one more.
fn what_is_over_makes_no_room() {
    let world = world();
    world.limit(&Limits::flows(1));
    let closing = Word::live(State::Closing, backend(1), 0, world.now(), 0);
    let place = world.places_of(CLIENT.key()).next().expect("it has places");
    world.put(place, CLIENT.key(), closing);
    opens(&world, from_port(1_000));
    let again = CLIENT.syn().seq(0xdead_beef);
    world.send(&again).expect(&dropped(Reason::SourceFull));
    world.change_source(CLIENT, |source| source.flows = 0);
    assert_eq!(world.send(&again).reason(), Reason::Challenged);
    assert_eq!(world.source(CLIENT).flows, 1 << 32);
}

/// Of two entries of a port it is the open one whose place another takes, whichever is found first.
fn what_is_over_hides_nothing_that_is_open() {
    // The newer one is marked, as whose SYN came beside the other.
    let over = (State::Closing, 0);
    let open = (State::Pin, Word::SECOND);
    for pair in [[over, open], [open, over]] {
        let world = world();
        world.limit(&Limits::flows(1));
        let places: Vec<_> = world.places_of(CLIENT.key()).collect();
        for (place, (state, flags)) in places.into_iter().zip(pair) {
            let word = Word::live(state, backend(1), 0, world.now(), flags);
            world.put(place, CLIENT.key(), word);
        }
        opens(&world, from_port(1_000));
        let before = world.source(CLIENT);
        assert_eq!(before.flows, 1 << 32);
        let again = CLIENT.syn().seq(0xdead_beef);
        assert_eq!(world.send(&again).reason(), Reason::Challenged);
        assert_eq!(world.source(CLIENT), before);
    }
}

fn what_is_adopted_is_a_flow_of_its_source() {
    for way in [Way::L2, Way::Ipip, Way::Dnat, Way::Local] {
        let world = way.world();
        world.limit(&Limits::flows(2));
        for (port, tags) in [(1_000, 0), (1_001, 1)] {
            let client = from_port(port);
            let mut ack = client.ack();
            for _ in 0..tags {
                ack = ack.tagged(0x8100, 7);
            }
            let run = world.send(&ack);
            run.expect(&way.forwards(&world, client, &ack, Reason::Adopted));
            // The next one is established.
            let data = client.ack().payload(b"data");
            let run = world.send(&data);
            run.expect(&way.forwards(&world, client, &data, Reason::Established));
        }
        assert_eq!(world.source(CLIENT).flows, 2 << 32, "{way:?}");
        is_refused(&world, CLIENT, Reason::SourceFull);
        world.change_source(CLIENT, |source| source.flows = 1);
        assert_eq!(world.send(&CLIENT.ack()).reason(), Reason::Adopted);
        assert_eq!(world.source(CLIENT).flows, 1 | 1 << 32);
    }
}

/// A flow's entry may be lost, and its source have others instead meanwhile: then it goes on by the table, or, where it cannot, its client learns of it.
fn what_may_be_an_established_flow_of_a_full_source_is_served_or_told() {
    for way in WAYS {
        let world = way.world();
        world.save_resets(10);
        world.limit(&Limits::flows(1));
        opens(&world, from_port(1_000));
        let before = world.source(CLIENT);
        let plain = CLIENT.ack().payload(b"data");
        for data in [plain.clone(), plain.tagged(0x8100, 7)] {
            let run = world.send(&data);
            if matches!(way, Way::L2 | Way::Ipip) {
                run.expect(&way.forwards(&world, CLIENT, &data, Reason::Stray));
            } else {
                let output = reset_output(&data);
                run.expect(&answered(Reason::UnknownFlow, output).of_backend(1));
            }
        }
        assert_eq!(world.entries(CLIENT.key()), [], "{way:?}");
        assert_eq!(world.source(CLIENT), before);
        // That is of this segment alone.
        world.change_source(CLIENT, |source| source.flows = 0);
        if way != Way::Nat {
            assert_eq!(world.send(&CLIENT.ack()).reason(), Reason::Adopted);
        }
    }
}

/// A flow that finds no place is unknown with each of its segments.
fn what_is_not_adopted_is_counted_for_nobody() {
    let world = world();
    world.limit(&Limits::flows(1));
    let pin = Word::live(State::Pin, backend(1), 0, world.now(), 0);
    let others: Vec<Client> = world.neighbours(CLIENT).take(8).collect();
    for (place, other) in world.places_of(CLIENT.key()).zip(others) {
        world.put(place, other.key(), pin);
    }
    let data = CLIENT.ack().payload(b"data");
    for _ in 0..5 {
        let output = BackendSpec::l2(1).l2_output(&data);
        world
            .send(&data)
            .expect(&forwarded(Reason::Unadopted, 1, output));
        assert_eq!(world.source(CLIENT).flows, 0);
    }
    // What another service adopts next is not this source's.
    assert_eq!(world.send(&OTHER.ack()).reason(), Reason::Adopted);
    assert_eq!(world.source(CLIENT).flows, 0);
    assert_eq!(world.source(OTHER).flows, 1 << 32);
}

fn what_ends_is_held_to_no_limit() {
    each(|way, world| {
        world.limit(&Limits {
            flows: 1,
            ..Limits::burst(1)
        });
        opens(world, from_port(1_000));
        let before = world.source(CLIENT);
        for flags in [RST, FIN | ACK] {
            let reason = world.send(&CLIENT.sends(flags)).reason();
            let is_limited = matches!(reason, Reason::SourceFull | Reason::SourceRate);
            assert!(!is_limited, "{way:?} {flags:#x}: {reason:?}");
        }
        assert_eq!(world.source(CLIENT), before);
    });
}

fn rate_and_flows_are_both_asked() {
    let world = world();
    world.limit(&Limits {
        flows: 1,
        ..Limits::burst(3)
    });
    opens(&world, from_port(1_000));
    // Each of these has paid, in vain.
    is_refused(&world, CLIENT, Reason::SourceFull);
    is_refused(&world, CLIENT, Reason::SourceFull);
    is_refused(&world, CLIENT, Reason::SourceRate);
    // Lists come first.
    world.list_all(NotAllowed);
    is_refused(&world, CLIENT, Reason::NotAllowed);
}

fn where_there_is_no_place_for_a_source_it_is_let_in() {
    let world = world();
    world.limit(&Limits {
        flows: 1,
        ..Limits::burst(1)
    });
    world.crowd_sources();
    let before = world.sources();
    for n in 0..5 {
        opens(&world, from_port(1_000 + n));
        assert_eq!(
            world.send(&from_port(2_000 + n).ack()).reason(),
            Reason::Adopted
        );
    }
    assert_eq!(world.sources(), before);
    // The lists hold all the same.
    world.list_all(Denied);
    is_refused(&world, CLIENT, Reason::Denied);
}

fn an_idle_source_makes_place_for_another() {
    let world = world();
    world.limit(&Limits {
        flows: 1,
        ..Limits::burst(1)
    });
    world.crowd_sources();
    // One of its second home has no flow any more.
    let (home, idle) = (second_home(&world), 2);
    let word = idle as usize * 4 + Part::Flows as usize;
    world.maps.sources.word(home, word).store(0, SeqCst);
    opens(&world, CLIENT);
    let (bucket, way, source) = world.source_at(CLIENT).expect("it has the place");
    assert_eq!((bucket, way), (home, idle));
    assert_eq!(source.flows, 1 << 32);
    assert_ne!(source.paid_ns, 0);
    is_refused(&world, from_port(1_000), Reason::SourceRate);
}

fn who_owes_another_service_for_longer_keeps_its_place() {
    let world = world();
    world.limit(&Limits::burst(1));
    opens(&world, from_port(1_000));
    let now_ns = world.source(CLIENT).paid_ns;
    world.crowd_sources();
    // One of its second home has no flow any more, and has paid twice as long ago as sources of this service can owe.
    let (home, other) = (second_home(&world), 2);
    let word = |part: Part| other * 4 + part as usize;
    let paid_ns = now_ns.wrapping_sub(2 * COST.as_nanos() as u64);
    let store = |part, value| {
        let cell = world.maps.sources.word(home, word(part));
        cell.store(value, SeqCst);
    };
    store(Part::Flows, 0);
    store(Part::Paid, paid_ns);
    let before = world.sources();
    world.change_guard(|guard| guard.longest_burst_ns *= 3);
    for port in 1_001..1_004 {
        opens(&world, from_port(port));
    }
    assert_eq!(world.sources(), before);
    world.change_guard(|guard| guard.longest_burst_ns = guard.burst_ns);
    opens(&world, from_port(1_004));
    let (bucket, way, _) = world.source_at(CLIENT).expect("it has the place");
    assert_eq!((bucket, way as usize), (home, other));
    is_refused(&world, from_port(1_005), Reason::SourceRate);
}

/// The bucket that is looked at last for the client's source, if each address is one.
fn second_home(world: &World) -> u32 {
    let address = in_order(Address::from(on_wire(CLIENT.0)).words());
    let word = source_word(address, version() == IpVersion::V6);
    let own = fingerprint(word, SERVICE, &FLOW_SEED);
    homes(own, world.maps.sources.len())[1]
}

fn a_limit_of_zero_is_none() {
    let world = world();
    world.limit(&Limits::NONE);
    for n in 0..10 {
        opens(&world, from_port(1_000 + n));
        assert_eq!(
            world.send(&from_port(2_000 + n).ack()).reason(),
            Reason::Adopted
        );
    }
    assert_eq!(world.source_at(CLIENT), None);
}

fn corrupt_maps_do_no_harm() {
    let world = world();
    world.list_all(Denied);
    // A reference beyond the map, or into what is no list of ranges: nobody is kept out.
    for ranges in [
        RangesRef(u64::MAX),
        RangesRef::new(u32::MAX, 1),
        RangesRef::new(64, 1),
        RangesRef::new(64, 9),
        RangesRef::new(3, u32::MAX),
        RangesRef::new(0, 1 << 25),
        RangesRef::new(3, 0),
    ] {
        world.change_guard(|guard| guard.ranges = ranges.0);
        assert_eq!(reason_of(&world, CLIENT), Reason::Opened, "{ranges:?}");
    }
    // What the list says is none of what it can say, or it begins too late.
    for (first, listed) in [([0; 2], 3), ([0; 2], u64::MAX), ([u64::MAX; 2], 1)] {
        let range = Range { first, listed };
        world.maps.ranges.set(3, &range);
        world.change_guard(|guard| guard.ranges = RangesRef::new(3, 1).0);
        assert_eq!(reason_of(&world, CLIENT), Reason::Opened, "{range:?}");
    }
    // Sources with nonsense: whatever is made of them, it ends.
    world.limit(&Limits {
        flows: 3,
        ..Limits::burst(3)
    });
    for nonsense in [u64::MAX, 1, 1 << 63, 0x5a5a_5a5a_5a5a_5a5a] {
        for bucket in 0..world.maps.sources.len() {
            for word in world.maps.sources.words(bucket) {
                word.store(nonsense, SeqCst);
            }
        }
        assert_eq!(reason_of(&world, CLIENT), Reason::Opened, "{nonsense:#x}");
    }
    // As with a guard of nonsense.
    world.maps.guards.set(
        u32::from(SERVICE),
        &Guard {
            ranges: u64::MAX,
            cost_ns: u64::MAX,
            burst_ns: u64::MAX,
            mask: 0x5a5a_5a5a_5a5a_5a5a,
            flows: u32::MAX,
            reserved: u32::MAX,
            longest_burst_ns: u64::MAX,
            rest: [u64::MAX; 2],
        },
    );
    let reason = world.send(&from_port(5_000).syn()).reason();
    assert!(matches!(reason, Reason::Opened | Reason::SourceRate));
}

fn what_is_not_adopted_while_the_table_is_held_is_counted_for_nobody() {
    let world = world();
    world.limit(&Limits::flows(1));
    world.hold(Duration::from_secs(60));
    for _ in 0..3 {
        assert_eq!(world.send(&CLIENT.ack()).reason(), Reason::Unadopted);
    }
    assert_eq!(world.source(CLIENT).flows, 0);
}

fn a_service_that_places_clients_is_guarded() {
    let world = world();
    world.place_clients(SERVICE);
    world.keep(CLIENT, SERVICE, backend(2));
    world.list(&[(ZERO, Allowed), (OTHER.0, Denied)]);
    let syn = CLIENT.syn();
    let output = BackendSpec::l2(2).l2_output(&syn);
    world
        .send(&syn)
        .expect(&forwarded(Reason::Opened, 2, output));
    is_refused(&world, OTHER, Reason::Denied);
}

fn a_guard_that_no_service_has_is_not_asked() {
    each(|_, world| {
        world.list_all(Denied);
        let mut record = world.maps.services.get(u32::from(SERVICE));
        record.traits &= !Service::GUARDED;
        world.maps.services.set(u32::from(SERVICE), &record);
        opens(world, CLIENT);
    });
}

fn without_guards_nothing_of_them_is_there() {
    let guards = |world: &World| {
        let programs = world.programs().into_iter();
        programs.filter(|name| name.starts_with("guard")).count()
    };
    let world = World::new();
    assert_eq!(guards(&world), 0);
    world.list_all(Denied);
    world.limit(&Limits::flows(1));
    for n in 0..3 {
        let client = from_port(1_000 + n);
        let syn = client.syn();
        let output = BackendSpec::l2(1).l2_output(&syn);
        world
            .send(&syn)
            .expect(&forwarded(Reason::Opened, 1, output));
    }
    assert_eq!(world.source_at(CLIENT), None);
    drop(world);

    let world = World::guarding();
    assert_eq!(guards(&world), 2);
}
