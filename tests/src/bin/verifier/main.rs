//! Loads every BPF program as the daemon does and prints, as JSON, what the kernel's verifier says of each.
//!
//! `cargo xtask verifier` runs this and holds the figures against the budget.

mod stack;
mod statistics;

use std::{collections::BTreeMap, os::fd::BorrowedFd};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf,
    programs::{Program, ProgramInfo, Xdp},
};
use lb_common::{
    hash::Seed,
    maps::{
        ABI_VERSION, COPY_PROGRAM, Instance, LOCAL_REPLY_PROGRAM, MEASURE_PROGRAM, PROGRAM, default,
    },
    net::IpVersion::{V4, V6},
};
use lb_userspace::{
    dataplane::{
        kernel::{Loaded, possible_cpus, tap::Tapped},
        maps::Capacity,
    },
    objects,
};
use serde::Serialize;

/// What one program costs.
#[derive(Serialize)]
struct Cost {
    object: &'static str,
    program: String,
    /// Instructions in the program and the functions that it calls.
    instructions: usize,
    /// Instructions that the verifier walked through, on all paths together.
    verified_instructions: u32,
    /// Stack of the deepest chain of calls, in bytes.
    stack_bytes: u32,
    /// Bytes of machine code.
    jited_bytes: u32,
}

fn main() -> Result<()> {
    let mut costs = cost_of_tether()?;
    costs.extend(cost_of_watching()?);
    for (object, bytes) in [("decap", objects::DECAP), ("bench", objects::BENCH)] {
        let mut loaded = Ebpf::load(bytes).with_context(|| format!("maps of {object}"))?;
        let programs = load_programs(&mut loaded).with_context(|| format!("object {object}"))?;
        let maps = |name: &str| statistics::map_fd(loaded.map(name)?);
        costs.extend(costs_of(object, bytes, programs, maps)?);
    }
    println!("{}", serde_json::to_string_pretty(&costs)?);
    Ok(())
}

/// The data path as the daemon loads it.
fn cost_of_tether() -> Result<Vec<Cost>> {
    let (capacity, instance) = (capacity()?, instance());
    let mut loaded = Loaded::private(capacity, instance)?;
    // Its memory of orders goes on without us.
    drop(loaded.load_copy_program()?);
    let copy = loaded
        .copy_program()
        .context("the program that copies flows is not loaded")?;
    let mut programs = BTreeMap::from([(COPY_PROGRAM.to_owned(), copy.info()?)]);
    let local = loaded.local_reply();
    let local = local.map_err(|reason| anyhow::Error::msg(reason.to_owned()))?;
    programs.insert(LOCAL_REPLY_PROGRAM.to_owned(), local.info()?);
    programs.extend(steering(&loaded)?);
    costs_of("tether", objects::TETHER, programs, |name| {
        loaded.map_fd(name)
    })
}

/// The same as it is while somebody listens to single packets.
fn cost_of_watching() -> Result<Vec<Cost>> {
    let (loaded, _told) = Tapped::private(capacity()?, instance())?;
    costs_of("watching", objects::TETHER, steering(&loaded)?, |name| {
        loaded.map_fd(name)
    })
}

/// The programs that packets come to, first or later.
fn steering(loaded: &Loaded) -> Result<BTreeMap<String, ProgramInfo>> {
    let mut programs = BTreeMap::from([(PROGRAM.to_owned(), loaded.program().info()?)]);
    programs.insert(MEASURE_PROGRAM.to_owned(), loaded.entry().info()?);
    for (_, name, program) in loaded.handed_on_to() {
        programs.insert(name.to_owned(), program.info()?);
    }
    Ok(programs)
}

/// Those that the daemon has by default, with all that there is to verify: the verifier takes them as constants, so that another program would be
/// measured without them.
fn capacity() -> Result<Capacity> {
    let capacity = Capacity::for_flows(
        default::FLOWS,
        default::FLOWS6,
        default::SERVICES,
        default::BACKENDS,
        default::TABLE_SLOTS,
        possible_cpus()?,
    );
    Ok(capacity
        .with_pairs(default::NAT_PAIRS)
        .translating_flows_of(V4, true)
        .translating_flows_of(V6, true)
        .guarding(true)
        .measuring(true))
}

/// Seeds are constants too, and the same in every run, so that so are the figures.
fn instance() -> Instance {
    Instance {
        abi_version: ABI_VERSION,
        reserved: 0,
        flow_seed: Seed::new([1, 2, 3]),
        fleet_seed: [1, 2, 3, 4],
    }
}

/// Loads all programs, and returns what the kernel says of each.
fn load_programs(ebpf: &mut Ebpf) -> Result<BTreeMap<String, ProgramInfo>> {
    let load = |program: &mut Program| {
        let program: &mut Xdp = program.try_into()?;
        program.load()?;
        program.info()
    };
    let load = |(name, program): (&str, _)| {
        let info = load(program).with_context(|| format!("program {name}"))?;
        Ok((name.to_owned(), info))
    };
    ebpf.programs_mut().map(load).collect()
}

/// What the programs of an object cost, which have been loaded and use the maps that `maps` finds by name.
fn costs_of<'a>(
    object: &'static str,
    bytes: &[u8],
    programs: BTreeMap<String, ProgramInfo>,
    maps: impl Fn(&str) -> Option<BorrowedFd<'a>>,
) -> Result<Vec<Cost>> {
    let linked = statistics::link(bytes, maps).with_context(|| format!("object {object}"))?;
    let cost = |(program, info): (String, ProgramInfo)| {
        let verified = info
            .verified_instruction_count()
            .context("this kernel does not count verified instructions: that takes Linux 5.16")?;
        // The loader keeps no log of what succeeds, and stack depth is in the log alone. So the same instructions are loaded
        // once more for it; that they are the same shows in the verifier's count.
        let statistics = linked
            .load(&program)
            .with_context(|| format!("{object}/{program}"))?;
        ensure!(
            statistics.verified_instructions == verified,
            "{object}/{program}: the verifier walked through {verified} instructions when the loader loaded it, and {} \
             when it was loaded for its statistics; they should be the same program",
            statistics.verified_instructions,
        );
        Ok(Cost {
            object,
            program,
            instructions: statistics.instructions,
            verified_instructions: verified,
            stack_bytes: statistics.stack_bytes,
            jited_bytes: info.size_jitted(),
        })
    };
    programs.into_iter().map(cost).collect()
}
