//! The program that gives what clients send to backends on this host.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    flow::word::{LINGER_RST_TICKS, State, Word},
    nat::{DNAT_SERVICES, place_of},
    tcp::SYN,
    verdict::{Reason, Verdict},
};

use crate::{
    count::Tally,
    family::{Family, V4, V6},
    flow, forward, icmp, maps,
    rewrite::{self, New},
};

/// It goes on to the backend: what a function returns that leaves the segment to another. No XDP action.
const GIVE: u32 = 0x100;

macro_rules! programs {
    ($($program:ident: $family:ident, $admit:ident, $give:ident;)+) => {
        $(
            /// A segment that has been steered to a backend on this host.
            #[xdp(frags)]
            fn $program(ctx: XdpContext) -> u32 {
                let mut next = $admit(ctx.ctx);
                if next == GIVE {
                    next = $give(ctx.ctx);
                }
                next
            }

            #[inline(never)]
            fn $admit(ctx: *mut xdp_md) -> u32 {
                let mut tally = Tally::new();
                match admit::<$family>(&XdpContext::new(ctx), &mut tally) {
                    Ok(next) => next,
                    Err(reason) => rewrite::end(&tally, reason),
                }
            }

            #[inline(never)]
            fn $give(ctx: *mut xdp_md) -> u32 {
                let ctx = XdpContext::new(ctx);
                let mut tally = Tally::new();
                let (reason, action) = match give::<$family>(&ctx, &mut tally) {
                    Ok(reason) => (reason, xdp_action::XDP_PASS),
                    Err(reason) if matches!(reason.verdict(), Verdict::Answer) => {
                        let room = icmp::room_on_the_way_to(tally.backend_id());
                        icmp::complain::<$family>(&ctx, room, reason)
                    }
                    Err(reason) => return rewrite::end(&tally, reason),
                };
                tally.count(reason);
                action
            }
        )+
    };
}

programs! {
    local4: V4, admit4, give4;
    local6: V6, admit6, give6;
}

/// Whether a segment may go on: what comes back of it can be translated, and only for this flow.
#[inline(always)]
fn admit<F: Family>(ctx: &XdpContext, tally: &mut Tally) -> Result<u32, Reason> {
    let (segment, ends) = rewrite::parse::<F>(ctx)?;
    let noted = rewrite::steered(&segment, tally);
    let (backend, _) = maps::backend(noted.backend()).ok_or(Reason::StaleGeneration)?;
    let endpoint = maps::endpoint_of(backend);
    let port = segment.source_port;
    let mut reason = rewrite::reason_of(&noted);
    // A client that has vanished twice has two entries, and with either of them what this backend sends to its port is translated.
    let has_other = matches!(reason, Reason::Unpinned)
        && rewrite::at_endpoint::<F>(ends.source, port, noted.service as u16, endpoint, false) != 0;
    if !has_other {
        reason = rewrite::without_entry(reason, &segment);
    }
    match reason.verdict() {
        Verdict::Forward => {}
        Verdict::Reset => {
            let action = forward::refuse::<F>(ctx)?;
            tally.count(reason);
            return Ok(action);
        }
        _ => return Err(reason),
    }
    if segment.tcp.has_any(SYN) && is_taken::<F>(endpoint, ends.source, port, noted.service as u16)?
    {
        let action = forward::refuse::<F>(ctx)?;
        tally.count(Reason::Collision);
        return Ok(action);
    }
    Ok(GIVE)
}

/// Whether the client has another flow with the same port at the same endpoint, by another service, so that the backend would take both for one. Then
/// the new one's entry is taken away; else, what has ended of the other.
#[inline(always)]
fn is_taken<F: Family>(
    endpoint: u32,
    client: <F as crate::parse::Parse>::Address,
    port: u16,
    own: u16,
) -> Result<bool, Reason> {
    let record = maps::endpoint(endpoint).ok_or(Reason::Untranslated)?;
    let mut is_taken = false;
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
        if service == 0 || service == own {
            continue;
        }
        let slot = rewrite::at_endpoint::<F>(client, port, service, endpoint, false);
        if slot == 0 {
            continue;
        }
        let place = place_of(slot);
        let Some((_, value)) = flow::at::<F>(place) else {
            continue;
        };
        // Only the client is heard here, and its FIN may be that of a stream which goes on the other way; but not of one in which nothing has come since.
        if value.is(State::Closing) && value.age(maps::now()) > LINGER_RST_TICKS {
            flow::replace::<F>(place, value, Word::EMPTY);
            continue;
        }
        is_taken = true;
        break;
    }
    if is_taken {
        let slot = rewrite::at_endpoint::<F>(client, port, own, endpoint, true);
        if slot != 0
            && let Some((_, value)) = flow::at::<F>(place_of(slot))
            && value.is_nascent()
        {
            flow::replace::<F>(place_of(slot), value, Word::EMPTY);
        }
    }
    Ok(is_taken)
}

/// Addresses the segment to the backend, and leaves it to the stack.
#[inline(always)]
fn give<F: Family>(ctx: &XdpContext, tally: &mut Tally) -> Result<Reason, Reason> {
    let (segment, ends) = rewrite::parse::<F>(ctx)?;
    let noted = rewrite::steered(&segment, tally);
    let reason = rewrite::reason_of(&noted);
    let (backend, state) = maps::backend(noted.backend()).ok_or(Reason::StaleGeneration)?;
    if !state.is_local() {
        // Since it was steered.
        return Err(Reason::Untranslated);
    }
    if segment.length > forward::hop_in_force(backend, state).mtu as u32 {
        return Err(Reason::TooBig);
    }
    let to = New::<F> {
        source: ends.source,
        source_port: segment.source_port,
        destination: rewrite::backend_address::<F>(backend),
        destination_port: rewrite::backend_port(backend),
    };
    rewrite::packet_in_place::<F>(ctx, &segment, &to)?;
    Ok(reason)
}
