//! The policy by itself, and a simulation of connections that choose by real Maglev tables.

use super::*;
use crate::{
    balance::share,
    plan::owners,
    resolve::{Share, Table},
};
use proptest::prelude::*;

fn taker(connections: u64, factor: u8) -> Taker {
    Taker {
        weight: 100.0,
        connections,
        factor,
    }
}

/// The factors after one move.
fn moved(connections: &[u64]) -> Vec<u8> {
    let mut groups = [connections.iter().map(|&c| taker(c, WHOLE)).collect()];
    Level::default().move_factors(&mut groups, 1, Tick(100));
    groups[0].iter().map(|taker| taker.factor).collect()
}

#[test]
fn who_has_too_few_gets_more_and_who_has_too_many_gets_fewer() {
    assert_eq!(moved(&[10_000, 10_000, 0]), [12, 12, 20]);
    assert_eq!(moved(&[0, 0]), [16, 16]);
    assert_eq!(moved(&[1_000]), [16]);
    // Not less than half its weight nor more than half as much again, however often it moves.
    let (mut level, mut groups) = (Level::default(), [vec![taker(9_000, 16), taker(0, 16)]]);
    for n in 1..100 {
        level.move_factors(&mut groups, n * 2, Tick(n as u32 * PAUSE_TICKS));
    }
    assert!(groups[0][0].factor <= FACTORS.start() + 1);
    assert!(groups[0][1].factor >= FACTORS.end() - 1);
    // It all goes back once they are even.
    groups[0] = vec![taker(4_500, 8), taker(4_500, 24)];
    for n in 100..200 {
        level.move_factors(&mut groups, n * 2, Tick(n as u32 * PAUSE_TICKS));
    }
    assert_eq!(groups[0], [taker(4_500, 16), taker(4_500, 16)]);
}

#[test]
fn chance_moves_nothing() {
    // One in ten more, of so few.
    assert_eq!(moved(&[110, 90, 100]), [16, 16, 16]);
    assert_eq!(moved(&[3, 0, 1]), [16, 16, 16]);
    assert_eq!(moved(&[10_400, 9_600]), [16, 16]);
}

#[test]
fn weights_say_how_many_each_should_have() {
    let of = |heavy: u64, light: u64| {
        let heavy = Taker {
            weight: 300.0,
            ..taker(heavy, 16)
        };
        let mut groups = [vec![heavy, taker(light, 16)]];
        Level::default().move_factors(&mut groups, 1, Tick(0));
        [groups[0][0].factor, groups[0][1].factor]
    };
    assert_eq!(of(3_000, 1_000), [16, 16]);
    let [heavy, light] = of(2_000, 2_000);
    assert!(heavy > 16 && light < 16);
}

#[test]
fn groups_are_leveled_each_by_itself() {
    let mut groups = [
        vec![taker(9_000, 16), taker(9_000, 16)],
        vec![taker(1_000, 16), taker(0, 16)],
    ];
    Level::default().move_factors(&mut groups, 1, Tick(0));
    assert_eq!(groups[0], [taker(9_000, 16), taker(9_000, 16)]);
    assert!(groups[1][0].factor < 16 && groups[1][1].factor > 16);
}

#[test]
fn a_factor_beyond_its_bounds_is_brought_back_where_nothing_else_is_worth_a_move() {
    let beyond = Taker {
        weight: 14.0,
        connections: 0,
        factor: 25,
    };
    let least = Taker {
        weight: 1.0,
        connections: 7,
        factor: 8,
    };
    let mut groups = [vec![beyond, least]];
    assert!(Level::default().move_factors(&mut groups, 7, Tick(0)));
    assert_eq!([groups[0][0].factor, groups[0][1].factor], [24, 8]);
}

#[test]
fn nothing_moves_before_all_is_counted_and_counted_anew() {
    let (mut level, mut groups) = (Level::default(), [vec![taker(900, 16), taker(0, 16)]]);
    assert!(!level.move_factors(&mut groups, 0, Tick(0)));
    assert!(level.move_factors(&mut groups, 1, Tick(0)));
    assert!(!level.move_factors(&mut groups, 9, Tick(PAUSE_TICKS - 1)));
    assert!(!level.move_factors(&mut groups, 2, Tick(PAUSE_TICKS)));
    assert!(level.move_factors(&mut groups, 3, Tick(PAUSE_TICKS)));
    assert_eq!(level.moves, 2);
}

proptest! {
    #[test]
    fn factors_stay_within_their_bounds_and_the_same_again_changes_nothing(
        all in prop::collection::vec((1u32..1_000, 0u64..100_000, 8u8..=32), 1..12), now in any::<u32>(),
    ) {
        let takers = all.iter().map(|&(weight, connections, factor)| Taker { weight: weight.into(), connections, factor });
        let mut groups = [takers.collect::<Vec<_>>()];
        let mut level = Level::default();
        let moved = level.move_factors(&mut groups, 7, Tick(now));
        let once = groups.clone();
        prop_assert!(groups[0].iter().all(|taker| FACTORS.contains(&taker.factor)));
        prop_assert_eq!(moved, level.moves == 1);
        if moved {
            prop_assert!(!level.move_factors(&mut groups, 7, Tick(now)));
            prop_assert!(!level.move_factors(&mut groups, 99, Tick(now.wrapping_add(PAUSE_TICKS - 1))));
        }
        prop_assert_eq!(groups, once);
    }

    /// Nobody who has too few is given less than before, in relation to somebody who has too many.
    #[test]
    fn moves_go_the_right_way(connections in prop::collection::vec(0u64..100_000, 2..12)) {
        let factors = moved(&connections);
        for (a, from) in connections.iter().zip(&factors) {
            for (b, to) in connections.iter().zip(&factors) {
                prop_assert!(a <= b || from <= to, "{:?}: {:?}", connections, factors);
            }
        }
    }
}

/// How long connections live.
#[derive(Clone, Copy, Debug)]
enum Lives {
    /// Without memory: the mean, in ticks.
    Exponential(f64),
    /// From half to one and a half times this, in ticks.
    Even(f64),
}

/// Clients that connect again at once when their connection ends, by the slots of a real table.
struct World {
    random: u64,
    lives: Lives,
    least: bool,
    now: u32,
    level: Level,
    /// Who takes new flows, and its factor.
    backends: Vec<(bool, u8)>,
    slots: Vec<u32>,
    /// Backend and end of each.
    connections: Vec<(usize, f64)>,
    ended: usize,
    tables: usize,
}

const CLIENTS: usize = 4_000;

impl World {
    fn new(lives: Lives, least: bool, backends: usize) -> Self {
        let mut world = Self {
            random: 0x1234_5678,
            lives,
            least,
            now: 1_000,
            level: Level::default(),
            backends: vec![(true, WHOLE); backends],
            slots: Vec::new(),
            connections: Vec::new(),
            ended: 0,
            tables: 0,
        };
        world.build();
        world.connections = (0..CLIENTS).map(|_| world.connect()).collect();
        let (Lives::Exponential(mean) | Lives::Even(mean)) = lives;
        // Ages are those of a service that has run for long.
        for _ in 0..(3.0 * mean) as u32 {
            world.pass();
        }
        world
    }

    /// From 0 to 1, neither included.
    fn random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((mixed ^ (mixed >> 31)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn build(&mut self) {
        const NAMES: [&str; 5] = ["b0", "b1", "b2", "b3", "b4"];
        let takers: Vec<usize> = (0..self.backends.len())
            .filter(|&n| self.backends[n].0)
            .collect();
        let exact: Vec<u64> = takers
            .iter()
            .map(|&n| 100 * u64::from(self.backends[n].1))
            .collect();
        let table = Table {
            size: 65_537,
            members: takers
                .iter()
                .zip(share::weights(&exact))
                .map(|(&n, weight)| Share {
                    name: NAMES[n],
                    weight,
                    id: n as u32,
                })
                .collect(),
        };
        self.slots = owners(&[1, 2, 3, 4], "chat", &table);
        self.tables += 1;
    }

    fn connect(&mut self) -> (usize, f64) {
        let slot = (self.random() * self.slots.len() as f64) as usize;
        let life = match self.lives {
            Lives::Exponential(mean) => -mean * self.random().ln(),
            Lives::Even(mean) => mean * (0.5 + self.random()),
        };
        (self.slots[slot] as usize, f64::from(self.now) + life)
    }

    fn counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.backends.len()];
        for &(backend, _) in &self.connections {
            counts[backend] += 1;
        }
        counts
    }

    /// A tick, in which connections end and begin, and after which they are counted.
    fn pass(&mut self) {
        self.now += 1;
        for n in 0..self.connections.len() {
            if self.connections[n].1 <= f64::from(self.now) {
                self.connections[n] = self.connect();
                self.ended += 1;
            }
        }
        if !self.least {
            return;
        }
        let counts = self.counts();
        let takers: Vec<usize> = (0..counts.len()).filter(|&n| self.backends[n].0).collect();
        let mut groups = [takers
            .iter()
            .map(|&n| taker(counts[n], self.backends[n].1))
            .collect()];
        if self
            .level
            .move_factors(&mut groups, u64::from(self.now), Tick(self.now))
        {
            for (&n, taker) in takers.iter().zip(&groups[0]) {
                self.backends[n].1 = taker.factor;
            }
            self.build();
        }
    }

    fn passes(&mut self, number: u32) {
        for _ in 0..number {
            self.pass();
        }
    }

    /// So many connections have ended.
    fn turnover(&mut self, part: f64) {
        let until = self.ended + (CLIENTS as f64 * part) as usize;
        while self.ended < until {
            self.pass();
        }
    }

    fn max_to_mean(&self) -> f64 {
        let counts = self.counts();
        let max = counts.iter().copied().max().unwrap_or(0) as f64;
        max * counts.len() as f64 / CLIENTS as f64
    }

    /// Every backend in turn: a minute of drain, then it closes what it has, and returns half a minute later.
    fn deploy(&mut self) {
        for n in 0..self.backends.len() {
            self.backends[n].0 = false;
            self.build();
            self.passes(14);
            for connection in 0..CLIENTS {
                if self.connections[connection].0 == n {
                    self.connections[connection] = self.connect();
                }
            }
            self.passes(7);
            self.backends[n] = (true, WHOLE);
            self.build();
        }
    }

    fn scale_up(&mut self) {
        self.backends.push((true, WHOLE));
        self.build();
    }
}

const HOUR: f64 = 838.0;
const ALL_LIVES: [Lives; 6] = [
    Lives::Exponential(HOUR),
    Lives::Even(HOUR),
    Lives::Exponential(HOUR / 10.0),
    Lives::Even(HOUR / 10.0),
    Lives::Exponential(HOUR / 60.0),
    Lives::Even(HOUR / 60.0),
];

#[test]
fn after_one_turnover_nobody_has_over_a_fifth_more_than_the_mean() {
    for lives in ALL_LIVES {
        for (what, event) in [
            ("deployment", World::deploy as fn(&mut World)),
            ("scale-up", World::scale_up),
        ] {
            let backends = if what == "scale-up" { 3 } else { 4 };
            let mut world = World::new(lives, true, backends);
            event(&mut world);
            let (before, tables) = (world.max_to_mean(), world.tables);
            world.turnover(1.0);
            let after = world.max_to_mean();
            eprintln!(
                "{lives:?}, {what}: {before:.2}, after a turnover {after:.2}, {} tables",
                world.tables - tables
            );
            assert!(after <= 1.2, "{lives:?}, {what}: {after}");
            // And it stays so: nothing swings back.
            for _ in 0..20 {
                world.turnover(0.1);
                let later = world.max_to_mean();
                assert!(later <= 1.2, "{lives:?}, {what}: later {later}");
            }
        }
    }
}

#[test]
fn weights_alone_take_longer() {
    for event in [World::deploy as fn(&mut World), World::scale_up] {
        let after = |least| {
            let mut world = World::new(Lives::Exponential(HOUR), least, 3);
            event(&mut world);
            world.turnover(0.5);
            world.max_to_mean()
        };
        let (by_weights, least) = (after(false), after(true));
        eprintln!("after half a turnover: {by_weights:.2} by weights, {least:.2} by connections");
        assert!(
            by_weights - 1.0 > 1.4 * (least - 1.0),
            "{by_weights} and {least}"
        );
    }
}

#[test]
fn a_table_is_written_anew_only_when_it_is_of_use() {
    for lives in ALL_LIVES {
        let mut world = World::new(lives, true, 4);
        // Nothing has happened: chance alone.
        let (tables, begun) = (world.tables, world.now);
        world.passes(838);
        let idle = world.tables - tables;
        assert!(idle <= 3, "{lives:?}: {idle} in an hour");
        world.scale_up();
        let tables = world.tables;
        world.passes(838);
        let busy = world.tables - tables;
        eprintln!(
            "{lives:?}: {idle} tables in an idle hour, {busy} after a scale-up, from {begun}"
        );
        assert!(busy <= 20, "{lives:?}: {busy} in the hour after a scale-up");
    }
}
