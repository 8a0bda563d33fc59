//! Who takes new flows among those that could.

use lb_common::clock::Tick;

use super::*;

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
            // Nobody is reset below it, whether there is somebody to open for or not.
            assert_eq!(
                given.resets_suspended.is_some(),
                below,
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
