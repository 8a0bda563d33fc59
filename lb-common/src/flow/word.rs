//! The value word: one atomic 64-bit word owns an entry of the flow table.
//!
//! | bits | embryo, challenger | young, pin, closing |
//! |---|---|---|
//! | 0-2 | [`State`] | the same |
//! | 3-7 | generation of the backend id | the same |
//! | 8-25 | backend id | the same |
//! | 26-57 | the SYN's sequence number | 26-37 epoch, 38-57 tick |
//! | 58-63 | tick, 6 bits | flags |
//!
//! The tick is: for an embryo or challenger the moment of its SYN; for a young entry the moment of its promotion or adoption; for a pin
//! the last packet; for a closing entry its end, or the last packet that refreshed it.

use crate::clock::{Tick, ticks_proving};

/// Age at which an embryo is dead, in ticks: 128 s.
pub const EMBRYO_TICKS: u32 = ticks_proving(128);
/// Age from which the next packet of a young entry makes it a pin, in ticks: 30 s.
pub const YOUNG_TICKS: u32 = ticks_proving(30);
/// Age from which data of a flow that has sent its FIN is new, in ticks: 10 s. Earlier it is data sent before the FIN, which was lost or overtaken.
pub const LATE_TICKS: u32 = ticks_proving(10);
/// How long a closing entry lingers after a RST, in ticks: 60 s.
pub const LINGER_RST_TICKS: u32 = ticks_proving(60);
/// Age from which a packet refreshes an entry that was closed by a FIN, in ticks: 60 s.
pub const REFRESH_TICKS: u32 = ticks_proving(60);
/// How long a closing entry lingers after a FIN, in ticks: 15 min after its last packet, so that half-closed streams live on.
pub const LINGER_FIN_TICKS: u32 = ticks_proving(15 * 60) + REFRESH_TICKS;
/// How long a closing exception lingers after a FIN, in ticks: 2 h after its last packet.
pub const LINGER_EXCEPTION_TICKS: u32 = ticks_proving(2 * 3600) + REFRESH_TICKS;

/// Width of the embryo's tick, bits: it wraps after 275 s.
pub const EMBRYO_TICK_BITS: u32 = 6;
/// Width of the tick of all other entries, bits: it wraps after 52 days.
pub const TICK_BITS: u32 = 20;
/// Width of an epoch, bits.
pub const EPOCH_BITS: u32 = 12;

/// Width of a state, bits.
pub(crate) const STATE_BITS: u32 = 3;
const STATE_MASK: u64 = (1 << STATE_BITS) - 1;
pub(crate) const BACKEND_SHIFT: u32 = STATE_BITS;
const BACKEND_MASK: u64 = (1 << 23) - 1;
pub(crate) const ISN_SHIFT: u32 = 26;
pub(crate) const EPOCH_SHIFT: u32 = if cfg!(feature = "next-abi") {
    26 + TICK_BITS
} else {
    26
};
const EPOCH_MASK: u64 = (1 << EPOCH_BITS) - 1;
pub(crate) const TICK_SHIFT: u32 = if cfg!(feature = "next-abi") {
    26
} else {
    26 + EPOCH_BITS
};
const TICK_MASK: u64 = (1 << TICK_BITS) - 1;
pub(crate) const EMBRYO_TICK_SHIFT: u32 = 58;

/// The states of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// Nothing here.
    Empty = 0,
    /// Somebody is writing the key.
    Busy = 1,
    /// A SYN was seen.
    Embryo = 2,
    /// A SYN was seen for a key that has a live entry.
    Challenger = 3,
    /// The client has answered, or the flow was adopted; not yet proven by time.
    Young = 4,
    /// Proven: a packet came 30 s or more after promotion. Only its own end or a reclaim under pressure removes it.
    Pin = 5,
    /// A FIN or RST was seen. Still forwards; claimable once its linger is over.
    Closing = 6,
    /// Never written.
    Invalid = 7,
}

/// A backend id with its generation: bits 0-4 generation, 5-22 id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct BackendRef(u32);

impl BackendRef {
    /// Width of an id, bits.
    pub const ID_BITS: u32 = 18;
    /// Number of generations.
    pub const GENERATIONS: u8 = 32;

    /// The `generation`-th holder (modulo 32) of `id`.
    #[inline(always)]
    pub const fn new(id: u32, generation: u8) -> Self {
        Self(((id & ((1 << Self::ID_BITS) - 1)) << 5) | (generation as u32 & 31))
    }

    /// Nobody.
    pub const NONE: Self = Self::new(0, 0);

    /// As a number, and back by [`Self::of_raw`].
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// What [`Self::raw`] gave.
    #[inline(always)]
    pub const fn of_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// Index of the backends map.
    #[inline(always)]
    pub const fn id(self) -> u32 {
        self.0 >> 5
    }

    /// Generation, 0 to 31.
    #[inline(always)]
    pub const fn generation(self) -> u8 {
        (self.0 & 31) as u8
    }
}

/// The epoch of a sequence number: its upper 12 bits, so one epoch is 1 MiB of stream.
#[inline(always)]
pub const fn epoch_of(seq: u32) -> u32 {
    seq >> 20
}

/// The first sequence number of an epoch.
#[inline(always)]
pub const fn start_of(epoch: u32) -> u32 {
    epoch << 20
}

/// A value word. See the module's table for its layout.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Word(pub u64);

impl Word {
    /// The empty entry.
    pub const EMPTY: Self = Self(State::Empty as u64);
    /// An entry whose key is being written.
    pub const BUSY: Self = Self(State::Busy as u64);

    /// Another entry of the same key exists or existed: look twice. The daemon takes the mark off once that is gone for good.
    pub const CONTESTED: u64 = 1 << 58;
    /// Young or pin: a FIN or RST outside the window was seen and no data since.
    pub const HINT: u64 = 1 << 59;
    /// Closing: by a RST, not a FIN. (The bit of [`Word::HINT`], which a closing entry does not need.)
    pub const BY_RESET: u64 = 1 << 59;
    /// Adopted in mid-stream: its SYN was never seen here.
    pub const FOREIGN: u64 = 1 << 60;
    /// The epoch jumped and no second packet has agreed yet.
    pub const UNCONFIRMED: u64 = 1 << 61;
    /// Began as a challenger: the newer of the two entries of its key.
    pub const SECOND: u64 = 1 << 62;
    /// Closing: its backend was not the pick when it closed, or the daemon found so later.
    pub const EXCEPTION: u64 = 1 << 63;

    /// A new flow whose SYN had sequence number `isn`.
    #[inline(always)]
    pub const fn embryo(backend: BackendRef, isn: u32, now: Tick) -> Self {
        Self::nascent(State::Embryo, backend, isn, now)
    }

    /// A new flow that claims the key of a live one.
    #[inline(always)]
    pub const fn challenger(backend: BackendRef, isn: u32, now: Tick) -> Self {
        Self::nascent(State::Challenger, backend, isn, now)
    }

    #[inline(always)]
    const fn nascent(state: State, backend: BackendRef, isn: u32, now: Tick) -> Self {
        Self(
            state as u64
                | ((backend.0 as u64) << BACKEND_SHIFT)
                | ((isn as u64) << ISN_SHIFT)
                | ((now.0 as u64) << EMBRYO_TICK_SHIFT),
        )
    }

    /// A live entry: `state` is young, pin or closing; `flags` are this type's constants.
    #[inline(always)]
    pub const fn live(
        state: State,
        backend: BackendRef,
        epoch: u32,
        now: Tick,
        flags: u64,
    ) -> Self {
        Self(
            state as u64
                | ((backend.0 as u64) << BACKEND_SHIFT)
                | ((epoch as u64 & EPOCH_MASK) << EPOCH_SHIFT)
                | ((now.0 as u64 & TICK_MASK) << TICK_SHIFT)
                | flags,
        )
    }

    /// The state as an enum, for code that is not hot.
    #[inline(always)]
    pub const fn state(self) -> State {
        match self.0 & STATE_MASK {
            0 => State::Empty,
            1 => State::Busy,
            2 => State::Embryo,
            3 => State::Challenger,
            4 => State::Young,
            5 => State::Pin,
            6 => State::Closing,
            _ => State::Invalid,
        }
    }

    /// Whether the state is `state`.
    #[inline(always)]
    pub const fn is(self, state: State) -> bool {
        self.0 & STATE_MASK == state as u64
    }

    /// Embryo or challenger.
    #[inline(always)]
    pub const fn is_nascent(self) -> bool {
        self.0 & 0b110 == 0b010
    }

    /// Young or pin.
    #[inline(always)]
    pub const fn is_open(self) -> bool {
        self.0 & 0b110 == 0b100
    }

    /// Young, pin or closing.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        let state = self.0 & STATE_MASK;
        state >= State::Young as u64 && state <= State::Closing as u64
    }

    /// Nascent or live: the key beside it means something.
    #[inline(always)]
    pub const fn is_entry(self) -> bool {
        let state = self.0 & STATE_MASK;
        state >= State::Embryo as u64 && state <= State::Closing as u64
    }

    /// The backend.
    #[inline(always)]
    pub const fn backend(self) -> BackendRef {
        BackendRef(((self.0 >> BACKEND_SHIFT) & BACKEND_MASK) as u32)
    }

    /// The same entry on another backend.
    #[inline(always)]
    pub const fn with_backend(self, backend: BackendRef) -> Self {
        Self((self.0 & !(BACKEND_MASK << BACKEND_SHIFT)) | ((backend.0 as u64) << BACKEND_SHIFT))
    }

    /// Nascent only: the SYN's sequence number.
    #[inline(always)]
    pub const fn isn(self) -> u32 {
        (self.0 >> ISN_SHIFT) as u32
    }

    /// Nascent only: age in ticks, modulo 64; see [`Tick::age`].
    #[inline(always)]
    pub const fn nascent_age(self, now: Tick) -> u32 {
        now.age((self.0 >> EMBRYO_TICK_SHIFT) as u32, EMBRYO_TICK_BITS)
    }

    /// Live only: the client's epoch.
    #[inline(always)]
    pub const fn epoch(self) -> u32 {
        ((self.0 >> EPOCH_SHIFT) & EPOCH_MASK) as u32
    }

    /// Live only: the same entry at another epoch.
    #[inline(always)]
    pub const fn with_epoch(self, epoch: u32) -> Self {
        Self((self.0 & !(EPOCH_MASK << EPOCH_SHIFT)) | ((epoch as u64 & EPOCH_MASK) << EPOCH_SHIFT))
    }

    /// Live only: the tick, 20 bits.
    #[inline(always)]
    pub const fn tick(self) -> u32 {
        ((self.0 >> TICK_SHIFT) & TICK_MASK) as u32
    }

    /// Live only: the same entry at another tick.
    #[inline(always)]
    pub const fn with_tick(self, now: Tick) -> Self {
        Self((self.0 & !(TICK_MASK << TICK_SHIFT)) | ((now.0 as u64 & TICK_MASK) << TICK_SHIFT))
    }

    /// Live only: ticks since [`Word::tick`], modulo 2^20.
    #[inline(always)]
    pub const fn age(self, now: Tick) -> u32 {
        now.age(self.tick(), TICK_BITS)
    }

    /// The same entry in another state.
    #[inline(always)]
    pub const fn with_state(self, state: State) -> Self {
        Self((self.0 & !STATE_MASK) | state as u64)
    }

    /// Live only: whether any of `flags` is set.
    #[inline(always)]
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags != 0
    }

    /// Live only: with `flags` set.
    #[inline(always)]
    pub const fn with(self, flags: u64) -> Self {
        Self(self.0 | flags)
    }

    /// Live only: with `flags` cleared.
    #[inline(always)]
    pub const fn without(self, flags: u64) -> Self {
        Self(self.0 & !flags)
    }

    /// Live only: whether an epoch is this entry's, the one before or the one after.
    #[inline(always)]
    pub const fn is_near(self, epoch: u32) -> bool {
        epoch.wrapping_sub(self.epoch()).wrapping_add(1) & EPOCH_MASK as u32 <= 2
    }

    /// Live only: whether this entry's epoch is after another, by no more than half of all epochs.
    #[inline(always)]
    pub const fn is_ahead_of(self, epoch: u32) -> bool {
        let ahead = self.epoch().wrapping_sub(epoch) & EPOCH_MASK as u32;
        ahead != 0 && ahead <= EPOCH_MASK as u32 / 2
    }

    /// Live only: how far an epoch is from this entry's, either way round.
    #[inline(always)]
    pub const fn distance(self, epoch: u32) -> u32 {
        let ahead = epoch.wrapping_sub(self.epoch()) & EPOCH_MASK as u32;
        let behind = self.epoch().wrapping_sub(epoch) & EPOCH_MASK as u32;
        if ahead < behind { ahead } else { behind }
    }

    /// Closing only: how long it lingers after its last refresh, in ticks.
    #[inline(always)]
    pub const fn linger(self) -> u32 {
        if self.has(Self::BY_RESET) {
            LINGER_RST_TICKS
        } else if self.has(Self::EXCEPTION) {
            LINGER_EXCEPTION_TICKS
        } else {
            LINGER_FIN_TICKS
        }
    }

    /// Whether a new flow may take the place without taking anything away: empty, or closing past its linger.
    #[inline(always)]
    pub const fn is_vacant(self, now: Tick) -> bool {
        self.is(State::Empty) || (self.is(State::Closing) && self.age(now) >= self.linger())
    }
}

impl core::fmt::Debug for Word {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let state = self.state();
        let backend = self.backend();
        if self.is_nascent() {
            write!(
                f,
                "{state:?}({}.{} isn {:#x} tick {})",
                backend.id(),
                backend.generation(),
                self.isn(),
                self.0 >> 58
            )
        } else if self.is_live() {
            let (epoch, tick, flags) = (self.epoch(), self.tick(), self.0 >> 58);
            write!(
                f,
                "{state:?}({}.{} epoch {epoch:#x} tick {tick} flags {flags:#b})",
                backend.id(),
                backend.generation()
            )
        } else {
            write!(f, "{state:?}({:#x})", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_nascent_word_keeps_what_it_is_given(id in 0u32..1 << 18, generation in 0u8..32, isn: u32, now: u32) {
            let backend = BackendRef::new(id, generation);
            let word = Word::challenger(backend, isn, Tick(now));
            prop_assert_eq!(word.state(), State::Challenger);
            prop_assert_eq!((word.backend().id(), word.backend().generation(), word.isn()), (id, generation, isn));
            prop_assert_eq!(word.nascent_age(Tick(now).later(62)), 62);
        }

        #[test]
        fn a_live_word_keeps_what_it_is_given(id in 0u32..1 << 18, generation in 0u8..32, epoch in 0u32..4096, now: u32, flags in 0u64..64) {
            let word = Word::live(State::Pin, BackendRef::new(id, generation), epoch, Tick(now), flags << 58);
            prop_assert_eq!(word.state(), State::Pin);
            prop_assert_eq!((word.backend().id(), word.backend().generation(), word.epoch()), (id, generation, epoch));
            prop_assert_eq!((word.tick(), word.0 >> 58), (now & 0xf_ffff, flags));
            let moved = word.with_epoch(epoch ^ 5).with_tick(Tick(now ^ 3)).with_state(State::Closing).with_backend(BackendRef::new(9, 1));
            prop_assert_eq!(moved, Word::live(State::Closing, BackendRef::new(9, 1), epoch ^ 5, Tick(now ^ 3), flags << 58));
        }

        #[test]
        fn distance_is_symmetric_and_wraps(a in 0u32..4096, b in 0u32..4096) {
            let at = |epoch| Word::live(State::Pin, BackendRef::new(1, 0), epoch, Tick(0), 0);
            prop_assert_eq!(at(a).distance(b), at(b).distance(a));
            prop_assert_eq!(at(a).distance((a + 1) % 4096), 1);
            prop_assert!(at(a).distance(b) <= 2048);
        }
    }

    #[test]
    fn only_empty_and_lingered_places_are_vacant() {
        let now = Tick(1_000_000);
        let backend = BackendRef::new(1, 0);
        assert!(Word::EMPTY.is_vacant(now));
        for word in [
            Word::BUSY,
            Word::embryo(backend, 0, Tick(0)),
            Word::challenger(backend, 0, Tick(0)),
        ] {
            assert!(!word.is_vacant(now), "{word:?}");
        }
        for state in [State::Young, State::Pin] {
            assert!(!Word::live(state, backend, 0, Tick(0), 0).is_vacant(now));
        }
        for (flags, linger) in [
            (0, LINGER_FIN_TICKS),
            (Word::EXCEPTION, LINGER_EXCEPTION_TICKS),
            (Word::BY_RESET, LINGER_RST_TICKS),
            (Word::BY_RESET | Word::EXCEPTION, LINGER_RST_TICKS),
        ] {
            let closing = Word::live(State::Closing, backend, 0, Tick(50), flags);
            assert!(!closing.is_vacant(Tick(50 + linger - 1)), "{closing:?}");
            assert!(closing.is_vacant(Tick(50 + linger)), "{closing:?}");
        }
    }
}
