//! What one segment does to one word: every state, kind of segment, position and age that makes a difference.

use lb_common::{
    clock::Tick,
    flow::{
        life::{Owner, PROMOTION_WINDOW, advance, heard, owner, refresh, refused},
        word::{BackendRef, LATE_TICKS, REFRESH_TICKS, State, Word, YOUNG_TICKS, epoch_of},
    },
    tcp::{ACK, FIN, RST, Segment},
};

use crate::{
    random::Random,
    rig::{ack, data, fin, rst, segment},
};

const BACKEND: BackendRef = BackendRef::new(5, 3);
const THEN: Tick = Tick(400_000);
const NOW: Tick = Tick(400_003);
const EPOCH: u32 = 0x123;
const MIB: u32 = 1 << 20;

/// A sequence number so many epochs from [`EPOCH`].
fn at(epochs: i32) -> u32 {
    (EPOCH << 20)
        .wrapping_add((epochs as u32).wrapping_mul(MIB))
        .wrapping_add(77)
}

fn live(state: State, flags: u64) -> Word {
    Word::live(state, BACKEND, EPOCH, THEN, flags)
}

#[test]
fn an_embryo_is_promoted_within_the_window_only() {
    for isn in [0u32, 1, 0x7fff_ffff, 0xffff_ffff, 0xfffe_ffff] {
        for (offset, promotes) in [
            (0u32, true),
            (1, true),
            (PROMOTION_WINDOW - 1, true),
            (PROMOTION_WINDOW, true),
            (PROMOTION_WINDOW + 1, false),
            (u32::MAX, false),
            (1 << 31, false),
        ] {
            let seq = isn.wrapping_add(offset);
            for (word, flags) in [
                (Word::embryo(BACKEND, isn, THEN), 0),
                (
                    Word::challenger(BACKEND, isn, THEN),
                    Word::CONTESTED | Word::SECOND,
                ),
            ] {
                let young = Word::live(State::Young, BACKEND, epoch_of(seq), NOW, flags);
                let expected = if promotes { young } else { word };
                assert_eq!(advance(word, &ack(seq), NOW), expected, "{isn} {offset}");
                assert_eq!(advance(word, &data(seq), NOW), expected, "{isn} {offset}");
            }
        }
    }
    assert_eq!(PROMOTION_WINDOW, 131_072);
}

#[test]
fn nothing_but_a_plain_acknowledgement_promotes() {
    let word = Word::embryo(BACKEND, 100, THEN);
    for flags in 0..=u8::MAX {
        let continues = flags & 0x17 == ACK;
        let next = advance(word, &segment(101, flags, true), NOW);
        assert_eq!(next.is(State::Young), continues, "{flags:#x}");
        assert!(continues || next == word, "{flags:#x}");
    }
}

#[test]
fn a_young_entry_is_proven_by_the_first_packet_after_30_seconds() {
    // From one beginning of its tick to another, YOUNG_TICKS are 30 s or more, and one less may be fewer.
    for (age, state) in [
        (0, State::Young),
        (YOUNG_TICKS - 1, State::Young),
        (YOUNG_TICKS, State::Pin),
        (YOUNG_TICKS + 1, State::Pin),
        (500_000, State::Pin),
    ] {
        for segment in [ack(at(0)), data(at(0)), data(at(1)), data(at(9))] {
            let next = advance(live(State::Young, Word::FOREIGN), &segment, THEN.later(age));
            assert_eq!(next.state(), state, "{age} {segment:?}");
            // A young entry's proof is counted from its promotion.
            let tick = if state == State::Pin {
                THEN.later(age)
            } else {
                THEN
            };
            assert_eq!(next.age(tick), 0);
            assert_eq!((next.backend(), next.has(Word::FOREIGN)), (BACKEND, true));
        }
        // An end proves nothing.
        let ended = advance(live(State::Young, 0), &fin(at(40)), THEN.later(age));
        assert_eq!(ended.state(), State::Young);
    }
    assert_eq!(YOUNG_TICKS, 8);
}

#[test]
fn a_pin_follows_its_stream_by_one_epoch_a_packet() {
    let refreshed = live(State::Pin, 0).with_tick(NOW);
    for segment in [ack, data] {
        let next = |epochs| advance(live(State::Pin, 0), &segment(at(epochs)), NOW);
        assert_eq!(next(0), refreshed);
        assert_eq!(next(1), refreshed.with_epoch(EPOCH + 1));
        assert_eq!(next(-1), refreshed, "a retransmission moves nothing back");
        for far in [2, -2, 3, 100, -100, 2_048] {
            let jumped = refreshed
                .with_epoch(epoch_of(at(far)))
                .with(Word::UNCONFIRMED);
            assert_eq!(next(far), jumped, "{far}");
        }
    }
    // Within a tick and an epoch, nothing is written.
    assert_eq!(
        advance(live(State::Pin, 0), &data(at(0)), THEN),
        live(State::Pin, 0)
    );
}

#[test]
fn epochs_wrap() {
    let last = live(State::Pin, 0).with_epoch(0xfff);
    assert_eq!(advance(last, &data(5), THEN), last.with_epoch(0));
    let first = live(State::Pin, 0).with_epoch(0);
    assert_eq!(advance(first, &data(u32::MAX), THEN), first);
    assert!(advance(first, &fin(u32::MAX), THEN).is(State::Closing));
    assert!(advance(last, &rst(0), THEN).is(State::Closing));
}

#[test]
fn a_jump_closes_nothing_until_a_second_packet_agrees() {
    let jumped = advance(live(State::Pin, 0), &data(at(50)), NOW);
    for end in [fin(at(50)), rst(at(50)), rst(at(51)), fin(at(0))] {
        assert_eq!(
            advance(jumped, &end, NOW),
            jumped.with(Word::HINT),
            "{end:?}"
        );
    }
    // Agreement, at the same place or the next.
    for epochs in [49, 50, 51] {
        let agreed = advance(jumped, &ack(at(epochs)), NOW);
        assert!(!agreed.has(Word::UNCONFIRMED));
        assert!(advance(agreed, &fin(at(50)), NOW).is(State::Closing));
        assert!(advance(agreed, &fin(at(0)), NOW).is(State::Pin));
    }
    // Disagreement: the stream is where it was, after two packets of its own.
    let back = advance(jumped, &data(at(0)), NOW);
    assert!(back.has(Word::UNCONFIRMED) && back.epoch() == EPOCH);
    let settled = advance(back, &data(at(0)), NOW);
    assert_eq!(settled, live(State::Pin, 0).with_tick(NOW));
}

#[test]
fn ends_count_only_near() {
    for state in [State::Young, State::Pin] {
        for flags in [FIN, FIN | ACK, RST, RST | ACK, FIN | RST] {
            for epochs in [-1, 0, 1] {
                let word = live(state, Word::HINT | Word::CONTESTED | Word::FOREIGN);
                let next = advance(word, &segment(at(epochs), flags, false), NOW);
                let mut expected = Word::live(
                    State::Closing,
                    BACKEND,
                    EPOCH + u32::from(epochs == 1),
                    NOW,
                    Word::CONTESTED | Word::FOREIGN,
                );
                if flags & RST != 0 {
                    expected = expected.with(Word::BY_RESET);
                }
                assert_eq!(next, expected, "{state:?} {flags:#x} {epochs}");
            }
            for epochs in [-2, 2, 1_000] {
                let word = live(state, 0);
                let next = advance(word, &segment(at(epochs), flags, false), NOW);
                assert_eq!(next, word.with(Word::HINT), "{state:?} {flags:#x} {epochs}");
            }
        }
    }
}

#[test]
fn data_in_its_place_clears_the_hint() {
    for state in [State::Young, State::Pin] {
        let hinted = advance(live(state, 0), &rst(at(700)), NOW);
        assert!(hinted.has(Word::HINT));
        assert!(advance(hinted, &data(at(700)), NOW).has(Word::HINT));
        assert!(!advance(hinted, &data(at(0)), NOW).has(Word::HINT));
    }
}

#[test]
fn a_flow_closed_by_fin_is_refreshed_by_late_acknowledgements_and_revived_by_late_data() {
    let closing = live(State::Closing, Word::EXCEPTION);
    let late = THEN.later(LATE_TICKS);
    assert_eq!(
        advance(closing, &data(at(0)), late),
        live(State::Young, 0).with_tick(late)
    );
    // Once a minute, or among acknowledgements no data would ever be late.
    for again in [ack(at(0)), fin(at(0))] {
        let minute = THEN.later(REFRESH_TICKS);
        assert_eq!(advance(closing, &again, minute), closing.with_tick(minute));
        let before = THEN.later(REFRESH_TICKS - 1);
        assert_eq!(advance(closing, &again, before), closing);
    }
    assert_eq!(
        advance(closing, &ack(at(1)), late),
        closing.with_epoch(EPOCH + 1)
    );
    // A RST after it shortens its linger; what closed it stays known.
    assert_eq!(
        advance(closing, &rst(at(0)), NOW),
        closing.with_tick(NOW).with(Word::BY_RESET)
    );
}

#[test]
fn data_soon_after_a_fin_was_sent_before_it_and_revives_nothing() {
    let closing = live(State::Closing, Word::EXCEPTION);
    let soon = THEN.later(LATE_TICKS - 1);
    for segment in [data(at(0)), data(at(-1)), ack(at(0))] {
        assert_eq!(advance(closing, &segment, soon), closing, "{segment:?}");
    }
    // Acknowledgements in between do not put off the moment from which data is late.
    let acknowledged = advance(closing, &ack(at(0)), soon);
    let late = THEN.later(LATE_TICKS);
    assert!(advance(acknowledged, &data(at(0)), late).is(State::Young));
}

#[test]
fn what_was_sent_long_before_a_fin_moves_nothing_back() {
    let closing = live(State::Closing, 0);
    let soon = THEN.later(LATE_TICKS - 1);
    for epochs in [-2, -3, -2_047] {
        let once = advance(closing, &data(at(epochs)), soon);
        assert_eq!(advance(once, &data(at(epochs)), soon), closing, "{epochs}");
    }
    // What is ahead of it has not been sent before it.
    let once = advance(closing, &data(at(2)), soon);
    assert!(advance(once, &data(at(2)), soon).is(State::Young));
}

#[test]
fn a_flow_closed_by_rst_is_revived_by_anything_in_window() {
    let closing = live(
        State::Closing,
        Word::BY_RESET | Word::EXCEPTION | Word::CONTESTED,
    );
    for segment in [ack(at(0)), data(at(-1)), data(at(0))] {
        let revived = live(State::Young, Word::CONTESTED).with_tick(NOW);
        assert_eq!(advance(closing, &segment, NOW), revived, "{segment:?}");
    }
    assert_eq!(advance(closing, &fin(at(0)), NOW), closing.with_tick(NOW));
}

#[test]
fn what_is_out_of_window_does_not_revive_a_closing_flow_but_lets_it_linger() {
    for flags in [0, Word::BY_RESET, Word::EXCEPTION] {
        let closing = live(State::Closing, flags);
        for end in [fin(at(5)), rst(at(5))] {
            assert_eq!(advance(closing, &end, NOW), closing);
        }
        let jumped = advance(closing, &data(at(5)), NOW);
        assert!(jumped.is(State::Closing) && jumped.age(NOW) == 0);
        // Two that agree do.
        assert!(advance(jumped, &data(at(5)), NOW).is(State::Young));
    }
}

/// 100 Gbit/s in segments of 64 KiB, of which only some are seen: the window is never lost for good.
#[test]
fn a_fast_sender_is_kept_up_with() {
    for every in [1, 10] {
        let mut word = live(State::Pin, 0);
        let mut seq = at(0);
        let mut doubts = 0;
        for packet in 0..400_000u32 {
            seq = seq.wrapping_add(65_536);
            if packet % every == 0 {
                word = advance(word, &data(seq), NOW);
                doubts += u32::from(word.has(Word::UNCONFIRMED));
            }
        }
        assert_eq!(doubts, 0, "one in {every}");
        assert!(
            advance(word, &fin(seq), NOW).is(State::Closing),
            "one in {every}"
        );
    }
    // A sender that is seen once in several epochs jumps each time, and is found again as soon as two packets agree.
    let mut word = live(State::Pin, 0);
    let mut seq = at(0);
    for _ in 0..10_000 {
        seq = seq.wrapping_add(7 * MIB);
        word = advance(word, &data(seq), NOW);
        assert!(word.is(State::Pin) && word.epoch() == epoch_of(seq));
    }
    let word = advance(word, &ack(seq), NOW);
    assert!(advance(word, &fin(seq), NOW).is(State::Closing));
}

#[test]
fn retransmissions_far_back_lose_nothing_for_good() {
    let mut random = Random::new(11);
    let mut word = live(State::Pin, 0);
    let mut seq = at(0);
    for _ in 0..100_000 {
        seq = seq.wrapping_add(random.below(MIB));
        word = advance(word, &data(seq), NOW);
        if random.below(4) == 0 {
            // Within a window of 64 MiB.
            word = advance(word, &data(seq.wrapping_sub(random.below(64 * MIB))), NOW);
        }
        assert!(word.is(State::Pin) && word.backend() == BACKEND);
    }
    word = advance(word, &ack(seq), NOW);
    word = advance(word, &ack(seq), NOW);
    assert!(advance(word, &fin(seq), NOW).is(State::Closing));
}

#[test]
fn a_segment_belongs_to_the_challenger_it_follows_and_else_to_the_live_entry() {
    let pin = live(State::Pin, Word::CONTESTED).with_epoch(EPOCH + 9);
    let challenger = Word::challenger(BACKEND, at(0), THEN);
    let belongs =
        |one: Word, other: Word, segment: Segment| match owner(one, other, &segment, NOW, false) {
            Owner::First => one,
            Owner::Second => other,
        };
    for (segment, expected) in [
        (ack(at(0)), challenger),
        (ack(at(0) + PROMOTION_WINDOW), challenger),
        (ack(at(0) + PROMOTION_WINDOW + 1), pin),
        (ack(at(0) - 1), pin),
        (fin(at(0) + 1), pin),
        (rst(at(9) + 1), pin),
        (rst(at(10)), pin),
        (rst(at(11)), challenger),
        (rst(at(7)), challenger),
        (rst(at(0) + 1), challenger),
    ] {
        assert_eq!(belongs(pin, challenger, segment), expected, "{segment:?}");
        assert_eq!(belongs(challenger, pin, segment), expected, "{segment:?}");
    }
}

#[test]
fn a_challenger_ahead_of_an_open_stream_never_has_it() {
    let challenger = Word::challenger(BACKEND, at(0), THEN);
    let ours = |live: Word, challenger: Word| owner(live, challenger, &data(at(0)), NOW, false);
    for state in [State::Young, State::Pin] {
        for epoch in [EPOCH - 1, EPOCH, EPOCH + 1] {
            let open = live(state, Word::CONTESTED).with_epoch(epoch);
            assert_eq!(ours(open, challenger), Owner::First);
            assert_eq!(ours(challenger, open), Owner::Second);
        }
    }
    // A stream that has ended gives way to the next on its port.
    let closing = live(State::Closing, Word::CONTESTED);
    assert_eq!(ours(closing, challenger), Owner::Second);
}

/// Its client has vanished, and its port is used again at nearly the same sequence number.
#[test]
fn a_challenger_has_what_proves_it_though_an_open_stream_is_there() {
    let challenger = Word::challenger(BACKEND, at(0), THEN);
    let pin = live(State::Pin, Word::CONTESTED);
    let next = data(at(0) + 1);
    assert_eq!(owner(pin, challenger, &next, NOW, true), Owner::Second);
    assert_eq!(owner(challenger, pin, &next, NOW, true), Owner::First);
    assert_eq!(owner(pin, challenger, &next, NOW, false), Owner::First);
    // And then it has the stream, though the older was seen later.
    let newer = live(State::Pin, Word::CONTESTED | Word::SECOND);
    let older = pin.with_tick(THEN.later(1));
    assert_eq!(owner(older, newer, &next, NOW, false), Owner::Second);
    assert_eq!(owner(newer, older, &next, NOW, false), Owner::First);
}

#[test]
fn a_tie_is_of_the_entry_that_was_seen_last_and_else_of_the_older() {
    let older = live(State::Pin, Word::CONTESTED);
    let newer = live(State::Young, Word::CONTESTED | Word::SECOND);
    let later = THEN.later(1);
    for (one, other, expected) in [
        (older, newer, older),
        (older.with_tick(later), newer, older.with_tick(later)),
        (older, newer.with_tick(later), newer.with_tick(later)),
    ] {
        let first = owner(one, other, &data(at(0)), NOW, false) == Owner::First;
        assert_eq!(if first { one } else { other }, expected);
        let second = owner(other, one, &data(at(0)), NOW, false) == Owner::Second;
        assert_eq!(if second { one } else { other }, expected);
    }
}

#[test]
fn a_tie_of_two_young_ones_is_of_the_newer() {
    let older = live(State::Young, Word::CONTESTED);
    let newer = live(State::Young, Word::CONTESTED | Word::SECOND);
    assert_eq!(owner(older, newer, &data(at(0)), NOW, false), Owner::Second);
    assert_eq!(owner(newer, older, &data(at(0)), NOW, false), Owner::First);
}

/// Its client has the port again within a second, at nearly the same sequence number; and what the former backend still sends refreshes the former entry.
#[test]
fn a_tie_is_of_the_next_connection_and_not_of_one_that_is_closing() {
    let pin = live(State::Pin, Word::CONTESTED | Word::SECOND);
    let closing = live(State::Closing, Word::CONTESTED | Word::BY_RESET);
    let ours = |pin: Word, closing: Word| {
        assert_eq!(owner(pin, closing, &data(at(0)), NOW, false), Owner::First);
        assert_eq!(owner(closing, pin, &data(at(0)), NOW, false), Owner::Second);
    };
    ours(pin, closing);
    ours(pin, closing.with_tick(THEN.later(1)));
    // What goes one way only has no pin for half a minute.
    ours(live(State::Young, Word::CONTESTED | Word::SECOND), closing);
    let older = live(State::Young, Word::CONTESTED);
    let newer = live(State::Closing, Word::CONTESTED | Word::SECOND);
    assert_eq!(owner(older, newer, &data(at(0)), NOW, false), Owner::First);
}

#[test]
fn of_two_live_entries_the_nearer_has_a_segment() {
    let first = live(State::Pin, Word::CONTESTED);
    let second = live(State::Young, Word::CONTESTED | Word::SECOND).with_epoch(EPOCH + 10);
    let belongs = |one: Word, other: Word, seq| match owner(one, other, &data(seq), NOW, false) {
        Owner::First => one,
        Owner::Second => other,
    };
    for (epochs, expected) in [
        (0, first),
        (4, first),
        (5, first),
        (6, second),
        (10, second),
        (18, second),
        (-1_000, first),
    ] {
        assert_eq!(belongs(first, second, at(epochs)), expected, "{epochs}");
        assert_eq!(belongs(second, first, at(epochs)), expected, "{epochs}");
    }
    // Nothing that is not near is of one that is young, unless the other is no better.
    for epochs in [19, 1_000, 2_000] {
        for proven in [first, first.with_state(State::Closing)] {
            assert_eq!(belongs(proven, second, at(epochs)), proven, "{epochs}");
            assert_eq!(belongs(second, proven, at(epochs)), proven, "{epochs}");
        }
        for state in [State::Young, State::Pin] {
            let (one, other) = (first.with_state(state), second.with_state(state));
            assert_eq!(belongs(one, other, at(epochs)), other, "{epochs}");
            assert_eq!(belongs(other, one, at(epochs)), other, "{epochs}");
        }
    }
}

/// A stream comes to where that of the former connection was, whose client has vanished; and what of it is sent again is a little before.
#[test]
fn what_is_near_both_is_of_the_next_connection_and_not_of_one_whose_place_it_comes_to() {
    let former = live(State::Pin, Word::CONTESTED);
    let proven = live(State::Pin, Word::CONTESTED | Word::SECOND);
    let young = live(State::Young, Word::CONTESTED | Word::SECOND).with_tick(THEN.later(1));
    for at_epoch in [EPOCH - 1, EPOCH, EPOCH + 1] {
        for next in [proven.with_epoch(at_epoch), young.with_epoch(at_epoch)] {
            for epochs in [-1, 0, 1] {
                let segment = data(at(epochs));
                if !next.is_near(epoch_of(segment.seq)) {
                    continue;
                }
                let what = format!("{next:?}, {epochs}");
                let owned = owner(former, next, &segment, NOW, false);
                assert_eq!(owned, Owner::Second, "{what}");
                let owned = owner(next, former, &segment, NOW, false);
                assert_eq!(owned, Owner::First, "{what}");
            }
        }
    }
    // Who forges a handshake ahead of a stream does not have it when it comes there.
    let forged = young.with_epoch(EPOCH + 1);
    let seen_since = former.with_tick(NOW);
    let ahead = data(at(1));
    assert_eq!(owner(seen_since, forged, &ahead, NOW, false), Owner::First);
    assert_eq!(owner(forged, seen_since, &ahead, NOW, false), Owner::Second);
}

/// What most packets take is no other rule than that for all of them.
#[test]
fn a_refresh_is_what_an_advance_would_be() {
    let mut random = Random::new(7);
    let mut refreshed = 0;
    for _ in 0..1_000_000 {
        // Any word, but recent ones and segments near them as often as others, or hardly anything would be a refresh.
        let mut word = Word(random.long());
        if random.below(2) == 0 {
            word = word.with_tick(NOW.later(0u32.wrapping_sub(random.below(20))));
        }
        let mut seq = random.word();
        if random.below(2) == 0 {
            seq = (word.epoch() << 20)
                .wrapping_sub(2 * MIB)
                .wrapping_add(seq % (5 * MIB));
        }
        let flags = if random.below(2) == 0 {
            ACK
        } else {
            random.word() as u8
        };
        let segment = Segment {
            seq,
            flags,
            payload: random.below(2) == 0,
        };
        if let Some(next) = refresh(word, &segment, NOW) {
            refreshed += 1;
            assert!(segment.continues() && next.state() == word.state());
            assert_eq!(next, advance(word, &segment, NOW), "{word:?} {segment:?}");
        }
    }
    assert!(refreshed > 1_000, "{refreshed}");
}

/// A RST of a backend on this host closes what may have been spoofed, and nothing else.
#[test]
fn a_refusal_closes_a_young_entry_alone() {
    let flags = Word::CONTESTED | Word::HINT;
    for word in [
        Word::embryo(BACKEND, at(0), THEN),
        Word::challenger(BACKEND, at(0), THEN),
        live(State::Pin, flags),
    ] {
        assert_eq!(heard(word, true, NOW), word);
    }
    let closed = heard(live(State::Young, flags), true, NOW);
    let flags = Word::CONTESTED | Word::BY_RESET;
    let expected = Word::live(State::Closing, BACKEND, EPOCH, NOW, flags);
    assert_eq!(closed, expected);
    // Its client goes on, and was not meant.
    let revived = advance(closed, &data(at(0)), NOW);
    assert!(revived.is(State::Young), "{revived:?}");
}

#[test]
fn what_a_dead_backend_does_not_get_ends_its_flow_if_it_is_where_the_stream_is() {
    let refused = |word, segment: &Segment| refused(advance(word, segment, NOW), segment, NOW);
    let ended = live(State::Closing, Word::BY_RESET).with_tick(NOW);
    let closing = live(State::Closing, Word::EXCEPTION);
    for segment in [ack(at(0)), data(at(0)), fin(at(0)), rst(at(0))] {
        let (young, pin) = (live(State::Young, 0), live(State::Pin, Word::HINT));
        for word in [young, pin, closing, ended] {
            assert_eq!(refused(word, &segment), ended, "{word:?} {segment:?}");
        }
        let elsewhere = Segment {
            seq: at(40),
            ..segment
        };
        assert_eq!(refused(pin, &elsewhere), advance(pin, &elsewhere, NOW));
    }
    let jumped = refused(live(State::Pin, 0), &data(at(40)));
    let agreed = refused(jumped, &data(at(40)));
    assert_eq!(agreed, ended.with_epoch(epoch_of(at(40))));

    let embryo = Word::embryo(BACKEND, at(0), THEN);
    assert_eq!(refused(embryo, &ack(at(0) + 1)), ended);
    assert_eq!(refused(embryo, &rst(at(0) + 1)), embryo);
}
