//! The flow stage: [`lb_common::flow::steer`] on the maps.

mod affinity;
mod v4;
mod v6;

use core::{
    intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg, atomic_xchg, is_val_statically_known},
    marker::PhantomData,
};

use lb_common::{
    backend::{Backend, BackendState},
    clock::Tick,
    flow::{
        FlowKey,
        bucket::{Facts, WAYS},
        copy::{self, Kind, Outcome},
        open,
        steer::{self, Known, Steered, World},
        table::{self, Entry, Look, Memory, Place, Subject},
        word::{BackendRef, Word},
    },
    guard::Passed,
    maglev::{Slot, TableRef, slot_index},
    nat::TranslationWord,
    tcp,
};

pub(crate) use self::affinity::favour;
use crate::{
    family::Family,
    hide::{self, Hidden},
    maps, nat,
    parse::Segment,
    watch,
};

/// What identifies a flow, as the entries of a table hold it.
pub(crate) trait Held: FlowKey {
    /// An entry.
    type Entry;
    /// A bucket, which begins with [`WAYS`] entries.
    type Bucket;

    /// A key from the words of [`copy::Order::key`].
    fn of_words(words: [u64; 3]) -> Self;
    /// Loads an entry's key.
    fn load(entry: *mut Self::Entry) -> Self;
    /// Whether an entry's key is this one.
    fn is_in(&self, entry: *mut Self::Entry) -> bool;
    /// 0 if an entry's key is this one, or is like it in what differs most; else any number. Without a branch.
    fn differs(&self, entry: *mut Self::Entry) -> u64;
    /// Stores it as an entry's key.
    fn store(&self, entry: *mut Self::Entry);
    /// Where an entry's value is.
    fn value(entry: *mut Self::Entry) -> *mut u64;
}

type BucketOf<T> = <<T as Table>::Key as Held>::Bucket;
type EntryOf<T> = <<T as Table>::Key as Held>::Entry;

/// A table: the flow table in one version of IP, or that of clients.
pub(crate) trait Table: nat::Carry {
    /// An address.
    type Address: Copy;
    /// What identifies a flow.
    type Key: Held;

    /// The key of a client's flow.
    fn key(client: Self::Address, port: u16, service: u16) -> Self::Key;
    /// How many buckets there are.
    fn buckets() -> u32;
    /// A bucket.
    fn bucket(index: u32) -> Option<*mut <Self::Key as Held>::Bucket>;
    /// The facts that go with it.
    fn facts(index: u32) -> Option<*mut Facts>;
    /// How many buckets of translations there are: as many as of flows, or 0 if no service translates.
    fn nat_buckets() -> u32;
    /// The translations that go with a bucket.
    fn translations(index: u32) -> Option<*mut lb_common::nat::Bucket>;
    /// [`Memory::best_offer`], the present being a tick's number.
    fn best_offer(index: u32, now: u32) -> u32;
}

/// The backend for a segment of an established flow that can be forwarded; none for anything else.
#[inline(always)]
pub(crate) fn established<T: Table>(
    service: u16,
    segment: &Segment,
    client: T::Address,
) -> Option<Known<*const Backend>> {
    let key = T::key(client, segment.source_port, service);
    steer::established(&Maps::<T>::NEW, &key, &segment.tcp, maps::now())
}

/// Opens a flow whose SYN can go the straight way, and gives the id of its backend; 0 if it cannot.
#[inline(always)]
pub(crate) fn open<F: Family>(
    service: u16,
    segment: &Segment,
    client: <F as Table>::Address,
) -> u32 {
    let [first, second] = F::as_words(client);
    let ends = ((segment.source_port as u64) << 16) | service as u64;
    let what = ((segment.tcp.seq as u64) << 8) | segment.tcp.flags as u64;
    open_by_value::<F>(first, second, ends, what)
}

/// By value, and a function of its own, for its stack: see [`open`].
#[inline(never)]
fn open_by_value<F: Family>(first: u64, second: u64, ends: u64, what: u64) -> u32 {
    let client = F::of_words([first, second]);
    let key = F::key(client, (ends >> 16) as u16, ends as u16);
    let segment = tcp::Segment {
        seq: (what >> 8) as u32,
        flags: what as u8,
        payload: false,
    };
    open::open(&Maps::<F>::NEW, &key, &segment, maps::now())
}

/// The same for services whose flows are translated.
#[inline(always)]
pub(crate) fn established_translated<T: Table>(
    key: &T::Key,
    segment: &Segment,
) -> Option<Known<*const Backend>> {
    steer::established(&Maps::<T, true, true>::NEW, key, &segment.tcp, maps::now())
}

/// The backend of any other segment: finds, makes or changes the entry of its flow.
#[inline(always)]
pub(crate) fn otherwise<T: Table>(service: u16, segment: &Segment, client: T::Address) -> Steered {
    let key = T::key(client, segment.source_port, service);
    steer::otherwise(&Maps::<T>::NEW, &key, &segment.tcp, maps::now())
}

/// The same for services whose flows are translated. Where the flow's entry is, if it has one, is noted for what comes next.
#[inline(always)]
pub(crate) fn translated<T: Table>(key: &T::Key, segment: &Segment) -> Steered {
    steer::otherwise(&Maps::<T, true>::NEW, key, &segment.tcp, maps::now())
}

/// The value of a flow's young or pinned entry, if it is found at a glance.
#[inline(always)]
pub(crate) fn glance<T: Table>(key: &T::Key) -> Option<Word> {
    table::glance(&Maps::<T>::NEW, key).map(|glimpse| glimpse.word)
}

/// Looks for an entry of a flow.
#[inline(always)]
pub(crate) fn look<T: Table>(subject: &Subject<T::Key>, look: &Look) -> Option<Entry> {
    table::look(&Maps::<T>::NEW, subject, look)
}

/// What a look for a flow is for.
#[inline(always)]
pub(crate) fn subject<T: Table>(key: T::Key) -> Subject<T::Key> {
    Subject {
        key,
        homes: Maps::<T>::NEW.homes(&key),
        now: maps::now(),
    }
}

/// The entry at a place, read so that its key and its value belong together. None if nobody can tell at this moment, or there is none.
#[inline(always)]
pub(crate) fn at<T: Table>(place: Place) -> Option<(T::Key, Word)> {
    let bucket = T::bucket(place.index)?;
    let entry = entry::<T>(bucket, place.way);
    let value = T::Key::value(entry);
    // SAFETY: an entry of the map. Volatile: others write it meanwhile.
    let word = Word(unsafe { value.read_volatile() });
    let key = T::Key::load(entry);
    // SAFETY: as above.
    let is_whole = word.is_entry() && unsafe { value.read_volatile() } == word.0;
    if is_whole { Some((key, word)) } else { None }
}

/// Whether nothing is at a place.
#[inline(always)]
pub(crate) fn is_empty<T: Table>(place: Place) -> bool {
    match T::bucket(place.index) {
        Some(bucket) => {
            let value = value::<T>(bucket, place.way);
            // SAFETY: an entry of the map. Volatile: others write it meanwhile.
            unsafe { value.read_volatile() == Word::EMPTY.0 }
        }
        None => false,
    }
}

/// Changes the value at a place from what was seen.
#[inline(always)]
pub(crate) fn replace<T: Table>(place: Place, seen: Word, new: Word) -> bool {
    table::replace(&Maps::<T>::NEW, place, seen, new)
}

/// The backend of a client's flow, by id, for what concerns the flow and does not come from the client; 0 is none.
#[inline(always)]
pub(crate) fn concerned<T: Table>(service: u16, client: T::Address, port: u16) -> u32 {
    let key = T::key(client, port, service);
    steer::concerned(&Maps::<T>::NEW, &key, maps::now())
}

/// The same of a service whose flows are translated. Where the flow's entry is, if it has one, is noted for what comes next.
#[inline(always)]
pub(crate) fn concerned_translated<T: Table>(key: &T::Key) -> u32 {
    steer::concerned(&Maps::<T, true>::NEW, key, maps::now())
}

/// Inserts an entry for the daemon, with the fact that goes with it.
#[inline(always)]
pub(crate) fn copy<T: Table>(
    words: [u64; 3],
    word: u64,
    translation: Option<u64>,
    first_seen: u32,
    kind: u32,
) -> Outcome {
    let maps = Maps::<T>::NEW;
    let key = T::Key::of_words(words);
    let subject = Subject {
        key,
        homes: maps.homes(&key),
        now: maps::now(),
    };
    match copy::insert(&maps, &subject, Word(word), kind == Kind::Rescue as u32) {
        Ok(place) => {
            note_first_seen::<T>(place, first_seen);
            if let Some(translation) = translation {
                nat::copy::<T>(place, &key, Word(word), TranslationWord(translation));
            }
            Outcome::Done
        }
        Err(outcome) => outcome,
    }
}

/// The maps as one packet sees them; of a service whose flows are translated, or not; and if translations are needed at once, so that the cache
/// is to fetch them with their entries.
struct Maps<T, const TRANSLATES: bool = false, const AT_ONCE: bool = false>(PhantomData<T>);

impl<T, const TRANSLATES: bool, const AT_ONCE: bool> Maps<T, TRANSLATES, AT_ONCE> {
    const NEW: Self = Self(PhantomData);
}

#[inline(always)]
fn entry<T: Table>(bucket: *mut BucketOf<T>, way: u32) -> *mut EntryOf<T> {
    // SAFETY: in bounds, which the verifier proves.
    unsafe { bucket.cast::<EntryOf<T>>().add(within_bucket(way)) }
}

/// A way as an index that the verifier (6.1) sees to be below [`WAYS`]. It is anyway, so the compiler would leave out what shows it; which is well if
/// the way is a constant.
#[inline(always)]
pub(crate) fn within_bucket(way: u32) -> usize {
    if is_val_statically_known(way) {
        way as usize
    } else {
        (hide::number(u64::from(way)) & u64::from(WAYS - 1)) as usize
    }
}

#[inline(always)]
fn value<T: Table>(bucket: *mut BucketOf<T>, way: u32) -> *mut u64 {
    T::Key::value(entry::<T>(bucket, way))
}

impl<T: Table, const TRANSLATES: bool, const AT_ONCE: bool> Memory
    for Maps<T, TRANSLATES, AT_ONCE>
{
    type Key = T::Key;
    type Bucket = *mut BucketOf<T>;
    type Hide = Hidden;

    const WAYS: u32 = WAYS;

    #[inline(always)]
    fn homes(&self, key: &T::Key) -> [u32; 2] {
        key.homes(&maps::flow_seed(), T::buckets())
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<*mut BucketOf<T>> {
        if AT_ONCE {
            nat::touch::<T>(index);
        }
        T::bucket(index)
    }

    /// By a load that nothing waits for: BPF has no other means.
    #[inline(always)]
    fn fetch(&self, index: u32) {
        if let Some(bucket) = T::bucket(index) {
            // SAFETY: an entry of the map.
            let _ = unsafe { bucket.cast::<u64>().read_volatile() };
        }
    }

    #[inline(always)]
    fn key(&self, bucket: *mut BucketOf<T>, way: u32) -> T::Key {
        T::Key::load(entry::<T>(bucket, way))
    }

    #[inline(always)]
    fn holds(&self, bucket: *mut BucketOf<T>, way: u32, key: &T::Key) -> bool {
        key.is_in(entry::<T>(bucket, way))
    }

    #[inline(always)]
    fn differs(&self, bucket: *mut BucketOf<T>, way: u32, key: &T::Key) -> u64 {
        key.differs(entry::<T>(bucket, way))
    }

    #[inline(always)]
    fn value(&self, bucket: *mut BucketOf<T>, way: u32) -> Word {
        // SAFETY: an entry of the map. Volatile: others write it meanwhile. On x86-64 every load has acquire ordering.
        Word(unsafe { value::<T>(bucket, way).read_volatile() })
    }

    #[inline(always)]
    fn set_key(&self, bucket: *mut BucketOf<T>, way: u32, key: &T::Key) {
        key.store(entry::<T>(bucket, way));
    }

    #[inline(always)]
    fn replace(&self, bucket: *mut BucketOf<T>, way: u32, seen: Word, new: Word) -> bool {
        // SAFETY: an aligned word of the map.
        let (_, replaced) = unsafe {
            atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(value::<T>(bucket, way), seen.0, new.0)
        };
        if replaced {
            watch::changed(seen, new);
        }
        replaced
    }

    #[inline(always)]
    fn publish(&self, bucket: *mut BucketOf<T>, way: u32, new: Word) {
        // SAFETY: an aligned word of the map. The old value was busy, by our hand.
        let _busy = unsafe { atomic_xchg::<u64, { SeqCst }>(value::<T>(bucket, way), new.0) };
    }

    #[inline(always)]
    fn best_offer(&self, index: u32, now: Tick) -> u32 {
        T::best_offer(index, now.0)
    }

    #[inline(always)]
    fn carry_facts(&self, from: Place, to: Place) {
        if let (Some(source), Some(copy)) = (first_seen::<T>(from), first_seen::<T>(to)) {
            // SAFETY: entries of the map.
            unsafe { copy.write_volatile(source.read_volatile()) };
        }
        if T::nat_buckets() != 0 {
            nat::carry::<T>(from, to);
        }
    }
}

/// What a bucket offers a newcomer, of either table of flows. Each has a global function, which the verifier walks through once: that of 6.1 would not come
/// to an end of all the ways that lead here.
#[inline(always)]
fn best_offer<T: Table>(index: u32, now: u32) -> u32 {
    table::best_offer(&Maps::<T>::NEW, index, Tick(now))
}

#[inline(always)]
pub(crate) fn note_first_seen<T: Table>(place: Place, tick: u32) {
    if let Some(first_seen) = first_seen::<T>(place) {
        // SAFETY: an entry of the map.
        unsafe { first_seen.write_volatile(tick) };
    }
}

#[inline(always)]
fn first_seen<T: Table>(place: Place) -> Option<*mut u32> {
    let facts = T::facts(place.index)?;
    // SAFETY: as in `entry`.
    Some(unsafe {
        core::ptr::addr_of_mut!((*facts).first_seen)
            .cast::<u32>()
            .add(within_bucket(place.way))
    })
}

impl<T: Table, const TRANSLATES: bool, const AT_ONCE: bool> World for Maps<T, TRANSLATES, AT_ONCE> {
    const TRANSLATES: bool = TRANSLATES;

    type Backend = *const Backend;

    #[inline(always)]
    fn slot(&self, key: &T::Key, attempt: u32) -> Option<Slot> {
        let service = maps::service(key.service())?;
        // SAFETY: an entry of the map; volatile is what the daemon may write meanwhile. Should it write another seed, a flow that begins in
        // that moment is placed by halves of both, which is as good as any place.
        let (table, seed, affinity) = unsafe {
            (
                TableRef(core::ptr::addr_of!((*service).table).read_volatile()),
                (*service).seed,
                core::ptr::addr_of!((*service).affinity).read_volatile(),
            )
        };
        if table.size() == 0 {
            return None;
        }
        maps::slot(
            table,
            slot_index(
                key.placed_by(affinity).client_word(&seed),
                &seed,
                attempt,
                table.size(),
            ),
        )
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<(*const Backend, BackendState)> {
        maps::backend(id)
    }

    #[inline(always)]
    fn buckets(&self) -> u32 {
        T::buckets()
    }

    #[inline(always)]
    fn may_adopt(&self) -> bool {
        maps::may_adopt(maps::now_ns())
    }

    #[inline(always)]
    fn is_held(&self) -> bool {
        maps::is_held()
    }

    #[inline(always)]
    fn note_promotion(&self, place: Place) {
        note_first_seen::<T>(place, maps::now().0);
    }

    #[inline(always)]
    fn note_entry(&self, place: Place) {
        if TRANSLATES {
            maps::hand_on_entry(place);
        }
    }

    #[inline(always)]
    fn answers(&self, place: Place) -> Option<bool> {
        if TRANSLATES {
            nat::answers::<T>(place)
        } else {
            None
        }
    }

    #[inline(always)]
    fn passed(&self) -> Passed {
        if maps::guards() {
            maps::passed()
        } else {
            Passed::NOTHING
        }
    }

    #[inline(always)]
    fn barred(&self) -> u32 {
        if TRANSLATES {
            maps::handed_on().barred
        } else {
            0
        }
    }

    #[inline(always)]
    fn favoured(&self) -> BackendRef {
        BackendRef::of_raw(maps::handed_on().favoured)
    }
}
