//! Programs, maps and test runs.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf,
    maps::{Map, ProgramArray},
    programs::Xdp,
};
use lab::test_run;
use lb_common::{
    backend::{Backend, BackendState, Forwarding, Mode, NextHop, Serving},
    bench::{self, BACKENDS, FRAME_LEN, FRAME6_LEN, Kind, Orders, address6},
    clock::Tick,
    flow::{
        FlowKey as _,
        bucket::WAYS,
        table::Place,
        v4, v6,
        word::{State, Word, epoch_of},
    },
    hash::Seed,
    maglev::{Slot, TableRef},
    maps::{ABI_VERSION, Instance, default},
    net::{Address, IpVersion},
    service::Service,
    verdict::Reason,
    vip::{self, VipEntry},
};
use lb_userspace::{
    dataplane::{
        array::Array,
        kernel::{Loaded, possible_cpus},
        maps::{Capacity, Maps, now},
    },
    maglev::{self, Member},
    objects,
};

use crate::translate::{self, SNAT};

/// The service that all packets but replies and those of `non-vip` are for.
const VIP: u32 = 0x0ac8_0001;
/// Its port.
pub(crate) const PORT: u16 = 80;
/// Its id.
pub(crate) const SERVICE: u16 = 1;
/// Its table's size, slots.
pub(crate) const TABLE_SIZE: u32 = 65_537;
/// Sequence number of all SYNs; that of all segments in mid-stream is one more.
const ISN: u32 = 0x1000_0000;

/// What a row runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// The shipped program.
    Tether,
    /// Returns at once.
    FloorReturn,
    /// Parses, swaps MAC addresses, transmits.
    FloorSwap,
    /// Adds a constant IPIP header, transmits.
    FloorEncap,
}

/// Time of one test run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// The call's time on its CPU, divided by the packets. On an idle machine it is the wall clock's; on a busy one that would count
    /// others' work too.
    pub(crate) call_ns: f64,
    /// What the kernel says, in whole nanoseconds.
    pub(crate) kernel_ns: u32,
}

/// How a row's packets come, and how they are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    /// Version of IP that clients speak.
    pub(crate) version: IpVersion,
    /// The service's mode.
    pub(crate) mode: Mode,
    /// Version of IP of the backends' addresses.
    pub(crate) backends: IpVersion,
}

impl Way {
    /// To backends with addresses of the clients' version.
    pub(crate) const fn new(version: IpVersion, mode: Mode) -> Self {
        Self {
            version,
            mode,
            backends: version,
        }
    }
}

/// Everything loaded.
pub(crate) struct Harness {
    pub(crate) version: IpVersion,
    pub(crate) tether: Loaded,
    pub(crate) maps: std::sync::Arc<Maps>,
    bench: Ebpf,
    orders: Array<u64>,
}

impl Harness {
    /// Loads the shipped program with a flow table for `flows` flows of a version of IP, other maps of default size, and one service.
    pub(crate) fn load(version: IpVersion, flows: u32) -> Result<Self> {
        Self::with_capacity(version, flows, |capacity| capacity)
    }

    /// The same with other capacity.
    pub(crate) fn with_capacity(
        version: IpVersion,
        flows: u32,
        change: impl FnOnce(Capacity) -> Capacity,
    ) -> Result<Self> {
        let (flows4, flows6) = match version {
            IpVersion::V4 => (flows, 1),
            IpVersion::V6 => (1, flows),
        };
        let capacity = change(Capacity::for_flows(
            flows4,
            flows6,
            default::SERVICES,
            default::BACKENDS,
            default::TABLE_SLOTS,
            possible_cpus()?,
        ));
        let instance = Instance {
            abi_version: ABI_VERSION,
            reserved: 0,
            flow_seed: Seed::new([
                0x9e37_79b9_7f4a_7c15,
                0xbf58_476d_1ce4_e5b9,
                0x94d0_49bb_1331_11eb,
            ]),
            fleet_seed: [1, 2, 3, 4],
        };
        let tether = Loaded::private(capacity, instance)?;
        let maps = tether.maps();
        serve(&maps, Way::new(version, Mode::Ipip));

        let mut bench = Ebpf::load(objects::BENCH).context("loading the bench's programs")?;
        for name in [
            bench::HARNESS,
            bench::FLOOR_RETURN,
            bench::FLOOR_SWAP,
            bench::FLOOR_ENCAP,
        ] {
            xdp(&mut bench, name)?
                .load()
                .with_context(|| format!("loading {name}"))?;
        }
        let orders = match bench.map(bench::ORDERS) {
            Some(Map::Array(map)) => {
                Array::of_map(map.fd().as_fd(), size_of::<Orders>() as u32 / 8)?
            }
            _ => anyhow::bail!("the bench's object has no array {}", bench::ORDERS),
        };
        Ok(Self {
            version,
            tether,
            maps,
            bench,
            orders,
        })
    }

    /// Has the service's backends reached in another way. Its flows stay.
    pub(crate) fn serve(&self, way: Way) {
        serve(&self.maps, way);
    }

    /// Chooses the program under test.
    pub(crate) fn select(&mut self, program: Program) -> Result<()> {
        let name = match program {
            Program::Tether => None,
            Program::FloorReturn => Some(bench::FLOOR_RETURN),
            Program::FloorSwap => Some(bench::FLOOR_SWAP),
            Program::FloorEncap => Some(bench::FLOOR_ENCAP),
        };
        let fd = match name {
            None => self.tether.program().fd()?.try_clone()?,
            Some(name) => xdp(&mut self.bench, name)?.fd()?.try_clone()?,
        };
        let map = self
            .bench
            .map_mut(bench::UNDER_TEST)
            .context("the bench's object has no program array")?;
        ProgramArray::try_from(map)?
            .set(0, &fd, 0)
            .context("putting the program under test into the harness")
    }

    /// Orders for mid-stream segments to the VIP, in random order.
    fn orders_for(&self, kind: Kind) -> Orders {
        Orders {
            kind: kind as u32,
            flows: 0,
            // Any but 0.
            state: 0x2545_f491,
            destination: VIP,
            port: u32::from(PORT),
            seq: ISN + 1,
            version: self.version as u32,
            reserved: 0,
        }
    }

    /// Runs `packets` packets of established flows, or none of a service's if `is_vip` is false.
    pub(crate) fn run_established(
        &mut self,
        flows: u32,
        packets: u32,
        is_vip: bool,
    ) -> Result<Timing> {
        let destination = if is_vip { VIP } else { VIP + 1 };
        self.order(Orders {
            flows,
            destination,
            ..self.orders_for(Kind::Established)
        });
        self.run(packets)
    }

    /// Runs `packets` packets that backends send back in mode `nat`, of the first `flows` flows.
    pub(crate) fn run_replies(&mut self, flows: u32, packets: u32) -> Result<Timing> {
        self.order(Orders {
            flows,
            destination: SNAT,
            seq: 1,
            ..self.orders_for(Kind::Replies)
        });
        self.run(packets)
    }

    /// Runs `packets` SYNs of the flows from number `first` on.
    pub(crate) fn run_opening(&mut self, first: u32, packets: u32) -> Result<Timing> {
        self.order(Orders {
            state: first,
            seq: ISN,
            ..self.orders_for(Kind::Opening)
        });
        self.run(packets)
    }

    /// Runs `packets` segments in mid-stream, each of a flow of its own that nobody knows, from number `first` on.
    pub(crate) fn run_unknown(&mut self, first: u32, packets: u32) -> Result<Timing> {
        self.order(Orders {
            state: first,
            ..self.orders_for(Kind::Unknown)
        });
        self.run(packets)
    }

    /// Packets counted for a reason so far.
    pub(crate) fn packets(&self, reason: Reason) -> u64 {
        self.maps
            .counter(self.maps.capacity.counters().reason(reason))
            .packets
    }

    /// Empties the flow table.
    pub(crate) fn forget(&self) {
        for bucket in 0..self.buckets() {
            for way in 0..WAYS {
                let [.., value] = self.entry(bucket, way) else {
                    continue;
                };
                value.store(0, Relaxed);
            }
        }
    }

    /// Empties the flow table, then fills it with pins of flows 0 to `flows`. One in a million finds no place at that load.
    pub(crate) fn pin(&mut self, flows: u32) -> Result<()> {
        self.forget();
        self.select(Program::Tether)?;
        // In steps: a SYN may take an embryo's place, but not a pin's. Where one did, its flow is opened again.
        const STEP: u32 = 1_000;
        let mut homeless = 0;
        for first in (0..flows).step_by(STEP as usize) {
            let mut missing: Vec<(u32, u32)> = vec![(first, STEP.min(flows - first))];
            while let Some((first, count)) = missing.pop() {
                self.run_opening(first, count)?;
                let tick = now();
                for number in first..first + count {
                    let pinned = self.change(number, |word| {
                        Word::live(State::Pin, word.backend(), epoch_of(ISN + 1), tick, 0)
                    });
                    if pinned.is_none() && count > 1 {
                        missing.push((number, 1));
                    } else if pinned.is_none() {
                        homeless += 1;
                    }
                }
            }
        }
        ensure!(
            homeless <= flows / 100_000,
            "{homeless} of {flows} flows found no place"
        );
        Ok(())
    }

    /// Changes the entry of a flow. Gives its place, and what its key is when [mixed](lb_common::flow::FlowKey::mixed); none if it has none.
    pub(crate) fn change(
        &self,
        number: u32,
        change: impl Fn(Word) -> Word,
    ) -> Option<(Place, u64)> {
        let (address, port) = bench::client(number);
        let seed = self.tether.instance().flow_seed;
        let (key, mixed, homes) = match self.version {
            IpVersion::V4 => {
                let key = v4::Key::new(address, port, SERVICE);
                let homes = key.homes(&seed, self.buckets());
                (vec![key.0], key.mixed(&seed), homes)
            }
            IpVersion::V6 => {
                let key = v6::Key::new(address6(address), port, SERVICE);
                let homes = key.homes(&seed, self.buckets());
                let [first, second] = key.address;
                (vec![first, second, key.rest], key.mixed(&seed), homes)
            }
        };
        let places = homes
            .into_iter()
            .flat_map(|index| (0..WAYS).map(move |way| Place { index, way }));
        for place in places {
            let [words @ .., value] = self.entry(place.index, place.way) else {
                continue;
            };
            let is_ours = words
                .iter()
                .map(|word| word.load(Relaxed))
                .eq(key.iter().copied());
            let word = Word(value.load(Relaxed));
            if is_ours && word.is_entry() {
                value.store(change(word).0, Relaxed);
                return Some((place, mixed));
            }
        }
        None
    }

    fn buckets(&self) -> u32 {
        match self.version {
            IpVersion::V4 => self.maps.capacity.flow4_buckets,
            IpVersion::V6 => self.maps.capacity.flow6_buckets,
        }
    }

    /// The words of an entry, its value last.
    fn entry(&self, bucket: u32, way: u32) -> &[AtomicU64] {
        let (words, len) = match self.version {
            IpVersion::V4 => (self.maps.flows4.words(bucket), 2),
            IpVersion::V6 => (self.maps.flows6.words(bucket), 4),
        };
        &words[len * way as usize..][..len]
    }

    fn order(&self, orders: Orders) {
        // SAFETY: `Orders` is `repr(C)`, eight 32-bit integers, hence four words without padding.
        let words: [u64; 4] = unsafe { std::mem::transmute(orders) };
        for (index, word) in words.iter().enumerate() {
            self.orders.set(index as u32, word);
        }
    }

    fn run(&self, packets: u32) -> Result<Timing> {
        let harness: &Xdp = self
            .bench
            .program(bench::HARNESS)
            .context("the bench's object has no harness")?
            .try_into()?;
        timed_run(harness.fd()?.as_fd(), self.version, packets)
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the bench's object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// An address of a version of IP.
pub(crate) fn address(version: IpVersion, address: u32) -> IpAddr {
    match version {
        IpVersion::V4 => Ipv4Addr::from_bits(address).into(),
        IpVersion::V6 => Address::of_words(address6(address)).into(),
    }
}

/// Writes a service with `BACKENDS` backends, reached over the loopback device, where test runs take place.
fn serve(maps: &Maps, way: Way) {
    let translates = way.mode.translates();
    for id in 1..=BACKENDS {
        let backend = address(way.backends, bench::backend(id));
        let hop = NextHop {
            destination: [2, 0, 0, 0, 1, id as u8],
            source: [2, 0, 0, 0, 0, 1],
            ifindex: 1,
            mtu: 1_500,
            ..NextHop::default()
        }
        .from_source(address(way.backends, 0x0a00_0001));
        let hop = match way.mode {
            Mode::Ipip => hop.encapsulating(backend),
            _ => hop.bare(),
        };
        let forwarding = Forwarding::new(way.mode, backend);
        maps.backends.set(
            id,
            &Backend {
                state: BackendState::new(0, Serving::New, forwarding, 0, true).0,
                identity: u64::from(id),
                address: backend.into(),
                port: PORT,
                service: SERVICE,
                hops: [hop, NextHop::default()],
                endpoint: if translates { id as u16 } else { 0 },
                pairs: if way.mode == Mode::Nat {
                    [id as u16, 0, 0, 0, 0, 0, 0, 0]
                } else {
                    [0; 8]
                },
                ..Backend::default()
            },
        );
        if translates {
            translate::endpoint(maps, way, id);
        }
    }
    let names: Vec<String> = (1..=BACKENDS).map(|id| format!("b{id}")).collect();
    let members: Vec<Member<'_>> = names
        .iter()
        .map(|name| Member { name, weight: 100 })
        .collect();
    let owners = maglev::build(&[1, 2, 3, 4], "bench", &members, TABLE_SIZE);
    for (index, owner) in owners.into_iter().enumerate() {
        maps.tables
            .set(index as u32, &Slot::new(owner + 1, 0, Tick(0)));
    }
    maps.services.set(
        u32::from(SERVICE),
        &Service {
            table: TableRef::new(0, TABLE_SIZE, 1).0,
            seed: Seed::new([5, 6, 7]),
            identity: 1,
            vip: address(way.version, VIP).into(),
            port: PORT,
            traits: if translates { Service::TRANSLATES } else { 0 },
            affinity: 0,
            affinity_ticks: 0,
        },
    );
    let key = match way.version {
        IpVersion::V4 => VipEntry::key(VIP, PORT),
        IpVersion::V6 => VipEntry::key6(address6(VIP), PORT),
    };
    let [home, _] = vip::homes(key, maps.capacity.vip_buckets());
    maps.set_vip(way.version, home, 0, VipEntry::of(key, SERVICE));
}

/// `BPF_PROG_TEST_RUN` with a frame for a packet of a version of IP, `repeat` times.
fn timed_run(program: BorrowedFd<'_>, version: IpVersion, repeat: u32) -> Result<Timing> {
    let frame = vec![
        0u8;
        match version {
            IpVersion::V4 => FRAME_LEN,
            IpVersion::V6 => FRAME6_LEN,
        }
    ];
    let begin = cpu_time();
    let ran = test_run::repeated(program, &frame, repeat, 0);
    let spent = cpu_time() - begin;
    let kernel_ns = ran.context("BPF_PROG_TEST_RUN")?;
    Ok(Timing {
        call_ns: spent.as_nanos() as f64 / f64::from(repeat),
        kernel_ns,
    })
}

/// Time that this thread has spent on a CPU, in the kernel included.
fn cpu_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("CLOCK_THREAD_CPUTIME_ID exists since Linux 2.6.12")
        .into()
}
