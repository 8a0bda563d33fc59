//! The flow that a client has at an endpoint, if the backend there knows it by the client's own address and port: in mode `dnat`, or on this host.

use lb_common::{
    flow::table::Look,
    nat::{DNAT_SERVICES, Endpoint, slot_of},
};

use crate::{family::Family, flow, maps, parse::Parse};

/// The flow of mode `dnat`, or to a backend on this host, that a client's address and port has at an endpoint, by any of its services but one
/// (0 is none): what its slot would hold, or 0. Of two the one that `opens`, if that is wanted.
#[inline(always)]
pub(crate) fn of_service<F: Family>(
    record: *const Endpoint,
    endpoint: u32,
    (client, port): (<F as Parse>::Address, u16),
    but: u32,
    opens: bool,
) -> u32 {
    let mut index = 0;
    while index < DNAT_SERVICES {
        // SAFETY: an entry of the map, and one of the services that it has.
        let service = unsafe { maps::id_at(core::ptr::addr_of!((*record).services).cast(), index) };
        index += 1;
        if service != 0 && service as u32 != but {
            let slot = at_endpoint::<F>(client, port, service, endpoint, opens);
            if slot != 0 {
                return slot;
            }
        }
    }
    0
}

/// The flow of a client at a service, if it has an entry whose backend is at an endpoint: what its slot would hold, or 0. Of two the one that
/// `opens`, if that is wanted.
#[inline(always)]
pub(crate) fn at_endpoint<F: Family>(
    client: <F as Parse>::Address,
    port: u16,
    service: u16,
    endpoint: u32,
    opens: bool,
) -> u32 {
    let [first, second] = F::as_words(client);
    let rest = ((port as u32) << 16) | service as u32;
    look::<F>(first, second, rest, endpoint | (opens as u32 * OPENS))
}

/// Beside the id of an endpoint: an embryo or a challenger is looked for first.
const OPENS: u32 = 1 << 31;

/// By value, and a function of its own: see [`at_endpoint`].
#[inline(never)]
fn look<F: Family>(first: u64, second: u64, rest: u32, wish: u32) -> u32 {
    let endpoint = wish & !OPENS;
    let client = F::of_words([first, second]);
    let subject = flow::subject::<F>(F::key(client, (rest >> 16) as u16, rest as u16));
    // What is not to open a flow is of one that is open, if there is one.
    let mut wanted = if wish == endpoint {
        Look::LIVE
    } else {
        Look::NASCENT
    };
    let mut looks = 0;
    while looks < 2 {
        if let Some(found) = flow::look::<F>(&subject, &wanted) {
            let reference = found.word.backend();
            if let Some((backend, state)) = maps::backend(reference.id())
                && state.generation() == reference.generation()
                && maps::endpoint_of(backend) == endpoint
                && !found.word.is_vacant(subject.now)
            {
                return slot_of(found.place);
            }
            // Of a contested key the other may be there.
            wanted = Look::twin_of(&found);
        } else {
            wanted = Look::ANY;
        }
        looks += 1;
    }
    0
}
