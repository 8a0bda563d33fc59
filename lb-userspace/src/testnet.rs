//! Network namespaces for tests of what talks to the kernel: two hosts and a cable between them.
//!
//! A namespace lives as long as its thread, so nothing is left behind when a test panics, and nothing of the machine's own
//! network is touched.

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, OwnedFd},
    process::Command,
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns, unshare};

/// How long anything that will come is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The addresses of two hosts in one version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    /// This side's.
    pub(crate) here: IpAddr,
    /// The other side's.
    pub(crate) there: IpAddr,
    /// One on the link that nobody has.
    pub(crate) nobody: IpAddr,
    /// One behind the other side, which has it on its loopback.
    pub(crate) behind: IpAddr,
    /// Length of the link's prefix.
    prefix: u8,
}

/// In IPv4.
pub(crate) const FOUR: Network = Network {
    here: four(10, 77, 0, 1),
    there: four(10, 77, 0, 2),
    nobody: four(10, 77, 0, 99),
    behind: four(10, 78, 0, 7),
    prefix: 24,
};
/// In IPv6.
pub(crate) const SIX: Network = Network {
    here: six(77, 1),
    there: six(77, 2),
    nobody: six(77, 99),
    behind: six(78, 7),
    prefix: 64,
};

const fn four(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn six(link: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, link, 0, 0, 0, host))
}

/// The addresses of a pod: see [`Pair::pod`].
pub(crate) const PODS: [IpAddr; 2] = [four(10, 79, 0, 5), six(79, 5)];

/// The other side's MAC.
pub(crate) const THERE_MAC: &str = "02:00:00:00:00:02";

type Job = Box<dyn FnOnce() + Send>;

/// A host of its own: a thread in a network namespace of its own.
pub(crate) struct Host {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    namespace: OwnedFd,
}

impl Host {
    fn new() -> Self {
        let host = Self::start(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests of the network need root");
        });
        // Link-local addresses are usable at once too: until one is, the kernel asks no neighbour of IPv6 whether it is still there, and a live one
        // seems to be gone.
        host.run(|| {
            for interfaces in ["all", "default"] {
                let file = format!("/proc/sys/net/ipv6/conf/{interfaces}/accept_dad");
                std::fs::write(file, "0").unwrap();
            }
        });
        host
    }

    /// Another thread in the same namespace, to change the network while the first is busy.
    pub(crate) fn twin(&self) -> Self {
        let namespace = self.namespace.try_clone().unwrap();
        Self::start(move || setns(namespace, CloneFlags::CLONE_NEWNET).unwrap())
    }

    fn start(enter: impl FnOnce() + Send + 'static) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            enter();
            let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
            sender.send(OwnedFd::from(namespace)).unwrap();
            for job in queue {
                job();
            }
        });
        let host = Self {
            jobs: Some(jobs),
            thread: Some(thread),
            namespace: receiver.recv().unwrap(),
        };
        host.ip("link set lo up");
        host
    }

    /// Runs something on the host, and waits for it.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = mpsc::channel();
        self.jobs
            .as_ref()
            .unwrap()
            .send(Box::new(move || drop(sender.send(job()))))
            .unwrap();
        receiver.recv().expect("the job panicked")
    }

    /// Runs `ip` with these arguments on the host.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        let arguments = arguments.to_owned();
        self.run(move || {
            let output = Command::new("ip")
                .args(arguments.split_whitespace())
                .output()
                .unwrap();
            assert!(output.status.success(), "ip {arguments}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Two hosts, a cable between them; `near` is where the code under test runs.
pub(crate) struct Pair {
    pub(crate) near: Host,
    pub(crate) far: Host,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let (near, far) = (Host::new(), Host::new());
        let there = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            far.namespace.as_raw_fd()
        );
        near.ip(&format!(
            "link add near type veth peer name far address {THERE_MAC} netns {there}"
        ));
        near.ip("link set near up");
        far.ip("link set far up");
        wait_for("carrier", || near.ip("link show near").contains("state UP"));
        let pair = Self { near, far };
        pair.brighten();
        for network in [FOUR, SIX] {
            let Network {
                here,
                there,
                behind,
                prefix,
                ..
            } = network;
            // Nobody is asked whether an IPv6 address is taken: that takes a second.
            pair.near
                .ip(&format!("addr add {here}/{prefix} dev near nodad"));
            pair.far.ip(&format!("addr add {behind} dev lo"));
            pair.near.ip(&format!("route add {behind} via {there}"));
        }
        pair
    }

    /// A pod of the near host: behind a veth pair, with a route for its two addresses alone.
    pub(crate) fn pod(&self) -> Host {
        let pod = Host::new();
        let there = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            pod.namespace.as_raw_fd()
        );
        let near = self.near.twin();
        near.ip(&format!(
            "link add pod mtu 1450 type veth peer name eth0 netns {there}"
        ));
        near.ip("link set pod up");
        pod.ip("link set eth0 up");
        for address in PODS {
            near.ip(&format!("route add {address} dev pod"));
        }
        pod
    }

    /// Lets the far host vanish without a word. The cable stays plugged in.
    pub(crate) fn darken(&self) {
        self.far.ip("addr flush dev far");
    }

    /// Brings it back.
    pub(crate) fn brighten(&self) {
        for Network { there, prefix, .. } in [FOUR, SIX] {
            self.far
                .ip(&format!("addr add {there}/{prefix} dev far nodad"));
        }
    }
}

/// Runs a future on a host, in a runtime of its own.
pub(crate) fn block_on<F, T>(host: &Host, future: impl FnOnce() -> F + Send + 'static) -> T
where
    F: Future<Output = T>,
    T: Send + 'static,
{
    host.run(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async move {
                tokio::time::timeout(PATIENCE * 2, future())
                    .await
                    .expect("the test takes too long")
            })
    })
}

/// Waits until something is true.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
