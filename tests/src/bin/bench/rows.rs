//! The rows: what is measured, beside which floor, against which mark of the design.

use std::time::Instant;

use anyhow::{Result, ensure};
use lb_common::{
    backend::Mode,
    guard::Listed,
    maps::default,
    net::IpVersion::{self, V4, V6},
    verdict::Reason,
};
use lb_userspace::maglev::{self, Member};
use serde::Serialize;

use crate::harness::{Harness, Program, TABLE_SIZE, Timing, Way};

/// The row of a table of [`TABLE_SIZE`] slots and 1,000 backends.
const MAGLEV: &str = "maglev/65537/1000";
/// Packets in a run of established flows.
const PACKETS: u32 = 500_000;
/// SYNs in a run of new flows.
const SYNS: u32 = 200_000;
/// Numbers of flows that rows are measured with.
const SIZES: [u32; 5] = [1, 10_000, 100_000, 1_000_000, 4_000_000];

/// One row's figures.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) name: String,
    /// What median, min and max are in: of rows of packets `ns`, the call's time divided by the packets.
    pub(crate) unit: &'static str,
    /// Median over the rounds.
    pub(crate) median: f64,
    /// Least of them.
    pub(crate) min: f64,
    /// Greatest of them.
    pub(crate) max: f64,
    /// Median of the kernel's own figure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kernel_ns: Option<u32>,
    /// The floor that was measured in turn with it.
    pub(crate) floor: Option<&'static str>,
    /// Median over the rounds, of its time divided by the floor's of the same round.
    pub(crate) ratio: Option<f64>,
    /// What the ratio is to be at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mark: Option<f64>,
    /// What the median is to be under, or each of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) under: Option<f64>,
    /// Whether it is each of them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) each: bool,
}

impl Row {
    /// Whether the mark is reached, if there is one.
    pub(crate) fn reached(&self) -> Option<bool> {
        match (self.ratio, self.mark, self.under) {
            (Some(ratio), Some(mark), _) => Some(ratio <= mark),
            (_, _, Some(under)) => Some(self.judged() < under),
            _ => None,
        }
    }

    /// The figure that is to be under the mark, in the row's unit.
    pub(crate) fn judged(&self) -> f64 {
        if self.each { self.max } else { self.median }
    }

    /// The same with a mark that is for each figure: a promise for every time, of which a median says little.
    pub(crate) fn for_each(self) -> Self {
        Self { each: true, ..self }
    }

    /// Whether there is a mark, and it is not reached.
    pub(crate) fn is_missed(&self) -> bool {
        self.reached() == Some(false)
    }
}

/// Measures all rows whose name begins with `only`.
pub(crate) fn measure(only: &str, rounds: u32) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let wanted = |name: &str| name.starts_with(only);
    for version in [V4, V6] {
        let mut harness = Harness::load(version, default::FLOWS)?;
        if version == V4 {
            for (name, program) in [
                ("floor/return", Program::FloorReturn),
                ("floor/swap", Program::FloorSwap),
                ("floor/encap", Program::FloorEncap),
            ] {
                if wanted(name) {
                    rows.push(floor(&mut harness, name, program, rounds)?);
                }
            }
        }
        let v = version as u32;
        let mut ways = vec![
            (Way::new(version, Mode::Ipip), format!("ipip/v{v}")),
            (Way::new(version, Mode::L2), format!("l2/v{v}")),
        ];
        if version == V4 {
            let in_ipv6 = Way {
                backends: V6,
                ..Way::new(V4, Mode::Ipip)
            };
            ways.push((in_ipv6, "ipip/v4-in-v6".to_owned()));
        }
        for (way, word) in ways {
            for flows in SIZES {
                let name = format!("established/{word}/{flows}");
                if wanted(&name) {
                    rows.push(established(&mut harness, name, way, flows, rounds)?);
                }
            }
        }
        for (mode, word) in [(Mode::Nat, "nat"), (Mode::Dnat, "dnat")] {
            for flows in SIZES {
                let name = format!("established/{word}/v{v}/{flows}");
                if wanted(&name) {
                    rows.push(translated(name, Way::new(version, mode), flows, rounds)?);
                }
            }
        }
        for flows in SIZES {
            let name = format!("replies/nat/v{v}/{flows}");
            if wanted(&name) {
                rows.push(replies(name, version, flows, rounds)?);
            }
        }
        let name = format!("ports/95/v{v}");
        if wanted(&name) {
            rows.push(ports(name, version, rounds)?);
        }
        for flows in SIZES {
            let name = format!("syn/new/v{v}/{flows}");
            if wanted(&name) {
                rows.push(opening(name, version, flows, rounds)?);
            }
        }
        let name = format!("syn/flood/v{v}");
        if wanted(&name) {
            rows.push(flood(name, version, rounds)?);
        }
        let name = format!("unknown/v{v}");
        if wanted(&name) {
            rows.push(unknown(name, version, rounds)?);
        }
        for flows in SIZES {
            let name = format!("guarded/ipip/v{v}/{flows}");
            if wanted(&name) {
                rows.push(guarded(&mut harness, name, flows, rounds)?);
            }
        }
        let name = format!("guard/denied/v{v}");
        if wanted(&name) {
            rows.push(guard(name, version, Listed::Denied, rounds)?);
        }
        let name = format!("guard/syn/v{v}");
        if wanted(&name) {
            rows.push(guard(name, version, Listed::Allowed, rounds)?);
        }
        let name = format!("non-vip/v{v}");
        if wanted(&name) {
            rows.push(non_vip(&mut harness, name, rounds)?);
        }
    }
    if wanted(MAGLEV) {
        rows.push(maglev_build(rounds));
    }
    Ok(rows)
}

fn floor(harness: &mut Harness, name: &str, program: Program, rounds: u32) -> Result<Row> {
    harness.select(program)?;
    let timings = (0..rounds)
        .map(|_| harness.run_established(1, PACKETS, true))
        .collect::<Result<Vec<_>>>()?;
    Ok(row(name.to_owned(), &timings, None, None))
}

/// Segments of so many flows in random order, in a table of the default size, or one made for them.
fn established(
    default_harness: &mut Harness,
    name: String,
    way: Way,
    flows: u32,
    rounds: u32,
) -> Result<Row> {
    let mut large;
    let harness = if flows > default::FLOWS {
        large = Harness::load(way.version, flows)?;
        &mut large
    } else {
        default_harness
    };
    harness.pin(flows)?;
    harness.serve(way);
    let (floor, floor_name) = match way.mode {
        Mode::Ipip => (Program::FloorEncap, "encap"),
        _ => (Program::FloorSwap, "swap"),
    };
    let mark = match (way.mode, way.version, way.backends, flows) {
        (Mode::Ipip, V4, V4, 1) => Some(2.0),
        (Mode::Ipip, V4, V4, 1_000_000) => Some(5.5),
        (Mode::Ipip, V6, V6, 1) => Some(2.4),
        _ => None,
    };
    let mut timings = Vec::new();
    let mut floors = Vec::new();
    for _ in 0..rounds {
        harness.select(floor)?;
        floors.push(harness.run_established(flows, PACKETS, true)?);
        harness.select(Program::Tether)?;
        let before = harness.packets(Reason::Established);
        timings.push(harness.run_established(flows, PACKETS, true)?);
        let counted = harness.packets(Reason::Established) - before;
        are_all(&name, "were of an established flow", counted)?;
    }
    Ok(row(name, &timings, Some((floor_name, &floors)), mark))
}

/// SYNs of ever new flows, all recorded, in a table made for twice the `flows` that it holds as pins. What room they leave is
/// taken first, then the oldest embryo's.
fn opening(name: String, version: IpVersion, flows: u32, rounds: u32) -> Result<Row> {
    let mark = match (version, flows) {
        (V4, 10_000) => Some(5.0),
        (V4, 1_000_000) => Some(10.0),
        _ => None,
    };
    let mut harness = Harness::load(version, 2 * flows)?;
    harness.pin(flows)?;
    // At the design load one insertion in a thousand finds neither room nor an embryo; in a small table it may be two, as the seed has it.
    let (timings, floors) = syns(&mut harness, &name, flows, (Reason::Opened, 998), rounds)?;
    Ok(row(name, &timings, Some(("encap", &floors)), mark))
}

/// Runs with SYNs of ever new flows, from number `first` on, beside runs of the floor. Of a thousand SYNs so many at least come to a reason.
fn syns(
    harness: &mut Harness,
    name: &str,
    first: u32,
    (reason, least): (Reason, u64),
    rounds: u32,
) -> Result<(Vec<Timing>, Vec<Timing>)> {
    let (mut timings, mut floors) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        harness.select(Program::FloorEncap)?;
        floors.push(harness.run_established(1, PACKETS, true)?);
        harness.select(Program::Tether)?;
        let before = harness.packets(reason);
        timings.push(harness.run_opening(first + round * SYNS, SYNS)?);
        let counted = harness.packets(reason) - before;
        ensure!(
            counted * 1_000 >= u64::from(SYNS) * least,
            "{name}: {counted} of {SYNS} SYNs were counted as {}",
            reason.name()
        );
    }
    Ok((timings, floors))
}

/// SYNs of ever new flows, in a table of the default size that is full of those of others.
fn flood(name: String, version: IpVersion, rounds: u32) -> Result<Row> {
    let mut harness = Harness::load(version, default::FLOWS)?;
    harness.select(Program::Tether)?;
    // Twice as many as are sized for: some more than there are places.
    let first = 2 * default::FLOWS;
    harness.run_opening(0, first)?;
    let (timings, floors) = syns(&mut harness, &name, first, (Reason::Opened, 999), rounds)?;
    Ok(row(name, &timings, Some(("encap", &floors)), None))
}

/// Segments in mid-stream of flows that nobody knows: adopted as far as the rate allows, and forwarded all.
fn unknown(name: String, version: IpVersion, rounds: u32) -> Result<Row> {
    let mut harness = Harness::load(version, default::FLOWS)?;
    let (mut timings, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        harness.forget();
        harness.select(Program::FloorEncap)?;
        floors.push(harness.run_established(1, PACKETS, true)?);
        harness.select(Program::Tether)?;
        let counted = |harness: &Harness| {
            harness.packets(Reason::Adopted) + harness.packets(Reason::Unadopted)
        };
        let before = counted(&harness);
        timings.push(harness.run_unknown(0, PACKETS)?);
        are_all(&name, "were of an unknown flow", counted(&harness) - before)?;
    }
    Ok(row(name, &timings, Some(("encap", &floors)), None))
}

/// Segments of so many established flows of a guarded service in random order, beside the same of one without a guard, by programs that know of none.
fn guarded(default_harness: &mut Harness, name: String, flows: u32, rounds: u32) -> Result<Row> {
    let version = default_harness.version;
    let mut large;
    let plain = if flows > default::FLOWS {
        large = Harness::load(version, flows)?;
        &mut large
    } else {
        default_harness
    };
    let mut guarding = Harness::guarding(version, flows.max(default::FLOWS))?;
    for harness in [&mut *plain, &mut guarding] {
        harness.serve(Way::new(version, Mode::Ipip));
        harness.pin(flows)?;
        harness.select(Program::Tether)?;
    }
    guarding.guard(Listed::Allowed);
    let (mut timings, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (harness, timings) in [(&mut *plain, &mut floors), (&mut guarding, &mut timings)] {
            let before = harness.packets(Reason::Established);
            timings.push(harness.run_established(flows, PACKETS, true)?);
            let counted = harness.packets(Reason::Established) - before;
            are_all(&name, "were of an established flow", counted)?;
        }
    }
    let floor = Some(("no guard", &floors[..]));
    Ok(row(name, &timings, floor, Some(1.25)))
}

/// SYNs of ever new flows of a guarded service, whose clients are listed so.
fn guard(name: String, version: IpVersion, clients: Listed, rounds: u32) -> Result<Row> {
    let mut harness = Harness::guarding(version, default::FLOWS)?;
    harness.guard(clients);
    let reason = match clients {
        Listed::Denied => Reason::Denied,
        _ => Reason::Opened,
    };
    let (timings, floors) = syns(&mut harness, &name, 0, (reason, 999), rounds)?;
    Ok(row(name, &timings, Some(("encap", &floors)), None))
}

/// Segments of so many flows in random order in a mode that translates, beside the same of the same flows in mode `ipip`, by the same program.
fn translated(name: String, way: Way, flows: u32, rounds: u32) -> Result<Row> {
    let mut harness = Harness::translating(way.version, flows)?;
    harness.pin(flows)?;
    harness.translate(way.mode, flows);
    let (mut timings, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (way, timings) in [
            (Way::new(way.version, Mode::Ipip), &mut floors),
            (way, &mut timings),
        ] {
            harness.serve(way);
            let before = harness.packets(Reason::Established);
            timings.push(harness.run_established(flows, PACKETS, true)?);
            let counted = harness.packets(Reason::Established) - before;
            are_all(&name, "were of an established flow", counted)?;
        }
    }
    let mark = (way.mode == Mode::Nat).then_some(1.4);
    Ok(row(name, &timings, Some(("ipip", &floors)), mark))
}

/// What backends send back of so many flows of mode `nat` in random order. The kernel's look at its routes is in the figure.
fn replies(name: String, version: IpVersion, flows: u32, rounds: u32) -> Result<Row> {
    let mut harness = Harness::translating(version, flows)?;
    harness.pin(flows)?;
    harness.translate(Mode::Nat, flows);
    harness.serve(Way::new(version, Mode::Nat));
    let (mut timings, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        harness.select(Program::FloorSwap)?;
        floors.push(harness.run_replies(flows, PACKETS)?);
        harness.select(Program::Tether)?;
        let before = harness.packets(Reason::Reply);
        timings.push(harness.run_replies(flows, PACKETS)?);
        let counted = harness.packets(Reason::Reply) - before;
        are_all(&name, "were replies", counted)?;
    }
    Ok(row(name, &timings, Some(("swap", &floors)), None))
}

/// Hardly any flow has found no place.
fn are_all(name: &str, what: &str, counted: u64) -> Result<()> {
    ensure!(
        counted >= u64::from(PACKETS - PACKETS / 100_000),
        "{name}: {counted} of {PACKETS} packets {what}"
    );
    Ok(())
}

/// SYNs of new flows of mode `nat` while 95% of the ports toward each backend are in use, beside the same with all free.
fn ports(name: String, version: IpVersion, rounds: u32) -> Result<Row> {
    /// Few for as many ports: what is in use hardly grows.
    const NEW: u32 = 25_000;
    let mut harness = Harness::translating(version, default::FLOWS)?;
    harness.serve(Way::new(version, Mode::Nat));
    harness.select(Program::Tether)?;
    let (mut timings, mut floors) = (Vec::new(), Vec::new());
    let mut first = 0;
    for _ in 0..rounds {
        for (percent, timings) in [(0, &mut floors), (95, &mut timings)] {
            harness.forget();
            harness.occupy(percent);
            let before = harness.packets(Reason::Opened);
            timings.push(harness.run_opening(first, NEW)?);
            let counted = harness.packets(Reason::Opened) - before;
            ensure!(
                counted * 1_000 >= u64::from(NEW) * 999,
                "{name}: {counted} of {NEW} SYNs found a port"
            );
            first += NEW;
        }
    }
    Ok(row(name, &timings, Some(("all free", &floors)), None))
}

fn non_vip(harness: &mut Harness, name: String, rounds: u32) -> Result<Row> {
    let mut timings = Vec::new();
    let mut floors = Vec::new();
    for _ in 0..rounds {
        harness.select(Program::FloorReturn)?;
        floors.push(harness.run_established(1, PACKETS, false)?);
        harness.select(Program::Tether)?;
        let before = harness.packets(Reason::NotService);
        timings.push(harness.run_established(1, PACKETS, false)?);
        let counted = harness.packets(Reason::NotService) - before;
        ensure!(
            counted == u64::from(PACKETS),
            "{name}: {counted} of {PACKETS} packets were for no service"
        );
    }
    Ok(row(name, &timings, Some(("return", &floors)), Some(3.0)))
}

fn maglev_build(rounds: u32) -> Row {
    let names: Vec<String> = (0..1_000)
        .map(|number| format!("backend-{number}"))
        .collect();
    let members: Vec<Member<'_>> = names
        .iter()
        .map(|name| Member { name, weight: 100 })
        .collect();
    let times: Vec<f64> = (0..rounds)
        .map(|round| {
            let seed = [u64::from(round), 2, 3, 4];
            let begin = Instant::now();
            std::hint::black_box(maglev::build(&seed, "bench", &members, TABLE_SIZE));
            begin.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    absolute(MAGLEV, "ms", &times, Some(2.0))
}

/// A row of figures that are held against no floor.
pub(crate) fn absolute(name: &str, unit: &'static str, figures: &[f64], under: Option<f64>) -> Row {
    Row {
        name: name.to_owned(),
        unit,
        median: median(figures.to_vec()),
        min: figures.iter().copied().fold(f64::INFINITY, f64::min),
        max: figures.iter().copied().fold(0.0, f64::max),
        kernel_ns: None,
        floor: None,
        ratio: None,
        mark: None,
        under,
        each: false,
    }
}

fn row(
    name: String,
    timings: &[Timing],
    floor: Option<(&'static str, &[Timing])>,
    mark: Option<f64>,
) -> Row {
    let calls: Vec<f64> = timings.iter().map(|timing| timing.call_ns).collect();
    let ratio = floor.map(|(_, floors)| {
        median(
            timings
                .iter()
                .zip(floors)
                .map(|(timing, floor)| timing.call_ns / floor.call_ns)
                .collect(),
        )
    });
    let kernel = median(
        timings
            .iter()
            .map(|timing| f64::from(timing.kernel_ns))
            .collect(),
    );
    Row {
        kernel_ns: Some(kernel as u32),
        floor: floor.map(|(name, _)| name),
        ratio,
        mark,
        ..absolute(&name, "ns", &calls, None)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_missed_by_what_it_is_for() {
        let absolute = |under| absolute("a", "ms", &[1.0, 3.0, 2.0], under);
        let row = absolute(None);
        assert_eq!((row.min, row.median, row.max), (1.0, 2.0, 3.0));
        assert_eq!(row.reached(), None);
        assert!(!row.is_missed());
        assert!(absolute(Some(2.0)).is_missed(), "it is to be under that");
        assert!(!absolute(Some(2.5)).is_missed());
        assert!(absolute(Some(2.5)).for_each().is_missed(), "one is not");
        assert!(!absolute(Some(3.5)).for_each().is_missed());
        assert_eq!(absolute(Some(2.1)).reached(), Some(true));

        let beside_a_floor = |ratio| Row {
            ratio: Some(ratio),
            mark: Some(1.5),
            ..absolute(None)
        };
        assert_eq!(beside_a_floor(1.5).reached(), Some(true));
        assert!(beside_a_floor(1.6).is_missed());
    }
}
