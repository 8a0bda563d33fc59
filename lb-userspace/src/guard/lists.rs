//! Lists of prefixes, and the ranges that they come to.
//!
//! What is in a prefix that is denied is denied, whatever else it is in. All else is let in if nothing is named as allowed, or if it is in a prefix that is.

use std::net::IpAddr;

use lb_common::{
    guard::{Listed, Range},
    net::IpVersion,
};

use super::prefix::{Prefix, number};

/// Whom a service takes new flows from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// Prefixes that are let in, and nobody else, if there are any; in order, without duplicates.
    pub allow: Vec<Prefix>,
    /// Prefixes that are kept out; in order, without duplicates.
    pub deny: Vec<Prefix>,
}

/// What the lists say about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// What becomes of it.
    pub listed: Listed,
    /// The longest prefix, of the list that decides, that it is in; none if it is in none.
    pub prefix: Option<Prefix>,
}

impl Lists {
    /// Of these prefixes, in any order.
    pub fn new(mut allow: Vec<Prefix>, mut deny: Vec<Prefix>) -> Self {
        for list in [&mut allow, &mut deny] {
            list.sort_unstable();
            list.dedup();
        }
        Self { allow, deny }
    }

    /// Whether they let everybody in.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// What they say about an address, and by which prefix.
    pub fn match_of(&self, address: IpAddr) -> Match {
        if let Some(prefix) = longest(&self.deny, address) {
            return Match {
                listed: Listed::Denied,
                prefix: Some(prefix),
            };
        }
        let prefix = longest(&self.allow, address);
        let listed = if self.allow.is_empty() || prefix.is_some() {
            Listed::Allowed
        } else {
            Listed::NotAllowed
        };
        Match { listed, prefix }
    }

    /// How many prefixes these have that the `other` ones have not, in either list.
    pub fn beyond(&self, other: &Self) -> usize {
        let beyond = |own: &[Prefix], others: &[Prefix]| {
            let is_new = |prefix: &&Prefix| others.binary_search(prefix).is_err();
            own.iter().filter(is_new).count()
        };
        beyond(&self.allow, &other.allow) + beyond(&self.deny, &other.deny)
    }
}

/// The longest prefix of a list, which is in order, that an address is in.
fn longest(list: &[Prefix], address: IpAddr) -> Option<Prefix> {
    (0..=IpVersion::of(address).address_bits())
        .rev()
        .map(|bits| Prefix::of(address, bits))
        .find(|prefix| list.binary_search(prefix).is_ok())
}

/// The ranges of addresses of a version of IP that lists come to: in order, the first one from address zero on, no two neighbours alike. None at all if
/// everybody is let in.
pub fn compile(lists: &Lists, version: IpVersion) -> Vec<Range> {
    let (allow, deny) = (merged(&lists.allow, version), merged(&lists.deny, version));
    let is_open = lists.allow.is_empty();
    // Where something may change: where a prefix begins, and behind its end.
    let mut borders: Vec<u128> = allow
        .iter()
        .chain(&deny)
        .flat_map(|&(first, last)| [Some(first), last.checked_add(1)])
        .flatten()
        .chain([0])
        .collect();
    borders.sort_unstable();
    borders.dedup();
    let (mut allow, mut deny) = (Cursor::over(&allow), Cursor::over(&deny));
    let mut ranges: Vec<Range> = Vec::new();
    for border in borders {
        let listed = if deny.has(border) {
            Listed::Denied
        } else if is_open || allow.has(border) {
            Listed::Allowed
        } else {
            Listed::NotAllowed
        };
        if ranges
            .last()
            .is_none_or(|last| last.listed != listed as u64)
        {
            ranges.push(Range {
                first: [(border >> 64) as u64, border as u64],
                listed: listed as u64,
            });
        }
    }
    if let [only] = ranges[..]
        && only.listed == Listed::Allowed as u64
    {
        return Vec::new();
    }
    ranges
}

/// The first and last addresses of a list's prefixes of a version, those that touch or overlap made one, in order.
fn merged(list: &[Prefix], version: IpVersion) -> Vec<(u128, u128)> {
    let mut all: Vec<(u128, u128)> = list
        .iter()
        .filter(|prefix| prefix.version() == version)
        .map(|prefix| prefix.bounds())
        .collect();
    all.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(all.len());
    for (first, last) in all {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

/// Answers questions about addresses that only grow.
struct Cursor<'a> {
    left: &'a [(u128, u128)],
}

impl<'a> Cursor<'a> {
    fn over(left: &'a [(u128, u128)]) -> Self {
        Self { left }
    }

    /// Whether an address is in one of them.
    fn has(&mut self, address: u128) -> bool {
        while let [(first, last), rest @ ..] = self.left {
            if address <= *last {
                return *first <= address;
            }
            self.left = rest;
        }
        false
    }
}

/// What ranges say about an address: as the data path finds it.
pub fn listed(ranges: &[Range], address: IpAddr) -> Listed {
    let address = number(address);
    let begins = |range: &Range| (u128::from(range.first[0]) << 64) | u128::from(range.first[1]);
    let at = ranges.partition_point(|range| begins(range) <= address);
    let range = at.checked_sub(1).and_then(|at| ranges.get(at));
    match range.map(|range| range.listed) {
        Some(1) => Listed::Denied,
        Some(2) => Listed::NotAllowed,
        _ => Listed::Allowed,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn lists(allow: &[&str], deny: &[&str]) -> Lists {
        let all = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        Lists::new(all(allow), all(deny))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn lists_without_prefixes_are_no_ranges() {
        assert_eq!(compile(&Lists::default(), IpVersion::V4), []);
        let everybody = lists(&["::/0"], &[]);
        assert_eq!(compile(&everybody, IpVersion::V6), []);
        // All of IPv4 is not all that can be written.
        let everybody = lists(&["0.0.0.0/0"], &[]);
        let ranges = compile(&everybody, IpVersion::V4);
        assert_eq!(ranges.len(), 3);
        for text in ["0.0.0.0", "255.255.255.255"] {
            assert_eq!(listed(&ranges, address(text)), Listed::Allowed);
        }
    }

    #[test]
    fn neighbours_and_what_lies_within_are_one_range() {
        let one = lists(&[], &["10.0.0.0/24", "10.0.1.0/24", "10.0.0.128/25"]);
        let ranges = compile(&one, IpVersion::V4);
        assert_eq!(
            ranges,
            compile(&lists(&[], &["10.0.0.0/23"]), IpVersion::V4)
        );
        let firsts: Vec<[u64; 2]> = ranges.iter().map(|range| range.first).collect();
        assert_eq!(
            firsts,
            [[0, 0], [0, 0xffff_0a00_0000], [0, 0xffff_0a00_0200]]
        );
    }

    #[test]
    fn who_is_denied_is_so_whatever_is_allowed() {
        let lists = lists(&["10.0.0.0/8", "10.1.2.3"], &["10.1.0.0/16", "10.1.0.0/24"]);
        let prefix = |text: &str| Some(text.parse::<Prefix>().unwrap());
        let ranges = compile(&lists, IpVersion::V4);
        for (client, expected, by) in [
            ("10.0.0.1", Listed::Allowed, prefix("10.0.0.0/8")),
            ("10.1.2.3", Listed::Denied, prefix("10.1.0.0/16")),
            ("10.1.0.1", Listed::Denied, prefix("10.1.0.0/24")),
            ("11.0.0.0", Listed::NotAllowed, None),
        ] {
            let client = address(client);
            assert_eq!(listed(&ranges, client), expected, "{client}");
            let expected = Match {
                listed: expected,
                prefix: by,
            };
            assert_eq!(lists.match_of(client), expected, "{client}");
        }
        let open = self::lists(&[], &["10.1.0.0/16"]);
        assert_eq!(
            open.match_of(address("10.2.0.0")),
            Match {
                listed: Listed::Allowed,
                prefix: None
            }
        );
    }

    #[test]
    fn the_last_address_has_no_range_behind_it() {
        let lists = lists(&[], &["ffff::/16"]);
        let ranges = compile(&lists, IpVersion::V6);
        assert_eq!(ranges.len(), 2);
        let last = IpAddr::from(Ipv6Addr::from_bits(u128::MAX));
        assert_eq!(listed(&ranges, last), Listed::Denied);
    }

    #[test]
    fn what_is_beyond_other_lists_is_counted() {
        let (one, other) = (
            lists(&["10.0.0.0/8"], &["10.1.0.0/16", "10.2.0.0/16"]),
            lists(&["10.0.0.0/8", "11.0.0.0/8"], &["10.2.0.0/16"]),
        );
        assert_eq!((one.beyond(&other), other.beyond(&one)), (1, 1));
        assert_eq!(one.beyond(&one), 0);
        // What moves from one list to the other is beyond it.
        let swapped = lists(&["10.1.0.0/16"], &["10.0.0.0/8"]);
        assert_eq!(swapped.beyond(&one), 2);
    }

    /// Lists of the size of the whole world's allocations: what took each prefix against each other would take minutes for it.
    #[test]
    fn a_hundred_thousand_prefixes_are_compiled() {
        let prefixes = |salt: u32| {
            (0..50_000u32)
                .map(|n| {
                    let address = Ipv4Addr::from_bits(n.wrapping_mul(0x9e37_79b1) ^ salt);
                    Prefix::of(address.into(), 16 + (n % 17) as u8)
                })
                .collect()
        };
        let lists = Lists::new(prefixes(0), prefixes(0x5555));
        let ranges = compile(&lists, IpVersion::V4);
        assert!(ranges.len() > 1_000, "{}", ranges.len());
    }

    /// Few addresses, so that prefixes meet.
    fn prefix4() -> impl Strategy<Value = Prefix> {
        (any::<u8>(), any::<bool>(), 0u8..=32).prop_map(|(low, high, bits)| {
            let address = Ipv4Addr::new(if high { 255 } else { 10 }, 0, 0, low);
            Prefix::of(address.into(), bits)
        })
    }

    fn prefix6() -> impl Strategy<Value = Prefix> {
        (any::<u8>(), any::<u8>(), 0u8..=128).prop_map(|(high, low, bits)| {
            let address = Ipv6Addr::new(u16::from(high) << 8, 0, 0, 0, 0, 0, 0, low.into());
            Prefix::of(address.into(), bits)
        })
    }

    /// What the lists say, prefix by prefix.
    fn naive(lists: &Lists, address: IpAddr) -> Listed {
        let is_in = |list: &[Prefix]| list.iter().any(|prefix| prefix.contains(address));
        if is_in(&lists.deny) {
            Listed::Denied
        } else if lists.allow.is_empty() || is_in(&lists.allow) {
            Listed::Allowed
        } else {
            Listed::NotAllowed
        }
    }

    /// The addresses at which the lists may change their mind, and those before.
    fn addresses(lists: &Lists) -> Vec<IpAddr> {
        let ends = lists.allow.iter().chain(&lists.deny).flat_map(|prefix| {
            let (first, last) = prefix.bounds();
            let near = [
                first.saturating_sub(1),
                first,
                last,
                last.saturating_add(1),
                first / 2 + last / 2,
            ];
            let is_ipv4 = prefix.version() == IpVersion::V4;
            near.into_iter().filter_map(move |number| {
                let address = Ipv6Addr::from_bits(number);
                match address.to_ipv4_mapped() {
                    Some(address) => is_ipv4.then_some(address.into()),
                    None => (!is_ipv4).then_some(address.into()),
                }
            })
        });
        ends.collect()
    }

    fn check(lists: &Lists, version: IpVersion, more: &[IpAddr]) -> Result<(), TestCaseError> {
        let ranges = compile(lists, version);
        prop_assert!(ranges.first().is_none_or(|first| first.first == [0, 0]));
        for pair in ranges.windows(2) {
            prop_assert!(pair[0].first < pair[1].first);
            prop_assert_ne!(pair[0].listed, pair[1].listed);
        }
        prop_assert!(ranges.len() <= 2 * (lists.allow.len() + lists.deny.len()) + 1);
        for &address in addresses(lists).iter().chain(more) {
            let expected = naive(lists, address);
            prop_assert_eq!(listed(&ranges, address), expected, "{}", address);
            let matched = lists.match_of(address);
            prop_assert_eq!(matched.listed, expected, "{}", address);
            let list = match expected {
                Listed::Denied => &lists.deny,
                Listed::Allowed | Listed::NotAllowed => &lists.allow,
            };
            let longest = list
                .iter()
                .filter(|prefix| prefix.contains(address))
                .max_by_key(|prefix| prefix.bits());
            prop_assert_eq!(matched.prefix.as_ref(), longest);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn ranges_say_what_the_lists_say_in_ipv4(
            allow in prop::collection::vec(prefix4(), 0..12),
            deny in prop::collection::vec(prefix4(), 0..12),
            more in prop::collection::vec(any::<u32>(), 20),
        ) {
            let more: Vec<IpAddr> = more.into_iter().map(|bits| Ipv4Addr::from_bits(bits).into()).collect();
            check(&Lists::new(allow, deny), IpVersion::V4, &more)?;
        }

        #[test]
        fn ranges_say_what_the_lists_say_in_ipv6(
            allow in prop::collection::vec(prefix6(), 0..12),
            deny in prop::collection::vec(prefix6(), 0..12),
            more in prop::collection::vec(any::<u128>(), 20),
        ) {
            let more: Vec<IpAddr> = more
                .into_iter()
                .map(Ipv6Addr::from_bits)
                .filter(|address| address.to_ipv4_mapped().is_none())
                .map(IpAddr::from)
                .collect();
            check(&Lists::new(allow, deny), IpVersion::V6, &more)?;
        }
    }
}
