//! Tables in the arena, and whom a slot had before.

use lb_common::maglev::TENURE_TICKS;

use super::*;

#[test]
fn a_region_is_used_again_only_after_a_grace_period() {
    let mut bench = Bench::new(26);
    bench.converge(&[service(1, 13, &[1, 2], &[])]);
    bench.converge(&[service(1, 13, &[1], &[2])]);
    assert_eq!(
        bench.converge(&[service(1, 13, &[1, 2], &[])])[1..],
        [
            "wait for a grace period",
            "service 1: write table of 13 slots at 0, aside",
            "service 1: name table of 13 slots at 0",
        ]
    );
}

#[test]
fn without_room_a_table_of_the_same_size_is_written_in_place() {
    let mut bench = Bench::new(20);
    bench.converge(&[service(1, 13, &[1, 2], &[])]);
    let before = bench.slots(1);
    bench.now = bench.now.later(TENURE_TICKS);
    let operations = bench.converge(&[service(1, 13, &[1], &[2])]);
    assert_eq!(
        operations[1..],
        ["service 1: write table of 13 slots at 0, in place"]
    );
    for (old, new) in before.iter().zip(bench.slots(1)) {
        assert_eq!(new, old.succeeded_by(1, bench.now));
    }
    assert_eq!(
        bench.converge(&[service(1, 13, &[1], &[2])]),
        [] as [&str; 0]
    );
}

#[test]
fn without_room_a_table_of_another_size_waits_and_says_so() {
    let mut bench = Bench::new(20);
    bench.converge(&[service(1, 13, &[1, 2], &[])]);
    let wanted = [service(1, 11, &[1, 2], &[]), service(2, 13, &[3], &[])];
    let plan = bench.plan(&wanted);
    let deferred = |slots| Deferred::Arena { slots, largest: 7 };
    assert_eq!(
        plan.deferred,
        BTreeMap::from([(1, deferred(11)), (2, deferred(13))])
    );
    bench.converge(&wanted);
    assert_eq!(bench.slots(1).len(), 13, "the table of before serves on");
    assert!(!bench.observed.services.contains_key(&2));
    bench.converge(&[service(2, 13, &[3], &[])]);
    let plan = bench.plan(&[service(2, 13, &[3], &[])]);
    assert_eq!(
        plan.deferred,
        BTreeMap::new(),
        "room comes with the other's removal"
    );
}

/// Else a new backend gets nothing for as long as flows of removed services live.
#[test]
fn while_a_table_of_another_size_waits_that_of_today_takes_in_what_changes() {
    let mut bench = Bench::new(20);
    bench.converge(&[service(1, 13, &[1, 2], &[])]);
    bench.now = bench.now.later(TENURE_TICKS);
    let wanted = [service(1, 17, &[1, 3], &[2])];
    let operations = bench.converge(&wanted);
    let in_place = "service 1: write table of 13 slots at 0, in place";
    assert_eq!(operations.last().map(String::as_str), Some(in_place));
    let owners: BTreeSet<u32> = bench.slots(1).iter().map(|slot| slot.current()).collect();
    assert_eq!(owners, BTreeSet::from([1, 3]));
    assert_eq!(bench.converge(&wanted), [] as [&str; 0]);
    assert!(bench.plan(&wanted).deferred.contains_key(&1));
    // More backends than it has slots wait.
    let mut bench = Bench::new(8);
    bench.converge(&[service(1, 5, &[1, 2], &[])]);
    let operations = bench.converge(&[service(1, 7, &[1, 2, 3, 4, 5, 6], &[])]);
    let is_table = |operation: &String| operation.contains("write table");
    assert!(!operations.iter().any(is_table), "{operations:#?}");
}

/// It may wait for days, and with a ramp there are ten plans a second.
#[test]
fn what_waits_for_room_is_not_built() {
    let mut bench = Bench::new(20);
    bench.converge(&[service(1, 13, &[1, 2], &[])]);
    let built = |bench: &mut Bench, wanted: &[resolve::Service<'_>]| {
        let before = bench.tables.builds;
        bench.converge(wanted);
        bench.tables.builds - before
    };
    let wanted = [service(1, 17, &[1, 2], &[]), service(2, 13, &[3], &[])];
    for _ in 0..3 {
        assert_eq!(built(&mut bench, &wanted), 0, "today's is as it was");
        let plan = bench.plan(&wanted);
        assert_eq!(plan.deferred.keys().collect::<Vec<_>>(), [&1, &2]);
    }
    // That of today takes in a change, and then is known.
    let wanted = [service(1, 17, &[1], &[2]), service(2, 13, &[3], &[])];
    assert_eq!(built(&mut bench, &wanted), 1);
    assert_eq!(built(&mut bench, &wanted), 0);
    // What has room is built once.
    let wanted = [service(1, 7, &[1], &[2])];
    assert_eq!(built(&mut bench, &wanted), 1);
    assert_eq!(bench.slots(1).len(), 7);
    assert_eq!(built(&mut bench, &wanted), 0);
}

#[test]
fn slots_succeed_those_of_a_table_of_the_same_size_only() {
    let mut bench = Bench::new(1_000);
    bench.converge(&[service(1, 13, &[1], &[2])]);
    bench.now = bench.now.later(TENURE_TICKS);
    bench.converge(&[service(1, 13, &[2], &[1])]);
    assert!(
        bench
            .slots(1)
            .iter()
            .all(|slot| *slot == Slot::new(2, 1, bench.now))
    );
    bench.converge(&[service(1, 17, &[2], &[1])]);
    assert!(
        bench
            .slots(1)
            .iter()
            .all(|slot| *slot == Slot::new(2, 0, bench.now))
    );
}

/// By another seed, or without their ports, clients have other slots than they had: whom one of these had before is nothing to them.
#[test]
fn slots_that_other_clients_have_succeed_none() {
    const OTHER: [u64; 4] = [5, 6, 7, 8];
    type Change = fn(&mut resolve::Service<'_>);
    let changes: [(&str, [u64; 4], Change); 3] = [
        ("a rotated seed", OTHER, |service| {
            let Endpoint { vip, port } = service.endpoint;
            service.seed = ids::service_seed(&OTHER, vip, port);
        }),
        ("a group", SEED, |service| {
            service.seed = ids::group_seed(&SEED, "shop");
            service.placed_as = "shop";
        }),
        ("clients without ports", SEED, |service| {
            service.placing = Some(resolve::Placing { group: 1, ticks: 9 });
        }),
    ];
    // The owners of today, and others.
    let owners: [&[u32]; 2] = [&[1], &[1, 3]];
    for (what, fleet_seed, change) in changes {
        for new in owners {
            // Aside, and in place.
            for room in [1_000, 20] {
                let mut bench = Bench::new(room);
                bench.converge(&[service(1, 13, &[1, 2], &[])]);
                bench.now = bench.now.later(TENURE_TICKS);
                bench.converge(&[service(1, 13, &[1], &[2])]);
                assert!(bench.slots(1).iter().any(|slot| slot.previous() == 2));
                bench.now = bench.now.later(TENURE_TICKS);
                bench.fleet_seed = fleet_seed;
                let mut wanted = service(1, 13, new, &[2]);
                change(&mut wanted);
                bench.converge(std::slice::from_ref(&wanted));
                for slot in bench.slots(1) {
                    let fresh = Slot::new(slot.current(), 0, bench.now);
                    assert_eq!(slot, fresh, "{what}, {new:?}, room for {room}");
                }
                assert_eq!(bench.converge(&[wanted]), [] as [&str; 0], "{what}");
            }
        }
    }
}

#[test]
fn the_next_holder_of_a_services_id_inherits_nothing() {
    let mut bench = Bench::new(1_000);
    bench.converge(&[service(1, 13, &[1], &[])]);
    bench.now = bench.now.later(TENURE_TICKS);
    let mut next = service(1, 13, &[2], &[]);
    next.endpoint.vip = [10, 0, 0, 99].into();
    let operations = bench.converge(&[next.clone()]);
    assert!(
        operations.contains(&"service 1: clear".to_owned()),
        "{operations:#?}"
    );
    assert_eq!(
        operations.last().map(String::as_str),
        Some("backend 1: clear")
    );
    assert!(
        bench
            .slots(1)
            .iter()
            .all(|slot| *slot == Slot::new(2, 0, bench.now))
    );
    assert_eq!(bench.converge(&[next]), [] as [&str; 0]);
}

#[test]
fn a_backend_stays_as_long_as_a_slot_names_it() {
    let mut bench = Bench::new(1_000);
    bench.converge(&[service(1, 13, &[1], &[2])]);
    bench.now = bench.now.later(TENURE_TICKS);
    bench.converge(&[service(1, 13, &[2], &[1])]);
    // Nobody wants backend 1 any more, but it is the previous owner of all slots.
    assert_eq!(
        bench.converge(&[service(1, 13, &[2], &[])]),
        [] as [&str; 0]
    );
    bench.now = bench.now.later(HANDOVER_TICKS);
    let wanted = [service(1, 13, &[2], &[])];
    assert_eq!(
        bench.converge(&wanted),
        ["service 1: forget previous owners whose handover is over"]
    );
    assert_eq!(bench.converge(&wanted), ["backend 1: clear"]);
    assert_eq!(bench.converge(&wanted), [] as [&str; 0]);
}

#[test]
fn without_members_slots_have_no_owner_but_remember_the_last() {
    let mut bench = Bench::new(1_000);
    bench.converge(&[service(1, 13, &[1], &[])]);
    bench.now = bench.now.later(TENURE_TICKS);
    bench.converge(&[service(1, 17, &[], &[1])]);
    assert!(
        bench
            .slots(1)
            .iter()
            .all(|slot| *slot == Slot::new(0, 1, bench.now))
    );
    assert_eq!(
        bench.converge(&[service(1, 17, &[], &[1])]),
        [] as [&str; 0]
    );
    bench.converge(&[service(1, 17, &[1], &[])]);
    assert_eq!(bench.slots(1).len(), 17);
}
