//! What is remembered of statuses and counters made for the purpose.

use lb_common::{counters::Counter, verdict::Reason};

use super::{changes::Level, *};
use crate::{
    balance::outlier::Signal,
    inventory::tests as shown,
    model::{Admin, Health, Suspension},
    status::{AttachMode, DnsStatus, EjectedStatus, Neighbour, ServiceStatus},
};

/// What is said when a status changes so.
fn said(change: impl FnOnce(&mut Status)) -> Vec<(Level, String)> {
    let before = shown::a_status();
    let mut after = before.clone();
    change(&mut after);
    changes(&before, &after)
        .into_iter()
        .map(|change| (change.level, format!("{}: {}", change.subject, change.text)))
        .collect()
}

#[test]
fn what_stays_is_not_told() {
    assert_eq!(said(|_| ()), []);
    // Figures go up and down all the time.
    assert_eq!(
        said(|status| {
            status.uptime_s += 5;
            status.services[0].backends[0].flows.pin += 7;
        }),
        []
    );
}

#[test]
fn a_backends_changes_are_one_sentence() {
    let backend = |change: &dyn Fn(&mut crate::status::BackendStatus)| {
        said(|status| change(&mut status.services[0].backends[0]))
    };
    use lb_common::backend::Serving;
    let one = |level, text: &str| vec![(level, text.to_owned())];
    assert_eq!(
        backend(&|b| {
            (b.health, b.serving) = (Health::Down, Serving::None);
            b.last_error = Some("got no answer".into());
        }),
        one(
            Level::Bad,
            "chat/b1: down (got no answer), is given nothing"
        )
    );
    assert_eq!(
        backend(&|b| (b.admin, b.serving) = (Admin::Draining, Serving::ExistingOnly)),
        one(Level::Info, "chat/b1: drains, keeps the flows it has")
    );
    assert_eq!(
        backend(&|b| (b.removed, b.admin) = (true, Admin::Draining)),
        one(Level::Info, "chat/b1: removed")
    );
    assert_eq!(
        backend(&|b| b.neighbour = Neighbour::Unresolved),
        one(
            Level::Bad,
            "chat/b1: its next hop is not known: no packet gets there"
        )
    );
    assert_eq!(
        backend(&|b| b.weight = 7),
        one(Level::Info, "chat/b1: weight 7 instead of 100")
    );
    assert_eq!(
        backend(&|b| {
            b.serving = Serving::ExistingOnly;
            b.balance.ejected = Some(ejected(1, 30));
        }),
        one(
            Level::Warning,
            "chat/b1: ejected: clients repeat themselves, keeps the flows it has"
        )
    );
}

/// Else each status would tell what the one is and the other is not.
#[test]
fn of_a_backend_that_there_is_twice_each_is_told_by_itself() {
    let mut before = shown::a_status();
    let backends = &mut before.services[0].backends;
    let mut old = backends[0].clone();
    (old.removed, old.identity) = (true, Some(77));
    backends.push(old);
    let mut after = before.clone();
    assert!(changes(&before, &after).is_empty());
    after.services[0].backends.pop();
    let said = changes(&before, &after);
    let said: Vec<_> = said
        .iter()
        .map(|change| (change.subject.as_str(), change.text.as_str()))
        .collect();
    assert_eq!(said, [("chat/b1", "gone: its last flow has ended")]);
}

/// Nothing that was remembered before goes for changes of one kind that come all at once, and the gravest of these are told.
#[test]
fn of_many_changes_at_once_the_gravest_are_told_and_how_many_more_there_are() {
    let mut before = shown::a_status();
    let service = before.services[0].clone();
    before.services = (0..1_000)
        .map(|number| ServiceStatus {
            name: format!("crowd-{number}"),
            ..service.clone()
        })
        .collect();
    let mut after = before.clone();
    after.config.reloads.accepted += 1;
    after.generation.accepted += 1;
    for (number, service) in after.services.iter_mut().enumerate() {
        service.backends[0].weight += 100;
        if number == 700 {
            service.backends[0].health = Health::Down;
        }
    }
    let told = changes(&before, &after);
    assert_eq!(told.len(), 101);
    assert!(told[0].text.starts_with("reloaded: generation"), "{told:?}");
    assert_eq!(
        (told[1].level, &told[1].subject[..]),
        (Level::Bad, "crowd-700/b1")
    );
    assert_eq!(told[2].subject, "crowd-0/b1");
    let last = &told[100];
    assert_eq!(
        (last.level, &last.subject[..], &last.text[..]),
        (Level::Info, "services", "901 more changes")
    );
}

fn ejected(times: u32, left_s: u64) -> EjectedStatus {
    EjectedStatus {
        signal: Signal::Data,
        reason: "clients repeat themselves".into(),
        times,
        left_s,
    }
}

#[test]
fn an_ejection_is_told_when_it_begins_again_and_when_it_ends() {
    let mut before = shown::a_status();
    before.services[0].backends[0].balance.ejected = Some(ejected(1, 30));
    let told = |now: Option<EjectedStatus>| {
        let mut after = before.clone();
        after.services[0].backends[0].balance.ejected = now;
        let told = changes(&before, &after).into_iter();
        told.map(|change| (change.level, change.text))
            .collect::<Vec<_>>()
    };
    // Time goes on all the while.
    assert_eq!(told(Some(ejected(1, 29))), []);
    let text = "stays ejected: clients repeat themselves";
    assert_eq!(
        told(Some(ejected(2, 60))),
        [(Level::Warning, text.to_owned())]
    );
    assert_eq!(told(None), [(Level::Good, "no longer ejected".to_owned())]);
}

#[test]
fn changes_of_services_and_of_the_instance_are_told() {
    let texts = |change: &dyn Fn(&mut Status)| {
        let said = said(|status| change(status));
        assert_eq!(said.len(), 1, "{said:?}");
        said.into_iter().next().unwrap()
    };
    let (level, text) = texts(&|s| s.services[0].fail_open = true);
    assert!(
        level == Level::Bad && text.starts_with("chat: fails open"),
        "{text}"
    );
    let (level, text) = texts(&|s| s.services[1].resets_suspended = Some(Suspension::MassFall));
    assert!(
        level == Level::Warning && text.contains("mail: clients of dead"),
        "{text}"
    );
    let (level, text) = texts(&|s| s.services[0].full = true);
    assert!(
        level == Level::Bad && text.starts_with("chat: full: "),
        "{text}"
    );
    let (_, text) = texts(&|s| drop(s.services.pop()));
    assert_eq!(text, "mail: gone: its last flow has ended");
    let (_, text) = texts(&|s| drop(s.services[0].backends.pop()));
    assert_eq!(text, "chat/b2: gone: its last flow has ended");
    let (level, text) = texts(&|s| {
        s.config.error = Some("a.toml:1:1: x: bad; mend it\nand more".into());
        s.config.reloads.refused = 1;
    });
    assert!(
        level == Level::Bad && text.ends_with("bad; mend it"),
        "{text}"
    );
    let (level, _) = texts(&|s| s.config.reloads.accepted = 1);
    assert_eq!(level, Level::Good);
    let (level, text) = texts(&|s| s.attachments[0].mode = AttachMode::Generic);
    assert!(
        level == Level::Warning && text.contains("generic"),
        "{text}"
    );
    let (level, _) = texts(&|s| s.attachments.clear());
    assert_eq!(level, Level::Bad);
    let (level, text) = texts(&|s| s.flows.tables.v6.fill = crate::flows::Fill::High);
    assert!(
        level == Level::Bad && text.starts_with("IPv6 flow table"),
        "{text}"
    );
    let added = said(|s| {
        let mut new = s.services[0].clone();
        new.port = 81;
        s.services.push(new);
    });
    assert_eq!(added[0].1, "chat: added at 10.0.0.1:81 with 2 backends");
}

#[test]
fn a_name_that_stops_resolving_is_told_once_and_when_it_does_again() {
    let name = |error: Option<&str>| {
        let mut status = shown::a_status();
        status.dns.push(DnsStatus {
            service: "chat".into(),
            source: "pods".into(),
            query: "pods.example.".into(),
            kind: crate::dns::Kind::Srv,
            addresses: vec![],
            failures: 0,
            error: error.map(str::to_owned),
            ignored: vec![],
        });
        status
    };
    let (well, failing) = (name(None), name(Some("request timed out")));
    let told = |before: &Status, after: &Status| {
        let told = changes(before, after).into_iter();
        told.map(|change| (change.level, change.subject, change.text))
            .collect::<Vec<_>>()
    };
    let one = |level, text: &str| vec![(level, "chat/pods".to_owned(), text.to_owned())];
    let fails =
        "pods.example. does not resolve (request timed out): what it gave last stays in force";
    assert_eq!(told(&well, &failing), one(Level::Warning, fails));
    assert_eq!(
        told(&shown::a_status(), &failing),
        one(Level::Warning, fails)
    );
    assert_eq!(told(&failing, &name(Some("another"))), []);
    assert_eq!(
        told(&failing, &well),
        one(Level::Good, "pods.example. resolves again")
    );
    assert_eq!(told(&shown::a_status(), &well), []);
}

#[test]
fn the_latest_changes_are_remembered_and_the_first_status_is_none() {
    let history = History::default();
    let mut status = shown::a_status();
    let applied = status.generation;
    status.generation.resolved = 0;
    history.heard(&Arc::new(status.clone()), 1);
    assert_eq!(history.events(10), []);
    status.generation = applied;
    history.heard(&Arc::new(status.clone()), 2);
    let first = history.events(10);
    assert_eq!(
        (first.len(), first[0].change.subject.as_str()),
        (1, "daemon")
    );
    for at in 0..CHANGES as u64 * 2 {
        status.services[0].fail_open = !status.services[0].fail_open;
        history.heard(&Arc::new(status.clone()), 3 + at);
    }
    let events = history.events(usize::MAX);
    assert_eq!(events.len(), CHANGES);
    assert!(
        events
            .windows(2)
            .all(|pair| pair[0].number + 1 == pair[1].number)
    );
    assert_eq!(events.last().unwrap().at, 2 + CHANGES as u64 * 2);
    assert_eq!(history.events(3), events[CHANGES - 3..]);
}

#[test]
fn a_drain_remembers_what_it_began_with() {
    let history = History::default();
    let mut status = shown::a_status();
    history.heard(&Arc::new(status.clone()), 100);
    assert_eq!(history.drains(&status), []);
    status.services[0].backends[0].admin = Admin::Draining;
    for (now, pin) in [(110, 50), (120, 60), (130, 20)] {
        status.services[0].backends[0].flows.pin = pin;
        history.heard(&Arc::new(status.clone()), now);
    }
    let drain = history.drains(&status).pop().unwrap();
    assert_eq!((drain.since, drain.most, drain.left), (110, 61, 21));
    assert_eq!(
        (drain.service.as_str(), drain.backend.as_str()),
        ("chat", "b1")
    );
    // Undrained and drained again: it begins anew.
    status.services[0].backends[0].admin = Admin::Active;
    history.heard(&Arc::new(status.clone()), 140);
    assert_eq!(history.drains(&status), []);
    status.services[0].backends[0].admin = Admin::Draining;
    history.heard(&Arc::new(status.clone()), 150);
    let drain = history.drains(&status).pop().unwrap();
    assert_eq!((drain.since, drain.most, drain.left), (150, 21, 21));
}

#[test]
fn rates_are_differences_over_time() {
    let history = History::default();
    let mut status = shown::a_status();
    (status.flows.young, status.flows.pin) = (3, 4);
    let maps = shown::maps_of(&status);
    let layout = maps.capacity.counters();
    let count = |offset, packets| {
        let counter = Counter {
            packets,
            bytes: packets * 100,
        };
        maps.counters.set(offset, &counter);
    };
    count(layout.reason(Reason::Established), 1_000);
    history.sample(&maps, &status, 10_000);
    assert_eq!(history.past().total, []);
    count(layout.reason(Reason::Established), 1_400);
    count(layout.reason(Reason::Opened), 20);
    count(layout.reason(Reason::NoBackend), 10);
    count(layout.reason(Reason::NotService), 5_000);
    count(layout.service(3), 60);
    history.sample(&maps, &status, 12_000);
    let rates = history.rates();
    assert_eq!(rates.total.live, 7);
    assert_eq!((rates.total.opened, rates.total.packets), (10.0, 210.0));
    assert_eq!((rates.total.bits, rates.total.lost), (168_000.0, 5.0));
    assert_eq!(rates.services, [30.0, 0.0]);
    // Maps made anew: nothing negative.
    count(layout.service(3), 0);
    history.sample(&maps, &status, 14_000);
    assert_eq!(history.rates().services, [0.0, 0.0]);
    assert_eq!(history.past().services, [vec![30.0, 0.0], vec![0.0, 0.0]]);
    for at in 0..400 {
        history.sample(&maps, &status, 16_000 + at * 2_000);
    }
    let past = history.past();
    assert_eq!((past.total.len(), past.services[0].len()), (150, 60));
}
