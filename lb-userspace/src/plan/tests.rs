mod guard;
mod slots;
mod translation;
mod vips;

use lb_common::{
    backend::{Backend, BackendState, Forwarding, Mode, NextHop, Serving},
    counters::Counter,
    maglev::Slot,
    vip::{VipBucket, VipEntry, homes},
};

use super::*;
use crate::{
    dataplane::maps::{Capacity, Maps},
    desired::Endpoint,
    ids::Numbered,
    model::OnDown,
    resolve::{Hop, Share},
};

const SEED: [u64; 4] = [1, 2, 3, 4];

/// Maps in memory, with what was planned for them so far.
struct Bench {
    maps: Maps,
    observed: Observed,
    tables: Tables,
    now: Tick,
    fleet_seed: [u64; 4],
    host_owned: BTreeSet<IpAddr>,
    translations: Translations,
}

impl Bench {
    fn new(table_slots: u32) -> Self {
        let capacity = Capacity {
            flow4_buckets: 2,
            flow6_buckets: 2,
            services: 8,
            backends: 32,
            table_slots,
            affinity_buckets: 2,
            cpus: 1,
            nat4_buckets: 2,
            nat6_buckets: 2,
            endpoints: 8,
            pairs: 8,
            ranges: 16,
            source_buckets: 2,
            guards: false,
            measures: false,
        };
        let maps = Maps::in_memory(capacity).unwrap();
        let now = Tick(10_000);
        let observed = Observed::read(&maps, Unsettled::default(), now);
        Self {
            maps,
            observed,
            tables: Tables::default(),
            now,
            fleet_seed: SEED,
            host_owned: BTreeSet::new(),
            translations: Translations::default(),
        }
    }

    /// A directory without entries.
    fn empty_directory(&self) -> Vec<VipBucket> {
        vec![VipBucket::default(); self.maps.capacity.vip_buckets() as usize]
    }

    fn plan(&mut self, services: &[resolve::Service<'_>]) -> Plan {
        let wanted = Wanted {
            fleet_seed: &self.fleet_seed,
            services,
            unlisted: &BTreeSet::new(),
            translations: &self.translations,
            host_owned: &self.host_owned,
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
        assert_eq!(self.observed.vips4, whole.vips4);
        assert_eq!(self.observed.vips6, whole.vips6);
        assert_eq!(self.observed.translations, whole.translations);
        assert_eq!(self.observed.guards, whole.guards);
        assert_eq!(self.observed.endpoints4, whole.endpoints4);
        assert_eq!(self.observed.endpoints6, whole.endpoints6);
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
        address: [10, 0, 1, id as u8].into(),
        port: 80,
        mode: Mode::Ipip,
        serving,
        died: None,
        spared: None,
        pace: None,
        on_down: OnDown::Reset,
        due: None,
        hop: Hop::Unheard,
        translated: Translated::default(),
    }
}

/// A service of number `id` with a table of `size` slots, whose backends `new` share it and `old` keep their flows.
fn service(id: u16, size: u32, new: &[u32], old: &[u32]) -> resolve::Service<'static> {
    const NAMES: [&str; 8] = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"];
    let vip = IpAddr::from([10, 0, 0, id as u8]);
    resolve::Service {
        id,
        name: "chat",
        endpoint: Endpoint { vip, port: 80 },
        seed: ids::service_seed(&SEED, vip, 80),
        placing: Some(resolve::Placing::default()),
        placed_as: "chat",
        guard: None,
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
        spread: Default::default(),
        resets_suspended: None,
        well_seen: Default::default(),
        backends: new
            .iter()
            .map(|&id| backend(id, Serving::New))
            .chain(old.iter().map(|&id| backend(id, Serving::ExistingOnly)))
            .collect(),
    }
}

/// The same service at an IPv6 VIP that all of this kind share; port 80 and the service's number.
fn service6(id: u16) -> resolve::Service<'static> {
    resolve::Service {
        endpoint: Endpoint {
            vip: VIP6,
            port: 80 + id,
        },
        ..service(id, 13, &[u32::from(id)], &[])
    }
}

const VIP6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// What a directory holds for a VIP and port.
fn find(directory: &[VipBucket], vip: IpAddr, port: u16) -> Option<u16> {
    let key = key_of(vip, port);
    homes(key, directory.len() as u32)
        .into_iter()
        .flat_map(|bucket| directory[bucket as usize].entries)
        .map(VipEntry)
        .find(|entry| entry.is_for(key))
        .map(VipEntry::value)
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
        format!("directory of IPv4: write {own}.0: 0a0000010000 is 0"),
        format!(
            "directory of IPv4: write {}.{}: 0a0000010050 is 1",
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
        operations[0].starts_with("directory of IPv4: clear"),
        "{operations:?}"
    );
    assert!(
        operations[1].starts_with("directory of IPv4: clear"),
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
fn whoever_is_given_an_id_begins_to_count_at_nothing() {
    let Bench { maps, .. } = Bench::new(1_000);
    let layout = maps.capacity.counters();
    let counted = Counter {
        packets: 7,
        bytes: 700,
    };
    let write = |identity| {
        let backend = Backend {
            identity,
            ..maps.backends.get(3)
        };
        let service = Service {
            identity,
            ..maps.services.get(2)
        };
        let operations = [
            Operation::WriteBackend {
                id: 3,
                entry: Box::new(backend),
            },
            Operation::WriteService {
                id: 2,
                entry: Box::new(service),
            },
        ];
        for operation in operations {
            operation.apply(&maps, &|| {});
        }
    };
    let offsets = [layout.backend(3), layout.service(2)];
    let others = [layout.backend(2), layout.service(3)];
    let counters = |offsets: [u32; 2]| offsets.map(|offset| maps.counter(offset));
    for offset in offsets.into_iter().chain(others) {
        maps.counters.set(offset, &counted);
    }
    write(1_003);
    assert_eq!(counters(offsets), [Counter::default(); 2]);
    // Whoever is written anew goes on.
    for offset in offsets {
        maps.counters.set(offset, &counted);
    }
    write(1_003);
    assert_eq!(counters(offsets), [counted; 2]);
    assert_eq!(counters(others), [counted; 2]);
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
                let wrong = VipEntry::new(0x0a00_0001, 80, 7);
                maps.set_vip(IpVersion::V4, bucket, 0, wrong);
                maps.set_vip(IpVersion::V4, bucket, 1, VipEntry::default());
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
                .vips4
                .iter()
                .flat_map(|bucket| bucket.entries)
                .collect()
        };
        assert_eq!(words(&bench.observed), words(&before), "{what}");
        assert_eq!(bench.converge(&wanted), [] as [&str; 0], "{what}");
    }
}

#[test]
fn a_backends_entry_says_how_the_data_path_reaches_it() {
    let mut bench = Bench::new(1_000);
    let mut wanted = service6(1);
    let source = "2001:db8:1::2".parse().unwrap();
    let address: IpAddr = "2001:db8:1::11".parse().unwrap();
    let hop = NextHop {
        ifindex: 7,
        ..NextHop::default()
    }
    .from_source(source)
    .encapsulating(address);
    wanted.backends[0].address = address;
    wanted.backends[0].hop = Hop::Resolved(hop);
    let operations = bench.converge(std::slice::from_ref(&wanted));
    assert_eq!(
        operations[0],
        "backend 1, generation 3: write [2001:db8:1::11]:80 of service 1"
    );
    let entry = bench.maps.backends.get(1);
    assert_eq!(
        BackendState(entry.state).forwarding(),
        Some(Forwarding::InIpv6)
    );
    assert_eq!((IpAddr::from(entry.address), entry.hops[0]), (address, hop));
    assert_eq!(
        IpAddr::from(bench.maps.services.get(1).vip),
        VIP6,
        "what fingerprints are compared with"
    );
    assert_eq!(bench.converge(&[wanted]), [] as [&str; 0]);
}

#[test]
fn flows_of_a_dead_backend_are_kept_or_forgotten_by_its_state() {
    let mut bench = Bench::new(100);
    let mut wanted = [service(1, 13, &[1], &[2])];
    bench.converge(&wanted);
    // (closes, forgets)
    for (serving, on_down, expected) in [
        (Serving::None, OnDown::Reset, (true, false)),
        (Serving::None, OnDown::Keep, (false, false)),
        (Serving::None, OnDown::Rehash, (false, true)),
        (Serving::ExistingOnly, OnDown::Rehash, (false, false)),
        (Serving::New, OnDown::Keep, (false, false)),
    ] {
        let backend = &mut wanted[0].backends[1];
        (backend.serving, backend.on_down) = (serving, on_down);
        bench.converge(&wanted);
        let state = bench.maps.state(2);
        assert_eq!(
            (state.closes(0, 100), state.forgets()),
            expected,
            "{on_down:?}"
        );
        assert_eq!(state.serving(), serving);
        assert_eq!(bench.converge(&wanted), [] as [&str; 0]);
    }
}

#[test]
fn a_pace_is_one_store_of_a_state_and_its_end_another() {
    use lb_common::share::Share as Part;
    let mut bench = Bench::new(100);
    let mut wanted = [service(1, 13, &[1], &[2])];
    bench.converge(&wanted);
    let paced = |share, since| Some(crate::pace::Pace { share, since });
    for (pace, word) in [
        (paced(Part::NONE, Tick(0)), "0 of 65536 parts closed"),
        (
            paced(Part::of_parts(700), Tick(0)),
            "700 of 65536 parts closed",
        ),
        (paced(Part::ALL, Tick(9)), "65536 of 65536 parts closed"),
        (None, "unresolved"),
    ] {
        wanted[0].backends[1].pace = pace;
        let plan = bench.plan(&wanted);
        let [operation] = &plan.operations[..] else {
            panic!("{:?}", plan.operations);
        };
        assert!(operation.to_string().ends_with(word), "{operation}");
        bench.converge(&wanted);
        let state = bench.maps.state(2);
        assert_eq!(state.share(), pace.map(|pace| pace.share));
        assert_eq!(
            state.all_closed_since(),
            pace.filter(|pace| pace.share == Part::ALL)
                .map(|pace| pace.since)
        );
    }
}

#[test]
fn a_service_that_begins_to_place_clients_is_written_and_one_that_is_removed_stays_as_it_is() {
    let mut bench = Bench::new(64);
    let mut wanted = service(1, 7, &[1], &[]);
    bench.converge(&[wanted.clone()]);
    let placing = resolve::Placing { group: 2, ticks: 9 };
    (wanted.placing, wanted.placed_as) = (Some(placing), "shop");
    wanted.seed = ids::group_seed(&SEED, "shop");
    bench.converge(&[wanted.clone()]);
    let held = bench.maps.services.get(1);
    assert_eq!(
        (held.affinity, held.affinity_ticks, held.seed),
        (2, 9, wanted.seed)
    );
    let removed = resolve::Service {
        placing: None,
        seed: ids::service_seed(&SEED, [10, 0, 0, 1].into(), 80),
        table: None,
        ..wanted
    };
    bench.converge(&[removed]);
    assert_eq!(bench.maps.services.get(1), held);
}
