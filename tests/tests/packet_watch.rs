//! A program that watches does with every packet what the other does, and tells of it once.

use std::sync::{Mutex, MutexGuard, PoisonError, atomic::Ordering};

use lab::packet::{
    BackendSpec, CLIENT, Client, Packet, SERVICE, VIP, World,
    entries::backend,
    guard::Limits,
    kernel::{ELSEWHERE, INGRESS, INSTANCE, action},
    nat::{NARROW, TAGGED},
    on_wire,
};
use lb_common::{
    flow::word::{State, YOUNG_TICKS},
    guard::Listed,
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
    watch::{ANY, Filter, Head, MOST_KEPT},
};
use lb_userspace::dataplane::{
    array::{Array, Entry},
    kernel::{Loaded, bpf::set_device, run_once, tap::Tapped},
    maps::{Capacity, Maps, now_ns},
};

/// Packets that were told of: what is said of each, and its first bytes.
type Told = Vec<(Head, Vec<u8>)>;

lab::in_both_versions![
    what_is_watched_is_steered_as_ever_and_told_of_once,
    what_is_translated_and_watched_is_steered_as_ever,
    of_a_translated_flow_both_directions_are_in_the_sample_or_none_is,
    what_is_guarded_and_watched_is_steered_as_ever,
    what_places_clients_and_is_watched_is_steered_as_ever,
    what_a_guard_refuses_is_told_of,
    only_what_is_wanted_is_told_of,
];

/// Programs that watch, which are shown the state of a [`World`] before each packet.
struct Watching {
    loaded: Loaded,
    tapped: Tapped,
}

impl Watching {
    /// Those for a world, to be had by one test at a time, and nobody listens. They are loaded once a process for all worlds of a capacity, since the kernel
    /// takes many seconds to verify them.
    fn of(world: &World) -> MutexGuard<'static, Self> {
        static LOADED: Mutex<Vec<(Capacity, &'static Mutex<Watching>)>> = Mutex::new(Vec::new());
        let capacity = world.maps.capacity;
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let found = loaded.iter().find(|(of, _)| *of == capacity);
        let watching = match found.map(|(_, watching)| *watching) {
            Some(watching) => watching,
            None => {
                let watching: &'static Mutex<Self> =
                    Box::leak(Box::new(Mutex::new(Self::load(capacity))));
                loaded.push((capacity, watching));
                watching
            }
        };
        drop(loaded);
        let mut watching = watching.lock().unwrap_or_else(PoisonError::into_inner);
        for place in 0..watching.tapped.listeners.len() {
            // A filter whose time is over: nobody listens.
            watching.tapped.listeners.set(place, &ALL);
        }
        drop(watching.told());
        watching
    }

    fn load(capacity: Capacity) -> Self {
        let (loaded, tapped) = Tapped::private(capacity, INSTANCE).expect("the kernel takes it");
        set_device(loaded.egress_fd(), ELSEWHERE, INGRESS).expect("admitting an interface");
        Self { loaded, tapped }
    }

    fn listen(&self, place: u32, filter: &Filter) {
        let until_ns = now_ns() + 600_000_000_000;
        self.tapped.listeners.set(
            place,
            &Filter {
                until_ns,
                ..*filter
            },
        );
    }

    fn copy(&self, from: &Maps) {
        fn copy<T: Entry>(from: &Array<T>, to: &Array<T>) {
            for index in 0..from.len() {
                for (from, to) in from.words(index).iter().zip(to.words(index)) {
                    to.store(from.load(Ordering::SeqCst), Ordering::SeqCst);
                }
            }
        }
        let to = self.loaded.maps();
        copy(&from.flows4, &to.flows4);
        copy(&from.facts4, &to.facts4);
        copy(&from.nat4, &to.nat4);
        copy(&from.flows6, &to.flows6);
        copy(&from.facts6, &to.facts6);
        copy(&from.nat6, &to.nat6);
        copy(&from.slots, &to.slots);
        copy(&from.hold, &to.hold);
        copy(&from.tables, &to.tables);
        copy(&from.services, &to.services);
        copy(&from.backends, &to.backends);
        copy(&from.vips4, &to.vips4);
        copy(&from.vips6, &to.vips6);
        copy(&from.endpoints, &to.endpoints);
        copy(&from.endpoints4, &to.endpoints4);
        copy(&from.endpoints6, &to.endpoints6);
        copy(&from.pairs, &to.pairs);
        copy(&from.ports, &to.ports);
        copy(&from.links, &to.links);
        copy(&from.affinities, &to.affinities);
        copy(&from.guards, &to.guards);
        copy(&from.ranges, &to.ranges);
        copy(&from.sources, &to.sources);
        copy(&from.cpus, &to.cpus);
    }

    /// What was told since this was asked last.
    fn told(&mut self) -> Told {
        std::iter::from_fn(|| {
            let item = self.tapped.told.next()?;
            let (head, data) = Head::split(&item).expect("a whole record");
            Some((head, data.to_vec()))
        })
        .collect()
    }

    /// Sends a packet to both, and compares. Gives what was told.
    fn compare(&mut self, world: &World, packet: &Packet) -> (Reason, Option<u32>, Told) {
        world.now();
        self.copy(&world.maps);
        let frame = packet.bytes();
        let (did, left) = run_once(self.loaded.program(), INGRESS, &frame).expect("it runs");
        let run = world.send(packet);
        let reason = run.reason();
        assert_eq!(did, run.outcome.action, "{reason:?}: {packet:?}");
        // A SNAT port is chosen by chance.
        let is_new = matches!(
            reason,
            Reason::Opened | Reason::Challenged | Reason::Reopened
        );
        if did != action::DROP && !(is_new && world.translates()) {
            assert!(
                left == run.outcome.output,
                "another frame leaves: {packet:?}"
            );
        }
        (reason, run.backend(), self.told())
    }
}

/// Everything, until a time that is over.
const ALL: Filter = Filter {
    until_ns: 0,
    reasons: u64::MAX,
    prefix: [0; 2],
    mask: [0; 2],
    service: ANY,
    backend: ANY,
    sample: u32::MAX,
    by_flow: 0,
    kept: MOST_KEPT,
    changes: 0,
    reserved: [0; 7],
};

fn shapes() -> Vec<Packet> {
    let mut shapes: Vec<Packet> = [SYN, ACK, ACK, FIN | ACK, RST, SYN | ACK, 0, SYN]
        .into_iter()
        .map(|flags| CLIENT.sends(flags).seq(1 << 20))
        .collect();
    shapes.extend([
        CLIENT.ack().payload(&[7; 1_000]),
        CLIENT.ack().ttl(1),
        CLIENT.ack().tagged(0x8100, 0x2001).tagged(0x88a8, 7),
        CLIENT.syn().fragment(0x00ff),
        Packet::tcp((CLIENT.0, CLIENT.1), (VIP, 444), SYN),
    ]);
    shapes
}

fn steered(world: &World) {
    let mut watching = Watching::of(world);
    // While nobody listens, nothing is told.
    let (_, _, told) = watching.compare(world, &CLIENT.syn());
    assert_eq!(told, []);
    watching.listen(2, &ALL);
    for packet in shapes() {
        let (reason, backend, told) = watching.compare(world, &packet);
        let [(head, data)] = &told[..] else {
            panic!("{reason:?} was told of {} times: {packet:?}", told.len());
        };
        assert_eq!(Reason::from_code(head.reason as u8), Some(reason));
        assert_eq!(*data, packet.bytes(), "as it came in");
        assert_eq!(
            (head.ifindex, head.listeners, head.length as usize),
            (INGRESS, 4, data.len())
        );
        assert_eq!(head.backend, backend.unwrap_or(ANY), "{packet:?}");
        if reason != Reason::Fragment {
            assert_eq!(head.source, on_wire(CLIENT.0).into());
            assert_eq!(head.destination, on_wire(VIP).into());
        }
        if reason != Reason::NotService && reason != Reason::Fragment {
            assert_eq!(head.service, u32::from(SERVICE), "{packet:?}");
        }
    }
}

fn what_is_watched_is_steered_as_ever_and_told_of_once() {
    for spec in [BackendSpec::l2, BackendSpec::ipip] {
        steered(&World::with(&spec(1)));
    }
}

fn what_is_translated_and_watched_is_steered_as_ever() {
    let world = World::with_translating(&BackendSpec::nat(1));
    steered(&world);
    // A reply is its client's, though it does not name him.
    let client = Client(CLIENT.0, 41_000);
    let flow = world.open(client);
    let mut watching = Watching::of(&world);
    watching.listen(
        0,
        &Filter {
            reasons: Filter::bit(Reason::Reply),
            ..ALL
        },
    );
    let (reason, backend, told) = watching.compare(&world, &flow.replies(FIN | ACK));
    assert_eq!(reason, Reason::Reply);
    let head = told[0].0;
    assert_eq!(
        (head.destination, head.client_port),
        (on_wire(client.0).into(), 41_000)
    );
    assert_eq!(Some(head.backend), backend);
}

fn of_a_translated_flow_both_directions_are_in_the_sample_or_none_is() {
    const PARTS: u32 = 16;
    for mode in [BackendSpec::nat, BackendSpec::dnat] {
        let world = World::with_translating(&mode(1));
        world.link(0);
        let flows = [CLIENT, NARROW, TAGGED].map(|client| world.open(client));
        let mut watching = Watching::of(&world);
        let mut heard = Vec::new();
        // From hardly a flow to all of them.
        for part in 0..=PARTS {
            watching.listen(
                0,
                &Filter {
                    sample: u32::MAX / PARTS * part,
                    by_flow: 1,
                    ..ALL
                },
            );
            for flow in &flows {
                let (sent, _, there) = watching.compare(&world, &flow.ack());
                let (returned, _, back) = watching.compare(&world, &flow.replies(ACK));
                assert_eq!((sent, returned), (Reason::Established, Reason::Reply));
                heard.push([there.len(), back.len()]);
            }
        }
        assert!(
            heard.iter().all(|both| matches!(both, [0, 0] | [1, 1])),
            "{heard:?}"
        );
        assert!(
            heard.contains(&[0, 0]) && heard.contains(&[1, 1]),
            "{heard:?}"
        );
    }
}

fn what_is_guarded_and_watched_is_steered_as_ever() {
    for translates in [false, true] {
        let world = if translates {
            let world = World::guarding_translating();
            world.translate(&BackendSpec::nat(1), SERVICE);
            world
        } else {
            World::guarding()
        };
        world.list_all(Listed::Allowed);
        world.limit(&Limits {
            flows: 9,
            ..Limits::burst(9)
        });
        steered(&world);
    }
}

fn what_places_clients_and_is_watched_is_steered_as_ever() {
    let world = World::new();
    world.place_clients(SERVICE);
    world.keep(CLIENT, SERVICE, backend(2));
    let mut watching = Watching::of(&world);
    let first = Client(CLIENT.0, 41_000).syn();
    let (reason, backend, _) = watching.compare(&world, &first);
    assert_eq!((reason, backend), (Reason::Opened, Some(2)));
    drop(watching);
    steered(&world);
}

fn what_a_guard_refuses_is_told_of() {
    let world = World::guarding();
    let mut watching = Watching::of(&world);
    watching.listen(2, &ALL);
    let other = Client(CLIENT.0, 41_000);
    let mut refused = |reason: Reason| {
        for packet in [other.syn(), other.syn().tagged(0x8100, 0x2001)] {
            let (counted, backend, told) = watching.compare(&world, &packet);
            assert_eq!((counted, backend), (reason, None));
            let [(head, data)] = &told[..] else {
                panic!("{reason:?} was told of {} times", told.len());
            };
            assert_eq!(Reason::from_code(head.reason as u8), Some(reason));
            assert_eq!((head.service, head.backend), (u32::from(SERVICE), ANY));
            assert_eq!(head.source, on_wire(CLIENT.0).into());
            assert_eq!(*data, packet.bytes());
        }
    };
    world.list_all(Listed::Denied);
    refused(Reason::Denied);
    world.list_all(Listed::NotAllowed);
    refused(Reason::NotAllowed);
    world.list_all(Listed::Allowed);
    world.limit(&Limits::flows(1));
    world.send(&CLIENT.syn());
    refused(Reason::SourceFull);
    world.limit(&Limits::burst(1));
    world.send(&Client(CLIENT.0, 1_000).syn());
    refused(Reason::SourceRate);
}

fn only_what_is_wanted_is_told_of() {
    let world = World::new();
    let mut watching = Watching::of(&world);
    let listeners = |told: &[(Head, Vec<u8>)]| told.first().map_or(0, |(head, _)| head.listeners);
    watching.listen(
        0,
        &Filter {
            reasons: 0,
            changes: 1,
            kept: 40,
            ..ALL
        },
    );
    watching.listen(1, &Filter { backend: 2, ..ALL });
    watching.listen(
        2,
        &Filter {
            service: u32::from(SERVICE) + 1,
            ..ALL
        },
    );
    let words = |address| lb_common::net::Address::from(on_wire(address)).words();
    watching.listen(
        3,
        &Filter {
            prefix: words(CLIENT.0),
            mask: [u64::MAX; 2],
            ..ALL
        },
    );
    let other = Client(std::net::Ipv4Addr::new(198, 51, 100, 8), 40_000);
    let (_, _, told) = watching.compare(&world, &CLIENT.syn());
    assert_eq!(listeners(&told), 0b1000);
    assert_eq!(watching.compare(&world, &other.syn()).2, []);
    // The change of an entry's state, and as many bytes as who wants the most.
    let (_, _, told) = watching.compare(&world, &CLIENT.ack());
    assert_eq!(listeners(&told), 0b1001);
    assert_eq!(
        told[0].0.states(),
        Some((State::Embryo as u8, State::Young as u8))
    );
    assert_eq!(told[0].1.len(), CLIENT.ack().bytes().len());
    let (_, _, told) = watching.compare(&world, &other.ack());
    assert_eq!((listeners(&told), told[0].1.len()), (1, 40));
    // A second one has no change to tell of.
    assert_eq!(watching.compare(&world, &other.ack()).2, []);
    world.age(YOUNG_TICKS);
    let (_, _, told) = watching.compare(&world, &other.ack());
    assert_eq!(
        told[0].0.states(),
        Some((State::Young as u8, State::Pin as u8))
    );
    let (_, _, told) = watching.compare(
        &world,
        &other.sends(FIN | ACK).seq(other.ack().as_tcp().seq),
    );
    assert_eq!(
        told[0].0.states(),
        Some((State::Pin as u8, State::Closing as u8))
    );
    // Whose time is over hears nothing; another does, since a flow is pinned.
    watching
        .tapped
        .listeners
        .set(3, &Filter { until_ns: 1, ..ALL });
    let (_, _, told) = watching.compare(&world, &CLIENT.ack());
    assert_eq!(listeners(&told), 1);
    // One of so many.
    watching.listen(
        3,
        &Filter {
            sample: u32::MAX / 4,
            ..ALL
        },
    );
    let heard = (0..400)
        .filter(|_| !watching.compare(&world, &CLIENT.ack()).2.is_empty())
        .count();
    assert!(
        (50..150).contains(&heard),
        "{heard} of 400, and 100 were wanted"
    );
    // Of a flow all or nothing.
    watching.listen(
        3,
        &Filter {
            sample: u32::MAX / 4,
            by_flow: 1,
            ..ALL
        },
    );
    let flows: Vec<usize> = (0..40)
        .map(|host| {
            let client = Client(std::net::Ipv4Addr::new(198, 51, 100, 100 + host), 40_000);
            (0..5)
                .filter(|_| !watching.compare(&world, &client.sends(0)).2.is_empty())
                .count()
        })
        .collect();
    assert!(
        flows.iter().all(|heard| [0, 5].contains(heard)),
        "{flows:?}"
    );
    assert!(flows.contains(&0) && flows.contains(&5), "{flows:?}");
}
