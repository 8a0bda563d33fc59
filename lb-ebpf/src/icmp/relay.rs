//! Errors about packets that a backend has sent from a VIP: routers and clients tell the VIP, and the backend has to know. A path MTU, first of all.

use aya_ebpf::programs::XdpContext;
use lb_common::{backend::Serving, headers::ICMP_LEN, verdict::Reason};

use lb_ebpf::packet::Frame;

use super::Message;
use crate::{
    count::Tally,
    family::Family,
    flow, forward, maps,
    parse::{Ends, Segment},
};

/// Sends the message on to the backend of the flow whose packet it quotes. Eight bytes of TCP are enough. Ends in the XDP action.
#[inline(always)]
pub(super) fn relay<F: Family>(
    ctx: &XdpContext,
    network: usize,
    message: &Message<F>,
    tally: &mut Tally,
) -> Result<u32, Reason> {
    let quote = network + message.header_len + ICMP_LEN;
    let ip = Frame::of(ctx).at(quote, F::LEN).ok_or(Reason::NotService)?;
    // What was sent from the VIP to a client.
    let Ends {
        source: vip,
        destination: client,
    } = F::ends(ip);
    if vip != message.ends.destination {
        return Err(Reason::NotService);
    }
    let tcp = F::quoted_tcp(ctx, quote).ok_or(Reason::NotService)?;
    let ports = Frame::of(ctx)
        .at(quote + tcp, 4)
        .ok_or(Reason::NotService)?;
    let (port, client_port) = (ports.u16(0), ports.u16(2));
    let service = F::service(vip, port)?;
    tally.bytes = network as u32 + message.length;
    tally.service(service);
    let id = flow::concerned::<F>(service, client, client_port);
    if id == 0 {
        return Err(Reason::ErrorUnrelayed);
    }
    tally.backend(id);
    let (backend, state) = maps::backend(id).ok_or(Reason::ErrorUnrelayed)?;
    if !state.is_resolved() || matches!(state.serving(), Serving::None) {
        return Err(Reason::ErrorUnrelayed);
    }
    let message = Segment::of_message(network, message.length, client_port);
    // No error is answered with an error (RFC 1122, section 3.2.2).
    forward::forward::<F>(ctx, &message, backend, state).map_err(|_| Reason::ErrorUnrelayed)
}
