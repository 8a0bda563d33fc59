//! A flow table in a vector and a world of backends around it: everything that steering needs, in one thread.

use std::cell::Cell;

use lb_common::{
    backend::{BackendState, Forwarding, Serving},
    clock::Tick,
    flow::{
        FlowKey as _,
        bucket::WAYS,
        steer::{World, steer},
        table::{Memory, Place},
        v4::Key,
        word::{State, Word, YOUNG_TICKS},
    },
    hash::Seed,
    hide::Plain,
    maglev::{Slot, slot_index},
    share::Share,
    tcp::{ACK, FIN, RST, SYN, Segment},
    verdict::Reason,
};

/// The flow that tests follow.
pub(crate) const FLOW: Key = Key::new(0x0a00_0001, 40_000, 1);
/// The sequence number of its SYN.
pub(crate) const ISN: u32 = 0x1234_5678;
/// A sequence number many epochs from [`ISN`].
pub(crate) const ELSEWHERE: u32 = 0x9000_0000;
/// When tests begin.
pub(crate) const START: Tick = Tick(1_000_000);

/// A packet's outcome: the reason, and the backend if one was named.
pub(crate) type Outcome = (Reason, Option<u32>);

#[derive(Default)]
struct Cells {
    key: Cell<u64>,
    value: Cell<u64>,
}

/// The table, the backends, the slots.
pub(crate) struct Rig {
    places: Vec<Cells>,
    seed: Seed,
    slots: Vec<Slot>,
    backends: Vec<BackendState>,
    may_adopt: bool,
    is_held: bool,
    promotions: Cell<u32>,
    /// Key loads that answer wrongly from now on, as if the entry were moving at that moment.
    blind_loads: Cell<u32>,
    flow: Cell<Key>,
}

impl Rig {
    /// An empty table, no backends, one slot that names none.
    pub(crate) fn new(buckets: u32) -> Self {
        Self {
            places: (0..buckets * WAYS).map(|_| Cells::default()).collect(),
            seed: Seed::new([
                0x5851_f42d_4c95_7f2d,
                0x9e37_79b9_7f4a_7c15,
                0xd6e8_feb8_6659_fd93,
            ]),
            slots: vec![Slot::default()],
            backends: vec![BackendState::default()],
            may_adopt: true,
            is_held: false,
            promotions: Cell::new(0),
            blind_loads: Cell::new(0),
            flow: Cell::new(Key(0)),
        }
    }

    /// A table of two buckets and backends 1 to `backends`, all resolved and taking new flows, the single slot owned by 1.
    pub(crate) fn small(backends: u32) -> Self {
        let mut rig = Self::new(2);
        for id in 1..=backends {
            rig.set_backend(id, Serving::New);
        }
        rig.set_slot(Slot::new(1, 0, Tick(0)));
        rig
    }

    pub(crate) fn set_backend(&mut self, id: u32, serving: Serving) {
        let generation = self.generation(id);
        self.set_backend_whole(id, generation, serving, true);
    }

    pub(crate) fn set_backend_whole(
        &mut self,
        id: u32,
        generation: u8,
        serving: Serving,
        resolved: bool,
    ) {
        let id = id as usize;
        if self.backends.len() <= id {
            self.backends.resize(id + 1, BackendState::default());
        }
        self.backends[id] = BackendState::new(generation, serving, Forwarding::L2, 0, resolved);
    }

    /// Has a backend's flows be closed, so many parts of them.
    pub(crate) fn pace(&mut self, id: u32, share: Share) {
        let state = &mut self.backends[id as usize];
        *state = state.pacing(share, Tick(1));
    }

    pub(crate) fn serving(&self, id: u32) -> Serving {
        self.backends
            .get(id as usize)
            .map_or(Serving::None, |state| state.serving())
    }

    /// The generation of a backend's id.
    pub(crate) fn generation(&self, id: u32) -> u8 {
        self.backends
            .get(id as usize)
            .map_or(0, |state| state.generation())
    }

    /// Makes the table a single slot, so that every flow has it.
    pub(crate) fn set_slot(&mut self, slot: Slot) {
        self.slots = vec![slot];
    }

    pub(crate) fn set_slots(&mut self, slots: Vec<Slot>) {
        self.slots = slots;
    }

    /// Has entries only be read, or not.
    pub(crate) fn hold(&mut self, is_held: bool) {
        self.is_held = is_held;
    }

    pub(crate) fn set_may_adopt(&mut self, may_adopt: bool) {
        self.may_adopt = may_adopt;
    }

    /// Makes the next `loads` loads of keys miss.
    pub(crate) fn blind(&self, loads: u32) {
        self.blind_loads.set(loads);
    }

    /// How often an entry was noted as promoted or adopted.
    pub(crate) fn promotions(&self) -> u32 {
        self.promotions.get()
    }

    /// The slot of a flow at an attempt.
    pub(crate) fn slot_of(&self, key: Key, attempt: u32) -> Slot {
        let client = key.client_word(&self.seed);
        self.slots[slot_index(client, &self.seed, attempt, self.slots.len() as u32) as usize]
    }

    /// Steers one segment.
    pub(crate) fn send(&self, key: Key, segment: Segment, now: Tick) -> Outcome {
        self.flow.set(key);
        let steered = steer(self, &key, &segment, now);
        (
            steered.reason,
            (steered.backend != 0).then_some(steered.backend),
        )
    }

    /// The words of all entries of a key, in the order in which they are found.
    pub(crate) fn entries(&self, key: Key) -> Vec<Word> {
        self.homes(&key)
            .into_iter()
            .flat_map(|bucket| self.bucket_places(bucket))
            .filter(|cells| cells.key.get() == key.0)
            .map(|cells| Word(cells.value.get()))
            .filter(|word| word.is_entry())
            .collect()
    }

    /// The only entry of a key.
    pub(crate) fn entry(&self, key: Key) -> Word {
        let entries = self.entries(key);
        assert_eq!(entries.len(), 1, "{entries:?}");
        entries[0]
    }

    /// Every entry in the table.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Key, Word)> + '_ {
        self.places
            .iter()
            .map(|cells| (Key(cells.key.get()), Word(cells.value.get())))
            .filter(|(_, word)| word.0 != Word::EMPTY.0)
    }

    /// The daemon's deletion of whatever `condemn` says, one compare-and-exchange each.
    pub(crate) fn sweep(&self, condemn: impl Fn(Key, Word) -> bool) {
        for cells in &self.places {
            let word = Word(cells.value.get());
            if word.is_entry() && condemn(Key(cells.key.get()), word) {
                cells.value.set(Word::EMPTY.0);
            }
        }
    }

    fn bucket_places(&self, bucket: u32) -> &[Cells] {
        let first = (bucket * WAYS) as usize;
        &self.places[first..first + WAYS as usize]
    }

    fn cells(&self, bucket: u32, way: u32) -> &Cells {
        &self.places[(bucket * WAYS + way) as usize]
    }
}

impl Memory for Rig {
    type Key = Key;
    type Bucket = u32;
    type Hide = Plain;

    const WAYS: u32 = WAYS;

    fn homes(&self, key: &Key) -> [u32; 2] {
        key.homes(&self.seed, self.places.len() as u32 / WAYS)
    }

    fn bucket(&self, index: u32) -> Option<u32> {
        (index < self.places.len() as u32 / WAYS).then_some(index)
    }

    fn key(&self, bucket: u32, way: u32) -> Key {
        let blind = self.blind_loads.get();
        if blind > 0 {
            self.blind_loads.set(blind - 1);
            return Key(u64::MAX);
        }
        Key(self.cells(bucket, way).key.get())
    }

    fn value(&self, bucket: u32, way: u32) -> Word {
        Word(self.cells(bucket, way).value.get())
    }

    fn set_key(&self, bucket: u32, way: u32, key: &Key) {
        let cells = self.cells(bucket, way);
        assert_eq!(
            Word(cells.value.get()).state(),
            State::Busy,
            "a key was written in a place that is not busy"
        );
        cells.key.set(key.0);
    }

    fn replace(&self, bucket: u32, way: u32, seen: Word, new: Word) -> bool {
        let cells = self.cells(bucket, way);
        let matches = cells.value.get() == seen.0;
        if matches {
            cells.value.set(new.0);
        }
        matches
    }

    fn publish(&self, bucket: u32, way: u32, new: Word) {
        self.cells(bucket, way).value.set(new.0);
    }

    fn carry_facts(&self, _: Place, _: Place) {}
}

impl World for Rig {
    type Backend = ();

    fn slot(&self, key: &Key, attempt: u32) -> Option<Slot> {
        (!self.slots.is_empty()).then(|| self.slot_of(*key, attempt))
    }

    fn backend(&self, id: u32) -> Option<((), BackendState)> {
        self.backends.get(id as usize).map(|state| ((), *state))
    }

    fn buckets(&self) -> u32 {
        self.places.len() as u32 / WAYS
    }

    fn may_adopt(&self) -> bool {
        self.may_adopt
    }

    fn is_held(&self) -> bool {
        self.is_held
    }

    fn note_promotion(&self, _: Place) {
        self.promotions.set(self.promotions.get() + 1);
    }
}

/// A SYN.
pub(crate) const fn syn(seq: u32) -> Segment {
    segment(seq, SYN, false)
}

/// An acknowledgement without data.
pub(crate) const fn ack(seq: u32) -> Segment {
    segment(seq, ACK, false)
}

/// Data.
pub(crate) const fn data(seq: u32) -> Segment {
    segment(seq, ACK, true)
}

/// A FIN.
pub(crate) const fn fin(seq: u32) -> Segment {
    segment(seq, FIN | ACK, false)
}

/// A RST.
pub(crate) const fn rst(seq: u32) -> Segment {
    segment(seq, RST, false)
}

/// Any segment.
pub(crate) const fn segment(seq: u32, flags: u8, payload: bool) -> Segment {
    Segment {
        seq,
        flags,
        payload,
    }
}

/// Opens [`FLOW`] and proves it: a pin at the returned time.
pub(crate) fn pinned(rig: &Rig) -> Tick {
    let (opened, backend) = rig.send(FLOW, syn(ISN), START);
    assert_eq!(opened, Reason::Opened);
    assert_eq!(
        rig.send(FLOW, ack(ISN + 1), START),
        (Reason::Established, backend)
    );
    let proven = START.later(YOUNG_TICKS);
    assert_eq!(
        rig.send(FLOW, data(ISN + 1), proven),
        (Reason::Established, backend)
    );
    assert!(rig.entry(FLOW).is(State::Pin));
    proven
}

/// Has the port of the flow, which is pinned to backend 1, used again once that is drained: the SYN is for backend 2, and challenges the flow.
pub(crate) fn challenged_at_another(rig: &mut Rig, now: Tick) {
    rig.set_backend(1, Serving::ExistingOnly);
    rig.set_slot(Slot::new(2, 0, now));
    let asked = rig.send(FLOW, syn(ELSEWHERE), now);
    assert_eq!(asked, (Reason::Challenged, Some(2)));
}

/// Moves the table's only slot from backend 1 to backend 2, so that flows of 1 become exceptions.
pub(crate) fn hand_slot_over(rig: &mut Rig, now: Tick) {
    rig.set_slot(Slot::new(2, 1, now));
}
