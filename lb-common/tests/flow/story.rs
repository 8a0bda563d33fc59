//! Random stories of clients, forgers, operators and time, and the world in which they happen.

use lb_common::{
    backend::Serving,
    clock::Tick,
    flow::{
        v4::Key,
        word::{EMBRYO_TICKS, State},
    },
    maglev::Slot,
    tcp::{ACK, FIN, RST, SYN, Segment},
};

use crate::{random::Random, rig::Rig};

const BACKENDS: u32 = 4;
const SLOTS: u32 = 5;

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
    pub(crate) backends: Vec<Backend>,
    pub(crate) adoption: bool,
}

/// A backend as both are told of it.
#[derive(Clone, Copy)]
pub(crate) struct Backend {
    pub(crate) generation: u8,
    pub(crate) serving: Serving,
    pub(crate) resolved: bool,
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
