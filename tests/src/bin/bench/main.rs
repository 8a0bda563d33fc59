//! The bench: nanoseconds per packet of the shipped program, beside a floor measured at the same moments.
//!
//! Packets are made inside the kernel by a harness program (see `lb-ebpf/src/bench.rs`), which then tail-calls the program under test, so what
//! is measured is harness and program; the floors are measured in the same harness.

mod harness;
mod plot;
mod rows;
mod table;
mod translate;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

/// Measures Tether's data path and its tables.
#[derive(Parser)]
struct Arguments {
    /// Writes the rows to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws the rows that were measured with several numbers of flows into this file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Measures only the rows whose name begins so.
    #[arg(long, default_value = "")]
    only: String,
    /// Rounds of each row; the figures are medians over them.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(9..))]
    rounds: u32,
}

/// A thread that moves between two test runs finds what it wrote in another core's cache.
fn stay_on_one_cpu() -> Result<()> {
    let this_thread = Pid::from_raw(0);
    let mut cpu = CpuSet::new();
    cpu.set(sched_getcpu()?)?;
    sched_setaffinity(this_thread, &cpu).context("staying on one CPU")
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (only, rounds) = (arguments.only, arguments.rounds);
    let rows = translate::surroundings()?.run(move || {
        stay_on_one_cpu()?;
        rows::measure(&only, rounds)
    })?;
    print!("{}", table::render(&rows));
    if let Some(path) = arguments.json {
        let json = serde_json::to_string_pretty(&serde_json::json!({ "rows": rows }))?;
        fs::write(&path, json).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = arguments.svg {
        plot::draw(&rows, &path).with_context(|| format!("drawing {}", path.display()))?;
    }
    Ok(())
}
