//! Counting: packets and bytes per reason, per service, per backend.

use lb_common::verdict::Reason;

use crate::{maps, watch};

/// Nothing to count here.
const NONE: u32 = u32::MAX;

/// What a packet turned out to concern, on its way to being counted.
pub(crate) struct Tally {
    /// Length of the frame, without padding; 0 for what is not IP and TCP.
    pub(crate) bytes: u32,
    service: u32,
    backend: u32,
}

impl Tally {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self {
            bytes: 0,
            service: NONE,
            backend: NONE,
        }
    }

    #[inline(always)]
    pub(crate) fn service(&mut self, id: u16) {
        self.service = id as u32;
    }

    #[inline(always)]
    pub(crate) fn backend(&mut self, id: u32) {
        self.backend = id;
    }

    /// The backend that was noted; 0 is none.
    #[inline(always)]
    pub(crate) fn backend_id(&self) -> u32 {
        if self.backend == NONE {
            0
        } else {
            self.backend
        }
    }

    /// Counts the packet: once for its reason, and for its service and backend if it got so far.
    #[inline(always)]
    pub(crate) fn count(&self, reason: Reason) {
        let layout = maps::counters_layout();
        let base = maps::own_counters();
        watch::end(reason as u32, self.service, self.backend);
        maps::count(base, layout.reason(reason), self.bytes);
        if self.service != NONE {
            maps::count(base, layout.service(self.service as u16), self.bytes);
            if self.backend != NONE {
                maps::count(base, layout.backend(self.backend), self.bytes);
            }
        }
    }
}
