//! Guards: programs that come with the first one, while packets come in; and maps that keep them.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use lb_common::{
    flow::{v4, v6},
    guard::RangesRef,
    maps::{GUARD_INDEX, IPV6_INDEX, MAIN_INDEX},
    net::IpVersion,
    service::Service,
    tcp::{ACK, SYN},
    verdict::Reason,
};
use lb_userspace::{
    dataplane::{kernel::Kernel, maps::Maps},
    failpoint::{self, Place},
    guard::{Guard, Lists, Prefix, SourceLimit, sources::SourceFlows},
};

use crate::{
    sandbox::{run, state},
    wire::{Client, ISN, Wire, count_of, serve},
};

/// Clients by number, one of the service of each version that is denied, and one that is not: 10.0.0.0/9 in IPv4, and all of 2001:db8:9::a80:0/105 in IPv6.
const DENIED: u32 = 0x0a00_0001;
const OTHER: u32 = 0x0a80_0001;

/// Denies [`DENIED`], and lets each source have so many flows, if that is limited.
fn guard<K: Client>(flows: Option<u32>) -> Guard {
    let client = K::client(DENIED, 1).client_address();
    let bits = match K::VERSION {
        IpVersion::V4 => 9,
        IpVersion::V6 => 105,
    };
    let lists = Lists::new(Vec::new(), vec![Prefix::of(client.into(), bits)]);
    let limit = flows.map(|flows| SourceLimit {
        prefix: 32,
        new_per_second: None,
        burst: 1,
        flows: Some(flows),
    });
    Guard::new(K::VERSION, lists, limit)
}

/// Writes a guard as the reconciler does.
fn write<K: Client>(maps: &Maps, guard: &Guard) {
    let first = u32::from(K::SERVICE) * 100;
    let ranges = RangesRef::new(first, guard.ranges.len() as u32);
    for (index, range) in (first..).zip(guard.ranges.iter()) {
        maps.ranges.set(index, range);
    }
    let id = u32::from(K::SERVICE);
    maps.guards.set(id, &guard.entry(ranges));
    let mut service = maps.services.get(id);
    service.traits |= Service::GUARDED;
    maps.services.set(id, &service);
}

/// The indices of programs that guard among those that are handed packets.
fn guards_in(kernel: &Kernel) -> Vec<u32> {
    let handed_on_to = kernel.loaded().handed_on_to();
    let mut guards: Vec<u32> = handed_on_to
        .map(|(index, ..)| index)
        .filter(|index| (GUARD_INDEX..MAIN_INDEX).contains(index))
        .collect();
    guards.sort_unstable();
    guards
}

#[test]
fn programs_that_guard_are_loaded_if_services_are_guarded() {
    run(|sandbox| {
        let mut options = sandbox.options(&[]);
        for guards in [false, true, false] {
            options.capacity = options.capacity.guarding(guards);
            let kernel = Kernel::open(&options).unwrap();
            let expected = [GUARD_INDEX, GUARD_INDEX + 1];
            assert_eq!(guards_in(&kernel), if guards { &expected[..] } else { &[] });
            let mut all = kernel.loaded().handed_on_to();
            assert!(all.any(|(index, ..)| index == IPV6_INDEX));
        }
    });
}

fn first_guard<K: Client>() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let mut kernel = sandbox.open(&["va"]);
        let maps = kernel.maps();
        serve(&maps, "va");
        let link = kernel.attach().unwrap()[0].link;
        let program = state("va").program();
        let mut wire = Wire::new("vb", maps.clone());
        let (old, other) = (K::client(DENIED, 1), K::client(OTHER, 1));
        wire.send(&[(old, ISN, SYN), (old, ISN + 1, ACK)]);
        write::<K>(&maps, &guard::<K>(None));
        // Programs that know of no guards heed none.
        wire.send(&[(K::client(DENIED, 2), ISN, SYN)]);
        assert_eq!(count_of(&maps, Reason::Opened), 2);

        kernel.tap().guard().unwrap();
        assert_ne!(state("va").program(), program, "the link has another");
        let established = count_of(&maps, Reason::Established);
        wire.send(&[(K::client(DENIED, 3), ISN, SYN), (other, ISN, SYN)]);
        wire.send(&[(old, ISN + 1, ACK)]);
        assert_eq!(count_of(&maps, Reason::Denied), 1);
        assert_eq!(count_of(&maps, Reason::Opened), 3);
        assert_eq!(count_of(&maps, Reason::Established), established + 1);

        // Once more is nothing, and attaching again keeps what is there.
        let guarding = state("va").program();
        kernel.tap().guard().unwrap();
        assert_eq!(state("va").program(), guarding);
        let again = kernel.attach().unwrap();
        assert_eq!((again[0].link, state("va").program()), (link, guarding));
        wire.send(&[(K::client(DENIED, 4), ISN, SYN)]);
        assert_eq!(count_of(&maps, Reason::Denied), 2);
    });
}

#[test]
fn the_first_guard_of_ipv4_comes_while_packets_do() {
    first_guard::<v4::Key>();
}

#[test]
fn the_first_guard_of_ipv6_comes_while_packets_do() {
    first_guard::<v6::Key>();
}

thread_local! {
    /// What this thread does before it puts a program in its place that packets are handed on to.
    static BEFORE_EACH: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

fn before_each(place: Place) {
    if place == Place::ProgramMissing {
        BEFORE_EACH.with_borrow_mut(|before| {
            if let Some(before) = before {
                before();
            }
        });
    }
}

/// Whichever of the programs that come with the first guard are in their places: a segment that the first program leaves to another finds the one that it is
/// handed on to.
fn first_guard_leaves_no_gap<K: Client>() {
    run(|sandbox| {
        failpoint::observe(before_each);
        sandbox.veth("va", "vb");
        let mut kernel = sandbox.open(&["va"]);
        let maps = kernel.maps();
        serve(&maps, "va");
        kernel.attach().unwrap();
        let mut wire = Wire::new("vb", maps.clone());
        let known = K::client(OTHER, 1);
        wire.send(&[(known, ISN, SYN), (known, ISN + 1, ACK)]);
        write::<K>(&maps, &guard::<K>(None));
        let established = count_of(&maps, Reason::Established);
        let sent = Rc::new(Cell::new(0));
        let counter = Rc::clone(&sent);
        BEFORE_EACH.set(Some(Box::new(move || {
            wire.send_tagged(&[(known, ISN + 1, ACK)]);
            counter.set(counter.get() + 1);
        })));
        kernel.tap().guard().unwrap();
        BEFORE_EACH.set(None);
        assert!(sent.get() > 2, "each of the programs was missing");
        assert_eq!(count_of(&maps, Reason::NoProgram), 0);
        assert_eq!(
            count_of(&maps, Reason::Established),
            established + sent.get()
        );
    });
}

#[test]
fn the_first_guard_of_ipv4_leaves_no_gap() {
    first_guard_leaves_no_gap::<v4::Key>();
}

#[test]
fn the_first_guard_of_ipv6_leaves_no_gap() {
    first_guard_leaves_no_gap::<v6::Key>();
}

#[test]
fn who_listens_goes_on_to_hear_when_the_first_guard_comes() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let mut kernel = sandbox.open(&["va"]);
        let maps = kernel.maps();
        serve(&maps, "va");
        kernel.attach().unwrap();
        let tap = kernel.tap();
        let _tapped = tap.open().unwrap();
        let watching = state("va").program();
        write::<v4::Key>(&maps, &guard::<v4::Key>(None));
        tap.guard().unwrap();
        assert_ne!(state("va").program(), watching);
        let mut wire = Wire::new("vb", maps.clone());
        let denied = |port| (<v4::Key as Client>::client(DENIED, port), ISN, SYN);
        wire.send(&[denied(1)]);
        assert_eq!(count_of(&maps, Reason::Denied), 1);
        // What runs when nobody listens any more guards too.
        tap.close().unwrap();
        wire.send(&[denied(2)]);
        assert_eq!(count_of(&maps, Reason::Denied), 2);
    });
}

#[test]
fn flows_of_a_source_are_counted_in_the_maps() {
    run(|sandbox| {
        sandbox.veth("va", "vb");
        let mut options = sandbox.options(&["va"]);
        options.capacity = options.capacity.guarding(true);
        let mut kernel = Kernel::open(&options).unwrap();
        let maps = kernel.maps();
        serve(&maps, "va");
        write::<v4::Key>(&maps, &guard::<v4::Key>(Some(3)));
        kernel.attach().unwrap();
        let mut wire = Wire::new("vb", maps.clone());
        for port in 1..=5 {
            wire.send(&[(<v4::Key as Client>::client(OTHER, port), ISN, SYN)]);
        }
        assert_eq!(count_of(&maps, Reason::Opened), 3);
        assert_eq!(count_of(&maps, Reason::SourceFull), 2);
        wire.send(&[(<v4::Key as Client>::client(OTHER + 1, 1), ISN, SYN)]);
        assert_eq!(count_of(&maps, Reason::Opened), 4);
        let mut opened: Vec<u32> = (0..maps.sources.len())
            .flat_map(|index| maps.sources.get(index).sources)
            .filter(|source| source.fingerprint != 0)
            .map(|source| SourceFlows::of(source.flows).opened)
            .collect();
        opened.sort_unstable();
        assert_eq!(opened, [1, 3]);
    });
}

#[test]
fn guards_and_sources_outlive_the_daemon_and_keep_their_room() {
    run(|sandbox| {
        let mut options = sandbox.options(&[]);
        options.capacity = options.capacity.with_guards(1_000, 500).guarding(true);
        let kernel = Kernel::open(&options).unwrap();
        let guard = guard::<v4::Key>(Some(3));
        write::<v4::Key>(&kernel.maps(), &guard);
        let entry = kernel.maps().guards.get(1);
        drop(kernel);
        let capacity = options.capacity;
        options.capacity = options.capacity.with_guards(5_000, 9_000);
        let kernel = Kernel::open(&options).unwrap();
        let maps = kernel.maps();
        assert_eq!(maps.capacity, capacity);
        assert_eq!(maps.guards.get(1), entry);
        let ranges = RangesRef(entry.ranges);
        for (index, range) in (ranges.first()..).zip(guard.ranges.iter()) {
            assert_eq!(maps.ranges.get(index), *range);
        }
    });
}
