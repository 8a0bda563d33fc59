//! Places in the flow table, through the program: claiming, relocation, adoption, handover.

use lab::packet::{
    BackendSpec, CLIENT, Client, World, answered,
    entries::backend,
    flow::{ago, assert_to},
    reset_output,
};
use lb_common::{
    backend::Serving,
    clock::Tick,
    flow::{
        table::Place,
        word::{LINGER_FIN_TICKS, State, Word, epoch_of},
    },
    maglev::{HANDOVER_TICKS, PICK_ATTEMPTS, Slot},
    maps::{BURST_NS, default::ADOPTIONS_PER_SECOND},
    tcp::{ACK, FIN, RST},
    verdict::Reason,
};

lab::in_both_versions![
    a_new_flow_takes_the_first_empty_place_of_its_two_homes,
    a_new_flow_takes_the_place_of_a_closing_entry_past_its_linger,
    a_vacant_place_is_taken_before_any_embryos,
    the_oldest_embryo_makes_place_when_there_is_no_other,
    nothing_living_is_taken_however_idle_and_the_flow_is_served_unpinned,
    a_full_pair_of_buckets_moves_one_flow_to_its_other_home,
    a_flow_moves_to_a_vacant_place_only,
    an_unknown_flow_is_adopted_as_young_and_foreign,
    adoption_takes_vacant_places_only_and_serves_the_flow_all_the_same,
    adoption_does_not_move_other_flows,
    a_fin_a_rst_or_a_segment_without_ack_of_an_unknown_flow_is_forwarded_and_never_adopted,
    adoptions_beyond_their_rate_are_forwarded_without_an_entry,
    adoptions_are_held_to_their_rate,
    an_unknown_flow_goes_to_the_slots_previous_backend_for_ten_minutes,
    an_unknown_flow_goes_to_the_current_backend_if_the_previous_one_is_dead,
    an_unknown_flow_is_refused_if_neither_backend_serves,
    a_new_flow_goes_to_the_slots_current_backend_during_a_handover,
    a_new_flow_without_a_place_goes_where_its_next_packets_will,
    a_new_flow_tries_four_slots_for_a_backend_that_takes_it,
    a_flow_of_a_table_of_several_backends_goes_to_its_slots_owner,
];

fn pin(now: Tick) -> Word {
    Word::live(State::Pin, backend(2), 7, now, 0)
}

/// Fills both homes of [`CLIENT`] with entries of flows that have the same two homes, `value` by their number from 0 to 7.
fn fill(world: &World, value: impl Fn(u32) -> Word) -> Vec<(Place, Client)> {
    let others: Vec<Client> = world.neighbours(CLIENT).take(8).collect();
    assert_eq!(others.len(), 8, "too few flows share both homes");
    let places = world.places_of(CLIENT.key());
    let filled: Vec<(Place, Client)> = places.zip(others).collect();
    for (number, (place, client)) in filled.iter().enumerate() {
        world.put(*place, client.key(), value(number as u32));
    }
    filled
}

fn a_new_flow_takes_the_first_empty_place_of_its_two_homes() {
    for empty in 0..8 {
        let world = World::new();
        let now = world.now();
        let filled = fill(&world, |_| pin(now));
        for (place, _) in &filled[empty..] {
            world.set_value(*place, Word::EMPTY);
        }
        assert_to(&world, &CLIENT.syn(), Reason::Opened, 1);
        let (place, _) = world.entry_in(CLIENT.key(), State::Embryo);
        assert_eq!(place, filled[empty].0);
    }
}

fn a_new_flow_takes_the_place_of_a_closing_entry_past_its_linger() {
    let world = World::new();
    let now = world.now();
    let closing = |age| Word::live(State::Closing, backend(2), 7, ago(now, age), 0);
    let filled = fill(&world, |number| match number {
        5 => closing(LINGER_FIN_TICKS),
        _ => closing(LINGER_FIN_TICKS - 1),
    });
    assert_to(&world, &CLIENT.syn(), Reason::Opened, 1);
    let (place, _) = world.entry_in(CLIENT.key(), State::Embryo);
    assert_eq!(place, filled[5].0);
}

fn a_vacant_place_is_taken_before_any_embryos() {
    let world = World::new();
    let now = world.now();
    let filled = fill(&world, |number| match number {
        7 => Word::live(State::Closing, backend(2), 7, ago(now, LINGER_FIN_TICKS), 0),
        _ => Word::embryo(backend(2), 1, ago(now, 20)),
    });
    assert_to(&world, &CLIENT.syn(), Reason::Opened, 1);
    let (place, _) = world.entry_in(CLIENT.key(), State::Embryo);
    assert_eq!(place, filled[7].0);
}

fn the_oldest_embryo_makes_place_when_there_is_no_other() {
    for oldest in 0..8 {
        let world = World::new();
        let now = world.now();
        let filled = fill(&world, |number| {
            let age = if number == oldest { 9 } else { number };
            if number % 2 == 0 {
                Word::embryo(backend(2), 1, ago(now, age))
            } else {
                Word::challenger(backend(2), 1, ago(now, age))
            }
        });
        assert_to(&world, &CLIENT.syn(), Reason::Opened, 1);
        let (place, _) = world.entry_in(CLIENT.key(), State::Embryo);
        assert_eq!(place, filled[oldest as usize].0);
        assert!(world.entries(filled[oldest as usize].1.key()).is_empty());
    }
}

fn nothing_living_is_taken_however_idle_and_the_flow_is_served_unpinned() {
    let world = World::new();
    let now = world.now();
    // These flows have no other homes, so none can move.
    fill(&world, |number| match number % 3 {
        0 => Word::live(State::Young, backend(2), 7, ago(now, 1 << 18), 0),
        1 => Word::live(State::Pin, backend(2), 7, ago(now, 1 << 18), 0),
        _ => Word::live(
            State::Closing,
            backend(2),
            7,
            ago(now, LINGER_FIN_TICKS - 1),
            0,
        ),
    });
    let before = format!("{:?}", world.values());
    assert_to(&world, &CLIENT.syn(), Reason::Unpinned, 1);
    assert_to(&world, &CLIENT.ack(), Reason::Unadopted, 1);
    assert_eq!(format!("{:?}", world.values()), before);
}

/// A flow with exactly one home in common with [`CLIENT`]'s two, and the other home.
fn movable(world: &World) -> (Client, u32, u32) {
    let homes = world.homes(CLIENT.key());
    (1_024..u16::MAX)
        .map(|port| Client(CLIENT.0, port))
        .find_map(|client| {
            let [one, other] = world.homes(client.key());
            match (homes.contains(&one), homes.contains(&other)) {
                (true, false) => Some((client, one, other)),
                (false, true) => Some((client, other, one)),
                _ => None,
            }
        })
        .expect("a flow that has one home in common")
}

fn a_full_pair_of_buckets_moves_one_flow_to_its_other_home() {
    for state in [State::Young, State::Pin, State::Closing] {
        let world = World::new();
        let now = world.now();
        let filled = fill(&world, |_| pin(now));
        let (mover, shared, other) = movable(&world);
        let source = filled
            .iter()
            .map(|(place, _)| *place)
            .find(|place| place.index == shared)
            .expect("the bucket is full");
        let word = Word::live(state, backend(2), 9, ago(now, 3), Word::FOREIGN);
        world.put(source, mover.key(), word);
        let mut facts = world.facts().get(source.index);
        facts.first_seen[source.way as usize] = 4_711;
        world.facts().set(source.index, &facts);

        assert_to(&world, &CLIENT.syn(), Reason::Opened, 1);
        let (place, _) = world.entry_in(CLIENT.key(), State::Embryo);
        assert_eq!(place, source);
        let (copy, moved) = world.entry_in(mover.key(), state);
        assert_eq!((copy.index, moved), (other, word));
        assert_eq!(world.first_seen(copy), 4_711, "facts move along");
        assert_eq!(world.values().len(), 9);
        // It is found where it is now.
        let data = mover.sends(ACK).seq(9 << 20);
        assert_to(&world, &data, Reason::Established, 2);
    }
}

fn a_flow_moves_to_a_vacant_place_only() {
    let world = World::new();
    let now = world.now();
    let filled = fill(&world, |_| pin(now));
    let (mover, shared, other) = movable(&world);
    let source = filled
        .iter()
        .map(|(place, _)| *place)
        .find(|place| place.index == shared)
        .expect("the bucket is full");
    world.put(source, mover.key(), pin(now));
    // Embryos in its other home are not vacant: a copy must not take a place from anyone.
    for way in 0..4 {
        let elsewhere = Client(CLIENT.0, 100 + way as u16);
        let embryo = Word::embryo(backend(2), 1, ago(now, 9));
        world.put(Place { index: other, way }, elsewhere.key(), embryo);
    }
    let before = format!("{:?}", world.values());
    assert_to(&world, &CLIENT.syn(), Reason::Unpinned, 1);
    assert_eq!(format!("{:?}", world.values()), before);
}

fn an_unknown_flow_is_adopted_as_young_and_foreign() {
    let world = World::new();
    let now = world.now();
    let data = CLIENT.ack().payload(b"data");
    assert_to(&world, &data, Reason::Adopted, 1);
    let (place, word) = world.entry_in(CLIENT.key(), State::Young);
    let epoch = epoch_of(data.as_tcp().seq);
    assert_eq!(
        word,
        Word::live(State::Young, backend(1), epoch, now, Word::FOREIGN)
    );
    assert_eq!(world.first_seen(place), now.0);
    assert_to(&world, &data, Reason::Established, 1);
}

fn adoption_takes_vacant_places_only_and_serves_the_flow_all_the_same() {
    let world = World::new();
    let now = world.now();
    fill(&world, |_| Word::embryo(backend(2), 1, ago(now, 20)));
    let before = format!("{:?}", world.values());
    assert_to(&world, &CLIENT.ack(), Reason::Unadopted, 1);
    assert_eq!(format!("{:?}", world.values()), before);
}

fn adoption_does_not_move_other_flows() {
    let world = World::new();
    let now = world.now();
    let filled = fill(&world, |_| pin(now));
    let (mover, shared, _) = movable(&world);
    let source = filled.iter().find(|(place, _)| place.index == shared);
    world.put(source.expect("it is full").0, mover.key(), pin(now));
    let before = format!("{:?}", world.values());
    assert_to(&world, &CLIENT.ack(), Reason::Unadopted, 1);
    assert_eq!(format!("{:?}", world.values()), before);
}

fn a_fin_a_rst_or_a_segment_without_ack_of_an_unknown_flow_is_forwarded_and_never_adopted() {
    let world = World::new();
    for flags in [FIN, FIN | ACK, RST, RST | ACK, FIN | RST, 0] {
        assert_to(&world, &CLIENT.sends(flags), Reason::Stray, 1);
    }
    assert_eq!(world.values().len(), 0);
}

fn adoptions_beyond_their_rate_are_forwarded_without_an_entry() {
    let world = World::full_size();
    let flows = 1_000;
    for port in 1..=flows {
        world.save_adoptions(0);
        world.hit(&Client(CLIENT.0, port).ack().bytes());
    }
    let adopted = world.count_of(Reason::Adopted);
    let unadopted = world.count_of(Reason::Unadopted);
    assert_eq!(adopted + unadopted, u64::from(flows));
    // Those that were adopted met a step of the coarse clock, which brings permissions.
    assert!(unadopted > 0, "{adopted} adopted");
    assert_eq!(world.values().len() as u64, adopted);
}

/// However fast this machine is: each adoption costs its CPU its time, no CPU spends time that has not come, and no more than a burst is saved up.
fn adoptions_are_held_to_their_rate() {
    const COST_NS: u64 = 1_000_000_000 / ADOPTIONS_PER_SECOND;
    const BURST: u64 = BURST_NS / COST_NS;
    for (saved, given) in [(1_000, 1_000), (10 * BURST, BURST)] {
        let world = World::full_size();
        world.save_adoptions(saved);
        let (before, began_ns) = world.adoptions_paid();
        let flows = given + 1_000;
        for n in 1..=flows {
            world.hit(&Client(CLIENT.0, n as u16).ack().bytes());
        }
        let adopted = world.count_of(Reason::Adopted);
        assert_eq!(adopted + world.count_of(Reason::Unadopted), flows);
        assert!(adopted >= given, "{adopted} of {given} that were saved up");
        let (after, now_ns) = world.adoptions_paid();
        let forfeited_ns = (saved - given) * COST_NS;
        let mut spent_ns = 0;
        for (before, after) in before.into_iter().zip(after) {
            assert!(after <= now_ns);
            if after != before {
                spent_ns += after - (before + forfeited_ns);
            }
        }
        assert!(
            adopted * COST_NS <= spent_ns,
            "{adopted} adopted for {spent_ns} ns, in {} ns",
            now_ns - began_ns
        );
    }
}

/// A world where every slot was handed from backend 2 to backend 1, `ticks` ago.
fn handed_over(ticks: u32) -> World {
    let mut world = World::new();
    let changed = ago(world.now(), ticks);
    world.table(1, &[Slot::new(1, 2, changed); 5]);
    world
}

fn an_unknown_flow_goes_to_the_slots_previous_backend_for_ten_minutes() {
    let world = handed_over(HANDOVER_TICKS - 1);
    assert_to(&world, &CLIENT.ack(), Reason::Adopted, 2);
    assert_eq!(world.entry(CLIENT.key()).backend(), backend(2));
    assert_to(&world, &Client(CLIENT.0, 9).sends(RST), Reason::Stray, 2);
    drop(world);

    let world = handed_over(HANDOVER_TICKS);
    assert_to(&world, &CLIENT.ack(), Reason::Adopted, 1);
}

fn an_unknown_flow_goes_to_the_current_backend_if_the_previous_one_is_dead() {
    let world = handed_over(1);
    world.backend(&BackendSpec::l2(2).serving(Serving::ExistingOnly));
    assert_to(&world, &CLIENT.ack(), Reason::Adopted, 2);
    world.backend(&BackendSpec::l2(2).serving(Serving::None));
    let other = Client(CLIENT.0, 9);
    assert_to(&world, &other.ack(), Reason::Adopted, 1);
}

fn an_unknown_flow_is_refused_if_neither_backend_serves() {
    let world = handed_over(1);
    world.backend(&BackendSpec::l2(1).serving(Serving::None));
    world.backend(&BackendSpec::l2(2).serving(Serving::None));
    let ack = CLIENT.ack();
    world
        .send(&ack)
        .expect(&answered(Reason::NoBackendForFlow, reset_output(&ack)));
}

fn a_new_flow_goes_to_the_slots_current_backend_during_a_handover() {
    let world = handed_over(1);
    assert_to(&world, &CLIENT.syn(), Reason::Opened, 1);
}

fn a_new_flow_without_a_place_goes_where_its_next_packets_will() {
    let world = handed_over(1);
    let now = world.now();
    fill(&world, |_| pin(now));
    assert_to(&world, &CLIENT.syn(), Reason::Unpinned, 2);
    assert_to(&world, &CLIENT.ack(), Reason::Unadopted, 2);
}

fn a_new_flow_tries_four_slots_for_a_backend_that_takes_it() {
    const SIZE: u32 = 61;
    let slots: Vec<usize> = (0..PICK_ATTEMPTS)
        .map(|attempt| World::slot_of(CLIENT, attempt, SIZE))
        .collect();
    for living in 0..PICK_ATTEMPTS as usize {
        let mut world = World::new();
        world.backend(&BackendSpec::l2(2).serving(Serving::ExistingOnly));
        let mut table = vec![Slot::new(2, 0, Tick(0)); SIZE as usize];
        table[slots[living]] = Slot::new(1, 0, Tick(0));
        world.table(1, &table);
        assert_to(&world, &CLIENT.syn(), Reason::Opened, 1);
    }
}

fn a_flow_of_a_table_of_several_backends_goes_to_its_slots_owner() {
    const SIZE: u32 = 61;
    let mut world = World::new();
    let table: Vec<Slot> = (0..SIZE)
        .map(|slot| Slot::new(1 + slot % 2, 0, Tick(0)))
        .collect();
    world.table(1, &table);
    for port in 1_000..1_064 {
        let client = Client(CLIENT.0, port);
        let owner = 1 + World::slot_of(client, 0, SIZE) as u32 % 2;
        assert_to(&world, &client.syn(), Reason::Opened, owner);
    }
}
