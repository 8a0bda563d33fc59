//! Modes `nat` and `dnat`: translating what clients send to backends, and what backends send back.
//!
//! Established flows take the short way ([`plain`]) within the first program. All else is done by four more programs, each of them small enough for
//! the verifier of 6.1 and with the whole stack for itself; what one has found out, the next finds in [`lb_common::counters::HandedOn`].
//!
//! * [`steer`]: finds or makes the flow's entry
//! * [`live`]: what a segment of either side changes
//! * [`translate`]: makes its translation, lets it live on, sends the segment to the backend
//! * [`reply`]: the way back; [`endpoint`]: which flow that is
//! * [`error`]: errors by ICMP about what either side has sent
//! * [`store`]: translations in the map; [`ports`]: SNAT ports
//! * [`mss`]: the clamp; [`route`]: the way to a client; [`rewrite`]: what they share with backends on this host

mod endpoint;
mod error;
mod live;
mod mss;
mod ports;
mod reply;
mod route;
mod steer;
mod store;
mod translate;

use aya_ebpf::programs::XdpContext;
use lb_common::{
    backend::Forwarding,
    flow::{bucket::WAYS, table::Place},
    guard::Passed,
    headers::TCP_LEN,
    nat::TranslationWord,
    verdict::Reason,
    vip::VipEntry,
};

use lb_ebpf::packet::Frame;

pub(crate) use self::{
    live::{acknowledges, answers},
    store::{Carry, carry, copy, touch},
};
use crate::{
    family::{Family, V4, V6},
    flow::{self, Table},
    forward, hide, maps,
    parse::{Ends, Parse, Segment},
    rewrite::{self, Rewrite},
    service::find,
};

/// What translation needs of a version of IP.
pub(crate) trait Translate: Rewrite {
    /// Address family, as the kernel's lookup of routes has it.
    const FAMILY: u8;
    /// An address as that lookup has it.
    fn in_route(address: Self::Address) -> [u64; 2];
    /// Id of the endpoint at an address and port, or what is taken for one until its record was looked at; 0 is none.
    fn endpoint(address: Self::Address, port: u16) -> u32;
    /// Takes a port of a pair for the flow at a place, one that is free or one that is not: see [`lb_common::nat::ports::take`].
    fn take_port(pair: u16, place: Place, is_free: bool) -> u16;
    /// The client's address and port in a flow's key.
    fn client_of(key: &<Self as Table>::Key) -> (<Self as Parse>::Address, u16)
    where
        Self: Table;
}

impl Translate for V4 {
    const FAMILY: u8 = 2;

    #[inline(always)]
    fn in_route(address: u32) -> [u64; 2] {
        [address.to_be() as u64, 0]
    }

    #[inline(always)]
    fn endpoint(address: u32, port: u16) -> u32 {
        let key = VipEntry::key(address, port);
        find(key, maps::endpoint_buckets(), maps::endpoints4).unwrap_or(0) as u32
    }

    #[inline(always)]
    fn take_port(pair: u16, place: Place, is_free: bool) -> u16 {
        ports::take4(pair as u32, place.index, place.way, is_free as u32) as u16
    }

    #[inline(always)]
    fn client_of(key: &<Self as Table>::Key) -> (u32, u16) {
        (key.address(), key.port())
    }
}

impl Translate for V6 {
    const FAMILY: u8 = 10;

    #[inline(always)]
    fn in_route(address: [u64; 2]) -> [u64; 2] {
        address
    }

    #[inline(always)]
    fn endpoint(address: [u64; 2], port: u16) -> u32 {
        let key = VipEntry::key6(address, port);
        find(key, maps::endpoint_buckets(), maps::endpoints6).unwrap_or(0) as u32
    }

    #[inline(always)]
    fn take_port(pair: u16, place: Place, is_free: bool) -> u16 {
        ports::take6(pair as u32, place.index, place.way, is_free as u32) as u16
    }

    #[inline(always)]
    fn client_of(key: &<Self as Table>::Key) -> ([u64; 2], u16) {
        (key.address, key.port())
    }
}

/// Whether any service of a version of IP translates. The verifier knows, and leaves out what is for those if none does.
#[inline(always)]
pub(crate) fn is_on<T: Table>() -> bool {
    T::nat_buckets() != 0
}

/// Whether a packet that is for no service is from where backends are whose flows are translated. Notes which endpoint that is.
#[inline(always)]
pub(crate) fn is_reply<F: Family>(source: <F as Parse>::Address, port: u16) -> bool {
    if !is_on::<F>() || port == 0 {
        return false;
    }
    let id = F::endpoint(source, port);
    if id == 0 {
        return false;
    }
    if let Some(noted) = maps::to_hand_on() {
        noted.endpoint = id;
    }
    true
}

/// Forgets what was handed on of another packet, before one is handed on to be steered.
#[inline(always)]
pub(crate) fn begin() {
    if let Some(noted) = maps::to_hand_on() {
        noted.barred = 0;
    }
    if maps::guards() {
        maps::set_passed(Passed::NOTHING);
    }
}

/// Translates a segment of an established flow and has it sent, in a frame without VLAN tags to a next hop without. Gives the XDP action and the
/// backend's id; none for anything else, of which at most the flow's entry has been refreshed.
#[inline(always)]
pub(crate) fn plain<F: Family>(
    ctx: &XdpContext,
    service: u16,
    segment: &Segment,
    ends: &Ends<F>,
) -> Option<(u32, u32)> {
    let key = F::key(ends.source, segment.source_port, service);
    let known = flow::established_translated::<F>(&key, segment)?;
    let forwarding = known.state.forwarding()?;
    let hop = forward::hop_in_force(known.backend, known.state);
    let (address, port) = match forwarding {
        Forwarding::Nat => {
            let reference = store::reference(known.id, known.state);
            // The verifier would follow each way on its own through all that comes; and that of 6.1 would not know then that it is one.
            let way = known.place.way ^ maps::always_zero();
            let place = Place {
                way: hide::bits::<{ WAYS - 1 }>(u64::from(way)) as u32,
                ..known.place
            };
            let word = store::valid::<F>(place, &key, reference)?;
            if !word.has(TranslationWord::PROVEN) {
                return None;
            }
            (snat_address::<F>(word)?, word.port())
        }
        Forwarding::Dnat => (ends.source, segment.source_port),
        // The service's mode has changed, and the flow is of before that.
        _ => {
            let action = forward::forward_plain::<F>(ctx, segment, known.backend, known.state)?;
            return Some((action, known.id));
        }
    };
    if segment.length > hop.mtu as u32 {
        return None;
    }
    let action = forward::egress(ctx, hop).ok()?;
    let to = rewrite::New::<F> {
        source: address,
        source_port: port,
        destination: rewrite::backend_address::<F>(known.backend),
        destination_port: rewrite::backend_port(known.backend),
    };
    rewrite::plain::<F>(ctx, hop, &to)?;
    Some((action, known.id))
}

/// The SNAT address of a translation.
#[inline(always)]
fn snat_address<F: Family>(word: TranslationWord) -> Option<<F as Parse>::Address> {
    let pair = maps::pair(word.pair())?;
    // SAFETY: an entry of the map. A pair does not change while a translation names it.
    Some(unsafe { rewrite::load::<F>(core::ptr::addr_of!((*pair).address)) })
}

/// The number that a segment acknowledges, whether or not it does.
#[inline(always)]
fn acknowledged(ctx: &XdpContext, segment: &Segment) -> Result<u32, Reason> {
    let tcp = Frame::of(ctx)
        .at(segment.transport(), TCP_LEN)
        .ok_or(Reason::Malformed)?;
    Ok(tcp.u32(8))
}
