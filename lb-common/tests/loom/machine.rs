//! A machine of a few CPUs for the model checker: buckets made of its atomics, and a world of four backends around them.

use std::sync::atomic::{AtomicU64 as Count, Ordering::Relaxed};

use lb_common::{
    backend::{BackendState, Mode, Serving},
    clock::Tick,
    flow::{
        steer::{Steered, World, steer},
        table::{Memory, Place},
        word::{BackendRef, State, Word},
    },
    maglev::Slot,
    tcp::{ACK, FIN, RST, SYN, Segment},
    verdict::Reason,
};
use loom::{
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Acquire, Release, SeqCst},
            fence,
        },
    },
    thread,
};

/// The present of every scenario.
pub(crate) const NOW: Tick = Tick(500_000);
/// The sequence number of every SYN, unless a scenario has two.
pub(crate) const ISN: u32 = 0x1000;

/// The buckets. A key is an index into the list of homes, which each scenario chooses.
pub(crate) struct Buckets<const N: u32> {
    places: Vec<[AtomicU64; 2]>,
    homes: &'static [[u32; 2]],
}

impl<const N: u32> Buckets<N> {
    /// Buckets with these entries in them: bucket, way, key, word.
    pub(crate) fn new(
        buckets: u32,
        homes: &'static [[u32; 2]],
        entries: &[(u32, u32, u64, Word)],
    ) -> Arc<Self> {
        let places = (0..buckets * N)
            .map(|index| {
                let entry = entries
                    .iter()
                    .find(|(bucket, way, ..)| bucket * N + way == index);
                let (key, value) = entry.map_or((0, Word::EMPTY.0), |(.., key, word)| (*key, word.0));
                [AtomicU64::new(key), AtomicU64::new(value)]
            })
            .collect();
        Arc::new(Self { places, homes })
    }

    fn cells(&self, bucket: u32, way: u32) -> &[AtomicU64; 2] {
        &self.places[(bucket * N + way) as usize]
    }

    /// All entries, once every CPU is done. No place may be left busy.
    pub(crate) fn entries(&self) -> Vec<(u64, Word)> {
        let all: Vec<_> = self
            .places
            .iter()
            .map(|[key, value]| (key.load(Acquire), Word(value.load(Acquire))))
            .filter(|(_, word)| !word.is(State::Empty))
            .collect();
        assert!(all.iter().all(|(_, word)| word.is_entry()), "{all:?}");
        all
    }

    /// The words of a key's entries, once every CPU is done.
    pub(crate) fn entries_of(&self, key: u64) -> Vec<Word> {
        self.entries()
            .into_iter()
            .filter(|(other, _)| *other == key)
            .map(|(_, word)| word)
            .collect()
    }
}

impl<const N: u32> Memory for Buckets<N> {
    type Key = u64;
    type Bucket = u32;

    const WAYS: u32 = N;

    fn homes(&self, key: &u64) -> [u32; 2] {
        self.homes[*key as usize]
    }

    fn bucket(&self, index: u32) -> Option<u32> {
        Some(index)
    }

    fn key(&self, bucket: u32, way: u32) -> u64 {
        self.cells(bucket, way)[0].load(Acquire)
    }

    fn value(&self, bucket: u32, way: u32) -> Word {
        Word(self.cells(bucket, way)[1].load(Acquire))
    }

    fn set_key(&self, bucket: u32, way: u32, key: &u64) {
        self.cells(bucket, way)[0].store(*key, Release);
    }

    fn replace(&self, bucket: u32, way: u32, seen: Word, new: Word) -> bool {
        // A BPF compare-and-exchange is a full barrier on either outcome.
        fence(SeqCst);
        let done = self.cells(bucket, way)[1].compare_exchange(seen.0, new.0, AcqRel, Acquire);
        fence(SeqCst);
        done.is_ok()
    }

    fn publish(&self, bucket: u32, way: u32, new: Word) {
        fence(SeqCst);
        let before = self.cells(bucket, way)[1].swap(new.0, AcqRel);
        fence(SeqCst);
        assert_eq!(before, Word::BUSY.0, "a busy place was changed by another");
    }

    fn carry_facts(&self, _: Place<u32>, _: Place<u32>) {}
}

/// One CPU, and what it sees of tables and backends.
pub(crate) struct Cpu<const N: u32> {
    /// The shared buckets.
    pub(crate) buckets: Arc<Buckets<N>>,
    /// The backend that the table names, as this CPU sees it.
    pub(crate) pick: u32,
    /// A backend that takes no new flows; 0 for none.
    pub(crate) draining: u32,
}

impl<const N: u32> Cpu<N> {
    /// A CPU that sees `pick` in its table.
    pub(crate) fn new(buckets: &Arc<Buckets<N>>, pick: u32) -> Self {
        Self {
            buckets: buckets.clone(),
            pick,
            draining: 0,
        }
    }

    /// The same, while a backend is draining.
    pub(crate) fn draining(self, draining: u32) -> Self {
        Self { draining, ..self }
    }

    /// Steers one segment; reason and backend.
    pub(crate) fn steer(&self, key: u64, segment: Segment, now: Tick) -> (Reason, Option<u32>) {
        let Steered { reason, backend } = steer(self, &key, &segment, now);
        (reason, backend.map(|(_, _, id)| id))
    }
}

impl<const N: u32> Memory for Cpu<N> {
    type Key = u64;
    type Bucket = u32;

    const WAYS: u32 = N;

    fn homes(&self, key: &u64) -> [u32; 2] {
        self.buckets.homes(key)
    }

    fn bucket(&self, index: u32) -> Option<u32> {
        self.buckets.bucket(index)
    }

    fn key(&self, bucket: u32, way: u32) -> u64 {
        self.buckets.key(bucket, way)
    }

    fn value(&self, bucket: u32, way: u32) -> Word {
        self.buckets.value(bucket, way)
    }

    fn set_key(&self, bucket: u32, way: u32, key: &u64) {
        self.buckets.set_key(bucket, way, key);
    }

    fn replace(&self, bucket: u32, way: u32, seen: Word, new: Word) -> bool {
        self.buckets.replace(bucket, way, seen, new)
    }

    fn publish(&self, bucket: u32, way: u32, new: Word) {
        self.buckets.publish(bucket, way, new);
    }

    fn carry_facts(&self, _: Place<u32>, _: Place<u32>) {}
}

impl<const N: u32> World for Cpu<N> {
    type Backend = ();

    fn slot(&self, _: u32) -> Option<Slot> {
        Some(Slot::new(self.pick, 0, Tick(0)))
    }

    fn backend(&self, id: u32) -> Option<((), BackendState)> {
        let serving = if id == self.draining {
            Serving::ExistingOnly
        } else {
            Serving::New
        };
        (1..=4)
            .contains(&id)
            .then(|| ((), BackendState::new(0, serving, Mode::L2, 0, true)))
    }

    fn may_adopt(&self) -> bool {
        true
    }

    fn note_promotion(&self, _: Place<u32>) {}
}

/// A new flow's word.
pub(crate) fn embryo(backend: u32) -> Word {
    Word::embryo(BackendRef::new(backend, 0), ISN, NOW)
}

/// A proven flow's word, last seen a tick ago, in the epoch of [`ISN`].
pub(crate) fn pin(backend: u32, flags: u64) -> Word {
    Word::live(State::Pin, BackendRef::new(backend, 0), 0, Tick(NOW.0 - 1), flags)
}

/// A SYN.
pub(crate) fn syn(seq: u32) -> Segment {
    Segment {
        seq,
        flags: SYN,
        payload: false,
    }
}

/// Data.
pub(crate) fn data(seq: u32) -> Segment {
    Segment {
        seq,
        flags: ACK,
        payload: true,
    }
}

/// A FIN.
pub(crate) fn fin(seq: u32) -> Segment {
    Segment {
        seq,
        flags: FIN | ACK,
        payload: false,
    }
}

/// A RST.
pub(crate) fn rst(seq: u32) -> Segment {
    Segment {
        seq,
        flags: RST,
        payload: false,
    }
}

/// How much of a scenario is explored.
#[derive(Clone, Copy)]
pub(crate) enum Depth {
    /// Every execution.
    Exhaustive,
    /// Every execution with at most so many preemptions.
    Preemptions(usize),
}

/// Runs a scenario in every execution, and says how many there were.
pub(crate) fn explore(name: &str, depth: Depth, scenario: impl Fn() + Sync + Send + 'static) {
    static EXECUTIONS: Count = Count::new(0);
    let started = std::time::Instant::now();
    let counted = std::sync::Arc::new(Count::new(0));
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 20_000;
    builder.preemption_bound = match depth {
        Depth::Exhaustive => None,
        Depth::Preemptions(bound) => Some(bound),
    };
    let count = counted.clone();
    builder.check(move || {
        count.fetch_add(1, Relaxed);
        scenario();
    });
    let executions = counted.load(Relaxed);
    let total = EXECUTIONS.fetch_add(executions, Relaxed) + executions;
    println!("{name}: {executions} executions in {:.1?} ({total} in all)", started.elapsed());
}

/// Starts something on a CPU of its own.
pub(crate) fn on_cpu<T: 'static>(work: impl FnOnce() -> T + 'static) -> thread::JoinHandle<T> {
    thread::spawn(work)
}
