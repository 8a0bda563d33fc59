//! What there is no room for, and what there soon will be none for.

use std::{path::Path, sync::Arc, time::Duration};

use lb_common::{nat::PORTS_OF_PAIR, net::IpVersion};
use lb_userspace::{
    by_version::ByVersion,
    config::{self, Config},
    dataplane::maps::Maps,
    desired::Edit,
    flows::{Census, Counts, Fill, TableCensus},
    reconcile::would_fit,
};
use tracing::Level;

use super::{Machine, assert_said, name, said, status};

#[test]
fn limits_that_the_maps_were_not_made_with_are_warned_of_once_and_serve_what_fits() {
    let machine = Machine::new("limits");
    let mut other = machine.config(&["b1", "b2"]);
    other.limits.flows = 2_000;
    other.limits.backends = 64;
    let mut state = machine.adopt(other.clone()).unwrap();
    let said_of = said();
    assert!(said_of.iter().all(|(level, _)| *level == Level::WARN));
    let [(_, of_all), (_, of_flows)] = &said_of[..] else {
        panic!("not two things: {said_of:#?}");
    };
    for (text, parts) in [
        (
            of_all,
            [
                "words.toml:7:12: limits: ",
                "backends = 3 (not 64)",
                "stays in force",
                "`tether cleanup`",
            ],
        ),
        (
            of_flows,
            [
                "words.toml:4:9: limits: ",
                "flows = 1000 (not 2000)",
                "restart the daemon",
                "loses no flow",
            ],
        ),
    ] {
        for part in parts {
            assert!(text.contains(part), "no {part:?} in: {text}");
        }
    }
    machine.settle(&mut state);
    assert_eq!(status(&state).services[0].backends.len(), 2);

    // It is known by now, and nothing about it keeps a reload from being served.
    other.services[0].backends[0].weight = 7;
    state.reload(other).unwrap();
    assert_eq!(said(), []);
    state.reload(machine.config(&["b1"])).unwrap();
    assert_eq!(said(), []);
    let mut another = machine.config(&["b1"]);
    another.limits.services = 9;
    state.reload(another).unwrap();
    assert_said(
        Level::WARN,
        &["words.toml:6:12: limits: ", "services = 2 (not 9)"],
    );
}

#[test]
fn what_does_not_fit_the_maps_is_refused_with_what_to_do() {
    let machine = Machine::new("small");
    let mut larger = machine.config(&["b1", "b2"]);
    larger.limits.backends = 64;
    let mut more = larger.services[0].backends[0].clone();
    more.name = "b3".to_owned();
    more.address = [10, 0, 1, 3].into();
    larger.services[0].backends.push(more);
    let refused = |error: String| {
        for part in [
            "words.toml:7:12: limits: the maps were made with backends = 3, 1 too few",
            "set backends = 4 or more",
            "`tether cleanup`",
        ] {
            assert!(error.contains(part), "no {part:?} in: {error}");
        }
    };
    refused(machine.adopt(larger.clone()).err().unwrap().to_string());
    refused(would_fit(&larger, &machine.maps.capacity).unwrap_err());

    let mut state = machine.adopt(machine.config(&["b1"])).unwrap();
    let error = state.reload(larger.clone()).unwrap_err();
    assert_eq!(status(&state).config.error.as_ref(), Some(&error));
    refused(error);
    // What was changed at runtime counts, before a start as after it.
    state.edit(&name("b1"), &Edit::Remove).unwrap();
    would_fit(&larger, &machine.maps.capacity).unwrap();
}

/// One service with one backend, and this room for guards, which lines 4 and 5 say.
fn with_room(machine: &Machine, prefixes: u32, sources: u32, lists: &str) -> Config {
    let plain = machine.text(&["b1"], lists);
    let keys = format!("[limits]\nprefixes = {prefixes}\nsources = {sources}\n");
    let text = plain.replace("[limits]\n", &keys);
    config::parse(Path::new("words.toml"), &text)
        .unwrap()
        .config
}

/// Room for guards that the maps have otherwise is warned of, at a start and at a reload, each with where it is said, and what to do.
#[test]
fn room_for_guards_that_the_maps_have_otherwise_is_warned_of() {
    fn assert_said_of_both() {
        let said = said();
        let [of_prefixes, of_sources] = &said[..] else {
            panic!("not two things: {said:#?}");
        };
        for ((level, text), place, made) in [
            (of_prefixes, "words.toml:4:12: limits: ", "prefixes = 65536"),
            (of_sources, "words.toml:5:11: limits: ", "sources = 100000"),
        ] {
            assert_eq!(*level, Level::WARN, "{text}");
            for part in [
                place,
                &format!("the maps were made with {made} (not 9), which stays in force"),
                "stop the daemon, run `tether cleanup`",
                "forgets all flows",
            ] {
                assert!(text.contains(part), "no {part:?} in: {text}");
            }
        }
    }
    let machine = Machine::new("room");
    let other = || with_room(&machine, 9, 9, "");
    let mut state = machine.adopt(other()).unwrap();
    assert_said_of_both();
    // Once, whatever else is reloaded.
    state.reload(other()).unwrap();
    assert_eq!(said(), []);
    state.reload(machine.config(&["b1"])).unwrap();
    assert_eq!(said(), []);
    state.reload(other()).unwrap();
    assert_said_of_both();
}

#[test]
fn lists_that_the_maps_have_no_room_for_are_refused_with_what_to_do() {
    let mut machine = Machine::new("narrow-room");
    let capacity = machine.maps.capacity.with_guards(4, 100_000);
    machine.maps = Arc::new(Maps::in_memory(capacity).unwrap());
    let mut state = machine.adopt(with_room(&machine, 4, 100_000, "")).unwrap();
    drop(said());
    // Three ranges, and room to write as many beside them.
    let long = with_room(&machine, 100, 100_000, "deny = [\"192.0.2.0/24\"]\n");
    let error = state.reload(long).unwrap_err();
    for part in [
        "words.toml:4:12: limits: the maps were made with prefixes = 4, 2 too few",
        "set prefixes = 6 or more in [limits]",
        "stop the daemon, run `tether cleanup`",
        "forgets all flows",
    ] {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
    assert_eq!(status(&state).config.error.as_ref(), Some(&error));
    assert!(status(&state).services[0].guard.is_none());
}

#[test]
fn a_table_that_fills_is_warned_of_once_a_crossing() {
    let machine = Machine::new("filling");
    let mut state = machine.adopt(machine.config(&["b1"])).unwrap();
    assert_eq!(said(), []);
    let mut count_both = |v4, v6| {
        let table = |pin| TableCensus {
            capacity: 1_000,
            counts: Counts {
                pin,
                ..Counts::default()
            },
        };
        let census = Census {
            tables: ByVersion {
                v4: table(v4),
                v6: table(v6),
            },
            ..Census::default()
        };
        state.counted(Arc::new(census));
        let flows = state.status(vec![], vec![], Duration::ZERO).flows;
        let fills = [flows.tables.v4.fill, flows.tables.v6.fill];
        assert_eq!((flows.pin, flows.capacity), (v4 + v6, 2_000));
        assert_eq!(Some(flows.fill), fills.into_iter().max());
        fills
    };
    let mut count = |pin| count_both(pin, 0)[0];
    assert_eq!(count(499), Fill::Low);
    assert_eq!(said(), []);
    assert_eq!(count(510), Fill::Half);
    let remedy = [
        "flows = 2000 in [limits] of",
        "words.toml",
        "restart the daemon",
        "flows go on",
    ];
    assert_said(
        Level::WARN,
        &[&["over 50% of the IPv4"][..], &remedy].concat(),
    );
    // To and fro across the mark is one crossing.
    for pin in [490, 520, 699] {
        assert_eq!(count(pin), Fill::Half);
        assert_eq!(said(), []);
    }
    assert_eq!(count(700), Fill::High);
    assert_said(Level::WARN, &[&["over 70%"][..], &remedy].concat());
    assert_eq!(count(100), Fill::Low);
    assert_eq!(said(), []);
    // Each table by itself.
    assert_eq!(count_both(100, 700), [Fill::Low, Fill::High]);
    let remedy = [
        "over 70% of the IPv6",
        "flows6 = 1200 in [limits] of",
        "about 60 bytes",
    ];
    assert_said(Level::WARN, &remedy);
    assert_eq!(count_both(500, 700), [Fill::Half, Fill::High]);
    assert_said(
        Level::WARN,
        &[
            "over 50% of the IPv4",
            "flows = 2000 in [limits] of",
            "about 34 bytes",
        ],
    );
}

#[test]
fn a_pair_whose_ports_run_out_is_warned_of_once_a_crossing() {
    const MOST: u32 = PORTS_OF_PAIR * 80 / 100;
    let mut machine = Machine::new("ports");
    let capacity = machine
        .maps
        .capacity
        .translating_flows_of(IpVersion::V4, true);
    machine.maps = Arc::new(Maps::in_memory(capacity).unwrap());
    let text = machine
        .text(&["b1"], "snat = [\"10.0.2.100\", \"10.0.2.101\"]\n")
        .replace("\"ipip\"", "\"nat\"");
    let config = config::parse(Path::new("words.toml"), &text)
        .unwrap()
        .config;
    let mut state = machine.adopt(config).unwrap();
    machine.settle(&mut state);
    drop(said());
    let mut count = |ports: [u32; 2]| {
        let census = Census {
            ports: [(1, ports[0]), (2, ports[1])].into(),
            ..Census::default()
        };
        state.counted(Arc::new(census));
        let status = status(&state);
        let snat = status.services[0].backends[0].snat.iter();
        let told: Vec<u32> = snat.map(|snat| snat.ports).collect();
        assert_eq!(told, ports);
    };
    count([MOST, 0]);
    assert_eq!(said(), []);
    count([MOST + 1, 0]);
    assert_said(
        Level::WARN,
        &[
            "SNAT address 10.0.2.100 has 51610 of 64512 ports toward 10.0.1.1:80 in use",
            "counted as no_port",
            "add an address to `snat`, or backends",
        ],
    );
    // Not again while so many are in use; and each pair by itself.
    count([PORTS_OF_PAIR, MOST]);
    assert_eq!(said(), []);
    count([MOST + 1, PORTS_OF_PAIR]);
    assert_said(Level::WARN, &["10.0.2.101 has 64512 of 64512 ports"]);
    count([MOST, PORTS_OF_PAIR]);
    assert_eq!(said(), []);
    count([MOST + 1, PORTS_OF_PAIR]);
    assert_said(Level::WARN, &["10.0.2.100 has 51610 of 64512 ports"]);
}
