//! How much is to be reclaimed, and of which age: decided at the end of a pass, carried out by the next.

use super::judge::{Pressure, RECLAIM_PIN_TICKS};
use lb_common::flow::word::TICK_BITS;

/// Use above which entries are reclaimed, as a fraction: three quarters.
const LIMIT: (u64, u64) = (3, 4);
/// Ages of pins are told apart by this many ticks: 73 min.
const STEP_TICKS: u32 = 1 << 10;
const STEPS: usize = 1 << (TICK_BITS - 10);

/// What of the next pass is to be reclaimed.
///
/// Embryos do not count as use: they give way to any new flow.
#[derive(Debug)]
pub(super) struct Reclaim {
    /// Entries too many.
    budget: u64,
    pressure: Option<Pressure>,
    /// Whether the pass before was to reclaim too, and left some that could be.
    persists: bool,
    /// Pins that could be reclaimed, by age, as the current pass meets them.
    pins: Vec<u32>,
    /// Young entries that could be.
    young: u64,
}

impl Reclaim {
    pub(super) fn new() -> Self {
        Self {
            budget: 0,
            pressure: None,
            persists: false,
            pins: vec![0; STEPS],
            young: 0,
        }
    }

    /// What may be reclaimed at this moment from a bucket that is full, or not.
    ///
    /// The first pass takes from full buckets, and from all of them alike, so that the room is where it is missing and not all at
    /// the table's beginning. The passes after it take from any, and no more than is too many.
    pub(super) fn pressure(&self, is_full: bool) -> Option<Pressure> {
        self.pressure.filter(|_| {
            if self.persists {
                self.budget > 0
            } else {
                is_full
            }
        })
    }

    /// Whether the last pass found too many entries, so that candidates are worth counting.
    pub(super) fn is_on(&self) -> bool {
        self.pressure.is_some()
    }

    /// Notes that an entry was reclaimed.
    pub(super) fn took_one(&mut self) {
        self.budget = self.budget.saturating_sub(1);
    }

    /// Notes a young entry that could be reclaimed.
    pub(super) fn could_take_young(&mut self) {
        self.young += 1;
    }

    /// Notes a pin that could be reclaimed.
    pub(super) fn could_take_pin(&mut self, age: u32) {
        if let Some(count) = self.pins.get_mut((age / STEP_TICKS) as usize) {
            *count += 1;
        }
    }

    /// At the end of a pass that left `used` live entries of `capacity`: decides for the next.
    pub(super) fn decide(&mut self, used: u64, capacity: u64) {
        let limit = capacity * LIMIT.0 / LIMIT.1;
        // A little more than too many, so that the use is below the limit and not at it.
        self.budget = match used.saturating_sub(limit) {
            0 => 0,
            too_many => too_many + capacity / 100,
        };
        let are_left = self.young > 0 || self.pins.iter().any(|&count| count > 0);
        self.persists = self.pressure.is_some() && are_left;
        self.pressure = (self.budget > 0).then(|| Pressure {
            pins_from: self.pins_from(),
        });
        self.pins.fill(0);
        self.young = 0;
    }

    /// The age from which pins go so that, after all young entries that can, just enough of the oldest do.
    fn pins_from(&self) -> Option<u32> {
        let mut wanted = self.budget.saturating_sub(self.young);
        if wanted == 0 {
            return None;
        }
        let mut from = None;
        for (step, &count) in self.pins.iter().enumerate().rev() {
            if count > 0 {
                from = Some((step as u32 * STEP_TICKS).max(RECLAIM_PIN_TICKS));
            }
            wanted = wanted.saturating_sub(u64::from(count));
            if wanted == 0 {
                break;
            }
        }
        from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u32 = RECLAIM_PIN_TICKS;

    fn decided(used: u64, young: u64, pins: &[(u32, u32)]) -> Reclaim {
        let mut reclaim = Reclaim::new();
        for _ in 0..young {
            reclaim.could_take_young();
        }
        for &(age, count) in pins {
            for _ in 0..count {
                reclaim.could_take_pin(age);
            }
        }
        reclaim.decide(used, 100);
        reclaim
    }

    #[test]
    fn nothing_is_taken_up_to_three_quarters() {
        assert_eq!(decided(75, 10, &[(DAY, 10)]).pressure(true), None);
    }

    #[test]
    fn young_entries_come_before_pins() {
        let pressure = decided(79, 5, &[(DAY, 10)]).pressure(true).unwrap();
        assert_eq!(pressure.pins_from, None);
    }

    #[test]
    fn the_oldest_pins_come_first() {
        let pins = [(DAY, 9), (3 * DAY, 4), (6 * DAY, 2)];
        let from = |used| {
            decided(used, 0, &pins)
                .pressure(true)
                .unwrap()
                .pins_from
                .unwrap()
        };
        assert!((5 * DAY..=6 * DAY).contains(&from(76)));
        assert!((2 * DAY..=3 * DAY).contains(&from(78)));
        assert_eq!(from(100), DAY);
    }

    #[test]
    fn full_buckets_come_first_and_then_no_more_is_taken_than_is_too_many() {
        let mut reclaim = decided(77, 10, &[]);
        assert!(reclaim.pressure(true).is_some());
        assert_eq!(reclaim.pressure(false), None);
        reclaim.could_take_young();
        reclaim.decide(77, 100);
        for _ in 0..3 {
            assert!(reclaim.pressure(false).is_some());
            reclaim.took_one();
        }
        assert_eq!(reclaim.pressure(false), None);
    }

    #[test]
    fn each_pass_counts_anew() {
        let mut reclaim = decided(80, 0, &[(DAY, 10)]);
        reclaim.decide(80, 100);
        assert_eq!(reclaim.pressure(true), Some(Pressure { pins_from: None }));
    }
}
