use super::*;

mod balance;
mod falls;

const SEED: [u64; 4] = [1, 2, 3, 4];
const NOW: Moment = Moment(1_000_000);

/// A backend that is active, of weight 100 and up, unless a test says otherwise.
fn backend(id: u32, change: impl Fn(&mut BackendFacts<'static>)) -> BackendFacts<'static> {
    const NAMES: [&str; 9] = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8"];
    let mut backend = BackendFacts {
        numbered: Numbered { id, generation: 0 },
        identity: u64::from(id),
        name: NAMES[id as usize],
        address: [10, 0, 1, id as u8].into(),
        port: 80,
        mode: Mode::Ipip,
        wanted: Some(WantedBackend {
            admin: Admin::Active,
            weight: 100,
            initial: Initial::Unknown,
            part: Part::default(),
        }),
        health: Health::Up,
        fell_at_ms: None,
        faltered_at_ms: None,
        spared: None,
        next_check: Duration::from_secs(3),
        died: None,
        closing: None,
        held: None,
        hop: Hop::Unheard,
        standing: Standing::default(),
        translated: None,
    };
    change(&mut backend);
    backend
}

fn up(id: u32) -> BackendFacts<'static> {
    backend(id, |_| {})
}

/// When that is of which a test tells in milliseconds since most of a minute ago.
const fn at(ms: u64) -> u64 {
    NOW.0 as u64 - 50_000 + ms
}

fn fallen(id: u32, at_ms: u64) -> BackendFacts<'static> {
    backend(id, |b| {
        b.health = Health::Down;
        b.fell_at_ms = Some(at(at_ms));
    })
}

fn admin(id: u32, admin: Admin, health: Health) -> BackendFacts<'static> {
    backend(id, |b| {
        b.wanted = Some(WantedBackend {
            admin,
            weight: 100,
            initial: Initial::Unknown,
            part: Part::default(),
        });
        b.health = health;
    })
}

fn service(backends: Vec<BackendFacts<'static>>) -> ServiceFacts<'static> {
    ServiceFacts {
        id: 1,
        name: "chat",
        endpoint: Endpoint {
            vip: [10, 0, 0, 1].into(),
            port: 80,
        },
        wanted: Some(WantedService {
            table_size: 1009,
            min_healthy: 1,
            policy: Policy::default(),
        }),
        affinity: None,
        guard: None,
        on_down: OnDown::Reset,
        reset_over: Duration::ZERO,
        told_before: None,
        resets_were_suspended: false,
        well_seen: WellSeen::default(),
        backends,
    }
}

fn one(facts: ServiceFacts<'static>) -> Service<'static> {
    resolve(&SEED, &[facts], NOW).remove(0)
}

/// What each backend serves, and the ids of those that share the table.
fn outcome(backends: Vec<BackendFacts<'static>>) -> (Vec<Serving>, Vec<u32>) {
    let service = one(service(backends));
    let serving = service.backends.iter().map(|backend| backend.serving);
    let members = service.table.into_iter().flat_map(|table| table.members);
    (serving.collect(), members.map(|share| share.id).collect())
}

#[test]
fn admin_state_and_health_decide_together() {
    use Serving::{ExistingOnly, New, None};
    for (state, health, serving) in [
        (Admin::Active, Health::Up, New),
        (Admin::Active, Health::Refusing, ExistingOnly),
        (Admin::Active, Health::Down, None),
        (Admin::Active, Health::Unknown, ExistingOnly),
        (Admin::Draining, Health::Up, ExistingOnly),
        (Admin::Draining, Health::Refusing, ExistingOnly),
        (Admin::Draining, Health::Down, None),
        (Admin::Draining, Health::Unknown, ExistingOnly),
        (Admin::Disabled, Health::Up, ExistingOnly),
        (Admin::Disabled, Health::Down, None),
    ] {
        let expected_members = if serving == New { vec![1, 2] } else { vec![1] };
        let outcome = outcome(vec![up(1), admin(2, state, health)]);
        assert_eq!(
            outcome,
            (vec![New, serving], expected_members),
            "{state:?} and {health:?}"
        );
    }
}

#[test]
fn a_removed_backend_keeps_its_flows_until_it_is_dead() {
    for (health, serving) in [
        (Health::Up, Serving::ExistingOnly),
        (Health::Refusing, Serving::ExistingOnly),
        (Health::Unknown, Serving::ExistingOnly),
        (Health::Down, Serving::None),
    ] {
        let removed = backend(2, |b| {
            b.wanted = None;
            b.health = health;
        });
        assert_eq!(
            outcome(vec![up(1), removed]),
            (vec![Serving::New, serving], vec![1]),
            "{health:?}"
        );
    }
}

#[test]
fn what_was_found_in_the_maps_holds_until_the_first_verdict() {
    for held in [Serving::New, Serving::ExistingOnly, Serving::None] {
        let adopted = backend(2, |b| {
            b.health = Health::Unknown;
            b.held = Some(held);
        });
        assert_eq!(outcome(vec![up(1), adopted]).0[1], held);
    }
    let drained = backend(2, |b| {
        b.wanted = Some(WantedBackend {
            admin: Admin::Draining,
            weight: 100,
            initial: Initial::Unknown,
            part: Part::default(),
        });
        b.health = Health::Unknown;
        b.held = Some(Serving::New);
    });
    assert_eq!(outcome(vec![up(1), drained]).0[1], Serving::ExistingOnly);
}

#[test]
fn a_new_backend_counts_as_its_service_says_until_the_first_verdict() {
    let fresh = |admin, initial, health| {
        backend(2, move |b| {
            b.wanted = Some(WantedBackend {
                admin,
                weight: 100,
                initial,
                part: Part::default(),
            });
            b.health = health;
        })
    };
    use {Admin::*, Health::*, Serving::*};
    for (admin, initial, health, serving) in [
        (Active, Initial::Unknown, Unknown, ExistingOnly),
        (Active, Initial::Up, Unknown, New),
        (Draining, Initial::Up, Unknown, ExistingOnly),
        (Disabled, Initial::Up, Unknown, ExistingOnly),
        (Active, Initial::Up, Refusing, ExistingOnly),
        (Active, Initial::Up, Down, None),
    ] {
        let given = outcome(vec![up(1), fresh(admin, initial, health)]).0[1];
        assert_eq!(given, serving, "{admin:?} {initial:?} {health:?}");
    }
    // What was found in the maps is known better.
    let mut adopted = fresh(Active, Initial::Up, Unknown);
    adopted.held = Some(ExistingOnly);
    assert_eq!(outcome(vec![up(1), adopted]).0[1], ExistingOnly);
}

#[test]
fn weight_zero_takes_no_new_flows_not_even_in_fail_open() {
    let weightless = |health| {
        backend(2, move |b| {
            b.wanted = Some(WantedBackend {
                admin: Admin::Active,
                weight: 0,
                initial: Initial::Unknown,
                part: Part::default(),
            });
            b.health = health;
        })
    };
    let (serving, members) = outcome(vec![up(1), weightless(Health::Up)]);
    assert_eq!((serving[1], members), (Serving::ExistingOnly, vec![1]));
    let (serving, members) = outcome(vec![fallen(1, 0), weightless(Health::Up)]);
    assert_eq!(
        (serving, members),
        (vec![Serving::New, Serving::ExistingOnly], vec![1])
    );
}

#[test]
fn without_a_usable_backend_all_active_ones_take_new_flows() {
    let service = one(service(vec![
        fallen(1, 0),
        admin(2, Admin::Active, Health::Refusing),
        admin(3, Admin::Active, Health::Unknown),
        admin(4, Admin::Draining, Health::Up),
        admin(5, Admin::Disabled, Health::Up),
        admin(6, Admin::Draining, Health::Down),
    ]));
    assert!(service.fail_open);
    assert_eq!(service.resets_suspended, Some(Suspension::FailOpen));
    let serving: Vec<_> = service.backends.iter().map(|b| b.serving).collect();
    use Serving::{ExistingOnly, New};
    assert_eq!(
        serving,
        [New, New, New, ExistingOnly, ExistingOnly, ExistingOnly]
    );
    let members: Vec<_> = service
        .table
        .unwrap()
        .members
        .iter()
        .map(|m| m.id)
        .collect();
    assert_eq!(members, [1, 2, 3]);
}

#[test]
fn min_healthy_raises_the_threshold() {
    let with = |min_healthy| {
        let mut facts = service(vec![up(1), fallen(2, 0), up(3)]);
        facts.wanted = Some(WantedService {
            table_size: 1009,
            min_healthy,
            policy: Policy::default(),
        });
        let service = one(facts);
        (service.fail_open, service.backends[1].serving)
    };
    assert_eq!(with(0), (false, Serving::None));
    assert_eq!(with(2), (false, Serving::None));
    assert_eq!(with(3), (true, Serving::New));
}

#[test]
fn with_nobody_to_open_for_there_is_no_fail_open() {
    let facts = service(vec![
        admin(1, Admin::Draining, Health::Up),
        admin(2, Admin::Draining, Health::Down),
    ]);
    let service = one(facts);
    assert!(!service.fail_open);
    assert_eq!(service.table.unwrap().members, []);
}

/// Maintenance: that nobody is usable is the operator's doing, and says nothing about checks.
#[test]
fn clients_of_one_that_dies_drained_with_all_others_are_told() {
    let draining = |id, health| admin(id, Admin::Draining, health);
    let weightless = backend(3, |b| {
        b.wanted = Some(WantedBackend {
            admin: Admin::Active,
            weight: 0,
            initial: Initial::Unknown,
            part: Part::default(),
        });
    });
    for others in [
        vec![draining(1, Health::Up)],
        vec![admin(1, Admin::Disabled, Health::Refusing), weightless],
        vec![],
    ] {
        let mut all = vec![draining(2, Health::Down)];
        all.extend(others);
        let service = one(service(all));
        assert_eq!((service.fail_open, service.resets_suspended), (false, None));
        assert_eq!(service.backends[0].serving, Serving::None);
    }
    // A fall of many is suspect all the same.
    let many = (1..5).map(|id| {
        let mut fallen = fallen(id, 0);
        fallen.wanted = draining(id, Health::Down).wanted;
        fallen
    });
    let many = one(service(many.collect()));
    assert_eq!(many.resets_suspended, Some(Suspension::MassFall));
}

#[test]
fn a_removed_service_takes_nothing_new_and_keeps_its_table() {
    let mut facts = service(vec![up(1), fallen(2, 0)]);
    facts.wanted = None;
    let service = one(facts);
    assert_eq!(service.table, None);
    let serving: Vec<_> = service.backends.iter().map(|b| b.serving).collect();
    assert_eq!(serving, [Serving::ExistingOnly, Serving::None]);
    assert!(!service.fail_open);
    assert_eq!(service.resets_suspended, None);
}

#[test]
fn a_next_hop_that_is_missing_changes_no_table() {
    let unresolved = backend(2, |b| b.hop = Hop::Unresolved);
    assert_eq!(
        outcome(vec![up(1), unresolved]),
        (vec![Serving::New; 2], vec![1, 2])
    );
}

#[test]
fn the_outer_header_is_made_for_each_backend() {
    for (source, address) in [("10.0.0.1", "10.0.1.2"), ("2001:db8::1", "2001:db8:1::2")] {
        let (source, address): (IpAddr, IpAddr) =
            (source.parse().unwrap(), address.parse().unwrap());
        let hop = NextHop {
            mtu: 1_500,
            ..NextHop::default()
        }
        .from_source(source);
        let with = |mode| {
            let facts = backend(2, |b| {
                b.mode = mode;
                b.address = address;
                b.hop = Hop::Resolved(hop);
            });
            one(service(vec![facts])).backends[0].hop
        };
        let complete = hop.encapsulating(address);
        assert_ne!(complete, hop);
        assert_eq!(with(Mode::Ipip), Hop::Resolved(complete));
        for mode in [Mode::L2, Mode::Nat, Mode::Dnat] {
            assert_eq!(with(mode), Hop::Resolved(hop.bare()));
        }
    }
}

#[test]
fn only_l2_minds_a_router_in_between() {
    let hop = Hop::Resolved(NextHop::default());
    let found = |hop, on_link| Found { hop, on_link };
    assert_eq!(found(hop, false).for_mode(Mode::L2), Hop::Unresolved);
    assert_eq!(found(hop, true).for_mode(Mode::L2), hop);
    for mode in [Mode::Ipip, Mode::Nat, Mode::Dnat] {
        assert_eq!(found(hop, false).for_mode(mode), hop);
    }
    assert_eq!(
        found(Hop::Unresolved, true).for_mode(Mode::L2),
        Hop::Unresolved
    );
}

#[test]
fn a_drain_with_a_deadline_closes_flows_from_then_on_and_what_is_dead_needs_no_pace() {
    let facts = |health| {
        let mut drained = admin(2, Admin::Draining, health);
        drained.closing = Some(Ramp {
            from: NOW,
            over: Duration::from_secs(10),
        });
        service(vec![up(1), drained])
    };
    let at = |health, ms: i64| {
        let now = Moment(NOW.0 + ms);
        let service = resolve(&SEED, &[facts(health)], now).remove(0);
        let given = service.backends[1];
        let share = given.pace.map(|pace| pace.share.parts());
        (given.serving, share, given.due.map(|due| due.0 - NOW.0))
    };
    let keeps = Serving::ExistingOnly;
    assert_eq!(at(Health::Up, -1), (keeps, None, Some(0)));
    assert_eq!(at(Health::Up, 0), (keeps, Some(0), Some(100)));
    assert_eq!(
        at(Health::Refusing, 5_000),
        (keeps, Some(32_768), Some(5_100))
    );
    assert_eq!(at(Health::Up, 10_000), (keeps, Some(65_536), None));
    // All of them, and at once, as without a drain.
    assert_eq!(at(Health::Down, 5_000), (Serving::None, None, Some(5_100)));
}

#[test]
fn clients_of_a_dead_backend_are_told_at_once_or_at_the_pace_of_its_service() {
    let mut facts = service(vec![up(1), admin(2, Admin::Active, Health::Down)]);
    let given = |facts: &ServiceFacts<'static>, ms: i64| {
        let now = Moment(NOW.0 + ms);
        resolve(&SEED, std::slice::from_ref(facts), now)
            .remove(0)
            .backends[1]
    };
    let share = |given: Backend| given.pace.map(|pace| pace.share.parts());
    assert_eq!(share(given(&facts, 0)), None);

    facts.reset_over = Duration::from_secs(20);
    // It has died now, as far as anyone knows.
    let first = given(&facts, 0);
    assert_eq!((share(first), first.died), (Some(0), Some(NOW)));
    facts.backends[1].died = first.died;
    assert_eq!(share(given(&facts, 5_000)), Some(16_384));
    assert_eq!(share(given(&facts, 20_000)), None);
    // While resets are suspended it is as if it lived; then it dies anew.
    facts.wanted = Some(WantedService {
        table_size: 1009,
        min_healthy: 3,
        policy: Policy::default(),
    });
    let suspended = given(&facts, 6_000);
    assert_eq!((share(suspended), suspended.died), (None, None));
}

/// Nobody expects a file that is read again to have all clients of a dead backend connect anew in one moment.
#[test]
fn clients_of_a_dead_backend_that_are_told_otherwise_from_now_on_are_not_told_at_once() {
    let mut facts = service(vec![up(1), admin(2, Admin::Active, Health::Down)]);
    facts.backends[1].died = Some(NOW);
    facts.reset_over = Duration::from_secs(20);
    let given = |before: (OnDown, u64), ms: i64| {
        let mut facts = facts.clone();
        facts.told_before = Some((before.0, Duration::from_secs(before.1)));
        let first = resolve(&SEED, &[facts.clone()], Moment(NOW.0 + ms)).remove(0);
        // And from then on they are told so.
        facts.told_before = Some((facts.on_down, facts.reset_over));
        facts.backends[1].died = first.backends[1].died;
        let later = resolve(&SEED, &[facts], Moment(NOW.0 + ms + 5_000)).remove(0);
        let share = |service: &Service<'_>| {
            let pace = service.backends[1].pace;
            pace.map(|pace| pace.share.parts())
        };
        [share(&first), share(&later)]
    };
    assert_eq!(
        given((OnDown::Reset, 20), 10_000),
        [Some(32_768), Some(49_152)]
    );
    for before in [OnDown::Keep, OnDown::Rehash] {
        assert_eq!(given((before, 20), 3_600_000), [Some(0), Some(16_384)]);
    }
    // A quarter of 80 s; now over 20 s.
    assert_eq!(
        given((OnDown::Reset, 80), 20_000),
        [Some(16_384), Some(32_768)]
    );
    // Who is told stays so.
    assert_eq!(given((OnDown::Reset, 0), 1_000), [None, None]);
}

/// Who is dead takes nothing new, whatever becomes of the flows that it has.
#[test]
fn flows_of_a_dead_backend_are_closed_or_kept_or_go_elsewhere() {
    let mut facts = service(vec![up(1), admin(2, Admin::Active, Health::Down)]);
    for on_down in [OnDown::Reset, OnDown::Keep, OnDown::Rehash] {
        facts.on_down = on_down;
        // Who is not told is not told at a pace either.
        for reset_over in [0, 20] {
            facts.reset_over = Duration::from_secs(reset_over);
            let service = resolve(&SEED, std::slice::from_ref(&facts), NOW).remove(0);
            let given = service.backends[1];
            assert_eq!(
                (given.serving, given.on_down, given.died),
                (Serving::None, on_down, Some(NOW))
            );
            let is_told = on_down == OnDown::Reset && reset_over > 0;
            assert_eq!(
                (given.pace.is_some(), given.due.is_some()),
                (is_told, is_told)
            );
            let members = service.table.into_iter().flat_map(|table| table.members);
            assert_eq!(members.map(|share| share.id).collect::<Vec<_>>(), [1]);
        }
    }
}

/// Its reply would not find back.
#[test]
fn a_backend_that_replies_are_not_known_of_is_not_sent_to() {
    let hop = Hop::Resolved(NextHop::default());
    let with = |mode, translated| {
        let facts = backend(1, |b| {
            b.mode = mode;
            b.hop = hop;
            b.translated = Some(translated);
        });
        one(service(vec![facts])).backends[0]
    };
    let whole = Translated {
        endpoint: 3,
        pairs: [7, 0, 0, 0, 0, 0, 0, 0],
    };
    let given = with(Mode::Nat, whole);
    assert_eq!((given.hop, given.translated), (hop, whole));
    let no_pair = Translated {
        pairs: [0; 8],
        ..whole
    };
    assert_eq!(with(Mode::Nat, no_pair).hop, Hop::Unresolved);
    assert_eq!(with(Mode::Dnat, no_pair).hop, hop);
    for mode in [Mode::Nat, Mode::Dnat] {
        let no_endpoint = Translated {
            endpoint: 0,
            ..whole
        };
        assert_eq!(with(mode, no_endpoint).hop, Hop::Unresolved);
    }
}

fn placing_clients(id: u16, group: Option<&'static str>) -> ServiceFacts<'static> {
    ServiceFacts {
        id,
        endpoint: Endpoint {
            vip: [10, 0, 0, id as u8].into(),
            port: 80,
        },
        affinity: Some(Affinity {
            group,
            timeout: Duration::from_secs(10),
        }),
        ..service(vec![])
    }
}

/// Services of one group have one number, one choice of slots and one kind of table; all others one of their own.
#[test]
fn services_of_a_group_place_clients_together() {
    let services = [
        placing_clients(3, Some("shop")),
        placing_clients(2, Some("shop")),
        placing_clients(4, None),
        ServiceFacts {
            affinity: None,
            ..placing_clients(5, None)
        },
    ];
    let resolved = resolve(&SEED, &services, NOW);
    let placing: Vec<_> = resolved.iter().map(|service| service.placing).collect();
    // 10 s are a little more than two ticks.
    let of = |group| Some(Placing { group, ticks: 3 });
    assert_eq!(placing, [of(2), of(2), of(4), Some(Placing::default())]);
    let keys: Vec<_> = resolved
        .iter()
        .map(|service| (service.seed, service.placed_as))
        .collect();
    assert_eq!(keys[0], keys[1]);
    assert_eq!((keys[0].1, keys[2].1), ("shop", "chat"));
    assert!(keys[2].0 != keys[0].0 && keys[3].0 != keys[2].0);
}

#[test]
fn a_removed_service_places_as_it_did() {
    let removed = ServiceFacts {
        wanted: None,
        affinity: None,
        ..placing_clients(3, None)
    };
    assert_eq!(one(removed).placing, None);
}
