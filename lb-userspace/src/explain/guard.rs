//! What a service's guard says to a client: by its lists, and by what is known of the client's source.

use std::net::IpAddr;

use lb_common::{guard::Listed, hash::Seed, verdict::Reason};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    dataplane::maps::Maps,
    guard::{
        Prefix,
        sources::{SourceFlows, affords, find},
    },
    status::GuardStatus,
};

/// What a service's guard says to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuardFacts {
    /// What the lists say: `allowed`, `denied`, or `not_allowed`, which is that `allow` names others only.
    pub listed: String,
    /// The longest prefix of the list that decides which the client is in; none if it is in none.
    pub prefix: Option<String>,
    /// What is known of the client's source, if sources are limited.
    pub source: Option<SourceFacts>,
}

/// What is known of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SourceFacts {
    /// The prefix that counts as one.
    pub prefix: String,
    /// New flows that it can open at this moment; none if their rate is not limited.
    pub can_open: Option<u64>,
    /// New flows a second that it can open in the long run; none if that is not limited.
    pub new_per_second: Option<u32>,
    /// Flows that it has, as far as is known: embryos, and flows that have ended in the last seconds, may be among them.
    pub flows: u32,
    /// Flows that it may have; none if that is not limited.
    pub most_flows: Option<u32>,
}

/// What a service's guard says to a client at this moment.
pub(super) fn facts(
    maps: &Maps,
    seed: &Seed,
    guard: &GuardStatus,
    client: IpAddr,
    service: u16,
    now_ns: u64,
) -> GuardFacts {
    let matched = guard.lists.match_of(client);
    let source = guard.source_limit.map(|limit| {
        let entry = maps.guards.get(u32::from(service));
        let source = find(maps, &entry, client, service, seed);
        SourceFacts {
            prefix: Prefix::of(client, limit.prefix).to_string(),
            can_open: affords(&entry, source, now_ns),
            new_per_second: limit.new_per_second,
            flows: source.map_or(0, |source| SourceFlows::of(source.flows).total()),
            most_flows: limit.flows,
        }
    });
    GuardFacts {
        listed: match matched.listed {
            Listed::Allowed => "allowed",
            Listed::Denied => "denied",
            Listed::NotAllowed => "not_allowed",
        }
        .to_owned(),
        prefix: matched.prefix.map(|prefix| prefix.to_string()),
        source,
    }
}

/// The guard's answer, and why.
pub(super) fn words(facts: &GuardFacts, has_entry: bool, reason: Reason) -> (String, String) {
    let answer = match reason {
        Reason::Denied => "refused: the client is denied",
        Reason::NotAllowed => "refused: the client is not allowed",
        Reason::CutOff => "refused: the lists keep the client out, which a RST tells it",
        Reason::SourceRate => "refused: too many new flows from its source",
        Reason::SourceFull => "refused: its source has as many flows as it may",
        _ if has_entry => "not asked: the flow has an entry",
        _ => "lets it in",
    };
    let mut why = vec![match (facts.listed.as_str(), &facts.prefix) {
        ("denied", Some(prefix)) => format!("deny has {prefix}"),
        ("allowed", Some(prefix)) => format!("allow has {prefix}"),
        ("not_allowed", _) => "allow has no prefix that it is in".to_owned(),
        _ => "no list has it".to_owned(),
    }];
    if let Some(source) = &facts.source {
        let mut said = Vec::new();
        if let (Some(can_open), Some(rate)) = (source.can_open, source.new_per_second) {
            said.push(format!("can open {can_open} more now, and {rate} a second"));
        }
        if let Some(most) = source.most_flows {
            said.push(format!("has {} of {most} flows", source.flows));
        }
        why.push(format!("source {} {}", source.prefix, said.join(", ")));
    }
    (answer.to_owned(), why.join("; "))
}

#[cfg(test)]
mod tests {
    use lb_common::{
        flow::bucket::homes,
        guard::{RangesRef, Source, SourceBucket},
        net::IpVersion,
    };

    use super::*;
    use crate::{
        dataplane::maps::Capacity,
        guard::{Guard, Lists, SourceLimit, sources::of_client},
    };

    const SECOND_NS: u64 = 1_000_000_000;
    const NOW_NS: u64 = 900 * SECOND_NS;
    const SERVICE: u16 = 3;

    /// A guard of a service, in maps where a source of it has seven flows and can open five more.
    fn guarded() -> (Maps, Seed, GuardStatus) {
        let capacity = Capacity::for_flows(1, 1, 4, 4, 64, 1).with_guards(64, 50);
        let maps = Maps::in_memory(capacity).unwrap();
        let seed = Seed::new([1, 2, 3]);
        let prefixes = |all: &[&str]| all.iter().map(|one| one.parse().unwrap()).collect();
        let guard = Guard::new(
            IpVersion::V4,
            Lists::new(
                prefixes(&["10.0.0.0/8"]),
                prefixes(&["10.1.0.0/16", "10.0.0.0/9"]),
            ),
            Some(SourceLimit {
                prefix: 24,
                new_per_second: Some(10),
                burst: 20,
                flows: Some(100),
            }),
        );
        let entry = guard.entry(RangesRef::default());
        maps.guards.set(SERVICE.into(), &entry);
        let client = IpAddr::from([10, 200, 0, 1]);
        let own = of_client(client.into(), false, SERVICE, entry.mask, &seed);
        let mut bucket = SourceBucket::default();
        bucket.sources[1] = Source {
            fingerprint: own,
            word: 0,
            paid_ns: NOW_NS - SECOND_NS / 2,
            flows: 4 | 3 << 32,
        };
        maps.sources.set(homes(own, maps.sources.len())[1], &bucket);
        (maps, seed, (&guard).into())
    }

    fn said(client: [u8; 4], has_entry: bool, reason: Reason) -> (String, String) {
        let (maps, seed, guard) = guarded();
        let facts = facts(&maps, &seed, &guard, client.into(), SERVICE, NOW_NS);
        words(&facts, has_entry, reason)
    }

    #[test]
    fn each_answer_says_which_prefix_and_what_of_the_source() {
        let known = "source 10.200.0.0/24 can open 5 more now, and 10 a second, has 7 of 100 flows";
        let unknown = |prefix| {
            format!("source {prefix} can open 20 more now, and 10 a second, has 0 of 100 flows")
        };
        for (client, has_entry, reason, answer, why) in [
            (
                [10, 200, 0, 99],
                false,
                Reason::Opened,
                "lets it in",
                format!("allow has 10.0.0.0/8; {known}"),
            ),
            (
                [10, 200, 0, 1],
                true,
                Reason::Established,
                "not asked: the flow has an entry",
                format!("allow has 10.0.0.0/8; {known}"),
            ),
            (
                [10, 1, 2, 3],
                false,
                Reason::Denied,
                "refused: the client is denied",
                format!("deny has 10.1.0.0/16; {}", unknown("10.1.2.0/24")),
            ),
            (
                [10, 1, 2, 3],
                false,
                Reason::CutOff,
                "refused: the lists keep the client out, which a RST tells it",
                format!("deny has 10.1.0.0/16; {}", unknown("10.1.2.0/24")),
            ),
            (
                [11, 0, 0, 1],
                false,
                Reason::NotAllowed,
                "refused: the client is not allowed",
                format!(
                    "allow has no prefix that it is in; {}",
                    unknown("11.0.0.0/24")
                ),
            ),
        ] {
            let expected = (answer.to_owned(), why);
            assert_eq!(said(client, has_entry, reason), expected, "{client:?}");
        }
    }

    #[test]
    fn a_guard_without_limits_says_nothing_of_sources() {
        let (maps, seed, mut guard) = guarded();
        guard.source_limit = None;
        guard.lists = Lists::default().into();
        let facts = facts(&maps, &seed, &guard, [10, 0, 0, 1].into(), SERVICE, NOW_NS);
        assert_eq!(facts.source, None);
        let (answer, why) = words(&facts, false, Reason::Opened);
        assert_eq!(
            (answer.as_str(), why.as_str()),
            ("lets it in", "no list has it")
        );
    }
}
