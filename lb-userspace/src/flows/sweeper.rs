//! Passes over the flow table, in steps.

use std::sync::{Arc, atomic::Ordering};

use lb_common::{
    clock::Tick,
    flow::{
        v4::{Key, WAYS},
        word::{State, Word},
    },
    hash::Seed,
};

use super::{
    Census, Swept,
    census::{Counted, Tally},
    judge::{
        self, Action, Gone, RECLAIM_PIN_TICKS, RECLAIM_YOUNG_TICKS, first_goes, may_be_duplicate,
    },
    reclaim::Reclaim,
    today::today,
};
use crate::dataplane::maps::{self, Maps};

/// Duplicates are looked for in one of so many buckets a pass, since it takes a look at each entry's other home: a cache miss each.
const DUPLICATES_EVERY: u32 = 16;

/// A place in the table: bucket and way.
type At = (u32, u32);

/// Counts, expires, clamps, deduplicates and reclaims. Nothing but value words is written, each by one compare-and-exchange with what
/// was seen, so it can be dropped between any two steps, and its process killed anywhere.
pub struct Sweeper {
    maps: Arc<Maps>,
    clock: Box<dyn Fn() -> Tick + Send>,
    seed: Seed,
    /// The bucket that the next step begins with.
    next: u32,
    scans: u64,
    tally: Tally,
    reclaim: Reclaim,
    swept: Swept,
    /// Pairs of entries with one key that this pass has met.
    suspects: Vec<(At, At)>,
}

impl Sweeper {
    /// For these maps, on the system's clock.
    pub fn new(maps: Arc<Maps>) -> Self {
        Self::with_clock(maps, maps::now)
    }

    /// For these maps, on a clock of the caller's, which never goes back.
    pub fn with_clock(maps: Arc<Maps>, clock: impl Fn() -> Tick + Send + 'static) -> Self {
        Self {
            clock: Box::new(clock),
            seed: maps.instance.get(0).flow_seed,
            next: 0,
            scans: 0,
            tally: Tally::new(maps.backends.len(), maps.services.len()),
            reclaim: Reclaim::new(),
            swept: Swept::default(),
            suspects: Vec::new(),
            maps,
        }
    }

    /// Sweeps up to `buckets` more buckets. At the end of a pass it gives the census, and the next step begins anew.
    ///
    /// Two passes are to be further apart than any program run lasts: see `settle_suspects`.
    pub fn step(&mut self, buckets: u32) -> Option<Census> {
        if self.next == 0 {
            self.settle_suspects();
        }
        let end = self
            .next
            .saturating_add(buckets)
            .min(self.maps.flows4.len());
        let now = (self.clock)();
        for bucket in self.next..end {
            self.sweep_bucket(bucket, now);
        }
        self.next = end;
        (end == self.maps.flows4.len()).then(|| self.finish())
    }

    /// One whole pass, or what is left of the one begun.
    pub fn pass(&mut self) -> Census {
        loop {
            if let Some(census) = self.step(u32::MAX) {
                return census;
            }
        }
    }

    fn finish(&mut self) -> Census {
        self.next = 0;
        self.scans += 1;
        let capacity = u64::from(self.maps.flows4.len()) * u64::from(WAYS);
        let Counted {
            total,
            by_backend,
            by_service,
        } = self.tally.take();
        self.reclaim
            .decide(total.young + total.pin + total.closing, capacity);
        Census {
            scans: self.scans,
            at: (self.clock)(),
            capacity,
            total,
            by_backend,
            by_service,
            swept: self.swept,
        }
    }

    fn sweep_bucket(&mut self, bucket: u32, now: Tick) {
        let maps = Arc::clone(&self.maps);
        let words = maps.flows4.words(bucket);
        let looks_for_duplicates =
            u64::from(bucket % DUPLICATES_EVERY) == self.scans % u64::from(DUPLICATES_EVERY);
        let value = |way: u32| &words[2 * way as usize + 1];
        let mut is_full = (0..WAYS).all(|way| Word(value(way).load(Ordering::Relaxed)).is_live());
        for way in 0..WAYS {
            let seen = Word(value(way).load(Ordering::Acquire));
            if seen.is(State::Empty) {
                continue;
            }
            let key = Key(words[2 * way as usize].load(Ordering::Acquire));
            let Some(word) = self.treat(value(way), seen, key, now, is_full) else {
                is_full = false;
                continue;
            };
            if word.is_entry() {
                self.tally.add(word, key.service(), now);
            }
            if looks_for_duplicates && may_be_duplicate(word) {
                self.look_for_duplicate((bucket, way), key);
            }
        }
    }

    /// Judges one entry, of a bucket that is full or not, and acts. Returns its word afterwards, none if it is gone.
    fn treat(
        &mut self,
        value: &std::sync::atomic::AtomicU64,
        seen: Word,
        key: Key,
        now: Tick,
        is_full: bool,
    ) -> Option<Word> {
        let pressure = self.reclaim.pressure(is_full);
        let first = judge::judge(seen, now, pressure, || today(&self.maps, key, now));
        if first == Action::Keep {
            self.note_reclaimable(seen, key, now);
            return Some(seen);
        }
        // Judged again by a clock that was read after the word was: this process may have been stopped since it read the other, for
        // longer than a modular age can tell from a new entry's.
        let now = (self.clock)();
        let action = judge::judge(seen, now, pressure, || today(&self.maps, key, now));
        let Some(new) = action.word() else {
            return Some(seen);
        };
        if value
            .compare_exchange(seen.0, new.0, Ordering::SeqCst, Ordering::Relaxed)
            .is_err()
        {
            // The data path was here; what it wrote is judged in the next pass.
            return Some(seen);
        }
        match action {
            Action::Keep => {}
            Action::Delete(Gone::Expired) => self.swept.expired += 1,
            Action::Delete(Gone::Ended) => self.swept.ended += 1,
            Action::Delete(Gone::Invalid) => self.swept.invalid += 1,
            Action::Delete(Gone::Reclaimed) => {
                self.swept.reclaimed += 1;
                self.reclaim.took_one();
            }
            Action::MarkException(_) => self.swept.marked += 1,
            Action::Clamp(_) => self.swept.clamped += 1,
        }
        (!new.is(State::Empty)).then_some(new)
    }

    /// Under pressure: counts what else could be reclaimed, by age, so that the next pass takes the oldest.
    fn note_reclaimable(&mut self, word: Word, key: Key, now: Tick) {
        if !self.reclaim.is_on() {
            return;
        }
        let age = judge::age(word, now);
        let old = match word.state() {
            State::Young => age >= RECLAIM_YOUNG_TICKS,
            State::Pin => age >= RECLAIM_PIN_TICKS,
            _ => false,
        };
        if !old || !today(&self.maps, key, now).keeps(word) {
            return;
        }
        if word.is(State::Young) {
            self.reclaim.could_take_young();
        } else {
            self.reclaim.could_take_pin(age);
        }
    }

    /// Looks for another entry of a key, behind `at` in the order of lookups.
    fn look_for_duplicate(&mut self, at: At, key: Key) {
        let (bucket, way) = at;
        let [home, other] = key.homes(&self.seed, self.maps.flows4.len());
        let elsewhere = (bucket == home).then_some(other);
        let here = (way + 1..WAYS).map(|way| (bucket, way));
        let there = elsewhere
            .into_iter()
            .flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)));
        for place in here.chain(there) {
            if self
                .read(place)
                .is_some_and(|(found, word)| found == key && may_be_duplicate(word))
            {
                self.suspects.push((at, place));
            }
        }
    }

    /// Removes one of each pair that the last pass met and that is still there.
    ///
    /// An entry that is being relocated is in both its homes for a moment, and to remove the copy then would lose the flow, since the
    /// original goes next. That moment is some instructions of one program run, so what was a pair a pass ago, seconds, is none of
    /// these.
    fn settle_suspects(&mut self) {
        for (first, second) in std::mem::take(&mut self.suspects) {
            let (Some((key, one)), Some((other_key, other))) =
                (self.read(first), self.read(second))
            else {
                continue;
            };
            if key != other_key || !may_be_duplicate(one) || !may_be_duplicate(other) {
                continue;
            }
            let now = (self.clock)();
            let (place, word) = if first_goes(one, other, now) {
                (first, one)
            } else {
                (second, other)
            };
            if self
                .value(place)
                .compare_exchange(word.0, Word::EMPTY.0, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
            {
                self.swept.duplicates += 1;
            }
        }
    }

    fn value(&self, (bucket, way): At) -> &std::sync::atomic::AtomicU64 {
        &self.maps.flows4.words(bucket)[2 * way as usize + 1]
    }

    /// Reads one entry: value, key, value again, so that both belong together.
    fn read(&self, at: At) -> Option<(Key, Word)> {
        let value = self.value(at);
        let before = value.load(Ordering::Acquire);
        let key = self.maps.flows4.words(at.0)[2 * at.1 as usize].load(Ordering::Acquire);
        let after = value.load(Ordering::Acquire);
        (before == after && Word(after).is_entry()).then_some((Key(key), Word(after)))
    }
}
