//! What one packet of the client does to one entry. Pure: word in, word out.
//!
//! Only the client's side is seen here (`l2` and `ipip` return directly), and a spoofer knows its own sequence numbers, so
//! nothing is proven by an acknowledgement alone: time is the proof ([`State::Young`] becomes [`State::Pin`]), and the client's
//! position in its stream (the epoch) tells its packets from guesses.

use super::word::{LATE_TICKS, REFRESH_TICKS, State, Word, YOUNG_TICKS, epoch_of};
use crate::{
    clock::Tick,
    tcp::{RST, Segment},
};

/// How far beyond its SYN a client's first acknowledgement may be, in bytes: 2^17.
pub const PROMOTION_WINDOW: u32 = 1 << 17;

/// How far from where its stream is a segment is taken for a young entry's, if the key has another one that may have sent it: in epochs, and so about as much
/// as is on its way at once.
const YOUNG_REACH: u32 = 8;
/// More than the [`remoteness`] of any distance.
const FARTHEST: u32 = 1 << 22;

/// Whether a segment follows the SYN of a nascent entry: mid-stream, and 0 to 2^17 bytes after it.
#[inline(always)]
pub const fn follows(word: Word, segment: &Segment) -> bool {
    segment.continues() && segment.seq.wrapping_sub(word.isn()) <= PROMOTION_WINDOW
}

/// [`advance`] for most packets: a young or pinned entry in good order, and a segment in the midst of its stream. None if it is anything
/// else, or if more than the tick and the epoch is to be written.
#[inline(always)]
pub const fn refresh(word: Word, segment: &Segment, now: Tick) -> Option<Word> {
    let epoch = epoch_of(segment.seq);
    let is_plain = word.is_open() && !word.has(Word::CONTESTED | Word::HINT | Word::UNCONFIRMED);
    if !is_plain || !segment.continues() || !word.is_near(epoch) {
        return None;
    }
    if word.is(State::Pin) {
        Some(forward_epoch(word, epoch).with_tick(now))
    } else if word.age(now) < YOUNG_TICKS {
        Some(forward_epoch(word, epoch))
    } else {
        None
    }
}

/// The entry after a segment that is not a SYN; equal to `word` when nothing is to be written.
#[inline(always)]
pub const fn advance(word: Word, segment: &Segment, now: Tick) -> Word {
    if word.is_nascent() {
        promote(word, segment, now)
    } else {
        live_on(word, segment, now)
    }
}

/// An entry that is as [`advance`] leaves it, after a segment that its backend does not get, because it is dead: as if the client had reset the flow. It is told
/// that it is over, or has ended it, and in either case need not come again; and in the modes that translate nobody else could end the entry, which holds a
/// port. Each segment is answered for as long as it lingers, and one that comes when the backend is back revives it.
#[inline(always)]
pub const fn refused(word: Word, segment: &Segment, now: Tick) -> Word {
    let is_credible = word.is_near(epoch_of(segment.seq)) && !word.has(Word::UNCONFIRMED);
    if word.is_live() && is_credible {
        closed_by_reset(word.without(Word::HINT | Word::EXCEPTION), now)
    } else {
        word
    }
}

#[inline(always)]
const fn promote(word: Word, segment: &Segment, now: Tick) -> Word {
    if follows(word, segment) {
        promoted(word, State::Young, segment, now)
    } else {
        word
    }
}

/// A nascent entry as a live one, which it becomes with this segment.
#[inline(always)]
pub const fn promoted(word: Word, state: State, segment: &Segment, now: Tick) -> Word {
    // A challenger's key has another entry still, so whoever finds this one first must look for that one too.
    let flags = if word.is(State::Challenger) {
        Word::CONTESTED | Word::SECOND
    } else {
        0
    };
    let epoch = epoch_of(segment.seq);
    Word::live(state, word.backend(), epoch, now, flags)
}

/// A live entry after a segment of the other side's that ends nothing; `goes_on` if it shows that the flow does, though it seemed to have ended: it is where
/// the other side's stream is thought to be, and was not under way already when the client reset the flow, as data may be.
#[inline(always)]
pub const fn seen_from_afar(word: Word, goes_on: bool, now: Tick) -> Word {
    if !word.is(State::Closing) {
        seen(word, now)
    } else if goes_on && word.has(Word::BY_RESET) {
        revived(word, now)
    } else {
        word.with_tick(now)
    }
}

/// A live entry after a segment of a backend on this host. One that is closing is refreshed if that is due, since the backend may speak for longer than its client
/// does.
///
/// A young one that it `resets` is closed: the backend has no such connection, as when a spoofer, who never heard its answer, has sent SYN and ACK; and that entry
/// would never go. A pin stays, since nobody knows here where the backend's stream is, and a forged segment may have a firewall send a RST.
#[inline(always)]
pub const fn heard(word: Word, resets: bool, now: Tick) -> Word {
    if resets && word.is(State::Young) {
        return closed_by_reset(word.without(Word::HINT | Word::EXCEPTION), now);
    }
    let due = if word.has(Word::BY_RESET) {
        LATE_TICKS
    } else {
        REFRESH_TICKS
    };
    if word.is(State::Closing) && word.age(now) >= due {
        word.with_tick(now)
    } else {
        word
    }
}

/// A closing entry whose end was forged, or is not yet. It has to prove itself again, or four forged packets would make a pin.
#[inline(always)]
const fn revived(word: Word, now: Tick) -> Word {
    word.with_state(State::Young)
        .without(Word::BY_RESET | Word::EXCEPTION)
        .with_tick(now)
}

#[inline(always)]
const fn live_on(word: Word, segment: &Segment, now: Tick) -> Word {
    let epoch = epoch_of(segment.seq);
    if segment.ends() {
        return if word.is_near(epoch) && !word.has(Word::UNCONFIRMED) {
            close(word, segment, epoch, now)
        } else if word.is(State::Closing) {
            word
        } else {
            word.with(Word::HINT)
        };
    }
    let is_early =
        word.is(State::Closing) && !word.has(Word::BY_RESET) && word.age(now) < LATE_TICKS;
    if !word.is_near(epoch) {
        if is_early && word.is_ahead_of(epoch) {
            // Sent long before the FIN, of a stream that is fast and lost much.
            return word;
        }
        // A jump: a long retransmission, a stream that went another way for a while, or a forgery. Follow it, but let it close
        // nothing until a second packet agrees.
        let jumped = word.with_epoch(epoch).with(Word::UNCONFIRMED);
        return if word.is(State::Closing) {
            // Its time to linger begins anew, or three forgeries could end it before the client's second packet.
            jumped.with_tick(now)
        } else {
            seen(jumped, now)
        };
    }
    let agrees = word.has(Word::UNCONFIRMED);
    let word = forward_epoch(word, epoch).without(Word::UNCONFIRMED);
    if !word.is(State::Closing) {
        return seen(word.without(Word::HINT), now);
    }
    // Nobody sends anything after its own RST, nor new data after its own FIN. But what was lost or overtaken before the FIN comes after it too,
    // and a flow that this revived would never end.
    if word.has(Word::BY_RESET) || (segment.payload && (agrees || !is_early)) {
        revived(word, now)
    } else {
        refreshed(word, now)
    }
}

/// A closing entry that is not revived. One closed by a FIN has a new tick but once a minute, or among acknowledgements no data would ever be late.
#[inline(always)]
const fn refreshed(word: Word, now: Tick) -> Word {
    if word.has(Word::BY_RESET) || word.age(now) >= REFRESH_TICKS {
        word.with_tick(now)
    } else {
        word
    }
}

/// The epoch after a packet near it: it moves ahead by one, and not back.
#[inline(always)]
const fn forward_epoch(word: Word, epoch: u32) -> Word {
    if epoch == (word.epoch() + 1) & 0xfff {
        word.with_epoch(epoch)
    } else {
        word
    }
}

/// A young or pinned entry that was seen.
#[inline(always)]
const fn seen(word: Word, now: Tick) -> Word {
    if word.is(State::Pin) {
        word.with_tick(now)
    } else if word.age(now) >= YOUNG_TICKS {
        word.with_state(State::Pin).with_tick(now)
    } else {
        // The tick of a young entry is the moment of its promotion, from which its proof is counted.
        word
    }
}

#[inline(always)]
const fn close(word: Word, segment: &Segment, epoch: u32, now: Tick) -> Word {
    let was_closing = word.is(State::Closing);
    let word = forward_epoch(word, epoch);
    // In a closing entry the hint's bit says by what it closed.
    let word = if was_closing {
        word
    } else {
        word.without(Word::HINT | Word::EXCEPTION)
    };
    if segment.has(RST) {
        closed_by_reset(word, now)
    } else if was_closing {
        refreshed(word, now)
    } else {
        word.with_state(State::Closing).with_tick(now)
    }
}

#[inline(always)]
const fn closed_by_reset(word: Word, now: Tick) -> Word {
    word.with(Word::BY_RESET)
        .with_state(State::Closing)
        .with_tick(now)
}

/// Which of the two entries of a contested key a segment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The first that was given.
    First,
    /// The second that was given.
    Second,
}

/// Decides between the two entries of one key.
///
/// A segment that follows a challenger's SYN is the challenger's, unless it is where the stream of an open entry is, and does not prove that it is of
/// the challenger (`proves`): or a forged SYN a little ahead of a stream would have it, as soon as it comes there. It does if it acknowledges what the
/// challenger's backend has answered; where that is not seen, if it is the very next after the SYN.
///
/// Between two live entries it belongs to the one whose epoch is nearer, so that a retransmission far back does not go astray; but not to a young one that is
/// not near at all: or who forges where a stream is, and then a handshake elsewhere, would have half of what the client sends next. What is within an epoch
/// of both is a tie: or a stream that comes to where the other's was, which is an epoch before until it has come there, would go on in that. In a tie to the newer
/// one, or to a pin, rather than to one that is closing: of that connection both sides may still have something to say when the next is open already.
/// Then to the newer one if that has proven itself, since its client has let go of the older. Else to the one that was seen last, of two seen in the same
/// tick to the older, if that is a pin: so neither an entry whose client has vanished has the stream of the next for long, nor a forged one that of the client that is there.
#[inline(always)]
pub const fn owner(first: Word, second: Word, segment: &Segment, now: Tick, proves: bool) -> Owner {
    if first.is_nascent() {
        return if challenges(first, second, segment, proves) {
            Owner::First
        } else {
            Owner::Second
        };
    }
    if second.is_nascent() {
        return if challenges(second, first, segment, proves) {
            Owner::Second
        } else {
            Owner::First
        };
    }
    let epoch = epoch_of(segment.seq);
    let (to_first, to_second) = (remoteness(first, epoch), remoteness(second, epoch));
    let (first_age, second_age) = (first.age(now), second.age(now));
    let is_first = if to_first != to_second {
        to_first < to_second
    } else if has_replaced(first, second) {
        true
    } else if has_replaced(second, first) {
        false
    } else if has_proven(first) != has_proven(second) {
        has_proven(first)
    } else if first_age != second_age {
        first_age < second_age
    } else {
        // Of two that are young neither has proven anything, and a client has let go of the older.
        let is_newer = first.is(State::Young) && second.is(State::Young);
        first.has(Word::SECOND) == is_newer
    };
    if is_first {
        Owner::First
    } else {
        Owner::Second
    }
}

/// How far a live entry is from an epoch, as one of two that may be meant, as a number that grows with the distance: 0 if it is near, and more than any other's
/// if it has proven nothing and is not near at all.
#[inline(always)]
const fn remoteness(word: Word, epoch: u32) -> u32 {
    let distance = word.distance(epoch);
    // Of 0 and 1 nothing is left, and of all others each is more than the one before. Without a branch, of which the kernel's verifier would follow both ways.
    let beyond = distance * distance / 2;
    if word.is(State::Young) && distance > YOUNG_REACH {
        beyond + FARTHEST
    } else {
        beyond
    }
}

/// Whether an entry is of a connection that came after the other's, which is over.
#[inline(always)]
const fn has_replaced(word: Word, other: Word) -> bool {
    (word.is(State::Pin) || (word.is_open() && word.has(Word::SECOND))) && other.is(State::Closing)
}

/// Whether an entry is the newer of two, and a pin.
#[inline(always)]
const fn has_proven(word: Word) -> bool {
    word.is(State::Pin) && word.has(Word::SECOND)
}

/// Whether a segment is a challenger's, and not the entry's that it challenges.
///
/// A RST that is not where the other's stream is, too. A backend that still has the socket of a connection which its client has left, and gets a SYN
/// from that one's address and port, acknowledges where that one was; and the client resets what it does not know (RFC 9293, 3.10.7.3 and .4), there.
/// Elsewhere than to that backend it would free nobody, and the challenger would never be answered. It changes nothing of the challenger. But where the stream
/// is, nobody knows of an entry that has followed a jump which no second packet has confirmed: that may have been forged, as the SYN may.
#[inline(always)]
const fn challenges(challenger: Word, live: Word, segment: &Segment, proves: bool) -> bool {
    let is_near = live.is_near(epoch_of(segment.seq));
    if segment.has(RST) {
        !(is_near || live.has(Word::UNCONFIRMED))
    } else {
        follows(challenger, segment) && (proves || !(live.is_open() && is_near))
    }
}
