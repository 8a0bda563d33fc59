use lb_common::{
    backend::{BackendState, Mode, NextHop, Serving},
    maglev::{Slot, TENURE_TICKS},
    vip::{VipEntry, WAYS, homes},
};

use super::*;
use crate::{
    dataplane::maps::{Capacity, Maps},
    desired::Endpoint,
    ids::Numbered,
    resolve::{Hop, Share},
};

const SEED: [u64; 4] = [1, 2, 3, 4];

/// Maps in memory, with what was planned for them so far.
struct Bench {
    maps: Maps,
    observed: Observed,
    tables: Tables,
    now: Tick,
}

impl Bench {
    fn new(table_slots: u32) -> Self {
        let capacity = Capacity {
            flow_buckets: 2,
            services: 8,
            backends: 32,
            table_slots,
            cpus: 1,
        };
        let maps = Maps::in_memory(capacity).unwrap();
        let now = Tick(10_000);
        let observed = Observed::read(&maps, Unsettled::default(), now);
        Self {
            maps,
            observed,
            tables: Tables::default(),
            now,
        }
    }

    fn plan(&mut self, services: &[resolve::Service<'_>]) -> Plan {
        let wanted = Wanted {
            fleet_seed: &SEED,
            services,
            unlisted: &BTreeSet::new(),
            host_owned: &BTreeSet::new(),
        };
        plan(&wanted, &self.observed, &mut self.tables, self.now)
    }

    /// Plans and applies; gives the operations in words.
    fn converge(&mut self, services: &[resolve::Service<'_>]) -> Vec<String> {
        let plan = self.plan(services);
        for operation in &plan.operations {
            operation.apply(&self.maps, &|| {});
            self.observed.follow(&self.maps, operation, self.now);
        }
        self.observed.unsettled = plan.unsettled;
        let whole = Observed::read(&self.maps, Unsettled::default(), self.now);
        assert_eq!(
            self.observed.services, whole.services,
            "what was followed is what is there"
        );
        assert_eq!(self.observed.backends, whole.backends);
        assert_eq!(self.observed.vips, whole.vips);
        plan.operations.iter().map(ToString::to_string).collect()
    }

    fn slots(&self, service: u16) -> Vec<Slot> {
        let table = self.observed.services[&service].table;
        let slots = table.offset()..table.offset() + table.size();
        slots.map(|index| self.maps.tables.get(index)).collect()
    }
}

fn backend(id: u32, serving: Serving) -> resolve::Backend {
    resolve::Backend {
        numbered: Numbered { id, generation: 3 },
        identity: u64::from(id) + 1_000,
        address: Ipv4Addr::new(10, 0, 1, id as u8),
        port: 80,
        mode: Mode::Ipip,
        serving,
        hop: Hop::Unheard,
    }
}

/// A service of number `id` with a table of `size` slots, whose backends `new` share it and `old` keep their flows.
fn service(id: u16, size: u32, new: &[u32], old: &[u32]) -> resolve::Service<'static> {
    const NAMES: [&str; 8] = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"];
    let vip = Ipv4Addr::new(10, 0, 0, id as u8);
    resolve::Service {
        id,
        name: "chat",
        endpoint: Endpoint { vip, port: 80 },
        seed: ids::service_seed(&SEED, vip, 80),
        table: Some(resolve::Table {
            size,
            members: new
                .iter()
                .map(|&id| Share {
                    name: NAMES[id as usize % 8],
                    weight: 100,
                    id,
                })
                .collect(),
        }),
        fail_open: false,
        resets_suspended: None,
        backends: new
            .iter()
            .map(|&id| backend(id, Serving::New))
            .chain(old.iter().map(|&id| backend(id, Serving::ExistingOnly)))
            .collect(),
    }
}

#[test]
fn a_first_plan_builds_from_the_ground_up() {
    let mut bench = Bench::new(1_000);
    let operations = bench.converge(&[service(1, 13, &[1, 2], &[])]);
    let [own, listed] = [0, 80].map(|port| {
        let key = VipEntry::key(0x0a00_0001, port);
        homes(key, bench.maps.capacity.vip_buckets())[0]
    });
    let words = [
        format!("directory: write {}.0: 10.0.0.1:0 is 0", own),
        format!(
            "directory: write {}.{}: 10.0.0.1:80 is 1",
            listed,
            u8::from(own == listed)
        ),
    ];
    assert_eq!(
        operations[..4],
        [
            "backend 1, generation 3: write 10.0.1.1:80 of service 1",
            "backend 2, generation 3: write 10.0.1.2:80 of service 1",
            "service 1: write table of 13 slots at 0, aside",
            "service 1: write 10.0.0.1:80",
        ]
    );
    assert_eq!(operations[4..], words);
    assert_eq!(
        bench.converge(&[service(1, 13, &[1, 2], &[])]),
        [] as [&str; 0]
    );
}

#[test]
fn a_removal_takes_apart_from_the_top() {
    let mut bench = Bench::new(1_000);
    bench.converge(&[service(1, 13, &[1, 2], &[])]);
    let operations = bench.converge(&[]);
    assert!(
        operations[0].starts_with("directory: clear"),
        "{operations:?}"
    );
    assert!(
        operations[1].starts_with("directory: clear"),
        "{operations:?}"
    );
    assert_eq!(
        operations[2..],
        [
            "wait for a grace period",
            "service 1: clear",
            "backend 1: clear",
            "backend 2: clear"
        ]
    );
    assert_eq!(
        bench.maps.state(1).generation(),
        3,
        "the next holder of the id must know"
    );
    assert_eq!(bench.converge(&[]), [] as [&str; 0]);
}

#[test]
fn a_drain_stops_new_flows_before_the_table_is_built() {
    let mut bench = Bench::new(1_000);
    bench.converge(&[service(1, 13, &[1, 2], &[])]);
    assert_eq!(
        bench.converge(&[service(1, 13, &[1], &[2])]),
        [
            "backend 2: serving existing-only, next hop 0 unresolved",
            "service 1: write table of 13 slots at 13, aside",
            "service 1: name table of 13 slots at 13",
        ]
    );
    assert!(bench.slots(1).iter().all(|slot| slot.current() == 1));
}

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

#[test]
fn the_next_holder_of_a_services_id_inherits_nothing() {
    let mut bench = Bench::new(1_000);
    bench.converge(&[service(1, 13, &[1], &[])]);
    bench.now = bench.now.later(TENURE_TICKS);
    let mut next = service(1, 13, &[2], &[]);
    next.endpoint.vip = Ipv4Addr::new(10, 0, 0, 99);
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

#[test]
fn a_next_hop_is_written_beside_the_one_in_force_and_then_named() {
    let mut bench = Bench::new(1_000);
    let hop = |last| NextHop {
        destination: [2, 0, 0, 0, 0, last],
        ifindex: 7,
        ..NextHop::default()
    };
    let with = |resolved: Hop| {
        let mut service = service(1, 13, &[1], &[]);
        service.backends[0].hop = resolved;
        [service]
    };
    bench.converge(&with(Hop::Unresolved));
    assert_eq!(
        bench.converge(&with(Hop::Resolved(hop(1)))),
        [
            "backend 1: write next hop 1: 02:00:00:00:00:01 on interface 7",
            "backend 1: serving new, next hop 1 resolved",
        ]
    );
    assert_eq!(
        bench.converge(&with(Hop::Unresolved)),
        ["backend 1: serving new, next hop 1 unresolved"]
    );
    assert_eq!(bench.converge(&with(Hop::Unheard)), [] as [&str; 0]);
    assert_eq!(
        bench.converge(&with(Hop::Resolved(hop(1)))),
        ["backend 1: serving new, next hop 1 resolved"]
    );
    assert_eq!(
        bench.converge(&with(Hop::Resolved(hop(2)))),
        [
            "wait for a grace period",
            "backend 1: write next hop 0: 02:00:00:00:00:02 on interface 7",
            "backend 1: serving new, next hop 0 resolved",
        ]
    );
    assert_eq!(bench.maps.backends.get(1).hops, [hop(2), hop(1)]);
}

#[test]
fn what_somebody_else_broke_is_mended() {
    let wanted = [service(1, 13, &[1, 2], &[])];
    type Break = fn(&Maps);
    let breaks: [(&str, Break); 6] = [
        ("a slot", |maps| {
            maps.tables
                .word(5, 0)
                .store(9, std::sync::atomic::Ordering::SeqCst)
        }),
        ("a table beyond the end", |maps| {
            maps.set_table(1, TableRef::new(999, 13, 0))
        }),
        ("a state", |maps| maps.set_state(2, BackendState::default())),
        ("an address", |maps| {
            maps.backends
                .word(2, 2)
                .store(9, std::sync::atomic::Ordering::SeqCst)
        }),
        ("a seed", |maps| {
            maps.services
                .word(1, 1)
                .store(9, std::sync::atomic::Ordering::SeqCst)
        }),
        ("the directory", |maps| {
            for bucket in 0..maps.capacity.vip_buckets() {
                maps.set_vip(bucket, 0, VipEntry::new(0x0a00_0001, 80, 7));
                maps.set_vip(bucket, 1, VipEntry::default());
            }
        }),
    ];
    let owners =
        |bench: &Bench| -> Vec<u32> { bench.slots(1).iter().map(|slot| slot.current()).collect() };
    for (what, break_it) in breaks {
        let mut bench = Bench::new(1_000);
        bench.converge(&wanted);
        let (before, table) = (bench.observed.clone(), owners(&bench));
        break_it(&bench.maps);
        bench.observed = Observed::read(&bench.maps, Unsettled::default(), bench.now);
        assert_ne!(bench.converge(&wanted), [] as [&str; 0], "{what}");
        assert_eq!(bench.observed.backends, before.backends, "{what}");
        assert_eq!(owners(&bench), table, "{what}");
        let entry = |observed: &Observed| Service {
            table: 0,
            ..observed.services[&1].entry
        };
        assert_eq!(entry(&bench.observed), entry(&before), "{what}");
        let words = |observed: &Observed| -> BTreeSet<u64> {
            observed
                .vips
                .iter()
                .flat_map(|bucket| bucket.entries)
                .collect()
        };
        assert_eq!(words(&bench.observed), words(&before), "{what}");
        assert_eq!(bench.converge(&wanted), [] as [&str; 0], "{what}");
    }
}

/// As full as it gets: every word that is moved must be found before and after every operation.
#[test]
fn a_full_directory_makes_place_by_moving_words() {
    let moves = (0..20)
        .map(|start| fill_directory(1_000 + 977 * start))
        .sum::<u32>();
    assert!(moves > 0, "no word was ever moved");
}

/// Lists services at ports from `start` on until the directory is full. Returns how many words were moved for them.
fn fill_directory(start: u16) -> u32 {
    let buckets = 4;
    let mut held = vec![lb_common::vip::VipBucket::default(); buckets as usize];
    let mut listed: Vec<(Endpoint, u16)> = Vec::new();
    let mut moved = 0;
    for id in 1.. {
        // One VIP, so that its own entry takes one word of the sixteen.
        let vip = Ipv4Addr::new(10, 0, 0, 1);
        let endpoint = Endpoint {
            vip,
            port: start + id,
        };
        let mut wanted = listed.clone();
        wanted.push((endpoint, id));
        let changes = directory::arrange(&held, &wanted, &BTreeSet::new());
        if !changes.unplaced.is_empty() {
            assert_eq!(changes.unplaced, [id]);
            break;
        }
        assert_eq!(changes.removals, []);
        let mut writes_since_grace: BTreeSet<u64> = BTreeSet::new();
        for operation in &changes.additions {
            match *operation {
                Operation::Grace => {
                    moved += 1;
                    writes_since_grace.clear();
                }
                Operation::SetVip { bucket, way, entry } => {
                    let old = held[bucket as usize].entries[way];
                    assert!(
                        old == 0 || !writes_since_grace.contains(&old),
                        "cleared before readers could find the copy"
                    );
                    held[bucket as usize].entries[way] = entry.0;
                    writes_since_grace.insert(entry.0);
                }
                ref other => panic!("{other}"),
            }
            for &(Endpoint { vip, port }, id) in &listed {
                let key = VipEntry::key(vip.to_bits(), port);
                let found = homes(key, buckets).into_iter().any(|bucket| {
                    held[bucket as usize]
                        .entries
                        .contains(&(key | u64::from(id)))
                });
                assert!(found, "{vip}:{port} is lost");
            }
        }
        listed = wanted;
        assert!(
            listed.len() < buckets as usize * WAYS,
            "more services than words"
        );
    }
    assert!(listed.len() >= 10, "full at {} of 15", listed.len());
    moved
}
