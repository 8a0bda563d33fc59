//! Builds Maglev tables: which member owns which slot. Pure.
//!
//! Every member walks the slots in an order of its own, and members take turns at claiming the next slot that is free
//! (Eisenbud et al., NSDI 2016, section 3.4). Turns come at a rate in proportion to the weight. The result depends only on seed,
//! service, names and weights, so that all load balancers of a fleet forward alike whatever order they learned things in.

use std::ops::Range;

use crate::ids::KeyedHash;

/// One member of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member<'a> {
    /// Its name, unique in the table: where it goes depends on nothing else.
    pub name: &'a str,
    /// Its share in relation to the others'; 0 is none.
    pub weight: u16,
}

/// Builds a table of `size` slots, a prime: each slot holds the index of its owner in `members`.
///
/// Empty if no member has a weight, for then no slot has an owner. Names must be unique; the order of `members` decides
/// nothing but the indices.
///
/// # Panics
/// If `size` is less than 2, or there are 2^32 members.
pub fn build(seed: &[u64; 4], service: &str, members: &[Member<'_>], size: u32) -> Vec<u32> {
    assert!(size >= 2, "a table of {size} slots");
    let mut walkers: Vec<Walker> = members
        .iter()
        .enumerate()
        .filter(|(_, member)| member.weight > 0)
        .map(|(index, member)| Walker::new(seed, service, index, member, size))
        .collect();
    if walkers.is_empty() {
        return Vec::new();
    }
    // Names break ties, so that the order of the input never shows.
    walkers.sort_unstable_by(|a, b| {
        let name = |walker: &Walker| members[walker.member as usize].name;
        (b.weight, name(a)).cmp(&(a.weight, name(b)))
    });
    let mut owners = vec![0; size as usize];
    let mut free = Free::all(size);
    let mut left = size;
    let mut turns = Turns::new(&walkers);
    loop {
        for walker in &mut walkers[turns.next()] {
            owners[walker.claim(&mut free, size) as usize] = walker.member;
            left -= 1;
            if left == 0 {
                return owners;
            }
        }
    }
}

/// The smallest prime that is at least `n`.
///
/// # Panics
/// If there is none below 2^32.
pub fn next_prime(n: u32) -> u32 {
    (n..=u32::MAX)
        .find(|&candidate| is_prime(candidate))
        .expect("4294967291 is prime, and no table is that large")
}

fn is_prime(n: u32) -> bool {
    let divisors = (2..).take_while(|&d| u64::from(d) * u64::from(d) <= u64::from(n));
    n >= 2 && divisors.into_iter().all(|d: u32| !n.is_multiple_of(d))
}

/// A member on its way through the slots.
struct Walker {
    at: u32,
    step: u32,
    member: u32,
    weight: u16,
}

impl Walker {
    fn new(seed: &[u64; 4], service: &str, index: usize, member: &Member<'_>, size: u32) -> Self {
        let [start, step] = KeyedHash::of_fleet(seed, "maglev")
            .text(service)
            .text(member.name)
            .finish128();
        Self {
            at: (start % u64::from(size)) as u32,
            // Any step but 0 visits every slot, since the size is prime.
            step: (step % u64::from(size - 1)) as u32 + 1,
            member: u32::try_from(index).expect("fewer than 2^32 members"),
            weight: member.weight,
        }
    }

    /// Claims the next free slot; there must be one.
    fn claim(&mut self, free: &mut Free, size: u32) -> u32 {
        // Kept within the table by subtraction: a modulo for each of the many slots that are taken would rule the time.
        let step = |at: u32| {
            let next = at + self.step;
            if next >= size { next - size } else { next }
        };
        let mut at = self.at;
        while !free.take(at) {
            at = step(at);
        }
        self.at = step(at);
        at
    }
}

/// Which slots are free, a bit each, so that all of them stay in the first-level cache.
struct Free(Vec<u64>);

impl Free {
    fn all(size: u32) -> Self {
        Self(vec![!0; size.div_ceil(64) as usize])
    }

    fn take(&mut self, slot: u32) -> bool {
        let word = &mut self.0[(slot / 64) as usize];
        let bit = 1 << (slot % 64);
        let free = *word & bit != 0;
        *word &= !bit;
        free
    }
}

/// Whose turn it is. Members of one weight, a class, take their turns together.
///
/// Turn `k` of a class, from 1, comes at time `(k - 1/2) / weight`, so that the number of turns up to any time is the exact share, rounded. Times are
/// sorted into rounds, in each of which the heaviest class has one turn and no class has two: a queue would cost more than the turns.
struct Turns {
    classes: Vec<Class>,
    heaviest: u64,
    /// Classes by the round of their next turn, modulo the number of these lists.
    rounds: Vec<Vec<usize>>,
    round: usize,
    /// How many classes of this round have had their turn.
    done: usize,
}

struct Class {
    /// `2k - 1` for the next turn `k`.
    halves: u64,
    weight: u64,
    members: Range<usize>,
}

impl Turns {
    /// Of walkers in order of their weights, the heaviest first; at least one.
    fn new(walkers: &[Walker]) -> Self {
        let mut classes = Vec::new();
        let mut start = 0;
        for class in walkers.chunk_by(|a, b| a.weight == b.weight) {
            classes.push(Class {
                halves: 1,
                weight: u64::from(class[0].weight),
                members: start..start + class.len(),
            });
            start += class.len();
        }
        let heaviest = classes[0].weight;
        let lightest = classes[classes.len() - 1].weight;
        // The lightest class's turns are so many rounds apart, or one more.
        let count = heaviest.div_ceil(lightest) as usize + 1;
        let mut turns = Self {
            classes,
            heaviest,
            rounds: vec![Vec::new(); count],
            round: 0,
            done: 0,
        };
        for class in 0..turns.classes.len() {
            turns.queue(class);
        }
        turns
    }

    fn queue(&mut self, class: usize) {
        let Class { halves, weight, .. } = self.classes[class];
        let round = (halves * self.heaviest / (2 * weight)) as usize;
        let count = self.rounds.len();
        self.rounds[round % count].push(class);
    }

    /// The walkers whose turn is next.
    fn next(&mut self) -> Range<usize> {
        loop {
            let here = self.round % self.rounds.len();
            let Some(&class) = self.rounds[here].get(self.done) else {
                self.rounds[here].clear();
                self.round += 1;
                self.done = 0;
                continue;
            };
            self.done += 1;
            self.classes[class].halves += 2;
            self.queue(class);
            return self.classes[class].members.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEED: [u64; 4] = [1, 2, 3, 4];
    const SIZE: u32 = 65_537;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|n| format!("backend-{n}")).collect()
    }

    fn members<'a>(names: &'a [String], weight: impl Fn(usize) -> u16) -> Vec<Member<'a>> {
        names
            .iter()
            .enumerate()
            .map(|(n, name)| Member {
                name,
                weight: weight(n),
            })
            .collect()
    }

    fn shares(owners: &[u32], members: usize) -> Vec<u32> {
        let mut shares = vec![0; members];
        for &owner in owners {
            shares[owner as usize] += 1;
        }
        shares
    }

    #[test]
    fn equal_backends_get_equal_shares() {
        let names = names(100);
        let members = members(&names, |_| 100);
        for seed in 0..8 {
            let owners = build(&[seed, 0, 0, 0], "chat", &members, SIZE);
            let shares = shares(&owners, 100);
            let max = f64::from(*shares.iter().max().unwrap());
            let mean = f64::from(SIZE) / 100.0;
            assert!(max / mean <= 1.02, "seed {seed}: {max} against {mean}");
        }
    }

    #[test]
    fn removing_one_of_a_hundred_moves_few_slots_of_others() {
        let names = names(100);
        let all = members(&names, |_| 100);
        let before = build(&SEED, "chat", &all, SIZE);
        for removed in [0, 17, 50, 99] {
            let rest: Vec<Member<'_>> = all
                .iter()
                .copied()
                .filter(|member| member.name != names[removed])
                .collect();
            let after = build(&SEED, "chat", &rest, SIZE);
            let others = || {
                before
                    .iter()
                    .zip(&after)
                    .filter(|&(&owner, _)| owner as usize != removed)
            };
            let moved = others()
                .filter(|&(&old, &new)| all[old as usize].name != rest[new as usize].name)
                .count();
            let share = moved as f64 / others().count() as f64;
            assert!(
                share <= 0.01,
                "removing {removed} moved {share} of the others' slots"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn shares_follow_weights(weights in prop::collection::vec(0u16..=1000, 1..40), seed: [u64; 4]) {
            let names = names(weights.len());
            let members = members(&names, |n| weights[n]);
            let size = next_prime(100 * weights.len() as u32);
            let owners = build(&seed, "chat", &members, size);
            let sum: u32 = weights.iter().copied().map(u32::from).sum();
            if sum == 0 {
                prop_assert!(owners.is_empty());
                return Ok(());
            }
            prop_assert_eq!(owners.len(), size as usize);
            for (share, weight) in shares(&owners, weights.len()).into_iter().zip(weights) {
                let exact = f64::from(size) * f64::from(weight) / f64::from(sum);
                let off = (f64::from(share) - exact).abs();
                prop_assert!(off <= (exact * 0.02).max(1.0), "{} slots for {}", share, exact);
                prop_assert!(weight > 0 || share == 0);
            }
        }

        #[test]
        fn the_order_of_the_input_does_not_matter(
            weights in prop::collection::vec(0u16..=3, 1..30),
            seed: [u64; 4],
            shuffled in Just((0..30usize).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let names = names(weights.len());
            let members = members(&names, |n| weights[n]);
            let reordered: Vec<Member<'_>> = shuffled.into_iter().filter_map(|n| members.get(n).copied()).collect();
            let one = build(&seed, "chat", &members, 1009);
            let other = build(&seed, "chat", &reordered, 1009);
            let named = |owners: &[u32], members: &[Member<'_>]| -> Vec<String> {
                owners.iter().map(|&owner| members[owner as usize].name.to_owned()).collect()
            };
            prop_assert_eq!(named(&one, &members), named(&other, &reordered));
        }
    }

    #[test]
    fn seed_service_and_names_each_decide() {
        let names = names(10);
        let members = members(&names, |_| 100);
        let table = build(&SEED, "chat", &members, 1009);
        assert_ne!(table, build(&[1, 2, 3, 5], "chat", &members, 1009));
        assert_ne!(table, build(&SEED, "game", &members, 1009));
    }

    /// Fleets and restarts rely on it: a table must be the same in every version that shares slots with this one.
    #[test]
    fn tables_stay_what_they_are_across_versions() {
        let members = [("a", 1), ("b", 2), ("c", 3)].map(|(name, weight)| Member { name, weight });
        assert_eq!(
            build(&SEED, "chat", &members, 13),
            [1, 2, 0, 0, 2, 1, 2, 1, 2, 1, 2, 1, 2]
        );
    }

    #[test]
    fn sizes_are_made_prime() {
        for (n, prime) in [
            (0, 2),
            (2, 2),
            (4, 5),
            (2039, 2039),
            (65_536, 65_537),
            (16_777_213, 16_777_213),
        ] {
            assert_eq!(next_prime(n), prime, "{n}");
        }
    }
}
