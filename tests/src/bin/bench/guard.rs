//! A guard of the bench's service: lists of [`PREFIXES`] prefixes, and all limits.

use anyhow::Result;
use lb_common::{
    guard::{Guard, Listed, Range, RangesRef, in_order},
    maps::default,
    net::{Address, IpVersion},
    service::Service,
};

use crate::harness::{Harness, SERVICE, address};

/// Prefixes in the service's lists.
const PREFIXES: u32 = 100_000;
/// Ranges that they come to: what is between two of them is one too.
const RANGES: u32 = 2 * PREFIXES + 1;
/// Where prefixes begin that are below all clients, of one address each, every other one.
const BELOW: u32 = 0x0100_0000;
/// The prefix that all clients are in: from this address to below [`AFTER_CLIENTS`].
const CLIENTS: u32 = 0x0a80_0000;
const AFTER_CLIENTS: u32 = 0x0b00_0000;
/// Where the other prefixes begin.
const ABOVE: u32 = 0x1400_0000;

impl Harness {
    /// Loads the shipped program as [`Harness::load`] does, with what guards services.
    pub(crate) fn guarding(version: IpVersion, flows: u32) -> Result<Self> {
        Self::with_capacity(version, flows, |capacity| {
            capacity
                .with_guards(RANGES, default::SOURCES)
                .guarding(true)
        })
    }

    /// Has the service be guarded: clients are listed so, and who is let in keeps within its limits, each of which is asked.
    pub(crate) fn guard(&self, clients: Listed) {
        let below = (0..PREFIXES / 2).map(|n| BELOW + 2 * n);
        let above = (0..PREFIXES - PREFIXES / 2 - 1).map(|n| ABOVE + 2 * n);
        let denied = |first| [(first, Listed::Denied), (first + 1, Listed::Allowed)];
        let ranges = below
            .flat_map(denied)
            .chain([(CLIENTS, clients), (AFTER_CLIENTS, Listed::Allowed)])
            .chain(above.flat_map(denied));
        let whole = Range {
            first: [0; 2],
            listed: Listed::Allowed as u64,
        };
        self.maps.ranges.set(0, &whole);
        for (index, (first, listed)) in (1..).zip(ranges) {
            let first = Address::from(address(self.version, first));
            let range = Range {
                first: in_order(first.words()),
                listed: listed as u64,
            };
            self.maps.ranges.set(index, &range);
        }
        let guard = Guard {
            ranges: RangesRef::new(0, RANGES).0,
            cost_ns: 1,
            burst_ns: 1_000_000_000,
            longest_burst_ns: 1_000_000_000,
            mask: u64::MAX,
            flows: u32::MAX,
            ..Guard::default()
        };
        self.maps.guards.set(u32::from(SERVICE), &guard);
        let mut service = self.maps.services.get(u32::from(SERVICE));
        service.traits |= Service::GUARDED;
        self.maps.services.set(u32::from(SERVICE), &service);
    }
}
