//! The program behind `cargo xtask fuzz`: random cases for as long as it is told, judged against what was promised.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Parser;
use lab::fuzz::{
    api, config,
    packets::{
        Case,
        contract::{Breach, Promise},
        sabotage::Sabotage,
    },
};

/// Sends random packets and events through the shipped programs, random text through the configuration's parser, and random requests to a
/// daemon in a lab, and judges what comes of them
#[derive(Debug, Parser)]
#[command(name = "cargo xtask fuzz")]
struct Options {
    /// How long, in seconds; three quarters of it for packets, if there is more than one target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// One target alone.
    #[arg(long, value_enum)]
    only: Option<Target>,
    /// The first case's seed; the others follow it. One from the clock, if none is given.
    #[arg(long)]
    seed: Option<u64>,
    /// Play one case of packets from a file instead, as it was printed, and tell what came of each.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sabotage", "break_"])]
    case: Option<PathBuf>,
    /// Break each promise about packets on purpose instead, and see that it is found. The time is shared by all of them.
    #[arg(long)]
    sabotage: bool,
    /// Break them in this way alone, with the case that shows it.
    #[arg(
        long = "break",
        value_enum,
        value_name = "HOW",
        conflicts_with = "sabotage"
    )]
    break_: Option<Sabotage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Target {
    /// The data path.
    Packets,
    /// The configuration's parser.
    Config,
    /// The daemon's listeners.
    Api,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all was well.
fn run(options: &Options) -> Result<bool> {
    if let Some(file) = &options.case {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("reading the case {}", file.display()))?;
        let case = Case::parse(&text).map_err(anyhow::Error::msg)?;
        let outcome = case.play(None);
        for (number, reasons) in outcome.each.iter().enumerate() {
            let names: Vec<_> = reasons.iter().map(|reason| reason.name()).collect();
            println!("packet {}: {}", number + 1, names.join(", "));
        }
        return Ok(match outcome.breach {
            Some((step, breach)) => {
                println!("step {step}: {breach}");
                false
            }
            None => {
                println!("no promise is broken");
                true
            }
        });
    }
    let seed = options.seed.unwrap_or_else(from_clock);
    let time = Duration::from_secs(options.seconds);
    if options.sabotage {
        return Ok(break_each(seed, time));
    }
    if let Some(sabotage) = options.break_ {
        return Ok(break_one(sabotage, seed, time));
    }
    println!("cases from --seed {seed} on");
    match options.only {
        Some(target) => search(target, seed, time),
        None => Ok(search(Target::Config, seed, time / 8)?
            && search(Target::Api, seed, time / 8)?
            && search(Target::Packets, seed, time * 3 / 4)?),
    }
}

/// Plays cases of one target until the time is over or a promise is broken. Whether none was.
fn search(target: Target, first: u64, time: Duration) -> Result<bool> {
    match target {
        Target::Packets => Ok(search_packets(first, time)),
        Target::Config => Ok(search_config(first, time)),
        Target::Api => {
            let requests = api::run(first, time)?;
            println!("api: {requests} requests, no promise broken");
            Ok(true)
        }
    }
}

fn search_config(first: u64, time: Duration) -> bool {
    let began = Instant::now();
    let (mut texts, mut valid) = (0u64, 0u64);
    while began.elapsed() < time {
        let seed = first.wrapping_add(texts);
        let text = config::text(seed);
        let judged = std::panic::catch_unwind(|| config::judge(&text))
            .unwrap_or_else(|_| Err("the parser panics".into()));
        if let Err(how) = judged {
            println!("seed {seed}: {how}\n{text}");
            return false;
        }
        texts += 1;
        valid += u64::from(config::is_valid(&text));
    }
    println!("config: {texts} texts, {valid} of them valid, no promise broken");
    true
}

fn from_clock() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(1, |since| since.as_nanos() as u64)
}

/// Plays cases until the time is over or a promise is broken.
fn search_packets(first: u64, time: Duration) -> bool {
    let (began, mut told) = (Instant::now(), Instant::now());
    let (mut cases, mut packets) = (0u64, 0usize);
    while began.elapsed() < time {
        let seed = first.wrapping_add(cases);
        let case = Case::of_seed(seed);
        let outcome = case.play(None);
        cases += 1;
        packets += outcome.packets;
        if let Some((_, breach)) = outcome.breach {
            report(seed, &breach, &case, None);
            return false;
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            let seconds = began.elapsed().as_secs();
            println!("packets: {cases} cases, {packets} packets in {seconds} s");
        }
    }
    println!("packets: {cases} cases, {packets} packets, no promise broken");
    true
}

fn report(seed: u64, breach: &Breach, case: &Case, sabotage: Option<Sabotage>) {
    println!("seed {seed}: {breach}");
    let shrunk = case.shrunk(sabotage);
    if let Some((_, breach)) = shrunk.play(sabotage).breach {
        println!("in {} steps: {breach}", shrunk.steps.len());
    }
    println!("{}", shrunk.text());
}

/// Breaks each promise in turn, until that is found or its share of the time is over. A row for each. Whether all were found.
fn break_each(first: u64, time: Duration) -> bool {
    let share = time / Sabotage::ALL.len() as u32;
    let rows = Sabotage::ALL
        .iter()
        .map(|(sabotage, promises)| row(*sabotage, promises, look_for(*sabotage, first, share)));
    // Each, also behind one that was not.
    rows.filter(|found| !found).count() == 0
}

/// Breaks a promise in one way, and prints the shortest case that shows it.
fn break_one(sabotage: Sabotage, first: u64, time: Duration) -> bool {
    let found = look_for(sabotage, first, time);
    if let Found::In { seed, breach, .. } = &found {
        report(*seed, breach, &Case::of_seed(*seed), Some(sabotage));
    }
    let promises = Sabotage::ALL
        .iter()
        .find(|(one, _)| *one == sabotage)
        .map_or::<&[Promise], _>(&[], |(_, promises)| promises);
    row(sabotage, promises, found)
}

/// What came of a search for a promise that is broken.
enum Found {
    /// It was found.
    In {
        /// The case that showed it.
        seed: u64,
        /// How many packets that took.
        packets: usize,
        /// What was broken.
        breach: Breach,
    },
    /// It was not, in so many packets.
    Not(usize),
}

fn look_for(sabotage: Sabotage, first: u64, time: Duration) -> Found {
    let began = Instant::now();
    let mut packets = 0;
    for seed in (0..).map(|number| first.wrapping_add(number)) {
        let outcome = Case::of_seed(seed).play(Some(sabotage));
        packets += outcome.packets;
        if let Some((_, breach)) = outcome.breach {
            return Found::In {
                seed,
                packets,
                breach,
            };
        }
        if began.elapsed() >= time {
            break;
        }
    }
    Found::Not(packets)
}

/// Prints what came of a search. Whether one of these promises was found broken.
fn row(sabotage: Sabotage, promises: &[Promise], found: Found) -> bool {
    let name = sabotage.name();
    match found {
        Found::In {
            packets, breach, ..
        } if promises.contains(&breach.promise) => {
            println!("{name:<22} found after {packets:>6} packets: {breach}");
            true
        }
        Found::In {
            packets, breach, ..
        } => {
            println!("{name:<22} FOUND AS ANOTHER after {packets:>6} packets: {breach}");
            false
        }
        Found::Not(packets) => {
            println!("{name:<22} NOT FOUND in {packets:>6} packets");
            false
        }
    }
}
