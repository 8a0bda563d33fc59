//! Listings of maps and a status made for the purpose.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::{
    backend::{Backend, BackendState, Forwarding, Mode, Serving},
    clock::Tick,
    counters::Counter,
    flow::{
        v4, v6,
        word::{BackendRef, State, Word},
    },
    net::Address,
    service::Service,
};

use super::*;
use crate::{
    dataplane::maps::{Capacity, Maps},
    ids::{backend_identity, service_identity},
    status::Status,
};

/// Of all tests: 10,000 ticks after boot.
pub(crate) const NOW: Tick = Tick(10_000);
const CHAT: u16 = 3;

/// A status of two services, `chat` (10.0.0.1:80) with `b1` and `b2`, and `mail` (2001:db8::1:25) with `m1`.
pub(crate) fn a_status() -> Status {
    let backend = |name: &str, address: &str, port: u16| {
        serde_json::json!({
            "name": name, "address": address, "port": port, "weight": 100, "admin": "active", "removed": false,
            "health": "up", "serving": "new", "neighbour": "resolved", "last_error": null, "last_error_ended": null,
            "flows": {"embryo": 0, "young": 1, "pin": 2, "closing": 0, "active": 2, "idle": 1},
        })
    };
    let service = |name: &str, vip: &str, port: u16, backends: Vec<serde_json::Value>| {
        serde_json::json!({
            "name": name, "vip": vip, "port": port, "mode": "ipip", "removed": false, "fail_open": false,
            "resets_suspended": null, "error": null, "backends": backends,
        })
    };
    let chat = vec![
        backend("b1", "10.0.1.11", 80),
        backend("b2", "10.0.1.12", 80),
    ];
    serde_json::from_value(serde_json::json!({
        "version": "0.1.0", "pid": 7, "uptime_s": 9,
        "generation": {"accepted": 3, "resolved": 3, "applied": 3},
        "config": {"path": "/etc/tether/tether.toml", "error": null},
        "attachments": [{"interface": "eth0", "mode": "native"}],
        "closed_egress": [{"interface": "br0", "reason": "its driver cannot"}],
        "flows": {"capacity": 0, "embryo": 0, "young": 0, "pin": 0, "closing": 0, "use": 0.0},
        "services": [
            service("chat", "10.0.0.1", 80, chat),
            service("mail", "2001:db8::1", 25, vec![backend("m1", "2001:db8:0:1::11", 25)]),
        ],
        "reasons": {"established": {"packets": 5, "bytes": 300}},
    }))
    .unwrap()
}

/// Maps that hold [`a_status`]: services 3 and 4, backends 5 and 6 (generation 1), 7 (generation 0).
pub(crate) fn maps_of(status: &Status) -> Maps {
    let maps = Maps::in_memory(Capacity::for_flows(4_000, 1_000, 8, 16, 64, 2)).unwrap();
    let mut id = 5;
    for (service_id, service) in (CHAT..).zip(&status.services) {
        let mut entry: Service = maps.services.get(u32::from(service_id));
        entry.identity = service_identity(service.vip, service.port);
        maps.services.set(u32::from(service_id), &entry);
        for backend in &service.backends {
            let generation = if id == 7 { 0 } else { 1 };
            let forwarding = Forwarding::new(Mode::Ipip, backend.address);
            let state = BackendState::new(generation, Serving::New, forwarding, 0, true);
            let entry = Backend {
                state: state.0,
                identity: backend_identity(
                    (&service.name, service.vip, service.port),
                    &backend.name,
                    backend.address,
                    backend.port,
                    service.mode,
                ),
                ..Default::default()
            };
            maps.backends.set(id, &entry);
            id += 1;
        }
    }
    maps
}

/// Puts a flow of an IPv4 client of `chat` into the table, where it fits no lookup, which a list does not need.
fn put(maps: &Maps, at: u32, client: (u32, u16), word: Word, first_seen: u32) {
    let (bucket, way) = (at / 4, at as usize % 4);
    let mut entries = maps.flows4.get(bucket);
    entries.entries[way] = v4::Entry {
        key: v4::Key::new(client.0, client.1, CHAT).0,
        value: word.0,
    };
    maps.flows4.set(bucket, &entries);
    let mut facts = maps.facts4.get(bucket);
    facts.first_seen[way] = first_seen;
    maps.facts4.set(bucket, &facts);
}

/// Puts so many flows of `chat` into the tables, of different clients.
pub(crate) fn fill(maps: &Maps, flows: u32) {
    for at in 0..flows {
        let word = ago(State::Pin, 5 + at % 2, at % 100, 0);
        put(maps, at, (0x0a00_0000 + at, 1_000), word, 1 + at % 7);
    }
}

fn ago(state: State, backend: u32, ticks: u32, flags: u64) -> Word {
    let generation = u8::from(backend != 7);
    Word::live(
        state,
        BackendRef::new(backend, generation),
        0,
        Tick(NOW.0 - ticks),
        flags,
    )
}

fn listed(maps: &Maps, status: &Status, query: FlowQuery) -> (Vec<FlowRow>, FlowEnd) {
    let (mut rows, mut end) = (Vec::new(), None);
    list(maps, status, &query.select().unwrap(), NOW, |line| {
        assert!(end.is_none(), "a line behind the last");
        match line {
            FlowLine::Flow(row) => rows.push(row),
            FlowLine::End(last) => end = Some(last),
        }
        true
    });
    let end = end.expect("a list ends with its end");
    assert_eq!(end.listed, rows.len() as u64);
    (rows, end)
}

fn clients(rows: &[FlowRow]) -> Vec<String> {
    rows.iter().map(|row| row.client.to_string()).collect()
}

/// One of every kind.
fn zoo() -> (Maps, Status) {
    let status = a_status();
    let maps = maps_of(&status);
    let client = |last| (u32::from(Ipv4Addr::new(10, 1, 0, last)), 40_000);
    put(&maps, 0, client(1), ago(State::Pin, 5, 200, 0), 1_000);
    put(
        &maps,
        5,
        client(2),
        ago(State::Pin, 6, 2, Word::FOREIGN),
        9_000,
    );
    put(&maps, 6, client(3), ago(State::Young, 6, 4, 0), 9_996);
    put(&maps, 9, client(4), ago(State::Closing, 5, 20, 0), 0);
    // The place's earlier flow was seen long ago: that is none of an embryo's business.
    let embryo = Word::embryo(BackendRef::new(5, 1), 77, Tick(NOW.0 - 3));
    put(&maps, 12, client(5), embryo, 17);
    // Of a backend that is no more.
    let stale = Word::live(State::Pin, BackendRef::new(5, 0), 0, NOW, 0);
    put(&maps, 13, client(6), stale, 9_999);
    put(&maps, 14, client(7), Word::EMPTY, 3);
    let mut bucket = maps.flows6.get(2);
    bucket.entries[3] = v6::Entry {
        key: v6::Key::new(
            Address::from(IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1))).words(),
            50_000,
            CHAT + 1,
        ),
        value: ago(State::Pin, 7, 0, 0).0,
    };
    maps.flows6.set(2, &bucket);
    (maps, status)
}

#[test]
fn a_flow_is_told_with_its_names_and_times() {
    let (maps, status) = zoo();
    let (rows, end) = listed(&maps, &status, FlowQuery::default());
    assert_eq!((rows.len(), end.next), (7, None));
    let find = |client: &str| {
        rows.iter()
            .find(|row| row.client.to_string() == client)
            .unwrap()
    };
    let first = find("10.1.0.1:40000");
    assert_eq!(first.service.as_deref(), Some("chat"));
    assert_eq!(first.backend.as_deref(), Some("b1"));
    assert_eq!(first.endpoint, Some("10.0.0.1:80".parse().unwrap()));
    assert_eq!(first.address, Some("10.0.1.11:80".parse().unwrap()));
    // 9,000 and 200 ticks of 2^32 ns.
    assert_eq!((first.age_s, first.idle_s), (Some(38_654), 858));
    let since_1970 = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let begun = first.first_seen.unwrap() + 38_654;
    assert!(begun.abs_diff(since_1970) < 60, "{begun} {since_1970}");
    assert!(!first.adopted && find("10.1.0.2:40000").adopted);
    assert_eq!(find("10.1.0.3:40000").state, FlowState::Young);
    let closing = find("10.1.0.4:40000");
    assert_eq!(
        (closing.first_seen, closing.age_s, closing.idle_s),
        (None, None, 85)
    );
    let embryo = find("10.1.0.5:40000");
    assert_eq!(
        (embryo.state, embryo.first_seen, embryo.age_s, embryo.idle_s),
        (FlowState::Embryo, None, Some(12), 12)
    );
    let orphan = find("10.1.0.6:40000");
    assert_eq!(
        (orphan.service.as_deref(), orphan.backend.as_deref()),
        (Some("chat"), None)
    );
    let six = find("[2001:db8:9::1]:50000");
    assert_eq!(
        (six.service.as_deref(), six.backend.as_deref()),
        (Some("mail"), Some("m1"))
    );
}

#[test]
fn filters_keep_what_they_say() {
    let (maps, status) = zoo();
    let of = |change: &dyn Fn(&mut FlowQuery)| {
        let mut query = FlowQuery {
            sort: Some(Sort::Client),
            ..FlowQuery::default()
        };
        change(&mut query);
        let (rows, _) = listed(&maps, &status, query);
        let last = |row: &FlowRow| match row.client.ip() {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => 66,
        };
        rows.iter().map(last).collect::<Vec<_>>()
    };
    assert_eq!(of(&|_| ()), [1, 2, 3, 4, 5, 6, 66]);
    assert_eq!(of(&|q| q.service = Some("mail".into())), [66]);
    assert_eq!(of(&|q| q.service = Some("nothing".into())), [0; 0]);
    assert_eq!(of(&|q| q.backend = Some("b1".into())), [1, 4, 5]);
    assert_eq!(of(&|q| q.client = Some("10.1.0.2/31".into())), [2, 3]);
    assert_eq!(of(&|q| q.client = Some("10.1.0.5".into())), [5]);
    assert_eq!(of(&|q| q.client = Some("2001:db8::/32".into())), [66]);
    assert_eq!(
        of(&|q| q.client = Some("0.0.0.0/0".into())),
        [1, 2, 3, 4, 5, 6]
    );
    assert_eq!(of(&|q| q.state = Some("pin".into())), [1, 2, 6, 66]);
    assert_eq!(of(&|q| q.state = Some("embryo,closing".into())), [4, 5]);
    assert_eq!(of(&|q| q.min_age_s = Some(4_000)), [1, 2]);
    assert_eq!(of(&|q| q.max_age_s = Some(60)), [3, 5, 6]);
    assert_eq!(of(&|q| q.min_idle_s = Some(60)), [1, 4]);
    assert_eq!(of(&|q| q.max_idle_s = Some(8)), [2, 6, 66]);
    assert_eq!(
        of(&|q| {
            q.service = Some("chat".into());
            q.backend = Some("b2".into());
            q.state = Some("young".into());
        }),
        [3]
    );
}

#[test]
fn lists_are_in_the_order_that_is_asked_for() {
    let (maps, status) = zoo();
    let sorted = |sort, reverse| {
        let query = FlowQuery {
            sort: Some(sort),
            reverse,
            state: Some("young,pin".into()),
            service: Some("chat".into()),
            ..FlowQuery::default()
        };
        clients(&listed(&maps, &status, query).0)
            .iter()
            .map(|client| client.replace("10.1.0.", "").replace(":40000", ""))
            .collect::<String>()
    };
    assert_eq!(sorted(Sort::Client, false), "1236");
    assert_eq!(sorted(Sort::Client, true), "6321");
    assert_eq!(sorted(Sort::Age, false), "1236");
    assert_eq!(sorted(Sort::Idle, false), "1326");
    assert_eq!(sorted(Sort::Idle, true), "6231");
}

/// Pages, put together, are the whole list: nothing twice, nothing left out.
#[test]
fn pages_make_up_the_list() {
    let status = a_status();
    let maps = maps_of(&status);
    let mut random = fastrand::Rng::with_seed(5);
    for at in 0..3_000 {
        // Few different ticks, so that most have to be told apart by more.
        let idle = random.u32(0..5);
        let state = [State::Young, State::Pin, State::Closing][random.usize(0..3)];
        let word = ago(state, random.u32(5..7), idle, 0);
        let client = (0x0a00_0000 + random.u32(0..500), 1_000 + at as u16);
        put(&maps, at, client, word, random.u32(0..5));
    }
    for sort in [None, Some(Sort::Client), Some(Sort::Age), Some(Sort::Idle)] {
        for reverse in [false, true] {
            if sort.is_none() && reverse {
                continue;
            }
            let query = |limit, after| FlowQuery {
                sort,
                reverse,
                limit,
                after,
                ..FlowQuery::default()
            };
            let whole_limit = sort.map(|_| MOST_SORTED);
            let (whole, end) = listed(&maps, &status, query(whole_limit, None));
            assert_eq!((whole.len(), end.next), (3_000, None));
            for size in [1_000, 7_00, 299] {
                let (mut rows, mut after) = (Vec::new(), None);
                loop {
                    let (page, end) = listed(&maps, &status, query(Some(size), after));
                    assert!(page.len() == size || end.next.is_none());
                    rows.extend(page);
                    after = end.next;
                    if after.is_none() {
                        break;
                    }
                }
                assert_eq!(clients(&rows), clients(&whole), "{sort:?} {reverse} {size}");
            }
        }
    }
}

#[test]
fn who_has_seen_enough_ends_the_list() {
    let (maps, status) = zoo();
    for sort in [None, Some(Sort::Age)] {
        let query = FlowQuery {
            sort,
            ..FlowQuery::default()
        };
        let mut lines = 0;
        list(&maps, &status, &query.select().unwrap(), NOW, |_| {
            lines += 1;
            lines < 3
        });
        assert_eq!(lines, 3);
    }
}

#[test]
fn a_question_that_means_nothing_is_refused_with_what_would() {
    for (change, complaint) in [
        (r#"{"client":"10.0.0.0/33"}"#, "10.1.0.0/16"),
        (r#"{"client":"example.org"}"#, "example.org"),
        (r#"{"state":"pin,dead"}"#, "\"dead\""),
        (r#"{"limit":0}"#, "at least 1"),
        (r#"{"sort":"age","limit":10001}"#, "10000"),
        (r#"{"reverse":true}"#, "needs sort"),
        (r#"{"after":"1_2_3"}"#, "no answer to this question"),
        (
            r#"{"sort":"age","after":"4.1.1"}"#,
            "no answer to this question",
        ),
    ] {
        let query: FlowQuery = serde_json::from_str(change).unwrap();
        let error = query.select().unwrap_err().to_string();
        assert!(error.contains(complaint), "{change}: {error}");
    }
    serde_json::from_str::<FlowQuery>(r#"{"colour":"red"}"#).unwrap_err();
}

#[test]
fn services_and_backends_are_told_with_their_traffic() {
    let status = a_status();
    let maps = maps_of(&status);
    let layout = maps.capacity.counters();
    for (cpu, offset, packets) in [
        (0, layout.service(CHAT), 10),
        (1, layout.service(CHAT), 5),
        (1, layout.backend(6), 4),
    ] {
        let counter = Counter {
            packets,
            bytes: packets * 100,
        };
        maps.counters.set(cpu * layout.per_cpu + offset, &counter);
    }
    let rows = services(&maps, &status);
    let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["chat", "mail"]);
    assert_eq!(
        (rows[0].traffic.packets, rows[0].traffic.bytes),
        (15, 1_500)
    );
    assert_eq!((rows[0].backends.new, rows[0].flows.pin), (2, 4));
    assert_eq!(rows[1].traffic, Traffic::default());

    let rows = backends(&maps, &status, |_| true);
    let packets: Vec<_> = rows
        .iter()
        .map(|row| (row.backend.name.as_str(), row.traffic.packets))
        .collect();
    assert_eq!(packets, [("b1", 0), ("b2", 4), ("m1", 0)]);
    assert_eq!(backends(&maps, &status, |s| s.name == "mail").len(), 1);
}
