//! The programs in the kernel, and one run of them.

use std::{
    cell::RefCell,
    fs::File,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, ProgramArray, RingBuf},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use lb_common::{
    bench::{CROWD, CROWD_LEN, POISON, POISON_LEN, UNDER_TEST},
    hash::Seed,
    maps::{ABI_VERSION, DECAP_PROGRAM, Instance, default},
    nat::PORTS_OF_PAIR,
    net::IpVersion::{V4, V6},
    notice::Notice,
};
use lb_userspace::{
    dataplane::{
        kernel::{Loaded, bpf::set_device, run_once},
        maps::Capacity,
    },
    objects,
};
use nix::{
    sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, setns},
    unistd::Pid,
};

use crate::namespace::Namespace;

/// Interface that test packets come in by: loopback, which every network namespace has as its first.
pub const INGRESS: u32 = 1;
/// An interface that they do not come in by, and may leave by.
pub const ELSEWHERE: u32 = 7;
/// An interface that packets cannot leave by.
pub const NOWHERE: u32 = 8;

/// XDP actions.
pub mod action {
    /// A defect of a program.
    pub const ABORTED: u32 = 0;
    /// The packet is gone.
    pub const DROP: u32 = 1;
    /// The packet goes to the host.
    pub const PASS: u32 = 2;
    /// The packet leaves by the interface that it came in by.
    pub const TX: u32 = 3;
    /// The packet leaves by another interface.
    pub const REDIRECT: u32 = 4;
}

/// A seed that is none: tests look for keys that share buckets, and find the same ones every time.
pub const FLOW_SEED: Seed = Seed::new([
    0x0123_4567_89ab_cdef,
    0x9e37_79b9_7f4a_7c15,
    0xc2b2_ae3d_27d4_eb4f,
]);

/// What the programs of tests are loaded with.
pub const INSTANCE: Instance = Instance {
    abi_version: ABI_VERSION,
    reserved: 0,
    flow_seed: FLOW_SEED,
    fleet_seed: [1, 2, 3, 4],
};

/// TC's actions, as they are returned.
pub mod tc_action {
    /// The packet goes on, to another program or out.
    pub const UNSPEC: u32 = u32::MAX;
    /// The packet is gone.
    pub const SHOT: u32 = 2;
}

/// The load balancer's program, loaded once a process, since the kernel takes seconds to verify it.
pub struct Tether {
    /// Program and maps.
    pub loaded: Loaded,
    notices: RefCell<RingBuf<MapData>>,
    prepared: Prepared,
    /// Where it runs, if it asks the kernel for routes.
    surroundings: Option<Namespace>,
}

/// What the programs do beside steering.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// Nothing.
    Nothing,
    /// They guard services.
    Guarding,
    /// They count what clients send again.
    Measuring,
    /// They do both.
    GuardingAndMeasuring,
}

impl Beside {
    fn guards(self) -> bool {
        matches!(self, Self::Guarding | Self::GuardingAndMeasuring)
    }

    fn measures(self) -> bool {
        matches!(self, Self::Measuring | Self::GuardingAndMeasuring)
    }
}

/// What comes of one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The XDP action.
    pub action: u32,
    /// The frame afterwards.
    pub output: Vec<u8>,
}

impl Tether {
    /// The instance whose flow table has only a few buckets, to be had by one test at a time.
    pub fn small() -> MutexGuard<'static, Self> {
        static SMALL: OnceLock<Result<Mutex<Tether>, String>> = OnceLock::new();
        Self::lock(&SMALL, 16)
    }

    /// The instance whose flow table has the default size, to be had by one test at a time.
    pub fn full_size() -> MutexGuard<'static, Self> {
        static FULL_SIZE: OnceLock<Result<Mutex<Tether>, String>> = OnceLock::new();
        Self::lock(
            &FULL_SIZE,
            lb_common::flow::bucket::buckets_for(default::FLOWS),
        )
    }

    /// The instance with room for translations and a flow table of only a few buckets, to be had by one test at a time. The test's thread moves to a
    /// network namespace where clients are routed, see [`super::nat`].
    pub fn translating() -> MutexGuard<'static, Self> {
        static TRANSLATING: OnceLock<Result<Mutex<Tether>, String>> = OnceLock::new();
        Self::surrounded(&TRANSLATING, 16, Beside::Nothing)
    }

    /// The same with a flow table for as many flows as there are ports.
    pub fn translating_many() -> MutexGuard<'static, Self> {
        static TRANSLATING: OnceLock<Result<Mutex<Tether>, String>> = OnceLock::new();
        Self::surrounded(
            &TRANSLATING,
            lb_common::flow::bucket::buckets_for(PORTS_OF_PAIR),
            Beside::Nothing,
        )
    }

    /// As [`Self::small`], of programs that guard services.
    pub fn guarding() -> MutexGuard<'static, Self> {
        static GUARDING: OnceLock<Result<Mutex<Tether>, String>> = OnceLock::new();
        Self::lock_or(&GUARDING, || Self::load(16, 0, Beside::Guarding))
    }

    /// As [`Self::translating`], of programs that guard services.
    pub fn guarding_translating() -> MutexGuard<'static, Self> {
        static GUARDING: OnceLock<Result<Mutex<Tether>, String>> = OnceLock::new();
        Self::surrounded(&GUARDING, 16, Beside::Guarding)
    }

    /// As [`Self::translating`], with the program before it that counts what clients send again.
    pub fn measuring() -> MutexGuard<'static, Self> {
        static MEASURING: OnceLock<Result<Mutex<Tether>, String>> = OnceLock::new();
        Self::surrounded(&MEASURING, 16, Beside::Measuring)
    }

    /// As [`Self::guarding`], with the program before it that counts what clients send again.
    pub fn guarding_measuring() -> MutexGuard<'static, Self> {
        static BOTH: OnceLock<Result<Mutex<Tether>, String>> = OnceLock::new();
        Self::lock_or(&BOTH, || Self::load(16, 0, Beside::GuardingAndMeasuring))
    }

    /// As [`Self::guarding_translating`], with the program before it that counts what clients send again.
    pub fn guarding_translating_measuring() -> MutexGuard<'static, Self> {
        static BOTH: OnceLock<Result<Mutex<Tether>, String>> = OnceLock::new();
        Self::surrounded(&BOTH, 16, Beside::GuardingAndMeasuring)
    }

    fn surrounded(
        cell: &'static OnceLock<Result<Mutex<Self>, String>>,
        flow_buckets: u32,
        beside: Beside,
    ) -> MutexGuard<'static, Self> {
        let tether = Self::lock_or(cell, || {
            let surroundings = super::nat::surroundings()
                .map_err(|error| format!("making the tests' network: {error:#}"))?;
            let mut tether = Self::load(flow_buckets, super::nat::PAIRS, beside)?;
            tether.surroundings = Some(surroundings);
            Ok(tether)
        });
        if let Some(namespace) = &tether.surroundings {
            let net = File::open(namespace.net_path()).expect("its thread lives");
            setns(net, CloneFlags::CLONE_NEWNET).expect("moving to the tests' network");
        }
        tether
    }

    fn lock(
        cell: &'static OnceLock<Result<Mutex<Self>, String>>,
        flow_buckets: u32,
    ) -> MutexGuard<'static, Self> {
        Self::lock_or(cell, || Self::load(flow_buckets, 0, Beside::Nothing))
    }

    fn lock_or(
        cell: &'static OnceLock<Result<Mutex<Self>, String>>,
        load: impl FnOnce() -> Result<Self, String>,
    ) -> MutexGuard<'static, Self> {
        // A refusal is kept too: the kernel would take its time over it again for every test.
        let lock = cell
            .get_or_init(|| load().map(Mutex::new))
            .as_ref()
            .unwrap_or_else(|error| panic!("{error}"))
            .lock()
            // A test that panicked while it had the maps leaves no harm: the next one zeroes them.
            .unwrap_or_else(PoisonError::into_inner);
        stay_on_one_cpu();
        lock
    }

    /// With room for `pairs` pairs of SNAT addresses and endpoints, or for none and no translations.
    fn load(flow_buckets: u32, pairs: u32, beside: Beside) -> Result<Self, String> {
        let cpus = aya::util::nr_cpus().expect("reading the number of possible CPUs") as u32;
        let mut capacity = Capacity {
            flow4_buckets: flow_buckets,
            flow6_buckets: flow_buckets,
            services: 8,
            backends: 64,
            table_slots: 1_024,
            affinity_buckets: 4,
            cpus,
            nat4_buckets: 0,
            nat6_buckets: 0,
            endpoints: 64,
            pairs: 0,
            ranges: 64,
            source_buckets: 4,
            guards: beside.guards(),
            measures: beside.measures(),
        };
        if pairs != 0 {
            // The first of them is never used.
            capacity = capacity
                .with_pairs(pairs - 1)
                .translating_flows_of(V4, true)
                .translating_flows_of(V6, true);
        }
        let mut loaded = Loaded::private(capacity, INSTANCE)
            .map_err(|error| format!("loading tether: {error}"))?;
        // A test run ends before anything is sent, so any interface will do for what is at that number.
        set_device(loaded.egress_fd(), ELSEWHERE, INGRESS)
            .map_err(|error| format!("admitting an egress interface: {error}"))?;
        let prepared = Prepared::for_program(loaded.entry());
        let notices = loaded
            .take_notices()
            .map_err(|error| format!("reading notices: {error}"))?;
        Ok(Self {
            loaded,
            notices: RefCell::new(notices),
            prepared,
            surroundings: None,
        })
    }

    /// What the program has told the daemon since it was asked last.
    pub fn notices(&self) -> Vec<Notice> {
        let mut notices = self.notices.borrow_mut();
        std::iter::from_fn(|| {
            let item = notices.next()?;
            assert_eq!(item.len(), size_of::<Notice>());
            Notice::from_bytes(&item)
        })
        .collect()
    }

    /// Runs the program on a frame whose headroom is full of ones, as a driver's may be.
    pub fn run(&self, frame: &[u8]) -> Outcome {
        self.prepared.poisoned(frame)
    }

    /// Runs the program on a frame that has no headroom. The frame has [`CROWD_LEN`] bytes.
    pub fn run_without_headroom(&self, frame: &[u8]) -> Outcome {
        self.prepared.crowded(frame)
    }

    /// Runs the program for what backends on this host send back, on a frame that leaves.
    pub fn run_reply(&self, frame: &[u8]) -> Outcome {
        let program = self.loaded.local_reply().expect("the kernel has taken it");
        let mut output = vec![0; frame.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut output);
        let result = program
            .test_run(options)
            .unwrap_or_else(|error| panic!("BPF_PROG_TEST_RUN of the reply's program: {error}"));
        output.truncate(result.data_size_out as usize);
        Outcome {
            action: result.return_value,
            output,
        }
    }

    /// Runs the program on a frame and tells the action only: the quick way, for floods.
    pub fn hit(&self, frame: &[u8]) -> u32 {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        self.loaded
            .entry()
            .test_run(options)
            .expect("BPF_PROG_TEST_RUN of tether")
            .return_value
    }
}

/// The decapsulator.
pub struct Decap {
    // The program array holds the program by reference count; this keeps it loaded for as long as that.
    _program: Ebpf,
    prepared: Prepared,
}

impl Decap {
    /// Loads it.
    ///
    /// # Panics
    /// If the kernel refuses it.
    pub fn load() -> Self {
        let mut ebpf = EbpfLoader::new()
            .load(objects::DECAP)
            .expect("loading the decapsulator's object");
        let program = load_program(&mut ebpf, DECAP_PROGRAM);
        let prepared = Prepared::for_program(program);
        Self {
            _program: ebpf,
            prepared,
        }
    }

    /// Runs it on a frame whose headroom is full of ones.
    pub fn run(&self, frame: &[u8]) -> Outcome {
        self.prepared.poisoned(frame)
    }
}

/// Programs that prepare a frame's surroundings and then call the program under test.
struct Prepared {
    ebpf: Ebpf,
    // The array forgets its programs when the last descriptor of it is closed.
    _under_test: ProgramArray<MapData>,
}

impl Prepared {
    fn for_program(program: &Xdp) -> Self {
        let mut ebpf = EbpfLoader::new()
            .load(objects::BENCH)
            .expect("loading the bench object");
        load_program(&mut ebpf, POISON);
        load_program(&mut ebpf, CROWD);
        let map = ebpf.take_map(UNDER_TEST).expect("the bench object has it");
        let mut under_test = ProgramArray::try_from(map).expect("it is a program array");
        let fd = program.fd().expect("the program is loaded");
        under_test
            .set(0, fd, 0)
            .expect("naming the program under test");
        Self {
            ebpf,
            _under_test: under_test,
        }
    }

    fn poisoned(&self, frame: &[u8]) -> Outcome {
        let mut input = vec![0; POISON_LEN];
        input.extend(frame);
        self.run(POISON, &input)
    }

    fn crowded(&self, frame: &[u8]) -> Outcome {
        assert_eq!(frame.len(), CROWD_LEN, "what is moved is exactly this long");
        self.run(CROWD, frame)
    }

    fn run(&self, name: &str, input: &[u8]) -> Outcome {
        let program: &Xdp = self
            .ebpf
            .program(name)
            .and_then(|program| program.try_into().ok())
            .expect("it was loaded above");
        let (action, output) = run_once(program, INGRESS, input)
            .unwrap_or_else(|error| panic!("BPF_PROG_TEST_RUN of {name}: {error}"));
        Outcome { action, output }
    }
}

fn load_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a Xdp {
    let program: &mut Xdp = ebpf
        .program_mut(name)
        .unwrap_or_else(|| panic!("the object has no program {name}"))
        .try_into()
        .expect("it is an XDP program");
    program
        .load()
        .unwrap_or_else(|error| panic!("the kernel refuses {name}: {error}"));
    program
}

/// Token buckets are per CPU: a thread that moved would find another. It is one for a process, and not one for all: several may run at a time.
fn stay_on_one_cpu() {
    static CPU: OnceLock<usize> = OnceLock::new();
    let cpu = *CPU.get_or_init(|| sched_getcpu().expect("this thread's CPU"));
    let mut cpus = CpuSet::new();
    cpus.set(cpu).expect("a set has room for a CPU");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("staying on one CPU");
}
