//! A machine of a few CPUs for the model checker: buckets made of its atomics, and a world of four backends around them.

use std::{
    sync::atomic::{AtomicU64 as Count, Ordering::Relaxed},
    time::Instant,
};

use lb_common::{
    backend::{BackendState, Forwarding, Serving},
    clock::Tick,
    flow::{
        steer::{Steered, World, steer},
        table::{self, Claim, Entry, Inserted, Look, Memory, Place, Subject},
        word::{BackendRef, State, Word},
    },
    hide::Plain,
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

/// How the machine's memory behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// One access after the other, in every order. This is all that x86-64 can do here: its stores may be delayed, but the only plain one, of
    /// a key, is followed by the exchange that publishes it.
    Interleaved,
    /// Loads acquire, stores release, compare-and-exchange and exchange between full fences: loads may also be stale.
    Stale,
}

/// One word of memory.
pub(crate) struct Cell {
    /// Taken before every access when accesses are interleaved. The checker remembers only the last access of a location when it looks
    /// for races, so that a load hides the load of another CPU before it from the store after it; a read-modify-write hides nothing.
    turn: AtomicU64,
    interleaved: Count,
    stale: AtomicU64,
    order: Order,
}

impl Cell {
    /// One that holds a value.
    pub(crate) fn new(order: Order, value: u64) -> Self {
        Self {
            turn: AtomicU64::new(0),
            interleaved: Count::new(value),
            stale: AtomicU64::new(value),
            order,
        }
    }

    /// The checker runs one CPU at a time and switches only at accesses of its own atomics, so what follows a turn is one step.
    fn take_turn(&self) {
        self.turn.fetch_add(1, SeqCst);
    }

    /// Loads it.
    pub(crate) fn load(&self) -> u64 {
        if self.order == Order::Stale {
            return self.stale.load(Acquire);
        }
        self.take_turn();
        self.interleaved.load(Relaxed)
    }

    /// Stores to it.
    pub(crate) fn store(&self, value: u64) {
        if self.order == Order::Stale {
            return self.stale.store(value, Release);
        }
        self.take_turn();
        self.interleaved.store(value, Relaxed);
    }

    /// A BPF compare-and-exchange is a full barrier on either outcome.
    pub(crate) fn compare_exchange(&self, seen: u64, new: u64) -> bool {
        if self.order == Order::Stale {
            fence(SeqCst);
            let done = self.stale.compare_exchange(seen, new, AcqRel, Acquire);
            fence(SeqCst);
            return done.is_ok();
        }
        self.take_turn();
        self.interleaved
            .compare_exchange(seen, new, Relaxed, Relaxed)
            .is_ok()
    }

    fn exchange(&self, new: u64) -> u64 {
        if self.order == Order::Stale {
            fence(SeqCst);
            let before = self.stale.swap(new, AcqRel);
            fence(SeqCst);
            return before;
        }
        self.take_turn();
        self.interleaved.swap(new, Relaxed)
    }
}

/// The buckets. A key is an index into the list of homes, which each scenario chooses.
pub(crate) struct Buckets<const N: u32> {
    places: Vec<[Cell; 2]>,
    /// What goes with the entry of each place, as a translation does: here, its key.
    facts: Vec<Cell>,
    homes: &'static [[u32; 2]],
}

impl<const N: u32> Buckets<N> {
    /// Buckets with these entries in them: bucket, way, key, word.
    pub(crate) fn new(
        order: Order,
        buckets: u32,
        homes: &'static [[u32; 2]],
        entries: &[(u32, u32, u64, Word)],
    ) -> Arc<Self> {
        let entry_at = |index| {
            let mut entries = entries.iter();
            let entry = entries.find(|(bucket, way, ..)| bucket * N + way == index);
            entry.map_or((0, Word::EMPTY.0), |(.., key, word)| (*key, word.0))
        };
        let all = (0..buckets * N).map(entry_at);
        Arc::new(Self {
            places: all
                .clone()
                .map(|(key, value)| [Cell::new(order, key), Cell::new(order, value)])
                .collect(),
            facts: all.map(|(key, _)| Cell::new(order, key)).collect(),
            homes,
        })
    }

    /// What goes with the entry at a place.
    pub(crate) fn fact(&self, place: Place) -> u64 {
        self.facts_at(place).load()
    }

    /// Has it be that of an entry, which was seen there.
    pub(crate) fn set_fact(&self, place: Place, key: u64) {
        self.facts_at(place).store(key);
    }

    fn facts_at(&self, place: Place) -> &Cell {
        &self.facts[(place.index * N + place.way) as usize]
    }

    fn cells(&self, bucket: u32, way: u32) -> &[Cell; 2] {
        &self.places[(bucket * N + way) as usize]
    }

    /// All entries, once every CPU is done. No place may be left busy.
    pub(crate) fn entries(&self) -> Vec<(u64, Word)> {
        let all: Vec<_> = self
            .places
            .iter()
            .map(|[key, value]| (key.load(), Word(value.load())))
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
    type Hide = Plain;

    const WAYS: u32 = N;

    fn homes(&self, key: &u64) -> [u32; 2] {
        self.homes[*key as usize]
    }

    fn bucket(&self, index: u32) -> Option<u32> {
        Some(index)
    }

    fn key(&self, bucket: u32, way: u32) -> u64 {
        self.cells(bucket, way)[0].load()
    }

    fn value(&self, bucket: u32, way: u32) -> Word {
        Word(self.cells(bucket, way)[1].load())
    }

    fn set_key(&self, bucket: u32, way: u32, key: &u64) {
        self.cells(bucket, way)[0].store(*key);
    }

    fn replace(&self, bucket: u32, way: u32, seen: Word, new: Word) -> bool {
        self.cells(bucket, way)[1].compare_exchange(seen.0, new.0)
    }

    fn publish(&self, bucket: u32, way: u32, new: Word) {
        let before = self.cells(bucket, way)[1].exchange(new.0);
        assert_eq!(before, Word::BUSY.0, "a busy place was changed by another");
    }

    fn carry_facts(&self, from: Place, to: Place) {
        self.set_fact(to, self.fact(from));
    }
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
        (reason, (backend != 0).then_some(backend))
    }
}

impl<const N: u32> Memory for Cpu<N> {
    type Key = u64;
    type Bucket = u32;
    type Hide = Plain;

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

    fn carry_facts(&self, from: Place, to: Place) {
        self.buckets.carry_facts(from, to);
    }
}

impl<const N: u32> World for Cpu<N> {
    type Backend = ();

    fn slot(&self, _: &u64, _: u32) -> Option<Slot> {
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
            .then(|| ((), BackendState::new(0, serving, Forwarding::L2, 0, true)))
    }

    fn buckets(&self) -> u32 {
        N
    }

    fn may_adopt(&self) -> bool {
        true
    }

    fn is_held(&self) -> bool {
        false
    }

    fn note_promotion(&self, _: Place) {}
}

/// A new flow's word.
pub(crate) fn embryo(backend: u32) -> Word {
    Word::embryo(BackendRef::new(backend, 0), ISN, NOW)
}

/// A proven flow's word, last seen a tick ago, in the epoch of [`ISN`].
pub(crate) fn pin(backend: u32, flags: u64) -> Word {
    Word::live(
        State::Pin,
        BackendRef::new(backend, 0),
        0,
        Tick(NOW.0 - 1),
        flags,
    )
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

/// Runs a scenario in every execution, in both orders of memory, and says how many there were.
pub(crate) fn explore(
    name: &str,
    depth: Depth,
    scenario: impl Fn(Order) + Copy + Send + Sync + 'static,
) {
    for order in [Order::Interleaved, Order::Stale] {
        let started = Instant::now();
        let counted = std::sync::Arc::new(Count::new(0));
        let mut builder = loom::model::Builder::new();
        builder.max_branches = 20_000;
        // Interleaved accesses are twice as many steps, and stale loads branch at every load: where one is without bound, the
        // other is given one, or the suite would take an hour.
        builder.preemption_bound = match (depth, order) {
            (Depth::Exhaustive, Order::Stale) => None,
            (Depth::Exhaustive, Order::Interleaved) => Some(5),
            (Depth::Preemptions(bound), Order::Interleaved) => Some(bound.min(3)),
            (Depth::Preemptions(bound), Order::Stale) => Some(bound.min(3) - 1),
        };
        let count = counted.clone();
        builder.check(move || {
            count.fetch_add(1, Relaxed);
            scenario(order);
        });
        let executions = counted.load(Relaxed);
        println!(
            "{name}, {order:?}: {executions} executions in {:.1?}",
            started.elapsed()
        );
    }
}

/// Starts something on a CPU of its own.
pub(crate) fn on_cpu<T: 'static>(work: impl FnOnce() -> T + 'static) -> thread::JoinHandle<T> {
    thread::spawn(work)
}

/// Looks for a key's entry as a packet does: once, and once more if it is missed.
pub(crate) fn find<M: Memory<Key = u64>>(memory: &M, homes: [u32; 2], key: &u64) -> Option<Entry> {
    let subject = Subject {
        key: *key,
        homes,
        now: NOW,
    };
    let look = || table::look(memory, &subject, &Look::ANY);
    look().or_else(look)
}

/// Inserts an entry.
pub(crate) fn put<M: Memory<Key = u64>>(
    memory: &M,
    homes: [u32; 2],
    key: &u64,
    word: Word,
    claim: Claim,
    now: Tick,
) -> Inserted {
    table::insert(
        memory,
        &Subject {
            key: *key,
            homes,
            now,
        },
        word,
        claim,
    )
}
