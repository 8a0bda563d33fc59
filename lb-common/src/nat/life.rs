//! What a packet of either side does to the entry and to the translation of a flow of mode `nat` or `dnat`. Pure.
//!
//! Both sides are seen here, so that more is known than [`crate::flow::life`] knows of a client alone: the backend's answer and the client's
//! acknowledgement of it prove a handshake, so that an embryo becomes a pin at once; and a flow has ended when both sides have said so, or one has
//! reset it. It lingers for 60 s then, after which its port is another's.

use super::TranslationWord;
use crate::{
    clock::Tick,
    flow::{
        copy, life,
        word::{LATE_TICKS, State, Word, epoch_of, start_of},
    },
    tcp::{ACK, RST, SYN, Segment},
};

/// A flow: its entry's value and its translation's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Of the entry.
    pub value: Word,
    /// Of the translation.
    pub translation: TranslationWord,
}

/// Most bytes of data that a SYN has with it.
const MOST_DATA_OF_SYN: u32 = 0xffff;
/// Most bytes that a backend sends before it has heard of its client again.
const MOST_EARLY_DATA: u32 = 0xffff;
/// Both sides have sent a FIN.
const BOTH_FINS: u64 = TranslationWord::CLIENT_FIN | TranslationWord::BACKEND_FIN;

impl Flow {
    /// After a segment of the client's that is not a SYN and acknowledges `ack`; the same when nothing is to be written.
    #[inline(always)]
    #[must_use]
    pub const fn after_client(self, segment: &Segment, ack: u32, now: Tick) -> Self {
        if self.value.is_nascent() {
            return self.prove(segment, ack, now);
        }
        let known = self.known_at(ack);
        // A jump that no second packet has agreed with ends nothing, and undoes nothing either.
        let is_credible =
            known.value.is_near(epoch_of(segment.seq)) && !known.value.has(Word::UNCONFIRMED);
        if !segment.ends() {
            let known = if is_credible && segment.payload {
                known.sent_to(TranslationWord::CLIENT_FIN, segment.seq)
            } else {
                known
            };
            return if known.has_closed() {
                known.lingering(now)
            } else {
                Self {
                    value: life::advance(known.value, segment, now),
                    ..known
                }
            };
        }
        if is_credible {
            known.ended(segment, TranslationWord::CLIENT_FIN, now)
        } else if known.value.is(State::Closing) {
            known
        } else {
            Self {
                value: known.value.with(Word::HINT),
                ..known
            }
        }
    }

    /// After a segment of the backend's that acknowledges `ack`; the same when nothing is to be written.
    #[inline(always)]
    #[must_use]
    pub const fn after_backend(self, segment: &Segment, ack: u32, now: Tick) -> Self {
        if self.value.is_nascent() {
            return self.answer(segment, ack, now);
        }
        // The answer to the SYN again: the client's acknowledgement was lost on its way to the backend.
        if segment.has(SYN) {
            return self;
        }
        let known = self.known_at(segment.seq);
        let epoch = epoch_of(segment.seq);
        let is_near = known.translation.is_near(epoch);
        if segment.ends() {
            return if is_near && !known.translation.has(TranslationWord::UNCONFIRMED) {
                // Data of an open flow's client does not come by here, but where that is in its stream is known.
                let known = if known.value.has(Word::UNCONFIRMED) {
                    known
                } else {
                    let client_at = start_of(known.value.epoch());
                    known.sent_to(TranslationWord::CLIENT_FIN, client_at)
                };
                known.ended(segment, TranslationWord::BACKEND_FIN, now)
            } else {
                known
            };
        }
        let translation = if !is_near {
            // As with the client's: followed, but it closes nothing until a second segment agrees.
            let jumped = known.translation.with_epoch(epoch);
            jumped.with(TranslationWord::UNCONFIRMED)
        } else {
            let next = (known.translation.epoch() + 1) & 0xfff;
            let forward = if epoch == next {
                next
            } else {
                known.translation.epoch()
            };
            known
                .translation
                .with_epoch(forward)
                .without(TranslationWord::UNCONFIRMED)
        };
        let moved = Self {
            translation: if is_near && segment.payload {
                translation.sent_to(TranslationWord::BACKEND_FIN, segment.seq)
            } else {
                translation
            },
            ..known
        };
        if moved.has_closed() {
            moved.lingering(now)
        } else {
            // Data beyond a FIN undoes that; but what comes soon after a client's RST was under way, and data also later: it comes again until it is answered.
            let is_late = known.value.age(now) >= LATE_TICKS && !segment.payload;
            let goes_on = is_near && (is_late || known.has_closed());
            Self {
                value: life::seen_from_afar(moved.value, goes_on, now),
                ..moved
            }
        }
    }

    /// An embryo or challenger after a segment of the client's: a pin, if that acknowledges the backend's answer.
    #[inline(always)]
    const fn prove(self, segment: &Segment, ack: u32, now: Tick) -> Self {
        let translation = self.translation;
        let proves = life::follows(self.value, segment)
            && translation.has(TranslationWord::ANSWERED)
            && !translation.has(TranslationWord::PROVEN)
            && ack == translation.isn().wrapping_add(1);
        if !proves {
            return self;
        }
        Self {
            value: life::promoted(self.value, State::Pin, segment, now),
            translation: translation.proven(ack),
        }
    }

    /// An embryo or challenger after a segment of the backend's: answered, if that is the answer to its SYN; and a pin, if it is data after that. A backend
    /// which takes the data of a SYN knows the client by its cookie (RFC 7413), and may send before it hears of it again, so that what the client acknowledges
    /// need not be the answer alone. Who has no cookie is sent no data.
    ///
    /// How much of the SYN's data the answer acknowledges proves nothing: it may be the answer to another SYN, a little ahead, which this one has replaced.
    #[inline(always)]
    const fn answer(self, segment: &Segment, ack: u32, now: Tick) -> Self {
        let translation = self.translation;
        let taken = ack.wrapping_sub(self.value.isn().wrapping_add(1));
        if taken > MOST_DATA_OF_SYN {
            return self;
        }
        if segment.flags & (SYN | ACK | RST) == SYN | ACK {
            return Self {
                translation: translation.answered(segment.seq),
                ..self
            };
        }
        let ahead = segment.seq.wrapping_sub(translation.isn().wrapping_add(1));
        let is_early_data = translation.has(TranslationWord::ANSWERED)
            && !translation.has(TranslationWord::PROVEN)
            && segment.continues()
            && segment.payload
            && ahead <= MOST_EARLY_DATA;
        if !is_early_data {
            return self;
        }
        let syn = Segment {
            seq: self.value.isn(),
            flags: SYN,
            payload: true,
        };
        Self {
            value: life::promoted(self.value, State::Pin, &syn, now),
            translation: translation.proven(segment.seq),
        }
    }

    /// With a translation that is proven, as that of a live entry is; if it is not yet (it was adopted, or its handshake's proof was lost in a
    /// race), the backend's stream is at `seq`.
    #[inline(always)]
    const fn known_at(self, seq: u32) -> Self {
        if self.translation.has(TranslationWord::PROVEN) {
            return self;
        }
        Self {
            translation: self.translation.proven(seq),
            ..self
        }
    }

    /// Once the side whose flag this is has sent data at a sequence number: see [`TranslationWord::sent_to`].
    #[inline(always)]
    const fn sent_to(self, fin: u64, seq: u32) -> Self {
        Self {
            translation: self.translation.sent_to(fin, seq),
            ..self
        }
    }

    /// Whether both sides have ended it: nobody has more to say, though all may have to say it again.
    #[inline(always)]
    const fn has_closed(self) -> bool {
        self.value.is(State::Closing) && self.translation.0 & BOTH_FINS == BOTH_FINS
    }

    /// Closed, and a segment came again.
    #[inline(always)]
    const fn lingering(self, now: Tick) -> Self {
        Self {
            value: self.value.with_tick(now),
            ..self
        }
    }

    /// After a FIN of the side whose flag this is, or a RST.
    #[inline(always)]
    const fn ended(self, segment: &Segment, fin: u64, now: Tick) -> Self {
        let translation = if segment.has(RST) {
            self.translation
        } else {
            self.translation.with_fin(fin, segment.seq)
        };
        let is_over = segment.has(RST) || translation.0 & BOTH_FINS == BOTH_FINS;
        let value = if is_over && !self.value.is(State::Closing) {
            over(self.value, now)
        } else if self.value.is(State::Young) {
            // Its tick is the moment of its promotion.
            self.value
        } else {
            self.value.with_tick(now)
        };
        Self { value, translation }
    }

    /// The same flow with what only another table, which was in use since both were alike, has seen of it: see [`copy::joined`]. Of two that are not of the
    /// same port, or of two SYNs, it is ours.
    #[inline(always)]
    #[must_use]
    pub const fn joined(self, theirs: Self, now: Tick) -> Self {
        let (value, other) = (self.value, theirs.value);
        let is_another_syn = value.is_nascent() && other.is_nascent() && value.isn() != other.isn();
        let (pair, port) = (theirs.translation.pair(), theirs.translation.port());
        if is_another_syn || !self.translation.is_at(pair, port) {
            return self;
        }
        let value = copy::joined(value, other, now);
        let translation = self.translation.joined(theirs.translation);
        let is_over = translation.has(TranslationWord::PROVEN)
            && translation.0 & BOTH_FINS == BOTH_FINS
            && value.is_open();
        Self {
            value: if is_over { over(value, now) } else { value },
            translation,
        }
    }
}

/// An entry whose flow both sides have ended, or one has reset. It lingers for 60 s, whatever it is an exception to: its state says how to translate it,
/// and nobody else can know that.
#[inline(always)]
const fn over(value: Word, now: Tick) -> Word {
    value
        .without(Word::EXCEPTION)
        .with(Word::BY_RESET)
        .with_state(State::Closing)
        .with_tick(now)
}

#[cfg(test)]
mod tests;
