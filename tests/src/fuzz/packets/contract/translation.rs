//! Translations: whose they are, and what comes back by them.

use lb_common::{
    tcp::{RST, SYN},
    verdict::{Reason, Verdict},
};

use super::{
    Breach, Judge, Observed, Promise,
    answers::is_complaint,
    breach, counted_backend, counted_service, ensure, passes,
    ways::{Ends, ends_of, is_translated, leaves_to_client},
};
use crate::{
    fuzz::packets::{
        flows::{Flow, FlowId},
        reader::{self, Carried, Ip, Seen, Tcp},
        scene::{self, Back, End, MTU, Scene, Service, Way},
    },
    packet::kernel::tc_action,
};

impl Judge {
    /// Whether a segment that left for a backend of mode `nat` has left with a translation of its flow's own.
    pub(super) fn is_own(
        &self,
        id: &FlowId,
        flow: &Flow,
        tcp: &Tcp,
        backend: u32,
        source: End,
    ) -> Result<(), Breach> {
        let endpoint = scene::endpoint_of(backend);
        let (Way::Nat, Some(endpoint)) = (scene::way_to(backend), endpoint) else {
            return Ok(());
        };
        if tcp.flags & SYN == 0 {
            ensure(
                flow.may_be(backend, source),
                Promise::OwnTranslation,
                || format!("left as {source:?}, which is not its: {flow:?}"),
            )?;
        } else {
            // What challenges a live flow is another connection.
            ensure(
                flow.translation() != Some((backend, source)),
                Promise::OwnTranslation,
                || format!("another connection left as {source:?} too: {flow:?}"),
            )?;
        }
        let Some(former) = self.flows.holder(endpoint, source).filter(|one| one != id) else {
            return Ok(());
        };
        let theirs = self.flows.get(&former).translation();
        let is_shared = theirs.is_some_and(|(backend, held)| {
            held == source && scene::endpoint_of(backend) == Some(endpoint)
        });
        ensure(!is_shared, Promise::OwnTranslation, || {
            format!("left as {source:?}, as which {former:?} lives")
        })
    }

    /// The flows that live, beyond doubt, at an endpoint which takes their client for `source`.
    pub(super) fn owners(&self, scene: &Scene, endpoint: u32, source: End) -> Vec<FlowId> {
        self.perhaps(scene, endpoint, source)
            .into_iter()
            .filter(|id| {
                let flow = self.flows.get(id);
                let there = |backend| {
                    scene::endpoint_of(backend) == Some(endpoint)
                        && scene::way_to(backend) != Way::Local
                };
                match flow.home() {
                    Some(home) if scene::way_to(home) == Way::Nat => flow
                        .translation()
                        .is_some_and(|(backend, held)| there(backend) && held == source),
                    Some(home) => there(home),
                    None => false,
                }
            })
            .collect()
    }

    /// The flows that are known to have been at an endpoint which takes their client for `source`.
    fn perhaps(&self, scene: &Scene, endpoint: u32, source: End) -> Vec<FlowId> {
        let is_there = |id: &u32| scene::endpoint_of(*id) == Some(endpoint);
        let mut flows: Vec<FlowId> = scene
            .setting()
            .services()
            .iter()
            .filter(|service| service.ids().any(|id| is_there(&id)))
            .filter(|service| service.way != Way::Nat)
            .map(|service| (source.0, source.1, service.id))
            .filter(|id| {
                let flow = self.flows.get(id);
                (1..=scene.setting().backends()).any(|id| is_there(&id) && flow.has_seen(id))
            })
            .collect();
        flows.extend(self.flows.holder(endpoint, source));
        flows
    }

    /// Whether what an endpoint has sent to `source`, or was sent from there, is what it was taken for: of the flow of this client, at the service that it
    /// is said to come `from`. Gives that.
    pub(super) fn is_of_flow(
        &self,
        scene: &Scene,
        (endpoint, source): (u32, End),
        (from, client): (End, End),
        backend: u32,
        came: &Observed,
    ) -> Result<&'static Service, Breach> {
        let Some(service) = scene.service_at(from.0, from.1) else {
            return breach(
                Promise::ToItsClient,
                format!("for a client as from {from:?}, which is no VIP"),
            );
        };
        counted_service(service, came)?;
        let is_there = scene::endpoint_of(backend) == Some(endpoint)
            && scene::service_of(backend).is_some_and(|own| own.id == service.id);
        let id = (client.0, client.1, service.id);
        let flow = self.flows.get(&id);
        let owners = self.owners(scene, endpoint, source);
        let is_its = match scene::way_to(backend) {
            Way::Nat => flow.may_be(backend, source) && (owners.is_empty() || owners.contains(&id)),
            // Of two services at one endpoint each may have a flow of that name, one of which was adopted.
            _ => client == source && flow.has_seen(backend),
        };
        ensure(is_there && is_its, Promise::ToItsClient, || {
            format!(
                "of backend {backend} for {source:?}, taken for one of {id:?}, and it is one of {owners:?}: {flow:?}"
            )
        })?;
        Ok(service)
    }

    /// A segment that an endpoint has sent.
    pub(super) fn reply(
        &mut self,
        scene: &Scene,
        (seen, ip, tcp): (&Seen<'_>, &Ip<'_>, &Tcp),
        endpoint: u32,
        reason: Reason,
        came: &Observed,
    ) -> Result<(), Breach> {
        if scene::way_to(endpoint) == Way::Local {
            return passes(reason, "of a backend on this host, and from elsewhere");
        }
        let source = (ip.destination, tcp.destination);
        let owners = self.owners(scene, endpoint, source);
        let perhaps = self.perhaps(scene, endpoint, source);
        let is_anybodys = !perhaps.is_empty() || self.flows.is_any_hidden();
        if reason.verdict() == Verdict::Pass || reason == Reason::Untranslated {
            ensure(owners.is_empty(), Promise::ToItsClient, || {
                format!("of the flow {owners:?}, and ended as {}", reason.name())
            })?;
            return ensure(
                reason.verdict() == Verdict::Pass || is_anybodys,
                Promise::Untouched,
                || format!("of no flow, and ended as {}", reason.name()),
            );
        }
        ensure(is_anybodys, Promise::Untouched, || {
            format!("of no flow, and ended as {}", reason.name())
        })?;
        if reason == Reason::Reply {
            return self.returned(scene, (seen, ip, tcp), endpoint, came);
        }
        ensure(came.services.len() == 1, Promise::CountedOnce, || {
            format!("a reply is counted for {:?}", came.services)
        })?;
        // Whether this is true of a client that it may be for.
        let is_for = |suits: &dyn Fn(Back, usize) -> bool| {
            self.flows.is_any_hidden()
                || perhaps.iter().any(|id| {
                    let (back, most) = scene::way_back(id.0);
                    suits(back, most)
                })
        };
        let is_long = is_for(&|_, most| ip.length > most);
        let holds = match reason {
            Reason::NoRouteBack => is_for(&|back, _| back == Back::Nowhere),
            Reason::TooBig => is_long,
            Reason::TtlExpired => ip.ttl <= 1,
            Reason::AnswerLimited => is_long || ip.ttl <= 1,
            _ => false,
        };
        ensure(holds, Promise::Cause, || {
            format!("a reply ended as {} without its cause", reason.name())
        })?;
        let is_known = !self.flows.is_any_hidden();
        let ways: Vec<usize> = perhaps.iter().map(|id| scene::way_back(id.0).1).collect();
        // Its flow has heard of it all the same, whichever that is.
        for id in perhaps {
            for backend in (1..=scene.setting().backends())
                .filter(|backend| scene::endpoint_of(*backend) == Some(endpoint))
            {
                self.flows.replied(id, tcp, backend, source, false);
            }
        }
        if reason.verdict() == Verdict::Answer {
            let fits = |mtu| !is_known || ways.contains(&mtu);
            is_complaint(seen, ip, tcp, reason, came, fits)?;
        }
        Ok(())
    }

    /// A segment of an endpoint's that was sent to a client.
    fn returned(
        &mut self,
        scene: &Scene,
        (seen, ip, tcp): (&Seen<'_>, &Ip<'_>, &Tcp),
        endpoint: u32,
        came: &Observed,
    ) -> Result<(), Breach> {
        let source = (ip.destination, tcp.destination);
        let backend = counted_backend(came)?;
        let left = ends_of(&came.output)?;
        let client = left.destination;
        let service = self.is_of_flow(
            scene,
            (endpoint, source),
            (left.source, client),
            backend,
            came,
        )?;
        let out = leaves_to_client(seen, ip, came, client.0)?;
        let after = came.output.get(out..).unwrap_or_default();
        let ends = Ends {
            source: service.end(),
            destination: client,
        };
        is_translated(ip, tcp, after, &ends, true, Some(MTU))?;
        let id = (client.0, client.1, service.id);
        self.flows.replied(id, tcp, backend, source, true);
        Ok(())
    }

    /// Judges what came of a frame that the stack of this host sends out.
    ///
    /// # Errors
    /// The first promise that was broken.
    pub fn judge_leaving(
        &mut self,
        scene: &Scene,
        frame: &[u8],
        came: &Observed,
    ) -> Result<(), Breach> {
        let reason = match came.reasons[..] {
            [] => None,
            [(reason, 1)] => Some(reason),
            _ => return breach(Promise::CountedOnce, format!("{:?}", came.reasons)),
        };
        let seen = reader::read(frame);
        // Of what the stack sends nothing contradicts itself. What does here is only to be left alone if it is from nowhere.
        let local = seen.ip.as_ref().filter(|ip| {
            (1..=scene.setting().backends())
                .filter(|id| scene::way_to(*id) == Way::Local)
                .filter_map(scene::endpoint_of)
                .any(|endpoint| scene::end_of(endpoint).0 == ip.source)
        });
        let segment = local.and_then(|ip| match ip.carried {
            Carried::Tcp(tcp) => Some((ip, tcp)),
            _ => None,
        });
        let goes_on = came.action == tc_action::UNSPEC;
        match reason {
            None => {
                ensure(goes_on && came.output == frame, Promise::Untouched, || {
                    format!("counted for nothing, with action {}", came.action)
                })?;
                let owner = segment.and_then(|(ip, tcp)| self.local_owner(scene, ip, &tcp));
                ensure(owner.is_none(), Promise::ToItsClient, || {
                    format!("of the flow {owner:?}, and went on as it was")
                })
            }
            Some(Reason::Reply) if goes_on => {
                let Some((ip, tcp)) = segment else {
                    return ensure(local.is_some(), Promise::Untouched, || {
                        "of no backend, and taken for a reply".into()
                    });
                };
                self.went_back(scene, ip, &tcp, came)
            }
            // Its checksum may not be there to be written.
            Some(Reason::Untranslated) if came.action == tc_action::SHOT => ensure(
                local.is_some() && segment.is_none(),
                Promise::ToItsClient,
                || "a whole segment was dropped".into(),
            ),
            Some(reason) => breach(
                Promise::VerdictKept,
                format!(
                    "{} with action {}, on its way out",
                    reason.name(),
                    came.action
                ),
            ),
        }
    }

    /// The flow that lives, beyond doubt, on a backend of this host, and that a segment of that is of.
    fn local_owner(&self, scene: &Scene, ip: &Ip<'_>, tcp: &Tcp) -> Option<FlowId> {
        let header = if ip.is_ipv4() { 20 } else { 40 };
        if tcp.at < header || (!ip.is_ipv4() && tcp.at != header) {
            return None;
        }
        let endpoint = scene.endpoint_at(ip.source, tcp.source)?;
        let flows = scene
            .setting()
            .services()
            .iter()
            .map(|service| (ip.destination, tcp.destination, service.id));
        let mut flows = flows.filter(|id| {
            self.flows.get(id).home().is_some_and(|home| {
                scene::way_to(home) == Way::Local && scene::endpoint_of(home) == Some(endpoint)
            })
        });
        flows.next()
    }

    /// A segment of a backend's on this host that goes on to its client.
    fn went_back(
        &mut self,
        scene: &Scene,
        ip: &Ip<'_>,
        tcp: &Tcp,
        came: &Observed,
    ) -> Result<(), Breach> {
        let backend = counted_backend(came)?;
        let endpoint = scene.endpoint_at(ip.source, tcp.source);
        let client = (ip.destination, tcp.destination);
        let left = ends_of(&came.output)?;
        let Some(service) = scene.service_at(left.source.0, left.source.1) else {
            return breach(
                Promise::ToItsClient,
                format!("as from {:?}, which is no VIP", left.source),
            );
        };
        counted_service(service, came)?;
        let id = (client.0, client.1, service.id);
        let flow = self.flows.get(&id);
        let is_its = endpoint.is_some()
            && scene::endpoint_of(backend) == endpoint
            && scene::way_to(backend) == Way::Local
            && scene::service_of(backend).is_some_and(|own| own.id == service.id)
            && flow.has_seen(backend);
        ensure(is_its, Promise::ToItsClient, || {
            format!("of backend {backend}, taken for one of {id:?}: {flow:?}")
        })?;
        if tcp.flags & RST != 0 {
            self.flows.refused(id);
        }
        let after = came.output.get(ip.at..).unwrap_or_default();
        let ends = Ends {
            source: service.end(),
            destination: client,
        };
        is_translated(ip, tcp, after, &ends, false, None)?;
        // What stands around the packet is as it was.
        ensure(
            came.output.len() == ip.at + ip.bytes.len(),
            Promise::RightWay,
            || format!("{} bytes left", came.output.len()),
        )
    }
}
