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
    assert!(given.full && !given.fail_open);
    assert_eq!(given.table.unwrap().members, []);
    let given = one(service(vec![full(1, Health::Up), up(2)]));
    assert!(!given.full);
    // Nobody is usable: that is something else.
    assert!(!one(service(vec![fallen(1, 0)])).full);
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
