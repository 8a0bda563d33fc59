//! Which flow a packet of an endpoint is of.

use lb_common::{
    flow::word::BackendRef,
    nat::{Endpoint, FIRST_PORT, SNAT_ADDRESSES, place_of, ports::Ports as _},
    verdict::Reason,
};

use super::ports::PortMaps;
use crate::{
    family::Family,
    flow::{self, Table},
    maps,
    parse::Parse,
    rewrite::{self, of_service},
};

/// The flow of a packet of an endpoint.
pub(super) struct Found<T: Table> {
    /// The slot of the flow's place.
    pub(super) slot: u32,
    /// Its key.
    pub(super) key: T::Key,
    /// The holder of its backend's id, which is at the endpoint.
    pub(super) reference: BackendRef,
    /// The pair of the endpoint with the address that the packet is for, if that backend is of mode `nat`; else 0.
    pub(super) pair: u16,
}

/// The flow that a packet from an endpoint's address and port is of, which goes to another; [`Reason::NotService`] if it is of none, and
/// [`Reason::Untranslated`] if nobody can tell at this moment. Of two of one client's port it is the one that `opens`, if the packet does.
///
/// Of a flow of mode `nat` the caller is to see whether its translation has the packet's pair and port; if not, [`astray`] says why.
#[inline(always)]
pub(super) fn flow<F: Family>(
    endpoint: u32,
    (address, port): (<F as Parse>::Address, u16),
    (to, to_port): (<F as Parse>::Address, u16),
    opens: bool,
) -> Result<Found<F>, Reason> {
    let record = maps::endpoint(endpoint).ok_or(Reason::NotService)?;
    // SAFETY: an entry of the map. It does not change while the directory names it.
    let (own, own_port) = unsafe {
        (
            rewrite::load::<F>(core::ptr::addr_of!((*record).address)),
            core::ptr::addr_of!((*record).port).read_volatile(),
        )
    };
    if own != address || own_port != port {
        return Err(Reason::NotService);
    }
    let mut pair = pair_with::<F>(record, to);
    let mut slot = 0;
    if pair != 0 && to_port >= FIRST_PORT {
        slot = PortMaps::<F>::NEW.slot(pair, to_port);
    }
    if slot == 0 {
        pair = 0;
        slot = of_service::<F>(record, endpoint, (to, to_port), 0, opens);
    }
    if slot == 0 {
        return Err(Reason::NotService);
    }
    let place = place_of(slot);
    let Some((key, value)) = flow::at::<F>(place) else {
        // A place that a flow leaves for another is never empty, but another's at once.
        return Err(if flow::is_empty::<F>(place) {
            astray::<F>(pair, to_port, slot)
        } else {
            Reason::Untranslated
        });
    };
    let reference = value.backend();
    let (backend, state) = maps::backend(reference.id()).ok_or(Reason::Untranslated)?;
    if state.generation() != reference.generation() || maps::endpoint_of(backend) != endpoint {
        return Err(astray::<F>(pair, to_port, slot));
    }
    // What a backend on this host sends does not come in.
    if state.is_local() {
        return Err(Reason::NotService);
    }
    // Flows of mode `nat` are known by their ports, and no others are.
    if state.is_nat() != (pair != 0) {
        return Err(astray::<F>(pair, to_port, slot));
    }
    Ok(Found {
        slot,
        key,
        reference,
        pair,
    })
}

/// Why a packet is not of the flow whose entry is at the place that a slot names. If the slot of its port still names it, that is an orphan, which does
/// nothing, and the packet is the host's own: a flow that moves has its slot moved before another's entry, or none, is seen where it was.
#[inline(always)]
pub(super) fn astray<T: Table>(pair: u16, port: u16, slot: u32) -> Reason {
    let at = ((pair as u32) << 16) | port as u32;
    if pair != 0 && is_orphan::<T>(at, slot) {
        Reason::NotService
    } else {
        Reason::Untranslated
    }
}

/// By value, and a function of its own, for its stack: see [`astray`].
#[inline(never)]
fn is_orphan<T: Table>(at: u32, slot: u32) -> bool {
    PortMaps::<T>::NEW.slot((at >> 16) as u16, at as u16) == slot
}

/// The pair of an endpoint with a SNAT address; 0 is none.
#[inline(always)]
fn pair_with<F: Family>(record: *const Endpoint, address: <F as Parse>::Address) -> u16 {
    let mut index = 0;
    while index < SNAT_ADDRESSES {
        // SAFETY: an entry of the map, and one of the pairs that it has.
        let id = unsafe { maps::id_at(core::ptr::addr_of!((*record).pairs).cast(), index) };
        if id != 0
            && let Some(pair) = maps::pair(id)
        {
            // SAFETY: an entry of the map. A pair does not change while anything names it.
            let own = unsafe { rewrite::load::<F>(core::ptr::addr_of!((*pair).address)) };
            if own == address {
                return id;
            }
        }
        index += 1;
    }
    0
}
