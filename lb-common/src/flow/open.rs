//! The straight way of a SYN: its flow has no entry, there is an empty place, and its pick takes new flows. So it is with most.
//!
//! Each bucket is read once, both at the same time, and without a branch that depends on what is in them: what is known of one decides nothing
//! about the other, so the processor waits for memory once. The look after the insertion is made in the same way. Whatever is in doubt is left to
//! [`super::steer::otherwise`].

use super::{
    bits,
    steer::World,
    table::{self, Inserted, Memory, Place, Subject},
    word::{BackendRef, Word},
};
use crate::{
    backend::Serving,
    bits::{is_single, lowest},
    clock::Tick,
    hide::Hide as _,
    tcp::Segment,
};

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
    if is_alone(world, &subject) {
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
        way: M::Hide::blur(at % M::WAYS),
    })
}

/// The empty places of a bucket, a bit for each. Tells whether another may have an entry of `key`.
#[inline(always)]
fn empty_in<M: Memory>(memory: &M, bucket: M::Bucket, key: &M::Key, is_known: &mut bool) -> u32 {
    const { assert!(Word::EMPTY.0 == 0) };
    let mut full = 0;
    let mut way = 0;
    while way < M::WAYS {
        *is_known |= memory.holds(bucket, way, key) && memory.value(bucket, way) != Word::EMPTY;
        full |= bits::unless_zero::<M>(memory.value(bucket, way).0, way);
        way += 1;
    }
    bits::others::<M>(full)
}

/// Whether one place alone holds a key, or may: false, now and then, where a former entry of it has left its key behind.
#[inline(always)]
fn is_alone<M: Memory>(memory: &M, subject: &Subject<M::Key>) -> bool {
    let [first, second] = subject.homes;
    let Some(one) = memory.bucket(first) else {
        return false;
    };
    let Some(other) = memory.bucket(second) else {
        return false;
    };
    let in_one = bits::holders(memory, one, &subject.key);
    let in_other = bits::holders(memory, other, &subject.key);
    is_single(in_one | (in_other << M::WAYS))
}
