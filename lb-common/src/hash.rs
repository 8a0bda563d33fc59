//! Keyed hashing of words that fit a register.

/// A secret that keys [`mix`]: one word to whiten, two odd multipliers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Seed {
    /// Exclusive-or'ed onto the input.
    pub whiten: u64,
    /// First multiplier; used odd.
    pub first: u64,
    /// Second multiplier; used odd.
    pub second: u64,
}

impl Seed {
    /// From three words of any origin; the multipliers are made odd, so that [`mix`] stays a bijection.
    #[inline(always)]
    pub const fn new(words: [u64; 3]) -> Self {
        Self {
            whiten: words[0],
            first: words[1] | 1,
            second: words[2] | 1,
        }
    }
}

/// Mixes a word under a secret seed: two rounds of shift-xor and multiplication.
///
/// It is a bijection for every seed, so different keys never collide in all 64 bits; who does not know the seed cannot aim
/// at a bucket.
#[inline(always)]
pub const fn mix(word: u64, seed: &Seed) -> u64 {
    let x = word ^ seed.whiten;
    let x = (x ^ (x >> 32)).wrapping_mul(seed.first);
    let x = (x ^ (x >> 29)).wrapping_mul(seed.second);
    x ^ (x >> 32)
}

/// Maps 32 uniformly distributed bits to `0..n` without a division (multiply and shift).
#[inline(always)]
pub const fn scale(bits: u32, n: u32) -> u32 {
    ((bits as u64 * n as u64) >> 32) as u32
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Asserts that what was dealt into 256 buckets lies there as chance would have it.
    pub(crate) fn assert_even(counts: &[u32; 256], what: &str) {
        let expected = f64::from(counts.iter().sum::<u32>()) / 256.0;
        let chi2: f64 = counts
            .iter()
            .map(|&c| (f64::from(c) - expected).powi(2) / expected)
            .sum();
        // 255 degrees of freedom: mean 255, standard deviation 22.6. Far below the mean would be suspicious too.
        assert!(
            (120.0..400.0).contains(&chi2),
            "chi-squared {chi2} for {what}"
        );
    }

    proptest! {
        #[test]
        fn different_words_never_collide(a: u64, b: u64, seed: [u64; 3]) {
            let seed = Seed::new(seed);
            prop_assert_eq!(a == b, mix(a, &seed) == mix(b, &seed));
        }

        #[test]
        fn scale_stays_below_n(bits: u32, n in 1u32..) {
            prop_assert!(scale(bits, n) < n);
        }
    }

    /// Sequential ports of one client are what a bad mixer piles up.
    #[test]
    fn sequential_ports_spread_evenly() {
        let seed = Seed::new([
            0x1234_5678_9abc_def0,
            0x9e37_79b9_7f4a_7c15,
            0xd6e8_feb8_6659_fd93,
        ]);
        for half in [0, 32] {
            let mut counts = [0; 256];
            for port in 0..65_536u64 {
                let word = (0x0a00_0001 << 32) | (port << 16) | 7;
                counts[scale((mix(word, &seed) >> half) as u32, 256) as usize] += 1;
            }
            assert_even(&counts, &format!("bits from {half}"));
        }
    }
}
