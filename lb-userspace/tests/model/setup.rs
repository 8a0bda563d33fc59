//! What the services of a life look like, and where their backends are.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use lb_common::{backend::Mode, net::IpVersion};
use lb_userspace::{
    balance::{Balance, Part, Policy, outlier::Outlier, zone::Zone},
    config::{Affinity, Backend, BackendSpec, CLOSE_OVER, Config, DnsSource, Service},
    desired::Edit,
    dns::{Bounds, Found, Kind, Question},
    guard::{Guard, Lists, Prefix, SourceLimit},
    model::{Check, OnDown},
};

use super::{
    BACKENDS, LIMITS, SNAT_ADDRESSES, VIPS,
    strategy::{BackendPlan, EditPlan, GuardPlan, OutlierPlan, ServicePlan},
};

/// The only backend of the file that is not in the local zone.
const ELSEWHERE: &str = "b0";

/// Two services at one IPv4 VIP, two at one IPv6 VIP.
pub(super) fn endpoint(service: usize) -> (IpAddr, u16) {
    (VIPS[service / 2], 80 + service as u16 % 2)
}

/// Of IPv4 VIPs some backends have IPv6 addresses; of IPv6 VIPs all have. Where addresses are translated, all have the VIP's version, and both services
/// of a VIP the same backends.
fn address(service: usize, backend: usize, moved: bool, mode: Mode) -> IpAddr {
    let (moved, n, b) = (u8::from(moved), service as u8, backend as u8);
    let n = if mode.translates() { 100 + n / 2 } else { n };
    if endpoint(service).0.is_ipv4() && (b % 2 == 0 || mode.translates()) {
        [10, 1 + moved, n, b].into()
    } else {
        let host = u16::from_be_bytes([n, b]);
        Ipv6Addr::new(0x2001, 0xdb8, 0, moved.into(), 0, 0, 1, host).into()
    }
}

/// SNAT addresses of a service: the same for both of a VIP.
fn snat_address(service: usize, n: usize) -> IpAddr {
    match endpoint(service).0 {
        IpAddr::V4(_) => [10, 9, 9, n as u8].into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, n as u16).into(),
    }
}

/// The port of all backends where ports are translated; none is the service's.
fn backend_port(mode: Mode) -> Option<u16> {
    mode.translates().then_some(8_080)
}

/// What is asked of the DNS for a service.
pub(super) fn question(service: usize) -> Question {
    Question {
        name: format!("s{service}.example."),
        kind: Kind::Address,
    }
}

fn source(service: usize, mode: Mode) -> DnsSource {
    DnsSource {
        name: "pods".to_owned(),
        question: question(service),
        bounds: Bounds {
            min: Duration::from_secs(5),
            max: Duration::from_secs(300),
        },
        port: backend_port(mode),
        weight: 100,
    }
}

/// One of the addresses that the DNS knows of a service. No backend of the file or of an edit has it.
pub(super) fn found(service: usize, host: u8, mode: Mode) -> Found {
    Found {
        address: address(service, BACKENDS + 2 + usize::from(host), false, mode),
        port: None,
        weight: None,
    }
}

/// What is asked for of a service's backend.
pub(super) fn edit(service: usize, backend: usize, plan: &EditPlan, mode: Mode) -> Edit {
    match plan {
        EditPlan::Put(BackendPlan {
            moved,
            weight,
            admin,
        }) => Edit::Put(BackendSpec {
            address: address(service, backend, *moved, mode),
            port: backend_port(mode),
            weight: *weight,
            admin: *admin,
        }),
        EditPlan::Weight(weight) => Edit::Weight(*weight),
        EditPlan::Remove => Edit::Remove,
        EditPlan::Revert => Edit::Revert,
    }
}

/// Whom a service at a VIP takes new flows from.
fn guard(plan: &GuardPlan, vip: IpAddr) -> Guard {
    let prefix = |&n: &u8| match vip {
        IpAddr::V4(_) => Prefix::of([20 + n, 0, 0, 0].into(), 8 + n % 3),
        IpAddr::V6(_) => Prefix::of(Ipv6Addr::new(n.into(), 1, 0, 0, 0, 0, 0, 0).into(), 32),
    };
    let lists = Lists::new(
        plan.allow.iter().map(prefix).collect(),
        plan.deny.iter().map(prefix).collect(),
    );
    let limit = plan.flows.map(|flows| SourceLimit {
        prefix: 32,
        new_per_second: Some(flows),
        burst: flows,
        flows: Some(flows),
    });
    Guard::new(IpVersion::of(vip), lists, limit)
}

/// Who is ejected for what its clients send again. What they send in a life is enough each time to be judged by, and all are judged whenever time passes.
fn outlier(plan: &OutlierPlan) -> Outlier {
    Outlier {
        at_most: plan.at_most,
        eject_for: plan.eject_for,
        least: 100,
        window: Duration::from_secs(6),
        ..Outlier::DEFAULT
    }
}

pub(super) fn config(services: &[Option<ServicePlan>], state_dir: PathBuf) -> Config {
    let services = services.iter().enumerate().filter_map(|(n, plan)| {
        let plan = plan.as_ref()?;
        let (vip, port) = endpoint(n);
        let backends = plan.backends.iter().enumerate().filter_map(|(b, backend)| {
            let backend = backend.as_ref()?;
            let address = address(n, b, backend.moved, plan.mode);
            let port = backend_port(plan.mode).unwrap_or(port);
            Some(Backend {
                name: format!("b{b}"),
                address,
                port,
                weight: backend.weight,
                admin: backend.admin,
                // Even weights: a limit that a few flows reach.
                part: Part {
                    // Who has no primary left has these.
                    backup: b == BACKENDS - 1,
                    max_connections: backend.weight.is_multiple_of(2).then_some(2),
                    // Most are local.
                    zone: if format!("b{b}") == ELSEWHERE {
                        Zone::Other
                    } else {
                        Zone::Local
                    },
                },
                zone: None,
                check: Check {
                    interval: Duration::from_secs(1),
                    timeout: Duration::from_secs(1),
                    fall: 1,
                    rise: 1,
                    ..Check::DEFAULT
                },
                check_address: SocketAddr::from((address, port)),
            })
        });
        Some(Service {
            check: Check::DEFAULT,
            check_port: None,
            dns: plan
                .named
                .then(|| source(n, plan.mode))
                .into_iter()
                .collect(),
            name: format!("{}{n}", if plan.renamed { "renamed" } else { "service" }),
            vip,
            port,
            mode: plan.mode,
            snat: (0..SNAT_ADDRESSES)
                .filter(|&at| plan.mode == Mode::Nat && (plan.snat[at] || at == 0))
                .map(|at| snat_address(n, at))
                .collect(),
            table_size: plan.size,
            drain_deadline: None,
            close_over: CLOSE_OVER,
            on_down: OnDown::Reset,
            reset_over: Duration::ZERO,
            min_healthy: plan.min_healthy,
            affinity: matches!(plan.mode, Mode::L2 | Mode::Nat).then(|| Affinity {
                group: plan.renamed.then(|| "group".to_owned()),
                timeout: Duration::from_secs(60),
            }),
            guard: plan.guard.as_ref().map(|plan| guard(plan, vip)),
            list_files: Vec::new(),
            policy: Policy {
                // Longer than most of what happens in a run.
                balance: if matches!(plan.mode, Mode::Ipip | Mode::Dnat) {
                    Balance::LeastConnections
                } else {
                    Balance::Weights
                },
                slow_start: Duration::from_secs(if plan.renamed { 300 } else { 0 }),
                outlier: plan.outlier.as_ref().map(outlier),
                ..Policy::default()
            },
            backends: backends.collect(),
        })
    });
    Config {
        digest: 0,
        reload_on_change: false,
        dns_servers: None,
        path: "model.toml".into(),
        interfaces: vec!["eth0".to_owned()],
        local_interfaces: None,
        outer_sources: lb_userspace::neighbour::outer::OuterSources::default(),
        services: services.collect(),
        bpffs: "/sys/fs/bpf/model".into(),
        fleet_seed: None,
        admin_group: None,
        metrics: None,
        limits: LIMITS,
        limit_places: BTreeMap::new(),
        checks_at_once: 256,
        state_dir,
    }
}
