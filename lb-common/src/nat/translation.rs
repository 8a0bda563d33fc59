//! What stands beside the entry of a flow of mode `nat` or `dnat`: two words.

use core::mem::{offset_of, size_of};

use crate::flow::word::{BackendRef, epoch_of};

/// A translation: valid for the entry beside it if its stamp is that of the entry's key and backend, whatever was here before.
///
/// Who writes one compares and exchanges the stamp for [`Translation::BUSY`], stores the word, then the stamp; who is not the first to do so
/// drops its packet, which comes again. The word of one that is valid changes by compare-and-exchange. The daemon exchanges the stamp for 0, and no more, of
/// one that a former flow has left beside an entry which has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Translation {
    /// A [`TranslationWord`].
    pub word: u64,
    /// [`stamp`] of the entry's key and backend; 0 is none.
    pub stamp: u64,
}

impl Translation {
    /// The stamp of one that is being written.
    pub const BUSY: u64 = 1;
}

const _: () = assert!(size_of::<Translation>() == 16 && offset_of!(Translation, stamp) == 8);

/// The stamp of a flow at a backend; `mixed` is [`crate::flow::FlowKey::mixed`] of its key. Neither 0 nor [`Translation::BUSY`].
///
/// Keyed as `mixed` is, so nobody can look for a flow that takes another's translation for its own.
#[inline(always)]
pub const fn stamp(mixed: u64, backend: BackendRef) -> u64 {
    let number = (((backend.id() as u64) << 5) | backend.generation() as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let sum = mixed ^ number;
    (sum ^ (sum >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) | 2
}

/// The word of a translation.
///
/// | bits | before the handshake is proven | once it is |
/// |---|---|---|
/// | 0-15 | SNAT port; `dnat`: 0 | the same |
/// | 16-29 | id of the pair; `dnat`: 0 | the same |
/// | 30 | [`TranslationWord::ANSWERED`] | the same |
/// | 31 | 0 | [`TranslationWord::PROVEN`] |
/// | 32-63 | the backend's initial sequence number, if answered | 32-43 epoch of the backend's stream, 44-46 flags, 47-54 where the client's FIN was, 55-62 the backend's, 63 0 |
///
/// Where a FIN was is told in steps of 32 KiB, modulo 256: enough to tell what is beyond it from what is sent again of before it, as far as one looks.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct TranslationWord(pub u64);

impl TranslationWord {
    /// The backend has answered the SYN.
    pub const ANSWERED: u64 = 1 << 30;
    /// The handshake is done: the client has acknowledged the answer, or the backend has sent data after it; or the flow was adopted.
    pub const PROVEN: u64 = 1 << 31;
    /// Proven only: the client has sent a FIN.
    pub const CLIENT_FIN: u64 = 1 << 44;
    /// Proven only: the backend has sent a FIN.
    pub const BACKEND_FIN: u64 = 1 << 45;
    /// Proven only: the backend's epoch jumped, and no second packet has agreed yet.
    pub const UNCONFIRMED: u64 = 1 << 46;

    const CLIENT_FIN_AT_SHIFT: u32 = 47;
    const BACKEND_FIN_AT_SHIFT: u32 = 55;
    /// Bytes to a step are 2 to the power of this.
    const FIN_STEP_SHIFT: u32 = 15;

    const PAIR_SHIFT: u32 = 16;
    const PAIR_MASK: u64 = (1 << super::PAIR_BITS) - 1;
    const EPOCH_SHIFT: u32 = 32;
    const EPOCH_MASK: u64 = 0xfff;
    const WHERE: u64 = Self::ANSWERED - 1;

    /// Of a flow whose SYN has not been answered; both 0 in mode `dnat`.
    #[inline(always)]
    pub const fn new(pair: u16, port: u16) -> Self {
        Self(((pair as u64 & Self::PAIR_MASK) << Self::PAIR_SHIFT) | port as u64)
    }

    /// SNAT port, host byte order.
    #[inline(always)]
    pub const fn port(self) -> u16 {
        self.0 as u16
    }

    /// Id of the pair.
    #[inline(always)]
    pub const fn pair(self) -> u16 {
        ((self.0 >> Self::PAIR_SHIFT) & Self::PAIR_MASK) as u16
    }

    /// Whether it has this pair and port.
    #[inline(always)]
    pub const fn is_at(self, pair: u16, port: u16) -> bool {
        (self.0 ^ Self::new(pair, port).0) & Self::WHERE == 0
    }

    /// Whether any of these flags is set.
    #[inline(always)]
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags != 0
    }

    /// The same with these flags.
    #[inline(always)]
    pub const fn with(self, flags: u64) -> Self {
        Self(self.0 | flags)
    }

    /// The same without these flags.
    #[inline(always)]
    pub const fn without(self, flags: u64) -> Self {
        Self(self.0 & !flags)
    }

    /// The same pair and port, as of a flow whose SYN has not been answered.
    #[inline(always)]
    pub const fn anew(self) -> Self {
        Self(self.0 & Self::WHERE)
    }

    /// Not proven: the backend has answered with a SYN of this sequence number.
    #[inline(always)]
    pub const fn answered(self, isn: u32) -> Self {
        Self(self.anew().0 | Self::ANSWERED | ((isn as u64) << Self::EPOCH_SHIFT))
    }

    /// Not proven, answered only: the sequence number of the backend's SYN.
    #[inline(always)]
    pub const fn isn(self) -> u32 {
        (self.0 >> Self::EPOCH_SHIFT) as u32
    }

    /// Proven, the backend's stream being at a sequence number.
    #[inline(always)]
    pub const fn proven(self, seq: u32) -> Self {
        Self(
            self.anew().0
                | Self::ANSWERED
                | Self::PROVEN
                | ((epoch_of(seq) as u64) << Self::EPOCH_SHIFT),
        )
    }

    /// Proven only: the epoch of the backend's stream.
    #[inline(always)]
    pub const fn epoch(self) -> u32 {
        ((self.0 >> Self::EPOCH_SHIFT) & Self::EPOCH_MASK) as u32
    }

    /// Proven only: the same at another epoch.
    #[inline(always)]
    pub const fn with_epoch(self, epoch: u32) -> Self {
        let epoch = epoch as u64 & Self::EPOCH_MASK;
        Self((self.0 & !(Self::EPOCH_MASK << Self::EPOCH_SHIFT)) | (epoch << Self::EPOCH_SHIFT))
    }

    /// Proven only: with a FIN, whose flag this is, at a sequence number. Of two of one side the further one counts.
    #[inline(always)]
    pub const fn with_fin(self, fin: u64, seq: u32) -> Self {
        if self.has(fin) && !is_ahead(self.steps_beyond_fin(fin, seq)) {
            return self;
        }
        let shift = Self::fin_at_shift(fin);
        let step = (seq >> Self::FIN_STEP_SHIFT) as u8;
        Self((self.0 & !(0xff << shift)) | fin | ((step as u64) << shift))
    }

    /// Proven only: the same once the side whose flag this is has sent data at a sequence number. Nobody sends data beyond its own FIN, so that
    /// was forged, or of another connection. What comes from before it may have been lost, and is sent again.
    ///
    /// Only what is a whole step beyond counts, since the FIN's own segment may have had data.
    #[inline(always)]
    pub const fn sent_to(self, fin: u64, seq: u32) -> Self {
        let steps = self.steps_beyond_fin(fin, seq);
        if self.has(fin) && steps > 1 && is_ahead(steps) {
            self.without(fin)
        } else {
            self
        }
    }

    /// The same, with what another of the same pair and port has seen of the flow, of which both were once equal.
    #[inline(always)]
    pub const fn joined(self, theirs: Self) -> Self {
        if !self.has(Self::PROVEN) {
            let is_further = theirs.has(Self::PROVEN)
                || (theirs.has(Self::ANSWERED) && !self.has(Self::ANSWERED));
            return if is_further { theirs } else { self };
        }
        if theirs.has(Self::PROVEN) {
            self.with_fin_of(theirs, Self::CLIENT_FIN)
                .with_fin_of(theirs, Self::BACKEND_FIN)
        } else {
            self
        }
    }

    /// With a FIN that only another has seen.
    #[inline(always)]
    const fn with_fin_of(self, theirs: Self, fin: u64) -> Self {
        if self.has(fin) || !theirs.has(fin) {
            return self;
        }
        let at: u64 = 0xff << Self::fin_at_shift(fin);
        Self((self.0 & !at) | (theirs.0 & at) | fin)
    }

    /// From a FIN to a sequence number, modular.
    #[inline(always)]
    const fn steps_beyond_fin(self, fin: u64, seq: u32) -> u8 {
        let at = (self.0 >> Self::fin_at_shift(fin)) as u8;
        ((seq >> Self::FIN_STEP_SHIFT) as u8).wrapping_sub(at)
    }

    #[inline(always)]
    const fn fin_at_shift(fin: u64) -> u32 {
        if fin == Self::CLIENT_FIN {
            Self::CLIENT_FIN_AT_SHIFT
        } else {
            Self::BACKEND_FIN_AT_SHIFT
        }
    }

    /// Proven only: whether an epoch is the backend's, the one before or the one after.
    #[inline(always)]
    pub const fn is_near(self, epoch: u32) -> bool {
        epoch.wrapping_sub(self.epoch()).wrapping_add(1) & Self::EPOCH_MASK as u32 <= 2
    }
}

/// Whether so many steps, modulo 256, are forward.
#[inline(always)]
const fn is_ahead(steps: u8) -> bool {
    steps != 0 && steps < 128
}

impl core::fmt::Debug for TranslationWord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (pair, port) = (self.pair(), self.port());
        if self.has(Self::PROVEN) {
            let (epoch, flags) = (self.epoch(), (self.0 >> 44) & 7);
            write!(f, "Proven({pair}:{port} epoch {epoch:#x} flags {flags:#b})")
        } else if self.has(Self::ANSWERED) {
            write!(f, "Answered({pair}:{port} isn {:#x})", self.isn())
        } else {
            write!(f, "New({pair}:{port})")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_word_keeps_what_it_is_given(pair in 0u16..1 << 14, port: u16, isn: u32, seq: u32) {
            let new = TranslationWord::new(pair, port);
            let answered = new.answered(isn);
            let proven = answered.proven(seq);
            for word in [new, answered, proven, proven.with_fin(TranslationWord::CLIENT_FIN, seq).with_epoch(7)] {
                prop_assert_eq!((word.pair(), word.port(), word.anew()), (pair, port, new));
                prop_assert!(word.is_at(pair, port));
                prop_assert!(!word.is_at(pair ^ 1, port) && !word.is_at(pair, port ^ 0x8000));
            }
            prop_assert_eq!(answered.isn(), isn);
            prop_assert!(answered.has(TranslationWord::ANSWERED) && !answered.has(TranslationWord::PROVEN));
            prop_assert_eq!(proven.epoch(), epoch_of(seq));
            prop_assert!(proven.is_near(epoch_of(seq.wrapping_add(1 << 20))));
            prop_assert!(!proven.is_near(epoch_of(seq.wrapping_add(2 << 20))));
        }

        #[test]
        fn only_what_is_sent_beyond_a_fin_undoes_it(isn: u32, at: u32, by in 0x1_0000u32..3 << 20, short in 0u32..1 << 22) {
            const FINS: [u64; 2] = [TranslationWord::CLIENT_FIN, TranslationWord::BACKEND_FIN];
            let none = TranslationWord::new(3, 2_000).proven(isn);
            for [fin, other] in [FINS, [FINS[1], FINS[0]]] {
                let word = none.with_fin(other, at.wrapping_add(7 << 20)).with_fin(fin, at);
                prop_assert!(word.has(fin) && word.has(other));
                prop_assert_eq!((word.anew(), word.epoch()), (none.anew(), none.epoch()));
                // From the FIN's own segment, and what may have been lost before it.
                prop_assert_eq!(word.sent_to(fin, at.wrapping_add(0x7fff)), word);
                prop_assert_eq!(word.sent_to(fin, at.wrapping_sub(short)), word);
                let beyond = word.sent_to(fin, at.wrapping_add(by));
                prop_assert!(!beyond.has(fin) && beyond.has(other));
                prop_assert_eq!(beyond.sent_to(fin, at.wrapping_add(by)), beyond);
                // The further of two.
                let later = word.with_fin(fin, at.wrapping_add(by));
                prop_assert_eq!(later.with_fin(fin, at), later);
                prop_assert_eq!(later.sent_to(fin, at.wrapping_add(by)), later);
            }
        }

        #[test]
        fn what_either_has_seen_is_known_once_they_are_joined(isn: u32, at: u32, other in 0u32..1 << 31) {
            const FINS: [u64; 2] = [TranslationWord::CLIENT_FIN, TranslationWord::BACKEND_FIN];
            let new = TranslationWord::new(3, 2_000);
            let (answered, proven) = (new.answered(isn), new.proven(isn));
            for (less, more) in [(new, answered), (new, proven), (answered, proven)] {
                prop_assert_eq!(less.joined(more), more);
                prop_assert_eq!(more.joined(less), more);
            }
            prop_assert_eq!(answered.joined(new.answered(!isn)), answered);
            for [fin, second] in [FINS, [FINS[1], FINS[0]]] {
                let (one, two) = (proven.with_fin(fin, at), proven.with_fin(second, other));
                prop_assert_eq!(one.joined(two), one.with_fin(second, other));
                // Of two of one side ours counts.
                prop_assert_eq!(one.joined(proven.with_fin(fin, other)), one);
            }
        }

        #[test]
        fn a_stamp_is_neither_of_the_two_that_mean_something_else(mixed: u64, id in 0u32..1 << 18, generation in 0u8..32) {
            let of = |id, generation| stamp(mixed, BackendRef::new(id, generation));
            prop_assert!(of(id, generation) > Translation::BUSY);
            prop_assert_ne!(of(id, generation), of(id, generation ^ 1));
            prop_assert_ne!(of(id, generation), of(id ^ 1, generation));
        }
    }
}
