//! The contract, as far as one packet after the other can break it: written from the design and the RFCs, and not from the data path.
//!
//! * [`causes`]: whether what a reason says is true
//! * [`ways`]: how packets leave, for a backend and for a client
//! * [`translation`]: whose a translation is, and what comes back by it
//! * [`answers`]: what is sent back to who has sent
//! * `messages`: ICMP
//! * `guards`: whom a guarded service takes flows from
//! * [`checksums`]: what came right leaves right

mod answers;
mod causes;
mod checksums;
mod guards;
mod messages;
mod translation;
mod ways;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use lb_common::{
    backend::Serving,
    tcp::SYN,
    verdict::{Class, Reason, Verdict},
};

use self::{
    answers::{is_complaint, is_reset},
    causes::has_cause,
    guards::{Asking, Guards},
    ways::{leaves_for, translated_for},
};
use super::{
    flows::{Due, FlowId, Flows, Kind},
    reader::{self, Carried, Ip, Seen, Tcp},
    scene::{self, End, Scene, Service, Way},
};
use crate::packet::kernel::action;

/// What was seen of one packet.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The XDP action.
    pub action: u32,
    /// The frame afterwards.
    pub output: Vec<u8>,
    /// For which reasons it was counted, and how often.
    pub reasons: Vec<(Reason, u64)>,
    /// The services that it was counted for.
    pub services: Vec<u32>,
    /// The backends that it was counted for.
    pub backends: Vec<u32>,
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// Which promise.
    pub promise: Promise,
    /// How.
    pub how: String,
}

macro_rules! promises {
    ($($(#[doc = $doc:literal])+ $promise:ident;)+) => {
        /// What is promised of each packet.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Promise {
            $($(#[doc = $doc])+ $promise,)+
        }

        impl Promise {
            /// Every promise.
            pub const ALL: &[Self] = &[$(Self::$promise,)+];
        }
    };
}

promises! {
    /// It is counted for exactly one reason, and for the service and backend that it concerns.
    CountedOnce;
    /// What is done with it is what its reason says.
    VerdictKept;
    /// No reason that should never happen happens.
    Sound;
    /// What is for no VIP, and no part of a steered flow, is left to the host as it was.
    Untouched;
    /// What is for a service is not left to the host.
    Served;
    /// What leaves has right checksums, if what came had: those of what an error quotes among them.
    RightSums;
    /// What leaves goes to a backend of the service, in the service's mode and one hop older, or to the client from the VIP.
    RightWay;
    /// What is encapsulated for a backend is so as from one address for each flow, whatever varies of that between flows.
    OwnSource;
    /// A flow keeps its backend.
    KeptBackend;
    /// A new flow goes to a backend that may take it.
    MayTake;
    /// Nothing is refused without the cause that its reason names.
    Cause;
    /// A translation is of one flow of an endpoint at a time, and a flow keeps its own.
    OwnTranslation;
    /// What the backend of a translated flow sends goes to the client of that flow, from the flow's VIP.
    ToItsClient;
    /// What a router says of what was translated is told to who has sent it.
    Heard;
    /// All flows of a client that begin at a service which places clients go to one backend: the one that the client keeps, if that may take them.
    Placed;
    /// Nobody gets a flow whom the lists of a guarded service refuse, or whose source has or owes what it may.
    Guarded;
    /// A flow that has an entry is none of its service's guard's business, whatever that asks meanwhile.
    Spared;
    /// What becomes of packets is the same whether what clients send again is counted or not.
    Alike;
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.how)
    }
}

fn breach<T>(promise: Promise, how: impl Into<String>) -> Result<T, Breach> {
    let how = how.into();
    Err(Breach { promise, how })
}

fn ensure(holds: bool, promise: Promise, how: impl FnOnce() -> String) -> Result<(), Breach> {
    if holds {
        Ok(())
    } else {
        breach(promise, how())
    }
}

/// Judges what comes of packets, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    flows: Flows,
    /// Backends whose ids have got other holders: entries may still name the former ones.
    renewed: BTreeSet<u32>,
    /// Which backend clients keep.
    kept: BTreeMap<IpAddr, u32>,
    /// Where clients' flows have begun since anything has changed.
    placed: BTreeMap<IpAddr, u32>,
    /// As from where flows' segments are encapsulated for backends.
    sources: BTreeMap<(FlowId, u32), IpAddr>,
    guards: Guards,
}

impl Judge {
    /// So many ticks pass.
    pub fn age(&mut self, ticks: u32) {
        self.flows.age();
        self.guards.age(ticks);
    }

    /// A backend or a table has changed: clients may be placed elsewhere.
    pub fn changed(&mut self) {
        self.placed.clear();
        self.guards.disturb();
    }

    /// What is known of sources is forgotten.
    pub fn forget_sources(&mut self) {
        self.guards.forget();
    }

    /// A backend's id has another holder.
    pub fn renew(&mut self, backend: u32) {
        self.flows.forget(backend);
        self.renewed.insert(backend);
        self.kept.retain(|_, kept| *kept != backend);
    }

    /// A client keeps a backend from now on.
    pub fn keep(&mut self, client: IpAddr, backend: u32) {
        self.kept.insert(client, backend);
    }

    /// Where a flow has left for last, and what that backend takes for its client.
    #[must_use]
    pub fn left(&self, id: &FlowId) -> Option<(u32, End)> {
        self.flows.get(id).left()
    }

    /// Judges what came of a frame.
    ///
    /// # Errors
    /// The first promise that was broken.
    pub fn judge(&mut self, scene: &Scene, frame: &[u8], came: &Observed) -> Result<(), Breach> {
        let [(reason, 1)] = came.reasons[..] else {
            return breach(Promise::CountedOnce, format!("{:?}", came.reasons));
        };
        keeps_verdict(reason, came)?;
        if reason.verdict() == Verdict::Pass {
            ensure(came.output == frame, Promise::Untouched, || {
                format!("passed for {}, and changed", reason.name())
            })?;
        }
        let may_be_stale = reason == Reason::StaleGeneration && !self.renewed.is_empty();
        ensure(
            reason.class() != Class::ShouldNeverHappen || may_be_stale,
            Promise::Sound,
            || reason.name().into(),
        )?;
        let seen = reader::read(frame);
        let Some(ip) = &seen.ip else {
            return passes(reason, "no packet of IP");
        };
        if let Carried::Tcp(tcp) = ip.carried
            && let Some(service) = scene.service_at(ip.destination, tcp.destination)
        {
            return self.segment(scene, &seen, ip, &tcp, service, reason, came);
        }
        self.guards.disturb();
        match ip.carried {
            Carried::Tcp(tcp) => match scene.endpoint_at(ip.source, tcp.source) {
                Some(endpoint) => self.reply(scene, (&seen, ip, &tcp), endpoint, reason, came),
                None => passes(reason, "for no service"),
            },
            Carried::LaterFragment if scene::is_only_vip(ip.destination) => {
                ensure(reason == Reason::Fragment, Promise::Served, || {
                    format!("a fragment for a VIP ends as {}", reason.name())
                })
            }
            Carried::Icmp(at) => self.message(scene, &seen, ip, at, reason, came),
            _ => passes(reason, "no segment"),
        }
    }

    /// A TCP segment for a service.
    #[expect(
        clippy::too_many_arguments,
        reason = "what came, what it was, and what it led to"
    )]
    fn segment(
        &mut self,
        scene: &Scene,
        seen: &Seen<'_>,
        ip: &Ip<'_>,
        tcp: &Tcp,
        service: &'static Service,
        reason: Reason,
        came: &Observed,
    ) -> Result<(), Breach> {
        ensure(reason.verdict() != Verdict::Pass, Promise::Served, || {
            format!(
                "for service {}, and passed for {}",
                service.id,
                reason.name()
            )
        })?;
        counted_service(service, came)?;
        let id = (ip.source, tcp.source, service.id);
        let flow = self.flows.get(&id);
        let asking = Asking {
            id,
            flow: &flow,
            tcp,
        };
        self.guards.has_cause(scene, asking, reason)?;
        has_cause((scene, &self.flows), (&id, service), ip, tcp, reason, came)?;
        if let (false, [backend]) = (reason.verdict() == Verdict::Forward, &came.backends[..]) {
            let kind = Kind::of(service, *backend);
            self.flows.concerned(id, tcp, *backend, kind);
            let node = scene.node(*backend);
            if node.is_some_and(|node| node.serving == Serving::None) && tcp.flags & SYN == 0 {
                self.flows.refused(id);
            }
        }
        match reason.verdict() {
            Verdict::Forward => {
                let backend = counted_backend(came)?;
                let source = if scene::way_to(backend).translates() {
                    translated_for(scene, seen, ip, tcp, backend, came)?
                } else {
                    if let Some(outer) = leaves_for(scene, seen, ip, backend, came)? {
                        self.has_own_source(id, backend, outer)?;
                    }
                    (ip.source, tcp.source)
                };
                self.forwarded(scene, (id, service), tcp, reason, (backend, source))?;
            }
            Verdict::Reset => {
                self.lost_nothing(scene, &id, tcp, reason)?;
                is_reset(seen, ip, tcp, came)?;
            }
            Verdict::Answer => {
                let backend = came.backends.first();
                let outer = backend.and_then(|id| scene::outer_of(*id));
                let room = scene::MTU - outer.map_or(0, |outer| outer.length);
                is_complaint(seen, ip, tcp, reason, came, |mtu| mtu == room)?;
            }
            _ => self.lost_nothing(scene, &id, tcp, reason)?,
        }
        self.guards.came(scene, asking, reason)
    }

    /// Whether a flow's segment is encapsulated for a backend as from where the others were: receivers keep in order what has one source.
    fn has_own_source(&mut self, id: FlowId, backend: u32, source: IpAddr) -> Result<(), Breach> {
        let own = *self.sources.entry((id, backend)).or_insert(source);
        ensure(source == own, Promise::OwnSource, || {
            format!("to backend {backend} as from {source}, and from {own} before")
        })
    }

    /// A segment that was sent on, to a backend that takes its client for `source`.
    fn forwarded(
        &mut self,
        scene: &Scene,
        (id, service): (FlowId, &Service),
        tcp: &Tcp,
        reason: Reason,
        (backend, source): (u32, End),
    ) -> Result<(), Breach> {
        let flow = self.flows.get(&id);
        let Some(node) = scene.node(backend).copied() else {
            return breach(Promise::RightWay, format!("backend {backend} is none"));
        };
        let is_of = scene::service_of(backend).is_some_and(|own| own.id == service.id);
        ensure(is_of, Promise::RightWay, || {
            format!("for service {}, went to backend {backend}", service.id)
        })?;
        let kind = Kind::of(service, backend);
        if tcp.flags & SYN != 0 {
            self.opens(scene, (id, service), tcp, reason, (backend, source))?;
            self.flows.left_for(id, tcp, backend, source, kind);
            return Ok(());
        }
        let dead = node.serving == Serving::None && node.closing.is_none();
        ensure(!dead, Promise::Cause, || {
            format!("sent to backend {backend}, which is dead")
        })?;
        match flow.due(tcp) {
            Due::To(due) => ensure(backend == due, Promise::KeptBackend, || {
                format!("of backend {due}, went to {backend}: {flow:?}")
            })?,
            Due::ToOneOf(these) => ensure(these.contains(&backend), Promise::KeptBackend, || {
                format!("of one of {these:?}, went to {backend}: {flow:?}")
            })?,
            Due::Anywhere => {}
        }
        match reason {
            Reason::Established => {
                ensure(flow.has_seen(backend), Promise::KeptBackend, || {
                    format!("established on backend {backend}, of which nobody knows: {flow:?}")
                })?;
                self.is_own(&id, &flow, tcp, backend, source)?;
                self.flows.passed(id, tcp, backend, false, kind);
            }
            Reason::Adopted => {
                ensure(!flow.is_alive(), Promise::KeptBackend, || {
                    format!("a live flow was adopted: {flow:?}")
                })?;
                let is_nat = scene::way_to(backend) == Way::Nat;
                ensure(!is_nat, Promise::OwnTranslation, || {
                    "adopted, though nobody knows its translation".into()
                })?;
                self.flows.passed(id, tcp, backend, true, kind);
            }
            Reason::Unadopted | Reason::Stray if !scene::way_to(backend).translates() => {
                ensure(!flow.is_alive(), Promise::KeptBackend, || {
                    format!("a live flow was forgotten: {flow:?}")
                })?;
            }
            _ => {
                return breach(
                    Promise::VerdictKept,
                    format!("in mid-stream: {}", reason.name()),
                );
            }
        }
        self.flows.left_for(id, tcp, backend, source, kind);
        Ok(())
    }

    /// A SYN that was sent on.
    fn opens(
        &mut self,
        scene: &Scene,
        (id, service): (FlowId, &Service),
        tcp: &Tcp,
        reason: Reason,
        (backend, source): (u32, End),
    ) -> Result<(), Breach> {
        let flow = self.flows.get(&id);
        let serving = scene
            .node(backend)
            .map_or(Serving::None, |node| node.serving);
        let is_again = flow.had_syn(tcp.seq, backend) && serving != Serving::None;
        ensure(
            serving == Serving::New || is_again,
            Promise::MayTake,
            || format!("a new flow went to backend {backend}, which serves {serving}"),
        )?;
        self.is_own(&id, &flow, tcp, backend, source)?;
        let kind = Kind::of(service, backend);
        match reason {
            Reason::Opened => {
                ensure(!flow.is_alive(), Promise::KeptBackend, || {
                    format!("a live flow was forgotten: {flow:?}")
                })?;
                if service.has_affinity {
                    self.is_placed(scene, id.0, backend)?;
                }
                self.flows.begun_anew(id);
                self.flows.opened(id, tcp.seq, backend, false, kind);
            }
            Reason::Reopened => {
                // What was beside another entry once may be so still, though that is of a flow that has ended or that nobody knows of.
                let challenges = flow.is_alive() || flow.is_contested();
                self.flows.opened(id, tcp.seq, backend, challenges, kind);
            }
            Reason::Challenged => {
                let home = flow.pinned_to().and_then(|home| scene.node(home));
                if home.is_some_and(|node| node.serving == Serving::None || node.closing.is_some())
                {
                    self.flows.displaced(id);
                }
                self.flows.opened(id, tcp.seq, backend, true, kind);
            }
            Reason::Unpinned if !scene::way_to(backend).translates() => {}
            // Beside two entries of its port, one of which has what the backend sends translated.
            Reason::Unpinned if scene::way_to(backend) == Way::Local && flow.has_seen(backend) => {}
            _ => {
                return breach(
                    Promise::VerdictKept,
                    format!("a SYN ended as {}", reason.name()),
                );
            }
        }
        Ok(())
    }

    /// Whether a new flow has begun where its client's flows do.
    fn is_placed(&mut self, scene: &Scene, client: IpAddr, backend: u32) -> Result<(), Breach> {
        let kept = self.kept.get(&client).copied().filter(|kept| {
            scene
                .node(*kept)
                .is_some_and(|node| node.serving == Serving::New && node.resolved)
        });
        let due = kept.unwrap_or_else(|| *self.placed.entry(client).or_insert(backend));
        ensure(backend == due, Promise::Placed, || {
            format!("a flow of {client}, whose flows go to backend {due}, went to {backend}")
        })
    }

    /// A segment that was not sent on: it must not be of a flow that lives on a backend which can serve it, but for the reasons that say
    /// otherwise.
    fn lost_nothing(
        &mut self,
        scene: &Scene,
        id: &FlowId,
        tcp: &Tcp,
        reason: Reason,
    ) -> Result<(), Breach> {
        if tcp.flags & SYN != 0 {
            return Ok(());
        }
        let flow = self.flows.get(id);
        let Due::To(backend) = flow.due(tcp) else {
            return Ok(());
        };
        let Some(node) = scene.node(backend).filter(|_| flow.is_alive()) else {
            return Ok(());
        };
        let is_served = node.serving != Serving::None && node.resolved && node.closing.is_none();
        // The last is only seen where this breaks the rule that an id has no new holder while an entry names it.
        let is_about_the_packet = matches!(
            reason,
            Reason::AnswerLimited | Reason::NoEgress | Reason::BadFlags | Reason::StaleGeneration
        );
        ensure(
            !is_served || is_about_the_packet,
            Promise::KeptBackend,
            || {
                format!(
                    "of backend {backend}, which serves it, and ended as {}",
                    reason.name()
                )
            },
        )
    }
}

fn keeps_verdict(reason: Reason, came: &Observed) -> Result<(), Breach> {
    let fits = match reason.verdict() {
        Verdict::Pass => came.action == action::PASS,
        Verdict::Forward => {
            // To a backend on this host, by its stack; to a client, by the kernel if that has to find a neighbour first.
            let is_back = matches!(reason, Reason::Reply | Reason::ErrorRelayed);
            let is_local = |id: &u32| scene::way_to(*id) == Way::Local;
            matches!(came.action, action::TX | action::REDIRECT)
                || (came.action == action::PASS && (is_back || came.backends.iter().any(is_local)))
        }
        Verdict::Reset | Verdict::Answer => came.action == action::TX,
        Verdict::Drop => came.action == action::DROP,
    };
    ensure(fits, Promise::VerdictKept, || {
        format!("{} with action {}", reason.name(), came.action)
    })
}

fn passes(reason: Reason, what: &str) -> Result<(), Breach> {
    ensure(
        reason.verdict() == Verdict::Pass,
        Promise::Untouched,
        || format!("{what}, and ended as {}", reason.name()),
    )
}

fn counted_backend(came: &Observed) -> Result<u32, Breach> {
    match came.backends[..] {
        [backend] => Ok(backend),
        _ => breach(
            Promise::CountedOnce,
            format!("counted for backends {:?}", came.backends),
        ),
    }
}

fn counted_service(service: &Service, came: &Observed) -> Result<(), Breach> {
    ensure(
        came.services == [u32::from(service.id)],
        Promise::CountedOnce,
        || {
            format!(
                "for service {}, counted for {:?}",
                service.id, came.services
            )
        },
    )
}
