//! Random lives of an instance: configurations, changes at runtime, answers of the DNS, verdicts, next hops, flows that begin and end, what clients send again,
//! time, drift, restarts, and deaths in the middle of a plan. What the data path relies on is checked after every single operation.
//!
//! The maps are in memory or the kernel's own: whoever plays a life says how a daemon that starts comes to them.

mod check;
mod outliers;
mod setup;
mod strategy;
mod verdicts;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use lb_common::{
    backend::{BackendState, NextHop, Serving},
    clock::Tick,
    flow::{FlowKey as _, v4, v6},
    guard::RangesRef,
    maglev::{PICK_ATTEMPTS, TableRef, slot_index},
    nat::{DNAT_SERVICES, Endpoint, Pair},
    net::IpVersion,
    vip::VipEntry,
};
use lb_userspace::{
    config::{Config, DnsSource, Limits, Service},
    dataplane::maps::{Capacity, Maps},
    desired::{self, Changes, Overlaid},
    dns::{Found, Question, Report},
    flows::{Census, Counts},
    guard::Guard,
    model::{Admin, BackendName, NextHopReport},
    plan::Operation,
    reconcile::State,
};
use proptest::sample::Index;

use self::{
    check::{directories, look_up, places},
    outliers::Ejections,
    setup::{config, endpoint, found, question},
    strategy::{Drift, EditPlan, Event, ServicePlan},
    verdicts::Verdicts,
};

pub(crate) use self::strategy::life;

const SEED: [u64; 4] = [11, 22, 33, 44];
/// Few, so that ids and room run out now and then.
const LIMITS: Limits = Limits {
    flows: 100,
    flows6: 100,
    services: 4,
    backends: 20,
    table_slots: 1_500,
    nat_pairs: 14,
    clients: 20,
    prefixes: 30,
    sources: 20,
};
const SNAT_ADDRESSES: usize = 3;
const VIPS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];
const SERVICES: usize = 4;
const BACKENDS: usize = 4;

/// The maps that a life takes.
pub(crate) fn capacity(cpus: u32) -> Capacity {
    Capacity::for_flows(
        LIMITS.flows,
        LIMITS.flows6,
        LIMITS.services,
        LIMITS.backends,
        LIMITS.table_slots,
        cpus,
    )
    .with_pairs(LIMITS.nat_pairs)
    .with_guards(LIMITS.prefixes, LIMITS.sources)
    .translating_flows_of(IpVersion::V4, true)
    .translating_flows_of(IpVersion::V6, true)
    .measuring(true)
}

/// What is to come about in some lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rare {
    /// A daemon dies with a part of a plan applied, not none and not all of it.
    DiesAmid,
    /// A backend is ejected for what its clients send again.
    Ejected,
    /// One that was ejected is there, and is not ejected any more.
    Returned,
}

/// Plays a life to its end. At each start of a daemon, `open` gives its maps: new ones of [`capacity`] first, and then these with what they hold. Gives how
/// often what is rare came about.
pub(crate) fn play(
    events: &[Event],
    open: impl FnMut() -> Arc<Maps> + 'static,
) -> BTreeMap<Rare, usize> {
    let mut world = World::new(Box::new(open));
    for event in events {
        world.happen(event);
        world.converge();
        world.speak_for_new_objects();
    }
    world.leave();
    world.rare
}

/// What the DNS has said.
type Answers = BTreeMap<Question, Vec<Found>>;

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
    ranges: Vec<RangesRef>,
}

struct World {
    /// How a daemon that starts comes to its maps.
    start: Box<dyn FnMut() -> Arc<Maps>>,
    maps: Arc<Maps>,
    state: State,
    directory: Directory,
    file: Config,
    answers: Answers,
    changes: Changes,
    /// All told: the file with what the DNS says and what was changed.
    config: Config,
    evacuated: bool,
    flows: Vec<Flow>,
    scans: u64,
    now: Tick,
    now_ms: u64,
    /// What the checks of a daemon have found out.
    verdicts: Verdicts,
    readable: Readable,
    /// VIPs that the host itself has, as the state was told.
    own: BTreeSet<IpAddr>,
    /// Identity and number of each backend with flows: they must stay together.
    numbers: HashMap<u64, (u32, u8)>,
    /// All guards that were ever asked for.
    guards: Vec<Guard>,
    /// Services whose guard somebody else has cleared.
    unguarded: BTreeSet<u16>,
    ejections: Ejections,
    rare: BTreeMap<Rare, usize>,
}

impl World {
    fn new(mut start: Box<dyn FnMut() -> Arc<Maps>>) -> Self {
        let directory = Directory::new();
        let maps = start();
        let file = config(&[], directory.0.clone());
        let now = Tick(1_000_000);
        let census = Arc::new(census(&[], 0, now));
        let state = State::adopt(Arc::clone(&maps), SEED, file.clone(), census, now).unwrap();
        Self {
            start,
            maps,
            state,
            directory,
            config: file.clone(),
            file,
            answers: Answers::new(),
            changes: Changes::default(),
            evacuated: false,
            flows: Vec::new(),
            scans: 0,
            now,
            now_ms: 0,
            verdicts: Verdicts::new(),
            readable: Readable::default(),
            own: BTreeSet::new(),
            numbers: HashMap::new(),
            guards: Vec::new(),
            unguarded: BTreeSet::new(),
            ejections: Ejections::default(),
            rare: BTreeMap::new(),
        }
    }

    fn happen(&mut self, event: &Event) {
        self.now_ms += 100;
        match event {
            Event::Reload(services) => self.reload(services),
            Event::Verdict(service, backend, health) => {
                if let Some(key) = self.named(*service, *backend) {
                    self.judge(key, *health);
                }
            }
            Event::AllWell(service) => self.all_well(*service),
            Event::Sends(sent) => self.send(sent),
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
                    let admin = desired::find(&self.config, &name).unwrap().admin;
                    let ended = self.state.undrain(&name);
                    if admin == Admin::Active {
                        assert_eq!(ended.is_ok(), !self.evacuated);
                        assert_eq!(ended.unwrap_or_default(), None);
                    } else {
                        // What was ordered is taken back, and once; and it is said that the file wants it out.
                        assert!(ended.is_err() || ended.is_ok_and(|stays| stays.is_some()));
                        assert!(self.state.undrain(&name).is_err());
                    }
                }
            }
            Event::Evacuate(all) => {
                let done = if *all {
                    self.state.drain_all(None)
                } else {
                    self.state.undrain_all()
                };
                done.unwrap();
                self.evacuated = *all;
            }
            Event::Edit(service, backend, plan) => self.edit(*service, *backend, plan),
            Event::Answer(service, hosts) => self.answer(*service, hosts.as_ref()),
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
            Event::Die(last, at) => self.die(last, at),
        }
    }

    fn reload(&mut self, services: &[Option<ServicePlan>]) {
        let file = config(services, self.directory.0.clone());
        let wanted = file.services.iter();
        let guards = wanted.filter_map(|service| service.guard.clone());
        self.guards.extend(guards);
        let overlaid = self.changes.over(&expanded(&file, &self.answers));
        let fits = fits(&overlaid.config);
        let result = self.state.reload(file.clone());
        assert_eq!(result.is_ok(), fits, "{result:?}");
        if fits {
            self.file = file;
            let asked = self.state.questions();
            self.answers.retain(|name, _| asked.contains_key(name));
            self.take(overlaid);
        }
    }

    /// Somebody changes a backend by the admin API.
    fn edit(&mut self, service: usize, backend: usize, plan: &EditPlan) {
        let Some(wanted) = self.service(service) else {
            return;
        };
        let name = BackendName {
            service: wanted.name.clone(),
            backend: format!("b{backend}"),
        };
        let edit = setup::edit(service, backend, plan, wanted.mode);
        let base = expanded(&self.file, &self.answers);
        let edited = self.changes.edited(&base, &name, &edit).ok();
        let overlaid = edited
            .map(|changes| changes.over(&base))
            .filter(|overlaid| fits(&overlaid.config));
        let result = self.state.edit(&name, &edit);
        assert_eq!(
            result.is_ok(),
            overlaid.is_some(),
            "{name}: {edit:?}: {result:?}"
        );
        if let Some(overlaid) = overlaid {
            self.take(overlaid);
        }
    }

    /// The DNS answers, or fails, which changes nothing.
    fn answer(&mut self, service: usize, hosts: Option<&BTreeSet<u8>>) {
        let Some(mode) = self.service(service).map(|wanted| wanted.mode) else {
            return;
        };
        let question = question(service);
        let addresses = hosts.map(|hosts| {
            let found = hosts.iter().map(|&host| found(service, host, mode));
            let mut addresses: Vec<Found> = found.collect();
            addresses.sort_unstable();
            addresses
        });
        let result = addresses.clone().ok_or_else(|| "no answer".to_owned());
        self.state.answered(Report {
            question: question.clone(),
            result,
        });
        let Some(addresses) = addresses else {
            return;
        };
        if !self.state.questions().contains_key(&question) {
            return;
        }
        let mut answers = self.answers.clone();
        answers.insert(question, addresses);
        let overlaid = self.changes.over(&expanded(&self.file, &answers));
        if fits(&overlaid.config) {
            self.answers = answers;
            self.take(overlaid);
        }
    }

    fn take(&mut self, overlaid: Overlaid) {
        self.changes = overlaid.changes;
        self.config = overlaid.config;
    }

    /// A service as it is wanted.
    fn service(&self, service: usize) -> Option<&Service> {
        let (vip, port) = endpoint(service);
        let mut services = self.config.services.iter();
        services.find(|wanted| (wanted.vip, wanted.port) == (vip, port))
    }

    /// Name and checked address of a service's backend, wherever it comes from, by its place among them.
    fn named(&self, service: usize, backend: usize) -> Option<(BackendName, SocketAddr)> {
        let service = self.service(service)?;
        let backend = service.backends.get(backend)?;
        let name = BackendName {
            service: service.name.clone(),
            backend: backend.name.clone(),
        };
        Some((name, backend.check_address))
    }

    fn restart(&mut self) {
        // Adoption begins with a grace period.
        self.readable = Readable::default();
        // A new daemon has counted nothing yet, and checked nobody.
        self.verdicts.clear();
        self.ejections = Ejections::default();
        let census = Arc::new(census(&[], 0, self.now));
        self.scans = 0;
        self.maps = (self.start)();
        let (maps, file) = (Arc::clone(&self.maps), self.file.clone());
        self.state = State::adopt(maps, SEED, file, census, self.now).unwrap();
        self.own.clear();
    }

    /// The daemon dies somewhere in the plan that follows an event.
    fn die(&mut self, last: &Event, at: &Index) {
        let saved = (self.answers.clone(), self.changes.clone());
        self.happen(last);
        let plan = self.state.plan(self.now);
        let count = at.index(plan.operations.len() + 1);
        for operation in &plan.operations[..count] {
            self.apply(operation);
        }
        let is_amid = 0 < count && count < plan.operations.len();
        self.came_about(Rare::DiesAmid, is_amid.into());
        if matches!(last, Event::Answer(..) | Event::Reload(_)) {
            // Answers, and which of them are asked for no longer, are saved with what has come of that.
            let (answers, changes) = saved;
            let overlaid = changes.over(&expanded(&self.file, &answers));
            self.answers = answers;
            self.take(overlaid);
        }
        self.restart();
    }

    fn came_about(&mut self, what: Rare, times: usize) {
        if times > 0 {
            *self.rare.entry(what).or_default() += times;
        }
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
            Drift::Guard(id) => {
                self.maps.guards.set(id, &Default::default());
                self.unguarded.insert(id as u16);
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
        self.check_ejections();
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
        if let Operation::WriteGuard { service, .. } = operation {
            self.unguarded.remove(service);
        }
        if matches!(operation, Operation::Grace) {
            self.readable = Readable::default();
        }
        self.check_invariants(operation);
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
        for id in 0..self.maps.guards.len() {
            let guard = self.maps.guards.get(id);
            assert_eq!(guard, Default::default(), "the guard of {id} is left");
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
        for version in IpVersion::ALL {
            for (bucket, way) in places(self.maps.capacity.endpoint_buckets()) {
                let word = self.maps.endpoint_words(version).word(bucket, way);
                assert_eq!(word.load(Ordering::Relaxed), 0, "an endpoint is listed");
            }
        }
    }
}

/// A file with what the DNS says.
fn expanded(file: &Config, answers: &Answers) -> Config {
    desired::expand(file, |source| addresses(answers, source)).config
}

fn addresses<'a>(answers: &'a Answers, source: &DnsSource) -> &'a [Found] {
    answers.get(&source.question).map_or(&[], Vec::as_slice)
}

/// Whether the maps hold all that is wanted.
fn fits(config: &Config) -> bool {
    let needs = config.needs();
    needs.services <= LIMITS.services.into()
        && needs.backends <= LIMITS.backends.into()
        && needs.table_slots <= LIMITS.table_slots.into()
        && needs.nat_pairs <= LIMITS.nat_pairs.into()
        && needs.prefixes <= LIMITS.prefixes.into()
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
