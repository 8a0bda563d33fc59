//! Passes over the flow tables, in steps.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use lb_common::{
    clock::Tick,
    flow::{
        self,
        bucket::WAYS,
        v4, v6,
        word::{BackendRef, State, Word},
    },
    hash::Seed,
    nat::{Pair, TranslationWord, slot_of},
    net::IpVersion,
};

use super::{
    Census, Counts, Swept, TableCensus,
    affinity::Affinities,
    census::{Counted, Tally},
    churn::{Churn, Places},
    judge::{
        self, Action, Gone, RECLAIM_PIN_TICKS, RECLAIM_YOUNG_TICKS, first_goes, may_be_duplicate,
    },
    reclaim::Reclaim,
    sources::{self, Sources},
    today::{closed, is_due, is_forgotten, is_translated, today},
};
use crate::{
    by_version::ByVersion,
    dataplane::{
        maps::{self, Maps},
        table::{Place, Table, TableKey},
    },
};

/// Duplicates are looked for in one of so many buckets a pass, since it takes a look at each entry's other home: a cache miss each.
const DUPLICATES_EVERY: u32 = 16;

/// Counts, expires, clamps, deduplicates, takes the mark off entries that are contested no more, and reclaims. Of entries nothing but value words is written,
/// each by one compare-and-exchange with what was seen, so it can be dropped between any two steps, and its process killed anywhere.
pub struct Sweeper {
    common: Common,
    v4: Sweep<v4::Key>,
    v6: Sweep<v6::Key>,
}

/// What the sweeps of both tables have in common.
struct Common {
    maps: Arc<Maps>,
    clock: Box<dyn Fn() -> Tick + Send>,
    seed: Seed,
    /// Full passes over both.
    scans: u64,
    tally: Tally,
    affinities: Affinities,
    sources: Sources,
    /// Whether a pass has begun that is not over.
    is_passing: bool,
    swept: Swept,
    /// By service id, of the holder with this identity.
    churn: Vec<(u64, Churn)>,
    /// By backend id, of the holder with this generation.
    backend_churn: Vec<(u8, Churn)>,
}

impl Sweeper {
    /// For these maps, on the system's clock.
    pub fn new(maps: Arc<Maps>) -> Self {
        Self::with_clock(maps, maps::now)
    }

    /// For these maps, on a clock of the caller's, which never goes back.
    pub fn with_clock(maps: Arc<Maps>, clock: impl Fn() -> Tick + Send + 'static) -> Self {
        Self {
            v4: Sweep::new(&maps),
            v6: Sweep::new(&maps),
            common: Common {
                clock: Box::new(clock),
                seed: maps.instance.get(0).flow_seed,
                scans: 0,
                tally: Tally::new(maps.backends.len(), maps.services.len()),
                affinities: Affinities::default(),
                sources: Sources::default(),
                is_passing: false,
                swept: Swept::default(),
                churn: vec![(0, Churn::default()); maps.services.len() as usize],
                backend_churn: vec![(0, Churn::default()); maps.backends.len() as usize],
                maps,
            },
        }
    }

    /// In how many steps of so many buckets a pass is done.
    pub fn steps(&self, buckets: u32) -> u32 {
        let maps = &self.common.maps;
        (maps.flows4.len() + maps.flows6.len()).div_ceil(buckets)
    }

    /// Sweeps up to `buckets` more buckets. At the end of a pass over both tables it gives the census, and the next step begins anew.
    ///
    /// Two passes are to be further apart than any program run lasts: see `settle_suspects` and `settle_contested`.
    pub fn step(&mut self, buckets: u32) -> Option<Census> {
        self.common.begin();
        let left = self.v4.step(buckets, &mut self.common);
        self.v6.step(left, &mut self.common);
        let tables = ByVersion {
            v4: self.v4.counted?,
            v6: self.v6.counted?,
        };
        (self.v4.counted, self.v6.counted) = (None, None);
        Some(self.common.finish(tables))
    }

    /// One whole pass, or what is left of the one begun.
    pub fn pass(&mut self) -> Census {
        loop {
            if let Some(census) = self.step(u32::MAX) {
                return census;
            }
        }
    }
}

impl Common {
    /// Begins a pass, unless one is under way.
    fn begin(&mut self) {
        if !self.is_passing {
            self.is_passing = true;
            self.affinities.begin(&self.maps);
            self.sources.begin(&self.maps);
        }
    }

    fn finish(&mut self, tables: ByVersion<TableCensus>) -> Census {
        self.scans += 1;
        self.is_passing = false;
        let at = (self.clock)();
        let clients = self.affinities.forget(&self.maps, at);
        self.swept.clients = self.affinities.evicted();
        let sources = self.sources.finish(&self.maps, maps::now_ns());
        let Counted {
            by_backend,
            by_service,
            by_pair,
        } = self.tally.take();
        Census {
            scans: self.scans,
            at,
            tables,
            by_backend,
            by_service,
            by_pair,
            ports: self.ports(),
            clients,
            sources,
            swept: self.swept,
            churn: (0..)
                .zip(&self.churn)
                // Whoever had the id before is gone, also while its next holder has no flows yet.
                .filter(|(id, (holder, churn))| {
                    *churn != Churn::default() && self.maps.services.get(*id).identity == *holder
                })
                .map(|(_, known)| *known)
                .collect(),
            backend_churn: (0..)
                .zip(&self.backend_churn)
                .filter(|(_, (_, churn))| *churn != Churn::default())
                .map(|(id, (generation, churn))| ((id, *generation), *churn))
                .collect(),
        }
    }
}

impl Common {
    /// SNAT ports in use, by pair.
    fn ports(&self) -> HashMap<u16, u32> {
        const ENDPOINT: usize = std::mem::offset_of!(Pair, endpoint) / 8;
        let pairs = &self.maps.pairs;
        (0..pairs.len())
            .filter(|&pair| pairs.word(pair, ENDPOINT).load(Ordering::Relaxed) != 0)
            .map(|pair| (pair as u16, self.maps.ports_in_use(pair as u16)))
            .collect()
    }

    /// Takes in that a client has a flow, whose entry is at a place.
    fn note_client<K: TableKey>(&mut self, key: K, place: Place, word: Word, now: Tick) {
        let (client, service) = (key.client_address(), key.service());
        let Self {
            affinities,
            sources,
            maps,
            seed,
            ..
        } = self;
        affinities.note(maps, seed, client, service, word, now);
        if sources.limits(service)
            && replaces_another(K::table(maps), (place, key, word), seed, now)
        {
            return;
        }
        let is_ipv6 = K::VERSION == IpVersion::V6;
        sources.note(seed, client, is_ipv6, service, word, now);
    }

    /// Takes in what began and ended of a service at a backend. Of a service that is none there is nothing to count.
    fn note_churn(&mut self, service: u16, backend: BackendRef, churn: &Churn) {
        let Some((holder, known)) = self.churn.get_mut(usize::from(service)) else {
            return;
        };
        if *churn == Churn::default() {
            return;
        }
        let identity = self.maps.services.get(u32::from(service)).identity;
        if *holder != identity {
            // The id has another holder now, and no entry is of the former any more.
            (*holder, *known) = (identity, Churn::default());
        }
        known.add(churn);
        if let Some(known) = self.backend_churn.get_mut(backend.id() as usize) {
            if known.0 != backend.generation() {
                // The id has another holder now, and no entry names the former any more.
                *known = (backend.generation(), Churn::default());
            }
            known.1.add(churn);
        }
    }

    /// Gives back the SNAT port of an entry that is gone from its place, if it had one.
    fn give_back(&mut self, (index, way): Place, translation: Option<TranslationWord>) {
        if let Some(translation) = translation {
            let (pair, port) = (translation.pair(), translation.port());
            let place = slot_of(flow::table::Place { index, way });
            if self.maps.give_back_port(pair, port, place) {
                self.swept.ports += 1;
            }
        }
    }
}

/// The sweep of one table.
struct Sweep<K> {
    /// The bucket that the next step begins with.
    next: u32,
    reclaim: Reclaim,
    /// Pairs of entries with one key that this pass has met.
    suspects: Vec<(Place, Place)>,
    /// Contested entries that this pass has found alone.
    alone: Vec<Place>,
    /// Keys whose entries are contested no more since the last pass.
    unmarked: Vec<K>,
    /// What this pass has counted, once it is over the whole table.
    counted: Option<TableCensus>,
    /// What its places held a pass ago.
    places: Places,
    key: std::marker::PhantomData<K>,
}

impl<K: TableKey> Sweep<K> {
    fn new(maps: &Maps) -> Self {
        Self {
            next: 0,
            reclaim: Reclaim::new(),
            suspects: Vec::new(),
            alone: Vec::new(),
            unmarked: Vec::new(),
            counted: None,
            places: Places::new(K::table(maps).buckets()),
            key: std::marker::PhantomData,
        }
    }

    /// Sweeps up to `buckets` more buckets, none if this pass is over. Gives how many more it could have been.
    fn step(&mut self, buckets: u32, common: &mut Common) -> u32 {
        if self.counted.is_some() || buckets == 0 {
            return buckets;
        }
        let maps = Arc::clone(&common.maps);
        let table = K::table(&maps);
        if self.next == 0 {
            self.settle_suspects(table, common);
            self.settle_contested(table, &common.seed);
        }
        let end = self.next.saturating_add(buckets).min(table.buckets());
        let now = (common.clock)();
        for bucket in self.next..end {
            self.sweep_bucket(table, bucket, now, common);
        }
        let left = buckets - (end - self.next);
        self.next = end;
        if end == table.buckets() {
            self.next = 0;
            self.places.passed();
            let counts: Counts = common.tally.take_table();
            let capacity = table.capacity();
            self.reclaim.decide(counts.settled(), capacity);
            self.counted = Some(TableCensus { capacity, counts });
        }
        left
    }

    fn sweep_bucket(&mut self, table: Table<'_, K>, index: u32, now: Tick, common: &mut Common) {
        let bucket = table.bucket(index);
        let looks_for_duplicates =
            u64::from(index % DUPLICATES_EVERY) == common.scans % u64::from(DUPLICATES_EVERY);
        let value = |way: u32| bucket.value(way);
        let mut is_full = (0..WAYS).all(|way| Word(value(way).load(Ordering::Relaxed)).is_live());
        for way in 0..WAYS {
            let seen = Word(value(way).load(Ordering::Acquire));
            if seen.is(State::Empty) {
                let nobody = &mut Churn::default();
                self.places.note(index, way, seen, || false, nobody);
                continue;
            }
            let key = bucket.key(way);
            let place = (index, way);
            let translation = table.translation(place, key, seen, &common.seed);
            if translation.is_none() && table.translates() && !is_translated(&common.maps, seen) {
                // The data path gives back the port of a former flow only where it gives the next one a translation.
                let left = table.take_left_translation(place, key, seen, &common.seed);
                common.give_back(place, left);
            }
            let treated = self.treat(value(way), seen, key, now, is_full, common);
            let mut churn = Churn::default();
            let noted = treated.unwrap_or(seen);
            let is_due = || {
                is_due(
                    &common.maps,
                    table.homes(key, &common.seed)[0],
                    table.buckets(),
                    noted,
                )
            };
            self.places.note(index, way, noted, is_due, &mut churn);
            if let Err(gone) = treated {
                self.places.empty(index, way, gone, &mut churn);
            }
            common.note_churn(key.service(), noted.backend(), &churn);
            let Ok(word) = treated else {
                is_full = false;
                common.give_back(place, translation);
                continue;
            };
            if word.is_entry() {
                common.note_client(key, place, word, now);
                common.tally.add(word, key.service(), now);
                if let Some(translation) = translation {
                    common.tally.add_port(translation);
                }
            }
            if looks_for_duplicates && may_be_duplicate(word) {
                self.look_for_duplicate(table, (index, way), key, &common.seed);
            }
            if is_contested(word) && is_alone(table, place, key, &common.seed) {
                self.alone.push(place);
            }
        }
    }

    /// Judges one entry, of a bucket that is full or not, and acts. Returns its word afterwards, or why it is gone.
    fn treat(
        &mut self,
        value: &AtomicU64,
        seen: Word,
        key: K,
        now: Tick,
        is_full: bool,
        common: &mut Common,
    ) -> Result<Word, Gone> {
        let pressure = self.reclaim.pressure(is_full);
        let judged = |now| {
            if seen.is_open() && is_forgotten(&common.maps, seen) {
                return Action::Delete(Gone::Rehashed);
            }
            judge::judge(
                seen,
                now,
                pressure,
                || today(&common.maps, key, seen, now),
                || closed(&common.maps, seen),
            )
        };
        let first = judged(now);
        if first == Action::Keep {
            self.note_reclaimable(seen, key, now, &common.maps);
            return Ok(seen);
        }
        // Judged again by a clock that was read after the word was: this process may have been stopped since it read the other, for
        // longer than a modular age can tell from a new entry's.
        let action = judged((common.clock)());
        let Some(new) = action.word() else {
            return Ok(seen);
        };
        if value
            .compare_exchange(seen.0, new.0, Ordering::SeqCst, Ordering::Relaxed)
            .is_err()
        {
            // The data path was here; what it wrote is judged in the next pass.
            return Ok(seen);
        }
        match action {
            Action::Keep => {}
            Action::Delete(gone) => {
                if gone == Gone::Reclaimed {
                    self.reclaim.took_one();
                }
                common.swept.count(gone);
                return Err(gone);
            }
            Action::MarkException(_) => common.swept.marked += 1,
            Action::Clamp(_) => common.swept.clamped += 1,
        }
        Ok(new)
    }

    /// Under pressure: counts what else could be reclaimed, by age, so that the next pass takes the oldest.
    fn note_reclaimable(&mut self, word: Word, key: K, now: Tick, maps: &Maps) {
        if !self.reclaim.is_on() {
            return;
        }
        let age = judge::age(word, now);
        let old = match word.state() {
            State::Young => age >= RECLAIM_YOUNG_TICKS,
            State::Pin => age >= RECLAIM_PIN_TICKS,
            _ => false,
        };
        if !old || !today(maps, key, word, now).keeps(word) {
            return;
        }
        if word.is(State::Young) {
            self.reclaim.could_take_young();
        } else {
            self.reclaim.could_take_pin(age);
        }
    }

    /// Looks for another entry of a key, behind `at` in the order of lookups.
    fn look_for_duplicate(&mut self, table: Table<'_, K>, at: Place, key: K, seed: &Seed) {
        let (bucket, way) = at;
        let [home, other] = table.homes(key, seed);
        let elsewhere = (bucket == home).then_some(other);
        let here = (way + 1..WAYS).map(|way| (bucket, way));
        let there = elsewhere
            .into_iter()
            .flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)));
        for place in here.chain(there) {
            if table
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
    fn settle_suspects(&mut self, table: Table<'_, K>, common: &mut Common) {
        for (first, second) in std::mem::take(&mut self.suspects) {
            let (Some((key, one)), Some((other_key, other))) =
                (table.read(first), table.read(second))
            else {
                continue;
            };
            if key != other_key || !may_be_duplicate(one) || !may_be_duplicate(other) {
                continue;
            }
            let now = (common.clock)();
            let ((bucket, way), word) = if first_goes(one, other, now) {
                (first, one)
            } else {
                (second, other)
            };
            let translation = table.translation((bucket, way), key, word, &common.seed);
            if table.replace((bucket, way), word, Word::EMPTY) {
                common.swept.duplicates += 1;
                common.give_back((bucket, way), translation);
            }
        }
    }

    /// Takes the mark off contested entries that the last pass has found alone, and that still are: their challengers are gone, and each of their packets
    /// would go on taking a second look.
    ///
    /// A challenger that comes at this very moment may have found the mark, and not be there yet: it would be hidden behind an entry without one. So whoever
    /// has lost it has it back if there is a challenger after all, at once or in the next pass, when no program run is left that has seen it.
    fn settle_contested(&mut self, table: Table<'_, K>, seed: &Seed) {
        self.unmarked
            .retain(|key| !mark_contested(table, *key, seed));
        for place in std::mem::take(&mut self.alone) {
            let Some((key, word)) = table.read(place) else {
                continue;
            };
            if !is_contested(word) || !is_alone(table, place, key, seed) {
                continue;
            }
            if table.replace(place, word, word.without(Word::CONTESTED)) {
                mark_contested(table, key, seed);
                self.unmarked.push(key);
            }
        }
    }
}

/// Whether an entry is the newer of two of its key, and the older one counts as a flow of its source's: its client has let go of that, so both are one.
fn replaces_another<K: TableKey>(
    table: Table<'_, K>,
    (place, key, word): (Place, K, Word),
    seed: &Seed,
    now: Tick,
) -> bool {
    word.is_open()
        && word.has(Word::SECOND)
        && table
            .entries_of(key, seed)
            .any(|(other, twin)| other != place && sources::counts(twin, now))
}

/// Whether an entry's key has, or had, another.
fn is_contested(word: Word) -> bool {
    word.is_live() && word.has(Word::CONTESTED)
}

/// Whether a key has no entry but the one at a place.
fn is_alone<K: TableKey>(table: Table<'_, K>, place: Place, key: K, seed: &Seed) -> bool {
    table.entries_of(key, seed).all(|(other, _)| other == place)
}

/// Marks the live entries of a key beside which there is a challenger, or one that began as such. False if one changed at that moment.
fn mark_contested<K: TableKey>(table: Table<'_, K>, key: K, seed: &Seed) -> bool {
    let entries: Vec<_> = table.entries_of(key, seed).collect();
    let is_newer =
        |word: Word| word.is(State::Challenger) || (word.is_live() && word.has(Word::SECOND));
    let mut are_marked = true;
    for &(place, word) in &entries {
        let is_challenged = entries
            .iter()
            .any(|&(other, word)| other != place && is_newer(word));
        if is_challenged && word.is_live() && !word.has(Word::CONTESTED) {
            are_marked &= table.replace(place, word, word.with(Word::CONTESTED));
        }
    }
    are_marked
}
