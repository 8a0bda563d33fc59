//! The program that translates errors by ICMP about what has been translated (RFC 5508, section 4): what a router says on the way to a backend is heard
//! by the client, and what one says on the way to a client is heard by the backend. A path MTU, first of all.
//!
//! Both the message's ends and those of the segment that it quotes are translated, so that each side is told of the segment that it has sent. Who
//! tells is the VIP then, or the SNAT address, as whom the other side knows. (No router's own address: the way to a backend may lead by that very router,
//! as where it sends backends' packets here by policy, and no router takes what comes from itself.) But who tells a backend on this host stays who it is.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    backend::{BackendState, Forwarding},
    flow::{FlowKey as _, table::Place},
    nat::{Translation, TranslationWord, place_of},
    verdict::Reason,
};

use super::{endpoint, route, store};
use crate::{
    count::Tally,
    family::{Family, V4, V6},
    flow, forward,
    icmp::{self, AboutSegment},
    local, maps,
    parse::{Ends, Segment},
    rewrite::{self, end},
};

// What a function returns that leaves the message to another. No XDP actions, and no ways.
/// It is for a backend.
const TO_BACKEND: u32 = 0x100;
/// It is for a client.
const TO_CLIENT: u32 = 0x101;

macro_rules! programs {
    ($($program:ident: $family:ident, $find:ident, $route:ident, $leave:ident;)+) => {
        $(
            /// An error about a segment of a service whose flows are translated, or of a flow that was.
            #[xdp(frags)]
            fn $program(ctx: XdpContext) -> u32 {
                match $find(ctx.ctx) {
                    TO_BACKEND => $leave(ctx.ctx, TO_BACKEND),
                    TO_CLIENT => {
                        let way = $route(ctx.ctx);
                        $leave(ctx.ctx, way)
                    }
                    action => action,
                }
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
            fn $route(ctx: *mut xdp_md) -> u32 {
                match AboutSegment::<$family>::in_frame(&XdpContext::new(ctx)) {
                    Some(about) => route::find::<$family>(ctx, about.length),
                    None => route::NONE,
                }
            }

            #[inline(never)]
            fn $leave(ctx: *mut xdp_md, way: u32) -> u32 {
                let mut tally = Tally::new();
                match leave::<$family>(&XdpContext::new(ctx), way, &mut tally) {
                    Ok(action) => {
                        tally.count(Reason::ErrorRelayed);
                        action
                    }
                    // No error is answered with an error (RFC 1122, section 3.2.2).
                    Err(_) => end(&tally, Reason::ErrorUnrelayed),
                }
            }
        )+
    };
}

programs! {
    error4: V4, find4, route4, leave4;
    error6: V6, find6, route6, leave6;
}

/// Finds the flow of the segment that is quoted, and notes it. What is about no flow is the host's.
#[inline(always)]
fn find<F: Family>(ctx: &XdpContext, tally: &mut Tally) -> Result<u32, Reason> {
    let about = AboutSegment::<F>::in_frame(ctx).ok_or(Reason::NotService)?;
    match F::service(about.ends.source, about.source_port) {
        Ok(service) => {
            tally.bytes = about.bytes();
            of_reply::<F>(&about, service, tally)
        }
        Err(Reason::NotService) => of_request::<F>(&about, tally),
        Err(reason) => Err(reason),
    }
}

/// What a service has sent did not get to its client: the backend of the flow is to know, or, if it has no entry, the one that an unknown segment would
/// go to.
#[inline(always)]
fn of_reply<F: Family>(
    about: &AboutSegment<F>,
    service: u16,
    tally: &mut Tally,
) -> Result<u32, Reason> {
    tally.service(service);
    let noted = maps::to_hand_on().ok_or(Reason::ErrorUnrelayed)?;
    noted.index = u32::MAX;
    let key = F::key(about.ends.destination, about.destination_port, service);
    let id = flow::concerned_translated::<F>(&key);
    let (_, state) = icmp::to_backend(id, tally)?;
    let mut word = TranslationWord::new(0, 0);
    if state.is_nat() {
        let noted = maps::handed_on();
        let place = Place {
            index: noted.index,
            way: noted.way,
        };
        // Nobody knows the port of a flow without an entry.
        word = store::valid::<F>(place, &key, store::reference(id, state))
            .ok_or(Reason::ErrorUnrelayed)?;
    }
    let noted = maps::to_hand_on().ok_or(Reason::ErrorUnrelayed)?;
    noted.translation = word.anew().0 as u32;
    noted.outcome = id << 8;
    noted.service = service as u32;
    Ok(TO_BACKEND)
}

/// What was sent to a backend did not get there: the client of the flow is to know. That a backend would answer by it tells the flow.
#[inline(always)]
fn of_request<F: Family>(about: &AboutSegment<F>, tally: &mut Tally) -> Result<u32, Reason> {
    let endpoint = maps::handed_on().endpoint;
    let from = (about.ends.destination, about.destination_port);
    let to = (about.ends.source, about.source_port);
    let found = match endpoint::flow::<F>(endpoint, from, to, false) {
        Ok(found) => found,
        Err(Reason::NotService) => return Err(Reason::NotService),
        Err(_) => {
            tally.bytes = about.bytes();
            return Err(Reason::ErrorUnrelayed);
        }
    };
    if found.pair != 0 {
        let place = place_of(found.slot);
        let translation = store::at::<F>(place).ok_or(Reason::ErrorUnrelayed)?;
        let (word, seen) = store::load(translation);
        let stamp = store::stamp::<F>(&found.key, found.reference);
        if seen != stamp || !word.is_at(found.pair, about.source_port) {
            let why = endpoint::astray::<F>(found.pair, about.source_port, found.slot);
            if seen != Translation::BUSY && matches!(why, Reason::NotService) {
                return Err(Reason::NotService);
            }
            tally.bytes = about.bytes();
            return Err(Reason::ErrorUnrelayed);
        }
    }
    tally.bytes = about.bytes();
    let service = found.key.service();
    tally.service(service);
    tally.backend(found.reference.id());
    let (client, client_port) = F::client_of(&found.key);
    let noted = maps::to_hand_on().ok_or(Reason::ErrorUnrelayed)?;
    noted.client = F::as_words(client);
    noted.client_port = client_port as u32;
    noted.service = service as u32;
    noted.outcome = found.reference.id() << 8;
    Ok(TO_CLIENT)
}

/// Writes the message anew, and has it sent. `way` is what came of the search for one to the client, or [`TO_BACKEND`].
#[inline(always)]
fn leave<F: Family>(ctx: &XdpContext, way: u32, tally: &mut Tally) -> Result<u32, Reason> {
    let about = AboutSegment::<F>::in_frame(ctx).ok_or(Reason::ErrorUnrelayed)?;
    let noted = maps::handed_on();
    tally.bytes = about.bytes();
    tally.service(noted.service as u16);
    tally.backend(noted.backend());
    if way == TO_BACKEND {
        return leave_to_backend::<F>(ctx, &about);
    }
    let (vip, port) = rewrite::vip::<F>(noted.service).ok_or(Reason::ErrorUnrelayed)?;
    let client = F::of_words(noted.client);
    let message = Ends::<F> {
        source: vip,
        destination: client,
    };
    let quoted = rewrite::New::<F> {
        source: client,
        source_port: noted.client_port as u16,
        destination: vip,
        destination_port: port,
    };
    match way {
        route::FOUND => {
            let hop = maps::hop_to_client().ok_or(Reason::ErrorUnrelayed)?;
            let action = forward::egress(ctx, hop)?;
            rewrite::error::<F>(ctx, &about, &message, &quoted)?;
            let frame = Segment::of_message(about.network, about.length, 0);
            let state = BackendState(noted.state);
            forward::write_head(F::ETHERTYPE, ctx, &frame, hop, state, 0)?;
            Ok(action)
        }
        // As with replies.
        route::NO_NEIGHBOUR => {
            rewrite::error::<F>(ctx, &about, &message, &quoted)?;
            Ok(xdp_action::XDP_PASS)
        }
        _ => Err(Reason::ErrorUnrelayed),
    }
}

#[inline(always)]
fn leave_to_backend<F: Family>(ctx: &XdpContext, about: &AboutSegment<F>) -> Result<u32, Reason> {
    let noted = maps::handed_on();
    let (backend, state) = maps::backend(noted.backend()).ok_or(Reason::ErrorUnrelayed)?;
    if state.is_local() {
        return local::give_error::<F>(ctx, about, backend);
    }
    let frame = Segment::of_message(about.network, about.length, about.destination_port);
    let (client, client_port) = (about.ends.destination, about.destination_port);
    let (teller, source, source_port) = match state.forwarding() {
        Some(Forwarding::Nat) => {
            let word = TranslationWord(noted.translation as u64);
            let address = super::snat_address::<F>(word).ok_or(Reason::ErrorUnrelayed)?;
            (address, address, word.port())
        }
        Some(Forwarding::Dnat) => {
            let (vip, _) = rewrite::vip::<F>(noted.service).ok_or(Reason::ErrorUnrelayed)?;
            (vip, client, client_port)
        }
        // The service's mode has changed, and the flow is of before that.
        _ => return forward::forward::<F>(ctx, &frame, backend, state),
    };
    let hop = forward::hop_in_force(backend, state);
    if about.length > hop.mtu as u32 {
        return Err(Reason::ErrorUnrelayed);
    }
    let action = forward::egress(ctx, hop)?;
    let message = Ends::<F> {
        source: teller,
        destination: rewrite::backend_address::<F>(backend),
    };
    let quoted = rewrite::New::<F> {
        source: message.destination,
        source_port: rewrite::backend_port(backend),
        destination: source,
        destination_port: source_port,
    };
    rewrite::error::<F>(ctx, about, &message, &quoted)?;
    forward::write_head(F::ETHERTYPE, ctx, &frame, hop, state, 0)?;
    Ok(action)
}
