//! What is on the screen: figures of the latest answers, and rates from what lies between them. Pure.

use std::collections::{HashMap, VecDeque};

use lb_common::verdict::{Reason, Verdict};

use super::super::service_state::ServiceState;
use crate::{
    inventory::{BackendRow, ServiceRow, Traffic},
    model::{Admin, Health},
    status::{AttachMode, Neighbour, Status},
    words::{duration, word},
};

/// Samples that are kept of the instance's rates.
const SAMPLES: usize = 120;
/// Samples that are kept of a row's, as many as it shows: there may be tens of thousands of rows.
pub(super) const TREND: usize = 10;

/// What the daemon answered at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// Of a steady clock.
    pub(super) at_ms: u64,
    pub(super) status: Status,
    pub(super) services: Vec<ServiceRow>,
    pub(super) backends: Vec<BackendRow>,
}

/// Which rows there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum View {
    #[default]
    Backends,
    Services,
}

/// The order of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Name,
    Packets,
    Bits,
    Active,
    State,
}

impl Sort {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Packets => "packets",
            Self::Bits => "bits",
            Self::Active => "active flows",
            Self::State => "state, the worst first",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Name => Self::Packets,
            Self::Packets => Self::Bits,
            Self::Bits => Self::Active,
            Self::Active => Self::State,
            Self::State => Self::Name,
        }
    }
}

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mood {
    Bad,
    Doubtful,
    Good,
}

/// A row, as it is shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) name: String,
    /// Health of a backend, or what is to be said of a service.
    pub(super) state: String,
    pub(super) mood: Mood,
    /// What a backend is given, or how many backends of a service take new flows.
    pub(super) serving: String,
    pub(super) active: u64,
    pub(super) idle: u64,
    /// Packets a second.
    pub(super) packets: f64,
    /// Bits a second.
    pub(super) bits: f64,
    /// Packets a second, the latest last.
    pub(super) trend: Vec<f64>,
}

/// Rates of the instance.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Total {
    pub(super) packets: f64,
    pub(super) bits: f64,
    pub(super) opened: f64,
    /// Packets to VIPs that were dropped or answered with a RST.
    pub(super) lost: f64,
}

/// A counter's past.
#[derive(Clone, Debug, Default)]
struct Track {
    last: Option<(u64, Traffic)>,
    packets: VecDeque<f64>,
    bits: f64,
}

impl Track {
    /// Takes in what was counted by then, and keeps so many rates.
    fn take(&mut self, at_ms: u64, now: Traffic, kept: usize) {
        if let Some((before_ms, before)) = self.last {
            let seconds = at_ms.saturating_sub(before_ms).max(1) as f64 / 1e3;
            // Maps that were made anew begin at nothing.
            let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
            if self.packets.len() == kept {
                self.packets.pop_front();
            }
            self.packets.push_back(rate(now.packets, before.packets));
            self.bits = rate(now.bytes, before.bytes) * 8.0;
        }
        self.last = Some((at_ms, now));
    }

    fn latest(&self) -> f64 {
        self.packets.back().copied().unwrap_or_default()
    }
}

/// Everything.
#[derive(Debug, Default)]
pub(super) struct Board {
    sample: Option<Sample>,
    tracks: HashMap<String, Track>,
    sent: Track,
    opened: Track,
    lost: Track,
    /// Why the daemon did not answer, if it did not.
    pub(super) trouble: Option<String>,
    pub(super) view: View,
    pub(super) sort: Sort,
    pub(super) reverse: bool,
    pub(super) paused: bool,
    /// Rows above the first that is shown.
    pub(super) skip: usize,
}

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Sort,
    Reverse,
    View,
    Pause,
    Up(usize),
    Down(usize),
    First,
}

impl Board {
    /// Takes in an answer.
    pub(super) fn take(&mut self, sample: Sample) {
        self.trouble = None;
        if self.paused {
            return;
        }
        let mut before = std::mem::take(&mut self.tracks);
        let services = sample
            .services
            .iter()
            .map(|row| (service_key(row), row.traffic));
        let backends = sample
            .backends
            .iter()
            .map(|row| (backend_key(row), row.traffic));
        // Those that are gone are forgotten.
        for (key, traffic) in services.chain(backends) {
            let mut track = before.remove(&key).unwrap_or_default();
            track.take(sample.at_ms, traffic, TREND);
            self.tracks.insert(key, track);
        }
        let sum = |wanted: fn(Reason) -> bool| {
            Reason::ALL
                .iter()
                .filter(|reason| wanted(**reason))
                .filter_map(|reason| sample.status.reasons.get(reason.name()))
                .fold(Traffic::default(), |sum, packets| Traffic {
                    packets: sum.packets + packets.packets,
                    bytes: sum.bytes + packets.bytes,
                })
        };
        let at_ms = sample.at_ms;
        self.sent.take(
            at_ms,
            sum(|reason| reason.verdict() == Verdict::Forward),
            SAMPLES,
        );
        self.opened.take(
            at_ms,
            sum(|reason| matches!(reason, Reason::Opened | Reason::Adopted)),
            SAMPLES,
        );
        self.lost.take(
            at_ms,
            sum(|reason| matches!(reason.verdict(), Verdict::Drop | Verdict::Reset)),
            SAMPLES,
        );
        self.sample = Some(sample);
    }

    /// Does what a key means.
    pub(super) fn wish(&mut self, wish: Wish) {
        match wish {
            Wish::Sort => self.sort = self.sort.next(),
            Wish::Reverse => self.reverse = !self.reverse,
            Wish::View => {
                self.view = match self.view {
                    View::Backends => View::Services,
                    View::Services => View::Backends,
                };
                self.skip = 0;
            }
            Wish::Pause => self.paused = !self.paused,
            Wish::Up(rows) => self.skip = self.skip.saturating_sub(rows),
            Wish::Down(rows) => {
                self.skip = (self.skip + rows).min(self.rows().saturating_sub(1));
            }
            Wish::First => self.skip = 0,
        }
    }

    /// Rates of the instance.
    pub(super) fn total(&self) -> Total {
        Total {
            packets: self.sent.latest(),
            bits: self.sent.bits,
            opened: self.opened.latest(),
            lost: self.lost.latest(),
        }
    }

    /// Packets a second that were sent to backends, the latest last.
    pub(super) fn trend(&self) -> Vec<u64> {
        self.sent
            .packets
            .iter()
            .map(|rate| rate.round() as u64)
            .collect()
    }

    /// The daemon, in a line.
    pub(super) fn heading(&self) -> String {
        let Some(Sample { status, .. }) = &self.sample else {
            return "tether".to_owned();
        };
        let attached: Vec<String> = status
            .attachments
            .iter()
            .map(|attachment| {
                let mode = match attachment.mode {
                    AttachMode::Native => "native",
                    AttachMode::Generic => "generic",
                };
                format!("{} ({mode})", attachment.interface)
            })
            .collect();
        let attached = if attached.is_empty() {
            "attached to nothing".to_owned()
        } else {
            attached.join(", ")
        };
        format!(
            "tether {}, up {}, generation {}, {attached}",
            status.version,
            duration(status.uptime_s),
            status.generation.applied,
        )
    }

    /// Flows and rates, in a line.
    pub(super) fn figures(&self) -> String {
        let Some(Sample { status, .. }) = &self.sample else {
            return "waiting for the daemon".to_owned();
        };
        let flows = &status.flows;
        let total = self.total();
        format!(
            "flows {} ({:.1}% full), new {}/s, packets {}/s, {}bit/s, lost {}/s",
            short(flows.live() as f64),
            flows.used * 100.0,
            short(total.opened),
            short(total.packets),
            short(total.bits),
            short(total.lost),
        )
    }

    /// The gravest thing that an operator should know, if there is one.
    pub(super) fn warning(&self) -> Option<String> {
        if let Some(trouble) = &self.trouble {
            return Some(trouble.clone());
        }
        let status = &self.sample.as_ref()?.status;
        let generation = status.generation;
        if status.attachments.is_empty() {
            Some("the program is attached to no interface: nothing is served".to_owned())
        } else if let Some(detached) = status.detached.first() {
            Some(format!(
                "the program is not attached to {}: {}",
                detached.interface, detached.reason
            ))
        } else if let Some(error) = &status.config.error {
            let first = error.lines().next().unwrap_or_default();
            Some(format!("configuration refused: {first}"))
        } else if status.evacuated {
            Some("evacuated: all backends are drained until `tether undrain --all`".to_owned())
        } else if generation.applied < generation.accepted {
            Some(format!(
                "generation {} is accepted and not in force yet",
                generation.accepted
            ))
        } else {
            None
        }
    }

    /// How many rows there are.
    pub(super) fn rows(&self) -> usize {
        self.sample.as_ref().map_or(0, |sample| match self.view {
            View::Services => sample.services.len(),
            View::Backends => sample.backends.len(),
        })
    }

    /// So many rows behind the first ones, in order.
    pub(super) fn lines(&self, skip: usize, count: usize) -> Vec<Line> {
        let Some(sample) = &self.sample else {
            return Vec::new();
        };
        match self.view {
            View::Services => self.in_order(&sample.services, |row| self.service(row), skip, count),
            View::Backends => self.in_order(&sample.backends, |row| self.backend(row), skip, count),
        }
    }

    fn in_order<R>(
        &self,
        rows: &[R],
        line: impl Fn(&R) -> Line,
        skip: usize,
        count: usize,
    ) -> Vec<Line> {
        // Only an order by figures takes those of all rows.
        if self.sort == Sort::Name {
            let at = |place: usize| {
                if self.reverse {
                    rows.len() - 1 - place
                } else {
                    place
                }
            };
            let places = (0..rows.len()).skip(skip).take(count);
            return places.map(|place| line(&rows[at(place)])).collect();
        }
        let mut lines: Vec<Line> = rows.iter().map(line).collect();
        // The greatest first; of equals, in the daemon's order.
        match self.sort {
            Sort::Name => {}
            Sort::Packets => lines.sort_by(|a, b| b.packets.total_cmp(&a.packets)),
            Sort::Bits => lines.sort_by(|a, b| b.bits.total_cmp(&a.bits)),
            Sort::Active => lines.sort_by_key(|line| std::cmp::Reverse(line.active)),
            Sort::State => lines.sort_by_key(|line| line.mood),
        }
        if self.reverse {
            lines.reverse();
        }
        lines.into_iter().skip(skip).take(count).collect()
    }

    fn line(&self, key: &str) -> Line {
        let track = self.tracks.get(key);
        Line {
            name: String::new(),
            state: String::new(),
            mood: Mood::Good,
            serving: String::new(),
            active: 0,
            idle: 0,
            packets: track.map_or(0.0, Track::latest),
            bits: track.map_or(0.0, |track| track.bits),
            trend: track.map_or(vec![], |track| track.packets.iter().copied().collect()),
        }
    }

    fn backend(&self, row: &BackendRow) -> Line {
        let backend = &row.backend;
        let (state, mood) = match (backend.removed, backend.admin, backend.health) {
            (true, _, _) => ("removed", Mood::Doubtful),
            (_, _, Health::Down) => ("down", Mood::Bad),
            (_, Admin::Draining, _) => ("draining", Mood::Doubtful),
            (_, Admin::Disabled, _) => ("disabled", Mood::Doubtful),
            _ if backend.neighbour == Neighbour::Unresolved => ("unresolved", Mood::Bad),
            (_, _, Health::Refusing) => ("refusing", Mood::Doubtful),
            (_, _, Health::Unknown) => ("unknown", Mood::Doubtful),
            (_, _, Health::Up) => ("up", Mood::Good),
        };
        Line {
            name: plain(&format!("{}/{}", row.service, backend.name)),
            state: state.to_owned(),
            mood,
            serving: word(&backend.serving),
            active: backend.flows.active,
            idle: backend.flows.idle,
            ..self.line(&backend_key(row))
        }
    }

    fn service(&self, row: &ServiceRow) -> Line {
        let state = ServiceState::of(row);
        let mood = match state {
            ServiceState::Error
            | ServiceState::FailOpen
            | ServiceState::Full
            | ServiceState::NoBackend => Mood::Bad,
            ServiceState::Removed | ServiceState::ResetsOff => Mood::Doubtful,
            ServiceState::Ok => Mood::Good,
        };
        let backends = row.backends;
        let of = backends.new + backends.existing_only + backends.none;
        Line {
            name: plain(&row.name),
            state: state.word().to_owned(),
            mood,
            serving: format!("{} of {of} new", backends.new),
            active: row.flows.active,
            idle: row.flows.idle,
            ..self.line(&service_key(row))
        }
    }
}

fn service_key(row: &ServiceRow) -> String {
    format!("{} {} {}", row.name, row.vip, row.port)
}

fn backend_key(row: &BackendRow) -> String {
    let backend = &row.backend;
    format!(
        "{} {} {} {} {}",
        row.service, row.endpoint, backend.name, backend.address, backend.port
    )
}

fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// A figure in five characters at most, up to a thousand billions.
pub(super) fn short(figure: f64) -> String {
    let mut figure = figure;
    let mut units = ["", "k", "M", "G", "T"].into_iter().peekable();
    while let Some(unit) = units.next() {
        // What would be rounded to four digits is the next unit's.
        if figure >= 999.5 && units.peek().is_some() {
            figure /= 1e3;
            continue;
        }
        return if (unit.is_empty() && figure.fract() == 0.0) || figure >= 99.95 {
            format!("{figure:.0}{unit}")
        } else {
            format!("{figure:.1}{unit}")
        };
    }
    String::new()
}
