//! What is where in the maps, as data: so that a daemon can read the maps of another version, older or newer, and move what is in them into its own.
//!
//! A thing keeps its name for as long as it means the same, wherever it is; one that comes to mean something else gets another name. What a version
//! has and the other has not is dropped on the way to that, and is zero on the way back: so in a new thing, zero has to mean what was the case without
//! it. What takes no such treatment (codes, hashes, how an array is divided) are [`numbers`], which have to be the same.
//!
//! A layout's fields are listed here and nowhere else, exhaustively: who adds one to a structure and forgets this list is told by the compiler.

use core::mem::{offset_of, size_of};

use crate::{
    backend::{Backend, BackendState, Forwarding, NextHop, Serving},
    counters::{self, Counter, CpuState, REASONS},
    flow::{
        bucket::{Facts, WAYS},
        v4, v6,
        word::{self, State},
    },
    guard::{Guard, Listed, Range, SOURCES_IN_BUCKET, Source, fingerprint},
    hash::Seed,
    maglev::Slot,
    maps::{Hold, Instance},
    nat::{self, Endpoint, Link, Pair, Translation},
    notice::Notice,
    service::Service,
    verdict::Reason,
    vip::VipBucket,
};

/// A part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name within the record.
    pub name: &'static str,
    /// Where it begins, in bits from the record's beginning; in each byte the lowest comes first.
    pub at: usize,
    /// Its width, bits.
    pub bits: usize,
    /// What it is made of: as many of these as there is room for. None: a number, or bytes that mean nothing but themselves.
    pub of: Option<&'static Record>,
}

/// Something that a map has one or more of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name, in all versions.
    pub name: &'static str,
    /// Its size, bits.
    pub bits: usize,
    /// What in it is moved to another version's.
    pub fields: &'static [Field],
}

const fn bits_of<R, F>(_: fn(&R) -> &F) -> usize {
    size_of::<F>() * 8
}

/// A structure's record: fields that are moved, with what they are made of, and fields that are not.
macro_rules! record {
    ($constant:ident, $name:literal, $type:ident { $($field:ident $(: $of:ident)?),+ } $(without { $($left:ident),+ })?) => {
        #[doc = concat!("Record `", $name, "`.")]
        pub const $constant: Record = Record {
            name: $name,
            bits: size_of::<$type>() * 8,
            fields: &[$(Field {
                name: stringify!($field),
                at: offset_of!($type, $field) * 8,
                bits: bits_of(|record: &$type| &record.$field),
                of: record!(@of $($of)?),
            }),+],
        };
        const _: fn($type) = |$type { $($field: _,)+ $($($left: _,)+)? }| ();
    };
    (@of $of:ident) => { Some(&$of) };
    (@of) => { None };
}

/// A word's record: parts by their lowest bit and width.
macro_rules! word {
    ($constant:ident, $name:literal { $($field:literal at $at:expr, $bits:expr);+ }) => {
        #[doc = concat!("Record `", $name, "`.")]
        pub const $constant: Record = Record {
            name: $name,
            bits: 64,
            fields: &[$(Field { name: $field, at: $at as usize, bits: $bits as usize, of: None }),+],
        };
    };
}

record!(
    SEED,
    "seed",
    Seed {
        whiten,
        first,
        second
    }
);
record!(INSTANCE, "instance", Instance { flow_seed: SEED, fleet_seed } without { abi_version, reserved });
record!(HOLD, "hold", Hold { until_ns } without { reserved });
word!(TABLE_REF, "table_ref" { "offset" at 0, 32; "size" at 32, 24; "generation" at 56, 8 });
/// A part of a service's traits, which are told apart here: the first of them was the whole of the number once.
const fn service_trait(name: &'static str, of: u16) -> Field {
    Field {
        name,
        at: offset_of!(Service, traits) * 8 + of.trailing_zeros() as usize,
        bits: 1,
        of: None,
    }
}
const fn service_field(name: &'static str, at: usize, bits: usize) -> Field {
    Field {
        name,
        at: at * 8,
        bits,
        of: None,
    }
}
/// Record `service`.
pub const SERVICE: Record = Record {
    name: "service",
    bits: size_of::<Service>() * 8,
    fields: &[
        Field {
            name: "table",
            at: offset_of!(Service, table) * 8,
            bits: 64,
            of: Some(&TABLE_REF),
        },
        Field {
            name: "seed",
            at: offset_of!(Service, seed) * 8,
            bits: size_of::<Seed>() * 8,
            of: Some(&SEED),
        },
        service_field("identity", offset_of!(Service, identity), 64),
        service_field("vip", offset_of!(Service, vip), 128),
        service_field("port", offset_of!(Service, port), 16),
        service_trait("translates", Service::TRANSLATES),
        service_trait("guarded", Service::GUARDED),
        service_field("affinity", offset_of!(Service, affinity), 16),
        service_field("affinity_ticks", offset_of!(Service, affinity_ticks), 16),
    ],
};
const _: fn(Service) = |Service {
                            table: _,
                            seed: _,
                            identity: _,
                            vip: _,
                            port: _,
                            traits: _,
                            affinity: _,
                            affinity_ticks: _,
                        }| ();
word!(RANGES_REF, "ranges_ref" { "first" at 0, 32; "len" at 32, 32 });
record!(GUARD, "guard", Guard { ranges: RANGES_REF, cost_ns, burst_ns, mask, flows, longest_burst_ns } without { reserved, rest });
record!(RANGE, "range", Range { first, listed });
record!(
    SOURCE,
    "source",
    Source {
        fingerprint,
        word,
        paid_ns,
        flows
    }
);
word!(BACKEND_STATE, "backend_state" {
    "generation" at 0, 5;
    "serving" at BackendState::SERVING_SHIFT, 2;
    "hop" at BackendState::HOP_SHIFT, 1;
    "resolved" at BackendState::RESOLVED.trailing_zeros(), 1;
    "forwarding" at BackendState::FORWARDING_SHIFT, 3;
    "tags" at BackendState::TAGS_SHIFT, 2;
    "paces" at BackendState::PACES.trailing_zeros(), 1;
    "share" at BackendState::SHARE_SHIFT, BackendState::SHARE_BITS;
    "since" at BackendState::SINCE_SHIFT, 32
});
record!(
    NEXT_HOP,
    "next_hop",
    NextHop {
        destination,
        source,
        ethertype,
        outer_start,
        ifindex,
        mtu,
        checksum_base,
        outer,
        tags
    }
);
record!(BACKEND, "backend", Backend { state: BACKEND_STATE, port, service, endpoint, address, hops: NEXT_HOP, identity, pairs } without { reserved, unused });
record!(VIP_BUCKET, "vip_bucket", VipBucket { entries });
word!(SLOT, "slot" { "current" at 0, 18; "previous" at 18, 18; "changed" at 36, 28 });
const _: () = assert!(size_of::<Slot>() == 8);
record!(ENDPOINT, "endpoint", Endpoint { address, pairs, services, port } without { reserved });
record!(PAIR, "pair", Pair { address, endpoint } without { reserved });
word!(PORTS, "ports" { "ports" at 0, 64 });
record!(
    LINK,
    "link",
    Link {
        ifindex,
        physical,
        tags
    }
);
record!(COUNTER, "counter", Counter { packets, bytes });
record!(CPU_STATE, "cpu_state", CpuState { notices_lost } without { adoption_paid_ns, reset_paid_ns, answer_paid_ns, unresolved, passed, handed_on, hop });
record!(NOTICE, "notice", Notice { client, vip, backend, seq, ack, client_port, port, service } without { reserved });
record!(FACTS, "facts", Facts { first_seen });

word!(KEY4, "flow4_key" { "address" at 32, 32; "port" at v4::PORT_SHIFT, 16; "service" at v4::SERVICE_SHIFT, 16 });
/// Record `flow6_key`.
pub const KEY6: Record = Record {
    name: "flow6_key",
    bits: size_of::<v6::Key>() * 8,
    fields: &[
        Field {
            name: "address",
            at: offset_of!(v6::Key, address) * 8,
            bits: 128,
            of: None,
        },
        Field {
            name: "port",
            at: offset_of!(v6::Key, rest) * 8 + v4::PORT_SHIFT as usize,
            bits: 16,
            of: None,
        },
        Field {
            name: "service",
            at: offset_of!(v6::Key, rest) * 8 + v4::SERVICE_SHIFT as usize,
            bits: 16,
            of: None,
        },
    ],
};
const _: fn(v6::Key) = |v6::Key {
                            address: _,
                            rest: _,
                        }| ();
word!(WORD, "flow_word" {
    "state" at 0, word::STATE_BITS;
    "generation" at word::BACKEND_SHIFT, 5;
    "backend" at word::BACKEND_SHIFT + 5, 18
});
word!(NASCENT, "flow_word_nascent" {
    "isn" at word::ISN_SHIFT, 32;
    "tick" at word::EMBRYO_TICK_SHIFT, word::EMBRYO_TICK_BITS
});
word!(LIVE, "flow_word_live" {
    "epoch" at word::EPOCH_SHIFT, word::EPOCH_BITS;
    "tick" at word::TICK_SHIFT, word::TICK_BITS;
    "contested" at word::Word::CONTESTED.trailing_zeros(), 1;
    "hint" at word::Word::HINT.trailing_zeros(), 1;
    "foreign" at word::Word::FOREIGN.trailing_zeros(), 1;
    "unconfirmed" at word::Word::UNCONFIRMED.trailing_zeros(), 1;
    "second" at word::Word::SECOND.trailing_zeros(), 1;
    "exception" at word::Word::EXCEPTION.trailing_zeros(), 1
});
// A closing entry has its own use for one of the flags.
const _: () = assert!(word::Word::BY_RESET == word::Word::HINT);
use v4::Entry as Entry4;
use v6::Entry as Entry6;
record!(
    ENTRY4,
    "flow4_entry",
    Entry4 {
        key: KEY4,
        value: WORD
    }
);
record!(
    ENTRY6,
    "flow6_entry",
    Entry6 {
        key: KEY6,
        value: WORD
    }
);
/// Record `affinity`: which backend a client keeps.
pub const AFFINITY: Record = Record {
    name: "affinity",
    bits: size_of::<Entry6>() * 8,
    fields: &[
        Field {
            name: "client",
            at: offset_of!(Entry6, key) * 8,
            bits: size_of::<v6::Key>() * 8,
            of: Some(&KEY6),
        },
        Field {
            name: "state",
            at: VALUE6,
            bits: word::STATE_BITS as usize,
            of: None,
        },
        Field {
            name: "generation",
            at: VALUE6 + word::BACKEND_SHIFT as usize,
            bits: 5,
            of: None,
        },
        Field {
            name: "backend",
            at: VALUE6 + word::BACKEND_SHIFT as usize + 5,
            bits: 18,
            of: None,
        },
        Field {
            name: "tick",
            at: VALUE6 + word::TICK_SHIFT as usize,
            bits: word::TICK_BITS as usize,
            of: None,
        },
    ],
};
const VALUE6: usize = offset_of!(Entry6, value) * 8;
word!(TRANSLATION_WORD, "translation_word" {
    "port" at 0, 16;
    "pair" at 16, nat::PAIR_BITS;
    "answered" at nat::TranslationWord::ANSWERED.trailing_zeros(), 1;
    "proven" at nat::TranslationWord::PROVEN.trailing_zeros(), 1;
    // Of one that is not proven the whole number; of one that is, epoch and flags.
    "rest" at 32, 32
});
record!(
    TRANSLATION,
    "translation",
    Translation {
        word: TRANSLATION_WORD,
        stamp
    }
);

/// All records.
pub const RECORDS: &[&Record] = &[
    &INSTANCE,
    &HOLD,
    &SERVICE,
    &RANGES_REF,
    &GUARD,
    &RANGE,
    &SOURCE,
    &BACKEND,
    &VIP_BUCKET,
    &SLOT,
    &ENDPOINT,
    &PAIR,
    &PORTS,
    &LINK,
    &COUNTER,
    &CPU_STATE,
    &FACTS,
    &NOTICE,
    &KEY4,
    &KEY6,
    &WORD,
    &NASCENT,
    &LIVE,
    &ENTRY4,
    &ENTRY6,
    &AFFINITY,
    &TRANSLATION_WORD,
    &TRANSLATION,
];

/// Counters kept for reasons: where those of services begin. The one number that may differ.
pub const COUNTERS_OF_REASONS: &str = "counters.reasons";
/// What the names of the numbers begin with that tell the codes of reasons. Reasons are found by name, whatever their codes.
pub const REASON: &str = "reason.";

/// Codes, and what else a version has to have in common with another to move what is in its maps. A hash is told by what it gives for one value, so that it
/// cannot change unnoticed.
#[must_use]
pub fn numbers() -> Vec<(String, u64)> {
    let seed = Seed::new([0x1234_5678_9abc_def0, 3, 5]);
    let key6 = v6::Key {
        address: [7, 9],
        rest: 11,
    };
    let mixed = crate::flow::FlowKey::mixed(&v4::Key(7), &seed);
    let mixed6 = crate::flow::FlowKey::mixed(&key6, &seed);
    let vip6 = crate::vip::VipEntry::key6([7, 9], 443);
    let homes = |key| {
        let [first, second] = crate::vip::homes(key, 4_096);
        u64::from(first) << 32 | u64::from(second)
    };
    let mut numbers: Vec<(String, u64)> = [
        ("bucket.ways", u64::from(WAYS)),
        ("state.empty", State::Empty as u64),
        ("state.busy", State::Busy as u64),
        ("state.embryo", State::Embryo as u64),
        ("state.challenger", State::Challenger as u64),
        ("state.young", State::Young as u64),
        ("state.pin", State::Pin as u64),
        ("state.closing", State::Closing as u64),
        ("serving.none", Serving::None as u64),
        ("serving.existing_only", Serving::ExistingOnly as u64),
        ("serving.new", Serving::New as u64),
        ("forwarding.l2", Forwarding::L2 as u64),
        ("forwarding.in_ipv4", Forwarding::InIpv4 as u64),
        ("forwarding.in_ipv6", Forwarding::InIpv6 as u64),
        ("forwarding.nat", Forwarding::Nat as u64),
        ("forwarding.dnat", Forwarding::Dnat as u64),
        ("listed.allowed", Listed::Allowed as u64),
        ("listed.denied", Listed::Denied as u64),
        ("listed.not_allowed", Listed::NotAllowed as u64),
        ("sources.in_bucket", u64::from(SOURCES_IN_BUCKET)),
        ("tick.ns", crate::clock::TICK_NS),
        ("epoch.bytes", 1 << 20),
        ("nat.first_port", u64::from(nat::FIRST_PORT)),
        ("nat.words_of_pair", u64::from(nat::WORDS_OF_PAIR)),
        ("nat.links", u64::from(nat::LINKS_LEN)),
        ("hash.flow4", mixed),
        ("hash.flow6", mixed6),
        (
            "hash.stamp",
            nat::translation::stamp(mixed, word::BackendRef::new(5, 3)),
        ),
        ("hash.source", fingerprint(7, 11, &seed)),
        ("hash.vip4", homes(crate::vip::VipEntry::key(7, 443))),
        ("hash.vip6", vip6),
        ("hash.vip6_homes", homes(vip6)),
        (COUNTERS_OF_REASONS, u64::from(REASONS)),
        ("counters.multiple", u64::from(counters::MULTIPLE)),
    ]
    .into_iter()
    .map(|(name, number)| (name.to_owned(), number))
    .collect();
    let reasons = Reason::ALL.iter();
    numbers.extend(reasons.map(|reason| (format!("{REASON}{}", reason.name()), *reason as u64)));
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Tick;
    use crate::flow::word::{BackendRef, Word};

    fn bits(word: u64, record: &Record, name: &str) -> u64 {
        let field = record.fields.iter().find(|field| field.name == name);
        let field = field.expect("the record has it");
        (word >> field.at) & (u64::MAX >> (64 - field.bits))
    }

    #[test]
    fn fields_lie_in_their_record_and_apart() {
        for record in RECORDS {
            let mut taken = vec![false; record.bits];
            for field in record.fields {
                for bit in &mut taken[field.at..field.at + field.bits] {
                    assert!(!*bit, "{} {}", record.name, field.name);
                    *bit = true;
                }
                if let Some(of) = field.of {
                    assert_eq!(field.bits % of.bits, 0, "{} {}", record.name, field.name);
                }
            }
        }
    }

    /// What is said of words here is what their own methods do.
    #[test]
    fn words_are_as_described() {
        let backend = BackendRef::new(0x2_5a5a, 21);
        let live = Word::live(
            State::Pin,
            backend,
            0x9a5,
            Tick(0x8_5a5a),
            Word::FOREIGN | Word::EXCEPTION,
        );
        assert_eq!(bits(live.0, &WORD, "state"), State::Pin as u64);
        assert_eq!(bits(live.0, &WORD, "generation"), 21);
        assert_eq!(bits(live.0, &WORD, "backend"), 0x2_5a5a);
        assert_eq!(bits(live.0, &LIVE, "epoch"), 0x9a5);
        assert_eq!(bits(live.0, &LIVE, "tick"), 0x8_5a5a);
        assert_eq!(bits(live.0, &LIVE, "foreign"), 1);
        assert_eq!(bits(live.0, &LIVE, "exception"), 1);
        assert_eq!(bits(live.0, &LIVE, "second"), 0);
        let embryo = Word::embryo(backend, 0xdead_beef, Tick(37));
        assert_eq!(bits(embryo.0, &NASCENT, "isn"), 0xdead_beef);
        assert_eq!(bits(embryo.0, &NASCENT, "tick"), 37);
        let key = v4::Key::new(0x0a00_0001, 40_000, 7);
        assert_eq!(bits(key.0, &KEY4, "address"), 0x0a00_0001);
        assert_eq!(bits(key.0, &KEY4, "port"), 40_000);
        assert_eq!(bits(key.0, &KEY4, "service"), 7);
        let state = BackendState::new(9, Serving::New, Forwarding::Dnat, 1, true).tagged(2);
        let state = state.pacing(crate::share::Share::ALL, Tick(77)).0;
        for (name, value) in [
            ("generation", 9),
            ("serving", Serving::New as u64),
            ("hop", 1),
            ("resolved", 1),
            ("forwarding", Forwarding::Dnat as u64),
            ("tags", 2),
            ("paces", 1),
            ("share", 1 << 16),
            ("since", 77),
        ] {
            assert_eq!(bits(state, &BACKEND_STATE, name), value, "{name}");
        }
        let slot = Slot::new(3, 5, Tick(7)).0;
        assert_eq!(bits(slot, &SLOT, "current"), 3);
        assert_eq!(bits(slot, &SLOT, "previous"), 5);
        assert_eq!(bits(slot, &SLOT, "changed"), 7);
        let table = crate::maglev::TableRef::new(3, 5, 7).0;
        assert_eq!(bits(table, &TABLE_REF, "offset"), 3);
        assert_eq!(bits(table, &TABLE_REF, "size"), 5);
        assert_eq!(bits(table, &TABLE_REF, "generation"), 7);
        let word = nat::TranslationWord::new(5, 4_000).answered(0xdead_beef).0;
        assert_eq!(bits(word, &TRANSLATION_WORD, "pair"), 5);
        assert_eq!(bits(word, &TRANSLATION_WORD, "port"), 4_000);
        assert_eq!(bits(word, &TRANSLATION_WORD, "answered"), 1);
        assert_eq!(bits(word, &TRANSLATION_WORD, "proven"), 0);
        assert_eq!(bits(word, &TRANSLATION_WORD, "rest"), 0xdead_beef);
    }
}
