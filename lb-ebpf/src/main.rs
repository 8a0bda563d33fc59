//! The load balancer's XDP program, read from top to bottom:
//! parse, service, flow, backend, forward, count.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics, link_llvm_intrinsics)]
#![expect(
    internal_features,
    reason = "the BPF target has no AtomicU64::compare_exchange; its intrinsic compiles to the instruction"
)]

mod copy;
mod count;
mod family;
mod flow;
mod forward;
mod guard;
mod hide;
mod icmp;
mod local;
mod maps;
mod measure;
mod nat;
mod parse;
mod rewrite;
mod runtime;
mod service;
mod watch;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    maps::{
        ANY_INDEX, CONTROL_INDEX, GUARD_INDEX, IPV6_INDEX, LOCAL_INDEX, REPLY_INDEX, STEER_INDEX,
    },
    net::IpVersion,
    tcp,
    verdict::{Reason, Verdict},
};

use crate::{
    count::Tally,
    family::{Family, V4, V6},
    parse::{Network, Parse as _, Parsed},
};

use lb_ebpf::packet::{Bytes, Frame};

/// Steers one packet, if it is a segment of an established flow of IPv4, or the SYN of a new one, in a frame without VLAN tags and without
/// anything between the IP header and TCP's, or for no service. All else is handed on to [`any4`] and [`tether6`].
///
/// For each version of IP there are two programs, each with the whole way in it: a short one for such segments, and one for everything. So the
/// short one has nothing to remember but its packet, and together they would be more than the verifier of 6.1 walks through.
#[xdp(frags)]
fn tether(ctx: XdpContext) -> u32 {
    watch::begin(&ctx);
    let action = established4(ctx.ctx);
    next::<V4>(&ctx, action)
}

/// The same of IPv6, which is handed on to [`any6`].
#[xdp(frags)]
fn tether6(ctx: XdpContext) -> u32 {
    let action = established6(ctx.ctx);
    next::<V6>(&ctx, action)
}

/// Steers one packet of IPv4 of any kind.
#[xdp(frags)]
fn any4(ctx: XdpContext) -> u32 {
    let action = every4(ctx.ctx);
    next::<V4>(&ctx, action)
}

/// Steers one packet of IPv6 of any kind.
#[xdp(frags)]
fn any6(ctx: XdpContext) -> u32 {
    let action = every6(ctx.ctx);
    next::<V6>(&ctx, action)
}

// What a function returns that leaves the packet to another program. No XDP actions.
/// It is for one that takes any packet.
const OTHER: u32 = u32::MAX;
/// It is IPv6, or may be.
const IPV6: u32 = u32::MAX - 1;
/// It is a message of ICMP.
const CONTROL: u32 = u32::MAX - 2;
/// It is for a service whose flows are translated.
const STEER: u32 = u32::MAX - 5;
/// It is from a backend whose flows are translated.
const REPLY: u32 = u32::MAX - 6;
/// It is for a backend on this host.
const LOCAL: u32 = u32::MAX - 7;
/// It is for a service with a guard, and may make a flow.
const GUARD: u32 = u32::MAX - 8;

/// Has the program go on with the packet that an action leaves it to, or ends with the action. By a jump from the main function, since what is
/// called may have but half of the stack.
#[inline(always)]
fn next<F: Family>(ctx: &XdpContext, action: u32) -> u32 {
    let version = (F::VERSION as u32 == IpVersion::V6 as u32) as u32;
    match action {
        OTHER => hand_on(ctx, ANY_INDEX + version),
        IPV6 => hand_on(ctx, IPV6_INDEX),
        STEER => {
            nat::begin();
            hand_on(ctx, STEER_INDEX + version)
        }
        REPLY => hand_on(ctx, REPLY_INDEX + version),
        CONTROL => hand_on(ctx, CONTROL_INDEX + version),
        LOCAL => hand_on(ctx, LOCAL_INDEX + version),
        GUARD => hand_on(ctx, GUARD_INDEX + version),
        action => action,
    }
}

/// Has another program go on with the packet: does not return, unless that program is missing.
#[inline(always)]
fn hand_on(ctx: &XdpContext, index: u32) -> u32 {
    maps::hand_on(ctx, index);
    Tally::new().count(Reason::NoProgram);
    xdp_action::XDP_PASS
}

#[inline(never)]
fn established4(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    let Some(frame) = Frame::of(&ctx).at(0, V4::PLAIN_LEN) else {
        return OTHER;
    };
    let ethertype = frame.raw16(12);
    if ethertype == ETHERTYPE_IPV4.to_be() {
        steer_established::<V4>(&ctx, frame).unwrap_or(OTHER)
    } else if ethertype == ETHERTYPE_IPV6.to_be() {
        IPV6
    } else {
        OTHER
    }
}

#[inline(never)]
fn established6(ctx: *mut xdp_md) -> u32 {
    let ctx = XdpContext::new(ctx);
    match Frame::of(&ctx).at(0, V6::PLAIN_LEN) {
        Some(frame) if frame.raw16(12) == ETHERTYPE_IPV6.to_be() => {
            steer_established::<V6>(&ctx, frame).unwrap_or(OTHER)
        }
        _ => OTHER,
    }
}

/// The way of a segment of an established flow, of a SYN that opens one straight away, and of a segment for no service. Anything else is left to
/// [`any4`] or [`any6`] as it is; but a frame without headroom has lost one of its TTL by then, and is dropped there.
#[inline(always)]
fn steer_established<F: Family>(ctx: &XdpContext, frame: Bytes) -> Option<u32> {
    let (segment, ends) = F::plain(frame)?;
    let mut tally = Tally::new();
    tally.bytes = segment.bytes();
    let service = match F::service(ends.destination, segment.destination_port) {
        Ok(service) => service,
        Err(Reason::NotService) => {
            if nat::is_reply::<F>(ends.source, segment.source_port) {
                return Some(REPLY);
            }
            tally.count(Reason::NotService);
            return Some(xdp_action::XDP_PASS);
        }
        Err(_) => return None,
    };
    let opens = segment.tcp.has_any(tcp::SYN);
    let id;
    let action;
    let mut reason = Reason::Established;
    if nat::is_on::<F>() && maps::translates(service) {
        // The long way would only find that out again.
        if opens {
            return Some(guard_or(service, STEER));
        }
        let Some((sent, backend)) = nat::plain::<F>(ctx, service, &segment, &ends) else {
            return Some(guard_or(service, STEER));
        };
        (action, id) = (sent, backend);
    } else if opens {
        if maps::guards() && maps::is_guarded(service) {
            return Some(GUARD);
        }
        if maps::affinity(service) != 0 {
            return None;
        }
        id = flow::open::<F>(service, &segment, ends.source);
        if id == 0 {
            return None;
        }
        // It may have changed since it was picked: then the long way finds the entry.
        let (backend, state) = maps::backend(id)?;
        if !state.can_forward_plainly_for(state.generation()) {
            return None;
        }
        reason = Reason::Opened;
        action = forward::forward_plain::<F>(ctx, &segment, backend, state)?;
    } else {
        let Some(known) = flow::established::<F>(service, &segment, ends.source) else {
            return Some(guard_or(service, OTHER));
        };
        action = forward::forward_plain::<F>(ctx, &segment, known.backend, known.state)?;
        id = known.id;
    }
    tally.service(service);
    tally.backend(id);
    tally.count(reason);
    Some(action)
}

/// Where a segment goes on that is of no established flow, as far as is known: to the service's guard, if it has one.
#[inline(always)]
fn guard_or(service: u16, other: u32) -> u32 {
    if maps::guards() && maps::is_guarded(service) {
        GUARD
    } else {
        other
    }
}

/// Any packet but one of IPv6.
#[inline(never)]
fn every4(ctx: *mut xdp_md) -> u32 {
    let context = XdpContext::new(ctx);
    match parse::network(&context) {
        Ok(Network::V4(offset)) => any::<V4>(&context, Ok(offset)),
        Ok(Network::V6(_)) => IPV6,
        Err(reason) => any::<V4>(&context, Err(reason)),
    }
}

/// A packet of IPv6.
#[inline(never)]
fn every6(ctx: *mut xdp_md) -> u32 {
    let context = XdpContext::new(ctx);
    let offset = match parse::network(&context) {
        Ok(Network::V6(offset)) => Ok(offset),
        Ok(Network::V4(_)) => Err(Reason::NotIp),
        Err(reason) => Err(reason),
    };
    any::<V6>(&context, offset)
}

/// Where a verdict becomes an XDP action and a counter: in these programs the only place but for those of [`steer_established`] and [`hand_on`]. In the
/// programs that they hand packets on to it is the function that ends the packet.
#[inline(always)]
fn any<F: Family>(ctx: &XdpContext, network: Result<usize, Reason>) -> u32 {
    let mut tally = Tally::new();
    // No closure, which the compiler may make a function of: the verifier would lose the bound of the offset.
    let steered = match network {
        Ok(offset) => steer::<F>(ctx, offset, &mut tally),
        Err(reason) => Err(reason),
    };
    let (reason, action) = match steered {
        Ok((reason, action)) => (reason, action),
        Err(reason) => match reason.verdict() {
            Verdict::Pass => (reason, xdp_action::XDP_PASS),
            Verdict::Answer => {
                let room = icmp::room_on_the_way_to(tally.backend_id());
                icmp::complain::<F>(ctx, room, reason)
            }
            _ => (reason, xdp_action::XDP_DROP),
        },
    };
    if matches!(action, CONTROL | STEER | REPLY | LOCAL | GUARD) {
        return action;
    }
    tally.count(reason);
    #[cfg(feature = "log")]
    log(ctx.ctx, reason as u32, action);
    action
}

/// Tells what became of a packet. A function of its own, for its stack.
#[cfg(feature = "log")]
#[inline(never)]
fn log(ctx: *mut xdp_md, reason: u32, action: u32) {
    let ctx = XdpContext::new(ctx);
    if let Some(reason) = Reason::from_code(reason as u8) {
        aya_log_ebpf::debug!(&ctx, "{}, action {}", reason.name(), action);
    }
}

/// The packet's way. Ends in the reason and action of a packet that leaves from here, or in the reason why it does not.
#[inline(always)]
fn steer<F: Family>(
    ctx: &XdpContext,
    network: usize,
    tally: &mut Tally,
) -> Result<(Reason, u32), Reason> {
    let (segment, ends) = match F::parse(ctx, network)? {
        Parsed::Segment(segment, ends) => (segment, ends),
        Parsed::Control => return Ok((Reason::NotService, CONTROL)),
        Parsed::Fragment { destination, bytes } => {
            tally.bytes = bytes;
            // Forwarded it would be as if it were not for a VIP.
            return Err(if F::is_only_vip(destination) {
                Reason::Fragment
            } else {
                Reason::NotService
            });
        }
    };
    tally.bytes = segment.bytes();
    let service = match F::service(ends.destination, segment.destination_port) {
        Ok(service) => service,
        Err(Reason::NotService) if nat::is_reply::<F>(ends.source, segment.source_port) => {
            return Ok((Reason::NotService, REPLY));
        }
        Err(reason) => return Err(reason),
    };
    if guard::is_due(service) {
        return Ok((Reason::NotService, GUARD));
    }
    if nat::is_on::<F>() && maps::translates(service) {
        return Ok((Reason::NotService, STEER));
    }
    tally.service(service);
    flow::favour::<F>(service, &segment, ends.source);
    let steered = flow::otherwise::<F>(service, &segment, ends.source);
    guard::settle(steered.reason);
    if steered.backend != 0 {
        tally.backend(steered.backend);
    }
    let reason = steered.reason;
    let action = match reason.verdict() {
        Verdict::Forward => {
            let (backend, state) = maps::backend(steered.backend).ok_or(Reason::StaleGeneration)?;
            if state.is_local() {
                local::note(service, reason, steered.backend);
                return Ok((reason, LOCAL));
            }
            forward::forward::<F>(ctx, &segment, backend, state)?
        }
        Verdict::Reset => forward::reset::<F>(ctx, forward::told(reason, steered.backend))?,
        _ => return Err(reason),
    };
    Ok((reason, action))
}
