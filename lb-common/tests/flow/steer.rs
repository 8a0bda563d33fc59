//! What sequences of packets do: challengers, port reuse, draining and dead backends, adoption.

use lb_common::{
    backend::Serving,
    clock::Tick,
    flow::{
        open::open,
        steer::established,
        table::Memory,
        v4::Key,
        word::{
            EMBRYO_TICKS, LINGER_EXCEPTION_TICKS, LINGER_FIN_TICKS, LINGER_RST_TICKS, State, Word,
            YOUNG_TICKS,
        },
    },
    maglev::{HANDOVER_TICKS, Slot},
    share::Share,
    tcp::{ACK, RST},
    verdict::Reason,
};

use crate::rig::{
    ELSEWHERE, FLOW, ISN, Rig, START, ack, challenged_at_another, data, fin, hand_slot_over,
    pinned, rst, segment, syn,
};

#[test]
fn a_port_used_a_third_time_is_served_though_both_clients_before_vanished() {
    let mut rig = Rig::small(2);
    let mut now = pinned(&rig);
    let mut isn = ELSEWHERE;
    // The second client's connection lives too, and vanishes without a FIN like the first.
    rig.send(FLOW, syn(isn), now);
    rig.send(FLOW, ack(isn + 1), now);
    now = now.later(YOUNG_TICKS);
    rig.send(FLOW, data(isn + 1), now);
    assert_eq!(rig.entries(FLOW).len(), 2);

    now = now.later(10_000);
    isn = 0x4000_0000;
    let (reason, backend) = rig.send(FLOW, syn(isn), now);
    assert_eq!(reason, Reason::Unpinned);
    assert_eq!(backend, Some(1));
    for seq in [isn + 1, isn + 100, isn + 5_000_000] {
        assert_eq!(
            rig.send(FLOW, data(seq), now),
            (Reason::Established, backend)
        );
    }
    // Nobody new goes to a backend that takes nobody new.
    rig.set_backend(1, Serving::ExistingOnly);
    assert_eq!(
        rig.send(FLOW, syn(0x6000_0000), now),
        (Reason::Contested, None)
    );
}

#[test]
fn a_reset_where_no_stream_is_reaches_the_backend_that_was_asked() {
    let mut rig = Rig::small(2);
    let now = pinned(&rig);
    challenged_at_another(&mut rig, now);
    // What that one has still of a connection before both.
    let before = image(&rig);
    let stale = ISN.wrapping_add(0x2000_0000);
    assert_eq!(
        rig.send(FLOW, rst(stale), now),
        (Reason::Established, Some(2))
    );
    assert_eq!(image(&rig), before);
    // And what the first one has of the former, which is over then.
    assert_eq!(
        rig.send(FLOW, rst(ISN), now),
        (Reason::Established, Some(1))
    );
    let [former, challenger] = rig.entries(FLOW)[..] else {
        panic!("two entries: {:?}", rig.entries(FLOW));
    };
    assert!(former.is(State::Closing) && challenger.is(State::Challenger));
}

#[test]
fn a_flow_whose_entry_was_missed_while_it_moved_goes_where_its_entry_says() {
    let mut rig = Rig::small(2);
    let now = pinned(&rig);
    rig.set_slot(Slot::new(2, 0, now));
    // Two looks of eight places see nothing; the look after the insertion sees the entry.
    rig.blind(16);
    assert_eq!(
        rig.send(FLOW, data(ISN + 1), now),
        (Reason::Established, Some(1))
    );
    assert!(rig.entry(FLOW).is(State::Pin));
    // On the long way a SYN has one look before it. (What is paced is not for the straight one.)
    rig.pace(2, Share::NONE);
    rig.blind(8);
    assert_eq!(
        rig.send(FLOW, syn(ELSEWHERE), now),
        (Reason::Reopened, Some(1))
    );
    assert!(rig.entry(FLOW).is(State::Pin));
}

#[test]
fn a_syn_that_missed_an_entry_while_it_moved_challenges_it_all_the_same() {
    let rig = Rig::small(2);
    let now = pinned(&rig);
    // The one look of the straight way sees nothing; that after the insertion sees the entry, and leaves the SYN to the long way.
    rig.blind(8);
    assert_eq!(
        rig.send(FLOW, syn(ELSEWHERE), now),
        (Reason::Challenged, Some(1))
    );
    let [pin, challenger] = rig.entries(FLOW)[..] else {
        panic!("{:?}", rig.entries(FLOW));
    };
    assert!(pin.is(State::Pin) && challenger.is(State::Challenger));
}

/// An entry that goes leaves its key behind, until another takes its place.
#[test]
fn keys_that_were_left_behind_keep_no_flow_from_the_straight_ways() {
    let rig = Rig::small(1);
    let now = pinned(&rig);
    rig.send(FLOW, syn(ELSEWHERE), now);
    rig.send(FLOW, ack(ELSEWHERE + 1), now);
    // The client has let go of its first connection, and the daemon of its entry, and then of the mark of the second.
    rig.sweep(|_, word| !word.has(Word::SECOND));
    let [home, _] = rig.homes(&FLOW);
    let second = rig.value(home, 1);
    assert!(second.is(State::Young), "{second:?}");
    assert!(rig.replace(home, 1, second, second.without(Word::CONTESTED)));
    assert_eq!(rig.key(home, 0), FLOW);
    let known = established(&rig, &FLOW, &data(ELSEWHERE + 1), now);
    let known = known.expect("it is an established flow");
    assert_eq!((known.place.index, known.place.way), (home, 1));

    rig.sweep(|_, _| true);
    assert_eq!(open(&rig, &FLOW, &syn(ISN), now), 1);
    assert!(rig.entry(FLOW).is(State::Embryo));
    assert_eq!(rig.key(home, 1), FLOW, "left behind");
}

#[test]
fn a_new_flow_without_a_place_goes_where_its_next_packets_will() {
    // While a slot is handed over, unknown packets go to its previous owner, and so has to go the SYN that left no entry.
    let mut rig = Rig::small(2);
    for port in 1..=8 {
        let key = Key::new(0x0a00_0002, port, 1);
        rig.send(key, syn(ISN), START);
        rig.send(key, ack(ISN + 1), START);
    }
    assert_eq!(rig.all().count(), 8);
    hand_slot_over(&mut rig, START);
    assert_eq!(rig.send(FLOW, syn(ISN), START), (Reason::Unpinned, Some(1)));
    assert_eq!(
        rig.send(FLOW, ack(ISN + 1), START),
        (Reason::Unadopted, Some(1))
    );
    // A previous owner that takes no new flows does not get one by this.
    rig.set_backend(1, Serving::ExistingOnly);
    assert_eq!(rig.send(FLOW, syn(ISN), START), (Reason::Unpinned, Some(2)));
}

#[test]
fn a_new_flow_that_is_not_recorded_now_waits_where_its_next_packets_would_go_astray() {
    let mut rig = Rig::small(2);
    rig.hold(true);
    hand_slot_over(&mut rig, START);
    // Both go to the previous owner, or the SYN goes nowhere.
    assert_eq!(rig.send(FLOW, syn(ISN), START), (Reason::Unpinned, Some(1)));
    assert_eq!(
        rig.send(FLOW, ack(ISN + 1), START),
        (Reason::Unadopted, Some(1))
    );
    rig.set_backend(1, Serving::ExistingOnly);
    assert_eq!(rig.send(FLOW, syn(ISN), START), (Reason::Held, None));
    // Once the slot is handed over, both go to its owner.
    let later = START.later(HANDOVER_TICKS + 1);
    assert_eq!(rig.send(FLOW, syn(ISN), later), (Reason::Unpinned, Some(2)));
    assert_eq!(
        rig.send(FLOW, ack(ISN + 1), later),
        (Reason::Unadopted, Some(2))
    );
    // And when entries are written again it is recorded.
    rig.hold(false);
    assert_eq!(rig.send(FLOW, syn(ISN), later), (Reason::Opened, Some(2)));
    assert_eq!(
        rig.send(FLOW, ack(ISN + 1), later),
        (Reason::Established, Some(2))
    );
}

#[test]
fn the_same_syn_again_keeps_its_backend_while_that_serves() {
    for (serving, backend) in [
        (Serving::New, 1),
        (Serving::ExistingOnly, 1),
        (Serving::None, 2),
    ] {
        let mut rig = Rig::small(2);
        rig.send(FLOW, syn(ISN), START);
        rig.set_slot(Slot::new(2, 0, START));
        rig.set_backend(1, serving);
        assert_eq!(
            rig.send(FLOW, syn(ISN), START),
            (Reason::Reopened, Some(backend)),
            "{serving:?}"
        );
        assert_eq!(
            rig.send(FLOW, ack(ISN + 1), START),
            (Reason::Established, Some(backend))
        );
    }
}

#[test]
fn another_syn_on_an_embryo_goes_only_to_a_backend_that_takes_new_flows() {
    for (serving, backend) in [
        (Serving::New, 1),
        (Serving::ExistingOnly, 2),
        (Serving::None, 2),
    ] {
        let mut rig = Rig::small(2);
        rig.send(FLOW, syn(ISN), START);
        rig.set_slot(Slot::new(2, 0, START));
        rig.set_backend(1, serving);
        assert_eq!(
            rig.send(FLOW, syn(ELSEWHERE), START),
            (Reason::Reopened, Some(backend)),
            "{serving:?}"
        );
        assert_eq!(rig.entry(FLOW).isn(), ELSEWHERE);
    }
}

#[test]
fn a_port_reused_after_its_flow_has_closed_is_a_new_flow() {
    // Within the linger, beside the closing entry; after it, in its place.
    let mut rig = Rig::small(2);
    let now = pinned(&rig);
    rig.send(FLOW, fin(ISN + 10), now);
    assert!(rig.entry(FLOW).is(State::Closing));
    rig.set_backend(1, Serving::ExistingOnly);
    hand_slot_over(&mut rig, now);
    assert_eq!(
        rig.send(FLOW, syn(ELSEWHERE), now),
        (Reason::Challenged, Some(2))
    );
    assert_eq!(
        rig.send(FLOW, data(ELSEWHERE + 1), now),
        (Reason::Established, Some(2))
    );
    // The old connection's last packets still reach it.
    assert_eq!(
        rig.send(FLOW, ack(ISN + 11), now),
        (Reason::Established, Some(1))
    );

    let rig = Rig::small(1);
    let now = pinned(&rig);
    rig.send(FLOW, fin(ISN + 10), now);
    let after = now.later(LINGER_FIN_TICKS);
    assert_eq!(
        rig.send(FLOW, syn(ELSEWHERE), after.later(0)),
        (Reason::Opened, Some(1))
    );
    assert!(rig.entry(FLOW).is(State::Embryo));
}

#[test]
fn a_port_reused_after_its_client_vanished_is_a_new_flow() {
    let mut rig = Rig::small(2);
    let now = pinned(&rig).later(50_000);
    rig.set_backend(1, Serving::None);
    rig.set_slot(Slot::new(2, 1, now));
    assert_eq!(
        rig.send(FLOW, syn(ELSEWHERE), now),
        (Reason::Challenged, Some(2))
    );
    // The same SYN, retransmitted, makes no third entry and changes nothing.
    assert_eq!(
        rig.send(FLOW, syn(ELSEWHERE), now),
        (Reason::Reopened, Some(2))
    );
    assert_eq!(
        rig.send(FLOW, ack(ELSEWHERE + 1), now),
        (Reason::Established, Some(2))
    );
    assert_eq!(rig.promotions(), 2);
    assert_eq!(
        rig.send(FLOW, data(ISN + 1), now),
        (Reason::BackendDead, Some(1))
    );
}

/// The former client vanished without a word, and is not to have what the next one sends once that comes to where it was.
#[test]
fn the_next_connection_of_a_port_goes_on_past_where_the_former_one_was() {
    for lasts in [0, YOUNG_TICKS] {
        let mut rig = Rig::small(2);
        let mut now = pinned(&rig).later(1_000);
        hand_slot_over(&mut rig, now);
        rig.set_backend(1, Serving::ExistingOnly);
        let isn = ISN - (4 << 20);
        assert_eq!(rig.send(FLOW, syn(isn), now), (Reason::Challenged, Some(2)));
        assert_eq!(
            rig.send(FLOW, ack(isn + 1), now),
            (Reason::Established, Some(2))
        );
        now = now.later(lasts);
        for step in 0..64 {
            let next = isn + 1 + step * (1 << 18);
            // And what was lost is sent again.
            for seq in [next, next - (1 << 19)] {
                assert_eq!(
                    rig.send(FLOW, data(seq), now),
                    (Reason::Established, Some(2)),
                    "{step}, {lasts}"
                );
            }
        }
    }
}

#[test]
fn a_closing_flow_lingers_by_how_it_ended() {
    for (end, exception, linger) in [
        (fin(ISN + 9), false, LINGER_FIN_TICKS),
        (fin(ISN + 9), true, LINGER_EXCEPTION_TICKS),
        (rst(ISN + 9), false, LINGER_RST_TICKS),
        (rst(ISN + 9), true, LINGER_RST_TICKS),
    ] {
        let mut rig = Rig::small(2);
        let now = pinned(&rig);
        if exception {
            hand_slot_over(&mut rig, now);
        }
        rig.send(FLOW, end, now);
        let word = rig.entry(FLOW);
        assert_eq!(word.has(Word::EXCEPTION), exception);
        assert!(!word.is_vacant(now.later(linger - 1)) && word.is_vacant(now.later(linger)));
        // It still forwards.
        assert_eq!(
            rig.send(FLOW, ack(ISN + 10), now.later(linger)),
            (Reason::Established, Some(1))
        );
    }
}

#[test]
fn what_each_serving_means_for_a_flow_that_has_an_entry() {
    for (serving, segment, reason, state) in [
        (Serving::New, data(ISN + 1), Reason::Established, State::Pin),
        (
            Serving::ExistingOnly,
            data(ISN + 1),
            Reason::Established,
            State::Pin,
        ),
        (
            Serving::None,
            data(ISN + 1),
            Reason::BackendDead,
            State::Closing,
        ),
        (
            Serving::None,
            fin(ISN + 1),
            Reason::BackendDead,
            State::Closing,
        ),
        (
            Serving::None,
            rst(ISN + 1),
            Reason::ResetToDead,
            State::Closing,
        ),
        (
            Serving::None,
            segment(ISN + 1, RST | ACK, false),
            Reason::ResetToDead,
            State::Closing,
        ),
        // Not where the stream is: forged, or a jump that nothing confirms yet.
        (
            Serving::None,
            data(ELSEWHERE),
            Reason::BackendDead,
            State::Pin,
        ),
        (
            Serving::None,
            rst(ELSEWHERE),
            Reason::ResetToDead,
            State::Pin,
        ),
    ] {
        let mut rig = Rig::small(1);
        let now = pinned(&rig);
        rig.set_backend(1, serving);
        assert_eq!(rig.send(FLOW, segment, now), (reason, Some(1)));
        assert_eq!(rig.entry(FLOW).state(), state, "{serving:?} {segment:?}");
    }
}

/// Clients of a dead backend are told, and nobody comes again who could end the flow: it ends with that, and lingers while the client goes on asking.
#[test]
fn a_flow_of_a_dead_backend_ends_a_minute_after_its_clients_last_segment_and_is_revived_before() {
    for end in [data(ISN + 1), fin(ISN + 1), rst(ISN + 1)] {
        let mut rig = Rig::small(2);
        let now = pinned(&rig);
        hand_slot_over(&mut rig, now);
        rig.set_backend(1, Serving::None);
        rig.send(FLOW, end, now);
        let later = now.later(LINGER_RST_TICKS - 1);
        assert_eq!(
            rig.send(FLOW, data(ISN + 1), later),
            (Reason::BackendDead, Some(1))
        );
        let word = rig.entry(FLOW);
        assert!(!word.is_vacant(later.later(LINGER_RST_TICKS - 1)));
        assert!(word.is_vacant(later.later(LINGER_RST_TICKS)));
        rig.set_backend(1, Serving::ExistingOnly);
        assert_eq!(
            rig.send(FLOW, data(ISN + 1), later),
            (Reason::Established, Some(1))
        );
        assert!(rig.entry(FLOW).is(State::Young));
    }
}

#[test]
fn a_reused_id_inherits_no_flow() {
    let mut rig = Rig::small(2);
    let now = pinned(&rig);
    rig.set_backend_whole(1, 1, Serving::New, true);
    assert_eq!(
        rig.send(FLOW, data(ISN + 1), now),
        (Reason::StaleGeneration, None)
    );
    assert!(rig.entries(FLOW).is_empty());
    // A new flow takes the id as it is now.
    assert_eq!(
        rig.send(FLOW, syn(ELSEWHERE), now),
        (Reason::Opened, Some(1))
    );
    assert_eq!(rig.entry(FLOW).backend().generation(), 1);
}

#[test]
fn an_unknown_flow_goes_to_the_previous_backend_while_the_slot_is_handed_over() {
    for (age, previous_serves, backend) in [
        (0, Serving::New, 1),
        (0, Serving::ExistingOnly, 1),
        (0, Serving::None, 2),
        (HANDOVER_TICKS - 1, Serving::ExistingOnly, 1),
        (HANDOVER_TICKS, Serving::New, 2),
    ] {
        let mut rig = Rig::small(2);
        hand_slot_over(&mut rig, START);
        rig.set_backend(1, previous_serves);
        let now = START.later(age);
        assert_eq!(
            rig.send(FLOW, data(ISN), now),
            (Reason::Adopted, Some(backend))
        );
        let word = rig.entry(FLOW);
        assert!(word.is(State::Young) && word.has(Word::FOREIGN));
        assert_eq!(rig.promotions(), 1);
    }
}

#[test]
fn adoption_has_its_limits() {
    // Not beyond the rate.
    let mut rig = Rig::small(1);
    rig.set_may_adopt(false);
    assert_eq!(
        rig.send(FLOW, data(ISN), START),
        (Reason::Unadopted, Some(1))
    );
    // Not by a segment that ends, or has no ACK.
    rig.set_may_adopt(true);
    for stray in [fin(ISN), rst(ISN), segment(ISN, 0, true)] {
        assert_eq!(rig.send(FLOW, stray, START), (Reason::Stray, Some(1)));
    }
    assert_eq!(rig.all().count(), 0);
    // Not in the place of an embryo, which a SYN would take.
    for port in 1..=8 {
        rig.send(Key::new(0x0a00_0002, port, 1), syn(ISN), START);
    }
    let late = START.later(EMBRYO_TICKS);
    assert_eq!(
        rig.send(FLOW, data(ISN), late),
        (Reason::Unadopted, Some(1))
    );
    assert_eq!(rig.send(FLOW, syn(ISN), late), (Reason::Opened, Some(1)));
    // Where no backend serves, the client learns of it; but nobody answers a RST.
    rig.set_backend(1, Serving::None);
    let other = Key::new(0x0a00_0003, 1, 1);
    for (segment, reason) in [
        (data(ISN), Reason::NoBackendForFlow),
        (fin(ISN), Reason::NoBackendForFlow),
        (rst(ISN), Reason::NoBackend),
        (syn(ISN), Reason::NoBackend),
    ] {
        assert_eq!(
            rig.send(other, segment, late),
            (reason, None),
            "{segment:?}"
        );
    }
}

#[test]
fn the_oldest_embryo_makes_place_and_a_pin_never() {
    let rig = Rig::small(1);
    let now = pinned(&rig);
    for port in 1..=8 {
        let key = Key::new(0x0a00_0002, port, 1);
        assert_eq!(
            rig.send(key, syn(ISN), now.later(u32::from(port))).0,
            Reason::Opened
        );
    }
    // Seven places were left; the eighth SYN took that of the first.
    assert!(rig.entries(Key::new(0x0a00_0002, 1, 1)).is_empty());
    for port in 100..2_000 {
        rig.send(Key::new(0x0a00_0002, port, 1), syn(ISN), now.later(20));
    }
    assert!(rig.entry(FLOW).is(State::Pin));
}

#[test]
fn new_flows_avoid_backends_that_take_none() {
    for serving in [Serving::ExistingOnly, Serving::None] {
        let mut rig = Rig::small(2);
        // Every slot but a few names backend 1; an attempt or two more finds the others.
        rig.set_slots((0..64).map(|n| Slot::new(1 + n % 2, 0, Tick(0))).collect());
        rig.set_backend(1, serving);
        let (mut opened, mut refused) = (0, 0);
        for port in 0..4_096 {
            match rig.send(Key::new(0x0a00_0009, port, 1), syn(ISN), START) {
                (Reason::Opened | Reason::Unpinned, Some(2)) => opened += 1,
                (Reason::NoBackend, None) => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        // Four attempts at one half: one in sixteen finds none.
        assert!((128..384).contains(&refused), "{refused} of {opened}");
    }
}

/// Everything in the table, to compare.
fn image(rig: &Rig) -> Vec<String> {
    let mut all: Vec<_> = rig.all().map(|entry| format!("{entry:?}")).collect();
    all.sort();
    all
}

#[test]
fn nothing_is_written_while_the_table_is_held_and_what_must_not_be_lost_comes_again() {
    let mut rig = Rig::small(2);
    let now = pinned(&rig);
    let embryo = Key::new(0x0a00_0002, 7, 1);
    rig.send(embryo, syn(ISN), now);
    let before = image(&rig);
    rig.hold(true);
    let later = now.later(3);
    let stranger = Key::new(0x0a00_0003, 9, 1);
    for (key, segment, outcome) in [
        // Known flows go on; that they were seen is told by their next packets too.
        (FLOW, data(ISN), (Reason::Established, Some(1))),
        // Their ends, a SYN on them, and the answer to a SYN would be lost: those come again.
        (FLOW, fin(ISN), (Reason::Held, None)),
        (FLOW, rst(ISN), (Reason::Held, None)),
        (FLOW, syn(ISN + 99), (Reason::Held, None)),
        (embryo, ack(ISN + 1), (Reason::Held, None)),
        (embryo, syn(ISN + 5), (Reason::Held, None)),
        // The same SYN again never writes anything.
        (embryo, syn(ISN), (Reason::Reopened, Some(1))),
        // What is unknown is forwarded by the table, and adopted later.
        (stranger, syn(ISN), (Reason::Unpinned, Some(1))),
        (stranger, data(ISN), (Reason::Unadopted, Some(1))),
        (stranger, fin(ISN), (Reason::Stray, Some(1))),
    ] {
        assert_eq!(rig.send(key, segment, later), outcome, "{segment:?}");
        assert_eq!(image(&rig), before, "{segment:?}");
    }
    rig.hold(false);
    for (key, segment, reason) in [
        (stranger, data(ISN), Reason::Adopted),
        (embryo, ack(ISN + 1), Reason::Established),
        (FLOW, fin(ISN), Reason::Established),
    ] {
        assert_eq!(rig.send(key, segment, later), (reason, Some(1)));
    }
    assert!(rig.entry(FLOW).is(State::Closing));
    assert!(rig.entry(embryo).is(State::Young));
}
