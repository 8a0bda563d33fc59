//! The Internet checksum (RFC 1071).

/// Folds a running sum of 16-bit words to 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// As [`fold`], for a sum of at most 65536 words, which needs fewer instructions.
#[inline(always)]
const fn fold_short(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// As [`finish`], for a sum of at most 65536 words.
#[inline(always)]
pub const fn finish_short(sum: u32) -> u16 {
    !fold_short(sum)
}

/// The checksum field's value, host byte order, for a running sum of 16-bit words in host byte order.
#[inline(always)]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// The running sum of a 32-bit number's two words.
#[inline(always)]
pub const fn halves(word: u32) -> u64 {
    (word >> 16) as u64 + (word & 0xffff) as u64
}

/// The checksum after one of the summed words changed from `old` to `new` (RFC 1624, equation 3). All in host byte order.
#[inline(always)]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    finish_short(!checksum as u32 + !old as u32 + new as u32)
}

/// The checksum field of an IPv4 header after one hop was taken off its time to live. As it is in the packet, loaded by a little-endian
/// machine: there the time to live counts ones, so the checksum grows by one, with an end-around carry (RFC 1141).
#[inline(always)]
pub const fn after_a_hop(raw_checksum: u16) -> u16 {
    let checksum = raw_checksum as u32;
    (checksum + 1 + ((checksum + 2) >> 16)) as u16
}

#[cfg(any(test, feature = "user"))]
/// The running sum of bytes as big-endian words; an odd last byte is padded with zero.
pub fn sum_bytes(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_1071() {
        // Section 3: words 0001, f203, f4f5, f6f7 sum to ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum_bytes(&bytes)), 0xddf2);
    }

    #[test]
    fn after_a_hop_the_checksum_is_as_after_any_update() {
        for time_to_live in 1..=255u16 {
            let (old, new) = (time_to_live << 8 | 6, (time_to_live - 1) << 8 | 6);
            for checksum in 0..=u16::MAX {
                // What a sender puts there is never ffff: that would be the sum of no words at all (RFC 1624, section 3).
                if checksum != u16::MAX {
                    let raw = after_a_hop(checksum.to_be());
                    assert_eq!(
                        u16::from_be(raw),
                        update(checksum, old, new),
                        "{checksum:x}"
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_short_fold_is_the_long_one(sum: u32) {
            prop_assert_eq!(fold_short(sum), fold(u64::from(sum)));
        }

        #[test]
        fn an_update_equals_a_fresh_sum(mut words in proptest::collection::vec(any::<u16>(), 2..20), new: u16) {
            // A header always has a word that is not zero (its version); of all-zero data 0000 and ffff are the same number.
            words[1] |= 0x4500;
            let sum = |words: &[u16]| finish(words.iter().map(|&w| u64::from(w)).sum());
            let updated = update(sum(&words), words[0], new);
            words[0] = new;
            prop_assert_eq!(updated, sum(&words));
        }
    }
}
