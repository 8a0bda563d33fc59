//! What the listings look like, and what is asked for them.

use clap::Parser as _;

use super::*;
use crate::{
    balance::outlier::Signal,
    cli::{Cli, Command},
    inventory::tests as shown,
    status::{EjectedStatus, GuardStatus, RepeatsStatus},
};

fn flows_of(line: &str) -> Result<Flows, clap::Error> {
    Cli::try_parse_from(line.split(' ')).map(|cli| match cli.command {
        Command::Flows(flows) => flows,
        other => panic!("another command: {other:?}"),
    })
}

#[test]
fn services_read_like_this() {
    let mut status = shown::a_status();
    status.services[1].fail_open = true;
    status.services[1].guard = Some(GuardStatus {
        summary: "deny 3".to_owned(),
        ..GuardStatus::default()
    });
    let rows = crate::inventory::services(&shown::maps_of(&status), &status);
    let expected = "\
SERVICE  ENDPOINT          MODE  STATE      TAKING NEW  ACTIVE  IDLE  PACKETS  BYTES  GUARD
chat     10.0.0.1:80       ipip  ok         2 of 2      4       2     0        0
mail     [2001:db8::1]:25  ipip  FAIL-OPEN  1 of 1      2       1     0        0      deny 3
";
    assert_eq!(services_table(&rows, Colours(false)), expected);
    assert_eq!(services_table(&[], Colours(false)), "no services\n");
}

/// As `tether status` calls it, which has it from the same status: not to be taken for one whose backends are all gone.
#[test]
fn a_service_whose_backends_are_full_is_called_so() {
    let mut status = shown::a_status();
    for backend in &mut status.services[0].backends {
        backend.serving = Serving::ExistingOnly;
    }
    let state = |status: &crate::status::Status| {
        let rows = crate::inventory::services(&shown::maps_of(status), status);
        ServiceState::of(&rows[0]).word()
    };
    assert_eq!(state(&status), "no backend");
    status.services[0].full = true;
    assert_eq!(state(&status), "FULL");
    status.services[0].fail_open = true;
    assert_eq!(state(&status), "FAIL-OPEN");
    status.services[0].error = Some("no room".into());
    assert_eq!(state(&status), "error");
}

#[test]
fn backends_read_like_this() {
    let mut status = shown::a_status();
    let backend = &mut status.services[0].backends[1];
    (backend.health, backend.serving) = (Health::Down, Serving::None);
    backend.last_error = Some("no answer".into());
    let rows = crate::inventory::backends(&shown::maps_of(&status), &status, |s| s.name == "chat");
    let expected = "\
BACKEND  ADDRESS       WEIGHT  ADMIN   HEALTH  SERVING  NEIGHBOUR  ACTIVE  IDLE  PACKETS  LAST ERROR
chat/b1  10.0.1.11:80  100     active  up      new      resolved   2       1     0
chat/b2  10.0.1.12:80  100     active  down    none     resolved   2       1     0        no answer
";
    assert_eq!(backends_table(&rows, 0, Colours(false)), expected);
}

#[test]
fn what_clients_send_again_is_a_table_of_its_own() {
    let mut status = shown::a_status();
    let share = |samples, again, per_mille| ShareStatus {
        samples,
        again,
        per_mille,
    };
    let [one, other] = &mut status.services[0].backends[..] else {
        panic!("two backends");
    };
    one.balance.repeats = Some(RepeatsStatus::default());
    other.balance.repeats = Some(RepeatsStatus {
        syns: share(400, 4, 10),
        data: share(6_000, 1_830, 305),
    });
    other.balance.ejected = Some(EjectedStatus {
        signal: Signal::Data,
        reason: "clients repeat themselves".into(),
        times: 1,
        left_s: 25,
    });
    let rows = crate::inventory::backends(&shown::maps_of(&status), &status, |_| true);
    let expected = "
BACKEND  SYNS AGAIN  OF   DATA AGAIN  OF    EJECTED
chat/b1  0.0%        0    0.0%        0
chat/b2  1.0%        400  30.5%       6000  ejected for another 25 s: clients repeat themselves
";
    assert_eq!(repeats_table(&rows, Colours(false)), expected);
    assert!(backends_table(&rows, 0, Colours(false)).ends_with(expected));
    assert_eq!(repeats_table(&rows[2..], Colours(false)), "");
}

fn row(client: &str, age_s: Option<u64>) -> FlowRow {
    FlowRow {
        client: client.parse().unwrap(),
        service: Some("chat".into()),
        endpoint: None,
        backend: None,
        address: None,
        state: FlowState::Pin,
        first_seen: None,
        age_s,
        idle_s: 61,
        adopted: true,
    }
}

fn printed(json: bool, rows: &[FlowRow]) -> String {
    let mut text = Vec::new();
    let mut printer = Printer::new(&mut text, json, Colours(false));
    for row in rows {
        assert!(printer.print(row.clone()));
    }
    printer.finish().unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn flows_read_like_this() {
    let rows = [
        row("10.1.0.1:40000", Some(90_000)),
        row("[2001:db8::1]:4", None),
    ];
    let expected = "\
CLIENT           SERVICE  BACKEND  STATE  AGE      IDLE
10.1.0.1:40000   chat     ?        pin    1 d 1 h  1 min 1 s  adopted
[2001:db8::1]:4  chat     ?        pin    ?        1 min 1 s  adopted
";
    assert_eq!(printed(false, &rows), expected);
    assert_eq!(printed(false, &[]), "no flows\n");
    let lines = printed(true, &rows);
    let parsed: Vec<FlowRow> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(parsed, rows);
    assert_eq!(printed(true, &[]), "");
}

#[test]
fn a_long_list_is_printed_before_its_end_is_known() {
    let mut text = Vec::new();
    let mut printer = Printer::new(&mut text, false, Colours(false));
    for n in 0..SAMPLE * 2 {
        assert!(printer.print(row(&format!("10.1.0.1:{n}"), None)));
    }
    assert!(printer.held.is_empty() && printer.columns.is_some());
    printer.finish().unwrap();
    assert_eq!(
        String::from_utf8(text).unwrap().lines().count(),
        SAMPLE * 2 + 1
    );
}

#[test]
fn filters_reach_the_daemon() {
    let flows = flows_of(
        "tether flows --backend chat/b1 --client 10.0.0.0/8 --state young,pin --older-than 2h --idle-for 10m --sort idle --reverse",
    )
    .unwrap();
    let expected = FlowQuery {
        service: Some("chat".into()),
        backend: Some("b1".into()),
        client: Some("10.0.0.0/8".into()),
        state: Some("young,pin".into()),
        min_age_s: Some(7_200),
        min_idle_s: Some(600),
        sort: Some(Sort::Idle),
        reverse: true,
        ..FlowQuery::default()
    };
    assert_eq!(flows.query(), expected);
    assert_eq!(flows.limit(), ROWS);
    assert_eq!(flows_of("tether flows --json").unwrap().limit(), usize::MAX);
    assert_eq!(
        flows_of("tether flows --limit 0").unwrap().limit(),
        usize::MAX
    );
    for wrong in [
        "--reverse",
        "--state dead",
        "--older-than 5",
        "--older-than 5y",
        "--sort colour",
    ] {
        let error = flows_of(&format!("tether flows {wrong}")).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{wrong}");
    }
}

#[test]
fn durations_have_a_unit() {
    for (text, expected) in [
        ("0s", 0),
        ("90s", 90),
        ("10m", 600),
        ("2h", 7_200),
        ("7d", 604_800),
    ] {
        assert_eq!(seconds(text), Ok(expected));
    }
    for wrong in [
        "",
        "s",
        "10",
        "-1s",
        "1.5h",
        "10µ",
        "99999999999999999999d",
        "9999999999999999999d",
    ] {
        assert!(seconds(wrong).is_err(), "{wrong}");
    }
}
