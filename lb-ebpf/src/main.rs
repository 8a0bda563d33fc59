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
mod hide;
mod icmp;
mod maps;
mod nat;
mod parse;
mod runtime;
mod service;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    maps::{IPV6_INDEX, REPLY_INDEX, STEER_INDEX},
    tcp,
    verdict::{Reason, Verdict},
};

use crate::{
    count::Tally,
    family::{Family, V4, V6},
    parse::{Network, Parse as _, Parsed},
};

use lb_ebpf::packet::{Bytes, Frame};

/// Steers one packet; one of IPv6 is handed on to [`tether6`].
///
/// For each version of IP two functions, each with the whole way in it: a short one for segments of established flows in frames without VLAN
/// tags and without anything between the IP header and TCP's, and one for everything. So the short one has nothing to remember but its
/// packet, and none has another in its stack: a BPF program has 512 bytes for all its frames. Two programs, since both together would be
/// more than the verifier of 6.1 walks through.
#[xdp(frags)]
fn tether(ctx: XdpContext) -> u32 {
    let mut action = established4(ctx.ctx);
    if action == OTHER {
        action = any4(ctx.ctx);
    }
    if action == IPV6 {
        return hand_on(&ctx, IPV6_INDEX);
    }
    if action == STEER {
        nat::begin();
        return hand_on(&ctx, STEER_INDEX);
    }
    if action == REPLY {
        return hand_on(&ctx, REPLY_INDEX);
    }
    if action == CONTROL {
        action = icmp::control4(ctx.ctx);
        if action == icmp::TUNNEL {
            action = icmp::tunnel4(ctx.ctx);
        }
    }
    action
}

/// Steers one packet of IPv6.
#[xdp(frags)]
fn tether6(ctx: XdpContext) -> u32 {
    let mut action = established6(ctx.ctx);
    if action == OTHER {
        action = any6(ctx.ctx);
    }
    if action == STEER {
        nat::begin();
        return hand_on(&ctx, STEER_INDEX + 1);
    }
    if action == REPLY {
        return hand_on(&ctx, REPLY_INDEX + 1);
    }
    if action == CONTROL {
        action = icmp::control6(ctx.ctx);
        if action == icmp::TUNNEL {
            action = icmp::tunnel6(ctx.ctx);
        } else if action == icmp::TUNNEL_4_IN_6 {
            action = icmp::tunnel4in6(ctx.ctx);
        }
    }
    action
}

// What a function returns that leaves the packet to another. No XDP actions.
/// It is not for this function.
const OTHER: u32 = u32::MAX;
/// It is IPv6, or may be.
const IPV6: u32 = u32::MAX - 1;
/// It is a message of ICMP.
const CONTROL: u32 = u32::MAX - 2;
/// It is for a service whose flows are translated.
const STEER: u32 = u32::MAX - 5;
/// It is from a backend whose flows are translated.
const REPLY: u32 = u32::MAX - 6;

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

/// The way of a segment of an established flow, and of one for no service. Anything else is left to [`any`] as it is; but a frame
/// without headroom has lost one of its TTL by then, and is dropped there.
#[inline(always)]
fn steer_established<F: Family>(ctx: &XdpContext, frame: Bytes) -> Option<u32> {
    let (segment, ends) = F::plain(frame)?;
    // Such a segment is of no established flow: it need not look for its service twice.
    if segment.tcp.has_any(tcp::SYN) {
        return None;
    }
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
    let id;
    let action;
    if nat::is_on::<F>() && maps::translates(service) {
        // The long way would only find that out again.
        let Some((sent, backend)) = nat::plain::<F>(ctx, service, &segment, &ends) else {
            return Some(STEER);
        };
        (action, id) = (sent, backend);
    } else {
        let known = flow::established::<F>(service, &segment, ends.source)?;
        action = forward::forward_plain::<F>(ctx, &segment, known.backend, known.state)?;
        id = known.id;
    }
    tally.service(service);
    tally.backend(id);
    tally.count(Reason::Established);
    Some(action)
}

/// Any packet but one of IPv6.
#[inline(never)]
fn any4(ctx: *mut xdp_md) -> u32 {
    let context = XdpContext::new(ctx);
    match parse::network(&context) {
        Ok(Network::V4(offset)) => any::<V4>(&context, Ok(offset)),
        Ok(Network::V6(_)) => IPV6,
        Err(reason) => any::<V4>(&context, Err(reason)),
    }
}

/// A packet of IPv6.
#[inline(never)]
fn any6(ctx: *mut xdp_md) -> u32 {
    let context = XdpContext::new(ctx);
    let offset = match parse::network(&context) {
        Ok(Network::V6(offset)) => Ok(offset),
        Ok(Network::V4(_)) => Err(Reason::NotIp),
        Err(reason) => Err(reason),
    };
    any::<V6>(&context, offset)
}

/// The only place where a verdict becomes an XDP action and a counter, but for the two of [`steer_established`].
#[inline(always)]
fn any<F: Family>(ctx: &XdpContext, network: Result<usize, Reason>) -> u32 {
    let mut tally = Tally::new();
    let steered = network.and_then(|offset| steer::<F>(ctx, offset, &mut tally));
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
    if action == CONTROL || action == STEER || action == REPLY {
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
    if nat::is_on::<F>() && maps::translates(service) {
        return Ok((Reason::NotService, STEER));
    }
    tally.service(service);
    let steered = flow::otherwise::<F>(service, &segment, ends.source);
    if steered.backend != 0 {
        tally.backend(steered.backend);
    }
    let reason = steered.reason;
    let action = match reason.verdict() {
        Verdict::Forward => {
            let (backend, state) = maps::backend(steered.backend).ok_or(Reason::StaleGeneration)?;
            forward::forward::<F>(ctx, &segment, backend, state)?
        }
        Verdict::Reset => forward::reset::<F>(ctx, forward::told(reason, steered.backend))?,
        _ => return Err(reason),
    };
    Ok((reason, action))
}
