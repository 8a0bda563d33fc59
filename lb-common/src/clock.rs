//! Coarse time in ticks: the unit in which the flow table remembers.

/// Nanoseconds in a tick: 2^32, about 4.3 s, so that a tick is one shift of the coarse monotonic clock.
pub const TICK_NS: u64 = 1 << 32;

/// A moment of the coarse monotonic clock (`CLOCK_MONOTONIC_COARSE`), in ticks since boot.
///
/// Entries keep only its low bits, so ages are modular: see [`Tick::age`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Tick(pub u32);

impl Tick {
    /// The tick that `ns` nanoseconds of the monotonic clock fall into.
    #[inline(always)]
    pub const fn from_ns(ns: u64) -> Self {
        Self((ns >> 32) as u32)
    }

    /// Ticks since `then`, of which only the low `bits` bits are known: modulo 2^`bits`. A tick ahead is no age at all, since another CPU
    /// or the daemon may have seen the next tick already.
    #[inline(always)]
    pub const fn age(self, then: u32, bits: u32) -> u32 {
        let since_before = self.0.wrapping_sub(then).wrapping_add(1) & ((1 << bits) - 1);
        // One less, but no less than zero; without a branch, which the verifier would follow both ways.
        let since = since_before.wrapping_sub(1);
        since.wrapping_add(since >> 31)
    }

    /// Ticks since `then`, all of which is known. As [`Tick::age`]: a tick ahead is no age. Modulo 2^28, which is 36 years.
    pub const fn since(self, then: Self) -> u32 {
        self.age(then.0, 28)
    }

    /// The tick `ticks` later.
    #[inline(always)]
    pub const fn later(self, ticks: u32) -> Self {
        Self(self.0.wrapping_add(ticks))
    }
}

/// The smallest difference of two ticks that proves that at least `seconds` have passed between them.
///
/// Two moments whose ticks differ by `n` are more than `n - 1` ticks apart, hence the extra one.
pub const fn ticks_proving(seconds: u64) -> u32 {
    (seconds * 1_000_000_000).div_ceil(TICK_NS) as u32 + 1
}

/// Whole seconds in so many ticks.
pub const fn seconds(ticks: u32) -> u64 {
    ticks as u64 * TICK_NS / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_of_proving_ticks_is_at_least_that_long() {
        for seconds in [1, 30, 60, 128, 600, 900, 7_200, 86_400] {
            let ticks = u64::from(ticks_proving(seconds));
            // The worst case: the first moment ends its tick, the second begins its own.
            assert!(
                (ticks - 1) * TICK_NS >= seconds * 1_000_000_000,
                "{seconds} s"
            );
            assert!(
                (ticks - 2) * TICK_NS < seconds * 1_000_000_000,
                "{seconds} s is proven a tick too late"
            );
        }
    }

    #[test]
    fn no_number_of_ticks_is_too_large_to_be_told_in_seconds() {
        assert_eq!([0, 1, 1_000].map(seconds), [0, 4, 4_294]);
        assert_eq!(seconds(u32::MAX), 18_446_744_069);
    }

    #[test]
    fn ages_wrap() {
        assert_eq!(Tick(5).age(60, 6), 9);
        assert_eq!(Tick(1 << 20).age((1 << 20) - 1, 20), 1);
    }

    #[test]
    fn what_is_a_tick_ahead_has_no_age() {
        assert_eq!(Tick(7).age(8, 6), 0);
        assert_eq!(Tick(63).age(0, 6), 0);
        assert_eq!(Tick(0).age(1, 20), 0);
        assert_eq!(Tick(7).age(9, 6), 62);
    }
}
