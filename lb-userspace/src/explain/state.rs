//! What the maps say of a flow: its service's slots for it, and its entries.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    backend::Serving,
    clock::{Tick, seconds},
    flow::{
        FlowKey as _,
        bucket::WAYS,
        v4, v6,
        word::{BackendRef, EMBRYO_TICK_BITS, Word},
    },
    hash::Seed,
    maglev::{PICK_ATTEMPTS, TableRef, slot_index},
    net::Address,
    service::Service,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    dataplane::{maps::Maps, table::TableKey},
    flows::{affinity, judge},
    inventory::{FlowState, Names},
};

/// A slot of the service's table that the flow comes by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlotFacts {
    /// Its number in the table.
    pub slot: u32,
    /// Slots in the table.
    pub of: u32,
    /// The backend that has it, as SERVICE/BACKEND; none is nobody.
    pub current: Option<String>,
    /// The backend that had it before.
    pub previous: Option<String>,
    /// Seconds since that changed: since the table was first made, or longer, if there is no previous one.
    pub changed_s: u64,
    /// Whether packets in mid-stream of flows without an entry still go to the previous one.
    pub hands_over: bool,
    /// Whether the one that has it takes new flows. One that does not is passed over for the next slot, four times at most.
    pub takes_new: bool,
}

/// An entry of the flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EntryFacts {
    /// Its state.
    pub state: FlowState,
    /// The backend that it names, as SERVICE/BACKEND; none if that is not known any more.
    pub backend: Option<String>,
    /// Seconds since its client first answered, or it was adopted; of an embryo or challenger, since its SYN.
    pub age_s: Option<u64>,
    /// Seconds since its last packet; of a young flow, at most so many.
    pub idle_s: u64,
    /// Whether it was adopted in mid-stream.
    pub adopted: bool,
    /// Whether a second connection from the client's port contests it.
    pub contested: bool,
    /// Whether today's table would send the flow elsewhere.
    pub exception: bool,
    /// Mode `nat`: the SNAT address and port in the client's place.
    #[schema(value_type = Option<String>)]
    pub snat: Option<SocketAddr>,
}

/// A flow's key, in one version of IP.
#[derive(Clone, Copy, Debug)]
pub(super) enum Key {
    V4(v4::Key),
    V6(v6::Key),
}

impl Key {
    pub(super) fn new(client: SocketAddr, service: u16) -> Self {
        match client.ip() {
            IpAddr::V4(address) => {
                Self::V4(v4::Key::new(address.to_bits(), client.port(), service))
            }
            address @ IpAddr::V6(_) => {
                let words = Address::from(address).words();
                Self::V6(v6::Key::new(words, client.port(), service))
            }
        }
    }

    pub(super) fn service(self) -> u16 {
        match self {
            Self::V4(key) => key.service(),
            Self::V6(key) => key.service(),
        }
    }

    /// What decides the slot in the table of the key's service.
    fn client_word(self, service: &Service) -> u64 {
        let (affinity, seed) = (service.affinity, &service.seed);
        match self {
            Self::V4(key) => key.placed_by(affinity).client_word(seed),
            Self::V6(key) => key.placed_by(affinity).client_word(seed),
        }
    }
}

/// Names of backends, for people.
pub(super) fn name_of(names: &Names<'_>, backend: BackendRef) -> Option<String> {
    let (service, backend) = names.backend(backend)?;
    Some(format!("{}/{}", service.name, backend.name))
}

/// The slots that a new flow looks at, in order: up to the first whose backend takes it.
pub(super) fn slots(maps: &Maps, names: &Names<'_>, key: Key, now: Tick) -> Vec<SlotFacts> {
    let service = maps.services.get(u32::from(key.service()));
    let table = TableRef(service.table);
    if table.size() == 0 {
        return Vec::new();
    }
    let word = key.client_word(&service);
    let named = |id: u32| {
        let holder = BackendRef::new(id, maps.state(id).generation());
        (id != 0).then(|| name_of(names, holder)).flatten()
    };
    let mut all = Vec::new();
    for attempt in 0..PICK_ATTEMPTS {
        let index = slot_index(word, &service.seed, attempt, table.size());
        let slot = maps.tables.get(table.offset() + index);
        let state = maps.state(slot.current());
        let takes_new = slot.current() != 0 && state.serving() == Serving::New;
        all.push(SlotFacts {
            slot: index,
            of: table.size(),
            current: named(slot.current()),
            previous: named(slot.previous()),
            changed_s: seconds(slot.age(now)),
            hands_over: slot.handing_over(now) != 0,
            takes_new,
        });
        if takes_new {
            break;
        }
    }
    all
}

/// The backend that the client keeps at the service, as SERVICE/BACKEND; none if it keeps none, or the service places each flow for itself.
pub(super) fn kept(maps: &Maps, names: &Names<'_>, seed: &Seed, key: Key) -> Option<String> {
    let service = key.service();
    if maps.services.get(u32::from(service)).affinity == 0 {
        return None;
    }
    let client = match key {
        Key::V4(key) => key.client_address(),
        Key::V6(key) => key.client_address(),
    };
    name_of(names, affinity::kept(maps, seed, client, service)?)
}

/// The entries of a flow, as they are found by who looks for one: each with its value.
pub(super) fn entries(
    maps: &Maps,
    names: &Names<'_>,
    seed: &Seed,
    key: Key,
    now: Tick,
) -> Vec<(EntryFacts, Word)> {
    let pick = pick(maps, key);
    match key {
        Key::V4(key) => entries_of(maps, names, seed, key, pick, now),
        Key::V6(key) => entries_of(maps, names, seed, key, pick, now),
    }
}

/// The backend that the table gives for a flow, if it takes it.
fn pick(maps: &Maps, key: Key) -> Option<u32> {
    let service = maps.services.get(u32::from(key.service()));
    let table = TableRef(service.table);
    let word = key.client_word(&service);
    (table.size() != 0).then(|| {
        let index = slot_index(word, &service.seed, 0, table.size());
        maps.tables.get(table.offset() + index).current()
    })
}

fn entries_of<K: TableKey>(
    maps: &Maps,
    names: &Names<'_>,
    seed: &Seed,
    key: K,
    pick: Option<u32>,
    now: Tick,
) -> Vec<(EntryFacts, Word)> {
    let table = K::table(maps);
    let mut homes = table.homes(key, seed).to_vec();
    homes.dedup();
    let places = homes
        .into_iter()
        .flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)));
    places
        .filter_map(|place| {
            let (found, word) = table.read(place)?;
            if found != key {
                return None;
            }
            let since = table.facts().get(place.0).first_seen[place.1 as usize];
            let translation = table.translation(place, key, word, seed);
            let snat = translation
                .filter(|translation| translation.pair() != 0)
                .map(|translation| {
                    let pair = maps.pairs.get(u32::from(translation.pair()));
                    SocketAddr::new(pair.address.into(), translation.port())
                });
            let idle = if word.is_nascent() {
                judge::just_now(word.nascent_age(now), EMBRYO_TICK_BITS)
            } else {
                judge::age(word, now)
            };
            let age = if word.is_nascent() {
                Some(idle)
            } else {
                (since != 0).then(|| now.0.saturating_sub(since))
            };
            let facts = EntryFacts {
                state: FlowState::of(word)?,
                backend: name_of(names, word.backend()),
                age_s: age.map(seconds),
                idle_s: seconds(idle),
                adopted: word.is_live() && word.has(Word::FOREIGN),
                contested: word.is_live() && word.has(Word::CONTESTED),
                exception: pick.is_some_and(|pick| pick != word.backend().id()),
                snat,
            };
            Some((facts, word))
        })
        .collect()
}
