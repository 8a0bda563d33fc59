//! Backends on this host: pods behind veth pairs or a bridge, or a process of the host itself. Whatever the mode of their service, they are served
//! as in mode `dnat`, and by the host's own stack: else what they answer to an address that this host owns would never leave it.
//!
//! ```text
//!   client ---> [XDP: destination becomes the backend] ---> stack: conntrack, routing ---> backend
//!   client <--- [TC egress: source becomes the VIP]    <--- stack: conntrack, routing <--- backend
//! ```
//!
//! Both directions pass the stack with the backend's own address, so that conntrack sees one connection and calls no packet invalid. Their flows have
//! entries as those of `l2` and `ipip` have, which the client's segments make and end. What a backend sends back only closes a young one, by a RST, and lets
//! one that has ended linger on ([`lb_common::flow::life::heard`]). So nothing here needs the memory, or the programs, of modes `nat` and `dnat`.
//!
//! * [`request`]: XDP, what clients send
//! * [`reply`]: TC, what backends send back
//! * [`error`]: XDP, what routers say of that

mod error;
mod reply;
mod request;
mod skb;

use lb_common::verdict::Reason;

pub(crate) use self::error::give_error;
use crate::maps;

/// Notes what is known of a packet, for the program that goes on with it.
#[inline(always)]
pub(crate) fn note(service: u16, reason: Reason, backend: u32) {
    if let Some(noted) = maps::to_hand_on() {
        noted.service = service as u32;
        noted.outcome = reason as u32 | (backend << 8);
    }
}
