//! How CPUs and the daemon share the buckets: lookups, insertion and relocation without locks.
//!
//! The value word owns the entry. A compare-and-exchange to [`Word::BUSY`] claims a place, then the key is written, then the
//! value is exchanged in. Compare-and-exchange and exchange are full barriers (so the BPF instruction set promises); plain
//! loads need x86-64's ordering. Nothing spins: what fails twice is given up, and the flow is served unpinned.
//!
//! The daemon only ever deletes or clamps, by one compare-and-exchange on the value; keys are left stale behind an empty
//! value. It never inserts and never writes a key, so a daemon killed anywhere leaves nothing half done.

use super::word::{State, Word};
use crate::clock::Tick;

/// Buckets of entries, wherever they are: BPF map, mapped memory, a test's vector, a model checker's cells.
pub trait Memory {
    /// What identifies a flow.
    type Key: Copy + PartialEq;
    /// A bucket that has been found.
    type Bucket: Copy;

    /// Entries in a bucket.
    const WAYS: u32;

    /// The two buckets, different ones, where a key may be.
    fn homes(&self, key: &Self::Key) -> [u32; 2];
    /// A bucket by its index; none if there is no such bucket.
    fn bucket(&self, index: u32) -> Option<Self::Bucket>;
    /// Loads a key. It means something only between two equal loads of its value.
    fn key(&self, bucket: Self::Bucket, way: u32) -> Self::Key;
    /// Loads a value (acquire).
    fn value(&self, bucket: Self::Bucket, way: u32) -> Word;
    /// Stores the key of a place that is busy by our hand.
    fn set_key(&self, bucket: Self::Bucket, way: u32, key: &Self::Key);
    /// Compare-and-exchange on a value, a full barrier. True if `seen` was there.
    fn replace(&self, bucket: Self::Bucket, way: u32, seen: Word, new: Word) -> bool;
    /// Exchange of the value of a place that is busy by our hand, a full barrier.
    fn publish(&self, bucket: Self::Bucket, way: u32, new: Word);
    /// Facts for people that move along with an entry.
    fn carry_facts(&self, from: Place<Self::Bucket>, to: Place<Self::Bucket>);
}

/// A place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<B> {
    /// The bucket.
    pub bucket: B,
    /// The bucket's index.
    pub index: u32,
    /// The entry within the bucket.
    pub way: u32,
}

impl<B> Place<B> {
    /// Total order of places, the same for every CPU.
    #[inline(always)]
    fn precedes(&self, other: &Self) -> bool {
        (self.index, self.way) < (other.index, other.way)
    }

    #[inline(always)]
    fn is_at(&self, index: u32, way: u32) -> bool {
        self.index == index && self.way == way
    }
}

/// An entry that was read.
#[derive(Clone, Copy, Debug)]
pub struct Entry<B> {
    /// Where.
    pub place: Place<B>,
    /// Its value, as it was.
    pub word: Word,
}

/// What a new entry may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Vacant places, then the oldest embryo, then a place freed by moving an entry to its other bucket: for SYNs.
    Any,
    /// Vacant places only: for adoption.
    VacantOnly,
}

/// How an insertion ended.
#[derive(Clone, Copy, Debug)]
pub enum Inserted<B> {
    /// The entry is in the table.
    At(Place<B>),
    /// The key had an entry already, inserted by another CPU or missed while it moved; that one stands, and not ours.
    Yielded(Word),
    /// No place.
    Full,
}

/// Reads one place: value, key, value again, so that key and value are known to belong together.
///
/// A value that changes meanwhile is read once more: a refresh or promotion by another CPU must not make the entry look gone.
#[inline(always)]
fn read<M: Memory>(memory: &M, bucket: M::Bucket, way: u32, key: &M::Key) -> Option<Word> {
    // Most places hold other keys: look at the key first, and let the loads below decide.
    if memory.key(bucket, way) != *key {
        return None;
    }
    let first = memory.value(bucket, way);
    if !first.is_entry() || memory.key(bucket, way) != *key {
        return None;
    }
    let second = memory.value(bucket, way);
    if first == second {
        return Some(second);
    }
    if !second.is_entry() || memory.key(bucket, way) != *key {
        return None;
    }
    let third = memory.value(bucket, way);
    if second == third { Some(third) } else { None }
}

/// Whether of two words of one key one can be a copy of the other, made to move it: of a contested pair, just one is
/// [`Word::SECOND`] or still nascent. Where races have blurred that, the backend tells them apart; with one backend it does not
/// matter.
#[inline(always)]
const fn may_be_copies(one: Word, other: Word) -> bool {
    one.is_live()
        && other.is_live()
        && one.has(Word::SECOND) == other.has(Word::SECOND)
        && one.backend().id() == other.backend().id()
}

/// Looks in both homes once, passing over the entry `except` and copies of it.
#[inline(always)]
fn scan<M: Memory>(
    memory: &M,
    homes: [u32; 2],
    key: &M::Key,
    except: Option<Entry<M::Bucket>>,
) -> Option<Entry<M::Bucket>> {
    let mut home = 0;
    while home < 2 {
        let index = if home == 0 { homes[0] } else { homes[1] };
        if let Some(bucket) = memory.bucket(index) {
            let mut way = 0;
            while way < M::WAYS {
                let skip = match &except {
                    Some(one) => one.place.is_at(index, way),
                    None => false,
                };
                if !skip
                    && let Some(word) = read(memory, bucket, way, key)
                    && match &except {
                        Some(one) => !may_be_copies(one.word, word),
                        None => true,
                    }
                {
                    return Some(Entry {
                        place: Place { bucket, index, way },
                        word,
                    });
                }
                way += 1;
            }
        }
        home += 1;
    }
    None
}

/// Finds an entry of `key`. A miss is looked at once more, since an entry may have moved between the looks.
#[inline(always)]
pub fn find<M: Memory>(memory: &M, homes: [u32; 2], key: &M::Key) -> Option<Entry<M::Bucket>> {
    match scan(memory, homes, key, None) {
        None => scan(memory, homes, key, None),
        found => found,
    }
}

/// Finds the other entry of a contested key, given one of the two. A miss is looked at once more here too.
#[inline(always)]
pub fn find_other<M: Memory>(
    memory: &M,
    homes: [u32; 2],
    key: &M::Key,
    one: Entry<M::Bucket>,
) -> Option<Entry<M::Bucket>> {
    match scan(memory, homes, key, Some(one)) {
        None => scan(memory, homes, key, Some(one)),
        found => found,
    }
}

/// Changes a value from what was seen, one compare-and-exchange.
#[inline(always)]
pub fn replace<M: Memory>(memory: &M, place: Place<M::Bucket>, seen: Word, new: Word) -> bool {
    memory.replace(place.bucket, place.way, seen, new)
}

/// Reads a place again, if it still holds `key`.
#[inline(always)]
pub fn reread<M: Memory>(memory: &M, place: Place<M::Bucket>, key: &M::Key) -> Option<Word> {
    read(memory, place.bucket, place.way, key)
}

/// Claims a place that held `seen`, and fills it.
#[inline(always)]
fn occupy<M: Memory>(
    memory: &M,
    place: Place<M::Bucket>,
    seen: Word,
    key: &M::Key,
    word: Word,
) -> bool {
    if !memory.replace(place.bucket, place.way, seen, Word::BUSY) {
        return false;
    }
    memory.set_key(place.bucket, place.way, key);
    memory.publish(place.bucket, place.way, word);
    true
}

/// Inserts an entry that was not found: nascent with [`Claim::Any`], young with [`Claim::VacantOnly`].
///
/// `now` decides what is vacant. Bounded: at most every place of both homes is tried once, then one embryo, then the other
/// homes of all occupants.
#[inline(always)]
pub fn insert<M: Memory>(
    memory: &M,
    homes: [u32; 2],
    key: &M::Key,
    word: Word,
    claim: Claim,
    now: Tick,
) -> Inserted<M::Bucket> {
    let mut oldest: Option<Entry<M::Bucket>> = None;
    let mut oldest_age = 0;
    let mut home = 0;
    while home < 2 {
        let index = if home == 0 { homes[0] } else { homes[1] };
        if let Some(bucket) = memory.bucket(index) {
            let mut way = 0;
            while way < M::WAYS {
                let place = Place { bucket, index, way };
                let seen = memory.value(bucket, way);
                if seen.is_vacant(now) {
                    if occupy(memory, place, seen, key, word) {
                        return settle(memory, homes, key, Entry { place, word });
                    }
                } else if seen.is_nascent()
                    && (oldest.is_none() || seen.nascent_age(now) > oldest_age)
                {
                    oldest = Some(Entry { place, word: seen });
                    oldest_age = seen.nascent_age(now);
                }
                way += 1;
            }
        }
        home += 1;
    }
    if claim == Claim::VacantOnly {
        return Inserted::Full;
    }
    if let Some(embryo) = oldest {
        return if occupy(memory, embryo.place, embryo.word, key, word) {
            settle(
                memory,
                homes,
                key,
                Entry {
                    place: embryo.place,
                    word,
                },
            )
        } else {
            Inserted::Full
        };
    }
    match relocate(memory, homes, key, word, now) {
        Some(place) => settle(memory, homes, key, Entry { place, word }),
        None => Inserted::Full,
    }
}

/// Frees a place by moving its entry to that entry's other home, and fills it.
#[inline(always)]
fn relocate<M: Memory>(
    memory: &M,
    homes: [u32; 2],
    key: &M::Key,
    word: Word,
    now: Tick,
) -> Option<Place<M::Bucket>> {
    let mut at = 0;
    while at < 2 * M::WAYS {
        let (index, way) = if at < M::WAYS {
            (homes[0], at)
        } else {
            (homes[1], at - M::WAYS)
        };
        at += 1;
        let Some(bucket) = memory.bucket(index) else {
            continue;
        };
        let source = Place { bucket, index, way };
        let seen = memory.value(bucket, way);
        if !seen.is_live() {
            continue;
        }
        let occupant = memory.key(bucket, way);
        if memory.value(bucket, way) != seen {
            continue;
        }
        let others = memory.homes(&occupant);
        let other = if others[0] == index {
            others[1]
        } else {
            others[0]
        };
        let Some(copy) = copy_to(memory, other, &occupant, seen, now) else {
            continue;
        };
        // From here the flow has two equal entries; readers may find either.
        if memory.replace(source.bucket, source.way, seen, Word::BUSY) {
            memory.carry_facts(source, copy);
            memory.set_key(source.bucket, source.way, key);
            memory.publish(source.bucket, source.way, word);
            return Some(source);
        }
        withdraw(memory, copy, &occupant, seen);
    }
    None
}

/// Puts a copy of an entry into a vacant place of bucket `index`, without the rescan: its key is there already.
#[inline(always)]
fn copy_to<M: Memory>(
    memory: &M,
    index: u32,
    key: &M::Key,
    word: Word,
    now: Tick,
) -> Option<Place<M::Bucket>> {
    let bucket = memory.bucket(index)?;
    let mut way = 0;
    while way < M::WAYS {
        let place = Place { bucket, index, way };
        let seen = memory.value(bucket, way);
        if seen.is_vacant(now) && occupy(memory, place, seen, key, word) {
            return Some(place);
        }
        way += 1;
    }
    None
}

/// Takes a copy back whose source has changed meanwhile.
///
/// The copy may have changed too, if a packet of the flow found it: then what that packet wrote is lost with it, which is no
/// more than a lost refresh, since the source still has the flow.
#[inline(always)]
fn withdraw<M: Memory>(memory: &M, copy: Place<M::Bucket>, key: &M::Key, word: Word) {
    if memory.replace(copy.bucket, copy.way, word, Word::EMPTY) {
        return;
    }
    if let Some(changed) = reread(memory, copy, key) {
        memory.replace(copy.bucket, copy.way, changed, Word::EMPTY);
    }
}

/// After an insertion: looks whether another CPU inserted the same key meanwhile, and leaves one entry of the two.
///
/// A challenger stands beside the live entry that it challenges; that pair is no duplicate.
#[inline(always)]
fn settle<M: Memory>(
    memory: &M,
    homes: [u32; 2],
    key: &M::Key,
    own: Entry<M::Bucket>,
) -> Inserted<M::Bucket> {
    let mut home = 0;
    while home < 2 {
        let index = if home == 0 { homes[0] } else { homes[1] };
        if let Some(bucket) = memory.bucket(index) {
            let mut way = 0;
            while way < M::WAYS {
                let place = Place { bucket, index, way };
                if !own.place.is_at(index, way)
                    && let Some(word) = read(memory, bucket, way, key)
                    && yields(memory, key, own, Entry { place, word })
                {
                    return Inserted::Yielded(word);
                }
                way += 1;
            }
        }
        home += 1;
    }
    Inserted::At(own.place)
}

/// Settles two entries of one key; true if our own is the one that went.
#[inline(always)]
fn yields<M: Memory>(
    memory: &M,
    key: &M::Key,
    own: Entry<M::Bucket>,
    other: Entry<M::Bucket>,
) -> bool {
    if !other.word.is_nascent() {
        if own.word.is(State::Challenger) {
            return false;
        }
        if memory.replace(own.place.bucket, own.place.way, own.word, Word::EMPTY) {
            return true;
        }
        // A packet promoted our embryo meanwhile. It has seen its SYN, an adopted entry has not, and goes.
        if own.word.is_nascent()
            && other.word.is(State::Young)
            && other.word.has(Word::FOREIGN)
            && let Some(now) = reread(memory, own.place, key)
            && now.is_live()
        {
            memory.replace(other.place.bucket, other.place.way, other.word, Word::EMPTY);
        }
        return false;
    }
    if !own.word.is_nascent() {
        // An adopted entry outlasts an embryo, unless a packet promotes that meanwhile.
        if memory.replace(other.place.bucket, other.place.way, other.word, Word::EMPTY) {
            return false;
        }
        return match reread(memory, other.place, key) {
            Some(now) if now.is_live() => {
                memory.replace(own.place.bucket, own.place.way, own.word, Word::EMPTY)
            }
            _ => false,
        };
    }
    // The higher of two embryos goes. If it cannot, because a packet promoted it meanwhile, then it is worth more than the
    // lower, and the lower goes. (Were the higher merely to yield, it could be promoted between look and leave.)
    let (lower, higher) = if own.place.precedes(&other.place) {
        (own, other)
    } else {
        (other, own)
    };
    let own_is_higher = higher.place.is_at(own.place.index, own.place.way);
    if memory.replace(
        higher.place.bucket,
        higher.place.way,
        higher.word,
        Word::EMPTY,
    ) {
        return own_is_higher;
    }
    if let Some(now) = reread(memory, higher.place, key)
        && now.is_live()
        && memory.replace(lower.place.bucket, lower.place.way, lower.word, Word::EMPTY)
    {
        return !own_is_higher;
    }
    false
}
