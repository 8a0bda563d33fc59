//! SNAT ports in the maps: a bit for each of a pair, and a slot with the place of the flow that has it.

use std::sync::atomic::{Ordering, fence};

use lb_common::nat;

use super::Maps;

impl Maps {
    /// Takes a pair out of use: nobody has a port of it, nor takes one.
    pub fn clear_pair(&self, pair: u16) {
        self.pairs.set(u32::from(pair), &nat::Pair::default());
        let words = u32::from(pair) * nat::WORDS_OF_PAIR..;
        for index in words.take(nat::WORDS_OF_PAIR as usize) {
            self.ports.word(index, 0).store(0, Ordering::Relaxed);
        }
        if u32::from(pair) < self.capacity.pairs_with_slots() {
            let words = nat::PORTS_OF_PAIR / 2;
            let first = u32::from(pair) * words;
            for index in first..first + words {
                self.slots.word(index, 0).store(0, Ordering::Relaxed);
            }
        }
        fence(Ordering::SeqCst);
    }

    /// Gives back the SNAT port of an entry that is gone, unless another flow has it by now; true if it did. `place` is what the slot of a port of
    /// that entry holds.
    pub fn give_back_port(&self, pair: u16, port: u16, place: u32) -> bool {
        if !self.empty_slot(pair, port, place) {
            return false;
        }
        let bit = u32::from(port - nat::FIRST_PORT);
        let word = u32::from(pair) * nat::WORDS_OF_PAIR + bit / 64;
        let bits = self.ports.word(word, 0);
        bits.fetch_and(!(1 << (bit % 64)), Ordering::SeqCst);
        true
    }

    /// Empties the slot of a port if it holds `place`; false if there is no such port, or it holds something else. Its bit stays.
    pub fn empty_slot(&self, pair: u16, port: u16, place: u32) -> bool {
        if port < nat::FIRST_PORT || u32::from(pair) >= self.capacity.pairs_with_slots() {
            return false;
        }
        let index = nat::slot_index(pair, port);
        let shift = index % 2 * 32;
        let slot = self.slots.word(index / 2, 0);
        let release = |word: u64| {
            let holds = (word >> shift) as u32 == place;
            holds.then_some(word & !(u64::from(u32::MAX) << shift))
        };
        // It fails at once if the slot is another's; else only the neighbouring port's slot can have changed.
        slot.fetch_update(Ordering::SeqCst, Ordering::SeqCst, release)
            .is_ok()
    }

    /// Has the bitmap of SNAT ports say what their slots say: those of flows that have ended before they could be moved are free. For tables that nobody
    /// writes at this moment.
    pub fn mark_ports(&self) {
        const SLOTS_OF_WORD: u32 = 64 / 2;
        let of_pair = |pair: u32| pair * nat::WORDS_OF_PAIR..(pair + 1) * nat::WORDS_OF_PAIR;
        let in_use = |pair: &u32| self.pairs.get(*pair) != nat::Pair::default();
        let pairs = 1..self.capacity.pairs_with_slots();
        for index in pairs.filter(in_use).flat_map(of_pair) {
            let first = (index * SLOTS_OF_WORD) as usize;
            let slots = &self.slots.all()[first..][..SLOTS_OF_WORD as usize];
            let mut bits = 0;
            for (at, two) in slots.iter().enumerate() {
                let two = two.load(Ordering::Relaxed);
                bits |= u64::from(two as u32 != 0) << (2 * at);
                bits |= u64::from(two >> 32 != 0) << (2 * at + 1);
            }
            self.ports.word(index, 0).store(bits, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Ports of a pair that are in use, or rest after use.
    pub fn ports_in_use(&self, pair: u16) -> u32 {
        let first = u32::from(pair) * nat::WORDS_OF_PAIR;
        (first..first + nat::WORDS_OF_PAIR)
            .map(|word| {
                self.ports
                    .word(word, 0)
                    .load(Ordering::Relaxed)
                    .count_ones()
            })
            .sum()
    }
}
