//! Digests by which it is told whether something long is the same still: only ever compared with others of this process.

/// Of words in their order.
pub(crate) fn of_words(words: impl Iterator<Item = u64>) -> u64 {
    // Golden ratio, 64 bits; odd, so nothing is lost by the multiplication.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    words.fold(FACTOR, |digest, word| {
        (digest ^ word).wrapping_mul(FACTOR).rotate_left(23)
    })
}
