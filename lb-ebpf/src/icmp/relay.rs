//! Errors about packets that a backend has sent from a VIP, or that are sent from it in the backend's place: routers and clients tell the VIP, and the backend has to know. A path MTU, first of all.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    backend::{Backend, BackendState, Serving},
    verdict::Reason,
};

use super::{AboutSegment, Message, TRANSLATED};
use crate::{
    count::Tally,
    family::Family,
    flow, forward, local, maps, nat,
    parse::{Ends, Segment},
};

/// Sends the message on to the backend of the flow whose packet it quotes. Eight bytes of TCP are enough. Ends in the reason and the XDP action, or in
/// [`TRANSLATED`] if there is more to it.
#[inline(always)]
pub(super) fn relay<F: Family>(
    ctx: &XdpContext,
    network: usize,
    message: &Message<F>,
    tally: &mut Tally,
) -> Result<(Reason, u32), Reason> {
    let about = AboutSegment::<F>::of(ctx, network, message).ok_or(Reason::NotService)?;
    // What was sent from the VIP to a client; or to a backend, if it is translated.
    let Ends {
        source: vip,
        destination: client,
    } = about.ends;
    let service = match F::service(vip, about.source_port) {
        Ok(service) => service,
        Err(Reason::NotService) if nat::is_reply::<F>(client, about.destination_port) => {
            return Ok((Reason::NotService, TRANSLATED));
        }
        Err(reason) => return Err(reason),
    };
    if nat::is_on::<F>() && maps::translates(service) {
        return Ok((Reason::NotService, TRANSLATED));
    }
    tally.bytes = about.bytes();
    tally.service(service);
    let id = flow::concerned::<F>(service, client, about.destination_port);
    let (backend, state) = to_backend(id, tally)?;
    if state.is_local() {
        let action = local::give_error::<F>(ctx, &about, backend);
        return match action {
            Ok(action) => Ok((Reason::ErrorRelayed, action)),
            Err(_) => Err(Reason::ErrorUnrelayed),
        };
    }
    let message = Segment::of_message(network, about.length, about.destination_port);
    // No error is answered with an error (RFC 1122, section 3.2.2).
    let action =
        forward::forward::<F>(ctx, &message, backend, state).map_err(|_| Reason::ErrorUnrelayed)?;
    Ok((Reason::ErrorRelayed, action))
}

/// The backend of this id, if it can be told of an error.
#[inline(always)]
pub(crate) fn to_backend(
    id: u32,
    tally: &mut Tally,
) -> Result<(*const Backend, BackendState), Reason> {
    if id == 0 {
        return Err(Reason::ErrorUnrelayed);
    }
    tally.backend(id);
    let (backend, state) = maps::backend(id).ok_or(Reason::ErrorUnrelayed)?;
    if state.is_resolved() && !matches!(state.serving(), Serving::None) {
        Ok((backend, state))
    } else {
        Err(Reason::ErrorUnrelayed)
    }
}
