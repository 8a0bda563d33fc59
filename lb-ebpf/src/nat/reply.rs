//! The program that translates what backends send back.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    backend::BackendState,
    flow::FlowKey as _,
    nat::{Translation, TranslationWord, place_of},
    tcp::SYN,
    verdict::{Reason, Verdict},
};

use super::{
    endpoint::{self, Found},
    live::{BACKEND, live_on},
    mss, route, store,
};
use crate::{
    count::Tally,
    family::{Family, V4, V6},
    forward, icmp, maps,
    rewrite::{self, end},
};

// What a function returns that leaves the segment to another. No XDP actions.
/// Its flow is found.
const ROUTE: u32 = 0x100;
/// The same, and it is a SYN.
const ROUTE_SYN: u32 = 0x101;

macro_rules! programs {
    ($($program:ident: $family:ident, $find:ident, $clamp:ident, $route:ident, $leave:ident;)+) => {
        $(
            /// A segment from an endpoint.
            #[xdp(frags)]
            fn $program(ctx: XdpContext) -> u32 {
                let found = $find(ctx.ctx);
                if found != ROUTE && found != ROUTE_SYN {
                    return found;
                }
                if found == ROUTE_SYN {
                    $clamp(ctx.ctx);
                }
                let way = $route(ctx.ctx);
                $leave(ctx.ctx, way)
            }

            #[inline(never)]
            fn $find(ctx: *mut xdp_md) -> u32 {
                let mut tally = Tally::new();
                match find::<$family>(&XdpContext::new(ctx), &mut tally) {
                    Ok(next) => next,
                    Err(reason) => end(&tally, reason),
                }
            }

            #[inline(never)]
            fn $clamp(ctx: *mut xdp_md) -> u32 {
                clamp::<$family>(&XdpContext::new(ctx));
                0
            }

            #[inline(never)]
            fn $route(ctx: *mut xdp_md) -> u32 {
                match rewrite::parse::<$family>(&XdpContext::new(ctx)) {
                    Ok((segment, _)) => route::find::<$family>(ctx, segment.length),
                    Err(_) => route::NONE,
                }
            }

            #[inline(never)]
            fn $leave(ctx: *mut xdp_md, way: u32) -> u32 {
                let ctx = XdpContext::new(ctx);
                let mut tally = Tally::new();
                let (reason, action) = match leave::<$family>(&ctx, way, &mut tally) {
                    Ok(action) => (Reason::Reply, action),
                    Err(reason) if matches!(reason.verdict(), Verdict::Answer) => {
                        icmp::complain::<$family>(&ctx, maps::handed_on().mtu, reason)
                    }
                    Err(reason) => return end(&tally, reason),
                };
                tally.count(reason);
                action
            }
        )+
    };
}

programs! {
    reply4: V4, find4, clamp4, route4, leave4;
    reply6: V6, find6, clamp6, route6, leave6;
}

/// Finds the flow of a segment, and sees to what it changes of it. Notes the client. What is of no flow is the host's.
#[inline(always)]
fn find<F: Family>(ctx: &XdpContext, tally: &mut Tally) -> Result<u32, Reason> {
    let (segment, ends) = rewrite::parse::<F>(ctx)?;
    tally.bytes = segment.bytes();
    let found = endpoint::flow::<F>(
        maps::handed_on().endpoint,
        (ends.source, segment.source_port),
        (ends.destination, segment.destination_port),
        segment.tcp.has_any(SYN),
    )?;
    let Found {
        slot,
        key,
        reference,
        pair,
    } = found;
    let place = place_of(slot);
    let translation = store::at::<F>(place).ok_or(Reason::Untranslated)?;
    let (word, seen) = store::load(translation);
    let stamp = store::stamp::<F>(&key, reference);
    let is_its = seen == stamp && (pair == 0 || word.is_at(pair, segment.destination_port));
    if !is_its && seen == Translation::BUSY {
        return Err(Reason::Untranslated);
    }
    if !is_its && pair != 0 {
        return Err(endpoint::astray::<F>(pair, segment.destination_port, slot));
    }
    if !is_its {
        if maps::is_held() {
            return Err(Reason::Held);
        }
        if !store::begin(translation, seen) {
            return Err(Reason::Untranslated);
        }
        store::give_back::<F>(word, slot);
        store::finish(translation, TranslationWord::new(0, 0), stamp);
    }
    tally.service(key.service());
    tally.backend(reference.id());
    let ack = super::acknowledged(ctx, &segment)?;
    // Of a flow of mode `dnat` that is proven by this, a former one at the same endpoint would have been found in its stead.
    live_on::<F, BACKEND>(place, &segment.tcp, ack)?;

    let (client, client_port) = F::client_of(&key);
    let noted = maps::to_hand_on().ok_or(Reason::Untranslated)?;
    noted.client = F::as_words(client);
    noted.client_port = client_port as u32;
    noted.service = key.service() as u32;
    noted.outcome = reference.id() << 8;
    Ok(if segment.tcp.has_any(SYN) {
        ROUTE_SYN
    } else {
        ROUTE
    })
}

/// Has the answer to a SYN tell the client what fits the way to the backend.
#[inline(always)]
fn clamp<F: Family>(ctx: &XdpContext) {
    let backend = maps::handed_on().backend();
    if let Ok((segment, _)) = rewrite::parse::<F>(ctx) {
        mss::clamp::<F>(ctx, &segment, icmp::room_on_the_way_to(backend));
    }
}

/// Writes the segment anew, for the client. `way` is what came of the search for it.
#[inline(always)]
fn leave<F: Family>(ctx: &XdpContext, way: u32, tally: &mut Tally) -> Result<u32, Reason> {
    let (segment, _) = rewrite::parse::<F>(ctx)?;
    let noted = rewrite::steered(&segment, tally);
    let (vip, port) = rewrite::vip::<F>(noted.service).ok_or(Reason::Untranslated)?;
    let to = rewrite::New::<F> {
        source: vip,
        source_port: port,
        destination: F::of_words(noted.client),
        destination_port: noted.client_port as u16,
    };
    match way {
        route::FOUND => {
            let hop = maps::hop_to_client().ok_or(Reason::Untranslated)?;
            let action = forward::egress(ctx, hop).map_err(|_| Reason::NoRouteBack)?;
            rewrite::packet::<F>(ctx, &segment, &to)?;
            let state = BackendState(noted.state);
            forward::write_head(F::ETHERTYPE, ctx, &segment, hop, state, 0)?;
            Ok(action)
        }
        // The kernel, which forwards it, will find out, and this program what it has found with the next packet.
        route::NO_NEIGHBOUR => {
            rewrite::packet::<F>(ctx, &segment, &to)?;
            Ok(xdp_action::XDP_PASS)
        }
        route::TOO_BIG => Err(Reason::TooBig),
        _ => Err(Reason::NoRouteBack),
    }
}
