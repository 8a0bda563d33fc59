//! Floods at the generator's full rate, one of each kind, upon connections that talk all the time, while visitors come and go.
//!
//! Where addresses are translated each new connection takes one of 64,512 ports, so a flood would leave none: there the service limits sources. Elsewhere the flow
//! table alone stands up to it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_common::net::IpVersion;
use lb_common::verdict::Reason;
use serde::{Deserialize, Serialize};

use super::visitors::Visitors;
use super::{PATIENCE, patient};
use crate::address::{self, Family, mac_of};
use crate::flood::{Flood, Kind, Plan};
use crate::peer::crowd;
use crate::random::Random;
use crate::stage::Stage;
use crate::topology::{BALANCER_PORT, Place, Topology};

/// How often a connection says something.
const PACE: Duration = Duration::from_secs(1);
/// Echoes that each connection has during a flood, at least.
const ECHOES: u64 = 2;
/// Flows that the table is sized for, so that a flood of handshakes would fill it.
const FLOWS: u32 = 100_000;
/// What holds a flood to so much that SNAT ports are left for others: prefixes count as sources that are as long as this in each version of IP, so that a flood comes
/// from few.
const LIMITED: [(IpVersion, u8); 2] = [(IpVersion::V4, 16), (IpVersion::V6, 48)];
/// New connections that such a source may open a second, at once, and have.
const LIMITS: [u32; 3] = [1_000, 3_000, 20_000];
/// What is no flood, in packets a second that come to Tether.
const HARDLY: f64 = 20_000.0;

/// What there is to get through.
#[derive(Debug, Clone)]
pub struct Deluge {
    /// Where the backends are, and so the mode.
    pub place: Place,
    /// The versions of IP.
    pub family: Family,
    /// Connections that talk.
    pub connections: usize,
    /// How long each flood lasts, at least: it ends when each connection has had its echoes.
    pub each: Duration,
    /// The kinds, in turn.
    pub kinds: Vec<Kind>,
}

/// One flood.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Flooding {
    /// What it was made of.
    pub kind: Kind,
    /// How long it lasted.
    pub seconds: f64,
    /// Frames made a second.
    pub sent_per_second: f64,
    /// Packets a second that came to Tether, and were taken there for what they were made to be.
    pub came_per_second: f64,
}

/// What came of floods in one lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Flooded {
    /// The mode.
    pub mode: String,
    /// The floods.
    pub floods: Vec<Flooding>,
    /// Connections that talked.
    pub connections: u64,
    /// Those that broke.
    pub broken: u64,
    /// Connections that visitors tried to open meanwhile.
    pub tried: u64,
    /// Those that failed, or had no echo.
    pub failed: u64,
    /// Sentences about the broken and the failed.
    pub complaints: Vec<String>,
}

impl Flooded {
    /// Whether nothing broke and nobody was turned away.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.broken == 0 && self.failed == 0 && self.complaints.is_empty() && self.tried > 0
    }
}

/// Lets floods come over a lab of their own. What happens is told to `say`.
///
/// # Errors
/// When the lab or Tether fails otherwise than by what is told, or there was hardly a flood.
pub fn flood(deluge: &Deluge, mut say: impl FnMut(&str)) -> Result<Flooded> {
    let mut random = Random::from_environment();
    let topology = Topology::new(deluge.place).in_family(deluge.family);
    let stage = Stage::set(topology, random.bits(), |config| {
        [config.flows, config.flows6] = [FLOWS; 2];
        // A check that a full link loses says nothing about a backend.
        config.fall = 10;
        config.timeout_ms = 900;
        config.interval_ms = 1_000;
        if deluge.place.is_translated() {
            config.lines += &limits(deluge.family.vip());
        }
    })?;
    let talking = patient(stage.plan()).talking(PACE);
    let half = deluge.connections / 2;
    let mut crowd = stage.clients.open(half, talking, |_| {})?;
    crowd.extend(
        stage
            .clients
            .open(deluge.connections - half, talking.plain(), |_| {})?,
    );
    say(&format!("{} connections talk", crowd.len()));
    let visitors = Visitors::start(&stage.lab, patient(stage.plan()), random.bits())?;
    let mut floods = vec![];
    for kind in &deluge.kinds {
        let lab = &stage.lab;
        let balancer = lab.topology().balancer_address();
        let plan = Plan {
            kind: *kind,
            prefix: address::spoofed(deluge.family.vip()),
            target: stage.target(),
            macs: (lab.router_mac(BALANCER_PORT)?, mac_of(balancer)),
            seed: random.bits(),
        };
        let before = came(&stage.tether.metrics()?, *kind);
        let begun = Instant::now();
        let flood = Flood::start(lab.router(), BALANCER_PORT, &plan)?;
        crowd::wait_for_echoes(&crowd, ECHOES, 4 * PATIENCE, |_| {})?;
        std::thread::sleep(deluge.each.saturating_sub(begun.elapsed()));
        let sent = flood.stop()?;
        let seconds = begun.elapsed().as_secs_f64();
        let flooding = Flooding {
            kind: *kind,
            seconds,
            sent_per_second: sent as f64 / seconds,
            came_per_second: (came(&stage.tether.metrics()?, *kind) - before) as f64 / seconds,
        };
        say(&format!(
            "{}: {:.0} frames a second for {seconds:.1} s, {:.0} of them came",
            kind.name(),
            flooding.sent_per_second,
            flooding.came_per_second
        ));
        ensure!(
            flooding.came_per_second > HARDLY,
            "hardly a flood: {flooding:?}"
        );
        floods.push(flooding);
    }
    let visits = visitors.stop()?;
    let mut complaints = crowd::echo_all(&crowd);
    let breaks = crowd::breaks(&crowd);
    let failures: Vec<String> = visits
        .iter()
        .filter_map(|visit| visit.failure.clone())
        .collect();
    let flooded = Flooded {
        mode: stage.config.mode.to_owned(),
        floods,
        connections: crowd.len() as u64,
        broken: breaks.len() as u64,
        tried: visits.len() as u64,
        failed: failures.len() as u64,
        complaints: {
            complaints.extend(breaks);
            complaints.extend(failures);
            complaints
        },
    };
    if flooded.is_good() {
        stage.close();
    }
    Ok(flooded)
}

/// The line of a service that limits sources.
fn limits(version: IpVersion) -> String {
    let [rate, burst, flows] = LIMITS;
    let prefix = LIMITED.iter().find(|(of, _)| *of == version);
    format!(
        "source_limit = {{ prefix = {}, new_per_second = {rate}, burst = {burst}, flows = {flows} }}\n",
        prefix.map_or(0, |(_, prefix)| *prefix)
    )
}

/// Packets that have come to Tether's program so far, for any reason that what a flood is made of comes to: from its metrics, which are of the moment.
fn came(metrics: &str, kind: Kind) -> u64 {
    let is_of_kind = |line: &&str| {
        let rest = line.strip_prefix("tether_reason_packets_total{reason=\"");
        let name = rest.and_then(|rest| rest.split('"').next());
        let mut reasons = reasons(kind).iter();
        reasons.any(|reason| Some(reason.name()) == name)
    };
    metrics
        .lines()
        .filter(is_of_kind)
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// What the packets of a flood come to, in any mode, and of whoever is limited. What is no segment of a service, as of frames that are made wrongly, is none of
/// that.
const fn reasons(kind: Kind) -> &'static [Reason] {
    match kind {
        Kind::Syn => &[
            Reason::Opened,
            Reason::Reopened,
            Reason::Challenged,
            Reason::Unpinned,
            Reason::Contested,
            Reason::NoPort,
            Reason::Unrecorded,
            Reason::Collision,
            Reason::SourceRate,
            Reason::SourceFull,
        ],
        Kind::Ack => &[
            Reason::Adopted,
            Reason::Unadopted,
            Reason::Stray,
            Reason::UnknownFlow,
            Reason::ResetLimited,
        ],
        Kind::Fragment => &[Reason::Fragment],
        Kind::Icmp => &[
            Reason::EchoAnswered,
            Reason::AnswerLimited,
            Reason::ErrorRelayed,
            Reason::ErrorUnrelayed,
        ],
        // The ACK of one that was not let in, or found no place, is of nobody's flow.
        Kind::Handshake => &[
            Reason::Opened,
            Reason::Unpinned,
            Reason::NoPort,
            Reason::SourceRate,
            Reason::SourceFull,
            Reason::Established,
            Reason::Unadopted,
            Reason::UnknownFlow,
            Reason::ResetLimited,
        ],
    }
}
