//! What the reconciler says in the log and in the status when something is not as it was meant to be, and what it does all the same.
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

mod drains;
mod echoes;
mod falls;
mod from_dns;
mod local;
mod newcomers;
mod outliers;
mod starts;
mod undrains;

use std::{
    cell::RefCell,
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Once},
    time::Duration,
};

use lb_common::{backend::Mode, clock::Tick, nat::PORTS_OF_PAIR, net::IpVersion};
use lb_userspace::{
    by_version::ByVersion,
    config::{self, Config},
    dataplane::maps::{Capacity, Maps},
    desired::Edit,
    flows::{Census, Counts, Fill, TableCensus},
    inventory::Ids,
    model::{Admin, BackendName, Health, HealthReport},
    pace::Moment,
    reconcile::{Error, State, would_fit},
    status::{ServiceStatus, Status},
};
use tracing::Level;

thread_local! {
    /// What was logged on this thread. The state waits for nothing, so all that a test makes it say is here.
    static LOG: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

/// Keeps what is logged at WARN and above.
struct Log;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Log {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Words(String);
        impl tracing::field::Visit for Words {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{}={value:?} ", field.name());
            }
        }
        let level = *event.metadata().level();
        if level <= Level::WARN {
            let mut words = Words(String::new());
            event.record(&mut words);
            LOG.with_borrow_mut(|log| log.push((level, words.0)));
        }
    }
}

/// What was logged since the last call.
fn said() -> Vec<(Level, String)> {
    LOG.take()
}

/// Asserts that one thing was said, and that it has all these parts.
#[track_caller]
fn assert_said(level: Level, parts: &[&str]) {
    let said = said();
    let [(its_level, text)] = &said[..] else {
        panic!("not one thing: {said:#?}");
    };
    assert_eq!(*its_level, level, "{text}");
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

/// Maps and a state directory, which goes with its owner.
struct Machine {
    directory: PathBuf,
    maps: Arc<Maps>,
}

impl Machine {
    /// For two backends, since id 0 is not used.
    fn new(test: &str) -> Self {
        static STARTED: Once = Once::new();
        STARTED.call_once(|| {
            use tracing_subscriber::layer::SubscriberExt as _;
            tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Log))
                .unwrap();
        });
        let capacity = Capacity::for_flows(1_000, 600, 2, 3, 10_000, 1)
            .with_pairs(3)
            .with_affinities(100);
        let directory =
            std::env::temp_dir().join(format!("tether-words-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        Self {
            directory,
            maps: Arc::new(Maps::in_memory(capacity).unwrap()),
        }
    }

    fn memory(&self) -> PathBuf {
        self.directory.join("runtime.json")
    }

    /// One service with these backends, and limits that are the maps' sizes. Nobody's health is known, and nobody's has to be.
    fn config(&self, backends: &[&str]) -> Config {
        self.config_with(backends, "")
    }

    /// The same with more lines for the service.
    fn config_with(&self, backends: &[&str], lines: &str) -> Config {
        config::parse(Path::new("words.toml"), &self.text(backends, lines))
            .unwrap()
            .config
    }

    /// The text of that.
    fn text(&self, backends: &[&str], lines: &str) -> String {
        let mut text = format!(
            "interfaces = [\"eth0\"]\nstate_dir = {:?}\n\
             [limits]\nflows = 1000\nflows6 = 600\nservices = 2\nbackends = 3\ntable_slots = 10000\nnat_pairs = 3\nclients = 100\n\
             [[service]]\nname = \"chat\"\nvip = \"10.0.0.1\"\nport = 80\nmode = \"ipip\"\ntable_size = 1009\nmin_healthy = 0\n{lines}",
            self.directory
        );
        for name in backends {
            let number = &name[1..];
            text +=
                &format!("[[service.backend]]\nname = {name:?}\naddress = \"10.0.1.{number}\"\n");
        }
        text
    }

    fn adopt(&self, config: Config) -> Result<State, Error> {
        State::adopt(
            Arc::clone(&self.maps),
            [1, 2, 3, 4],
            config,
            Arc::new(Census::default()),
            NOW,
        )
    }

    /// Plans and applies.
    fn settle(&self, state: &mut State) {
        self.settle_at(state, NOW.into());
    }

    /// The same at some moment.
    fn settle_at(&self, state: &mut State, now: Moment) {
        let plan = state.plan(now);
        for operation in &plan.operations {
            operation.apply(&self.maps, &|| ());
        }
        state.applied(&plan, now.tick());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        }
    }
}

const NOW: Tick = Tick(1_000);

fn name(backend: &str) -> BackendName {
    BackendName {
        service: "chat".to_owned(),
        backend: backend.to_owned(),
    }
}

/// What the checks say of one of the backends b1, b2 and so on.
fn found(number: u8, health: Health) -> HealthReport {
    HealthReport {
        name: name(&format!("b{number}")),
        address: ([10, 0, 1, number], 80).into(),
        health,
        last_error: None,
        answers_echoes: false,
    }
}

fn status(state: &State) -> Status {
    state.status(Vec::new(), Vec::new(), Duration::ZERO)
}

/// What is wanted of a backend.
fn admin(status: &Status, backend: &str) -> Option<Admin> {
    let mut backends = status.services.iter().flat_map(|service| &service.backends);
    backends
        .find(|found| found.name == backend)
        .map(|found| found.admin)
}

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

#[test]
fn a_torn_memory_is_set_aside_with_a_word_about_what_is_lost() {
    let machine = Machine::new("torn");
    let mut state = machine.adopt(machine.config(&["b1", "b2"])).unwrap();
    state.drain(&name("b2"), None).unwrap();
    let whole = std::fs::read(machine.memory()).unwrap();
    let torn = &whole[..whole.len() - 1];
    std::fs::write(machine.memory(), torn).unwrap();

    let mut state = machine.adopt(machine.config(&["b1", "b2"])).unwrap();
    assert_said(
        Level::ERROR,
        &["runtime.json.broken", "EOF while parsing", "`tether drain`"],
    );
    assert_eq!(admin(&status(&state), "b2"), Some(Admin::Active));
    let kept = machine.directory.join("runtime.json.broken");
    assert_eq!(std::fs::read(kept).unwrap(), torn);
    machine.settle(&mut state);
    assert_ne!(std::fs::read(machine.memory()).unwrap(), torn);
}

#[test]
fn a_memory_that_a_newer_version_left_keeps_its_drains() {
    let machine = Machine::new("newer");
    let config = || machine.config(&["b1", "b2"]);
    let newer = r#"{"version":2,"drained":[{"service":"chat","backend":"b2"}],"services":[],"backends":{}}"#;
    std::fs::write(machine.memory(), newer).unwrap();
    let mut state = machine.adopt(config()).unwrap();
    assert_said(
        Level::ERROR,
        &["it has form 2", "runtime.json.broken", "stays so"],
    );
    assert_eq!(admin(&status(&state), "b2"), Some(Admin::Draining));
    machine.settle(&mut state);
    let state = machine.adopt(config()).unwrap();
    assert_eq!(said(), []);
    assert_eq!(admin(&status(&state), "b2"), Some(Admin::Draining));
}

#[test]
fn a_memory_that_cannot_be_read_is_neither_set_aside_nor_replaced() {
    let machine = Machine::new("unread");
    let config = || machine.config(&["b1", "b2"]);
    let mut state = machine.adopt(config()).unwrap();
    state.drain(&name("b2"), None).unwrap();
    // Something that not even root can read, in the place of a disk that fails.
    let good = machine.directory.join("good");
    std::fs::rename(machine.memory(), &good).unwrap();
    std::fs::create_dir(machine.memory()).unwrap();
    let mut state = machine.adopt(config()).unwrap();
    assert_said(
        Level::ERROR,
        &["cannot be read", "`tether drain`", "restart the daemon"],
    );
    machine.settle(&mut state);
    assert_said(Level::WARN, &["would not survive a restart", "remove it"]);
    let error = state.drain(&name("b1"), None).unwrap_err();
    assert!(error.to_string().contains("could not be read"), "{error}");

    // It can be read again.
    std::fs::remove_dir(machine.memory()).unwrap();
    std::fs::rename(good, machine.memory()).unwrap();
    machine.settle(&mut state);
    let mut state = machine.adopt(config()).unwrap();
    assert_eq!(said(), []);
    assert_eq!(admin(&status(&state), "b2"), Some(Admin::Draining));

    // Or somebody has removed it, and then what is known now is remembered.
    std::fs::remove_file(machine.memory()).unwrap();
    std::fs::create_dir(machine.memory()).unwrap();
    state = machine.adopt(config()).unwrap();
    std::fs::remove_dir(machine.memory()).unwrap();
    state.observe(NOW);
    machine.settle(&mut state);
    state.drain(&name("b1"), None).unwrap();
    let state = machine.adopt(config()).unwrap();
    assert_eq!(admin(&status(&state), "b1"), Some(Admin::Draining));
}

#[test]
fn a_memory_that_somebody_removed_is_saved_again() {
    let machine = Machine::new("removed");
    let mut state = machine.adopt(machine.config(&["b1", "b2"])).unwrap();
    state.drain(&name("b2"), None).unwrap();
    machine.settle(&mut state);
    std::fs::remove_dir_all(&machine.directory).unwrap();
    machine.settle(&mut state);
    assert!(!machine.memory().exists(), "only a full comparison looks");

    state.observe(NOW);
    machine.settle(&mut state);
    let state = machine.adopt(machine.config(&["b1", "b2"])).unwrap();
    assert_eq!(admin(&status(&state), "b2"), Some(Admin::Draining));
}

#[test]
fn a_drain_that_ends_with_its_backend_is_said_to() {
    let machine = Machine::new("drains");
    let mut state = machine.adopt(machine.config(&["b1", "b2"])).unwrap();
    state.drain(&name("b2"), None).unwrap();
    state.reload(machine.config(&["b1", "b2"])).unwrap();
    assert_eq!(said(), []);
    assert_eq!(admin(&status(&state), "b2"), Some(Admin::Draining));

    state.reload(machine.config(&["b1"])).unwrap();
    let parts = ["chat/b2", "words.toml", "`tether drain`", "drained again"];
    assert_said(Level::WARN, &parts);
    state.reload(machine.config(&["b1", "b2"])).unwrap();
    assert_eq!(said(), []);
    assert_eq!(admin(&status(&state), "b2"), Some(Admin::Active));

    // While no daemon runs, too.
    state.drain(&name("b2"), None).unwrap();
    machine.adopt(machine.config(&["b1"])).unwrap();
    assert_said(Level::WARN, &parts);
}

/// The service in the configuration, and why it is not served as that says.
fn service(state: &State) -> ServiceStatus {
    let services = status(state).services;
    let found = services.into_iter().find(|service| !service.removed);
    found.unwrap()
}

/// Flows of each backend, counted by so many scans.
fn counted(scans: u64, backends: &[(u32, u8)]) -> Arc<Census> {
    let counts = Counts {
        pin: 1,
        active: 1,
        ..Counts::default()
    };
    Arc::new(Census {
        scans,
        by_backend: backends.iter().map(|&key| (key, counts)).collect(),
        by_service: HashMap::from([(1, counts)]),
        ..Census::default()
    })
}

#[test]
fn backends_without_an_id_are_named_until_they_have_one() {
    let machine = Machine::new("ids");
    let mut state = machine.adopt(machine.config(&["b1", "b2"])).unwrap();
    machine.settle(&mut state);
    // Their flows keep their ids.
    let held = [(1, 0), (2, 0)];
    state.counted(counted(1, &held));
    state.reload(machine.config(&["b3", "b4"])).unwrap();
    assert_said(
        Level::ERROR,
        &["service=\"chat\"", "no id is left for backends b3, b4"],
    );
    for scans in 2..9 {
        machine.settle(&mut state);
        state.settled(scans);
        state.counted(counted(scans, &held));
    }
    assert_eq!(said(), [], "once is enough");
    let error = service(&state).error.unwrap();
    assert!(error.contains("backends b3, b4"), "{error}");
    let generation = status(&state).generation;
    assert!(generation.applied < generation.resolved);

    // One of the old ones has no flows any more.
    let mut scans = 9;
    while service(&state).error.as_ref() == Some(&error) {
        machine.settle(&mut state);
        state.settled(scans);
        state.counted(counted(scans, &held[..1]));
        scans += 1;
        assert!(scans < 30, "b2 never gives up its id");
    }
    assert_said(Level::ERROR, &["no id is left for backend b4"]);
    while service(&state).error.is_some() {
        machine.settle(&mut state);
        state.settled(scans);
        state.counted(counted(scans, &[]));
        scans += 1;
        assert!(scans < 60, "b1 never gives up its id");
    }
    machine.settle(&mut state);
    assert_eq!(said(), []);
    let generation = status(&state).generation;
    assert_eq!(generation.applied, generation.resolved);
}

/// The old object of a backend has flows for days; who waits for their end, or counts them, must find it.
#[test]
fn the_entries_of_a_backend_before_and_after_a_change_of_mode_are_told_apart() {
    let machine = Machine::new("modes");
    let mut state = machine.adopt(machine.config(&["b1"])).unwrap();
    machine.settle(&mut state);
    let mut other = machine.config(&["b1"]);
    other.services[0].mode = Mode::L2;
    state.reload(other.clone()).unwrap();
    machine.settle(&mut state);
    let found = |state: &State| {
        let ids = Ids::of(&machine.maps);
        let services = status(state).services;
        let of = |service: &ServiceStatus| {
            let backends = service.backends.iter();
            let found = backends.map(|one| (one.removed, ids.backend(service, one)));
            found.collect::<Vec<_>>()
        };
        services.iter().flat_map(of).collect::<Vec<_>>()
    };
    assert_eq!(found(&state), [(false, Some(2)), (true, Some(1))]);
    // Also where nobody remembers what it was called, so that it is listed apart.
    std::fs::remove_file(machine.memory()).unwrap();
    let mut state = machine.adopt(other).unwrap();
    machine.settle(&mut state);
    assert_eq!(found(&state), [(true, Some(1)), (false, Some(2))]);
}

#[test]
fn a_service_without_an_id_is_named() {
    let machine = Machine::new("service");
    let mut state = machine.adopt(machine.config(&["b1"])).unwrap();
    machine.settle(&mut state);
    let mut moved = machine.config(&["b1"]);
    moved.services[0].port = 81;
    state.reload(moved).unwrap();
    assert_said(Level::ERROR, &["service=\"chat\"", "no id is left for it"]);
    let service = service(&state);
    assert_eq!(service.port, 81);
    assert!(service.error.unwrap().contains("no id is left for it"));
}

#[test]
fn a_guard_that_is_not_in_force_is_said_of_the_service_that_has_it() {
    let machine = Machine::new("guard");
    let deny = "deny = [\"192.0.2.0/24\"]\n";
    let guarded = machine.config_with(&["b1"], deny);
    let mut state = machine.adopt(guarded.clone()).unwrap();
    machine.settle(&mut state);
    let guard = service(&state).guard.unwrap();
    assert_eq!((guard.summary.as_str(), guard.deny), ("deny 1", 1));
    assert_eq!(service(&state).error, None);
    assert!(state.is_unguarded(Some("no memory".to_owned())));
    assert_eq!(service(&state).error.as_deref(), Some("no memory"));
    assert!(!state.is_unguarded(Some("no memory".to_owned())), "no news");
    // Who has no guard lacks none.
    state.reload(machine.config(&["b1"])).unwrap();
    let bare = service(&state);
    assert_eq!((bare.guard, bare.error), (None, None));
    state.reload(guarded).unwrap();
    assert!(state.is_unguarded(None));
    assert_eq!(service(&state).error, None);
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
