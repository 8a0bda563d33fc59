//! Guards of services: whom a service takes new flows from, how many of one source, and that no flow that has an entry meets its guard.

mod limits;
mod lists;

use std::{net::Ipv4Addr, sync::atomic::Ordering::SeqCst};

use lab::packet::{
    BackendSpec, CLIENT, Client, Expect, Packet, SERVICE, VIP, World, dropped, entries::backend,
    forwarded, guard::Limits,
};
use lb_common::{
    flow::word::Word,
    guard::{
        Guard,
        Listed::{Allowed, Denied},
        Range, RangesRef,
    },
    service::Service,
    verdict::Reason,
};

lab::in_both_versions![
    services_do_not_disturb_each_other,
    corrupt_maps_do_no_harm,
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
