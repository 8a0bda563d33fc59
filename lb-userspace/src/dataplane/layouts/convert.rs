//! Moving a record from one version's layout to another's.
//!
//! Worked out once, and then a few masks and shifts a record, since flow tables of millions of entries are moved while they are held: fields that move by the
//! same distance within the same words move together.

use super::Layouts;

/// Bits of one word that go to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Move {
    from: usize,
    to: usize,
    /// Of the word that they are in.
    mask: u64,
    /// How far up they go; down if it is negative.
    up: i32,
}

/// How a record of one version becomes that of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversion {
    moves: Vec<Move>,
    /// Bits by word that have no room in the other version: they are zero, or the record cannot be moved.
    excess: Vec<(usize, u64)>,
    from_words: usize,
    to_words: usize,
    /// Fields that the other version does not have.
    pub dropped: Vec<String>,
}

/// A record that has no room in the other version's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow;

impl Conversion {
    /// That of a record, by name; none if one of the versions has no such record, or not of whole words.
    #[must_use]
    pub fn between(from: &Layouts, to: &Layouts, record: &str) -> Option<Self> {
        let (old, new) = (from.records.get(record)?, to.records.get(record)?);
        if old.bits % 64 != 0 || new.bits % 64 != 0 {
            return None;
        }
        let mut conversion = Self {
            moves: vec![],
            excess: vec![],
            from_words: old.bits / 64,
            to_words: new.bits / 64,
            dropped: vec![],
        };
        for (name, &(at, bits)) in &old.fields {
            let Some(&(new_at, new_bits)) = new.fields.get(name) else {
                conversion.dropped.push(name.clone());
                continue;
            };
            let common = bits.min(new_bits);
            conversion.carry(at, new_at, common);
            for bit in at + common..at + bits {
                conversion.excess.push((bit / 64, 1 << (bit % 64)));
            }
        }
        Some(conversion)
    }

    /// Has so many bits go from one place to another.
    fn carry(&mut self, mut at: usize, mut to: usize, mut bits: usize) {
        while bits > 0 {
            // As far as both stay within a word.
            let now = bits.min(64 - at % 64).min(64 - to % 64);
            let mask = (u64::MAX >> (64 - now)) << (at % 64);
            let moved = Move {
                from: at / 64,
                to: to / 64,
                mask,
                up: (to % 64) as i32 - (at % 64) as i32,
            };
            let same = self
                .moves
                .iter_mut()
                .find(|other| (other.from, other.to, other.up) == (moved.from, moved.to, moved.up));
            match same {
                Some(other) => other.mask |= mask,
                None => self.moves.push(moved),
            }
            (at, to, bits) = (at + now, to + now, bits - now);
        }
    }

    /// Words of a record before and after.
    #[must_use]
    pub fn words(&self) -> (usize, usize) {
        (self.from_words, self.to_words)
    }

    /// Moves one record. What the other version does not have is left out, and what this one has not is 0.
    ///
    /// # Errors
    /// When something in it has no room.
    ///
    /// # Panics
    /// If the records have not these sizes.
    #[inline]
    pub fn apply(&self, from: &[u64], to: &mut [u64]) -> Result<(), Overflow> {
        assert!(from.len() == self.from_words && to.len() == self.to_words);
        to.fill(0);
        for moved in &self.moves {
            let bits = from[moved.from] & moved.mask;
            to[moved.to] |= if moved.up < 0 {
                bits >> -moved.up
            } else {
                bits << moved.up
            };
        }
        if self
            .excess
            .iter()
            .any(|&(word, mask)| from[word] & mask != 0)
        {
            return Err(Overflow);
        }
        Ok(())
    }

    /// The same of one word.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// If the records are larger.
    #[inline]
    pub fn word(&self, from: u64) -> Result<u64, Overflow> {
        let mut to = [0];
        self.apply(&[from], &mut to)?;
        Ok(to[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layouts(version: u32, fields: &str) -> Layouts {
        let text = format!("tether layouts {version}\nrecord thing 128\n{fields}");
        text.parse().expect("these are layouts")
    }

    #[test]
    fn fields_are_found_by_name_wherever_they_are() {
        let old = layouts(1, "  a 0 8\n  b 8 24\n  wide 40 48\n  gone 100 4\n");
        let new = layouts(2, "  b 0 24\n  a 60 8\n  wide 70 48\n  fresh 24 9\n");
        let there = Conversion::between(&old, &new, "thing").unwrap();
        assert_eq!(there.dropped, ["gone"]);
        let (a, b, wide) = (0xa5u128, 0x12_3456u128, 0xfeed_beef_cafeu128);
        let before = a | b << 8 | wide << 40 | 0xf << 100;
        let after = b | a << 60 | wide << 70;
        let words = |n: u128| [n as u64, (n >> 64) as u64];
        let mut moved = [u64::MAX; 2];
        there.apply(&words(before), &mut moved).unwrap();
        assert_eq!(moved, words(after));
        let back = Conversion::between(&new, &old, "thing").unwrap();
        assert_eq!(back.dropped, ["fresh"]);
        let mut again = [0; 2];
        back.apply(&moved, &mut again).unwrap();
        assert_eq!(again, words(before & !(0xf << 100)));
    }

    #[test]
    fn what_has_no_room_is_not_cut() {
        let old = layouts(1, "  a 0 8\n");
        let new = layouts(2, "  a 3 5\n");
        let conversion = Conversion::between(&old, &new, "thing").unwrap();
        let mut to = [0; 2];
        assert_eq!(conversion.apply(&[0x1f, 0], &mut to), Ok(()));
        assert_eq!(to, [0xf8, 0]);
        assert_eq!(conversion.apply(&[0x20, 0], &mut to), Err(Overflow));
        assert_eq!(Conversion::between(&old, &new, "other"), None);
    }

    proptest! {
        /// Fields anywhere, in any order, go there and come back.
        #[test]
        fn there_and_back_is_the_same(
            widths in proptest::collection::vec(1usize..=20, 1..7),
            order in any::<[u8; 7]>(),
            values in any::<[u64; 2]>(),
        ) {
            let place = |order: &[u8]| {
                let mut indices: Vec<_> = (0..widths.len()).collect();
                indices.sort_by_key(|&index| order[index]);
                let mut at = 0;
                let mut text = String::new();
                for index in indices {
                    text += &format!("  f{index} {at} {}\n", widths[index]);
                    at += widths[index];
                }
                layouts(1, &text)
            };
            let (one, other) = (place(&[0, 1, 2, 3, 4, 5, 6]), place(&order));
            let bits: usize = widths.iter().sum();
            let mut all = u128::from(values[0]) | u128::from(values[1]) << 64;
            if bits < 128 { all &= (1 << bits) - 1; }
            let before = [all as u64, (all >> 64) as u64];
            let (mut there, mut back) = ([0; 2], [0; 2]);
            Conversion::between(&one, &other, "thing").unwrap().apply(&before, &mut there).unwrap();
            Conversion::between(&other, &one, "thing").unwrap().apply(&there, &mut back).unwrap();
            prop_assert_eq!(back, before);
        }
    }
}
