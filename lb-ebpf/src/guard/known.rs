//! Whether a flow has an entry.

use lb_common::{flow::table::Look, tcp::SYN};

use crate::{
    family::{Family, V4, V6},
    flow,
};

/// Looking for entries, in one version of IP.
pub(crate) trait Known {
    /// Whether a segment is of a flow that has an entry: in mid-stream any, and of a SYN that which it has made. The client's address, as
    /// [`lb_common::net::Address::words`] has it; its port (bits 16-31) and the service (0-15); the sequence number (8-39) and the flags (0-7).
    fn is_known(first: u64, second: u64, flow: u64, what: u64) -> bool;
}

impl Known for V4 {
    #[inline(always)]
    fn is_known(first: u64, second: u64, flow: u64, what: u64) -> bool {
        is_known4(first, second, flow, what) != 0
    }
}

impl Known for V6 {
    #[inline(always)]
    fn is_known(first: u64, second: u64, flow: u64, what: u64) -> bool {
        is_known6(first, second, flow, what) != 0
    }
}

// Global functions, which the verifier walks through once, and not once for each way that leads to them.

/// [`Known::is_known`] of IPv4.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_known4(first: u64, second: u64, flow: u64, what: u64) -> u32 {
    is_known::<V4>(first, second, flow, what)
}

/// [`Known::is_known`] of IPv6.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_known6(first: u64, second: u64, flow: u64, what: u64) -> u32 {
    is_known::<V6>(first, second, flow, what)
}

#[inline(always)]
fn is_known<F: Family>(first: u64, second: u64, flow: u64, what: u64) -> u32 {
    let client = F::of_words([first, second]);
    let key = F::key(client, (flow >> 16) as u16, flow as u16);
    let subject = flow::subject::<F>(key);
    let is_syn = what as u8 & SYN != 0;
    let isn = (what >> 8) as u32;
    let look = if is_syn { Look::NASCENT } else { Look::ANY };
    // The second look: an entry may have moved between the homes during the first.
    let mut looks = 0;
    while looks < 2 {
        if let Some(entry) = flow::look::<F>(&subject, &look)
            && (!is_syn || entry.word.isn() == isn)
        {
            return 1;
        }
        looks += 1;
    }
    0
}
