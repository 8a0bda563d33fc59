//! The bench: nanoseconds per packet of the shipped program, beside a floor measured at the same moments; and what the daemon costs. Its status says
//! whether a mark was missed.
//!
//! Packets are made inside the kernel by a harness program (see `lb-ebpf/src/bench.rs`), which then tail-calls the program under test, so what
//! is measured is harness and program; the floors are measured in the same harness. What the daemon costs is measured on one that runs in a lab.

mod control;
mod guard;
mod harness;
mod plot;
mod rows;
mod table;
mod translate;

use std::{fs, path::PathBuf, process::ExitCode};

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
    /// Of the daemon, measures a tiny one for a moment, against no marks: to see that it can be measured.
    #[arg(long, hide = true)]
    smoke: bool,
}

/// The exit status if a mark was missed. It is 1 if something could not be measured.
const MISSED: u8 = 3;

/// A thread that moves between two test runs finds what it wrote in another core's cache.
fn stay_on_one_cpu() -> Result<()> {
    let this_thread = Pid::from_raw(0);
    let mut cpu = CpuSet::new();
    cpu.set(sched_getcpu()?)?;
    sched_setaffinity(this_thread, &cpu).context("staying on one CPU")
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let (only, rounds) = (arguments.only, arguments.rounds);
    let mut rows = Vec::new();
    if !only.starts_with(control::ROWS) {
        let only = only.clone();
        rows = translate::surroundings()?.run(move || {
            stay_on_one_cpu()?;
            rows::measure(&only, rounds)
        })?;
    }
    // In a thread that may use all CPUs, and so may the daemon, which it starts.
    let size = if arguments.smoke {
        control::Size::SMOKE
    } else {
        control::Size::full(rounds)
    };
    rows.extend(control::measure(&only, &size)?);
    print!("{}", table::render(&rows));
    if let Some(path) = arguments.json {
        let missed = rows.iter().filter(|row| row.is_missed());
        let missed: Vec<&str> = missed.map(|row| row.name.as_str()).collect();
        let json = serde_json::json!({ "rows": rows, "missed": missed });
        fs::write(&path, serde_json::to_string_pretty(&json)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = arguments.svg {
        plot::draw(&rows, &path).with_context(|| format!("drawing {}", path.display()))?;
    }
    let missed = table::missed(&rows);
    eprint!("{missed}");
    Ok(if missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(MISSED)
    })
}
