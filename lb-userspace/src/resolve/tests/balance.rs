//! Who takes new flows among those that could.

use lb_common::clock::Tick;

use super::*;
use crate::balance::outlier::{Ejection, Signal};

fn full(id: u32, health: Health) -> BackendFacts<'static> {
    backend(id, |b| {
        b.health = health;
        b.standing.full_since = Some(Tick(1));
    })
}

#[test]
fn a_full_backend_keeps_its_flows_and_takes_no_new_ones() {
    use Serving::{ExistingOnly, New};
    let (serving, members) = outcome(vec![up(1), full(2, Health::Up)]);
    assert_eq!((serving, members), (vec![New, ExistingOnly], vec![1]));
    // Being full saves nobody from being dead.
    let (serving, _) = outcome(vec![up(1), full(2, Health::Down)]);
    assert_eq!(serving[1], Serving::None);
}

#[test]
fn where_all_are_full_the_service_is_and_does_not_fail_open() {
    let facts = service(vec![full(1, Health::Up), full(2, Health::Up), fallen(3, 0)]);
    let given = one(facts);
    assert!(given.spread.full && !given.fail_open);
    assert_eq!(given.table.unwrap().members, []);
    let given = one(service(vec![full(1, Health::Up), up(2)]));
    assert!(!given.spread.full);
    // Nobody is usable: that is something else.
    assert!(!one(service(vec![fallen(1, 0)])).spread.full);
}

#[test]
fn a_full_backend_takes_no_new_flows_in_fail_open_either() {
    let mut facts = service(vec![full(1, Health::Up), up(2), fallen(3, 0)]);
    facts.wanted = facts.wanted.map(|wanted| WantedService {
        min_healthy: 3,
        ..wanted
    });
    let given = one(facts);
    assert!(given.fail_open);
    let serving: Vec<_> = given.backends.iter().map(|b| b.serving).collect();
    assert_eq!(serving, [Serving::ExistingOnly, Serving::New, Serving::New]);
}

/// `min_healthy` at each of its boundaries: as many usable ones, one fewer, and nobody who could take flows.
#[test]
fn a_service_fails_open_just_when_fewer_than_min_healthy_are_usable() {
    let states = [
        (Admin::Active, Health::Up),
        (Admin::Active, Health::Refusing),
        (Admin::Active, Health::Down),
        (Admin::Active, Health::Unknown),
        (Admin::Draining, Health::Up),
        (Admin::Disabled, Health::Up),
    ];
    let all = (0..6usize.pow(3)).map(|n| [n % 6, n / 6 % 6, n / 36].map(|state| states[state]));
    for case in all {
        for min_healthy in 0..=4 {
            let backends = (1..)
                .zip(case)
                .map(|(id, (a, health))| admin(id, a, health));
            let mut facts = service(backends.collect());
            facts.wanted = facts.wanted.map(|wanted| WantedService {
                min_healthy,
                ..wanted
            });
            let given = one(facts);
            let usable = case.iter().filter(|&&one| one == states[0]).count();
            let active = case.iter().filter(|(a, _)| *a == Admin::Active).count();
            let below = usable < min_healthy as usize;
            assert_eq!(
                given.fail_open,
                below && active > 0,
                "{case:?} {min_healthy}"
            );
            // Nobody is reset in fail-open. Where there is nobody to open for, that is the operator's doing, and whoever is dead is.
            assert_eq!(
                given.resets_suspended,
                given.fail_open.then_some(Suspension::FailOpen),
                "{case:?} {min_healthy}"
            );
            let new = given.backends.iter().filter(|b| b.serving == Serving::New);
            let expected = if given.fail_open { active } else { usable };
            assert_eq!(new.count(), expected, "{case:?} {min_healthy}");
            let members = given.table.map_or(0, |table| table.members.len());
            assert_eq!(members, expected, "who serves new flows is in the table");
        }
    }
}

/// A service with so many primaries that can take new flows, as many more that cannot, and two backups that can.
fn with_backups(able: u32, unable: u32, below: u32, min_healthy: u32) -> ServiceFacts<'static> {
    let primaries = (1..=able)
        .map(up)
        .chain((able + 1..=able + unable).map(|id| admin(id, Admin::Active, Health::Refusing)));
    let backups = (7..=8).map(|id| {
        backend(id, |b| {
            if let Some(wanted) = &mut b.wanted {
                wanted.part.backup = true;
            }
        })
    });
    let mut facts = service(primaries.chain(backups).collect());
    facts.wanted = facts.wanted.map(|wanted| WantedService {
        min_healthy,
        policy: Policy {
            backup_below: below,
            ..Policy::default()
        },
        ..wanted
    });
    facts
}

fn members(given: &Service<'_>) -> Vec<u32> {
    let members = given.table.iter().flat_map(|table| &table.members);
    members.map(|share| share.id).collect()
}

#[test]
fn backups_take_new_flows_just_while_fewer_primaries_than_wanted_can() {
    for (able, below, with) in [
        (3, 1, false),
        (1, 1, false),
        (0, 1, true),
        (2, 2, false),
        (1, 2, true),
        (2, 3, true),
        (3, 3, false),
    ] {
        let given = one(with_backups(able, 4 - able, below, 1));
        let mut expected: Vec<u32> = (1..=able).collect();
        if with {
            expected.extend([7, 8]);
        }
        assert_eq!(members(&given), expected, "{able} of 4, below {below}");
        assert_eq!(given.spread.backups, with);
        assert!(!given.fail_open && !given.spread.full);
        for backend in &given.backends[4..] {
            let idle = if with {
                Serving::New
            } else {
                Serving::ExistingOnly
            };
            assert_eq!(backend.serving, idle);
        }
    }
}

#[test]
fn backups_count_as_usable_and_are_opened_with_the_others() {
    // Nobody else is usable, and two backups are.
    let given = one(with_backups(0, 3, 1, 2));
    assert!(!given.fail_open);
    assert_eq!(members(&given), [7, 8]);
    // One more than there are.
    let given = one(with_backups(0, 3, 1, 3));
    assert!(given.fail_open && !given.spread.backups);
    assert_eq!(members(&given), [1, 2, 3, 7, 8]);
    // Idle ones count too.
    let given = one(with_backups(1, 2, 1, 3));
    assert!(!given.fail_open);
    assert_eq!(members(&given), [1]);
}

#[test]
fn backups_stand_in_for_full_primaries() {
    let mut facts = with_backups(2, 0, 1, 1);
    for primary in &mut facts.backends[..2] {
        primary.standing.full_since = Some(Tick(1));
    }
    let given = one(facts);
    assert_eq!(members(&given), [7, 8]);
    assert!(given.spread.backups && !given.spread.full);
}

#[test]
fn a_backup_that_cannot_take_flows_is_none() {
    let mut facts = with_backups(0, 2, 1, 1);
    facts.backends[2].health = Health::Down;
    facts.backends[3].standing.full_since = Some(Tick(1));
    let given = one(facts);
    assert_eq!(members(&given), [0; 0]);
    // The full one is usable.
    assert!(!given.spread.backups && given.spread.full && !given.fail_open);
}

/// Four backends in the local zone, two elsewhere, of which so many can take new flows.
fn zoned(local: u32, others: u32) -> ServiceFacts<'static> {
    let place = |zone, able: bool| {
        move |b: &mut BackendFacts<'static>| {
            if let Some(wanted) = &mut b.wanted {
                wanted.part.zone = zone;
            }
            if !able {
                b.health = Health::Refusing;
            }
        }
    };
    let here = (1..=4).map(|id| backend(id, place(Zone::Local, id <= local)));
    let there = (5..=6).map(|id| backend(id, place(Zone::Other, id <= 4 + others)));
    service(here.chain(there).collect())
}

/// Parts of a thousand new flows of the local zone and of the others.
fn parts(given: &Service<'_>) -> [u32; 2] {
    let table = given.table.as_ref().unwrap();
    let weights: Vec<u16> = table.members.iter().map(|share| share.weight).collect();
    let mut parts = [0; 2];
    for (share, part) in table.members.iter().zip(share::per_mille(&weights)) {
        parts[usize::from(share.id > 4)] += u32::from(part);
    }
    parts
}

#[test]
fn the_local_zone_comes_first_and_what_it_cannot_take_spills_over() {
    for (local, others, expected, spills) in [
        (4, 2, [1_000, 0], false),
        // 75% of it is enough.
        (3, 2, [1_000, 0], false),
        // 50% and 25% of it, of the 70% that would be enough.
        (2, 2, [714, 286], true),
        (1, 2, [357, 643], true),
        (1, 1, [357, 643], true),
        (0, 2, [0, 1_000], true),
        // Nowhere to spill to.
        (1, 0, [1_000, 0], false),
    ] {
        let given = one(zoned(local, others));
        let parts = parts(&given);
        let near = parts.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 2);
        assert!(near, "{local} and {others}: {parts:?}");
        assert_eq!(given.spread.spills, spills, "{local} and {others}");
        let new = given.backends.iter().filter(|b| b.serving == Serving::New);
        assert_eq!(new.count(), members(&given).len());
    }
}

#[test]
fn what_is_drained_or_full_in_the_local_zone_is_missing_there() {
    for change in [
        |b: &mut BackendFacts<'static>| b.standing.full_since = Some(Tick(1)),
        |b: &mut BackendFacts<'static>| {
            if let Some(wanted) = &mut b.wanted {
                wanted.admin = Admin::Draining;
            }
        },
    ] {
        let mut facts = zoned(4, 2);
        facts.backends[..2].iter_mut().for_each(change);
        let given = one(facts);
        assert!(given.spread.spills);
        assert!(parts(&given)[0].abs_diff(714) <= 2);
    }
}

#[test]
fn in_fail_open_zones_do_not_matter() {
    let mut facts = zoned(1, 0);
    facts.wanted = facts.wanted.map(|wanted| WantedService {
        min_healthy: 2,
        ..wanted
    });
    let given = one(facts);
    assert!(given.fail_open && !given.spread.spills);
    assert_eq!(members(&given), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_zone_without_backends_is_preferred_by_nobody() {
    let mut facts = zoned(0, 2);
    facts.backends.drain(..4);
    let given = one(facts);
    assert_eq!(members(&given), [5, 6]);
    assert!(!given.spread.spills);
}

fn starting(id: u32, sixteenths: u8) -> BackendFacts<'static> {
    backend(id, |b| b.standing.start_factor = sixteenths)
}

/// Parts of a thousand new flows, by backend.
fn per_mille(given: &Service<'_>) -> Vec<u16> {
    let members = given.table.iter().flat_map(|table| &table.members);
    let weights: Vec<u16> = members.map(|share| share.weight).collect();
    share::per_mille(&weights)
}

#[test]
fn a_backend_that_starts_gets_less_than_its_share() {
    let given = one(service(vec![up(1), up(2), starting(3, 4)]));
    assert_eq!(per_mille(&given), [444, 444, 111]);
    // All that start are equal among themselves: the table is that of those that do not.
    let all = one(service(vec![starting(1, 4), starting(2, 4)]));
    assert_eq!(per_mille(&all), [500, 500]);
    // In fail-open each counts whole.
    let given = one(service(vec![
        starting(1, 1),
        admin(2, Admin::Active, Health::Refusing),
    ]));
    assert_eq!(per_mille(&given), [1_000]);
    let mut facts = service(vec![
        starting(1, 1),
        admin(2, Admin::Active, Health::Refusing),
    ]);
    facts.wanted = facts.wanted.map(|wanted| WantedService {
        min_healthy: 2,
        ..wanted
    });
    assert_eq!(per_mille(&one(facts)), [500, 500]);
}

fn ejected(id: u32, health: Health) -> BackendFacts<'static> {
    backend(id, |b| {
        b.health = health;
        b.standing.ejected = Some(Ejection {
            signal: Signal::Data,
            share: 300,
            peers: 10,
            times: 1,
            until: NOW.later(Duration::from_secs(30)),
        });
    })
}

#[test]
fn an_ejected_backend_keeps_its_flows_and_takes_no_new_ones() {
    use Serving::{ExistingOnly, New};
    let facts = vec![up(1), ejected(2, Health::Up), up(3)];
    let (serving, members) = outcome(facts);
    assert_eq!(
        (serving, members),
        (vec![New, ExistingOnly, New], vec![1, 3])
    );
    // Being ejected changes nothing of what is worse.
    let (serving, _) = outcome(vec![
        up(1),
        ejected(2, Health::Refusing),
        ejected(3, Health::Down),
    ]);
    assert_eq!(serving, [New, ExistingOnly, Serving::None]);
}

#[test]
fn whoever_is_ejected_is_better_than_nobody() {
    use Serving::{ExistingOnly, New};
    // The only other one falls, is full, or is drained.
    for other in [
        fallen(1, 0),
        full(1, Health::Up),
        admin(1, Admin::Draining, Health::Up),
    ] {
        let given = one(service(vec![other, ejected(2, Health::Up)]));
        assert_eq!(given.backends[1].serving, New);
        assert!(!given.fail_open && !given.spread.full);
        assert_eq!(members(&given), [2]);
    }
    let (serving, members) = outcome(vec![ejected(1, Health::Up), ejected(2, Health::Up)]);
    assert_eq!((serving, members), (vec![New, New], vec![1, 2]));
    // It is usable, and does its part where that many are needed.
    for (min_healthy, expected) in [(0, ExistingOnly), (2, ExistingOnly), (3, New)] {
        let mut facts = service(vec![up(1), up(2), ejected(3, Health::Up)]);
        facts.wanted = facts.wanted.map(|wanted| WantedService {
            min_healthy,
            ..wanted
        });
        let given = one(facts);
        assert_eq!(given.backends[2].serving, expected, "{min_healthy}");
        assert!(!given.fail_open);
    }
}

#[test]
fn in_fail_open_whoever_is_ejected_takes_new_flows_too() {
    let given = one(service(vec![
        fallen(1, 0),
        ejected(2, Health::Refusing),
        backend(3, |b| b.health = Health::Refusing),
    ]));
    assert!(given.fail_open);
    assert_eq!(members(&given), [1, 2, 3]);
}

#[test]
fn backups_stand_in_for_ejected_primaries() {
    let mut facts = with_backups(2, 0, 2, 1);
    facts.backends[0].standing.ejected = ejected(1, Health::Up).standing.ejected;
    let given = one(facts);
    assert_eq!(members(&given), [2, 7, 8]);
    assert!(given.spread.backups);
}
