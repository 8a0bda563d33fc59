//! Asks the kernel and the network. Whatever cannot be had stays `None`.

mod host;
mod interface;
mod way;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use lb_common::backend::Mode;

use super::{
    facts::{Backend, Daemon, Facts, Probe, Service, Snat},
    judge::largest,
    probe::{Ear, Out, Question, Tunnel},
};
use crate::{
    config::Config,
    neighbour::{local::Rule, netlink::Netlink},
    status::Status,
};

/// What the examination is about.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// The configuration file, if one is known.
    pub config: Option<&'a Config>,
    /// What the running daemon says, if one answers.
    pub status: Option<&'a Status>,
    /// The pin directory.
    pub bpffs: &'a Path,
}

/// A service, from wherever it is known.
struct Wanted {
    name: String,
    vip: IpAddr,
    port: u16,
    mode: Mode,
    snat: Vec<IpAddr>,
    backends: Vec<(String, SocketAddr)>,
}

/// The services: the daemon knows backends from the DNS and what was changed at runtime, the file does not.
fn wanted(asked: &Asked<'_>) -> Vec<Wanted> {
    let configured = asked.config.map_or(&[][..], |config| &config.services);
    let snat = |name: &str| {
        let service = configured.iter().find(|service| service.name == name);
        service.map_or_else(Vec::new, |service| service.snat.clone())
    };
    match asked.status {
        Some(status) => status
            .services
            .iter()
            .filter(|service| !service.removed)
            .map(|service| Wanted {
                name: service.name.clone(),
                vip: service.vip,
                port: service.port,
                mode: service.mode,
                snat: snat(&service.name),
                backends: service
                    .backends
                    .iter()
                    .filter(|backend| !backend.removed)
                    .map(|backend| {
                        (
                            backend.name.clone(),
                            SocketAddr::new(backend.address, backend.port),
                        )
                    })
                    .collect(),
            })
            .collect(),
        None => configured
            .iter()
            .map(|service| Wanted {
                name: service.name.clone(),
                vip: service.vip,
                port: service.port,
                mode: service.mode,
                snat: service.snat.clone(),
                backends: service
                    .backends
                    .iter()
                    .map(|backend| {
                        (
                            backend.name.clone(),
                            SocketAddr::new(backend.address, backend.port),
                        )
                    })
                    .collect(),
            })
            .collect(),
    }
}

/// Interfaces that the program is to be attached to: by the file; or, where that cannot be used any more, as the daemon says.
fn interfaces(asked: &Asked<'_>) -> Vec<String> {
    match (asked.config, asked.status) {
        (Some(config), _) => config.interfaces.clone(),
        // Whether a program is the daemon's is seen by where it is pinned, which the file might have said.
        (None, Some(status)) if asked.bpffs.exists() => {
            let attached = status.attachments.iter().map(|one| &one.interface);
            let detached = status.detached.iter().map(|one| &one.interface);
            attached.chain(detached).cloned().collect()
        }
        (None, _) => vec![],
    }
}

/// Gathers everything. It takes a second or two: some of it is asked of backends.
///
/// # Errors
/// When no netlink socket is to be had.
///
/// # Panics
/// Outside of a tokio runtime.
pub async fn gather(asked: &Asked<'_>) -> std::io::Result<Facts> {
    let netlink = Netlink::connect()?;
    let wanted = wanted(asked);
    let mut facts = Facts {
        host: host::gather(asked),
        daemon: asked.status.map_or(Daemon::Silent, daemon),
        ..Facts::default()
    };
    let addresses = wanted.iter().flat_map(|service| &service.backends);
    let configured = interfaces(asked);
    let rule = Rule {
        interfaces: configured.clone(),
        named: asked
            .config
            .and_then(|config| config.local_interfaces.clone()),
    };
    let addresses = addresses.map(|(_, at)| at.ip()).collect();
    let ways = way::gather(&netlink, &rule, addresses).await;
    let mut names: BTreeMap<String, bool> = ways
        .values()
        .filter(|way| !way.here && !way.physical.is_empty())
        .map(|way| (way.physical.clone(), false))
        .collect();
    names.extend(configured.into_iter().map(|name| (name, true)));
    for (name, configured) in names {
        let interface = interface::gather(&netlink, &name, configured, asked.bpffs).await;
        facts.interfaces.insert(name, interface);
    }
    for service in &wanted {
        facts
            .services
            .push(gather_service(&netlink, service, &ways).await);
    }
    ask(&mut facts, &wanted, &ways);
    Ok(facts)
}

/// What a daemon says is wrong.
fn daemon(status: &Status) -> Daemon {
    let mut complaints = Vec::new();
    complaints.extend(
        status
            .config
            .error
            .as_ref()
            .map(|error| format!("it refused its configuration: {error}")),
    );
    complaints.extend(status.services.iter().filter_map(|service| {
        let error = service.error.as_ref()?;
        Some(format!(
            "service {} is not served as configured: {error}",
            service.name
        ))
    }));
    complaints.extend(status.closed_egress.iter().map(|closed| {
        format!(
            "packets cannot leave by {}: {}",
            closed.interface, closed.reason
        )
    }));
    complaints.extend(status.detached.iter().map(|detached| {
        format!(
            "the program is not attached to {}: {}",
            detached.interface, detached.reason
        )
    }));
    if status.attachments.is_empty() {
        complaints.push("the program is attached to nothing".to_owned());
    }
    Daemon::Runs {
        pid: status.pid,
        complaints,
    }
}

async fn gather_service(
    netlink: &Netlink,
    service: &Wanted,
    ways: &BTreeMap<IpAddr, way::Way>,
) -> Service {
    let is_local = async |address| {
        let route = netlink.route(address).await;
        route.ok().map(|route| route.local)
    };
    let mut snat = Vec::new();
    for &address in &service.snat {
        let used = service.backends.iter().map(|(_, at)| at.ip());
        snat.push(Snat {
            address,
            own: is_local(address).await,
            used_toward: used
                .filter(|backend| {
                    ways.get(backend)
                        .is_some_and(|way| way.source == Some(address))
                })
                .collect(),
        });
    }
    Service {
        name: service.name.clone(),
        vip: service.vip,
        mode: service.mode,
        // Without a route it is nobody's here.
        own_vip: Some(is_local(service.vip).await.unwrap_or(false)),
        answers: None,
        snat,
        backends: service
            .backends
            .iter()
            .filter_map(|(name, at)| {
                let way = ways.get(&at.ip())?;
                Some(Backend {
                    name: name.clone(),
                    address: at.ip(),
                    here: way.here,
                    no_route: way.obstacle.clone(),
                    interface: way.physical.clone(),
                    gateway: way.gateway,
                    neighbour: way.entry.map(|entry| entry.state),
                    mac: way.entry.and_then(|entry| entry.mac),
                    mtu: way.mtu,
                    echoes: None,
                    probe: Probe::NotSent,
                })
            })
            .collect(),
    }
}

/// Asks the far ends.
fn ask(facts: &mut Facts, wanted: &[Wanted], ways: &BTreeMap<IpAddr, way::Way>) {
    // Without the right to it, all of this stays unknown, and the findings say so.
    let Ok(ear) = Ear::open() else {
        return;
    };
    let mut questions = Vec::new();
    let mut askers = Vec::new();
    for (at, (service, wanted)) in facts.services.iter_mut().zip(wanted).enumerate() {
        if let IpAddr::V4(vip) = service.vip {
            let mut asked: BTreeMap<u32, [u8; 6]> = BTreeMap::new();
            let interfaces = facts
                .interfaces
                .iter()
                .filter(|(_, interface)| interface.configured && interface.up);
            for (name, _) in interfaces {
                if let Some((index, mac)) = interface::link_of(name) {
                    asked.insert(index, mac);
                }
            }
            for (index, mac) in asked {
                if let Ok(found) = ear.who_has(index, mac, vip) {
                    service.answers.get_or_insert_default().extend(found);
                }
            }
        }
        for (number, backend) in service.backends.iter().enumerate() {
            let Some((way, mac)) = ways.get(&backend.address).zip(backend.mac) else {
                continue;
            };
            let Some(here) = way.source else { continue };
            let port = wanted.backends[number].1.port();
            let (source, target) = match service.mode {
                Mode::L2 | Mode::Ipip => {
                    let here = source_like(here, service.vip, way);
                    let Some(here) = here else { continue };
                    (here, SocketAddr::new(service.vip, wanted.port))
                }
                Mode::Nat => (
                    wanted.snat.first().copied().unwrap_or(here),
                    SocketAddr::new(backend.address, port),
                ),
                Mode::Dnat => (service.vip, SocketAddr::new(backend.address, port)),
            };
            questions.push(Question {
                out: Out {
                    ifindex: way.interface,
                    mac,
                },
                here,
                there: backend.address,
                largest: largest(service.mode, backend.address),
                source,
                target,
                tunnel: (service.mode == Mode::Ipip).then_some(Tunnel {
                    source: here,
                    destination: backend.address,
                }),
            });
            askers.push((at, number));
        }
    }
    let Ok(answers) = ear.ask(&questions) else {
        return;
    };
    for ((service, number), answer) in askers.into_iter().zip(answers) {
        let backend = &mut facts.services[service].backends[number];
        backend.echoes = Some(answer.echoes);
        backend.probe = answer.probe;
    }
}

/// An address of this host in the version of the VIP, which the answer comes back to.
fn source_like(here: IpAddr, vip: IpAddr, way: &way::Way) -> Option<IpAddr> {
    if here.is_ipv4() == vip.is_ipv4() {
        Some(here)
    } else {
        way.others
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == vip.is_ipv4())
    }
}
