//! What becomes of a packet from a client to a VIP, and why: found out by running the real program with a packet that is built for the
//! purpose, and told with what the maps say of everything on its way. Nothing is changed by that.
//!
//! * [`packet`][]: the packet, and what comes of it; pure
//! * [`state`][]: slots and entries, from the maps
//! * [`guard`][]: what the service's guard says
//! * [`stages`][]: answers and reasons in words; pure

mod guard;
mod packet;
mod stages;
mod state;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    fmt::Debug,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::{
    backend::Mode,
    flow::word::Word,
    net::IpVersion,
    tcp::{ACK, FIN, RST, SYN},
    verdict::Verdict,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::{
    guard::{GuardFacts, SourceFacts},
    packet::{Outer, Sent, flags_of},
    stages::Stage,
    state::{EntryFacts, SlotFacts},
};
use self::{packet::Built, state::Key};
use crate::{
    chain::chain,
    dataplane::{
        kernel::{
            Rehearsals, Rehearsed,
            bpf::{XDP_PASS, XDP_REDIRECT, XDP_TX},
            device,
        },
        maps::{self, Maps},
    },
    inventory::{Ids, Names},
    model::Suspension,
    status::{BackendStatus, ServiceStatus, Status, schema},
};

/// The most data that a packet may be built with, in bytes: what a frame of 3,500 bytes has room for, about the longest that the kernel takes.
pub const MOST_PAYLOAD: u16 = 3_400;

/// The packet that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who sends it.
    pub client: SocketAddr,
    /// What it is for.
    pub vip: SocketAddr,
    /// Its flags; none is what the flow's entry makes likely: ACK if there is one, else SYN.
    pub flags: Option<u8>,
    /// Its sequence number; none is one that the flow's entry takes.
    pub seq: Option<u32>,
    /// Bytes of data.
    pub payload: u16,
    /// The interface that it comes in by; none is the first that the program is attached to.
    pub interface: Option<String>,
}

/// Why there is no explanation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The question means nothing.
    #[error("{0}")]
    Question(String),
    /// The program could not be run.
    #[error("{0}")]
    Rehearsal(String),
}

/// Runs the program without consequences.
pub trait Rehearse: Send + Sync + Debug {
    /// Runs it with a frame that comes in by an interface, given by its name; also gives the maps with what it has recorded.
    ///
    /// # Errors
    /// In words for people.
    fn rehearse(
        &self,
        version: IpVersion,
        interface: &str,
        frame: &[u8],
    ) -> Result<(Rehearsed, Arc<Maps>), String>;
}

impl Rehearse for Rehearsals {
    fn rehearse(
        &self,
        version: IpVersion,
        interface: &str,
        frame: &[u8],
    ) -> Result<(Rehearsed, Arc<Maps>), String> {
        let index = device::index(interface)
            .ok_or_else(|| format!("there is no interface {interface:?}; `ip link` lists them"))?;
        let rehearsal = self.prepare(version).map_err(|error| chain(&error))?;
        let rehearsed = rehearsal.run(index, frame).map_err(|error| chain(&error))?;
        Ok((rehearsed, rehearsal.maps()))
    }
}

/// The packet that was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PacketFacts {
    /// Who sends it.
    #[schema(value_type = String)]
    pub client: SocketAddr,
    /// What it is for.
    #[schema(value_type = String)]
    pub vip: SocketAddr,
    /// Its flags.
    pub flags: Vec<String>,
    /// Its sequence number.
    pub seq: u32,
    /// Its length in bytes, from the Ethernet header on.
    pub bytes: usize,
    /// The interface that it comes in by.
    pub interface: String,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerdictFacts {
    /// The reason, as metrics and `tether status` name it.
    pub reason: String,
    /// What that means.
    pub meaning: String,
    /// What is done with it: `pass`, `forward`, `reset`, `answer` or `drop`.
    pub verdict: String,
}

/// The service that it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceFacts {
    /// Its name.
    pub name: String,
    /// VIP and port.
    #[schema(value_type = String)]
    pub endpoint: SocketAddr,
    /// Its mode.
    #[schema(schema_with = schema::mode)]
    pub mode: Mode,
    /// Whether it is only there for the flows it has.
    pub removed: bool,
    /// Whether all active backends take new flows, since too few are usable.
    pub fail_open: bool,
    /// Whether all usable backends have as many connections as they may.
    pub full: bool,
    /// Why dead backends' clients are not told, if they are not.
    pub resets_suspended: Option<Suspension>,
    /// Why it is not served as configured, if it is not.
    pub error: Option<String>,
}

/// What becomes of a packet, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The packet.
    pub packet: PacketFacts,
    /// What becomes of it.
    pub verdict: VerdictFacts,
    /// Each stage's answer, in the order of the packet's way.
    pub stages: Vec<Stage>,
    /// The service.
    pub service: Option<ServiceFacts>,
    /// What the service's guard says to the client, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<GuardFacts>,
    /// The backend that the client keeps, as SERVICE/BACKEND, if the service places clients: a new flow goes there while that takes new flows, whatever
    /// the table says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// The slots of its table that a new flow would look at, in order.
    pub slots: Vec<SlotFacts>,
    /// The flow's entries, as they are.
    pub entries: Vec<EntryFacts>,
    /// The flow's entries, as they would be after the packet.
    pub entries_after: Vec<EntryFacts>,
    /// Name of the service of the backend.
    pub backend_of: Option<String>,
    /// The backend that the packet goes to, or would, as the status has it.
    pub backend: Option<BackendStatus>,
    /// The frame that leaves, if one does; or that a backend on this host gets by the host's stack.
    pub sent: Option<Sent>,
}

/// Explains what becomes of a packet.
///
/// # Errors
/// When the question means nothing, or the program cannot be run.
pub fn explain(
    question: &Question,
    maps: &Maps,
    status: &Status,
    program: &dyn Rehearse,
) -> Result<Explanation, Error> {
    let version = IpVersion::of(question.vip.ip());
    check(question)?;
    let interface = match &question.interface {
        Some(name) => name.clone(),
        None => status
            .attachments
            .first()
            .map(|attachment| attachment.interface.clone())
            .ok_or_else(|| {
                Error::Question(
                    "the program is attached to no interface (`tether status` says more); name the one that the packet would come in by".into(),
                )
            })?,
    };
    let names = Names::of(maps, status);
    let seed = maps.instance.get(0).flow_seed;
    let service = status
        .services
        .iter()
        .filter(|service| (service.vip, service.port) == at(question.vip))
        .min_by_key(|service| service.removed);
    let key = service
        .and_then(|service| Ids::of(maps).service(service))
        .map(|id| Key::new(question.client, id));
    let now = maps::now();
    let found = key.map(|key| state::entries(maps, &names, &seed, key, now));
    let found = found.unwrap_or_default();

    let built = build(question, &found);
    let frame = built.frame();
    let (rehearsed, after) = program
        .rehearse(version, &interface, &frame)
        .map_err(Error::Rehearsal)?;
    let backend = rehearsed.backend.and_then(|id| {
        let generation = maps.state(id).generation();
        names.backend(lb_common::flow::word::BackendRef::new(id, generation))
    });
    let entries_after = match key {
        Some(key) => state::entries(&after, &names, &seed, key, now),
        None => Vec::new(),
    };
    let mut explanation = Explanation {
        packet: PacketFacts {
            client: question.client,
            vip: question.vip,
            flags: packet::names_of(built.flags),
            seq: built.seq,
            bytes: frame.len(),
            interface: interface.clone(),
        },
        verdict: VerdictFacts {
            reason: rehearsed.reason.name().into(),
            meaning: rehearsed.reason.meaning().into(),
            verdict: rehearsed.reason.verdict().name().into(),
        },
        stages: Vec::new(),
        service: service.map(service_facts),
        guard: key.and_then(|key| {
            let guard = service?.guard.as_ref()?;
            let (client, now_ns) = (question.client.ip(), maps::now_ns());
            let id = key.service();
            Some(guard::facts(maps, &seed, guard, client, id, now_ns))
        }),
        kept: key.and_then(|key| state::kept(maps, &names, &seed, key)),
        slots: key
            .map(|key| state::slots(maps, &names, key, now))
            .unwrap_or_default(),
        entries: found.into_iter().map(|(facts, _)| facts).collect(),
        entries_after: entries_after.into_iter().map(|(facts, _)| facts).collect(),
        backend_of: backend.map(|(service, _)| service.name.clone()),
        backend: backend.map(|(_, backend)| backend.clone()),
        sent: left_by(&rehearsed, maps, &interface)
            .and_then(|interface| packet::read(&rehearsed.frame, interface)),
    };
    explanation.stages = stages::stages(question, &explanation, status, &rehearsed);
    Ok(explanation)
}

fn check(question: &Question) -> Result<(), Error> {
    let (client, vip) = (question.client.ip(), question.vip.ip());
    let wrong = |text: String| Err(Error::Question(text));
    if IpVersion::of(client) != IpVersion::of(vip) {
        return wrong(format!(
            "{client} and {vip} are of different versions of IP: no packet is from the one to the other"
        ));
    }
    if client.is_unspecified() || client.is_multicast() {
        return wrong(format!("no packet is from {client}"));
    }
    if question.payload > MOST_PAYLOAD {
        return wrong(format!(
            "{} bytes of data are too many: {MOST_PAYLOAD} at most",
            question.payload
        ));
    }
    Ok(())
}

fn at(endpoint: SocketAddr) -> (IpAddr, u16) {
    (endpoint.ip(), endpoint.port())
}

/// The packet, such that the flow's entry takes it, unless it is asked for otherwise.
fn build(question: &Question, found: &[(EntryFacts, Word)]) -> Built {
    let entry = found
        .iter()
        .map(|(_, word)| *word)
        .min_by_key(|word| word.is_nascent());
    let flags = question
        .flags
        .unwrap_or(if entry.is_some() { ACK } else { SYN });
    let likely = match entry {
        // The same SYN again; and what follows it.
        Some(word) if word.is_nascent() && flags & SYN != 0 => word.isn(),
        Some(word) if word.is_nascent() => word.isn().wrapping_add(1),
        Some(word) if flags & (ACK | FIN | RST) != 0 => word.epoch() << 20,
        _ => 1 << 20,
    };
    Built {
        client: question.client,
        vip: question.vip,
        flags,
        seq: question.seq.unwrap_or(likely),
        payload: question.payload,
    }
}

/// Whether this host's stack gets a frame for a backend on this host, and not as one that the program has nothing to do with.
fn is_given(rehearsed: &Rehearsed) -> bool {
    rehearsed.action == XDP_PASS && rehearsed.reason.verdict() == Verdict::Forward
}

/// The interface that a frame leaves by, if it leaves; the one that it has come in by, if a backend on this host gets it.
fn left_by(rehearsed: &Rehearsed, maps: &Maps, ingress: &str) -> Option<String> {
    match rehearsed.action {
        XDP_TX => Some(ingress.to_owned()),
        XDP_REDIRECT => {
            let id = rehearsed.backend?;
            let hop = maps.backends.get(id).hops[maps.state(id).hop()];
            Some(device::name(hop.ifindex))
        }
        _ if is_given(rehearsed) => Some(ingress.to_owned()),
        _ => None,
    }
}

fn service_facts(service: &ServiceStatus) -> ServiceFacts {
    ServiceFacts {
        name: service.name.clone(),
        endpoint: SocketAddr::new(service.vip, service.port),
        mode: service.mode,
        removed: service.removed,
        fail_open: service.fail_open,
        full: service.full,
        resets_suspended: service.resets_suspended,
        error: service.error.clone(),
    }
}
