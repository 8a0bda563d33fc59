//! Guards of services: whom they take new flows from, and how many of one source. From what is configured to what the data path looks at.
//!
//! * [`prefix`][]: prefixes of addresses, as they are written
//! * [`lists`][]: lists of prefixes, and the ranges that they come to; pure
//! * [`sources`][]: what is known of a source, in the maps
//! * [`programs`][]: has the programs that guard loaded when the first service is guarded

pub mod lists;
pub mod prefix;
pub mod programs;
pub mod sources;

use std::sync::Arc;

use lb_common::{
    guard::{Range, RangesRef},
    net::IpVersion,
};

pub use self::{
    lists::{Lists, Match, compile},
    prefix::Prefix,
};

/// What a service asks of its clients. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The version of IP of the service's VIP, and so of its clients.
    pub version: IpVersion,
    /// Whom it takes new flows from.
    pub lists: Arc<Lists>,
    /// What the lists come to.
    pub ranges: Arc<[Range]>,
    /// The [`digest`] of the ranges.
    pub digest: u64,
    /// How many flows of one source.
    pub limit: Option<SourceLimit>,
}

/// How many flows one source may open and have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLimit {
    /// Addresses that have so many bits in common are one source.
    pub prefix: u8,
    /// New flows a second, in the long run; none is no limit.
    pub new_per_second: Option<u32>,
    /// New flows at once, after a while without any; at least 1.
    pub burst: u32,
    /// Flows at a time; none is no limit.
    pub flows: Option<u32>,
}

/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;

impl Guard {
    /// Of these lists and this limit.
    pub fn new(version: IpVersion, lists: Lists, limit: Option<SourceLimit>) -> Self {
        let ranges = compile(&lists, version);
        Self {
            version,
            digest: digest(ranges.iter().copied()),
            ranges: ranges.into(),
            lists: Arc::new(lists),
            limit,
        }
    }

    /// As the data path has it, with its ranges there, if no other service's sources can save up more than this one's.
    pub fn entry(&self, ranges: RangesRef) -> lb_common::guard::Guard {
        let mut entry = lb_common::guard::Guard {
            ranges: ranges.0,
            ..lb_common::guard::Guard::default()
        };
        if let Some(limit) = self.limit {
            entry.mask = mask(self.version, limit.prefix);
            entry.flows = limit.flows.unwrap_or(0);
            if let Some(rate) = limit.new_per_second {
                entry.cost_ns = SECOND_NS / u64::from(rate.max(1));
                entry.burst_ns = entry.cost_ns * u64::from(limit.burst.max(1));
                entry.longest_burst_ns = entry.burst_ns;
            }
        }
        entry
    }

    /// In a few words, for a table.
    pub fn short(&self) -> String {
        let mut parts = Vec::new();
        for (what, list) in [("allow", &self.lists.allow), ("deny", &self.lists.deny)] {
            if !list.is_empty() {
                parts.push(format!("{what} {}", list.len()));
            }
        }
        if let Some(limit) = &self.limit {
            parts.push(limit.short());
        }
        if parts.is_empty() {
            // Lists that are there and empty, as of files.
            return "empty lists".to_owned();
        }
        parts.join(", ")
    }
}

impl SourceLimit {
    /// In a few words, for a table.
    fn short(&self) -> String {
        let mut text = format!("each /{}:", self.prefix);
        let rate = self
            .new_per_second
            .map(|rate| format!(" {rate} new/s (burst {})", self.burst));
        let flows = self.flows.map(|flows| format!(" {flows} flows"));
        let said: Vec<String> = rate.into_iter().chain(flows).collect();
        text += &said.join(",");
        text
    }
}

/// What of [`lb_common::guard::source_word`] makes a source of so many bits.
const fn mask(version: IpVersion, prefix: u8) -> u64 {
    let rest = match version {
        IpVersion::V4 => 32u32.saturating_sub(prefix as u32),
        IpVersion::V6 => 64u32.saturating_sub(prefix as u32),
    };
    if rest >= 64 { 0 } else { u64::MAX << rest }
}

/// A digest of ranges in their order: only ever compared with others of this process.
pub fn digest(ranges: impl Iterator<Item = Range>) -> u64 {
    crate::digest::of_words(ranges.flat_map(|range| [range.first[0], range.first[1], range.listed]))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb_common::{
        counters::spend,
        guard::{in_order, source_word},
        net::Address,
    };

    use super::*;

    fn guard(version: IpVersion, limit: SourceLimit) -> lb_common::guard::Guard {
        Guard::new(version, Lists::default(), Some(limit)).entry(RangesRef::default())
    }

    const LIMIT: SourceLimit = SourceLimit {
        prefix: 32,
        new_per_second: Some(10),
        burst: 20,
        flows: Some(7),
    };

    #[test]
    fn a_rate_and_a_burst_are_what_the_data_path_spends_by() {
        let entry = guard(IpVersion::V4, LIMIT);
        assert_eq!(
            (entry.cost_ns, entry.burst_ns, entry.flows),
            (100_000_000, 2_000_000_000, 7)
        );
        let (mut paid, mut now, mut opened) = (0, 50 * SECOND_NS, 0);
        for _ in 0..200 {
            if let Some(next) = spend(paid, now, entry.cost_ns, entry.burst_ns) {
                (paid, opened) = (next, opened + 1);
            }
        }
        assert_eq!(opened, 20, "the burst");
        now += SECOND_NS;
        while let Some(next) = spend(paid, now, entry.cost_ns, entry.burst_ns) {
            (paid, opened) = (next, opened + 1);
        }
        assert_eq!(opened, 30, "and ten a second");
    }

    #[test]
    fn what_is_not_limited_is_zero() {
        let entry = guard(
            IpVersion::V4,
            SourceLimit {
                new_per_second: None,
                flows: None,
                ..LIMIT
            },
        );
        assert_eq!((entry.cost_ns, entry.burst_ns, entry.flows), (0, 0, 0));
        let lists = Guard::new(IpVersion::V4, Lists::default(), None);
        assert_eq!(
            lists.entry(RangesRef::default()),
            lb_common::guard::Guard::default()
        );
    }

    #[test]
    fn addresses_of_one_prefix_are_one_source() {
        let source = |prefix, address: &str| {
            let address: IpAddr = address.parse().unwrap();
            let version = IpVersion::of(address);
            let mask = guard(version, SourceLimit { prefix, ..LIMIT }).mask;
            let order = in_order(Address::from(address).words());
            source_word(order, version == IpVersion::V6) & mask
        };
        for (prefix, one, other, same) in [
            (32, "192.0.2.1", "192.0.2.1", true),
            (32, "192.0.2.1", "192.0.2.0", false),
            (24, "192.0.2.1", "192.0.2.255", true),
            (24, "192.0.2.1", "192.0.3.1", false),
            (1, "192.0.2.1", "128.0.0.1", true),
            (1, "192.0.2.1", "127.0.0.1", false),
            (64, "2001:db8::1", "2001:db8::2", true),
            (64, "2001:db8::1", "2001:db8:0:1::1", false),
            (48, "2001:db8::1", "2001:db8:0:1::1", true),
            (1, "2001:db8::1", "4001::", true),
            (1, "2001:db8::1", "8001::", false),
        ] {
            assert_eq!(
                source(prefix, one) == source(prefix, other),
                same,
                "/{prefix}: {one}, {other}"
            );
        }
    }

    #[test]
    fn in_short_a_guard_is_a_line() {
        let prefixes = |all: &[&str]| all.iter().map(|one| one.parse().unwrap()).collect();
        let lists = Lists::new(
            prefixes(&["10.0.0.0/8"]),
            prefixes(&["10.1.0.0/16", "::/0"]),
        );
        let guard = Guard::new(IpVersion::V4, lists, Some(LIMIT));
        assert_eq!(
            guard.short(),
            "allow 1, deny 2, each /32: 10 new/s (burst 20), 7 flows"
        );
    }
}
