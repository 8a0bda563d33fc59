//! Guards of services: what a test writes and reads of them.

use std::{net::Ipv4Addr, sync::atomic::Ordering::SeqCst, time::Duration};

use lb_common::{
    flow::bucket::homes,
    guard::{
        Guard, Listed, Range, RangesRef, SOURCES_IN_BUCKET, Source, SourceBucket, fingerprint,
        in_order, source_word,
    },
    net::{Address, IpVersion},
    service::Service,
};

use super::{
    kernel::FLOW_SEED,
    version::{on_wire, version},
    world::{Client, SERVICE, World},
};

/// Where [`World::list`] writes the ranges of [`SERVICE`], with others' before and after them.
const FIRST_RANGE: u32 = 3;

/// Words of a source.
const WORDS: usize = size_of::<Source>() / 8;

/// What sources are held to. Unless more is said, each address of IPv4 is one, and each /64 of IPv6.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// What a new flow costs; nothing is no limit.
    pub cost: Duration,
    /// What a source can save up.
    pub burst: Duration,
    /// Bits of the address that make a source, of IPv4 and of IPv6.
    pub prefix: [u32; 2],
    /// Flows at a time; 0 is no limit.
    pub flows: u32,
}

impl Limits {
    /// None.
    pub const NONE: Self = Self {
        cost: Duration::ZERO,
        burst: Duration::ZERO,
        prefix: [32, 64],
        flows: 0,
    };

    /// So many flows at a time.
    pub const fn flows(flows: u32) -> Self {
        Self {
            flows,
            ..Self::NONE
        }
    }

    /// So many new flows at once, and then one in a time that no test lasts.
    pub const fn burst(flows: u32) -> Self {
        Self {
            cost: COST,
            burst: Duration::from_secs(COST.as_secs() * flows as u64),
            ..Self::NONE
        }
    }
}

impl Limits {
    fn write(&self, guard: &mut Guard) {
        let rest = match version() {
            IpVersion::V4 => 32 - self.prefix[0],
            IpVersion::V6 => 64 - self.prefix[1],
        };
        guard.cost_ns = self.cost.as_nanos() as u64;
        guard.burst_ns = self.burst.as_nanos() as u64;
        guard.longest_burst_ns = guard.burst_ns;
        guard.mask = u64::MAX.checked_shl(rest).unwrap_or(0);
        guard.flows = self.flows;
    }
}

/// What a new flow costs where a test does not say: longer than a test lasts.
pub const COST: Duration = Duration::from_secs(1_000);

impl World {
    /// Has [`SERVICE`] be guarded, and changes what it asks.
    pub fn change_guard(&self, change: impl FnOnce(&mut Guard)) {
        let mut guard = self.maps.guards.get(u32::from(SERVICE));
        change(&mut guard);
        self.maps.guards.set(u32::from(SERVICE), &guard);
        let mut service = self.maps.services.get(u32::from(SERVICE));
        service.traits |= Service::GUARDED;
        self.maps.services.set(u32::from(SERVICE), &service);
    }

    /// Has what [`SERVICE`]'s lists say be such, from each of these addresses on: the first one stands for all addresses before the second.
    ///
    /// # Panics
    /// If they are more than there is room for.
    pub fn list(&self, ranges: &[(Ipv4Addr, Listed)]) {
        // Who reads what is another's finds everybody denied.
        let other = Range {
            first: [0; 2],
            listed: Listed::Denied as u64,
        };
        for index in 0..self.maps.ranges.len() {
            self.maps.ranges.set(index, &other);
        }
        for (index, (first, listed)) in (FIRST_RANGE..).zip(ranges) {
            let first = if index == FIRST_RANGE {
                [0; 2]
            } else {
                in_order(Address::from(on_wire(*first)).words())
            };
            let listed = *listed as u64;
            self.maps.ranges.set(index, &Range { first, listed });
        }
        let ranges = RangesRef::new(FIRST_RANGE, ranges.len() as u32);
        self.change_guard(|guard| guard.ranges = ranges.0);
    }

    /// Has [`SERVICE`]'s lists say the same of all addresses.
    pub fn list_all(&self, listed: Listed) {
        self.list(&[(Ipv4Addr::UNSPECIFIED, listed)]);
    }

    /// Holds the sources of [`SERVICE`]'s clients to these limits.
    pub fn limit(&self, limits: &Limits) {
        self.change_guard(|guard| limits.write(guard));
    }

    /// Has a service be guarded by these ranges and limits, whatever guarded it before; of all services one at a time, whose ranges take the place of those
    /// that were there.
    ///
    /// # Panics
    /// If the ranges are more than there is room for.
    pub fn guard(&self, service: u16, ranges: &[Range], limits: &Limits) {
        for (index, range) in (FIRST_RANGE..).zip(ranges) {
            self.maps.ranges.set(index, range);
        }
        let mut guard = Guard {
            ranges: RangesRef::new(FIRST_RANGE, ranges.len() as u32).0,
            ..Guard::default()
        };
        limits.write(&mut guard);
        self.maps.guards.set(u32::from(service), &guard);
        self.set_guarded(service, true);
    }

    /// Has a service be guarded no more.
    pub fn unguard(&self, service: u16) {
        self.set_guarded(service, false);
        self.maps.guards.set(u32::from(service), &Guard::default());
    }

    fn set_guarded(&self, service: u16, is_guarded: bool) {
        let mut record = self.maps.services.get(u32::from(service));
        if is_guarded {
            record.traits |= Service::GUARDED;
        } else {
            record.traits &= !Service::GUARDED;
        }
        self.maps.services.set(u32::from(service), &record);
    }

    /// What a client's source is found by, at [`SERVICE`].
    fn fingerprint_of(&self, client: Client) -> u64 {
        let guard = self.maps.guards.get(u32::from(SERVICE));
        let address = in_order(Address::from(on_wire(client.0)).words());
        let word = source_word(address, version() == IpVersion::V6);
        fingerprint(word & guard.mask, SERVICE, &FLOW_SEED)
    }

    /// What is known of a client's source, and where that is.
    ///
    /// # Panics
    /// If it has several places, or one outside its homes.
    pub fn source_at(&self, client: Client) -> Option<(u32, u32, Source)> {
        let wanted = self.fingerprint_of(client);
        let all = self.sources();
        let mut held = all
            .into_iter()
            .filter(|(.., source)| source.fingerprint == wanted);
        let found = held.next();
        assert_eq!(held.next(), None, "a second place of {found:?}");
        if let Some((bucket, ..)) = found {
            assert!(homes(wanted, self.maps.sources.len()).contains(&bucket));
        }
        found
    }

    /// What is known of a client's source; nothing if it has no place.
    pub fn source(&self, client: Client) -> Source {
        self.source_at(client)
            .map_or_else(Source::default, |(.., source)| source)
    }

    /// All that is known of sources: bucket, way, source.
    pub fn sources(&self) -> Vec<(u32, u32, Source)> {
        (0..self.maps.sources.len())
            .flat_map(|bucket| {
                let sources = self.maps.sources.get(bucket).sources;
                (0..)
                    .zip(sources)
                    .map(move |(way, source)| (bucket, way, source))
            })
            .collect()
    }

    /// Changes what is known of a client's source.
    ///
    /// # Panics
    /// If it has no place.
    pub fn change_source(&self, client: Client, change: impl FnOnce(&mut Source)) {
        let (bucket, way, mut source) = self.source_at(client).expect("it has a place");
        change(&mut source);
        self.put_source(bucket, way, &source);
    }

    /// Changes what is known of every source.
    pub fn change_sources(&self, change: impl Fn(&mut Source)) {
        for (bucket, way, mut source) in self.sources() {
            if source.fingerprint != 0 {
                change(&mut source);
                self.put_source(bucket, way, &source);
            }
        }
    }

    fn put_source(&self, bucket: u32, way: u32, source: &Source) {
        const _: () = assert!(WORDS == 4);
        let words = [
            source.fingerprint,
            source.word,
            source.paid_ns,
            source.flows,
        ];
        for (at, value) in (way as usize * WORDS..).zip(words) {
            let word = self.maps.sources.word(bucket, at);
            word.store(value, SeqCst);
        }
    }

    /// Lets time pass for a client's source.
    pub fn let_pass(&self, client: Client, time: Duration) {
        self.change_source(client, |source| {
            source.paid_ns = source.paid_ns.wrapping_sub(time.as_nanos() as u64);
        });
    }

    /// Has all places of sources be others' that have flows.
    pub fn crowd_sources(&self) {
        for bucket in 0..self.maps.sources.len() {
            let mut crowd = SourceBucket::default();
            for (way, source) in (0..SOURCES_IN_BUCKET).zip(&mut crowd.sources) {
                // Fingerprints are odd.
                source.fingerprint = u64::from(2 + 2 * (bucket * SOURCES_IN_BUCKET + way));
                source.flows = 1;
            }
            self.maps.sources.set(bucket, &crowd);
        }
    }
}
