//! What one program has found out of a packet, and the next goes on with; and what it needs of services and backends for that.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    backend::Backend,
    counters::HandedOn,
    net::Address,
    tcp::RST,
    verdict::{Reason, Verdict},
};

use crate::{
    count::Tally,
    family::Family,
    hide, maps,
    parse::{self, Ends, Parse, Parsed, Segment},
};

/// The TCP segment of a frame, and its ends, for a program that comes after one which has parsed it.
#[inline(always)]
pub(crate) fn parse<F: Family>(ctx: &XdpContext) -> Result<(Segment, Ends<F>), Reason> {
    let network = parse::network_of::<F>(ctx).ok_or(Reason::Malformed)?;
    match F::parse(ctx, network)? {
        Parsed::Segment(mut segment, ends) => {
            // Else the compiler may store, on the way of what is no segment, a byte of whatever a register has; which the verifier refuses if that is a
            // pointer.
            segment.tcp.flags = hide::bits::<0xff>(segment.tcp.flags.into()) as u8;
            Ok((segment, ends))
        }
        _ => Err(Reason::NotService),
    }
}

/// What was noted of a segment whose flow is known. Tallies it. (Parsed apart: of all in one result the compiler would spill what an error has not, which
/// the verifier refuses to see read.)
#[inline(always)]
pub(crate) fn steered(segment: &Segment, tally: &mut Tally) -> HandedOn {
    let noted = maps::handed_on();
    tally.bytes = segment.bytes();
    tally.service(noted.service as u16);
    tally.backend(noted.backend());
    noted
}

/// Why a segment that was steered is forwarded.
#[inline(always)]
pub(crate) fn reason_of(noted: &HandedOn) -> Reason {
    // SAFETY: the low byte was a reason when it was noted.
    unsafe { core::mem::transmute::<u8, Reason>(noted.outcome as u8) }
}

/// What a reason means if no reply could be translated without an entry.
#[inline(always)]
pub(crate) fn without_entry(reason: Reason, segment: &Segment) -> Reason {
    match reason {
        Reason::Stray if segment.tcp.has(RST) => Reason::ResetToDead,
        // While programs are switched, another interface's may know the flow already.
        Reason::Unpinned | Reason::Unadopted | Reason::Stray if maps::is_held() => Reason::Held,
        Reason::Unpinned | Reason::Unadopted => Reason::Unrecorded,
        Reason::Stray if segment.tcp.continues() || segment.tcp.ends() => Reason::UnknownFlow,
        Reason::Stray => Reason::Untranslated,
        reason => reason,
    }
}

/// The action of a packet that ends here, once counted.
#[inline(always)]
pub(crate) fn end(tally: &Tally, reason: Reason) -> u32 {
    tally.count(reason);
    match reason.verdict() {
        Verdict::Pass => xdp_action::XDP_PASS,
        _ => xdp_action::XDP_DROP,
    }
}

/// What a client of a service knows it by.
#[inline(always)]
pub(crate) fn vip<F: Family>(service: u32) -> Option<(<F as Parse>::Address, u16)> {
    let service = maps::service(service as u16)?;
    // SAFETY: an entry of the map. A VIP does not change while anything names its service.
    unsafe {
        let address = load::<F>(core::ptr::addr_of!((*service).vip));
        let port = core::ptr::addr_of!((*service).port).read_volatile();
        Some((address, port))
    }
}

#[inline(always)]
pub(crate) fn backend_address<F: Family>(backend: *const Backend) -> <F as Parse>::Address {
    // SAFETY: an entry of the map. The address does not change while anything names the backend.
    unsafe { load::<F>(core::ptr::addr_of!((*backend).address)) }
}

#[inline(always)]
pub(crate) fn backend_port(backend: *const Backend) -> u16 {
    // SAFETY: as above.
    unsafe { core::ptr::addr_of!((*backend).port).read_volatile() }
}

/// Loads an address.
///
/// # Safety
/// It is one in a map's entry.
#[inline(always)]
pub(crate) unsafe fn load<F: Parse>(address: *const Address) -> F::Address {
    const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 8);
    let words = address.cast::<u64>();
    // SAFETY: the two words of an aligned address.
    unsafe { F::of_words([words.read_volatile(), words.add(1).read_volatile()]) }
}
