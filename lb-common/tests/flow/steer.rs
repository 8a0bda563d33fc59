//! What sequences of packets do: challengers, forgeries, port reuse, draining and dead backends, adoption.

use lb_common::{
    backend::Serving,
    clock::Tick,
    flow::{
        table::Memory,
        v4::Key,
        word::{
            EMBRYO_TICKS, LINGER_EXCEPTION_TICKS, LINGER_FIN_TICKS, LINGER_RST_TICKS, State, Word,
            YOUNG_TICKS,
        },
    },
    maglev::{HANDOVER_TICKS, Slot},
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

use crate::rig::{Rig, ack, data, fin, rst, segment, syn};

const FLOW: Key = Key::new(0x0a00_0001, 40_000, 1);
const ISN: u32 = 0x1234_5678;
/// A sequence number many epochs from [`ISN`].
const ELSEWHERE: u32 = 0x9000_0000;
const START: Tick = Tick(1_000_000);

/// Opens [`FLOW`] and proves it: a pin at the returned time.
fn pinned(rig: &Rig) -> Tick {
    let (opened, backend) = rig.send(FLOW, syn(ISN), START);
    assert_eq!(opened, Reason::Opened);
    assert_eq!(
        rig.send(FLOW, ack(ISN + 1), START),
        (Reason::Established, backend)
    );
    let proven = START.later(YOUNG_TICKS);
    assert_eq!(
        rig.send(FLOW, data(ISN + 1), proven),
        (Reason::Established, backend)
    );
    assert!(rig.entry(FLOW).is(State::Pin));
    proven
}

/// Moves the table's only slot from backend 1 to backend 2, so that flows of 1 become exceptions.
fn hand_slot_over(rig: &mut Rig, now: Tick) {
    rig.set_slot(Slot::new(2, 1, now));
}

#[test]
fn a_syn_after_a_forged_twin_has_closed_steals_nothing() {
    // The forger owns the second entry whole: it opens it, closes it, and waits for its linger to end. Whichever of the two
    // entries comes first in the bucket, the victim's packets have to stay where they are.
    for forged_comes_first in [false, true] {
        let mut rig = Rig::small(2);
        // The dummy takes the place before the victim's, and leaves it for the challenger.
        let dummy = (1..)
            .map(|port| Key::new(0x0a00_0009, port, 1))
            .find(|key| rig.homes(key) == rig.homes(&FLOW))
            .unwrap();
        if forged_comes_first {
            rig.send(dummy, syn(7), START);
        }
        let mut now = pinned(&rig);
        rig.sweep(|key, _| key == dummy);
        hand_slot_over(&mut rig, now);

        assert_eq!(rig.send(FLOW, syn(ELSEWHERE), now).0, Reason::Challenged);
        rig.send(FLOW, ack(ELSEWHERE + 1), now);
        rig.send(FLOW, rst(ELSEWHERE + 1), now);
        now = now.later(LINGER_RST_TICKS);
        rig.send(FLOW, syn(ELSEWHERE), now);

        assert_eq!(
            rig.send(FLOW, data(ISN + 1), now),
            (Reason::Established, Some(1)),
            "forged entry first: {forged_comes_first}; {:?}",
            rig.entries(FLOW)
        );
    }
}

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
    rig.blind(16);
    assert_eq!(
        rig.send(FLOW, syn(ELSEWHERE), now),
        (Reason::Reopened, Some(1))
    );
    assert!(rig.entry(FLOW).is(State::Pin));
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
