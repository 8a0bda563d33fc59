//! How CPUs and the daemon share the buckets: lookups, insertion and relocation without locks.
//!
//! The value word owns the entry. A compare-and-exchange to [`Word::BUSY`] claims a place, then the key is written, then the
//! value is exchanged in. Compare-and-exchange and exchange are full barriers (so the BPF instruction set promises); plain
//! loads need x86-64's ordering. Nothing spins: what fails twice is given up, and the flow is served unpinned.
//!
//! The daemon only ever deletes, clamps or changes a mark, by one compare-and-exchange on the value; keys are left stale behind an empty
//! value. It never inserts and never writes a key, so a daemon killed anywhere leaves nothing half done.

use super::{
    bits,
    word::{State, Word},
};
use crate::{bits::lowest, clock::Tick, hide::Hide};

/// Buckets of entries, wherever they are: BPF map, mapped memory, a test's vector, a model checker's cells.
pub trait Memory {
    /// What identifies a flow.
    type Key: Copy + PartialEq;
    /// A bucket that has been found.
    type Bucket: Copy;
    /// What has to be hidden where they are.
    type Hide: Hide;

    /// Entries in a bucket.
    const WAYS: u32;

    /// The two buckets, different ones, where a key may be.
    fn homes(&self, key: &Self::Key) -> [u32; 2];
    /// A bucket by its index; none if there is no such bucket.
    fn bucket(&self, index: u32) -> Option<Self::Bucket>;
    /// Has the cache fetch a bucket, which may be needed soon.
    #[inline(always)]
    fn fetch(&self, _index: u32) {}
    /// Loads a key. It means something only between two equal loads of its value.
    fn key(&self, bucket: Self::Bucket, way: u32) -> Self::Key;
    /// Whether a place holds `key`: as [`Memory::key`], which it need not load whole.
    #[inline(always)]
    fn holds(&self, bucket: Self::Bucket, way: u32, key: &Self::Key) -> bool {
        self.key(bucket, way) == *key
    }
    /// 0 if a place holds `key`, or may hold it, as far as is told without a branch; else any number. It means as little as [`Memory::key`].
    #[inline(always)]
    fn differs(&self, bucket: Self::Bucket, way: u32, key: &Self::Key) -> u64 {
        !self.holds(bucket, way, key) as u64
    }
    /// Loads a value (acquire).
    fn value(&self, bucket: Self::Bucket, way: u32) -> Word;
    /// Stores the key of a place that is busy by our hand.
    fn set_key(&self, bucket: Self::Bucket, way: u32, key: &Self::Key);
    /// Compare-and-exchange on a value, a full barrier. True if `seen` was there.
    fn replace(&self, bucket: Self::Bucket, way: u32, seen: Word, new: Word) -> bool;
    /// Exchange of the value of a place that is busy by our hand, a full barrier.
    fn publish(&self, bucket: Self::Bucket, way: u32, new: Word);
    /// The best that a bucket has to offer a newcomer, as [`best_offer`] tells it; which see. To be replaced by what calls that as a function for which
    /// the kernel's verifier has one look, and not one for each way that leads to it.
    #[inline(always)]
    fn best_offer(&self, index: u32, now: Tick) -> u32
    where
        Self: Sized,
    {
        best_offer(self, index, now)
    }
    /// Carries what goes with an entry along as it moves: the flow's translation, and facts for people. The place that it leaves is busy by our hand.
    fn carry_facts(&self, from: Place, to: Place);
}

/// A place in the table. Numbers only: the verifier (all kernels to 7.2) refuses what the compiler makes of a map's pointer that
/// shares storage with something else, as in an enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The bucket's index.
    pub index: u32,
    /// The entry within the bucket.
    pub way: u32,
}

impl Place {
    #[inline(always)]
    fn is_at(&self, index: u32, way: u32) -> bool {
        self.index == index && self.way == way
    }
}

/// An entry that was read.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Where.
    pub place: Place,
    /// Its value, as it was.
    pub word: Word,
}

impl Entry {
    /// No entry. Used instead of an option where the size of a BPF stack frame matters. (Not all of it zero: the BPF backend would call a
    /// function that clears it byte by byte.)
    pub const NONE: Self = Self {
        place: Place {
            index: u32::MAX,
            way: 0,
        },
        word: Word::EMPTY,
    };

    /// Whether it is one.
    #[inline(always)]
    pub const fn exists(&self) -> bool {
        self.word.0 != Word::EMPTY.0
    }
}

/// What a new entry may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Vacant places, then the oldest embryo, then a place freed by moving an entry to its other bucket: for SYNs.
    Any,
    /// Vacant places, then a place freed by moving an entry: for entries that move to another table, and take nothing from others.
    Harmless,
    /// Vacant places only: for adoption.
    VacantOnly,
}

/// How an insertion ended.
#[derive(Clone, Copy, Debug)]
pub enum Inserted {
    /// The entry is in the table.
    At(Place),
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
    if !memory.holds(bucket, way, key) {
        return None;
    }
    let first = memory.value(bucket, way);
    if !first.is_entry() || !memory.holds(bucket, way, key) {
        return None;
    }
    let second = memory.value(bucket, way);
    if first == second {
        return Some(second);
    }
    if !second.is_entry() || !memory.holds(bucket, way, key) {
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

/// An entry at which [`glance`] has looked.
#[derive(Clone, Copy, Debug)]
pub struct Glimpse<B> {
    bucket: B,
    /// Where.
    pub place: Place,
    /// Its value, as it was.
    pub word: Word,
}

impl<B: Copy> Glimpse<B> {
    /// Changes the value from what was seen, one compare-and-exchange.
    #[inline(always)]
    pub fn replace<M: Memory<Bucket = B>>(&self, memory: &M, new: Word) -> bool {
        memory.replace(self.bucket, self.place.way, self.word, new)
    }
}

/// Looks for a young or pinned entry of `key` that nobody is changing: the way of most packets, inlined and as short as can be.
///
/// None is not the last word, [`look`] has it: the entry may be changing, or moving between its homes.
///
/// In a table that fills, many are in their second home: the processor would wait for memory once more to find them there, after it has waited for the first. So
/// both are fetched at the same time.
#[inline(always)]
pub fn glance<M: Memory>(memory: &M, key: &M::Key) -> Option<Glimpse<M::Bucket>> {
    const { assert!(M::WAYS <= 8) };
    let [first, second] = memory.homes(key);
    memory.fetch(second);
    if let Some(glimpse) = glance_in(memory, first, key) {
        return Some(glimpse);
    }
    glance_in(memory, second, key)
}

/// The same in one of the two buckets.
///
/// Which place it is is told without a branch, that would be guessed wrong as often as not: what comes after waits for the bucket, and then begins anew.
/// Of those that may hold the key two are looked at, since a former entry of the key may have left it behind.
#[inline(always)]
fn glance_in<M: Memory>(memory: &M, index: u32, key: &M::Key) -> Option<Glimpse<M::Bucket>> {
    let bucket = memory.bucket(index)?;
    let mut holders = bits::holders(memory, bucket, key);
    let mut looks = 0;
    while looks < 2 {
        if holders == 0 {
            return None;
        }
        let way = lowest(holders) % M::WAYS;
        let word = memory.value(bucket, way);
        if word.is_open() && memory.holds(bucket, way, key) && memory.value(bucket, way) == word {
            return Some(Glimpse {
                bucket,
                place: Place { index, way },
                word,
            });
        }
        holders &= holders.wrapping_sub(1);
        looks += 1;
    }
    None
}

/// Which entries of a key a look is for.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Not the entry at this place.
    beside: Place,
    /// Not what may be a copy of this value, made to move it.
    no_copy_of: Word,
    /// Only of this age.
    age: Age,
}

/// How old an entry is that a look is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Any,
    Nascent,
    Live,
}

impl Look {
    /// The first entry of any kind.
    pub const ANY: Self = Self {
        beside: Place {
            index: u32::MAX,
            way: 0,
        },
        no_copy_of: Word::EMPTY,
        age: Age::Any,
    };

    /// An embryo or a challenger.
    pub const NASCENT: Self = Self {
        age: Age::Nascent,
        ..Self::ANY
    };

    /// One that is neither.
    pub const LIVE: Self = Self {
        age: Age::Live,
        ..Self::ANY
    };

    /// The other entry of a pair.
    #[inline(always)]
    pub const fn twin_of(entry: &Entry) -> Self {
        Self {
            beside: entry.place,
            no_copy_of: entry.word,
            age: Age::Any,
        }
    }

    #[inline(always)]
    fn takes(&self, index: u32, way: u32, word: Word) -> bool {
        !self.beside.is_at(index, way)
            && !may_be_copies(self.no_copy_of, word)
            && match self.age {
                Age::Any => true,
                Age::Nascent => word.is_nascent(),
                Age::Live => word.is_live(),
            }
    }
}

/// Looks for an entry in both homes of its key once.
#[inline(always)]
pub fn look<M: Memory>(memory: &M, subject: &Subject<M::Key>, look: &Look) -> Option<Entry> {
    let mut word = Word::EMPTY;
    let mut home = 0;
    while home < 2 {
        let index = if home == 0 {
            subject.homes[0]
        } else {
            subject.homes[1]
        };
        let way = look_in(memory, index, &subject.key, look, &mut word);
        if way < M::WAYS {
            return Some(Entry {
                place: Place { index, way },
                word,
            });
        }
        home += 1;
    }
    None
}

/// The way of an entry in one bucket, and its value; [`Memory::WAYS`] if there is none.
#[inline(never)]
fn look_in<M: Memory>(memory: &M, index: u32, key: &M::Key, look: &Look, found: &mut Word) -> u32 {
    let Some(bucket) = memory.bucket(index) else {
        return M::WAYS;
    };
    let mut way = 0;
    while way < M::WAYS {
        if let Some(word) = read(memory, bucket, way, key)
            && look.takes(index, way, word)
        {
            *found = word;
            return M::Hide::blur(way);
        }
        way += 1;
    }
    M::WAYS
}

/// Changes a value from what was seen, one compare-and-exchange.
#[inline(always)]
pub fn replace<M: Memory>(memory: &M, place: Place, seen: Word, new: Word) -> bool {
    match memory.bucket(place.index) {
        Some(bucket) => memory.replace(bucket, place.way, seen, new),
        None => false,
    }
}

/// Reads a place again, if it still holds `key`.
#[inline(always)]
pub fn reread<M: Memory>(memory: &M, place: Place, key: &M::Key) -> Option<Word> {
    read(memory, memory.bucket(place.index)?, place.way, key)
}

/// Claims a place that held `seen`, and fills it.
#[inline(never)]
fn occupy<M: Memory>(memory: &M, place: &Place, seen: Word, key: &M::Key, word: Word) -> bool {
    take(memory, place, seen, key, word)
}

/// The same, in the midst of the caller.
#[inline(always)]
pub(super) fn take<M: Memory>(
    memory: &M,
    place: &Place,
    seen: Word,
    key: &M::Key,
    word: Word,
) -> bool {
    let Some(bucket) = memory.bucket(place.index) else {
        return false;
    };
    if !memory.replace(bucket, place.way, seen, Word::BUSY) {
        return false;
    }
    fill(memory, bucket, place.way, key, word);
    true
}

/// Fills a place that is busy by our hand.
#[inline(always)]
fn fill<M: Memory>(memory: &M, bucket: M::Bucket, way: u32, key: &M::Key, word: Word) {
    memory.set_key(bucket, way, key);
    memory.publish(bucket, way, word);
}

/// A flow at a moment: what a look or an insertion is for.
#[derive(Clone, Copy, Debug)]
pub struct Subject<K> {
    /// The key.
    pub key: K,
    /// Its homes.
    pub homes: [u32; 2],
    /// The present, which decides what is vacant.
    pub now: Tick,
}

/// Inserts an entry that was not found: nascent with [`Claim::Any`], young with [`Claim::VacantOnly`].
///
/// At most two places are tried, then one relocation.
#[inline(always)]
pub fn insert<M: Memory>(
    memory: &M,
    subject: &Subject<M::Key>,
    word: Word,
    claim: Claim,
) -> Inserted {
    match place(memory, subject, word, claim) {
        Some(place) => settled(memory, subject, word, place),
        None => Inserted::Full,
    }
}

/// Sees to it that of the entry that has been written at a place and any other of its key one stands.
#[inline(always)]
pub(super) fn settled<M: Memory>(
    memory: &M,
    subject: &Subject<M::Key>,
    word: Word,
    place: Place,
) -> Inserted {
    // Of three CPUs one may be removed by a second while the third stands unseen behind it: look again until nobody is there.
    let mut twins = 0;
    while twins < 3 {
        match settle(memory, subject, word, &place) {
            Word::EMPTY => break,
            Word::BUSY => twins += 1,
            theirs => return Inserted::Yielded(theirs),
        }
    }
    Inserted::At(place)
}

/// [`insert`] for one who knows that the key has no other entry, or wants this one beside it.
#[inline(always)]
pub fn place<M: Memory>(
    memory: &M,
    subject: &Subject<M::Key>,
    word: Word,
    claim: Claim,
) -> Option<Place> {
    let mut place = Place { index: 0, way: 0 };
    let taken = take_place(memory, subject, word, claim, &mut place);
    let mut is_placed = taken == TAKEN;
    if taken == NOTHING_TO_TAKE && claim != Claim::VacantOnly {
        let mut at = 0;
        while at < 2 * M::WAYS && !is_placed {
            let (index, way) = if at < M::WAYS {
                (subject.homes[0], at)
            } else {
                (subject.homes[1], at - M::WAYS)
            };
            place = Place {
                index,
                way: M::Hide::blur(way),
            };
            is_placed = displace(memory, subject, word, &place);
            at += 1;
        }
    }
    if is_placed { Some(place) } else { None }
}

// How the search for a place ended: numbers, since that is what a BPF function returns.
/// A place is ours.
const TAKEN: u32 = 0;
/// There was a place, but others were faster, twice.
const LOST: u32 = 1;
/// There was no place.
const NOTHING_TO_TAKE: u32 = 2;

/// Takes the first vacant place; else, with [`Claim::Any`], the oldest embryo's.
#[inline(never)]
fn take_place<M: Memory>(
    memory: &M,
    subject: &Subject<M::Key>,
    newcomer: Word,
    claim: Claim,
    taken: &mut Place,
) -> u32 {
    let mut attempt = 0;
    while attempt < 2 {
        let mut index = subject.homes[0];
        let mut offer = memory.best_offer(index, subject.now);
        if offer < VACANT {
            let other = memory.best_offer(subject.homes[1], subject.now);
            if other > offer {
                index = subject.homes[1];
                offer = other;
            }
        }
        let is_enough = offer >= VACANT || (claim == Claim::Any && offer != NO_OFFER);
        let Some(bucket) = memory.bucket(index) else {
            return NOTHING_TO_TAKE;
        };
        if !is_enough {
            return NOTHING_TO_TAKE;
        }
        let way = offer % M::WAYS;
        let seen = memory.value(bucket, way);
        let place = Place { index, way };
        // It may be something else by now. An embryo's place is taken only where none was vacant, which the claim allows then.
        let is_free = seen.is_vacant(subject.now) || (offer < VACANT && seen.is_nascent());
        if is_free && occupy(memory, &place, seen, &subject.key, newcomer) {
            *taken = place;
            return TAKEN;
        }
        attempt += 1;
    }
    LOST
}

// What a bucket has to offer a newcomer, as a number that grows with how good that is, and whose remainder by [`Memory::WAYS`] is the way: nothing,
// an embryo's place by its age, a vacant place.
const NO_OFFER: u32 = 0;
const VACANT: u32 = 1 << 16;

/// The best that a bucket has to offer: its first vacant place, else that of its oldest embryo.
#[inline(always)]
pub fn best_offer<M: Memory>(memory: &M, index: u32, now: Tick) -> u32 {
    let Some(bucket) = memory.bucket(index) else {
        return NO_OFFER;
    };
    let mut way = 0;
    while way < M::WAYS {
        if memory.value(bucket, way).is_vacant(now) {
            return VACANT + M::Hide::blur(way);
        }
        way += 1;
    }
    // A loop of its own: in one, the verifier would follow every combination of what four places may be.
    let mut best = NO_OFFER;
    way = 0;
    while way < M::WAYS {
        let word = memory.value(bucket, way);
        let offer = (word.nascent_age(now) + 1) * M::WAYS + M::Hide::blur(way);
        if word.is_nascent() && offer > best {
            best = offer;
        }
        way += 1;
    }
    best
}

/// Frees a place by moving its entry to that entry's other home, and fills it.
#[inline(never)]
fn displace<M: Memory>(
    memory: &M,
    subject: &Subject<M::Key>,
    newcomer: Word,
    place: &Place,
) -> bool {
    let Some(bucket) = memory.bucket(place.index) else {
        return false;
    };
    let seen = memory.value(bucket, place.way);
    if !seen.is_live() {
        return false;
    }
    let occupant = memory.key(bucket, place.way);
    if memory.value(bucket, place.way) != seen {
        return false;
    }
    let [first, second] = memory.homes(&occupant);
    let other = first ^ second ^ place.index;
    let offer = memory.best_offer(other, subject.now);
    let Some(other_bucket) = memory.bucket(other) else {
        return false;
    };
    let copy = Place {
        index: other,
        way: offer % M::WAYS,
    };
    let vacancy = memory.value(other_bucket, copy.way);
    if offer < VACANT || !vacancy.is_vacant(subject.now) {
        return false;
    }
    // Without the rescan, since the key is there already. From here until the source goes the flow has two equal entries; readers
    // may find either.
    if !occupy(memory, &copy, vacancy, &occupant, seen) {
        return false;
    }
    if memory.replace(bucket, place.way, seen, Word::BUSY) {
        // While nobody can see the newcomer: with another CPU's packet of it, facts of its own would take the place of those that are to be carried.
        memory.carry_facts(*place, copy);
        fill(memory, bucket, place.way, &subject.key, newcomer);
        return true;
    }
    withdraw(memory, &copy, &occupant, seen);
    false
}

/// Takes a copy back whose source has changed meanwhile.
///
/// The copy may have changed too, if a packet of the flow found it: then what that packet wrote is lost with it, which is no
/// more than a lost refresh, since the source still has the flow.
#[inline(never)]
fn withdraw<M: Memory>(memory: &M, copy: &Place, key: &M::Key, word: Word) {
    if replace(memory, *copy, word, Word::EMPTY) {
        return;
    }
    if let Some(changed) = reread(memory, *copy, key) {
        replace(memory, *copy, changed, Word::EMPTY);
    }
}

/// After an insertion: looks whether the key has another entry, and leaves one of the two. [`Word::EMPTY`] if it has none;
/// [`Word::BUSY`] if it had, and ours stands; else ours is gone, and this is the other's value.
///
/// Every CPU looks in the same order, so of several entries each sees the first.
#[inline(never)]
fn settle<M: Memory>(memory: &M, subject: &Subject<M::Key>, newcomer: Word, place: &Place) -> Word {
    let (homes, key) = (subject.homes, &subject.key);
    let own = Entry {
        place: *place,
        word: newcomer,
    };
    // A challenger stands beside the live entry that it challenges: that pair is no duplicate.
    let wanted = Look {
        beside: *place,
        age: if newcomer.is(State::Challenger) {
            Age::Nascent
        } else {
            Age::Any
        },
        ..Look::ANY
    };
    let Some(other) = look(memory, subject, &wanted) else {
        return Word::EMPTY;
    };
    let own_goes = if !other.word.is_nascent() {
        yield_to_live(memory, key, own, other)
    } else if !own.word.is_nascent() {
        // An adopted entry outlasts an embryo, unless a packet promotes that meanwhile.
        !replace(memory, other.place, other.word, Word::EMPTY)
            && is_live_now(memory, other.place, key)
            && replace(memory, own.place, own.word, Word::EMPTY)
    } else {
        yield_to_nascent(memory, homes, key, own, other)
    };
    if own_goes { other.word } else { Word::BUSY }
}

/// Our own entry beside a live one: true if ours goes.
#[inline(always)]
fn yield_to_live<M: Memory>(memory: &M, key: &M::Key, own: Entry, other: Entry) -> bool {
    if replace(memory, own.place, own.word, Word::EMPTY) {
        return true;
    }
    // A packet promoted our embryo meanwhile. It has seen its SYN, an adopted entry has not, and goes.
    if own.word.is_nascent()
        && other.word.is(State::Young)
        && other.word.has(Word::FOREIGN)
        && is_live_now(memory, own.place, key)
    {
        replace(memory, other.place, other.word, Word::EMPTY);
    }
    false
}

/// Our own embryo beside another: true if ours goes.
///
/// The later of two embryos goes. If it cannot, because a packet promoted it meanwhile, then it is worth more than the earlier,
/// and the earlier goes. (Were the later merely to yield, it could be promoted between look and leave.)
#[inline(always)]
fn yield_to_nascent<M: Memory>(
    memory: &M,
    homes: [u32; 2],
    key: &M::Key,
    own: Entry,
    other: Entry,
) -> bool {
    let own_home = own.place.index == homes[1];
    let other_home = other.place.index == homes[1];
    let own_is_later = if own_home == other_home {
        own.place.way > other.place.way
    } else {
        own_home
    };
    let (earlier, later) = if own_is_later {
        (other, own)
    } else {
        (own, other)
    };
    if replace(memory, later.place, later.word, Word::EMPTY) {
        return own_is_later;
    }
    is_live_now(memory, later.place, key)
        && replace(memory, earlier.place, earlier.word, Word::EMPTY)
        && !own_is_later
}

#[inline(always)]
fn is_live_now<M: Memory>(memory: &M, place: Place, key: &M::Key) -> bool {
    match reread(memory, place, key) {
        Some(word) => word.is_live(),
        None => false,
    }
}
