//! What the daemon has inserted for it, since it never inserts itself: entries that move to another table.

use core::mem::{offset_of, size_of};

use super::{
    table::{self, Claim, Inserted, Look, Memory, Place, Subject},
    word::Word,
};

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
    /// For a table that is in use: inserted, unless its key has an entry.
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

/// Inserts an entry. Gives its place if it is in the table then.
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
