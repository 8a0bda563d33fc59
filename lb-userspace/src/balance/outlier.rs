//! `outlier`: a backend whose clients send much more again than those of its peers takes no new flows for a while. Pure.
//!
//! A backend may be ill in a way that its checks do not find: it loses some packets, or answers too late. Its clients then repeat themselves. So do all
//! clients whose own networks are bad, but those are everybody's: what matters is the difference from the peers. And what matters is what several clients say:
//! of what is held against a backend, no client has more than the fifth has, of those who repeat themselves most ([`Share::evened`]).
//!
//! * [`Window`]: counts of the latest time, in steps
//! * [`judge`]: who is ejected, and who is back

use std::{collections::VecDeque, time::Duration};

use lb_common::repeats::{PARTS, Repeats};
use serde::{Deserialize, Serialize};

use crate::pace::Moment;

/// What a service says of outliers, as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// How many times the peers' median a share is that makes an outlier.
    pub ratio: u32,
    /// The least that such a share is, percent.
    pub floor: u32,
    /// Of fewer handshakes, or segments, no share is judged.
    pub least: u32,
    /// The most backends that are ejected at a time, percent; but one, if there are two. 0 is none: it is only counted.
    pub at_most: u32,
    /// How long a backend is ejected for the first time.
    pub eject_for: Duration,
    /// The time that is looked back on.
    pub window: Duration,
}

impl Outlier {
    /// That of a service which says nothing more than that it wants it.
    pub const DEFAULT: Self = Self {
        ratio: 3,
        floor: 5,
        least: 200,
        at_most: 10,
        eject_for: Duration::from_secs(30),
        window: Duration::from_secs(30),
    };

    /// The time from step to step.
    #[must_use]
    pub fn step(&self) -> Duration {
        self.window / STEPS
    }

    /// How long a backend is ejected the so many'th time of late.
    fn length(&self, times: u32) -> Duration {
        self.eject_for * times.min(MOST_TIMES)
    }

    /// The most of so many backends that are ejected at a time.
    #[must_use]
    pub fn most(&self, backends: usize) -> usize {
        if self.at_most == 0 || backends < 2 {
            return 0;
        }
        let share = backends * self.at_most as usize / 100;
        share.clamp(1, backends - 1)
    }
}

/// What fewer clients repeat says nothing of a backend: each may have a bad network of its own, or wish the backend ill.
const LEAST_CLIENTS: usize = 5;
/// Of what a backend's peers are taken to have, no client has more than the so many'th: one alone spoils no peer, and hides nobody behind it. No more is left
/// out than that: little that was counted is uneven by chance, and a peer would look better than it is.
const OF_PEERS: usize = 2;
/// Steps of a window.
const STEPS: u32 = 6;
/// An ejection is at most so many times as long as the first.
const MOST_TIMES: u32 = 10;

/// What is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Signal {
    /// SYNs.
    Syns,
    /// Data.
    Data,
}

impl Signal {
    const ALL: [Self; 2] = [Self::Syns, Self::Data];
}

/// How much of something was sent again, and by whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// How much was sent, or is known to have arrived.
    pub samples: u64,
    /// How much of it came again.
    pub again: u64,
    /// How much of that was of each part of all clients, as far as it was noted.
    pub parts: [u64; PARTS],
}

impl Share {
    /// Of what was counted in a step.
    #[must_use]
    pub fn of(counted: &Repeats, signal: Signal) -> Self {
        let (samples, again, noted) = match signal {
            // A connection whose SYN came again may never have come to more.
            Signal::Syns => (
                counted.handshakes.saturating_add(counted.syns),
                counted.syns,
                counted.syn_clients,
            ),
            Signal::Data => (counted.data, counted.data_again, counted.data_clients),
        };
        // Two CPUs may have counted these while they were read.
        let again = again.min(samples);
        Self {
            samples,
            again,
            parts: dealt(again, noted.to_le_bytes()),
        }
    }

    /// Of both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let mut parts = self.parts;
        for (part, more) in parts.iter_mut().zip(other.parts) {
            *part = part.saturating_add(more);
        }
        Self {
            samples: self.samples.saturating_add(other.samples),
            again: self.again.saturating_add(other.again),
            parts,
        }
    }

    /// Of how many clients that is which came again, at least.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.parts.iter().filter(|part| **part > 0).count()
    }

    /// The same as if no part of all clients, and so no client, had sent more of it again than the so many'th has, of those who sent most of it again; if
    /// there are fewer, than the last has. What is beyond that is no sample either, and neither is what is nobody's.
    #[must_use]
    pub fn evened(self, place: usize) -> Self {
        let mut sorted = self.parts;
        sorted.sort_unstable_by_key(|part| std::cmp::Reverse(*part));
        let place = place.clamp(1, self.clients().max(1));
        let most = sorted[place - 1];
        let parts = self.parts.map(|part| part.min(most));
        let again = parts.iter().sum::<u64>().min(self.again);
        Self {
            samples: self.samples - (self.again - again),
            again,
            parts,
        }
    }

    /// In parts of a thousand; 0 of nothing.
    #[must_use]
    pub fn per_mille(self) -> u32 {
        let share = u128::from(self.again) * 1_000 / u128::from(self.samples.max(1));
        share as u32
    }
}

/// How much of what came again is of each part of all clients, if of each so much was noted as long as that went on; all of it, unless nothing was noted.
fn dealt(again: u64, noted: [u8; PARTS]) -> [u64; PARTS] {
    let all: u128 = noted.iter().map(|part| u128::from(*part)).sum();
    let (mut before, mut given) = (0, 0);
    noted.map(|part| {
        before += u128::from(part);
        let by_here = (u128::from(again) * before / all.max(1)) as u64;
        let of_part = by_here - given;
        given = by_here;
        of_part
    })
}

/// What was counted for one backend in the latest time.
#[derive(Clone, Debug, Default)]
pub struct Window {
    last: Option<Repeats>,
    steps: VecDeque<Repeats>,
}

impl Window {
    /// A step is over: what has been counted since any moment by now. The first time it says nothing.
    pub fn step(&mut self, counted: Repeats) {
        if let Some(last) = self.last.replace(counted) {
            self.steps.push_back(counted.since(&last));
        }
        while self.steps.len() > STEPS as usize {
            self.steps.pop_front();
        }
    }

    /// It begins anew: of what has been counted by now nothing counts.
    pub fn begin(&mut self, counted: Repeats) {
        self.last = Some(counted);
        self.forget();
    }

    /// What was counted so far counts no more.
    pub fn forget(&mut self) {
        self.steps.clear();
    }

    /// How much was sent again in all its steps.
    #[must_use]
    pub fn share(&self, signal: Signal) -> Share {
        let steps = self.steps.iter().map(|step| Share::of(step, signal));
        steps.fold(Share::default(), Share::and)
    }
}

/// Why a backend takes no new flows, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// What its clients sent again.
    pub signal: Signal,
    /// Their share of it, evened, in parts of a thousand.
    pub share: u32,
    /// The median of its peers' shares then.
    pub peers: u32,
    /// How many times it was ejected of late, this one included.
    pub times: u32,
    /// When it ends.
    pub until: Moment,
}

impl Ejection {
    /// Whether this is the same as another, whenever each ends: one that stays ejected when its time is over is ejected once more.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.times == other.times
    }
}

/// What is remembered of one backend.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// What its clients sent.
    pub window: Window,
    /// Whether it is ejected.
    pub ejected: Option<Ejection>,
    /// Whether it could take new flows when that was last looked at.
    able: bool,
    /// How many times it was, and when it came back from the last.
    before: Option<(u32, Moment)>,
}

impl Memory {
    /// Whether it begins to be able to take new flows, as far as it is for itself to say. What was counted before says nothing of it: who was away, and had
    /// clients that repeated themselves for that, is another now.
    pub fn begins(&mut self, able: bool) -> bool {
        let begins = able && !self.able;
        self.able = able;
        begins
    }

    /// It is ejected for no longer than it would be if it were ejected now: `eject_for` may be shorter than it was.
    fn shorten(&mut self, policy: &Outlier, now: Moment) {
        if let Some(ejection) = &mut self.ejected {
            let longest = now.later(policy.length(ejection.times));
            ejection.until = ejection.until.min(longest);
        }
    }

    /// Of an ejection that has been.
    fn is_back(&mut self, now: Moment) {
        if let Some(ejection) = self.ejected.take() {
            self.before = Some((ejection.times, now));
            self.window.forget();
        }
    }

    fn eject(&mut self, policy: &Outlier, finding: Finding, now: Moment) {
        let times = match (self.ejected, self.before) {
            (Some(ejection), _) => ejection.times,
            (None, Some((times, back))) => {
                // One is forgiven for each time of a first ejection that it was back for.
                let forgiven = now.since(back).as_millis() / policy.eject_for.as_millis().max(1);
                times.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
            }
            (None, None) => 0,
        };
        let times = times.saturating_add(1);
        self.ejected = Some(Ejection {
            signal: finding.signal,
            share: finding.share,
            peers: finding.peers,
            times,
            until: now.later(policy.length(times)),
        });
        // It is judged by what comes from now on.
        self.window.forget();
    }
}

/// What makes a backend an outlier.
#[derive(Clone, Copy, Debug)]
struct Finding {
    signal: Signal,
    share: u32,
    peers: u32,
}

/// Says who is ejected and who is back, of those backends of a service that could take new flows by their own admin state and health. With fewer than
/// `min_healthy` that take new flows nobody is ejected. In fail-open, where `may_eject` is false, nobody is ejected anew.
pub fn judge(
    policy: &Outlier,
    min_healthy: usize,
    may_eject: bool,
    backends: &mut [&mut Memory],
    now: Moment,
) {
    for memory in backends.iter_mut() {
        memory.shorten(policy, now);
    }
    let shares = Signal::ALL.map(|signal| {
        let all = backends.iter();
        all.map(|memory| (memory.window.share(signal), memory.ejected.is_some()))
            .collect::<Vec<_>>()
    });
    let findings: Vec<Option<Finding>> = (0..backends.len())
        .map(|at| {
            let found = Signal::ALL.iter().zip(&shares);
            found
                .filter_map(|(&signal, shares)| find(policy, signal, shares, at))
                .max_by_key(|finding| finding.share)
        })
        .collect();
    for (memory, finding) in backends.iter_mut().zip(&findings) {
        let is_over = memory.ejected.is_some_and(|ejection| ejection.until <= now);
        match finding {
            // It has not got better: what it has is judged like anybody's.
            Some(finding) if is_over && may_eject => memory.eject(policy, *finding, now),
            _ if is_over => memory.is_back(now),
            _ => {}
        }
    }
    let room = backends.len().saturating_sub(min_healthy.max(1));
    let most = policy.most(backends.len()).min(room);
    let mut ejected: Vec<usize> = (0..backends.len())
        .filter(|&at| backends[at].ejected.is_some())
        .collect();
    // There may be fewer backends than there were, or fewer are allowed: who would be back first is.
    ejected.sort_by_key(|&at| backends[at].ejected.map(|ejection| ejection.until));
    let surplus = ejected.len().saturating_sub(most);
    for &at in &ejected[..surplus] {
        backends[at].is_back(now);
    }
    if !may_eject || surplus > 0 {
        return;
    }
    let mut worst: Vec<(usize, Finding)> = findings
        .into_iter()
        .enumerate()
        .filter_map(|(at, finding)| Some((at, finding?)))
        .filter(|(at, _)| backends[*at].ejected.is_none())
        .collect();
    worst.sort_by_key(|(_, finding)| std::cmp::Reverse(finding.share));
    for (at, finding) in worst.into_iter().take(most - ejected.len()) {
        backends[at].eject(policy, finding, now);
    }
}

/// Ends an ejection whose time is over, of a backend that cannot take new flows anyhow.
pub fn expire(memory: &mut Memory, now: Moment) {
    if memory.ejected.is_some_and(|ejection| ejection.until <= now) {
        memory.is_back(now);
    }
}

/// Whether a backend is an outlier by one signal. Each share comes with whether its backend is ejected: such are nobody's peers.
fn find(policy: &Outlier, signal: Signal, shares: &[(Share, bool)], at: usize) -> Option<Finding> {
    let is_enough = |share: &Share| share.samples >= u64::from(policy.least);
    let share = shares[at].0.evened(LEAST_CLIENTS);
    if share.clients() < LEAST_CLIENTS || !is_enough(&share) {
        return None;
    }
    let share = share.per_mille();
    let mut peers: Vec<u32> = shares
        .iter()
        .enumerate()
        .filter(|(other, (_, is_ejected))| *other != at && !is_ejected)
        .map(|(_, (share, _))| share.evened(OF_PEERS))
        .filter(is_enough)
        .map(Share::per_mille)
        .collect();
    peers.sort_unstable();
    let median = match peers.len() {
        0 => return None,
        odd if odd % 2 == 1 => peers[odd / 2],
        even => (peers[even / 2 - 1] + peers[even / 2]) / 2,
    };
    let is_far = share >= median.saturating_mul(policy.ratio) && share >= policy.floor * 10;
    is_far.then_some(Finding {
        signal,
        share,
        peers: median,
    })
}

#[cfg(test)]
mod tests;
