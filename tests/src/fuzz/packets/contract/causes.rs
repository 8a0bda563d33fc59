//! Whether what a reason says of a segment is true.

use lb_common::{
    backend::Serving,
    tcp::{ACK, FIN, RST, SYN},
    verdict::Reason,
};

use super::{Breach, Observed, Promise, ensure, guards::Guards};
use crate::fuzz::packets::{
    flows::{FlowId, Flows},
    reader::{Ip, Tcp},
    scene::{self, MTU, Scene, Service},
};

/// Whether a reason that refuses a segment, or makes something special of it, is true.
pub(super) fn has_cause(
    (scene, flows): (&Scene, &Flows),
    (id, service): (&FlowId, &Service),
    ip: &Ip<'_>,
    tcp: &Tcp,
    reason: Reason,
    came: &Observed,
) -> Result<(), Breach> {
    let node = came.backends.first().and_then(|id| scene.node(*id));
    let own = service.ids().filter_map(|id| scene.node(id));
    let mut own = own.copied();
    let is_syn = tcp.flags & SYN != 0;
    let is_dead = node.is_some_and(|node| node.serving == Serving::None);
    let holds = match reason {
        Reason::TtlExpired => ip.ttl <= 1,
        Reason::TooBig => {
            let room = came
                .backends
                .first()
                .and_then(|id| scene::outer_of(*id))
                .map_or(0, |outer| outer.length);
            // What gets VLAN tags that it came without may not fit either; here nothing does.
            ip.length + room > MTU
        }
        Reason::BadFlags => is_syn && tcp.flags & (ACK | FIN | RST) != 0,
        Reason::BackendDead => is_dead,
        // A live flow that is lost by it shows elsewhere.
        Reason::ResetToDead => tcp.flags & RST != 0 && (is_dead || service.needs_entries()),
        Reason::DrainDeadline => {
            node.is_some_and(|node| node.closing.is_some() && node.serving != Serving::None)
        }
        Reason::Unresolved => own.any(|node| !node.resolved),
        Reason::NoEgress | Reason::Fragment | Reason::Held => false,
        // No case comes near to so many flows; and these are of what backends send.
        Reason::NoPort | Reason::Reply | Reason::NoRouteBack => false,
        // A table may name no backend that serves, though there is one.
        Reason::NoBackend if is_syn => own.any(|node| node.serving != Serving::New),
        Reason::NoBackend | Reason::NoBackendForFlow => {
            own.any(|node| node.serving == Serving::None)
        }
        Reason::ResetLimited => {
            service.needs_entries()
                || Guards::refuse(scene, service.id, id.0)
                || own.any(|node| node.serving == Serving::None || node.closing.is_some())
        }
        Reason::Contested => is_syn,
        Reason::Collision => is_syn && collides(scene, flows, id, service),
        Reason::UnknownFlow => !is_syn && tcp.flags & RST == 0 && service.needs_entries(),
        Reason::Unrecorded | Reason::Untranslated => service.needs_entries(),
        _ => true,
    };
    ensure(holds, Promise::Cause, || {
        format!("{} without its cause", reason.name())
    })
}

/// Whether the client has a flow with the same port at an endpoint of the service, by another one, or may have.
fn collides(scene: &Scene, flows: &Flows, id: &FlowId, service: &Service) -> bool {
    let others = scene.setting().services().iter();
    others.filter(|other| other.id != service.id).any(|other| {
        let flow = flows.get(&(id.0, id.1, other.id));
        other
            .ids()
            .filter(|theirs| flow.has_seen(*theirs))
            .any(|theirs| {
                let endpoint = scene::endpoint_of(theirs);
                endpoint.is_some() && service.ids().any(|own| scene::endpoint_of(own) == endpoint)
            })
    })
}
