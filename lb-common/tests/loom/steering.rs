//! Whole packets on several CPUs: a live flow's packets go to its backend, whatever is forged, moved or retransmitted meanwhile.

use lb_common::{
    flow::word::{BackendRef, State, Word},
    verdict::Reason,
};
use loom::sync::Arc;

use crate::machine::{
    Buckets, Cpu, Depth, ISN, NOW, Order, data, embryo, explore, fin, on_cpu, pin, rst, syn,
};

const KEY: u64 = 1;
/// A sequence number far from [`ISN`].
const FAR: u32 = 0x8000_0000;
const SAME: &[[u32; 2]] = &[[0, 1], [0, 1]];

/// A second live entry of the key, made by a challenger far away.
fn second(backend: u32) -> Word {
    Word::live(
        State::Young,
        BackendRef::new(backend, 0),
        FAR >> 20,
        NOW,
        Word::CONTESTED | Word::SECOND,
    )
}

/// The flow's pin is there, on its backend, and says so if it has company.
fn assert_untouched<const N: u32>(buckets: &Arc<Buckets<N>>) {
    let entries = buckets.entries_of(KEY);
    let pins: Vec<_> = entries.iter().filter(|word| word.is(State::Pin)).collect();
    assert_eq!(pins.len(), 1, "{entries:?}");
    assert_eq!(pins[0].backend().id(), 1);
    assert!(entries.len() <= 2, "{entries:?}");
    assert!(
        entries.len() == 1 || pins[0].has(Word::CONTESTED),
        "{entries:?}"
    );
}

#[test]
fn two_forged_syns_meet_a_live_flow() {
    explore("two forged SYNs", Depth::Preemptions(4), |order| {
        let buckets = Buckets::<1>::new(order, 2, SAME, &[(1, 0, KEY, pin(1, 0))]);
        let forger = Cpu::new(&buckets, 2).draining(1);
        let forger = on_cpu(move || forger.steer(KEY, syn(FAR), NOW));
        Cpu::new(&buckets, 2)
            .draining(1)
            .steer(KEY, syn(FAR / 2), NOW);
        forger.join().unwrap();
        assert_untouched(&buckets);
    });
}

#[test]
fn a_live_flow_is_used_while_a_handshake_is_forged() {
    explore(
        "forged SYN and ACK, and data",
        Depth::Preemptions(3),
        |order| {
            let buckets = Buckets::<1>::new(order, 2, SAME, &[(1, 0, KEY, pin(1, 0))]);
            let forger = Cpu::new(&buckets, 2).draining(1);
            let forger = on_cpu(move || {
                forger.steer(KEY, syn(FAR), NOW);
                forger.steer(KEY, data(FAR + 1), NOW);
            });
            let user = Cpu::new(&buckets, 2).draining(1);
            let outcome = user.steer(KEY, data(ISN), NOW);
            assert_eq!(outcome, (Reason::Established, Some(1)));
            forger.join().unwrap();
            assert_untouched(&buckets);
        },
    );
}

#[test]
fn a_contested_flow_is_used_on_two_cpus() {
    explore("a contested flow on two CPUs", Depth::Exhaustive, |order| {
        let first = pin(1, Word::CONTESTED);
        let buckets = Buckets::<1>::new(
            order,
            2,
            SAME,
            &[(0, 0, KEY, second(2)), (1, 0, KEY, first)],
        );
        let use_it = |buckets: &_| {
            let cpu = Cpu::new(buckets, 2).draining(1);
            move || cpu.steer(KEY, data(ISN), NOW)
        };
        let other = on_cpu(use_it(&buckets));
        assert_eq!(use_it(&buckets)(), (Reason::Established, Some(1)));
        assert_eq!(other.join().unwrap(), (Reason::Established, Some(1)));
        assert_untouched(&buckets);
    });
}

/// Opens key 2, which moves one of the contested flow's two entries, while a packet of its first entry comes. `homes` and `entries`
/// are of two-place buckets, of which two are full.
fn move_a_contested_flow(
    order: Order,
    homes: &'static [[u32; 2]],
    entries: &[(u32, u32, u64, Word)],
) {
    let buckets = Buckets::<2>::new(order, 3, homes, entries);
    let mover = Cpu::new(&buckets, 3);
    let mover = on_cpu(move || mover.steer(2, syn(ISN), NOW));
    let user = Cpu::new(&buckets, 2).draining(1);
    let outcome = user.steer(KEY, data(ISN), NOW);
    assert_eq!(outcome, (Reason::Established, Some(1)), "went astray");
    // A refresh can keep the entry where it is, and then there is no place.
    assert_eq!(mover.join().expect("no CPU panics").1, Some(3));
    let left = buckets.entries_of(KEY);
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.iter().any(|word| word.backend().id() == 1), "{left:?}");
}

/// An entry that cannot be moved.
fn blocker(backend: u32) -> Word {
    Word::live(State::Pin, BackendRef::new(backend, 0), 0, NOW, 0)
}

#[test]
fn the_first_of_two_entries_is_moved_while_it_is_used() {
    explore("move of a first entry", Depth::Preemptions(4), |order| {
        move_a_contested_flow(
            order,
            &[[0, 1], [0, 1], [1, 2], [1, 2], [2, 1]],
            &[
                (0, 0, KEY, second(2)),
                (1, 0, KEY, pin(1, Word::CONTESTED)),
                (1, 1, 3, blocker(3)),
                (2, 0, 4, blocker(4)),
                (2, 1, 4, blocker(4)),
            ],
        );
    });
}

#[test]
fn the_second_of_two_entries_is_moved_while_the_first_is_used() {
    explore("move of a second entry", Depth::Preemptions(4), |order| {
        move_a_contested_flow(
            order,
            &[[0, 1], [0, 1], [0, 2], [0, 2], [2, 0]],
            &[
                (0, 0, KEY, second(2)),
                (0, 1, 3, blocker(3)),
                (1, 1, KEY, pin(1, Word::CONTESTED)),
                (2, 0, 4, blocker(4)),
                (2, 1, 4, blocker(4)),
            ],
        );
    });
}

#[test]
fn a_flow_is_used_while_its_end_is_forged() {
    explore(
        "data and forged FIN and RST",
        Depth::Preemptions(3),
        |order: Order| {
            let buckets = Buckets::<1>::new(order, 2, SAME, &[(0, 0, KEY, pin(1, 0))]);
            let (one, two) = (Cpu::new(&buckets, 2), Cpu::new(&buckets, 2));
            let one = on_cpu(move || one.steer(KEY, fin(FAR), NOW));
            let two = on_cpu(move || two.steer(KEY, rst(FAR), NOW));
            let outcome = Cpu::new(&buckets, 2).steer(KEY, data(ISN), NOW);
            assert_eq!(outcome, (Reason::Established, Some(1)));
            one.join().unwrap();
            two.join().unwrap();
            assert_untouched(&buckets);
        },
    );
}

#[test]
fn the_same_syn_comes_twice_and_its_answer_with_it() {
    explore("a SYN, again, and an ACK", Depth::Preemptions(3), |order| {
        let buckets = Buckets::<1>::new(order, 2, SAME, &[(0, 0, KEY, embryo(1))]);
        let again = Cpu::new(&buckets, 2);
        let again = on_cpu(move || again.steer(KEY, syn(ISN), NOW));
        let answer = Cpu::new(&buckets, 2).steer(KEY, data(ISN + 1), NOW);
        assert_eq!(answer, (Reason::Established, Some(1)));
        // Wherever it comes in between, the SYN goes where the flow is.
        assert_eq!(again.join().unwrap().1, Some(1));
        let left = buckets.entries_of(KEY);
        assert!(left.iter().all(|word| word.backend().id() == 1), "{left:?}");
    });
}
