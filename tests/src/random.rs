//! A small seeded generator: a run that failed can be run again.

use std::time::Duration;

/// SplitMix64 (Steele, Lea and Flood, 2014). Not for secrets.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator that gives the same numbers for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed in the environment variable `LAB_SEED`, else one from the clock; it is printed, so that a failing run can be
    /// repeated.
    ///
    /// # Panics
    /// When `LAB_SEED` is set and is not a number.
    #[must_use]
    pub fn from_environment() -> Self {
        let seed = match std::env::var("LAB_SEED") {
            Ok(text) => text.parse().expect("LAB_SEED is a decimal number"),
            Err(_) => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |since| since.as_secs()),
        };
        eprintln!("random choices from LAB_SEED={seed}");
        Self::new(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`, even enough for tests.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below 0");
        self.bits() % bound
    }

    /// A span between `least` and `most`, in microseconds' steps.
    pub fn span(&mut self, least: Duration, most: Duration) -> Duration {
        let width = u64::try_from((most.saturating_sub(least)).as_micros()).unwrap_or(u64::MAX);
        least + Duration::from_micros(self.below(width.max(1)))
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.bits().to_le_bytes()[..chunk.len()]);
        }
    }
}
