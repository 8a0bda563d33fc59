//! Interfaces: driver, XDP mode, offloads, queues, MTU, other programs, forwarding, the filter of reverse paths.

use lb_common::net::IpVersion;

use super::{
    super::{
        Finding,
        State::{Failure, Unknown, Warning},
        facts::{Backend, Facts, Interface, Program},
    },
    listed,
};
use crate::{
    dataplane::kernel::{HIDDEN_PINS, release::numbers_of},
    sysctl,
};

// include/uapi/linux/netdev.h
const XDP_BASIC: u64 = 1 << 0;
const XDP_NDO_XMIT: u64 = 1 << 2;
const XDP_RX_SG: u64 = 1 << 5;
const XDP_NDO_XMIT_SG: u64 = 1 << 6;
/// The first kernel that redirects frames of several buffers, to a driver that takes them.
const REDIRECTS_SEVERAL: (u32, u32) = (6, 3);
/// The largest MTU whose frames fit a page of 4096 bytes with the headroom of XDP (256), what the kernel keeps at its end (320) and an
/// Ethernet header with a VLAN tag (18). Larger ones take frames of several buffers.
const PAGE_MTU: u32 = 4096 - 256 - 320 - 18;
/// Drivers that give each CPU or queue a transmit queue of its own for XDP, out of the same supply.
const HALF_THE_QUEUES: [&str; 2] = ["ena", "gve"];

pub(super) fn examine(facts: &Facts, findings: &mut Vec<Finding>) {
    let many = facts.interfaces.len() > 1;
    let local = backends_here(facts);
    for (name, interface) in &facts.interfaces {
        if !interface.exists {
            findings.push(Finding::bad(
                Failure,
                "interface",
                name,
                "there is none of that name in this network namespace",
                "`ip link` lists those there are; `interfaces` in the configuration names those to use",
            ));
            continue;
        }
        findings.push(link(name, interface));
        if interface.configured {
            findings.push(xdp(name, interface));
            findings.extend(offloads(name, interface));
            findings.extend(queues(name, interface));
            findings.extend(mtu(name, interface));
            findings.extend(header_split(name, interface));
            findings.extend(promiscuous(name, interface));
            findings.extend(peer(name, interface));
            if local {
                findings.push(local_replies(name, interface, facts.daemon.runs()));
            }
        } else {
            findings.push(egress(name, interface));
        }
        findings.push(traffic_control(name, interface, local));
        findings.push(reverse_path(name, interface, many, local));
    }
    several_buffers(facts, findings);
    forwarding(facts, findings);
}

/// Whether a backend of any service is on this host.
fn backends_here(facts: &Facts) -> bool {
    let mut backends = facts.services.iter().flat_map(|service| &service.backends);
    backends.any(|backend| backend.here)
}

fn link(name: &str, interface: &Interface) -> Finding {
    let driver = interface.driver.as_deref().unwrap_or("unknown");
    let found = format!("driver {driver}, MTU {}", interface.mtu);
    if interface.up {
        Finding::ok("interface", name, found)
    } else {
        Finding::bad(
            Failure,
            "interface",
            name,
            format!("{found}, down or without a carrier"),
            format!("ip link set {name} up, and look at the cable or its other end"),
        )
    }
}

fn xdp(name: &str, interface: &Interface) -> Finding {
    const CHECK: &str = "xdp";
    if let Program::Foreign { id, name: program } = &interface.program {
        let remedy = if program == lb_common::maps::PROGRAM {
            format!("it has the name of tether's own: {HIDDEN_PINS}")
        } else {
            format!(
                "ip link set dev {name} xdp off, or stop what attached it: `bpftool link` tells; or take {name} out of `interfaces`"
            )
        };
        return Finding::bad(
            Failure,
            CHECK,
            name,
            format!(
                "another XDP program is attached (id {id}, {program}), and an interface runs one only"
            ),
            remedy,
        );
    }
    if let Some(bond) = &interface.bond {
        return Finding::bad(
            Failure,
            CHECK,
            name,
            format!("it is a port of the bond {bond}, which sends by any of its ports"),
            format!("put {bond} into `interfaces` in place of its ports"),
        );
    }
    let generic = |how: &str| {
        let remedy = match &interface.vlan_on {
            Some(parent) => format!("it is a VLAN device, and Tether reads VLAN tags itself: put {parent} into `interfaces` in its place"),
            None => "generic mode is several times slower: use an interface whose driver has native XDP (docs/hardware.md)".to_owned(),
        };
        Finding::bad(Warning, CHECK, name, how, remedy)
    };
    match interface.program {
        Program::Ours { native: true } => Finding::ok(CHECK, name, "attached natively"),
        Program::Ours { native: false } => generic("attached in generic mode"),
        _ if interface.features.is_some_and(|bits| bits & XDP_BASIC == 0) => generic(
            "not attached, and its driver has no native XDP: the daemon would use generic mode",
        ),
        _ if interface.features.is_some() => {
            Finding::ok(CHECK, name, "not attached; its driver has native XDP")
        }
        _ => Finding::bad(
            Unknown,
            CHECK,
            name,
            "not attached, and this kernel does not tell what its driver can do",
            "start the daemon: its log says which mode it got",
        ),
    }
}

/// Whether the program runs, or would run, behind the driver.
fn is_generic(interface: &Interface) -> bool {
    match interface.program {
        Program::Ours { native } => !native,
        _ => interface.features.is_some_and(|bits| bits & XDP_BASIC == 0),
    }
}

fn offloads(name: &str, interface: &Interface) -> Option<Finding> {
    let (gro, lro) = (interface.gro?, interface.lro?);
    let on: Vec<&str> = [(gro, "GRO"), (lro, "LRO")]
        .into_iter()
        .filter_map(|(on, word)| on.then_some(word))
        .collect();
    Some(if is_generic(interface) && !on.is_empty() {
        Finding::bad(
            Failure,
            "offloads",
            name,
            format!(
                "{} merges packets before a program in generic mode sees them; the daemon refuses that",
                on.join(" and ")
            ),
            format!("ethtool -K {name} gro off lro off"),
        )
    } else if lro {
        Finding::bad(
            Warning,
            "offloads",
            name,
            "LRO is on: most drivers refuse native XDP with it, and no forwarder may merge packets",
            format!("ethtool -K {name} lro off"),
        )
    } else {
        Finding::ok(
            "offloads",
            name,
            "nothing merges packets before the program",
        )
    })
}

fn queues(name: &str, interface: &Interface) -> Option<Finding> {
    // A driver may know of queues, and of no pairs of them.
    let queues = interface.queues.filter(|queues| queues.maximum > 0)?;
    let cpus = interface.cpus;
    let driver = interface.driver.as_deref().unwrap_or_default();
    let found = format!(
        "{} queue pairs in use of {}",
        queues.combined, queues.maximum
    );
    if driver == "virtio_net" && queues.crash_virtio(cpus) {
        return Some(Finding::bad(
            Failure,
            "queues",
            name,
            format!(
                "{found} with {cpus} CPUs: virtio_net dereferences a null pointer on XDP_TX, and the daemon refuses that"
            ),
            format!("ethtool -L {name} combined {cpus}"),
        ));
    }
    if HALF_THE_QUEUES.contains(&driver)
        && !matches!(interface.program, Program::Ours { native: true })
        && queues.combined * 2 > queues.maximum
    {
        return Some(Finding::bad(
            Warning,
            "queues",
            name,
            format!("{found}: {driver} needs as many again for XDP, and refuses native mode"),
            format!("ethtool -L {name} combined {}", queues.maximum / 2),
        ));
    }
    Some(Finding::ok("queues", name, found))
}

/// Whether its driver has native XDP, for frames of one buffer only; none where that is not told.
fn takes_one_buffer(interface: &Interface) -> Option<bool> {
    let features = interface.features?;
    Some(features & XDP_BASIC != 0 && features & XDP_RX_SG == 0)
}

fn mtu(name: &str, interface: &Interface) -> Option<Finding> {
    (interface.mtu > PAGE_MTU && takes_one_buffer(interface)?).then(|| {
        Finding::bad(
            Warning,
            "driver-mtu",
            name,
            format!("MTU {}, and its driver takes no frames of several buffers: above {PAGE_MTU} bytes it refuses native XDP", interface.mtu),
            format!("ip link set {name} mtu {PAGE_MTU}"),
        )
    })
}

/// Headers in one buffer and data in another make two of every frame, however small.
fn header_split(name: &str, interface: &Interface) -> Option<Finding> {
    (interface.splits_headers? && takes_one_buffer(interface)?).then(|| {
        let more = if interface.mtu > PAGE_MTU {
            format!("; MTU {} is more than a page holds, too", interface.mtu)
        } else {
            String::new()
        };
        Finding::bad(
            Warning,
            "header-split",
            name,
            format!("headers and data of TCP come in buffers of their own, and its driver takes no frames of several: it refuses native XDP{more}"),
            format!("ethtool -G {name} tcp-data-split off"),
        )
    })
}

/// XDP comes before the kernel asks whom a frame is for.
fn promiscuous(name: &str, interface: &Interface) -> Option<Finding> {
    interface.promiscuous?.then(|| {
        Finding::bad(
            Warning,
            "promiscuous",
            name,
            "it lets in frames for other hosts: what another balancer of the same VIPs gets, or sends on, is steered here once more, wherever a switch shows it",
            format!("capture with `tether capture`, or with `tcpdump -p`; `ip -d link show {name}` tells whether it is a port of a bridge, which always is so (docs/hardware.md)"),
        )
    })
}

/// What the other end of a veth has to do, which no physical card asks for.
fn peer(name: &str, interface: &Interface) -> Option<Finding> {
    (interface.driver.as_deref() == Some("veth") && !is_generic(interface)).then(|| {
        Finding::bad(
            Unknown,
            "peer",
            name,
            "a veth: whether its other end takes what XDP sends there, and sends no unfinished checksums itself, cannot be seen from here",
            "on the host that has the other end: an XDP program on it, of which `tether decap --interface PEER` is one; and `ethtool -K PEER tx off`, also on whatever there is beyond it on that host where packets begin (docs/hardware.md)",
        )
    })
}

/// The program on egress, where backends are on this host.
fn local_replies(name: &str, interface: &Interface, daemon: bool) -> Finding {
    const CHECK: &str = "local";
    if interface.translates_local {
        return Finding::ok(
            CHECK,
            name,
            "what backends on this host send back is translated",
        );
    }
    let (state, remedy) = if daemon {
        (
            Failure,
            "the daemon attaches a program to what goes out: its log says why it cannot",
        )
    } else {
        (
            Unknown,
            "start the daemon, which attaches a program to what goes out",
        )
    };
    Finding::bad(
        state,
        CHECK,
        name,
        "what backends on this host send back is not translated",
        remedy,
    )
}

fn egress(name: &str, interface: &Interface) -> Finding {
    match interface.features {
        Some(bits) if bits & XDP_NDO_XMIT == 0 => Finding::bad(
            Failure,
            "egress",
            name,
            "it leads to backends, is not in `interfaces`, and its driver sends no redirected frames without a program of its own",
            format!("add {name} to `interfaces`"),
        ),
        Some(_) => Finding::ok("egress", name, "takes redirected frames"),
        None => Finding::bad(
            Unknown,
            "egress",
            name,
            "it leads to backends and is not in `interfaces`; this kernel does not tell whether it sends redirected frames",
            format!("add {name} to `interfaces`, with which every driver does"),
        ),
    }
}

/// What is redirected leaves by another interface than it came in by, or by a bond, whose ports it came in by. Of frames of several buffers the kernel
/// drops those that it cannot redirect, and the program has counted them by then.
fn several_buffers(facts: &Facts, findings: &mut Vec<Finding>) {
    let numbers = numbers_of(&facts.host.release);
    let is_old = numbers.is_some_and(|numbers| numbers < REDIRECTS_SEVERAL);
    for (name, egress) in &facts.interfaces {
        let takes_several = match egress.features {
            _ if is_old => false,
            // Whether it takes any at all is another question.
            Some(bits) if bits & XDP_NDO_XMIT != 0 => bits & XDP_NDO_XMIT_SG != 0,
            _ => true,
        };
        if takes_several || !is_left_by(facts, name) {
            continue;
        }
        let is_source = |source: &String, interface: &Interface| {
            (source != name || interface.is_bond) && lets_in_several(interface)
        };
        let (mut sources, mut remedies) = (Vec::new(), Vec::new());
        let mut are_large = false;
        for (source, interface) in &facts.interfaces {
            if !is_source(source, interface) {
                continue;
            }
            // Who sends what does not fit the way out is told so.
            let is_large = interface.mtu.min(egress.mtu) > PAGE_MTU;
            let is_split = interface.splits_headers == Some(true);
            are_large |= is_large;
            if is_split {
                remedies.push(format!("ethtool -G {source} tcp-data-split off"));
            }
            if is_large || is_split {
                sources.push(source);
            }
        }
        if sources.is_empty() {
            continue;
        }
        if are_large {
            remedies.push(format!(
                "ip link set {name} mtu {PAGE_MTU}, and the same for all on its link"
            ));
        }
        let why = if is_old {
            remedies.push("or run Linux 6.3 or later".to_owned());
            "this kernel redirects no frames of several buffers"
        } else {
            "it takes no redirected frames of several buffers"
        };
        findings.push(Finding::bad(
            Warning,
            "egress-buffers",
            name,
            format!(
                "{why}: such as come in by {} and leave by it are lost, though counted as sent",
                listed(sources)
            ),
            remedies.join("; "),
        ));
    }
}

/// Whether packets are redirected to an interface: to a backend on another host, or translated, wherever their clients are.
fn is_left_by(facts: &Facts, name: &str) -> bool {
    facts.services.iter().any(|service| {
        let mut elsewhere = service.backends.iter().filter(|backend| !backend.here);
        elsewhere.any(|backend| service.mode.translates() || backend.interface == name)
    })
}

/// Whether frames of several buffers come to the program by an interface, if there are such. In generic mode the kernel itself sends what is redirected.
fn lets_in_several(interface: &Interface) -> bool {
    interface.configured
        && match interface.features {
            Some(bits) => bits & XDP_RX_SG != 0 && !is_generic(interface),
            // A driver that takes none would have refused native mode.
            None => matches!(interface.program, Program::Ours { native: true }),
        }
}

fn traffic_control(name: &str, interface: &Interface, local: bool) -> Finding {
    match &interface.tc {
        None => Finding::bad(
            Unknown,
            "tc",
            name,
            "programs of traffic control could not be listed",
            format!(
                "run `tether doctor` as root, or look at `tc filter show dev {name} ingress` and `bpftool net`"
            ),
        ),
        Some(none) if none.is_empty() => {
            Finding::ok("tc", name, "no other program of traffic control")
        }
        Some(programs) => Finding::bad(
            Warning,
            "tc",
            name,
            format!(
                "{}: these see no packet that XDP has steered{}, neither coming nor going",
                listed(programs),
                if local {
                    ", but to backends on this host"
                } else {
                    ""
                }
            ),
            "make sure that none of them is meant to filter, count or shape the traffic of a VIP",
        ),
    }
}

fn reverse_path(name: &str, interface: &Interface, many: bool, local: bool) -> Finding {
    let key = sysctl::of_interface(IpVersion::V4, name, "rp_filter");
    match interface.rp_filter {
        None => Finding::bad(
            Unknown,
            "rp_filter",
            name,
            "could not be read",
            format!("see {key}"),
        ),
        Some(1) if many => Finding::bad(
            Warning,
            "rp_filter",
            name,
            format!(
                "strict (1): answers to health checks{} that come in by another interface than the route back are dropped",
                if local {
                    ", and clients' packets to backends on this host,"
                } else {
                    ""
                }
            ),
            format!("sysctl -w {key}=2, and net.ipv4.conf.all.rp_filter too if that is 1"),
        ),
        Some(0) => Finding::ok("rp_filter", name, "off"),
        Some(1) => Finding::ok(
            "rp_filter",
            name,
            "strict, and all is reached by this interface",
        ),
        Some(_) => Finding::ok("rp_filter", name, "loose"),
    }
}

fn forwarding(facts: &Facts, findings: &mut Vec<Finding>) {
    for version in IpVersion::ALL {
        // By an interface: what is for the host itself is not forwarded.
        let is_forwarded_to = |backend: &Backend| backend.here && !backend.interface.is_empty();
        let mut translating = facts
            .services
            .iter()
            .filter(|service| {
                service.mode.translates() || service.backends.iter().any(is_forwarded_to)
            })
            .filter(|service| IpVersion::of(service.vip) == version)
            .peekable();
        if translating.peek().is_none() {
            continue;
        }
        let services = listed(translating.map(|service| &service.name));
        for (name, interface) in &facts.interfaces {
            if !interface.configured || !interface.exists {
                continue;
            }
            let number = version as u32;
            let key = |name| sysctl::of_interface(version, name, "forwarding");
            findings.push(match interface.unforwarded[version].as_deref() {
                Some([]) => Finding::ok("forwarding", name, format!("IPv{number} is forwarded")),
                Some(unforwarded) => {
                    let keys: Vec<_> = unforwarded.iter().map(|n| key(n) + "=1").collect();
                    Finding::bad(
                        Failure,
                        "forwarding",
                        name,
                        format!(
                            "IPv{number} that comes in by {} is not forwarded, so clients of {services} get no replies",
                            unforwarded.join(", ")
                        ),
                        format!("sysctl -w {}, and write it to /etc/sysctl.d", keys.join(" ")),
                    )
                }
                None => Finding::bad(
                    Unknown,
                    "forwarding",
                    name,
                    format!("whether IPv{number} is forwarded could not be read"),
                    format!("see {}: it has to be 1", key(name)),
                ),
            });
        }
    }
}
