//! Millions of random packets, waits, sweeps and changes of backends and tables, against a reference that is written from the
//! design and knows nothing of words, buckets or places.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
};

use lb_common::{
    backend::Serving,
    clock::Tick,
    flow::{
        v4::Key,
        word::{EMBRYO_TICKS, State, Word},
    },
    maglev::Slot,
    tcp::{ACK, FIN, RST, SYN, Segment},
    verdict::Reason,
};

use crate::{
    random::Random,
    rig::{Outcome, Rig},
};

/// Flows of one run: few, so that each has a long story.
const FLOWS: u32 = 12;
const BACKENDS: u32 = 4;
const SLOTS: u32 = 5;
/// So many that no place is ever wanted by another.
const ROOMY: u32 = 4_096;

/// One step of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Packet {
        flow: u32,
        segment: Segment,
    },
    Wait {
        ticks: u32,
    },
    Sweep,
    Backend {
        id: u32,
        serving: Serving,
        reused: bool,
        resolved: bool,
    },
    Owner {
        slot: u32,
        owner: u32,
    },
    Adoption {
        allowed: bool,
    },
}

pub(crate) const fn key_of(flow: u32) -> Key {
    Key::new(0x0a00_0100 + flow, 1_000 + flow as u16, 3)
}

/// What both the table and the reference are told: tables, backends, time.
pub(crate) struct Outside {
    pub(crate) rig: Rig,
    pub(crate) now: Tick,
    slots: Vec<Slot>,
    backends: Vec<Backend>,
    adoption: bool,
}

#[derive(Clone, Copy)]
struct Backend {
    generation: u8,
    serving: Serving,
    resolved: bool,
}

impl Outside {
    pub(crate) fn new(buckets: u32) -> Self {
        let now = Tick(70_000);
        let mut rig = Rig::new(buckets);
        let slots: Vec<_> = (0..SLOTS)
            .map(|n| Slot::new(1 + n % BACKENDS, 0, Tick(0)))
            .collect();
        rig.set_slots(slots.clone());
        let whole = Backend {
            generation: 0,
            serving: Serving::New,
            resolved: true,
        };
        let mut backends = vec![whole; 1 + BACKENDS as usize];
        backends[0].serving = Serving::None;
        for id in 1..=BACKENDS {
            rig.set_backend(id, Serving::New);
        }
        Self {
            rig,
            now,
            slots,
            backends,
            adoption: true,
        }
    }

    /// Applies whatever is not a packet. `on_sweep` is called after each sweep.
    pub(crate) fn apply(&mut self, op: Op, mut on_sweep: impl FnMut(Tick)) {
        match op {
            Op::Packet { .. } => {}
            Op::Wait { ticks } => {
                // The daemon sweeps often enough that an embryo's short clock does not go round.
                let mut left = ticks;
                while left > 0 {
                    let step = left.min(16);
                    self.now = self.now.later(step);
                    left -= step;
                    if ticks > 16 {
                        self.sweep();
                        on_sweep(self.now);
                    }
                    if ticks - left > 80 {
                        // No embryo is left; the rest is one step.
                        self.now = self.now.later(left);
                        left = 0;
                    }
                }
            }
            Op::Sweep => {
                self.sweep();
                on_sweep(self.now);
            }
            Op::Backend {
                id,
                serving,
                reused,
                resolved,
            } => {
                let backend = &mut self.backends[id as usize];
                backend.generation = (backend.generation + u8::from(reused)) % 32;
                backend.serving = serving;
                backend.resolved = resolved;
                self.rig
                    .set_backend_whole(id, backend.generation, serving, resolved);
            }
            Op::Owner { slot, owner } => {
                let slot = &mut self.slots[slot as usize];
                *slot = slot.succeeded_by(owner, self.now);
                self.rig.set_slots(self.slots.clone());
            }
            Op::Adoption { allowed } => {
                self.adoption = allowed;
                self.rig.set_may_adopt(allowed);
            }
        }
    }

    /// What the daemon's sweeper does, from the words alone.
    fn sweep(&self) {
        let now = self.now;
        self.rig.sweep(|_, word| {
            (word.is_nascent() && word.nascent_age(now) >= EMBRYO_TICKS)
                || (word.is(State::Closing) && word.is_vacant(now))
        });
    }
}

/// Ticks of 2^32 ns after which so many seconds have surely passed.
fn surely(seconds: u32) -> u32 {
    (f64::from(seconds) / 4.294_967_296).ceil() as u32 + 1
}

/// The life of a flow, as design.md tells it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    /// A SYN was seen.
    Asked {
        isn: u32,
        at: u32,
        challenges: bool,
    },
    /// Promoted or adopted at `since`.
    Young {
        since: u32,
    },
    Pin,
    Closing {
        by_reset: bool,
        exception: bool,
        quiet_since: u32,
    },
}

#[derive(Clone, Copy, Debug)]
struct Held {
    backend: u32,
    generation: u8,
    life: Life,
    /// Position in the client's stream, in MiB, of what is not merely asked for.
    epoch: i64,
    /// The epoch jumped, and nothing has agreed yet.
    doubtful: bool,
    /// The later of two.
    newer: bool,
}

impl Held {
    fn is_asked(&self) -> bool {
        matches!(self.life, Life::Asked { .. })
    }

    fn is_closing(&self) -> bool {
        matches!(self.life, Life::Closing { .. })
    }

    fn is_claimable(&self, now: u32) -> bool {
        match self.life {
            Life::Closing {
                by_reset,
                exception,
                quiet_since,
            } => {
                let linger = match (by_reset, exception) {
                    (true, _) => 60,
                    (false, true) => 2 * 60 * 60,
                    (false, false) => 15 * 60,
                };
                now - quiet_since >= surely(linger)
            }
            _ => false,
        }
    }

    fn quiet(&self, now: u32) -> u32 {
        match self.life {
            Life::Closing { quiet_since, .. } => now - quiet_since,
            _ => 0,
        }
    }

    /// How many epochs a sequence number is ahead, from -2048 to 2047.
    fn ahead(&self, seq: u32) -> i64 {
        (i64::from(seq >> 20) - self.epoch + 2048).rem_euclid(4096) - 2048
    }

    fn is_followed_by(&self, segment: &Segment) -> bool {
        match self.life {
            Life::Asked { isn, .. } => {
                segment.flags & (SYN | ACK | FIN | RST) == ACK
                    && (0..=1 << 17).contains(&segment.seq.wrapping_sub(isn))
            }
            _ => false,
        }
    }

    /// A segment without SYN that belongs to this entry.
    fn takes(&mut self, segment: &Segment, now: u32, pick: u32) {
        if self.is_asked() {
            if self.is_followed_by(segment) {
                self.newer = matches!(
                    self.life,
                    Life::Asked {
                        challenges: true,
                        ..
                    }
                );
                self.life = Life::Young { since: now };
                self.epoch = i64::from(segment.seq >> 20);
                self.doubtful = false;
            }
            return;
        }
        let ahead = self.ahead(segment.seq);
        let near = ahead.abs() <= 1;
        if segment.flags & (FIN | RST) != 0 {
            if near && !self.doubtful {
                self.follow(ahead);
                let was = match self.life {
                    Life::Closing {
                        by_reset,
                        exception,
                        ..
                    } => (by_reset, exception),
                    _ => (false, pick != self.backend),
                };
                self.life = Life::Closing {
                    by_reset: was.0 || segment.flags & RST != 0,
                    exception: was.1,
                    quiet_since: now,
                };
            }
            return;
        }
        if near {
            self.doubtful = false;
            self.follow(ahead);
        } else {
            self.doubtful = true;
            self.epoch = i64::from(segment.seq >> 20);
        }
        match self.life {
            Life::Young { since } if now - since >= surely(30) => self.life = Life::Pin,
            Life::Closing {
                by_reset,
                exception,
                ..
            } if near => {
                self.life = if by_reset || segment.payload {
                    Life::Young { since: now }
                } else {
                    Life::Closing {
                        by_reset,
                        exception,
                        quiet_since: now,
                    }
                };
            }
            _ => {}
        }
    }

    fn follow(&mut self, ahead: i64) {
        if ahead == 1 {
            self.epoch = (self.epoch + 1) % 4096;
        }
    }
}

/// Who went where: the reference.
#[derive(Default)]
struct Reference {
    flows: HashMap<u32, Vec<Held>>,
}

/// A backend that was chosen: id and what is known of it.
type Choice = (u32, Backend);

fn sent(choice: Choice, reason: Reason) -> Outcome {
    let reason = if choice.1.resolved {
        reason
    } else {
        Reason::Unresolved
    };
    (reason, Some(choice.0))
}

impl Reference {
    fn pick_new(outside: &Outside, key: Key) -> Result<Choice, Outcome> {
        let mut refusal = Reason::NoBackend;
        for attempt in 0..4 {
            let id = outside.rig.slot_of(key, attempt).current();
            let backend = outside.backends[id as usize];
            if backend.serving == Serving::New && id != 0 {
                if backend.resolved {
                    return Ok((id, backend));
                }
                refusal = Reason::Unresolved;
            }
        }
        Err((refusal, None))
    }

    /// The backend that an entry was made for, if its id was not reused.
    fn still(outside: &Outside, held: &Held) -> Option<Choice> {
        let backend = outside.backends[held.backend as usize];
        (backend.generation == held.generation).then_some((held.backend, backend))
    }

    fn asked(choice: Choice, isn: u32, now: Tick, challenges: bool) -> Held {
        Held {
            backend: choice.0,
            generation: choice.1.generation,
            life: Life::Asked {
                isn,
                at: now.0,
                challenges,
            },
            epoch: 0,
            doubtful: false,
            newer: challenges,
        }
    }

    fn sweep(&mut self, now: Tick) {
        for held in self.flows.values_mut() {
            held.retain(|one| match one.life {
                Life::Asked { at, .. } => now.0 - at < surely(128),
                _ => !one.is_claimable(now.0),
            });
        }
    }

    /// Forgets what was claimable and is gone: it could go at any time.
    fn forget_claimed(&mut self, flow: u32, words: &[Word], now: Tick) {
        let held = self.flows.entry(flow).or_default();
        held.retain(|one| {
            !one.is_claimable(now.0)
                || words.iter().any(|word| {
                    word.is(State::Closing)
                        && word.backend().id() == one.backend
                        && word.has(Word::SECOND) == one.newer
                })
        });
        assert_eq!(held.len(), words.len(), "flow {flow}: {held:?} {words:?}");
    }

    fn packet(&mut self, outside: &Outside, flow: u32, segment: &Segment) -> Outcome {
        let words = outside.rig.entries(key_of(flow));
        self.forget_claimed(flow, &words, outside.now);
        if segment.flags & SYN != 0 {
            if segment.flags & (ACK | FIN | RST) != 0 {
                return (Reason::BadFlags, None);
            }
            // Which of two equals goes is the table's to choose.
            let first_is_newer = words.first().is_some_and(|word| word.has(Word::SECOND));
            return self
                .syn(outside, flow, segment.seq, first_is_newer)
                .unwrap_or_else(|refusal| refusal);
        }
        let held = self.flows.entry(flow).or_default();
        if held.is_empty() {
            return self.unknown(outside, flow, segment);
        }
        let owner = Self::owner(held, segment);
        let Some(choice) = Self::still(outside, &held[owner]) else {
            held.remove(owner);
            return (Reason::StaleGeneration, None);
        };
        let pick = outside.rig.slot_of(key_of(flow), 0).current();
        held[owner].takes(segment, outside.now.0, pick);
        match choice.1.serving {
            Serving::None if segment.flags & RST != 0 => (Reason::ResetToDead, Some(choice.0)),
            Serving::None => (Reason::BackendDead, Some(choice.0)),
            _ => sent(choice, Reason::Established),
        }
    }

    /// Whose a segment is.
    fn owner(held: &[Held], segment: &Segment) -> usize {
        if held.len() == 1 {
            return 0;
        }
        if let Some(asked) = held.iter().position(Held::is_asked) {
            return if held[asked].is_followed_by(segment) {
                asked
            } else {
                1 - asked
            };
        }
        let far: Vec<_> = held
            .iter()
            .map(|one| one.ahead(segment.seq).abs())
            .collect();
        match far[0].cmp(&far[1]) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Greater => 1,
            std::cmp::Ordering::Equal => usize::from(held[1].newer),
        }
    }

    fn syn(
        &mut self,
        outside: &Outside,
        flow: u32,
        isn: u32,
        first_is_newer: bool,
    ) -> Result<Outcome, Outcome> {
        let key = key_of(flow);
        let now = outside.now;
        let held = self.flows.entry(flow).or_default();
        let for_challenger = |incumbent: &Held| match Self::still(outside, incumbent) {
            Some(kept) if kept.1.serving == Serving::New && kept.1.resolved => Ok(kept),
            _ => Self::pick_new(outside, key),
        };
        let asked = held.iter().position(Held::is_asked);
        if let Some(asked) = asked {
            let Life::Asked {
                isn: before,
                challenges,
                ..
            } = held[asked].life
            else {
                unreachable!()
            };
            let same = before == isn;
            // Another SYN goes where the live flow is, if there is one.
            let preferred = if same || held.len() == 1 {
                held[asked]
            } else {
                held[1 - asked]
            };
            let kept = Self::still(outside, &preferred).filter(|kept| {
                kept.1.serving == Serving::New || (same && kept.1.serving == Serving::ExistingOnly)
            });
            if same && let Some(kept) = kept {
                return Ok(sent(kept, Reason::Reopened));
            }
            let choice = kept.map_or_else(|| Self::pick_new(outside, key), Ok)?;
            held[asked] = Self::asked(choice, isn, now, challenges);
            return Ok(sent(choice, Reason::Reopened));
        }
        match held.len() {
            0 => {
                let choice = Self::pick_new(outside, key)?;
                held.push(Self::asked(choice, isn, now, false));
                Ok(sent(choice, Reason::Opened))
            }
            1 if held[0].is_claimable(now.0) => {
                let choice = Self::pick_new(outside, key)?;
                held[0] = Self::asked(choice, isn, now, false);
                Ok(sent(choice, Reason::Opened))
            }
            1 => {
                let choice = for_challenger(&held[0])?;
                held[0].newer = false;
                held.push(Self::asked(choice, isn, now, true));
                Ok(sent(choice, Reason::Challenged))
            }
            _ => {
                let goes = match (held[0].is_closing(), held[1].is_closing()) {
                    (false, false) => {
                        let as_data = Segment {
                            seq: isn,
                            flags: ACK,
                            payload: false,
                        };
                        let nearer = held[Self::owner(held, &as_data)];
                        return match Self::still(outside, &nearer) {
                            Some(kept) if kept.1.serving == Serving::New => {
                                Ok(sent(kept, Reason::Unpinned))
                            }
                            _ => Err((Reason::Contested, None)),
                        };
                    }
                    (true, false) => 0,
                    (false, true) => 1,
                    (true, true) => match held[0].quiet(now.0).cmp(&held[1].quiet(now.0)) {
                        std::cmp::Ordering::Greater => 0,
                        std::cmp::Ordering::Less => 1,
                        std::cmp::Ordering::Equal => usize::from(held[1].newer == first_is_newer),
                    },
                };
                let choice = for_challenger(&held[1 - goes])?;
                held[1 - goes].newer = false;
                held[goes] = Self::asked(choice, isn, now, true);
                Ok(sent(choice, Reason::Challenged))
            }
        }
    }

    fn unknown(&mut self, outside: &Outside, flow: u32, segment: &Segment) -> Outcome {
        let slot = outside.rig.slot_of(key_of(flow), 0);
        let handing_over = outside.now.0 - slot.changed().0 < surely(600);
        let candidates = [
            if handing_over { slot.previous() } else { 0 },
            slot.current(),
        ];
        let serves =
            |id: &&u32| **id != 0 && outside.backends[**id as usize].serving != Serving::None;
        let mid_stream = segment.flags & (SYN | ACK | FIN | RST) == ACK;
        let Some(&id) = candidates.iter().find(serves) else {
            let told = mid_stream || segment.flags & (FIN | RST) == FIN;
            let reason = if told {
                Reason::NoBackendForFlow
            } else {
                Reason::NoBackend
            };
            return (reason, None);
        };
        let choice = (id, outside.backends[id as usize]);
        if !mid_stream {
            return sent(choice, Reason::Stray);
        }
        if !choice.1.resolved || !outside.adoption {
            return sent(choice, Reason::Unadopted);
        }
        self.flows.entry(flow).or_default().push(Held {
            backend: id,
            generation: choice.1.generation,
            life: Life::Young {
                since: outside.now.0,
            },
            epoch: i64::from(segment.seq >> 20),
            doubtful: false,
            newer: false,
        });
        sent(choice, Reason::Adopted)
    }
}

/// Steps as clients, forgers, operators and time would take them.
pub(crate) fn story(seed: u64, flows: u32, length: usize) -> Vec<Op> {
    let mut random = Random::new(seed);
    // Where each client, and each forger, is in its stream.
    let mut clients: Vec<(u32, u32)> = (0..flows).map(|_| (random.word(), 0)).collect();
    let mut forgers = clients.clone();
    (0..length)
        .map(|_| match random.below(1_000) {
            0..60 => Op::Wait {
                ticks: 1 + random.below(4),
            },
            60..70 => Op::Wait {
                ticks: 5 + random.below(12),
            },
            70..73 => Op::Wait {
                ticks: 17 + random.below(300),
            },
            73 => Op::Wait {
                ticks: 300 + random.below(3_000),
            },
            74..90 => Op::Sweep,
            90..105 => Op::Backend {
                id: 1 + random.below(BACKENDS),
                serving: [
                    Serving::New,
                    Serving::New,
                    Serving::ExistingOnly,
                    Serving::None,
                ][random.below(4) as usize],
                reused: random.below(10) == 0,
                resolved: random.below(8) != 0,
            },
            105..115 => Op::Owner {
                slot: random.below(SLOTS),
                owner: if random.below(12) == 0 {
                    0
                } else {
                    1 + random.below(BACKENDS)
                },
            },
            115..119 => Op::Adoption {
                allowed: random.below(4) != 0,
            },
            _ => {
                let flow = random.below(flows);
                let forged = random.below(5) == 0;
                let side = if forged { &mut forgers } else { &mut clients };
                let segment = next_segment(&mut random, &mut side[flow as usize]);
                Op::Packet { flow, segment }
            }
        })
        .collect()
}

/// The next segment of someone whose SYN had sequence number `at.0` and who has sent `at.1` bytes.
fn next_segment(random: &mut Random, at: &mut (u32, u32)) -> Segment {
    const PSH: u8 = 0x08;
    let position = |at: &(u32, u32)| at.0.wrapping_add(1).wrapping_add(at.1);
    let (seq, flags) = match random.below(100) {
        0..6 => {
            *at = (random.word(), 0);
            (at.0, SYN)
        }
        6..12 => (at.0, SYN),
        12..30 => (at.0.wrapping_add(1), ACK),
        30..33 => (at.0.wrapping_add(random.below(3) + (1 << 17) - 1), ACK),
        33..36 => (at.0.wrapping_sub(1), ACK),
        36..70 => {
            at.1 = at.1.wrapping_add(random.below(1 << 19));
            (position(at), ACK)
        }
        70..74 => {
            at.1 = at.1.wrapping_add(random.below(1 << 22));
            (position(at), ACK)
        }
        74..77 => (position(at).wrapping_sub(random.below(1 << 23)), ACK),
        77..80 => (random.word(), ACK),
        80..86 => (position(at), FIN | ACK),
        86..90 => (position(at), RST),
        90..93 => (random.word(), FIN | ACK),
        93..96 => (random.word(), RST | ACK),
        96 => (position(at), SYN | ACK),
        97 => (position(at), SYN | FIN),
        98 => (position(at), PSH),
        _ => (random.word(), random.word() as u8),
    };
    Segment {
        seq,
        flags,
        payload: random.below(2) == 0,
    }
}

/// What the reference says of a flow's entries, to be compared with the words.
fn shape_of_held(held: &Held) -> (u32, u8, &'static str) {
    let name = match held.life {
        Life::Asked {
            challenges: false, ..
        } => "Embryo",
        Life::Asked {
            challenges: true, ..
        } => "Challenger",
        Life::Young { .. } => "Young",
        Life::Pin => "Pin",
        Life::Closing { .. } => "Closing",
    };
    (held.backend, held.generation, name)
}

fn sorted<T: Ord + Debug>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<_> = items.collect();
    items.sort();
    items
}

/// Runs a story on both; the first step at which they differ, and how.
fn first_difference(ops: &[Op], met: &mut HashSet<Reason>) -> Option<(usize, String)> {
    let mut outside = Outside::new(ROOMY);
    let mut reference = Reference::default();
    for (step, &op) in ops.iter().enumerate() {
        let Op::Packet { flow, segment } = op else {
            outside.apply(op, |now| reference.sweep(now));
            continue;
        };
        let expected = reference.packet(&outside, flow, &segment);
        let got = outside.rig.send(key_of(flow), segment, outside.now);
        met.insert(got.0);
        let words = outside.rig.entries(key_of(flow));
        let held = &reference.flows[&flow];
        let shapes = sorted(held.iter().map(|one| {
            let (backend, generation, name) = shape_of_held(one);
            (backend, generation, name.to_owned())
        }));
        let found = sorted(words.iter().map(|word| {
            let backend = word.backend();
            (
                backend.id(),
                backend.generation(),
                format!("{:?}", word.state()),
            )
        }));
        if expected != got || shapes != found {
            let report = format!(
                "at tick {}, expected {expected:?} and {held:?}, got {got:?} and {words:?}",
                outside.now.0
            );
            return Some((step, report));
        }
    }
    None
}

/// Leaves out what is not needed for a difference.
fn shortened(mut ops: Vec<Op>) -> Vec<Op> {
    let mut chunk = ops.len().div_ceil(2);
    while chunk > 0 {
        let mut from = 0;
        while from < ops.len() {
            let mut fewer = ops.clone();
            fewer.drain(from..(from + chunk).min(ops.len()));
            match std::panic::catch_unwind(|| first_difference(&fewer, &mut HashSet::new())) {
                Ok(Some((step, _))) => {
                    fewer.truncate(step + 1);
                    ops = fewer;
                }
                _ => from += chunk,
            }
        }
        chunk /= 2;
    }
    ops
}

#[test]
fn the_table_does_what_the_reference_says() {
    const RUNS: u64 = 300;
    const LENGTH: usize = 10_000;
    let mut met = HashSet::new();
    for seed in 0..RUNS {
        let ops = story(seed, FLOWS, LENGTH);
        if let Some((step, _)) = first_difference(&ops, &mut met) {
            let trace = shortened(ops[..=step].to_vec());
            let (_, difference) = first_difference(&trace, &mut met).unwrap();
            panic!("seed {seed}, step {step}: {difference}\nshortest trace: {trace:#?}");
        }
    }
    // The stories have to reach every corner.
    for reason in [
        Reason::Established,
        Reason::Opened,
        Reason::Reopened,
        Reason::Challenged,
        Reason::Unpinned,
        Reason::Adopted,
        Reason::Unadopted,
        Reason::Stray,
        Reason::BackendDead,
        Reason::NoBackendForFlow,
        Reason::ResetToDead,
        Reason::NoBackend,
        Reason::Unresolved,
        Reason::Contested,
        Reason::BadFlags,
        Reason::StaleGeneration,
    ] {
        assert!(met.contains(&reason), "no packet was {reason:?}");
    }
}
