//! Translations in the map.

use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg, atomic_xchg};

use lb_common::{
    backend::BackendState,
    flow::{
        FlowKey as _,
        table::Place,
        word::{BackendRef, Word},
    },
    nat::{
        Translation, TranslationWord, place_of,
        ports::{self, Ports as _},
        slot_of, translation,
    },
};

use super::ports::PortMaps;
use crate::{
    family::{V4, V6},
    flow::{Table, within_bucket},
    maps,
};

/// The translation beside the entry at a place.
#[inline(always)]
pub(super) fn at<T: Table>(place: Place) -> Option<*mut Translation> {
    let bucket = T::translations(place.index)?;
    // SAFETY: in bounds, which the verifier proves.
    Some(unsafe { bucket.cast::<Translation>().add(within_bucket(place.way)) })
}

/// Has the cache fetch the translations beside a bucket, while that itself is fetched.
#[inline(always)]
pub(crate) fn touch<T: Table>(bucket: u32) {
    if let Some(translations) = T::translations(bucket) {
        // SAFETY: an entry of the map.
        let _ = unsafe { translations.cast::<u64>().read_volatile() };
    }
}

/// The holder of a backend's id.
#[inline(always)]
pub(super) fn reference(id: u32, state: BackendState) -> BackendRef {
    BackendRef::new(id, state.generation())
}

/// The stamp of a flow at a backend.
#[inline(always)]
pub(super) fn stamp<T: Table>(key: &T::Key, backend: BackendRef) -> u64 {
    translation::stamp(key.mixed(&maps::flow_seed()), backend)
}

/// Word and stamp, such that they belong together if the stamp is the right one.
#[inline(always)]
pub(super) fn load(translation: *const Translation) -> (TranslationWord, u64) {
    // SAFETY: an entry of the map. Volatile: others write it meanwhile. On x86-64 loads stay in order.
    unsafe {
        let stamp = core::ptr::addr_of!((*translation).stamp);
        let before = stamp.read_volatile();
        let word = core::ptr::addr_of!((*translation).word).read_volatile();
        let is_whole = stamp.read_volatile() == before;
        let stamp = if is_whole { before } else { Translation::BUSY };
        (TranslationWord(word), stamp)
    }
}

/// The word of the translation at a place, if it is that of a flow at a backend.
#[inline(always)]
pub(super) fn valid<T: Table>(
    place: Place,
    key: &T::Key,
    backend: BackendRef,
) -> Option<TranslationWord> {
    let (word, found) = load(at::<T>(place)?);
    if found == stamp::<T>(key, backend) {
        Some(word)
    } else {
        None
    }
}

/// Changes the word of a translation from what was seen.
#[inline(always)]
pub(super) fn replace(
    translation: *mut Translation,
    seen: TranslationWord,
    new: TranslationWord,
) -> bool {
    // SAFETY: an aligned word of the map.
    unsafe {
        let word = core::ptr::addr_of_mut!((*translation).word);
        atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(word, seen.0, new.0).1
    }
}

/// Begins to write a translation that had a stamp. False if another CPU does.
#[inline(always)]
pub(super) fn begin(translation: *mut Translation, seen: u64) -> bool {
    // SAFETY: an aligned word of the map.
    seen != Translation::BUSY
        && unsafe {
            let stamp = core::ptr::addr_of_mut!((*translation).stamp);
            atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(stamp, seen, Translation::BUSY).1
        }
}

/// Ends that: what is written is valid for whom the stamp is of; 0 is nobody.
#[inline(always)]
pub(super) fn finish(translation: *mut Translation, word: TranslationWord, stamp: u64) {
    // SAFETY: a translation that is being written by our hand.
    unsafe {
        core::ptr::addr_of_mut!((*translation).word).write_volatile(word.0);
        let place = core::ptr::addr_of_mut!((*translation).stamp);
        let _busy = atomic_xchg::<u64, { SeqCst }>(place, stamp);
    }
}

/// Moves the translation of an entry that has moved; its port goes along.
#[inline(always)]
pub(crate) fn carry<T: Carry>(from: Place, to: Place) {
    T::carry(slot_of(from), slot_of(to));
}

/// Moving translations, in one version of IP.
pub(crate) trait Carry {
    /// Moves the translation at the place that one slot names to that of another.
    fn carry(from: u32, to: u32);
}

impl Carry for V4 {
    #[inline(always)]
    fn carry(from: u32, to: u32) {
        carry4(from, to);
    }
}

impl Carry for V6 {
    #[inline(always)]
    fn carry(from: u32, to: u32) {
        carry6(from, to);
    }
}

// Global functions, which the verifier walks through once, and not once for each way that leads to them: with those that move entries
// that would be too much for 6.1.

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn carry4(from: u32, to: u32) -> u32 {
    carry_on::<V4>(from, to)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn carry6(from: u32, to: u32) -> u32 {
    carry_on::<V6>(from, to)
}

#[inline(always)]
fn carry_on<T: Table>(from: u32, to: u32) -> u32 {
    let (Some(source), Some(copy)) = (at::<T>(place_of(from)), at::<T>(place_of(to))) else {
        return 0;
    };
    let (former, seen) = load(copy);
    if load(source).1 <= Translation::BUSY || !begin(copy, seen) {
        return 0;
    }
    give_back::<T>(former, to);
    let (word, stamp) = load(source);
    if word.pair() != 0 {
        ports::carry(&PortMaps::<T>::NEW, word.pair(), word.port(), from, to);
    }
    finish(copy, word, stamp);
    // Whatever flow comes back to that place, of the same client and backend, is another one, whose port this is not. Nobody sees an entry there now.
    if begin(source, stamp) {
        finish(source, word, 0);
    }
    0
}

/// Gives back the port of a translation that was at the place that a slot names, if it still has one.
#[inline(always)]
pub(super) fn give_back<T: Table>(former: TranslationWord, slot: u32) {
    if former.pair() != 0 {
        let ports = &PortMaps::<T>::NEW;
        ports::give_back(ports, former.pair(), former.port(), slot);
    }
}

/// Writes the translation of an entry that has come from another table. Its port is its own there, unless it has become another's.
#[inline(always)]
pub(crate) fn copy<T: Table>(place: Place, key: &T::Key, value: Word, word: TranslationWord) {
    let Some(translation) = at::<T>(place) else {
        return;
    };
    let (former, seen) = load(translation);
    if !begin(translation, seen) {
        return;
    }
    give_back::<T>(former, slot_of(place));
    let ports = PortMaps::<T>::NEW;
    let mut is_ours = word.pair() == 0;
    if !is_ours {
        let held = ports.slot(word.pair(), word.port());
        let is_free = held == 0 || ports.evict(place_of(held), word.pair(), word.port());
        is_ours = is_free && ports.claim(word.pair(), word.port(), held, slot_of(place));
    }
    let stamp = if is_ours {
        stamp::<T>(key, value.backend())
    } else {
        0
    };
    finish(translation, word, stamp);
}
