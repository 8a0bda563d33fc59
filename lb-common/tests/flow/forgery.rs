//! Forgeries beside a live flow: its packets go where they went.

use lb_common::{
    backend::Serving,
    flow::{
        table::Memory,
        v4::Key,
        word::{LINGER_RST_TICKS, YOUNG_TICKS},
    },
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

use crate::rig::{
    ELSEWHERE, FLOW, ISN, Rig, START, ack, challenged_at_another, data, fin, hand_slot_over,
    pinned, rst, segment, syn,
};

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

/// Two forgeries beside a flow whose backend is drained: a SYN, and a segment that has its entry follow it away from its stream. Its backend hears of its client's
/// end all the same, and does not keep the socket.
#[test]
fn a_reset_beside_a_forged_syn_and_a_forged_jump_ends_the_flow_at_its_backend() {
    let mut rig = Rig::small(2);
    let now = pinned(&rig);
    challenged_at_another(&mut rig, now);
    let far = ISN.wrapping_add(0x2000_0000);
    assert_eq!(
        rig.send(FLOW, ack(far), now),
        (Reason::Established, Some(1))
    );
    assert_eq!(
        rig.send(FLOW, rst(ISN), now),
        (Reason::Established, Some(1))
    );
}

/// Forgeries against a live pin, each alone and all together: its packets go where they went.
#[test]
fn forged_packets_never_change_where_a_pin_goes() {
    let forgeries = [
        syn(ISN),
        syn(ISN + 1),
        syn(ELSEWHERE),
        fin(ISN),
        fin(ELSEWHERE),
        rst(ISN),
        rst(ELSEWHERE),
        ack(ELSEWHERE),
        segment(ISN, SYN | ACK, false),
        segment(ISN, SYN | RST, false),
        segment(ISN, SYN | FIN, true),
        segment(ISN, 0, true),
    ];
    for serving in [Serving::New, Serving::ExistingOnly] {
        for slot_moves in [false, true] {
            for subset in 0..=forgeries.len() {
                let mut rig = Rig::small(3);
                let mut now = pinned(&rig);
                if slot_moves {
                    hand_slot_over(&mut rig, now);
                }
                rig.set_backend(1, serving);
                let forged = match forgeries.get(subset) {
                    Some(one) => std::slice::from_ref(one),
                    None => &forgeries[..],
                };
                for segment in forged {
                    rig.send(FLOW, *segment, now);
                    // The victim's own position does not follow a forged SYN, except by a chance of 2^-15.
                    if segment.seq.wrapping_sub(ISN) > 1 || !segment.has(SYN) {
                        assert_eq!(
                            rig.send(FLOW, data(ISN + 200_000), now),
                            (Reason::Established, Some(1)),
                            "{segment:?} of {forged:?}, {serving:?}"
                        );
                    }
                    now = now.later(1);
                }
                assert_eq!(
                    rig.send(FLOW, data(ISN + 200_000), now),
                    (Reason::Established, Some(1)),
                    "{forged:?}, {serving:?}"
                );
            }
        }
    }
}

#[test]
fn a_spoofed_handshake_beside_a_pin_leaves_it_its_backend() {
    for serving in [Serving::New, Serving::ExistingOnly] {
        let mut rig = Rig::small(2);
        let now = pinned(&rig);
        hand_slot_over(&mut rig, now);
        rig.set_backend(1, serving);
        rig.send(FLOW, syn(ELSEWHERE), now);
        rig.send(FLOW, ack(ELSEWHERE + 1), now);
        let later = now.later(YOUNG_TICKS);
        rig.send(FLOW, data(ELSEWHERE + 1), later);
        assert_eq!(rig.entries(FLOW).len(), 2);
        for seq in [ISN + 1, ISN + 2_000_000, ISN + 500] {
            assert_eq!(
                rig.send(FLOW, data(seq), later),
                (Reason::Established, Some(1))
            );
        }
    }
}

/// The forger says that the stream is elsewhere, and opens another as far from there as there is: half of all sequence numbers are nearer to that.
#[test]
fn a_spoofed_handshake_beside_a_pin_whose_place_was_forged_leaves_it_its_backend() {
    for serving in [Serving::New, Serving::ExistingOnly] {
        for part in 0..16 {
            let mut rig = Rig::small(2);
            let now = pinned(&rig);
            hand_slot_over(&mut rig, now);
            rig.set_backend(1, serving);
            let forged = ISN.wrapping_add(0x0800_0000).wrapping_add(part << 28);
            for _ in 0..2 {
                rig.send(FLOW, ack(forged), now);
            }
            let other = forged.wrapping_add(1 << 31);
            rig.send(FLOW, syn(other), now);
            rig.send(FLOW, ack(other.wrapping_add(1)), now);
            assert_eq!(rig.entries(FLOW).len(), 2);
            for seq in [ISN + 1, ISN + 2] {
                assert_eq!(
                    rig.send(FLOW, data(seq), now),
                    (Reason::Established, Some(1)),
                    "{forged:#x}, {serving:?}"
                );
            }
        }
    }
}
