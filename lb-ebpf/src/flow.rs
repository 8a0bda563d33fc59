//! The flow stage: [`lb_common::flow::steer`] on the maps.

use core::intrinsics::{
    AtomicOrdering::SeqCst, atomic_cxchg, atomic_xchg, is_val_statically_known,
};

use lb_common::{
    backend::{Backend, BackendState},
    flow::{
        copy::{self, Kind, Outcome},
        steer::{self, Steered, World},
        table::{Memory, Place, Subject},
        v4::{Bucket, Entry, Key, WAYS},
        word::Word,
    },
    maglev::{Slot, TableRef, client_word, slot_index},
};

use crate::{hide, maps, parse::Segment};

/// The backend, its state and its id, for a segment of an established flow that can be forwarded; none for anything else.
#[inline(always)]
pub(crate) fn established(
    service: u16,
    segment: &Segment,
) -> Option<(*const Backend, BackendState, u32)> {
    let key = Key::new(segment.source, segment.source_port, service);
    steer::established(&Maps, &key, &segment.tcp, maps::now())
}

/// The backend of any other segment: finds, makes or changes the entry of its flow.
#[inline(always)]
pub(crate) fn otherwise(service: u16, segment: &Segment) -> Steered<*const Backend> {
    let key = Key::new(segment.source, segment.source_port, service);
    steer::otherwise(&Maps, &key, &segment.tcp, maps::now())
}

/// Inserts an entry for the daemon, with the fact that goes with it.
#[inline(always)]
pub(crate) fn copy(key: u64, word: u64, first_seen: u32, kind: u32) -> Outcome {
    let key = Key(key);
    let subject = Subject {
        key,
        homes: Maps.homes(&key),
        now: maps::now(),
    };
    match copy::insert(&Maps, &subject, Word(word), kind == Kind::Rescue as u32) {
        Ok(place) => {
            note_first_seen(place, first_seen);
            Outcome::Done
        }
        Err(outcome) => outcome,
    }
}

/// The maps as one packet sees them.
struct Maps;

#[inline(always)]
fn entry(bucket: *mut Bucket, way: u32) -> *mut Entry {
    // SAFETY: in bounds, which the verifier proves.
    unsafe {
        core::ptr::addr_of_mut!((*bucket).entries)
            .cast::<Entry>()
            .add(within_bucket(way))
    }
}

/// A way as an index that the verifier (6.1) sees to be below [`WAYS`]. It is anyway, so the compiler would leave out what shows it; which is well if
/// the way is a constant.
#[inline(always)]
fn within_bucket(way: u32) -> usize {
    if is_val_statically_known(way) {
        way as usize
    } else {
        (hide::number(u64::from(way)) & u64::from(WAYS - 1)) as usize
    }
}

#[inline(always)]
fn value(bucket: *mut Bucket, way: u32) -> *mut u64 {
    // SAFETY: as above.
    unsafe { core::ptr::addr_of_mut!((*entry(bucket, way)).value) }
}

impl Memory for Maps {
    type Key = Key;
    type Bucket = *mut Bucket;

    const WAYS: u32 = WAYS;

    #[inline(always)]
    fn homes(&self, key: &Key) -> [u32; 2] {
        key.homes(&maps::flow_seed(), maps::flow_buckets())
    }

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<*mut Bucket> {
        maps::flows4(index)
    }

    #[inline(always)]
    fn key(&self, bucket: *mut Bucket, way: u32) -> Key {
        // SAFETY: an entry of the map. Volatile: others write it meanwhile.
        Key(unsafe { core::ptr::addr_of!((*entry(bucket, way)).key).read_volatile() })
    }

    #[inline(always)]
    fn value(&self, bucket: *mut Bucket, way: u32) -> Word {
        // SAFETY: as above. On x86-64 every load has acquire ordering.
        Word(unsafe { value(bucket, way).read_volatile() })
    }

    #[inline(always)]
    fn set_key(&self, bucket: *mut Bucket, way: u32, key: &Key) {
        // SAFETY: as above; the place is busy by our hand.
        unsafe { core::ptr::addr_of_mut!((*entry(bucket, way)).key).write_volatile(key.0) }
    }

    #[inline(always)]
    fn replace(&self, bucket: *mut Bucket, way: u32, seen: Word, new: Word) -> bool {
        // SAFETY: an aligned word of the map.
        let (_, replaced) = unsafe {
            atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(value(bucket, way), seen.0, new.0)
        };
        replaced
    }

    #[inline(always)]
    fn publish(&self, bucket: *mut Bucket, way: u32, new: Word) {
        // SAFETY: an aligned word of the map. The old value was busy, by our hand.
        let _busy = unsafe { atomic_xchg::<u64, { SeqCst }>(value(bucket, way), new.0) };
    }

    /// Mixes in a number that the verifier (all kernels to 7.2) takes for anything from 0 to 3, and that is 0 for as long as machines
    /// last.
    #[inline(always)]
    fn blur(&self, way: u32) -> u32 {
        way ^ maps::always_zero()
    }

    #[inline(always)]
    fn carry_facts(&self, from: Place, to: Place) {
        if let (Some(source), Some(copy)) = (first_seen(from), first_seen(to)) {
            // SAFETY: entries of the map.
            unsafe { copy.write_volatile(source.read_volatile()) };
        }
    }
}

#[inline(always)]
fn note_first_seen(place: Place, tick: u32) {
    if let Some(first_seen) = first_seen(place) {
        // SAFETY: an entry of the map.
        unsafe { first_seen.write_volatile(tick) };
    }
}

#[inline(always)]
fn first_seen(place: Place) -> Option<*mut u32> {
    let facts = maps::facts4(place.index)?;
    // SAFETY: as in `entry`.
    Some(unsafe {
        core::ptr::addr_of_mut!((*facts).first_seen)
            .cast::<u32>()
            .add(within_bucket(place.way))
    })
}

impl World for Maps {
    type Backend = *const Backend;

    #[inline(always)]
    fn slot(&self, key: &Key, attempt: u32) -> Option<Slot> {
        let service = maps::service(key.service())?;
        // SAFETY: an entry of the map; the table's word is volatile since the daemon swaps it, the seed does not change while the
        // service is in use.
        let (table, seed) = unsafe {
            (
                TableRef(core::ptr::addr_of!((*service).table).read_volatile()),
                (*service).seed,
            )
        };
        if table.size() == 0 {
            return None;
        }
        maps::slot(
            table,
            slot_index(
                client_word(key.address(), key.port()),
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
    fn may_adopt(&self) -> bool {
        maps::may_adopt(maps::now_ns())
    }

    #[inline(always)]
    fn is_held(&self) -> bool {
        maps::is_held()
    }

    #[inline(always)]
    fn note_promotion(&self, place: Place) {
        note_first_seen(place, maps::now().0);
    }
}
