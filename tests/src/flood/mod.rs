//! Floods of frames from made-up sources, as fast as one processor makes them: by a BPF program in test runs with live frames (Linux 5.18).

mod template;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::Map;
use aya::programs::Xdp;
use lb_common::flood::{LEN, ORDERS, ORDERS_WORDS, Orders, PROGRAM};
use lb_common::hash::Seed;
use lb_common::net::IpVersion;
use lb_userspace::dataplane::array::Array;
use lb_userspace::objects;
use serde::{Deserialize, Serialize};

use crate::frame::Mac;
use crate::namespace::Namespace;
use crate::random::Random;
use crate::test_run::{self, LIVE_FRAMES};

/// Frames of one test run: some milliseconds' worth, after which it may be told to stop.
const FRAMES: u32 = 1 << 14;

/// What a flood is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// SYNs.
    Syn,
    /// Segments in mid-stream of connections that nobody knows.
    Ack,
    /// Fragments but the first.
    Fragment,
    /// Echo requests, and errors about segments from the VIP.
    Icmp,
    /// SYNs, each with the ACK that would end its handshake.
    Handshake,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Syn,
        Self::Ack,
        Self::Fragment,
        Self::Icmp,
        Self::Handshake,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Ack => "ack",
            Self::Fragment => "fragment",
            Self::Icmp => "icmp",
            Self::Handshake => "handshake",
        }
    }
}

/// Where a flood comes from and goes to.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// What it is made of.
    pub kind: Kind,
    /// The sources' prefix: its address and length in bits, at least 48 of which are fixed in IPv6. Keep it apart from real clients.
    pub prefix: (IpAddr, u8),
    /// Where it goes.
    pub target: SocketAddr,
    /// Source and destination MAC on the link that is flooded.
    pub macs: (Mac, Mac),
    /// Seeds the choice of sources, ports and sequence numbers.
    pub seed: u64,
}

/// A flood, until it is stopped or dropped.
#[derive(Debug)]
pub struct Flood {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Flood {
    /// Starts to flood from `interface` of `namespace`, a veth at whose other end an XDP program takes the frames.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses the program.
    pub fn start(namespace: &Namespace, interface: &str, plan: &Plan) -> Result<Self> {
        let name = interface.to_owned();
        let index = namespace
            .run(move || nix::net::if_::if_nametoindex(name.as_str()))
            .with_context(|| format!("flood on {interface} of {}", namespace.name()))?;
        let generator = Generator::load(&orders(plan, index))?;
        Self::pour(namespace, move |sent, stop| {
            while !stop.load(Ordering::Acquire) {
                generator.run(FRAMES)?;
                sent.fetch_add(FRAMES.into(), Ordering::Relaxed);
            }
            Ok(())
        })
    }

    /// A flood that a thread in `namespace` makes: it counts what it sends, until it is told to stop.
    pub(crate) fn pour(
        namespace: &Namespace,
        source: impl FnOnce(&AtomicU64, &AtomicBool) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let sent = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = namespace.thread("lab-flood", {
            let (sent, stop) = (sent.clone(), stop.clone());
            move || source(&sent, &stop)
        })?;
        Ok(Self {
            sent,
            stop,
            thread: Some(thread),
        })
    }

    /// Frames made so far. Those that the other end has no room for are lost, as on any link.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the flood and returns how many frames it made.
    ///
    /// # Errors
    /// When it failed on the way, so that there was no flood.
    pub fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Release);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome.context("the flood dried up")?,
            _ => bail!("the flood's thread panicked"),
        }
        Ok(self.sent())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn orders(plan: &Plan, interface: u32) -> Orders {
    let (address, length) = plan.prefix;
    let (version, base, free) = match address {
        IpAddr::V4(address) => (IpVersion::V4, address.to_bits(), 32 - u32::from(length)),
        IpAddr::V6(address) => {
            let changing = (address.to_bits() >> 48) as u32;
            (IpVersion::V6, changing, 80 - u32::from(length.max(48)))
        }
    };
    let mut random = Random::new(plan.seed);
    Orders {
        templates: template::templates(plan),
        number: 0,
        seed: Seed::new(std::array::from_fn(|_| random.bits())),
        base,
        hosts: u32::MAX.checked_shr(32 - free).unwrap_or(0),
        pairs: u32::from(plan.kind == Kind::Handshake),
        version: version as u32,
        interface,
        reserved: 0,
    }
}

/// The program, loaded, with its orders.
struct Generator {
    bench: Ebpf,
}

impl Generator {
    fn load(orders: &Orders) -> Result<Self> {
        let mut bench = Ebpf::load(objects::BENCH).context("loading the generator")?;
        let program: &mut Xdp = bench
            .program_mut(PROGRAM)
            .with_context(|| format!("no program {PROGRAM}"))?
            .try_into()?;
        program
            .load()
            .with_context(|| format!("loading {PROGRAM}"))?;
        let words: Array<u64> = match bench.map(ORDERS) {
            Some(Map::Array(map)) => Array::of_map(map.fd().as_fd(), ORDERS_WORDS as u32)?,
            _ => bail!("no array {ORDERS}"),
        };
        // SAFETY: `Orders` is `repr(C)` without padding.
        let given: [u64; ORDERS_WORDS] = unsafe { std::mem::transmute(*orders) };
        for (index, word) in given.iter().enumerate() {
            words.set(index as u32, word);
        }
        Ok(Self { bench })
    }

    /// Makes that many frames, on the calling thread's network.
    fn run(&self, frames: u32) -> Result<()> {
        let program: &Xdp = self
            .bench
            .program(PROGRAM)
            .with_context(|| format!("no program {PROGRAM}"))?
            .try_into()?;
        let program = program.fd()?.as_fd();
        test_run::repeated(program, &[0; LEN], frames, LIVE_FRAMES).context("making frames")?;
        Ok(())
    }
}
