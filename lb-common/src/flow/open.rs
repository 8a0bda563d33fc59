//! The straight way of a SYN: its flow has no entry, there is an empty place, and its pick takes new flows. So it is with most.
//!
//! Each bucket is read once, both at the same time, and without a branch that depends on what is in them: what is known of one decides nothing
//! about the other, so the processor waits for memory once. The look after the insertion is made in the same way. Whatever is in doubt is left to [`super::steer::otherwise`].

use super::{
    steer::World,
    table::{self, Inserted, Memory, Place, Subject},
    word::{BackendRef, Word},
};
use crate::{backend::Serving, clock::Tick, tcp::Segment};

/// Opens a flow for a SYN, and gives the id of its backend, to which it can be forwarded without VLAN tags; 0 if the SYN is for the long way, and
/// then no entry has been left behind.
#[inline(always)]
pub fn open<W: World>(world: &W, key: &W::Key, segment: &Segment, now: Tick) -> u32 {
    if !segment.opens() || world.is_held() {
        return 0;
    }
    let Some(slot) = world.slot(key, 0) else {
        return 0;
    };
    let id = slot.current();
    let Some((_, state)) = world.backend(id) else {
        return 0;
    };
    let takes_it = id != 0
        && matches!(state.serving(), Serving::New)
        && state.can_forward_plainly_for(state.generation());
    if !takes_it {
        return 0;
    }
    let subject = Subject {
        key: *key,
        homes: world.homes(key),
        now,
    };
    let Some(place) = empty_place(world, &subject) else {
        return 0;
    };
    let word = Word::embryo(BackendRef::new(id, state.generation()), segment.seq, now);
    if !table::take(world, &place, Word::EMPTY, key, word) {
        return 0;
    }
    // What the one look above may have missed, an entry that moved or one that came meanwhile, this finds.
    if holders(world, &subject) == 1 {
        return id;
    }
    match table::settled(world, &subject, word, place) {
        Inserted::At(_) => id,
        _ => 0,
    }
}

/// The first empty place of a key; none if there is none, or the key may have an entry.
#[inline(always)]
fn empty_place<M: Memory>(memory: &M, subject: &Subject<M::Key>) -> Option<Place> {
    const { assert!(2 * M::WAYS <= 8) };
    let [first, second] = subject.homes;
    let (one, other) = (memory.bucket(first)?, memory.bucket(second)?);
    let mut is_known = false;
    let empty = empty_in(memory, one, &subject.key, &mut is_known)
        | (empty_in(memory, other, &subject.key, &mut is_known) << M::WAYS);
    if is_known || empty == 0 {
        return None;
    }
    let at = lowest(empty);
    // 0 or 1.
    let home = at / M::WAYS;
    Some(Place {
        index: first ^ ((first ^ second) * home),
        way: memory.blur(at % M::WAYS),
    })
}

/// The empty places of a bucket, a bit for each. Tells whether another may have an entry of `key`.
#[inline(always)]
fn empty_in<M: Memory>(memory: &M, bucket: M::Bucket, key: &M::Key, is_known: &mut bool) -> u32 {
    let mut empty = 0;
    let mut way = 0;
    while way < M::WAYS {
        *is_known |= memory.holds(bucket, way, key) && memory.value(bucket, way) != Word::EMPTY;
        let value = memory.value(bucket, way).0;
        empty |= is_zero(value, memory.opaque(value.wrapping_neg())) << way;
        way += 1;
    }
    empty
}

/// How many places may hold a key: at least as many as do, and no more but rarely.
#[inline(always)]
fn holders<M: Memory>(memory: &M, subject: &Subject<M::Key>) -> u32 {
    let [first, second] = subject.homes;
    match (memory.bucket(first), memory.bucket(second)) {
        (Some(one), Some(other)) => {
            holders_in(memory, one, &subject.key) + holders_in(memory, other, &subject.key)
        }
        _ => 0,
    }
}

/// The same in one bucket.
#[inline(always)]
fn holders_in<M: Memory>(memory: &M, bucket: M::Bucket, key: &M::Key) -> u32 {
    let mut holders = 0;
    let mut way = 0;
    while way < M::WAYS {
        let differs = memory.differs(bucket, way, key);
        holders += is_zero(differs, memory.opaque(differs.wrapping_neg()));
        way += 1;
    }
    holders
}

const _: () = assert!(Word::EMPTY.0 == 0);

/// 1 if a number is 0, else 0; without a branch, which would be guessed wrong as often as not. `negated` is less than 0 by that number, and the compiler
/// must not know it: it knows what this is for.
#[inline(always)]
const fn is_zero(number: u64, negated: u64) -> u32 {
    (1 ^ ((number | negated) >> 63)) as u32
}

/// The number of the lowest bit that is set, of eight, one of which is. BPF has no instruction for it; this is a multiplication that brings
/// another three bits to the top for each (de Bruijn).
#[inline(always)]
const fn lowest(bits: u32) -> u32 {
    const SEQUENCE: u32 = 0b0001_1101;
    /// By these three bits, four bits each.
    const NUMBERS: u32 = 0x3457_2610;
    let lowest = bits & bits.wrapping_neg();
    let three = ((lowest * SEQUENCE) >> 5) & 7;
    (NUMBERS >> (4 * three)) & 7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bit_is_that_of_the_machine() {
        for bits in 1_u32..256 {
            assert_eq!(lowest(bits), bits.trailing_zeros(), "{bits:#b}");
        }
    }

    #[test]
    fn nothing_but_zero_is_zero() {
        let is_zero = |number: u64| is_zero(number, number.wrapping_neg());
        assert_eq!(is_zero(Word::EMPTY.0), 1);
        for number in [1, Word::BUSY.0, 1 << 31, 1 << 32, 1 << 63, u64::MAX] {
            assert_eq!(is_zero(number), 0, "{number:#x}");
        }
    }
}
