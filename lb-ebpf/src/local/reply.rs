//! The program that translates what backends on this host send back: on egress (TC), after conntrack has seen it.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use lb_common::{
    flow::{FlowKey as _, life, word::State},
    nat::place_of,
    verdict::Reason,
};

use super::skb::{self, Packet, Sent};
use crate::{
    count::Tally,
    family::{Family, V4, V6},
    flow, maps,
    parse::Parse,
    rewrite,
};

/// It is not sent.
const DROP: i32 = TC_ACT_SHOT;

/// What goes out by an interface. All that is no reply of a backend's goes on as it is, and so does a reply once it is translated, to whatever other
/// program there is.
#[classifier]
fn local_reply(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some((ethertype, network)) = skb::network(skb) else {
        return TC_ACT_UNSPEC;
    };
    match skb::is_ipv6(ethertype) {
        Some(false) => translate4(skb, network),
        Some(true) => translate6(skb, network),
        None => TC_ACT_UNSPEC,
    }
}

#[inline(never)]
fn translate4(skb: *mut __sk_buff, network: u32) -> i32 {
    translate::<V4>(skb, network)
}

#[inline(never)]
fn translate6(skb: *mut __sk_buff, network: u32) -> i32 {
    translate::<V6>(skb, network)
}

#[inline(always)]
fn translate<F>(skb: *mut __sk_buff, network: u32) -> i32
where
    F: Family + Sent<Address = <F as Parse>::Address>,
{
    let Some(([source, client], packet)) = F::read(skb, network) else {
        return TC_ACT_UNSPEC;
    };
    let endpoint = F::endpoint(source, packet.ports[0]);
    if endpoint == 0 {
        return TC_ACT_UNSPEC;
    }
    let Some(slot) = flow_of::<F>(endpoint, source, client, &packet) else {
        return TC_ACT_UNSPEC;
    };
    let Some((key, value)) = flow::at::<F>(place_of(slot)) else {
        return lost(skb);
    };
    let (service, backend) = (key.service(), value.backend());
    match maps::backend(backend.id()) {
        Some((_, state)) if state.generation() == backend.generation() && state.is_local() => {}
        // Another host's, that this one routes for: translated where it came in, if anywhere.
        Some((_, state)) if state.generation() == backend.generation() => return TC_ACT_UNSPEC,
        _ => return lost(skb),
    }
    let Some((vip, port)) = rewrite::vip::<F>(service as u32) else {
        return lost(skb);
    };
    // Of others it makes no difference, and is not read.
    let resets = value.is(State::Young) && skb::resets(skb, &packet);
    let heard = life::heard(value, resets, maps::now());
    if heard != value {
        // Whoever else changes it at this moment has heard of the flow too.
        flow::replace::<F>(place_of(slot), value, heard);
    }
    let mut tally = Tally::new();
    // SAFETY: the context.
    tally.bytes = unsafe { (*skb).len };
    tally.service(service);
    tally.backend(backend.id());
    if F::set_source(skb, &packet, source, vip, port) {
        tally.count(Reason::Reply);
        TC_ACT_UNSPEC
    } else {
        tally.count(Reason::Untranslated);
        DROP
    }
}

/// A reply whose flow has changed at this moment: it comes again. With its own source it would only be reset by the client.
#[inline(always)]
fn lost(skb: *mut __sk_buff) -> i32 {
    let mut tally = Tally::new();
    // SAFETY: the context.
    tally.bytes = unsafe { (*skb).len };
    tally.count(Reason::Untranslated);
    DROP
}

/// The flow that a segment of an endpoint is of, by any of its services: what a slot would hold. None if it is of no flow: one between the
/// client and the backend without a VIP.
#[inline(always)]
fn flow_of<F: Family>(
    endpoint: u32,
    source: <F as Parse>::Address,
    client: <F as Parse>::Address,
    packet: &Packet,
) -> Option<u32>
where
    <F as Parse>::Address: PartialEq,
{
    let record = maps::endpoint(endpoint)?;
    // SAFETY: an entry of the map. It does not change while the directory names it.
    let (address, port) = unsafe {
        (
            rewrite::load::<F>(core::ptr::addr_of!((*record).address)),
            core::ptr::addr_of!((*record).port).read_volatile(),
        )
    };
    // The directory of IPv6 tells by a hash.
    if address != source || port != packet.ports[0] {
        return None;
    }
    let slot = rewrite::of_service::<F>(record, endpoint, (client, packet.ports[1]), 0, false);
    (slot != 0).then_some(slot)
}
