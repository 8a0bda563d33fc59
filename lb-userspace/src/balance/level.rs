//! `balance = "least-connections"`: moves weights so that backends' connections become what their configured weights say.
//!
//! Connections live long and never move, so only new ones can even out what the past has left. A backend with too few gets more of them than
//! its weight says, one with too many gets fewer: in relation to how far off it is, within bounds, and gradually, so that a flood of new connections
//! does not all go to the one backend that has just come up. What chance alone explains moves nothing.

use lb_common::clock::{Tick, ticks_proving};

use super::WHOLE;

/// No weight moves sooner after the last move of its service, in ticks: 10 s. As often may a service's table be written anew for it.
pub const PAUSE_TICKS: u32 = ticks_proving(10);
/// The smallest and the largest factor, in sixteenths: half of the configured weight and half as much again.
pub const FACTORS: std::ops::RangeInclusive<u8> = WHOLE / 2..=WHOLE * 3 / 2;
/// What a backend lacks or has in excess, as a part of what it should have, is answered by so many times that part of its weight. In the simulation
/// more overshoots where connections live about equally long, for then those of one moment end together too.
const GAIN: f64 = 1.0;
/// A move goes one in so many parts of the way. With `1 + GAIN`, whatever the last move has done is just undone when all connections
/// were renewed meanwhile, so that short-lived ones do not make weights swing.
const PARTS: f64 = 1.0 + GAIN;
/// Less than this part too many or too few is left alone.
const TOLERANCE: f64 = 0.05;
/// A move in which no factor is off by as much as this, in sixteenths, is not worth a new table; but all go back to their configured weights when
/// nobody has too few or too many.
const LEAST_MOVE: f64 = 2.0;

/// A backend that takes new flows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Taker {
    /// Its configured weight, at least 1; less while its slow start lasts, since it is to have fewer then.
    pub weight: f64,
    /// Its connections.
    pub connections: u64,
    /// Its factor, in sixteenths.
    pub factor: u8,
}

/// What is remembered of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// When its weights last moved, and how many passes over the flow tables were complete then.
    last: Option<(Tick, u64)>,
    /// How often its weights have moved.
    pub moves: u64,
}

impl Level {
    /// Moves the factors of those that take new flows, if it is time to, and if that is worth a new table. `scans` passes over the flow tables are
    /// complete. Each group is leveled by itself. The same again changes nothing.
    pub fn move_factors(&mut self, groups: &mut [Vec<Taker>], scans: u64, now: Tick) -> bool {
        // Two passes: the one that was under way counted connections from before.
        let is_time = self
            .last
            .is_none_or(|(moved, counted)| now.since(moved) >= PAUSE_TICKS && scans >= counted + 2);
        if scans == 0 || !is_time {
            return false;
        }
        let mut moved = false;
        for group in groups {
            for (taker, factor) in next_factors(group).into_iter().enumerate() {
                moved |= group[taker].factor != factor;
                group[taker].factor = factor;
            }
        }
        if moved {
            self.last = Some((now, scans));
            self.moves += 1;
        }
        moved
    }
}

/// Where the factors of a group go.
fn next_factors(takers: &[Taker]) -> Vec<u8> {
    let targets = targets(takers);
    let off = |(taker, target): (&Taker, &f64)| (target - f64::from(taker.factor)).abs();
    let all_fair = targets.iter().all(|&target| target == f64::from(WHOLE));
    let worth_it = all_fair
        || takers
            .iter()
            .zip(&targets)
            .map(off)
            .any(|off| off >= LEAST_MOVE);
    let factor = |(taker, target): (&Taker, f64)| {
        let way = target - f64::from(taker.factor);
        let step = match way.round() as i32 {
            0 => 0.0,
            whole => (way / PARTS).abs().max(1.0).copysign(f64::from(whole)),
        };
        (f64::from(taker.factor) + step).round() as u8
    };
    // Also what is not worth a move is brought within its bounds.
    let within = |factor: u8| factor.clamp(*FACTORS.start(), *FACTORS.end());
    takers
        .iter()
        .zip(targets)
        .map(|(taker, target)| match worth_it {
            true => factor((taker, target)),
            false => taker.factor,
        })
        .map(within)
        .collect()
}

/// The factors that what each has too few or too many calls for, in sixteenths.
fn targets(takers: &[Taker]) -> Vec<f64> {
    let weights: f64 = takers.iter().map(|taker| taker.weight).sum();
    let connections: u64 = takers.iter().map(|taker| taker.connections).sum();
    let target = |taker: &Taker| {
        let fair = connections as f64 * taker.weight / weights;
        let missing = (fair - taker.connections as f64) / fair;
        // The standard deviation of what so many independent choices come to, and the one connection that cannot be halved.
        let chance = fair.sqrt().recip() + fair.recip();
        let beyond = (missing.abs() - chance.max(TOLERANCE))
            .max(0.0)
            .copysign(missing);
        let target = f64::from(WHOLE) * (1.0 + GAIN * beyond);
        target.clamp(f64::from(*FACTORS.start()), f64::from(*FACTORS.end()))
    };
    if connections == 0 || takers.len() < 2 {
        return vec![f64::from(WHOLE); takers.len()];
    }
    takers.iter().map(target).collect()
}

#[cfg(test)]
mod tests;
