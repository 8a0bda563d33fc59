//! Messages of ICMP: echoes, and errors about what services and their clients have sent.

use std::net::IpAddr;

use lb_common::{backend::Serving, verdict::Reason};

use super::{
    Breach, Judge, Observed, Promise,
    answers::answer_of,
    breach, checksums, counted_backend, counted_service, ensure,
    ways::{
        Ends, is_expected, leaves_by, leaves_for, leaves_to_client, put, put_ends, stays_here,
        take_a_hop,
    },
};
use crate::fuzz::packets::{
    reader::{self, Carried, Ip, Seen},
    scene::{self, Back, End, MTU, Scene, Service, Way},
};

/// What an ICMP error is about, if that is a service's.
enum Concern {
    /// What a service has sent to a client.
    Reply {
        service: &'static Service,
        client: End,
    },
    /// What a client has sent, encapsulated here.
    Tunnelled {
        service: &'static Service,
        client: IpAddr,
    },
    /// What was sent to an endpoint, which takes its client for `source`.
    Request { endpoint: u32, source: End },
}

impl Judge {
    /// A message of ICMP.
    pub(super) fn message(
        &self,
        scene: &Scene,
        seen: &Seen<'_>,
        ip: &Ip<'_>,
        at: usize,
        reason: Reason,
        came: &Observed,
    ) -> Result<(), Breach> {
        let kind = ip.bytes.get(at).copied();
        let request = if ip.is_ipv4() { 8 } else { 128 };
        let concern = concerned(scene, ip, at);
        match reason {
            Reason::NotService | Reason::Malformed => {
                let is_due = concern.is_some_and(|concern| self.is_due(scene, ip, at, &concern));
                ensure(!is_due, Promise::Heard, || {
                    "an error about a live flow was not heard".into()
                })
            }
            Reason::EchoAnswered | Reason::AnswerLimited
                if kind == Some(request)
                    && scene::is_only_vip(ip.destination)
                    && at >= LEAST_HEADER =>
            {
                if reason == Reason::EchoAnswered {
                    let answer = answer_of(seen, came)?;
                    let answer = answer.ip.as_ref().map(|ip| (ip.source, ip.destination));
                    return ensure(
                        answer == Some((ip.destination, ip.source)),
                        Promise::RightWay,
                        || format!("an echo's answer goes {answer:?}"),
                    );
                }
                Ok(())
            }
            Reason::ErrorRelayed | Reason::ErrorUnrelayed | Reason::AnswerLimited => {
                let Some(concern) = concern else {
                    return breach(Promise::Untouched, "a message about no service was taken");
                };
                if reason == Reason::ErrorRelayed {
                    return self.relayed(scene, seen, ip, at, &concern, came);
                }
                let is_due =
                    reason == Reason::ErrorUnrelayed && self.is_due(scene, ip, at, &concern);
                ensure(!is_due, Promise::Heard, || {
                    "an error about a live flow was dropped".into()
                })
            }
            _ => breach(
                Promise::Untouched,
                format!("ICMP ended as {}", reason.name()),
            ),
        }
    }

    /// Whether an error is beyond doubt about what was translated for a flow that lives, and can be told to who has sent that.
    fn is_due(&self, scene: &Scene, ip: &Ip<'_>, at: usize, concern: &Concern) -> bool {
        if !is_sound(ip, at) || ip.ttl <= 1 {
            return false;
        }
        match concern {
            Concern::Tunnelled { .. } => false,
            Concern::Reply { service, client } => {
                let flow = self.flows.get(&(client.0, client.1, service.id));
                let Some(home) = flow.home() else {
                    return false;
                };
                let is_told = scene
                    .node(home)
                    .is_some_and(|node| node.resolved && node.serving != Serving::None);
                let is_known = match scene::way_to(home) {
                    Way::Nat => flow.translation().is_some(),
                    Way::Dnat | Way::Local => true,
                    Way::L2 | Way::Ipip | Way::InIpv6 => false,
                };
                is_told && is_known && ip.length <= MTU
            }
            Concern::Request { endpoint, source } => {
                self.owners(scene, *endpoint, *source).iter().any(|owner| {
                    let (back, most) = scene::way_back(owner.0);
                    back != Back::Nowhere && ip.length <= most
                })
            }
        }
    }

    /// An error that was told to who has sent what it is about.
    fn relayed(
        &self,
        scene: &Scene,
        seen: &Seen<'_>,
        ip: &Ip<'_>,
        at: usize,
        concern: &Concern,
        came: &Observed,
    ) -> Result<(), Breach> {
        let backend = counted_backend(came)?;
        let is_of = |service: &Service| {
            let own = scene::service_of(backend);
            ensure(
                own.is_some_and(|own| own.id == service.id),
                Promise::RightWay,
                || format!("about service {}, sent to backend {backend}", service.id),
            )?;
            counted_service(service, came)
        };
        match concern {
            Concern::Tunnelled { service, client } => {
                is_of(service)?;
                let ours = scene::outer_of(backend);
                let is_ours = quoted_by(ip, at).is_some_and(|quoted| {
                    quoted.source == ip.destination
                        && ours.is_some_and(|ours| {
                            ours.may_be_from(quoted.source)
                                && ours.destination == quoted.destination
                        })
                });
                ensure(is_ours, Promise::Untouched, || {
                    format!("about what was not encapsulated here for backend {backend}")
                })?;
                let answer = answer_of(seen, came)?;
                let ends = answer.ip.as_ref().map(|ip| (ip.source, ip.destination));
                let due = (service.end().0, *client);
                ensure(ends == Some(due), Promise::RightWay, || {
                    format!("about {due:?}, sent {ends:?}")
                })?;
                let (heard, told) = (kind_of(ip, at), answer.ip.as_ref().and_then(kind_told));
                ensure(
                    told == heard_by_client(heard, &answer),
                    Promise::RightWay,
                    || format!("the client is told {told:?} of {heard:?}"),
                )
            }
            Concern::Reply { service, client } => {
                is_of(service)?;
                let flow = self.flows.get(&(client.0, client.1, service.id));
                let home = flow.home().unwrap_or(backend);
                ensure(backend == home, Promise::KeptBackend, || {
                    format!("about a flow of backend {home}, told to {backend}: {flow:?}")
                })?;
                self.told_backend(scene, seen, ip, at, service, *client, backend, came)
            }
            Concern::Request { endpoint, source } => {
                self.told_client(scene, seen, ip, at, *endpoint, *source, backend, came)
            }
        }
    }

    /// An error about what a service has sent, told to the backend that has sent it.
    #[expect(
        clippy::too_many_arguments,
        reason = "what came, what it is about, and what it led to"
    )]
    fn told_backend(
        &self,
        scene: &Scene,
        seen: &Seen<'_>,
        ip: &Ip<'_>,
        at: usize,
        service: &Service,
        client: End,
        backend: u32,
        came: &Observed,
    ) -> Result<(), Breach> {
        let way = scene::way_to(backend);
        let Some(endpoint) = scene::endpoint_of(backend) else {
            // Where it is encapsulated as from goes by who tells.
            leaves_for(scene, seen, ip, backend, came)?;
            return Ok(());
        };
        let out = if way == Way::Local {
            stays_here(seen, ip, came)?;
            ip.at
        } else {
            leaves_by(scene, backend, came)?;
            14
        };
        let after = came.output.get(out..).unwrap_or_default();
        let endpoint = scene::end_of(endpoint);
        let (teller, source) = match way {
            Way::Nat => {
                let Some(quoted) = quoted_ends(after, at, ip.is_ipv4()) else {
                    return breach(Promise::RightWay, "nothing is quoted any more");
                };
                let flow = self.flows.get(&(client.0, client.1, service.id));
                ensure(
                    flow.may_be(backend, quoted.destination),
                    Promise::OwnTranslation,
                    || {
                        format!(
                            "told of {:?}, which is not its: {flow:?}",
                            quoted.destination
                        )
                    },
                )?;
                (quoted.destination.0, quoted.destination)
            }
            Way::Local => (ip.source, client),
            _ => (service.end().0, client),
        };
        let outer = (teller, endpoint.0);
        let quoted = Ends {
            source: endpoint,
            destination: source,
        };
        is_told(ip, at, after, outer, &quoted, way != Way::Local)
    }

    /// An error about what a backend was sent, told to the client that has sent it.
    #[expect(
        clippy::too_many_arguments,
        reason = "what came, what it is about, and what it led to"
    )]
    fn told_client(
        &self,
        scene: &Scene,
        seen: &Seen<'_>,
        ip: &Ip<'_>,
        at: usize,
        endpoint: u32,
        source: End,
        backend: u32,
        came: &Observed,
    ) -> Result<(), Breach> {
        let Some(left) = reader::read(&came.output).ip else {
            return breach(Promise::RightWay, "what left is no packet of IP");
        };
        let Some(quoted) = quoted_ends(left.bytes, at, ip.is_ipv4()) else {
            return breach(Promise::RightWay, "nothing is quoted any more");
        };
        let client = quoted.source;
        let service = self.is_of_flow(
            scene,
            (endpoint, source),
            (quoted.destination, client),
            backend,
            came,
        )?;
        let out = leaves_to_client(seen, ip, came, client.0)?;
        let after = came.output.get(out..).unwrap_or_default();
        let outer = (service.end().0, client.0);
        let quoted = Ends {
            source: client,
            destination: service.end(),
        };
        is_told(ip, at, after, outer, &quoted, true)
    }
}

/// Whether a message at an offset of its packet is an error that nothing has happened to on its way, about a packet of which nothing has either.
fn is_sound(ip: &Ip<'_>, at: usize) -> bool {
    let errors: &[u8] = if ip.is_ipv4() {
        &[3, 11, 12]
    } else {
        &[1, 2, 3, 4]
    };
    let (protocol, ethertype) = if ip.is_ipv4() {
        (1, 0x0800)
    } else {
        (58, 0x86dd)
    };
    let is_error = ip.bytes.get(at).is_some_and(|kind| errors.contains(kind));
    let is_whole = |ip: &Ip<'_>| {
        let version = ip.bytes.first().map(|first| first >> 4);
        version == Some(if ip.is_ipv4() { 4 } else { 6 })
            && ip.has_right_header_sum()
            && !ip.is_fragment()
    };
    let quote = ip.whole().and_then(|packet| packet.get(at + 8..));
    let quoted = quote.and_then(|quote| reader::read_ip(quote, 0, ethertype));
    at >= LEAST_HEADER
        && is_error
        && is_whole(ip)
        && ip.has_right_sum(at, protocol)
        && quoted.is_some_and(|quoted| is_whole(&quoted))
}

/// Whether a message is another with other ends, about another segment: all the rest as it was, and all sums right that were.
fn is_told(
    ip: &Ip<'_>,
    at: usize,
    after: &[u8],
    outer: (IpAddr, IpAddr),
    quoted: &Ends,
    takes_a_hop: bool,
) -> Result<(), Breach> {
    let is_ipv4 = ip.is_ipv4();
    let length = ip.length.min(ip.bytes.len());
    let (Some(before), Some(after)) = (ip.bytes.get(..length), after.get(..length)) else {
        return breach(Promise::RightWay, "the message was cut");
    };
    let quote = at + 8;
    let Some(own) = quoted_header(before.get(quote..).unwrap_or_default(), is_ipv4) else {
        return breach(Promise::RightWay, "nothing is quoted any more");
    };
    let tcp = quote + own;
    let mut expected = before.to_vec();
    let ends = Ends {
        source: (outer.0, 0),
        destination: (outer.1, 0),
    };
    put_ends(&mut expected, 0, &ends);
    put_ends(&mut expected, quote, quoted);
    put(&mut expected, tcp, &quoted.source.1.to_be_bytes());
    put(&mut expected, tcp + 2, &quoted.destination.1.to_be_bytes());
    if takes_a_hop {
        take_a_hop(&mut expected);
    }
    let is_sum = |place: &usize| {
        let is_header = |start: usize| is_ipv4 && (start + 10..start + 12).contains(place);
        is_header(0)
            || is_header(quote)
            || (at + 2..at + 4).contains(place)
            || (tcp + 16..tcp + 18).contains(place)
    };
    is_expected(&expected, after, is_sum)?;
    checksums::stay_right(ip, after, at, if is_ipv4 { 1 } else { 58 })?;
    let ethertype = if is_ipv4 { 0x0800 } else { 0x86dd };
    let read = |packet: &[u8]| {
        let quoted = reader::read_ip(packet.get(quote..).unwrap_or_default(), 0, ethertype);
        quoted.map(|ip| (ip.has_right_header_sum(), [ip.source, ip.destination]))
    };
    let (Some((was_right, ends_before)), Some((is_right, ends_after))) =
        (read(before), read(after))
    else {
        return breach(Promise::RightWay, "nothing is quoted any more");
    };
    checksums::stays_right(was_right, is_right, "the quoted header's")?;
    // Without so much of the segment its sum is not there to be kept.
    let is_quoted = ip.length <= ip.bytes.len() && tcp + 18 <= length;
    match (before.get(tcp..), after.get(tcp..)) {
        (Some(before), Some(after)) if is_quoted => {
            checksums::covers_as_before((&ends_before, before), (&ends_after, after))
        }
        _ => Ok(()),
    }
}

/// The packet that a message at an offset of its own quotes, if that is a packet of the same version of IP.
fn quoted_by<'a>(ip: &Ip<'a>, at: usize) -> Option<Ip<'a>> {
    let ethertype = if ip.is_ipv4() { 0x0800 } else { 0x86dd };
    reader::read_ip(ip.bytes.get(at + 8..)?, 0, ethertype)
}

/// What a message at an offset of its packet is about. What is behind the packet in its frame is nobody's, and nothing is about that.
fn concerned(scene: &Scene, ip: &Ip<'_>, at: usize) -> Option<Concern> {
    let packet = ip.whole().unwrap_or(ip.bytes);
    let quote = packet.get(at + 8..).filter(|_| at >= LEAST_HEADER)?;
    let ethertype = if ip.is_ipv4() { 0x0800 } else { 0x86dd };
    let quoted = reader::read_ip(quote, 0, ethertype)?;
    if let Some((packet, ends)) = tunnelled(quote, ip.is_ipv4()) {
        let service = scene.service_at(packet.destination, ends.1)?;
        return Some(Concern::Tunnelled {
            service,
            client: packet.source,
        });
    }
    let (source, destination) = ports(quote, ip.is_ipv4())?;
    if quoted.source != ip.destination {
        return None;
    }
    if let Some(service) = scene.service_at(quoted.source, source) {
        return Some(Concern::Reply {
            service,
            client: (quoted.destination, destination),
        });
    }
    let endpoint = scene.endpoint_at(quoted.destination, destination)?;
    Some(Concern::Request {
        endpoint,
        source: (quoted.source, source),
    })
}

/// The type and code of a message at an offset of its packet, and whether they are IPv4's.
fn kind_of(ip: &Ip<'_>, at: usize) -> Option<(bool, u8, u8)> {
    let kind = ip.bytes.get(at..at + 2)?;
    Some((ip.is_ipv4(), kind[0], kind[1]))
}

/// Those of a message.
fn kind_told(ip: &Ip<'_>) -> Option<(bool, u8, u8)> {
    match ip.carried {
        Carried::Icmp(at) => kind_of(ip, at),
        _ => None,
    }
}

/// What a client has to be told where this is said of its packet as it was encapsulated: that it is too big, or that there is no way (RFC 2003, section
/// 5.1; RFC 2473, section 8); none where it is nothing to it.
fn heard_by_client(heard: Option<(bool, u8, u8)>, answer: &Seen<'_>) -> Option<(bool, u8, u8)> {
    let is_ipv4 = answer.ip.as_ref()?.is_ipv4();
    let too_big = if is_ipv4 { (true, 3, 4) } else { (false, 2, 0) };
    let no_way = if is_ipv4 { (true, 3, 1) } else { (false, 1, 3) };
    match heard? {
        (true, 3, 4) | (false, 2, _) => Some(too_big),
        (true, 3, 3 | 5) | (false, 1, 4) => None,
        (true, 3 | 11, _) | (false, 1 | 3, _) | (false, 4, 1) => Some(no_way),
        _ => None,
    }
}

/// The shortest header of IPv4 (RFC 791, section 3.1), bytes.
const LEAST_HEADER: usize = 20;

/// Length of the header that a packet begins with, if it can be.
fn quoted_header(packet: &[u8], is_ipv4: bool) -> Option<usize> {
    if is_ipv4 {
        let own = usize::from(packet.first()? & 0xf) * 4;
        (own >= LEAST_HEADER).then_some(own)
    } else {
        Some(40)
    }
}

/// Both ends of the segment that a message at an offset of its packet quotes.
fn quoted_ends(packet: &[u8], at: usize, is_ipv4: bool) -> Option<Ends> {
    let quote = packet.get(at + 8..)?;
    let quoted = reader::read_ip(quote, 0, if is_ipv4 { 0x0800 } else { 0x86dd })?;
    let (source, destination) = ports(quote, is_ipv4)?;
    Some(Ends {
        source: (quoted.source, source),
        destination: (quoted.destination, destination),
    })
}

/// The packet in an IP packet that may be cut short, and its ports.
fn tunnelled(quote: &[u8], is_ipv4: bool) -> Option<(Ip<'_>, (u16, u16))> {
    let own = quoted_header(quote, is_ipv4)?;
    let protocol = *quote.get(if is_ipv4 { 9 } else { 6 })?;
    let is_inner_ipv4 = match protocol {
        4 => true,
        41 => false,
        _ => return None,
    };
    let ethertype = if is_inner_ipv4 { 0x0800 } else { 0x86dd };
    let packet = reader::read_ip(quote, own, ethertype)?;
    let ports = ports(quote.get(own..)?, is_inner_ipv4)?;
    Some((packet, ports))
}

/// The ports of a packet of TCP of which not more than the first eight bytes may be there.
fn ports(packet: &[u8], is_ipv4: bool) -> Option<(u16, u16)> {
    let own = quoted_header(packet, is_ipv4)?;
    let protocol = *packet.get(if is_ipv4 { 9 } else { 6 })?;
    let ports = packet.get(own..own + 4)?;
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    (protocol == 6).then(|| (port(0), port(2)))
}
