//! Millions of random packets, waits, sweeps and changes of backends and tables, against a reference.

use std::{collections::HashSet, fmt::Debug};

use lb_common::verdict::Reason;

use crate::{
    model::{Reference, shape_of_held},
    story::{Op, Outside, key_of, story},
};

/// Flows of one run: few, so that each has a long story.
const FLOWS: u32 = 12;
/// So many that no place is ever wanted by another.
const ROOMY: u32 = 4_096;

fn sorted<T: Ord + Debug>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<_> = items.collect();
    items.sort();
    items
}

/// Runs a story on both; the first step at which they differ, and how.
fn first_difference(ops: &[Op], met: &mut HashSet<Reason>) -> Option<(usize, String)> {
    let mut outside = Outside::new(ROOMY);
    let mut reference = Reference::default();
    for (step, &op) in ops.iter().enumerate() {
        let Op::Packet { flow, segment } = op else {
            outside.apply(op, |now| reference.sweep(now));
            continue;
        };
        let expected = reference.packet(&outside, flow, &segment);
        let got = outside.rig.send(key_of(flow), segment, outside.now);
        met.insert(got.0);
        let words = outside.rig.entries(key_of(flow));
        let held = &reference.flows[&flow];
        let shapes = sorted(held.iter().map(|one| {
            let (backend, generation, name) = shape_of_held(one);
            (backend, generation, name.to_owned())
        }));
        let found = sorted(words.iter().map(|word| {
            let backend = word.backend();
            (
                backend.id(),
                backend.generation(),
                format!("{:?}", word.state()),
            )
        }));
        if expected != got || shapes != found {
            let report = format!(
                "at tick {}, expected {expected:?} and {held:?}, got {got:?} and {words:?}",
                outside.now.0
            );
            return Some((step, report));
        }
    }
    None
}

/// Leaves out what is not needed for a difference.
fn shortened(mut ops: Vec<Op>) -> Vec<Op> {
    let mut chunk = ops.len().div_ceil(2);
    while chunk > 0 {
        let mut from = 0;
        while from < ops.len() {
            let mut fewer = ops.clone();
            fewer.drain(from..(from + chunk).min(ops.len()));
            match std::panic::catch_unwind(|| first_difference(&fewer, &mut HashSet::new())) {
                Ok(Some((step, _))) => {
                    fewer.truncate(step + 1);
                    ops = fewer;
                }
                _ => from += chunk,
            }
        }
        chunk /= 2;
    }
    ops
}

#[test]
fn the_table_does_what_the_reference_says() {
    const RUNS: u64 = 300;
    const LENGTH: usize = 10_000;
    let mut met = HashSet::new();
    for seed in 0..RUNS {
        let ops = story(seed, FLOWS, LENGTH);
        if let Some((step, _)) = first_difference(&ops, &mut met) {
            let trace = shortened(ops[..=step].to_vec());
            let (_, difference) = first_difference(&trace, &mut met).unwrap();
            panic!("seed {seed}, step {step}: {difference}\nshortest trace: {trace:#?}");
        }
    }
    // The stories have to reach every corner.
    for reason in [
        Reason::Established,
        Reason::Opened,
        Reason::Reopened,
        Reason::Challenged,
        Reason::Unpinned,
        Reason::Adopted,
        Reason::Unadopted,
        Reason::Stray,
        Reason::BackendDead,
        Reason::NoBackendForFlow,
        Reason::ResetToDead,
        Reason::NoBackend,
        Reason::Unresolved,
        Reason::Contested,
        Reason::BadFlags,
        Reason::StaleGeneration,
    ] {
        assert!(met.contains(&reason), "no packet was {reason:?}");
    }
}
