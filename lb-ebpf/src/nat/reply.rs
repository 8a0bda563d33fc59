//! The program that translates what backends send back.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    backend::BackendState,
    flow::FlowKey as _,
    nat::{
        DNAT_SERVICES, Endpoint, FIRST_PORT, SNAT_ADDRESSES, Translation, TranslationWord,
        place_of, ports::Ports as _,
    },
    tcp::SYN,
    verdict::{Reason, Verdict},
};

use super::{
    end,
    live::{BACKEND, at_endpoint, live_on},
    mss,
    ports::PortMaps,
    rewrite, route, store,
};
use crate::{
    count::Tally,
    family::{Family, V4, V6},
    flow, forward, icmp, maps,
    parse::{Ends, Parse, Segment},
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
                match super::parse::<$family>(&XdpContext::new(ctx)) {
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
    let (segment, ends) = super::parse::<F>(ctx)?;
    tally.bytes = segment.bytes();
    let endpoint = maps::handed_on().endpoint;
    let record = maps::endpoint(endpoint).ok_or(Reason::NotService)?;
    // SAFETY: an entry of the map. It does not change while the directory names it.
    let (address, port) = unsafe {
        (
            super::load::<F>(core::ptr::addr_of!((*record).address)),
            core::ptr::addr_of!((*record).port).read_volatile(),
        )
    };
    if address != ends.source || port != segment.source_port {
        return Err(Reason::NotService);
    }
    let snat_port = segment.destination_port;
    let pair = pair_with::<F>(record, ends.destination);
    let mut slot = 0;
    if pair != 0 && snat_port >= FIRST_PORT {
        slot = PortMaps::<F>::NEW.slot(pair, snat_port);
    }
    if slot == 0 {
        slot = of_service::<F>(record, endpoint, &segment, &ends);
    }
    if slot == 0 {
        return Err(Reason::NotService);
    }
    let place = place_of(slot);
    let (key, value) = flow::at::<F>(place).ok_or(Reason::Untranslated)?;
    let reference = value.backend();
    let (backend, state) = maps::backend(reference.id()).ok_or(Reason::Untranslated)?;
    if state.generation() != reference.generation() || maps::endpoint_of(backend) != endpoint {
        return Err(Reason::Untranslated);
    }
    let translation = store::at::<F>(place).ok_or(Reason::Untranslated)?;
    let (word, seen) = store::load(translation);
    let stamp = store::stamp::<F>(&key, reference);
    if state.is_nat() {
        // A slot that names the place of another flow is of one that has ended, or moves at this moment.
        if seen != stamp || !word.is_at(pair, snat_port) {
            return Err(Reason::Untranslated);
        }
    } else if seen != stamp {
        if maps::is_held() {
            return Err(Reason::Held);
        }
        if seen == Translation::BUSY || !store::begin(translation, seen) {
            return Err(Reason::Untranslated);
        }
        store::give_back::<F>(word, slot);
        store::finish(translation, TranslationWord::new(0, 0), stamp);
    }
    tally.service(key.service());
    tally.backend(reference.id());
    let ack = super::acknowledged(ctx, &segment)?;
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

/// The pair of an endpoint with a SNAT address; 0 is none.
#[inline(always)]
fn pair_with<F: Family>(record: *const Endpoint, address: <F as Parse>::Address) -> u16 {
    let mut index = 0;
    while index < SNAT_ADDRESSES {
        // SAFETY: an entry of the map. Volatile: the daemon may write it meanwhile.
        let id = unsafe {
            core::ptr::addr_of!((*record).pairs)
                .cast::<u16>()
                .add(index)
                .read_volatile()
        };
        if id != 0
            && let Some(pair) = maps::pair(id)
        {
            // SAFETY: an entry of the map. A pair does not change while anything names it.
            let own = unsafe { super::load::<F>(core::ptr::addr_of!((*pair).address)) };
            if own == address {
                return id;
            }
        }
        index += 1;
    }
    0
}

/// The flow of mode `dnat` that a segment of an endpoint is of, by any of its services: what its slot would hold, or 0.
#[inline(always)]
fn of_service<F: Family>(
    record: *const Endpoint,
    endpoint: u32,
    segment: &Segment,
    ends: &Ends<F>,
) -> u32 {
    let mut index = 0;
    while index < DNAT_SERVICES {
        // SAFETY: an entry of the map. Volatile: the daemon may write it meanwhile.
        let service = unsafe {
            core::ptr::addr_of!((*record).services)
                .cast::<u16>()
                .add(index)
                .read_volatile()
        };
        index += 1;
        if service != 0 {
            let port = segment.destination_port;
            let slot = at_endpoint::<F>(ends.destination, port, service, endpoint);
            if slot != 0 {
                return slot;
            }
        }
    }
    0
}

/// Has the answer to a SYN tell the client what fits the way to the backend.
#[inline(always)]
fn clamp<F: Family>(ctx: &XdpContext) {
    let backend = maps::handed_on().outcome >> 8;
    if let Ok((segment, _)) = super::parse::<F>(ctx) {
        mss::clamp::<F>(ctx, &segment, icmp::room_on_the_way_to(backend));
    }
}

/// Writes the segment anew, for the client. `way` is what came of the search for it.
#[inline(always)]
fn leave<F: Family>(ctx: &XdpContext, way: u32, tally: &mut Tally) -> Result<u32, Reason> {
    let (segment, _) = super::parse::<F>(ctx)?;
    let noted = maps::handed_on();
    tally.bytes = segment.bytes();
    tally.service(noted.service as u16);
    tally.backend(noted.outcome >> 8);
    let (vip, port) = super::vip::<F>(noted.service).ok_or(Reason::Untranslated)?;
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
