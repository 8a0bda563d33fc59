//! What the daemon has inserted for it, since it never inserts itself: entries that move to another table.

use core::mem::{offset_of, size_of};

use super::{
    table::{self, Claim, Inserted, Look, Memory, Place, Subject},
    word::{State, Word},
};
use crate::clock::Tick;

/// Orders in a batch: 1 MiB of them.
pub const BATCH: u32 = 16_384;

/// Bytes of the frame of a test run that carries out orders, of which the first four are the number of the next one, in host byte order.
pub const FRAME_LEN: usize = 14;

/// Which entries an order is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// For a table that nobody else writes yet: inserted, whatever else its key has there.
    Copy = 1,
    /// For a table that is in use: inserted, unless its key has an entry by then.
    Rescue = 2,
}

/// How an order ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// It has not been carried out.
    Pending = 0,
    /// The entry is in the table.
    Done = 1,
    /// The key has an entry, which stands.
    Known = 2,
    /// No place.
    Full = 3,
}

impl Outcome {
    /// The outcome of a code; one that is none was never written.
    pub const fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Done,
            2 => Self::Known,
            3 => Self::Full,
            _ => Self::Pending,
        }
    }
}

/// An entry to be inserted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Order {
    /// Its key: of an IPv4 flow the first word.
    pub key: [u64; 3],
    /// Its [`Word`].
    pub value: u64,
    /// The [`crate::nat::TranslationWord`] that goes with it; 0 if none does.
    pub translation: u64,
    /// Whether a translation goes with it: 0 or 1.
    pub has_translation: u64,
    /// The fact for people that goes with it: first seen, in ticks since boot.
    pub first_seen: u32,
    /// A [`Kind`].
    pub kind: u32,
    /// An [`Outcome`]: what came of it.
    pub outcome: u32,
    /// An [`crate::net::IpVersion`]: that of the flow table.
    pub version: u32,
}

const _: () = assert!(size_of::<Order>() == 64 && offset_of!(Order, outcome) == 56);

/// Inserts an entry, as [`Kind::Rescue`] has it or as [`Kind::Copy`]. Gives its place.
///
/// # Errors
/// What came of it instead: the key has an entry, or there is no place.
#[inline(always)]
pub fn insert<M: Memory>(
    memory: &M,
    subject: &Subject<M::Key>,
    word: Word,
    is_rescue: bool,
) -> Result<Place, Outcome> {
    if is_rescue {
        if table::look(memory, subject, &Look::ANY).is_some() {
            return Err(Outcome::Known);
        }
        return match table::insert(memory, subject, word, Claim::Any) {
            Inserted::At(place) => Ok(place),
            Inserted::Yielded(_) => Err(Outcome::Known),
            Inserted::Full => Err(Outcome::Full),
        };
    }
    if let Some(place) = table::place(memory, subject, word, Claim::Harmless) {
        return Ok(place);
    }
    // A live flow is worth more than a SYN that nobody has answered yet.
    if word.is_live()
        && let Some(place) = table::place(memory, subject, word, Claim::Any)
    {
        return Ok(place);
    }
    Err(Outcome::Full)
}

/// The entry of a flow that two tables have, both of which were in use since they were alike: ours, with what only theirs has seen. Both of one backend.
///
/// The one that was seen last stands; of two that were seen last in the same tick the one that ended. The tick of a young entry does not say when it was
/// seen: a pin is further along. And an entry that ended, and is seen later to go on, goes on.
#[inline(always)]
pub const fn joined(ours: Word, theirs: Word, now: Tick) -> Word {
    if ours.is_nascent() && theirs.is_open() {
        return theirs;
    }
    if !ours.is_live() || !theirs.is_live() {
        return ours;
    }
    let (age, their_age) = (ours.age(now), theirs.age(now));
    let is_theirs = if ours.is(State::Young) && theirs.is_open() {
        theirs.is(State::Pin)
    } else if ours.is(State::Pin) && theirs.is(State::Young) {
        false
    } else if their_age == age {
        theirs.is(State::Closing) && !ours.is(State::Closing)
    } else {
        their_age < age
    };
    if is_theirs {
        theirs.with(ours.0 & (Word::CONTESTED | Word::SECOND))
    } else {
        ours
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::word::BackendRef;
    use proptest::prelude::*;

    const NOW: Tick = Tick(100_000);
    const BACKEND: BackendRef = BackendRef::new(7, 3);

    fn live(state: State, age: u32, flags: u64) -> Word {
        Word::live(state, BACKEND, 9, Tick(NOW.0 - age), flags)
    }

    fn embryo(isn: u32) -> Word {
        Word::embryo(BACKEND, isn, NOW)
    }

    #[test]
    fn what_only_their_table_has_seen_of_a_handshake_is_kept() {
        for state in [State::Young, State::Pin] {
            let theirs = live(state, 1, 0);
            assert_eq!(joined(embryo(5), theirs, NOW), theirs);
            assert_eq!(joined(theirs, embryo(5), NOW), theirs);
        }
        assert_eq!(joined(embryo(5), embryo(6), NOW), embryo(5));
        // A SYN that came after the end of the flow before.
        let ended = live(State::Closing, 1, 0);
        assert_eq!(joined(embryo(5), ended, NOW), embryo(5));
    }

    #[test]
    fn who_has_proven_itself_stays_a_pin() {
        let (young, pin) = (live(State::Young, 10, 0), live(State::Pin, 2, 0));
        assert_eq!(joined(young, pin, NOW), pin);
        assert_eq!(joined(pin, young, NOW), pin);
        let later = live(State::Young, 1, 0);
        assert_eq!(joined(pin, later, NOW), pin);
        assert_eq!(joined(young, later, NOW), young);
    }

    #[test]
    fn a_flow_that_ended_has_ended_unless_it_was_seen_since() {
        let closing = live(State::Closing, 5, Word::BY_RESET);
        for (age, has_ended) in [(6, true), (5, true), (4, false)] {
            let pin = live(State::Pin, age, 0);
            let expected = if has_ended { closing } else { pin };
            assert_eq!(joined(pin, closing, NOW), expected, "{age}");
            if age != 5 {
                assert_eq!(joined(closing, pin, NOW), expected, "{age}");
            }
        }
        // Revived.
        let young = live(State::Young, 4, 0);
        assert_eq!(joined(closing, young, NOW), young);
    }

    #[test]
    fn of_two_pins_the_one_seen_later_says_where_the_client_is() {
        let ours = Word::live(State::Pin, BACKEND, 3, Tick(NOW.0 - 90), 0);
        let theirs = Word::live(State::Pin, BACKEND, 4, Tick(NOW.0 - 2), 0);
        assert_eq!(joined(ours, theirs, NOW), theirs);
        assert_eq!(joined(theirs, ours, NOW), theirs);
        // As to whether there is another entry, ours knows better.
        let pair = Word::CONTESTED | Word::SECOND;
        assert_eq!(joined(ours.with(pair), theirs, NOW), theirs.with(pair));
    }

    proptest! {
        #[test]
        fn no_live_flow_is_lost_by_it(ours: u64, theirs: u64, now: u32) {
            let (ours, theirs, now) = (Word(ours), Word(theirs), Tick(now));
            prop_assume!(ours.is_entry() && theirs.is_entry());
            let theirs = theirs.with_backend(ours.backend());
            let joined = joined(ours, theirs, now);
            prop_assert!(joined.is_entry());
            prop_assert_eq!(joined.backend(), ours.backend());
            prop_assert!(joined.is_live() || !ours.is_live());
            // It ends only by an end that was seen.
            prop_assert!(!joined.is(State::Closing) || ours.is(State::Closing) || theirs.is(State::Closing));
            // Joined once more it is the same.
            prop_assert_eq!(super::joined(joined, theirs, now), joined);
        }
    }
}
