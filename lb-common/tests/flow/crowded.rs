//! The same random stories in a table that is far too small: whatever else gives way, established flows do not.

use lb_common::{
    backend::Serving,
    flow::{
        v4::Key,
        word::{State, Word},
    },
};

use crate::story::{Op, Outside, key_of, story};

/// Flows that want one of the table's places, which are a quarter as many.
const FLOWS: u32 = 128;
const BUCKETS: u32 = 8;

/// Live entries that nothing on the data path may take.
fn held(outside: &Outside) -> Vec<(Key, Word)> {
    outside
        .rig
        .all()
        .filter(|(_, word)| word.is_live() && !word.is_vacant(outside.now))
        .collect()
}

#[test]
fn inserting_others_never_loses_or_changes_a_live_entry() {
    const RUNS: u64 = 50;
    const LENGTH: usize = 10_000;
    let mut full = 0;
    for seed in 0..RUNS {
        let mut outside = Outside::new(BUCKETS);
        for (step, op) in story(seed, FLOWS, LENGTH).into_iter().enumerate() {
            let Op::Packet { flow, segment } = op else {
                outside.apply(op, |_| ());
                continue;
            };
            let key = key_of(flow);
            let before = held(&outside);
            let (reason, _) = outside.rig.send(key, segment, outside.now);
            let after: Vec<_> = outside.rig.all().collect();
            let context = || format!("seed {seed}, step {step}: {segment:?} was {reason:?}");

            assert!(
                after.iter().all(|(_, word)| word.is_entry()),
                "{}",
                context()
            );
            for other in before.iter().filter(|(other, _)| *other != key) {
                // Perhaps elsewhere, but as it was.
                let copies = after.iter().filter(|entry| *entry == other).count();
                assert_eq!(copies, 1, "{}: {other:?}", context());
            }
            let own: Vec<_> = after.iter().filter(|(own, _)| *own == key).collect();
            assert!(own.len() <= 2, "{}: {own:?}", context());
            for (_, word) in before.iter().filter(|(own, _)| *own == key) {
                // An entry goes when its id has another owner, or, of two, when it was closing or its backend is dead and a SYN
                // wanted its place.
                let backend = word.backend();
                let may_go = outside.rig.generation(backend.id()) != backend.generation()
                    || word.is(State::Closing)
                    || outside.rig.serving(backend.id()) == Serving::None;
                let stays = own
                    .iter()
                    .any(|(_, word)| word.is_live() && word.backend() == backend);
                assert!(stays || may_go, "{}: {word:?} became {own:?}", context());
            }
            full += u32::from(before.len() == (BUCKETS * 4) as usize);
        }
    }
    assert!(full > 10_000, "the table was full for {full} packets only");
}
