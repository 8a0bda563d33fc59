//! Errors by ICMP about what backends on this host have sent, as that a router's way to a client is too narrow: conntrack and the backend know the segment
//! by the backend's own address, and so the message goes on to the stack with that in the place of the VIP's.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{backend::Backend, verdict::Reason};

use crate::{
    family::Family,
    icmp::AboutSegment,
    parse::Ends,
    rewrite::{self, New},
};

/// Addresses the message to the backend, and leaves it to the stack. Who tells stays who it is: it came from there.
#[inline(always)]
pub(crate) fn give_error<F: Family>(
    ctx: &XdpContext,
    about: &AboutSegment<F>,
    backend: *const Backend,
) -> Result<u32, Reason> {
    let message = Ends::<F> {
        source: about.teller,
        destination: rewrite::backend_address::<F>(backend),
    };
    let quoted = New::<F> {
        source: message.destination,
        source_port: rewrite::backend_port(backend),
        destination: about.ends.destination,
        destination_port: about.destination_port,
    };
    rewrite::error_in_place::<F>(ctx, about, &message, &quoted)?;
    Ok(xdp_action::XDP_PASS)
}
