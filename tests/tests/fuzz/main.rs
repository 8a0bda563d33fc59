//! A short run of each fuzzer, the promises broken on purpose, and every case that once broke one by itself.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use lab::fuzz::{
    api, config,
    packets::{Case, sabotage::Sabotage},
};
use lb_common::verdict::Reason;

/// From a seed that is always the same: what chance finds is for `cargo xtask fuzz`.
const FIRST: u64 = 1;

/// Half of the cases are of services that need no translation, and half of those that do.
#[test]
fn no_promise_about_packets_is_broken() {
    for seed in (FIRST..).take(120) {
        let case = Case::of_seed(seed);
        if let Some((step, breach)) = case.play(None).breach {
            panic!(
                "seed {seed}, step {step}: {breach}\n{}",
                case.shrunk(None).text()
            );
        }
    }
}

/// Within so many packets as are judged in a second or two.
#[test]
fn each_promise_that_is_broken_is_found_out() {
    for (sabotage, promises) in Sabotage::ALL {
        let mut breaches = (FIRST..)
            .take(200)
            .filter_map(|seed| Case::of_seed(seed).play(Some(*sabotage)).breach);
        // What else shows before is not enough.
        let is_found = breaches.any(|(_, breach)| {
            assert!(
                promises.contains(&breach.promise),
                "{} is taken for {breach}",
                sabotage.name()
            );
            breach.promise == promises[0]
        });
        assert!(is_found, "{} is not found out", sabotage.name());
    }
}

/// Half of the cases are played twice, and but for chance and ticks the same comes of them.
#[test]
fn what_is_measured_is_compared() {
    let (mut packets, mut compared) = (0, 0);
    for seed in (FIRST..).take(40) {
        let case = Case::of_seed(seed);
        let outcome = case.play(None);
        assert_eq!(outcome.breach, None, "seed {seed}");
        if case.is_measured {
            packets += outcome.packets / 2;
            compared += outcome.compared;
        } else {
            assert_eq!(outcome.compared, 0);
        }
    }
    assert!(
        packets > 1_000 && compared > packets / 4,
        "{compared} of {packets}"
    );
}

/// The judge has nothing to say about what never comes.
#[test]
fn cases_meet_what_backends_routers_and_guards_send() {
    let mut met = BTreeMap::<Reason, u64>::new();
    for seed in (FIRST..).take(200) {
        for (reason, packets) in Case::of_seed(seed).play(None).reasons {
            *met.entry(reason).or_default() += packets;
        }
    }
    for (reason, least) in [
        (Reason::Reply, 100),
        (Reason::ErrorRelayed, 50),
        (Reason::NoRouteBack, 5),
        (Reason::ErrorUnrelayed, 5),
        (Reason::UnknownFlow, 5),
        (Reason::Collision, 1),
        (Reason::Denied, 20),
        (Reason::NotAllowed, 20),
        (Reason::CutOff, 20),
        (Reason::SourceRate, 20),
        (Reason::SourceFull, 20),
    ] {
        let packets = met.get(&reason).copied().unwrap_or_default();
        assert!(packets >= least, "{packets} of {}: {met:?}", reason.name());
    }
}

/// Steps that have nothing to do with what is broken are left out, and what is left still breaks it.
#[test]
fn a_case_is_shrunk_to_what_is_needed() {
    let sabotage = Sabotage::Move;
    let case = (FIRST..)
        .map(Case::of_seed)
        .find(|case| case.play(Some(sabotage)).breach.is_some())
        .expect("there are always more seeds");
    let shrunk = case.shrunk(Some(sabotage));
    assert!(shrunk.steps.len() <= 4, "{}", shrunk.text());
    assert!(shrunk.play(Some(sabotage)).breach.is_some());
    let read = Case::parse(&shrunk.text()).expect("what was written can be read");
    assert_eq!(read, shrunk);
}

/// What was found once, or nearly taken for something found, each in a file named for it.
#[test]
fn what_was_found_stays_mended() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/cases");
    let mut played = 0;
    for file in std::fs::read_dir(folder).expect("there are cases") {
        let path = file.expect("a file").path();
        let name = path.display();
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let case = Case::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(case.play(None).breach, None, "{name}");
        played += 1;
    }
    assert!(played > 0, "{folder} holds no case");
}

#[test]
fn every_text_is_a_configuration_or_told_why_not() {
    let mut valid = 0;
    for seed in (FIRST..).take(3_000) {
        let text = config::text(seed);
        if let Err(how) = config::judge(&text) {
            panic!("seed {seed}: {how}\n{text}");
        }
        valid += u32::from(config::is_valid(&text));
    }
    // Else only refusals would have been tried.
    assert!((100..2_900).contains(&valid), "{valid} of 3,000 were valid");
}

#[test]
fn no_request_harms_the_daemon_or_a_connection() -> Result<()> {
    let requests = api::run(FIRST, Duration::from_secs(3))?;
    assert!(requests > 50, "only {requests} requests");
    Ok(())
}
