//! Guards: the programs that segments of a guarded service meet which may make a flow, or are of none that is known.
//!
//! ```text
//!   tether --- of an established flow ---> out
//!      |  anything else
//!      v
//!    guard --- refused ---> counted and dropped
//!      |  let pass
//!      v
//!   any, or steer ---> the flow's entry is found or made, as without a guard
//! ```
//!
//! What comes to [`crate::any4`] by another way, as with VLAN tags, is handed on to the guard from there ([`is_due`]), and comes back. That it has passed is noted in what the CPU keeps for itself ([`Passed`]), and taken from there: a note that was left behind lets one
//! more packet pass at worst.
//!
//! * [`known`]: whether the flow has an entry: then it is none of the guard's business; or would take the place of one
//! * [`ranges`]: what the service's lists say about the client
//! * [`sources`]: what the client's source is held to

mod known;
mod ranges;
mod sources;

use aya_ebpf::{bindings::xdp_md, macros::xdp, programs::XdpContext};
use lb_common::{
    flow::table::Place,
    guard::{Guard, Listed, Passed, fingerprint, in_order, source_word},
    maps::{ANY_INDEX, STEER_INDEX},
    net::IpVersion,
    tcp::{self, SYN},
    verdict::Reason,
};

use self::known::KNOWN;
pub(crate) use self::known::Known;
use crate::{
    count::Tally,
    family::{Family, V4, V6},
    hand_on, maps, nat, rewrite,
};

// What a function returns that leaves the segment to another. No XDP actions.
/// It goes on as any packet.
const ANY: u32 = u32::MAX;
/// It goes on to be translated.
const STEER: u32 = u32::MAX - 1;

/// A segment of IPv4.
#[xdp(frags)]
fn guard4(ctx: XdpContext) -> u32 {
    match admit4(ctx.ctx) {
        ANY => hand_on(&ctx, ANY_INDEX),
        STEER => hand_on(&ctx, STEER_INDEX),
        action => action,
    }
}

/// A segment of IPv6.
#[xdp(frags)]
fn guard6(ctx: XdpContext) -> u32 {
    match admit6(ctx.ctx) {
        ANY => hand_on(&ctx, ANY_INDEX + 1),
        STEER => hand_on(&ctx, STEER_INDEX + 1),
        action => action,
    }
}

#[inline(never)]
fn admit4(ctx: *mut xdp_md) -> u32 {
    admit::<V4>(&XdpContext::new(ctx))
}

#[inline(never)]
fn admit6(ctx: *mut xdp_md) -> u32 {
    admit::<V6>(&XdpContext::new(ctx))
}

#[inline(always)]
fn admit<F: Family>(ctx: &XdpContext) -> u32 {
    let mut tally = Tally::new();
    match pass::<F>(ctx, &mut tally) {
        Ok(next) => next,
        Err(reason) => rewrite::end(&tally, reason),
    }
}

/// Where a segment goes on that may pass, or why it may not.
#[inline(always)]
fn pass<F: Family>(ctx: &XdpContext, tally: &mut Tally) -> Result<u32, Reason> {
    let (segment, ends) = rewrite::parse::<F>(ctx)?;
    tally.bytes = segment.bytes();
    let service = F::service(ends.destination, segment.destination_port)?;
    tally.service(service);
    let [first, second] = F::as_words(ends.source);
    let flow = ((segment.source_port as u64) << 16) | service as u64;
    let what = ((segment.tcp.seq as u64) << 8) | segment.tcp.flags as u64;
    // A SYN with ACK, FIN or RST makes nothing: what becomes of it is told where that is known.
    let is_odd = segment.tcp.has_any(SYN) && !segment.tcp.opens();
    let known = if is_odd {
        KNOWN
    } else {
        F::known(first, second, flow, what)
    };
    let passed = if known == KNOWN {
        Passed::now()
    } else {
        let answer = ask::<F>(
            first,
            second,
            service as u64,
            what | ((known as u64) << KNOWN_SHIFT),
        );
        if Passed(answer).is_let_pass() == 0 {
            // SAFETY: a number that lets nothing pass is a reason's.
            return Err(unsafe { core::mem::transmute::<u8, Reason>(answer as u8) });
        }
        Passed(answer)
    };
    let next = if nat::is_on::<F>() && maps::translates(service) {
        nat::begin();
        STEER
    } else {
        ANY
    };
    maps::set_passed(passed);
    Ok(next)
}

/// What a service's guard says to a segment of a flow without an entry: [`Passed`], or why it may not pass. By value, and a function of its own, for its
/// stack. `what` is as for [`Known::known`], and from [`KNOWN_SHIFT`] on what that has said.
#[inline(never)]
fn ask<F: Family>(first: u64, second: u64, service: u64, what: u64) -> u64 {
    const LET_PASS: u64 = Passed::now().0;
    let service = service as u16;
    let Some(guard) = maps::guard(service) else {
        return LET_PASS;
    };
    let address = in_order([first, second]);
    let segment = tcp::Segment {
        seq: 0,
        flags: what as u8,
        payload: false,
    };
    match ranges::listed_of(address[0], address[1], ranges_of(guard)) {
        DENIED | NOT_ALLOWED if segment.continues() => return Passed::cut_off().0,
        DENIED => return Reason::Denied as u64,
        NOT_ALLOWED => return Reason::NotAllowed as u64,
        _ => {}
    }
    let opens = segment.opens();
    let limits = Limits::of(guard);
    let is_rated = opens && limits.cost_ns != 0;
    let replaces = what >> KNOWN_SHIFT != 0;
    let is_counted = ((opens && !replaces) || segment.continues()) && limits.flows != 0;
    if !is_rated && !is_counted {
        return LET_PASS;
    }
    let is_ipv6 = F::VERSION as u32 == IpVersion::V6 as u32;
    let word = source_word(address, is_ipv6) & limits.mask;
    let fingerprint = fingerprint(word, service, &maps::flow_seed());
    let now_ns = maps::now_ns();
    let place = sources::place_of_source(fingerprint, word, now_ns, longest_burst_of(guard));
    if place == sources::NOWHERE {
        return LET_PASS;
    }
    if is_rated && sources::source_pays(place, now_ns, limits.cost_ns, limits.burst_ns) == 0 {
        return Reason::SourceRate as u64;
    }
    if !is_counted {
        return LET_PASS;
    }
    if opens {
        return if sources::source_is_counted(place, limits.flows) == 0 {
            Reason::SourceFull as u64
        } else {
            LET_PASS
        };
    }
    if sources::source_has_enough(place, limits.flows) != 0 {
        return Passed::over_limit().0;
    }
    // Whether it is one more shows only once it is adopted: many are not, as of a flow that finds no place, and would be counted with each segment.
    Passed::counting(sources::placed(place)).0
}

/// Where in the number that says what a segment is it is said what is known of its flow.
const KNOWN_SHIFT: u32 = 40;

const DENIED: u32 = Listed::Denied as u32;
const NOT_ALLOWED: u32 = Listed::NotAllowed as u32;

/// What a guard holds sources to.
struct Limits {
    cost_ns: u64,
    burst_ns: u64,
    mask: u64,
    flows: u32,
}

impl Limits {
    #[inline(always)]
    fn of(guard: *const Guard) -> Self {
        // SAFETY: an entry of the map. Volatile: the daemon writes it meanwhile. Who meets halves of two is held to either.
        unsafe {
            Self {
                cost_ns: core::ptr::addr_of!((*guard).cost_ns).read_volatile(),
                burst_ns: core::ptr::addr_of!((*guard).burst_ns).read_volatile(),
                mask: core::ptr::addr_of!((*guard).mask).read_volatile(),
                flows: core::ptr::addr_of!((*guard).flows).read_volatile(),
            }
        }
    }
}

/// Where a service's ranges are.
#[inline(always)]
fn ranges_of(guard: *const Guard) -> u64 {
    // SAFETY: as above.
    unsafe { core::ptr::addr_of!((*guard).ranges).read_volatile() }
}

/// The longest burst of all services' sources.
#[inline(always)]
fn longest_burst_of(guard: *const Guard) -> u64 {
    // SAFETY: as above.
    unsafe { core::ptr::addr_of!((*guard).longest_burst_ns).read_volatile() }
}

/// Whether the guard is yet to see this segment of a service's. If it has, that is taken note of.
#[inline(always)]
pub(crate) fn is_due(service: u16) -> bool {
    maps::guards() && guard_is_due(service as u32) != 0
}

/// A global function, which the verifier walks through once, and of which it follows but one way where it is called.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn guard_is_due(service: u32) -> u32 {
    let passed = maps::passed();
    if !maps::is_guarded(service as u16) {
        maps::set_passed(Passed::NOTHING);
        return 0;
    }
    maps::set_passed(passed.seen());
    (1 ^ passed.is_let_pass()) as u32
}

/// Counts a flow for its source, if it was adopted, of one that is held to a number of them.
#[inline(always)]
pub(crate) fn settle(reason: Reason) {
    if maps::guards() {
        count_adopted(reason as u32);
    }
}

/// As [`guard_is_due`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn count_adopted(reason: u32) -> u32 {
    let passed = maps::passed();
    maps::set_passed(Passed::NOTHING);
    if reason == Reason::Adopted as u32
        && let Some(Place { index, way }) = passed.source()
    {
        sources::count(Place { index, way });
    }
    0
}
