//! The loop itself: events in, maps and status out.
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

mod backends;
mod disk;
mod edits;
mod maps;
mod names;
mod pressed;
mod preview;
mod refusals;
mod restart;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lb_common::backend::{NextHop, Serving};
use lb_userspace::{
    by_version::ByVersion,
    config::{self, Config},
    dataplane::maps::{Capacity, Maps},
    desired::{Edit, Refusal},
    dns,
    flows::{Census, Counts, TableCensus},
    model::{BackendName, Health, HealthReport, NextHopReport, Target},
    preview::Preview,
    reconcile::{self, Command, Inputs, Outputs},
    status::{Attachments, BackendStatus, Status},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

/// How long anything may take: only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A loop with all that surrounds it in the test's hands.
struct Daemon {
    commands: mpsc::Sender<Command>,
    health: mpsc::Sender<HealthReport>,
    next_hops: mpsc::Sender<NextHopReport>,
    answers: mpsc::Sender<dns::Report>,
    questions: watch::Receiver<BTreeMap<dns::Question, dns::Wanted>>,
    census: watch::Sender<Arc<Census>>,
    shutdown: watch::Sender<bool>,
    targets: watch::Receiver<Vec<Target>>,
    addresses: watch::Receiver<BTreeSet<IpAddr>>,
    vips: watch::Receiver<BTreeSet<IpAddr>>,
    own_vips: watch::Sender<Option<BTreeSet<IpAddr>>>,
    status: watch::Receiver<Arc<Status>>,
    graces: Arc<AtomicUsize>,
    task: JoinHandle<Result<(), reconcile::Error>>,
}

impl Daemon {
    fn start(maps: &Arc<Maps>, config: Config) -> Self {
        Self::start_knowing(maps, config, Some(BTreeSet::new()))
    }

    /// `own` are the VIPs that the host is known to have itself.
    fn start_knowing(maps: &Arc<Maps>, config: Config, own: Option<BTreeSet<IpAddr>>) -> Self {
        let (commands, command_inputs) = mpsc::channel(16);
        let (health, health_inputs) = mpsc::channel(16);
        let (next_hops, next_hop_inputs) = mpsc::channel(16);
        let (answers, answer_inputs) = mpsc::channel(16);
        let (question_output, questions) = watch::channel(BTreeMap::new());
        let (census, census_input) = watch::channel(Arc::new(counted(0, &[])));
        let (_, attachments) = watch::channel(Attachments::default());
        let (_, closed_egress) = watch::channel(Vec::new());
        let (_, hindrances) = watch::channel(Default::default());
        let (_, unguarded) = watch::channel(None);
        let (own_vips, own_vips_input) = watch::channel(own);
        let (vip_output, vips) = watch::channel(BTreeSet::new());
        let (shutdown, shutdown_input) = watch::channel(false);
        let (target_output, targets) = watch::channel(Vec::new());
        let (address_output, addresses) = watch::channel(BTreeSet::new());
        let graces = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&graces);
        let grace = Arc::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        // Until the first is published there is none; an empty one stands for that.
        let first: Status = serde_json::from_str(NO_STATUS).unwrap();
        let (status_output, status) = watch::channel(Arc::new(first));
        let inputs = Inputs {
            commands: command_inputs,
            health: health_inputs,
            next_hops: next_hop_inputs,
            answers: answer_inputs,
            own_vips: own_vips_input,
            hindrances,
            unguarded,
            census: census_input,
            attachments,
            closed_egress,
            shutdown: shutdown_input,
        };
        let outputs = Outputs {
            targets: target_output,
            addresses: address_output,
            questions: question_output,
            vips: vip_output,
            status: status_output,
        };
        let run = reconcile::run(
            Arc::clone(maps),
            [1, 2, 3, 4],
            config,
            grace,
            inputs,
            outputs,
        );
        Self {
            task: tokio::spawn(run),
            commands,
            health,
            next_hops,
            answers,
            questions,
            census,
            shutdown,
            targets,
            addresses,
            vips,
            own_vips,
            status,
            graces,
        }
    }

    async fn verdict(&self, backend: &str, address: &str, health: Health) {
        let report = HealthReport {
            name: name(backend),
            address: address.parse().unwrap(),
            health,
            last_error: None,
            answers_echoes: false,
        };
        self.health.send(report).await.unwrap();
    }

    async fn reachable(&self, address: &str) {
        let next_hop = NextHop {
            destination: [2, 0, 0, 0, 0, 1],
            ifindex: 3,
            mtu: 1_500,
            ..NextHop::default()
        }
        .from_source([10, 0, 1, 2].into());
        let report = NextHopReport {
            address: address.parse().unwrap(),
            next_hop: Some(next_hop),
            on_link: true,
        };
        self.next_hops.send(report).await.unwrap();
    }

    async fn reload(&self, config: Config) -> Result<u64, String> {
        let (reply, answer) = oneshot::channel();
        let config = Box::new(config);
        self.commands
            .send(Command::Reload { config, reply })
            .await
            .unwrap();
        answer.await.unwrap()
    }

    async fn drain(&self, backend: &str) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        let name = name(backend);
        self.commands
            .send(Command::Drain {
                name,
                asked: None,
                reply,
            })
            .await
            .unwrap();
        answer.await.unwrap()
    }

    async fn edit(&self, backend: &str, edit: Edit) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Edit {
            name: name(backend),
            edit,
            reply,
        };
        self.commands.send(command).await.unwrap();
        answer.await.unwrap()
    }

    async fn preview(&self, config: Config) -> Result<Preview, String> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Preview {
            config: Box::new(config),
            reply,
        };
        self.commands.send(command).await.unwrap();
        answer.await.unwrap()
    }

    async fn undrain(&self, backend: &str) -> Result<Option<String>, Refusal> {
        let (reply, answer) = oneshot::channel();
        let name = name(backend);
        self.commands
            .send(Command::Undrain { name, reply })
            .await
            .unwrap();
        answer.await.unwrap()
    }

    /// Waits until the status is as wanted.
    async fn until(&self, what: &str, wanted: impl FnMut(&Arc<Status>) -> bool) -> Arc<Status> {
        let mut watched = self.status.clone();
        let waited = tokio::time::timeout(PATIENCE, watched.wait_for(wanted)).await;
        if let Ok(status) = waited {
            return Arc::clone(&status.unwrap());
        }
        panic!("never: {what}; {:#?}", self.status.borrow());
    }

    /// Lets scan after scan find no flow, from number `scans` on, for as long as the status is so; gives the number of the next.
    async fn scan_while(
        &self,
        forever: &str,
        mut scans: u64,
        is_so: impl Fn(&Arc<Status>) -> bool,
    ) -> u64 {
        loop {
            let before = self.status.borrow().clone();
            if !is_so(&before) {
                return scans;
            }
            self.census.send_replace(Arc::new(counted(scans, &[])));
            self.until("the census is heard", |status| {
                !Arc::ptr_eq(status, &before)
            })
            .await;
            scans += 1;
            assert!(scans < 100, "{forever}");
        }
    }

    async fn stop(self) {
        self.shutdown.send(true).unwrap();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

const NO_STATUS: &str = r#"{"version":"","pid":0,"uptime_s":0,"generation":{"accepted":0,"resolved":0,"applied":0},
    "config":{"path":"","error":null},"attachments":[],"closed_egress":[],
    "flows":{"capacity":0,"embryo":0,"young":0,"pin":0,"closing":0,"use":0.0},"services":[],"reasons":{}}"#;

fn name(backend: &str) -> BackendName {
    BackendName {
        service: "chat".to_owned(),
        backend: backend.to_owned(),
    }
}

fn counted(scans: u64, flows: &[((u32, u8), u64)]) -> Census {
    let counts = |pin| Counts {
        pin,
        active: pin,
        ..Counts::default()
    };
    let all = flows.iter().map(|(_, flows)| flows).sum();
    let by_service = if all > 0 {
        HashMap::from([(1, counts(all))])
    } else {
        HashMap::new()
    };
    Census {
        scans,
        tables: ByVersion {
            v4: TableCensus {
                capacity: 1_000,
                counts: counts(all),
            },
            v6: TableCensus::default(),
        },
        by_backend: flows
            .iter()
            .map(|&(backend, flows)| (backend, counts(flows)))
            .collect(),
        by_service,
        ..Census::default()
    }
}

fn backend<'s>(status: &'s Status, name: &str) -> Option<&'s BackendStatus> {
    let mut backends = status.services.iter().flat_map(|service| &service.backends);
    backends.find(|backend| backend.name == name)
}

fn serves(status: &Status, name: &str, serving: Serving) -> bool {
    backend(status, name).is_some_and(|backend| backend.serving == serving)
}

/// A state directory that goes with its owner, and maps.
struct Machine {
    directory: PathBuf,
    maps: Arc<Maps>,
}

impl Machine {
    fn new(test: &str) -> Self {
        let capacity = Capacity::for_flows(1_000, 500, 16, 64, 10_000, 1);
        Self {
            directory: std::env::temp_dir()
                .join(format!("tether-loop-{test}-{}", std::process::id())),
            maps: Arc::new(Maps::in_memory(capacity).unwrap()),
        }
    }

    fn config(&self, backends: &[(&str, Ipv4Addr)]) -> Config {
        let mut text = format!(
            "interfaces = [\"eth0\"]\nstate_dir = {:?}\n[limits]\nflows = 1000\nservices = 16\nbackends = 64\ntable_slots = 10000\n\
             [[service]]\nname = \"chat\"\nvip = \"10.0.0.1\"\nport = 80\nmode = \"ipip\"\ntable_size = 1009\n",
            self.directory
        );
        for (name, address) in backends {
            text += &format!("[[service.backend]]\nname = {name:?}\naddress = \"{address}\"\n");
        }
        config::parse(Path::new("loop.toml"), &text).unwrap().config
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        }
    }
}

const B1: (&str, Ipv4Addr) = ("b1", Ipv4Addr::new(10, 0, 1, 11));
const B2: (&str, Ipv4Addr) = ("b2", Ipv4Addr::new(10, 0, 1, 12));

/// Starts and gives the first word about both backends.
async fn running(machine: &Machine) -> Daemon {
    let daemon = Daemon::start(&machine.maps, machine.config(&[B1, B2]));
    for address in ["10.0.1.11", "10.0.1.12"] {
        daemon.reachable(address).await;
    }
    daemon.verdict("b1", "10.0.1.11:80", Health::Up).await;
    daemon.verdict("b2", "10.0.1.12:80", Health::Up).await;
    daemon
        .until("applied", |status| status.generation.applied > 0)
        .await;
    daemon
}

/// Slots that a backend has.
fn slots_of(maps: &Maps, id: u32) -> u32 {
    let slots = lb_common::maglev::TableRef(maps.services.get(1).table);
    let slots = slots.offset()..slots.offset() + slots.size();
    let current = |at| maps.tables.get(at).current();
    slots.filter(|&at| current(at) == id).count() as u32
}
