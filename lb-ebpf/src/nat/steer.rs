//! The program that finds or makes the entry of a flow that is to be translated.

use aya_ebpf::{bindings::xdp_md, macros::xdp, programs::XdpContext};
use lb_common::{
    maps::{LOCAL_INDEX, TRANSLATE_INDEX},
    verdict::{Reason, Verdict},
};

use crate::{
    count::Tally,
    family::{Family, V4, V6},
    flow, forward, guard, hand_on, maps,
    parse::Segment,
    rewrite::{self, end, without_entry},
};

// What a function returns that leaves the segment to another. No XDP actions.
/// It goes on to be translated.
const TRANSLATE: u32 = u32::MAX;
/// It goes on to a backend on this host.
const LOCAL: u32 = u32::MAX - 1;

/// A segment of IPv4.
#[xdp(frags)]
fn steer4(ctx: XdpContext) -> u32 {
    match open4(ctx.ctx) {
        TRANSLATE => hand_on(&ctx, TRANSLATE_INDEX),
        LOCAL => hand_on(&ctx, LOCAL_INDEX),
        action => action,
    }
}

/// A segment of IPv6.
#[xdp(frags)]
fn steer6(ctx: XdpContext) -> u32 {
    match open6(ctx.ctx) {
        TRANSLATE => hand_on(&ctx, TRANSLATE_INDEX + 1),
        LOCAL => hand_on(&ctx, LOCAL_INDEX + 1),
        action => action,
    }
}

#[inline(never)]
fn open4(ctx: *mut xdp_md) -> u32 {
    open::<V4>(&XdpContext::new(ctx))
}

#[inline(never)]
fn open6(ctx: *mut xdp_md) -> u32 {
    open::<V6>(&XdpContext::new(ctx))
}

#[inline(always)]
fn open<F: Family>(ctx: &XdpContext) -> u32 {
    let mut tally = Tally::new();
    match steer::<F>(ctx, &mut tally) {
        Ok((_, next @ (TRANSLATE | LOCAL))) => next,
        Ok((reason, action)) => {
            tally.count(reason);
            action
        }
        Err(reason) => end(&tally, reason),
    }
}

#[inline(always)]
fn steer<F: Family>(ctx: &XdpContext, tally: &mut Tally) -> Result<(Reason, u32), Reason> {
    let (segment, ends) = rewrite::parse::<F>(ctx)?;
    tally.bytes = segment.bytes();
    let service = F::service(ends.destination, segment.destination_port)?;
    tally.service(service);
    let noted = maps::to_hand_on().ok_or(Reason::Untranslated)?;
    noted.index = u32::MAX;
    noted.service = service as u32;
    noted.client = F::as_words(ends.source);
    noted.client_port = segment.source_port as u32;
    noted.mtu = super::acknowledged(ctx, &segment)?;
    let barred = noted.barred;

    flow::favour::<F>(service, &segment, ends.source);
    let key = F::key(ends.source, segment.source_port, service);
    let steered = flow::translated::<F>(&key, &segment);
    guard::settle(steered.reason);
    if steered.backend != 0 {
        tally.backend(steered.backend);
    }
    let reason = as_translated(steered.reason, steered.backend, &segment, barred);
    match reason.verdict() {
        Verdict::Forward => {
            if let Some(noted) = maps::to_hand_on() {
                noted.outcome = reason as u32 | (steered.backend << 8);
            }
            let next = match maps::backend(steered.backend) {
                Some((_, state)) if state.is_local() => LOCAL,
                _ => TRANSLATE,
            };
            Ok((reason, next))
        }
        Verdict::Reset => {
            let told = forward::told(reason, steered.backend);
            Ok((reason, forward::reset::<F>(ctx, told)?))
        }
        _ => Err(reason),
    }
}

/// What a reason means for a flow that cannot go on without an entry.
#[inline(always)]
fn as_translated(reason: Reason, backend: u32, segment: &Segment, barred: u32) -> Reason {
    if barred != 0 && matches!(reason, Reason::NoBackend | Reason::Unresolved) {
        // There was one, but for the collision.
        return Reason::Collision;
    }
    let translates = match maps::backend(backend) {
        Some((_, state)) => state.translates(),
        None => false,
    };
    if translates {
        without_entry(reason, segment)
    } else {
        reason
    }
}
