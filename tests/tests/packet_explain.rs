//! A rehearsal says of a packet what then becomes of the real one, and changes nothing.

use std::sync::atomic::Ordering;

use lab::packet::{
    BackendSpec, CLIENT, Client, Packet, SERVICE, World,
    entries::backend,
    guard::Limits,
    kernel::{INGRESS, action},
    version,
};
use lab::random::Random;
use lb_common::{
    backend::Serving,
    flow::word::{State, Word, YOUNG_TICKS},
    guard::Listed,
    nat::PORTS_OF_PAIR,
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};
use lb_userspace::dataplane::{
    array::{Array, Entry},
    kernel::Rehearsal,
    maps::Maps,
};

lab::in_both_versions![
    a_rehearsal_agrees_with_the_packet_in_l2,
    a_rehearsal_agrees_with_the_packet_in_ipip,
    a_rehearsal_agrees_with_the_packet_in_nat,
    a_rehearsal_agrees_with_the_packet_in_dnat,
    a_rehearsal_agrees_with_the_packet_for_a_backend_on_this_host,
    a_rehearsal_agrees_with_the_translated_packet_for_a_backend_on_this_host,
    a_rehearsal_agrees_with_the_packet_that_gets_no_port,
    a_rehearsal_agrees_with_the_packet_of_a_guarded_service,
    a_rehearsal_agrees_with_the_packet_of_a_service_that_places_clients,
    what_is_for_no_service_is_rehearsed_too,
];

/// Packets of one test.
const PACKETS: u32 = 400;

fn words<T: Entry>(array: &Array<T>, all: &mut Vec<u64>) {
    for index in 0..array.len() {
        let words = array.words(index).iter();
        all.extend(words.map(|word| word.load(Ordering::SeqCst)));
    }
}

/// All that the maps hold.
fn contents(maps: &Maps) -> Vec<u64> {
    let mut all = flows(maps);
    words(&maps.affinities, &mut all);
    words(&maps.nat4, &mut all);
    words(&maps.nat6, &mut all);
    words(&maps.slots, &mut all);
    words(&maps.hold, &mut all);
    words(&maps.tables, &mut all);
    words(&maps.services, &mut all);
    words(&maps.backends, &mut all);
    words(&maps.vips4, &mut all);
    words(&maps.vips6, &mut all);
    words(&maps.endpoints, &mut all);
    words(&maps.endpoints4, &mut all);
    words(&maps.endpoints6, &mut all);
    words(&maps.pairs, &mut all);
    words(&maps.ports, &mut all);
    words(&maps.links, &mut all);
    words(&maps.guards, &mut all);
    words(&maps.ranges, &mut all);
    words(&maps.sources, &mut all);
    words(&maps.counters, &mut all);
    words(&maps.cpus, &mut all);
    all
}

/// The flow table of the version in force, with its facts.
fn flows(maps: &Maps) -> Vec<u64> {
    let mut all = Vec::new();
    match version() {
        lb_common::net::IpVersion::V4 => {
            words(&maps.flows4, &mut all);
            words(&maps.facts4, &mut all);
        }
        lb_common::net::IpVersion::V6 => {
            words(&maps.flows6, &mut all);
            words(&maps.facts6, &mut all);
        }
    }
    all
}

/// Rehearses a packet, sends it, and compares. Gives what became of it.
fn compare(world: &World, rehearsal: &Rehearsal, packet: &Packet) -> Reason {
    let rehearse = || {
        let rehearsed = rehearsal.run(INGRESS, &packet.bytes());
        rehearsed.expect("the program runs")
    };
    let before = contents(&world.maps);
    rehearse();
    assert!(
        contents(&world.maps) == before,
        "a rehearsal changed the maps: {packet:?}"
    );
    assert_eq!(world.notices(), [], "a rehearsal told the daemon something");
    // Both in one tick, which the comparison may have been longer than.
    world.now();
    let rehearsed = rehearse();
    let run = world.send(packet);
    let reason = run.reason();
    assert_eq!(
        (rehearsed.reason, rehearsed.action, rehearsed.backend),
        (reason, run.outcome.action, run.backend()),
        "{packet:?}"
    );
    let is_new = matches!(
        reason,
        Reason::Opened | Reason::Challenged | Reason::Reopened
    );
    if run.outcome.action != action::DROP && !(is_new && world.translates()) {
        assert!(
            rehearsed.frame == run.outcome.output,
            "another frame leaves: {packet:?}"
        );
    }
    assert!(
        flows(&rehearsal.maps()) == flows(&world.maps),
        "another entry is recorded: {packet:?}"
    );
    drop(world.notices());
    reason
}

/// Packets of all sorts, of few clients, to two backends whose state changes all the time. Gives what became of them.
fn agree(world: &mut World, spec: fn(u32) -> BackendSpec) -> Vec<Reason> {
    let rehearsal = world.rehearsals().prepare(version()).expect("it is loaded");
    let mut random = Random::from_environment();
    let mut any = |below: u64| random.bits() % below;
    // One flow is opened in any case, before chance fills what a source may have.
    let first = Client(CLIENT.0, 39_999).syn();
    let mut seen = vec![compare(world, &rehearsal, &first)];
    if !world.translates() {
        // And what chance may leave out is seen of it.
        let next = Client(CLIENT.0, 39_999).ack();
        seen.push(compare(world, &rehearsal, &first));
        seen.push(compare(world, &rehearsal, &next));
        for serving in [Serving::None, Serving::New] {
            for id in [1, 2] {
                world.put_state(&spec(id).serving(serving));
            }
            seen.push(compare(world, &rehearsal, &next));
        }
    }
    // The maps of translations are large, and all that they hold is compared after each packet.
    let packets = if world.translates() {
        PACKETS / 4
    } else {
        PACKETS
    };
    for _ in 0..packets {
        let client = Client(CLIENT.0, 40_000 + any(24) as u16);
        let known = world.entries(client.key()).first().map(|(_, word)| *word);
        let flags = [SYN, SYN, ACK, ACK, ACK, ACK, FIN | ACK, RST, SYN | ACK, 0][any(10) as usize];
        let follows = match known {
            Some(word) if word.is_nascent() => word.isn().wrapping_add(1),
            Some(word) => (word.epoch() << 20) + 7,
            None => 1 << 20,
        };
        let seq = if any(8) == 0 {
            any(1 << 32) as u32
        } else {
            follows
        };
        let mut packet = client.sends(flags).seq(seq);
        if any(4) == 0 {
            packet = packet.payload(&[7; 30]);
        }
        if any(16) == 0 {
            packet = packet.ttl(1);
        }
        seen.push(compare(world, &rehearsal, &packet));
        if any(4) == 0 {
            world.age(YOUNG_TICKS);
        }
        if any(6) == 0 {
            let mut backend = spec(1 + any(2) as u32);
            backend = backend.serving(match any(8) {
                0 => Serving::None,
                1 | 2 => Serving::ExistingOnly,
                _ => Serving::New,
            });
            if any(12) == 0 {
                backend = backend.unresolved();
            }
            world.put_state(&backend);
        }
    }
    // It is worth what it meets.
    for reason in [Reason::Opened, Reason::BadFlags] {
        assert!(seen.contains(&reason), "no packet came to {reason:?}");
    }
    if !world.translates() {
        for reason in [Reason::Established, Reason::Reopened, Reason::BackendDead] {
            assert!(seen.contains(&reason), "no packet came to {reason:?}");
        }
    }
    seen
}

fn agree_untranslated(spec: fn(u32) -> BackendSpec) {
    let mut world = World::new();
    for id in [1, 2] {
        world.backend(&spec(id));
    }
    world.share_between(&[1, 2]);
    agree(&mut world, spec);
}

fn agree_translated(spec: fn(u32) -> BackendSpec) {
    let mut world = World::with_translating(&spec(1));
    // The answers that complete their handshakes are those of backend 1.
    for port in 40_000..40_006 {
        world.open(Client(CLIENT.0, port));
    }
    world.translate(&spec(2), SERVICE);
    world.share_between(&[1, 2]);
    agree(&mut world, spec);
}

fn a_rehearsal_agrees_with_the_packet_in_l2() {
    agree_untranslated(BackendSpec::l2);
}

fn a_rehearsal_agrees_with_the_packet_in_ipip() {
    agree_untranslated(BackendSpec::ipip);
}

fn a_rehearsal_agrees_with_the_packet_in_nat() {
    agree_translated(BackendSpec::nat);
}

fn a_rehearsal_agrees_with_the_packet_in_dnat() {
    agree_translated(BackendSpec::dnat);
}

fn a_rehearsal_agrees_with_the_packet_for_a_backend_on_this_host() {
    let spec = |id| BackendSpec::l2(id).local();
    let mut world = World::new();
    for id in [1, 2] {
        world.endpoint(&spec(id), SERVICE);
    }
    world.share_between(&[1, 2]);
    agree(&mut world, spec);
}

fn a_rehearsal_agrees_with_the_translated_packet_for_a_backend_on_this_host() {
    let spec = |id| BackendSpec::nat(id).local();
    let mut world = World::with_translating(&spec(1));
    world.translate(&spec(2), SERVICE);
    world.share_between(&[1, 2]);
    agree(&mut world, spec);
}

/// How many ports are in use is what a rehearsal finds of the moment; it takes none of them, and gives none back.
fn a_rehearsal_agrees_with_the_packet_that_gets_no_port() {
    let world = World::translating_many();
    world.translate(&BackendSpec::nat(1), SERVICE);
    world.exhaust(|now| Word::live(State::Pin, backend(1), 0, now, 0));
    let rehearsal = world.rehearsals().prepare(version()).expect("it is loaded");
    assert_eq!(compare(&world, &rehearsal, &CLIENT.syn()), Reason::NoPort);
    assert_eq!(world.entries(CLIENT.key()), []);
    assert_eq!(world.ports_in_use(1), (PORTS_OF_PAIR, PORTS_OF_PAIR));
    // All flows have ended, and so their ports are to be had.
    world.set_all(|_| Word::EMPTY);
    assert_eq!(compare(&world, &rehearsal, &CLIENT.syn()), Reason::Opened);
}

/// Also at a source's limits, of which a rehearsal takes nothing.
fn a_rehearsal_agrees_with_the_packet_of_a_guarded_service() {
    let mut world = World::guarding();
    for id in [1, 2] {
        world.backend(&BackendSpec::l2(id));
    }
    world.share_between(&[1, 2]);
    world.limit(&Limits {
        flows: 12,
        ..Limits::burst(45)
    });
    let seen = agree(&mut world, BackendSpec::l2);
    for reason in [Reason::SourceFull, Reason::SourceRate] {
        assert!(seen.contains(&reason), "no packet came to {reason:?}");
    }
    world.list_all(Listed::Denied);
    let rehearsal = world.rehearsals().prepare(version()).expect("it is loaded");
    let other = Client(CLIENT.0, 50_000);
    assert_eq!(compare(&world, &rehearsal, &other.syn()), Reason::Denied);
}

/// What a client keeps counts in a rehearsal too, for as long as it counts.
fn a_rehearsal_agrees_with_the_packet_of_a_service_that_places_clients() {
    let world = World::new();
    world.place_clients(SERVICE);
    world.keep(CLIENT, SERVICE, backend(2));
    let rehearsal = world.rehearsals().prepare(version()).expect("it is loaded");
    for (port, serving, expected) in [
        (41_000, Serving::New, 2),
        (41_001, Serving::ExistingOnly, 1),
        (41_002, Serving::None, 1),
    ] {
        world.put_state(&BackendSpec::l2(2).serving(serving));
        let client = Client(CLIENT.0, port);
        let reason = compare(&world, &rehearsal, &client.syn());
        assert_eq!(reason, Reason::Opened);
        assert_eq!(world.entry(client.key()).backend(), backend(expected));
    }
}

fn what_is_for_no_service_is_rehearsed_too() {
    let world = World::new();
    let rehearsal = world.rehearsals().prepare(version()).expect("it is loaded");
    let elsewhere = Packet::tcp((CLIENT.0, CLIENT.1), (lab::packet::VIP, 444), SYN);
    assert_eq!(compare(&world, &rehearsal, &elsewhere), Reason::NotService);
    // A state that only a rehearsal has seen is no state: twice the same.
    assert_eq!(compare(&world, &rehearsal, &CLIENT.syn()), Reason::Opened);
    assert_eq!(
        compare(&world, &rehearsal, &CLIENT.ack()),
        Reason::Established
    );
}
