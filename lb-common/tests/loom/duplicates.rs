//! Insertions of one key on several CPUs leave one entry.

use lb_common::flow::{
    life,
    table::{self, Claim, Inserted, Memory},
    word::{BackendRef, State, Word},
};
use loom::sync::Arc;

use crate::machine::{
    Buckets, Cpu, Depth, ISN, NOW, data, embryo, explore, find, on_cpu, pin, put, syn,
};

const KEY: u64 = 1;
/// Both keys have the same homes.
const SAME: &[[u32; 2]] = &[[0, 1], [0, 1], [0, 1], [0, 1]];

/// Looks for the key, then inserts it.
fn open<const N: u32>(buckets: &Arc<Buckets<N>>, key: u64, word: Word, claim: Claim) {
    let homes = buckets.homes(&key);
    if find(&**buckets, homes, &key).is_none() {
        put(&**buckets, homes, &key, word, claim, NOW);
    }
}

/// Inserts the key without looking first: as if every CPU had looked, in vain, before any began to insert.
fn insert<const N: u32>(buckets: &Arc<Buckets<N>>, key: u64, word: Word, claim: Claim) {
    put(&**buckets, buckets.homes(&key), &key, word, claim, NOW);
}

/// A packet that promotes whichever entry of the key it finds. Returns whether it did.
fn promote<const N: u32>(buckets: &Arc<Buckets<N>>, key: u64) -> bool {
    find(&**buckets, buckets.homes(&key), &key).is_some_and(|entry| {
        let next = life::advance(entry.word, &data(ISN + 1), NOW);
        next != entry.word && table::replace(&**buckets, entry.place, entry.word, next)
    })
}

#[test]
fn two_cpus_open_the_same_flow() {
    explore("two SYNs", Depth::Exhaustive, |order| {
        let buckets = Buckets::<1>::new(order, 2, SAME, &[]);
        let (one, two) = (buckets.clone(), buckets.clone());
        let first = on_cpu(move || insert(&one, KEY, embryo(1), Claim::Any));
        insert(&two, KEY, embryo(2), Claim::Any);
        first.join().unwrap();
        assert_eq!(buckets.entries_of(KEY).len(), 1);
    });
}

#[test]
fn three_cpus_open_the_same_flow() {
    explore("three SYNs", Depth::Preemptions(2), |order| {
        let buckets = Buckets::<2>::new(order, 2, SAME, &[]);
        let (one, two, three) = (buckets.clone(), buckets.clone(), buckets.clone());
        let first = on_cpu(move || insert(&one, KEY, embryo(1), Claim::Any));
        let second = on_cpu(move || insert(&two, KEY, embryo(2), Claim::Any));
        insert(&three, KEY, embryo(3), Claim::Any);
        first.join().unwrap();
        second.join().unwrap();
        assert_eq!(buckets.entries_of(KEY).len(), 1);
    });
}

#[test]
fn a_flow_opened_twice_is_promoted_meanwhile() {
    explore("two SYNs and an ACK", Depth::Preemptions(4), |order| {
        let buckets = Buckets::<1>::new(order, 2, SAME, &[]);
        let (one, two, three) = (buckets.clone(), buckets.clone(), buckets.clone());
        let first = on_cpu(move || open(&one, KEY, embryo(1), Claim::Any));
        let second = on_cpu(move || open(&two, KEY, embryo(2), Claim::Any));
        let promoted = promote(&three, KEY);
        first.join().unwrap();
        second.join().unwrap();
        let left = buckets.entries_of(KEY);
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(!promoted || left[0].is(State::Young), "{left:?}");
    });
}

#[test]
fn a_flow_is_opened_while_it_is_adopted() {
    explore("SYN and adoption", Depth::Exhaustive, |order| {
        let buckets = Buckets::<1>::new(order, 2, SAME, &[]);
        let (one, two) = (buckets.clone(), buckets.clone());
        let young = Word::live(State::Young, BackendRef::new(2, 0), 0, NOW, Word::FOREIGN);
        let first = on_cpu(move || insert(&one, KEY, embryo(1), Claim::Any));
        insert(&two, KEY, young, Claim::VacantOnly);
        first.join().unwrap();
        let left = buckets.entries_of(KEY);
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left == [young] || left == [embryo(1)], "{left:?}");
    });
}

#[test]
fn a_flow_is_opened_while_it_is_adopted_and_promoted() {
    explore("SYN, adoption and ACK", Depth::Preemptions(3), |order| {
        let buckets = Buckets::<1>::new(order, 2, SAME, &[]);
        let (one, two, three) = (buckets.clone(), buckets.clone(), buckets.clone());
        let young = Word::live(State::Young, BackendRef::new(2, 0), 0, NOW, Word::FOREIGN);
        let first = on_cpu(move || open(&one, KEY, embryo(1), Claim::Any));
        let second = on_cpu(move || open(&two, KEY, young, Claim::VacantOnly));
        let promoted = promote(&three, KEY);
        first.join().unwrap();
        second.join().unwrap();
        let left = buckets.entries_of(KEY);
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(!promoted || left[0].is(State::Young), "{left:?}");
    });
}

#[test]
fn a_flow_is_adopted_twice() {
    explore("two adoptions", Depth::Exhaustive, |order| {
        let buckets = Buckets::<1>::new(order, 2, SAME, &[]);
        let (one, two) = (buckets.clone(), buckets.clone());
        let young = |backend| {
            Word::live(
                State::Young,
                BackendRef::new(backend, 0),
                0,
                NOW,
                Word::FOREIGN,
            )
        };
        let first = on_cpu(move || insert(&one, KEY, young(1), Claim::VacantOnly));
        insert(&two, KEY, young(1), Claim::VacantOnly);
        first.join().unwrap();
        // Both may have yielded to each other; then the next packet adopts.
        assert!(buckets.entries_of(KEY).len() <= 1);
    });
}

#[test]
fn an_insertion_says_truly_whether_its_entry_stands() {
    explore("two SYNs, outcomes", Depth::Exhaustive, |order| {
        let buckets = Buckets::<1>::new(order, 2, SAME, &[]);
        let insert = |buckets: Arc<Buckets<1>>, backend: u32| {
            move || put(&*buckets, [0, 1], &KEY, embryo(backend), Claim::Any, NOW)
        };
        let first = on_cpu(insert(buckets.clone(), 1));
        let second = insert(buckets.clone(), 2)();
        let outcomes = [(first.join().unwrap(), 1), (second, 2)];
        let left = buckets.entries_of(KEY);
        assert_eq!(left.len(), 1);
        for (outcome, backend) in outcomes {
            match outcome {
                Inserted::Yielded(theirs) => {
                    assert_eq!(theirs, left[0], "yielded to what is not there");
                    assert_ne!(backend, left[0].backend().id());
                }
                // Its twin may have removed it after it had looked.
                Inserted::At(_) => {}
                Inserted::Full => assert_ne!(backend, left[0].backend().id()),
            }
        }
    });
}

#[test]
fn different_flows_find_room_for_both() {
    explore("two SYNs, two places", Depth::Exhaustive, |order| {
        let buckets = Buckets::<1>::new(order, 2, SAME, &[]);
        let (one, two) = (buckets.clone(), buckets.clone());
        let first = on_cpu(move || insert(&one, KEY, embryo(1), Claim::Any));
        insert(&two, 2, embryo(2), Claim::Any);
        first.join().unwrap();
        // Nobody's place is taken while there is a free one.
        assert_eq!(buckets.entries().len(), 2, "{:?}", buckets.entries());
    });
}

#[test]
fn different_flows_want_the_last_place() {
    explore("two SYNs, one place", Depth::Exhaustive, |order| {
        let pinned = pin(3, 0);
        let buckets = Buckets::<1>::new(order, 2, SAME, &[(1, 0, 3, pinned)]);
        let (one, two) = (buckets.clone(), buckets.clone());
        let first = on_cpu(move || open(&one, KEY, embryo(1), Claim::Any));
        open(&two, 2, embryo(2), Claim::Any);
        first.join().unwrap();
        let entries = buckets.entries();
        assert_eq!(entries.len(), 2, "{entries:?}");
        assert_eq!(entries[1], (3, pinned));
        let (key, word) = entries[0];
        // A value always belongs to the key beside it.
        assert_eq!(u64::from(word.backend().id()), key);
    });
}

/// The rule that looks simpler: whoever finds its key at a lower place than its own yields.
fn insert_by_the_simpler_rule(buckets: &Buckets<1>, key: u64, word: Word) {
    for (own, other) in [(0, 1), (1, 0)] {
        if !buckets.replace(own, 0, Word::EMPTY, Word::BUSY) {
            continue;
        }
        buckets.set_key(own, 0, &key);
        buckets.publish(own, 0, word);
        let theirs = buckets.value(other, 0);
        let is_twin = theirs.is_entry() && buckets.key(other, 0) == key;
        if is_twin && (other < own || theirs.is_live()) {
            buckets.replace(own, 0, word, Word::EMPTY);
        }
        return;
    }
}

/// The same scenario as above under the simpler rule: the check must be able to fail.
#[test]
#[should_panic(expected = "two entries")]
fn the_simpler_rule_leaves_duplicates() {
    explore("the simpler rule", Depth::Preemptions(3), |order| {
        let buckets = Buckets::<1>::new(order, 2, SAME, &[]);
        let (one, two, three) = (buckets.clone(), buckets.clone(), buckets.clone());
        let first = on_cpu(move || insert_by_the_simpler_rule(&one, KEY, embryo(1)));
        let second = on_cpu(move || insert_by_the_simpler_rule(&two, KEY, embryo(2)));
        promote(&three, KEY);
        first.join().unwrap();
        second.join().unwrap();
        assert!(buckets.entries_of(KEY).len() < 2, "two entries");
    });
}

#[test]
fn the_same_syn_comes_to_two_cpus_with_different_tables() {
    explore("two SYNs, steered", Depth::Preemptions(4), |order| {
        let buckets = Buckets::<1>::new(order, 2, SAME, &[]);
        let (one, two) = (Cpu::new(&buckets, 1), Cpu::new(&buckets, 2));
        let first = on_cpu(move || one.steer(KEY, syn(ISN), NOW));
        let second = two.steer(KEY, syn(ISN), NOW);
        let first = first.join().unwrap();
        assert!(first.1.is_some() && second.1.is_some());
        let left = buckets.entries_of(KEY);
        assert_eq!(left.len(), 1, "{left:?}");
        let backend = Some(left[0].backend().id());
        assert!(first.1 == backend || second.1 == backend);
    });
}
