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

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::verdict::{Reason, Verdict};

use crate::{count::Tally, parse::Parsed};

/// Steers one packet. The only place where a verdict becomes an XDP action and a counter.
#[xdp(frags)]
fn tether(ctx: XdpContext) -> u32 {
    let mut tally = Tally::new();
    let (reason, action) = match steer(&ctx, &mut tally) {
        Ok((reason, action)) => (reason, action),
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
fn steer(ctx: &XdpContext, tally: &mut Tally) -> Result<(Reason, u32), Reason> {
    let parsed = parse::parse(ctx)?;
    tally.bytes = parsed.bytes();
    let segment = match parsed {
        Parsed::Segment(segment) => segment,
        Parsed::Fragment { destination, .. } => return Err(service::of_fragment(destination)),
    };
    let service = service::look_up(segment.destination, segment.destination_port)?;
    tally.service(service);
    let steered = flow::steer(service, &segment);
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
