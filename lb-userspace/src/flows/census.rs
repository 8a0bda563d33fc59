//! Counting during a pass: dense arrays by id, since a map lookup for each of a million entries would cost more than reading
//! them.

use std::collections::HashMap;

use lb_common::{
    clock::Tick,
    flow::word::{BackendRef, State, Word},
    nat::TranslationWord,
};

use super::{Counts, judge};

/// Counts of one pass so far.
#[derive(Debug)]
pub(super) struct Tally {
    /// Of the table that is being passed over.
    table: Counts,
    /// By backend id, for the generation that the id was first met with in this pass.
    backends: Vec<(u8, Counts)>,
    /// Other generations of these ids, and ids beyond the map: there should be none of either.
    strays: HashMap<(u32, u8), Counts>,
    services: Vec<Counts>,
    stray_services: HashMap<u16, Counts>,
    /// Flows that have a SNAT port, by pair's id; as long as was needed so far.
    pairs: Vec<u64>,
}

/// What a pass has counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) by_backend: HashMap<(u32, u8), Counts>,
    pub(super) by_service: HashMap<u16, Counts>,
    pub(super) by_pair: HashMap<u16, u64>,
}

impl Counts {
    fn count(&mut self, word: Word, active: bool) {
        match word.state() {
            State::Embryo | State::Challenger => self.embryo += 1,
            State::Young => self.young += 1,
            State::Pin => self.pin += 1,
            State::Closing => self.closing += 1,
            State::Empty | State::Busy | State::Invalid => return,
        }
        if matches!(word.state(), State::Young | State::Pin) {
            if active {
                self.active += 1;
            } else {
                self.idle += 1;
            }
        }
    }
}

impl Tally {
    pub(super) fn new(backends: u32, services: u32) -> Self {
        Self {
            table: Counts::default(),
            backends: vec![(0, Counts::default()); backends as usize],
            strays: HashMap::new(),
            services: vec![Counts::default(); services as usize],
            stray_services: HashMap::new(),
            pairs: Vec::new(),
        }
    }

    /// Counts an entry of a service.
    pub(super) fn add(&mut self, word: Word, service: u16, now: Tick) {
        let active = judge::is_active(word, now);
        self.table.count(word, active);
        let backend: BackendRef = word.backend();
        let (id, generation) = (backend.id(), backend.generation());
        let counts = match self.backends.get_mut(id as usize) {
            Some((held, counts)) if *held == generation || *counts == Counts::default() => {
                *held = generation;
                counts
            }
            _ => self.strays.entry((id, generation)).or_default(),
        };
        counts.count(word, active);
        match self.services.get_mut(usize::from(service)) {
            Some(counts) => counts,
            None => self.stray_services.entry(service).or_default(),
        }
        .count(word, active);
    }

    /// Counts the SNAT port of an entry, if it has one.
    pub(super) fn add_port(&mut self, translation: TranslationWord) {
        if translation.port() == 0 {
            return;
        }
        let pair = usize::from(translation.pair());
        if pair >= self.pairs.len() {
            self.pairs.resize(pair + 1, 0);
        }
        self.pairs[pair] += 1;
    }

    /// The counts of the table that was passed over last; what is left is empty.
    pub(super) fn take_table(&mut self) -> Counts {
        std::mem::take(&mut self.table)
    }

    /// Everything else that was counted, in both tables; what is left is empty.
    pub(super) fn take(&mut self) -> Counted {
        let mut by_backend = std::mem::take(&mut self.strays);
        for (id, (generation, counts)) in self.backends.iter_mut().enumerate() {
            if *counts != Counts::default() {
                by_backend.insert((id as u32, *generation), std::mem::take(counts));
            }
        }
        let mut by_service = std::mem::take(&mut self.stray_services);
        for (id, counts) in self.services.iter_mut().enumerate() {
            if *counts != Counts::default() {
                by_service.insert(id as u16, std::mem::take(counts));
            }
        }
        Counted {
            by_backend,
            by_service,
            by_pair: (0..)
                .zip(std::mem::take(&mut self.pairs))
                .filter(|&(_, flows)| flows > 0)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_of_an_id_are_counted_apart() {
        let mut tally = Tally::new(4, 2);
        let pin = |id, generation| {
            Word::live(State::Pin, BackendRef::new(id, generation), 0, Tick(100), 0)
        };
        for (id, generation, service) in [(3, 1, 0), (3, 1, 0), (3, 2, 1), (9, 0, 7)] {
            tally.add(pin(id, generation), service, Tick(100));
        }
        let total = tally.take_table();
        let Counted {
            by_backend,
            by_service,
            ..
        } = tally.take();
        assert_eq!((total.pin, total.active, total.idle), (4, 4, 0));
        let pins = |key| by_backend[&key].pin;
        assert_eq!((pins((3, 1)), pins((3, 2)), pins((9, 0))), (2, 1, 1));
        assert_eq!(
            (by_service[&0].pin, by_service[&1].pin, by_service[&7].pin),
            (2, 1, 1)
        );
        assert_eq!(tally.take(), Counted::default());
    }

    #[test]
    fn only_young_and_pins_are_active_or_idle() {
        let mut tally = Tally::new(4, 2);
        let backend = BackendRef::new(1, 0);
        let now = Tick(100_000);
        let old = Tick(now.0 - judge::IDLE_TICKS);
        tally.add(Word::embryo(backend, 0, now), 0, now);
        tally.add(Word::live(State::Young, backend, 0, now, 0), 0, now);
        tally.add(Word::live(State::Pin, backend, 0, old, 0), 0, now);
        tally.add(Word::live(State::Closing, backend, 0, now, 0), 0, now);
        let total = tally.take_table();
        let expected = Counts {
            embryo: 1,
            young: 1,
            pin: 1,
            closing: 1,
            active: 1,
            idle: 1,
        };
        assert_eq!(total, expected);
    }
}
