//! Flows that are closed, a share of them at a time: those of drains past their deadline, and of dead backends.

use lb_common::{
    backend::Serving,
    clock::Tick,
    flow::{v4::Key, word::State},
    maglev::Slot,
    share::Share,
    tcp::Segment,
    verdict::Reason,
};

use crate::rig::{ELSEWHERE, FLOW, ISN, Rig, START, ack, data, fin, pinned, rst, syn};

/// What comes of a segment of each of so many flows, all of backend 1.
fn of_each(rig: &Rig, flows: u16, make: impl Fn(u32) -> Segment) -> Vec<Reason> {
    (1..=flows)
        .map(|port| {
            let (reason, backend) = rig.send(Key::new(0x0a00_0007, port, 1), make(ISN + 1), START);
            assert_eq!(backend, Some(1));
            reason
        })
        .collect()
}

/// A large table with so many flows, all of backend 1.
fn crowd(flows: u16) -> Rig {
    let mut rig = Rig::new(1 << 12);
    rig.set_backend(1, Serving::New);
    rig.set_backend(2, Serving::New);
    rig.set_slot(Slot::new(1, 0, Tick(0)));
    for port in 1..=flows {
        rig.send(Key::new(0x0a00_0007, port, 1), syn(ISN), START);
        rig.send(Key::new(0x0a00_0007, port, 1), ack(ISN + 1), START);
    }
    rig
}

#[test]
fn a_pace_closes_a_share_of_the_flows_and_forwards_the_rest() {
    const FLOWS: u16 = 1_000;
    let mut rig = crowd(FLOWS);
    for (serving, reason) in [
        (Serving::ExistingOnly, Reason::DrainDeadline),
        // A backend that is drained again while it takes new flows, in fail-open.
        (Serving::New, Reason::DrainDeadline),
        (Serving::None, Reason::BackendDead),
    ] {
        rig.set_backend(1, serving);
        let mut before = vec![Reason::Established; FLOWS.into()];
        for part in 0..=8 {
            rig.pace(1, Share::of_parts(part << 13));
            let now = of_each(&rig, FLOWS, data);
            let closed = now.iter().filter(|&&now| now == reason).count();
            assert_eq!(
                now.iter()
                    .filter(|&&now| now == Reason::Established)
                    .count(),
                usize::from(FLOWS) - closed
            );
            let expected = part as usize * 125;
            assert!(closed.abs_diff(expected) < 80, "{closed}, not {expected}");
            assert!(part != 0 || closed == 0);
            assert!(part != 8 || closed == usize::from(FLOWS));
            // Who is closed stays so.
            assert!(
                before
                    .iter()
                    .zip(&now)
                    .all(|(was, is)| *was != reason || *is == reason)
            );
            before = now;
        }
    }
}

#[test]
fn without_a_pace_all_flows_of_a_dead_backend_are_closed_and_none_of_a_living_one() {
    let mut rig = crowd(50);
    rig.set_backend(1, Serving::None);
    assert_eq!(of_each(&rig, 50, data), [Reason::BackendDead; 50]);
    rig.set_backend(1, Serving::ExistingOnly);
    assert_eq!(of_each(&rig, 50, data), [Reason::Established; 50]);
}

#[test]
fn at_a_deadline_who_ends_a_flow_is_forwarded_and_a_syn_again_keeps_its_backend() {
    let mut rig = Rig::small(2);
    pinned(&rig);
    let embryo = Key::new(0x0a00_0002, 7, 1);
    rig.send(embryo, syn(ISN), START);
    rig.set_backend(1, Serving::ExistingOnly);
    rig.pace(1, Share::ALL);
    assert_eq!(
        rig.send(embryo, syn(ISN), START),
        (Reason::Reopened, Some(1))
    );
    assert_eq!(
        rig.send(embryo, ack(ISN + 1), START),
        (Reason::DrainDeadline, Some(1))
    );
    for end in [fin(ISN + 1), rst(ISN + 1)] {
        assert_eq!(rig.send(FLOW, end, START), (Reason::Established, Some(1)));
    }
    assert!(rig.entry(FLOW).is(State::Closing));
    // A new connection on a port used before goes where new ones go.
    rig.set_slot(Slot::new(2, 0, START));
    assert_eq!(
        rig.send(FLOW, syn(ELSEWHERE), START),
        (Reason::Challenged, Some(2))
    );
}
