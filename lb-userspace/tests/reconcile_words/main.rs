//! What the reconciler says in the log and in the status when something is not as it was meant to be, and what it does all the same.
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

mod drains;
mod echoes;
mod falls;
mod from_dns;
mod local;
mod memory;
mod newcomers;
mod outliers;
mod room;
mod starts;
mod undrains;

use std::{
    cell::RefCell,
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Once},
    time::Duration,
};

use lb_common::{backend::Mode, clock::Tick};
use lb_userspace::{
    config::{self, Config},
    dataplane::maps::{Capacity, Maps},
    flows::{Census, Counts},
    inventory::Ids,
    model::{Admin, BackendName, Health, HealthReport},
    pace::Moment,
    reconcile::{Error, State},
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
