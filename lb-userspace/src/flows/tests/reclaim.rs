//! What goes from a table that is too full.

use super::{
    super::judge::{RECLAIM_PIN_TICKS, RECLAIM_YOUNG_TICKS},
    *,
};

in_both_versions! {
    below_three_quarters_nothing_is_reclaimed
    flows_that_need_their_entries_are_never_reclaimed
    young_entries_go_first_and_only_as_many_as_are_too_many
    then_pins_go_the_longest_idle_first_and_exceptions_never
    a_table_full_of_exceptions_stays_full
    a_slot_that_is_being_handed_over_protects_its_flows
}

fn below_three_quarters_nothing_is_reclaimed<K: Client>() {
    let fixture = Fixture::<K>::new(25);
    fixture.fill(75, |_| aged(State::Pin, OWNER, 2 * RECLAIM_PIN_TICKS));
    let mut sweeper = fixture.sweeper();
    for _ in 0..5 {
        assert_eq!(used(&sweeper.pass()), 75);
    }
}

fn young_entries_go_first_and_only_as_many_as_are_too_many<K: Client>() {
    let fixture = Fixture::<K>::new(25);
    fixture.fill(90, |n| {
        if n < 40 {
            aged(State::Young, OWNER, RECLAIM_YOUNG_TICKS)
        } else {
            aged(State::Pin, OWNER, 2 * RECLAIM_PIN_TICKS)
        }
    });
    let mut sweeper = fixture.sweeper();
    for _ in 0..5 {
        sweeper.pass();
    }
    let census = sweeper.pass();
    // One in a hundred more than too many, so that the use is below the limit.
    assert_eq!((census.total().young, census.total().pin), (24, 50));
    assert_eq!(census.swept.reclaimed, 16);
}

fn then_pins_go_the_longest_idle_first_and_exceptions_never<K: Client>() {
    let fixture = Fixture::<K>::new(25);
    // By age: exceptions, the oldest of all, then older and younger pins, then such as are in use.
    fixture.fill(95, |n| match n {
        0..30 => aged(State::Pin, OTHER, 9 * RECLAIM_PIN_TICKS),
        30..40 => aged(State::Pin, OWNER, 5 * RECLAIM_PIN_TICKS),
        40..60 => aged(State::Pin, OWNER, 2 * RECLAIM_PIN_TICKS),
        _ => aged(State::Pin, OWNER, 10),
    });
    let mut sweeper = fixture.sweeper();
    for _ in 0..5 {
        sweeper.pass();
    }
    assert_eq!(used(&sweeper.pass()), 74);
    let left = |range: std::ops::Range<u32>| {
        range
            .filter(|n| !fixture.word(n / 4, *n % 4).is(State::Empty))
            .count()
    };
    assert_eq!(
        (left(0..30), left(30..40), left(40..60), left(60..95)),
        (30, 0, 9, 35)
    );
}

fn a_table_full_of_exceptions_stays_full<K: Client>() {
    let fixture = Fixture::<K>::new(25);
    fixture.fill(100, |n| {
        let state = if n % 2 == 0 { State::Pin } else { State::Young };
        aged(state, OTHER, 9 * RECLAIM_PIN_TICKS)
    });
    let mut sweeper = fixture.sweeper();
    for _ in 0..5 {
        sweeper.pass();
    }
    let census = sweeper.pass();
    assert_eq!((used(&census), census.swept.reclaimed), (100, 0));
}

fn flows_that_need_their_entries_are_never_reclaimed<K: Client>() {
    for state in [
        BackendState::new(0, Serving::New, Forwarding::Nat, 0, true),
        BackendState::new(0, Serving::New, Forwarding::Dnat, 0, true),
        // On this host.
        BackendState::new(0, Serving::New, Forwarding::L2, 0, true).tagged(3),
    ] {
        let fixture = Fixture::<K>::new(25);
        fixture.maps.set_state(OWNER, state);
        fixture.fill(100, |n| {
            let state = if n % 2 == 0 { State::Pin } else { State::Young };
            aged(state, OWNER, 9 * RECLAIM_PIN_TICKS)
        });
        let mut sweeper = fixture.sweeper();
        for _ in 0..5 {
            sweeper.pass();
        }
        let census = sweeper.pass();
        assert_eq!(
            (used(&census), census.swept.reclaimed),
            (100, 0),
            "{state:?}"
        );
    }
}

fn a_slot_that_is_being_handed_over_protects_its_flows<K: Client>() {
    let fixture = Fixture::<K>::new(25);
    for slot in 10..41 {
        // An unknown packet would go to the previous backend, so these entries are not recomputable for another ten minutes.
        fixture
            .maps
            .tables
            .set(slot, &Slot::new(OWNER, OTHER, Tick(NOW.0 - 1)));
    }
    fixture.fill(100, |_| aged(State::Young, OWNER, RECLAIM_YOUNG_TICKS));
    let mut sweeper = fixture.sweeper();
    sweeper.pass();
    assert_eq!(used(&sweeper.pass()), 100);
}

#[test]
fn each_table_is_relieved_by_its_own_use() {
    let four = Fixture::<v4::Key>::new(25);
    // The IPv6 table is full, but for its embryos, of what would be reclaimed under pressure; the IPv4 one is half empty of it.
    let old = |state| aged(state, OWNER, 9 * RECLAIM_PIN_TICKS);
    four.fill(50, |_| old(State::Pin));
    let six = Fixture::<v6::Key> {
        maps: Arc::clone(&four.maps),
        clock: Arc::clone(&four.clock),
        key: std::marker::PhantomData,
    };
    six.fill(8, |_| old(State::Young));
    let mut sweeper = four.sweeper();
    for _ in 0..5 {
        sweeper.pass();
    }
    let census = sweeper.pass();
    assert_eq!(census.tables.v4.counts.pin, 50);
    assert_eq!(
        (census.tables.v6.counts.young, census.swept.reclaimed),
        (6, 2)
    );
    assert_eq!(census.total(), census.by_service[&0]);
}
