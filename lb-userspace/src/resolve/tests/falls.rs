//! Falls of many, which may be this machine's own blindness.

use super::*;

#[test]
fn when_over_half_of_four_fall_within_ten_seconds_no_client_is_reset() {
    let dead = |falls: &[Option<u64>]| -> usize {
        let backends = (1..)
            .zip(falls)
            .map(|(id, fall)| fall.map_or_else(|| up(id), |at| fallen(id, at)))
            .collect();
        let (serving, _) = outcome(backends);
        serving
            .iter()
            .filter(|&&serving| serving == Serving::None)
            .count()
    };
    let all = [Some(1_000), Some(5_000), Some(11_000), None];
    assert_eq!(dead(&all), 0, "three of four within ten seconds");
    assert_eq!(
        dead(&[Some(1_000), Some(5_000), Some(11_001), None]),
        3,
        "a millisecond more"
    );
    assert_eq!(
        dead(&[Some(1_000), Some(5_000), None, None]),
        2,
        "half is not over half"
    );
    assert_eq!(
        dead(&[Some(1_000), Some(1_000), None]),
        2,
        "three are too few to tell"
    );
    let later = [
        Some(1_000),
        Some(50_000),
        Some(50_000),
        Some(50_000),
        None,
        None,
        None,
        None,
    ];
    assert_eq!(dead(&later), 4, "half of eight");
    let five = [
        Some(1_000),
        Some(50_000),
        Some(50_000),
        Some(50_000),
        Some(59_000),
        Some(60_000),
        None,
        None,
    ];
    assert_eq!(dead(&five), 0, "five of eight, whatever fell before");
}

#[test]
fn a_fall_of_most_backends_of_the_instance_suspends_resets_everywhere() {
    let first = service(vec![fallen(1, 0), up(2)]);
    let mut second = service(vec![fallen(3, 100), fallen(4, 200), up(5)]);
    second.id = 2;
    let both = resolve(&SEED, &[first.clone(), second.clone()], NOW);
    for service in both {
        let why = service.resets_suspended;
        assert_eq!(why, Some(Suspension::MassFallEverywhere));
    }
    let alone = resolve(&SEED, &[first], NOW);
    assert_eq!(alone[0].resets_suspended, None);
}

/// A host that serves at many ports is one host to lose.
#[test]
fn a_fall_of_one_host_with_many_ports_is_no_fall_of_many() {
    let at_port = |id, port, host: &BackendFacts<'static>| {
        let address = host.address;
        backend(id, |b| (b.address, b.port) = (address, port))
    };
    let dead = fallen(1, 0);
    let mut ports: Vec<_> = (2..6)
        .map(|id| BackendFacts {
            health: Health::Down,
            fell_at_ms: dead.fell_at_ms,
            ..at_port(id, 80 + id as u16, &dead)
        })
        .collect();
    ports.push(dead.clone());
    let beside = |more: Vec<BackendFacts<'static>>| {
        let mut all = ports.clone();
        all.extend(more);
        one(service(all))
    };
    for more in [vec![up(6)], vec![up(6), up(7), up(8)]] {
        let service = beside(more);
        assert_eq!(service.resets_suspended, None);
        let dead = &service.backends[..5];
        assert!(dead.iter().all(|b| b.serving == Serving::None), "{dead:?}");
    }
    // Nor is one dead of which a port says something still.
    let refusing = backend(0, |b| {
        (b.address, b.port) = ([10, 0, 1, 7].into(), 81);
        b.health = Health::Refusing;
    });
    let most = beside(vec![fallen(6, 0), fallen(7, 0), up(8)]);
    assert_eq!(most.resets_suspended, Some(Suspension::MassFall));
    let half = beside(vec![fallen(6, 0), fallen(7, 0), up(8), refusing]);
    assert_eq!(half.resets_suspended, None);
}

/// This machine sees the others well enough: then those that fell are dead, however many they are.
#[test]
fn a_fall_of_many_is_believed_after_a_minute_of_good_checks_beside_it() {
    let given = |facts: &ServiceFacts<'static>, ms: i64| {
        let now = Moment(NOW.0 + ms);
        resolve(&SEED, std::slice::from_ref(facts), now).remove(0)
    };
    let ends = Moment(NOW.0 + 10_000);
    let mut facts = service(vec![fallen(1, 0), fallen(2, 0), fallen(3, 0), up(4)]);
    let doubted = given(&facts, 9_999);
    assert_eq!(doubted.resets_suspended, Some(Suspension::MassFall));
    assert_eq!(doubted.backends[0].due, Some(ends), "time ends that");
    assert_eq!(doubted.backends[3].due, None);
    facts.resets_were_suspended = true;
    let believed = given(&facts, 10_000);
    assert_eq!(believed.resets_suspended, None);
    // As with whatever has suspended resets.
    let spared = Some(ends.later(Duration::from_secs(3)));
    assert_eq!(
        (believed.backends[0].serving, believed.backends[0].due),
        (Serving::ExistingOnly, spared)
    );
    facts.resets_were_suspended = false;
    facts.backends[0].spared = spared;
    assert_eq!(given(&facts, 13_000).backends[0].serving, Serving::None);

    // Not while the only other one falters.
    facts.backends[3].faltered_at_ms = Some(at(0));
    let doubted = given(&facts, 1_000_000);
    assert_eq!(doubted.resets_suspended, Some(Suspension::MassFall));
    assert_eq!(doubted.backends[0].due, None, "no time ends that");
    // But what was believed is, also when that one falters long after.
    facts.backends[3].faltered_at_ms = Some(at(60_000));
    assert_eq!(given(&facts, 1_000_000).resets_suspended, None);
    // Whatever another service sees well is seen by the same eyes.
    let mut other = service(vec![up(5)]);
    other.id = 2;
    let mut first = service(vec![fallen(1, 0), fallen(2, 0), up(4)]);
    first.backends.push(fallen(3, 0));
    first.backends[2].health = Health::Refusing;
    first.wanted = Some(WantedService {
        table_size: 1009,
        min_healthy: 0,
        policy: Policy::default(),
    });
    let why = |now| resolve(&SEED, &[first.clone(), other.clone()], now)[1].resets_suspended;
    assert_eq!(why(NOW), Some(Suspension::MassFallEverywhere));
    assert_eq!(why(ends), None);
}

/// Else clients of the dead are told no more as soon as who was well beside them leaves the file, or refuses.
#[test]
fn what_was_taken_for_dead_is_so_when_nobody_is_well_any_more() {
    let given = |facts: &mut [ServiceFacts<'static>], ms: i64| {
        let services = resolve(&SEED, facts, Moment(NOW.0 + ms));
        for (facts, service) in facts.iter_mut().zip(&services) {
            facts.well_seen = service.well_seen;
        }
        let why = services.iter().map(|service| service.resets_suspended);
        why.collect::<Vec<_>>()
    };
    let fell = Some(Suspension::MassFall);
    let everywhere = Some(Suspension::MassFallEverywhere);
    let of = |id, backends| {
        let mut facts = service(backends);
        facts.id = id;
        // Whatever is usable: not in fail-open, which says the same.
        facts.wanted = facts.wanted.map(|wanted| WantedService {
            min_healthy: 0,
            ..wanted
        });
        facts
    };
    let refusing = |id| backend(id, |b| b.health = Health::Refusing);
    let dead = || (1..5).map(|id| fallen(id, 0)).collect::<Vec<_>>();
    let beside = |last: Option<BackendFacts<'static>>| {
        let mut backends = dead();
        backends.extend(last);
        of(1, backends)
    };
    for last in [None, Some(refusing(5))] {
        let mut facts = [beside(Some(up(5)))];
        assert_eq!(given(&mut facts, 9_999), [fell]);
        // Too early to be believed.
        let mut early = facts.clone();
        early[0].backends = beside(last.clone()).backends;
        assert_eq!(given(&mut early, 1_000_000), [fell]);
        assert_eq!(given(&mut facts, 10_000), [None]);
        facts[0].backends = beside(last).backends;
        assert_eq!(given(&mut facts, 1_000_000), [None]);
        // What falls later is another fall.
        let fallen_later = |id| fallen(id, 1_040_000);
        facts[0].backends = (1..6).map(fallen_later).collect();
        assert_eq!(given(&mut facts, 1_000_000), [fell]);
    }

    // Half is not over half, and so was never in doubt: nor is it when it is more than half of what is left.
    let half = dead().into_iter().chain((5..9).map(up)).collect();
    let mut facts = [of(1, half)];
    assert_eq!(given(&mut facts, 100_000), [None]);
    facts[0].backends.truncate(4);
    assert_eq!(given(&mut facts, 1_000_000), [None]);

    // The same of all services together: each has seen what any of them has, one that is new too.
    let pair = |first| {
        [
            of(1, vec![first, fallen(2, 0)]),
            of(2, vec![fallen(3, 0), fallen(4, 0)]),
        ]
    };
    let mut facts = pair(up(1));
    assert_eq!(given(&mut facts, 0), [everywhere; 2]);
    assert_eq!(given(&mut facts, 10_000), [None; 2]);
    facts[1].well_seen = WellSeen::default();
    facts[0].backends = pair(refusing(1))[0].backends.clone();
    assert_eq!(given(&mut facts, 1_000_000), [None; 2]);
}

#[test]
fn suspended_resets_have_a_cause_and_the_gravest_is_told() {
    let why = |backends| one(service(backends)).resets_suspended;
    assert_eq!(why(vec![up(1), fallen(2, 0)]), None);
    assert_eq!(
        why(vec![fallen(1, 0), fallen(2, 0)]),
        Some(Suspension::FailOpen)
    );
    let most = vec![fallen(1, 0), fallen(2, 0), fallen(3, 0), up(4)];
    assert_eq!(why(most), Some(Suspension::MassFall));
    // Then it is in fail-open too, which it says anyway.
    let all = (1..5).map(|id| fallen(id, 0)).collect();
    assert_eq!(why(all), Some(Suspension::MassFall));
}

#[test]
fn a_dead_backend_that_never_was_alive_here_counts_for_no_fall() {
    let found_dead = |id| {
        backend(id, |b| {
            b.health = Health::Down;
        })
    };
    let (serving, _) = outcome(vec![found_dead(1), found_dead(2), found_dead(3), up(4)]);
    assert_eq!(serving[..3], [Serving::None; 3]);
}

/// All were dark, and one is found to be up before the others are looked at.
#[test]
fn what_was_down_while_nobody_was_told_has_another_check_before_its_clients_are() {
    let given = |facts: &ServiceFacts<'static>, ms: i64| {
        let now = Moment(NOW.0 + ms);
        resolve(&SEED, std::slice::from_ref(facts), now).remove(0)
    };
    let mut facts = service(vec![fallen(1, 0), fallen(2, 0)]);
    let dark = given(&facts, 0);
    assert_eq!(dark.resets_suspended, Some(Suspension::FailOpen));
    assert_eq!(dark.backends[1].due, None, "no time ends that");

    // Half an hour later.
    facts.backends[0] = up(1);
    facts.backends[1].spared = dark.backends[1].spared;
    facts.resets_were_suspended = true;
    let light = given(&facts, 1_800_000);
    let second = light.backends[1];
    assert_eq!(light.resets_suspended, None);
    assert_eq!(second.serving, Serving::ExistingOnly);
    assert_eq!(second.spared, Some(Moment(NOW.0 + 1_803_000)));
    assert_eq!((second.due, second.died), (second.spared, None));
    assert_eq!(light.table.unwrap().members.len(), 1);

    facts.resets_were_suspended = false;
    facts.backends[1].spared = second.spared;
    let second = given(&facts, 1_802_999).backends[1];
    assert_eq!(second.serving, Serving::ExistingOnly);
    // It was looked at again, and is down.
    let second = given(&facts, 1_803_000).backends[1];
    assert_eq!((second.serving, second.spared), (Serving::None, None));
    // Or it is not.
    facts.backends[1].health = Health::Refusing;
    let second = given(&facts, 1_802_999).backends[1];
    assert_eq!(
        (second.serving, second.spared),
        (Serving::ExistingOnly, None)
    );
}

/// A switch that dies takes its backends one after the other, as their checks come round: clients of the first are not reset before it is known how many
/// there will be.
#[test]
fn what_may_be_the_first_of_many_falls_has_another_check_before_its_clients_are_told() {
    let faltering = |id, since_ms| backend(id, |b| b.faltered_at_ms = Some(at(since_ms)));
    let first = |others: Vec<BackendFacts<'static>>| {
        let mut all = vec![fallen(1, 20_000)];
        all.extend(others);
        one(service(all)).backends[0]
    };
    let spared = Some(NOW.later(Duration::from_secs(3)));
    // Of three one other is enough, and of more a quarter of them.
    let given = first(vec![faltering(2, 19_000), up(3)]);
    assert_eq!(
        (given.serving, given.died, given.spared, given.due),
        (Serving::ExistingOnly, None, spared, spared)
    );
    let others = |faltering_ones: u32| -> Vec<BackendFacts<'static>> {
        (2..9)
            .map(|id| match id < 2 + faltering_ones {
                true => faltering(id, 19_000),
                false => up(id),
            })
            .collect()
    };
    assert_eq!(first(others(2)).spared, spared);
    assert_eq!(first(others(1)).serving, Serving::None);

    // A lone death waits for nothing: nor for one that has failed for long, or falls long after, or is the same host at another port.
    assert_eq!(first(vec![up(2), up(3)]).serving, Serving::None);
    for since in [9_999, 30_001] {
        let given = first(vec![faltering(2, since), up(3)]);
        assert_eq!((given.serving, given.died), (Serving::None, Some(NOW)));
    }
    let mut port = faltering(2, 19_000);
    port.address = fallen(1, 0).address;
    port.port = 81;
    assert_eq!(first(vec![port, up(3)]).serving, Serving::None);
    let mut removed = faltering(2, 19_000);
    removed.wanted = None;
    assert_eq!(first(vec![removed, up(3)]).serving, Serving::None);
}

#[test]
fn the_first_of_many_falls_is_spared_for_one_check_and_once() {
    let given = |facts: &ServiceFacts<'static>, ms: i64| {
        let now = Moment(NOW.0 + ms);
        resolve(&SEED, std::slice::from_ref(facts), now).remove(0)
    };
    let others = (2..9).map(|id| backend(id, |b| b.faltered_at_ms = Some(at(0))));
    let mut facts = service([fallen(1, 0)].into_iter().chain(others).collect());
    // One after the other, in steps of half a second; with the fifth it is a fall of many.
    for step in 0..8 {
        let service = given(&facts, step * 500);
        for (fact, backend) in facts.backends.iter_mut().zip(&service.backends) {
            assert_ne!(backend.serving, Serving::None, "step {step}");
            fact.spared = backend.spared;
        }
        let many = service.resets_suspended == Some(Suspension::MassFall);
        assert_eq!(many, step >= 4, "step {step}");
        facts.resets_were_suspended = many;
        if let Some(next) = facts.backends.get_mut(step as usize + 1) {
            *next = fallen(next.numbered.id, step as u64 * 500 + 500);
        }
    }

    // Or the others go on failing without an end, or recover: what is down has had its check.
    for falters in [Some(at(0)), None] {
        let others = (2..9).map(|id| backend(id, |b| b.faltered_at_ms = falters));
        let mut facts = service([fallen(1, 0)].into_iter().chain(others).collect());
        facts.backends[0].spared = Some(Moment(NOW.0 + 3_000));
        let first = given(&facts, 2_999).backends[0];
        assert_eq!(first.serving, Serving::ExistingOnly);
        facts.backends[0].spared = first.spared;
        let first = given(&facts, 3_000).backends[0];
        let dead_now = Some(Moment(NOW.0 + 3_000));
        assert_eq!((first.serving, first.died), (Serving::None, dead_now));
        (facts.backends[0].spared, facts.backends[0].died) = (first.spared, first.died);
        assert_eq!(given(&facts, 3_001).backends[0].serving, Serving::None);
    }
}
