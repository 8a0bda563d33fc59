//! The loop itself: events in, maps and status out.
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use lb_common::{
    backend::{BackendState, NextHop, Serving},
    net::{Address, IpVersion},
    vip::{VipEntry, WAYS},
};
use lb_userspace::{
    by_version::ByVersion,
    config::{self, Config},
    dataplane::maps::{Capacity, Maps},
    flows::{Census, Counts, TableCensus},
    model::{BackendName, Health, HealthReport, NextHopReport, Target},
    reconcile::{self, Command, Inputs, Outputs},
    status::{BackendStatus, Status},
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
        let (census, census_input) = watch::channel(Arc::new(counted(0, &[])));
        let (_, attachments) = watch::channel(Vec::new());
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

    async fn drain(&self, backend: &str) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let name = name(backend);
        self.commands
            .send(Command::Drain { name, reply })
            .await
            .unwrap();
        answer.await.unwrap()
    }

    async fn undrain(&self, backend: &str) -> Result<(), String> {
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
    assert!(
        daemon
            .drain("b3")
            .await
            .unwrap_err()
            .contains("there is no backend chat/b3")
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
