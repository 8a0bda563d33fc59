//! Backends' entries: what they are to be, and what changes of those that are there.

use std::net::IpAddr;

use lb_common::{
    backend::{Backend, BackendState, Forwarding, NextHop, Serving},
    clock::Tick,
    share::Share,
};

use crate::{
    model::OnDown,
    resolve::{self, Hop},
};

/// Whether an entry is the backend's: all that never changes of it.
pub(super) fn is_entry_of(held: &Backend, service: u16, backend: &resolve::Backend) -> bool {
    let state = BackendState(held.state);
    held.identity == backend.identity
        && IpAddr::from(held.address) == backend.address
        && held.port == backend.port
        && held.service == service
        && state.generation() == backend.numbered.generation
        && state.forwarding() == Some(forwarding(backend))
}

fn forwarding(backend: &resolve::Backend) -> Forwarding {
    Forwarding::new(backend.mode, backend.address)
}

/// The state of a backend whose next hop is the one of this index, and of this [kind](NextHop::kind).
fn state_of(backend: &resolve::Backend, hop: usize, kind: u8, resolved: bool) -> BackendState {
    let state = BackendState::new(
        backend.numbered.generation,
        backend.serving,
        forwarding(backend),
        hop as u8,
        resolved,
    )
    .tagged(kind);
    match (backend.pace, backend.serving, backend.on_down) {
        (Some(pace), ..) => state.pacing(pace.share, pace.since),
        (None, Serving::None, OnDown::Keep) => state.pacing(Share::NONE, Tick(0)),
        (None, Serving::None, OnDown::Rehash) => state.forgetting(),
        (None, ..) => state,
    }
}

/// The entry of a backend that is not there yet.
pub(super) fn new_entry(service: u16, backend: &resolve::Backend) -> Backend {
    let hop = match backend.hop {
        Hop::Resolved(hop) => Some(hop),
        Hop::Unheard | Hop::Unresolved => None,
    };
    let state = state_of(backend, 0, hop.map_or(0, |hop| hop.kind()), hop.is_some());
    Backend {
        state: state.0,
        identity: backend.identity,
        address: backend.address.into(),
        port: backend.port,
        service,
        endpoint: backend.translated.endpoint,
        pairs: backend.translated.pairs,
        hops: [hop.unwrap_or_default(), NextHop::default()],
        ..Backend::default()
    }
}

/// What changes of a backend that is there.
pub(super) struct Change {
    /// A next hop to be written to the copy that `state` names.
    pub(super) write: Option<NextHop>,
    pub(super) state: BackendState,
}

/// What changes of a backend from the entry that is there.
pub(super) fn change_of(held: &Backend, backend: &resolve::Backend) -> Change {
    let old = BackendState(held.state);
    let state = |index, hop: &NextHop, resolved| state_of(backend, index, hop.kind(), resolved);
    let held_hop = &held.hops[old.hop()];
    match backend.hop {
        Hop::Unheard => Change {
            write: None,
            state: state(old.hop(), held_hop, old.is_resolved()),
        },
        Hop::Unresolved => Change {
            write: None,
            state: state(old.hop(), held_hop, false),
        },
        Hop::Resolved(next) if *held_hop == next => Change {
            write: None,
            state: state(old.hop(), held_hop, true),
        },
        Hop::Resolved(next) => Change {
            write: Some(next),
            state: state(1 - old.hop(), &next, true),
        },
    }
}
