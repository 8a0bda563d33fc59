//! A disk that hangs, and answers again, or fails late. By itself, since nothing can be saved meanwhile.
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use lb_common::clock::Tick;
use lb_userspace::{
    config,
    dataplane::maps::{Capacity, Maps},
    desired::Refusal,
    failpoint::{self, Place},
    flows::Census,
    model::BackendName,
    reconcile::State,
};

const NOW: Tick = Tick(1_000);
/// How long anything may take: only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the disk hangs.
static HANGS: Mutex<bool> = Mutex::new(false);
static ANSWERS: Condvar = Condvar::new();

/// A directory that goes elsewhere once the file in it has its name.
static MOVES: Mutex<Option<(PathBuf, PathBuf)>> = Mutex::new(None);

fn happens(place: Place) {
    match place {
        Place::MemoryWritten => {
            let hangs = HANGS.lock().unwrap();
            drop(ANSWERS.wait_timeout_while(hangs, PATIENCE, |hangs| *hangs));
        }
        Place::MemoryRenamed => {
            if let Some((from, to)) = MOVES.lock().unwrap().take() {
                fs::rename(from, to).unwrap();
            }
        }
        _ => {}
    }
}

fn name(backend: &str) -> BackendName {
    BackendName {
        service: "chat".to_owned(),
        backend: backend.to_owned(),
    }
}

#[test]
fn what_is_refused_since_the_disk_hangs_or_fails_does_not_hold_afterwards() {
    failpoint::observe(happens);
    let directory = std::env::temp_dir().join(format!("tether-disk-{}", std::process::id()));
    let text = format!(
        "interfaces = [\"eth0\"]\nstate_dir = {directory:?}\n[limits]\nflows = 1000\nflows6 = 600\nservices = 16\nbackends = 64\ntable_slots = 16384\n\
         [[service]]\nname = \"chat\"\nvip = \"10.0.0.1\"\nport = 80\nmode = \"ipip\"\ntable_size = 1009\nhealth.initial = \"up\"\n\
         [[service.backend]]\nname = \"b1\"\naddress = \"10.0.1.1\"\n[[service.backend]]\nname = \"b2\"\naddress = \"10.0.1.2\"\n"
    );
    let config = config::parse(Path::new("disk.toml"), &text).unwrap().config;
    let capacity = Capacity::for_flows(1_000, 600, 16, 64, 16_384, 1);
    let maps = Arc::new(Maps::in_memory(capacity).unwrap());
    let census = Arc::new(Census::default());
    let mut state = State::adopt(Arc::clone(&maps), [1, 2, 3, 4], config, census, NOW).unwrap();
    let apply = |state: &mut State| {
        let plan = state.plan(NOW);
        for operation in &plan.operations {
            operation.apply(&maps, &|| ());
        }
        state.applied(&plan, NOW);
    };
    let is_b1_drained = || {
        let text = fs::read_to_string(directory.join("runtime.json")).unwrap();
        text.contains(r#""drained":[{"service":"chat","backend":"b1"}]"#)
    };
    apply(&mut state);
    assert!(!is_b1_drained());

    *HANGS.lock().unwrap() = true;
    let error = state.drain(&name("b1"), None).unwrap_err();
    let Refusal::Failed(why) = &error else {
        panic!("{error}");
    };
    assert!(why.contains("has not answered"), "{why}");
    // It has been waited for: all else goes on, and what rests on it is refused at once.
    let begun = Instant::now();
    for _ in 0..50 {
        apply(&mut state);
        state.observe(NOW);
        state.drain(&name("b2"), None).unwrap_err();
        // Nor is it said of what was refused that it is taken back: the file may come to have it.
        state.undrain(&name("b1")).unwrap_err();
        state.undrain_all().unwrap_err();
    }
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());

    *HANGS.lock().unwrap() = false;
    ANSWERS.notify_all();
    // What was asked for then is saved after all; nobody was told so, and it does not stay.
    let begun = Instant::now();
    while !is_b1_drained() {
        assert!(begun.elapsed() < PATIENCE, "it never answers");
        thread::yield_now();
    }
    while is_b1_drained() {
        assert!(begun.elapsed() < PATIENCE, "it stays");
        apply(&mut state);
    }
    // All is as before.
    state.drain(&name("b1"), None).unwrap();
    assert!(is_b1_drained());
    state.undrain(&name("b1")).unwrap();

    // Nor does what is refused once the file has it, since its name cannot be synced.
    let elsewhere = directory.with_extension("elsewhere");
    let refused = |state: &mut State| {
        *MOVES.lock().unwrap() = Some((directory.clone(), elsewhere.clone()));
        state.drain(&name("b1"), None).unwrap_err();
        fs::rename(&elsewhere, &directory).unwrap();
        assert!(is_b1_drained());
    };
    refused(&mut state);
    apply(&mut state);
    assert!(!is_b1_drained());
    refused(&mut state);
    state.undrain(&name("b1")).unwrap();
    assert!(!is_b1_drained());
    refused(&mut state);
    state.undrain_all().unwrap();
    assert!(!is_b1_drained());
    fs::remove_dir_all(directory).unwrap();
}
