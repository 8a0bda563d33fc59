//! What is left of backends' flows, in maps in memory.

use std::time::Duration;

use super::{super::left::left, *};

const TEN_MINUTES: Duration = Duration::from_mins(10);

in_both_versions! {
    flows_of_the_backends_that_are_asked_about_are_counted_and_no_others
    who_asks_says_what_is_idle
}

fn flows_of_the_backends_that_are_asked_about_are_counted_and_no_others<K: Client>() {
    let fixture = Fixture::<K>::new(4);
    let (owner, other) = (BackendRef::new(OWNER, 0), BackendRef::new(OTHER, 0));
    let strange = BackendRef::new(OTHER, 1);
    let beyond = BackendRef::new(fixture.maps.backends.len(), 0);
    fixture.fill(10, |n| match n {
        0..4 => aged(State::Pin, OWNER, 0),
        4..7 => aged(State::Pin, OTHER, IDLE_TICKS),
        7 => aged(State::Young, OTHER, 1),
        8 => Word::embryo(other, 9, NOW),
        // An older holder of the id.
        _ => Word::live(State::Pin, strange, 0, NOW, 0),
    });
    let first_seen = NOW.0 - 10 * IDLE_TICKS;
    let facts = K::table(&fixture.maps).facts();
    let mut bucket = facts.get(1);
    bucket.first_seen[2] = first_seen;
    // That of an embryo is whoever was there before.
    let mut next = facts.get(2);
    next.first_seen[0] = 1;
    facts.set(1, &bucket);
    facts.set(2, &next);

    let found = left(&fixture.maps, [other, beyond], TEN_MINUTES, NOW);
    assert_eq!(found.len(), 1);
    let seconds = |ticks: u32| u64::from(ticks) * 4_294_967_296 / 1_000_000_000;
    let theirs = found[&other];
    assert_eq!((theirs.active, theirs.idle), (2, 3));
    assert_eq!(theirs.silent_s, seconds(IDLE_TICKS));
    assert_eq!(theirs.oldest_s, seconds(10 * IDLE_TICKS));

    let found = left(&fixture.maps, [owner, strange], TEN_MINUTES, NOW);
    assert_eq!((found[&owner].active, found[&owner].idle), (4, 0));
    assert_eq!(found[&strange].active, 1);
}

fn who_asks_says_what_is_idle<K: Client>() {
    let fixture = Fixture::<K>::new(4);
    let owner = BackendRef::new(OWNER, 0);
    fixture.fill(1, |_| aged(State::Pin, OWNER, 14));
    let found = |seconds| {
        let idle_after = Duration::from_secs(seconds);
        let left = left(&fixture.maps, [owner], idle_after, NOW)[&owner];
        (left.active, left.idle)
    };
    // 14 ticks are 60 s, but their ends may be nearer.
    assert_eq!(found(60), (1, 0));
    assert_eq!(found(55), (0, 1));
}
