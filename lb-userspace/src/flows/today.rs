//! What today's tables say about a flow: computed as the data path does, from the same memory.

use std::sync::atomic::Ordering;

use lb_common::{
    backend::{BackendState, Serving},
    clock::Tick,
    flow::{FlowKey, word::Word},
    hash::Seed,
    maglev::{Slot, TableRef, slot_index},
    service::Service,
};

use super::judge::Today;
use crate::dataplane::maps::Maps;

/// The pick of a flow: the backend that its service's table names today. None without a service, a table or an owner of the slot.
pub fn pick_of(maps: &Maps, key: impl FlowKey) -> Option<u32> {
    slot_of(maps, key).map(Slot::current).filter(|&id| id != 0)
}

/// The slot of a flow in its service's table, at the first attempt.
pub fn slot_of(maps: &Maps, key: impl FlowKey) -> Option<Slot> {
    const SEED: usize = std::mem::offset_of!(Service, seed) / 8;
    const _: () = assert!(std::mem::offset_of!(Service, table) == 0);
    const AFFINITY: usize = std::mem::offset_of!(Service, affinity);
    let service = u32::from(key.service());
    if service >= maps.services.len() {
        return None;
    }
    let words = maps.services.words(service);
    let affinity = words[AFFINITY / 8].load(Ordering::Relaxed) >> (AFFINITY % 8 * 8);
    let table = TableRef(words[0].load(Ordering::Acquire));
    if table.size() == 0 {
        return None;
    }
    let seed = Seed {
        whiten: words[SEED].load(Ordering::Relaxed),
        first: words[SEED + 1].load(Ordering::Relaxed),
        second: words[SEED + 2].load(Ordering::Relaxed),
    };
    let client = key.placed_by(affinity as u16).client_word(&seed);
    let at = slot_index(client, &seed, 0, table.size());
    let index = table.offset().checked_add(at)?;
    (index < maps.tables.len()).then(|| Slot(maps.tables.word(index, 0).load(Ordering::Acquire)))
}

/// Pick, and where an unknown mid-stream packet of an entry's flow would go (as [`lb_common::flow::steer`] has it: the previous backend during the
/// handover, else the current one, if it serves anything). One of a flow that is translated, or that is with a backend on this host, goes nowhere:
/// how to translate what the backend sends is known by the entry alone.
pub fn today(maps: &Maps, key: impl FlowKey, word: Word, now: Tick) -> Today {
    let Some(slot) = slot_of(maps, key) else {
        return Today::default();
    };
    let serves =
        |id: u32| id != 0 && id < maps.backends.len() && maps.state(id).serving() != Serving::None;
    let needs_its_entry =
        state_of(maps, word).is_some_and(|state| state.translates() || state.is_local());
    let recomputed = [slot.handing_over(now), slot.current()]
        .into_iter()
        .find(|&id| serves(id) && !needs_its_entry)
        .unwrap_or(0);
    Today {
        pick: slot.current(),
        recomputed,
    }
}

/// Whether an entry is to be forgotten, since its backend is dead and its flow is to go elsewhere.
pub fn is_forgotten(maps: &Maps, word: Word) -> bool {
    state_of(maps, word).is_some_and(BackendState::forgets)
}

/// Whether an entry's flow is translated: then it has a translation beside it, or is given one with its next packet.
pub fn is_translated(maps: &Maps, word: Word) -> bool {
    state_of(maps, word).is_some_and(BackendState::translates)
}

/// Since when all flows of an entry's backend are closed, at a deadline; none if they are not, or the entry is another backend's.
pub fn closed(maps: &Maps, word: Word) -> Option<Tick> {
    state_of(maps, word)?.all_closed_since()
}

/// Whether the turn of a flow with this first home, in a table of so many buckets, has come at its backend's deadline.
pub fn is_due(maps: &Maps, home: u32, buckets: u32, word: Word) -> bool {
    state_of(maps, word)
        .is_some_and(|state| state.serving() != Serving::None && state.closes(home, buckets))
}

/// The state of an entry's backend, if its id is still that backend's.
fn state_of(maps: &Maps, word: Word) -> Option<BackendState> {
    let reference = word.backend();
    if reference.id() >= maps.backends.len() {
        return None;
    }
    let state = maps.state(reference.id());
    (state.generation() == reference.generation()).then_some(state)
}
