//! A service's lists on the map of ranges: see [`lb_common::guard::ranges`].

use lb_common::guard::{
    Range, RangesRef,
    ranges::{self, Ranges},
};

use crate::{hide::Hidden, maps};

/// The ranges of all services.
struct RangeMap;

impl Ranges for RangeMap {
    type Hide = Hidden;

    #[inline(always)]
    fn range(&self, index: u32) -> Option<Range> {
        let range = maps::range(index)?.cast::<u64>();
        const _: () = assert!(size_of::<Range>() == 24);
        // SAFETY: the three words of an entry of the map. Volatile: the daemon writes it meanwhile.
        unsafe {
            Some(Range {
                first: [range.read_volatile(), range.add(1).read_volatile()],
                listed: range.add(2).read_volatile(),
            })
        }
    }
}

/// What the ranges that a [`RangesRef`] names say about an address in order: a [`lb_common::guard::Listed`], as a number. A global function, which the
/// verifier walks through once.
#[inline(never)]
#[unsafe(no_mangle)]
pub(super) extern "C" fn listed_of(first: u64, second: u64, of: u64) -> u32 {
    ranges::listed(&RangeMap, RangesRef(of), [first, second]) as u32
}
