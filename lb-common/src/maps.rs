//! Names, versions and capacities of the maps, and names of the programs: written nowhere else. Each map but [`EGRESS`], [`NOTICES`], [`TOLD`] and
//! [`PROGRAMS`] has one value, which is an array.

use core::mem::size_of;

/// Version of all layouts in this crate, and of where things are found in them: the homes of flows and of VIPs, and the choice of a slot. It
/// changes whenever any of them does; a daemon that meets maps of another version refuses, or migrates.
pub const ABI_VERSION: u32 = if cfg!(feature = "next-abi") {
    THIS_VERSION + 1
} else {
    THIS_VERSION
};
const THIS_VERSION: u32 = 9;

/// IPv4 flow table: array of [`crate::flow::v4::Bucket`].
pub const FLOWS4: &str = "FLOWS4";
/// Facts for people about IPv4 flows: array of [`crate::flow::bucket::Facts`], parallel to [`FLOWS4`].
pub const FACTS4: &str = "FACTS4";
/// IPv6 flow table: array of [`crate::flow::v6::Bucket`].
pub const FLOWS6: &str = "FLOWS6";
/// Facts for people about IPv6 flows: array of [`crate::flow::bucket::Facts`], parallel to [`FLOWS6`].
pub const FACTS6: &str = "FACTS6";
/// Translations of IPv4 flows: array of [`crate::nat::Bucket`], parallel to [`FLOWS4`], or of one if no service translates.
pub const NAT4: &str = "NAT4";
/// Translations of IPv6 flows: array of [`crate::nat::Bucket`], parallel to [`FLOWS6`], or of one if no service translates.
pub const NAT6: &str = "NAT6";
/// Flows by SNAT port: array of `u32`, [`crate::nat::PORTS_OF_PAIR`] for each of [`PAIRS`], see [`crate::nat::slot_index`].
pub const SLOTS: &str = "SLOTS";
/// Until when the flow tables are only read: array of one [`Hold`].
pub const HOLD: &str = "HOLD";
/// Which backends clients keep: array of [`crate::flow::v6::Bucket`], whose keys have a client's address, as [`crate::net::Address::words`] gives it, and
/// port 0, and whose values are those of pins. Written by the daemon alone, which is the only one to insert here.
pub const AFFINITIES: &str = "AFFINITIES";
/// What services ask of the clients of new flows, by service id: array of [`crate::guard::Guard`].
pub const GUARDS: &str = "GUARDS";
/// Ranges of client addresses, of all [`GUARDS`]: array of [`crate::guard::Range`].
pub const RANGES: &str = "RANGES";
/// What is known of sources: array of [`crate::guard::SourceBucket`].
pub const SOURCES: &str = "SOURCES";
/// All Maglev tables: array of [`crate::maglev::Slot`].
pub const TABLES: &str = "TABLES";
/// Services by id: array of [`crate::service::Service`].
pub const SERVICES: &str = "SERVICES";
/// Backends by id: array of [`crate::backend::Backend`].
pub const BACKENDS: &str = "BACKENDS";
/// IPv4 VIPs: array of [`crate::vip::VipBucket`].
pub const VIPS4: &str = "VIPS4";
/// IPv6 VIPs: array of [`crate::vip::VipBucket`].
pub const VIPS6: &str = "VIPS6";
/// Endpoints by id: array of [`crate::nat::Endpoint`].
pub const ENDPOINTS: &str = "ENDPOINTS";
/// IPv4 endpoints: array of [`crate::vip::VipBucket`], whose words have an endpoint's address, port and id as those of [`VIPS4`] a service's.
pub const ENDPOINTS4: &str = "ENDPOINTS4";
/// IPv6 endpoints: array of [`crate::vip::VipBucket`], as [`ENDPOINTS4`].
pub const ENDPOINTS6: &str = "ENDPOINTS6";
/// SNAT addresses toward endpoints, by id: array of [`crate::nat::Pair`].
pub const PAIRS: &str = "PAIRS";
/// SNAT ports that are likely in use: array of 64-bit words, [`crate::nat::WORDS_OF_PAIR`] for each of [`PAIRS`].
pub const PORTS: &str = "PORTS";
/// VLAN devices that clients are reached by: array of [`crate::nat::LINKS_LEN`] [`crate::nat::Link`]s, see [`crate::nat::link_place`].
pub const LINKS: &str = "LINKS";
/// What is where in all other maps, from version 7 on: text, as `lb_userspace::dataplane::layouts` writes it, of at most [`LAYOUTS_BYTES`].
pub const LAYOUTS: &str = "LAYOUTS";
/// Bytes in [`LAYOUTS`].
pub const LAYOUTS_BYTES: u32 = 1 << 14;
/// Counters: array of [`crate::counters::Counter`], shaped by [`crate::counters::Layout`].
pub const COUNTERS: &str = "COUNTERS";
/// What each CPU keeps for itself: array of [`crate::counters::CpuState`], by CPU number.
pub const CPUS: &str = "CPUS";
/// Interfaces that packets may leave by, other than the one that they came in by: device map, by interface index.
pub const EGRESS: &str = "EGRESS";
/// Entries in [`EGRESS`].
pub const EGRESS_INTERFACES: u32 = 1_024;
/// Flows that a deadline has closed, for the daemon to tell their backends: ring buffer of [`crate::notice::Notice`].
pub const NOTICES: &str = "NOTICES";
/// Bytes in [`NOTICES`]: some thousand notices, with their headers.
pub const NOTICES_BYTES: u32 = 1 << 18;
/// The programs that [`PROGRAM`] hands packets on to: program array, by these indices.
pub const PROGRAMS: &str = "PROGRAMS";
/// Index in [`PROGRAMS`] of [`IPV6_PROGRAM`].
pub const IPV6_INDEX: u32 = 0;
/// Index in [`PROGRAMS`] of the program that steers IPv4 packets of all kinds; that of IPv6 follows.
pub const ANY_INDEX: u32 = 1;
/// Index in [`PROGRAMS`] of the program for messages of ICMP; that of ICMPv6 follows.
pub const CONTROL_INDEX: u32 = 3;
/// Index in [`PROGRAMS`] of the program that gives packets to backends on this host, in IPv4; that of IPv6 follows.
pub const LOCAL_INDEX: u32 = 5;
/// Index in [`PROGRAMS`] of the program that steers flows of modes `nat` and `dnat`, in IPv4; that of IPv6 follows. It and all after it but
/// those from [`GUARD_INDEX`] on are there only if a service translates.
pub const STEER_INDEX: u32 = 7;
/// Index in [`PROGRAMS`] of the program that translates what clients send, in IPv4; that of IPv6 follows.
pub const TRANSLATE_INDEX: u32 = 9;
/// Index in [`PROGRAMS`] of the program that translates what backends send, in IPv4; that of IPv6 follows.
pub const REPLY_INDEX: u32 = 11;
/// Index in [`PROGRAMS`] of the program that translates errors about packets of either side, in IPv4; that of IPv6 follows.
pub const ERROR_INDEX: u32 = 13;
/// Index in [`PROGRAMS`] of the program that guards services, in IPv4; that of IPv6 follows. They are there only if a service has a guard.
pub const GUARD_INDEX: u32 = 15;
/// Index in [`PROGRAMS`] of [`PROGRAM`] itself, which [`MEASURE_PROGRAM`] hands every packet on to. It is there only if that runs.
pub const MAIN_INDEX: u32 = 17;
/// Entries in [`PROGRAMS`].
pub const PROGRAMS_LEN: u32 = 18;
/// The instance's own facts: array of one [`Instance`].
pub const INSTANCE: &str = "INSTANCE";

/// Every map.
pub const ALL: [&str; 30] = [
    INSTANCE, LAYOUTS, FLOWS4, FACTS4, NAT4, FLOWS6, FACTS6, NAT6, SLOTS, HOLD, AFFINITIES, GUARDS,
    RANGES, SOURCES, TABLES, SERVICES, BACKENDS, VIPS4, VIPS6, ENDPOINTS, ENDPOINTS4, ENDPOINTS6,
    PAIRS, PORTS, LINKS, COUNTERS, CPUS, EGRESS, NOTICES, PROGRAMS,
];
/// Those that no program uses.
pub const OF_DAEMON: [&str; 2] = [INSTANCE, LAYOUTS];
/// Those that make up the flow tables, or that programs of other tables must not share: tables of another size have others.
pub const OF_FLOWS: [&str; 9] = [
    FLOWS4, FACTS4, NAT4, FLOWS6, FACTS6, NAT6, SLOTS, HOLD, PROGRAMS,
];

/// Those that the programs write, and the array of the programs themselves: a rehearsal, which changes nothing, has copies of its own.
pub const WRITTEN: [&str; 13] = [
    FLOWS4, FACTS4, NAT4, FLOWS6, FACTS6, NAT6, SLOTS, SOURCES, PORTS, COUNTERS, CPUS, NOTICES,
    PROGRAMS,
];

/// What the daemon has inserted, while it moves flows to another table: array of [`crate::flow::copy::Order`]. Never pinned.
pub const COPIES: &str = "COPIES";

/// Who listens to a program that watches, and to what: array of [`crate::watch::LISTENERS`] [`crate::watch::Filter`]s. Never pinned.
pub const LISTENERS: &str = "LISTENERS";
/// The packet that each CPU has on its way, in a program that watches: array of [`crate::watch::Record`], by CPU number. Never pinned.
pub const RECORDS: &str = "RECORDS";
/// What listeners are told: ring buffer of [`crate::watch::Head`]s, each with its packet's bytes. Never pinned.
pub const TOLD: &str = "TOLD";
/// Bytes in [`TOLD`], of a program that watches: some thousand whole packets, or ten times as many flow events.
pub const TOLD_BYTES: u32 = 1 << 22;

/// What clients send again, by backend: array of [`crate::repeats::Repeats`]. Never pinned.
pub const REPEATS: &str = "REPEATS";
/// The flows that are watched for it: array of twice [`crate::repeats::PLACES`] [`crate::repeats::Sample`]s, those for data and then those for SYNs. Never
/// pinned.
pub const SAMPLES: &str = "SAMPLES";
/// Of which services that is counted: array of 64-bit words, by id; 1 or 0. Written by the daemon. Never pinned.
pub const MEASURED: &str = "MEASURED";
/// The maps that a program which measures has beside the instance's. Nothing in them outlives it.
pub const OF_MEASURING: [&str; 3] = [REPEATS, SAMPLES, MEASURED];

/// Name of the load balancer's XDP program.
pub const PROGRAM: &str = "tether";
/// Name of the program that is attached in its place while a service wants to know what its clients send again: it counts that, and hands every packet on to
/// [`PROGRAM`].
pub const MEASURE_PROGRAM: &str = "measure";
/// What stands in [`PROGRAMS`]: names of programs, by index.
pub const HANDED_ON_TO: [&str; PROGRAMS_LEN as usize] = [
    IPV6_PROGRAM,
    "any4",
    "any6",
    "control4",
    "control6",
    "local4",
    "local6",
    "steer4",
    "steer6",
    "translate4",
    "translate6",
    "reply4",
    "reply6",
    "error4",
    "error6",
    "guard4",
    "guard6",
    PROGRAM,
];
/// Name of the program that [`PROGRAM`] hands IPv6 packets on to.
pub const IPV6_PROGRAM: &str = "tether6";
/// Name of the program that inserts entries for the daemon; it meets no packet but that of a test run.
pub const COPY_PROGRAM: &str = "copy";
/// Name of the program (TC, on egress) that translates what backends on this host send back.
pub const LOCAL_REPLY_PROGRAM: &str = "local_reply";
/// Name of the decapsulating XDP program.
pub const DECAP_PROGRAM: &str = "decap";

/// What an instance is, beyond its maps' contents. Read by the daemon when it adopts pinned maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instance {
    /// [`ABI_VERSION`] of who created the maps; 0 is not yet initialised.
    pub abi_version: u32,
    /// Zero.
    pub reserved: u32,
    /// Secret that keys the flow table's buckets.
    pub flow_seed: crate::hash::Seed,
    /// Secret that keys the Maglev tables, unless the configuration gives one.
    pub fleet_seed: [u64; 4],
}

/// Until when the entries of the flow tables are only read.
///
/// While they are held, everything is forwarded as before, but nothing is written: so the daemon can copy them exactly. What would be lost
/// with that (the end of a flow, the promotion of one) is dropped, and comes again. It is a moment and no switch, so that a daemon
/// which dies meanwhile leaves nothing behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Hold {
    /// The moment, in nanoseconds of the monotonic clock; 0 is never.
    pub until_ns: u64,
    /// Zero.
    pub reserved: [u64; 7],
}

const _: () = assert!(size_of::<Hold>() == 64);

/// Constants of the loaded program, set by the daemon before it loads it; the verifier knows their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Constants {
    /// Secret that keys the flow table's buckets: [`Instance::flow_seed`].
    pub flow_seed: crate::hash::Seed,
    /// Buckets in [`FLOWS4`].
    pub flow4_buckets: u32,
    /// Buckets in [`FLOWS6`].
    pub flow6_buckets: u32,
    /// Buckets in [`VIPS4`] and in [`VIPS6`].
    pub vip_buckets: u32,
    /// Shape of [`COUNTERS`].
    pub counters: crate::counters::Layout,
    /// Entries in [`BACKENDS`].
    pub backends: u32,
    /// Slots in [`TABLES`].
    pub table_slots: u32,
    /// Entries in [`CPUS`].
    pub cpus: u32,
    /// Entries in [`COUNTERS`].
    pub counter_entries: u32,
    /// Buckets in [`NAT4`]: as many as in [`FLOWS4`], or 0 if no service translates.
    pub nat4_buckets: u32,
    /// Buckets in [`NAT6`]: as many as in [`FLOWS6`], or 0 if no service translates.
    pub nat6_buckets: u32,
    /// Entries in [`ENDPOINTS`]; id 0 is none.
    pub endpoints: u32,
    /// Buckets in [`ENDPOINTS4`] and in [`ENDPOINTS6`].
    pub endpoint_buckets: u32,
    /// Entries in [`PAIRS`]; id 0 is none.
    pub pairs: u32,
    /// Nanoseconds an adoption costs a CPU, see [`crate::counters::spend`].
    pub adoption_cost_ns: u64,
    /// Nanoseconds a reset costs a CPU.
    pub reset_cost_ns: u64,
    /// Nanoseconds an answer by ICMP costs a CPU.
    pub answer_cost_ns: u64,
    /// Whether it tells listeners of packets: 1, or 0.
    pub watches: u32,
    /// Buckets in [`AFFINITIES`].
    pub affinity_buckets: u32,
    /// Whether services are guarded: 1, or 0.
    pub guards: u32,
    /// Ranges in [`RANGES`].
    pub ranges: u32,
    /// Buckets in [`SOURCES`].
    pub source_buckets: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Instance>() == 64 && size_of::<Constants>() == 128);

/// Name of the global in the BPF object that holds [`Constants`].
pub const CONSTANTS: &str = "CONSTANTS";

/// How long adoptions, resets and answers may be saved up, in nanoseconds: 100 ms.
pub const BURST_NS: u64 = 100_000_000;

/// How much of that answers leave which can wait, echoes and errors about hops and about ways that end, to those about packets that are too big, in
/// nanoseconds: without these a connection stands still.
pub const KEPT_NS: u64 = BURST_NS / 2;

/// Default capacities.
pub mod default {
    /// IPv4 flows.
    pub const FLOWS: u32 = 1_000_000;
    /// IPv6 flows.
    pub const FLOWS6: u32 = 250_000;
    /// Services.
    pub const SERVICES: u32 = 4_096;
    /// Backends.
    pub const BACKENDS: u32 = 32_768;
    /// SNAT addresses toward endpoints: 266 kB each.
    pub const NAT_PAIRS: u32 = 64;
    /// Clients that keep their backends: 54 bytes each.
    pub const AFFINITIES: u32 = 100_000;
    /// Ranges of client addresses: 24 bytes each.
    pub const RANGES: u32 = 65_536;
    /// Sources that are told apart: 54 bytes each.
    pub const SOURCES: u32 = 100_000;
    /// Slots in the arena.
    pub const TABLE_SLOTS: u32 = 4_194_304;
    /// Adoptions a second on each CPU.
    pub const ADOPTIONS_PER_SECOND: u64 = 50_000;
    /// Resets a second on each CPU.
    pub const RESETS_PER_SECOND: u64 = 100_000;
    /// Answers by ICMP a second on each CPU.
    pub const ANSWERS_PER_SECOND: u64 = 1_000;
}

#[cfg(all(test, not(feature = "next-abi")))]
mod tests {
    use super::*;
    use crate::{
        flow::{FlowKey, v4, v6},
        hash::Seed,
        maglev::slot_index,
        net::Address,
        vip::{self, VipEntry},
    };

    /// A change of any of these numbers loses every flow that an older version has pinned, unless the version changes too.
    #[test]
    fn what_version_9_finds_where() {
        assert_eq!(ABI_VERSION, 9);
        let seed = Seed::new([0x1234_5678_9abc_def0, 3, 5]);
        let key = v4::Key::new(0x0a00_0001, 40_000, 7);
        let slot = |client| slot_index(client, &seed, 0, 65_537);
        assert_eq!(
            (
                key.homes(&seed, 416_667),
                vip::homes(VipEntry::key(0x0a00_0001, 443), 4_096),
                slot(key.client_word(&seed)),
            ),
            ([174_262, 26_694], [3_097, 1_067], 27_409)
        );
        let address = Address::from(core::net::IpAddr::from([0x2001, 0xdb8, 0, 1, 2, 3, 4, 5]));
        let key = v6::Key::new(address.words(), 40_000, 7);
        let vip = VipEntry::key6(address.words(), 443);
        assert_eq!(
            (
                key.homes(&seed, 104_167),
                (vip, vip::homes(vip, 4_096)),
                slot(key.client_word(&seed)),
            ),
            (
                [61_596, 78_000],
                (4_852_275_187_557_662_720, [1_510, 3_154]),
                38_563
            )
        );
    }
}
