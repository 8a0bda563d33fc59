//! Guards: ranges written aside, named by one store, and used again after a grace period only.

use lb_common::guard::Range;

use super::*;
use crate::guard::{Guard, Lists, Prefix, SourceLimit, lists::listed};

/// A guard that denies these networks of /8.
fn denying(networks: &[u8]) -> Guard {
    let deny = networks
        .iter()
        .map(|&network| Prefix::of([network, 0, 0, 0].into(), 8))
        .collect();
    Guard::new(IpVersion::V4, Lists::new(Vec::new(), deny), None)
}

fn limited(guard: Guard, flows: u32) -> Guard {
    Guard {
        limit: Some(SourceLimit {
            prefix: 32,
            new_per_second: None,
            burst: 1,
            flows: Some(flows),
        }),
        ..guard
    }
}

fn guarded(id: u16, guard: &Guard) -> resolve::Service<'_> {
    resolve::Service {
        guard: Some(guard),
        ..service(id, 13, &[u32::from(id)], &[])
    }
}

fn ranges(bench: &Bench, id: u16) -> Vec<Range> {
    let ranges = bench.observed.guards[&id].ranges;
    let indices = ranges.first()..ranges.first() + ranges.len();
    indices.map(|index| bench.maps.ranges.get(index)).collect()
}

fn is_guarded(bench: &Bench, id: u16) -> bool {
    bench.maps.services.get(id.into()).traits & Service::GUARDED != 0
}

#[test]
fn a_guard_is_there_before_its_service_says_so_and_goes_after() {
    let mut bench = Bench::new(1_000);
    let guard = denying(&[20]);
    let wanted = [guarded(1, &guard)];
    let operations = bench.converge(&wanted);
    assert_eq!(
        operations[..5],
        [
            "backend 1, generation 3: write 10.0.1.1:80 of service 1",
            "service 1: write 3 ranges at 0, aside",
            "service 1: write guard, 3 ranges at 0",
            "service 1: write table of 13 slots at 0, aside",
            "service 1: write 10.0.0.1:80",
        ]
    );
    assert!(is_guarded(&bench, 1));
    assert_eq!(ranges(&bench, 1), *guard.ranges);
    assert_eq!(bench.converge(&wanted), [] as [&str; 0]);
    assert_eq!(
        bench.converge(&[service(1, 13, &[1], &[])]),
        ["service 1: write 10.0.0.1:80", "service 1: clear guard"]
    );
    assert!(!is_guarded(&bench, 1));
    assert_eq!(bench.observed.guards, BTreeMap::new());
}

#[test]
fn a_service_in_use_gets_its_guard_before_it_says_so() {
    let mut bench = Bench::new(1_000);
    bench.converge(&[service(1, 13, &[1], &[])]);
    let guard = limited(denying(&[20]), 100);
    assert_eq!(
        bench.converge(&[guarded(1, &guard)]),
        [
            "service 1: write 3 ranges at 0, aside",
            "service 1: write guard, 3 ranges at 0",
            "service 1: write 10.0.0.1:80",
        ]
    );
    let entry = bench.maps.guards.get(1);
    assert_eq!((entry.flows, entry.cost_ns), (100, 0));
}

#[test]
fn other_lists_are_written_aside_and_touch_nothing_else() {
    let mut bench = Bench::new(1_000);
    let (one, other) = (denying(&[20]), denying(&[20, 40]));
    bench.converge(&[guarded(1, &one), guarded(2, &one)]);
    assert_eq!(
        bench.converge(&[guarded(1, &other), guarded(2, &one)]),
        [
            "service 1: write 5 ranges at 6, aside",
            "service 1: write guard, 5 ranges at 6",
        ]
    );
    assert_eq!(ranges(&bench, 1), *other.ranges);
    assert_eq!(ranges(&bench, 2), *one.ranges);
    // Another limit leaves the ranges where they are.
    let limited = limited(other, 7);
    assert_eq!(
        bench.converge(&[guarded(1, &limited), guarded(2, &one)]),
        ["service 1: write guard, 5 ranges at 6"]
    );
}

/// What a source owes to one service is judged by newcomers of all: each guard says how long anybody may owe.
#[test]
fn each_guard_has_the_longest_burst_of_all() {
    const SECOND_NS: u64 = 1_000_000_000;
    let mut bench = Bench::new(1_000);
    let rated = |burst| Guard {
        limit: Some(SourceLimit {
            prefix: 32,
            new_per_second: Some(1),
            burst,
            flows: None,
        }),
        ..denying(&[20])
    };
    let (short, long) = (rated(5), rated(50));
    let bursts = |bench: &Bench| {
        [1, 2].map(|id| {
            let guard = bench.maps.guards.get(id);
            [guard.burst_ns, guard.longest_burst_ns].map(|ns| ns / SECOND_NS)
        })
    };
    bench.converge(&[guarded(1, &short), guarded(2, &long)]);
    assert_eq!(bursts(&bench), [[5, 50], [50, 50]]);
    bench.converge(&[guarded(1, &short), guarded(2, &short)]);
    assert_eq!(bursts(&bench), [[5, 5], [5, 5]]);
}

#[test]
fn ranges_are_used_again_only_after_a_grace_period() {
    // Of sixteen ranges: five, then five and five, and then there is room for one.
    let mut bench = Bench::new(1_000);
    let guards = [denying(&[20, 40]), denying(&[20, 60]), denying(&[20, 80])];
    assert!(guards.iter().all(|guard| guard.ranges.len() == 5));
    for guard in &guards {
        bench.converge(&[guarded(1, guard)]);
    }
    let last = denying(&[20, 100]);
    assert_eq!(
        bench.converge(&[guarded(1, &last)]),
        [
            "wait for a grace period",
            "service 1: write 5 ranges at 0, aside",
            "service 1: write guard, 5 ranges at 0",
        ]
    );
    let clients = [[20, 1, 1, 1], [60, 1, 1, 1], [100, 1, 1, 1]];
    let held = ranges(&bench, 1);
    let said = clients.map(|client| listed(&held, IpAddr::from(client)) as u64);
    assert_eq!(said, [1, 0, 1]);
}

/// Of sixteen ranges there are enough, but in pieces.
#[test]
fn ranges_of_others_make_room() {
    let mut bench = Bench::new(1_000);
    let (three, other, five) = (denying(&[20]), denying(&[30]), denying(&[20, 40]));
    bench.converge(&[guarded(1, &three), guarded(2, &three), guarded(3, &three)]);
    // Those of one that has been written before.
    let wanted = [guarded(1, &other), guarded(2, &five), guarded(3, &three)];
    assert_eq!(bench.plan(&wanted).deferred, BTreeMap::new());
    assert_eq!(
        bench.converge(&wanted),
        [
            "service 1: write 3 ranges at 9, aside",
            "service 1: write guard, 3 ranges at 9",
            "wait for a grace period",
            "service 1: write 3 ranges at 0, aside",
            "service 1: write guard, 3 ranges at 0",
            "wait for a grace period",
            "service 2: write 5 ranges at 9, aside",
            "service 2: write guard, 5 ranges at 9",
        ]
    );
    for (id, guard) in [(1, &other), (2, &five), (3, &three)] {
        assert_eq!(ranges(&bench, id), *guard.ranges);
    }
    assert_eq!(bench.converge(&wanted), [] as [&str; 0]);

    // Those of one that is yet to be looked at, and stays as it is.
    let mut bench = Bench::new(1_000);
    bench.converge(&[guarded(1, &three), guarded(2, &three), guarded(3, &three)]);
    bench.converge(&[guarded(1, &three), guarded(2, &three), guarded(3, &other)]);
    let wanted = [guarded(1, &three), guarded(2, &five), guarded(3, &other)];
    assert_eq!(
        bench.converge(&wanted),
        [
            "wait for a grace period",
            "service 3: write 3 ranges at 12, aside",
            "service 3: write guard, 3 ranges at 12",
            "wait for a grace period",
            "service 2: write 5 ranges at 6, aside",
            "service 2: write guard, 5 ranges at 6",
        ]
    );
    for (id, guard) in [(1, &three), (2, &five), (3, &other)] {
        assert_eq!(ranges(&bench, id), *guard.ranges);
    }
    assert_eq!(bench.converge(&wanted), [] as [&str; 0]);
}

#[test]
fn without_room_the_lists_of_before_stay_and_a_new_service_is_not_found_open() {
    let mut bench = Bench::new(1_000);
    let small = denying(&[20]);
    let large = denying(&[20, 30, 40, 50, 60, 70, 80, 90]);
    assert_eq!(large.ranges.len(), 17);
    bench.converge(&[guarded(1, &small)]);
    let wanted = [guarded(1, &large), guarded(2, &large)];
    let plan = bench.plan(&wanted);
    let deferred = Deferred::Ranges {
        ranges: 17,
        largest: 13,
    };
    assert_eq!(
        plan.deferred,
        BTreeMap::from([(1, deferred.clone()), (2, deferred)])
    );
    bench.converge(&wanted);
    assert_eq!(ranges(&bench, 1), *small.ranges);
    assert!(is_guarded(&bench, 1));
    assert!(!bench.observed.services.contains_key(&2));
    let fits = [guarded(1, &small), guarded(2, &small)];
    assert_eq!(bench.plan(&fits).deferred, BTreeMap::new());
    bench.converge(&fits);
    assert!(is_guarded(&bench, 2));
}

#[test]
fn who_has_the_id_next_has_no_guard_of_the_last_holder() {
    let mut bench = Bench::new(1_000);
    let guard = denying(&[20]);
    bench.converge(&[guarded(1, &guard)]);
    let mut next = service(1, 13, &[2], &[]);
    next.endpoint.vip = [10, 0, 0, 99].into();
    bench.converge(std::slice::from_ref(&next));
    assert!(!is_guarded(&bench, 1));
    assert_eq!(bench.observed.guards, BTreeMap::new());
    assert_eq!(bench.converge(&[next]), [] as [&str; 0]);
}

#[test]
fn a_service_that_goes_leaves_no_guard() {
    let mut bench = Bench::new(1_000);
    let guard = denying(&[20]);
    bench.converge(&[guarded(1, &guard)]);
    let operations = bench.converge(&[]);
    let at = |what: &str| operations.iter().position(|operation| operation == what);
    assert!(at("service 1: clear") < at("service 1: clear guard"));
    assert_eq!(bench.maps.guards.get(1), Default::default());
    // What the guard named may still be read.
    assert_eq!(bench.observed.unsettled.ranges.len(), 1);
}

#[test]
fn whatever_somebody_else_has_changed_is_mended() {
    let guard = denying(&[20]);
    let wanted = [guarded(1, &guard)];
    type Break = fn(&Maps);
    let breaks: [(&str, Break); 4] = [
        ("no guard", |maps| maps.guards.set(1, &Default::default())),
        ("another service's", |maps| {
            let guard = maps.guards.get(1);
            maps.guards.set(5, &guard);
        }),
        ("a range", |maps| {
            let mut range = maps.ranges.get(1);
            range.listed = 0;
            maps.ranges.set(1, &range);
        }),
        ("ranges beyond the end", |maps| {
            let mut guard = maps.guards.get(1);
            guard.ranges = RangesRef::new(15, 9).0;
            maps.guards.set(1, &guard);
        }),
    ];
    for (what, break_it) in breaks {
        let mut bench = Bench::new(1_000);
        bench.converge(&wanted);
        break_it(&bench.maps);
        bench.observed = Observed::read(&bench.maps, Unsettled::default(), bench.now);
        assert_ne!(bench.converge(&wanted), [] as [&str; 0], "{what}");
        assert_eq!(ranges(&bench, 1), *guard.ranges, "{what}");
        assert_eq!(bench.observed.guards.len(), 1, "{what}");
        assert_eq!(bench.converge(&wanted), [] as [&str; 0], "{what}");
    }
}
