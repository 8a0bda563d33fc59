//! What is known of a source at a service, in the maps: where it is, and what it owes.

use std::{net::IpAddr, sync::atomic::Ordering};

use lb_common::{
    flow::bucket::homes,
    guard::{
        Guard, SOURCES_IN_BUCKET, Source, SourceBucket, fingerprint, in_order, source_word,
        sources::saved_up,
    },
    hash::Seed,
    net::Address,
};

use crate::dataplane::{array::Array, maps::Maps};

/// Words of a source.
pub(crate) const WORDS: usize = size_of::<Source>() / 8;
/// Where in a source's words its fingerprint is.
pub(crate) const FINGERPRINT: usize = std::mem::offset_of!(Source, fingerprint) / 8;
/// Where the time is that it has paid up to.
pub(crate) const PAID: usize = std::mem::offset_of!(Source, paid_ns) / 8;
/// Where its flows are.
pub(crate) const FLOWS: usize = std::mem::offset_of!(Source, flows) / 8;

/// Flows of a source: as they were counted, and opened since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceFlows {
    /// As the last pass over the flow tables has found them.
    pub counted: u32,
    /// Opened since, ended ones among them.
    pub opened: u32,
}

impl SourceFlows {
    /// Of a word of [`Source::flows`].
    pub const fn of(word: u64) -> Self {
        Self {
            counted: word as u32,
            opened: (word >> 32) as u32,
        }
    }

    /// As a word.
    pub const fn word(self) -> u64 {
        self.counted as u64 | ((self.opened as u64) << 32)
    }

    /// What its limit is held against.
    pub const fn total(self) -> u32 {
        self.counted.saturating_add(self.opened)
    }
}

/// The fingerprint of a client's source at a service with this guard.
pub fn of_client(client: Address, is_ipv6: bool, service: u16, mask: u64, seed: &Seed) -> u64 {
    let word = source_word(in_order(client.words()), is_ipv6);
    fingerprint(word & mask, service, seed)
}

/// What is known of a client's source at a service; nothing if it has no place.
pub fn find(
    maps: &Maps,
    guard: &Guard,
    client: IpAddr,
    service: u16,
    seed: &Seed,
) -> Option<Source> {
    let own = of_client(client.into(), client.is_ipv6(), service, guard.mask, seed);
    homes(own, maps.sources.len())
        .into_iter()
        .flat_map(|bucket| maps.sources.get(bucket).sources)
        .find(|source| source.fingerprint == own)
}

/// How many new flows a source can still open at once under a guard; none if their rate is not limited.
pub fn affords(guard: &Guard, source: Option<Source>, now_ns: u64) -> Option<u64> {
    if guard.cost_ns == 0 {
        return None;
    }
    let paid_ns = source.map_or(0, |source| source.paid_ns);
    Some(saved_up(paid_ns, now_ns, guard.burst_ns) / guard.cost_ns)
}

/// Whether a source owes anything at a moment that a burst of so many nanoseconds has not saved up yet.
pub(crate) const fn owes(paid_ns: u64, now_ns: u64, burst_ns: u64) -> bool {
    paid_ns > now_ns.saturating_sub(burst_ns) && !is_of_another_clock(paid_ns, now_ns)
}

/// Whether a number is so far in the future that it is no time of this machine's, as the data path has it. Clocks of its CPUs are read a moment apart.
const fn is_of_another_clock(paid_ns: u64, now_ns: u64) -> bool {
    paid_ns >= now_ns.saturating_add(1_000_000_000)
}

/// Places for sources.
pub fn places(sources: &Array<SourceBucket>) -> u64 {
    u64::from(sources.len()) * u64::from(SOURCES_IN_BUCKET)
}

/// Ranges that guards name.
pub fn ranges_in_use(maps: &Maps) -> u64 {
    const RANGES: usize = std::mem::offset_of!(Guard, ranges) / 8;
    (0..maps.guards.len())
        .map(|id| maps.guards.word(id, RANGES).load(Ordering::Relaxed))
        .map(|word| u64::from(lb_common::guard::RangesRef(word).len()))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::maps::Capacity;

    #[test]
    fn flows_are_two_numbers_in_a_word() {
        let flows = SourceFlows {
            counted: 7,
            opened: 9,
        };
        assert_eq!(SourceFlows::of(flows.word()), flows);
        assert_eq!(flows.total(), 16);
    }

    #[test]
    fn a_source_is_found_in_either_home() {
        let capacity = Capacity::for_flows(1, 1, 4, 4, 64, 1).with_guards(64, 100);
        let maps = Maps::in_memory(capacity).unwrap();
        let seed = Seed::new([1, 2, 3]);
        let guard = Guard {
            mask: u64::MAX << 8,
            ..Guard::default()
        };
        let client = IpAddr::from([192, 0, 2, 1]);
        let own = of_client(client.into(), false, 3, guard.mask, &seed);
        for home in homes(own, maps.sources.len()) {
            assert_eq!(find(&maps, &guard, client, 3, &seed), None);
            let mut bucket = SourceBucket::default();
            bucket.sources[2] = Source {
                fingerprint: own,
                flows: 5,
                ..Source::default()
            };
            maps.sources.set(home, &bucket);
            let neighbour = IpAddr::from([192, 0, 2, 77]);
            for client in [client, neighbour] {
                let found = find(&maps, &guard, client, 3, &seed).unwrap();
                assert_eq!(found.flows, 5);
            }
            assert_eq!(find(&maps, &guard, client, 2, &seed), None);
            let stranger = IpAddr::from([192, 0, 3, 1]);
            assert_eq!(find(&maps, &guard, stranger, 3, &seed), None);
            maps.sources.set(home, &SourceBucket::default());
        }
    }

    #[test]
    fn what_a_source_affords_comes_back_with_time() {
        let guard = Guard {
            cost_ns: 100,
            burst_ns: 1_000,
            ..Guard::default()
        };
        let paid = |paid_ns| {
            Some(Source {
                paid_ns,
                ..Source::default()
            })
        };
        let now = 5_000_000_000;
        for (source, affords_now) in [
            (None, 10),
            (paid(0), 10),
            (paid(now), 0),
            (paid(now - 50), 0),
            (paid(now - 250), 2),
            (paid(now + 1), 0),
            (paid(2 * now), 10),
        ] {
            assert_eq!(affords(&guard, source, now), Some(affords_now));
        }
        // A host that has just started gives bursts too.
        for (source, now, affords_now) in [(None, 300, 10), (paid(200), 300, 1)] {
            assert_eq!(affords(&guard, source, now), Some(affords_now));
        }
        assert_eq!(affords(&Guard::default(), None, now), None);
    }
}
