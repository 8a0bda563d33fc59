//! What sources are held to: how fast they open flows, and how many they have at a time.
//!
//! CPUs share what is known of a source without locks. A fingerprint is exchanged to take a place, and each of the two words that count is exchanged by
//! itself: so one CPU's payment or flow is not lost for another's. What a place changing hands can lose, or leave to who has it next, is what was under way
//! at that moment.

use core::mem::offset_of;

use super::{SOURCES_IN_BUCKET, Source};
use crate::{
    bits::{below, is_some, lowest},
    flow::table::Place,
    hide::Hide,
};

/// How far ahead the clock of another CPU can be, that has read it a moment later, in nanoseconds. What is further ahead is of a corrupt map.
const AHEAD_NS: u64 = 1_000_000_000;
/// How often one CPU tries to change a word that others change at the same moment.
const TRIES: u32 = 4;
/// One flow more, among those that [`Source::flows`] has as opened.
const OPENED: u64 = 1 << 32;

/// A word of a [`Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Part {
    /// [`Source::fingerprint`].
    Fingerprint = 0,
    /// [`Source::word`].
    Word = 1,
    /// [`Source::paid_ns`].
    Paid = 2,
    /// [`Source::flows`].
    Flows = 3,
}

const _: () = assert!(offset_of!(Source, fingerprint) == 8 * Part::Fingerprint as usize);
const _: () = assert!(offset_of!(Source, word) == 8 * Part::Word as usize);
const _: () = assert!(offset_of!(Source, paid_ns) == 8 * Part::Paid as usize);
const _: () = assert!(offset_of!(Source, flows) == 8 * Part::Flows as usize);

/// Buckets of sources, wherever they are: BPF map, mapped memory, a model checker's cells.
pub trait Sources {
    /// A bucket that has been found.
    type Bucket: Copy;
    /// What has to be hidden where they are.
    type Hide: Hide;

    /// A bucket by its index; none if there is no such bucket.
    fn bucket(&self, index: u32) -> Option<Self::Bucket>;
    /// Loads a word of the source at one of the [`SOURCES_IN_BUCKET`] ways.
    fn load(&self, bucket: Self::Bucket, way: u32, part: Part) -> u64;
    /// Compare-and-exchange on it, a full barrier. True if `seen` was there.
    fn replace(&self, bucket: Self::Bucket, way: u32, part: Part, seen: u64, new: u64) -> bool;
    /// Stores the word that is for people.
    fn set_word(&self, bucket: Self::Bucket, way: u32, word: u64);
}

/// A source that is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Its fingerprint.
    pub fingerprint: u64,
    /// Its masked [`super::source_word`].
    pub word: u64,
    /// The two buckets where it may be, different ones.
    pub homes: [u32; 2],
    /// The present, nanoseconds of the coarse monotonic clock.
    pub now_ns: u64,
    /// The most nanoseconds that any source can save up, of whichever service: who has paid up to that long ago owes nothing.
    pub longest_burst_ns: u64,
}

/// The place of a source: that which it has, or one that it takes, of nobody or of another that is as good as nobody. None if there is no such place: then it
/// goes unlimited, for whoever sends from many prefixes must not keep others out.
#[inline(always)]
pub fn place<S: Sources>(sources: &S, wanted: &Wanted) -> Option<Place> {
    let mut attempt = 0;
    // Who is outrun by another CPU may find that it has taken the place for the same source.
    while attempt < 2 {
        let [first, second] = wanted.homes;
        let one = look_in(sources, sources.bucket(first)?, wanted);
        let other = look_in(sources, sources.bucket(second)?, wanted);
        let held = one.held | (other.held << SOURCES_IN_BUCKET);
        let free = one.free | (other.free << SOURCES_IN_BUCKET);
        if held | free == 0 {
            return None;
        }
        // Nobody's first: whoever has been here before may come again, and is known then.
        let empty = free >> EMPTY_SHIFT;
        let is_any_empty = is_some::<S::Hide>(empty as u64) as u32;
        let free = free & ALL_PLACES & (empty | is_any_empty.wrapping_sub(1));
        const { assert!(2 * SOURCES_IN_BUCKET == 8) };
        let at = lowest(if held != 0 { held } else { free });
        // 0 or 1.
        let home = at / SOURCES_IN_BUCKET;
        let place = Place {
            index: first ^ ((first ^ second) * home),
            way: S::Hide::blur(at % SOURCES_IN_BUCKET),
        };
        if held != 0 || take(sources, place, wanted) {
            return Some(place);
        }
        attempt += 1;
    }
    None
}

/// Places of a bucket, a bit for each.
struct Found {
    /// The wanted source has them: one, or none, or more for a moment after a race.
    held: u32,
    /// They can be taken; and from [`EMPTY_SHIFT`] on, those among them that are nobody's.
    free: u32,
}

/// A bit for each place of two buckets.
const ALL_PLACES: u32 = (1 << (2 * SOURCES_IN_BUCKET)) - 1;
/// Above those of two buckets.
const EMPTY_SHIFT: u32 = 2 * SOURCES_IN_BUCKET;

#[inline(always)]
fn look_in<S: Sources>(sources: &S, bucket: S::Bucket, wanted: &Wanted) -> Found {
    let mut found = Found { held: 0, free: 0 };
    let mut way = 0;
    while way < SOURCES_IN_BUCKET {
        let fingerprint = sources.load(bucket, way, Part::Fingerprint);
        let paid_ns = sources.load(bucket, way, Part::Paid);
        let flows = sources.load(bucket, way, Part::Flows);
        let is_other = is_some::<S::Hide>(fingerprint ^ wanted.fingerprint);
        let is_empty = 1 ^ is_some::<S::Hide>(fingerprint) as u32;
        found.held |= (1 ^ is_other as u32) << way;
        found.free |= is_empty << (EMPTY_SHIFT + way);
        found.free |= is_free::<S::Hide>([fingerprint, paid_ns, flows], wanted) << way;
        way += 1;
    }
    found
}

/// 1 if a place with these words is nobody's, or of a source that owes nothing and has no flow, else 0; without a branch.
#[inline(always)]
fn is_free<H: Hide>([fingerprint, paid_ns, flows]: [u64; 3], wanted: &Wanted) -> u32 {
    // What [`saved_up`] says, in one comparison.
    let since = wanted.now_ns.wrapping_sub(paid_ns);
    let ahead = AHEAD_NS - 1;
    let owes = is_some::<H>(paid_ns)
        & below::<H>(
            since.wrapping_add(ahead),
            wanted.longest_burst_ns.wrapping_add(ahead),
        );
    (1 ^ (is_some::<H>(fingerprint) & (is_some::<H>(flows) | owes))) as u32
}

/// Takes a place that was free. False if another was faster.
#[inline(always)]
fn take<S: Sources>(sources: &S, place: Place, wanted: &Wanted) -> bool {
    let Some(bucket) = sources.bucket(place.index) else {
        return false;
    };
    let way = place.way;
    let holder = sources.load(bucket, way, Part::Fingerprint);
    let paid_ns = sources.load(bucket, way, Part::Paid);
    let flows = sources.load(bucket, way, Part::Flows);
    if is_free::<S::Hide>([holder, paid_ns, flows], wanted) == 0
        || !sources.replace(bucket, way, Part::Fingerprint, holder, wanted.fingerprint)
    {
        return false;
    }
    sources.set_word(bucket, way, wanted.word);
    // What the holder has left, and not what another CPU has added for this source meanwhile.
    if paid_ns != 0 {
        sources.replace(bucket, way, Part::Paid, paid_ns, 0);
    }
    if flows != 0 {
        sources.replace(bucket, way, Part::Flows, flows, 0);
    }
    true
}

/// Has the source at a place pay for a new flow. False if it has not saved up as much.
///
/// Who could pay, but was outrun each time, goes unpaid: [`TRIES`] others have paid for it to happen. So of `n` CPUs that open flows of one source at the
/// same moment `n - 1` go unpaid for [`TRIES`] that are paid, at worst.
#[inline(always)]
pub fn pay<S: Sources>(
    sources: &S,
    place: Place,
    now_ns: u64,
    cost_ns: u64,
    burst_ns: u64,
) -> bool {
    let Some(bucket) = sources.bucket(place.index) else {
        return true;
    };
    let mut tries = 0;
    while tries < TRIES {
        let seen = sources.load(bucket, place.way, Part::Paid);
        let Some(paid) = paid_after(seen, now_ns, cost_ns, burst_ns) else {
            return false;
        };
        if sources.replace(bucket, place.way, Part::Paid, seen, paid) {
            return true;
        }
        tries += 1;
    }
    // So many others have paid at this moment, and it could have.
    true
}

/// Up to when a source has paid after one more flow; none if it has not saved up as much.
#[inline(always)]
#[must_use]
pub const fn paid_after(paid_ns: u64, now_ns: u64, cost_ns: u64, burst_ns: u64) -> Option<u64> {
    let saved_ns = saved_up(paid_ns, now_ns, burst_ns);
    if saved_ns < cost_ns {
        return None;
    }
    let paid_ns = now_ns.wrapping_sub(saved_ns - cost_ns);
    // Zero is who has never paid.
    Some(if paid_ns == 0 { 1 } else { paid_ns })
}

/// Nanoseconds that a source has saved up which has paid up to a moment: all that it can if it has never paid. As with [`crate::counters::spend`], but
/// that what is saved up may reach back to before the clock began: a host that has just started gives bursts too.
#[inline(always)]
#[must_use]
pub const fn saved_up(paid_ns: u64, now_ns: u64, burst_ns: u64) -> u64 {
    let since = now_ns.wrapping_sub(paid_ns);
    let ahead = paid_ns.wrapping_sub(now_ns);
    if paid_ns == 0 {
        burst_ns
    } else if ahead.wrapping_sub(1) < AHEAD_NS - 1 {
        // Not a moment of another clock, which would forgive all debts, but one of another CPU.
        0
    } else if since < burst_ns {
        since
    } else {
        burst_ns
    }
}

/// Whether a source has as many flows as it may have.
#[inline(always)]
#[must_use]
pub const fn is_full(flows: u64, limit: u32) -> bool {
    (flows & (OPENED - 1)) + (flows >> 32) >= limit as u64
}

/// Whether the source at a place has as many flows as it may have.
#[inline(always)]
pub fn has_enough<S: Sources>(sources: &S, place: Place, limit: u32) -> bool {
    match sources.bucket(place.index) {
        Some(bucket) => is_full(sources.load(bucket, place.way, Part::Flows), limit),
        None => false,
    }
}

/// Counts one more flow of the source at a place. False if it has as many as it may have.
#[inline(always)]
pub fn count<S: Sources>(sources: &S, place: Place, limit: u32) -> bool {
    let Some(bucket) = sources.bucket(place.index) else {
        return true;
    };
    let mut tries = 0;
    while tries < TRIES {
        let seen = sources.load(bucket, place.way, Part::Flows);
        if is_full(seen, limit) {
            return false;
        }
        if sources.replace(
            bucket,
            place.way,
            Part::Flows,
            seen,
            seen.wrapping_add(OPENED),
        ) {
            return true;
        }
        tries += 1;
    }
    // It is not counted now, but with the daemon's next count.
    true
}

#[cfg(test)]
mod tests;
