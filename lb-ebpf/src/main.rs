//! The load balancer's XDP program, read from top to bottom:
//! parse, service, flow, backend, forward, count.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(
    internal_features,
    reason = "the BPF target has no AtomicU64::compare_exchange; its intrinsic compiles to the instruction"
)]

mod count;
mod flow;
mod forward;
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
    backend::Backend,
    flow::steer::Steered,
    verdict::{Reason, Verdict},
};

use crate::{
    count::Tally,
    parse::{Parsed, Segment},
};

/// Steers one packet.
///
/// Two functions, each with the whole way in it: one for segments of established flows, and one for whatever that one cannot
/// decide. So the first stays short, and neither has the other in its stack: a BPF program has 512 bytes for all its frames.
#[xdp(frags)]
fn tether(ctx: XdpContext) -> u32 {
    match established(ctx.ctx) {
        UNDECIDED => otherwise(ctx.ctx),
        action => action,
    }
}

/// No XDP action.
const UNDECIDED: u32 = u32::MAX;

#[inline(never)]
fn established(ctx: *mut xdp_md) -> u32 {
    take(&XdpContext::new(ctx), flow::established)
}

#[inline(never)]
fn otherwise(ctx: *mut xdp_md) -> u32 {
    take(&XdpContext::new(ctx), flow::otherwise)
}

/// The flow stage: the reason and the backend of a segment of a service, or none if it cannot decide.
trait FlowStage: FnOnce(u16, &Segment) -> Option<Steered<*const Backend>> {}
impl<F: FnOnce(u16, &Segment) -> Option<Steered<*const Backend>>> FlowStage for F {}

/// Takes a packet its way. The only place where a verdict becomes an XDP action and a counter.
#[inline(always)]
fn take(ctx: &XdpContext, flow_stage: impl FlowStage) -> u32 {
    let mut tally = Tally::new();
    let (reason, action) = match steer(ctx, &mut tally, flow_stage) {
        Ok(Some((reason, action))) => (reason, action),
        Ok(None) => return UNDECIDED,
        Err(reason) => match reason.verdict() {
            Verdict::Pass => (reason, xdp_action::XDP_PASS),
            _ => (reason, xdp_action::XDP_DROP),
        },
    };
    tally.count(reason);
    action
}

/// The packet's way. Ends in the reason and action of a packet that leaves from here, or in the reason why it does not.
#[inline(always)]
fn steer(
    ctx: &XdpContext,
    tally: &mut Tally,
    flow_stage: impl FlowStage,
) -> Result<Option<(Reason, u32)>, Reason> {
    let parsed = parse::parse(ctx)?;
    tally.bytes = parsed.bytes();
    let segment = match parsed {
        Parsed::Segment(segment) => segment,
        Parsed::Fragment { destination, .. } => return Err(service::of_fragment(destination)),
    };
    let service = service::look_up(segment.destination, segment.destination_port)?;
    tally.service(service);
    let Some(steered) = flow_stage(service, &segment) else {
        return Ok(None);
    };
    if let Some((_, _, id)) = steered.backend {
        tally.backend(id);
    }
    let reason = steered.reason;
    let action = match (reason.verdict(), steered.backend) {
        (Verdict::Forward, Some((backend, state, _))) => {
            forward::forward(ctx, &segment, backend, state)?
        }
        (Verdict::Reset, _) => forward::reset(ctx)?,
        _ => return Err(reason),
    };
    Ok(Some((reason, action)))
}
