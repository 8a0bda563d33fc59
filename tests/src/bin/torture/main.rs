//! The torture lab: thousands of connections, in each mode and family at once, through a storm of everything that may happen to a
//! load balancer. Exits non-zero if one broke that was not meant to, or another of the contract's promises was not kept.
//!
//! Each mode and family has a process of its own, since a process may have 20,000 descriptors where hard limits are as usual.

mod labs;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use lab::address::Family;
use lab::flood;
use lab::topology::Place;
use lab::torture::{
    self, Deluge, Flooded, Forecast, Kind, LEAST, Outcome, Replayed, Report, Schedule, Siege,
    Sieged,
};
use lb_userspace::failpoint;

/// Lets a storm pass over long-lived connections through Tether.
#[derive(Debug, Parser)]
struct Arguments {
    /// How long it storms, at least; it goes on until each kind of event has happened three times in each lab.
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// How many connections, all together.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(16..=100_000))]
    connections: u32,
    /// How services forward; may be given several times.
    #[arg(long, value_parser = ["l2", "ipip", "nat", "dnat"], default_values = ["l2", "ipip", "nat"])]
    mode: Vec<String>,
    /// The versions of IP of clients and backends; may be given several times.
    #[arg(long, value_enum, default_values = ["v4", "v6"])]
    family: Vec<Family>,
    /// Instead of a storm: kill the daemon at so many random moments, all together, half as often at failpoints in turn, and in each lab at
    /// each failpoint that there is.
    #[arg(long, value_name = "N", conflicts_with = "shutdown")]
    kills: Option<u64>,
    /// Instead of a storm: replay the end of a chat server's pod, which fails its readiness at 2 s, stops to listen at 12 s, closes
    /// what is left at 40 s and is gone at 42 s.
    #[arg(long)]
    shutdown: bool,
    /// Instead of a storm: floods of SYNs, of ACKs, of fragments, of ICMP and of handshakes, so many seconds of each at the generator's full rate, while
    /// connections talk and others are opened. One lab after the other.
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["shutdown", "kills"])]
    floods: Option<u64>,
    /// Print the result once more as one line of JSON, last on standard output.
    #[arg(long)]
    json: bool,
    /// Run in one lab, in this process, and print its outcome: for the processes that this program starts.
    #[arg(long, hide = true)]
    alone: bool,
}

/// How often a connection that is not silent says something.
const PACE: Duration = Duration::from_secs(5);
/// The most connections of one process: each is two descriptors.
const MOST_ALONE: u32 = 8_000;
/// How many complaints of a lab are printed.
const COMPLAINTS: usize = 20;

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.alone {
        return alone(&arguments);
    }
    let labs: Vec<(&str, Family)> = arguments
        .mode
        .iter()
        .flat_map(|mode| arguments.family.iter().map(|f| (mode.as_str(), *f)))
        .collect();
    let share = arguments
        .connections
        .div_ceil(u32::try_from(labs.len())?.max(1));
    anyhow::ensure!(
        share <= MOST_ALONE,
        "{share} connections for each mode and family are more than the {MOST_ALONE} that one process can have; \
         name more modes and families, or fewer connections"
    );
    let share_of = |whole: u64, number: usize| {
        let (number, count) = (number as u64, labs.len() as u64);
        whole * (number + 1) / count - whole * number / count
    };
    if let Some(kills) = arguments.kills {
        let sieged: Vec<Sieged> = labs::run(&labs, |number| {
            vec!["--kills".into(), share_of(kills, number).to_string()]
        })?;
        return sieges(&sieged, arguments.json);
    }
    let connections = |number: usize| {
        let share = share_of(arguments.connections.into(), number);
        ["--connections".into(), share.to_string()]
    };
    if let Some(seconds) = arguments.floods {
        let mut flooded: Vec<Flooded> = vec![];
        for lab in &labs {
            // Each would take the processors from the others.
            flooded.extend(labs::run(&[*lab], |_| {
                let each = ["--floods".into(), seconds.to_string()];
                [each, connections(0)].concat()
            })?);
        }
        return deluges(&flooded, arguments.json);
    }
    if arguments.shutdown {
        let replayed: Vec<Replayed> = labs::run(&labs, |number| {
            [vec!["--shutdown".into()], connections(number).to_vec()].concat()
        })?;
        return replays(&replayed, arguments.json);
    }
    let outcomes: Vec<Outcome> = labs::run(&labs, |number| {
        let seconds = ["--seconds".into(), arguments.seconds.to_string()];
        [seconds, connections(number)].concat()
    })?;
    for outcome in &outcomes {
        complain(&outcome.mode, &outcome.complaints);
    }
    let report = Report::of(&outcomes);
    let faults = report.faults(&Kind::ALL, LEAST);
    for fault in &faults {
        println!("not kept: {fault}");
    }
    println!(
        "Connections that broke and were not meant to: {}",
        report.unexpected_breaks
    );
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(exit_code(faults.is_empty()))
}

/// The storm in the first of the modes and families.
fn alone(arguments: &Arguments) -> Result<ExitCode> {
    let (mode, family) = (&arguments.mode[0], arguments.family[0]);
    let family_name = family.to_possible_value().map(|v| v.get_name().to_owned());
    let label = format!("{mode} {}", family_name.unwrap_or_default());
    let say = |line: &str| eprintln!("{label:<8} {line}");
    let place = Place::of_mode(mode);
    let connections = arguments.connections as usize;
    if let Some(kills) = arguments.kills {
        let siege = Siege {
            place,
            family,
            kills,
            each_place: true,
        };
        println!(
            "{}",
            serde_json::to_string(&torture::besiege(&siege, say)?)?
        );
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(seconds) = arguments.floods {
        let deluge = Deluge {
            place,
            family,
            connections,
            each: Duration::from_secs(seconds),
            kinds: flood::Kind::ALL.to_vec(),
        };
        println!("{}", serde_json::to_string(&torture::flood(&deluge, say)?)?);
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.shutdown {
        let replayed = torture::replay(place, family, connections, Schedule::FULL, say)?;
        println!("{}", serde_json::to_string(&replayed)?);
        return Ok(ExitCode::SUCCESS);
    }
    let forecast = Forecast {
        place,
        family,
        connections,
        pace: PACE,
        storm: Duration::from_secs(arguments.seconds),
        kinds: Kind::ALL.to_vec(),
        least: LEAST,
        pins: false,
    };
    let outcome = torture::run(&forecast, say)?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(ExitCode::SUCCESS)
}

/// Says what is wrong in a lab of this mode.
fn complain(mode: &str, complaints: &[String]) {
    for complaint in complaints.iter().take(COMPLAINTS) {
        println!("{mode}: {complaint}");
    }
}

/// Says what came of sieges.
fn sieges(sieged: &[Sieged], json: bool) -> Result<ExitCode> {
    let mut failpoints = BTreeMap::<&str, u64>::new();
    let mut orders = BTreeMap::<&str, u64>::new();
    let (mut random, mut unreached) = (0, 0);
    for lab in sieged {
        random += lab.random;
        for place in failpoint::Place::ALL.iter().map(|place| place.name()) {
            // What is remembered is rarely written by a daemon that was told nothing.
            let obeyed = || lab.orders.keys().any(|what| what.starts_with(place));
            if !lab.failpoints.contains_key(place) && !obeyed() {
                unreached += 1;
                println!("{}: nobody died {place}", lab.mode);
            }
        }
        for (place, count) in &lab.failpoints {
            *failpoints.entry(place).or_default() += count;
        }
        complain(&lab.mode, &lab.complaints);
    }
    for (place, count) in &failpoints {
        println!("{count:>6} deaths {place}");
    }
    println!("{random:>6} deaths at random moments");
    let sum = |part: fn(&Sieged) -> u64| sieged.iter().map(part).sum::<u64>();
    for lab in sieged {
        for (what, count) in &lab.orders {
            *orders.entry(what).or_default() += count;
        }
    }
    for (what, count) in &orders {
        println!("{count:>6} deaths {what}");
    }
    let (broken, failed) = (sum(|lab| lab.broken), sum(|lab| lab.failed));
    let to_draining = sum(|lab| lab.to_draining);
    println!(
        "{broken} of {} connections broke; {failed} of {} new ones failed, {to_draining} went to backends that take no new ones",
        sum(|lab| lab.connections),
        sum(|lab| lab.tried)
    );
    if json {
        println!("{}", serde_json::to_string(sieged)?);
    }
    // Each order leads a daemon by some failpoints.
    let disobeyed = sieged.iter().any(|lab| lab.orders.is_empty());
    Ok(exit_code(
        broken == 0 && failed == 0 && to_draining == 0 && unreached == 0 && !disobeyed,
    ))
}

/// Says what came of pods' ends.
fn replays(replayed: &[Replayed], json: bool) -> Result<ExitCode> {
    for lab in replayed {
        println!(
            "{}: {} of {} connections were closed by the pod, {} were cut; {} came after the verdict",
            lab.mode, lab.closed_by_pod, lab.held, lab.cut, lab.arrived_after_verdict
        );
        complain(&lab.mode, &lab.complaints);
    }
    if json {
        println!("{}", serde_json::to_string(replayed)?);
    }
    Ok(exit_code(replayed.iter().all(Replayed::is_good)))
}

/// Says what came of floods.
fn deluges(flooded: &[Flooded], json: bool) -> Result<ExitCode> {
    for lab in flooded {
        for flooding in &lab.floods {
            println!(
                "{}: {}: {:.0} frames a second made, {:.0} a second came, for {:.0} s",
                lab.mode,
                flooding.kind.name(),
                flooding.sent_per_second,
                flooding.came_per_second,
                flooding.seconds
            );
        }
        println!(
            "{}: {} of {} connections broke; {} of {} new ones failed",
            lab.mode, lab.broken, lab.connections, lab.failed, lab.tried
        );
        complain(&lab.mode, &lab.complaints);
    }
    if json {
        println!("{}", serde_json::to_string(flooded)?);
    }
    Ok(exit_code(flooded.iter().all(Flooded::is_good)))
}

fn exit_code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
