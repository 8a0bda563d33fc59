//! SNAT ports on the maps: see [`lb_common::nat::ports`].

use core::{
    intrinsics::{AtomicOrdering::SeqCst, atomic_and, atomic_cxchg},
    marker::PhantomData,
};

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use lb_common::{
    flow::{table::Place, word::Word},
    nat::{
        Translation,
        ports::{self, Ports, is_spent},
    },
};

use super::store;
use crate::{
    family::{V4, V6},
    flow::{self, Table},
    maps,
};

/// The ports that flows of a version of IP have.
pub(super) struct PortMaps<T>(PhantomData<T>);

impl<T> PortMaps<T> {
    pub(super) const NEW: Self = Self(PhantomData);
}

impl<T: Table> Ports for PortMaps<T> {
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn bits(&self, pair: u16, word: u32) -> u64 {
        match maps::ports(pair, word) {
            // SAFETY: an entry of the map. Volatile: others write it meanwhile.
            Some(bits) => unsafe { bits.read_volatile() },
            None => u64::MAX,
        }
    }

    #[inline(always)]
    fn mark(&self, pair: u16, word: u32, seen: u64, new: u64) -> bool {
        match maps::ports(pair, word) {
            // SAFETY: an aligned word of the map.
            Some(bits) => unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(bits, seen, new).1 },
            None => false,
        }
    }

    #[inline(always)]
    fn clear(&self, pair: u16, word: u32, bits: u64) {
        if let Some(word) = maps::ports(pair, word) {
            // SAFETY: as above.
            let _before = unsafe { atomic_and::<u64, u64, { SeqCst }>(word, !bits) };
        }
    }

    #[inline(always)]
    fn slot(&self, pair: u16, port: u16) -> u32 {
        match maps::port_slot(pair, port) {
            // SAFETY: an entry of the map. Volatile: others write it meanwhile.
            Some(slot) => unsafe { slot.read_volatile() },
            None => 0,
        }
    }

    #[inline(always)]
    fn claim(&self, pair: u16, port: u16, seen: u32, new: u32) -> bool {
        match maps::port_slot(pair, port) {
            // SAFETY: an aligned word of the map.
            Some(slot) => unsafe { atomic_cxchg::<u32, { SeqCst }, { SeqCst }>(slot, seen, new).1 },
            None => false,
        }
    }

    #[inline(always)]
    fn evict(&self, place: Place, pair: u16, port: u16) -> bool {
        let at = ((pair as u32) << 16) | port as u32;
        evict::<T>(place.index, place.way, at)
    }
}

// Global functions, which the verifier walks through once, and not once for each pair that is tried.

/// [`ports::take`] of an IPv4 flow.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn take4(pair: u32, index: u32, way: u32, is_free: u32) -> u32 {
    take::<V4>(pair, index, way, is_free)
}

/// [`ports::take`] of an IPv6 flow.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn take6(pair: u32, index: u32, way: u32, is_free: u32) -> u32 {
    take::<V6>(pair, index, way, is_free)
}

#[inline(always)]
fn take<T: Table>(pair: u32, index: u32, way: u32, is_free: u32) -> u32 {
    let place = Place { index, way };
    ports::take(&PortMaps::<T>::NEW, pair as u16, place, is_free != 0) as u32
}

/// [`Ports::evict`]; a function of its own, which is called in a loop.
#[inline(never)]
fn evict<T: Table>(index: u32, way: u32, at: u32) -> bool {
    let place = Place { index, way };
    let Some(translation) = store::at::<T>(place) else {
        return true;
    };
    let (word, stamp) = store::load(translation);
    if stamp == Translation::BUSY {
        return false;
    }
    let Some((key, value)) = flow::at::<T>(place) else {
        // Empty, or changing at this moment.
        return flow::is_empty::<T>(place);
    };
    if stamp != store::stamp::<T>(&key, value.backend())
        || !word.is_at((at >> 16) as u16, at as u16)
    {
        return true;
    }
    is_spent(value, maps::now()) && flow::replace::<T>(place, value, Word::EMPTY)
}
