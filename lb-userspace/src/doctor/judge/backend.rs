//! Services and the ways to their backends.

use std::net::IpAddr;

use lb_common::{
    backend::Mode,
    headers::{IPV4_LEN, IPV6_LEN},
};

use super::{
    super::{
        Finding,
        State::{Failure, Unknown, Warning},
        facts::{Backend, Facts, Host, Probe, Service, Snat},
    },
    INTERNET_MTU, listed,
};
use crate::neighbour::way::EntryState;

/// Bytes of the packets that an IPv6 host sends at least, whatever it is told of the way (RFC 8200, section 5; RFC 8201, section 4).
const LEAST_IPV6_MTU: u32 = 1280;

pub(super) fn examine(facts: &Facts, findings: &mut Vec<Finding>) {
    for service in &facts.services {
        findings.extend(vip(service));
        findings.extend(local_clients(facts, service));
        for snat in &service.snat {
            findings.push(snat_address(&facts.host, service, snat));
        }
        for backend in &service.backends {
            let subject = format!("{}/{}", service.name, backend.name);
            if backend.here && backend.no_route.is_none() {
                // By the host's own stack, in any mode; whether it answers the health checks say.
                findings.push(here(&subject, backend));
                continue;
            }
            let Some(way) = way(&subject, backend) else {
                findings.push(no_way(&subject, backend));
                continue;
            };
            findings.push(way);
            findings.push(mtu(&subject, service, backend));
            findings.push(probe(&subject, service, backend));
        }
    }
}

/// Who answers ARP for a VIP.
fn vip(service: &Service) -> Option<Finding> {
    const CHECK: &str = "arp";
    let answers = match &service.answers {
        None => {
            return service.vip.is_ipv4().then(|| {
                Finding::bad(
                    Unknown,
                    CHECK,
                    &service.name,
                    format!("nobody could be asked who has {}", service.vip),
                    "run `tether doctor` as root, while an interface leads to the backends",
                )
            });
        }
        Some(answers) => answers,
    };
    let backends: Vec<&Backend> = service
        .backends
        .iter()
        .filter(|backend| backend.gateway.is_none())
        .filter(|backend| backend.mac.is_some_and(|mac| answers.contains(&mac)))
        .collect();
    if !backends.is_empty() {
        let names = listed(backends.iter().map(|backend| &backend.name));
        return Some(Finding::bad(
            Failure,
            CHECK,
            &service.name,
            format!(
                "{names} answer ARP for {}, and take its packets away from the balancer",
                service.vip
            ),
            "on each: sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2, before the VIP is added to lo",
        ));
    }
    if let Some(mac) = answers.first() {
        let mac = listed(mac.map(|byte| format!("{byte:02x}"))).replace(", ", ":");
        return Some(Finding::bad(
            Warning,
            CHECK,
            &service.name,
            format!("{mac} answers ARP for {}", service.vip),
            "that should be the router or another balancer that holds the VIP, and nobody else: find it with `ip neigh` and remove the address there",
        ));
    }
    Some(Finding::ok(
        CHECK,
        &service.name,
        match service.own_vip {
            Some(true) => format!("nobody but this host answers ARP for {}", service.vip),
            _ => format!("nobody answers ARP for {}: it is routed here", service.vip),
        },
    ))
}

/// Whom a VIP does not lead to backends on this host, if there are such.
fn local_clients(facts: &Facts, service: &Service) -> Option<Finding> {
    let mut here = service.backends.iter().filter(|backend| backend.here);
    here.next()?;
    let interfaces = facts
        .interfaces
        .iter()
        .filter(|(_, interface)| interface.configured);
    Some(Finding::ok(
        "local-clients",
        &service.name,
        format!(
            "this host and its pods do not reach backends on this host by {}, whose replies to them never leave by {}: have them use the backends' own addresses",
            service.vip,
            listed(interfaces.map(|(name, _)| name))
        ),
    ))
}

fn snat_address(host: &Host, service: &Service, snat: &Snat) -> Finding {
    const CHECK: &str = "snat";
    let subject = format!("{} {}", service.name, snat.address);
    let length = if snat.address.is_ipv4() { 32 } else { 128 };
    match snat.own {
        Some(true) => {}
        Some(false) => {
            return Finding::bad(
                Warning,
                CHECK,
                subject,
                "is none of this host's: replies come here only if the backends' network routes it here",
                format!(
                    "ip address add {}/{length} dev INTERFACE, where backends are on the link",
                    snat.address
                ),
            );
        }
        None => {
            return Finding::bad(
                Unknown,
                CHECK,
                subject,
                "its route could not be asked for",
                format!("ip route get {}: it has to be local", snat.address),
            );
        }
    }
    if snat.used_toward.is_empty() {
        return Finding::ok(CHECK, subject, "is this host's, and used for nothing else");
    }
    match host.local_ports {
        Some(range) if are_reserved(range, &host.reserved_ports) => Finding::ok(
            CHECK,
            subject,
            "is what this host connects from too, and takes no port there that flows may have",
        ),
        _ => Finding::bad(
            Warning,
            CHECK,
            subject,
            format!(
                "this host itself connects to {} from it, by health checks for one: such a connection fails when a flow has the same port",
                listed(&snat.used_toward)
            ),
            "give `snat` an address that the host uses for nothing else (`ip address add ADDRESS/32 dev INTERFACE`)",
        ),
    }
}

/// Whether all ports of an inclusive range are among those that are left out.
fn are_reserved((first, last): (u16, u16), reserved: &[(u16, u16)]) -> bool {
    let mut reserved = reserved.to_vec();
    reserved.sort_unstable();
    let mut next = u32::from(first);
    for (from, to) in reserved {
        if u32::from(from) <= next && u32::from(to) >= next {
            next = u32::from(to) + 1;
        }
    }
    next > u32::from(last)
}

fn no_way(subject: &str, backend: &Backend) -> Finding {
    let address = backend.address;
    match (&backend.no_route, backend.neighbour) {
        (Some(why), _) => Finding::bad(
            Failure,
            "neighbour",
            subject,
            format!("there is no way to {address}: {why}"),
            format!("see `ip route get {address}`, and add a route"),
        ),
        (None, Some(EntryState::Failed)) => {
            let next = backend.gateway.unwrap_or(address);
            let asked = if next.is_ipv4() {
                "ARP"
            } else {
                "neighbour solicitations"
            };
            Finding::bad(
                Failure,
                "neighbour",
                subject,
                format!("{next} does not answer {asked} on {}", backend.interface),
                "is it up, and on that link? Nothing can be sent to the backend until it answers",
            )
        }
        _ => Finding::bad(
            Unknown,
            "neighbour",
            subject,
            format!("the next hop of {address} has not been resolved yet"),
            "run `tether doctor` again in a few seconds",
        ),
    }
}

fn way(subject: &str, backend: &Backend) -> Option<Finding> {
    if backend.no_route.is_some() || backend.mac.is_none() {
        return None;
    }
    Some(Finding::ok(
        "neighbour",
        subject,
        match backend.gateway {
            Some(gateway) => format!("by {gateway} on {}", backend.interface),
            None => format!("on the link of {}", backend.interface),
        },
    ))
}

fn here(subject: &str, backend: &Backend) -> Finding {
    let found = if backend.interface.is_empty() {
        "is this host itself".to_owned()
    } else {
        format!("on this host, by {}", backend.interface)
    };
    Finding::ok("neighbour", subject, found)
}

/// Bytes that a mode adds to a client's packet.
const fn overhead(mode: Mode, backend: IpAddr) -> u32 {
    match (mode, backend) {
        (Mode::Ipip, IpAddr::V4(_)) => IPV4_LEN as u32,
        (Mode::Ipip, IpAddr::V6(_)) => IPV6_LEN as u32,
        _ => 0,
    }
}

/// Bytes of the largest packet on the way to a backend, when clients' links carry what the internet's do.
pub(in super::super) const fn largest(mode: Mode, backend: IpAddr) -> u32 {
    INTERNET_MTU + overhead(mode, backend)
}

fn mtu(subject: &str, service: &Service, backend: &Backend) -> Finding {
    const CHECK: &str = "mtu";
    let needed = largest(service.mode, backend.address);
    let headers = if service.vip.is_ipv4() { 40 } else { 60 };
    let remedy = |carries: u32| {
        let extra = overhead(service.mode, backend.address);
        if extra == 0 {
            return format!(
                "raise the MTU on the way to {needed}; else clients behind firewalls that drop ICMP hang"
            );
        }
        let segment = carries.min(INTERNET_MTU).saturating_sub(extra + headers);
        format!(
            "raise the MTU of every link on the way to {needed}, or have the backend ask for smaller segments: `ip route change default via ROUTER advmss {segment}`"
        )
    };
    let least = LEAST_IPV6_MTU + overhead(service.mode, backend.address);
    if service.vip.is_ipv6() && backend.mtu < least {
        return Finding::bad(
            Failure,
            CHECK,
            subject,
            format!(
                "the route carries {} bytes, and a client's packet of {LEAST_IPV6_MTU} takes {least}: no answer makes it send less, so it hangs unless the backend asks for smaller segments",
                backend.mtu
            ),
            remedy(backend.mtu),
        );
    }
    if backend.mtu < needed {
        return Finding::bad(
            Warning,
            CHECK,
            subject,
            format!(
                "the route carries {} bytes, and a client's full packet takes {needed}",
                backend.mtu
            ),
            remedy(backend.mtu),
        );
    }
    match backend.echoes {
        Some(echoes) if echoes.large => Finding::ok(
            CHECK,
            subject,
            format!("{needed} bytes reach it in one piece"),
        ),
        Some(echoes) if echoes.small => Finding::bad(
            Warning,
            CHECK,
            subject,
            format!(
                "this host's route carries {needed} bytes, but an echo of that size is lost on the way, and a small one is not"
            ),
            remedy(INTERNET_MTU),
        ),
        _ => Finding::bad(
            Unknown,
            CHECK,
            subject,
            format!(
                "this host's route carries the {needed} bytes of a client's full packet; the backend answers no echoes that would tell of the links beyond"
            ),
            "let ICMP echo requests from the balancer through, which health checks need too",
        ),
    }
}

/// What a request for a connection says of the far end.
fn probe(subject: &str, service: &Service, backend: &Backend) -> Finding {
    let vip = service.vip;
    let check = match service.mode {
        Mode::L2 => "vip",
        Mode::Ipip => "decapsulation",
        Mode::Nat | Mode::Dnat => "replies",
    };
    let silent =
        |found: String, remedy: String| Finding::bad(Failure, check, subject, found, remedy);
    match (backend.probe, service.mode) {
        (Probe::NotSent, _) => Finding::bad(
            Unknown,
            check,
            subject,
            "could not be asked",
            "run `tether doctor` as root, or with CAP_NET_RAW",
        ),
        (Probe::Accepted { direct: false }, Mode::Dnat) => Finding::bad(
            Warning,
            check,
            subject,
            "its replies to the VIP come back by another host than itself, so its route to clients does not lead here",
            "make this host the backend's default gateway, or give it a policy route for what comes from the service's port",
        ),
        (Probe::Accepted { .. }, Mode::L2) => {
            Finding::ok(check, subject, format!("accepts connections to {vip}"))
        }
        (Probe::Accepted { .. }, Mode::Ipip) => Finding::ok(
            check,
            subject,
            format!("decapsulates, and accepts connections to {vip}"),
        ),
        (Probe::Accepted { .. } | Probe::Refused, Mode::Nat | Mode::Dnat) => {
            Finding::ok(check, subject, "come back to this host")
        }
        (Probe::Refused, _) => Finding::bad(
            Failure,
            check,
            subject,
            format!("has {vip}, but nobody listens there at the service's port"),
            "have the server listen on the VIP or on all addresses, at the service's port",
        ),
        (Probe::NoTunnel, _) => silent(
            "does not know IP in IP: nothing decapsulates there".to_owned(),
            "on the backend: tether decap --interface eth0, or the kernel's own tunnel (README, Backends for ipip)".to_owned(),
        ),
        (Probe::Silence, Mode::L2) => silent(
            format!("does not answer a request for a connection to {vip}"),
            format!("on the backend: ip address add {vip} dev lo, a server that listens there, no rp_filter=1 or firewall in the way"),
        ),
        (Probe::Silence, Mode::Ipip) => silent(
            format!("does not answer an encapsulated request for a connection to {vip}"),
            format!(
                "on the backend: tether decap --interface eth0; ip address add {vip} dev lo; a server that listens there; rp_filter=2 on the tunnel; and let protocol {} through",
                if backend.address.is_ipv4() { "4" } else { "41, or 4 in IPv6," }
            ),
        ),
        (Probe::Silence, Mode::Nat) => silent(
            "does not answer what comes from the SNAT address".to_owned(),
            "is the backend up? Else its network has to route the SNAT address here".to_owned(),
        ),
        (Probe::Silence, Mode::Dnat) => silent(
            format!("its answer to {vip} does not come here"),
            "is the backend up? Else make this host its default gateway, or give it a policy route".to_owned(),
        ),
    }
}
