//! The load balancer's XDP program, read from top to bottom:
//! parse, service, flow, backend, forward, count.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics, link_llvm_intrinsics)]
#![expect(
    internal_features,
    reason = "the BPF target has no AtomicU64::compare_exchange; its intrinsic compiles to the instruction"
)]

mod count;
mod flow;
mod forward;
mod hide;
mod maps;
mod parse;
mod runtime;
mod service;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    tcp,
    verdict::{Reason, Verdict},
};

use crate::{count::Tally, parse::Parsed};

/// Steers one packet.
///
/// Two functions, each with the whole way in it: a short one for segments of established flows in frames without VLAN tags and IPv4
/// options, and one for everything. So the short one has nothing to remember but its packet, and neither has the other in its stack: a
/// BPF program has 512 bytes for all its frames.
#[xdp(frags)]
fn tether(ctx: XdpContext) -> u32 {
    match established(ctx.ctx) {
        UNDECIDED => any(ctx.ctx),
        action => action,
    }
}

/// No XDP action.
const UNDECIDED: u32 = u32::MAX;

#[inline(never)]
fn established(ctx: *mut xdp_md) -> u32 {
    match steer_established(&XdpContext::new(ctx)) {
        Some(action) => action,
        None => UNDECIDED,
    }
}

/// The way of a segment of an established flow, and of one for no service. Anything else is left to [`any`] as it is; but a frame
/// without headroom has lost one of its TTL by then, and is dropped there.
#[inline(always)]
fn steer_established(ctx: &XdpContext) -> Option<u32> {
    let segment = parse::plain(ctx)?;
    // Such a segment is of no established flow: it need not look for its service twice.
    if segment.tcp.has_any(tcp::SYN) {
        return None;
    }
    let mut tally = Tally::new();
    tally.bytes = segment.bytes();
    let service = match service::look_up(segment.destination, segment.destination_port) {
        Ok(service) => service,
        Err(Reason::NotService) => {
            tally.count(Reason::NotService);
            return Some(xdp_action::XDP_PASS);
        }
        Err(_) => return None,
    };
    let (backend, state, id) = flow::established(service, &segment)?;
    let action = forward::forward_plain(ctx, &segment, backend, state)?;
    tally.service(service);
    tally.backend(id);
    tally.count(Reason::Established);
    Some(action)
}

/// The only place where a verdict becomes an XDP action and a counter, but for the two of [`steer_established`].
#[inline(never)]
fn any(ctx: *mut xdp_md) -> u32 {
    let mut tally = Tally::new();
    let (reason, action) = match steer(&XdpContext::new(ctx), &mut tally) {
        Ok((reason, action)) => (reason, action),
        Err(reason) => match reason.verdict() {
            Verdict::Pass => (reason, xdp_action::XDP_PASS),
            _ => (reason, xdp_action::XDP_DROP),
        },
    };
    tally.count(reason);
    #[cfg(feature = "log")]
    log(ctx, reason as u32, action);
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
fn steer(ctx: &XdpContext, tally: &mut Tally) -> Result<(Reason, u32), Reason> {
    let segment = match parse::parse(ctx)? {
        Parsed::Segment(segment) => segment,
        Parsed::Fragment { destination, bytes } => {
            tally.bytes = bytes;
            return Err(service::of_fragment(destination));
        }
    };
    tally.bytes = segment.bytes();
    let service = service::look_up(segment.destination, segment.destination_port)?;
    tally.service(service);
    let steered = flow::otherwise(service, &segment);
    if let Some((_, _, id)) = steered.backend {
        tally.backend(id);
    }
    let reason = steered.reason;
    match (reason.verdict(), steered.backend) {
        (Verdict::Forward, Some((backend, state, _))) => {
            forward::forward(ctx, &segment, backend, state).map(|action| (reason, action))
        }
        (Verdict::Reset, _) => forward::reset(ctx).map(|action| (reason, action)),
        _ => Err(reason),
    }
}
