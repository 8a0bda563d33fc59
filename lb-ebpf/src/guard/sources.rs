//! What is known of sources on the map: see [`lb_common::guard::sources`].

use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg};

use lb_common::{
    flow::{
        bucket::{WAYS, homes},
        table::Place,
    },
    guard::{
        SOURCES_IN_BUCKET, Source, SourceBucket,
        sources::{self, Part, Sources, Wanted},
    },
};

use crate::{flow::within_bucket, hide::Hidden, maps};

/// The sources of all services.
struct SourceMap;

/// A word of a source.
#[inline(always)]
fn word(bucket: *mut SourceBucket, way: u32, part: Part) -> *mut u64 {
    const { assert!(SOURCES_IN_BUCKET == WAYS) };
    // SAFETY: in bounds, which the verifier proves.
    unsafe {
        bucket
            .cast::<Source>()
            .add(within_bucket(way))
            .cast::<u64>()
            .add(part as usize)
    }
}

impl Sources for SourceMap {
    type Bucket = *mut SourceBucket;
    type Hide = Hidden;

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<*mut SourceBucket> {
        maps::sources(index)
    }

    #[inline(always)]
    fn load(&self, bucket: *mut SourceBucket, way: u32, part: Part) -> u64 {
        // SAFETY: an entry of the map. Volatile: others write it meanwhile.
        unsafe { word(bucket, way, part).read_volatile() }
    }

    #[inline(always)]
    fn replace(
        &self,
        bucket: *mut SourceBucket,
        way: u32,
        part: Part,
        seen: u64,
        new: u64,
    ) -> bool {
        let word = word(bucket, way, part);
        // SAFETY: an aligned word of the map.
        unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(word, seen, new).1 }
    }

    #[inline(always)]
    fn set_word(&self, bucket: *mut SourceBucket, way: u32, value: u64) {
        // SAFETY: an entry of the map.
        unsafe { word(bucket, way, Part::Word).write_volatile(value) };
    }
}

/// No place.
pub(super) const NOWHERE: u64 = u64::MAX;

/// A place as a number: bucket (bits 2-33) and way.
#[inline(always)]
pub(super) const fn placed(place: u64) -> Place {
    Place {
        index: (place >> 2) as u32,
        way: place as u32 & (SOURCES_IN_BUCKET - 1),
    }
}

// Global functions, which the verifier walks through once, and not once for each way that leads to them.

/// The place of a source, as a number: see [`sources::place`]. [`NOWHERE`] if it has none.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn place_of_source(
    fingerprint: u64,
    word: u64,
    now_ns: u64,
    longest_burst_ns: u64,
) -> u64 {
    let wanted = Wanted {
        fingerprint,
        word,
        homes: homes(fingerprint, maps::source_buckets()),
        now_ns,
        longest_burst_ns,
    };
    match sources::place(&SourceMap, &wanted) {
        Some(place) => ((place.index as u64) << 2) | place.way as u64,
        None => NOWHERE,
    }
}

/// Whether the source at a place can pay for a new flow, and has: 1, or 0.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn source_pays(place: u64, now_ns: u64, cost_ns: u64, burst_ns: u64) -> u32 {
    sources::pay(&SourceMap, placed(place), now_ns, cost_ns, burst_ns) as u32
}

/// Whether the source at a place may have one flow more, which then is counted: 1, or 0.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn source_is_counted(place: u64, limit: u32) -> u32 {
    sources::count(&SourceMap, placed(place), limit) as u32
}

/// Whether the source at a place has as many flows as it may have: 1, or 0.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn source_has_enough(place: u64, limit: u32) -> u32 {
    sources::has_enough(&SourceMap, placed(place), limit) as u32
}

/// Counts a flow of the source at a place that is there already.
#[inline(always)]
pub(super) fn count(place: Place) {
    sources::count(&SourceMap, place, u32::MAX);
}
