//! What a packet means for its flow. Pure.

use std::net::SocketAddr;

use lb_common::{
    backend::Forwarding,
    flow::word::{BackendRef, State},
    headers::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, IPV6_LEN, IPV6_OFFSET,
        NEXT_DESTINATION, NEXT_FRAGMENT, NEXT_HOP_BY_HOP, NEXT_ROUTING, PROTO_TCP,
    },
    net::Address,
    tcp::{FIN, RST},
    verdict::{Reason, Verdict},
    watch::{ANY, Filter, Head},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Seen;
use crate::{dataplane::maps::Maps, inventory::Names};

/// What happened to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Happened {
    /// It has an entry: by a SYN, as a challenger of another flow of its client's port, or adopted in mid-stream. The reason says which.
    Opened,
    /// Its client has answered, or, where replies come through here, the handshake is complete.
    Promoted,
    /// It has lived for 30 s, and keeps its backend from now on.
    Pinned,
    /// It has ended, or was ended. The cause says by what.
    Closed,
    /// It goes on after what looked like its end.
    Revived,
    /// A packet of it was not forwarded. The reason says why.
    Refused,
}

/// By what a flow was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A FIN of the client.
    ClientFin,
    /// A RST of the client.
    ClientReset,
    /// A FIN of the backend, where replies come through here.
    BackendFin,
    /// A RST of the backend, where replies come through here.
    BackendReset,
    /// A RST by Tether, to the client. The reason says why.
    Tether,
}

/// An event of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowEvent {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What happened.
    pub event: Happened,
    /// Address and port of the client.
    #[schema(value_type = String)]
    pub client: SocketAddr,
    /// Name of the service.
    pub service: Option<String>,
    /// Name of the backend.
    pub backend: Option<String>,
    /// The reason that its packet came to.
    pub reason: String,
    /// By what it was closed.
    pub cause: Option<Cause>,
}

/// Whether a packet that a program has told of is of a client that its listener wants to hear of. The program compares both addresses, since in what comes back the
/// client is the destination; but the other one is the VIP's or a backend's, and a prefix of clients may have that too.
pub(crate) fn is_of_client(filter: &Filter, maps: &Maps, head: &Head) -> bool {
    let is_wanted = |address: Address| {
        let words = address.words();
        (0..2).all(|at| words[at] & filter.mask[at] == filter.prefix[at])
    };
    if head.reason == Reason::Reply as u32 {
        return is_wanted(head.destination);
    }
    let is_for_vip = head.service < maps.services.len()
        && maps.services.get(head.service).vip == head.destination;
    is_wanted(head.source) || !is_for_vip
}

/// What a packet is called: its service, and its backend as SERVICE/BACKEND, as far as it has got.
pub(crate) fn names(
    maps: &Maps,
    names: &Names<'_>,
    head: &Head,
) -> (Option<String>, Option<String>) {
    let service = u16::try_from(head.service)
        .ok()
        .and_then(|id| names.service(id))
        .map(|service| service.name.clone());
    let backend = (head.backend != ANY && head.backend < maps.capacity.backends)
        .then(|| BackendRef::new(head.backend, maps.state(head.backend).generation()))
        .and_then(|holder| names.backend(holder))
        .map(|(_, backend)| backend.name.clone());
    (service, backend)
}

/// The event that a packet is, if it is one. `at_ms` is when it came, in milliseconds since 1970.
pub fn event(seen: &Seen, at_ms: u64, maps: &Maps, known: &Names<'_>) -> Option<FlowEvent> {
    let reason = Reason::from_code(u8::try_from(seen.head.reason).ok()?)?;
    let segment = segment(&seen.data)?;
    let (event, cause) = happened(reason, seen.head.states(), segment.flags)?;
    let (service, backend) = names(maps, known, &seen.head);
    let client = client_of(&seen.head, reason, segment, maps)?;
    Some(FlowEvent {
        at_ms,
        event,
        client,
        service,
        backend,
        reason: reason.name().into(),
        cause,
    })
}

/// The client of a segment that came to a reason; none if nothing tells who that is.
fn client_of(head: &Head, reason: Reason, segment: Segment, maps: &Maps) -> Option<SocketAddr> {
    match reason {
        Reason::Reply => {
            let port = u16::try_from(head.client_port).ok()?;
            Some(SocketAddr::new(head.destination.into(), port))
        }
        // What a backend has sent, too. It came no further, and of mode `nat` it names no client.
        Reason::NoRouteBack => {
            let is_known = head.backend < maps.capacity.backends;
            let state = is_known.then(|| maps.state(head.backend))?;
            let names_it = state.forwarding() == Some(Forwarding::Dnat);
            names_it.then(|| SocketAddr::new(head.destination.into(), segment.destination_port))
        }
        _ => Some(SocketAddr::new(head.source.into(), segment.source_port)),
    }
}

fn happened(
    reason: Reason,
    change: Option<(u8, u8)>,
    flags: u8,
) -> Option<(Happened, Option<Cause>)> {
    const CLOSING: u8 = State::Closing as u8;
    const PIN: u8 = State::Pin as u8;
    const YOUNG: u8 = State::Young as u8;
    if matches!(
        reason,
        Reason::Opened | Reason::Challenged | Reason::Adopted
    ) {
        return Some((Happened::Opened, None));
    }
    match (reason.verdict(), reason) {
        (Verdict::Reset, _) => return Some((Happened::Closed, Some(Cause::Tether))),
        (Verdict::Drop, _) => return Some((Happened::Refused, None)),
        _ => {}
    }
    match change? {
        (_, CLOSING) => {
            let cause = match (reason == Reason::Reply, flags & RST != 0, flags & FIN != 0) {
                (false, true, _) => Some(Cause::ClientReset),
                (false, _, true) => Some(Cause::ClientFin),
                (true, true, _) => Some(Cause::BackendReset),
                (true, _, true) => Some(Cause::BackendFin),
                _ => None,
            };
            Some((Happened::Closed, cause))
        }
        (CLOSING, _) => Some((Happened::Revived, None)),
        (YOUNG, PIN) => Some((Happened::Pinned, None)),
        (_, YOUNG | PIN) => Some((Happened::Promoted, None)),
        _ => None,
    }
}

/// What a frame's segment of TCP says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    source_port: u16,
    destination_port: u16,
    flags: u8,
}

fn segment(frame: &[u8]) -> Option<Segment> {
    let be16 = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    let mut at = 12;
    let mut ethertype = be16(at)?;
    while ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ {
        at += 4;
        ethertype = be16(at)?;
    }
    at += 2;
    let mut protocol;
    match ethertype {
        ETHERTYPE_IPV4 => {
            protocol = *frame.get(at + 9)?;
            at += usize::from(frame.get(at)? & 0xf) * 4;
        }
        ETHERTYPE_IPV6 => {
            protocol = *frame.get(at + 6)?;
            at += IPV6_LEN;
            while matches!(
                protocol,
                NEXT_HOP_BY_HOP | NEXT_ROUTING | NEXT_DESTINATION | NEXT_FRAGMENT
            ) {
                // The second byte of a fragment header is reserved, and only the first fragment of a segment has its ports.
                let own = if protocol == NEXT_FRAGMENT {
                    let is_first = be16(at + 2)? & IPV6_OFFSET == 0;
                    is_first.then_some(8)?
                } else {
                    (usize::from(*frame.get(at + 1)?) + 1) * 8
                };
                protocol = *frame.get(at)?;
                at += own;
            }
        }
        _ => return None,
    }
    (protocol == PROTO_TCP).then_some(())?;
    Some(Segment {
        source_port: be16(at)?,
        destination_port: be16(at + 2)?,
        flags: *frame.get(at + 13)?,
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb_common::backend::{BackendState, Serving};

    use super::*;
    use crate::inventory::tests as shown;

    const PLAIN: [u8; 54] = {
        let mut frame = [0; 54];
        frame[12] = 8;
        frame[14] = 0x45;
        frame[23] = PROTO_TCP;
        frame[34] = 0x9c;
        frame[35] = 0x40;
        frame
    };

    fn change(from: State, to: State) -> Option<(u8, u8)> {
        Some((from as u8, to as u8))
    }

    #[test]
    fn each_packet_is_one_event_at_most() {
        use Happened::*;
        for (reason, change, flags, expected) in [
            (Reason::Opened, None, 2, Some((Opened, None))),
            (Reason::Adopted, None, 16, Some((Opened, None))),
            (Reason::Reopened, None, 2, None),
            (Reason::Established, None, 16, None),
            (
                Reason::Established,
                change(State::Embryo, State::Young),
                16,
                Some((Promoted, None)),
            ),
            (
                Reason::Reply,
                change(State::Embryo, State::Pin),
                16,
                Some((Promoted, None)),
            ),
            (
                Reason::Established,
                change(State::Young, State::Pin),
                16,
                Some((Pinned, None)),
            ),
            (
                Reason::Established,
                change(State::Pin, State::Closing),
                FIN | 16,
                Some((Closed, Some(Cause::ClientFin))),
            ),
            (
                Reason::Established,
                change(State::Pin, State::Closing),
                RST,
                Some((Closed, Some(Cause::ClientReset))),
            ),
            (
                Reason::Reply,
                change(State::Pin, State::Closing),
                RST | 16,
                Some((Closed, Some(Cause::BackendReset))),
            ),
            (
                Reason::Established,
                change(State::Closing, State::Pin),
                16,
                Some((Revived, None)),
            ),
            (
                Reason::BackendDead,
                None,
                16,
                Some((Closed, Some(Cause::Tether))),
            ),
            (Reason::NoBackend, None, 2, Some((Refused, None))),
        ] {
            assert_eq!(
                happened(reason, change, flags),
                expected,
                "{reason:?} {change:?}"
            );
        }
    }

    #[test]
    fn a_prefix_of_clients_is_met_by_neither_vip_nor_backend() {
        let maps = shown::maps_of(&shown::a_status());
        let address = |last| IpAddr::from([10, 9, 9, last]).into();
        let mut service = maps.services.get(3);
        service.vip = address(1);
        maps.services.set(3, &service);
        let net = Address::from(IpAddr::from([10, 9, 9, 0]));
        let filter = Filter {
            prefix: net.words(),
            mask: Address((u128::MAX << 8).to_be_bytes()).words(),
            ..Filter::default()
        };
        let stranger = IpAddr::from([192, 0, 2, 7]).into();
        for (source, destination, service, expected) in [
            (address(7), address(1), 3, true),
            (stranger, address(1), 3, false),
            // What is for another than the VIP, and what is for no service.
            (stranger, address(7), 3, true),
            (stranger, address(1), 4, true),
            (stranger, address(1), ANY, true),
        ] {
            let head = Head {
                source,
                destination,
                service,
                ..Head::default()
            };
            let is_of = is_of_client(&filter, &maps, &head);
            assert_eq!(is_of, expected, "{head:?}");
        }
        // A reply is of whom it is for, whoever sent it.
        for (client, expected) in [(address(7), true), (stranger, false)] {
            let reply = Head {
                source: address(2),
                destination: client,
                service: 3,
                reason: Reason::Reply as u32,
                ..Head::default()
            };
            assert_eq!(is_of_client(&filter, &maps, &reply), expected);
        }
        // Who wants to hear of all clients hears of all.
        let head = Head {
            source: stranger,
            destination: address(1),
            service: 3,
            ..Head::default()
        };
        assert!(is_of_client(&Filter::default(), &maps, &head));
    }

    #[test]
    fn an_event_names_client_service_and_backend() {
        let status = shown::a_status();
        let maps = shown::maps_of(&status);
        let names = Names::of(&maps, &status);
        let mut seen = Seen {
            head: Head {
                source: IpAddr::from([10, 9, 9, 9]).into(),
                destination: IpAddr::from([10, 8, 8, 8]).into(),
                service: 3,
                backend: 6,
                reason: Reason::Opened as u32,
                ..Head::default()
            },
            data: PLAIN.to_vec(),
        };
        let opened = event(&seen, 7, &maps, &names).unwrap();
        assert_eq!(opened.client, "10.9.9.9:40000".parse().unwrap());
        assert_eq!(
            (opened.service.as_deref(), opened.backend.as_deref()),
            (Some("chat"), Some("b2"))
        );
        // A reply's client is whom it is for.
        seen.head.reason = Reason::Reply as u32;
        seen.head.change = State::Pin as u32 | (State::Closing as u32) << 8;
        seen.head.client_port = 41_000;
        let closed = event(&seen, 7, &maps, &names).unwrap();
        assert_eq!(closed.client, "10.8.8.8:41000".parse().unwrap());
        // So is that of what could not go on to him, if it names him.
        seen.head.reason = Reason::NoRouteBack as u32;
        seen.head.client_port = 0;
        seen.data[36..38].copy_from_slice(&42_000_u16.to_be_bytes());
        let named = SocketAddr::from(([10, 8, 8, 8], 42_000));
        for (forwarding, client) in [(Forwarding::Dnat, Some(named)), (Forwarding::Nat, None)] {
            maps.set_state(6, BackendState::new(1, Serving::New, forwarding, 0, true));
            let refused = event(&seen, 7, &maps, &names);
            assert_eq!(refused.map(|refused| refused.client), client);
        }
        (seen.head.service, seen.head.backend, seen.head.reason) =
            (ANY, ANY, Reason::BadFlags as u32);
        let refused = event(&seen, 7, &maps, &names).unwrap();
        assert_eq!((refused.service, refused.backend), (None, None));
    }

    #[test]
    fn a_segment_is_found_behind_tags_and_headers_and_nowhere_else() {
        let found = Some(Segment {
            source_port: 40_000,
            destination_port: 0,
            flags: 0,
        });
        assert_eq!(segment(&PLAIN), found);
        let mut tagged = PLAIN[..12].to_vec();
        tagged.extend([0x88, 0xa8, 0, 1, 0x81, 0, 0, 2]);
        tagged.extend(&PLAIN[12..]);
        assert_eq!(segment(&tagged), found);
        let mut six = PLAIN[..12].to_vec();
        six.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 36, NEXT_DESTINATION, 64]);
        six.extend([1; 32]);
        six.extend([PROTO_TCP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        six.extend(&PLAIN[34..]);
        assert_eq!(segment(&six), found);
        // The first part of a segment, whose header says no length; and a later one.
        let mut part = PLAIN[..12].to_vec();
        part.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 28, NEXT_FRAGMENT, 64]);
        part.extend([1; 32]);
        part.extend([PROTO_TCP, 0xff, 0, 1, 0, 0, 0, 7]);
        part.extend(&PLAIN[34..]);
        assert_eq!(segment(&part), found);
        for frame in [&PLAIN[..], &tagged, &six, &part] {
            for length in 0..frame.len() - 6 {
                assert_eq!(segment(&frame[..length]), None);
            }
        }
        part[57] = 0x08;
        assert_eq!(segment(&part), None);
    }
}
