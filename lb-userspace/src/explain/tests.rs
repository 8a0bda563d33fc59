//! Explanations of a status and maps made for the purpose, by a program that only says that it ran.

use std::sync::Mutex;

use lb_common::{
    clock::Tick,
    flow::{
        FlowKey as _, v4, v6,
        word::{BackendRef, State},
    },
    maglev::{Slot, TableRef},
    net::Address,
    service::Service,
    verdict::{Class, Reason},
};

use super::*;
use crate::{dataplane::table::TableKey as _, inventory::tests as shown};

/// `chat` in [`shown::maps_of`].
const CHAT: u16 = 3;
const CLIENT: &str = "10.9.9.9:40000";
const VIP: &str = "10.0.0.1:80";

/// Says of each packet that this became of it, and shows these maps for what was recorded.
#[derive(Debug)]
struct Fake {
    rehearsed: Rehearsed,
    maps: Arc<Maps>,
    asked: Mutex<Vec<(String, Vec<u8>)>>,
}

impl Rehearse for Fake {
    fn rehearse(
        &self,
        _version: IpVersion,
        interface: &str,
        frame: &[u8],
    ) -> Result<(Rehearsed, Arc<Maps>), String> {
        let mut asked = self.asked.lock().unwrap();
        asked.push((interface.to_owned(), frame.to_vec()));
        let mut rehearsed = self.rehearsed.clone();
        rehearsed.frame = frame.to_vec();
        Ok((rehearsed, self.maps.clone()))
    }
}

fn fake(reason: Reason, action: u32, backend: Option<u32>, maps: Maps) -> Fake {
    Fake {
        rehearsed: Rehearsed {
            action,
            frame: vec![],
            reason,
            service: Some(CHAT),
            backend,
        },
        maps: Arc::new(maps),
        asked: Mutex::default(),
    }
}

/// Maps of [`shown::a_status`], with one slot, that `b1` has now, and `b2` had before.
fn maps() -> Maps {
    let maps = shown::maps_of(&shown::a_status());
    let now = maps::now();
    let since = Tick(now.0.saturating_sub(20));
    maps.tables.set(0, &Slot::new(5, 6, since));
    maps.set_table(CHAT, TableRef::new(0, 1, 1));
    maps
}

/// Puts an entry of the client where it is looked for.
fn record(maps: &Maps, word: Word) {
    let Key::V4(key) = Key::new(CLIENT.parse().unwrap(), CHAT) else {
        panic!("another version");
    };
    let home = v4::Key::table(maps).homes(key, &maps.instance.get(0).flow_seed)[0];
    let mut bucket = maps.flows4.get(home);
    bucket.entries[2] = v4::Entry {
        key: key.0,
        value: word.0,
    };
    maps.flows4.set(home, &bucket);
}

fn question() -> Question {
    Question {
        client: CLIENT.parse().unwrap(),
        vip: VIP.parse().unwrap(),
        flags: None,
        seq: None,
        payload: 0,
        interface: Some("lo".into()),
    }
}

/// A program that opens a new flow of `chat` at `b1`.
pub(crate) fn opens() -> impl Rehearse {
    let after = maps();
    record(
        &after,
        Word::embryo(BackendRef::new(5, 1), 1 << 20, maps::now()),
    );
    fake(Reason::Opened, 3, Some(5), after)
}

/// What is said of that.
pub(crate) fn an_explanation() -> Explanation {
    explain(&question(), &maps(), &shown::a_status(), &opens()).unwrap()
}

fn stage<'e>(explanation: &'e Explanation, name: &str) -> &'e Stage {
    let found = explanation.stages.iter().find(|stage| stage.stage == name);
    found.unwrap_or_else(|| panic!("no stage {name}: {explanation:#?}"))
}

/// Has the client keep a backend, as a pass over the flow tables notes it.
fn keep(maps: &Maps, backend: BackendRef) {
    let asked = question();
    let key = v6::Key::new(Address::from(asked.client.ip()).words(), 0, CHAT);
    let seed = maps.instance.get(0).flow_seed;
    let home = key.homes(&seed, maps.affinities.len())[0];
    let mut bucket = maps.affinities.get(home);
    bucket.entries[0] = v6::Entry {
        key,
        value: Word::live(State::Pin, backend, 0, maps::now(), 0).0,
    };
    maps.affinities.set(home, &bucket);
}

#[test]
fn what_a_client_keeps_is_said() {
    for (affinity, backend, kept) in [
        (CHAT, BackendRef::new(6, 1), Some("chat/b2")),
        // Another backend has its id by now.
        (CHAT, BackendRef::new(6, 0), None),
        // The service places each flow for itself, by now.
        (0, BackendRef::new(6, 1), None),
    ] {
        let maps = maps();
        let entry = Service {
            affinity,
            ..maps.services.get(u32::from(CHAT))
        };
        maps.services.set(u32::from(CHAT), &entry);
        keep(&maps, backend);
        let explanation = explain(&question(), &maps, &shown::a_status(), &opens()).unwrap();
        assert_eq!(explanation.kept.as_deref(), kept);
        let why = &stage(&explanation, "table").why;
        assert_eq!(
            why.contains("the client keeps chat/b2, while that takes new flows"),
            kept.is_some(),
            "{why}"
        );
    }
}

#[test]
fn each_stage_of_a_new_flow_answers() {
    let explanation = an_explanation();
    let names: Vec<_> = explanation
        .stages
        .iter()
        .map(|stage| stage.stage.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "packet", "service", "flow", "table", "backend", "forward", "record"
        ]
    );
    assert_eq!(explanation.packet.flags, ["syn"]);
    assert_eq!(explanation.verdict.reason, "opened");
    assert_eq!(
        explanation.verdict.meaning,
        "A SYN: a new flow was recorded."
    );
    let slot = &explanation.slots[0];
    assert_eq!(
        (slot.current.as_deref(), slot.previous.as_deref()),
        (Some("chat/b1"), Some("chat/b2"))
    );
    assert!(slot.hands_over && slot.takes_new);
    assert!(
        stage(&explanation, "table")
            .why
            .starts_with("chat/b2 until 1 min 25 s ago, which still gets")
    );
    assert!(
        stage(&explanation, "backend")
            .answer
            .starts_with("chat/b1, 10.0.1.11:80: active, up, serving new")
    );
    assert!(
        stage(&explanation, "forward")
            .answer
            .starts_with("sent: by lo to 02:00")
    );
    assert_eq!(stage(&explanation, "record").answer, "embryo on chat/b1");
}

/// What a backend on this host gets leaves by no interface.
#[test]
fn a_packet_for_a_backend_on_this_host_is_given_to_its_stack() {
    let explain_with = |reason: Reason, action: u32| {
        let program = fake(reason, action, Some(5), maps());
        explain(&question(), &maps(), &shown::a_status(), &program).unwrap()
    };
    let given = explain_with(Reason::Opened, 2);
    assert_eq!(
        stage(&given, "forward").answer,
        format!("given to this host's stack: {CLIENT} to {VIP}, 54 bytes")
    );
    let sent = given.sent.expect("the frame is read");
    assert_eq!(
        (sent.interface.as_str(), sent.destination),
        ("lo", Some(VIP.parse().unwrap()))
    );
    // What the program has nothing to do with goes the same way, and is not such a one.
    let passed = explain_with(Reason::NotService, 2);
    assert_eq!(stage(&passed, "forward").answer, "to this host, unchanged");
    assert_eq!(passed.sent, None);
}

#[test]
fn a_packet_is_built_such_that_the_flows_entry_takes_it() {
    let asked = |state: State, question: Question| {
        let maps = maps();
        let backend = BackendRef::new(6, 1);
        record(
            &maps,
            match state {
                State::Embryo => Word::embryo(backend, 7_000, maps::now()),
                state => Word::live(state, backend, 5, maps::now(), 0),
            },
        );
        let program = fake(Reason::Established, 3, Some(6), self::maps());
        let explanation = explain(&question, &maps, &shown::a_status(), &program).unwrap();
        assert_eq!(program.asked.lock().unwrap().len(), 1);
        explanation
    };
    let pin = asked(State::Pin, question());
    assert_eq!(
        (pin.packet.flags.join(","), pin.packet.seq),
        ("ack".into(), 5 << 20)
    );
    assert!(
        pin.entries[0].exception,
        "today's table gives another backend"
    );
    assert!(
        stage(&pin, "table")
            .why
            .ends_with("the entry decides, and differs from it")
    );
    assert_eq!(stage(&pin, "record").answer, "nothing is left");
    let embryo = asked(State::Embryo, question());
    assert_eq!(embryo.packet.seq, 7_001);
    let syn = asked(
        State::Embryo,
        Question {
            flags: Some(SYN),
            ..question()
        },
    );
    assert_eq!(
        (syn.packet.flags.join(","), syn.packet.seq),
        ("syn".into(), 7_000)
    );
    let mine = asked(
        State::Pin,
        Question {
            flags: Some(FIN | ACK),
            seq: Some(9),
            ..question()
        },
    );
    assert_eq!(
        (mine.packet.flags.join(","), mine.packet.seq),
        ("ack,fin".into(), 9)
    );
}

#[test]
fn what_is_for_no_service_is_told_what_there_is() {
    let program = fake(Reason::NotService, 2, None, maps());
    let ask = |vip: &str| {
        let question = Question {
            vip: vip.parse().unwrap(),
            ..question()
        };
        explain(&question, &maps(), &shown::a_status(), &program).unwrap()
    };
    let port = ask("10.0.0.1:81");
    assert_eq!(
        stage(&port, "service").why,
        "no service has the port 81; this address has chat at port 80"
    );
    assert_eq!(stage(&port, "forward").answer, "to this host, unchanged");
    assert_eq!(port.stages.len(), 3);
    assert!(
        stage(&ask("10.0.0.2:80"), "service")
            .why
            .contains("no service has the address 10.0.0.2")
    );
}

#[test]
fn what_cannot_be_asked_says_why() {
    let program = fake(Reason::Opened, 3, None, maps());
    let refused = |question: Question, status: &Status| {
        let error = explain(&question, &maps(), status, &program).unwrap_err();
        assert!(matches!(error, Error::Question(_)), "{error:?}");
        error.to_string()
    };
    let status = shown::a_status();
    let vip = "[2001:db8::1]:25".parse().unwrap();
    assert!(refused(Question { vip, ..question() }, &status).contains("different versions"));
    let client = "224.0.0.1:7".parse().unwrap();
    assert!(
        refused(
            Question {
                client,
                ..question()
            },
            &status
        )
        .contains("224.0.0.1")
    );
    let payload = MOST_PAYLOAD + 1;
    assert!(
        refused(
            Question {
                payload,
                ..question()
            },
            &status
        )
        .contains("3400")
    );
    let nowhere = Status {
        attachments: vec![],
        ..status.clone()
    };
    let interface = None;
    assert!(
        refused(
            Question {
                interface,
                ..question()
            },
            &nowhere
        )
        .contains("attached to no interface")
    );
    assert_eq!(program.asked.lock().unwrap().len(), 0);
    // The first that the program is attached to, if none is named.
    explain(
        &Question {
            interface: None,
            ..question()
        },
        &maps(),
        &status,
        &program,
    )
    .unwrap();
    assert_eq!(program.asked.lock().unwrap()[0].0, "eth0");
}

#[test]
fn every_reason_is_told_of_in_the_documents() {
    let page = include_str!("../../../docs/reasons.md");
    for (class, heading) in [
        (
            Class::Configuration,
            "Look at the configuration or the network",
        ),
        (Class::Expected, "Part of normal life"),
        (Class::ShouldNeverHappen, "Should never happen"),
    ] {
        let begin = format!("\n## {heading}\n");
        let (_, section) = page.split_once(&begin).expect("a section for each class");
        let section = section.split("\n## ").next().unwrap_or(section);
        let rows: Vec<&str> = section
            .lines()
            .filter(|line| line.starts_with("| `"))
            .collect();
        let reasons: Vec<&Reason> = Reason::ALL
            .iter()
            .filter(|reason| reason.class() == class)
            .collect();
        assert_eq!(rows.len(), reasons.len(), "{heading}");
        for (row, reason) in rows.into_iter().zip(reasons) {
            let (name, verdict) = (reason.name(), reason.verdict().name());
            let told = format!("| `{name}` | {verdict} | {} | ", reason.meaning());
            let remedy = row.strip_prefix(&told);
            let remedy = remedy.unwrap_or_else(|| panic!("not as in the program, {told:?}: {row}"));
            assert!(
                class != Class::Configuration || remedy.len() > 10,
                "what is to be done? {row}"
            );
        }
    }
}
