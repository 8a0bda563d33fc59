use super::*;
use crate::{
    flow::word::{BackendRef, LINGER_RST_TICKS, YOUNG_TICKS},
    tcp::FIN,
};

const NOW: Tick = Tick(100_000);
const ISN: u32 = 0x1234_0000;
const THEIRS: u32 = 0x9876_0000;

fn backend() -> BackendRef {
    BackendRef::new(7, 3)
}

fn segment(flags: u8, seq: u32) -> Segment {
    Segment {
        seq,
        flags,
        payload: false,
    }
}

fn opened() -> Flow {
    Flow {
        value: Word::embryo(backend(), ISN, NOW),
        translation: TranslationWord::new(5, 2_000),
    }
}

fn answered() -> Flow {
    opened().after_backend(&segment(SYN | ACK, THEIRS), ISN + 1, NOW)
}

fn proven() -> Flow {
    answered().after_client(&segment(ACK, ISN + 1), THEIRS + 1, NOW)
}

fn ended(one: fn(Flow) -> Flow, other: fn(Flow) -> Flow) -> Flow {
    other(one(proven()))
}

fn client_fin(flow: Flow) -> Flow {
    flow.after_client(&segment(FIN | ACK, ISN + 1), THEIRS + 1, NOW)
}

fn backend_fin(flow: Flow) -> Flow {
    flow.after_backend(&segment(FIN | ACK, THEIRS + 1), ISN + 1, NOW)
}

#[test]
fn a_handshake_makes_a_pin_at_once() {
    assert_eq!(answered().value, opened().value);
    assert_eq!(answered().translation.isn(), THEIRS);
    let pin = Word::live(State::Pin, backend(), epoch_of(ISN), NOW, 0);
    assert_eq!(proven().value, pin);
    assert_eq!(
        proven().translation,
        TranslationWord::new(5, 2_000).proven(THEIRS)
    );
}

/// What the answer acknowledges may be another SYN, a little ahead, which this one has replaced: a spoofer can send both.
#[test]
fn an_answer_that_acknowledges_more_than_the_syn_proves_nothing() {
    let answer = segment(SYN | ACK, THEIRS);
    for (taken, answers) in [
        (0, true),
        (1, true),
        (0xffff, true),
        (0x1_0000, false),
        (u32::MAX, false),
    ] {
        let flow = opened().after_backend(&answer, ISN.wrapping_add(1).wrapping_add(taken), NOW);
        let expected = if answers { answered() } else { opened() };
        assert_eq!(flow, expected, "{taken:#x}");
    }
    let refused = segment(SYN | ACK | RST, THEIRS);
    assert_eq!(opened().after_backend(&refused, ISN + 9, NOW), opened());
}

#[test]
fn a_backend_that_sends_data_before_it_hears_again_of_its_client_proves_it() {
    let taken = opened().after_backend(&segment(SYN | ACK, THEIRS), ISN + 101, NOW);
    let pin = Word::live(State::Pin, backend(), epoch_of(ISN), NOW, 0);
    for (seq, ack, proves) in [
        (THEIRS + 1, ISN + 101, true),
        (THEIRS + 1_461, ISN + 101, true),
        (THEIRS + 0x1_0000, ISN + 1, true),
        (THEIRS + 0x1_0001, ISN + 101, false),
        (THEIRS, ISN + 101, false),
        (THEIRS + 1, ISN, false),
        (THEIRS + 1, ISN + 0x1_0001, false),
    ] {
        let flow = taken.after_backend(&data(seq), ack, NOW);
        if proves {
            assert_eq!(flow.value, pin);
            let proven = TranslationWord::new(5, 2_000).proven(seq);
            assert_eq!(flow.translation, proven);
        } else {
            assert_eq!(flow, taken, "{seq:#x} {ack:#x}");
        }
    }
    let early = |flags, payload| Segment {
        payload,
        ..segment(flags, THEIRS + 1)
    };
    for (what, flow, segment) in [
        ("no answer yet", opened(), data(THEIRS + 1)),
        ("no data", taken, early(ACK, false)),
        ("a refusal", taken, early(RST | ACK, true)),
        ("an end", taken, early(FIN | ACK, true)),
    ] {
        assert_eq!(flow.after_backend(&segment, ISN + 101, NOW), flow, "{what}");
    }
    // What another flow has left behind in the same place is no answer.
    let stale = Flow {
        value: opened().value,
        ..proven()
    };
    assert_eq!(stale.after_backend(&data(THEIRS + 1), ISN + 1, NOW), stale);
}

#[test]
fn a_challenger_that_is_proven_stays_the_second() {
    let mut flow = answered();
    flow.value = Word::challenger(backend(), ISN, NOW);
    let flow = flow.after_client(&segment(ACK, ISN + 1), THEIRS + 1, NOW);
    assert!(flow.value.is(State::Pin));
    assert!(flow.value.has(Word::CONTESTED) && flow.value.has(Word::SECOND));
}

#[test]
fn nothing_else_proves_a_handshake() {
    let ack = segment(ACK, ISN + 1);
    assert_eq!(
        opened().after_client(&ack, THEIRS + 1, NOW),
        opened(),
        "no answer yet"
    );
    let flow = answered();
    for (what, segment, ack) in [
        ("another acknowledgement", ack, THEIRS + 2),
        ("its own number", ack, ISN + 1),
        ("before its SYN", segment(ACK, ISN - 1), THEIRS + 1),
        ("a FIN", segment(FIN | ACK, ISN + 1), THEIRS + 1),
        ("a RST", segment(RST, ISN + 1), THEIRS + 1),
    ] {
        assert_eq!(flow.after_client(&segment, ack, NOW), flow, "{what}");
    }
    for (what, answer, ack) in [
        ("an answer to another SYN", segment(SYN | ACK, THEIRS), ISN),
        ("no SYN", segment(ACK, THEIRS), ISN + 1),
        ("a refusal", segment(RST | ACK, 0), ISN + 1),
    ] {
        assert_eq!(
            opened().after_backend(&answer, ack, NOW),
            opened(),
            "{what}"
        );
    }
    // What another flow has left behind in the same place is no proof.
    let stale = Flow {
        value: opened().value,
        ..proven()
    };
    assert_eq!(stale.after_client(&ack, THEIRS + 1, NOW), stale);
}

#[test]
fn a_second_answer_counts_and_not_the_first() {
    let flow = answered().after_backend(&segment(SYN | ACK, THEIRS + 9), ISN + 1, NOW);
    assert_eq!(flow.translation.isn(), THEIRS + 9);
    // And a repeated one changes nothing of a live flow.
    let again = proven().after_backend(&segment(SYN | ACK, THEIRS), ISN + 1, NOW.later(9));
    assert_eq!(again, proven());
}

#[test]
fn one_fin_ends_nothing_and_two_do_in_either_order() {
    assert!(client_fin(proven()).value.is(State::Pin));
    assert!(backend_fin(proven()).value.is(State::Pin));
    // The same side again is no other side.
    assert!(ended(client_fin, client_fin).value.is(State::Pin));
    for flow in [
        ended(client_fin, backend_fin),
        ended(backend_fin, client_fin),
    ] {
        assert!(flow.value.is(State::Closing));
        assert!(!flow.value.is_vacant(NOW.later(LINGER_RST_TICKS - 1)));
        assert!(flow.value.is_vacant(NOW.later(LINGER_RST_TICKS)));
    }
}

/// The last acknowledgement, data that was lost, FINs again: all that may still come of a flow that both sides have ended.
#[test]
fn what_comes_after_both_fins_only_keeps_it_a_while_longer() {
    let later = NOW.later(3);
    let flow = ended(client_fin, backend_fin);
    let expected = Flow {
        value: flow.value.with_tick(later),
        ..flow
    };
    let data = Segment {
        payload: true,
        ..segment(ACK, ISN + 1)
    };
    let of_backend = Segment {
        payload: true,
        ..segment(ACK, THEIRS + 1)
    };
    let fin = segment(FIN | ACK, ISN + 1);
    assert_eq!(
        flow.after_client(&segment(ACK, ISN + 2), THEIRS + 2, later),
        expected
    );
    assert_eq!(flow.after_client(&data, THEIRS + 1, later), expected);
    assert_eq!(flow.after_client(&fin, THEIRS + 1, later), expected);
    assert_eq!(flow.after_backend(&of_backend, ISN + 1, later), expected);
    assert_eq!(
        flow.after_backend(&segment(FIN | ACK, THEIRS + 1), ISN + 2, later),
        expected
    );
}

fn data(seq: u32) -> Segment {
    Segment {
        payload: true,
        ..segment(ACK, seq)
    }
}

/// A FIN that was forged, or of another connection: its side goes on beyond it.
#[test]
fn a_fin_whose_side_goes_on_beyond_it_is_none() {
    const FAR: u32 = 1 << 17;
    // The client's, in the slow way, which is that of a closing flow; and the end that the backend has is a half-closed stream.
    let closed = ended(client_fin, backend_fin);
    let beyond = data(ISN + 1 + FAR);
    let revived = closed.after_client(&beyond, THEIRS + 1, NOW);
    assert!(revived.value.is(State::Young), "{revived:?}");
    assert!(!revived.translation.has(TranslationWord::CLIENT_FIN));
    assert!(revived.translation.has(TranslationWord::BACKEND_FIN));
    let end = segment(FIN | ACK, ISN + 2 + FAR);
    let ended_at_last = revived.after_client(&end, THEIRS + 2, NOW);
    assert!(ended_at_last.value.is(State::Closing));
    // The backend's, in either state of the flow.
    let beyond = data(THEIRS + 1 + FAR);
    let open = backend_fin(proven()).after_backend(&beyond, ISN + 1, NOW);
    assert_eq!(open.translation.0 & BOTH_FINS, 0);
    assert!(client_fin(open).value.is(State::Pin));
    let closed = ended(client_fin, backend_fin);
    let revived = closed.after_backend(&beyond, ISN + 1, NOW);
    assert!(revived.value.is(State::Young));
    assert!(!revived.translation.has(TranslationWord::BACKEND_FIN));
}

/// Data of an open flow's client is seen by its entry alone.
#[test]
fn what_the_entry_has_seen_beyond_the_clients_fin_counts_when_the_backend_ends() {
    let mut flow = client_fin(proven());
    flow.value = flow.value.with_epoch(epoch_of(ISN) + 1);
    let half = flow.after_backend(&segment(FIN | ACK, THEIRS + 1), ISN, NOW);
    assert!(half.value.is(State::Pin), "{half:?}");
    assert_eq!(half.translation.0 & BOTH_FINS, TranslationWord::BACKEND_FIN);
}

/// One packet of anybody's makes the client's stream seem to be elsewhere.
#[test]
fn a_jump_that_nobody_has_confirmed_undoes_no_fin() {
    let mut flow = client_fin(proven());
    flow.value = flow.value.with_epoch(epoch_of(ISN) + 1);
    flow.value = flow.value.with(Word::UNCONFIRMED);
    let closed = flow.after_backend(&segment(FIN | ACK, THEIRS + 1), ISN, NOW);
    assert_eq!(closed.translation.0 & BOTH_FINS, BOTH_FINS);
    assert!(closed.value.is(State::Closing));
    let mut flow = client_fin(proven());
    flow.value = flow.value.with(Word::UNCONFIRMED);
    let still = flow.after_client(&data(ISN + 1 + (1 << 17)), THEIRS + 1, NOW);
    assert!(still.translation.has(TranslationWord::CLIENT_FIN));
}

#[test]
fn data_far_from_the_stream_undoes_no_fin() {
    const FAR: u32 = 3 << 20;
    let closed = ended(client_fin, backend_fin);
    let theirs = closed.after_backend(&data(THEIRS + FAR), ISN, NOW);
    let clients = closed.after_client(&data(ISN + FAR), THEIRS, NOW);
    for flow in [theirs, clients] {
        assert_eq!(flow.translation.0 & BOTH_FINS, BOTH_FINS);
        assert!(flow.value.is(State::Closing));
    }
}

#[test]
fn a_reset_of_either_side_ends_it() {
    for flow in [
        proven().after_client(&segment(RST, ISN + 1), 0, NOW),
        proven().after_backend(&segment(RST, THEIRS + 1), 0, NOW),
        proven().after_backend(&segment(RST | ACK, THEIRS + 1), ISN + 1, NOW),
    ] {
        assert!(flow.value.is(State::Closing), "{flow:?}");
        assert!(flow.value.has(Word::BY_RESET));
        // It was forged if either side goes on.
        let client = Segment {
            payload: true,
            ..segment(ACK, ISN + 1)
        };
        assert!(
            flow.after_client(&client, THEIRS + 1, NOW)
                .value
                .is(State::Young)
        );
        let theirs = segment(ACK, THEIRS + 1);
        let late = NOW.later(LATE_TICKS);
        let heard = |segment: &Segment, now| flow.after_backend(segment, ISN + 1, now).value;
        assert!(heard(&theirs, late).is(State::Young));
        // What was under way when the client reset it tells nothing, and it would never end again.
        for (segment, now) in [
            (theirs, NOW),
            (data(THEIRS + 1), NOW),
            (data(THEIRS + 1), late),
        ] {
            assert!(heard(&segment, now).is(State::Closing), "{segment:?}");
        }
    }
}

#[test]
fn an_end_out_of_its_window_ends_nothing() {
    const FAR: u32 = 5 << 20;
    for flags in [FIN | ACK, RST] {
        let flow = proven().after_client(&segment(flags, ISN.wrapping_add(FAR)), THEIRS, NOW);
        assert_eq!(flow.value, proven().value.with(Word::HINT));
        assert_eq!(flow.translation, proven().translation);
        let flow = proven().after_backend(&segment(flags, THEIRS.wrapping_add(FAR)), ISN, NOW);
        assert_eq!(flow, proven());
    }
}

#[test]
fn the_backends_stream_is_followed_and_a_jump_has_to_be_confirmed() {
    const EPOCH: u32 = 1 << 20;
    let at = |flow: Flow, epochs: u32| {
        let seq = THEIRS.wrapping_add(epochs * EPOCH);
        flow.after_backend(&segment(ACK, seq), ISN + 1, NOW)
    };
    let moved = at(at(proven(), 1), 2);
    assert_eq!(moved.translation.epoch(), epoch_of(THEIRS) + 2);
    assert_eq!(at(moved, 1).translation, moved.translation, "no way back");
    let jumped = at(proven(), 700);
    assert!(jumped.translation.has(TranslationWord::UNCONFIRMED));
    let reset = segment(RST, THEIRS.wrapping_add(700 * EPOCH));
    assert!(
        !jumped
            .after_backend(&reset, 0, NOW)
            .value
            .is(State::Closing)
    );
    assert!(
        at(jumped, 700)
            .after_backend(&reset, 0, NOW)
            .value
            .is(State::Closing)
    );
}

#[test]
fn both_sides_keep_a_pin_seen_and_make_one_of_what_was_adopted() {
    let later = NOW.later(5);
    let expected = proven().value.with_tick(later);
    let client = proven().after_client(&segment(ACK, ISN + 1), THEIRS + 1, later);
    let theirs = proven().after_backend(&segment(ACK, THEIRS + 1), ISN + 1, later);
    assert_eq!((client.value, theirs.value), (expected, expected));

    let adopted = Flow {
        value: Word::live(State::Young, backend(), epoch_of(ISN), NOW, Word::FOREIGN),
        translation: TranslationWord::new(0, 0),
    };
    let old = NOW.later(YOUNG_TICKS);
    let client = adopted.after_client(&segment(ACK, ISN + 1), THEIRS + 1, old);
    let theirs = adopted.after_backend(&segment(ACK, THEIRS + 1), ISN + 1, old);
    for flow in [client, theirs] {
        assert!(flow.value.is(State::Pin));
        assert_eq!(flow.translation, TranslationWord::new(0, 0).proven(THEIRS));
    }
}

/// Each table has seen the segments of one interface: of one side, as where backends are behind another than clients.
#[test]
fn what_two_tables_have_seen_of_a_flow_is_all_of_it_once_they_are_joined() {
    // Its answer, which alone makes the acknowledgement a proof.
    assert_eq!(opened().joined(answered(), NOW), answered());
    assert_eq!(answered().joined(opened(), NOW), answered());
    assert_eq!(opened().joined(proven(), NOW), proven());
    // Each FIN alone ends nothing.
    let later = NOW.later(3);
    let both = client_fin(proven()).joined(backend_fin(proven()), later);
    let expected = over(proven().value, later);
    assert_eq!(both.value, expected);
    assert_eq!(both.translation, ended(client_fin, backend_fin).translation);
    assert_eq!(
        client_fin(proven()).joined(proven(), later),
        client_fin(proven())
    );
    // A reset that one has seen.
    let reset = proven().after_backend(&segment(RST | ACK, THEIRS + 1), ISN + 1, later);
    assert_eq!(proven().joined(reset, later), reset);
}

#[test]
fn of_another_port_or_another_syn_nothing_is_taken() {
    let other_port = Flow {
        translation: TranslationWord::new(5, 2_001).proven(THEIRS),
        ..proven()
    };
    assert_eq!(opened().joined(other_port, NOW), opened());
    let other_syn = Flow {
        value: Word::embryo(backend(), ISN + 7, NOW),
        ..answered()
    };
    assert_eq!(opened().joined(other_syn, NOW), opened());
}
