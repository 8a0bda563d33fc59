//! Slots of Maglev tables and the word that names a table in the arena.
//!
//! Building tables is the daemon's; here is only what both worlds read. (Eisenbud et al., "Maglev: A Fast and Reliable
//! Software Network Load Balancer", NSDI 2016, section 3.4.)

use crate::{
    clock::{Tick, ticks_proving},
    hash::{Seed, mix, scale},
};

/// How long an unknown mid-stream packet still goes to a slot's previous backend, in ticks: 10 minutes.
pub const HANDOVER_TICKS: u32 = ticks_proving(600);
/// How long an owner must have held a slot to become its previous backend, in ticks: 60 s.
pub const TENURE_TICKS: u32 = ticks_proving(60);

const ID_BITS: u32 = 18;
const ID_MASK: u64 = (1 << ID_BITS) - 1;
const TICK_BITS: u32 = 28;
const TICK_MASK: u64 = (1 << TICK_BITS) - 1;

/// One slot of a table: current backend (bits 0-17), previous backend (18-35), tick of the last change (36-63).
///
/// Backend id 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Slot(pub u64);

impl Slot {
    /// A slot owned by `current` since `changed`, by `previous` before.
    #[inline(always)]
    pub const fn new(current: u32, previous: u32, changed: Tick) -> Self {
        Self(
            (current as u64 & ID_MASK)
                | ((previous as u64 & ID_MASK) << ID_BITS)
                | ((changed.0 as u64 & TICK_MASK) << (2 * ID_BITS)),
        )
    }

    /// The backend that owns the slot today; 0 is none.
    #[inline(always)]
    pub const fn current(self) -> u32 {
        (self.0 & ID_MASK) as u32
    }

    /// The backend that owned it before; 0 is none.
    #[inline(always)]
    pub const fn previous(self) -> u32 {
        ((self.0 >> ID_BITS) & ID_MASK) as u32
    }

    /// When the owner changed.
    #[inline(always)]
    pub const fn changed(self) -> Tick {
        Tick((self.0 >> (2 * ID_BITS)) as u32)
    }

    /// Ticks since the owner changed.
    #[inline(always)]
    pub const fn age(self, now: Tick) -> u32 {
        now.age(self.changed().0, TICK_BITS)
    }

    /// The previous backend while the handover lasts, else 0.
    #[inline(always)]
    pub const fn handing_over(self, now: Tick) -> u32 {
        if self.age(now) < HANDOVER_TICKS {
            self.previous()
        } else {
            0
        }
    }

    /// The slot after a rebuild that gives it to `owner` at `now`.
    ///
    /// An unchanged owner leaves the slot as it is. Otherwise the outgoing owner becomes the previous one if it had held the
    /// slot for 60 s; if not, the previous backend of before stays, so that an unrelated rebuild seconds later does not
    /// forget it. An outgoing owner of none is never worth remembering.
    pub const fn succeeded_by(self, owner: u32, now: Tick) -> Self {
        if owner == self.current() {
            return self;
        }
        let settled = self.current() != 0 && self.age(now) >= TENURE_TICKS;
        let previous = if settled {
            self.current()
        } else {
            self.previous()
        };
        Self::new(owner, previous, now)
    }

    /// The slot once its handover is over: the previous backend is forgotten, so that its id can be reused.
    pub const fn without_expired(self, now: Tick) -> Self {
        if self.previous() != 0 && self.age(now) >= HANDOVER_TICKS {
            Self(self.0 & !(ID_MASK << ID_BITS))
        } else {
            self
        }
    }
}

/// The word by which a service names its table: offset in the arena (bits 0-31, in slots), size (32-55, in slots),
/// generation (56-63). One store swaps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct TableRef(pub u64);

impl TableRef {
    /// The largest size of a table, in slots.
    pub const MAX_SIZE: u32 = (1 << 24) - 1;

    /// Names `size` slots from `offset` on.
    #[inline(always)]
    pub const fn new(offset: u32, size: u32, generation: u8) -> Self {
        Self(offset as u64 | ((size as u64 & 0xff_ffff) << 32) | ((generation as u64) << 56))
    }

    /// First slot, as an index of the arena.
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        self.0 as u32
    }

    /// Number of slots; 0 is no table.
    #[inline(always)]
    pub const fn size(self) -> u32 {
        (self.0 >> 32) as u32 & 0xff_ffff
    }

    /// Grows by one, modulo 256, with each table that the service is given.
    #[inline(always)]
    pub const fn generation(self) -> u8 {
        (self.0 >> 56) as u8
    }
}

/// The slot of a flow, as an offset into its service's table of `size` slots.
///
/// `client` is address and port (see [`client_word`]); `seed` is the service's own, derived from the fleet's. Attempts after 0 give other,
/// independent slots, for the moments when a slot still names a backend that takes no new flows.
#[inline(always)]
pub const fn slot_index(client: u64, seed: &Seed, attempt: u32, size: u32) -> u32 {
    let mixed = mix(client, seed);
    // The four attempts take the same well-mixed word at four rotations.
    scale((mixed.rotate_left(attempt * 16) >> 32) as u32, size)
}

/// What of an IPv4 client decides its slot: address in the upper half, port in the lower, host byte order.
#[inline(always)]
pub const fn client_word(address: u32, port: u16) -> u64 {
    ((address as u64) << 32) | port as u64
}

/// How many slots a new flow may try, [`slot_index`]'s attempts.
pub const PICK_ATTEMPTS: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slots_keep_what_they_are_given(current in 0u32..1 << 18, previous in 0u32..1 << 18, changed in 0u32..1 << 28) {
            let slot = Slot::new(current, previous, Tick(changed));
            prop_assert_eq!((slot.current(), slot.previous(), slot.changed()), (current, previous, Tick(changed)));
        }

        #[test]
        fn table_refs_keep_what_they_are_given(offset: u32, size in 0..=TableRef::MAX_SIZE, generation: u8) {
            let table = TableRef::new(offset, size, generation);
            prop_assert_eq!((table.offset(), table.size(), table.generation()), (offset, size, generation));
        }
    }

    #[test]
    fn a_settled_owner_becomes_the_previous_one() {
        let slot = Slot::new(1, 0, Tick(100));
        let next = slot.succeeded_by(2, Tick(100 + TENURE_TICKS));
        assert_eq!(
            (next.current(), next.previous(), next.changed()),
            (2, 1, Tick(100 + TENURE_TICKS))
        );
    }

    #[test]
    fn a_passing_owner_does_not_displace_the_previous_one() {
        let slot = Slot::new(2, 1, Tick(100));
        let next = slot.succeeded_by(3, Tick(100 + TENURE_TICKS - 1));
        assert_eq!((next.current(), next.previous()), (3, 1));
    }

    #[test]
    fn an_unchanged_owner_changes_nothing() {
        let slot = Slot::new(2, 1, Tick(100));
        assert_eq!(slot.succeeded_by(2, Tick(5_000)), slot);
    }

    #[test]
    fn the_previous_owner_is_known_for_the_handover_only() {
        let slot = Slot::new(2, 1, Tick(100));
        let last = Tick(100 + HANDOVER_TICKS - 1);
        assert_eq!(
            (slot.handing_over(last), slot.without_expired(last)),
            (1, slot)
        );
        let over = last.later(1);
        assert_eq!(
            (slot.handing_over(over), slot.without_expired(over)),
            (0, Slot::new(2, 0, Tick(100)))
        );
    }

    #[test]
    fn attempts_differ() {
        let seed = Seed::new([3, 5, 7]);
        let slots: Vec<u32> = (0..PICK_ATTEMPTS)
            .map(|n| slot_index(client_word(0x0a00_0001, 40_000), &seed, n, 65_537))
            .collect();
        let mut unique = slots.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), slots.len(), "{slots:?}");
    }
}
