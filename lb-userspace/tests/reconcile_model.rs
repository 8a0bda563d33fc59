//! Random lives of an instance against maps in memory: configurations, verdicts, next hops, flows that begin and end, time, drift,
//! restarts, and deaths in the middle of a plan. What the data path relies on is checked after every single operation.
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use lb_common::{
    backend::{BackendState, Mode, NextHop, Serving},
    clock::Tick,
    flow::{FlowKey as _, v4, v6},
    maglev::{PICK_ATTEMPTS, TableRef, slot_index},
    nat::{DNAT_SERVICES, Endpoint, Pair},
    net::{Address, IpVersion},
    vip::{self, VipEntry, WAYS, homes},
};
use lb_userspace::{
    balance::{Balance, Part, Policy, zone::Zone},
    config::{Backend, CLOSE_OVER, Config, Limits, Service},
    dataplane::maps::{Capacity, Maps},
    flows::{Census, Counts},
    model::{Admin, BackendName, Check, Health, HealthReport, NextHopReport},
    plan::{Operation, Plan},
    reconcile::State,
};
use proptest::prelude::*;

const SEED: [u64; 4] = [11, 22, 33, 44];
/// Few, so that ids and room run out now and then.
const LIMITS: Limits = Limits {
    flows: 100,
    flows6: 100,
    services: 4,
    backends: 20,
    table_slots: 1_500,
    nat_pairs: 14,
};
const MODES: [Mode; 4] = [Mode::L2, Mode::Ipip, Mode::Nat, Mode::Dnat];
const SNAT_ADDRESSES: usize = 3;
const VERSIONS: [IpVersion; 2] = [IpVersion::V4, IpVersion::V6];
const VIPS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];
const SERVICES: usize = 4;
const BACKENDS: usize = 4;

/// What may happen.
#[derive(Clone, Debug)]
enum Event {
    Reload(Vec<Option<ServicePlan>>),
    Verdict(usize, usize, Health),
    NextHop(usize, usize, Option<u8>),
    Drain(usize, usize),
    Undrain(usize, usize),
    Open(usize, u16),
    End(usize),
    Scan,
    Pass(u32),
    /// The host has the IPv4 VIP itself, the IPv6 one.
    HostOwns(bool, bool),
    Drift(Drift),
    Restart,
    /// The daemon dies after so many operations of its next plan, and another starts.
    Die(usize),
}

#[derive(Clone, Debug)]
enum Drift {
    State(u32, Serving),
    Vip(IpVersion, u32, usize),
    EndpointWord(IpVersion, u32, usize),
    Endpoint(u32),
    Slot(u32),
}

/// A service as a test wants it; its VIP and port are those of its number.
#[derive(Clone, Debug)]
struct ServicePlan {
    renamed: bool,
    mode: Mode,
    /// Which SNAT addresses it has in mode `nat`.
    snat: [bool; SNAT_ADDRESSES],
    size: u32,
    min_healthy: u32,
    backends: Vec<Option<BackendPlan>>,
}

#[derive(Clone, Debug)]
struct BackendPlan {
    moved: bool,
    weight: u16,
    admin: Admin,
}

fn event() -> impl Strategy<Value = Event> {
    let (s, b) = (0..SERVICES, 0..BACKENDS);
    let health = prop::sample::select(vec![Health::Up, Health::Up, Health::Refusing, Health::Down]);
    let serving = prop::sample::select(vec![Serving::None, Serving::ExistingOnly, Serving::New]);
    let drift = prop_oneof![
        (1..LIMITS.backends, serving).prop_map(|(id, serving)| Drift::State(id, serving)),
        (
            prop::sample::select(VERSIONS.to_vec()),
            0..vip::buckets_for(LIMITS.services),
            0..WAYS
        )
            .prop_map(|(version, bucket, way)| Drift::Vip(version, bucket, way)),
        (
            prop::sample::select(VERSIONS.to_vec()),
            0..vip::buckets_for(LIMITS.backends),
            0..WAYS
        )
            .prop_map(|(version, bucket, way)| Drift::EndpointWord(version, bucket, way)),
        (1..LIMITS.backends).prop_map(Drift::Endpoint),
        (0..LIMITS.table_slots).prop_map(Drift::Slot),
    ];
    prop_oneof![
        3 => prop::collection::vec(prop::option::weighted(0.7, service()), SERVICES).prop_map(Event::Reload),
        8 => (s.clone(), b.clone(), health).prop_map(|(s, b, health)| Event::Verdict(s, b, health)),
        3 => (s.clone(), b.clone(), prop::option::weighted(0.8, any::<u8>())).prop_map(|(s, b, mac)| Event::NextHop(s, b, mac)),
        1 => (s.clone(), b.clone()).prop_map(|(s, b)| Event::Drain(s, b)),
        1 => (s.clone(), b).prop_map(|(s, b)| Event::Undrain(s, b)),
        8 => (s, any::<u16>()).prop_map(|(s, port)| Event::Open(s, port)),
        4 => any::<prop::sample::Index>().prop_map(|index| Event::End(index.index(1 << 20))),
        10 => Just(Event::Scan),
        2 => prop_oneof![1u32..20, 100u32..400].prop_map(Event::Pass),
        1 => any::<(bool, bool)>().prop_map(|(v4, v6)| Event::HostOwns(v4, v6)),
        1 => drift.prop_map(Event::Drift),
        1 => Just(Event::Restart),
        1 => (0usize..30).prop_map(Event::Die),
    ]
}

fn service() -> impl Strategy<Value = ServicePlan> {
    let admin = prop::sample::select(vec![
        Admin::Active,
        Admin::Active,
        Admin::Active,
        Admin::Draining,
        Admin::Disabled,
    ]);
    let backend = (
        prop::bool::weighted(0.2),
        prop::sample::select(vec![0, 1, 100, 100]),
        admin,
    )
        .prop_map(|(moved, weight, admin)| BackendPlan {
            moved,
            weight,
            admin,
        });
    let backends = prop::collection::vec(prop::option::weighted(0.8, backend), BACKENDS);
    let size = prop::sample::select(vec![257, 257, 293]);
    (
        prop::bool::weighted(0.1),
        prop::sample::select(MODES.to_vec()),
        any::<[bool; SNAT_ADDRESSES]>(),
        size,
        0u32..3,
        backends,
    )
        .prop_map(
            |(renamed, mode, snat, size, min_healthy, backends)| ServicePlan {
                renamed,
                mode,
                snat,
                size,
                min_healthy,
                backends,
            },
        )
}

/// The only backend that is not in the local zone.
const ELSEWHERE: &str = "b0";

/// Two services at one IPv4 VIP, two at one IPv6 VIP.
fn endpoint(service: usize) -> (IpAddr, u16) {
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

/// The port of all backends where ports are translated.
const BACKEND_PORT: u16 = 8_080;

fn config(services: &[Option<ServicePlan>], state_dir: PathBuf) -> Config {
    let services = services.iter().enumerate().filter_map(|(n, plan)| {
        let plan = plan.as_ref()?;
        let (vip, port) = endpoint(n);
        let backends = plan.backends.iter().enumerate().filter_map(|(b, backend)| {
            let backend = backend.as_ref()?;
            let address = address(n, b, backend.moved, plan.mode);
            let port = if plan.mode.translates() {
                BACKEND_PORT
            } else {
                port
            };
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
            dns: vec![],
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
            on_down: lb_userspace::model::OnDown::Reset,
            reset_over: std::time::Duration::ZERO,
            min_healthy: plan.min_healthy,
            policy: Policy {
                // Longer than most of what happens in a run.
                balance: if matches!(plan.mode, Mode::Ipip | Mode::Dnat) {
                    Balance::LeastConnections
                } else {
                    Balance::Weights
                },
                slow_start: Duration::from_secs(if plan.renamed { 300 } else { 0 }),
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
        services: services.collect(),
        bpffs: "/sys/fs/bpf/model".into(),
        fleet_seed: None,
        admin_group: None,
        metrics: None,
        limits: LIMITS,
        checks_at_once: 256,
        state_dir,
    }
}

/// A directory that goes with its owner.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "tether-model-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            assert_eq!(
                error.kind(),
                std::io::ErrorKind::NotFound,
                "{}: {error}",
                self.0.display()
            );
        }
    }
}

/// A flow that was given a backend.
#[derive(Clone, Debug)]
struct Flow {
    service: u16,
    vip: (IpAddr, u16),
    backend: (u32, u8),
    identity: u64,
    /// Where addresses are translated.
    translated: Option<FlowTranslation>,
}

/// The endpoint of a flow, and in mode `nat` its pair, as they were when it began.
#[derive(Clone, Copy, Debug)]
struct FlowTranslation {
    endpoint: (u16, Endpoint),
    pair: Option<(u16, Pair)>,
}

/// What packets that began before the next grace period may still read.
#[derive(Default)]
struct Readable {
    tables: Vec<TableRef>,
    hops: BTreeSet<(u32, usize)>,
}

struct World {
    maps: Arc<Maps>,
    state: State,
    directory: Directory,
    config: Config,
    flows: Vec<Flow>,
    scans: u64,
    now: Tick,
    now_ms: u64,
    readable: Readable,
    /// VIPs that the host itself has, as the state was told.
    own: BTreeSet<IpAddr>,
    /// Identity and number of each backend with flows: they must stay together.
    numbers: HashMap<u64, (u32, u8)>,
}

impl World {
    fn new() -> Self {
        let directory = Directory::new();
        let capacity = Capacity::for_flows(
            LIMITS.flows,
            LIMITS.flows6,
            LIMITS.services,
            LIMITS.backends,
            LIMITS.table_slots,
            1,
        )
        .with_pairs(LIMITS.nat_pairs)
        .translating_flows_of(IpVersion::V4, true)
        .translating_flows_of(IpVersion::V6, true);
        let maps = Arc::new(Maps::in_memory(capacity).unwrap());
        let config = config(&[], directory.0.clone());
        let now = Tick(1_000_000);
        let census = Arc::new(census(&[], 0, now));
        let state = State::adopt(Arc::clone(&maps), SEED, config.clone(), census, now).unwrap();
        Self {
            maps,
            state,
            directory,
            config,
            flows: Vec::new(),
            scans: 0,
            now,
            now_ms: 0,
            readable: Readable::default(),
            own: BTreeSet::new(),
            numbers: HashMap::new(),
        }
    }

    fn happen(&mut self, event: &Event) {
        self.now_ms += 100;
        match event {
            Event::Reload(services) => {
                let config = config(services, self.directory.0.clone());
                let needs = config.needs();
                let fits = needs.services <= LIMITS.services.into()
                    && needs.backends <= LIMITS.backends.into()
                    && needs.table_slots <= LIMITS.table_slots.into()
                    && needs.nat_pairs <= LIMITS.nat_pairs.into();
                let result = self.state.reload(config.clone());
                assert_eq!(result.is_ok(), fits, "{result:?}");
                if fits {
                    self.config = config;
                }
            }
            Event::Verdict(service, backend, health) => {
                if let Some((name, address)) = self.named(*service, *backend) {
                    let report = HealthReport {
                        name,
                        address,
                        health: *health,
                        last_error: None,
                    };
                    self.state.heard(report, self.now_ms);
                }
            }
            Event::NextHop(service, backend, mac) => {
                if let Some((_, address)) = self.named(*service, *backend) {
                    let address: IpAddr = address.ip();
                    let next_hop = mac.map(|last| {
                        NextHop {
                            destination: [2, 0, 0, 0, 0, last],
                            ifindex: 1,
                            mtu: 1500,
                            ..NextHop::default()
                        }
                        .from_source(VIPS[usize::from(address.is_ipv6())])
                    });
                    self.state.next_hop(NextHopReport {
                        address,
                        next_hop,
                        on_link: true,
                    });
                }
            }
            Event::Drain(service, backend) => {
                if let Some((name, _)) = self.named(*service, *backend) {
                    self.state.drain(&name, None).unwrap();
                }
            }
            Event::Undrain(service, backend) => {
                if let Some((name, _)) = self.named(*service, *backend) {
                    let active = self.config.services.iter().any(|service| {
                        service.name == name.service
                            && service.backends.iter().any(|backend| {
                                backend.name == name.backend && backend.admin == Admin::Active
                            })
                    });
                    assert_eq!(self.state.undrain(&name).is_ok(), active);
                }
            }
            Event::Open(service, port) => self.open(*service, *port),
            Event::End(flow) => {
                if !self.flows.is_empty() {
                    self.flows.swap_remove(flow % self.flows.len());
                }
            }
            Event::Scan => {
                self.scans += 1;
                let census = census(&self.flows, self.scans, self.now);
                self.state.counted(Arc::new(census));
            }
            Event::Pass(ticks) => self.now = self.now.later(*ticks),
            Event::HostOwns(v4, v6) => {
                let own = VIPS.into_iter().zip([*v4, *v6]);
                self.own = own.filter(|(_, own)| *own).map(|(vip, _)| vip).collect();
                self.state.host_owns(self.own.clone());
            }
            Event::Drift(drift) => {
                self.drift(drift);
                self.state.observe(self.now);
            }
            Event::Restart => self.restart(),
            Event::Die(after) => {
                let plan = self.state.plan(self.now);
                for operation in plan.operations.iter().take(*after) {
                    self.apply(operation);
                }
                self.restart();
            }
        }
    }

    /// Name and checked address of a backend as configured.
    fn named(&self, service: usize, backend: usize) -> Option<(BackendName, SocketAddr)> {
        let (vip, port) = endpoint(service);
        let service = self
            .config
            .services
            .iter()
            .find(|s| (s.vip, s.port) == (vip, port))?;
        let name = format!("b{backend}");
        let backend = service.backends.iter().find(|b| b.name == name)?;
        let service = service.name.clone();
        Some((
            BackendName {
                service,
                backend: name,
            },
            backend.check_address,
        ))
    }

    fn restart(&mut self) {
        // Adoption begins with a grace period.
        self.readable = Readable::default();
        // A new daemon has counted nothing yet.
        let census = Arc::new(census(&[], 0, self.now));
        self.scans = 0;
        let (maps, config) = (Arc::clone(&self.maps), self.config.clone());
        self.state = State::adopt(maps, SEED, config, census, self.now).unwrap();
        self.own.clear();
    }

    /// Somebody else writes to the maps, but nothing that a flow rests on.
    fn drift(&mut self, drift: &Drift) {
        match *drift {
            Drift::State(id, serving) => {
                let state = self.maps.state(id);
                if let Some(forwarding) = state.forwarding() {
                    let (generation, hop) = (state.generation(), state.hop() as u8);
                    let state = BackendState::new(generation, serving, forwarding, hop, false);
                    self.maps.set_state(id, state);
                }
            }
            Drift::Vip(version, bucket, way) => {
                self.maps.set_vip(version, bucket, way, VipEntry::default());
            }
            Drift::EndpointWord(version, bucket, way) => {
                self.maps
                    .set_endpoint_word(version, bucket, way, VipEntry::default());
            }
            Drift::Endpoint(id) => {
                let endpoint = self.maps.endpoints.get(id);
                let broken = Endpoint {
                    services: [9; DNAT_SERVICES],
                    ..endpoint
                };
                if endpoint.port != 0 {
                    self.maps.endpoints.set(id, &broken);
                }
            }
            Drift::Slot(index) => self.maps.tables.word(index, 0).store(0, Ordering::SeqCst),
        }
    }

    /// A client connects: what the data path does with its SYN.
    fn open(&mut self, service: usize, port: u16) {
        let vip = endpoint(service);
        let Some(service) = look_up(&self.maps, vip) else {
            return;
        };
        let entry = self.maps.services.get(u32::from(service));
        let table = TableRef(entry.table);
        if table.size() == 0 {
            return;
        }
        let client = match vip.0 {
            IpAddr::V4(_) => v4::Key::new(0x0b00_0001, port, service).client_word(&entry.seed),
            IpAddr::V6(_) => v6::Key::new([7, 1], port, service).client_word(&entry.seed),
        };
        for attempt in 0..PICK_ATTEMPTS {
            let index = table.offset() + slot_index(client, &entry.seed, attempt, table.size());
            let id = self.maps.tables.get(index).current();
            if id == 0 {
                continue;
            }
            let state = self.maps.state(id);
            if state.serving() == Serving::New {
                let entry = self.maps.backends.get(id);
                if state.translates() && !state.is_resolved() {
                    // Nothing is sent to it, so that nothing needs to be translated back.
                    return;
                }
                let identity = entry.identity;
                let translated = state.translates().then(|| {
                    let pairs: Vec<u16> = entry.pairs.into_iter().filter(|&id| id != 0).collect();
                    let pair = (!pairs.is_empty()).then(|| {
                        let pair = pairs[usize::from(port) % pairs.len()];
                        (pair, self.maps.pairs.get(pair.into()))
                    });
                    let endpoint = self.maps.endpoints.get(entry.endpoint.into());
                    FlowTranslation {
                        endpoint: (entry.endpoint, endpoint),
                        pair,
                    }
                });
                let backend = (id, state.generation());
                let before = self.numbers.insert(identity, backend);
                let has_flows = self.flows.iter().any(|flow| flow.identity == identity);
                assert!(
                    before.is_none() || before == Some(backend) || !has_flows,
                    "two numbers for one backend"
                );
                self.flows.push(Flow {
                    service,
                    vip,
                    backend,
                    identity,
                    translated,
                });
                return;
            }
        }
    }

    /// Plans and applies, as the loop does.
    fn converge(&mut self) {
        let plan = self.state.plan(self.now);
        for operation in &plan.operations {
            self.apply(operation);
        }
        self.state.applied(&plan, self.now);
        if plan.deferred.is_empty() {
            self.check_converged(&plan);
        }
        if self.state.is_settling() {
            self.readable = Readable::default();
            self.state.settled(self.scans);
        }
    }

    fn apply(&mut self, operation: &Operation) {
        self.check_nobody_reads(operation);
        operation.apply(&self.maps, &|| {});
        if matches!(operation, Operation::Grace) {
            self.readable = Readable::default();
        }
        self.check_invariants(operation);
    }

    /// What packets under way may read is not written, and what they read from now on is noted.
    fn check_nobody_reads(&mut self, operation: &Operation) {
        let overlaps = |a: &TableRef, b: &TableRef| {
            a.size() > 0
                && b.size() > 0
                && a.offset() < b.offset() + b.size()
                && b.offset() < a.offset() + a.size()
        };
        let held = |service: u16| TableRef(self.maps.services.get(u32::from(service)).table);
        match operation {
            Operation::WriteTable { from, to, .. } if from != to => {
                for service in 1..LIMITS.services as u16 {
                    assert!(
                        !overlaps(to, &held(service)),
                        "{operation}: in use by service {service}"
                    );
                }
                for table in &self.readable.tables {
                    assert!(!overlaps(to, table), "{operation}: may still be read");
                }
            }
            Operation::NameTable { service: id, .. }
            | Operation::WriteService { id, .. }
            | Operation::ClearService { id } => {
                let table = held(*id);
                self.readable.tables.push(table);
            }
            Operation::SetHop { backend, hop, .. } => {
                assert_ne!(
                    self.maps.state(*backend).hop(),
                    *hop,
                    "{operation}: in force"
                );
                assert!(
                    !self.readable.hops.contains(&(*backend, *hop)),
                    "{operation}: may still be read"
                );
            }
            Operation::SetState { backend, state } => {
                let old = self.maps.state(*backend).hop();
                if old != state.hop() {
                    self.readable.hops.insert((*backend, old));
                }
            }
            _ => {}
        }
    }

    fn check_invariants(&self, operation: &Operation) {
        let mut tables: Vec<TableRef> = Vec::new();
        for id in 1..LIMITS.services as u16 {
            let service = self.maps.services.get(u32::from(id));
            if service.identity == 0 {
                assert_eq!(
                    service.table, 0,
                    "{operation}: an unused service has a table"
                );
                continue;
            }
            let table = TableRef(service.table);
            for index in table.offset()..table.offset() + table.size() {
                let slot = self.maps.tables.get(index);
                for backend in [slot.current(), slot.previous()] {
                    let entry = self.maps.backends.get(backend);
                    assert!(
                        backend == 0 || (entry.identity != 0 && entry.service == id),
                        "{operation}: service {id} names backend {backend}, which is not there"
                    );
                }
            }
            for other in &tables {
                let apart = table.offset() >= other.offset() + other.size()
                    || other.offset() >= table.offset() + table.size();
                assert!(
                    apart || table.size() == 0 || other.size() == 0,
                    "{operation}: tables overlap"
                );
            }
            tables.push(table);
        }
        for (version, entry) in directories(&self.maps) {
            // A VIP's own entry in IPv4 names no service.
            if version == IpVersion::V4 && entry.own_key() >> 16 & 0xffff == 0 {
                continue;
            }
            let service = self.maps.services.get(u32::from(entry.value()));
            let vip = service.vip.into();
            let names_it = entry.is_for(key(vip, service.port))
                || version == IpVersion::V6 && entry.is_for(key(vip, 0));
            assert!(
                names_it && service.identity != 0,
                "{operation}: the directory names a service that is not there"
            );
        }
        self.check_translations(operation);
        for flow in &self.flows {
            let (id, generation) = flow.backend;
            let entry = self.maps.backends.get(id);
            assert_eq!(
                (entry.identity, self.maps.state(id).generation()),
                (flow.identity, generation),
                "{operation}: the backend of a flow is gone: {flow:?}"
            );
        }
    }

    /// What a backend names is there, and what a reply is translated by stays as it was for as long as there is a flow.
    fn check_translations(&self, operation: &Operation) {
        let maps = &self.maps;
        for id in 1..LIMITS.backends {
            let backend = maps.backends.get(id);
            if backend.identity == 0 || backend.endpoint == 0 {
                assert_eq!(backend.pairs, [0; 8], "{operation}: pairs of no endpoint");
                continue;
            }
            let endpoint = maps.endpoints.get(backend.endpoint.into());
            assert_eq!(
                (endpoint.address, endpoint.port),
                (backend.address, backend.port),
                "{operation}: the endpoint of backend {id}"
            );
            for pair in backend.pairs.into_iter().filter(|&pair| pair != 0) {
                assert_eq!(
                    maps.pairs.get(pair.into()).endpoint,
                    backend.endpoint,
                    "{operation}: pair {pair} of backend {id}"
                );
                assert!(
                    endpoint.pairs.contains(&pair),
                    "{operation}: replies to pair {pair} are not found"
                );
            }
        }
        for version in VERSIONS {
            for (bucket, way) in places(maps.capacity.endpoint_buckets()) {
                let words = maps.endpoint_words(version);
                let word = VipEntry(words.word(bucket, way).load(Ordering::Relaxed));
                let endpoint = maps.endpoints.get(word.value().into());
                assert!(
                    word.0 == 0 || word.is_for(key(endpoint.address.into(), endpoint.port)),
                    "{operation}: the directory names an endpoint that is not there"
                );
            }
        }
        for flow in &self.flows {
            let Some(translated) = flow.translated else {
                continue;
            };
            let (id, began) = translated.endpoint;
            let endpoint = maps.endpoints.get(id.into());
            assert_eq!(
                (endpoint.address, endpoint.port),
                (began.address, began.port),
                "{operation}: the endpoint of a flow is gone: {flow:?}"
            );
            if let Some((id, began)) = translated.pair {
                assert_eq!(maps.pairs.get(id.into()), began, "{operation}: {flow:?}");
                assert!(endpoint.pairs.contains(&id), "{operation}: {flow:?}");
            }
        }
    }

    /// What holds of the translation of addresses once a plan is applied whole.
    fn check_translated(&self) {
        let maps = &self.maps;
        for flow in &self.flows {
            if let Some(FlowTranslation { endpoint, pair }) = flow.translated {
                let (id, endpoint) = endpoint;
                let address = (endpoint.address.into(), endpoint.port);
                assert_eq!(look_up_endpoint(maps, address), Some(id), "{flow:?}");
                let services = maps.endpoints.get(id.into()).services;
                assert_eq!(
                    services.contains(&flow.service),
                    pair.is_none(),
                    "{flow:?}: {services:?}"
                );
            }
        }
        for id in 1..LIMITS.backends {
            let backend = maps.backends.get(id);
            let state = maps.state(id);
            if backend.identity == 0 || !state.translates() || !state.is_resolved() {
                continue;
            }
            let address = (backend.address.into(), backend.port);
            assert_eq!(look_up_endpoint(maps, address), Some(backend.endpoint));
            let service = maps.services.get(backend.service.into());
            let wanted = self.config.services.iter().find(|wanted| {
                wanted.mode == Mode::Nat
                    && (wanted.vip, wanted.port) == (service.vip.into(), service.port)
                    && wanted.backends.iter().any(|backend| {
                        (backend.address, backend.port) == address
                            && state.serving() == Serving::New
                    })
            });
            if let Some(wanted) = wanted {
                let snat: Vec<IpAddr> = backend
                    .pairs
                    .into_iter()
                    .filter(|&pair| pair != 0)
                    .map(|pair| maps.pairs.get(pair.into()).address.into())
                    .collect();
                assert!(!snat.is_empty() && snat.len() <= wanted.snat.len());
                assert!(snat.iter().all(|address| wanted.snat.contains(address)));
            }
        }
    }

    /// What holds once a plan is applied whole.
    fn check_converged(&mut self, plan: &Plan) {
        let again = self.state.plan(self.now);
        let shown: Vec<String> = again.operations.iter().map(ToString::to_string).collect();
        assert!(shown.is_empty(), "a second plan: {shown:#?}");
        assert_eq!(again.unsettled, plan.unsettled);
        self.check_translated();
        for flow in &self.flows {
            assert_eq!(
                look_up(&self.maps, flow.vip),
                Some(flow.service),
                "a flow's service is gone: {flow:?}"
            );
        }
        let status = self.state.status(Vec::new(), Vec::new(), Duration::ZERO);
        for vip in VIPS {
            let is_listed = (80..82).any(|port| look_up(&self.maps, (vip, port)).is_some());
            let expected = match (vip, self.own.contains(&vip)) {
                _ if !is_listed => None,
                (IpAddr::V4(_), own) => Some(if own { VipEntry::HOST_OWNED } else { 0 }),
                (IpAddr::V6(_), true) => None,
                // The one with the lower id, which the invariants compare with the VIP.
                (IpAddr::V6(_), false) => (80..82)
                    .filter_map(|port| look_up(&self.maps, (vip, port)))
                    .min(),
            };
            assert_eq!(look_up(&self.maps, (vip, 0)), expected, "{vip}");
        }
        for service in &status.services {
            if service.removed || service.error.is_some() {
                continue;
            }
            let id = look_up(&self.maps, (service.vip, service.port))
                .expect("a wanted service is listed");
            let table = TableRef(self.maps.services.get(u32::from(id)).table);
            let owners: BTreeSet<u32> = (table.offset()..table.offset() + table.size())
                .map(|index| self.maps.tables.get(index).current())
                .filter(|&owner| owner != 0)
                .collect();
            let new: BTreeSet<u32> = (1..LIMITS.backends)
                .filter(|&id| self.maps.backends.get(id).identity != 0)
                .filter(|&backend| self.maps.backends.get(backend).service == id)
                .filter(|&id| self.maps.state(id).serving() == Serving::New)
                .collect();
            assert!(
                owners.is_subset(&new),
                "the table's owners are among those that take new flows: {owners:?}, {new:?}"
            );
            // The tables of this test are so small that a sixteenth of a weight may be no slot.
            let starting = service.backends.iter().filter(|b| b.balance.starting);
            assert!(
                new.len() - owners.len() <= starting.count(),
                "who takes new flows owns slots: {owners:?}, {new:?}"
            );
            let takes = |backup| {
                let mut takers = service
                    .backends
                    .iter()
                    .filter(|b| b.serving == Serving::New);
                takers.any(|taker| taker.balance.backup == backup)
            };
            assert!(
                service.fail_open || !(takes(true) && takes(false)),
                "{service:?}"
            );
            assert_eq!(service.balance.backups, takes(true) && !service.fail_open);
            let new = service
                .backends
                .iter()
                .filter(|b| b.serving == Serving::New);
            let local_takes_all = !service.balance.spills
                && !service.fail_open
                && new.clone().any(|taker| taker.name != ELSEWHERE);
            let sum: u16 = new.map(|taker| taker.balance.per_mille).sum();
            assert!(owners.is_empty() || sum.abs_diff(1_000) <= 5, "{service:?}");
            for backend in &service.backends {
                let connections = backend.flows.young + backend.flows.pin;
                let limit = backend.balance.max_connections.map(u64::from);
                let full = backend.balance.full;
                assert!(
                    limit.is_none_or(|limit| connections < limit || full),
                    "{backend:?}"
                );
                assert!(limit.is_some() || !full, "{backend:?}");
                let may = !backend.removed
                    && backend.admin == Admin::Active
                    && backend.weight > 0
                    && !full
                    && (!backend.balance.backup || service.balance.backups || service.fail_open)
                    && !(backend.name == ELSEWHERE && local_takes_all);
                let takes = backend.serving == Serving::New;
                let held = backend.health == Health::Unknown;
                assert!(may || !takes, "{backend:?}");
                if may && (backend.health == Health::Up || service.fail_open) {
                    assert!(takes, "{backend:?}");
                }
                if may && !service.fail_open && !held {
                    assert_eq!(takes, backend.health == Health::Up, "{backend:?}");
                }
            }
        }
    }

    /// All flows end, nothing is wanted: in the end the maps are empty.
    fn leave(&mut self) {
        self.happen(&Event::Reload(Vec::new()));
        self.flows.clear();
        for _ in 0..30 {
            self.converge();
            self.happen(&Event::Scan);
        }
        self.converge();
        for id in 0..LIMITS.services {
            assert_eq!(
                self.maps.services.get(id).identity,
                0,
                "service {id} is left"
            );
        }
        for id in 0..LIMITS.backends {
            assert_eq!(
                self.maps.backends.get(id).identity,
                0,
                "backend {id} is left"
            );
        }
        assert_eq!(directories(&self.maps), []);
        for id in 0..self.maps.endpoints.len() {
            let endpoint = self.maps.endpoints.get(id);
            assert_eq!(endpoint, Endpoint::default(), "endpoint {id} is left");
        }
        for id in 0..self.maps.pairs.len() {
            assert_eq!(
                self.maps.pairs.get(id),
                Pair::default(),
                "pair {id} is left"
            );
        }
        for version in VERSIONS {
            for (bucket, way) in places(self.maps.capacity.endpoint_buckets()) {
                let word = self.maps.endpoint_words(version).word(bucket, way);
                assert_eq!(word.load(Ordering::Relaxed), 0, "an endpoint is listed");
            }
        }
    }
}

/// The key of a VIP and port in its directory.
fn key(vip: IpAddr, port: u16) -> u64 {
    match vip {
        IpAddr::V4(vip) => VipEntry::key(vip.to_bits(), port),
        IpAddr::V6(_) => VipEntry::key6(Address::from(vip).words(), port),
    }
}

/// What the data path finds for a VIP and port: a service, and for port 0 what the VIP's own entry says.
fn look_up(maps: &Maps, (vip, port): (IpAddr, u16)) -> Option<u16> {
    let (key, version) = (key(vip, port), IpVersion::of(vip));
    homes(key, maps.capacity.vip_buckets())
        .into_iter()
        .flat_map(|bucket| (0..WAYS).map(move |way| maps.vip(version, bucket, way)))
        .find(|entry| entry.is_for(key))
        .map(VipEntry::value)
}

/// The endpoint that the data path finds for an address and port.
fn look_up_endpoint(maps: &Maps, (address, port): (IpAddr, u16)) -> Option<u16> {
    let (key, version) = (key(address, port), IpVersion::of(address));
    homes(key, maps.capacity.endpoint_buckets())
        .into_iter()
        .flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)))
        .map(|(bucket, way)| maps.endpoint_words(version).word(bucket, way))
        .map(|word| VipEntry(word.load(Ordering::Relaxed)))
        .find(|entry| entry.is_for(key))
        .map(VipEntry::value)
}

fn places(buckets: u32) -> impl Iterator<Item = (u32, usize)> {
    (0..buckets).flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)))
}

/// All entries of both directories.
fn directories(maps: &Maps) -> Vec<(IpVersion, VipEntry)> {
    VERSIONS
        .into_iter()
        .flat_map(|version| {
            let buckets = 0..maps.capacity.vip_buckets();
            buckets
                .flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)))
                .map(move |(bucket, way)| (version, maps.vip(version, bucket, way)))
        })
        .filter(|(_, entry)| entry.0 != 0)
        .collect()
}

fn census(flows: &[Flow], scans: u64, at: Tick) -> Census {
    let mut by_backend: HashMap<(u32, u8), Counts> = HashMap::new();
    let mut by_service: HashMap<u16, Counts> = HashMap::new();
    let mut by_pair: HashMap<u16, u64> = HashMap::new();
    for flow in flows {
        by_backend.entry(flow.backend).or_default().pin += 1;
        by_service.entry(flow.service).or_default().pin += 1;
        if let Some((pair, _)) = flow.translated.and_then(|translated| translated.pair) {
            *by_pair.entry(pair).or_default() += 1;
        }
    }
    Census {
        scans,
        at,
        by_backend,
        by_service,
        by_pair,
        ..Census::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_leaves_the_data_path_whole(events in prop::collection::vec(event(), 1..80)) {
        let mut world = World::new();
        for event in &events {
            world.happen(event);
            world.converge();
        }
        world.leave();
    }
}
