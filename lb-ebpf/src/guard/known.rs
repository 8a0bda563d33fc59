//! Whether a flow has an entry.

use lb_common::{
    flow::{table::Look, word::Word},
    tcp::SYN,
};

use crate::{
    family::{Family, V4, V6},
    flow, hide,
};

// What is known of a segment's flow.
/// It has an entry: in mid-stream any, and of a SYN that which it has made.
pub(super) const KNOWN: u32 = 1;
/// A SYN that would make a flow in the place of another, which its client has with this port: the source would have none more.
pub(super) const REPLACES: u32 = 2;

/// Looking for entries, in one version of IP.
pub(crate) trait Known {
    /// What is known of a segment's flow: [`KNOWN`], [`REPLACES`], or 0. The client's address, as [`lb_common::net::Address::words`] has it; its port
    /// (bits 16-31) and the service (0-15); the sequence number (8-39) and the flags (0-7).
    fn known(first: u64, second: u64, flow: u64, what: u64) -> u32;
}

impl Known for V4 {
    #[inline(always)]
    fn known(first: u64, second: u64, flow: u64, what: u64) -> u32 {
        known4(first, second, flow, what)
    }
}

impl Known for V6 {
    #[inline(always)]
    fn known(first: u64, second: u64, flow: u64, what: u64) -> u32 {
        known6(first, second, flow, what)
    }
}

// Global functions, which the verifier walks through once, and not once for each way that leads to them.

/// [`Known::known`] of IPv4.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn known4(first: u64, second: u64, flow: u64, what: u64) -> u32 {
    known::<V4>(first, second, flow, what)
}

/// [`Known::known`] of IPv6.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn known6(first: u64, second: u64, flow: u64, what: u64) -> u32 {
    known::<V6>(first, second, flow, what)
}

#[inline(always)]
fn known<F: Family>(first: u64, second: u64, flow: u64, what: u64) -> u32 {
    let client = F::of_words([first, second]);
    let key = F::key(client, (flow >> 16) as u16, flow as u16);
    let subject = flow::subject::<F>(key);
    let is_syn = what as u8 & SYN != 0;
    let isn = (what >> 8) as u32;
    let mut found = 0;
    // The second look: an entry may have moved between the homes during the first; and of a pair that has found but one.
    let mut look = Look::ANY;
    let mut looks = 0;
    while looks < 2 {
        if let Some(entry) = flow::look::<F>(&subject, &look) {
            if !is_syn || (entry.word.is_nascent() && entry.word.isn() == isn) {
                return KNOWN;
            }
            found |= makes_room(entry.word);
            look = Look::twin_of(&entry);
        }
        looks += 1;
    }
    found
}

/// [`REPLACES`] if an entry is nascent or open, so that it may be counted as a flow of its source's, else 0. Without a branch, which the kernel's verifier would
/// follow both ways through the second look.
#[inline(always)]
fn makes_room(word: Word) -> u32 {
    // Of the state's upper two bits, which the compiler must not compare, nascent and open entries have one, those that close both, and what is no entry none.
    let state = hide::number(word.0);
    ((state ^ (state >> 1)) & u64::from(REPLACES)) as u32
}
