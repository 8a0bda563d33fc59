//! The loop itself: events in, maps and status out.
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use lb_common::{
    backend::{Backend, BackendState, Mode, NextHop, Serving},
    maglev::Slot,
    net::{Address, IpVersion},
    service::Service,
    vip::{VipEntry, WAYS},
};
use lb_userspace::{
    by_version::ByVersion,
    config::{self, BackendSpec, Config},
    dataplane::maps::{Capacity, Maps},
    desired::{Edit, Refusal},
    dns,
    flows::{Census, Counts, TableCensus},
    health,
    model::{Admin, BackendName, Health, HealthReport, NextHopReport, Target},
    preview::{BackendChange, Preview, ServiceChange, ServicePreview},
    reconcile::{self, Command, Inputs, Outputs},
    status::{Attachments, BackendStatus, DifferenceKind, Status},
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
    questions: watch::Receiver<BTreeMap<dns::Question, dns::Bounds>>,
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

    async fn undrain(&self, backend: &str) -> Result<(), Refusal> {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_drained_removed_and_gone_when_its_last_flow_ends() {
    let machine = Machine::new("life");
    let daemon = running(&machine).await;
    let status = daemon.status.borrow().clone();
    assert!(serves(&status, "b1", Serving::New) && serves(&status, "b2", Serving::New));
    assert_eq!(status.generation.applied, 1);
    assert_eq!(daemon.targets.borrow().len(), 2);
    assert_eq!(daemon.addresses.borrow().len(), 2);

    daemon.drain("b2").await.unwrap();
    daemon
        .until("b2 drains", |status| {
            serves(status, "b2", Serving::ExistingOnly)
        })
        .await;
    daemon.undrain("b2").await.unwrap();
    daemon
        .until("b2 is back", |status| serves(status, "b2", Serving::New))
        .await;
    let error = daemon.drain("b3").await.unwrap_err();
    assert!(matches!(error, Refusal::Absent(_)), "{error}");
    assert!(
        error.to_string().contains("there is no backend chat/b3"),
        "{error}"
    );

    let id = (2, 0);
    assert_eq!(IpAddr::from(machine.maps.backends.get(2).address), B2.1);
    assert_eq!(daemon.reload(machine.config(&[B1])).await, Ok(4));
    daemon.census.send_replace(Arc::new(counted(1, &[(id, 5)])));
    let status = daemon
        .until("b2 is removed", |status| {
            backend(status, "b2").is_some_and(|b2| b2.removed && b2.flows.pin == 5)
        })
        .await;
    assert!(serves(&status, "b2", Serving::ExistingOnly));
    assert_eq!(status.flows.pin, 5);
    for scans in 2..8 {
        daemon
            .census
            .send_replace(Arc::new(counted(scans, &[(id, 1)])));
    }
    daemon
        .until("one flow is left", |status| {
            backend(status, "b2").is_some_and(|b2| b2.flows.pin == 1)
        })
        .await;
    // Its clients learn of its death for as long as it has any.
    assert_eq!(daemon.targets.borrow().len(), 2);
    let mut scans = 8;
    while backend(&daemon.status.borrow().clone(), "b2").is_some() {
        let before = daemon.status.borrow().clone();
        daemon.census.send_replace(Arc::new(counted(scans, &[])));
        daemon
            .until("the census is heard", |status| {
                !Arc::ptr_eq(status, &before)
            })
            .await;
        scans += 1;
        assert!(scans < 100, "b2 never goes");
    }
    assert!(
        scans >= 8 + 4,
        "gone after {} scans, but it takes two full ones, each after one under way",
        scans - 8
    );
    assert!(daemon.graces.load(Ordering::SeqCst) >= 3);
    assert_eq!(machine.maps.backends.get(2).identity, 0);
    assert_eq!(daemon.targets.borrow().len(), 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_ids_drains_and_names() {
    let machine = Machine::new("restart");
    let daemon = running(&machine).await;
    daemon.drain("b2").await.unwrap();
    daemon
        .until("b2 drains", |status| {
            serves(status, "b2", Serving::ExistingOnly)
        })
        .await;
    daemon
        .until("all is applied", |status| status.generation.applied == 2)
        .await;
    daemon.stop().await;
    let before = [1, 2].map(|id| machine.maps.backends.get(id));
    let table = machine.maps.services.get(1);

    // The new daemon's configuration no longer has b1: its name is known all the same.
    let daemon = Daemon::start(&machine.maps, machine.config(&[B2]));
    let status = daemon.until("adopted", |status| status.pid != 0).await;
    let b1 = backend(&status, "b1").expect("the name of the removed backend is known");
    assert!(b1.removed && b1.address == B1.1);
    assert_eq!(
        [1, 2].map(|id| machine.maps.backends.get(id)),
        before,
        "nothing changes before the first word"
    );
    assert_eq!(machine.maps.services.get(1), table);
    daemon.reachable("10.0.1.12").await;
    daemon.verdict("b2", "10.0.1.12:80", Health::Up).await;
    let status = daemon
        .until("applied", |status| status.generation.applied > 0)
        .await;
    let b2 = backend(&status, "b2").unwrap();
    assert_eq!(
        (b2.serving, b2.removed),
        (Serving::ExistingOnly, false),
        "still drained"
    );
    assert_eq!(
        [1, 2].map(|id| machine.maps.backends.get(id).identity),
        before.map(|entry| entry.identity)
    );
    daemon.stop().await;
}

/// What the status says is otherwise than in the file: backend, in what, how it is, how the file has it.
fn differences(status: &Status) -> Vec<(&str, DifferenceKind, Option<&str>, Option<&str>)> {
    let all = status.config.differences.iter();
    all.map(|one| {
        let (now, file) = (one.now.as_deref(), one.file.as_deref());
        (one.backend.as_str(), one.change, now, file)
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_made_at_runtime_hold_over_restarts_and_reloads_and_are_shown_beside_the_file() {
    let machine = Machine::new("edits");
    let mut daemon = running(&machine).await;
    let b3 = BackendSpec {
        address: [10, 0, 1, 13].into(),
        port: None,
        weight: 100,
        admin: Admin::Active,
    };
    daemon.edit("b3", Edit::Put(b3.clone())).await.unwrap();
    daemon.edit("b1", Edit::Weight(25)).await.unwrap();
    daemon.edit("b2", Edit::Remove).await.unwrap();
    daemon.reachable("10.0.1.13").await;
    daemon.verdict("b3", "10.0.1.13:80", Health::Up).await;
    let expected = [
        (
            "b1",
            DifferenceKind::Weight,
            Some("weight 25"),
            Some("weight 100"),
        ),
        (
            "b2",
            DifferenceKind::Removed,
            None,
            Some("10.0.1.12:80, weight 100"),
        ),
        (
            "b3",
            DifferenceKind::Added,
            Some("10.0.1.13:80, weight 100"),
            None,
        ),
    ];
    let in_force = |status: &Status| {
        serves(status, "b3", Serving::New)
            && !serves(status, "b2", Serving::New)
            && backend(status, "b1").is_some_and(|b1| b1.weight == 25)
            && status.generation.applied == status.generation.accepted
    };
    let status = daemon.until("the edits", |status| in_force(status)).await;
    assert_eq!(differences(&status), expected);
    // b1 has a fifth of what both have.
    let slots = |id| slots_of(&machine.maps, id);
    let (of_b1, of_b2, of_b3) = (slots(1), slots(2), slots(3));
    assert_eq!((of_b1 + of_b3, of_b2), (1_009, 0));
    assert!((180..224).contains(&of_b1), "{of_b1}");

    // A file that says nothing of them changes nothing of them; nor does a restart, though nobody is asked before.
    daemon.reload(machine.config(&[B1, B2])).await.unwrap();
    daemon.stop().await;
    daemon = Daemon::start(&machine.maps, machine.config(&[B1, B2]));
    let status = daemon
        .until("first status", |status| !status.services.is_empty())
        .await;
    assert_eq!(differences(&status), expected);
    for address in ["10.0.1.11", "10.0.1.12", "10.0.1.13"] {
        daemon.reachable(address).await;
    }
    for (name, address) in [("b1", "10.0.1.11:80"), ("b3", "10.0.1.13:80")] {
        daemon.verdict(name, address, Health::Up).await;
    }
    daemon
        .until("the edits again", |status| in_force(status))
        .await;
    assert_eq!(
        (slots(1), slots(3)),
        (of_b1, of_b3),
        "the table is the same"
    );

    // What is wrong changes nothing, and is not remembered.
    let twice = daemon.edit("b4", Edit::Put(b3)).await.unwrap_err();
    assert!(matches!(twice, Refusal::Invalid(_)), "{twice}");
    let absent = daemon.edit("b2", Edit::Weight(1)).await.unwrap_err();
    assert!(matches!(absent, Refusal::Absent(_)), "{absent}");
    // What the file comes to say itself is no difference any more, and what it no longer has cannot be changed.
    daemon
        .reload(machine.config(&[B1, ("b3", Ipv4Addr::new(10, 0, 1, 13))]))
        .await
        .unwrap();
    let status = daemon
        .until("the file has b3", |status| differences(status).len() == 1)
        .await;
    assert_eq!(differences(&status), expected[..1]);
    daemon.edit("b1", Edit::Revert).await.unwrap();
    let status = daemon
        .until("all as in the file", |status| {
            differences(status).is_empty()
        })
        .await;
    assert_eq!(backend(&status, "b1").unwrap().weight, 100);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_stops_resolving_keeps_its_addresses_and_an_address_that_leaves_is_drained() {
    let machine = Machine::new("dns");
    let config = || {
        let mut config = machine.config(&[B1]);
        let text = "interfaces = [\"eth0\"]\n[[service]]\nname = \"chat\"\nvip = \"10.0.0.1\"\nport = 80\nmode = \"ipip\"\n\
                    [[service.dns]]\nname = \"pods\"\nquery = \"pods.example.\"\ntype = \"srv\"\nmin_ttl = \"2s\"\n";
        let named = config::parse(Path::new("loop.toml"), text).unwrap().config;
        config.services[0].dns = named.services[0].dns.clone();
        // For 65 backends, which are more than the maps hold.
        config.services[0].table_size = 4_177;
        config
    };
    let daemon = Daemon::start(&machine.maps, config());
    let question = dns::Question {
        name: "pods.example.".into(),
        kind: dns::Kind::Srv,
    };
    let bounds = dns::Bounds {
        min: Duration::from_secs(2),
        max: Duration::from_secs(300),
    };
    daemon
        .until("the question", |_| {
            *daemon.questions.borrow() == BTreeMap::from([(question.clone(), bounds)])
        })
        .await;
    let answer = async |daemon: &Daemon, result: Result<&[u8], &str>| {
        let found = |&last: &u8| dns::Found {
            address: [10, 0, 1, last].into(),
            port: Some(80),
            weight: Some(50),
        };
        let result = result
            .map(|all| all.iter().map(found).collect())
            .map_err(str::to_owned);
        let question = question.clone();
        let report = dns::Report { question, result };
        daemon.answers.send(report).await.unwrap();
    };
    // Nothing is applied before the name was asked once: its backends are not taken for removed.
    for address in ["10.0.1.11", "10.0.1.20", "10.0.1.21"] {
        daemon.reachable(address).await;
    }
    daemon.verdict("b1", "10.0.1.11:80", Health::Up).await;
    assert_eq!(daemon.status.borrow().generation.resolved, 0);
    // An address that cannot be a backend is told, and takes nothing from the others.
    answer(&daemon, Ok(&[20, 21, 11])).await;
    let serve = async |daemon: &Daemon| {
        daemon
            .until("they are watched", |_| daemon.targets.borrow().len() >= 3)
            .await;
        for (name, address) in [
            ("b1", "10.0.1.11:80"),
            ("pods-10.0.1.20", "10.0.1.20:80"),
            ("pods-10.0.1.21", "10.0.1.21:80"),
        ] {
            daemon.verdict(name, address, Health::Up).await;
        }
        daemon
            .until("both serve", |status| {
                serves(status, "pods-10.0.1.20", Serving::New)
                    && serves(status, "pods-10.0.1.21", Serving::New)
            })
            .await
    };
    let status = serve(&daemon).await;
    let [source] = &status.dns[..] else {
        panic!("{:?}", status.dns)
    };
    assert_eq!((source.addresses.len(), source.failures), (3, 0));
    assert!(
        source.ignored[0].contains("10.0.1.11 is backend \"chat/b1\"'s already"),
        "{source:?}"
    );
    let pod = backend(&status, "pods-10.0.1.20").unwrap();
    assert_eq!((pod.weight, pod.port), (50, 80));

    answer(&daemon, Err("request timed out")).await;
    answer(&daemon, Err("request timed out")).await;
    let status = daemon
        .until("the failures", |status| status.dns[0].failures == 2)
        .await;
    assert_eq!(status.dns[0].error.as_deref(), Some("request timed out"));
    assert!(serves(&status, "pods-10.0.1.20", Serving::New));
    // What is known outlives the daemon, though the name still does not resolve.
    daemon.stop().await;
    let daemon = Daemon::start(&machine.maps, config());
    for address in ["10.0.1.11", "10.0.1.20", "10.0.1.21"] {
        daemon.reachable(address).await;
    }
    answer(&daemon, Err("request timed out")).await;
    serve(&daemon).await;

    // Asked by another name, it has its addresses until that is answered.
    let mut renamed = config();
    renamed.services[0].dns[0].question.name = "other.example.".into();
    daemon.reload(renamed).await.unwrap();
    let status = daemon
        .until("the other name", |status| {
            status.dns[0].query == "other.example."
                && status.generation.applied == status.generation.accepted
        })
        .await;
    assert!(serves(&status, "pods-10.0.1.20", Serving::New));
    daemon.reload(config()).await.unwrap();

    // A drain and a weight are a backend's, wherever it comes from.
    daemon
        .edit("pods-10.0.1.21", Edit::Weight(10))
        .await
        .unwrap();
    answer(&daemon, Ok(&[21])).await;
    let status = daemon
        .until("one left", |status| {
            !serves(status, "pods-10.0.1.20", Serving::New)
                && serves(status, "pods-10.0.1.21", Serving::New)
                && status.generation.applied == status.generation.accepted
        })
        .await;
    assert_eq!(status.dns[0].error, None);
    assert_eq!(backend(&status, "pods-10.0.1.21").unwrap().weight, 10);
    assert!(backend(&status, "pods-10.0.1.20").is_none_or(|gone| gone.removed));
    // The maps have room for 63 backends: more than that is refused as a whole.
    let many: Vec<u8> = (100..164).collect();
    answer(&daemon, Ok(&many)).await;
    let status = daemon
        .until("too many", |status| status.dns[0].error.is_some())
        .await;
    assert!(serves(&status, "pods-10.0.1.21", Serving::New));
    assert_eq!(status.dns[0].addresses.len(), 1);
    // The source is gone, and so are its backends.
    daemon.reload(machine.config(&[B1])).await.unwrap();
    let status = daemon
        .until("no source", |status| {
            status.dns.is_empty() && !serves(status, "pods-10.0.1.21", Serving::New)
        })
        .await;
    assert!(serves(&status, "b1", Serving::New));
    assert!(daemon.questions.borrow().is_empty());
    daemon.stop().await;
}

/// Backends of a previewed service: name, change, share of the table before and after in slots of 1,009, and active flows.
fn previewed(service: &ServicePreview) -> Vec<(&str, BackendChange, u32, u32, u64)> {
    let slots = |share: Option<f64>| (share.unwrap_or(0.0) * 1_009.0).round() as u32;
    let all = service.backends.iter();
    all.map(|one| {
        let (before, after) = (slots(one.share.before), slots(one.share.after));
        (
            one.name.as_str(),
            one.change,
            before,
            after,
            one.flows.active,
        )
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_says_what_a_reload_then_does_and_changes_nothing_itself() {
    const B3: (&str, Ipv4Addr) = ("b3", Ipv4Addr::new(10, 0, 1, 13));
    let machine = Machine::new("preview");
    let daemon = running(&machine).await;
    daemon.drain("b1").await.unwrap();
    daemon.undrain("b1").await.unwrap();
    daemon
        .census
        .send_replace(Arc::new(counted(1, &[((2, 0), 5)])));
    let before = daemon
        .until("counted", |status| {
            backend(status, "b2").is_some_and(|b2| b2.flows.active == 5)
        })
        .await;
    let read = || {
        let slots: Vec<u32> = (0..10_000)
            .map(|at| machine.maps.tables.get(at).current())
            .collect();
        let states: Vec<u64> = (0..64).map(|id| machine.maps.state(id).0).collect();
        (slots, states)
    };
    let held = read();

    let same = daemon.preview(machine.config(&[B1, B2])).await.unwrap();
    assert!(same.is_empty() && same.unchanged == 1, "{same:?}");

    let preview = daemon.preview(machine.config(&[B1, B3])).await.unwrap();
    assert_eq!(
        (preview.generation, preview.unchanged, preview.drained_flows),
        (3, 0, 5)
    );
    let [service] = &preview.services[..] else {
        panic!("{preview:?}")
    };
    assert_eq!(service.change, ServiceChange::Changed);
    let foreseen = previewed(service);
    let [
        (b1, kept, b1_before, b1_after, _),
        (b3, added, 0, b3_after, 0),
        (b2, removed, b2_before, 0, 5),
    ] = foreseen[..]
    else {
        panic!("{foreseen:?}")
    };
    assert_eq!((b1, b2, b3), ("b1", "b2", "b3"));
    use BackendChange::{Added, Kept, Removed};
    assert_eq!((kept, added, removed), (Kept, Added, Removed));
    assert_eq!(
        (slots_of(&machine.maps, 1), slots_of(&machine.maps, 2)),
        (b1_before, b2_before)
    );

    // What needs a restart, or more room than there is, is said as a reload would say it.
    let mut other = machine.config(&[B1]);
    other.interfaces = vec!["eth1".into()];
    let error = daemon.preview(other).await.unwrap_err();
    assert!(
        error.contains("interfaces takes effect only when the daemon starts"),
        "{error}"
    );
    let status = daemon.status.borrow().clone();
    assert_eq!(status.generation, before.generation);
    assert_eq!(
        status.config, before.config,
        "a preview is no reload that was refused"
    );
    assert!(read() == held, "the maps are as they were");

    // And so it comes.
    let owners = |slots: &[u32]| {
        let table = lb_common::maglev::TableRef(machine.maps.services.get(1).table);
        slots[table.offset() as usize..][..1_009].to_vec()
    };
    let was = owners(&held.0);
    daemon.reload(machine.config(&[B1, B3])).await.unwrap();
    daemon.reachable("10.0.1.13").await;
    daemon.verdict("b3", "10.0.1.13:80", Health::Up).await;
    daemon
        .until("b3 serves", |status| {
            serves(status, "b3", Serving::New)
                && status.generation.applied == status.generation.accepted
        })
        .await;
    assert_eq!(
        (slots_of(&machine.maps, 1), slots_of(&machine.maps, 3)),
        (b1_after, b3_after)
    );
    let is = owners(&read().0);
    let moved = was.iter().zip(&is).filter(|(was, is)| was != is).count();
    assert_eq!((service.moved * 1_009.0).round() as usize, moved);
    daemon.stop().await;
}

/// Slots that a backend has.
fn slots_of(maps: &Maps, id: u32) -> u32 {
    let slots = lb_common::maglev::TableRef(maps.services.get(1).table);
    let slots = slots.offset()..slots.offset() + slots.size();
    let current = |at| maps.tables.get(at).current();
    slots.filter(|&at| current(at) == id).count() as u32
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_first_word_it_goes_on_after_a_bounded_wait() {
    let machine = Machine::new("silence");
    let daemon = Daemon::start(&machine.maps, machine.config(&[B1, B2]));
    let status = daemon
        .until("applied", |status| status.generation.applied > 0)
        .await;
    assert!(status.services[0].fail_open, "nobody is known to be up");
    assert!(serves(&status, "b1", Serving::New));
    daemon.stop().await;
}

/// The bound of the wait for first words.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// What packets to the service are steered by: itself, its backends, and the tables.
type Steering = (Service, [Backend; 2], Vec<Slot>);

fn steering(maps: &Maps) -> Steering {
    (
        maps.services.get(1),
        [1, 2].map(|id| maps.backends.get(id)),
        (0..10_000).map(|at| maps.tables.get(at)).collect(),
    )
}

/// Starts a daemon whose file no longer has b1, on what one has left that served with both. Gives what that has left, and the time
/// before it began.
async fn follow_without_b1(machine: &Machine) -> (Daemon, Steering, Instant) {
    running(machine).await.stop().await;
    assert!(slots_of(&machine.maps, 1) > 0);
    let (left, begun) = (steering(&machine.maps), Instant::now());
    let daemon = Daemon::start(&machine.maps, machine.config(&[B2]));
    (daemon, left, begun)
}

/// Asserts that b1 is out of the table, and not cut off.
fn assert_b1_drains(machine: &Machine, status: &Status) {
    let b1 = backend(status, "b1").unwrap();
    assert_eq!((b1.removed, b1.serving), (true, Serving::ExistingOnly));
    assert_eq!(slots_of(&machine.maps, 1), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_takes_nothing_away_before_the_first_word() {
    let machine = Machine::new("first-word");
    let (daemon, left, begun) = follow_without_b1(&machine).await;
    daemon.until("adopted", |status| status.pid != 0).await;
    // Something else is heard: a loop that does not wait has applied its plan before it shows that.
    let hear_of_flows = async |scans: u64| {
        let flows = counted(scans, &[((2, 0), scans)]);
        daemon.census.send_replace(Arc::new(flows));
        daemon
            .until("the flows are heard of", |status| {
                backend(status, "b2").is_some_and(|b2| b2.flows.pin == scans)
            })
            .await;
        // On a machine that takes so long, the wait may be over by right.
        assert!(
            steering(&machine.maps) == left || begun.elapsed() >= FIRST_WORD,
            "changed after {:?}",
            begun.elapsed()
        );
    };
    for scans in 1..=3 {
        hear_of_flows(scans).await;
    }
    // Half of the word on b2.
    daemon.reachable("10.0.1.12").await;
    hear_of_flows(4).await;
    daemon.verdict("b2", "10.0.1.12:80", Health::Up).await;
    let status = daemon
        .until("applied", |status| status.generation.applied > 0)
        .await;
    assert_b1_drains(&machine, &status);
    daemon.stop().await;
}

/// A drain's answer is its promise that no new flow comes, and a restart waits before it applies anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_while_the_first_word_is_awaited_is_answered_once_it_is_in_force() {
    let machine = Machine::new("first-word-drain");
    running(&machine).await.stop().await;
    assert!(slots_of(&machine.maps, 1) > 0);
    let begun = Instant::now();
    let daemon = Daemon::start(&machine.maps, machine.config(&[B1, B2]));
    let absent = daemon.drain("b3").await.unwrap_err();
    assert!(matches!(absent, Refusal::Absent(_)), "{absent}");
    // A refusal waits for nothing, but on a machine that takes so long the wait may be over by right.
    let resolved = daemon.status.borrow().generation.resolved;
    assert!(
        resolved == 0 || begun.elapsed() >= FIRST_WORD,
        "answered after {:?}",
        begun.elapsed()
    );
    daemon.drain("b1").await.unwrap();
    assert_eq!(
        (slots_of(&machine.maps, 1), machine.maps.state(1).serving()),
        (0, Serving::ExistingOnly)
    );
    let status = daemon.status.borrow().clone();
    assert!(serves(&status, "b1", Serving::ExistingOnly), "{status:?}");
    assert!(serves(&status, "b2", Serving::New), "{status:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_answered_once_it_is_in_force() {
    let machine = Machine::new("answered");
    let daemon = running(&machine).await;
    for _ in 0..5 {
        daemon.drain("b2").await.unwrap();
        assert_eq!(slots_of(&machine.maps, 2), 0);
        daemon.undrain("b2").await.unwrap();
        assert!(slots_of(&machine.maps, 2) > 0);
        daemon.edit("b2", Edit::Remove).await.unwrap();
        assert_eq!(slots_of(&machine.maps, 2), 0);
        daemon.edit("b2", Edit::Revert).await.unwrap();
        assert!(slots_of(&machine.maps, 2) > 0);
        daemon.reload(machine.config(&[B1])).await.unwrap();
        assert_eq!(slots_of(&machine.maps, 2), 0);
        daemon.reload(machine.config(&[B1, B2])).await.unwrap();
        assert!(slots_of(&machine.maps, 2) > 0);
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_takes_nothing_away_before_the_bound_without_a_word() {
    let machine = Machine::new("first-word-bound");
    let (daemon, left, begun) = follow_without_b1(&machine).await;
    while steering(&machine.maps) == left {
        assert!(begun.elapsed() < PATIENCE, "b1 never leaves");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(begun.elapsed() >= FIRST_WORD, "{:?}", begun.elapsed());
    let status = daemon
        .until("applied", |status| status.generation.applied > 0)
        .await;
    assert_b1_drains(&machine, &status);
    daemon.stop().await;
}

/// A daemon of two services, at an IPv4 and an IPv6 VIP, whose first word has come but for which VIPs are the host's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_vip_that_the_host_has_itself_is_marked_before_anything_is_applied() {
    let machine = Machine::new("own");
    let mut config = machine.config(&[]);
    let mut second = config.services[0].clone();
    second.name = "six".into();
    second.vip = "2001:db8::1".parse().unwrap();
    config.services.push(second);
    let vips: BTreeSet<IpAddr> = config.services.iter().map(|service| service.vip).collect();
    let mut daemon = Daemon::start_knowing(&machine.maps, config, None);
    daemon.vips.wait_for(|asked| *asked == vips).await.unwrap();
    let own = |version| {
        let key = match version {
            IpVersion::V4 => VipEntry::key(0x0a00_0001, 0),
            IpVersion::V6 => {
                let vip = Address::from("2001:db8::1".parse::<IpAddr>().unwrap());
                VipEntry::key6(vip.words(), 0)
            }
        };
        (0..machine.maps.capacity.vip_buckets())
            .flat_map(|bucket| (0..WAYS).map(move |way| (bucket, way)))
            .map(|(bucket, way)| machine.maps.vip(version, bucket, way))
            .find(|entry| entry.is_for(key))
            .map(VipEntry::value)
    };
    let both = || [own(IpVersion::V4), own(IpVersion::V6)];
    assert_eq!(both(), [None, None]);
    daemon.own_vips.send_replace(Some(vips));
    daemon
        .until("applied", |status| status.generation.applied > 0)
        .await;
    assert_eq!(both(), [Some(VipEntry::HOST_OWNED), None]);
    daemon.own_vips.send_replace(Some(BTreeSet::new()));
    let deadline = Instant::now() + PATIENCE;
    while !matches!(both(), [Some(0), Some(1 | 2)]) {
        assert!(Instant::now() < deadline, "{:?}", both());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    daemon.shutdown.send_replace(true);
    daemon.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_configuration_leaves_all_as_it_is_and_is_shown() {
    let machine = Machine::new("refused");
    let daemon = running(&machine).await;
    let mut other = machine.config(&[B1]);
    other.services[0].table_size = 9_973;
    let error = daemon.reload(other).await.unwrap_err();
    assert!(
        error.contains("table_slots = 10000, 9946 too few"),
        "{error}"
    );
    let mut other = machine.config(&[B1]);
    other.interfaces = vec!["eth1".to_owned()];
    let error = daemon.reload(other).await.unwrap_err();
    assert!(
        error.contains("interfaces takes effect only when the daemon starts"),
        "{error}"
    );
    let mut other = machine.config(&[B1]);
    other.checks_at_once += 1;
    let error = daemon.reload(other).await.unwrap_err();
    assert!(
        error.contains("checks in [limits] takes effect only when the daemon starts"),
        "{error}"
    );
    let error = "loop.toml:1:1: …".to_owned();
    daemon
        .commands
        .send(Command::RejectedConfig {
            error: error.clone(),
        })
        .await
        .unwrap();
    let status = daemon
        .until("shown", |status| {
            status.config.error.as_ref() == Some(&error)
        })
        .await;
    assert!(serves(&status, "b2", Serving::New));
    assert_eq!(status.generation.accepted, 1);
    daemon.reload(machine.config(&[B1])).await.unwrap();
    daemon
        .until("mended", |status| status.config.error.is_none())
        .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_heals_under_steady_change() {
    let machine = Machine::new("drift");
    let daemon = running(&machine).await;
    let healthy = machine.maps.state(1);
    machine.maps.set_state(1, BackendState::default());
    // Something happens all the time; that must not put the comparison off.
    let begun = std::time::Instant::now();
    let mut scans = 1;
    while machine.maps.state(1) != healthy {
        assert!(begun.elapsed() < PATIENCE, "never mended");
        let before = daemon.status.borrow().clone();
        daemon.census.send_replace(Arc::new(counted(scans, &[])));
        scans += 1;
        daemon
            .until("the census is heard", |status| {
                !Arc::ptr_eq(status, &before)
            })
            .await;
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_that_are_too_small_are_refused() {
    let machine = Machine::new("size");
    let mut config = machine.config(&[B1]);
    config.limits.table_slots = 20_000;
    config.services[0].table_size = 9_973;
    let daemon = Daemon::start(&machine.maps, config);
    let error = tokio::time::timeout(PATIENCE, daemon.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap_err()
        .to_string();
    for part in [
        "loop.toml: limits: ",
        "table_slots = 10000, 9946 too few",
        "table_slots = 19946 or more",
        "`tether cleanup`",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checks_of_a_replaced_backend_go_on_beside_those_of_the_new_one() {
    let machine = Machine::new("replaced");
    let daemon = running(&machine).await;
    let moved = ("b2", Ipv4Addr::new(10, 0, 1, 99));
    daemon.reload(machine.config(&[B1, moved])).await.unwrap();
    daemon
        .until("accepted", |status| status.generation.applied == 2)
        .await;
    let checked: BTreeSet<SocketAddr> = daemon
        .targets
        .borrow()
        .iter()
        .filter(|target| target.name == name("b2"))
        .map(|target| target.address)
        .collect();
    let both = ["10.0.1.12:80", "10.0.1.99:80"].map(|address| address.parse().unwrap());
    assert_eq!(checked, BTreeSet::from(both));
    daemon.verdict("b2", "10.0.1.99:80", Health::Up).await;
    let status = daemon
        .until("the new one serves", |status| {
            status.services[0]
                .backends
                .iter()
                .any(|b| b.address == moved.1 && b.serving == Serving::New)
        })
        .await;
    let old = status.services[0]
        .backends
        .iter()
        .find(|b| b.address == B2.1)
        .unwrap();
    assert_eq!((old.removed, old.serving), (true, Serving::ExistingOnly));
    daemon.stop().await;
}

/// Whether the one service that is wanted has two backends that are up and take new flows.
fn both_serve(status: &Status) -> bool {
    let mut services = status.services.iter().filter(|service| !service.removed);
    let Some(service) = services.next() else {
        return false;
    };
    let wanted = service.backends.iter().filter(|backend| !backend.removed);
    let serving = wanted.filter(|b| b.health == Health::Up && b.serving == Serving::New);
    !service.fail_open && serving.count() == 2
}

/// The checks themselves, whose verdicts do not change meanwhile and are therefore not told again by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn the_checks_speak_for_the_new_objects_of_a_service_whose_mode_or_vip_changes() {
    let machine = Machine::new("other-objects");
    let listeners =
        [(); 2].map(|()| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let checked = listeners
        .each_ref()
        .map(|listener| listener.local_addr().unwrap());
    let config = |mode: Mode, vip: [u8; 4]| {
        let mut config = machine.config(&[B1, B2]);
        let service = &mut config.services[0];
        (service.mode, service.vip) = (mode, vip.into());
        for (backend, address) in service.backends.iter_mut().zip(checked) {
            backend.check_address = address;
            backend.check.interval = Duration::from_millis(100);
            backend.check.timeout = Duration::from_millis(100);
        }
        config
    };
    let (vip, other_vip) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let daemon = Daemon::start(&machine.maps, config(Mode::Ipip, vip));
    let checks = tokio::spawn(health::run(
        daemon.targets.clone(),
        daemon.vips.clone(),
        daemon.health.clone(),
        16,
        health::ProbeTimes::default(),
        daemon.shutdown.subscribe(),
    ));
    for address in ["10.0.1.11", "10.0.1.12"] {
        daemon.reachable(address).await;
    }
    daemon
        .until("both serve", |status| {
            status.generation.applied > 0 && both_serve(status)
        })
        .await;
    for (what, mode, vip) in [
        ("another mode", Mode::L2, vip),
        ("another VIP", Mode::L2, other_vip),
    ] {
        let accepted = daemon.reload(config(mode, vip)).await.unwrap();
        // In the same moment: no packet ever met a service whose backends nobody knows.
        let status = daemon
            .until(what, |status| status.generation.applied == accepted)
            .await;
        assert!(both_serve(&status), "{what}: {status:#?}");
    }
    // Who is wanted again once nothing is left of it has nobody to take a verdict over from.
    let nothing = Config {
        services: vec![],
        ..machine.config(&[])
    };
    daemon.reload(nothing).await.unwrap();
    let mut scans = 1;
    while !daemon.status.borrow().services.is_empty() {
        let before = daemon.status.borrow().clone();
        daemon.census.send_replace(Arc::new(counted(scans, &[])));
        daemon
            .until("the census is heard", |status| {
                !Arc::ptr_eq(status, &before)
            })
            .await;
        scans += 1;
        assert!(scans < 100, "they never go");
    }
    daemon.reload(config(Mode::Ipip, vip)).await.unwrap();
    for address in ["10.0.1.11", "10.0.1.12"] {
        daemon.reachable(address).await;
    }
    daemon
        .until("both serve again", |status| both_serve(status))
        .await;
    // And they go on speaking.
    let [first, _second] = listeners;
    drop(first);
    daemon
        .until("b1 is refusing", |status| {
            backend(status, "b1").is_some_and(|b1| b1.health == Health::Refusing)
                && serves(status, "b2", Serving::New)
        })
        .await;
    daemon.stop().await;
    tokio::time::timeout(PATIENCE, checks)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_at_its_limit_takes_no_new_flows() {
    let machine = Machine::new("limit");
    let daemon = running(&machine).await;
    let mut config = machine.config(&[B1, B2]);
    config.services[0].backends[0].part.max_connections = Some(5);
    daemon.reload(config).await.unwrap();
    let full = |status: &Arc<Status>| backend(status, "b1").is_some_and(|b| b.balance.full);
    daemon
        .census
        .send_replace(Arc::new(counted(1, &[((1, 0), 4)])));
    daemon
        .until("it is counted", |status| {
            backend(status, "b1").is_some_and(|b| b.flows.pin == 4)
        })
        .await;
    assert!(serves(&daemon.status.borrow(), "b1", Serving::New));
    daemon
        .census
        .send_replace(Arc::new(counted(2, &[((1, 0), 5)])));
    let status = daemon.until("it is full", full).await;
    assert!(serves(&status, "b1", Serving::ExistingOnly));
    assert!(serves(&status, "b2", Serving::New));
    let state = machine.maps.state(1);
    assert_eq!(state.serving(), Serving::ExistingOnly);
    // Without its limit it is as before.
    daemon.reload(machine.config(&[B1, B2])).await.unwrap();
    daemon
        .until("it serves again", |status| {
            serves(status, "b1", Serving::New)
        })
        .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_fills_no_full_backend() {
    let machine = Machine::new("limit-restart");
    let limited = || {
        let mut config = machine.config(&[B1, B2]);
        config.services[0].backends[0].part.max_connections = Some(5);
        config
    };
    let daemon = running(&machine).await;
    daemon.reload(limited()).await.unwrap();
    daemon
        .census
        .send_replace(Arc::new(counted(1, &[((1, 0), 5)])));
    daemon
        .until("it is full", |status| {
            serves(status, "b1", Serving::ExistingOnly)
        })
        .await;
    daemon.stop().await;
    // Nothing is counted yet by the daemon that follows.
    let daemon = Daemon::start(&machine.maps, limited());
    for (backend, address) in [("b1", "10.0.1.11"), ("b2", "10.0.1.12")] {
        daemon.reachable(address).await;
        daemon
            .verdict(backend, &format!("{address}:80"), Health::Up)
            .await;
    }
    let status = daemon
        .until("applied", |status| status.generation.applied > 0)
        .await;
    assert!(serves(&status, "b1", Serving::ExistingOnly));
    assert!(serves(&status, "b2", Serving::New));
    daemon.stop().await;
}
