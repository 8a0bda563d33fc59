//! The program that translates what clients send: makes the translation of a flow that has none, lets it live on, sends the segment to the backend.

use aya_ebpf::{bindings::xdp_md, macros::xdp, programs::XdpContext};
use lb_common::{
    backend::Forwarding,
    counters::HandedOn,
    flow::{table::Place, word::Word},
    hash::scale,
    maps::STEER_INDEX,
    nat::{SNAT_ADDRESSES, TranslationWord, ports::Ports as _, slot_of},
    tcp::SYN,
    verdict::{Reason, Verdict},
};

use super::{
    live::{CLIENT, end_former, live_on},
    mss,
    ports::PortMaps,
    route, store,
};
use crate::{
    count::Tally,
    family::{Family, V4, V6},
    flow, forward, hand_on, hide, icmp, maps,
    rewrite::{self, end},
};

// What a function returns that leaves the segment to another. No XDP actions.
/// It is ready to be sent.
const SEND: u32 = 0x100;
/// It is a SYN, ready to be sent but for its options.
const SEND_SYN: u32 = 0x101;
/// The same, unless its flow collides with another: it is of mode `dnat`.
const SEND_UNLESS: u32 = 0x102;
/// It needs another backend.
const AGAIN: u32 = 0x103;
/// It is ready to be sent, and has proven its flow.
const SEND_PROVEN: u32 = 0x104;

macro_rules! programs {
    ($($program:ident: $family:ident, $index:literal, $prepare:ident, $end_former:ident, $collide:ident, $clamp:ident, $send:ident;)+) => {
        $(
            /// A segment that has been steered.
            #[xdp(frags)]
            fn $program(ctx: XdpContext) -> u32 {
                let mut next = $prepare(ctx.ctx);
                if next == SEND_PROVEN {
                    next = $end_former();
                }
                if next == SEND_UNLESS {
                    next = $collide(ctx.ctx);
                }
                if next == AGAIN {
                    return hand_on(&ctx, STEER_INDEX + $index);
                }
                if next == SEND_SYN {
                    next = $clamp(ctx.ctx);
                }
                if next == SEND {
                    next = $send(ctx.ctx);
                }
                next
            }

            #[inline(never)]
            fn $prepare(ctx: *mut xdp_md) -> u32 {
                let mut tally = Tally::new();
                match prepare::<$family>(&XdpContext::new(ctx), &mut tally) {
                    Ok(next) => next,
                    Err(reason) => end(&tally, reason),
                }
            }

            #[inline(never)]
            fn $end_former() -> u32 {
                let HandedOn { index, way, .. } = maps::handed_on();
                end_former::<$family>(Place { index, way });
                SEND
            }

            #[inline(never)]
            fn $collide(ctx: *mut xdp_md) -> u32 {
                let mut tally = Tally::new();
                match collide::<$family>(&XdpContext::new(ctx), &mut tally) {
                    Ok(next) => next,
                    Err(reason) => end(&tally, reason),
                }
            }

            #[inline(never)]
            fn $clamp(ctx: *mut xdp_md) -> u32 {
                clamp::<$family>(&XdpContext::new(ctx));
                SEND
            }

            #[inline(never)]
            fn $send(ctx: *mut xdp_md) -> u32 {
                let ctx = XdpContext::new(ctx);
                let mut tally = Tally::new();
                let (reason, action) = match send::<$family>(&ctx, &mut tally) {
                    Ok((reason, action)) => (reason, action),
                    Err(reason) if matches!(reason.verdict(), Verdict::Answer) => {
                        let room = icmp::room_on_the_way_to(tally.backend_id());
                        icmp::complain::<$family>(&ctx, room, reason)
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
    translate4: V4, 0, prepare4, end_former4, collide4, clamp4, send4;
    translate6: V6, 1, prepare6, end_former6, collide6, clamp6, send6;
}

/// Sees to it that the flow has its translation, and to what the segment changes of it.
#[inline(always)]
fn prepare<F: Family>(ctx: &XdpContext, tally: &mut Tally) -> Result<u32, Reason> {
    let (segment, ends) = rewrite::parse::<F>(ctx)?;
    let noted = rewrite::steered(&segment, tally);
    let id = noted.backend();
    let (_, state) = maps::backend(id).ok_or(Reason::StaleGeneration)?;
    if !state.translates() {
        // The service's mode has changed, and the flow is of before that.
        return Ok(SEND);
    }
    let place = Place {
        index: noted.index,
        way: noted.way,
    };
    let key = F::key(ends.source, segment.source_port, noted.service as u16);
    let reference = store::reference(id, state);
    let (held, value) = flow::at::<F>(place).ok_or(Reason::Untranslated)?;
    if held != key || value.backend() != reference {
        return Err(Reason::Untranslated);
    }
    let translation = store::at::<F>(place).ok_or(Reason::Untranslated)?;
    let (mut word, seen) = store::load(translation);
    let stamp = store::stamp::<F>(&key, reference);
    let is_nat = state.is_nat();
    let is_syn = segment.tcp.has_any(SYN);
    if is_syn && value.is_live() {
        // Sent again, and overtaken on another CPU by the handshake that it began: it would get another port than the flow that is open has.
        return Err(Reason::Untranslated);
    }
    // The daemon, when it empties an entry, gives back its port, and leaves the translation as it is. And what a former flow of the same client
    // at the same place had may be open still at the backend, which would take a SYN from that port for a part of it.
    let is_valid = seen == stamp
        && (!is_syn
            || !is_nat
            || !word.has(TranslationWord::PROVEN)
                && PortMaps::<F>::NEW.slot(word.pair(), word.port()) == slot_of(place));
    let mut next = match (is_syn, is_nat) {
        (false, _) => SEND,
        (true, true) => SEND_SYN,
        (true, false) => SEND_UNLESS,
    };
    if !is_valid {
        // Nobody knows the port of a flow that is in mid-stream.
        if is_nat && !is_syn {
            return Err(Reason::Untranslated);
        }
        if maps::is_held() {
            return Err(Reason::Held);
        }
        match make::<F>(place.index, place.way, id, stamp) {
            NO_PORT => {
                flow::replace::<F>(place, value, Word::EMPTY);
                return Err(Reason::NoPort);
            }
            LOST => return Err(Reason::Untranslated),
            made => word = TranslationWord(made as u64),
        }
    } else if is_syn && word.has(TranslationWord::PROVEN) {
        // Of a former flow of the same client at the same place.
        store::replace(translation, word, word.anew());
    }
    if !is_syn {
        let ack = super::acknowledged(ctx, &segment)?;
        if live_on::<F, CLIENT>(place, &segment.tcp, ack)? {
            next = SEND_PROVEN;
        }
    }
    if let Some(noted) = maps::to_hand_on() {
        noted.translation = word.anew().0 as u32;
    }
    Ok(next)
}

// What a function returns that makes no translation.
/// All ports that were looked at, of all pairs, are in use.
const NO_PORT: u32 = 0;
/// Another CPU is doing it. (No word: a pair is never 0 where a port is not.)
const LOST: u32 = 1;
/// In the word of a new translation of mode `dnat`, which would be [`NO_PORT`] without it, and is taken off again.
const DNAT: u32 = TranslationWord::ANSWERED as u32;

/// Makes the translation beside an entry. Gives its word.
#[inline(never)]
fn make<F: Family>(index: u32, way: u32, id: u32, stamp: u64) -> u32 {
    let place = Place { index, way };
    let (Some(translation), Some((backend, state))) = (store::at::<F>(place), maps::backend(id))
    else {
        return LOST;
    };
    let (former, seen) = store::load(translation);
    if !store::begin(translation, seen) {
        return LOST;
    }
    store::give_back::<F>(former, slot_of(place));
    if !state.is_nat() {
        store::finish(translation, TranslationWord::new(0, 0), stamp);
        return DNAT;
    }
    let mut count = 0;
    let mut index = 0;
    while index < SNAT_ADDRESSES as u32 {
        // Without a branch: the verifier would follow each number of pairs through all that comes.
        count += (hide::number(pair_of(backend, index) as u64).wrapping_neg() >> 63) as u32;
        index += 1;
    }
    // A free port of any pair first, from one that differs from flow to flow on; then one of that pair which its flow needs no more.
    let mut chosen = scale((stamp >> 32) as u32, count);
    let mut attempt = 0;
    while attempt <= SNAT_ADDRESSES as u32 {
        // Apart, and hidden: of both bounds the compiler would make one that the loop ends at, and the verifier of 6.1 not know that it gets there.
        if hide::number(attempt as u64) > count as u64 {
            break;
        }
        let pair = pair_of(backend, chosen);
        let port = if pair == 0 {
            0
        } else {
            F::take_port(pair, place, attempt < count)
        };
        if port != 0 {
            let word = TranslationWord::new(pair, port);
            store::finish(translation, word, stamp);
            return word.0 as u32;
        }
        attempt += 1;
        chosen = if chosen + 1 < count { chosen + 1 } else { 0 };
    }
    store::finish(translation, TranslationWord::new(0, 0), 0);
    NO_PORT
}

/// One of the pairs of a backend; 0 is none.
#[inline(always)]
fn pair_of(backend: *const lb_common::backend::Backend, index: u32) -> u16 {
    let index = (hide::number(index as u64) & (SNAT_ADDRESSES as u64 - 1)) as usize;
    // SAFETY: an entry of the map, and one of the pairs that it has.
    unsafe { maps::id_at(core::ptr::addr_of!((*backend).pairs).cast(), index) }
}

/// Looks whether the client has another flow with the same port at the same endpoint, by another service: the backend would take both for one.
#[inline(always)]
fn collide<F: Family>(ctx: &XdpContext, tally: &mut Tally) -> Result<u32, Reason> {
    let (segment, ends) = rewrite::parse::<F>(ctx)?;
    let noted = rewrite::steered(&segment, tally);
    let id = noted.backend();
    let (backend, _) = maps::backend(id).ok_or(Reason::Untranslated)?;
    let endpoint = maps::endpoint_of(backend);
    let record = maps::endpoint(endpoint).ok_or(Reason::Untranslated)?;
    let (client, port) = (ends.source, segment.source_port);
    if rewrite::of_service::<F>(record, endpoint, (client, port), noted.service, false) == 0 {
        return Ok(SEND_SYN);
    }
    let place = Place {
        index: noted.index,
        way: noted.way,
    };
    let (key, value) = flow::at::<F>(place).ok_or(Reason::Untranslated)?;
    if key == F::key(client, port, noted.service as u16) && value.is_nascent() {
        flow::replace::<F>(place, value, Word::EMPTY);
    }
    if noted.barred == 0 {
        if let Some(noted) = maps::to_hand_on() {
            noted.barred = id;
        }
        return Ok(AGAIN);
    }
    let action = forward::refuse::<F>(ctx)?;
    tally.count(Reason::Collision);
    Ok(action)
}

/// Has a SYN tell the backend what fits the way to the client, if that is known.
#[inline(always)]
fn clamp<F: Family>(ctx: &XdpContext) {
    if let Ok((segment, _)) = rewrite::parse::<F>(ctx) {
        // Of the least length: this packet does not go there.
        let least = (F::LEN + lb_common::headers::TCP_LEN) as u32;
        if route::find::<F>(ctx.ctx, least) == route::FOUND {
            mss::clamp::<F>(ctx, &segment, maps::handed_on().mtu);
        }
    }
}

/// Writes the segment anew, for the backend.
#[inline(always)]
fn send<F: Family>(ctx: &XdpContext, tally: &mut Tally) -> Result<(Reason, u32), Reason> {
    let (segment, ends) = rewrite::parse::<F>(ctx)?;
    let noted = rewrite::steered(&segment, tally);
    let id = noted.backend();
    let reason = rewrite::reason_of(&noted);
    let (backend, state) = maps::backend(id).ok_or(Reason::StaleGeneration)?;
    let word = TranslationWord(noted.translation as u64);
    let (source, source_port) = match state.forwarding() {
        Some(Forwarding::Nat) => (
            super::snat_address::<F>(word).ok_or(Reason::Untranslated)?,
            word.port(),
        ),
        Some(Forwarding::Dnat) => (ends.source, segment.source_port),
        _ => {
            return Ok((
                reason,
                forward::forward::<F>(ctx, &segment, backend, state)?,
            ));
        }
    };
    let hop = forward::hop_in_force(backend, state);
    if segment.length > hop.mtu as u32 {
        return Err(Reason::TooBig);
    }
    let action = forward::egress(ctx, hop)?;
    let to = rewrite::New::<F> {
        source,
        source_port,
        destination: rewrite::backend_address::<F>(backend),
        destination_port: rewrite::backend_port(backend),
    };
    rewrite::packet::<F>(ctx, &segment, &to)?;
    forward::write_head(F::ETHERTYPE, ctx, &segment, hop, state, 0)?;
    Ok((reason, action))
}
