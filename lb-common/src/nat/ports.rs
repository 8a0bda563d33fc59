//! SNAT ports: how a flow comes to one, and gives it back.
//!
//! The slot of a port is the truth: whose place it names has the port, and nobody has it if it is 0. The bitmap only says where to look, and may be
//! wrong for a moment. So who takes a port marks its bit first, then compares and exchanges the slot; who gives it back empties the slot, then clears
//! the bit; and whoever dies in between leaves a bit that is wrong, and no port lost.

use super::{FIRST_PORT, PORTS_OF_PAIR, WORDS_OF_PAIR, slot_of};
use crate::{
    clock::{Tick, ticks_proving},
    flow::{table::Place, word::Word},
    hash::scale,
};

/// Words in a cache line of the bitmap.
const WORDS_OF_LINE: u32 = 8;
/// Cache lines of the bitmap that are looked through for a free port.
const LINES: u32 = 4;
/// Ports that are looked at, if none was free, for one whose flow needs it no more.
const SECOND_LOOKS: u32 = 8;
/// Age from which an embryo must give up its port for another, in ticks: 3 s, in which a backend has answered that does.
pub const EMBRYO_TICKS: u32 = ticks_proving(3);

/// The ports of all pairs, wherever they are.
pub trait Ports {
    /// Random bits.
    fn random(&self) -> u32;
    /// Loads a word of a pair's bitmap; all ones if there is no such word.
    fn bits(&self, pair: u16, word: u32) -> u64;
    /// Compare-and-exchange on it. True if `seen` was there.
    fn mark(&self, pair: u16, word: u32, seen: u64, new: u64) -> bool;
    /// Clears bits of it.
    fn clear(&self, pair: u16, word: u32, bits: u64);
    /// Loads the slot of a pair's port.
    fn slot(&self, pair: u16, port: u16) -> u32;
    /// Compare-and-exchange on it. True if `seen` was there.
    fn claim(&self, pair: u16, port: u16, seen: u32, new: u32) -> bool;
    /// Whether the flow at a place does not need a pair's port: it is none that has it, or its entry [`is_spent`] and was emptied.
    fn evict(&self, place: Place, pair: u16, port: u16) -> bool;
}

/// Whether a flow must give up its port when all are in use: it has ended and lingered, or has not been answered for [`EMBRYO_TICKS`].
#[inline(always)]
pub const fn is_spent(value: Word, now: Tick) -> bool {
    value.is_vacant(now) || (value.is_nascent() && value.nascent_age(now) >= EMBRYO_TICKS)
}

/// Takes a port of a pair for the flow at `place`: one that is free; or else one that is in use and that its flow needs no more, of which embryos are
/// many under a flood, so that it is for those who have found no free one. 0 is none among those that were looked at.
#[inline(always)]
pub fn take<P: Ports>(ports: &P, pair: u16, place: Place, is_free: bool) -> u16 {
    if is_free {
        take_free(ports, pair, slot_of(place))
    } else {
        take_over(ports, pair, slot_of(place))
    }
}

/// Takes a port that the bitmap has as free: in at most four random lines of it, from a random word of each on, a random bit of that.
#[inline(never)]
fn take_free<P: Ports>(ports: &P, pair: u16, slot: u32) -> u16 {
    let mut random = 0;
    let mut line = 0;
    let mut looked = 0;
    while looked < LINES * WORDS_OF_LINE {
        if looked % WORDS_OF_LINE == 0 {
            random = ports.random();
            line = scale(random, WORDS_OF_PAIR / WORDS_OF_LINE);
        }
        let word = line * WORDS_OF_LINE + (random.wrapping_add(looked) % WORDS_OF_LINE);
        let bits = ports.bits(pair, word);
        if bits != u64::MAX {
            let bit = free_bit(bits, random >> 3);
            let port = FIRST_PORT.wrapping_add((word * 64 + bit) as u16);
            if ports.mark(pair, word, bits, bits | (1 << bit)) && ports.claim(pair, port, 0, slot) {
                return port;
            }
        }
        looked += 1;
    }
    0
}

/// The first bit that is 0 from the bit `from` (modulo 64) on. There is one.
#[inline(always)]
const fn free_bit(bits: u64, from: u32) -> u32 {
    let free = (!bits).rotate_right(from & 63);
    (free.trailing_zeros() + from) & 63
}

/// Takes a port over from a flow that needs it no more: the bitmap goes on having it as in use.
#[inline(never)]
fn take_over<P: Ports>(ports: &P, pair: u16, slot: u32) -> u16 {
    let mut looked = 0;
    while looked < SECOND_LOOKS {
        let port = FIRST_PORT.wrapping_add(scale(ports.random(), PORTS_OF_PAIR) as u16);
        let seen = ports.slot(pair, port);
        let is_to_be_had = seen == 0 || ports.evict(super::place_of(seen), pair, port);
        if is_to_be_had && ports.claim(pair, port, seen, slot) {
            return port;
        }
        looked += 1;
    }
    0
}

/// Gives back the port that a flow has, or had, which is what `slot` says: if it is another's by now, it stays that.
#[inline(always)]
pub fn give_back<P: Ports>(ports: &P, pair: u16, port: u16, slot: u32) {
    if ports.claim(pair, port, slot, 0) {
        let index = port.wrapping_sub(FIRST_PORT) as u32;
        ports.clear(pair, index / 64, 1 << (index % 64));
    }
}

/// Moves a port along with its flow, from one slot's place to another's. False if it was no more the flow's.
#[inline(always)]
pub fn carry<P: Ports>(ports: &P, pair: u16, port: u16, from: u32, to: u32) -> bool {
    ports.claim(pair, port, from, to)
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        collections::HashSet,
        sync::{
            Mutex,
            atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
        },
    };

    use super::*;
    use crate::{
        clock::TICK_NS,
        flow::word::{BackendRef, LINGER_RST_TICKS, State},
    };

    thread_local! {
        static RANDOM: Cell<u32> = const { Cell::new(0x2545_f491) };
    }

    /// One pair's ports. Flows at even places need theirs, those at odd places do not.
    struct Model {
        bits: Vec<AtomicU64>,
        slots: Vec<AtomicU32>,
        looks: AtomicU32,
    }

    const PAIR: u16 = 3;

    fn take_any(model: &Model, place: Place) -> u16 {
        match take(model, PAIR, place, true) {
            0 => take(model, PAIR, place, false),
            free => free,
        }
    }

    impl Model {
        fn new() -> Self {
            Self {
                bits: (0..WORDS_OF_PAIR).map(|_| AtomicU64::new(0)).collect(),
                slots: (0..PORTS_OF_PAIR).map(|_| AtomicU32::new(0)).collect(),
                looks: AtomicU32::new(0),
            }
        }

        fn slot_at(&self, port: u16) -> &AtomicU32 {
            &self.slots[usize::from(port - FIRST_PORT)]
        }

        fn in_use(&self) -> usize {
            let is_used = |slot: &&AtomicU32| slot.load(SeqCst) != 0;
            self.slots.iter().filter(is_used).count()
        }

        fn marked(&self) -> u32 {
            let ones = |word: &AtomicU64| word.load(SeqCst).count_ones();
            self.bits.iter().map(ones).sum()
        }

        /// Has so many ports in use by flows at `place`.
        fn fill(&self, count: u32, place: Place) {
            // A prime that does not divide the number of ports: so many steps come to as many ports, all over the bitmap.
            const STEP: u32 = 10_007;
            for n in 0..count {
                let index = (n * STEP) % PORTS_OF_PAIR;
                self.slots[index as usize].store(slot_of(place), SeqCst);
                self.bits[(index / 64) as usize].fetch_or(1 << (index % 64), SeqCst);
            }
            assert_eq!(self.in_use(), count as usize);
        }
    }

    impl Ports for Model {
        fn random(&self) -> u32 {
            RANDOM.with(|random| {
                random.set(crate::bench::next(random.get()));
                random.get().wrapping_mul(0x9e37_79b1)
            })
        }

        fn bits(&self, pair: u16, word: u32) -> u64 {
            assert_eq!(pair, PAIR);
            self.looks.fetch_add(1, SeqCst);
            self.bits[word as usize].load(SeqCst)
        }

        fn mark(&self, _: u16, word: u32, seen: u64, new: u64) -> bool {
            let word = &self.bits[word as usize];
            word.compare_exchange(seen, new, SeqCst, SeqCst).is_ok()
        }

        fn clear(&self, _: u16, word: u32, bits: u64) {
            self.bits[word as usize].fetch_and(!bits, SeqCst);
        }

        fn slot(&self, _: u16, port: u16) -> u32 {
            self.looks.fetch_add(1, SeqCst);
            self.slot_at(port).load(SeqCst)
        }

        fn claim(&self, _: u16, port: u16, seen: u32, new: u32) -> bool {
            let slot = self.slot_at(port);
            slot.compare_exchange(seen, new, SeqCst, SeqCst).is_ok()
        }

        fn evict(&self, place: Place, _: u16, _: u16) -> bool {
            place.way % 2 == 1
        }
    }

    const HOLDING: Place = Place { index: 9, way: 0 };
    const SPENT: Place = Place { index: 9, way: 1 };
    const MINE: Place = Place { index: 5, way: 2 };

    #[test]
    fn a_port_is_taken_and_given_back() {
        let model = Model::new();
        let port = take_any(&model, MINE);
        assert!(port >= FIRST_PORT);
        assert_eq!(model.slot_at(port).load(SeqCst), slot_of(MINE));
        assert_eq!((model.in_use(), model.marked()), (1, 1));
        give_back(&model, PAIR, port, slot_of(HOLDING));
        assert_eq!(model.in_use(), 1, "it is not that flow's");
        assert!(!carry(&model, PAIR, port, slot_of(HOLDING), slot_of(SPENT)));
        assert!(carry(&model, PAIR, port, slot_of(MINE), slot_of(HOLDING)));
        give_back(&model, PAIR, port, slot_of(MINE));
        assert_eq!(model.in_use(), 1, "it has moved with its flow");
        give_back(&model, PAIR, port, slot_of(HOLDING));
        assert_eq!((model.in_use(), model.marked()), (0, 0));
    }

    /// All ports are taken one after the other, each once; when hardly any are left, not each try finds one.
    #[test]
    fn every_port_is_given_once() {
        let model = Model::new();
        let mut taken = HashSet::new();
        let mut failures = 0;
        while taken.len() < PORTS_OF_PAIR as usize {
            match take_any(&model, HOLDING) {
                0 => failures += 1,
                port => assert!(taken.insert(port), "port {port} is given twice"),
            }
            assert!(failures < 10_000_000, "{} ports found", taken.len());
        }
        assert_eq!(model.in_use(), PORTS_OF_PAIR as usize);
        assert_eq!(taken.iter().min(), Some(&FIRST_PORT));
        assert_eq!(taken.iter().max(), Some(&u16::MAX));
    }

    #[test]
    fn at_95_percent_a_port_is_found_quickly() {
        at(PORTS_OF_PAIR / 100 * 95, |found, looks| {
            assert_eq!(found, 1_000);
            assert!(looks < 1_200, "{looks} words for 1000 ports");
        });
    }

    #[test]
    fn at_99_9_percent_most_find_one() {
        at(PORTS_OF_PAIR / 1_000 * 999, |found, looks| {
            assert!(found > 800, "{found} of 1000");
            assert!(looks < 1_000 * (LINES * WORDS_OF_LINE + SECOND_LOOKS));
        });
    }

    #[test]
    fn at_100_percent_nobody_finds_one() {
        at(PORTS_OF_PAIR, |found, looks| {
            assert_eq!(found, 0);
            assert_eq!(looks, 1_000 * (LINES * WORDS_OF_LINE + SECOND_LOOKS));
        });
    }

    /// Tries 1000 times with so many ports in use, always the same.
    fn at(in_use: u32, check: impl Fn(u32, u32)) {
        let model = Model::new();
        model.fill(in_use, HOLDING);
        let mut found = 0;
        for _ in 0..1_000 {
            let port = take_any(&model, MINE);
            if port != 0 {
                found += 1;
                give_back(&model, PAIR, port, slot_of(MINE));
            }
        }
        assert_eq!(model.in_use(), in_use as usize);
        check(found, model.looks.load(SeqCst));
    }

    #[test]
    fn when_all_are_in_use_a_spent_flow_loses_its_port() {
        let model = Model::new();
        model.fill(PORTS_OF_PAIR, SPENT);
        let port = take_any(&model, MINE);
        assert_ne!(port, 0);
        assert_eq!(model.slot_at(port).load(SeqCst), slot_of(MINE));
        assert_eq!(model.marked(), PORTS_OF_PAIR);
    }

    /// Who died between slot and bit has lost nothing: the port is found by a second look.
    #[test]
    fn a_port_whose_bit_is_wrong_is_found_or_passed_over() {
        let model = Model::new();
        model.fill(PORTS_OF_PAIR, HOLDING);
        for slot in &model.slots {
            slot.store(0, SeqCst);
        }
        assert_ne!(take_any(&model, MINE), 0);

        let model = Model::new();
        model.fill(PORTS_OF_PAIR, HOLDING);
        model.bits.iter().for_each(|word| word.store(0, SeqCst));
        assert_eq!(take_any(&model, MINE), 0);
        assert_eq!(model.in_use(), PORTS_OF_PAIR as usize);
    }

    #[test]
    fn threads_share_no_port_and_lose_none() {
        let model = Model::new();
        // So few are left that all of them meet there.
        model.fill(PORTS_OF_PAIR - 16, HOLDING);
        let held = Mutex::new(HashSet::new());
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let (model, held) = (&model, &held);
                scope.spawn(move || {
                    RANDOM.set(0x9e37_79b9 ^ (thread << 8));
                    let place = Place {
                        index: 100 + thread,
                        way: 0,
                    };
                    for _ in 0..20_000 {
                        let port = take_any(model, place);
                        if port == 0 {
                            continue;
                        }
                        assert!(held.lock().unwrap().insert(port), "{port} has two flows");
                        assert!(held.lock().unwrap().remove(&port));
                        give_back(model, PAIR, port, slot_of(place));
                    }
                });
            }
        });
        let all = PORTS_OF_PAIR - 16;
        assert_eq!((model.in_use(), model.marked()), (all as usize, all));
    }

    /// Whenever in its tick the SYN came: not before it has had 3 s, and then within two ticks.
    #[test]
    fn an_embryo_keeps_its_port_for_3_seconds_and_for_no_more_than_two_ticks() {
        const SECOND_NS: u64 = 1_000_000_000;
        let begin_ns = 1_000 * TICK_NS;
        for into_tick_ns in [0, 1, SECOND_NS, TICK_NS - SECOND_NS, TICK_NS - 1] {
            let syn_ns = begin_ns + into_tick_ns;
            let backend = BackendRef::new(7, 3);
            let embryo = Word::embryo(backend, 0, Tick::from_ns(syn_ns));
            let challenger = Word::challenger(backend, 0, Tick::from_ns(syn_ns));
            for word in [embryo, challenger] {
                let spent_after = |ns| is_spent(word, Tick::from_ns(syn_ns + ns));
                assert!(!spent_after(0), "at once");
                assert!(!spent_after(1), "in the next tick");
                assert!(!spent_after(3 * SECOND_NS), "{into_tick_ns}");
                assert!(spent_after(2 * TICK_NS), "{into_tick_ns}");
            }
        }
    }

    #[test]
    fn a_flow_that_is_reset_keeps_its_port_while_it_lingers_and_one_that_lives_for_ever() {
        let then = Tick(1_000);
        let of = |state, flags| Word::live(state, BackendRef::new(7, 3), 0, then, flags);
        let closing = of(State::Closing, Word::BY_RESET);
        assert!(!is_spent(closing, then.later(LINGER_RST_TICKS - 1)));
        assert!(is_spent(closing, then.later(LINGER_RST_TICKS)));
        for state in [State::Young, State::Pin] {
            assert!(!is_spent(of(state, 0), then.later(100_000)));
        }
    }

    #[test]
    fn a_free_bit_is_free_and_any_of_them_may_be_it() {
        let bits = !((1 << 5) | (1 << 63));
        assert_eq!(free_bit(bits, 0), 5);
        assert_eq!(free_bit(bits, 5), 5);
        assert_eq!(free_bit(bits, 6), 63);
        assert_eq!(free_bit(bits, 63 + 64), 63);
    }
}
