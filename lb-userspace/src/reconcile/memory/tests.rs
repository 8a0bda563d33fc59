use super::*;

fn directory(test: &str) -> PathBuf {
    std::env::temp_dir().join(format!("tether-memory-{test}-{}", std::process::id()))
}

#[test]
fn what_is_saved_is_loaded() {
    let directory = directory("saved");
    assert!(Memory::load(&directory).is_empty());
    let name = BackendName {
        service: "chat".to_owned(),
        backend: "b1".to_owned(),
    };
    let endpoint = Endpoint {
        vip: "2001:db8::1".parse().unwrap(),
        port: 80,
    };
    let asked = Asked {
        deadline: Duration::from_secs(60),
        close_over: None,
        since: Some(Moment(-5)),
    };
    let terms = Terms {
        deadline: Some(Duration::from_millis(1)),
        close_over: Duration::from_secs(2),
        since: Some(Moment(9)),
    };
    let service = KnownService {
        name: "chat".to_owned(),
        on_down: OnDown::Keep,
        reset_over: Duration::from_millis(7),
        terms: Terms {
            since: None,
            ..terms
        },
    };
    let ordered = Drains {
        backends: BTreeMap::from([(name.clone(), Some(asked))]),
        all: Some(Evacuation { asked: Some(asked) }),
    };
    let memory = Memory::load(&directory).renewed(
        &ordered,
        serde_json::from_str(
            r#"[{"name":{"service":"chat","backend":"b2"},"change":{"weight":7}}]"#,
        )
        .unwrap(),
        serde_json::from_str(
            r#"[{"question":{"name":"chat.example.","kind":"srv"},"found":[{"address":"10.0.1.1","port":80,"weight":7}]}]"#,
        )
        .unwrap(),
        std::iter::once((endpoint, service.clone())),
        std::iter::once((u64::MAX, name.clone())),
        std::iter::once((u64::MAX, Moment(7), terms)),
    );
    memory.save(&directory).unwrap();
    let loaded = Memory::load(&directory);
    assert_eq!(loaded.ordered(), ordered);
    assert_eq!(loaded.drain(u64::MAX), Some((Moment(7), terms)));
    assert_eq!(loaded.drain(1), None);
    assert_eq!(loaded.backend(u64::MAX), Some(name));
    assert_eq!(loaded.service(endpoint), Some(service));
    assert_eq!(
        fs::read_dir(&directory).unwrap().count(),
        1,
        "nothing is left aside"
    );
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_file_of_a_version_that_knew_no_deadlines_is_understood() {
    let directory = directory("older");
    fs::create_dir_all(&directory).unwrap();
    let text = r#"{"version":1,"drained":[{"service":"chat","backend":"b1"}],"services":[{"vip":"10.0.0.1","port":80,"name":"chat"}],"backends":{}}"#;
    fs::write(path(&directory), text).unwrap();
    let memory = Memory::load(&directory);
    let endpoint = Endpoint {
        vip: [10, 0, 0, 1].into(),
        port: 80,
    };
    let service = memory.service(endpoint).unwrap();
    assert_eq!(
        service,
        KnownService {
            name: "chat".to_owned(),
            ..KnownService::unknown(endpoint)
        }
    );
    let ordered = memory.ordered();
    let names: Vec<String> = ordered.backends.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["chat/b1"]);
    assert_eq!(ordered.backends.values().flatten().count(), 0);
    assert_eq!(ordered.all, None);
    assert_eq!(Memory::load(&directory).echoing(Moment(0)).count(), 0);
    assert_eq!(memory.starting(0), None);
    fs::remove_dir_all(directory).unwrap();
}

/// What is to be remembered of a daemon that knows nothing.
fn nothing(directory: &Path) -> Memory {
    Memory::load(directory).renewed(
        &Drains::default(),
        Changes::default(),
        vec![],
        std::iter::empty(),
        std::iter::empty(),
        std::iter::empty(),
    )
}

#[test]
fn hosts_that_answer_echoes_are_known_for_a_while_and_until_the_machine_starts_anew() {
    let directory = directory("echoing");
    let name = BackendName {
        service: "chat".to_owned(),
        backend: "b1".to_owned(),
    };
    let b1: (BackendName, SocketAddr) = (name, "[2001:db8::7]:80".parse().unwrap());
    let with_b1 = |memory: Memory, ms| memory.with_echoing([b1.clone()].into_iter(), Moment(ms));
    let nothing = nothing(&directory);
    with_b1(nothing, 1_000).save(&directory).unwrap();
    let memory = Memory::load(&directory);
    let known = |memory: &Memory, ms| memory.echoing(Moment(ms)).collect::<Vec<_>>();
    let end = 1_000 + ECHOES_HOLD.as_millis() as i64;
    assert_eq!(known(&memory, 1_000), std::slice::from_ref(&b1));
    assert_eq!(known(&memory, end - 1), std::slice::from_ref(&b1));
    assert_eq!(known(&memory, end), []);
    let rebooted = Memory {
        clocks: Clocks {
            boot: "another".to_owned(),
            ..memory.clocks.clone()
        },
        ..memory.clone()
    };
    assert_eq!(known(&rebooted, 1_000), []);

    // While it stays so, that is saved now and then.
    let due = 1_000 + ECHOES_SAVED_EVERY.as_millis() as i64;
    assert!(!memory.is_ageing(Moment(due - 1)) && memory.is_ageing(Moment(due)));
    assert_eq!(with_b1(memory.clone(), due - 1), memory);
    assert_eq!(
        known(&with_b1(memory.clone(), due), end),
        std::slice::from_ref(&b1)
    );
    // It answers no more.
    let nobody = memory.with_echoing(std::iter::empty(), Moment(due - 1));
    assert_eq!(known(&nobody, due - 1), []);
    assert!(!nobody.is_ageing(Moment(end)));
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn slow_starts_are_known_until_the_machine_starts_anew() {
    let directory = directory("starting");
    let nothing = nothing(&directory);
    let starting = [(7, Moment(1_000), 3), (u64::MAX, Moment(9), 16)];
    let memory = nothing.with_starting(starting.into_iter());
    memory.save(&directory).unwrap();
    let loaded = Memory::load(&directory);
    assert_eq!(loaded.starting(7), Some((Moment(1_000), 3)));
    assert_eq!(loaded.starting(u64::MAX), Some((Moment(9), 16)));
    assert_eq!(loaded.starting(1), None);
    let clocks = |boot: &str, wall_ahead_ms| Memory {
        clocks: Clocks {
            boot: boot.to_owned(),
            wall_ahead_ms,
        },
        ..loaded.clone()
    };
    // Somebody has set the wall clock: that changes nothing.
    let set = clocks(&loaded.clocks.boot, loaded.clocks.wall_ahead_ms + 9_999);
    assert_eq!(set.starting(7), Some((Moment(1_000), 3)));
    let rebooted = clocks("another", loaded.clocks.wall_ahead_ms);
    assert_eq!(rebooted.starting(7), None);
    // None is under way any more.
    let over = loaded.with_starting(std::iter::empty());
    assert_eq!(over.starting(7), None);
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_date_is_the_same_moment_while_the_machine_runs_and_by_the_wall_clock_after_that() {
    let clocks = |boot: &str, wall_ahead_ms| Clocks {
        boot: boot.to_owned(),
        wall_ahead_ms,
    };
    let date = clocks("one", 1_000_000).date(Moment(500));
    // Somebody has set the wall clock: that changes nothing.
    assert_eq!(clocks("one", 7).moment(&date), Moment(500));
    // Started 2,000 s later by the wall clock, and running for 100 s: that was 1,900 s before the start.
    let after = clocks("two", 3_000_500);
    assert_eq!(after.moment(&date), Moment(-2_000_000));
}

#[test]
fn drains_in_a_file_of_another_form_are_found() {
    let directory = directory("newer");
    fs::create_dir_all(&directory).unwrap();
    let b1 = r#"{"service":"chat","backend":"b1"}"#;
    for (text, drained, all) in [
        (
            format!(r#"{{"version":2,"drained":[{b1}],"evacuated":null,"more":[1]}}"#),
            true,
            false,
        ),
        // All that is beside them may mean something else now.
        (
            format!(
                r#"{{"version":2,"drained":[{b1}],"evacuated":{{"until":7}},"services":{{}},"asked":7}}"#
            ),
            true,
            true,
        ),
        // What may be another thing is not taken for drains.
        (
            r#"{"version":2,"drained":["chat/b1"]}"#.to_owned(),
            false,
            false,
        ),
        (r#"{"version":2,"drains":[]}"#.to_owned(), false, false),
    ] {
        fs::write(path(&directory), &text).unwrap();
        let ordered = Memory::load(&directory).ordered();
        let names: Vec<String> = ordered.backends.keys().map(ToString::to_string).collect();
        assert_eq!(names, &["chat/b1"][..usize::from(drained)], "{text}");
        assert_eq!(ordered.all, all.then_some(Evacuation { asked: None }));
        let kept = fs::read_to_string(directory.join(BROKEN)).unwrap();
        assert_eq!(kept, text);
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn what_is_not_understood_is_set_aside() {
    let directory = directory("broken");
    fs::create_dir_all(&directory).unwrap();
    for text in [
        "",
        "{",
        r#"{"version":2,"drained":[],"services":[],"backends":{}}"#,
    ] {
        fs::write(path(&directory), text).unwrap();
        assert!(Memory::load(&directory).is_empty());
        assert!(!path(&directory).exists(), "{text}");
        let kept = fs::read_to_string(directory.join(BROKEN)).unwrap();
        assert_eq!(kept, text);
    }
    fs::remove_dir_all(directory).unwrap();
}
